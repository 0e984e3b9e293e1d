"""Inpaints, erases, outpaints and repaints drawn scenes with the `safelight` program, and judges the pictures.

Four tasks, each on scenes that training never fixed: a red balloon painted into a patch of sky; a house erased; a picture
continued to twice its width; a day turned into night. Prints how often each is right and writes one sheet of
before-and-after pairs per task.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from judge import judge
from scenes import sheet
from world import SIZE, draw, random_scene

GROUND_WORDS = {"hills": "green hills", "sea": "the sea", "desert": "the sandy desert", "mountains": "snowy mountains"}
SKY_WORDS = {"day": "under a sunny sky", "sunset": "at sunset", "night": "on a starry night"}
SHOWN = 8


class Studio:
    """Runs `safelight` on pictures in a folder that goes away."""

    def __init__(self, program: Path, model: Path | None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.at = Path(self._folder.name)
        (self.at / "none").mkdir()
        self._start = [str(program)]
        self._end = ["--quiet", "--models", str(self.at / "none")] + (["--model", str(model)] if model else [])

    def run(self, job: str, prompt: str, picture: np.ndarray, seed: int, *options: str, mask: np.ndarray | None = None) -> np.ndarray:
        Image.fromarray(picture).save(self.at / "in.png")
        masking = []
        if mask is not None:
            Image.fromarray(mask).save(self.at / "mask.png")
            masking = ["-m", str(self.at / "mask.png")]
        out = self.at / "out.png"
        out.unlink(missing_ok=True)
        call = [*self._start, job, prompt, "-i", str(self.at / "in.png"), *masking, "-o", str(out), "--seed", str(seed), *options]
        subprocess.run(call + self._end, check=True, stdout=subprocess.DEVNULL)
        return np.asarray(Image.open(out).convert("RGB"))


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[max(0, y0) : y1, max(0, x0) : x1] = 255
    return mask


def scenes(seed: int, wanted):
    """Endless scenes for which `wanted` holds."""
    rng = random.Random(seed)
    while True:
        scene = random_scene(rng)
        if wanted(scene):
            yield scene


def said(scene, thing: str = "") -> str:
    words = f"{GROUND_WORDS[scene.ground]} {SKY_WORDS[scene.sky]}"
    preposition = "over" if "balloon" in thing else "on"
    return f"{thing} {preposition} {words}" if thing else words


def balloon(studio: Studio, count: int):
    """A red hot air balloon in a masked patch of sky, where no sun is."""
    for idx, scene in zip(range(count), scenes(501, lambda s: s.thing == "none")):
        places = [x for place, x in (("left", 32), ("middle", 64), ("right", 96)) if place != scene.orb_place]
        x = places[idx % 2]
        picture = draw(scene)[0]
        after = studio.run("inpaint", "a red hot air balloon", picture, 900 + idx, "--denoising-strength", "1",
                           "--content", "latent noise", *ANCESTRAL, mask=box(x - 24, 16, x + 24, 76))
        seen = judge(after)
        yield picture, after, seen.thing == "balloon" and seen.colour == "red"


def erased(studio: Studio, count: int):
    """A house, masked, with a prompt that names only what is around it."""
    for idx, scene in zip(range(count), scenes(502, lambda s: s.thing == "house")):
        picture, x = draw(scene)[0], scene.thing_x
        after = studio.run("inpaint", said(scene), picture, 900 + idx, "--denoising-strength", "1",
                           "--content", "latent noise", mask=box(x - 28, 50, x + 28, 112))
        seen = judge(after)
        yield picture, after, seen.thing == "none" and seen.ground == scene.ground


def widened(studio: Studio, count: int):
    """Twice the width; right where no column on the old border stands out of the columns near it."""
    for idx, scene in zip(range(count), scenes(503, lambda s: s.thing in ("none", "house", "boat"))):
        picture = draw(scene)[0]
        after = studio.run("outpaint", said(scene), picture, 900 + idx, "--left", "64", "--right", "64")
        steps = np.abs(np.diff(after.astype(np.float32), axis=1)).mean((0, 2))  # between columns i and i + 1
        seams = [steps[at - 9 : at + 8] for at in (64, 192)]
        # The steepest column pair at a border against what pairs are elsewhere in the picture.
        usual = np.quantile(np.delete(steps, np.r_[55:72, 183:200]), 0.95)
        sky = [after[2:34, a:b].reshape(-1, 3).mean(0) for a, b in ((0, 64), (64, 192), (192, 256))]
        drift = max(np.abs(sky[0] - sky[1]).max(), np.abs(sky[2] - sky[1]).max())
        yield picture, after, max(s.max() for s in seams) < max(6.0, 1.5 * usual) and drift < 30


def night(studio: Studio, count: int):
    """A day picture remade as night: the sky changes, ground and thing stay where they are."""
    for idx, scene in zip(range(count), scenes(504, lambda s: s.sky == "day" and s.thing in ("house", "tree", "boat"))):
        picture = draw(scene)[0]
        thing = {"house": f"a house with a {scene.colour} roof", "boat": f"a sailboat with a {scene.colour} sail"}.get(scene.thing, "a tree")
        prompt = said(replace(scene, sky="night"), thing)
        after = studio.run("img2img", prompt, picture, 900 + idx, "--denoising-strength", STRENGTH)
        seen = judge(after)
        yield picture, after, (seen.sky, seen.ground, seen.thing, seen.place) == ("night", scene.ground, scene.thing, scene.place)


STRENGTH = "0.8"
# Fresh noise at every step lets what was begun outside of the patch move into it: 33 of 50 right without, 43 and more with it.
ANCESTRAL = ("--sampler", "Euler a", "--steps", "20", "--cfg-scale", "4")
TASKS = {"balloon": balloon, "erased": erased, "widened": widened, "night": night}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path, help="the safelight program")
    parser.add_argument("--model", type=Path, help="a checkpoint instead of the embedded one")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--out", type=Path, default=Path("uses"), help="folder for the sheets")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    studio = Studio(args.program, args.model)
    for name in args.tasks:
        before, after, right = zip(*TASKS[name](studio, args.count))
        print(f"{name}: {sum(right)} of {args.count} right; wrong: {[i for i, hit in enumerate(right) if not hit]}", flush=True)
        if name == "widened":
            rows = [np.concatenate([np.pad(b, ((0, 0), (64, 64), (0, 0)), constant_values=235), a]) for b, a in zip(before, after)]
            Image.fromarray(np.concatenate([np.concatenate(rows[i : i + 4], 1) for i in (0, 4)])).save(args.out / f"{name}.png")
        else:
            sheet([*before[:SHOWN], *after[:SHOWN]], columns=SHOWN).save(args.out / f"{name}.png")


if __name__ == "__main__":
    main()
