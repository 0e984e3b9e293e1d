//! ggml's tensor types: their numbers, names and blocks.

use safelight_format::Dtype;

/// How the elements of a GGUF tensor are stored: plainly, or in quantised blocks.
///
/// Numbers and sizes: `enum ggml_type` in ggml's `ggml.h`, block structs in `ggml-common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is called what ggml calls it")]
#[allow(non_camel_case_types, reason = "each is called what ggml calls it")]
pub enum GgmlType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    I8,
    I16,
    I32,
    I64,
    F64,
    IQ1_M,
    BF16,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q8_1,
    Q1_0,
    Q2_0,
}

/// What is known of a type: number, name, elements and bytes of a block.
struct Row(GgmlType, u32, &'static str, u64, u64);

use GgmlType::*;

/// All types we read.
#[rustfmt::skip]
const TYPES: [Row; 35] = [
    Row(F32, 0, "F32", 1, 4),
    Row(F16, 1, "F16", 1, 2),
    Row(Q4_0, 2, "Q4_0", 32, 18),
    Row(Q4_1, 3, "Q4_1", 32, 20),
    Row(Q5_0, 6, "Q5_0", 32, 22),
    Row(Q5_1, 7, "Q5_1", 32, 24),
    Row(Q8_0, 8, "Q8_0", 32, 34),
    Row(Q8_1, 9, "Q8_1", 32, 36),
    Row(Q2_K, 10, "Q2_K", 256, 84),
    Row(Q3_K, 11, "Q3_K", 256, 110),
    Row(Q4_K, 12, "Q4_K", 256, 144),
    Row(Q5_K, 13, "Q5_K", 256, 176),
    Row(Q6_K, 14, "Q6_K", 256, 210),
    Row(Q8_K, 15, "Q8_K", 256, 292),
    Row(IQ2_XXS, 16, "IQ2_XXS", 256, 66),
    Row(IQ2_XS, 17, "IQ2_XS", 256, 74),
    Row(IQ3_XXS, 18, "IQ3_XXS", 256, 98),
    Row(IQ1_S, 19, "IQ1_S", 256, 50),
    Row(IQ4_NL, 20, "IQ4_NL", 32, 18),
    Row(IQ3_S, 21, "IQ3_S", 256, 110),
    Row(IQ2_S, 22, "IQ2_S", 256, 82),
    Row(IQ4_XS, 23, "IQ4_XS", 256, 136),
    Row(I8, 24, "I8", 1, 1),
    Row(I16, 25, "I16", 1, 2),
    Row(I32, 26, "I32", 1, 4),
    Row(I64, 27, "I64", 1, 8),
    Row(F64, 28, "F64", 1, 8),
    Row(IQ1_M, 29, "IQ1_M", 256, 56),
    Row(BF16, 30, "BF16", 1, 2),
    Row(TQ1_0, 34, "TQ1_0", 256, 54),
    Row(TQ2_0, 35, "TQ2_0", 256, 66),
    Row(MXFP4, 39, "MXFP4", 32, 17),
    Row(NVFP4, 40, "NVFP4", 64, 36),
    Row(Q1_0, 41, "Q1_0", 128, 18),
    Row(Q2_0, 42, "Q2_0", 64, 18),
];

/// Types that exist, or existed, and are not read: number, name, why.
const REFUSED: [(u32, &str, &str); 8] = [
    (4, "Q4_2", "removed from ggml in 2023"),
    (5, "Q4_3", "removed from ggml in 2023"),
    (31, "Q4_0_4_4", "a repacked format, removed from GGUF files"),
    (32, "Q4_0_4_8", "a repacked format, removed from GGUF files"),
    (33, "Q4_0_8_8", "a repacked format, removed from GGUF files"),
    (
        36,
        "IQ4_NL_4_4",
        "a repacked format, removed from GGUF files",
    ),
    (
        37,
        "IQ4_NL_4_8",
        "a repacked format, removed from GGUF files",
    ),
    (
        38,
        "IQ4_NL_8_8",
        "a repacked format, removed from GGUF files",
    ),
];

impl GgmlType {
    /// The type of this number, or what is known of a number we do not read.
    ///
    /// # Errors
    /// Name and reason, as the end of a sentence.
    pub fn from_id(id: u32) -> Result<GgmlType, String> {
        if let Some(row) = TYPES.iter().find(|row| row.1 == id) {
            return Ok(row.0);
        }
        Err(match REFUSED.iter().find(|refused| refused.0 == id) {
            Some((_, name, why)) => format!("{id} ({name}), {why}"),
            None => format!("{id}, which no ggml we know of has"),
        })
    }

    /// The number in a GGUF file.
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// ggml's name.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements in a block; 1 for plain types. Rows of a tensor are whole blocks.
    pub fn block_elements(self) -> u64 {
        self.row().3
    }

    /// Bytes of a block; of an element for plain types.
    pub fn block_bytes(self) -> u64 {
        self.row().4
    }

    /// The dtype with the same bytes, if the type is plain.
    pub fn plain(self) -> Option<Dtype> {
        Some(match self {
            F32 => Dtype::F32,
            F16 => Dtype::F16,
            BF16 => Dtype::Bf16,
            F64 => Dtype::F64,
            I8 => Dtype::I8,
            I16 => Dtype::I16,
            I32 => Dtype::I32,
            I64 => Dtype::I64,
            _ => return None,
        })
    }

    /// Where a block has two-byte numbers, which a big-endian file turns around; `None` if that is
    /// not settled for this type (no program we know of writes it so).
    pub(crate) fn halves(self) -> Option<&'static [usize]> {
        Some(match self {
            Q4_0 | Q8_0 | IQ4_NL => &[0],
            Q4_1 | Q4_K | Q5_K => &[0, 2],
            Q2_K => &[80, 82],
            Q3_K => &[108],
            Q6_K => &[208],
            TQ1_0 => &[52],
            TQ2_0 => &[64],
            MXFP4 | NVFP4 => &[],
            _ => return None,
        })
    }

    fn row(self) -> &'static Row {
        let found = TYPES.iter().find(|row| row.0 == self);
        found.expect("every type has a row")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_number_and_no_other_does() {
        let mut known = 0;
        for id in 0..1000 {
            if let Ok(kind) = GgmlType::from_id(id) {
                assert_eq!(kind.id(), id);
                known += 1;
            }
        }
        assert_eq!(known, TYPES.len());
    }

    #[test]
    fn refusals_have_a_name() {
        let refused = GgmlType::from_id(31).unwrap_err();
        assert!(refused.starts_with("31 (Q4_0_4_4), "), "{refused}");
        assert!(GgmlType::from_id(77).unwrap_err().starts_with("77, "));
    }

    #[test]
    fn plain_types_have_the_size_of_their_dtype() {
        for row in &TYPES {
            match row.0.plain() {
                Some(dtype) => assert_eq!((row.3, row.4 * 8), (1, dtype.bits()), "{}", row.2),
                None => assert!(row.3 >= 32, "{}", row.2),
            }
        }
    }

    #[test]
    fn halves_lie_within_their_block() {
        for row in &TYPES {
            for &at in row.0.halves().unwrap_or_default() {
                assert!(at as u64 + 2 <= row.4, "{}", row.2);
            }
        }
    }
}
