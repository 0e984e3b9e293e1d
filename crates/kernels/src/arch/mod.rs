//! Instructions: the one place in this crate with intrinsics and raw pointers.
//!
//! A kernel is written once, safely, as a [`Task`] over a [`Simd`]; [`run`] compiles it for every
//! [`Level`] and calls the one asked for. Everything a task calls must be `#[inline(always)]`, or
//! it is compiled without the level's instructions (correct, but slow).

mod aligned;
mod rectangles;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use aligned::Aligned;
pub(crate) use rectangles::{Rectangle, rectangles};
pub(crate) use tile::{Multiply, OUTSIDE, Part, Runs};

use crate::level::Level;

/// Output channels in one panel of packed weights: two vectors of the widest level.
pub(crate) const PANEL: usize = 32;

/// Vectors of `f32` of one [`Level`]. A value of the type is the proof that the CPU has them.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Floats in a vector.
    const LANES: usize;
    /// A vector.
    type V: Copy;

    /// Runs a part of a kernel as a function of its own, so that it has the registers to itself.
    fn apart<T: Task>(self, task: T) -> T::Output;
    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// The first `LANES` of `x`. Panics if there are fewer.
    fn load(self, x: &[f32]) -> Self::V;
    /// Up to `LANES` from `x`, the rest 0.
    fn load_partial(self, x: &[f32]) -> Self::V;
    /// Writes the first `LANES` of `x`. Panics if there are fewer.
    fn store(self, v: Self::V, x: &mut [f32]);
    /// Writes as many lanes as `x` has, at most `LANES`.
    fn store_partial(self, v: Self::V, x: &mut [f32]);
    /// a + b
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// a - b
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// a · b
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// a / b
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a · b + c, rounded once where the CPU can.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// c - a · b, rounded once where the CPU can.
    fn neg_mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` if either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` if either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// |a|
    fn abs(self, a: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// a · 2ⁿ for whole n in -126..=127.
    fn scale_by_power_of_2(self, a: Self::V, n: Self::V) -> Self::V;
    /// Sum of the lanes, in an order that depends on the level only.
    fn reduce_add(self, a: Self::V) -> f32;
    /// Asks for the cache line of `x` to come to the first-level cache; wherever `x` points.
    fn prefetch(self, x: *const f32);
    /// Asks for the cache line of `x` to come to the second-level cache; wherever `x` points.
    fn prefetch_far(self, x: *const f32);
}

/// A kernel, written over any [`Simd`]. Mark `run` `#[inline(always)]`.
pub(crate) trait Task {
    /// What it gives back.
    type Output;
    /// The work.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs `task` with the instructions of `level`.
///
/// # Panics
/// If this CPU does not have them.
#[inline]
pub(crate) fn run<T: Task>(level: Level, task: T) -> T::Output {
    assert!(
        level.is_supported(),
        "level {level} is not supported by this CPU"
    );
    match level {
        Level::Scalar => task.run(Scalar),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `is_supported` has just found AVX2 and FMA.
        Level::Avx2 => unsafe { x86::run_avx2(task) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `is_supported` has just found AVX-512 F, BW, DQ and VL.
        Level::Avx512 => unsafe { x86::run_avx512(task) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("not supported, as asserted above"),
    }
}

/// One float at a time, on any CPU: the specification.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Simd for Scalar {
    const LANES: usize = 1;
    type V = f32;

    #[inline(always)]
    fn apart<T: Task>(self, task: T) -> T::Output {
        task.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> f32 {
        x[0]
    }
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> f32 {
        x.first().copied().unwrap_or(0.0)
    }
    #[inline(always)]
    fn store(self, v: f32, x: &mut [f32]) {
        x[0] = v;
    }
    #[inline(always)]
    fn store_partial(self, v: f32, x: &mut [f32]) {
        if let Some(first) = x.first_mut() {
            *first = v;
        }
    }
    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a * b + c // not `f32::mul_add`: without the instruction that is a slow library call
    }
    #[inline(always)]
    fn neg_mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        c - a * b
    }
    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    #[inline(always)]
    fn min(self, a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }
    #[inline(always)]
    fn abs(self, a: f32) -> f32 {
        a.abs()
    }
    #[inline(always)]
    fn round(self, a: f32) -> f32 {
        a.round_ties_even()
    }
    #[inline(always)]
    fn scale_by_power_of_2(self, a: f32, n: f32) -> f32 {
        a * f32::from_bits(((n as i32 + 127) as u32) << 23)
    }
    #[inline(always)]
    fn reduce_add(self, a: f32) -> f32 {
        a
    }
    #[inline(always)]
    fn prefetch(self, _x: *const f32) {}
    #[inline(always)]
    fn prefetch_far(self, _x: *const f32) {}
}
