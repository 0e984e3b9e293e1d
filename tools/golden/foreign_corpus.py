"""Seeds of the fuzz targets gguf, npz and msgpack: small files, one feature each.

    python tools/golden/foreign_corpus.py --out fuzz/corpus
"""

import argparse
import io
import struct
from pathlib import Path

import flax.serialization
import gguf
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType as Q

from foreign import HALVES, gguf_version_1, random_blocks

RNG = np.random.default_rng(7)


def gguf_file(path, add, endianess=gguf.GGUFEndian.LITTLE):
    writer = gguf.GGUFWriter(path, "sd1", endianess=endianess)
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_seeds(out):
    gguf_version_1(out / "version_1.gguf", RNG)
    (out / "version_1.safetensors").unlink()

    def values(writer):
        writer.add_uint8("u8", 1)
        writer.add_float32("f32", 0.5)
        writer.add_bool("bool", True)
        writer.add_int64("i64", -1)
        writer.add_array("list", [1, 2])
        writer.add_array("words", ["a", "b"])
        writer.add_key_value("deep", [[1], [2, 3]], gguf.GGUFValueType.ARRAY)
        writer.add_uint32("general.alignment", 32)

    def plain(writer):
        for dtype in ["f4", "f2", "f8", "i1", "i2", "i4", "i8"]:
            writer.add_tensor(dtype, np.ones((2, 3), dtype))

    def quantised(kinds):
        def add(writer):
            for kind in kinds:
                writer.add_tensor(kind.name, random_blocks(kind, 1, RNG), raw_dtype=kind)

        return add

    gguf_file(out / "values.gguf", values)
    gguf_file(out / "plain.gguf", plain)
    gguf_file(out / "big_endian.gguf", plain, gguf.GGUFEndian.BIG)
    kinds = list(HALVES)
    for i in range(0, len(kinds), 4):
        gguf_file(out / f"blocks_{i // 4}.gguf", quantised(kinds[i:i + 4]))


def npz_seeds(out):
    arrays = {
        "f32": np.ones((2, 3), "<f4"),
        "big_endian": np.ones((2, 3), ">f8"),
        "complex": np.ones(2, ">c8"),
        "fortran": np.asfortranarray(np.arange(24, dtype="<i2").reshape(4, 3, 2)),
        "scalar": np.bool_(True),
        "text": np.array("words"),
        "bf16": np.ones(3, ml_dtypes.bfloat16),
    }
    for name, array in arrays.items():
        np.save(out / f"{name}.npy", array)
    (out / "stored.npz").write_bytes(archive(np.savez, arrays))
    (out / "deflated.npz").write_bytes(archive(np.savez_compressed, {"a": arrays["f32"], "f": arrays["fortran"]}))
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, arrays["f32"], version=(3, 0))
    (out / "version_3.npy").write_bytes(buffer.getvalue())


def archive(save, arrays):
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def msgpack_seeds(out):
    ones = np.ones((2, 2), np.float32)
    trees = {
        "nested": {"params": {"dense": {"kernel": ones, "bias": ones[0]}}},
        "bf16": {"a": ones.astype(ml_dtypes.bfloat16)},
        "scalars": {"step": np.int32(7), "epoch": 3, "rate": 0.5, "low": -70000, "name": "x", "none": None, "yes": True},
        "complex": {"z": 1 + 2j},
        "list": [ones, {"a": ones}],
        "array": ones,
        "empty": {"a": {}, "b": np.zeros((0, 3), np.uint8)},
        "bytes": {"a": b"abc", "b": 2**40},
    }
    for name, tree in trees.items():
        (out / f"{name}.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    flax.serialization.MAX_CHUNK_SIZE = 8
    (out / "chunked.msgpack").write_bytes(flax.serialization.to_bytes({"a": ones}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    for name, make in {"gguf": gguf_seeds, "npz": npz_seeds, "msgpack": msgpack_seeds}.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        make(out / name)


if __name__ == "__main__":
    main()
