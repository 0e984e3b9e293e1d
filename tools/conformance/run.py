#!/usr/bin/env python3
"""Holds any implementation to testdata/conformance/. Standard library only.

    python3 tools/conformance/run.py [--verdict compat|spec] [--folder FOLDER] -- COMMAND [ARGUMENT…]

COMMAND is run once per file, with the file's path behind its arguments: exit code 0 is "accepted", 1 is "refused", anything
else (or more than ten seconds) is a crash. Prints every disagreement; exits with 0 if there is none, else with 1.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SECONDS_MAX = 10


def verdict(command, path):
    try:
        done = subprocess.run([*command, str(path)], capture_output=True, timeout=SECONDS_MAX)
    except subprocess.TimeoutExpired:
        return f"still running after {SECONDS_MAX} s"
    return {0: "accept", 1: "reject"}.get(done.returncode, f"exit code {done.returncode}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verdict", choices=["compat", "spec"], default="compat")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[2] / "testdata" / "conformance")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    cases = json.loads((arguments.folder / "manifest.json").read_text(encoding="utf-8"))["cases"]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda case: verdict(arguments.command, arguments.folder / case["file"]), cases))
    wrong = [(case, what) for case, what in zip(cases, found) if what != case[arguments.verdict]]
    for case, what in wrong:
        print(f"{case['file']}: {what}, expected {case[arguments.verdict]} (rule {case['rule']}: {case['reason']})")
    print(f"{len(cases) - len(wrong)} of {len(cases)} files as expected ({arguments.verdict})")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
