"""Checks an exported file against the networks as they were trained, through diffusers' own pipeline.

Draws a few captions twice from the same noise: once with the averaged training weights, compact
token table and standardised latents, once with the file in an unmodified StableDiffusionPipeline.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor

import model as m
from captions import held_out
from evaluate import README_PROMPT, SCHEDULE, Demo
from training import load


class Trained(Demo):
    """The networks straight from the training state."""

    def __init__(self, state: Path) -> None:
        self.unet, self.vae = m.unet().eval(), m.autoencoder().eval()
        self.unet.load_state_dict(load(state / "unet.pt")["average"])
        self.vae.load_state_dict(load(state / "vae.pt")["average"])
        self.tokens = m.Tokens()
        self.text = m.text_encoder(len(self.tokens)).eval()
        taught = load(state / "text.pt")["average"]
        self.text.load_state_dict({k.removeprefix("encoder."): v for k, v in taught.items() if k.startswith("encoder.")})
        # `draw` divides by the scale factor before decoding; these latents have none.
        self.vae.post_quant_conv.weight.data *= m.SCALE_FACTOR

    def context(self, texts: list[str]) -> torch.Tensor:
        return self.text(torch.tensor([self.tokens.rows(text) for text in texts])).last_hidden_state


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--state", type=Path, default=Path("demo-state"))
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--cfg", type=float, default=2.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    texts = [README_PROMPT] + [e["caption"] for e in held_out()[:3]]
    exported = Demo(args.model)
    pipeline = StableDiffusionPipeline(
        vae=exported.vae, unet=exported.unet, text_encoder=exported.text, tokenizer=None, feature_extractor=None,
        scheduler=DPMSolverMultistepScheduler(**SCHEDULE, use_karras_sigmas=True), safety_checker=None,
        requires_safety_checker=False)
    pipeline.unet.set_attn_processor(AttnProcessor())
    noise = torch.randn(len(texts), 4, 16, 16, generator=torch.Generator().manual_seed(5))
    through_pipeline = pipeline(
        prompt_embeds=exported.context(texts), negative_prompt_embeds=exported.context([""] * len(texts)), latents=noise,
        num_inference_steps=args.steps, guidance_scale=args.cfg, height=128, width=128, output_type="np").images * 255
    trained = Trained(args.state).draw(texts, 5, args.steps, args.cfg)
    ours = exported.draw(texts, 5, args.steps, args.cfg)
    for name, other in (("this project's sampling loop on the file", ours), ("training weights", trained)):
        difference = np.abs(through_pipeline - other.astype(np.float32))
        print(f"pipeline on the file against {name}: mean {difference.mean():.2f}, largest {difference.max():.0f} of 255")


if __name__ == "__main__":
    main()
