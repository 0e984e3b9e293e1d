//! The embedded model draws what captions it never saw say, by an automatic judge.
//!
//! The captions are `testdata/demo/captions.json`; the judge is that of `tools/demo-model`.

mod judge;

use std::ops::ControlFlow;

use judge::Judge;
use safelight_catalog::Entry;
use safelight_diffusion::load::{LoadOptions, Model};
use safelight_diffusion::pipeline::{Request, RgbImage};
use serde_json::Value;

const CAPTIONS: &str = include_str!("../../../testdata/demo/captions.json");
/// So many captions are drawn.
const DRAWN: usize = 50;
/// Of them everything that is said is right in so many; the model was seen to get 49.
const RIGHT_MIN: usize = 45;
/// And sky and ground in so many; it was seen to get 50.
const LANDSCAPES_MIN: usize = 48;

#[test]
fn the_judge_agrees_with_the_one_that_the_figures_are_of() {
    let judge = Judge::new();
    for (picture, said) in &judge.judged {
        let verdict = judge.of(picture);
        assert_eq!(verdict.wrong(said), [""; 0], "{verdict:?} {said}");
        let none = ["orb_place", "colour", "place"].map(|key| said[key].is_null());
        let seen = [
            verdict.orb_place.is_none(),
            verdict.colour.is_none(),
            verdict.place.is_none(),
        ];
        assert_eq!(none, seen, "{verdict:?} {said}");
    }
    // And sees what is wrong.
    let [(first, _), (_, other), ..] = &judge.judged[..] else {
        panic!("scenes are missing");
    };
    assert!(!judge.of(first).wrong(other).is_empty());
}

#[test]
fn unseen_captions_are_drawn_as_they_say() {
    let (entry, judge) = (Entry::demo(), Judge::new());
    let model = entry.load(&LoadOptions::default()).unwrap();
    let captions: Vec<Value> = serde_json::from_str(CAPTIONS).unwrap();
    assert_eq!(captions.len(), 200);
    let (mut wrong, mut landscapes) = (Vec::new(), DRAWN);
    for (idx, caption) in captions[..DRAWN].iter().enumerate() {
        let text = caption["caption"].as_str().unwrap();
        let verdict = judge.of(&draw(&entry, &model, text, 1000 + idx as u64));
        let differs = verdict.wrong(caption);
        landscapes -= usize::from(differs.contains(&"sky") || differs.contains(&"ground"));
        if !differs.is_empty() {
            wrong.push(format!("{text}: {differs:?}, {verdict:?}"));
        }
    }
    println!(
        "{} of {DRAWN} right, {landscapes} in sky and ground",
        DRAWN - wrong.len()
    );
    assert!(landscapes >= LANDSCAPES_MIN, "{landscapes}: {wrong:#?}");
    assert!(DRAWN - wrong.len() >= RIGHT_MIN, "{wrong:#?}");
}

#[test]
fn the_readme_prompt_draws_a_house_with_a_red_roof() {
    let (entry, judge) = (Entry::demo(), Judge::new());
    let model = entry.load(&LoadOptions::default()).unwrap();
    let text = "a house with a red roof on green hills under a sunny sky";
    let asked =
        serde_json::json!({ "sky": "day", "ground": "hills", "thing": "house", "colour": "red" });
    for seed in 1..=5 {
        let verdict = judge.of(&draw(&entry, &model, text, seed));
        assert_eq!(verdict.wrong(&asked), [""; 0], "seed {seed}: {verdict:?}");
    }
}

fn draw(entry: &Entry, model: &Model, prompt: &str, seed: u64) -> RgbImage {
    let request = Request {
        prompt: prompt.into(),
        seed,
        ..entry.usual_request()
    };
    let mut pictures = model
        .generate(&request, |_| ControlFlow::Continue(()))
        .unwrap();
    pictures.remove(0).image
}
