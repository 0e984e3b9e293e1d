//! Convolutions in transformed tiles, at every level this machine has, against the definition in f64.

#![expect(
    clippy::needless_range_loop,
    reason = "small matrices are written as the formulas have them"
)]

mod emulated;

use emulated::levels;
use safelight_kernels::conv::conv2d_at;
use safelight_kernels::testing::{Rng, with_threads};
use safelight_kernels::{
    Activation, Algorithm, ConvShape, Epilogue, Extent, Level, PackedConv, Padding, Precision,
};

const TILES: [(Algorithm, &Matrices); 2] =
    [(Algorithm::Winograd2, &F2), (Algorithm::Winograd4, &F4)];

/// Bᵀ, G and Aᵀ of arXiv:1509.09308, §4.1 and §4.3.
struct Matrices {
    inputs: &'static [&'static [f64]],
    kernel: &'static [&'static [f64]],
    outputs: &'static [&'static [f64]],
}

const F2: Matrices = Matrices {
    inputs: &[
        &[1.0, 0.0, -1.0, 0.0],
        &[0.0, 1.0, 1.0, 0.0],
        &[0.0, -1.0, 1.0, 0.0],
        &[0.0, 1.0, 0.0, -1.0],
    ],
    kernel: &[
        &[1.0, 0.0, 0.0],
        &[0.5, 0.5, 0.5],
        &[0.5, -0.5, 0.5],
        &[0.0, 0.0, 1.0],
    ],
    outputs: &[&[1.0, 1.0, 1.0, 0.0], &[0.0, 1.0, -1.0, -1.0]],
};

const F4: Matrices = Matrices {
    inputs: &[
        &[4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
        &[0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
        &[0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
        &[0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
        &[0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
        &[0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
    ],
    kernel: &[
        &[1.0 / 4.0, 0.0, 0.0],
        &[-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
        &[-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
        &[1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
        &[1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
        &[0.0, 0.0, 1.0],
    ],
    outputs: &[
        &[1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
        &[0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
        &[0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
        &[0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
    ],
};

/// |M| x |M|ᵀ for the `side` × `side` numbers x.
fn sandwich(matrix: &[&[f64]], side: usize, x: impl Fn(usize, usize) -> f64) -> Vec<Vec<f64>> {
    let entry = |a: &[f64], b: &[f64]| {
        let terms = (0..side * side).map(|at| (at / side, at % side));
        terms.map(|(i, j)| a[i].abs() * x(i, j) * b[j].abs()).sum()
    };
    let row = |a: &&[f64]| matrix.iter().map(|b| entry(a, b)).collect();
    matrix.iter().map(row).collect()
}

struct Case {
    extent: Extent,
    /// Rows and columns after the nearest-neighbour resize.
    size: (usize, usize),
    shape: ConvShape,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    image_bias: Vec<f32>,
    residual: Vec<f32>,
}

impl Case {
    fn new(
        seed: u64,
        (batch, height, width): (usize, usize, usize),
        size: (usize, usize),
        (inside, outside): (usize, usize),
        padding: Padding,
    ) -> Case {
        let mut rng = Rng::seeded(seed);
        let shape = ConvShape {
            out_channels: outside,
            in_channels: inside,
            kernel_height: 3,
            kernel_width: 3,
            stride: 1,
            padding,
        };
        let extent = Extent {
            batch,
            height,
            width,
        };
        let mut case = Case {
            extent,
            size,
            shape,
            x: rng.f32s(extent.pixels() * inside),
            weight: rng.f32s(outside * inside * 9),
            bias: rng.f32s(outside),
            image_bias: rng.f32s(batch * outside),
            residual: Vec::new(),
        };
        case.residual = rng.f32s(case.output().pixels() * outside);
        case
    }

    fn packed(&self, precision: Precision, algorithm: Algorithm) -> PackedConv {
        PackedConv::with(&self.weight, self.shape, precision, algorithm)
    }

    fn output(&self) -> Extent {
        let Padding {
            top,
            left,
            bottom,
            right,
        } = self.shape.padding;
        Extent {
            batch: self.extent.batch,
            height: self.size.0 + top + bottom - 2,
            width: self.size.1 + left + right - 2,
        }
    }

    fn run(&self, level: Level, packed: &PackedConv, epilogue: &Epilogue<'_>) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.residual.len()]; // not zeros: every element must be written
        conv2d_at(
            level,
            &self.x,
            self.extent,
            self.size,
            packed,
            epilogue,
            &mut out,
        );
        out
    }

    /// Input `channel` under a place of the padded, resized image.
    fn input(&self, image: usize, y: usize, x: usize, channel: usize) -> f64 {
        let inside = |at: usize, before: usize, new: usize, old: usize| {
            let at = at.checked_sub(before).filter(|&at| at < new)?;
            Some(at * old / new)
        };
        let Padding { top, left, .. } = self.shape.padding;
        let y = inside(y, top, self.size.0, self.extent.height);
        let x = inside(x, left, self.size.1, self.extent.width);
        y.zip(x).map_or(0.0, |(y, x)| {
            let pixel = (image * self.extent.height + y) * self.extent.width + x;
            f64::from(self.x[pixel * self.shape.in_channels + channel])
        })
    }

    fn kernel(&self, out: usize, channel: usize, y: usize, x: usize) -> f64 {
        f64::from(self.weight[((out * self.shape.in_channels + channel) * 3 + y) * 3 + x])
    }

    /// Image, row, column and output channel of every element.
    fn places(&self) -> impl Iterator<Item = (usize, usize, usize, usize)> + use<> {
        let (output, channels) = (self.output(), self.shape.out_channels);
        (0..output.pixels() * channels).map(move |at| {
            let (pixel, channel) = (at / channels, at % channels);
            let (line, column) = (pixel / output.width, pixel % output.width);
            (line / output.height, line % output.height, column, channel)
        })
    }

    /// The definition.
    fn expected(&self) -> Vec<f64> {
        let one = |(image, row, column, out)| {
            let taps = (0..self.shape.in_channels * 9).map(|at| (at / 9, at % 9 / 3, at % 3));
            let product = |(channel, y, x)| {
                let input = self.input(image, row + y, column + x, channel);
                input * self.kernel(out, channel, y, x)
            };
            taps.map(product).sum()
        };
        self.places().map(one).collect()
    }

    /// What the algorithm adds up for each output, every term made positive: |A|ᵀ[(|G| |g| |Gᵀ|) ⊙ (|Bᵀ| |d| |B|)]|A|, the
    /// size that its rounding errors are relative to (Higham 2002, §3.5).
    fn magnitude(&self, tile: &Matrices) -> Vec<f64> {
        let (side, wide) = (tile.outputs.len(), tile.inputs.len());
        let (output, outside) = (self.output(), self.shape.out_channels);
        let mut all = vec![0.0; self.residual.len()];
        for (image, row, column, out) in self.places() {
            if row % side > 0 || column % side > 0 {
                continue;
            }
            let mut sums = vec![vec![0.0; wide]; wide];
            for channel in 0..self.shape.in_channels {
                let input = |y, x| self.input(image, row + y, column + x, channel).abs();
                let inputs = sandwich(tile.inputs, wide, input);
                let weight = |y, x| self.kernel(out, channel, y, x).abs();
                let kernel = sandwich(tile.kernel, 3, weight);
                for at in 0..wide * wide {
                    let (y, x) = (at / wide, at % wide);
                    sums[y][x] += inputs[y][x] * kernel[y][x];
                }
            }
            let outputs = sandwich(tile.outputs, wide, |y, x| sums[y][x]);
            for y in 0..side.min(output.height - row) {
                for x in 0..side.min(output.width - column) {
                    let pixel = (image * output.height + row + y) * output.width + column + x;
                    all[pixel * outside + out] = outputs[y][x];
                }
            }
        }
        all
    }
}

/// Both tiles, in both precisions, at all levels.
fn check(case: &Case) {
    let expected = case.expected();
    for (algorithm, matrices) in TILES {
        let magnitude = case.magnitude(matrices);
        for precision in [Precision::F32, Precision::Bf16] {
            let packed = case.packed(precision, algorithm);
            // A position's sum is over channels; each transform adds up at most 2 · 6 numbers. Rounding to bf16
            // moves each of the two factors by at most 2⁻⁹ of itself.
            let terms = case.shape.in_channels + 36;
            let roundings = if precision == Precision::F32 {
                0.0
            } else {
                2.01 * 2f64.powi(-9)
            };
            let share = terms as f64 * f64::from(f32::EPSILON) + roundings;
            for level in levels() {
                let out = case.run(level, &packed, &Epilogue::default());
                for (at, (out, value)) in out.iter().zip(&expected).enumerate() {
                    let (off, bound) = ((f64::from(*out) - value).abs(), share * magnitude[at]);
                    assert!(
                        off <= bound,
                        "{level}, {precision}, {algorithm:?}, {:?} {:?} {:?}, element {at}: off by {off:e}, \
                         allowed {bound:e}",
                        case.shape,
                        case.extent,
                        case.size,
                    );
                }
            }
        }
    }
}

#[test]
fn odd_sizes_channels_and_paddings_agree() {
    let uneven = Padding {
        top: 2,
        left: 0,
        bottom: 1,
        right: 3,
    };
    let mut seed = 0;
    for (height, width) in [(1, 1), (1, 7), (3, 2), (4, 4), (5, 8), (9, 11)] {
        for channels in [(1, 1), (3, 16), (17, 33), (40, 3)] {
            for padding in [Padding::all(1), uneven] {
                seed += 1;
                let size = (height, width);
                check(&Case::new(
                    seed,
                    (2, height, width),
                    size,
                    channels,
                    padding,
                ));
            }
        }
    }
    check(&Case::new(
        seed,
        (1, 8, 6),
        (8, 6),
        (70, 64),
        Padding::default(),
    ));
}

#[test]
fn wide_maps_and_many_outputs_agree() {
    // More tiles in a row than a thread takes at a time (64 and 112), more panels than it takes (4 and 1).
    for (seed, (height, width), channels) in [
        (11, (3, 139), (5, 150)),
        (12, (5, 463), (4, 40)),
        (13, (7, 129), (3, 129)),
    ] {
        let extent = (1, height, width);
        check(&Case::new(
            seed,
            extent,
            (height, width),
            channels,
            Padding::all(1),
        ));
    }
}

#[test]
fn resized_inputs_agree() {
    for (seed, size) in [(1, (10, 14)), (2, (9, 13)), (3, (3, 4))] {
        check(&Case::new(seed, (2, 5, 7), size, (9, 20), Padding::all(1)));
    }
}

#[test]
fn epilogues_are_those_of_direct_convolutions() {
    let case = Case::new(5, (3, 5, 6), (5, 6), (12, 37), Padding::all(1));
    let direct = case.packed(Precision::F32, Algorithm::Direct);
    let activations = [Activation::None, Activation::Silu, Activation::Gelu];
    for (algorithm, _) in TILES {
        let packed = case.packed(Precision::F32, algorithm);
        for (choice, activation) in (0..8).flat_map(|c| activations.map(|a| (c, a))) {
            let epilogue = Epilogue {
                bias: (choice & 1 != 0).then_some(&case.bias),
                image_bias: (choice & 2 != 0).then_some(&case.image_bias),
                activation,
                residual: (choice & 4 != 0).then_some(&case.residual),
            };
            for level in levels() {
                let out = case.run(level, &packed, &epilogue);
                let direct = case.run(level, &direct, &epilogue);
                for (at, (out, direct)) in out.iter().zip(direct).enumerate() {
                    let off = (out - direct).abs();
                    assert!(
                        off < 2e-4,
                        "{level}, {algorithm:?}, {choice}, {at}: off by {off:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn threads_passes_and_batches_do_not_change_a_bit() {
    // The larger one needs several passes.
    for (size, channels) in [((1, 37, 41), (96, 40)), ((1, 150, 141), (128, 100))] {
        let (_, height, width) = size;
        let case = Case::new(6, size, (height, width), channels, Padding::all(1));
        let twice = Case {
            extent: Extent {
                batch: 2,
                ..case.extent
            },
            x: case.x.repeat(2),
            residual: case.residual.repeat(2),
            ..Case::new(6, size, (height, width), channels, Padding::all(1))
        };
        let level = safelight_kernels::level();
        for (algorithm, _) in TILES {
            for precision in [Precision::F32, Precision::Bf16] {
                let packed = case.packed(precision, algorithm);
                let run = || case.run(level, &packed, &Epilogue::default());
                let one = with_threads(1, run);
                for threads in [2, 8] {
                    assert!(
                        with_threads(threads, run) == one,
                        "{threads} threads, {algorithm:?}"
                    );
                }
                let two = twice.run(level, &packed, &Epilogue::default());
                assert!(two == one.repeat(2), "batch of 2, {algorithm:?}");
            }
        }
    }
}

#[test]
fn what_tiles_cannot_do_is_done_directly() {
    let mut case = Case::new(7, (1, 9, 8), (9, 8), (9, 20), Padding::all(1));
    let bytes = |case: &Case, precision, algorithm| case.packed(precision, algorithm).bytes();
    let direct = bytes(&case, Precision::Int8, Algorithm::Direct);
    assert_eq!(bytes(&case, Precision::Int8, Algorithm::Winograd4), direct);
    let direct = bytes(&case, Precision::F32, Algorithm::Direct);
    assert_eq!(
        bytes(&case, Precision::F32, Algorithm::Winograd4),
        4 * direct
    );
    case.shape.stride = 2;
    assert_eq!(bytes(&case, Precision::F32, Algorithm::Winograd4), direct);
}

#[test]
fn relative_errors_are_as_documented() {
    let case = Case::new(8, (1, 24, 24), (24, 24), (320, 8), Padding::all(1));
    let expected = case.expected();
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let size = norm(&mut expected.iter().copied());
    for (precision, algorithm, allowed) in [
        (Precision::F32, Algorithm::Winograd2, 2e-6),
        (Precision::F32, Algorithm::Winograd4, 6e-6),
        (Precision::Bf16, Algorithm::Winograd2, 6e-3),
        (Precision::Bf16, Algorithm::Winograd4, 3e-2),
    ] {
        let packed = case.packed(precision, algorithm);
        for level in levels() {
            let out = case.run(level, &packed, &Epilogue::default());
            let mut off = out
                .iter()
                .zip(&expected)
                .map(|(out, value)| f64::from(*out) - value);
            let relative = norm(&mut off) / size;
            println!("{algorithm:?}, {precision}, {level}: {relative:.1e}");
            assert!(
                relative < allowed,
                "{algorithm:?}, {precision}, {level}: {relative:e}"
            );
        }
    }
}
