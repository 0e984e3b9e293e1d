//! `f32`s rounded to 16 bits, to the nearest and to even ones at ties.

/// IEEE 754 binary16. What is too large becomes infinite; a NaN stays one.
pub(crate) fn f16_of_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00;
    }
    if magnitude >= 0x4780_0000 {
        return sign | 0x7c00; // 65536 and more
    }
    if magnitude < 0x3880_0000 {
        // Below 2^-14 halves are multiples of 2^-24: adding 1/2 makes the FPU round to them.
        let rounded = f32::from_bits(magnitude) + 0.5;
        return sign | (rounded.to_bits() - 0x3f00_0000) as u16;
    }
    let rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    sign | ((rounded - (112 << 23)) >> 13) as u16
}

/// The upper half of a binary32. A NaN stays one.
pub(crate) fn bf16_of_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use safelight_format::{Dtype, decode_f32};

    /// Every half comes back; half-way points go to the even neighbour, points beside them to the nearer one.
    #[test]
    fn halves_are_rounded_to_nearest_even() {
        for half in 0..0x7c00u16 {
            let value = |half: u16| decode_f32(Dtype::F16, &half.to_le_bytes()).unwrap()[0];
            let (low, high) = (
                value(half),
                if half == 0x7bff {
                    65536.0
                } else {
                    value(half + 1)
                },
            );
            assert_eq!(f16_of_f32(low), half);
            assert_eq!(f16_of_f32(-low), half | 0x8000);
            let middle = (f64::from(low) + f64::from(high)) / 2.0;
            let even = half + (half & 1);
            assert_eq!(f16_of_f32(middle as f32), even, "{middle}");
            assert_eq!(f16_of_f32((middle as f32).next_down()), half, "{middle}");
            assert_eq!(f16_of_f32((middle as f32).next_up()), half + 1, "{middle}");
        }
        assert_eq!(f16_of_f32(f32::INFINITY), 0x7c00);
        assert_eq!(f16_of_f32(f32::MIN), 0xfc00);
        assert_eq!(f16_of_f32(f32::NAN) & 0x7fff, 0x7e00);
    }

    #[test]
    fn bf16_is_rounded_to_nearest_even() {
        for (value, expected) in [
            (1.0, 0x3f80),
            (f32::from_bits(0x3f80_8000), 0x3f80),
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (f32::from_bits(0x3f81_8000), 0x3f82),
            (f32::MAX, 0x7f80),
            (f32::NEG_INFINITY, 0xff80),
            (-0.0, 0x8000),
        ] {
            assert_eq!(bf16_of_f32(value), expected, "{value}");
        }
        assert!(f32::from_bits(u32::from(bf16_of_f32(f32::from_bits(0x7f80_0001))) << 16).is_nan());
    }
}
