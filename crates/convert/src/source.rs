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
    /// Tensors that nothing here reads (complex128, sparse and quantised ones, unknown filters …), and why: none unless
    /// [`crate::OpenOptions::skip_unsupported`] asked to leave them out. [`Contents::notes`] has a note of each as well.
    pub skipped: Vec<Note>,
}

/// Lists a tensor that nothing here reads with those that are left out; any other error, and one that is not about a tensor, comes back.
pub(crate) fn skip(
    error: ConvertError,
    notes: &mut Vec<Note>,
    skipped: &mut Vec<Note>,
) -> Result<(), ConvertError> {
    match error {
        ConvertError::Unsupported { at, what, .. } if !at.is_empty() => {
            notes.push(Note::new(at.clone(), format!("left out: {what}")));
            skipped.push(Note::new(at, what));
            Ok(())
        }
        error => Err(error),
    }
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

    /// An error if the file asks for more than it may in order to read these tensors, as far as that can be told before:
    /// numbers that several views repeat, bytes that were never written. Whoever writes asks before there is a file.
    ///
    /// # Errors
    /// [`ConvertError::Limit`]; what the file says.
    fn check(&self, indices: &[usize]) -> Result<(), ConvertError> {
        let _ = indices;
        Ok(())
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

    fn check(&self, indices: &[usize]) -> Result<(), ConvertError> {
        (**self).check(indices)
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

    fn check(&self, indices: &[usize]) -> Result<(), ConvertError> {
        (**self).check(indices)
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        (**self).read(index, out)
    }
}

/// [`Source::check`] of all tensors.
pub(crate) fn check_all(source: &dyn Source) -> Result<(), ConvertError> {
    let all: Vec<usize> = (0..source.contents().tensor_count()).collect();
    source.check(&all)
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
    /// Bytes that the values of a pickle may take, and twice what one may have that is compressed. A checkpoint of 100,000 tensors
    /// needs some 100 MB.
    pub pickle_bytes_max: u64,
    /// Bytes of the tensors that are read together, if that is more than 16 times the file: views can repeat the same numbers.
    pub view_bytes_max: u64,
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
            pickle_bytes_max: 256 * 1024 * 1024,
            view_bytes_max: 1024 * 1024 * 1024,
            depth_max: 1000,
            compression_ratio_max: 1100, // deflate cannot give more than 1032 (RFC 1951 as analysed by M. Adler)
        }
    }
}

/// One of the [`Limits`], in messages and on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitName {
    /// [`Limits::tensor_count_max`].
    Tensors,
    /// [`Limits::memory_bytes_max`].
    Memory,
    /// [`Limits::pickle_bytes_max`].
    Pickle,
    /// [`Limits::view_bytes_max`].
    Views,
    /// [`Limits::depth_max`].
    Depth,
    /// [`Limits::compression_ratio_max`].
    Ratio,
}

impl LimitName {
    /// All of them.
    pub const ALL: [LimitName; 6] = [
        LimitName::Memory,
        LimitName::Pickle,
        LimitName::Views,
        LimitName::Tensors,
        LimitName::Depth,
        LimitName::Ratio,
    ];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            LimitName::Tensors => "tensors",
            LimitName::Memory => "memory",
            LimitName::Pickle => "pickle",
            LimitName::Views => "views",
            LimitName::Depth => "depth",
            LimitName::Ratio => "ratio",
        }
    }

    /// Whether it counts bytes.
    pub fn is_bytes(self) -> bool {
        use LimitName::*;
        matches!(self, Memory | Pickle | Views)
    }
}

impl Limits {
    /// The limit of this name.
    pub fn get(&self, name: LimitName) -> u64 {
        match name {
            LimitName::Tensors => self.tensor_count_max,
            LimitName::Memory => self.memory_bytes_max,
            LimitName::Pickle => self.pickle_bytes_max,
            LimitName::Views => self.view_bytes_max,
            LimitName::Depth => self.depth_max.into(),
            LimitName::Ratio => self.compression_ratio_max,
        }
    }

    /// Another value for the limit of this name.
    pub fn set(&mut self, name: LimitName, value: u64) {
        match name {
            LimitName::Tensors => self.tensor_count_max = value,
            LimitName::Memory => self.memory_bytes_max = value,
            LimitName::Pickle => self.pickle_bytes_max = value,
            LimitName::Views => self.view_bytes_max = value,
            LimitName::Depth => self.depth_max = u32::try_from(value).unwrap_or(u32::MAX),
            LimitName::Ratio => self.compression_ratio_max = value,
        }
    }

    pub(crate) fn bound(&self, name: LimitName) -> Bound {
        Bound {
            most: self.get(name),
            name: Some(name),
        }
    }
}

/// The most there may be of something, and which limit says so; none where it is fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) most: u64,
    pub(crate) name: Option<LimitName>,
}

impl Bound {
    /// The lower of two.
    pub(crate) fn and(self, other: impl Into<Bound>) -> Bound {
        let other = other.into();
        match other.most < self.most {
            true => other,
            false => self,
        }
    }
}

impl From<u64> for Bound {
    fn from(most: u64) -> Bound {
        Bound { most, name: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_has_a_name_of_its_own() {
        let mut limits = Limits::default();
        for (name, value) in LimitName::ALL.into_iter().zip(3..) {
            assert_ne!(limits.get(name), value, "{name:?}");
            limits.set(name, value);
        }
        for (name, value) in LimitName::ALL.into_iter().zip(3..) {
            assert_eq!(limits.get(name), value, "{name:?}");
        }
    }

    #[test]
    fn the_lower_bound_has_its_name() {
        let limits = Limits::default();
        let depth = limits.bound(LimitName::Depth);
        assert_eq!(
            depth.and(100),
            Bound {
                most: 100,
                name: None
            }
        );
        assert_eq!(depth.and(5000), depth);
    }
}
