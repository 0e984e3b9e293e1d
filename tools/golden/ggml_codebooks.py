"""Writes crates/convert/assets/ggml/*.bin: the code books of ggml's IQ formats, as the package `gguf` has them.

    python tools/golden/ggml_codebooks.py --out crates/convert/assets/ggml
"""

import argparse
from pathlib import Path

from gguf import quants

BOOKS = {
    "iq2_xxs": quants.IQ2_XXS,
    "iq2_xs": quants.IQ2_XS,
    "iq2_s": quants.IQ2_S,
    "iq3_xxs": quants.IQ3_XXS,
    "iq3_s": quants.IQ3_S,
    "iq1": quants.IQ1_S,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    for name, kind in BOOKS.items():
        (out / f"{name}.bin").write_bytes(bytes.fromhex(kind.grid_hex.decode()))


if __name__ == "__main__":
    main()
