//! Where the time of a forward pass goes: seconds and arithmetic for each kind of operation.
//!
//! Off unless [`start`]ed; then every operation of [`crate::ops`] costs two looks at the clock. One profile at a time,
//! for the whole process; operations that run side by side count each its own time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Convolutions 3×3 with stride 1.
    Conv3x3,
    /// All other convolutions.
    ConvOther,
    /// Linear layers and 1×1 convolutions stored as such.
    Linear,
    /// Attention, without its projections.
    Attention,
    /// Group norm, with SiLU if it follows.
    GroupNorm,
    /// Layer norm.
    LayerNorm,
    /// Activations that are not part of another operation, GEGLU among them.
    Activation,
    /// Additions, scalings, concatenations and resizing.
    Moving,
}

impl Kind {
    /// All of them, in the order of [`Profile::rows`].
    pub const ALL: [Kind; 8] = [
        Kind::Conv3x3,
        Kind::ConvOther,
        Kind::Linear,
        Kind::Attention,
        Kind::GroupNorm,
        Kind::LayerNorm,
        Kind::Activation,
        Kind::Moving,
    ];

    /// As reports show it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Conv3x3 => "conv 3x3",
            Kind::ConvOther => "conv other",
            Kind::Linear => "linear",
            Kind::Attention => "attention",
            Kind::GroupNorm => "group norm",
            Kind::LayerNorm => "layer norm",
            Kind::Activation => "activation",
            Kind::Moving => "add, concat",
        }
    }
}

/// What one kind of operation took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// By the clock.
    pub time: Duration,
    /// Multiplications and additions of the direct algorithm (2·M·N·K of a product); 0 where memory is what counts.
    pub flops: u64,
    /// How many operations.
    pub calls: u64,
}

/// What was spent between [`start`] and [`stop`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    spent: [Spent; Kind::ALL.len()],
}

impl Profile {
    /// Each kind that occurred, in the order of [`Kind::ALL`].
    pub fn rows(&self) -> impl Iterator<Item = (Kind, Spent)> + '_ {
        let all = Kind::ALL.into_iter().zip(self.spent);
        all.filter(|(_, spent)| spent.calls > 0)
    }

    /// Multiplications and additions of all kinds.
    pub fn flops(&self) -> u64 {
        self.spent.iter().map(|spent| spent.flops).sum()
    }
}

/// Nanoseconds, operations of arithmetic and calls of each kind.
static SPENT: [[AtomicU64; 3]; Kind::ALL.len()] =
    [const { [const { AtomicU64::new(0) }; 3] }; Kind::ALL.len()];
static ON: AtomicBool = AtomicBool::new(false);

/// Begins a new profile.
pub fn start() {
    SPENT
        .iter()
        .flatten()
        .for_each(|number| number.store(0, Relaxed));
    ON.store(true, Relaxed);
}

/// Ends the profile.
pub fn stop() -> Profile {
    ON.store(false, Relaxed);
    let mut profile = Profile::default();
    for (spent, [nanoseconds, flops, calls]) in profile.spent.iter_mut().zip(&SPENT) {
        *spent = Spent {
            time: Duration::from_nanos(nanoseconds.load(Relaxed)),
            flops: flops.load(Relaxed),
            calls: calls.load(Relaxed),
        };
    }
    profile
}

/// Does `work`, and takes its time if a profile is being made.
pub(crate) fn timed<T>(kind: Kind, flops: usize, work: impl FnOnce() -> T) -> T {
    if !ON.load(Relaxed) {
        return work();
    }
    let started = Instant::now();
    let done = work();
    let nanoseconds = started.elapsed().as_nanos() as u64;
    let numbers = SPENT[kind as usize]
        .iter()
        .zip([nanoseconds, flops as u64, 1]);
    numbers.for_each(|(total, more)| {
        total.fetch_add(more, Relaxed);
    });
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epilogue, Linear, Tensor, ops};

    #[test]
    fn arithmetic_is_counted_between_start_and_stop() {
        let x = Tensor::from_slice(&[3, 2], &[1.; 6]);
        let layer = Linear::new(&[1.; 10], 5, 2, None);
        start();
        for _ in 0..4 {
            ops::linear(&x, &layer, Epilogue::default());
        }
        let profile = stop();
        let linear = profile
            .rows()
            .find(|(kind, _)| *kind == Kind::Linear)
            .expect("was called")
            .1;
        // Other tests may run meanwhile.
        assert!(
            linear.calls >= 4 && linear.flops >= 4 * 2 * 3 * 2 * 5,
            "{linear:?}"
        );
        assert!(profile.flops() >= linear.flops);
    }
}
