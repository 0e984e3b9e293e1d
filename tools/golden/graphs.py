"""ONNX and HDF5 files and what onnx and h5py read from them; and the seeds of the fuzz targets onnx and h5.

    python tools/golden/graphs.py --out testdata/golden --corpus fuzz/corpus

`convert/NAME.onnx` and `convert/NAME.h5` lie beside `NAME_onnx.safetensors` and `NAME_h5.safetensors`, which hold the numbers expected.
"""

import argparse
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

SEED = 20261124


def metadata():
    versions = f"onnx {onnx.__version__}, h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}, numpy {np.__version__}, ml_dtypes {ml_dtypes.__version__}"
    return {"script": "tools/golden/graphs.py", "versions": versions, "seed": str(SEED)}


def native(array):
    """As safetensors' numpy writer takes it: same bits, a plain dtype."""
    array = np.asarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        return array.view(np.uint16)
    if array.dtype in (ml_dtypes.int2, ml_dtypes.int4, ml_dtypes.uint2, ml_dtypes.uint4):
        return array.astype(np.int8 if array.dtype in (ml_dtypes.int2, ml_dtypes.int4) else np.uint8)
    if array.dtype.itemsize == 1 and array.dtype.kind not in "biu":
        return array.view(np.uint8)
    # np.ascontiguousarray would make a vector of a scalar
    return array.astype(array.dtype.newbyteorder("="), order="C")


def initialisers(rng):
    numbers = rng.normal(size=(3, 5))
    whole = rng.integers(0, 100, (3, 5))
    typed = {
        "FLOAT": numbers, "DOUBLE": numbers, "INT8": -whole, "INT16": -300 * whole, "INT32": -70000 * whole, "INT64": -(whole << 40),
        "UINT8": whole + 150, "UINT16": 600 * whole, "UINT32": 40000000 * whole, "UINT64": whole << 50, "BOOL": whole > 50,
        "FLOAT16": numbers, "BFLOAT16": numbers, "FLOAT8E4M3FN": numbers, "FLOAT8E4M3FNUZ": numbers, "FLOAT8E5M2": numbers,
        "FLOAT8E5M2FNUZ": numbers, "INT4": whole % 16 - 8, "UINT4": whole % 16, "COMPLEX64": numbers + 1j * whole,
        "FLOAT8E8M0": 2.0 ** (whole - 50), "INT2": whole % 4 - 2, "UINT2": whole % 4,
    }
    for name, values in typed.items():
        kind = getattr(TensorProto, name)
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        values = np.asarray(values).astype(dtype)
        yield numpy_helper.from_array(values, f"raw.{name}")
        yield helper.make_tensor(f"typed.{name}", kind, values.shape, values.flatten().tolist())
    yield numpy_helper.from_array(np.float32(1.5), "scalar")
    yield numpy_helper.from_array(np.zeros((0, 3), np.float32), "empty")
    yield helper.make_tensor("words", TensorProto.STRING, [2], [b"left", b"out"])


def sparse_tensors():
    """One with positions among all elements, one with a position in each dimension."""
    values = np.float32([1.5, -2, 3])
    for name, places in {"sparse.linear": np.int64([1, 4, 11]), "sparse.coordinates": np.int64([[0, 1], [1, 0], [2, 3]])}.items():
        yield helper.make_sparse_tensor(numpy_helper.from_array(values, name), numpy_helper.from_array(places, ""), [3, 4])


def dense(sparse):
    values, places = (numpy_helper.to_array(part) for part in [sparse.values, sparse.indices])
    made = np.zeros(list(sparse.dims), values.dtype)
    made.flat[places if places.ndim == 1 else np.ravel_multi_index(places.T, made.shape)] = values
    return made


def onnx_model(tensors, rng):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    branches = {}
    for branch in ["then_branch", "else_branch"]:
        inner = numpy_helper.from_array(rng.normal(size=(2,)).astype(np.float32), "inner")
        node = helper.make_node("Identity", ["inner"], [f"{branch}.y"])
        branches[branch] = helper.make_graph([node], branch, [], [helper.make_tensor_value_info(f"{branch}.y", TensorProto.FLOAT, [2])], [inner])
    choice = helper.make_node("If", ["raw.BOOL"], ["z"], name="choice", **branches)
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32([1])))
    graph = helper.make_graph([constant, choice], "net", [x], [x], tensors, doc_string="a graph", sparse_initializer=sparse_tensors())
    model = helper.make_model(graph, producer_name="golden", doc_string="a model")
    model.metadata_props.add(key="author", value="nobody")
    return model


def onnx_files(out, rng):
    model = onnx_model(list(initialisers(rng)), rng)
    onnx.save(model, out / "graph.onnx")
    read = onnx.load(out / "graph.onnx")
    expected = {t.name: native(numpy_helper.to_array(t)) for t in read.graph.initializer if t.data_type != TensorProto.STRING}
    expected |= {t.values.name: dense(t) for t in read.graph.sparse_initializer}
    for attribute in read.graph.node[1].attribute:
        for tensor in attribute.g.initializer:
            expected[f"choice/{attribute.name}/{tensor.name}"] = native(numpy_helper.to_array(tensor))
    save_file({k: np.ascontiguousarray(v).reshape(v.shape) for k, v in expected.items()}, out / "graph_onnx.safetensors", metadata())
    weights = {"a": rng.normal(size=(4, 3)).astype(np.float32), "b": rng.normal(size=(7,)).astype(np.float16)}
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([], "net", [x], [x], [numpy_helper.from_array(v, k) for k, v in weights.items()])
    onnx.save(helper.make_model(graph), out / "external.onnx", save_as_external_data=True, location="external.data", size_threshold=0)
    read = onnx.load(out / "external.onnx")
    save_file({t.name: native(numpy_helper.to_array(t)) for t in read.graph.initializer}, out / "external_onnx.safetensors", metadata())


def onnx_seeds(out):
    rng = np.random.default_rng(7)
    for tensor in initialisers(rng):
        if tensor.name.split(".")[-1] in ["FLOAT", "INT8", "INT64", "FLOAT16", "INT4", "COMPLEX64", "words", "scalar", "UINT64", "DOUBLE", "INT2"]:
            x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
            graph = helper.make_graph([], "net", [x], [x], [tensor])
            (out / f"{tensor.name}.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    (out / "branches.onnx").write_bytes(onnx_model([], rng).SerializeToString())


def h5_tree(file, rng, many=12):
    """Groups as Keras makes them, every plain dtype, every way to store elements."""
    layer = file.create_group("model_weights/dense/dense")
    layer.create_dataset("kernel:0", data=rng.normal(size=(3, 4)).astype(np.float32))
    layer.create_dataset("bias:0", data=rng.normal(size=(4,)).astype(np.float32))
    layer.attrs["weight_names"] = [b"dense/kernel:0", b"dense/bias:0"]
    for i in range(many):
        file.create_dataset(f"many/{i}", data=np.full((2,), i, np.int16))
    numbers = rng.integers(0, 256, (3, 4, 8), dtype=np.uint8)
    for dtype in ["<f2", "<f4", "<f8", ">f2", ">f4", ">f8", "i1", "<i2", ">i2", "<i4", ">i4", "<i8", ">i8", "u1", ">u2", "<u4", ">u8", "?"]:
        dtype = np.dtype(dtype)
        values = rng.normal(size=(3, 4)).astype(dtype) if dtype.kind == "f" else numbers[..., :dtype.itemsize].copy().view(dtype)[..., 0]
        values = numbers[..., 0] > 99 if dtype.kind == "b" else values
        file.create_dataset("types/" + dtype.str.replace("<", "le_").replace(">", "be_").replace("|", ""), data=values)
    cube = rng.normal(size=(7, 5, 9)).astype(np.float32)
    for name, options in {
        "plain": {}, "chunks": {"chunks": (3, 2, 4)}, "deflate": {"chunks": (3, 5, 4), "compression": "gzip"},
        "shuffle": {"chunks": (2, 5, 9), "compression": "gzip", "shuffle": True},
        "fletcher": {"chunks": (4, 4, 4), "compression": "gzip", "shuffle": True, "fletcher32": True},
        "one": {"chunks": (7, 5, 9)}, "one_deflate": {"chunks": (7, 5, 9), "compression": "gzip"}, "rows": {"chunks": (1, 1, 9)},
    }.items():
        file.create_dataset(f"cube/{name}", data=cube, **options)
    file.create_dataset("cube/big_endian", data=cube.astype(">f4"), chunks=(3, 3, 3), compression="gzip")
    part = file.create_dataset("cube/part", shape=(10, 4), dtype="f4", chunks=(3, 3), fillvalue=1.5, compression="gzip")
    part[4:6, 0:2] = 7
    file.create_dataset("cube/never", shape=(3, 3), dtype="<i2", fillvalue=-3)
    compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    compact.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((4,))
    made = h5py.h5d.create(file.id, b"compact", h5py.h5t.IEEE_F32LE, space, compact)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(4, dtype=np.float32))
    file.create_dataset("scalar", data=np.float64(2.5))
    file.create_dataset("empty", shape=(0, 3), dtype="f4")


def left_out(file):
    """What has no place in safetensors."""
    file["words"] = ["left", "out"]
    file["null"] = h5py.Empty("f4")
    file["compound"] = np.zeros(2, dtype=[("a", "<f4"), ("b", "<i2")])
    file["soft"] = h5py.SoftLink("/scalar")
    file.create_group("outside")["external"] = h5py.ExternalLink("other.h5", "/x")
    file["loop"] = file["/"]
    file["again"] = file["scalar"]
    file["named"] = np.dtype("<f4")
    file.create_dataset("committed", data=np.float32([1, 2]), dtype=file["named"])
    file.create_dataset("colour", data=np.int8([0, 1, 5]), dtype=h5py.enum_dtype({"RED": 0, "GREEN": 1, "BLUE": 5}, basetype="i1"))


def h5_read(path):
    expected = {}
    with h5py.File(path) as file:
        def visit(name, item):
            if isinstance(item, h5py.Dataset) and item.shape is not None and item.dtype.kind in "fiub":
                expected[name] = native(item[()])

        file.visititems(visit)
        if "again" in file:  # visititems shows an object once
            expected["again"] = expected["scalar"] = native(file["scalar"][()])
    return expected


def h5_files(out, rng):
    path = out / "early.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        h5_tree(file, rng, 30)
        left_out(file)
    save_file(h5_read(path), out / "early_h5.safetensors", metadata())
    path = out / "late.h5"
    with h5py.File(path, "w", libver="latest") as file:
        cube = rng.normal(size=(7, 5, 9)).astype(np.float32)
        file["plain"] = cube
        file["scalar"] = np.float16(1)
        file.create_dataset("inner/deep/chunks", data=cube, chunks=(3, 2, 4), compression="gzip", shuffle=True, fletcher32=True)
        file.create_dataset("inner/many", data=np.arange(3000, dtype=">i2"), chunks=(2,))  # more than fit into a page
        file.create_dataset("inner/one", data=cube, chunks=(7, 5, 9), compression="gzip")
    save_file(h5_read(path), out / "late_h5.safetensors", metadata())
    path = out / "userblock.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["a"] = np.float32([1, 2, 3])
    save_file(h5_read(path), out / "userblock_h5.safetensors", metadata())


def h5_seeds(out):
    data = np.arange(12, dtype=np.float32).reshape(3, 4)
    for libver in ["earliest", "latest"]:
        for name, options in {
            "plain": {}, "chunks": {"chunks": (2, 3)}, "deflate": {"chunks": (2, 3), "compression": "gzip", "shuffle": True, "fletcher32": True},
            "never": {"chunks": (2, 3), "fillvalue": 2.0}, "one": {"chunks": (3, 4)},
        }.items():
            with h5py.File(out / f"{libver}_{name}.h5", "w", libver=libver) as file:
                values = {} if name == "never" else {"data": data}
                file.create_group("g").create_dataset("a", shape=(3, 4), dtype="f4", **values, **options)
                if name == "plain":
                    file["b"] = np.array([True, False])
                    file["s"] = h5py.SoftLink("/b")
                    file["h"] = file["g"]


def make(out, corpus=None):
    folder = Path(out) / "convert"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    onnx_files(folder, rng)
    h5_files(folder, rng)
    if corpus:
        for name, seeds in {"onnx": onnx_seeds, "h5": h5_seeds}.items():
            (Path(corpus) / name).mkdir(parents=True, exist_ok=True)
            seeds(Path(corpus) / name)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="testdata/golden")
    parser.add_argument("--corpus")
    chosen = parser.parse_args()
    make(chosen.out, chosen.corpus)
