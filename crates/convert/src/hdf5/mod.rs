//! HDF5 files as a source, such as Keras and TensorFlow write (`.keras` archives of them, too): every dataset of plain numbers, named by its path in the
//! file (`model_weights/dense/dense/kernel:0`).
//!
//! Superblocks 0 to 3, both kinds of object headers, groups of all kinds, elements in one run, in the header or in chunks
//! with any of HDF5's indexes (deflate, shuffle, fletcher32, and h5py's LZF). What is left out has a note; what cannot be
//! read is refused by name. Soft and external links are not followed. Source: The HDF Group, HDF5 File Format Specification
//! Version 3.0. What stands where is in `objects`, what messages say in `types`, chunks in `chunks`.

mod arrays;
mod attributes;
mod chunks;
mod heap;
mod keras;
mod objects;
mod tree2;
mod types;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use safelight_format::{Dtype, TensorSpec};
use safelight_store::ReadAt;

use crate::bytes::read_up_to;
use crate::error::ConvertError;
use crate::input::Input;
use crate::source::{Contents, LimitName, Limits, Note, Source, skip};
use attributes::Attributes;
use chunks::Chunked;
pub(crate) use keras::is_keras;
use objects::{
    DATASPACE, DATATYPE, EXTERNAL, FILL_VALUE, FILTERS, File, LAYOUT, Link, Message, OLD_FILL_VALUE,
};
use types::{
    Element, Filter, Layout, dataspace, datatype, fill_value, filters, layout, old_fill_value,
};

/// Groups within groups: each level is a call.
const DEPTH_MAX: u32 = 100;

/// What an entry of a group counts for in memory, beside its name.
const ENTRY_BYTES: u64 = 256;

/// A tensor's path may be this long.
const NAME_BYTES_MAX: u64 = 64 * 1024;

/// Whether a file's first bytes have HDF5's signature behind a block of the user's, of 512, 1024, 2048 … bytes.
pub(crate) fn is_hdf5(start: &[u8]) -> bool {
    let places = (9..20).map(|bits| 1usize << bits);
    let mut starts = places.filter_map(|at| start.get(at..));
    starts.any(|start| start.starts_with(&objects::SIGNATURE))
}

/// The datasets of an HDF5 file.
pub struct Hdf5Source {
    input: Input<'static>,
    limits: Limits,
    contents: Contents,
    stored: Vec<Stored>,
}

/// How a dataset's elements lie.
#[derive(Clone)]
struct Stored {
    layout: Layout,
    /// The largest shape it may grow to; `None` for a dimension without end.
    most: Vec<Option<u64>>,
    filters: Vec<Filter>,
    big_endian: bool,
    /// The bytes of an element that was never written; empty for zeros.
    fill: Vec<u8>,
}

impl Hdf5Source {
    /// Opens a file, or Keras' archive of one (`.keras`), and reads all but the elements of its datasets.
    ///
    /// # Errors
    /// What is wrong with the file, or what of it nothing here reads.
    pub fn open(path: &Path, limits: &Limits) -> Result<Hdf5Source, ConvertError> {
        let file = crate::open::open_file(path)?;
        Hdf5Source::from_reader(&path.to_string_lossy(), Box::new(file), limits)
    }

    /// As [`Hdf5Source::open`], from anything that can be read at any position; `label` is for messages.
    ///
    /// # Errors
    /// As [`Hdf5Source::open`].
    pub fn from_reader(
        label: &str,
        reader: Box<dyn ReadAt>,
        limits: &Limits,
    ) -> Result<Hdf5Source, ConvertError> {
        Hdf5Source::from_reader_with(label, reader, limits, false)
    }

    /// The same, leaving out datasets that nothing here reads if `skips`.
    pub(crate) fn from_reader_with(
        label: &str,
        reader: Box<dyn ReadAt>,
        limits: &Limits,
        skips: bool,
    ) -> Result<Hdf5Source, ConvertError> {
        let mut start = [0; 2];
        let read = read_up_to(&*reader, &mut start, 0);
        read.map_err(|error| ConvertError::Io {
            doing: "read",
            file: label.to_owned(),
            error,
        })?;
        if start != *b"PK" {
            let input = Input::new(label, reader, "HDF5")?.skipping(skips);
            return Hdf5Source::read_from(input, limits);
        }
        let opened = keras::open(label, reader, limits)?;
        let input = Input::new(label, opened.weights, "HDF5")?.skipping(skips);
        let mut source = Hdf5Source::read_from(input, limits)?;
        source.contents.metadata.extend(opened.metadata);
        source.contents.notes.extend(opened.notes);
        Ok(source)
    }

    pub(crate) fn read_from(
        input: Input<'static>,
        limits: &Limits,
    ) -> Result<Hdf5Source, ConvertError> {
        let mut walk = Walk::of(&input, limits)?;
        walk.check_apart()?;
        let mut metadata = BTreeMap::new();
        walk.told.tell(&walk.names, &mut metadata, &mut walk.notes);
        let stored = walk.stored;
        let contents = Contents {
            label: input.label.clone(),
            tensors: walk.tensors,
            metadata,
            notes: walk.notes,
            skipped: walk.skipped,
            ..Contents::default()
        };
        Ok(Hdf5Source {
            limits: *limits,
            contents,
            stored,
            input,
        })
    }
}

impl Hdf5Source {
    /// Calls with the chunks of tensor `index`, which has such or was never written.
    fn chunked<T>(&self, index: usize, call: impl FnOnce(&Chunked<'_>) -> T) -> T {
        let (tensor, stored) = (&self.tensors()[index], &self.stored[index]);
        let element_bytes = tensor.dtype.bits() / 8;
        match &stored.layout {
            Layout::Chunked {
                chunk,
                index,
                plain_edges,
            } => call(&Chunked {
                name: &tensor.name,
                shape: &tensor.shape,
                most: &stored.most,
                chunk,
                plain_edges: *plain_edges,
                index: *index,
                filters: &stored.filters,
                element_bytes,
                fill: &stored.fill,
            }),
            _ => {
                // One row of chunks that were never written.
                let count = tensor.element_count().unwrap_or(0);
                call(&Chunked {
                    name: &tensor.name,
                    shape: &[count],
                    most: &[Some(count)],
                    chunk: &[count.min(1 << 16)],
                    plain_edges: false,
                    index: types::Index::Empty,
                    filters: &[],
                    element_bytes,
                    fill: &stored.fill,
                })
            }
        }
    }
}

impl Source for Hdf5Source {
    fn contents(&self) -> &Contents {
        &self.contents
    }

    fn check(&self, indices: &[usize]) -> Result<(), ConvertError> {
        for &index in indices {
            let layout = &self.stored[index].layout;
            let in_chunks = matches!(layout, Layout::Contiguous(None) | Layout::Chunked { .. });
            if in_chunks && self.tensors()[index].byte_count() != Some(0) {
                let mut file = File::open(&self.input)?;
                self.chunked(index, |chunked| chunked.checked(&mut file, &self.limits))?;
            }
        }
        Ok(())
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let (tensor, stored) = (&self.tensors()[index], &self.stored[index]);
        let byte_count = tensor.byte_count().unwrap_or(0);
        if byte_count == 0 {
            return Ok(());
        }
        let size = (tensor.dtype.bits() / 8) as usize;
        // A complex number is two numbers.
        let number_bytes = if tensor.dtype == Dtype::C64 { 4 } else { size };
        let mut pass = |piece: &mut [u8]| {
            if stored.big_endian && size > 1 {
                piece
                    .chunks_exact_mut(number_bytes)
                    .for_each(<[u8]>::reverse);
            }
            out(piece)
        };
        match &stored.layout {
            Layout::Compact(bytes) => pass(&mut bytes.clone()),
            Layout::Contiguous(Some(at)) => self.input.pieces(*at, byte_count, size, &mut pass),
            Layout::Contiguous(None) | Layout::Chunked { .. } => {
                let (limits, mut file) = (&self.limits, File::open(&self.input)?);
                self.chunked(index, |chunked| chunked.read(&mut file, limits, &mut pass))
            }
            Layout::Other(_) => unreachable!("refused when opened"),
        }
    }
}

/// Goes through a file's groups.
struct Walk<'a> {
    file: File<'a>,
    limits: &'a Limits,
    kept_bytes: u64,
    entries: u64,
    /// Groups by their address, which are gone into once.
    groups: HashSet<u64>,
    /// Datasets by their address: the first name's position.
    datasets: HashMap<u64, usize>,
    names: HashSet<String>,
    /// Elements in one run: from, to, tensor.
    runs: Vec<(u64, u64, usize)>,
    tensors: Vec<TensorSpec>,
    stored: Vec<Stored>,
    notes: Vec<Note>,
    skipped: Vec<Note>,
    /// Datasets and links whose content is in other files.
    elsewhere: Vec<String>,
    told: keras::Told,
}

/// The datasets and links of a file whose content is in other files, as it names them itself.
///
/// # Errors
/// As [`Hdf5Source::open`].
pub(crate) fn elsewhere(
    label: &str,
    bytes: &dyn ReadAt,
    limits: &Limits,
) -> Result<Vec<String>, ConvertError> {
    let input = Input::borrowing(label, bytes, "HDF5")?.skipping(true);
    Ok(Walk::of(&input, limits)?.elsewhere)
}

impl<'a> Walk<'a> {
    /// Goes through a whole file.
    fn of(input: &'a Input<'a>, limits: &'a Limits) -> Result<Walk<'a>, ConvertError> {
        let file = File::open(input)?;
        let root = file.root;
        let mut walk = Walk {
            file,
            limits,
            kept_bytes: 0,
            entries: 0,
            groups: HashSet::new(),
            datasets: HashMap::new(),
            names: HashSet::new(),
            runs: Vec::new(),
            tensors: Vec::new(),
            stored: Vec::new(),
            notes: Vec::new(),
            skipped: Vec::new(),
            elsewhere: Vec::new(),
            told: keras::Told::default(),
        };
        walk.object("", root, 0)?;
        Ok(walk)
    }
}

impl Walk<'_> {
    fn note(&mut self, at: &str, what: impl Into<String>) {
        self.notes.push(Note::new(at, what));
    }

    /// The object at an address, under a name.
    fn object(&mut self, name: &str, address: u64, depth: u32) -> Result<(), ConvertError> {
        let limit = self
            .limits
            .bound(LimitName::Depth)
            .and(u64::from(DEPTH_MAX));
        let what = "groups within each other";
        let input = self.file.input;
        input.limited(name, what, u64::from(depth), limit)?;
        if self.groups.contains(&address) {
            self.note(
                name,
                "not followed: a hard link to a group that has been read",
            );
            return Ok(());
        }
        if let Some(&first) = self.datasets.get(&address) {
            let what = format!("a second name of `{}`, copied", self.tensors[first].name);
            self.note(name, what);
            let (tensor, stored) = (self.tensors[first].clone(), self.stored[first].clone());
            return self.tensor(name, tensor.dtype, tensor.shape, stored);
        }
        let messages = self.file.messages(address)?;
        if let Some(links) = self.file.links(&messages)? {
            self.groups.insert(address);
            self.told.group(&mut self.file, name, depth, &messages)?;
            return self.group(name, links, depth);
        }
        let has = |kind| {
            messages
                .iter()
                .any(|message: &Message| message.kind == kind)
        };
        if has(LAYOUT) && has(DATATYPE) && has(DATASPACE) {
            let run_count = self.runs.len();
            return match self.dataset(name, address, &messages) {
                Err(error) if self.file.input.skips => {
                    self.runs.truncate(run_count);
                    skip(error, &mut self.notes, &mut self.skipped)
                }
                read => read,
            };
        }
        let what = if has(DATATYPE) {
            "dropped: a named type"
        } else {
            "dropped: neither a group nor a dataset"
        };
        self.note(name, what);
        Ok(())
    }

    fn group(
        &mut self,
        name: &str,
        links: Vec<(String, Link)>,
        depth: u32,
    ) -> Result<(), ConvertError> {
        for (inner, link) in links {
            let path = match name {
                "" => inner,
                name => format!("{name}/{inner}"),
            };
            let input = self.file.input;
            self.entries += 1;
            input.limited(
                "",
                "entries of groups",
                self.entries,
                self.limits.bound(LimitName::Tensors),
            )?;
            input.limited("", "bytes in a name", path.len() as u64, NAME_BYTES_MAX)?;
            self.kept_bytes += 3 * path.len() as u64 + ENTRY_BYTES;
            let limit = self.limits.bound(LimitName::Memory);
            input.limited("", "bytes of names", self.kept_bytes, limit)?;
            match link {
                Link::Hard(address) => self.object(&path, address, depth + 1)?,
                Link::Soft => self.note(&path, "not followed: a soft link"),
                Link::External => {
                    self.note(&path, "not followed: a link to another file");
                    self.elsewhere.push(path);
                }
                Link::Other(kind) => {
                    self.note(&path, format!("not followed: a link of kind {kind}"))
                }
            }
        }
        Ok(())
    }

    /// The content of a message that may lie elsewhere.
    fn content(&mut self, name: &str, message: &Message) -> Result<Vec<u8>, ConvertError> {
        if !message.shared {
            return Ok(message.content.clone());
        }
        let input = self.file.input;
        let mut fields = types::Fields::new(&message.content);
        let sizes = self.file.sizes;
        let mut read = || {
            let (version, kind) = (fields.byte()?, fields.byte()?);
            if version == 1 {
                fields.take(6)?;
            }
            Ok((version == 3 && kind == 1, fields.number(sizes.offset)))
        };
        let (in_heap, address) =
            read().map_err(|problem: String| input.malformed(name, problem))?;
        if in_heap {
            let what = "keeps its description in the file's heap of shared messages; nothing here reads that, \
                        copy the file with h5repack";
            return Err(input.unsupported(name, what));
        }
        let address = address.map_err(|problem| input.malformed(name, problem))?;
        let messages = self.file.messages(address)?;
        let same = |found: &&Message| found.kind == message.kind && !found.shared;
        match messages.iter().find(same) {
            Some(found) => Ok(found.content.clone()),
            None => {
                let problem = format!(
                    "message {} is said to be at address {address}, but is not",
                    message.kind
                );
                Err(input.malformed(name, problem))
            }
        }
    }

    /// The content of the first message of a kind.
    fn first(
        &mut self,
        name: &str,
        messages: &[Message],
        kind: u16,
    ) -> Result<Option<Vec<u8>>, ConvertError> {
        let message = messages.iter().find(|message| message.kind == kind);
        message
            .map(|message| self.content(name, message))
            .transpose()
    }

    fn dataset(
        &mut self,
        name: &str,
        address: u64,
        messages: &[Message],
    ) -> Result<(), ConvertError> {
        let input = self.file.input;
        let sizes = self.file.sizes;
        let wrong = |problem: String| input.malformed(name, problem);
        let content = self.first(name, messages, DATATYPE)?.unwrap_or_default();
        let (element, element_bytes) = datatype(&content).map_err(wrong)?;
        let content = self.first(name, messages, DATASPACE)?.unwrap_or_default();
        let space = dataspace(&content, sizes).map_err(wrong)?;
        let (dtype, big_endian) = match element {
            Element::Number {
                dtype,
                big_endian,
                note,
            } => {
                if let Some(note) = note {
                    self.note(name, note);
                }
                (dtype, big_endian)
            }
            Element::Opaque if element_bytes == 2 => {
                // Keras says in an attribute what h5py has no type for.
                let mut attributes = Attributes::of(&mut self.file, messages)?;
                let told = attributes.text(&mut self.file, "dtype")?;
                if told.as_deref() != Some("bfloat16") {
                    self.note(name, "two bytes without a type are read as BF16");
                }
                (Dtype::Bf16, false)
            }
            Element::Opaque => {
                self.note(name, "dropped: opaque bytes");
                return Ok(());
            }
            Element::Other(what) => {
                self.note(name, format!("dropped: {what}"));
                return Ok(());
            }
        };
        let Some(types::Space { dims: shape, most }) = space else {
            self.note(name, "dropped: an empty dataspace");
            return Ok(());
        };
        if messages.iter().any(|message| message.kind == EXTERNAL) {
            self.elsewhere.push(name.to_owned());
            let what = "keeps its elements in other files; nothing here reads those";
            return Err(input.unsupported(name, what));
        }
        let product = shape
            .iter()
            .try_fold(1u64, |all, &dim| all.checked_mul(dim));
        let Some(byte_count) = product
            .filter(|elements| elements.checked_mul(64).is_some())
            .and_then(|elements| elements.checked_mul(element_bytes))
        else {
            return Err(wrong(format!("shape {shape:?} has no size in 64 bits")));
        };
        let content = self.first(name, messages, LAYOUT)?.unwrap_or_default();
        let mut layout = layout(&content, shape.len(), sizes).map_err(wrong)?;
        match &mut layout {
            Layout::Other(what) => {
                let what = format!(
                    "its elements are kept in {what}; nothing here reads that, copy the file with h5repack"
                );
                return Err(input.unsupported(name, what));
            }
            Layout::Compact(bytes) if bytes.len() as u64 != byte_count => {
                let len = bytes.len();
                return Err(wrong(format!(
                    "{len} bytes in the header, but its shape and type need {byte_count}"
                )));
            }
            Layout::Contiguous(Some(at)) if byte_count > 0 => {
                *at = self.file.place(name, *at, byte_count)?;
                self.runs.push((*at, *at + byte_count, self.tensors.len()));
            }
            _ => {}
        }
        let found = match self.first(name, messages, FILTERS)? {
            Some(content) => filters(&content).map_err(wrong)?,
            None => Ok(Vec::new()),
        };
        let filters = found.map_err(|which| {
            let what = format!("its chunks went through {which}, which nothing here undoes; copy the file with h5repack -f GZIP=1");
            input.unsupported(name, what)
        })?;
        let fill = match self.first(name, messages, FILL_VALUE)? {
            Some(content) => fill_value(&content),
            None => self
                .first(name, messages, OLD_FILL_VALUE)?
                .map_or(Ok(Vec::new()), |content| old_fill_value(&content)),
        };
        let fill = fill.map_err(wrong)?;
        if !fill.is_empty() && fill.len() as u64 != element_bytes {
            return Err(wrong(format!(
                "a fill value of {} bytes for elements of {element_bytes}",
                fill.len()
            )));
        }
        self.datasets.insert(address, self.tensors.len());
        let stored = Stored {
            layout,
            most,
            filters,
            big_endian,
            fill,
        };
        self.tensor(name, dtype, shape, stored)
    }

    fn tensor(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: Vec<u64>,
        stored: Stored,
    ) -> Result<(), ConvertError> {
        if name.is_empty() || !self.names.insert(name.to_owned()) {
            return Err(self
                .file
                .input
                .malformed(name, "two objects have this name"));
        }
        let compact = match &stored.layout {
            Layout::Compact(bytes) => bytes.len() as u64,
            _ => 0,
        };
        self.kept_bytes += compact;
        let name = name.to_owned();
        self.tensors.push(TensorSpec { name, dtype, shape });
        self.stored.push(stored);
        Ok(())
    }

    /// No two datasets share bytes: a small file must not stand for a large one.
    fn check_apart(&mut self) -> Result<(), ConvertError> {
        self.runs.sort_unstable();
        for pair in self.runs.windows(2) {
            if pair[1].0 < pair[0].1 {
                let name = &self.tensors[pair[1].2].name;
                let other = safelight_format::shown(&self.tensors[pair[0].2].name).to_string();
                let problem = format!(
                    "starts at byte {}, inside of `{other}`, which ends at byte {}",
                    pair[1].0, pair[0].1
                );
                return Err(self.file.input.malformed(name, problem));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
