//! Linear layers and convolutions of every precision, at every level this machine has, against a
//! loop that knows nothing of packing, and against each other.

mod emulated;

use emulated::levels;
use safelight_kernels::activation::geglu_at;
use safelight_kernels::conv::conv2d_at;
use safelight_kernels::gemm::{linear_at, linear_geglu_at};
use safelight_kernels::testing::{Rng, sum_bound, with_threads};
use safelight_kernels::{
    Activation, ConvShape, Epilogue, Extent, InMemory, Level, PackedConv, PackedGeglu,
    PackedLinear, Padding, Precision,
};

/// A product and what the error bound needs: the sum of its terms' magnitudes, and their count. The
/// terms of int8 are whole parts of the sum, whose products are added without an error.
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
    precision: Precision,
    packed: PackedConv,
}

impl Case {
    fn new(
        seed: u64,
        extent: Extent,
        size: (usize, usize),
        shape: ConvShape,
        precision: Precision,
    ) -> Self {
        let mut rng = Rng::seeded(seed);
        let taps = shape.kernel_height * shape.kernel_width;
        let weight = rng.f32s(shape.out_channels * shape.in_channels * taps);
        let packed = PackedConv::with_precision(&weight, shape, precision);
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
            precision,
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

    /// The definition, in f64: sum over the kernel's rows, columns and channels of the numbers that
    /// the precision leaves of `x` and `weight` at `level`.
    fn expected(&self, level: Level) -> Expected {
        let ConvShape {
            in_channels,
            out_channels,
            kernel_height,
            kernel_width,
            ..
        } = self.shape;
        let taps = kernel_height * kernel_width;
        let part_len = part_len(self.precision, in_channels);
        let of_left = match self.precision {
            Precision::Bf16 if !level.rounds_rows() => Precision::F32,
            precision => precision,
        };
        let outliers: Vec<bool> = match self.precision {
            Precision::Int8 => {
                let rows = self.x.chunks(in_channels);
                rows.flat_map(|row| row.chunks(part_len))
                    .flat_map(outliers)
                    .collect()
            }
            Precision::Bf16 | Precision::F32 => vec![false; self.x.len()],
        };
        let x = rounded(&self.x, &outliers, in_channels, part_len, of_left);
        let weight: Vec<f32> = (0..out_channels * taps)
            .flat_map(|at| {
                let (channel, tap) = (at / taps, at % taps);
                let at = move |i: usize| (channel * in_channels + i) * taps + tap;
                (0..in_channels).map(move |i| self.weight[at(i)])
            })
            .collect();
        let none = vec![false; weight.len()];
        let weight = rounded(&weight, &none, in_channels, part_len, self.precision);
        let mut value = Vec::new();
        let mut magnitude = Vec::new();
        // Outliers are terms of their own.
        let mut apart_max = 0;
        for (image, row, column, channel) in indices(self.output(), out_channels) {
            let (mut sum, mut sum_abs, mut apart_count) = (0.0, 0.0, 0);
            for tap in 0..taps {
                let (ky, kx) = (tap / kernel_width, tap % kernel_width);
                let Some(pixel) = self.pixel(image, row, column, ky, kx) else {
                    continue;
                };
                let outliers = &outliers[pixel * in_channels..][..in_channels];
                let x = &x[pixel * in_channels..][..in_channels];
                let weight = &weight[(channel * taps + tap) * in_channels..][..in_channels];
                let parts = x.chunks(part_len).zip(outliers.chunks(part_len));
                for ((x, outliers), weight) in parts.zip(weight.chunks(part_len)) {
                    let (mut part, mut apart) = (0.0, 0.0);
                    for ((x, outlier), weight) in x.iter().zip(outliers).zip(weight) {
                        let product = x * weight;
                        sum += product;
                        // A millionth of the terms' magnitudes for what f64 rounds here.
                        sum_abs += 1e-6 * product.abs();
                        if *outlier {
                            apart += product.abs();
                            apart_count += 1;
                        } else {
                            part += product;
                        }
                    }
                    sum_abs += part.abs() + apart;
                }
            }
            value.push(sum);
            magnitude.push(sum_abs);
            apart_max = apart_max.max(apart_count);
        }
        Expected {
            value,
            magnitude,
            // Scaling a part rounds twice more.
            terms: 2 + in_channels.div_ceil(part_len) * taps + apart_max,
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

/// Channels whose products are one term of the sum.
fn part_len(precision: Precision, channels: usize) -> usize {
    match precision {
        // What the documentation of `Precision` says, in whole words and groups of four words.
        Precision::Int8 => {
            let words = channels.div_ceil(4);
            let count = words.div_ceil(80);
            let len = words.div_ceil(count);
            4 * if count > 1 {
                len.next_multiple_of(4)
            } else {
                len
            }
        }
        Precision::Bf16 | Precision::F32 => 1,
    }
}

/// Which numbers of a left row's part are not rounded to int8, as the documentation of `Precision` says; of equals the first.
fn outliers(part: &[f32]) -> Vec<bool> {
    let square: f64 = part.iter().map(|&x| f64::from(x).powi(2)).sum();
    let limit = 5.0 * (square / part.len() as f64).sqrt();
    let mut largest: Vec<usize> = (0..part.len()).collect();
    largest.sort_by(|&a, &b| part[b].abs().total_cmp(&part[a].abs()));
    let mut outliers = vec![false; part.len()];
    for &idx in largest
        .iter()
        .take(3)
        .filter(|&&idx| f64::from(part[idx].abs()) > limit)
    {
        outliers[idx] = true;
    }
    outliers
}

/// What the precision leaves of rows of `channels` floats.
fn rounded(
    x: &[f32],
    outliers: &[bool],
    channels: usize,
    part_len: usize,
    precision: Precision,
) -> Vec<f64> {
    let parts = x.chunks(channels).flat_map(|row| row.chunks(part_len));
    let outliers = outliers
        .chunks(channels)
        .flat_map(|row| row.chunks(part_len));
    parts
        .zip(outliers)
        .flat_map(|(part, outliers)| {
            let sizes = part.iter().zip(outliers).filter(|(_, outlier)| !**outlier);
            let largest = sizes.fold(0.0f32, |largest, (x, _)| largest.max(x.abs()));
            part.iter()
                .zip(outliers)
                .map(move |(&x, outlier)| match precision {
                    Precision::Int8 if *outlier => f64::from(x),
                    Precision::F32 => f64::from(x),
                    Precision::Bf16 => {
                        // The neighbours below and above in magnitude; of a tie the even one.
                        let bits = x.to_bits() & 0xFFFF_0000;
                        let (below, above) =
                            (f32::from_bits(bits), f32::from_bits(bits + 0x1_0000));
                        let (down, up) = ((x - below).abs(), (above - x).abs());
                        let odd = bits & 0x1_0000 != 0;
                        f64::from(if up < down || (up == down && odd) {
                            above
                        } else {
                            below
                        })
                    }
                    Precision::Int8 if largest == 0.0 => 0.0,
                    Precision::Int8 => {
                        let whole = (x * (127.0 / largest)).round_ties_even();
                        f64::from(whole) * f64::from(largest / 127.0)
                    }
                })
        })
        .collect()
}

#[test]
fn outliers_are_multiplied_as_they_are() {
    let mut rng = Rng::seeded(77);
    for (kernel, channels, out) in [
        ((1, 1), 320, 33),
        ((3, 3), 40, 20),
        ((3, 3), 330, 64),
        ((1, 1), 1287, 5),
    ] {
        let shape = conv(out, channels, kernel, 1, Padding::all(kernel.0 / 2));
        let extent = Extent {
            batch: 1,
            height: 5,
            width: 9,
        };
        let mut case = Case::new(78, extent, (5, 9), shape, Precision::Int8);
        // In every pixel none, one, three or five, alike or not, the first and last channel among them.
        for (pixel, x) in case.x.chunks_exact_mut(channels).enumerate() {
            for idx in 0..[0, 1, 3, 5][pixel % 4] {
                let at = if idx < 2 {
                    idx * (channels - 1)
                } else {
                    rng.below(channels)
                };
                x[at] = [40.0, -40.0, 55.0, 40.0, -70.0][(idx + pixel / 4) % 5];
            }
        }
        check_one(&case);
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

/// Every precision at every level agrees with the definition within the bound of a sum in any order.
fn check(seed: u64, extent: Extent, size: (usize, usize), shape: ConvShape) {
    for precision in Precision::ALL {
        check_one(&Case::new(seed, extent, size, shape, precision));
    }
}

fn check_one(case: &Case) {
    let plain = case.expected(Level::Scalar);
    let native = case.expected(Level::Avx512Bf16);
    for level in levels() {
        let expected = if level.rounds_rows() { &native } else { &plain };
        let out = case.run(level, &Epilogue::default());
        assert_eq!(out.len(), expected.value.len());
        for (at, out) in out.iter().enumerate() {
            let (value, magnitude) = (expected.value[at], expected.magnitude[at]);
            let bound = f64::from(sum_bound(expected.terms, magnitude as f32));
            let off = (f64::from(*out) - value).abs();
            assert!(
                off <= bound,
                "{level}, {}, {:?} {:?} {:?}, element {at}: off by {off:e}, allowed {bound:e}",
                case.precision,
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
            for precision in Precision::ALL {
                let case = Case::new(seed, extent(1, rows, 1), (rows, 1), shape, precision);
                check_one(&case);

                let packed = PackedLinear::with_precision(&case.weight, out, inside, precision);
                for level in levels() {
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
}

#[test]
fn gates_are_those_of_a_layer_and_geglu_apart() {
    let mut rng = Rng::seeded(91);
    for (rows, inside, out) in [
        (1, 40, 16),
        (3, 33, 1),
        (7, 64, 24),
        (17, 320, 48),
        (70, 96, 400),
        (250, 37, 112),
    ] {
        let (x, weight) = (rng.f32s(rows * inside), rng.f32s(2 * out * inside));
        let bias = rng.f32s(2 * out);
        for precision in Precision::ALL {
            let packed = PackedLinear::with_precision(&weight, 2 * out, inside, precision);
            let gated = PackedGeglu::from_source(&InMemory(&weight), out, inside, precision);
            assert_eq!(gated.out_features(), out);
            for level in levels() {
                for bias in [Some(&*bias), None] {
                    let epilogue = Epilogue {
                        bias,
                        ..Epilogue::default()
                    };
                    let mut both = vec![f32::NAN; rows * 2 * out];
                    linear_at(level, &x, &packed, &epilogue, &mut both);
                    let mut expected = vec![f32::NAN; rows * out];
                    geglu_at(level, out, &both, &mut expected);
                    let mut found = vec![f32::NAN; rows * out];
                    linear_geglu_at(level, &x, &gated, bias, &mut found);
                    assert_eq!(
                        found, expected,
                        "{level}, {precision}, {rows}×{inside}→{out}"
                    );
                }
            }
        }
    }
}

#[test]
fn sums_of_many_blocks_agree() {
    for (seed, inside) in [(1, 400), (2, 577), (3, 1280)] {
        let shape = conv(40, inside, (1, 1), 1, Padding::default());
        check(seed, extent(1, 13, 1), (13, 1), shape);
        let shape = conv(33, inside / 8, (3, 3), 1, Padding::all(1));
        check(seed, extent(1, 5, 4), (5, 4), shape);
    }
}

#[test]
fn convolutions_agree_over_odd_sizes() {
    let mut seed = 100;
    for (height, width) in [(1, 1), (1, 7), (7, 1), (2, 3), (9, 11), (16, 16)] {
        for (inside, out) in [(1, 1), (3, 16), (4, 33), (16, 3), (33, 48)] {
            seed += 1;
            let shape = conv(out, inside, (3, 3), 1, Padding::all(1));
            check(seed, extent(2, height, width), (height, width), shape);
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
                check(seed, extent(2, 9, 8), (9, 8), shape);
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
            check(seed, extent(2, 5, 7), size, shape);
        }
    }
}

#[test]
fn big_pieces_agree() {
    // More rows than one piece, more panels than one piece.
    let shape = conv(70, 8, (3, 3), 1, Padding::all(1));
    check(400, extent(1, 40, 37), (40, 37), shape);
    let shape = conv(1000, 64, (1, 1), 1, Padding::default());
    check(401, extent(1, 500, 1), (500, 1), shape);
}

/// The definition of each activation, in f64.
fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
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
    for precision in Precision::ALL {
        let case = Case::new(500, extent(3, 5, 4), (5, 4), shape, precision);
        check_epilogues(&case);
    }
}

fn check_epilogues(case: &Case) {
    let output = case.output();
    let activations = [
        Activation::None,
        Activation::Relu,
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
        for level in levels() {
            let expected = case.expected(level);
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
                    "{level}, {}, {epilogue:?}, {at}: off by {off:e}, {bound:e}",
                    case.precision
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
        for precision in Precision::ALL {
            check_threads_and_batch(shape, size, precision);
        }
    }
}

fn check_threads_and_batch(shape: ConvShape, size: Extent, precision: Precision) {
    let case = Case::new(600, size, (size.height, size.width), shape, precision);
    let twice = Case {
        extent: Extent { batch: 2, ..size },
        x: case.x.repeat(2),
        residual: case.residual.repeat(2),
        ..Case::new(600, size, (size.height, size.width), shape, precision)
    };
    for level in levels() {
        let epilogue = Epilogue {
            bias: Some(&case.bias),
            ..Epilogue::default()
        };
        let one = with_threads(1, || case.run(level, &epilogue));
        for threads in [2, 8] {
            let more = with_threads(threads, || case.run(level, &epilogue));
            assert!(
                one == more,
                "{level}, {precision}, {threads} threads, {shape:?}"
            );
        }
        let two = twice.run(level, &epilogue);
        assert!(
            two == one.repeat(2),
            "{level}, {precision}, batch of 2, {shape:?}"
        );
    }
}

#[test]
fn empty_inputs_are_fine() {
    for precision in Precision::ALL {
        let packed = PackedLinear::with_precision(&[1.0; 6], 2, 3, precision);
        for level in levels() {
            linear_at(level, &[], &packed, &Epilogue::default(), &mut []);
        }
    }
}

#[test]
fn numbers_that_are_none_stay_so() {
    for precision in Precision::ALL {
        let packed = PackedLinear::with_precision(&[0.5; 40 * 33], 33, 40, precision);
        for level in levels() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = vec![1.0; 3 * 40];
                x[47] = bad;
                let mut out = vec![0.0; 3 * 33];
                linear_at(level, &x, &packed, &Epilogue::default(), &mut out);
                let (good, poisoned) = (&out[..33], &out[33..66]);
                assert!(good.iter().all(|x| (x - 20.0).abs() < 1e-4), "{good:?}");
                assert!(
                    poisoned.iter().all(|x| !x.is_finite()),
                    "{level} {precision}"
                );
            }
        }
    }
}

#[test]
fn packed_weights_shrink_with_their_precision() {
    let weight = vec![0.5; 320 * 320 * 9];
    let shape = conv(320, 320, (3, 3), 1, Padding::all(1));
    let bytes = |precision| PackedConv::with_precision(&weight, shape, precision).bytes();
    assert_eq!(bytes(Precision::F32), 4 * 320 * 320 * 9);
    assert_eq!(bytes(Precision::Bf16), 2 * 320 * 320 * 9);
    // A scale and a sum for every 320 channels.
    assert_eq!(bytes(Precision::Int8), 320 * (320 + 8) * 9);
}
