//! What `browse` shows of a tensor's numbers: what `safelight_convert::stats` finds, bars over their range, the first few.

use std::cell::Cell;
use std::ops::ControlFlow;

use safelight_convert::{ConvertError, Source, tensor_bars, tensor_stats};

use crate::numbers::{Number, numbers};

/// How many bars a histogram has.
pub(crate) const BINS: usize = 32;
/// As many first numbers are kept.
const FIRST_MAX: usize = 64;

/// A tensor's numbers in short. Complex ones count as two.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Stats {
    pub(crate) count: u64,
    pub(crate) nan_count: u64,
    pub(crate) infinite_count: u64,
    pub(crate) zero_count: u64,
    /// Of finite numbers, as all below; 0 if there are none.
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) mean: f64,
    pub(crate) deviation: f64,
    /// How many numbers lie in each of equal parts of `min..=max`.
    pub(crate) bins: Vec<u64>,
    pub(crate) first: Vec<Number>,
}

/// Reads a tensor twice: for its extremes, then for its histogram. `go_on` hears how many bytes were read (of twice the tensor's)
/// and says whether anyone still wants to know.
///
/// # Errors
/// What the file says, as text; "stopped" if nobody wanted to know.
pub(crate) fn stats(
    source: &dyn Source,
    index: usize,
    go_on: &dyn Fn(u64) -> bool,
) -> Result<Stats, String> {
    let done = Cell::new(0);
    let progress = |bytes: u64| {
        done.set(done.get() + bytes);
        match go_on(done.get()) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    };
    let told = |error| match error {
        ConvertError::Cancelled => "stopped".to_owned(),
        error => error.to_string(),
    };
    let found = tensor_stats(source, index, &progress).map_err(told)?;
    let mut stats = Stats {
        count: found.count,
        nan_count: found.nan,
        infinite_count: found.infinite(),
        zero_count: found.zero,
        first: first(source, index)?,
        ..Stats::default()
    };
    if found.finite() > 0 {
        (stats.min, stats.max) = (found.min, found.max);
        (stats.mean, stats.deviation) = (found.mean, found.std());
        let range = (found.min, found.max);
        stats.bins = tensor_bars(source, index, range, BINS, &progress).map_err(told)?;
    }
    Ok(stats)
}

/// The first numbers.
fn first(source: &dyn Source, index: usize) -> Result<Vec<Number>, String> {
    let tensor = &source.tensors()[index];
    let count = tensor.element_count().unwrap_or(0).min(FIRST_MAX as u64);
    let bytes_wanted = (count * tensor.dtype.bits()).div_ceil(8) as usize;
    let mut bytes = Vec::new();
    let read = source.read(index, &mut |piece| {
        let more = piece.len().min(bytes_wanted - bytes.len());
        bytes.extend_from_slice(&piece[..more]);
        match bytes.len() < bytes_wanted {
            true => Ok(()),
            false => Err(ConvertError::Cancelled), // enough
        }
    });
    match read {
        Ok(()) | Err(ConvertError::Cancelled) => {}
        Err(error) => return Err(error.to_string()),
    }
    // Four elements of any size fill whole bytes.
    bytes.resize(
        bytes.len().next_multiple_of(tensor.dtype.bits() as usize),
        0,
    );
    let mut first = numbers(tensor.dtype, &bytes).map_err(|error| error.to_string())?;
    first.truncate(count as usize);
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safelight_convert::{CheckpointSource, PIECE_BYTES};
    use safelight_format::{Dtype, HeaderPlan, Order, TensorView};
    use safelight_store::Checkpoint;

    fn of(dtype: Dtype, bytes: &[u8], go_on: &dyn Fn(u64) -> bool) -> Result<Stats, String> {
        let shape = [bytes.len() as u64 * 8 / dtype.bits()];
        let tensors = [TensorView {
            name: "t",
            dtype,
            shape: &shape,
            bytes,
        }];
        let file = HeaderPlan::new(&tensors, None, Order::default())
            .unwrap()
            .to_bytes(&tensors);
        let checkpoint = Checkpoint::from_bytes("test", file).unwrap();
        stats(&CheckpointSource::new(checkpoint), 0, go_on)
    }

    #[test]
    fn numbers_in_short() {
        let values = [1.0f32, -3.0, 0.0, f32::NAN, f32::INFINITY, 2.0];
        let bytes = values.map(f32::to_le_bytes).concat();
        let stats = of(Dtype::F32, &bytes, &|_| true).unwrap();
        assert_eq!(
            (
                stats.count,
                stats.nan_count,
                stats.infinite_count,
                stats.zero_count
            ),
            (6, 1, 1, 1)
        );
        assert_eq!((stats.min, stats.max, stats.mean), (-3.0, 2.0, 0.0));
        assert!(
            (stats.deviation - 3.5f64.sqrt()).abs() < 1e-12,
            "{}",
            stats.deviation
        );
        assert_eq!(
            (
                stats.bins[0],
                stats.bins[BINS - 1],
                stats.bins.iter().sum::<u64>()
            ),
            (1, 1, 4)
        );
        assert_eq!(stats.first.len(), 6);
    }

    #[test]
    fn all_alike_none_finite_and_none_at_all() {
        let stats = of(Dtype::U8, &[7; 100], &|_| true).unwrap();
        assert_eq!(
            (stats.min, stats.max, stats.deviation, stats.bins[0]),
            (7.0, 7.0, 0.0, 100)
        );
        let stats = of(Dtype::F16, &[0, 0x7e, 0, 0x7c], &|_| true).unwrap();
        assert_eq!(
            (stats.nan_count, stats.infinite_count, stats.bins.len()),
            (1, 1, 0)
        );
        let stats = of(Dtype::F32, &[], &|_| true).unwrap();
        assert_eq!((stats.count, stats.bins.len()), (0, 0));
    }

    #[test]
    fn reading_stops_when_nobody_wants_to_know() {
        let bytes = vec![0; PIECE_BYTES + 8];
        assert_eq!(
            of(Dtype::F64, &bytes, &|done| done < 9).unwrap_err(),
            "stopped"
        );
        let count = std::cell::Cell::new(0);
        of(Dtype::F64, &bytes, &|done| {
            count.set(done);
            true
        })
        .unwrap();
        assert_eq!(count.get(), 2 * bytes.len() as u64);
    }
}
