//! What the samplers ask of the networks: guidance, inpainting's extra channels, masks, noise, progress.

use std::ops::{ControlFlow, Range};

use safelight_tensor::Tensor;

use super::request::{GenerateError, Passes, Traced};
use super::shortcuts::Shortcuts;
use super::text::Prompts;
use crate::nn::{Failures, Trace};
use crate::noise::NoiseRng;
use crate::sampler::{Flavour, Host, Sampler, StepDone, calls_per_step};
use crate::unet::{Deep, Pass, PreparedText, UNet};

/// Latent pixels up to which both halves of guidance share one call of the network.
const SHARED_PIXELS_MAX: usize = 64 * 64;
/// Channels of a latent.
pub(super) const LATENT_CHANNELS: usize = 4;

/// Keeps part of the latent as it is. All vectors are `[H, W, 4]`.
pub(super) struct Blend {
    /// 1 where something new is drawn, 0 where the old stays.
    pub(super) new: Vec<f32>,
    /// What stays.
    pub(super) init: Vec<f32>,
    /// The noise that the start was mixed with.
    pub(super) noise: Vec<f32>,
}

impl Blend {
    /// `x` where drawn, `kept` elsewhere.
    pub(super) fn apply(&self, x: &mut [f32], kept: &[f32]) {
        for ((x, &new), &kept) in x.iter_mut().zip(&self.new).zip(kept) {
            *x = *x * new + kept * (1.0 - new);
        }
    }
}

/// Guidance: which prompts, and how far from one to the other.
pub(super) struct Guidance<'a> {
    pub(super) positive: &'a Prompts,
    /// `None` without guidance.
    pub(super) negative: Option<&'a Prompts>,
    pub(super) scale: f32,
    /// The calls of the network, from 0, that are guided.
    pub(super) calls: Range<usize>,
}

/// At which calls the UNet runs whole, and how deep at the others.
#[derive(Clone, Copy)]
pub(super) struct Caching {
    /// Every so-manieth step is whole; 1 is without caching.
    interval: usize,
    branch: usize,
    calls_per_step: usize,
}

impl Caching {
    pub(super) fn new(shortcuts: &Shortcuts, sampler: Sampler) -> Caching {
        Caching {
            interval: shortcuts.cache_interval,
            branch: shortcuts.cache_branch,
            calls_per_step: calls_per_step(sampler),
        }
    }

    /// Whether the call, from 0, belongs to a step that is whole.
    fn is_whole(self, call: usize) -> bool {
        (call / self.calls_per_step).is_multiple_of(self.interval)
    }
}

/// One picture being denoised.
pub(super) struct Denoiser<'a> {
    pub(super) unet: &'a UNet,
    /// What the UNet could not fetch.
    pub(super) failures: Option<&'a Failures>,
    pub(super) guidance: Guidance<'a>,
    pub(super) flavour: Flavour,
    pub(super) caching: Caching,
    /// [`Pass::token_merging`].
    pub(super) token_merging: f64,
    /// Height and width of the latent.
    pub(super) size: (usize, usize),
    /// Inpainting networks' further channels, `[H, W, 5]`.
    pub(super) extra: Option<&'a [f32]>,
    pub(super) blend: Option<&'a Blend>,
    pub(super) rng: NoiseRng,
    pub(super) seed: u64,
    pub(super) step_count: usize,
    pub(super) on_step: &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    pub(super) trace: Option<&'a mut Vec<Traced>>,
    /// [`State::default`] to begin with.
    pub(super) state: State,
}

/// What changes from call to call.
#[derive(Default)]
pub(super) struct State {
    call: usize,
    steps_done: usize,
    pub(super) passes: Passes,
    /// The last texts prepared, and which embeddings they are.
    prepared: Option<(Wanted, Vec<PreparedText>)>,
    /// What the last whole pass with each of the texts prepared kept; none yet if they are new.
    features: Vec<Option<Tensor>>,
}

/// Which embeddings a call takes: the prompt's and, if it is guided, the negative prompt's.
type Wanted = (usize, Option<usize>);

impl Denoiser<'_> {
    /// The network's input for one picture: `x`, and an inpainting network's further channels behind it.
    fn input(&self, x: &[f32]) -> Vec<f32> {
        let Some(extra) = self.extra else {
            return x.to_vec();
        };
        let extra_channels = extra.len() / (x.len() / LATENT_CHANNELS);
        let pixels = x
            .chunks_exact(LATENT_CHANNELS)
            .zip(extra.chunks_exact(extra_channels));
        pixels
            .flat_map(|(x, extra)| x.iter().chain(extra))
            .copied()
            .collect()
    }

    /// Prepares the texts of this call, unless the last call's are the same.
    fn prepare(&mut self) {
        let Guidance {
            positive, negative, ..
        } = &self.guidance;
        let call = self.state.call;
        let negative = negative.filter(|_| self.guidance.calls.contains(&(call - 1)));
        let wanted: Wanted = (
            positive.idx_at(call),
            negative.map(|negative| negative.idx_at(call)),
        );
        if self
            .state
            .prepared
            .as_ref()
            .is_some_and(|(which, _)| *which == wanted)
        {
            return;
        }
        let positive = positive.get(wanted.0);
        let negative = negative.zip(wanted.1).map(|(all, idx)| all.get(idx));
        let texts = match negative {
            None => vec![self.unet.prepare(positive)],
            Some(negative) if self.shares(positive, negative) => {
                let joined = [positive.data(), negative.data()].concat();
                let shape = [2, positive.dim(1), positive.dim(2)];
                vec![self.unet.prepare(&Tensor::from_slice(&shape, &joined))]
            }
            Some(negative) => vec![self.unet.prepare(positive), self.unet.prepare(negative)],
        };
        self.state.features = texts.iter().map(|_| None).collect();
        self.state.prepared = Some((wanted, texts));
    }

    /// Whether one call of the network serves both prompts. Prompts of different length never share: A1111 does not
    /// pad them.
    fn shares(&self, positive: &Tensor, negative: &Tensor) -> bool {
        positive.shape() == negative.shape() && self.size.0 * self.size.1 <= SHARED_PIXELS_MAX
    }

    /// The network's answers to `input` for the prompt and, if the call is guided, for the negative prompt.
    fn outputs(&mut self, input: &[f32], t: f32) -> Vec<Vec<f32>> {
        let (height, width) = self.size;
        let (caching, state) = (self.caching, &mut self.state);
        let whole = caching.is_whole(state.call - 1);
        let (_, texts) = state.prepared.as_ref().expect("`prepare` came before");
        let mut outputs = Vec::with_capacity(2);
        for (text, features) in texts.iter().zip(&mut state.features) {
            let (batch, branch) = (text.batch(), caching.branch);
            let (deep, passes) = match features {
                _ if caching.interval == 1 => (Deep::Compute, &mut state.passes.full),
                Some(features) if !whole => {
                    (Deep::Reuse { branch, features }, &mut state.passes.cached)
                }
                features => (Deep::Keep { branch, features }, &mut state.passes.full),
            };
            *passes += batch;
            let shape = [batch, height, width, input.len() / (height * width)];
            let x = Tensor::from_slice(&shape, &input.repeat(batch));
            let (times, pass) = (
                vec![t; batch],
                Pass {
                    deep,
                    token_merging: self.token_merging,
                },
            );
            let output = self
                .unet
                .forward_with(&x, &times, text, pass, &mut Trace::off());
            let length = LATENT_CHANNELS * height * width;
            assert_eq!(
                output.count(),
                batch * length,
                "the UNet gives a latent for a latent"
            );
            outputs.extend(output.data().chunks_exact(length).map(<[f32]>::to_vec));
        }
        outputs
    }

    fn not_finite(&self) -> GenerateError {
        let place = format!("step {} of {}", self.state.steps_done + 1, self.step_count);
        GenerateError::NotFinite {
            place,
            seed: self.seed,
        }
    }
}

impl Host for Denoiser<'_> {
    type Error = GenerateError;

    fn predict(&mut self, x: &[f32], t: f32) -> Result<Vec<f32>, GenerateError> {
        self.state.call += 1;
        self.prepare();
        let input = self.input(x);
        let outputs = self.outputs(&input, t);
        if let Some(error) = self.failures.and_then(Failures::take) {
            return Err(error.into());
        }
        let negative = outputs.get(1).map(Vec::as_slice).unwrap_or_default();
        let mut guided = outputs[0].clone();
        // Ho and Salimans 2022, arXiv:2207.12598, equation 6, in the form with 1 for no guidance.
        for (positive, negative) in guided.iter_mut().zip(negative) {
            *positive = negative + self.guidance.scale * (*positive - negative);
        }
        if guided.iter().all(|value| value.is_finite()) {
            Ok(guided)
        } else {
            Err(self.not_finite())
        }
    }

    fn noise(&mut self, out: &mut [f32]) {
        out.copy_from_slice(&latent_noise(&mut self.rng, self.size));
    }

    fn adjust_input(&mut self, x: &mut [f32]) {
        if let Some(blend) = self.blend {
            blend.apply(x, &blend.init);
        }
    }

    fn adjust_denoised(&mut self, denoised: &mut [f32]) {
        if let Some(blend) = self.blend {
            blend.apply(denoised, &blend.init);
        }
    }

    fn step_done(&mut self, done: StepDone<'_>) -> ControlFlow<()> {
        if let (Flavour::Diffusers, Some(blend)) = (self.flavour, self.blend) {
            // StableDiffusionInpaintPipeline: the kept part gets the noise of the level just reached.
            match done.level {
                Some(level) => blend.apply(done.latents, &level.apply(&blend.init, &blend.noise)),
                None => blend.apply(done.latents, &blend.init),
            }
        }
        self.state.steps_done = done.step;
        if let Some(trace) = &mut self.trace {
            trace.push(traced(
                format!("step.{}", done.step),
                done.latents,
                self.size,
            ));
        }
        (self.on_step)(done.step, done.step_count)
    }
}

/// One draw of noise for a latent, `[H, W, 4]`: torch draws `[4, H, W]`.
pub(super) fn latent_noise(rng: &mut NoiseRng, (height, width): (usize, usize)) -> Vec<f32> {
    let noise = rng.randn(LATENT_CHANNELS * height * width);
    Tensor::from_nchw(&[1, LATENT_CHANNELS, height, width], &noise).to_vec()
}

/// A latent `[H, W, C]` under a name, in torch's order `[1, C, H, W]`.
pub(super) fn traced(name: String, latent: &[f32], (height, width): (usize, usize)) -> Traced {
    let channels = latent.len() / (height * width);
    let values = Tensor::from_slice(&[1, height, width, channels], latent).to_nchw();
    Traced {
        name,
        shape: vec![1, channels, height, width],
        values,
    }
}
