"""Room `likeness`: PSNR and SSIM of pictures as scikit-image has them."""

import importlib.metadata
import sys

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from common import save


def pairs():
    """Pictures and changed ones: noise, a shift in brightness, blocks, something else altogether."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:37, :53]
    scene = np.stack([128 + 100 * np.sin(x / 7), 128 + 90 * np.cos(y / 5), 4.0 * x + y], -1).clip(0, 255)
    yield "noise", scene, scene + rng.normal(0, 9, scene.shape)
    yield "brighter", scene, scene + 12
    yield "blocks", scene, scene[y // 4 * 4, x // 4 * 4]
    yield "other", scene, rng.uniform(0, 255, scene.shape)
    yield "smallest", scene[:11, :11], scene[:11, :11] * 0.9


def make(out):
    for name, right, found in pairs():
        right, found = (values.clip(0, 255).round().astype(np.uint8) for values in (right, found))
        ssim = structural_similarity(right, found, data_range=255, channel_axis=-1, gaussian_weights=True, sigma=1.5,
                                     use_sample_covariance=False)
        psnr = peak_signal_noise_ratio(right, found, data_range=255)
        save(out, f"likeness/{name}", {"in.right": torch.from_numpy(right), "in.found": torch.from_numpy(found)},
             "likeness.py", 1e-9, psnr=repr(float(psnr)), ssim=repr(float(ssim)),
             scikit_image=importlib.metadata.version("scikit-image"))


if __name__ == "__main__":
    make(sys.argv[1] if len(sys.argv) > 1 else "testdata/golden")
