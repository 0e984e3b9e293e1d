//! What bf16 and int8 change in the embedded model's pictures, beside f32 with the same seeds.

use std::ops::ControlFlow;

use safelight_catalog::Entry;
use safelight_diffusion::likeness::psnr;
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
    let drawn = PROMPTS.iter().zip(1..).map(|(prompt, seed)| {
        let request = Request {
            prompt: (*prompt).into(),
            seed,
            ..entry.usual_request()
        };
        let pictures = model.generate(&request, |_| ControlFlow::Continue(()));
        pictures.unwrap().remove(0).image
    });
    drawn.collect()
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
