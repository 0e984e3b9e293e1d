//! A golden case as a request, run and compared.

use std::ops::ControlFlow;

use safelight_diffusion::load::Model;
use safelight_diffusion::pipeline::{Inpaint, Job, Mask, Request, RgbImage, Shortcuts};
use safelight_diffusion::sampler::diffusers::{SchedulerConfig, Spacing};
use safelight_diffusion::sampler::{Flavour, Sampler};
use safelight_diffusion::schedule::Schedule;

use super::case::Case;

/// Generates a case's pictures and compares their latents and bytes.
pub fn run(case: &Case, model: &Model) {
    let request = request(case);
    let pictures = model
        .generate(&request, |_| ControlFlow::Continue(()))
        .unwrap_or_else(|error| panic!("{}: {error}", case.label));
    let latents: Vec<f32> = pictures
        .iter()
        .flat_map(|picture| &picture.latent.values)
        .copied()
        .collect();
    let bytes: Vec<u8> = pictures
        .iter()
        .flat_map(|picture| picture.image.bytes())
        .copied()
        .collect();
    let error = case.error("out.latents", &latents);
    println!("{:<48} latents {error:.1e}", case.label);
    case.check("out.latents", &latents);
    let differing = case.check_picture("out.pictures", &bytes, 1);
    println!(
        "{:<48} pictures: {:.2} % of bytes differ, by 1",
        case.label,
        100.0 * differing
    );
}

fn request(case: &Case) -> Request {
    let number = |key| case.number(key) as usize;
    let flavour = Flavour::from_name(case.text("flavour")).unwrap();
    let sampler = Sampler::from_name(case.text("sampler")).unwrap();
    let (width, height) = (number("width"), number("height"));
    let image = || RgbImage::new(width, height, case.bytes("in.image").to_vec());
    let strength = case.number("strength");
    let job = match case.text("job") {
        "txt2img" => Job::Txt2Img,
        "img2img" => Job::Img2Img {
            image: image(),
            strength,
        },
        "inpaint" => Job::Inpaint(Inpaint {
            strength,
            mask_blur: 0.0,
            // diffusers leaves the laying over to its user.
            overlay: flavour == Flavour::A1111,
            ..Inpaint::new(
                image(),
                Mask::new(width, height, case.bytes("in.mask").to_vec()),
            )
        }),
        other => panic!("{}: job `{other}`", case.label),
    };
    Request {
        job,
        prompt: case.text("prompt").into(),
        negative_prompt: case.text("negative_prompt").into(),
        size: Some((width, height)),
        steps: number("steps"),
        cfg_scale: case.number("cfg_scale"),
        sampler,
        schedule: Schedule::from_name(case.text("schedule")).unwrap(),
        flavour,
        seed: case.text("image_seed").parse().unwrap(),
        batch: number("batch"),
        clip_skip: number("clip_skip"),
        scheduler: scheduler(case, flavour, sampler),
        shortcuts: shortcuts(case),
        ..Request::default()
    }
}

/// What a case leaves out; most say nothing of it.
fn shortcuts(case: &Case) -> Shortcuts {
    let usual = Shortcuts::default();
    let number = |key, usual| {
        if case.metadata.contains_key(key) {
            case.number(key)
        } else {
            usual
        }
    };
    Shortcuts {
        guidance_start: number("cfg_start", usual.guidance_start),
        guidance_end: number("cfg_end", usual.guidance_end),
        cache_interval: number("cache_interval", 1.0) as usize,
        cache_branch: number("cache_branch", 0.0) as usize,
        token_merging: number("token_merging", 0.0),
    }
}

/// Scheduler settings where a case has others than the class's own.
fn scheduler(case: &Case, flavour: Flavour, sampler: Sampler) -> Option<SchedulerConfig> {
    let spacing = match (flavour, case.metadata.get("spacing").map(String::as_str)) {
        (Flavour::A1111, _) | (_, None) => return None,
        (_, Some("linspace")) => Spacing::Linspace,
        (_, Some("leading")) => Spacing::Leading,
        (_, Some("trailing")) => Spacing::Trailing,
        (_, Some(other)) => panic!("{}: spacing `{other}`", case.label),
    };
    let ordinary = SchedulerConfig::stable_diffusion(sampler);
    (ordinary.spacing != spacing).then_some(SchedulerConfig {
        spacing,
        ..ordinary
    })
}
