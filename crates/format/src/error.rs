//! Why bytes are not a safetensors file, by cause and with the numbers.

use std::fmt;

use crate::dtype::Dtype;
use crate::show::{shown, shown_shape};
use crate::sniff::FileKind;

/// Why these bytes are not a safetensors file, or not one we accept. Never the caller's fault,
/// but for [`FormatError::PrefixTooShort`].
///
/// Offsets count from the first byte of the file, but for a tensor's own, which count from the
/// first byte of tensor data, as in the header.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FormatError {
    /// The bytes are something else altogether.
    OtherKind {
        /// What they are.
        kind: FileKind,
    },
    /// Not even the eight bytes of the length prefix.
    TooSmall {
        /// The size of the whole file.
        file_bytes: u64,
    },
    /// The caller gave fewer bytes than the header needs, of a file that has them.
    PrefixTooShort {
        /// What was given.
        have_bytes: u64,
        /// What to give next time: prefix and header.
        need_bytes: u64,
    },
    /// The length prefix asks for more than [`crate::Limits::header_bytes_max`].
    HeaderTooLong {
        /// What the prefix says.
        header_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The header is longer than [`crate::Limits::header_bytes_max`], and the file begins as a safetensors file does and is
    /// long enough: with a higher limit it may be read.
    HeaderOverLimit {
        /// The header's length.
        header_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The header itself goes on behind the file's end.
    HeaderCutOff {
        /// What the prefix says.
        header_bytes: u64,
        /// The size of the whole file.
        file_bytes: u64,
    },
    /// The header is not UTF-8.
    NotUtf8 {
        /// The first byte that does not belong.
        at_byte: u64,
    },
    /// The header is not JSON.
    NotJson {
        /// Where the trouble shows.
        at_byte: u64,
        /// What could have stood there.
        expected: &'static str,
        /// What stands there; `None` is the header's end.
        found: Option<char>,
    },
    /// JSON arrays and objects lie in one another deeper than anyone needs.
    TooDeep {
        /// Where the first one too many opens.
        at_byte: u64,
    },
    /// A number too large for a 64-bit float.
    NumberOutOfRange {
        /// Where it ends.
        at_byte: u64,
    },
    /// A value has the wrong type.
    WrongType {
        /// Where the value starts.
        at_byte: u64,
        /// The tensor's name, or `__metadata__`.
        entry: String,
        /// The field, `None` if the whole entry is meant.
        field: Option<EntryField>,
        /// What should stand there.
        expected: &'static str,
        /// What does.
        found: JsonKind,
    },
    /// An entry lacks a field.
    MissingField {
        /// The tensor's name.
        tensor: String,
        /// What it lacks.
        field: EntryField,
    },
    /// An entry has a field twice.
    DuplicateField {
        /// The tensor's name.
        tensor: String,
        /// What it has twice.
        field: EntryField,
    },
    /// An entry has a field that the format does not know (strict only).
    UnknownField {
        /// The tensor's name.
        tensor: String,
        /// The field's name.
        field: String,
    },
    /// None of the 22 dtypes.
    UnknownDtype {
        /// The tensor's name.
        tensor: String,
        /// What the header says.
        dtype: String,
    },
    /// Two tensors of one name (strict only).
    DuplicateTensor {
        /// The name.
        tensor: String,
    },
    /// `__metadata__` is there twice, or (strict only) has a key twice.
    DuplicateMetadata {
        /// The key, `None` if it is `__metadata__` itself.
        key: Option<String>,
    },
    /// The header does not start with `{` (strict only).
    TextBeforeHeader {
        /// The first byte of the header.
        found: char,
    },
    /// The header is padded with something else than spaces (strict only).
    PaddingNotSpaces {
        /// The first byte that is no space.
        at_byte: u64,
        /// What stands there.
        found: char,
    },
    /// A tensor's end lies before its start.
    EndsBeforeStart {
        /// The tensor's name.
        tensor: String,
        /// Its first byte.
        starts_at: u64,
        /// The byte behind its last.
        ends_at: u64,
    },
    /// Tensor data is one unbroken run; this tensor starts early (it overlaps) or late (a hole).
    NotContiguous {
        /// The tensor's name.
        tensor: String,
        /// Where it starts.
        starts_at: u64,
        /// Where the one before it ends.
        expected_at: u64,
    },
    /// Shape and dtype ask for more than 2^64 bits.
    SizeOverflow {
        /// The tensor's name.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// Elements of 4 or 6 bits that do not fill their last byte.
    NotWholeBytes {
        /// The tensor's name.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its size in bits.
        bits: u64,
    },
    /// Shape and dtype say another size than the offsets.
    WrongSize {
        /// The tensor's name.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<u64>,
        /// The bytes that dtype and shape need.
        shape_bytes: u64,
        /// The bytes between the offsets.
        offset_bytes: u64,
    },
    /// The file ends before its tensors do.
    FileTooShort {
        /// What prefix, header and tensors need together.
        expected_bytes: u64,
        /// The size of the whole file.
        file_bytes: u64,
        /// How many tensors lie completely before the end.
        intact_count: usize,
        /// How many there should be.
        tensor_count: usize,
    },
    /// The file goes on behind its last tensor.
    FileTooLong {
        /// What prefix, header and tensors need together.
        expected_bytes: u64,
        /// The size of the whole file.
        file_bytes: u64,
    },
    /// More tensors than [`crate::Limits::tensor_count_max`].
    TooManyTensors {
        /// The limit.
        limit_count: u64,
    },
    /// More dimensions than [`crate::Limits::rank_max`].
    RankTooHigh {
        /// The tensor's name.
        tensor: String,
        /// The limit.
        limit_rank: u64,
    },
    /// A name longer than [`crate::Limits::name_bytes_max`].
    NameTooLong {
        /// The tensor's name.
        tensor: String,
        /// Its length in UTF-8.
        name_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// Keys and values of `__metadata__` together longer than [`crate::Limits::metadata_bytes_max`].
    MetadataTooLong {
        /// The limit.
        limit_bytes: u64,
    },
}

/// A field of a tensor's entry in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryField {
    /// `dtype`
    Dtype,
    /// `shape`
    Shape,
    /// `data_offsets`
    DataOffsets,
}

/// The type of a JSON value, as far as the first byte and a number's form tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonKind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number that is no integer from 0 to 2^64 - 1: negative, too large, a fraction, with an exponent.
    Number,
    /// An integer from 0 to 2^64 - 1.
    Integer,
    /// Text.
    String,
    /// An array.
    Array,
    /// An object.
    Object,
}

impl fmt::Display for EntryField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EntryField::Dtype => "dtype",
            EntryField::Shape => "shape",
            EntryField::DataOffsets => "data_offsets",
        })
    }
}

impl fmt::Display for JsonKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            JsonKind::Null => "null",
            JsonKind::Bool => "true or false",
            JsonKind::Number => "a number that is negative, a fraction or too large",
            JsonKind::Integer => "an integer",
            JsonKind::String => "text",
            JsonKind::Array => "an array",
            JsonKind::Object => "an object",
        })
    }
}

impl std::error::Error for FormatError {}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use FormatError as E;
        match self {
            E::OtherKind { .. }
            | E::TooSmall { .. }
            | E::PrefixTooShort { .. }
            | E::HeaderTooLong { .. }
            | E::HeaderOverLimit { .. }
            | E::HeaderCutOff { .. }
            | E::FileTooShort { .. }
            | E::FileTooLong { .. } => self.fmt_file(f),
            E::NotUtf8 { .. }
            | E::NotJson { .. }
            | E::TooDeep { .. }
            | E::NumberOutOfRange { .. }
            | E::TextBeforeHeader { .. }
            | E::PaddingNotSpaces { .. } => self.fmt_json(f),
            E::TooManyTensors { .. }
            | E::RankTooHigh { .. }
            | E::NameTooLong { .. }
            | E::MetadataTooLong { .. } => self.fmt_limit(f),
            _ => self.fmt_entry(f),
        }
    }
}

/// The messages, by what they are about. Each `match` ends in an arm that [`FormatError`]'s
/// `Display` never sends there.
impl FormatError {
    fn fmt_file(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FormatError::OtherKind { kind } => {
                write!(f, "not a safetensors file but {}", kind.advice())
            }
            FormatError::TooSmall { file_bytes: 0 } => {
                write!(f, "the file is empty; download or copy it again")
            }
            FormatError::TooSmall { file_bytes } => write!(
                f,
                "the file has {file_bytes} bytes, a safetensors file at least 10; download or copy it again"
            ),
            FormatError::PrefixTooShort {
                have_bytes,
                need_bytes,
            } => {
                write!(
                    f,
                    "the header needs the file's first {need_bytes} bytes, only {have_bytes} were given"
                )
            }
            FormatError::HeaderTooLong {
                header_bytes,
                limit_bytes,
            } => write!(
                f,
                "the first eight bytes ask for a header of {header_bytes} bytes, the limit is {limit_bytes}: \
                 probably not a safetensors file"
            ),
            FormatError::HeaderOverLimit {
                header_bytes,
                limit_bytes,
            } => write!(
                f,
                "the header has {header_bytes} bytes, the limit is {limit_bytes}; if you trust the file, raise the limit: \
                 `--max-header {header_bytes}`, in programs `Limits::header_bytes_max`"
            ),
            FormatError::HeaderCutOff {
                header_bytes,
                file_bytes,
            } => write!(
                f,
                "the first eight bytes ask for a header of {header_bytes} bytes, the whole file has {file_bytes}: \
                 cut short, or not a safetensors file; download or copy it again"
            ),
            FormatError::FileTooShort {
                expected_bytes,
                file_bytes,
                intact_count,
                tensor_count,
            } => write!(
                f,
                "the file is cut short: its header describes {expected_bytes} bytes, there are {file_bytes} \
                 ({intact_count} of {tensor_count} tensors are complete); download or copy it again"
            ),
            FormatError::FileTooLong {
                expected_bytes,
                file_bytes,
            } => write!(
                f,
                "the header describes {expected_bytes} bytes, the file has {file_bytes}: {} bytes behind the last \
                 tensor belong to nothing",
                file_bytes.saturating_sub(*expected_bytes)
            ),
            other => write!(f, "{other:?}"),
        }
    }

    fn fmt_json(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FormatError::NotUtf8 { at_byte } => {
                write!(
                    f,
                    "the header is not text: byte {at_byte} of the file is not UTF-8"
                )
            }
            FormatError::NotJson {
                at_byte,
                expected,
                found,
            } => {
                write!(
                    f,
                    "the header is not JSON: at byte {at_byte} of the file {expected} is expected, found "
                )?;
                match found {
                    Some(c) => write!(f, "`{}`", shown(c.encode_utf8(&mut [0; 4]))),
                    None => write!(f, "the header's end"),
                }
            }
            FormatError::TooDeep { at_byte } => {
                write!(
                    f,
                    "the header nests arrays or objects more than 127 deep at byte {at_byte} of the file"
                )
            }
            FormatError::NumberOutOfRange { at_byte } => {
                write!(
                    f,
                    "the header has a number no 64-bit float can hold, before byte {at_byte} of the file"
                )
            }
            FormatError::TextBeforeHeader { found } => write!(
                f,
                "the header starts with `{}` where the format asks for `{{`",
                shown(found.encode_utf8(&mut [0; 4]))
            ),
            FormatError::PaddingNotSpaces { at_byte, found } => write!(
                f,
                "the header is padded with `{}` at byte {at_byte} of the file; the format allows spaces only",
                shown(found.encode_utf8(&mut [0; 4]))
            ),
            other => write!(f, "{other:?}"),
        }
    }

    fn fmt_entry(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FormatError::WrongType {
                at_byte,
                entry,
                field,
                expected,
                found,
            } => {
                match field {
                    Some(field) => write!(f, "`{field}` of tensor `{}`", shown(entry))?,
                    None => write!(f, "the header's entry `{}`", shown(entry))?,
                }
                write!(
                    f,
                    " has {found} at byte {at_byte} of the file where {expected} is expected"
                )
            }
            FormatError::MissingField { tensor, field } => {
                write!(f, "tensor `{}` has no `{field}`", shown(tensor))
            }
            FormatError::DuplicateField { tensor, field } => {
                write!(f, "tensor `{}` has `{field}` twice", shown(tensor))
            }
            FormatError::UnknownField { tensor, field } => {
                write!(
                    f,
                    "tensor `{}` has a field `{}` that the format does not know",
                    shown(tensor),
                    shown(field)
                )
            }
            FormatError::UnknownDtype { tensor, dtype } => {
                write!(
                    f,
                    "tensor `{}` has dtype `{}`, none of the 22 that the format has",
                    shown(tensor),
                    shown(dtype)
                )
            }
            FormatError::DuplicateTensor { tensor } => {
                write!(f, "two tensors are called `{}`", shown(tensor))
            }
            FormatError::DuplicateMetadata { key: None } => {
                write!(f, "the header has `__metadata__` twice")
            }
            FormatError::DuplicateMetadata { key: Some(key) } => {
                write!(
                    f,
                    "the header's `__metadata__` has the key `{}` twice",
                    shown(key)
                )
            }
            other => other.fmt_geometry(f),
        }
    }

    fn fmt_geometry(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FormatError::EndsBeforeStart {
                tensor,
                starts_at,
                ends_at,
            } => {
                write!(
                    f,
                    "tensor `{}` starts at byte {starts_at} and ends before it, at {ends_at}",
                    shown(tensor)
                )
            }
            FormatError::NotContiguous {
                tensor,
                starts_at,
                expected_at,
            } => {
                write!(
                    f,
                    "tensor `{}` starts at byte {starts_at}, expected {expected_at}",
                    shown(tensor)
                )?;
                write!(
                    f,
                    " ({})",
                    if starts_at < expected_at {
                        "it overlaps another"
                    } else {
                        "a hole before it"
                    }
                )
            }
            FormatError::SizeOverflow {
                tensor,
                dtype,
                shape,
            } => {
                write!(
                    f,
                    "tensor `{}` of {dtype} {} has more than 2^64 bits",
                    shown(tensor),
                    shown_shape(shape)
                )
            }
            FormatError::NotWholeBytes {
                tensor,
                dtype,
                bits,
            } => {
                write!(
                    f,
                    "tensor `{}` of {dtype} has {bits} bits, which do not fill whole bytes",
                    shown(tensor)
                )
            }
            FormatError::WrongSize {
                tensor,
                dtype,
                shape,
                shape_bytes,
                offset_bytes,
            } => write!(
                f,
                "tensor `{}` of {dtype} {} needs {shape_bytes} bytes, its data_offsets span {offset_bytes}",
                shown(tensor),
                shown_shape(shape)
            ),
            other => write!(f, "{other:?}"),
        }
    }

    fn fmt_limit(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FormatError::TooManyTensors { limit_count } => {
                write!(
                    f,
                    "the file has more tensors than the limit of {limit_count}"
                )
            }
            FormatError::RankTooHigh { tensor, limit_rank } => {
                write!(
                    f,
                    "tensor `{}` has more dimensions than the limit of {limit_rank}",
                    shown(tensor)
                )
            }
            FormatError::NameTooLong {
                tensor,
                name_bytes,
                limit_bytes,
            } => {
                write!(
                    f,
                    "tensor name `{}` has {name_bytes} bytes, the limit is {limit_bytes}",
                    shown(tensor)
                )
            }
            FormatError::MetadataTooLong { limit_bytes } => {
                write!(
                    f,
                    "the header's `__metadata__` has more than the limit of {limit_bytes} bytes"
                )
            }
            other => write!(f, "{other:?}"),
        }
    }
}
