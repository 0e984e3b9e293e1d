//! Pieces as arithmetic wants them: whole elements only, or of several tensors side by side.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use safelight_format::Dtype;

use super::arrange::read_whole;
use crate::error::ConvertError;
use crate::source::Source;

/// Bytes of one element, for dtypes of whole bytes; `None` for four and six bits.
pub(crate) fn element_bytes(dtype: Dtype) -> Option<usize> {
    dtype
        .bits()
        .is_multiple_of(8)
        .then_some((dtype.bits() / 8) as usize)
}

/// Reads tensor `index` in runs of whole elements of `element_bytes` each; only what is left at the end may be less.
///
/// # Errors
/// What the source says, or what `out` returned.
pub(crate) fn for_each_run(
    source: &dyn Source,
    index: usize,
    element_bytes: usize,
    out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    let mut cut: Vec<u8> = Vec::with_capacity(element_bytes);
    source.read(index, &mut |mut piece| {
        if !cut.is_empty() {
            let missing = (element_bytes - cut.len()).min(piece.len());
            cut.extend_from_slice(&piece[..missing]);
            piece = &piece[missing..];
            if cut.len() == element_bytes {
                out(&cut)?;
                cut.clear();
            }
        }
        let whole = piece.len() / element_bytes * element_bytes;
        if whole > 0 {
            out(&piece[..whole])?;
        }
        cut.extend_from_slice(&piece[whole..]);
        Ok(())
    })?;
    if cut.is_empty() { Ok(()) } else { out(&cut) }
}

/// Tensors up to this size are read without threads.
const SMALL_BYTES: u64 = 1024 * 1024;

/// Elements of each tensor that are looked at together; a multiple of eight, so that runs are whole bytes.
pub(crate) const SIDE_BY_SIDE_ELEMENTS: usize = 256 * 1024;

/// Takes a run of the same elements of each tensor.
pub(crate) type TakeRuns<'t> = dyn FnMut(&[&[u8]]) -> Result<(), ConvertError> + 't;

/// Reads tensors of equally many elements side by side: `out` gets a run of the same elements of each. Those of unknown dtypes
/// have bytes for elements.
///
/// Each source is read by a thread of its own, a few pieces ahead.
///
/// # Errors
/// What a source says, or what `out` returned.
pub(crate) fn side_by_side(
    tensors: &[(&dyn Source, usize)],
    out: &mut TakeRuns<'_>,
) -> Result<(), ConvertError> {
    let dtypes: Vec<Dtype> = tensors
        .iter()
        .map(|(source, index)| {
            let tensor = source.tensors().get(*index);
            tensor.map_or(Dtype::U8, |tensor| tensor.dtype)
        })
        .collect();
    let bytes = |&(source, index): &(&dyn Source, usize)| {
        let (_, bytes) = source.contents().name_and_bytes(index);
        bytes.unwrap_or(u64::MAX)
    };
    if tensors.iter().all(|tensor| bytes(tensor) <= SMALL_BYTES) {
        let read = |&(source, index): &(&dyn Source, usize)| read_whole(source, index, SMALL_BYTES);
        let all = tensors.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let runs: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
        check_lengths(&runs, &dtypes);
        return if runs[0].is_empty() {
            Ok(())
        } else {
            out(&runs)
        };
    }
    thread::scope(|scope| {
        let mut readers: Vec<Pull> = tensors
            .iter()
            .map(|&(source, index)| {
                let (send, receive) = sync_channel(2);
                scope.spawn(move || push(source, index, &send));
                Pull {
                    receive,
                    piece: vec![],
                    used: 0,
                }
            })
            .collect();
        let mut buffers: Vec<Vec<u8>> = dtypes.iter().map(|_| Vec::new()).collect();
        loop {
            for ((reader, buffer), dtype) in readers.iter_mut().zip(&mut buffers).zip(&dtypes) {
                reader.fill(buffer, SIDE_BY_SIDE_ELEMENTS / 8 * dtype.bits() as usize)?;
            }
            let runs: Vec<&[u8]> = buffers.iter().map(Vec::as_slice).collect();
            check_lengths(&runs, &dtypes);
            if runs[0].is_empty() {
                return Ok(());
            }
            out(&runs)?;
        }
    })
}

/// Runs are of equally many elements, if the tensors are and their sources keep their word.
fn check_lengths(runs: &[&[u8]], dtypes: &[Dtype]) {
    let counts = runs
        .iter()
        .zip(dtypes)
        .map(|(run, dtype)| run.len() * 8 / dtype.bits() as usize);
    let counts: Vec<usize> = counts.collect();
    assert!(
        counts.iter().all(|count| *count == counts[0]),
        "tensors side by side have equally many elements: {counts:?}"
    );
}

type Piece = Result<Vec<u8>, ConvertError>;

fn push(source: &dyn Source, index: usize, send: &SyncSender<Piece>) {
    // A receiver that is gone wants no more: that is no error.
    let read = source.read(index, &mut |piece| {
        send.send(Ok(piece.to_vec()))
            .map_err(|_| ConvertError::Cancelled)
    });
    if let Err(error) = read {
        let _ = send.send(Err(error));
    }
}

/// One tensor, as many bytes at a time as are wanted.
struct Pull {
    receive: Receiver<Piece>,
    piece: Vec<u8>,
    used: usize,
}

impl Pull {
    /// Fills `buffer` with the next `bytes`, fewer only at the end.
    fn fill(&mut self, buffer: &mut Vec<u8>, bytes: usize) -> Result<(), ConvertError> {
        buffer.clear();
        while buffer.len() < bytes {
            if self.used == self.piece.len() {
                match self.receive.recv() {
                    Ok(piece) => (self.piece, self.used) = (piece?, 0),
                    Err(_) => return Ok(()),
                }
            }
            let take = (bytes - buffer.len()).min(self.piece.len() - self.used);
            buffer.extend_from_slice(&self.piece[self.used..self.used + take]);
            self.used += take;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Memory;

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|i| (i * 7 + i / 256) as u8).collect()
    }

    #[test]
    fn runs_are_whole_elements_whatever_the_pieces() {
        for piece in [1, 3, 4, 6, 1000] {
            let memory = Memory::new([("t", Dtype::U8, vec![101], bytes(101))]).in_pieces(piece);
            let (mut all, mut odd) = (Vec::new(), 0);
            for_each_run(&memory, 0, 4, &mut |run| {
                odd += usize::from(run.len() % 4 != 0);
                all.extend_from_slice(run);
                Ok(())
            })
            .unwrap();
            assert_eq!((all, odd), (bytes(101), 1), "pieces of {piece}");
        }
    }

    #[test]
    fn tensors_go_side_by_side_small_and_large() {
        for count in [0, 10, 2_000_000] {
            let narrow =
                Memory::new([("t", Dtype::U8, vec![count as u64], bytes(count))]).in_pieces(99_999);
            let wide = Memory::new([("t", Dtype::U16, vec![count as u64], bytes(2 * count))])
                .in_pieces(1 << 20);
            let (mut first, mut second) = (Vec::new(), Vec::new());
            side_by_side(&[(&narrow, 0), (&wide, 0)], &mut |runs| {
                assert_eq!(2 * runs[0].len(), runs[1].len());
                first.extend_from_slice(runs[0]);
                second.extend_from_slice(runs[1]);
                Ok(())
            })
            .unwrap();
            assert!(
                first == bytes(count) && second == bytes(2 * count),
                "{count} elements"
            );
        }
    }

    #[test]
    fn an_error_of_the_taker_ends_it() {
        let memory = Memory::new([("t", Dtype::U8, vec![4_000_000], bytes(4_000_000))]);
        let ended = side_by_side(&[(&memory, 0), (&memory, 0)], &mut |_| {
            Err(ConvertError::Cancelled)
        });
        assert!(matches!(ended, Err(ConvertError::Cancelled)));
    }
}
