//! One entry: what a file or folder is and whether it can be drawn with, from headers alone.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use safelight_diffusion::load::{
    self, Family, LoadError, LoadOptions, Model, ModelFiles, ModelInfo, Part,
};
use safelight_diffusion::pipeline::Request;
use safelight_diffusion::sampler::{STEPS_MAX, Sampler};
use safelight_diffusion::schedule::Schedule;
use safelight_format::Dtype;
use safelight_store::{Checkpoint, matching};

use crate::demo::{self, DEMO_NAME};
use crate::hash::HashCache;

/// How a model is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One `.safetensors` file.
    File,
    /// The shards of a `.safetensors.index.json`.
    Shards,
    /// A diffusers folder, with a `model_index.json`.
    Folder,
    /// Part of the program.
    Embedded,
}

impl Layout {
    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Layout::File => "file",
            Layout::Shards => "shards",
            Layout::Folder => "folder",
            Layout::Embedded => "embedded",
        }
    }
}

/// A model, usable or not.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The file's name without its ending, or the folder's.
    pub name: String,
    /// The same with the folders between it and the root it was found under, separated by `/`.
    pub relative: String,
    /// Where it lies; `None` if [`Layout::Embedded`], or if it is no file of this machine ([`Entry::of`]).
    pub path: Option<PathBuf>,
    /// How it is stored.
    pub layout: Layout,
    /// Bytes on disk, all files together.
    pub bytes: u64,
    /// What its headers say; `None` if they can't be read.
    pub info: Option<ModelInfo>,
    /// Width and height it was trained at, where its metadata say so (`modelspec.resolution`).
    pub native_size: Option<(u32, u32)>,
    /// What its author found best, where the file says so.
    pub defaults: Defaults,
    /// SHA-256 of the whole file in hexadecimal, once it is known; only single files have one.
    pub sha256: Option<String>,
    /// Why it can't be used.
    pub problem: Option<String>,
}

/// Settings a model asks for, in its metadata: `safelight.default.steps`, `.cfg_scale`, `.sampler` and `.schedule`, the
/// last two by their A1111 names. What does not parse counts as not said.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Defaults {
    /// How many steps.
    pub steps: Option<usize>,
    /// How closely to follow the prompt.
    pub cfg_scale: Option<f64>,
    /// Which sampler.
    pub sampler: Option<Sampler>,
    /// Which schedule.
    pub schedule: Option<Schedule>,
}

impl Defaults {
    fn of(checkpoint: &Checkpoint) -> Defaults {
        let text = |key: &str| {
            checkpoint
                .metadata()?
                .get(&format!("safelight.default.{key}"))
        };
        let steps = text("steps").and_then(|text| text.parse().ok());
        let scale = text("cfg_scale").and_then(|text| text.parse().ok());
        Defaults {
            steps: steps.filter(|steps| (1..=STEPS_MAX).contains(steps)),
            cfg_scale: scale.filter(|scale| (0.0..=100.0).contains(scale)),
            sampler: text("sampler").and_then(|name| Sampler::from_name(name)),
            schedule: text("schedule").and_then(|name| Schedule::from_name(name)),
        }
    }
}

impl Entry {
    /// What it draws where nothing else is asked for: its own size and settings, else those of [`Request::default`].
    pub fn usual_request(&self) -> Request {
        let (own, usual) = (self.defaults, Request::default());
        let size = self.native_size;
        Request {
            size: size.map(|(width, height)| (width as usize, height as usize)),
            steps: own.steps.unwrap_or(usual.steps),
            cfg_scale: own.cfg_scale.unwrap_or(usual.cfg_scale),
            sampler: own.sampler.unwrap_or(usual.sampler),
            schedule: own.schedule.unwrap_or(usual.schedule),
            ..usual
        }
    }

    /// Describes what lies at `path`, found under `root`. Never fails: what is wrong is the entry's problem.
    pub fn at(path: &Path, root: &Path) -> Entry {
        let layout = match path {
            _ if path.is_dir() => Layout::Folder,
            _ if is_index(path) || matches!(matching(path), Ok(Some(_))) => Layout::Shards,
            _ => Layout::File,
        };
        let below = path.strip_prefix(root).unwrap_or(path);
        let relative = below
            .iter()
            .map(|part| part.to_string_lossy())
            .collect::<Vec<_>>()
            .join("/");
        let relative = without_ending(&relative, layout);
        let (info, problem) = match load::describe_path(path) {
            Ok(info) => {
                let problem = problem_of(&info);
                (Some(info), problem)
            }
            Err(error) => (
                None,
                Some(without_label(
                    &error.to_string(),
                    &path.display().to_string(),
                )),
            ),
        };
        let checkpoint = (layout != Layout::Folder)
            .then(|| Checkpoint::open(path).ok())
            .flatten();
        Entry {
            name: relative.rsplit('/').next().unwrap_or(&relative).to_owned(),
            relative,
            bytes: byte_count(path, layout),
            path: Some(path.to_owned()),
            layout,
            info,
            native_size: checkpoint.as_ref().and_then(native_size),
            defaults: checkpoint.as_ref().map(Defaults::of).unwrap_or_default(),
            sha256: None,
            problem,
        }
    }

    /// Describes a checkpoint that is open already, and need be no file of this machine. It has no path then, and can't be
    /// drawn with.
    pub fn of(checkpoint: &Checkpoint) -> Entry {
        let label = checkpoint.label();
        let place = label.strip_suffix("?…").unwrap_or(label);
        let layout = match is_index(Path::new(place)) {
            true => Layout::Shards,
            false => Layout::File,
        };
        let name = without_ending(place.rsplit('/').next().unwrap_or(place), layout);
        let info = load::describe(checkpoint);
        Entry {
            relative: name.clone(),
            name,
            path: None,
            layout,
            bytes: checkpoint.file_bytes(),
            native_size: native_size(checkpoint),
            defaults: Defaults::of(checkpoint),
            sha256: None,
            problem: problem_of(&info),
            info: Some(info),
        }
    }

    /// The model that is part of the program.
    pub fn demo() -> Entry {
        let checkpoint = demo::demo();
        let (info, problem) = match &checkpoint {
            Ok(checkpoint) => {
                let info = load::describe(checkpoint);
                let problem = info.usable().err().map(|error| error.to_string());
                (Some(info), problem)
            }
            Err(error) => (None, Some(error.to_string())),
        };
        Entry {
            name: DEMO_NAME.to_owned(),
            relative: DEMO_NAME.to_owned(),
            path: None,
            layout: Layout::Embedded,
            bytes: demo::demo_bytes().len() as u64,
            info,
            native_size: checkpoint.as_ref().ok().and_then(native_size),
            defaults: checkpoint.as_ref().map(Defaults::of).unwrap_or_default(),
            sha256: None,
            problem,
        }
    }

    /// Its family, if its headers can be read.
    pub fn family(&self) -> Option<Family> {
        self.info.as_ref().map(|info| info.family)
    }

    /// The parts that are there: text encoder, UNet, VAE.
    pub fn parts(&self) -> Vec<Part> {
        self.info
            .iter()
            .flat_map(|info| &info.parts)
            .map(|part| part.part)
            .collect()
    }

    /// How most of its tensors are stored.
    pub fn dtype(&self) -> Option<Dtype> {
        let info = self.info.as_ref()?;
        let mut counts: Vec<(Dtype, usize)> = Vec::new();
        for &(dtype, count) in info.parts.iter().flat_map(|part| &part.dtypes) {
            match counts.iter_mut().find(|(known, _)| *known == dtype) {
                Some((_, sum)) => *sum += count,
                None => counts.push((dtype, count)),
            }
        }
        counts
            .into_iter()
            .max_by_key(|&(_, count)| count)
            .map(|(dtype, _)| dtype)
    }

    /// Looks its hash up, or reads the file for it, as long as `progress` (bytes that are read, all bytes) lets it. Folders and shards have
    /// none; a file that can't be read neither.
    pub fn find_hash(
        &mut self,
        cache: &mut HashCache,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) {
        self.sha256 = match (self.layout, &self.path) {
            (Layout::Embedded, _) => Some(safelight_store::sha256_hex(&demo::demo_bytes())),
            (Layout::File, Some(path)) => cache.get_or_compute(path, progress).ok(),
            _ => None,
        };
    }

    /// Reads all of its weights.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load(&self, options: &LoadOptions) -> Result<Model, LoadError> {
        self.open(options)?.load()
    }

    /// Opens its files, out of which a drawing takes one network at a time.
    ///
    /// # Errors
    /// As [`ModelFiles::open`].
    pub fn open(&self, options: &LoadOptions) -> Result<ModelFiles, LoadError> {
        match &self.path {
            Some(path) => ModelFiles::open(path, options),
            None => ModelFiles::from_checkpoint(demo::demo()?, options),
        }
    }
}

pub(crate) fn is_index(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().ends_with(INDEX_ENDING))
}

const INDEX_ENDING: &str = ".safetensors.index.json";

fn without_ending(name: &str, layout: Layout) -> String {
    let end = match layout {
        Layout::Shards => name.strip_suffix(INDEX_ENDING),
        Layout::File => name
            .rsplit_once('.')
            .map(|(stem, _)| stem)
            .filter(|stem| !stem.is_empty() && !stem.ends_with('/')),
        Layout::Folder | Layout::Embedded => None,
    };
    end.unwrap_or(name).to_owned()
}

/// A message without the file's name at its beginning, which stands beside it already.
fn without_label(message: &str, label: &str) -> String {
    message
        .strip_prefix(label)
        .and_then(|rest| rest.strip_prefix(": "))
        .unwrap_or(message)
        .to_owned()
}

/// Why a model can't be drawn with, as far as headers tell.
fn problem_of(info: &ModelInfo) -> Option<String> {
    let error = info.usable().err()?;
    Some(without_label(&error.to_string(), &info.label))
}

fn native_size(checkpoint: &Checkpoint) -> Option<(u32, u32)> {
    let (width, height) = checkpoint
        .metadata()?
        .get("modelspec.resolution")?
        .split_once('x')?;
    let side = |text: &str| {
        text.trim()
            .parse()
            .ok()
            .filter(|side| (8..=16_384).contains(side))
    };
    Some((side(width)?, side(height)?))
}

fn byte_count(path: &Path, layout: Layout) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    match layout {
        Layout::File => size(path),
        Layout::Shards => {
            Checkpoint::open(path).map_or_else(|_| size(path), |checkpoint| checkpoint.file_bytes())
        }
        Layout::Folder => {
            let inside = |path: &Path| {
                std::fs::read_dir(path)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|entry| entry.path())
            };
            let files = inside(path)
                .filter(|path| path.is_dir())
                .flat_map(|part| inside(&part));
            files
                .filter(|file| file.extension().is_some_and(|end| end == "safetensors"))
                .map(|file| size(&file))
                .sum()
        }
        Layout::Embedded => 0,
    }
}
