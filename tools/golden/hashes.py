"""Hashes by which programs know model files: `testdata/golden/hash/hashes.json`.

Each case is a header; the bytes of its tensors follow from `tensor_bytes`, so that no file of a megabyte is stored. Definitions, read
in and retold from
* kohya-ss/sd-scripts at 48d368fa557731ad0488c07304dfeba8c07910eb: `library/train_util.py` (`precalculate_safetensors_hashes`,
  `addnet_hash_legacy`, `addnet_hash_safetensors`) and `library/sai_model_spec.py`: the tensors are serialized anew, with the
  metadata whose keys start with `ss_` and no other; the new hash is of what stands behind that file's header, the old one
  of 64 KiB of that file at 1 MiB;
* AUTOMATIC1111/stable-diffusion-webui: `modules/sd_models.py` (`model_hash`) and `modules/hashes.py`: the same of the file as it is,
  and SHA-256 of all of it, of which ten digits are shown; of the tensors' hash twelve.
"""

import argparse
import hashlib
import importlib.metadata
import json
from pathlib import Path

import numpy
import safetensors
import safetensors.torch
import torch

TRAINED = {"ss_network_dim": "8", "ss_output_name": "Häuser \"rot\"\n", "ss_tag_frequency": json.dumps({"house": 7}),
           "modelspec.title": "Houses", "sshs_model_hash": "00", "user.rating": "5"}
DTYPES = {torch.float16: "F16", torch.float32: "F32", torch.uint8: "U8", torch.int64: "I64"}


def tensor_bytes(seed, count):
    """Byte `i` of a tensor is (i² · 31 + i · 7 + ⌊i / 256⌋ + 131 · seed) mod 256."""
    i = numpy.arange(count, dtype=numpy.uint64)
    return ((i * i * 31 + i * 7 + i // 256 + 131 * seed) % 256).astype(numpy.uint8).tobytes()


def digits(data):
    return hashlib.sha256(data).hexdigest()


def as_kohya(tensors, metadata):
    trained = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    anew = safetensors.torch.save(tensors, trained)
    behind = 8 + int.from_bytes(anew[:8], "little")
    return {"sshs_model_hash": digits(anew[behind:]), "sshs_legacy_hash": digits(anew[0x100000:0x110000])[:8]}


def case(name, tensors, metadata, order, spaces=0):
    """`tensors`: name, dtype, shape. `order`: that of the file."""
    values = {}
    for seed, (tensor, dtype, shape) in enumerate(tensors):
        raw = tensor_bytes(seed, torch.empty(shape, dtype=dtype).nbytes)
        values[tensor] = torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)
    header, data = ({"__metadata__": metadata} if metadata is not None else {}), b""
    for tensor in order:
        raw = values[tensor].numpy().tobytes()
        header[tensor] = {"dtype": DTYPES[values[tensor].dtype], "shape": list(values[tensor].shape),
                          "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    text += " " * (-len(text.encode()) % 8 + spaces)
    file = len(text.encode()).to_bytes(8, "little") + text.encode() + data
    safetensors.deserialize(file)
    hashes = {"sha256": digits(file), "autov1": digits(file[0x100000:0x110000])[:8], "autov2": digits(file)[:10],
              "autov3": digits(data)[:12], "modelspec": f"0x{digits(data)}", **as_kohya(values, metadata or {})}
    return {"case": name, "header": text, "seeds": {tensor: seed for seed, (tensor, _, _) in enumerate(tensors)},
            "hashes": hashes}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("testdata/golden"))
    arguments = parser.parse_args()
    half, single = torch.float16, torch.float32
    lora = [("lora.down", half, [64, 5000]), ("lora.up", half, [5000, 64]), ("alpha", single, []), ("mask", torch.uint8, [3])]
    usual = ["alpha", "lora.down", "lora.up", "mask"]
    cases = [
        case("trained", lora, TRAINED, usual),
        case("no metadata", lora, None, usual),
        case("no training metadata", lora, {"format": "pt"}, usual),
        case("padded", lora, TRAINED, usual, spaces=70000),
        case("another order", lora, TRAINED, ["lora.up", "mask", "alpha", "lora.down"]),
        case("small", [("x", half, [4, 4])], TRAINED, ["x"]),
        case("long metadata", lora, {"ss_tag_frequency": "é" * 600000, "k": "v"}, usual),
        case("ends inside", [("x", half, [530000])], {}, ["x"]),
    ]
    long = cases[6]
    assert long["case"] == "long metadata"
    long["header"] = long["header"].replace("é" * 600000, "REPEATED")
    answer = {"script": "tools/golden/hashes.py", "cases": cases,
              "versions": {name: importlib.metadata.version(name) for name in ("safetensors", "torch", "numpy")}}
    folder = arguments.out / "hash"
    folder.mkdir(parents=True, exist_ok=True)
    lines = json.dumps(answer, indent=1, ensure_ascii=False).replace(" " * 70000, "SPACES")
    (folder / "hashes.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()
