"""HDF5 files of every kind of group and chunk index, Keras' files, and what h5py reads from them; and seeds of the fuzz target h5.

    python tools/golden/hdf5.py --out testdata/golden --corpus fuzz/corpus

Beside `convert/NAME.h5` lies `NAME_h5.safetensors`, which holds the numbers expected (`NAME.keras`: `NAME_keras.safetensors`).
"""

import argparse
import io
import json
import os
import zipfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import h5py
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

SEED = 20261125


def metadata():
    import keras

    versions = f"Keras {keras.__version__}, h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}, numpy {np.__version__}"
    return {"script": "tools/golden/hdf5.py", "versions": versions, "seed": str(SEED)}


def native(array):
    """As safetensors' numpy writer takes it: same bits, a plain dtype."""
    array = np.asarray(array)
    if array.dtype.kind == "V":  # bfloat16 to h5py
        return array.view(np.uint16)
    if array.dtype.name.startswith("float8"):
        return array.view(np.uint8)
    return array.astype(array.dtype.newbyteorder("="), order="C")


def read(path, skip=()):
    """All datasets by all of their names (`visititems` shows an object once)."""
    expected = {}

    def visit(prefix, group):
        for name in group:
            if group.get(name, getlink=True).__class__ is not h5py.HardLink or prefix + name in skip:
                continue
            item = group[name]
            if isinstance(item, h5py.Group):
                visit(f"{prefix}{name}/", item)
            elif item.shape is not None and item.dtype.kind in "fiubVc":
                expected[prefix + name] = native(item[()])

    with h5py.File(path) as file:
        visit("", file)
    return expected


def expect(path, skip=()):
    out = path.with_name(path.name.replace(".", "_") + ".safetensors")
    save_file(read(path, skip), out, metadata())
    out.chmod(0o644)


def dense_groups(path):
    """Links in fractal heaps: a few, so many that their index and their heap have inner blocks, and very long names."""
    with h5py.File(path, "w", libver="latest") as file:
        file["one"] = np.float32([1, 2, 3])
        file["two"] = np.int16(2)
        for group, count in {"few": 12, "many": 400}.items():
            group = file.create_group(group)
            for i in range(count):
                group[f"name_{i}"] = file["one" if i % 2 else "two"]
            group["l" * 5000] = file["one"]  # too long for a block: a large object
        ordered = file.create_group("ordered", track_order=True)
        for i in range(20):
            ordered[f"{100 - i}"] = file["two"]


def deep_heap():
    """A heap of more than 512 KiB: blocks of blocks of blocks. It deflates well."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver="latest") as file:
        file["w"] = np.float32([1, 2])
        for i in range(700):
            file["g/" + "n" * 1500 + str(i)] = h5py.SoftLink("/w")
        file["g/last"] = file["w"]
    return buffer.getvalue()


def indexes(path, rng):
    """Every kind of chunk index, with and without filters, also for datasets that may grow."""
    cube = rng.integers(-100, 100, (7, 5, 3)).astype(np.int16)
    packed = {"compression": "gzip", "shuffle": True, "fletcher32": True}
    with h5py.File(path, "w", libver="latest") as file:
        for name, chunks, most in [
            ("single", (7, 5, 3), None), ("fixed", (2, 3, 2), None), ("fixed_may_grow", (2, 3, 2), (9, 10, 8)),
            ("grows_0", (2, 2, 2), (None, 5, 3)), ("grows_1", (2, 2, 2), (7, None, 9)), ("grows_2", (1, 1, 1), (7, 5, None)),
            ("grows_01", (2, 2, 2), (None, None, 3)), ("grows_all", (1, 1, 1), (None, None, None)),
        ]:
            file.create_dataset(f"plain/{name}", data=cube, chunks=chunks, maxshape=most)
            file.create_dataset(f"packed/{name}", data=cube, chunks=chunks, maxshape=most, **packed)
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_chunk((2, 3, 2))
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        for name, most in [("implicit", None), ("implicit_may_grow", (8, 9, 10))]:
            space = h5py.h5s.create_simple(cube.shape, most)
            made = h5py.h5d.create(file.id, f"plain/{name}".encode(), h5py.h5t.STD_I16LE, space, early)
            made.write(h5py.h5s.ALL, h5py.h5s.ALL, cube)
        for name, most in [("part_grows", (None, 9)), ("part_tree", (None, None)), ("part_fixed", (90, 9))]:
            part = file.create_dataset(name, shape=(80, 7), dtype=">i4", chunks=(3, 4), maxshape=most, fillvalue=-5, compression="gzip")
            part[40:44, 2:5] = 7
        grown = file.create_dataset("grown", data=cube, chunks=(3, 2, 2), maxshape=(None, None, 3))
        grown.resize((9, 3, 3))
        for name, most in [("fixed", (9, 9)), ("growing", (None, 9)), ("tree", (None, None))]:
            never = file.create_dataset(f"never/{name}", shape=(3, 3), dtype="<i4", chunks=(2, 2), maxshape=most, fillvalue=4, compression="gzip")
            never[0, 0] = 1
            never.resize((2, 2))
            never.resize((0, 0))
            never.resize((3, 5))  # an index, but no chunk
            never = file.create_dataset(f"nothing/{name}", shape=(3, 3), dtype="<i4", chunks=(2, 2), maxshape=most, shuffle=True)
            never[0:0, 0:0] = 1
        lzf = np.repeat(rng.integers(0, 50, 40), rng.integers(1, 400, 40)).astype(np.int32)
        file.create_dataset("lzf", data=lzf, chunks=(1000,), compression="lzf", shuffle=True)
        file.create_dataset("lzf_noise", data=rng.integers(0, 256, 300).astype(np.uint8), chunks=(100,), compression="lzf")
        file["complex"] = (rng.normal(size=(2, 3)) + 1j).astype(np.complex64)
        file["bf16"] = rng.normal(size=5).astype(ml_dtypes.bfloat16)


def floats(path, rng):
    """Floats that h5py has no dtype for, by HDF5's own description."""
    with h5py.File(path, "w") as file:
        bits = rng.integers(0, 256, 12).astype(np.uint8)
        for name, size, exponent, mantissa, bias in [("e4m3", 1, (3, 4), 3, 7), ("e5m2", 1, (2, 5), 2, 15), ("bf16", 2, (7, 8), 7, 127)]:
            kind = h5py.h5t.IEEE_F16LE.copy()
            kind.set_fields(8 * size - 1, *exponent, 0, mantissa)
            kind.set_ebias(bias)
            kind.set_precision(8 * size)
            kind.set_size(size)
            made = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple((12 // size,)))
            made.write(h5py.h5s.ALL, h5py.h5s.ALL, bits.view(f"u{size}"), mtype=kind)
            file[f"{name}_bits"] = bits.view(f"u{size}")


def sparse(path):
    """An array of chunks so long that its blocks come in pages, nearly all of them never written."""
    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_dataset("grows", shape=(280_000,), dtype="u1", chunks=(1,), maxshape=(None,), fillvalue=9)
        for place in [0, 3, 4, 19, 20, 500, 70_000, 131_075, 131_076, 200_000, 262_147, 262_148, 279_999]:
            data[place] = place % 251


def refused(folder):
    """Elements that are elsewhere or packed by what nothing here undoes."""
    with h5py.File(folder / "outside.h5", "w") as file:
        file.create_dataset("layer/kernel", shape=(4,), dtype="f4", external=[("/etc/hostname", 0, 16)])
    with h5py.File(folder / "scale_offset.h5", "w") as file:
        file.create_dataset("layer/kernel", data=np.arange(8), chunks=(4,), scaleoffset=0)
    with h5py.File(folder / "virtual.h5", "w", libver="latest") as file:
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "w", (4,))
        file.create_virtual_dataset("layer/kernel", layout)


def seeds(folder):
    """A file for each kind of group and index, and archives."""
    data = np.arange(12, dtype=np.float32).reshape(3, 4)
    for name, options in {
        "grows": {"maxshape": (None, 4)}, "grows_packed": {"maxshape": (3, None), "compression": "gzip"}, "tree": {"maxshape": (None, None)},
        "tree_packed": {"maxshape": (None, None), "shuffle": True, "fletcher32": True}, "may_grow": {"maxshape": (9, 9)}, "lzf": {"compression": "lzf"},
    }.items():
        with h5py.File(folder / f"latest_{name}.h5", "w", libver="latest") as file:
            file.create_dataset("a", data=data, chunks=(2, 3), **options)
    with h5py.File(folder / "latest_super.h5", "w", libver="latest") as file:
        file.create_dataset("a", shape=(500,), dtype="u1", chunks=(1,), maxshape=(None,))[400] = 1
    with h5py.File(folder / "latest_links.h5", "w", libver="latest") as file:
        file["a"] = np.int8(1)
        for i in range(60):
            file[f"{i}"] = h5py.SoftLink("a")
        file["l" * 4200] = h5py.SoftLink("a")
        for i in range(12):
            file["a"].attrs[f"{i}"] = i
    with h5py.File(folder / "earliest_names.h5", "w", libver="earliest") as file:
        for i in range(80):
            file[f"{i:02}" + "n" * (300 if i == 7 else 100)] = h5py.SoftLink("a")
    with h5py.File(folder / "opaque.h5", "w") as file:
        file["layer/w"] = data[0].astype(ml_dtypes.bfloat16)
        file["layer/w"].attrs["dtype"] = "bfloat16"
        file["complex"] = data[0].astype(np.complex64)
        file.attrs["layer_names"] = ["layer"]
        file["layer"].attrs["weight_names"] = ["w", "missing"]
    weights = (folder / "opaque.h5").read_bytes()
    for name, method in {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}.items():
        with zipfile.ZipFile(folder / f"{name}.keras", "w", method) as archive:
            archive.writestr(zipfile.ZipInfo("config.json"), "{}")
            archive.writestr(zipfile.ZipInfo("model.weights.h5"), weights, method)


def expect_keras(path):
    """Tensors, and in the metadata the order in which Keras sets them, by `layer_names` and `weight_names`."""
    file = path if path.suffix == ".h5" else io.BytesIO(zipfile.ZipFile(path).read("model.weights.h5"))

    def listed(group, name):
        if name in group.attrs:
            return group.attrs[name]
        parts = [group.attrs[f"{name}{i}"] for i in range(100) if f"{name}{i}" in group.attrs]
        return np.concatenate(parts) if parts else []

    order = []
    with h5py.File(file) as weights:
        root = weights.get("model_weights", weights)
        for layer in [*listed(root, "layer_names"), "top_level_model_weights"]:
            layer = layer.decode() if isinstance(layer, bytes) else layer
            for weight in listed(root[layer], "weight_names") if layer in root else []:
                weight = weight.decode() if isinstance(weight, bytes) else weight
                order.append(root[layer][weight].name[1:])
    out = path.with_name(path.name.replace(".", "_") + ".safetensors")
    save_file(read(file), out, {**metadata(), "order": json.dumps(order, separators=(",", ":"))})
    out.chmod(0o644)


def keras_2(path, libver, layers, rng):
    """As Keras 2 did, with names in arrays of bytes; divided if they are longer than an object's header."""
    with h5py.File(path, "w", libver=libver) as file:
        root = file.create_group("model_weights")
        file.attrs["keras_version"] = "2.15.0"
        names = [f"block{i}_conv" for i in reversed(range(layers))]
        root.attrs["layer_names"] = np.array([name.encode() for name in names])
        for name in names:
            group = root.create_group(name)
            weights = [f"{name}/{kind}:0" for kind in ("kernel", "bias", "alpha")]
            group.attrs["weight_names"] = np.array([weight.encode() for weight in weights])
            for weight in weights:
                group[weight] = rng.normal(size=(2,)).astype(np.float32)
        model = root.create_group("top_level_model_weights")
        long = [f"extra_{i}_" + "x" * 300 for i in range(40)]
        if libver == "latest":  # many attributes go into a heap, long ones there into a place of their own
            for i in range(12):
                model.attrs[f"attribute_{i}"] = i
            model.attrs["weight_names"] = np.array([weight.encode() for weight in long])
        else:
            model.attrs["weight_names0"] = np.array([weight.encode() for weight in long[:25]])
            model.attrs["weight_names1"] = np.array([weight.encode() for weight in long[25:]])
        first = np.float32([1, 2, 3])
        model[long[0]] = first
        for weight in long[1:]:
            model[weight] = model[long[0]]


def keras_3(folder):
    """A model that Keras made, in all of its files."""
    import keras

    keras.utils.set_random_seed(SEED)
    for name, dtype in {"model": "float32", "bf16": "bfloat16"}.items():
        keras.config.set_dtype_policy(dtype)
        layers = [keras.layers.Input((4,)), keras.layers.Dense(3, name="dense"), keras.layers.BatchNormalization(name="norm")]
        model = keras.Sequential(layers[: 3 if name == "model" else 2])
        model.save(folder / f"{name}.keras")
        expect_keras(folder / f"{name}.keras")
        if name == "model":
            model.save(folder / "model.h5")
            expect_keras(folder / "model.h5")


def make(out, corpus=None):
    folder = Path(out) / "convert"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    dense_groups(folder / "dense.h5")
    expect(folder / "dense.h5")
    indexes(folder / "indexes.h5", rng)
    expect(folder / "indexes.h5")
    floats(folder / "floats.h5", rng)
    sparse(folder / "sparse.h5")
    with zipfile.ZipFile(folder / "deep.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", deep_heap())
    for name, libver, layers in [("keras_2.h5", "earliest", 3), ("keras_2_latest.h5", "latest", 12)]:
        keras_2(folder / name, libver, layers, rng)
        expect_keras(folder / name)
    keras_3(folder)
    refused(folder)
    if corpus:
        seeds(Path(corpus) / "h5")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="testdata/golden")
    parser.add_argument("--corpus")
    chosen = parser.parse_args()
    make(chosen.out, chosen.corpus)
