//! What A1111 puts between the network and k-diffusion's samplers, its own DDIM, and its rules for partial denoising.
//!
//! Source of the formulas: A1111's `modules/sd_samplers_kdiffusion.py`, `sd_samplers_timesteps*.py`, `sd_samplers_lcm.py`
//! and `sd_samplers_common.py`.

use std::ops::ControlFlow;

use super::{Host, Mix, SampleError, Sampler, StepDone, k_diffusion, report};
use crate::schedule::{NoiseLevels, Prediction, Schedule};

/// How many steps of a partial denoising come before the first taken one's successor: `⌊min(strength, 0.999) · steps⌋`.
pub(super) fn encoded_steps(steps: usize, strength: f64) -> usize {
    (strength.min(0.999) * steps as f64) as usize
}

/// A walk down noise levels, with the network wrapped into a denoiser.
#[derive(Clone, Debug)]
pub(super) struct SigmaWalk {
    sampler: Sampler,
    levels: NoiseLevels,
    prediction: Prediction,
    sigmas: Vec<f32>,
}

impl SigmaWalk {
    pub(super) fn new(
        sampler: Sampler,
        schedule: Schedule,
        steps: usize,
        strength: Option<f64>,
        prediction: Prediction,
        alphas_cumprod: &[f32],
    ) -> Self {
        let levels = if sampler == Sampler::Lcm {
            NoiseLevels::lcm(alphas_cumprod)
        } else {
            NoiseLevels::new(alphas_cumprod)
        };
        let schedule = if schedule == Schedule::Automatic {
            sampler.default_schedule()
        } else {
            schedule
        };
        let mut sigmas = levels.sigmas(schedule, steps);
        if let Some(strength) = strength {
            let skipped = steps - encoded_steps(steps, strength) - 1;
            // A schedule that came out shorter than asked for still takes one step.
            sigmas.drain(..skipped.min(sigmas.len() - 2));
        }
        SigmaWalk {
            sampler,
            levels,
            prediction,
            sigmas,
        }
    }

    pub(super) fn step_count(&self) -> usize {
        self.sigmas.len() - 1
    }

    pub(super) fn start_level(&self) -> Mix {
        Mix {
            signal: 1.0,
            noise: self.sigmas[0],
        }
    }

    pub(super) fn run<H: Host>(
        &self,
        latents: Vec<f32>,
        host: &mut H,
    ) -> Result<Vec<f32>, SampleError<H::Error>> {
        let mut wrapped = Wrapped { walk: self, host };
        k_diffusion::sample(self.sampler, latents, &self.sigmas, &mut wrapped)
    }
}

/// The network as a denoiser.
struct Wrapped<'a, H> {
    walk: &'a SigmaWalk,
    host: &'a mut H,
}

impl<H: Host> k_diffusion::Denoiser for Wrapped<'_, H> {
    type Error = H::Error;

    /// Scales `x` to unit variance, asks the network, and turns its output into a clean latent.
    ///
    /// Source: Karras et al. 2022, arXiv:2206.00364, table 1 (column iDDPM) for noise prediction; the parametrisation of
    /// Salimans and Ho 2022, arXiv:2202.00512, in terms of σ for v-prediction.
    fn denoised(&mut self, x: &[f32], sigma: f32) -> Result<Vec<f32>, H::Error> {
        let variance = f64::from(sigma).powi(2) + 1.0;
        let scale = (1.0 / variance.sqrt()) as f32;
        let scaled: Vec<f32> = x.iter().map(|&x| x * scale).collect();
        let t = self.walk.levels.sigma_to_t(sigma);
        let mut out = self.host.predict(&scaled, t)?;
        assert_eq!(
            out.len(),
            x.len(),
            "the network's output is as long as its input"
        );
        let (keep, take) = match self.walk.prediction {
            Prediction::Epsilon => (1.0, -sigma),
            Prediction::V => (
                (1.0 / variance) as f32,
                (-f64::from(sigma) / variance.sqrt()) as f32,
            ),
            Prediction::Sample => (0.0, 1.0),
        };
        for (out, &x) in out.iter_mut().zip(x) {
            *out = keep * x + take * *out;
        }
        if self.walk.sampler == Sampler::Lcm {
            let (skip, through) = boundary_scalings(t * 10.0);
            for (out, &x) in out.iter_mut().zip(x) {
                *out = through * *out + skip * x;
            }
        }
        self.host.adjust_denoised(&mut out);
        Ok(out)
    }

    fn noise(&mut self, out: &mut [f32]) {
        self.host.noise(out);
    }

    fn step_done(&mut self, done: StepDone<'_>) -> ControlFlow<()> {
        self.host.step_done(done)
    }
}

/// How much of its input a consistency model passes on, and how much of its guess: `σ_data²/(s² + σ_data²)` and
/// `s/√(s² + σ_data²)` for scaled time `s`, with `σ_data = 0.5`.
///
/// Source: Song et al. 2023, arXiv:2303.01469, appendix C; Luo et al. 2023, arXiv:2310.04378, §4.1, for the scaling.
pub(super) fn boundary_scalings(scaled_time: f32) -> (f32, f32) {
    let (scaled, data_variance) = (f64::from(scaled_time), 0.25);
    let sum = scaled.powi(2) + data_variance;
    ((data_variance / sum) as f32, (scaled / sum.sqrt()) as f32)
}

/// A1111's DDIM: a walk down training steps, `x = √ᾱ·latent + √(1−ᾱ)·noise`.
#[derive(Clone, Debug)]
pub(super) struct TimestepWalk {
    /// Rising; the walk goes from the last to the second (the first is only gone to).
    timesteps: Vec<usize>,
    alphas: Vec<f32>,
    prediction: Prediction,
    /// ᾱ that a partial denoising starts at; one step above the first one taken.
    start_alpha: f32,
}

impl TimestepWalk {
    pub(super) fn new(
        steps: usize,
        strength: Option<f64>,
        prediction: Prediction,
        alphas_cumprod: &[f32],
    ) -> Self {
        let last = alphas_cumprod.len() - 1;
        let stride = (alphas_cumprod.len() / steps).max(1);
        let mut timesteps: Vec<usize> = (0..=last)
            .step_by(stride)
            .map(|t| (t + 1).min(last))
            .collect();
        let mut start_alpha = alphas_cumprod[last];
        if let Some(strength) = strength {
            let encoded = encoded_steps(steps, strength);
            start_alpha = alphas_cumprod[timesteps[encoded]];
            timesteps.truncate(encoded);
        }
        let alphas = timesteps.iter().map(|&t| alphas_cumprod[t]).collect();
        TimestepWalk {
            timesteps,
            alphas,
            prediction,
            start_alpha,
        }
    }

    pub(super) fn step_count(&self) -> usize {
        self.timesteps.len().saturating_sub(1)
    }

    /// What the walk starts from. Without a step it also ends there, noise and all, as in A1111.
    pub(super) fn start_mix(&self) -> Mix {
        Mix {
            signal: self.start_alpha.sqrt(),
            noise: (1.0 - self.start_alpha).sqrt(),
        }
    }

    /// Source: Song et al. 2021, arXiv:2010.02502, equation 12 with σ = 0.
    pub(super) fn run<H: Host>(
        &self,
        mut x: Vec<f32>,
        host: &mut H,
    ) -> Result<Vec<f32>, SampleError<H::Error>> {
        let step_count = self.step_count();
        for step in 1..=step_count {
            let idx = self.timesteps.len() - step;
            let (alpha, alpha_next) = (self.alphas[idx], self.alphas[idx - 1]);
            let mut seen = x.clone();
            host.adjust_input(&mut seen);
            let out = host
                .predict(&seen, self.timesteps[idx] as f32)
                .map_err(SampleError::Host)?;
            assert_eq!(
                out.len(),
                x.len(),
                "the network's output is as long as its input"
            );
            let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
            let (signal_next, noise_next) = (alpha_next.sqrt(), (1.0 - alpha_next).sqrt());
            for (i, x) in x.iter_mut().enumerate() {
                let epsilon = match self.prediction {
                    Prediction::Epsilon => out[i],
                    Prediction::V => signal * out[i] + noise * seen[i],
                    Prediction::Sample => (seen[i] - signal * out[i]) / noise,
                };
                let clean = (*x - noise * epsilon) / signal;
                *x = signal_next * clean + noise_next * epsilon;
            }
            let level = (step < step_count).then_some(Mix {
                signal: signal_next,
                noise: noise_next,
            });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Betas;

    fn sigma_walk(steps: usize, strength: f64) -> SigmaWalk {
        let alphas = Betas::STABLE_DIFFUSION.alphas_cumprod();
        SigmaWalk::new(
            Sampler::Euler,
            Schedule::Automatic,
            steps,
            Some(strength),
            Prediction::Epsilon,
            &alphas,
        )
    }

    #[test]
    fn partial_denoising_takes_the_last_steps() {
        for (steps, strength, taken) in [
            (20, 0.75, 16),
            (20, 1.0, 20),
            (20, 0.0, 1),
            (10, 0.6, 7),
            (7, 0.3, 3),
            (1, 0.5, 1),
        ] {
            assert_eq!(
                sigma_walk(steps, strength).step_count(),
                taken,
                "{steps} steps at {strength}"
            );
        }
        let levels = NoiseLevels::new(&Betas::STABLE_DIFFUSION.alphas_cumprod());
        assert_eq!(
            sigma_walk(20, 0.75).start_level().noise,
            levels.sigmas(Schedule::Uniform, 20)[4]
        );
    }

    #[test]
    fn ddim_visits_a1111s_timesteps() {
        let alphas = Betas::STABLE_DIFFUSION.alphas_cumprod();
        let walk = TimestepWalk::new(20, None, Prediction::Epsilon, &alphas);
        assert_eq!(
            (walk.timesteps[0], walk.timesteps[19], walk.step_count()),
            (1, 951, 19)
        );
        let walk = TimestepWalk::new(30, None, Prediction::Epsilon, &alphas);
        assert_eq!((walk.timesteps.len(), walk.step_count()), (31, 30));
        let walk = TimestepWalk::new(20, Some(0.5), Prediction::Epsilon, &alphas);
        assert_eq!((walk.timesteps[9], walk.step_count()), (451, 9));
        assert_eq!(walk.start_alpha, alphas[501]);
        let walk = TimestepWalk::new(20, Some(0.05), Prediction::Epsilon, &alphas);
        assert_eq!((walk.step_count(), walk.start_alpha), (0, alphas[51]));
        assert!(walk.start_mix().noise > 0.1);
    }
}
