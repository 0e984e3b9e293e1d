//! How a tensor's numbers lie in an ONNX file: as plain bytes, or as protobuf numbers of the nearest kind.
//!
//! Source: onnx/onnx.proto, `TensorProto`.

use safelight_format::Dtype;

use super::wire::{Run, Value, Wire};
use crate::error::ConvertError;
use crate::input::Input;
use crate::source::PIECE_BYTES;

/// What an ONNX data type becomes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) dtype: Dtype,
    /// The field its numbers stand in, if not in `raw_data`.
    pub(super) field: u64,
    /// Bits of an element in the file; less than eight are packed, the lowest first.
    pub(super) bits: u64,
    /// Whether numbers in a field are signed.
    signed: bool,
}

/// The fields of typed numbers.
pub(super) const FLOATS: u64 = 4;
pub(super) const INT32S: u64 = 5;
pub(super) const INT64S: u64 = 7;
pub(super) const DOUBLES: u64 = 10;
pub(super) const UINT64S: u64 = 11;

/// `TensorProto.DataType`, by number.
pub(super) fn kind(id: u64) -> Option<Kind> {
    let (name, dtype, field, bits, signed) = match id {
        1 => ("FLOAT", Dtype::F32, FLOATS, 32, false),
        2 => ("UINT8", Dtype::U8, INT32S, 8, false),
        3 => ("INT8", Dtype::I8, INT32S, 8, true),
        4 => ("UINT16", Dtype::U16, INT32S, 16, false),
        5 => ("INT16", Dtype::I16, INT32S, 16, true),
        6 => ("INT32", Dtype::I32, INT32S, 32, true),
        7 => ("INT64", Dtype::I64, INT64S, 64, true),
        9 => ("BOOL", Dtype::Bool, INT32S, 8, false),
        10 => ("FLOAT16", Dtype::F16, INT32S, 16, false),
        11 => ("DOUBLE", Dtype::F64, DOUBLES, 64, false),
        12 => ("UINT32", Dtype::U32, UINT64S, 32, false),
        13 => ("UINT64", Dtype::U64, UINT64S, 64, false),
        14 => ("COMPLEX64", Dtype::C64, FLOATS, 64, false),
        16 => ("BFLOAT16", Dtype::Bf16, INT32S, 16, false),
        17 => ("FLOAT8E4M3FN", Dtype::F8E4m3, INT32S, 8, false),
        18 => ("FLOAT8E4M3FNUZ", Dtype::F8E4m3Fnuz, INT32S, 8, false),
        19 => ("FLOAT8E5M2", Dtype::F8E5m2, INT32S, 8, false),
        20 => ("FLOAT8E5M2FNUZ", Dtype::F8E5m2Fnuz, INT32S, 8, false),
        21 => ("UINT4", Dtype::U8, INT32S, 4, false),
        22 => ("INT4", Dtype::I8, INT32S, 4, true),
        23 => ("FLOAT4E2M1", Dtype::F4, INT32S, 4, false),
        24 => ("FLOAT8E8M0", Dtype::F8E8m0, INT32S, 8, false),
        25 => ("UINT2", Dtype::U8, INT32S, 2, false),
        26 => ("INT2", Dtype::I8, INT32S, 2, true),
        _ => return None,
    };
    Some(Kind {
        name,
        dtype,
        field,
        bits,
        signed,
    })
}

impl Kind {
    /// Whether elements come out wider than they are in the file. (Safetensors has four-bit floats: those stay as they are.)
    pub(super) fn is_packed(&self) -> bool {
        self.bits < self.dtype.bits()
    }

    /// Bytes of so many elements in the file.
    pub(super) fn stored_bytes(&self, elements: u64) -> Option<u64> {
        elements.checked_mul(self.bits).map(|bits| bits.div_ceil(8))
    }

    /// Numbers in a field for so many elements: two for a complex one, one for several packed ones.
    fn numbers(&self, elements: u64) -> Option<u64> {
        match self.field {
            FLOATS => elements.checked_mul(self.bits / 32),
            _ if self.bits < 8 => self.stored_bytes(elements),
            _ => Some(elements),
        }
    }

    /// Bytes that a number in a field has in the tensor (before unpacking).
    fn number_bytes(&self) -> usize {
        match self.field {
            FLOATS => 4,
            _ => self.bits.div_ceil(8) as usize,
        }
    }

    /// Bytes of a number in the file, if that is always the same.
    fn fixed_bytes(&self) -> Option<u64> {
        match self.field {
            FLOATS => Some(4),
            DOUBLES => Some(8),
            _ => None,
        }
    }
}

/// A run of numbers in a field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    pub(super) run: Run,
    /// One after the other; else each has its key before it.
    pub(super) packed: bool,
}

/// Adds a field's value to the runs of its tensor; single ones next to each other are one run.
pub(super) fn add(runs: &mut Vec<Numbers>, value: Value, at: u64, next: u64) {
    if let Value::Bytes(run) = value {
        runs.push(Numbers { run, packed: true });
        return;
    }
    match runs.last_mut() {
        Some(last) if !last.packed && last.run.end() == at => last.run.len = next - last.run.at,
        _ => {
            let run = Run { at, len: next - at };
            runs.push(Numbers { run, packed: false });
        }
    }
}

/// Hands a tensor's numbers on as its bytes; refuses other than `elements`.
pub(super) fn read(
    input: &Input,
    name: &str,
    kind: Kind,
    elements: u64,
    runs: &[Numbers],
    out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    let expected = kind.numbers(elements).unwrap_or(u64::MAX);
    let size = kind.number_bytes();
    let mut reader = Reader {
        wire: Wire::new(input),
        kind,
        name,
        there: 0,
        buffer: Vec::with_capacity(PIECE_BYTES.min(expected.saturating_mul(size as u64) as usize)),
    };
    let mut unpack = Unpack {
        kind,
        left: elements,
    };
    for numbers in runs {
        let mut at = numbers.run.at;
        while at < numbers.run.end() {
            if reader.there == expected {
                let problem = format!("more than the {expected} numbers that its shape says");
                return Err(input.malformed(name, problem));
            }
            at = reader.number(numbers, at)?;
            if reader.buffer.len() + size > PIECE_BYTES {
                unpack.pass(&reader.buffer, out)?;
                reader.buffer.clear();
            }
        }
    }
    if reader.there != expected {
        let problem = format!("{} numbers, but its shape says {expected}", reader.there);
        return Err(input.malformed(name, problem));
    }
    unpack.pass(&reader.buffer, out)
}

struct Reader<'a> {
    wire: Wire<'a>,
    kind: Kind,
    name: &'a str,
    there: u64,
    buffer: Vec<u8>,
}

impl Reader<'_> {
    /// Reads the number at `at`; gives the next one's place.
    fn number(&mut self, numbers: &Numbers, at: u64) -> Result<u64, ConvertError> {
        let end = numbers.run.end();
        let (value, next) = if numbers.packed {
            match self.kind.fixed_bytes() {
                Some(len) if end - at < len => {
                    let problem = format!("{} bytes at byte {at} are no number of {len}", end - at);
                    return Err(self.wire.input.malformed(self.name, problem));
                }
                Some(len) => (Value::Fixed(Run { at, len }), at + len),
                None => {
                    let (number, next) = self.wire.varint(at, end)?;
                    (Value::Varint(number), next)
                }
            }
        } else {
            match self.wire.field(at, end)? {
                Some((field, next)) => (field.value, next),
                None => return Ok(end),
            }
        };
        self.there += 1;
        match (value, self.kind.fixed_bytes()) {
            (Value::Fixed(run), Some(len)) if run.len == len => {
                let bytes = self.wire.bytes(run, 8)?.unwrap_or_default();
                self.buffer.extend_from_slice(bytes);
            }
            (Value::Varint(number), None) => self.whole(number, at)?,
            _ => {
                let problem = format!(
                    "the number at byte {at} is not of the kind that {} has",
                    self.kind.name
                );
                return Err(self.wire.input.malformed(self.name, problem));
            }
        }
        Ok(next)
    }

    /// A whole number, if it fits into an element.
    fn whole(&mut self, number: u64, at: u64) -> Result<(), ConvertError> {
        let size = self.kind.number_bytes();
        let bits = size as u32 * 8;
        // A packed element's sign is its own affair: the field holds its byte.
        let signed = self.kind.signed && !self.kind.is_packed();
        let fits = match bits {
            64 => true,
            _ if signed => {
                let number = number as i64;
                number >> (bits - 1) == 0 || number >> (bits - 1) == -1
            }
            _ => number >> bits == 0,
        };
        if !fits {
            let problem = format!(
                "the number {} at byte {at} does not fit into {}",
                number as i64, self.kind.name
            );
            return Err(self.wire.input.malformed(self.name, problem));
        }
        self.buffer.extend_from_slice(&number.to_le_bytes()[..size]);
        Ok(())
    }
}

/// Makes a byte of each packed element.
pub(super) struct Unpack {
    pub(super) kind: Kind,
    /// Elements still to come: the last byte may have room for more.
    pub(super) left: u64,
}

impl Unpack {
    /// Hands a piece on: as it is, or unpacked.
    pub(super) fn pass(
        &mut self,
        piece: &[u8],
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        if piece.is_empty() {
            return Ok(());
        }
        if !self.kind.is_packed() {
            return out(piece);
        }
        let bits = self.kind.bits as u32;
        let mut bytes = Vec::new();
        for chunk in piece.chunks(PIECE_BYTES / 8) {
            bytes.clear();
            for &byte in chunk {
                for shift in (0..8).step_by(bits as usize) {
                    let high = byte >> shift << (8 - bits);
                    bytes.push(match self.kind.signed {
                        true => (high as i8 >> (8 - bits)) as u8,
                        false => high >> (8 - bits),
                    });
                }
            }
            bytes.truncate(self.left.min(bytes.len() as u64) as usize);
            self.left -= bytes.len() as u64;
            if !bytes.is_empty() {
                out(&bytes)?;
            }
        }
        Ok(())
    }
}
