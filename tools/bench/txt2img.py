"""A whole drawing, from the start of a process to the PNG on disk: Safelight and its peers, in turns.

    python tools/bench/txt2img.py MODEL.safetensors --program target/release/safelight
    python tools/bench/txt2img.py MODEL.safetensors --precision bf16,bf16-low,int8 --sd-cpp PATH/TO/sd-cli

MODEL is a single-file checkpoint of SD 1.5, f16 as people have it; random weights do as well (`cargo run --release -p
safelight-diffusion --example big_sd15 -- MODEL.safetensors` writes some). All draw 512×512 with DPM++ 2M, Karras' schedule,
guidance 7 and the same prompt. diffusers loads the same weights in bf16 from a folder that `safelight convert` makes of MODEL
once, before anything is timed; `--sd-cpp` names the program of stable-diffusion.cpp, which reads MODEL itself. One step
with each set of its flags that may be the fastest tells which is; with that it draws once, in the first round, for it takes long. The file is
read before, so that it is in memory for all.

Printed are the medians of the wall-clock seconds, the peak memory of each process and how many times as long as Safelight each
takes; `--json FILE` keeps everything, with versions. `bf16-low` is bf16 with `--low-memory`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import report

PROMPT = "a lighthouse on a cliff above the sea, evening light, detailed oil painting"
NEGATIVE = "blurry, text"
SEED = 7


def diffusers(folder, out, steps, threads):
    """A process of its own: what a script of a few lines does."""
    import torch

    torch.set_num_threads(threads)
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, safety_checker=None)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    pipe.set_progress_bar_config(disable=True)
    image = pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=steps, guidance_scale=7.0,
                 height=512, width=512, generator=torch.Generator("cpu").manual_seed(SEED)).images[0]
    image.save(out)


class Contender:
    def __init__(self, name, command, out):
        self.name, self.command, self.out = name, command, out
        self.seconds, self.memory = [], 0

    def run(self):
        self.out.unlink(missing_ok=True)
        start = time.perf_counter()
        process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status != 0 or not self.out.read_bytes().startswith(b"\x89PNG"):
            sys.exit(f"{self.name} drew nothing; try: {' '.join(map(str, self.command))}")
        self.seconds.append(seconds)
        self.memory = max(self.memory, usage.ru_maxrss * 1024)
        return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a single-file checkpoint of SD 1.5")
    parser.add_argument("--program", default="target/release/safelight")
    parser.add_argument("--precision", default="bf16", help="comma-separated: f32, bf16, int8, each also with -low")
    parser.add_argument("--peers", default="diffusers", help="diffusers, or nothing")
    parser.add_argument("--sd-cpp", help="the program of stable-diffusion.cpp")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--draw", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.draw:
        return diffusers(arguments.model, arguments.draw, arguments.steps, arguments.threads)
    steps, threads = str(arguments.steps), str(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        contenders = []
        for precision in arguments.precision.split(","):
            out = scratch / f"{precision}.png"
            contenders.append(Contender(f"safelight-{precision}", [
                arguments.program, "txt2img", PROMPT, "-n", NEGATIVE, "--model", arguments.model, "--steps", steps,
                "--cfg-scale", "7", "--seed", str(SEED), "--size", "512", "--sampler", "DPM++ 2M", "--schedule", "Karras",
                "--precision", precision.removesuffix("-low"), "--threads", threads, "--quiet", "-o", out,
                *(["--low-memory"] if precision.endswith("-low") else [])], out))
        ours = list(contenders)
        if arguments.peers == "diffusers":
            folder, out = scratch / "diffusers", scratch / "diffusers.png"
            subprocess.run([arguments.program, "convert", arguments.model, folder, "--to", "diffusers"], check=True,
                           capture_output=True)
            contenders.append(Contender("diffusers-bf16", [
                sys.executable, __file__, folder, "--draw", out, "--steps", steps, "--threads", threads], out))
        tried = {}
        if arguments.sd_cpp:
            out = scratch / "sd-cpp.png"

            def command(flags, steps):
                return [arguments.sd_cpp, "-m", arguments.model, "-p", PROMPT, "-n", NEGATIVE, "--steps", steps,
                        "--cfg-scale", "7", "-s", str(SEED), "-W", "512", "-H", "512", "--sampling-method", "dpm++2m",
                        "--scheduler", "karras", "-t", threads, "-o", out, *flags]

            # One step tells which flags are best.
            for flags in ([], ["--diffusion-fa"], ["--type", "q8_0"], ["--vae-conv-direct"]):
                tried[" ".join(flags) or "none"] = Contender("stable-diffusion.cpp", command(flags, "1"), out).run()
            best = min(tried, key=tried.get)
            contenders.append(Contender("stable-diffusion.cpp", command([] if best == "none" else best.split(), steps), out))
            print("stable-diffusion.cpp, 1 step:", ", ".join(f"{flags} {taken:.1f} s" for flags, taken in tried.items()))
        with open(arguments.model, "rb") as file:
            while file.read(1 << 24):
                pass
        for turn in range(arguments.rounds):
            for contender in contenders:
                if turn == 0 or contender.name != "stable-diffusion.cpp":
                    contender.run()
    settings = dict(steps=arguments.steps, threads=arguments.threads, flags_tried=tried)
    report(f"512×512, {steps} steps of DPM++ 2M Karras, guidance 7, {threads} threads, from the start to the PNG",
           contenders, ours, settings, arguments.json)


if __name__ == "__main__":
    main()
