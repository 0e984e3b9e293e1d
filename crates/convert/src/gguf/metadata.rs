//! GGUF's typed keys as strings for `__metadata__`, and back.
//!
//! Strings stay as they are, numbers and truth values become their text, arrays JSON. The types of all that are not
//! strings stand as JSON under [`TYPES_KEY`], so that the writer can restore them.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value as Json;

use super::{DEFAULT_ALIGNMENT, Reader};
use crate::error::ConvertError;
use crate::source::{LimitName, Limits, Note};

/// Where the types of keys stand: a JSON object of key to type, such as `"u32"` or `"[str]"`.
pub(crate) const TYPES_KEY: &str = "gguf.types";

/// An array whose JSON is longer than this is left out, with a note: tokenisers have hundreds of thousands of entries.
const ARRAY_BYTES_MAX: usize = 64 * 1024;

/// Arrays of arrays may be this deep; ggml itself has none.
const DEPTH_MAX: u32 = 4;

/// All that the keys say.
pub(crate) struct Keys {
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) notes: Vec<Note>,
    pub(crate) alignment: u64,
}

/// A value's type, by its number in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    const ALL: [(ValueType, &'static str); 13] = [
        (ValueType::U8, "u8"),
        (ValueType::I8, "i8"),
        (ValueType::U16, "u16"),
        (ValueType::I16, "i16"),
        (ValueType::U32, "u32"),
        (ValueType::I32, "i32"),
        (ValueType::F32, "f32"),
        (ValueType::Bool, "bool"),
        (ValueType::String, "str"),
        (ValueType::Array, "array"),
        (ValueType::U64, "u64"),
        (ValueType::I64, "i64"),
        (ValueType::F64, "f64"),
    ];

    pub(crate) fn id(self) -> u32 {
        self as u32
    }

    fn from_id(id: u32) -> Option<ValueType> {
        let found = ValueType::ALL.get(usize::try_from(id).ok()?);
        found.map(|found| found.0)
    }

    fn name(self) -> &'static str {
        ValueType::ALL[self as usize].1
    }

    pub(crate) fn from_name(name: &str) -> Option<ValueType> {
        let found = ValueType::ALL.iter().find(|found| found.1 == name);
        found.map(|found| found.0)
    }

    /// Bytes of a number or truth value.
    fn size(self) -> Option<u64> {
        Some(match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
            ValueType::U16 | ValueType::I16 => 2,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
            ValueType::U64 | ValueType::I64 | ValueType::F64 => 8,
            ValueType::String | ValueType::Array => return None,
        })
    }
}

/// Reads `count` keys with their values.
pub(crate) fn read(
    reader: &mut Reader<'_>,
    count: u64,
    limits: &Limits,
) -> Result<Keys, ConvertError> {
    let mut keys = Keys {
        metadata: BTreeMap::new(),
        notes: Vec::new(),
        alignment: DEFAULT_ALIGNMENT,
    };
    let mut types = serde_json::Map::new();
    let mut names = HashSet::new();
    let mut kept_bytes = 0u64;
    for _ in 0..count {
        let key = reader.name()?;
        if !names.insert(key.clone()) {
            return Err(reader.input.malformed(key, "two values have this key"));
        }
        let kind = value_type(reader, &key)?;
        let value = read_value(reader, &key, kind, limits)?;
        if key == "general.alignment" {
            keys.alignment = alignment(reader, &value)?;
        }
        kept_bytes += (2 * key.len() + value.text.len()) as u64 + 64;
        let limit = limits.bound(LimitName::Memory);
        reader
            .input
            .limited(&key, "bytes of keys and values", kept_bytes, limit)?;
        if let Some(count) = value.left_out {
            let what = format!("dropped: a list of {count}, too long for a header");
            keys.notes.push(Note::new(key, what));
            continue;
        }
        if value.kind != "str" {
            types.insert(key.clone(), Json::String(value.kind));
        }
        keys.metadata.insert(key, value.text);
    }
    if !types.is_empty() {
        let types = Json::Object(types).to_string();
        keys.metadata.entry(TYPES_KEY.to_owned()).or_insert(types);
    }
    Ok(keys)
}

fn alignment(reader: &Reader<'_>, value: &Value) -> Result<u64, ConvertError> {
    let number = value.text.parse().unwrap_or(0u64);
    if value.kind == "u32" && number.is_power_of_two() {
        return Ok(number);
    }
    let problem = format!(
        "the alignment must be a u32 and a power of two, not {} ({})",
        value.text, value.kind
    );
    Err(reader.input.malformed("general.alignment", problem))
}

/// A value as text.
struct Value {
    /// Its type, as [`TYPES_KEY`] has it.
    kind: String,
    text: String,
    /// Elements of an array that is too long to keep.
    left_out: Option<u64>,
}

fn value_type(reader: &mut Reader<'_>, key: &str) -> Result<ValueType, ConvertError> {
    let id = reader.u32()?;
    ValueType::from_id(id).ok_or_else(|| {
        let problem = format!("a value of type {id}; types end at 12");
        reader.input.malformed(key, problem)
    })
}

fn read_value(
    reader: &mut Reader<'_>,
    key: &str,
    kind: ValueType,
    limits: &Limits,
) -> Result<Value, ConvertError> {
    match kind {
        ValueType::String => {
            let text = text(reader, key, limits)?;
            Ok(Value {
                kind: "str".into(),
                text,
                left_out: None,
            })
        }
        ValueType::Array => {
            let mut list = List {
                kind: String::new(),
                json: Some(String::new()),
                limits,
            };
            let count = list.read(reader, key, 0)?;
            Ok(Value {
                kind: list.kind,
                left_out: list.json.is_none().then_some(count),
                text: list.json.unwrap_or_default(),
            })
        }
        number => Ok(Value {
            kind: number.name().into(),
            text: scalar(reader, key, number)?,
            left_out: None,
        }),
    }
}

fn text(reader: &mut Reader<'_>, key: &str, limits: &Limits) -> Result<String, ConvertError> {
    let len = reader.count()?;
    reader
        .input
        .limited(key, "bytes of text", len, limits.bound(LimitName::Memory))?;
    // Old writers put bytes of other encodings here; nothing hangs on them.
    Ok(String::from_utf8_lossy(reader.cursor.take(len)?).into_owned())
}

/// A number or truth value as text. Floats have as many digits as tell them apart.
fn scalar(reader: &mut Reader<'_>, key: &str, kind: ValueType) -> Result<String, ConvertError> {
    let size = kind.size().expect("no string and no array") as usize;
    let mut bytes = [0; 8];
    bytes[..size].copy_from_slice(reader.cursor.take(size as u64)?);
    if reader.big_endian {
        bytes[..size].reverse();
    }
    let bits = u64::from_le_bytes(bytes);
    Ok(match kind {
        ValueType::U8 | ValueType::U16 | ValueType::U32 | ValueType::U64 => bits.to_string(),
        ValueType::I8 => (bits as i8).to_string(),
        ValueType::I16 => (bits as i16).to_string(),
        ValueType::I32 => (bits as i32).to_string(),
        ValueType::I64 => (bits as i64).to_string(),
        ValueType::F32 => f32::from_bits(bits as u32).to_string(),
        ValueType::F64 => f64::from_bits(bits).to_string(),
        ValueType::Bool if bits > 1 => {
            let problem = format!("the truth value {bits}; only 0 and 1 are");
            return Err(reader.input.malformed(key, problem));
        }
        _ => (bits == 1).to_string(),
    })
}

/// An array on its way to JSON.
struct List<'a> {
    kind: String,
    /// `None` once it is too long.
    json: Option<String>,
    limits: &'a Limits,
}

impl List<'_> {
    /// Reads one array and says how many elements it has.
    fn read(
        &mut self,
        reader: &mut Reader<'_>,
        key: &str,
        depth: u32,
    ) -> Result<u64, ConvertError> {
        let element = value_type(reader, key)?;
        let count = reader.count()?;
        let limit = u64::from(DEPTH_MAX);
        reader
            .input
            .limited(key, "arrays within each other", u64::from(depth), limit)?;
        if element == ValueType::Array {
            self.kind = "[array]".into();
        } else if depth == 0 {
            self.kind = format!("[{}]", element.name());
        }
        self.push("[");
        for position in 0..count {
            match element.size() {
                Some(size) if self.json.is_none() => {
                    let left = (count - position).saturating_mul(size);
                    reader.cursor.skip(left)?;
                    break;
                }
                _ => self.element(reader, key, element, position, depth)?,
            }
        }
        self.push("]");
        Ok(count)
    }

    fn element(
        &mut self,
        reader: &mut Reader<'_>,
        key: &str,
        element: ValueType,
        position: u64,
        depth: u32,
    ) -> Result<(), ConvertError> {
        if position > 0 {
            self.push(",");
        }
        match element {
            ValueType::Array => drop(self.read(reader, key, depth + 1)?),
            ValueType::String if self.json.is_none() => {
                let len = reader.count()?;
                reader.cursor.skip(len)?;
            }
            ValueType::String => {
                let text = text(reader, key, self.limits)?;
                self.push(&Json::String(text).to_string());
            }
            number => {
                let text = scalar(reader, key, number)?;
                // JSON has no NaN and no infinity.
                let quoted = matches!(&*text, "NaN" | "inf" | "-inf");
                self.push(&if quoted { format!("\"{text}\"") } else { text });
            }
        }
        Ok(())
    }

    fn push(&mut self, text: &str) {
        let Some(json) = &mut self.json else { return };
        if json.len() + text.len() > ARRAY_BYTES_MAX {
            self.json = None;
        } else {
            json.push_str(text);
        }
    }
}
