"""Says from pixels alone what a picture shows: sky, ground, sun or moon and its place, thing, its colour and its place.

Sky and ground are two rules of three comparisons on a median colour (README.md spells them out
for reimplementation); things are found by laying every drawn sprite over the picture,
sun and moon by counting pixels of their colour inside a disc at each place and in a ring around it. Run as a command, it judges drawn scenes and prints how often it is right.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from world import COLOURS, LOW_SUN, MOON, PLACES, SUN, draw, random_scene, sprite

SKY_ROWS = slice(2, 34)
GROUND_ROWS = slice(104, 126)
ORB_TOLERANCE = 60  # largest difference of a channel, in 255ths
ORB_SHARE, ORB_SHARE_NIGHT = 0.35, 0.2  # of a disc's pixels; mountains may hide part of a sun, a moon is a crescent
SCENES = 4  # in the file of sprites
THING_LIMIT = 36.0  # mean absolute error of a found thing's pixels, in 255ths


@dataclass(frozen=True)
class Verdict:
    sky: str
    ground: str
    orb_place: str | None
    thing: str
    colour: str | None
    place: str | None
    error: float


def judge(picture: np.ndarray) -> Verdict:
    """Judges a `[128, 128, 3]` byte picture."""
    thing, colour, place, error, covered = _thing(picture)
    sky = sky_of(picture)
    return Verdict(sky, ground_of(picture), orb_place_of(picture, sky, covered), thing, colour, place, error)


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


def orb_place_of(picture: np.ndarray, sky: str, covered: np.ndarray) -> str | None:
    """Where the sun (by night the moon) stands; None when there is none, or more than one.

    Pixels `covered` by the thing don't count: a red balloon is no sun.
    """
    colour, y, radius = {"day": (SUN, 24, 12), "sunset": (LOW_SUN, 48, 14), "night": (MOON, 24, 12)}[sky]
    alike = np.abs(picture.astype(np.float32) - colour).max(-1) < ORB_TOLERANCE
    alike &= ~covered
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    found = []
    for place, x in zip(PLACES, (24, 64, 104)):
        inside = []
        for dx in (-8, -4, 0, 4, 8):
            distance = np.hypot(rows - y + 0.5, columns - x - dx + 0.5)
            disc, ring = distance < radius - 1, (distance > radius + 2) & (distance < radius + 7) & (rows < 72)
            inside.append(alike[disc].mean() - alike[ring].mean())
        found.append((max(inside), place))
    share = ORB_SHARE_NIGHT if sky == "night" else ORB_SHARE
    seen = [place for value, place in sorted(found, reverse=True) if value > share]
    return seen[0] if len(seen) == 1 else None


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
    """The sprite that fits best, and the pixels it covers; nothing, when even that fits badly or plain background fits better."""
    best = ("none", None, None, THING_LIMIT)
    covered = np.zeros(picture.shape[:2], bool)
    picture = picture.astype(np.float32)
    empty = np.abs(picture - np.median(picture, 1, keepdims=True))  # distance to each row's usual colour
    for labels, box, pixels, mask in _sprites():
        error = float(np.abs(picture[box] - pixels)[mask].mean())
        if error < best[3] and error < empty[box][mask].mean():
            best = (*labels, error)
            covered[:] = False
            covered[box] = mask
    return *best, covered


def sprites_file(path: Path) -> None:
    """Writes every thing in every colour once, with its mask and where its boxes are, and some judged scenes, for tests that judge without this code."""
    tensors, boxes = {}, {}
    for (thing, colour, place), box, pixels, mask in _sprites():
        name = f"{thing} {colour}" if colour else thing
        rgba = np.dstack([np.where(mask[..., None], pixels, 0), mask * 255]).astype(np.uint8)
        boxes.setdefault(name, []).append([place, int(box[0].start), int(box[1].start)])
        assert (tensors.setdefault(name, rgba) == rgba).all(), f"{name} is drawn otherwise at {place}"
    rng, verdicts = random.Random(77), []
    for idx in range(SCENES):
        picture = draw(random_scene(rng))[0]
        tensors[f"scene.{idx}"] = picture
        verdict = vars(judge(picture))
        verdicts.append({k: verdict[k] for k in ("sky", "ground", "orb_place", "thing", "colour", "place")})
    save_file(tensors, path, {"boxes": json.dumps(boxes), "verdicts": json.dumps(verdicts), "numpy": np.__version__})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--sprites", type=Path, help="write the sprites to this safetensors file, and judge nothing")
    args = parser.parse_args()
    if args.sprites:
        sprites_file(args.sprites)
        return
    rng = random.Random(99)
    right = dict.fromkeys(("sky", "ground", "orb_place", "thing", "colour", "place"), 0)
    for _ in range(args.count):
        scene = random_scene(rng)
        verdict = judge(draw(scene)[0])
        for name in right:
            right[name] += getattr(verdict, name) == getattr(scene, name)
    print(" ".join(f"{name} {count / args.count:.1%}" for name, count in right.items()))


if __name__ == "__main__":
    main()
