"""What diffusers makes of small random models when it changes their layout: names, shapes and crc32 of every tensor.

    python tools/golden/checkpoint_layouts.py --scripts DIFFUSERS_CHECKOUT/scripts --out testdata/golden/convert
    python tools/golden/checkpoint_layouts.py --load FOLDER [--picture FILE]   # does a folder that we wrote load whole?

Folder to single file: diffusers' own scripts (`convert_diffusers_to_original_*.py`, not part of its package), used as they
are; where they are known to be wrong the result is mended here, and the reason stands beside it. Single file to folder:
the package's `single_file_utils`.

Weights follow from a rule that the Rust test has too: element `i` of the tensor `name` is
`((crc32(name) + i * 2654435761) mod 2**32 >> 8) / 2**24 - 0.5`, an f32.
"""

import argparse
import importlib.util
import json
import pathlib
import zlib

import numpy as np
import torch


def rule(name, shape):
    count = int(np.prod(shape, dtype=np.int64))
    index = np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(zlib.crc32(name.encode()))
    values = ((index & np.uint64(0xFFFFFFFF)) >> np.uint64(8)).astype(np.float64) / 2**24 - 0.5
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def listed(tensors):
    crc = lambda tensor: zlib.crc32(tensor.contiguous().numpy().tobytes())
    return [[name, list(tensor.shape), crc(tensor)] for name, tensor in sorted(tensors.items())]


def script(folder, name):
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parts(family):
    """The networks of a small model of each family."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    common = dict(in_channels=4, out_channels=4, layers_per_block=2, norm_num_groups=8)
    if family == "xl":
        unet = UNet2DConditionModel(
            block_out_channels=(16, 32, 64), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=[1, 2, 3],
            attention_head_dim=[1, 2, 4], cross_attention_dim=48, use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=24 + 6 * 8, **common)
    else:
        unet = UNet2DConditionModel(
            block_out_channels=(16, 32, 32, 64), cross_attention_dim=32, attention_head_dim=8 if family == "sd1" else [1, 2, 2, 4],
            use_linear_projection=family == "sd2", **common)
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16, 32), down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4, layers_per_block=2, norm_num_groups=4)
    clip = dict(vocab_size=60, max_position_embeddings=77, bos_token_id=0, eos_token_id=2, pad_token_id=1)
    first = CLIPTextConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=1, projection_dim=32,
                           hidden_act="gelu" if family == "sd2" else "quick_gelu", **clip)
    found = {"text_encoder": CLIPTextModel(first), "unet": unet, "vae": vae}
    if family == "xl":
        second = CLIPTextConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=1,
                                projection_dim=24, hidden_act="gelu", **clip)
        found["text_encoder_2"] = CLIPTextModelWithProjection(second)
    return found


def folder_tensors(models):
    """Each part's tensors by the names in its file; transformers 5 leaves `text_model.` out, files do not."""
    def name(part, key):
        bare = part.startswith("text_encoder") and not key.startswith(("text_model.", "text_projection."))
        return f"text_model.{key}" if bare else key

    found = {part: {name(part, key): tensor for key, tensor in model.state_dict().items()} for part, model in models.items()}
    return {part: {key: rule(f"{part}.{key}", tensor.shape) for key, tensor in tensors.items()} for part, tensors in found.items()}


def to_single(family, folder, scripts):
    if family == "xl":
        convert = script(scripts, "convert_diffusers_to_original_sdxl")
        first = {f"conditioner.embedders.0.transformer.{k}": v for k, v in folder["text_encoder"].items()}
        second = convert.convert_openclip_text_enc_state_dict(folder["text_encoder_2"])
        # The script leaves the projection as transformers has it, which no reader of single files understands.
        second["text_projection"] = second.pop("text_projection.weight").T.contiguous()
        text = first | {f"conditioner.embedders.1.model.{k}": v for k, v in second.items()}
    else:
        convert = script(scripts, "convert_diffusers_to_original_stable_diffusion")
        if family == "sd2":
            named = {f"transformer.{k}": v for k, v in folder["text_encoder"].items()}
            text = {f"cond_stage_model.model.{k}": v for k, v in convert.convert_text_enc_state_dict_v20(named).items()}
        else:
            text = {f"cond_stage_model.transformer.{k}": v for k, v in folder["text_encoder"].items()}
    unet = {f"model.diffusion_model.{k}": v for k, v in convert.convert_unet_state_dict(folder["unet"]).items()}
    vae = {f"first_stage_model.{k}": v for k, v in vae_to_single(convert, folder["vae"]).items()}
    return unet | vae | text


def vae_to_single(convert, vae):
    """The scripts know either the attention's old names or its new ones."""
    if any(hf == "query." for _, hf in convert.vae_conversion_map_attn):
        old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
        for new, name in old.items():
            vae = {k.replace(new, name) if ".attentions." in k else k: v for k, v in vae.items()}
    converted = convert.convert_vae_state_dict(vae)
    # The older script reshapes biases too.
    return {k: v.reshape(-1) if k.endswith(".bias") else v for k, v in converted.items()}


def from_single(family, models, single):
    """What the package makes of a single file's tensors."""
    from diffusers.loaders import single_file_utils as utils

    tensors = {name: rule(name, tensor.shape) for name, tensor in single.items()}
    unet = utils.convert_ldm_unet_checkpoint(dict(tensors), models["unet"].config)
    vae = utils.convert_ldm_vae_checkpoint(dict(tensors), models["vae"].config)
    found = {"unet": unet, "vae": vae}
    if family == "sd2":
        found["text_encoder"] = utils.convert_open_clip_checkpoint(models["text_encoder"], dict(tensors), "cond_stage_model.model.")
    elif family == "sd1":
        found["text_encoder"] = utils.convert_ldm_clip_checkpoint(dict(tensors))
    else:
        found["text_encoder"] = utils.convert_ldm_clip_checkpoint(dict(tensors))
        found["text_encoder_2"] = utils.convert_open_clip_checkpoint(models["text_encoder_2"], dict(tensors), "conditioner.embedders.1.model.")
    for part, converted in found.items():
        expected = models[part].state_dict()
        named = {k.removeprefix("text_model.") if k not in expected else k: v for k, v in converted.items()}
        shapes = {k: v.reshape(expected[k].shape) for k, v in named.items() if k in expected}
        assert set(shapes) == set(expected), (part, set(expected) ^ set(named))
        prefix = lambda k: k if not part.startswith("text") or k.startswith(("text_model.", "text_projection.")) else f"text_model.{k}"
        found[part] = {prefix(k): v for k, v in shapes.items()}
    return found


def load(folder, picture):
    """Loads a folder as users do, strictly, and may draw with it."""
    import diffusers
    import transformers

    index = json.loads((folder / "model_index.json").read_text())
    for part, entry in index.items():
        if part.startswith("_") or not isinstance(entry, list) or entry[0] is None:
            continue
        library = {"diffusers": diffusers, "transformers": transformers}[entry[0]]
        if part in ("unet", "vae") or part.startswith("text_encoder"):
            _, info = getattr(library, entry[1]).from_pretrained(folder, subfolder=part, output_loading_info=True)
            wrong = {key: value for key, value in info.items() if value and key != "conversion_errors"}
            assert not wrong, (part, wrong)
    pipeline = getattr(diffusers, index["_class_name"]).from_pretrained(folder, torch_dtype=torch.float32)
    ids = pipeline.tokenizer("A cat, sleeping") if pipeline.tokenizer else pipeline.tokenizer_2("A cat, sleeping")
    assert ids["input_ids"] == [49406, 320, 2368, 267, 6982, 49407], ids
    print("loads whole:", type(pipeline).__name__, type(pipeline.scheduler).__name__)
    if picture:
        size = dict(width=128, height=128)
        pipeline("a house with a red roof on green hills", num_inference_steps=8, generator=torch.Generator().manual_seed(1),
                 guidance_scale=3.0, **size).images[0].save(picture)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--scripts", type=pathlib.Path)
    options.add_argument("--out", type=pathlib.Path)
    options.add_argument("--load", type=pathlib.Path)
    options.add_argument("--picture", type=pathlib.Path)
    options = options.parse_args()
    if options.load:
        return load(options.load, options.picture)
    import diffusers
    import transformers
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__}
    for family in ("sd1", "sd2", "xl"):
        models = parts(family)
        folder = folder_tensors(models)
        single = to_single(family, folder, options.scripts)
        answer = {
            "versions": versions, "family": family,
            "folder": {part: [[name, list(tensor.shape)] for name, tensor in sorted(tensors.items())] for part, tensors in folder.items()},
            "single": listed(single),
            "from_single": {part: listed(tensors) for part, tensors in from_single(family, models, single).items()},
        }
        text = json.dumps(answer, indent=0).replace("[\n", "[").replace("\n]", "]").replace(",\n", ", ").replace("], [\"", "],\n[\"")
        (options.out / f"layout_{family}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
