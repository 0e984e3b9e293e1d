//! Which networks a drawing has in memory at a time.

use safelight_tensor::pool;

use super::request::GenerateError;
use crate::load::{LoadError, Model, ModelFiles, Part};
use crate::nn::Failures;
use crate::text::TextEncoder;
use crate::tiny::TinyDecoder;
use crate::unet::UNet;
use crate::vae::Vae;

/// Told which part is about to be read; may stop the drawing.
pub(super) type Loading<'a> = &'a mut dyn FnMut(Part) -> Result<(), GenerateError>;

/// The networks of one drawing.
pub(super) enum Networks<'a> {
    /// All are there and stay.
    Resident(&'a Model),
    /// They are in files.
    Staged(Box<Staged<'a>>),
}

/// One network at a time, or, where several pictures are drawn and memory need not be low, the UNet and the VAE.
pub(super) struct Staged<'a> {
    files: &'a ModelFiles,
    keeps_both: bool,
    text: Option<TextEncoder>,
    unet: Option<(UNet, Option<Failures>)>,
    vae: Option<Vae>,
}

impl<'a> Networks<'a> {
    /// Networks out of files, for so many pictures.
    ///
    /// # Errors
    /// If values of the VAE are no numbers: it is loaded last, when all the work would be lost.
    pub(super) fn staged(files: &'a ModelFiles, batch: usize) -> Result<Self, GenerateError> {
        if files.tiny().is_none() {
            files.check_vae()?;
        }
        Ok(Networks::Staged(Box::new(Staged {
            files,
            keeps_both: batch > 1 && !files.ways().lean,
            text: None,
            unet: None,
            vae: None,
        })))
    }

    pub(super) fn text(&mut self, loading: Loading<'_>) -> Result<&TextEncoder, GenerateError> {
        match self {
            Networks::Resident(model) => Ok(&model.text),
            Networks::Staged(staged) => {
                let load = || staged.files.text();
                loaded(&mut staged.text, Part::TextEncoder, loading, load)
            }
        }
    }

    /// Sees that the UNet is there.
    pub(super) fn load_unet(&mut self, loading: Loading<'_>) -> Result<(), GenerateError> {
        if let Networks::Staged(staged) = self {
            dropped(&mut staged.text);
            if !staged.keeps_both {
                dropped(&mut staged.vae);
            }
            let load = || staged.files.unet();
            loaded(&mut staged.unet, Part::UNet, loading, load)?;
        }
        Ok(())
    }

    /// The UNet that was loaded, and what it could not fetch: a step in which that happened is void.
    pub(super) fn unet(&self) -> (&UNet, Option<&Failures>) {
        match self {
            Networks::Resident(model) => (&model.unet, None),
            Networks::Staged(staged) => {
                let (unet, failures) = staged.unet.as_ref().expect("`load_unet` came before");
                (unet, failures.as_ref())
            }
        }
    }

    /// What decodes instead of the VAE, if anything does.
    pub(super) fn tiny(&self) -> Option<&TinyDecoder> {
        match self {
            Networks::Resident(model) => model.tiny.as_ref(),
            Networks::Staged(staged) => staged.files.tiny(),
        }
    }

    /// The VAE; `last` says that the UNet is not needed any more.
    pub(super) fn vae(&mut self, last: bool, loading: Loading<'_>) -> Result<&Vae, GenerateError> {
        match self {
            Networks::Resident(model) => Ok(&model.vae),
            Networks::Staged(staged) => {
                dropped(&mut staged.text);
                if last || !staged.keeps_both {
                    dropped(&mut staged.unet);
                }
                loaded(&mut staged.vae, Part::Vae, loading, || staged.files.vae())
            }
        }
    }
}

/// The network in `place`, loaded if there is none.
fn loaded<'p, T>(
    place: &'p mut Option<T>,
    part: Part,
    loading: Loading<'_>,
    load: impl FnOnce() -> Result<T, LoadError>,
) -> Result<&'p T, GenerateError> {
    if place.is_none() {
        loading(part)?;
        *place = Some(load()?);
    }
    Ok(place.as_ref().expect("loaded above"))
}

/// Drops a network, and the buffers that its operations left behind.
fn dropped<T>(place: &mut Option<T>) {
    if place.take().is_some() {
        pool::trim();
    }
}
