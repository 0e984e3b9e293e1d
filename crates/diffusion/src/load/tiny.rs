//! The tiny decoder in its files: which layout, how wide, how many blocks.
//!
//! Two layouts are common: `taesd_decoder.safetensors` numbers everything from its first clamp on (`1.weight`,
//! `3.conv.0.weight`), diffusers' `AutoencoderTiny` does without the clamp and has the encoder beside it
//! (`decoder.layers.0.weight`, `decoder.layers.2.conv.0.weight`).

use std::collections::BTreeMap;
use std::path::Path;

use safelight_format::{Dtype, TensorInfo};
use safelight_store::Checkpoint;

use super::keys::Stored;
use super::parts::fits;
use super::{LoadError, Problem};
use crate::nn::Weights;
use crate::precision::Ways;
use crate::tiny::{TinyConfig, TinyDecoder};

/// Where the numbers stand in each layout, and the number of the first convolution.
const LAYOUTS: [(&str, usize); 4] = [
    ("decoder.layers.", 0),
    ("", 1),
    ("decoder.", 1),
    ("taesd_decoder.", 1),
];
/// Numbers beyond this are no layers.
const LAYERS_MAX: usize = 200;
/// What the modules' names begin with.
const OURS: &str = "decoder.layers.";
/// diffusers' name for the file in a folder.
const FOLDER_FILE: &str = "diffusion_pytorch_model.safetensors";

/// Loads a tiny decoder for latents of `latent_channels` that a VAE makes from `downscale` times as many pixels a side.
///
/// `path` is a file in either layout, or a folder of diffusers'.
///
/// # Errors
/// If it cannot be read, is no tiny decoder, is one for other latents, or lacks or spoils any weight.
pub fn load_tiny(
    path: &Path,
    (latent_channels, downscale): (usize, usize),
    ways: Ways,
) -> Result<TinyDecoder, LoadError> {
    let file = if path.is_dir() {
        path.join(FOLDER_FILE)
    } else {
        path.to_owned()
    };
    let checkpoint = Checkpoint::open(&file)?;
    let tensors: Vec<TensorInfo<'_>> = checkpoint.tensors().collect();
    let source = TinySource::find(&checkpoint, &tensors);
    let found = source.and_then(|source| Some((source.config()?, source)));
    let Some((config, source)) = found else {
        let what = "this is no tiny decoder (TAESD): there is neither `1.weight` beside `3.conv.0.weight` nor `decoder.layers.0.weight` \
                    beside `decoder.layers.2.conv.0.weight`";
        let problem = Problem::MissingPart { what: what.into() };
        return Err(unusable(&checkpoint, problem));
    };
    if (config.latent_channels, config.upscale()) != (latent_channels, downscale) {
        let what = format!(
            "a tiny decoder for latents of {} channels and {} pixels a side; this model's have {latent_channels} channels and {downscale} pixels",
            config.latent_channels,
            config.upscale()
        );
        return Err(unusable(&checkpoint, Problem::Unsupported { what }));
    }
    TinyDecoder::load(&source, config, ways)
}

fn unusable(checkpoint: &Checkpoint, problem: Problem) -> LoadError {
    LoadError::Weights {
        label: checkpoint.label().to_string(),
        problems: vec![problem],
    }
}

/// The decoder's tensors under the modules' names.
struct TinySource<'c> {
    checkpoint: &'c Checkpoint,
    layout: (&'static str, usize),
    stored: BTreeMap<String, Stored>,
}

impl<'c> TinySource<'c> {
    /// The first layout in which there is a residual block.
    fn find(checkpoint: &'c Checkpoint, tensors: &[TensorInfo<'_>]) -> Option<TinySource<'c>> {
        LAYOUTS.into_iter().find_map(|layout| {
            let stored: BTreeMap<_, _> = tensors
                .iter()
                .filter_map(|tensor| {
                    let ours = ours(tensor.name, layout)?;
                    let (name, shape) = (tensor.name.to_owned(), tensor.shape.to_vec());
                    let dtype = tensor.dtype;
                    Some((ours, Stored { name, dtype, shape }))
                })
                .collect();
            let source = TinySource {
                checkpoint,
                layout,
                stored,
            };
            (0..LAYERS_MAX)
                .any(|idx| source.is_block(idx))
                .then_some(source)
        })
    }

    fn is_block(&self, idx: usize) -> bool {
        self.stored
            .contains_key(&format!("{OURS}{idx}.conv.0.weight"))
    }

    /// Residual blocks between convolutions, as far as they are numbered; what is missing is found on loading.
    fn config(&self) -> Option<TinyConfig> {
        let first = self.stored.get(&format!("{OURS}0.weight"))?;
        let size = |axis: usize| usize::try_from(*first.shape.get(axis)?).ok();
        let (mut blocks, mut count) = (Vec::new(), 0);
        for idx in 1..LAYERS_MAX {
            if self.is_block(idx) {
                count += 1;
            } else if self.stored.contains_key(&format!("{OURS}{idx}.weight")) {
                blocks.push(std::mem::take(&mut count));
            }
        }
        let sound = !blocks.is_empty() && blocks.len() <= 8;
        Some(TinyConfig {
            latent_channels: size(1)?,
            width: size(0)?,
            blocks,
        })
        .filter(|_| sound)
    }
}

/// The modules' name of a tensor in this layout.
fn ours(name: &str, (prefix, first): (&str, usize)) -> Option<String> {
    let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    let idx = number.parse::<usize>().ok()?.checked_sub(first)?;
    Some(format!("{OURS}{idx}.{rest}"))
}

impl Weights for TinySource<'_> {
    fn check(&self, name: &str, shapes: &[Vec<usize>]) -> Result<(), Problem> {
        fits(self.stored.get(name), self.stored_name(name), shapes)
    }

    fn read(&self, name: &str, _count: usize) -> Result<Vec<f32>, LoadError> {
        Ok(self.checkpoint.read_f32(&self.stored_name(name))?)
    }

    fn read_stored(&self, name: &str, _count: usize) -> Result<(Dtype, Vec<u8>), LoadError> {
        let stored = &self.stored[name];
        Ok((stored.dtype, self.checkpoint.read_bytes(&stored.name)?))
    }

    fn stored_name(&self, name: &str) -> String {
        let (prefix, first) = self.layout;
        let theirs = |name: &str| {
            let (number, rest) = name.strip_prefix(OURS)?.split_once('.')?;
            Some(format!(
                "{prefix}{}.{rest}",
                number.parse::<usize>().ok()? + first
            ))
        };
        theirs(name).unwrap_or_else(|| name.to_owned())
    }

    fn label(&self) -> String {
        self.checkpoint.label().to_string()
    }
}
