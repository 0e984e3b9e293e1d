//! The command line: what can be said, in the words A1111's users know.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueHint};
use safelight_diffusion::noise::NoiseSource;
use safelight_diffusion::pipeline::MaskedContent;
use safelight_diffusion::precision::{Precision, Ways};
use safelight_diffusion::sampler::{Flavour, STEPS_MAX, Sampler};
use safelight_diffusion::schedule::Schedule;

use crate::files::{FileCommand, WITH_LIMIT, WITHOUT_MAX_HEADER, limit, max_header};
use crate::shortcuts::ShortcutArgs;

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 the machine failed (nothing can be written there …);
2 the request is wrong; 3 the model is wrong (not found, damaged, of another
family); 4 a picture or mask is wrong; 130 Ctrl-C";

const EXAMPLES: &str = "\
Examples:
  safelight txt2img \"a house with a red roof on green hills under a sunny sky\"
  safelight txt2img \"a lighthouse, (stormy sea:1.2)\" -n \"blurry\" --steps 30 --sampler \"DPM++ 2M\" --schedule Karras
  safelight img2img \"the same in winter\" -i summer.png --denoising-strength 0.6
  safelight inpaint \"a boat\" -i sea.png -m mask.png
  safelight outpaint \"wide hills\" -i house.png --left 64 --right 64
  safelight models
  safelight ls model.safetensors";

/// Draws with Stable Diffusion; reads, checks, edits and converts tensor files
#[derive(Debug, Parser)]
#[command(name = "safelight", version, after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Keep what is fetched from URLs in this folder
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) cache_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Draw a picture from text
    #[command(after_help = format!("Example:\n  safelight txt2img \"a red house\" --size 512x768 --steps 30 --seed 42\n\n{EXIT_CODES}"))]
    Txt2img(GenerateArgs),
    /// Draw a picture anew, after a text
    #[command(after_help = format!("Example:\n  safelight img2img \"in winter\" -i summer.png --denoising-strength 0.6\n\n{EXIT_CODES}"))]
    Img2img(Img2imgArgs),
    /// Draw part of a picture anew: what is white in the mask
    #[command(after_help = format!("Example:\n  safelight inpaint \"a boat\" -i sea.png -m mask.png --denoising-strength 1\n\n{EXIT_CODES}"))]
    Inpaint(InpaintArgs),
    /// Draw what lies beyond a picture's edges
    #[command(after_help = format!("Example:\n  safelight outpaint \"wide hills\" -i house.png --left 64 --right 64\n\n{EXIT_CODES}"))]
    // Understood, so that the refusal can say why, but not offered.
    #[command(mut_arg("size", |arg| arg.hide(true)), mut_arg("width", |arg| arg.hide(true)), mut_arg("height", |arg| arg.hide(true)))]
    Outpaint(OutpaintArgs),
    /// List the checkpoints that are found and what is wrong with them
    #[command(after_help = MODELS_HELP)]
    Models(ModelsArgs),
    /// Say what a model, a picture or a folder is
    #[command(
        after_help = "Examples:\n  safelight inspect model.safetensors --tensors\n  safelight inspect outputs/00001-42.png\n  safelight inspect hf://OWNER/REPO/model.ckpt --json\n  safelight inspect models"
    )]
    Inspect(InspectArgs),
    /// Measure how long the parts of a model take
    #[command(
        after_help = "Examples:\n  safelight bench --family sd15 --size 512x512\n  safelight bench unet --family sd15 --latent 64x64 --precision int8 --profile\n  safelight bench unet --family sdxl --latent 128x128 --precision bf16\n  safelight bench txt2img --model v1-5 --size 512x512 --steps 20\n  safelight bench --model v1-5 --size 512x512 --json"
    )]
    Bench(BenchArgs),
    /// Print completions for a shell
    #[command(
        after_help = "Example:\n  safelight completions bash > ~/.local/share/bash-completion/completions/safelight"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    #[command(flatten)]
    File(FileCommand),
}

/// Commands that are no file commands, by what they are about; `--help` lists them so.
const GROUPS: [(&str, &[&str]); 3] = [
    ("Pictures", &["txt2img", "img2img", "inpaint", "outpaint"]),
    ("Models", &["models", "inspect", "bench"]),
    ("This program", &["completions", "help"]),
];

/// The command line, with commands in groups: more than twenty in one list are hard to read.
pub(crate) fn command() -> clap::Command {
    let mut command = Cli::command();
    let files = FileCommand::augment_subcommands(clap::Command::new("files"));
    let files: Vec<&str> = files
        .get_subcommands()
        .map(clap::Command::get_name)
        .collect();
    let readers = files
        .iter()
        .filter(|name| !WITHOUT_MAX_HEADER.contains(name));
    for name in readers.chain([&"inspect"]) {
        command = command.mut_subcommand(name, |command| command.arg(max_header()));
    }
    for name in WITH_LIMIT {
        command = command.mut_subcommand(name, |command| command.arg(limit()));
    }
    let [pictures, models, program] = GROUPS;
    let groups = [pictures, models, ("Tensor files", &files[..]), program];
    let about = |name: &str| {
        let found = command.get_subcommands().find(|sub| sub.get_name() == name);
        let about = found
            .and_then(clap::Command::get_about)
            .map(ToString::to_string);
        about.unwrap_or_else(|| "Print this, or the help of a command".into())
    };
    let mut text = String::new();
    for (title, names) in groups {
        text += &format!("\n{title}:\n");
        for name in names {
            text += &format!("  {name:<11} {}\n", about(name));
        }
    }
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n{text}\nOptions:\n{{options}}{{after-help}}"
    );
    command.help_template(template)
}

impl Command {
    /// Whether the answer is read by a machine.
    pub(crate) fn wants_json(&self) -> bool {
        match self {
            Command::Txt2img(args) => args.json,
            Command::Img2img(args) => args.generate.json,
            Command::Inpaint(args) => args.generate.json,
            Command::Outpaint(args) => args.generate.json,
            Command::Models(args) => args.json,
            Command::Inspect(args) => args.json,
            Command::Bench(args) => args.json,
            Command::Completions { .. } => false,
            Command::File(command) => command.wants_json(),
        }
    }
}

const MODELS_HELP: &str = "\
Models are .safetensors files, shards with a .safetensors.index.json, or
diffusers folders. They are looked for, at any depth, in the folders of
--models; else in those of the variable SAFELIGHT_MODELS; else in ./models and
in the user's own folder (on Linux ~/.local/share/safelight/models). Adding a
file is enough. With none there is a small one built in.

Example:
  safelight models --models /data/stable-diffusion --no-hash
  safelight models --export-demo demo.safetensors";

/// Where models are.
#[derive(Debug, Args)]
pub(crate) struct ModelsFolders {
    /// Look for models in this folder (repeatable)
    #[arg(long = "models", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) folders: Vec<PathBuf>,
}

/// Which model.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// Use this model: a name, the beginning of one, a hash or a path [default: the first that is found]
    #[arg(long, value_name = "MODEL", value_hint = ValueHint::FilePath)]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) folders: ModelsFolders,
    /// Take the VAE from this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) vae: Option<PathBuf>,
    /// Compute products in this precision: bf16 halves, int8 quarters the weights' memory
    #[arg(long, default_value = "f32", value_parser = PossibleValuesParser::new(Precision::ALL.map(Precision::name)).try_map(|name| name.parse::<Precision>()))]
    pub(crate) precision: Precision,
    /// Take less memory and more time: no transformed weights, and of a large UNet's only a part is kept, the rest read at every step [default: only if memory is short]
    #[arg(long)]
    pub(crate) low_memory: bool,
    /// Use this many threads [default: as many as the machine has cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), allow_negative_numbers = true)]
    pub(crate) threads: Option<u16>,
}

impl ModelArgs {
    /// How the model is computed.
    pub(crate) fn ways(&self) -> Ways {
        Ways {
            precision: self.precision,
            lean: self.low_memory,
        }
    }
}

/// What all four jobs take.
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    // No doc comment: rustdoc would take the brackets for links.
    #[arg(
        help = "What the picture shows; (more:1.2), [less], [from:to:when] and BREAK are understood"
    )]
    pub(crate) prompt: String,
    /// What it does not show
    #[arg(
        short,
        long = "negative-prompt",
        alias = "negative",
        value_name = "TEXT",
        default_value = ""
    )]
    pub(crate) negative: String,
    /// How many steps to take [default: 20, or what the model asks for]
    #[arg(long, value_name = "N", value_parser = steps, allow_negative_numbers = true)]
    pub(crate) steps: Option<usize>,
    /// How closely to follow the prompt [default: 7, or what the model asks for]
    #[arg(long = "cfg-scale", visible_alias = "cfg", value_name = "SCALE", value_parser = cfg, allow_negative_numbers = true)]
    pub(crate) cfg: Option<f64>,
    /// Where chance begins; picture i of a batch has seed + i; -1 picks one
    #[arg(short, long, value_name = "N", default_value_t = -1, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    pub(crate) seed: i64,
    /// Width x height in pixels, or one number for a square [default: the model's own, or the picture's]
    #[arg(long, value_name = "WxH", value_parser = size, conflicts_with_all = ["width", "height"])]
    pub(crate) size: Option<(u32, u32)>,
    /// Width in pixels
    #[arg(short = 'W', long, value_name = "PX", allow_negative_numbers = true)]
    pub(crate) width: Option<u32>,
    /// Height in pixels
    #[arg(short = 'H', long, value_name = "PX", allow_negative_numbers = true)]
    pub(crate) height: Option<u32>,
    /// How many pictures to draw
    #[arg(short, long, alias = "batch-size", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000), allow_negative_numbers = true)]
    pub(crate) batch: u32,
    /// Euler, "Euler a", Heun, DDIM, "DPM++ 2M" or LCM [default: "Euler a", or what the model asks for]
    #[arg(long, alias = "sampling-method", value_name = "NAME", value_parser = sampler)]
    pub(crate) sampler: Option<Sampler>,
    /// Automatic, Uniform, Karras, Exponential, "SGM Uniform", Simple … [default: Automatic, the sampler's own]
    #[arg(long, alias = "scheduler", alias = "schedule-type", value_name = "NAME", value_parser = schedule)]
    pub(crate) schedule: Option<Schedule>,
    /// Stop this many layers before the end of the text encoder, from 1
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=12), allow_negative_numbers = true)]
    pub(crate) clip_skip: u16,
    /// Draw as this program does: a1111 or diffusers
    #[arg(long, value_name = "NAME", default_value = "a1111", value_parser = flavour)]
    pub(crate) flavour: Flavour,
    /// Whose random numbers: cpu (torch's, the same on every machine) or nv (torch's on a graphics card)
    #[arg(long, value_name = "NAME", default_value = "cpu", value_parser = rng)]
    pub(crate) rng: NoiseSource,
    #[command(flatten)]
    pub(crate) shortcuts: ShortcutArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Write to this .png file, or into this folder as NNNNN-seed.png [default: outputs/]
    #[arg(short, long, value_name = "FILE|DIR", value_hint = ValueHint::AnyPath)]
    pub(crate) output: Option<PathBuf>,
    /// Also write what is computed on the way (text embeddings, noise, the latent after each step) to this .safetensors file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) trace: Option<PathBuf>,
    /// Say what was done as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// Say nothing but the pictures' paths
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Drawing from a picture.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// The picture to begin from: PNG, JPEG or WebP
    #[arg(short, long, alias = "init", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) image: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Img2imgArgs {
    #[command(flatten)]
    pub(crate) generate: GenerateArgs,
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    /// How much to change, from 0 to 1
    #[arg(short, long = "denoising-strength", visible_alias = "denoise", alias = "strength", value_name = "X", default_value_t = 0.75, value_parser = unit, allow_negative_numbers = true)]
    pub(crate) denoise: f64,
}

#[derive(Debug, Args)]
pub(crate) struct InpaintArgs {
    #[command(flatten)]
    pub(crate) generate: GenerateArgs,
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    /// The mask, as large as the picture: white is drawn anew, black stays
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) mask: PathBuf,
    /// Draw anew what is black in the mask
    #[arg(long, action = ArgAction::SetTrue)]
    pub(crate) invert_mask: bool,
    /// How soft the mask's edge is
    #[arg(long, value_name = "PX", default_value_t = 4.0, value_parser = blur, allow_negative_numbers = true)]
    pub(crate) mask_blur: f32,
    /// Leave the picture as the model gives it back, where the mask is black too
    #[arg(long, action = ArgAction::SetTrue)]
    pub(crate) no_overlay: bool,
    /// What the drawing starts from under the mask: fill, original, "latent noise" or "latent nothing"
    #[arg(long, alias = "masked-content", value_name = "NAME", default_value = "original", value_parser = content)]
    pub(crate) content: MaskedContent,
    /// How much to change, from 0 to 1
    #[arg(short, long = "denoising-strength", visible_alias = "denoise", alias = "strength", value_name = "X", default_value_t = 0.75, value_parser = unit, allow_negative_numbers = true)]
    pub(crate) denoise: f64,
}

#[derive(Debug, Args)]
pub(crate) struct OutpaintArgs {
    #[command(flatten)]
    pub(crate) generate: GenerateArgs,
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    /// Add this many pixels at the left
    #[arg(
        long,
        value_name = "PX",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub(crate) left: u32,
    /// … at the right
    #[arg(
        long,
        value_name = "PX",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub(crate) right: u32,
    /// … at the top
    #[arg(
        long,
        value_name = "PX",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub(crate) up: u32,
    /// … at the bottom
    #[arg(
        long,
        value_name = "PX",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub(crate) down: u32,
    /// How soft the seam is in which old and new flow together
    #[arg(long, value_name = "PX", default_value_t = 4.0, value_parser = blur, allow_negative_numbers = true)]
    pub(crate) mask_blur: f32,
    /// What the drawing starts from in the new places: fill, original, "latent noise" or "latent nothing"
    #[arg(long, alias = "masked-content", value_name = "NAME", default_value = "fill", value_parser = content)]
    pub(crate) content: MaskedContent,
    /// How much to change what it starts from, from 0 to 1
    #[arg(short, long = "denoising-strength", visible_alias = "denoise", alias = "strength", value_name = "X", default_value_t = 0.8, value_parser = unit, allow_negative_numbers = true)]
    pub(crate) denoise: f64,
}

#[derive(Debug, Args)]
pub(crate) struct ModelsArgs {
    #[command(flatten)]
    pub(crate) folders: ModelsFolders,
    /// Leave out hashes that would have to be computed by reading the whole file
    #[arg(long)]
    pub(crate) no_hash: bool,
    /// Write the model that is built in to FILE, as an ordinary checkpoint, and nothing else
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with_all = ["no_hash", "folders"])]
    pub(crate) export_demo: Option<PathBuf>,
    /// Replace FILE if it is there
    #[arg(long, requires = "export_demo")]
    pub(crate) force: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Models of any kind that `convert` reads, also behind URLs; quoted patterns, pictures and folders of this machine
    #[arg(required = true, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) paths: Vec<PathBuf>,
    /// List every tensor
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Also look at files with tensors of dtypes that the format does not have
    #[arg(long)]
    pub(crate) unknown_dtypes: bool,
    /// Leave out hashes that would have to be computed by reading the whole file
    #[arg(long)]
    pub(crate) no_hash: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `bench` can measure alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum BenchPart {
    /// A pass of the UNet
    Unet,
    /// Decoding latents to pictures
    Vae,
    /// A pass of the text encoder
    Text,
    /// Reading and packing a model
    Load,
    /// A whole drawing: its stages and its memory
    Txt2img,
    /// What bf16 and int8 change: the UNet's answers and pictures beside f32's
    Fidelity,
}

/// Families that random weights can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum BenchFamily {
    /// SD 1.5
    Sd15,
    /// SDXL base 1.0, of which only the UNet is measured: bench unet
    Sdxl,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Measure this part only [default: all of them]
    #[arg(value_enum)]
    pub(crate) part: Option<BenchPart>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Measure random weights of this family's full size instead of a model
    #[arg(long, value_enum, value_name = "FAMILY", conflicts_with_all = ["model", "vae"])]
    pub(crate) family: Option<BenchFamily>,
    /// Width x height in pixels, or one number for a square [default: the model's own]
    #[arg(long, value_name = "WxH", value_parser = size)]
    pub(crate) size: Option<(u32, u32)>,
    /// Height x width of the latent instead, an eighth of the picture's
    #[arg(long, value_name = "HxW", value_parser = size, conflicts_with = "size")]
    pub(crate) latent: Option<(u32, u32)>,
    /// Steps of txt2img and fidelity [default: 20; of fidelity what the model asks for, if it does]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000), requires = "part", allow_negative_numbers = true)]
    pub(crate) steps: Option<u16>,
    /// How many pictures a pass makes
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64), requires = "part", allow_negative_numbers = true)]
    pub(crate) batch: u16,
    /// Show where a pass spends its time
    #[arg(long, requires = "part")]
    pub(crate) profile: bool,
    /// How often to measure each part; the median is shown
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000), allow_negative_numbers = true)]
    pub(crate) repeat: u32,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn sampler(name: &str) -> Result<Sampler, String> {
    Sampler::from_name(name).ok_or_else(|| {
        // A1111 once had the schedule in the sampler's name.
        let pieces = name.trim().rsplit_once(' ');
        let pieces = pieces.and_then(|(sampler, schedule)| {
            Some((Sampler::from_name(sampler)?, Schedule::from_name(schedule)?))
        });
        match pieces {
            Some((sampler, schedule)) => format!(
                "say --sampler \"{}\" --schedule \"{}\"",
                sampler.name(),
                schedule.name()
            ),
            None => format!("there is {}", list(Sampler::ALL.map(Sampler::name))),
        }
    })
}

fn schedule(name: &str) -> Result<Schedule, String> {
    Schedule::from_name(name)
        .ok_or_else(|| format!("there is {}", list(Schedule::ALL.map(Schedule::name))))
}

fn flavour(name: &str) -> Result<Flavour, String> {
    Flavour::from_name(name).ok_or_else(|| "there is a1111, diffusers".into())
}

fn rng(name: &str) -> Result<NoiseSource, String> {
    NoiseSource::from_name(name).ok_or_else(|| "there is cpu, nv".into())
}

fn content(name: &str) -> Result<MaskedContent, String> {
    MaskedContent::from_name(name).ok_or_else(|| {
        format!(
            "there is {}",
            list(MaskedContent::ALL.map(MaskedContent::name))
        )
    })
}

fn blur(text: &str) -> Result<f32, String> {
    let pixels: f32 = text.parse().map_err(|_| "a number is needed".to_string())?;
    if (0.0..=64.0).contains(&pixels) {
        Ok(pixels)
    } else {
        Err("from 0 to 64".into())
    }
}

fn list<const N: usize>(names: [&str; N]) -> String {
    names.join(", ")
}

fn steps(text: &str) -> Result<usize, String> {
    let steps: usize = text
        .parse()
        .map_err(|_| "a whole number is needed".to_string())?;
    if (1..=STEPS_MAX).contains(&steps) {
        Ok(steps)
    } else {
        Err(format!("from 1 to {STEPS_MAX}"))
    }
}

fn cfg(text: &str) -> Result<f64, String> {
    let scale: f64 = text.parse().map_err(|_| "a number is needed".to_string())?;
    if (0.0..=1000.0).contains(&scale) {
        Ok(scale)
    } else {
        Err("from 0 to 1000".into())
    }
}

pub(crate) fn unit(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "a number is needed".to_string())?;
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err("from 0 to 1".into())
    }
}

fn size(text: &str) -> Result<(u32, u32), String> {
    let (width, height) = text.split_once(['x', 'X', '×']).unwrap_or((text, text));
    match (width.trim().parse(), height.trim().parse()) {
        (Ok(width), Ok(height)) => Ok((width, height)),
        _ => Err("as in 512x768, or 512 for a square".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn help_lists_each_command_once_in_80_columns() {
        let help = command().render_help().to_string();
        for sub in Cli::command().get_subcommands() {
            let line = format!("\n  {:<11} {}\n", sub.get_name(), sub.get_about().unwrap());
            assert_eq!(help.matches(&line).count(), 1, "{line}in\n{help}");
        }
        let commands = help.split("Examples:").next().unwrap();
        for line in commands.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("512x768"), Ok((512, 768)));
        assert_eq!(size("512"), Ok((512, 512)));
        assert!(size("512x").is_err() && size("x").is_err() && size("-1x5").is_err());
    }

    #[test]
    fn names_and_aliases() {
        let parse = |extra: &[&str]| {
            let all = ["safelight", "img2img", "a house", "-i", "x.png"]
                .iter()
                .chain(extra);
            match Cli::try_parse_from(all).map(|cli| cli.command) {
                Ok(Command::Img2img(args)) => Ok(args),
                Ok(_) => unreachable!("img2img was asked for"),
                Err(error) => Err(error.to_string()),
            }
        };
        let args = parse(&[
            "--sampler",
            "dpm++ 2m",
            "--schedule-type",
            "sgm_uniform",
            "--strength",
            "0.4",
            "-s",
            "-1",
        ])
        .unwrap();
        assert_eq!(
            (args.generate.sampler, args.generate.schedule),
            (Some(Sampler::DpmPp2m), Some(Schedule::SgmUniform))
        );
        assert_eq!((args.denoise, args.generate.seed), (0.4, -1));
        assert!(
            parse(&["--sampler", "nonsense"])
                .unwrap_err()
                .contains("DPM++ 2M")
        );
        for wrong in [
            ["--steps", "0"],
            ["--denoise", "1.5"],
            ["--denoise", "nan"],
            ["--seed", "-2"],
            ["--cfg", "inf"],
            ["--batch", "0"],
        ] {
            assert!(parse(&wrong).is_err(), "{wrong:?}");
        }
    }
}
