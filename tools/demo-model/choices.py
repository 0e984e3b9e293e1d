"""Draws the held-out captions plainly and with each choice that trades fidelity for time, and prints what it costs.

Every choice draws the same captions with the same seeds as the plain pictures, through the `safelight` program. PSNR and SSIM are against the
plain picture; the judge says how many pictures show what the caption says. Plain and hastened pictures take turns, so that the
ratio of their times is of pairs: whatever else the machine does slows both. The median of the pairs is printed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.metrics import structural_similarity

from captions import held_out
from judge import judge

CHOICES = {
    "--cfg-end 0.75": ["--cfg-end", "0.75"],
    "--cfg-end 0.5": ["--cfg-end", "0.5"],
    "--cfg-start 0.25": ["--cfg-start", "0.25"],
    "--cfg-start 0.25 --cfg-end 0.75": ["--cfg-start", "0.25", "--cfg-end", "0.75"],
    "--cache-interval 2": ["--cache-interval", "2"],
    "--cache-interval 3": ["--cache-interval", "3"],
    "--cache-interval 5": ["--cache-interval", "5"],
    "--cache-interval 3 --cache-branch 2": ["--cache-interval", "3", "--cache-branch", "2"],
    "--token-merging-ratio 0.25": ["--token-merging-ratio", "0.25"],
    "--token-merging-ratio 0.5": ["--token-merging-ratio", "0.5"],
    "--precision bf16": ["--precision", "bf16"],
    "--precision int8": ["--precision", "int8"],
    "--cfg-end 0.75 --cache-interval 2": ["--cfg-end", "0.75", "--cache-interval", "2"],
}
SAID = ("sky", "ground", "orb_place", "thing", "colour", "place")


class Program:
    """Runs `safelight txt2img` in a folder that goes away."""

    def __init__(self, program: Path, threads: int | None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._at = Path(self._folder.name)
        (self._at / "none").mkdir()
        self._start = [str(program), "txt2img"]
        self._end = ["--quiet", "--json", "--models", str(self._at / "none")]
        self._end += ["--threads", str(threads)] if threads else []

    def draw(self, caption: str, seed: int, options: list[str]):
        """The picture, the seconds it took without loading, and how often the UNet ran (whole, in part)."""
        out = self._at / "out.png"
        out.unlink(missing_ok=True)
        call = [*self._start, caption, "--seed", str(seed), "-o", str(out), *options, *self._end]
        said = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
        passes = said["pictures"][0]["unet_passes"]
        return np.asarray(Image.open(out).convert("RGB")), said["seconds"], (passes["full"], passes["cached"])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return 99.0 if error == 0 else 10 * np.log10(255**2 / error)


def is_right(picture: np.ndarray, entry: dict) -> bool:
    verdict = judge(picture)
    return all(getattr(verdict, key) == entry[key] for key in SAID if key in entry)


def measured(program: Program, entry: dict, seed: int, common: list[str], names: list[str], timed: bool):
    """Whether the plain picture is right, its UNet passes, and a row for each choice."""
    caption = entry["caption"]
    plain, plain_seconds, plain_passes = program.draw(caption, seed, common)
    rows = {}
    for name in names:
        if timed:
            again, plain_seconds, _ = program.draw(caption, seed, common)
            assert (again == plain).all(), f"{caption}: the same request gave another picture"
        picture, seconds, passes = program.draw(caption, seed, [*common, *CHOICES[name]])
        similarity = structural_similarity(plain, picture, channel_axis=2)
        rows[name] = (psnr(plain, picture), similarity, is_right(picture, entry), seconds / plain_seconds if timed else None, passes)
    return is_right(plain, entry), plain_passes, rows


def passes_of(counts) -> str:
    return ", ".join(f"{full} + {part}" for full, part in sorted(set(counts)))


def table(found: list, names: list[str]) -> None:
    right, passes, rows = zip(*found)
    print("| choice | right | PSNR dB, median | worst | SSIM, median | UNet passes, whole + in part | time, of plain |\n|---|---|---|---|---|---|---|")
    print(f"| none | {sum(right)} | | | | {passes_of(passes)} | 1 |")
    for name in names:
        noise, alike, right, times, passes = zip(*(row[name] for row in rows))
        times = [time for time in times if time is not None]
        print(f"| `{name}` | {sum(right)} | {statistics.median(noise):.1f} | {min(noise):.1f} | {statistics.median(alike):.3f} | "
              f"{passes_of(passes)} | {f'{statistics.median(times):.2f}' if times else ''} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path, help="the safelight program")
    parser.add_argument("--count", type=int, default=200, help="how many of the held-out captions")
    parser.add_argument("--timed", type=int, default=30, help="for how many of them plain and hastened pictures take turns")
    parser.add_argument("--seed", type=int, default=100, help="of the first caption; the next has the next one")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--choices", nargs="+", choices=CHOICES, default=list(CHOICES), metavar="CHOICE")
    parser.add_argument("--common", default="", help="options for all pictures, as one word: --common='--steps 30'")
    args = parser.parse_args()
    program, found = Program(args.program.resolve(), args.threads), []
    try:
        for idx, entry in enumerate(held_out()[: args.count]):
            found.append(measured(program, entry, args.seed + idx, shlex.split(args.common), args.choices, idx < args.timed))
    except KeyboardInterrupt:
        print("stopped early")
    print(f"{len(found)} captions, seeds from {args.seed} on, the first {min(args.timed, len(found))} timed")
    table(found, args.choices)


if __name__ == "__main__":
    main()
