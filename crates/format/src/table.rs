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
    /// Where the next tensor must start, while all of them stand in the order of their bytes;
    /// `None` since one did not.
    tiled_to: Option<u64>,
    /// Whether all of them are as long as they should be.
    right_sizes: bool,
}

impl Default for TableBuilder {
    fn default() -> TableBuilder {
        TableBuilder {
            names: Vec::new(),
            dims: Vec::new(),
            entries: Vec::new(),
            tiled_to: Some(0),
            right_sizes: true,
        }
    }
}

impl TableBuilder {
    /// With room for what a common header of that length has; longer than the longest of them, it grows.
    pub(crate) fn with_room_for(header_bytes: usize) -> TableBuilder {
        let likely_bytes = header_bytes.min(32 << 20);
        TableBuilder {
            names: Vec::with_capacity(likely_bytes / 2),
            dims: Vec::with_capacity(likely_bytes / 64),
            entries: Vec::with_capacity(likely_bytes / 100),
            ..TableBuilder::default()
        }
    }

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
        self.right_sizes &= right_size(dtype, shape, data_offsets);
        let follows = self.tiled_to == Some(data_offsets.0);
        self.tiled_to = follows.then_some(data_offsets.1);
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
        self.right_sizes &= data_offsets.0 <= data_offsets.1;
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
        let right_sizes = self.right_sizes;
        let mut twice = false;
        if self.tiled_to.is_some() && right_sizes {
            let index = table.file_names(|_| twice = true);
            if !twice {
                return Ok((table, index));
            }
        } else {
            // Sizes were compared, and names are filed, as they stand in the header: in the order of
            // bytes, each would be a walk to distant memory.
            let order = Order::by_offsets(&table.entries);
            let index = table.file_names_in(&order, |_| twice = true);
            if !twice {
                order.apply(&mut table.entries);
                table.check_tiling(right_sizes)?;
                return Ok(table.set_apart(index));
            }
        }
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
        table.check_tiling(right_sizes)?;
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
        Order::by_offsets(&self.entries).apply(&mut self.entries);
    }

    /// Files every name; `on_duplicate` hears of each earlier position that a later one replaces.
    fn file_names(&self, on_duplicate: impl FnMut(u32)) -> NameIndex {
        let positions = 0..self.entries.len() as u32;
        self.file(positions, |position| self.name(position), on_duplicate)
    }

    /// As [`Table::file_names`], under the positions that the entries will have in `order`.
    fn file_names_in(&self, order: &Order, on_duplicate: impl FnMut(u32)) -> NameIndex {
        let positions = order.positions.iter().map(|&position| position as u32);
        let name_of = |position: u32| self.name(order.stated[position as usize] as u32);
        self.file(positions, name_of, on_duplicate)
    }

    /// Files the entries as they stand under `positions`, where `name_of` finds their names.
    fn file<'a>(
        &'a self,
        positions: impl Iterator<Item = u32>,
        name_of: impl Fn(u32) -> &'a str + Copy,
        mut on_duplicate: impl FnMut(u32),
    ) -> NameIndex {
        let mut index = NameIndex::with_room_for(self.entries.len());
        for (entry, position) in self.entries.iter().zip(positions) {
            if let Some(earlier) = index.insert(self.name_of(entry), position, name_of) {
                on_duplicate(earlier);
            }
        }
        index
    }

    /// `right_sizes`: it is known that all tensors are as long as they should be.
    fn check_tiling(&self, right_sizes: bool) -> Result<(), FormatError> {
        let mut expected_at = 0;
        for entry in &self.entries {
            let right_size = || match entry.is_opaque() {
                true => entry.data_offsets.0 <= entry.data_offsets.1,
                false => right_size(entry.dtype(), self.shape_of(entry), entry.data_offsets),
            };
            let fits = entry.data_offsets.0 == expected_at && (right_sizes || right_size());
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

/// Another order of tensors than that in which they stand.
struct Order {
    /// Where the first one stands, the second, and so on.
    stated: Vec<u64>,
    /// The other way round: the position of the one that stands first, second, and so on.
    positions: Vec<u64>,
}

impl Order {
    /// That of their offsets; those with the same stay as they stand.
    ///
    /// A radix sort by the lowest digit first (Knuth, The Art of Computer Programming 3, 5.2.5,
    /// Algorithm R) of where they start; the few that start together are compared.
    fn by_offsets(entries: &[Entry]) -> Order {
        const DIGIT_BITS: u32 = 11;
        const DIGITS: usize = 1 << DIGIT_BITS;
        let offsets = |at: u64| entries[at as usize].data_offsets;
        let starts = || entries.iter().map(|entry| entry.data_offsets.0);
        let bits = |number: u64| u64::BITS - number.leading_zeros();
        // Start and place in one number.
        let place_bits = bits(entries.len() as u64);
        let key_bits = place_bits + bits(starts().max().unwrap_or(0));
        let place = |key: u64| key & ((1 << place_bits) - 1);
        if entries.len() < DIGITS / 8 || key_bits > u64::BITS {
            let mut stated: Vec<u64> = (0..entries.len() as u64).collect();
            stated.sort_by_key(|&at| offsets(at));
            return Order::new(stated, vec![0; entries.len()]);
        }
        let keys = starts().zip(0..);
        let mut keys: Vec<u64> = keys.map(|(start, at)| start << place_bits | at).collect();
        let mut sorted = vec![0; keys.len()];
        for shift in (place_bits..key_bits).step_by(DIGIT_BITS as usize) {
            let digit = |key: u64| (key >> shift) as usize % DIGITS;
            let mut slots = [0usize; DIGITS];
            for &key in &keys {
                slots[digit(key)] += 1;
            }
            if slots.contains(&keys.len()) {
                continue; // they all have the same digit
            }
            let mut behind = 0;
            for slot in &mut slots {
                behind += std::mem::replace(slot, behind);
            }
            for &key in &keys {
                let slot = &mut slots[digit(key)];
                sorted[*slot] = key;
                *slot += 1;
            }
            std::mem::swap(&mut keys, &mut sorted);
        }
        for together in keys.chunk_by_mut(|a, b| a >> place_bits == b >> place_bits) {
            if together.len() > 1 {
                together.sort_by_key(|&key| offsets(place(key)).1);
            }
        }
        keys.iter_mut().for_each(|key| *key = place(*key));
        Order::new(keys, sorted)
    }

    /// `positions`: as many numbers, to be written over.
    fn new(stated: Vec<u64>, mut positions: Vec<u64>) -> Order {
        for (position, &at) in stated.iter().enumerate() {
            positions[at as usize] = position as u64;
        }
        Order { stated, positions }
    }

    /// Puts entries into this order.
    fn apply(&self, entries: &mut Vec<Entry>) {
        *entries = self.stated.iter().map(|&at| entries[at as usize]).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_by_offsets_is_that_of_a_stable_sort() {
        let mut state = 1u64;
        let mut random = |below: u64| {
            state ^= state << 13; // Xorshift64 (Marsaglia 2003)
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for count in [0, 1, 2, 255, 256, 3000] {
            for most in [1, 5, 2048, 1 << 22, 1 << 40, u64::MAX] {
                let entry = |name_at| Entry {
                    name_at,
                    name_len: 0,
                    dims_at: 0,
                    rank_dtype: 0,
                    data_offsets: (random(most), random(3)),
                };
                let entries: Vec<Entry> = (0..count).map(entry).collect();
                let mut expected = entries.clone();
                expected.sort_by_key(|entry| entry.data_offsets);
                let order = Order::by_offsets(&entries);
                for (at, &position) in order.positions.iter().enumerate() {
                    assert_eq!(order.stated[position as usize], at as u64);
                }
                let mut sorted = entries.clone();
                order.apply(&mut sorted);
                let seen = |entry: &Entry| (entry.name_at, entry.data_offsets);
                assert!(
                    sorted.iter().map(seen).eq(expected.iter().map(seen)),
                    "{count} below {most}"
                );
            }
        }
    }
}
