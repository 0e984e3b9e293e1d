"""How long torch takes for one SD 1.5 UNet call in f32: the number our own is held against.

    python tools/bench/unet_torch.py --threads 2 --runs 5

Random weights, latent 64x64 (a picture of 512x512), 77 tokens, batch 1, in torch's own layout and in channels_last.
Prints the median of the runs after one warm-up.
"""

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))
import models  # noqa: E402


def seconds(unet, x, context, runs):
    taken = []
    with torch.inference_mode():
        for _ in range(runs + 1):
            start = time.perf_counter()
            unet(x, torch.tensor([500]), context)
            taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", type=int, default=64, help="latent height and width")
    chosen = parser.parse_args()
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(chosen.threads)
    unet = models.unet((320, 640, 1280, 1280), layers=2, context=768).eval()
    x, context = torch.randn(1, 4, chosen.size, chosen.size), torch.randn(1, 77, 768)
    print(f"torch {torch.__version__}, {chosen.threads} threads, {platform.processor() or platform.machine()}, "
          f"{torch.backends.cpu.get_cpu_capability()}")
    print(f"nchw           {seconds(unet, x, context, chosen.runs):.2f} s")
    unet = unet.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    print(f"channels_last  {seconds(unet, x, context, chosen.runs):.2f} s")
