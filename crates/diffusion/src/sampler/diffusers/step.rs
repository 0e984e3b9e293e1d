//! One step of each of diffusers' schedulers.

use super::super::a1111::boundary_scalings;
use super::super::k_diffusion::ancestral_split;
use super::Scheduler;
use super::config::{FinalSigma, SolverType};
use crate::schedule::Prediction;

/// What a scheduler remembers from one step to the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// Heun: the latent and slope at the start of the step, while its second network call is awaited.
    heun: Option<(Vec<f32>, Vec<f32>)>,
    /// DPM-Solver: the previous guess at the clean latent.
    clean: Option<Vec<f32>>,
}

/// `(α, σ)` with `α² + σ² = 1` of a noise level that is their quotient.
pub(super) fn alpha_sigma(level: f32) -> (f64, f64) {
    let level = f64::from(level);
    let alpha = 1.0 / (level * level + 1.0).sqrt();
    (alpha, level * alpha)
}

impl Scheduler {
    /// The clean latent in `x = latent + sigma·noise`, given the network's output.
    fn clean_at_sigma(&self, x: &[f32], output: &[f32], sigma: f32) -> Vec<f32> {
        let variance = sigma * sigma + 1.0;
        let v_scale = -sigma / variance.sqrt();
        let clean = |(&x, &output): (&f32, &f32)| match self.config.prediction {
            Prediction::Epsilon => x - sigma * output,
            Prediction::V => output * v_scale + x / variance,
            Prediction::Sample => output,
        };
        x.iter().zip(output).map(clean).collect()
    }

    /// Source: Karras et al. 2022, arXiv:2206.00364, Algorithm 2 without churn and second order.
    pub(super) fn step_euler(&self, output: &[f32], x: &mut [f32]) {
        let (sigma, next) = (self.sigmas[self.idx], self.sigmas[self.idx + 1]);
        let clean = self.clean_at_sigma(x, output, sigma);
        for (x, clean) in x.iter_mut().zip(clean) {
            *x += (*x - clean) / sigma * (next - sigma);
        }
    }

    /// As [`Self::step_euler`], down to where fresh noise is added. Noise is drawn in every step, the last included.
    pub(super) fn step_euler_ancestral(
        &self,
        output: &[f32],
        x: &mut [f32],
        noise: impl FnOnce(&mut [f32]),
    ) {
        let (sigma, next) = (self.sigmas[self.idx], self.sigmas[self.idx + 1]);
        let (down, up) = ancestral_split(sigma, next);
        let clean = self.clean_at_sigma(x, output, sigma);
        let mut fresh = vec![0.0; x.len()];
        noise(&mut fresh);
        for (i, x) in x.iter_mut().enumerate() {
            *x += (*x - clean[i]) / sigma * (down - sigma);
            *x += fresh[i] * up;
        }
    }

    /// The first call for a step goes on as Euler does; the second goes the same way again with the mean slope.
    ///
    /// Source: Karras et al. 2022, arXiv:2206.00364, Algorithm 1.
    pub(super) fn step_heun(&mut self, output: &[f32], x: &mut [f32]) {
        let second = self.memory.heun.take();
        let sigma = self.sigmas[self.idx];
        let mut clean = self.clean_at_sigma(x, output, sigma);
        self.clip(&mut clean);
        let slope: Vec<f32> = x
            .iter()
            .zip(clean)
            .map(|(&x, clean)| (x - clean) / sigma)
            .collect();
        match second {
            None => {
                let dt = self.sigmas[self.idx + 1] - sigma;
                let start = x.to_vec();
                for (x, slope) in x.iter_mut().zip(&slope) {
                    *x += slope * dt;
                }
                self.memory.heun = Some((start, slope));
            }
            Some((start, first_slope)) => {
                let dt = sigma - self.sigmas[self.idx - 1];
                for (i, x) in x.iter_mut().enumerate() {
                    *x = start[i] + (first_slope[i] + slope[i]) / 2.0 * dt;
                }
            }
        }
    }

    /// The network's guesses at the clean latent and at the noise, in `x = √ᾱ·latent + √(1−ᾱ)·noise`.
    fn clean_and_noise_at_alpha(
        &self,
        x: &[f32],
        output: &[f32],
        alpha: f32,
    ) -> (Vec<f32>, Vec<f32>) {
        let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let both = |(&x, &output): (&f32, &f32)| match self.config.prediction {
            Prediction::Epsilon => ((x - noise * output) / signal, output),
            Prediction::V => (signal * x - noise * output, signal * output + noise * x),
            Prediction::Sample => (output, (x - signal * output) / noise),
        };
        x.iter().zip(output).map(both).unzip()
    }

    fn clip(&self, clean: &mut [f32]) {
        if let Some(range) = self.config.clip_sample {
            for value in clean {
                *value = value.clamp(-range, range);
            }
        }
    }

    /// Source: Song et al. 2021, arXiv:2010.02502, equations 12 and 16.
    pub(super) fn step_ddim(&self, output: &[f32], x: &mut [f32], noise: impl FnOnce(&mut [f32])) {
        let t = self.timesteps[self.idx] as usize;
        let alpha = self.alphas_cumprod[t];
        let alpha_next = match t.checked_sub(self.config.betas.step_count / self.steps) {
            Some(next) => self.alphas_cumprod[next],
            None if self.config.set_alpha_to_one => 1.0,
            None => self.alphas_cumprod[0],
        };
        let (mut clean, epsilon) = self.clean_and_noise_at_alpha(x, output, alpha);
        self.clip(&mut clean);
        let (alpha, alpha_next) = (f64::from(alpha), f64::from(alpha_next));
        let variance = (1.0 - alpha_next) / (1.0 - alpha) * (1.0 - alpha / alpha_next);
        let added = self.config.eta * variance.max(0.0).sqrt();
        let signal = alpha_next.sqrt() as f32;
        let direction = (1.0 - alpha_next - added * added).max(0.0).sqrt() as f32;
        for (i, x) in x.iter_mut().enumerate() {
            *x = signal * clean[i] + direction * epsilon[i];
        }
        if added > 0.0 {
            let mut fresh = vec![0.0; x.len()];
            noise(&mut fresh);
            for (x, fresh) in x.iter_mut().zip(fresh) {
                *x += added as f32 * fresh;
            }
        }
    }

    /// DPM-Solver++ of first or second order.
    ///
    /// Source: Lu et al. 2022, arXiv:2211.01095, equation 4.5 and Algorithm 2, with `λ = ln α − ln σ`.
    pub(super) fn step_dpm(&mut self, output: &[f32], x: &mut [f32]) {
        let (alpha, sigma) = alpha_sigma(self.sigmas[self.idx]);
        let clean: Vec<f32> = {
            let (alpha, sigma) = (alpha as f32, sigma as f32);
            let clean = |(&x, &output): (&f32, &f32)| match self.config.prediction {
                Prediction::Epsilon => (x - sigma * output) / alpha,
                Prediction::V => alpha * x - sigma * output,
                Prediction::Sample => output,
            };
            x.iter().zip(output).map(clean).collect()
        };
        let (alpha_next, sigma_next) = alpha_sigma(self.sigmas[self.idx + 1]);
        let lambda = |level: f32| -f64::from(level).ln();
        let h = lambda(self.sigmas[self.idx + 1]) - lambda(self.sigmas[self.idx]);
        let keep = (sigma_next / sigma) as f32;
        let take = (-alpha_next * (-h).exp_m1()) as f32;
        let before = self.memory.clean.take();
        match before {
            Some(before) if self.config.solver_order == 2 && !self.last_is_first_order() => {
                let r = (lambda(self.sigmas[self.idx]) - lambda(self.sigmas[self.idx - 1])) / h;
                let weight = match self.config.solver_type {
                    SolverType::Midpoint => 0.5 * f64::from(take),
                    SolverType::Heun => alpha_next * ((-h).exp_m1() / h + 1.0),
                } as f32;
                let inverse = (1.0 / r) as f32;
                for (i, x) in x.iter_mut().enumerate() {
                    let slope = inverse * (clean[i] - before[i]);
                    *x = keep * *x + take * clean[i] + weight * slope;
                }
            }
            _ => {
                for (x, &clean) in x.iter_mut().zip(&clean) {
                    *x = keep * *x + take * clean;
                }
            }
        }
        self.memory.clean = Some(clean);
    }

    /// Whether this is the last step and must not look back.
    fn last_is_first_order(&self) -> bool {
        let last = self.idx + 1 == self.timesteps.len();
        let few = self.config.lower_order_final && self.timesteps.len() < 15;
        last && (self.config.euler_at_final || few || self.config.final_sigma == FinalSigma::Zero)
    }

    /// Source: Luo et al. 2023, arXiv:2310.04378, Algorithm 3.
    pub(super) fn step_lcm(&self, output: &[f32], x: &mut [f32], noise: impl FnOnce(&mut [f32])) {
        let t = self.timesteps[self.idx];
        let (mut clean, _) =
            self.clean_and_noise_at_alpha(x, output, self.alphas_cumprod[t as usize]);
        self.clip(&mut clean);
        let (skip, through) = boundary_scalings(t * self.config.timestep_scaling);
        for (x, clean) in x.iter_mut().zip(clean) {
            *x = through * clean + skip * *x;
        }
        if let Some(&next) = self.timesteps.get(self.idx + 1) {
            let alpha = self.alphas_cumprod[next as usize];
            let mut fresh = vec![0.0; x.len()];
            noise(&mut fresh);
            for (x, fresh) in x.iter_mut().zip(fresh) {
                *x = alpha.sqrt() * *x + (1.0 - alpha).sqrt() * fresh;
            }
        }
    }
}
