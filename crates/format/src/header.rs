//! The header: parsed in one pass, every rule of the format checked, tensors found by name.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use crate::dtype::Dtype;
use crate::error::{EntryField, FormatError};
use crate::guess::guess;
use crate::index::NameIndex;
use crate::json::Scanner;
use crate::spec::TensorSpec;
use crate::table::{Entry, RANK_MAX, TENSOR_COUNT_MAX, Table, TableBuilder};
use crate::usual::take_entries;

/// The length prefix in front of the header.
pub(crate) const LENGTH_BYTES: u64 = 8;

/// The one key of the header that is no tensor.
pub(crate) const METADATA_KEY: &str = "__metadata__";

/// The free-form text that a file carries, sorted by key.
pub type Metadata = BTreeMap<String, String>;

/// How much a parser forgives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strictness {
    /// Accepts exactly what the `safetensors` crate 0.8.0 accepts, and sees the same tensors.
    ///
    /// That includes what the format's description forbids: of two tensors with one name the last
    /// wins, white space of any kind may stand around the header, entries may have unknown fields
    /// or be arrays, `__metadata__` may be null and have a key twice.
    #[default]
    Compat,
    /// Accepts what the format's description allows and nothing else. What passes here passes
    /// every reader.
    Spec,
}

/// How much a header may ask for, before a reader says no.
///
/// ```
/// let small = safelight_format::Limits { tensor_count_max: 1000, ..Default::default() };
/// assert_eq!(small.header_bytes_max, 100_000_000);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The header's length; the reference implementation's limit is 100 000 000, as here. At most
    /// `u32::MAX`, whatever is set.
    pub header_bytes_max: u64,
    /// Tensors in a file; at most `u32::MAX - 1`, whatever is set. Unlimited by default, as are all below.
    pub tensor_count_max: u64,
    /// Dimensions of a tensor; at most 2^27 - 1, whatever is set.
    pub rank_max: u64,
    /// Length of a tensor's name in UTF-8.
    pub name_bytes_max: u64,
    /// Length of all keys and values of `__metadata__` together.
    pub metadata_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            header_bytes_max: 100_000_000,
            tensor_count_max: u64::from(u32::MAX) - 1,
            rank_max: u64::MAX,
            name_bytes_max: u64::MAX,
            metadata_bytes_max: u64::MAX,
        }
    }
}

/// How [`Header::parse_with`] reads.
///
/// ```
/// use safelight_format::{Header, ParseOptions};
/// let json = br#"{"a":{"dtype":"U1","shape":[9],"data_offsets":[0,2]}}"#;
/// let file = [&(json.len() as u64).to_le_bytes()[..], json, &[0, 0]].concat();
///
/// let options = ParseOptions { opaque_dtypes: true, ..ParseOptions::default() };
/// let header = Header::parse_with(&file, file.len() as u64, &options)?;
/// let opaque = header.opaque_tensors().next().unwrap();
/// assert_eq!((opaque.name, opaque.dtype, opaque.byte_count()), ("a", "U1", 2));
/// assert_eq!(header.get("a"), None);
/// # Ok::<(), safelight_format::FormatError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParseOptions {
    /// What is forgiven.
    pub strictness: Strictness,
    /// What is too much.
    pub limits: Limits,
    /// Tensors of dtypes that the format does not have are listed apart, in
    /// [`Header::opaque_tensors`], instead of being an error: their size is known from their place.
    pub opaque_dtypes: bool,
}

/// A tensor of a dtype that the format does not have: bytes to be handed on. Nothing here can
/// decode or write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpaqueTensor<'a> {
    /// Its name, any text.
    pub name: &'a str,
    /// What the header calls its dtype, any text.
    pub dtype: &'a str,
    /// Its dimensions, outermost first. Nothing follows from them.
    pub shape: &'a [u64],
    /// Its first byte and the one behind its last, from the first byte of tensor data.
    pub data_offsets: (u64, u64),
}

impl OpaqueTensor<'_> {
    /// Its size in the file.
    pub fn byte_count(&self) -> u64 {
        self.data_offsets.1 - self.data_offsets.0
    }
}

/// One tensor of a file, as its header describes it. Borrowed from the [`Header`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    /// Its name, any text.
    pub name: &'a str,
    /// What one element is.
    pub dtype: Dtype,
    /// Its dimensions, outermost first; empty for a single number.
    pub shape: &'a [u64],
    /// Its first byte and the one behind its last, from the first byte of tensor data.
    pub data_offsets: (u64, u64),
}

impl TensorInfo<'_> {
    /// Its size in the file.
    pub fn byte_count(&self) -> u64 {
        self.data_offsets.1 - self.data_offsets.0
    }

    /// How many elements it has. (Cannot overflow: the header's check has made the product.)
    pub fn element_count(&self) -> u64 {
        self.shape.iter().product()
    }

    /// The same without its place, and owned.
    pub fn to_spec(&self) -> TensorSpec {
        TensorSpec {
            name: self.name.to_owned(),
            dtype: self.dtype,
            shape: self.shape.to_vec(),
        }
    }
}

/// A header's tensors, in the order of their bytes in the file.
#[derive(Clone, Copy)]
pub struct Tensors<'a>(&'a Table);

impl<'a> Tensors<'a> {
    /// How many there are.
    pub fn len(self) -> usize {
        self.0.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0.entries.is_empty()
    }

    /// The tensor at this position, `None` behind the last.
    pub fn get(self, position: usize) -> Option<TensorInfo<'a>> {
        let entry = self.0.entries.get(position)?;
        Some(self.0.info(entry))
    }

    /// One after the other.
    pub fn iter(self) -> TensorsIter<'a> {
        TensorsIter {
            table: self.0,
            entries: self.0.entries.iter(),
        }
    }
}

impl<'a> IntoIterator for Tensors<'a> {
    type Item = TensorInfo<'a>;
    type IntoIter = TensorsIter<'a>;

    fn into_iter(self) -> TensorsIter<'a> {
        self.iter()
    }
}

impl PartialEq for Tensors<'_> {
    fn eq(&self, other: &Tensors<'_>) -> bool {
        self.iter().eq(other.iter())
    }
}

impl fmt::Debug for Tensors<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Iterator of [`Tensors`].
#[derive(Clone)]
pub struct TensorsIter<'a> {
    table: &'a Table,
    entries: std::slice::Iter<'a, Entry>,
}

impl<'a> Iterator for TensorsIter<'a> {
    type Item = TensorInfo<'a>;

    fn next(&mut self) -> Option<TensorInfo<'a>> {
        self.entries.next().map(|entry| self.table.info(entry))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.entries.size_hint()
    }
}

impl DoubleEndedIterator for TensorsIter<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.entries.next_back().map(|entry| self.table.info(entry))
    }
}

impl ExactSizeIterator for TensorsIter<'_> {}

/// A checked header: what passes [`Header::parse`] has tensors that tile the file exactly.
#[derive(Clone, Debug)]
pub struct Header {
    tensors: Table,
    index: NameIndex,
    metadata: Option<Metadata>,
    header_bytes: u64,
}

/// The length of the header alone, from the file's first eight bytes, so that a reader knows how
/// much more to read: it is within the limit and within the file.
///
/// # Errors
/// As [`Header::parse`]; what the file really is shows best if `prefix` has a few hundred bytes.
pub fn header_bytes(prefix: &[u8], file_bytes: u64, limits: &Limits) -> Result<u64, FormatError> {
    if file_bytes < LENGTH_BYTES {
        return Err(other_kind(prefix).unwrap_or(FormatError::TooSmall { file_bytes }));
    }
    let Some(length) = prefix.first_chunk::<8>() else {
        return Err(FormatError::PrefixTooShort {
            have_bytes: prefix.len() as u64,
            need_bytes: LENGTH_BYTES,
        });
    };
    let header_bytes = u64::from_le_bytes(*length);
    let limit_bytes = limits.header_bytes_max.min(u64::from(u32::MAX));
    if header_bytes > limit_bytes {
        // A header that begins as one and has room in the file: too long for this reader, and nothing else.
        if prefix.get(8) == Some(&b'{')
            && header_bytes <= (file_bytes - LENGTH_BYTES).min(u32::MAX.into())
        {
            return Err(FormatError::HeaderOverLimit {
                header_bytes,
                limit_bytes,
            });
        }
        return Err(other_kind(prefix).unwrap_or(FormatError::HeaderTooLong {
            header_bytes,
            limit_bytes,
        }));
    }
    if header_bytes > file_bytes - LENGTH_BYTES {
        return Err(other_kind(prefix).unwrap_or(FormatError::HeaderCutOff {
            header_bytes,
            file_bytes,
        }));
    }
    Ok(header_bytes)
}

/// An error of the parser, or a better one: that the file is something else, or the header no text.
#[cold]
fn told_apart(error: FormatError, json: &[u8], prefix: &[u8]) -> FormatError {
    let first = json.iter().find(|byte| !b" \n\r\t".contains(byte));
    match std::str::from_utf8(json) {
        Err(utf8) => other_kind(prefix).unwrap_or(FormatError::NotUtf8 {
            at_byte: LENGTH_BYTES + utf8.valid_up_to() as u64,
        }),
        Ok(_) if first != Some(&b'{') => other_kind(prefix).unwrap_or(error),
        Ok(_) => error,
    }
}

pub(crate) fn other_kind(prefix: &[u8]) -> Option<FormatError> {
    guess(prefix).map(|kind| FormatError::OtherKind { kind })
}

impl Header {
    /// Parses and checks a header.
    ///
    /// `prefix` holds the file's first bytes, at least length and header ([`header_bytes`] says
    /// how many that are), at most the whole file. `file_bytes` is the size of the whole file.
    ///
    /// # Errors
    /// The first rule that the file breaks. Whether there is an error depends on nothing but the
    /// bytes, `strictness` and `limits`.
    pub fn parse(
        prefix: &[u8],
        file_bytes: u64,
        strictness: Strictness,
        limits: &Limits,
    ) -> Result<Header, FormatError> {
        let options = ParseOptions {
            strictness,
            limits: *limits,
            opaque_dtypes: false,
        };
        Header::parse_with(prefix, file_bytes, &options)
    }

    /// As [`Header::parse`], with all there is to say about how.
    ///
    /// # Errors
    /// As there.
    pub fn parse_with(
        prefix: &[u8],
        file_bytes: u64,
        options: &ParseOptions,
    ) -> Result<Header, FormatError> {
        let header_bytes = header_bytes(prefix, file_bytes, &options.limits)?;
        let need_bytes = LENGTH_BYTES + header_bytes;
        let need_len = usize::try_from(need_bytes).ok();
        let Some(json) = need_len.and_then(|len| prefix.get(LENGTH_BYTES as usize..len)) else {
            return Err(FormatError::PrefixTooShort {
                have_bytes: prefix.len() as u64,
                need_bytes,
            });
        };
        let mut parser = Parser::new(json, options);
        parser
            .header()
            .map_err(|error| told_apart(error, json, prefix))?;
        let Parser {
            table, metadata, ..
        } = parser;
        let (tensors, index) = table.settle(options.strictness)?;
        let header = Header {
            tensors,
            index,
            metadata,
            header_bytes,
        };
        header.check_file_bytes(file_bytes)?;
        Ok(header)
    }

    /// All tensors, in the order of their bytes in the file.
    pub fn tensors(&self) -> Tensors<'_> {
        Tensors(&self.tensors)
    }

    /// The tensors of unknown dtypes, in the order of their bytes, among those of
    /// [`Header::tensors`]: none unless [`ParseOptions::opaque_dtypes`] asked for them.
    pub fn opaque_tensors(&self) -> impl ExactSizeIterator<Item = OpaqueTensor<'_>> {
        let opaque = self.tensors.opaque.iter();
        opaque.map(|entry| self.tensors.opaque_info(entry))
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<TensorInfo<'_>> {
        self.tensors().get(self.position(name)?)
    }

    /// Where in [`Header::tensors`] the tensor of this name is.
    pub fn position(&self, name: &str) -> Option<usize> {
        let found = self.index.get(name, |position| self.tensors.name(position));
        found.map(|position| position as usize)
    }

    /// The file's `__metadata__`, `None` if it has none.
    pub fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// Where tensor data starts in the file: behind length and header.
    pub fn data_start(&self) -> u64 {
        LENGTH_BYTES + self.header_bytes
    }

    /// The size of all tensors together.
    pub fn data_bytes(&self) -> u64 {
        let end_of = |entries: &[Entry]| entries.last().map_or(0, |last| last.data_offsets.1);
        end_of(&self.tensors.entries).max(end_of(&self.tensors.opaque))
    }

    fn all_entries(&self) -> impl Iterator<Item = &Entry> {
        self.tensors.entries.iter().chain(&self.tensors.opaque)
    }

    /// Length, header and data must be the file, to the byte.
    fn check_file_bytes(&self, file_bytes: u64) -> Result<(), FormatError> {
        let there = file_bytes - self.data_start(); // `header_bytes` checked that it fits
        let expected_bytes = self.data_start().saturating_add(self.data_bytes());
        match self.data_bytes().cmp(&there) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => Err(FormatError::FileTooLong {
                expected_bytes,
                file_bytes,
            }),
            std::cmp::Ordering::Greater => Err(FormatError::FileTooShort {
                expected_bytes,
                file_bytes,
                intact_count: self
                    .all_entries()
                    .filter(|entry| entry.data_offsets.1 <= there)
                    .count(),
                tensor_count: self.all_entries().count(),
            }),
        }
    }
}

/// The size of a tensor in bits; `None` if it overflows. The product is made from left to right,
/// so `[0, 2^63, 4]` has a size and `[2^63, 4, 0]` has none: the reference implementation's way.
pub(crate) fn bit_count(dtype: Dtype, shape: &[u64]) -> Option<u64> {
    shape
        .iter()
        .try_fold(1u64, |product, &dim| product.checked_mul(dim))?
        .checked_mul(dtype.bits())
}

/// The header's grammar: an object of entries, one of which may be `__metadata__`.
struct Parser<'a> {
    scanner: Scanner<'a>,
    strict: bool,
    opaque_dtypes: bool,
    limits: &'a Limits,
    table: TableBuilder,
    metadata: Option<Metadata>,
    /// `__metadata__` has been seen, though perhaps as null.
    metadata_seen: bool,
}

impl<'a> Parser<'a> {
    fn new(text: &'a [u8], options: &'a ParseOptions) -> Parser<'a> {
        Parser {
            scanner: Scanner::new(text),
            strict: options.strictness == Strictness::Spec,
            opaque_dtypes: options.opaque_dtypes,
            limits: &options.limits,
            table: TableBuilder::with_room_for(text.len()),
            metadata: None,
            metadata_seen: false,
        }
    }

    fn header(&mut self) -> Result<(), FormatError> {
        let first = self.scanner.peek_char().filter(|&c| c != '{');
        self.scanner.expect(b'{', "`{`")?;
        if let (true, Some(found)) = (self.strict, first) {
            return Err(FormatError::TextBeforeHeader { found });
        }
        if !self.scanner.empty(b'}') {
            loop {
                if self.scanner.peek_token() == Some(b'"') {
                    let taken = take_entries(self.scanner.rest(), self.limits, &mut self.table);
                    self.scanner.skip(taken);
                }
                let key = self.scanner.key()?;
                if key == METADATA_KEY {
                    self.metadata()?
                } else {
                    self.tensor(key)?
                }
                if !self.scanner.another(b'}', "`,` or `}`")? {
                    break;
                }
            }
        }
        if self.strict {
            self.scanner.skip_spaces();
            if let (Some(b'\n' | b'\r' | b'\t' | 0), Some(found)) =
                (self.scanner.peek(), self.scanner.peek_char())
            {
                return Err(FormatError::PaddingNotSpaces {
                    at_byte: self.scanner.at_byte(),
                    found,
                });
            }
        }
        match self.scanner.peek_token() {
            None => Ok(()),
            Some(_) => Err(self.scanner.unexpected("only spaces behind the last `}`")),
        }
    }

    /// The value of `__metadata__`: an object of strings.
    fn metadata(&mut self) -> Result<(), FormatError> {
        if std::mem::replace(&mut self.metadata_seen, true) {
            return Err(FormatError::DuplicateMetadata { key: None });
        }
        if !self.strict && self.scanner.peek_token() == Some(b'n') {
            return self.scanner.literal("null");
        }
        self.open(b'{', METADATA_KEY, None, "an object of texts")?;
        let mut metadata = Metadata::new();
        let mut bytes_left = self.limits.metadata_bytes_max;
        if !self.scanner.empty(b'}') {
            loop {
                let key = self.scanner.key()?;
                let value = self.text(METADATA_KEY, None, "text as value")?;
                let bytes = key.len() as u64 + value.len() as u64;
                let limit_bytes = self.limits.metadata_bytes_max;
                bytes_left = bytes_left
                    .checked_sub(bytes)
                    .ok_or(FormatError::MetadataTooLong { limit_bytes })?;
                let twice = self.strict.then(|| key.to_string());
                if metadata
                    .insert(key.into_owned(), value.into_owned())
                    .is_some()
                    && self.strict
                {
                    return Err(FormatError::DuplicateMetadata { key: twice });
                }
                if !self.scanner.another(b'}', "`,` or `}`")? {
                    break;
                }
            }
        }
        self.metadata = Some(metadata);
        Ok(())
    }

    /// The value of a tensor's entry.
    fn tensor(&mut self, name: Cow<'a, str>) -> Result<(), FormatError> {
        let (name_bytes, limit_bytes) = (name.len() as u64, self.limits.name_bytes_max);
        if name_bytes > limit_bytes {
            return Err(FormatError::NameTooLong {
                tensor: name.into_owned(),
                name_bytes,
                limit_bytes,
            });
        }
        let limit_count = self.limits.tensor_count_max.min(TENSOR_COUNT_MAX);
        if self.table.len() as u64 >= limit_count {
            return Err(FormatError::TooManyTensors { limit_count });
        }
        let dims_at = self.table.dims.len();
        let (dtype, data_offsets) = if !self.strict && self.scanner.peek_token() == Some(b'[') {
            self.array_entry(&name)?
        } else {
            self.object_entry(&name)?
        };
        match dtype {
            Element::Known(dtype) => self.table.push(&name, dtype, dims_at, data_offsets),
            Element::Opaque(dtype) => self.table.push_opaque(&name, &dtype, dims_at, data_offsets),
        }
        Ok(())
    }

    /// `{"dtype":"F32","shape":[2],"data_offsets":[0,8]}`, in any order.
    fn object_entry(&mut self, name: &str) -> Result<Fields<'a>, FormatError> {
        self.open(b'{', name, None, "an object")?;
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        let again = |field| FormatError::DuplicateField {
            tensor: name.to_owned(),
            field,
        };
        if !self.scanner.empty(b'}') {
            loop {
                let key = self.scanner.key()?;
                match &*key {
                    "dtype" if dtype.is_some() => return Err(again(EntryField::Dtype)),
                    "shape" if shape.is_some() => return Err(again(EntryField::Shape)),
                    "data_offsets" if offsets.is_some() => {
                        return Err(again(EntryField::DataOffsets));
                    }
                    "dtype" => dtype = Some(self.dtype(name)?),
                    "shape" => shape = Some(self.shape(name)?),
                    "data_offsets" => offsets = Some(self.offsets(name)?),
                    _ if self.strict => {
                        return Err(FormatError::UnknownField {
                            tensor: name.to_owned(),
                            field: key.into_owned(),
                        });
                    }
                    _ => self.scanner.skip_value(2)?,
                }
                if !self.scanner.another(b'}', "`,` or `}`")? {
                    break;
                }
            }
        }
        let missing = |field| FormatError::MissingField {
            tensor: name.to_owned(),
            field,
        };
        shape.ok_or_else(|| missing(EntryField::Shape))?;
        Ok((
            dtype.ok_or_else(|| missing(EntryField::Dtype))?,
            offsets.ok_or_else(|| missing(EntryField::DataOffsets))?,
        ))
    }

    /// `["F32",[2],[0,8]]`: no promise of the format, but the reference implementation reads it.
    fn array_entry(&mut self, name: &str) -> Result<Fields<'a>, FormatError> {
        self.scanner.expect(b'[', "`[`")?;
        let dtype = self.dtype(name)?;
        self.scanner.expect(b',', "`,`")?;
        self.shape(name)?;
        self.scanner.expect(b',', "`,`")?;
        let offsets = self.offsets(name)?;
        self.scanner.expect(b']', "`]`")?;
        Ok((dtype, offsets))
    }

    fn dtype(&mut self, name: &str) -> Result<Element<'a>, FormatError> {
        let wrapped = !self.strict && self.scanner.peek_token() == Some(b'{');
        let text = if wrapped {
            // `{"F32":null}`: how serde writes an enum; the reference implementation reads it.
            self.scanner.bump();
            let key = self.scanner.key()?;
            self.scanner.peek_token();
            self.scanner.literal("null")?;
            self.scanner.expect(b'}', "`}`")?;
            key
        } else {
            self.text(name, Some(EntryField::Dtype), "a dtype's name")?
        };
        match Dtype::from_name(&text) {
            Some(dtype) => Ok(Element::Known(dtype)),
            None if self.opaque_dtypes => Ok(Element::Opaque(text)),
            None => Err(FormatError::UnknownDtype {
                tensor: name.to_owned(),
                dtype: text.into_owned(),
            }),
        }
    }

    fn shape(&mut self, name: &str) -> Result<(), FormatError> {
        self.open(b'[', name, Some(EntryField::Shape), "an array of integers")?;
        if self.scanner.empty(b']') {
            return Ok(());
        }
        let dims_at = self.table.dims.len();
        let limit_rank = self.limits.rank_max.min(RANK_MAX);
        loop {
            if (self.table.dims.len() - dims_at) as u64 >= limit_rank {
                return Err(FormatError::RankTooHigh {
                    tensor: name.to_owned(),
                    limit_rank,
                });
            }
            let dim = self.integer(name, EntryField::Shape)?;
            self.table.dims.push(dim);
            if !self.scanner.another(b']', "`,` or `]`")? {
                return Ok(());
            }
        }
    }

    fn offsets(&mut self, name: &str) -> Result<(u64, u64), FormatError> {
        self.open(
            b'[',
            name,
            Some(EntryField::DataOffsets),
            "an array of two integers",
        )?;
        let starts_at = self.integer(name, EntryField::DataOffsets)?;
        self.scanner.expect(b',', "`,` and a second integer")?;
        let ends_at = self.integer(name, EntryField::DataOffsets)?;
        self.scanner.expect(b']', "`]` behind the second integer")?;
        Ok((starts_at, ends_at))
    }

    /// Steps over the opening byte of an array or object.
    fn open(
        &mut self,
        byte: u8,
        entry: &str,
        field: Option<EntryField>,
        expected: &'static str,
    ) -> Result<(), FormatError> {
        if self.scanner.peek_token() != Some(byte) {
            return Err(self.wrong_type(entry, field, expected));
        }
        self.scanner.bump();
        Ok(())
    }

    fn text(
        &mut self,
        entry: &str,
        field: Option<EntryField>,
        expected: &'static str,
    ) -> Result<Cow<'a, str>, FormatError> {
        if self.scanner.peek_token() != Some(b'"') {
            return Err(self.wrong_type(entry, field, expected));
        }
        self.scanner.string()
    }

    fn integer(&mut self, entry: &str, field: EntryField) -> Result<u64, FormatError> {
        self.scanner.peek_token();
        let value = self.scanner.integer();
        value.ok_or_else(|| self.wrong_type(entry, Some(field), "an integer from 0 to 2^64 - 1"))
    }

    /// The error for a value of another type, or for none at all.
    #[cold]
    fn wrong_type(
        &mut self,
        entry: &str,
        field: Option<EntryField>,
        expected: &'static str,
    ) -> FormatError {
        match self.scanner.kind() {
            Ok(found) => {
                let (at_byte, entry) = (self.scanner.at_byte(), entry.to_owned());
                FormatError::WrongType {
                    at_byte,
                    entry,
                    field,
                    expected,
                    found,
                }
            }
            Err(error) => error,
        }
    }
}

/// A dtype, or the name of one that the format does not have.
enum Element<'a> {
    Known(Dtype),
    Opaque(Cow<'a, str>),
}

/// dtype and data_offsets. (The shape is where it stays, in the table.)
type Fields<'a> = (Element<'a>, (u64, u64));
