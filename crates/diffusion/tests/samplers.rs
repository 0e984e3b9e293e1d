//! Noise, schedules and samplers against torch, k-diffusion and diffusers (`tools/golden/samplers.py`), and against the
//! sums in diffusers' own tests.

mod common;

use common::case::{Case, relative_rms};
use safelight_diffusion::noise::TorchRng;
use safelight_diffusion::sampler::diffusers::{Scheduler, SchedulerConfig};
use safelight_diffusion::sampler::{Host, Plan, Sampler};
use safelight_diffusion::schedule::{BetaCurve, Betas, Prediction, Schedule};

/// The network of `tools/golden/samplers.py`.
fn toy(x: &[f32], t: f32) -> Vec<f32> {
    x.iter()
        .map(|&x| 0.7 * (1.3 * x + 0.4 - t / 1500.0).tanh() + 0.2 * x)
        .collect()
}

fn randn(seed: u64, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    TorchRng::seeded(seed).randn(&mut values);
    values
}

struct Toy {
    rng: TorchRng,
}

impl Host for Toy {
    type Error = std::convert::Infallible;

    fn predict(&mut self, x: &[f32], t: f32) -> Result<Vec<f32>, Self::Error> {
        Ok(toy(x, t))
    }

    fn noise(&mut self, out: &mut [f32]) {
        self.rng.randn(out);
    }
}

/// Runs `plan` on the case's start: from nothing, or from the picture `2 · start`.
fn run(plan: &Plan, partial: bool) -> Vec<f32> {
    let start = randn(3, 16);
    let x = if partial {
        let picture: Vec<f32> = start.iter().map(|x| 2.0 * x).collect();
        plan.start_mix().apply(&picture, &start)
    } else {
        start.iter().map(|x| x * plan.noise_scale()).collect()
    };
    plan.run(
        x,
        &mut Toy {
            rng: TorchRng::seeded(7),
        },
    )
    .expect("the toy network never fails")
}

/// `<sampler>/<setting>/<steps>`, the setting without ` partial`, and whether it had that.
fn parts(name: &str) -> (Sampler, &str, bool, usize) {
    let mut parts = name.split('/');
    let sampler =
        Sampler::from_name(parts.next().unwrap()).unwrap_or_else(|| panic!("sampler of {name}"));
    let setting = parts.next().unwrap();
    let steps = parts.next().unwrap().parse().unwrap();
    (
        sampler,
        setting.trim_end_matches(" partial"),
        setting.ends_with(" partial"),
        steps,
    )
}

#[test]
fn noise_has_torchs_bits() {
    let case = Case::read("noise/torch_cpu");
    let (mut count, mut differ, mut worst) = (0, 0, 0.0f32);
    for name in case.names() {
        let seed = name.split('/').next().unwrap().parse().unwrap();
        let mut rng = TorchRng::seeded(seed);
        for expected in case.f32s(name).chunks(case.f32s(name).len() / 2) {
            let mut found = vec![0.0; expected.len()];
            rng.randn(&mut found);
            count += found.len();
            for (found, expected) in found.iter().zip(expected) {
                differ += usize::from(found.to_bits() != expected.to_bits());
                worst = worst.max((found - expected).abs());
            }
        }
    }
    println!("{differ} of {count} values differ, at most by {worst:e}");
    // 16 values and more are ours to the bit; fewer go through the standard library's f64 logarithm, sine and cosine.
    assert!(
        differ * 1000 <= count && worst <= 5e-7,
        "{differ} of {count} values differ, at most by {worst:e}"
    );
}

#[test]
fn a1111_samplers_agree_with_k_diffusion() {
    let case = Case::read("sampler/a1111");
    let alphas = Betas::STABLE_DIFFUSION.alphas_cumprod();
    let mut worst = (0.0, String::new());
    for name in case.names() {
        let (sampler, setting, partial, steps) = parts(name);
        let (schedule, prediction) = setting.rsplit_once(' ').unwrap_or((setting, "epsilon"));
        let schedule = Schedule::from_name(schedule)
            .or(Schedule::from_name(setting))
            .or((schedule == "own").then_some(Schedule::Automatic))
            .unwrap_or_else(|| panic!("schedule of {name}"));
        let prediction = Prediction::from_name(prediction).unwrap_or_default();
        let plan = Plan::a1111(
            sampler,
            schedule,
            steps,
            partial.then_some(0.6),
            prediction,
            &alphas,
        )
        .expect("a valid plan");
        let error = relative_rms(&case.f32s(name), &run(&plan, partial), name);
        if error > worst.0 {
            worst = (error, name.to_owned());
        }
        assert!(
            error <= case.tolerance(),
            "{name}: off by {error:.1e} (relative RMS)"
        );
    }
    println!("worst: {:.1e}, {}", worst.0, worst.1);
}

fn diffusers_config(case: &Case, sampler: Sampler, setting: &str) -> SchedulerConfig {
    let configs = case.json("configs");
    let json = &configs[format!("{}/{setting}", sampler.name())];
    assert!(json.is_object(), "no config {}/{setting}", sampler.name());
    let mut config = SchedulerConfig::from_json(json, sampler).expect("a valid config");
    if setting == "eta" {
        config.eta = 0.6;
    }
    config
}

#[test]
fn diffusers_samplers_agree_with_diffusers() {
    agree_with_diffusers(&Case::read("sampler/diffusers"));
}

#[test]
fn whole_scheduler_files_are_read_as_diffusers_does() {
    agree_with_diffusers(&Case::read("sampler/diffusers_files"));
}

fn agree_with_diffusers(case: &Case) {
    let mut worst = (0.0, String::new());
    let mut failures = Vec::new();
    for name in case.names() {
        let expected = case.f32s(name);
        let whole = name
            .trim_start_matches("timesteps/")
            .trim_start_matches("sigmas/");
        let (sampler, setting, partial, steps) = parts(whole);
        let config = diffusers_config(case, sampler, setting);
        let found = if name.starts_with("timesteps/") {
            Scheduler::new(sampler, &config, steps)
                .expect("a valid scheduler")
                .timesteps()
                .to_vec()
        } else if name.starts_with("sigmas/") {
            Scheduler::new(sampler, &config, steps)
                .expect("a valid scheduler")
                .sigmas()
                .to_vec()
        } else {
            run(
                &Plan::diffusers(sampler, &config, steps, partial.then_some(0.6))
                    .expect("a valid plan"),
                partial,
            )
        };
        // All zeros is a fine answer too: one step at time 0.
        let error = if expected == found {
            0.0
        } else {
            relative_rms(&expected, &found, name)
        };
        if error > worst.0 {
            worst = (error, name.to_owned());
        }
        if error.is_nan() || error > case.tolerance() {
            failures.push(format!("{name}: off by {error:.1e} (relative RMS)"));
        }
    }
    println!("worst: {:.1e}, {}", worst.0, worst.1);
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// The loop of diffusers' `tests/schedulers`: sum and mean of the absolute values after ten steps.
fn check_loop(
    sampler: Sampler,
    config: &SchedulerConfig,
    steps: usize,
    sum: Option<f64>,
    mean: Option<f64>,
) {
    let mut scheduler = Scheduler::new(sampler, config, steps).expect("a valid scheduler");
    // arange(768)/768 as (3, 8, 8, 4), transposed to (4, 3, 8, 8).
    let scale = scheduler.init_noise_sigma();
    let mut x: Vec<f32> = (0..768)
        .map(|i| ((i % 192) * 4 + i / 192) as f32 / 768.0 * scale)
        .collect();
    let mut rng = TorchRng::seeded(0);
    for t in scheduler.timesteps().to_vec() {
        x = scheduler.scale_model_input(&x); // kept scaled: that is how their loop is written
        let output: Vec<f32> = x.iter().map(|x| x * t / (t + 1.0)).collect();
        scheduler.step(&output, &mut x, |out| rng.randn(out));
    }
    let found: f64 = x.iter().map(|x| f64::from(x.abs())).sum();
    let ok = |found: f64, expected: Option<f64>, tolerance| {
        expected.is_none_or(|e| (found - e).abs() < tolerance)
    };
    assert!(
        ok(found, sum, 1e-2),
        "{}: sum {found} instead of {sum:?}",
        sampler.name()
    );
    assert!(
        ok(found / 768.0, mean, 1e-3),
        "{}: mean {} instead of {mean:?}",
        sampler.name(),
        found / 768.0
    );
}

#[test]
fn sums_of_diffusers_own_tests() {
    use safelight_diffusion::sampler::diffusers::{FinalSigma, SigmaCurve::Karras};
    let config = |sampler, step_count| {
        let mut config = SchedulerConfig::class_defaults(sampler);
        config.betas = Betas {
            curve: BetaCurve::Linear,
            start: 1e-4,
            end: 0.02,
            step_count,
        };
        config
    };
    let v = |config: &SchedulerConfig| SchedulerConfig {
        prediction: Prediction::V,
        ..config.clone()
    };
    let karras = |config: &SchedulerConfig| SchedulerConfig {
        sigma_curve: Karras,
        ..config.clone()
    };
    let euler = config(Sampler::Euler, 1100);
    check_loop(Sampler::Euler, &euler, 10, Some(10.0807), Some(0.0131));
    check_loop(Sampler::Euler, &v(&euler), 10, Some(0.0002), None);
    check_loop(Sampler::Euler, &karras(&euler), 10, Some(124.5230), None);
    let ancestral = config(Sampler::EulerAncestral, 1100);
    check_loop(
        Sampler::EulerAncestral,
        &ancestral,
        10,
        Some(152.3192),
        Some(0.1983),
    );
    check_loop(
        Sampler::EulerAncestral,
        &v(&ancestral),
        10,
        Some(108.4439),
        None,
    );
    let dpm = SchedulerConfig {
        lower_order_final: false,
        final_sigma: FinalSigma::SigmaMin,
        ..config(Sampler::DpmPp2m, 1000)
    };
    check_loop(Sampler::DpmPp2m, &dpm, 10, None, Some(0.3301));
    check_loop(Sampler::DpmPp2m, &v(&dpm), 10, None, Some(0.2251));
    check_loop(Sampler::DpmPp2m, &karras(&v(&dpm)), 10, None, Some(0.2096));
    let ddim = config(Sampler::Ddim, 1000);
    check_loop(Sampler::Ddim, &ddim, 10, Some(172.0067), None);
    check_loop(Sampler::Ddim, &v(&ddim), 10, Some(52.5302), None);
    let lcm = SchedulerConfig {
        clip_sample: None,
        ..SchedulerConfig::class_defaults(Sampler::Lcm)
    };
    check_loop(Sampler::Lcm, &lcm, 1, Some(18.7097), None);
    check_loop(Sampler::Lcm, &lcm, 10, Some(197.7616), None);
}
