//! Signs that numbers are not where the header says: bytes were inserted or lost in the middle of a file, or never arrived.
//!
//! A file that is too short or too long is taken for cut off, or for one with something appended. These are the signs of
//! damages that look the same from outside, found by looking at some of the numbers.

use safelight_format::{Dtype, shown};

use super::{Cover, Kept};
use crate::error::StoreError;
use crate::source::FileSource;

/// How much of a tensor's end is looked at: little as well, for the damage may lie in the midst of the last one.
const SAMPLES: [u64; 3] = [256, 2048, 16 * 1024];

/// How many tensors are looked at.
const SAMPLE_COUNT: usize = 8;

/// Of how many numbers a judgement is formed.
const NUMBERS_MIN: u64 = 32;

/// How much is looked at for what became of line ends.
const TEXT_BYTES: u64 = 8 * 1024 * 1024;

/// How many zeros at a file's end are no chance.
const ZEROS_MIN: u64 = 4096;

/// Zeros that a row may end with by itself.
const ROW_ZEROS_MAX: u64 = 16;

/// What makes the numbers doubtful of tensors that are in the order of their places. Tensors start at `data_start` and would all be there if the file reached to `data_end`.
pub(super) fn doubts(
    source: &FileSource,
    kept: &[Kept],
    data_start: u64,
    data_end: u64,
) -> Result<Vec<String>, StoreError> {
    let mut doubts = Vec::new();
    let surplus = i128::from(source.file_bytes) - i128::from(data_end);
    let Ok(surplus) = i64::try_from(surplus) else {
        return Ok(doubts);
    };
    if surplus != 0 {
        doubts.extend(made_text(source, data_start, surplus)?);
        if doubts.is_empty() {
            doubts.extend(shifted(source, kept, data_start, surplus)?);
        }
        if surplus > 0 && doubts.is_empty() {
            doubts.extend(more_numbers(source, kept, data_end)?);
        }
    }
    doubts.extend(zeros(source, kept)?);
    doubts.extend(zeros_across(source, kept)?);
    doubts.extend(moved_offsets(kept, data_start, data_end));
    Ok(doubts)
}

/// Whether as many bytes belong to two tensors as belong to none: then a tensor lies elsewhere than the header says. Where bytes are
/// only shared, a program has tied weights.
fn moved_offsets(kept: &[Kept], data_start: u64, data_end: u64) -> Option<String> {
    let cover = Cover::of(kept, data_start, data_end);
    let holes: u64 = cover.gaps.iter().map(|gap| gap.end - gap.start).sum();
    let sharing = cover.sharing.first()?;
    if cover.shared_bytes != holes {
        return None;
    }
    Some(format!(
        "{holes} bytes belong to no tensor, and as many to two, {} one of them: it, or one beside it, lies elsewhere than the header says, \
         and which can't be told",
        shown(&sharing.spec.name)
    ))
}

/// Whether zeros reach from the middle of a tensor into the middle of the next, as where a piece of a download is missing.
fn zeros_across(source: &FileSource, kept: &[Kept]) -> Result<Option<String>, StoreError> {
    let large = kept.iter().filter(|kept| kept.byte_count >= 2 * ZEROS_MIN);
    let large: Vec<&Kept> = large.collect();
    let is_zero = |from: u64| -> Result<bool, StoreError> {
        Ok(read(source, from, from + ZEROS_MIN)?
            .iter()
            .all(|&byte| byte == 0))
    };
    for pair in large.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        let (a_end, b_end) = (a.starts_at + a.byte_count, b.starts_at + b.byte_count);
        let across = a_end == b.starts_at && is_zero(a_end - ZEROS_MIN)? && is_zero(b.starts_at)?;
        if across && !is_zero(a.starts_at)? && !is_zero(b_end - ZEROS_MIN)? {
            return Ok(Some(format!(
                "zeros reach from the middle of {} into {}: a download of which a piece never came looks like that, and then numbers of \
                 both are lost",
                shown(&a.spec.name),
                shown(&b.spec.name)
            )));
        }
    }
    Ok(None)
}

/// Whether a program for text has changed line ends all over the file, or what is no text.
fn made_text(
    source: &FileSource,
    data_start: u64,
    surplus: i64,
) -> Result<Option<String>, StoreError> {
    let bytes = read(source, data_start, data_start + TEXT_BYTES)?;
    let count = |what: &[u8]| {
        bytes
            .windows(what.len())
            .filter(|bytes| *bytes == what)
            .count()
    };
    let (feeds, both) = (count(b"\n"), count(b"\r\n"));
    // Of random bytes, one in 256 line feeds stands behind a carriage return, and U+FFFD is one in 16 million.
    let how = if surplus > 0 && feeds >= 4 && both == feeds {
        "every line feed has a carriage return in front of it"
    } else if surplus < 0 && both == 0 && feeds >= 4096 && count(b"\r") >= 4096 {
        "no line feed has a carriage return in front of it"
    } else if count(REPLACEMENT) >= 16 {
        "U+FFFD stands where something was no text"
    } else {
        return Ok(None);
    };
    Ok(Some(format!(
        "{how}: the file went through a program for text (a transfer that is not binary), which moves all numbers; fetch it again"
    )))
}

/// What programs write that take bytes for UTF-8 which are none.
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// Whether the last numbers make sense only if they are read from another place, by as many bytes as the file is too long or short.
fn shifted(
    source: &FileSource,
    kept: &[Kept],
    data_start: u64,
    surplus: i64,
) -> Result<Option<String>, StoreError> {
    let odd = |kept: &&Kept| kept.number().is_some_and(|n| surplus % n.bytes as i64 != 0);
    for kept in kept.iter().rev().filter(odd).take(SAMPLE_COUNT) {
        let Some(number) = kept.number() else {
            continue;
        };
        let end = kept.starts_at + kept.byte_count;
        for sample in SAMPLES {
            let from = end - sample.min(kept.byte_count);
            let Some(moved) = from.checked_add_signed(surplus) else {
                continue;
            };
            if moved < data_start {
                continue;
            }
            let here = Sense::of(number, &read(source, from, end)?);
            let there = Sense::of(number, &read(source, moved, moved + (end - from))?);
            if here.is_senseless()
                && there.senseless * 4 * here.count <= here.senseless * there.count
            {
                return Ok(Some(shift_text(&kept.spec.name, surplus)));
            }
        }
    }
    Ok(None)
}

fn shift_text(name: &str, surplus: i64) -> String {
    let (what, side) = match surplus > 0 {
        true => ("inserted", "further on"),
        false => ("lost", "further in front"),
    };
    format!(
        "bytes seem to be {what} in the middle: the numbers of {} and those around it make sense only {} bytes {side}; \
         tensors in front of that place are sound, and which they are can't be told",
        shown(name),
        surplus.unsigned_abs()
    )
}

/// Whether what stands behind the last tensor looks like more of its numbers, as if something was inserted in front of it.
fn more_numbers(
    source: &FileSource,
    kept: &[Kept],
    data_end: u64,
) -> Result<Option<String>, StoreError> {
    let surplus = source.file_bytes - data_end;
    let last = kept.iter().rev().find(|kept| kept.byte_count > 0);
    let Some((last, number)) = last.and_then(|last| Some((last, last.number()?))) else {
        return Ok(None);
    };
    if !surplus.is_multiple_of(number.bytes as u64) {
        return Ok(None);
    }
    let bytes = read(source, data_end, data_end + SAMPLES[2])?;
    let sense = Sense::of(number, &bytes);
    let numbers = bytes.len() as u64 / number.bytes as u64;
    let looks_alike = sense.count * 10 >= numbers * 9 && sense.senseless * 100 <= sense.count;
    Ok(looks_alike.then(|| {
        format!(
            "the {surplus} bytes behind the last tensor look like more numbers of {}: if they were not appended but something was \
             inserted in front, tensors behind that place are wrong",
            shown(&last.spec.name)
        )
    }))
}

/// Whether the file ends in zeros from somewhere in the middle of a tensor on, as a download does that was given its size beforehand.
fn zeros(source: &FileSource, kept: &[Kept]) -> Result<Option<String>, StoreError> {
    let mut first_zero = source.file_bytes;
    while first_zero > 0 {
        let from = first_zero.saturating_sub(64 * 1024);
        let piece = read(source, from, first_zero)?;
        match piece.iter().rposition(|&byte| byte != 0) {
            None => first_zero = from,
            Some(index) => {
                first_zero = from + index as u64 + 1;
                break;
            }
        }
    }
    let inside =
        |kept: &&Kept| kept.starts_at < first_zero && first_zero < kept.starts_at + kept.byte_count;
    let zeros = source.file_bytes - first_zero;
    let Some(kept) = kept.iter().find(inside).filter(|_| zeros >= ZEROS_MIN) else {
        return Ok(None);
    };
    let rows = match kept.spec.shape[..] {
        [rows, _, ..] => rows.max(1),
        _ => 1,
    };
    let row = (kept.byte_count / rows).max(1);
    let into_row = (first_zero - kept.starts_at) % row;
    if rows > 1 && (into_row == 0 || row - into_row < ROW_ZEROS_MAX) {
        return Ok(None); // unused rows of a table
    }
    Ok(Some(format!(
        "all bytes from byte {first_zero}, in the middle of {}, to the end are zeros ({zeros} bytes): a download that was broken \
         off looks like that, and then this tensor and all behind it are lost",
        shown(&kept.spec.name)
    )))
}

/// How the numbers of a tensor are told from bytes that are none.
#[derive(Clone, Copy)]
struct Number {
    bytes: usize,
    /// Whether a number other than 0 is one that weights have.
    makes_sense: fn(u64) -> bool,
}

impl Kept {
    fn number(&self) -> Option<Number> {
        // As exponents are stored: of 2^-64 to 2^32 in f32, below 2^10 in f16, 2^-256 to 2^128 in f64.
        let (bytes, makes_sense): (usize, fn(u64) -> bool) = match self.spec.dtype {
            Dtype::F32 | Dtype::C64 => (4, |bits| (63..=159).contains(&(bits >> 23 & 0xff))),
            Dtype::Bf16 => (2, |bits| (63..=159).contains(&(bits >> 7 & 0xff))),
            Dtype::F16 => (2, |bits| (bits >> 10 & 0x1f) < 25),
            Dtype::F64 => (8, |bits| (767..=1151).contains(&(bits >> 52 & 0x7ff))),
            Dtype::I64 => (8, |bits| (bits as i64).unsigned_abs() < 1 << 48),
            Dtype::I32 => (4, |bits| (bits as u32 as i32).unsigned_abs() < 1 << 28),
            _ => return None,
        };
        Some(Number { bytes, makes_sense })
    }
}

/// How many numbers other than 0 there are, and how many of them no weights have.
#[derive(Default)]
struct Sense {
    count: u64,
    senseless: u64,
}

impl Sense {
    fn of(number: Number, bytes: &[u8]) -> Sense {
        let mut sense = Sense::default();
        for bytes in bytes.chunks_exact(number.bytes) {
            let mut bits = [0; 8];
            bits[..number.bytes].copy_from_slice(bytes);
            let bits = u64::from_le_bytes(bits);
            if bits != 0 {
                sense.count += 1;
                sense.senseless += u64::from(!(number.makes_sense)(bits));
            }
        }
        sense
    }

    /// A tenth: of random bytes it is two thirds in most types, and two ninths in f16.
    fn is_senseless(&self) -> bool {
        self.count >= NUMBERS_MIN && self.senseless * 10 >= self.count
    }
}

/// The bytes from one place to another, or to the file's end.
fn read(source: &FileSource, from: u64, to: u64) -> Result<Vec<u8>, StoreError> {
    let to = to.min(source.file_bytes);
    let mut bytes = vec![0; to.saturating_sub(from) as usize];
    source.read_exact_at(&mut bytes, from.min(to))?;
    Ok(bytes)
}
