//! Checkpoint layouts: LDM's single file and diffusers' folder, for Stable Diffusion 1.x, 2.x and XL.
//!
//! [`Model::find`] recognises either layout in any source and gives every tensor diffusers' name; [`Model::to_ldm`]
//! gives the single file's names back, and [`Model::to_folder`] writes a folder that diffusers loads. Everything is told
//! from names and shapes, so models of any width and depth will do. No number is changed: tensors are renamed, cut,
//! joined and transposed.

mod config;
mod find;
mod folder;
mod ldm;
pub mod names;
pub mod text;
mod tokenizer;

pub use find::{Layout, Model, Part, PartKind};
pub use folder::{FolderOptions, FolderReport, FolderSource, is_diffusers_folder};
pub use tokenizer::CLIP_MERGES;

/// Which Stable Diffusion a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// SD 1.x: CLIP-L, `proj_in` a convolution.
    Sd1,
    /// SD 2.x: OpenCLIP-H, `proj_in` linear.
    Sd2,
    /// SDXL: CLIP-L and OpenCLIP-bigG.
    Xl,
    /// SDXL's refiner: OpenCLIP-bigG alone.
    XlRefiner,
}

impl Family {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Family::Sd1 => "SD 1.x",
            Family::Sd2 => "SD 2.x",
            Family::Xl => "SDXL",
            Family::XlRefiner => "SDXL refiner",
        }
    }

    /// The side of a picture it was trained on.
    fn picture_size(self, prediction: Prediction) -> u64 {
        match (self, prediction) {
            (Family::Sd1, _) | (Family::Sd2, Prediction::Epsilon) => 512,
            (Family::Sd2, Prediction::V) => 768,
            (Family::Xl | Family::XlRefiner, _) => 1024,
        }
    }

    /// What latents are multiplied with, so that their spread is about one.
    fn latent_scale(self) -> f64 {
        match self {
            Family::Sd1 | Family::Sd2 => 0.18215,
            Family::Xl | Family::XlRefiner => 0.13025,
        }
    }
}

/// What a UNet predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// The velocity of arXiv:2202.00512.
    V,
}

impl Prediction {
    /// As diffusers' scheduler configurations call it.
    pub fn diffusers_name(self) -> &'static str {
        match self {
            Prediction::Epsilon => "epsilon",
            Prediction::V => "v_prediction",
        }
    }

    /// As `modelspec.prediction_type` calls it.
    pub fn modelspec_name(self) -> &'static str {
        match self {
            Prediction::Epsilon => "epsilon",
            Prediction::V => "v",
        }
    }

    /// Of either name, and A1111's.
    pub fn from_name(name: &str) -> Option<Prediction> {
        match name {
            "epsilon" | "eps" => Some(Prediction::Epsilon),
            "v" | "v_prediction" | "v-prediction" => Some(Prediction::V),
            _ => None,
        }
    }
}
