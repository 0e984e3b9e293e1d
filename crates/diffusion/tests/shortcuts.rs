//! What trades fidelity for time: what must hold whatever the weights. Numbers are `golden_pipeline.rs`'s and `golden_unet.rs`'s.

mod common;

use std::ops::ControlFlow;

use common::weights::Layout;
use safelight_diffusion::load::{LoadOptions, Model};
use safelight_diffusion::pipeline::{Passes, Picture, Request, Shortcuts};
use safelight_diffusion::sampler::{Flavour, Sampler};
use safelight_store::Checkpoint;

fn model() -> Model {
    let bytes = Layout::read("sd").single_file(1);
    let checkpoint = Checkpoint::from_bytes("golden.safetensors", bytes).expect("a valid file");
    Model::from_checkpoint(&checkpoint, &LoadOptions::default())
        .unwrap_or_else(|error| panic!("{error}"))
}

fn small(steps: usize, shortcuts: Shortcuts) -> Request {
    Request {
        prompt: "a red house".into(),
        size: Some((40, 24)),
        steps,
        cfg_scale: 4.0,
        seed: 5,
        shortcuts,
        ..Request::default()
    }
}

fn draw(model: &Model, request: &Request) -> Picture {
    let drawn = model.generate(request, |_| ControlFlow::Continue(()));
    drawn.unwrap_or_else(|error| panic!("{error}")).remove(0)
}

fn complaint(model: &Model, shortcuts: Shortcuts) -> String {
    let drawn = model.generate(&small(2, shortcuts), |_| ControlFlow::Continue(()));
    drawn.expect_err("it was drawn").to_string()
}

fn passes(full: usize, cached: usize) -> Passes {
    Passes { full, cached }
}

#[test]
fn an_interval_without_calls_is_no_guidance_at_all() {
    let model = model();
    for flavour in [Flavour::A1111, Flavour::Diffusers] {
        for sampler in [Sampler::Euler, Sampler::Heun] {
            let with = |cfg_scale, guidance_start, guidance_end| {
                let shortcuts = Shortcuts {
                    guidance_start,
                    guidance_end,
                    ..Shortcuts::default()
                };
                let request = Request {
                    flavour,
                    sampler,
                    cfg_scale,
                    ..small(4, shortcuts)
                };
                draw(&model, &request)
            };
            let (alone, guided) = (with(1.0, 0.0, 1.0), with(4.0, 0.0, 1.0));
            assert_eq!(guided.passes.full, 2 * alone.passes.full);
            for (start, end) in [(1.0, 1.0), (0.0, 0.0), (0.5, 0.5)] {
                let found = with(4.0, start, end);
                assert_eq!(found, alone, "{flavour:?}, {sampler:?}, {start} to {end}");
            }
            let part = with(4.0, 0.3, 0.8);
            assert_ne!(part.image, guided.image);
            assert_ne!(part.image, alone.image);
            assert!((alone.passes.full..guided.passes.full).contains(&part.passes.full));
        }
    }
}

#[test]
fn guidance_out_of_order_is_refused() {
    let shortcuts = Shortcuts {
        guidance_start: 0.7,
        guidance_end: 0.3,
        ..Shortcuts::default()
    };
    let found = complaint(&model(), shortcuts);
    assert_eq!(
        found,
        "guidance start is 0.7: it must be at most 0.3, where guidance ends"
    );
}

#[test]
fn passes_are_counted() {
    let found = draw(&model(), &small(5, Shortcuts::default())).passes;
    assert_eq!(found, passes(10, 0));
}
