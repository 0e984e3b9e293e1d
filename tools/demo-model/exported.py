"""Reads an exported file back: for `evaluate.py`, and, run as a command, to make a state folder that training continues from.

`safelight models --export-demo FILE` writes the shipped file; so any machine can go on where the shipped weights stand.
"""

from __future__ import annotations

import argparse
import json
import struct
import zlib
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load as load_bytes

import model as m
from training import save

TEXT_PREFIX = "cond_stage_model.transformer.text_model."


class Exported:
    """The weights of a `.safetensors` or `.safetensors.zz` file, in f32 and with diffusers' names."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        if path.suffix == ".zz":
            data = zlib.decompress(data)
        (length,) = struct.unpack("<Q", data[:8])
        self.metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        weights = {k: v.float() if v.is_floating_point() else v for k, v in load_bytes(data).items()}
        self.unet = convert_ldm_unet_checkpoint(dict(weights), m.UNET_CONFIG)
        self.vae = convert_ldm_vae_checkpoint(dict(weights), m.VAE_CONFIG)
        self.text = {k.removeprefix(TEXT_PREFIX): v for k, v in weights.items() if k.startswith(TEXT_PREFIX)}
        self.text.pop("embeddings.position_ids")

    def trained_vae(self) -> dict:
        """The autoencoder's weights as `train_vae.py` has them: its latents are the standardised ones, without 0.18215."""
        state = {k: v.clone() for k, v in self.vae.items()}
        kept = m.VAE_CONFIG["latent_channels"]
        for part in ("weight", "bias"):
            state[f"quant_conv.{part}"][:kept] *= m.SCALE_FACTOR
            state[f"quant_conv.{part}"][kept:] = 0
        state["post_quant_conv.weight"] /= m.SCALE_FACTOR
        return state

    def trained_text(self, tokens: m.Tokens) -> dict:
        """The text encoder's weights with the compact table of `train_text.py`."""
        state = {"encoder." + k: v for k, v in self.text.items()}
        table = state["encoder.embeddings.token_embedding.weight"]
        # The unknown word's row is the commonest one.
        rows, counts = table.unique(dim=0, return_counts=True)
        unknown = rows[counts.argmax()]
        state["encoder.embeddings.token_embedding.weight"] = torch.cat([unknown[None], table[tokens.clip_ids[1:]]])
        return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="demo.safetensors or demo.safetensors.zz")
    parser.add_argument("--state", type=Path, default=Path("demo-state"), help="folder to make")
    args = parser.parse_args()
    args.state.mkdir(parents=True)
    exported = Exported(args.file)
    steps = json.loads(exported.metadata["safelight.training"])
    for name, weights, step in (("unet", exported.unet, steps["unet_steps"]), ("vae", exported.trained_vae(), steps["vae_steps"]),
                                ("text", exported.trained_text(m.Tokens()), 0)):
        save(args.state / f"{name}.pt", dict(model=weights, average=weights, optimizer=None, step=step, start=step, seconds=0))


if __name__ == "__main__":
    main()
