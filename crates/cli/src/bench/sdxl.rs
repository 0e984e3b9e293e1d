//! `safelight bench unet --family sdxl`: the UNet of SDXL with random weights, the only part of that family there is.

use safelight_diffusion::nn::{RandomWeights, Trace};
use safelight_diffusion::unet::{Addition, UNet, UNetConfig};
use safelight_tensor::Tensor;

use super::{downscale, latent, measured, report, wave};
use crate::args::{BenchArgs, BenchPart};
use crate::error::Failure;
use crate::progress::Progress;

/// Width and height the family was trained at.
const SIDE: u32 = 1024;

/// Tokens of a prompt.
const TOKENS: usize = 77;

pub(super) fn run(args: &BenchArgs, progress: &mut Progress) -> Result<(), Failure> {
    let factor = downscale(None);
    let (height, width) = latent(args, Some((SIDE, SIDE)), factor)?;
    progress.stage("making random weights");
    let config = UNetConfig::sdxl();
    let unet = UNet::load_in(&RandomWeights { seed: 0 }, config, args.model.ways())
        .map_err(|error| Failure::Machine(error.to_string()))?;
    progress.clear();
    let batch = usize::from(args.batch);
    let inputs = Inputs::new(unet.config(), batch, (height, width), factor);
    let times = vec![500.0; batch];
    // As of SD 1.5, each pass prepares its text.
    let run = || {
        let addition = Addition {
            pooled: &inputs.pooled,
            time_ids: &inputs.time_ids,
        };
        let text = unet.prepare_with(&inputs.context, addition);
        drop(unet.forward_prepared(&inputs.latent, &times, &text, &mut Trace::off()));
    };
    let name = "random weights of SDXL";
    report(
        args,
        BenchPart::Unet,
        name,
        (height, width),
        measured(args, &run)?,
    )
}

/// What a pass takes in.
struct Inputs {
    latent: Tensor,
    context: Tensor,
    pooled: Tensor,
    time_ids: Tensor,
}

impl Inputs {
    fn new(
        config: &UNetConfig,
        batch: usize,
        (height, width): (usize, usize),
        factor: usize,
    ) -> Inputs {
        let addition = config.addition.as_ref().expect("SDXL has one");
        let size = [height, width].map(|side| (side * factor) as f32);
        // An original of the picture's size, not cropped.
        let numbers = [size, [0.0; 2], size].concat().repeat(batch);
        Inputs {
            latent: wave(&[batch, height, width, config.in_channels]),
            context: wave(&[batch, TOKENS, config.context_channels]),
            pooled: wave(&[batch, addition.pooled_channels]),
            time_ids: Tensor::from_slice(&[batch, addition.time_ids], &numbers),
        }
    }
}
