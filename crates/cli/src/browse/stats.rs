//! What a tensor's numbers look like: extremes, mean, histogram, the first few.

use safelight_convert::{ConvertError, Source};

use crate::numbers::{Number, numbers};

/// How many bars a histogram has.
pub(crate) const BINS: usize = 32;
/// As many first numbers are kept.
const FIRST_MAX: usize = 64;

/// A tensor's numbers in short. Complex ones count by their size.
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
    let mut stats = Stats {
        min: f64::INFINITY,
        max: f64::NEG_INFINITY,
        ..Stats::default()
    };
    // Welford's running mean and sum of squared differences (Knuth, TAOCP 2, 4.2.2, (15) and (16)).
    let (mut finite_count, mut squares) = (0u64, 0.0);
    each(source, index, 0, go_on, &mut |values| {
        for &number in values {
            let value = number.to_f64();
            stats.count += 1;
            if stats.first.len() < FIRST_MAX {
                stats.first.push(number);
            }
            if value.is_nan() {
                stats.nan_count += 1;
            } else if value.is_infinite() {
                stats.infinite_count += 1;
            } else {
                finite_count += 1;
                stats.zero_count += u64::from(value == 0.0);
                (stats.min, stats.max) = (stats.min.min(value), stats.max.max(value));
                let off = value - stats.mean;
                stats.mean += off / finite_count as f64;
                squares += off * (value - stats.mean);
            }
        }
    })?;
    if finite_count == 0 {
        (stats.min, stats.max) = (0.0, 0.0);
        return Ok(stats);
    }
    stats.deviation = (squares / finite_count as f64).sqrt();
    stats.bins = vec![0; BINS];
    let scale = BINS as f64 / (stats.max - stats.min);
    let bytes = source.tensors()[index].byte_count().unwrap_or(0);
    each(source, index, bytes, go_on, &mut |values| {
        for number in values {
            let value = number.to_f64();
            if value.is_finite() {
                // With one value for all, `scale` is infinite and the product NaN, which becomes 0.
                let bin = ((value - stats.min) * scale) as usize;
                stats.bins[bin.min(BINS - 1)] += 1;
            }
        }
    })?;
    Ok(stats)
}

/// Hands all numbers over, piece by piece; pieces need not end where an element does.
fn each(
    source: &dyn Source,
    index: usize,
    bytes_before: u64,
    go_on: &dyn Fn(u64) -> bool,
    take: &mut dyn FnMut(&[Number]),
) -> Result<(), String> {
    let tensor = &source.tensors()[index];
    let mut left = tensor.element_count().unwrap_or(u64::MAX);
    // As few bytes as hold whole elements: four of six bits are three bytes.
    let unit = (tensor.dtype.bits() as usize * 4).div_ceil(8);
    let (mut pending, mut done, mut failed) = (Vec::new(), bytes_before, None);
    let mut decode = |bytes: &[u8]| match numbers(tensor.dtype, bytes) {
        Ok(values) => {
            let len = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(values.len());
            left -= len as u64;
            take(&values[..len]);
            Ok(())
        }
        Err(error) => {
            failed = Some(error.to_string());
            Err(ConvertError::Cancelled)
        }
    };
    let read = source.read(index, &mut |piece| {
        done += piece.len() as u64;
        if !go_on(done) {
            return Err(ConvertError::Cancelled);
        }
        pending.extend_from_slice(piece);
        let whole = pending.len() / unit * unit;
        decode(&pending[..whole])?;
        pending.drain(..whole);
        Ok(())
    });
    let read = read.and_then(|()| decode(&pending));
    match (failed, read) {
        (Some(failed), _) => Err(failed),
        (None, Err(ConvertError::Cancelled)) => Err("stopped".to_owned()),
        (None, read) => read.map_err(|error| error.to_string()),
    }
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
