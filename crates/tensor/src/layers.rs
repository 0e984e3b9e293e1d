//! Weights as the operations want them: checked and packed once, at load.

use std::fmt;

use safelight_kernels::norm::Affine;
use safelight_kernels::{
    Algorithm, ConvShape, Extent, PackedConv, PackedLinear, Padding, Precision,
};

/// A fully connected layer, `y = x·Wᵀ + b`, over the last dimension.
pub struct Linear {
    pub(crate) weight: PackedLinear,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Linear {
    /// From `weight` `[out, in]` and `bias` `[out]`, both in torch's order.
    ///
    /// # Panics
    /// If a length does not match.
    pub fn new(
        weight: &[f32],
        out_features: usize,
        in_features: usize,
        bias: Option<&[f32]>,
    ) -> Self {
        Self::with_precision(weight, out_features, in_features, bias, Precision::F32)
    }

    /// The same with products in `precision`, or finer where [`Precision::for_layer`] says so.
    ///
    /// # Panics
    /// If a length does not match.
    pub fn with_precision(
        weight: &[f32],
        out_features: usize,
        in_features: usize,
        bias: Option<&[f32]>,
        precision: Precision,
    ) -> Self {
        let got = weight.len();
        assert_eq!(
            got,
            out_features * in_features,
            "Linear [{out_features}, {in_features}]: weight has {got} values"
        );
        check_bias("Linear", bias, out_features);
        let precision = precision.for_layer(in_features, out_features);
        let weight = PackedLinear::with_precision(weight, out_features, in_features, precision);
        Linear {
            weight,
            bias: bias.map(<[f32]>::to_vec),
        }
    }

    /// Values a row goes in with.
    pub fn in_features(&self) -> usize {
        self.weight.in_features()
    }

    /// Values a row comes out with.
    pub fn out_features(&self) -> usize {
        self.weight.out_features()
    }

    /// What its products are computed in.
    pub fn precision(&self) -> Precision {
        self.weight.precision()
    }

    /// Memory the packed weights take.
    pub fn bytes(&self) -> usize {
        self.weight.bytes()
    }
}

impl fmt::Debug for Linear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Linear({} → {})",
            self.in_features(),
            self.out_features()
        )
    }
}

/// A two-dimensional convolution (in the sense of neural networks: the kernel is not flipped).
pub struct Conv2d {
    pub(crate) weight: PackedConv,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Conv2d {
    /// From `weight` `[out, in, kh, kw]` (`shape`) and `bias` `[out]`, both in torch's order.
    ///
    /// # Panics
    /// If a length does not match or `stride` is 0.
    pub fn new(
        weight: &[f32],
        shape: [usize; 4],
        bias: Option<&[f32]>,
        stride: usize,
        padding: Padding,
    ) -> Self {
        Self::with(weight, shape, bias, stride, padding, (Precision::F32, 0))
    }

    /// The same with products in `precision`, or finer where [`Precision::for_layer`] says so, in the way that is
    /// fastest for maps of about `pixels` pixels; 0 is the way that takes least memory.
    ///
    /// # Panics
    /// If a length does not match or `stride` is 0.
    pub fn with(
        weight: &[f32],
        shape: [usize; 4],
        bias: Option<&[f32]>,
        stride: usize,
        padding: Padding,
        (precision, pixels): (Precision, usize),
    ) -> Self {
        let got = weight.len();
        assert_eq!(
            got,
            shape.iter().product::<usize>(),
            "Conv2d {shape:?}: weight has {got} values"
        );
        assert!(stride > 0, "Conv2d {shape:?}: stride 0");
        let [out_channels, in_channels, kernel_height, kernel_width] = shape;
        check_bias("Conv2d", bias, out_channels);
        let shape = ConvShape {
            out_channels,
            in_channels,
            kernel_height,
            kernel_width,
            stride,
            padding,
        };
        let precision = precision.for_layer(in_channels, out_channels);
        let algorithm = Algorithm::fastest(shape, pixels, precision);
        Conv2d {
            weight: PackedConv::with(weight, shape, precision, algorithm),
            bias: bias.map(<[f32]>::to_vec),
        }
    }

    /// Channels going in.
    pub fn in_channels(&self) -> usize {
        self.weight.shape().in_channels
    }

    /// Channels coming out.
    pub fn out_channels(&self) -> usize {
        self.weight.shape().out_channels
    }

    /// What its products are computed in.
    pub fn precision(&self) -> Precision {
        self.weight.precision()
    }

    /// Memory the packed weights take.
    pub fn bytes(&self) -> usize {
        self.weight.bytes()
    }

    /// Height and width of the result for an input of `h` by `w`.
    ///
    /// # Panics
    /// If the padded input is smaller than the kernel.
    pub fn out_size(&self, h: usize, w: usize) -> (usize, usize) {
        let ConvShape {
            kernel_height,
            kernel_width,
            padding,
            ..
        } = self.weight.shape();
        let (padded_h, padded_w) = (
            h + padding.top + padding.bottom,
            w + padding.left + padding.right,
        );
        assert!(
            padded_h >= kernel_height && padded_w >= kernel_width,
            "Conv2d: input {h}×{w}, padded, is smaller than the {kernel_height}×{kernel_width} kernel"
        );
        let out = self.weight.output(Extent {
            batch: 1,
            height: h,
            width: w,
        });
        (out.height, out.width)
    }
}

impl fmt::Debug for Conv2d {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conv2d({:?})", self.weight.shape())
    }
}

/// Scale and shift of a normalisation, one of each per channel.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Scale, `[C]` (`weight` in checkpoints).
    pub gamma: Vec<f32>,
    /// Shift, `[C]` (`bias` in checkpoints).
    pub beta: Vec<f32>,
    /// Added to the variance.
    pub eps: f32,
}

impl Norm {
    pub(crate) fn affine(&self) -> Affine<'_> {
        Affine {
            gamma: &self.gamma,
            beta: &self.beta,
            eps: self.eps,
        }
    }
}

fn check_bias(layer: &str, bias: Option<&[f32]>, out: usize) {
    if let Some(bias) = bias {
        assert_eq!(
            bias.len(),
            out,
            "{layer} with {out} outputs: bias has {} values",
            bias.len()
        );
    }
}
