//! What bf16 and int8 cost in accuracy: the products' error beside `f32`, relative in the root mean
//! square, for activations and weights of Gaussian and of heavy tails.

use safelight_kernels::testing::Rng;
use safelight_kernels::{Epilogue, PackedLinear, Precision, linear};

/// The relative error of a linear layer of `inside` channels whose numbers come from `draw`.
fn error(precision: Precision, inside: usize, draw: fn(&mut Rng) -> f32) -> f64 {
    const ROWS: usize = 40;
    const OUT: usize = 96;
    let mut rng = Rng::seeded(inside as u64);
    let mut numbers = |count: usize| (0..count).map(|_| draw(&mut rng)).collect::<Vec<_>>();
    let (x, weight) = (numbers(ROWS * inside), numbers(OUT * inside));
    let run = |precision| {
        let packed = PackedLinear::with_precision(&weight, OUT, inside, precision);
        let mut out = vec![0.0; ROWS * OUT];
        linear(&x, &packed, &Epilogue::default(), &mut out);
        out
    };
    let (exact, rounded) = (run(Precision::F32), run(precision));
    let square = |x: f32| f64::from(x).powi(2);
    let off: f64 = exact.iter().zip(&rounded).map(|(x, y)| square(x - y)).sum();
    (off / exact.iter().map(|x| square(*x)).sum::<f64>()).sqrt()
}

#[test]
fn errors_are_as_documented() {
    for inside in [320, 768, 1280] {
        // Both sides are rounded with relative errors uniform up to 2⁻⁸: √2 · 2⁻⁸/√3 at most.
        let bf16 = 2f64.powi(-8) * (2f64 / 3.0).sqrt();
        // Both sides are rounded to a step of 1/127 of the largest of some 320 numbers, about 3
        // times the root mean square of Gaussian ones, 9 times of heavy-tailed ones: √2 · largest / 127 / √12.
        let int8 = |largest: f64| largest / 127.0 * (2f64 / 12.0).sqrt();
        for (name, draw, limits) in [
            (
                "Gaussian",
                Rng::normal as fn(&mut Rng) -> f32,
                [bf16, int8(3.3)],
            ),
            ("heavy-tailed", Rng::heavy_tailed, [bf16, int8(10.0)]),
        ] {
            for (precision, limit) in [Precision::Bf16, Precision::Int8].into_iter().zip(limits) {
                let error = error(precision, inside, draw);
                eprintln!(
                    "{precision}, {inside} channels, {name}: {error:.2e}, at most {limit:.2e}"
                );
                assert!(
                    error <= limit,
                    "{precision}, {inside}, {name}: {error:e} > {limit:e}"
                );
            }
        }
    }
}
