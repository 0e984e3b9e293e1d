//! The micro-kernel of every product: a few rows times one panel of weights, sums in registers.

use std::array;

use super::{PANEL, Simd};

/// Marks a run of zeros (padding) among the starts of [`TileInput`].
pub(crate) const OUTSIDE: usize = usize::MAX;

/// What one call of [`tile`] multiplies.
pub(crate) struct TileInput<'a> {
    /// The left matrix's memory.
    pub(crate) x: &'a [f32],
    /// Where the rows' runs start in `x`, or [`OUTSIDE`]: `[runs][row_count]`.
    pub(crate) starts: &'a [usize],
    /// Rows between one run's starts and the next's: `[runs][starts_stride]`.
    pub(crate) starts_stride: usize,
    /// Floats of each run, counted from `skip` after its start.
    pub(crate) skip: usize,
    pub(crate) run_len: usize,
    /// At least `run_len` zeros, which stand for runs outside.
    pub(crate) zeros: &'a [f32],
    /// `[runs · run_len][PANEL]`
    pub(crate) weights: &'a [f32],
    /// Read soon after: fetched into the cache on the way.
    pub(crate) next: &'a [f32],
}

/// `sums[row][column] += Σ x · weight`, for `ROWS` rows and `VECTORS` vectors of columns from
/// `column` on; `fresh` starts from 0 instead.
///
/// Every sum adds its products in the order of the weights, whatever `ROWS` is.
///
/// # Panics
/// If a run leaves `x` or a slice is too short.
#[inline(always)]
pub(crate) fn tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    input: &TileInput<'_>,
    column: usize,
    fresh: bool,
    sums: &mut [f32],
) {
    let run_len = input.run_len;
    let runs = input.weights.len() / (run_len * PANEL);
    assert!(column + VECTORS * S::LANES <= PANEL && sums.len() >= ROWS * PANEL);
    assert!(input.zeros.len() >= run_len && input.starts_stride >= ROWS);
    let at = |row: usize, vector: usize| row * PANEL + column + vector * S::LANES;
    let mut acc: [[S::V; VECTORS]; ROWS] = if fresh {
        [[simd.splat(0.0); VECTORS]; ROWS]
    } else {
        array::from_fn(|row| array::from_fn(|vector| simd.load(&sums[at(row, vector)..])))
    };
    for line in input.next.chunks(16) {
        simd.prefetch(line.as_ptr());
    }
    let last = input.x.len().checked_sub(input.skip + run_len);
    for run in 0..runs {
        let starts = &input.starts[run * input.starts_stride..][..ROWS];
        if starts.iter().all(|&start| start == OUTSIDE) {
            continue;
        }
        let rows: [*const f32; ROWS] = array::from_fn(|row| {
            if starts[row] == OUTSIDE {
                return input.zeros.as_ptr();
            }
            assert!(
                last.is_some_and(|last| starts[row] <= last),
                "a run leaves the input"
            );
            input.x[starts[row] + input.skip..].as_ptr()
        });
        let weights = input.weights[run * run_len * PANEL..][..run_len * PANEL].as_ptr();
        for k in 0..run_len {
            // SAFETY: `weights` is `run_len` rows of `PANEL` floats and `k < run_len`;
            // the columns read end at or before `PANEL`, as asserted.
            let row_of_weights = unsafe {
                std::slice::from_raw_parts(weights.add(k * PANEL + column), VECTORS * S::LANES)
            };
            let weights: [S::V; VECTORS] =
                array::from_fn(|vector| simd.load(&row_of_weights[vector * S::LANES..]));
            for row in 0..ROWS {
                // SAFETY: each of `rows` points at `run_len` floats: those in `x` start at or
                // before `last`, and `zeros` is long enough.
                let x = simd.splat(unsafe { *rows[row].add(k) });
                for vector in 0..VECTORS {
                    acc[row][vector] = simd.mul_add(x, weights[vector], acc[row][vector]);
                }
            }
        }
    }
    for row in 0..ROWS {
        for vector in 0..VECTORS {
            simd.store(acc[row][vector], &mut sums[at(row, vector)..]);
        }
    }
}
