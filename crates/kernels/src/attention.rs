//! Attention, fused: the scores of a block of queries against a block of keys never leave the cache.
//!
//! A vector's lanes are queries. Scores come out as `[key][query]`, so a key's and a value's numbers are
//! broadcast one by one, whatever the head's width; the softmax runs down the lanes without
//! a reduction; and a query's result depends on no other query, nor on how the work was split.
//! Keys and values are copied first, eight beside each other, so that the products read them in one go (`words`).
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

use crate::arch::{self, Bf16, F32, Rectangle, Simd, Task, Words, rectangles};
use crate::level::{Level, level};
use crate::precision::Precision;

mod words;

use words::{COUNT_MAX, Rounded, key_words, value_words};

/// Keys whose scores are held at a time.
const KEY_BLOCK: usize = 64;
/// Keys, or numbers of values, whose words lie beside each other.
const BESIDE: usize = 8;
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
    // The specification reads rows as they lie, and rounds for itself.
    let fast = level != Level::Scalar;
    let packed = fast.then(|| {
        (
            key_words::<W>(level, shape, k),
            value_words::<W>(level, shape, v),
        )
    });
    let (key_words, value_words) = packed
        .as_ref()
        .map_or((&[][..], &[][..]), |(keys, values)| (keys, values));
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
            v,
            key_words,
            value_words,
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

/// A block of queries of one head of one image.
struct Block<'a, W> {
    words: PhantomData<W>,
    shape: &'a AttentionShape,
    q: StridedRows<'a>,
    k: StridedRows<'a>,
    v: StridedRows<'a>,
    /// Both as words, which all levels but the plain one read.
    key_words: &'a [f32],
    value_words: &'a [f32],
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
                let numbers = q.iter().zip(self.key(key));
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

    /// The head's part of a key row.
    fn key(&self, key: usize) -> &'a [f32] {
        let row = self.image * self.shape.keys + key;
        self.k.part(row, self.out.column, self.shape.head_width)
    }

    /// Which head of which image this is.
    #[inline(always)]
    fn head(&self) -> usize {
        self.image * self.shape.heads + self.out.column / self.shape.head_width
    }

    /// Words of one head in a query or key.
    #[inline(always)]
    fn head_words(&self) -> usize {
        self.shape.head_width.div_ceil(W::COUNT)
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
        let (d, words) = (self.shape.head_width, self.head_words());
        let lanes = C * S::LANES;
        let count = rows.len().div_ceil(lanes);
        assert!(count <= TILES_MAX);
        let of_sums = d.next_multiple_of(BESIDE) * lanes;
        let scratch = aligned(
            scratch,
            of_sums * count + (words * count + KEY_BLOCK) * lanes,
        );
        let (q, rest) = scratch.split_at_mut(words * count * lanes);
        let (sums, rest) = rest.split_at_mut(count * of_sums);
        let tiles = q.chunks_exact_mut(words * lanes);
        for (idx, (q, turned)) in tiles.zip(sums.chunks_exact_mut(of_sums)).enumerate() {
            let first = rows.start + idx * lanes;
            let rows = first..rows.end.min(first + lanes);
            self.turn_queries::<S, C>(simd, rows, turned, q);
        }
        sums.fill(0.0);

        let mut softmax = [Softmax::<S, C>::new(simd); TILES_MAX];
        for first_key in (0..self.shape.keys).step_by(KEY_BLOCK) {
            let keys = KEY_BLOCK.min(self.shape.keys - first_key);
            let scores = &mut rest[..keys.next_multiple_of(BESIDE) * lanes];
            let tiles = q
                .chunks_exact(words * lanes)
                .zip(sums.chunks_exact_mut(of_sums));
            for (idx, ((q, sums), softmax)) in tiles.zip(&mut softmax).enumerate() {
                let first_query = self.out.row + rows.start + idx * lanes;
                if self.shape.causal && first_key >= first_query + lanes {
                    continue;
                }
                for depth in (0..words).step_by(DEPTH_BLOCK) {
                    self.score_keys::<S, R, C>(simd, first_key, depth, q, scores);
                }
                let scores = &mut scores[..keys * lanes];
                if self.shape.causal {
                    mask(first_key, first_query, lanes, scores);
                }
                let (weights, shrink) = softmax.weigh::<W>(simd, scores);
                self.add_values::<S, R, C>(simd, first_key, weights, shrink, sums);
            }
        }
        let tiles = sums.chunks_exact_mut(of_sums);
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
        const { assert!(BESIDE.is_multiple_of(R)) };
        let (lanes, words) = (C * S::LANES, self.head_words());
        let count = DEPTH_BLOCK.min(words - depth);
        let q = &q[depth * lanes..][..count * lanes];
        let group = self.head() * self.shape.keys.div_ceil(BESIDE) + first_key / BESIDE;
        let groups = self.key_words[group * words * BESIDE..].chunks_exact(words * BESIDE);
        for (k, scores) in groups.zip(scores.chunks_exact_mut(BESIDE * lanes)) {
            let k = &k.as_chunks::<BESIDE>().0[depth..][..count];
            for (idx, tile) in scores.chunks_exact_mut(R * lanes).enumerate() {
                let added = products::<W, S, R, C>(simd, k, idx * R, q);
                for (row, added) in tile.chunks_exact_mut(lanes).zip(added) {
                    for c in 0..C {
                        let at = &mut row[c * S::LANES..];
                        let sum = match depth {
                            0 => added[c],
                            _ => simd.add(simd.load(at), added[c]),
                        };
                        simd.store(sum, at);
                    }
                }
            }
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
        let (groups, len) = (
            self.shape.head_width.div_ceil(BESIDE),
            self.shape.keys.div_ceil(W::COUNT),
        );
        let (first, count) = (first_key / W::COUNT, weights.len() / lanes);
        let group = self.head() * groups;
        let groups = self.value_words[group * len * BESIDE..].chunks_exact(len * BESIDE);
        for (v, sums) in groups.zip(sums.chunks_exact_mut(BESIDE * lanes)) {
            let v = &v.as_chunks::<BESIDE>().0[first..][..count];
            for (idx, tile) in sums.chunks_exact_mut(R * lanes).enumerate() {
                let added = products::<W, S, R, C>(simd, v, idx * R, weights);
                for (row, added) in tile.chunks_exact_mut(lanes).zip(added) {
                    for c in 0..C {
                        // Block sums are added up apart: thousands of terms in one run would round away more.
                        let at = &mut row[c * S::LANES..];
                        simd.store(simd.mul_add(simd.load(at), shrink[c], added[c]), at);
                    }
                }
            }
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

/// `R` rows of left words, from `first` of those beside each other on, times `C` vectors of right ones: `Σ left[i][r]·right[i]`.
#[inline(always)]
fn products<W: Words, S: Simd, const R: usize, const C: usize>(
    simd: S,
    left: &[[f32; BESIDE]],
    first: usize,
    right: &[f32],
) -> [[S::V; C]; R] {
    let first = if R == BESIDE { 0 } else { first };
    let mut sums = [[simd.splat(0.0); C]; R];
    for (left, right) in left.iter().zip(right.chunks_exact(C * S::LANES)) {
        let left: &[f32; R] = left[first..].first_chunk().expect("R words");
        let mut vectors = [W::right(simd, simd.load(right)); C];
        for c in 1..C {
            vectors[c] = W::right(simd, simd.load(&right[c * S::LANES..]));
        }
        for r in 0..R {
            let left = simd.splat(left[r]);
            for c in 0..C {
                sums[r][c] = W::dot(simd, |_| left, vectors[c], sums[r][c]);
            }
        }
    }
    sums
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

#[cfg(test)]
mod tests;
