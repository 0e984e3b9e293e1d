"""Golden files of what trades fidelity for time: guidance on part of the calls, step caching, token merging.

Step caching is the `DeepCache` package's, token merging `tomesd`'s, both around diffusers' networks. Guidance on part of the calls is
decided by diffusers' own guider, and for A1111 by the condition of its `sd_samplers_cfg_denoiser.py`, written down here.
"""

import contextlib
import types
from unittest import mock

import tomesd
import torch
from DeepCache import DeepCacheSDHelper
from diffusers.guiders import ClassifierFreeGuidance

import models
import pipeline_diffusers
import pipeline_kdiffusion
from common import clip_tokenizer, noise, save, sensitivity

# case: layout, seed, batch, (height, width), timesteps of the kept and of the cached passes
CACHED = {
    "deep_s2_11x5": ("unet_s2", 71, 2, (11, 5), (801, 781)),
    "deep_s2_8x16": ("unet_s2", 72, 1, (8, 16), (401, 361)),
}
# The package numbers three layers a level, which is what two residual blocks and a change of size make.
BRANCHES = range(12)
# case: layout, seed, batch, (height, width), part of the tokens to merge
MERGED = {
    "merged_s1_16x16_50": ("unet_s1", 73, 2, (16, 16), 0.5),
    "merged_s1_9x13_30": ("unet_s1", 74, 1, (9, 13), 0.3),
    "merged_s2_12x7_75": ("unet_s2", 75, 2, (12, 7), 0.75),
    "merged_m1_8x8_10": ("unet_m1", 76, 1, (8, 8), 0.1),
}
KDIFFUSION = {
    "txt2img_euler_interval": dict(job="txt2img", sampler="Euler", schedule="Uniform", steps=10, cfg_start=0.2, cfg_end=0.75),
    "img2img_heun_interval": dict(job="img2img", sampler="Heun", schedule="Uniform", steps=6, cfg_start=0.3, image_seed=2100),
    "txt2img_dpmpp_2m_interval": dict(job="txt2img", sampler="DPM++ 2M", schedule="Karras", steps=8, cfg_end=0.5,
                                      negative_prompt=" ".join(["a grey blurred thing without any light"] * 12)),
    "txt2img_euler_merged": dict(job="txt2img", sampler="Euler", schedule="Uniform", token_merging=0.5, width=72, height=56),
}
DIFFUSERS = {
    "txt2img_euler_interval": dict(job="txt2img", sampler="Euler", steps=10, cfg_start=0.2, cfg_end=0.75),
    "img2img_ddim_interval": dict(job="img2img", sampler="DDIM", steps=8, cfg_start=0.35, image_seed=1100),
    "txt2img_euler_cached": dict(job="txt2img", sampler="Euler", steps=8, cache_interval=3, cache_branch=0),
    "txt2img_ddim_cached_deeper": dict(job="txt2img", sampler="DDIM", steps=7, cache_interval=2, cache_branch=1, width=72, height=56),
    "img2img_dpmpp_2m_cached": dict(job="img2img", sampler="DPM++ 2M", steps=9, cache_interval=2, cache_branch=0,
                                    image_seed=1200),
    "inpaint_euler_cached": dict(job="inpaint", sampler="Euler", steps=8, cache_interval=3, cache_branch=0, image_seed=1300),
    "txt2img_ddim_merged": dict(job="txt2img", sampler="DDIM", token_merging=0.4),
}
USUAL = dict(cfg_start=0.0, cfg_end=1.0, cache_interval=1, cache_branch=0, token_merging=0.0)


class Interval(pipeline_kdiffusion.Guided):
    """Guidance between two parts of A1111's count of calls; outside of it the prompt alone."""

    case = None

    def __init__(self, *arguments):
        super().__init__(*arguments)
        case, self.calls, self.scale = Interval.case, 0, self.cfg_scale
        taken = case["steps"]
        if case["job"] != "txt2img":
            taken = int(min(case["strength"], 0.999) * taken) + 1
        self.total = taken * (2 if case["sampler"] == "Heun" else 1)

    def __call__(self, x, sigma):
        start, end = Interval.case["cfg_start"], Interval.case["cfg_end"]
        early = start != 0 and self.calls / self.total <= start
        late = end != 1 and self.calls >= int(end * self.total)
        self.cfg_scale = 1 if early or late else self.scale
        self.calls += 1
        return super().__call__(x, sigma)


@contextlib.contextmanager
def interval(pipe, case):
    """The same answer for both prompts where diffusers' guider is off: guidance then does nothing."""
    guider, forward, calls = ClassifierFreeGuidance(start=case["cfg_start"], stop=case["cfg_end"]), pipe.unet.forward, [0]

    def guided(x, t, *arguments, **options):
        answer = forward(x, t, *arguments, **options)
        count = case["steps"] if case["job"] == "txt2img" else int(case["steps"] * case["strength"])
        guider.set_state(step=calls[0], num_inference_steps=count, timestep=t)
        calls[0] += 1
        if not guider._is_cfg_enabled():
            text = answer[0].chunk(2)[1]
            answer = (torch.cat([text, text]), *answer[1:])
        return answer

    pipe.unet.forward = guided
    yield
    pipe.unet.forward = forward


@contextlib.contextmanager
def caching(pipe, case):
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=case["cache_interval"], cache_branch_id=case["cache_branch"])
    helper.enable()
    yield
    helper.disable()


def around(base, case):
    """`base` with its calls inside of what the case asks for."""
    wrapper = caching if case["cache_interval"] > 1 else interval

    class Around(base):
        def __call__(self, *arguments, **options):
            with wrapper(self, case):
                return super().__call__(*arguments, **options)

    return Around


def cached(out):
    for name, (layout, seed, batch, (height, width), (first, second)) in CACHED.items():
        unet = models.build(layout, seed)["unet"]
        x = [noise(seed + i, batch, 4, height, width) for i in (0, 100)]
        context = noise(seed + 1000, batch, 77, unet.config.cross_attention_dim)
        times = [torch.tensor(first), torch.tensor(second)]
        outputs = {}
        for branch in BRANCHES:
            pipe = types.SimpleNamespace(unet=unet, scheduler=types.SimpleNamespace(timesteps=torch.stack(times)))
            with caching(pipe, dict(cache_interval=2, cache_branch=branch)), torch.no_grad():
                unet(x[0], times[0], context)
                outputs[f"out.branch.{branch}"] = unet(x[1], times[1], context).sample
        save(out, f"shortcuts/{name}", {"in.x.0": x[0], "in.x.1": x[1], "in.t": torch.stack(times).float(),
                                        "in.context": context, **outputs}, "shortcuts.py", 1e-4, layout=layout, seed=seed)


def merged(out):
    for name, (layout, seed, batch, (height, width), ratio) in MERGED.items():
        unet = models.build(layout, seed)["unet"]
        x, t = noise(seed, batch, 4, height, width), torch.tensor(500)
        context = noise(seed + 1000, batch, 77, unet.config.cross_attention_dim)
        with torch.no_grad():
            plain = unet(x, t, context).sample
            tomesd.apply_patch(unet, ratio=ratio, use_rand=False)
            y = unet(x, t, context).sample
            # A near tie would test luck.
            moved = sensitivity({"unet": unet}, lambda: unet(x, t, context).sample, y)
        assert (y - plain).norm() > 0.01 * plain.norm(), name
        save(out, f"shortcuts/{name}", {"in.x": x, "in.t": t.float()[None], "in.context": context, "out.y": y},
             "shortcuts.py", 1e-4, layout=layout, seed=seed, ratio=ratio, sensitivity=moved)


def job(case, module, tokenizer):
    """Inputs, final latents, pictures, sensitivity and, for diffusers, the spacing of one case."""
    parts = models.build(case["layout"], case["seed"])
    if case["token_merging"] > 0:
        tomesd.apply_patch(parts["unet"], ratio=case["token_merging"], use_rand=False)
    with torch.no_grad():
        inputs, latents, pictures, *made = module.run(case, parts, tokenizer)
        moved = sensitivity(parts, lambda: module.run(case, parts, tokenizer)[1], latents)
    spacing = {"spacing": made[0].config.timestep_spacing} if made else {}
    return {**inputs, "out.latents": latents, "out.pictures": pictures}, dict(sensitivity=moved, **spacing)


def jobs(out, tokenizer):
    for flavour, table, module in (("k-diffusion", KDIFFUSION, pipeline_kdiffusion), ("diffusers", DIFFUSERS, pipeline_diffusers)):
        for name, changes in table.items():
            case = module.BASE | USUAL | changes
            Interval.case = case
            pipelines = pipeline_diffusers.PIPELINES
            wrapped = pipelines | {case["job"]: around(pipelines[case["job"]], case)}
            with mock.patch.object(pipeline_kdiffusion, "Guided", Interval), mock.patch.object(pipeline_diffusers, "PIPELINES", wrapped):
                tensors, found = job(case, module, tokenizer)
            save(out, f"pipeline/{flavour.replace('-', '')}_{name}", tensors, "shortcuts.py", 1e-3, values_max=20_000,
                 flavour=flavour, **(case | found))


def make(out):
    cached(out)
    merged(out)
    jobs(out, clip_tokenizer())


if __name__ == "__main__":
    import sys
    make(sys.argv[1])
