//! The arithmetic of merges, on runs of the same elements of each model.

use safelight_format::{CastReport, Dtype, EncodeError};

use super::real::Real;

/// How numbers of the models become one, for one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Formula {
    /// First · A + second · B.
    Sum(f64, f64),
    /// A + multiplier · (B − C).
    Difference(f64),
}

impl Formula {
    /// # Panics
    /// If there are fewer models than the formula has, or a run is shorter than `out`.
    pub(crate) fn mix<R: Real>(self, values: &[Vec<R>], out: &mut [R]) {
        match (self, values) {
            (Formula::Sum(first, second), [a, b]) => {
                let (first, second) = (R::of(first), R::of(second));
                for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                    *out = first * a + second * b;
                }
            }
            (Formula::Difference(multiplier), [a, b, c]) => {
                let multiplier = R::of(multiplier);
                for (((out, &a), &b), &c) in out.iter_mut().zip(a).zip(b).zip(c) {
                    *out = a + multiplier * (b - c);
                }
            }
            _ => unreachable!("the number of models was checked"),
        }
    }
}

/// Elements of `dtype` of mixed numbers, with a report that counts what was made infinite or NaN of finite numbers as
/// overflows, wherever that happened.
///
/// # Errors
/// As [`Real::encode`].
pub(crate) fn encode<R: Real>(
    dtype: Dtype,
    of: &[Vec<R>],
    mixed: &[R],
) -> Result<(Vec<u8>, CastReport), EncodeError> {
    let mut bytes = vec![0; (mixed.len() as u64 * dtype.bits()).div_ceil(8) as usize];
    let mut report = R::encode(dtype, mixed, &mut bytes)?;
    if report.infinity_count + report.nan_count > 0 {
        for (position, mixed) in mixed.iter().enumerate() {
            let finite = |values: &Vec<R>| values[position].wide().is_finite();
            let mixed = mixed.wide();
            if !mixed.is_finite() && of.iter().all(finite) {
                report.overflow_count += 1;
                report.nan_count -= u64::from(mixed.is_nan());
                report.infinity_count -= u64::from(mixed.is_infinite());
            }
        }
    }
    Ok((bytes, report))
}

/// Beyond this cosine two tensors point in one direction (or in opposite ones), and there is no arc to speak of.
const STRAIGHT_COSINE: f64 = 0.9995;

/// The angle between two tensors, collected run by run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Angle {
    product: f64,
    squares: [f64; 2],
}

impl Angle {
    pub(crate) fn add<R: Real>(&mut self, a: &[R], b: &[R]) {
        for (a, b) in a.iter().zip(b) {
            let (a, b) = (a.wide(), b.wide());
            self.product += a * b;
            self.squares[0] += a * a;
            self.squares[1] += b * b;
        }
    }

    /// The spherical interpolation: sin((1 − alpha)·Ω)/sin Ω · A + sin(alpha·Ω)/sin Ω · B, where Ω is the angle; the
    /// weighted sum if they point in one direction, or one has no direction.
    ///
    /// Source: Shoemake 1985, "Animating Rotation with Quaternion Curves", §3.3.
    pub(crate) fn arc(&self, alpha: f64) -> Formula {
        let cosine = self.product / (self.squares[0].sqrt() * self.squares[1].sqrt());
        if !cosine.is_finite() || cosine.abs() > STRAIGHT_COSINE {
            return Formula::Sum(1.0 - alpha, alpha);
        }
        let angle = cosine.acos();
        Formula::Sum(
            ((1.0 - alpha) * angle).sin() / angle.sin(),
            (alpha * angle).sin() / angle.sin(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arcs() {
        let arc = |a: &[f32], b: &[f32], alpha: f64| {
            let mut angle = Angle::default();
            angle.add(a, b);
            let mut out = vec![0.0; a.len()];
            angle.arc(alpha).mix(&[a.to_vec(), b.to_vec()], &mut out);
            out
        };
        // A quarter of a circle: half way is 45°.
        let half = 0.5f32.sqrt();
        assert_eq!(arc(&[1.0, 0.0], &[0.0, 1.0], 0.5), [half, half]);
        assert_eq!(arc(&[1.0, 0.0], &[0.0, 1.0], 0.0), [1.0, 0.0]);
        // One third of 60°, of lengths 1 and 2: sin 40° / sin 60° and 2 · sin 20° / sin 60°.
        let (a, b) = ([1.0, 0.0], [1.0, 3f32.sqrt()]);
        let [x, y] = arc(&a, &b, 1.0 / 3.0)[..] else {
            panic!("two numbers")
        };
        assert!(
            (x - 1.137_158).abs() < 1e-5 && (y - 0.684_040).abs() < 1e-5,
            "{x} {y}"
        );
        // No arc: the weighted sum.
        assert_eq!(arc(&[1.0, 0.0], &[3.0, 0.0], 0.25), [1.5, 0.0]);
        assert_eq!(arc(&[0.0, 0.0], &[3.0, 1.0], 0.5), [1.5, 0.5]);
    }

    #[test]
    fn what_the_formula_makes_infinite_is_counted() {
        let of = [
            vec![3e38f32, 1.0, f32::INFINITY, f32::NAN, 60_000.0],
            vec![3e38, 1.0, 1.0, 1.0, 60_000.0],
        ];
        let mut mixed = [0.0; 5];
        Formula::Sum(1.0, 1.0).mix(&of, &mut mixed);
        let (bytes, report) = encode(Dtype::F16, &of, &mixed).unwrap();
        assert_eq!(bytes[..4], [0x00, 0x7c, 0x00, 0x40]);
        let found = [
            report.overflow_count,
            report.infinity_count,
            report.nan_count,
        ];
        assert_eq!(found, [2, 1, 1]);
    }
}
