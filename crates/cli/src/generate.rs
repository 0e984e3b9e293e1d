//! The four jobs: from arguments to a request, from pictures to files.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use safelight_catalog::{Entry, short};
use safelight_diffusion::infotext::Infotext;
use safelight_diffusion::load::{ModelFiles, ModelInfo, Part};
use safelight_diffusion::pipeline::{
    GenerateError, Inpaint, Job, Mask, Outpaint, Passes, Phase, Picture, Request, Residence,
    RgbImage, memory_bytes,
};
use safelight_diffusion::precision::{Precision, Ways};
use safelight_diffusion::prompt;
use safelight_diffusion::sampler::{Flavour, Sampler};
use safelight_diffusion::schedule::Schedule;
use serde_json::{Value, json};

use crate::args::{GenerateArgs, Img2imgArgs, InpaintArgs, OutpaintArgs};
use crate::choose::Hashes;
use crate::error::Failure;
use crate::output::{Output, Rgb};
use crate::progress::{Progress, short as short_time};
use crate::{choose, interrupt, machine, picture, say, shortcuts, trace};

/// Seeds that chance picks have as many bits as A1111's.
const SEED_MASK: u64 = 0xffff_ffff;

pub(crate) fn txt2img(args: &GenerateArgs) -> Result<(), Failure> {
    run(args, Job::Txt2Img)
}

pub(crate) fn img2img(args: &Img2imgArgs) -> Result<(), Failure> {
    let image = read_image(&args.image.image)?;
    run(
        &args.generate,
        Job::Img2Img {
            image,
            strength: args.denoise,
        },
    )
}

pub(crate) fn inpaint(args: &InpaintArgs) -> Result<(), Failure> {
    let image = read_image(&args.image.image)?;
    let mut mask = picture::read_mask(&args.mask)?;
    if (mask.width() as usize, mask.height() as usize) != (image.width(), image.height()) {
        return Err(Failure::Picture(format!(
            "the mask {} is {}×{} pixels, the picture {} is {}×{}: they must be of the same size",
            args.mask.display(),
            mask.width(),
            mask.height(),
            args.image.image.display(),
            image.width(),
            image.height()
        )));
    }
    if args.invert_mask {
        mask.pixels_mut()
            .for_each(|pixel| pixel[0] = 255 - pixel[0]);
    }
    if mask.pixels().all(|pixel| pixel[0] == 0) {
        let inverted = if args.invert_mask { ", inverted," } else { "" };
        say::note(&format!(
            "note: the mask {}{inverted} is all black: nothing will be drawn anew",
            args.mask.display()
        ));
    }
    let mask = Mask::new(
        mask.width() as usize,
        mask.height() as usize,
        mask.into_raw(),
    );
    let job = Inpaint {
        strength: args.denoise,
        mask_blur: args.mask_blur,
        content: args.content,
        overlay: !args.no_overlay,
        ..Inpaint::new(image, mask)
    };
    run(&args.generate, Job::Inpaint(job))
}

pub(crate) fn outpaint(args: &OutpaintArgs) -> Result<(), Failure> {
    if [args.left, args.right, args.up, args.down]
        .iter()
        .all(|&side| side == 0)
    {
        return Err(Failure::Usage(
            "say how far to go on: --left, --right, --up or --down, in pixels".into(),
        ));
    }
    let asked = &args.generate;
    if asked.size.is_some() || asked.width.is_some() || asked.height.is_some() {
        return Err(Failure::Usage("outpainting has no size of its own: it follows from the picture and --left, --right, --up, --down".into()));
    }
    let job = Outpaint {
        left: args.left as usize,
        right: args.right as usize,
        up: args.up as usize,
        down: args.down as usize,
        strength: args.denoise,
        mask_blur: args.mask_blur,
        content: args.content,
        ..Outpaint::new(read_image(&args.image.image)?)
    };
    run(&args.generate, Job::Outpaint(job))
}

fn read_image(path: &Path) -> Result<RgbImage, Failure> {
    let image = picture::read_rgb(path)?;
    Ok(RgbImage::new(
        image.width() as usize,
        image.height() as usize,
        image.into_raw(),
    ))
}

fn run(args: &GenerateArgs, job: Job) -> Result<(), Failure> {
    interrupt::listen();
    machine::prepare(args.model.threads)?;
    let entry = choose::entry(&args.model, args.quiet)?;
    let request = request(args, job, &entry)?;
    let tiny = choose::tiny(args.shortcuts.tiny_vae.as_ref(), &args.model.folders)?;
    let ways = affordable(&entry, &request, args.model.ways())?;
    if ways != args.model.ways() && !args.quiet {
        say::note("note: memory is short: computing as with --low-memory, which is slower");
    }
    let output = Output::new(args.output.as_deref())?;
    args.trace
        .as_deref()
        .map_or(Ok(()), trace::refuse_to_overwrite)?;
    let mut progress = Progress::new(args.quiet);
    let vae = args.model.vae.as_deref();
    let files = choose::open(&entry, &args.model, tiny.as_deref(), ways)?;
    let mut job = Drawing {
        hashes: Some(choose::hash_meanwhile(&entry, vae)),
        entry,
        vae: vae.map(|path| (path, None)),
        tiny: tiny.is_some(),
        request: &request,
        output: &output,
        quiet: args.quiet,
        loading: Duration::ZERO,
    };
    let (saved, pictures) = job.draw(&files, &mut progress)?;
    progress.clear();
    if let Some(path) = &args.trace {
        trace::write(path, &pictures)?;
    }
    let (entry, loading) = (job.entry, job.loading);
    let elapsed = progress.elapsed() - loading;
    if args.json {
        let pictures: Vec<Value> = saved.iter().map(Saved::to_json).collect();
        return say::answer_json(&json!({
            "pictures": pictures,
            "seed": request.seed,
            "seconds": elapsed.as_secs_f64(),
            "loading_seconds": loading.as_secs_f64(),
            "shortcuts": shortcuts::to_json(&request.shortcuts, tiny.as_deref()),
            "model": { "name": entry.name, "hash": entry.sha256.as_deref().map(short), "path": entry.path.as_ref().map(|path| path.to_string_lossy()) },
        }));
    }
    if !args.quiet {
        say::note(&format!(
            "{} in {}, beside {} of loading",
            say::plural(saved.len() as u64, "picture"),
            short_time(elapsed),
            short_time(loading)
        ));
    }
    say::answer(
        &saved
            .iter()
            .map(|saved| format!("{}\n", saved.path.display()))
            .collect::<String>(),
    )
}

/// The request that the arguments mean, with a seed and a size.
fn request(args: &GenerateArgs, job: Job, entry: &Entry) -> Result<Request, Failure> {
    let asked = args
        .size
        .map_or((args.width, args.height), |(width, height)| {
            (Some(width), Some(height))
        });
    // One side alone leaves the other as it would be.
    let own = match &job {
        Job::Txt2Img => entry.usual_request().size,
        Job::Img2Img { image, .. } => Some((image.width(), image.height())),
        Job::Inpaint(inpaint) => Some((inpaint.image.width(), inpaint.image.height())),
        Job::Outpaint(_) => None,
    };
    let size = match asked {
        (None, None) if matches!(job, Job::Txt2Img) => own,
        (None, None) => None,
        (width, height) => {
            let own = own.unwrap_or((512, 512));
            Some((
                width.map_or(own.0, |width| width as usize),
                height.map_or(own.1, |height| height as usize),
            ))
        }
    };
    let seed = u64::try_from(args.seed)
        .unwrap_or_else(|_| RandomState::new().build_hasher().finish() & SEED_MASK);
    // Whoever names a sampler wants its own schedule, not the one that goes with the model's.
    let usual = entry.usual_request();
    let schedule = args.schedule.unwrap_or(match args.sampler {
        None => usual.schedule,
        Some(_) => Schedule::Automatic,
    });
    let own = entry.defaults.sampler;
    let sampler = args.sampler.or(own).unwrap_or(Sampler::EulerAncestral);
    Ok(Request {
        job,
        prompt: args.prompt.clone(),
        negative_prompt: args.negative.clone(),
        size,
        steps: args.steps.unwrap_or(usual.steps),
        cfg_scale: args.cfg.unwrap_or(usual.cfg_scale),
        sampler,
        schedule,
        flavour: args.flavour,
        seed,
        batch: args.batch as usize,
        noise_source: args.rng,
        clip_skip: args.clip_skip.into(),
        shortcuts: args.shortcuts.shortcuts(),
        trace: args.trace.is_some(),
        ..Request::default()
    })
}

/// The ways that were asked for, or leaner ones if those would not fit into memory; what would not fit at all is refused
/// before anything is read.
fn affordable(entry: &Entry, request: &Request, ways: Ways) -> Result<Ways, Failure> {
    let Some(info) = &entry.info else {
        return Ok(ways);
    };
    let needs = |ways| {
        let needed = memory_bytes(info, request, ways, Residence::Staged);
        needed.map_err(|error| failure(&error, 0))
    };
    let (available, whose) = machine::memory_bytes();
    let lean = Ways { lean: true, ..ways };
    for ways in [ways, lean] {
        if needs(ways)? <= available {
            return Ok(ways);
        }
    }
    let needed = needs(lean)?;
    let size = request.size.map_or(String::new(), |(width, height)| {
        format!(" of {width}×{height}")
    });
    let shorter = if request.prompt.len().max(request.negative_prompt.len()) > 4000 {
        " or a shorter prompt"
    } else {
        ""
    };
    let coarser = match ways.precision {
        Precision::F32 => " or --precision bf16",
        _ => "",
    };
    Err(Failure::Usage(format!(
        "a picture{size} would need about {} of memory, {whose} {}; ask for a smaller --size{shorter}{coarser}",
        say::bytes(needed),
        say::bytes(available)
    )))
}

/// What is worth a word before the work begins.
fn notes(entry: &Entry, info: &ModelInfo, request: &Request) -> Vec<String> {
    let hash = entry
        .sha256
        .as_deref()
        .map_or(String::new(), |hash| format!(", {}", short(hash)));
    let family = entry.family().map_or("", |family| family.name());
    let built_in = if entry.path.is_none() {
        ", built in"
    } else {
        ""
    };
    let mut notes = vec![format!(
        "model {} ({family}{hash}{built_in}), seed {}",
        entry.name, request.seed
    )];
    let asked = match (&request.job, request.size) {
        (Job::Img2Img { image, .. }, None) => Some((image.width(), image.height())),
        (_, size) => size,
    };
    if let (Some((width, height)), Ok(size)) = (asked, info.size_of(request))
        && (width, height) != size
    {
        let factor = info.vae.as_ref().map_or(8, |vae| vae.downscale());
        notes.push(format!(
            "note: {width}×{height} is rounded down to {}×{}: sizes are multiples of {factor}",
            size.0, size.1
        ));
    }
    let networks = [&request.prompt, &request.negative_prompt]
        .into_iter()
        .any(|text| text.contains("<lora:") || text.contains("<lyco:"));
    if networks {
        notes.push("note: LoRAs are not supported yet; <lora:…> is read as plain text".into());
    }
    let unseen = (request.flavour == Flavour::Diffusers)
        .then(|| prompt::cut_off(&request.prompt))
        .flatten();
    if let Some(rest) = unseen {
        notes.push(format!(
            "note: in diffusers' flavour a prompt ends after 75 tokens; not seen: {}",
            say::tame(&rest, 200)
        ));
    }
    notes
}

/// One job on its way to files.
struct Drawing<'a> {
    entry: Entry,
    /// Of the model and the VAE, while they are computed beside the loading.
    hashes: Option<JoinHandle<Hashes>>,
    /// The file that the VAE is from, if it is not the model's own, and its hash.
    vae: Option<(&'a Path, Option<String>)>,
    /// Whether a tiny decoder is used.
    tiny: bool,
    request: &'a Request,
    output: &'a Output,
    quiet: bool,
    /// What reading networks took so far.
    loading: Duration,
}

/// A picture that is in a file.
struct Saved {
    path: PathBuf,
    seed: u64,
    width: usize,
    height: usize,
    parameters: String,
    passes: Passes,
}

impl Saved {
    fn to_json(&self) -> Value {
        json!({
            "path": self.path.to_string_lossy(), "seed": self.seed, "width": self.width, "height": self.height,
            "parameters": self.parameters,
            "unet_passes": { "full": self.passes.full, "cached": self.passes.cached },
        })
    }
}

impl Drawing<'_> {
    /// Draws all pictures and writes each as soon as it is done.
    fn draw(
        &mut self,
        files: &ModelFiles,
        progress: &mut Progress,
    ) -> Result<(Vec<Saved>, Vec<Picture>), Failure> {
        let paths = |saved: Vec<Saved>| saved.into_iter().map(|saved| saved.path).collect();
        let mut saved = Vec::new();
        let mut write_failure = None;
        let mut loading_since = Some(Instant::now());
        let result = files.generate(self.request, |now| {
            if interrupt::asked() {
                return ControlFlow::Break(());
            }
            self.loading += loading_since
                .take()
                .map_or(Duration::ZERO, |since| since.elapsed());
            match now.phase {
                Phase::Load(part) => {
                    loading_since = Some(Instant::now());
                    progress.stage(&format!("loading {}", self.what(part)));
                }
                Phase::Text => progress.stage("reading the prompt"),
                Phase::Encode => progress.stage("encoding the picture"),
                Phase::Steps { done, count } => {
                    self.introduce(files, progress);
                    progress.step((now.image, now.image_count), done, count)
                }
                Phase::Decode => progress.stage("decoding the picture"),
                Phase::Done(picture) => match self.save(picture, now.image) {
                    Ok(picture) => saved.push(picture),
                    Err(failure) => {
                        write_failure = Some(failure);
                        return ControlFlow::Break(());
                    }
                },
            }
            ControlFlow::Continue(())
        });
        match (write_failure, result) {
            (Some(failure), _) => Err(failure.after(paths(saved))),
            // Everything may have been written when the signal came.
            (None, Err(GenerateError::Stopped)) if saved.len() == self.request.batch => {
                Ok((saved, Vec::new()))
            }
            (None, Err(error)) => Err(failure(&error, saved.len()).after(paths(saved))),
            (None, Ok(pictures)) => Ok((saved, pictures)),
        }
    }

    /// What is read of the model, for the line of progress.
    fn what(&self, part: Part) -> String {
        format!("{}: {}", self.entry.name, part.name())
    }

    /// Waits for the hashes and says what is drawn with, before the first step.
    fn introduce(&mut self, files: &ModelFiles, progress: &mut Progress) {
        let Some(hashes) = self.hashes.take() else {
            return;
        };
        let hashes = hashes.join().unwrap_or_default();
        self.entry.sha256 = hashes.model;
        if let Some((_, hash)) = &mut self.vae {
            *hash = hashes.vae;
        }
        if !self.quiet {
            progress.clear();
            notes(&self.entry, files.info(), self.request)
                .iter()
                .for_each(|note| say::note(note));
        }
    }

    fn save(&self, picture: &Picture, idx: usize) -> Result<Saved, Failure> {
        let (width, height) = (picture.image.width(), picture.image.height());
        let parameters = self.parameters(picture).to_string();
        let rgb = Rgb {
            width: width as u32,
            height: height as u32,
            pixels: picture.image.bytes(),
        };
        let path = self
            .output
            .write(&rgb, picture.seed, &parameters, idx, self.request.batch)?;
        Ok(Saved {
            path,
            seed: picture.seed,
            width,
            height,
            parameters,
            passes: picture.passes,
        })
    }

    /// What A1111 would write, in its order.
    fn parameters(&self, picture: &Picture) -> Infotext {
        let request = self.request;
        let mut info = Infotext {
            prompt: request.prompt.clone(),
            negative_prompt: request.negative_prompt.clone(),
            fields: Vec::new(),
        };
        info.push("Steps", request.steps);
        info.push("Sampler", request.sampler.name());
        info.push("Schedule type", request.schedule.name());
        info.push("CFG scale", request.cfg_scale);
        info.push("Seed", picture.seed);
        info.push(
            "Size",
            format!("{}x{}", picture.image.width(), picture.image.height()),
        );
        if let Some(hash) = &self.entry.sha256 {
            info.push("Model hash", short(hash));
        }
        info.push("Model", &self.entry.name);
        if let Some((path, hash)) = &self.vae {
            if let Some(hash) = hash {
                info.push("VAE hash", short(hash));
            }
            // With its ending, unlike the model's: so A1111 has it.
            let name = path.file_name().unwrap_or(path.as_os_str());
            info.push("VAE", name.to_string_lossy());
        }
        let (strength, masked) = match &request.job {
            Job::Txt2Img => (None, None),
            Job::Img2Img { strength, .. } => (Some(*strength), None),
            Job::Inpaint(job) => (Some(job.strength), Some((job.mask_blur, job.content))),
            Job::Outpaint(job) => (Some(job.strength), Some((job.mask_blur, job.content))),
        };
        if let Some(strength) = strength {
            info.push("Denoising strength", strength);
        }
        if request.clip_skip > 1 {
            info.push("Clip skip", request.clip_skip);
        }
        info.push("RNG", request.noise_source.name());
        if let Some((blur, content)) = masked {
            info.push("Mask blur", blur);
            info.push("Masked content", content.name());
        }
        if let Job::Outpaint(job) = &request.job {
            info.push(
                "Outpaint",
                format!(
                    "left {} right {} up {} down {}",
                    job.left, job.right, job.up, job.down
                ),
            );
        }
        shortcuts::describe(&request.shortcuts, request.flavour, self.tiny, &mut info);
        if request.flavour == Flavour::Diffusers {
            info.push("Flavour", request.flavour.name());
        }
        info.push("Version", concat!("safelight ", env!("CARGO_PKG_VERSION")));
        info
    }
}

/// Sorts the engine's errors by who can act; `saved` pictures are in files already.
pub(crate) fn failure(error: &GenerateError, saved: usize) -> Failure {
    match error {
        GenerateError::Stopped => Failure::Interrupted { saved },
        GenerateError::MaskSize { .. } => Failure::Picture(error.to_string()),
        GenerateError::Model { .. }
        | GenerateError::NotFinite { .. }
        | GenerateError::Load { .. } => Failure::Model(error.to_string()),
        _ => Failure::Usage(error.to_string()),
    }
}
