//! IEEE 754 binary16, as most checkpoints store their weights, to `f32`.

use crate::arch::{self, Simd, Task};
use crate::level::{Level, level};

/// Fills `values` with the numbers that `bytes` holds, little-endian as in files; exactly, and a NaN stays one.
///
/// # Panics
/// If there are not two bytes for each value.
///
/// ```
/// let mut values = [0.0; 2];
/// safelight_kernels::halves_to_floats(&[0x00, 0x3e, 0x00, 0xc0], &mut values);
/// assert_eq!(values, [1.5, -2.0]);
/// ```
pub fn halves_to_floats(bytes: &[u8], values: &mut [f32]) {
    at(level(), bytes, values);
}

fn at(level: Level, bytes: &[u8], values: &mut [f32]) {
    let (halves, rest) = bytes.as_chunks::<2>();
    assert!(
        rest.is_empty() && halves.len() == values.len(),
        "{} bytes are not {} halves",
        bytes.len(),
        values.len()
    );
    let done = arch::halves_to_floats(level, halves, values);
    let (halves, values) = (&halves[done..], &mut values[done..]);
    arch::run(level, Decode { halves, values });
}

/// The specification, compiled for a level.
struct Decode<'a> {
    halves: &'a [[u8; 2]],
    values: &'a mut [f32],
}

impl Task for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        for (value, half) in self.values.iter_mut().zip(self.halves) {
            *value = to_float(u16::from_le_bytes(*half));
        }
    }
}

/// Written without branches on the value so that it becomes a vector loop, and without denormal `f32`s, which are slow. (`safelight-format` has
/// the same for readers without an engine; this crate stands by itself.)
#[inline(always)]
fn to_float(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let rest = u32::from(half & 0x7FFF) << 13;
    let normal = rest + (112 << 23);
    let special = normal + (112 << 23);
    let denormal = (f32::from_bits(rest + (113 << 23)) - f32::from_bits(113 << 23)).to_bits();
    let bits = match half & 0x7C00 {
        0x7C00 => special,
        0 => denormal,
        _ => normal,
    };
    f32::from_bits(sign | bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: sign, exponent, mantissa.
    fn expected(half: u16) -> f64 {
        let (sign, exponent, mantissa) = (half >> 15, (half >> 10) & 0x1F, half & 0x3FF);
        let magnitude = match exponent {
            0 => f64::from(mantissa) * 2f64.powi(-24),
            31 if mantissa == 0 => f64::INFINITY,
            31 => f64::NAN,
            _ => f64::from(mantissa + 0x400) * 2f64.powi(i32::from(exponent) - 25),
        };
        if sign == 1 { -magnitude } else { magnitude }
    }

    #[test]
    fn every_half_is_exact_at_every_level() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for level in Level::available() {
            let mut values = vec![0.0; 1 << 16];
            at(level, &bytes, &mut values);
            for (half, value) in (0..=u16::MAX).zip(&values) {
                let (value, expected) = (f64::from(*value), expected(half));
                let same = value.to_bits() == expected.to_bits();
                assert!(
                    same || (value.is_nan() && expected.is_nan()),
                    "{level}, {half:#06x}"
                );
            }
            for len in 0..40 {
                let mut some = vec![0.0; len];
                at(level, &bytes[2 * 0x3C00..][..2 * len], &mut some);
                assert_eq!(some, values[0x3C00..][..len], "{level}, {len}");
            }
        }
    }

    #[test]
    #[should_panic = "3 bytes are not 1 halves"]
    fn bytes_are_two_for_each_value() {
        halves_to_floats(&[0; 3], &mut [0.0]);
    }
}
