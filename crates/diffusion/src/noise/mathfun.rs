//! Single-precision logarithm, sine and cosine with the very roundings of torch's AVX2 `randn`.
//!
//! The polynomials are those of Moshier's Cephes library (`logf`, `sinf`, `cosf`); which products are fused with the
//! addition behind them was found by comparing bits with torch. Not more accurate than the standard library: equal.

/// Natural logarithm of a normal `x` in `(0, 1]`, within 1 unit in the last place.
pub(super) fn ln(x: f32) -> f32 {
    const COEFFICIENTS: [f32; 8] = [
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let bits = x.to_bits();
    let mut exponent = (bits >> 23) as f32 - 126.0;
    let mut mantissa = f32::from_bits(bits & 0x007F_FFFF | 0x3F00_0000); // in [0.5, 1)
    if mantissa < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        mantissa = mantissa - 1.0 + mantissa;
    } else {
        mantissa -= 1.0;
    }
    let x = mantissa;
    let z = x * x;
    let polynomial = COEFFICIENTS
        .iter()
        .fold(7.037_683_6e-2, |sum: f32, &c| sum.mul_add(x, c))
        * x;
    let mut y = polynomial.mul_add(z, exponent * -2.121_944_4e-4);
    y = z.mul_add(-0.5, y);
    exponent.mul_add(0.693_359_4, x + y)
}

/// Sine and cosine of `x` in `[0, 2π]`.
pub(super) fn sin_cos(x: f32) -> (f32, f32) {
    // Which eighth of the circle, rounded up to even: `x` minus that many π/4 is in [-π/4, π/4].
    let octant = ((x * 1.273_239_5) as i32 + 1) & !1;
    let y = octant as f32;
    let x = y.mul_add(-0.785_156_25, x);
    let x = y.mul_add(-2.418_756_5e-4, x);
    let x = y.mul_add(-3.774_895e-8, x);
    let z = x * x;
    let cos = 2.443_315_7e-5_f32
        .mul_add(z, -1.388_731_6e-3)
        .mul_add(z, 4.166_664_6e-2)
        * z;
    let cos = cos.mul_add(z, -(z * 0.5)) + 1.0;
    let sin = -1.951_529_6e-4_f32;
    let sin = sin.mul_add(z, 8.332_161e-3).mul_add(z, -1.666_665_5e-1) * z;
    let sin = sin.mul_add(x, x);
    match octant & 6 {
        0 => (sin, cos),
        2 => (cos, -sin),
        4 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_to_the_standard_library() {
        for i in 1..=4096 {
            let x = i as f32 / 4096.0;
            let exact = f64::from(x).ln();
            assert!(
                (f64::from(ln(x)) - exact).abs() <= 1.2e-7 * exact.abs().max(1e-9),
                "ln {x}"
            );
            let angle = x * std::f32::consts::TAU;
            let (sin, cos) = sin_cos(angle);
            assert!(
                (f64::from(sin) - f64::from(angle).sin()).abs() < 2e-7,
                "sin {angle}"
            );
            assert!(
                (f64::from(cos) - f64::from(angle).cos()).abs() < 2e-7,
                "cos {angle}"
            );
        }
    }
}
