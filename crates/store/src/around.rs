//! Pieces of a large file, written around the page cache: by any thread, in any order, wherever they start.
//!
//! Only whole blocks can go that way. The edges of a piece, which share their blocks with its neighbours, are
//! the caller's: through the page cache, which keeps them together.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::bulk::{
    Aligned, BLOCK_BYTES, DIRECT_BYTES_MIN, DIRECT_BYTES_PER_SECOND_MIN, PIECE_BYTES, PageCache,
    TRIAL_BYTES,
};
use crate::sys;

/// Less than this is not worth a trip to the disk of its own.
const BYTES_MIN: u64 = 512 * 1024;

/// A second handle on a file, which goes around the page cache.
pub(crate) struct Around {
    file: File,
    works: AtomicBool,
    /// Whether a slow disk ends it.
    may_stop: bool,
    /// Threads that are writing.
    active: AtomicU64,
    /// What was written, and the time that took: a thread's share where several wrote.
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
    buffers: Mutex<Vec<Aligned>>,
}

impl Around {
    /// For a file that will have so many bytes; `None` if the page cache is better or there is no way around it.
    pub(crate) fn of(
        file: &File,
        file_bytes: u64,
        page_cache: PageCache,
        at: &Path,
    ) -> Option<Around> {
        let wanted = match page_cache {
            PageCache::Auto => file_bytes >= DIRECT_BYTES_MIN,
            PageCache::Keep => false,
            PageCache::Bypass => true,
        };
        let file = wanted
            .then(|| sys::open_direct(file, sys::Direct::Writing, at))
            .flatten()?;
        Some(Around {
            file,
            works: AtomicBool::new(true),
            may_stop: page_cache == PageCache::Auto,
            active: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
            buffers: Mutex::new(Vec::new()),
        })
    }

    /// Writes the whole blocks of a piece that goes to `offset`; which part of it that was, from and to. An empty
    /// part if it is small or this does not work here: all of it is the caller's then.
    pub(crate) fn write(&self, bytes: &[u8], offset: u64, at: &Path) -> io::Result<(usize, usize)> {
        let block = BLOCK_BYTES as u64;
        let start = offset.next_multiple_of(block);
        let end = (offset + bytes.len() as u64) / block * block;
        if end < start + BYTES_MIN || !self.works.load(Ordering::Relaxed) {
            return Ok((0, 0));
        }
        let (from, to) = ((start - offset) as usize, (end - offset) as usize);
        let mut buffers = self.buffers.lock().unwrap_or_else(|held| held.into_inner());
        let mut buffer = buffers.pop().unwrap_or_else(Aligned::for_blocks);
        drop(buffers);
        let mut done = from;
        let mut written = Ok(());
        while done < to && written.is_ok() {
            let count = (to - done).min(PIECE_BYTES);
            buffer.clear();
            buffer.push(&bytes[done..done + count]);
            written = self.put(&buffer, offset + done as u64, at);
            if written.is_ok() {
                done += count;
            }
        }
        let mut buffers = self.buffers.lock().unwrap_or_else(|held| held.into_inner());
        buffers.push(buffer);
        match written {
            Err(error) if !sys::is_unsupported(&error) => Err(error),
            Err(_) => {
                self.works.store(false, Ordering::Relaxed); // a file system that takes the flag and not the writes
                Ok((from, done))
            }
            Ok(()) => Ok((from, done)),
        }
    }

    fn put(&self, buffer: &Aligned, offset: u64, at: &Path) -> io::Result<()> {
        let count = buffer.bytes().len() as u64;
        let (active, start) = (
            self.active.fetch_add(1, Ordering::Relaxed) + 1,
            Instant::now(),
        );
        let written = sys::write_at(&self.file, buffer.bytes(), offset, at);
        self.active.fetch_sub(1, Ordering::Relaxed);
        let share = start.elapsed().as_nanos() as u64 / active;
        let nanoseconds = self.nanoseconds.fetch_add(share, Ordering::Relaxed) + share;
        let bytes = self.bytes.fetch_add(count, Ordering::Relaxed) + count;
        let bytes_per_second = bytes as f64 / (nanoseconds as f64 / 1e9);
        if self.may_stop && bytes >= TRIAL_BYTES && bytes_per_second < DIRECT_BYTES_PER_SECOND_MIN {
            self.works.store(false, Ordering::Relaxed);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Call;
    use crate::sys::faults::{inject, inject_some};

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|at| (at % 251) as u8).collect()
    }

    /// Whether a file system of this machine lets us around its page cache.
    fn around(file: &File, at: &Path) -> Option<Around> {
        let around = Around::of(file, 1, PageCache::Bypass, at);
        if around.is_none() {
            eprintln!("skipped: no way around the page cache in {}", at.display());
        }
        around
    }

    #[test]
    fn whole_blocks_go_around_and_the_edges_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let file = File::create_new(&path).unwrap();
        let Some(around) = around(&file, &path) else {
            return;
        };
        let all = bytes(PIECE_BYTES + 2_000_000);
        let (from, to) = around.write(&all, 100, &path).unwrap();
        assert_eq!(from, BLOCK_BYTES - 100);
        assert_eq!((100 + to) % BLOCK_BYTES, 0);
        assert!(all.len() - to < BLOCK_BYTES);
        let read = std::fs::read(&path).unwrap();
        assert_eq!(read[BLOCK_BYTES..], all[from..to]);
        // Too small to be worth it.
        assert_eq!(around.write(&all[..100_000], 0, &path).unwrap(), (0, 0));
    }

    #[test]
    fn small_files_and_those_to_keep_go_through_the_page_cache() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let file = File::create_new(&path).unwrap();
        let of = |file_bytes, page_cache| Around::of(&file, file_bytes, page_cache, &path);
        assert!(of(DIRECT_BYTES_MIN - 1, PageCache::Auto).is_none());
        assert!(of(u64::MAX, PageCache::Keep).is_none());
        let _fault = inject(folder.path(), Call::Direct, 0, 22);
        assert!(of(u64::MAX, PageCache::Auto).is_none());
    }

    #[test]
    fn refused_writes_are_left_to_the_caller_and_failed_ones_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let file = File::create_new(&path).unwrap();
        let Some(around) = around(&file, &path) else {
            return;
        };
        let all = bytes(1_000_000);
        let full = inject_some(folder.path(), Call::Write, 0, 1, 28);
        let error = around.write(&all, 0, &path).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(28));
        drop(full);
        assert_ne!(around.write(&all, 0, &path).unwrap(), (0, 0));
        let refused = inject_some(folder.path(), Call::Write, 0, 1, 22);
        let (from, to) = around.write(&all, 0, &path).unwrap();
        assert_eq!(from, to);
        drop(refused);
        assert_eq!(around.write(&all, 0, &path).unwrap(), (0, 0)); // it does not try again
    }
}
