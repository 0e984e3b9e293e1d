//! Recycled buffers: a forward pass allocates the same few sizes again and again.
//!
//! A buffer comes back when its tensor is dropped and is handed out again with its old contents, so neither
//! the zero fill nor the page faults of fresh memory are paid twice. The smallest that is large enough serves, even
//! if it is several times as large; where none is, the largest of the others makes room for a new one. So a few buffers
//! serve all sizes of a network, and after its first pass no other asks for new ones. Small buffers go straight to
//! the allocator.

use std::collections::BTreeMap;
use std::sync::Mutex;

use safelight_kernels::Aligned;

/// Buffers below this many floats are not kept.
const POOLED_FLOATS_MIN: usize = 4096;

/// How many times larger than asked for a buffer may be: small tensors that live long must not hold the largest ones.
const OVERSIZE_MAX: usize = 8;

/// What the pool keeps while idle, unless [`set_cap_bytes`] says otherwise.
const CAP_BYTES_DEFAULT: usize = 512 << 20;

static POOL: Mutex<Pool> = Mutex::new(Pool::new(CAP_BYTES_DEFAULT));

/// Sets how many bytes of unused buffers are kept for later; more than that is freed at once.
pub fn set_cap_bytes(cap_bytes: usize) {
    let freed = locked(|pool| {
        pool.cap_bytes = cap_bytes;
        pool.shrink_to(cap_bytes)
    });
    drop(freed);
}

/// Frees every unused buffer, the kernels' own too, for example between the UNet and the VAE.
pub fn trim() {
    safelight_kernels::trim_scratch();
    let freed = locked(|pool| pool.shrink_to(0));
    drop(freed);
}

/// How many bytes of unused buffers are kept at this moment.
pub fn idle_bytes() -> usize {
    locked(|pool| pool.idle_bytes)
}

/// A buffer of at least `count` floats whose contents are whatever they were; every one must be overwritten.
pub(crate) fn take(count: usize) -> Aligned {
    if count < POOLED_FLOATS_MIN {
        return Aligned::zeros(count);
    }
    let (found, freed) = locked(|pool| pool.take(count));
    drop(freed);
    // A fresh one comes zeroed from the operating system, page by page, as it is first touched.
    found.unwrap_or_else(|| Aligned::zeros(count))
}

/// Gives a buffer back.
pub(crate) fn give(buffer: Aligned) {
    if buffer.as_slice().len() < POOLED_FLOATS_MIN {
        return;
    }
    let freed = locked(|pool| pool.give(buffer));
    drop(freed);
}

/// Runs `body` on the pool. A panic elsewhere can't leave it half changed, so poisoning is ignored.
fn locked<R>(body: impl FnOnce(&mut Pool) -> R) -> R {
    body(&mut POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

/// Idle buffers by their length.
struct Pool {
    idle: BTreeMap<usize, Vec<Aligned>>,
    idle_bytes: usize,
    cap_bytes: usize,
}

impl Pool {
    const fn new(cap_bytes: usize) -> Self {
        Pool {
            idle: BTreeMap::new(),
            idle_bytes: 0,
            cap_bytes,
        }
    }

    /// A buffer of at least `count` floats, or none and what goes instead, to be freed outside the lock.
    fn take(&mut self, count: usize) -> (Option<Aligned>, Option<Aligned>) {
        let serves = count..=count.saturating_mul(OVERSIZE_MAX);
        let len = self.idle.range(serves).next().map(|(&len, _)| len);
        if let Some(len) = len {
            return (self.remove(len), None);
        }
        let len = self.idle.range(..count).next_back().map(|(&len, _)| len);
        (None, len.and_then(|len| self.remove(len)))
    }

    /// Takes out a buffer of `len` floats.
    fn remove(&mut self, len: usize) -> Option<Aligned> {
        let same = self.idle.get_mut(&len)?;
        let buffer = same.pop()?;
        if same.is_empty() {
            self.idle.remove(&len);
        }
        self.idle_bytes -= kept_bytes(&buffer);
        Some(buffer)
    }

    /// Keeps `buffer`; returns what had to go for it, to be freed outside the lock.
    fn give(&mut self, buffer: Aligned) -> Vec<Aligned> {
        let bytes = kept_bytes(&buffer);
        if bytes > self.cap_bytes {
            return vec![buffer];
        }
        let freed = self.shrink_to(self.cap_bytes - bytes);
        self.idle_bytes += bytes;
        self.idle
            .entry(buffer.as_slice().len())
            .or_default()
            .push(buffer);
        freed
    }

    /// Takes out buffers, largest first, until at most `bytes` are kept.
    fn shrink_to(&mut self, bytes: usize) -> Vec<Aligned> {
        let mut freed = Vec::new();
        while self.idle_bytes > bytes {
            let largest = self.idle.last_key_value().map(|(&len, _)| len);
            match largest.and_then(|len| self.remove(len)) {
                Some(buffer) => freed.push(buffer),
                None => break,
            }
        }
        freed
    }
}

/// What a buffer occupies.
fn kept_bytes(buffer: &Aligned) -> usize {
    size_of_val(buffer.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_that_is_large_enough_serves() {
        let mut pool = Pool::new(1 << 30);
        for len in [10_000, 50_000, 20_000] {
            assert!(pool.give(Aligned::zeros(len)).is_empty());
        }
        let mut taken = |count| {
            let (found, freed) = pool.take(count);
            let len = |buffer: Option<Aligned>| buffer.map(|buffer| buffer.as_slice().len());
            (len(found), len(freed))
        };
        assert_eq!(taken(15_000), (Some(20_000), None));
        // 50,000 is more than eight times as much, 10,000 makes room for something larger than all.
        assert_eq!(taken(6_000), (Some(10_000), None));
        assert_eq!(taken(6_000), (None, None));
        assert_eq!(taken(60_000), (None, Some(50_000)));
        assert_eq!(taken(60_000), (None, None));
        assert_eq!(pool.idle_bytes, 0);
    }

    #[test]
    fn a_buffer_returns_and_the_cap_holds() {
        let mut pool = Pool::new(100_000);
        assert!(pool.give(Aligned::zeros(8192)).is_empty());
        assert_eq!(pool.idle_bytes, 32_768);
        let (found, freed) = pool.take(8192);
        assert_eq!(
            (found.map(|buffer| buffer.as_slice().len()), freed.is_none()),
            (Some(8192), true)
        );
        assert_eq!(pool.idle_bytes, 0);

        for _ in 0..10 {
            pool.give(Aligned::zeros(8192));
            assert!(pool.idle_bytes <= pool.cap_bytes);
        }
        assert_eq!(pool.idle_bytes, 3 * 32_768);
        let freed = pool.give(Aligned::zeros(32_768));
        assert_eq!(freed.len(), 1, "larger than the cap: freed at once");
        assert_eq!(pool.shrink_to(0).len(), 3);
        assert_eq!(pool.idle_bytes, 0);
    }

    /// Buffers in use and idle at most, while the sizes of a network come and go three times.
    #[test]
    fn few_buffers_serve_many_sizes() {
        let (mut pool, mut all, mut most) = (Pool::new(1 << 30), 0, 0);
        for pass in 0..3 {
            let mut fresh = 0;
            for level in [1, 2, 4, 8, 4, 2, 1] {
                let mut held = Vec::new();
                for times in [3, 1, 1, 8, 2, 4] {
                    let count = 48_000 * times / level;
                    let (found, freed) = pool.take(count);
                    all -= freed.map_or(0, |buffer| buffer.as_slice().len());
                    held.push(found.unwrap_or_else(|| {
                        fresh += 1;
                        all += count;
                        Aligned::zeros(count)
                    }));
                    most = most.max(all);
                }
                held.into_iter().for_each(|buffer| drop(pool.give(buffer)));
            }
            assert!(
                pass == 0 || fresh == 0,
                "{fresh} new buffers in pass {pass}"
            );
        }
        let at_once = 48_000 * (3 + 1 + 1 + 8 + 2 + 4);
        assert!(most <= at_once * 5 / 4, "{most} floats for {at_once}");
    }

    #[test]
    fn threads_share_the_pool() {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for round in 0..200 {
                        let mut buffer = take(5000 + 97 * round);
                        buffer.as_mut_slice().fill(thread as f32);
                        assert!(
                            buffer
                                .as_slice()
                                .iter()
                                .all(|&value| value == thread as f32)
                        );
                        give(buffer);
                    }
                });
            }
        });
    }
}
