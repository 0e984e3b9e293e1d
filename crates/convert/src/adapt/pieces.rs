//! Pieces as arithmetic wants them: whole elements only, or of several tensors side by side.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use safelight_format::Dtype;

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

/// Elements of each tensor that are looked at together.
pub(crate) const SIDE_BY_SIDE_ELEMENTS: usize = 256 * 1024;

/// Reads tensors of equally many elements side by side: `out` gets a run of the same elements of each.
///
/// Each source but the first is read by a thread of its own, a few pieces ahead.
///
/// # Errors
/// What a source says, or what `out` returned.
pub(crate) fn side_by_side(
    tensors: &[(&dyn Source, usize)],
    out: &mut dyn FnMut(&[&[u8]]) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    let sizes: Vec<usize> = tensors
        .iter()
        .map(|(source, index)| {
            element_bytes(source.tensors()[*index].dtype).expect("whole bytes were checked")
        })
        .collect();
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
        let mut buffers: Vec<Vec<u8>> = sizes.iter().map(|_| Vec::new()).collect();
        loop {
            for ((reader, buffer), size) in readers.iter_mut().zip(&mut buffers).zip(&sizes) {
                reader.fill(buffer, size * SIDE_BY_SIDE_ELEMENTS)?;
            }
            let count = buffers[0].len() / sizes[0];
            assert!(
                buffers
                    .iter()
                    .zip(&sizes)
                    .all(|(buffer, size)| buffer.len() == count * size),
                "equally many elements were checked"
            );
            if count == 0 {
                return Ok(());
            }
            let runs: Vec<&[u8]> = buffers.iter().map(Vec::as_slice).collect();
            out(&runs)?;
        }
    })
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
