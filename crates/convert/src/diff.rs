//! What differs between two sources: names, dtypes, shapes, metadata, and the numbers, streamed side by side.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use safelight_format::{Dtype, TensorSpec};

use crate::adapt::pieces::side_by_side;
use crate::error::ConvertError;
use crate::numbers::{Decoder, number_count, numbers_in, ordinal, wide_integer};
use crate::source::{OpaqueTensor, Source};

/// What counts as equal: `|a - b| <= absolute + relative * |b|`, as `numpy.isclose` has it. By default nothing but
/// equal numbers do. NaN equals NaN, and an infinity itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tolerance {
    /// As a share of the second number.
    pub relative: f64,
    /// In any case.
    pub absolute: f64,
}

/// How the numbers of two tensors of one shape differ. Complex numbers count as two.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NumberDiff {
    /// How many numbers each has.
    pub count: u64,
    /// Pairs that are not equal, tolerance or not.
    pub different: u64,
    /// Pairs beyond the tolerance.
    pub beyond: u64,
    /// Pairs of which one alone is NaN, or which have an infinity and something else. The measures below leave them out.
    pub unlike: u64,
    /// The largest |a − b|.
    pub max_absolute: f64,
    /// Where it is: the position among the tensor's elements in memory order.
    pub max_at: u64,
    /// The largest |a − b| / max(|a|, |b|).
    pub max_relative: f64,
    /// The most floats of the dtype that lie between a pair, plus one; `None` where dtypes differ or are no floats.
    pub max_ulp: Option<u64>,
    /// √(Σ(a − b)² / count), over finite pairs.
    pub rms: f64,
    /// Σab / √(Σa² Σb²), over finite pairs; 1 for equal tensors, also for zeros.
    pub cosine: f64,
}

/// A tensor that both have.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorDiff {
    /// As the first has it.
    pub a: TensorSpec,
    /// As the second has it.
    pub b: TensorSpec,
    /// Its numbers; `None` if shapes differ, or numbers were not asked for.
    pub numbers: Option<NumberDiff>,
}

impl TensorDiff {
    /// Whether there is anything to tell: dtype, shape, or numbers beyond the tolerance.
    pub fn is_different(&self) -> bool {
        self.a.dtype != self.b.dtype
            || self.a.shape != self.b.shape
            || self
                .numbers
                .as_ref()
                .is_some_and(|numbers| numbers.beyond > 0)
    }
}

/// A tensor that both have, and whose dtype is unknown in one of them at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpaqueDiff {
    /// As the first has it.
    pub a: OpaqueTensor,
    /// As the second has it.
    pub b: OpaqueTensor,
    /// Whether their bytes are the same; `None` if dtypes, shapes or sizes differ, or numbers were not asked for.
    pub same_bytes: Option<bool>,
}

impl OpaqueDiff {
    /// Whether there is anything to tell: dtype, shape, size or bytes.
    pub fn is_different(&self) -> bool {
        self.same_bytes == Some(false) || self.is_different_in_structure()
    }

    fn is_different_in_structure(&self) -> bool {
        let (a, b) = (&self.a, &self.b);
        (&a.dtype, &a.shape, a.byte_count) != (&b.dtype, &b.shape, b.byte_count)
    }
}

/// A key of the metadata whose value differs: with the first's and the second's value.
pub type MetadataDiff = (String, Option<String>, Option<String>);

/// All that differs, and what is the same.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Diff {
    /// Tensors only the first has.
    pub only_a: Vec<TensorSpec>,
    /// Tensors only the second has.
    pub only_b: Vec<TensorSpec>,
    /// Tensors both have, by name.
    pub both: Vec<TensorDiff>,
    /// Tensors of unknown dtypes that only the first has.
    pub opaque_only_a: Vec<OpaqueTensor>,
    /// And those that only the second has.
    pub opaque_only_b: Vec<OpaqueTensor>,
    /// Tensors both have whose dtype is unknown in one of them at least, by name.
    pub opaque: Vec<OpaqueDiff>,
    /// Metadata that differs.
    pub metadata: Vec<MetadataDiff>,
}

impl Diff {
    /// Whether one has tensors or metadata that the other has not.
    pub fn is_different_in_structure(&self) -> bool {
        let known_are_the_same = self.only_a.is_empty() && self.only_b.is_empty();
        let opaque_are_the_same = self.opaque_only_a.is_empty() && self.opaque_only_b.is_empty();
        !(known_are_the_same && opaque_are_the_same && self.metadata.is_empty())
    }

    /// Whether anything differs.
    pub fn is_different(&self) -> bool {
        self.is_different_in_structure()
            || self.both.iter().any(TensorDiff::is_different)
            || self.opaque.iter().any(OpaqueDiff::is_different)
    }
}

/// Compares two sources, of whatever formats: structure always, numbers if `numbers` asks for a comparison;
/// tensors whose names are not `wanted` are left out. Tensors of unknown dtypes have no numbers: their bytes are compared.
///
/// `progress` hears of bytes that are done (of `a`), from several threads, and stops the work by [`ControlFlow::Break`].
///
/// # Errors
/// [`ConvertError::Cancelled`]; what a source says.
pub fn diff(
    a: &dyn Source,
    b: &dyn Source,
    numbers: Option<Tolerance>,
    wanted: &(dyn Fn(&str) -> bool + Sync),
    progress: &(dyn Fn(u64) -> ControlFlow<()> + Sync),
) -> Result<Diff, ConvertError> {
    let [mine, theirs] = [a, b].map(|source| {
        let names = source.contents().names().zip(0..);
        let names = names.filter(|(name, _)| wanted(name));
        names.collect::<BTreeMap<&str, usize>>()
    });
    let pairs = mine.iter();
    let pairs = pairs.filter_map(|(name, &index)| Some((index, *theirs.get(name)?)));
    let known =
        |&(in_a, in_b): &(usize, usize)| in_a < a.tensors().len() && in_b < b.tensors().len();
    let (both, opaque): (Vec<_>, Vec<_>) = pairs.partition(known);
    if numbers.is_some() {
        for (source, in_source) in [(a, 0), (b, 1)] {
            let pairs = both.iter().chain(&opaque);
            let indices: Vec<usize> = pairs.map(|pair| [pair.0, pair.1][in_source]).collect();
            source.check(&indices)?;
        }
    }
    let stopped = AtomicBool::new(false);
    let done = |bytes: u64| {
        if stopped.load(Ordering::Relaxed) || progress(bytes).is_break() {
            stopped.store(true, Ordering::Relaxed);
            return Err(ConvertError::Cancelled);
        }
        Ok(())
    };
    let compare_numbers = |&(in_a, in_b): &(usize, usize)| {
        compare((a, in_a), (b, in_b), numbers, &mut |bytes| done(bytes))
    };
    let compare_bytes = |&(in_a, in_b): &(usize, usize)| {
        let asked = numbers.is_some();
        same_bytes((a, in_a), (b, in_b), asked, &mut |bytes| done(bytes))
    };
    let both: Result<_, ConvertError> = both.par_iter().map(compare_numbers).collect();
    let opaque: Result<_, ConvertError> = opaque.par_iter().map(compare_bytes).collect();
    let (only_a, opaque_only_a) = only(a, &mine, &theirs);
    let (only_b, opaque_only_b) = only(b, &theirs, &mine);
    Ok(Diff {
        only_a,
        only_b,
        both: both?,
        opaque_only_a,
        opaque_only_b,
        opaque: opaque?,
        metadata: metadata(a.metadata(), b.metadata()),
    })
}

/// What only one source has: tensors, and those of unknown dtypes.
fn only(
    source: &dyn Source,
    here: &BTreeMap<&str, usize>,
    there: &BTreeMap<&str, usize>,
) -> (Vec<TensorSpec>, Vec<OpaqueTensor>) {
    let (mut known, mut opaque) = (Vec::new(), Vec::new());
    let count = source.tensors().len();
    for (_, &index) in here.iter().filter(|(name, _)| !there.contains_key(*name)) {
        match source.tensors().get(index) {
            Some(tensor) => known.push(tensor.clone()),
            None => opaque.push(source.opaque()[index - count].clone()),
        }
    }
    (known, opaque)
}

/// Compares two tensors byte for byte, if that was asked for and nothing else differs.
fn same_bytes(
    a: (&dyn Source, usize),
    b: (&dyn Source, usize),
    asked: bool,
    done: &mut dyn FnMut(u64) -> Result<(), ConvertError>,
) -> Result<OpaqueDiff, ConvertError> {
    let [in_a, in_b] = [a, b].map(|(source, index)| match source.tensors().get(index) {
        Some(tensor) => OpaqueTensor::from(tensor),
        None => source.opaque()[index - source.tensors().len()].clone(),
    });
    let mut found = OpaqueDiff {
        a: in_a,
        b: in_b,
        same_bytes: None,
    };
    if asked && !found.is_different_in_structure() {
        let mut same = true;
        side_by_side(&[a, b], &mut |runs| {
            same &= runs[0] == runs[1];
            done(runs[0].len() as u64)
        })?;
        found.same_bytes = Some(same);
    }
    Ok(found)
}

fn metadata(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> Vec<MetadataDiff> {
    let changed = a
        .iter()
        .filter(|(key, value)| b.get(*key) != Some(value))
        .map(|(key, value)| (key.clone(), Some(value.clone()), b.get(key).cloned()));
    let added = b
        .iter()
        .filter(|(key, _)| !a.contains_key(*key))
        .map(|(key, value)| (key.clone(), None, Some(value.clone())));
    let mut all: Vec<MetadataDiff> = changed.chain(added).collect();
    all.sort();
    all
}

fn compare(
    a: (&dyn Source, usize),
    b: (&dyn Source, usize),
    tolerance: Option<Tolerance>,
    done: &mut dyn FnMut(u64) -> Result<(), ConvertError>,
) -> Result<TensorDiff, ConvertError> {
    let specs = [a, b].map(|(source, index)| source.tensors()[index].clone());
    let mut found = TensorDiff {
        a: specs[0].clone(),
        b: specs[1].clone(),
        numbers: None,
    };
    let Some(tolerance) = tolerance.filter(|_| specs[0].shape == specs[1].shape) else {
        return Ok(found);
    };
    let mut sums = Sums::new(&specs, tolerance);
    let labels = [a.0.label(), b.0.label()];
    side_by_side(&[a, b], &mut |runs| {
        sums.add(runs).map_err(|error| {
            ConvertError::unsupported(labels[0], &specs[0].name, error.to_string())
        })?;
        done(runs[0].len() as u64)
    })?;
    found.numbers = Some(sums.finish());
    Ok(found)
}

/// What adds up while two tensors go by.
struct Sums {
    dtypes: [Dtype; 2],
    tolerance: Tolerance,
    found: NumberDiff,
    position: u64,
    finite: u64,
    products: [f64; 3],
    squares: f64,
    decoder: Decoder,
    values: [Vec<f64>; 2],
}

impl Sums {
    fn new(specs: &[TensorSpec; 2], tolerance: Tolerance) -> Sums {
        let count = number_count(specs[0].dtype, specs[0].element_count().unwrap_or(0));
        let ulp = specs[0].dtype == specs[1].dtype
            && ordinal(
                specs[0].dtype,
                &[0; 8][..(specs[0].dtype.bits() / 8) as usize],
            )
            .is_some();
        Sums {
            dtypes: [specs[0].dtype, specs[1].dtype],
            tolerance,
            found: NumberDiff {
                count,
                max_ulp: ulp.then_some(0),
                ..NumberDiff::default()
            },
            position: 0,
            finite: 0,
            products: [0.0; 3],
            squares: 0.0,
            decoder: Decoder::default(),
            values: [vec![], vec![]],
        }
    }

    fn add(&mut self, runs: &[&[u8]]) -> Result<(), safelight_format::DecodeError> {
        let bytes = (self.dtypes[0].bits() / 8) as usize;
        let mut values = std::mem::take(&mut self.values);
        for side in 0..2 {
            let count = numbers_in(self.dtypes[side], runs[side].len());
            self.decoder
                .decode(self.dtypes[side], runs[side], count, &mut values[side])?;
        }
        for (index, (&x, &y)) in values[0].iter().zip(&values[1]).enumerate() {
            let wide = self.wide_integers_apart(runs, index, [x, y]);
            let apart = match wide {
                Some(apart) => apart,
                None if x == y => 0.0,
                None => (x - y).abs(),
            };
            self.pair(x, y, apart, index as u64);
        }
        if self.found.max_ulp.is_some() && runs[0] != runs[1] {
            let elements = runs[0]
                .chunks_exact(bytes)
                .zip(runs[1].chunks_exact(bytes))
                .zip(values[0].iter().zip(&values[1]));
            let apart = elements
                .filter(|(_, (x, y))| x.is_finite() && y.is_finite())
                .filter_map(|((x, y), _)| {
                    Some(ordinal(self.dtypes[0], x)?.abs_diff(ordinal(self.dtypes[1], y)?))
                });
            self.found.max_ulp = self.found.max_ulp.max(apart.max());
        }
        self.position += values[0].len() as u64;
        self.values = values;
        Ok(())
    }

    /// How far apart two numbers are, whose `values` as f64 are rounded: 64-bit integers above 2⁵³. `None` where f64 is exact.
    fn wide_integers_apart(&self, runs: &[&[u8]], index: usize, values: [f64; 2]) -> Option<f64> {
        let is_wide = |dtype| matches!(dtype, Dtype::I64 | Dtype::U64);
        let exact = (1u64 << 53) as f64;
        if !self.dtypes.into_iter().any(is_wide) || values.iter().all(|value| value.abs() < exact) {
            return None;
        }
        let whole = |side: usize| {
            let eight = runs[side].as_chunks().0.get(index);
            let integer = eight.and_then(|bytes| wide_integer(self.dtypes[side], *bytes));
            integer.or_else(|| {
                let value = values[side];
                let fits = value.fract() == 0.0 && value.abs() < (1u128 << 100) as f64;
                fits.then_some(value as i128)
            })
        };
        Some(whole(0)?.abs_diff(whole(1)?) as f64)
    }

    fn pair(&mut self, x: f64, y: f64, apart: f64, index: u64) {
        if !(x.is_finite() && y.is_finite()) {
            if x != y && !(x.is_nan() && y.is_nan()) {
                self.found.different += 1;
                self.found.beyond += 1;
                self.found.unlike += 1;
            }
            return;
        }
        self.finite += 1;
        self.products[0] += x * y;
        self.products[1] += x * x;
        self.products[2] += y * y;
        if apart == 0.0 {
            return;
        }
        self.found.different += 1;
        self.found.beyond +=
            u64::from(apart > self.tolerance.absolute + self.tolerance.relative * y.abs());
        self.squares += apart * apart;
        if apart > self.found.max_absolute {
            let position = self.position + index;
            self.found.max_at = if self.dtypes[0] == Dtype::C64 {
                position / 2
            } else {
                position
            };
            self.found.max_absolute = apart;
        }
        self.found.max_relative = self.found.max_relative.max(apart / x.abs().max(y.abs()));
    }

    fn finish(mut self) -> NumberDiff {
        let [product, mine, theirs] = self.products;
        self.found.rms = if self.finite == 0 {
            0.0
        } else {
            (self.squares / self.finite as f64).sqrt()
        };
        self.found.cosine = if self.found.different == 0 || (mine == 0.0 && theirs == 0.0) {
            1.0
        } else if mine == 0.0 || theirs == 0.0 {
            0.0
        } else {
            product / (mine.sqrt() * theirs.sqrt())
        };
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Memory;
    use safelight_format::encode_f32;

    fn f32s(values: &[f32]) -> (&'static str, Dtype, Vec<u64>, Vec<u8>) {
        (
            "t",
            Dtype::F32,
            vec![values.len() as u64],
            encode_f32(values),
        )
    }

    fn go_on(_: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn numbers(a: &[f32], b: &[f32], tolerance: Tolerance) -> NumberDiff {
        let (a, b) = (
            Memory::new([f32s(a)]).in_pieces(7),
            Memory::new([f32s(b)]).in_pieces(9),
        );
        diff(&a, &b, Some(tolerance), &|_| true, &go_on)
            .unwrap()
            .both
            .remove(0)
            .numbers
            .unwrap()
    }

    #[test]
    fn numbers_are_measured() {
        let found = numbers(
            &[1.0, 2.0, 0.0, 4.0],
            &[1.0, 2.5, 0.0, 4.0f32.next_up()],
            Tolerance::default(),
        );
        assert_eq!(
            (
                found.count,
                found.different,
                found.beyond,
                found.max_absolute,
                found.max_at
            ),
            (4, 2, 2, 0.5, 1)
        );
        assert_eq!((found.max_relative, found.max_ulp), (0.2, Some(1 << 21)));
        assert!(
            (found.rms - 0.25).abs() < 1e-9
                && (found.cosine - 22.0 / (21f64 * 23.25).sqrt()).abs() < 1e-6,
            "{found:?}"
        );
    }

    #[test]
    fn integers_that_f64_cannot_tell_apart_differ() {
        let check = |dtype: [Dtype; 2], a: u64, b: u64, apart: f64| {
            let specs = dtype.map(|dtype| TensorSpec {
                name: "t".into(),
                dtype,
                shape: vec![1],
            });
            let mut sums = Sums::new(&specs, Tolerance::default());
            sums.add(&[&a.to_le_bytes(), &b.to_le_bytes()]).unwrap();
            let found = sums.finish();
            assert_eq!(
                (found.different, found.max_absolute),
                (u64::from(apart > 0.0), apart),
                "{dtype:?} {a} {b}"
            );
        };
        let two_62 = 1u64 << 62;
        check([Dtype::I64; 2], two_62 + 1, two_62, 1.0);
        check([Dtype::I64; 2], two_62, two_62, 0.0);
        check([Dtype::U64; 2], (1 << 63) + 1, 1 << 63, 1.0);
        check([Dtype::U64; 2], u64::MAX, u64::MAX - 2, 2.0);
        let minus = |value: i64| value as u64;
        check([Dtype::I64; 2], minus(i64::MIN), minus(i64::MIN + 1), 1.0);
        // Apart as f64 as well, by another number.
        check([Dtype::I64; 2], (1 << 53) + 1, (1 << 53) + 2, 1.0);
        check([Dtype::U64; 2], u64::MAX, 1, (u64::MAX - 1) as f64);
        check(
            [Dtype::I64, Dtype::F64],
            (1 << 53) + 1,
            0.5f64.to_bits(),
            2f64.powi(53),
        );
        let float = (2f64.powi(53)).to_bits();
        check([Dtype::I64, Dtype::F64], (1 << 53) + 1, float, 1.0);
        check([Dtype::I64, Dtype::F64], 1 << 53, float, 0.0);
    }

    #[test]
    fn tolerance_is_that_of_isclose() {
        let tolerance = Tolerance {
            relative: 0.1,
            absolute: 0.5,
        };
        // numpy.isclose([0, 10, 10], [0.6, 11.6, 11.5], 0.1, 0.5) is [False, True, True]
        let found = numbers(&[0.0, 10.0, 10.0], &[0.6, 11.6, 11.5], tolerance);
        assert_eq!((found.different, found.beyond), (3, 1));
    }

    #[test]
    fn nan_equals_nan_and_infinities_equal_themselves() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let found = numbers(
            &[nan, inf, nan, inf, inf],
            &[nan, inf, 1.0, -inf, 1.0],
            Tolerance {
                absolute: 1e9,
                relative: 1.0,
            },
        );
        assert_eq!(
            (
                found.different,
                found.unlike,
                found.beyond,
                found.max_absolute
            ),
            (3, 3, 3, 0.0)
        );
        assert_eq!(
            numbers(&[0.0, -0.0], &[-0.0, 0.0], Tolerance::default()).different,
            0
        );
    }

    #[test]
    fn structure_is_compared_by_name() {
        let a = Memory::new([
            ("x", Dtype::F32, vec![1], vec![0; 4]),
            ("y", Dtype::F32, vec![2, 1], vec![0; 8]),
            ("z", Dtype::U8, vec![1], vec![1]),
        ]);
        let mut b = Memory::new([
            ("w", Dtype::F32, vec![1], vec![0; 4]),
            ("y", Dtype::F32, vec![1, 2], vec![0; 8]),
            ("z", Dtype::I8, vec![1], vec![1]),
        ]);
        b.contents.metadata.insert("k".into(), "v".into());
        let found = diff(&a, &b, Some(Tolerance::default()), &|_| true, &go_on).unwrap();
        assert_eq!(
            (
                found.only_a[0].name.as_str(),
                found.only_b[0].name.as_str(),
                found.both.len()
            ),
            ("x", "w", 2)
        );
        assert!(found.both.iter().all(TensorDiff::is_different) && found.both[0].numbers.is_none());
        assert_eq!(found.both[1].numbers.as_ref().unwrap().different, 0);
        assert_eq!(
            found.metadata,
            [("k".to_string(), None, Some("v".to_string()))]
        );
    }

    #[test]
    fn the_same_is_the_same_and_other_dtypes_are_compared_as_numbers() {
        let a = Memory::new([f32s(&[1.5, -2.0])]);
        assert!(
            !diff(&a, &a, Some(Tolerance::default()), &|_| true, &go_on)
                .unwrap()
                .is_different()
        );
        let half = Memory::new([("t", Dtype::F16, vec![2], vec![0x00, 0x3e, 0x00, 0xc0])]);
        let found = diff(&a, &half, Some(Tolerance::default()), &|_| true, &go_on).unwrap();
        let numbers = found.both[0].numbers.as_ref().unwrap();
        assert_eq!(
            (numbers.different, numbers.max_ulp, numbers.cosine),
            (0, None, 1.0)
        );
        assert!(found.is_different());
        let four = |byte| Memory::new([("t", Dtype::F4, vec![2], vec![byte])]);
        assert!(
            diff(
                &four(1),
                &four(2),
                Some(Tolerance::default()),
                &|_| true,
                &go_on
            )
            .unwrap()
            .is_different()
        );
        assert!(
            !diff(
                &four(1),
                &four(1),
                Some(Tolerance::default()),
                &|_| true,
                &go_on
            )
            .unwrap()
            .is_different()
        );
    }
}
