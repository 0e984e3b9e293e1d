"""Our reading of safetensors files against Hugging Face's safetensors, in the same run, ours and theirs in turn.

    cargo build --release -p safelight-store --example peers
    cargo build --release -p safelight-cli          # for the row `convert`
    cargo test --release -p safelight-store --lib --no-run   # for the rows `mapped`
    python tools/bench/format_peers.py --folder /tmp/peers --gb 4 --rounds 3

A row is the median of the rounds: wall seconds, and CPU seconds (user and system) of the whole process without what an
empty process of its kind takes. On a busy machine only the second number means much. `cold` means that the file's pages were dropped
(fsync, then POSIX_FADV_DONTNEED) before each run. `theirs` names what Hugging Face's side does:

* `map+touch`: safe_open, get_tensor of each, one byte of each page is read. Nothing is copied: the tensors lie in the page cache.
  The rows `mapped` are our way to the same: `store::map` and `Checkpoint::prefault`, after which every page is there; in the rows
  `mapped, looked at` one byte of each page is read then, by one thread.
* `owned`: the same, and then a clone of each tensor, so that it lies in memory of its own, as ours does.
* `save`: save_file of tensors that lie in memory; loading them is not counted in the wall seconds, but is in the CPU seconds.
* `torch`: torch.load(weights_only=True) of a .ckpt (tensors of f16 and f32 in `state_dict`, some training state beside them), then
  save_file of the state_dict. Here the whole process counts, with the import of torch or the start of `safelight convert`, and the row
  ends with the most memory each side had (resident, MB).
* `disk`: four threads read the file around the page cache, 8 MiB at a time, into the same few buffers: what the disk gives.
* `pread`: safe_open(backend="pread"), which reads each tensor into memory of its own.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

THEIRS = {
    "empty": "import torch, safetensors.torch",
    "header": "from safetensors import safe_open\nwith safe_open(path, 'pt') as f: len(f.keys())",
    "map+touch": """
import torch
from safetensors import safe_open
with safe_open(path, 'pt') as f:
    kept = [f.get_tensor(name) for name in f.keys()]
    for tensor in kept: tensor.reshape(-1).view(torch.uint8)[::4096].sum()
""",
    "owned": """
import torch
from safetensors import safe_open
with safe_open(path, 'pt') as f:
    kept = [f.get_tensor(name).clone() for name in f.keys()]
    for tensor in kept: tensor.reshape(-1).view(torch.uint8)[::4096].sum()
""",
    "pread": """
import torch
from safetensors import safe_open
with safe_open(path, 'pt', backend='pread') as f:
    kept = [f.get_tensor(name) for name in f.keys()]
    for tensor in kept: tensor.reshape(-1).view(torch.uint8)[::4096].sum()
""",
    "slice": "from safetensors import safe_open\nwith safe_open(path, 'pt') as f: f.get_slice('layer.0')[:, 100:200].clone()",
    "save": """
from safetensors.torch import load_file, save_file
tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
start = time.perf_counter()
save_file(tensors, sys.argv[2])
""",
    "torch": """
from safetensors.torch import save_file
save_file(torch.load(path, weights_only=True)["state_dict"], sys.argv[2])
""",
    "disk": """
import mmap, os
from concurrent.futures import ThreadPoolExecutor
file, piece = os.open(path, os.O_RDONLY | os.O_DIRECT), 8 << 20
def read(start):
    buffer = mmap.mmap(-1, piece)
    for at in range(start * piece, os.fstat(file).st_size, 4 * piece): os.preadv(file, [buffer], at)
with ThreadPoolExecutor(4) as pool: list(pool.map(read, range(4)))
""",
    "sha256": """
import hashlib
with open(path, 'rb') as f: hashlib.file_digest(f, 'sha256').hexdigest()
""",
}

# row, what is copied to memory (by us; by them): our arguments, their code, cold?
ROWS = [
    ("open, 20,000 tensors (headers)", ["open", "MANY"], "header", False),
    ("mapped, warm (nothing; nothing)", ["map", "BIG"], "map+touch", False),
    ("mapped, looked at, warm (nothing; nothing)", ["map+look", "BIG"], "map+touch", False),
    ("mapped, cold (nothing; nothing)", ["map", "BIG"], "map+touch", True),
    ("load, warm (all; all)", ["load", "BIG"], "owned", False),
    ("load, warm (all; all)", ["load", "BIG"], "pread", False),
    ("load, warm (all; nothing)", ["load", "BIG"], "map+touch", False),
    ("load, cold (all; all)", ["load", "BIG"], "owned", True),
    ("load, cold (all; all)", ["load", "BIG"], "pread", True),
    ("load, cold (all; nothing)", ["load", "BIG"], "map+touch", True),
    ("slice [:, 100:200], warm (the slice; the slice)", ["slice", "BIG", "layer.0", "[:, 100:200]"], "slice", False),
    ("save", ["save", "BIG", "OUT"], "save", False),
    ("verify, warm", ["verify", "BIG"], None, False),
    ("verify, cold", ["verify", "BIG"], "disk", True),
    ("sha256, warm", ["sha256", "BIG"], "sha256", False),
    ("sha256, cold", ["sha256", "BIG"], "sha256", True),
    ("sha256, cold", ["sha256", "BIG"], "disk", True),
    ("all hashes, warm", ["hash", "BIG"], None, False),
]


def make(folder, gigabytes):
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    big, many = folder / "big.safetensors", folder / "many.safetensors"
    count = max(1, round(gigabytes * 1e9 / (2 * 4096 * 2048)))
    if not big.exists():
        tensors = {f"layer.{i}": torch.randint(-30000, 30000, (4096, 2048), dtype=torch.int16) for i in range(count)}
        save_file({name: tensor.view(torch.bfloat16) for name, tensor in tensors.items()}, big)
    if not many.exists():
        save_file({f"model.layers.{i // 10}.block.{i % 10}.weight": torch.zeros(1) for i in range(20000)}, many)
    return {"BIG": big, "MANY": many, "OUT": folder / "out.safetensors"}


def make_ckpt(path, gigabytes):
    """What training Stable Diffusion leaves: weights of the shapes of its UNet, most of them f16, and values beside them."""
    import torch

    half = lambda *shape: torch.randint(0, 15000, shape, dtype=torch.int16).view(torch.float16)
    state, left, i = {}, gigabytes * 1e9, 0
    while left > 0:
        block = {
            "in_layers.0.weight": torch.rand(1280),
            "in_layers.0.bias": torch.rand(1280),
            "in_layers.2.weight": half(1280, 1280, 3, 3),
            "attn.to_q.weight": half(1280, 1280),
            "attn.to_k.weight": half(1280, 768),
            "ff.net.weight": torch.rand(2560, 1280),
            "proj.weight": half(320, 320),
            "proj.bias": half(320),
        }
        state.update({f"model.diffusion_model.block.{i}.{name}": tensor for name, tensor in block.items()})
        left -= sum(tensor.numel() * tensor.element_size() for tensor in block.values())
        i += 1
    training = {"epoch": 3, "global_step": 1000, "pytorch-lightning_version": "1.4.2", "lr_schedulers": []}
    torch.save({**training, "state_dict": state}, path)


def convert(arguments, out):
    """The row of `convert`: whole processes, and the most memory they had."""
    path = arguments.folder / "big.ckpt"
    if not path.exists():
        make_ckpt(path, arguments.gb)
    code = "import sys, torch\npath = sys.argv[1]\n" + THEIRS["torch"]
    commands = [
        [arguments.safelight, "convert", str(path), str(out), "--quiet", "--json"],
        [sys.executable, "-c", code, str(path), str(out)],
    ]
    runs = [[], []]
    for _ in range(arguments.rounds):
        for command, seen in zip(commands, runs):
            settle(out)
            warm(path)
            start = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
            process.returncode = status
            if status:
                sys.exit(f"{command[0]} failed")
            seen.append((wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024))
    settle(out)
    memory = [statistics.median(run[2] for run in seen) for seen in runs]
    name = f"convert .ckpt, warm; {memory[0]:.0f} and {memory[1]:.0f} MB"
    report(arguments.json, name, "torch", *runs)


def drop(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def run(command):
    """Wall and CPU seconds; ours and theirs print the wall seconds of the work alone."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return float(printed.splitlines()[-1].split()[0]), cpu


def mapped(path, looked_at):
    """Opens a file mapped: a test of `store`, the one place with unsafe code. Seconds until all pages are there, and CPU seconds."""
    built = subprocess.run(
        ["cargo", "test", "--release", "-p", "safelight-store", "--lib", "--no-run", "--message-format", "json"],
        check=True, capture_output=True, text=True,
    )
    messages = map(json.loads, built.stdout.splitlines())
    tests = next(message["executable"] for message in messages if message.get("executable"))
    only = [tests, "--ignored", "--exact", "map::tests::speed_of_a_map", "--nocapture"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "SAFELIGHT_BENCH_MAP": str(path)}
    printed = subprocess.run(only, check=True, capture_output=True, text=True, env=environment).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = next(line for line in printed.splitlines() if "map " in line and line.split()[-4] == "map")
    return float(line.split()[-2 if looked_at else -3]), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def theirs(kind, path, out):
    imports = "import sys, time, torch, safetensors.torch, hashlib\npath = sys.argv[1]\nstart = time.perf_counter()\n"
    code = imports + THEIRS[kind] + "\nprint(time.perf_counter() - start)"
    return run([sys.executable, "-c", code, str(path), str(out)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the test files are made, and kept")
    parser.add_argument("--gb", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="rows whose name contains this: `load, cold`, `mapped`, `convert`")
    parser.add_argument("--peers", default="target/release/examples/peers", help="our program")
    parser.add_argument("--safelight", default="target/release/safelight", help="our program, for the row `convert`")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    is_wanted = lambda name: not arguments.only or arguments.only in name
    rows = [row for row in ROWS if is_wanted(row[0])]
    files = make(arguments.folder, arguments.gb) if rows else {}
    if not arguments.json:
        print("| row | theirs | ours s | theirs s | ratio | ours CPU s | theirs CPU s | CPU ratio |")
        print("|---|---|---|---|---|---|---|---|")
    for name, ours, kind, cold in rows:
        path = next(files[part] for part in ours if part in files)
        command = [arguments.peers, *(str(files.get(part, part)) for part in ours)]
        mine, other = [], []
        for _ in range(arguments.rounds):
            ready = drop if cold else warm
            ready(path)
            settle(files["OUT"])
            mine.append(mapped(path, "look" in ours[0]) if ours[0].startswith("map") else run(command))
            if kind:
                ready(path)
                settle(files["OUT"])
                wall, cpu = theirs(kind, path, files["OUT"])
                other.append((wall, max(0.0, cpu - theirs("empty", path, files["OUT"])[1])))
        settle(files["OUT"])
        report(arguments.json, name, kind, mine, other)
    if is_wanted("convert .ckpt, warm"):
        convert(arguments, arguments.folder / "out.safetensors")


def settle(out):
    """What an earlier save left is deleted and need not be written any more."""
    if out.exists():
        out.unlink()
        os.sync()


def warm(path):
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass


def report(as_json, name, kind, mine, other):
    middle = lambda runs, which: statistics.median(pair[which] for pair in runs) if runs else None
    row = {"row": name, "theirs": kind}
    for which, unit in ((0, "wall_s"), (1, "cpu_s")):
        row[f"ours_{unit}"], row[f"theirs_{unit}"] = middle(mine, which), middle(other, which)
    if as_json:
        print(json.dumps(row), flush=True)
        return
    show = lambda number: "" if number is None else f"{number:.3f}"
    ratio = lambda a, b: "" if b is None or not a else f"{b / a:.2f}"
    wall = show(row["ours_wall_s"]), show(row["theirs_wall_s"]), ratio(row["ours_wall_s"], row["theirs_wall_s"])
    cpu = show(row["ours_cpu_s"]), show(row["theirs_cpu_s"]), ratio(row["ours_cpu_s"], row["theirs_cpu_s"])
    print("|", " | ".join([name, kind or "", *wall, *cpu]), "|", flush=True)


if __name__ == "__main__":
    main()
