//! A source whose tensors are another's: chosen, renamed, cut, joined or transposed, never computed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use safelight_format::TensorSpec;

use crate::error::ConvertError;
use crate::source::{Bound, Contents, LimitName, Note, OpaqueTensor, PIECE_BYTES, Source};

/// Where an arranged tensor's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// All of tensor `index`, in its own order.
    Whole(usize),
    /// The bytes of tensor `index` from the first number up to the second.
    Span(usize, u64, u64),
    /// Several tensors behind each other.
    Join(Vec<usize>),
    /// A matrix of this many rows and columns, given out column by column.
    Transposed(usize, u64, u64),
    /// Bytes that no tensor of the source has.
    Given(Vec<u8>),
}

/// Tensors of one source under other names, in another order, or in other pieces.
pub struct Arranged {
    inner: Arc<dyn Source>,
    contents: Contents,
    takes: Vec<Take>,
    memory_bytes_max: u64,
}

impl Arranged {
    /// An arrangement of `inner`'s tensors. `notes` are added to those of `inner`.
    ///
    /// # Errors
    /// [`ConvertError::Request`] if two tensors would have one name.
    pub(crate) fn new(
        inner: Arc<dyn Source>,
        entries: Vec<(TensorSpec, Take)>,
        metadata: BTreeMap<String, String>,
        notes: Vec<Note>,
        memory_bytes_max: u64,
    ) -> Result<Arranged, ConvertError> {
        let (tensors, takes): (Vec<TensorSpec>, Vec<Take>) = entries.into_iter().unzip();
        let notes = inner.notes().iter().cloned().chain(notes).collect();
        let contents = Contents {
            label: inner.label().to_owned(),
            tensors,
            opaque: vec![],
            metadata,
            notes,
            ..Contents::default()
        };
        let arranged = Arranged {
            inner,
            contents,
            takes,
            memory_bytes_max,
        };
        arranged.check_names()?;
        Ok(arranged)
    }

    /// As arranged, and with tensors of unknown dtypes: each with the name it gets and its position in [`Source::opaque`].
    ///
    /// # Errors
    /// As [`Arranged::new`].
    pub(crate) fn with_opaque(
        mut self,
        entries: impl IntoIterator<Item = (String, usize)>,
    ) -> Result<Arranged, ConvertError> {
        for (name, position) in entries {
            let opaque = self.inner.opaque()[position].clone();
            self.contents.opaque.push(OpaqueTensor { name, ..opaque });
            let index = self.inner.tensors().len() + position;
            self.takes.push(Take::Whole(index));
        }
        self.check_names()?;
        Ok(self)
    }

    fn check_names(&self) -> Result<(), ConvertError> {
        let mut seen = BTreeSet::new();
        match self.contents.names().find(|name| !seen.insert(*name)) {
            None => Ok(()),
            Some(twice) => Err(ConvertError::Request {
                at: twice.to_owned(),
                problem: format!("two tensors of {} would get this name", self.label()),
            }),
        }
    }

    /// A matrix needs to be in memory as a whole to be turned.
    fn read_transposed(
        &self,
        (index, rows, columns): (usize, u64, u64),
        element_bytes: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let name = &self.inner.tensors()[index].name;
        let matrix = read_whole(&*self.inner, index, self.memory_bytes_max)?;
        if matrix.is_empty() {
            return Ok(()); // and its other dimension may be anything
        }
        let (rows, columns) = (rows as usize, columns as usize);
        assert_eq!(
            matrix.len(),
            rows * columns * element_bytes,
            "`{name}` is the matrix it was arranged as"
        );
        let mut piece = Vec::with_capacity(PIECE_BYTES.min(matrix.len()));
        for column in 0..columns {
            for row in 0..rows {
                let start = (row * columns + column) * element_bytes;
                piece.extend_from_slice(&matrix[start..start + element_bytes]);
                if piece.len() + element_bytes > PIECE_BYTES {
                    out(&piece)?;
                    piece.clear();
                }
            }
        }
        if piece.is_empty() {
            Ok(())
        } else {
            out(&piece)
        }
    }
}

/// All bytes of one tensor.
///
/// # Errors
/// What the source says; [`ConvertError::Limit`] if it is larger than `bytes_max`.
pub(crate) fn read_whole(
    source: &dyn Source,
    index: usize,
    bytes_max: u64,
) -> Result<Vec<u8>, ConvertError> {
    let (name, bytes) = source.contents().name_and_bytes(index);
    let bytes = bytes.unwrap_or(u64::MAX);
    if bytes > bytes_max {
        let bound = Bound {
            most: bytes_max,
            name: Some(LimitName::Memory),
        };
        let what = "bytes of a tensor that has to be in memory as a whole";
        return Err(ConvertError::limit(
            source.label(),
            name,
            what,
            bytes,
            bound,
        ));
    }
    let mut all = Vec::new();
    if usize::try_from(bytes)
        .ok()
        .is_none_or(|bytes| all.try_reserve_exact(bytes).is_err())
    {
        return Err(ConvertError::OutOfMemory {
            file: source.label().to_owned(),
            at: name.to_owned(),
            byte_count: bytes,
        });
    }
    source.read(index, &mut |piece| {
        all.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(all)
}

impl Source for Arranged {
    fn contents(&self) -> &Contents {
        &self.contents
    }

    fn check(&self, indices: &[usize]) -> Result<(), ConvertError> {
        let taken = indices.iter().flat_map(|&index| match &self.takes[index] {
            Take::Whole(index) | Take::Span(index, ..) | Take::Transposed(index, ..) => {
                std::slice::from_ref(index)
            }
            Take::Join(indices) => &indices[..],
            Take::Given(_) => &[],
        });
        self.inner.check(&taken.copied().collect::<Vec<_>>())
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        match &self.takes[index] {
            Take::Whole(index) => self.inner.read(*index, out),
            Take::Join(indices) => indices
                .iter()
                .try_for_each(|&index| self.inner.read(index, out)),
            Take::Given(bytes) => bytes.chunks(PIECE_BYTES).try_for_each(out),
            &Take::Span(index, start, end) => {
                let mut offset = 0u64;
                self.inner.read(index, &mut |piece| {
                    let here = |at: u64| at.saturating_sub(offset).min(piece.len() as u64) as usize;
                    let part = &piece[here(start)..here(end)];
                    offset += piece.len() as u64;
                    if part.is_empty() { Ok(()) } else { out(part) }
                })
            }
            &Take::Transposed(inner, rows, columns) => {
                let element_bytes = (self.tensors()[index].dtype.bits() / 8) as usize;
                self.read_transposed((inner, rows, columns), element_bytes, out)
            }
        }
    }
}
