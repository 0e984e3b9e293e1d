//! `f32`s and `f64`s as a tensor's bytes: rounded once, to the nearest number the dtype has, ties to even, and a
//! count of what did not fit.
//!
//! The codes are those of torch 2.15's casts, and of `ml_dtypes` for the six- and four-bit floats that
//! torch does not cast to. A NaN becomes the dtype's quiet NaN with its sign kept; what torch does with NaNs' other
//! bits depends on the machine.

use std::fmt;

use crate::dtype::Dtype;

/// Why numbers cannot become elements of a dtype.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeError {
    /// Integers, truth values and complex numbers: rounding weights to them is no cast but a
    /// quantisation, which needs scales.
    NoMeaning {
        /// The dtype.
        dtype: Dtype,
    },
    /// The room for the bytes is larger or smaller than the elements need.
    WrongLength {
        /// The dtype.
        dtype: Dtype,
        /// The room.
        byte_count: usize,
        /// The elements.
        element_count: usize,
    },
}

impl std::error::Error for EncodeError {}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EncodeError::NoMeaning { dtype } => write!(
                f,
                "numbers cannot be cast to {dtype}; choose a float dtype: F64, F32, F16, BF16, F8_E4M3, F8_E5M2, …"
            ),
            EncodeError::WrongLength {
                dtype,
                byte_count,
                element_count,
            } => write!(
                f,
                "{element_count} elements of {dtype} do not fill {byte_count} bytes"
            ),
        }
    }
}

/// What a cast did to the numbers, beyond rounding them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CastReport {
    /// How many numbers there were.
    pub element_count: u64,
    /// Finite numbers beyond the dtype's range: now an infinity (F32, F16, BF16, F8_E5M2), NaN (FNUZ kinds,
    /// E8M0) or the largest number (F8_E4M3, F4, F6).
    pub overflow_count: u64,
    /// Numbers other than 0 that became 0.
    pub underflow_count: u64,
    /// Infinities before the cast. The FNUZ kinds and E8M0 turn them into NaN; F8_E4M3, F4 and F6 into
    /// the largest number.
    pub infinity_count: u64,
    /// NaNs before the cast. F4 and F6 have none and hold -0 in their place.
    pub nan_count: u64,
}

impl CastReport {
    /// Adds the counts of another piece.
    pub fn add(&mut self, other: &CastReport) {
        self.element_count += other.element_count;
        self.overflow_count += other.overflow_count;
        self.underflow_count += other.underflow_count;
        self.infinity_count += other.infinity_count;
        self.nan_count += other.nan_count;
    }
}

/// Whether [`encode`] can write this dtype.
///
/// ```
/// use safelight_format::{Dtype, can_encode};
/// assert!(can_encode(Dtype::F8E4m3) && !can_encode(Dtype::I8));
/// ```
pub fn can_encode(dtype: Dtype) -> bool {
    kind(dtype).is_some() || matches!(dtype, Dtype::F32 | Dtype::F64 | Dtype::F8E8m0)
}

/// Casts numbers to a dtype.
///
/// ```
/// use safelight_format::{Dtype, encode};
/// let (bytes, report) = encode(Dtype::F16, &[1.0, 1e-9, 1e9])?;
/// assert_eq!(bytes, [0x00, 0x3c, 0x00, 0x00, 0x00, 0x7c]);
/// assert_eq!((report.underflow_count, report.overflow_count), (1, 1));
/// # Ok::<(), safelight_format::EncodeError>(())
/// ```
///
/// # Errors
/// [`EncodeError::NoMeaning`] for integers, BOOL and C64.
pub fn encode(dtype: Dtype, values: &[f32]) -> Result<(Vec<u8>, CastReport), EncodeError> {
    let mut bytes = vec![0; byte_count(dtype, values.len())];
    let report = encode_into(dtype, values, &mut bytes)?;
    Ok((bytes, report))
}

/// As [`encode`], into memory that is there already, whose old content does not matter.
///
/// Pieces of a longer tensor may be encoded one after the other; where elements are smaller
/// than a byte, all pieces but the last must have a multiple of 8 elements.
///
/// # Errors
/// As [`encode`], and [`EncodeError::WrongLength`].
pub fn encode_into(
    dtype: Dtype,
    values: &[f32],
    out: &mut [u8],
) -> Result<CastReport, EncodeError> {
    check(dtype, values.len(), out.len())?;
    Ok(match dtype {
        Dtype::F16 => each(values, out, |code| (code as u16).to_le_bytes(), &F16),
        Dtype::Bf16 => each(values, out, |code| (code as u16).to_le_bytes(), &BF16),
        Dtype::F8E4m3 => each(values, out, |code| [code as u8], &E4M3),
        Dtype::F8E5m2 => each(values, out, |code| [code as u8], &E5M2),
        Dtype::F8E4m3Fnuz => each(values, out, |code| [code as u8], &E4M3_FNUZ),
        Dtype::F8E5m2Fnuz => each(values, out, |code| [code as u8], &E5M2_FNUZ),
        Dtype::F4 | Dtype::F6E2m3 | Dtype::F6E3m2 => packed(values, out, dtype),
        Dtype::F8E8m0 => powers_of_two(values, out),
        Dtype::F64 => wide(values, out, |value| f64::from(value).to_le_bytes()),
        _ => wide(values, out, f32::to_le_bytes),
    })
}

/// As [`encode_into`], from `f64`s. They are not rounded to `f32`s first: the result is the number of the dtype that is
/// nearest to the `f64`, and the report is about the `f64`s.
///
/// ```
/// use safelight_format::{Dtype, encode_f64_into};
/// let mut bytes = [0; 8];
/// let report = encode_f64_into(Dtype::F32, &[1e300, 1e-300], &mut bytes)?;
/// assert_eq!((report.overflow_count, report.underflow_count, report.infinity_count), (1, 1, 0));
/// # Ok::<(), safelight_format::EncodeError>(())
/// ```
///
/// # Errors
/// As [`encode_into`].
pub fn encode_f64_into(
    dtype: Dtype,
    values: &[f64],
    out: &mut [u8],
) -> Result<CastReport, EncodeError> {
    check(dtype, values.len(), out.len())?;
    let mut report = CastReport::default();
    let mut odd = [0.0; COUNTED];
    let pieces = out.chunks_mut(COUNTED / 8 * dtype.bits() as usize);
    for (values, out) in values.chunks(COUNTED).zip(pieces) {
        match dtype {
            Dtype::F64 => {
                for (value, out) in values.iter().zip(out.as_chunks_mut().0) {
                    *out = value.to_le_bytes();
                }
                report.add(&specials_f64(values));
            }
            Dtype::F32 => {
                for (value, out) in values.iter().zip(out.as_chunks_mut().0) {
                    let rounded = *value as f32;
                    *out = rounded.to_le_bytes();
                    report.overflow_count += u64::from(value.is_finite() && rounded.is_infinite());
                    report.underflow_count += u64::from(*value != 0.0 && rounded == 0.0);
                }
                report.add(&specials_f64(values));
            }
            _ => {
                let odd = &mut odd[..values.len()];
                for (odd, value) in odd.iter_mut().zip(values) {
                    *odd = rounded_to_odd(*value);
                }
                report.add(&encode_into(dtype, odd, out)?);
            }
        }
    }
    Ok(report)
}

/// One of the two `f32`s around `value`: itself if it is one, else the one whose last bit is set. What no `f32` is,
/// no number of a dtype with fewer bits is, nor the middle between two of them, so that rounding this once more gives
/// what rounding `value` would. Finite numbers stay finite, and others than zero stay so.
///
/// Source: Boldo and Melquiond 2008, "Emulation of a FMA and Correctly Rounded Sums: Proved Algorithms Using
/// Rounding to Odd", IEEE Transactions on Computers 57(4): it needs two bits more than the result has, and F32 has
/// eleven more than F16.
fn rounded_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if value.is_nan() || f64::from(nearest) == value {
        return nearest;
    }
    let towards_zero = nearest.to_bits() - u32::from(f64::from(nearest).abs() > value.abs());
    f32::from_bits(towards_zero | 1)
}

/// Whether elements of `dtype` can be written, and into this room.
fn check(dtype: Dtype, element_count: usize, room_bytes: usize) -> Result<(), EncodeError> {
    if !can_encode(dtype) {
        return Err(EncodeError::NoMeaning { dtype });
    }
    if room_bytes != byte_count(dtype, element_count) {
        return Err(EncodeError::WrongLength {
            dtype,
            byte_count: room_bytes,
            element_count,
        });
    }
    Ok(())
}

/// The size of so many elements; a last byte that is not full counts.
fn byte_count(dtype: Dtype, element_count: usize) -> usize {
    // In eights, so that nothing overflows: eight elements of `bits` bits are `bits` bytes.
    let bits = dtype.bits() as usize;
    element_count / 8 * bits + (element_count % 8 * bits).div_ceil(8)
}

/// A float of fewer bits than an `f32`.
struct Kind {
    bits: u32,
    mantissa_bits: u32,
    bias: u32,
    /// The code of the largest finite number.
    max: u32,
    /// What an overflow becomes, without its sign.
    overflow: u32,
    /// What a NaN becomes, without its sign.
    nan: u32,
    /// Whether codes have a sign where the result is zero, NaN or an overflow; if not, the sign is dropped there.
    minus_zero: bool,
}

const fn ieee(bits: u32, mantissa_bits: u32, bias: u32) -> Kind {
    let infinity = ((1 << (bits - 1 - mantissa_bits)) - 1) << mantissa_bits;
    Kind {
        bits,
        mantissa_bits,
        bias,
        max: infinity - 1,
        overflow: infinity,
        nan: infinity | 1 << (mantissa_bits - 1),
        minus_zero: true,
    }
}

/// No infinities, one NaN with the code of minus zero (arXiv:2206.02915).
const fn fnuz(mantissa_bits: u32, bias: u32) -> Kind {
    Kind {
        bits: 8,
        mantissa_bits,
        bias,
        max: 0x7f,
        overflow: 0x80,
        nan: 0x80,
        minus_zero: false,
    }
}

/// Neither infinities nor NaN (OCP MX 1.0, §5.3.2 and §5.3.3).
const fn finite(bits: u32, mantissa_bits: u32, bias: u32) -> Kind {
    let max = (1 << (bits - 1)) - 1;
    Kind {
        bits,
        mantissa_bits,
        bias,
        max,
        overflow: max,
        nan: 1 << (bits - 1),
        minus_zero: true,
    }
}

static F16: Kind = ieee(16, 10, 15);
static BF16: Kind = ieee(16, 7, 127);
/// torch's NaN of E5M2 has all mantissa bits set.
static E5M2: Kind = Kind {
    nan: 0x7f,
    ..ieee(8, 2, 15)
};
/// No infinities; torch 2.15 stops at the largest number (older versions made a NaN of it).
static E4M3: Kind = Kind {
    bits: 8,
    mantissa_bits: 3,
    bias: 7,
    max: 0x7e,
    overflow: 0x7e,
    nan: 0x7f,
    minus_zero: true,
};
static E4M3_FNUZ: Kind = fnuz(3, 8);
static E5M2_FNUZ: Kind = fnuz(2, 16);
static E2M1: Kind = finite(4, 1, 1);
static E2M3: Kind = finite(6, 3, 1);
static E3M2: Kind = finite(6, 2, 3);

fn kind(dtype: Dtype) -> Option<&'static Kind> {
    Some(match dtype {
        Dtype::F16 => &F16,
        Dtype::Bf16 => &BF16,
        Dtype::F8E4m3 => &E4M3,
        Dtype::F8E5m2 => &E5M2,
        Dtype::F8E4m3Fnuz => &E4M3_FNUZ,
        Dtype::F8E5m2Fnuz => &E5M2_FNUZ,
        Dtype::F4 => &E2M1,
        Dtype::F6E2m3 => &E2M3,
        Dtype::F6E3m2 => &E3M2,
        _ => return None,
    })
}

const INFINITY: u32 = f32::INFINITY.to_bits();
const SIGN: u32 = 1 << 31;

/// What a number became.
#[derive(Clone, Copy)]
struct Cast {
    code: u32,
    overflow: bool,
    underflow: bool,
}

impl Kind {
    /// Rounds one number. Without branches, so that loops over it vectorise.
    #[inline(always)]
    fn cast(&self, value: f32) -> Cast {
        let (sign, size) = (value.to_bits() & SIGN, value.to_bits() & !SIGN);
        let shift = 23 - self.mantissa_bits;
        // Normal numbers: the exponent is rebased and the mantissa rounded, which may carry into it.
        let odd = size >> shift & 1;
        let rounded = size.wrapping_add((1 << (shift - 1)) - 1 + odd) >> shift;
        let normal = rounded.wrapping_sub((127 - self.bias) << self.mantissa_bits);
        // Denormal ones: adding a number whose last bit has the denormals' weight rounds them.
        let weight = (127 + 23 + 1 - self.bias - self.mantissa_bits) << 23;
        let denormal = (f32::from_bits(size) + f32::from_bits(weight))
            .to_bits()
            .wrapping_sub(weight);
        let smallest_normal = (128 - self.bias) << 23;
        let rounded = if size < smallest_normal {
            denormal
        } else {
            normal
        };
        let too_large = size >= INFINITY || rounded > self.max;
        let code = if size > INFINITY {
            self.nan
        } else if too_large {
            self.overflow
        } else {
            rounded
        };
        let keeps_sign = self.minus_zero || (!too_large && code != 0);
        let sign = if keeps_sign {
            sign >> (32 - self.bits)
        } else {
            0
        };
        Cast {
            code: code | sign,
            overflow: size < INFINITY && too_large,
            underflow: size != 0 && code == 0,
        }
    }
}

/// Counted in pieces, so that the counters are as wide as the numbers.
const COUNTED: usize = 4096;

/// Casts each number to a code of N bytes.
#[inline(always)]
fn each<const N: usize>(
    values: &[f32],
    out: &mut [u8],
    bytes_of: impl Fn(u32) -> [u8; N],
    kind: &Kind,
) -> CastReport {
    let (out, _) = out.as_chunks_mut::<N>();
    let mut report = CastReport::default();
    for (values, out) in values.chunks(COUNTED).zip(out.chunks_mut(COUNTED)) {
        let (mut overflow, mut underflow) = (0u32, 0u32);
        for (value, out) in values.iter().zip(out) {
            let cast = kind.cast(*value);
            overflow += u32::from(cast.overflow);
            underflow += u32::from(cast.underflow);
            *out = bytes_of(cast.code);
        }
        report.overflow_count += u64::from(overflow);
        report.underflow_count += u64::from(underflow);
        report.add(&specials(values));
    }
    report
}

/// Codes of 4 or 6 bits, the first in the lowest bits.
fn packed(values: &[f32], out: &mut [u8], dtype: Dtype) -> CastReport {
    let kind = match dtype {
        Dtype::F4 => &E2M1,
        Dtype::F6E2m3 => &E2M3,
        _ => &E3M2,
    };
    let mut report = CastReport::default();
    // Eight codes fill `bits` bytes.
    for (values, out) in values.chunks(8).zip(out.chunks_mut(kind.bits as usize)) {
        let mut stream = 0u64;
        for (position, value) in values.iter().enumerate() {
            let cast = kind.cast(*value);
            report.overflow_count += u64::from(cast.overflow);
            report.underflow_count += u64::from(cast.underflow);
            stream |= u64::from(cast.code) << (position as u32 * kind.bits);
        }
        let len = out.len();
        out.copy_from_slice(&stream.to_le_bytes()[..len]);
        report.add(&specials(values));
    }
    report
}

/// E8M0 (OCP MX 1.0, §5.4.1): the nearest power of two by torch's rule, which drops the sign: up if the mantissa is above a
/// half, and at exactly a half too, except below 2^-126.
fn powers_of_two(values: &[f32], out: &mut [u8]) -> CastReport {
    let mut report = specials(values);
    for (value, out) in values.iter().zip(out) {
        let size = value.to_bits() & !SIGN;
        let (exponent, mantissa) = (size >> 23, size & 0x7f_ffff);
        let half = 1 << 22;
        let up = mantissa > half || (mantissa == half && exponent > 0);
        *out = if exponent == 255 {
            255
        } else {
            (exponent + u32::from(up)) as u8
        };
        report.overflow_count += u64::from(exponent == 254 && up);
    }
    report
}

fn wide<const N: usize>(
    values: &[f32],
    out: &mut [u8],
    bytes_of: impl Fn(f32) -> [u8; N],
) -> CastReport {
    let (out, _) = out.as_chunks_mut::<N>();
    for (value, out) in values.iter().zip(out) {
        *out = bytes_of(*value);
    }
    specials(values)
}

/// The counts that depend on the numbers alone.
#[inline(always)]
fn specials(values: &[f32]) -> CastReport {
    let mut report = CastReport {
        element_count: values.len() as u64,
        ..Default::default()
    };
    for values in values.chunks(COUNTED) {
        let (mut infinity, mut nan) = (0u32, 0u32);
        for value in values {
            let size = value.to_bits() & !SIGN;
            infinity += u32::from(size == INFINITY);
            nan += u32::from(size > INFINITY);
        }
        report.infinity_count += u64::from(infinity);
        report.nan_count += u64::from(nan);
    }
    report
}

/// As [`specials`].
fn specials_f64(values: &[f64]) -> CastReport {
    let count = |wanted: fn(&f64) -> bool| values.iter().filter(|value| wanted(value)).count();
    CastReport {
        element_count: values.len() as u64,
        infinity_count: count(|value| value.is_infinite()) as u64,
        nan_count: count(|value| value.is_nan()) as u64,
        ..CastReport::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode_f32;

    const FLOATS: [Dtype; 9] = [
        Dtype::F16,
        Dtype::Bf16,
        Dtype::F8E4m3,
        Dtype::F8E5m2,
        Dtype::F8E4m3Fnuz,
        Dtype::F8E5m2Fnuz,
        Dtype::F4,
        Dtype::F6E2m3,
        Dtype::F6E3m2,
    ];

    /// One element of `dtype`, as a code.
    fn code_of(dtype: Dtype, value: f32) -> u32 {
        let (bytes, _) = encode(dtype, &[value]).unwrap();
        bytes
            .iter()
            .rev()
            .fold(0, |code, byte| code << 8 | u32::from(*byte))
    }

    /// All numbers of 0 and more, ascending.
    fn sizes(dtype: Dtype) -> Vec<f32> {
        let kind = kind(dtype).unwrap();
        let codes = 0..=kind.max;
        let value = |code: u32| {
            let bytes = &code.to_le_bytes()[..dtype.bits().div_ceil(8) as usize];
            decode_f32(dtype, bytes).unwrap()[0]
        };
        codes.map(value).collect()
    }

    #[test]
    fn every_number_is_itself_and_between_two_the_nearest_or_even_wins() {
        for dtype in FLOATS {
            let sizes = sizes(dtype);
            assert!(sizes.is_sorted_by(|a, b| a < b), "{dtype}");
            for (code, pair) in (0..).zip(sizes.windows(2)) {
                let (low, high) = (pair[0], pair[1]);
                // Exact: the sum of neighbours needs one bit more than they have, bf16's smallest excepted.
                let middle = (f64::from(low) + f64::from(high)) / 2.0;
                let even = code + (code & 1);
                let middle = middle as f32;
                for (value, expected) in [
                    (low, code),
                    (middle.next_down().max(low), code),
                    (middle, even),
                    (middle.next_up().min(high), code + 1),
                ] {
                    assert_eq!(code_of(dtype, value), expected, "{dtype} {value:e}");
                    let sign = 1 << (dtype.bits() - 1);
                    let keeps = expected != 0 || kind(dtype).unwrap().minus_zero;
                    let negative = if keeps { expected | sign } else { 0 };
                    assert_eq!(code_of(dtype, -value), negative, "{dtype} -{value:e}");
                }
            }
        }
    }

    /// As above with `f64`s, of which some are so close to the middle that no `f32` is between them and it.
    #[test]
    fn wide_numbers_are_rounded_once() {
        let code_of = |dtype: Dtype, value: f64| {
            let mut bytes = [0; 4];
            let bytes = &mut bytes[..dtype.bits().div_ceil(8) as usize];
            encode_f64_into(dtype, &[value], bytes).unwrap();
            bytes
                .iter()
                .rev()
                .fold(0, |code, byte| code << 8 | u32::from(*byte))
        };
        for dtype in FLOATS {
            for (code, pair) in (0..).zip(sizes(dtype).windows(2)) {
                let (low, high) = (f64::from(pair[0]), f64::from(pair[1]));
                let middle = (low + high) / 2.0;
                let even = code + (code & 1);
                for (value, expected) in [
                    (low, code),
                    (low.next_up(), code),
                    (middle.next_down(), code),
                    (middle, even),
                    (middle.next_up(), code + 1),
                    (high.next_down(), code + 1),
                ] {
                    assert_eq!(code_of(dtype, value), expected, "{dtype} {value:e}");
                    let sign = 1 << (dtype.bits() - 1);
                    let keeps = expected != 0 || kind(dtype).unwrap().minus_zero;
                    let negative = if keeps { expected | sign } else { 0 };
                    assert_eq!(code_of(dtype, -value), negative, "{dtype} -{value:e}");
                }
            }
        }
        assert_eq!(code_of(Dtype::F32, 0.1), 0.1f32.to_bits());
        assert_eq!(code_of(Dtype::F8E8m0, 1.5f64.next_down()), 127);
        assert_eq!(code_of(Dtype::F8E8m0, 1.5), 128);
    }

    #[test]
    fn wide_numbers_are_counted_as_they_are() {
        let odd = [
            1e300,
            -1e39,
            f64::INFINITY,
            f64::NAN,
            1e-300,
            -1e-60,
            0.0,
            1.0,
        ];
        for dtype in FLOATS.into_iter().chain([Dtype::F32]) {
            let mut bytes = vec![0; byte_count(dtype, odd.len())];
            let report = encode_f64_into(dtype, &odd, &mut bytes).unwrap();
            let found = [
                report.overflow_count,
                report.underflow_count,
                report.infinity_count,
                report.nan_count,
                report.element_count,
            ];
            assert_eq!(found, [2, 2, 1, 1, 8], "{dtype}");
        }
        let mut same = [0; 64];
        let report = encode_f64_into(Dtype::F64, &odd, &mut same).unwrap();
        assert_eq!((report.overflow_count, report.infinity_count), (0, 1));
        assert_eq!(same[..8], 1e300f64.to_le_bytes());
        // More than one piece, and a tail.
        let many = vec![1e9; 3 * COUNTED + 5];
        let mut bytes = vec![0; byte_count(Dtype::F6E2m3, many.len())];
        let report = encode_f64_into(Dtype::F6E2m3, &many, &mut bytes).unwrap();
        assert_eq!(report.overflow_count, many.len() as u64);
        assert!(encode_f64_into(Dtype::F16, &[1.0], &mut [0; 3]).is_err());
        assert!(encode_f64_into(Dtype::I8, &[1.0], &mut [0; 1]).is_err());
    }

    #[track_caller]
    fn report(dtype: Dtype, values: &[f32], counts: [u64; 4], bytes: &[u8]) {
        let (encoded, report) = encode(dtype, values).unwrap();
        assert_eq!(encoded, bytes, "{dtype}");
        let found = [
            report.overflow_count,
            report.underflow_count,
            report.infinity_count,
            report.nan_count,
        ];
        assert_eq!(found, counts, "{dtype}");
        assert_eq!(report.element_count, values.len() as u64);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let odd = [1e30, -1e30, f32::INFINITY, f32::NAN, 1e-30, -1e-30, 0.0];
        let counts = [2, 2, 1, 1];
        report(
            Dtype::F8E4m3,
            &odd,
            counts,
            &[0x7e, 0xfe, 0x7e, 0x7f, 0, 0x80, 0],
        );
        report(
            Dtype::F8E5m2,
            &odd,
            counts,
            &[0x7c, 0xfc, 0x7c, 0x7f, 0, 0x80, 0],
        );
        report(
            Dtype::F8E4m3Fnuz,
            &odd,
            counts,
            &[0x80, 0x80, 0x80, 0x80, 0, 0, 0],
        );
        report(Dtype::F4, &odd, counts, &[0xf7, 0x87, 0x80, 0x00]);
        report(Dtype::F16, &odd[..2], [2, 0, 0, 0], &[0, 0x7c, 0, 0xfc]);
        report(
            Dtype::Bf16,
            &[f32::MAX, -f32::MAX],
            [2, 0, 0, 0],
            &[0x80, 0x7f, 0x80, 0xff],
        );
        report(
            Dtype::F8E8m0,
            &[1.0, 1.5, -4.0, 0.0, f32::MAX],
            [1, 0, 0, 0],
            &[127, 128, 129, 0, 255],
        );
        report(Dtype::F64, &[0.5], [0; 4], &0.5f64.to_le_bytes());
        report(Dtype::F32, &odd, [0, 0, 1, 1], &crate::encode_f32(&odd));
        // More than one counting piece, and a tail.
        let many = vec![1e9; 3 * COUNTED + 5];
        let (_, counted) = encode(Dtype::F16, &many).unwrap();
        assert_eq!(counted.overflow_count, many.len() as u64);
    }

    #[test]
    fn pieces_make_the_whole() {
        let values: Vec<f32> = (0..40).map(|i| (i as f32 - 20.0) * 0.3).collect();
        for dtype in FLOATS {
            let (whole, _) = encode(dtype, &values).unwrap();
            let pieces = values
                .chunks(8)
                .map(|piece| encode(dtype, piece).unwrap().0);
            assert_eq!(pieces.collect::<Vec<_>>().concat(), whole, "{dtype}");
            let decoded = decode_f32(dtype, &whole).unwrap();
            assert_eq!(encode(dtype, &decoded).unwrap().0, whole, "{dtype}");
        }
    }

    #[test]
    fn what_cannot_be_encoded_is_refused() {
        for dtype in [Dtype::Bool, Dtype::U8, Dtype::I64, Dtype::C64] {
            assert!(!can_encode(dtype));
            assert_eq!(encode(dtype, &[1.0]), Err(EncodeError::NoMeaning { dtype }));
        }
        let error = encode_into(Dtype::F6E2m3, &[1.0; 5], &mut [0; 3])
            .unwrap_err()
            .to_string();
        assert_eq!(error, "5 elements of F6_E2M3 do not fill 3 bytes");
    }
}
