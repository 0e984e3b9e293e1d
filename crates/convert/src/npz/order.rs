//! Fortran's memory order turned into C's, in blocks of bounded size.
//!
//! A block is a run of the array as it is to be; the file is read once for each block, and what belongs to the block
//! is picked. An array that fits into one block is read once.

use crate::error::ConvertError;
use crate::input::Input;

/// How an array is turned around.
pub(super) struct Plan {
    /// The first dimension, whose elements lie next to each other in the file.
    first: u64,
    /// How far apart they are to be, in elements.
    first_stride: u64,
    /// The other dimensions with their strides, in the file's order.
    rest: Vec<(u64, u64)>,
    elements: u64,
    block_elements: u64,
    size: usize,
}

/// Reads all elements in the file's order: whole elements in each piece.
pub(super) type Pass<'a> =
    dyn FnMut(&mut dyn FnMut(&[u8]) -> Result<(), ConvertError>) -> Result<(), ConvertError> + 'a;

impl Plan {
    /// A plan for an array of a shape (at least one dimension, whose product fits into 64 bits), with elements of `size`
    /// bytes and blocks of at most `block_bytes_max` bytes (but at least one element).
    pub(super) fn new(shape: &[u64], size: usize, block_bytes_max: u64) -> Plan {
        let mut stride = 1;
        let mut dims: Vec<(u64, u64)> = shape
            .iter()
            .rev()
            .map(|&dim| {
                let here = (dim, stride);
                stride *= dim;
                here
            })
            .collect();
        dims.reverse();
        let (first, first_stride) = dims.remove(0);
        Plan {
            first,
            first_stride,
            rest: dims,
            elements: stride,
            block_elements: (block_bytes_max / size as u64).clamp(1, stride.max(1)),
            size,
        }
    }

    /// Hands all blocks to `out`, in order.
    pub(super) fn read(
        &self,
        pass: &mut Pass<'_>,
        out: &mut dyn FnMut(&mut [u8]) -> Result<(), ConvertError>,
        input: &Input,
        name: &str,
    ) -> Result<(), ConvertError> {
        let bytes = self.block_elements * self.size as u64;
        let mut block = Vec::new();
        let reserved = usize::try_from(bytes).ok();
        if reserved.is_none_or(|bytes| block.try_reserve_exact(bytes).is_err()) {
            return Err(ConvertError::OutOfMemory {
                file: input.label.clone(),
                at: name.to_owned(),
                byte_count: bytes,
            });
        }
        let mut start = 0;
        while start < self.elements {
            let count = self.block_elements.min(self.elements - start);
            block.resize(count as usize * self.size, 0);
            let mut at = 0;
            pass(&mut |piece| {
                self.pick(piece, at, start, &mut block);
                at += (piece.len() / self.size) as u64;
                Ok(())
            })?;
            out(&mut block)?;
            start += count;
        }
        Ok(())
    }

    /// Puts what belongs to the block that begins at element `start` into its place; the piece begins at
    /// element `at` of the file.
    fn pick(&self, piece: &[u8], mut at: u64, start: u64, block: &mut [u8]) {
        let end = start + (block.len() / self.size) as u64;
        let mut elements = piece;
        while !elements.is_empty() {
            // A run along the first dimension: `base` is where its element 0 is to be.
            let (run, within) = (at / self.first, at % self.first);
            let count = ((elements.len() / self.size) as u64).min(self.first - within);
            let base = self.base(run);
            let lowest = start
                .saturating_sub(base)
                .div_ceil(self.first_stride)
                .max(within);
            let highest = end
                .saturating_sub(base)
                .div_ceil(self.first_stride)
                .min(within + count);
            if lowest < highest {
                let from = &elements[(lowest - within) as usize * self.size..];
                let to =
                    &mut block[(base + lowest * self.first_stride - start) as usize * self.size..];
                let (count, step) = ((highest - lowest) as usize, self.first_stride as usize);
                match self.size {
                    1 => copy::<1>(from, to, count, step),
                    2 => copy::<2>(from, to, count, step),
                    4 => copy::<4>(from, to, count, step),
                    _ => copy::<8>(from, to, count, step),
                }
            }
            at += count;
            elements = &elements[count as usize * self.size..];
        }
    }

    /// Where the first element of a run is to be.
    fn base(&self, mut run: u64) -> u64 {
        let mut base = 0;
        for (dim, stride) in &self.rest {
            base += run % dim * stride;
            run /= dim;
        }
        base
    }
}

/// Copies `count` elements of `N` bytes that lie next to each other to places `step` elements apart.
fn copy<const N: usize>(from: &[u8], to: &mut [u8], count: usize, step: usize) {
    let (from, to) = (from.as_chunks::<N>().0, to.as_chunks_mut::<N>().0);
    for (from, to) in from.iter().take(count).zip(to.iter_mut().step_by(step)) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::tests::Memory;

    /// Turns an array around whose element `i` (in C's order) has the value `i`.
    fn check(shape: &[u64], size: usize, block_bytes: u64, piece_elements: usize) {
        let count: u64 = shape.iter().product();
        let bytes = |value: u64| value.to_le_bytes()[..size].to_vec();
        let mut stored = vec![0; count as usize * size];
        for value in 0..count {
            let (mut rest, mut at) = (value, 0);
            // The last dimension varies fastest in `value`, the first in the file.
            let mut index = vec![0; shape.len()];
            for (index, dim) in index.iter_mut().zip(shape).rev() {
                (*index, rest) = (rest % dim, rest / dim);
            }
            for (index, dim) in index.iter().zip(shape).rev() {
                at = at * dim + index;
            }
            stored[at as usize * size..][..size].copy_from_slice(&bytes(value));
        }
        let input = Input::new("x", Box::new(Memory(Vec::new())), "test").unwrap();
        let mut turned = Vec::new();
        let mut pass = |out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>| {
            stored.chunks(piece_elements * size).try_for_each(&mut *out)
        };
        let mut push = |block: &mut [u8]| {
            assert!(block.len() as u64 <= block_bytes.max(size as u64));
            turned.extend_from_slice(block);
            Ok(())
        };
        let plan = Plan::new(shape, size, block_bytes);
        plan.read(&mut pass, &mut push, &input, "x").unwrap();
        let expected: Vec<u8> = (0..count).flat_map(bytes).collect();
        assert!(
            turned == expected,
            "{shape:?}, {size}, blocks of {block_bytes}, pieces of {piece_elements}"
        );
    }

    #[test]
    fn every_block_and_piece_size_gives_the_same() {
        for shape in [
            &[3, 4][..],
            &[4, 3, 2],
            &[1, 5, 1, 2],
            &[7],
            &[2, 3, 4, 5],
            &[0, 3],
        ] {
            for size in [1, 2, 4, 8] {
                for block_bytes in [0, 9, 24, 40, 1 << 20] {
                    for piece_elements in [1, 3, 5, 1000] {
                        check(shape, size, block_bytes, piece_elements);
                    }
                }
            }
        }
    }
}
