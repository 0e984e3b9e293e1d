//! Floats that start on a cache line, so that no vector of them straddles two.

use memmap2::MmapMut;

use super::counting;

/// A cache line, in floats.
const LINE: usize = 16;

/// From here on floats have pages of their own, which go back to the system when they are dropped: an allocator may keep
/// them, and a network that is dropped to make room for another would make none.
const MAPPED_BYTES_MIN: usize = 1 << 20;

/// A fixed number of floats, zeros at first, on a 64-byte boundary.
#[derive(Debug)]
pub struct Aligned {
    store: Store,
    len: usize,
}

#[derive(Debug)]
enum Store {
    /// Never grows, so its floats stay where they are; the first on a boundary is at `start`.
    Heap { floats: Vec<f32>, start: usize },
    /// Of `len` floats at least; a page's start is a boundary.
    Pages(Pages),
}

/// Memory of its own.
#[derive(Debug)]
struct Pages(MmapMut);

impl Aligned {
    /// `len` zeros. Of a big one the system gives pages as they are first written, by whichever
    /// thread, and large ones where it can.
    pub fn zeros(len: usize) -> Self {
        let bytes = len * size_of::<f32>();
        let pages = (bytes >= MAPPED_BYTES_MIN).then(|| Pages::zeros(bytes));
        let store = pages
            .flatten()
            .map_or_else(|| Store::heap(len), Store::Pages);
        Aligned { store, len }
    }

    /// The floats.
    #[inline(always)]
    pub fn as_slice(&self) -> &[f32] {
        match &self.store {
            Store::Heap { floats, start } => &floats[*start..][..self.len],
            Store::Pages(Pages(pages)) => {
                assert!(pages.len() >= self.len * size_of::<f32>());
                // SAFETY: an anonymous map starts on a page, is initialized (zeros, then floats), and holds `len` floats
                // as was just checked; it is ours alone and lives as long as `self`.
                unsafe { std::slice::from_raw_parts(pages.as_ptr().cast(), self.len) }
            }
        }
    }

    /// The floats, to change.
    #[inline(always)]
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        match &mut self.store {
            Store::Heap { floats, start } => &mut floats[*start..][..self.len],
            Store::Pages(Pages(pages)) => {
                assert!(pages.len() >= self.len * size_of::<f32>());
                // SAFETY: as in `as_slice`, and `self` is borrowed for as long.
                unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), self.len) }
            }
        }
    }
}

impl Pages {
    /// Zeros, on large pages (2 MiB on x86-64) where Linux has them: fewer faults while they are first written, fewer
    /// misses of the translation buffers ever after.
    fn zeros(bytes: usize) -> Option<Pages> {
        let pages = MmapMut::map_anon(bytes).ok()?;
        #[cfg(target_os = "linux")]
        // A kernel that was built without them refuses, and small pages serve as well.
        let _ = pages.advise(memmap2::Advice::HugePage);
        counting::took(bytes);
        Some(Pages(pages))
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        counting::gave(self.0.len());
    }
}

impl Store {
    fn heap(len: usize) -> Store {
        if len == 0 {
            let (floats, start) = (Vec::new(), 0);
            return Store::Heap { floats, start };
        }
        let floats = vec![0.0f32; len + LINE];
        let start = floats.as_ptr().align_offset(LINE * size_of::<f32>());
        assert!(start < LINE, "a float's address is a multiple of 4");
        Store::Heap { floats, start }
    }
}

impl Clone for Aligned {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.len);
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_ones_have_pages_of_their_own() {
        let is_mapped = |len| matches!(Aligned::zeros(len).store, Store::Pages(_));
        assert!(!is_mapped(MAPPED_BYTES_MIN / 4 - 1));
        assert!(is_mapped(MAPPED_BYTES_MIN / 4));
    }

    #[test]
    fn starts_on_a_line_and_has_its_length() {
        for len in [1, 15, 16, 17, 160, MAPPED_BYTES_MIN / 4, 1_000_001] {
            let mut floats = Aligned::zeros(len);
            assert_eq!(floats.as_slice(), vec![0.0; len]);
            floats.as_mut_slice().fill(1.0);
            for floats in [&floats, &floats.clone()] {
                assert_eq!(floats.as_slice(), vec![1.0; len]);
                assert_eq!(floats.as_slice().as_ptr() as usize % 64, 0);
            }
        }
        assert!(Aligned::zeros(0).as_slice().is_empty());
    }
}
