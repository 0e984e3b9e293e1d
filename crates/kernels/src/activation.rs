//! Activations over whole slices; the arithmetic of one value is in `math`.

use rayon::prelude::*;

use crate::arch::{self, Simd, Task};
use crate::epilogue::Activation;
use crate::level::{Level, level};
use crate::math;

/// Floats in a piece of work.
const PIECE: usize = 1 << 14;

/// `out = activation(x)`, value by value.
///
/// # Panics
/// If the lengths differ.
///
/// ```
/// use safelight_kernels::{Activation, activation::activate};
///
/// let mut out = [0.0; 2];
/// activate(Activation::Silu, &[0.0, 30.0], &mut out);
/// assert_eq!(out, [0.0, 30.0]);
/// ```
pub fn activate(activation: Activation, x: &[f32], out: &mut [f32]) {
    activate_at(level(), activation, x, out);
}

/// [`activate`] at a level of the caller's choice, for tests and benches.
///
/// # Panics
/// As [`activate`], and if the CPU lacks the level.
pub fn activate_at(level: Level, activation: Activation, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "activate: lengths differ");
    out.par_chunks_mut(PIECE)
        .zip(x.par_chunks(PIECE))
        .for_each(|(out, x)| arch::run(level, Map { activation, x, out }));
}

struct Map<'a> {
    activation: Activation,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Task for Map<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // One loop for each, so that the choice is not made for every vector.
        match self.activation {
            Activation::None => self.out.copy_from_slice(self.x),
            Activation::Relu => map(simd, self.x, self.out, Relu),
            Activation::Silu => map(simd, self.x, self.out, Silu),
            Activation::Gelu => map(simd, self.x, self.out, Gelu),
            Activation::QuickGelu => map(simd, self.x, self.out, QuickGelu),
        }
    }
}

/// A function of one vector. Not a closure: one that is called at two places may be compiled apart, and
/// then without the level's instructions.
trait Function {
    fn of<S: Simd>(&self, simd: S, x: S::V) -> S::V;
}

struct Relu;
struct Silu;
struct Gelu;
struct QuickGelu;

impl Function for Relu {
    #[inline(always)]
    fn of<S: Simd>(&self, simd: S, x: S::V) -> S::V {
        math::relu(simd, x)
    }
}

impl Function for Silu {
    #[inline(always)]
    fn of<S: Simd>(&self, simd: S, x: S::V) -> S::V {
        math::silu(simd, x)
    }
}

impl Function for Gelu {
    #[inline(always)]
    fn of<S: Simd>(&self, simd: S, x: S::V) -> S::V {
        math::gelu(simd, x)
    }
}

impl Function for QuickGelu {
    #[inline(always)]
    fn of<S: Simd>(&self, simd: S, x: S::V) -> S::V {
        math::quick_gelu(simd, x)
    }
}

#[inline(always)]
fn map<S: Simd>(simd: S, x: &[f32], out: &mut [f32], function: impl Function) {
    let mut outs = out.chunks_exact_mut(S::LANES);
    let mut xs = x.chunks_exact(S::LANES);
    for (out, x) in (&mut outs).zip(&mut xs) {
        simd.store(function.of(simd, simd.load(x)), out);
    }
    let rest = simd.load_partial(xs.remainder());
    simd.store_partial(function.of(simd, rest), outs.into_remainder());
}

/// `out = value · gelu(gate)`: rows of `x` are `width` values, then `width` gates; rows of `out` are `width`.
///
/// Source: Shazeer 2020, arXiv:2002.05202, equation 6 (GEGLU), the gates being the second half as in the
/// checkpoints.
///
/// # Panics
/// If the lengths are not those of the same number of rows.
pub fn geglu(width: usize, x: &[f32], out: &mut [f32]) {
    geglu_at(level(), width, x, out);
}

/// [`geglu`] at a level of the caller's choice, for tests and benches.
///
/// # Panics
/// As [`geglu`], and if the CPU lacks the level.
pub fn geglu_at(level: Level, width: usize, x: &[f32], out: &mut [f32]) {
    assert!(
        width > 0 && out.len().is_multiple_of(width) && x.len() == 2 * out.len(),
        "geglu: {} values to {}, width {width}",
        x.len(),
        out.len()
    );
    let rows = PIECE.div_ceil(width);
    out.par_chunks_mut(rows * width)
        .zip(x.par_chunks(rows * 2 * width))
        .for_each(|(out, x)| arch::run(level, Geglu { width, x, out }));
}

struct Geglu<'a> {
    width: usize,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Task for Geglu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.x.chunks_exact(2 * self.width);
        for (x, out) in rows.zip(self.out.chunks_exact_mut(self.width)) {
            let (values, gates) = x.split_at(self.width);
            let mut outs = out.chunks_exact_mut(S::LANES);
            let (mut values, mut gates) =
                (values.chunks_exact(S::LANES), gates.chunks_exact(S::LANES));
            for ((out, value), gate) in (&mut outs).zip(&mut values).zip(&mut gates) {
                let gate = math::gelu(simd, simd.load(gate));
                simd.store(simd.mul(simd.load(value), gate), out);
            }
            let gate = math::gelu(simd, simd.load_partial(gates.remainder()));
            let rest = simd.mul(simd.load_partial(values.remainder()), gate);
            simd.store_partial(rest, outs.into_remainder());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, with_threads};

    /// Φ(x) = ½ erfc(-x/√2): for x > -2 from the series of erf (Abramowitz and Stegun 1964, 7.1.6), else from
    /// the continued fraction of erfc (7.1.14), both to the precision of f64.
    fn normal_cdf(x: f64) -> f64 {
        let z = x.abs() * std::f64::consts::FRAC_1_SQRT_2;
        let gauss = (-z * z).exp();
        let upper = if z < 2.0 {
            let (mut term, mut sum, mut n) = (z, z, 0.0);
            while term > sum * 1e-18 {
                n += 1.0;
                term *= 2.0 * z * z / (2.0 * n + 1.0);
                sum += term;
            }
            0.5 - 0.5 * std::f64::consts::FRAC_2_SQRT_PI * gauss * sum
        } else {
            let mut tail = z;
            for k in (1..=200).rev() {
                tail = z + f64::from(k) / 2.0 / tail;
            }
            0.25 * std::f64::consts::FRAC_2_SQRT_PI * gauss / tail
        };
        if x < 0.0 { upper } else { 1.0 - upper }
    }

    fn exact(activation: Activation, x: f32) -> f64 {
        let x = f64::from(x);
        match activation {
            Activation::None => x,
            Activation::Relu => x.max(0.0),
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
            Activation::Gelu => x * normal_cdf(x),
        }
    }

    const ALL: [Activation; 5] = [
        Activation::None,
        Activation::Relu,
        Activation::Silu,
        Activation::Gelu,
        Activation::QuickGelu,
    ];

    #[test]
    fn every_level_agrees_with_f64() {
        let fine = (-200_000..=200_000).map(|i| i as f32 * 1e-4);
        let coarse = [
            30.0, -30.0, 86.0, -86.0, 88.0, -88.0, 104.0, -104.0, 1e4, -1e4, 3e38, -3e38,
        ];
        let xs: Vec<f32> = fine.chain(coarse).chain([0.0, 1e-38, -1e-38]).collect();
        for level in Level::available() {
            for activation in ALL {
                let mut ys = vec![f32::NAN; xs.len()];
                activate_at(level, activation, &xs, &mut ys);
                for (x, y) in xs.iter().zip(&ys) {
                    let exact = exact(activation, *x);
                    // A few roundings of the result (most in the polynomial of `normal_tail`), and what a factor below 2⁻¹⁰⁰ may lose.
                    // An exponent x rounded by ε/2 makes eˣ off by x·ε/2.
                    let exponent = match activation {
                        Activation::Gelu => x * x,
                        _ => x.abs(),
                    };
                    let roundings = f64::from(8.0 + exponent.min(200.0));
                    let bound = roundings * f64::from(f32::EPSILON) * exact.abs() + 1e-30;
                    let error = (f64::from(*y) - exact).abs();
                    assert!(
                        error <= bound,
                        "{level}, {activation:?}({x}) = {y}, not {exact}"
                    );
                }
            }
        }
    }

    /// torch 2.15.0 (CPU, f32): `F.silu`, `F.gelu`, `x*sigmoid(1.702*x)` of -3.5, -1, -0.1, 0.5, 2.
    #[test]
    fn golden_numbers_of_torch() {
        let xs = [-3.5, -1.0, -0.1, 0.5, 2.0];
        let golden = [
            (
                Activation::Silu,
                [
                    -0.102_592_81,
                    -0.268_941_43,
                    -0.047_502_08,
                    0.311_229_68,
                    1.761_594,
                ],
            ),
            (
                Activation::Gelu,
                [
                    -0.000_814_333_56,
                    -0.158_655_26,
                    -0.046_017_22,
                    0.345_731_23,
                    1.954_499_7,
                ],
            ),
            (
                Activation::QuickGelu,
                [
                    -0.009_033_444,
                    -0.154_204_23,
                    -0.045_755_237,
                    0.350_388_44,
                    1.935_658_6,
                ],
            ),
        ];
        for (activation, expected) in golden {
            for level in Level::available() {
                let mut ys = [0.0; 5];
                activate_at(level, activation, &xs, &mut ys);
                for (y, expected) in ys.iter().zip(expected) {
                    assert!(
                        (y - expected).abs() <= 1e-6,
                        "{level}, {activation:?}: {y}, not {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn geglu_is_value_times_gelu_of_gate() {
        let mut rng = Rng::seeded(2);
        for width in (1..40).chain([64, 1280, 20_000]) {
            let x: Vec<f32> = rng.f32s(3 * 2 * width).iter().map(|x| 4.0 * x).collect();
            for level in Level::available() {
                let mut y = vec![f32::NAN; 3 * width];
                geglu_at(level, width, &x, &mut y);
                for (x, y) in x.chunks_exact(2 * width).zip(y.chunks_exact(width)) {
                    for (idx, y) in y.iter().enumerate() {
                        let expected = f64::from(x[idx]) * exact(Activation::Gelu, x[width + idx]);
                        // Gate at most 4: its gelu is right to (8 + 16)·ε, see above; and one product.
                        let bound = 25.0 * f64::from(f32::EPSILON) * expected.abs() + 1e-30;
                        assert!(
                            (f64::from(*y) - expected).abs() <= bound,
                            "{level}, width {width}: {y}, not {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn tails_threads_and_not_a_number() {
        for len in (0..70).chain([PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5]) {
            let mut x = Rng::seeded(len as u64).f32s(len);
            let run = || {
                let mut y = vec![0.0; len];
                activate(Activation::Silu, &x, &mut y);
                y
            };
            assert_eq!(with_threads(1, run), with_threads(3, run));
            if len > 0 {
                x[len / 2] = f32::NAN;
                for (level, activation) in Level::available()
                    .into_iter()
                    .flat_map(|l| ALL.map(|a| (l, a)))
                {
                    let mut y = vec![0.0; len];
                    activate_at(level, activation, &x, &mut y);
                    let bad: Vec<usize> = (0..len).filter(|&i| y[i].is_nan()).collect();
                    assert_eq!(bad, [len / 2], "{level}, {activation:?}");
                }
            }
        }
    }
}
