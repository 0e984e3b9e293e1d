//! What every reader gives and every writer takes: named tensors, read in pieces.

use std::collections::BTreeMap;
use std::fmt;

use safelight_format::{Dtype, OpaqueSpec, TensorSpec, shown};

use crate::error::ConvertError;

/// Readers hand tensors over in pieces of at most this size.
pub const PIECE_BYTES: usize = 4 * 1024 * 1024;

/// What a source knows before a tensor is read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// What to call the source in messages: a file's path.
    pub label: String,
    /// All tensors. Names are unique, among [`Contents::opaque`] too.
    pub tensors: Vec<TensorSpec>,
    /// Tensors of dtypes that nothing here knows: none unless [`crate::OpenOptions::opaque_dtypes`] asked for them. They are
    /// handed on as bytes; who needs numbers or a dtype refuses them by name ([`refuse_opaque`]).
    pub opaque: Vec<OpaqueTensor>,
    /// What should stand in the `__metadata__` of a safetensors file.
    pub metadata: BTreeMap<String, String>,
    /// What is not handed on as it stands in the file, and why.
    pub notes: Vec<Note>,
}

impl Contents {
    /// How many tensors there are, those of unknown dtypes too: [`Source::read`] takes so many indices.
    pub fn tensor_count(&self) -> usize {
        self.tensors.len() + self.opaque.len()
    }

    /// The names of all tensors, by index.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let known = self.tensors.iter().map(|tensor| tensor.name.as_str());
        known.chain(self.opaque.iter().map(|tensor| tensor.name.as_str()))
    }

    /// The bytes of each tensor, by index; 0 where they do not fit into 64 bits.
    pub fn byte_counts(&self) -> impl Iterator<Item = u64> {
        let known = self.tensors.iter();
        let known = known.map(|tensor| tensor.byte_count().unwrap_or(0));
        known.chain(self.opaque.iter().map(|tensor| tensor.byte_count))
    }

    /// The bytes of all tensors together.
    pub fn all_bytes(&self) -> u64 {
        self.byte_counts().fold(0, u64::saturating_add)
    }

    /// Name and size of tensor `index`, whatever its dtype; `None` if the size does not fit into 64 bits.
    pub(crate) fn name_and_bytes(&self, index: usize) -> (&str, Option<u64>) {
        match self.tensors.get(index) {
            Some(tensor) => (&tensor.name, tensor.byte_count()),
            None => {
                let tensor = &self.opaque[index - self.tensors.len()];
                (&tensor.name, Some(tensor.byte_count))
            }
        }
    }

    /// All tensors by index as the writers of safetensors files take them: those of unknown dtypes stand there as bytes, with
    /// what the header says of them beside.
    pub(crate) fn to_specs(&self) -> (Vec<TensorSpec>, Vec<OpaqueSpec>) {
        let bytes = self.opaque.iter().map(|tensor| TensorSpec {
            name: tensor.name.clone(),
            dtype: Dtype::U8,
            shape: vec![tensor.byte_count],
        });
        let said = self.opaque.iter().zip(self.tensors.len()..);
        let said = said.map(|(tensor, position)| OpaqueSpec {
            position,
            dtype: tensor.dtype.clone(),
            shape: tensor.shape.clone(),
        });
        let specs = self.tensors.iter().cloned().chain(bytes);
        (specs.collect(), said.collect())
    }
}

/// A tensor of a dtype that nothing here knows: bytes to be handed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpaqueTensor {
    /// Its name. Foreign text.
    pub name: String,
    /// What its file calls its dtype. Foreign text.
    pub dtype: String,
    /// Its dimensions, outermost first. Nothing follows from them.
    pub shape: Vec<u64>,
    /// How many bytes it has.
    pub byte_count: u64,
}

impl From<&TensorSpec> for OpaqueTensor {
    /// Any tensor, as if only its bytes mattered.
    fn from(tensor: &TensorSpec) -> OpaqueTensor {
        OpaqueTensor {
            name: tensor.name.clone(),
            dtype: tensor.dtype.name().to_owned(),
            shape: tensor.shape.clone(),
            byte_count: tensor.byte_count().unwrap_or(0),
        }
    }
}

/// An error that names the tensors of unknown dtypes, if the source has any: `what` needs to know what they hold, and
/// `instead` says what to do about it.
///
/// # Errors
/// [`ConvertError::Request`].
pub fn refuse_opaque<'t>(
    label: &str,
    opaque: impl IntoIterator<Item = &'t OpaqueTensor>,
    what: &str,
    instead: &str,
) -> Result<(), ConvertError> {
    const NAMED: usize = 10;
    let mut named: Vec<String> = Vec::new();
    let mut count = 0;
    for tensor in opaque {
        count += 1;
        if named.len() < NAMED {
            let (name, dtype) = (shown(&tensor.name), shown(&tensor.dtype));
            named.push(format!("`{name}` is `{dtype}`"));
        }
    }
    if count == 0 {
        return Ok(());
    }
    if count > NAMED {
        named.push(format!("and {} more", count - NAMED));
    }
    let problem = format!(
        "{what} needs to know what tensors hold, and these are of dtypes that nothing here knows: {}; {instead}",
        named.join(", ")
    );
    let at = label.to_owned();
    Err(ConvertError::Request { at, problem })
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

    /// [`Contents::opaque`].
    fn opaque(&self) -> &[OpaqueTensor] {
        &self.contents().opaque
    }

    /// [`Contents::metadata`].
    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.contents().metadata
    }

    /// [`Contents::notes`].
    fn notes(&self) -> &[Note] {
        &self.contents().notes
    }

    /// Hands the bytes of tensor `index` (its position in [`Source::tensors`]; behind these come those of
    /// [`Source::opaque`]) to `out`: little-endian, the last dimension's elements next to each other, in pieces of at most
    /// 16 MiB, none empty.
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
