//! A tensor of a file as packing reads it: piece by piece, decoded as it goes, each value looked at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use safelight_format::{Dtype, decode_f32_into};
use safelight_store::{Checkpoint, StoreError};
use safelight_tensor::{Piece, Source, Zeros, halves_to_floats};

/// A tensor of floats, and what was found wrong with it so far.
pub(crate) struct StoredSource<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    dtype: Dtype,
    count: usize,
    /// Values that are NaN or infinite.
    bad: AtomicUsize,
    failure: Mutex<Option<StoreError>>,
}

impl<'a> StoredSource<'a> {
    /// The tensor `name`, which has `count` values of a dtype that is whole bytes.
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        name: &'a str,
        dtype: Dtype,
        count: usize,
    ) -> Self {
        StoredSource {
            checkpoint,
            name,
            dtype,
            count,
            bad: AtomicUsize::new(0),
            failure: Mutex::default(),
        }
    }

    /// How many of the values that were decoded are NaN or infinite.
    ///
    /// # Errors
    /// The first reading that failed.
    pub(crate) fn finish(self) -> Result<usize, StoreError> {
        let failure = self.failure.into_inner();
        match failure.unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(self.bad.into_inner()),
        }
    }
}

impl Source for StoredSource<'_> {
    fn count(&self) -> usize {
        self.count
    }

    fn show(
        &self,
        first: usize,
        count: usize,
        room: &mut Vec<u8>,
        see: &mut dyn FnMut(&dyn Piece),
    ) {
        let value_bytes = self.dtype.bits() as usize / 8;
        let byte_count = count * value_bytes;
        if room.len() < byte_count {
            room.resize(byte_count, 0);
        }
        let (bytes, offset) = (&mut room[..byte_count], (first * value_bytes) as u64);
        if let Err(error) = self.checkpoint.read_bytes_at(self.name, offset, bytes) {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert(error);
            return see(&Zeros(count));
        }
        see(&StoredPiece {
            bytes,
            dtype: self.dtype,
            bad: &self.bad,
        });
    }
}

struct StoredPiece<'a> {
    bytes: &'a [u8],
    dtype: Dtype,
    bad: &'a AtomicUsize,
}

impl Piece for StoredPiece<'_> {
    fn decode(&self, first: usize, values: &mut [f32]) {
        let value_bytes = self.dtype.bits() as usize / 8;
        let bytes = &self.bytes[first * value_bytes..][..values.len() * value_bytes];
        match self.dtype {
            Dtype::F16 => halves_to_floats(bytes, values),
            dtype => decode_f32_into(dtype, bytes, values).expect("a float dtype and its length"),
        }
        let bad = not_finite(values);
        if bad > 0 {
            self.bad.fetch_add(bad, Ordering::Relaxed);
        }
    }
}

/// How many of `values` are NaN or infinite.
pub(crate) fn not_finite(values: &[f32]) -> usize {
    // One added to the largest exponent reaches the sign's bit: sums and disjunctions of integers become a vector loop.
    let reached = values.iter().fold(0, |reached, x| {
        reached | ((x.to_bits() & 0x7FFF_FFFF) + (1 << 23))
    });
    if reached >> 31 == 0 {
        return 0;
    }
    values.iter().filter(|x| !x.is_finite()).count()
}
