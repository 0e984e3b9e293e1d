//! Models merged: a weighted sum of two, or the difference of two added to a third, tensor by tensor.
//!
//! Formulas and rules are those of A1111's checkpoint merger, computed in f32.

use std::collections::BTreeMap;
use std::sync::Arc;

use safelight_format::{DecodeError, Dtype, TensorSpec, decode_f32_into, encode_into, shown};

use super::arrange::read_whole;
use super::cast::is_float;
use super::pieces::side_by_side;
use crate::error::ConvertError;
use crate::source::{Contents, Note, PIECE_BYTES, Source};

/// How numbers of the models become one.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// (1 − alpha)·A + alpha·B, of two models.
    Weighted {
        /// B's share: 0 is A, 1 is B.
        alpha: f64,
    },
    /// A + multiplier·(B − C), of three models.
    AddDifference {
        /// How much of the difference.
        multiplier: f64,
    },
}

impl Method {
    fn sources(&self) -> usize {
        match self {
            Method::Weighted { .. } => 2,
            Method::AddDifference { .. } => 3,
        }
    }

    fn amount(&self) -> f64 {
        let (Method::Weighted { alpha: amount } | Method::AddDifference { multiplier: amount }) =
            self;
        *amount
    }
}

/// What happens to tensors that not all models have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// A's tensors stay as they are, those only others have are left out; both with notes.
    #[default]
    KeepFirst,
    /// As [`Missing::KeepFirst`], but tensors only B has come along as they are.
    TakeAll,
    /// Nothing is merged; all of them are named.
    Refuse,
}

/// How models are merged.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeOptions {
    /// The formula.
    pub method: Method,
    /// The share or multiplier of each block of an LDM UNet, instead of the method's: input blocks, the middle, output
    /// blocks, in this order (25 numbers for SD 1.x and 2.x, 19 for XL). What lies outside blocks has the method's.
    pub blocks: Option<Vec<f64>>,
    /// What floats become; else what they are in A.
    pub dtype: Option<Dtype>,
    /// What happens to tensors that not all models have.
    pub missing: Missing,
    /// Bytes that a tensor may have that has to be in memory as a whole.
    pub memory_bytes_max: u64,
}

/// The one tensor A1111 never merges: positions are no weights, whatever their dtype.
const POSITIONS_END: &str = "text_model.embeddings.position_ids";

/// Where a merged tensor's numbers come from.
#[derive(Clone, Debug, PartialEq)]
enum Recipe {
    /// One source's tensor as it is: the source and the index.
    As(usize, usize),
    /// The formula with this amount, of these tensors of A, B and C.
    Mixed(Vec<usize>, f64),
    /// As [`Recipe::Mixed`], but the others have fewer input channels (of the second dimension); A's further ones stay.
    Channels(Vec<usize>, f64),
}

/// Models merged into one source. Names, order and metadata are A's.
pub struct Merge {
    contents: Contents,
    sources: Vec<Arc<dyn Source>>,
    options: MergeOptions,
    recipes: Vec<Recipe>,
}

impl Merge {
    /// A merge of A, B and, for a difference, C.
    ///
    /// # Errors
    /// [`ConvertError::Request`] if the number of models or of blocks is wrong, naming all shapes that do not fit, or all
    /// tensors that are missing where that is refused.
    pub fn new(
        sources: Vec<Arc<dyn Source>>,
        options: MergeOptions,
    ) -> Result<Merge, ConvertError> {
        let wanted = options.method.sources();
        if sources.len() != wanted {
            return Err(request(
                "",
                format!("this merge takes {wanted} models, not {}", sources.len()),
            ));
        }
        if options.dtype.is_some_and(|dtype| !is_float(dtype)) {
            return Err(request("", "merged weights cannot be written as this dtype; choose F32, F16, BF16, F8_E4M3 or F8_E5M2".into()));
        }
        let mut plan = Plan::new(&sources, &options)?;
        for (index, tensor) in sources[0].tensors().iter().enumerate() {
            plan.add(index, tensor);
        }
        plan.finish()?;
        let (entries, notes) = (plan.entries, plan.notes);
        let (tensors, recipes) = entries.into_iter().unzip();
        let labels: Vec<&str> = sources.iter().map(|source| source.label()).collect();
        let label = labels.join(" + ");
        let mut metadata = sources[0].metadata().clone();
        // Hashes of the first model's weights would be lies about these.
        metadata.retain(|key, _| !key.contains("hash"));
        let notes = sources
            .iter()
            .flat_map(|source| source.notes().iter().cloned())
            .chain(notes)
            .collect();
        let contents = Contents {
            label,
            tensors,
            metadata,
            notes,
        };
        Ok(Merge {
            contents,
            sources,
            options,
            recipes,
        })
    }

    fn mix(&self, values: &[Vec<f32>], amount: f64, out: &mut [f32]) {
        let weight = amount as f32;
        match (&self.options.method, values) {
            (Method::Weighted { .. }, [a, b]) => {
                let rest = (1.0 - amount) as f32;
                for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                    *out = rest * a + weight * b;
                }
            }
            (Method::AddDifference { .. }, [a, b, c]) => {
                for (((out, a), b), c) in out.iter_mut().zip(a).zip(b).zip(c) {
                    *out = a + weight * (b - c);
                }
            }
            _ => unreachable!("the number of models was checked"),
        }
    }

    /// Decodes, mixes and encodes a run of the same elements of each model.
    fn run(
        &self,
        index: usize,
        runs: &[(Dtype, &[u8])],
        amount: f64,
    ) -> Result<Vec<u8>, ConvertError> {
        let wrong = |what: String| {
            ConvertError::unsupported(self.label(), &self.tensors()[index].name, what)
        };
        let decode = |&(dtype, run): &(Dtype, &[u8])| {
            let mut values = vec![0.0; run.len() * 8 / dtype.bits() as usize];
            decode_f32_into(dtype, run, &mut values)?;
            Ok(values)
        };
        let values: Result<Vec<Vec<f32>>, DecodeError> = runs.iter().map(decode).collect();
        let values = values.map_err(|error| wrong(error.to_string()))?;
        let mut mixed = vec![0.0; values[0].len()];
        self.mix(&values, amount, &mut mixed);
        self.encoded(index, &mixed)
    }

    fn encoded(&self, index: usize, values: &[f32]) -> Result<Vec<u8>, ConvertError> {
        let (name, dtype) = (&self.tensors()[index].name, self.tensors()[index].dtype);
        let mut bytes = vec![0; (values.len() as u64 * dtype.bits()).div_ceil(8) as usize];
        encode_into(dtype, values, &mut bytes)
            .map_err(|error| ConvertError::unsupported(self.label(), name, error.to_string()))?;
        Ok(bytes)
    }

    /// Inpainting models: their first input channels are those of the others.
    fn read_channels(
        &self,
        index: usize,
        of: &[usize],
        amount: f64,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let mut tensors = Vec::new();
        for (source, &from) in self.sources.iter().zip(of) {
            let tensor = &source.tensors()[from];
            let bytes = read_whole(&**source, from, self.options.memory_bytes_max)?;
            let values = safelight_format::decode_f32(tensor.dtype, &bytes);
            tensors.push(values.map_err(|error| {
                ConvertError::unsupported(source.label(), &tensor.name, error.to_string())
            })?);
        }
        if tensors.iter().any(Vec::is_empty) {
            return Ok(()); // and its other dimensions may be anything
        }
        let shapes: Vec<&[u64]> = self
            .sources
            .iter()
            .zip(of)
            .map(|(source, &from)| source.tensors()[from].shape.as_slice())
            .collect();
        let behind = shapes[0][2..].iter().product::<u64>() as usize;
        let (rows, shared) = (shapes[0][0] as usize, shapes[1][1] as usize * behind);
        let mut merged = tensors[0].clone();
        for row in 0..rows {
            let part = |tensor: usize| {
                let width = shapes[tensor][1] as usize * behind;
                tensors[tensor][row * width..][..shared].to_vec()
            };
            let parts: Vec<Vec<f32>> = (0..tensors.len()).map(part).collect();
            let width = shapes[0][1] as usize * behind;
            self.mix(&parts, amount, &mut merged[row * width..][..shared]);
        }
        self.encoded(index, &merged)?
            .chunks(PIECE_BYTES)
            .try_for_each(out)
    }

    fn cast_one(
        &self,
        index: usize,
        source: usize,
        from: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let inner = &*self.sources[source];
        let (tensor, to) = (&inner.tensors()[from], self.tensors()[index].dtype);
        if tensor.dtype == to {
            return inner.read(from, out);
        }
        side_by_side(&[(inner, from)], &mut |runs| {
            let values = safelight_format::decode_f32(tensor.dtype, runs[0]);
            let values = values.map_err(|error| {
                ConvertError::unsupported(inner.label(), &tensor.name, error.to_string())
            })?;
            out(&self.encoded(index, &values)?)
        })
    }
}

impl Source for Merge {
    fn contents(&self) -> &Contents {
        &self.contents
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        match &self.recipes[index] {
            &Recipe::As(source, from) => self.cast_one(index, source, from, out),
            Recipe::Channels(of, amount) => self.read_channels(index, of, *amount, out),
            Recipe::Mixed(of, amount) => {
                let tensors: Vec<(&dyn Source, usize)> = self
                    .sources
                    .iter()
                    .zip(of)
                    .map(|(source, &from)| (&**source, from))
                    .collect();
                let dtypes: Vec<Dtype> = tensors
                    .iter()
                    .map(|(source, from)| source.tensors()[*from].dtype)
                    .collect();
                side_by_side(&tensors, &mut |runs| {
                    let runs: Vec<(Dtype, &[u8])> =
                        dtypes.iter().copied().zip(runs.iter().copied()).collect();
                    out(&self.run(index, &runs, *amount)?)
                })
            }
        }
    }
}

fn request(at: &str, problem: String) -> ConvertError {
    ConvertError::Request {
        at: at.into(),
        problem,
    }
}

/// What becomes of each tensor, collected before anything is read.
struct Plan<'m> {
    sources: &'m [Arc<dyn Source>],
    options: &'m MergeOptions,
    /// Where each name is, of all but the first.
    others: Vec<BTreeMap<&'m str, usize>>,
    /// In LDM checkpoints only names with `model` are weights; the rest is the noise schedule.
    ldm: bool,
    first_blocks: [usize; 2],
    entries: Vec<(TensorSpec, Recipe)>,
    notes: Vec<Note>,
    shapes: Vec<String>,
    only_first: Vec<String>,
}

const INPUTS: &str = "model.diffusion_model.input_blocks.";
const OUTPUTS: &str = "model.diffusion_model.output_blocks.";
const MIDDLE: &str = "model.diffusion_model.middle_block.";

impl<'m> Plan<'m> {
    fn new(
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
        let expected = first_blocks[0] + 1 + first_blocks[1];
        if let Some(blocks) = options
            .blocks
            .as_ref()
            .filter(|blocks| blocks.len() != expected || first_blocks[0] == 0)
        {
            let problem = match first_blocks {
                [0, _] => "block weights need a single-file Stable Diffusion checkpoint (`model.diffusion_model.input_blocks.…`)".to_string(),
                [inputs, outputs] => format!("{} block weights, but the UNet has {inputs} input blocks, 1 middle and {outputs} output blocks: give {expected}", blocks.len()),
            };
            return Err(request("", problem));
        }
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
        let blocks = self.options.blocks.as_ref();
        blocks
            .zip(block)
            .and_then(|(blocks, block)| blocks.get(block).copied())
            .unwrap_or(self.options.method.amount())
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

    fn add(&mut self, index: usize, tensor: &'m TensorSpec) {
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

    fn finish(&mut self) -> Result<(), ConvertError> {
        if !self.shapes.is_empty() {
            let problem = format!(
                "{} tensors have shapes that do not fit: {}",
                self.shapes.len(),
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
            self.notes.push(Note::new("", format!("{} tensors are the first model's as they are: another lacks them, such as `{}`", self.only_first.len(), self.only_first[0])));
        }
        let taken = |source: usize| self.options.missing == Missing::TakeAll && source == 1;
        let left = more.iter().filter(|(source, ..)| !taken(*source)).count();
        if left > 0 {
            self.notes.push(Note::new(
                "",
                format!(
                    "{left} tensors that the first model lacks are left out, such as `{}`",
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Memory;
    use safelight_format::{decode_f32, encode_f32};

    type Tensor = (&'static str, Vec<u64>, Vec<f32>);

    fn model(tensors: &[Tensor]) -> Arc<dyn Source> {
        Arc::new(
            Memory::new(tensors.iter().map(|(name, shape, values)| {
                (*name, Dtype::F32, shape.clone(), encode_f32(values))
            }))
            .in_pieces(5),
        )
    }

    fn options(method: Method) -> MergeOptions {
        MergeOptions {
            method,
            blocks: None,
            dtype: None,
            missing: Missing::KeepFirst,
            memory_bytes_max: 1 << 20,
        }
    }

    fn merged(models: Vec<Arc<dyn Source>>, options: MergeOptions) -> BTreeMap<String, Vec<f32>> {
        let merge = Merge::new(models, options).unwrap();
        let read = |(index, tensor): (usize, &TensorSpec)| {
            let bytes = read_whole(&merge, index, 1 << 20).unwrap();
            (
                tensor.name.clone(),
                decode_f32(tensor.dtype, &bytes).unwrap(),
            )
        };
        merge.tensors().iter().enumerate().map(read).collect()
    }

    const HALF: Method = Method::Weighted { alpha: 0.25 };

    /// torch: `0.75 * A + 0.25 * B`, `A + 0.3 * (B - C)` in float32.
    #[test]
    fn formulas() {
        let models = [[0.1, 2.0, -3.5], [0.7, -1.0, 0.001], [0.3, 0.5, 1e-3]]
            .map(|values| model(&[("w", vec![3], values.to_vec())]));
        let [a, b, c] = models;
        assert_eq!(
            merged(vec![a.clone(), b.clone()], options(HALF))["w"],
            [0.25, 1.25, -2.62475]
        );
        let difference = Method::AddDifference { multiplier: 0.3 };
        let expected = [
            0.1f32 + 0.3 * (0.7f32 - 0.3),
            2.0 + 0.3f32 * (-1.0 - 0.5),
            -3.5,
        ];
        assert_eq!(merged(vec![a, b, c], options(difference))["w"], expected);
    }

    #[test]
    fn what_is_no_weight_stays() {
        let names = [
            "model.diffusion_model.input_blocks.0.0.bias",
            "alphas_cumprod",
            "cond_stage_model.transformer.text_model.embeddings.position_ids",
        ];
        let [a, b] = [0.0, 1.0].map(|value| model(&names.map(|name| (name, vec![1], vec![value]))));
        let found = merged(vec![a, b], options(HALF));
        assert_eq!(names.map(|name| found[name][0]), [0.25, 0.0, 0.0]);
    }

    #[test]
    fn blocks_have_their_own_weights() {
        let names = [
            "model.diffusion_model.input_blocks.0.0.bias",
            "model.diffusion_model.input_blocks.1.0.in_layers.0.bias",
            "model.diffusion_model.middle_block.0.in_layers.0.bias",
            "model.diffusion_model.output_blocks.0.0.in_layers.0.bias",
            "first_stage_model.quant_conv.bias",
        ];
        let [a, b] = [0.0, 1.0].map(|value| model(&names.map(|name| (name, vec![1], vec![value]))));
        let blocks = Some(vec![0.0, 0.5, 0.75, 1.0]);
        let found = merged(
            vec![a.clone(), b.clone()],
            MergeOptions {
                blocks,
                ..options(HALF)
            },
        );
        assert_eq!(
            names.map(|name| found[name][0]),
            [0.0, 0.5, 0.75, 1.0, 0.25]
        );
        let wrong = Merge::new(
            vec![a, b],
            MergeOptions {
                blocks: Some(vec![1.0; 25]),
                ..options(HALF)
            },
        );
        assert!(wrong.err().unwrap().to_string().contains("give 4"));
    }

    #[test]
    fn an_inpainting_model_keeps_its_further_channels() {
        let name = "model.diffusion_model.input_blocks.0.0.weight";
        let inpainting = model(&[(name, vec![2, 9, 1, 1], (0..18).map(|i| i as f32).collect())]);
        let other = model(&[(name, vec![2, 4, 1, 1], vec![100.0; 8])]);
        let found = merged(
            vec![inpainting.clone(), other.clone()],
            options(Method::Weighted { alpha: 1.0 }),
        );
        assert_eq!(
            found[name],
            [
                100.0, 100.0, 100.0, 100.0, 4.0, 5.0, 6.0, 7.0, 8.0, 100.0, 100.0, 100.0, 100.0,
                13.0, 14.0, 15.0, 16.0, 17.0
            ]
        );
        let wrong = Merge::new(vec![other, inpainting], options(HALF))
            .err()
            .unwrap()
            .to_string();
        assert!(wrong.contains("has to be the first"), "{wrong}");
    }

    #[test]
    fn all_shapes_that_do_not_fit_are_named() {
        let a = model(&[
            ("x", vec![2], vec![0.0; 2]),
            ("y", vec![1, 2], vec![0.0; 2]),
            ("z", vec![1], vec![0.0]),
        ]);
        let b = model(&[
            ("x", vec![1], vec![0.0]),
            ("y", vec![2, 1], vec![0.0; 2]),
            ("z", vec![1], vec![0.0]),
        ]);
        let wrong = Merge::new(vec![a, b], options(HALF))
            .err()
            .unwrap()
            .to_string();
        assert!(
            wrong.contains("2 tensors")
                && wrong.contains("`x` [2], [1]")
                && wrong.contains("`y` [1, 2], [2, 1]"),
            "{wrong}"
        );
    }

    #[test]
    fn tensors_that_one_lacks() {
        let a = model(&[("both", vec![1], vec![0.0]), ("a", vec![1], vec![1.0])]);
        let b = model(&[("both", vec![1], vec![4.0]), ("b", vec![1], vec![2.0])]);
        let with = |missing| {
            Merge::new(
                vec![a.clone(), b.clone()],
                MergeOptions {
                    missing,
                    ..options(HALF)
                },
            )
        };
        let names = |merge: &Merge| {
            merge
                .tensors()
                .iter()
                .map(|tensor| tensor.name.clone())
                .collect::<Vec<_>>()
        };
        let kept = with(Missing::KeepFirst).unwrap();
        assert_eq!(
            (names(&kept), kept.notes().len()),
            (vec!["both".to_string(), "a".into()], 2)
        );
        assert_eq!(names(&with(Missing::TakeAll).unwrap()), ["both", "a", "b"]);
        let refused = with(Missing::Refuse).err().unwrap().to_string();
        assert!(
            refused.contains("`a`") && refused.contains("`b`"),
            "{refused}"
        );
    }

    #[test]
    fn other_dtypes_are_written_as_asked() {
        let [a, b] = [1.0, 2.0].map(|value| model(&[("w", vec![1], vec![value])]));
        let merge = Merge::new(
            vec![a, b],
            MergeOptions {
                dtype: Some(Dtype::Bf16),
                ..options(HALF)
            },
        )
        .unwrap();
        assert_eq!(merge.tensors()[0].dtype, Dtype::Bf16);
        assert_eq!(read_whole(&merge, 0, 100).unwrap(), [0xa0, 0x3f]);
    }
}
