//! From a checkpoint to networks: what a file is, whether it can be drawn with, and its weights, read and packed.
//!
//! [`describe`] looks at the header alone. [`Model::load`] then reads tensor by tensor, so that a model never needs
//! more than its packed weights and a few tensors beside. Bytes are `safelight_store`'s; arithmetic begins in
//! [`crate::nn`].

mod error;
mod family;
mod files;
mod info;
mod json;
mod keys;
mod parts;
mod shapes;
mod stored;
mod tiny;

pub use error::{LoadError, Problem};
pub use family::Family;
pub(crate) use files::LEAN_RESIDENT_BYTES;
pub use files::ModelFiles;
pub use info::{ModelInfo, PartInfo, Task};
pub use keys::{Naming, Part};
pub(crate) use stored::not_finite;
pub use tiny::load_tiny;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use safelight_store::Checkpoint;

use crate::nn::{RandomWeights, Weights};
use crate::precision::Ways;
use crate::schedule::{Betas, Prediction};
use crate::text::{TextConfig, TextEncoder};
use crate::tiny::TinyDecoder;
use crate::unet::{UNet, UNetConfig};
use crate::vae::{Vae, VaeConfig};
use parts::{Folder, Held, Parts};

/// A model, ready to draw.
///
/// ```no_run
/// use safelight_diffusion::load::{LoadOptions, Model};
/// use safelight_tensor::Tensor;
///
/// let model = Model::load("v1-5-pruned-emaonly.safetensors".as_ref(), &LoadOptions::default())?;
/// let text = model.text.forward(&[49406, 320, 2368, 49407], 1);
/// let noise = model.unet.forward(&Tensor::zeros(&[1, 64, 64, 4]), &[999.0], &text);
/// let picture = model.vae.decode(&noise);
/// assert_eq!(picture.shape(), [1, 512, 512, 3]);
/// # Ok::<(), safelight_diffusion::load::LoadError>(())
/// ```
pub struct Model {
    /// Reads the prompt.
    pub text: TextEncoder,
    /// Removes noise.
    pub unet: UNet,
    /// Turns latents into pictures and back.
    pub vae: Vae,
    /// Turns latents into pictures instead of the VAE, if it was asked for.
    pub tiny: Option<TinyDecoder>,
    /// What the files said.
    pub info: ModelInfo,
}

/// What to do otherwise than the file says.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Take the VAE from this file.
    pub vae: Option<PathBuf>,
    /// Decode with the tiny decoder (TAESD) in this file: much faster, with less detail.
    pub tiny: Option<PathBuf>,
    /// What the UNet predicts, where the file does not say or says wrongly.
    pub prediction: Option<Prediction>,
    /// How its networks are computed.
    pub ways: Ways,
}

impl Model {
    /// Loads a single-file checkpoint, a sharded one by its index, or a diffusers folder.
    ///
    /// # Errors
    /// If the path cannot be read, holds another family, or lacks or spoils any weight: all of them are named at once.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Model, LoadError> {
        ModelFiles::open(path, options)?.load()
    }

    /// A model of Stable Diffusion 1.5's structure out of random weights: to measure, not to draw with.
    ///
    /// The same `seed` gives the same weights. Takes as much memory as a real one, in f32 about 4 GB.
    ///
    /// # Errors
    /// None in practice: nothing is read from a file.
    pub fn random_sd15(seed: u64, ways: impl Into<Ways>) -> Result<Model, LoadError> {
        Model::sd15_of(&RandomWeights { seed }, ways)
    }

    /// As [`Model::random_sd15`], out of `weights` under diffusers' names, such as
    /// [`HeavyTailedWeights`](crate::nn::HeavyTailedWeights).
    ///
    /// # Errors
    /// Where `weights` has one, or does not have a tensor of the structure.
    pub fn sd15_of(weights: &dyn Weights, ways: impl Into<Ways>) -> Result<Model, LoadError> {
        let ways = ways.into();
        let of = |part| ways.of_part(part);
        let text = TextEncoder::load_in(weights, TextConfig::sd15(), of(Part::TextEncoder))?;
        let unet = UNet::load_in(weights, UNetConfig::sd15(), of(Part::UNet))?;
        let vae = Vae::load_in(weights, VaeConfig::sd15(), of(Part::Vae))?;
        let info = ModelInfo {
            label: weights.label(),
            family: Family::StableDiffusion1,
            saw: "asked for".into(),
            task: Task::TextToImage,
            parts: Vec::new(),
            text: Some(text.config().clone()),
            unet: Some(unet.config().clone()),
            vae: Some(vae.config().clone()),
            prediction: Prediction::Epsilon,
            betas: Betas::STABLE_DIFFUSION,
            zero_terminal_snr: false,
            scheduler: None,
            title: None,
            ignored_tensors: 0,
            problems: Vec::new(),
        };
        Ok(Model {
            text,
            unet,
            vae,
            tiny: None,
            info,
        })
    }

    /// Loads a checkpoint that is already open.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
    ) -> Result<Model, LoadError> {
        let mut parts = Parts::of(&Held::Lent(checkpoint));
        let info = described(&mut parts, options)?;
        let tiny = tiny_of(&info, options)?;
        whole(&parts, info, tiny, options.ways)
    }
}

/// Describes parts with which `options` has its ways, and that can be drawn with.
fn described(parts: &mut Parts<'_>, options: &LoadOptions) -> Result<ModelInfo, LoadError> {
    if let Some(path) = &options.vae {
        let checkpoint = Arc::new(Checkpoint::open(path)?);
        parts.replace_vae(&Held::Shared(checkpoint))?;
    }
    let mut info = parts.describe()?;
    info.prediction = options.prediction.unwrap_or(info.prediction);
    info.usable()?;
    Ok(info)
}

/// The tiny decoder that `options` asks for, made for the latents that `info` describes.
fn tiny_of(info: &ModelInfo, options: &LoadOptions) -> Result<Option<TinyDecoder>, LoadError> {
    let latents = info.vae.as_ref().expect("a usable model has a VAE");
    let latents = (latents.latent_channels, latents.downscale());
    let ways = options.ways.of_part(Part::Vae);
    let tiny = options.tiny.as_deref();
    tiny.map(|path| load_tiny(path, latents, ways)).transpose()
}

/// All networks of the parts that `info` describes.
fn whole(
    parts: &Parts<'_>,
    info: ModelInfo,
    tiny: Option<TinyDecoder>,
    ways: Ways,
) -> Result<Model, LoadError> {
    let (text, unet, vae) = parts.load(&info, ways)?;
    Ok(Model {
        text,
        unet,
        vae,
        tiny,
        info,
    })
}

/// The parts of a single file, a sharded checkpoint or a diffusers folder.
fn parts_at(path: &Path) -> Result<Parts<'static>, LoadError> {
    if path.is_dir() {
        return Folder::open(path)?.parts();
    }
    let checkpoint = Arc::new(Checkpoint::open(path)?);
    let mut parts = Parts::of(&Held::Shared(checkpoint));
    parts.read_sidecar(path)?;
    Ok(parts)
}

/// Describes a checkpoint from its header; no weights are read.
pub fn describe(checkpoint: &Checkpoint) -> ModelInfo {
    Parts::of(&Held::Lent(checkpoint)).describe_file()
}

/// Describes a single file, a sharded checkpoint or a diffusers folder; no weights are read.
///
/// # Errors
/// If the files cannot be read or are not safetensors. A readable file that is no usable model is no error here: see
/// [`ModelInfo::problems`].
pub fn describe_path(path: &Path) -> Result<ModelInfo, LoadError> {
    parts_at(path)?.describe()
}

/// Loads the text encoder of a checkpoint alone.
///
/// # Errors
/// If it is not there or not whole.
pub fn load_text(checkpoint: &Checkpoint) -> Result<TextEncoder, LoadError> {
    Parts::of(&Held::Lent(checkpoint)).load_text()
}

/// Loads the UNet of a checkpoint alone.
///
/// # Errors
/// If it is not there or not whole.
pub fn load_unet(checkpoint: &Checkpoint) -> Result<UNet, LoadError> {
    Parts::of(&Held::Lent(checkpoint)).load_unet()
}

/// Loads the VAE of a checkpoint alone.
///
/// # Errors
/// If it is not there or not whole.
pub fn load_vae(checkpoint: &Checkpoint) -> Result<Vae, LoadError> {
    Parts::of(&Held::Lent(checkpoint)).load_vae()
}
