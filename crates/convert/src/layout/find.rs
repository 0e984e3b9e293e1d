//! Which model a source is, and what diffusers calls each of its tensors.

use std::collections::BTreeMap;
use std::sync::Arc;

use safelight_format::{Dtype, TensorSpec, decode_f32, plural, shown};

use super::names::{self, Blocks};
use super::text::{self, FromOpenClip};
use super::{Family, Prediction};
use crate::adapt::arrange::{Take, read_whole};
use crate::adapt::prune::{Kind, kind_of};
use crate::error::ConvertError;
use crate::source::{Note, Source, refuse_opaque};

/// How a source's tensors are named and split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The latent-diffusion code's: all in one file.
    Ldm,
    /// diffusers': a folder with a file for each part.
    Diffusers,
}

/// Which network a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PartKind {
    /// CLIP-L, or SD 2's OpenCLIP.
    TextEncoder,
    /// OpenCLIP-bigG of SDXL.
    TextEncoder2,
    /// The denoising network.
    UNet,
    /// The picture encoder and decoder.
    Vae,
}

impl PartKind {
    pub(crate) const ALL: [PartKind; 4] = [
        PartKind::TextEncoder,
        PartKind::TextEncoder2,
        PartKind::UNet,
        PartKind::Vae,
    ];

    /// The folder it lies in; also what precedes its names when a folder is read.
    pub fn folder(self) -> &'static str {
        match self {
            PartKind::TextEncoder => "text_encoder",
            PartKind::TextEncoder2 => "text_encoder_2",
            PartKind::UNet => "unet",
            PartKind::Vae => "vae",
        }
    }
}

/// One network's tensors under diffusers' names.
pub struct Part {
    /// Which network.
    pub kind: PartKind,
    /// Whether its single-file form is OpenCLIP's.
    pub(crate) open_clip: bool,
    pub(crate) entries: Vec<(TensorSpec, Take)>,
}

impl Part {
    /// Its tensors, named as diffusers or transformers names them.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorSpec> {
        self.entries.iter().map(|(spec, _)| spec)
    }
}

/// A Stable Diffusion model, whatever layout its source has.
pub struct Model {
    pub(crate) source: Arc<dyn Source>,
    /// How the source is laid out.
    pub layout: Layout,
    /// Which family.
    pub family: Family,
    /// What its UNet predicts.
    pub prediction: Prediction,
    /// Whether its noise schedule ends in pure noise.
    pub zero_snr: bool,
    pub(crate) parts: Vec<Part>,
    /// Tensors of the source that have no place in a folder: kept beside it.
    pub(crate) rest: Vec<usize>,
    pub(crate) notes: Vec<Note>,
    pub(crate) memory_bytes_max: u64,
}

/// What comes before names in single files, and whose names they are; `true`: OpenCLIP's.
const LDM_PREFIXES: [(&str, PartKind, bool); 7] = [
    ("model.diffusion_model.", PartKind::UNet, false),
    ("first_stage_model.", PartKind::Vae, false),
    (
        "cond_stage_model.transformer.",
        PartKind::TextEncoder,
        false,
    ),
    ("cond_stage_model.model.", PartKind::TextEncoder, true),
    (
        "conditioner.embedders.0.transformer.",
        PartKind::TextEncoder,
        false,
    ),
    (
        "conditioner.embedders.1.model.",
        PartKind::TextEncoder2,
        true,
    ),
    (
        "conditioner.embedders.0.model.",
        PartKind::TextEncoder2,
        true,
    ),
];

/// The layers of OpenCLIP-H, of which SD 2 never reads the last.
const OPEN_CLIP_H_LAYERS: usize = 24;
/// Where the tensors of a folder's side file stand, when a folder is read.
pub(crate) const REST_PREFIX: &str = "rest.";

impl Model {
    /// Recognises the model in a source. `prediction` overrules what the file says.
    ///
    /// # Errors
    /// [`ConvertError::Unsupported`] where no Stable Diffusion model is there, or a part of it is missing; all that is
    /// missing is named at once. Reads one small tensor of SD 2.x models that do not say what they predict.
    pub fn find(
        source: Arc<dyn Source>,
        prediction: Option<Prediction>,
        memory_bytes_max: u64,
    ) -> Result<Model, ConvertError> {
        let instead = "leave them out (--exclude)";
        let what = "the layout of a model";
        refuse_opaque(source.label(), source.opaque(), what, instead)?;
        let tensors = source.tensors();
        let starts = |prefix: &str| tensors.iter().any(|tensor| tensor.name.starts_with(prefix));
        let layout = if starts("unet.") {
            Layout::Diffusers
        } else {
            Layout::Ldm
        };
        let mut finder = Finder {
            source: &*source,
            parts: BTreeMap::new(),
            rest: vec![],
            notes: vec![],
        };
        match layout {
            Layout::Ldm => finder.ldm()?,
            Layout::Diffusers => finder.diffusers()?,
        }
        let Finder {
            parts, rest, notes, ..
        } = finder;
        let parts: Vec<Part> = parts.into_values().collect();
        let family = family(&*source, &parts)?;
        let said = source
            .metadata()
            .get("modelspec.prediction_type")
            .and_then(|name| Prediction::from_name(name));
        let has = |name: &str| {
            tensors.iter().any(|tensor| {
                tensor
                    .name
                    .strip_prefix(REST_PREFIX)
                    .unwrap_or(&tensor.name)
                    == name
            })
        };
        let marked = has("v_pred").then_some(Prediction::V);
        let prediction = match prediction.or(marked).or(said) {
            Some(prediction) => prediction,
            None if family == Family::Sd2 => sd2_prediction(&*source, &parts, memory_bytes_max)?,
            None => Prediction::Epsilon,
        };
        let zero_snr = has("ztsnr") || source.metadata().contains_key(super::folder::ZERO_SNR_KEY);
        Ok(Model {
            layout,
            family,
            prediction,
            zero_snr,
            parts,
            rest,
            notes,
            memory_bytes_max,
            source: source.clone(),
        })
    }

    /// The model's parts, in the order a picture passes through them.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    pub(crate) fn part(&self, kind: PartKind) -> Option<&Part> {
        self.parts.iter().find(|part| part.kind == kind)
    }
}

/// Collects parts while walking through a source.
struct Finder<'s> {
    source: &'s dyn Source,
    parts: BTreeMap<PartKind, Part>,
    rest: Vec<usize>,
    notes: Vec<Note>,
}

impl Finder<'_> {
    fn add(&mut self, kind: PartKind, open_clip: bool, spec: TensorSpec, take: Take) {
        let part = self.parts.entry(kind).or_insert_with(|| Part {
            kind,
            open_clip,
            entries: vec![],
        });
        part.open_clip |= open_clip;
        part.entries.push((spec, take));
    }

    fn ldm(&mut self) -> Result<(), ConvertError> {
        let tensors = self.source.tensors();
        let inside = |start: &'static str| {
            tensors
                .iter()
                .filter_map(move |tensor| tensor.name.strip_prefix(start))
        };
        let unet = Blocks::of(inside("model.diffusion_model."));
        let vae = Blocks::of(inside("first_stage_model."));
        let unread = unread_layer(tensors);
        let mut training = BTreeMap::<&str, (usize, u64)>::new();
        for (index, tensor) in tensors.iter().enumerate() {
            let found = LDM_PREFIXES.iter().find_map(|&(prefix, kind, open_clip)| {
                Some((tensor.name.strip_prefix(prefix)?, kind, open_clip))
            });
            let placed = match found {
                Some((name, kind, true))
                    if !unread.is_some_and(|layer| {
                        text::open_clip_layer(name).is_some_and(|(here, _)| here == layer)
                    }) =>
                {
                    self.open_clip(index, name, kind)?
                }
                Some((name, kind, false)) => {
                    let ours = match kind {
                        PartKind::UNet => names::unet_from_ldm(name, &unet),
                        PartKind::Vae => {
                            names::vae_from_ldm(name, &vae).filter(|name| is_vae(name))
                        }
                        _ => Some(text::with_text_model(name)).filter(|name| {
                            name.starts_with("text_model.") && !name.ends_with(".position_ids")
                        }),
                    };
                    ours.is_some_and(|ours| {
                        let shape = if kind == PartKind::Vae {
                            attention_shape(&ours, &tensor.shape, false)
                        } else {
                            tensor.shape.clone()
                        };
                        self.add(
                            kind,
                            false,
                            TensorSpec {
                                name: ours,
                                dtype: tensor.dtype,
                                shape,
                            },
                            Take::Whole(index),
                        );
                        true
                    })
                }
                _ => false,
            };
            if !placed {
                match kind_of(&tensor.name) {
                    Kind::Model => self.rest.push(index),
                    kind => {
                        let (count, bytes) = training.entry(kind.name()).or_default();
                        *count += 1;
                        *bytes = bytes.saturating_add(tensor.byte_count().unwrap_or(0));
                    }
                }
            }
        }
        let left_out = |(what, (count, bytes)): (&str, (usize, u64))| {
            Note::new(
                what,
                format!(
                    "dropped: {count} tensors, {bytes} bytes; a diffusers folder has no place for them"
                ),
            )
        };
        self.notes.extend(training.into_iter().map(left_out));
        Ok(())
    }

    /// Whether OpenCLIP's tensor has a place on the other side.
    fn open_clip(
        &mut self,
        index: usize,
        name: &str,
        kind: PartKind,
    ) -> Result<bool, ConvertError> {
        let tensor = &self.source.tensors()[index];
        let spec = |name: String, shape: Vec<u64>| TensorSpec {
            name,
            dtype: tensor.dtype,
            shape,
        };
        match text::from_open_clip(name) {
            FromOpenClip::Nowhere => return Ok(false),
            FromOpenClip::Same(ours) => self.add(
                kind,
                true,
                spec(ours, tensor.shape.clone()),
                Take::Whole(index),
            ),
            FromOpenClip::Transposed(ours) => {
                let &[rows, columns] = &tensor.shape[..] else {
                    return Err(self.wrong_shape(index, "a matrix"));
                };
                if !tensor.dtype.bits().is_multiple_of(8) {
                    return Err(self.wrong_shape(index, "a matrix of whole bytes"));
                }
                self.add(
                    kind,
                    true,
                    spec(ours, vec![columns, rows]),
                    Take::Transposed(index, rows, columns),
                );
            }
            FromOpenClip::Stacked(ours) => {
                let bytes = tensor.byte_count().filter(|bytes| bytes.is_multiple_of(3));
                let rows = tensor.shape.first().filter(|rows| rows.is_multiple_of(3));
                let (Some(bytes), Some(rows)) = (bytes, rows) else {
                    return Err(self.wrong_shape(index, "queries, keys and values of equal size"));
                };
                let mut shape = tensor.shape.clone();
                shape[0] = rows / 3;
                for (ours, third) in ours.into_iter().zip(0..) {
                    let span = Take::Span(index, bytes / 3 * third, bytes / 3 * (third + 1));
                    self.add(kind, true, spec(ours, shape.clone()), span);
                }
            }
        }
        Ok(true)
    }

    fn wrong_shape(&self, index: usize, expected: &str) -> ConvertError {
        let tensor = &self.source.tensors()[index];
        let what = format!(
            "shape {:?} of {}, expected {expected}",
            tensor.shape, tensor.dtype
        );
        ConvertError::unsupported(self.source.label(), &tensor.name, what)
    }

    fn diffusers(&mut self) -> Result<(), ConvertError> {
        let mut elsewhere = BTreeMap::<String, usize>::new();
        for (index, tensor) in self.source.tensors().iter().enumerate() {
            let (folder, name) = tensor.name.split_once('.').unwrap_or(("", &tensor.name));
            let Some(kind) = PartKind::ALL
                .into_iter()
                .find(|kind| kind.folder() == folder)
            else {
                if tensor.name.starts_with(REST_PREFIX) {
                    self.rest.push(index);
                } else {
                    *elsewhere.entry(folder.to_owned()).or_default() += 1;
                }
                continue;
            };
            let (name, shape) = match kind {
                PartKind::UNet => (name.to_owned(), tensor.shape.clone()),
                PartKind::Vae => {
                    let name = names::vae_attention_from_old(name);
                    let shape = attention_shape(&name, &tensor.shape, false);
                    (name, shape)
                }
                _ => (text::with_text_model(name), tensor.shape.clone()),
            };
            self.add(
                kind,
                false,
                TensorSpec {
                    name,
                    dtype: tensor.dtype,
                    shape,
                },
                Take::Whole(index),
            );
        }
        let left_out = |(folder, count): (String, usize)| {
            Note::new(
                folder,
                format!(
                    "dropped: {}; a single file has no place for such",
                    plural(count as u64, "tensor")
                ),
            )
        };
        self.notes.extend(elsewhere.into_iter().map(left_out));
        Ok(())
    }
}

fn is_vae(name: &str) -> bool {
    ["encoder.", "decoder.", "quant_conv.", "post_quant_conv."]
        .iter()
        .any(|start| name.starts_with(start))
}

/// The VAE's attention: convolutions of size 1 in single files, matrices in folders. The bytes are the same.
pub(crate) fn attention_shape(ours: &str, shape: &[u64], convolution: bool) -> Vec<u64> {
    let attends = ours.contains(".attentions.") && ours.ends_with(".weight");
    match shape {
        [rows, columns, 1, 1] if attends && !convolution => vec![*rows, *columns],
        [rows, columns] if attends && convolution => vec![*rows, *columns, 1, 1],
        _ => shape.to_vec(),
    }
}

/// The layer of SD 2's OpenCLIP that is in the file but never read, and that diffusers' encoder does not have.
///
/// A file with a projection, or with all of OpenCLIP-H's layers, has it; one made from a diffusers folder does not.
fn unread_layer(tensors: &[TensorSpec]) -> Option<usize> {
    let inside = || {
        tensors
            .iter()
            .filter_map(|tensor| tensor.name.strip_prefix("cond_stage_model.model."))
    };
    let layers = inside()
        .filter_map(text::open_clip_layer)
        .map(|(layer, _)| layer + 1)
        .max()?;
    let projected = inside().any(|name| name == "text_projection");
    (projected || layers == OPEN_CLIP_H_LAYERS).then(|| layers - 1)
}

fn family(source: &dyn Source, parts: &[Part]) -> Result<Family, ConvertError> {
    let part = |kind| parts.iter().find(|part| part.kind == kind);
    let some = |kind, name: &str| {
        part(kind).is_some_and(|part: &Part| part.tensors().any(|tensor| tensor.name == name))
    };
    let mut missing: Vec<&str> = [PartKind::UNet, PartKind::Vae]
        .into_iter()
        .filter(|&kind| part(kind).is_none())
        .map(PartKind::folder)
        .collect();
    if part(PartKind::TextEncoder).is_none() && part(PartKind::TextEncoder2).is_none() {
        missing.insert(0, PartKind::TextEncoder.folder());
    }
    if !missing.is_empty() {
        let names: Vec<String> = source
            .tensors()
            .iter()
            .take(3)
            .map(|tensor| format!("`{}`", shown(&tensor.name)))
            .collect();
        let what = format!(
            "no whole Stable Diffusion 1.x, 2.x or XL model: {} missing (seen: {}, the first {})",
            missing.join(", "),
            plural(source.tensors().len() as u64, "tensor"),
            names.join(", ")
        );
        return Err(ConvertError::unsupported(source.label(), "", what));
    }
    let added = some(PartKind::UNet, "add_embedding.linear_1.weight");
    let linear = part(PartKind::UNet).is_some_and(|unet| {
        unet.tensors()
            .any(|tensor| tensor.name.ends_with(".proj_in.weight") && tensor.shape.len() == 2)
    });
    match (part(PartKind::TextEncoder), part(PartKind::TextEncoder2)) {
        (Some(_), Some(_)) if added => Ok(Family::Xl),
        (None, Some(_)) if added => Ok(Family::XlRefiner),
        (Some(text), None) if !added => Ok(if linear || text.open_clip {
            Family::Sd2
        } else {
            Family::Sd1
        }),
        _ => {
            let what = "its text encoders do not fit its UNet: an additional embedding stands for SDXL, which has a second encoder; \
                        variants conditioned on pictures or classes (unCLIP) are not supported";
            Err(ConvertError::unsupported(source.label(), "", what))
        }
    }
}

/// The spread of this tensor tells SD 2's two kinds apart, as ComfyUI does it.
const SD2_TELLTALE_END: &str = ".attentions.2.transformer_blocks.0.norm1.bias";
/// Above it: velocity.
const SD2_V_SPREAD: f64 = 0.09;

fn sd2_prediction(
    source: &dyn Source,
    parts: &[Part],
    memory_bytes_max: u64,
) -> Result<Prediction, ConvertError> {
    let unet = parts.iter().find(|part| part.kind == PartKind::UNet);
    let telltale = unet
        .into_iter()
        .flat_map(|unet| &unet.entries)
        .filter(|(spec, _)| {
            spec.name.starts_with("up_blocks.") && spec.name.ends_with(SD2_TELLTALE_END)
        });
    let Some((spec, Take::Whole(index))) = telltale.max_by(|a, b| a.0.name.cmp(&b.0.name)) else {
        return Ok(Prediction::Epsilon);
    };
    let values = decode_f32(spec.dtype, &read_whole(source, *index, memory_bytes_max)?);
    let values = values.map_err(|error| {
        ConvertError::unsupported(
            source.label(),
            &source.tensors()[*index].name,
            error.to_string(),
        )
    })?;
    let count = values.len().max(2) as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    let variance = values
        .iter()
        .map(|&x| (f64::from(x) - mean).powi(2))
        .sum::<f64>()
        / (count - 1.0);
    Ok(if variance.sqrt() > SD2_V_SPREAD {
        Prediction::V
    } else {
        Prediction::Epsilon
    })
}

/// As torch calls a dtype in transformers' configurations.
pub(crate) fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
        Dtype::F64 => "float64",
        _ => "float32",
    }
}
