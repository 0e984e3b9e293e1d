//! Queries, keys, values and weights of attention as words, keys and values laid out as the products read them.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::{AttentionShape, BESIDE, StridedRows};
use crate::arch::{self, Bf16, F32, Simd, Task, Words, bf16_bits};
use crate::level::Level;
use crate::precision::Precision;
use crate::scratch::Scratch;
use crate::words::{channels_in_a_word, to_halves};

/// [`Rounded::COUNT`] at most.
pub(super) const COUNT_MAX: usize = 2;

/// Words of an attention's products.
pub(super) trait Rounded: Words {
    /// Numbers in a word.
    const COUNT: usize = channels_in_a_word(Self::PRECISION);

    /// `x` as a word has it.
    fn round(x: f32) -> f32;
    /// `x` as words, which there are enough of.
    fn words<S: Simd>(simd: S, x: &[f32], words: &mut [f32]);
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
    fn words<S: Simd>(_simd: S, x: &[f32], words: &mut [f32]) {
        words[..x.len()].copy_from_slice(x);
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
    fn words<S: Simd>(simd: S, x: &[f32], words: &mut [f32]) {
        to_halves(simd, x, words);
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

/// `[B][heads][⌈Tk/8⌉][⌈d/COUNT⌉][8]`: keys as words of neighbouring numbers of a head, eight keys beside each other. Where d is odd,
/// the last of two numbers is 0, and so are the keys that fill the last eight up.
pub(super) fn key_words<W: Rounded>(
    level: Level,
    shape: &AttentionShape,
    k: StridedRows<'_>,
) -> Scratch {
    let groups = shape.batch * shape.heads * shape.keys.div_ceil(BESIDE);
    let words = shape.head_width.div_ceil(W::COUNT);
    in_words(groups, words * BESIDE, |first, words| {
        arch::run(
            level,
            KeyWords {
                kind: PhantomData::<W>,
                shape,
                k,
                first,
                words,
            },
        );
    })
}

/// `[B][heads][⌈d/8⌉][⌈Tk/COUNT⌉][8]`: values as words of neighbouring keys, eight numbers of a head beside each other. What fills up is 0.
pub(super) fn value_words<W: Rounded>(
    level: Level,
    shape: &AttentionShape,
    v: StridedRows<'_>,
) -> Scratch {
    let groups = shape.batch * shape.heads * shape.head_width.div_ceil(BESIDE);
    let words = shape.keys.div_ceil(W::COUNT);
    in_words(groups, words * BESIDE, |first, words| {
        arch::run(
            level,
            ValueWords {
                kind: PhantomData::<W>,
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

/// Some groups of [`key_words`].
struct KeyWords<'a, W> {
    kind: PhantomData<W>,
    shape: &'a AttentionShape,
    k: StridedRows<'a>,
    first: usize,
    words: &'a mut [f32],
}

impl<W: Rounded> Task for KeyWords<'_, W> {
    type Output = ();
    const PRECISION: Precision = W::PRECISION;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let AttentionShape {
            heads,
            head_width,
            keys,
            ..
        } = *self.shape;
        let (groups, width) = (keys.div_ceil(BESIDE), head_width.div_ceil(W::COUNT));
        for (idx, words) in self.words.chunks_exact_mut(width * BESIDE).enumerate() {
            let (head, group) = ((self.first + idx) / groups, (self.first + idx) % groups);
            let (image, head) = (head / heads, head % heads);
            let first = group * BESIDE;
            let mut rows: [&[f32]; BESIDE] = [&[]; BESIDE];
            for (key, row) in (first..keys).zip(&mut rows) {
                *row = self
                    .k
                    .part(image * keys + key, head * head_width, head_width);
            }
            // Eight words of each key at a time.
            for (at, words) in words.chunks_mut(8 * BESIDE).enumerate() {
                let mut of_keys = [[0.0; 8]; BESIDE];
                for (words, row) in of_keys.iter_mut().zip(rows) {
                    let row = &row[row.len().min(at * 8 * W::COUNT)..];
                    let row = &row[..row.len().min(8 * W::COUNT)];
                    W::words(simd, row, words);
                }
                let turned = simd.turn_8(std::array::from_fn(|key| &of_keys[key]));
                words.copy_from_slice(&turned.as_flattened()[..words.len()]);
            }
        }
    }
}

/// Some groups of [`value_words`].
struct ValueWords<'a, W> {
    kind: PhantomData<W>,
    shape: &'a AttentionShape,
    v: StridedRows<'a>,
    first: usize,
    words: &'a mut [f32],
}

impl<W: Rounded> Task for ValueWords<'_, W> {
    type Output = ();
    const PRECISION: Precision = W::PRECISION;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let AttentionShape {
            heads,
            head_width,
            keys,
            ..
        } = *self.shape;
        let (groups, len) = (head_width.div_ceil(BESIDE), keys.div_ceil(W::COUNT));
        for (idx, words) in self.words.chunks_exact_mut(len * BESIDE).enumerate() {
            let (head, group) = ((self.first + idx) / groups, (self.first + idx) % groups);
            let (image, head) = (head / heads, head % heads);
            let column = head * head_width + group * BESIDE;
            let count = BESIDE.min(head_width - group * BESIDE);
            for (word, out) in words.as_chunks_mut::<BESIDE>().0.iter_mut().enumerate() {
                let mut rows: [&[f32]; COUNT_MAX] = [&[]; COUNT_MAX];
                for (key, row) in (word * W::COUNT..keys).zip(&mut rows[..W::COUNT]) {
                    *row = self.v.part(image * keys + key, column, count);
                }
                for at in (0..BESIDE).step_by(S::LANES) {
                    let [low, high] = rows.map(|row| simd.load_partial(&row[row.len().min(at)..]));
                    simd.store_partial(W::join(simd, [low, high]), &mut out[at..]);
                }
            }
        }
    }
}

/// 2ˣ for -126 <= `x` <= 0; 2⁻¹²⁶ below.
///
/// x = n + r with |r| <= ½; 2ʳ by the polynomial, its highest coefficient first.
#[inline(always)]
pub(super) fn exp2<S: Simd, const N: usize>(simd: S, x: S::V, coefficients: [f32; N]) -> S::V {
    let x = simd.max(simd.splat(-126.0), x); // second argument for NaN
    let n = simd.round(x);
    let r = simd.sub(x, n);
    let mut p = simd.splat(coefficients[0]);
    for &coefficient in &coefficients[1..] {
        p = simd.mul_add(p, r, simd.splat(coefficient));
    }
    simd.scale_by_power_of_2(p, n)
}
