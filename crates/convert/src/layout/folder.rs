//! diffusers' folder: read as one source, written as a pipeline.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::config::{self, Gap, Shapes};
use super::find::{Model, PartKind, REST_PREFIX, torch_name};
use super::tokenizer;
use super::{Family, Prediction};
use crate::adapt::arrange::{Arranged, Take};
use crate::adapt::join::check_each;
use crate::error::ConvertError;
use crate::folders::Building;
use crate::source::{Contents, Limits, Note, Source};
use crate::write::{Report, WriteOptions};
use crate::{sharded, write_safetensors};

/// Metadata key while a folder is read: its schedule ends in pure noise.
pub(crate) const ZERO_SNR_KEY: &str = "safelight.zero_terminal_snr";
/// Tensors of a single file that diffusers has no place for, kept so that the way back loses nothing. diffusers does
/// not look at it.
const REST_FILE: &str = "single_file_rest.safetensors";
/// The file that makes a folder a pipeline.
const INDEX_FILE: &str = "model_index.json";
/// Longest JSON file read; real ones have a few kilobytes.
const JSON_BYTES_MAX: u64 = 1 << 20;

/// A file's name, relative to the folder, and its content.
type TextFile = (String, Vec<u8>);

/// How a folder is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct FolderOptions {
    /// How each file is written.
    pub write: WriteOptions,
    /// Parts with more bytes than this are split into shards with an index.
    pub shard_bytes_max: Option<u64>,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FolderReport {
    /// All files' tensors together.
    pub report: Report,
    /// The files, relative to the folder.
    pub files: Vec<PathBuf>,
    /// The pipeline's class.
    pub pipeline: &'static str,
}

/// Whether a folder says that it is a pipeline.
pub fn is_diffusers_folder(path: &Path) -> bool {
    path.join(INDEX_FILE).is_file()
}

impl Model {
    /// Writes the folder. It appears under its name when it is complete; `dst` must not be there yet, or be empty.
    ///
    /// # Errors
    /// [`ConvertError::Unsupported`] where diffusers cannot have such a network; [`ConvertError::Request`] if `dst` is
    /// taken; [`ConvertError::Cancelled`]; what the source or the disk say. Nothing is left behind then.
    pub fn to_folder(
        &self,
        dst: &Path,
        options: &FolderOptions,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<FolderReport, ConvertError> {
        let taken = fs::read_dir(dst)
            .map(|mut entries| entries.next().is_some())
            .unwrap_or_else(|_| dst.exists());
        if taken {
            let problem = "is there already, and a folder is never written over another: choose a new name or remove it".into();
            return Err(ConvertError::Request {
                at: dst.to_string_lossy().into_owned(),
                problem,
            });
        }
        let (texts, pipeline) = self.texts()?;
        let building = Building::beside(dst)?;
        let mut files = Vec::new();
        for (name, bytes) in &texts {
            building.write(name, bytes)?;
            files.push(PathBuf::from(name));
        }
        let mut report = Report {
            notes: self
                .source
                .notes()
                .iter()
                .cloned()
                .chain(self.notes.clone())
                .collect(),
            ..Report::default()
        };
        let sources = self.sources()?;
        let all: u64 = sources
            .iter()
            .map(|(_, _, source)| total_bytes(source))
            .sum();
        let mut before = 0;
        for (folder, base, source) in &sources {
            let place = building.path.join(folder);
            fs::create_dir_all(&place).map_err(ConvertError::io("create", &place))?;
            let mut forward = |done: u64, _: u64| progress(before + done, all);
            let bytes = total_bytes(source);
            let written = match options.shard_bytes_max.filter(|&max| bytes > max) {
                Some(max) => {
                    sharded::write_sharded(source, &place, base, max, &options.write, &mut forward)?
                        .files
                }
                None => {
                    let path = place.join(format!("{base}.safetensors"));
                    write_safetensors(source, &path, &options.write, &mut forward)?;
                    vec![path]
                }
            };
            files.extend(
                written
                    .iter()
                    .filter_map(|path| Some(path.strip_prefix(&building.path).ok()?.to_path_buf())),
            );
            report.tensor_count += source.tensors().len() as u64;
            report.tensor_bytes += bytes;
            before += bytes;
        }
        building.finish(dst)?;
        files.sort();
        Ok(FolderReport {
            report,
            files,
            pipeline,
        })
    }

    /// Each file of tensors: folder, name without ending, tensors.
    fn sources(&self) -> Result<Vec<(&'static str, &'static str, Arranged)>, ConvertError> {
        let mut metadata = self.source.metadata().clone();
        metadata.remove(ZERO_SNR_KEY);
        metadata.insert("format".into(), "pt".into());
        let mut sources = Vec::new();
        for part in &self.parts {
            let base = if matches!(part.kind, PartKind::UNet | PartKind::Vae) {
                "diffusion_pytorch_model"
            } else {
                "model"
            };
            // What the whole model is, one file says; the others need no more than transformers asks for.
            let metadata = if part.kind == PartKind::UNet {
                metadata.clone()
            } else {
                BTreeMap::from([("format".into(), "pt".into())])
            };
            let arranged = Arranged::new(
                self.source.clone(),
                part.entries.clone(),
                metadata,
                vec![],
                self.memory_bytes_max,
            )?;
            sources.push((part.kind.folder(), base, arranged));
        }
        if !self.rest.is_empty() {
            let rest = self.rest.iter().map(|&index| {
                let mut spec = self.source.tensors()[index].clone();
                spec.name = spec
                    .name
                    .strip_prefix(REST_PREFIX)
                    .unwrap_or(&spec.name)
                    .to_owned();
                (spec, Take::Whole(index))
            });
            let arranged = Arranged::new(
                self.source.clone(),
                rest.collect(),
                BTreeMap::new(),
                vec![],
                self.memory_bytes_max,
            )?;
            sources.push(("", REST_FILE.trim_end_matches(".safetensors"), arranged));
        }
        Ok(sources)
    }

    /// Every file that holds no tensors, and the pipeline's class.
    fn texts(&self) -> Result<(Vec<TextFile>, &'static str), ConvertError> {
        let gap = |(at, what): Gap| ConvertError::unsupported(self.source.label(), at, what);
        let metadata = self.source.metadata();
        let mut files = Vec::new();
        let second = self
            .part(PartKind::TextEncoder2)
            .map(|part| Shapes::of(part.tensors()));
        let mut index = self.index();
        for part in &self.parts {
            let shapes = Shapes::of(part.tensors());
            let folder = part.kind.folder();
            let config = match part.kind {
                PartKind::UNet => {
                    let pooled = second
                        .as_ref()
                        .map(|second| config::text(second, true, ""))
                        .transpose()
                        .map_err(gap)?;
                    let pooled = pooled
                        .as_ref()
                        .and_then(|config| config["projection_dim"].as_u64());
                    config::unet(&shapes, self.family, self.prediction, pooled, metadata)
                }
                PartKind::Vae => config::vae(&shapes, self.family, self.prediction, metadata),
                PartKind::TextEncoder | PartKind::TextEncoder2 => {
                    let open_clip = self.is_open_clip(part.kind);
                    let config =
                        config::text(&shapes, open_clip, torch_name(part.entries[0].0.dtype))
                            .map_err(gap)?;
                    let positions = config["max_position_embeddings"]
                        .as_u64()
                        .unwrap_or_default();
                    let name = folder.replace("text_encoder", "tokenizer");
                    index[folder] = json!(["transformers", config["architectures"][0]]);
                    index[&name] = json!(["transformers", "CLIPTokenizer"]);
                    files.extend(
                        tokenizer::files(open_clip, positions)
                            .into_iter()
                            .map(|(file, bytes)| (format!("{name}/{file}"), bytes)),
                    );
                    Ok(config)
                }
            };
            files.push((
                format!("{folder}/config.json"),
                tokenizer::pretty(&config.map_err(gap)?),
            ));
        }
        let in_channels = self
            .part(PartKind::UNet)
            .and_then(|unet| {
                unet.tensors()
                    .find(|tensor| tensor.name == "conv_in.weight")
            })
            .and_then(|tensor| tensor.shape.get(1).copied());
        let pipeline = self.pipeline(in_channels.unwrap_or_default())?;
        index["_class_name"] = json!(pipeline);
        let scheduler = config::scheduler(self.family, self.prediction, self.zero_snr);
        index["scheduler"] = json!(["diffusers", scheduler["_class_name"]]);
        files.push((
            "scheduler/scheduler_config.json".into(),
            tokenizer::pretty(&scheduler),
        ));
        files.push((INDEX_FILE.into(), tokenizer::pretty(&index)));
        Ok((files, pipeline))
    }

    fn is_open_clip(&self, kind: PartKind) -> bool {
        kind == PartKind::TextEncoder2 || self.family == Family::Sd2
    }

    /// `model_index.json` without what depends on the parts.
    fn index(&self) -> Value {
        let nothing = json!([null, null]);
        let mut index = json!({
            "_diffusers_version": config::VERSION, "feature_extractor": nothing, "image_encoder": nothing,
            "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        });
        match self.family {
            Family::Sd1 | Family::Sd2 => {
                index["safety_checker"] = nothing;
                index["requires_safety_checker"] = json!(false);
            }
            Family::Xl | Family::XlRefiner => {
                index["force_zeros_for_empty_prompt"] = json!(self.family == Family::Xl);
                if self.family == Family::XlRefiner {
                    index["requires_aesthetics_score"] = json!(true);
                    for name in ["text_encoder", "tokenizer"] {
                        index[name] = nothing.clone();
                    }
                }
            }
        }
        index
    }

    fn pipeline(&self, in_channels: u64) -> Result<&'static str, ConvertError> {
        match (self.family, in_channels) {
            (Family::Sd1 | Family::Sd2, 4) => Ok("StableDiffusionPipeline"),
            (Family::Sd1 | Family::Sd2, 9) => Ok("StableDiffusionInpaintPipeline"),
            (Family::Sd1, 8) => Ok("StableDiffusionInstructPix2PixPipeline"),
            (Family::Xl, 4) => Ok("StableDiffusionXLPipeline"),
            (Family::Xl, 9) => Ok("StableDiffusionXLInpaintPipeline"),
            (Family::XlRefiner, 4) => Ok("StableDiffusionXLImg2ImgPipeline"),
            (family, channels) => {
                let what = format!(
                    "an {} UNet with {channels} input channels: no pipeline that this converter writes takes it (4 and 9 do)",
                    family.name()
                );
                Err(ConvertError::unsupported(
                    self.source.label(),
                    "conv_in.weight",
                    what,
                ))
            }
        }
    }
}

fn total_bytes(source: &dyn Source) -> u64 {
    source
        .tensors()
        .iter()
        .map(|tensor| tensor.byte_count().unwrap_or(0))
        .fold(0, u64::saturating_add)
}

/// A diffusers folder as one source: names behind `unet.`, `vae.`, `text_encoder.` and so on.
pub struct FolderSource {
    contents: Contents,
    parts: Vec<Box<dyn Source>>,
    places: Vec<(usize, usize)>,
}

impl FolderSource {
    /// Opens every part of the folder, whatever format its files have.
    ///
    /// # Errors
    /// What [`crate::open`] says of a part; [`ConvertError::Unsupported`] if a part has no file that is known.
    pub fn open(folder: &Path, limits: &Limits) -> Result<FolderSource, ConvertError> {
        let mut source = FolderSource {
            contents: Contents {
                label: folder.to_string_lossy().into_owned(),
                ..Contents::default()
            },
            parts: vec![],
            places: vec![],
        };
        for kind in PartKind::ALL {
            let place = folder.join(kind.folder());
            if place.is_dir() {
                source.add(
                    &format!("{}.", kind.folder()),
                    crate::open(&weights(&place)?, limits)?,
                );
            }
        }
        let rest = folder.join(REST_FILE);
        if rest.is_file() {
            source.add(REST_PREFIX, crate::open(&rest, limits)?);
        }
        source.contents.metadata.remove("format");
        source.read_configs(folder)?;
        Ok(source)
    }

    fn add(&mut self, prefix: &str, part: Box<dyn Source>) {
        for (index, tensor) in part.tensors().iter().enumerate() {
            let mut tensor = tensor.clone();
            tensor.name = format!("{prefix}{}", tensor.name);
            self.contents.tensors.push(tensor);
            self.places.push((self.parts.len(), index));
        }
        for (key, value) in part.metadata() {
            self.contents
                .metadata
                .entry(key.clone())
                .or_insert_with(|| value.clone());
        }
        self.contents.notes.extend(
            part.notes()
                .iter()
                .map(|note| Note::new(format!("{prefix}{}", note.at), note.what.clone())),
        );
        self.parts.push(part);
    }

    /// What a single file could not say by shapes is put where our own files say it.
    fn read_configs(&mut self, folder: &Path) -> Result<(), ConvertError> {
        let scheduler = json_file(&folder.join("scheduler/scheduler_config.json"))?;
        if let Some(prediction) = scheduler["prediction_type"]
            .as_str()
            .and_then(Prediction::from_name)
        {
            self.contents
                .metadata
                .entry("modelspec.prediction_type".into())
                .or_insert_with(|| prediction.modelspec_name().into());
        }
        if scheduler["rescale_betas_zero_snr"] == true {
            self.contents
                .metadata
                .insert(ZERO_SNR_KEY.into(), "true".into());
        }
        let (unet, vae) = (
            json_file(&folder.join("unet/config.json"))?,
            json_file(&folder.join("vae/config.json"))?,
        );
        let heads = [&unet["num_attention_heads"], &unet["attention_head_dim"]]
            .into_iter()
            .find_map(Value::as_u64);
        let unusual = [
            (config::HEADS_HINT, heads, config::UNET_HEADS),
            (
                config::UNET_GROUPS_HINT,
                unet["norm_num_groups"].as_u64(),
                config::GROUPS,
            ),
            (
                config::VAE_GROUPS_HINT,
                vae["norm_num_groups"].as_u64(),
                config::GROUPS,
            ),
        ];
        for (key, found, usual) in unusual {
            if let Some(number) = found.filter(|&number| number != usual) {
                self.contents
                    .metadata
                    .insert(key.into(), number.to_string());
            }
        }
        Ok(())
    }
}

/// A JSON file's content; null if there is none.
fn json_file(path: &Path) -> Result<Value, ConvertError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(error) => return Err(ConvertError::io("open", path)(error)),
        Ok(found) if found.len() > JSON_BYTES_MAX => {
            let (file, what) = (path.to_string_lossy(), "bytes of a configuration");
            let value = found.len();
            return Err(ConvertError::limit(&file, "", what, value, JSON_BYTES_MAX));
        }
        Ok(_) => {}
    }
    let bytes = fs::read(path).map_err(ConvertError::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        ConvertError::malformed(&path.to_string_lossy(), "JSON", "", error.to_string())
    })
}

/// The file with a part's weights: whole before sharded, safetensors before pickles, full before half precision.
fn weights(folder: &Path) -> Result<PathBuf, ConvertError> {
    let mut names = Vec::new();
    for (ending, index) in [
        (".safetensors", ""),
        (".safetensors", ".index"),
        (".bin", ""),
    ] {
        for variant in ["", ".fp16", ".bf16", ".non_ema", ".ema"] {
            for base in ["diffusion_pytorch_model", "model", "pytorch_model"] {
                names.push(match index {
                    "" => format!("{base}{variant}{ending}"),
                    _ => format!("{base}{ending}{index}{variant}.json"),
                });
            }
        }
    }
    let found = names.iter().find(|name| folder.join(name).is_file());
    found.map(|name| folder.join(name)).ok_or_else(|| {
        let what = "no weights: expected diffusion_pytorch_model.safetensors, model.safetensors, an index of shards, or a .bin";
        ConvertError::unsupported(&folder.to_string_lossy(), "", what)
    })
}

impl Source for FolderSource {
    fn contents(&self) -> &Contents {
        &self.contents
    }

    fn check(&self, indices: &[usize]) -> Result<(), ConvertError> {
        check_each(&self.parts, indices.iter().map(|&index| self.places[index]))
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let (part, index) = self.places[index];
        self.parts[part].read(index, out)
    }
}
