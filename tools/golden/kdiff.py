"""k-diffusion's samplers and schedule, without the parts of the package that need more packages."""

import importlib
import importlib.util
import sys
import types
from pathlib import Path

package = types.ModuleType("k_diffusion")
package.__path__ = [str(Path(importlib.util.find_spec("k_diffusion").origin).parent)]
sys.modules["k_diffusion"] = package

# `k_diffusion.utils` imports torchvision for one function on pictures, which no sampler calls.
ABSENT = [] if importlib.util.find_spec("torchvision") else ["torchvision", "torchvision.transforms"]
for name in ABSENT:
    sys.modules[name] = types.ModuleType(name)
if ABSENT:
    sys.modules["torchvision.transforms"].functional = None
sampling = importlib.import_module("k_diffusion.sampling")
external = importlib.import_module("k_diffusion.external")
for name in ABSENT:
    del sys.modules[name]
