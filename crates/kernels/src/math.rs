//! Elementary functions over vectors: exp, the normal distribution and the activations made of them.
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

/// max(x, 0); NaN stays NaN.
#[inline(always)]
pub(crate) fn relu<S: Simd>(s: S, x: S::V) -> S::V {
    s.max(s.splat(0.0), x)
}

/// x · sigmoid(x)
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    let below = s.add(one, exp(s, s.sub(s.splat(0.0), x)));
    // `exp` ends at 3e38: a far larger numerator must not reach it.
    s.div(s.max(s.splat(-100.0), x), below)
}

/// x · sigmoid(1.702 x) (Hendrycks and Gimpel 2016, arXiv:1606.08415, §2)
#[inline(always)]
pub(crate) fn quick_gelu<S: Simd>(s: S, x: S::V) -> S::V {
    let bounded = s.max(s.splat(-100.0), x); // as in `silu`
    s.mul(bounded, sigmoid(s, s.mul(x, s.splat(1.702))))
}

/// 1 - Φ(x), the normal distribution's upper tail, for x ≥ 0: relative error about ε·(2 + x²/2).
///
/// With t = 1 / (1 + 0.3 x/√2) it is e^(-x²/2) · t · P(t), as in Abramowitz and Stegun 1964, 7.1.26; P is
/// the minimax polynomial of degree 8 for x ≤ 13, relative error 2e-8.
#[inline(always)]
pub(crate) fn normal_tail<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    let t = s.div(one, s.mul_add(s.splat(0.212_132_03), x, one));
    let mut p = s.splat(-6.471_704e-2);
    for coefficient in [
        0.242_548_23,
        -0.255_613_24,
        0.273_197_54,
        -4.681_563_8e-2,
        0.107_218_15,
        7.424_121e-2,
        8.534_597e-2,
        8.459_481e-2,
    ] {
        p = s.mul_add(p, t, s.splat(coefficient));
    }
    let gauss = exp(s, s.mul(x, s.mul(x, s.splat(-0.5))));
    s.mul(gauss, s.mul(p, t))
}

/// x · Φ(x), Φ being the normal distribution: the exact form, of erf (Hendrycks and Gimpel 2016,
/// arXiv:1606.08415, equation 1), accurate in the far negative tail too.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    let distance = s.abs(x);
    // max(x, 0) - |x| · (1 - Φ(|x|)); NaN stays NaN.
    s.neg_mul_add(distance, normal_tail(s, distance), s.max(s.splat(0.0), x))
}
