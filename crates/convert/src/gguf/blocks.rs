//! Quantised blocks as numbers: the plain, K and ternary formats; those with code books are next door.
//!
//! Source: the block structs of ggml's `ggml-common.h` and the formulas of `dequantize_row_*` in
//! `ggml-quants.c`. Every step is rounded to `f32` in the order of the Python package `gguf` 0.19
//! (`quants.py`), whose results the tests repeat bit for bit.

use super::codebooks;
use super::kinds::GgmlType;

/// Turns whole blocks into numbers. `out` has [`GgmlType::block_elements`] places for every block.
///
/// # Panics
/// If the lengths do not fit together, or the type is plain.
pub(crate) fn dequantize(kind: GgmlType, blocks: &[u8], out: &mut [f32]) {
    match kind {
        GgmlType::Q4_0 => each(blocks, out, q4_0),
        GgmlType::Q4_1 => each(blocks, out, q4_1),
        GgmlType::Q5_0 => each(blocks, out, q5_0),
        GgmlType::Q5_1 => each(blocks, out, q5_1),
        GgmlType::Q8_0 => each(blocks, out, q8_0),
        GgmlType::Q8_1 => each(blocks, out, q8_1),
        GgmlType::Q1_0 => each(blocks, out, q1_0),
        GgmlType::Q2_0 => each(blocks, out, q2_0),
        GgmlType::Q2_K => each(blocks, out, q2_k),
        GgmlType::Q3_K => each(blocks, out, q3_k),
        GgmlType::Q4_K => each(blocks, out, q4_k),
        GgmlType::Q5_K => each(blocks, out, q5_k),
        GgmlType::Q6_K => each(blocks, out, q6_k),
        GgmlType::Q8_K => each(blocks, out, q8_k),
        GgmlType::TQ1_0 => each(blocks, out, tq1_0),
        GgmlType::TQ2_0 => each(blocks, out, tq2_0),
        GgmlType::MXFP4 => each(blocks, out, mxfp4),
        GgmlType::NVFP4 => each(blocks, out, nvfp4),
        GgmlType::IQ2_XXS => each(blocks, out, codebooks::iq2_xxs),
        GgmlType::IQ2_XS => each(blocks, out, codebooks::iq2_xs),
        GgmlType::IQ2_S => each(blocks, out, codebooks::iq2_s),
        GgmlType::IQ3_XXS => each(blocks, out, codebooks::iq3_xxs),
        GgmlType::IQ3_S => each(blocks, out, codebooks::iq3_s),
        GgmlType::IQ1_S => each(blocks, out, codebooks::iq1_s),
        GgmlType::IQ1_M => each(blocks, out, codebooks::iq1_m),
        GgmlType::IQ4_NL => each(blocks, out, codebooks::iq4_nl),
        GgmlType::IQ4_XS => each(blocks, out, codebooks::iq4_xs),
        plain => unreachable!("{} has no blocks", plain.name()),
    }
}

/// Block by block.
fn each<const BYTES: usize, const ELEMENTS: usize>(
    blocks: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let (blocks, rest) = blocks.as_chunks::<BYTES>();
    let (out, out_rest) = out.as_chunks_mut::<ELEMENTS>();
    assert!(
        rest.is_empty() && out_rest.is_empty() && blocks.len() == out.len(),
        "whole blocks, and room for each"
    );
    for (bytes, out) in blocks.iter().zip(out) {
        block(bytes, out);
    }
}

/// The binary16 at `at`.
pub(crate) fn half(block: &[u8], at: usize) -> f32 {
    half_of(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// IEEE 754 binary16, exactly.
pub(crate) fn half_of(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let exponent = bits & 0x7c00;
    let value = if exponent == 0x7c00 {
        f32::from_bits(magnitude + (224 << 23))
    } else if exponent == 0 {
        f32::from_bits(magnitude + (113 << 23)) - f32::from_bits(113 << 23)
    } else {
        f32::from_bits(magnitude + (112 << 23))
    };
    f32::from_bits(value.to_bits() | u32::from(bits & 0x8000) << 16)
}

/// Low nibbles are the first sixteen elements, high ones the others.
fn nibbles(bytes: &[u8], out: &mut [f32; 32], value: impl Fn(usize, u8) -> f32) {
    for (i, byte) in bytes.iter().take(16).enumerate() {
        out[i] = value(i, byte & 15);
        out[i + 16] = value(i + 16, byte >> 4);
    }
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(block, 0);
    nibbles(&block[2..], out, |_, q| d * f32::from(q as i8 - 8));
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], out, |_, q| d * f32::from(q) + m);
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    nibbles(&block[6..], out, |i, q| {
        d * f32::from((q | fifth(high, i)) as i8 - 16)
    });
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    nibbles(&block[8..], out, |i, q| {
        d * f32::from(q | fifth(high, i)) + m
    });
}

/// The fifth bit of element `i`.
fn fifth(high: u32, i: usize) -> u8 {
    ((high >> i & 1) as u8) << 4
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(q as i8) * d;
    }
}

/// ggml's intermediate format, as it is since 2023; its second number is of use in products only.
fn q8_1(block: &[u8; 36], out: &mut [f32; 32]) {
    let d = half(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[4..]) {
        *out = d * f32::from(q as i8);
    }
}

/// A sign for each element, lowest bits first.
fn q1_0(block: &[u8; 18], out: &mut [f32; 128]) {
    let d = half(block, 0);
    for (i, out) in out.iter_mut().enumerate() {
        let set = block[2 + i / 8] >> (i % 8) & 1 == 1;
        *out = if set { d } else { -d };
    }
}

/// Two bits for each element, lowest first.
fn q2_0(block: &[u8; 18], out: &mut [f32; 64]) {
    let d = half(block, 0);
    for (i, out) in out.iter_mut().enumerate() {
        let q = block[2 + i / 4] >> (i % 4 * 2) & 3;
        *out = f32::from(q as i8 - 1) * d;
    }
}

/// Two bits of element `i` of 256: 32 bytes hold four runs of 32 elements, lowest bits first.
fn two_bits(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3
}

fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, bytes) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half(block, 80), half(block, 82));
    for (j, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, min) = (
            d * f32::from(scales[j] & 15),
            dmin * f32::from(scales[j] >> 4),
        );
        for (l, out) in out.iter_mut().enumerate() {
            *out = scale * f32::from(two_bits(bytes, j * 16 + l)) - min;
        }
    }
}

fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (mask, bytes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half(block, 108);
    for (j, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = scales[j % 8] >> (j / 8 * 4) & 15;
        let high = scales[8 + j % 4] >> (j / 4 * 2) & 3;
        let scale = d * f32::from((low | high << 4) as i8 - 32);
        for (l, out) in out.iter_mut().enumerate() {
            let i = j * 16 + l;
            let set = mask[i % 32] >> (i / 32) & 1;
            *out = scale * f32::from(two_bits(bytes, i) as i8 - ((set ^ 1) << 2) as i8);
        }
    }
}

/// Scale and minimum of run `j` of eight, six bits each, as Q4_K and Q5_K pack them.
fn scale_and_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (
            packed[j + 4] & 15 | packed[j - 4] >> 6 << 4,
            packed[j + 4] >> 4 | packed[j] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(min))
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let (packed, bytes) = (&block[4..16], &block[16..]);
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(packed, j);
        let (scale, min) = (d * scale, dmin * min);
        for (out, byte) in out.iter_mut().zip(&bytes[j / 2 * 32..]) {
            *out = scale * f32::from(byte >> (j % 2 * 4) & 15) - min;
        }
    }
}

fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let (packed, high, bytes) = (&block[4..16], &block[16..48], &block[48..]);
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(packed, j);
        let (scale, min) = (d * scale, dmin * min);
        let bytes = &bytes[j / 2 * 32..];
        for (out, (byte, high)) in out.iter_mut().zip(bytes.iter().zip(high)) {
            let q = byte >> (j % 2 * 4) & 15 | (high >> j & 1) << 4;
            *out = scale * f32::from(q) - min;
        }
    }
}

fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half(block, 208);
    for (j, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[j] as i8);
        for (l, out) in out.iter_mut().enumerate() {
            let i = j * 16 + l;
            let nibble = low[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
            *out = scale * f32::from((nibble | two_bits(high, i) << 4) as i8 - 32);
        }
    }
}

fn q8_k(block: &[u8; 292], out: &mut [f32; 256]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (out, &q) in out.iter_mut().zip(&block[4..]) {
        *out = d * f32::from(q as i8);
    }
}

/// Five digits of base three in a byte, as fractions of 256: the highest digit comes first, and
/// multiplying by three (modulo 256) brings the next to the front.
fn ternary(byte: u8, digit: usize) -> f32 {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let fraction = u16::from(byte.wrapping_mul(POWERS[digit]));
    f32::from(((fraction * 3) >> 8) as i8 - 1)
}

fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let d = half(block, 52);
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * match i {
            0..160 => ternary(block[i % 32], i / 32),
            160..240 => ternary(block[32 + i % 16], (i - 160) / 16),
            _ => ternary(block[48 + i % 4], (i - 240) / 4),
        };
    }
}

fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half(block, 64);
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(two_bits(block, i) as i8 - 1);
    }
}

/// E2M1's values, doubled (OCP MX 1.0, table 5).
const E2M1_DOUBLED: [f32; 16] = [
    0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0,
];

fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    // Half of 2^(e - 127), because the values are doubled; denormal for the lowest two.
    let half_scale = match block[0] {
        e @ 0..2 => f32::from_bits(0x0020_0000 << e),
        e => f32::from_bits(u32::from(e - 1) << 23),
    };
    nibbles(&block[1..], out, |_, q| {
        half_scale * E2M1_DOUBLED[usize::from(q)]
    });
}

fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    for (j, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = half_of_e4m3(block[j]);
        for (l, byte) in block[4 + j * 8..][..8].iter().enumerate() {
            out[l] = scale * E2M1_DOUBLED[usize::from(byte & 15)];
            out[l + 8] = scale * E2M1_DOUBLED[usize::from(byte >> 4)];
        }
    }
}

/// Half of an E4M3 number, whose sign bit ggml ignores; the only NaN stands for 0.
fn half_of_e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (code >> 3 & 15, f32::from(code & 7));
    match exponent {
        _ if code == 0x7f => 0.0,
        0 => mantissa * 2f32.powi(-10),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(i32::from(exponent) - 8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_what_format_decodes() {
        let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let decoded = safelight_format::decode_f32(safelight_format::Dtype::F16, &halves).unwrap();
        for (bits, expected) in (0..=u16::MAX).zip(decoded) {
            let value = half_of(bits);
            assert!(
                value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan()),
                "{bits:#06x}"
            );
        }
    }

    /// Random blocks of every type, against the package `gguf` (`tools/golden/foreign.py`) or, for types that it does not take
    /// apart, numpy (`tools/golden/ggml_layouts.py`): the same bits.
    #[test]
    fn every_type_agrees_with_the_reference() {
        let golden = ["gguf_blocks", "gguf_layouts"].map(|name| {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/golden/convert");
            let path = std::path::Path::new(folder).join(format!("{name}.safetensors"));
            safelight_store::Checkpoint::open(&path).unwrap()
        });
        let mut checked = 0;
        for id in 0..100 {
            let Some(kind) = GgmlType::from_id(id)
                .ok()
                .filter(|kind| kind.plain().is_none())
            else {
                continue;
            };
            let name = kind.name();
            let blocks = format!("{name}.blocks");
            let golden = golden.iter().find(|file| file.get(&blocks).is_some());
            let golden = golden.unwrap_or_else(|| panic!("{name} is in no golden file"));
            let blocks = golden.read_bytes(&blocks).unwrap();
            let expected = golden.read_f32(&format!("{name}.values")).unwrap();
            let mut values = vec![0.0; expected.len()];
            dequantize(kind, &blocks, &mut values);
            let wrong = (0..values.len()).find(|&i| values[i].to_bits() != expected[i].to_bits());
            if let Some(i) = wrong {
                panic!(
                    "{name}, element {i}: {} expected {}",
                    values[i], expected[i]
                );
            }
            checked += 1;
        }
        assert_eq!(checked, 27);
    }

    /// Scale 2, quants 0 (low nibbles) and 15 (high).
    #[test]
    fn a_block_by_hand() {
        let mut block = [0xf0; 18];
        block[..2].copy_from_slice(&0x4000u16.to_le_bytes());
        let mut out = [0.0; 32];
        dequantize(GgmlType::Q4_0, &block, &mut out);
        assert_eq!(out[..16], [-16.0; 16]);
        assert_eq!(out[16..], [14.0; 16]);
    }

    #[test]
    #[should_panic(expected = "whole blocks")]
    fn room_must_fit() {
        dequantize(GgmlType::Q4_0, &[0; 18], &mut [0.0; 31]);
    }
}
