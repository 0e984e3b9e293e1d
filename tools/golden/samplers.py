"""Rooms `noise` and `sampler`: torch's random numbers, and what k-diffusion and diffusers make of a toy network.

The toy network is 0.7·tanh(1.3·x + 0.4 − t/1500) + 0.2·x, the same in Rust. Fresh noise comes from torch's CPU generator
seeded with 7, 16 values a draw. Tensors are named `<sampler>/<setting>/<steps>`.
"""

import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import diffusers
import numpy as np
import torch
from safetensors.torch import save_file

from kdiff import external, sampling

warnings.filterwarnings("ignore")
STEPS = (1, 2, 3, 5, 10, 20, 31)
SIZE = 16


def network(x, t):
    return 0.7 * torch.tanh(1.3 * x + 0.4 - t / 1500) + 0.2 * x


def start():
    return torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(3))


def draws():
    return torch.Generator().manual_seed(7)


def save(path, tensors, **metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata |= {"script": "tools/golden/samplers.py", "versions": json.dumps(
        {name: version(name) for name in ("torch", "diffusers", "k-diffusion", "numpy")})}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)


def make_noise(out):
    tensors = {}
    for seed in (0, 1, 42, 2**32 - 1, 2**32 + 17, 2**63 + 12345):
        for shape in ((1,), (3,), (15,), (16,), (17,), (31,), (4, 9, 7), (4, 16, 24)):
            generator = torch.Generator().manual_seed(seed)
            name = f"{seed}/{'x'.join(map(str, shape))}"
            # Twice, since what one call leaves behind is part of the next.
            tensors[name] = torch.stack([torch.randn(shape, generator=generator) for _ in range(2)])
    save(out / "noise/torch_cpu.safetensors", tensors, tolerance="0")


# A1111 on k-diffusion.

def alphas_cumprod():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    return torch.tensor(np.cumprod(1 - betas), dtype=torch.float32)


def a1111_schedules(model):
    low, high = model.sigmas[0].item(), model.sigmas[-1].item()
    times = lambda n: torch.linspace(*(model.sigma_to_t(torch.tensor(s)).item() for s in (high, low)), n)
    count = len(model.sigmas)
    return {
        "Uniform": lambda n: model.get_sigmas(n),
        "Karras": lambda n: sampling.get_sigmas_karras(n, low, high),
        "Exponential": lambda n: sampling.get_sigmas_exponential(n, low, high),
        "Polyexponential": lambda n: sampling.get_sigmas_polyexponential(n, low, high),
        "SGM Uniform": lambda n: torch.cat([model.t_to_sigma(times(n + 1)[:-1]), torch.zeros(1)]),
        "Simple": lambda n: torch.stack([model.sigmas[-(1 + int(i * count / n))] for i in range(n)] + [torch.tensor(0.0)]),
        "DDIM": lambda n: torch.cat([model.sigmas[1::max(count // n, 1)].flip(0), torch.zeros(1)]),
    }


def lcm_model(alphas):
    """A1111's denoiser for consistency models: 50 levels, boundary scalings."""
    class Lcm(external.DiscreteEpsDDPMDenoiser):
        def sigma_to_t(self, sigma, quantize=None):
            return (sigma.log() - self.log_sigmas[:, None]).abs().argmin(dim=0).view(sigma.shape) * 20 + 19

        def t_to_sigma(self, t):
            return super().t_to_sigma(((t - 19) / 20).clamp(0, 49))

        def get_sigmas(self, n=None):
            return torch.cat([self.t_to_sigma(torch.linspace(999, 19, n)), torch.zeros(1)])

        def forward(self, x, sigma):
            scaled = (self.sigma_to_t(sigma) * 10.0)[:, None, None, None]
            skip, through = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5
            return through * super().forward(x, sigma) + skip * x

    return Lcm(network, alphas[19::20], quantize=None)


def sample_lcm(model, x, sigmas, noise_sampler, **_):
    for sigma, following in zip(sigmas, sigmas[1:]):
        x = model(x, sigma[None])
        if following > 0:
            x = x + following * noise_sampler(sigma, following)
    return x


def a1111_ddim(x, steps, alphas):
    times = torch.clip(torch.tensor(range(0, 1000, 1000 // steps)) + 1, 0, 999)
    for t, before in reversed(list(zip(times[1:], times))):
        epsilon = network(x, t)
        clean = (x - (1 - alphas[t]).sqrt() * epsilon) / alphas[t].sqrt()
        x = alphas[before].sqrt() * clean + (1 - alphas[before]).sqrt() * epsilon
    return x


def make_a1111(out):
    alphas, tensors = alphas_cumprod(), {}
    eps = external.DiscreteEpsDDPMDenoiser(network, alphas, quantize=False)
    velocity = external.DiscreteVDDPMDenoiser(network, alphas, quantize=False)
    velocity.get_v = network
    functions = {"Euler": sampling.sample_euler, "Euler a": sampling.sample_euler_ancestral, "Heun": sampling.sample_heun,
                 "DPM++ 2M": sampling.sample_dpmpp_2m, "LCM": sample_lcm}
    for sampler, function in functions.items():
        ancestral = sampler in ("Euler a", "LCM")
        models = {"epsilon": lcm_model(alphas)} if sampler == "LCM" else {"epsilon": eps, "v": velocity}
        for prediction, model in models.items():
            for schedule, sigmas_of in a1111_schedules(model).items():
                if prediction == "v" and schedule != "Karras":
                    continue
                for steps in STEPS:
                    sigmas, generator = sigmas_of(steps), draws()
                    noise = lambda *_: torch.randn(1, 1, 4, 4, generator=generator)
                    extra = {"noise_sampler": noise} if ancestral else {}
                    x = function(model, start() * sigmas[0], sigmas, disable=True, **extra)
                    tensors[f"{sampler}/{schedule} {prediction}/{steps}"] = x
                    # From another picture (2·start), at strength 0.6.
                    kept = sigmas[steps - int(0.6 * steps) - 1:]
                    if schedule == "Karras" and prediction == "epsilon" and len(kept) > 1:
                        generator = draws()
                        x = function(model, 2 * start() + start() * kept[0], kept, disable=True, **extra)
                        tensors[f"{sampler}/{schedule} partial/{steps}"] = x
    for steps in STEPS[1:]:
        tensors[f"DDIM/own epsilon/{steps}"] = a1111_ddim(start(), steps, alphas)
    save(out / "sampler/a1111.safetensors", tensors, tolerance="1e-5")


# Diffusers.

SD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000, steps_offset=1,
          timestep_spacing="leading", set_alpha_to_one=False, clip_sample=False)
SETTINGS = {
    "leading": {}, "linspace": dict(timestep_spacing="linspace"), "trailing": dict(timestep_spacing="trailing"),
    "v": dict(prediction_type="v_prediction"), "karras": dict(use_karras_sigmas=True),
    "karras linspace": dict(use_karras_sigmas=True, timestep_spacing="linspace"),
    "exponential": dict(use_exponential_sigmas=True), "offset 0": dict(steps_offset=0, set_alpha_to_one=True),
    "sigma_min": dict(final_sigmas_type="sigma_min"), "zero snr": dict(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    "clipped": dict(clip_sample=True, clip_sample_range=0.8), "sample": dict(prediction_type="sample"),
    "linear": dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02),
    "cosine": dict(beta_schedule="squaredcos_cap_v2", timestep_spacing="linspace"),
    "log_linear": dict(interpolation_type="log_linear"),
    "first order": dict(solver_order=1), "heun": dict(solver_type="heun"), "euler last": dict(euler_at_final=True),
    "not lower": dict(lower_order_final=False, final_sigmas_type="sigma_min"),
    "heun sigma_min": dict(solver_type="heun", final_sigmas_type="sigma_min"), "eta": {},
}
SCHEDULERS = {
    "Euler": diffusers.EulerDiscreteScheduler, "Euler a": diffusers.EulerAncestralDiscreteScheduler,
    "Heun": diffusers.HeunDiscreteScheduler, "DDIM": diffusers.DDIMScheduler,
    "DPM++ 2M": diffusers.DPMSolverMultistepScheduler, "LCM": diffusers.LCMScheduler,
}


def loop(scheduler, x, timesteps, **extra):
    for t in timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **extra, return_dict=False)[0]
    return x


def make_diffusers(out):
    tensors, configs = {}, {}
    for sampler, scheduler_class in SCHEDULERS.items():
        known = scheduler_class().config.keys()
        for setting, change in SETTINGS.items():
            if not set(change) <= set(known) or (setting == "eta") != (setting == "eta" and sampler == "DDIM"):
                continue
            if sampler == "Euler a" and setting == "sample":
                continue
            config = SD | change
            configs[f"{sampler}/{setting}"] = config
            extra = {"eta": 0.6} if setting == "eta" else {}
            takes = scheduler_class.step.__code__.co_varnames
            for steps in STEPS:
                scheduler = scheduler_class(**{key: value for key, value in config.items() if key in known})
                scheduler.set_timesteps(steps)
                name = f"{sampler}/{setting}/{steps}"
                if "generator" in takes:
                    extra["generator"] = draws()
                tensors[name] = loop(scheduler, start() * scheduler.init_noise_sigma, scheduler.timesteps, **extra)
                tensors[f"timesteps/{name}"] = scheduler.timesteps.float()
                if sampler not in ("DDIM", "LCM"):
                    tensors[f"sigmas/{name}"] = scheduler.sigmas.float()
                if setting not in ("leading", "karras") or steps < 2:
                    continue
                # From another picture (2·start), at strength 0.6.
                scheduler.set_timesteps(steps)
                first = (steps - int(0.6 * steps)) * scheduler.order
                scheduler.set_begin_index(first) if hasattr(scheduler, "set_begin_index") else None
                timesteps = scheduler.timesteps[first:]
                x = scheduler.add_noise(2 * start(), start(), timesteps[:1])
                if "generator" in takes:
                    extra["generator"] = draws()
                tensors[f"{sampler}/{setting} partial/{steps}"] = loop(scheduler, x, timesteps, **extra)
    save(out / "sampler/diffusers.safetensors", tensors, configs=json.dumps(configs), tolerance="1e-5")


CLIPPED = dict(lambda_min_clipped=-5.1, beta_schedule="squaredcos_cap_v2")
RANGE = dict(sigma_min=0.1, sigma_max=10.0)
# Whole files, and who is made from them: what is absent has the defaults of the class made, foreign settings are ignored
# (but `sigma_min` and `sigma_max`, which `from_config` keeps and three classes look for).
FILES = {
    "absent": ({}, SCHEDULERS),
    "betas absent": (dict(steps_offset=1, clip_sample=False, num_train_timesteps=800), SCHEDULERS),
    "clipped lambda": (SD | CLIPPED, ["DPM++ 2M"]),
    "clipped lambda linspace": (SD | CLIPPED | dict(timestep_spacing="linspace"), ["DPM++ 2M"]),
    "clipped lambda trailing": (SD | dict(lambda_min_clipped=-1.5, timestep_spacing="trailing"), ["DPM++ 2M"]),
    "clipped lambda karras": (SD | CLIPPED | dict(use_karras_sigmas=True), ["DPM++ 2M"]),
    "range karras": (SD | RANGE | dict(use_karras_sigmas=True), ["Euler", "Heun", "DPM++ 2M"]),
    "range exponential": (SD | RANGE | dict(use_exponential_sigmas=True), ["Euler", "Heun", "DPM++ 2M"]),
    "range unused": (SD | RANGE, ["Euler", "DDIM", "LCM"]),
    "continuous v": (SD | dict(timestep_type="continuous", prediction_type="v_prediction"), SCHEDULERS),
    "continuous v karras": (SD | dict(timestep_type="continuous", prediction_type="v_prediction", use_karras_sigmas=True), ["Euler"]),
    "continuous epsilon": (SD | dict(timestep_type="continuous"), ["Euler"]),
    "dpm": (SD | dict(algorithm_type="sde-dpmsolver++", solver_type="logrho", use_lu_lambdas=True, thresholding=True,
                      final_sigmas_type="sigma_min", interpolation_type="log_linear"), ["Euler", "Euler a", "Heun"]),
    "beta": (SD | dict(use_beta_sigmas=True, use_lu_lambdas=True), ["DDIM", "Euler a", "LCM"]),
}


def make_files(out):
    tensors, configs = {}, {}
    for setting, (config, samplers) in FILES.items():
        for sampler in samplers:
            configs[f"{sampler}/{setting}"] = config
            for steps in (3, 20):
                scheduler = SCHEDULERS[sampler].from_config(config)
                extra = {"generator": draws()} if "generator" in scheduler.step.__code__.co_varnames else {}
                scheduler.set_timesteps(steps)
                # Where two timesteps are alike, it would start at the second, and fall off the end.
                scheduler.set_begin_index(0) if hasattr(scheduler, "set_begin_index") else None
                name = f"{sampler}/{setting}/{steps}"
                tensors[name] = loop(scheduler, start() * scheduler.init_noise_sigma, scheduler.timesteps, **extra)
                if steps == 3:
                    tensors[f"timesteps/{name}"] = scheduler.timesteps.float()
    save(out / "sampler/diffusers_files.safetensors", tensors, configs=json.dumps(configs), tolerance="1e-5")


def make(out):
    out = Path(out)
    make_files(out)
    make_noise(out)
    make_a1111(out)
    make_diffusers(out)


if __name__ == "__main__":
    make(sys.argv[1])
