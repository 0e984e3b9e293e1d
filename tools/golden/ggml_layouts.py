"""Blocks of ggml's types that the package `gguf` does not take apart, and their numbers.

Written down from the layouts in ggml-common.h and the meaning of each field in ggml-quants.c (ggml-org/llama.cpp,
commit 01243c587fec), with numpy and nothing of ours:

* Q1_0, 128 elements: a binary16 scale d and 128 bits, lowest first; a set bit is +d, another -d.
* Q2_0, 64 elements: a binary16 scale d and 64 numbers q of two bits, lowest first; (q - 1) * d.
* Q8_1, 32 elements: binary16 d and s (d times the sum of all q, which no element needs), 32 signed bytes q; d * q.
  ggml itself never unpacks it, and old versions had f32 scales; this is the layout since 2023.

    python tools/golden/ggml_layouts.py testdata/golden
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SEED = 20261130
BLOCKS = 6


def halves(blocks, at):
    """The binary16 at a byte of every block, as f32 in a column."""
    return np.ascontiguousarray(blocks[:, at:at + 2]).view("<f2").astype(np.float32)


def q1_0(blocks):
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(bool)
    d = halves(blocks, 0)
    return np.where(bits, d, -d)


def q2_0(blocks):
    shifts = np.array([0, 2, 4, 6], np.uint8)
    q = (blocks[:, 2:, None] >> shifts & 3).reshape(len(blocks), -1)
    return (q.astype(np.float32) - np.float32(1)) * halves(blocks, 0)


def q8_1(blocks):
    return halves(blocks, 0) * blocks[:, 4:].view(np.int8).astype(np.float32)


KINDS = {"Q1_0": (18, 128, q1_0), "Q2_0": (18, 64, q2_0), "Q8_1": (36, 32, q8_1)}


def main(out):
    rng = np.random.default_rng(SEED)
    tensors = {}
    for name, (size, elements, values) in KINDS.items():
        blocks = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
        scales = np.array([0.0, -0.0123, 1.0, 6e-8, 65504.0, -3.5], np.float16)  # a zero, a denormal, the largest
        blocks[:, :2] = scales.view(np.uint8).reshape(BLOCKS, 2)
        found = values(blocks)
        assert found.shape == (BLOCKS, elements) and found.dtype == np.float32
        tensors[f"{name}.blocks"] = blocks
        tensors[f"{name}.values"] = found
    about = {
        "script": "tools/golden/ggml_layouts.py",
        "versions": f"numpy {np.__version__}",
        "seed": str(SEED),
        "tolerance": "none: the same bits",
    }
    save_file(tensors, out / "convert" / "gguf_layouts.safetensors", about)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
