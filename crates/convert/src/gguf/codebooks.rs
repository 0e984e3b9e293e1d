//! The IQ formats: each group of four or eight elements is a line of a code book, with signs and a scale.
//!
//! Source and order of rounding as in `blocks`. The code books are facts of the format, kept in
//! `assets/ggml` (see its README for where they come from).

use super::blocks::half;

/// Lines of a code book, unpacked when we are compiled: `LINE` elements a line, `BITS` bits each
/// (lowest first) that choose from `values`.
const fn unpack<const LINES: usize, const LINE: usize, const BYTES: usize>(
    packed: &[u8; BYTES],
    bits: usize,
    values: &[i8],
) -> [[i8; LINE]; LINES] {
    let mut book = [[0; LINE]; LINES];
    let per_byte = 8 / bits;
    assert!(
        BYTES * per_byte == LINES * LINE,
        "as many elements as packed"
    );
    let mut i = 0;
    while i < LINES * LINE {
        let code = packed[i / per_byte] as usize >> (i % per_byte * bits) & ((1 << bits) - 1);
        book[i / LINE][i % LINE] = values[code];
        i += 1;
    }
    book
}

const TWOS: [i8; 3] = [8, 25, 43];

static IQ2_XXS: [[i8; 8]; 256] = unpack(include_bytes!("../../assets/ggml/iq2_xxs.bin"), 2, &TWOS);
static IQ2_XS: [[i8; 8]; 512] = unpack(include_bytes!("../../assets/ggml/iq2_xs.bin"), 2, &TWOS);
static IQ2_S: [[i8; 8]; 1024] = unpack(include_bytes!("../../assets/ggml/iq2_s.bin"), 2, &TWOS);
static IQ3_XXS: [[i8; 4]; 256] = unpack(
    include_bytes!("../../assets/ggml/iq3_xxs.bin"),
    4,
    &[4, 12, 20, 28, 36, 44, 52, 62],
);
static IQ3_S: [[i8; 4]; 512] = unpack(
    include_bytes!("../../assets/ggml/iq3_s.bin"),
    4,
    &[1, 3, 5, 7, 9, 11, 13, 15],
);
static IQ1: [[i8; 8]; 2048] = unpack(include_bytes!("../../assets/ggml/iq1.bin"), 2, &[-1, 0, 1]);

/// IQ4's sixteen values.
const IQ4: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// Seven signs as stored; the eighth makes their number even.
fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | ((seven.count_ones() & 1) as u8) << 7
}

/// A line of a code book, scaled, with a sign bit for each element.
fn signed(line: &[i8], signs: u8, scale: f32, out: &mut [f32]) {
    for (i, (out, &value)) in out.iter_mut().zip(line).enumerate() {
        let sign = if signs >> i & 1 == 0 { 1.0 } else { -1.0 };
        *out = scale * f32::from(value) * sign;
    }
}

/// Nibble `j`, low ones first.
fn nibble(bytes: &[u8], j: usize) -> u8 {
    bytes[j / 2] >> (j % 2 * 4) & 15
}

fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

fn short(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

pub(crate) fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half(block, 0);
    for (n, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let (group, k) = (2 + n / 4 * 8, n % 4);
        let tail = word(block, group + 4);
        let scale = d * (0.5 + (tail >> 28) as f32) * 0.25;
        let line = &IQ2_XXS[usize::from(block[group + k])];
        signed(line, even_signs(tail >> (7 * k)), scale, out);
    }
}

pub(crate) fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let d = half(block, 0);
    for (n, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let code = short(block, 2 + n * 2);
        let scale = d * (0.5 + f32::from(nibble(&block[66..], n / 2))) * 0.25;
        let line = &IQ2_XS[usize::from(code & 511)];
        signed(line, even_signs(u32::from(code >> 9)), scale, out);
    }
}

pub(crate) fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let d = half(block, 0);
    let (low, signs, high, scales) = (&block[2..34], &block[34..66], &block[66..74], &block[74..]);
    for (n, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let scale = d * (0.5 + f32::from(nibble(scales, n / 2))) * 0.25;
        let code = usize::from(low[n]) | usize::from(high[n / 4] >> (n % 4 * 2) & 3) << 8;
        signed(&IQ2_S[code], signs[n], scale, out);
    }
}

pub(crate) fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let d = half(block, 0);
    for (n, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let tail = word(block, 66 + n / 8 * 4);
        let scale = d * (0.5 + (tail >> 28) as f32) * 0.5;
        let signs = even_signs(tail >> (n % 8 / 2 * 7)) >> (n % 2 * 4);
        signed(&IQ3_XXS[usize::from(block[2 + n])], signs, scale, out);
    }
}

pub(crate) fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half(block, 0);
    let (low, high, signs, scales) = (
        &block[2..66],
        &block[66..74],
        &block[74..106],
        &block[106..],
    );
    for (n, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let scale = d * f32::from(1 + 2 * nibble(scales, n / 8));
        let code = usize::from(low[n]) | usize::from(high[n / 8] >> (n % 8) & 1) << 8;
        signed(&IQ3_S[code], signs[n / 2] >> (n % 2 * 4), scale, out);
    }
}

/// A line of IQ1's code book, moved up or down by an eighth.
fn moved(code: usize, down: bool, scale: f32, out: &mut [f32; 8]) {
    let delta = if down { -0.125 } else { 0.125 };
    for (out, &value) in out.iter_mut().zip(&IQ1[code]) {
        *out = scale * (f32::from(value) + delta);
    }
}

pub(crate) fn iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let d = half(block, 0);
    for (n, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = short(block, 34 + n / 4 * 2);
        let scale = d * f32::from(2 * (high >> 12 & 7) + 1);
        let code = usize::from(block[2 + n]) | usize::from(high >> (n % 4 * 3) & 7) << 8;
        moved(code, high & 0x8000 != 0, scale, out);
    }
}

pub(crate) fn iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let scales: [u16; 4] = std::array::from_fn(|i| short(block, 48 + i * 2));
    // The block's scale is cut into the highest nibbles of the four words.
    let bits =
        scales[0] >> 12 | scales[1] >> 12 << 4 | scales[2] >> 12 << 8 | scales[3] >> 12 << 12;
    let d = super::blocks::half_of(bits);
    for (n, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let j = n / 2;
        let scale = d * f32::from(2 * (scales[j / 4] >> (j % 4 * 3) & 7) + 1);
        let high = nibble(&block[32..], n);
        let code = usize::from(block[n]) | usize::from(high & 7) << 8;
        moved(code, high & 8 != 0, scale, out);
    }
}

pub(crate) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    fours(&block[2..], half(block, 0), out);
}

pub(crate) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let (d, high) = (half(block, 0), short(block, 2));
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let scale = nibble(&block[4..], j) | ((high >> (2 * j) & 3) as u8) << 4;
        fours(&block[8 + j * 16..], d * f32::from(scale as i8 - 32), out);
    }
}

/// Sixteen bytes: low nibbles, then high ones.
fn fours(bytes: &[u8], scale: f32, out: &mut [f32; 32]) {
    for (i, byte) in bytes.iter().take(16).enumerate() {
        out[i] = scale * f32::from(IQ4[usize::from(byte & 15)]);
        out[i + 16] = scale * f32::from(IQ4[usize::from(byte >> 4)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_even() {
        for seven in 0..256 {
            let signs = even_signs(seven);
            assert_eq!(signs.count_ones() % 2, 0);
            assert_eq!(signs & 127, seven as u8 & 127);
        }
    }

    /// No line stands in a book twice: a wrong unpacking would show.
    #[test]
    fn lines_differ() {
        fn check<const LINE: usize>(book: &[[i8; LINE]]) {
            let mut lines = book.to_vec();
            lines.sort_unstable();
            lines.dedup();
            assert_eq!(lines.len(), book.len());
        }
        check(&IQ2_XXS);
        check(&IQ2_XS);
        check(&IQ2_S);
        check(&IQ3_XXS);
        check(&IQ3_S);
        check(&IQ1);
    }
}
