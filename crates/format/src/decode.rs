//! One tensor's bytes as `f32`s, and back: exact wherever `f32` can hold the number, else rounded
//! to nearest.

use std::fmt;

use crate::dtype::Dtype;

/// Why bytes cannot become `f32`s.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// The dtype is complex: [`decode_c64`] reads it as pairs.
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
                    "dtype {dtype} has no reading as plain numbers; its elements are pairs of F32, the real part first"
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
/// F4 and F6 elements lie one behind the other from the lowest bit of the first byte on: element 0
/// of an F4 tensor is the low half of byte 0, as in torch's `float4_e2m1fn_x2`. If such bytes end with unused bits that have
/// room for an element, those decode as well; [`decode_f32_into`] knows how many there are.
///
/// ```
/// use safelight_format::{Dtype, decode_f32};
/// assert_eq!(decode_f32(Dtype::F16, &[0x00, 0x3e, 0x00, 0xc0])?, [1.5, -2.0]);
/// # Ok::<(), safelight_format::DecodeError>(())
/// ```
///
/// # Errors
/// [`DecodeError::NoMeaning`] for C64; [`DecodeError::WrongLength`] if the last element is cut.
pub fn decode_f32(dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>, DecodeError> {
    let bits = dtype.bits() as usize;
    // In eights (`bits` bytes hold eight elements), so that nothing overflows.
    let mut out = vec![0.0; bytes.len() / bits * 8 + bytes.len() % bits * 8 / bits];
    decode_f32_into(dtype, bytes, &mut out)?;
    Ok(out)
}

/// As [`decode_f32`], into memory that is there already.
///
/// # Errors
/// As [`decode_f32`], and [`DecodeError::WrongLength`] if `out` is shorter or longer than the tensor.
pub fn decode_f32_into(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<(), DecodeError> {
    if dtype == Dtype::C64 {
        return Err(DecodeError::NoMeaning { dtype });
    }
    let bits = dtype.bits() as usize;
    let byte_count = (out.len() / 8)
        .checked_mul(bits)
        .and_then(|whole| whole.checked_add((out.len() % 8 * bits).div_ceil(8)));
    if byte_count != Some(bytes.len()) {
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
        Dtype::F4 => unpack::<4>(bytes, out, &E2M1),
        Dtype::F6E2m3 => unpack::<6>(bytes, out, &E2M3),
        Dtype::F6E3m2 => unpack::<6>(bytes, out, &E3M2),
        Dtype::C64 => return Err(DecodeError::NoMeaning { dtype }),
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

/// The elements of a C64 tensor: real and imaginary part.
///
/// ```
/// let bytes = safelight_format::encode_f32(&[1.0, -2.0]);
/// assert_eq!(safelight_format::decode_c64(&bytes)?, [[1.0, -2.0]]);
/// # Ok::<(), safelight_format::DecodeError>(())
/// ```
///
/// # Errors
/// [`DecodeError::WrongLength`] if the last element is cut.
pub fn decode_c64(bytes: &[u8]) -> Result<Vec<[f32; 2]>, DecodeError> {
    let (elements, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(DecodeError::WrongLength {
            dtype: Dtype::C64,
            byte_count: bytes.len(),
            element_count: elements.len(),
        });
    }
    let part = |bytes: &[u8; 8], at: usize| {
        f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let pairs = elements
        .iter()
        .map(|bytes| [part(bytes, 0), part(bytes, 4)]);
    Ok(pairs.collect())
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

/// Elements of BITS bits, from the lowest bit of the first byte on: eight of them in BITS bytes.
fn unpack<const BITS: usize>(bytes: &[u8], out: &mut [f32], table: &[f32; 64]) {
    for (bytes, out) in bytes.chunks(BITS).zip(out.chunks_mut(8)) {
        let mut stream = [0; 8];
        stream[..bytes.len()].copy_from_slice(bytes);
        let stream = u64::from_le_bytes(stream);
        for (position, out) in out.iter_mut().enumerate() {
            *out = table[(stream >> (position * BITS)) as usize & ((1 << BITS) - 1)];
        }
    }
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
    /// There are none, and minus zero is minus zero (OCP MX 1.0, §5.3.2 and §5.3.3).
    None,
}

static E4M3: [f32; 256] = table(8, 3, 7, Specials::OneNan);
static E5M2: [f32; 256] = table(8, 2, 15, Specials::Ieee);
static E4M3_FNUZ: [f32; 256] = table(8, 3, 8, Specials::MinusZeroNan);
static E5M2_FNUZ: [f32; 256] = table(8, 2, 16, Specials::MinusZeroNan);
/// Only the first 16 are used.
static E2M1: [f32; 64] = table(4, 1, 1, Specials::None);
static E2M3: [f32; 64] = table(6, 3, 1, Specials::None);
static E3M2: [f32; 64] = table(6, 2, 3, Specials::None);
static E8M0: [f32; 256] = powers_of_two();

/// All values of a small float: a sign, the exponent, the mantissa.
const fn table<const COUNT: usize>(
    bits: u32,
    mantissa_bits: u32,
    bias: i32,
    specials: Specials,
) -> [f32; COUNT] {
    let mut values = [0.0; COUNT];
    let sign = 1 << (bits - 1);
    let mut code = 0u32;
    while code < 1 << bits {
        let mantissa = code & ((1 << mantissa_bits) - 1);
        let exponent = (code & (sign - 1)) >> mantissa_bits;
        let top = exponent == (1 << (bits - 1 - mantissa_bits)) - 1;
        let nan = match specials {
            Specials::Ieee => top && mantissa != 0,
            Specials::OneNan => code & (sign - 1) == sign - 1,
            Specials::MinusZeroNan => code == sign,
            Specials::None => false,
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
        values[code as usize] = if code & sign != 0 {
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

    /// The number tables of OCP MX 1.0, §5.3.
    #[test]
    fn four_and_six_bits() {
        let halves = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        check(Dtype::F4, &[0x10, 0x32, 0x54, 0x76], &halves);
        check(
            Dtype::F4,
            &[0x98, 0xba, 0xdc, 0xfe],
            &halves.map(|value| -value),
        );
        // 0b000001, 0b001000, 0b011111, 0b111111 from the lowest bit on.
        let bytes = &[0x01 | 0x08 << 6, 0x08 >> 2 | 0xf0, 0x01 | 0xfc];
        check(Dtype::F6E2m3, bytes, &[0.125, 1.0, 7.5, -7.5]);
        check(Dtype::F6E3m2, bytes, &[0.0625, 0.5, 28.0, -28.0]);
        // The number of elements, not of bytes, says what the last byte holds.
        let mut three = [9.0; 3];
        decode_f32_into(Dtype::F4, &[0x21, 0x07], &mut three).unwrap();
        assert_eq!(three, [0.5, 1.0, 6.0]);
        assert!(decode_f32_into(Dtype::F4, &[0x21, 0x07], &mut [0.0; 5]).is_err());
        assert_eq!(decode_f32(Dtype::F6E3m2, &[0; 6]).unwrap().len(), 8);
        assert_eq!(decode_f32(Dtype::F6E3m2, &[0; 2]).unwrap().len(), 2);
    }

    #[test]
    fn what_cannot_be_decoded_is_refused() {
        for dtype in Dtype::ALL {
            let fine = decode_f32(dtype, &[0; 8]);
            assert_eq!(fine.is_err(), dtype == Dtype::C64, "{dtype}");
        }
        assert!(decode_c64(&[0; 12]).is_err());
        let error = decode_f32(Dtype::F32, &[0; 7]).unwrap_err().to_string();
        assert_eq!(error, "7 bytes are not 1 elements of F32");
        assert!(decode_f32_into(Dtype::F16, &[0; 4], &mut [0.0; 3]).is_err());
    }
}
