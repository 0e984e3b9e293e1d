//! The embedded model draws what captions it never saw say, by an automatic judge.
//!
//! The captions are `testdata/demo/captions.json`; the judge is the rule for sky and ground in `tools/demo-model/README.md`.

use std::ops::ControlFlow;

use safelight_catalog::Entry;
use safelight_diffusion::load::{LoadOptions, Model};
use safelight_diffusion::pipeline::{Request, RgbImage};
use serde_json::Value;

const CAPTIONS: &str = include_str!("../../../testdata/demo/captions.json");
/// Of 50 captions; the model was seen to get 50.
const RIGHT_MIN: usize = 43;

#[test]
fn sky_and_ground_are_what_unseen_captions_say() {
    let entry = Entry::demo();
    let model = entry.load(&LoadOptions::default()).unwrap();
    let mut captions: Vec<Value> = serde_json::from_str(CAPTIONS).unwrap();
    assert_eq!(captions.len(), 200);
    captions.retain(|caption| caption["sky"].is_string() && caption["ground"].is_string());
    captions.truncate(50);
    let mut wrong = Vec::new();
    for (idx, caption) in captions.iter().enumerate() {
        let text = caption["caption"].as_str().unwrap();
        let picture = draw(&entry, &model, text, 1000 + idx as u64);
        let seen = (sky(&picture), ground(&picture));
        let asked = |part: &str| caption[part].as_str().unwrap().to_owned();
        if (seen.0, seen.1) != (asked("sky").as_str(), asked("ground").as_str()) {
            wrong.push(format!("{text}: {seen:?}"));
        }
    }
    assert!(captions.len() - wrong.len() >= RIGHT_MIN, "{wrong:#?}");
}

#[test]
fn the_readme_prompt_draws_a_house_with_a_red_roof() {
    let entry = Entry::demo();
    let model = entry.load(&LoadOptions::default()).unwrap();
    let text = "a house with a red roof on green hills under a sunny sky";
    for seed in 1..=5 {
        let picture = draw(&entry, &model, text, seed);
        assert_eq!(
            (sky(&picture), ground(&picture)),
            ("day", "hills"),
            "seed {seed}"
        );
        let pixels = picture.bytes().chunks_exact(3);
        let red = pixels
            .filter(|p| p[0] > 150 && p[1] < 80 && p[2] < 80)
            .count();
        // The drawn roofs have about 600 pixels.
        assert!((200..2000).contains(&red), "seed {seed}: {red} red pixels");
    }
}

fn draw(entry: &Entry, model: &Model, prompt: &str, seed: u64) -> RgbImage {
    let usual = Request::default();
    let asked = entry.defaults;
    let request = Request {
        prompt: prompt.into(),
        size: entry
            .native_size
            .map(|(width, height)| (width as usize, height as usize)),
        steps: asked.steps.unwrap_or(usual.steps),
        cfg_scale: asked.cfg_scale.unwrap_or(usual.cfg_scale),
        sampler: asked.sampler.unwrap_or(usual.sampler),
        schedule: asked.schedule.unwrap_or(usual.schedule),
        seed,
        ..usual
    };
    let mut pictures = model
        .generate(&request, |_| ControlFlow::Continue(()))
        .unwrap();
    pictures.remove(0).image
}

/// What the sky is, from the median colour of rows 2 to 33.
fn sky(picture: &RgbImage) -> &'static str {
    match median(picture, 2..34) {
        [r, g, b] if r + g + b < 240.0 => "night",
        [r, g, b] if b > r + 25.0 && g > r + 10.0 => "day",
        _ => "sunset",
    }
}

/// What the ground is, from the median colour of rows 104 to 125.
fn ground(picture: &RgbImage) -> &'static str {
    match median(picture, 104..126) {
        [r, g, b] if b > g && b > r => match r > 0.55 * b {
            true => "mountains",
            false => "sea",
        },
        [r, g, _] if g > 1.12 * r => "hills",
        _ => "desert",
    }
}

/// The median of each channel over whole rows.
fn median(picture: &RgbImage, rows: std::ops::Range<usize>) -> [f32; 3] {
    let row_bytes = 3 * picture.width();
    let pixels = &picture.bytes()[rows.start * row_bytes..rows.end * row_bytes];
    [0, 1, 2].map(|channel| {
        let mut values: Vec<u8> = pixels.iter().skip(channel).step_by(3).copied().collect();
        values.sort_unstable();
        f32::from(values[values.len() / 2])
    })
}
