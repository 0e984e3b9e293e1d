//! Where a weight's values come from while it is packed: memory, or a file that is read piece by piece.
//!
//! Packing reads the rows of one panel at a time and decodes some channels of them at a time, so no copy of the whole
//! weight is ever made.

/// A weight's values, in the order checkpoints have them.
pub trait Source: Sync {
    /// How many there are.
    fn count(&self) -> usize;

    /// Shows `count` values from `first` on to `see`. `room` is for bytes from a file; what it held does not matter.
    ///
    /// There is no error: a source that fails shows zeros and remembers why.
    fn show(&self, first: usize, count: usize, room: &mut Vec<u8>, see: &mut dyn FnMut(&dyn Piece));
}

/// Some values of a [`Source`], as they are stored.
pub trait Piece {
    /// Fills `values` from value `first` of the piece on. Packing asks for each value exactly once.
    fn decode(&self, first: usize, values: &mut [f32]);
}

/// Values that are in memory.
#[derive(Clone, Copy, Debug)]
pub struct InMemory<'a>(pub &'a [f32]);

impl Source for InMemory<'_> {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn show(
        &self,
        first: usize,
        count: usize,
        _room: &mut Vec<u8>,
        see: &mut dyn FnMut(&dyn Piece),
    ) {
        see(&InMemory(&self.0[first..][..count]));
    }
}

impl Piece for InMemory<'_> {
    fn decode(&self, first: usize, values: &mut [f32]) {
        values.copy_from_slice(&self.0[first..][..values.len()]);
    }
}

/// So many zeros: what stands in for a weight that can't be read.
#[derive(Clone, Copy, Debug)]
pub struct Zeros(pub usize);

impl Source for Zeros {
    fn count(&self) -> usize {
        self.0
    }

    fn show(
        &self,
        _first: usize,
        count: usize,
        _room: &mut Vec<u8>,
        see: &mut dyn FnMut(&dyn Piece),
    ) {
        see(&Zeros(count));
    }
}

impl Piece for Zeros {
    fn decode(&self, _first: usize, values: &mut [f32]) {
        values.fill(0.0);
    }
}
