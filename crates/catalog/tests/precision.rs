//! What bf16 and int8 change in the embedded model's pictures, beside f32 with the same seeds.

use std::ops::ControlFlow;

use safelight_catalog::Entry;
use safelight_diffusion::load::{LoadOptions, Model};
use safelight_diffusion::pipeline::{Request, RgbImage};
use safelight_diffusion::precision::Precision;

const PROMPTS: [&str; 3] = [
    "a house with a red roof on green hills under a sunny sky",
    "a boat on the sea at night",
    "snowy mountains under a cloudy sky",
];

fn draw(precision: Precision) -> Vec<RgbImage> {
    let entry = Entry::demo();
    let options = LoadOptions {
        ways: precision.into(),
        ..LoadOptions::default()
    };
    let model: Model = entry.load(&options).unwrap();
    let usual = Request::default();
    let asked = entry.defaults;
    let drawn = PROMPTS.iter().zip(1..).map(|(prompt, seed)| {
        let request = Request {
            prompt: (*prompt).into(),
            size: entry
                .native_size
                .map(|(width, height)| (width as usize, height as usize)),
            steps: asked.steps.unwrap_or(usual.steps),
            cfg_scale: asked.cfg_scale.unwrap_or(usual.cfg_scale),
            sampler: asked.sampler.unwrap_or(usual.sampler),
            schedule: asked.schedule.unwrap_or(usual.schedule),
            seed,
            ..Request::default()
        };
        let pictures = model.generate(&request, |_| ControlFlow::Continue(()));
        pictures.unwrap().remove(0).image
    });
    drawn.collect()
}

/// Peak signal to noise in decibels, of 8-bit channels.
fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    let channels = a.bytes().iter().zip(b.bytes());
    let squares = channels.map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2));
    let mean = squares.sum::<f64>() / a.bytes().len() as f64;
    10.0 * (255.0f64.powi(2) / mean).log10()
}

#[test]
fn pictures_stay_close_to_those_of_f32() {
    let exact = draw(Precision::F32);
    for (precision, least) in [(Precision::Bf16, 35.0), (Precision::Int8, 30.0)] {
        let pictures = draw(precision);
        let values = exact.iter().zip(&pictures).map(|(a, b)| psnr(a, b));
        let values: Vec<f64> = values.collect();
        eprintln!("{precision}: {values:.1?} dB");
        // Not the very same, or the precision never reached the layers.
        let fits = |value: &f64| (least..f64::INFINITY).contains(value);
        assert!(
            values.iter().all(fits),
            "{precision}: {values:.1?} dB, at least {least}"
        );
    }
}
