//! A source written as a GGUF file, version 3, little-endian.
//!
//! Names and shapes stay as they are; metadata become keys. Q8_0 blocks have the bits of the Python package `gguf`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use safelight_format::{Dtype, TensorSpec, decode_f32_into, encode_f64_into, encode_into, plural};
use serde_json::Value as Json;

use super::DEFAULT_ALIGNMENT;
use super::kinds::GgmlType;
use super::metadata::{TYPES_KEY, ValueType};
use crate::error::ConvertError;
use crate::sink::{Regroup, Sink};
use crate::source::{Note, Source, refuse_opaque};
use crate::write::Report;

/// ggml has as many dimensions.
const RANK_MAX: usize = 4;

/// llama.cpp and its kin read no longer names; ComfyUI does.
const NAME_BYTES_MAX: usize = 63;

/// What floating-point tensors become. Others stay as they are, or are widened where GGUF has no such type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GgufWeights {
    /// F32, F16, BF16 and F64 stay as they are, eight-bit floats become F16.
    #[default]
    Keep,
    /// F32.
    F32,
    /// F16, but F32 for tensors of one dimension or none, as llama.cpp does it.
    F16,
    /// BF16, but F32 for tensors of one dimension or none.
    Bf16,
    /// Blocks of 32 with a scale; F16 where rows are no multiple of 32, F32 for tensors of one dimension or none.
    Q8_0,
}

/// How a GGUF file is written.
#[derive(Clone, Debug, Default)]
pub struct GgufOptions {
    /// What floating-point tensors become.
    pub weights: GgufWeights,
    /// `general.architecture`, which every reader wants, such as `sd1`, `sdxl` or `llama`. If not given, what the
    /// source's metadata has under that key, or else `unknown`.
    pub architecture: Option<String>,
    /// Wait until the bytes are on the disk.
    pub sync: bool,
}

/// Writes all tensors of a source into one GGUF file, atomically, in bounded memory.
///
/// `progress` hears how many bytes of the source of how many are done, and stops the writing by
/// [`ControlFlow::Break`].
///
/// # Errors
/// [`ConvertError::Unsupported`] for what GGUF cannot hold: more than four dimensions, complex and packed numbers,
/// a NaN or infinity where blocks are asked for; else what the source and the disk say.
pub fn write_gguf(
    source: &dyn Source,
    path: &Path,
    options: &GgufOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Report, ConvertError> {
    let instead = "leave them out (--exclude), or write safetensors";
    refuse_opaque(source.label(), source.opaque(), "a GGUF file", instead)?;
    let mut notes = source.notes().to_vec();
    let plan = plan(source, options.weights, &mut notes)?;
    let prefix = prefix(source, options, &plan)?;
    Sink::write_atomically(source, path, options.sync, progress, |sink| {
        sink.write(&prefix)?;
        let mut tensor_bytes = 0;
        for (index, planned) in plan.iter().enumerate() {
            let mut encoder = Encoder::new(&source.tensors()[index], planned.kind);
            sink.tensor(source, index, &mut |piece, sink| {
                encoder.encode(piece, source.label(), &mut |bytes| sink.write(bytes))
            })?;
            encoder.note_overflow(&mut notes);
            let padding =
                planned.byte_count.next_multiple_of(DEFAULT_ALIGNMENT) - planned.byte_count;
            sink.write(&[0; DEFAULT_ALIGNMENT as usize][..padding as usize])?;
            tensor_bytes += planned.byte_count;
        }
        Ok(Report {
            tensor_count: plan.len() as u64,
            tensor_bytes,
            notes,
        })
    })
}

/// What a tensor becomes.
struct Planned {
    kind: GgmlType,
    byte_count: u64,
}

fn plan(
    source: &dyn Source,
    weights: GgufWeights,
    notes: &mut Vec<Note>,
) -> Result<Vec<Planned>, ConvertError> {
    let refuse = |tensor: &TensorSpec, what: String| {
        Err(ConvertError::unsupported(
            source.label(),
            &tensor.name,
            what,
        ))
    };
    let mut plan = Vec::new();
    for tensor in source.tensors() {
        if tensor.shape.len() > RANK_MAX {
            let rank = tensor.shape.len();
            let what = format!(
                "has {rank} dimensions, and GGUF has room for {RANK_MAX}; leave it out (`--exclude NAME`) or reshape it"
            );
            return refuse(tensor, what);
        }
        if tensor.name.len() > NAME_BYTES_MAX {
            let what = format!(
                "its name has {} bytes; llama.cpp reads no names above {NAME_BYTES_MAX}",
                tensor.name.len()
            );
            notes.push(Note::new(&tensor.name, what));
        }
        let Some(kind) = kind_for(tensor, weights) else {
            let what = format!(
                "is {}, which GGUF cannot hold; cast it to F32 or leave it out (`--exclude NAME`)",
                tensor.dtype
            );
            return refuse(tensor, what);
        };
        if weights == GgufWeights::Q8_0 && kind == GgmlType::F16 {
            let row = tensor.shape.last().copied().unwrap_or(0);
            let what =
                format!("became F16: its rows of {row} are no multiple of 32, as Q8_0 needs");
            notes.push(Note::new(&tensor.name, what));
        }
        if kind.plain() != Some(tensor.dtype) && !is_float(tensor.dtype) {
            let what = format!(
                "widened from {} to {}, which GGUF has",
                tensor.dtype,
                kind.name()
            );
            notes.push(Note::new(&tensor.name, what));
        }
        let elements = tensor
            .shape
            .iter()
            .try_fold(1u64, |all, &dim| all.checked_mul(dim));
        let blocks = elements.map(|elements| elements / kind.block_elements());
        let bytes = blocks.and_then(|blocks| blocks.checked_mul(kind.block_bytes()));
        let Some(byte_count) = bytes.filter(|bytes| *bytes < u64::MAX / 2) else {
            return refuse(
                tensor,
                format!("shape {:?} has no size in bytes", tensor.shape),
            );
        };
        plan.push(Planned { kind, byte_count });
    }
    Ok(plan)
}

fn is_float(dtype: Dtype) -> bool {
    matches!(
        dtype,
        Dtype::F32
            | Dtype::F16
            | Dtype::Bf16
            | Dtype::F64
            | Dtype::F8E4m3
            | Dtype::F8E5m2
            | Dtype::F8E8m0
            | Dtype::F8E4m3Fnuz
            | Dtype::F8E5m2Fnuz
    )
}

/// The type a tensor gets, if GGUF can hold it.
fn kind_for(tensor: &TensorSpec, weights: GgufWeights) -> Option<GgmlType> {
    let kept = match tensor.dtype {
        Dtype::I8 | Dtype::Bool => GgmlType::I8,
        Dtype::I16 | Dtype::U8 => GgmlType::I16,
        Dtype::I32 | Dtype::U16 => GgmlType::I32,
        Dtype::I64 | Dtype::U32 | Dtype::U64 => GgmlType::I64,
        Dtype::F32 => GgmlType::F32,
        Dtype::Bf16 => GgmlType::BF16,
        Dtype::F64 => GgmlType::F64,
        Dtype::F8E8m0 => GgmlType::F32, // its powers of two go beyond F16
        dtype if is_float(dtype) => GgmlType::F16,
        _ => return None,
    };
    if !is_float(tensor.dtype) || weights == GgufWeights::Keep {
        return Some(kept);
    }
    let flat = tensor.shape.len() < 2;
    let rows_fit = tensor
        .shape
        .last()
        .is_some_and(|row| row.is_multiple_of(32));
    Some(match weights {
        GgufWeights::F32 => GgmlType::F32,
        _ if flat => GgmlType::F32,
        GgufWeights::Bf16 => GgmlType::BF16,
        GgufWeights::Q8_0 if rows_fit => GgmlType::Q8_0,
        _ => GgmlType::F16,
    })
}

/// Everything before the tensors, padded.
fn prefix(
    source: &dyn Source,
    options: &GgufOptions,
    plan: &[Planned],
) -> Result<Vec<u8>, ConvertError> {
    let keys = keys(source, options);
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend((plan.len() as u64).to_le_bytes());
    bytes.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in &keys {
        push_text(&mut bytes, key);
        bytes.extend(value);
    }
    let mut offset = 0u64;
    for (tensor, planned) in source.tensors().iter().zip(plan) {
        push_text(&mut bytes, &tensor.name);
        bytes.extend((tensor.shape.len() as u32).to_le_bytes());
        for dim in tensor.shape.iter().rev() {
            bytes.extend(dim.to_le_bytes());
        }
        bytes.extend(planned.kind.id().to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        let padded = planned.byte_count.next_multiple_of(DEFAULT_ALIGNMENT);
        offset = offset.checked_add(padded).ok_or_else(|| {
            ConvertError::unsupported(source.label(), &tensor.name, "ends beyond 2^64 bytes")
        })?;
    }
    bytes.resize(bytes.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
    Ok(bytes)
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Keys with their encoded values, type first: the architecture before all others, as readers expect it.
fn keys(source: &dyn Source, options: &GgufOptions) -> Vec<(String, Vec<u8>)> {
    const ARCHITECTURE: &str = "general.architecture";
    /// These are about the file that was read, not about the one that is written.
    const OURS: [&str; 5] = [
        ARCHITECTURE,
        TYPES_KEY,
        "general.alignment",
        "general.file_type",
        "general.quantization_version",
    ];
    let metadata = source.metadata();
    let types: BTreeMap<String, String> = metadata
        .get(TYPES_KEY)
        .and_then(|json| serde_json::from_str(json).ok())
        .unwrap_or_default();
    let architecture = options.architecture.as_deref();
    let architecture = architecture.or(metadata.get(ARCHITECTURE).map(String::as_str));
    let mut keys = vec![(
        ARCHITECTURE.to_owned(),
        text_value(architecture.unwrap_or("unknown")),
    )];
    // llama.cpp's number for "mostly of this type".
    let file_type = match options.weights {
        GgufWeights::Keep => None,
        GgufWeights::F32 => Some(0),
        GgufWeights::F16 => Some(1),
        GgufWeights::Q8_0 => Some(7),
        GgufWeights::Bf16 => Some(32u32),
    };
    if let Some(number) = file_type {
        keys.push(("general.file_type".into(), u32_value(number)));
    }
    keys.push(("general.quantization_version".into(), u32_value(2)));
    for (key, text) in metadata {
        if !OURS.contains(&&**key) {
            let typed = types.get(key).and_then(|kind| typed_value(kind, text));
            keys.push((key.clone(), typed.unwrap_or_else(|| text_value(text))));
        }
    }
    keys
}

fn text_value(text: &str) -> Vec<u8> {
    let mut bytes = ValueType::String.id().to_le_bytes().to_vec();
    push_text(&mut bytes, text);
    bytes
}

fn u32_value(number: u32) -> Vec<u8> {
    let mut bytes = ValueType::U32.id().to_le_bytes().to_vec();
    bytes.extend(number.to_le_bytes());
    bytes
}

/// A text as the value it was before it was read; `None` if it is no such value (someone changed it).
fn typed_value(kind: &str, text: &str) -> Option<Vec<u8>> {
    let Some(element) = kind
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    else {
        let kind = ValueType::from_name(kind)?;
        let mut bytes = kind.id().to_le_bytes().to_vec();
        push_scalar(&mut bytes, kind, text)?;
        return Some(bytes);
    };
    let element = ValueType::from_name(element)?;
    let list: Vec<Json> = serde_json::from_str(text).ok()?;
    let mut bytes = ValueType::Array.id().to_le_bytes().to_vec();
    bytes.extend(element.id().to_le_bytes());
    bytes.extend((list.len() as u64).to_le_bytes());
    for value in list {
        match (element, value) {
            (ValueType::String, Json::String(text)) => push_text(&mut bytes, &text),
            (ValueType::String | ValueType::Array, _) => return None,
            (number, Json::String(text)) => push_scalar(&mut bytes, number, &text)?,
            (number, value) => push_scalar(&mut bytes, number, &value.to_string())?,
        }
    }
    Some(bytes)
}

fn push_scalar(bytes: &mut Vec<u8>, kind: ValueType, text: &str) -> Option<()> {
    match kind {
        ValueType::U8 => bytes.extend(text.parse::<u8>().ok()?.to_le_bytes()),
        ValueType::I8 => bytes.extend(text.parse::<i8>().ok()?.to_le_bytes()),
        ValueType::U16 => bytes.extend(text.parse::<u16>().ok()?.to_le_bytes()),
        ValueType::I16 => bytes.extend(text.parse::<i16>().ok()?.to_le_bytes()),
        ValueType::U32 => bytes.extend(text.parse::<u32>().ok()?.to_le_bytes()),
        ValueType::I32 => bytes.extend(text.parse::<i32>().ok()?.to_le_bytes()),
        ValueType::F32 => bytes.extend(text.parse::<f32>().ok()?.to_le_bytes()),
        ValueType::U64 => bytes.extend(text.parse::<u64>().ok()?.to_le_bytes()),
        ValueType::I64 => bytes.extend(text.parse::<i64>().ok()?.to_le_bytes()),
        ValueType::F64 => bytes.extend(text.parse::<f64>().ok()?.to_le_bytes()),
        ValueType::Bool => bytes.push(u8::from(text.parse::<bool>().ok()?)),
        ValueType::String | ValueType::Array => return None,
    }
    Some(())
}

/// One tensor's bytes on their way from its dtype to a type of ggml's.
struct Encoder<'a> {
    tensor: &'a TensorSpec,
    kind: GgmlType,
    /// Pieces end anywhere; elements and blocks must not be cut.
    regroup: Regroup,
    numbers: Vec<f32>,
    encoded: Vec<u8>,
    /// Finite numbers that became infinite.
    overflow_count: u64,
}

impl<'a> Encoder<'a> {
    fn new(tensor: &'a TensorSpec, kind: GgmlType) -> Encoder<'a> {
        let unit = tensor.dtype.bits().div_ceil(8) * kind.block_elements();
        Encoder {
            tensor,
            kind,
            regroup: Regroup::new(unit as usize),
            numbers: Vec::new(),
            encoded: Vec::new(),
            overflow_count: 0,
        }
    }

    fn encode(
        &mut self,
        piece: &[u8],
        label: &str,
        file: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        if self.kind.plain() == Some(self.tensor.dtype) {
            return file(piece);
        }
        let mut regroup = std::mem::take(&mut self.regroup);
        let fed = regroup.feed(piece, &mut |whole| {
            self.encode_whole(whole, label)?;
            file(&self.encoded)
        });
        self.regroup = regroup;
        fed
    }

    fn encode_whole(&mut self, bytes: &[u8], label: &str) -> Result<(), ConvertError> {
        let element_bytes = (self.tensor.dtype.bits() / 8) as usize;
        if !is_float(self.tensor.dtype) {
            return self.widen(bytes, element_bytes, label);
        }
        if let (Dtype::F64, Some(dtype)) = (self.tensor.dtype, self.kind.plain()) {
            let elements = bytes.as_chunks().0.iter().copied();
            let numbers: Vec<f64> = elements.map(f64::from_le_bytes).collect();
            let size = (dtype.bits() / 8) as usize;
            self.encoded.resize(numbers.len() * size, 0);
            let report = encode_f64_into(dtype, &numbers, &mut self.encoded);
            let report = report.expect("a float dtype, and room for it");
            self.overflow_count += report.overflow_count;
            return Ok(());
        }
        self.numbers.resize(bytes.len() / element_bytes, 0.0);
        let decoded = decode_f32_into(self.tensor.dtype, bytes, &mut self.numbers);
        decoded.map_err(|error| {
            ConvertError::unsupported(label, &self.tensor.name, error.to_string())
        })?;
        if self.kind == GgmlType::Q8_0 {
            return self.quantize(label);
        }
        let dtype = self.kind.plain().expect("only Q8_0 has blocks here");
        let size = (dtype.bits() / 8) as usize;
        self.encoded.resize(self.numbers.len() * size, 0);
        let report = encode_into(dtype, &self.numbers, &mut self.encoded);
        self.overflow_count += report
            .expect("a float dtype, and room for it")
            .overflow_count;
        Ok(())
    }

    fn quantize(&mut self, label: &str) -> Result<(), ConvertError> {
        if let Some(number) = self.numbers.iter().find(|number| !number.is_finite()) {
            let what = format!("holds {number}, which Q8_0 cannot; choose F16 or F32");
            return Err(ConvertError::unsupported(label, &self.tensor.name, what));
        }
        let blocks = self.numbers.as_chunks().0;
        let scales: Vec<f32> = blocks.iter().map(q8_0_scale).collect();
        let mut halves = vec![0; scales.len() * 2];
        let report = encode_into(Dtype::F16, &scales, &mut halves);
        self.overflow_count += report.expect("room for the scales").overflow_count * 32;
        self.encoded.clear();
        for ((block, scale), half) in blocks.iter().zip(scales).zip(halves.as_chunks::<2>().0) {
            self.encoded.extend(half);
            self.encoded.extend(q8_0_quants(block, scale));
        }
        Ok(())
    }

    /// Whole numbers to the next wider type.
    fn widen(
        &mut self,
        bytes: &[u8],
        element_bytes: usize,
        label: &str,
    ) -> Result<(), ConvertError> {
        let wide_bytes = self.kind.block_bytes() as usize;
        self.encoded.clear();
        for element in bytes.chunks_exact(element_bytes) {
            if self.tensor.dtype == Dtype::U64 && element[7] >= 0x80 {
                let what =
                    "holds a number above 2^63, which GGUF cannot; leave it out (`--exclude NAME`)";
                return Err(ConvertError::unsupported(label, &self.tensor.name, what));
            }
            // All of them are without sign: BOOL, U8, U16, U32, U64.
            self.encoded.extend_from_slice(element);
            let zeros = wide_bytes - element_bytes;
            self.encoded.extend_from_slice(&[0; 8][..zeros]);
        }
        Ok(())
    }

    fn note_overflow(&self, notes: &mut Vec<Note>) {
        if self.overflow_count > 0 {
            let (count, kind) = (self.overflow_count, self.kind.name());
            let what = format!(
                "{} too large for {kind}, now infinite",
                plural(count, "number")
            );
            notes.push(Note::new(&self.tensor.name, what));
        }
    }
}

/// The scale of a block: its largest magnitude becomes 127.
///
/// Source, also of [`q8_0_quants`]: `quantize_row_q8_0_ref` in ggml's `ggml-quants.c`.
fn q8_0_scale(numbers: &[f32; 32]) -> f32 {
    numbers
        .iter()
        .fold(0f32, |max, number| max.max(number.abs()))
        / 127.0
}

/// A block's numbers over its scale (before that is rounded), rounded half away from zero.
fn q8_0_quants(numbers: &[f32; 32], scale: f32) -> [u8; 32] {
    // A scale so small that its reciprocal overflows is zero as a half: so is every number of the block.
    let inverse = Some(1.0 / scale).filter(|inverse| inverse.is_finite());
    let inverse = inverse.unwrap_or(0.0);
    numbers.map(|number| (number * inverse).round() as i8 as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the package `gguf` (`tools/golden/foreign.py`): the same bits.
    #[test]
    fn blocks_agree_with_the_reference() {
        let path = "/../../testdata/golden/convert/gguf_blocks.safetensors";
        let path = format!("{}{path}", env!("CARGO_MANIFEST_DIR"));
        let golden = safelight_store::Checkpoint::open(std::path::Path::new(&path)).unwrap();
        let numbers = golden.read_bytes("quantize.numbers").unwrap();
        let (name, dtype, shape) = ("w".to_owned(), Dtype::F32, vec![8, 64]);
        let tensor = TensorSpec { name, dtype, shape };
        for kind in [GgmlType::Q8_0, GgmlType::BF16] {
            let expected = golden
                .read_bytes(&format!("quantize.{}", kind.name()))
                .unwrap();
            for piece_bytes in [1, 100, 4096] {
                let (mut encoder, mut encoded) = (Encoder::new(&tensor, kind), Vec::new());
                for piece in numbers.chunks(piece_bytes) {
                    let mut file = |bytes: &[u8]| {
                        encoded.extend_from_slice(bytes);
                        Ok(())
                    };
                    encoder.encode(piece, "x", &mut file).unwrap();
                }
                assert!(
                    encoded == expected,
                    "{} in pieces of {piece_bytes}",
                    kind.name()
                );
            }
        }
    }

    #[test]
    fn wide_numbers_are_rounded_once_and_counted() {
        let (name, dtype, shape) = ("w".to_owned(), Dtype::F64, vec![2, 1]);
        let tensor = TensorSpec { name, dtype, shape };
        let above_a_half = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        let bytes = [above_a_half, 1e50].map(f64::to_le_bytes);
        for (kind, expected) in [
            (GgmlType::F16, &[0x01, 0x3c, 0x00, 0x7c][..]),
            (GgmlType::F32, &[0, 0x10, 0x80, 0x3f, 0, 0, 0x80, 0x7f]),
        ] {
            let (mut encoder, mut encoded) = (Encoder::new(&tensor, kind), Vec::new());
            let mut file = |bytes: &[u8]| {
                encoded.extend_from_slice(bytes);
                Ok(())
            };
            encoder
                .encode(bytes.as_flattened(), "x", &mut file)
                .unwrap();
            assert_eq!((&encoded[..], encoder.overflow_count), (expected, 1));
        }
    }

    #[track_caller]
    fn check_kind(dtype: Dtype, shape: &[u64], weights: GgufWeights, expected: Option<GgmlType>) {
        let (name, shape) = ("x".to_owned(), shape.to_vec());
        assert_eq!(
            kind_for(&TensorSpec { name, dtype, shape }, weights),
            expected
        );
    }

    #[test]
    fn types_follow_llama_cpp() {
        use GgufWeights::{Bf16, F16, F32, Keep, Q8_0};
        check_kind(Dtype::F16, &[4, 64], Q8_0, Some(GgmlType::Q8_0));
        check_kind(Dtype::F16, &[4, 65], Q8_0, Some(GgmlType::F16));
        check_kind(Dtype::F16, &[64], Q8_0, Some(GgmlType::F32));
        check_kind(Dtype::Bf16, &[4, 64], F16, Some(GgmlType::F16));
        check_kind(Dtype::F32, &[], F16, Some(GgmlType::F32));
        check_kind(Dtype::F64, &[2, 2], F32, Some(GgmlType::F32));
        check_kind(Dtype::F64, &[2, 2], Keep, Some(GgmlType::F64));
        check_kind(Dtype::F8E4m3, &[2, 2], Keep, Some(GgmlType::F16));
        check_kind(Dtype::F8E8m0, &[2, 2], Keep, Some(GgmlType::F32));
        check_kind(Dtype::F32, &[2, 2], Bf16, Some(GgmlType::BF16));
        check_kind(Dtype::I64, &[2, 32], Q8_0, Some(GgmlType::I64));
        check_kind(Dtype::U8, &[2], F16, Some(GgmlType::I16));
        check_kind(Dtype::Bool, &[2], F16, Some(GgmlType::I8));
        check_kind(Dtype::C64, &[2], F32, None);
        check_kind(Dtype::F4, &[2], F32, None);
    }

    #[test]
    fn typed_values_come_back() {
        assert_eq!(
            typed_value("u32", "7"),
            Some([4u32.to_le_bytes(), 7u32.to_le_bytes()].concat())
        );
        assert_eq!(typed_value("bool", "true"), Some(vec![7, 0, 0, 0, 1]));
        assert_eq!(typed_value("f32", "NaN").map(|bytes| bytes.len()), Some(8));
        let list = typed_value("[f32]", "[1.5,\"inf\"]").unwrap();
        assert_eq!(
            list[16..],
            [1.5f32.to_le_bytes(), f32::INFINITY.to_le_bytes()].concat()
        );
        for (kind, text) in [
            ("u8", "256"),
            ("u32", "x"),
            ("[u8]", "7"),
            ("[u8]", "[-1]"),
            ("[str]", "[1]"),
            ("new", "1"),
        ] {
            assert_eq!(typed_value(kind, text), None, "{kind} {text}");
        }
    }
}
