//! NumPy's files as a source: one array (`.npy`), or an archive of them (`.npz`), stored or deflated.
//!
//! Text that is no array of texts becomes metadata under the member's name; a text called `__metadata__` is a JSON
//! object of metadata, which is how `write` keeps it.

mod order;
mod write;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;

use safelight_format::{Dtype, TensorSpec};
use safelight_store::ReadAt;

use crate::error::ConvertError;
use crate::input::Input;
use crate::npy::{self, Element};
use crate::sink::Regroup;
use crate::source::{Contents, LimitName, Limits, Note, PIECE_BYTES, Source, skip};
use crate::zip::{Archive, Member};

pub use write::{NpzOptions, write_npz};

/// The member with metadata.
const METADATA: &str = "__metadata__";

/// The key of a JSON object from names to dtypes that NumPy does not have.
const DTYPES_KEY: &str = "npz.dtypes";

/// As many members of an archive without names in `.npy` are looked at before it is taken for another's.
const MEMBERS_SNIFFED: usize = 100;

/// An array of another memory order is turned around in blocks of at most this size.
const BLOCK_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Whether a zip archive is NumPy's: it has arrays, and no pickle of PyTorch's.
pub(crate) fn is_npz(file: &dyn ReadAt) -> bool {
    let Ok(archive) = Archive::read(file) else {
        return false; // the next reader says why
    };
    let named = |end: &str| {
        archive
            .members
            .iter()
            .any(|member| member.name.ends_with(end))
    };
    let mut first = archive.members.iter().take(MEMBERS_SNIFFED);
    !named("data.pkl") && (named(".npy") || first.any(|member| is_array(file, member)))
}

/// Whether a member's content is an array, whatever it is called: NumPy goes by the content as well.
fn is_array(file: &dyn ReadAt, member: &Member) -> bool {
    let mut begins = false;
    let _ = member.read(file, 6, &mut |piece| {
        begins = piece == b"\x93NUMPY";
        Err(io::Error::other("that is enough"))
    });
    begins
}

/// The arrays of an npy or npz file.
pub struct NpzSource {
    input: Input<'static>,
    contents: Contents,
    arrays: Vec<Array>,
    block_bytes_max: u64,
}

/// Where an array is and how its elements lie.
struct Array {
    /// The archive's member; the file itself if there is none.
    member: Option<Member>,
    /// Where elements begin.
    data_at: u64,
    big_endian: bool,
    fortran_order: bool,
}

impl NpzSource {
    /// Opens a file and reads the headers of its arrays.
    ///
    /// # Errors
    /// What is wrong with the file, or what of it safetensors cannot hold. Object arrays are refused: they are pickles.
    pub fn open(path: &Path, limits: &Limits) -> Result<NpzSource, ConvertError> {
        NpzSource::read_from(Input::open(path, "NumPy")?, limits)
    }

    /// As [`NpzSource::open`], from anything that can be read at any position; `label` is for messages.
    ///
    /// # Errors
    /// As [`NpzSource::open`].
    pub fn from_reader(
        label: &str,
        reader: Box<dyn ReadAt>,
        limits: &Limits,
    ) -> Result<NpzSource, ConvertError> {
        NpzSource::read_from(Input::new(label, reader, "NumPy")?, limits)
    }

    pub(crate) fn read_from(
        input: Input<'static>,
        limits: &Limits,
    ) -> Result<NpzSource, ConvertError> {
        let mut source = NpzSource {
            contents: Contents {
                label: input.label.clone(),
                ..Contents::default()
            },
            input,
            arrays: Vec::new(),
            block_bytes_max: limits.memory_bytes_max.min(BLOCK_BYTES_MAX),
        };
        let mut start = [0; 2];
        let count = source.input.byte_count.min(2) as usize;
        source.input.read_exact_at(&mut start[..count], 0)?;
        if start == *b"PK" {
            source.archive(limits)?;
        } else {
            let byte_count = source.input.byte_count;
            source.array("array", None, byte_count, limits)?;
        }
        source.restore_metadata();
        Ok(source)
    }

    /// All members of an archive.
    fn archive(&mut self, limits: &Limits) -> Result<(), ConvertError> {
        let read = Archive::read(self.input.reader());
        let archive = read.map_err(|error| self.io(error))?;
        if let Some(flaw) = archive.flaws.first() {
            let problem = flaw.to_string();
            return Err(self.input.malformed(&flaw.member, problem));
        }
        let count = archive.members.len() as u64;
        self.input
            .limited("", "members", count, limits.bound(LimitName::Tensors))?;
        let mut names = HashSet::new();
        for member in archive.members {
            let named = member.name.strip_suffix(".npy");
            if let Some(what) = member.packing() {
                let error = self.input.unsupported(named.unwrap_or(&member.name), what);
                self.skip(error)?;
                continue;
            }
            let name = match named {
                Some(name) => name.to_owned(),
                None if is_array(self.input.reader(), &member) => member.name.clone(),
                None => {
                    let note = Note::new(&member.name, "dropped: no NumPy array");
                    self.contents.notes.push(note);
                    continue;
                }
            };
            let ratio = member.content_bytes / member.stored_bytes.max(1);
            let what = "bytes for each compressed one";
            self.input
                .limited(&name, what, ratio, limits.bound(LimitName::Ratio))?;
            if !names.insert(name.clone()) {
                return Err(self.input.malformed(name, "two members have this name"));
            }
            let byte_count = member.content_bytes;
            if let Err(error) = self.array(&name, Some(member), byte_count, limits) {
                self.skip(error)?;
            }
        }
        Ok(())
    }

    /// Leaves an array out, if that was asked for and nothing else is wrong.
    fn skip(&mut self, error: ConvertError) -> Result<(), ConvertError> {
        match self.input.skips {
            true => skip(error, &mut self.contents.notes, &mut self.contents.skipped),
            false => Err(error),
        }
    }

    /// One array: reads its header.
    fn array(
        &mut self,
        name: &str,
        member: Option<Member>,
        byte_count: u64,
        limits: &Limits,
    ) -> Result<(), ConvertError> {
        let start = self.start(member.as_ref(), name, byte_count)?;
        let header = npy::parse(&start).map_err(|problem| self.input.malformed(name, problem))?;
        let elements = header
            .shape
            .iter()
            .try_fold(1u64, |all, &dim| all.checked_mul(dim));
        let size = header.element.byte_count();
        if let Some(size) = size {
            let expected = elements
                .and_then(|elements| elements.checked_mul(size))
                .and_then(|bytes| bytes.checked_add(header.data_at as u64));
            if expected != Some(byte_count) {
                let problem = format!(
                    "{byte_count} bytes with a header of {} are no array of shape {:?} with elements of {size}",
                    header.data_at, header.shape
                );
                return Err(self.input.malformed(name, problem));
            }
        }
        match header.element {
            Element::Number {
                dtype,
                big_endian,
                assumed,
            } => {
                if let Some(assumed) = assumed {
                    self.contents.notes.push(Note::new(name, assumed));
                }
                let several = header.shape.iter().filter(|&&dim| dim > 1).count() > 1;
                self.arrays.push(Array {
                    member,
                    data_at: header.data_at as u64,
                    big_endian: big_endian && dtype.bits() > 8,
                    fortran_order: header.fortran_order && several,
                });
                self.contents.tensors.push(TensorSpec {
                    name: name.to_owned(),
                    dtype,
                    shape: header.shape,
                });
                Ok(())
            }
            Element::Text {
                char_bytes,
                big_endian,
                ..
            } => {
                if !header.shape.is_empty() {
                    self.contents
                        .notes
                        .push(Note::new(name, "dropped: an array of texts"));
                    return Ok(());
                }
                let limit = limits.bound(LimitName::Memory);
                self.input
                    .limited(name, "bytes of text", byte_count, limit)?;
                let mut content = Vec::new();
                self.content(member.as_ref(), name, byte_count, &mut |piece| {
                    content.extend_from_slice(piece);
                    Ok(())
                })?;
                let text = decode_text(&content[header.data_at..], char_bytes, big_endian);
                self.contents.metadata.insert(name.to_owned(), text);
                Ok(())
            }
            Element::Other { what } => Err(self.input.unsupported(name, format!("is {what}"))),
        }
    }

    /// The first bytes of an array's file, with the whole header.
    fn start(
        &self,
        member: Option<&Member>,
        name: &str,
        byte_count: u64,
    ) -> Result<Vec<u8>, ConvertError> {
        let mut start = Vec::new();
        let mut problem = None;
        let read = self.content(member, name, byte_count.min(4096), &mut |piece| {
            start.extend_from_slice(piece);
            match npy::header_end(&start) {
                Ok(Some(end)) if start.len() >= end => Err(ConvertError::Cancelled),
                Ok(_) => Ok(()),
                Err(what) => {
                    problem = Some(what);
                    Err(ConvertError::Cancelled)
                }
            }
        });
        match (problem, read) {
            (Some(problem), _) => Err(self.input.malformed(name, problem)),
            (None, Ok(()) | Err(ConvertError::Cancelled)) => Ok(start),
            (None, Err(error)) => Err(error),
        }
    }

    /// Hands an array's file to `out`, header and all, in pieces of at most `piece_bytes`.
    fn content(
        &self,
        member: Option<&Member>,
        name: &str,
        piece_bytes: u64,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let Some(member) = member else {
            let byte_count = self.input.byte_count;
            return self.input.pieces(0, byte_count, 1, &mut |piece| out(piece));
        };
        let mut failed = None;
        let piece_bytes = piece_bytes.clamp(1, PIECE_BYTES as u64) as usize;
        let read = member.read(self.input.reader(), piece_bytes, &mut |piece| {
            out(piece).map_err(|error| {
                failed = Some(error);
                io::Error::other("stopped")
            })
        });
        match (failed, read) {
            (Some(error), _) => Err(error),
            (None, Ok(())) => Ok(()),
            (None, Err(error)) if error.raw_os_error().is_some() => Err(self.io(error)),
            (None, Err(error)) => Err(self.input.malformed(name, error.to_string())),
        }
    }

    fn io(&self, error: io::Error) -> ConvertError {
        ConvertError::Io {
            doing: "read",
            file: self.input.label.clone(),
            error,
        }
    }

    /// Metadata and dtypes as our own writer put them.
    fn restore_metadata(&mut self) {
        let object = |json: &str| serde_json::from_str::<BTreeMap<String, String>>(json).ok();
        if let Some(metadata) = self
            .contents
            .metadata
            .get(METADATA)
            .and_then(|json| object(json))
        {
            self.contents.metadata.remove(METADATA);
            for (key, value) in metadata {
                self.contents.metadata.entry(key).or_insert(value);
            }
        }
        let Some(dtypes) = self
            .contents
            .metadata
            .get(DTYPES_KEY)
            .and_then(|json| object(json))
        else {
            return;
        };
        self.contents.metadata.remove(DTYPES_KEY);
        for tensor in &mut self.contents.tensors {
            let dtype = dtypes.get(&tensor.name);
            let dtype = dtype.and_then(|name| Dtype::from_name(name));
            if let Some(dtype) = dtype.filter(|dtype| dtype.bits() == tensor.dtype.bits()) {
                tensor.dtype = dtype;
                self.contents.notes.retain(|note| note.at != tensor.name);
            }
        }
    }
}

/// A NumPy text: characters of four bytes each, or bytes; zeros at the end do not count.
fn decode_text(bytes: &[u8], char_bytes: u64, big_endian: bool) -> String {
    let text: String = if char_bytes == 1 {
        String::from_utf8_lossy(bytes).into_owned()
    } else {
        let code = |bytes: &[u8; 4]| {
            if big_endian {
                u32::from_be_bytes(*bytes)
            } else {
                u32::from_le_bytes(*bytes)
            }
        };
        let codes = bytes.as_chunks().0.iter().map(code);
        codes
            .map(|code| char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect()
    };
    text.trim_end_matches('\0').to_owned()
}

impl Source for NpzSource {
    fn contents(&self) -> &Contents {
        &self.contents
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let (tensor, array) = (&self.tensors()[index], &self.arrays[index]);
        let size = (tensor.dtype.bits() / 8) as usize;
        // A complex number is two numbers.
        let swapped = match tensor.dtype {
            _ if !array.big_endian => 1,
            Dtype::C64 => 4,
            _ => size,
        };
        let mut turned = |bytes: &mut [u8]| {
            if swapped > 1 {
                bytes.chunks_exact_mut(swapped).for_each(<[u8]>::reverse);
            }
            bytes.chunks(PIECE_BYTES).try_for_each(&mut *out)
        };
        if array.fortran_order {
            let plan = order::Plan::new(&tensor.shape, size, self.block_bytes_max);
            return plan.read(
                &mut |pass| self.elements(index, size, pass),
                &mut turned,
                &self.input,
                &tensor.name,
            );
        }
        if swapped == 1 {
            return self.elements(index, 1, out);
        }
        let mut copy = Vec::new();
        self.elements(index, size, &mut |piece| {
            copy.clear();
            copy.extend_from_slice(piece);
            turned(&mut copy)
        })
    }
}

impl NpzSource {
    /// An array's elements in the file's order, in pieces that are multiples of `unit`.
    fn elements(
        &self,
        index: usize,
        unit: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let (tensor, array) = (&self.tensors()[index], &self.arrays[index]);
        let Some(member) = &array.member else {
            let len = self.input.byte_count.saturating_sub(array.data_at);
            let mut pass = |piece: &mut [u8]| out(piece);
            return self.input.pieces(array.data_at, len, unit, &mut pass);
        };
        let mut header = array.data_at;
        let mut regroup = Regroup::new(unit);
        self.content(
            Some(member),
            &tensor.name,
            PIECE_BYTES as u64,
            &mut |piece| {
                let skipped = header.min(piece.len() as u64);
                header -= skipped;
                regroup.feed(&piece[skipped as usize..], out)
            },
        )
    }
}
