//! `safelight bench txt2img`: a whole drawing, stage by stage, and the memory it took.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use safelight_diffusion::load::{Model, ModelFiles};
use safelight_diffusion::pipeline::{GenerateError, Phase, Picture, Progress as Told, Request};
use safelight_diffusion::sampler::Sampler;
use serde_json::{Map, Value, json};

use super::{DEFAULT_SIDE, downscale, latent, median};
use crate::args::BenchArgs;
use crate::error::Failure;
use crate::progress::Progress;
use crate::{choose, generate, interrupt, machine, say};

/// Steps where none are asked for.
const STEPS: u16 = 20;

/// Stages of a drawing, in their order.
const STAGES: [&str; 4] = ["load", "text", "steps", "decode"];

/// What is drawn with: out of files, as `safelight txt2img` does, or with random weights, which are in no file.
enum Subject {
    Files(Box<ModelFiles>),
    Random(Box<Model>),
}

impl Subject {
    fn generate(
        &self,
        request: &Request,
        on_progress: impl FnMut(Told<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Picture>, GenerateError> {
        match self {
            Subject::Files(files) => files.generate(request, on_progress),
            Subject::Random(model) => model.generate(request, on_progress),
        }
    }
}

/// What one drawing took: each of [`STAGES`], and all of it.
#[derive(Default)]
struct Times {
    stages: [Duration; STAGES.len()],
    total: Duration,
}

pub(super) fn run(args: &BenchArgs, progress: &mut Progress) -> Result<(), Failure> {
    if args.profile {
        let what = "--profile is for one network: bench unet, vae or text";
        return Err(Failure::Usage(what.into()));
    }
    let Named {
        name,
        size: own,
        subject,
    } = subject(args, progress)?;
    let factor = match &subject {
        Subject::Files(files) => downscale(files.info().vae.as_ref()),
        Subject::Random(model) => model.vae.config().downscale(),
    };
    let (height, width) = latent(args, own, factor)?;
    let steps = args.steps.unwrap_or(STEPS);
    let request = Request {
        prompt: "a lighthouse on a rock, storm".into(),
        size: Some((width * factor, height * factor)),
        steps: steps.into(),
        sampler: Sampler::EulerAncestral,
        batch: args.batch.into(),
        ..Request::default()
    };
    let mut all = Vec::new();
    for _ in 0..args.repeat {
        progress.stage("measuring txt2img");
        all.push(drawing(&subject, &request)?);
    }
    progress.clear();
    report(args, &name, &request, &all)
}

/// A subject, what it is called, and its own picture size, if it has one.
struct Named {
    name: String,
    size: Option<(u32, u32)>,
    subject: Subject,
}

fn subject(args: &BenchArgs, progress: &mut Progress) -> Result<Named, Failure> {
    if args.family.is_some() {
        let found = super::random(args, progress)?;
        return Ok(Named {
            name: found.name,
            size: found.size,
            subject: Subject::Random(Box::new(found.model)),
        });
    }
    let entry = choose::entry(&args.model, args.json)?;
    let files = choose::open(&entry, &args.model, None, args.model.ways())?;
    Ok(Named {
        name: entry.name,
        size: entry.native_size,
        subject: Subject::Files(Box::new(files)),
    })
}

/// Draws once and keeps nothing but the times.
fn drawing(subject: &Subject, request: &Request) -> Result<Times, Failure> {
    let mut times = Times::default();
    let started = Instant::now();
    let (mut stage, mut since) = (0, started);
    let drawn = subject.generate(request, |now| {
        let moment = Instant::now();
        times.stages[stage] += moment - since;
        since = moment;
        stage = match now.phase {
            Phase::Load(_) => 0,
            Phase::Text => 1,
            Phase::Encode | Phase::Steps { .. } => 2,
            Phase::Decode | Phase::Done(_) => 3,
        };
        match interrupt::asked() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    drawn.map_err(|error| generate::failure(&error, 0))?;
    times.total = started.elapsed();
    Ok(times)
}

fn report(args: &BenchArgs, name: &str, request: &Request, all: &[Times]) -> Result<(), Failure> {
    let middle = |of: &dyn Fn(&Times) -> Duration| {
        let mut sorted: Vec<Duration> = all.iter().map(of).collect();
        sorted.sort();
        median(&sorted).as_secs_f64()
    };
    let total = middle(&|times| times.total);
    let stages: Vec<(&str, f64)> = STAGES
        .iter()
        .enumerate()
        .map(|(idx, stage)| (*stage, middle(&|times| times.stages[idx])))
        .collect();
    let drawn_steps = (request.steps * request.batch) as f64;
    let step = middle(&|times| times.stages[2]) / drawn_steps;
    let (width, height) = request
        .size
        .unwrap_or((DEFAULT_SIDE as usize, DEFAULT_SIDE as usize));
    let (level, precision) = (safelight_kernels::level(), args.model.precision);
    let threads = rayon::current_num_threads();
    let peak = machine::peak_memory_bytes();
    if args.json {
        let stages: Map<String, Value> = stages
            .iter()
            .map(|(stage, seconds)| ((*stage).to_owned(), json!(seconds)))
            .collect();
        return say::answer_json(&json!({
            "part": "txt2img", "model": name, "width": width, "height": height, "batch": request.batch,
            "steps": request.steps, "cfg_scale": request.cfg_scale, "precision": precision.name(),
            "low_memory": args.model.low_memory, "cpu": level.name(), "threads": threads,
            "median_s": total, "seconds": all.iter().map(|times| times.total.as_secs_f64()).collect::<Vec<_>>(),
            "stages": stages, "step_s": step, "peak_memory_bytes": peak,
        }));
    }
    let mut text = format!(
        "{name}\ntxt2img at {width}×{height}, {} steps, guidance {}, batch {}, {precision}, {level}, {threads} threads\n\
         {total:.4} s, median of {}",
        request.steps,
        request.cfg_scale,
        request.batch,
        all.len()
    );
    if let Some(bytes) = peak {
        text += &format!("; {} of memory at most", say::bytes(bytes));
    }
    text.push('\n');
    let rows: Vec<Vec<String>> = stages
        .iter()
        .map(|(stage, seconds)| {
            let each = match *stage {
                "steps" => format!("{step:.4} s a step"),
                _ => String::new(),
            };
            vec![(*stage).to_owned(), format!("{seconds:.4} s"), each]
        })
        .collect();
    text += &say::table(&rows, &[1, 2]);
    say::answer(&text)
}
