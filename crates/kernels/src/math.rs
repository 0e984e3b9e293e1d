//! Elementary functions over vectors: exp, erf and the activations made of them.
//!
//! Written once over [`Simd`]; the scalar level runs the same arithmetic one float at a time.

use crate::arch::Simd;

/// eˣ within 2 ulp; 0 below -87.3, about 3.4e38 above 88.7 (no infinities), NaN of NaN.
///
/// x = n·ln 2 + r with |r| ≤ ½ ln 2, ln 2 in two parts (Cody and Waite 1980, chapter 6); e^r by
/// its Taylor series to r⁷, whose remainder r⁸/8! is below 6e-9.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // `max` and `min` give their second argument for NaN, so NaN stays NaN.
    let bounded = s.min(s.splat(88.72), s.max(s.splat(-87.33), x));
    let n = s.round(s.mul(bounded, s.splat(std::f32::consts::LOG2_E)));
    // 2¹²⁸ has no float of its own: the last doubling is done apart.
    let n = s.min(s.splat(127.0), n);
    let r = s.neg_mul_add(n, s.splat(0.693_359_4), bounded); // 355/512, exact in 9 bits
    let r = s.neg_mul_add(n, s.splat(-2.121_944_4e-4), r);
    let mut p = s.splat(1.0 / 5040.0);
    for coefficient in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = s.mul_add(p, r, s.splat(coefficient));
    }
    s.scale_by_power_of_2(p, n)
}

/// 1 / (1 + e⁻ˣ)
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// x · sigmoid(x)
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(x, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// x · sigmoid(1.702 x) (Hendrycks and Gimpel 2016, arXiv:1606.08415, §2)
#[inline(always)]
pub(crate) fn quick_gelu<S: Simd>(s: S, x: S::V) -> S::V {
    s.mul(x, sigmoid(s, s.mul(x, s.splat(1.702))))
}

/// erf(x), at most 4e-7 off.
///
/// Source: Abramowitz and Stegun 1964, formula 7.1.26 (its own error is 1.5e-7).
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    let a = s.abs(x);
    let t = s.div(one, s.mul_add(s.splat(0.327_591_1), a, one));
    let mut p = s.splat(1.061_405_4);
    for coefficient in [-1.453_152_f32, 1.421_413_7, -0.284_496_74, 0.254_829_6, 0.0] {
        p = s.mul_add(p, t, s.splat(coefficient));
    }
    let e = exp(s, s.sub(s.splat(0.0), s.mul(a, a)));
    s.copy_sign(s.neg_mul_add(p, e, one), x)
}

/// x · Φ(x) = ½ x (1 + erf(x / √2)) (Hendrycks and Gimpel 2016, arXiv:1606.08415, equation 1)
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    let half = s.mul(x, s.splat(0.5));
    let e = erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2)));
    s.mul_add(half, e, half)
}
