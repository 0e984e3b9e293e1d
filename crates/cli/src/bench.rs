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
    let mut progress = Progress::new(false);
    let Subject {
        name,
        size,
        model,
        load,
    } = subject(args, &mut progress)?;
    let factor = model.vae.config().downscale();
    let (width, height) = args.size.or(size).unwrap_or((DEFAULT_SIDE, DEFAULT_SIDE));
    let latent = (height as usize / factor, width as usize / factor);
    if latent.0 == 0 || latent.1 == 0 {
        return Err(Failure::Usage(format!(
            "{width}×{height} is too small: at least {factor}×{factor}"
        )));
    }
    let mut measured = vec![("load", vec![load])];
    for part in measurements(&model, latent) {
        progress.stage(&format!("measuring {}", part.name));
        let mut times = Vec::new();
        for _ in 0..args.repeat {
            if interrupt::asked() {
                return Err(Failure::Interrupted { saved: 0 });
            }
            let started = Instant::now();
            (part.run)();
            times.push(started.elapsed());
        }
        times.sort();
        measured.push((part.name, times));
    }
    progress.clear();
    let threads = rayon::current_num_threads();
    if args.json {
        let parts: serde_json::Map<String, Value> = measured
            .iter()
            .map(|(name, times)| {
                let seconds = |time: &Duration| time.as_secs_f64();
                let value =
                    json!({ "median_s": seconds(median(times)), "fastest_s": seconds(&times[0]) });
                (name.replace(' ', "_"), value)
            })
            .collect();
        return say::answer_json(&json!({
            "model": name, "width": latent.1 * factor, "height": latent.0 * factor, "precision": args.model.precision.name(),
            "cpu": level.name(), "threads": threads, "repeat": args.repeat, "parts": parts,
        }));
    }
    let mut text = format!(
        "{} at {}×{}, {}, {level}, {threads} threads, median of {}\n",
        name,
        latent.1 * factor,
        latent.0 * factor,
        args.model.precision,
        args.repeat
    );
    let rows: Vec<_> = measured
        .iter()
        .map(|(name, times)| {
            vec![
                (*name).to_owned(),
                short(*median(times)),
                format!("{:.4} s", median(times).as_secs_f64()),
            ]
        })
        .collect();
    text += &say::table(&rows, &[1, 2]);
    say::answer(&text)
}

/// What is measured.
struct Subject {
    name: String,
    /// Its own picture size, if it has one.
    size: Option<(u32, u32)>,
    model: Model,
    /// How long loading took.
    load: Duration,
}

fn subject(args: &BenchArgs, progress: &mut Progress) -> Result<Subject, Failure> {
    if args.family.is_some() {
        progress.stage("making random weights");
        let started = Instant::now();
        let model = Model::random_sd15(0, args.model.ways())
            .map_err(|error| Failure::Machine(error.to_string()))?;
        return Ok(Subject {
            name: "random weights of SD 1.5".into(),
            size: None,
            model,
            load: started.elapsed(),
        });
    }
    let entry = choose::entry(&args.model, args.json)?;
    progress.stage(&format!("loading {}", entry.name));
    let started = Instant::now();
    let model = choose::load(&entry, &args.model, args.model.ways())?;
    Ok(Subject {
        name: entry.name,
        size: entry.native_size,
        model,
        load: started.elapsed(),
    })
}

/// The middle one of sorted times.
fn median(sorted: &[Duration]) -> &Duration {
    &sorted[sorted.len() / 2]
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
