//! Flax's msgpack files as a source: nested dictionaries of arrays, named by their keys with dots between.
//!
//! Only places are kept of arrays; their bytes are read on demand. Source: the MessagePack specification, and
//! `flax/serialization.py`: extension 1 is an array (a packed tuple of shape, dtype's name and bytes), 2 a complex
//! number, 3 a NumPy scalar; arrays above 1 GiB come as `__msgpack_chunked_array__` dictionaries.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use safelight_format::{Dtype, TensorSpec, shown};
use safelight_store::ReadAt;

use crate::error::ConvertError;
use crate::input::{Cursor, Input};
use crate::source::{Contents, LimitName, Limits, Note, Source, skip};

/// Deeper nesting is refused, whatever the limits say: each level is a call.
const DEPTH_MAX: u32 = 200;

/// NumPy arrays have at most as many dimensions.
const RANK_MAX: u64 = 64;

/// Marks a dictionary that is an array in pieces.
const CHUNKED: &str = "__msgpack_chunked_array__";

/// What a value counts for in memory, beside its text.
const NODE_BYTES: u64 = 128;

/// Whether a file's first bytes look like a Flax checkpoint: msgpack has no magic number, but a checkpoint starts with a
/// dictionary and its first key, or is one array.
pub(crate) fn is_flax(start: &[u8]) -> bool {
    let rest = match start {
        [0x81..=0x8f, rest @ ..] => rest,
        [0xde, a, b, rest @ ..] if [*a, *b] != [0; 2] => rest,
        [0xdf, a, b, c, d, rest @ ..] if [*a, *b, *c, *d] != [0; 4] => rest,
        [0xc7, _, 1, 0x93, ..] | [0xc8, _, _, 1, 0x93, ..] | [0xc9, _, _, _, _, 1, 0x93, ..] => {
            return true;
        }
        _ => return false,
    };
    let key = match rest {
        [len @ 0xa1..=0xbf, rest @ ..] => rest.get(..usize::from(len & 31)),
        [0xd9, len, rest @ ..] => rest.get(..usize::from(*len)),
        _ => return false,
    };
    let text = key.and_then(|key| std::str::from_utf8(key).ok());
    text.is_some_and(|text| !text.contains(char::is_control))
}

/// The arrays of a Flax checkpoint.
pub struct FlaxSource {
    input: Input<'static>,
    contents: Contents,
    /// Where each tensor's bytes lie; several runs if it came in pieces.
    places: Vec<Vec<Place>>,
}

/// A run of bytes in the file.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: u64,
    byte_count: u64,
}

impl FlaxSource {
    /// Opens a file and reads all but its arrays. Plain numbers and texts go into the metadata if
    /// `values_to_metadata`, and are dropped with a note if not.
    ///
    /// # Errors
    /// What is wrong with the file, or what of it safetensors cannot hold.
    pub fn open(
        path: &Path,
        limits: &Limits,
        values_to_metadata: bool,
    ) -> Result<FlaxSource, ConvertError> {
        let input = Input::open(path, "Flax msgpack")?;
        FlaxSource::read_from(input, limits, values_to_metadata)
    }

    /// As [`FlaxSource::open`], from anything that can be read at any position; `label` is for messages.
    ///
    /// # Errors
    /// As [`FlaxSource::open`].
    pub fn from_reader(
        label: &str,
        reader: Box<dyn ReadAt>,
        limits: &Limits,
        values_to_metadata: bool,
    ) -> Result<FlaxSource, ConvertError> {
        let input = Input::new(label, reader, "Flax msgpack")?;
        FlaxSource::read_from(input, limits, values_to_metadata)
    }

    pub(crate) fn read_from(
        input: Input<'static>,
        limits: &Limits,
        values_to_metadata: bool,
    ) -> Result<FlaxSource, ConvertError> {
        let (contents, places) = read_all(&input, limits, values_to_metadata)?;
        Ok(FlaxSource {
            input,
            contents,
            places,
        })
    }
}

/// How many arrays a Flax checkpoint has, for those who only want to know whether it is one.
///
/// # Errors
/// As [`FlaxSource::open`].
pub(crate) fn count_arrays(
    label: &str,
    bytes: &dyn ReadAt,
    limits: &Limits,
) -> Result<usize, ConvertError> {
    let input = Input::borrowing(label, bytes, "Flax msgpack")?;
    let (contents, _) = read_all(&input, limits, false)?;
    Ok(contents.tensors.len())
}

/// All but the arrays, and where those lie.
fn read_all(
    input: &Input<'_>,
    limits: &Limits,
    values_to_metadata: bool,
) -> Result<(Contents, Vec<Vec<Place>>), ConvertError> {
    let mut reader = Reader {
        cursor: input.cursor(0),
        input,
        limits,
        kept_bytes: 0,
    };
    let root = reader.value(0)?;
    if reader.cursor.at != input.byte_count {
        let left = input.byte_count - reader.cursor.at;
        let problem = format!("{left} bytes behind the end of the first value");
        return Err(input.malformed("", problem));
    }
    let mut flat = Flat {
        input,
        limits,
        values_to_metadata,
        names: HashSet::new(),
        tensors: Vec::new(),
        places: Vec::new(),
        metadata: BTreeMap::new(),
        notes: Vec::new(),
        skipped: Vec::new(),
    };
    flat.walk("", root)?;
    let contents = Contents {
        label: input.label.clone(),
        tensors: flat.tensors,
        metadata: flat.metadata,
        notes: flat.notes,
        skipped: flat.skipped,
        ..Contents::default()
    };
    Ok((contents, flat.places))
}

impl Source for FlaxSource {
    fn contents(&self) -> &Contents {
        &self.contents
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        for place in &self.places[index] {
            let mut pass = |piece: &mut [u8]| out(piece);
            self.input
                .pieces(place.offset, place.byte_count, 8, &mut pass)?;
        }
        Ok(())
    }
}

/// A value of the file; arrays as places.
enum Node {
    Dict(Vec<(String, Node)>),
    /// Lists are dictionaries of positions to Flax.
    List(Vec<Node>),
    Array(Array),
    /// A whole number that is not negative: the only one shapes have.
    Count(u64),
    /// Any other number, text or truth value.
    Plain(String),
    /// Nothing that could be kept: what it is.
    Other(&'static str),
}

struct Array {
    dtype: String,
    shape: Vec<u64>,
    place: Place,
}

/// Lengths and extension of a value that is more than a number.
enum Head {
    Text(u64),
    Bytes(u64),
    List(u64),
    Dict(u64),
    Extension { kind: i8, len: u64 },
    Node(Node),
}

struct Reader<'a> {
    input: &'a Input<'a>,
    cursor: Cursor<'a>,
    limits: &'a Limits,
    kept_bytes: u64,
}

impl Reader<'_> {
    /// The first byte of a value, and the number, length or extension that it begins.
    fn head(&mut self) -> Result<Head, ConvertError> {
        let at = self.cursor.at;
        let [first] = self.cursor.array()?;
        let plain = |text: String| Head::Node(Node::Plain(text));
        Ok(match first {
            0..=0x7f => Head::Node(Node::Count(u64::from(first))),
            0x80..=0x8f => Head::Dict(u64::from(first & 15)),
            0x90..=0x9f => Head::List(u64::from(first & 15)),
            0xa0..=0xbf => Head::Text(u64::from(first & 31)),
            0xc0 => Head::Node(Node::Other("None")),
            0xc2 => plain("false".into()),
            0xc3 => plain("true".into()),
            0xc4 => Head::Bytes(self.number::<1>()?),
            0xc5 => Head::Bytes(self.number::<2>()?),
            0xc6 => Head::Bytes(self.number::<4>()?),
            0xc7 => self.extension_of::<1>()?,
            0xc8 => self.extension_of::<2>()?,
            0xc9 => self.extension_of::<4>()?,
            0xca => plain(f32::from_be_bytes(self.cursor.array()?).to_string()),
            0xcb => plain(f64::from_be_bytes(self.cursor.array()?).to_string()),
            0xcc => Head::Node(Node::Count(self.number::<1>()?)),
            0xcd => Head::Node(Node::Count(self.number::<2>()?)),
            0xce => Head::Node(Node::Count(self.number::<4>()?)),
            0xcf => Head::Node(Node::Count(self.number::<8>()?)),
            0xd0 => plain(i8::from_be_bytes(self.cursor.array()?).to_string()),
            0xd1 => plain(i16::from_be_bytes(self.cursor.array()?).to_string()),
            0xd2 => plain(i32::from_be_bytes(self.cursor.array()?).to_string()),
            0xd3 => plain(i64::from_be_bytes(self.cursor.array()?).to_string()),
            0xd4..=0xd8 => self.extension(1 << (first - 0xd4))?,
            0xd9 => Head::Text(self.number::<1>()?),
            0xda => Head::Text(self.number::<2>()?),
            0xdb => Head::Text(self.number::<4>()?),
            0xdc => Head::List(self.number::<2>()?),
            0xdd => Head::List(self.number::<4>()?),
            0xde => Head::Dict(self.number::<2>()?),
            0xdf => Head::Dict(self.number::<4>()?),
            0xe0.. => plain((first as i8).to_string()),
            0xc1 => {
                let problem = format!("byte {at} is 0xc1, which msgpack never uses");
                return Err(self.input.malformed("", problem));
            }
        })
    }

    /// A big-endian number of `N` bytes.
    fn number<const N: usize>(&mut self) -> Result<u64, ConvertError> {
        let bytes: [u8; N] = self.cursor.array()?;
        Ok(bytes
            .iter()
            .fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn extension_of<const N: usize>(&mut self) -> Result<Head, ConvertError> {
        let len = self.number::<N>()?;
        self.extension(len)
    }

    fn extension(&mut self, len: u64) -> Result<Head, ConvertError> {
        let kind = i8::from_be_bytes(self.cursor.array()?);
        Ok(Head::Extension { kind, len })
    }

    /// Counts what is kept in memory.
    fn keep(&mut self, bytes: u64) -> Result<(), ConvertError> {
        self.kept_bytes = self.kept_bytes.saturating_add(bytes + NODE_BYTES);
        let limit = self.limits.bound(LimitName::Memory);
        self.input
            .limited("", "bytes of keys and values", self.kept_bytes, limit)
    }

    fn text(&mut self, len: u64) -> Result<String, ConvertError> {
        self.keep(len)?;
        Ok(String::from_utf8_lossy(self.cursor.take(len)?).into_owned())
    }

    fn value(&mut self, depth: u32) -> Result<Node, ConvertError> {
        let limit = self
            .limits
            .bound(LimitName::Depth)
            .and(u64::from(DEPTH_MAX));
        let what = "values within each other";
        self.input.limited("", what, u64::from(depth), limit)?;
        self.keep(0)?;
        Ok(match self.head()? {
            Head::Node(node) => node,
            Head::Text(len) => Node::Plain(self.text(len)?),
            Head::Bytes(len) => {
                self.cursor.skip(len)?;
                Node::Other("bytes")
            }
            Head::List(count) => {
                let mut list = Vec::new();
                for _ in 0..count {
                    list.push(self.value(depth + 1)?);
                }
                Node::List(list)
            }
            Head::Dict(count) => {
                let mut entries = Vec::new();
                for _ in 0..count {
                    let key = self.key()?;
                    entries.push((key, self.value(depth + 1)?));
                }
                Node::Dict(entries)
            }
            Head::Extension { kind: 1 | 3, len } => self.array(len)?,
            Head::Extension { kind, len } => {
                self.cursor.skip(len)?;
                Node::Other(if kind == 2 {
                    "a complex number"
                } else {
                    "an extension that Flax does not have"
                })
            }
        })
    }

    fn key(&mut self) -> Result<String, ConvertError> {
        let at = self.cursor.at;
        match self.head()? {
            Head::Text(len) | Head::Bytes(len) => self.text(len),
            Head::Node(Node::Count(number)) => Ok(number.to_string()),
            Head::Node(Node::Plain(text)) => Ok(text),
            _ => {
                let problem = format!("the key at byte {at} is neither a text nor a number");
                Err(self.input.malformed("", problem))
            }
        }
    }

    /// A packed tuple of shape, dtype and bytes, `len` bytes in all.
    fn array(&mut self, len: u64) -> Result<Node, ConvertError> {
        let start = self.cursor.at;
        let input = self.input;
        let wrong = |what: &str| {
            let problem =
                format!("the array at byte {start} is no tuple of shape, dtype and bytes: {what}");
            input.malformed("", problem)
        };
        let Head::List(3) = self.head()? else {
            return Err(wrong("three values expected"));
        };
        let Head::List(rank) = self.head()? else {
            return Err(wrong("a list of dimensions expected"));
        };
        self.input.limited("", "dimensions", rank, RANK_MAX)?;
        let mut shape = Vec::new();
        for _ in 0..rank {
            match self.head()? {
                Head::Node(Node::Count(dim)) => shape.push(dim),
                _ => return Err(wrong("a dimension that is no whole number")),
            }
        }
        self.keep(rank * 8)?;
        let (Head::Text(name_len) | Head::Bytes(name_len)) = self.head()? else {
            return Err(wrong("a dtype's name expected"));
        };
        if name_len > 64 {
            return Err(wrong("a dtype's name of more than 64 bytes"));
        }
        let dtype = self.text(name_len)?;
        let (Head::Text(byte_count) | Head::Bytes(byte_count)) = self.head()? else {
            return Err(wrong("bytes expected"));
        };
        let offset = self.cursor.at;
        self.cursor.skip(byte_count)?;
        if self.cursor.at - start != len {
            let what = format!("it has {} bytes, expected {len}", self.cursor.at - start);
            return Err(wrong(&what));
        }
        Ok(Node::Array(Array {
            dtype,
            shape,
            place: Place { offset, byte_count },
        }))
    }
}

/// The tree as named tensors.
struct Flat<'a> {
    input: &'a Input<'a>,
    limits: &'a Limits,
    values_to_metadata: bool,
    names: HashSet<String>,
    tensors: Vec<TensorSpec>,
    places: Vec<Vec<Place>>,
    metadata: BTreeMap<String, String>,
    notes: Vec<Note>,
    skipped: Vec<Note>,
}

impl Flat<'_> {
    fn walk(&mut self, name: &str, node: Node) -> Result<(), ConvertError> {
        let inner = |key: &str| match name {
            "" => key.to_owned(),
            name => format!("{name}.{key}"),
        };
        match node {
            Node::Dict(entries) if entries.iter().any(|(key, _)| key == CHUNKED) => {
                let added = self.chunked(name, entries);
                self.or_skip(added)
            }
            Node::Dict(entries) => entries
                .into_iter()
                .try_for_each(|(key, node)| self.walk(&inner(&key), node)),
            Node::List(list) => (0..).zip(list).try_for_each(|(position, node): (u64, _)| {
                self.walk(&inner(&position.to_string()), node)
            }),
            Node::Array(array) => {
                let places = vec![array.place];
                let added = self.tensor(name, &array.dtype, array.shape, places);
                self.or_skip(added)
            }
            Node::Count(number) => self.plain(name, number.to_string()),
            Node::Plain(text) => self.plain(name, text),
            Node::Other(what) => {
                self.notes.push(Note::new(name, format!("dropped: {what}")));
                Ok(())
            }
        }
    }

    /// Leaves an array out, if that was asked for and nothing else is wrong.
    fn or_skip(&mut self, added: Result<(), ConvertError>) -> Result<(), ConvertError> {
        match added {
            Err(error) if self.input.skips => skip(error, &mut self.notes, &mut self.skipped),
            added => added,
        }
    }

    fn plain(&mut self, name: &str, text: String) -> Result<(), ConvertError> {
        if self.values_to_metadata {
            self.metadata.insert(name.to_owned(), text);
        } else {
            let start: String = text.chars().take(40).collect();
            let what = format!("dropped: the value `{}`, no array", shown(&start));
            self.notes.push(Note::new(name, what));
        }
        Ok(())
    }

    fn tensor(
        &mut self,
        name: &str,
        dtype: &str,
        shape: Vec<u64>,
        places: Vec<Place>,
    ) -> Result<(), ConvertError> {
        let name = if name.is_empty() { "array" } else { name };
        if let "int4" | "uint4" | "int2" | "uint2" = dtype {
            let what = format!("{dtype} elements stay in bytes of their own");
            self.notes.push(Note::new(name, what));
        }
        let Some(dtype) = dtype_of(dtype) else {
            let what = format!(
                "has the dtype {}, which safetensors has not; cast it before saving",
                shown(dtype)
            );
            return Err(self.input.unsupported(name, what));
        };
        if !self.names.insert(name.to_owned()) {
            let problem = "two arrays have this name when their keys are joined with dots";
            return Err(self.input.malformed(name, problem));
        }
        let count = self.names.len() as u64;
        let limit = self.limits.bound(LimitName::Tensors);
        self.input.limited("", "tensors", count, limit)?;
        let name = name.to_owned();
        let spec = TensorSpec { name, dtype, shape };
        let sizes = places.iter().map(|place| place.byte_count);
        let there = sizes.fold(0u64, u64::saturating_add);
        if spec.byte_count() != Some(there) {
            let problem = format!("{there} bytes are no {dtype} of shape {:?}", spec.shape);
            return Err(self.input.malformed(spec.name, problem));
        }
        self.tensors.push(spec);
        self.places.push(places);
        Ok(())
    }

    /// An array in pieces: `shape` and `chunks` are dictionaries from positions.
    fn chunked(&mut self, name: &str, entries: Vec<(String, Node)>) -> Result<(), ConvertError> {
        let (mut shape, mut chunks) = (None, None);
        for (key, node) in entries {
            match &*key {
                "shape" => shape = in_order(node),
                "chunks" => chunks = in_order(node),
                _ => {}
            }
        }
        let input = self.input;
        let wrong = |what: &str| {
            let problem = format!("an array in pieces {what}");
            input.malformed(name, problem)
        };
        let (Some(shape), Some(chunks)) = (shape, chunks) else {
            return Err(wrong("lacks `shape` or `chunks`, or they skip a position"));
        };
        let dim = |node| match node {
            Node::Count(dim) => Ok(dim),
            _ => Err(wrong("has a dimension that is no whole number")),
        };
        let shape = shape
            .into_iter()
            .map(dim)
            .collect::<Result<Vec<u64>, _>>()?;
        self.input
            .limited(name, "dimensions", shape.len() as u64, RANK_MAX)?;
        let mut dtype = None;
        let mut places = Vec::new();
        for chunk in chunks {
            let Node::Array(chunk) = chunk else {
                return Err(wrong("has a piece that is no array"));
            };
            places.push(chunk.place);
            if dtype.get_or_insert_with(|| chunk.dtype.clone()) != &chunk.dtype {
                return Err(wrong("has pieces of different dtypes"));
            }
        }
        let dtype = dtype.ok_or_else(|| wrong("has no pieces"))?;
        self.tensor(name, &dtype, shape, places)
    }
}

/// The values of a dictionary from `"0"`, `"1"` and so on, or of a list.
fn in_order(node: Node) -> Option<Vec<Node>> {
    match node {
        Node::List(list) => Some(list),
        Node::Dict(entries) => {
            let position = |(key, node): (String, Node)| Some((key.parse::<u64>().ok()?, node));
            let mut list = entries
                .into_iter()
                .map(position)
                .collect::<Option<Vec<_>>>()?;
            list.sort_by_key(|(position, _)| *position);
            let complete = (0..)
                .zip(&list)
                .all(|(expected, (position, _))| *position == expected);
            complete.then(|| list.into_iter().map(|(_, node)| node).collect())
        }
        _ => None,
    }
}

/// The dtype of NumPy's name.
fn dtype_of(name: &str) -> Option<Dtype> {
    Some(match name {
        "bool" => Dtype::Bool,
        // NumPy keeps the small ones one to a byte.
        "int8" | "int4" | "int2" => Dtype::I8,
        "uint8" | "uint4" | "uint2" => Dtype::U8,
        "int16" => Dtype::I16,
        "uint16" => Dtype::U16,
        "int32" => Dtype::I32,
        "uint32" => Dtype::U32,
        "int64" => Dtype::I64,
        "uint64" => Dtype::U64,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::Bf16,
        "float32" => Dtype::F32,
        "float64" => Dtype::F64,
        "complex64" => Dtype::C64,
        "float8_e4m3fn" => Dtype::F8E4m3,
        "float8_e5m2" => Dtype::F8E5m2,
        "float8_e4m3fnuz" => Dtype::F8E4m3Fnuz,
        "float8_e5m2fnuz" => Dtype::F8E5m2Fnuz,
        "float8_e8m0fnu" => Dtype::F8E8m0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::tests::Memory;

    fn open(bytes: &[u8], limits: &Limits) -> Result<FlaxSource, ConvertError> {
        FlaxSource::from_reader("x", Box::new(Memory(bytes.to_vec())), limits, false)
    }

    /// An array as Flax packs it, with short lengths.
    fn array(shape: &[u8], dtype: &str, bytes: &[u8]) -> Vec<u8> {
        let mut tuple = vec![0x93, 0x90 | shape.len() as u8];
        tuple.extend(shape);
        tuple.push(0xa0 | dtype.len() as u8);
        tuple.extend(dtype.as_bytes());
        tuple.extend([0xc4, bytes.len() as u8]);
        tuple.extend(bytes);
        let mut packed = vec![0xc7, tuple.len() as u8, 1];
        packed.extend(tuple);
        packed
    }

    #[track_caller]
    fn refused(bytes: &[u8], expected: &str) {
        let error = open(bytes, &Limits::default())
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn a_lone_array_is_read() {
        let bytes = array(&[2], "int8", &[1, 2]);
        let source = open(&bytes, &Limits::default()).unwrap();
        assert_eq!(source.tensors()[0].name, "array");
        assert!(is_flax(&bytes));
        let source = open(&array(&[2], "int4", &[1, 0xff]), &Limits::default()).unwrap();
        assert_eq!(source.tensors()[0].dtype, Dtype::I8);
        assert!(source.notes()[0].what.contains("int4 elements"));
    }

    #[test]
    fn what_is_no_checkpoint() {
        refused(b"", "1 bytes expected at byte 0");
        refused(b"\xc1", "0xc1");
        refused(b"\x01\x02", "1 bytes behind the end");
        refused(b"\x81\x90\x01", "key at byte 1");
        refused(b"\xdf\xff\xff\xff\xff", "expected at byte 5");
        refused(b"\xdb\xff\xff\xff\xff", "4294967551 bytes of keys");
        refused(&[0x91; 1000], "values within each other");
        refused(
            &array(&[3], "int8", &[1, 2]),
            "2 bytes are no I8 of shape [3]",
        );
        refused(&array(&[2], "int128", &[1, 2]), "has the dtype int128");
        refused(&array(&[0xff], "int8", &[1]), "no whole number");
        let mut long = array(&[2], "int8", &[1, 2]);
        long[1] += 1;
        refused(&long, "it has 12 bytes, expected 13");
        let twice = [
            b"\x82\xa3a.b".as_slice(),
            &array(&[1], "int8", &[1]),
            b"\xa1a\x81\xa1b",
            &array(&[1], "int8", &[1]),
        ]
        .concat();
        refused(&twice, "two arrays have this name");
        let chunked =
            |rest: &[u8]| [b"\x83\xb9__msgpack_chunked_array__\xc3".as_slice(), rest].concat();
        refused(
            &chunked(b"\xa5shape\x81\xa10\x02\xa1x\x01"),
            "lacks `shape` or `chunks`",
        );
        refused(
            &chunked(b"\xa5shape\x81\xa11\x02\xa6chunks\x80"),
            "skip a position",
        );
        refused(
            &chunked(b"\xa5shape\x81\xa10\x02\xa6chunks\x80"),
            "no pieces",
        );
        refused(
            &chunked(b"\xa5shape\x81\xa10\x02\xa6chunks\x91\x01"),
            "no array",
        );
    }

    #[test]
    fn memory_is_bounded() {
        let limits = Limits {
            memory_bytes_max: 10_000,
            ..Limits::default()
        };
        let mut bytes = b"\xdd\x00\x00\x10\x00".to_vec();
        bytes.resize(5 + 0x1000, 0xc0);
        let error = open(&bytes, &limits).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("bytes of keys and values"), "{error}");
        assert!(open(&bytes, &Limits::default()).is_ok());
    }

    #[test]
    fn other_files_are_told_apart() {
        assert!(is_flax(b"\x82\xa6params\x81"));
        assert!(is_flax(b"\xde\x00\x10\xd9\x03abc"));
        for bytes in [
            b"\x80\x02}".as_slice(),
            b"",
            b"\x81",
            b"\x81\xa3a",
            b"\x81\xa3a\0b",
            b"PK\x03\x04",
            b"\x81\x01\x02",
        ] {
            assert!(!is_flax(bytes), "{}", bytes.escape_ascii());
        }
    }
}
