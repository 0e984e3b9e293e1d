//! Which timesteps and noise levels diffusers' schedulers visit, with numpy's roundings.

use super::super::{PlanError, STEPS_MAX, Sampler, check_steps};
use super::config::{FinalSigma, SchedulerConfig, SigmaCurve, Spacing};
use crate::schedule::{BetaCurve, Prediction, karras, linspace};

/// What `set_timesteps` sets.
pub(super) struct Timesteps {
    pub(super) timesteps: Vec<f32>,
    pub(super) sigmas: Vec<f32>,
}

/// `set_timesteps(steps)` of the scheduler for `sampler`.
pub(super) fn set(
    sampler: Sampler,
    config: &SchedulerConfig,
    steps: usize,
    alphas_cumprod: &[f32],
) -> Result<Timesteps, PlanError> {
    let train = config.betas.step_count;
    if sampler == Sampler::Lcm {
        check_steps(sampler, steps, 1, config.original_inference_steps)?;
        return Ok(Timesteps {
            timesteps: lcm(config, steps),
            sigmas: Vec::new(),
        });
    }
    let end = end(sampler, config, alphas_cumprod);
    if end < 2 {
        return Err(PlanError::Config {
            field: "lambda_min_clipped",
            value: config.lambda_min_clipped.to_string(),
            supported: "numbers that leave two timesteps or more",
        });
    }
    check_steps(sampler, steps, 1, STEPS_MAX.min(end - 1))?;
    let spread = spread(sampler, config, steps, end);
    let highest = spread.iter().copied().fold(0.0, f64::max);
    if highest > (train - 1) as f64 {
        // Only an offset can push a timestep past the end.
        let most = (train - 1)
            .checked_sub(config.steps_offset)
            .map_or(0, |room| train / (train - room));
        return Err(PlanError::Steps {
            sampler,
            steps,
            min: 1,
            max: most.min(steps - 1),
        });
    }
    let mut timesteps: Vec<f32> = spread.iter().map(|&t| t as f32).collect();
    if sampler == Sampler::Ddim {
        return Ok(Timesteps {
            timesteps,
            sigmas: Vec::new(),
        });
    }
    let table: Vec<f32> = alphas_cumprod
        .iter()
        .map(|&alpha| ((1.0 - alpha) / alpha).sqrt())
        .collect();
    let log_table: Vec<f32> = table
        .iter()
        .map(|&sigma| f64::from(sigma).ln() as f32)
        .collect();
    let sigmas = levels(sampler, config, steps, &timesteps, &table);
    if config.bends(sampler) {
        let time = |&sigma: &f64| {
            let t = time_of(sigma, &log_table);
            let whole = sampler == Sampler::DpmPp2m;
            // Diffusers keeps whole numbers here: rounded after Karras but for one curve, cut off after exponential.
            let rounds = config.betas.curve != BetaCurve::SquaredCosine;
            match (whole, config.sigma_curve) {
                (true, SigmaCurve::Karras) if rounds => t.round_ties_even() as f32,
                (true, _) => t.trunc() as f32,
                _ => t as f32,
            }
        };
        timesteps = sigmas.iter().map(time).collect();
    }
    let mut sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
    if config.continuous_timesteps
        && sampler == Sampler::Euler
        && config.prediction == Prediction::V
    {
        timesteps = sigmas.iter().map(|sigma| 0.25 * sigma.ln()).collect();
    }
    let has_final = matches!(sampler, Sampler::Euler | Sampler::DpmPp2m);
    sigmas.push(if has_final && config.final_sigma == FinalSigma::SigmaMin {
        table[0]
    } else {
        0.0
    });
    if sampler == Sampler::Heun {
        (timesteps, sigmas) = (twice_inside(&timesteps, 1), twice_inside(&sigmas, 2));
    }
    Ok(Timesteps { timesteps, sigmas })
}

/// The timesteps that are spread over: all, or those DPM-Solver does not clip.
fn end(sampler: Sampler, config: &SchedulerConfig, alphas_cumprod: &[f32]) -> usize {
    if sampler != Sampler::DpmPp2m {
        return config.betas.step_count;
    }
    let lambda = |alpha: f32| alpha.sqrt().ln() - (1.0 - alpha).sqrt().ln();
    let floor = config.lambda_min_clipped as f32;
    alphas_cumprod.partition_point(|&alpha| lambda(alpha) >= floor)
}

/// The timesteps before any bending, falling.
fn spread(sampler: Sampler, config: &SchedulerConfig, steps: usize, end: usize) -> Vec<f64> {
    let multistep = sampler == Sampler::DpmPp2m;
    let whole = multistep || sampler == Sampler::Ddim;
    // DPM-Solver spreads one step more, and leaves the lowest out.
    let count = if multistep { steps + 1 } else { steps };
    let mut timesteps: Vec<f64> = match config.spacing {
        Spacing::Linspace => {
            let even = linspace(0.0, (end - 1) as f64, count);
            even.map(|t| if whole { t.round_ties_even() } else { t })
                .collect()
        }
        Spacing::Leading => {
            let stride = end / count;
            (0..count)
                .map(|idx| (idx * stride + config.steps_offset) as f64)
                .collect()
        }
        Spacing::Trailing => {
            return trailing(end as f64, config.betas.step_count as f64, steps);
        }
    };
    timesteps.reverse();
    timesteps.truncate(steps);
    timesteps
}

/// `round(arange(end, 0, -train/steps)) - 1`, with the roundings of numpy's `arange`; below `train` there are fewer.
fn trailing(end: f64, train: f64, steps: usize) -> Vec<f64> {
    let stride = train / steps as f64;
    let delta = (end - stride) - end;
    let count = if end < train {
        (end / stride).ceil() as usize
    } else {
        steps
    };
    (0..count)
        .map(|idx| (end + idx as f64 * delta).round_ties_even() - 1.0)
        .collect()
}

/// Every so-manieth of the timesteps that a consistency model was distilled on, from the highest down.
///
/// Source: Luo et al. 2023, arXiv:2310.04378, §4.3; diffusers' `LCMScheduler.set_timesteps`.
fn lcm(config: &SchedulerConfig, steps: usize) -> Vec<f32> {
    let original = config.original_inference_steps;
    let skip = config.betas.step_count / original;
    let stride = original as f64 / steps as f64;
    let from_top = |idx: usize| (idx as f64 * stride).floor() as usize;
    (0..steps)
        .map(|idx| ((original - from_top(idx)) * skip - 1) as f32)
        .collect()
}

/// The noise level of each step, falling, in double precision.
fn levels(
    sampler: Sampler,
    config: &SchedulerConfig,
    steps: usize,
    timesteps: &[f32],
    table: &[f32],
) -> Vec<f64> {
    let last = table.len() - 1;
    let mut sigmas: Vec<f64> = if config.log_linear && sampler == Sampler::Euler {
        let (low, high) = (f64::from(table[0]).ln(), f64::from(table[last]).ln());
        // One level more than steps: the final sigma is appended behind it, and never reached.
        linspace(high, low, steps + 1).map(f64::exp).collect()
    } else {
        timesteps.iter().map(|&t| interpolate(t, table)).collect()
    };
    if config.bends(sampler) {
        // DPM-Solver bends between the ends of training, the others between the ends of their own steps.
        let (high, low) = if sampler == Sampler::DpmPp2m {
            (f64::from(table[last]), f64::from(table[0]))
        } else {
            (sigmas[0], sigmas[sigmas.len() - 1])
        };
        // `from_config` hands on settings that only Euler's class has, and all three look for these.
        let high = config.sigma_max.unwrap_or(high);
        let low = config.sigma_min.unwrap_or(low);
        sigmas = match config.sigma_curve {
            SigmaCurve::Karras => karras(high, low, steps).collect(),
            _ => linspace(high.ln(), low.ln(), steps).map(f64::exp).collect(),
        };
    }
    sigmas
}

/// The table's value at `t`, straight between entries (σ itself, not ln σ as in k-diffusion).
fn interpolate(t: f32, table: &[f32]) -> f64 {
    let t = f64::from(t).clamp(0.0, (table.len() - 1) as f64);
    let low = (t as usize).min(table.len() - 2);
    let (below, above) = (f64::from(table[low]), f64::from(table[low + 1]));
    below + (above - below) * (t - low as f64)
}

/// The time of noise level `sigma`: between the table's entries, ln σ is interpolated.
fn time_of(sigma: f64, log_table: &[f32]) -> f64 {
    let log_sigma = sigma.max(1e-10).ln();
    let above = log_table.partition_point(|&level| f64::from(level) <= log_sigma);
    let low_idx = above.saturating_sub(1).min(log_table.len() - 2);
    let (low, high) = (
        f64::from(log_table[low_idx]),
        f64::from(log_table[low_idx + 1]),
    );
    let weight = ((low - log_sigma) / (low - high)).clamp(0.0, 1.0);
    (1.0 - weight) * low_idx as f64 + weight * (low_idx + 1) as f64
}

/// Every value twice but the first, and, with `ends` 2, but the last.
fn twice_inside(values: &[f32], ends: usize) -> Vec<f32> {
    let single = |idx: usize| idx == 0 || (ends == 2 && idx + 1 == values.len());
    let copies = |(idx, &value)| std::iter::repeat_n(value, if single(idx) { 1 } else { 2 });
    values.iter().enumerate().flat_map(copies).collect()
}
