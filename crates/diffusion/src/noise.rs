//! Random numbers that equal torch's, so that a seed draws the same picture here as elsewhere.
//!
//! Two generators: [`TorchRng`] is torch's CPU generator (A1111's "CPU", diffusers' CPU generators), [`PhiloxRng`] is
//! what A1111 calls "NV", torch's CUDA generator for up to about a million values per call. [`NoiseRng`] is either.
//! Who draws what, and when, is the pipeline's business.
//!
//! Torch's CPU `randn` is not one function: its last bits depend on the instruction set it was started on. We follow
//! the one that nearly every machine of the last ten years runs (AVX2 and later), step by step in single precision
//! with fused multiply-adds, so the values here are the same on every machine, and equal to torch's bit for bit there.

mod mathfun;
mod mt19937;
mod philox;

pub use mt19937::TorchRng;
pub use philox::PhiloxRng;

/// Which of the two generators draws the noise: A1111's setting "Random number generator source".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoiseSource {
    /// Torch's CPU generator, see [`TorchRng`].
    #[default]
    Cpu,
    /// Torch's CUDA generator computed on the CPU, see [`PhiloxRng`].
    Nv,
}

impl NoiseSource {
    /// A1111's name for it, as in the `RNG` entry of a picture's parameters.
    pub fn name(self) -> &'static str {
        match self {
            NoiseSource::Cpu => "CPU",
            NoiseSource::Nv => "NV",
        }
    }

    /// The source of this name, whatever its case; `GPU` means the same values as `NV`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "cpu" => Some(NoiseSource::Cpu),
            "nv" | "gpu" => Some(NoiseSource::Nv),
            _ => None,
        }
    }
}

/// One image's stream of normal random numbers.
///
/// ```
/// use safelight_diffusion::noise::{NoiseRng, NoiseSource};
///
/// let mut rng = NoiseRng::seeded(NoiseSource::Cpu, 0);
/// let noise = rng.randn(4 * 64 * 64); // torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
/// assert!((noise[0] - -1.12584).abs() < 1e-5);
/// ```
#[derive(Clone, Debug)]
pub enum NoiseRng {
    /// Draws as torch on a CPU does.
    Cpu(Box<TorchRng>),
    /// Draws as torch on a CUDA device does.
    Nv(PhiloxRng),
}

impl NoiseRng {
    /// A fresh stream. The CPU generator looks at the low 32 bits of `seed` only, as torch's does.
    pub fn seeded(source: NoiseSource, seed: u64) -> Self {
        match source {
            NoiseSource::Cpu => NoiseRng::Cpu(Box::new(TorchRng::seeded(seed))),
            NoiseSource::Nv => NoiseRng::Nv(PhiloxRng::seeded(seed)),
        }
    }

    /// The next `count` values of one `randn` call, in memory order (`[C, H, W]` for a latent).
    ///
    /// Calls are not splittable: two calls of 16 give other values than one of 32.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        let mut values = vec![0.0; count];
        match self {
            NoiseRng::Cpu(rng) => rng.randn(&mut values),
            NoiseRng::Nv(rng) => rng.randn(&mut values),
        }
        values
    }
}
