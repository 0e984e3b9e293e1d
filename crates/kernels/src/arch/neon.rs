//! NEON vectors: what every 64-bit Arm has.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Simd, Task};

/// Runs `task` as a function of its own. Every CPU of this architecture has the instructions.
#[inline(never)]
pub(super) fn run<T: Task>(task: T) -> T::Output {
    task.run(Neon(()))
}

/// Eight floats in two registers: six rows of two such vectors, their weights and one float of the left matrix are 29 of
/// the 32 registers there are.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

/// The lower four lanes, then the upper.
type Pair = (float32x4_t, float32x4_t);

#[inline(always)]
fn both(a: Pair, f: impl Fn(float32x4_t) -> float32x4_t) -> Pair {
    (f(a.0), f(a.1))
}

#[inline(always)]
fn zip(a: Pair, b: Pair, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Pair {
    (f(a.0, b.0), f(a.1, b.1))
}

/// Each float rounded to bf16, nearest even, as a whole number.
#[inline(always)]
fn upper_halves(x: float32x4_t) -> uint32x4_t {
    // SAFETY: NEON is part of the architecture.
    unsafe {
        let bits = vreinterpretq_u32_f32(x);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let up = vaddq_u32(odd, vdupq_n_u32(0x7FFF));
        let rounded = vshrq_n_u32::<16>(vaddq_u32(bits, up));
        vbslq_u32(vceqq_f32(x, x), rounded, vdupq_n_u32(0x7FC0))
    }
}

impl Simd for Neon {
    const LANES: usize = 8;
    type V = Pair;

    #[inline(always)]
    fn apart<T: Task>(self, task: T) -> T::Output {
        run(task)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        // SAFETY: NEON is part of the architecture.
        let x = unsafe { vdupq_n_f32(x) };
        (x, x)
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> Pair {
        let x: &[f32; 8] = x.first_chunk().expect("a whole vector");
        // SAFETY: NEON is part of the architecture; `x` is 8 floats, and `vld1q` asks for no alignment.
        unsafe { (vld1q_f32(x.as_ptr()), vld1q_f32(x[4..].as_ptr())) }
    }
    #[inline(always)]
    fn store(self, v: Pair, x: &mut [f32]) {
        let x: &mut [f32; 8] = x.first_chunk_mut().expect("a whole vector");
        // SAFETY: NEON is part of the architecture; `x` is 8 floats, and `vst1q` asks for no alignment.
        unsafe {
            vst1q_f32(x.as_mut_ptr(), v.0);
            vst1q_f32(x[4..].as_mut_ptr(), v.1);
        }
    }
    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: NEON is part of the architecture.
        zip(a, b, |a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: NEON is part of the architecture.
        zip(a, b, |a, b| unsafe { vsubq_f32(a, b) })
    }
    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: NEON is part of the architecture.
        zip(a, b, |a, b| unsafe { vmulq_f32(a, b) })
    }
    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: NEON is part of the architecture.
        zip(a, b, |a, b| unsafe { vdivq_f32(a, b) })
    }
    #[inline(always)]
    fn mul_add(self, a: Pair, b: Pair, c: Pair) -> Pair {
        // SAFETY: NEON is part of the architecture.
        unsafe { (vfmaq_f32(c.0, a.0, b.0), vfmaq_f32(c.1, a.1, b.1)) }
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Pair, b: Pair, c: Pair) -> Pair {
        // SAFETY: NEON is part of the architecture.
        unsafe { (vfmsq_f32(c.0, a.0, b.0), vfmsq_f32(c.1, a.1, b.1)) }
    }
    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: NEON is part of the architecture.
        zip(a, b, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) })
    }
    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: NEON is part of the architecture.
        zip(a, b, |a, b| unsafe { vbslq_f32(vcltq_f32(a, b), a, b) })
    }
    #[inline(always)]
    fn abs(self, a: Pair) -> Pair {
        // SAFETY: NEON is part of the architecture.
        both(a, |a| unsafe { vabsq_f32(a) })
    }
    #[inline(always)]
    fn round(self, a: Pair) -> Pair {
        // SAFETY: NEON is part of the architecture.
        both(a, |a| unsafe { vrndnq_f32(a) })
    }
    #[inline(always)]
    fn scale_by_power_of_2(self, a: Pair, n: Pair) -> Pair {
        // SAFETY: NEON is part of the architecture.
        zip(a, n, |a, n| unsafe {
            let exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
            vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
        })
    }
    #[inline(always)]
    fn reduce_add(self, a: Pair) -> f32 {
        // SAFETY: NEON is part of the architecture.
        unsafe { vaddvq_f32(vaddq_f32(a.0, a.1)) }
    }
    #[inline(always)]
    fn halves(self, a: Pair) -> (Pair, Pair) {
        // SAFETY: NEON is part of the architecture.
        unsafe {
            let lower = |a| vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(a)));
            let mask = vdupq_n_u32(0xFFFF_0000);
            let upper = |a| vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), mask));
            (both(a, lower), both(a, upper))
        }
    }
    #[inline(always)]
    fn dot_i8(self, a: Pair, b: Pair, c: Pair) -> Pair {
        // SAFETY: NEON is part of the architecture.
        let dot = |a, b, c| unsafe {
            let (a, b) = (vreinterpretq_s8_f32(a), vreinterpretq_s8_f32(b));
            let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
            let high = vmull_high_s8(a, b);
            // Two products are at most 2 · 127², which `i16` holds.
            let pairs = vpaddq_s16(low, high);
            vreinterpretq_f32_s32(vpadalq_s16(vreinterpretq_s32_f32(c), pairs))
        };
        (dot(a.0, b.0, c.0), dot(a.1, b.1, c.1))
    }
    #[inline(always)]
    fn to_bf16(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: NEON is part of the architecture.
        let halves = |x| unsafe { vmovn_u32(upper_halves(x)) };
        // SAFETY: NEON is part of the architecture.
        let words =
            |x: Pair| unsafe { vreinterpretq_f32_u16(vcombine_u16(halves(x.0), halves(x.1))) };
        (words(a), words(b))
    }
    #[inline(always)]
    fn join_bf16(self, low: Pair, high: Pair) -> Pair {
        // SAFETY: NEON is part of the architecture.
        zip(low, high, |low, high| unsafe {
            let high = vshlq_n_u32::<16>(upper_halves(high));
            vreinterpretq_f32_u32(vorrq_u32(upper_halves(low), high))
        })
    }
    #[inline(always)]
    fn to_i8(self, [a, b, c, d]: [Pair; 4]) -> Pair {
        // SAFETY: NEON is part of the architecture.
        let bytes = |x: Pair| unsafe {
            let shorts = |x| vqmovn_s32(vcvtnq_s32_f32(x));
            vqmovn_s16(vcombine_s16(shorts(x.0), shorts(x.1)))
        };
        // SAFETY: NEON is part of the architecture.
        let words = |x, y| unsafe { vreinterpretq_f32_s8(vcombine_s8(bytes(x), bytes(y))) };
        (words(a, b), words(c, d))
    }
    #[inline(always)]
    fn whole_to_float(self, a: Pair) -> Pair {
        // SAFETY: NEON is part of the architecture.
        both(a, |a| unsafe { vcvtq_f32_s32(vreinterpretq_s32_f32(a)) })
    }
    #[inline(always)]
    fn prefetch(self, x: *const f32) {
        // SAFETY: a prefetch never faults, whatever the address, and changes nothing.
        unsafe {
            asm!("prfm pldl1keep, [{x}]", x = in(reg) x, options(nostack, preserves_flags, readonly));
        }
    }
    #[inline(always)]
    fn prefetch_far(self, x: *const f32) {
        // SAFETY: a prefetch never faults, whatever the address, and changes nothing.
        unsafe {
            asm!("prfm pldl2keep, [{x}]", x = in(reg) x, options(nostack, preserves_flags, readonly));
        }
    }
}
