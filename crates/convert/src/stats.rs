//! What numbers a tensor holds: NaN, infinities, zeros, range, mean, spread and a histogram of magnitudes, in one pass.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use safelight_format::TensorSpec;

use crate::adapt::pieces::for_each_run;
use crate::error::ConvertError;
use crate::numbers::{Decoder, eight_bytes, number_count, numbers_in, wide_integer};
use crate::source::Source;

/// The largest power of two a histogram tells apart; beyond it everything falls into the last bin.
const EXPONENT_MAX: i32 = 128;
/// The smallest.
const EXPONENT_MIN: i32 = -150;
const BINS: usize = (EXPONENT_MAX - EXPONENT_MIN + 1) as usize;
/// Brings numbers whose squares are beyond the largest f64 back into range, exactly: 2^-600.
const SMALLER: f64 = f64::from_bits((1023 - 600) << 52);
/// Numbers whose mean is taken together.
const BLOCK: usize = 8192;

/// How many numbers have which magnitude: finite ones other than 0, by sign and by power of two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Exponent, negative and positive numbers; ascending, without empty ones.
    filled: Vec<(i32, u64, u64)>,
}

impl Histogram {
    /// The bins from the least to the greatest magnitude that is there: exponent `e`, how many numbers have a magnitude
    /// in `[2^e, 2^(e+1))` and are negative, and how many are positive. Magnitudes beyond 2^-150 and 2^128 are counted
    /// in the outermost bins.
    pub fn bins(&self) -> Vec<(i32, u64, u64)> {
        let mut bins: Vec<(i32, u64, u64)> = Vec::new();
        for &bin in &self.filled {
            while let Some(&(last, ..)) = bins.last().filter(|(last, ..)| last + 1 < bin.0) {
                bins.push((last + 1, 0, 0));
            }
            bins.push(bin);
        }
        bins
    }

    fn merge(&mut self, other: &Histogram) {
        let mut all = BTreeMap::<i32, (u64, u64)>::new();
        for &(exponent, negative, positive) in self.filled.iter().chain(&other.filled) {
            let bin = all.entry(exponent).or_default();
            *bin = (bin.0 + negative, bin.1 + positive);
        }
        let bins = all
            .into_iter()
            .map(|(exponent, (negative, positive))| (exponent, negative, positive));
        self.filled = bins.collect();
    }
}

/// Every bin, while numbers are counted.
struct Bins([[u64; 2]; BINS]);

impl Bins {
    fn add(&mut self, value: f64) {
        // A denormal f64 is far below the first bin.
        let exponent = ((value.to_bits() >> 52) & 0x7ff) as i32 - 1023;
        let index = (exponent.clamp(EXPONENT_MIN, EXPONENT_MAX) - EXPONENT_MIN) as usize;
        self.0[index][usize::from(value > 0.0)] += 1;
    }

    fn histogram(&self) -> Histogram {
        let bins = self.0.iter().zip(EXPONENT_MIN..);
        let filled = bins.filter(|(counts, _)| counts.iter().any(|&count| count > 0));
        Histogram {
            filled: filled
                .map(|(&[negative, positive], exponent)| (exponent, negative, positive))
                .collect(),
        }
    }
}

/// What the numbers of one tensor, or of several, are.
///
/// Range, mean and spread are of the finite numbers; a complex number counts as two.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    /// How many numbers.
    pub count: u64,
    /// Of them NaN.
    pub nan: u64,
    /// Plus infinity.
    pub positive_infinity: u64,
    /// Minus infinity.
    pub negative_infinity: u64,
    /// Zero, of either sign.
    pub zero: u64,
    /// The least; NaN if none is finite.
    pub min: f64,
    /// The greatest; NaN if none is finite.
    pub max: f64,
    /// NaN if none is finite.
    pub mean: f64,
    /// NaN if none is finite.
    std: f64,
    /// By magnitude.
    pub histogram: Histogram,
}

impl Default for Numbers {
    fn default() -> Numbers {
        Numbers {
            count: 0,
            nan: 0,
            positive_infinity: 0,
            negative_infinity: 0,
            zero: 0,
            min: f64::NAN,
            max: f64::NAN,
            mean: f64::NAN,
            std: f64::NAN,
            histogram: Histogram::default(),
        }
    }
}

impl Numbers {
    /// Finite numbers.
    pub fn finite(&self) -> u64 {
        self.count - self.nan - self.positive_infinity - self.negative_infinity
    }

    /// Infinities of both signs.
    pub fn infinite(&self) -> u64 {
        self.positive_infinity + self.negative_infinity
    }

    /// The standard deviation of the finite numbers (divided by their count, as numpy's default); NaN if there are none.
    pub fn std(&self) -> f64 {
        self.std
    }

    fn add_block(&mut self, values: &[f64], bins: &mut Bins) {
        let mut block = Numbers {
            count: values.len() as u64,
            ..Numbers::default()
        };
        let mut sum = 0.0;
        for &value in values {
            if value == 0.0 {
                block.zero += 1;
            } else if value.is_finite() {
                bins.add(value);
            } else if value.is_nan() {
                block.nan += 1;
                continue;
            } else {
                let side = if value > 0.0 {
                    &mut block.positive_infinity
                } else {
                    &mut block.negative_infinity
                };
                *side += 1;
                continue;
            }
            sum += value;
            block.min = block.min.min(value);
            block.max = block.max.max(value);
        }
        let finite = || values.iter().filter(|value| value.is_finite());
        let count = block.finite() as f64;
        block.mean = match sum.is_finite() {
            true => sum / count,
            false => finite().map(|value| value / count).sum(),
        };
        let variance = |scale: f64| {
            let mean = block.mean * scale;
            let apart = finite().map(|value| value * scale - mean);
            apart.map(|apart| apart * apart).sum::<f64>() / count
        };
        let plain = variance(1.0);
        block.std = match plain.is_infinite() {
            false => plain.sqrt(),
            true => variance(SMALLER).sqrt() / SMALLER,
        };
        if block.min == block.max {
            (block.mean, block.std) = (block.min, 0.0); // not what rounding makes of it
        }
        self.join(&block);
    }

    /// Takes the numbers of another tensor or piece in: mean and spread by Chan, Golub and LeVeque 1979, eq. 2.1, in terms of
    /// standard deviations, whose squares may be beyond the largest number.
    pub fn merge(&mut self, other: &Numbers) {
        self.histogram.merge(&other.histogram);
        self.join(other);
    }

    fn join(&mut self, other: &Numbers) {
        let (mine, others) = (self.finite() as f64, other.finite() as f64);
        if mine == 0.0 {
            (self.mean, self.std) = (other.mean, other.std);
        } else if others > 0.0 {
            let (mine, others) = (mine / (mine + others), others / (mine + others));
            let within = (self.std * mine.sqrt()).hypot(other.std * others.sqrt());
            let weight = (mine * others).sqrt();
            self.std = within.hypot(other.mean * weight - self.mean * weight);
            let apart = other.mean - self.mean;
            self.mean = match apart.is_finite() {
                true => self.mean + apart * others,
                false => self.mean * mine + other.mean * others,
            };
        }
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.count += other.count;
        self.nan += other.nan;
        self.positive_infinity += other.positive_infinity;
        self.negative_infinity += other.negative_infinity;
        self.zero += other.zero;
    }
}

/// One tensor and its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorStats {
    /// Name, dtype and shape.
    pub tensor: TensorSpec,
    /// Its numbers.
    pub numbers: Numbers,
    /// The least and the greatest of 64-bit integers, which [`Numbers`] rounds beyond 2⁵³; `None` for other dtypes and for
    /// none at all.
    pub integers: Option<(i128, i128)>,
}

/// The numbers of every tensor of `source` that is wanted, in the source's order; several tensors at a time. Tensors of unknown
/// dtypes ([`Source::opaque`]) have none, and are left out.
///
/// `progress` hears of bytes that are done, from several threads, and stops the work by [`ControlFlow::Break`]. Memory:
/// a piece for each thread.
///
/// # Errors
/// [`ConvertError::Cancelled`]; what the source says.
pub fn stats(
    source: &dyn Source,
    wanted: &(dyn Fn(&TensorSpec) -> bool + Sync),
    progress: &(dyn Fn(u64) -> ControlFlow<()> + Sync),
) -> Result<Vec<TensorStats>, ConvertError> {
    let stopped = AtomicBool::new(false);
    let tensors: Vec<usize> = (0..source.tensors().len())
        .filter(|&index| wanted(&source.tensors()[index]))
        .collect();
    source.check(&tensors)?;
    tensors
        .into_par_iter()
        .map(|index| {
            let (numbers, integers) = numbers_of(source, index, &mut |bytes| {
                if stopped.load(Ordering::Relaxed) || progress(bytes).is_break() {
                    stopped.store(true, Ordering::Relaxed);
                    return Err(ConvertError::Cancelled);
                }
                Ok(())
            })?;
            Ok(TensorStats {
                tensor: source.tensors()[index].clone(),
                numbers,
                integers,
            })
        })
        .collect()
}

/// The numbers of tensor `index` alone. `progress` hears of bytes that are done, as in [`stats`].
///
/// # Errors
/// As [`stats`].
///
/// # Panics
/// If there are not that many tensors.
pub fn tensor_stats(
    source: &dyn Source,
    index: usize,
    progress: &dyn Fn(u64) -> ControlFlow<()>,
) -> Result<Numbers, ConvertError> {
    let (numbers, _) = numbers_of(source, index, &mut |bytes| goes_on(progress(bytes)))?;
    Ok(numbers)
}

/// How many finite numbers of tensor `index` lie in each of `bar_count` equal parts of `min..=max`; those outside are not
/// counted. `progress` hears of bytes that are done, as in [`stats`].
///
/// # Errors
/// As [`stats`].
///
/// # Panics
/// If there are not that many tensors, or no bar.
pub fn tensor_bars(
    source: &dyn Source,
    index: usize,
    (min, max): (f64, f64),
    bar_count: usize,
    progress: &dyn Fn(u64) -> ControlFlow<()>,
) -> Result<Vec<u64>, ConvertError> {
    assert!(bar_count > 0, "numbers are counted in at least one bar");
    let mut bars = vec![0; bar_count];
    let scale = bar_count as f64 / (max - min);
    let mut done = |bytes| goes_on(progress(bytes));
    for_each_block(source, index, &mut done, &mut |_, values| {
        for value in values.iter().filter(|value| (min..=max).contains(*value)) {
            // With one value for all, `scale` is infinite and the product NaN, which becomes 0.
            let bar = ((value - min) * scale) as usize;
            bars[bar.min(bar_count - 1)] += 1;
        }
    })?;
    Ok(bars)
}

fn goes_on(progress: ControlFlow<()>) -> Result<(), ConvertError> {
    match progress {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ConvertError::Cancelled),
    }
}

fn numbers_of(
    source: &dyn Source,
    index: usize,
    done: &mut dyn FnMut(u64) -> Result<(), ConvertError>,
) -> Result<(Numbers, Option<(i128, i128)>), ConvertError> {
    let (mut numbers, mut bins) = (Numbers::default(), Bins([[0; 2]; BINS]));
    let (dtype, mut integers) = (source.tensors()[index].dtype, None);
    for_each_block(source, index, done, &mut |bytes, values| {
        numbers.add_block(values, &mut bins);
        for number in bytes.as_chunks().0 {
            let Some(number) = wide_integer(dtype, *number) else {
                break;
            };
            let (least, greatest) = integers.unwrap_or((number, number));
            integers = Some((number.min(least), number.max(greatest)));
        }
    })?;
    numbers.histogram = bins.histogram();
    Ok((numbers, integers))
}

/// Hands all numbers of a tensor over, as bytes and decoded, [`BLOCK`] at a time.
fn for_each_block(
    source: &dyn Source,
    index: usize,
    done: &mut dyn FnMut(u64) -> Result<(), ConvertError>,
    take: &mut dyn FnMut(&[u8], &[f64]),
) -> Result<(), ConvertError> {
    let tensor = &source.tensors()[index];
    let mut left = number_count(tensor.dtype, tensor.element_count().unwrap_or(u64::MAX));
    let (mut decoder, mut values) = (Decoder::default(), Vec::with_capacity(BLOCK));
    let eight = eight_bytes(tensor.dtype);
    for_each_run(source, index, eight, &mut |run| {
        for block in run.chunks(eight * (BLOCK / 8)) {
            let count = numbers_in(tensor.dtype, block.len())
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            left -= count as u64;
            let decoded = decoder.decode(tensor.dtype, block, count, &mut values);
            decoded.map_err(|error| {
                ConvertError::unsupported(source.label(), &tensor.name, error.to_string())
            })?;
            take(block, &values);
        }
        done(run.len() as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Memory;
    use safelight_format::{Dtype, encode_f32};

    fn numbers(dtype: Dtype, shape: Vec<u64>, bytes: Vec<u8>, piece: usize) -> Numbers {
        let memory = Memory::new(vec![("t", dtype, shape, bytes)]).in_pieces(piece);
        stats(&memory, &|_| true, &|_| ControlFlow::Continue(()))
            .unwrap()
            .remove(0)
            .numbers
    }

    #[test]
    fn the_range_of_64_bit_integers_is_exact() {
        let range = |dtype, bytes: Vec<u8>, piece| {
            let memory = Memory::new(vec![("t", dtype, vec![bytes.len() as u64 / 8], bytes)]);
            let found = stats(&memory.in_pieces(piece), &|_| true, &|_| {
                ControlFlow::Continue(())
            });
            found.unwrap().remove(0).integers
        };
        let signed = [(1 << 62) + 1, i64::MIN + 1, i64::MAX - 1, 0].map(i64::to_le_bytes);
        let unsigned = [u64::MAX - 1, (1 << 53) + 1].map(u64::to_le_bytes);
        for piece in [8, 13, 1 << 20] {
            let most = (i128::from(i64::MIN) + 1, i128::from(i64::MAX) - 1);
            assert_eq!(range(Dtype::I64, signed.concat(), piece), Some(most));
            let most = ((1 << 53) + 1, i128::from(u64::MAX) - 1);
            assert_eq!(range(Dtype::U64, unsigned.concat(), piece), Some(most));
            assert_eq!(range(Dtype::F64, unsigned.concat(), piece), None);
            assert_eq!(range(Dtype::I64, Vec::new(), piece), None);
        }
    }

    #[test]
    fn every_kind_of_number_is_counted() {
        let values = [
            1.0,
            -2.0,
            0.0,
            -0.0,
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            1e-40,
        ];
        let found = numbers(Dtype::F32, vec![8], encode_f32(&values), 5);
        assert_eq!(
            (
                found.count,
                found.nan,
                found.infinite(),
                found.zero,
                found.finite()
            ),
            (8, 1, 2, 2, 5)
        );
        assert_eq!((found.min, found.max), (-2.0, 1.0));
        let bins = found.histogram.bins();
        assert_eq!((bins[0], bins[bins.len() - 1]), ((-133, 0, 1), (1, 1, 0)));
        assert_eq!(
            bins.iter()
                .map(|(_, negative, positive)| negative + positive)
                .sum::<u64>(),
            3
        );
    }

    /// numpy: `x = numpy.arange(100000, dtype="f4") / 7 + 1e6; x.astype("f8").mean(), x.astype("f8").std()`.
    #[test]
    fn mean_and_spread_survive_a_large_offset() {
        let values: Vec<f32> = (0..100_000).map(|i| i as f32 / 7.0 + 1e6).collect();
        let exact: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
        let mean = exact.iter().sum::<f64>() / 1e5;
        let std = (exact
            .iter()
            .map(|value| (value - mean).powi(2))
            .sum::<f64>()
            / 1e5)
            .sqrt();
        for piece in [7, 4096, 1 << 20] {
            let found = numbers(Dtype::F32, vec![100_000], encode_f32(&values), piece);
            assert!(
                (found.mean - mean).abs() < 1e-7 && (found.std() - std).abs() < 1e-7,
                "{} {mean}, {} {std}",
                found.mean,
                found.std()
            );
        }
    }

    #[test]
    fn every_dtype_has_numbers() {
        for dtype in Dtype::ALL {
            let found = numbers(dtype, vec![8], vec![0; dtype.bits() as usize], 3);
            assert_eq!(
                found.count,
                if dtype == Dtype::C64 { 16 } else { 8 },
                "{dtype}"
            );
        }
        assert_eq!(numbers(Dtype::F4, vec![2], vec![0x22], 1).mean, 1.0);
    }

    #[test]
    fn nothing_has_no_mean() {
        let found = numbers(Dtype::F32, vec![0], vec![], 1);
        assert!(
            found.mean.is_nan()
                && found.std().is_nan()
                && found.min.is_nan()
                && found.histogram.bins().is_empty()
        );
        let mut all = found.clone();
        all.merge(&numbers(Dtype::U8, vec![2], vec![1, 3], 1));
        assert_eq!((all.count, all.mean, all.std()), (2, 2.0, 1.0));
    }

    #[test]
    fn bars_are_equal_parts_of_a_range() {
        let values = [1.0, -3.0, 0.0, f32::NAN, f32::INFINITY, 2.0];
        let memory = Memory::new(vec![
            ("t", Dtype::F32, vec![6], encode_f32(&values)),
            ("alike", Dtype::U8, vec![100], vec![7; 100]),
        ]);
        let memory = memory.in_pieces(5);
        let go_on = &|_| ControlFlow::Continue(());
        let found = tensor_stats(&memory, 0, go_on).unwrap();
        let bars = tensor_bars(&memory, 0, (found.min, found.max), 5, go_on).unwrap();
        assert_eq!(bars, [1, 0, 0, 1, 2]);
        assert_eq!(tensor_bars(&memory, 0, (0.0, 1.0), 1, go_on).unwrap(), [2]);
        assert_eq!(
            tensor_bars(&memory, 1, (7.0, 7.0), 3, go_on).unwrap(),
            [100, 0, 0]
        );
        let stop = &|_| ControlFlow::Break(());
        assert!(matches!(
            tensor_stats(&memory, 0, stop),
            Err(ConvertError::Cancelled)
        ));
        let stopped = tensor_bars(&memory, 0, (0.0, 1.0), 1, stop);
        assert!(matches!(stopped, Err(ConvertError::Cancelled)));
    }

    #[test]
    fn it_stops_when_asked() {
        let memory = Memory::new(vec![("t", Dtype::U8, vec![100], vec![0; 100])]).in_pieces(8);
        let stopped = stats(&memory, &|_| true, &|_| ControlFlow::Break(()));
        assert!(matches!(stopped, Err(ConvertError::Cancelled)));
    }

    #[test]
    fn squares_beyond_the_largest_number_are_no_infinity() {
        let bytes = |values: &[f64]| {
            values
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<_>>()
        };
        let of = |values: &[f64]| {
            numbers(
                Dtype::F64,
                vec![values.len() as u64],
                bytes(values),
                1 << 20,
            )
        };
        let near = |found: f64, expected: f64| {
            assert!(
                (found / expected - 1.0).abs() < 1e-12,
                "{found:e} {expected:e}"
            );
        };
        near(of(&[1e300, -1e300]).std(), 1e300);
        // Those of numpy 2.4 for [1, 2, 3, 4] times 4e307.
        let found = of(&[4e307, 8e307, 12e307, 16e307]);
        near(found.mean, 1e308);
        near(found.std(), 1.118033988749895 * 4e307);
        // More than one block, far apart.
        let mut values = vec![1.5e308; BLOCK];
        values.extend(vec![-1.5e308; BLOCK]);
        let found = of(&values);
        assert_eq!(found.mean, 0.0);
        near(found.std(), 1.5e308);
        // And none where all are the same.
        assert_eq!(of(&vec![0.1; 3 * BLOCK]).std(), 0.0);
    }
}
