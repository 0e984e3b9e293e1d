"""What the training commands share: state files, the learning rate over time, averaging, two processes.

A run is measured in minutes of one process's CPU time, added up over restarts, so that other
work on the machine takes nothing away from it; the CPU decides how many steps fit. State files are replaced in one move, so a killed run loses little.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SAVE_EVERY_S = 150


def arguments(description: str, minutes: float, lr: float, batch: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--state", type=Path, default=Path("demo-state"), help="folder of checkpoints and logs")
    parser.add_argument("--minutes", type=float, default=minutes, help="CPU time of a process in all, restarts included")
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--batch", type=int, default=batch, help="samples per process and step")
    parser.add_argument("--processes", type=int, default=1, help="processes of one thread each")
    return parser


def launch(train, args) -> None:
    """Runs `train(rank, args)` in each process; they talk over gloo."""
    args.state.mkdir(parents=True, exist_ok=True)
    if args.processes == 1:
        _start(0, train, args, None)
        return
    meeting = args.state.resolve() / f"meeting-{os.getpid()}"
    mp.spawn(_start, (train, args, meeting), nprocs=args.processes)
    meeting.unlink(missing_ok=True)


def _start(rank: int, train, args, meeting: Path | None) -> None:
    torch.set_num_threads(1)
    if meeting is not None:
        dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=args.processes)
    train(rank, args)


def average_gradients(parameters: list[torch.nn.Parameter], processes: int) -> None:
    """Averages all gradients over the processes as one flat tensor."""
    if processes == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= processes
    offset = 0
    for p in parameters:
        p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
        offset += p.numel()


def agreed(value: float, processes: int) -> float:
    """The first process's value, so that all stop and slow down at the same step."""
    if processes == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(shared, 0)
    return shared.item()


def learning_rate(base: float, step: int, progress: float) -> float:
    """Warms up over 100 steps, holds, and falls to 2 % along a cosine over the last half."""
    fall = max(0.0, (progress - 0.5) / 0.5)
    return base * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(fall, 1.0))))


def half_precision():
    """bf16 where the CPU multiplies it; elsewhere its emulation takes fifteen times as long as f32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported())


class Average:
    """A moving average of weights that follows quickly at first."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for k, v in module.state_dict().items():
            self.weights[k].lerp_(v, 1 - decay)


def save(path: Path, state: dict) -> None:
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def load(path: Path) -> dict | None:
    return torch.load(path, map_location="cpu", weights_only=False) if path.exists() else None


def restore(path: Path, model: torch.nn.Module, average: Average, optimizer) -> tuple[int, int, float]:
    """Continues from a state file, if there is one: the step, the step at which the optimizer was new, and the seconds trained.

    What a file that was exported does not have (the text encoder's heads, the optimizer) stays as it is when new.
    """
    state = load(path)
    if state is None:
        return 0, 0, 0.0
    model.load_state_dict({**model.state_dict(), **state["model"]})
    average.weights = {**average.weights, **state["average"]}
    if state["optimizer"]:
        optimizer.load_state_dict(state["optimizer"])
    return state["step"], state.get("start", 0), state["seconds"]


class Clock:
    """Seconds of CPU time trained, over restarts, and when to save next."""

    def __init__(self, before_s: float) -> None:
        self._before_s, self._start, self._saved = before_s, time.process_time(), time.time()

    def seconds(self) -> float:
        return self._before_s + time.process_time() - self._start

    def save_due(self) -> bool:
        if time.time() - self._saved < SAVE_EVERY_S:
            return False
        self._saved = time.time()
        return True


def log(path: Path, line: str) -> None:
    print(line, flush=True)
    with path.open("a") as file:
        file.write(line + "\n")
