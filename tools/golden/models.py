"""The small models the golden cases run, by layout name, and the layout files the Rust tests read."""

import json
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import weights

# One thread: the models are tiny, and the sums then always have the same order.
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
diffusers.utils.logging.set_verbosity_error()
transformers.utils.logging.set_verbosity_error()

DOWN = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
XL_DOWN = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
XL_UP = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")


def unet(widths, layers=1, context=64, channels=4, groups=32, heads=8, linear=False):
    return UNet2DConditionModel(
        sample_size=64, in_channels=channels, out_channels=4, block_out_channels=widths, layers_per_block=layers,
        down_block_types=DOWN, up_block_types=UP, cross_attention_dim=context, norm_num_groups=groups,
        # diffusers reads `attention_head_dim` as the number of heads here; SD 1.x configs depend on it.
        attention_head_dim=[width // 64 for width in widths] if linear else heads, use_linear_projection=linear)


def unet_xl(widths, depths, layers=2, context=2048, pooled=1280):
    """A UNet like SDXL's; the defaults are those of the base model."""
    return UNet2DConditionModel(
        sample_size=128, in_channels=4, out_channels=4, block_out_channels=widths, layers_per_block=layers,
        down_block_types=XL_DOWN, up_block_types=XL_UP, transformer_layers_per_block=depths, cross_attention_dim=context,
        attention_head_dim=[max(1, width // 64) for width in widths], use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=pooled + 6 * 256)


def vae(widths, layers=1, groups=32):
    levels = len(widths)
    return AutoencoderKL(
        block_out_channels=widths, layers_per_block=layers, latent_channels=4, norm_num_groups=groups,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        sample_size=512, scaling_factor=0.18215)


def text(width, layers):
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, max_position_embeddings=77, hidden_act="quick_gelu", layer_norm_eps=1e-5,
        bos_token_id=49406, eos_token_id=49407, pad_token_id=49407, projection_dim=width, use_cache=False,
        attn_implementation="eager"))


# What each layout holds. `metadata` goes into the single file's `__metadata__`.
LAYOUTS = {
    "text64x2": {"text": dict(width=64, layers=2)},
    "text64x5": {"text": dict(width=64, layers=5)},
    "text128x3": {"text": dict(width=128, layers=3)},
    "unet_s1": {"unet": dict(widths=(32, 64, 64, 64))},
    "unet_m1": {"unet": dict(widths=(64, 96, 128, 128), context=96)},
    "unet_s2": {"unet": dict(widths=(32, 64, 96, 96), layers=2, context=128)},
    "unet_linear": {"unet": dict(widths=(64, 128, 128, 128), linear=True, context=96)},
    # Deeper transformers of random weights leave f32 itself an error of 1e-5.
    "unet_xl": {"unet_xl": dict(widths=(64, 64, 128), depths=(1, 1, 2), layers=1, context=96, pooled=80)},
    "unet_inpaint": {"unet": dict(widths=(32, 64, 64, 64), channels=9)},
    "unet_groups": {"unet": dict(widths=(32, 48, 64, 64), groups=16, heads=4),
                    "metadata": {"safelight.unet.norm_num_groups": "16", "safelight.unet.attention_heads": "4"}},
    "vae_s1": {"vae": dict(widths=(32, 32, 64, 64))},
    "vae_m2": {"vae": dict(widths=(32, 64, 96, 96), layers=2)},
    "vae_groups": {"vae": dict(widths=(16, 32, 48), groups=4), "metadata": {"safelight.vae.norm_num_groups": "4"}},
    "sd": {"unet": dict(widths=(32, 64, 64, 64)), "vae": dict(widths=(32, 32, 64, 64)), "text": dict(width=64, layers=3)},
    "sd_inpaint": {"unet": dict(widths=(32, 64, 64, 64), channels=9), "vae": dict(widths=(32, 32, 64, 64)),
                   "text": dict(width=64, layers=3)},
}
# Layouts the Rust tests also load as a diffusers folder.
FOLDERS = {"sd", "unet_groups", "vae_groups", "unet_linear"}


def build(name, seed):
    """`{"unet" | "vae" | "text": model}` of a layout, with the rule's weights."""
    makers = {"unet": unet, "unet_xl": unet_xl, "vae": vae, "text": text}
    return {part.removesuffix("_xl"): weights.fill(makers[part](**options), seed)
            for part, options in LAYOUTS[name].items() if part in makers}


def plain_config(model):
    if isinstance(model, CLIPTextModel):
        config = model.config.to_diff_dict() | {"architectures": ["CLIPTextModel"]}
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
                    "layer_norm_eps", "vocab_size", "max_position_embeddings"):
            config[key] = getattr(model.config, key)
        return config
    return json.loads(model.to_json_string())


def layout_file(name):
    models = build(name, 0)
    folders = {"unet": "unet", "vae": "vae", "text": "text_encoder"}
    body = {"metadata": LAYOUTS[name].get("metadata", {}), "tensors": weights.layout(*models.values())}
    if name in FOLDERS:
        body["diffusers"] = {
            folders[part]: {"config": plain_config(model), "tensors": weights.diffusers_names(model)}
            for part, model in models.items()}
    return body


def one_a_line(value):
    """JSON with one tensor a line: small, and readable in a diff."""
    def group(table):
        return "{\n" + ",\n".join(f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}" for k, v in table.items()) + "\n}"
    parts = [f'"metadata":{json.dumps(value["metadata"])}', f'"tensors":{group(value["tensors"])}']
    if "diffusers" in value:
        parts.append('"diffusers":{' + ",\n".join(
            f'{json.dumps(part)}:{{"config":{json.dumps(body["config"], sort_keys=True)},\n"tensors":{group(body["tensors"])}}}'
            for part, body in value["diffusers"].items()) + "}")
    return "{" + ",\n".join(parts) + "}\n"


def make(out):
    folder = Path(out) / "layouts"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rule.json").write_text(
        "[\n" + ",\n".join(json.dumps(row) for row in weights.rule_samples()) + "\n]\n")
    for name in LAYOUTS:
        (folder / f"{name}.json").write_text(one_a_line(layout_file(name)))
