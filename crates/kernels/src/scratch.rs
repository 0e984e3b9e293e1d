//! Memory that operations need for a moment, kept for the next one: fresh pages cost as much as
//! filling them.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use crate::arch::Aligned;

static IDLE: Mutex<Vec<Aligned>> = Mutex::new(Vec::new());

/// Buffers kept while nobody uses them: two operations at a time, with two each.
const IDLE_MAX: usize = 4;

/// A number of words whose contents are whatever they were.
pub(crate) struct Scratch {
    buffer: Aligned,
    len: usize,
}

impl Scratch {
    /// `len` words.
    pub(crate) fn take(len: usize) -> Scratch {
        let fitting = locked(|idle| {
            let fits = |buffer: &Aligned| buffer.as_slice().len() >= len;
            let sizes = idle.iter().enumerate().filter(|(_, buffer)| fits(buffer));
            let smallest = sizes.min_by_key(|(_, buffer)| buffer.as_slice().len());
            smallest
                .map(|(idx, _)| idx)
                .map(|idx| idle.swap_remove(idx))
        });
        let buffer = fitting.unwrap_or_else(|| Aligned::zeros(len));
        Scratch { buffer, len }
    }
}

impl Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.buffer.as_slice()[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer.as_mut_slice()[..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::replace(&mut self.buffer, Aligned::zeros(0));
        let freed = locked(|idle| {
            idle.push(buffer);
            // The smallest goes: the biggest serves every operation.
            let sizes = idle.iter().enumerate();
            let smallest = sizes.min_by_key(|(_, buffer)| buffer.as_slice().len());
            let (idx, _) = smallest.filter(|_| idle.len() > IDLE_MAX)?;
            Some(idle.swap_remove(idx))
        });
        drop(freed);
    }
}

/// Frees the memory that operations keep for the next one.
pub fn trim_scratch() {
    let freed = locked(std::mem::take);
    drop(freed);
}

/// Runs `body` on the idle buffers. Nothing in here panics half way, so poisoning is ignored.
fn locked<R>(body: impl FnOnce(&mut Vec<Aligned>) -> R) -> R {
    body(&mut IDLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_have_the_length_asked_for() {
        for len in [0, 7, 100, 3] {
            let mut scratch = Scratch::take(len);
            scratch.fill(1.0);
            assert_eq!(*scratch, vec![1.0; len]);
        }
        trim_scratch();
    }
}
