//! The tensors of a PyTorch file, read where they lie.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use safelight_format::{Dtype, TensorSpec};
use safelight_store::ReadAt;

use super::Context;
use super::flatten::{Found, Holds};
use super::objects::{Bytes, Pending, Tensor};
use super::strided::{View, is_contiguous, pack};
use crate::bytes::{Memory, Part, read_exact_at};
use crate::error::ConvertError;
use crate::pickle::{Blob, Coding, decode_text};
use crate::source::{Bound, Contents, LimitName, PIECE_BYTES, Source};
use crate::zip::{Member, Method};

/// Where a storage's bytes are.
#[derive(Clone)]
pub(crate) enum Place {
    /// In the file as they are; the member that holds nothing else, if there is one, for its checksum.
    File {
        at: u64,
        byte_count: u64,
        member: Option<Arc<Member>>,
    },
    /// Compressed in the file.
    Member(Arc<Member>),
    /// In memory: so many bytes from `at` on.
    Memory {
        of: Arc<Memory>,
        at: u64,
        byte_count: u64,
    },
    /// As Latin-1 characters in a text of `text_bytes` that begins at `at` in the memory or else in the file.
    Encoded {
        of: Option<Arc<Memory>>,
        at: u64,
        text_bytes: u64,
        coding: Coding,
        byte_count: u64,
    },
}

/// Where a pickle lies, for what lies within it.
pub(crate) enum Pickle {
    /// In the file, from this byte on.
    File(u64),
    /// In memory.
    Memory(Arc<Memory>),
}

impl Pickle {
    /// Where a blob of the pickle's lies.
    ///
    /// # Errors
    /// A text that is too long, or no Latin-1.
    fn place(
        &self,
        context: &Context<'_>,
        file: &dyn ReadAt,
        (blob, coding): (Blob, Option<Coding>),
        name: &str,
    ) -> Result<Place, ConvertError> {
        let (at, of) = match self {
            Pickle::File(start) => (start.saturating_add(blob.at), None),
            Pickle::Memory(memory) => (blob.at, Some(Arc::clone(memory))),
        };
        Ok(match (coding, of) {
            (None, None) => Place::File {
                at,
                byte_count: blob.len,
                member: None,
            },
            (None, Some(of)) => Place::Memory {
                of,
                at,
                byte_count: blob.len,
            },
            (Some(coding), of) => {
                let within: &dyn ReadAt = of.as_deref().map_or(file, |memory| memory);
                let part = Part {
                    of: within,
                    at,
                    len: blob.len,
                };
                let decoded = latin1(context, &part, coding, name)?;
                Place::Encoded {
                    of,
                    at,
                    text_bytes: blob.len,
                    coding,
                    byte_count: decoded.len() as u64,
                }
            }
        })
    }
}

/// The bytes for which the characters of a text stand, all below 256: how protocols before 3 write bytes.
///
/// # Errors
/// It is too long to be taken into memory, or no such text.
pub(crate) fn latin1(
    context: &Context<'_>,
    text: &Part<'_>,
    coding: Coding,
    name: &str,
) -> Result<Vec<u8>, ConvertError> {
    let limit = context.options.limits.bound(LimitName::Memory);
    if text.len > limit.most {
        let what = "bytes of text that stand for numbers";
        return Err(context.limit(name, what, text.len, limit));
    }
    let mut bytes = vec![0; text.len as usize];
    read_exact_at(text, &mut bytes, 0).map_err(|error| context.io(error))?;
    decode_latin1(bytes, coding)
        .ok_or_else(|| context.malformed(name, "numbers whose bytes are no Latin-1 text"))
}

/// See [`latin1`].
pub(crate) fn decode_latin1(bytes: Vec<u8>, coding: Coding) -> Option<Vec<u8>> {
    let text = decode_text(bytes, coding)?;
    text.chars()
        .map(|c| u8::try_from(u32::from(c)).ok())
        .collect()
}

impl Place {
    fn byte_count(&self) -> u64 {
        match self {
            Place::File { byte_count, .. } => *byte_count,
            Place::Member(member) => member.content_bytes,
            Place::Memory { byte_count, .. } | Place::Encoded { byte_count, .. } => *byte_count,
        }
    }
}

/// Output beyond so many times the file's size, and beyond [`Limits::view_bytes_max`], is a bomb.
const EXPANSION_MAX: u64 = 16;

/// One tensor: its storage and its view of it.
struct Entry {
    place: Place,
    view: View,
    is_contiguous: bool,
    numbers: Numbers,
}

/// What is done to numbers between the file and whoever asked for them.
#[derive(Clone, Copy)]
struct Numbers {
    /// Those of so many bytes are turned around; 1 for none.
    swap_bytes: usize,
    /// One number, or one part of a complex one.
    part_bytes: usize,
    /// Whether the first part, and whether the second one, gets the other sign. Those of real numbers take turns, with the same.
    signs: [bool; 2],
}

impl Numbers {
    fn of(dtype: Dtype, pending: Pending, is_big_endian: bool) -> Numbers {
        let (part_bytes, signs) = match dtype {
            Dtype::C64 => (4, [pending.negate, pending.negate != pending.conjugate]),
            _ => (dtype.bits().div_ceil(8) as usize, [pending.negate; 2]),
        };
        Numbers {
            swap_bytes: if is_big_endian { part_bytes } else { 1 },
            part_bytes,
            signs,
        }
    }

    /// What must not be cut.
    fn unit_bytes(&self) -> usize {
        match self.signs {
            [false, false] => self.swap_bytes,
            _ => 2 * self.part_bytes,
        }
    }

    /// Does it to whole units, and to the last number alone.
    fn finish(&self, bytes: &mut [u8]) {
        if self.swap_bytes > 1 {
            bytes
                .chunks_exact_mut(self.swap_bytes)
                .for_each(<[u8]>::reverse);
        }
        if self.signs == [false; 2] {
            return;
        }
        // Little-endian IEEE 754: the sign is the last byte's top bit.
        for (part, turns) in bytes
            .chunks_exact_mut(self.part_bytes)
            .zip(self.signs.iter().cycle())
        {
            part[self.part_bytes - 1] ^= u8::from(*turns) << 7;
        }
    }
}

/// A file's tensors.
pub(crate) struct TorchSource {
    contents: Contents,
    file: Box<dyn ReadAt>,
    entries: Vec<Entry>,
    memory: Bound,
    /// Of all tensors that are read together.
    views: Bound,
}

impl TorchSource {
    /// Checks every tensor against its storage. `places` are the storages by key; other numbers lie in `pickle` itself.
    ///
    /// # Errors
    /// The first tensor that does not fit into its storage.
    pub(crate) fn new(
        context: &Context<'_>,
        file: Box<dyn ReadAt>,
        holds: Holds,
        places: &HashMap<String, Place>,
        pickle: &Pickle,
        is_big_endian: bool,
    ) -> Result<TorchSource, ConvertError> {
        let file_bytes = file.byte_count().map_err(|error| context.io(error))?;
        let stored: u64 = places
            .values()
            .map(Place::byte_count)
            .fold(file_bytes, u64::saturating_add);
        let limits = &context.options.limits;
        let mut views = limits.bound(LimitName::Views);
        views.most = views.most.max(stored.saturating_mul(EXPANSION_MAX));
        let (mut specs, mut entries) = (Vec::new(), Vec::new());
        let mut inlined: HashMap<u64, Place> = HashMap::new();
        for Found { name, tensor } in holds.tensors {
            let place = match &tensor.bytes {
                Bytes::Storage { key, .. } => places.get(key).cloned().ok_or_else(|| {
                    let shown = safelight_format::shown(key).to_string();
                    context.malformed(&name, format!("its storage `{shown}` is not in the file"))
                })?,
                Bytes::Inline { blob, coding, .. } => match inlined.get(&blob.at) {
                    Some(place) => place.clone(),
                    None => {
                        let place = pickle.place(context, &*file, (*blob, *coding), &name)?;
                        inlined.insert(blob.at, place.clone());
                        place
                    }
                },
            };
            let entry = entry(context, &name, &tensor, place, is_big_endian)?;
            let spec = TensorSpec {
                name,
                dtype: tensor.dtype,
                shape: tensor.shape,
            };
            if spec.byte_count().is_none() {
                let what = format!("shape {:?} has no size in bytes", spec.shape);
                return Err(context.malformed(&spec.name, what));
            }
            specs.push(spec);
            entries.push(entry);
        }
        let contents = Contents {
            label: context.label.clone(),
            tensors: specs,
            metadata: holds.metadata,
            notes: holds.notes,
            skipped: holds.skipped,
            ..Contents::default()
        };
        Ok(TorchSource {
            contents,
            file,
            entries,
            memory: limits.bound(LimitName::Memory),
            views,
        })
    }

    fn io(&self, index: usize, error: io::Error) -> ConvertError {
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                let name = self.tensors()[index].name.clone();
                ConvertError::malformed(self.label(), "PyTorch", name, error.to_string())
            }
            _ => ConvertError::Io {
                doing: "read",
                file: self.label().to_owned(),
                error,
            },
        }
    }
}

/// Checks a tensor against its storage.
fn entry(
    context: &Context<'_>,
    name: &str,
    tensor: &Tensor,
    place: Place,
    is_big_endian: bool,
) -> Result<Entry, ConvertError> {
    // Four-bit numbers are counted in bytes: two of them are one element.
    let element_bytes = tensor.dtype.bits().div_ceil(8);
    let mut shape = tensor.shape.clone();
    if let (true, Some(last)) = (tensor.dtype == Dtype::F4, shape.last_mut()) {
        *last /= 2;
    }
    let is_contiguous = is_contiguous(&shape, &tensor.strides);
    let (view_bytes, claimed) = match &tensor.bytes {
        Bytes::Storage {
            view_bytes,
            byte_count,
            ..
        } => (*view_bytes, *byte_count),
        Bytes::Inline { range, .. } => range.unwrap_or((0, place.byte_count())),
    };
    let there = place.byte_count();
    let wrong = |what: String| context.malformed(name, what);
    if view_bytes
        .checked_add(claimed)
        .is_none_or(|end| end > there)
    {
        return Err(wrong(format!(
            "its storage should have {claimed} bytes, the file has {there}; is it cut off?"
        )));
    }
    let end = end_of(&shape, &tensor.strides, tensor.offset, element_bytes);
    match end {
        Some(end) if end <= claimed => {}
        _ => {
            return Err(wrong(format!(
                "shape {:?} with strides {:?} from element {} reaches beyond its storage of {claimed} bytes",
                tensor.shape, tensor.strides, tensor.offset
            )));
        }
    }
    let is_big_endian = match tensor.bytes {
        Bytes::Storage { .. } => is_big_endian,
        Bytes::Inline { .. } => tensor.is_big_endian,
    };
    let is_empty = shape.contains(&0);
    let view = View {
        at: if is_empty {
            0
        } else {
            view_bytes + tensor.offset * element_bytes
        },
        strides: tensor
            .strides
            .iter()
            .map(|stride| stride.saturating_mul(element_bytes))
            .collect(),
        shape,
        element_bytes,
        storage_bytes: view_bytes + claimed,
    };
    Ok(Entry {
        place,
        view,
        is_contiguous,
        numbers: Numbers::of(tensor.dtype, tensor.pending, is_big_endian),
    })
}

/// The byte behind the last element; 0 if there is none, `None` if it does not fit into 64 bits.
fn end_of(shape: &[u64], strides: &[u64], offset: u64, element_bytes: u64) -> Option<u64> {
    if shape.contains(&0) {
        return Some(0);
    }
    let mut last = offset;
    for (&dim, &stride) in shape.iter().zip(strides) {
        last = last.checked_add((dim - 1).checked_mul(stride)?)?;
    }
    last.checked_add(1)?.checked_mul(element_bytes)
}

/// What `out` returned, on its way through an [`io::Error`].
#[derive(Debug)]
struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped by the reader of the pieces")
    }
}

impl std::error::Error for Stopped {}

impl Source for TorchSource {
    fn contents(&self) -> &Contents {
        &self.contents
    }

    fn check(&self, indices: &[usize]) -> Result<(), ConvertError> {
        let mut all_bytes = 0u64;
        for &index in indices {
            let tensor = &self.tensors()[index];
            all_bytes = all_bytes.saturating_add(tensor.byte_count().unwrap_or(0));
            if all_bytes > self.views.most {
                let (name, what) = (
                    &tensor.name,
                    "bytes of tensors from views of the same numbers",
                );
                return Err(ConvertError::limit(
                    self.label(),
                    name,
                    what,
                    all_bytes,
                    self.views,
                ));
            }
        }
        Ok(())
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let entry = &self.entries[index];
        let byte_count = self.tensors()[index].byte_count().unwrap_or(0);
        if byte_count == 0 {
            return Ok(());
        }
        self.check(&[index])?;
        let mut failed = None;
        let done = match (&entry.place, entry.is_contiguous) {
            (Place::File { at, member, .. }, true) => {
                let whole = member
                    .as_ref()
                    .filter(|member| member.content_bytes == byte_count);
                self.straight(entry, *at, byte_count, whole, out, &mut failed)
            }
            (Place::Member(member), true) => {
                self.inflated(entry, member, byte_count, out, &mut failed)
            }
            (Place::File { at, byte_count, .. }, false) => {
                let part = Part {
                    of: &*self.file,
                    at: *at,
                    len: *byte_count,
                };
                packed(&part, entry, out, &mut failed)
            }
            (Place::Member(member), false) => {
                let content = self.whole(index, member)?;
                packed(&content, entry, out, &mut failed)
            }
            (Place::Memory { of, at, byte_count }, _) => {
                let part = Part {
                    of: &**of,
                    at: *at,
                    len: *byte_count,
                };
                packed(&part, entry, out, &mut failed)
            }
            (Place::Encoded { .. }, _) => {
                let content = self.decoded(&entry.place)?;
                packed(&Memory(content), entry, out, &mut failed)
            }
        };
        match failed {
            Some(error) => Err(error),
            None => done.map_err(|error| self.io(index, error)),
        }
    }
}

/// Hands a piece on, and keeps the error if there is one.
fn hand_on(
    bytes: &[u8],
    out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    failed: &mut Option<ConvertError>,
) -> io::Result<()> {
    out(bytes).map_err(|error| {
        *failed = Some(error);
        io::Error::other(Stopped)
    })
}

fn packed(
    storage: &dyn ReadAt,
    entry: &Entry,
    out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    failed: &mut Option<ConvertError>,
) -> io::Result<()> {
    pack(storage, &entry.view, &mut |piece| {
        entry.numbers.finish(piece);
        hand_on(piece, out, failed)
    })
}

impl TorchSource {
    /// A contiguous tensor that lies in the file as it is. If it is all of a member, its checksum is compared.
    fn straight(
        &self,
        entry: &Entry,
        at: u64,
        byte_count: u64,
        whole: Option<&Arc<Member>>,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
        failed: &mut Option<ConvertError>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; byte_count.min(PIECE_BYTES as u64) as usize];
        let mut crc = crc32fast::Hasher::new();
        let mut done = 0;
        while done < byte_count {
            let len = (byte_count - done).min(PIECE_BYTES as u64) as usize;
            let piece = &mut buffer[..len];
            read_exact_at(&*self.file, piece, at + entry.view.at + done)?;
            if whole.is_some() {
                crc.update(piece);
            }
            entry.numbers.finish(piece);
            hand_on(piece, out, failed)?;
            done += len as u64;
        }
        match whole {
            Some(member) => member.check(crc.finalize()),
            None => Ok(()),
        }
    }

    /// A contiguous tensor of a compressed member: what is before it is passed over.
    fn inflated(
        &self,
        entry: &Entry,
        member: &Member,
        byte_count: u64,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
        failed: &mut Option<ConvertError>,
    ) -> io::Result<()> {
        let (start, end) = (entry.view.at, entry.view.at + byte_count);
        let mut at = 0u64;
        let mut carried = Vec::new(); // a number cut in two by a piece's end
        member.read(&*self.file, PIECE_BYTES, &mut |piece| {
            let from = start.clamp(at, at + piece.len() as u64) - at;
            let to = end.clamp(at, at + piece.len() as u64) - at;
            at += piece.len() as u64;
            if from == to {
                return Ok(());
            }
            carried.extend_from_slice(&piece[from as usize..to as usize]);
            let is_last = at >= end;
            let unit_bytes = if is_last {
                1
            } else {
                entry.numbers.unit_bytes()
            };
            let len = carried.len() - carried.len() % unit_bytes;
            entry.numbers.finish(&mut carried[..len]);
            if len > 0 {
                hand_on(&carried[..len], out, failed)?;
            }
            carried.drain(..len);
            Ok(())
        })
    }

    /// The bytes for which a text stands. Its length and its characters were checked when the file was opened.
    fn decoded(&self, place: &Place) -> Result<Vec<u8>, ConvertError> {
        let Place::Encoded {
            of,
            at,
            text_bytes,
            coding,
            ..
        } = place
        else {
            unreachable!("only what is encoded is decoded");
        };
        let within: &dyn ReadAt = of.as_deref().map_or(&*self.file, |memory| memory);
        let mut bytes = vec![0; *text_bytes as usize];
        let failed = |error| ConvertError::Io {
            doing: "read",
            file: self.label().to_owned(),
            error,
        };
        read_exact_at(within, &mut bytes, *at).map_err(failed)?;
        decode_latin1(bytes, *coding).ok_or_else(|| {
            let what = "numbers whose bytes are no Latin-1 text any more: the file changed";
            ConvertError::malformed(self.label(), "PyTorch", "", what)
        })
    }

    /// A compressed member as a whole.
    fn whole(&self, index: usize, member: &Member) -> Result<Memory, ConvertError> {
        let value = member.content_bytes;
        if value > self.memory.most {
            let name = &self.tensors()[index].name;
            let what = "bytes in memory for a compressed tensor that is no contiguous one";
            return Err(ConvertError::limit(
                self.label(),
                name,
                what,
                value,
                self.memory,
            ));
        }
        let mut content = Vec::new();
        let read = member.read(&*self.file, PIECE_BYTES, &mut |piece| {
            content.try_reserve(piece.len()).map_err(io::Error::other)?;
            content.extend_from_slice(piece);
            Ok(())
        });
        read.map_err(|error| self.io(index, error))?;
        Ok(Memory(content))
    }
}

/// Whether a member's bytes lie in the file as they are.
pub(crate) fn place_of(member: Member) -> Place {
    let member = Arc::new(member);
    match member.method {
        Method::Stored => Place::File {
            at: member.data_at,
            byte_count: member.content_bytes,
            member: Some(member),
        },
        _ => Place::Member(member),
    }
}
