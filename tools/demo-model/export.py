"""Writes the trained networks as one ordinary Stable Diffusion 1.x checkpoint, and compresses it.

The names are those of single-file checkpoints (`model.diffusion_model.*`, `first_stage_model.*`,
`cond_stage_model.transformer.text_model.*`). What such a file cannot say otherwise, the numbers
of normalisation groups, stands in its metadata.
"""

from __future__ import annotations

import argparse
import json
import re
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file

import model as m
from training import load

ASSET = Path(__file__).resolve().parents[2] / "crates" / "catalog" / "assets" / "demo.safetensors.zz"

# Significant bits kept after the first, of F16's ten: what is rounded away compresses away.
UNET_BITS, VAE_BITS, TEXT_BITS = 3, 6, 6
# The way of the noise through the UNet: a rounding error here scales the whole guess.
EXACT = ("input_blocks.0.0.", "out.2.", "skip_connection")

# Words whose rows are copied to words that the captions never use.
SYNONYMS = {
    "mountains": ["mountain", "alps", "hilltops"], "desert": ["sahara", "wasteland"], "dunes": ["dune"],
    "sea": ["lake", "bay", "seaside"], "hills": ["hill", "countryside", "hillside"], "grass": ["lawn", "pasture"],
    "house": ["home", "hut", "building", "cabin", "farmhouse"], "boat": ["yacht", "sailboats", "boats"],
    "meadow": ["field", "meadows", "fields"], "night": ["nighttime", "nights"], "sunset": ["twilight", "sunsets"],
    "sunny": ["sunlit"], "day": ["noon", "afternoon", "morning"], "snowy": ["wintry", "icy"], "purple": ["violet"],
    "sand": ["sands", "beach"], "tree": ["oak", "trees"], "drawing": ["photo", "image", "sketch", "render"],
}


def unet_name(name: str, layers: int) -> str:
    """The checkpoint's name of a diffusers UNet weight."""
    fixed = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
             "time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0", "conv_out": "out.2",
             "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
             "mid_block.resnets.1": "middle_block.2"}
    for old, new in fixed.items():
        if name.startswith(old + "."):
            name = new + name[len(old):]
    if match := re.match(r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(.*)", name):
        block, kind, idx, rest = int(match[1]), match[2], int(match[3]), match[4]
        at = 1 + block * (layers + 1) + (layers if kind == "downsamplers" else idx)
        rest = rest.replace("conv.", "op.", 1) if kind == "downsamplers" else rest
        name = f"input_blocks.{at}.{1 if kind == 'attentions' else 0}.{rest}"
    elif match := re.match(r"up_blocks\.(\d+)\.(resnets|attentions|upsamplers)\.(\d+)\.(.*)", name):
        block, kind, idx, rest = int(match[1]), match[2], int(match[3]), match[4]
        at = block * (layers + 1) + (layers if kind == "upsamplers" else idx)
        with_attention = m.UNET_CONFIG["up_block_types"][block].startswith("CrossAttn")
        inner = {"resnets": 0, "attentions": 1, "upsamplers": 2 if with_attention else 1}[kind]
        name = f"output_blocks.{at}.{inner}.{rest}"
    for old, new in {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
                     "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}.items():
        if "transformer_blocks" not in name:
            name = re.sub(rf"\.{old}\.", f".{new}.", name)
    return "model.diffusion_model." + name


def vae_name(name: str) -> str:
    """The checkpoint's name of a diffusers autoencoder weight."""
    blocks = len(m.VAE_CONFIG["block_out_channels"])
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda k: f"up.{blocks - 1 - int(k[1])}.block.{k[2]}", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda k: f"up.{blocks - 1 - int(k[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda k: f"mid.block_{int(k[1]) + 1}", name)
    for old, new in {"mid_block.attentions.0": "mid.attn_1", "group_norm": "norm", "to_q": "q", "to_k": "k",
                     "to_v": "v", "to_out.0": "proj_out", "conv_norm_out": "norm_out",
                     "conv_shortcut": "nin_shortcut"}.items():
        name = name.replace(old, new)
    return "first_stage_model." + name


def vae_weights(state: dict) -> dict:
    """Autoencoder weights whose latents, times 0.18215, are the standardised ones; no variance."""
    state = {k: v.clone() for k, v in state.items()}
    kept = m.VAE_CONFIG["latent_channels"]
    for part in ("weight", "bias"):
        state[f"quant_conv.{part}"][:kept] /= m.SCALE_FACTOR
        state[f"quant_conv.{part}"][kept:] = 0
    state["quant_conv.bias"][kept:] = -30
    state["post_quant_conv.weight"] *= m.SCALE_FACTOR
    named = {vae_name(k): v for k, v in state.items()}
    # The attention of old checkpoints is made of 1 x 1 convolutions.
    return {k: v[:, :, None, None] if ".attn_1." in k and v.ndim == 2 else v for k, v in named.items()}


def text_weights(average: dict, tokens: m.Tokens) -> dict:
    """Text encoder weights with the compact token table spread over CLIP's whole vocabulary."""
    state = {k.removeprefix("encoder."): v for k, v in average.items() if k.startswith("encoder.")}
    compact = state["embeddings.token_embedding.weight"]
    table = compact[0].repeat(m.VOCABULARY, 1)
    table[torch.tensor(tokens.clip_ids[1:])] = compact[1:]
    for word, copies in SYNONYMS.items():
        source = tokens.encode(word)
        for copy in copies:
            target = tokens.encode(copy)
            if len(source) == len(target) == 1 and target[0] not in tokens.clip_ids:
                table[target[0]] = table[source[0]]
    state["embeddings.token_embedding.weight"] = table
    state["embeddings.position_ids"] = torch.arange(m.TOKENS)[None]
    return {"cond_stage_model.transformer.text_model." + k: v for k, v in state.items()}


def stored(weights: dict, bits: int) -> dict:
    """Weights as F16, matrices rounded to `bits` significant bits; integers as they are."""
    def one(name: str, v: torch.Tensor) -> torch.Tensor:
        if not v.is_floating_point():
            return v.contiguous()
        if v.ndim > 1 and not any(part in name for part in EXACT):
            fraction, exponent = torch.frexp(v)
            v = torch.ldexp(torch.round(fraction * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent)
        return v.to(torch.float16).contiguous()
    return {k: one(k, v) for k, v in weights.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, default=Path("demo-state"))
    parser.add_argument("--out", type=Path, help="the plain file (default: STATE/demo.safetensors)")
    parser.add_argument("--asset", type=Path, nargs="?", const=ASSET, help="write the compressed file too")
    parser.add_argument("--unet-bits", type=int, default=UNET_BITS)
    parser.add_argument("--vae-bits", type=int, default=VAE_BITS)
    parser.add_argument("--text-bits", type=int, default=TEXT_BITS)
    args = parser.parse_args()
    out = args.out or args.state / "demo.safetensors"

    tokens = m.Tokens()
    unet = load(args.state / "unet.pt")
    vae = load(args.state / "vae.pt")
    layers = m.UNET_CONFIG["layers_per_block"]
    tensors = stored({unet_name(k, layers): v for k, v in unet["average"].items()}, args.unet_bits)
    tensors |= stored(vae_weights(vae["average"]), args.vae_bits)
    tensors |= stored(text_weights(load(args.state / "text.pt")["average"], tokens), args.text_bits)
    metadata = {
        "modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "Safelight demo", "modelspec.resolution": "128x128", "modelspec.prediction_type": "epsilon",
        "modelspec.author": "The Safelight authors", "modelspec.license": "MIT OR Apache-2.0",
        "modelspec.description": "A miniature Stable Diffusion that draws flat landscapes, trained on drawn scenes.",
        "safelight.vae.norm_num_groups": str(m.VAE_GROUPS), "safelight.unet.norm_num_groups": str(m.UNET_GROUPS),
        "safelight.unet.attention_heads": str(m.UNET_HEADS),
        "safelight.default.sampler": "DPM++ 2M", "safelight.default.schedule": "Karras",
        "safelight.default.steps": "16", "safelight.default.cfg_scale": "2",
        "safelight.training": json.dumps({"unet_steps": unet["step"], "vae_steps": vae["step"]}),
    }
    save_file(tensors, out, metadata)
    line = f"{out}: {len(tensors)} tensors, {out.stat().st_size} bytes"
    if args.asset:
        args.asset.parent.mkdir(parents=True, exist_ok=True)
        args.asset.write_bytes(zlib.compress(out.read_bytes(), 9))
        line += f"; compressed {args.asset.stat().st_size} bytes"
    print(line)


if __name__ == "__main__":
    main()
