//! An allocator that counts, for tests of how much memory is used: it hands everything on to the system's. Pages that
//! [`super::Aligned`] has of its own are counted with the rest.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK_BYTES: AtomicUsize = AtomicUsize::new(0);
static BLOCKS: AtomicUsize = AtomicUsize::new(0);
static LARGEST_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Counts a block.
pub(super) fn took(bytes: usize) {
    let live = LIVE_BYTES.fetch_add(bytes, Relaxed) + bytes;
    PEAK_BYTES.fetch_max(live, Relaxed);
    BLOCKS.fetch_add(1, Relaxed);
    LARGEST_BYTES.fetch_max(bytes, Relaxed);
}

/// Counts a block that is given back.
pub(super) fn gave(bytes: usize) {
    LIVE_BYTES.fetch_sub(bytes, Relaxed);
}

/// A test declares it as its `#[global_allocator]` and asks it.
pub struct CountingAllocator;

impl CountingAllocator {
    /// Begins anew, with the peak at what is in use.
    pub fn reset(&self) {
        PEAK_BYTES.store(LIVE_BYTES.load(Relaxed), Relaxed);
        BLOCKS.store(0, Relaxed);
        LARGEST_BYTES.store(0, Relaxed);
    }

    /// What is in use.
    pub fn live_bytes(&self) -> usize {
        LIVE_BYTES.load(Relaxed)
    }

    /// The most that was in use since the last reset.
    pub fn peak_bytes(&self) -> usize {
        PEAK_BYTES.load(Relaxed)
    }

    /// Blocks that were asked for since then.
    pub fn blocks(&self) -> usize {
        BLOCKS.load(Relaxed)
    }

    /// The largest of them.
    pub fn largest_bytes(&self) -> usize {
        LARGEST_BYTES.load(Relaxed)
    }
}

// SAFETY: every block is the system allocator's, under the layout it was asked for; counting touches none.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller keeps to the contract of `GlobalAlloc`, which is the system's too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        gave(layout.size());
        // SAFETY: `block` came from the system's allocator through us, with this layout.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        gave(layout.size());
        took(new_size);
        // SAFETY: as in `dealloc`; the caller promises that `new_size` is possible.
        unsafe { System.realloc(block, layout, new_size) }
    }
}
