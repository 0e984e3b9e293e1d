//! What becomes of each tensor in a merge, settled before anything is read.

use std::collections::BTreeMap;
use std::sync::Arc;

use safelight_format::{TensorSpec, are, plural, shown};

use super::cast::is_float;
use super::merge::{MergeOptions, Missing};
use crate::error::ConvertError;
use crate::source::{Note, Source};

/// The one tensor A1111 never merges: positions are no weights, whatever their dtype.
const POSITIONS_END: &str = "text_model.embeddings.position_ids";

/// Where a merged tensor's numbers come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Recipe {
    /// One source's tensor as it is: the source and the index.
    As(usize, usize),
    /// The formula with this amount, of these tensors of A, B and C.
    Mixed(Vec<usize>, f64),
    /// As [`Recipe::Mixed`], but the others have fewer input channels (of the second dimension); A's further ones stay.
    Channels(Vec<usize>, f64),
}

/// What becomes of each tensor, collected before anything is read.
pub(crate) struct Plan<'m> {
    sources: &'m [Arc<dyn Source>],
    options: &'m MergeOptions,
    /// Where each name is, of all but the first.
    others: Vec<BTreeMap<&'m str, usize>>,
    /// In LDM checkpoints only names with `model` are weights; the rest is the noise schedule.
    ldm: bool,
    first_blocks: [usize; 2],
    pub(crate) entries: Vec<(TensorSpec, Recipe)>,
    pub(crate) notes: Vec<Note>,
    shapes: Vec<String>,
    only_first: Vec<String>,
}

const INPUTS: &str = "model.diffusion_model.input_blocks.";
const OUTPUTS: &str = "model.diffusion_model.output_blocks.";
const MIDDLE: &str = "model.diffusion_model.middle_block.";

impl<'m> Plan<'m> {
    pub(crate) fn new(
        sources: &'m [Arc<dyn Source>],
        options: &'m MergeOptions,
    ) -> Result<Plan<'m>, ConvertError> {
        let names = |source: &'m Arc<dyn Source>| {
            source
                .tensors()
                .iter()
                .enumerate()
                .map(|(index, tensor)| (tensor.name.as_str(), index))
                .collect()
        };
        let count = |start: &str| {
            sources[0]
                .tensors()
                .iter()
                .filter_map(|tensor| block_number(&tensor.name, start))
                .max()
                .map_or(0, |last| last + 1)
        };
        let first_blocks = [count(INPUTS), count(OUTPUTS)];
        check_blocks(options.blocks.as_deref(), first_blocks)?;
        Ok(Plan {
            sources,
            options,
            first_blocks,
            others: sources[1..].iter().map(names).collect(),
            ldm: first_blocks[0] > 0,
            entries: vec![],
            notes: vec![],
            shapes: vec![],
            only_first: vec![],
        })
    }

    fn amount(&self, name: &str) -> f64 {
        let [inputs, _] = self.first_blocks;
        let block = block_number(name, INPUTS)
            .or_else(|| name.starts_with(MIDDLE).then_some(inputs))
            .or_else(|| Some(inputs + 1 + block_number(name, OUTPUTS)?));
        let (base, blocks) = match self.options.blocks.as_deref() {
            Some([base, blocks @ ..]) if blocks.len() == 2 * inputs + 1 => (*base, blocks),
            blocks => (self.options.method.amount(), blocks.unwrap_or_default()),
        };
        let block = block.and_then(|block| blocks.get(block));
        block.copied().unwrap_or(base)
    }

    fn spec(&self, tensor: &TensorSpec) -> TensorSpec {
        let dtype = self
            .options
            .dtype
            .filter(|_| is_float(tensor.dtype))
            .unwrap_or(tensor.dtype);
        TensorSpec {
            dtype,
            ..tensor.clone()
        }
    }

    pub(crate) fn add(&mut self, index: usize, tensor: &'m TensorSpec) {
        let name = tensor.name.as_str();
        let weights = is_float(tensor.dtype)
            && !name.ends_with(POSITIONS_END)
            && (!self.ldm || name.contains("model"));
        let found: Vec<Option<usize>> = self
            .others
            .iter()
            .map(|names| names.get(name).copied())
            .collect();
        if found.iter().any(Option::is_none) {
            self.only_first.push(name.to_string());
        }
        let all: Option<Vec<usize>> = std::iter::once(Some(index)).chain(found).collect();
        let recipe = match all.filter(|_| weights) {
            None => Recipe::As(0, index),
            Some(of) => {
                let specs: Vec<&TensorSpec> = self
                    .sources
                    .iter()
                    .zip(&of)
                    .map(|(source, &at)| &source.tensors()[at])
                    .collect();
                let amount = self.amount(name);
                match fit(&specs) {
                    Fit::Same => Recipe::Mixed(of, amount),
                    Fit::Channels => {
                        self.notes.push(Note::new(name, format!("only the first {} input channels are merged, the others are A's (an inpainting or instruct-pix2pix model)", specs[1].shape[1])));
                        Recipe::Channels(of, amount)
                    }
                    Fit::Not(why) => {
                        self.shapes.push(format!("`{}` {why}", shown(name)));
                        return;
                    }
                }
            }
        };
        self.entries.push((self.spec(tensor), recipe));
    }

    pub(crate) fn finish(&mut self) -> Result<(), ConvertError> {
        if !self.shapes.is_empty() {
            let problem = format!(
                "{} of shapes that do not fit: {}",
                plural(self.shapes.len() as u64, "tensor"),
                self.shapes.join("; ")
            );
            return Err(request("", problem));
        }
        let first: BTreeMap<&str, ()> = self.sources[0]
            .tensors()
            .iter()
            .map(|tensor| (tensor.name.as_str(), ()))
            .collect();
        let mut more: Vec<(usize, usize, String)> = Vec::new();
        for (source, names) in self.others.iter().enumerate() {
            let beyond = names.iter().filter(|(name, _)| !first.contains_key(*name));
            more.extend(beyond.map(|(name, &index)| (source + 1, index, name.to_string())));
        }
        if self.options.missing == Missing::Refuse
            && !(self.only_first.is_empty() && more.is_empty())
        {
            let listed = |names: &[String]| {
                names
                    .iter()
                    .map(|name| format!("`{}`", shown(name)))
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            let names: Vec<String> = more.iter().map(|(.., name)| name.clone()).collect();
            return Err(request(
                "",
                format!(
                    "not all models have all tensors: others lack {} of the first's ({}), it lacks {} of theirs ({})",
                    self.only_first.len(),
                    listed(&self.only_first),
                    names.len(),
                    listed(&names)
                ),
            ));
        }
        if !self.only_first.is_empty() {
            self.notes.push(Note::new("", format!(
                    "{} {} the first model's, unchanged: another has none of that name, such as `{}`",
                    plural(self.only_first.len() as u64, "tensor"),
                    are(self.only_first.len() as u64),
                    self.only_first[0]
                )));
        }
        let taken = |source: usize| self.options.missing == Missing::TakeAll && source == 1;
        let left = more.iter().filter(|(source, ..)| !taken(*source)).count();
        if left > 0 {
            self.notes.push(Note::new(
                "",
                format!(
                    "{} that the first model lacks {} left out, such as `{}`",
                    plural(left as u64, "tensor"),
                    are(left as u64),
                    more.iter()
                        .find(|(source, ..)| !taken(*source))
                        .map_or("", |(.., name)| name)
                ),
            ));
        }
        for (source, index, _) in more.into_iter().filter(|(source, ..)| taken(*source)) {
            let tensor = &self.sources[source].tensors()[index];
            self.entries
                .push((self.spec(tensor), Recipe::As(source, index)));
        }
        Ok(())
    }
}

/// Whether there are as many block weights as the UNet has blocks: as many output blocks as input blocks, and the
/// middle; or one more, in front.
fn check_blocks(blocks: Option<&[f64]>, [inputs, outputs]: [usize; 2]) -> Result<(), ConvertError> {
    let Some(blocks) = blocks else { return Ok(()) };
    let expected = inputs + 1 + outputs;
    let problem = if inputs == 0 {
        "block weights need a single-file Stable Diffusion checkpoint (`model.diffusion_model.input_blocks.…`), which the first model is not".to_string()
    } else if inputs != outputs {
        format!(
            "block weights need a whole UNet, but the first model has {inputs} input blocks and {outputs} output blocks"
        )
    } else if ![expected, expected + 1].contains(&blocks.len()) {
        format!(
            "{} block weights, but the UNet has {inputs} input blocks, 1 middle and {outputs} output blocks: give {expected}, or {} with the weight of all else in front",
            blocks.len(),
            expected + 1
        )
    } else {
        return Ok(());
    };
    Err(request("", problem))
}

fn block_number(name: &str, start: &str) -> Option<usize> {
    name.strip_prefix(start)?
        .split('.')
        .next()?
        .parse()
        .ok()
        .filter(|&block| block < crate::layout::names::INDEX_LIMIT)
}

/// Whether tensors can be merged.
enum Fit {
    Same,
    Channels,
    Not(String),
}

fn fit(specs: &[&TensorSpec]) -> Fit {
    if let Some(other) = specs.iter().find(|spec| !is_float(spec.dtype)) {
        return Fit::Not(format!(
            "is {} in one model and {} in another",
            specs[0].dtype, other.dtype
        ));
    }
    let (a, b) = (&specs[0].shape, &specs[1].shape);
    if specs[1..].iter().all(|spec| spec.shape == *a) {
        return Fit::Same;
    }
    let shapes = specs
        .iter()
        .map(|spec| format!("{:?}", spec.shape))
        .collect::<Vec<_>>()
        .join(", ");
    let others_agree = specs[1..].iter().all(|spec| spec.shape == *b);
    let same_but_channels = a.len() == 4 && b.len() == 4 && (a[0], &a[2..]) == (b[0], &b[2..]);
    match (others_agree && same_but_channels).then(|| (a[1], b[1])) {
        Some((8 | 9, 4)) => Fit::Channels,
        Some((4, 8 | 9)) => Fit::Not(format!(
            "{shapes}: an inpainting or instruct-pix2pix model has to be the first"
        )),
        _ => Fit::Not(shapes),
    }
}

pub(crate) fn request(at: &str, problem: String) -> ConvertError {
    ConvertError::Request {
        at: at.into(),
        problem,
    }
}
