"""Golden files of the tiny decoder (TAESD): diffusers' AutoencoderTiny on latents as the UNet has them."""

import torch
from diffusers import AutoencoderTiny

import weights
from common import noise, save

# case: seed, width, blocks, batch, (height, width) of the latent
CASES = {
    "tiny_16_5x9": (81, 16, (3, 3, 3, 1), 2, (5, 9)),
    "tiny_24_4x3": (82, 24, (1, 2, 0, 1), 1, (4, 3)),
}


def make(out):
    torch.set_num_threads(1)
    for case, (seed, width, blocks, batch, (height, wide)) in CASES.items():
        levels = len(blocks)
        model = AutoencoderTiny(
            encoder_block_out_channels=(width,) * levels, decoder_block_out_channels=(width,) * levels,
            num_encoder_blocks=blocks[::-1], num_decoder_blocks=blocks).eval()
        shapes = {}
        with torch.no_grad():
            for name, value in model.decoder.state_dict().items():
                full = f"decoder.{name}"
                shapes[full] = list(value.shape)
                value.copy_(weights.tensor(full, list(value.shape), seed))
            # Large enough for the first squeezing to be seen.
            latent = 3 * noise(seed, batch, 4, height, wide)
            image = model.decode(latent).sample
        save(out, f"tiny/{case}", {"in.latent": latent, "out.image": image}, "tiny.py", 1e-5, seed=seed, shapes=shapes)


if __name__ == "__main__":
    import sys
    make(sys.argv[1])
