//! A pickle's bytes, read forward through a window and backward where a string lies.

use std::io;

use safelight_store::ReadAt;

use super::{Fault, Problem};
use crate::bytes::{Part, read_exact_at, read_up_to};

/// What is read at once.
const WINDOW_BYTES: usize = 64 * 1024;

/// Where a string, a run of bytes or a long number lies in the pickle. Nothing of it is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Blob {
    /// Its first byte.
    pub(crate) at: u64,
    /// Its length.
    pub(crate) len: u64,
}

/// A pickle's bytes.
pub(crate) struct Input<'a> {
    of: &'a dyn ReadAt,
    end: u64,
    at: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl<'a> Input<'a> {
    /// The bytes of `of` from `at` on.
    ///
    /// # Errors
    /// The size cannot be asked for.
    pub(crate) fn new(of: &'a dyn ReadAt, at: u64) -> io::Result<Input<'a>> {
        Ok(Input {
            end: of.byte_count()?,
            of,
            at,
            window: Vec::new(),
            window_at: 0,
        })
    }

    /// Where the next byte is read.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// How many bytes there are from here on.
    pub(crate) fn left(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }

    /// A blob's bytes as a file of their own.
    pub(crate) fn part(&self, blob: Blob) -> Part<'a> {
        Part {
            of: self.of,
            at: blob.at,
            len: blob.len,
        }
    }

    fn fault(&self, problem: Problem) -> Fault {
        Fault {
            at: self.at,
            problem,
        }
    }

    /// Makes sure that the window holds the next `need` bytes, or as many as there are; returns them and more.
    fn peek(&mut self, need: usize) -> Result<&[u8], Fault> {
        let have = self.ahead().len();
        if have < need && (have as u64) < self.left() {
            let want = self.left().min(need.max(WINDOW_BYTES) as u64) as usize;
            let mut window = std::mem::take(&mut self.window);
            window.resize(want, 0);
            let read = read_up_to(self.of, &mut window, self.at);
            let count = read.map_err(|error| self.fault(Problem::Io(error)))?;
            window.truncate(count);
            (self.window, self.window_at) = (window, self.at);
        }
        Ok(self.ahead())
    }

    /// What the window holds from here on.
    fn ahead(&self) -> &[u8] {
        let skip = self.at.checked_sub(self.window_at);
        let skip = skip.and_then(|skip| usize::try_from(skip).ok());
        skip.and_then(|skip| self.window.get(skip..))
            .unwrap_or_default()
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        match self.peek(N)?.first_chunk::<N>().copied() {
            Some(bytes) => {
                self.at += N as u64;
                Ok(bytes)
            }
            None => Err(self.fault(Problem::End)),
        }
    }

    /// The next `len` bytes, which are left where they are.
    pub(crate) fn blob(&mut self, len: u64) -> Result<Blob, Fault> {
        if len > self.left() {
            let left = self.left();
            return Err(self.fault(Problem::TooLong { len, left }));
        }
        let blob = Blob { at: self.at, len };
        self.at += len;
        Ok(blob)
    }

    /// The bytes up to the next line feed, which is passed over.
    pub(crate) fn line(&mut self) -> Result<Blob, Fault> {
        let start = self.at;
        loop {
            let ahead = self.peek(1)?;
            if ahead.is_empty() {
                return Err(self.fault(Problem::End));
            }
            let (found, len) = match ahead.iter().position(|&byte| byte == b'\n') {
                Some(len) => (true, len),
                None => (false, ahead.len()),
            };
            self.at += len as u64;
            if found {
                let len = self.at - start;
                self.at += 1;
                return Ok(Blob { at: start, len });
            }
        }
    }

    /// A blob's bytes, at most `most` of them.
    pub(crate) fn read(&mut self, blob: Blob, most: u64) -> Result<Vec<u8>, Fault> {
        let len = blob.len.min(most) as usize;
        let start = blob.at.checked_sub(self.window_at);
        if let Some(start) = start.and_then(|start| usize::try_from(start).ok())
            && let Some(bytes) = self.window.get(start..start.saturating_add(len))
        {
            return Ok(bytes.to_vec());
        }
        let mut bytes = Vec::new();
        let reserved = bytes.try_reserve_exact(len).map_err(io::Error::other);
        reserved.map_err(|error| self.fault(Problem::Io(error)))?;
        bytes.resize(len, 0);
        let read = read_exact_at(self.of, &mut bytes, blob.at);
        read.map_err(|error| self.fault(Problem::Io(error)))?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Memory;

    #[test]
    fn lines_and_blobs_cross_windows() {
        let mut bytes = vec![b'x'; WINDOW_BYTES - 3];
        bytes.extend_from_slice(b"abcdefg\nrest");
        let memory = Memory(bytes);
        let mut input = Input::new(&memory, 0).unwrap();
        let line = input.line().unwrap();
        assert_eq!(line.len, WINDOW_BYTES as u64 + 4);
        assert_eq!(input.array::<2>().unwrap(), *b"re");
        let whole = input.read(line, u64::MAX).unwrap();
        assert!(whole.ends_with(b"defg") && whole.len() == WINDOW_BYTES + 4);
        assert_eq!(input.read(line, 2).unwrap(), b"xx");
        let rest = input.blob(2).unwrap();
        assert_eq!(input.read(rest, 9).unwrap(), b"st");
        assert!(matches!(
            input.array::<1>().unwrap_err().problem,
            Problem::End
        ));
        assert!(matches!(input.line().unwrap_err().problem, Problem::End));
        let error = input.blob(5).unwrap_err();
        assert!(matches!(
            error.problem,
            Problem::TooLong { len: 5, left: 0 }
        ));
    }
}
