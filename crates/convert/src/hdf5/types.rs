//! What the messages of a dataset say: its shape, its numbers, where they lie and how they are packed.
//!
//! Source: The HDF Group, HDF5 File Format Specification Version 3.0, §IV.A.2.

use safelight_format::Dtype;

use super::tree2::bytes_for;

/// HDF5 itself has no more dimensions.
const RANK_MAX: u64 = 32;

/// Fields of a message, one after the other. Errors say what is wrong.
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Fields<'a> {
        Fields { bytes, at: 0 }
    }

    pub(super) fn take(&mut self, len: u64) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let found = usize::try_from(len).ok().and_then(|len| rest.get(..len));
        let Some(found) = found else {
            return Err(format!(
                "a message of {} bytes ends within a field of {len} at {}",
                self.bytes.len(),
                self.at
            ));
        };
        self.at += found.len();
        Ok(found)
    }

    /// A little-endian number of up to eight bytes.
    pub(super) fn number(&mut self, len: u8) -> Result<u64, String> {
        let field = self.take(u64::from(len))?;
        let mut whole = [0; 8];
        whole
            .get_mut(..field.len())
            .ok_or_else(|| format!("a number of {len} bytes"))?
            .copy_from_slice(field);
        Ok(u64::from_le_bytes(whole))
    }

    /// What is left.
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    pub(super) fn byte(&mut self) -> Result<u8, String> {
        self.number(1).map(|byte| byte as u8)
    }

    /// An address; `None` if it is undefined (all ones).
    pub(super) fn address(&mut self, sizes: Sizes) -> Result<Option<u64>, String> {
        let address = self.number(sizes.offset)?;
        Ok((address != u64::MAX >> (64 - 8 * u32::from(sizes.offset))).then_some(address))
    }
}

/// How many bytes addresses and lengths have in a file: 2, 4 or 8.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) offset: u8,
    pub(super) length: u8,
}

/// A dataset's shape, and the largest it may grow to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) dims: Vec<u64>,
    /// `None` for a dimension without end.
    pub(super) most: Vec<Option<u64>>,
}

/// A dataspace message; `None` if the space has no elements by its kind.
pub(super) fn dataspace(bytes: &[u8], sizes: Sizes) -> Result<Option<Space>, String> {
    let mut fields = Fields::new(bytes);
    let version = fields.byte()?;
    let rank = u64::from(fields.byte()?);
    let flags = fields.byte()?;
    let kind = fields.byte()?;
    match version {
        1 => drop(fields.take(4)?),
        2 => {}
        _ => {
            return Err(format!(
                "version {version} of a dataspace; 1 and 2 are known here"
            ));
        }
    }
    if version == 2 && kind == 2 {
        return Ok(None);
    }
    if rank > RANK_MAX {
        return Err(format!("{rank} dimensions, HDF5 has at most {RANK_MAX}"));
    }
    let mut numbers = || {
        let numbers = (0..rank).map(|_| fields.number(sizes.length));
        numbers.collect::<Result<Vec<u64>, String>>()
    };
    let dims = numbers()?;
    let most = if flags & 1 != 0 {
        numbers()?
    } else {
        dims.clone()
    };
    let endless = u64::MAX >> (64 - 8 * u32::from(sizes.length));
    let most = most.into_iter().map(|dim| (dim != endless).then_some(dim));
    let most: Vec<Option<u64>> = most.collect();
    let larger = dims
        .iter()
        .zip(&most)
        .find(|(dim, most)| most.is_some_and(|most| most < **dim));
    if let Some((dim, most)) = larger {
        return Err(format!("a dimension of {dim}, which may grow to {most:?}"));
    }
    Ok(Some(Space { dims, most }))
}

/// What a dataset's elements are.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Element {
    Number {
        dtype: Dtype,
        big_endian: bool,
        /// What is worth a note.
        note: Option<&'static str>,
    },
    /// Bytes that say nothing of what they are.
    Opaque,
    /// Nothing that safetensors could hold: what it is.
    Other(String),
}

/// A datatype message: the elements, and the bytes of each.
pub(super) fn datatype(bytes: &[u8]) -> Result<(Element, u64), String> {
    let mut fields = Fields::new(bytes);
    let class = fields.byte()?;
    let flags = fields.number(3)?;
    let size = fields.number(4)?;
    let other = |what: &str| Ok((Element::Other(what.to_owned()), size));
    match class & 15 {
        0 => whole_number(&mut fields, flags, size),
        1 => float(&mut fields, flags, size),
        8 => enumeration(fields, class >> 4, flags, size),
        2 => other("times"),
        3 => other("texts"),
        4 => other("bit fields"),
        5 => Ok((Element::Opaque, size)),
        6 => compound(fields, class >> 4, flags, size),
        7 => other("references"),
        9 => other("values of variable length"),
        10 => other("arrays as elements"),
        11 => complex(fields.rest(), fields.rest(), size),
        class => Err(format!("datatype class {class}, which HDF5 does not have")),
    }
}

fn number(dtype: Dtype, big_endian: bool, size: u64) -> Result<(Element, u64), String> {
    let note = None;
    Ok((
        Element::Number {
            dtype,
            big_endian: big_endian && size > 1,
            note,
        },
        size,
    ))
}

fn whole_number(fields: &mut Fields<'_>, flags: u64, size: u64) -> Result<(Element, u64), String> {
    let (offset, precision) = (fields.number(2)?, fields.number(2)?);
    let signed = flags & 8 != 0;
    let dtype = match (size, signed) {
        (1, false) => Dtype::U8,
        (1, true) => Dtype::I8,
        (2, false) => Dtype::U16,
        (2, true) => Dtype::I16,
        (4, false) => Dtype::U32,
        (4, true) => Dtype::I32,
        (8, false) => Dtype::U64,
        (8, true) => Dtype::I64,
        _ => {
            let what = format!("whole numbers of {size} bytes");
            return Ok((Element::Other(what), size));
        }
    };
    if (offset, precision) != (0, size * 8) {
        let what = format!("whole numbers of {precision} bits in {size} bytes");
        return Ok((Element::Other(what), size));
    }
    number(dtype, flags & 1 != 0, size)
}

fn float(fields: &mut Fields<'_>, flags: u64, size: u64) -> Result<(Element, u64), String> {
    let (offset, precision) = (fields.number(2)?, fields.number(2)?);
    let mut byte = || fields.byte();
    let (exponent, mantissa) = ((byte()?, byte()?), (byte()?, byte()?));
    let bias = fields.number(4)?;
    let sign_at = flags >> 8 & 0xff;
    let plain = (offset, precision, sign_at)
        == (
            0,
            size.saturating_mul(8),
            size.saturating_mul(8).wrapping_sub(1),
        );
    let dtype = match (size, exponent, mantissa, bias) {
        (2, (10, 5), (0, 10), 15) => Dtype::F16,
        (2, (7, 8), (0, 7), 127) => Dtype::Bf16,
        (4, (23, 8), (0, 23), 127) => Dtype::F32,
        (8, (52, 11), (0, 52), 1023) => Dtype::F64,
        (1, (2, 5), (0, 2), 15) => Dtype::F8E5m2,
        (1, (3, 4), (0, 3), 7) => Dtype::F8E4m3,
        _ => {
            return Ok((
                Element::Other(format!("floats of {size} bytes of an unusual kind")),
                size,
            ));
        }
    };
    match flags & 0x41 {
        0 | 1 if plain => number(dtype, flags & 1 != 0, size),
        _ => Ok((
            Element::Other("floats in an unusual byte order".into()),
            size,
        )),
    }
}

/// A compound type: complex numbers as h5py writes them, with members `r` and `i`, or something else.
fn compound(
    mut fields: Fields<'_>,
    version: u8,
    flags: u64,
    size: u64,
) -> Result<(Element, u64), String> {
    let other = Ok((Element::Other("a compound type".into()), size));
    if flags & 0xffff != 2 {
        return other;
    }
    let mut members = Vec::new();
    for (expected, place) in [(b'r', 0), (b'i', size / 2)] {
        let named = fields.take(2)? == [expected, 0];
        if version < 3 {
            fields.take(6)?;
        }
        let offset = fields.number(if version < 3 { 4 } else { bytes_for(size) })?;
        if version == 1 {
            fields.take(28)?; // dimensions, which it has none of
        }
        let start = fields.rest();
        if !named || offset != place || start.first().is_none_or(|class| class & 15 != 1) {
            return other;
        }
        members.push(fields.take(20)?); // a float's message
    }
    complex(members[0], members[1], size)
}

/// Complex numbers of two such floats.
fn complex(real: &[u8], imaginary: &[u8], size: u64) -> Result<(Element, u64), String> {
    if real.first().is_none_or(|class| class & 15 != 1) {
        return Ok((
            Element::Other("complex numbers of an unusual kind".into()),
            size,
        ));
    }
    let (real, imaginary) = (datatype(real)?, datatype(imaginary)?);
    match real.0 {
        Element::Number {
            dtype: Dtype::F32,
            big_endian,
            ..
        } if size == 8 && real == imaginary => number(Dtype::C64, big_endian, size),
        _ => {
            let what = format!("complex numbers of {size} bytes, which safetensors does not have");
            Ok((Element::Other(what), size))
        }
    }
}

/// An enumeration: h5py's truth values, or names for whole numbers.
fn enumeration(
    mut fields: Fields<'_>,
    version: u8,
    flags: u64,
    size: u64,
) -> Result<(Element, u64), String> {
    let start = fields.at;
    let base = datatype_of_base(&fields.bytes[start..])?;
    let Element::Number {
        dtype, big_endian, ..
    } = base
    else {
        return Ok((
            Element::Other("an enumeration of no plain numbers".into()),
            size,
        ));
    };
    if dtype.bits() / 8 != size {
        return Err(format!("an enumeration of {size} bytes over {dtype}"));
    }
    fields.take(12)?; // the base type: a whole number's message
    let mut names = Vec::new();
    for _ in 0..(flags & 0xffff).min(3) {
        let rest = &fields.bytes[fields.at..];
        let Some(len) = rest.iter().position(|&byte| byte == 0) else {
            return Err("an enumeration's name does not end".into());
        };
        names.push(&rest[..len]);
        let taken = if version < 3 {
            (len + 8) / 8 * 8
        } else {
            len + 1
        };
        fields.take(taken as u64)?;
    }
    let is_bool = size == 1
        && flags & 0xffff == 2
        && names == [&b"FALSE"[..], b"TRUE"]
        && fields.take(2)? == [0, 1];
    let (dtype, note) = if is_bool {
        (Dtype::Bool, None)
    } else {
        (
            dtype,
            Some("an enumeration is read as its numbers; their names are dropped"),
        )
    };
    Ok((
        Element::Number {
            dtype,
            big_endian,
            note,
        },
        size,
    ))
}

/// The whole numbers below an enumeration.
fn datatype_of_base(bytes: &[u8]) -> Result<Element, String> {
    match bytes.first().map(|class| class & 15) {
        Some(0) => datatype(bytes).map(|(element, _)| element),
        _ => Ok(Element::Other(String::new())),
    }
}

/// A step that chunks went through when they were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    Deflate,
    /// First bytes of all elements first, then second ones …; elements of so many bytes.
    Shuffle(u64),
    /// Four bytes of checksum at the end.
    Fletcher32,
    /// h5py's own.
    Lzf,
}

/// What a filter is called; what is not known here is refused by this name.
fn filter_name(id: u64) -> &'static str {
    match id {
        4 => "szip",
        5 => "n-bit",
        6 => "scale-offset",
        307 => "bzip2",
        32001 => "Blosc",
        32004 => "LZ4",
        32008 => "bitshuffle",
        32013 => "ZFP",
        32015 => "Zstandard",
        32026 => "Blosc2",
        _ => "unknown",
    }
}

/// A filter message: the filters in the order of writing, or the name of one that nothing here undoes.
pub(super) fn filters(bytes: &[u8]) -> Result<Result<Vec<Filter>, String>, String> {
    let mut fields = Fields::new(bytes);
    let (version, count) = (fields.byte()?, fields.byte()?);
    if !(1..=2).contains(&version) || count > 32 {
        return Err(format!(
            "version {version} of a filter message, {count} filters"
        ));
    }
    if version == 1 {
        fields.take(6)?;
    }
    let mut filters = Vec::new();
    for _ in 0..count {
        let id = fields.number(2)?;
        let name_len = if version == 1 || id >= 256 {
            fields.number(2)?
        } else {
            0
        };
        fields.number(2)?;
        let value_count = fields.number(2)?;
        let padded = if version == 1 {
            name_len.next_multiple_of(8)
        } else {
            name_len
        };
        fields.take(padded)?;
        let values = (0..value_count).map(|_| fields.number(4));
        let values: Vec<u64> = values.collect::<Result<_, _>>()?;
        if version == 1 && value_count % 2 == 1 {
            fields.take(4)?;
        }
        filters.push(match id {
            1 => Filter::Deflate,
            2 => Filter::Shuffle(values.first().copied().unwrap_or(1).max(1)),
            3 => Filter::Fletcher32,
            32000 => Filter::Lzf,
            id => {
                let name = filter_name(id);
                return Ok(Err(format!("filter {id} ({name})")));
            }
        });
    }
    Ok(Ok(filters))
}

/// Where a dataset's elements lie.
#[derive(Clone, Debug)]
pub(super) enum Layout {
    /// In the message.
    Compact(Vec<u8>),
    /// In one run; `None` if they were never written.
    Contiguous(Option<u64>),
    /// In boxes of this shape.
    Chunked {
        chunk: Vec<u64>,
        index: Index,
        /// Whether chunks that reach beyond the dataset went through no filter.
        plain_edges: bool,
    },
    /// Somewhere that nothing here finds: what it is.
    Other(String),
}

/// How chunks are found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Index {
    /// None was written.
    Empty,
    BTree(u64),
    /// Address, stored bytes (`None` without filters), filters left out.
    Single(u64, Option<u64>, u32),
    Implicit(u64),
    FixedArray(u64),
    ExtensibleArray(u64),
    BTree2(u64),
}

/// A layout message.
pub(super) fn layout(bytes: &[u8], rank: usize, sizes: Sizes) -> Result<Layout, String> {
    let mut fields = Fields::new(bytes);
    let (version, class) = (fields.byte()?, fields.byte()?);
    if version < 3 {
        return old_layout(&mut fields, version, class, rank, sizes);
    }
    if version > 5 {
        let what = format!("a layout of version {version} (1 to 5 are known here)");
        return Ok(Layout::Other(what));
    }
    match class {
        0 => {
            let len = fields.number(2)?;
            Ok(Layout::Compact(fields.take(len)?.to_vec()))
        }
        1 => fields.address(sizes).map(Layout::Contiguous),
        2 if version == 3 => {
            let dims = fields.byte()?;
            let address = fields.address(sizes)?;
            let chunk = chunk_shape(&mut fields, dims, 4, rank)?;
            let index = address.map_or(Index::Empty, Index::BTree);
            Ok(Layout::Chunked {
                chunk,
                index,
                plain_edges: false,
            })
        }
        2 => {
            let (flags, dims, width) = (fields.byte()?, fields.byte()?, fields.byte()?);
            let chunk = chunk_shape(&mut fields, dims, width, rank)?;
            let kind = fields.byte()?;
            let index = match kind {
                1 if flags & 2 != 0 => {
                    let (size, mask) = (fields.number(sizes.length)?, fields.number(4)? as u32);
                    let address = fields.address(sizes)?;
                    address.map(|at| Index::Single(at, Some(size), mask))
                }
                1 => fields.address(sizes)?.map(|at| Index::Single(at, None, 0)),
                2 => fields.address(sizes)?.map(Index::Implicit),
                3 => {
                    fields.byte()?;
                    fields.address(sizes)?.map(Index::FixedArray)
                }
                4 => {
                    fields.take(5)?;
                    fields.address(sizes)?.map(Index::ExtensibleArray)
                }
                5 => {
                    fields.take(6)?;
                    fields.address(sizes)?.map(Index::BTree2)
                }
                _ => return Err(format!("chunk index {kind}, which HDF5 does not have")),
            };
            Ok(Layout::Chunked {
                chunk,
                index: index.unwrap_or(Index::Empty),
                plain_edges: flags & 1 != 0,
            })
        }
        3 => Ok(Layout::Other(
            "a virtual dataset, made of other files".into(),
        )),
        class => Err(format!("layout class {class}, which HDF5 does not have")),
    }
}

/// A layout message of versions 1 and 2, behind its first bytes: version, dimensions, class.
fn old_layout(
    fields: &mut Fields<'_>,
    version: u8,
    dims: u8,
    rank: usize,
    sizes: Sizes,
) -> Result<Layout, String> {
    let class = fields.byte()?;
    fields.take(5)?;
    match class {
        _ if version == 0 => Err("version 0 of a layout".into()),
        0 => {
            fields.take(4 * u64::from(dims))?;
            let len = fields.number(4)?;
            Ok(Layout::Compact(fields.take(len)?.to_vec()))
        }
        1 => fields.address(sizes).map(Layout::Contiguous),
        2 => {
            let address = fields.address(sizes)?;
            Ok(Layout::Chunked {
                chunk: chunk_shape(fields, dims, 4, rank)?,
                index: address.map_or(Index::Empty, Index::BTree),
                plain_edges: false,
            })
        }
        class => Err(format!("layout class {class}, which HDF5 does not have")),
    }
}

/// A chunk's shape, which the element's size follows.
fn chunk_shape(
    fields: &mut Fields<'_>,
    dims: u8,
    width: u8,
    rank: usize,
) -> Result<Vec<u64>, String> {
    if usize::from(dims) != rank + 1 || rank == 0 {
        return Err(format!(
            "chunks of {dims} dimensions (with the element's) for a dataset of {rank}"
        ));
    }
    let shape = (0..rank).map(|_| fields.number(width));
    let shape: Vec<u64> = shape.collect::<Result<_, _>>()?;
    fields.number(width)?;
    if shape.contains(&0) {
        return Err(format!("chunks of shape {shape:?}"));
    }
    Ok(shape)
}

/// A fill value message of the oldest kind: length and bytes.
pub(super) fn old_fill_value(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut fields = Fields::new(bytes);
    let len = fields.number(4)?;
    Ok(fields.take(len)?.to_vec())
}

/// A fill value message: the bytes of an element that was never written; empty for zeros.
pub(super) fn fill_value(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut fields = Fields::new(bytes);
    let version = fields.byte()?;
    let there = match version {
        1 | 2 => {
            fields.take(2)?;
            let defined = fields.byte()? != 0;
            version == 1 || defined
        }
        3 => fields.byte()? & 0x20 != 0,
        _ => return Err(format!("version {version} of a fill value")),
    };
    if !there {
        return Ok(Vec::new());
    }
    let len = fields.number(4)?;
    if len as i32 <= 0 {
        return Ok(Vec::new());
    }
    Ok(fields.take(len)?.to_vec())
}
