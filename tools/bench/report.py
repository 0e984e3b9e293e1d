"""What the benches that set Safelight beside its peers print and keep."""

import json
import platform
import statistics
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "diffusers", "transformers", "openvino")


def versions():
    """Of those packages that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return found


def report(title, contenders, ours, settings, path=None):
    """Prints each contender's median seconds, peak memory and how many times as long as each of `ours` it takes; writes all of it to
    `path` as JSON, with `settings` and versions. A contender has `name`, `seconds` (a list) and `memory` (bytes)."""
    print(f"{title}; how many times as long as ours:")
    print(" " * 44 + "".join(f"{own.name.removeprefix('safelight-'):>9}" for own in ours))
    rows = []
    for contender in contenders:
        middle = statistics.median(contender.seconds)
        ratios = {own.name: middle / statistics.median(own.seconds) for own in ours}
        rows.append(dict(name=contender.name, median_s=middle, seconds=contender.seconds,
                         peak_memory_bytes=contender.memory, ratios=ratios))
        print(f"{contender.name:20} {middle:8.3f} s   {contender.memory / 1e9:5.2f} GB  "
              + "".join(f"{ratio:8.2f}x" for ratio in ratios.values()))
    if path:
        machine = dict(cpu=platform.processor() or platform.machine(), versions=versions())
        path.write_text(json.dumps(dict(machine=machine, settings=settings, rows=rows), indent=1))
