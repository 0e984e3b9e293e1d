"""Golden files of whole UNets, and of one UNet block by block."""

import torch

import models
from common import noise, save

# case: layout, seed, batch, (height, width), timesteps, context tokens
CASES = {
    "s1_8x8": ("unet_s1", 21, 1, (8, 8), [981], 77),
    "s1_16x16": ("unet_s1", 22, 1, (16, 16), [1], 77),
    "s1_9x13": ("unet_s1", 23, 2, (9, 13), [999.0, 250.5], 77),
    "s1_3x2": ("unet_s1", 24, 1, (3, 2), [0], 77),
    # Not with 32 channels: norm groups of two values there leave f32 itself an error of 4e-5.
    "m1_1x5": ("unet_m1", 25, 1, (1, 5), [333.25], 77),
    "m1_1x1": ("unet_m1", 40, 2, (1, 1), [600.0, 7.0], 77),
    "s1_faint": ("unet_s1", 37, 1, (10, 6), [100], 77),
    "m1_7x16": ("unet_m1", 26, 1, (7, 16), [500], 77),
    "m1_16x8": ("unet_m1", 27, 2, (16, 8), [749.25, 749.25], 154),
    "s2_11x5": ("unet_s2", 28, 2, (11, 5), [801.0, 3.0], 77),
    "s2_8x8": ("unet_s2", 29, 1, (8, 8), [42], 77),
    "linear_8x8": ("unet_linear", 30, 1, (8, 8), [961], 77),
    "linear_13x9": ("unet_linear", 31, 2, (13, 9), [20.0, 980.0], 77),
    "inpaint_8x8": ("unet_inpaint", 32, 2, (8, 8), [400.0, 400.0], 77),
    "inpaint_9x7": ("unet_inpaint", 33, 1, (9, 7), [700], 77),
    "groups_8x10": ("unet_groups", 34, 1, (8, 10), [601], 77),
    "groups_7x7": ("unet_groups", 35, 1, (7, 7), [101.75], 231),
    "xl_8x8": ("unet_xl", 43, 1, (8, 8), [961], 77),
    "xl_9x7": ("unet_xl", 46, 2, (9, 7), [20.0, 961.0], 77),
}
# Of the cases like SDXL's: the numbers about each picture that go with the pooled text.
TIME_IDS = {
    "xl_8x8": [[1024, 1024, 0, 0, 1024, 1024]],
    "xl_9x7": [[512, 768, 17, 33.5, 1152, 896], [2048, 301, 0, 256, 64, 1024]],
}
# Modules whose outputs a trace holds, by diffusers' names.
KINDS = ("resnets", "attentions", "downsamplers", "upsamplers")


def traced(model, run):
    """The outputs of conv_in, the embeddings of time and more, and every block of `model` while `run()` runs."""
    seen = {}
    handles = []
    for name, module in model.named_modules():
        part = name.split(".")
        if name in ("conv_in", "time_embedding", "add_embedding") or (len(part) >= 3 and part[-2] in KINDS):
            def keep(_module, _input, output, name=name):
                output = output[0] if isinstance(output, tuple) else output
                seen[name] = getattr(output, "sample", output)
            handles.append(module.register_forward_hook(keep))
    result = run()
    for handle in handles:
        handle.remove()
    return result, seen


def make(out):
    built = {}
    for case, (layout, seed, batch, (height, width), steps, tokens) in CASES.items():
        model = models.build(layout, seed)["unet"]
        # Faint input makes the epsilon of the norms decide.
        scale = 0.01 if case.endswith("faint") else 1.0
        x = scale * noise(seed, batch, model.config.in_channels, height, width)
        context = noise(seed + 1000, batch, tokens, model.config.cross_attention_dim)
        # An integer stays one: diffusers treats both alike, and this shows it.
        t = torch.tensor(steps)
        inputs = {"in.x": x, "in.t": t.float(), "in.context": context}
        added = None
        if case in TIME_IDS:
            pooled = model.config.projection_class_embeddings_input_dim - 6 * model.config.addition_time_embed_dim
            added = {"text_embeds": noise(seed + 2000, batch, pooled), "time_ids": torch.tensor(TIME_IDS[case]).float()}
            inputs |= {"in.pooled": added["text_embeds"], "in.time_ids": added["time_ids"]}
        with torch.no_grad():
            result, seen = traced(model, lambda: model(x, t, context, added_cond_kwargs=added).sample)
        assert result.shape[2:] == x.shape[2:]
        save(out, f"unet/{case}", {**inputs, "out.y": result}, "unet.py", 1e-4, layout=layout, seed=seed)
        if case in ("s1_9x13", "linear_8x8", "s2_11x5", "xl_9x7"):
            save(out, f"trace/unet_{case}", {**inputs, **{f"out.{name}": value for name, value in seen.items()}},
                 "unet.py", 1e-5, values_max=600, layout=layout, seed=seed)


if __name__ == "__main__":
    import sys
    make(sys.argv[1])
