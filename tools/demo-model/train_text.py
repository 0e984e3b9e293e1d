"""Trains the text encoder to understand captions: from every end token it must tell the scene.

CLIP's encoder has been taught what words mean before Stable Diffusion's UNet listens to it;
this is the small version of that. The UNet is then trained with the encoder frozen.
"""

import random

import torch
import torch.nn.functional as F

from captions import Describer
from model import ATTRIBUTES, Tokens, attribute_heads, caption_batch, text_encoder
from training import Average, Clock, agreed, arguments, average_gradients, half_precision, launch, learning_rate, log, restore, save
from world import random_scene

SHORT = 40  # most steps leave out the far end of the padding


def train(rank: int, args) -> None:
    torch.manual_seed(1)
    tokens, describe = Tokens(), Describer()
    model = torch.nn.ModuleDict({"encoder": text_encoder(len(tokens)), "heads": attribute_heads()})
    average = Average(model, 0.99)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    path = args.state / "text.pt"
    step, start, before_s = restore(path, model, average, optimizer)
    clock = Clock(before_s)
    rng = random.Random(1000 * step + rank)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def checkpoint() -> None:
        if rank == 0:
            save(path, dict(model=model.state_dict(), average=average.weights, optimizer=optimizer.state_dict(),
                            step=step, start=start, seconds=clock.seconds(), clip_ids=tokens.clip_ids))

    while (progress := agreed(clock.seconds(), args.processes) / (60 * args.minutes)) < 1:
        captions = [describe(random_scene(rng), rng) for _ in range(args.batch)]
        rows, labels = caption_batch(tokens, captions, rng, dropped=0.03)
        if step % 4:
            rows = rows[:, :SHORT]
        with half_precision():
            hidden = model["encoder"](rows).last_hidden_state
        at_end = rows == 2
        said, owner = hidden[at_end].float(), at_end.nonzero()[:, 0]
        share = 1 / at_end.sum(1)[owner]  # every caption counts once
        losses, right = [], []
        for idx, name in enumerate(ATTRIBUTES):
            logits, wanted = model["heads"][name](said), labels[owner, idx]
            losses.append((F.cross_entropy(logits, wanted, reduction="none") * share).sum() / args.batch)
            right.append(((logits.argmax(1) == wanted).float() * share).sum().item() / args.batch)
        loss = sum(losses)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        average_gradients(parameters, args.processes)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(args.lr, step - start, progress)
        optimizer.step()
        average.update(model, step - start)
        step += 1
        if rank == 0 and step % 25 == 0:
            told = " ".join(f"{name} {r:.3f}" for name, r in zip(ATTRIBUTES, right))
            log(args.state / "text.log", f"text {clock.seconds() / 60:5.1f} min step {step} loss {loss.item():.4f} {told}")
        if clock.save_due():
            checkpoint()
    checkpoint()


if __name__ == "__main__":
    launch(train, arguments(__doc__, minutes=4, lr=1e-3, batch=48).parse_args())
