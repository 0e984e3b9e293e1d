"""The weights of every golden case: a rule of the tensor's name, shape and a case seed.

No weights are committed. The rule (README.md states it in words) is twinned in Rust in
`crates/diffusion/tests/common/weights.rs`; `testdata/golden/layouts/rule.json` pins both to the same bits.
Names are those of LDM single files; models built by diffusers and transformers get the same values through
`unet_name`, `vae_name` and `text_name`.
"""

import math
import zlib

import torch

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer."

# Standard deviation of a tensor's products, relative to "as large as its input". The reasons:
# attention scores get a spread of about 2 (a wrong softmax must show), the time embedding is heard above
# the convolutions, latents come out of the encoder with a spread near 1 after the factor 0.18215 and go into
# the decoder likewise.
GAINS = [
    (("to_q.weight", "to_k.weight", "q_proj.weight", "k_proj.weight", "attn_1.q.weight", "attn_1.k.weight"), 1.5),
    (("emb_layers.1.weight",), 2.0),
    (("first_stage_model.quant_conv.weight",), 4.0),
    (("first_stage_model.post_quant_conv.weight",), 0.25),
]


def uniforms(name, count, seed):
    """`count` floats in [0, 1), multiples of 2^-24: MT19937 seeded by the name's CRC-32 xor the case seed."""
    generator = torch.Generator().manual_seed((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF)
    return torch.rand(count, generator=generator)


def amplitude(name, shape):
    """Half the width of the uniform distribution a tensor is drawn from, rounded once to f32."""
    if name.endswith("embedding.weight"):
        return torch.tensor(0.5 * math.sqrt(3.0), dtype=torch.float32)
    fan_in = math.prod(shape[1:])
    gain = next((gain for suffixes, gain in GAINS if name.endswith(suffixes)), 1.0)
    return torch.tensor(math.sqrt(3.0 / fan_in) * gain, dtype=torch.float32)


def tensor(name, shape, seed):
    """The weight called `name` (an LDM name) of shape `shape` under case seed `seed`, float32."""
    signed = 2.0 * uniforms(name, math.prod(shape), seed) - 1.0
    if len(shape) == 1:
        tenth = torch.tensor(0.1, dtype=torch.float32)
        values = signed * tenth
        if name.endswith(".weight"):
            values = 1.0 + values
    else:
        values = signed * amplitude(name, shape)
    return values.reshape(shape)


def _replace(name, pairs):
    for ours, theirs in pairs:
        name = name.replace(ours, theirs)
    return name


def unet_name(name, layers_per_block):
    """LDM name of a diffusers `UNet2DConditionModel` parameter. One LDM block holds one res block, its
    transformer and, at the end of a level, the resampling convolution."""
    layers = layers_per_block
    whole = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
             "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
             "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    stem, kind = name.rsplit(".", 1)
    if stem in whole:
        return UNET + whole[stem] + "." + kind
    part = name.split(".")
    resnet = [("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"),
              ("norm2", "out_layers.0"), ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection")]
    if part[0] == "mid_block":
        block = {("resnets", "0"): 0, ("attentions", "0"): 1, ("resnets", "1"): 2}[(part[1], part[2])]
        rest = ".".join(part[3:])
        return f"{UNET}middle_block.{block}." + (_replace(rest, resnet) if part[1] == "resnets" else rest)
    level, kind, rest = int(part[1]), part[2], ".".join(part[4:])
    if part[0] == "down_blocks":
        first = 1 + level * (layers + 1)
        if kind == "downsamplers":
            return f"{UNET}input_blocks.{first + layers}.0.op.{part[-1]}"
        head = f"{UNET}input_blocks.{first + int(part[3])}"
    elif part[0] == "up_blocks":
        first = level * (layers + 1)
        if kind == "upsamplers":
            return f"{UNET}output_blocks.{first + layers}.UP.conv.{part[-1]}"
        head = f"{UNET}output_blocks.{first + int(part[3])}"
    else:
        raise KeyError(name)
    if kind == "resnets":
        return f"{head}.0." + _replace(rest, resnet)
    return f"{head}.1.{rest}"


def unet_names(names, layers_per_block):
    """`{diffusers name: LDM name}` of a whole UNet. An up-convolution is `.2` behind a transformer, else `.1`."""
    table = {name: unet_name(name, layers_per_block) for name in names}
    blocks = {ldm.rsplit(".", 1)[0] for ldm in table.values()}
    for name, ldm in table.items():
        if ".UP." in ldm:
            block = ldm.split(".UP.")[0]
            behind = 2 if any(other.startswith(block + ".1.") for other in blocks) else 1
            table[name] = ldm.replace(".UP.", f".{behind}.")
    return table


def vae_name(name, levels):
    """LDM name of a diffusers `AutoencoderKL` parameter. LDM counts decoder levels from the finest."""
    part = name.split(".")
    if part[0] in ("quant_conv", "post_quant_conv"):
        return VAE + name
    side = VAE + part[0] + "."
    rest = ".".join(part[1:])
    if part[1] in ("down_blocks", "up_blocks"):
        level = int(part[2]) if part[1] == "down_blocks" else levels - 1 - int(part[2])
        side += ("down" if part[1] == "down_blocks" else "up") + f".{level}."
        if part[3] == "resnets":
            return side + f"block.{part[4]}." + ".".join(part[5:]).replace("conv_shortcut", "nin_shortcut")
        return side + ("downsample" if part[3] == "downsamplers" else "upsample") + f".conv.{part[-1]}"
    if part[1] == "mid_block":
        if part[2] == "resnets":
            return side + f"mid.block_{int(part[3]) + 1}." + ".".join(part[4:])
        inner = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}[part[4]]
        return side + f"mid.attn_1.{inner}.{part[-1]}"
    return side + rest.replace("conv_norm_out", "norm_out")


def text_name(name):
    """LDM name of a transformers `CLIPTextModel` parameter (5.x drops the `text_model.` the files have)."""
    return TEXT + (name if name.startswith("text_model.") else "text_model." + name)


def model_names(model):
    """`{model's own name: LDM name}` for a diffusers UNet or VAE, or a transformers CLIP text model."""
    names = [name for name in model.state_dict() if not name.endswith("position_ids")]
    kind = type(model).__name__
    if kind == "UNet2DConditionModel":
        return unet_names(names, model.config.layers_per_block)
    if kind == "AutoencoderKL":
        return {name: vae_name(name, len(model.config.block_out_channels)) for name in names}
    if kind == "CLIPTextModel":
        return {name: text_name(name) for name in names}
    raise TypeError(kind)


def ldm_shape(name, shape):
    """The VAE's attention is a linear layer in diffusers and a 1x1 convolution in LDM files."""
    if ".mid.attn_1." in name and len(shape) == 2:
        return [*shape, 1, 1]
    return list(shape)


def fill(model, seed):
    """Gives `model` the rule's weights and returns it in eval mode."""
    table = model_names(model)
    state = model.state_dict()
    with torch.no_grad():
        for name, ldm in table.items():
            state[name].copy_(tensor(ldm, ldm_shape(ldm, state[name].shape), seed).reshape(state[name].shape))
    return model.eval()


def layout(*models):
    """`{LDM name: shape}` of the single file that holds `models`."""
    shapes = {}
    for model in models:
        state = model.state_dict()
        for name, ldm in model_names(model).items():
            assert ldm not in shapes, ldm
            shapes[ldm] = ldm_shape(ldm, state[name].shape)
    return dict(sorted(shapes.items()))


def diffusers_names(model):
    """`{name in the folder's file: [LDM name, shape]}` for one part of a diffusers folder."""
    state = model.state_dict()
    table = model_names(model)
    text = type(model).__name__ == "CLIPTextModel"
    return {
        ("text_model." + name if text and not name.startswith("text_model.") else name): [ldm, list(state[name].shape)]
        for name, ldm in sorted(table.items())
    }


def rule_samples():
    """What both sides check themselves against: first and last values of one tensor of each kind."""
    cases = [
        ("model.diffusion_model.input_blocks.0.0.weight", [32, 4, 3, 3], 0),
        ("model.diffusion_model.input_blocks.0.0.bias", [32], 1),
        ("model.diffusion_model.out.0.weight", [32], 7),
        ("model.diffusion_model.time_embed.0.weight", [128, 32], 0xDEADBEEF),
        ("model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight", [64, 64], 3),
        ("first_stage_model.quant_conv.weight", [8, 8, 1, 1], 3),
        ("first_stage_model.post_quant_conv.weight", [4, 4, 1, 1], 3),
        ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", [1000, 64], 5),
    ]
    rows = []
    for name, shape, seed in cases:
        values = tensor(name, shape, seed).flatten()
        bits = values.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
        rows.append({"name": name, "shape": shape, "seed": seed, "first_bits": bits[:4].tolist(),
                     "last_bits": bits[-1].item(), "bits_sum": int(bits.sum().item())})
    return rows
