"""Writes a sheet of drawn scenes and prints their captions: a look at the training data."""

import argparse
import random

from PIL import Image

from world import SIZE, describe, draw, random_scene


def sheet(pictures, columns: int = 6, gap: int = 4) -> Image.Image:
    """Lays `[H, W, 3]` byte pictures out in rows."""
    rows = -(-len(pictures) // columns)
    step = SIZE + gap
    page = Image.new("RGB", (columns * step - gap, rows * step - gap), (255, 255, 255))
    for idx, picture in enumerate(pictures):
        page.paste(Image.fromarray(picture), (idx % columns * step, idx // columns * step))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default="scenes.png")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    pictures = []
    for _ in range(args.count):
        scene = random_scene(rng)
        print(describe(scene, rng).text)
        pictures.append(draw(scene)[0])
    sheet(pictures).save(args.out)


if __name__ == "__main__":
    main()
