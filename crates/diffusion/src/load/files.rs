//! A model that stays in its files: each network is read when a drawing needs it and dropped after.
//!
//! What is needed when is [`crate::pipeline`]'s business; here is how a network comes.

use std::path::Path;
use std::sync::Arc;

use safelight_store::Checkpoint;

use super::parts::{Held, Parts};
use super::{LoadError, LoadOptions, Model, ModelInfo};
use crate::nn::Failures;
use crate::precision::Ways;
use crate::text::TextEncoder;
use crate::tiny::TinyDecoder;
use crate::unet::UNet;
use crate::vae::Vae;

/// Packed weights that a UNet keeps where memory is to be low: with the largest weight that is fetched and the activations
/// of a picture of 512×512 that makes less than 1.8 GB.
pub(crate) const LEAN_RESIDENT_BYTES: usize = 900_000_000;

/// A model in its files, of which a drawing holds in memory what it needs at the time.
///
/// For one drawing from a cold start. Who draws again and again with the same model keeps a [`Model`].
///
/// ```no_run
/// use safelight_diffusion::{load::{LoadOptions, ModelFiles}, pipeline::Request};
/// use std::ops::ControlFlow;
///
/// let files = ModelFiles::open("v1-5-pruned-emaonly.safetensors".as_ref(), &LoadOptions::default())?;
/// let pictures = files.generate(&Request::default(), |_progress| ControlFlow::Continue(()))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ModelFiles {
    parts: Parts<'static>,
    info: ModelInfo,
    ways: Ways,
    tiny: Option<TinyDecoder>,
}

impl ModelFiles {
    /// Opens a single-file checkpoint, a sharded one by its index, or a diffusers folder; no weights are read but
    /// those of a tiny decoder.
    ///
    /// # Errors
    /// If the path cannot be read, holds another family, or lacks any weight: all of them are named at once.
    pub fn open(path: &Path, options: &LoadOptions) -> Result<ModelFiles, LoadError> {
        ModelFiles::of(super::parts_at(path)?, options)
    }

    /// Takes a checkpoint that is open.
    ///
    /// # Errors
    /// As [`ModelFiles::open`].
    pub fn from_checkpoint(
        checkpoint: Checkpoint,
        options: &LoadOptions,
    ) -> Result<ModelFiles, LoadError> {
        ModelFiles::of(Parts::of(&Held::Shared(Arc::new(checkpoint))), options)
    }

    fn of(mut parts: Parts<'static>, options: &LoadOptions) -> Result<ModelFiles, LoadError> {
        let info = super::described(&mut parts, options)?;
        let tiny = super::tiny_of(&info, options)?;
        Ok(ModelFiles {
            parts,
            info,
            ways: options.ways,
            tiny,
        })
    }

    /// What the files say.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// How its networks will be computed.
    pub fn ways(&self) -> Ways {
        self.ways
    }

    /// Loads all networks, to keep them.
    ///
    /// # Errors
    /// If a weight cannot be read or is no number: all of those are named at once.
    pub fn load(self) -> Result<Model, LoadError> {
        super::whole(&self.parts, self.info, self.tiny, self.ways)
    }

    pub(crate) fn text(&self) -> Result<TextEncoder, LoadError> {
        self.parts.text_of(&self.info, self.ways)
    }

    /// The UNet; where memory is to be low, with [`LEAN_RESIDENT_BYTES`] of weights, and its failures to fetch the others.
    pub(crate) fn unet(&self) -> Result<(UNet, Option<Failures>), LoadError> {
        if !self.ways.lean {
            return Ok((self.parts.unet_of(&self.info, self.ways)?, None));
        }
        let resident_bytes = LEAN_RESIDENT_BYTES;
        let (unet, failures) =
            self.parts
                .fetching_unet_of(&self.info, self.ways, resident_bytes)?;
        Ok((unet, Some(failures)))
    }

    /// The tiny decoder, which is small enough to be there from the beginning.
    pub(crate) fn tiny(&self) -> Option<&TinyDecoder> {
        self.tiny.as_ref()
    }

    pub(crate) fn vae(&self) -> Result<Vae, LoadError> {
        self.parts.vae_of(&self.info, self.ways)
    }

    /// Finds values of the VAE that are no numbers now rather than after all steps; it is the last to be loaded.
    pub(crate) fn check_vae(&self) -> Result<(), LoadError> {
        self.parts.check_vae(&self.info)
    }
}
