//! `safelight bench`: how long the parts of a model take on this machine.

mod fidelity;
mod sdxl;
mod txt2img;

use std::time::{Duration, Instant};

use safelight_diffusion::load::Model;
use safelight_diffusion::prompt::{PromptStyle, encode};
use safelight_diffusion::vae::VaeConfig;
use safelight_kernels::testing::peak_flops;
use safelight_tensor::Tensor;
use safelight_tensor::profile::{self, Kind, Profile, Spent};
use serde_json::{Value, json};

use crate::args::{BenchArgs, BenchFamily, BenchPart};
use crate::error::Failure;
use crate::progress::{Progress, short};
use crate::{choose, interrupt, machine, say};

/// Width and height where the model says nothing.
const DEFAULT_SIDE: u32 = 512;

pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    interrupt::listen();
    let level = machine::prepare(args.model.threads)?;
    let mut progress = Progress::new(false);
    let sdxl = args.family == Some(BenchFamily::Sdxl);
    match args.part {
        Some(BenchPart::Unet) if sdxl => {}
        _ if sdxl => {
            let what = "of SDXL only the UNet is measured, for it is not drawn with yet: bench unet --family sdxl; sd15 has all parts";
            return Err(Failure::Usage(what.into()));
        }
        Some(BenchPart::Txt2img) => return txt2img::run(args, &mut progress),
        Some(BenchPart::Fidelity) => return fidelity::run(args, &mut progress),
        _ => {}
    }
    if args.steps.is_some() {
        let what = "--steps is for bench txt2img and fidelity: other parts have none";
        return Err(Failure::Usage(what.into()));
    }
    if sdxl {
        return sdxl::run(args, &mut progress);
    }
    let Subject {
        name,
        size,
        model,
        load,
    } = subject(args, &mut progress)?;
    let factor = model.vae.config().downscale();
    let latent = latent(args, size, factor)?;
    if let Some(part) = args.part {
        progress.clear();
        return one_part(args, part, &name, &model, latent, load);
    }
    let mut measured = vec![("load", vec![load])];
    for part in measurements(&model, latent) {
        progress.stage(&format!("measuring {}", part.name));
        measured.push((part.name, timed(args.repeat, &part.run)?));
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

/// Pixels of a picture to one of its latent, along a side; every VAE of Stable Diffusion has 8.
fn downscale(vae: Option<&VaeConfig>) -> usize {
    vae.map_or(8, VaeConfig::downscale)
}

/// Height and width of the latent that is asked for.
fn latent(
    args: &BenchArgs,
    own: Option<(u32, u32)>,
    factor: usize,
) -> Result<(usize, usize), Failure> {
    if let Some((height, width)) = args.latent {
        let latent = (height as usize, width as usize);
        return match latent {
            (0, _) | (_, 0) => Err(Failure::Usage("--latent: at least 1x1".into())),
            _ => Ok(latent),
        };
    }
    let (width, height) = args.size.or(own).unwrap_or((DEFAULT_SIDE, DEFAULT_SIDE));
    let latent = (height as usize / factor, width as usize / factor);
    if latent.0 == 0 || latent.1 == 0 {
        return Err(Failure::Usage(format!(
            "{width}×{height} is too small: at least {factor}×{factor}"
        )));
    }
    Ok(latent)
}

/// Sorted times of `repeat` runs.
fn timed(repeat: u32, run: &dyn Fn()) -> Result<Vec<Duration>, Failure> {
    let mut times = Vec::new();
    for _ in 0..repeat {
        if interrupt::asked() {
            return Err(Failure::Interrupted { saved: 0 });
        }
        let started = Instant::now();
        run();
        times.push(started.elapsed());
    }
    times.sort();
    Ok(times)
}

/// Measures and reports one part.
fn one_part(
    args: &BenchArgs,
    part: BenchPart,
    name: &str,
    model: &Model,
    latent: (usize, usize),
    load: Duration,
) -> Result<(), Failure> {
    let measured = if part == BenchPart::Load {
        (loads(args, load)?, Profile::default())
    } else {
        measured(args, &pass(part, model, latent, args.batch.into()))?
    };
    report(args, part, name, latent, measured)
}

/// Sorted times of a pass, after one that counts for nothing but the arithmetic.
fn measured(args: &BenchArgs, run: &dyn Fn()) -> Result<(Vec<Duration>, Profile), Failure> {
    let profiled = || {
        profile::start();
        run();
        profile::stop()
    };
    let first = profiled();
    let times = timed(args.repeat, run)?;
    let profile = if args.profile { profiled() } else { first };
    Ok((times, profile))
}

/// Says what one part took.
fn report(
    args: &BenchArgs,
    part: BenchPart,
    name: &str,
    latent: (usize, usize),
    (times, profile): (Vec<Duration>, Profile),
) -> Result<(), Failure> {
    let (level, precision) = (safelight_kernels::level(), args.model.precision);
    let threads = rayon::current_num_threads();
    let middle = median(&times).as_secs_f64();
    let rate = profile.flops() as f64 / middle / 1e9;
    let peak = args
        .profile
        .then(|| threads as f64 * peak_flops(level, precision) / 1e9);
    let kinds = || profile.rows().filter(|_| args.profile);
    if args.json {
        let kind = |(kind, spent): (Kind, Spent)| {
            let value = json!({ "seconds": spent.time.as_secs_f64(), "flops": spent.flops, "calls": spent.calls });
            (kind.name().to_owned(), value)
        };
        return say::answer_json(&json!({
            "part": part.name(), "model": name, "latent": [latent.0, latent.1], "batch": args.batch,
            "precision": precision.name(), "cpu": level.name(), "threads": threads,
            "median_s": middle, "seconds": times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>(),
            "gflops_per_s": rate, "peak_gflops_per_s": peak, "peak_memory_bytes": machine::peak_memory_bytes(),
            "profile": kinds().map(kind).collect::<serde_json::Map<_, _>>(),
        }));
    }
    let (height, width) = latent;
    let mut text = format!(
        "{name}\n{} at latent {height}×{width}, batch {}, {precision}, {level}, {threads} threads\n\
         {middle:.4} s, median of {}",
        part.name(),
        args.batch,
        times.len()
    );
    if rate > 0.0 {
        text += &format!(", {rate:.0} GFLOP/s");
    }
    if let Some(bytes) = machine::peak_memory_bytes() {
        text += &format!("; {} of memory at most", say::bytes(bytes));
    }
    text.push('\n');
    let row = |(kind, spent): (Kind, Spent)| {
        let seconds = spent.time.as_secs_f64();
        let rate = spent.flops as f64 / seconds / 1e9;
        let (rate, share) = match peak.filter(|_| spent.flops > 0) {
            Some(peak) => (
                format!("{rate:.0} GFLOP/s"),
                format!("{:.0} %", rate / peak * 100.0),
            ),
            None => (String::new(), String::new()),
        };
        let calls = format!("{} calls", spent.calls);
        vec![
            kind.name().to_owned(),
            format!("{seconds:.4} s"),
            calls,
            rate,
            share,
        ]
    };
    let rows: Vec<_> = kinds().map(row).collect();
    if let Some(peak) = peak {
        text += &say::table(&rows, &[1, 2, 3, 4]);
        text += &format!(
            "100 % is {peak:.0} GFLOP/s, products on registers; rates are a direct algorithm's\n"
        );
    }
    say::answer(&text)
}

/// Times of reading the model, the one already read among them.
fn loads(args: &BenchArgs, first: Duration) -> Result<Vec<Duration>, Failure> {
    if args.family.is_some() {
        let what = "loading is measured with --model: random weights are read from nowhere";
        return Err(Failure::Usage(what.into()));
    }
    let entry = choose::entry(&args.model, args.json)?;
    let mut times = vec![first];
    while times.len() < args.repeat as usize {
        if interrupt::asked() {
            return Err(Failure::Interrupted { saved: 0 });
        }
        let started = Instant::now();
        choose::load(&entry, &args.model, None, args.model.ways())?;
        times.push(started.elapsed());
    }
    times.sort();
    Ok(times)
}

impl BenchPart {
    fn name(self) -> &'static str {
        match self {
            BenchPart::Unet => "unet",
            BenchPart::Vae => "vae",
            BenchPart::Text => "text",
            BenchPart::Load => "load",
            BenchPart::Txt2img => "txt2img",
            BenchPart::Fidelity => "fidelity",
        }
    }
}

/// A pass of `part`, one of the networks, for `batch` pictures.
fn pass(
    part: BenchPart,
    model: &Model,
    (height, width): (usize, usize),
    batch: usize,
) -> Box<dyn Fn() + '_> {
    let chunk = encode("a lighthouse on a rock, storm", PromptStyle::A1111).remove(0);
    let text = move || model.text.forward(&chunk.ids, 1);
    match part {
        BenchPart::Text => Box::new(move || {
            for _ in 0..batch {
                drop(text());
            }
        }),
        BenchPart::Unet => {
            let one = text();
            let shape = [batch, one.dim(1), one.dim(2)];
            let context = Tensor::from_slice(&shape, &one.data().repeat(batch));
            let latent = wave(&[batch, height, width, model.unet.config().in_channels]);
            let times = vec![500.0; batch];
            Box::new(move || drop(model.unet.forward(&latent, &times, &context)))
        }
        BenchPart::Vae => {
            let latent = wave(&[batch, height, width, model.vae.config().latent_channels]);
            Box::new(move || drop(model.vae.decode(&latent)))
        }
        BenchPart::Load | BenchPart::Txt2img | BenchPart::Fidelity => {
            unreachable!("{part:?} is no pass of a network")
        }
    }
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

/// Random weights of a family.
fn random(args: &BenchArgs, progress: &mut Progress) -> Result<Subject, Failure> {
    progress.stage("making random weights");
    let started = Instant::now();
    let model = Model::random_sd15(0, args.model.ways())
        .map_err(|error| Failure::Machine(error.to_string()))?;
    Ok(Subject {
        name: "random weights of SD 1.5".into(),
        size: None,
        model,
        load: started.elapsed(),
    })
}

fn subject(args: &BenchArgs, progress: &mut Progress) -> Result<Subject, Failure> {
    if args.family.is_some() {
        return random(args, progress);
    }
    let entry = choose::entry(&args.model, args.json)?;
    progress.stage(&format!("loading {}", entry.name));
    let started = Instant::now();
    let model = choose::load(&entry, &args.model, None, args.model.ways())?;
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
            Tensor::from_slice(
                &[count, context.dim(1), context.dim(2)],
                &context.data().repeat(count),
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
    Tensor::from_slice(
        shape,
        &(0..count)
            .map(|idx: usize| (idx as f32 * 0.7).sin())
            .collect::<Vec<f32>>(),
    )
}
