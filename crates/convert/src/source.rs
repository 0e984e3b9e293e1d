//! What every reader gives and every writer takes: named tensors, read in pieces.

use std::collections::BTreeMap;
use std::fmt;

use safelight_format::{TensorSpec, shown};

use crate::error::ConvertError;

/// Readers hand tensors over in pieces of at most this size.
pub const PIECE_BYTES: usize = 4 * 1024 * 1024;

/// What a source knows before a tensor is read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// What to call the source in messages: a file's path.
    pub label: String,
    /// All tensors. Names are unique.
    pub tensors: Vec<TensorSpec>,
    /// What should stand in the `__metadata__` of a safetensors file.
    pub metadata: BTreeMap<String, String>,
    /// What is not handed on as it stands in the file, and why.
    pub notes: Vec<Note>,
}

/// Named tensors that can be read in pieces, wherever they come from: foreign files, safetensors, adapters over them.
///
/// May be shared among threads, which then read at the same time.
pub trait Source: Send + Sync {
    /// Names, dtypes and shapes, and what else there is to say.
    fn contents(&self) -> &Contents;

    /// [`Contents::label`].
    fn label(&self) -> &str {
        &self.contents().label
    }

    /// [`Contents::tensors`].
    fn tensors(&self) -> &[TensorSpec] {
        &self.contents().tensors
    }

    /// [`Contents::metadata`].
    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.contents().metadata
    }

    /// [`Contents::notes`].
    fn notes(&self) -> &[Note] {
        &self.contents().notes
    }

    /// Hands the bytes of tensor `index` (its position in [`Source::tensors`]) to `out`: little-endian, the
    /// last dimension's elements next to each other, in pieces of at most 16 MiB, none empty.
    ///
    /// # Errors
    /// What the file or the system says, or what `out` returned: that ends the reading.
    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError>;
}

impl<S: Source + ?Sized> Source for Box<S> {
    fn contents(&self) -> &Contents {
        (**self).contents()
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        (**self).read(index, out)
    }
}

impl<S: Source + ?Sized> Source for std::sync::Arc<S> {
    fn contents(&self) -> &Contents {
        (**self).contents()
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        (**self).read(index, out)
    }
}

/// Something of the file that is not handed on as it is, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Where: a tensor's name, a key, or the file's part. Foreign text.
    pub at: String,
    /// What happened and why, such as `dropped: a string`.
    pub what: String,
}

impl Note {
    /// A note on `at`.
    pub fn new(at: impl Into<String>, what: impl Into<String>) -> Note {
        let (at, what) = (at.into(), what.into());
        Note { at, what }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", shown(&self.at), shown(&self.what))
    }
}

/// How much a foreign file may ask for.
///
/// The defaults let every honest model through that we know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For safetensors files.
    pub header: safelight_format::Limits,
    /// Tensors of a file.
    pub tensor_count_max: u64,
    /// Bytes that parts which must be in memory as a whole may take together: a pickle, a compressed tensor that is
    /// read out of order, a graph's names.
    pub memory_bytes_max: u64,
    /// How deep containers may be nested.
    pub depth_max: u32,
    /// How many bytes a compressed member may give for each byte that is stored.
    pub compression_ratio_max: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            header: safelight_format::Limits::default(),
            tensor_count_max: 4_000_000,
            memory_bytes_max: 1024 * 1024 * 1024,
            depth_max: 1000,
            compression_ratio_max: 1100, // deflate cannot give more than 1032 (RFC 1951 as analysed by M. Adler)
        }
    }
}
