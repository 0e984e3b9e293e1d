//! The micro-kernel of every product: a few rows times one panel of weights, sums in registers.

use std::marker::PhantomData;
use std::ops::Range;

use super::{MatrixTiles, PANEL, Simd, Task, Words};
use crate::precision::Precision;

/// Stands for a run of zeros (padding) instead of a start.
pub(crate) const OUTSIDE: usize = usize::MAX;

/// Where the rows of a product's left matrix lie: row by row `taps` runs of `words` words (for
/// `f32` those are channels). Rows go in tiles of `tile_rows`; those past the last are zeros.
pub(crate) struct Runs<'a> {
    /// `[tile][tap][row in tile]`, each pointing at `words` words that live for `'a`.
    pointers: Vec<*const f32>,
    /// `[tile][tap]`: whether any of the tile's rows is not zeros there.
    live: Vec<bool>,
    taps: usize,
    words: usize,
    tile_rows: usize,
    x: &'a [f32],
    memory: PhantomData<&'a [f32]>,
}

/// The memory of [`Runs`] that are done, for others; what it holds means nothing.
#[derive(Default)]
pub(crate) struct RunsMemory {
    pointers: Vec<*const f32>,
    live: Vec<bool>,
}

impl<'a> Runs<'a> {
    /// Rows that are all zeros until [`Runs::set`]; `zeros` are at least `words` of them.
    pub(crate) fn new(
        x: &'a [f32],
        zeros: &'a [f32],
        (taps, words): (usize, usize),
        tile_rows: usize,
        row_count: usize,
        memory: RunsMemory,
    ) -> Self {
        let tiles = row_count.div_ceil(tile_rows);
        let RunsMemory {
            mut pointers,
            mut live,
        } = memory;
        // All of it is filled anew: nothing that an earlier use pointed at is left.
        pointers.clear();
        pointers.resize(tiles * taps * tile_rows, zeros[..words].as_ptr());
        live.clear();
        live.resize(tiles * taps, false);
        Runs {
            pointers,
            live,
            taps,
            words,
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
            let run = &self.x[start..][..self.words];
            self.pointers[at * self.tile_rows + row] = run.as_ptr();
            self.live[at] = true;
        }
    }

    /// Its memory, for the next.
    pub(crate) fn into_memory(self) -> RunsMemory {
        RunsMemory {
            pointers: self.pointers,
            live: self.live,
        }
    }

    /// How many tiles there are.
    pub(crate) fn tiles(&self) -> usize {
        self.live.len() / self.taps
    }
}

/// What [`super::amx`] asks.
#[cfg(target_arch = "x86_64")]
impl Runs<'_> {
    /// Rows of a tile.
    pub(super) fn tile_rows(&self) -> usize {
        self.tile_rows
    }

    /// Whether any row of `tiles` is not zeros under `tap`.
    pub(super) fn any_live(&self, mut tiles: Range<usize>, tap: usize) -> bool {
        tiles.any(|tile| self.live[tile * self.taps + tap])
    }

    /// Where the runs of `tiles` under `tap` start, if they lie equally far apart: the first, and the bytes to the next.
    #[inline(always)]
    pub(super) fn evenly(&self, tiles: Range<usize>, tap: usize) -> Option<(*const f32, usize)> {
        let first = self.pointers_of(tiles.start, tap).first()?.addr();
        let second = self.pointers_of(tiles.start, tap).get(1)?.addr();
        let stride = second.wrapping_sub(first);
        let mut expected = first;
        for tile in tiles.clone() {
            for pointer in self.pointers_of(tile, tap) {
                if pointer.addr() != expected {
                    return None;
                }
                expected = expected.wrapping_add(stride);
            }
        }
        Some((self.pointers_of(tiles.start, tap)[0], stride))
    }

    /// The words of `part` of the run under `tap` of one row.
    #[inline(always)]
    pub(super) fn part_of(&self, tile: usize, row: usize, tap: usize, part: Part) -> &[f32] {
        assert!(part.skip + part.len <= self.words);
        let run = self.pointers_of(tile, tap)[row];
        // SAFETY: each pointer points at `words` words, as `set` and `new` saw, which live as long as `self`.
        unsafe { std::slice::from_raw_parts(run.add(part.skip), part.len) }
    }

    #[inline(always)]
    fn pointers_of(&self, tile: usize, tap: usize) -> &[*const f32] {
        assert!(tap < self.taps);
        &self.pointers[(tile * self.taps + tap) * self.tile_rows..][..self.tile_rows]
    }
}

/// `sums[row][column] += Σ x · weight` over one part of the sum, for neighbouring tiles.
///
/// Every sum adds its products in the order of the weights, whatever the tile's size is. With
/// [`Words::SCALED`] each run is summed up in whole numbers, scaled, and added to the sums.
#[derive(Clone, Copy)]
pub(crate) struct Multiply<'a> {
    pub(crate) runs: &'a Runs<'a>,
    pub(crate) part: Part,
    /// `[part.taps][part.len][PANEL]`, with [`Words::SCALED`] `[part.taps][part.len + 2][PANEL]`.
    pub(crate) weights: &'a [f32],
    /// Weights needed soon after: fetched into the cache on the way.
    pub(crate) next_weights: &'a [f32],
    /// Starts from 0 instead of from the sums.
    pub(crate) fresh: bool,
}

/// A part of the rows' runs: of `taps` runs from `tap` on, `len` words from `skip` on (left words go
/// [`Words::LEFT`] to each); with [`Words::SCALED`] their scale is the word after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) tap: usize,
    pub(crate) taps: usize,
    pub(crate) skip: usize,
    pub(crate) len: usize,
}

impl Multiply<'_> {
    /// Works on the `count` rows from tile `tile` on: whole tiles, and what is left over. `sums` are those tiles' at least.
    #[inline(always)]
    pub(crate) fn rows<W: Words, S: Simd, const TILE: usize>(
        &self,
        simd: S,
        tile: usize,
        (count, columns): (usize, usize),
        sums: &mut [f32],
        tiles: Option<&mut MatrixTiles<'_>>,
    ) {
        let whole = count / TILE;
        let sums = &mut sums[..count.next_multiple_of(TILE) * PANEL];
        if let Some(tiles) = tiles {
            return tiles.rows::<W, S>(simd, self, tile, count, sums);
        }
        let (wholes, rest) = sums.split_at_mut(whole * TILE * PANEL);
        self.tiles::<W, S, TILE>(simd, tile, (TILE, columns), wholes);
        self.tiles::<W, S, TILE>(simd, tile + whole, (count % TILE, columns), rest);
    }

    /// Fetches what the weights needed next have for `tiles`.
    #[inline(always)]
    pub(super) fn fetch_next<S: Simd>(&self, simd: S, tiles: Range<usize>) {
        let next = self.next_weights;
        let share = next
            .len()
            .div_ceil(self.runs.tiles())
            .next_multiple_of(LINE);
        let (first, end) = (tiles.start * share, tiles.end * share);
        let lines = next[first.min(next.len())..end.min(next.len())].chunks_exact(LINE);
        for line in lines {
            simd.prefetch_far(line.as_ptr());
        }
    }

    /// Works on tiles from `tile` on, as many as `sums`, `[tile][tile_rows][PANEL]`, has; of each
    /// the first `rows` rows and `columns` columns at least.
    #[inline(always)]
    fn tiles<W: Words, S: Simd, const TILE: usize>(
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
                (1, _, _) => simd.apart(Tiles::<W, 1, 2, 1> {
                    words: PhantomData,
                    multiply: self,
                    tile,
                    column,
                    sums,
                }),
                (2, _, _) => simd.apart(Tiles::<W, 2, 2, 1> {
                    words: PhantomData,
                    multiply: self,
                    tile,
                    column,
                    sums,
                }),
                (3 | 4, _, _) => simd.apart(Tiles::<W, 4, 2, 1> {
                    words: PhantomData,
                    multiply: self,
                    tile,
                    column,
                    sums,
                }),
                (_, true, _) => simd.apart(Tiles::<W, TILE, 1, 1> {
                    words: PhantomData,
                    multiply: self,
                    tile,
                    column,
                    sums,
                }),
                (_, false, true) => simd.apart(Tiles::<W, TILE, 2, STEPS> {
                    words: PhantomData,
                    multiply: self,
                    tile,
                    column,
                    sums,
                }),
                (_, false, false) => simd.apart(Tiles::<W, TILE, 2, 1> {
                    words: PhantomData,
                    multiply: self,
                    tile,
                    column,
                    sums,
                }),
            }
        }
    }
}

/// Floats of a cache line.
const LINE: usize = 16;

/// Steps of the inner loop written out, where the channels allow it.
const STEPS: usize = 4;

/// [`Multiply`] for `ROWS` rows and `VECTORS` vectors of each tile, `UNROLL` steps at a time.
struct Tiles<'a, W, const ROWS: usize, const VECTORS: usize, const UNROLL: usize> {
    words: PhantomData<W>,
    multiply: &'a Multiply<'a>,
    tile: usize,
    column: usize,
    sums: &'a mut [f32],
}

impl<W: Words, const ROWS: usize, const VECTORS: usize, const UNROLL: usize> Task
    for Tiles<'_, W, ROWS, VECTORS, UNROLL>
{
    type Output = ();
    const PRECISION: Precision = W::PRECISION;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Multiply {
            runs,
            part,
            weights,
            fresh,
            ..
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
            len.is_multiple_of(UNROLL)
                && W::LEFT * (skip + len) + usize::from(W::SCALED) <= runs.words
                && tap + taps <= runs.taps
        );
        let run_rows = len + if W::SCALED { 2 } else { 0 };
        assert!(weights.len() == taps * run_rows * PANEL);
        for (idx, sums) in self.sums.chunks_exact_mut(stride * PANEL).enumerate() {
            let tile = self.tile + idx;
            self.multiply.fetch_next(simd, tile..tile + 1);
            let sums =
                &mut sums[self.column..(ROWS - 1) * PANEL + self.column + VECTORS * S::LANES];
            let mut acc = [[simd.splat(0.0); VECTORS]; ROWS];
            if W::SCALED && fresh {
                for row in 0..ROWS {
                    for idx in 0..VECTORS {
                        simd.store(acc[row][idx], &mut sums[row * PANEL + idx * S::LANES..]);
                    }
                }
            } else if !W::SCALED && !fresh {
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
                    rows[row] = pointers[run * stride + row].wrapping_add(W::LEFT * skip);
                }
                let next_rows = &next_pointers[run * stride..][..ROWS];
                let panel = &weights[run * run_rows * PANEL + self.column..];
                let weights = panel.as_ptr();
                if W::SCALED && S::BYTE_OFFSET != 0 {
                    let starts = &panel[(len + 1) * PANEL..];
                    for idx in 0..VECTORS {
                        let start = simd.load(&starts[idx * S::LANES..]);
                        for acc in &mut acc {
                            acc[idx] = start;
                        }
                    }
                } else if W::SCALED {
                    acc = [[simd.splat(0.0); VECTORS]; ROWS];
                }
                for k in (0..len).step_by(UNROLL) {
                    if UNROLL == STEPS {
                        // A cache line is four times this: each time, a quarter of the rows; of two
                        // left words to each, two times, and half of them.
                        let turns = 4 / W::LEFT;
                        let share = ROWS.div_ceil(turns);
                        let first = k / UNROLL % turns * share;
                        for row in first..first + share {
                            let at = W::LEFT * (skip + k);
                            simd.prefetch(next_rows[row % ROWS].wrapping_add(at));
                        }
                    }
                    for step_idx in 0..UNROLL {
                        // SAFETY: as asserted, the part is inside the runs, which `Runs` vouches
                        // for, the weights are as many, and the columns inside the panel.
                        unsafe { step::<W, S, _, _>(simd, &rows, weights, k + step_idx, &mut acc) };
                    }
                }
                if W::SCALED {
                    let scales = &panel[len * PANEL..];
                    for idx in 0..VECTORS {
                        let scale = simd.load(&scales[idx * S::LANES..]);
                        for row in 0..ROWS {
                            // SAFETY: as asserted, the runs have a word after the part.
                            let row_scale = simd.splat(unsafe { *rows[row].add(len) });
                            let sums = &mut sums[row * PANEL + idx * S::LANES..];
                            let sum = simd.whole_to_float(acc[row][idx]);
                            let scale = simd.mul(row_scale, scale);
                            simd.store(simd.mul_add(sum, scale, simd.load(sums)), sums);
                        }
                    }
                }
            }
            if !W::SCALED {
                for row in 0..ROWS {
                    for idx in 0..VECTORS {
                        simd.store(acc[row][idx], &mut sums[row * PANEL + idx * S::LANES..]);
                    }
                }
            }
        }
    }
}

/// Adds the products of word `k`: one vector of weights for each of `VECTORS`, one word of each
/// row.
///
/// # Safety
/// `rows` point at more than `k` times [`Words::LEFT`] words; `weights` at the columns of more than `k` panel rows.
#[inline(always)]
unsafe fn step<W: Words, S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    rows: &[*const f32; ROWS],
    weights: *const f32,
    k: usize,
    acc: &mut [[S::V; VECTORS]; ROWS],
) {
    let vectors = std::array::from_fn::<_, VECTORS, _>(|idx| {
        // SAFETY: the caller vouches for the columns of panel row `k`.
        let words = simd.load(unsafe {
            std::slice::from_raw_parts(weights.add(k * PANEL + idx * S::LANES), S::LANES)
        });
        W::right(simd, words)
    });
    for row in 0..ROWS {
        // SAFETY: the caller vouches for `k`.
        let x = |idx| simd.splat(unsafe { *rows[row].add(W::LEFT * k + idx) });
        for idx in 0..VECTORS {
            acc[row][idx] = W::dot(simd, x, vectors[idx], acc[row][idx]);
        }
    }
}
