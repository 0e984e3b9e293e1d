//! `safelight bench`: how long the parts of a model take on this machine.

use std::time::{Duration, Instant};

use safelight_diffusion::load::Model;
use safelight_diffusion::prompt::{PromptStyle, encode};
use safelight_tensor::Tensor;
use serde_json::{Value, json};

use crate::args::BenchArgs;
use crate::error::Failure;
use crate::progress::{Progress, short};
use crate::{choose, interrupt, machine, say};

/// Width and height where the model says nothing.
const DEFAULT_SIDE: u32 = 512;

pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    interrupt::listen();
    let level = machine::prepare(args.model.threads)?;
    let entry = choose::entry(&args.model, args.json)?;
    let mut progress = Progress::new(false);
    progress.stage(&format!("loading {}", entry.name));
    let started = Instant::now();
    let model = choose::load(&entry, &args.model)?;
    let load = started.elapsed();
    let factor = model.vae.config().downscale();
    let (width, height) = args
        .size
        .or(entry.native_size)
        .unwrap_or((DEFAULT_SIDE, DEFAULT_SIDE));
    let latent = (height as usize / factor, width as usize / factor);
    if latent.0 == 0 || latent.1 == 0 {
        return Err(Failure::Usage(format!(
            "{width}×{height} is too small: at least {factor}×{factor}"
        )));
    }
    let mut measured = vec![("load", load)];
    for part in measurements(&model, latent) {
        progress.stage(&format!("measuring {}", part.name));
        let mut fastest = Duration::MAX;
        for _ in 0..args.repeat {
            if interrupt::asked() {
                return Err(Failure::Interrupted { saved: 0 });
            }
            let started = Instant::now();
            (part.run)();
            fastest = fastest.min(started.elapsed());
        }
        measured.push((part.name, fastest));
    }
    progress.clear();
    let threads = rayon::current_num_threads();
    if args.json {
        let seconds: serde_json::Map<String, Value> = measured
            .iter()
            .map(|(name, time)| (name.replace(' ', "_"), time.as_secs_f64().into()))
            .collect();
        return say::answer_json(&json!({
            "model": entry.name, "width": latent.1 * factor, "height": latent.0 * factor, "precision": args.model.precision,
            "cpu": level.name(), "threads": threads, "repeat": args.repeat, "seconds": seconds,
        }));
    }
    let mut text = format!(
        "{} at {}×{}, {}, {level}, {threads} threads, fastest of {}\n",
        entry.name,
        latent.1 * factor,
        latent.0 * factor,
        args.model.precision,
        args.repeat
    );
    let rows: Vec<_> = measured
        .iter()
        .map(|(name, time)| {
            vec![
                (*name).to_owned(),
                short(*time),
                format!("{:.4} s", time.as_secs_f64()),
            ]
        })
        .collect();
    text += &say::table(&rows, &[1, 2]);
    say::answer(&text)
}

struct Measurement<'a> {
    name: &'static str,
    run: Box<dyn Fn() + 'a>,
}

/// The parts, each with inputs of the right size.
fn measurements(model: &Model, (height, width): (usize, usize)) -> Vec<Measurement<'_>> {
    let chunk = encode("a lighthouse on a rock, storm", PromptStyle::A1111).remove(0);
    let context = model.text.forward(&chunk.ids, 1);
    let batch = |count: usize| {
        let channels = model.unet.config().in_channels;
        (
            wave(&[count, height, width, channels]),
            Tensor::from_vec(
                &[count, context.dim(1), context.dim(2)],
                context.data().repeat(count),
            ),
        )
    };
    let (one, two) = (batch(1), batch(2));
    let latent = wave(&[1, height, width, model.vae.config().latent_channels]);
    let factor = model.vae.config().downscale();
    let picture = wave(&[1, height * factor, width * factor, 3]);
    vec![
        Measurement {
            name: "text encoder",
            run: Box::new(move || drop(model.text.forward(&chunk.ids, 1))),
        },
        Measurement {
            name: "unet",
            run: Box::new(move || drop(model.unet.forward(&one.0, &[500.0], &one.1))),
        },
        Measurement {
            name: "unet with guidance",
            run: Box::new(move || drop(model.unet.forward(&two.0, &[500.0; 2], &two.1))),
        },
        Measurement {
            name: "vae decoder",
            run: Box::new(move || drop(model.vae.decode(&latent))),
        },
        Measurement {
            name: "vae encoder",
            run: Box::new(move || drop(model.vae.encode(&picture))),
        },
    ]
}

/// Values between −1 and 1 that are not all alike.
fn wave(shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    Tensor::from_vec(
        shape,
        (0..count)
            .map(|idx: usize| (idx as f32 * 0.7).sin())
            .collect(),
    )
}
