"""Golden files of whole jobs by A1111's rules: k-diffusion's own samplers around diffusers' networks.

The samplers and schedules are k-diffusion's. What A1111 adds around them (order of noise, steps of img2img, masks, chunks of
75 tokens, emphasis, truncation to bytes, DDIM and LCM) is written down here from its description in words.
"""

import numpy as np
import torch
from PIL import Image, ImageOps

import kdiff
import models
from common import clip_tokenizer, save, sensitivity
from pipeline_diffusers import BAD, HOUSE, disc, picture

BASE = dict(layout="sd", seed=62, prompt=HOUSE, negative_prompt=BAD, steps=5, cfg_scale=7.5, image_seed=2000, batch=1,
            width=64, height=64, clip_skip=1, strength=0.75)
SAMPLERS = [("euler", "Euler", "Uniform", {}), ("euler_a", "Euler a", "Uniform", {}),
            ("heun", "Heun", "Uniform", {"steps": 4}), ("dpmpp_2m_karras", "DPM++ 2M", "Karras", {}),
            ("dpmpp_2m", "DPM++ 2M", "Uniform", {}), ("lcm", "LCM", "Uniform", {"steps": 4, "cfg_scale": 1.5})]
CASES = {f"{job}_{name}": dict(job=job, sampler=sampler, schedule=schedule, **options)
         for job in ("txt2img", "img2img", "inpaint") for name, sampler, schedule, options in SAMPLERS}
# Seeds other than BASE's where that one stands on an edge (see `sensitivity`).
for name in ("img2img_heun", "img2img_lcm", "inpaint_heun", "inpaint_lcm"):
    CASES[name]["image_seed"] = 2100
CASES |= {
    "txt2img_ddim": dict(job="txt2img", sampler="DDIM", schedule="Automatic"),
    "img2img_ddim": dict(job="img2img", sampler="DDIM", schedule="Automatic", steps=6),
    "txt2img_euler_simple": dict(job="txt2img", sampler="Euler", schedule="Simple", steps=6, width=40, height=72),
    "txt2img_euler_sgm": dict(job="txt2img", sampler="Euler", schedule="SGM Uniform", steps=3),
    "txt2img_euler_a_exponential": dict(job="txt2img", sampler="Euler a", schedule="Exponential", steps=6),
    "txt2img_heun_karras": dict(job="txt2img", sampler="Heun", schedule="Karras", steps=4),
    "txt2img_dpmpp_2m_sgm": dict(job="txt2img", sampler="DPM++ 2M", schedule="SGM Uniform", steps=6, cfg_scale=1.0),
    "txt2img_dpmpp_2m_exponential": dict(job="txt2img", sampler="DPM++ 2M", schedule="Exponential"),
    "txt2img_euler_a_batch": dict(job="txt2img", sampler="Euler a", schedule="Karras", batch=3, width=56, height=40),
    "txt2img_euler_skip": dict(job="txt2img", sampler="Euler", schedule="Uniform", clip_skip=2, negative_prompt=""),
    "txt2img_euler_long": dict(job="txt2img", sampler="Euler", schedule="Uniform", steps=3,
                               prompt=" ".join(["one lonely tree beside a silver lake under purple clouds"] * 11)),
    "txt2img_euler_emphasis": dict(job="txt2img", sampler="Euler", schedule="Uniform",
                                   prompt="a (house:1.4) on a ((hill)), [blue] sky, (big sun:0.5)",
                                   negative_prompt="(blurry:1.2)"),
    "img2img_euler_a_batch": dict(job="img2img", sampler="Euler a", schedule="Uniform", batch=2, width=72, height=48),
    "img2img_heun_full": dict(job="img2img", sampler="Heun", schedule="Karras", strength=1.0, steps=4, image_seed=2100),
    "img2img_dpmpp_2m_light": dict(job="img2img", sampler="DPM++ 2M", schedule="Karras", strength=0.35, steps=8),
    "txt2img_euler_long_negative": dict(job="txt2img", sampler="Euler", schedule="Uniform", steps=3,
                                        negative_prompt=" ".join(["a grey blurred thing without any light"] * 12)),
    "inpaint9_dpmpp_2m": dict(layout="sd_inpaint", job="inpaint", sampler="DPM++ 2M", schedule="Karras", width=72, height=64),
    "inpaint9_euler_a": dict(layout="sd_inpaint", job="inpaint", sampler="Euler a", schedule="Uniform", strength=1.0,
                             batch=2),
    "txt2img9_euler": dict(layout="sd_inpaint", job="txt2img", sampler="Euler", schedule="Uniform", width=72, height=64),
    "inpaint_dpmpp_2m_sgm": dict(job="inpaint", sampler="DPM++ 2M", schedule="SGM Uniform", width=72, height=56),
    "inpaint_euler_a_full": dict(job="inpaint", sampler="Euler a", schedule="Exponential", strength=1.0,
                                 image_seed=2100),
}


def alphas():
    """Cumulative products of the schedule, in f64 and then stored as f32, as LDM's buffer."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    return torch.from_numpy(np.cumprod(1 - betas)).float()


class Eps(kdiff.external.DiscreteEpsDDPMDenoiser):
    """The UNet as k-diffusion wants it; timesteps are interpolated, not rounded."""

    def __init__(self, unet, alphas_cumprod, extra=None):
        super().__init__(unet, alphas_cumprod, quantize=False)
        self.extra = extra

    def get_eps(self, x, t, context):
        if self.extra is not None:
            x = torch.cat([x, self.extra.expand(x.shape[0], -1, -1, -1)], dim=1)
        return self.inner_model(x, t, context).sample


class ConsistencyEps(Eps):
    """A1111's LCM denoiser: 50 of the 1000 timesteps (19, 39 ... 999), and the boundary scaling of the LCM paper."""

    def __init__(self, unet, alphas_cumprod, extra=None):
        super().__init__(unet, alphas_cumprod[19::20], extra)

    def timestep(self, sigma):
        nearest = (sigma.log()[None] - self.log_sigmas[:, None]).abs().argmin(dim=0)
        return 20 * nearest + 19

    def get_sigmas(self, n):
        return kdiff.sampling.append_zero(self.t_to_sigma(torch.linspace(49, 0, n)))

    def forward(self, x, sigma, context):
        t = self.timestep(sigma)
        wide = sigma[:, None, None, None]
        clean = x - wide * self.get_eps(x / (wide**2 + 1) ** 0.5, t, context)
        scaled = 10.0 * t[:, None, None, None]
        spread = 0.5
        skip = spread**2 / (scaled**2 + spread**2)
        return scaled / (scaled**2 + spread**2) ** 0.5 * clean + skip * x


class Guided:
    """Guidance on the clean picture; outside the mask the guess is the picture itself."""

    def __init__(self, inner, conditioning, cfg_scale, keep=None, init=None):
        self.inner, self.conditioning, self.cfg_scale, self.keep, self.init = inner, conditioning, cfg_scale, keep, init

    def __call__(self, x, sigma):
        positive, negative = (c.expand(x.shape[0], -1, -1) for c in self.conditioning)
        guess = self.inner(x, sigma, context=positive)
        if self.cfg_scale != 1:
            plain = self.inner(x, sigma, context=negative)
            guess = plain + self.cfg_scale * (guess - plain)
        if self.keep is not None:
            guess = guess * (1 - self.keep) + self.init * self.keep
        return guess


class ImageNoise:
    """One generator per image; every draw of a batch draws once from each."""

    def __init__(self, seed, batch):
        self.generators = [torch.Generator().manual_seed(seed + i) for i in range(batch)]

    def next(self, shape):
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])


def weighted_pieces(prompt):
    """The only emphasised prompts used here, split by hand: (text, weight)."""
    table = {
        CASES["txt2img_euler_emphasis"]["prompt"]: [
            ("a ", 1.0), ("house", 1.4), (" on a ", 1.0), ("hill", 1.1 * 1.1), (", ", 1.0), ("blue", 1 / 1.1),
            (" sky, ", 1.0), ("big sun", 0.5)],
        CASES["txt2img_euler_emphasis"]["negative_prompt"]: [("blurry", 1.2)],
    }
    return table.get(prompt, [(prompt, 1.0)])


def conditioning(text, tokenizer, prompt, clip_skip):
    """`[1, 77 * chunks, D]`: chunks of 75 tokens encoded apart, weights applied, the chunk's mean restored."""
    ids, weights = [], []
    for piece, weight in weighted_pieces(prompt):
        piece_ids = tokenizer(piece, add_special_tokens=False).input_ids
        ids += piece_ids
        weights += [weight] * len(piece_ids)
    chunks = []
    for start in range(0, max(len(ids), 1), 75):
        part, scale = ids[start:start + 75], weights[start:start + 75]
        rest = 75 - len(part)
        row = torch.tensor([[49406, *part, *[49407] * (rest + 1)]])
        z = text.final_layer_norm(text(row, output_hidden_states=True).hidden_states[-clip_skip])
        before = z.mean()
        z = z * torch.tensor([1.0, *scale, *[1.0] * (rest + 1)])[None, :, None]
        chunks.append(z * (before / z.mean()))
    return torch.cat(chunks, dim=1)


def sigmas_of(schedule, denoiser, n):
    low, high = denoiser.sigmas[0].item(), denoiser.sigmas[-1].item()
    if schedule == "Karras":
        return kdiff.sampling.get_sigmas_karras(n, low, high)
    if schedule == "Exponential":
        return kdiff.sampling.get_sigmas_exponential(n, low, high)
    if schedule == "SGM Uniform":
        first, last = denoiser.sigma_to_t(denoiser.sigmas[-1]), denoiser.sigma_to_t(denoiser.sigmas[0])
        times = torch.linspace(first.item(), last.item(), n + 1)[:-1]
        return kdiff.sampling.append_zero(denoiser.t_to_sigma(times))
    if schedule == "Simple":
        step = len(denoiser.sigmas) / n
        return torch.tensor([denoiser.sigmas[-(1 + int(i * step))].item() for i in range(n)] + [0.0])
    assert schedule == "Uniform", schedule
    return denoiser.get_sigmas(n)


def sample(sampler, guided, x, sigmas, noise):
    draw = lambda _sigma, _next: noise.next(x.shape[1:])  # noqa: E731
    run = {"Euler": kdiff.sampling.sample_euler, "Heun": kdiff.sampling.sample_heun,
           "DPM++ 2M": kdiff.sampling.sample_dpmpp_2m}
    if sampler == "Euler a":
        return kdiff.sampling.sample_euler_ancestral(guided, x, sigmas, disable=True, noise_sampler=draw)
    if sampler == "LCM":
        for now, then in zip(sigmas[:-1], sigmas[1:]):
            x = guided(x, now * x.new_ones(x.shape[0]))
            if then > 0:
                x = x + then * draw(now, then)
        return x
    return run[sampler](guided, x, sigmas, disable=True)


def ddim(unet, contexts, cfg_scale, x, times, alphas_cumprod):
    """A1111's DDIM at eta 0: it stops at the first timestep of the list instead of going past it."""
    previous = alphas_cumprod[torch.nn.functional.pad(times[:-1], (1, 0))].double()
    for idx in range(len(times) - 1, 0, -1):
        t = times[idx].expand(x.shape[0])
        eps, plain = (unet(x, t, c.expand(x.shape[0], -1, -1)).sample for c in contexts)
        eps = plain + cfg_scale * (eps - plain)
        a, a_next = alphas_cumprod[times[idx]], previous[idx]
        clean = (x - (1 - a).sqrt() * eps) / a.sqrt()
        x = (a_next.sqrt() * clean + (1 - a_next).sqrt() * eps).float()
    return x


def to_latent(vae, image):
    """The mean of the encoder's posterior, scaled."""
    x = torch.from_numpy(image).float().permute(2, 0, 1)[None] / 255.0 * 2 - 1
    return vae.encode(x).latent_dist.mean * 0.18215


def inpainting_channels(vae, height, width, image=None, mask=None):
    """What an inpainting network sees beside the latent: the mask, and the picture with grey under the mask."""
    grey = torch.zeros(1, 3, height, width)
    white = torch.ones(1, 1, height, width)
    if image is not None:
        white = torch.round(torch.from_numpy(mask).float() / 255.0)[None, None]
        grey = (torch.from_numpy(image).float().permute(2, 0, 1)[None] / 255.0 * 2 - 1) * (1 - white)
    small = torch.nn.functional.interpolate(white, size=(height // 8, width // 8))
    return torch.cat([small, vae.encode(grey).latent_dist.mean * 0.18215], dim=1)


def to_pictures(vae, latents):
    """Decoded, clamped and truncated to bytes."""
    decoded = torch.cat([vae.decode(latent[None] / 0.18215).sample for latent in latents])
    return (((decoded + 1) / 2).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy().astype(np.uint8)


def run(case, parts, tokenizer):
    """Inputs, final latents and pictures of one case."""
    unet, vae, text = parts["unet"], parts["vae"], parts["text"]
    batch, steps, width, height = case["batch"], case["steps"], case["width"], case["height"]
    contexts = [conditioning(text, tokenizer, case[key], case["clip_skip"]) for key in ("prompt", "negative_prompt")]
    noise = ImageNoise(case["image_seed"], batch)
    x = noise.next((4, height // 8, width // 8))
    inputs, keep, init, image, mask = {}, None, None, None, None
    if case["job"] != "txt2img":
        image = picture(case["image_seed"], width, height)
        inputs["in.image"] = torch.from_numpy(image)
        init = to_latent(vae, image)
    if case["job"] == "inpaint":
        mask = disc(width, height)
        inputs["in.mask"] = torch.from_numpy(mask)
        small = Image.fromarray(mask).convert("RGB").resize((width // 8, height // 8))
        keep = 1 - torch.from_numpy(np.around(np.asarray(small, dtype=np.float32)[..., 0] / 255))
    steps_from_end = int(min(case["strength"], 0.999) * steps)
    if case["sampler"] == "DDIM":
        table = alphas()
        times = torch.clip(torch.tensor(list(range(0, 1000, 1000 // steps))) + 1, 0, 999)
        if init is not None:
            a = table[times[steps_from_end]]
            x = a.sqrt() * init + (1 - a).sqrt() * x
            times = times[:steps_from_end]
        latents = ddim(unet, contexts, case["cfg_scale"], x, times, table)
    else:
        extra = inpainting_channels(vae, height, width, image, mask) if unet.config.in_channels == 9 else None
        denoiser = (ConsistencyEps if case["sampler"] == "LCM" else Eps)(unet, alphas(), extra)
        sigmas = sigmas_of(case["schedule"], denoiser, steps)
        if init is not None:
            sigmas = sigmas[steps - steps_from_end - 1:]
        x = x * sigmas[0] + (0 if init is None else init)
        latents = sample(case["sampler"], Guided(denoiser, contexts, case["cfg_scale"], keep, init), x, sigmas, noise)
    if keep is not None:
        latents = latents * (1 - keep) + init * keep
    pictures = to_pictures(vae, latents)
    if case["job"] == "inpaint":
        pictures = np.stack([overlaid(picture, image, mask) for picture in pictures])
    return inputs, latents, torch.from_numpy(pictures)


def overlaid(drawn, image, mask):
    """The original laid over the drawn picture, transparent where the mask is white."""
    doubled = Image.fromarray(np.clip(mask.astype(np.float32) * 2, 0, 255).astype(np.uint8))
    original = Image.new("RGBa", doubled.size)
    original.paste(Image.fromarray(image).convert("RGBA").convert("RGBa"), mask=ImageOps.invert(doubled))
    result = Image.fromarray(drawn).convert("RGBA")
    result.alpha_composite(original.convert("RGBA"))
    return np.asarray(result.convert("RGB"))


def make(out):
    tokenizer = clip_tokenizer()
    for name, changes in CASES.items():
        case = BASE | changes
        parts = models.build(case["layout"], case["seed"])
        with torch.no_grad():
            inputs, latents, pictures = run(case, parts, tokenizer)
        moved = sensitivity(parts, lambda: run(case, parts, tokenizer)[1], latents)
        save(out, f"pipeline/kdiffusion_{name}", {**inputs, "out.latents": latents, "out.pictures": pictures},
             "pipeline_kdiffusion.py", 1e-3, values_max=20_000, flavour="k-diffusion", sensitivity=moved, **case)


if __name__ == "__main__":
    import sys
    make(sys.argv[1])
