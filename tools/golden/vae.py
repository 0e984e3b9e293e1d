"""Golden files of the autoencoder: moments of an encoded picture, decoded latents, both block by block."""

import torch

import models
from common import noise, save
from unet import traced

# case: layout, seed, batch, (height, width) of the latent
CASES = {
    "s1_8x8": ("vae_s1", 41, 1, (8, 8)),
    "s1_5x9": ("vae_s1", 42, 1, (5, 9)),
    "s1_1x3": ("vae_s1", 43, 2, (1, 3)),
    # Faint pictures and latents make the epsilon of the norms decide.
    "s1_faint": ("vae_s1", 47, 1, (4, 6)),
    "m2_6x4": ("vae_m2", 44, 1, (6, 4)),
    "m2_3x7": ("vae_m2", 45, 2, (3, 7)),
    "groups_8x6": ("vae_groups", 46, 1, (8, 6)),
}


def picture(seed, batch, height, width):
    """Smooth colours with noise on top, in [-1, 1]."""
    small = noise(seed, batch, 3, 4, 4)
    smooth = torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic", align_corners=False)
    return (0.5 * smooth + 0.1 * noise(seed + 1, batch, 3, height, width)).clamp(-1, 1)


def make(out):
    for case, (layout, seed, batch, (height, width)) in CASES.items():
        model = models.build(layout, seed)["vae"]
        scale = 2 ** (len(model.config.block_out_channels) - 1)
        faintness = 2.0**-10 if case.endswith("faint") else 1.0
        image = faintness * picture(seed, batch, height * scale, width * scale)
        latent = faintness * noise(seed + 2000, batch, 4, height, width) / 0.18215
        with torch.no_grad():
            moments, encoded = traced(model, lambda: model.encode(image).latent_dist)
            decoded, seen = traced(model, lambda: model.decode(latent).sample)
        save(out, f"vae/{case}_encode", {"in.image": image, "out.mean": moments.mean, "out.logvar": moments.logvar},
             "vae.py", 1e-4, layout=layout, seed=seed)
        save(out, f"vae/{case}_decode", {"in.latent": latent, "out.image": decoded}, "vae.py", 1e-4,
             layout=layout, seed=seed)
        if case == "s1_5x9":
            blocks = {f"out.{name}": value for name, value in (encoded | seen).items()}
            save(out, f"trace/vae_{case}", {"in.image": image, "in.latent": latent, **blocks}, "vae.py", 1e-5,
                 values_max=500, layout=layout, seed=seed)


if __name__ == "__main__":
    import sys
    make(sys.argv[1])
