//! Matrix products with packed weights: `out = epilogue(x · weightᵀ)`, the linear layers.
//!
//! Leaves to `conv` how a convolution is such a product, to `arch` the instructions.

use std::cell::Cell;
use std::marker::PhantomData;

use rayon::prelude::*;

use crate::activation::geglu_at;
use crate::arch::{
    self, Aligned, Bf16, F32, HalfBf16, Int8, MatrixTiles, Multiply, OUTSIDE, PANEL, Rectangle,
    Runs, RunsMemory, Scalar, Simd, Task, Words, amx, rectangles,
};
use crate::epilogue::{Epilogue, Finish};
use crate::level::{Level, level};
use crate::precision::Precision;
use crate::scratch::Scratch;
use crate::source::{InMemory, Source};
pub(crate) use crate::words::Panels;
use crate::words::{HALF, Left, Parts, Place};

/// Where the rows of the left matrix lie in memory: row `row` is `taps` runs of `words` words.
pub(crate) trait Rows: Sync {
    /// Runs in a row: 1 for a linear layer, kernel height × width for a convolution.
    fn taps(&self) -> usize;
    /// Words in a run, [`Panels::left_words`]: for `f32` the input channels.
    fn words(&self) -> usize;
    /// Tells, tap by tap, where the runs of `row` start, [`OUTSIDE`] where one is all zeros.
    fn starts(&self, row: usize, tell: impl FnMut(usize));
}

/// `out[row] = finish(Σ over taps and channels of x · weight)`, the heart of `gemm` and `conv`.
/// `x` is what [`Left`] made of the input.
pub(crate) fn product<R: Rows>(
    level: Level,
    x: &[f32],
    rows: &R,
    panels: &Panels,
    finish: Finish<'_>,
    out: &mut [f32],
) {
    match panels.precision() {
        Precision::F32 => product_of::<R, F32>(level, x, rows, panels, finish, out),
        Precision::Bf16 if level.rounds_rows() => {
            product_of::<R, Bf16>(level, x, rows, panels, finish, out);
        }
        Precision::Bf16 => product_of::<R, HalfBf16>(level, x, rows, panels, finish, out),
        Precision::Int8 => product_of::<R, Int8>(level, x, rows, panels, finish, out),
    }
}

/// [`product`] of one kind of words.
fn product_of<R: Rows, W: Words>(
    level: Level,
    x: &[f32],
    rows: &R,
    panels: &Panels,
    finish: Finish<'_>,
    out: &mut [f32],
) {
    assert!(rows.words() == panels.left_words(level) && rows.taps() == panels.taps());
    let columns = panels.outputs();
    let (rows_max, panels_max) = piece(out.len() / columns, panels, rows.words());
    let pieces = rectangles(out, columns, rows_max, panels_max * panels.of_a_panel());
    pieces.into_par_iter().with_max_len(1).for_each(|out| {
        let piece = Piece::<R, W> {
            words: PhantomData,
            x,
            level,
            rows,
            panels,
            finish,
            out,
        };
        Kept::lend(|kept| match level {
            Level::Scalar => piece.plain(),
            Level::Neon | Level::Avx2 => arch::run(level, Blocked::<_, _, 6>(piece, kept)),
            Level::Avx512 | Level::Avx512Vnni | Level::Avx512Bf16 | Level::Amx => {
                arch::run(level, Blocked::<_, _, 8>(piece, kept));
            }
        });
    });
}

thread_local! {
    static KEPT: Cell<Option<Box<Kept>>> = const { Cell::new(None) };
}

/// What a thread keeps from one piece to the next, some 100 KiB, so that no piece allocates.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) zeros: Vec<f32>,
    pub(crate) runs: RunsMemory,
    pub(crate) sums: Option<Aligned>,
    pub(crate) tiles: Option<Box<amx::Room>>,
    outliers: Vec<Outlier>,
}

impl Kept {
    /// Runs `work` with what this thread keeps.
    pub(crate) fn lend(work: impl FnOnce(&mut Kept)) {
        let mut kept = KEPT.take().unwrap_or_default();
        work(&mut kept);
        KEPT.set(Some(kept));
    }

    /// At least `len` floats, whatever they are, on a cache line.
    pub(crate) fn sums(sums: &mut Option<Aligned>, len: usize) -> &mut [f32] {
        if sums.as_ref().is_none_or(|sums| sums.as_slice().len() < len) {
            *sums = Some(Aligned::zeros(len));
        }
        let sums = sums.as_mut().expect("made above");
        &mut sums.as_mut_slice()[..len]
    }
}

/// A rectangle of the output and what it is made from.
struct Piece<'a, R, W> {
    words: PhantomData<W>,
    x: &'a [f32],
    level: Level,
    rows: &'a R,
    panels: &'a Panels,
    finish: Finish<'a>,
    out: Rectangle<'a>,
}

/// Output rows and panels that one thread does at a time, by size alone.
///
/// Half of a 2 MiB second-level cache holds the rows of the left matrix, which every panel reads
/// again. A piece is some 8 million products, a tenth of a millisecond, or 1 MiB of weights: a
/// single row waits for those, and the more threads read them, the better.
fn piece(rows: usize, panels: &Panels, words: usize) -> (usize, usize) {
    let rows_max = (256 * 1024 / words / 48 * 48).clamp(240, 480);
    let weights = panels.panel(0).len();
    let by_work = 8_000_000 / (rows_max.min(rows).max(1) * weights);
    let by_weights = 256 * 1024 / weights;
    (rows_max, by_work.min(by_weights).max(1))
}

/// The fast version: `TILE` rows at a time in registers, the sum in parts.
struct Blocked<'a, R, W, const TILE: usize>(Piece<'a, R, W>, &'a mut Kept);

impl<R: Rows, W: Words, const TILE: usize> Task for Blocked<'_, R, W, TILE> {
    type Output = ();
    const PRECISION: Precision = W::PRECISION;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Piece {
            x,
            level,
            rows,
            panels,
            finish,
            mut out,
            ..
        } = self.0;
        let (taps, words) = (rows.taps(), rows.words());
        let Kept {
            zeros,
            runs: memory,
            sums,
            tiles,
            outliers,
        } = self.1;
        if zeros.len() < words {
            zeros.resize(words, 0.0);
        }
        let mut runs = Runs::new(
            x,
            zeros,
            (taps, words),
            TILE,
            out.row_count,
            std::mem::take(memory),
        );
        outliers.clear();
        for row in 0..out.row_count {
            let mut tap = 0;
            rows.starts(out.row + row, |start| {
                runs.set((row / TILE, row % TILE), tap, start);
                if W::SCALED && start != OUTSIDE {
                    let run = &x[start..][..words];
                    outliers.extend(Outlier::of(panels.parts(), run, (row, tap)));
                }
                tap += 1;
            });
        }
        let Parts { parts, .. } = panels.parts();
        let sums = Kept::sums(sums, runs.tiles() * TILE * PANEL);
        let mut tiles = MatrixTiles::of(level, W::PRECISION, tiles);
        let of_a_panel = panels.of_a_panel();
        for column in (0..out.column_count).step_by(of_a_panel) {
            let width = of_a_panel.min(out.column_count - column);
            let columns = if panels.gated() { PANEL } else { width };
            let panel_idx = (out.column + column) / of_a_panel;
            let mut panel = panels.panels_from(panel_idx);
            for (idx, &part) in parts.iter().enumerate() {
                let (weights, after) = panel.split_at(panels.parts().panel_rows(part) * PANEL);
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
                let groups = sums.chunks_mut(GROUP * TILE * PANEL);
                for (group, sums) in groups.enumerate() {
                    let row = group * GROUP * TILE;
                    let rows = (out.row_count - row).min(GROUP * TILE);
                    let first = group * GROUP;
                    multiply.rows::<W, S, TILE>(simd, first, (rows, columns), sums, tiles.as_mut());
                    if last {
                        let sums = &mut sums[..rows * PANEL];
                        let before = |row| outliers.partition_point(|other| other.row < row);
                        simd.apart(Write {
                            panel: panels.panel(panel_idx),
                            outliers: &outliers[before(row)..before(row + rows)],
                            finish: &finish,
                            sums,
                            out: &mut out,
                            row,
                            column,
                            width,
                        });
                    }
                }
            }
        }
        *memory = runs.into_memory();
    }
}

/// Tiles whose sums are finished together, while they are in the first-level cache.
const GROUP: usize = 8;

/// A number of an int8 left row that is multiplied as it is.
struct Outlier {
    /// Counted from the piece's first.
    row: usize,
    place: Place,
    value: f32,
}

impl Outlier {
    /// Those of one left run, which lies under `tap` of `row`.
    #[inline(always)]
    fn of(parts: &Parts, run: &[f32], (row, tap): (usize, usize)) -> impl Iterator<Item = Outlier> {
        parts.outliers(run).map(move |(channel, value)| Outlier {
            row,
            place: parts.place(tap, channel),
            value,
        })
    }

    /// Adds its products with the weights of `panel` to the sums of its row.
    #[inline(always)]
    fn add<S: Simd>(&self, simd: S, panel: &[f32], sums: &mut [f32; PANEL]) {
        let Place { word, byte, scale } = self.place;
        // 1 in that byte: so a dot product is the weight itself.
        let byte = simd.splat(f32::from_bits(1 << (8 * byte)));
        let words = &panel[word * PANEL..][..PANEL];
        let scales = &panel[scale * PANEL..][..PANEL];
        for at in (0..PANEL).step_by(S::LANES) {
            let whole = simd.dot_i8(byte, simd.load(&words[at..]), simd.splat(0.0));
            let weight = simd.mul(simd.whole_to_float(whole), simd.load(&scales[at..]));
            let sums = &mut sums[at..];
            simd.store(
                simd.mul_add(simd.splat(self.value), weight, simd.load(sums)),
                sums,
            );
        }
    }
}

/// What outliers add, and [`Finish::rows`], as a function of its own.
struct Write<'a, 'b> {
    /// The weights of these columns.
    panel: &'a [f32],
    /// Those of these rows.
    outliers: &'a [Outlier],
    finish: &'a Finish<'b>,
    sums: &'a mut [f32],
    out: &'a mut Rectangle<'b>,
    row: usize,
    column: usize,
    width: usize,
}

impl Task for Write<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.sums.as_chunks_mut::<PANEL>().0;
        for outlier in self.outliers {
            outlier.add(simd, self.panel, &mut rows[outlier.row - self.row]);
        }
        self.finish.rows(
            simd,
            self.sums,
            self.out,
            (self.row, self.column),
            self.width,
        );
        if self.finish.is_streamed() {
            simd.end_streams();
        }
    }
}

/// The specification: one sum for each element, tap by tap, word by word.
impl<R: Rows, W: Words> Piece<'_, R, W> {
    fn plain(mut self) {
        let of_a_panel = self.panels.of_a_panel();
        for column in (0..self.out.column_count).step_by(of_a_panel) {
            let width = of_a_panel.min(self.out.column_count - column);
            for row_idx in 0..self.out.row_count {
                let (row, first_column) = (self.out.row + row_idx, self.out.column + column);
                let sums = self.sums(row, first_column / of_a_panel);
                self.finish
                    .rows(Scalar, &sums, &mut self.out, (row_idx, column), width);
            }
        }
    }

    /// The sums of one row and one panel.
    fn sums(&self, row: usize, panel_idx: usize) -> [f32; PANEL] {
        let Parts { parts, .. } = self.panels.parts();
        let mut starts = Vec::with_capacity(self.rows.taps());
        self.rows.starts(row, |start| starts.push(start));
        let panel = self.panels.panel(panel_idx);
        let mut weights = panel.as_chunks::<PANEL>().0;
        let mut sums = [0.0; PANEL];
        for part in parts {
            for &start in &starts[part.tap..][..part.taps] {
                let (run, after) = weights.split_at(self.panels.parts().run_rows(*part));
                weights = after;
                if start != OUTSIDE {
                    let x = &self.x[start + W::LEFT * part.skip..];
                    add_run::<W>(x, run, part.len, &mut sums);
                }
            }
        }
        for (tap, &start) in starts.iter().enumerate() {
            if W::SCALED && start != OUTSIDE {
                let run = &self.x[start..][..self.rows.words()];
                for outlier in Outlier::of(self.panels.parts(), run, (row, tap)) {
                    outlier.add(Scalar, panel, &mut sums);
                }
            }
        }
        sums
    }
}

/// Adds the products of `len` words of `x` and as many of the panel rows `weights`.
fn add_run<W: Words>(x: &[f32], weights: &[[f32; PANEL]], len: usize, sums: &mut [f32; PANEL]) {
    let left = |k: usize| move |idx: usize| x[W::LEFT * k + idx];
    if !W::SCALED {
        for (k, weights) in weights[..len].iter().enumerate() {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum = W::dot(Scalar, left(k), W::right(Scalar, *weight), *sum);
            }
        }
        return;
    }
    let (row_scale, scales) = (x[len], &weights[len]);
    for (column, sum) in sums.iter_mut().enumerate() {
        let whole = weights[..len]
            .iter()
            .enumerate()
            .fold(0.0, |whole, (k, weights)| {
                W::dot(Scalar, left(k), W::right(Scalar, weights[column]), whole)
            });
        *sum += Scalar.whole_to_float(whole) * (row_scale * scales[column]);
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
        Self::with_precision(weight, out_features, in_features, Precision::F32)
    }

    /// The same, rounded to `precision`.
    ///
    /// # Panics
    /// If the length is another or a size is 0.
    pub fn with_precision(
        weight: &[f32],
        out_features: usize,
        in_features: usize,
        precision: Precision,
    ) -> Self {
        Self::from_source(&InMemory(weight), out_features, in_features, precision)
    }

    /// The same of values that are read while they are packed.
    ///
    /// # Panics
    /// If their count is another or a size is 0.
    pub fn from_source(
        weight: &dyn Source,
        out_features: usize,
        in_features: usize,
        precision: Precision,
    ) -> Self {
        let panels = Panels::pack(weight, out_features, in_features, 1, precision);
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

    /// What the products are computed in.
    pub fn precision(&self) -> Precision {
        self.panels.precision()
    }

    /// Bytes the packed weights take.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }
}

/// Rows of a contiguous matrix.
pub(crate) struct Contiguous {
    pub(crate) words: usize,
}

impl Rows for Contiguous {
    fn taps(&self) -> usize {
        1
    }
    fn words(&self) -> usize {
        self.words
    }
    fn starts(&self, row: usize, mut tell: impl FnMut(usize)) {
        tell(row * self.words);
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
    let finish = Finish::new(epilogue, rows, weights.out_features());
    contiguous(level, x, &weights.panels, finish, out);
}

/// The product of a matrix without gaps.
fn contiguous(level: Level, x: &[f32], panels: &Panels, finish: Finish<'_>, out: &mut [f32]) {
    let words = panels.left_words(level);
    let left = Left::new(level, x, panels);
    product(level, &left, &Contiguous { words }, panels, finish, out);
}

/// The weights of a linear layer with gates, packed once: the first layer of a transformer's feed-forward part.
#[derive(Clone, Debug)]
pub struct PackedGeglu {
    panels: Panels,
    in_features: usize,
}

impl PackedGeglu {
    /// Packs `weight`, `[2 · out_features, in_features]` as checkpoints have it, values first and gates second, rounded to
    /// `precision`.
    ///
    /// # Panics
    /// If the length is another or a size is 0.
    pub fn from_source(
        weight: &dyn Source,
        out_features: usize,
        in_features: usize,
        precision: Precision,
    ) -> Self {
        let panels = if out_features.is_multiple_of(HALF) {
            Panels::pack_gated(weight, out_features, in_features, precision)
        } else {
            Panels::pack(weight, 2 * out_features, in_features, 1, precision)
        };
        PackedGeglu {
            panels,
            in_features,
        }
    }

    /// Width of an output row.
    pub fn out_features(&self) -> usize {
        self.panels.columns() / 2
    }

    /// Bytes the packed weights take.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }
}

/// `out = (x · valuesᵀ + bias) · gelu(x · gatesᵀ + bias)`: `x` is `[rows, in_features]`, `out` is `[rows, out_features]`, `bias`
/// `[2 · out_features]`, those of values first.
///
/// The same bits as [`linear`] and [`geglu`](crate::activation::geglu) give one after the other.
///
/// Source: Shazeer 2020, arXiv:2002.05202, equation 6 (GEGLU).
///
/// # Panics
/// If a length does not fit.
pub fn linear_geglu(x: &[f32], weights: &PackedGeglu, bias: Option<&[f32]>, out: &mut [f32]) {
    linear_geglu_at(level(), x, weights, bias, out);
}

/// [`linear_geglu`] at a level of the caller's choice, for tests and benches.
///
/// # Panics
/// If a length does not fit or the CPU lacks the level.
pub fn linear_geglu_at(
    level: Level,
    x: &[f32],
    weights: &PackedGeglu,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let (panels, width) = (&weights.panels, weights.out_features());
    let rows = x.len() / weights.in_features;
    assert_eq!(
        x.len(),
        rows * weights.in_features,
        "x: whole rows of {}",
        weights.in_features
    );
    assert_eq!(out.len(), rows * width, "out: {rows} rows of {width}");
    if panels.gated() {
        return contiguous(level, x, panels, Finish::geglu(bias, width), out);
    }
    // A width that does not go into halves of panels.
    let epilogue = Epilogue {
        bias,
        ..Epilogue::default()
    };
    let mut both = Scratch::take(2 * out.len());
    let finish = Finish::new(&epilogue, rows, 2 * width);
    contiguous(level, x, panels, finish, &mut both);
    geglu_at(level, width, &both, out);
}
