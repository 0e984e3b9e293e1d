//! Bytes at positions: a file, a part of one, or memory.

use std::io;

use safelight_store::ReadAt;

/// A run of bytes in memory.
pub(crate) struct Memory(pub(crate) Vec<u8>);

impl ReadAt for Memory {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let there = self.0.get(start..).unwrap_or_default();
        let len = there.len().min(buffer.len());
        buffer[..len].copy_from_slice(&there[..len]);
        Ok(len)
    }

    fn byte_count(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
}

/// The `len` bytes of `of` that start at `at`, as if there were nothing else.
pub(crate) struct Part<'a> {
    pub(crate) of: &'a dyn ReadAt,
    pub(crate) at: u64,
    pub(crate) len: u64,
}

impl ReadAt for Part<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.len.saturating_sub(offset);
        let len = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if len == 0 {
            return Ok(0);
        }
        self.of.read_at(&mut buffer[..len], self.at + offset)
    }

    fn byte_count(&self) -> io::Result<u64> {
        Ok(self.len)
    }
}

/// Fills `buffer` with the bytes that start at `offset`; [`io::ErrorKind::UnexpectedEof`] if there are fewer.
pub(crate) fn read_exact_at(of: &dyn ReadAt, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    match read_up_to(of, buffer, offset)? {
        count if count == buffer.len() => Ok(()),
        count => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!(
                "it ends {} bytes early, at byte {}; is it still being written, or was it cut off?",
                buffer.len() - count,
                offset + count as u64
            ),
        )),
    }
}

/// As many bytes that start at `offset` as there are and fit into `buffer`; returns how many.
pub(crate) fn read_up_to(of: &dyn ReadAt, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match of.read_at(&mut buffer[len..], offset.saturating_add(len as u64)) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// A little-endian number of `N` bytes at `at`, if it is there.
pub(crate) fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(N)?)?;
    let mut whole = [0; 8];
    whole[..N].copy_from_slice(field);
    Some(u64::from_le_bytes(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_end_where_they_end() {
        let memory = Memory((0..10).collect());
        let part = Part {
            of: &memory,
            at: 3,
            len: 4,
        };
        let mut buffer = [0; 8];
        assert_eq!(read_up_to(&part, &mut buffer, 1).unwrap(), 3);
        assert_eq!(buffer[..3], [4, 5, 6]);
        assert_eq!(read_up_to(&part, &mut buffer, 9).unwrap(), 0);
        assert_eq!(read_up_to(&part, &mut buffer, u64::MAX).unwrap(), 0);
        let early = read_exact_at(&part, &mut buffer, 0).unwrap_err();
        assert_eq!(early.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(number::<2>(&[1, 2, 3], 1), Some(0x302));
        assert_eq!(number::<2>(&[1, 2, 3], 2), None);
    }
}
