//! Attention, fused: the scores of a block of queries against a block of keys never leave the cache.
//!
//! A vector's lanes are queries. Scores come out as `[key][query]`, so a key's and a value's floats are
//! read in place, one broadcast each, whatever the head's width; the softmax runs down the lanes without
//! a reduction; and a query's result depends on no other query, nor on how the work was split.
//!
//! In bf16 queries, keys, values and weights are rounded to words of two: two neighbouring floats of a head in a query and in a
//! key, two neighbouring keys in a value and in a weight. Scores, sums and the softmax stay `f32`.
//!
//! Sources: Milakov and Gimelshein 2018, arXiv:1805.02867 (online softmax); Dao et al. 2022,
//! arXiv:2205.14135 (blocks of keys with running maximum and sum).

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use crate::arch::{self, Bf16, F32, Rectangle, Simd, Task, Words, bf16_bits, rectangles};
use crate::level::{Level, level};
use crate::precision::Precision;
use crate::scratch::Scratch;
use crate::words::{channels_in_a_word, to_halves};

/// Keys whose scores are held at a time.
const KEY_BLOCK: usize = 64;
/// Words of a head that one pass over the scores takes.
const DEPTH_BLOCK: usize = 64;
/// Vectors of queries in a tile.
const QUERY_VECTORS: usize = 3;
/// Tiles of queries that a block of keys is read for.
const TILES_MAX: usize = 8;
/// Floats of queries and sums that these tiles may have.
const TILE_FLOATS_MAX: usize = 1 << 16;

/// The sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Images (or texts) in the batch.
    pub batch: usize,
    /// Heads, side by side in a row.
    pub heads: usize,
    /// Floats of a row that belong to one head.
    pub head_width: usize,
    /// Query rows of one image.
    pub queries: usize,
    /// Key and value rows of one image.
    pub keys: usize,
    /// Whether query `i` sees keys `0..=i` only.
    pub causal: bool,
}

impl AttentionShape {
    /// Floats in a row of the output.
    fn width(&self) -> usize {
        self.heads * self.head_width
    }
}

/// Rows that may lie further apart than they are long, such as the thirds of a fused projection.
#[derive(Clone, Copy, Debug)]
pub struct StridedRows<'a> {
    /// From the first float of the first row on; the rows of all images follow each other.
    pub data: &'a [f32],
    /// From the start of a row to the start of the next.
    pub stride: usize,
}

impl<'a> StridedRows<'a> {
    /// `[rows, width]` without gaps.
    pub fn dense(data: &'a [f32], width: usize) -> Self {
        StridedRows {
            data,
            stride: width,
        }
    }

    /// Part of one row.
    #[inline(always)]
    fn part(&self, row: usize, start: usize, count: usize) -> &'a [f32] {
        &self.data[row * self.stride + start..][..count]
    }

    /// # Panics
    /// If there are not `rows` rows of `width`.
    fn check(&self, name: &str, rows: usize, width: usize) {
        let needed = if rows == 0 {
            0
        } else {
            (rows - 1) * self.stride + width
        };
        assert!(
            self.stride >= width && self.data.len() >= needed,
            "attention: {name} has {} values, stride {}; {rows} rows of {width} wanted",
            self.data.len(),
            self.stride
        );
    }
}

/// `softmax(q·kᵀ/√d)·v` for each head: `q` and `out` are `[B, Tq, heads·d]`, `k` and `v` `[B, Tk, heads·d]`.
///
/// Coarser than [`Precision::F32`], everything that is multiplied is rounded to bf16, at
/// [`Level::Avx512Bf16`] only: elsewhere nothing is gained by it.
///
/// Source: Vaswani et al. 2017, arXiv:1706.03762, equation 1.
///
/// # Panics
/// If a length does not fit, a size is 0, or `causal` has other queries than keys.
///
/// ```
/// use safelight_kernels::Precision;
/// use safelight_kernels::attention::{AttentionShape, StridedRows, attention};
///
/// let shape = AttentionShape { batch: 1, heads: 1, head_width: 1, queries: 1, keys: 2, causal: false };
/// let rows = |data| StridedRows::dense(data, 1);
/// let mut out = [0.0];
/// attention(&shape, Precision::F32, rows(&[0.0]), rows(&[5.0, -5.0]), rows(&[1.0, 3.0]), &mut out);
/// assert!((out[0] - 2.0).abs() < 1e-6);
/// ```
pub fn attention(
    shape: &AttentionShape,
    precision: Precision,
    q: StridedRows<'_>,
    k: StridedRows<'_>,
    v: StridedRows<'_>,
    out: &mut [f32],
) {
    attention_at(level(), shape, precision, q, k, v, out);
}

/// [`attention`] at a level of the caller's choice, for tests and benches.
///
/// # Panics
/// As [`attention`], and if the CPU lacks the level.
pub fn attention_at(
    level: Level,
    shape: &AttentionShape,
    precision: Precision,
    q: StridedRows<'_>,
    k: StridedRows<'_>,
    v: StridedRows<'_>,
    out: &mut [f32],
) {
    if precision != Precision::F32 && level == Level::Avx512Bf16 {
        attention_of::<Bf16>(level, shape, [q, k, v], out);
    } else {
        attention_of::<F32>(level, shape, [q, k, v], out);
    }
}

/// [`attention`] with products of `W`.
fn attention_of<W: Rounded>(
    level: Level,
    shape: &AttentionShape,
    [q, k, v]: [StridedRows<'_>; 3],
    out: &mut [f32],
) {
    let width = shape.width();
    assert!(width > 0 && shape.keys > 0, "attention: {shape:?}");
    assert!(
        !shape.causal || shape.queries == shape.keys,
        "attention: {shape:?}"
    );
    q.check("q", shape.batch * shape.queries, width);
    k.check("k", shape.batch * shape.keys, width);
    v.check("v", shape.batch * shape.keys, width);
    assert_eq!(
        out.len(),
        shape.batch * shape.queries * width,
        "attention: out, {shape:?}"
    );
    if out.is_empty() {
        return;
    }
    // The specification rounds for itself.
    let in_words = W::COUNT > 1 && level != Level::Scalar;
    let (key_words, value_words) = (
        in_words.then(|| key_words(level, shape, k)),
        in_words.then(|| value_words(level, shape, v)),
    );
    let key_width = shape
        .head_width
        .div_ceil(if in_words { W::COUNT } else { 1 });
    let k = key_words.as_ref().map_or(k, |words| {
        StridedRows::dense(words, shape.heads * key_width)
    });
    let v = value_words
        .as_ref()
        .map_or(v, |words| StridedRows::dense(words, width));
    let tile = match level {
        Level::Scalar => 16,
        Level::Neon | Level::Avx2 => 8 * QUERY_VECTORS,
        Level::Avx512 | Level::Avx512Vnni | Level::Avx512Bf16 | Level::Amx => 16 * QUERY_VECTORS,
    };
    // Where there is work for many threads, a block of keys serves several tiles of queries, as many
    // as leave a level-2 cache of 1 MiB room for their queries and sums.
    let query_block = if shape.batch * shape.heads * shape.queries.div_ceil(tile) < 64 {
        tile
    } else {
        tile * (TILE_FLOATS_MAX / (2 * tile * shape.head_width)).clamp(1, TILES_MAX)
    };
    let mut blocks: Vec<(usize, Rectangle<'_>)> = Vec::new();
    for (image, out) in out.chunks_exact_mut(shape.queries * width).enumerate() {
        let pieces = rectangles(out, width, query_block, shape.head_width);
        blocks.extend(pieces.into_iter().map(|piece| (image, piece)));
    }
    // Blocks of one head follow each other, so that its keys and values stay in the cache.
    blocks.sort_by_key(|(image, piece)| (*image, piece.column));
    blocks.into_par_iter().for_each(|(image, out)| {
        let mut scratch = SCRATCH.take();
        let block = Block {
            words: PhantomData::<W>,
            shape,
            q,
            k,
            key_width,
            v,
            image,
            out,
            scratch: &mut scratch,
        };
        match level {
            Level::Scalar => block.plain(),
            _ => arch::run(level, block),
        }
        SCRATCH.set(scratch);
    });
}

thread_local! {
    /// What a thread keeps from one block to the next: at most [`TILE_FLOATS_MAX`] and a block of keys.
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// [`Rounded::COUNT`] at most.
const COUNT_MAX: usize = 2;

/// Words of an attention's products.
trait Rounded: Words {
    /// Numbers in a word.
    const COUNT: usize = channels_in_a_word(Self::PRECISION);

    /// `x` as a word has it.
    fn round(x: f32) -> f32;
    /// Lane by lane a word of the first `COUNT` numbers.
    fn join<S: Simd>(simd: S, numbers: [S::V; COUNT_MAX]) -> S::V;
    /// 2ˣ for `x <= 0`, a few times as precise as a word's numbers; at least 2⁻¹²⁶, which beside a highest weight of 1 is nothing. NaN
    /// stays NaN.
    fn exp2<S: Simd>(simd: S, x: S::V) -> S::V;
}

impl Rounded for F32 {
    fn round(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn join<S: Simd>(_simd: S, [number, _]: [S::V; COUNT_MAX]) -> S::V {
        number
    }
    /// Within 2 ulp.
    #[inline(always)]
    fn exp2<S: Simd>(simd: S, x: S::V) -> S::V {
        // Minimax of degree 6, relative error 2e-9.
        exp2(
            simd,
            x,
            [
                1.534_581_3e-4,
                1.339_993_1e-3,
                9.618_489e-3,
                5.550_328_6e-2,
                0.240_226_46,
                std::f32::consts::LN_2,
                1.0,
            ],
        )
    }
}

impl Rounded for Bf16 {
    fn round(x: f32) -> f32 {
        f32::from_bits(bf16_bits(x) << 16)
    }
    #[inline(always)]
    fn join<S: Simd>(simd: S, [low, high]: [S::V; COUNT_MAX]) -> S::V {
        simd.join_bf16(low, high)
    }
    /// Within 1.1e-4 of it: half a unit of a bf16 is 2e-3.
    #[inline(always)]
    fn exp2<S: Simd>(simd: S, x: S::V) -> S::V {
        // Minimax of degree 3 among those that are 1 at 0, relative error 1.02e-4.
        exp2(simd, x, [5.500_893e-2, 0.242_210_96, 0.693_282_9, 1.0])
    }
}

/// `[B·Tk][heads][⌈d/2⌉]`: keys as words of two neighbouring numbers of a head, the last beside 0 where d is odd.
fn key_words(level: Level, shape: &AttentionShape, k: StridedRows<'_>) -> Scratch {
    let width = shape.heads * shape.head_width.div_ceil(2);
    in_words(shape.batch * shape.keys, width, |first, words| {
        arch::run(
            level,
            KeyWords {
                shape,
                k,
                first,
                words,
            },
        );
    })
}

/// `[B][⌈Tk/2⌉][heads·d]`: values as words of two neighbouring keys, the last beside 0 where their count is odd.
fn value_words(level: Level, shape: &AttentionShape, v: StridedRows<'_>) -> Scratch {
    let pairs = shape.keys.div_ceil(2);
    in_words(shape.batch * pairs, shape.width(), |first, words| {
        arch::run(
            level,
            ValueWords {
                shape,
                v,
                first,
                words,
            },
        );
    })
}

/// `[rows][width]`, of which `fill` is given some rows at a time, and which is the first of them.
fn in_words(rows: usize, width: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Scratch {
    let rows_at_once = (16 * 1024 / width).max(1);
    let mut words = Scratch::take(rows * width);
    let chunks = words.par_chunks_mut(rows_at_once * width).enumerate();
    chunks.for_each(|(chunk, words)| fill(chunk * rows_at_once, words));
    words
}

/// Some rows of [`key_words`].
struct KeyWords<'a> {
    shape: &'a AttentionShape,
    k: StridedRows<'a>,
    first: usize,
    words: &'a mut [f32],
}

impl Task for KeyWords<'_> {
    type Output = ();
    const PRECISION: Precision = Precision::Bf16;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let AttentionShape {
            heads, head_width, ..
        } = *self.shape;
        // Heads of an even width leave no gaps between them.
        let (heads, width) = match head_width % 2 {
            0 => (1, heads * head_width),
            _ => (heads, head_width),
        };
        let pieces = self.words.chunks_exact_mut(width.div_ceil(2));
        for (idx, words) in pieces.enumerate() {
            let x = self
                .k
                .part(self.first + idx / heads, idx % heads * width, width);
            to_halves(simd, x, words);
        }
    }
}

/// Some rows of [`value_words`].
struct ValueWords<'a> {
    shape: &'a AttentionShape,
    v: StridedRows<'a>,
    first: usize,
    words: &'a mut [f32],
}

impl Task for ValueWords<'_> {
    type Output = ();
    const PRECISION: Precision = Precision::Bf16;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (keys, width) = (self.shape.keys, self.shape.width());
        let pairs = keys.div_ceil(2);
        for (idx, words) in self.words.chunks_exact_mut(width).enumerate() {
            let (image, key) = ((self.first + idx) / pairs, 2 * ((self.first + idx) % pairs));
            let row = |key: usize| match key < keys {
                true => self.v.part(image * keys + key, 0, width),
                false => &[],
            };
            let (low, high) = (row(key), row(key + 1));
            for (chunk, words) in words.chunks_mut(S::LANES).enumerate() {
                let at = |x: &[f32]| simd.load_partial(&x[x.len().min(chunk * S::LANES)..]);
                simd.store_partial(simd.join_bf16(at(low), at(high)), words);
            }
        }
    }
}

/// A block of queries of one head of one image. At the plain level keys and values are floats, elsewhere words.
struct Block<'a, W> {
    words: PhantomData<W>,
    shape: &'a AttentionShape,
    q: StridedRows<'a>,
    k: StridedRows<'a>,
    /// Words of one head in a row of keys.
    key_width: usize,
    v: StridedRows<'a>,
    image: usize,
    out: Rectangle<'a>,
    scratch: &'a mut Vec<f32>,
}

impl<'a, W: Rounded> Block<'a, W> {
    /// The specification: query by query, all scores, softmax, weighted sum.
    fn plain(mut self) {
        let (keys, d) = (self.shape.keys, self.shape.head_width);
        let scale = self.scale();
        for idx in 0..self.out.row_count {
            let q = self.query(idx);
            let seen = if self.shape.causal {
                self.out.row + idx + 1
            } else {
                keys
            };
            self.scratch.clear();
            for key in 0..seen {
                let numbers = q.iter().zip(self.key(key, 0, d));
                let products = numbers.map(|(q, k)| W::round(q * scale) * W::round(*k));
                self.scratch.push(products.sum());
            }
            let highest = self
                .scratch
                .iter()
                .fold(f32::NEG_INFINITY, |a, &b| if a > b { a } else { b });
            self.scratch
                .iter_mut()
                .for_each(|x| *x = W::round((*x - highest).exp2()));
            // In f64: thousands of similar weights would round the same way each.
            let sum = self.scratch.iter().map(|&x| f64::from(x)).sum::<f64>() as f32;
            let (image, column) = (self.image, self.out.column);
            let out = self.out.row_mut(idx);
            out.fill(0.0);
            for (key, weight) in self.scratch.iter().enumerate() {
                let v = self.v.part(image * keys + key, column, d);
                for (out, v) in out.iter_mut().zip(v) {
                    *out += weight / sum * W::round(*v);
                }
            }
        }
    }

    /// What makes 2ˣ of a score its weight: log₂e/√d.
    fn scale(&self) -> f32 {
        std::f32::consts::LOG2_E / (self.shape.head_width as f32).sqrt()
    }

    /// The head's part of a query row, counted from the block's first.
    #[inline(always)]
    fn query(&self, idx: usize) -> &'a [f32] {
        let row = self.image * self.shape.queries + self.out.row + idx;
        self.q.part(row, self.out.column, self.shape.head_width)
    }

    /// `count` words of the head's part of a key row.
    #[inline(always)]
    fn key(&self, key: usize, start: usize, count: usize) -> &'a [f32] {
        let row = self.image * self.shape.keys + key;
        let head = self.out.column / self.shape.head_width;
        self.k.part(row, head * self.key_width + start, count)
    }
}

impl<W: Rounded> Task for Block<'_, W> {
    type Output = ();
    const PRECISION: Precision = W::PRECISION;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        // Whole tiles first, then what is left, in as few vectors as will do.
        let whole = self.out.row_count / (QUERY_VECTORS * S::LANES) * (QUERY_VECTORS * S::LANES);
        let rest = self.out.row_count - whole;
        let mut scratch = std::mem::take(self.scratch);
        if whole > 0 {
            self.tiles::<S, QUERY_VECTORS>(simd, 0..whole, &mut scratch);
        }
        match rest.div_ceil(S::LANES) {
            0 => {}
            1 => self.tiles::<S, 1>(simd, whole..whole + rest, &mut scratch),
            2 => self.tiles::<S, 2>(simd, whole..whole + rest, &mut scratch),
            _ => self.tiles::<S, QUERY_VECTORS>(simd, whole..whole + rest, &mut scratch),
        }
        *self.scratch = scratch;
    }
}

impl<W: Rounded> Block<'_, W> {
    /// Tiles of `C` vectors of queries, together the block's `rows`, against every block of keys.
    #[inline(always)]
    fn tiles<S: Simd, const C: usize>(
        &mut self,
        simd: S,
        rows: Range<usize>,
        scratch: &mut Vec<f32>,
    ) {
        // Accumulators: 8 × 3 of 32 registers, or 4 × 3 of 16.
        if S::LANES >= 16 {
            self.tiles_of::<S, 8, C>(simd, rows, scratch);
        } else {
            self.tiles_of::<S, 4, C>(simd, rows, scratch);
        }
    }

    /// [`Self::tiles`], with `R` keys (then `R` floats of the head) at a time.
    #[inline(always)]
    fn tiles_of<S: Simd, const R: usize, const C: usize>(
        &mut self,
        simd: S,
        rows: Range<usize>,
        scratch: &mut Vec<f32>,
    ) {
        let (d, words) = (self.shape.head_width, self.key_width);
        let lanes = C * S::LANES;
        let count = rows.len().div_ceil(lanes);
        assert!(count <= TILES_MAX);
        let scratch = aligned(scratch, ((d + words) * count + KEY_BLOCK) * lanes);
        let (q, rest) = scratch.split_at_mut(words * count * lanes);
        let (sums, rest) = rest.split_at_mut(d * count * lanes);
        let tiles = q.chunks_exact_mut(words * lanes);
        for (idx, (q, turned)) in tiles.zip(sums.chunks_exact_mut(d * lanes)).enumerate() {
            let first = rows.start + idx * lanes;
            let rows = first..rows.end.min(first + lanes);
            self.turn_queries::<S, C>(simd, rows, turned, q);
        }
        sums.fill(0.0);

        let mut softmax = [Softmax::<S, C>::new(simd); TILES_MAX];
        for first_key in (0..self.shape.keys).step_by(KEY_BLOCK) {
            let scores = &mut rest[..KEY_BLOCK.min(self.shape.keys - first_key) * lanes];
            let tiles = q
                .chunks_exact(words * lanes)
                .zip(sums.chunks_exact_mut(d * lanes));
            for (idx, ((q, sums), softmax)) in tiles.zip(&mut softmax).enumerate() {
                let first_query = self.out.row + rows.start + idx * lanes;
                if self.shape.causal && first_key >= first_query + lanes {
                    continue;
                }
                for depth in (0..words).step_by(DEPTH_BLOCK) {
                    self.score_keys::<S, R, C>(simd, first_key, depth, q, scores);
                }
                if self.shape.causal {
                    mask(first_key, first_query, lanes, scores);
                }
                let (weights, shrink) = softmax.weigh::<W>(simd, scores);
                self.add_values::<S, R, C>(simd, first_key, weights, shrink, sums);
            }
        }
        let tiles = sums.chunks_exact_mut(d * lanes);
        for (idx, (sums, softmax)) in tiles.zip(&softmax).enumerate() {
            softmax.normalise(simd, sums);
            let first = rows.start + idx * lanes;
            self.turn_back(simd, first..rows.end.min(first + lanes), lanes, sums);
        }
    }

    /// Queries as words `[⌈d/COUNT⌉][query]`, scaled; missing queries are 0. `turned` is room for `[d][query]` floats.
    #[inline(always)]
    fn turn_queries<S: Simd, const C: usize>(
        &self,
        simd: S,
        rows: Range<usize>,
        turned: &mut [f32],
        q: &mut [f32],
    ) {
        let (d, lanes) = (self.shape.head_width, C * S::LANES);
        for lane in (0..lanes).step_by(8) {
            let count = rows.len().saturating_sub(lane).min(8);
            let mut queries: [&[f32]; 8] = [&[]; 8];
            for (idx, query) in queries[..count].iter_mut().enumerate() {
                *query = self.query(rows.start + lane + idx);
            }
            let mut depth = 0;
            if count == 8 {
                while let [
                    Some(a),
                    Some(b),
                    Some(c),
                    Some(e),
                    Some(f),
                    Some(g),
                    Some(h),
                    Some(i),
                ] = queries.map(|query| query[depth..].first_chunk())
                {
                    for column in simd.turn_8([a, b, c, e, f, g, h, i]) {
                        turned[depth * lanes + lane..][..8].copy_from_slice(&column);
                        depth += 1;
                    }
                }
            }
            for depth in depth..d {
                let turned = &mut turned[depth * lanes + lane..][..8];
                turned.fill(0.0);
                for (to, query) in turned.iter_mut().zip(&queries[..count]) {
                    *to = query[depth];
                }
            }
        }
        let scale = simd.splat(self.scale());
        let columns = turned.chunks(W::COUNT * lanes);
        for (q, turned) in q.chunks_exact_mut(lanes).zip(columns) {
            for c in 0..C {
                // The last of an odd number of floats has 0 beside it.
                let mut numbers = [simd.splat(0.0); COUNT_MAX];
                for (number, turned) in numbers.iter_mut().zip(turned.chunks_exact(lanes)) {
                    *number = simd.mul(simd.load(&turned[c * S::LANES..]), scale);
                }
                simd.store(W::join(simd, numbers), &mut q[c * S::LANES..]);
            }
        }
    }

    /// Sums `[d][query]` to rows of the output.
    #[inline(always)]
    fn turn_back<S: Simd>(&mut self, simd: S, rows: Range<usize>, lanes: usize, sums: &[f32]) {
        let d = self.shape.head_width;
        for first in rows.clone().step_by(8) {
            let (lane, count) = (first - rows.start, 8.min(rows.end - first));
            let mut depth = 0;
            while depth + 8 <= d {
                let column = |idx: usize| {
                    let sums = &sums[(depth + idx) * lanes + lane..];
                    sums.first_chunk::<8>().expect("lanes come in eights")
                };
                let turned = simd.turn_8(std::array::from_fn(column));
                for (idx, floats) in turned.iter().enumerate().take(count) {
                    self.out.row_mut(first + idx)[depth..][..8].copy_from_slice(floats);
                }
                depth += 8;
            }
            for idx in 0..count {
                let out = &mut self.out.row_mut(first + idx)[depth..];
                for (out, sums) in out.iter_mut().zip(sums.chunks_exact(lanes).skip(depth)) {
                    *out = sums[lane + idx];
                }
            }
        }
    }

    /// Adds the products over words `depth..` of the head to the scores (or begins them, at depth 0).
    #[inline(always)]
    fn score_keys<S: Simd, const R: usize, const C: usize>(
        &self,
        simd: S,
        first_key: usize,
        depth: usize,
        q: &[f32],
        scores: &mut [f32],
    ) {
        let lanes = C * S::LANES;
        let count = DEPTH_BLOCK.min(self.key_width - depth);
        let q = &q[depth * lanes..][..count * lanes];
        let mut key = first_key;
        let mut tiles = scores.chunks_exact_mut(R * lanes);
        for tile in &mut tiles {
            let k: [&[f32]; R] = std::array::from_fn(|r| self.key(key + r, depth, count));
            score_tile::<W, S, R, C>(simd, k, q, depth > 0, tile);
            key += R;
        }
        for row in tiles.into_remainder().chunks_exact_mut(lanes) {
            score_tile::<W, S, 1, C>(simd, [self.key(key, depth, count)], q, depth > 0, row);
            key += 1;
        }
    }

    /// Shrinks the sums and adds the values of the block's keys, weighted.
    #[inline(always)]
    fn add_values<S: Simd, const R: usize, const C: usize>(
        &self,
        simd: S,
        first_key: usize,
        weights: &[f32],
        shrink: [S::V; C],
        sums: &mut [f32],
    ) {
        let lanes = C * S::LANES;
        let words = self.image * self.shape.keys.div_ceil(W::COUNT) + first_key / W::COUNT;
        let first = words * self.v.stride + self.out.column;
        let v = StridedRows {
            data: &self.v.data[first..],
            stride: self.v.stride,
        };
        let mut column = 0;
        let mut tiles = sums.chunks_exact_mut(R * lanes);
        for tile in &mut tiles {
            value_tile::<W, S, R, C>(simd, v, column, weights, shrink, tile);
            column += R;
        }
        for row in tiles.into_remainder().chunks_exact_mut(lanes) {
            value_tile::<W, S, 1, C>(simd, v, column, weights, shrink, row);
            column += 1;
        }
    }
}

/// Hides from each query the keys that come after it.
#[inline(always)]
fn mask(first_key: usize, first_query: usize, lanes: usize, scores: &mut [f32]) {
    for (idx, row) in scores.chunks_exact_mut(lanes).enumerate() {
        let hidden = (first_key + idx).saturating_sub(first_query).min(lanes);
        row[..hidden].fill(f32::MIN);
    }
}

/// `count` floats of `scratch` that begin a cache line: no vector straddles two.
#[inline(always)]
fn aligned(scratch: &mut Vec<f32>, count: usize) -> &mut [f32] {
    const LINE: usize = 64;
    if scratch.len() < count + LINE / 4 {
        scratch.resize(count + LINE / 4, 0.0);
    }
    let skip = scratch.as_ptr().align_offset(LINE).min(LINE / 4);
    &mut scratch[skip..skip + count]
}

/// `R` keys against `C` vectors of queries: `scores[r] (+)= Σ k[r][i]·q[i]`, all words.
#[inline(always)]
fn score_tile<W: Words, S: Simd, const R: usize, const C: usize>(
    simd: S,
    k: [&[f32]; R],
    q: &[f32],
    accumulate: bool,
    scores: &mut [f32],
) {
    let lanes = C * S::LANES;
    let count = q.len() / lanes;
    let k: [&[f32]; R] = std::array::from_fn(|r| &k[r][..count]);
    let mut sums = [[simd.splat(0.0); C]; R];
    for i in 0..count {
        let q = &q[i * lanes..][..lanes];
        let q: [_; C] = std::array::from_fn(|c| W::right(simd, simd.load(&q[c * S::LANES..])));
        for r in 0..R {
            let k = simd.splat(k[r][i]);
            for c in 0..C {
                sums[r][c] = W::dot(simd, |_| k, q[c], sums[r][c]);
            }
        }
    }
    let scores = &mut scores[..R * lanes];
    for r in 0..R {
        for c in 0..C {
            let at = &mut scores[r * lanes + c * S::LANES..][..S::LANES];
            let before = if accumulate {
                simd.load(at)
            } else {
                simd.splat(0.0)
            };
            simd.store(simd.add(before, sums[r][c]), at);
        }
    }
}

/// `R` words of every value row for `C` vectors of queries: `sums[r] = sums[r]·shrink + Σ v[key][r]·weights[key]`.
#[inline(always)]
fn value_tile<W: Words, S: Simd, const R: usize, const C: usize>(
    simd: S,
    v: StridedRows<'_>,
    column: usize,
    weights: &[f32],
    shrink: [S::V; C],
    sums: &mut [f32],
) {
    let lanes = C * S::LANES;
    let stored = &mut sums[..R * lanes];
    let mut sums = [[simd.splat(0.0); C]; R];
    for (word, weights) in weights.chunks_exact(lanes).enumerate() {
        let v = v.part(word, column, R);
        let weights: [_; C] =
            std::array::from_fn(|c| W::right(simd, simd.load(&weights[c * S::LANES..])));
        for r in 0..R {
            let v = simd.splat(v[r]);
            for c in 0..C {
                sums[r][c] = W::dot(simd, |_| v, weights[c], sums[r][c]);
            }
        }
    }
    for r in 0..R {
        for c in 0..C {
            // Block sums are added up apart: thousands of terms in one run would round away more.
            let at = &mut stored[r * lanes + c * S::LANES..][..S::LANES];
            simd.store(simd.mul_add(simd.load(at), shrink[c], sums[r][c]), at);
        }
    }
}

/// Highest score and sum of weights so far, for each query.
#[derive(Clone, Copy)]
struct Softmax<S: Simd, const C: usize> {
    highest: [S::V; C],
    sum: [S::V; C],
}

impl<S: Simd, const C: usize> Softmax<S, C> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        // Below every score, and finite: a difference of infinities would be NaN.
        Softmax {
            highest: [simd.splat(f32::MIN); C],
            sum: [simd.splat(0.0); C],
        }
    }

    /// Turns scores into words of weights relative to the highest so far; returns them and what earlier sums shrink by.
    #[inline(always)]
    fn weigh<'s, W: Rounded>(&mut self, simd: S, scores: &'s mut [f32]) -> (&'s [f32], [S::V; C]) {
        let lanes = C * S::LANES;
        let mut highest = self.highest;
        for row in scores.chunks_exact(lanes) {
            for c in 0..C {
                highest[c] = simd.max(highest[c], simd.load(&row[c * S::LANES..]));
            }
        }
        let mut shrink = [simd.splat(0.0); C];
        for c in 0..C {
            shrink[c] = W::exp2(simd, simd.sub(self.highest[c], highest[c]));
        }
        let mut sum = [simd.splat(0.0); C];
        let ones = W::join(simd, [simd.splat(1.0); COUNT_MAX]);
        let keys = scores.len() / lanes;
        for word in 0..keys / W::COUNT {
            let rows = &scores[word * W::COUNT * lanes..][..W::COUNT * lanes];
            let mut weights = [simd.splat(0.0); C];
            for c in 0..C {
                let mut numbers = [simd.splat(0.0); COUNT_MAX];
                for idx in 0..W::COUNT {
                    let score = simd.load(&rows[idx * lanes + c * S::LANES..]);
                    numbers[idx] = W::exp2(simd, simd.sub(score, highest[c]));
                }
                weights[c] = W::join(simd, numbers);
                // What was rounded is added up, so that the weights of one query make 1.
                sum[c] = W::dot(simd, |_| ones, W::right(simd, weights[c]), sum[c]);
            }
            let words = &mut scores[word * lanes..][..lanes];
            for c in 0..C {
                simd.store(weights[c], &mut words[c * S::LANES..]);
            }
        }
        let words = keys.div_ceil(W::COUNT);
        if words * W::COUNT > keys {
            // The last of an odd number of keys has 0 beside it.
            for c in 0..C {
                let score = simd.load(&scores[(keys - 1) * lanes + c * S::LANES..]);
                let number = W::exp2(simd, simd.sub(score, highest[c]));
                let weights = W::join(simd, [number, simd.splat(0.0)]);
                sum[c] = W::dot(simd, |_| ones, W::right(simd, weights), sum[c]);
                simd.store(weights, &mut scores[(words - 1) * lanes + c * S::LANES..]);
            }
        }
        for c in 0..C {
            self.sum[c] = simd.mul_add(self.sum[c], shrink[c], sum[c]);
        }
        self.highest = highest;
        (&scores[..words * lanes], shrink)
    }

    /// Divides the weighted sums by the sum of the weights.
    #[inline(always)]
    fn normalise(&self, simd: S, sums: &mut [f32]) {
        let one = simd.splat(1.0);
        let factor: [S::V; C] = std::array::from_fn(|c| simd.div(one, self.sum[c]));
        for row in sums.chunks_exact_mut(C * S::LANES) {
            for c in 0..C {
                let at = &mut row[c * S::LANES..][..S::LANES];
                simd.store(simd.mul(simd.load(at), factor[c]), at);
            }
        }
    }
}

/// 2ˣ for -126 <= `x` <= 0; 2⁻¹²⁶ below.
///
/// x = n + r with |r| <= ½; 2ʳ by the polynomial, its highest coefficient first.
#[inline(always)]
fn exp2<S: Simd, const N: usize>(simd: S, x: S::V, coefficients: [f32; N]) -> S::V {
    let x = simd.max(simd.splat(-126.0), x); // second argument for NaN
    let n = simd.round(x);
    let r = simd.sub(x, n);
    let mut p = simd.splat(coefficients[0]);
    for &coefficient in &coefficients[1..] {
        p = simd.mul_add(p, r, simd.splat(coefficient));
    }
    simd.scale_by_power_of_2(p, n)
}

#[cfg(test)]
mod tests;
