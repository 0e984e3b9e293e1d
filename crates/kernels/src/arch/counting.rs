//! An allocator that counts, for tests of how much memory is used: it hands everything on to the system's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A test declares it as its `#[global_allocator]` and asks it.
pub struct CountingAllocator {
    live_bytes: AtomicUsize,
    peak_bytes: AtomicUsize,
    blocks: AtomicUsize,
    largest_bytes: AtomicUsize,
}

impl CountingAllocator {
    /// One that has counted nothing yet.
    #[expect(clippy::new_without_default, reason = "statics take constants")]
    pub const fn new() -> Self {
        CountingAllocator {
            live_bytes: AtomicUsize::new(0),
            peak_bytes: AtomicUsize::new(0),
            blocks: AtomicUsize::new(0),
            largest_bytes: AtomicUsize::new(0),
        }
    }

    /// Begins anew, with the peak at what is in use.
    pub fn reset(&self) {
        self.peak_bytes
            .store(self.live_bytes.load(Relaxed), Relaxed);
        self.blocks.store(0, Relaxed);
        self.largest_bytes.store(0, Relaxed);
    }

    /// What is in use.
    pub fn live_bytes(&self) -> usize {
        self.live_bytes.load(Relaxed)
    }

    /// The most that was in use since the last reset.
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes.load(Relaxed)
    }

    /// Blocks that were asked for since then.
    pub fn blocks(&self) -> usize {
        self.blocks.load(Relaxed)
    }

    /// The largest of them.
    pub fn largest_bytes(&self) -> usize {
        self.largest_bytes.load(Relaxed)
    }

    fn took(&self, bytes: usize) {
        let live = self.live_bytes.fetch_add(bytes, Relaxed) + bytes;
        self.peak_bytes.fetch_max(live, Relaxed);
        self.blocks.fetch_add(1, Relaxed);
        self.largest_bytes.fetch_max(bytes, Relaxed);
    }

    fn gave(&self, bytes: usize) {
        self.live_bytes.fetch_sub(bytes, Relaxed);
    }
}

// SAFETY: every block is the system allocator's, under the layout it was asked for; counting touches none.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.took(layout.size());
        // SAFETY: the caller keeps to the contract of `GlobalAlloc`, which is the system's too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.took(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.gave(layout.size());
        // SAFETY: `block` came from the system's allocator through us, with this layout.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        self.gave(layout.size());
        self.took(new_size);
        // SAFETY: as in `dealloc`; the caller promises that `new_size` is possible.
        unsafe { System.realloc(block, layout, new_size) }
    }
}
