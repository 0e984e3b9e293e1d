//! Views that are not contiguous, packed in bounded memory.

use std::io;

use safelight_store::ReadAt;

use crate::bytes::read_exact_at;

/// As many bytes of the result as are packed at once.
const BLOCK_BYTES: u64 = 16 * 1024 * 1024;

/// Runs with gaps of up to this many bytes between them are read together.
const GAP_BYTES_MAX: u64 = 4096;

/// As much as is read ahead where runs lie close together.
const AHEAD_BYTES: u64 = 256 * 1024;

/// A view into a storage. Checked: all its elements lie within.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) shape: Vec<u64>,
    /// In bytes.
    pub(crate) strides: Vec<u64>,
    pub(crate) element_bytes: u64,
    /// Where the first element lies in the storage.
    pub(crate) at: u64,
    /// The storage's size.
    pub(crate) storage_bytes: u64,
}

/// Whether the elements lie next to each other in their order.
pub(crate) fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut expected = 1u64;
    for (&dim, &stride) in shape.iter().zip(strides).rev() {
        if dim != 1 {
            if stride != expected {
                return false;
            }
            expected = expected.saturating_mul(dim);
        }
    }
    true
}

/// Hands the elements of a view to `out`, the last dimension's next to each other, in blocks of at most 16 MiB.
///
/// # Errors
/// The system's, or what `out` says.
pub(crate) fn pack<E: From<io::Error>>(
    storage: &dyn ReadAt,
    view: &View,
    out: &mut dyn FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    if view.shape.contains(&0) {
        return Ok(());
    }
    let mut buffer = Vec::new();
    let mut window = Window {
        storage,
        end: view.storage_bytes,
        bytes: Vec::new(),
        at: 0,
    };
    let row_bytes = view.shape.iter().skip(1).product::<u64>() * view.element_bytes;
    let count = view.shape.first().copied().unwrap_or(1);
    let stride = view.strides.first().copied().unwrap_or(0);
    if row_bytes > BLOCK_BYTES {
        for row in 0..count {
            let inner = View {
                shape: view.shape[1..].to_vec(),
                strides: view.strides[1..].to_vec(),
                at: view.at + row * stride,
                ..*view
            };
            pack(storage, &inner, out)?; // as deep as there are dimensions
        }
        return Ok(());
    }
    let rows_max = (BLOCK_BYTES / row_bytes).max(1);
    let mut row = 0;
    while row < count {
        let rows = rows_max.min(count - row);
        buffer.resize((rows * row_bytes) as usize, 0);
        let mut shape = view.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first = rows;
        }
        let at = view.at + row * stride;
        block(
            &mut window,
            &shape,
            &view.strides,
            at,
            view.element_bytes,
            &mut buffer,
        )?;
        out(&mut buffer)?;
        row += rows;
    }
    Ok(())
}

/// One dimension: how many, how far apart in the storage, how far apart in the result.
#[derive(Clone, Copy, Debug)]
struct Dim {
    count: u64,
    stride: u64,
    out_stride: u64,
}

/// Packs one block: walks the storage upwards, so that near bytes are read together.
fn block(
    window: &mut Window<'_>,
    shape: &[u64],
    strides: &[u64],
    at: u64,
    element_bytes: u64,
    out: &mut [u8],
) -> io::Result<()> {
    let mut dims = Vec::with_capacity(shape.len());
    let mut out_stride = element_bytes;
    for (&count, &stride) in shape.iter().zip(strides).rev() {
        if count != 1 {
            dims.push(Dim {
                count,
                stride,
                out_stride,
            });
        }
        out_stride *= count;
    }
    dims.sort_by_key(|dim| std::cmp::Reverse(dim.stride));
    // The innermost dimension, if its elements touch in storage and result: one run.
    let mut run_bytes = element_bytes;
    if let Some(last) = dims.last()
        && last.stride == element_bytes
        && last.out_stride == element_bytes
    {
        run_bytes *= last.count;
        dims.pop();
    }
    let (inner, outer) = match dims.split_last() {
        Some((inner, outer)) => (*inner, outer),
        None => (
            Dim {
                count: 1,
                stride: 0,
                out_stride: 0,
            },
            dims.as_slice(),
        ),
    };
    let mut position = vec![0u64; outer.len()];
    loop {
        let place = |of: fn(&Dim) -> u64| -> u64 {
            outer
                .iter()
                .zip(&position)
                .map(|(dim, idx)| of(dim) * idx)
                .sum()
        };
        let (from, to) = (at + place(|dim| dim.stride), place(|dim| dim.out_stride));
        for idx in 0..inner.count {
            let gap = inner.stride.saturating_sub(run_bytes);
            let bytes = window.get(from + idx * inner.stride, run_bytes, gap <= GAP_BYTES_MAX)?;
            let start = (to + idx * inner.out_stride) as usize;
            out[start..start + run_bytes as usize].copy_from_slice(bytes);
        }
        if !advance(&mut position, outer) {
            return Ok(());
        }
    }
}

/// The next position, the last dimension first; `false` at the end.
fn advance(position: &mut [u64], dims: &[Dim]) -> bool {
    for (idx, dim) in position.iter_mut().zip(dims).rev() {
        *idx += 1;
        if *idx < dim.count {
            return true;
        }
        *idx = 0;
    }
    false
}

/// What was read last of a storage.
struct Window<'a> {
    storage: &'a dyn ReadAt,
    end: u64,
    bytes: Vec<u8>,
    at: u64,
}

impl Window<'_> {
    /// `len` bytes at `at`; with `ahead`, more are read for the calls to come.
    fn get(&mut self, at: u64, len: u64, ahead: bool) -> io::Result<&[u8]> {
        let have = at >= self.at && at + len <= self.at + self.bytes.len() as u64;
        if !have {
            let want = if ahead { len.max(AHEAD_BYTES) } else { len };
            let want = want.min(self.end.saturating_sub(at)).max(len);
            self.bytes.resize(want as usize, 0);
            self.at = at;
            if let Err(error) = read_exact_at(self.storage, &mut self.bytes, at) {
                self.bytes.clear();
                return Err(error);
            }
        }
        let start = (at - self.at) as usize;
        Ok(&self.bytes[start..start + len as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Memory;

    /// Packs a view of the numbers 0, 1, 2, … (16 bits) and compares with indices computed one by one.
    fn check(shape: &[u64], strides: &[u64], offset: u64) {
        let span: u64 = shape
            .iter()
            .zip(strides)
            .map(|(dim, stride)| dim.saturating_sub(1) * stride)
            .sum();
        let count = offset + span + 1;
        let numbers = (0..count).flat_map(|number| (number as u16).to_le_bytes());
        let memory = Memory(numbers.collect());
        let view = View {
            shape: shape.to_vec(),
            strides: strides.iter().map(|stride| stride * 2).collect(),
            element_bytes: 2,
            at: offset * 2,
            storage_bytes: count * 2,
        };
        let mut packed = Vec::new();
        pack(&memory, &view, &mut |piece| -> io::Result<()> {
            assert!(!piece.is_empty() && piece.len() as u64 <= BLOCK_BYTES);
            packed.extend(
                piece
                    .chunks(2)
                    .map(|pair| u16::from_le_bytes([pair[0], pair[1]])),
            );
            Ok(())
        })
        .unwrap();
        let all: u64 = shape.iter().product();
        assert_eq!(packed.len() as u64, all, "{shape:?}");
        for (position, &value) in packed.iter().enumerate() {
            let (mut rest, mut expected) = (position as u64, offset);
            for (dim, stride) in shape.iter().zip(strides).rev() {
                expected += rest % dim * stride;
                rest /= dim;
            }
            assert_eq!(
                value, expected as u16,
                "{shape:?} {strides:?} at {position}"
            );
        }
    }

    #[test]
    fn views() {
        check(&[], &[], 3);
        check(&[5], &[1], 0);
        check(&[5], &[3], 1);
        check(&[4, 6], &[6, 1], 2);
        check(&[6, 4], &[1, 6], 0); // transposed
        check(&[3, 4, 5], &[1, 15, 3], 1);
        check(&[3, 4], &[0, 1], 0); // expanded
        check(&[3, 4], &[1, 0], 0);
        check(&[3, 4], &[1, 1], 0); // overlapping windows
        check(&[0, 4], &[1, 1], 0);
        check(&[1, 4], &[777, 2], 0);
        check(&[2, 3, 2], &[9, 3, 1], 4);
    }

    #[test]
    fn more_than_a_block() {
        check(&[3000, 3000], &[1, 3000], 0);
        check(&[2, 9_000_000], &[0, 1], 1);
        check(&[2, 3, 3_000_000], &[1, 2, 6], 0);
    }

    #[test]
    fn contiguity() {
        for (shape, strides, expected) in [
            (&[][..], &[][..], true),
            (&[2, 3], &[3, 1], true),
            (&[2, 3], &[1, 2], false),
            (&[2, 1, 3], &[3, 99, 1], true),
            (&[1], &[5], true),
            (&[2], &[2], false),
            (&[0, 3], &[7, 7], true),
            (&[2, 3], &[0, 1], false),
        ] {
            assert_eq!(
                is_contiguous(shape, strides),
                expected,
                "{shape:?} {strides:?}"
            );
        }
    }
}
