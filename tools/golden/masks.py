"""Room `masks`: what Pillow makes of a picture and its mask, in the steps A1111 takes for inpainting."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

from common import save
from pipeline_diffusers import picture

WIDTH, HEIGHT = 56, 40


def soft_mask():
    """White in the middle, falling off over some pixels."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot((x - 30) / 14, (y - 18) / 10)
    return Image.fromarray((np.clip(1.6 - distance, 0, 1) * 255).round().astype(np.uint8))


def uncovered(image, mask):
    """The picture where the mask is black, premultiplied."""
    canvas = Image.new("RGBa", image.size)
    canvas.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    return canvas


def filled(image, mask):
    """Ever sharper blurs of the uncovered part, one over the other."""
    canvas, source = Image.new("RGBA", image.size), uncovered(image, mask)
    for radius, times in ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1)):
        layer = source.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            canvas.alpha_composite(layer)
    return canvas.convert("RGB")


def overlaid(drawn, image, mask):
    """The picture over the drawn one, where twice the mask is not white."""
    doubled = Image.fromarray(np.clip(np.asarray(mask).astype(np.float32) * 2, 0, 255).astype(np.uint8))
    result = drawn.convert("RGBA")
    result.alpha_composite(uncovered(image, doubled).convert("RGBA"))
    return result.convert("RGB")


def make_fill(out):
    """Odd sizes, narrower and wider than the blurs, with hard edges, soft ones, and next to nothing showing."""
    tensors = {}
    for seed, (width, height) in enumerate([(1, 1), (3, 2), (7, 29), (33, 17), (45, 31), (64, 9)]):
        image = picture(seed + 20, width, height) if min(width, height) > 4 else \
            np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        random = np.random.default_rng(seed + 50)
        mask = random.integers(0, 256, (height, width), dtype=np.uint8)
        if seed % 2:
            x, y = np.meshgrid(np.arange(width), np.arange(height))
            mask = np.where((x > width * 0.2) & (y < height * 0.7), 255, 3 * (seed - 1)).astype(np.uint8)
        if seed == 4:
            mask = np.where(random.random((height, width)) < 0.98, 255 - mask % 3, 0).astype(np.uint8)
        size = f"{width}x{height}"
        tensors |= {f"in.image/{size}": image, f"in.mask/{size}": mask,
                    f"out.filled/{size}": np.asarray(filled(Image.fromarray(image), Image.fromarray(mask)))}
    source = Image.fromarray(np.random.default_rng(9).integers(0, 256, (11, 19, 4), dtype=np.uint8), "RGBA").convert("RGBa")
    raw = lambda image: np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(11, 19, 4)
    tensors["in.blur"] = raw(source)
    for sigma in (0.4, 1, 2, 3.7, 4, 16, 64, 256):
        tensors[f"out.blur/{sigma}"] = raw(source.filter(ImageFilter.GaussianBlur(sigma)))
    save(out, "masks/fill", {name: torch.from_numpy(value.copy()) for name, value in tensors.items()}, "masks.py", 0.0)


def make(out):
    make_fill(out)
    image, drawn = (Image.fromarray(picture(seed, WIDTH, HEIGHT)) for seed in (5, 6))
    mask = soft_mask()
    small = mask.convert("RGB").resize((WIDTH // 8, HEIGHT // 8))
    tensors = {"in.image": image, "in.drawn": drawn, "in.mask": mask, "out.filled": filled(image, mask),
               "out.overlaid": overlaid(drawn, image, mask), "out.lanczos": image.resize((37, 61), Image.LANCZOS)}
    tensors = {name: torch.from_numpy(np.asarray(value).copy()) for name, value in tensors.items()}
    tensors["out.latent_mask"] = torch.from_numpy(np.around(np.asarray(small, dtype=np.float32)[..., 0] / 255).copy())
    save(out, "masks/pillow", tensors, "masks.py", 0.0)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
