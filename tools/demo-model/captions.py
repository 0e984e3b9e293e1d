"""The 200 captions nobody trains on, in `testdata/demo/captions.json`; run as a command, it writes them.

Each entry gives what its caption says: sky, ground, thing, colour, place, and where sun or moon stand. What is not said is left out.
"""

import argparse
import json
import random
from pathlib import Path

from world import Caption, Scene, describe, random_scene

PATH = Path(__file__).resolve().parents[2] / "testdata" / "demo" / "captions.json"
COUNT = 200


def held_out() -> list[dict]:
    return json.loads(PATH.read_text())


class Describer:
    """Describes scenes in words that are not among the held-out captions."""

    def __init__(self) -> None:
        self._held_out = {entry["caption"] for entry in held_out()} if PATH.exists() else set()

    def __call__(self, scene: Scene, rng: random.Random) -> Caption:
        while (caption := describe(scene, rng)).text in self._held_out:
            pass
        return caption


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes held-out captions of the world as it is now.")
    parser.add_argument("--out", type=Path, required=True, help="a new file; one that is there is not overwritten")
    out = parser.parse_args().out
    if out.exists():
        parser.error(f"{out} is there already, and figures refer to it: choose another name")
    rng = random.Random(20_000_002)
    entries: list[dict] = []
    while len(entries) < COUNT:
        caption = describe(random_scene(rng), rng)
        if any(e["caption"] == caption.text for e in entries):
            continue
        said = ("sky", "ground", "orb_place", "thing", "colour", "place")
        entry = {"caption": caption.text} | {k: v for k in said if (v := getattr(caption, k)) is not None}
        entries.append(entry)
    lines = ",\n".join("  " + json.dumps(entry) for entry in entries)
    out.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
