//! Choices that trade fidelity for time, none of them made unless asked for; docs/speed.md says what each costs.

use std::ops::Range;

use super::request::{GenerateError, refused};
use crate::load::ModelInfo;
use crate::sampler::{Flavour, Plan, STEPS_MAX};
use crate::unet::UNetConfig;

/// Ways to a similar picture in less time. The default takes none of them.
///
/// ```
/// use safelight_diffusion::pipeline::{Request, Shortcuts};
///
/// let shortcuts = Shortcuts { guidance_start: 0.2, ..Shortcuts::default() };
/// let request = Request { shortcuts, ..Request::default() };
/// assert_eq!(request.shortcuts.guidance_end, 1.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shortcuts {
    /// The part of the network's calls, 0 to 1, after which guidance begins; before it only the prompt is evaluated.
    ///
    /// In A1111's flavour this is its "Skip Early CFG": call `i` of `n`, from 0, is not guided while `i/n <= start`, unless
    /// `start` is 0. In diffusers' it is `start` of its guiders: not guided while `i < ⌊start·n⌋`.
    ///
    /// Source: Kynkäänniemi et al. 2024, arXiv:2404.07724, equation 6, with the interval in calls.
    pub guidance_start: f64,
    /// The part of the calls, 0 to 1, after which guidance ends: call `i` is not guided from `⌊end·n⌋` on, as with `stop` of
    /// diffusers' guiders.
    pub guidance_end: f64,
    /// Step caching: the UNet runs whole at every so-manieth step only, and at the others as far as `cache_branch` says,
    /// with what lies deeper from the last whole step. 1 runs it whole at every step.
    ///
    /// Also whole are the first step after guidance begins or ends, and every step whose prompts are worded otherwise than the
    /// one before. All of a step's calls are alike (Heun makes two).
    ///
    /// Source: Ma, Fang and Wang 2023, arXiv:2312.00858, §3.3 (uniform 1:N inference); `cache_interval` of the `DeepCache` package.
    pub cache_interval: usize,
    /// How deep the UNet runs between whole steps, from 0: see [`Deep`](crate::unet::Deep).
    pub cache_branch: usize,
    /// The part of the tokens that self-attention merges where the UNet's maps are as large as the latent, 0 to 0.75: A1111's
    /// "Token merging ratio".
    ///
    /// Nothing of it is drawn by chance: the top left token of each 2×2 block is merged into, as A1111 has it
    /// (`use_rand=False` of the `tomesd` package). Cross-attention and feed-forward layers see every token.
    ///
    /// Source: Bolya and Hoffman 2023, arXiv:2303.17604, §4.
    pub token_merging: f64,
}

impl Default for Shortcuts {
    fn default() -> Self {
        Shortcuts {
            guidance_start: 0.0,
            guidance_end: 1.0,
            cache_interval: 1,
            cache_branch: 0,
            token_merging: 0.0,
        }
    }
}

impl Shortcuts {
    /// Checks what can be checked without a model.
    pub(super) fn check(&self) -> Result<(), GenerateError> {
        let (start, end) = (self.guidance_start, self.guidance_end);
        for (field, value) in [("guidance start", start), ("guidance end", end)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(refused(field, value, "0 to 1"));
            }
        }
        if start > end {
            let allowed = format!("at most {end}, where guidance ends");
            return Err(refused("guidance start", start, allowed));
        }
        if !(0.0..=0.75).contains(&self.token_merging) {
            let allowed = "0 to 0.75: three of four tokens can go";
            return Err(refused("token merging ratio", self.token_merging, allowed));
        }
        if !(1..=STEPS_MAX).contains(&self.cache_interval) {
            let allowed = format!("1 to {STEPS_MAX}");
            return Err(refused("cache interval", self.cache_interval, allowed));
        }
        Ok(())
    }

    /// Checks what depends on the UNet.
    pub(super) fn check_for(&self, info: &ModelInfo) -> Result<(), GenerateError> {
        let count = info.unet.as_ref().map_or(1, UNetConfig::branch_count);
        if self.cache_branch < count {
            return Ok(());
        }
        let allowed = format!("0 to {}, this UNet's skip connections", count - 1);
        Err(refused("cache branch", self.cache_branch, allowed))
    }

    /// The calls of the network, from 0, that are guided.
    pub(super) fn guided_calls(&self, plan: &Plan, flavour: Flavour) -> Range<usize> {
        let count = plan.call_count() as f64;
        let first = match flavour {
            _ if self.guidance_start == 0.0 => 0,
            Flavour::Diffusers => (self.guidance_start * count) as usize,
            // `modules/sd_samplers_cfg_denoiser.py`: the comparison is of quotients.
            Flavour::A1111 => (0..=plan.call_count())
                .find(|&call| call as f64 / count > self.guidance_start)
                .unwrap_or(usize::MAX),
        };
        let end = match self.guidance_end {
            1.0 => usize::MAX,
            end => (end * count) as usize,
        };
        first..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::Sampler;
    use crate::sampler::diffusers::SchedulerConfig;
    use crate::schedule::{Betas, Prediction, Schedule};

    fn a1111(sampler: Sampler, steps: usize, strength: Option<f64>) -> Plan {
        let alphas = Betas::STABLE_DIFFUSION.alphas_cumprod();
        let (schedule, prediction) = (Schedule::Automatic, Prediction::Epsilon);
        Plan::a1111(sampler, schedule, steps, strength, prediction, &alphas).unwrap()
    }

    fn diffusers(sampler: Sampler, steps: usize, strength: Option<f64>) -> Plan {
        let config = SchedulerConfig::stable_diffusion(sampler);
        Plan::diffusers(sampler, &config, steps, strength).unwrap()
    }

    fn guided(
        plan: &Plan,
        flavour: Flavour,
        (guidance_start, guidance_end): (f64, f64),
    ) -> Vec<usize> {
        let shortcuts = Shortcuts {
            guidance_start,
            guidance_end,
            ..Shortcuts::default()
        };
        let calls = shortcuts.guided_calls(plan, flavour);
        (0..plan.call_count())
            .filter(|call| calls.contains(call))
            .collect()
    }

    /// Worked out by hand from the two programs' conditions.
    #[test]
    fn the_interval_is_that_of_the_flavours_program() {
        let all: Vec<usize> = (0..10).collect();
        for (flavour, plan) in [
            (Flavour::A1111, a1111(Sampler::Euler, 10, None)),
            (Flavour::Diffusers, diffusers(Sampler::Euler, 10, None)),
        ] {
            assert_eq!(guided(&plan, flavour, (0.0, 1.0)), all);
            assert_eq!(guided(&plan, flavour, (0.0, 0.59)), all[..5]);
            assert_eq!(guided(&plan, flavour, (0.0, 0.0)), all[..0]);
        }
        // A1111 compares with `<=`: a fifth of ten calls is three of them.
        let plan = a1111(Sampler::Euler, 10, None);
        assert_eq!(guided(&plan, Flavour::A1111, (0.2, 0.8)), all[3..8]);
        assert_eq!(guided(&plan, Flavour::A1111, (0.01, 1.0)), all[1..]);
        assert_eq!(guided(&plan, Flavour::A1111, (1.0, 1.0)), all[..0]);
        let plan = diffusers(Sampler::Euler, 10, None);
        assert_eq!(guided(&plan, Flavour::Diffusers, (0.2, 0.8)), all[2..8]);
        assert_eq!(guided(&plan, Flavour::Diffusers, (0.09, 1.0)), all);
    }

    /// Both programs count calls: two a step with Heun, and only those of a partial denoising.
    #[test]
    fn calls_are_counted_as_the_programs_count_them() {
        for (plan, calls) in [
            (a1111(Sampler::Heun, 10, None), 20),
            (a1111(Sampler::Euler, 20, Some(0.75)), 16),
            (a1111(Sampler::Ddim, 20, None), 20),
            (a1111(Sampler::Ddim, 20, Some(0.5)), 11),
            (diffusers(Sampler::Heun, 10, None), 19),
            (diffusers(Sampler::Euler, 20, Some(0.75)), 15),
        ] {
            assert_eq!(plan.call_count(), calls, "{plan:?}");
        }
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let complaint = |guidance_start, guidance_end| {
            let shortcuts = Shortcuts {
                guidance_start,
                guidance_end,
                ..Shortcuts::default()
            };
            shortcuts.check().unwrap_err().to_string()
        };
        assert_eq!(
            complaint(-0.1, 1.0),
            "guidance start is -0.1: it must be 0 to 1"
        );
        assert_eq!(
            complaint(0.0, f64::NAN),
            "guidance end is NaN: it must be 0 to 1"
        );
        let found = complaint(0.6, 0.5);
        assert_eq!(
            found,
            "guidance start is 0.6: it must be at most 0.5, where guidance ends"
        );
    }
}
