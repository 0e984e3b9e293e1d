//! One tensor's bytes as `f32`s, and back: exact wherever `f32` can hold the number, else rounded
//! to nearest.

use std::fmt;

use crate::dtype::Dtype;

/// Why bytes cannot become `f32`s.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// The dtype is complex, or its packing is not specified (4 and 6 bits).
    NoMeaning {
        /// The dtype.
        dtype: Dtype,
    },
    /// The bytes are not whole elements, or not as many as asked for.
    WrongLength {
        /// The dtype.
        dtype: Dtype,
        /// What was given.
        byte_count: usize,
        /// The room for elements.
        element_count: usize,
    },
}

impl std::error::Error for DecodeError {}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::NoMeaning { dtype } => {
                write!(
                    f,
                    "dtype {dtype} has no reading as plain numbers; convert the tensor to F32, F16 or BF16 first"
                )
            }
            DecodeError::WrongLength {
                dtype,
                byte_count,
                element_count,
            } => {
                write!(
                    f,
                    "{byte_count} bytes are not {element_count} elements of {dtype}"
                )
            }
        }
    }
}

/// Decodes a tensor's bytes (little-endian, as in the file).
///
/// ```
/// use safelight_format::{Dtype, decode_f32};
/// assert_eq!(decode_f32(Dtype::F16, &[0x00, 0x3e, 0x00, 0xc0])?, [1.5, -2.0]);
/// # Ok::<(), safelight_format::DecodeError>(())
/// ```
///
/// # Errors
/// [`DecodeError::NoMeaning`] for C64, F4 and F6; [`DecodeError::WrongLength`] if the last element is cut.
pub fn decode_f32(dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>, DecodeError> {
    let mut out = vec![0.0; bytes.len() / element_bytes(dtype)];
    decode_f32_into(dtype, bytes, &mut out)?;
    Ok(out)
}

/// As [`decode_f32`], into memory that is there already.
///
/// # Errors
/// As [`decode_f32`], and [`DecodeError::WrongLength`] if `out` is shorter or longer than the tensor.
pub fn decode_f32_into(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<(), DecodeError> {
    if matches!(
        dtype,
        Dtype::C64 | Dtype::F4 | Dtype::F6E2m3 | Dtype::F6E3m2
    ) {
        return Err(DecodeError::NoMeaning { dtype });
    }
    if out.len().checked_mul(element_bytes(dtype)) != Some(bytes.len()) {
        return Err(DecodeError::WrongLength {
            dtype,
            byte_count: bytes.len(),
            element_count: out.len(),
        });
    }
    match dtype {
        Dtype::F32 => each(bytes, out, f32::from_le_bytes),
        Dtype::F16 => each(bytes, out, |b| f32_of_f16(u16::from_le_bytes(b))),
        Dtype::Bf16 => each(bytes, out, |b| {
            f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)
        }),
        Dtype::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        Dtype::F8E4m3 => look_up(bytes, out, &E4M3),
        Dtype::F8E5m2 => look_up(bytes, out, &E5M2),
        Dtype::F8E8m0 => look_up(bytes, out, &E8M0),
        Dtype::F8E4m3Fnuz => look_up(bytes, out, &E4M3_FNUZ),
        Dtype::F8E5m2Fnuz => look_up(bytes, out, &E5M2_FNUZ),
        Dtype::Bool => each(bytes, out, |[b]| f32::from(u8::from(b != 0))),
        Dtype::U8 => each(bytes, out, |[b]| f32::from(b)),
        Dtype::I8 => each(bytes, out, |b| f32::from(i8::from_le_bytes(b))),
        Dtype::I16 => each(bytes, out, |b| f32::from(i16::from_le_bytes(b))),
        Dtype::U16 => each(bytes, out, |b| f32::from(u16::from_le_bytes(b))),
        Dtype::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
        Dtype::U32 => each(bytes, out, |b| u32::from_le_bytes(b) as f32),
        Dtype::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f32),
        Dtype::U64 => each(bytes, out, |b| u64::from_le_bytes(b) as f32),
        Dtype::C64 | Dtype::F4 | Dtype::F6E2m3 | Dtype::F6E3m2 => {
            return Err(DecodeError::NoMeaning { dtype });
        }
    }
    Ok(())
}

/// The bytes of an F32 tensor.
///
/// ```
/// assert_eq!(safelight_format::encode_f32(&[1.0]), [0, 0, 0x80, 0x3f]);
/// ```
pub fn encode_f32(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// Whole bytes of one element; 1 where elements are smaller (those are refused).
fn element_bytes(dtype: Dtype) -> usize {
    dtype.bits().div_ceil(8) as usize
}

/// Element by element; the caller has checked the lengths.
fn each<const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    let (elements, rest) = bytes.as_chunks::<N>();
    assert!(
        rest.is_empty() && elements.len() == out.len(),
        "lengths were checked"
    );
    for (out, element) in out.iter_mut().zip(elements) {
        *out = decode(*element);
    }
}

fn look_up(bytes: &[u8], out: &mut [f32], table: &[f32; 256]) {
    each(bytes, out, |[byte]| table[usize::from(byte)]);
}

/// IEEE 754 binary16, exactly; a NaN keeps its payload. Written without branches on the value so
/// that it vectorises, and without denormal `f32`s, which are slow: many weights are so small
/// that as halves they are denormal.
fn f32_of_f16(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let rest = u32::from(half & 0x7fff) << 13;
    let normal = rest + (112 << 23);
    let special = normal + (112 << 23);
    let denormal = (f32::from_bits(rest + (113 << 23)) - f32::from_bits(113 << 23)).to_bits();
    let bits = match half & 0x7c00 {
        0x7c00 => special,
        0 => denormal,
        _ => normal,
    };
    f32::from_bits(sign | bits)
}

/// What the codes with the highest exponent, and minus zero, mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Specials {
    /// As in IEEE 754: infinities and NaNs.
    Ieee,
    /// Only all ones is NaN.
    OneNan,
    /// Minus zero is the only NaN.
    MinusZeroNan,
}

static E4M3: [f32; 256] = table(3, 7, Specials::OneNan);
static E5M2: [f32; 256] = table(2, 15, Specials::Ieee);
static E4M3_FNUZ: [f32; 256] = table(3, 8, Specials::MinusZeroNan);
static E5M2_FNUZ: [f32; 256] = table(2, 16, Specials::MinusZeroNan);
static E8M0: [f32; 256] = powers_of_two();

/// All 256 values of an eight-bit float: a sign, `7 - mantissa_bits` of exponent, the mantissa.
const fn table(mantissa_bits: u32, bias: i32, specials: Specials) -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut code = 0u32;
    while code < 256 {
        let mantissa = code & ((1 << mantissa_bits) - 1);
        let exponent = (code & 0x7f) >> mantissa_bits;
        let top = exponent == (1 << (7 - mantissa_bits)) - 1;
        let nan = match specials {
            Specials::Ieee => top && mantissa != 0,
            Specials::OneNan => code & 0x7f == 0x7f,
            Specials::MinusZeroNan => code == 0x80,
        };
        let magnitude = if nan {
            f32::NAN
        } else if top && matches!(specials, Specials::Ieee) {
            f32::INFINITY
        } else if exponent == 0 {
            mantissa as f32 * power_of_two(1 - bias - mantissa_bits as i32)
        } else {
            (mantissa + (1 << mantissa_bits)) as f32
                * power_of_two(exponent as i32 - bias - mantissa_bits as i32)
        };
        values[code as usize] = if code & 0x80 != 0 {
            -magnitude
        } else {
            magnitude
        };
        code += 1;
    }
    values
}

/// OCP MX 1.0, §5.4.1: 2^(code - 127), and 255 is NaN.
const fn powers_of_two() -> [f32; 256] {
    let mut values = [f32::NAN; 256];
    values[0] = f32::from_bits(1 << 22); // 2^-127 is a denormal `f32`
    let mut code = 1;
    while code < 255 {
        values[code] = power_of_two(code as i32 - 127);
        code += 1;
    }
    values
}

/// 2^`exponent` for -126..=127.
const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_exact() {
        for half in 0..=u16::MAX {
            let (sign, exponent, mantissa) = (half >> 15, (half >> 10) & 0x1f, half & 0x3ff);
            let magnitude = match exponent {
                0 => f64::from(mantissa) * 2f64.powi(-24),
                31 if mantissa == 0 => f64::INFINITY,
                31 => f64::NAN,
                _ => f64::from(mantissa + 0x400) * 2f64.powi(i32::from(exponent) - 25),
            };
            let expected = if sign == 1 { -magnitude } else { magnitude };
            let value = f64::from(f32_of_f16(half));
            assert!(
                value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan()),
                "{half:#06x}"
            );
        }
    }

    #[track_caller]
    fn check(dtype: Dtype, bytes: &[u8], expected: &[f32]) {
        let values = decode_f32(dtype, bytes).unwrap();
        let same = values
            .iter()
            .zip(expected)
            .all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()));
        assert!(
            same && values.len() == expected.len(),
            "{dtype}: {values:?}, expected {expected:?}"
        );
    }

    /// Corner values from arXiv:2209.05433 table 1, arXiv:2206.02915 and OCP MX 1.0.
    #[test]
    fn small_floats() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        check(
            Dtype::F8E4m3,
            &[0x00, 0x80, 0x01, 0x08, 0x38, 0x7e, 0x7f, 0xff],
            &[0.0, -0.0, 0.001953125, 0.015625, 1.0, 448.0, nan, nan],
        );
        check(
            Dtype::F8E5m2,
            &[0x01, 0x04, 0x3c, 0x7b, 0x7c, 0xfc, 0x7d],
            &[2f32.powi(-16), 2f32.powi(-14), 1.0, 57344.0, inf, -inf, nan],
        );
        check(
            Dtype::F8E4m3Fnuz,
            &[0x00, 0x80, 0x01, 0x40, 0x7f, 0xff],
            &[0.0, nan, 2f32.powi(-10), 1.0, 240.0, -240.0],
        );
        check(
            Dtype::F8E5m2Fnuz,
            &[0x80, 0x01, 0x40, 0x7f],
            &[nan, 2f32.powi(-17), 1.0, 57344.0],
        );
        check(
            Dtype::F8E8m0,
            &[0, 1, 127, 254, 255],
            &[2f32.powi(-127), 2f32.powi(-126), 1.0, 2f32.powi(127), nan],
        );
    }

    #[test]
    fn wide_and_whole_numbers() {
        check(Dtype::F32, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0x80], &[1.0, -0.0]);
        check(Dtype::Bf16, &[0x80, 0x3f, 0xc0, 0x7f], &[1.0, f32::NAN]);
        check(Dtype::F64, &0.1f64.to_le_bytes(), &[0.1]);
        check(Dtype::Bool, &[0, 1, 2], &[0.0, 1.0, 1.0]);
        check(Dtype::I8, &[0xff, 0x7f], &[-1.0, 127.0]);
        check(Dtype::U16, &[0xff, 0xff], &[65535.0]);
        check(Dtype::I64, &(-3i64).to_le_bytes(), &[-3.0]);
        check(
            Dtype::U64,
            &u64::MAX.to_le_bytes(),
            &[18446744073709551616.0],
        );
        check(Dtype::F32, &[], &[]);
    }

    #[test]
    fn what_cannot_be_decoded_is_refused() {
        for dtype in Dtype::ALL {
            let fine = decode_f32(dtype, &[0; 8]);
            let refused = matches!(
                dtype,
                Dtype::C64 | Dtype::F4 | Dtype::F6E2m3 | Dtype::F6E3m2
            );
            assert_eq!(fine.is_err(), refused, "{dtype}");
        }
        let error = decode_f32(Dtype::F32, &[0; 7]).unwrap_err().to_string();
        assert_eq!(error, "7 bytes are not 1 elements of F32");
        assert!(decode_f32_into(Dtype::F16, &[0; 4], &mut [0.0; 3]).is_err());
    }
}
