//! Whole jobs: what must hold for every one of them. What their numbers must be is `golden_pipeline.rs`'s.

mod common;

use std::ops::ControlFlow;

use common::weights::{Layout, safetensors_bytes, tensor};
use safelight_diffusion::load::{LoadOptions, Model};
use safelight_diffusion::pipeline::{
    GenerateError, Inpaint, Job, Mask, MaskedContent, Outpaint, Phase, Picture, Request, Residence,
    RgbImage, memory_bytes,
};
use safelight_diffusion::precision::Precision;
use safelight_diffusion::sampler::diffusers::{SchedulerConfig, Spacing};
use safelight_diffusion::sampler::{Flavour, Sampler};
use safelight_diffusion::schedule::Schedule;
use safelight_store::Checkpoint;

fn model(layout: &str, seed: u32) -> Model {
    let bytes = Layout::read(layout).single_file(seed);
    let checkpoint = Checkpoint::from_bytes("golden.safetensors", bytes).expect("a valid file");
    Model::from_checkpoint(&checkpoint, &LoadOptions::default())
        .unwrap_or_else(|error| panic!("{error}"))
}

fn draw(model: &Model, request: &Request) -> Vec<Picture> {
    let drawn = model.generate(request, |_| ControlFlow::Continue(()));
    drawn.unwrap_or_else(|error| panic!("{error}"))
}

/// A request of the fewest steps that show anything, at a size with no round numbers.
fn small(job: Job) -> Request {
    let size = matches!(job, Job::Txt2Img).then_some((40, 24));
    Request {
        job,
        prompt: "a red house".into(),
        size,
        steps: 3,
        cfg_scale: 4.0,
        seed: 5,
        ..Request::default()
    }
}

fn colours(width: usize, height: usize) -> RgbImage {
    RgbImage::new(
        width,
        height,
        (0..3 * width * height)
            .map(|i| (i * 7 % 253) as u8)
            .collect(),
    )
}

fn right_half(width: usize, height: usize) -> Mask {
    Mask::new(
        width,
        height,
        (0..width * height)
            .map(|i| if i % width >= width / 2 { 255 } else { 0 })
            .collect(),
    )
}

fn complaint(model: &Model, request: &Request) -> String {
    match model.generate(request, |_| ControlFlow::Continue(())) {
        Ok(_) => panic!("it was drawn"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_batch_is_its_pictures_one_by_one() {
    let model = model("sd", 1);
    for (sampler, flavour) in [
        (Sampler::EulerAncestral, Flavour::A1111),
        (Sampler::Lcm, Flavour::Diffusers),
    ] {
        let request = Request {
            batch: 3,
            sampler,
            flavour,
            ..small(Job::Txt2Img)
        };
        let together = draw(&model, &request);
        let third = draw(
            &model,
            &Request {
                batch: 1,
                seed: 7,
                ..request.clone()
            },
        );
        assert_eq!(
            together
                .iter()
                .map(|picture| picture.seed)
                .collect::<Vec<_>>(),
            [5, 6, 7]
        );
        assert_eq!(together[2], third[0]);
        assert_ne!(together[1].image, together[2].image);
        assert_eq!(together, draw(&model, &request), "the same request twice");
    }
}

#[test]
fn any_number_of_threads_draws_the_same() {
    let model = model("sd", 1);
    let inpaint = Inpaint {
        content: MaskedContent::Fill,
        ..Inpaint::new(colours(72, 56), right_half(72, 56))
    };
    let request = Request {
        sampler: Sampler::EulerAncestral,
        ..small(Job::Inpaint(inpaint))
    };
    let with_threads = |count| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .build()
            .expect("a thread pool");
        pool.install(|| draw(&model, &request))
    };
    let alone = with_threads(1);
    for count in [2, 3, 7] {
        assert_eq!(alone, with_threads(count), "{count} threads");
    }
}

#[test]
fn every_sampler_does_every_job() {
    let model = model("sd", 1);
    let image = || colours(37, 29);
    let outpaint = Outpaint {
        left: 9,
        up: 4,
        mask_blur: 1.0,
        ..Outpaint::new(image())
    };
    for sampler in Sampler::ALL {
        for flavour in [Flavour::A1111, Flavour::Diffusers] {
            for (job, size) in [
                (Job::Txt2Img, (40, 24)),
                (
                    Job::Img2Img {
                        image: image(),
                        strength: 0.7,
                    },
                    (32, 24),
                ),
                (
                    Job::Inpaint(Inpaint::new(image(), right_half(37, 29))),
                    (37, 29),
                ),
                (Job::Outpaint(outpaint.clone()), (46, 33)),
            ] {
                let request = Request {
                    sampler,
                    flavour,
                    ..small(job)
                };
                let picture = draw(&model, &request).remove(0);
                assert_eq!((picture.image.width(), picture.image.height()), size);
                assert_eq!(model.size_of(&request), Ok(size));
            }
        }
    }
}

#[test]
fn inpainting_changes_nothing_beyond_the_soft_edge() {
    for layout in ["sd", "sd_inpaint"] {
        let model = model(layout, 1);
        let image = colours(53, 41);
        for content in MaskedContent::ALL {
            for flavour in [Flavour::A1111, Flavour::Diffusers] {
                let inpaint = Inpaint {
                    mask_blur: 2.0,
                    content,
                    ..Inpaint::new(image.clone(), right_half(53, 41))
                };
                let drawn = draw(
                    &model,
                    &Request {
                        flavour,
                        ..small(Job::Inpaint(inpaint))
                    },
                )
                .remove(0)
                .image;
                // White from column 26 on; a blur of 2 reaches 5 columns further.
                let (mut kept, mut changed) = (0, 0);
                for (idx, (new, old)) in drawn
                    .bytes()
                    .chunks(3)
                    .zip(image.bytes().chunks(3))
                    .enumerate()
                {
                    match idx % 53 {
                        0..21 => {
                            assert_eq!(new, old, "{layout}, {content:?}, {flavour:?}: pixel {idx}")
                        }
                        26.. => changed += usize::from(new != old),
                        _ => kept += usize::from(new == old),
                    }
                }
                assert!(
                    changed > 900 && kept < 41 * 5,
                    "{layout}, {content:?}, {flavour:?}: {changed} changed"
                );
            }
        }
    }
}

#[test]
fn outpainting_keeps_the_picture_within_the_seam() {
    let model = model("sd", 1);
    let image = colours(48, 40);
    let outpaint = Outpaint {
        right: 16,
        down: 8,
        mask_blur: 1.0,
        ..Outpaint::new(image.clone())
    };
    let seam = outpaint.seam();
    let drawn = draw(&model, &small(Job::Outpaint(outpaint)))
        .remove(0)
        .image;
    assert_eq!((drawn.width(), drawn.height(), seam), (64, 48, 5));
    for y in 0..40 - seam {
        let (new, old) = (&drawn.bytes()[3 * 64 * y..], &image.bytes()[3 * 48 * y..]);
        assert_eq!(new[..3 * (48 - seam)], old[..3 * (48 - seam)], "row {y}");
    }
}

#[test]
fn inpainting_models_do_the_other_jobs_too() {
    let model = model("sd_inpaint", 1);
    for job in [
        Job::Txt2Img,
        Job::Img2Img {
            image: colours(40, 24),
            strength: 0.5,
        },
    ] {
        let picture = draw(&model, &small(job)).remove(0);
        assert_eq!((picture.image.width(), picture.image.height()), (40, 24));
    }
}

#[test]
fn progress_tells_every_stage_and_can_stop() {
    let model = model("sd", 1);
    let request = Request {
        batch: 2,
        ..small(Job::Img2Img {
            image: colours(40, 24),
            strength: 0.999,
        })
    };
    let mut seen = Vec::new();
    let mut done = 0;
    let drawn = model.generate(&request, |progress| {
        assert_eq!(progress.image_count, 2);
        seen.push(match progress.phase {
            Phase::Text => "text".to_owned(),
            Phase::Encode => "encode".to_owned(),
            Phase::Steps { done, count } => format!("{done}/{count}"),
            Phase::Decode => "decode".to_owned(),
            Phase::Load(part) => panic!("the {} of a whole model is read", part.name()),
            Phase::Done(picture) => format!("{} {}", progress.image, picture.seed),
        });
        ControlFlow::Continue(())
    });
    assert_eq!(drawn.expect("two pictures").len(), 2);
    let expected = "text text encode 0/3 1/3 2/3 3/3 decode 0 5 0/3 1/3 2/3 3/3 decode 1 6";
    assert_eq!(seen.join(" "), expected);
    let stopped = model.generate(&request, |progress| match progress.phase {
        Phase::Done(_) => {
            done += 1;
            ControlFlow::Continue(())
        }
        Phase::Steps { done: 2, .. } if progress.image == 1 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert_eq!((stopped, done), (Err(GenerateError::Stopped), 1));
}

#[test]
fn a_trace_holds_every_step() {
    let model = model("sd", 1);
    let inpaint = Inpaint::new(colours(40, 24), right_half(40, 24));
    let request = Request {
        trace: true,
        ..small(Job::Inpaint(inpaint))
    };
    let picture = draw(&model, &request).remove(0);
    let names: Vec<&str> = picture
        .trace
        .iter()
        .map(|traced| traced.name.as_str())
        .collect();
    let expected = [
        "text.positive",
        "text.negative",
        "image.latent",
        "noise",
        "start",
        "step.1",
        "step.2",
        "step.3",
        "latent",
    ];
    assert_eq!(names, expected);
    for traced in &picture.trace {
        assert_eq!(
            traced.values.len(),
            traced.shape.iter().product::<usize>(),
            "{}",
            traced.name
        );
    }
    assert_eq!(picture.trace[3].shape, [1, 4, 3, 5]);
    assert_eq!(picture.trace[8], picture.latent);
    assert_eq!(draw(&model, &small(Job::Txt2Img)).remove(0).trace, []);
}

#[test]
fn requests_that_cannot_be_are_refused_by_name() {
    let model = model("sd", 1);
    let check = |request: Request, expected: &str| {
        let found = complaint(&model, &request);
        assert!(found.contains(expected), "{found}");
    };
    check(
        Request {
            steps: 0,
            ..small(Job::Txt2Img)
        },
        "steps is 0: it must be 1 to 999",
    );
    check(
        Request {
            size: Some((4, 64)),
            ..small(Job::Txt2Img)
        },
        "width is 4: it must be 8 to 16384 pixels",
    );
    check(
        Request {
            steps: 1,
            sampler: Sampler::Ddim,
            ..small(Job::Txt2Img)
        },
        "DDIM takes 2 to 999 steps",
    );
    let diffusers = Request {
        flavour: Flavour::Diffusers,
        ..small(Job::Txt2Img)
    };
    let karras = Request {
        schedule: Schedule::Karras,
        sampler: Sampler::EulerAncestral,
        ..diffusers.clone()
    };
    check(
        karras,
        "schedule is Karras: it must be Automatic, Uniform, SGM Uniform or Simple",
    );
    check(
        Request {
            steps: 60,
            sampler: Sampler::Lcm,
            ..diffusers.clone()
        },
        "LCM takes 1 to 50 steps",
    );
    let weak = Job::Img2Img {
        image: colours(40, 24),
        strength: 0.1,
    };
    check(
        Request {
            job: weak,
            size: None,
            ..diffusers
        },
        "come to no step at all",
    );
}

#[test]
fn broken_numbers_are_found_where_they_arise() {
    let check = |broken: &str, job: Job, expected: &str| {
        let layout = Layout::read("sd");
        let rows = layout.tensors.iter().map(|(name, shape)| {
            let mut values = tensor(name, shape, 1);
            if name == broken {
                values.fill(3e38); // finite, and so let in
            }
            (name.as_str(), shape.as_slice(), values)
        });
        let bytes = safetensors_bytes(rows.collect(), &layout.metadata);
        let checkpoint = Checkpoint::from_bytes("broken.safetensors", bytes).expect("a valid file");
        let model = Model::from_checkpoint(&checkpoint, &LoadOptions::default())
            .unwrap_or_else(|e| panic!("{e}"));
        let found = complaint(&model, &small(job));
        let expected = format!("{expected} gave values that are not finite numbers (seed 5)");
        assert!(found.starts_with(&expected), "{found}");
    };
    check(
        "model.diffusion_model.out.2.weight",
        Job::Txt2Img,
        "step 1 of 3",
    );
    check(
        "first_stage_model.decoder.conv_out.weight",
        Job::Txt2Img,
        "the VAE's decoder",
    );
    let job = Job::Img2Img {
        image: colours(40, 24),
        strength: 0.5,
    };
    check(
        "first_stage_model.encoder.conv_out.weight",
        job,
        "the VAE's encoder",
    );
}

#[test]
fn memory_grows_with_the_picture() {
    let model = model("sd", 1);
    let needs = |side, precision| {
        let request = Request {
            size: Some((side, side)),
            ..Request::default()
        };
        memory_bytes(&model.info, &request, precision, Residence::All).unwrap()
    };
    let at = |side| needs(side, Precision::F32);
    assert!(needs(64, Precision::Bf16) < at(64));
    assert!(needs(64, Precision::Int8) < needs(64, Precision::Bf16));
    let weights: u64 = model
        .info
        .parts
        .iter()
        .map(|part| 4 * part.parameters)
        .sum();
    // Packed for speed they take up to twice as much, and reading so few takes as much as all of them once more.
    assert!(at(64) > weights && at(64) < 3 * weights + (64 << 20));
    assert!(at(4096) - at(64) > 1 << 30);
    let request = Request {
        size: Some((100_000, 64)),
        ..Request::default()
    };
    assert!(memory_bytes(&model.info, &request, Precision::F32, Residence::All).is_err());
}

#[test]
fn long_prompts_are_counted_and_endless_ones_refused() {
    let model = model("sd", 1);
    let needs = |prompt: String| {
        let request = Request {
            prompt,
            ..small(Job::Txt2Img)
        };
        memory_bytes(&model.info, &request, Precision::F32, Residence::All)
    };
    let short = needs("a cat".into()).expect("a short prompt");
    assert!(needs("cat ".repeat(75 * 64)).expect("64 chunks") > short + 63 * 77 * 4);
    for (unit, count, limit) in [
        ("BREAK ", 10_000, "at most 64 chunks"),
        ("[a:", 20_000, "at most 64 chunks"),
        ("[a|b", 16_000, "at most 64 chunks"),
        ("[[a] :b:9]", 6_500, "at most 64 chunks"),
        ("BREAK ", 15_000, "at most 65536 bytes"),
    ] {
        let prompt = unit.repeat(count);
        let error = needs(prompt.clone()).expect_err(unit).to_string();
        assert!(
            error.starts_with("prompt is ") && error.contains(limit),
            "{unit}: {error}"
        );
        let negative_prompt = prompt;
        let request = Request {
            negative_prompt,
            ..small(Job::Txt2Img)
        };
        let error = complaint(&model, &request);
        assert!(
            error.starts_with("negative prompt is ") && error.contains(limit),
            "{unit}: {error}"
        );
    }
}

#[test]
fn stopping_does_not_wait_for_the_whole_prompt() {
    let model = model("sd", 1);
    let request = Request {
        prompt: "cat ".repeat(75 * 40),
        ..small(Job::Txt2Img)
    };
    let mut chunks = 0;
    let stopped = model.generate(&request, |now| {
        assert!(matches!(now.phase, Phase::Text), "{:?}", now.phase);
        chunks += 1;
        match chunks {
            3 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    });
    assert_eq!((stopped, chunks), (Err(GenerateError::Stopped), 3));
}

#[test]
fn a_folders_scheduler_settings_are_diffusers() {
    let root = std::env::temp_dir().join(format!("safelight-scheduler-{}", std::process::id()));
    std::fs::create_dir_all(root.join("scheduler")).expect("a temporary folder");
    Layout::read("sd").write_folder(1, &root);
    let json = r#"{"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "timestep_spacing": "trailing", "steps_offset": 1, "clip_sample": false}"#;
    std::fs::write(root.join("scheduler/scheduler_config.json"), json).expect("a file");
    let model = Model::load(&root, &LoadOptions::default());
    std::fs::remove_dir_all(&root).expect("the folder is ours");
    let model = model.unwrap_or_else(|error| panic!("{error}"));
    let request = Request {
        flavour: Flavour::Diffusers,
        ..small(Job::Txt2Img)
    };
    let config = |spacing| SchedulerConfig {
        spacing,
        ..SchedulerConfig::stable_diffusion(Sampler::Euler)
    };
    let with = |spacing| {
        draw(
            &model,
            &Request {
                scheduler: Some(config(spacing)),
                ..request.clone()
            },
        )
    };
    assert_eq!(draw(&model, &request), with(Spacing::Trailing));
    assert_ne!(draw(&model, &request), with(Spacing::Linspace));

    // Absent betas are those of Heun's class, not those that the model's description guesses.
    let mut model = model;
    let mut heun = |json: serde_json::Value| {
        model.info.scheduler = Some(json);
        let sampler = Sampler::Heun;
        draw(
            &model,
            &Request {
                sampler,
                ..request.clone()
            },
        )
    };
    let absent = heun(serde_json::json!({}));
    assert_eq!(
        absent,
        heun(serde_json::json!({"beta_start": 0.00085, "beta_end": 0.012}))
    );
    assert_ne!(
        absent,
        heun(serde_json::json!({"beta_start": 0.0001, "beta_end": 0.02}))
    );
}
