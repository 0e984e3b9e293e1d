"""The demo model's world: what a scene is, how it is drawn and how it is described.

Training, exporting and judging live elsewhere. All randomness comes from the `random.Random`
that the caller passes in.

Positions are multiples of 8 pixels wherever that costs no charm: one latent cell covers 8 x 8
pixels, so an aligned door or star is the same few numbers every time.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128
CELL = 8
SUPERSAMPLE = 4

SKIES = ("day", "sunset", "night")
GROUNDS = ("hills", "sea", "desert", "mountains")
THINGS = ("none", "house", "boat", "balloon", "tree")
PLACES = ("left", "middle", "right")
COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 130, 30),
    "yellow": (250, 215, 50),
    "green": (50, 165, 60),
    "blue": (40, 90, 215),
    "purple": (125, 60, 170),
    "pink": (245, 140, 190),
    "white": (252, 252, 252),
    "black": (32, 32, 36),
}

# Colour stops from the top of the picture to the horizon.
SKY_STOPS = {
    "day": [(96, 172, 240), (180, 220, 250)],
    "sunset": [(128, 74, 150), (238, 112, 118), (255, 182, 84)],
    "night": [(10, 14, 48), (28, 34, 88)],
}
# (far, near) colours of each ground.
GROUND_COLOURS = {
    "hills": ((130, 198, 86), (84, 164, 64)),
    "sea": ((62, 140, 196), (28, 102, 168)),
    "desert": ((240, 210, 140), (226, 184, 104)),
    "mountains": ((122, 138, 166), (226, 236, 248)),
}
NIGHT_DIMMING = (0.50, 0.55, 0.75)
HORIZON = 72

CREAM = (250, 236, 200)
DOOR = (112, 70, 42)
WINDOW = (120, 190, 232)
WOOD = (120, 72, 40)
LEAVES = (24, 96, 44)
SUN = (255, 226, 64)
LOW_SUN = (255, 84, 48)
MOON = (248, 244, 214)


@dataclass(frozen=True)
class Scene:
    """Everything that decides a picture. Coordinates are pixels of the 128 x 128 picture."""

    sky: str
    ground: str
    orb_place: str
    thing: str
    colour: str | None  # None for a tree and for nothing
    place: str | None  # None for nothing
    orb_x: int
    thing_x: int
    thing_y: int
    relief: tuple[float, ...]  # numbers in [0, 1) that shape hills, dunes and peaks
    stars: tuple[tuple[int, int], ...] = field(default=())


def random_scene(rng: random.Random) -> Scene:
    """Draws a scene; houses, hills, daylight and red are somewhat favoured."""
    sky = rng.choices(SKIES, (40, 30, 30))[0]
    ground = rng.choices(GROUNDS, (40, 24, 16, 20))[0]
    if ground == "sea":
        thing = rng.choices(("none", "boat", "balloon"), (20, 65, 15))[0]
    else:
        thing = rng.choices(("none", "house", "balloon", "tree"), (13, 60, 14, 13))[0]
    colour = None
    if thing in ("house", "boat", "balloon"):
        colour = rng.choices(list(COLOURS), (32, 8, 9, 8, 12, 8, 8, 8, 7))[0]
    place = None if thing == "none" else rng.choice(PLACES)
    if thing == "balloon":  # never in front of the sun
        orb_place = rng.choice([p for p in PLACES if p != place])
    else:
        orb_place = rng.choice(PLACES)
    orb_x = {"left": 24, "middle": 64, "right": 104}[orb_place]
    thing_x = thing_y = 0
    if place is not None:
        thing_x = {"left": 32, "middle": 64, "right": 96}[place]
        thing_y = {"house": 104, "tree": 104, "boat": 96, "balloon": 40}[thing]
    stars: list[tuple[int, int]] = []
    if sky == "night":
        cells = [(cx, cy) for cx in range(16) for cy in range(0, 7)]
        rng.shuffle(cells)
        for cx, cy in cells:
            if len(stars) == 14:
                break
            if all(abs(cx - sx) + abs(cy - sy) > 2 for sx, sy in stars):
                stars.append((cx, cy))
    relief = tuple(rng.random() for _ in range(8))
    return Scene(sky, ground, orb_place, thing, colour, place, orb_x, thing_x, thing_y, relief, tuple(stars))


# ---------------------------------------------------------------- drawing


class _Canvas:
    """A supersampled picture and, beside it, how much of each pixel is foreground."""

    def __init__(self, picture: Image.Image) -> None:
        self.picture = picture
        self.mask = Image.new("L", picture.size, 0)
        self._colour = ImageDraw.Draw(self.picture)
        self._mask = ImageDraw.Draw(self.mask)

    def polygon(self, points, fill, foreground: bool) -> None:
        points = [(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points]
        self._colour.polygon(points, fill=fill)
        self._mask.polygon(points, fill=255 if foreground else 0)

    def box(self, x0, y0, x1, y1, fill) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, True)

    def disc(self, x, y, radius, fill, height: float = 1.0, foreground: bool = True) -> None:
        s = SUPERSAMPLE
        bounds = [(x - radius) * s, (y - radius * height) * s, (x + radius) * s - 1, (y + radius * height) * s - 1]
        self._colour.ellipse(bounds, fill=fill)
        self._mask.ellipse(bounds, fill=255 if foreground else 0)


def _sky(kind: str) -> Image.Image:
    stops = np.array(SKY_STOPS[kind], np.float32)
    at = np.clip(np.arange(SIZE * SUPERSAMPLE) / (HORIZON * SUPERSAMPLE), 0, 1) * (len(stops) - 1)
    column = np.stack([np.interp(at, range(len(stops)), stops[:, c]) for c in range(3)], 1)
    rows = np.repeat(column[:, None, :], SIZE * SUPERSAMPLE, 1)
    return Image.fromarray(np.round(rows).astype(np.uint8))


_SKY_CACHE: dict[str, Image.Image] = {}


def _wave(base, amplitude, period, phase):
    xs = np.arange(-2, SIZE + 3, 2)
    ys = base + amplitude * np.sin((xs / period + phase) * 2 * math.pi)
    return list(zip(xs.tolist(), ys.tolist())) + [(SIZE + 2, SIZE + 2), (-2, SIZE + 2)]


def _ground(canvas: _Canvas, scene: Scene) -> None:
    dim = NIGHT_DIMMING if scene.sky == "night" else (1, 1, 1)
    far, near = (tuple(round(v * d) for v, d in zip(c, dim)) for c in GROUND_COLOURS[scene.ground])
    r = scene.relief
    if scene.ground == "hills":
        canvas.polygon(_wave(HORIZON - 2, 5 + 2 * r[0], 76, r[1]), far, False)
        canvas.polygon(_wave(90, 4 + 2 * r[2], 104, r[3]), near, False)
    elif scene.ground == "desert":
        canvas.polygon(_wave(HORIZON, 3 + 2 * r[0], 104, r[1]), far, False)
        canvas.polygon(_wave(90, 5 + 2 * r[2], 76, r[3]), near, False)
    elif scene.ground == "sea":
        canvas.polygon([(-2, HORIZON), (130, HORIZON), (130, 130), (-2, 130)], far, False)
        canvas.polygon([(-2, 80), (130, 80), (130, 130), (-2, 130)], near, False)
    else:
        snow = near
        for x, height in ((20 + 8 * r[0], 26 + 8 * r[1]), (104 + 8 * r[2], 26 + 8 * r[3]), (60 + 8 * r[4], 36 + 8 * r[5])):
            top = 88 - height
            canvas.polygon([(x, top), (x + height * 1.1, 90), (x - height * 1.1, 90)], far, False)
            cap = height * 0.36
            canvas.polygon([(x, top), (x + cap * 1.1, top + cap), (x - cap * 1.1, top + cap)], snow, False)
        canvas.polygon(_wave(86, 2 + r[6], 104, r[7]), snow, False)


def _orb(canvas: _Canvas, scene: Scene) -> None:
    if scene.sky == "day":
        canvas.disc(scene.orb_x, 24, 12, SUN)
    elif scene.sky == "sunset":
        canvas.disc(scene.orb_x, 48, 14, LOW_SUN)
    else:
        canvas.disc(scene.orb_x, 24, 12, MOON)
        canvas.disc(scene.orb_x + 6, 20, 10, (15, 20, 60), foreground=False)


def draw_thing(canvas: _Canvas, thing: str, colour: str | None, x: int, y: int) -> None:
    """Draws a thing; `y` is its foot, for a balloon its middle."""
    paint = COLOURS.get(colour or "", CREAM)
    if thing == "house":
        canvas.box(x - 16, y - 24, x + 16, y, CREAM)
        canvas.polygon([(x, y - 48), (x + 22, y - 24), (x - 22, y - 24)], paint, True)
        canvas.box(x - 4, y - 16, x + 4, y, DOOR)
        canvas.box(x - 14, y - 18, x - 8, y - 10, WINDOW)
        canvas.box(x + 8, y - 18, x + 14, y - 10, WINDOW)
    elif thing == "boat":
        canvas.box(x - 1, y - 44, x + 1, y - 8, WOOD)
        canvas.polygon([(x - 21, y - 8), (x + 21, y - 8), (x + 14, y), (x - 14, y)], WOOD, True)
        canvas.polygon([(x + 2, y - 44), (x + 21, y - 11), (x + 2, y - 11)], paint, True)
        canvas.polygon([(x - 2, y - 38), (x - 2, y - 11), (x - 17, y - 11)], paint, True)
    elif thing == "balloon":
        canvas.polygon([(x - 13, y + 8), (x + 13, y + 8), (x + 4, y + 22), (x - 4, y + 22)], paint, True)
        canvas.disc(x, y, 16, paint)
        canvas.box(x - 4, y + 24, x + 4, y + 30, WOOD)
    elif thing == "tree":
        canvas.box(x - 3, y - 18, x + 3, y, WOOD)
        canvas.disc(x - 9, y - 24, 10, LEAVES)
        canvas.disc(x + 9, y - 24, 10, LEAVES)
        canvas.disc(x, y - 34, 13, LEAVES)


def draw(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The picture, `[128, 128, 3]` bytes, and its foreground mask, `[128, 128]` bytes."""
    if scene.sky not in _SKY_CACHE:
        _SKY_CACHE[scene.sky] = _sky(scene.sky)
    canvas = _Canvas(_SKY_CACHE[scene.sky].copy())
    for cx, cy in scene.stars:
        canvas.disc(cx * CELL + 4, cy * CELL + 4, 2, (255, 255, 255))
    _orb(canvas, scene)
    _ground(canvas, scene)
    draw_thing(canvas, scene.thing, scene.colour, scene.thing_x, scene.thing_y)
    small = [np.asarray(image.reduce(SUPERSAMPLE)) for image in (canvas.picture, canvas.mask)]
    return small[0], small[1]


def sprite(thing: str, colour: str | None, x: int, y: int) -> tuple[np.ndarray, np.ndarray]:
    """A thing alone on black, and its mask: what the judge looks for."""
    canvas = _Canvas(Image.new("RGB", (SIZE * SUPERSAMPLE, SIZE * SUPERSAMPLE)))
    draw_thing(canvas, thing, colour, x, y)
    small = [np.asarray(image.reduce(SUPERSAMPLE)) for image in (canvas.picture, canvas.mask)]
    return small[0], small[1]


# ---------------------------------------------------------------- captions

_SKY_WORDS = {
    "day": ["under a sunny sky", "on a sunny day", "under a blue sky", "under a clear blue sky", "on a bright day",
            "on a clear sunny day", "in the daytime", "in bright sunshine", "by day"],
    "sunset": ["at sunset", "under a sunset sky", "at dusk", "in the evening", "at sundown", "during sunset",
               "under an orange sunset sky", "in the light of the sunset", "under a pink and orange evening sky"],
    "night": ["at night", "under a starry sky", "on a starry night", "under the stars", "under a starry night sky",
              "in the dark night", "by night", "on a clear night", "at midnight"],
}
_SKY_TAGS = {
    "day": ["sunny sky", "sunny day", "blue sky", "bright day", "daytime", "sunny", "day"],
    "sunset": ["sunset", "sunset sky", "dusk", "evening", "orange sky", "evening sky", "sundown"],
    "night": ["starry night", "night sky", "starry sky", "night", "stars", "dark sky"],
}
_GROUND_WORDS = {
    "hills": ["green hills", "rolling green hills", "grassy hills", "hills", "the green hills", "rolling hills",
              "green grass", "a green meadow"],
    "sea": ["the sea", "the blue sea", "the ocean", "a calm sea", "the water", "blue water", "the open sea"],
    "desert": ["the sandy desert", "the desert", "a sandy desert", "sand dunes", "the sand", "desert sand",
               "yellow sand dunes"],
    "mountains": ["snowy mountains", "the snowy mountains", "snow-covered mountains", "the snow", "snowy peaks",
                  "mountains with snow", "white snowy mountains"],
}
_PLACE_WORDS = {
    "left": ["on the left", "to the left", "on the left side", "at the left"],
    "middle": ["in the middle", "in the center", "in the centre", "at the center"],
    "right": ["on the right", "to the right", "on the right side", "at the right"],
}
_PREFIXES = ["a picture of ", "a drawing of ", "an illustration of ", "a painting of ", "a flat illustration of "]


def _a(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _thing_words(scene: Scene, rng: random.Random) -> str:
    c = scene.colour
    if scene.thing == "house":
        home = rng.choice(["house", "house", "house", "small house", "cottage", "little house"])
        return rng.choice([f"{_a(home)} with {_a(c)} roof", f"{_a(home)} with {_a(c)} roof", f"{_a(c)}-roofed {home}",
                           f"{_a(home)} that has {_a(c)} roof", f"{_a(home)}, {c} roof", f"{c} roof house"])
    if scene.thing == "boat":
        boat = rng.choice(["sailboat", "sailboat", "boat", "sailing boat", "ship"])
        return rng.choice([f"{_a(boat)} with {_a(c)} sail", f"{_a(boat)} with {c} sails", f"{_a(c)} {boat}",
                           f"{_a(boat)} with {_a(c)} sail", f"{_a(c)}-sailed {boat}", f"{_a(boat)}, {c} sail"])
    if scene.thing == "balloon":
        return rng.choice([f"{_a(c)} hot air balloon", f"{_a(c)} balloon", f"a hot air balloon, {c}",
                           f"a balloon that is {c}", f"{_a(c)} hot-air balloon"])
    if scene.thing == "tree":
        return rng.choice(["a tree", "a green tree", "a single tree", "one tree", "a leafy tree"])
    return ""


def _orb_words(scene: Scene, rng: random.Random) -> str:
    orb = "moon" if scene.sky == "night" else "sun"
    return f"{rng.choice(['the ', 'the ', 'a ', ''])}{orb} {rng.choice(_PLACE_WORDS[scene.orb_place])}"


@dataclass(frozen=True)
class Caption:
    """A text and what it says: None where it says nothing (a thing is always named)."""

    text: str
    sky: str | None
    ground: str | None
    orb_place: str | None
    thing: str | None
    colour: str | None
    place: str | None


EMPTY_CAPTION = Caption("", None, None, None, None, None, None)


def describe(scene: Scene, rng: random.Random) -> Caption:
    """Words for a scene, in one of many orders; sky, ground and places are sometimes left out."""
    omit = rng.random()
    with_sky, with_ground = omit >= 0.06, not 0.06 <= omit < 0.12
    with_orb = rng.random() < 0.55
    with_place = scene.place is not None and rng.random() < 0.7
    thing = _thing_words(scene, rng)
    if thing and with_place:
        thing = f"{thing} {rng.choice(_PLACE_WORDS[scene.place])}"
    sky = rng.choice(_SKY_WORDS[scene.sky]) if with_sky else ""
    bare = rng.choice(_GROUND_WORDS[scene.ground]) if with_ground else ""
    preposition = rng.choice({"boat": ["on", "on", "at"], "balloon": ["over", "above", "over"]}.get(scene.thing, ["on", "in", "on"]))
    ground = f"{preposition} {bare}" if bare else ""
    orb = _orb_words(scene, rng) if with_orb else ""

    style = rng.random()
    if style < 0.25:  # comma tags in any order
        tags = [thing or rng.choice(["", "nothing else", "empty"]), bare,
                rng.choice(_SKY_TAGS[scene.sky]) if with_sky else "", orb]
        rng.shuffle(tags)
        text = ", ".join(t for t in tags if t)
    else:
        if not thing:
            bare = bare or "a landscape"
            thing, ground = rng.choice([(bare, ""), (bare, ""), (f"empty {bare}", ""), (f"a landscape with {bare}", "")])
        joined_orb = rng.choice([f", {orb}", f" with {orb}", f" and {orb}"]) if orb else ""
        if style < 0.65:
            text = " ".join(t for t in (thing, ground, sky) if t) + joined_orb
        elif style < 0.85:
            first = f"{sky}, " if sky else ""
            text = first + " ".join(t for t in (thing, ground) if t) + joined_orb
        else:
            last = f", {rng.choice(_SKY_TAGS[scene.sky])}" if sky else ""
            text = " ".join(t for t in (thing, ground) if t) + joined_orb + last
        if rng.random() < 0.15:
            text = rng.choice(_PREFIXES) + text
    text = text.strip() or "a landscape"
    return Caption(text, scene.sky if with_sky else None, scene.ground if with_ground else None,
                   scene.orb_place if with_orb else None, scene.thing, scene.colour,
                   scene.place if with_place else None)
