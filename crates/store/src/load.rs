//! Whole files brought into memory of our own: one allocation a file, filled by several threads.
//!
//! The memory is an anonymous map: the kernel hands out zeroed pages as they are first written, by
//! the thread that writes them, so nothing is cleared twice and page faults run in parallel. The
//! file itself is read, never mapped: a file that shrinks meanwhile is an error and not a signal.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use memmap2::MmapMut;

use crate::backend::Backend;
use crate::error::StoreError;
use crate::source::FileSource;

/// What a thread reads at a time: a few huge pages, and few enough system calls.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;

/// How whole files are brought into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// How many threads read. The bytes don't depend on it.
    pub backend: Backend,
    /// Asks for pages of 2 MB. One fault then stands for 512, which is faster where the machine's
    /// memory is at hand, and slower in virtual machines that give free memory back to their host (there
    /// it took twice as long, so it is off by default). Linux only.
    pub huge_pages: bool,
}

/// Copies a whole file into memory.
///
/// # Errors
/// [`StoreError::OutOfMemory`], and what keeps the file from being read.
pub(crate) fn load(source: &FileSource, options: &LoadOptions) -> Result<MmapMut, StoreError> {
    let out_of_memory = || source.out_of_memory("the whole file".to_owned(), source.file_bytes);
    let len = usize::try_from(source.file_bytes).map_err(|_| out_of_memory())?;
    let mut memory = MmapMut::map_anon(len.max(1)).map_err(|_| out_of_memory())?;
    #[cfg(target_os = "linux")]
    if options.huge_pages {
        // Only advice: without huge pages it takes longer.
        let _ = memory.advise(memmap2::Advice::HugePage);
    }
    fill(source, &mut memory[..len], options.backend)?;
    Ok(memory)
}

/// Fills `out` with the file's first bytes.
fn fill(source: &FileSource, out: &mut [u8], backend: Backend) -> Result<(), StoreError> {
    let threads = backend.threads(source);
    let threads = threads.min(out.len().div_ceil(CHUNK_BYTES));
    let chunks = Mutex::new(out.chunks_mut(CHUNK_BYTES).enumerate());
    let failed = AtomicBool::new(false);
    let first_error = Mutex::new(None);
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let next = chunks.lock().expect("taking a chunk does not panic").next();
            let Some((position, chunk)) = next else {
                break;
            };
            let offset = position as u64 * CHUNK_BYTES as u64;
            if let Err(error) = source.read_exact_at(chunk, offset) {
                failed.store(true, Ordering::Relaxed);
                let mut slot = first_error.lock().expect("keeping an error does not panic");
                slot.get_or_insert(error);
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
