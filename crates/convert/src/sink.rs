//! What writers share: a file written atomically from a source's pieces, with progress and a way to stop.

use std::io::{self, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;

use safelight_store::replace_file_seek;

use crate::error::ConvertError;
use crate::source::{Source, check_all};

/// Writes, and goes back.
trait WriteSeek: Write + Seek {}

impl<T: Write + Seek> WriteSeek for T {}

/// A file on its way.
pub(crate) struct Sink<'a> {
    file: &'a mut dyn WriteSeek,
    position: u64,
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
        check_all(source)?;
        let all = source.contents().all_bytes();
        let mut result = None;
        let replaced = replace_file_seek(path, sync, |file| {
            let mut sink = Sink {
                file,
                position: 0,
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

    /// Writes bytes behind all others.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), ConvertError> {
        let path = self.path;
        self.position += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(ConvertError::io("write", path))
    }

    /// Bytes written so far.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Replaces bytes that were written before.
    pub(crate) fn overwrite(&mut self, at: u64, bytes: &[u8]) -> Result<(), ConvertError> {
        assert!(
            at + bytes.len() as u64 <= self.position,
            "only what was written is replaced"
        );
        let (path, end) = (self.path, self.position);
        let mut overwrite = || {
            self.file.seek(SeekFrom::Start(at))?;
            self.file.write_all(bytes)?;
            self.file.seek(SeekFrom::Start(end))
        };
        overwrite().map_err(ConvertError::io("write", path))?;
        Ok(())
    }

    /// Writes tensor `index`: `encode` gets its pieces and writes what becomes of them.
    pub(crate) fn tensor(
        &mut self,
        source: &dyn Source,
        index: usize,
        encode: &mut Encode<'_>,
    ) -> Result<(), ConvertError> {
        source.read(index, &mut |piece| {
            encode(piece, self)?;
            self.done = self.done.saturating_add(piece.len() as u64);
            match (self.progress)(self.done, self.all) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(ConvertError::Cancelled),
            }
        })
    }
}

/// Takes a piece of a tensor, and writes it in its way.
pub(crate) type Encode<'a> = dyn FnMut(&[u8], &mut Sink<'_>) -> Result<(), ConvertError> + 'a;

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
