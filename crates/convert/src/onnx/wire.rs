//! The protobuf wire format, read where it lies: fields are told with their places, and nothing is built.
//!
//! Source: protobuf.dev, "Encoding".

use crate::error::ConvertError;
use crate::input::{Cursor, Input};

/// A run of bytes in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) at: u64,
    pub(super) len: u64,
}

impl Run {
    pub(super) fn end(self) -> u64 {
        self.at + self.len
    }
}

/// What a field holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Varint(u64),
    /// Four or eight bytes.
    Fixed(Run),
    /// A message, a text, bytes or packed numbers.
    Bytes(Run),
}

/// A field of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub(super) number: u64,
    pub(super) value: Value,
    /// Where its key begins.
    pub(super) at: u64,
}

impl Field {
    /// Its message, text or bytes.
    pub(super) fn bytes(self, wire: &Wire<'_>) -> Result<Run, ConvertError> {
        match self.value {
            Value::Bytes(run) => Ok(run),
            _ => Err(wire.wrong(self, "bytes")),
        }
    }

    /// Its whole number.
    pub(super) fn varint(self, wire: &Wire<'_>) -> Result<u64, ConvertError> {
        match self.value {
            Value::Varint(number) => Ok(number),
            _ => Err(wire.wrong(self, "a whole number")),
        }
    }
}

/// Reads a file's fields.
pub(super) struct Wire<'a> {
    pub(super) input: &'a Input<'a>,
    cursor: Cursor<'a>,
}

impl<'a> Wire<'a> {
    pub(super) fn new(input: &'a Input<'a>) -> Wire<'a> {
        let cursor = input.cursor(0);
        Wire { input, cursor }
    }

    fn wrong(&self, field: Field, expected: &str) -> ConvertError {
        let problem = format!(
            "field {} at byte {} is not {expected}, which ONNX has there",
            field.number, field.at
        );
        self.input.malformed("", problem)
    }

    /// The field at `at` of a message that ends at `end`, and where the next one begins; `None` at the end.
    pub(super) fn field(
        &mut self,
        at: u64,
        end: u64,
    ) -> Result<Option<(Field, u64)>, ConvertError> {
        if at >= end {
            return Ok(None);
        }
        let (key, next) = self.varint(at, end)?;
        let number = key >> 3;
        let fixed = |len| (Value::Fixed(Run { at: next, len }), next.checked_add(len));
        let (value, next) = match key & 7 {
            0 => {
                let (value, next) = self.varint(next, end)?;
                (Value::Varint(value), Some(next))
            }
            1 => fixed(8),
            2 => {
                let (len, at) = self.varint(next, end)?;
                (Value::Bytes(Run { at, len }), at.checked_add(len))
            }
            5 => fixed(4),
            other => {
                let problem =
                    format!("wire type {other} at byte {at}, which protobuf 3 does not have");
                return Err(self.input.malformed("", problem));
            }
        };
        if number == 0 || number > 0x1fff_ffff {
            let problem =
                format!("field number {number} at byte {at}, which protobuf does not have");
            return Err(self.input.malformed("", problem));
        }
        match next {
            Some(next) if next <= end => Ok(Some((Field { number, value, at }, next))),
            _ => {
                let problem = format!(
                    "field {number} at byte {at} reaches beyond its message, which ends at byte {end}; is the file whole?"
                );
                Err(self.input.malformed("", problem))
            }
        }
    }

    /// The variable-length number at `at`, and where it ends.
    pub(super) fn varint(&mut self, at: u64, end: u64) -> Result<(u64, u64), ConvertError> {
        self.cursor.at = at;
        let bytes = self.cursor.take(end.saturating_sub(at).min(10))?;
        let mut number = 0u64;
        for (position, &byte) in bytes.iter().enumerate() {
            // The tenth byte holds one bit.
            if position == 9 && byte > 1 {
                break;
            }
            number |= u64::from(byte & 0x7f) << (7 * position);
            if byte < 0x80 {
                return Ok((number, at + position as u64 + 1));
            }
        }
        let problem = format!("the variable-length number at byte {at} does not end");
        Err(self.input.malformed("", problem))
    }

    /// Bytes of at most `limit`; `None` if there are more.
    pub(super) fn bytes(&mut self, run: Run, limit: u64) -> Result<Option<&[u8]>, ConvertError> {
        if run.len > limit {
            return Ok(None);
        }
        self.cursor.at = run.at;
        self.cursor.take(run.len).map(Some)
    }
}
