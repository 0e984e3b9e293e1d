//! 3×3 convolutions with fewer multiplications: Winograd's F(2×2, 3×3) and F(4×4, 3×3).
//!
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv:1509.09308): a tile of m×m outputs
//! is Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A for a kernel g and the (m+2)×(m+2) inputs d under it. Summed over channels, ⊙ becomes one
//! matrix product for each of the (m+2)² positions: 4 multiplications an output instead of 9 (m = 2), or 2.25 (m = 4).
//! The transforms add rounding errors: about 1e-6 of the output's size for m = 2, 4e-6 for m = 4.
//!
//! Some hundred tiles at a time are transformed, into the words that are multiplied, and stay in a cache that all threads
//! reach. A thread multiplies a few dozen of them with a few panels at every position and restores the outputs at once:
//! those products never leave its own cache. The choice between this and a direct convolution is `conv`'s.

#![expect(
    clippy::needless_range_loop,
    reason = "small matrices are written as the formulas have them"
)]

use std::marker::PhantomData;

use rayon::prelude::*;

use crate::arch::{
    self, Bf16, F32, HalfBf16, MatrixTiles, Multiply, OUTSIDE, PANEL, Part, Rectangle, Runs, Simd,
    Task, Words, rectangles,
};
use crate::epilogue::{Epilogue, Finish};
use crate::gemm::Kept;
use crate::level::{Level, level};
use crate::packing::{Room, Rows, Turned, round_to_halves, turned_at_once};
use crate::precision::Precision;
use crate::scratch::Scratch;
use crate::source::Source;
use crate::words::{Panels, channels_in_a_word};

/// The largest tile of inputs, a side.
const SIDE_MAX: usize = 6;

/// How large the tiles are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tile {
    /// F(2×2, 3×3)
    Two,
    /// F(4×4, 3×3)
    Four,
}

impl Tile {
    /// Outputs of a tile, a side.
    const fn outputs(self) -> usize {
        match self {
            Tile::Two => 2,
            Tile::Four => 4,
        }
    }

    /// Inputs of a tile, a side.
    const fn inputs(self) -> usize {
        self.outputs() + 2
    }

    /// Matrix products of a convolution.
    const fn positions(self) -> usize {
        self.inputs() * self.inputs()
    }

    /// How many tiles and panels a thread multiplies before it restores their outputs, as measured. More tiles read the
    /// weights less often, more panels the transformed inputs; all products, half a MiB, should stay in a thread's cache.
    const fn block(self) -> (usize, usize) {
        match self {
            Tile::Two => (64, 4),
            Tile::Four => (112, 1),
        }
    }

    /// Transformed inputs of one pass, in words, as measured: they should stay in the last-level cache.
    const fn pass_words(self) -> usize {
        match self {
            Tile::Two => 2 << 20,
            Tile::Four => 4 << 20,
        }
    }

    /// G: what becomes of a kernel's row or column.
    fn kernel(self) -> &'static [[f64; 3]] {
        match self {
            Tile::Two => &[
                [1.0, 0.0, 0.0],
                [0.5, 0.5, 0.5],
                [0.5, -0.5, 0.5],
                [0.0, 0.0, 1.0],
            ],
            Tile::Four => &[
                [1.0 / 4.0, 0.0, 0.0],
                [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
                [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
                [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
                [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
                [0.0, 0.0, 1.0],
            ],
        }
    }

    /// By position, what each of a kernel's nine numbers counts in its transform.
    fn factors(self) -> Vec<[f64; 9]> {
        let g = self.kernel();
        let factor = |position: usize| {
            let (row, column) = (g[position / self.inputs()], g[position % self.inputs()]);
            std::array::from_fn(|at| row[at / 3] * column[at % 3])
        };
        (0..self.positions()).map(factor).collect()
    }
}

/// Bᵀ times a column of inputs.
#[inline(always)]
fn inputs<S: Simd, const FOUR: bool>(simd: S, d: [S::V; SIDE_MAX]) -> [S::V; SIDE_MAX] {
    let mut t = d;
    if FOUR {
        let (two, four, five) = (simd.splat(2.0), simd.splat(4.0), simd.splat(5.0));
        let a = simd.neg_mul_add(four, d[2], d[4]);
        let b = simd.neg_mul_add(four, d[1], d[3]);
        let c = simd.sub(d[4], d[2]);
        let e = simd.mul(two, simd.sub(d[3], d[1]));
        t[0] = simd.mul_add(four, d[0], simd.neg_mul_add(five, d[2], d[4]));
        t[1] = simd.add(a, b);
        t[2] = simd.sub(a, b);
        t[3] = simd.add(c, e);
        t[4] = simd.sub(c, e);
        t[5] = simd.mul_add(four, d[1], simd.neg_mul_add(five, d[3], d[5]));
    } else {
        t[0] = simd.sub(d[0], d[2]);
        t[1] = simd.add(d[1], d[2]);
        t[2] = simd.sub(d[2], d[1]);
        t[3] = simd.sub(d[1], d[3]);
    }
    t
}

/// Aᵀ times a column of products.
#[inline(always)]
fn outputs<S: Simd, const FOUR: bool>(simd: S, m: [S::V; SIDE_MAX]) -> [S::V; 4] {
    let sum = simd.add(m[1], m[2]);
    let difference = simd.sub(m[1], m[2]);
    if FOUR {
        let (two, four, eight) = (simd.splat(2.0), simd.splat(4.0), simd.splat(8.0));
        let sum_2 = simd.add(m[3], m[4]);
        let difference_2 = simd.sub(m[3], m[4]);
        [
            simd.add(simd.add(m[0], sum), sum_2),
            simd.mul_add(two, difference_2, difference),
            simd.mul_add(four, sum_2, sum),
            simd.add(simd.mul_add(eight, difference_2, difference), m[5]),
        ]
    } else {
        let zero = simd.splat(0.0);
        [simd.add(m[0], sum), simd.sub(difference, m[3]), zero, zero]
    }
}

/// A convolution's transformed weights: one matrix for each position of a tile.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    positions: Vec<Panels>,
    tile: Tile,
}

impl Weights {
    /// Transforms `weight`, `[outputs, inputs, 3, 3]`, in f64, and packs what becomes of it in `precision`.
    ///
    /// # Panics
    /// If the length is another, a size is 0 or the precision int8.
    pub(crate) fn pack(
        weight: &dyn Source,
        (outputs, inputs): (usize, usize),
        precision: Precision,
        tile: Tile,
    ) -> Self {
        Self::pack_at(level(), weight, (outputs, inputs), precision, tile)
    }

    fn pack_at(
        level: Level,
        weight: &dyn Source,
        (outputs, inputs): (usize, usize),
        precision: Precision,
        tile: Tile,
    ) -> Self {
        assert_eq!(
            weight.count(),
            outputs * inputs * 9,
            "[{outputs}, {inputs}, 3, 3]"
        );
        assert!(precision != Precision::Int8, "int8 is direct");
        let zeros = |_| Panels::zeros(outputs, inputs, 1, precision);
        let mut positions: Vec<Panels> = (0..tile.positions()).map(zeros).collect();
        // Of each panel its place in all positions.
        let mut panels: Vec<_> = positions.iter_mut().map(Panels::panels_mut).collect();
        let panels: Vec<Vec<&mut [f32]>> = (0..outputs.div_ceil(PANEL))
            .map(|_| panels.iter_mut().filter_map(Iterator::next).collect())
            .collect();
        let factors = tile.factors();
        panels
            .into_par_iter()
            .enumerate()
            .for_each_init(Room::default, |room, (idx, panels)| {
                room.show(weight, idx, 9 * inputs, |rows, turned| {
                    arch::run(
                        level,
                        TransformKernels {
                            rows,
                            turned,
                            inputs,
                            precision,
                            factors: &factors,
                            panels,
                        },
                    );
                });
            });
        Weights { positions, tile }
    }

    /// What the products are computed in.
    pub(crate) fn precision(&self) -> Precision {
        self.positions[0].precision()
    }

    /// Bytes of the packed weights.
    pub(crate) fn bytes(&self) -> usize {
        self.positions.iter().map(Panels::bytes).sum()
    }
}

/// The kernels of one panel at every position. Plain code, compiled for a level.
struct TransformKernels<'a> {
    rows: Rows<'a>,
    turned: &'a mut Turned,
    inputs: usize,
    precision: Precision,
    /// By position.
    factors: &'a [[f64; 9]],
    /// By position.
    panels: Vec<&'a mut [f32]>,
}

/// One number of a kernel, of every column of a panel.
type Column = [f64; PANEL];

impl Task for TransformKernels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let in_a_word = channels_in_a_word(self.precision);
        let at_once = turned_at_once(9);
        let mut kernels = [[[0.0; PANEL]; 9]; 2];
        let mut both = [[0.0; PANEL]; 2];
        for first in (0..self.inputs).step_by(at_once) {
            let count = at_once.min(self.inputs - first);
            let padded = count.next_multiple_of(in_a_word);
            let turned = self.turned.turn(simd, self.rows, (first, count, 9), padded);
            for channel in (0..padded).step_by(in_a_word) {
                for (idx, kernel) in kernels[..in_a_word].iter_mut().enumerate() {
                    for (at, numbers) in kernel.iter_mut().enumerate() {
                        // Copies, which nothing else can point to, become vectors.
                        let (narrow, mut wide) =
                            (turned[at * padded + channel + idx], [0.0; PANEL]);
                        for column in 0..PANEL {
                            wide[column] = f64::from(narrow[column]);
                        }
                        *numbers = wide;
                    }
                }
                let row = (first + channel) / in_a_word * PANEL;
                for (panel, factor) in self.panels.iter_mut().zip(self.factors) {
                    let word: &mut [f32; PANEL] =
                        panel[row..].first_chunk_mut().expect("a row of a panel");
                    transformed(&kernels[0], factor, self.rows.count, &mut both[0]);
                    if in_a_word == 1 {
                        *word = both[0];
                        continue;
                    }
                    // What fills the last word up is not transformed: that would be -0.
                    both[1] = [0.0; PANEL];
                    if channel + 1 < count {
                        transformed(&kernels[1], factor, self.rows.count, &mut both[1]);
                    }
                    round_to_halves(&both, std::slice::from_mut(word));
                }
            }
        }
    }
}

/// Columns whose sums stay in registers.
const SUMMED_AT_ONCE: usize = 16;

/// The sums of kernels' numbers by `factor`, number by number, of the first `count` columns; zeros in the others.
///
/// A product with 0 is left out, for it changes no sum but perhaps the sign of a zero: those sums are done in full.
#[inline(always)]
fn transformed(kernel: &[Column; 9], factor: &[f64; 9], count: usize, out: &mut [f32; PANEL]) {
    let mut zeros = 0;
    for first in (0..PANEL).step_by(SUMMED_AT_ONCE) {
        let mut sums = [-0.0f64; SUMMED_AT_ONCE];
        for at in 0..9 {
            if factor[at] != 0.0 {
                let numbers = &kernel[at][first..first + SUMMED_AT_ONCE];
                for column in 0..SUMMED_AT_ONCE {
                    sums[column] += numbers[column] * factor[at];
                }
            }
        }
        for column in 0..SUMMED_AT_ONCE {
            zeros |= u64::from(sums[column] == 0.0);
            out[first + column] = sums[column] as f32;
        }
    }
    if zeros != 0 {
        in_full(kernel, factor, count, out);
    }
}

/// What [`transformed`] is defined as.
#[cold]
#[inline(never)]
fn in_full(kernel: &[Column; 9], factor: &[f64; 9], count: usize, out: &mut [f32; PANEL]) {
    for (column, out) in out[..count].iter_mut().enumerate() {
        let products = kernel.iter().zip(factor);
        let products = products.map(|(numbers, factor)| numbers[column] * factor);
        *out = products.sum::<f64>() as f32;
    }
    out[count..].fill(0.0);
}

/// Where a convolution's input lies, as [`Weights`] need it: `conv` knows of padding and resizing.
pub(crate) struct Input<'a> {
    pub(crate) x: &'a [f32],
    /// Floats of one image.
    pub(crate) image: usize,
    /// Where line `y` of the padded, resized image starts in an image, [`OUTSIDE`] for zeros. Past its end too.
    pub(crate) line: &'a (dyn Fn(usize) -> usize + Sync),
    /// Where pixel `x` of such a line starts in a line.
    pub(crate) column: &'a (dyn Fn(usize) -> usize + Sync),
    pub(crate) channels: usize,
}

/// `out`, `[batch, height, width, C]`, = epilogue(convolution of `input`).
pub(crate) fn convolve(
    level: Level,
    input: &Input<'_>,
    weights: &Weights,
    epilogue: &Epilogue<'_>,
    (batch, height, width): (usize, usize, usize),
    out: &mut [f32],
) {
    match weights.tile {
        Tile::Two => {
            Passes::<false>::new(input, weights, epilogue, (batch, height, width)).run(level, out)
        }
        Tile::Four => {
            Passes::<true>::new(input, weights, epilogue, (batch, height, width)).run(level, out)
        }
    }
}

/// A convolution, some rows of tiles at a time.
struct Passes<'a, const FOUR: bool> {
    input: &'a Input<'a>,
    weights: &'a Weights,
    finish: Finish<'a>,
    /// Starts of lines and columns under the tiles, and of those past the last whole tile.
    lines: Vec<usize>,
    columns: Vec<usize>,
    height: usize,
    width: usize,
    /// Rows of tiles: of an image, of all.
    tile_rows: usize,
    all_tile_rows: usize,
    /// Tiles in a row.
    tiles: usize,
    /// Output channels.
    outputs: usize,
}

impl<'a, const FOUR: bool> Passes<'a, FOUR> {
    const TILE: Tile = if FOUR { Tile::Four } else { Tile::Two };

    fn new(
        input: &'a Input<'a>,
        weights: &'a Weights,
        epilogue: &Epilogue<'a>,
        (batch, height, width): (usize, usize, usize),
    ) -> Self {
        let outputs = weights.positions[0].columns();
        let side = Self::TILE.outputs();
        let (tile_rows, tiles) = (height.div_ceil(side), width.div_ceil(side));
        Passes {
            input,
            weights,
            finish: Finish::new(epilogue, batch * height * width, outputs),
            lines: (0..tile_rows * side + 2).map(input.line).collect(),
            columns: (0..tiles * side + 2).map(input.column).collect(),
            height,
            width,
            tile_rows,
            all_tile_rows: batch * tile_rows,
            tiles,
            outputs,
        }
    }

    fn run(&self, level: Level, out: &mut [f32]) {
        match self.weights.precision() {
            Precision::F32 => self.run_in::<F32>(level, out),
            Precision::Bf16 if level.rounds_rows() => self.run_in::<Bf16>(level, out),
            Precision::Bf16 => self.run_in::<HalfBf16>(level, out),
            Precision::Int8 => unreachable!("not packed"),
        }
    }

    fn run_in<W: Words>(&self, level: Level, out: &mut [f32]) {
        match level {
            Level::Neon | Level::Avx2 => self.run_tiled::<W, 6>(level, out),
            Level::Scalar | Level::Avx512 | Level::Avx512Vnni | Level::Avx512Bf16 | Level::Amx => {
                self.run_tiled::<W, 8>(level, out);
            }
        }
    }

    fn run_tiled<W: Words, const ROWS: usize>(&self, level: Level, mut out: &mut [f32]) {
        let words = self.weights.positions[0].left_words(level);
        let positions = Self::TILE.positions();
        let row_words = positions * self.tiles * words;
        let (tiles_max, panels_max) = Self::TILE.block();
        let (down, across) = match tiles_max / self.tiles {
            0 => {
                let parts = self.tiles.div_ceil(tiles_max);
                (1, self.tiles.div_ceil(parts).next_multiple_of(ROWS))
            }
            down => (down, self.tiles),
        };
        // Whole blocks, and about as many in every pass.
        let all_blocks = self.all_tile_rows.div_ceil(down);
        let passes = all_blocks.div_ceil((Self::TILE.pass_words() / (down * row_words)).max(1));
        let rows_max = all_blocks.div_ceil(passes.max(1)).max(1) * down;
        let mut transformed = Scratch::take(rows_max.min(self.all_tile_rows) * row_words);
        for first in (0..self.all_tile_rows).step_by(rows_max) {
            let rows = rows_max.min(self.all_tile_rows - first);
            let tiles = rows * self.tiles;
            let transformed = &mut transformed[..positions * tiles * words];
            rectangles(transformed, tiles * words, positions, TILES_AT_ONCE * words)
                .into_par_iter()
                .for_each(|out| {
                    arch::run(
                        level,
                        Transform::<W, FOUR> {
                            kind: PhantomData,
                            passes: self,
                            first,
                            words,
                            out,
                        },
                    );
                });
            let transformed = &*transformed;
            self.blocks((first, rows), &mut out, (down, across), panels_max)
                .into_par_iter()
                .with_max_len(1)
                .for_each(|block| {
                    Kept::lend(|kept| {
                        arch::run(
                            level,
                            Outputs::<W, FOUR, ROWS> {
                                kind: PhantomData,
                                level,
                                passes: self,
                                transformed,
                                words,
                                first,
                                tiles,
                                block,
                                kept,
                            },
                        );
                    });
                });
        }
    }

    /// The outputs of `rows` rows of tiles from `first` on, taken off the front of `out`: blocks of `down` rows of tiles and
    /// `across` tiles in each, by as many output channels as `panels_max` has.
    fn blocks<'o>(
        &self,
        (first, rows): (usize, usize),
        out: &mut &'o mut [f32],
        (down, across): (usize, usize),
        panels_max: usize,
    ) -> Vec<Block<'o>> {
        let side = Self::TILE.outputs();
        let mut all = Vec::new();
        for row in (first..first + rows).step_by(down) {
            let before = all.len();
            let rows = down.min(first + rows - row);
            for tile in (0..self.tiles).step_by(across) {
                for _ in (0..self.outputs).step_by(panels_max * PANEL) {
                    all.push(Block {
                        rows: (row, rows),
                        tiles: (tile, across.min(self.tiles - tile)),
                        lines: Vec::with_capacity(rows * side),
                    });
                }
            }
            for row in row..row + rows {
                for _ in 0..self.lines_of(row) {
                    let (line, after) = std::mem::take(out).split_at_mut(self.width * self.outputs);
                    *out = after;
                    let parts = rectangles(line, self.outputs, across * side, panels_max * PANEL);
                    for (block, part) in all[before..].iter_mut().zip(parts) {
                        block.lines.push(part);
                    }
                }
            }
        }
        all
    }

    /// How many lines of the output a row of tiles makes.
    #[inline(always)]
    fn lines_of(&self, row: usize) -> usize {
        let side = Self::TILE.outputs();
        side.min(self.height - row % self.tile_rows * side)
    }
}

/// Some tiles and some panels: what a thread makes at a time.
struct Block<'a> {
    /// The first row of tiles, counted over the batch, and how many.
    rows: (usize, usize),
    /// The first tile in each, and how many.
    tiles: (usize, usize),
    /// The outputs, line by line, pixel by pixel.
    lines: Vec<Rectangle<'a>>,
}

/// Tiles that one thread transforms at a time.
const TILES_AT_ONCE: usize = 4;

/// Inputs of some tiles, transformed and made words: `out` is `[positions][some tiles · words]`.
struct Transform<'a, W, const FOUR: bool> {
    kind: PhantomData<W>,
    passes: &'a Passes<'a, FOUR>,
    /// The pass's first row of tiles.
    first: usize,
    words: usize,
    out: Rectangle<'a>,
}

impl<W: Words, const FOUR: bool> Task for Transform<'_, W, FOUR> {
    type Output = ();
    const PRECISION: Precision = W::PRECISION;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let passes = self.passes;
        for idx in 0..self.out.column_count / self.words {
            let tile = self.out.column / self.words + idx;
            let row = self.first + tile / passes.tiles;
            let starts = passes.starts(row, tile % passes.tiles);
            for word in (0..self.words).step_by(S::LANES) {
                simd.apart(TransformOne::<W, FOUR> {
                    kind: PhantomData,
                    x: passes.input.x,
                    starts: &starts,
                    channels: passes.input.channels,
                    words: (word, S::LANES.min(self.words - word)),
                    out: &mut self.out,
                    at: idx * self.words + word,
                });
            }
        }
    }
}

impl<const FOUR: bool> Passes<'_, FOUR> {
    /// Where the pixels under a tile start in the input, [`OUTSIDE`] for zeros.
    #[inline(always)]
    fn starts(&self, row: usize, tile: usize) -> [[usize; SIDE_MAX]; SIDE_MAX] {
        let (side, wide) = (Self::TILE.outputs(), Self::TILE.inputs());
        let image = row / self.tile_rows * self.input.image;
        let lines = &self.lines[row % self.tile_rows * side..][..wide];
        let columns = &self.columns[tile * side..][..wide];
        let mut starts = [[OUTSIDE; SIDE_MAX]; SIDE_MAX];
        for (starts, &line) in starts.iter_mut().zip(lines) {
            for (start, &column) in starts.iter_mut().zip(columns) {
                if line != OUTSIDE && column != OUTSIDE {
                    *start = image + line + column;
                }
            }
        }
        starts
    }
}

/// One vector of words of one tile.
struct TransformOne<'a, 'o, W, const FOUR: bool> {
    kind: PhantomData<W>,
    x: &'a [f32],
    starts: &'a [[usize; SIDE_MAX]; SIDE_MAX],
    channels: usize,
    /// First, and how many.
    words: (usize, usize),
    out: &'a mut Rectangle<'o>,
    at: usize,
}

impl<W: Words, const FOUR: bool> Task for TransformOne<'_, '_, W, FOUR> {
    type Output = ();
    const PRECISION: Precision = W::PRECISION;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let wide = if FOUR { 6 } else { 4 };
        let (word, count) = self.words;
        let halves = matches!(W::PRECISION, Precision::Bf16);
        let channel = if halves { 2 * word } else { word };
        let first = self.transformed(simd, channel);
        // Words of bf16 hold the channels of two vectors.
        let second = if halves {
            self.transformed(simd, channel + S::LANES)
        } else {
            first
        };
        for i in 0..wide {
            for j in 0..wide {
                let words = if halves {
                    simd.to_bf16(first[i][j], second[i][j])
                } else {
                    first[i][j]
                };
                let row = self.out.row_mut(i * wide + j);
                simd.store_partial(words, &mut row[self.at..][..count]);
            }
        }
    }
}

impl<W: Words, const FOUR: bool> TransformOne<'_, '_, W, FOUR> {
    /// Bᵀ d B of a vector of channels from `channel` on; zeros past the last.
    #[inline(always)]
    fn transformed<S: Simd>(&self, simd: S, channel: usize) -> [[S::V; SIDE_MAX]; SIDE_MAX] {
        let wide = if FOUR { 6 } else { 4 };
        let channel = channel.min(self.channels);
        let count = S::LANES.min(self.channels - channel);
        let zero = simd.splat(0.0);
        // By columns first: half[i][j] is row i of Bᵀ times column j of the inputs.
        let mut half = [[zero; SIDE_MAX]; SIDE_MAX];
        for j in 0..wide {
            let mut d = [zero; SIDE_MAX];
            for i in 0..wide {
                let start = self.starts[i][j];
                if start != OUTSIDE {
                    let x = &self.x[start + channel..][..count];
                    d[i] = simd.load_partial(x);
                }
            }
            let t = inputs::<S, FOUR>(simd, d);
            for i in 0..wide {
                half[i][j] = t[i];
            }
        }
        for half in &mut half[..wide] {
            *half = inputs::<S, FOUR>(simd, *half);
        }
        half
    }
}

/// The outputs of one block.
struct Outputs<'a, W, const FOUR: bool, const ROWS: usize> {
    kind: PhantomData<W>,
    level: Level,
    passes: &'a Passes<'a, FOUR>,
    /// `[positions][tiles][words]`
    transformed: &'a [f32],
    words: usize,
    /// The first row of tiles in `transformed`, and how many tiles there are.
    first: usize,
    tiles: usize,
    block: Block<'a>,
    kept: &'a mut Kept,
}

impl<W: Words, const FOUR: bool, const ROWS: usize> Task for Outputs<'_, W, FOUR, ROWS> {
    type Output = ();
    const PRECISION: Precision = W::PRECISION;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let passes = self.passes;
        let positions = Passes::<FOUR>::TILE.positions();
        let (first_row, rows) = self.block.rows;
        let (first_tile, tiles) = self.block.tiles;
        let (count, words) = (rows * tiles, self.words);
        let Kept {
            zeros,
            runs,
            sums,
            tiles: matrix_tiles,
            ..
        } = self.kept;
        let mut matrix_tiles = MatrixTiles::of(self.level, W::PRECISION, matrix_tiles);
        if zeros.len() < words {
            zeros.resize(words, 0.0);
        }
        let memory = std::mem::take(runs);
        // A row for each tile, a tap for each position.
        let mut left = Runs::new(
            self.transformed,
            zeros,
            (positions, words),
            ROWS,
            count,
            memory,
        );
        for idx in 0..count {
            let row = first_row - self.first + idx / tiles;
            let tile = row * passes.tiles + first_tile + idx % tiles;
            for position in 0..positions {
                let start = (position * self.tiles + tile) * words;
                left.set((idx / ROWS, idx % ROWS), position, start);
            }
        }
        let (column, columns) = (self.block.lines[0].column, self.block.lines[0].column_count);
        let panels = columns.div_ceil(PANEL);
        let of_panel = left.tiles() * ROWS * PANEL;
        // A line more, so that the products of one tile at all positions do not compete for a few lines of the cache.
        let of_position = panels * of_panel + 16;
        let sums = Kept::sums(sums, positions * of_position);
        for (position, weights) in passes.weights.positions.iter().enumerate() {
            let sums = sums[position * of_position..].chunks_exact_mut(of_panel);
            for (panel, sums) in sums.take(panels).enumerate() {
                let width = PANEL.min(columns - panel * PANEL);
                let mut rest = weights.panels_from(column / PANEL + panel);
                let next_position = passes.weights.positions.get(position + 1);
                let parts = weights.parts();
                for (idx, &part) in parts.parts.iter().enumerate() {
                    let (weights, after) = rest.split_at(parts.panel_rows(part) * PANEL);
                    rest = after;
                    let soon = match next_position {
                        Some(next) if idx + 1 == parts.parts.len() && panel + 1 == panels => {
                            next.panels_from(column / PANEL)
                        }
                        _ => after,
                    };
                    let multiply = Multiply {
                        runs: &left,
                        part: Part {
                            tap: position,
                            ..part
                        },
                        weights,
                        next_weights: &soon[..soon.len().min(weights.len())],
                        fresh: idx == 0,
                    };
                    let by = matrix_tiles.as_mut();
                    multiply.rows::<W, S, ROWS>(simd, 0, (count, width), sums, by);
                }
            }
        }
        drop(matrix_tiles);
        *runs = left.into_memory();
        self.restore(simd, (of_panel, of_position));
    }
}

impl<W: Words, const FOUR: bool, const ROWS: usize> Outputs<'_, W, FOUR, ROWS> {
    /// Makes outputs of the products: `of_panel` floats for each panel, `of_position` for each position.
    #[inline(always)]
    fn restore<S: Simd>(&mut self, simd: S, (of_panel, of_position): (usize, usize)) {
        let passes = self.passes;
        let (side, positions) = (
            Passes::<FOUR>::TILE.outputs(),
            Passes::<FOUR>::TILE.positions(),
        );
        let (first_row, rows) = self.block.rows;
        let (first_tile, tiles) = self.block.tiles;
        let (column, columns) = (self.block.lines[0].column, self.block.lines[0].column_count);
        let sums = Kept::sums(&mut self.kept.sums, positions * of_position);
        let panels = (0..columns).step_by(PANEL);
        let streamed = passes.finish.is_streamed();
        for (panel, at) in panels.enumerate() {
            let width = PANEL.min(columns - at);
            let finish = passes.finish.panel(column + at, width);
            let mut lines_before = 0;
            for row in 0..rows {
                let row_of_all = first_row + row;
                let y = row_of_all / passes.tile_rows * passes.height
                    + row_of_all % passes.tile_rows * side;
                let lines = &mut self.block.lines[lines_before..][..passes.lines_of(row_of_all)];
                lines_before += lines.len();
                for tile in 0..tiles {
                    let mut restored = [[0.0; PANEL]; 16];
                    simd.apart(RestoreOne::<FOUR> {
                        products: sums,
                        stride: of_position,
                        start: panel * of_panel + (row * tiles + tile) * PANEL,
                        out: &mut restored,
                    });
                    // The next tile's place in the output, so that writing there does not wait for memory.
                    let fetched = if streamed { &mut [][..] } else { &mut *lines };
                    for out in fetched {
                        for pixel in (tile + 1) * side..((tile + 2) * side).min(out.row_count) {
                            let next = &out.row_mut(pixel)[at..][..width];
                            for line in (0..width).step_by(16) {
                                simd.prefetch(next[line..].as_ptr());
                            }
                        }
                    }
                    let x = (first_tile + tile) * side;
                    for (line, out) in lines.iter_mut().enumerate() {
                        for dx in 0..side.min(passes.width - x) {
                            let out = &mut out.row_mut(tile * side + dx)[at..][..width];
                            let pixel = (y + line) * passes.width + x + dx;
                            finish.pixel(simd, &restored[line * 4 + dx], pixel, out);
                        }
                    }
                }
            }
        }
        if streamed {
            simd.end_streams();
        }
    }
}

/// A tile's outputs, [line · 4 + column], of a panel of channels.
struct RestoreOne<'a, const FOUR: bool> {
    products: &'a [f32],
    /// Floats from one position to the next.
    stride: usize,
    start: usize,
    out: &'a mut [[f32; PANEL]; 16],
}

impl<const FOUR: bool> Task for RestoreOne<'_, FOUR> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (wide, side) = if FOUR { (6, 4) } else { (4, 2) };
        for at in (0..PANEL).step_by(S::LANES) {
            let zero = simd.splat(0.0);
            let mut half = [[zero; SIDE_MAX]; 4];
            for j in 0..wide {
                let mut m = [zero; SIDE_MAX];
                for i in 0..wide {
                    let start = self.start + (i * wide + j) * self.stride + at;
                    m[i] = simd.load(&self.products[start..]);
                }
                let t = outputs::<S, FOUR>(simd, m);
                for i in 0..side {
                    half[i][j] = t[i];
                }
            }
            for i in 0..side {
                let t = outputs::<S, FOUR>(simd, half[i]);
                for j in 0..side {
                    simd.store(t[j], &mut self.out[i * 4 + j][at..]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
