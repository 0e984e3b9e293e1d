//! A header read as leniently as possible: of each entry, what makes sense.

use std::fmt;

use safelight_format::{Dtype, WriteError};
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// What an entry of the header says. A header may have millions: only what is needed is kept of each.
pub(super) enum Said {
    Metadata(Value),
    Tensor(SaidTensor),
}

/// The fields of a tensor, as far as they make sense.
#[derive(Default)]
pub(super) struct SaidTensor {
    /// The type, or the unknown one's name.
    pub(super) dtype: Option<Result<Dtype, String>>,
    pub(super) shape: Option<Vec<u64>>,
    pub(super) offsets: Option<Offsets>,
}

/// What `data_offsets` says, if it is a list of whole numbers.
#[derive(Clone, Copy)]
pub(super) enum Offsets {
    Two(u64, u64),
    /// So many of them.
    Other(usize),
}

impl SaidTensor {
    /// Takes a field by its place in an entry that is a list, which readers accept too.
    fn set(&mut self, place: usize, value: Any) {
        match (place, value) {
            // `"F32"`, or `{"F32":null}`, which readers accept too.
            (0, Any::Text(name) | Any::Wrapped(name)) => {
                self.dtype = Some(Dtype::from_name(&name).ok_or(name));
            }
            (0, _) => self.dtype = None,
            (1, Any::Numbers(shape)) => self.shape = Some(shape),
            (1, _) => self.shape = None,
            (2, Any::Numbers(offsets)) => {
                self.offsets = Some(match offsets[..] {
                    [start, end] => Offsets::Two(start, end),
                    _ => Offsets::Other(offsets.len()),
                });
            }
            (2, _) => self.offsets = None,
            _ => {}
        }
    }

    /// Where the tensor starts and ends, counted from where tensors start; why not, if that makes no sense.
    pub(super) fn place(&self) -> Result<(u64, u64), String> {
        let dtype = self.dtype.as_ref().ok_or("has no dtype")?;
        let shape = self.shape.as_ref().ok_or("has no shape")?;
        let (starts_at, ends_at) = match self.offsets.ok_or("has no data_offsets")? {
            Offsets::Two(start, end) => (start, end),
            Offsets::Other(count) => return Err(format!("has {count} data_offsets instead of 2")),
        };
        let spanned = ends_at.checked_sub(starts_at);
        let needed = match dtype {
            Ok(dtype) => {
                let elements = shape
                    .iter()
                    .try_fold(1u64, |all, &dim| all.checked_mul(dim));
                let bits = elements.and_then(|elements| elements.checked_mul(dtype.bits()));
                let whole = bits
                    .filter(|bits| bits.is_multiple_of(8))
                    .map(|bits| bits / 8);
                whole.ok_or("its shape is no whole number of bytes below 2^64")?
            }
            // Its size is known from its place alone.
            Err(_) => spanned.ok_or_else(|| {
                format!("its data_offsets are {starts_at} and {ends_at}: it ends before it starts")
            })?,
        };
        if spanned != Some(needed) {
            return Err(format!(
                "its data_offsets are {starts_at} and {ends_at}, but its shape needs {needed} bytes"
            ));
        }
        Ok((starts_at, ends_at))
    }
}

/// The fields of an entry, in their places.
const FIELDS: [&str; 3] = ["dtype", "shape", "data_offsets"];

/// Any JSON, as far as a tensor's entry may have it: nothing else is kept, however large it is.
enum Any {
    Number(u64),
    Text(String),
    /// A list of whole numbers.
    Numbers(Vec<u64>),
    /// An object or a list, which may be a tensor's entry.
    Entry(SaidTensor),
    /// An object whose only key has no value.
    Wrapped(String),
    Null,
    /// What no entry has.
    Other,
}

impl<'de> Deserialize<'de> for Any {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Any, D::Error> {
        deserializer.deserialize_any(AnyVisitor)
    }
}

struct AnyVisitor;

impl<'de> Visitor<'de> for AnyVisitor {
    type Value = Any;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Any, E> {
        Ok(Any::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Any, E> {
        Ok(Any::Other) // a negative one
    }

    fn visit_u64<E>(self, number: u64) -> Result<Any, E> {
        Ok(Any::Number(number))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Any, E> {
        Ok(Any::Other)
    }

    fn visit_unit<E>(self) -> Result<Any, E> {
        Ok(Any::Null)
    }

    fn visit_str<E>(self, text: &str) -> Result<Any, E> {
        Ok(Any::Text(text.to_owned()))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Any, S::Error> {
        let (mut numbers, mut are_numbers) = (Vec::new(), true);
        let mut said = SaidTensor::default();
        let mut place = 0;
        while let Some(element) = list.next_element()? {
            match element {
                Any::Number(number) if are_numbers => numbers.push(number),
                element => {
                    (are_numbers, numbers) = (false, Vec::new());
                    said.set(place, element);
                }
            }
            place += 1;
        }
        numbers.shrink_to_fit();
        Ok(match are_numbers {
            true => Any::Numbers(numbers),
            false => Any::Entry(said),
        })
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Any, M::Error> {
        let mut said = SaidTensor::default();
        let (mut count, mut wrapped) = (0, None);
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value()?;
            count += 1;
            let field = FIELDS.iter().position(|field| *field == key);
            match (field, value) {
                (Some(place), value) => said.set(place, value),
                (None, Any::Null) => wrapped = Some(key),
                (None, _) => {}
            }
        }
        Ok(match wrapped {
            Some(name) if count == 1 => Any::Wrapped(name),
            _ => Any::Entry(said),
        })
    }
}

/// What a header's JSON object says, in its order; also keys that stand there twice.
pub(super) struct Entries(pub(super) Vec<(String, Said)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entries, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

impl Entries {
    /// The object that a text begins with, and how long it is, whatever stands behind it; the error says whether the text ends before it.
    pub(super) fn of(text: &[u8]) -> Result<(Entries, usize), serde_json::Error> {
        let mut values = serde_json::Deserializer::from_slice(text).into_iter::<Entries>();
        match values.next() {
            Some(entries) => Ok((entries?, values.byte_offset())),
            None => Err(serde_json::Error::custom("there is nothing")),
        }
    }

    /// Where the last tensor ends of those whose place and shape agree, counted from where tensors start.
    pub(super) fn data_bytes(&self) -> Option<u64> {
        let ends = self.0.iter().filter_map(|(_, said)| match said {
            Said::Tensor(tensor) => Some(tensor.place().ok()?.1),
            Said::Metadata(_) => None,
        });
        ends.max()
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let said = match key.as_str() {
                "__metadata__" => Said::Metadata(map.next_value()?),
                _ => Said::Tensor(match map.next_value()? {
                    Any::Entry(said) => said,
                    _ => SaidTensor::default(),
                }),
            };
            entries.push((key, said));
            if entries.len() > u32::MAX as usize {
                return Err(M::Error::custom(WriteError::TotalOverflow));
            }
        }
        Ok(Entries(entries))
    }
}
