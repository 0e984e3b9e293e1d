//! The micro-kernel of every product: a few rows times one panel of weights, sums in registers.

use std::marker::PhantomData;

use super::{PANEL, Simd, Task};

/// Stands for a run of zeros (padding) instead of a start.
pub(crate) const OUTSIDE: usize = usize::MAX;

/// Where the rows of a product's left matrix lie: row by row `taps` runs of `channels` floats.
/// Rows go in tiles of `tile_rows`; those past the last are zeros.
pub(crate) struct Runs<'a> {
    /// `[tile][tap][row in tile]`, each pointing at `channels` floats that live for `'a`.
    pointers: Vec<*const f32>,
    /// `[tile][tap]`: whether any of the tile's rows is not zeros there.
    live: Vec<bool>,
    taps: usize,
    channels: usize,
    tile_rows: usize,
    x: &'a [f32],
    memory: PhantomData<&'a [f32]>,
}

impl<'a> Runs<'a> {
    /// Rows that are all zeros until [`Runs::set`]; `zeros` are at least `channels` of them.
    pub(crate) fn new(
        x: &'a [f32],
        zeros: &'a [f32],
        (taps, channels): (usize, usize),
        tile_rows: usize,
        row_count: usize,
    ) -> Self {
        let tiles = row_count.div_ceil(tile_rows);
        Runs {
            pointers: vec![zeros[..channels].as_ptr(); tiles * taps * tile_rows],
            live: vec![false; tiles * taps],
            taps,
            channels,
            tile_rows,
            x,
            memory: PhantomData,
        }
    }

    /// Says where run `tap` of row `row` of a tile starts in `x`; [`OUTSIDE`] leaves zeros.
    ///
    /// # Panics
    /// If the run leaves `x`.
    #[inline(always)]
    pub(crate) fn set(&mut self, (tile, row): (usize, usize), tap: usize, start: usize) {
        if start != OUTSIDE {
            let at = tile * self.taps + tap;
            let run = &self.x[start..][..self.channels];
            self.pointers[at * self.tile_rows + row] = run.as_ptr();
            self.live[at] = true;
        }
    }

    /// How many tiles there are.
    pub(crate) fn tiles(&self) -> usize {
        self.live.len() / self.taps
    }
}

/// `sums[row][column] += Σ x · weight` over one part of the sum, for neighbouring tiles.
///
/// Every sum adds its products in the order of the weights, whatever the tile's size is.
#[derive(Clone, Copy)]
pub(crate) struct Multiply<'a> {
    pub(crate) runs: &'a Runs<'a>,
    pub(crate) part: Part,
    /// `[part.taps · part.len][PANEL]`
    pub(crate) weights: &'a [f32],
    /// Weights needed soon after: fetched into the cache on the way.
    pub(crate) next_weights: &'a [f32],
    /// Starts from 0 instead of from the sums.
    pub(crate) fresh: bool,
}

/// A part of the rows' runs: of `taps` runs from `tap` on, `len` floats from `skip` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) tap: usize,
    pub(crate) taps: usize,
    pub(crate) skip: usize,
    pub(crate) len: usize,
}

impl Multiply<'_> {
    /// Works on tiles from `tile` on, as many as `sums`, `[tile][tile_rows][PANEL]`, has; of each
    /// the first `rows` rows and `columns` columns at least.
    #[inline(always)]
    pub(crate) fn tiles<S: Simd, const TILE: usize>(
        &self,
        simd: S,
        tile: usize,
        (rows, columns): (usize, usize),
        sums: &mut [f32],
    ) {
        for column in (0..columns).step_by(2 * S::LANES) {
            let whole = self.part.len.is_multiple_of(STEPS);
            let one = columns - column <= S::LANES;
            match (rows, one, whole) {
                (1, _, _) => simd.apart(Tiles::<1, 2, 1> {
                    multiply: self,
                    tile,
                    column,
                    sums,
                }),
                (2, _, _) => simd.apart(Tiles::<2, 2, 1> {
                    multiply: self,
                    tile,
                    column,
                    sums,
                }),
                (3 | 4, _, _) => simd.apart(Tiles::<4, 2, 1> {
                    multiply: self,
                    tile,
                    column,
                    sums,
                }),
                (_, true, _) => simd.apart(Tiles::<TILE, 1, 1> {
                    multiply: self,
                    tile,
                    column,
                    sums,
                }),
                (_, false, true) => simd.apart(Tiles::<TILE, 2, STEPS> {
                    multiply: self,
                    tile,
                    column,
                    sums,
                }),
                (_, false, false) => simd.apart(Tiles::<TILE, 2, 1> {
                    multiply: self,
                    tile,
                    column,
                    sums,
                }),
            }
        }
    }
}

/// Steps of the inner loop written out, where the channels allow it.
const STEPS: usize = 4;

/// [`Multiply`] for `ROWS` rows and `VECTORS` vectors of each tile, `UNROLL` steps at a time.
struct Tiles<'a, const ROWS: usize, const VECTORS: usize, const UNROLL: usize> {
    multiply: &'a Multiply<'a>,
    tile: usize,
    column: usize,
    sums: &'a mut [f32],
}

impl<const ROWS: usize, const VECTORS: usize, const UNROLL: usize> Task
    for Tiles<'_, ROWS, VECTORS, UNROLL>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Multiply {
            runs,
            part,
            weights,
            next_weights,
            fresh,
        } = *self.multiply;
        let Part {
            tap,
            taps,
            skip,
            len,
        } = part;
        let stride = runs.tile_rows;
        assert!(self.column + VECTORS * S::LANES <= PANEL && ROWS <= stride);
        assert!(
            len.is_multiple_of(UNROLL) && skip + len <= runs.channels && tap + taps <= runs.taps
        );
        assert!(weights.len() == taps * len * PANEL);
        let share = next_weights
            .len()
            .div_ceil(runs.tiles())
            .next_multiple_of(16);
        for (idx, sums) in self.sums.chunks_exact_mut(stride * PANEL).enumerate() {
            let tile = self.tile + idx;
            let next = &next_weights[(tile * share).min(next_weights.len())..];
            for line in 0..(share.min(next.len())) / 16 {
                simd.prefetch_far(next[line * 16..].as_ptr());
            }
            let sums =
                &mut sums[self.column..(ROWS - 1) * PANEL + self.column + VECTORS * S::LANES];
            let mut acc = [[simd.splat(0.0); VECTORS]; ROWS];
            if !fresh {
                for row in 0..ROWS {
                    for idx in 0..VECTORS {
                        acc[row][idx] = simd.load(&sums[row * PANEL + idx * S::LANES..]);
                    }
                }
            }
            let at = tile * runs.taps + tap;
            let live = &runs.live[at..at + taps];
            let pointers = &runs.pointers[at * stride..(at + taps) * stride];
            let next_at = ((tile + 1).min(runs.tiles() - 1) * runs.taps + tap) * stride;
            let next_pointers = &runs.pointers[next_at..next_at + taps * stride];
            for run in 0..taps {
                if !live[run] {
                    continue;
                }
                let mut rows = [std::ptr::null(); ROWS];
                for row in 0..ROWS {
                    rows[row] = pointers[run * stride + row].wrapping_add(skip);
                }
                let next_rows = &next_pointers[run * stride..][..ROWS];
                let weights = weights[run * len * PANEL + self.column..].as_ptr();
                for k in (0..len).step_by(UNROLL) {
                    if UNROLL == STEPS {
                        // A cache line is four times this: each time, a quarter of the rows.
                        let quarter = ROWS.div_ceil(4);
                        let first = k / UNROLL % 4 * quarter;
                        for row in first..first + quarter {
                            simd.prefetch(next_rows[row % ROWS].wrapping_add(skip + k));
                        }
                    }
                    for step_idx in 0..UNROLL {
                        // SAFETY: as asserted, the part is inside the runs, which `Runs` vouches
                        // for, the weights are as many, and the columns inside the panel.
                        unsafe { step(simd, &rows, weights, k + step_idx, &mut acc) };
                    }
                }
            }
            for row in 0..ROWS {
                for idx in 0..VECTORS {
                    simd.store(acc[row][idx], &mut sums[row * PANEL + idx * S::LANES..]);
                }
            }
        }
    }
}

/// Adds the products of channel `k`: one vector of weights for each of `VECTORS`, one float of
/// each row.
///
/// # Safety
/// `rows` point at more than `k` floats; `weights` at the columns of more than `k` panel rows.
#[inline(always)]
unsafe fn step<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    rows: &[*const f32; ROWS],
    weights: *const f32,
    k: usize,
    acc: &mut [[S::V; VECTORS]; ROWS],
) {
    let mut vectors = [simd.splat(0.0); VECTORS];
    for (idx, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: the caller vouches for the columns of panel row `k`.
        *vector = simd.load(unsafe {
            std::slice::from_raw_parts(weights.add(k * PANEL + idx * S::LANES), S::LANES)
        });
    }
    for row in 0..ROWS {
        // SAFETY: the caller vouches for `k`.
        let x = simd.splat(unsafe { *rows[row].add(k) });
        for idx in 0..VECTORS {
            acc[row][idx] = simd.mul_add(x, vectors[idx], acc[row][idx]);
        }
    }
}
