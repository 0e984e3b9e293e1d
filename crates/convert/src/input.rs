//! A foreign file, read at any position: never past its end, never more than asked for.

use std::io;
use std::path::Path;

use safelight_store::ReadAt;

use crate::bytes::Part;
use crate::error::ConvertError;
use crate::source::{Bound, PIECE_BYTES};

/// A file (or anything that can be read at any position), its size when opened, and what to call it.
pub(crate) struct Input<'r> {
    pub(crate) label: String,
    pub(crate) byte_count: u64,
    reader: Box<dyn ReadAt + 'r>,
    /// The format's name, for messages.
    format: &'static str,
    /// Whether tensors that nothing here reads are left out ([`crate::OpenOptions::skip_unsupported`]).
    pub(crate) skips: bool,
}

impl<'r> Input<'r> {
    /// Opens a file that claims to be of a format.
    pub(crate) fn open(path: &Path, format: &'static str) -> Result<Input<'r>, ConvertError> {
        let file = crate::open::open_file(path)?;
        Input::new(path.to_string_lossy(), Box::new(file), format)
    }

    /// Something else to read from.
    pub(crate) fn new(
        label: impl Into<String>,
        reader: Box<dyn ReadAt + 'r>,
        format: &'static str,
    ) -> Result<Input<'r>, ConvertError> {
        let label = label.into();
        let counted = reader.byte_count();
        let byte_count = counted.map_err(|error| ConvertError::Io {
            doing: "read the size of",
            file: label.clone(),
            error,
        })?;
        Ok(Input {
            label,
            byte_count,
            reader,
            format,
            skips: false,
        })
    }

    /// The same, leaving out what is not supported if `skips`.
    pub(crate) fn skipping(mut self, skips: bool) -> Input<'r> {
        self.skips = skips;
        self
    }

    /// Bytes that are somebody else's.
    pub(crate) fn borrowing(
        label: &str,
        of: &'r dyn ReadAt,
        format: &'static str,
    ) -> Result<Input<'r>, ConvertError> {
        let len = of.byte_count().unwrap_or(0);
        Input::new(label, Box::new(Part { of, at: 0, len }), format)
    }

    /// What the bytes come from.
    pub(crate) fn reader(&self) -> &(dyn ReadAt + 'r) {
        &*self.reader
    }

    /// [`ConvertError::Malformed`] about this file.
    pub(crate) fn malformed(
        &self,
        at: impl Into<String>,
        problem: impl Into<String>,
    ) -> ConvertError {
        ConvertError::malformed(&self.label, self.format, at, problem)
    }

    /// [`ConvertError::Unsupported`] about this file.
    pub(crate) fn unsupported(
        &self,
        at: impl Into<String>,
        what: impl Into<String>,
    ) -> ConvertError {
        ConvertError::unsupported(&self.label, at, what)
    }

    /// [`ConvertError::Limit`] about this file, if `value` is above `bound`.
    pub(crate) fn limited(
        &self,
        at: &str,
        what: &'static str,
        value: u64,
        bound: impl Into<Bound>,
    ) -> Result<(), ConvertError> {
        let bound = bound.into();
        if value <= bound.most {
            return Ok(());
        }
        Err(ConvertError::limit(&self.label, at, what, value, bound))
    }

    /// Fills `buffer` with the bytes from `offset` on.
    pub(crate) fn read_exact_at(
        &self,
        mut buffer: &mut [u8],
        mut offset: u64,
    ) -> Result<(), ConvertError> {
        while !buffer.is_empty() {
            match self.reader.read_at(buffer, offset) {
                Ok(count @ 1..) if count <= buffer.len() => {
                    buffer = &mut buffer[count..];
                    offset += count as u64;
                }
                Ok(_) => {
                    let problem = format!("the file ends at byte {offset}, inside of something");
                    return Err(self.malformed("", problem));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(ConvertError::Io {
                        doing: "read",
                        file: self.label.clone(),
                        error,
                    });
                }
            }
        }
        Ok(())
    }

    /// Hands `len` bytes from `offset` on to `out`, in pieces whose sizes are multiples of `unit` (but the last one).
    pub(crate) fn pieces(
        &self,
        mut offset: u64,
        mut len: u64,
        unit: usize,
        out: &mut dyn FnMut(&mut [u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let piece_bytes = (PIECE_BYTES / unit).max(1) * unit;
        let mut buffer = vec![0; len.min(piece_bytes as u64) as usize];
        while len > 0 {
            let count = len.min(piece_bytes as u64) as usize;
            self.read_exact_at(&mut buffer[..count], offset)?;
            out(&mut buffer[..count])?;
            offset += count as u64;
            len -= count as u64;
        }
        Ok(())
    }

    /// Reads from `offset` on.
    pub(crate) fn cursor(&self, offset: u64) -> Cursor<'_> {
        Cursor {
            input: self,
            at: offset,
            window: Vec::new(),
            window_at: offset,
        }
    }
}

/// As many bytes as a cursor reads ahead.
const WINDOW_BYTES: u64 = 64 * 1024;

/// Small things read one after the other.
pub(crate) struct Cursor<'a> {
    input: &'a Input<'a>,
    /// Where the next byte is.
    pub(crate) at: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl Cursor<'_> {
    /// The next `len` bytes. What a file cannot hold is refused before memory is taken for it.
    pub(crate) fn take(&mut self, len: u64) -> Result<&[u8], ConvertError> {
        let left = self.input.byte_count.saturating_sub(self.at);
        if len > left {
            let problem = format!(
                "{len} bytes expected at byte {}, but only {left} are left",
                self.at
            );
            return Err(self.input.malformed("", problem));
        }
        let inside = self.at.wrapping_sub(self.window_at);
        let there = inside
            .checked_add(len)
            .is_some_and(|end| end <= self.window.len() as u64);
        if !there {
            let ahead = left.min(len.max(WINDOW_BYTES)) as usize;
            self.window.resize(ahead, 0);
            self.window_at = self.at;
            self.input.read_exact_at(&mut self.window, self.at)?;
        }
        let start = (self.at - self.window_at) as usize;
        self.at += len;
        Ok(&self.window[start..start + len as usize])
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], ConvertError> {
        let bytes = self.take(N as u64)?;
        Ok(bytes.try_into().expect("as many bytes as asked for"))
    }

    /// Goes on `len` bytes later.
    pub(crate) fn skip(&mut self, len: u64) -> Result<(), ConvertError> {
        let left = self.input.byte_count.saturating_sub(self.at);
        if len > left {
            let problem = format!(
                "{len} bytes expected at byte {}, but only {left} are left",
                self.at
            );
            return Err(self.input.malformed("", problem));
        }
        self.at += len;
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A file in memory.
    pub(crate) struct Memory(pub(crate) Vec<u8>);

    impl ReadAt for Memory {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let start = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(self.0.len());
            let count = buffer.len().min(self.0.len() - start);
            buffer[..count].copy_from_slice(&self.0[start..start + count]);
            Ok(count)
        }

        fn byte_count(&self) -> io::Result<u64> {
            Ok(self.0.len() as u64)
        }
    }

    fn input(bytes: &[u8]) -> Input<'static> {
        Input::new("x", Box::new(Memory(bytes.to_vec())), "test").unwrap()
    }

    #[test]
    fn a_cursor_reads_on_and_stops_at_the_end() {
        let bytes: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
        let input = input(&bytes);
        let mut cursor = input.cursor(10);
        assert_eq!(cursor.array().unwrap(), [10, 11]);
        assert_eq!(cursor.take(100_000).unwrap(), &bytes[12..100_012]);
        cursor.skip(99_980).unwrap();
        assert_eq!(cursor.take(8).unwrap().len(), 8);
        assert_eq!(cursor.take(0).unwrap(), b"");
        let error = cursor.take(1).unwrap_err().to_string();
        assert!(
            error.contains("1 bytes expected at byte 200000, but only 0 are left"),
            "{error}"
        );
        assert!(input.cursor(0).take(u64::MAX).is_err());
        assert!(input.cursor(5).skip(u64::MAX).is_err());
    }

    #[test]
    fn pieces_are_whole_units() {
        let input = input(&vec![7; PIECE_BYTES + 100]);
        let mut sizes = Vec::new();
        let mut push = |piece: &mut [u8]| {
            sizes.push(piece.len());
            Ok(())
        };
        let all = PIECE_BYTES as u64 + 100;
        input.pieces(0, all, 1000, &mut push).unwrap();
        assert_eq!(sizes.iter().sum::<usize>() as u64, all);
        assert!(sizes[0] % 1000 == 0 && sizes.len() == 2);
        assert!(input.pieces(1, all, 1, &mut |_| Ok(())).is_err());
    }
}
