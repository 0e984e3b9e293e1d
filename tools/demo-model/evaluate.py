"""Draws the held-out captions with an exported file, judges the pictures and prints a table.

The file is read the way other programs read it, through diffusers' own converters, so this
also checks the export. Writes a sheet and a JSON record beside the state.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel

import model as m
from captions import held_out
from exported import Exported
from judge import judge
from scenes import sheet

README_PROMPT = "a house with a red roof on green hills under a sunny sky"
SCHEDULE = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


class Demo:
    """The exported model, ready to draw."""

    def __init__(self, path: Path) -> None:
        exported = Exported(path)
        self.unet = UNet2DConditionModel(**m.UNET_CONFIG).eval()
        self.unet.load_state_dict(exported.unet)
        self.unet.set_attn_processor(AttnProcessor())
        self.vae = AutoencoderKL(**m.VAE_CONFIG).eval()
        self.vae.load_state_dict(exported.vae)
        config = CLIPTextConfig(**{**m.TEXT_CONFIG, "vocab_size": m.VOCABULARY})
        self.text = CLIPTextModel(config).eval()
        self.text.load_state_dict(exported.text)
        self._bpe = m.clip_bpe()

    def context(self, texts: list[str]) -> torch.Tensor:
        rows = []
        for text in texts:
            ids = [m.BOS, *self._bpe.encode(text)[: m.TOKENS - 2], m.EOS]
            rows.append(ids + [m.EOS] * (m.TOKENS - len(ids)))
        return self.text(torch.tensor(rows)).last_hidden_state

    @torch.no_grad()
    def draw(self, texts: list[str], seed: int, steps: int, cfg: float, sampler: str = "dpm") -> np.ndarray:
        """Byte pictures `[B, 128, 128, 3]`."""
        if sampler == "dpm":
            scheduler = DPMSolverMultistepScheduler(**SCHEDULE, use_karras_sigmas=True)
        else:
            scheduler = EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="linspace")
        scheduler.set_timesteps(steps)
        context = torch.cat([self.context([""] * len(texts)), self.context(texts)])
        x = torch.randn(len(texts), 4, 16, 16, generator=torch.Generator().manual_seed(seed)) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([x, x]), t)
            without, with_text = self.unet(both, t, context).sample.chunk(2)
            x = scheduler.step(without + cfg * (with_text - without), t, x).prev_sample
        pixels = self.vae.decode(x / m.SCALE_FACTOR).sample
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="demo.safetensors or demo.safetensors.zz")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument("--sampler", choices=("dpm", "euler"), default="dpm")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="folder for sheet.png and record.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    entries = held_out()[: args.count]
    demo = Demo(args.model)
    start = time.time()
    readme = demo.draw([README_PROMPT] * 6, args.seed, args.steps, args.cfg, args.sampler)
    pictures = []
    for at in range(0, len(entries), 10):
        texts = [e["caption"] for e in entries[at : at + 10]]
        pictures += list(demo.draw(texts, args.seed + 100 + at, args.steps, args.cfg, args.sampler))
    took = time.time() - start

    right = {k: [] for k in ("sky", "ground", "both", "orb_place", "thing", "colour", "place", "all")}
    record = []
    for entry, picture in zip(entries, pictures):
        verdict = judge(picture)
        hits = {k: getattr(verdict, k) == entry[k] for k in ("sky", "ground", "orb_place", "thing", "colour", "place") if k in entry}
        if "sky" in hits and "ground" in hits:
            hits["both"] = hits["sky"] and hits["ground"]
        hits["all"] = all(hits.values())
        for k, hit in hits.items():
            right[k].append(hit)
        record.append({**entry, "seen": vars(verdict) | {}, "right": hits})
    table = {k: f"{sum(v)}/{len(v)}" for k, v in right.items()}
    print(f"{args.sampler} {args.steps} steps CFG {args.cfg}: " + ", ".join(f"{k} {v}" for k, v in table.items())
          + f"; {took / (len(pictures) + 6):.2f} s/picture")
    seen = [judge(p) for p in readme]
    print("README prompt: " + "; ".join(f"{v.sky} {v.ground} {v.colour} {v.thing} {v.place}" for v in seen))
    args.out.mkdir(parents=True, exist_ok=True)
    sheet(list(readme) + pictures, columns=8).save(args.out / "sheet.png")
    settings = {"sampler": args.sampler, "steps": args.steps, "cfg": args.cfg, "seed": args.seed}
    (args.out / "record.json").write_text(json.dumps({"settings": settings, "right": table, "pictures": record}, indent=1))


if __name__ == "__main__":
    main()
