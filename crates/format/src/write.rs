//! The header's other direction: tensors laid out, the same bytes every time.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::fmt;

use crate::dtype::Dtype;
use crate::header::{LENGTH_BYTES, METADATA_KEY, Metadata, bit_count};
use crate::show::{shown, shown_shape};
use crate::spec::TensorSpec;

/// Headers are padded with spaces at least to a multiple of this, so that tensor data is aligned.
const ALIGN_BYTES_MIN: u64 = 8;

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
    /// For the alignment asked for in [`PlanOptions::align_bytes`]: by the largest power of two in
    /// each tensor's size, up to that alignment, largest first; among equals as
    /// [`Order::HuggingFace`]. The format allows no gaps, so a tensor is aligned only if those
    /// before it fill whole units, and this order makes as many as possible do so.
    Aligned,
}

/// How a file is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// The order of tensors.
    pub order: Order,
    /// Tensor data starts at a multiple of this many bytes: a power of two, at least 8. The
    /// header is padded with spaces, as the format provides for.
    pub align_bytes: u64,
    /// Spaces at the header's end beyond that, for tensors or metadata to be added later without
    /// moving the data.
    pub reserve_bytes: u64,
}

impl Default for PlanOptions {
    fn default() -> PlanOptions {
        PlanOptions {
            order: Order::default(),
            align_bytes: ALIGN_BYTES_MIN,
            reserve_bytes: 0,
        }
    }
}

/// How well the tensors of a planned file are aligned, counted from the file's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// The largest power of two, up to the one asked for, that divides the start of every tensor.
    pub every_tensor_bytes: u64,
    /// How many tensors start at a multiple of [`PlanOptions::align_bytes`].
    pub aligned_count: usize,
    /// How many tensors there are.
    pub tensor_count: usize,
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
    /// Shape and dtype ask for more than 2^64 bits, or for bits that do not fill whole bytes.
    BadSize {
        /// The tensor's name.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<u64>,
        /// Its size in bits; `None` if more than 2^64.
        bits: Option<u64>,
    },
    /// Tensor data cannot start at multiples of this.
    BadAlignment {
        /// What [`PlanOptions::align_bytes`] asks for.
        align_bytes: u64,
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
                write!(
                    f,
                    "tensor `{}` of {dtype} {} needs ",
                    shown(tensor),
                    shown_shape(shape)
                )?;
                match expected_bits {
                    Some(bits) if bits % 8 == 0 => write!(f, "{} bytes", bits / 8)?,
                    Some(bits) => write!(f, "{bits} bits, which do not fill whole bytes")?,
                    None => write!(f, "more than 2^64 bits")?,
                }
                write!(f, "; {byte_count} bytes were given")
            }
            WriteError::BadSize {
                tensor,
                dtype,
                shape,
                bits,
            } => {
                write!(
                    f,
                    "tensor `{}` of {dtype} {} has ",
                    shown(tensor),
                    shown_shape(shape)
                )?;
                match bits {
                    Some(bits) => write!(f, "{bits} bits, which do not fill whole bytes"),
                    None => write!(f, "more than 2^64 bits"),
                }
            }
            WriteError::BadAlignment { align_bytes } => write!(
                f,
                "tensor data cannot be aligned to {align_bytes} bytes; ask for a power of two, 8 or more"
            ),
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

/// A laid-out file: its first bytes, and where each tensor goes.
///
/// ```
/// use safelight_format::{Dtype, HeaderPlan, PlanOptions, TensorSpec};
///
/// let spec = |name: &str, dtype, shape: &[u64]| TensorSpec { name: name.into(), dtype, shape: shape.into() };
/// let specs = [spec("mask", Dtype::U8, &[3]), spec("weight", Dtype::F32, &[2, 2])];
/// let plan = HeaderPlan::from_specs(&specs, None, &PlanOptions { align_bytes: 64, ..PlanOptions::default() })?;
/// assert_eq!(plan.data_offsets(0), (16, 19)); // behind the wider type
/// assert_eq!((plan.data_start() % 64, plan.file_bytes()), (0, plan.data_start() + 19));
/// # Ok::<(), safelight_format::WriteError>(())
/// ```
#[derive(Clone, Debug)]
pub struct HeaderPlan {
    prefix: Vec<u8>,
    order: Vec<usize>,
    data_offsets: Vec<(u64, u64)>,
    data_bytes: u64,
    align_bytes: u64,
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
        let options = PlanOptions {
            order,
            ..PlanOptions::default()
        };
        HeaderPlan::with_options(tensors, metadata, &options)
    }

    /// As [`HeaderPlan::new`], with a say in alignment and spare room.
    ///
    /// # Errors
    /// As there.
    pub fn with_options(
        tensors: &[TensorView<'_>],
        metadata: Option<&Metadata>,
        options: &PlanOptions,
    ) -> Result<HeaderPlan, WriteError> {
        let entries: Result<Vec<Entry<'_>>, WriteError> = tensors.iter().map(of_view).collect();
        lay_out(&entries?, metadata, options)
    }

    /// Lays out tensors whose bytes are not there yet.
    ///
    /// # Errors
    /// As [`HeaderPlan::new`].
    pub fn from_specs(
        specs: &[TensorSpec],
        metadata: Option<&Metadata>,
        options: &PlanOptions,
    ) -> Result<HeaderPlan, WriteError> {
        let entries: Result<Vec<Entry<'_>>, WriteError> = specs.iter().map(of_spec).collect();
        lay_out(&entries?, metadata, options)
    }

    /// As [`HeaderPlan::from_specs`], for files that hand on tensors of dtypes which the format does not have: the spec of each
    /// such tensor says `U8` and how many bytes it has, and the header says what `opaque` does. Only
    /// [`crate::ParseOptions::opaque_dtypes`] reads such files.
    ///
    /// # Errors
    /// As [`HeaderPlan::new`].
    ///
    /// # Panics
    /// If there are not as many specs as a position in `opaque` says.
    pub fn with_opaque(
        specs: &[TensorSpec],
        opaque: &[OpaqueSpec],
        metadata: Option<&Metadata>,
        options: &PlanOptions,
    ) -> Result<HeaderPlan, WriteError> {
        let entries: Result<Vec<Entry<'_>>, WriteError> = specs.iter().map(of_spec).collect();
        let mut entries = entries?;
        for tensor in opaque {
            let entry = &mut entries[tensor.position];
            (entry.dtype_name, entry.shape) = (&tensor.dtype, &tensor.shape);
        }
        lay_out(&entries, metadata, options)
    }

    /// The file's first bytes: length and header. Tensor data follows.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// Which of the given tensors comes first, second, … in the file.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// The first byte of given tensor `position` and the one behind its last, from
    /// [`HeaderPlan::data_start`].
    ///
    /// # Panics
    /// If there are not that many tensors.
    pub fn data_offsets(&self, position: usize) -> (u64, u64) {
        self.data_offsets[position]
    }

    /// Where tensor data starts in the file.
    pub fn data_start(&self) -> u64 {
        self.prefix.len() as u64
    }

    /// The size of all tensors together.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// The size of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.data_start() + self.data_bytes // `lay_out` checked the sum
    }

    /// What alignment was possible.
    pub fn alignment(&self) -> Alignment {
        let starts = || {
            self.data_offsets
                .iter()
                .map(|&(starts_at, _)| self.data_start() + starts_at)
        };
        let all = starts().fold(self.data_start() | self.align_bytes, |all, start| {
            all | start
        });
        Alignment {
            every_tensor_bytes: 1 << all.trailing_zeros(),
            aligned_count: starts()
                .filter(|start| start.is_multiple_of(self.align_bytes))
                .count(),
            tensor_count: self.data_offsets.len(),
        }
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

/// What a header says of a tensor of a dtype that the format does not have, see [`HeaderPlan::with_opaque`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpaqueSpec {
    /// Which of the specs stands for it.
    pub position: usize,
    /// What the header calls its dtype, any text.
    pub dtype: String,
    /// Its dimensions; nothing follows from them.
    pub shape: Vec<u64>,
}

/// One tensor of a plan.
struct Entry<'a> {
    name: &'a str,
    dtype: Dtype,
    /// What the header calls it.
    dtype_name: &'a str,
    shape: &'a [u64],
    byte_count: u64,
}

fn of_spec(spec: &TensorSpec) -> Result<Entry<'_>, WriteError> {
    let byte_count = spec.byte_count().ok_or_else(|| WriteError::BadSize {
        tensor: spec.name.clone(),
        dtype: spec.dtype,
        shape: spec.shape.clone(),
        bits: bit_count(spec.dtype, &spec.shape),
    })?;
    Ok(Entry {
        name: &spec.name,
        dtype: spec.dtype,
        dtype_name: spec.dtype.name(),
        shape: &spec.shape,
        byte_count,
    })
}

fn of_view<'a>(tensor: &TensorView<'a>) -> Result<Entry<'a>, WriteError> {
    let &TensorView {
        name, dtype, shape, ..
    } = tensor;
    let byte_count = tensor.bytes.len() as u64;
    let expected_bits = bit_count(dtype, shape);
    if expected_bits != byte_count.checked_mul(8) || expected_bits.is_none() {
        return Err(WriteError::WrongLength {
            tensor: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            expected_bits,
            byte_count,
        });
    }
    Ok(Entry {
        name,
        dtype,
        dtype_name: dtype.name(),
        shape,
        byte_count,
    })
}

fn lay_out(
    entries: &[Entry<'_>],
    metadata: Option<&Metadata>,
    options: &PlanOptions,
) -> Result<HeaderPlan, WriteError> {
    let align_bytes = options.align_bytes;
    if !align_bytes.is_power_of_two() || align_bytes < ALIGN_BYTES_MIN {
        return Err(WriteError::BadAlignment { align_bytes });
    }
    check_names(entries)?;
    let order = arrange(entries, options);
    let room = entries.iter().map(|entry| entry.name.len() + 80).sum();
    let mut prefix = Vec::with_capacity(room);
    prefix.extend_from_slice(&[0; LENGTH_BYTES as usize]);
    prefix.push(b'{');
    if let Some(metadata) = metadata {
        put_metadata(&mut prefix, metadata);
    }
    let mut data_bytes = 0u64;
    let mut data_offsets = vec![(0, 0); entries.len()];
    for &position in &order {
        let starts_at = data_bytes;
        data_bytes = data_bytes
            .checked_add(entries[position].byte_count)
            .ok_or(WriteError::TotalOverflow)?;
        data_offsets[position] = (starts_at, data_bytes);
        put_entry(&mut prefix, &entries[position], (starts_at, data_bytes));
    }
    prefix.push(b'}');
    pad(&mut prefix, options)?;
    if data_bytes.checked_add(prefix.len() as u64).is_none() {
        return Err(WriteError::TotalOverflow);
    }
    Ok(HeaderPlan {
        prefix,
        order,
        data_offsets,
        data_bytes,
        align_bytes,
    })
}

/// Spaces until the data is aligned, and the length in front.
fn pad(prefix: &mut Vec<u8>, options: &PlanOptions) -> Result<(), WriteError> {
    let data_start = (prefix.len() as u64)
        .checked_add(options.reserve_bytes)
        .and_then(|end| end.checked_next_multiple_of(options.align_bytes));
    let header_bytes = data_start.map_or(u64::MAX, |data_start| data_start - LENGTH_BYTES);
    if header_bytes > HEADER_BYTES_MAX {
        return Err(WriteError::HeaderTooLong {
            header_bytes,
            limit_bytes: HEADER_BYTES_MAX,
        });
    }
    prefix.resize((LENGTH_BYTES + header_bytes) as usize, b' ');
    prefix[..LENGTH_BYTES as usize].copy_from_slice(&header_bytes.to_le_bytes());
    Ok(())
}

fn check_names(entries: &[Entry<'_>]) -> Result<(), WriteError> {
    let mut names = HashSet::with_capacity(entries.len());
    for entry in entries {
        if entry.name == METADATA_KEY {
            return Err(WriteError::ReservedName);
        }
        if !names.insert(entry.name) {
            return Err(WriteError::DuplicateName {
                tensor: entry.name.to_owned(),
            });
        }
    }
    Ok(())
}

/// Positions in the order of the file.
fn arrange(entries: &[Entry<'_>], options: &PlanOptions) -> Vec<usize> {
    let mut positions: Vec<usize> = (0..entries.len()).collect();
    let hugging_face = |i: usize| (Reverse(entries[i].dtype), entries[i].name);
    // (The bit of the alignment asked for is the highest that counts.)
    let unit = |i: usize| (entries[i].byte_count | options.align_bytes).trailing_zeros();
    match options.order {
        Order::HuggingFace => positions.sort_by_key(|&i| hugging_face(i)),
        Order::Insertion => {}
        Order::Name => positions.sort_by_key(|&i| entries[i].name),
        Order::Aligned => positions.sort_by_key(|&i| (Reverse(unit(i)), hugging_face(i))),
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

fn put_entry(json: &mut Vec<u8>, entry: &Entry<'_>, (starts_at, ends_at): (u64, u64)) {
    if !json.ends_with(b"{") {
        json.push(b',');
    }
    put_string(json, entry.name);
    json.extend_from_slice(b":{\"dtype\":");
    put_string(json, entry.dtype_name);
    json.extend_from_slice(b",\"shape\":[");
    for (count, &dim) in entry.shape.iter().enumerate() {
        if count > 0 {
            json.push(b',');
        }
        put_integer(json, dim);
    }
    json.extend_from_slice(b"],\"data_offsets\":[");
    put_integer(json, starts_at);
    json.push(b',');
    put_integer(json, ends_at);
    json.extend_from_slice(b"]}");
}

fn put_integer(json: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20]; // 2^64 has 20
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    json.extend_from_slice(&digits[start..]);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn specs(sizes: &[(Dtype, u64)]) -> Vec<TensorSpec> {
        let named = sizes.iter().enumerate();
        named
            .map(|(position, &(dtype, count))| TensorSpec {
                name: format!("t{position}"),
                dtype,
                shape: vec![count],
            })
            .collect()
    }

    fn plan(sizes: &[(Dtype, u64)], options: PlanOptions) -> Result<HeaderPlan, WriteError> {
        HeaderPlan::from_specs(&specs(sizes), None, &options)
    }

    #[test]
    fn specs_and_views_give_the_same_plan() {
        let specs = specs(&[
            (Dtype::U8, 3),
            (Dtype::F32, 2),
            (Dtype::F4, 4),
            (Dtype::U8, 0),
        ]);
        let bytes = [0; 8];
        let views: Vec<TensorView<'_>> = specs
            .iter()
            .map(|spec| TensorView {
                name: &spec.name,
                dtype: spec.dtype,
                shape: &spec.shape,
                bytes: &bytes[..spec.byte_count().unwrap() as usize],
            })
            .collect();
        for order in [
            Order::HuggingFace,
            Order::Insertion,
            Order::Name,
            Order::Aligned,
        ] {
            let options = PlanOptions {
                order,
                ..PlanOptions::default()
            };
            let ours = HeaderPlan::from_specs(&specs, None, &options).unwrap();
            let theirs = HeaderPlan::new(&views, None, order).unwrap();
            assert_eq!(ours.prefix(), theirs.prefix());
            assert_eq!((ours.order(), ours.data_bytes()), (theirs.order(), 13));
            let mut end = 0;
            for &position in ours.order() {
                assert_eq!(ours.data_offsets(position).0, end);
                end = ours.data_offsets(position).1;
            }
        }
    }

    #[test]
    fn data_starts_where_it_should_and_spaces_fill_the_gap() {
        for align_bytes in [8, 16, 64, 256, 4096, 1 << 20] {
            for reserve_bytes in [0, 1, 5000] {
                let options = PlanOptions {
                    align_bytes,
                    reserve_bytes,
                    ..PlanOptions::default()
                };
                let plan = plan(&[(Dtype::F32, 7)], options).unwrap();
                assert_eq!(plan.data_start() % align_bytes, 0);
                let spaces = plan.prefix().iter().rev().take_while(|&&byte| byte == b' ');
                let count = spaces.count() as u64;
                assert!((reserve_bytes..reserve_bytes + align_bytes).contains(&count));
            }
        }
    }

    #[test]
    fn the_aligned_order_aligns_what_can_be() {
        let sizes = [
            (Dtype::U8, 3),
            (Dtype::F32, 16),
            (Dtype::U8, 64),
            (Dtype::F16, 48),
            (Dtype::U8, 5),
        ];
        let with = |order| {
            let options = PlanOptions {
                order,
                align_bytes: 64,
                reserve_bytes: 0,
            };
            plan(&sizes, options).unwrap()
        };
        // 64 and 64 bytes, then 96 = 3 · 32, then the odd ones in the order of their names.
        assert_eq!(with(Order::Aligned).order(), [1, 2, 3, 0, 4]);
        let expected = Alignment {
            every_tensor_bytes: 1,
            aligned_count: 3,
            tensor_count: 5,
        };
        assert_eq!(with(Order::Aligned).alignment(), expected);
        assert_eq!(with(Order::HuggingFace).alignment().aligned_count, 2);
        let even = plan(&[(Dtype::F64, 3), (Dtype::F64, 1)], PlanOptions::default()).unwrap();
        assert_eq!(even.alignment().every_tensor_bytes, 8);
    }

    #[test]
    fn what_cannot_be_laid_out_is_refused() {
        for align_bytes in [0, 1, 4, 24] {
            let options = PlanOptions {
                align_bytes,
                ..PlanOptions::default()
            };
            let error = plan(&[], options).unwrap_err();
            assert_eq!(error, WriteError::BadAlignment { align_bytes });
        }
        for (align_bytes, reserve_bytes) in [
            (1 << 40, 0),
            (1 << 63, 1 << 63),
            (8, u64::MAX),
            (8, 100_000_000),
        ] {
            let options = PlanOptions {
                align_bytes,
                reserve_bytes,
                ..PlanOptions::default()
            };
            let error = plan(&[], options).unwrap_err();
            assert!(matches!(error, WriteError::HeaderTooLong { .. }), "{error}");
        }
        let odd = plan(&[(Dtype::F4, 3)], PlanOptions::default()).unwrap_err();
        assert_eq!(
            odd.to_string(),
            "tensor `t0` of F4 [3] has 12 bits, which do not fill whole bytes"
        );
        let huge = plan(&[(Dtype::U8, u64::MAX)], PlanOptions::default()).unwrap_err();
        assert_eq!(
            huge.to_string(),
            "tensor `t0` of U8 [18446744073709551615] has more than 2^64 bits"
        );
        let much = [(Dtype::U8, 1 << 60); 16];
        assert_eq!(
            plan(&much, PlanOptions::default()).unwrap_err(),
            WriteError::TotalOverflow
        );
    }

    #[test]
    fn integers() {
        for value in [0, 9, 10, 12345, u64::MAX] {
            let mut json = Vec::new();
            put_integer(&mut json, value);
            assert_eq!(json, value.to_string().as_bytes());
        }
    }
}
