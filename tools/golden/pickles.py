"""PyTorch's and numpy's files for the readers of `convert`: `testdata/golden/pickle/CASE.EXT` with the expected tensors in `CASE.safetensors`.

    python tools/golden/pickles.py --out testdata/golden/pickle

Every case is small. What torch wrote stays as torch wrote it; cases that no torch writes any more (compressed members,
big-endian numbers) are made from one that it did. Metadata: script and versions.
"""

import argparse
import collections
import io
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy
import safetensors.torch
import torch

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
NEW = [torch.uint16, torch.uint32, torch.uint64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
       torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu]


def numbers(count, dtype, shape):
    """0, 1, 2, … in bytes that differ."""
    raw = torch.arange(count * dtype.itemsize, dtype=torch.int64).mul(37).add(11).remainder(251).to(torch.uint8)
    if dtype.is_floating_point and dtype.itemsize > 1:
        return torch.arange(count, dtype=torch.float64).mul(0.37).sub(1).to(dtype).reshape(shape)
    if dtype == torch.bool:
        return (raw % 2 == 1).reshape(shape)
    return raw.view(dtype).reshape(shape)


def by_dtype(dtypes):
    tensors = {str(dtype).removeprefix("torch."): numbers(6, dtype, (2, 3)) for dtype in dtypes}
    return tensors | {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3)}


def views():
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    return {"base": base, "transposed": base.permute(2, 0, 1), "sliced": base[1:, ::2, 1:4], "row": base[2],
            "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 3), "strided": torch.arange(9)[1::3],
            "turned": torch.arange(6, dtype=torch.float16).reshape(2, 3).t(), "none": base[:, 4:4]}


def signs():
    """Views whose numbers torch stores as they were before conjugation or negation."""
    base = torch.complex(numbers(6, torch.float32, (2, 3)), torch.arange(6.0).reshape(2, 3))
    reals = {str(dtype).removeprefix("torch."): torch._neg_view(numbers(4, dtype, (4,))) for dtype in FLOATS}
    return {"base": base, "conj": base.conj(), "turned": base.conj().t(), "part": base.conj()[1],
            "imag": base.clone().conj().imag, "both": torch._neg_view(base.conj()), "neg": torch._neg_view(base)} | reals


def keys():
    """Keys of dicts that are no texts, and some that look like others: what they are called."""
    named = {"1": 1, "1~2": "1", "(0, 'a')": (0, "a"), "(0, 'a')~2": "(0, 'a')", "b'x'": b"x", "None": None, "1.5": 1.5,
             "('a',)": ("a",), "(1, (2, b'y'))": (1, (2, b"y")), "False": False, "a.b": "a.b", "a.b~2": "a"}
    tensors = {name: torch.tensor(float(idx)) for idx, name in enumerate(named)}
    values = {key: tensors[name] for name, key in named.items()}
    values["a"] = {"b": values["a"]}
    return {"state": values}, {f"state.{name}": tensor for name, tensor in tensors.items()}


def lightning():
    """What Lightning writes: the state dict among counters, callbacks by class, and the optimizer's state."""
    package = "pytorch_lightning.callbacks.model_checkpoint"
    for depth in range(1, 4):
        name = ".".join(package.split(".")[:depth])
        sys.modules.setdefault(name, types.ModuleType(name))
    callback = type("ModelCheckpoint", (), {"__module__": package})
    sys.modules[package].ModelCheckpoint = callback
    layer = torch.nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(6.0).reshape(2, 3))
        layer.bias.copy_(torch.tensor([0.5, -0.5]))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = collections.OrderedDict(("model." + key, value) for key, value in layer.state_dict().items())
    checkpoint = {"epoch": 3, "global_step": 1000, "pytorch-lightning_version": "1.4.2", "state_dict": state,
                  "callbacks": {callback: {"monitor": "val", "best_model_score": numpy.float64(0.25), "path": None}},
                  "optimizer_states": [optimizer.state_dict()], "lr_schedulers": [{"last_epoch": 3}]}
    expected = dict(state)
    for idx, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            expected[f"optimizer_states.0.state.{idx}.{key}"] = value
    return checkpoint, expected


def module():
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3), torch.nn.ReLU(), torch.nn.Linear(3, 2, bias=False))
    return net, net.state_dict()


def save(value, legacy=False, protocol=2):
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return out.getvalue()


def with_source(value):
    """A file from before 1.6 that names the classes of modules together with their source, which is the same on all machines."""
    original = torch.serialization.get_source_lines_and_file
    torch.serialization.get_source_lines_and_file = lambda cls: ([f"class {cls.__name__}:\n"], 0, "module.py")
    try:
        return save(value, legacy=True)
    finally:
        torch.serialization.get_source_lines_and_file = original


def plain():
    """Tensors for `pickle.dump`: each storage becomes a file of its own; two tensors share one."""
    grid = numbers(12, torch.float32, (3, 4))
    return collections.OrderedDict(
        grid=grid, turned=grid.t(), part=grid[1:, ::2], half=numbers(5, torch.bfloat16, (5,)),
        whole=torch.nn.Parameter(torch.arange(3.0)), count=torch.tensor(7))


def rezip(data, method, change=lambda name, content: content):
    """The same members, packed again by Python."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = method
            new.writestr(entry, change(name, old.read(name)))
    return out.getvalue()


def swapped(name, content):
    """Every storage holds 32-bit numbers in the case that this is used for."""
    if "/data/" in name:
        return numpy.frombuffer(content, "<f4").astype(">f4").tobytes()
    return b"big" if name.endswith("byteorder") else content


def arrays():
    grid = numpy.arange(12, dtype="<f4").reshape(3, 4)
    return {"grid": grid, "fortran": numpy.asfortranarray(grid), "big": grid.astype(">f4"), "halves": grid.astype("<f2"),
            "bytes": numpy.arange(200, 206, dtype="u1"), "list": [numpy.float64(1.0), numpy.arange(3)]}


def expected_arrays():
    tensors = {name: torch.from_numpy(numpy.ascontiguousarray(value).astype(value.dtype.newbyteorder("=")))
               for name, value in arrays().items() if name != "list"}
    return tensors | {"list.1": torch.arange(3)}


def cases():
    floats = {"a": numbers(6, torch.float32, (2, 3)), "b": torch.arange(5.0)}
    tied = torch.arange(4.0)
    shared = {"first": tied, "second": tied, "third": torch.nn.Parameter(tied)}
    alike = {"first": tied, "second": tied, "third": tied}
    net, net_state = module()
    checkpoint, checkpoint_tensors = lightning()
    yield "dtypes.pt", save(by_dtype(FLOATS + INTEGERS + NEW)), by_dtype(FLOATS + INTEGERS + NEW)
    yield "dtypes_legacy.pt", save(by_dtype(FLOATS + INTEGERS), legacy=True), by_dtype(FLOATS + INTEGERS)
    yield "views.pt", save(views()), views()
    yield "views_legacy.pth", save(views(), legacy=True), views()
    turned = {key: value.resolve_conj().resolve_neg() for key, value in signs().items()}
    yield "signs.pt", save(signs()), turned
    yield "signs_legacy.pt", save(signs(), legacy=True), turned
    yield "signs_compressed.pt", rezip(save(signs()), zipfile.ZIP_DEFLATED), turned
    yield "keys.pt", save(keys()[0]), keys()[1]
    yield "shared.bin", save(shared), alike
    yield "lightning.ckpt", save(checkpoint), checkpoint_tensors
    yield "lightning_legacy.ckpt", save(checkpoint, legacy=True), checkpoint_tensors
    yield "module.pt", save(net), net_state
    yield "one_tensor.pt", save(tied), {"tensor": tied}
    yield "compressed.pt", rezip(save(views()), zipfile.ZIP_DEFLATED), views()
    yield "big_endian.pt", rezip(save(floats), zipfile.ZIP_STORED, swapped), floats
    torch.serialization.set_crc32_options(False)
    yield "no_crc.pt", save(floats), floats
    torch.serialization.set_crc32_options(True)
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(net), script)
    yield "script.pt", script.getvalue(), net_state
    for protocol in (2, 3, 4, 5):
        yield f"numpy_{protocol}.pkl", pickle.dumps(arrays(), protocol), expected_arrays()
    for protocol in (1, 3, 4, 5):
        yield f"legacy_{protocol}.pt", save(views(), True, protocol), views()
    yield "module_legacy.pt", with_source(net), net_state
    for protocol in (0, 2, 4):
        yield f"plain_{protocol}.pkl", pickle.dumps(plain(), protocol), plain()
    yield "plain_tensor.pkl", pickle.dumps(tied), {"tensor": tied}


def refused():
    """Whole numbers whose sign is still to be turned: there is nothing expected of them."""
    yield "refused_neg.pt", save({"lazy": torch._neg_view(torch.arange(3))})


def expanded():
    """Small files whose views repeat one number very often: 4 MiB and 2 GiB."""
    one = torch.ones(1)
    yield "expanded.pt", save({"small": torch.ones(2), "middle": one.expand(1 << 20), "wide": one.expand(1 << 29)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="testdata/golden/pickle")
    out = Path(parser.parse_args().out)
    out.mkdir(parents=True, exist_ok=True)
    versions = f"torch {torch.__version__}, numpy {numpy.__version__}, safetensors {safetensors.__version__}"
    for name, data, tensors in cases():
        (out / name).write_bytes(data)
        tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
        safetensors.torch.save_file(tensors, out / (Path(name).stem + ".safetensors"), {"made_with": versions})
        print(name, len(data))
    for name, data in [*refused(), *expanded()]:
        (out / name).write_bytes(data)
        print(name, len(data))
