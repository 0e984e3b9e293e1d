"""Jobs nobody chose: random small models of random structure, saved as people save them, and what diffusers draws with them.

    python tools/golden/random_jobs.py --out /tmp/jobs --count 20 --seed 1
    SAFELIGHT_RANDOM_JOBS=/tmp/jobs cargo test -p safelight-diffusion --test golden_random -- --nocapture

Half are folders by `save_pretrained`, with block kinds, depths, heads, groups, schedulers and dtypes at random; half are single
files in LDM names, in the structure of SD 1.x and 2.x. Nothing of it is committed: the point is new ones.
"""

import argparse
import random
from pathlib import Path

import diffusers.utils.import_utils
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

import common
import models
import pipeline_diffusers
import pipeline_kdiffusion
import weights

# `save_pretrained` imports all of diffusers; kornia, where it is installed by half, would stop it.
diffusers.utils.import_utils._kornia_available = False
# Sensitive models are only reported here: the reader judges.
common.SENSITIVITY_MAX = float("inf")
WORDS = ("a photo of cat dog house (tree) red, blue; sky 'neath 42 très naïve mountains under the sea :: don't STOP ### 東京 "
         "painting by someone sunny").split()
SAMPLERS = ["Euler", "Euler a", "Heun", "DPM++ 2M"]


def audible(model, gain):
    """torch's default weights, louder, so that every branch is heard; biases and norms off their zeros and ones."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape)
        elif "embedding" not in name:
            parameter.data *= gain
    return model.eval()


def text(pick, width, heads, act):
    return audible(CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=pick([37, 64, 4 * width]), num_hidden_layers=pick(range(2, 7)),
        num_attention_heads=heads, hidden_act=act, projection_dim=width, bos_token_id=49406, eos_token_id=49407,
        pad_token_id=49407)), 8.0)


def vae(pick, widths, groups, scale):
    levels = len(widths)
    return audible(AutoencoderKL(
        block_out_channels=widths, layers_per_block=pick([1, 2]), latent_channels=4, norm_num_groups=groups, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        scaling_factor=scale), 1.7)


def ordinary(pick):
    """The structure single files are recognised by; group counts go into their metadata."""
    groups, width, vae_groups = pick([8, 16, 32]), pick([64, 128, 192]), pick([4, 8, 16, 32])
    linear = pick([True, False, False])
    # Two channels a group at least: torch refuses to norm a single value.
    widths = tuple(64 * pick([1, 2]) if linear else max(2 * groups, 32 * pick([1, 2, 3, 4])) for _ in range(4))
    unet = audible(models.unet(widths, pick([1, 2, 3]), width, groups=groups, linear=linear), 1.7)
    parts = {"unet": unet, "vae": vae(pick, tuple(pick([32, 64, 96]) for _ in range(4)), vae_groups, 0.18215),
             "text": text(pick, width, width // 64, "quick_gelu")}
    return parts, {"safelight.unet.norm_num_groups": str(groups), "safelight.vae.norm_num_groups": str(vae_groups)}


def free(pick):
    """What only a folder's configs can say."""
    groups, width, levels, vae_groups = pick([2, 4, 8, 16]), pick([32, 48, 64, 80]), pick([2, 3, 4]), pick([2, 4, 8])
    unit = max(16, 2 * groups)
    down = [pick(["CrossAttnDownBlock2D", "DownBlock2D"]) for _ in range(levels - 1)] + ["CrossAttnDownBlock2D"]
    random.Random(levels).shuffle(down)
    unet = audible(UNet2DConditionModel(
        sample_size=32, block_out_channels=tuple(unit * pick([1, 2, 3, 4]) for _ in range(levels)), layers_per_block=pick([1, 2]),
        down_block_types=down, up_block_types=[kind.replace("Down", "Up") for kind in reversed(down)],
        cross_attention_dim=width, norm_num_groups=groups, attention_head_dim=pick([2, 4, 8]),
        use_linear_projection=pick([True, False]), norm_eps=pick([1e-5, 1e-6]),
        transformer_layers_per_block=pick([1, 1, 2])), 1.7)
    channels = tuple(16 * pick([1, 2, 3]) for _ in range(pick([2, 3, 4])))
    return {"unet": unet, "vae": vae(pick, channels, vae_groups, pick([0.18215, 0.13025, 1.0])),
            "text": text(pick, width, pick([2, 4, 8]), pick(["quick_gelu", "gelu"]))}


def job(pick, flavour):
    phrase = lambda: " ".join(pick(WORDS) for _ in range(pick(range(1, 12))))  # noqa: E731
    case = dict(layout="", seed=0, job=pick(list(pipeline_diffusers.PIPELINES)), prompt=phrase(), negative_prompt=pick(["", phrase()]),
                steps=pick(range(2, 8)), cfg_scale=pick([1.0, 3.0, 7.5, 12.0]), image_seed=pick(range(2**33)), batch=pick([1, 1, 2]),
                width=8 * pick(range(3, 12)), height=8 * pick(range(3, 12)), clip_skip=pick([1, 1, 2]), spacing=None,
                strength=pick([0.5, 0.65, 0.8, 1.0]))
    if flavour == "diffusers":
        kinds = [(sampler, "Automatic") for sampler in [*SAMPLERS, "DDIM", "LCM"]] + [("DPM++ 2M", "Karras"), ("Euler", "Karras")]
    else:
        kinds = [(sampler, schedule) for sampler in SAMPLERS for schedule in ("Uniform", "Karras", "Exponential", "SGM Uniform", "Simple")]
        kinds += [("LCM", "Uniform")] + ([("DDIM", "Automatic")] if case["job"] != "inpaint" else [])
        # The k-diffusion side knows no attention grammar.
        case |= {key: case[key].replace("(", "").replace(")", "") for key in ("prompt", "negative_prompt")}
    case["sampler"], case["schedule"] = pick(kinds)
    return case


def save_file_of(parts, metadata, dtype, path):
    tensors = {}
    for model in parts.values():
        state = model.state_dict()
        for name, ldm in weights.model_names(model).items():
            shape = weights.ldm_shape(ldm, state[name].shape)
            tensors[ldm] = state[name].reshape(shape).to(dtype).contiguous()
    save_file(tensors, path, metadata=metadata)


def save_folder_of(parts, tokenizer, settings, dtype, path):
    """Saves a pipeline; returns the settings its schedulers have after loading."""
    kind = settings.pop("kind")
    StableDiffusionPipeline(
        vae=parts["vae"].to(dtype), text_encoder=parts["text"].to(dtype), tokenizer=tokenizer, unet=parts["unet"].to(dtype),
        scheduler=kind.from_config(pipeline_diffusers.SD15 | settings), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False).save_pretrained(path)
    for model in parts.values():
        model.float()
    return kind.from_pretrained(path / "scheduler").config


def one(out, idx, seed, tokenizer):
    pick = random.Random(seed).choice
    torch.manual_seed(seed)
    dtype, flavour = pick([torch.float32, torch.float16, torch.bfloat16]), pick(["diffusers", "k-diffusion"])
    folder = out / str(idx)
    folder.mkdir(parents=True)
    if pick([True, False]):
        parts, metadata = ordinary(pick)
        for parameter in (p for model in parts.values() for p in model.parameters()):
            parameter.data = parameter.data.to(dtype).float()
        source, config = "model.safetensors", pipeline_diffusers.SD15
        save_file_of(parts, metadata, dtype, folder / source)
    else:
        # k-diffusion's side assumes the ordinary VAE factor and epsilon prediction.
        parts = free(pick) if flavour == "diffusers" else ordinary(pick)[0]
        settings = {"kind": pick([PNDMScheduler, DDIMScheduler])}
        if flavour == "diffusers":
            settings |= pick([{}, {"prediction_type": "v_prediction"}]) | pick([{}, {"timestep_spacing": "trailing"}])
            settings |= pick([{}, {"beta_schedule": "linear"}]) | pick([{}, {"set_alpha_to_one": True}, {"steps_offset": 0}])
        source = "folder"
        config = save_folder_of(parts, tokenizer, settings, dtype, folder / source)
    case = job(pick, flavour)
    pipeline_diffusers.scheduler = lambda sampler, schedule, _: pipeline_diffusers.SCHEDULERS[sampler].from_config(
        config, **({"use_karras_sigmas": True} if schedule == "Karras" else {}))
    module = pipeline_diffusers if flavour == "diffusers" else pipeline_kdiffusion
    with torch.no_grad():
        inputs, latents, pictures = module.run(case, parts, tokenizer)[:3]
    moved = common.sensitivity(parts, lambda: module.run(case, parts, tokenizer)[1], latents)
    del case["spacing"]
    common.save(out, f"{idx}/case", {**inputs, "out.latents": latents, "out.pictures": pictures}, "random_jobs.py", 1e-3,
                values_max=10**9, file_max=10**9, flavour=flavour, source=source, sensitivity=moved, **case)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    chosen.out.mkdir()
    for idx in range(chosen.count):
        one(chosen.out, idx, chosen.seed * 1_000_000 + idx, common.clip_tokenizer())
