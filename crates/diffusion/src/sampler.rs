//! Samplers: from noise to a clean latent in a few calls of the network.
//!
//! A [`Plan`] decides everything before the first call: noise levels, how many steps a partial denoising takes, how the
//! start is mixed. [`Plan::run`] then walks the steps, asking a [`Host`] for network outputs and noise, and telling it
//! after each step. Two flavours: [`k_diffusion`] is what A1111 does (with its own DDIM and LCM), [`diffusers`] what the
//! schedulers of that library do. Latents are flat; samplers never look at their shape.

mod a1111;
pub mod diffusers;
pub mod k_diffusion;

use std::fmt;
use std::ops::ControlFlow;

use crate::schedule::{Prediction, Schedule, plain_name};
use diffusers::{Scheduler, SchedulerConfig};

/// A sampler by its A1111 name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Sampler {
    /// First-order steps (Karras et al. 2022, arXiv:2206.00364, Algorithm 2 without churn and correction).
    #[default]
    Euler,
    /// Euler steps that go too far down and add fresh noise.
    EulerAncestral,
    /// Second-order steps with two network calls each (Karras et al. 2022, Algorithm 2 without churn).
    Heun,
    /// Denoising diffusion implicit models (Song et al. 2021, arXiv:2010.02502), without added noise.
    Ddim,
    /// DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, Algorithm 2).
    DpmPp2m,
    /// Latent consistency models (Luo et al. 2023, arXiv:2310.04378): for models distilled to few steps.
    Lcm,
}

impl Sampler {
    /// Every sampler, in A1111's order.
    pub const ALL: [Sampler; 6] = [
        Sampler::DpmPp2m,
        Sampler::EulerAncestral,
        Sampler::Euler,
        Sampler::Heun,
        Sampler::Lcm,
        Sampler::Ddim,
    ];

    /// A1111's name, as in the `Sampler` entry of a picture's parameters.
    pub fn name(self) -> &'static str {
        match self {
            Sampler::Euler => "Euler",
            Sampler::EulerAncestral => "Euler a",
            Sampler::Heun => "Heun",
            Sampler::Ddim => "DDIM",
            Sampler::DpmPp2m => "DPM++ 2M",
            Sampler::Lcm => "LCM",
        }
    }

    /// The sampler of this name, A1111's or k-diffusion's (`euler_ancestral`, `dpmpp_2m`); case, spaces, `_` and `-` do
    /// not count.
    pub fn from_name(name: &str) -> Option<Self> {
        match plain_name(name).as_str() {
            "eulerancestral" | "keulera" | "eulera" => Some(Sampler::EulerAncestral),
            "dpmpp2m" | "kdpmpp2m" | "kdpm++2m" => Some(Sampler::DpmPp2m),
            "keuler" => Some(Sampler::Euler),
            "kheun" => Some(Sampler::Heun),
            plain => Self::ALL
                .into_iter()
                .find(|sampler| plain_name(sampler.name()) == plain),
        }
    }

    /// What [`Schedule::Automatic`] means for this sampler in A1111.
    pub fn default_schedule(self) -> Schedule {
        match self {
            Sampler::DpmPp2m => Schedule::Karras,
            _ => Schedule::Uniform,
        }
    }
}

/// Whose arithmetic to follow where tools differ (parity of pictures is per tool).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavour {
    /// AUTOMATIC1111's web UI, which is k-diffusion's samplers.
    #[default]
    A1111,
    /// Hugging Face diffusers' pipelines and schedulers.
    Diffusers,
}

impl Flavour {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Flavour::A1111 => "a1111",
            Flavour::Diffusers => "diffusers",
        }
    }

    /// The flavour of this name (`k-diffusion` means A1111), whatever its case.
    pub fn from_name(name: &str) -> Option<Self> {
        match plain_name(name).as_str() {
            "a1111" | "kdiffusion" | "automatic1111" => Some(Flavour::A1111),
            "diffusers" => Some(Flavour::Diffusers),
            _ => None,
        }
    }
}

/// How much clean latent and how much unit noise a latent of some noise level is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    /// Factor of the clean latent.
    pub signal: f32,
    /// Factor of the noise.
    pub noise: f32,
}

impl Mix {
    /// `signal · clean + noise · noise`, value by value.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn apply(self, clean: &[f32], noise: &[f32]) -> Vec<f32> {
        assert_eq!(
            clean.len(),
            noise.len(),
            "a latent and its noise have the same length"
        );
        clean
            .iter()
            .zip(noise)
            .map(|(&clean, &noise)| self.signal * clean + self.noise * noise)
            .collect()
    }
}

/// Where a sampler stands after a step; see [`Host::step_done`].
#[derive(Debug)]
pub struct StepDone<'a> {
    /// How many steps are done, from 1.
    pub step: usize,
    /// How many there are.
    pub step_count: usize,
    /// The latents now; what the host changes here is what the next step starts from.
    pub latents: &'a mut [f32],
    /// The noise level reached; `None` after the last step, when the latents should be clean.
    pub level: Option<Mix>,
}

/// What a sampler asks of its surroundings.
pub trait Host {
    /// Why the network could not be run.
    type Error;

    /// The network's output (guidance included) for `x`, already scaled as the network wants it, at time `t` (0 … 999,
    /// not always whole). Same length as `x`.
    ///
    /// # Errors
    /// Whatever the host likes: sampling ends and hands it on.
    fn predict(&mut self, x: &[f32], t: f32) -> Result<Vec<f32>, Self::Error>;

    /// Fills `out` with fresh unit noise, for the samplers that add some.
    fn noise(&mut self, out: &mut [f32]);

    /// Changes what the network is about to see. Only A1111's DDIM asks, before scaling (it has none).
    fn adjust_input(&mut self, _x: &mut [f32]) {}

    /// Changes the network's guess at the clean latent. Only the k-diffusion samplers ask.
    fn adjust_denoised(&mut self, _denoised: &mut [f32]) {}

    /// Called after each step; `Break` ends sampling with [`SampleError::Stopped`].
    fn step_done(&mut self, _done: StepDone<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Why sampling ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleError<E> {
    /// The host said so in [`Host::step_done`].
    Stopped,
    /// The host could not run the network.
    Host(E),
}

/// Why there is no plan for this request. Always the request's fault.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum PlanError {
    /// The number of steps is outside what this sampler can do.
    Steps {
        /// The sampler that was asked for.
        sampler: Sampler,
        /// The steps that were asked for.
        steps: usize,
        /// The fewest it takes.
        min: usize,
        /// The most it takes.
        max: usize,
    },
    /// The denoising strength is not in `0..=1`.
    Strength {
        /// The strength that was asked for.
        strength: f64,
    },
    /// So few steps at so little strength leave nothing to do in this flavour.
    NothingToDo {
        /// The steps that were asked for.
        steps: usize,
        /// The strength that was asked for.
        strength: f64,
    },
    /// The scheduler cannot be configured like this.
    Config {
        /// The field of the configuration.
        field: &'static str,
        /// What it says.
        value: String,
        /// What it could say.
        supported: &'static str,
    },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanError::Steps {
                sampler,
                steps,
                min,
                max,
            } => {
                write!(
                    f,
                    "steps is {steps}: {} takes {min} to {max} steps",
                    sampler.name()
                )
            }
            PlanError::Strength { strength } => {
                write!(
                    f,
                    "denoising strength is {strength}: it must be between 0 and 1"
                )
            }
            PlanError::NothingToDo { steps, strength } => write!(
                f,
                "{steps} steps at denoising strength {strength} come to no step at all: raise one of them \
                 (their product must be at least 1)"
            ),
            PlanError::Config {
                field,
                value,
                supported,
            } => {
                write!(
                    f,
                    "scheduler setting `{field}` is {value}: supported are {supported}"
                )
            }
        }
    }
}

impl std::error::Error for PlanError {}

/// The most steps any plan takes; more is a typing mistake, and would be refused by the schedules at the latest.
pub const STEPS_MAX: usize = 999;

/// Everything decided before the network is first called.
#[derive(Clone, Debug)]
pub struct Plan {
    walk: Walk,
    /// What [`Plan::call_count`] says.
    call_count: usize,
}

#[derive(Clone, Debug)]
enum Walk {
    KDiffusion(a1111::SigmaWalk),
    Timesteps(a1111::TimestepWalk),
    Diffusers(Box<Scheduler>),
}

impl Plan {
    /// A plan with A1111's arithmetic for a network trained on noise levels `alphas_cumprod` (from
    /// [`crate::schedule::Betas::alphas_cumprod`]).
    ///
    /// `strength` is `None` for a picture from nothing; for one from another picture it is the denoising strength, and the
    /// plan has `⌊min(strength, 0.999) · steps⌋ + 1` steps (DDIM: one less than that is walked, as in A1111).
    /// [`Schedule::Automatic`] means [`Sampler::default_schedule`]; DDIM has its own schedule whatever `schedule` is.
    ///
    /// # Errors
    /// [`PlanError::Steps`] and [`PlanError::Strength`] for values out of range.
    pub fn a1111(
        sampler: Sampler,
        schedule: Schedule,
        steps: usize,
        strength: Option<f64>,
        prediction: Prediction,
        alphas_cumprod: &[f32],
    ) -> Result<Plan, PlanError> {
        // A1111's DDIM takes one step less than asked for.
        check_steps(
            sampler,
            steps,
            if sampler == Sampler::Ddim { 2 } else { 1 },
            STEPS_MAX,
        )?;
        check_strength(strength)?;
        let walk = if sampler == Sampler::Ddim {
            Walk::Timesteps(a1111::TimestepWalk::new(
                steps,
                strength,
                prediction,
                alphas_cumprod,
            ))
        } else {
            Walk::KDiffusion(a1111::SigmaWalk::new(
                sampler,
                schedule,
                steps,
                strength,
                prediction,
                alphas_cumprod,
            ))
        };
        let taken = strength.map_or(steps, |strength| a1111::encoded_steps(steps, strength) + 1);
        Ok(Plan {
            walk,
            call_count: taken * calls_per_step(sampler),
        })
    }

    /// A plan with diffusers' arithmetic.
    ///
    /// `strength` is `None` for a picture from nothing; otherwise the last `⌊steps · strength⌋` of the steps are taken.
    ///
    /// # Errors
    /// Values out of range, and [`PlanError::NothingToDo`] if no step would be left.
    pub fn diffusers(
        sampler: Sampler,
        config: &SchedulerConfig,
        steps: usize,
        strength: Option<f64>,
    ) -> Result<Plan, PlanError> {
        check_strength(strength)?;
        let mut scheduler = Scheduler::new(sampler, config, steps)?;
        if let Some(strength) = strength {
            // StableDiffusionImg2ImgPipeline.get_timesteps
            let taken = ((steps as f64 * strength) as usize).min(steps);
            let first = (steps - taken) * scheduler.order();
            // Where high noise is clipped, there may be fewer timesteps than steps.
            if taken == 0 || first >= scheduler.remaining() {
                return Err(PlanError::NothingToDo { steps, strength });
            }
            scheduler.begin_at(first);
        }
        Ok(Plan {
            call_count: scheduler.remaining(),
            walk: Walk::Diffusers(Box::new(scheduler)),
        })
    }

    /// How often [`Host::step_done`] will be called. Diffusers counts each of Heun's network calls, A1111 counts pairs.
    pub fn step_count(&self) -> usize {
        match &self.walk {
            Walk::KDiffusion(walk) => walk.step_count(),
            Walk::Timesteps(walk) => walk.step_count(),
            Walk::Diffusers(scheduler) => scheduler.remaining(),
        }
    }

    /// How often the flavour's program would reckon to call the network: what a part of the calls is a part of.
    ///
    /// A1111 counts two calls for each of Heun's steps, although the last has one, and for DDIM one more than it makes.
    pub fn call_count(&self) -> usize {
        self.call_count
    }

    /// How strong the noise is that a picture from nothing starts from: the factor of unit noise.
    pub fn noise_scale(&self) -> f32 {
        match &self.walk {
            Walk::KDiffusion(walk) => walk.start_level().noise,
            Walk::Timesteps(_) => 1.0,
            Walk::Diffusers(scheduler) => scheduler.init_noise_sigma(),
        }
    }

    /// How a picture from another picture starts: this much of its latent, and this much unit noise.
    pub fn start_mix(&self) -> Mix {
        match &self.walk {
            Walk::KDiffusion(walk) => walk.start_level(),
            Walk::Timesteps(walk) => walk.start_mix(),
            Walk::Diffusers(scheduler) => scheduler.level(),
        }
    }

    /// Walks the steps: `latents` come in noisy ([`Plan::noise_scale`] or [`Plan::start_mix`]) and go out clean.
    ///
    /// # Errors
    /// [`SampleError::Stopped`] when the host stopped it, [`SampleError::Host`] when the network could not be run.
    pub fn run<H: Host>(
        &self,
        latents: Vec<f32>,
        host: &mut H,
    ) -> Result<Vec<f32>, SampleError<H::Error>> {
        match &self.walk {
            Walk::KDiffusion(walk) => walk.run(latents, host),
            Walk::Timesteps(walk) => walk.run(latents, host),
            Walk::Diffusers(scheduler) => scheduler.as_ref().clone().run(latents, host),
        }
    }
}

/// Network calls that one step takes.
pub(crate) fn calls_per_step(sampler: Sampler) -> usize {
    match sampler {
        Sampler::Heun => 2,
        _ => 1,
    }
}

fn check_steps(sampler: Sampler, steps: usize, min: usize, max: usize) -> Result<(), PlanError> {
    if (min..=max).contains(&steps) {
        Ok(())
    } else {
        Err(PlanError::Steps {
            sampler,
            steps,
            min,
            max,
        })
    }
}

fn check_strength(strength: Option<f64>) -> Result<(), PlanError> {
    match strength {
        Some(strength) if !(0.0..=1.0).contains(&strength) => Err(PlanError::Strength { strength }),
        _ => Ok(()),
    }
}

/// Tells the host that a step is done, and turns its wish to stop into an error.
fn report<H: Host>(host: &mut H, done: StepDone<'_>) -> Result<(), SampleError<H::Error>> {
    match host.step_done(done) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(SampleError::Stopped),
    }
}
