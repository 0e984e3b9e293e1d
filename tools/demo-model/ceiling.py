"""Measures the autoencoder alone: decoded exact latents, and whole round trips, of drawn scenes."""

import argparse
import random
from pathlib import Path

import numpy as np
import torch

from judge import judge
from model import autoencoder, latent_of
from scenes import sheet
from training import load
from world import draw, random_scene


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, default=Path("demo-state"))
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--out", default="ceiling.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = autoencoder()
    model.load_state_dict(load(args.state / "vae.pt")["average"])
    rng = random.Random(4242)
    scenes = [random_scene(rng) for _ in range(args.count)]
    drawn = [draw(scene) for scene in scenes]
    pixels = torch.from_numpy(np.stack([d[0] for d in drawn])).permute(0, 3, 1, 2).float() / 127.5 - 1
    exact = torch.from_numpy(np.stack([latent_of(*d) for d in drawn]))
    encoded = model.encode(pixels).latent_dist.mean
    print(f"encoder: mean squared error {((encoded - exact) ** 2).mean():.4f} (latents have variance 1)")
    shown = []
    for name, latents in (("exact latents", exact), ("round trip", encoded)):
        decoded = model.decode(latents).sample.clamp(-1, 1)
        psnr = -10 * torch.log10(((decoded - pixels) / 2).square().mean())
        pictures = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        right = {k: 0 for k in ("sky", "ground", "thing", "colour", "place")}
        for scene, picture in zip(scenes, pictures):
            verdict = judge(picture)
            for k in right:
                right[k] += getattr(verdict, k) == getattr(scene, k)
        print(f"{name}: {psnr:.1f} dB, of {args.count}: " + ", ".join(f"{k} {v}" for k, v in right.items()))
        shown += [p for d, p in zip(drawn[:8], pictures)]
    sheet([d[0] for d in drawn[:8]] + shown, columns=8).save(args.out)


if __name__ == "__main__":
    main()
