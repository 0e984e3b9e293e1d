//! Elements as numbers for statistics: exact in f64 for every dtype that has a plain reading.

use safelight_format::{DecodeError, Dtype, decode_f32_into};

/// Bytes of eight elements: runs of so many bytes hold whole elements of any dtype.
pub(crate) fn eight_bytes(dtype: Dtype) -> usize {
    dtype.bits() as usize
}

/// A 64-bit integer with all its digits, which an f64 may not have; `None` for other dtypes.
pub(crate) fn wide_integer(dtype: Dtype, bytes: [u8; 8]) -> Option<i128> {
    match dtype {
        Dtype::I64 => Some(i64::from_le_bytes(bytes).into()),
        Dtype::U64 => Some(u64::from_le_bytes(bytes).into()),
        _ => None,
    }
}

/// Turns bytes into f64s, a run at a time; keeps its memory.
#[derive(Default)]
pub(crate) struct Decoder {
    narrow: Vec<f32>,
}

impl Decoder {
    /// The elements of `bytes`, `count` of them (a complex number is two), into `out`.
    ///
    /// # Errors
    /// As [`decode_f32_into`].
    pub(crate) fn decode(
        &mut self,
        dtype: Dtype,
        bytes: &[u8],
        count: usize,
        out: &mut Vec<f64>,
    ) -> Result<(), DecodeError> {
        out.clear();
        match dtype {
            Dtype::F64 => wide(bytes, out, f64::from_le_bytes),
            Dtype::I64 => wide(bytes, out, |b| i64::from_le_bytes(b) as f64),
            Dtype::U64 => wide(bytes, out, |b| u64::from_le_bytes(b) as f64),
            Dtype::I32 => wide(bytes, out, |b| f64::from(i32::from_le_bytes(b))),
            Dtype::U32 => wide(bytes, out, |b| f64::from(u32::from_le_bytes(b))),
            Dtype::C64 => wide(bytes, out, |b| f64::from(f32::from_le_bytes(b))),
            _ => {
                self.narrow.resize(count, 0.0);
                decode_f32_into(dtype, bytes, &mut self.narrow)?;
                out.extend(self.narrow.iter().map(|&value| f64::from(value)));
            }
        }
        Ok(())
    }
}

fn wide<const N: usize>(bytes: &[u8], out: &mut Vec<f64>, decode: impl Fn([u8; N]) -> f64) {
    out.extend(
        bytes
            .as_chunks::<N>()
            .0
            .iter()
            .map(|element| decode(*element)),
    );
}

/// Numbers in a tensor: its elements, or twice as many where they are complex.
pub(crate) fn number_count(dtype: Dtype, elements: u64) -> u64 {
    if dtype == Dtype::C64 {
        elements.saturating_mul(2)
    } else {
        elements
    }
}

/// Numbers in so many bytes.
pub(crate) fn numbers_in(dtype: Dtype, bytes: usize) -> usize {
    let bits = if dtype == Dtype::C64 {
        32
    } else {
        dtype.bits() as usize
    };
    bytes * 8 / bits
}

/// The place of a float's code among all of its dtype in ascending order, both zeros being one; `None` for other dtypes.
pub(crate) fn ordinal(dtype: Dtype, element: &[u8]) -> Option<i64> {
    let (bits, width) = match (dtype, element) {
        (Dtype::F64, &[a, b, c, d, e, f, g, h]) => {
            (u64::from_le_bytes([a, b, c, d, e, f, g, h]), 64)
        }
        (Dtype::F32, &[a, b, c, d]) => (u64::from(u32::from_le_bytes([a, b, c, d])), 32),
        (Dtype::F16 | Dtype::Bf16, &[a, b]) => (u64::from(u16::from_le_bytes([a, b])), 16),
        (Dtype::F8E4m3 | Dtype::F8E5m2 | Dtype::F8E4m3Fnuz | Dtype::F8E5m2Fnuz, &[a]) => {
            (u64::from(a), 8)
        }
        _ => return None,
    };
    let magnitude = (bits & !(1 << (width - 1))) as i64;
    Some(if bits >> (width - 1) == 1 {
        -magnitude
    } else {
        magnitude
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals_are_ascending_and_zero_is_one() {
        let values = [
            f32::NEG_INFINITY,
            -1.0,
            -1e-40,
            0.0,
            1e-40,
            1.0,
            f32::INFINITY,
        ];
        let ordinals: Vec<i64> = values
            .iter()
            .map(|value| ordinal(Dtype::F32, &value.to_le_bytes()).unwrap())
            .collect();
        assert!(ordinals.is_sorted(), "{ordinals:?}");
        assert_eq!(ordinal(Dtype::F32, &(-0.0f32).to_le_bytes()), Some(0));
        assert_eq!(
            ordinal(Dtype::F64, &1f64.next_up().to_le_bytes()).unwrap()
                - ordinal(Dtype::F64, &1f64.to_le_bytes()).unwrap(),
            1
        );
        assert_eq!(ordinal(Dtype::F16, &[0x01, 0x80]), Some(-1));
        assert_eq!(ordinal(Dtype::I8, &[1]), None);
    }

    #[test]
    fn wide_integers_keep_their_digits() {
        let mut out = vec![];
        Decoder::default()
            .decode(Dtype::I32, &i32::MAX.to_le_bytes(), 1, &mut out)
            .unwrap();
        assert_eq!(out, [2_147_483_647.0]);
        Decoder::default()
            .decode(Dtype::C64, &[0, 0, 128, 63, 0, 0, 0, 192], 2, &mut out)
            .unwrap();
        assert_eq!(out, [1.0, -2.0]);
    }
}
