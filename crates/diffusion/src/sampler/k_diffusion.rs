//! k-diffusion's samplers, on a denoiser: something that takes `latent + σ·noise` and guesses the latent.
//!
//! A1111's samplers are these. Formulas after k-diffusion's `sampling.py` and the papers named at each function; all
//! churn parameters are at their defaults, which is none.

use std::ops::ControlFlow;

use super::{Mix, SampleError, Sampler, StepDone};

/// What these samplers ask of their surroundings.
pub trait Denoiser {
    /// Why it could not be run.
    type Error;

    /// The guess at the clean latent in `x`, whose noise has standard deviation `sigma > 0`.
    ///
    /// # Errors
    /// Whatever the denoiser likes: sampling ends and hands it on.
    fn denoised(&mut self, x: &[f32], sigma: f32) -> Result<Vec<f32>, Self::Error>;

    /// Fills `out` with fresh unit noise.
    fn noise(&mut self, out: &mut [f32]);

    /// Called after each step; `Break` ends sampling.
    fn step_done(&mut self, _done: StepDone<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Walks `x` (clean latent + `sigmas[0]` · noise) down the noise levels `sigmas`, which fall to the last one, usually 0.
///
/// # Errors
/// The denoiser's, or [`SampleError::Stopped`].
///
/// # Panics
/// For [`Sampler::Ddim`], which has no k-diffusion form, and if `sigmas` rise or all but the last are not positive.
pub fn sample<D: Denoiser>(
    sampler: Sampler,
    mut x: Vec<f32>,
    sigmas: &[f32],
    denoiser: &mut D,
) -> Result<Vec<f32>, SampleError<D::Error>> {
    assert!(
        sigmas
            .windows(2)
            .all(|pair| pair[0] > 0.0 && pair[0] >= pair[1]),
        "noise levels must fall: {sigmas:?}"
    );
    let step_count = sigmas.len().saturating_sub(1);
    let mut previous: Option<Vec<f32>> = None;
    for (idx, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let denoised = denoiser.denoised(&x, sigma).map_err(SampleError::Host)?;
        match sampler {
            Sampler::Euler => euler_step(&mut x, &denoised, sigma, next),
            Sampler::EulerAncestral => {
                let (down, up) = ancestral_split(sigma, next);
                euler_step(&mut x, &denoised, sigma, down);
                if next > 0.0 {
                    add_noise(&mut x, up, denoiser);
                }
            }
            Sampler::Heun => heun_step(&mut x, &denoised, sigma, next, denoiser)?,
            Sampler::DpmPp2m => {
                let before = previous
                    .as_deref()
                    .map(|previous| (sigmas[idx - 1], previous));
                dpmpp_2m_step(&mut x, &denoised, before, sigma, next);
                previous = Some(denoised);
            }
            Sampler::Lcm => {
                x = denoised;
                if next > 0.0 {
                    add_noise(&mut x, next, denoiser);
                }
            }
            Sampler::Ddim => panic!("DDIM has no k-diffusion form"),
        }
        let level = (next > 0.0).then_some(Mix {
            signal: 1.0,
            noise: next,
        });
        let done = StepDone {
            step: idx + 1,
            step_count,
            latents: &mut x,
            level,
        };
        if denoiser.step_done(done).is_break() {
            return Err(SampleError::Stopped);
        }
    }
    Ok(x)
}

/// Moves `x` from noise level `sigma` to `next` along the slope at `sigma`.
///
/// Source: Karras et al. 2022, arXiv:2206.00364, Algorithm 1 without the second-order step.
fn euler_step(x: &mut [f32], denoised: &[f32], sigma: f32, next: f32) {
    let dt = next - sigma;
    for (x, &denoised) in x.iter_mut().zip(denoised) {
        *x += (*x - denoised) / sigma * dt;
    }
}

/// Splits a step from `sigma` to `next` into the level to step down to and the standard deviation of the noise that
/// brings it back up: `up² = next²·(σ² − next²)/σ²`, `down² = next² − up²`.
///
/// Source: k-diffusion `get_ancestral_step` with η = 1; Song et al. 2021, arXiv:2011.13456, appendix F.
pub(crate) fn ancestral_split(sigma: f32, next: f32) -> (f32, f32) {
    let (sigma, next) = (f64::from(sigma), f64::from(next));
    let up = (next.powi(2) * (sigma.powi(2) - next.powi(2)) / sigma.powi(2))
        .sqrt()
        .min(next);
    let down = (next.powi(2) - up.powi(2)).sqrt();
    (down as f32, up as f32)
}

fn add_noise<D: Denoiser>(x: &mut [f32], scale: f32, denoiser: &mut D) {
    let mut noise = vec![0.0; x.len()];
    denoiser.noise(&mut noise);
    for (x, noise) in x.iter_mut().zip(noise) {
        *x += noise * scale;
    }
}

/// An Euler step, then the same step again with the average of the slopes at its two ends; to 0 just the Euler step.
///
/// Source: Karras et al. 2022, arXiv:2206.00364, Algorithm 1.
fn heun_step<D: Denoiser>(
    x: &mut [f32],
    denoised: &[f32],
    sigma: f32,
    next: f32,
    denoiser: &mut D,
) -> Result<(), SampleError<D::Error>> {
    let mut there = x.to_vec();
    euler_step(&mut there, denoised, sigma, next);
    if next == 0.0 {
        x.copy_from_slice(&there);
        return Ok(());
    }
    let denoised_there = denoiser.denoised(&there, next).map_err(SampleError::Host)?;
    let dt = next - sigma;
    for (i, x) in x.iter_mut().enumerate() {
        let slope = (*x - denoised[i]) / sigma;
        let slope_there = (there[i] - denoised_there[i]) / next;
        *x += (slope + slope_there) / 2.0 * dt;
    }
    Ok(())
}

/// A step of the second-order multistep solver; `before` is the noise level and denoised latent of the step before.
/// The first step and a step to 0 are of first order.
///
/// Source: Lu et al. 2022, arXiv:2211.01095, Algorithm 2, with `λ = −ln σ` since here `α = 1`.
fn dpmpp_2m_step(
    x: &mut [f32],
    denoised: &[f32],
    before: Option<(f32, &[f32])>,
    sigma: f32,
    next: f32,
) {
    let lambda = |sigma: f32| -f64::from(sigma).ln();
    let h = lambda(next) - lambda(sigma);
    let (keep, take) = (
        (f64::from(next) / f64::from(sigma)) as f32,
        -(-h).exp_m1() as f32,
    );
    match before {
        Some((sigma_before, denoised_before)) if next > 0.0 && h > 0.0 => {
            let r = (lambda(sigma) - lambda(sigma_before)) / h;
            // A schedule that stands still (r = 0) has no second slope to use.
            let weight = if r > 0.0 {
                (1.0 / (2.0 * r)) as f32
            } else {
                0.0
            };
            for (i, x) in x.iter_mut().enumerate() {
                let extrapolated = (1.0 + weight) * denoised[i] - weight * denoised_before[i];
                *x = keep * *x + take * extrapolated;
            }
        }
        _ => {
            for (x, &denoised) in x.iter_mut().zip(denoised) {
                *x = keep * *x + take * denoised;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A denoiser that knows the answer: everything but `clean` is noise.
    struct Oracle {
        clean: f32,
        stop_after: usize,
        calls: usize,
    }

    impl Denoiser for Oracle {
        type Error = &'static str;

        fn denoised(&mut self, x: &[f32], _sigma: f32) -> Result<Vec<f32>, Self::Error> {
            self.calls += 1;
            if self.calls == 99 {
                Err("out of calls")
            } else {
                Ok(vec![self.clean; x.len()])
            }
        }

        fn noise(&mut self, out: &mut [f32]) {
            out.fill(0.5);
        }

        fn step_done(&mut self, done: StepDone<'_>) -> ControlFlow<()> {
            assert_eq!(done.level.is_none(), done.step == done.step_count);
            if done.step == self.stop_after {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        }
    }

    const SAMPLERS: [Sampler; 5] = [
        Sampler::Euler,
        Sampler::EulerAncestral,
        Sampler::Heun,
        Sampler::DpmPp2m,
        Sampler::Lcm,
    ];
    const SIGMAS: [f32; 5] = [14.0, 5.0, 2.0, 0.3, 0.0];

    #[test]
    fn a_perfect_denoiser_is_believed() {
        for sampler in SAMPLERS {
            let mut oracle = Oracle {
                clean: 0.25,
                stop_after: 0,
                calls: 0,
            };
            let latents = sample(sampler, vec![14.0, -3.0, 0.0], &SIGMAS, &mut oracle).unwrap();
            assert!(
                latents.iter().all(|x| (x - 0.25).abs() < 1e-5),
                "{sampler:?}: {latents:?}"
            );
            assert_eq!(
                oracle.calls,
                if sampler == Sampler::Heun { 7 } else { 4 },
                "{sampler:?}"
            );
        }
    }

    #[test]
    fn stops_when_told_and_hands_errors_on() {
        for sampler in SAMPLERS {
            let mut oracle = Oracle {
                clean: 0.0,
                stop_after: 2,
                calls: 0,
            };
            let stopped = sample(sampler, vec![1.0], &SIGMAS, &mut oracle);
            assert_eq!(stopped, Err(SampleError::Stopped));
            let mut oracle = Oracle {
                clean: 0.0,
                stop_after: 0,
                calls: 97,
            };
            let failed = sample(sampler, vec![1.0], &SIGMAS, &mut oracle);
            assert_eq!(failed, Err(SampleError::Host("out of calls")));
        }
    }

    #[test]
    fn standing_still_stays_finite() {
        for sampler in SAMPLERS {
            let mut oracle = Oracle {
                clean: 0.5,
                stop_after: 0,
                calls: 0,
            };
            let latents =
                sample(sampler, vec![1.0], &[3.0, 3.0, 3.0, 1.0, 0.0], &mut oracle).unwrap();
            assert!(latents[0].is_finite(), "{sampler:?}");
        }
    }
}
