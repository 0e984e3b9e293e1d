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

fn cached(cache_interval: usize, cache_branch: usize) -> Shortcuts {
    Shortcuts {
        cache_interval,
        cache_branch,
        ..Shortcuts::default()
    }
}

#[test]
fn an_interval_of_one_is_the_picture_without() {
    let model = model();
    let plain = draw(&model, &small(4, Shortcuts::default()));
    assert_eq!(plain.passes, passes(8, 0));
    for branch in [0, 3] {
        assert_eq!(draw(&model, &small(4, cached(1, branch))), plain);
    }
    let other = draw(&model, &small(4, cached(2, 0)));
    assert_ne!(other.image, plain.image);
}

#[test]
fn whole_passes_come_at_every_so_manieth_step_and_where_texts_change() {
    let model = model();
    let check = |request: Request, full, cached| {
        let found = draw(&model, &request).passes;
        assert_eq!(found, passes(full, cached), "{request:?}");
    };
    check(small(7, cached(3, 0)), 2 * 3, 2 * 4);
    check(small(7, cached(9, 2)), 2, 2 * 6);
    let alone = Request {
        cfg_scale: 1.0,
        ..small(7, cached(3, 0))
    };
    check(alone, 3, 4);
    // Heun's two calls of a step are alike; its last step has one.
    for flavour in [Flavour::A1111, Flavour::Diffusers] {
        let heun = Request {
            sampler: Sampler::Heun,
            flavour,
            ..small(4, cached(2, 0))
        };
        check(heun, 2 * 4, 2 * 3);
    }
    // From call 4 on (of 1 to 6) another prompt: its features are not there yet.
    let edited = Request {
        prompt: "a [red:blue:0.5] house".into(),
        ..small(6, cached(6, 0))
    };
    check(edited, 2 * 2, 2 * 4);
    // Alternating prompts leave nothing to use again.
    let alternating = Request {
        prompt: "a [red|blue] house".into(),
        ..small(4, cached(4, 0))
    };
    check(alternating, 2 * 4, 0);
    // Prompts of different length run apart, each with its own features.
    let apart = Request {
        prompt: "a red house ".repeat(40),
        ..small(4, cached(2, 0))
    };
    check(apart, 2 * 2, 2 * 2);
    // Calls 0 to 3 are alone, 4 and 5 guided, 6 and 7 alone again: whole are 0, 4, 6 and (of interval 5) 5.
    let interval = Shortcuts {
        guidance_start: 0.4,
        guidance_end: 0.8,
        ..cached(5, 0)
    };
    check(small(8, interval), 1 + 2 + 2 + 1, 3 + 1);
}

#[test]
fn cached_pictures_of_a_batch_do_not_see_each_other() {
    let model = model();
    let request = Request {
        batch: 2,
        ..small(5, cached(4, 1))
    };
    let both = model.generate(&request, |_| ControlFlow::Continue(()));
    let second = Request {
        batch: 1,
        seed: request.seed + 1,
        ..request
    };
    assert_eq!(both.expect("two pictures")[1], draw(&model, &second));
}

#[test]
fn a_branch_that_is_not_there_is_refused() {
    let found = complaint(&model(), cached(2, 8));
    assert_eq!(
        found,
        "cache branch is 8: it must be 0 to 7, this UNet's skip connections"
    );
    let found = complaint(&model(), cached(0, 0));
    assert_eq!(found, "cache interval is 0: it must be 1 to 999");
}

#[test]
fn merged_tokens_draw_another_picture_whatever_the_threads() {
    let model = model();
    let plain = draw(&model, &small(3, Shortcuts::default()));
    let merging = |token_merging| {
        let shortcuts = Shortcuts {
            token_merging,
            ..Shortcuts::default()
        };
        small(3, shortcuts)
    };
    let merged = draw(&model, &merging(0.5));
    assert_eq!(merged.passes, plain.passes);
    assert_ne!(merged.image, plain.image);
    // 0.05 of 15 tokens is none.
    assert_eq!(draw(&model, &merging(0.05)), plain);
    for count in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build();
        let found = pool
            .expect("a thread pool")
            .install(|| draw(&model, &merging(0.5)));
        assert_eq!(found, merged, "{count} threads");
    }
    let shortcuts = merging(0.8).shortcuts;
    let expected = "token merging ratio is 0.8: it must be 0 to 0.75: three of four tokens can go";
    assert_eq!(complaint(&model, shortcuts), expected);
}
