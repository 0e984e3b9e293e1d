//! What writers share: a file written atomically from a source's pieces, with progress and a way to stop.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;

use safelight_store::replace_file;

use crate::error::ConvertError;
use crate::source::Source;

/// A file on its way.
pub(crate) struct Sink<'a> {
    file: &'a mut dyn Write,
    path: &'a Path,
    progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    /// Bytes of the source so far, and of all its tensors.
    done: u64,
    all: u64,
}

impl Sink<'_> {
    /// Writes a file by `write`; if that fails, `path` has its old content.
    pub(crate) fn write_atomically<T>(
        source: &dyn Source,
        path: &Path,
        sync: bool,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
        write: impl FnOnce(&mut Sink<'_>) -> Result<T, ConvertError>,
    ) -> Result<T, ConvertError> {
        let sizes = source
            .tensors()
            .iter()
            .map(|tensor| tensor.byte_count().unwrap_or(0));
        let all = sizes.fold(0u64, u64::saturating_add);
        let mut result = None;
        let replaced = replace_file(path, sync, |file| {
            let mut sink = Sink {
                file,
                path,
                progress,
                done: 0,
                all,
            };
            let written = write(&mut sink);
            let stop = written.is_err();
            result = Some(written);
            if stop {
                Err(io::Error::other("stopped"))
            } else {
                Ok(())
            }
        });
        match (result, replaced) {
            (Some(Err(error)), _) => Err(error),
            (_, Err(error)) => Err(error.into()),
            (Some(Ok(value)), Ok(())) => Ok(value),
            (None, Ok(())) => unreachable!("what was replaced was written"),
        }
    }

    /// Writes bytes that are no tensor's.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), ConvertError> {
        let path = self.path;
        self.file
            .write_all(bytes)
            .map_err(ConvertError::io("write", path))
    }

    /// Writes tensor `index`: `encode` gets its pieces, and a way to write what becomes of them.
    pub(crate) fn tensor(
        &mut self,
        source: &dyn Source,
        index: usize,
        encode: &mut Encode<'_>,
    ) -> Result<(), ConvertError> {
        source.read(index, &mut |piece| {
            encode(piece, &mut |bytes| self.write(bytes))?;
            self.done = self.done.saturating_add(piece.len() as u64);
            match (self.progress)(self.done, self.all) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(ConvertError::Cancelled),
            }
        })
    }
}

/// Takes a piece of a tensor, and hands bytes for the file on.
pub(crate) type Encode<'a> = dyn FnMut(&[u8], &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>) -> Result<(), ConvertError>
    + 'a;

/// Cuts pieces anew, so that each is a multiple of a unit.
#[derive(Default)]
pub(crate) struct Regroup {
    unit: usize,
    /// Less than a unit, left from the last piece.
    rest: Vec<u8>,
}

impl Regroup {
    pub(crate) fn new(unit: usize) -> Regroup {
        assert!(unit > 0, "a unit has bytes");
        let rest = Vec::new();
        Regroup { unit, rest }
    }

    /// Hands all whole units on.
    pub(crate) fn feed(
        &mut self,
        mut piece: &[u8],
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        if !self.rest.is_empty() {
            let missing = (self.unit - self.rest.len()).min(piece.len());
            self.rest.extend_from_slice(&piece[..missing]);
            piece = &piece[missing..];
            if self.rest.len() < self.unit {
                return Ok(());
            }
            out(&self.rest)?;
            self.rest.clear();
        }
        let whole = piece.len() / self.unit * self.unit;
        if whole > 0 {
            out(&piece[..whole])?;
        }
        self.rest.extend_from_slice(&piece[whole..]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_units_come_out_in_order() {
        let bytes: Vec<u8> = (0..=255).collect();
        for size in [1, 2, 3, 5, 7, 8, 100, 256] {
            let (mut regroup, mut seen) = (Regroup::new(7), Vec::new());
            for piece in bytes.chunks(size) {
                let mut push = |whole: &[u8]| {
                    assert_eq!(whole.len() % 7, 0);
                    seen.extend_from_slice(whole);
                    Ok(())
                };
                regroup.feed(piece, &mut push).unwrap();
            }
            assert_eq!(seen, bytes[..252]);
        }
    }
}
