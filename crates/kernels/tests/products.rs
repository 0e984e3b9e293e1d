//! Linear layers and convolutions at every level this machine has, against a loop that knows
//! nothing of packing, and against each other.

use safelight_kernels::conv::conv2d_at;
use safelight_kernels::gemm::linear_at;
use safelight_kernels::testing::{Rng, sum_bound, with_threads};
use safelight_kernels::{
    Activation, ConvShape, Epilogue, Extent, Level, PackedConv, PackedLinear, Padding,
};

/// A product and what the error bound needs: the sum of its terms' magnitudes, and their count.
struct Expected {
    value: Vec<f64>,
    magnitude: Vec<f64>,
    terms: usize,
}

/// One convolution (a linear layer is one of a single pixel column) with everything it needs.
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
    packed: PackedConv,
}

impl Case {
    fn new(seed: u64, extent: Extent, size: (usize, usize), shape: ConvShape) -> Self {
        let mut rng = Rng::seeded(seed);
        let taps = shape.kernel_height * shape.kernel_width;
        let weight = rng.f32s(shape.out_channels * shape.in_channels * taps);
        let packed = PackedConv::new(&weight, shape);
        let output = packed.output(Extent {
            height: size.0,
            width: size.1,
            ..extent
        });
        Case {
            extent,
            size,
            shape,
            x: rng.f32s(extent.pixels() * shape.in_channels),
            bias: rng.f32s(shape.out_channels),
            image_bias: rng.f32s(extent.batch * shape.out_channels),
            residual: rng.f32s(output.pixels() * shape.out_channels),
            weight,
            packed,
        }
    }

    fn output(&self) -> Extent {
        self.packed.output(Extent {
            height: self.size.0,
            width: self.size.1,
            ..self.extent
        })
    }

    fn run(&self, level: Level, epilogue: &Epilogue<'_>) -> Vec<f32> {
        // Not zeros: every element must be written.
        let mut out = vec![f32::NAN; self.residual.len()];
        conv2d_at(
            level,
            &self.x,
            self.extent,
            self.size,
            &self.packed,
            epilogue,
            &mut out,
        );
        out
    }

    /// The definition, in f64: sum over the kernel's rows, columns and channels.
    fn expected(&self) -> Expected {
        let ConvShape {
            in_channels,
            out_channels,
            kernel_height,
            kernel_width,
            ..
        } = self.shape;
        let output = self.output();
        let mut value = Vec::new();
        let mut magnitude = Vec::new();
        for (image, row, column, channel) in indices(output, out_channels) {
            let (mut sum, mut sum_abs) = (0.0, 0.0);
            for ky in 0..kernel_height {
                for kx in 0..kernel_width {
                    let Some(pixel) = self.pixel(image, row, column, ky, kx) else {
                        continue;
                    };
                    for i in 0..in_channels {
                        let x = f64::from(self.x[pixel * in_channels + i]);
                        let tap = (i * kernel_height + ky) * kernel_width + kx;
                        let taps = in_channels * kernel_height * kernel_width;
                        let weight = f64::from(self.weight[channel * taps + tap]);
                        sum += x * weight;
                        sum_abs += (x * weight).abs();
                    }
                }
            }
            value.push(sum);
            magnitude.push(sum_abs);
        }
        Expected {
            value,
            magnitude,
            terms: in_channels * kernel_height * kernel_width,
        }
    }

    /// The input pixel under a kernel position; none in the padding.
    fn pixel(
        &self,
        image: usize,
        row: usize,
        column: usize,
        ky: usize,
        kx: usize,
    ) -> Option<usize> {
        let Padding { top, left, .. } = self.shape.padding;
        let y = (row * self.shape.stride + ky)
            .checked_sub(top)
            .filter(|&y| y < self.size.0)?;
        let x = (column * self.shape.stride + kx)
            .checked_sub(left)
            .filter(|&x| x < self.size.1)?;
        let y = y * self.extent.height / self.size.0;
        let x = x * self.extent.width / self.size.1;
        Some((image * self.extent.height + y) * self.extent.width + x)
    }
}

/// Image, row, column and channel of every output element, in memory order.
fn indices(output: Extent, channels: usize) -> Vec<(usize, usize, usize, usize)> {
    (0..output.pixels() * channels)
        .map(|at| {
            let (pixel, channel) = (at / channels, at % channels);
            let (line, column) = (pixel / output.width, pixel % output.width);
            (line / output.height, line % output.height, column, channel)
        })
        .collect()
}

/// Every level agrees with the definition within the bound of a sum in any order.
fn check(case: &Case) {
    let expected = case.expected();
    for level in Level::available() {
        let out = case.run(level, &Epilogue::default());
        assert_eq!(out.len(), expected.value.len());
        for (at, out) in out.iter().enumerate() {
            let (value, magnitude) = (expected.value[at], expected.magnitude[at]);
            let bound = f64::from(sum_bound(expected.terms, magnitude as f32));
            let off = (f64::from(*out) - value).abs();
            assert!(
                off <= bound,
                "{level}, {:?} {:?} {:?}, element {at}: off by {off:e}, allowed {bound:e}",
                case.shape,
                case.extent,
                case.size
            );
        }
    }
}

fn conv(
    out: usize,
    inside: usize,
    kernel: (usize, usize),
    stride: usize,
    padding: Padding,
) -> ConvShape {
    ConvShape {
        out_channels: out,
        in_channels: inside,
        kernel_height: kernel.0,
        kernel_width: kernel.1,
        stride,
        padding,
    }
}

fn extent(batch: usize, height: usize, width: usize) -> Extent {
    Extent {
        batch,
        height,
        width,
    }
}

#[test]
fn linear_layers_of_every_tail_agree() {
    let mut seed = 0;
    for rows in (1..=17).chain([33, 77, 250]) {
        for (inside, out) in [
            (1, 1),
            (5, 3),
            (16, 16),
            (33, 17),
            (192, 32),
            (193, 33),
            (70, 95),
        ] {
            seed += 1;
            let shape = conv(out, inside, (1, 1), 1, Padding::default());
            let case = Case::new(seed, extent(1, rows, 1), (rows, 1), shape);
            check(&case);

            let packed = PackedLinear::new(&case.weight, out, inside);
            for level in Level::available() {
                let mut linear = vec![f32::NAN; rows * out];
                linear_at(level, &case.x, &packed, &Epilogue::default(), &mut linear);
                assert_eq!(
                    linear,
                    case.run(level, &Epilogue::default()),
                    "{level}: conv 1×1"
                );
            }
        }
    }
}

#[test]
fn sums_of_many_blocks_agree() {
    for (seed, inside) in [(1, 400), (2, 577), (3, 1280)] {
        let shape = conv(40, inside, (1, 1), 1, Padding::default());
        check(&Case::new(seed, extent(1, 13, 1), (13, 1), shape));
        let shape = conv(33, inside / 8, (3, 3), 1, Padding::all(1));
        check(&Case::new(seed, extent(1, 5, 4), (5, 4), shape));
    }
}

#[test]
fn convolutions_agree_over_odd_sizes() {
    let mut seed = 100;
    for (height, width) in [(1, 1), (1, 7), (7, 1), (2, 3), (9, 11), (16, 16)] {
        for (inside, out) in [(1, 1), (3, 16), (4, 33), (16, 3), (33, 48)] {
            seed += 1;
            let shape = conv(out, inside, (3, 3), 1, Padding::all(1));
            check(&Case::new(
                seed,
                extent(2, height, width),
                (height, width),
                shape,
            ));
        }
    }
}

#[test]
fn kernels_strides_and_paddings_agree() {
    let mut seed = 200;
    let bottom_right = Padding {
        top: 0,
        left: 0,
        bottom: 1,
        right: 1,
    }; // VAE encoder
    let uneven = Padding {
        top: 2,
        left: 0,
        bottom: 1,
        right: 3,
    };
    for kernel in [(1, 1), (3, 3), (2, 2), (1, 3), (3, 2), (4, 4), (7, 7)] {
        for stride in [1, 2, 3] {
            for padding in [Padding::default(), Padding::all(1), bottom_right, uneven] {
                seed += 1;
                let shape = conv(17, 6, kernel, stride, padding);
                check(&Case::new(seed, extent(2, 9, 8), (9, 8), shape));
            }
        }
    }
}

#[test]
fn convolutions_after_a_resize_agree() {
    let mut seed = 300;
    for size in [(10, 14), (9, 13), (5, 7), (3, 4), (1, 1), (11, 8)] {
        for stride in [1, 2] {
            seed += 1;
            let shape = conv(20, 9, (3, 3), stride, Padding::all(1));
            check(&Case::new(seed, extent(2, 5, 7), size, shape));
        }
    }
}

#[test]
fn big_pieces_agree() {
    // More rows than one piece, more panels than one piece.
    let shape = conv(70, 8, (3, 3), 1, Padding::all(1));
    check(&Case::new(400, extent(1, 40, 37), (40, 37), shape));
    let shape = conv(1000, 64, (1, 1), 1, Padding::default());
    check(&Case::new(401, extent(1, 500, 1), (500, 1), shape));
}

/// The definition of each activation, in f64.
fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
    }
}

/// The series 2/√π Σ (-1)ⁿ x²ⁿ⁺¹ / (n! (2n+1)); good to 1e-9 for |x| < 4, and 1 beyond.
fn erf(x: f64) -> f64 {
    if x.abs() >= 4.5 {
        return x.signum();
    }
    let (mut power, mut sum) = (x, x);
    for n in 1..120 {
        power *= -x * x / f64::from(n);
        sum += power / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn every_epilogue_agrees() {
    let shape = conv(37, 12, (3, 3), 1, Padding::all(1));
    let case = Case::new(500, extent(3, 5, 4), (5, 4), shape);
    let expected = case.expected();
    let output = case.output();
    let activations = [
        Activation::None,
        Activation::Silu,
        Activation::Gelu,
        Activation::QuickGelu,
    ];
    for (choice, activation) in (0..8).flat_map(|c| activations.map(|a| (c, a))) {
        let epilogue = Epilogue {
            bias: (choice & 1 != 0).then_some(&case.bias),
            image_bias: (choice & 2 != 0).then_some(&case.image_bias),
            activation,
            residual: (choice & 4 != 0).then_some(&case.residual),
        };
        for level in Level::available() {
            let out = case.run(level, &epilogue);
            for (at, (image, _, _, channel)) in indices(output, 37).into_iter().enumerate() {
                let bias = epilogue.bias.map_or(0.0, |bias| f64::from(bias[channel]));
                let image_bias = epilogue
                    .image_bias
                    .map_or(0.0, |bias| f64::from(bias[image * 37 + channel]));
                let residual = epilogue
                    .residual
                    .map_or(0.0, |residual| f64::from(residual[at]));
                let sum = expected.value[at] + bias + image_bias;
                let value = activate(activation, sum) + residual;
                // The slopes are at most 1.13; each addition and the activation (whose erf is
                // good to 4e-7, about 4 ε) may round once more, relative to what it holds.
                let magnitude = expected.magnitude[at] + bias.abs() + image_bias.abs();
                let epsilon = f64::from(f32::EPSILON);
                let bound = 1.13 * (expected.terms + 2) as f64 * epsilon * magnitude
                    + 4.0 * epsilon * (sum.abs() + value.abs() + residual.abs());
                let off = (f64::from(out[at]) - value).abs();
                assert!(
                    off <= bound,
                    "{level}, {epilogue:?}, {at}: off by {off:e}, {bound:e}"
                );
            }
        }
    }
}

#[test]
fn thread_count_and_batch_do_not_change_a_bit() {
    for (shape, size) in [
        (conv(96, 40, (3, 3), 1, Padding::all(1)), extent(1, 37, 41)),
        (
            conv(500, 70, (1, 1), 1, Padding::default()),
            extent(1, 600, 1),
        ),
        (conv(320, 320, (3, 3), 1, Padding::all(1)), extent(1, 8, 8)),
    ] {
        let case = Case::new(600, size, (size.height, size.width), shape);
        let twice = Case {
            extent: Extent { batch: 2, ..size },
            x: case.x.repeat(2),
            ..Case::new(600, size, (size.height, size.width), shape)
        };
        let residual = case.residual.repeat(2);
        let twice = Case { residual, ..twice };
        for level in Level::available() {
            let epilogue = Epilogue {
                bias: Some(&case.bias),
                ..Epilogue::default()
            };
            let one = with_threads(1, || case.run(level, &epilogue));
            for threads in [2, 8] {
                let more = with_threads(threads, || case.run(level, &epilogue));
                assert!(one == more, "{level}, {threads} threads, {shape:?}");
            }
            let two = twice.run(level, &epilogue);
            assert!(two == one.repeat(2), "{level}, batch of 2, {shape:?}");
        }
    }
}

#[test]
fn empty_inputs_are_fine() {
    let packed = PackedLinear::new(&[1.0; 6], 2, 3);
    for level in Level::available() {
        linear_at(level, &[], &packed, &Epilogue::default(), &mut []);
    }
}
