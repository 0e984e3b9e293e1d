//! Much memory into one file, quickly.
//!
//! Large files are written around the page cache where the file system allows it: their bytes go
//! from aligned buffers to the disk, several at a time, without first filling memory that the rest of the
//! system wants. A disk too slow for that gets the page cache after all.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crate::sys;

/// Bytes per write. A multiple of every sector and page size there is.
const PIECE_BYTES: usize = 8 * 1024 * 1024;

/// What direct writes must be a multiple of, in memory and in the file.
const BLOCK_BYTES: usize = 4096;

/// Smaller files go through the page cache: they fit, and whoever saved them may read them next.
const DIRECT_BYTES_MIN: u64 = 256 * 1024 * 1024;

/// More writers do not make a disk faster.
const THREADS_MAX: usize = 4;

/// After this many bytes a look at the clock says whether the disk keeps up.
const TRIAL_BYTES: u64 = 128 * 1024 * 1024;

/// A disk slower than this is left to the page cache.
const DIRECT_BYTES_PER_SECOND_MIN: f64 = 400e6;

/// Whether a saved file's bytes stay in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageCache {
    /// Around it for files of 256 MiB and more, on disks fast enough.
    #[default]
    Auto,
    /// Through it: best if the file is read again at once.
    Keep,
    /// Around it where the file system can.
    Bypass,
}

/// Writes the concatenation of `parts` from the start of `file`, which is new.
pub(crate) fn write(
    file: &File,
    parts: &[&[u8]],
    page_cache: PageCache,
    at: &Path,
) -> io::Result<()> {
    let text = Text::new(parts);
    let direct = match page_cache {
        PageCache::Auto => text.byte_count >= DIRECT_BYTES_MIN,
        PageCache::Keep => false,
        PageCache::Bypass => true,
    };
    let mut done = 0;
    if direct && sys::set_direct(file, true, at) {
        let written = write_direct(file, &text, page_cache == PageCache::Auto, at);
        let cleared = sys::set_direct(file, false, at);
        match written {
            Ok(written) if cleared => done = written,
            Err(error) if !sys::is_unsupported(&error) => return Err(error),
            _ => {} // a file system that takes the flag and not the writes
        }
    }
    write_buffered(file, &text, done, at)
}

/// Whole blocks, around the page cache, from several threads; up to which byte everything is
/// written. May stop early if it is slow and `may_stop`.
fn write_direct(file: &File, text: &Text<'_>, may_stop: bool, at: &Path) -> io::Result<u64> {
    let whole = text.byte_count / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.clamp(2, THREADS_MAX); // one fills its buffer while another waits for the disk
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let failed = Mutex::new(None);
    let start = Instant::now();
    let work = || {
        let mut memory = vec![0u8; PIECE_BYTES + BLOCK_BYTES];
        let skew = memory.as_ptr().align_offset(BLOCK_BYTES);
        let buffer = &mut memory[skew..skew + PIECE_BYTES];
        while !stop.load(Ordering::Relaxed) {
            let offset = next.fetch_add(PIECE_BYTES as u64, Ordering::Relaxed);
            if offset >= whole {
                break;
            }
            let piece = &mut buffer[..(whole - offset).min(PIECE_BYTES as u64) as usize];
            text.copy(offset, piece);
            if let Err(error) = sys::write_at(file, piece, offset, at) {
                stop.store(true, Ordering::Relaxed);
                let mut failed = failed.lock().unwrap_or_else(|held| held.into_inner());
                failed.get_or_insert(error);
            }
            let seconds = start.elapsed().as_secs_f64();
            let slow = offset as f64 / seconds < DIRECT_BYTES_PER_SECOND_MIN;
            if may_stop && slow && offset >= TRIAL_BYTES {
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    match failed.into_inner().unwrap_or_else(|held| held.into_inner()) {
        Some(error) => Err(error),
        // Every piece that was taken is written.
        None => Ok(next.into_inner().min(whole)),
    }
}

/// From byte `start` on, one after the other, which is what every file system can do.
fn write_buffered(file: &File, text: &Text<'_>, start: u64, at: &Path) -> io::Result<()> {
    let mut small = Vec::new(); // neighbours too small for a write of their own
    let mut small_at = start;
    for (part, &part_start) in text.parts.iter().zip(&text.starts) {
        let skip = start.saturating_sub(part_start).min(part.len() as u64) as usize;
        let part = &part[skip..];
        let part_start = part_start + skip as u64;
        if small.len() + part.len() > PIECE_BYTES / 8 {
            sys::write_at(file, &small, small_at, at)?;
            small.clear();
        }
        if part.len() > PIECE_BYTES / 8 {
            for (count, piece) in part.chunks(PIECE_BYTES).enumerate() {
                let offset = part_start + (count * PIECE_BYTES) as u64;
                sys::write_at(file, piece, offset, at)?;
            }
            continue;
        }
        if small.is_empty() {
            small_at = part_start;
        }
        small.extend_from_slice(part);
    }
    sys::write_at(file, &small, small_at, at)
}

/// Parts that follow one another.
struct Text<'a> {
    parts: &'a [&'a [u8]],
    /// Where each starts.
    starts: Vec<u64>,
    byte_count: u64,
}

impl<'a> Text<'a> {
    fn new(parts: &'a [&'a [u8]]) -> Text<'a> {
        let mut byte_count = 0;
        let starts = parts.iter().map(|part| {
            let start = byte_count;
            byte_count += part.len() as u64;
            start
        });
        Text {
            parts,
            starts: starts.collect(),
            byte_count,
        }
    }

    /// Fills `out` from byte `offset` on; there are that many.
    fn copy(&self, mut offset: u64, mut out: &mut [u8]) {
        let behind = self.starts.partition_point(|&start| start <= offset);
        let mut position = behind.saturating_sub(1);
        while !out.is_empty() {
            let part = &self.parts[position][(offset - self.starts[position]) as usize..];
            let len = part.len().min(out.len());
            let (filled, rest) = out.split_at_mut(len);
            filled.copy_from_slice(&part[..len]);
            (out, offset, position) = (rest, offset + len as u64, position + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Call, faults};

    fn parts() -> Vec<Vec<u8>> {
        let sizes = [16, 0, 3, 9_000_000, 1, 0, 1_048_577, 12, 8_388_608, 5];
        let noise = |len, seed: usize| (0..len).map(move |i: usize| ((i * 31 + seed) >> 3) as u8);
        let parts = sizes.iter().enumerate();
        parts
            .map(|(seed, &len)| noise(len, seed).collect())
            .collect()
    }

    /// Writes the parts into a new file and checks them.
    fn check(folder: &Path, page_cache: PageCache) -> io::Result<()> {
        let path = folder.join("file");
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)?;
        let parts = parts();
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        write(&file, &slices, page_cache, &path)?;
        assert!(std::fs::read(&path)? == parts.concat());
        Ok(())
    }

    #[test]
    fn every_way_writes_the_same() {
        let folder = crate::testing::Folder::new("bulk");
        for page_cache in [PageCache::Auto, PageCache::Keep, PageCache::Bypass] {
            check(folder.path(), page_cache).unwrap();
        }
    }

    #[test]
    fn file_systems_that_cannot_go_around_the_cache() {
        let (einval, enospc) = (22, 28);
        let folder = crate::testing::Folder::new("bulk-faults");
        let refused = faults::inject(folder.path(), Call::Direct, 0, einval);
        check(folder.path(), PageCache::Bypass).unwrap();
        drop(refused);
        // Takes the flag, then refuses the first write, but not those through the cache.
        let refused = faults::inject_some(folder.path(), Call::Write, 0, 1, einval);
        check(folder.path(), PageCache::Bypass).unwrap();
        drop(refused);
        let full = faults::inject(folder.path(), Call::Write, 1, enospc);
        let error = check(folder.path(), PageCache::Bypass).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        drop(full);
        let full = faults::inject(folder.path(), Call::Write, 1, enospc);
        assert!(check(folder.path(), PageCache::Keep).is_err());
        drop(full);
    }

    #[test]
    fn ranges_across_parts() {
        let slices: [&[u8]; 6] = [b"", b"ab", b"", b"", b"cde", b"f"];
        let text = Text::new(&slices);
        for start in 0..=6usize {
            for end in start..=6 {
                let mut out = vec![0; end - start];
                text.copy(start as u64, &mut out);
                assert_eq!(out, b"abcdef"[start..end]);
            }
        }
    }
}
