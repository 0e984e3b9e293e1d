"""Golden files of single blocks, built from diffusers' modules; weights by the rule under each module's own names.

Also checks, without writing a file, that the slices diffusers' own tests assert follow from torch's generator here: the Rust
test reproduces those from the generator alone.
"""

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import (
    CrossAttnDownBlock2D, CrossAttnUpBlock2D, DownBlock2D, DownEncoderBlock2D, UNetMidBlock2D, UNetMidBlock2DCrossAttn,
    UpBlock2D, UpDecoderBlock2D)
from diffusers.models.upsampling import Upsample2D

import models  # noqa: F401 (settings of torch)
import weights
from common import noise, save

RESNET = dict(resnet_eps=1e-5, resnet_groups=32)


def filled(module, seed):
    state = module.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(weights.tensor(name, list(value.shape), seed))
    return module.eval()


def emit(out, case, seed, module, given, results, **metadata):
    shapes = {name: list(value.shape) for name, value in module.state_dict().items()}
    tensors = {f"in.{name}": value for name, value in given.items()}
    tensors |= {f"out.{name}": value for name, value in results.items()}
    save(out, f"blocks/{case}", tensors, "blocks.py", 1e-5, seed=seed, weights=shapes, **metadata)


def resnets(out):
    rows = [("resnet_same", 64, 64, 128, 1e-5, 32, (2, 8, 8), 1.0), ("resnet_shortcut", 32, 64, 128, 1e-5, 32, (2, 9, 5), 1.0),
            # Values so small that the norm's epsilon decides.
            ("resnet_small", 64, 32, 128, 1e-5, 16, (1, 6, 7), 3e-3),
            ("resnet_vae", 32, 48, None, 1e-6, 4, (1, 7, 9), 1.0), ("resnet_vae_small", 32, 32, None, 1e-6, 8, (1, 5, 5), 1e-3)]
    for seed, (case, inputs, outputs, temb, eps, groups, (batch, height, width), scale) in enumerate(rows, 101):
        module = filled(ResnetBlock2D(in_channels=inputs, out_channels=outputs, temb_channels=temb, eps=eps, groups=groups), seed)
        given = {"x": scale * noise(seed, batch, inputs, height, width)}
        if temb:
            given["temb"] = noise(seed + 1000, batch, temb)
        emit(out, case, seed, module, given, {"y": module(given["x"], given.get("temb"))}, inputs=inputs, outputs=outputs,
             groups=groups, eps=eps)


def transformers(out):
    rows = [("transformer_conv", 64, 8, 1, 96, False, 77, (2, 7, 5), 1.0), ("transformer_linear", 128, 2, 1, 64, True, 154, (1, 6, 8), 1.0),
            ("transformer_small", 32, 8, 1, 64, False, 77, (1, 5, 9), 1e-3), ("transformer_deep", 64, 8, 3, 64, False, 20, (1, 4, 4), 1.0)]
    for seed, (case, channels, heads, depth, context, linear, tokens, (batch, height, width), scale) in enumerate(rows, 201):
        module = filled(Transformer2DModel(
            num_attention_heads=heads, attention_head_dim=channels // heads, in_channels=channels, num_layers=depth,
            cross_attention_dim=context, use_linear_projection=linear), seed)
        given = {"x": scale * noise(seed, batch, channels, height, width), "context": noise(seed + 1000, batch, tokens, context)}
        emit(out, case, seed, module, given, {"y": module(given["x"], given["context"]).sample}, channels=channels, heads=heads,
             depth=depth)


def resamplers(out):
    for seed, (case, size) in enumerate([("downsample_even", (8, 6)), ("downsample_odd", (9, 7))], 301):
        module = filled(Downsample2D(32, use_conv=True, out_channels=32, padding=1, name="op"), seed)
        x = noise(seed, 2, 32, *size)
        emit(out, case, seed, module, {"x": x}, {"y": module(x)})
    for seed, (case, size) in enumerate([("downsample_vae_even", (8, 6)), ("downsample_vae_odd", (9, 7))], 311):
        module = filled(Downsample2D(32, use_conv=True, out_channels=32, padding=0, name="op"), seed)
        x = noise(seed, 2, 32, *size)
        emit(out, case, seed, module, {"x": x}, {"y": module(x)})
    for seed, (case, size, target) in enumerate(
            [("upsample_double", (5, 4), None), ("upsample_odd", (5, 4), (9, 7)), ("upsample_one", (1, 3), (1, 5))], 321):
        module = filled(Upsample2D(32, use_conv=True, out_channels=32), seed)
        x = noise(seed, 2, 32, *size)
        emit(out, case, seed, module, {"x": x}, {"y": module(x, target)})


def time(out):
    module = filled(TimestepEmbedding(64, 256), 401)
    t = torch.tensor([0.0, 1.0, 23.0, 250.5, 500.0, 981.0, 998.75, 999.0])
    waves = get_timestep_embedding(t, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    emit(out, "time_embedding", 401, module, {"t": t}, {"waves": waves, "y": module(waves)})


def unet_blocks(out):
    """Each block kind whole: inputs, every skip it leaves, its result."""
    x, temb, context = noise(501, 2, 32, 9, 7), noise(502, 2, 128), noise(503, 2, 77, 64)
    common = dict(temb_channels=128, **RESNET)
    attention = dict(num_attention_heads=8, cross_attention_dim=64)
    module = filled(CrossAttnDownBlock2D(in_channels=32, out_channels=64, num_layers=2, **common, **attention), 501)
    y, skips = module(x, temb, context)
    emit(out, "cross_attn_down", 501, module, {"x": x, "temb": temb, "context": context},
         {"y": y} | {f"skip{i}": skip for i, skip in enumerate(skips)})
    module = filled(DownBlock2D(in_channels=32, out_channels=64, num_layers=2, **common), 504)
    y, skips = module(x, temb)
    emit(out, "down", 504, module, {"x": x, "temb": temb}, {"y": y} | {f"skip{i}": skip for i, skip in enumerate(skips)})
    x = noise(505, 2, 64, 5, 4)
    module = filled(UNetMidBlock2DCrossAttn(in_channels=64, **common, **attention), 505)
    emit(out, "mid", 505, module, {"x": x, "temb": temb, "context": context}, {"y": module(x, temb, context)})
    skips = (noise(506, 2, 32, 5, 4), noise(507, 2, 64, 5, 4))
    given = {"x": x, "temb": temb, "context": context, "skip0": skips[1], "skip1": skips[0]}
    module = filled(CrossAttnUpBlock2D(
        in_channels=32, out_channels=64, prev_output_channel=64, num_layers=2, **common, **attention), 508)
    emit(out, "cross_attn_up", 508, module, given,
         {"y": module(x, skips, temb, context, upsample_size=(9, 7))}, size=[9, 7])
    module = filled(UpBlock2D(in_channels=32, out_channels=64, prev_output_channel=64, num_layers=2, **common), 509)
    del given["context"]
    emit(out, "up", 509, module, given, {"y": module(x, skips, temb, upsample_size=(10, 8))}, size=[10, 8])


def vae_blocks(out):
    x = noise(601, 1, 32, 10, 6)
    module = filled(DownEncoderBlock2D(in_channels=32, out_channels=48, num_layers=2, resnet_eps=1e-6, resnet_groups=16,
                                       downsample_padding=0), 601)
    emit(out, "vae_down", 601, module, {"x": x}, {"y": module(x)})
    module = filled(UNetMidBlock2D(in_channels=32, temb_channels=None, resnet_eps=1e-6, resnet_groups=8, attention_head_dim=32), 602)
    emit(out, "vae_mid", 602, module, {"x": x}, {"y": module(x)})
    module = filled(UpDecoderBlock2D(in_channels=32, out_channels=48, num_layers=2, resnet_eps=1e-6, resnet_groups=16,
                                     temb_channels=None), 603)
    emit(out, "vae_up", 603, module, {"x": x}, {"y": module(x)})


# Slices asserted by diffusers' tests/models/test_layers_utils.py and tests/models/unets/test_unet_2d_blocks.py.
PUBLISHED = {
    "Upsample2D": [0.7145, 1.3773, 0.3492, 0.8448, 1.0839, -0.3341, 0.5956, 0.1250, -0.4841],
    "Downsample2D": [0.9267, 0.5878, 0.3337, 1.2321, -0.1191, -0.3984, -0.7532, -0.0715, -0.3913],
    "ResnetBlock2D": [-1.9010, -0.2974, -0.8245, -1.3533, 0.8742, -0.9645, -2.0584, 1.3387, -0.4746],
    "ResnetBlock2D shortcut": [0.2226, -1.0791, -0.1629, 0.3659, -0.2889, -1.2376, 0.0582, 0.9206, 0.0044],
    "Transformer2D cross": [0.0143, -0.6909, -2.1547, -1.8893, 1.4097, 0.1359, -0.2521, -1.3359, 0.2598],
    "DownBlock2D": [-0.0232, -0.9869, 0.8054, -0.0637, -0.1688, -1.4264, 0.4470, -1.3394, 0.0904],
    "DownEncoderBlock2D": [1.1102, 0.5302, 0.4872, -0.0023, -0.8042, 0.0483, -0.3489, -0.5632, 0.7626],
}


def check_published():
    def found(name):
        torch.manual_seed(0)
        if name == "Upsample2D":
            x = torch.randn(1, 32, 32, 32)
            return Upsample2D(32, use_conv=True)(x)
        if name == "Downsample2D":
            x = torch.randn(1, 32, 64, 64)
            return Downsample2D(32, use_conv=True)(x)
        if name.startswith("ResnetBlock2D"):
            x, temb = torch.randn(1, 32, 64, 64), torch.randn(1, 128)
            return ResnetBlock2D(in_channels=32, temb_channels=128, use_in_shortcut=name.endswith("shortcut"))(x, temb)
        if name == "Transformer2D cross":
            x = torch.randn(1, 64, 64, 64)
            module = Transformer2DModel(in_channels=64, num_attention_heads=2, attention_head_dim=32, cross_attention_dim=64)
            return module(x, torch.randn(1, 4, 64)).sample
        x = torch.randn(4, 32, 32, 32)
        if name == "DownBlock2D":
            temb = torch.randn(4, 128)
            return DownBlock2D(in_channels=32, out_channels=32, temb_channels=128)(x, temb)[0]
        return DownEncoderBlock2D(in_channels=32, out_channels=32)(x)
    for name, expected in PUBLISHED.items():
        off = (found(name)[0, -1, -3:, -3:].flatten() - torch.tensor(expected)).abs().max().item()
        print(f"published slice of {name}: off by {off:.1e}")
        assert off < 1e-3, name


def make(out):
    with torch.no_grad():
        check_published()
        for part in (resnets, transformers, resamplers, time, unet_blocks, vae_blocks):
            part(out)


if __name__ == "__main__":
    import sys
    make(sys.argv[1])
