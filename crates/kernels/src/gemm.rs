//! Matrix products with packed weights: `out = epilogue(x · weightᵀ)`, the linear layers.
//!
//! Leaves to `conv` how a convolution is such a product, to `arch` the instructions.

use rayon::prelude::*;

use crate::arch::{
    self, Aligned, Multiply, OUTSIDE, PANEL, Part, Rectangle, Runs, Simd, Task, rectangles,
};
use crate::epilogue::{Epilogue, Finish};
use crate::level::{Level, level};

/// Channels whose weights, of a whole panel and nine taps, fit the second-level cache together.
const PACKED_AT_ONCE: usize = 128;

/// Weights laid out as kernels read them: panels of 32 output channels, `[ceil(N/32)][K][32]`,
/// the last one filled up with zeros.
#[derive(Clone, Debug)]
pub(crate) struct Panels {
    data: Aligned,
    columns: usize,
    depth: usize,
}

impl Panels {
    /// Packs `weight`, `[columns][channels][taps]`; a row of a panel is a tap's channel.
    ///
    /// # Panics
    /// If the length is another or a size is 0.
    pub(crate) fn pack(weight: &[f32], columns: usize, channels: usize, taps: usize) -> Self {
        let depth = channels * taps;
        assert!(columns > 0 && depth > 0, "[{columns}, {channels}, {taps}]");
        assert_eq!(
            weight.len(),
            columns * depth,
            "[{columns}, {channels}, {taps}]"
        );
        let mut data = Aligned::zeros(columns.div_ceil(PANEL) * depth * PANEL);
        let panels = data.as_mut_slice().par_chunks_exact_mut(depth * PANEL);
        panels
            .zip(weight.par_chunks(PANEL * depth))
            .for_each(|(panel, weight)| {
                let count = weight.len() / depth;
                for first in (0..channels).step_by(PACKED_AT_ONCE) {
                    for tap in 0..taps {
                        for channel in first..channels.min(first + PACKED_AT_ONCE) {
                            let row = &mut panel[(tap * channels + channel) * PANEL..][..count];
                            let weight = weight[channel * taps + tap..].iter().step_by(depth);
                            for (x, weight) in row.iter_mut().zip(weight) {
                                *x = *weight;
                            }
                        }
                    }
                }
            });
        Panels {
            data,
            columns,
            depth,
        }
    }

    /// Output channels.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// `[K][32]` of one panel.
    pub(crate) fn panel(&self, panel_idx: usize) -> &[f32] {
        let size = self.depth * PANEL;
        &self.data.as_slice()[panel_idx * size..][..size]
    }

    /// Bytes of the packed weights.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.data.as_slice())
    }
}

/// Where the rows of the left matrix lie in memory: row `row` is `taps` runs of `channels` floats.
pub(crate) trait Rows: Sync {
    /// Runs in a row: 1 for a linear layer, kernel height × width for a convolution.
    fn taps(&self) -> usize;
    /// Floats in a run: input channels.
    fn channels(&self) -> usize;
    /// Tells, tap by tap, where the runs of `row` start, [`OUTSIDE`] where one is all zeros.
    fn starts(&self, row: usize, tell: impl FnMut(usize));
}

/// `out[row] = epilogue(Σ over taps and channels of x · weight)`, the heart of `gemm` and `conv`.
pub(crate) fn product<R: Rows>(
    level: Level,
    x: &[f32],
    rows: &R,
    panels: &Panels,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
) {
    let columns = panels.columns();
    let finish = Finish::new(epilogue, out.len() / columns, columns);
    let (rows_max, panels_max) = piece(out.len() / columns, panels, rows.channels());
    let pieces = rectangles(out, columns, rows_max, panels_max * PANEL);
    pieces
        .into_par_iter()
        .with_max_len(1)
        .for_each(|out| match level {
            Level::Scalar => arch::run(
                level,
                Plain {
                    x,
                    rows,
                    panels,
                    finish,
                    out,
                },
            ),
            Level::Avx2 => arch::run(
                level,
                Blocked::<_, 6> {
                    x,
                    rows,
                    panels,
                    finish,
                    out,
                },
            ),
            Level::Avx512 => arch::run(
                level,
                Blocked::<_, 8> {
                    x,
                    rows,
                    panels,
                    finish,
                    out,
                },
            ),
        });
}

/// Output rows and panels that one thread does at a time, by size alone.
///
/// Half of a 2 MiB second-level cache holds the rows of the left matrix, which every panel reads
/// again. A piece is some 8 million products, a tenth of a millisecond, or 1 MiB of weights: a
/// single row waits for those, and the more threads read them, the better.
fn piece(rows: usize, panels: &Panels, channels: usize) -> (usize, usize) {
    let rows_max = (256 * 1024 / channels / 48 * 48).clamp(240, 480);
    let weights = panels.depth * PANEL;
    let by_work = 8_000_000 / (rows_max.min(rows).max(1) * weights);
    let by_weights = 256 * 1024 / weights;
    (rows_max, by_work.min(by_weights).max(1))
}

/// Products of one pass over a piece's rows: their weights, 40 KiB, stay in the nearest caches.
const PART: usize = 320;

/// Cuts `taps` × `channels` products into parts of at most [`PART`], by size alone.
fn parts(taps: usize, channels: usize) -> Vec<Part> {
    if channels <= PART {
        let taps_max = PART / channels;
        let part = |tap| Part {
            tap,
            taps: taps_max.min(taps - tap),
            skip: 0,
            len: channels,
        };
        return (0..taps).step_by(taps_max).map(part).collect();
    }
    let len = channels
        .div_ceil(channels.div_ceil(PART))
        .next_multiple_of(4);
    let mut all = Vec::new();
    for tap in 0..taps {
        for skip in (0..channels).step_by(len) {
            all.push(Part {
                tap,
                taps: 1,
                skip,
                len: len.min(channels - skip),
            });
        }
    }
    all
}

/// The fast version: `TILE` rows at a time in registers, the sum in parts.
struct Blocked<'a, R, const TILE: usize> {
    x: &'a [f32],
    rows: &'a R,
    panels: &'a Panels,
    finish: Finish<'a>,
    out: Rectangle<'a>,
}

impl<R: Rows, const TILE: usize> Task for Blocked<'_, R, TILE> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let (taps, channels) = (self.rows.taps(), self.rows.channels());
        let zeros = vec![0.0; channels];
        let mut runs = Runs::new(self.x, &zeros, (taps, channels), TILE, self.out.row_count);
        for row in 0..self.out.row_count {
            let mut tap = 0;
            self.rows.starts(self.out.row + row, |start| {
                runs.set((row / TILE, row % TILE), tap, start);
                tap += 1;
            });
        }
        let parts = parts(taps, channels);
        let mut sums = Aligned::zeros(runs.tiles() * TILE * PANEL);
        for column in (0..self.out.column_count).step_by(PANEL) {
            let width = PANEL.min(self.out.column_count - column);
            let mut panel = self.panels.panel((self.out.column + column) / PANEL);
            for (idx, &part) in parts.iter().enumerate() {
                let (weights, after) = panel.split_at(part.taps * part.len * PANEL);
                panel = after;
                let next_weights = &after[..after.len().min(weights.len())];
                let fresh = idx == 0;
                let last = idx + 1 == parts.len();
                let multiply = Multiply {
                    runs: &runs,
                    part,
                    weights,
                    next_weights,
                    fresh,
                };
                let groups = sums.as_mut_slice().chunks_mut(GROUP * TILE * PANEL);
                for (group, sums) in groups.enumerate() {
                    let row = group * GROUP * TILE;
                    let count = self.out.row_count - row;
                    let whole = (count / TILE).min(GROUP);
                    let (wholes, rest) = sums.split_at_mut(whole * TILE * PANEL);
                    let tile = group * GROUP;
                    multiply.tiles::<S, TILE>(simd, tile, (TILE, width), wholes);
                    multiply.tiles::<S, TILE>(simd, tile + whole, (count % TILE, width), rest);
                    if last {
                        let sums = &sums[..count.min(GROUP * TILE) * PANEL];
                        let (finish, out) = (&self.finish, &mut self.out);
                        simd.apart(Write {
                            finish,
                            sums,
                            out,
                            row,
                            column,
                            width,
                        });
                    }
                }
            }
        }
    }
}

/// Tiles whose sums are finished together, while they are in the first-level cache.
const GROUP: usize = 8;

/// [`Finish::rows`] as a function of its own.
struct Write<'a, 'b> {
    finish: &'a Finish<'b>,
    sums: &'a [f32],
    out: &'a mut Rectangle<'b>,
    row: usize,
    column: usize,
    width: usize,
}

impl Task for Write<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.finish.rows(
            simd,
            self.sums,
            self.out,
            (self.row, self.column),
            self.width,
        );
    }
}

/// The specification: one sum for each element, tap by tap, channel by channel.
struct Plain<'a, R> {
    x: &'a [f32],
    rows: &'a R,
    panels: &'a Panels,
    finish: Finish<'a>,
    out: Rectangle<'a>,
}

impl<R: Rows> Task for Plain<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        for column in (0..self.out.column_count).step_by(PANEL) {
            let width = PANEL.min(self.out.column_count - column);
            for row_idx in 0..self.out.row_count {
                let (row, first_column) = (self.out.row + row_idx, self.out.column + column);
                let sums = self.sums(row, first_column / PANEL);
                self.finish
                    .rows(simd, &sums, &mut self.out, (row_idx, column), width);
            }
        }
    }
}

impl<R: Rows> Plain<'_, R> {
    /// The sums of one row and one panel.
    fn sums(&self, row: usize, panel_idx: usize) -> [f32; PANEL] {
        let channels = self.rows.channels();
        let mut taps = self.panels.panel(panel_idx).chunks_exact(channels * PANEL);
        let mut sums = [0.0; PANEL];
        self.rows.starts(row, |start| {
            let weights = taps.next().expect("weights for every tap");
            if start == OUTSIDE {
                return;
            }
            let x = &self.x[start..start + channels];
            for (x, weights) in x.iter().zip(weights.as_chunks::<PANEL>().0) {
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum += x * weight;
                }
            }
        });
        sums
    }
}

/// The weights of a linear layer, packed once.
#[derive(Clone, Debug)]
pub struct PackedLinear {
    panels: Panels,
    in_features: usize,
}

impl PackedLinear {
    /// Packs `weight`, `[out_features, in_features]` as checkpoints have it.
    ///
    /// # Panics
    /// If the length is another or a size is 0.
    pub fn new(weight: &[f32], out_features: usize, in_features: usize) -> Self {
        let panels = Panels::pack(weight, out_features, in_features, 1);
        PackedLinear {
            panels,
            in_features,
        }
    }

    /// Width of an input row.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Width of an output row.
    pub fn out_features(&self) -> usize {
        self.panels.columns()
    }

    /// Bytes the packed weights take.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }
}

/// Rows of a contiguous matrix.
struct Contiguous {
    channels: usize,
}

impl Rows for Contiguous {
    fn taps(&self) -> usize {
        1
    }
    fn channels(&self) -> usize {
        self.channels
    }
    fn starts(&self, row: usize, mut tell: impl FnMut(usize)) {
        tell(row * self.channels);
    }
}

/// A linear layer: `x` is `[rows, in_features]`, `out` is `[rows, out_features]`.
///
/// # Panics
/// If a length does not fit.
///
/// ```
/// use safelight_kernels::{Epilogue, PackedLinear, linear};
/// let weights = PackedLinear::new(&[1.0, 2.0, 3.0, 4.0], 2, 2);
/// let mut out = [0.0; 2];
/// linear(&[10.0, 1.0], &weights, &Epilogue::default(), &mut out);
/// assert_eq!(out, [12.0, 34.0]);
/// ```
pub fn linear(x: &[f32], weights: &PackedLinear, epilogue: &Epilogue<'_>, out: &mut [f32]) {
    linear_at(level(), x, weights, epilogue, out);
}

/// [`linear`] at a level of the caller's choice, for tests and benches.
///
/// # Panics
/// If a length does not fit or the CPU lacks the level.
pub fn linear_at(
    level: Level,
    x: &[f32],
    weights: &PackedLinear,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
) {
    let channels = weights.in_features;
    let rows = x.len() / channels;
    assert_eq!(x.len(), rows * channels, "x: whole rows of {channels}");
    assert_eq!(out.len(), rows * weights.out_features(), "out: {rows} rows");
    product(
        level,
        x,
        &Contiguous { channels },
        &weights.panels,
        epilogue,
        out,
    );
}
