//! A header's tensors, packed: all names in one text and all shapes in one list, so that a header
//! with 200,000 tensors costs a handful of allocations.

use crate::dtype::Dtype;
use crate::error::FormatError;
use crate::header::{OpaqueTensor, Strictness, TensorInfo, bit_count};
use crate::index::NameIndex;

/// More dimensions than any header shorter than 128 MiB can have.
pub(crate) const RANK_MAX: u64 = (1 << 27) - 1;

/// Positions, plus one, have 32 bits.
pub(crate) const TENSOR_COUNT_MAX: u64 = u32::MAX as u64 - 1;

/// One tensor: where in [`Table`] its name and shape are, and its place in the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    name_at: u32,
    name_len: u32,
    dims_at: u32,
    /// How many dimensions there are and, in the lowest five bits, the position in [`Dtype::ALL`]
    /// or [`OPAQUE`].
    rank_dtype: u32,
    pub(crate) data_offsets: (u64, u64),
}

/// In place of a dtype: one that the format does not know. Its name stands behind the tensor's, and
/// the length of it behind the shape.
const OPAQUE: u32 = 31;

impl Entry {
    fn is_opaque(&self) -> bool {
        self.rank_dtype & 31 == OPAQUE
    }

    fn rank(&self) -> usize {
        (self.rank_dtype >> 5) as usize
    }

    fn dtype(&self) -> Dtype {
        Dtype::ALL[(self.rank_dtype & 31) as usize]
    }
}

/// The tensors of a header, in the order of their bytes.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// All names, one after another. Headers are shorter than 4 GiB, so are names and shapes.
    names: String,
    /// All shapes, one after another.
    dims: Vec<u64>,
    /// Those of known dtypes.
    pub(crate) entries: Vec<Entry>,
    /// The others.
    pub(crate) opaque: Vec<Entry>,
}

/// The tensors of a header as they stand there, while it is read.
pub(crate) struct TableBuilder {
    /// As in [`Table`]: whole texts only.
    names: Vec<u8>,
    pub(crate) dims: Vec<u64>,
    entries: Vec<Entry>,
    /// Where the next tensor must start, while all of them stand in the order of their bytes and
    /// are as long as they should be; `None` since one did not.
    tiled_to: Option<u64>,
}

impl Default for TableBuilder {
    fn default() -> TableBuilder {
        TableBuilder {
            names: Vec::new(),
            dims: Vec::new(),
            entries: Vec::new(),
            tiled_to: Some(0),
        }
    }
}

impl TableBuilder {
    /// How many tensors there are so far.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Adds a tensor whose shape is the end of `dims`, from `dims_at`.
    pub(crate) fn push(&mut self, name: &str, dtype: Dtype, dims_at: usize, offsets: (u64, u64)) {
        self.push_bytes(name.as_bytes(), dtype, dims_at, offsets);
    }

    /// As [`TableBuilder::push`], for names that the caller knows to be ASCII.
    #[inline]
    pub(crate) fn push_ascii(
        &mut self,
        name: &[u8],
        dtype: Dtype,
        dims_at: usize,
        offsets: (u64, u64),
    ) {
        self.push_bytes(name, dtype, dims_at, offsets);
    }

    #[inline]
    fn push_bytes(&mut self, name: &[u8], dtype: Dtype, dims_at: usize, data_offsets: (u64, u64)) {
        let shape = &self.dims[dims_at..];
        if let Some(tiled_to) = self.tiled_to {
            let fits = tiled_to == data_offsets.0 && right_size(dtype, shape, data_offsets);
            self.tiled_to = fits.then_some(data_offsets.1);
        }
        self.entries.push(Entry {
            name_at: self.names.len() as u32,
            name_len: name.len() as u32,
            dims_at: dims_at as u32,
            rank_dtype: (shape.len() as u32) << 5 | dtype as u32,
            data_offsets,
        });
        self.names.extend_from_slice(name);
    }

    /// As [`TableBuilder::push`], for a dtype of which only the name is known.
    pub(crate) fn push_opaque(
        &mut self,
        name: &str,
        dtype: &str,
        dims_at: usize,
        data_offsets: (u64, u64),
    ) {
        self.tiled_to = None;
        self.entries.push(Entry {
            name_at: self.names.len() as u32,
            name_len: name.len() as u32,
            dims_at: dims_at as u32,
            rank_dtype: ((self.dims.len() - dims_at) as u32) << 5 | OPAQUE,
            data_offsets,
        });
        self.dims.push(dtype.len() as u64);
        self.names.extend_from_slice(name.as_bytes());
        self.names.extend_from_slice(dtype.as_bytes());
    }

    /// Puts tensors into the order of their bytes, in which they must follow one another without gap
    /// or overlap, each as long as its shape and dtype say. Of two with one name the last wins, or
    /// it is an error if strict.
    ///
    /// # Panics
    /// If a name was not ASCII that should have been.
    pub(crate) fn settle(self, strictness: Strictness) -> Result<(Table, NameIndex), FormatError> {
        let mut table = Table {
            names: String::from_utf8(self.names).expect("only whole texts were pushed"),
            dims: self.dims,
            entries: self.entries,
            opaque: Vec::new(),
        };
        let stated = if self.tiled_to.is_none() {
            let stated = table.entries.clone();
            table.sort();
            Some(stated)
        } else {
            None
        };
        let mut twice = false;
        let index = table.file_names(|_| twice = true);
        if !twice {
            if stated.is_some() {
                table.check_tiling()?;
                return Ok(table.set_apart(index));
            }
            return Ok((table, index));
        }
        table.entries = stated.unwrap_or(table.entries);
        let mut overruled = Vec::new();
        table.file_names(|earlier| overruled.push(earlier));
        if let (Strictness::Spec, Some(&position)) = (strictness, overruled.first()) {
            return Err(FormatError::DuplicateTensor {
                tensor: table.name(position).to_owned(),
            });
        }
        overruled.sort_unstable();
        let mut position = 0;
        table.entries.retain(|_| {
            position += 1;
            overruled.binary_search(&(position - 1)).is_err()
        });
        table.sort();
        table.check_tiling()?;
        let index = table.file_names(|_| ());
        Ok(table.set_apart(index))
    }
}

impl Table {
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
        &self.dims[start..start + entry.rank()]
    }

    pub(crate) fn info(&self, entry: &Entry) -> TensorInfo<'_> {
        TensorInfo {
            name: self.name_of(entry),
            dtype: entry.dtype(),
            shape: self.shape_of(entry),
            data_offsets: entry.data_offsets,
        }
    }

    /// Moves tensors of unknown dtypes to where only those find them who ask for them.
    fn set_apart(mut self, index: NameIndex) -> (Table, NameIndex) {
        if !self.entries.iter().any(Entry::is_opaque) {
            return (self, index);
        }
        (self.opaque, self.entries) = self.entries.iter().partition(|entry| entry.is_opaque());
        let index = self.file_names(|_| ());
        (self, index)
    }

    pub(crate) fn opaque_info(&self, entry: &Entry) -> OpaqueTensor<'_> {
        let dtype_len = self.dims[entry.dims_at as usize + entry.rank()] as usize;
        let dtype_at = (entry.name_at + entry.name_len) as usize;
        OpaqueTensor {
            name: self.name_of(entry),
            dtype: &self.names[dtype_at..dtype_at + dtype_len],
            shape: self.shape_of(entry),
            data_offsets: entry.data_offsets,
        }
    }

    /// Puts tensors into the order of their bytes; those without bytes stay as they stand.
    fn sort(&mut self) {
        self.entries.sort_by_key(|entry| entry.data_offsets);
    }

    /// Files every name; `on_duplicate` hears of each earlier position that a later one replaces.
    fn file_names(&self, mut on_duplicate: impl FnMut(u32)) -> NameIndex {
        let mut index = NameIndex::with_room_for(self.entries.len());
        let name_of = |position: u32| self.name(position);
        for (position, entry) in self.entries.iter().enumerate() {
            if let Some(earlier) = index.insert(self.name_of(entry), position as u32, name_of) {
                on_duplicate(earlier);
            }
        }
        index
    }

    fn check_tiling(&self) -> Result<(), FormatError> {
        let mut expected_at = 0;
        for entry in &self.entries {
            let right_size = match entry.is_opaque() {
                true => entry.data_offsets.0 <= entry.data_offsets.1,
                false => right_size(entry.dtype(), self.shape_of(entry), entry.data_offsets),
            };
            let fits = entry.data_offsets.0 == expected_at && right_size;
            if !fits {
                return Err(self.complain(entry, expected_at));
            }
            expected_at = entry.data_offsets.1;
        }
        Ok(())
    }

    /// What is wrong with a tensor that should start at `expected_at`.
    #[cold]
    fn complain(&self, entry: &Entry, expected_at: u64) -> FormatError {
        let (starts_at, ends_at) = entry.data_offsets;
        let tensor = self.name_of(entry).to_owned();
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
        let (dtype, shape) = (entry.dtype(), self.shape_of(entry).to_vec());
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

/// Whether dtype and shape ask for just the bytes between the offsets.
#[inline]
fn right_size(dtype: Dtype, shape: &[u64], (starts_at, ends_at): (u64, u64)) -> bool {
    let span_bytes = ends_at.checked_sub(starts_at);
    let span_bits = span_bytes.and_then(|bytes| bytes.checked_mul(8));
    span_bits.is_some() && bit_count(dtype, shape) == span_bits
}
