//! Whole files brought into memory: copied into memory of our own, or, where they are mapped, made present.
//!
//! A copy is one allocation a file, an anonymous map filled by several threads: the kernel hands out zeroed pages as they
//! are first written, by the thread that writes them, so nothing is cleared twice and page faults run in parallel. The
//! file itself is read, never mapped: a file that shrinks meanwhile is an error and not a signal. What is not in the page cache
//! yet comes straight from the disk into its place (direct reads), without a copy and without the page cache filling up.

use std::fs::File;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use memmap2::{Mmap, MmapMut};

use crate::backend::{self, Backend, Seen};
use crate::bulk::{BLOCK_BYTES, DIRECT_BYTES_MIN, PageCache};
use crate::error::StoreError;
use crate::source::{FileSource, ReadAt as _, Source};
use crate::sys;

/// What a thread reads at a time: a few huge pages, and few enough system calls. A multiple of every page size.
pub(crate) const CHUNK_BYTES: usize = 8 * 1024 * 1024;

/// How whole files are brought into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// How many threads read. The bytes don't depend on it.
    pub backend: Backend,
    /// Asks for pages of 2 MB. One fault then stands for 512, which is faster where the machine's
    /// memory is at hand, and slower in virtual machines that give free memory back to their host (there
    /// it took twice as long, so it is off by default). Linux only.
    pub huge_pages: bool,
    /// Whether the page cache has the file's bytes as well afterwards. By default files of 256 MiB and more that are not there
    /// yet are read around it: twice as fast, and without pushing other files out; but a second load comes from the disk again.
    pub page_cache: PageCache,
}

/// Copies a whole file into memory.
///
/// # Errors
/// [`StoreError::OutOfMemory`], and what keeps the file from being read.
pub(crate) fn load(source: &FileSource, options: &LoadOptions) -> Result<MmapMut, StoreError> {
    let out_of_memory = || source.out_of_memory("the whole file".to_owned(), source.file_bytes);
    let len = usize::try_from(source.file_bytes).ok();
    // Direct reads are of whole blocks, also at the end.
    let len = len.and_then(|len| len.max(1).checked_next_multiple_of(BLOCK_BYTES));
    let mut memory =
        MmapMut::map_anon(len.ok_or_else(out_of_memory)?).map_err(|_| out_of_memory())?;
    #[cfg(target_os = "linux")]
    if options.huge_pages {
        // Only advice: without huge pages it takes longer.
        let _ = memory.advise(memmap2::Advice::HugePage);
    }
    fill(source, &mut memory, options)?;
    Ok(memory)
}

/// Fills `out`, which is whole blocks, with the file's bytes.
fn fill(source: &FileSource, out: &mut [u8], options: &LoadOptions) -> Result<(), StoreError> {
    let seen = backend::look(source);
    let direct = Direct::of(source, options.page_cache, seen);
    let file_bytes = source.file_bytes;
    let chunks = Mutex::new(out.chunks_mut(CHUNK_BYTES).enumerate());
    let threads = options.backend.threads(seen);
    in_parallel(threads, file_bytes, || {
        let next = chunks.lock().expect("taking a chunk does not panic").next();
        let Some((position, chunk)) = next else {
            return Ok(false);
        };
        let offset = position as u64 * CHUNK_BYTES as u64;
        let wanted = (file_bytes.saturating_sub(offset)).min(chunk.len() as u64) as usize;
        let done = match &direct {
            Some(direct) => direct
                .read(chunk, wanted, offset)
                .map_err(|error| source.io(error))?,
            None => 0,
        };
        if seen == Seen::Uncached && done == 0 {
            source.read_soon(offset, wanted as u64);
        }
        source.read_exact_at(&mut chunk[done..wanted], offset + done as u64)?;
        Ok(true)
    })
}

/// A second handle on a file, which goes around the page cache.
struct Direct {
    file: File,
    works: AtomicBool,
}

impl Direct {
    /// `None` if the page cache is better or there is no way around it.
    fn of(source: &FileSource, page_cache: PageCache, seen: Seen) -> Option<Direct> {
        let Source::File(file) = &source.source else {
            return None;
        };
        let wanted = match page_cache {
            PageCache::Auto => seen == Seen::Uncached && source.file_bytes >= DIRECT_BYTES_MIN,
            PageCache::Keep => false,
            PageCache::Bypass => true,
        };
        let label = Path::new(&source.label);
        let open = || sys::open_direct(file, sys::Direct::Reading, label);
        let file = wanted.then(open).flatten()?;
        let works = AtomicBool::new(true);
        Some(Direct { file, works })
    }

    /// Reads into `chunk`, whole blocks of memory, what the file has from `offset` on: `wanted` bytes. How many of them
    /// were read; the rest is the page cache's.
    fn read(&self, chunk: &mut [u8], wanted: usize, offset: u64) -> std::io::Result<usize> {
        let mut done = 0;
        while done < wanted && self.works.load(Ordering::Relaxed) {
            match self.file.read_at(&mut chunk[done..], offset + done as u64) {
                // The file's end, or an odd part of a block: what is left can't go this way.
                Ok(count) if !count.is_multiple_of(BLOCK_BYTES) || count == 0 => {
                    return Ok(wanted.min(done + count));
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // A file system that takes the flag and not the reads.
                Err(error) if sys::is_unsupported(&error) => {
                    self.works.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done.min(wanted))
    }
}

/// Makes every page of a mapped file present, in memory and in this process's tables, so that looking at it costs nothing any
/// more. Nothing is copied.
///
/// # Errors
/// What keeps the file from being read; no signal.
pub(crate) fn prefault(source: &FileSource) -> Result<(), StoreError> {
    let Source::Mapped(map, file) = &source.source else {
        return Ok(());
    };
    let seen = backend::look(source);
    let next = AtomicU64::new(0);
    let threads = Backend::Auto.threads(seen);
    in_parallel(threads, source.file_bytes, || {
        let start = next.fetch_add(CHUNK_BYTES as u64, Ordering::Relaxed);
        if start >= source.file_bytes {
            return Ok(false);
        }
        let byte_count = (source.file_bytes - start).min(CHUNK_BYTES as u64);
        if seen == Seen::Uncached {
            sys::will_read(file, start, byte_count);
        }
        let range = start as usize..(start + byte_count) as usize;
        if populate(map, range.start, range.len()).map_err(|error| source.io(error))? {
            return Ok(true);
        }
        let now_bytes = file.byte_count().map_err(|error| source.io(error))?;
        if now_bytes < source.file_bytes {
            return Err(source.shrank(now_bytes)); // rather than a signal, where that can be known
        }
        touch(&map[range]);
        Ok(true)
    })
}

/// Lets the kernel do it (Linux 5.14 and later); `false` if it doesn't know how.
fn populate(map: &Mmap, start: usize, len: usize) -> std::io::Result<bool> {
    #[cfg(target_os = "linux")]
    match map.advise_range(memmap2::Advice::PopulateRead, start, len) {
        Ok(()) => Ok(true),
        Err(error) if sys::is_unsupported(&error) => Ok(false),
        Err(error) => Err(error),
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (map, start, len);
        Ok(false)
    }
}

/// Looks at a byte of each page.
fn touch(bytes: &[u8]) {
    const PAGE_BYTES: usize = 4096; // no page is smaller
    for byte in bytes.iter().step_by(PAGE_BYTES) {
        std::hint::black_box(*byte);
    }
}

/// Lets up to `threads` threads do `step` again and again, until one says `false` or an error.
pub(crate) fn in_parallel(
    threads: usize,
    byte_count: u64,
    step: impl Fn() -> Result<bool, StoreError> + Sync,
) -> Result<(), StoreError> {
    let chunk_count = byte_count.div_ceil(CHUNK_BYTES as u64);
    let threads = threads.min(usize::try_from(chunk_count).unwrap_or(threads));
    let failed = AtomicBool::new(false);
    let first_error = Mutex::new(None);
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            match step() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    let mut slot = first_error.lock().expect("keeping an error does not panic");
                    slot.get_or_insert(error);
                }
            }
        }
    };
    thread::scope(|scope| {
        (1..threads).for_each(|_| {
            scope.spawn(work);
        });
        work();
    });
    let error = first_error.into_inner().expect("no thread panics");
    error.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Call;
    use crate::sys::faults::inject;

    fn source(folder: &Path, byte_count: usize) -> (FileSource, Vec<u8>) {
        let bytes: Vec<u8> = (0..byte_count).map(|at| (at % 251) as u8).collect();
        let path = folder.join(format!("{byte_count}"));
        std::fs::write(&path, &bytes).unwrap();
        (FileSource::open(&path).unwrap(), bytes)
    }

    #[test]
    fn every_way_of_loading_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        for byte_count in [0, 1, 511, 4096, 4097, CHUNK_BYTES, 2 * CHUNK_BYTES + 70_001] {
            let (source, bytes) = source(folder.path(), byte_count);
            for page_cache in [PageCache::Auto, PageCache::Keep, PageCache::Bypass] {
                let options = LoadOptions {
                    page_cache,
                    ..LoadOptions::default()
                };
                let loaded = load(&source, &options).unwrap();
                assert!(
                    loaded[..byte_count] == bytes,
                    "{byte_count}, {page_cache:?}"
                );
            }
        }
    }

    #[test]
    fn direct_reads_are_for_large_files_that_the_page_cache_does_not_have() {
        let folder = tempfile::tempdir().unwrap();
        let (mut source, _) = source(folder.path(), 10_000);
        let direct =
            |source: &FileSource, page_cache, seen| Direct::of(source, page_cache, seen).is_some();
        if !direct(&source, PageCache::Bypass, Seen::Cached) {
            eprintln!("skipped: {} has no way around its page cache", source.label);
            return;
        }
        assert!(!direct(&source, PageCache::Auto, Seen::Uncached));
        source.file_bytes = DIRECT_BYTES_MIN;
        assert!(direct(&source, PageCache::Auto, Seen::Uncached));
        for seen in [Seen::Cached, Seen::Network, Seen::Unknown] {
            assert!(!direct(&source, PageCache::Auto, seen));
        }
        assert!(!direct(&source, PageCache::Keep, Seen::Uncached));
        let _fault = inject(folder.path(), Call::Direct, 0, 22);
        assert!(!direct(&source, PageCache::Bypass, Seen::Uncached));
    }

    #[test]
    fn a_file_that_shrinks_is_an_error_around_the_page_cache_too() {
        let folder = tempfile::tempdir().unwrap();
        let (source, _) = source(folder.path(), 3 * CHUNK_BYTES);
        let file = File::options().write(true).open(&source.label).unwrap();
        file.set_len(CHUNK_BYTES as u64 + 5000).unwrap();
        let options = LoadOptions {
            page_cache: PageCache::Bypass,
            ..LoadOptions::default()
        };
        let error = load(&source, &options).unwrap_err();
        let now_bytes = CHUNK_BYTES as u64 + 5000;
        assert!(
            matches!(error, StoreError::Shrank { now_bytes: now, .. } if now == now_bytes),
            "{error}"
        );
    }

    #[test]
    fn touching_takes_every_length() {
        for len in [0, 1, 4096, 10_000] {
            touch(&vec![0; len]);
        }
    }
}
