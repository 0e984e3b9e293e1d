//! The header's other direction: tensors laid out, the same bytes every time.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::fmt;

use crate::dtype::Dtype;
use crate::header::{LENGTH_BYTES, METADATA_KEY, Metadata, bit_count};
use crate::show::shown;

/// Headers are padded with spaces to a multiple of this, so that tensor data is aligned.
const ALIGNMENT_BYTES: usize = 8;

/// The reference implementation's limit; a longer header could be written but not read.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// A tensor that lies in memory: to be written, or found in a mapped file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorView<'a> {
    /// Its name.
    pub name: &'a str,
    /// What one element is.
    pub dtype: Dtype,
    /// Its dimensions, outermost first.
    pub shape: &'a [u64],
    /// Its elements, little-endian, the last dimension's next to each other.
    pub bytes: &'a [u8],
}

/// The order of tensors in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By dtype, widest first, then by name: the same bytes as the `safetensors` crate writes
    /// (which itself varies when there are two or more keys of metadata). Every tensor is aligned
    /// to its element's size.
    #[default]
    HuggingFace,
    /// As given.
    Insertion,
    /// By name, in the order of UTF-8 bytes.
    Name,
}

/// Why tensors cannot be written: the caller's mistakes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteError {
    /// Two tensors of one name.
    DuplicateName {
        /// The name.
        tensor: String,
    },
    /// A tensor called `__metadata__`: the file could never be read again.
    ReservedName,
    /// Shape and dtype ask for another number of bytes than there are.
    WrongLength {
        /// The tensor's name.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<u64>,
        /// What dtype and shape need, in bits; `None` if more than 2^64.
        expected_bits: Option<u64>,
        /// The bytes that were given.
        byte_count: u64,
    },
    /// All tensors together have more than 2^64 bytes.
    TotalOverflow,
    /// The header would be longer than any reader accepts.
    HeaderTooLong {
        /// How long it would be.
        header_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
}

impl std::error::Error for WriteError {}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WriteError::DuplicateName { tensor } => {
                write!(
                    f,
                    "two tensors are called `{}`; rename or drop one",
                    shown(tensor)
                )
            }
            WriteError::ReservedName => {
                write!(
                    f,
                    "a tensor is called `{METADATA_KEY}`, which the format reserves; rename it"
                )
            }
            WriteError::WrongLength {
                tensor,
                dtype,
                shape,
                expected_bits,
                byte_count,
            } => {
                write!(f, "tensor `{}` of {dtype} {shape:?} needs ", shown(tensor))?;
                match expected_bits {
                    Some(bits) if bits % 8 == 0 => write!(f, "{} bytes", bits / 8)?,
                    Some(bits) => write!(f, "{bits} bits, which do not fill whole bytes")?,
                    None => write!(f, "more than 2^64 bits")?,
                }
                write!(f, "; {byte_count} bytes were given")
            }
            WriteError::TotalOverflow => {
                write!(f, "all tensors together have more than 2^64 bytes")
            }
            WriteError::HeaderTooLong {
                header_bytes,
                limit_bytes,
            } => {
                write!(
                    f,
                    "the header would have {header_bytes} bytes, the limit is {limit_bytes}; use fewer tensors"
                )
            }
        }
    }
}

/// A laid-out file: its first bytes, and which tensor comes when.
#[derive(Clone, Debug)]
pub struct HeaderPlan {
    prefix: Vec<u8>,
    order: Vec<usize>,
    data_bytes: u64,
}

impl HeaderPlan {
    /// Lays tensors out. Equal input gives equal bytes: nothing depends on addresses, clocks or
    /// hash seeds.
    ///
    /// # Errors
    /// [`WriteError`], and then nothing has been written anywhere.
    pub fn new(
        tensors: &[TensorView<'_>],
        metadata: Option<&Metadata>,
        order: Order,
    ) -> Result<HeaderPlan, WriteError> {
        check_each(tensors)?;
        let order = arrange(tensors, order);
        let mut json = Vec::with_capacity(
            tensors
                .iter()
                .map(|tensor| tensor.name.len() + 80)
                .sum::<usize>()
                + 16,
        );
        json.push(b'{');
        if let Some(metadata) = metadata {
            put_metadata(&mut json, metadata);
        }
        let mut data_bytes = 0u64;
        for &position in &order {
            let tensor = &tensors[position];
            let starts_at = data_bytes;
            data_bytes = data_bytes
                .checked_add(tensor.bytes.len() as u64)
                .ok_or(WriteError::TotalOverflow)?;
            put_entry(&mut json, tensor, (starts_at, data_bytes));
        }
        json.push(b'}');
        json.resize(json.len().next_multiple_of(ALIGNMENT_BYTES), b' ');
        let header_bytes = json.len() as u64;
        if header_bytes > HEADER_BYTES_MAX {
            return Err(WriteError::HeaderTooLong {
                header_bytes,
                limit_bytes: HEADER_BYTES_MAX,
            });
        }
        if data_bytes
            .checked_add(LENGTH_BYTES + header_bytes)
            .is_none()
        {
            return Err(WriteError::TotalOverflow);
        }
        let mut prefix = header_bytes.to_le_bytes().to_vec();
        prefix.append(&mut json);
        Ok(HeaderPlan {
            prefix,
            order,
            data_bytes,
        })
    }

    /// The file's first bytes: length and header. Tensor data follows.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// Which of the given tensors comes first, second, … in the file.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// The size of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.prefix.len() as u64 + self.data_bytes
    }

    /// The whole file in memory. `tensors` are the ones the plan was made from.
    ///
    /// # Panics
    /// If they are fewer.
    pub fn to_bytes(&self, tensors: &[TensorView<'_>]) -> Vec<u8> {
        let mut file = self.prefix.clone();
        for &position in &self.order {
            file.extend_from_slice(tensors[position].bytes);
        }
        file
    }
}

fn check_each(tensors: &[TensorView<'_>]) -> Result<(), WriteError> {
    let mut names = HashSet::with_capacity(tensors.len());
    for tensor in tensors {
        if tensor.name == METADATA_KEY {
            return Err(WriteError::ReservedName);
        }
        if !names.insert(tensor.name) {
            return Err(WriteError::DuplicateName {
                tensor: tensor.name.to_owned(),
            });
        }
        let byte_count = tensor.bytes.len() as u64;
        let expected_bits = bit_count(tensor.dtype, tensor.shape);
        if expected_bits != byte_count.checked_mul(8) || expected_bits.is_none() {
            let (shape, dtype) = (tensor.shape.to_vec(), tensor.dtype);
            let tensor = tensor.name.to_owned();
            return Err(WriteError::WrongLength {
                tensor,
                dtype,
                shape,
                expected_bits,
                byte_count,
            });
        }
    }
    Ok(())
}

/// Positions in the order of the file.
fn arrange(tensors: &[TensorView<'_>], order: Order) -> Vec<usize> {
    let mut positions: Vec<usize> = (0..tensors.len()).collect();
    match order {
        Order::HuggingFace => {
            positions.sort_by_key(|&i| (Reverse(tensors[i].dtype), tensors[i].name))
        }
        Order::Insertion => {}
        Order::Name => positions.sort_by_key(|&i| tensors[i].name),
    }
    positions
}

fn put_metadata(json: &mut Vec<u8>, metadata: &Metadata) {
    put_string(json, METADATA_KEY);
    json.extend_from_slice(b":{");
    for (count, (key, value)) in metadata.iter().enumerate() {
        if count > 0 {
            json.push(b',');
        }
        put_string(json, key);
        json.push(b':');
        put_string(json, value);
    }
    json.push(b'}');
}

fn put_entry(json: &mut Vec<u8>, tensor: &TensorView<'_>, (starts_at, ends_at): (u64, u64)) {
    if json.len() > 1 {
        json.push(b',');
    }
    put_string(json, tensor.name);
    json.extend_from_slice(b":{\"dtype\":\"");
    json.extend_from_slice(tensor.dtype.name().as_bytes());
    json.extend_from_slice(b"\",\"shape\":[");
    for (count, dim) in tensor.shape.iter().enumerate() {
        if count > 0 {
            json.push(b',');
        }
        json.extend_from_slice(dim.to_string().as_bytes());
    }
    json.extend_from_slice(format!("],\"data_offsets\":[{starts_at},{ends_at}]}}").as_bytes());
}

/// A JSON string: quotes, backslashes and control characters escaped, all else as it is.
fn put_string(json: &mut Vec<u8>, text: &str) {
    json.push(b'"');
    for &byte in text.as_bytes() {
        match byte {
            b'"' => json.extend_from_slice(b"\\\""),
            b'\\' => json.extend_from_slice(b"\\\\"),
            8 => json.extend_from_slice(b"\\b"),
            9 => json.extend_from_slice(b"\\t"),
            10 => json.extend_from_slice(b"\\n"),
            12 => json.extend_from_slice(b"\\f"),
            13 => json.extend_from_slice(b"\\r"),
            0..0x20 => json.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => json.push(byte),
        }
    }
    json.push(b'"');
}
