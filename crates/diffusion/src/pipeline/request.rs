//! What can be asked for, and what is wrong with asking for it.

use std::fmt;

use super::image::{Mask, RgbImage};
use super::shortcuts::Shortcuts;
use crate::load::{LoadError, Part};
use crate::noise::NoiseSource;
use crate::sampler::diffusers::SchedulerConfig;
use crate::sampler::{Flavour, PlanError, STEPS_MAX, Sampler};
use crate::schedule::Schedule;

/// Everything that decides what is drawn. The same request to the same model on the same machine gives the same bytes.
///
/// ```
/// use safelight_diffusion::pipeline::Request;
///
/// let request = Request { prompt: "a lighthouse".into(), steps: 12, seed: 7, ..Request::default() };
/// assert_eq!(request.batch, 1);
/// ```
#[derive(Clone, Debug)]
pub struct Request {
    /// What to draw from.
    pub job: Job,
    /// What to draw.
    pub prompt: String,
    /// What not to draw; unused while `cfg_scale` is 1.
    pub negative_prompt: String,
    /// Width and height in pixels, rounded down by [`super::Model::size_of`] to what the model can draw. `None`: the
    /// picture's own size, or 512×512 where there is none. Outpainting has its own size and wants `None`.
    pub size: Option<(usize, usize)>,
    /// Sampling steps, 1 to [`STEPS_MAX`].
    pub steps: usize,
    /// Guidance: how far to go from the negative prompt towards the prompt. 1 does without (and is twice as fast).
    pub cfg_scale: f64,
    /// The way from noise to picture.
    pub sampler: Sampler,
    /// The noise levels on it.
    pub schedule: Schedule,
    /// Whose arithmetic to follow.
    pub flavour: Flavour,
    /// Seed of the first picture; picture `i` has `seed + i`.
    pub seed: u64,
    /// How many pictures.
    pub batch: usize,
    /// Which random numbers.
    pub noise_source: NoiseSource,
    /// Which layer of the text encoder is used, counted from the end: 1 is the last.
    pub clip_skip: usize,
    /// Diffusers' scheduler settings, instead of those in the model's folder (or, for a single file, those of Stable
    /// Diffusion 1.x); only for [`Flavour::Diffusers`]. What the model and `schedule` say still goes into it.
    pub scheduler: Option<SchedulerConfig>,
    /// Choices that trade fidelity for time.
    pub shortcuts: Shortcuts,
    /// Whether to keep what is computed on the way in [`Picture::trace`].
    pub trace: bool,
}

impl Default for Request {
    /// 20 steps of Euler from nothing, guidance 7, seed 0, as A1111 does them.
    fn default() -> Self {
        Request {
            job: Job::Txt2Img,
            prompt: String::new(),
            negative_prompt: String::new(),
            size: None,
            steps: 20,
            cfg_scale: 7.0,
            sampler: Sampler::Euler,
            schedule: Schedule::Automatic,
            flavour: Flavour::A1111,
            seed: 0,
            batch: 1,
            noise_source: NoiseSource::Cpu,
            clip_skip: 1,
            scheduler: None,
            shortcuts: Shortcuts::default(),
            trace: false,
        }
    }
}

/// What to draw from.
#[derive(Clone, Debug, PartialEq)]
pub enum Job {
    /// Nothing but noise.
    Txt2Img,
    /// A picture, made noisy.
    Img2Img {
        /// The picture; resized (Lanczos) if [`Request::size`] is another.
        image: RgbImage,
        /// Denoising strength, 0 to 1: how much of the picture to give up.
        strength: f64,
    },
    /// Part of a picture.
    Inpaint(Inpaint),
    /// What lies beyond a picture's edges.
    Outpaint(Outpaint),
}

/// Drawing part of a picture anew.
///
/// Where the blurred mask is black the result has the picture's own bytes, unless `overlay` is off.
#[derive(Clone, Debug, PartialEq)]
pub struct Inpaint {
    /// The picture; resized (Lanczos) if [`Request::size`] is another.
    pub image: RgbImage,
    /// White where to draw; of the picture's size.
    pub mask: Mask,
    /// Denoising strength, 0 to 1.
    pub strength: f64,
    /// Standard deviation of the mask's soft edge in pixels; 0 for a hard one.
    pub mask_blur: f32,
    /// What the drawing starts from under the mask.
    pub content: MaskedContent,
    /// Whether to lay the picture over the result where the mask is not white.
    pub overlay: bool,
}

impl Inpaint {
    /// A1111's defaults: strength 0.75, 4 pixels of blur, starting from what is there.
    pub fn new(image: RgbImage, mask: Mask) -> Self {
        Inpaint {
            image,
            mask,
            strength: 0.75,
            mask_blur: 4.0,
            content: MaskedContent::Original,
            overlay: true,
        }
    }
}

/// Drawing on beyond a picture's edges.
///
/// The picture keeps its bytes but for a seam along the edges that are drawn beyond: it is [`Outpaint::seam`] pixels wide.
#[derive(Clone, Debug, PartialEq)]
pub struct Outpaint {
    /// The picture.
    pub image: RgbImage,
    /// Pixels to add on the left.
    pub left: usize,
    /// Pixels to add on the right.
    pub right: usize,
    /// Pixels to add above.
    pub up: usize,
    /// Pixels to add below.
    pub down: usize,
    /// Denoising strength, 0 to 1.
    pub strength: f64,
    /// Standard deviation of the seam's softness in pixels.
    pub mask_blur: f32,
    /// What the drawing starts from in the new area.
    pub content: MaskedContent,
}

impl Outpaint {
    /// Strength 0.8, 4 pixels of blur, starting from the edge's colours.
    pub fn new(image: RgbImage) -> Self {
        let content = MaskedContent::Fill;
        Outpaint {
            image,
            left: 0,
            right: 0,
            up: 0,
            down: 0,
            strength: 0.8,
            mask_blur: 4.0,
            content,
        }
    }

    /// How far into the picture pixels may change: twice the blur, and as far as the blur reaches.
    pub fn seam(&self) -> usize {
        self.inset() + (2.5 * self.mask_blur + 0.5) as usize
    }

    /// How far the mask reaches into the picture before it is blurred.
    pub(super) fn inset(&self) -> usize {
        (2.0 * self.mask_blur).ceil() as usize
    }
}

/// What a masked area starts from: A1111's "Masked content".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaskedContent {
    /// The colours around it, spread inwards.
    Fill,
    /// What is there.
    #[default]
    Original,
    /// Noise in the latent.
    LatentNoise,
    /// Zeros in the latent.
    LatentNothing,
}

impl MaskedContent {
    /// All of them, in A1111's order.
    pub const ALL: [MaskedContent; 4] = [
        MaskedContent::Fill,
        MaskedContent::Original,
        MaskedContent::LatentNoise,
        MaskedContent::LatentNothing,
    ];

    /// A1111's name.
    pub fn name(self) -> &'static str {
        match self {
            MaskedContent::Fill => "fill",
            MaskedContent::Original => "original",
            MaskedContent::LatentNoise => "latent noise",
            MaskedContent::LatentNothing => "latent nothing",
        }
    }

    /// The one of this name; case, spaces, `_` and `-` do not count.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = crate::schedule::plain_name(name);
        Self::ALL
            .into_iter()
            .find(|content| crate::schedule::plain_name(content.name()) == name)
    }
}

/// A drawn picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// The pixels.
    pub image: RgbImage,
    /// The seed it alone would have been drawn from.
    pub seed: u64,
    /// The final latent `[4, H/8, W/8]`, in the UNet's scale and torch's order.
    pub latent: Traced,
    /// How often the UNet was run.
    pub passes: Passes,
    /// What was computed on the way, if [`Request::trace`] asked for it: `text.positive`, `text.negative` (`[1, T, D]`),
    /// `image.latent`, `noise`, `start`, `step.1` … and `latent`, all but the texts `[1, C, H, W]`.
    pub trace: Vec<Traced>,
}

/// How often the UNet was run for a picture; guidance runs it twice a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passes {
    /// Whole.
    pub full: usize,
    /// Only its outer blocks, as step caching has it.
    pub cached: usize,
}

/// A tensor by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Traced {
    /// What it is.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its values, the last dimension fastest.
    pub values: Vec<f32>,
}

/// What [`super::Model::generate`] is doing.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Which picture, from 0.
    pub image: usize,
    /// Of how many.
    pub image_count: usize,
    /// What is being done to it.
    pub phase: Phase<'a>,
}

/// A stage on the way to a picture.
#[derive(Clone, Copy, Debug)]
pub enum Phase<'a> {
    /// A network is about to be read from its file, as [`crate::load::ModelFiles`] does.
    Load(Part),
    /// A chunk of 75 tokens of a prompt is about to be encoded; the prompts are encoded once for all pictures.
    Text,
    /// A picture is about to be turned into a latent.
    Encode,
    /// So many of the steps are done; 0 before the first.
    Steps {
        /// Steps done.
        done: usize,
        /// Steps there are. Not always the number asked for: samplers and strengths have their own ways.
        count: usize,
    },
    /// The latent is about to be turned into a picture.
    Decode,
    /// The picture is done.
    Done(&'a Picture),
}

/// Why nothing (or not everything) was drawn.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum GenerateError {
    /// A field of the request has a value it cannot have.
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it could be.
        allowed: String,
    },
    /// The mask and the picture are not of one size.
    MaskSize {
        /// Width and height of the mask.
        mask: (usize, usize),
        /// Width and height of the picture.
        image: (usize, usize),
    },
    /// The sampler cannot do what was asked for.
    Plan(PlanError),
    /// The model does another job.
    Model {
        /// Why not this one.
        why: String,
    },
    /// A network computed something that is no number: its weights are broken, or too large for what went in.
    NotFinite {
        /// Where: "step 3 of 20", "the text encoder" …
        place: String,
        /// Which picture, by its seed.
        seed: u64,
    },
    /// A network could not be read, now that it was needed.
    Load {
        /// What is wrong with its file.
        why: String,
    },
    /// The progress callback said stop. Pictures that were done have been shown to it.
    Stopped,
}

impl fmt::Display for GenerateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GenerateError::Field {
                field,
                value,
                allowed,
            } => write!(f, "{field} is {value}: it must be {allowed}"),
            GenerateError::MaskSize { mask, image } => write!(
                f,
                "the mask is {}×{} pixels, the picture {}×{}: they must be of the same size",
                mask.0, mask.1, image.0, image.1
            ),
            GenerateError::Plan(error) => error.fmt(f),
            GenerateError::Model { why } => f.write_str(why),
            GenerateError::NotFinite { place, seed } => write!(
                f,
                "{place} gave values that are not finite numbers (seed {seed}): the model's weights are damaged or do \
                 not belong together, or the guidance scale is far too high"
            ),
            GenerateError::Load { why } => f.write_str(why),
            GenerateError::Stopped => f.write_str("stopped"),
        }
    }
}

impl std::error::Error for GenerateError {}

impl From<LoadError> for GenerateError {
    fn from(error: LoadError) -> Self {
        GenerateError::Load {
            why: error.to_string(),
        }
    }
}

impl From<PlanError> for GenerateError {
    fn from(error: PlanError) -> Self {
        GenerateError::Plan(error)
    }
}

/// Largest width or height: beyond it nothing works any more, whatever the memory.
pub const SIDE_MAX: usize = 16_384;
/// Most pictures of one request.
pub const BATCH_MAX: usize = 10_000;

impl Request {
    /// Checks what can be checked without a model.
    pub(super) fn check(&self) -> Result<(), GenerateError> {
        let counts: [(&str, usize, usize); 3] = [
            ("steps", self.steps, STEPS_MAX),
            ("batch", self.batch, BATCH_MAX),
            ("clip skip", self.clip_skip, 12),
        ];
        for (field, value, max) in counts {
            if !(1..=max).contains(&value) {
                return Err(refused(field, value, format!("1 to {max}")));
            }
        }
        if !(0.0..=1000.0).contains(&self.cfg_scale) {
            return Err(refused("cfg scale", self.cfg_scale, "0 to 1000"));
        }
        let (strength, blur) = match &self.job {
            Job::Txt2Img => (None, 0.0),
            Job::Img2Img { strength, .. } => (Some(*strength), 0.0),
            Job::Inpaint(inpaint) => (Some(inpaint.strength), inpaint.mask_blur),
            Job::Outpaint(outpaint) => (Some(outpaint.strength), outpaint.mask_blur),
        };
        if let Some(strength) = strength.filter(|strength| !(0.0..=1.0).contains(strength)) {
            return Err(refused("denoising strength", strength, "0 to 1"));
        }
        if !(0.0..=256.0).contains(&blur) {
            return Err(refused("mask blur", blur, "0 to 256 pixels"));
        }
        self.shortcuts.check()?;
        if self.scheduler.is_some() && self.flavour != Flavour::Diffusers {
            return Err(refused(
                "scheduler",
                "set",
                "left alone unless the flavour is diffusers",
            ));
        }
        match &self.job {
            Job::Inpaint(Inpaint { image, mask, .. })
                if (image.width(), image.height()) != (mask.width(), mask.height()) =>
            {
                let (mask, image) = (
                    (mask.width(), mask.height()),
                    (image.width(), image.height()),
                );
                Err(GenerateError::MaskSize { mask, image })
            }
            Job::Outpaint(outpaint) => self.check_outpaint(outpaint),
            _ => Ok(()),
        }
    }

    fn check_outpaint(&self, outpaint: &Outpaint) -> Result<(), GenerateError> {
        if self.size.is_some() {
            return Err(refused(
                "size",
                "set",
                "left alone when outpainting: it follows from the picture",
            ));
        }
        let sides = [outpaint.left, outpaint.right, outpaint.up, outpaint.down];
        if sides.iter().all(|&side| side == 0) {
            return Err(refused(
                "left, right, up and down",
                "0",
                "pixels to add on at least one side",
            ));
        }
        match sides.into_iter().find(|&side| side > SIDE_MAX) {
            Some(side) => Err(refused(
                "left, right, up or down",
                side,
                format!("at most {SIDE_MAX} pixels"),
            )),
            None => Ok(()),
        }
    }
}

/// A [`GenerateError::Field`].
pub(super) fn refused(
    field: &'static str,
    value: impl fmt::Display,
    allowed: impl Into<String>,
) -> GenerateError {
    GenerateError::Field {
        field,
        value: value.to_string(),
        allowed: allowed.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(request: Request) -> String {
        request.check().expect_err("a bad request").to_string()
    }

    #[test]
    fn errors_name_field_value_and_limits() {
        let image = || RgbImage::new(4, 4, vec![0; 48]);
        assert_eq!(
            complaint(Request {
                steps: 0,
                ..Request::default()
            }),
            "steps is 0: it must be 1 to 999"
        );
        assert_eq!(
            complaint(Request {
                batch: 0,
                ..Request::default()
            }),
            "batch is 0: it must be 1 to 10000"
        );
        let nan = complaint(Request {
            cfg_scale: f64::NAN,
            ..Request::default()
        });
        assert_eq!(nan, "cfg scale is NaN: it must be 0 to 1000");
        let job = Job::Img2Img {
            image: image(),
            strength: 1.5,
        };
        assert_eq!(
            complaint(Request {
                job,
                ..Request::default()
            }),
            "denoising strength is 1.5: it must be 0 to 1"
        );
        let job = Job::Inpaint(Inpaint::new(image(), Mask::new(4, 5, vec![0; 20])));
        assert_eq!(
            complaint(Request {
                job,
                ..Request::default()
            }),
            "the mask is 4×5 pixels, the picture 4×4: they must be of the same size"
        );
        let job = Job::Outpaint(Outpaint::new(image()));
        assert!(
            complaint(Request {
                job,
                ..Request::default()
            })
            .contains("at least one side")
        );
        assert!(Request::default().check().is_ok());
    }

    #[test]
    fn names_are_found_however_they_are_written() {
        for content in MaskedContent::ALL {
            assert_eq!(MaskedContent::from_name(content.name()), Some(content));
        }
        assert_eq!(
            MaskedContent::from_name("latent_noise"),
            Some(MaskedContent::LatentNoise)
        );
    }
}
