//! Weights out of random number generators, for networks of full size where there is no model.

use super::Weights;
use crate::load::{LoadError, Problem};

/// Weights out of a random number generator: a network to measure, not to draw with.
///
/// Values are uniform in `±sqrt(3 / inputs)`, norms and biases near one and zero, so that activations neither vanish
/// nor overflow.
pub struct RandomWeights {
    /// Two networks with the same seed have the same weights.
    pub seed: u64,
}

impl Weights for RandomWeights {
    fn check(&self, _name: &str, _shapes: &[Vec<usize>]) -> Result<(), Problem> {
        Ok(())
    }

    fn read(&self, name: &str, count: usize) -> Result<Vec<f32>, LoadError> {
        let (middle, reach) = middle_and_reach(name, count);
        let uniform = uniform(self.seed, name).take(count);
        Ok(uniform.map(|x| middle + reach * x).collect())
    }

    fn label(&self) -> String {
        format!("random weights, seed {}", self.seed)
    }
}

/// What lies between the weights of a layer and those of a norm, and how far they go to both sides.
fn middle_and_reach(name: &str, count: usize) -> (f32, f32) {
    match name {
        _ if is_norm(name) => (1.0, 0.1),
        _ if name.ends_with(".bias") => (0.0, 0.1),
        // The number of inputs is not known here; √count lies between that of the wide and the narrow layers.
        _ => (0.0, (3.0 / (count as f32).sqrt()).sqrt()),
    }
}

fn is_norm(name: &str) -> bool {
    name.contains("norm") && name.ends_with(".weight")
}

/// Numbers in -1 to 1 that follow from the seed and the name.
fn uniform(seed: u64, name: &str) -> impl Iterator<Item = f32> {
    let mut state = name
        .bytes()
        .fold(seed ^ 0x9E37_79B9_7F4A_7C15, |state, byte| {
            (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
    std::iter::repeat_with(move || {
        // splitmix64 (Steele, Lea and Flood 2014), its high 24 bits.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    })
}

/// Random weights as hard on rounding as trained ones: of [`RandomWeights`]' variance, but with the long tails of Student's t
/// with four degrees of freedom, and norms of which one channel in 256 is eight times as large as the others, so that
/// activations have channels that stand out.
///
/// Such channels are what spoils int8: Dettmers et al. 2022, arXiv:2208.07339, section 4.
pub struct HeavyTailedWeights {
    /// Two networks with the same seed have the same weights.
    pub seed: u64,
}

impl Weights for HeavyTailedWeights {
    fn check(&self, _name: &str, _shapes: &[Vec<usize>]) -> Result<(), Problem> {
        Ok(())
    }

    fn read(&self, name: &str, count: usize) -> Result<Vec<f32>, LoadError> {
        let (middle, reach) = middle_and_reach(name, count);
        // A uniform number's variance is reach²/3, that of t with four degrees 2.
        let scale = reach / 6f32.sqrt();
        let mut uniform = uniform(self.seed, name);
        let mut one = || {
            let value = middle + scale * student_t4(uniform.next().expect("endless"));
            let stands_out = is_norm(name) && uniform.next().expect("endless") < -1.0 + 2.0 / 256.0;
            if stands_out { 8.0 * value } else { value }
        };
        Ok((0..count).map(|_| one()).collect())
    }

    fn label(&self) -> String {
        format!("heavy-tailed random weights, seed {}", self.seed)
    }
}

/// The number that Student's t with four degrees of freedom is below with probability (`x` + 1) / 2, `x` in -1 to 1.
///
/// Source: Shaw 2006, "Sampling Student's T distribution – use of the inverse cumulative distribution function", Journal of
/// Computational Finance 9(4), section 3 (n = 4).
fn student_t4(x: f32) -> f32 {
    // The ends would be infinite.
    let x = f64::from(x.clamp(-0.999_999, 0.999_999));
    // α = 4 p (1 - p) with p = (x + 1) / 2.
    let alpha = 1.0 - x * x;
    let q = (alpha.sqrt().acos() / 3.0).cos() / alpha.sqrt();
    (x.signum() * 2.0 * (q - 1.0).max(0.0).sqrt()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heavy_tails_are_those_of_student() {
        // Quantiles of t with four degrees of freedom, as any table has them.
        for (p, expected) in [
            (0.5, 0.0),
            (0.75, 0.7407),
            (0.9, 1.5332),
            (0.975, 2.7764),
            (0.995, 4.6041),
        ] {
            let found = student_t4(2.0 * p - 1.0);
            assert!(
                (found - expected).abs() < 1e-3,
                "{p}: {found}, not {expected}"
            );
            assert!((student_t4(1.0 - 2.0 * p) + expected).abs() < 1e-3);
        }
        assert!(student_t4(1.0).is_finite() && student_t4(-1.0).is_finite());
        let weights = HeavyTailedWeights { seed: 3 };
        let values = weights.read("conv_in.weight", 90_000).unwrap();
        let squares = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 90_000.0;
        // As wide as the uniform ones, whose variance is 1/√count; the sample's own strays, for the fourth moment is infinite.
        assert!((0.8..1.25).contains(&(squares * 300.0)), "{squares}");
        let worst = values.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        assert!(f64::from(worst) > 8.0 * squares.sqrt(), "no tails: {worst}");
        let norms = weights.read("norm1.weight", 25_600).unwrap();
        let out = norms.iter().filter(|x| x.abs() > 4.0).count();
        assert!(
            (60..150).contains(&out),
            "{out} of 25,600 channels stand out"
        );
    }

    #[test]
    fn random_weights_follow_from_seed_and_name() {
        let read = |seed, name| RandomWeights { seed }.read(name, 1000).unwrap();
        assert_eq!(read(1, "a.weight"), read(1, "a.weight"));
        assert_ne!(read(1, "a.weight"), read(2, "a.weight"));
        assert_ne!(read(1, "a.weight"), read(1, "b.weight"));
        let mean = read(1, "norm1.weight").iter().sum::<f32>() / 1000.0;
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
    }
}
