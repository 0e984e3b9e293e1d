//! Entries as every common writer writes them, recognised at a glance:
//! `"name":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}`, fields in this order, with no
//! space or (as Python's `json.dumps`) one behind each colon and comma.
//!
//! What looks different in the least is left to the parser proper, which decides and explains: the
//! entries taken here are right in either strictness, so no verdict depends on this file.

use crate::dtype::Dtype;
use crate::header::{Limits, METADATA_KEY};
use crate::table::{RANK_MAX, TENSOR_COUNT_MAX, TableBuilder};

/// The longest number read here; with more digits it might not fit into 64 bits.
const DIGITS_MAX: u32 = 16;

/// Takes entries from `text`, which starts at a name's quote, into `table`; returns the length
/// taken, up to the quote of the first entry that is not usual, or behind the last one's `}`.
pub(crate) fn take_entries(text: &[u8], limits: &Limits, table: &mut TableBuilder) -> usize {
    match take::<false>(text, limits, table) {
        0 => take::<true>(text, limits, table),
        taken => taken,
    }
}

fn take<const SPACED: bool>(text: &[u8], limits: &Limits, table: &mut TableBuilder) -> usize {
    let mut taken = 0;
    while let Some(len) = entry::<SPACED>(&text[taken..], limits, table) {
        taken += len;
    }
    taken
}

/// One entry with the comma behind it; its length, or `None` with `table` as it was.
fn entry<const SPACED: bool>(
    bytes: &[u8],
    limits: &Limits,
    table: &mut TableBuilder,
) -> Option<usize> {
    let inside = bytes.get(1..)?;
    let name_len = special_at::<true>(inside);
    let (name, rest) = inside.split_at(name_len);
    let unwanted = name == METADATA_KEY.as_bytes()
        || name_len as u64 > limits.name_bytes_max
        || table.len() as u64 >= limits.tensor_count_max.min(TENSOR_COUNT_MAX);
    if unwanted {
        return None;
    }
    let rest = expect::<SPACED>(rest, b"\":{\"dtype\":\"", b"\": {\"dtype\": \"")?;
    let dtype_len = rest.iter().take(16).position(|&byte| byte == b'"')?;
    let dtype = Dtype::from_bytes(&rest[..dtype_len])?;
    let rest = &rest[dtype_len..];
    let mut rest = expect::<SPACED>(rest, b"\",\"shape\":[", b"\", \"shape\": [")?;
    let dims_at = table.dims.len();
    let after = loop {
        let Some((dim, after)) = digits(rest) else {
            // `[]`, or no number at all: then `]` does not follow.
            break (table.dims.len() == dims_at).then_some(rest);
        };
        table.dims.push(dim);
        match after {
            [b',', after @ ..] if !SPACED => rest = after,
            [b',', b' ', after @ ..] if SPACED => rest = after,
            _ => break Some(after),
        }
    };
    let rank = (table.dims.len() - dims_at) as u64;
    let offsets = after
        .filter(|_| rank <= limits.rank_max.min(RANK_MAX))
        .and_then(|rest| {
            let rest = expect::<SPACED>(rest, b"],\"data_offsets\":[", b"], \"data_offsets\": [")?;
            let (starts_at, rest) = digits(rest)?;
            let rest = expect::<SPACED>(rest, b",", b", ")?;
            let (ends_at, rest) = digits(rest)?;
            let rest = rest.strip_prefix(b"]}")?;
            let rest = expect::<SPACED>(rest, b",\"", b", \"")?;
            Some((starts_at, ends_at, rest))
        });
    let Some((starts_at, ends_at, rest)) = offsets else {
        table.dims.truncate(dims_at);
        return None;
    };
    table.push_ascii(name, dtype, dims_at, (starts_at, ends_at));
    Some(bytes.len() - rest.len() - 1) // the next name's quote is not taken
}

/// `bytes` behind the one of two patterns that is meant.
#[inline(always)]
fn expect<'a, const SPACED: bool>(
    bytes: &'a [u8],
    compact: &[u8],
    spaced: &[u8],
) -> Option<&'a [u8]> {
    bytes.strip_prefix(if SPACED { spaced } else { compact })
}

/// How many bytes come before the first quote, backslash or control character, or the end.
pub(crate) fn plain_len(bytes: &[u8]) -> usize {
    special_at::<false>(bytes)
}

/// The position of the first quote, backslash or control character, with `ASCII` also of a byte
/// that is none; the length if there is none of them.
#[inline(always)]
fn special_at<const ASCII: bool>(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let (words, tail) = bytes.as_chunks::<8>();
    for (position, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // The lowest mark is exact: a borrow can only spoil those above it.
        let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & HIGHS;
        let quote = below(word ^ (ONES * b'"' as u64), 1);
        let backslash = below(word ^ (ONES * b'\\' as u64), 1);
        let foreign = if ASCII { word & HIGHS } else { 0 };
        let marks = below(word, 0x20) | quote | backslash | foreign;
        if marks != 0 {
            return position * 8 + marks.trailing_zeros() as usize / 8;
        }
    }
    let special =
        |&byte: &u8| byte == b'"' || byte == b'\\' || byte < 0x20 || (ASCII && byte > 0x7f);
    bytes.len() - tail.len() + tail.iter().position(special).unwrap_or(tail.len())
}

/// An integer of up to 16 digits without leading zeros, and the bytes behind it. `None` also near
/// the text's end.
#[inline(always)]
fn digits(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (value, count) = up_to_eight(bytes)?;
    if count < 8 {
        let leading_zero = bytes[0] == b'0' && count > 1;
        return (count > 0 && !leading_zero).then_some((value, &bytes[count as usize..]));
    }
    let (low, low_count) = up_to_eight(&bytes[8..])?;
    const POWERS: [u64; 9] = [
        1,
        10,
        100,
        1000,
        10_000,
        100_000,
        1_000_000,
        10_000_000,
        100_000_000,
    ];
    let count = count + low_count;
    let more = count == DIGITS_MAX && bytes.get(16).is_some_and(u8::is_ascii_digit);
    let value = value * POWERS[low_count as usize] + low;
    (bytes[0] != b'0' && !more).then_some((value, &bytes[count as usize..]))
}

/// The value and the number of the digits at the start of `bytes`, as far as the eighth.
///
/// Eight at a time: pairs, then fours, then all (Lemire 2022, "Parsing 8-digit numbers quickly",
/// lemire.me, the same steps as in simdjson's number parsing).
#[inline(always)]
fn up_to_eight(bytes: &[u8]) -> Option<(u64, u32)> {
    let word = u64::from_le_bytes(*bytes.first_chunk::<8>()?);
    // A digit is 0x30 to 0x39: its high half is 3, also after adding 6.
    let high = 0xf0f0_f0f0_f0f0_f0f0;
    let threes = 0x3030_3030_3030_3030;
    let strange =
        ((word & high) ^ threes) | ((word.wrapping_add(0x0606_0606_0606_0606) & high) ^ threes);
    let count = strange.trailing_zeros() / 8; // 8 if all are digits
    if count == 0 {
        return Some((0, 0));
    }
    // The last digit to the top, zeros below the first.
    let word = (word.wrapping_sub(threes)) << (64 - 8 * count);
    let pairs = word.wrapping_mul(10).wrapping_add(word >> 8) & 0x00ff_00ff_00ff_00ff;
    let fours = pairs.wrapping_mul(100).wrapping_add(pairs >> 16) & 0x0000_ffff_0000_ffff;
    let value = fours.wrapping_mul(10_000).wrapping_add(fours >> 32) & 0xffff_ffff;
    Some((value, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_as_parse_has_them() {
        for text in [
            "0",
            "7",
            "10",
            "99",
            "1234567",
            "12345678",
            "123456789",
            "1234567890123456",
            "9999999999999999",
            "1000000000000000",
            "99999999",
        ] {
            for behind in [",", "]", "a", "/", ":", " ", "\u{0}", "\u{ff}"] {
                let padded = format!("{text}{behind}________________");
                let (value, rest) = digits(padded.as_bytes()).unwrap();
                assert_eq!(value, text.parse::<u64>().unwrap());
                assert_eq!(rest.len(), padded.len() - text.len());
            }
        }
        for text in [
            "",
            "x",
            "-1",
            "00",
            "01",
            "012345678",
            "12345678901234567",
            "/",
            ":",
        ] {
            assert_eq!(
                digits(format!("{text}]_______________").as_bytes()),
                None,
                "{text}"
            );
        }
        let long = format!("{}]_______________", "1".repeat(30));
        assert_eq!(digits(long.as_bytes()), None);
        assert_eq!(digits(b"1]"), None); // too near the end
    }

    #[test]
    fn plain_text_ends_at_quotes_backslashes_and_control_characters() {
        for special in ["\"", "\\", "\n", "\u{0}", "\u{1f}"] {
            for before in 0..20 {
                for plain in ["a", "é", "\u{7f}", "!", "#", "[", " ", "😀"] {
                    let start = plain.repeat(before);
                    let text = format!("{start}{special}\"\\rest of the text");
                    assert_eq!(plain_len(text.as_bytes()), start.len(), "{text:?}");
                    assert_eq!(plain_len(start.as_bytes()), start.len());
                }
            }
        }
    }

    /// The length taken from an entry and something behind it.
    fn taken(entry: &str) -> usize {
        let text = format!("{entry}\"next\":");
        let mut table = TableBuilder::default();
        let len = take_entries(text.as_bytes(), &Limits::default(), &mut table);
        assert_eq!(table.len() == 1, len > 0);
        assert_eq!(table.dims.is_empty(), len == 0 || entry.contains("[]"));
        len
    }

    #[test]
    fn only_usual_entries_are_taken() {
        for usual in [
            r#""a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"#,
            r#""a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "#,
            r#""":{"dtype":"F8_E4M3FNUZ","shape":[],"data_offsets":[12345678901,12345678902]},"#,
        ] {
            assert_eq!(taken(usual), usual.len(), "{usual}");
        }
        for other in [
            r#""__metadata__":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"#,
            r#""\u0061":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"#,
            r#""ä":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"#,
            r#""a":{"dtype":"f32","shape":[2,3],"data_offsets":[0,24]},"#,
            r#""a":{"dtype":"F32","shape":[2,],"data_offsets":[0,24]},"#,
            r#""a":{"dtype":"F32","shape":[,2],"data_offsets":[0,24]},"#,
            r#""a":{"dtype":"F32","shape":[2 ],"data_offsets":[0,24]},"#,
            r#""a":{"dtype":"F32","shape":[-2],"data_offsets":[0,24]},"#,
            r#""a":{"dtype":"F32","shape":[02],"data_offsets":[0,24]},"#,
            r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,24,48]},"#,
            r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0]},"#,
            r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,2.5]},"#,
            r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551616]},"#,
            r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1},"#,
            r#""a":{"shape":[2],"dtype":"F32","data_offsets":[0,8]},"#,
            r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#,
            r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]} ,"#,
        ] {
            assert_eq!(taken(other), 0, "{other}");
        }
    }
}
