//! Torch's CUDA generator, computed on the CPU: what A1111 calls the "NV" random numbers.

/// A counter-based generator: value `i` of call `n` depends on seed, `n` and `i` only.
///
/// Equal to torch on CUDA while one call has no more values than that kernel has threads (about a million); A1111's
/// "NV" source makes the same simplification.
///
/// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", Philox4x32-10; the counter layout and
/// the conversion to normal numbers are those of cuRAND.
#[derive(Clone, Debug)]
pub struct PhiloxRng {
    seed: u64,
    call_count: u32,
}

impl PhiloxRng {
    /// A generator as after `torch.cuda.manual_seed(seed)`; all 64 bits of the seed count.
    pub fn seeded(seed: u64) -> Self {
        PhiloxRng {
            seed,
            call_count: 0,
        }
    }

    /// Fills `out` as one `randn` call on a CUDA device does.
    ///
    /// # Panics
    /// If `out` has 2³² values or more.
    pub fn randn(&mut self, out: &mut [f32]) {
        let count = u32::try_from(out.len()).expect("fewer than 2^32 values a call");
        for (idx, value) in (0..count).zip(out) {
            let bits = philox(
                [self.call_count, 0, idx, 0],
                [self.seed as u32, (self.seed >> 32) as u32],
            );
            *value = normal(bits[0], bits[1]);
        }
        self.call_count = self.call_count.wrapping_add(1);
    }
}

/// Ten rounds of Philox4x32.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [
                key[0].wrapping_add(0x9E37_79B9),
                key[1].wrapping_add(0xBB67_AE85),
            ];
        }
        let first = u64::from(counter[0]) * 0xD251_1F53;
        let second = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
    }
    counter
}

/// Box-Muller as cuRAND does it; the sine half is the one torch takes for a single value.
fn normal(x: u32, y: u32) -> f32 {
    const SCALE: f32 = 2.328_306_4e-10; // 2^-32
    const SCALE_TAU: f32 = SCALE * std::f32::consts::TAU;
    let u = x as f32 * SCALE + SCALE / 2.0;
    let v = y as f32 * SCALE_TAU + SCALE_TAU / 2.0;
    // Through double precision: the same bits on every machine.
    let radius = (-2.0 * f64::from(u).ln() as f32).sqrt();
    radius * f64::from(v).sin() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn randn(seed: u64, count: usize) -> Vec<f32> {
        let mut values = vec![0.0; count];
        PhiloxRng::seeded(seed).randn(&mut values);
        values
    }

    /// The known-answer vectors published with the Random123 library.
    #[test]
    fn known_answers() {
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]
        );
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]
        );
    }

    /// The values in A1111's own documentation of its generator, and sums over whole latents.
    #[test]
    fn a1111_vectors() {
        let expected = [
            -0.92466259,
            -0.42534415,
            -2.6438457,
            0.14518388,
            -0.12086647,
            -0.57972564,
            -0.62285122,
            -0.32838709,
            -1.07454231,
            -0.36314407,
            -1.67105067,
            2.26550497,
        ];
        for (value, want) in randn(0, 12).into_iter().zip(expected) {
            assert!(
                (f64::from(value) - want).abs() < 1e-6,
                "{value} instead of {want}"
            );
        }
        let sum = |seed| {
            randn(seed, 4 * 64 * 64)
                .into_iter()
                .map(f64::from)
                .sum::<f64>()
        };
        assert!((sum(0) - -113.7939).abs() < 1e-3);
        assert!((sum(42) - 50.9345).abs() < 1e-3);
        for (value, want) in randn(1_234_567_890, 4)
            .into_iter()
            .zip([0.236178, 1.26339, -0.542224, -0.683768])
        {
            assert!((value - want).abs() < 1e-5, "{value} instead of {want}");
        }
    }

    #[test]
    fn calls_differ() {
        let mut rng = PhiloxRng::seeded(0);
        let (mut first, mut second) = (vec![0.0; 8], vec![0.0; 8]);
        rng.randn(&mut first);
        rng.randn(&mut second);
        assert_ne!(first, second);
        assert_ne!(randn(1, 8), randn(1 + (1 << 32), 8));
    }
}
