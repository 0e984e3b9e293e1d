"""The full-size SD 1.5 layout under the weight rule: its layout file, and what torch makes of it.

    python tools/golden/big_sd15.py --out testdata/golden            # layouts/sd15.json and big/*.safetensors

Weights are the rule's, rounded to f16 as in the files people have. `cargo run --release -p safelight-diffusion --example
big_sd15 -- PATH` writes the same model as a single file (2.1 GB). Takes minutes and about 6 GB of memory, so
`make_all.py` leaves it out; the Rust test that reads the result runs with SLOW_TESTS=1.
"""

import argparse
from pathlib import Path

import torch

import models
import weights
from common import clip_tokenizer, noise, prompt_ids, save

SEED = 15
PARTS = {
    "text": lambda: models.text(768, 12),
    "unet": lambda: models.unet((320, 640, 1280, 1280), layers=2, context=768),
    "vae": lambda: models.vae((128, 256, 512, 512), layers=2),
}


def layout():
    with torch.device("meta"):
        return {"metadata": {}, "tensors": weights.layout(*(make() for make in PARTS.values()))}


def half(part):
    model = weights.fill(PARTS[part](), SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    return model


def make(out):
    folder = Path(out) / "layouts"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sd15.json").write_text(models.one_a_line(layout()))
    common = dict(layout="sd15", seed=SEED, dtype="F16")
    with torch.no_grad():
        ids = prompt_ids(clip_tokenizer(), "a house with a red roof on green hills under a sunny sky")
        context = half("text")(ids).last_hidden_state
        save(out, "big/text", {"in.ids": ids, "out.context": context}, "big_sd15.py", 1e-4, values_max=6000, **common)
        x = noise(1, 1, 4, 64, 64)
        y = half("unet")(x, torch.tensor([801]), context).sample
        save(out, "big/unet", {"in.x": x[..., :1], "out.y": y}, "big_sd15.py", 1e-4, values_max=6000, t="801", noise_seed=1, **common)
        vae = half("vae")
        latent = noise(2, 1, 4, 32, 40) / 0.18215
        save(out, "big/vae", {"out.image": vae.decode(latent).sample}, "big_sd15.py", 1e-4, values_max=6000, noise_seed=2, **common)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="testdata/golden")
    make(parser.parse_args().out)
