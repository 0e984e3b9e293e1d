//! Group norm (with SiLU at once, if wanted) and layer norm.
//!
//! Sums and sums of squares are taken in f64, where a float's square is exact: one pass is enough, however
//! far the mean is from zero, and memory is the limit all the same. The statistics of a level equal those of
//! any other, bit for bit. A mean is subtracted in two parts, the second one inside the shift, so nothing
//! cancels when it is applied either.

use rayon::prelude::*;

use crate::arch::{self, STREAMED_BYTES_MIN, Simd, Task};
use crate::level::{Level, level};
use crate::math;

/// Floats in a piece of work.
const PIECE: usize = 1 << 15;

/// Scale and shift of a normalisation, and what keeps it from dividing by zero.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// `[C]`, the factor after normalising (`weight` in checkpoints).
    pub gamma: &'a [f32],
    /// `[C]`, added last (`bias` in checkpoints).
    pub beta: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

/// The sizes of a group norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupShape {
    /// Images, each normalised by itself.
    pub batch: usize,
    /// Pixels (or tokens) of an image.
    pub pixels: usize,
    /// Channels of a pixel.
    pub channels: usize,
    /// Groups of consecutive channels that share mean and variance.
    pub groups: usize,
}

/// Each group of channels of each image to mean 0 and (biased) variance 1; then gamma, beta and, if `silu`,
/// x · sigmoid(x). `x` and `out` are `[B, pixels, C]`.
///
/// Source: Wu and He 2018, arXiv:1803.08494, equations 1, 2 and 5.
///
/// # Panics
/// If a length does not fit or the groups do not divide the channels.
///
/// ```
/// use safelight_kernels::norm::{Affine, GroupShape, group_norm};
///
/// let shape = GroupShape { batch: 1, pixels: 2, channels: 2, groups: 1 };
/// let norm = Affine { gamma: &[1.0, 1.0], beta: &[0.0, 10.0], eps: 0.0 };
/// let mut out = [0.0; 4];
/// group_norm(&shape, &norm, false, &[1.0, 3.0, 3.0, 1.0], &mut out);
/// assert_eq!(out, [-1.0, 11.0, 1.0, 9.0]);
/// ```
pub fn group_norm(shape: &GroupShape, norm: &Affine<'_>, silu: bool, x: &[f32], out: &mut [f32]) {
    group_norm_at(level(), shape, norm, silu, x, out);
}

/// [`group_norm`] at a level of the caller's choice, for tests and benches.
///
/// # Panics
/// As [`group_norm`], and if the CPU lacks the level.
pub fn group_norm_at(
    level: Level,
    shape: &GroupShape,
    norm: &Affine<'_>,
    silu: bool,
    x: &[f32],
    out: &mut [f32],
) {
    let GroupShape {
        batch,
        pixels,
        channels,
        groups,
    } = *shape;
    assert!(
        groups > 0 && channels > 0 && channels.is_multiple_of(groups),
        "group_norm: {shape:?}"
    );
    assert!(
        x.len() == batch * pixels * channels && out.len() == x.len(),
        "group_norm: {shape:?}, {} values to {}",
        x.len(),
        out.len()
    );
    norm.check("group_norm", channels);
    if x.is_empty() {
        return;
    }
    let streamed = size_of_val(x) >= STREAMED_BYTES_MIN;
    let coefficients = coefficients(level, shape, norm, x);
    let piece = PIECE.div_ceil(channels).min(pixels) * channels;
    let images = x.par_chunks(pixels * channels);
    out.par_chunks_mut(pixels * channels)
        .zip(images)
        .zip(&coefficients)
        .for_each(|((out, x), coefficients)| {
            out.par_chunks_mut(piece)
                .zip(x.par_chunks(piece))
                .for_each(|(out, x)| {
                    arch::run(
                        level,
                        Apply {
                            coefficients,
                            silu,
                            streamed,
                            x,
                            out,
                        },
                    );
                });
        });
}

impl Affine<'_> {
    /// # Panics
    /// If there is not one gamma and one beta for each channel.
    fn check(&self, op: &str, channels: usize) {
        assert!(
            self.gamma.len() == channels && self.beta.len() == channels,
            "{op}: {channels} channels, {} scales, {} shifts",
            self.gamma.len(),
            self.beta.len()
        );
    }
}

/// What turns an image's channels into normalised ones: `(x - center) · scale + shift`.
struct Coefficients {
    center: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

/// The coefficients of every image.
fn coefficients(
    level: Level,
    shape: &GroupShape,
    norm: &Affine<'_>,
    x: &[f32],
) -> Vec<Coefficients> {
    let GroupShape {
        pixels,
        channels,
        groups,
        ..
    } = *shape;
    let piece = PIECE.div_ceil(channels).min(pixels) * channels;
    x.par_chunks(pixels * channels)
        .map(|image| {
            let pieces: Vec<Vec<Sums>> = image
                .par_chunks(piece)
                .map(|x| arch::run(level, ChannelSums { channels, x }))
                .collect();
            let mut result = Coefficients {
                center: Vec::with_capacity(channels),
                scale: Vec::with_capacity(channels),
                shift: Vec::with_capacity(channels),
            };
            let width = channels / groups;
            for first in (0..channels).step_by(width) {
                let mut sums = Sums::default();
                for piece in &pieces {
                    piece[first..first + width]
                        .iter()
                        .for_each(|channel| sums.add(channel));
                }
                let (mean, deviation) = sums.finish((pixels * width) as f64, norm.eps);
                let center = mean as f32;
                for channel in first..first + width {
                    let scale = f64::from(norm.gamma[channel]) / deviation;
                    let rest = (f64::from(center) - mean) * scale;
                    result.center.push(center);
                    result.scale.push(scale as f32);
                    result
                        .shift
                        .push((f64::from(norm.beta[channel]) + rest) as f32);
                }
            }
            result
        })
        .collect()
}

/// Sum and sum of squares.
#[derive(Clone, Copy, Default)]
struct Sums {
    sum: f64,
    squares: f64,
}

impl Sums {
    fn add(&mut self, other: &Sums) {
        self.sum += other.sum;
        self.squares += other.squares;
    }

    /// Mean and √(variance + eps) of `count` values.
    fn finish(&self, count: f64, eps: f32) -> (f64, f64) {
        let mean = self.sum / count;
        // Rounding may take it below zero; `max` would hide a NaN, which must stay.
        let variance = self.squares / count - mean * mean;
        let variance = if variance < 0.0 { 0.0 } else { variance };
        (mean, (variance + f64::from(eps)).sqrt())
    }
}

/// Sums of every channel over the rows of `x`.
struct ChannelSums<'a> {
    channels: usize,
    x: &'a [f32],
}

impl Task for ChannelSums<'_> {
    type Output = Vec<Sums>;

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> Vec<Sums> {
        let channels = self.channels;
        let mut sums = vec![0.0f64; 2 * channels];
        let (sum, squares) = sums.split_at_mut(channels);
        // Four rows at a time: the sums are loaded and stored a quarter as often.
        let mut rows = self.x.chunks_exact(4 * channels);
        for rows in &mut rows {
            let (a, rest) = rows.split_at(channels);
            let (b, rest) = rest.split_at(channels);
            let (c, d) = rest.split_at(channels);
            let d = &d[..channels];
            for i in 0..channels {
                let row = [a[i], b[i], c[i], d[i]].map(f64::from);
                sum[i] += (row[0] + row[1]) + (row[2] + row[3]);
                squares[i] +=
                    (row[0] * row[0] + row[1] * row[1]) + (row[2] * row[2] + row[3] * row[3]);
            }
        }
        for row in rows.remainder().chunks_exact(channels) {
            for i in 0..channels {
                let x = f64::from(row[i]);
                sum[i] += x;
                squares[i] += x * x;
            }
        }
        let sums = sum.iter().zip(squares.iter());
        sums.map(|(&sum, &squares)| Sums { sum, squares }).collect()
    }
}

/// `out = (x - center)·scale + shift`, then SiLU if wanted, row by row.
struct Apply<'a> {
    coefficients: &'a Coefficients,
    silu: bool,
    /// Whether the whole output is too large to stay in a cache.
    streamed: bool,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Task for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if self.silu {
            self.rows::<S, true>(simd);
        } else {
            self.rows::<S, false>(simd);
        }
    }
}

/// SiLU, or nothing.
struct Activate<const SILU: bool>;

impl<const SILU: bool> Activate<SILU> {
    #[inline(always)]
    fn of<S: Simd>(&self, simd: S, x: S::V) -> S::V {
        if SILU { math::silu(simd, x) } else { x }
    }
}

impl Apply<'_> {
    #[inline(always)]
    fn rows<S: Simd, const SILU: bool>(self, simd: S) {
        let Coefficients {
            center,
            scale,
            shift,
        } = self.coefficients;
        let channels = center.len();
        let whole = channels / S::LANES * S::LANES;
        // Not a closure: one that is called twice is not inlined, and so not compiled for the level.
        let activate = Activate::<SILU>;
        let rows = self.x.chunks_exact(channels);
        for (x, out) in rows.zip(self.out.chunks_exact_mut(channels)) {
            for at in (0..whole).step_by(S::LANES) {
                let x = simd.sub(load_at(simd, x, at), load_at(simd, center, at));
                let y = activate.of(
                    simd,
                    simd.mul_add(x, load_at(simd, scale, at), load_at(simd, shift, at)),
                );
                if self.streamed {
                    simd.stream(y, &mut out[at..]);
                } else {
                    simd.store(y, &mut out[at..]);
                }
            }
            if whole < channels {
                let x = simd.sub(
                    simd.load_partial(&x[whole..]),
                    simd.load_partial(&center[whole..]),
                );
                let y = activate.of(
                    simd,
                    simd.mul_add(
                        x,
                        simd.load_partial(&scale[whole..]),
                        simd.load_partial(&shift[whole..]),
                    ),
                );
                simd.store_partial(y, &mut out[whole..]);
            }
        }
        if self.streamed {
            simd.end_streams();
        }
    }
}

#[inline(always)]
fn load_at<S: Simd>(simd: S, from: &[f32], at: usize) -> S::V {
    simd.load(&from[at..at + S::LANES])
}

/// Every row of `x` to mean 0 and (biased) variance 1, then gamma and beta; a row is as long as gamma.
///
/// Source: Ba et al. 2016, arXiv:1607.06450, equation 4.
///
/// # Panics
/// If the lengths are not those of whole rows.
///
/// ```
/// use safelight_kernels::norm::{Affine, layer_norm};
///
/// let norm = Affine { gamma: &[1.0, 2.0], beta: &[0.0, 0.0], eps: 0.0 };
/// let mut out = [0.0; 2];
/// layer_norm(&norm, &[5.0, 7.0], &mut out);
/// assert_eq!(out, [-1.0, 2.0]);
/// ```
pub fn layer_norm(norm: &Affine<'_>, x: &[f32], out: &mut [f32]) {
    layer_norm_at(level(), norm, x, out);
}

/// [`layer_norm`] at a level of the caller's choice, for tests and benches.
///
/// # Panics
/// As [`layer_norm`], and if the CPU lacks the level.
pub fn layer_norm_at(level: Level, norm: &Affine<'_>, x: &[f32], out: &mut [f32]) {
    let channels = norm.gamma.len();
    norm.check("layer_norm", channels);
    assert!(
        channels > 0 && x.len().is_multiple_of(channels) && x.len() == out.len(),
        "layer_norm: {} values to {}, rows of {channels}",
        x.len(),
        out.len()
    );
    let piece = PIECE.div_ceil(channels) * channels;
    out.par_chunks_mut(piece)
        .zip(x.par_chunks(piece))
        .for_each(|(out, x)| {
            arch::run(
                level,
                LayerNorm {
                    norm: *norm,
                    x,
                    out,
                },
            );
        });
}

struct LayerNorm<'a> {
    norm: Affine<'a>,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Task for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Affine { gamma, beta, eps } = self.norm;
        let channels = gamma.len();
        let whole = channels / S::LANES * S::LANES;
        let rows = self.x.chunks_exact(channels);
        for (x, out) in rows.zip(self.out.chunks_exact_mut(channels)) {
            let (mean, deviation) = row_sums(x).finish(channels as f64, eps);
            let center = simd.splat(mean as f32);
            let scale = simd.splat((1.0 / deviation) as f32);
            let shift = simd.splat(((f64::from(mean as f32) - mean) / deviation) as f32);
            for at in (0..whole).step_by(S::LANES) {
                let normal = simd.mul_add(simd.sub(load_at(simd, x, at), center), scale, shift);
                let y = simd.mul_add(normal, load_at(simd, gamma, at), load_at(simd, beta, at));
                simd.store(y, &mut out[at..at + S::LANES]);
            }
            if whole < channels {
                let normal = simd.mul_add(
                    simd.sub(simd.load_partial(&x[whole..]), center),
                    scale,
                    shift,
                );
                let y = simd.mul_add(
                    normal,
                    simd.load_partial(&gamma[whole..]),
                    simd.load_partial(&beta[whole..]),
                );
                simd.store_partial(y, &mut out[whole..]);
            }
        }
    }
}

/// Sums of one row, in interleaved parts: so many that the compiler keeps the inner loop, and vectorises it.
#[inline(always)]
fn row_sums(x: &[f32]) -> Sums {
    const PARTS: usize = 64;
    let (mut sum, mut squares) = ([0.0f64; PARTS], [0.0f64; PARTS]);
    for chunk in x.chunks(PARTS) {
        let parts = sum.iter_mut().zip(&mut squares);
        for (x, (sum, squares)) in chunk.iter().zip(parts) {
            let x = f64::from(*x);
            *sum += x;
            *squares += x * x;
        }
    }
    // Halves upon halves: the additions of one round do not wait for each other.
    for half in [32, 16, 8, 4, 2, 1] {
        for i in 0..half {
            sum[i] += sum[i + half];
            squares[i] += squares[i + half];
        }
    }
    Sums {
        sum: sum[0],
        squares: squares[0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, with_threads};

    /// The two equations in f64, mean first. `groups` of `width` channels; SiLU if asked.
    fn reference(shape: &GroupShape, norm: &Affine<'_>, silu: bool, x: &[f32]) -> Vec<f64> {
        let GroupShape {
            batch,
            pixels,
            channels,
            groups,
        } = *shape;
        let width = channels / groups;
        let mut out = vec![0.0; x.len()];
        for (image, group) in
            (0..batch).flat_map(|image| (0..groups).map(move |group| (image, group)))
        {
            let members: Vec<usize> = (0..pixels)
                .flat_map(|pixel| {
                    let first = (image * pixels + pixel) * channels + group * width;
                    first..first + width
                })
                .collect();
            let count = members.len() as f64;
            let mean = members.iter().map(|&i| f64::from(x[i])).sum::<f64>() / count;
            let squares = members.iter().map(|&i| (f64::from(x[i]) - mean).powi(2));
            let deviation = (squares.sum::<f64>() / count + f64::from(norm.eps)).sqrt();
            for i in members {
                let (gamma, beta) = (norm.gamma[i % channels], norm.beta[i % channels]);
                let y = (f64::from(x[i]) - mean) / deviation * f64::from(gamma) + f64::from(beta);
                out[i] = if silu { y / (1.0 + (-y).exp()) } else { y };
            }
        }
        out
    }

    fn compare(what: &str, got: &[f32], expected: &[f64]) {
        for (idx, (got, expected)) in got.iter().zip(expected).enumerate() {
            // (x - center), the product and the sum round once each, and so do the coefficients; values are
            // a few at most. SiLU adds roundings of its own, |y| of them in the exponent.
            let bound = f64::from(f32::EPSILON) * (4.0 + 8.0 * expected.abs());
            let error = (f64::from(*got) - expected).abs();
            assert!(
                error <= bound,
                "{what}, at {idx}: {got}, not {expected}: {error:e}, allowed {bound:e}"
            );
        }
    }

    /// Every level against f64, `x` being `mean ± spread`.
    fn check_groups(shape: GroupShape, mean: f32, spread: f32) {
        let mut rng = Rng::seeded(shape.pixels as u64 * 31 + shape.channels as u64);
        let count = shape.batch * shape.pixels * shape.channels;
        let x: Vec<f32> = rng.f32s(count).iter().map(|x| mean + spread * x).collect();
        let (gamma, beta) = (rng.f32s(shape.channels), rng.f32s(shape.channels));
        let norm = Affine {
            gamma: &gamma,
            beta: &beta,
            eps: 1e-6,
        };
        for silu in [false, true] {
            let expected = reference(&shape, &norm, silu, &x);
            for level in Level::available() {
                let mut out = vec![f32::NAN; count];
                group_norm_at(level, &shape, &norm, silu, &x, &mut out);
                compare(
                    &format!("{level}, {shape:?}, silu {silu}, mean {mean}"),
                    &out,
                    &expected,
                );
            }
        }
    }

    #[test]
    fn groups_of_every_width() {
        for (channels, groups) in [
            (1, 1),
            (3, 3),
            (4, 2),
            (16, 4),
            (17, 1),
            (30, 3),
            (32, 32),
            (64, 32),
            (96, 32),
            (320, 32),
            (1920, 32),
        ] {
            for pixels in [1, 2, 5, 64, 1000] {
                check_groups(
                    GroupShape {
                        batch: 2,
                        pixels,
                        channels,
                        groups,
                    },
                    0.1,
                    1.0,
                );
            }
        }
    }

    #[test]
    fn a_mean_far_from_zero_costs_no_digit() {
        let shape = GroupShape {
            batch: 1,
            pixels: 2000,
            channels: 48,
            groups: 4,
        };
        for (mean, spread) in [(1000.0, 1.0), (-30_000.0, 3.0), (1e-3, 1e-4), (0.0, 1e4)] {
            check_groups(shape, mean, spread);
        }
    }

    #[test]
    fn equal_values_give_beta() {
        let shape = GroupShape {
            batch: 1,
            pixels: 100,
            channels: 4,
            groups: 2,
        };
        let norm = Affine {
            gamma: &[1.0; 4],
            beta: &[1.0, 2.0, 3.0, 4.0],
            eps: 1e-5,
        };
        for level in Level::available() {
            let mut out = [0.0; 400];
            group_norm_at(level, &shape, &norm, false, &[0.1; 400], &mut out);
            for row in out.chunks_exact(4) {
                assert_eq!(row, norm.beta, "{level}");
            }
        }
    }

    #[test]
    fn rows_of_every_length() {
        for channels in (1..70).chain([320, 768, 1280, 40_000]) {
            for (mean, spread) in [(0.0, 1.0), (500.0, 1.0)] {
                let mut rng = Rng::seeded(channels as u64);
                let x: Vec<f32> = rng
                    .f32s(3 * channels)
                    .iter()
                    .map(|x| mean + spread * x)
                    .collect();
                let (gamma, beta) = (rng.f32s(channels), rng.f32s(channels));
                let norm = Affine {
                    gamma: &gamma,
                    beta: &beta,
                    eps: 1e-5,
                };
                // A row is an image of one pixel in one group.
                let shape = GroupShape {
                    batch: 3,
                    pixels: 1,
                    channels,
                    groups: 1,
                };
                let expected = reference(&shape, &norm, false, &x);
                for level in Level::available() {
                    let mut out = vec![f32::NAN; x.len()];
                    layer_norm_at(level, &norm, &x, &mut out);
                    compare(
                        &format!("{level}, {channels} channels, mean {mean}"),
                        &out,
                        &expected,
                    );
                }
            }
        }
    }

    #[test]
    fn thread_count_changes_no_bit() {
        let shape = GroupShape {
            batch: 2,
            pixels: 3000,
            channels: 40,
            groups: 8,
        };
        let mut rng = Rng::seeded(9);
        let (x, gamma, beta) = (rng.f32s(2 * 3000 * 40), rng.f32s(40), rng.f32s(40));
        let norm = Affine {
            gamma: &gamma,
            beta: &beta,
            eps: 1e-5,
        };
        let run = || {
            let (mut groups, mut rows) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            group_norm(&shape, &norm, true, &x, &mut groups);
            layer_norm(&norm, &x, &mut rows);
            (groups, rows)
        };
        assert_eq!(with_threads(1, run), with_threads(3, run));
    }

    #[test]
    fn not_a_number_stays_visible() {
        let shape = GroupShape {
            batch: 2,
            pixels: 10,
            channels: 2,
            groups: 2,
        };
        let norm = Affine {
            gamma: &[1.0; 2],
            beta: &[0.0; 2],
            eps: 1e-5,
        };
        let mut x = Rng::seeded(1).f32s(40);
        x[6] = f32::NAN;
        for level in Level::available() {
            let mut out = vec![0.0; 40];
            group_norm_at(level, &shape, &norm, true, &x, &mut out);
            let bad: Vec<usize> = (0..40).filter(|&i| out[i].is_nan()).collect();
            assert_eq!(bad, (0..20).step_by(2).collect::<Vec<_>>(), "{level}");
        }
    }

    /// torch 2.15.0, CPU, f32: `F.group_norm(x, 2, gamma, beta, 1e-5)` with x `[1, 4, 3]` (three tokens of four
    /// channels) = sin(0..12) in `[B, T, C]` order, gamma = [1, 2, 3, 4], beta = [0.5, 0, -0.5, 1]; then
    /// `F.layer_norm(x, [4], gamma, beta, 1e-5)`.
    #[test]
    fn golden_numbers_of_torch() {
        let x: Vec<f32> = (0..12).map(|i| f64::from(i).sin() as f32).collect();
        let norm = Affine {
            gamma: &[1.0, 2.0, 3.0, 4.0],
            beta: &[0.5, 0.0, -0.5, 1.0],
            eps: 1e-5,
        };
        let shape = GroupShape {
            batch: 1,
            pixels: 3,
            channels: 4,
            groups: 2,
        };
        let groups = [
            0.381_565_48,
            2.031_459_8,
            3.691_82,
            1.965_729_7,
            -0.638_479_7,
            -2.821_813_3,
            -1.673_983_5,
            5.070_532,
            1.715_057_6,
            0.874_066_77,
            -2.868_403,
            -4.902_173,
        ];
        let rows = [
            -0.664_341_9,
            1.814_308_5,
            2.722_379_4,
            -2.267_755_3,
            -0.177_387_3,
            -2.003_254_7,
            -0.234_715_98,
            7.362_346_6,
            1.812_482_8,
            1.146_676_4,
            -2.452_941_7,
            -3.939_361,
        ];
        for level in Level::available() {
            let mut out = vec![0.0; 12];
            group_norm_at(level, &shape, &norm, false, &x, &mut out);
            for (out, expected) in out.iter().zip(groups) {
                assert!(
                    (out - expected).abs() <= 4e-6,
                    "{level}: {out}, not {expected}"
                );
            }
            layer_norm_at(level, &norm, &x, &mut out);
            for (out, expected) in out.iter().zip(rows) {
                assert!(
                    (out - expected).abs() <= 4e-6,
                    "{level}: {out}, not {expected}"
                );
            }
        }
    }
}
