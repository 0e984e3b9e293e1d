"""Writes crates/cli/tests/data/numpy_text.json: arrays and how numpy prints them, for `safelight cat`.

    python tools/golden/numpy_text.py
"""

import json
import pathlib

import numpy as np

NAMES = {"bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "uint64": "U64",
         "float16": "F16", "float32": "F32", "float64": "F64", "complex64": "C64"}


def cases():
    rng = np.random.default_rng(7)
    for dtype in (np.float16, np.float32, np.float64):
        yield from floats(rng, dtype)
    for dtype in (np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint64):
        info = np.iinfo(dtype)
        yield np.array([0, 1, info.max, info.min], dtype)
        yield np.arange(24).reshape(2, 3, 4).astype(dtype)
    yield np.array([True, False])
    yield np.array([[True], [True]])
    yield np.array(True)
    yield np.array(-3, np.int32)
    yield np.arange(1001, dtype=np.int32)
    yield np.arange(1200, dtype=np.int16).reshape(2, 6, 100)
    yield (np.arange(6) + 1j * np.arange(6)[::-1]).astype(np.complex64) / 3
    yield np.array([1 + 2j, np.nan - 1e-9j, complex(-0.0, np.inf)], np.complex64)
    yield np.array(1.5 - 2j, np.complex64)


def floats(rng, dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    for values in (
        [1, 2, 3], [0.1, -0.25, 3], [1e-5, 1], [1e4, 1], [0.0, -0.0], [1, np.nan], [np.inf, -np.inf, 1], [np.nan, np.nan], [np.inf],
        [1 / 3, 2 / 3], [1000.5, 0.5], [1001, 1], [1e-4], [9.9e-5], [tiny], [np.finfo(dtype).max], [60000, 1],
        [1.23456789012, 12.5],
    ):
        yield np.array(values, dtype)
    yield np.array(1 / 3, dtype)
    yield np.array(1, dtype)
    yield np.array(1e-5, dtype)
    yield np.array(np.nan, dtype)
    yield np.zeros((2, 0, 3), dtype)
    yield rng.standard_normal((3, 4)).astype(dtype)
    yield rng.standard_normal((2, 2, 9)).astype(dtype)
    yield (rng.standard_normal((4, 3)) * 1e-3).astype(dtype)
    yield (rng.standard_normal(30) * 10.0 ** rng.integers(-4, 4, 30)).astype(dtype)
    yield rng.standard_normal((8, 8, 3, 7)).astype(dtype)
    yield rng.standard_normal((1, 1001)).astype(dtype)
    if dtype != np.float16:
        yield np.array([1e8, 1], dtype)
        yield np.array([123456789, 0.5], dtype)
        yield np.array([1e30, 1e-30, -1.5e-10], dtype)


def main():
    listed = [
        {"dtype": NAMES[array.dtype.name], "shape": array.shape, "bytes": array.tobytes().hex(), "text": str(array)} for array in cases()
    ]
    path = pathlib.Path(__file__).parents[2] / "crates/cli/tests/data/numpy_text.json"
    path.write_text(json.dumps({"numpy": np.__version__, "cases": listed}, indent=0) + "\n")
    print(len(listed), "cases,", path.stat().st_size, "bytes")


main()
