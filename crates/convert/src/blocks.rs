//! A file far away, read in large blocks: readers of foreign formats ask for a few bytes here and there, and each
//! question would be a request.

use std::io;
use std::sync::{Arc, Mutex};

use safelight_store::ReadAt;

use crate::bytes::read_exact_at;

/// What is asked for at a time.
const BLOCK_BYTES: u64 = 4 * 1024 * 1024;
/// As many blocks are kept: the one being read, and those of tables that are looked at in between.
const KEPT_COUNT: usize = 4;

/// Reads `of` by whole blocks, and announces the block behind one that is read. Memory: 16 MiB.
pub(crate) struct Blocks {
    of: Box<dyn ReadAt>,
    byte_count: u64,
    /// Which block, and its bytes; the one that was used last is the last one.
    kept: Mutex<Vec<(u64, Arc<Vec<u8>>)>>,
}

impl Blocks {
    pub(crate) fn new(of: Box<dyn ReadAt>) -> io::Result<Blocks> {
        let byte_count = of.byte_count()?;
        let kept = Mutex::new(Vec::new());
        Ok(Blocks {
            of,
            byte_count,
            kept,
        })
    }

    fn block(&self, index: u64) -> io::Result<Arc<Vec<u8>>> {
        let mut kept = self.kept.lock().unwrap_or_else(|held| held.into_inner());
        if let Some(position) = kept.iter().position(|(known, _)| *known == index) {
            let block = kept.remove(position);
            kept.push(block.clone());
            return Ok(block.1);
        }
        let start = index * BLOCK_BYTES;
        let end = self.byte_count.min(start + BLOCK_BYTES);
        let behind = self.byte_count.min(end + BLOCK_BYTES);
        self.of.will_read(&[(start, end), (end, behind)]);
        let mut bytes = vec![0; (end - start) as usize];
        read_exact_at(&*self.of, &mut bytes, start)?;
        let bytes = Arc::new(bytes);
        if kept.len() == KEPT_COUNT {
            kept.remove(0);
        }
        kept.push((index, Arc::clone(&bytes)));
        Ok(bytes)
    }
}

impl ReadAt for Blocks {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset >= self.byte_count || buffer.is_empty() {
            return Ok(0);
        }
        let block = self.block(offset / BLOCK_BYTES)?;
        let there = &block[(offset % BLOCK_BYTES) as usize..];
        let count = there.len().min(buffer.len());
        buffer[..count].copy_from_slice(&there[..count]);
        Ok(count)
    }

    fn byte_count(&self) -> io::Result<u64> {
        Ok(self.byte_count)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Bytes that tell their place, and how often someone asked.
    struct Far(u64, Arc<AtomicUsize>);

    impl ReadAt for Far {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.1.fetch_add(1, Ordering::Relaxed);
            let count = (self.0 - offset).min(buffer.len() as u64) as usize;
            let bytes = (offset..).map(|at| (at % 251) as u8);
            buffer
                .iter_mut()
                .zip(bytes)
                .for_each(|(to, byte)| *to = byte);
            Ok(count)
        }

        fn byte_count(&self) -> io::Result<u64> {
            Ok(self.0)
        }
    }

    #[test]
    fn many_small_reads_are_few_large_ones() {
        let asked = Arc::new(AtomicUsize::new(0));
        let size = 2 * BLOCK_BYTES + 1000;
        let blocks = Blocks::new(Box::new(Far(size, Arc::clone(&asked)))).unwrap();
        assert_eq!(blocks.byte_count().unwrap(), size);
        let (mut at, mut buffer) = (0, [0; 9973]);
        while at < size {
            let count = blocks.read_at(&mut buffer, at).unwrap();
            let expected = (at..).map(|at| (at % 251) as u8);
            assert!(
                buffer[..count].iter().copied().eq(expected.take(count)),
                "at {at}"
            );
            at += count as u64;
        }
        assert_eq!(blocks.read_at(&mut buffer, size).unwrap(), 0);
        blocks.read_at(&mut buffer, 17).unwrap(); // still there
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }
}
