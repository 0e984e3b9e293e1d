//! GGUF files, versions 1 to 3 in either byte order, as a source. Quantised tensors are read as numbers.
//!
//! A file is a header, keys with typed values, tensor descriptions, and the tensors, each at a multiple of the
//! alignment; dimensions are written fastest first. Source: ggml's `docs/gguf.md`; version 1 has 32-bit counts.
//! What blocks mean is in `blocks` and `codebooks`; writing is in `write`.

mod blocks;
mod codebooks;
mod kinds;
mod metadata;
mod write;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use safelight_format::{Dtype, TensorSpec, encode_into};
use safelight_store::ReadAt;

use crate::error::ConvertError;
use crate::input::{Cursor, Input};
use crate::source::{Contents, LimitName, Limits, Note, PIECE_BYTES, Source, skip};

pub use kinds::GgmlType;
pub use write::{GgufOptions, GgufWeights, write_gguf};

/// What the file says unless it has `general.alignment`.
const DEFAULT_ALIGNMENT: u64 = 32;

/// ggml itself has four.
const RANK_MAX: u32 = 16;

/// Names and keys may be this long; ggml's limit is 65,535 for keys and 64 for names.
const NAME_BYTES_MAX: u64 = 65_535;

/// What becomes of quantised tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantized {
    /// The exact numbers that ggml computes.
    #[default]
    F32,
    /// Rounded to F16; a number that F16 cannot hold is an error.
    F16,
    /// Rounded to BF16.
    Bf16,
    /// A file that has any is refused.
    Refuse,
}

/// How the tensors of a GGUF file are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GgufReading {
    /// What becomes of quantised tensors.
    pub quantized: Quantized,
    /// Leave out tensors that nothing here reads, with a note each, instead of refusing the file.
    pub skip_unsupported: bool,
}

/// The tensors of a GGUF file.
pub struct GgufSource {
    input: Input<'static>,
    contents: Contents,
    stored: Vec<Stored>,
    quantized: Quantized,
    big_endian: bool,
}

/// How and where a tensor lies in the file.
struct Stored {
    kind: GgmlType,
    /// From the file's first byte.
    offset: u64,
    byte_count: u64,
}

impl GgufSource {
    /// Opens a file and reads all but its tensors.
    ///
    /// # Errors
    /// What is wrong with the file, or what nothing here reads or [`Quantized::Refuse`] refuses, unless that is to be
    /// skipped.
    pub fn open(
        path: &Path,
        limits: &Limits,
        reading: GgufReading,
    ) -> Result<GgufSource, ConvertError> {
        GgufSource::read_from(Input::open(path, "GGUF")?, limits, reading)
    }

    /// As [`GgufSource::open`], from anything that can be read at any position; `label` is for messages.
    ///
    /// # Errors
    /// As [`GgufSource::open`].
    pub fn from_reader(
        label: &str,
        reader: Box<dyn ReadAt>,
        limits: &Limits,
        reading: GgufReading,
    ) -> Result<GgufSource, ConvertError> {
        GgufSource::read_from(Input::new(label, reader, "GGUF")?, limits, reading)
    }

    /// How tensor `index` is stored.
    pub fn stored_as(&self, index: usize) -> GgmlType {
        self.stored[index].kind
    }

    fn read_from(
        input: Input<'static>,
        limits: &Limits,
        reading: GgufReading,
    ) -> Result<GgufSource, ConvertError> {
        let mut reader = Reader::new(&input)?;
        let tensor_count = reader.count()?;
        let key_count = reader.count()?;
        let most = limits.bound(LimitName::Tensors);
        input.limited("", "tensors", tensor_count, most)?;
        let keys = metadata::read(&mut reader, key_count, limits)?;
        let quantized = reading.quantized;
        let mut notes = keys.notes;
        let (mut found, mut skipped) = (Vec::new(), Vec::new());
        for _ in 0..tensor_count {
            match reader.tensor(quantized) {
                Err(error) if reading.skip_unsupported => skip(error, &mut notes, &mut skipped)?,
                tensor => found.push(tensor?),
            }
        }
        let data_at = align(reader.cursor.at, keys.alignment);
        let big_endian = reader.big_endian;
        let (mut tensors, mut stored) = (Vec::new(), Vec::new());
        for (spec, mut place) in found {
            let offset = data_at.and_then(|start| start.checked_add(place.offset));
            let end = offset.and_then(|offset| offset.checked_add(place.byte_count));
            if end.is_none_or(|end| end > input.byte_count) {
                let problem = format!(
                    "{} bytes at byte {} of the tensor data, but the file has only {} bytes; is it whole?",
                    place.byte_count, place.offset, input.byte_count
                );
                return Err(input.malformed(spec.name, problem));
            }
            place.offset = offset.unwrap_or_default();
            tensors.push(spec);
            stored.push(place);
        }
        check_apart(&input, &tensors, &stored)?;
        note_quantized(&stored, quantized, &mut notes);
        let contents = Contents {
            label: input.label.clone(),
            tensors,
            skipped,
            metadata: keys.metadata,
            notes,
            ..Contents::default()
        };
        Ok(GgufSource {
            contents,
            stored,
            quantized,
            big_endian,
            input,
        })
    }
}

/// The next multiple of the alignment.
fn align(at: u64, alignment: u64) -> Option<u64> {
    at.checked_next_multiple_of(alignment)
}

/// No two tensors share bytes (a small file must not stand for a large one), and no two have one name.
fn check_apart(
    input: &Input,
    tensors: &[TensorSpec],
    stored: &[Stored],
) -> Result<(), ConvertError> {
    let mut names = HashSet::new();
    if let Some(twice) = tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
        return Err(input.malformed(&twice.name, "two tensors have this name"));
    }
    let mut order: Vec<usize> = (0..stored.len())
        .filter(|&index| stored[index].byte_count > 0)
        .collect();
    order.sort_by_key(|&index| stored[index].offset);
    for pair in order.windows(2) {
        let end = stored[pair[0]].offset + stored[pair[0]].byte_count;
        if stored[pair[1]].offset < end {
            let problem = format!(
                "starts at byte {}, inside of `{}`, which ends at byte {end}",
                stored[pair[1]].offset,
                safelight_format::shown(&tensors[pair[0]].name)
            );
            return Err(input.malformed(&tensors[pair[1]].name, problem));
        }
    }
    Ok(())
}

/// One note for each quantised type.
fn note_quantized(stored: &[Stored], quantized: Quantized, notes: &mut Vec<Note>) {
    let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
    for place in stored {
        if place.kind.plain().is_none() {
            *counts.entry(place.kind.id()).or_default() += 1;
        }
    }
    for (id, count) in counts {
        let name = GgmlType::from_id(id).map_or("", GgmlType::name);
        let to = quantized.dtype();
        notes.push(Note::new(
            name,
            format!("{count} quantised tensors of this type are read as {to}"),
        ));
    }
}

impl Quantized {
    /// What quantised tensors become.
    fn dtype(self) -> Dtype {
        match self {
            Quantized::F32 | Quantized::Refuse => Dtype::F32,
            Quantized::F16 => Dtype::F16,
            Quantized::Bf16 => Dtype::Bf16,
        }
    }
}

/// Reads the parts before the tensors.
pub(crate) struct Reader<'a> {
    pub(crate) input: &'a Input<'a>,
    pub(crate) cursor: Cursor<'a>,
    pub(crate) big_endian: bool,
    version: u32,
}

impl<'a> Reader<'a> {
    /// Reads magic and version.
    fn new(input: &'a Input<'a>) -> Result<Reader<'a>, ConvertError> {
        let mut cursor = input.cursor(0);
        match &cursor.array()? {
            b"GGUF" => {}
            b"lmgg" | b"fmgg" | b"tjgg" | b"ggml" => {
                let what = "is a GGML file from before GGUF (2023), whose tensors have no settled types; get the GGUF file";
                return Err(input.unsupported("", what));
            }
            _ => return Err(input.malformed("", "does not start with `GGUF`")),
        }
        let version = cursor.array()?;
        let (little, big) = (u32::from_le_bytes(version), u32::from_be_bytes(version));
        let big_endian = little & 0xffff == 0;
        let version = if big_endian { big } else { little };
        if !(1..=3).contains(&version) {
            let what = format!(
                "GGUF version {version}; versions 1 to 3 are known here, look for a newer safelight"
            );
            return Err(input.unsupported("", what));
        }
        Ok(Reader {
            input,
            cursor,
            big_endian,
            version,
        })
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ConvertError> {
        let bytes = self.cursor.array()?;
        Ok(if self.big_endian {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        })
    }

    pub(crate) fn u64(&mut self) -> Result<u64, ConvertError> {
        let bytes = self.cursor.array()?;
        Ok(if self.big_endian {
            u64::from_be_bytes(bytes)
        } else {
            u64::from_le_bytes(bytes)
        })
    }

    /// A length or number of things: 32 bits in version 1, 64 since.
    pub(crate) fn count(&mut self) -> Result<u64, ConvertError> {
        if self.version == 1 {
            self.u32().map(u64::from)
        } else {
            self.u64()
        }
    }

    /// A tensor's or key's name.
    pub(crate) fn name(&mut self) -> Result<String, ConvertError> {
        let len = self.count()?;
        self.input
            .limited("", "bytes in a name", len, NAME_BYTES_MAX)?;
        let at = self.cursor.at;
        match std::str::from_utf8(self.cursor.take(len)?) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => {
                let problem = format!("the name at byte {at} is not UTF-8");
                Err(self.input.malformed("", problem))
            }
        }
    }

    /// A tensor's description; its place is relative to the tensor data for now.
    fn tensor(&mut self, quantized: Quantized) -> Result<(TensorSpec, Stored), ConvertError> {
        let name = self.name()?;
        let rank = self.u32()?;
        self.input
            .limited(&name, "dimensions", u64::from(rank), u64::from(RANK_MAX))?;
        let mut shape = (0..rank)
            .map(|_| self.count())
            .collect::<Result<Vec<u64>, _>>()?;
        let id = self.u32()?;
        let offset = self.u64()?;
        let kind = GgmlType::from_id(id).map_err(|what| {
            let what =
                format!("has ggml's type {what}; nothing here reads it: get another quantisation, or leave such tensors out (--skip-unsupported)");
            self.input.unsupported(&name, what)
        })?;
        self.check_kind(&name, kind, quantized)?;
        let row = shape.first().copied().unwrap_or(1);
        if !row.is_multiple_of(kind.block_elements()) {
            let problem = format!(
                "rows of {row} elements are not whole {} blocks of {}",
                kind.name(),
                kind.block_elements()
            );
            return Err(self.input.malformed(name, problem));
        }
        shape.reverse();
        let elements = shape
            .iter()
            .try_fold(1u64, |all, &dim| all.checked_mul(dim));
        let byte_count = elements
            .map(|elements| elements / kind.block_elements())
            .and_then(|blocks| blocks.checked_mul(kind.block_bytes()));
        // Wider dtypes must have a size, too.
        let wide = elements.and_then(|elements| elements.checked_mul(64));
        let (Some(byte_count), Some(_)) = (byte_count, wide) else {
            let problem = format!("shape {shape:?} has no size in 64 bits");
            return Err(self.input.malformed(name, problem));
        };
        let dtype = kind.plain().unwrap_or(quantized.dtype());
        let stored = Stored {
            kind,
            offset,
            byte_count,
        };
        Ok((TensorSpec { name, dtype, shape }, stored))
    }

    fn check_kind(
        &self,
        name: &str,
        kind: GgmlType,
        quantized: Quantized,
    ) -> Result<(), ConvertError> {
        if kind.plain().is_some() {
            return Ok(());
        }
        if quantized == Quantized::Refuse {
            let what = format!(
                "is quantised ({}), and quantised tensors are to be refused",
                kind.name()
            );
            return Err(self.input.unsupported(name, what));
        }
        if self.big_endian && kind.halves().is_none() {
            let what = format!(
                "is {} in a big-endian file: it is not settled which of its bytes are turned around; \
                 get the little-endian file",
                kind.name()
            );
            return Err(self.input.unsupported(name, what));
        }
        Ok(())
    }
}

impl Source for GgufSource {
    fn contents(&self) -> &Contents {
        &self.contents
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let stored = &self.stored[index];
        if let Some(dtype) = stored.kind.plain() {
            let size = (dtype.bits() / 8) as usize;
            return self
                .input
                .pieces(stored.offset, stored.byte_count, size, &mut |piece| {
                    if self.big_endian && size > 1 {
                        piece.chunks_exact_mut(size).for_each(<[u8]>::reverse);
                    }
                    out(piece)
                });
        }
        self.read_blocks(index, out)
    }
}

impl GgufSource {
    /// Quantised blocks, so many at a time that the numbers fill a piece.
    fn read_blocks(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let stored = &self.stored[index];
        let elements = stored.kind.block_elements() as usize;
        let block_bytes = stored.kind.block_bytes() as usize;
        let blocks_max = PIECE_BYTES / 4 / elements;
        let mut numbers = Vec::new();
        let mut bytes = Vec::new();
        let (mut offset, mut left) = (stored.offset, stored.byte_count);
        let mut buffer = vec![0; left.min((blocks_max * block_bytes) as u64) as usize];
        while left > 0 {
            let count = left.min(buffer.len() as u64) as usize;
            let piece = &mut buffer[..count];
            self.input.read_exact_at(piece, offset)?;
            if self.big_endian {
                for block in piece.chunks_exact_mut(block_bytes) {
                    for &at in stored.kind.halves().unwrap_or_default() {
                        block.swap(at, at + 1);
                    }
                }
            }
            numbers.resize(count / block_bytes * elements, 0.0);
            blocks::dequantize(stored.kind, piece, &mut numbers);
            self.encode(index, &numbers, &mut bytes)?;
            out(&bytes)?;
            offset += count as u64;
            left -= count as u64;
        }
        Ok(())
    }

    /// Numbers as the tensor's dtype.
    fn encode(
        &self,
        index: usize,
        numbers: &[f32],
        bytes: &mut Vec<u8>,
    ) -> Result<(), ConvertError> {
        let dtype = self.quantized.dtype();
        bytes.resize(numbers.len() * (dtype.bits() / 8) as usize, 0);
        let report = encode_into(dtype, numbers, bytes).expect("a float dtype, and room for it");
        if report.overflow_count > 0 {
            return Err(ConvertError::Request {
                at: self.tensors()[index].name.clone(),
                problem: format!("holds numbers that {dtype} cannot; choose F32"),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::tests::Memory;

    /// A file of version 3 with these keys and tensor descriptions, and `data_bytes` of zeros behind them.
    fn file(keys: &[Vec<u8>], tensors: &[Vec<u8>], data_bytes: usize) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend((keys.len() as u64).to_le_bytes());
        bytes.extend(keys.concat());
        bytes.extend(tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(32) + data_bytes, 0);
        bytes
    }

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        [&text(name)[..], &kind.to_le_bytes(), value].concat()
    }

    fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
        let mut bytes = text(name);
        bytes.extend((dims.len() as u32).to_le_bytes());
        bytes.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes
    }

    fn open(bytes: Vec<u8>, quantized: Quantized) -> Result<GgufSource, ConvertError> {
        let reading = GgufReading {
            quantized,
            ..GgufReading::default()
        };
        GgufSource::from_reader("x", Box::new(Memory(bytes)), &Limits::default(), reading)
    }

    #[track_caller]
    fn refused(bytes: Vec<u8>, expected: &str) {
        let error = open(bytes, Quantized::F32)
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn what_is_no_gguf() {
        refused(b"".to_vec(), "4 bytes expected at byte 0");
        refused(b"GGUX".to_vec(), "does not start with `GGUF`");
        refused(b"lmgg\x01\0\0\0".to_vec(), "from before GGUF");
        refused(b"GGUF\x04\0\0\0".to_vec(), "GGUF version 4");
        refused(b"GGUF\x03\0\0\0".to_vec(), "8 bytes expected at byte 8");
        let mut many = file(&[], &[], 0);
        many[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        refused(
            many.clone(),
            "at least 18446744073709551615 tensors, the limit is 4000000",
        );
        many[8..16].copy_from_slice(&1_000_000u64.to_le_bytes());
        refused(many, "expected at byte");
    }

    #[test]
    fn keys_that_are_wrong() {
        let keys = |keys: &[Vec<u8>]| file(keys, &[], 0);
        let number = |name: &str| key(name, 4, &7u32.to_le_bytes());
        refused(
            keys(&[number("a"), number("a")]),
            "`a`: two values have this key",
        );
        refused(keys(&[key("a", 13, &[])]), "a value of type 13");
        refused(keys(&[key("a", 7, &[2])]), "the truth value 2");
        refused(
            keys(&[number("general.alignment")]),
            "power of two, not 7 (u32)",
        );
        refused(
            keys(&[key("general.alignment", 10, &32u64.to_le_bytes())]),
            "not 32 (u64)",
        );
        refused(
            keys(&[key("a", 8, &u64::MAX.to_le_bytes())]),
            "bytes of text",
        );
        let deep: Vec<u8> = (0..10)
            .flat_map(|_| [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat())
            .collect();
        refused(keys(&[key("a", 9, &deep)]), "arrays within each other");
        let long = [&0u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
        refused(keys(&[key("a", 9, &long)]), "expected at byte");
        let mut name = number("a");
        name[..8].copy_from_slice(&70_000u64.to_le_bytes());
        refused(keys(&[name]), "bytes in a name");
    }

    #[test]
    fn tensors_that_are_wrong() {
        let tensors = |tensors: &[Vec<u8>], data_bytes| file(&[], tensors, data_bytes);
        refused(
            tensors(&[tensor("w", &[2], 0, 0)], 7),
            "`w`: 8 bytes at byte 0 of the tensor data",
        );
        refused(
            tensors(&[tensor("w", &[2], 0, u64::MAX)], 8),
            "is it whole?",
        );
        refused(tensors(&[tensor("w", &[2], 31, 0)], 8), "31 (Q4_0_4_4)");
        refused(
            tensors(&[tensor("w", &[33], 8, 0)], 99),
            "rows of 33 elements are not whole Q8_0 blocks of 32",
        );
        refused(
            tensors(&[tensor("w", &[1 << 40, 1 << 40], 0, 0)], 8),
            "no size in 64 bits",
        );
        refused(tensors(&[tensor("w", &[1; 17], 0, 0)], 8), "dimensions");
        let same = [tensor("w", &[1], 0, 0), tensor("w", &[1], 0, 32)];
        refused(tensors(&same, 64), "two tensors have this name");
        let shared = [tensor("a", &[8], 0, 0), tensor("b", &[8], 0, 16)];
        refused(tensors(&shared, 64), "inside of `a`");
    }

    #[test]
    fn what_nothing_reads_can_be_left_out() {
        let tensors = [
            tensor("odd", &[32], 31, 0), // Q4_0_4_4
            tensor("new", &[32], 77, 64),
            tensor("w", &[2], 0, 128),
        ];
        let bytes = file(&[], &tensors, 136);
        let open = |skip_unsupported| {
            let reading = GgufReading {
                skip_unsupported,
                ..GgufReading::default()
            };
            GgufSource::from_reader(
                "x",
                Box::new(Memory(bytes.clone())),
                &Limits::default(),
                reading,
            )
        };
        let refused = open(false).err().unwrap().to_string();
        assert!(
            refused.contains("`odd`: has ggml's type 31 (Q4_0_4_4)")
                && refused.contains("--skip-unsupported"),
            "{refused}"
        );
        let source = open(true).unwrap();
        let names: Vec<&str> = source.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["w"]);
        let left_out: Vec<&str> = source.notes().iter().map(|note| note.at.as_str()).collect();
        assert_eq!(left_out, ["odd", "new"]);
    }

    #[test]
    fn empty_and_flat_tensors_are_fine() {
        let tensors = [tensor("none", &[0, 3], 0, 0), tensor("one", &[], 1, 0)];
        let source = open(file(&[], &tensors, 2), Quantized::F32).unwrap();
        assert_eq!(source.tensors()[0].shape, [3, 0]);
        assert_eq!(source.tensors()[1].shape, [0u64; 0]);
        source.read(0, &mut |_| panic!("there is nothing")).unwrap();
    }

    #[test]
    fn quantised_tensors_are_rounded_or_refused_as_asked() {
        let mut bytes = file(&[], &[tensor("w", &[32], 8, 0)], 34);
        let at = bytes.len() - 34;
        bytes[at..at + 3].copy_from_slice(&[0xff, 0x7b, 2]); // 65504 · 2
        let read = |quantized| {
            let source = open(bytes.clone(), quantized)?;
            let mut read = Vec::new();
            source.read(0, &mut |piece| {
                read.extend_from_slice(piece);
                Ok(())
            })?;
            Ok::<_, ConvertError>(read)
        };
        assert_eq!(read(Quantized::F32).unwrap()[..4], 131008f32.to_le_bytes());
        assert_eq!(read(Quantized::Bf16).unwrap()[..2], [0x00, 0x48]);
        let error = read(Quantized::F16).unwrap_err().to_string();
        assert!(error.contains("holds numbers that F16 cannot"), "{error}");
        let error = read(Quantized::Refuse).unwrap_err().to_string();
        assert!(error.contains("is quantised (Q8_0)"), "{error}");
    }
}
