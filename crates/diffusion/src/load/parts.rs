//! A model's parts, wherever they lie: found, described, checked, loaded.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safelight_format::{Dtype, TensorInfo};
use safelight_store::Checkpoint;
use safelight_tensor::Source;

use super::json::{self, Json};
use super::keys::{Part, PartKeys, Stored};
use super::shapes::{self, Hints};
use super::stored::StoredSource;
use super::{Family, LoadError, ModelInfo, PartInfo, Problem, Task};
use crate::nn::{self, Builder, Failures, Weights};
use crate::precision::Ways;
use crate::schedule::{Betas, Prediction};
use crate::text::{TextConfig, TextEncoder};
use crate::tokenizer;
use crate::unet::{UNet, UNetConfig};
use crate::vae::{Vae, VaeConfig};

/// Shortest text a model must take: CLIP's 75 tokens between begin and end.
const POSITIONS_MIN: usize = 77;
/// Longest A1111 sidecar read.
const SIDECAR_BYTES_MAX: u64 = 1 << 20;

/// A checkpoint that somebody else keeps, or that a model's parts share.
#[derive(Clone)]
pub(crate) enum Held<'c> {
    Lent(&'c Checkpoint),
    Shared(Arc<Checkpoint>),
}

impl Deref for Held<'_> {
    type Target = Checkpoint;
    fn deref(&self) -> &Checkpoint {
        match self {
            Held::Lent(checkpoint) => checkpoint,
            Held::Shared(checkpoint) => checkpoint,
        }
    }
}

/// The parts of one model.
pub(crate) struct Parts<'c> {
    label: String,
    family: Family,
    saw: String,
    text: Option<Arc<PartSource<'c>>>,
    unet: Option<Arc<PartSource<'c>>>,
    vae: Option<Arc<PartSource<'c>>>,
    scheduler: Option<Json>,
    prediction: Option<Prediction>,
    zero_terminal_snr: bool,
    title: Option<String>,
    ignored_tensors: usize,
    problems: Vec<Problem>,
    /// Why a part is not there, where more is known than that.
    absences: Vec<(Part, String)>,
}

/// Where one part's tensors lie, and the JSON beside them.
struct PartSource<'c> {
    checkpoint: Held<'c>,
    keys: PartKeys,
    json: Option<Json>,
}

impl<'c> PartSource<'c> {
    fn find(
        part: Part,
        checkpoint: &Held<'c>,
        tensors: &[TensorInfo<'_>],
    ) -> Option<PartSource<'c>> {
        Some(PartSource {
            checkpoint: checkpoint.clone(),
            keys: PartKeys::find(part, tensors)?,
            json: None,
        })
    }

    fn info(&self, part: Part) -> PartInfo {
        let (mut tensors, mut parameters, mut dtypes) = (0, 0, Vec::<(Dtype, usize)>::new());
        for (_, stored) in self.keys.tensors() {
            tensors += 1;
            parameters += stored
                .shape
                .iter()
                .fold(1, |count: u64, &dim| count.saturating_mul(dim));
            match dtypes.iter_mut().find(|(dtype, _)| *dtype == stored.dtype) {
                Some((_, count)) => *count += 1,
                None => dtypes.push((stored.dtype, 1)),
            }
        }
        dtypes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        PartInfo {
            part,
            naming: self.keys.naming,
            tensors,
            parameters,
            dtypes,
        }
    }

    /// What the metadata says under a key.
    fn hint(&self, key: &str) -> Option<String> {
        metadata(&self.checkpoint, key)
    }
}

impl Weights for PartSource<'_> {
    fn check(&self, name: &str, shapes: &[Vec<usize>]) -> Result<(), Problem> {
        fits(self.keys.get(name), self.keys.stored_name(name), shapes)
    }

    fn read(&self, name: &str, count: usize) -> Result<Vec<f32>, LoadError> {
        let stored = self.keys.get(name).expect("`check` found it");
        let values = self.checkpoint.read_f32(&stored.name)?;
        assert_eq!(values.len(), count, "`check` compared the shape of {name}");
        Ok(values)
    }

    /// Positioned reads, many at a time: nothing is mapped, and no values stay.
    fn show(
        &self,
        name: &str,
        count: usize,
        see: &mut dyn FnMut(&dyn Source),
    ) -> Result<(), LoadError> {
        let stored = self.keys.get(name).expect("`check` found it");
        let source = StoredSource::new(&self.checkpoint, &stored.name, stored.dtype, count);
        see(&source);
        nn::finite_of(self, name, count, source.finish()?)
    }

    fn read_stored(&self, name: &str, _count: usize) -> Result<(Dtype, Vec<u8>), LoadError> {
        let stored = self.keys.get(name).expect("`check` found it");
        Ok((stored.dtype, self.checkpoint.read_bytes(&stored.name)?))
    }

    fn stored_name(&self, name: &str) -> String {
        self.keys.stored_name(name)
    }

    fn label(&self) -> String {
        self.checkpoint.label().to_string()
    }
}

/// Whether a tensor, called `tensor` in the file, is there, of one of these shapes, and of floats.
pub(crate) fn fits(
    stored: Option<&Stored>,
    tensor: String,
    shapes: &[Vec<usize>],
) -> Result<(), Problem> {
    let Some(stored) = stored else {
        return Err(Problem::Missing { tensor });
    };
    let same = |shape: &Vec<usize>| {
        shape
            .iter()
            .map(|&dim| dim as u64)
            .eq(stored.shape.iter().copied())
    };
    if !shapes.iter().any(same) {
        // Of the shapes that would do, the one of the tensor's own rank is the one that was meant.
        let meant = shapes
            .iter()
            .find(|shape| shape.len() == stored.shape.len())
            .unwrap_or(&shapes[0]);
        return Err(Problem::WrongShape {
            tensor,
            actual: stored.shape.clone(),
            expected: meant.clone(),
        });
    }
    if !is_float(stored.dtype) {
        let dtype = stored.dtype;
        return Err(Problem::NotFloat { tensor, dtype });
    }
    Ok(())
}

/// Dtypes weights may be stored in.
fn is_float(dtype: Dtype) -> bool {
    matches!(
        dtype,
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F64 | Dtype::F8E4m3 | Dtype::F8E5m2
    )
}

fn metadata(checkpoint: &Checkpoint, key: &str) -> Option<String> {
    Some(checkpoint.metadata()?.get(key)?.to_string())
}

impl<'c> Parts<'c> {
    /// The parts of a single file.
    pub(crate) fn of(held: &Held<'c>) -> Parts<'c> {
        let checkpoint: &Checkpoint = held;
        let tensors: Vec<TensorInfo<'_>> = checkpoint.tensors().collect();
        let (family, saw) = Family::of(&tensors);
        let has = |name: &str| checkpoint.get(name).is_some();
        let spec = metadata(checkpoint, "modelspec.prediction_type");
        let prediction = if has("v_pred") {
            Some(Prediction::V)
        } else {
            spec.and_then(|name| Prediction::from_name(&name))
        };
        let find = |part| PartSource::find(part, held, &tensors).map(Arc::new);
        let (text, unet, vae) = (find(Part::TextEncoder), find(Part::UNet), find(Part::Vae));
        let taken = |source: &Option<Arc<PartSource<'_>>>| {
            source
                .as_ref()
                .map_or(0, |source| source.keys.tensors().count())
        };
        let mut problems = Vec::new();
        if let Some(scaled) = tensors
            .iter()
            .find(|t| t.name == "scaled_fp8" || t.name.ends_with(".scale_weight"))
        {
            let what = format!(
                "`{}`: scaled 8-bit weights are not supported yet",
                scaled.name
            );
            problems.push(Problem::Unsupported { what });
        }
        Parts {
            label: checkpoint.label().to_string(),
            family,
            saw,
            ignored_tensors: tensors.len() - taken(&text) - taken(&unet) - taken(&vae),
            text,
            unet,
            vae,
            scheduler: None,
            prediction,
            zero_terminal_snr: has("ztsnr"),
            title: metadata(checkpoint, "modelspec.title"),
            problems,
            absences: Vec::new(),
        }
    }

    /// Reads `NAME.yaml` beside `NAME.safetensors`, in which A1111's users say that a model predicts v.
    pub(crate) fn read_sidecar(&mut self, path: &Path) -> Result<(), LoadError> {
        let path = path.with_extension("yaml");
        let Ok(found) = std::fs::metadata(&path) else {
            return Ok(());
        };
        if !found.is_file() || found.len() > SIDECAR_BYTES_MAX {
            return Ok(());
        }
        let text = std::fs::read(&path).map_err(|source| LoadError::Io { path, source })?;
        let text = String::from_utf8_lossy(&text);
        let value = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("parameterization:"));
        let value = value.map(|value| value.trim().trim_matches(['"', '\'']));
        self.prediction = value.and_then(Prediction::from_name).or(self.prediction);
        Ok(())
    }

    /// Takes the VAE from another file.
    pub(crate) fn replace_vae(&mut self, held: &Held<'c>) -> Result<(), LoadError> {
        let checkpoint: &Checkpoint = held;
        let tensors: Vec<TensorInfo<'_>> = checkpoint.tensors().collect();
        let Some(vae) = PartSource::find(Part::Vae, held, &tensors) else {
            let (family, saw) = Family::of(&tensors);
            let what = format!(
                "this is {} ({saw}), in which there is no VAE",
                family.a_name()
            );
            let problems = vec![Problem::MissingPart { what }];
            return Err(LoadError::Weights {
                label: checkpoint.label().to_string(),
                problems,
            });
        };
        self.vae = Some(Arc::new(vae));
        Ok(())
    }

    /// Everything the headers say.
    ///
    /// # Errors
    /// If a JSON file beside the weights asks for what is not supported.
    pub(crate) fn describe(&self) -> Result<ModelInfo, LoadError> {
        let training = self.scheduler.as_ref().map(json::training).transpose()?;
        let mut info = self.outline();
        if let Some(training) = training {
            info.prediction = training.prediction;
            info.betas = training.betas;
            info.zero_terminal_snr = training.zero_terminal_snr;
        }
        if !self.family.is_supported() {
            return Ok(info);
        }
        for part in Part::ALL {
            let problems = match part {
                Part::TextEncoder => settle(self.text_config()?, &mut info.text),
                Part::UNet => settle(self.unet_config()?, &mut info.unet),
                Part::Vae => settle(self.vae_config()?, &mut info.vae),
            };
            info.problems.extend(problems);
        }
        info.problems.extend(self.weight_problems(&info));
        info.problems.extend(misfits(&info));
        if let Some(unet) = &info.unet {
            let latent = info
                .vae
                .as_ref()
                .map_or(unet.out_channels, |vae| vae.latent_channels);
            match task(unet.in_channels, latent) {
                Some(task) => info.task = task,
                None => info.problems.push(strange_inputs(unet.in_channels, latent)),
            }
        }
        Ok(info)
    }

    /// As [`Parts::describe`] for a single file, which has no JSON to be wrong.
    pub(crate) fn describe_file(&self) -> ModelInfo {
        self.describe().unwrap_or_else(|error| {
            let mut info = self.outline();
            info.problems.push(Problem::Unsupported {
                what: error.to_string(),
            });
            info
        })
    }

    /// What needs no structure.
    fn outline(&self) -> ModelInfo {
        let part = |source: &Option<Arc<PartSource<'_>>>, part| {
            source.as_ref().map(|source| source.info(part))
        };
        let parts = [
            part(&self.text, Part::TextEncoder),
            part(&self.unet, Part::UNet),
            part(&self.vae, Part::Vae),
        ];
        ModelInfo {
            label: self.label.clone(),
            family: self.family,
            saw: self.saw.clone(),
            task: Task::TextToImage,
            parts: parts.into_iter().flatten().collect(),
            text: None,
            unet: None,
            vae: None,
            prediction: self.prediction.unwrap_or_default(),
            betas: Betas::STABLE_DIFFUSION,
            zero_terminal_snr: self.zero_terminal_snr,
            scheduler: self.scheduler.as_ref().map(Json::value).cloned(),
            title: self.title.clone(),
            ignored_tensors: self.ignored_tensors,
            problems: self.problems.clone(),
        }
    }

    /// Loads the three networks that `info`, without problems, describes.
    pub(crate) fn load(
        &self,
        info: &ModelInfo,
        asked: Ways,
    ) -> Result<(TextEncoder, UNet, Vae), LoadError> {
        // Every weight is read before any complaint about values: all tensors with NaN are named at once.
        let mut problems = Vec::new();
        let text = keep(self.text_of(info, asked), &mut problems)?;
        let unet = keep(self.unet_of(info, asked), &mut problems)?;
        let vae = keep(self.vae_of(info, asked), &mut problems)?;
        match (text, unet, vae) {
            (Some(text), Some(unet), Some(vae)) => Ok((text, unet, vae)),
            _ => Err(LoadError::Weights {
                label: self.label.clone(),
                problems,
            }),
        }
    }

    /// Loads the text encoder that `info`, without problems, describes.
    pub(crate) fn text_of(&self, info: &ModelInfo, asked: Ways) -> Result<TextEncoder, LoadError> {
        let (source, config) = (there(&self.text), there(&info.text).clone());
        TextEncoder::load_in(&**source, config, asked.of_part(Part::TextEncoder))
    }

    /// Loads its UNet.
    pub(crate) fn unet_of(&self, info: &ModelInfo, asked: Ways) -> Result<UNet, LoadError> {
        let (source, config) = (there(&self.unet), there(&info.unet).clone());
        UNet::load_in(&**source, config, asked.of_part(Part::UNet))
    }

    /// Loads its VAE.
    pub(crate) fn vae_of(&self, info: &ModelInfo, asked: Ways) -> Result<Vae, LoadError> {
        let (source, config) = (there(&self.vae), there(&info.vae).clone());
        Vae::load_in(&**source, config, asked.of_part(Part::Vae))
    }

    /// Reads the VAE's values, to find those that are no numbers; keeps none.
    pub(crate) fn check_vae(&self, info: &ModelInfo) -> Result<(), LoadError> {
        let mut builder = Builder::new(&**there(&self.vae));
        Vae::describe(&mut builder, there(&info.vae).clone());
        builder.check_values()
    }

    pub(crate) fn load_text(&self) -> Result<TextEncoder, LoadError> {
        let config = self
            .text_config()?
            .map_err(|problems| self.weights_error(problems))?;
        TextEncoder::load(&**there(&self.text), config)
    }

    pub(crate) fn load_unet(&self) -> Result<UNet, LoadError> {
        let config = self
            .unet_config()?
            .map_err(|problems| self.weights_error(problems))?;
        UNet::load(&**there(&self.unet), config)
    }

    pub(crate) fn load_vae(&self) -> Result<Vae, LoadError> {
        let config = self
            .vae_config()?
            .map_err(|problems| self.weights_error(problems))?;
        Vae::load(&**there(&self.vae), config)
    }

    fn weights_error(&self, problems: Vec<Problem>) -> LoadError {
        LoadError::Weights {
            label: self.label.clone(),
            problems,
        }
    }

    fn text_config(&self) -> Described<TextConfig> {
        let Some(source) = &self.text else {
            return Ok(Err(vec![self.absent(Part::TextEncoder)]));
        };
        let mut config = shapes::text(&source.keys);
        source
            .json
            .as_ref()
            .map_or(Ok(()), |json| json::text(json, &mut config))?;
        Ok(Ok(config))
    }

    fn unet_config(&self) -> Described<UNetConfig> {
        let Some(source) = &self.unet else {
            return Ok(Err(vec![self.absent(Part::UNet)]));
        };
        let mut config = shapes::unet(&source.keys, &Hints(&|key| source.hint(key)));
        if let Some(json) = &source.json {
            json::unet(json, &mut config)?;
        }
        // Where nothing takes in text any width will do, and where all that takes it is lost none is wrong.
        let takes_text = |name: &str| {
            name.ends_with(".attn2.to_k.weight") || name.ends_with(".attn2.to_v.weight")
        };
        if self.text.is_some() && !source.keys.tensors().any(|(name, _)| takes_text(name)) {
            config.context_channels = self
                .text_config()?
                .map_or(config.context_channels, |text| text.width);
        }
        let gaps = shapes::unet_gaps(&source.keys, &config);
        Ok(if gaps.is_empty() {
            Ok(config)
        } else {
            Err(gaps)
        })
    }

    fn vae_config(&self) -> Described<VaeConfig> {
        let Some(source) = &self.vae else {
            return Ok(Err(vec![self.absent(Part::Vae)]));
        };
        let mut config = shapes::vae(&source.keys, &Hints(&|key| source.hint(key)));
        if let Some(json) = &source.json {
            json::vae(json, &mut config)?;
        }
        let gaps = shapes::vae_gaps(&source.keys, &config);
        Ok(if gaps.is_empty() {
            Ok(config)
        } else {
            Err(gaps)
        })
    }

    fn absent(&self, part: Part) -> Problem {
        if let Some((_, what)) = self.absences.iter().find(|(absent, _)| *absent == part) {
            return Problem::MissingPart { what: what.clone() };
        }
        let advice = match part {
            Part::Vae => "; a VAE file can be given beside it",
            _ => "",
        };
        Problem::MissingPart {
            what: format!("there is no {} in it{advice}", part.name()),
        }
    }

    /// Every tensor that is missing, misshapen or not a float, over all parts that could be described.
    fn weight_problems(&self, info: &ModelInfo) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let (Some(source), Some(config)) = (&self.text, &info.text) {
            let mut builder = Builder::new(&**source);
            TextEncoder::describe(&mut builder, config.clone());
            problems.extend_from_slice(builder.problems());
        }
        if let (Some(source), Some(config)) = (&self.unet, &info.unet) {
            let mut builder = Builder::new(&**source);
            UNet::describe(&mut builder, config.clone());
            problems.extend_from_slice(builder.problems());
        }
        if let (Some(source), Some(config)) = (&self.vae, &info.vae) {
            let mut builder = Builder::new(&**source);
            Vae::describe(&mut builder, config.clone());
            problems.extend_from_slice(builder.problems());
        }
        problems
    }
}

impl Parts<'static> {
    /// Loads the UNet with about `resident_bytes` of packed weights; the others are fetched when they are used.
    pub(crate) fn fetching_unet_of(
        &self,
        info: &ModelInfo,
        asked: Ways,
        resident_bytes: usize,
    ) -> Result<(UNet, Failures), LoadError> {
        let source: Arc<dyn Weights> = there(&self.unet).clone();
        let ways = asked.of_part(Part::UNet);
        let (mut builder, failures) = Builder::fetching(&source, ways, resident_bytes);
        let unet = UNet::describe(&mut builder, there(&info.unet).clone());
        builder.fill()?;
        Ok((unet, failures))
    }
}

/// What is there, because the model was found usable, or the part described.
fn there<T>(part: &Option<T>) -> &T {
    part.as_ref().expect("a part that was described is there")
}

/// A structure, or why there is none; outside, what a JSON file said wrong.
type Described<T> = Result<Result<T, Vec<Problem>>, LoadError>;

fn settle<T>(described: Result<T, Vec<Problem>>, place: &mut Option<T>) -> Vec<Problem> {
    match described {
        Ok(found) => {
            *place = Some(found);
            Vec::new()
        }
        Err(problems) => problems,
    }
}

/// Collects what is wrong with values, so that the other parts are still looked at.
fn keep<T>(
    loaded: Result<T, LoadError>,
    problems: &mut Vec<Problem>,
) -> Result<Option<T>, LoadError> {
    match loaded {
        Ok(network) => Ok(Some(network)),
        Err(LoadError::Weights { problems: more, .. }) => {
            problems.extend(more);
            Ok(None)
        }
        Err(other) => Err(other),
    }
}

/// What a UNet with so many input channels was made for.
fn task(inputs: usize, latent: usize) -> Option<Task> {
    match inputs {
        _ if inputs == latent => Some(Task::TextToImage),
        _ if inputs == 2 * latent + 1 => Some(Task::Inpaint),
        _ if inputs == 2 * latent => Some(Task::InstructPix2Pix),
        _ => None,
    }
}

fn strange_inputs(inputs: usize, latent: usize) -> Problem {
    let known = format!(
        "{latent} (text to image), {} (instruct-pix2pix) and {} (inpainting)",
        2 * latent,
        2 * latent + 1
    );
    let kind = match inputs {
        5 => " (a depth model)",
        7 => " (an upscaling model)",
        _ => "",
    };
    Problem::Unsupported {
        what: format!("the UNet takes {inputs} channels{kind}; supported are {known}"),
    }
}

/// Where the parts do not fit each other or the tokenizer.
fn misfits(info: &ModelInfo) -> Vec<Problem> {
    let mut faults = Vec::new();
    if let (Some(text), Some(unet)) = (&info.text, &info.unet)
        && text.width != unet.context_channels
    {
        let (text, unet) = (text.width, unet.context_channels);
        faults.push(format!(
            "the text encoder gives vectors of width {text}, the UNet takes {unet}"
        ));
    }
    if let (Some(vae), Some(unet)) = (&info.vae, &info.unet)
        && vae.latent_channels != unet.out_channels
    {
        let (vae, unet) = (vae.latent_channels, unet.out_channels);
        faults.push(format!(
            "the VAE takes latents of {vae} channels, the UNet gives {unet}"
        ));
    }
    if let Some(text) = &info.text {
        let known = tokenizer::EOS as usize + 1;
        if text.vocabulary < known {
            faults.push(format!(
                "the text encoder knows {} tokens, CLIP's tokenizer has {known}",
                text.vocabulary
            ));
        }
        if text.positions < POSITIONS_MIN {
            faults.push(format!(
                "the text encoder takes {} tokens, prompts have {POSITIONS_MIN}",
                text.positions
            ));
        }
    }
    faults
        .into_iter()
        .map(|what| Problem::Unsupported { what })
        .collect()
}

/// A diffusers folder: one file or set of shards for each part, and JSON.
pub(crate) struct Folder {
    path: PathBuf,
    parts: Vec<(Part, Held<'static>, Option<Json>)>,
    scheduler: Option<Json>,
    absent: Vec<(Part, String)>,
}

/// The sub-folder of each part, and what its weights are called.
const FOLDERS: [(Part, &str, &str); 3] = [
    (Part::TextEncoder, "text_encoder", "model"),
    (Part::UNet, "unet", "diffusion_pytorch_model"),
    (Part::Vae, "vae", "diffusion_pytorch_model"),
];

impl Folder {
    /// Opens the folder's files.
    pub(crate) fn open(path: &Path) -> Result<Folder, LoadError> {
        let Some(index) = Json::read(&path.join("model_index.json"))? else {
            let path = path.join("model_index.json");
            let what = "no such file: a folder is a model only in diffusers' layout".into();
            return Err(LoadError::Config { path, what });
        };
        let pipeline = index.text("_class_name").unwrap_or_default();
        if let Some(family) = family_of_pipeline(pipeline) {
            let saw = format!("model_index.json names {pipeline}");
            return Err(LoadError::Family {
                label: path.display().to_string(),
                family,
                saw,
            });
        }
        let (mut parts, mut absent) = (Vec::new(), Vec::new());
        for (part, folder, stem) in FOLDERS {
            match weights_file(&path.join(folder), stem) {
                Ok(file) => {
                    let json = Json::read(&path.join(folder).join("config.json"))?;
                    let checkpoint = Arc::new(Checkpoint::open(&file)?);
                    parts.push((part, Held::Shared(checkpoint), json));
                }
                Err(what) => absent.push((part, what)),
            }
        }
        let scheduler = Json::read(&path.join("scheduler").join("scheduler_config.json"))?;
        Ok(Folder {
            path: path.to_owned(),
            parts,
            scheduler,
            absent,
        })
    }

    /// The folder's parts; JSON wins over shapes.
    pub(crate) fn parts(&self) -> Result<Parts<'static>, LoadError> {
        let tensors: Vec<TensorInfo<'_>> = self
            .parts
            .iter()
            .flat_map(|(_, checkpoint, _)| checkpoint.tensors())
            .collect();
        let (family, saw) = match self.absent.iter().any(|(part, _)| *part == Part::UNet) {
            true => (Family::StableDiffusion1, "diffusers' layout".into()),
            false => Family::of(&tensors),
        };
        let find = |wanted: Part| {
            let (_, checkpoint, json) = self.parts.iter().find(|(part, ..)| *part == wanted)?;
            let own: Vec<TensorInfo<'_>> = checkpoint.tensors().collect();
            let source = PartSource::find(wanted, checkpoint, &own)?;
            Some(Arc::new(PartSource {
                json: json.clone(),
                ..source
            }))
        };
        Ok(Parts {
            label: self.path.display().to_string(),
            family,
            saw,
            text: find(Part::TextEncoder),
            unet: find(Part::UNet),
            vae: find(Part::Vae),
            scheduler: self.scheduler.clone(),
            prediction: None,
            zero_terminal_snr: false,
            title: None,
            ignored_tensors: 0,
            problems: Vec::new(),
            absences: self.absent.clone(),
        })
    }
}

/// The family of a diffusers pipeline that is not Stable Diffusion 1.x's, by its class.
fn family_of_pipeline(class: &str) -> Option<Family> {
    let families = [
        ("StableDiffusionXL", Family::StableDiffusionXl),
        ("StableDiffusion3", Family::StableDiffusion3),
        ("Flux2", Family::Flux2),
        ("Flux", Family::Flux),
        ("Chroma", Family::Chroma),
        ("QwenImage", Family::QwenImage),
        ("Lumina", Family::Lumina),
        ("ZImage", Family::Lumina),
        ("Wan", Family::Wan),
        ("PixArt", Family::PixArt),
        ("StableUnCLIP", Family::ClassConditional),
        ("StableDiffusionUpscale", Family::ClassConditional),
    ];
    families
        .into_iter()
        .find(|(start, _)| class.starts_with(start))
        .map(|(_, family)| family)
}

/// The weights in a part's folder: whole before sharded, full before half precision.
fn weights_file(folder: &Path, stem: &str) -> Result<PathBuf, String> {
    let names = [
        format!("{stem}.safetensors"),
        format!("{stem}.safetensors.index.json"),
        format!("{stem}.fp16.safetensors"),
        format!("{stem}.fp16.safetensors.index.json"),
        format!("{stem}.safetensors.index.fp16.json"),
        format!("{stem}.non_ema.safetensors"),
    ];
    if let Some(found) = names
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.is_file())
    {
        return Ok(found);
    }
    let pickled = [
        format!("{stem}.bin"),
        format!("{stem}.fp16.bin"),
        "pytorch_model.bin".into(),
    ];
    match pickled.iter().find(|name| folder.join(name).is_file()) {
        Some(name) => Err(format!(
            "{}: only `{name}` is there, a pickle: convert it to safetensors",
            folder.display()
        )),
        None => Err(format!("{}: no `{}` there", folder.display(), names[0])),
    }
}
