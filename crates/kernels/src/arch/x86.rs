//! AVX2 and AVX-512 vectors.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::{Simd, Task};

/// Whether AMD made the CPU.
pub(super) fn is_amd() -> bool {
    let maker = __cpuid(0);
    (maker.ebx, maker.edx, maker.ecx) == (0x6874_7541, 0x6974_6E65, 0x444D_4163) // "AuthenticAMD"
}

/// Whether the CPU converts halves. All that have AVX2 do, but they say so apart.
pub(super) fn has_f16c() -> bool {
    is_x86_feature_detected!("f16c")
}

/// Fills `values` with as many of `halves`, little-endian.
///
/// # Safety
/// The CPU has AVX and F16C.
#[target_feature(enable = "avx,f16c")]
pub(super) unsafe fn halves_to_floats(halves: &[[[u8; 2]; 8]], values: &mut [[f32; 8]]) {
    for (halves, values) in halves.iter().zip(values) {
        // SAFETY: both are eight, and neither `loadu` nor `storeu` asks for alignment; the caller vouches for the CPU.
        unsafe {
            let halves = _mm_loadu_si128(halves.as_ptr().cast());
            _mm256_storeu_ps(values.as_mut_ptr(), _mm256_cvtph_ps(halves));
        }
    }
}

/// Runs `task` compiled for AVX2 and FMA.
///
/// # Safety
/// The CPU has both.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run_avx2<T: Task>(task: T) -> T::Output {
    task.run(Avx2(()))
}

/// Runs `task` compiled for AVX-512.
///
/// # Safety
/// The CPU has AVX2, FMA and AVX-512 F, BW, DQ and VL.
#[inline(never)]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn run_avx512<T: Task>(task: T) -> T::Output {
    task.run(Avx512::<false, false>(()))
}

/// Runs `task` compiled for AVX-512 and VNNI.
///
/// # Safety
/// The CPU has AVX2, FMA and AVX-512 F, BW, DQ, VL and VNNI.
#[inline(never)]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn run_avx512_vnni<T: Task>(task: T) -> T::Output {
    task.run(Avx512::<true, false>(()))
}

/// Runs `task` compiled for AVX-512 and BF16.
///
/// # Safety
/// The CPU has AVX2, FMA and AVX-512 F, BW, DQ, VL and BF16.
#[inline(never)]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn run_avx512_bf16<T: Task>(task: T) -> T::Output {
    task.run(Avx512::<false, true>(()))
}

/// Eight floats. Made only by [`run_avx2`], whose caller vouches for the CPU.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// Each float rounded to bf16, nearest even, as a whole number.
    #[inline(always)]
    fn upper_halves(self, x: __m256) -> __m256i {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let bits = _mm256_castps_si256(x);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let up = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
            let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, up));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
            _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC0), nan)
        }
    }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    type V = __m256;

    #[inline(always)]
    fn apart<T: Task>(self, task: T) -> T::Output {
        // SAFETY: `self` proves the instructions.
        unsafe { run_avx2(task) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> __m256 {
        let x: &[f32; 8] = x.first_chunk().expect("a whole vector");
        // SAFETY: `self` proves the instructions; `x` is 8 floats, and `loadu` asks for no alignment.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m256, x: &mut [f32]) {
        let x: &mut [f32; 8] = x.first_chunk_mut().expect("a whole vector");
        // SAFETY: `self` proves the instructions; `x` is 8 floats, and `storeu` asks for no alignment.
        unsafe { _mm256_storeu_ps(x.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn stream(self, v: __m256, x: &mut [f32]) {
        let x: &mut [f32; 8] = x.first_chunk_mut().expect("a whole vector");
        if !x.as_ptr().cast::<__m256>().is_aligned() {
            return self.store(v, x);
        }
        // SAFETY: `self` proves the instructions; `x` is 8 floats and, as was just seen, aligned. Nobody else reads it before
        // `end_streams`, for it is borrowed.
        unsafe { _mm256_stream_ps(x.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn end_streams(self) {
        // SAFETY: every x86-64 CPU has the instruction.
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn neg_mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn scale_by_power_of_2(self, a: __m256, n: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        }
    }
    #[inline(always)]
    fn reduce_add(self, a: __m256) -> f32 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn halves(self, a: __m256) -> (__m256, __m256) {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let bits = _mm256_castps_si256(a);
            let lower = _mm256_slli_epi32::<16>(bits);
            let upper = _mm256_and_si256(bits, _mm256_set1_epi32(0xFFFF_0000_u32 as i32));
            (_mm256_castsi256_ps(lower), _mm256_castsi256_ps(upper))
        }
    }
    #[inline(always)]
    fn dot_i8(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let (a, b) = (_mm256_castps_si256(a), _mm256_castps_si256(b));
            // |a| · (b with a's sign): two such products are at most 2 · 127², which `i16` holds.
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
            let sums = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(c), sums))
        }
    }
    #[inline(always)]
    fn to_bf16(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let words = _mm256_packus_epi32(self.upper_halves(a), self.upper_halves(b));
            _mm256_castsi256_ps(_mm256_permute4x64_epi64::<0b11_01_10_00>(words))
        }
    }
    #[inline(always)]
    fn join_bf16(self, low: __m256, high: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let high = _mm256_slli_epi32::<16>(self.upper_halves(high));
            _mm256_castsi256_ps(_mm256_or_si256(self.upper_halves(low), high))
        }
    }
    #[inline(always)]
    fn to_i8(self, [a, b, c, d]: [__m256; 4]) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let ab = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
            let cd = _mm256_packs_epi32(_mm256_cvtps_epi32(c), _mm256_cvtps_epi32(d));
            let words = _mm256_packs_epi16(ab, cd);
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(words, order))
        }
    }
    #[inline(always)]
    fn whole_to_float(self, a: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_cvtepi32_ps(_mm256_castps_si256(a)) }
    }
    #[inline(always)]
    fn turn_8(self, rows: [&[f32; 8]; 8]) -> [[f32; 8]; 8] {
        let mut turned = [[0.0; 8]; 8];
        // SAFETY: `self` proves the instructions.
        unsafe {
            let zero = _mm256_setzero_ps();
            let (mut pairs, mut fours) = ([zero; 8], [zero; 8]);
            // Numbers 0, 1, 4 and 5 of two rows in turn, then 2, 3, 6 and 7.
            for idx in 0..4 {
                let (a, b) = (self.load(rows[2 * idx]), self.load(rows[2 * idx + 1]));
                pairs[2 * idx] = _mm256_unpacklo_ps(a, b);
                pairs[2 * idx + 1] = _mm256_unpackhi_ps(a, b);
            }
            // Numbers 0 and 4 of four rows, then 1 and 5, 2 and 6, 3 and 7.
            for idx in 0..4 {
                let (a, b) = (
                    pairs[idx / 2 * 4 + idx % 2],
                    pairs[idx / 2 * 4 + idx % 2 + 2],
                );
                let at = idx / 2 * 4 + idx % 2 * 2;
                fours[at] = _mm256_shuffle_ps::<0b01_00_01_00>(a, b);
                fours[at + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(a, b);
            }
            for idx in 0..4 {
                let (a, b) = (fours[idx], fours[idx + 4]);
                self.store(_mm256_permute2f128_ps::<0x20>(a, b), &mut turned[idx]);
                self.store(_mm256_permute2f128_ps::<0x31>(a, b), &mut turned[idx + 4]);
            }
        }
        turned
    }
    #[inline(always)]
    fn prefetch(self, x: *const f32) {
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.cast()) }
    }
    #[inline(always)]
    fn prefetch_far(self, x: *const f32) {
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(x.cast()) }
    }
}

/// Sixteen floats, with `VNNI` or `BF16` also those instructions. Made only by [`run_avx512`],
/// [`run_avx512_vnni`] and [`run_avx512_bf16`], whose callers vouch for the CPU.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const VNNI: bool, const BF16: bool>(());

impl<const VNNI: bool, const BF16: bool> Avx512<VNNI, BF16> {
    /// Each float rounded to bf16, nearest even, as a whole number.
    #[inline(always)]
    fn upper_halves(self, x: __m512) -> __m512i {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, up));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            _mm512_mask_set1_epi32(rounded, nan, 0x7FC0)
        }
    }
}

/// 0, 16, 1, 17, 2, 18, ...
const IN_TURN: [u16; 32] = {
    let mut order = [0; 32];
    let mut idx = 0;
    while idx < 32 {
        order[idx] = (idx / 2 + idx % 2 * 16) as u16;
        idx += 1;
    }
    order
};

impl<const VNNI: bool, const BF16: bool> Simd for Avx512<VNNI, BF16> {
    const LANES: usize = 16;
    type V = __m512;
    const BYTE_OFFSET: u8 = if VNNI { 128 } else { 0 };

    #[inline(always)]
    fn apart<T: Task>(self, task: T) -> T::Output {
        // SAFETY: `self` proves the instructions.
        unsafe {
            if VNNI {
                run_avx512_vnni(task)
            } else if BF16 {
                run_avx512_bf16(task)
            } else {
                run_avx512(task)
            }
        }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> __m512 {
        let x: &[f32; 16] = x.first_chunk().expect("a whole vector");
        // SAFETY: `self` proves the instructions; `x` is 16 floats, and `loadu` asks for no alignment.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> __m512 {
        if x.len() >= 16 {
            return self.load(x);
        }
        let mask = (1u16 << x.len()) - 1;
        // SAFETY: `self` proves the instructions; lanes the mask leaves out are not read.
        unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m512, x: &mut [f32]) {
        let x: &mut [f32; 16] = x.first_chunk_mut().expect("a whole vector");
        // SAFETY: `self` proves the instructions; `x` is 16 floats, and `storeu` asks for no alignment.
        unsafe { _mm512_storeu_ps(x.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn store_partial(self, v: __m512, x: &mut [f32]) {
        if x.len() >= 16 {
            return self.store(v, x);
        }
        let mask = (1u16 << x.len()) - 1;
        // SAFETY: `self` proves the instructions; lanes the mask leaves out are not written.
        unsafe { _mm512_mask_storeu_ps(x.as_mut_ptr(), mask, v) }
    }
    #[inline(always)]
    fn stream(self, v: __m512, x: &mut [f32]) {
        let x: &mut [f32; 16] = x.first_chunk_mut().expect("a whole vector");
        if !x.as_ptr().cast::<__m512>().is_aligned() {
            return self.store(v, x);
        }
        // SAFETY: `self` proves the instructions; `x` is 16 floats and, as was just seen, aligned. Nobody else reads it before
        // `end_streams`, for it is borrowed.
        unsafe { _mm512_stream_ps(x.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn end_streams(self) {
        // SAFETY: every x86-64 CPU has the instruction.
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn neg_mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_andnot_ps(_mm512_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn scale_by_power_of_2(self, a: __m512, n: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_scalef_ps(a, n) }
    }
    #[inline(always)]
    fn reduce_add(self, a: __m512) -> f32 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    fn halves(self, a: __m512) -> (__m512, __m512) {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let bits = _mm512_castps_si512(a);
            let lower = _mm512_slli_epi32::<16>(bits);
            let upper = _mm512_and_si512(bits, _mm512_set1_epi32(0xFFFF_0000_u32 as i32));
            (_mm512_castsi512_ps(lower), _mm512_castsi512_ps(upper))
        }
    }
    #[inline(always)]
    fn dot_bf16(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        if BF16 {
            // SAFETY: `self` with `BF16` proves the instruction; any 64 bytes are a vector of bf16.
            return unsafe {
                let words = |x| transmute::<__m512, __m512bh>(x);
                _mm512_dpbf16_ps(c, words(a), words(b))
            };
        }
        let (a, b) = (self.halves(a), self.halves(b));
        self.mul_add(a.0, b.0, self.mul_add(a.1, b.1, c))
    }
    #[inline(always)]
    fn dot_i8(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions, with `VNNI` also `vpdpbusd`.
        unsafe {
            let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
            let c = _mm512_castps_si512(c);
            if VNNI {
                return _mm512_castsi512_ps(_mm512_dpbusd_epi32(c, a, b));
            }
            // |a| · (b with a's sign): two such products are at most 2 · 127², which `i16` holds.
            let negative = _mm512_movepi8_mask(a);
            let signed = _mm512_mask_sub_epi8(b, negative, _mm512_setzero_si512(), b);
            let pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(a), signed);
            let sums = _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
            _mm512_castsi512_ps(_mm512_add_epi32(c, sums))
        }
    }
    #[inline(always)]
    fn to_bf16(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            if BF16 {
                return transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(b, a));
            }
            let halves = |x| _mm512_cvtepi32_epi16(self.upper_halves(x));
            let words = _mm512_castsi256_si512(halves(a));
            _mm512_castsi512_ps(_mm512_inserti64x4::<1>(words, halves(b)))
        }
    }
    #[inline(always)]
    fn join_bf16(self, low: __m512, high: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            if BF16 {
                let apart = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                let order = transmute::<[u16; 32], __m512i>(IN_TURN);
                return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, apart));
            }
            let high = _mm512_slli_epi32::<16>(self.upper_halves(high));
            _mm512_castsi512_ps(_mm512_or_si512(self.upper_halves(low), high))
        }
    }
    #[inline(always)]
    fn to_i8(self, [a, b, c, d]: [__m512; 4]) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let bytes = |x| _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x));
            let words = _mm512_castsi128_si512(bytes(a));
            let words = _mm512_inserti32x4::<1>(words, bytes(b));
            let words = _mm512_inserti32x4::<2>(words, bytes(c));
            let words = _mm512_inserti32x4::<3>(words, bytes(d));
            let offset = _mm512_set1_epi8(Self::BYTE_OFFSET as i8);
            _mm512_castsi512_ps(_mm512_add_epi8(words, offset))
        }
    }
    #[inline(always)]
    fn whole_to_float(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_cvtepi32_ps(_mm512_castps_si512(a)) }
    }
    #[inline(always)]
    fn turn_8(self, rows: [&[f32; 8]; 8]) -> [[f32; 8]; 8] {
        // `self` proves AVX2 and FMA as well.
        Avx2(()).turn_8(rows)
    }
    #[inline(always)]
    fn prefetch(self, x: *const f32) {
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.cast()) }
    }
    #[inline(always)]
    fn prefetch_far(self, x: *const f32) {
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(x.cast()) }
    }
}
