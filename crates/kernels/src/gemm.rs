//! Matrix products with packed weights: `out = epilogue(x · weightᵀ)`, the linear layers.
//!
//! Leaves to `conv` how a convolution is such a product, to `arch` the instructions.

use rayon::prelude::*;

use crate::arch::{self, Rectangle, Simd, Task, rectangles};
use crate::epilogue::{Epilogue, Finish};
use crate::level::{Level, level};

/// Output channels in one panel of packed weights.
pub(crate) const PANEL: usize = 32;

/// Weights laid out as kernels read them: panels of 32 output channels, `[ceil(N/32)][K][32]`,
/// the last one filled up with zeros.
#[derive(Clone, Debug)]
pub(crate) struct Panels {
    data: Vec<f32>,
    columns: usize,
    depth: usize,
}

impl Panels {
    /// Packs `columns` channels of `depth` weights; `weight(column, k)` says which.
    pub(crate) fn pack(
        columns: usize,
        depth: usize,
        weight: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Self {
        let mut data = vec![0.0; columns.div_ceil(PANEL) * depth * PANEL];
        data.par_chunks_mut((depth * PANEL).max(1))
            .enumerate()
            .for_each(|(panel_idx, panel)| {
                for (k, row) in panel.chunks_exact_mut(PANEL).enumerate() {
                    for (idx, x) in row.iter_mut().enumerate() {
                        let column = panel_idx * PANEL + idx;
                        if column < columns {
                            *x = weight(column, k);
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
        &self.data[panel_idx * size..][..size]
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
    /// Where run `tap` of `row` starts; `None` where it is all zeros (padding).
    fn start(&self, row: usize, tap: usize) -> Option<usize>;
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
    rectangles(out, columns, 64, PANEL)
        .into_par_iter()
        .for_each(|rectangle| {
            arch::run(
                level,
                Plain {
                    x,
                    rows,
                    panels,
                    finish,
                    rectangle,
                },
            );
        });
}

/// The specification: one sum for each element, tap by tap, channel by channel.
struct Plain<'a, R> {
    x: &'a [f32],
    rows: &'a R,
    panels: &'a Panels,
    finish: Finish<'a>,
    rectangle: Rectangle<'a>,
}

impl<R: Rows> Task for Plain<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let panel = self.panels.panel(self.rectangle.column / PANEL);
        let channels = self.rows.channels();
        for row_idx in 0..self.rectangle.row_count {
            let row = self.rectangle.row + row_idx;
            let mut sums = [0.0f32; PANEL];
            for tap in 0..self.rows.taps() {
                let Some(start) = self.rows.start(row, tap) else {
                    continue;
                };
                let weights = &panel[tap * channels * PANEL..][..channels * PANEL];
                let x = &self.x[start..start + channels];
                for (x, weights) in x.iter().zip(weights.as_chunks::<PANEL>().0) {
                    for (sum, weight) in sums.iter_mut().zip(weights) {
                        *sum += x * weight;
                    }
                }
            }
            let column = self.rectangle.column;
            self.finish
                .row(simd, row, column, &sums, self.rectangle.row_mut(row_idx));
        }
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
        assert!(out_features > 0 && in_features > 0);
        assert_eq!(
            weight.len(),
            out_features * in_features,
            "[{out_features}, {in_features}]"
        );
        let panels = Panels::pack(out_features, in_features, |column, k| {
            weight[column * in_features + k]
        });
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
    fn start(&self, row: usize, _tap: usize) -> Option<usize> {
        Some(row * self.channels)
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
