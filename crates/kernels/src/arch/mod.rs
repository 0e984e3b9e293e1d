//! Instructions: the one place in this crate with intrinsics and raw pointers.
//!
//! A kernel is written once, safely, as a [`Task`] over a [`Simd`]; [`run`] compiles it for every
//! [`Level`] and calls the one asked for. Everything a task calls must be `#[inline(always)]`, or
//! it is compiled without the level's instructions (correct, but slow).

mod aligned;
#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(not(target_arch = "x86_64"))]
#[path = "no_amx.rs"]
pub(crate) mod amx;
mod counting;
#[cfg(target_arch = "aarch64")]
mod neon;
mod rectangles;
mod tile;
mod words;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use aligned::Aligned;
pub(crate) use amx::MatrixTiles;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use amx::vouch_for_tiles;
pub use counting::CountingAllocator;
pub(crate) use rectangles::{Rectangle, rectangles};
pub(crate) use tile::{Multiply, OUTSIDE, Part, Runs, RunsMemory};
pub(crate) use words::{Bf16, F32, HalfBf16, Int8, Words, bf16_bits, byte_bits};

use crate::level::Level;
use crate::precision::Precision;

/// Output channels in one panel of packed weights: two vectors of the widest level.
pub(crate) const PANEL: usize = 32;

/// Bytes of an output from which on it is written past the caches: as many as most last-level caches have.
pub(crate) const STREAMED_BYTES_MIN: usize = 32 << 20;

/// Floats in the widest of all vectors.
const LANES_MAX: usize = 16;

/// Vectors of `f32` of one [`Level`]. A value of the type is the proof that the CPU has them.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Floats in a vector.
    const LANES: usize;
    /// A vector; of words where a method says so, as the bits of floats.
    type V: Copy;
    /// What is added to the bytes of int8 left words: 128 where the CPU multiplies unsigned bytes
    /// by signed ones, or 0.
    const BYTE_OFFSET: u8 = 0;

    /// Runs a part of a kernel as a function of its own, so that it has the registers to itself.
    fn apart<T: Task>(self, task: T) -> T::Output;
    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// The first `LANES` of `x`. Panics if there are fewer.
    fn load(self, x: &[f32]) -> Self::V;
    /// Up to `LANES` from `x`, the rest 0.
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> Self::V {
        if x.len() >= Self::LANES {
            return self.load(x);
        }
        let mut whole = [0.0; LANES_MAX];
        whole[..x.len()].copy_from_slice(x);
        self.load(&whole)
    }
    /// Writes the first `LANES` of `x`. Panics if there are fewer.
    fn store(self, v: Self::V, x: &mut [f32]);
    /// Writes as many lanes as `x` has, at most `LANES`.
    #[inline(always)]
    fn store_partial(self, v: Self::V, x: &mut [f32]) {
        if x.len() >= Self::LANES {
            return self.store(v, x);
        }
        let mut whole = [0.0; LANES_MAX];
        self.store(v, &mut whole);
        x.copy_from_slice(&whole[..x.len()]);
    }
    /// Writes the first `LANES` of `x` past the caches, where the CPU can and `x` begins a vector's worth of memory: for what
    /// would not stay in them until it is read. [`Simd::end_streams`] must follow. Panics if there are fewer.
    #[inline(always)]
    fn stream(self, v: Self::V, x: &mut [f32]) {
        self.store(v, x);
    }
    /// After it, other threads that are told of it see what was streamed.
    #[inline(always)]
    fn end_streams(self) {}
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
    /// The two bf16 of each word as floats, the lower halves first.
    fn halves(self, a: Self::V) -> (Self::V, Self::V);
    /// c + Σ a · b over the two bf16 of each word, the upper first. Where the CPU has an
    /// instruction for it, numbers below 2⁻¹²⁶ count as 0.
    #[inline(always)]
    fn dot_bf16(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let (a, b) = (self.halves(a), self.halves(b));
        let c = self.mul_add(a.1, b.1, c);
        self.mul_add(a.0, b.0, c)
    }
    /// c + Σ (a - [`Simd::BYTE_OFFSET`]) · b over the four bytes of each word, in `i32`, short of
    /// the offset's part: Σ offset · b is left in. Signed bytes are -127..=127.
    fn dot_i8(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Words of bf16, each float rounded to nearest even: first all of `a`, then all of `b`.
    fn to_bf16(self, a: Self::V, b: Self::V) -> Self::V;
    /// Words of two bf16, lane by lane: `low` rounded to nearest even in the lower half, `high` in the upper.
    fn join_bf16(self, low: Self::V, high: Self::V) -> Self::V;
    /// Words of int8, each float, of magnitude at most 127, rounded to nearest even and
    /// [`Simd::BYTE_OFFSET`] added: first all of `x[0]`, then all of `x[1]`, ...
    fn to_i8(self, x: [Self::V; 4]) -> Self::V;
    /// The `f32` nearest to each `i32`.
    fn whole_to_float(self, a: Self::V) -> Self::V;
    /// Rows of eight as columns: result `i` has number `i` of each.
    #[inline(always)]
    fn turn_8(self, rows: [&[f32; 8]; 8]) -> [[f32; 8]; 8] {
        std::array::from_fn(|i| rows.map(|row| row[i]))
    }
    /// Asks for the cache line of `x` to come to the first-level cache; wherever `x` points.
    fn prefetch(self, x: *const f32);
    /// Asks for the cache line of `x` to come to the second-level cache; wherever `x` points.
    fn prefetch_far(self, x: *const f32);
}

/// Whether this CPU's instructions for bf16 do more products a second than those for `f32`: AMD's
/// do twice as many (Zen 4 and later), Intel's half as many (measured on Sapphire Rapids, whose
/// quick ones are AMX's), others' are not known.
pub(crate) fn bf16_is_quick() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        x86::is_amd()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Converts the first of `halves`, little-endian, with the CPU's own instruction where `level` has one; gives how many.
pub(crate) fn halves_to_floats(level: Level, halves: &[[u8; 2]], values: &mut [f32]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if level != Level::Scalar && x86::has_f16c() {
        assert!(level.is_supported(), "{level}");
        let (halves, values) = (halves.as_chunks().0, values.as_chunks_mut().0);
        // SAFETY: F16C was just found, and every level but the plain one has AVX2, which goes with AVX.
        unsafe { x86::halves_to_floats(halves, values) };
        return 8 * halves.len().min(values.len());
    }
    let _ = (level, halves, values);
    0
}

/// A kernel, written over any [`Simd`]. Mark `run` `#[inline(always)]`.
pub(crate) trait Task {
    /// What it gives back.
    type Output;
    /// Which words it multiplies: says which instructions it gains from.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "other architectures have one set of instructions")
    )]
    const PRECISION: Precision = Precision::F32;
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
        #[cfg(target_arch = "aarch64")]
        Level::Neon => neon::run(task),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `is_supported` has just found AVX2 and FMA.
        Level::Avx2 => unsafe { x86::run_avx2(task) },
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni | Level::Avx512Bf16 | Level::Amx
            if matches!(T::PRECISION, Precision::Int8) =>
        {
            // SAFETY: `is_supported` has just found AVX-512 F, BW, DQ, VL and VNNI.
            unsafe { x86::run_avx512_vnni(task) }
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `is_supported` has just found AVX-512 F, BW, DQ, VL and BF16.
        Level::Avx512Bf16 | Level::Amx if matches!(T::PRECISION, Precision::Bf16) => unsafe {
            x86::run_avx512_bf16(task)
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `is_supported` has just found AVX-512 F, BW, DQ and VL.
        Level::Avx512 | Level::Avx512Vnni | Level::Avx512Bf16 | Level::Amx => unsafe {
            x86::run_avx512(task)
        },
        #[cfg(target_arch = "x86_64")]
        Level::Neon => unreachable!("not supported, as asserted above"),
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
    fn halves(self, a: f32) -> (f32, f32) {
        let bits = a.to_bits();
        (
            f32::from_bits(bits << 16),
            f32::from_bits(bits & 0xFFFF_0000),
        )
    }
    #[inline(always)]
    fn dot_i8(self, a: f32, b: f32, c: f32) -> f32 {
        let mut sum = c.to_bits() as i32;
        for shift in [0, 8, 16, 24] {
            let byte = |x: f32| i32::from((x.to_bits() >> shift) as u8 as i8);
            sum += byte(a) * byte(b);
        }
        f32::from_bits(sum as u32)
    }
    #[inline(always)]
    fn to_bf16(self, a: f32, b: f32) -> f32 {
        f32::from_bits(bf16_bits(b) << 16 | bf16_bits(a))
    }
    #[inline(always)]
    fn join_bf16(self, low: f32, high: f32) -> f32 {
        self.to_bf16(low, high)
    }
    #[inline(always)]
    fn to_i8(self, x: [f32; 4]) -> f32 {
        let [a, b, c, d] = x.map(byte_bits);
        f32::from_bits(d << 24 | c << 16 | b << 8 | a)
    }
    #[inline(always)]
    fn whole_to_float(self, a: f32) -> f32 {
        a.to_bits() as i32 as f32
    }
    #[inline(always)]
    fn prefetch(self, _x: *const f32) {}
    #[inline(always)]
    fn prefetch_far(self, _x: *const f32) {}
}
