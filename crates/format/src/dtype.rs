//! The 22 element types a safetensors header may name.

use std::fmt;

/// What one element of a tensor is, as named in the header.
///
/// Declared in the order the reference implementation sorts by; [`crate::Order::HuggingFace`]
/// writes tensors in *descending* order of it, so that wide types come first.
///
/// ```
/// use safelight_format::Dtype;
/// assert_eq!(Dtype::from_name("BF16"), Some(Dtype::Bf16));
/// assert_eq!(Dtype::Bf16.bits(), 16);
/// assert_eq!(Dtype::from_name("bf16"), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// A truth value in one byte; readers take any non-zero byte as true.
    Bool,
    /// Four-bit float, OCP MX E2M1. The order of the two halves of a byte is not specified.
    F4,
    /// Six-bit float, OCP MX E2M3. The packing is not specified.
    F6E2m3,
    /// Six-bit float, OCP MX E3M2. The packing is not specified.
    F6E3m2,
    /// Unsigned byte.
    U8,
    /// Signed byte.
    I8,
    /// Eight-bit float with infinities, arXiv:2209.05433.
    F8E5m2,
    /// Eight-bit float without infinities (torch's `float8_e4m3fn`), arXiv:2209.05433.
    F8E4m3,
    /// A power of two from 2^-127 to 2^127, OCP MX E8M0.
    F8E8m0,
    /// E4M3 with bias 8, no infinities, no negative zero, arXiv:2206.02915.
    F8E4m3Fnuz,
    /// E5M2 with bias 16, no infinities, no negative zero, arXiv:2206.02915.
    F8E5m2Fnuz,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 16-bit integer.
    U16,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// IEEE 754 binary32.
    F32,
    /// A complex number of two binary32, real part first.
    C64,
    /// IEEE 754 binary64.
    F64,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 64-bit integer.
    U64,
}

impl Dtype {
    /// Every dtype, in ascending order.
    pub const ALL: [Dtype; 22] = [
        Dtype::Bool,
        Dtype::F4,
        Dtype::F6E2m3,
        Dtype::F6E3m2,
        Dtype::U8,
        Dtype::I8,
        Dtype::F8E5m2,
        Dtype::F8E4m3,
        Dtype::F8E8m0,
        Dtype::F8E4m3Fnuz,
        Dtype::F8E5m2Fnuz,
        Dtype::I16,
        Dtype::U16,
        Dtype::F16,
        Dtype::Bf16,
        Dtype::I32,
        Dtype::U32,
        Dtype::F32,
        Dtype::C64,
        Dtype::F64,
        Dtype::I64,
        Dtype::U64,
    ];

    /// The name as it stands in a header; case matters.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::Bool => "BOOL",
            Dtype::F4 => "F4",
            Dtype::F6E2m3 => "F6_E2M3",
            Dtype::F6E3m2 => "F6_E3M2",
            Dtype::U8 => "U8",
            Dtype::I8 => "I8",
            Dtype::F8E5m2 => "F8_E5M2",
            Dtype::F8E4m3 => "F8_E4M3",
            Dtype::F8E8m0 => "F8_E8M0",
            Dtype::F8E4m3Fnuz => "F8_E4M3FNUZ",
            Dtype::F8E5m2Fnuz => "F8_E5M2FNUZ",
            Dtype::I16 => "I16",
            Dtype::U16 => "U16",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::I32 => "I32",
            Dtype::U32 => "U32",
            Dtype::F32 => "F32",
            Dtype::C64 => "C64",
            Dtype::F64 => "F64",
            Dtype::I64 => "I64",
            Dtype::U64 => "U64",
        }
    }

    /// The dtype of this name, `None` if no dtype is called so.
    pub fn from_name(name: &str) -> Option<Dtype> {
        Dtype::from_bytes(name.as_bytes())
    }

    pub(crate) fn from_bytes(name: &[u8]) -> Option<Dtype> {
        Some(match name {
            b"BOOL" => Dtype::Bool,
            b"F4" => Dtype::F4,
            b"F6_E2M3" => Dtype::F6E2m3,
            b"F6_E3M2" => Dtype::F6E3m2,
            b"U8" => Dtype::U8,
            b"I8" => Dtype::I8,
            b"F8_E5M2" => Dtype::F8E5m2,
            b"F8_E4M3" => Dtype::F8E4m3,
            b"F8_E8M0" => Dtype::F8E8m0,
            b"F8_E4M3FNUZ" => Dtype::F8E4m3Fnuz,
            b"F8_E5M2FNUZ" => Dtype::F8E5m2Fnuz,
            b"I16" => Dtype::I16,
            b"U16" => Dtype::U16,
            b"F16" => Dtype::F16,
            b"BF16" => Dtype::Bf16,
            b"I32" => Dtype::I32,
            b"U32" => Dtype::U32,
            b"F32" => Dtype::F32,
            b"C64" => Dtype::C64,
            b"F64" => Dtype::F64,
            b"I64" => Dtype::I64,
            b"U64" => Dtype::U64,
            _ => return None,
        })
    }

    /// The size of one element in bits: 4, 6, 8, 16, 32 or 64.
    pub const fn bits(self) -> u64 {
        match self {
            Dtype::F4 => 4,
            Dtype::F6E2m3 | Dtype::F6E3m2 => 6,
            Dtype::Bool | Dtype::U8 | Dtype::I8 => 8,
            Dtype::F8E5m2
            | Dtype::F8E4m3
            | Dtype::F8E8m0
            | Dtype::F8E4m3Fnuz
            | Dtype::F8E5m2Fnuz => 8,
            Dtype::I16 | Dtype::U16 | Dtype::F16 | Dtype::Bf16 => 16,
            Dtype::I32 | Dtype::U32 | Dtype::F32 => 32,
            Dtype::C64 | Dtype::F64 | Dtype::I64 | Dtype::U64 => 64,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_the_order_is_ascending() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        assert!(Dtype::ALL.is_sorted());
        for wrong in ["", "f32", "E8M0", "F8_E4M3FN", "F32 "] {
            assert_eq!(Dtype::from_name(wrong), None, "{wrong}");
        }
    }
}
