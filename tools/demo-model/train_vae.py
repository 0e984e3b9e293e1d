"""Trains encoder and decoder of the autoencoder, each for itself, on the designed latents.

The decoder draws from exact latents with a little noise, so that the UNet's small errors do no
harm; the encoder computes the latents from pixels.
"""

import random

import numpy as np
import torch
import torch.nn.functional as F

from model import autoencoder, latent_of
from training import Average, Clock, agreed, arguments, average_gradients, launch, learning_rate, load, log, save
from world import CELL, SIZE, draw, random_scene

NOISE = 0.04
ENCODER_EVERY = 3
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
    colour = F.l1_loss(guess, pixels) + 0.5 * F.mse_loss(guess, pixels)
    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(guess), edges(pixels)))
    return colour, edge


def train(rank: int, args) -> None:
    torch.manual_seed(2)
    model = autoencoder()
    average = Average(model, 0.995)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.99), weight_decay=0.001)
    path, step, clock = args.state / "vae.pt", 0, Clock(0)
    if state := load(path):
        model.load_state_dict(state["model"])
        average.weights = state["average"]
        optimizer.load_state_dict(state["optimizer"])
        step, clock = state["step"], Clock(state["seconds"])
    rng = random.Random(1000 * step + rank)
    parameters = list(model.parameters())
    noise_rng = torch.Generator().manual_seed(1000 * step + rank)

    def checkpoint() -> None:
        if rank == 0:
            save(path, dict(model=model.state_dict(), average=average.weights, optimizer=optimizer.state_dict(),
                            step=step, seconds=clock.seconds()))

    encoder_loss = torch.zeros(())
    while (progress := agreed(clock.seconds(), args.processes) / (60 * args.minutes)) < 1:
        whole = progress >= WHOLE_PICTURES_FROM
        pixels, latents = batch_of(rng, max(1, args.batch // 4) if whole else args.batch, 16 if whole else 8)
        noisy = latents + NOISE * torch.randn(latents.shape, generator=noise_rng)
        with torch.autocast("cpu", torch.bfloat16):
            guess = model.decode(noisy).sample
        colour, edge = drawing_loss(guess.float(), pixels)
        loss = colour + edge
        if step % ENCODER_EVERY == 0 and not args.decoder_only:
            with torch.autocast("cpu", torch.bfloat16):
                mean = model.encode(pixels).latent_dist.mean
            encoder_loss = F.mse_loss(mean.float(), latents) + 0.2 * F.l1_loss(mean.float(), latents)
            loss = loss + encoder_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if args.processes > 1:
            for p in parameters:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
        average_gradients(parameters, args.processes)
        torch.nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(args.lr, step, progress)
        optimizer.step()
        average.update(model, step)
        step += 1
        if rank == 0 and step % 50 == 0:
            log(args.state / "vae.log", f"vae {clock.seconds() / 60:5.1f} min step {step} colour {colour.item():.4f} "
                                        f"edge {edge.item():.4f} encoder {encoder_loss.item():.4f}")
        if clock.save_due():
            checkpoint()
    checkpoint()


if __name__ == "__main__":
    parser = arguments(__doc__, minutes=60, lr=1e-3, batch=12)
    parser.add_argument("--decoder-only", action="store_true")
    launch(train, parser.parse_args())
