"""Golden files of whole jobs as diffusers' own pipelines run them: final latents and pictures.

Schedulers are what `X.from_config(<SD 1.5's scheduler_config.json>)` gives, each class with its own default
`timestep_spacing`; one generator per image.
"""

import numpy as np
import torch
from diffusers import (
    DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler,
    HeunDiscreteScheduler, LCMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline,
    StableDiffusionPipeline)
from PIL import Image

import models
from common import clip_tokenizer, noise, save, sensitivity

# The file every SD 1.x repository ships, minus what only its own class reads.
SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
        "set_alpha_to_one": False, "steps_offset": 1, "trained_betas": None, "clip_sample": False,
        "skip_prk_steps": True}
SCHEDULERS = {"Euler": EulerDiscreteScheduler, "Euler a": EulerAncestralDiscreteScheduler,
              "Heun": HeunDiscreteScheduler, "DDIM": DDIMScheduler, "DPM++ 2M": DPMSolverMultistepScheduler,
              "LCM": LCMScheduler}
PIPELINES = {"txt2img": StableDiffusionPipeline, "img2img": StableDiffusionImg2ImgPipeline,
             "inpaint": StableDiffusionInpaintPipeline}
HOUSE = "a house with a red roof on green hills under a sunny sky"
BAD = "blurry, low quality"
BASE = dict(layout="sd", seed=61, prompt=HOUSE, negative_prompt=BAD, steps=5, cfg_scale=7.5, image_seed=1000, batch=1,
            width=64, height=64, clip_skip=1, schedule="Automatic", spacing=None, strength=0.75)
# Every sampler in every job, then what varies one thing.
SAMPLERS = [("euler", "Euler", {}), ("euler_a", "Euler a", {}), ("heun", "Heun", {"steps": 4}), ("ddim", "DDIM", {}),
            ("dpmpp_2m", "DPM++ 2M", {}), ("dpmpp_2m_karras", "DPM++ 2M", {"schedule": "Karras"}),
            ("lcm", "LCM", {"steps": 4, "cfg_scale": 1.5})]
CASES = {f"{job}_{name}": {"job": job, "sampler": sampler, **options}
         for job in PIPELINES for name, sampler, options in SAMPLERS}
# Seeds other than BASE's where that one stands on an edge (see `sensitivity`).
for name, image_seed in {"img2img_heun": 1100, "img2img_ddim": 1100, "inpaint_heun": 1300}.items():
    CASES[name]["image_seed"] = image_seed
CASES |= {
    "txt2img_euler_leading": dict(job="txt2img", sampler="Euler", spacing="leading"),
    "txt2img_euler_trailing": dict(job="txt2img", sampler="Euler", spacing="trailing", steps=4),
    "txt2img_euler_karras": dict(job="txt2img", sampler="Euler", schedule="Karras", steps=6),
    "txt2img_euler_a_batch": dict(job="txt2img", sampler="Euler a", batch=2, width=72, height=40),
    "txt2img_ddim_plain": dict(job="txt2img", sampler="DDIM", cfg_scale=1.0, steps=3, width=40, height=56),
    "txt2img_dpmpp_2m_skip": dict(job="txt2img", sampler="DPM++ 2M", clip_skip=2, negative_prompt="", steps=6),
    "txt2img_heun_empty": dict(job="txt2img", sampler="Heun", prompt="", negative_prompt="", steps=3),
    "txt2img_dpmpp_2m_many": dict(job="txt2img", sampler="DPM++ 2M", steps=16, width=72, height=64,
                                  image_seed=4294967296 + 5),
    "txt2img_euler_long": dict(job="txt2img", sampler="Euler", steps=3, width=72,
                               prompt=", ".join(["one lonely tree beside a silver lake"] * 20)),
    "inpaint_euler_a_batch": dict(job="inpaint", sampler="Euler a", batch=2, width=72, height=64, strength=0.9),
    "inpaint9_ddim_batch": dict(layout="sd_inpaint", job="inpaint", sampler="DDIM", batch=2, width=72, height=80, strength=1.0),
    "img2img_euler_a_batch": dict(job="img2img", sampler="Euler a", batch=2, width=56, height=72, strength=0.6),
    "img2img_euler_light": dict(job="img2img", sampler="Euler", strength=0.3, steps=6, cfg_scale=1.0),
    "img2img_dpmpp_2m_full": dict(job="img2img", sampler="DPM++ 2M", strength=1.0),
    "inpaint_euler_full": dict(job="inpaint", sampler="Euler", strength=1.0, width=72, height=48),
    "inpaint9_euler_a": dict(layout="sd_inpaint", job="inpaint", sampler="Euler a", strength=1.0, image_seed=1100),
    "inpaint9_dpmpp_2m": dict(layout="sd_inpaint", job="inpaint", sampler="DPM++ 2M", strength=0.8, width=48, height=64,
                              image_seed=1200),
}


def picture(seed, width, height):
    """A picture `[H, W, 3]` of smooth colours and a little noise, u8."""
    small = noise(seed, 1, 3, 5, 5)
    smooth = torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic", align_corners=False)
    image = (0.5 + 0.25 * smooth + 0.04 * noise(seed + 1, 1, 3, height, width)).clamp(0, 1)
    return (image[0].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)


def disc(width, height):
    """A mask: white inside an ellipse off the centre, none of it along the border."""
    y, x = np.mgrid[:height, :width]
    inside = ((x - 0.55 * width) / (0.3 * width)) ** 2 + ((y - 0.45 * height) / (0.28 * height)) ** 2 <= 1
    return (inside * 255).astype(np.uint8)


def scheduler(sampler, schedule, spacing):
    extra = {"use_karras_sigmas": True} if schedule == "Karras" else {}
    return SCHEDULERS[sampler].from_config(SD15 | extra | ({"timestep_spacing": spacing} if spacing else {}))


def run(case, parts, tokenizer):
    """Final latents and u8 pictures of one case."""
    made = scheduler(case["sampler"], case["schedule"], case["spacing"])
    # diffusers 0.42 looks for the final norm where transformers 5 no longer keeps it; set past `nn.Module`'s bookkeeping.
    object.__setattr__(parts["text"], "text_model", parts["text"])
    pipe = PIPELINES[case["job"]](
        vae=parts["vae"], text_encoder=parts["text"], tokenizer=tokenizer, unet=parts["unet"],
        scheduler=made, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    batch = case["batch"]
    options = dict(
        prompt=[case["prompt"]] * batch, negative_prompt=[case["negative_prompt"]] * batch,
        num_inference_steps=case["steps"], guidance_scale=case["cfg_scale"],
        generator=[torch.Generator().manual_seed(case["image_seed"] + i) for i in range(batch)],
        # diffusers counts skipped layers, A1111 the layer taken from the end.
        clip_skip=case["clip_skip"] - 1 or None, output_type="latent")
    inputs = {}
    if case["job"] != "img2img":
        options |= dict(width=case["width"], height=case["height"])
    if case["job"] != "txt2img":
        image = picture(case["image_seed"], case["width"], case["height"])
        inputs["in.image"] = torch.from_numpy(image)
        options |= dict(image=Image.fromarray(image), strength=case["strength"])
    if case["job"] == "inpaint":
        mask = disc(case["width"], case["height"])
        inputs["in.mask"] = torch.from_numpy(mask)
        options |= dict(mask_image=Image.fromarray(mask))
    with torch.no_grad():
        latents = pipe(**options).images
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    pictures = np.stack([np.asarray(p) for p in pipe.image_processor.postprocess(decoded, output_type="pil")])
    return inputs, latents, torch.from_numpy(pictures), made


def make(out):
    tokenizer = clip_tokenizer()
    for name, changes in CASES.items():
        case = BASE | changes
        parts = models.build(case["layout"], case["seed"])
        inputs, latents, pictures, made = run(case, parts, tokenizer)
        moved = sensitivity(parts, lambda: run(case, parts, tokenizer)[1], latents)
        case["spacing"] = made.config.timestep_spacing
        save(out, f"pipeline/diffusers_{name}", {**inputs, "out.latents": latents, "out.pictures": pictures},
             "pipeline_diffusers.py", 1e-3, values_max=20_000, flavour="diffusers", sensitivity=moved, **case)


if __name__ == "__main__":
    import sys
    make(sys.argv[1])
