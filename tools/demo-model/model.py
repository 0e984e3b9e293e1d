"""The three networks of the demo model, its tokens and its latent space.

Everything here is the ordinary Stable Diffusion 1.x structure, only narrow. Training loops
live in `train_*.py`, the single-file layout in `export.py`.

The latent space is designed, not learned: the four numbers of an 8 x 8 pixel cell are its mean
brightness, its mean red-blue and green-magenta contrast, and how much of it is foreground (sun,
moon, stars, things). The encoder learns to compute these from pixels, the decoder to draw sharp
pictures from them, and the UNet can train on exact latents before either is ready.
"""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from world import CELL, COLOURS, EMPTY_CAPTION, GROUNDS, PLACES, SKIES, THINGS, Caption, describe, random_scene

TOKENS = 77
BOS, EOS, VOCABULARY = 49406, 49407, 49408
TEXT_WIDTH = 128
SCALE_FACTOR = 0.18215
VAE_GROUPS = 4
UNET_GROUPS = 8
UNET_HEADS = 2  # wider heads: 1.4 times as fast on a CPU

VAE_CONFIG = dict(
    in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(16, 32, 64, 64), layers_per_block=2,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    norm_num_groups=VAE_GROUPS, sample_size=128, scaling_factor=SCALE_FACTOR,
)
UNET_CONFIG = dict(
    sample_size=16, in_channels=4, out_channels=4, block_out_channels=(64, 96, 96, 64), layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    cross_attention_dim=TEXT_WIDTH, attention_head_dim=UNET_HEADS, norm_num_groups=UNET_GROUPS,
    use_linear_projection=False,
)
TEXT_CONFIG = dict(
    hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, num_hidden_layers=3,
    num_attention_heads=TEXT_WIDTH // 64, max_position_embeddings=TOKENS, hidden_act="quick_gelu",
    bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS, projection_dim=TEXT_WIDTH,
)

# ---------------------------------------------------------------- latents

# Measured over 1,000 scenes; rarely covered cells would have a std of 0.25.
LATENT_MEAN = np.array([0.05, -0.13, 0.02, 0.09], np.float32)
LATENT_STD = np.array([0.46, 0.69, 0.31, 0.30], np.float32)


def latent_of(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The standardised latent `[4, H/8, W/8]` of a byte picture and its foreground mask."""
    h, w = picture.shape[0] // CELL, picture.shape[1] // CELL
    cells = picture.reshape(h, CELL, w, CELL, 3).mean((1, 3), dtype=np.float32) / 127.5 - 1
    r, g, b = cells[..., 0], cells[..., 1], cells[..., 2]
    covered = mask.reshape(h, CELL, w, CELL).mean((1, 3), dtype=np.float32) / 255
    raw = np.stack([(r + g + b) / 3, r - b, g - (r + b) / 2, covered])
    return (raw - LATENT_MEAN[:, None, None]) / LATENT_STD[:, None, None]


# ---------------------------------------------------------------- tokens


def clip_bpe():
    """CLIP's own tokenizer with its real vocabulary, from the `clip-anytorch` package.

    Loaded by path, because importing the package would want more than the tokenizer needs.
    """
    folder = Path(importlib.util.find_spec("clip").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("clip_simple_tokenizer", folder / "simple_tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


class Tokens:
    """Maps captions to rows of a compact table: UNK, BOS, EOS, then every token captions use."""

    def __init__(self) -> None:
        self._bpe = clip_bpe()
        self._cache: dict[str, list[int]] = {}
        rng = random.Random(7)
        used = {t for _ in range(20_000) for t in self.encode(describe(random_scene(rng), rng).text)}
        for extra in (*SKIES, *COLOURS, *PLACES, "and with in on at the a of , ."):
            used.update(self.encode(extra))
        self.clip_ids = [-1, BOS, EOS, *sorted(used)]
        self._row = {clip_id: row for row, clip_id in enumerate(self.clip_ids)}

    def encode(self, text: str) -> list[int]:
        ids = []
        for word in text.replace(",", " , ").split():
            if word not in self._cache:
                self._cache[word] = self._bpe.encode(word)
            ids += self._cache[word]
        return ids

    def rows(self, text: str, unknown: random.Random | None = None) -> list[int]:
        """77 compact rows; with `unknown`, one to three unknown words are slipped in."""
        rows = [self._row.get(t, 0) for t in self.encode(text)]
        if unknown is not None:
            for _ in range(unknown.randint(1, 3)):
                rows.insert(unknown.randint(0, len(rows)), 0)
        rows = [1, *rows[: TOKENS - 2], 2]
        return rows + [2] * (TOKENS - len(rows))

    def __len__(self) -> int:
        return len(self.clip_ids)


# What the text encoder is taught to say about a caption; the last class means "not said".
ATTRIBUTES = {"sky": SKIES, "ground": GROUNDS, "orb_place": PLACES, "thing": THINGS, "colour": tuple(COLOURS), "place": PLACES}


def attribute_labels(caption: Caption) -> list[int]:
    return [values.index(v) if (v := getattr(caption, name)) is not None else len(values)
            for name, values in ATTRIBUTES.items()]


def caption_batch(tokens: Tokens, captions: list[Caption], rng: random.Random, dropped: float = 0.1):
    """Token rows `[B, 77]` and labels `[B, 6]`; some captions lose all words, some gain unknown ones."""
    rows, labels = [], []
    for caption in captions:
        if rng.random() < dropped:
            caption = EMPTY_CAPTION
        unknown = rng if caption.text and rng.random() < 0.1 else None
        rows.append(tokens.rows(caption.text, unknown))
        labels.append(attribute_labels(caption))
    return torch.tensor(rows), torch.tensor(labels)


# ---------------------------------------------------------------- networks


def text_encoder(rows: int) -> CLIPTextModel:
    """A CLIP text encoder over `rows` compact tokens (`VOCABULARY` for the exported one)."""
    special = {} if rows == VOCABULARY else dict(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    config = CLIPTextConfig(**{**TEXT_CONFIG, **special, "vocab_size": rows})
    config._attn_implementation = "eager"
    model = CLIPTextModel(config)
    for name, p in model.named_parameters():
        if "embedding" in name:
            nn.init.normal_(p, std=0.2)
    return model


def attribute_heads() -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(TEXT_WIDTH, len(values) + 1) for name, values in ATTRIBUTES.items()})


def _zero(module: nn.Module) -> None:
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def autoencoder() -> AutoencoderKL:
    """The autoencoder; residual branches start at zero so that colour flows from the first step."""
    model = AutoencoderKL(**VAE_CONFIG)
    for name, module in model.named_modules():
        if name.endswith(".conv2"):
            _zero(module)
    return model


def unet() -> UNet2DConditionModel:
    """The UNet, started so that its first guess for the noise is its input.

    Branches start at zero. Eight channels carry +x and -x from `conv_in` over the last skip to
    `conv_out`, where silu(x) - silu(-x) = x undoes the activation.
    """
    model = UNet2DConditionModel(**UNET_CONFIG)
    model.set_attn_processor(AttnProcessor())  # fastest on a CPU at these head sizes
    for name, module in model.named_modules():
        if name.endswith((".conv2", ".proj_out")):
            _zero(module)
    width = UNET_CONFIG["block_out_channels"][0]
    with torch.no_grad():
        # One +x and one -x channel per normalisation group.
        plus = [2 * c * width // UNET_GROUPS for c in range(4)]
        minus = [(2 * c + 1) * width // UNET_GROUPS for c in range(4)]
        first, last = model.conv_in, model.conv_out
        for c in range(4):
            for channel, sign in ((plus[c], 1.0), (minus[c], -1.0)):
                first.weight[channel] = 0
                first.bias[channel] = 0
                first.weight[channel, c, 1, 1] = sign
        shortcut = model.up_blocks[-1].resnets[-1].conv_shortcut
        for channel in plus + minus:
            shortcut.weight[channel] = 0
            shortcut.bias[channel] = 0
            shortcut.weight[channel, width + channel, 0, 0] = 1
        last.weight.mul_(0.1)
        _ = last.bias.zero_()
        for c in range(4):
            last.weight[c, plus[c], 1, 1] += 1
            last.weight[c, minus[c], 1, 1] -= 1
        noise = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        guess = model(noise, torch.full((8,), 500), torch.zeros(8, TOKENS, TEXT_WIDTH)).sample
        last.weight.div_((guess * noise).mean())
    return model


def alphas_cumprod() -> torch.Tensor:
    """The `[1000]` cumulative products of Stable Diffusion's scaled-linear schedule."""
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()
