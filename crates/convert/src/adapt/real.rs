//! Elements as numbers to compute with: `f32`s, or `f64`s where a tensor has such.

use std::ops::{Add, Mul, Sub};

use safelight_format::{
    CastReport, DecodeError, Dtype, EncodeError, decode_f32_into, encode_f64_into, encode_into,
};

/// `f32` or `f64`.
pub(crate) trait Real:
    Copy + Default + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self>
{
    /// The nearest number.
    fn of(number: f64) -> Self;

    /// The same number, exactly.
    fn wide(self) -> f64;

    /// Elements as numbers, exactly.
    ///
    /// # Errors
    /// As [`decode_f32_into`].
    fn decode(dtype: Dtype, bytes: &[u8], out: &mut [Self]) -> Result<(), DecodeError>;

    /// Numbers as elements, rounded once.
    ///
    /// # Errors
    /// As [`encode_into`].
    fn encode(dtype: Dtype, values: &[Self], out: &mut [u8]) -> Result<CastReport, EncodeError>;
}

impl Real for f32 {
    fn of(number: f64) -> f32 {
        number as f32
    }

    fn wide(self) -> f64 {
        f64::from(self)
    }

    fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<(), DecodeError> {
        decode_f32_into(dtype, bytes, out)
    }

    fn encode(dtype: Dtype, values: &[f32], out: &mut [u8]) -> Result<CastReport, EncodeError> {
        encode_into(dtype, values, out)
    }
}

impl Real for f64 {
    fn of(number: f64) -> f64 {
        number
    }

    fn wide(self) -> f64 {
        self
    }

    fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f64]) -> Result<(), DecodeError> {
        if dtype == Dtype::F64 && bytes.len() == 8 * out.len() {
            for (out, element) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = f64::from_le_bytes(*element);
            }
            return Ok(());
        }
        let mut narrow = vec![0.0; out.len()];
        decode_f32_into(dtype, bytes, &mut narrow)?;
        for (out, narrow) in out.iter_mut().zip(narrow) {
            *out = f64::from(narrow);
        }
        Ok(())
    }

    fn encode(dtype: Dtype, values: &[f64], out: &mut [u8]) -> Result<CastReport, EncodeError> {
        encode_f64_into(dtype, values, out)
    }
}
