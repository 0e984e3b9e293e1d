"""Says from pixels alone what a picture shows: sky, ground, thing, its colour and its place.

Sky and ground are two rules of three comparisons on a median colour (README.md spells them out
for reimplementation); things are found by laying every drawn sprite over the picture.
Run as a command, it judges drawn scenes and prints how often it is right.
"""

from __future__ import annotations

import argparse
import functools
import random
from dataclasses import dataclass

import numpy as np

from world import COLOURS, draw, random_scene, sprite

SKY_ROWS = slice(2, 34)
GROUND_ROWS = slice(104, 126)
THING_LIMIT = 36.0  # mean absolute error of a found thing's pixels, in 255ths


@dataclass(frozen=True)
class Verdict:
    sky: str
    ground: str
    thing: str
    colour: str | None
    place: str | None
    error: float


def judge(picture: np.ndarray) -> Verdict:
    """Judges a `[128, 128, 3]` byte picture."""
    thing, colour, place, error = _thing(picture)
    return Verdict(sky_of(picture), ground_of(picture), thing, colour, place, error)


def sky_of(picture: np.ndarray) -> str:
    r, g, b = np.median(picture[SKY_ROWS].reshape(-1, 3).astype(np.float32), 0)
    if (r + g + b) / 3 < 80:
        return "night"
    return "day" if b > r + 25 and g > r + 10 else "sunset"


def ground_of(picture: np.ndarray) -> str:
    r, g, b = np.median(picture[GROUND_ROWS].reshape(-1, 3).astype(np.float32), 0)
    if b > g and b > r:
        return "mountains" if r > 0.55 * b else "sea"
    return "hills" if g > r * 1.12 else "desert"


@functools.cache
def _sprites():
    """Every thing at every place and colour, cut to its box: (labels, y, x, pixels, mask)."""
    found = []
    heights = {"house": (104, 112), "tree": (104, 112), "boat": (96, 104), "balloon": (32, 40)}
    for thing, ys in heights.items():
        for colour in [None] if thing == "tree" else list(COLOURS):
            for place, xs in {"left": (24, 32, 40), "middle": (56, 64, 72), "right": (88, 96, 104)}.items():
                for x in xs:
                    for y in ys:
                        pixels, mask = sprite(thing, colour, x, y)
                        inside = np.argwhere(mask > 250)
                        (y0, x0), (y1, x1) = inside.min(0), inside.max(0) + 1
                        box = (slice(y0, y1), slice(x0, x1))
                        found.append(((thing, colour, place), box, pixels[box].astype(np.float32), mask[box] > 250))
    return found


def _thing(picture: np.ndarray):
    """The sprite that fits best; nothing, when even that fits badly or plain background fits better."""
    best = ("none", None, None, THING_LIMIT)
    picture = picture.astype(np.float32)
    empty = np.abs(picture - np.median(picture, 1, keepdims=True))  # distance to each row's usual colour
    for labels, box, pixels, mask in _sprites():
        error = float(np.abs(picture[box] - pixels)[mask].mean())
        if error < best[3] and error < empty[box][mask].mean():
            best = (*labels, error)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    args = parser.parse_args()
    rng = random.Random(99)
    right = dict.fromkeys(("sky", "ground", "thing", "colour", "place"), 0)
    for _ in range(args.count):
        scene = random_scene(rng)
        verdict = judge(draw(scene)[0])
        for name in right:
            right[name] += getattr(verdict, name) == getattr(scene, name)
    print(" ".join(f"{name} {count / args.count:.1%}" for name, count in right.items()))


if __name__ == "__main__":
    main()
