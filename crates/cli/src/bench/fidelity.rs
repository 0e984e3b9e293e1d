//! `safelight bench fidelity`: what bf16 and int8 change, in the UNet's answers and in pictures, beside f32.

use std::ops::ControlFlow;

use safelight_diffusion::likeness::{Likeness, likeness, psnr, ssim};
use safelight_diffusion::load::Model;
use safelight_diffusion::nn::HeavyTailedWeights;
use safelight_diffusion::noise::{NoiseRng, NoiseSource};
use safelight_diffusion::pipeline::{Request, RgbImage};
use safelight_diffusion::precision::{Precision, Ways};
use safelight_diffusion::prompt::{PromptStyle, encode};
use safelight_tensor::Tensor;
use serde_json::{Value, json};

use super::{downscale, latent};
use crate::args::BenchArgs;
use crate::error::Failure;
use crate::progress::Progress;
use crate::{choose, generate, interrupt, say};

/// Times at which the UNet is asked, from pure noise to nearly none.
const TIMES: [usize; 8] = [999, 874, 749, 624, 499, 374, 249, 124];

/// What is drawn; seeds count from 1.
const PROMPTS: [&str; 3] = [
    "a house with a red roof on green hills under a sunny sky",
    "a sailboat with a yellow sail on the sea at sunset",
    "snowy mountains on a starry night, moon on the right",
];

/// What one precision made of the same questions.
struct Answers {
    /// The UNet's, for each time.
    outputs: Vec<Vec<f32>>,
    pictures: Vec<RgbImage>,
    /// Of the first picture, `[H, W, C]`: what the UNet is asked about.
    latent: Vec<f32>,
}

pub(super) fn run(args: &BenchArgs, progress: &mut Progress) -> Result<(), Failure> {
    if args.profile || args.batch != 1 {
        let what = "bench fidelity draws one picture at a time and takes no times: no --batch, no --profile";
        return Err(Failure::Usage(what.into()));
    }
    let level = safelight_kernels::level();
    let subject = Subject::of(args)?;
    let exact = subject.answers(Precision::F32, None, progress)?;
    let asked = args.model.precision;
    let others = Precision::ALL.into_iter().filter(|&precision| {
        precision != Precision::F32 && (asked == Precision::F32 || precision == asked)
    });
    let mut compared = Vec::new();
    for precision in others {
        let found = subject.answers(precision, Some(&exact.latent), progress)?;
        compared.push((precision, Comparison::new(&exact, &found)));
    }
    progress.clear();
    let (width, height) = subject.size;
    if args.json {
        let precisions: Vec<_> = compared
            .iter()
            .map(|(precision, found)| found.json(*precision))
            .collect();
        return say::answer_json(&json!({
            "model": subject.name, "width": width, "height": height, "steps": subject.steps(), "cpu": level.name(),
            "reference": "f32", "precisions": precisions,
        }));
    }
    let mut text = format!(
        "{} at {width}×{height}, {level}, beside f32\n\
         The UNet's answers to the same noisy latents, and pictures of {} steps with the same seeds:\n\n",
        subject.name,
        subject.steps()
    );
    let rows = compared
        .iter()
        .flat_map(|(precision, found)| found.rows(*precision));
    text += &say::table(&rows.collect::<Vec<_>>(), &[2, 3]);
    say::answer(&text)
}

/// What is drawn with.
struct Subject<'a> {
    args: &'a BenchArgs,
    name: String,
    size: (usize, usize),
    request: Request,
    entry: Option<safelight_catalog::Entry>,
}

impl Subject<'_> {
    fn of(args: &BenchArgs) -> Result<Subject<'_>, Failure> {
        let entry = match args.family {
            Some(_) => None,
            None => Some(choose::entry(&args.model, args.json)?),
        };
        let usual = match &entry {
            Some(entry) => entry.usual_request(),
            None => Request::default(),
        };
        let own = entry.as_ref().and_then(|entry| entry.native_size);
        let vae = entry
            .as_ref()
            .and_then(|entry| entry.info.as_ref()?.vae.as_ref());
        let factor = downscale(vae);
        let (height, width) = latent(args, own, factor)?;
        let size = (width * factor, height * factor);
        let request = Request {
            size: Some(size),
            steps: args.steps.map_or(usual.steps, usize::from),
            ..usual
        };
        let name = match &entry {
            Some(entry) => entry.name.clone(),
            None => "heavy-tailed random weights of SD 1.5".to_owned(),
        };
        Ok(Subject {
            args,
            name,
            size,
            request,
            entry,
        })
    }

    fn steps(&self) -> usize {
        self.request.steps
    }

    fn model(&self, precision: Precision) -> Result<Model, Failure> {
        let ways = Ways {
            precision,
            ..self.args.model.ways()
        };
        match &self.entry {
            Some(entry) => choose::load(entry, &self.args.model, None, ways),
            None => Model::sd15_of(&HeavyTailedWeights { seed: 0 }, ways)
                .map_err(|error| Failure::Machine(error.to_string())),
        }
    }

    /// Pictures, and the UNet's answers about `latent` (or the first picture's own) at all [`TIMES`].
    fn answers(
        &self,
        precision: Precision,
        latent: Option<&[f32]>,
        progress: &mut Progress,
    ) -> Result<Answers, Failure> {
        progress.stage(&format!("loading in {precision}"));
        let model = self.model(precision)?;
        progress.stage(&format!("drawing in {precision}"));
        let (pictures, own) = self.pictures(&model)?;
        let latent = latent.map_or(own, <[f32]>::to_vec);
        progress.stage(&format!("asking the UNet in {precision}"));
        let outputs = TIMES.iter().map(|&time| self.ask(&model, &latent, time));
        Ok(Answers {
            outputs: outputs.collect::<Result<_, _>>()?,
            pictures,
            latent,
        })
    }

    /// The pictures, and the first one's latent in `[H, W, C]`.
    fn pictures(&self, model: &Model) -> Result<(Vec<RgbImage>, Vec<f32>), Failure> {
        let (mut pictures, mut latent) = (Vec::new(), Vec::new());
        for (prompt, seed) in PROMPTS.iter().zip(1..) {
            let request = Request {
                prompt: (*prompt).into(),
                seed,
                ..self.request.clone()
            };
            let drawn = model.generate(&request, |_| match interrupt::asked() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            });
            let picture = drawn
                .map_err(|error| generate::failure(&error, 0))?
                .remove(0);
            if latent.is_empty() {
                let [_, channels, height, width] = *picture.latent.shape else {
                    unreachable!("a latent has four dimensions")
                };
                let values =
                    Tensor::from_nchw(&[1, channels, height, width], &picture.latent.values);
                latent = values.to_vec();
            }
            pictures.push(picture.image);
        }
        Ok((pictures, latent))
    }

    /// The UNet's answer about `latent` with noise as at `time`: √ᾱ · x + √(1 − ᾱ) · ε (Ho et al. 2020, arXiv:2006.11239, equation 4).
    ///
    /// Random networks are asked about noise with long tails: Student's t with four degrees of freedom, of variance 1.
    fn ask(&self, model: &Model, latent: &[f32], time: usize) -> Result<Vec<f32>, Failure> {
        if interrupt::asked() {
            return Err(Failure::Interrupted { saved: 0 });
        }
        let factor = model.vae.config().downscale();
        let (width, height) = (self.size.0 / factor, self.size.1 / factor);
        let mut rng = NoiseRng::seeded(NoiseSource::Cpu, time as u64);
        let mut noise = rng.randn(latent.len());
        if self.entry.is_none() {
            // A normal number over the root of the mean square of four others has that distribution, of variance 2.
            let others = rng.randn(4 * latent.len());
            for (noise, others) in noise.iter_mut().zip(others.chunks_exact(4)) {
                let mean = others.iter().map(|x| x * x).sum::<f32>() / 4.0;
                *noise /= (2.0 * mean).sqrt();
            }
        }
        let alpha = model.info.betas.alphas_cumprod()[time];
        let noisy = latent.iter().zip(noise);
        let noisy = noisy.map(|(x, noise)| alpha.sqrt() * x + (1.0 - alpha).sqrt() * noise);
        let channels = model.unet.config().in_channels;
        if channels * width * height != latent.len() {
            let why = format!("its UNet takes {channels} channels; only those of 4 are compared");
            return Err(Failure::Usage(format!("{}: {why}", self.name)));
        }
        let x = Tensor::from_slice(&[1, height, width, channels], &noisy.collect::<Vec<f32>>());
        let text = model
            .text
            .forward(&encode(PROMPTS[0], PromptStyle::A1111).remove(0).ids, 1);
        Ok(model.unet.forward(&x, &[time as f32], &text).to_vec())
    }
}

/// How much one precision's answers are like f32's.
struct Comparison {
    outputs: Vec<Likeness>,
    /// Decibels and, of pictures that are not tiny, structural similarity.
    pictures: Vec<(f64, Option<f64>)>,
}

impl Comparison {
    fn new(exact: &Answers, found: &Answers) -> Comparison {
        let outputs = exact.outputs.iter().zip(&found.outputs);
        let pictures = exact.pictures.iter().zip(&found.pictures);
        Comparison {
            outputs: outputs
                .map(|(exact, found)| likeness(exact, found))
                .collect(),
            pictures: pictures
                .map(|(exact, found)| (psnr(exact, found), ssim(exact, found)))
                .collect(),
        }
    }

    fn json(&self, precision: Precision) -> Value {
        let outputs = self.outputs.iter().zip(TIMES).map(|(found, time)| {
            json!({ "t": time, "cosine": found.cosine, "relative_rms": found.relative_rms, "max_abs": found.worst })
        });
        // JSON has no infinity: equal pictures have no decibels.
        let pictures = self.pictures.iter().zip(1..).map(|((psnr, ssim), seed)| {
            json!({ "seed": seed, "psnr_db": psnr.is_finite().then_some(psnr), "ssim": ssim })
        });
        json!({
            "precision": precision.name(), "outputs": outputs.collect::<Vec<_>>(), "pictures": pictures.collect::<Vec<_>>(),
        })
    }

    fn rows(&self, precision: Precision) -> Vec<Vec<String>> {
        let outputs = self.outputs.iter().zip(TIMES).map(|(found, time)| {
            vec![
                precision.to_string(),
                format!("time {time}"),
                format!("cosine {:.6}", found.cosine),
                format!("relative error {:.2e}", found.relative_rms),
            ]
        });
        let pictures = self.pictures.iter().zip(1..).map(|((psnr, ssim), seed)| {
            let ssim = ssim.map_or_else(|| "too small".to_owned(), |ssim| format!("{ssim:.4}"));
            vec![
                precision.to_string(),
                format!("picture {seed}"),
                format!("PSNR {psnr:.1} dB"),
                format!("SSIM {ssim}"),
            ]
        });
        outputs.chain(pictures).collect()
    }
}
