"""Small foreign files and what the libraries that own their formats read from them: gguf, numpy, flax.

    python tools/golden/foreign.py --out testdata/golden

`convert/NAME.gguf` (and so on) lies beside `NAME.safetensors`, which holds the numbers expected.
"""

import argparse
import io
import struct
import zipfile
from pathlib import Path

import flax
import flax.serialization
import gguf
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import quants
from safetensors.numpy import save_file

SEED = 20261123

# Where a block has its binary16 numbers: random ones are made small and finite.
HALVES = {
    Q.Q4_0: [0], Q.Q4_1: [0, 2], Q.Q5_0: [0], Q.Q5_1: [0, 2], Q.Q8_0: [0],
    Q.Q2_K: [80, 82], Q.Q3_K: [108], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208],
    Q.IQ2_XXS: [0], Q.IQ2_XS: [0], Q.IQ2_S: [0], Q.IQ3_XXS: [0], Q.IQ3_S: [0], Q.IQ1_S: [0],
    Q.IQ1_M: [], Q.IQ4_NL: [0], Q.IQ4_XS: [0], Q.TQ1_0: [52], Q.TQ2_0: [64], Q.MXFP4: [], Q.NVFP4: [],
}


def metadata(**more):
    versions = f"gguf {gguf_version()}, numpy {np.__version__}, flax {flax.__version__}, ml_dtypes {ml_dtypes.__version__}"
    return {"script": "tools/golden/foreign.py", "versions": versions, "seed": str(SEED), **more}


def gguf_version():
    from importlib.metadata import version

    return version("gguf")


def random_blocks(kind, count, rng):
    _, size = gguf.constants.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in HALVES[kind]:
        scales = rng.uniform(-0.1, 0.1, count).astype(np.float16)
        blocks[:, at:at + 2] = scales.view(np.uint8).reshape(count, 2)
    if kind == Q.IQ1_M:  # the scale's nibbles: 0x2…: small and positive
        blocks[:, 55] = (blocks[:, 55] & 0x0F) | 0x20
    if kind == Q.MXFP4:
        blocks[:, 0] = np.resize([0, 1, 2, 120, 127, 130], count)
    return blocks


def blocks(out, rng):
    """Three random blocks of every quantised type, and all 256 scales of MXFP4 and NVFP4."""
    tensors = {}
    for kind in HALVES:
        count = 6 if kind == Q.MXFP4 else 3
        data = random_blocks(kind, count, rng)
        tensors[f"{kind.name}.blocks"] = data
        tensors[f"{kind.name}.values"] = quants.dequantize(data, kind)
    # Q8_K is ggml's own: a float, 256 bytes, sums nobody needs.
    data = rng.integers(0, 256, (2, 292), dtype=np.uint8)
    data[:, :4] = rng.uniform(-1, 1, 2).astype(np.float32).view(np.uint8).reshape(2, 4)
    tensors["Q8_K.blocks"] = data
    scales = data[:, :4].copy().view(np.float32)
    tensors["Q8_K.values"] = scales * data[:, 4:260].view(np.int8).astype(np.float32)
    # Quantised by the package: ours must have the same bits.
    numbers = rng.normal(0, 1, (8, 64)).astype(np.float32)
    numbers[0] = 0
    numbers[1] *= 1e-30
    numbers[2] *= 1e4
    numbers[3] = np.resize(np.arange(-127, 128, 2, dtype=np.float32) / 2, 64)  # ties
    numbers[4, :32] = 1e-7
    tensors["quantize.numbers"] = numbers
    tensors["quantize.Q8_0"] = quants.quantize(numbers, Q.Q8_0)
    tensors["quantize.BF16"] = quants.quantize(numbers, Q.BF16)
    save_file(tensors, out / "gguf_blocks.safetensors", metadata())


def gguf_tensors(rng):
    plain = {
        "f32": rng.normal(size=(3, 5)).astype(np.float32),
        "f16": rng.normal(size=(2, 3, 4)).astype(np.float16),
        "f64": rng.normal(size=(7,)).astype(np.float64),
        "i8": rng.integers(-128, 128, (9,)).astype(np.int8),
        "i16": rng.integers(-(2**15), 2**15, (5,)).astype(np.int16),
        "i32": rng.integers(-(2**31), 2**31, (2, 2)).astype(np.int32),
        "i64": rng.integers(-(2**62), 2**62, (3,)).astype(np.int64),
    }
    packed = {
        "blk.0.attn_q.weight": (random_blocks(Q.Q4_K, 4, rng).reshape(4, 144), Q.Q4_K),
        "blk.0.attn_k.weight": (random_blocks(Q.Q8_0, 6, rng).reshape(2, 102), Q.Q8_0),
        "blk.0.norm.weight": (rng.normal(size=(2, 8)).astype(ml_dtypes.bfloat16).view(np.uint8), Q.BF16),
    }
    return plain, packed


def gguf_file(path, endianess, rng):
    """A file as the package writes it, and what the package reads from it."""
    writer = gguf.GGUFWriter(path, "sd1", endianess=endianess)
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -5)
    writer.add_uint16("a.u16", 60000)
    writer.add_int16("a.i16", -300)
    writer.add_uint32("a.u32", 4_000_000_000)
    writer.add_int32("a.i32", -70000)
    writer.add_float32("a.f32", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.str", "Grüße, 世界")
    writer.add_uint64("a.u64", 2**63 + 1)
    writer.add_int64("a.i64", -(2**62))
    writer.add_float64("a.f64", 0.1)
    writer.add_array("a.list", [1, 2, 3])
    writer.add_array("a.words", ["a", "b\"c"])
    writer.add_array("a.long", list(range(15_000)) if endianess == gguf.GGUFEndian.LITTLE else [1])
    plain, packed = gguf_tensors(rng)
    expected = {}
    for name, tensor in plain.items():
        # The package swaps what it is given where the file's order is not the machine's.
        writer.add_tensor(name, tensor)
        expected[name] = tensor
    for name, (data, kind) in packed.items():
        stored = data
        if endianess == gguf.GGUFEndian.BIG and kind != Q.Q4_K:
            continue  # below
        if endianess == gguf.GGUFEndian.BIG:
            stored = data.copy()
            for at in HALVES[kind]:
                stored[:, [at, at + 1]] = stored[:, [at + 1, at]]
        writer.add_tensor(name, stored, raw_dtype=kind)
        expected[name] = quants.dequantize(data, kind) if kind != Q.BF16 else data.view(np.uint16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, path.with_suffix(".safetensors"), metadata())


def gguf_version_1(path, rng):
    """Version 1 has 32-bit counts and dimensions; nothing writes it any more."""
    text = lambda s: struct.pack("<I", len(s)) + s.encode()
    tensor = rng.normal(size=(2, 3)).astype(np.float32)
    data = b"GGUF" + struct.pack("<III", 1, 1, 2)
    data += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    data += text("list") + struct.pack("<III", 9, 4, 2) + struct.pack("<II", 7, 8)
    data += text("w") + struct.pack("<III", 2, 3, 2) + struct.pack("<IQ", 0, 0)
    data += b"\0" * (-len(data) % 32) + tensor.tobytes()
    path.write_bytes(data)
    save_file({"w": tensor}, path.with_suffix(".safetensors"), metadata())


NPY_DTYPES = ["?", "i1", "u1", "<i2", ">i2", "<u2", ">u2", "<i4", ">i4", "<u4", ">u4", "<i8", ">i8", "<u8", ">u8",
              "<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "<c8", ">c8"]


def arrays(rng):
    made = {}
    for dtype in NPY_DTYPES:
        numbers = rng.integers(0, 256, (3, 4, 8), dtype=np.uint8)
        dtype = np.dtype(dtype)
        if dtype.kind == "b":
            array = numbers[..., 0] > 127
        elif dtype.kind in "fc":
            array = rng.normal(size=(3, 4)).astype(dtype)
        else:
            array = numbers[..., :dtype.itemsize].copy().view(dtype)[..., 0]
        key = str(dtype.str).replace("<", "le_").replace(">", "be_").replace("|", "")
        made[key] = array
        made[f"fortran.{key}"] = np.asfortranarray(array)
    made["scalar"] = np.float32(1.5)
    made["empty"] = np.zeros((0, 3), np.float32)
    made["cube"] = np.asfortranarray(rng.normal(size=(4, 3, 2)).astype(np.float32))
    made["bf16"] = rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16)
    made["f8_e5m2"] = rng.normal(size=(5,)).astype(ml_dtypes.float8_e5m2)
    made["f8_e4m3"] = rng.normal(size=(5,)).astype(ml_dtypes.float8_e4m3fn)
    made["words"] = np.array(["left", "out"])
    made["word"] = np.array("kept as metadata")
    return made


def native(array):
    array = np.asarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        return np.ascontiguousarray(array).view(np.uint16)
    if array.dtype.itemsize == 1 and array.dtype.kind not in "biu":
        return np.ascontiguousarray(array).view(np.uint8)
    # np.ascontiguousarray would make a vector of a scalar
    return array.astype(array.dtype.newbyteorder("="), order="C")


def numpy_files(out, rng):
    made = arrays(rng)
    np.savez(out / "stored.npz", **made)
    np.savez_compressed(out / "deflated.npz", **made)
    expected = {name: native(array) for name, array in made.items() if np.asarray(array).dtype.kind != "U"}
    save_file(expected, out / "npz.safetensors", metadata())
    for version in [(1, 0), (2, 0), (3, 0)]:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, made["cube"], version=version)
        (out / f"version_{version[0]}.npy").write_bytes(buffer.getvalue())
    for name, array in {
        "object": np.array([{"a": 1}], dtype=object),
        "structured": np.zeros(2, dtype=[("a", "<f4"), ("b", "<i2", (2,))]),
    }.items():
        np.save(out / f"{name}.npy", array, allow_pickle=True)
    # numpy writes 64-bit extra fields itself when it streams; here also with data descriptors.
    class Pipe(io.RawIOBase):
        def __init__(self):
            self.data = b""

        def writable(self):
            return True

        def write(self, data):
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        with archive.open("cube.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, made["cube"])
    (out / "streamed.npz").write_bytes(pipe.data)


def flax_files(out, rng):
    kernel = rng.normal(size=(3, 4)).astype(np.float32)
    tree = {
        "params": {
            "dense": {"kernel": kernel, "bias": jnp.asarray(rng.normal(size=(4,)), jnp.bfloat16)},
            "embed": {"0": rng.integers(0, 100, (2, 2)).astype(np.int64), "half": kernel.astype(np.float16)},
            "big": {"table": rng.normal(size=(5, 7)).astype(np.float32)},
        },
        "step": np.int32(7),
        "epoch": 3,
        "rate": 0.5,
        "z": 1 + 2j,
        "name": "model",
        "mask": np.array([True, False]),
        "nothing": None,
        "empty": {},
        "list": [np.float32(1.5), np.arange(3, dtype=np.uint8)],
    }
    chunk_size = flax.serialization.MAX_CHUNK_SIZE
    flax.serialization.MAX_CHUNK_SIZE = 100  # so that `table` comes in pieces
    data = flax.serialization.to_bytes(tree)
    flax.serialization.MAX_CHUNK_SIZE = chunk_size
    (out / "flax.msgpack").write_bytes(data)
    read = flax.serialization.msgpack_restore(data)
    expected = {}

    def walk(prefix, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}{key}.", inner)
        elif isinstance(value, (np.ndarray, np.generic)):
            expected[prefix[:-1]] = native(value)

    walk("", read)
    save_file(expected, out / "flax.safetensors", metadata())


def make(out):
    out = Path(out) / "convert"
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    blocks(out, rng)
    gguf_file(out / "little.gguf", gguf.GGUFEndian.LITTLE, rng)
    gguf_file(out / "big.gguf", gguf.GGUFEndian.BIG, rng)
    gguf_version_1(out / "version_1.gguf", rng)
    numpy_files(out, rng)
    flax_files(out, rng)
    for path in out.glob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="testdata/golden")
    make(parser.parse_args().out)
