"""Random index expressions and what numpy makes of them: `testdata/golden/slice/numpy.txt`.

A line is `shape|expression|result`. The tensor has the elements 0, 1, 2, ... in row-major order, so the result
`shape:elements` says which elements the expression picks. `error` stands where numpy refuses.
"""

import argparse
import random
from pathlib import Path

import numpy

SHAPES = [(), (1,), (5,), (17,), (4, 6), (3, 1), (2, 3, 4), (3, 4, 5), (2, 1, 3, 2), (2, 3, 2, 2, 2), (0,), (3, 0), (0, 4, 2)]


def integer(rng, size):
    wide = rng.random() < 0.08
    return str(rng.randint(-size - 2, size + 1) if wide or size == 0 else rng.randint(-size, size - 1))


def slice_text(rng, size):
    bound = lambda: "" if rng.random() < 0.4 else str(rng.randint(-size - 3, size + 3))
    text = f"{bound()}:{bound()}"
    if rng.random() < 0.5:
        step = rng.choice([1, 2, 3, -1, -1, -2, -3, 7, -100, 0 if rng.random() < 0.1 else 1])
        text += f":{step}"
    return text


def list_text(rng, size, shape):
    if not shape:
        return integer(rng, size)
    return "[" + ", ".join(list_text(rng, size, shape[1:]) for _ in range(shape[0])) + "]"


def mask_text(rng, shape):
    if not shape:
        return rng.choice(["True", "False"])
    return "[" + ", ".join(mask_text(rng, shape[1:]) for _ in range(shape[0])) + "]"


def expression(rng, shape):
    parts, axis, common = [], 0, [(), (2,), (3,), (2, 1), (1, 3), (1,)]
    count = rng.randint(1, len(shape) + (1 if rng.random() < 0.05 else 0)) if shape else rng.randint(0, 1)
    fancy = rng.random() < 0.5
    lists = rng.choice([[(3,)], [(2,), (1,)], [(2, 1), (3,)], [(2, 3), (3,), (1,)], [(0,)], [(2,), (3,)]])
    while axis < count:
        size = shape[axis] if axis < len(shape) else 3
        roll = rng.random()
        if roll < 0.08:
            parts.append(rng.choice(["None", "np.newaxis"]))
            continue
        if roll < 0.16 and "..." not in parts or roll < 0.01:
            parts.append("...")
            axis += rng.randint(0, 1)
            continue
        if fancy and roll < 0.5:
            parts.append(list_text(rng, size, rng.choice(lists)))
        elif fancy and roll < 0.6:
            rank = rng.randint(1, max(1, min(2, len(shape) - axis)))
            own = list(shape[axis : axis + rank]) or [3]
            if rng.random() < 0.1:
                own[0] += 1
            if 0 in own:
                continue_text = slice_text(rng, size)
                parts.append(continue_text)
            else:
                parts.append(mask_text(rng, own))
                axis += len(own) - 1
        elif roll < 0.7:
            parts.append(integer(rng, size))
        else:
            parts.append(slice_text(rng, size))
        axis += 1
    text = ", ".join(parts)
    return text + "," if text and rng.random() < 0.05 else text or "()"


def result(shape, text):
    tensor = numpy.arange(int(numpy.prod(shape))).reshape(shape)
    try:
        picked = eval(f"tensor[{text}]", {"tensor": tensor, "np": numpy})
    except (IndexError, ValueError):
        return "error"
    picked = numpy.asarray(picked)
    return "x".join(map(str, picked.shape)) + ":" + " ".join(map(str, picked.ravel().tolist()))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("testdata/golden"))
    parser.add_argument("--count", type=int, default=700)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    lines, seen = [], set()
    while len(lines) < arguments.count:
        shape = rng.choice(SHAPES)
        text = expression(rng, shape)
        found = result(shape, text)
        if (shape, text) in seen or len(found) > 400 or found == "error" and rng.random() < 0.5:
            continue
        seen.add((shape, text))
        lines.append(f"{'x'.join(map(str, shape))}|{text}|{found}")
    path = arguments.out / "slice" / "numpy.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"# tools/golden/slices.py --seed {arguments.seed} --count {arguments.count}, numpy {numpy.__version__}"
    path.write_text("\n".join([head, *lines]) + "\n")


if __name__ == "__main__":
    main()
