//! For tests and benches: reproducible numbers and the error bounds that tolerances come from.

use std::hint::black_box;
use std::marker::PhantomData;
use std::time::Instant;

pub use crate::arch::CountingAllocator;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use crate::arch::vouch_for_tiles;
use crate::arch::{self, Bf16, F32, HalfBf16, Int8, MatrixTiles, Simd, Task, Words};
use crate::level::Level;
use crate::precision::Precision;
use crate::words::channels_in_a_word;

/// A small generator (SplitMix64; Steele, Lea and Flood 2014); not for pictures.
pub struct Rng(u64);

impl Rng {
    /// Always the same numbers for the same seed.
    pub fn seeded(seed: u64) -> Self {
        Rng(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1), 24 bits.
    pub fn f32(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// `count` of [`Rng::f32`].
    pub fn f32s(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.f32()).collect()
    }

    /// Normal, of variance 1 (the sum of twelve uniform numbers: no tail beyond 6).
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.f32()).sum::<f32>() / 2.0
    }

    /// Student's t with 3 degrees of freedom: tails as heavy as activations have, variance 3.
    pub fn heavy_tailed(&mut self) -> f32 {
        let squares: f32 = (0..3).map(|_| self.normal().powi(2)).sum();
        self.normal() / (squares / 3.0).sqrt()
    }

    /// Uniform in `0..end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next_u64() % end as u64) as usize
    }
}

/// Σ|aᵢbᵢ|
pub fn sum_abs_products(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| (x * y).abs()).sum()
}

/// How far two sums of the same `terms` products may lie apart, in whatever order and with or
/// without fused multiply-add: 2·n·u·Σ|aᵢbᵢ| to first order, u = ε/2 (Higham 2002, §3.1).
pub fn sum_bound(terms: usize, sum_abs: f32) -> f32 {
    terms as f32 * f32::EPSILON * sum_abs
}

/// Runs `work` in a rayon pool of `count` threads.
///
/// # Panics
/// If the system gives no threads.
pub fn with_threads<T: Send>(count: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .build()
        .expect("threads")
        .install(work)
}

/// Multiply-adds a second, times two, of numbers of `precision` that one thread of this machine
/// does at `level` when nothing is read or written: the limit that benches are measured against.
pub fn peak_flops(level: Level, precision: Precision) -> f64 {
    if let Some(peak) = tiles_peak(level, precision) {
        return peak;
    }
    match precision {
        Precision::F32 => peak::<F32>(level, 1),
        Precision::Bf16 if level.rounds_rows() => peak::<Bf16>(level, 2),
        Precision::Bf16 => peak::<HalfBf16>(level, 2),
        Precision::Int8 => peak::<Int8>(level, 4),
    }
}

/// [`peak_flops`] where tiles of AMX do them.
fn tiles_peak(level: Level, precision: Precision) -> Option<f64> {
    const STEPS: usize = 20_000;
    let mut room = None;
    let mut tiles = MatrixTiles::of(level, precision, &mut room)?;
    let best = (0..20).map(|_| {
        let start = Instant::now();
        let channels = channels_in_a_word(precision);
        let products = match precision {
            Precision::Int8 => tiles.multiply_only::<Int8>(STEPS),
            _ => tiles.multiply_only::<Bf16>(STEPS),
        };
        (products * channels * 2) as f64 / start.elapsed().as_secs_f64()
    });
    Some(best.fold(0.0, f64::max))
}

fn peak<W: Words>(level: Level, channels: usize) -> f64 {
    const STEPS: usize = 200_000;
    let best = (0..20).map(|_| {
        let start = Instant::now();
        let words = PhantomData::<W>;
        let lanes = arch::run(
            level,
            RegistersOnly {
                words,
                steps: STEPS,
            },
        );
        (STEPS * CHAINS * lanes * channels * 2) as f64 / start.elapsed().as_secs_f64()
    });
    best.fold(0.0, f64::max)
}

/// Sums that do not wait for each other: more than latency × ports of any CPU we know.
const CHAINS: usize = 24;

/// Nothing but multiply-adds; gives the number of lanes.
struct RegistersOnly<W> {
    words: PhantomData<W>,
    steps: usize,
}

impl<W: Words> Task for RegistersOnly<W> {
    type Output = usize;
    const PRECISION: Precision = W::PRECISION;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> usize {
        // 10⁻³⁰ as a float and in both halves: sums stay as they are, neither tiny nor infinite.
        let y = f32::from_bits(black_box(0x0DA2_0DA2));
        let y = W::right(simd, simd.splat(y));
        let mut sums = [simd.splat(black_box(1.0)); CHAINS];
        for _ in 0..self.steps {
            for sum in &mut sums {
                // Both sides change, or what prepares them would be done once.
                *sum = W::dot(simd, |_| *sum, y, *sum);
            }
        }
        for sum in sums {
            black_box(simd.reduce_add(sum));
        }
        S::LANES
    }
}
