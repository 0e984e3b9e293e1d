//! What a 32-bit word of a product holds: one `f32`, two bf16 or four int8, carried as the bits of
//! an `f32` in every case, so that one micro-kernel and one memory layout serve all three.

use super::Simd;
use crate::precision::Precision;

/// A kind of words, and how a left word multiplies a right one.
pub(crate) trait Words: Copy + Send + Sync {
    /// Says which instructions it gains from.
    const PRECISION: Precision;
    /// Whether sums are whole numbers until the end of every run, where they are scaled. A left
    /// run then ends with a word more, its scale, and the run's panel rows with two rows more:
    /// the columns' scales, and what takes [`Simd::BYTE_OFFSET`] of 128 back out of the sum.
    const SCALED: bool = false;
    /// Left words that one right word multiplies.
    const LEFT: usize = 1;

    /// A right word, made ready for many left ones.
    type Right<S: Simd>: Copy;

    /// Makes a right word ready.
    fn right<S: Simd>(simd: S, right: S::V) -> Self::Right<S>;

    /// acc + Σ left · right, over the channels of a word; `left(idx)` is left word `idx`, below
    /// [`Words::LEFT`], in every lane.
    fn dot<S: Simd>(
        simd: S,
        left: impl Fn(usize) -> S::V,
        right: Self::Right<S>,
        acc: S::V,
    ) -> S::V;
}

/// One float.
#[derive(Clone, Copy)]
pub(crate) struct F32;

impl Words for F32 {
    const PRECISION: Precision = Precision::F32;
    type Right<S: Simd> = S::V;

    #[inline(always)]
    fn right<S: Simd>(_simd: S, right: S::V) -> Self::Right<S> {
        right
    }
    #[inline(always)]
    fn dot<S: Simd>(
        simd: S,
        left: impl Fn(usize) -> S::V,
        right: Self::Right<S>,
        acc: S::V,
    ) -> S::V {
        simd.mul_add(left(0), right, acc)
    }
}

/// Two upper halves of floats, the first channel in the word's lower half: for CPUs that multiply
/// such words quickly.
#[derive(Clone, Copy)]
pub(crate) struct Bf16;

impl Words for Bf16 {
    const PRECISION: Precision = Precision::Bf16;
    type Right<S: Simd> = S::V;

    #[inline(always)]
    fn right<S: Simd>(_simd: S, right: S::V) -> Self::Right<S> {
        right
    }
    #[inline(always)]
    fn dot<S: Simd>(
        simd: S,
        left: impl Fn(usize) -> S::V,
        right: Self::Right<S>,
        acc: S::V,
    ) -> S::V {
        simd.dot_bf16(left(0), right, acc)
    }
}

/// Right words as of [`Bf16`], but left words of [`F32`], two for each: for all other CPUs. The
/// weights take half the memory, and the left rows need not be rounded.
#[derive(Clone, Copy)]
pub(crate) struct HalfBf16;

impl Words for HalfBf16 {
    const PRECISION: Precision = Precision::F32;
    const LEFT: usize = 2;
    type Right<S: Simd> = (S::V, S::V);

    #[inline(always)]
    fn right<S: Simd>(simd: S, right: S::V) -> Self::Right<S> {
        simd.halves(right)
    }
    #[inline(always)]
    fn dot<S: Simd>(
        simd: S,
        left: impl Fn(usize) -> S::V,
        right: Self::Right<S>,
        acc: S::V,
    ) -> S::V {
        let acc = simd.mul_add(left(0), right.0, acc);
        simd.mul_add(left(1), right.1, acc)
    }
}

/// Four signed bytes, the first channel in the word's lowest. Left bytes have
/// [`Simd::BYTE_OFFSET`] added.
#[derive(Clone, Copy)]
pub(crate) struct Int8;

impl Words for Int8 {
    const PRECISION: Precision = Precision::Int8;
    const SCALED: bool = true;
    type Right<S: Simd> = S::V;

    #[inline(always)]
    fn right<S: Simd>(_simd: S, right: S::V) -> Self::Right<S> {
        right
    }
    #[inline(always)]
    fn dot<S: Simd>(
        simd: S,
        left: impl Fn(usize) -> S::V,
        right: Self::Right<S>,
        acc: S::V,
    ) -> S::V {
        simd.dot_i8(left(0), right, acc)
    }
}

/// The upper half of `x`, rounded to nearest even; NaN stays NaN.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { 0x7FC0 } else { rounded }
}

/// `x`, of magnitude at most 127, rounded to nearest even, as a byte of two's complement: added to
/// 1.5 · 2²³, the whole number is what the lowest bits hold.
#[inline(always)]
pub(crate) fn byte_bits(x: f32) -> u32 {
    (x + 12_582_912.0).to_bits() & 0xFF
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_rounded_to_nearest_even() {
        // 1 + 2⁻⁸ lies between 1 and 1 + 2⁻⁷, 1 + 3·2⁻⁸ between that and 1 + 2⁻⁶.
        for (x, expected) in [
            (1.0, 0x3F80),
            (1.0 + 1.0 / 256.0, 0x3F80),
            (1.003_91, 0x3F81),
            (1.0 + 3.0 / 256.0, 0x3F82),
            (-0.0, 0x8000),
            (f32::MAX, 0x7F80),
            (f32::NAN, 0x7FC0),
            (f32::from_bits(0xFFFF_FFFF), 0x7FC0),
        ] {
            assert_eq!(bf16_bits(x), expected, "{x}");
        }
    }

    #[test]
    fn bytes_are_rounded_to_nearest_even() {
        for tenth in -1270..=1270i16 {
            let x = f32::from(tenth) / 10.0;
            let expected = u32::from(x.round_ties_even() as i8 as u8);
            assert_eq!(byte_bits(x), expected, "{x}");
        }
    }
}
