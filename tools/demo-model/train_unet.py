"""Trains the UNet to predict noise on exact latents, listening to the frozen text encoder.

The loss weight is min-SNR-5 over alpha_bar, that is the weight of v-prediction: colours and
layout are decided at high noise, where a plain noise loss hardly looks. A few samples per batch
see pure noise, as the first sampling step does; the schedule itself always leaks a trace of the
picture, and a network that trusts the trace follows the seed instead of the words.
"""

import random

import numpy as np
import torch

from captions import Describer
from model import Tokens, alphas_cumprod, caption_batch, latent_of, text_encoder, unet
from training import Average, Clock, agreed, arguments, average_gradients, half_precision, launch, learning_rate, load, log, restore, save
from world import draw, random_scene

PURE_NOISE = 0.06  # share of samples
SNR_CAP = 5.0


def train(rank: int, args) -> None:
    torch.manual_seed(3)
    tokens, describe = Tokens(), Describer()
    text = text_encoder(len(tokens)).eval()
    taught = load(args.state / "text.pt")
    text.load_state_dict({k.removeprefix("encoder."): v for k, v in taught["average"].items() if k.startswith("encoder.")})
    model = unet()
    average = Average(model, 0.998)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    path = args.state / "unet.pt"
    step, start, before_s = restore(path, model, average, optimizer)
    clock = Clock(before_s)
    rng = random.Random(1000 * step + rank)
    noise_rng = torch.Generator().manual_seed(1000 * step + rank)
    parameters = list(model.parameters())
    abar = alphas_cumprod()
    seen, loss_sums, loss_counts, since = 0, np.zeros(5), np.zeros(5), clock.seconds()

    def checkpoint() -> None:
        if rank == 0:
            save(path, dict(model=model.state_dict(), average=average.weights, optimizer=optimizer.state_dict(),
                            step=step, start=start, seconds=clock.seconds()))

    while (progress := agreed(clock.seconds(), args.processes) / (60 * args.minutes)) < 1:
        scenes = [random_scene(rng) for _ in range(args.batch)]
        rows, _ = caption_batch(tokens, [describe(scene, rng) for scene in scenes], rng)
        clean = torch.from_numpy(np.stack([latent_of(*draw(scene)) for scene in scenes]))
        at = torch.arange(args.batch) + torch.rand(args.batch, generator=noise_rng)
        t = (at / args.batch * 1000).long()
        pure = torch.rand(args.batch, generator=noise_rng) < PURE_NOISE
        t[pure] = 999
        a = abar[t].view(-1, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=noise_rng)
        noisy = torch.where(pure.view(-1, 1, 1, 1), noise, a.sqrt() * clean + (1 - a).sqrt() * noise)
        target = (noisy - a.sqrt() * clean) / (1 - a).sqrt()
        snr = a / (1 - a)
        weight = snr.clamp(max=SNR_CAP) / snr / a
        with half_precision():
            with torch.no_grad():
                context = text(rows).last_hidden_state
            guess = model(noisy, t, context).sample
        each = (weight * (guess.float() - target) ** 2).mean((1, 2, 3))
        optimizer.zero_grad(set_to_none=True)
        each.mean().backward()
        average_gradients(parameters, args.processes)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(args.lr, step - start, progress)
        optimizer.step()
        average.update(model, step - start)
        step += 1
        seen += args.batch * args.processes
        bins = np.where(pure.numpy(), 4, np.minimum(t.numpy() // 250, 3))
        np.add.at(loss_sums, bins, each.detach().numpy())
        np.add.at(loss_counts, bins, 1)
        if rank == 0 and step % 50 == 0:
            by_noise = " ".join(f"{v:.3f}" for v in loss_sums / np.maximum(loss_counts, 1))
            rate = seen / (clock.seconds() - since)
            log(args.state / "unet.log", f"unet {clock.seconds() / 60:5.1f} min step {step} {rate:.1f}/s "
                                         f"loss by t-quarter and pure noise: {by_noise}")
            seen, loss_sums, loss_counts, since = 0, np.zeros(5), np.zeros(5), clock.seconds()
        if clock.save_due():
            checkpoint()
    checkpoint()


if __name__ == "__main__":
    launch(train, arguments(__doc__, minutes=100, lr=1e-3, batch=24).parse_args())
