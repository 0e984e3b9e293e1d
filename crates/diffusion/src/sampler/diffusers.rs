//! The schedulers of Hugging Face diffusers: same samplers, other noise levels, other roundings, other start.
//!
//! [`SchedulerConfig`] has the fields of a `scheduler_config.json` that matter here; [`Scheduler`] is used as theirs is:
//! for each of [`Scheduler::timesteps`], [`Scheduler::scale_model_input`], the network, [`Scheduler::step`].
//! [`Scheduler::run`] is that loop. Checked against diffusers 0.42 by golden files.
//!
//! Source of what differs from k-diffusion: diffusers' `schedulers/scheduling_*.py`.

mod config;
mod step;
mod timesteps;

use super::{Host, Mix, PlanError, SampleError, Sampler, StepDone, report};
pub use config::{FinalSigma, SchedulerConfig, SigmaCurve, SolverType, Spacing};

/// One of diffusers' schedulers with its steps set: what they call `scheduler` after `set_timesteps`.
///
/// ```
/// use safelight_diffusion::sampler::{Sampler, diffusers::{Scheduler, SchedulerConfig}};
///
/// let config = SchedulerConfig::stable_diffusion(Sampler::Ddim);
/// let mut scheduler = Scheduler::new(Sampler::Ddim, &config, 20)?;
/// assert_eq!(scheduler.timesteps()[0], 951.0);
/// let mut x = vec![scheduler.init_noise_sigma(); 4];
/// let scaled = scheduler.scale_model_input(&x);
/// scheduler.step(&scaled, &mut x, |_| unreachable!("DDIM adds no noise"));
/// # Ok::<(), safelight_diffusion::sampler::PlanError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Scheduler {
    sampler: Sampler,
    config: SchedulerConfig,
    /// The steps asked for.
    steps: usize,
    alphas_cumprod: Vec<f32>,
    timesteps: Vec<f32>,
    /// One more than `timesteps`; Heun's inner ones stand twice. Empty for DDIM and LCM, which think in ᾱ.
    sigmas: Vec<f32>,
    idx: usize,
    memory: step::Memory,
}

impl Scheduler {
    /// The scheduler for `sampler`, ready for the first of `steps` steps.
    ///
    /// # Errors
    /// [`PlanError::Steps`] if this scheduler cannot take so many steps, [`PlanError::Config`] for a setting we do not have.
    pub fn new(
        sampler: Sampler,
        config: &SchedulerConfig,
        steps: usize,
    ) -> Result<Scheduler, PlanError> {
        config.check(sampler)?;
        let alphas_cumprod = config.alphas_cumprod(sampler);
        let timesteps::Timesteps { timesteps, sigmas } =
            timesteps::set(sampler, config, steps, &alphas_cumprod)?;
        let memory = step::Memory::default();
        Ok(Scheduler {
            sampler,
            config: config.clone(),
            steps,
            alphas_cumprod,
            timesteps,
            sigmas,
            idx: 0,
            memory,
        })
    }

    /// The times the network is told, one for each of its calls, falling.
    pub fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    /// The noise levels, one more than timesteps. Empty for DDIM and LCM.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// Timesteps per step: 2 for Heun, which calls the network twice, else 1.
    pub fn order(&self) -> usize {
        super::calls_per_step(self.sampler)
    }

    /// Timesteps not yet walked.
    pub fn remaining(&self) -> usize {
        self.timesteps.len() - self.idx
    }

    /// Starts at entry `idx` of the timesteps, for denoising part of the way.
    ///
    /// # Panics
    /// If there is no such timestep.
    pub fn begin_at(&mut self, idx: usize) {
        assert!(
            idx < self.timesteps.len(),
            "timestep {idx} of {}",
            self.timesteps.len()
        );
        self.idx = idx;
        self.memory = step::Memory::default();
    }

    /// The factor of the unit noise that a picture from nothing starts from.
    pub fn init_noise_sigma(&self) -> f32 {
        match self.sampler {
            Sampler::Ddim | Sampler::Lcm | Sampler::DpmPp2m => 1.0,
            Sampler::Euler | Sampler::EulerAncestral | Sampler::Heun => {
                let highest = self.sigmas.iter().copied().fold(0.0, f32::max);
                match self.config.spacing {
                    Spacing::Linspace | Spacing::Trailing => highest,
                    Spacing::Leading => (highest * highest + 1.0).sqrt(),
                }
            }
        }
    }

    /// `x` as the network wants it at the current timestep.
    pub fn scale_model_input(&self, x: &[f32]) -> Vec<f32> {
        match self.sampler {
            Sampler::Ddim | Sampler::Lcm | Sampler::DpmPp2m => x.to_vec(),
            Sampler::Euler | Sampler::EulerAncestral | Sampler::Heun => {
                let sigma = self.sigmas[self.idx];
                let divisor = (sigma * sigma + 1.0).sqrt();
                x.iter().map(|&x| x / divisor).collect()
            }
        }
    }

    /// The noise level at the current timestep: what diffusers' `add_noise` mixes.
    pub fn level(&self) -> Mix {
        match self.sampler {
            Sampler::Ddim | Sampler::Lcm => {
                let alpha = self.alphas_cumprod[self.timesteps[self.idx] as usize];
                Mix {
                    signal: alpha.sqrt(),
                    noise: (1.0 - alpha).sqrt(),
                }
            }
            Sampler::DpmPp2m => {
                let (alpha, sigma) = step::alpha_sigma(self.sigmas[self.idx]);
                Mix {
                    signal: alpha as f32,
                    noise: sigma as f32,
                }
            }
            Sampler::Euler | Sampler::EulerAncestral | Sampler::Heun => Mix {
                signal: 1.0,
                noise: self.sigmas[self.idx],
            },
        }
    }

    /// Takes the step from the current timestep to the next: `x` is the latent before and after, `output` the network's
    /// answer to [`Scheduler::scale_model_input`]; `noise` fills a slice with unit noise and is called at most once.
    ///
    /// # Panics
    /// After the last step, and if the lengths differ.
    pub fn step(&mut self, output: &[f32], x: &mut [f32], noise: impl FnOnce(&mut [f32])) {
        assert!(
            self.idx < self.timesteps.len(),
            "all {} steps are taken",
            self.timesteps.len()
        );
        assert_eq!(
            output.len(),
            x.len(),
            "the network's output is as long as its input"
        );
        match self.sampler {
            Sampler::Euler => self.step_euler(output, x),
            Sampler::EulerAncestral => self.step_euler_ancestral(output, x, noise),
            Sampler::Heun => self.step_heun(output, x),
            Sampler::Ddim => self.step_ddim(output, x, noise),
            Sampler::DpmPp2m => self.step_dpm(output, x),
            Sampler::Lcm => self.step_lcm(output, x, noise),
        }
        self.idx += 1;
    }

    /// Walks all remaining steps.
    ///
    /// # Errors
    /// [`SampleError::Stopped`] when the host stopped it, [`SampleError::Host`] when the network could not be run.
    pub fn run<H: Host>(
        &mut self,
        mut x: Vec<f32>,
        host: &mut H,
    ) -> Result<Vec<f32>, SampleError<H::Error>> {
        let step_count = self.remaining();
        for step in 1..=step_count {
            let scaled = self.scale_model_input(&x);
            let output = host
                .predict(&scaled, self.timesteps[self.idx])
                .map_err(SampleError::Host)?;
            self.step(&output, &mut x, |out| host.noise(out));
            let level = (step < step_count).then(|| self.level());
            report(
                host,
                StepDone {
                    step,
                    step_count,
                    latents: &mut x,
                    level,
                },
            )?;
        }
        Ok(x)
    }
}
