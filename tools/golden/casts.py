"""What torch and ml_dtypes make of numbers: `testdata/golden/casts/casts.safetensors`.

`decode.DTYPE` is the value of every code, as F32. `values` are numbers of interest (every number of every 8-bit float, the
middles between neighbours and what lies next to them, and random bits) and `encode.DTYPE` their codes after a cast.
F4 and F6 come from ml_dtypes (torch does not cast to them), everything else from torch.
"""

import argparse
import json
from pathlib import Path

import ml_dtypes
import numpy
import torch
from safetensors.numpy import save_file

TORCH = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}
ML = {
    "F4": (4, ml_dtypes.float4_e2m1fn),
    "F6_E2M3": (6, ml_dtypes.float6_e2m3fn),
    "F6_E3M2": (6, ml_dtypes.float6_e3m2fn),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("testdata/golden"))
    arguments = parser.parse_args()
    tensors = {}
    numbers = [numpy.array([0.0, 1e30, 3.4e38, 1e-45, 1e-40, 65519.0, 65520.0, 3.39e38], numpy.float32)]
    for name, dtype in TORCH.items():
        if dtype.itemsize == 1:
            codes = torch.arange(256, dtype=torch.uint8)
            tensors[f"decode.{name}"] = codes.view(dtype).float().numpy()
    for name, (bits, dtype) in ML.items():
        codes = numpy.arange(2**bits, dtype=numpy.uint8)
        tensors[f"decode.{name}"] = codes.view(dtype).astype(numpy.float32)
    for table in list(tensors.values()):
        sizes = numpy.sort(numpy.unique(numpy.abs(table[numpy.isfinite(table)])))
        middles = ((sizes[1:].astype(numpy.float64) + sizes[:-1]) / 2).astype(numpy.float32)
        beyond = sizes[-1:] * numpy.array([1.03125, 1.0625, 1.07, 1.125, 1.25, 1.3, 1.5, 2], numpy.float32)
        infinity = numpy.float32(numpy.inf)
        for part in (sizes, middles, numpy.nextafter(middles, infinity), numpy.nextafter(middles, -infinity), beyond):
            numbers.append(part.astype(numpy.float32))
    generator = numpy.random.default_rng(11)
    numbers.append(generator.integers(0, 2**32, 1500, dtype=numpy.uint32).view(numpy.float32))
    numbers.append(generator.normal(0, 1, 1500).astype(numpy.float32))
    sizes = numpy.unique(numpy.abs(numpy.concatenate(numbers)))
    sizes = sizes[numpy.isfinite(sizes)]
    values = numpy.concatenate([sizes, -sizes, numpy.array([numpy.inf, -numpy.inf, numpy.nan], numpy.float32)])
    tensors["values"] = values
    for name, dtype in TORCH.items():
        cast = torch.from_numpy(values).to(dtype)
        tensors[f"encode.{name}"] = cast.view(torch.uint16 if dtype.itemsize == 2 else torch.uint8).numpy()
    for name, (_, dtype) in ML.items():
        tensors[f"encode.{name}"] = values.astype(dtype).view(numpy.uint8)
    versions = {"torch": torch.__version__, "ml_dtypes": ml_dtypes.__version__, "numpy": numpy.__version__}
    path = arguments.out / "casts" / "casts.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"about": json.dumps({"script": "tools/golden/casts.py", "versions": versions})})


if __name__ == "__main__":
    main()
