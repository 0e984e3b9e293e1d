"""Trains the autoencoder near the designed latents.

Half of each batch is decoded from exact latents, half from what the encoder makes of the pixels, both with a little
noise, so that the UNet's small errors do no harm. The encoder is pulled towards the exact latents, but may stray from
them a little: in that little it tells the decoder where inside a cell an edge runs, which four cell averages can't.
"""

import math
import random

import numpy as np
import torch
import torch.nn.functional as F

from model import autoencoder, latent_of
from training import Average, Clock, agreed, arguments, average_gradients, half_precision, launch, learning_rate, log, restore, save
from world import CELL, SIZE, draw, random_scene

NOISE = 0.04
SQUARES = 5  # weight of the squared error, which PSNR counts, beside the absolute one
PULL = 0.1  # weight of the encoder's distance to the exact latents, squared
WHOLE_PICTURES_FROM = 0.6  # crops before, then whole pictures, as normalisation sees them in use


def batch_of(rng: random.Random, count: int, cells: int):
    """Pictures `[B, 3, H, W]` in [-1, 1] and their latents, cut to `cells` x `cells`."""
    pictures, latents = [], []
    for _ in range(count):
        picture, mask = draw(random_scene(rng))
        x, y = (rng.randint(0, SIZE // CELL - cells) for _ in range(2))
        latents.append(latent_of(picture, mask)[:, y : y + cells, x : x + cells])
        pictures.append(picture[y * CELL : (y + cells) * CELL, x * CELL : (x + cells) * CELL])
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels, torch.from_numpy(np.stack(latents))


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def drawing_loss(guess: torch.Tensor, pixels: torch.Tensor):
    """Colour loss and edge loss."""
    colour = F.l1_loss(guess, pixels) + SQUARES * F.mse_loss(guess, pixels)
    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(guess), edges(pixels)))
    return colour, edge


def train(rank: int, args) -> None:
    torch.manual_seed(2)
    model = autoencoder()
    average = Average(model, 0.995)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.99), weight_decay=0.001)
    path = args.state / "vae.pt"
    step, start, before_s = restore(path, model, average, optimizer)
    clock = Clock(before_s)
    rng = random.Random(1000 * step + rank)
    parameters = list(model.parameters())
    noise_rng = torch.Generator().manual_seed(1000 * step + rank)

    def checkpoint() -> None:
        if rank == 0:
            save(path, dict(model=model.state_dict(), average=average.weights, optimizer=optimizer.state_dict(),
                            step=step, start=start, seconds=clock.seconds()))

    while (progress := agreed(clock.seconds(), args.processes) / (60 * args.minutes)) < 1:
        whole = progress >= WHOLE_PICTURES_FROM
        pixels, latents = batch_of(rng, max(1, args.batch // 4) if whole else args.batch, 16 if whole else 8)
        with half_precision():
            mean = model.encode(pixels).latent_dist.mean.float()
        encoder_loss = F.mse_loss(mean, latents)
        exact = len(pixels) // 2 if step % 2 else (len(pixels) + 1) // 2
        chosen = torch.cat([latents[:exact], mean[exact:]])
        noisy = chosen + NOISE * torch.randn(chosen.shape, generator=noise_rng)
        with half_precision():
            guess = model.decode(noisy).sample.float()
        colour, edge = drawing_loss(guess, pixels)
        loss = colour + edge + PULL * encoder_loss
        with torch.no_grad():
            psnr = [10 * math.log10(4 / max(1e-9, F.mse_loss(a, b).item())) for a, b in
                    ((guess[:exact], pixels[:exact]), (guess[exact:], pixels[exact:])) if len(a)]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if args.processes > 1:
            for p in parameters:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
        average_gradients(parameters, args.processes)
        torch.nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(args.lr, step - start, progress)
        optimizer.step()
        average.update(model, step - start)
        step += 1
        if rank == 0 and step % 50 == 0:
            log(args.state / "vae.log", f"vae {clock.seconds() / 60:5.1f} min step {step} colour {colour.item():.4f} "
                                        f"edge {edge.item():.4f} encoder {encoder_loss.item():.4f} "
                                        f"dB {' '.join(f'{x:.1f}' for x in psnr)}")
        if clock.save_due():
            checkpoint()
    checkpoint()


if __name__ == "__main__":
    launch(train, arguments(__doc__, minutes=60, lr=1e-3, batch=12).parse_args())
