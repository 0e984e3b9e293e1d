//! Torch's CPU generator: the Mersenne Twister, and torch's three ways of making normal numbers from it.

use super::mathfun;

const STATE_COUNT: usize = 624;
const SHIFT: usize = 397;
/// Normal numbers are made in groups of this many; fewer in all take another path.
const GROUP: usize = 16;

/// Torch's CPU generator after `manual_seed`: same seed and same calls, same numbers.
///
/// Source: Matsumoto and Nishimura 1998, "Mersenne Twister", for the integers (initialisation of 2002); torch's
/// `DistributionTemplates.h` and `DistributionsHelper.h` for what is made of them.
#[derive(Clone, Debug)]
pub struct TorchRng {
    state: [u32; STATE_COUNT],
    next_idx: usize,
    /// The second half of a Box-Muller pair of the small path, kept for its next number.
    cached_normal: Option<f64>,
}

impl TorchRng {
    /// A generator as after `torch.Generator().manual_seed(seed)`; only the low 32 bits of the seed count.
    pub fn seeded(seed: u64) -> Self {
        let mut state = [0u32; STATE_COUNT];
        state[0] = seed as u32;
        for idx in 1..STATE_COUNT {
            let previous = state[idx - 1];
            state[idx] = 1_812_433_253u32
                .wrapping_mul(previous ^ (previous >> 30))
                .wrapping_add(idx as u32);
        }
        TorchRng {
            state,
            next_idx: STATE_COUNT,
            cached_normal: None,
        }
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next_idx == STATE_COUNT {
            self.refill();
        }
        let mut bits = self.state[self.next_idx];
        self.next_idx += 1;
        bits ^= bits >> 11;
        bits ^= (bits << 7) & 0x9D2C_5680;
        bits ^= (bits << 15) & 0xEFC6_0000;
        bits ^ (bits >> 18)
    }

    /// The next value of `torch.rand` in float32: a multiple of 2⁻²⁴ in `[0, 1)`.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u32() & 0x00FF_FFFF) as f32 * (1.0 / 16_777_216.0)
    }

    /// The next float64 uniform: a multiple of 2⁻⁵³ in `[0, 1)`, the first 32 bits drawn being the high ones.
    pub fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.next_u32());
        let low = u64::from(self.next_u32());
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Fills `out` as one call of `torch.randn` for that many float32 values does.
    ///
    /// 16 values or more: uniforms fill the whole of `out`, then each group of 16 is turned into 8 Box-Muller pairs in
    /// place; if the last group is short, the last 16 values are drawn again. Fewer than 16: Box-Muller pairs in
    /// double precision, one half kept for later.
    pub fn randn(&mut self, out: &mut [f32]) {
        if out.len() < GROUP {
            for value in out {
                *value = self.normal_f64() as f32;
            }
            return;
        }
        for value in out.iter_mut() {
            *value = self.uniform();
        }
        let (groups, rest) = out.as_chunks_mut::<GROUP>();
        for group in groups {
            normals_of_uniforms(group);
        }
        if !rest.is_empty() {
            let last: &mut [f32; GROUP] = out.last_chunk_mut().expect("at least 16 values");
            for value in last.iter_mut() {
                *value = self.uniform();
            }
            normals_of_uniforms(last);
        }
    }

    /// One normal number of the small path.
    fn normal_f64(&mut self) -> f64 {
        if let Some(cached) = self.cached_normal.take() {
            return cached;
        }
        let angle = 2.0 * std::f64::consts::PI * self.uniform_f64();
        let radius = (-2.0 * (-self.uniform_f64()).ln_1p()).sqrt();
        self.cached_normal = Some(radius * angle.sin());
        radius * angle.cos()
    }

    fn refill(&mut self) {
        for idx in 0..STATE_COUNT {
            let joined = (self.state[idx] & 0x8000_0000)
                | (self.state[(idx + 1) % STATE_COUNT] & 0x7FFF_FFFF);
            let twist = if joined & 1 == 0 { 0 } else { 0x9908_B0DF };
            self.state[idx] = self.state[(idx + SHIFT) % STATE_COUNT] ^ (joined >> 1) ^ twist;
        }
        self.next_idx = 0;
    }
}

/// Box-Muller on eight pairs `(u[j], u[j + 8])`, in place.
fn normals_of_uniforms(group: &mut [f32; GROUP]) {
    for j in 0..GROUP / 2 {
        let radius = (-2.0 * mathfun::ln(1.0 - group[j])).sqrt();
        let (sin, cos) = mathfun::sin_cos(std::f32::consts::TAU * group[j + 8]);
        group[j] = radius * cos;
        group[j + 8] = radius * sin;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn randn(seed: u64, count: usize) -> Vec<f32> {
        let mut values = vec![0.0; count];
        TorchRng::seeded(seed).randn(&mut values);
        values
    }

    /// The integers are those of the reference implementation, `init_genrand(5489)`.
    #[test]
    fn integers_of_the_reference_implementation() {
        let mut rng = TorchRng::seeded(5489);
        assert_eq!(rng.next_u32(), 3_499_211_612);
        let ten_thousandth = (0..9_999).map(|_| rng.next_u32()).last();
        assert_eq!(ten_thousandth, Some(4_123_659_995)); // C++ standard, [rand.predef]
    }

    #[test]
    fn torch_vectors() {
        let sum = |values: &[f32]| values.iter().map(|&v| f64::from(v)).sum::<f64>();
        let check = |values: &[f32], expected: &[f32]| {
            for (value, want) in values.iter().zip(expected) {
                assert!((value - want).abs() < 1e-5, "{value} instead of {want}");
            }
        };
        let mut rng = TorchRng::seeded(0);
        let mut values = vec![0.0; 4 * 64 * 64];
        rng.randn(&mut values);
        check(&values, &[-1.12584, -1.15236, -0.250579, -0.433879]);
        check(
            &values[16380..],
            &[-1.040714, 0.090784, -1.36647, -1.078208],
        );
        assert!((sum(&values) - -124.1127).abs() < 1e-3);
        rng.randn(&mut values);
        check(&values, &[-0.551836, 1.539807, 1.003559, -0.794789]);
        assert!((sum(&values) - -286.8966).abs() < 1e-3);
        let values = randn(42, 4 * 64 * 64);
        check(&values, &[1.926915, 1.487284, 0.900717, -2.105521]);
        assert!((sum(&values) - 149.7648).abs() < 1e-3);
        let values = randn(1_234_567_890, 4 * 64 * 64);
        check(&values, &[0.669828, -0.002884, 0.232806, -0.508514]);
        assert!((sum(&values) - 122.8987).abs() < 1e-3);
        for (value, want) in randn(0, 3).into_iter().zip([1.5410, -0.2934, -2.1788]) {
            assert!((value - want).abs() < 1e-4, "{value} instead of {want}");
        }
    }

    #[test]
    fn only_the_low_half_of_the_seed_counts() {
        assert_eq!(randn(7, 40), randn(7 + (3 << 32), 40));
        assert_ne!(randn(7, 40), randn(8, 40));
    }
}
