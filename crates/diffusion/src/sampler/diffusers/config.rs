//! The settings of diffusers' schedulers.

use serde_json::Value;

use super::super::{PlanError, Sampler};
use crate::schedule::{BetaCurve, Betas, Prediction};

/// How the timesteps are spread over the training steps (Lin et al. 2023, arXiv:2305.08891, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Both ends included.
    Linspace,
    /// Whole strides from the lowest up, plus the offset; the highest noise is left out.
    Leading,
    /// Whole strides from the highest down.
    Trailing,
}

/// Where the noise levels between the ends lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigmaCurve {
    /// As the timesteps say.
    Timesteps,
    /// Evenly in σ^(1/7): `use_karras_sigmas`.
    Karras,
    /// Evenly in ln σ: `use_exponential_sigmas`.
    Exponential,
}

/// The noise level after the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinalSigma {
    /// No noise.
    Zero,
    /// The lowest level of training.
    SigmaMin,
}

/// How the second-order step of DPM-Solver++ uses the previous output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SolverType {
    /// At the middle of the step.
    Midpoint,
    /// As Heun's method does.
    Heun,
}

/// What a `scheduler_config.json` says, as far as it changes the result.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// `beta_schedule`, `beta_start`, `beta_end`, `num_train_timesteps`.
    pub betas: Betas,
    /// `prediction_type`.
    pub prediction: Prediction,
    /// `timestep_spacing`.
    pub spacing: Spacing,
    /// `steps_offset`: added to the timesteps of [`Spacing::Leading`].
    pub steps_offset: usize,
    /// `use_karras_sigmas`, `use_exponential_sigmas`: Euler, Heun and DPM++ 2M.
    pub sigma_curve: SigmaCurve,
    /// `sigma_min`: the lowest noise level of [`SigmaCurve::Karras`] and [`SigmaCurve::Exponential`], else the steps' own.
    pub sigma_min: Option<f64>,
    /// `sigma_max`: their highest.
    pub sigma_max: Option<f64>,
    /// `timestep_type` is `continuous`: networks that predict v are told ¼ ln σ instead of a timestep. Euler only.
    pub continuous_timesteps: bool,
    /// `lambda_min_clipped` of DPM++ 2M: timesteps whose ln(√ᾱ / √(1−ᾱ)) is below are left out.
    pub lambda_min_clipped: f64,
    /// `interpolation_type` is `log_linear`: Euler only.
    pub log_linear: bool,
    /// `final_sigmas_type`: Euler and DPM++ 2M.
    pub final_sigma: FinalSigma,
    /// `set_alpha_to_one`: whether DDIM's last step goes to no noise, or to the lowest level of training.
    pub set_alpha_to_one: bool,
    /// `clip_sample` with `clip_sample_range`: the guess at the clean latent is kept in ± this (DDIM, Heun, LCM).
    pub clip_sample: Option<f32>,
    /// `rescale_betas_zero_snr`: levels stretched so that the highest is pure noise.
    pub zero_terminal_snr: bool,
    /// `solver_order` of DPM++ 2M: 1 or 2.
    pub solver_order: usize,
    /// `solver_type` of DPM++ 2M.
    pub solver_type: SolverType,
    /// `lower_order_final` of DPM++ 2M: with fewer than 15 steps the last is of first order.
    pub lower_order_final: bool,
    /// `euler_at_final` of DPM++ 2M: the last step is of first order.
    pub euler_at_final: bool,
    /// DDIM's η in `0..=1`: how much noise it adds. An argument of the pipeline there, not of the scheduler.
    pub eta: f64,
    /// LCM's `original_inference_steps`.
    pub original_inference_steps: usize,
    /// LCM's `timestep_scaling`.
    pub timestep_scaling: f32,
}

impl SchedulerConfig {
    /// What `sampler`'s class makes of the `scheduler_config.json` that Stable Diffusion 1.x comes with: an offset of 1, no
    /// clipping, and the class's own spacing.
    pub fn stable_diffusion(sampler: Sampler) -> Self {
        SchedulerConfig {
            betas: Betas::STABLE_DIFFUSION,
            steps_offset: 1,
            set_alpha_to_one: false,
            clip_sample: None,
            ..Self::class_defaults(sampler)
        }
    }

    /// What a scheduler's class sets when its configuration says nothing.
    pub fn class_defaults(sampler: Sampler) -> Self {
        let latent_ends = matches!(sampler, Sampler::Heun | Sampler::Lcm);
        SchedulerConfig {
            betas: Betas {
                curve: if sampler == Sampler::Lcm {
                    BetaCurve::ScaledLinear
                } else {
                    BetaCurve::Linear
                },
                start: if latent_ends { 0.00085 } else { 0.0001 },
                end: if latent_ends { 0.012 } else { 0.02 },
                step_count: 1000,
            },
            prediction: Prediction::Epsilon,
            spacing: match sampler {
                Sampler::Ddim | Sampler::Lcm => Spacing::Leading,
                _ => Spacing::Linspace,
            },
            steps_offset: 0,
            sigma_curve: SigmaCurve::Timesteps,
            sigma_min: None,
            sigma_max: None,
            continuous_timesteps: false,
            lambda_min_clipped: f64::NEG_INFINITY,
            log_linear: false,
            final_sigma: FinalSigma::Zero,
            set_alpha_to_one: true,
            clip_sample: (sampler == Sampler::Ddim).then_some(1.0),
            zero_terminal_snr: false,
            solver_order: 2,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            eta: 0.0,
            original_inference_steps: 50,
            timestep_scaling: 10.0,
        }
    }

    /// What `sampler`'s class makes of a `scheduler_config.json` (any scheduler's: `from_config` there). Fields that are
    /// absent or null have the class's defaults; unknown ones, and those that only other classes have, are ignored.
    ///
    /// # Errors
    /// [`PlanError::Config`] for a value we do not know or cannot do.
    pub fn from_json(json: &Value, sampler: Sampler) -> Result<Self, PlanError> {
        let mut config = Self::class_defaults(sampler);
        let fields = Fields { json };
        if let Some(curve) = fields.text("beta_schedule")? {
            config.betas.curve = match curve {
                "linear" => BetaCurve::Linear,
                "scaled_linear" => BetaCurve::ScaledLinear,
                "squaredcos_cap_v2" => BetaCurve::SquaredCosine,
                other => {
                    return Err(refused(
                        "beta_schedule",
                        other,
                        "linear, scaled_linear and squaredcos_cap_v2",
                    ));
                }
            };
        }
        config.betas.start = fields.number("beta_start")?.unwrap_or(config.betas.start);
        config.betas.end = fields.number("beta_end")?.unwrap_or(config.betas.end);
        config.betas.step_count = fields
            .count("num_train_timesteps")?
            .unwrap_or(config.betas.step_count);
        if let Some(name) = fields.text("prediction_type")? {
            let known = "epsilon, v_prediction and sample";
            config.prediction = Prediction::from_name(name)
                .ok_or_else(|| refused("prediction_type", name, known))?;
        }
        if let Some(spacing) = fields.text("timestep_spacing")? {
            config.spacing = match spacing {
                "linspace" => Spacing::Linspace,
                "leading" => Spacing::Leading,
                "trailing" => Spacing::Trailing,
                other => {
                    return Err(refused(
                        "timestep_spacing",
                        other,
                        "linspace, leading and trailing",
                    ));
                }
            };
        }
        config.steps_offset = fields.count("steps_offset")?.unwrap_or(config.steps_offset);
        if fields.flag("use_karras_sigmas")? == Some(true) {
            config.sigma_curve = SigmaCurve::Karras;
        } else if fields.flag("use_exponential_sigmas")? == Some(true) {
            config.sigma_curve = SigmaCurve::Exponential;
        }
        config.read_sigmas(&fields, sampler)?;
        if sampler == Sampler::DpmPp2m {
            config.read_solver(&fields)?;
        }
        config.read_clipping(&fields)?;
        refuse_flags(&fields, sampler)?;
        config.original_inference_steps = fields
            .count("original_inference_steps")?
            .unwrap_or(config.original_inference_steps);
        config.timestep_scaling = fields.number("timestep_scaling")?.unwrap_or(10.0) as f32;
        config.check(sampler)?;
        Ok(config)
    }

    fn read_sigmas(&mut self, fields: &Fields<'_>, sampler: Sampler) -> Result<(), PlanError> {
        self.sigma_min = fields.number("sigma_min")?;
        self.sigma_max = fields.number("sigma_max")?;
        if sampler == Sampler::Euler {
            self.continuous_timesteps = fields.text("timestep_type")? == Some("continuous");
            self.log_linear = match fields.text("interpolation_type")? {
                None | Some("linear") => false,
                Some("log_linear") => true,
                Some(other) => {
                    return Err(refused(
                        "interpolation_type",
                        other,
                        "linear and log_linear",
                    ));
                }
            };
        }
        if matches!(sampler, Sampler::Euler | Sampler::DpmPp2m) {
            self.final_sigma = match fields.text("final_sigmas_type")? {
                None | Some("zero") => FinalSigma::Zero,
                Some("sigma_min") => FinalSigma::SigmaMin,
                Some(other) => {
                    return Err(refused("final_sigmas_type", other, "zero and sigma_min"));
                }
            };
        }
        Ok(())
    }

    /// What only DPM-Solver has.
    fn read_solver(&mut self, fields: &Fields<'_>) -> Result<(), PlanError> {
        self.solver_order = fields.count("solver_order")?.unwrap_or(self.solver_order);
        match fields.text("solver_type")? {
            Some("heun") => self.solver_type = SolverType::Heun,
            None | Some("midpoint" | "logrho" | "bh1" | "bh2") => {}
            Some(other) => return Err(refused("solver_type", other, "midpoint and heun")),
        }
        match fields.text("algorithm_type")? {
            None | Some("dpmsolver++" | "deis") => {}
            Some(other) => return Err(refused("algorithm_type", other, "dpmsolver++")),
        }
        if let Some(other) = fields.text("variance_type")? {
            return Err(refused("variance_type", other, "null"));
        }
        self.lower_order_final = fields
            .flag("lower_order_final")?
            .unwrap_or(self.lower_order_final);
        self.euler_at_final = fields
            .flag("euler_at_final")?
            .unwrap_or(self.euler_at_final);
        let floor = fields.number_or_infinity("lambda_min_clipped")?;
        self.lambda_min_clipped = floor.unwrap_or(self.lambda_min_clipped);
        Ok(())
    }

    fn read_clipping(&mut self, fields: &Fields<'_>) -> Result<(), PlanError> {
        self.set_alpha_to_one = fields
            .flag("set_alpha_to_one")?
            .unwrap_or(self.set_alpha_to_one);
        let range = fields.number("clip_sample_range")?.unwrap_or(1.0) as f32;
        let clips = fields
            .flag("clip_sample")?
            .unwrap_or(self.clip_sample.is_some());
        self.clip_sample = clips.then_some(range);
        self.zero_terminal_snr = fields.flag("rescale_betas_zero_snr")?.unwrap_or(false);
        Ok(())
    }

    /// Refuses what would not give diffusers' result.
    pub(super) fn check(&self, sampler: Sampler) -> Result<(), PlanError> {
        let open = |beta: f64| beta > 0.0 && beta < 1.0;
        if !open(self.betas.start) || !open(self.betas.end) {
            let value = format!("{} to {}", self.betas.start, self.betas.end);
            return Err(PlanError::Config {
                field: "beta_start, beta_end",
                value,
                supported: "numbers between 0 and 1",
            });
        }
        if !(2..=100_000).contains(&self.betas.step_count) {
            let value = self.betas.step_count.to_string();
            return Err(PlanError::Config {
                field: "num_train_timesteps",
                value,
                supported: "2 to 100000",
            });
        }
        let levels = [
            self.sigma_min.unwrap_or(f64::MIN_POSITIVE),
            self.sigma_max.unwrap_or(f64::MAX),
        ];
        if self.bends(sampler)
            && !(0.0 < levels[0] && levels[0] < levels[1] && levels[1].is_finite())
        {
            return Err(PlanError::Config {
                field: "sigma_min, sigma_max",
                value: format!("{:?} to {:?}", self.sigma_min, self.sigma_max),
                supported: "numbers above 0, sigma_min below sigma_max",
            });
        }
        if !(1..=2).contains(&self.solver_order) && sampler == Sampler::DpmPp2m {
            let value = self.solver_order.to_string();
            return Err(PlanError::Config {
                field: "solver_order",
                value,
                supported: "1 and 2",
            });
        }
        if sampler == Sampler::EulerAncestral && self.prediction == Prediction::Sample {
            return Err(refused(
                "prediction_type",
                "sample",
                "epsilon and v_prediction for Euler a",
            ));
        }
        if !(1..=self.betas.step_count).contains(&self.original_inference_steps)
            && sampler == Sampler::Lcm
        {
            let value = self.original_inference_steps.to_string();
            return Err(PlanError::Config {
                field: "original_inference_steps",
                value,
                supported: "1 to num_train_timesteps",
            });
        }
        Ok(())
    }

    /// Whether this sampler's class knows other noise levels than the timesteps', and is asked for them.
    pub(super) fn bends(&self, sampler: Sampler) -> bool {
        matches!(sampler, Sampler::Euler | Sampler::Heun | Sampler::DpmPp2m)
            && self.sigma_curve != SigmaCurve::Timesteps
    }

    /// ᾱ of every training step in torch's single precision: the product is kept in double, its terms are not.
    pub(super) fn alphas_cumprod(&self, sampler: Sampler) -> Vec<f32> {
        let mut betas = self.betas.betas_f32();
        let rescale = self.zero_terminal_snr && sampler != Sampler::Heun; // Heun's class has no such setting
        if rescale {
            betas = zero_terminal_snr(&betas);
        }
        let mut alphas = cumulative_product(betas.into_iter().map(|beta| 1.0 - beta));
        if rescale && !matches!(sampler, Sampler::Ddim | Sampler::Lcm) {
            *alphas.last_mut().expect("at least two training steps") = 2.0f32.powi(-24);
        }
        alphas
    }
}

fn cumulative_product(factors: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut product = 1.0f64;
    let step = |factor| {
        product *= f64::from(factor);
        product as f32
    };
    factors.map(step).collect()
}

/// Shifts and stretches `√ᾱ` so that the last is 0 and the first stays.
///
/// Source: Lin et al. 2023, arXiv:2305.08891, Algorithm 1.
fn zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = cumulative_product(betas.iter().map(|beta| 1.0 - beta))
        .into_iter()
        .map(f32::sqrt)
        .collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    let alphas: Vec<f32> = roots
        .iter()
        .map(|root| ((root - last) * scale).powi(2))
        .collect();
    let ratio = |idx: usize| {
        if idx == 0 {
            alphas[0]
        } else {
            alphas[idx] / alphas[idx - 1]
        }
    };
    (0..alphas.len()).map(|idx| 1.0 - ratio(idx)).collect()
}

fn refused(field: &'static str, value: &str, supported: &'static str) -> PlanError {
    PlanError::Config {
        field,
        value: format!("`{value}`"),
        supported,
    }
}

/// Refuses the switches that we do not have and the sampler's class does.
fn refuse_flags(fields: &Fields<'_>, sampler: Sampler) -> Result<(), PlanError> {
    let known: &[&'static str] = match sampler {
        Sampler::Euler | Sampler::Heun => &["use_beta_sigmas"],
        Sampler::EulerAncestral => &[],
        Sampler::Ddim | Sampler::Lcm => &["thresholding"],
        Sampler::DpmPp2m => &[
            "thresholding",
            "use_beta_sigmas",
            "use_lu_lambdas",
            "use_flow_sigmas",
        ],
    };
    for &field in known {
        if fields.flag(field)? == Some(true) {
            return Err(PlanError::Config {
                field,
                value: "true".into(),
                supported: "false",
            });
        }
    }
    Ok(())
}

/// Typed access to the JSON object.
struct Fields<'a> {
    json: &'a Value,
}

impl<'a> Fields<'a> {
    fn get<T>(
        &self,
        field: &'static str,
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, PlanError> {
        match self.json.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(PlanError::Config {
                    field,
                    value: value.to_string(),
                    supported: expected,
                }),
            },
        }
    }

    fn text(&self, field: &'static str) -> Result<Option<&'a str>, PlanError> {
        self.get(field, "strings", Value::as_str)
    }

    fn number(&self, field: &'static str) -> Result<Option<f64>, PlanError> {
        self.get(field, "numbers", Value::as_f64)
    }

    /// A number, or an infinity as [`crate::load`] quotes it: Python writes them into JSON, which has none.
    fn number_or_infinity(&self, field: &'static str) -> Result<Option<f64>, PlanError> {
        self.get(field, "numbers", |value| match value.as_str() {
            Some("-Infinity") => Some(f64::NEG_INFINITY),
            _ => value.as_f64(),
        })
    }

    fn count(&self, field: &'static str) -> Result<Option<usize>, PlanError> {
        self.get(field, "whole numbers from 0", |value| {
            value.as_u64().and_then(|count| usize::try_from(count).ok())
        })
    }

    fn flag(&self, field: &'static str) -> Result<Option<bool>, PlanError> {
        self.get(field, "true and false", Value::as_bool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stable_diffusions_own_file() {
        let json = json!({
            "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
            "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1,
            "trained_betas": null, "clip_sample": false
        });
        for sampler in Sampler::ALL {
            let config = SchedulerConfig::from_json(&json, sampler).unwrap();
            assert_eq!(
                config,
                SchedulerConfig::stable_diffusion(sampler),
                "{}",
                sampler.name()
            );
            let leading = matches!(sampler, Sampler::Ddim | Sampler::Lcm);
            assert_eq!(
                config.spacing == Spacing::Leading,
                leading,
                "{}",
                sampler.name()
            );
        }
    }

    #[test]
    fn what_we_cannot_do_is_refused_by_name() {
        let check = |json: Value, expected: &str| {
            let error = SchedulerConfig::from_json(&json, Sampler::DpmPp2m).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        check(
            json!({"solver_order": 3}),
            "`solver_order` is 3: supported are 1 and 2",
        );
        check(
            json!({"algorithm_type": "sde-dpmsolver++"}),
            "`algorithm_type`",
        );
        check(
            json!({"beta_schedule": 5}),
            "`beta_schedule` is 5: supported are strings",
        );
        check(json!({"beta_start": 2.0}), "beta_start");
        check(
            json!({"num_train_timesteps": 0}),
            "`num_train_timesteps` is 0",
        );
        check(
            json!({"timestep_spacing": "random"}),
            "`timestep_spacing` is `random`",
        );
        check(json!({"thresholding": true}), "`thresholding` is true");
        check(json!({"use_lu_lambdas": true}), "`use_lu_lambdas` is true");
        check(json!({"variance_type": "learned"}), "`variance_type`");
        check(json!({"final_sigmas_type": "low"}), "`final_sigmas_type`");
        check(
            json!({"use_karras_sigmas": true, "sigma_min": 3.0, "sigma_max": 2.0}),
            "`sigma_min, sigma_max` is Some(3.0) to Some(2.0)",
        );
    }

    #[test]
    fn what_only_other_classes_have_is_ignored() {
        use Sampler::*;
        let check = |json: Value, ignored_by: &[Sampler]| {
            for sampler in Sampler::ALL {
                let found = SchedulerConfig::from_json(&json, sampler);
                match ignored_by.contains(&sampler) {
                    true => assert_eq!(
                        found,
                        Ok(SchedulerConfig::class_defaults(sampler)),
                        "{json}"
                    ),
                    false => assert!(found.is_err(), "{json} {}", sampler.name()),
                }
            }
        };
        let all_but_dpm = [Euler, EulerAncestral, Heun, Ddim, Lcm];
        check(json!({"algorithm_type": "sde-dpmsolver++"}), &all_but_dpm);
        check(json!({"solver_type": "new"}), &all_but_dpm);
        check(json!({"use_lu_lambdas": true}), &all_but_dpm);
        check(json!({"use_flow_sigmas": true}), &all_but_dpm);
        check(
            json!({"use_beta_sigmas": true}),
            &[EulerAncestral, Ddim, Lcm],
        );
        check(
            json!({"thresholding": true}),
            &[Euler, EulerAncestral, Heun],
        );
    }

    #[test]
    fn zero_terminal_snr_ends_at_nothing() {
        let config = SchedulerConfig {
            zero_terminal_snr: true,
            ..SchedulerConfig::stable_diffusion(Sampler::Euler)
        };
        assert_eq!(config.alphas_cumprod(Sampler::Ddim)[999], 0.0);
        assert_eq!(config.alphas_cumprod(Sampler::Euler)[999], 2.0f32.powi(-24));
    }
}
