//! A header's tensors, packed: all names in one text and all shapes in one list, so that a header
//! with 200,000 tensors costs a handful of allocations.

use crate::dtype::Dtype;
use crate::error::FormatError;
use crate::header::{Strictness, TensorInfo, bit_count};
use crate::index::NameIndex;

/// One tensor: where in [`Table`] its name and shape are, and its place in the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    name_at: u32,
    name_len: u32,
    dims_at: u32,
    rank: u32,
    pub(crate) data_offsets: (u64, u64),
    dtype: Dtype,
}

/// The tensors of a header, first as they stand there, then in the order of their bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// All names, one after another. Headers are shorter than 4 GiB, so are names and shapes.
    names: String,
    /// All shapes, one after another.
    dims: Vec<u64>,
    pub(crate) entries: Vec<Entry>,
}

impl Table {
    pub(crate) fn push(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        data_offsets: (u64, u64),
    ) {
        self.entries.push(Entry {
            name_at: self.names.len() as u32,
            name_len: name.len() as u32,
            dims_at: self.dims.len() as u32,
            rank: shape.len() as u32,
            data_offsets,
            dtype,
        });
        self.names.push_str(name);
        self.dims.extend_from_slice(shape);
    }

    /// The name of the tensor at a position that exists.
    pub(crate) fn name(&self, position: u32) -> &str {
        self.name_of(&self.entries[position as usize])
    }

    fn name_of(&self, entry: &Entry) -> &str {
        let start = entry.name_at as usize;
        &self.names[start..start + entry.name_len as usize]
    }

    fn shape_of(&self, entry: &Entry) -> &[u64] {
        let start = entry.dims_at as usize;
        &self.dims[start..start + entry.rank as usize]
    }

    pub(crate) fn info(&self, entry: &Entry) -> TensorInfo<'_> {
        TensorInfo {
            name: self.name_of(entry),
            dtype: entry.dtype,
            shape: self.shape_of(entry),
            data_offsets: entry.data_offsets,
        }
    }

    /// Puts tensors into the order of their bytes and finds names that stand twice: an error if
    /// strict, else the last one wins.
    pub(crate) fn settle(&mut self, strictness: Strictness) -> Result<NameIndex, FormatError> {
        let mut overruled = Vec::new();
        let mut index = self.file_names(|earlier| overruled.push(earlier as usize));
        if let (Strictness::Spec, Some(&position)) = (strictness, overruled.first()) {
            return Err(FormatError::DuplicateTensor {
                tensor: self.name(position as u32).to_owned(),
            });
        }
        let in_order = self.entries.is_sorted_by_key(|entry| entry.data_offsets);
        if !overruled.is_empty() || !in_order {
            overruled.sort_unstable();
            let mut position = 0;
            self.entries.retain(|_| {
                position += 1;
                overruled.binary_search(&(position - 1)).is_err()
            });
            self.entries.sort_by_key(|entry| entry.data_offsets);
            index = self.file_names(|_| ());
        }
        Ok(index)
    }

    /// Files every name; `on_duplicate` hears of each earlier position that a later one replaces.
    fn file_names(&self, mut on_duplicate: impl FnMut(u32)) -> NameIndex {
        let mut index = NameIndex::with_room_for(self.entries.len());
        let name_of = |position: u32| self.name(position);
        for position in 0..self.entries.len() as u32 {
            if let Some(earlier) = index.insert(name_of(position), position, name_of) {
                on_duplicate(earlier);
            }
        }
        index
    }

    /// Tensors follow one another without gap or overlap, each as long as its shape and dtype say.
    pub(crate) fn check_tiling(&self) -> Result<(), FormatError> {
        let mut expected_at = 0;
        for entry in &self.entries {
            let (starts_at, ends_at) = entry.data_offsets;
            let bits = bit_count(entry.dtype, self.shape_of(entry));
            let span_bits = ends_at
                .checked_sub(starts_at)
                .and_then(|span_bytes| span_bytes.checked_mul(8));
            if starts_at != expected_at || bits.is_none() || bits != span_bits {
                return Err(self.complain(entry, expected_at));
            }
            expected_at = ends_at;
        }
        Ok(())
    }

    /// What is wrong with a tensor that should start at `expected_at`.
    #[cold]
    fn complain(&self, entry: &Entry, expected_at: u64) -> FormatError {
        let (starts_at, ends_at) = entry.data_offsets;
        let (tensor, dtype) = (self.name_of(entry).to_owned(), entry.dtype);
        if starts_at != expected_at {
            return FormatError::NotContiguous {
                tensor,
                starts_at,
                expected_at,
            };
        }
        if ends_at < starts_at {
            return FormatError::EndsBeforeStart {
                tensor,
                starts_at,
                ends_at,
            };
        }
        let shape = self.shape_of(entry).to_vec();
        match bit_count(dtype, &shape) {
            None => FormatError::SizeOverflow {
                tensor,
                dtype,
                shape,
            },
            Some(bits) if !bits.is_multiple_of(8) => FormatError::NotWholeBytes {
                tensor,
                dtype,
                bits,
            },
            Some(bits) => FormatError::WrongSize {
                tensor,
                dtype,
                shape,
                shape_bytes: bits / 8,
                offset_bytes: ends_at - starts_at,
            },
        }
    }
}
