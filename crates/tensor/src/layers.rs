//! Weights as the operations want them: checked and packed once, at load.

/// How far a convolution reaches over each edge of the image; what lies there counts as zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Rows above the image.
    pub top: usize,
    /// Columns left of it.
    pub left: usize,
    /// Rows below it.
    pub bottom: usize,
    /// Columns right of it.
    pub right: usize,
}

impl Padding {
    /// The same on all four sides.
    pub const fn same(amount: usize) -> Self {
        Padding {
            top: amount,
            left: amount,
            bottom: amount,
            right: amount,
        }
    }
}

/// A fully connected layer, `y = x·Wᵀ + b`, over the last dimension.
#[derive(Debug)]
pub struct Linear {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) out_features: usize,
    pub(crate) in_features: usize,
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
        let got = weight.len();
        assert_eq!(
            got,
            out_features * in_features,
            "Linear [{out_features}, {in_features}]: weight has {got} values"
        );
        check_bias("Linear", bias, out_features);
        Linear {
            weight: weight.to_vec(),
            bias: bias.map(<[f32]>::to_vec),
            out_features,
            in_features,
        }
    }

    /// Values a row goes in with.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Values a row comes out with.
    pub fn out_features(&self) -> usize {
        self.out_features
    }
}

/// A two-dimensional convolution (in the sense of neural networks: the kernel is not flipped).
#[derive(Debug)]
pub struct Conv2d {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Option<Vec<f32>>,
    /// `[out, in, kernel height, kernel width]`.
    pub(crate) shape: [usize; 4],
    pub(crate) stride: usize,
    pub(crate) padding: Padding,
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
        let got = weight.len();
        assert_eq!(
            got,
            shape.iter().product::<usize>(),
            "Conv2d {shape:?}: weight has {got} values"
        );
        assert!(stride > 0, "Conv2d {shape:?}: stride 0");
        check_bias("Conv2d", bias, shape[0]);
        Conv2d {
            weight: weight.to_vec(),
            bias: bias.map(<[f32]>::to_vec),
            shape,
            stride,
            padding,
        }
    }

    /// Channels going in.
    pub fn in_channels(&self) -> usize {
        self.shape[1]
    }

    /// Channels coming out.
    pub fn out_channels(&self) -> usize {
        self.shape[0]
    }

    /// Height and width of the result for an input of `h` by `w`.
    ///
    /// # Panics
    /// If the padded input is smaller than the kernel.
    pub fn out_size(&self, h: usize, w: usize) -> (usize, usize) {
        let (padding, [_, _, kh, kw]) = (self.padding, self.shape);
        let (padded_h, padded_w) = (
            h + padding.top + padding.bottom,
            w + padding.left + padding.right,
        );
        assert!(
            padded_h >= kh && padded_w >= kw,
            "Conv2d: input {h}×{w}, padded, is smaller than the {kh}×{kw} kernel"
        );
        (
            (padded_h - kh) / self.stride + 1,
            (padded_w - kw) / self.stride + 1,
        )
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
