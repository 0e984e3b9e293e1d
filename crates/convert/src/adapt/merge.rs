//! Models merged: a weighted sum of two, a way along the arc between them, or the difference of two added to a third,
//! tensor by tensor.
//!
//! Formulas and rules are those of A1111's checkpoint merger (which has no arcs, and has the two sigmoids no more), computed
//! in f32, or in f64 where a tensor has such numbers.

use std::sync::Arc;

use safelight_format::{CastReport as Counts, Dtype};

use super::arrange::read_whole;
use super::cast::{CastReport, Reports, is_float};
use super::join::check_each;
use super::mix::{self, Angle, Formula};
use super::pieces::side_by_side;
use super::plan::{Plan, Recipe, request};
use super::real::Real;
use crate::error::ConvertError;
use crate::source::{Contents, PIECE_BYTES, Source, refuse_opaque};

/// How numbers of the models become one.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// (1 − alpha)·A + alpha·B, of two models.
    Weighted {
        /// B's share: 0 is A, 1 is B.
        alpha: f64,
    },
    /// A weighted sum whose share of B is bent to s = alpha²·(3 − 2·alpha), which is flat at both ends.
    ///
    /// Source: `sigmoid` in diffusers' `examples/community/checkpoint_merger.py`, as in A1111's merger of 2022.
    Sigmoid {
        /// From 0, which is A, to 1, which is B.
        alpha: f64,
    },
    /// The other way round: the share whose [`Method::Sigmoid`] is alpha, 1/2 − sin(asin(1 − 2·alpha)/3), steep at both ends.
    ///
    /// Source: `inv_sigmoid` there.
    InverseSigmoid {
        /// From 0, which is A, to 1, which is B.
        alpha: f64,
    },
    /// Along the arc from A to B, tensor by tensor, which keeps lengths where a sum of tensors that point in different
    /// directions is shorter than both. Where there is no arc, the weighted sum.
    Slerp {
        /// How far: 0 is A, 1 is B.
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
            Method::AddDifference { .. } => 3,
            _ => 2,
        }
    }

    /// Whether shares have to lie between 0 and 1: beyond, the curve turns back, or is none.
    fn is_bent(&self) -> bool {
        matches!(self, Method::Sigmoid { .. } | Method::InverseSigmoid { .. })
    }

    pub(crate) fn amount(&self) -> f64 {
        match *self {
            Method::Weighted { alpha } | Method::Slerp { alpha } => alpha,
            Method::Sigmoid { alpha } | Method::InverseSigmoid { alpha } => alpha,
            Method::AddDifference { multiplier } => multiplier,
        }
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
    /// blocks, in this order (25 numbers for SD 1.x and 2.x, 19 for XL). What lies outside blocks has the method's, or
    /// that of one more number in front of these (26 and 20, as block merges for A1111 count).
    pub blocks: Option<Vec<f64>>,
    /// What floats become; else what they are in A.
    pub dtype: Option<Dtype>,
    /// What happens to tensors that not all models have.
    pub missing: Missing,
    /// Bytes that a tensor may have that has to be in memory as a whole.
    pub memory_bytes_max: u64,
}

/// Models merged into one source. Names, order and metadata are A's.
pub struct Merge {
    contents: Contents,
    sources: Vec<Arc<dyn Source>>,
    options: MergeOptions,
    recipes: Vec<Recipe>,
    reports: Reports,
}

impl Merge {
    /// A merge of A, B and, for a difference, C.
    ///
    /// # Errors
    /// [`ConvertError::Request`] if the number of models or of blocks is wrong, naming all shapes that do not fit, all tensors
    /// that are missing where that is refused, or those of unknown dtypes.
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
        let amount = options.method.amount();
        let in_range = |amount: &f64| (0.0..=1.0).contains(amount);
        let blocks_in_range = options.blocks.iter().flatten().all(in_range);
        if options.method.is_bent() && !(in_range(&amount) && blocks_in_range) {
            let problem = "the shares of a sigmoid lie between 0 and 1";
            return Err(request("", problem.into()));
        }
        if options.dtype.is_some_and(|dtype| !is_float(dtype)) {
            return Err(request("", "merged weights cannot be written as this dtype; choose F32, F16, BF16, F8_E4M3 or F8_E5M2".into()));
        }
        for source in &sources {
            let instead = "only shards are joined with such tensors as they are";
            refuse_opaque(
                source.label(),
                source.opaque(),
                "a merge of models",
                instead,
            )?;
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
            opaque: vec![],
            metadata,
            notes,
            ..Contents::default()
        };
        Ok(Merge {
            contents,
            sources,
            options,
            recipes,
            reports: Reports::default(),
        })
    }

    /// What happened to the tensors that were computed or cast and have been read by now, in the order of
    /// [`Source::tensors`].
    pub fn reports(&self) -> Vec<CastReport> {
        self.reports.all()
    }

    /// The formula of a tensor; `measure` reads it a first time, where its angle matters.
    fn formula(
        &self,
        amount: f64,
        measure: impl FnOnce(&mut Angle) -> Result<(), ConvertError>,
    ) -> Result<Formula, ConvertError> {
        match self.options.method {
            Method::Weighted { .. } => Ok(Formula::Sum(1.0 - amount, amount)),
            Method::Sigmoid { .. } => {
                let share = amount * amount * (3.0 - 2.0 * amount);
                Ok(Formula::Sum(1.0 - share, share))
            }
            Method::InverseSigmoid { .. } => {
                let share = 0.5 - ((1.0 - 2.0 * amount).asin() / 3.0).sin();
                Ok(Formula::Sum(1.0 - share, share))
            }
            Method::AddDifference { .. } => Ok(Formula::Difference(amount)),
            Method::Slerp { .. } => {
                let mut angle = Angle::default();
                measure(&mut angle)?;
                Ok(angle.arc(amount))
            }
        }
    }

    /// Where the tensors of a recipe are.
    fn places(&self, of: &[usize]) -> Vec<(&dyn Source, usize)> {
        let places = self.sources.iter().zip(of);
        places.map(|(source, &from)| (&**source, from)).collect()
    }

    /// A run of bytes of each model's tensor as numbers.
    fn decoded<R: Real>(&self, of: &[usize], runs: &[&[u8]]) -> Result<Vec<Vec<R>>, ConvertError> {
        let decode = |((source, from), run): ((&dyn Source, usize), &&[u8])| {
            let tensor = &source.tensors()[from];
            let mut values = vec![R::default(); run.len() * 8 / tensor.dtype.bits() as usize];
            R::decode(tensor.dtype, run, &mut values).map_err(|error| {
                ConvertError::unsupported(source.label(), &tensor.name, error.to_string())
            })?;
            Ok(values)
        };
        self.places(of).into_iter().zip(runs).map(decode).collect()
    }

    fn encoded<R: Real>(
        &self,
        index: usize,
        of: &[Vec<R>],
        mixed: &[R],
    ) -> Result<(Vec<u8>, Counts), ConvertError> {
        let tensor = &self.tensors()[index];
        mix::encode(tensor.dtype, of, mixed).map_err(|error| {
            ConvertError::unsupported(self.label(), &tensor.name, error.to_string())
        })
    }

    fn report(&self, index: usize, from: Dtype, counts: Counts) {
        let tensor = &self.tensors()[index];
        let report = CastReport {
            name: tensor.name.clone(),
            from,
            to: tensor.dtype,
            counts,
        };
        self.reports.put(index, report);
    }

    /// Whether numbers of 64 bits come in or go out.
    fn is_wide(&self, index: usize, of: &[usize]) -> bool {
        let mut dtypes = self.places(of).into_iter();
        self.tensors()[index].dtype == Dtype::F64
            || dtypes.any(|(source, from)| source.tensors()[from].dtype == Dtype::F64)
    }

    fn read_mixed<R: Real>(
        &self,
        index: usize,
        of: &[usize],
        amount: f64,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let formula = self.formula(amount, |angle| {
            side_by_side(&self.places(of), &mut |runs| {
                let values = self.decoded::<R>(of, runs)?;
                angle.add(&values[0], &values[1]);
                Ok(())
            })
        })?;
        let mut counts = Counts::default();
        side_by_side(&self.places(of), &mut |runs| {
            let values = self.decoded::<R>(of, runs)?;
            let mut mixed = vec![R::default(); values[0].len()];
            formula.mix(&values, &mut mixed);
            let (bytes, report) = self.encoded(index, &values, &mixed)?;
            counts.add(&report);
            out(&bytes)
        })?;
        self.report(index, self.sources[0].tensors()[of[0]].dtype, counts);
        Ok(())
    }

    /// Inpainting models: their first input channels are those of the others.
    fn read_channels<R: Real>(
        &self,
        index: usize,
        of: &[usize],
        amount: f64,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let whole = |(source, from)| read_whole(source, from, self.options.memory_bytes_max);
        let bytes: Result<Vec<Vec<u8>>, _> = self.places(of).into_iter().map(whole).collect();
        let bytes = bytes?;
        let runs: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
        let mut tensors = self.decoded::<R>(of, &runs)?;
        if tensors.iter().any(Vec::is_empty) {
            return Ok(()); // and its other dimensions may be anything
        }
        let specs = self.places(of);
        let specs = specs.iter().map(|(source, from)| &source.tensors()[*from]);
        let shapes: Vec<&[u64]> = specs.map(|spec| spec.shape.as_slice()).collect();
        let behind = shapes[0][2..].iter().product::<u64>() as usize;
        let [width, shared] = [0, 1].map(|tensor| shapes[tensor][1] as usize * behind);
        let of_a = tensors[0].chunks_exact(width);
        let shared_of_a: Vec<R> = of_a.flat_map(|row| &row[..shared]).copied().collect();
        let formula = self.formula(amount, |angle| {
            angle.add(&shared_of_a, &tensors[1]);
            Ok(())
        })?;
        // The others are spread out to A's channels, with A's own in the further ones.
        for other in 1..tensors.len() {
            let mut spread = tensors[0].clone();
            let to = spread.chunks_exact_mut(width);
            for (to, from) in to.zip(tensors[other].chunks_exact(shared)) {
                to[..shared].copy_from_slice(from);
            }
            tensors[other] = spread;
        }
        let mut mixed = vec![R::default(); tensors[0].len()];
        formula.mix(&tensors, &mut mixed);
        let rows = mixed.chunks_exact_mut(width);
        for (row, of_a) in rows.zip(tensors[0].chunks_exact(width)) {
            row[shared..].copy_from_slice(&of_a[shared..]);
        }
        let (bytes, counts) = self.encoded(index, &tensors, &mixed)?;
        bytes.chunks(PIECE_BYTES).try_for_each(out)?;
        self.report(index, self.sources[0].tensors()[of[0]].dtype, counts);
        Ok(())
    }

    fn cast_one<R: Real>(
        &self,
        index: usize,
        source: usize,
        from: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let inner = &*self.sources[source];
        let tensor = &inner.tensors()[from];
        let mut counts = Counts::default();
        side_by_side(&[(inner, from)], &mut |runs| {
            let mut values = vec![R::default(); runs[0].len() * 8 / tensor.dtype.bits() as usize];
            R::decode(tensor.dtype, runs[0], &mut values).map_err(|error| {
                ConvertError::unsupported(inner.label(), &tensor.name, error.to_string())
            })?;
            let (bytes, report) = self.encoded(index, &[], &values)?;
            counts.add(&report);
            out(&bytes)
        })?;
        self.report(index, tensor.dtype, counts);
        Ok(())
    }
}

impl Source for Merge {
    fn contents(&self) -> &Contents {
        &self.contents
    }

    fn check(&self, indices: &[usize]) -> Result<(), ConvertError> {
        let taken = indices
            .iter()
            .flat_map(|&index| match &self.recipes[index] {
                &Recipe::As(source, from) => vec![(source, from)],
                Recipe::Mixed(of, _) | Recipe::Channels(of, _) => {
                    of.iter().copied().enumerate().collect()
                }
            });
        check_each(&self.sources, taken)
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        match &self.recipes[index] {
            &Recipe::As(source, from) => {
                let dtype = self.sources[source].tensors()[from].dtype;
                match dtype {
                    _ if dtype == self.tensors()[index].dtype => {
                        self.sources[source].read(from, out)
                    }
                    Dtype::F64 => self.cast_one::<f64>(index, source, from, out),
                    _ => self.cast_one::<f32>(index, source, from, out),
                }
            }
            Recipe::Channels(of, amount) if self.is_wide(index, of) => {
                self.read_channels::<f64>(index, of, *amount, out)
            }
            Recipe::Channels(of, amount) => self.read_channels::<f32>(index, of, *amount, out),
            Recipe::Mixed(of, amount) if self.is_wide(index, of) => {
                self.read_mixed::<f64>(index, of, *amount, out)
            }
            Recipe::Mixed(of, amount) => self.read_mixed::<f32>(index, of, *amount, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::testing::Memory;
    use safelight_format::{TensorSpec, decode_f32, encode_f32};

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

    /// 0.25² · (3 − 0.5) = 0.15625, and the way back; the ends and the middle stay where they are.
    #[test]
    fn sigmoids_bend_the_share() {
        let models = || [[0.0, 0.0], [1.0, 64.0]].map(|of| model(&[("w", vec![2], of.to_vec())]));
        let mix = |method| merged(models().to_vec(), options(method))["w"].clone();
        assert_eq!(mix(Method::Sigmoid { alpha: 0.25 }), [0.15625, 10.0]);
        let back = mix(Method::InverseSigmoid { alpha: 0.15625 });
        assert!(
            (back[0] - 0.25).abs() < 1e-7 && (back[1] - 16.0).abs() < 1e-5,
            "{back:?}"
        );
        for alpha in [0.0, 0.5, 1.0] {
            for method in [Method::Sigmoid { alpha }, Method::InverseSigmoid { alpha }] {
                let share = mix(method)[0];
                assert!((f64::from(share) - alpha).abs() < 1e-7, "{alpha}: {share}");
            }
        }
        for alpha in [-0.1, 1.1] {
            let wrong = options(Method::Sigmoid { alpha });
            let refused = Merge::new(models().to_vec(), wrong).err().unwrap();
            assert!(refused.to_string().contains("between 0 and 1"), "{refused}");
        }
    }

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
            "model.diffusion_model.output_blocks.1.0.in_layers.0.bias",
            "first_stage_model.quant_conv.bias",
        ];
        let [a, b] = [0.0, 1.0].map(|value| model(&names.map(|name| (name, vec![1], vec![value]))));
        let with = |models: [&Arc<dyn Source>; 2], blocks: &[f64]| {
            let blocks = Some(blocks.to_vec());
            let models = models.map(Arc::clone).to_vec();
            let merge = Merge::new(
                models.clone(),
                MergeOptions {
                    blocks: blocks.clone(),
                    ..options(HALF)
                },
            );
            merge.map(|_| {
                merged(
                    models,
                    MergeOptions {
                        blocks,
                        ..options(HALF)
                    },
                )
            })
        };
        let found = with([&a, &b], &[0.0, 0.5, 0.75, 1.0, 2.0]).unwrap();
        assert_eq!(
            names.map(|name| found[name][0]),
            [0.0, 0.5, 0.75, 1.0, 2.0, 0.25]
        );
        // One more: that of all else, in front.
        let found = with([&a, &b], &[3.0, 0.0, 0.5, 0.75, 1.0, 2.0]).unwrap();
        assert_eq!(
            names.map(|name| found[name][0]),
            [0.0, 0.5, 0.75, 1.0, 2.0, 3.0]
        );
        let wrong = |a, blocks: &[f64]| with([a, &b], blocks).err().unwrap().to_string();
        for count in [4, 7, 25] {
            let wrong = wrong(&a, &vec![1.0; count]);
            assert!(wrong.contains("give 5, or 6"), "{wrong}");
        }
        // Of the blocks of half a UNet nothing is known.
        let half = model(&[(names[0], vec![1], vec![0.0])]);
        let wrong = wrong(&half, &[1.0, 2.0]);
        assert!(wrong.contains("1 input blocks and 0 output"), "{wrong}");
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

    /// Numbers of 64 bits stay such: they are neither cut to 32 nor made infinite.
    #[test]
    fn wide_numbers_are_mixed_as_such() {
        let wide = |values: [f64; 2]| -> Arc<dyn Source> {
            let bytes = values.map(f64::to_le_bytes).concat();
            Arc::new(Memory::new([("w", Dtype::F64, vec![2], bytes)]))
        };
        let [a, b] = [[1e60, 1.0 + 2f64.powi(-40)], [3e60, 1.0]].map(wide);
        let merge = Merge::new(vec![a, b], options(Method::Weighted { alpha: 0.5 })).unwrap();
        let bytes = read_whole(&merge, 0, 100).unwrap();
        let expected = [2e60, 1.0 + 2f64.powi(-41)];
        assert_eq!(bytes, expected.map(f64::to_le_bytes).concat());
        assert!(!merge.reports()[0].is_lossy());
    }

    #[test]
    fn what_becomes_infinite_is_reported() {
        let half = |value: f32| -> Arc<dyn Source> {
            let (bytes, _) = safelight_format::encode(Dtype::F16, &[value; 4]).unwrap();
            Arc::new(Memory::new([("w", Dtype::F16, vec![2, 2], bytes)]))
        };
        let models = vec![half(60_000.0), half(60_000.0), half(-60_000.0)];
        let difference = Method::AddDifference { multiplier: 1.0 };
        let merge = Merge::new(models, options(difference)).unwrap();
        assert_eq!(read_whole(&merge, 0, 100).unwrap()[..2], [0x00, 0x7c]);
        let [report] = &merge.reports()[..] else {
            panic!("one tensor")
        };
        assert!(report.is_lossy());
        assert_eq!(
            (report.counts.overflow_count, report.from, report.to),
            (4, Dtype::F16, Dtype::F16)
        );
        // So are casts of tensors that one model has alone.
        let [a, b] =
            [("a", 1e6f32), ("b", 1.0)].map(|(name, value)| model(&[(name, vec![1], vec![value])]));
        let merge = Merge::new(
            vec![a, b],
            MergeOptions {
                dtype: Some(Dtype::F16),
                ..options(HALF)
            },
        )
        .unwrap();
        read_whole(&merge, 0, 100).unwrap();
        assert_eq!(merge.reports()[0].counts.overflow_count, 1);
    }

    #[test]
    fn arcs_keep_lengths() {
        let a = model(&[("w", vec![2], vec![1.0, 0.0]), ("x", vec![1], vec![1.0])]);
        let b = model(&[("w", vec![2], vec![0.0, 1.0]), ("x", vec![1], vec![3.0])]);
        let found = merged(vec![a, b], options(Method::Slerp { alpha: 0.5 }));
        let half = 0.5f32.sqrt();
        assert_eq!(
            (&found["w"][..], &found["x"][..]),
            (&[half, half][..], &[2.0][..])
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
