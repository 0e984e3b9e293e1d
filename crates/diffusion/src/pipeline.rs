//! From a request to pictures: the four jobs, one picture at a time.
//!
//! [`Request`] says everything; [`Model::generate`] does it. What A1111 and diffusers do differently around the
//! samplers is here: order of random numbers, masks, prompts, the last rounding. Reading and writing files, and what
//! to do when the machine is too small ([`memory_bytes`] tells), are the caller's business.

mod canvas;
mod denoise;
mod image;
mod mask;
mod memory;
mod networks;
mod request;
mod shortcuts;
mod text;

use std::ops::ControlFlow;

use safelight_tensor::Tensor;

pub use self::image::{Mask, RgbImage};
pub use self::memory::{Residence, memory_bytes};
pub use self::request::{
    BATCH_MAX, GenerateError, Inpaint, Job, MaskedContent, Outpaint, Passes, Phase, Picture,
    Progress, Request, SIDE_MAX, Traced,
};
pub use self::shortcuts::Shortcuts;

use self::canvas::Canvas;
use self::denoise::{
    Blend, Caching, Denoiser, Guidance, LATENT_CHANNELS, State, latent_noise, traced,
};
use self::networks::Networks;
use self::request::refused;
use self::text::Prompts;
use crate::load::{Model, ModelFiles, ModelInfo, Task};
use crate::noise::NoiseRng;
use crate::sampler::diffusers::{SchedulerConfig, SigmaCurve, Spacing};
use crate::sampler::{Flavour, Plan, SampleError, Sampler};
use crate::schedule::{Schedule, zero_terminal_snr};
use crate::vae::{Moments, VaeConfig};

impl Model {
    /// Width and height of the pictures that [`Model::generate`] would give for `request`.
    ///
    /// Sizes are rounded down to multiples of the VAE's factor (8 in Stable Diffusion), as in A1111; pictures to inpaint or
    /// outpaint keep their size.
    ///
    /// # Errors
    /// [`GenerateError::Field`] if a side is too short or too long.
    pub fn size_of(&self, request: &Request) -> Result<(usize, usize), GenerateError> {
        self.info.size_of(request)
    }

    /// Draws the request's pictures, telling `on_progress` before and after each stage; `Break` ends it there.
    ///
    /// # Errors
    /// [`GenerateError`] says which: a bad request, a model for another job, broken weights, or stopped.
    pub fn generate(
        &self,
        request: &Request,
        mut on_progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Picture>, GenerateError> {
        Session::new(
            || Ok(Networks::Resident(self)),
            &self.info,
            request,
            &mut on_progress,
        )?
        .draw_all()
    }
}

impl ModelFiles {
    /// As [`Model::generate`], to the same bytes, with one network in memory at a time: the text encoder until the prompts
    /// are encoded, the UNet until the last picture's steps are done, the VAE. [`Phase::Load`] tells when one is read.
    ///
    /// # Errors
    /// As [`Model::generate`], and [`GenerateError::Load`].
    pub fn generate(
        &self,
        request: &Request,
        mut on_progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Picture>, GenerateError> {
        let networks = || Networks::staged(self, request.batch);
        Session::new(networks, self.info(), request, &mut on_progress)?.draw_all()
    }
}

impl ModelInfo {
    /// As [`Model::size_of`], for a model that is not loaded.
    ///
    /// # Errors
    /// As [`Model::size_of`].
    pub fn size_of(&self, request: &Request) -> Result<(usize, usize), GenerateError> {
        canvas::drawn_size(request, self.downscale())
    }

    /// How many pixels a latent's pixel stands for, along each side.
    pub(crate) fn downscale(&self) -> usize {
        self.vae.as_ref().map_or(8, VaeConfig::downscale)
    }

    fn check_task(&self) -> Result<(), GenerateError> {
        let (Some(unet), Some(vae)) = (&self.unet, &self.vae) else {
            panic!("a model that is loaded was found usable");
        };
        let channels = unet.in_channels;
        let fits = match self.task {
            Task::TextToImage => channels == LATENT_CHANNELS,
            Task::Inpaint => channels == 2 * LATENT_CHANNELS + 1,
            Task::InstructPix2Pix => false,
        };
        let latent = vae.latent_channels;
        if fits && latent == LATENT_CHANNELS && unet.out_channels == LATENT_CHANNELS {
            return Ok(());
        }
        let why = format!(
            "this model cannot be drawn with: its UNet takes {channels} channels and its VAE has latents of {latent}; \
             supported are 4 (text to picture) or 9 (inpainting) with latents of 4"
        );
        Err(GenerateError::Model { why })
    }
}

type OnProgress<'a> = &'a mut dyn FnMut(Progress<'_>) -> ControlFlow<()>;

/// What all pictures of a request share.
struct Session<'a> {
    networks: Networks<'a>,
    info: &'a ModelInfo,
    request: &'a Request,
    on_progress: OnProgress<'a>,
    canvas: Canvas,
    plan: Plan,
    positive: Prompts,
    /// `None` without guidance.
    negative: Option<Prompts>,
    /// The start picture's latent distribution.
    moments: Option<Moments>,
    /// The start picture's latent, where all pictures have the same.
    init: Option<Vec<f32>>,
    /// An inpainting network's further channels, `[H, W, 5]`.
    extra: Option<Vec<f32>>,
}

impl<'a> Session<'a> {
    /// `networks` are asked for when the request was found sound.
    fn new(
        networks: impl FnOnce() -> Result<Networks<'a>, GenerateError>,
        info: &'a ModelInfo,
        request: &'a Request,
        on_progress: OnProgress<'a>,
    ) -> Result<Self, GenerateError> {
        request.check()?;
        info.check_task()?;
        let layers = info.text.as_ref().map_or(0, |text| text.layers);
        if request.clip_skip > layers {
            let allowed = format!("1 to {layers}, the layers of this text encoder");
            return Err(refused("clip skip", request.clip_skip, allowed));
        }
        request.shortcuts.check_for(info)?;
        let canvas = Canvas::new(request, info.downscale())?;
        let plan = plan(info, request, canvas.strength)?;
        text::chunk_counts(request)?;
        let mut networks = networks()?;
        let text = networks.text(&mut |part| tell(on_progress, request, 0, Phase::Load(part)))?;
        let mut go_on = || tell(on_progress, request, 0, Phase::Text);
        let positive = Prompts::positive(text, request, &mut go_on)?;
        let guided = match request.flavour {
            Flavour::A1111 => request.cfg_scale != 1.0,
            Flavour::Diffusers => request.cfg_scale > 1.0,
        };
        let negative = guided
            .then(|| Prompts::negative(text, request, &mut go_on))
            .transpose()?;
        let (moments, init, extra) = (None, None, None);
        Ok(Session {
            networks,
            info,
            request,
            on_progress,
            canvas,
            plan,
            positive,
            negative,
            moments,
            init,
            extra,
        })
    }

    /// What latents are multiplied by for the UNet.
    fn scale_factor(&self) -> f32 {
        self.info.vae.as_ref().map_or(1.0, |vae| vae.scale_factor)
    }

    /// Height and width of the latents.
    fn latent_size(&self) -> (usize, usize) {
        let factor = self.info.downscale();
        (self.canvas.height / factor, self.canvas.width / factor)
    }

    fn draw_all(mut self) -> Result<Vec<Picture>, GenerateError> {
        (0..self.request.batch).map(|idx| self.draw(idx)).collect()
    }

    fn draw(&mut self, idx: usize) -> Result<Picture, GenerateError> {
        let (request, size) = (self.request, self.latent_size());
        let seed = request.seed.wrapping_add(idx as u64);
        let mut rng = NoiseRng::seeded(request.noise_source, seed);
        let (mut init, noise) = self.init_and_noise(idx, &mut rng)?;
        self.prepare_extra(idx, &mut rng)?;
        let mut trace = Vec::new();
        if request.trace {
            trace.push(self.positive.traced("text.positive"));
            trace.extend(
                self.negative
                    .iter()
                    .map(|negative| negative.traced("text.negative")),
            );
            trace.extend(
                init.iter()
                    .map(|init| traced("image.latent".into(), init, size)),
            );
            trace.push(traced("noise".into(), &noise, size));
        }
        let new = self.latent_mask();
        if let (Some(init), Some(new)) = (&mut init, &new) {
            apply_content(self.canvas.content, init, &noise, new);
        }
        let start = self.start(init.as_deref(), &noise);
        if request.trace {
            trace.push(traced("start".into(), &start, size));
        }
        // Diffusers leaves the rest to networks that know about masks; A1111 blends all the same.
        let knows = request.flavour == Flavour::Diffusers && self.extra.is_some();
        let blend = match (init, new) {
            (Some(init), Some(new)) if !knows => Some(Blend { new, init, noise }),
            _ => None,
        };
        let (latent, passes) = self.denoise(idx, start, rng, blend.as_ref(), &mut trace)?;
        let image = self.decode(idx, seed, &latent)?;
        let latent = traced("latent".into(), &latent, size);
        if request.trace {
            trace.push(latent.clone());
        }
        let picture = Picture {
            image,
            seed,
            latent,
            passes,
            trace,
        };
        self.tell(idx, Phase::Done(&picture))?;
        Ok(picture)
    }

    /// The start picture's latent and the noise, drawn in the flavour's order.
    fn init_and_noise(
        &mut self,
        idx: usize,
        rng: &mut NoiseRng,
    ) -> Result<(Option<Vec<f32>>, Vec<f32>), GenerateError> {
        let size = self.latent_size();
        let masked = self.canvas.mask.is_some();
        // Nothing of the picture is left at full strength, unless a mask keeps some.
        let unused = self.request.flavour == Flavour::Diffusers
            && masked
            && self.info.task == Task::Inpaint
            && self.canvas.strength == Some(1.0);
        if self.canvas.start.is_none() || unused {
            return Ok((None, latent_noise(rng, size)));
        }
        if self.moments.is_none() {
            self.tell(idx, Phase::Encode)?;
            let start = self.canvas.start.as_ref().expect("checked above");
            let level = |&byte: &u8| f32::from(byte) / 255.0 * 2.0 - 1.0;
            let values = start.bytes().iter().map(level).collect();
            self.moments = Some(self.encode(idx, values)?);
        }
        let scale = self.scale_factor();
        let moments = self.moments.as_ref().expect("set above");
        let init = match (self.request.flavour, &self.init) {
            (_, Some(init)) => init.clone(),
            (Flavour::A1111, None) => moments
                .mean
                .data()
                .iter()
                .map(|mean| mean * scale)
                .collect(),
            (Flavour::Diffusers, None) => posterior(moments, &latent_noise(rng, size), scale),
        };
        // In diffusers' img2img each picture draws its own latent; its inpainting draws the first one's for all.
        if masked || self.request.flavour == Flavour::A1111 {
            self.init = Some(init.clone());
        }
        Ok((Some(init), latent_noise(rng, size)))
    }

    /// Computes the further channels of an inpainting network, with the first picture: mask and masked picture.
    fn prepare_extra(&mut self, idx: usize, rng: &mut NoiseRng) -> Result<(), GenerateError> {
        let (height, width) = self.latent_size();
        let samples =
            self.request.flavour == Flavour::Diffusers && self.canvas.mask.is_some() && idx == 0;
        if self.info.task != Task::Inpaint {
            if samples {
                // Diffusers encodes the masked picture for every network, and so draws noise for it.
                latent_noise(rng, (height, width));
            }
            return Ok(());
        }
        if self.extra.is_some() {
            return Ok(());
        }
        self.tell(idx, Phase::Encode)?;
        let moments = self.encode(idx, self.masked_picture())?;
        let scale = self.scale_factor();
        let latent: Vec<f32> = match samples {
            true => posterior(&moments, &latent_noise(rng, (height, width)), scale),
            false => moments
                .mean
                .data()
                .iter()
                .map(|mean| mean * scale)
                .collect(),
        };
        let mask = match &self.canvas.mask {
            Some(mask) => mask::of_latent_nearest(mask, width, height),
            None => vec![1.0; height * width],
        };
        let pixels = mask.iter().zip(latent.chunks_exact(LATENT_CHANNELS));
        self.extra = Some(
            pixels
                .flat_map(|(mask, latent)| [mask].into_iter().chain(latent))
                .copied()
                .collect(),
        );
        Ok(())
    }

    /// The start picture in −1 to 1, grey (0) where the mask is white: everywhere without a mask.
    fn masked_picture(&self) -> Vec<f32> {
        let (Some(mask), Some(start)) = (&self.canvas.mask, &self.canvas.start) else {
            return vec![0.0; 3 * self.canvas.width * self.canvas.height];
        };
        let pixels = start.bytes().chunks_exact(3).zip(mask.bytes());
        let value = |byte: u8, white: bool| {
            if white {
                0.0
            } else {
                f32::from(byte) / 255.0 * 2.0 - 1.0
            }
        };
        pixels
            .flat_map(|(pixel, &mask)| {
                pixel
                    .iter()
                    .map(move |&byte| value(byte, mask::is_white(mask)))
            })
            .collect()
    }

    fn encode(&mut self, idx: usize, values: Vec<f32>) -> Result<Moments, GenerateError> {
        let (on_progress, request) = (&mut *self.on_progress, self.request);
        let mut loading = |part| tell(on_progress, request, idx, Phase::Load(part));
        let vae = self.networks.vae(false, &mut loading)?;
        let moments = vae.encode(&Tensor::from_slice(
            &[1, self.canvas.height, self.canvas.width, 3],
            &values,
        ));
        let mut all = moments
            .mean
            .data()
            .iter()
            .chain(moments.log_variance.data());
        if all.all(|value| value.is_finite()) {
            return Ok(moments);
        }
        Err(GenerateError::NotFinite {
            place: "the VAE's encoder".into(),
            seed: self.request.seed,
        })
    }

    /// The mask for the latent, once for each channel: `[H, W, 4]`.
    fn latent_mask(&self) -> Option<Vec<f32>> {
        let (height, width) = self.latent_size();
        let mask = self.canvas.mask.as_ref()?;
        let mask = match self.request.flavour {
            Flavour::A1111 => mask::of_latent(mask, width, height),
            Flavour::Diffusers => mask::of_latent_nearest(mask, width, height),
        };
        Some(
            mask.into_iter()
                .flat_map(|value| [value; LATENT_CHANNELS])
                .collect(),
        )
    }

    /// What sampling starts from.
    fn start(&self, init: Option<&[f32]>, noise: &[f32]) -> Vec<f32> {
        let alone = || {
            noise
                .iter()
                .map(|noise| noise * self.plan.noise_scale())
                .collect()
        };
        let full = self.canvas.mask.is_some() && self.canvas.strength == Some(1.0);
        match init {
            None => alone(),
            // StableDiffusionInpaintPipeline starts from nothing at full strength; its img2img does not.
            Some(_) if full && self.request.flavour == Flavour::Diffusers => alone(),
            Some(init) => self.plan.start_mix().apply(init, noise),
        }
    }

    fn denoise(
        &mut self,
        idx: usize,
        start: Vec<f32>,
        rng: NoiseRng,
        blend: Option<&Blend>,
        trace: &mut Vec<Traced>,
    ) -> Result<(Vec<f32>, Passes), GenerateError> {
        let step_count = self.plan.step_count();
        let (on_progress, request) = (&mut *self.on_progress, self.request);
        let mut loading = |part| tell(on_progress, request, idx, Phase::Load(part));
        self.networks.load_unet(&mut loading)?;
        self.tell(
            idx,
            Phase::Steps {
                done: 0,
                count: step_count,
            },
        )?;
        let (request, size) = (self.request, self.latent_size());
        let seed = request.seed.wrapping_add(idx as u64);
        let on_progress = &mut *self.on_progress;
        let mut on_step = |done: usize, count: usize| {
            on_progress(Progress {
                image: idx,
                image_count: request.batch,
                phase: Phase::Steps { done, count },
            })
        };
        let scale = request.cfg_scale as f32;
        let guidance = Guidance {
            positive: &self.positive,
            negative: self.negative.as_ref(),
            scale,
            calls: request.shortcuts.guided_calls(&self.plan, request.flavour),
        };
        let (unet, failures) = self.networks.unet();
        let mut denoiser = Denoiser {
            unet,
            failures,
            guidance,
            flavour: request.flavour,
            token_merging: request.shortcuts.token_merging,
            caching: Caching::new(&request.shortcuts, request.sampler),
            size,
            extra: self.extra.as_deref(),
            blend,
            rng,
            seed,
            step_count,
            on_step: &mut on_step,
            trace: request.trace.then_some(trace),
            state: State::default(),
        };
        let mut latent = self
            .plan
            .run(start, &mut denoiser)
            .map_err(|error| match error {
                SampleError::Stopped => GenerateError::Stopped,
                SampleError::Host(error) => error,
            })?;
        let passes = denoiser.state.passes;
        if let Some(blend) = blend {
            blend.apply(&mut latent, &blend.init);
        }
        if latent.iter().all(|value| value.is_finite()) {
            return Ok((latent, passes));
        }
        Err(GenerateError::NotFinite {
            place: "the last step".into(),
            seed,
        })
    }

    fn decode(&mut self, idx: usize, seed: u64, latent: &[f32]) -> Result<RgbImage, GenerateError> {
        let last = idx + 1 == self.request.batch;
        let (on_progress, request) = (&mut *self.on_progress, self.request);
        let mut loading = |part| tell(on_progress, request, idx, Phase::Load(part));
        if self.networks.tiny().is_none() {
            self.networks.vae(last, &mut loading)?;
        }
        self.tell(idx, Phase::Decode)?;
        let (height, width) = self.latent_size();
        let latent = Tensor::from_slice(&[1, height, width, LATENT_CHANNELS], latent);
        let scale = self.scale_factor();
        let decoded = match self.networks.tiny() {
            Some(tiny) => tiny.decode(&latent),
            None => {
                let unscaled: Vec<f32> = latent.data().iter().map(|value| value / scale).collect();
                let unscaled = Tensor::from_slice(latent.shape(), &unscaled);
                let vae = self.networks.vae(last, &mut |_| Ok(()))?;
                vae.decode(&unscaled)
            }
        };
        let expected = [1, self.canvas.height, self.canvas.width, 3];
        assert_eq!(
            decoded.shape(),
            expected,
            "the VAE gives back the size it was asked for"
        );
        if decoded.data().iter().any(|value| !value.is_finite()) {
            return Err(GenerateError::NotFinite {
                place: match self.networks.tiny() {
                    Some(_) => "the tiny decoder".into(),
                    None => "the VAE's decoder".into(),
                },
                seed,
            });
        }
        let byte = |&value: &f32| {
            let level = ((value + 1.0) / 2.0).clamp(0.0, 1.0) * 255.0;
            match self.request.flavour {
                Flavour::A1111 => level as u8,
                Flavour::Diffusers => level.round_ties_even() as u8,
            }
        };
        let bytes = decoded.data().iter().map(byte).collect();
        Ok(self
            .canvas
            .finished(RgbImage::new(self.canvas.width, self.canvas.height, bytes)))
    }

    fn tell(&mut self, idx: usize, phase: Phase<'_>) -> Result<(), GenerateError> {
        tell(self.on_progress, self.request, idx, phase)
    }
}

fn tell(
    on_progress: OnProgress<'_>,
    request: &Request,
    idx: usize,
    phase: Phase<'_>,
) -> Result<(), GenerateError> {
    match on_progress(Progress {
        image: idx,
        image_count: request.batch,
        phase,
    }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(GenerateError::Stopped),
    }
}

/// A sample of the encoder's distribution, times the scale factor.
fn posterior(moments: &Moments, noise: &[f32], scale: f32) -> Vec<f32> {
    let values = moments
        .mean
        .data()
        .iter()
        .zip(moments.log_variance.data())
        .zip(noise);
    values
        .map(|((mean, log_variance), noise)| (mean + (0.5 * log_variance).exp() * noise) * scale)
        .collect()
}

/// What the masked part of the latent starts from, if not from the picture.
fn apply_content(content: MaskedContent, init: &mut [f32], noise: &[f32], new: &[f32]) {
    for ((init, &noise), &new) in init.iter_mut().zip(noise).zip(new) {
        match content {
            MaskedContent::Original | MaskedContent::Fill => {}
            MaskedContent::LatentNoise => *init = *init * (1.0 - new) + noise * new,
            MaskedContent::LatentNothing => *init *= 1.0 - new,
        }
    }
}

fn plan(info: &ModelInfo, request: &Request, strength: Option<f64>) -> Result<Plan, GenerateError> {
    let (sampler, steps) = (request.sampler, request.steps);
    match request.flavour {
        Flavour::A1111 => {
            let mut alphas = info.betas.alphas_cumprod();
            if info.zero_terminal_snr {
                alphas = zero_terminal_snr(&alphas);
            }
            Ok(Plan::a1111(
                sampler,
                request.schedule,
                steps,
                strength,
                info.prediction,
                &alphas,
            )?)
        }
        Flavour::Diffusers => {
            let mut config = match (&request.scheduler, &info.scheduler) {
                (Some(config), _) => SchedulerConfig {
                    betas: info.betas,
                    ..config.clone()
                },
                (None, Some(json)) => {
                    // Absent fields have the defaults of the sampler's class, not of the one that wrote the file.
                    let mut config = SchedulerConfig::from_json(json, sampler)?;
                    // Diffusers' Stable Diffusion pipelines set this right in files from before these settings
                    // (`__init__` in `pipeline_stable_diffusion*.py`; the inpainting one leaves `clip_sample` alone).
                    config.steps_offset = 1;
                    if !matches!(request.job, Job::Inpaint(_) | Job::Outpaint(_)) {
                        config.clip_sample = None;
                    }
                    config
                }
                (None, None) => SchedulerConfig {
                    betas: info.betas,
                    ..SchedulerConfig::stable_diffusion(sampler)
                },
            };
            config.prediction = info.prediction;
            config.zero_terminal_snr |= info.zero_terminal_snr;
            apply_schedule(&mut config, sampler, request.schedule)?;
            Ok(Plan::diffusers(sampler, &config, steps, strength)?)
        }
    }
}

/// The settings by which diffusers has A1111's schedules, as its documentation pairs them.
fn apply_schedule(
    config: &mut SchedulerConfig,
    sampler: Sampler,
    schedule: Schedule,
) -> Result<(), GenerateError> {
    let bends = matches!(sampler, Sampler::Euler | Sampler::Heun | Sampler::DpmPp2m);
    match schedule {
        Schedule::Automatic => {}
        Schedule::Uniform | Schedule::Normal if sampler != Sampler::Lcm => {
            config.spacing = Spacing::Linspace
        }
        Schedule::SgmUniform | Schedule::Simple if sampler != Sampler::Lcm => {
            config.spacing = Spacing::Trailing
        }
        Schedule::Karras if bends => config.sigma_curve = SigmaCurve::Karras,
        Schedule::Exponential if bends => config.sigma_curve = SigmaCurve::Exponential,
        other => {
            let allowed = match (bends, sampler) {
                (true, _) => "Automatic, Uniform, SGM Uniform, Simple, Karras or Exponential",
                (false, Sampler::Lcm) => "Automatic",
                (false, _) => "Automatic, Uniform, SGM Uniform or Simple",
            };
            let allowed = format!("{allowed}: diffusers has no other for {}", sampler.name());
            return Err(refused("schedule", other.name(), allowed));
        }
    }
    Ok(())
}
