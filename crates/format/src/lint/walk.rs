//! The tolerant parser: the grammar of `header.rs`, but it complains and goes on.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::{Findings, Rule, label, quoted, text};
use crate::dtype::Dtype;
use crate::error::{EntryField, FormatError};
use crate::header::{Limits, METADATA_KEY};
use crate::json::Scanner;
use crate::table::{RANK_MAX, TENSOR_COUNT_MAX};

/// Spaces at the header's end beyond this are worth a note: more than any alignment asks for.
const PADDING_LARGE: usize = 4096;

/// All that could be read.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) tensors: Vec<SeenTensor>,
    /// Broken JSON may have hidden entries.
    pub(super) lost: bool,
}

/// A tensor's entry, as far as it makes sense.
pub(super) struct SeenTensor {
    pub(super) name: String,
    /// The name as findings have it: not longer than they keep.
    pub(super) label: String,
    pub(super) at_byte: u64,
    pub(super) dtype: Option<Dtype>,
    pub(super) shape: Option<Vec<u64>>,
    pub(super) shape_at: u64,
    pub(super) offsets: Option<(u64, u64)>,
    pub(super) offsets_at: u64,
    /// A later tensor has the same name.
    pub(super) overruled: bool,
}

/// Walks through a header, which is UTF-8.
pub(super) fn walk(json: &[u8], limits: &Limits, findings: &mut Findings) -> Seen {
    let mut walk = Walk {
        scanner: Scanner::new(json),
        json,
        limits,
        findings,
        seen: Seen::default(),
        positions: HashMap::new(),
        metadata_seen: false,
    };
    walk.header();
    walk.seen
}

struct Walk<'a, 'f> {
    scanner: Scanner<'a>,
    json: &'a [u8],
    limits: &'a Limits,
    findings: &'f mut Findings,
    seen: Seen,
    positions: HashMap<String, usize>,
    metadata_seen: bool,
}

impl<'a> Walk<'a, '_> {
    fn header(&mut self) {
        let first = self.scanner.peek_char().filter(|&c| c != '{');
        if let Err(error) = self.scanner.expect(b'{', "`{`") {
            return self.broken(&error);
        }
        if let Some(found) = first {
            let error = FormatError::TextBeforeHeader { found };
            self.findings.error(&error, 8, None, None);
        }
        if !self.scanner.empty(b'}') {
            loop {
                let more = self
                    .entry()
                    .and_then(|()| self.scanner.another(b'}', "`,` or `}`"));
                match more {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        self.broken(&error);
                        if !self.recover() {
                            return;
                        }
                    }
                }
            }
        }
        self.padding();
    }

    fn padding(&mut self) {
        let start = self.scanner.at();
        self.scanner.skip_spaces();
        let (spaces, at_byte) = (self.scanner.at() - start, self.scanner.at_byte());
        if spaces > PADDING_LARGE {
            let what = format!("{spaces} spaces follow the last `}}`");
            self.findings.note(
                Rule::LargePadding,
                at_byte - spaces as u64,
                None,
                None,
                what,
            );
        }
        if let (Some(b'\n' | b'\r' | b'\t'), Some(found)) =
            (self.scanner.peek(), self.scanner.peek_char())
        {
            let error = FormatError::PaddingNotSpaces { at_byte, found };
            self.findings.error(&error, at_byte, None, None);
        }
        if self.scanner.peek_token().is_some() {
            let error = self.scanner.unexpected("only spaces behind the last `}`");
            self.findings
                .error(&error, self.scanner.at_byte(), None, None);
        }
    }

    fn broken(&mut self, error: &FormatError) {
        self.seen.lost = true;
        let at_byte = self.scanner.at_byte();
        self.findings.error(error, at_byte, None, None);
    }

    /// Goes to the next `}`, `,` and quote in a row, where an entry may start; false if there is none.
    fn recover(&mut self) -> bool {
        while let Some(ahead) = self.scanner.rest().iter().position(|&byte| byte == b'}') {
            self.scanner.skip(ahead + 1);
            if self.scanner.peek_token() == Some(b',') {
                self.scanner.bump();
                if self.scanner.peek_token() == Some(b'"') {
                    return true;
                }
            }
        }
        false
    }

    fn entry(&mut self) -> Result<(), FormatError> {
        self.scanner.peek_token();
        let (at, at_byte) = (self.scanner.at(), self.scanner.at_byte());
        let key = self.scanner.key()?;
        if key == METADATA_KEY {
            return self.metadata(at_byte);
        }
        let raw = &self.json[at..self.scanner.at()];
        text::name(&key, raw, at_byte, self.findings);
        self.tensor(key.into_owned(), at_byte)
    }

    fn metadata(&mut self, at_byte: u64) -> Result<(), FormatError> {
        let tensor = Some(METADATA_KEY);
        if std::mem::replace(&mut self.metadata_seen, true) {
            let error = FormatError::DuplicateMetadata { key: None };
            self.findings.error(&error, at_byte, tensor, None);
        }
        match self.scanner.peek_token() {
            Some(b'n') => {
                let at_byte = self.scanner.at_byte();
                self.scanner.literal("null")?;
                let what = "`__metadata__` is null where the format asks for an object".to_owned();
                self.findings
                    .note(Rule::NullMetadata, at_byte, tensor, None, what);
                Ok(())
            }
            Some(b'{') => {
                self.scanner.bump();
                self.metadata_entries()
            }
            _ => self.wrong_type(METADATA_KEY, None, "an object of texts", 1),
        }
    }

    fn metadata_entries(&mut self) -> Result<(), FormatError> {
        if self.scanner.empty(b'}') {
            return Ok(());
        }
        let mut keys = HashSet::new();
        let mut bytes = 0u64;
        let limit_bytes = self.limits.metadata_bytes_max;
        loop {
            self.scanner.peek_token();
            let at_byte = self.scanner.at_byte();
            let key = self.scanner.key()?;
            if self.scanner.peek_token() == Some(b'"') {
                let value = self.scanner.string()?;
                text::metadata(&key, &value, at_byte, self.findings);
                let before = bytes;
                bytes += (key.len() + value.len()) as u64;
                if before <= limit_bytes && bytes > limit_bytes {
                    let error = FormatError::MetadataTooLong { limit_bytes };
                    self.findings
                        .error(&error, at_byte, Some(METADATA_KEY), None);
                }
            } else {
                self.wrong_type(METADATA_KEY, None, "text as value", 2)?;
            }
            if !keys.insert(key.to_string()) {
                let key = Some(key.into_owned());
                let error = FormatError::DuplicateMetadata { key: key.clone() };
                let what = error.to_string();
                let tensor = Some(METADATA_KEY);
                self.findings.note(
                    Rule::DuplicateMetadataKey,
                    at_byte,
                    tensor,
                    key.as_deref(),
                    what,
                );
            }
            if !self.scanner.another(b'}', "`,` or `}`")? {
                return Ok(());
            }
        }
    }

    fn tensor(&mut self, name: String, at_byte: u64) -> Result<(), FormatError> {
        self.check_limits(&name, at_byte);
        let mut tensor = SeenTensor {
            label: label(&name),
            name,
            at_byte,
            dtype: None,
            shape: None,
            shape_at: at_byte,
            offsets: None,
            offsets_at: at_byte,
            overruled: false,
        };
        match self.scanner.peek_token() {
            Some(b'[') => self.array_entry(&mut tensor)?,
            Some(b'{') => self.object_entry(&mut tensor)?,
            _ => self.wrong_type(&tensor.label, None, "an object", 1)?,
        }
        if let Some(earlier) = self
            .positions
            .insert(tensor.name.clone(), self.seen.tensors.len())
        {
            let earlier = &mut self.seen.tensors[earlier];
            earlier.overruled = true;
            let what = format!(
                "two tensors are called {}, the first at byte {}",
                quoted(&tensor.name),
                earlier.at_byte
            );
            self.findings.note(
                Rule::DuplicateTensor,
                at_byte,
                Some(&tensor.name),
                None,
                what,
            );
        }
        self.seen.tensors.push(tensor);
        Ok(())
    }

    fn check_limits(&mut self, name: &str, at_byte: u64) {
        let (name_bytes, limit_bytes) = (name.len() as u64, self.limits.name_bytes_max);
        if name_bytes > limit_bytes {
            let error = FormatError::NameTooLong {
                tensor: name.to_owned(),
                name_bytes,
                limit_bytes,
            };
            self.findings.error(&error, at_byte, Some(name), None);
        }
        let limit_count = self.limits.tensor_count_max.min(TENSOR_COUNT_MAX);
        if self.seen.tensors.len() as u64 == limit_count {
            let error = FormatError::TooManyTensors { limit_count };
            self.findings.error(&error, at_byte, Some(name), None);
        }
    }

    fn object_entry(&mut self, tensor: &mut SeenTensor) -> Result<(), FormatError> {
        self.scanner.bump();
        let mut has = [false; 3];
        if !self.scanner.empty(b'}') {
            loop {
                self.scanner.peek_token();
                let at_byte = self.scanner.at_byte();
                let key = self.scanner.key()?;
                match FIELDS.iter().position(|(name, _)| *name == key) {
                    Some(position) => {
                        let field = FIELDS[position].1;
                        if std::mem::replace(&mut has[position], true) {
                            let error = FormatError::DuplicateField {
                                tensor: tensor.label.clone(),
                                field,
                            };
                            self.findings
                                .error(&error, at_byte, Some(&tensor.label), Some(field));
                        }
                        self.field(tensor, field)?;
                    }
                    None => {
                        let error = FormatError::UnknownField {
                            tensor: tensor.label.clone(),
                            field: key.to_string(),
                        };
                        let what = error.to_string();
                        self.findings.note(
                            Rule::UnknownField,
                            at_byte,
                            Some(&tensor.label),
                            Some(&key),
                            what,
                        );
                        self.scanner.skip_value(2)?;
                    }
                }
                if !self.scanner.another(b'}', "`,` or `}`")? {
                    break;
                }
            }
        }
        for ((_, field), _) in FIELDS.iter().zip(has).filter(|(_, has)| !has) {
            let error = FormatError::MissingField {
                tensor: tensor.label.clone(),
                field: *field,
            };
            self.findings
                .error(&error, tensor.at_byte, Some(&tensor.label), Some(*field));
        }
        Ok(())
    }

    fn array_entry(&mut self, tensor: &mut SeenTensor) -> Result<(), FormatError> {
        let what = format!("{} is described by an array", quoted(&tensor.label));
        self.findings.note(
            Rule::ArrayEntry,
            self.scanner.at_byte(),
            Some(&tensor.label),
            None,
            what,
        );
        self.scanner.expect(b'[', "`[`")?;
        self.field(tensor, EntryField::Dtype)?;
        self.scanner.expect(b',', "`,`")?;
        self.field(tensor, EntryField::Shape)?;
        self.scanner.expect(b',', "`,`")?;
        self.field(tensor, EntryField::DataOffsets)?;
        self.scanner.expect(b']', "`]`")
    }

    fn field(&mut self, tensor: &mut SeenTensor, field: EntryField) -> Result<(), FormatError> {
        match field {
            EntryField::Dtype => tensor.dtype = self.dtype(&tensor.label)?,
            EntryField::Shape => {
                self.scanner.peek_token();
                tensor.shape_at = self.scanner.at_byte();
                tensor.shape = self.integers(&tensor.label, field, "an array of integers")?;
                self.check_rank(tensor);
            }
            EntryField::DataOffsets => {
                self.scanner.peek_token();
                tensor.offsets_at = self.scanner.at_byte();
                let numbers = self.integers(&tensor.label, field, "an array of two integers")?;
                tensor.offsets = match numbers.as_deref() {
                    Some(&[starts_at, ends_at]) => Some((starts_at, ends_at)),
                    Some(other) => {
                        let what = format!(
                            "`data_offsets` of tensor {} has {} numbers where two are expected",
                            quoted(&tensor.label),
                            other.len()
                        );
                        let name = Some(tensor.label.as_str());
                        let at_byte = tensor.offsets_at;
                        self.findings.note(
                            Rule::WrongType,
                            at_byte,
                            name,
                            Some("data_offsets"),
                            what,
                        );
                        None
                    }
                    None => None,
                };
            }
        }
        Ok(())
    }

    fn check_rank(&mut self, tensor: &SeenTensor) {
        let rank = tensor.shape.as_ref().map_or(0, Vec::len);
        let limit_rank = self.limits.rank_max.min(RANK_MAX);
        let name = Some(tensor.label.as_str());
        if rank as u64 > limit_rank {
            let error = FormatError::RankTooHigh {
                tensor: tensor.label.clone(),
                limit_rank,
            };
            self.findings
                .error(&error, tensor.at_byte, name, Some(EntryField::Shape));
        }
        if rank > 64 {
            let what = format!("tensor {} has {rank} dimensions", quoted(&tensor.label));
            self.findings
                .note(Rule::HighRank, tensor.at_byte, name, Some("shape"), what);
        }
    }

    fn dtype(&mut self, name: &str) -> Result<Option<Dtype>, FormatError> {
        let first = self.scanner.peek_token();
        let (at, at_byte) = (self.scanner.at(), self.scanner.at_byte());
        let dtype = match first {
            Some(b'"') => self.scanner.string()?,
            Some(b'{') => {
                let Ok(dtype) = self.wrapped_dtype() else {
                    self.scanner.seek(at);
                    self.wrong_type(name, Some(EntryField::Dtype), "a dtype's name", 2)?;
                    return Ok(None);
                };
                let what = format!(
                    "`dtype` of tensor {} is an object where a text is expected",
                    quoted(name)
                );
                self.findings
                    .note(Rule::WrappedDtype, at_byte, Some(name), Some("dtype"), what);
                dtype
            }
            _ => {
                self.wrong_type(name, Some(EntryField::Dtype), "a dtype's name", 2)?;
                return Ok(None);
            }
        };
        let known = Dtype::from_name(&dtype);
        if known.is_none() {
            let error = FormatError::UnknownDtype {
                tensor: name.to_owned(),
                dtype: dtype.into_owned(),
            };
            self.findings
                .error(&error, at_byte, Some(name), Some(EntryField::Dtype));
        }
        Ok(known)
    }

    /// `{"F32":null}`
    fn wrapped_dtype(&mut self) -> Result<Cow<'a, str>, FormatError> {
        self.scanner.bump();
        let dtype = self.scanner.key()?;
        self.scanner.peek_token();
        self.scanner.literal("null")?;
        self.scanner.expect(b'}', "`}`")?;
        Ok(dtype)
    }

    /// An array of integers; `None`, after a complaint, if it is something else or has other values.
    fn integers(
        &mut self,
        name: &str,
        field: EntryField,
        expected: &'static str,
    ) -> Result<Option<Vec<u64>>, FormatError> {
        if self.scanner.peek_token() != Some(b'[') {
            self.wrong_type(name, Some(field), expected, 2)?;
            return Ok(None);
        }
        self.scanner.bump();
        let (mut numbers, mut sound, mut large) = (Vec::new(), true, None);
        if self.scanner.empty(b']') {
            return Ok(Some(numbers));
        }
        loop {
            self.scanner.peek_token();
            let at_byte = self.scanner.at_byte();
            match self.scanner.integer() {
                Some(number) => {
                    numbers.push(number);
                    if number >= 1 << 53 {
                        large = Some((number, at_byte));
                    }
                }
                None => {
                    sound = false;
                    self.wrong_type(name, Some(field), "an integer from 0 to 2^64 - 1", 3)?;
                }
            }
            if !self.scanner.another(b']', "`,` or `]`")? {
                break;
            }
        }
        if let Some((number, at_byte)) = large {
            let what = format!(
                "`{field}` of tensor {} has {number}, 2^53 or more",
                quoted(name)
            );
            let field = field.to_string();
            self.findings
                .note(Rule::LargeInteger, at_byte, Some(name), Some(&field), what);
        }
        Ok(sound.then_some(numbers))
    }

    /// Complains about a value and steps over it; it lies in `depth` containers.
    fn wrong_type(
        &mut self,
        entry: &str,
        field: Option<EntryField>,
        expected: &'static str,
        depth: u32,
    ) -> Result<(), FormatError> {
        let found = self.scanner.kind()?;
        let at_byte = self.scanner.at_byte();
        let error = FormatError::WrongType {
            at_byte,
            entry: entry.to_owned(),
            field,
            expected,
            found,
        };
        self.findings.error(&error, at_byte, Some(entry), field);
        self.scanner.skip_value(depth)
    }
}

const FIELDS: [(&str, EntryField); 3] = [
    ("dtype", EntryField::Dtype),
    ("shape", EntryField::Shape),
    ("data_offsets", EntryField::DataOffsets),
];
