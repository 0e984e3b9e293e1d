//! Recycled buffers: a forward pass allocates the same few sizes again and again.
//!
//! A buffer comes back when its tensor is dropped and is handed out again with its old contents, so neither
//! the zero fill nor the page faults of fresh memory are paid twice. Sizes are rounded up to classes one
//! eighth apart, which wastes at most an eighth. Small buffers go straight to the allocator.

use std::collections::BTreeMap;
use std::sync::Mutex;

/// Buffers below this many floats are not kept.
const POOLED_FLOATS_MIN: usize = 4096;

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
pub(crate) fn take(count: usize) -> Vec<f32> {
    if count < POOLED_FLOATS_MIN {
        return vec![0.0; count];
    }
    let class = class_above(count);
    // A fresh one comes zeroed from the operating system, page by page, as it is first touched.
    locked(|pool| pool.take(class)).unwrap_or_else(|| vec![0.0; class])
}

/// Gives a buffer back.
pub(crate) fn give(mut buffer: Vec<f32>) {
    if buffer.len() < POOLED_FLOATS_MIN {
        return;
    }
    let class = class_below(buffer.len());
    buffer.truncate(class);
    let freed = locked(|pool| pool.give(class, buffer));
    drop(freed);
}

/// Runs `body` on the pool. A panic elsewhere can't leave it half changed, so poisoning is ignored.
fn locked<R>(body: impl FnOnce(&mut Pool) -> R) -> R {
    body(&mut POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

/// The smallest class holding `count` floats. Classes are `m·2ᵏ` with `8 <= m < 16`.
fn class_above(count: usize) -> usize {
    let step = class_step(count);
    count.div_ceil(step) * step
}

/// The largest class not above `count` floats.
fn class_below(count: usize) -> usize {
    let step = class_step(count);
    count / step * step
}

/// An eighth of the largest power of two not above `count`.
fn class_step(count: usize) -> usize {
    1 << (count.max(8).ilog2() - 3)
}

/// Idle buffers by class.
struct Pool {
    idle: BTreeMap<usize, Vec<Vec<f32>>>,
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

    fn take(&mut self, class: usize) -> Option<Vec<f32>> {
        let buffer = self.idle.get_mut(&class)?.pop()?;
        self.idle_bytes -= kept_bytes(&buffer);
        Some(buffer)
    }

    /// Keeps `buffer`; returns what had to go for it, to be freed outside the lock.
    fn give(&mut self, class: usize, buffer: Vec<f32>) -> Vec<Vec<f32>> {
        let bytes = kept_bytes(&buffer);
        if bytes > self.cap_bytes {
            return vec![buffer];
        }
        let freed = self.shrink_to(self.cap_bytes - bytes);
        self.idle_bytes += bytes;
        self.idle.entry(class).or_default().push(buffer);
        freed
    }

    /// Takes out buffers, largest first, until at most `bytes` are kept.
    fn shrink_to(&mut self, bytes: usize) -> Vec<Vec<f32>> {
        let mut freed = Vec::new();
        while self.idle_bytes > bytes {
            let Some(mut largest) = self.idle.last_entry() else {
                break;
            };
            match largest.get_mut().pop() {
                Some(buffer) => {
                    self.idle_bytes -= kept_bytes(&buffer);
                    freed.push(buffer);
                }
                None => {
                    largest.remove();
                }
            }
        }
        freed
    }
}

/// What a buffer really occupies.
fn kept_bytes(buffer: &Vec<f32>) -> usize {
    buffer.capacity() * size_of::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_enclose_and_waste_at_most_an_eighth() {
        for count in (1..5000).chain([65_537, 1 << 20, (1 << 20) + 1, 123_456_789]) {
            let (below, above) = (class_below(count), class_above(count));
            assert!(below <= count && count <= above, "{below} {count} {above}");
            assert!(above - count <= count.div_ceil(8), "{count} became {above}");
            assert_eq!(class_above(above), above);
            assert_eq!(class_below(above), above);
        }
    }

    #[test]
    fn a_buffer_returns_and_the_cap_holds() {
        let mut pool = Pool::new(100_000);
        assert!(pool.give(8192, vec![0.0; 8192]).is_empty());
        assert_eq!(pool.idle_bytes, 32_768);
        assert!(pool.take(9216).is_none());
        assert_eq!(pool.take(8192).map(|buffer| buffer.len()), Some(8192));
        assert_eq!(pool.idle_bytes, 0);

        for _ in 0..10 {
            pool.give(8192, vec![0.0; 8192]);
            assert!(pool.idle_bytes <= pool.cap_bytes);
        }
        assert_eq!(pool.idle_bytes, 3 * 32_768);
        assert_eq!(
            pool.give(32_768, vec![0.0; 32_768]).len(),
            1,
            "larger than the cap: freed at once"
        );
        assert_eq!(pool.shrink_to(0).len(), 3);
        assert_eq!(pool.idle_bytes, 0);
    }

    #[test]
    fn threads_share_the_pool() {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for round in 0..200 {
                        let mut buffer = take(5000 + 97 * round);
                        buffer.fill(thread as f32);
                        assert!(buffer.iter().all(|&value| value == thread as f32));
                        give(buffer);
                    }
                });
            }
        });
    }
}
