//! What is said of a model before it is loaded.

use safelight_format::Dtype;

use super::{Family, LoadError, Naming, Part, Problem};
use crate::schedule::{Betas, Prediction};
use crate::text::TextConfig;
use crate::unet::UNetConfig;
use crate::vae::VaeConfig;

/// A model as its header (and a folder's JSON files) describe it.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// The file or folder.
    pub label: String,
    /// Its family.
    pub family: Family,
    /// What gave the family away.
    pub saw: String,
    /// What the UNet was made for, as far as its input channels tell.
    pub task: Task,
    /// The parts that are there, in the order of [`Part::ALL`].
    pub parts: Vec<PartInfo>,
    /// The text encoder's structure.
    pub text: Option<TextConfig>,
    /// The UNet's structure.
    pub unet: Option<UNetConfig>,
    /// The VAE's structure.
    pub vae: Option<VaeConfig>,
    /// What the UNet predicts.
    pub prediction: Prediction,
    /// The noise schedule it was trained on.
    pub betas: Betas,
    /// Whether that schedule was rescaled to end in pure noise.
    pub zero_terminal_snr: bool,
    /// A diffusers folder's `scheduler_config.json`, which diffusers' samplers take their settings from.
    pub scheduler: Option<serde_json::Value>,
    /// `modelspec.title` of the metadata.
    pub title: Option<String>,
    /// Tensors that belong to no part and are ignored.
    pub ignored_tensors: usize,
    /// Why it cannot be used; empty if it can, as far as the header tells.
    pub problems: Vec<Problem>,
}

/// One part of a model.
#[derive(Clone, Debug)]
pub struct PartInfo {
    /// Which.
    pub part: Part,
    /// How the file names its tensors.
    pub naming: Naming,
    /// How many tensors the file has of it.
    pub tensors: usize,
    /// How many numbers they hold.
    pub parameters: u64,
    /// Tensors stored in each dtype, commonest first.
    pub dtypes: Vec<(Dtype, usize)>,
}

/// What a UNet was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Pictures from text (and from pictures, by adding noise).
    TextToImage,
    /// Filling masked regions: mask and masked picture are inputs.
    Inpaint,
    /// Editing by instruction: the picture is an input.
    InstructPix2Pix,
}

impl ModelInfo {
    /// The part's description, if the file has it.
    pub fn part(&self, part: Part) -> Option<&PartInfo> {
        self.parts.iter().find(|info| info.part == part)
    }

    /// `Ok` if pictures can be drawn with it, as far as the header tells.
    ///
    /// # Errors
    /// [`LoadError::Family`] for another family, [`LoadError::Weights`] for the problems.
    pub fn usable(&self) -> Result<(), LoadError> {
        let (label, family) = (self.label.clone(), self.family);
        if !family.is_supported() {
            return Err(LoadError::Family {
                label,
                family,
                saw: self.saw.clone(),
            });
        }
        match self.problems.is_empty() {
            true => Ok(()),
            false => Err(LoadError::Weights {
                label,
                problems: self.problems.clone(),
            }),
        }
    }
}
