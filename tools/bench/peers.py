"""Safelight and its peers, side by side on the same machine: one part of SD 1.5, or SDXL's UNet, in turns.

    python tools/bench/peers.py unet --program target/release/safelight --precision bf16,int8
    python tools/bench/peers.py unet --latent 32x32 --batch 2 --peers torch-bf16,openvino-bf16
    python tools/bench/peers.py vae --precision f32 --peers torch-f32,openvino-bf16
    python tools/bench/peers.py text --peers torch-f32
    python tools/bench/peers.py unet --family sdxl --latent 64x64 --precision bf16 --peers torch-bf16

Random weights of full size (no number depends on what they are). Every peer is a process of its own that loads once and
then waits; in each round one after the other does `--runs` forward passes while the rest sleep. Printed are the
medians over all rounds, the peak memory of each process, and how many times faster Safelight is in each of its precisions;
`--json FILE` keeps everything, with versions.

Peers: torch-f32, torch-bf16 (the better of contiguous and channels_last), compile-bf16 (torch.compile, frozen),
openvino-f32, openvino-bf16. They need the packages torch and diffusers, transformers for the text encoder, and openvino.
`--cpu avx2` limits all of them: SAFELIGHT_CPU, ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA.
SDXL's UNet has 2.6 billion weights: 5.2 GB in bf16, 10.3 GB in f32, for each peer that waits in memory; openvino starts from f32.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from report import report

LIMITS = {
    "avx2": {"SAFELIGHT_CPU": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {"SAFELIGHT_CPU": "avx512", "ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
}


def filled(make, dtype):
    """What `make` makes, with random weights in `dtype` from the beginning: no second copy, and no time for how torch would
    begin training."""
    import torch

    with torch.device("meta"):
        net = make()
    net = net.to(dtype).to_empty(device="cpu")
    with torch.no_grad():
        values = torch.rand(1 << 20) * 2 - 1
        for weight in net.parameters():
            if weight.dim() > 1:
                scaled = values * (3 / weight[0].numel()) ** 0.5
                for piece in weight.view(-1).split(values.numel()):
                    piece.copy_(scaled[:piece.numel()])
        for module in net.modules():
            if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
                module.weight.fill_(1)
            if getattr(module, "bias", None) is not None:
                module.bias.fill_(0)
    return net.eval()


def network(part, family, precision):
    """The module, and a function that makes its inputs from (batch, height, width)."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))
    if family == "sdxl":
        import models

        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        net = filled(lambda: models.unet_xl((320, 640, 1280), depths=(1, 2, 10)), dtype)

        class Conditioned(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net

            def forward(self, x, t, context, pooled, time_ids):
                added = {"text_embeds": pooled, "time_ids": time_ids}
                return self.net(x, t, context, added_cond_kwargs=added, return_dict=False)[0]

        def inputs(b, h, w):
            size = [8 * h, 8 * w]
            return (torch.randn(b, 4, h, w), torch.full((b,), 500), torch.randn(b, 77, 2048), torch.randn(b, 1280),
                    torch.tensor([[*size, 0, 0, *size]] * b))

        return Conditioned(), inputs
    if part == "unet":
        import models

        net = models.unet((320, 640, 1280, 1280), layers=2, context=768).eval()

        class Plain(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net

            def forward(self, x, t, context):
                return self.net(x, t, context, return_dict=False)[0]

        return Plain(), lambda b, h, w: (torch.randn(b, 4, h, w), torch.full((b,), 500), torch.randn(b, 77, 768))
    if part == "vae":
        from diffusers import AutoencoderKL

        net = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
                            down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4).eval()

        class Decoder(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net

            def forward(self, z):
                return self.net.decode(z, return_dict=False)[0]

        return Decoder(), lambda b, h, w: (torch.randn(b, 4, h, w),)
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    net = CLIPTextModel(config).eval()

    class Text(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, ids):
            return self.net(ids, return_dict=False)[0]

    return Text(), lambda b, h, w: (torch.randint(0, 49000, (b, 77)),)


def runner(peer, part, family, shape, threads):
    """A function that does one forward pass."""
    import torch

    torch.manual_seed(0)
    kind, precision = peer.split("-")
    net, inputs = network(part, family, precision if kind != "openvino" else "f32")
    # After the network: what golden files are made with asks for one thread and slow ways that never vary.
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    inputs = inputs(*shape)
    if kind == "openvino":
        import openvino

        model = openvino.convert_model(net, example_input=inputs)
        compiled = openvino.Core().compile_model(model, "CPU", {
            "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"})
        arrays = [x.numpy() for x in inputs]
        return lambda: compiled(arrays)
    if precision == "bf16":
        net = net.to(torch.bfloat16)
        inputs = tuple(x.to(torch.bfloat16) if x.is_floating_point() else x for x in inputs)
    if kind == "compile":
        import torch._inductor.config as inductor

        inductor.freezing = True
        net = torch.compile(net)

    def forward(net, inputs):
        with torch.no_grad():
            return net(*inputs)

    if kind == "compile" or part == "text":
        return lambda: forward(net, inputs)
    # Which layout is better is seen once, before anything is counted.
    last = [x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
    taken = []
    for format, given in ((torch.contiguous_format, inputs), (torch.channels_last, last)):
        net = net.to(memory_format=format)
        forward(net, given)
        start = time.perf_counter()
        forward(net, given)
        taken.append((time.perf_counter() - start, format, given))
    _, format, given = min(taken, key=lambda entry: entry[0])
    net = net.to(memory_format=format)
    return lambda: forward(net, given)


def serve(peer, part, family, shape, threads):
    """A peer's process: for each line it reads, one forward pass and a line with its seconds and the peak memory."""
    run = runner(peer, part, family, shape, threads)
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]), flush=True)


class Peer:
    def __init__(self, name, arguments, environment):
        command = [sys.executable, __file__, arguments.part, "--family", arguments.family, "--serve", name,
                   "--threads", str(arguments.threads), "--latent", arguments.latent, "--batch", str(arguments.batch)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True, env=environment)
        self.name, self.seconds, self.memory = name, [], 0
        self.ready = any(line == "ready\n" for line in iter(self.process.stdout.readline, ""))

    def round(self, runs):
        for _ in range(runs):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            seconds, self.memory = json.loads(self.process.stdout.readline())
            self.seconds.append(seconds)


class Safelight:
    def __init__(self, precision, arguments, environment):
        self.name, self.seconds, self.memory = f"safelight-{precision}", [], 0
        self.environment, self.ready = environment, True
        self.command = [arguments.program, "bench", arguments.part, "--family", arguments.family,
                        "--latent", arguments.latent, "--batch", str(arguments.batch), "--precision", precision,
                        "--threads", str(arguments.threads), "--json"]

    def round(self, runs):
        done = subprocess.run([*self.command, "--repeat", str(runs)], env=self.environment, check=True,
                              capture_output=True, text=True)
        answer = json.loads(done.stdout)
        self.seconds += answer["seconds"]
        self.memory = max(self.memory, answer["peak_memory_bytes"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["unet", "vae", "text"])
    parser.add_argument("--family", choices=["sd15", "sdxl"], default="sd15", help="sdxl: the UNet only")
    parser.add_argument("--program", default="target/release/safelight")
    parser.add_argument("--precision", default="f32", help="comma-separated: f32, bf16, int8")
    parser.add_argument("--latent", default="64x64", help="height x width")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peers", default="torch-f32,torch-bf16", help="comma-separated; see above")
    parser.add_argument("--cpu", choices=list(LIMITS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=2, help="forward passes of each in a round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.family == "sdxl" and arguments.part != "unet":
        parser.error("of SDXL only the UNet is measured")
    height, width = map(int, arguments.latent.split("x"))
    shape = (arguments.batch, height, width)
    if arguments.serve:
        return serve(arguments.serve, arguments.part, arguments.family, shape, arguments.threads)
    environment = os.environ | LIMITS.get(arguments.cpu, {}) | {"OMP_NUM_THREADS": str(arguments.threads)}
    names = [name for name in arguments.peers.split(",") if name]
    ours = [Safelight(precision, arguments, environment) for precision in arguments.precision.split(",")]
    contenders = ours + [Peer(name, arguments, environment) for name in names]
    for contender in contenders:
        if not contender.ready:
            sys.exit(f"{contender.name} did not start; try: {' '.join(contender.process.args)}")
    for _ in range(arguments.rounds):
        for contender in contenders:
            contender.round(arguments.runs)
    settings = {key: getattr(arguments, key) for key in ("part", "family", "latent", "batch", "precision", "cpu", "threads")}
    report(f"{arguments.part} of {arguments.family}, latent {arguments.latent}, batch {arguments.batch}, {arguments.threads} threads, "
           f"{arguments.cpu or 'all instructions'}", contenders, ours, settings, arguments.json)


if __name__ == "__main__":
    main()
