//! The operations. Each checks its shapes, takes an output from the pool and calls a kernel.

use safelight_kernels::attention::{AttentionShape, StridedRows};
use safelight_kernels::norm::GroupShape;
use safelight_kernels::{self as kernels, Activation, Extent, Precision};

use crate::layers::{Conv2d, Geglu, Linear, Norm};
use crate::profile::{Kind, timed};
use crate::tensor::Tensor;

/// What a layer does with its sums before they are stored: `act(sum + bias + image_bias) + residual`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// `[B, out]`: one more bias for each image, such as the time embedding.
    pub image_bias: Option<&'a Tensor>,
    /// Applied after the biases.
    pub activation: Activation,
    /// Of the output's shape, added last.
    pub residual: Option<&'a Tensor>,
}

/// `y = x·Wᵀ + b` over the last dimension, then the epilogue: `[…, in]` to `[…, out]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn linear(x: &Tensor, layer: &Linear, epilogue: Epilogue<'_>) -> Tensor {
    let (out_features, in_features) = (layer.out_features(), layer.in_features());
    assert_eq!(
        x.last_dim(),
        in_features,
        "linear: {:?} into a layer of {in_features} inputs",
        x.shape()
    );
    let mut y = Tensor::recycled(&with_last(x.shape(), out_features));
    let epilogue = checked_epilogue("linear", layer.bias.as_deref(), &epilogue, &y);
    let flops = 2 * x.rows() * in_features * out_features;
    timed(Kind::Linear, flops, || {
        kernels::linear(x.data(), &layer.weight(), &epilogue, y.data_mut());
    });
    y
}

/// `(x·Vᵀ + b)·gelu(x·Gᵀ + c)` over the last dimension: `[…, in]` to `[…, out]`.
///
/// Source: Shazeer 2020, arXiv:2002.05202, equation 6 (GEGLU).
///
/// # Panics
/// If the shapes do not fit.
pub fn linear_geglu(x: &Tensor, layer: &Geglu) -> Tensor {
    let (out_features, in_features) = (layer.out_features(), layer.in_features());
    assert_eq!(
        x.last_dim(),
        in_features,
        "linear_geglu: {:?} into a layer of {in_features} inputs",
        x.shape()
    );
    let mut y = Tensor::recycled(&with_last(x.shape(), out_features));
    let flops = 2 * x.rows() * in_features * 2 * out_features;
    timed(Kind::Linear, flops, || {
        kernels::linear_geglu(
            x.data(),
            &layer.weight(),
            layer.bias.as_deref(),
            y.data_mut(),
        );
    });
    y
}

/// Convolution of `[B, H, W, in]`, then the epilogue: `[B, H', W', out]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn conv2d(x: &Tensor, layer: &Conv2d, epilogue: Epilogue<'_>) -> Tensor {
    let [_, h, w, _] = image("conv2d", x);
    let (extent, mut y) = conv2d_begin("conv2d", x, layer, h, w);
    let epilogue = checked_epilogue("conv2d", layer.bias.as_deref(), &epilogue, &y);
    let (kind, flops) = conv2d_work(layer, &y);
    timed(kind, flops, || {
        kernels::conv2d(x.data(), extent, &layer.weight(), &epilogue, y.data_mut());
    });
    y
}

/// Convolution of `x` as if enlarged to `out_h` by `out_w`, each pixel taking the nearest one of `x`.
///
/// The same values as [`conv2d`] of [`resize_nearest`], without the large picture in between.
///
/// # Panics
/// If the shapes do not fit.
pub fn conv2d_upsampled(x: &Tensor, layer: &Conv2d, out_h: usize, out_w: usize) -> Tensor {
    let (extent, mut y) = conv2d_begin("conv2d_upsampled", x, layer, out_h, out_w);
    let epilogue = checked_epilogue(
        "conv2d_upsampled",
        layer.bias.as_deref(),
        &Epilogue::default(),
        &y,
    );
    let (kind, flops) = conv2d_work(layer, &y);
    timed(kind, flops, || {
        let size = (out_h, out_w);
        kernels::conv2d_upsampled(
            x.data(),
            extent,
            size,
            &layer.weight(),
            &epilogue,
            y.data_mut(),
        );
    });
    y
}

/// `[B, H, W, C]` to `[B, out_h, out_w, C]`: row `y` comes from row `⌊y·H/out_h⌋`, columns likewise (torch's "nearest").
///
/// # Panics
/// If `x` is not `[B, H, W, C]` or has no pixels.
pub fn resize_nearest(x: &Tensor, out_h: usize, out_w: usize) -> Tensor {
    let [b, h, w, c] = image("resize_nearest", x);
    assert!(
        h > 0 && w > 0,
        "resize_nearest: {:?} has no pixels",
        x.shape()
    );
    let mut y = Tensor::recycled(&[b, out_h, out_w, c]);
    let extent = Extent {
        batch: b,
        height: h,
        width: w,
    };
    timed(Kind::Moving, 0, || {
        kernels::resample::resize_nearest(x.data(), extent, c, (out_h, out_w), y.data_mut());
    });
    y
}

/// Normalises each group of channels of each image to mean 0 and variance 1, scales, shifts and, if `silu`, applies SiLU.
///
/// `x` is `[B, H, W, C]` or `[B, T, C]`; the variance is the biased one.
///
/// Source: Wu and He 2018, arXiv:1803.08494, equations 1 and 2.
///
/// # Panics
/// If `groups` does not divide the channels or `norm` has other channels.
pub fn group_norm(x: &Tensor, groups: usize, norm: &Norm, silu: bool) -> Tensor {
    let channels = x.last_dim();
    assert!(
        x.shape().len() >= 3,
        "group_norm: needs [B, H, W, C] or [B, T, C], got {:?}",
        x.shape()
    );
    assert!(
        groups > 0 && channels.is_multiple_of(groups),
        "group_norm: {channels} channels in {groups} groups"
    );
    check_norm("group_norm", x, norm);
    let mut y = Tensor::recycled(x.shape());
    let (batch, pixels) = (x.dim(0), x.rows() / x.dim(0).max(1));
    let shape = GroupShape {
        batch,
        pixels,
        channels,
        groups,
    };
    timed(Kind::GroupNorm, 0, || {
        kernels::norm::group_norm(&shape, &norm.affine(), silu, x.data(), y.data_mut());
    });
    y
}

/// Normalises every row (the last dimension) to mean 0 and variance 1, scales and shifts.
///
/// Source: Ba et al. 2016, arXiv:1607.06450, equation 4.
///
/// # Panics
/// If `norm` has other channels.
pub fn layer_norm(x: &Tensor, norm: &Norm) -> Tensor {
    check_norm("layer_norm", x, norm);
    let mut y = Tensor::recycled(x.shape());
    timed(Kind::LayerNorm, 0, || {
        kernels::norm::layer_norm(&norm.affine(), x.data(), y.data_mut());
    });
    y
}

/// `softmax(q·kᵀ/√d)·v` for each head: `q` `[B, Tq, heads·d]`, `k` and `v` `[B, Tk, heads·d]`, result as `q`.
///
/// With `causal`, query `i` sees keys `0..=i` only. In which `precision` products are taken is
/// [`kernels::attention::attention`]'s to say.
///
/// Source: Vaswani et al. 2017, arXiv:1706.03762, equation 1.
///
/// # Panics
/// If the shapes do not fit, `heads` does not divide the width, or there are no keys.
pub fn attention(
    [q, k, v]: [&Tensor; 3],
    heads: usize,
    causal: bool,
    precision: Precision,
) -> Tensor {
    let (&[b, queries, width], &[k_b, keys, k_width]) = (q.shape(), k.shape()) else {
        panic!(
            "attention: q and k must be [B, T, D], got {:?} and {:?}",
            q.shape(),
            k.shape()
        );
    };
    assert_eq!(k.shape(), v.shape(), "attention: k and v differ");
    assert_eq!(
        (b, width),
        (k_b, k_width),
        "attention: q {:?} against k {:?}",
        q.shape(),
        k.shape()
    );
    assert!(
        heads > 0 && width.is_multiple_of(heads),
        "attention: width {width} in {heads} heads"
    );
    assert!(keys > 0, "attention: no keys");
    assert!(
        !causal || queries == keys,
        "attention: causal with {queries} queries and {keys} keys"
    );
    let mut y = Tensor::recycled(q.shape());
    let shape = AttentionShape {
        batch: b,
        heads,
        head_width: width / heads,
        queries,
        keys,
        causal,
    };
    let [q, k, v] = [q, k, v].map(|x| StridedRows::dense(x.data(), width));
    // Scores and their product with the values, for each query and key; causal ones are half of it.
    let flops = 4 * b * width * queries * keys / if causal { 2 } else { 1 };
    timed(Kind::Attention, flops, || {
        kernels::attention::attention(&shape, precision, q, k, v, y.data_mut());
    });
    y
}

/// `max(x, 0)` for every value.
pub fn relu(x: &Tensor) -> Tensor {
    activated(Activation::Relu, x)
}

/// `x·σ(x)` for every value.
pub fn silu(x: &Tensor) -> Tensor {
    activated(Activation::Silu, x)
}

/// `x·Φ(x)` for every value: the exact form, through erf.
///
/// Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, §2.
pub fn gelu(x: &Tensor) -> Tensor {
    activated(Activation::Gelu, x)
}

/// `x·σ(1.702·x)` for every value.
///
/// Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, §2, second approximation.
pub fn quick_gelu(x: &Tensor) -> Tensor {
    activated(Activation::QuickGelu, x)
}

/// `a + b`, of one shape.
///
/// # Panics
/// If the shapes differ.
pub fn add(a: &Tensor, b: &Tensor) -> Tensor {
    assert_eq!(a.shape(), b.shape(), "add: shapes differ");
    let mut y = Tensor::recycled(a.shape());
    timed(Kind::Moving, 0, || {
        kernels::elementwise::add(a.data(), b.data(), y.data_mut());
    });
    y
}

/// `y + factor·x`, in place: `y` becomes it.
///
/// # Panics
/// If the shapes differ.
pub fn add_scaled(y: &mut Tensor, factor: f32, x: &Tensor) {
    assert_eq!(y.shape(), x.shape(), "add_scaled: shapes differ");
    timed(Kind::Moving, 0, || {
        kernels::elementwise::axpy(factor, x.data(), y.data_mut());
    });
}

/// `x·factor`.
pub fn scale(x: &Tensor, factor: f32) -> Tensor {
    let mut y = Tensor::recycled(x.shape());
    timed(Kind::Moving, 0, || {
        kernels::elementwise::scale(factor, x.data(), y.data_mut());
    });
    y
}

/// `[…, A]` and `[…, B]` to `[…, A + B]`.
///
/// # Panics
/// If the other dimensions differ.
pub fn concat_channels(a: &Tensor, b: &Tensor) -> Tensor {
    let (a_width, b_width) = (a.last_dim(), b.last_dim());
    let same = a.shape().split_last().map(|(_, rest)| rest)
        == b.shape().split_last().map(|(_, rest)| rest);
    assert!(
        same,
        "concat_channels: {:?} beside {:?}",
        a.shape(),
        b.shape()
    );
    let mut y = Tensor::recycled(&with_last(a.shape(), a_width + b_width));
    timed(Kind::Moving, 0, || {
        kernels::elementwise::concat_channels(a.data(), a_width, b.data(), b_width, y.data_mut());
    });
    y
}

/// `shape` with another last dimension.
fn with_last(shape: &[usize], last: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let Some(dim) = shape.last_mut() {
        *dim = last;
    }
    shape
}

/// The four dimensions of `[B, H, W, C]`.
fn image(op: &str, x: &Tensor) -> [usize; 4] {
    x.shape()
        .try_into()
        .unwrap_or_else(|_| panic!("{op}: needs [B, H, W, C], got {:?}", x.shape()))
}

fn check_norm(op: &str, x: &Tensor, norm: &Norm) {
    let (gamma, beta) = (norm.gamma.len(), norm.beta.len());
    assert!(
        gamma == x.last_dim() && beta == gamma,
        "{op}: {:?} with {gamma} scales, {beta} shifts",
        x.shape()
    );
}

/// The input's extent and an output for it, if the convolution sees `h` by `w` pixels.
fn conv2d_begin(op: &str, x: &Tensor, layer: &Conv2d, h: usize, w: usize) -> (Extent, Tensor) {
    let [batch, height, width, c] = image(op, x);
    assert_eq!(
        c,
        layer.in_channels(),
        "{op}: {:?} into a layer of {} channels",
        x.shape(),
        layer.in_channels()
    );
    let (out_h, out_w) = layer.out_size(h, w);
    (
        Extent {
            batch,
            height,
            width,
        },
        Tensor::recycled(&[batch, out_h, out_w, layer.out_channels()]),
    )
}

/// The kind of a convolution with result `y`, and its arithmetic.
fn conv2d_work(layer: &Conv2d, y: &Tensor) -> (Kind, usize) {
    let shape = layer.shape();
    let taps = shape.kernel_height * shape.kernel_width;
    let kind = match (shape.kernel_height, shape.kernel_width, shape.stride) {
        (3, 3, 1) => Kind::Conv3x3,
        _ => Kind::ConvOther,
    };
    let flops = 2 * y.rows() * y.last_dim() * layer.in_channels() * taps;
    (kind, flops)
}

fn checked_epilogue<'a>(
    op: &str,
    bias: Option<&'a [f32]>,
    epilogue: &Epilogue<'a>,
    y: &Tensor,
) -> kernels::Epilogue<'a> {
    if let Some(image_bias) = epilogue.image_bias {
        let expected = [y.dim(0), y.last_dim()];
        assert_eq!(
            image_bias.shape(),
            expected,
            "{op}: image_bias for an output of {:?}",
            y.shape()
        );
    }
    if let Some(residual) = epilogue.residual {
        assert_eq!(
            residual.shape(),
            y.shape(),
            "{op}: residual and output differ"
        );
    }
    kernels::Epilogue {
        bias,
        image_bias: epilogue.image_bias.map(Tensor::data),
        activation: epilogue.activation,
        residual: epilogue.residual.map(Tensor::data),
    }
}

fn activated(activation: Activation, x: &Tensor) -> Tensor {
    let mut y = Tensor::recycled(x.shape());
    timed(Kind::Activation, 0, || {
        kernels::activation::activate(activation, x.data(), y.data_mut());
    });
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fetch, InMemory};
    use safelight_kernels::Padding;

    #[test]
    fn a_convolution_by_hand() {
        let x = Tensor::from_slice(&[1, 2, 2, 1], &[1., 2., 3., 4.]);
        let layer = Conv2d::new(&[1.; 9], [1, 1, 3, 3], Some(&[0.5]), 1, Padding::all(1));
        assert_eq!(conv2d(&x, &layer, Epilogue::default()).data(), [10.5; 4]);
        let up = conv2d_upsampled(&x, &layer, 3, 4);
        assert_eq!(up.shape(), [1, 3, 4, 1]);
        assert_eq!(up.data()[5], 1. * 4. + 2. * 2. + 3. * 2. + 4. + 0.5);
    }

    #[test]
    fn fetched_weights_give_the_same_bits_and_stay_nowhere() {
        let values =
            |count: usize| -> Vec<f32> { (0..count).map(|idx| (idx as f32 * 0.7).sin()).collect() };
        let (bias, x) = (
            values(48),
            Tensor::from_slice(&[1, 5, 4, 64], &values(5 * 4 * 64)),
        );
        for precision in Precision::ALL {
            let here = Linear::with_precision(&values(48 * 64), 48, 64, Some(&bias), precision);
            let fetch: Fetch = Box::new(move |see| see(&InMemory(&values(48 * 64))));
            let fetched = Linear::fetched(fetch, 48, 64, Some(&bias), precision);
            let run = |layer| linear(&x, layer, Epilogue::default());
            assert_eq!(run(&here), run(&fetched));
            assert!(here.bytes() > 0 && fetched.bytes() == 0);
            assert_eq!(here.precision(), fetched.precision());

            let (shape, way) = ([48, 64, 3, 3], (precision, 4096));
            let padding = Padding::all(1);
            let here = Conv2d::with(&values(48 * 64 * 9), shape, Some(&bias), 2, padding, way);
            let fetch: Fetch = Box::new(move |see| see(&InMemory(&values(48 * 64 * 9))));
            let fetched = Conv2d::fetched(fetch, shape, Some(&bias), 2, padding, way);
            let run = |layer| conv2d(&x, layer, Epilogue::default());
            assert_eq!(run(&here), run(&fetched));
            assert!(here.bytes() > 0 && fetched.bytes() == 0);
        }
    }

    #[test]
    fn attention_of_equal_keys_is_the_mean() {
        let q = Tensor::from_slice(&[1, 2, 2], &[1., 2., 3., 4.]);
        let k = Tensor::zeros(&[1, 2, 2]);
        let v = Tensor::from_slice(&[1, 2, 2], &[1., 10., 3., 20.]);
        assert_eq!(
            attention([&q, &k, &v], 2, false, Precision::F32).data(),
            [2., 15., 2., 15.]
        );
        assert_eq!(
            attention([&q, &k, &v], 1, true, Precision::F32).data(),
            [1., 10., 2., 15.]
        );
    }

    #[test]
    fn the_epilogue_by_hand() {
        let x = Tensor::from_slice(&[2, 1, 1], &[1., 2.]);
        let layer = Linear::new(&[1., -1.], 2, 1, Some(&[10., 10.]));
        let image_bias = Tensor::from_slice(&[2, 2], &[0., 100., 200., 300.]);
        let residual = Tensor::from_slice(&[2, 1, 2], &[0.5; 4]);
        let epilogue = Epilogue {
            image_bias: Some(&image_bias),
            residual: Some(&residual),
            ..Epilogue::default()
        };
        assert_eq!(
            linear(&x, &layer, epilogue).data(),
            [11.5, 109.5, 212.5, 308.5]
        );
        // SiLU of these is themselves, in f32, and comes before the residual.
        let activated = Epilogue {
            activation: Activation::Silu,
            image_bias: Some(&residual_of(200.)),
            residual: Some(&residual),
        };
        assert_eq!(
            linear(&x, &layer, activated).data(),
            [211.5, 209.5, 212.5, 208.5]
        );
    }

    fn residual_of(value: f32) -> Tensor {
        Tensor::from_slice(&[2, 2], &[value; 4])
    }

    #[test]
    fn stride_and_one_sided_padding_by_hand() {
        // The VAE encoder's way down: a column and a row of zeros at the right and the bottom, stride 2.
        let x = Tensor::from_slice(
            &[1, 4, 4, 1],
            &(1..=16).map(|value| value as f32).collect::<Vec<f32>>(),
        );
        let padding = Padding {
            bottom: 1,
            right: 1,
            ..Padding::default()
        };
        let layer = Conv2d::new(&[1.; 9], [1, 1, 3, 3], None, 2, padding);
        let y = conv2d(&x, &layer, Epilogue::default());
        assert_eq!(y.shape(), [1, 2, 2, 1]);
        let all: f32 = [1., 2., 3., 5., 6., 7., 9., 10., 11.].iter().sum();
        assert_eq!(
            y.data(),
            [
                all,
                3. + 4. + 7. + 8. + 11. + 12.,
                9. + 10. + 11. + 13. + 14. + 15.,
                11. + 12. + 15. + 16.
            ]
        );
    }

    #[test]
    fn an_upsampled_convolution_is_a_resize_and_a_convolution() {
        let x = Tensor::from_slice(
            &[2, 3, 5, 2],
            &(0..60)
                .map(|value| (value as f32).sin())
                .collect::<Vec<f32>>(),
        );
        let weight: Vec<f32> = (0..54).map(|value| (value as f32).cos()).collect();
        let layer = Conv2d::new(
            &weight,
            [3, 2, 3, 3],
            Some(&[1., 2., 3.]),
            1,
            Padding::all(1),
        );
        for (h, w) in [(6, 10), (5, 9), (3, 5)] {
            let expected = conv2d(&resize_nearest(&x, h, w), &layer, Epilogue::default());
            assert_eq!(conv2d_upsampled(&x, &layer, h, w), expected);
        }
    }

    #[test]
    fn norms_and_products_by_hand() {
        let x = Tensor::from_slice(&[1, 2, 2], &[1., 3., 3., 1.]);
        let norm = Norm {
            gamma: vec![1., 2.],
            beta: vec![0., 1.],
            eps: 0.,
        };
        assert_eq!(group_norm(&x, 1, &norm, false).data(), [-1., 3., 1., -1.]);
        assert_eq!(layer_norm(&x, &norm).data(), [-1., 3., 1., -1.]);
        // Gates of 30 and -30: gelu leaves the one and takes the other away.
        let bias = [1., 5., 30., -30.];
        let weight = [[1.; 2], [0.; 2], [0.; 2], [0.; 2]];
        let weight = InMemory(weight.as_flattened());
        let layer = Geglu::from_source(&weight, 2, 2, Some(&bias), Precision::F32);
        let gated = linear_geglu(&Tensor::from_slice(&[1, 2], &[3., -2.]), &layer);
        assert_eq!((gated.shape(), gated.data()[0]), (&[1, 2][..], 60.));
        assert!(gated.data()[1].abs() < 1e-30);
        assert_eq!(silu(&Tensor::from_slice(&[1], &[30.])).data(), [30.]);
    }

    #[test]
    fn sums_and_neighbours() {
        let a = Tensor::from_slice(&[2, 1], &[1., 2.]);
        let b = Tensor::from_slice(&[2, 2], &[3., 4., 5., 6.]);
        assert_eq!(concat_channels(&a, &b).data(), [1., 3., 4., 2., 5., 6.]);
        let mut sum = add(&b, &b);
        add_scaled(&mut sum, -1., &b);
        assert_eq!(sum, b);
        assert_eq!(scale(&a, 4.).data(), [4., 8.]);
    }

    #[test]
    #[should_panic(expected = "linear: [1, 3] into a layer of 2 inputs")]
    fn wrong_inputs_are_named() {
        let layer = Linear::new(&[1., 1.], 1, 2, None);
        linear(&Tensor::zeros(&[1, 3]), &layer, Epilogue::default());
    }

    #[test]
    #[should_panic(expected = "group_norm: 6 channels in 4 groups")]
    fn groups_that_do_not_divide_are_named() {
        let norm = Norm {
            gamma: vec![1.; 6],
            beta: vec![0.; 6],
            eps: 0.,
        };
        group_norm(&Tensor::zeros(&[1, 1, 6]), 4, &norm, false);
    }

    #[test]
    #[should_panic(expected = "attention: q [1, 2, 4] against k [1, 2, 6]")]
    fn wrong_keys_are_named() {
        let (q, k) = (Tensor::zeros(&[1, 2, 4]), Tensor::zeros(&[1, 2, 6]));
        attention([&q, &k, &k], 2, false, Precision::F32);
    }
}
