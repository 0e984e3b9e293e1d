"""Writing case files: sampling of large outputs, metadata, the tokenizer."""

import gzip
import importlib.metadata
import importlib.util
import json
import math
from pathlib import Path

import torch

PACKAGES = ("torch", "diffusers", "transformers", "k-diffusion")
# Most values of one output a file keeps; of larger ones a strided sample and sums.
VALUES_MAX = 12000
# Largest change of latents by weights moved a relative 1e-6 that a case may have.
SENSITIVITY_MAX = 1.3e-4


def noise(seed, *shape):
    """Inputs of a case: torch's own normal noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stride_for(count, values_max):
    """The least stride that keeps the sample small and shares no factor with ordinary widths."""
    stride = -(-count // values_max)
    while math.gcd(stride, 2 * 3 * 5 * 7) > 1:
        stride += 1
    return stride


DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}


def write(path, tensors, metadata):
    """A safetensors file with the same bytes every time; the package's own writer shuffles the metadata."""
    header, data = {"__metadata__": dict(sorted(metadata.items()))}, b""
    # Widest elements first keeps every tensor aligned.
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        raw = tensors[name].contiguous().numpy().tobytes()
        header[name] = {"dtype": DTYPES[tensors[name].dtype], "shape": list(tensors[name].shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def save(out, case, tensors, script, tolerance, values_max=VALUES_MAX, file_max=200_000, **metadata):
    """Writes `<out>/<case>.safetensors`; names start with `in.` or `out.`; only outputs are ever sampled."""
    kept = {}
    meta = {"script": f"tools/golden/{script}", "tolerance": str(tolerance),
            "versions": json.dumps({name: importlib.metadata.version(name) for name in PACKAGES})}
    for name, value in tensors.items():
        value = value.detach().contiguous()
        assert name.startswith(("in.", "out.")), name
        if value.dtype == torch.float32:
            assert torch.isfinite(value).all(), (case, name)
        if name.startswith("out.") and value.dtype == torch.float32 and value.numel() > values_max:
            stride = stride_for(value.numel(), values_max)
            flat = value.flatten()
            short = name.removeprefix("out.")
            meta |= {f"{short}.stride": str(stride), f"{short}.count": str(flat.numel()),
                     f"{short}.sum": repr(flat.double().sum().item()),
                     f"{short}.sum_abs": repr(flat.double().abs().sum().item())}
            value = flat[::stride].contiguous()
        kept[name] = value.clone()
    meta |= {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    path = Path(out) / f"{case}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, kept, meta)
    size = path.stat().st_size
    assert size <= file_max, f"{path}: {size} bytes"
    spreads = " ".join(f"{name[4:]}:{value.float().std().item():.3g}" for name, value in kept.items()
                       if name.startswith("out.") and value.numel() > 1 and value.dtype == torch.float32)
    print(f"{case}  {size} bytes  {spreads[:160]}", flush=True)


def sensitivity(parts, run, latents):
    """Relative change of the final latents when every weight of `parts` moves by a relative 1e-6, the worst of four.

    A random net can stand on an edge (a norm group of two nearly equal values); a case there would test luck.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for _ in range(4):
        kept = [{name: value.clone() for name, value in model.state_dict().items()} for model in parts.values()]
        with torch.no_grad():
            for model in parts.values():
                for parameter in model.parameters():
                    parameter.mul_(1 + 1e-6 * torch.randn(parameter.shape, generator=generator))
            worst = max(worst, ((run() - latents).norm() / latents.norm()).item())
        for model, state in zip(parts.values(), kept):
            model.load_state_dict(state)
    assert worst < SENSITIVITY_MAX, f"moved by {worst:.1e}: take another image_seed"
    return f"{worst:.1e}"


def clip_tokenizer():
    """CLIP's real tokenizer, from the vocabulary that OpenAI's `clip` package ships."""
    from transformers import CLIPTokenizer
    # Found, not imported: the package itself needs more than its data does.
    folder = Path(importlib.util.find_spec("clip").origin).parent
    lines = gzip.open(folder / "bpe_simple_vocab_16e6.txt.gz").read().decode().split("\n")
    merges = lines[1:49152 - 256 - 2 + 1]
    # GPT-2's printable stand-ins for the 256 bytes: printable Latin-1 first, then the rest from U+0100 on.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    units = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = units + [unit + "</w>" for unit in units] + ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    assert len(words) == 49408
    return CLIPTokenizer(vocab={word: idx for idx, word in enumerate(words)},
                         merges=[tuple(merge.split()) for merge in merges], model_max_length=77)


def prompt_ids(tokenizer, text):
    """`[1, 77]` ids as diffusers' pipelines make them."""
    return tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
