//! Weights as the operations want them: checked and packed once, at load.

use std::fmt;
use std::ops::Deref;

use safelight_kernels::norm::Affine;
use safelight_kernels::{
    Algorithm, ConvShape, Extent, InMemory, PackedConv, PackedGeglu, PackedLinear, Padding,
    Precision, Source,
};

/// Shows a layer's weight, in torch's order, to what packs it: from a file, say, and as often as asked. The last one shown
/// counts.
pub type Fetch = Box<dyn Fn(&mut dyn FnMut(&dyn Source)) + Send + Sync>;

/// Packed weights: here, or made for every use and dropped after it.
enum Weight<T> {
    Here(T),
    Made(Box<dyn Fn() -> T + Send + Sync>),
}

/// Packed weights for the time of one operation.
pub(crate) enum Lent<'a, T> {
    Here(&'a T),
    Fresh(Box<T>),
}

impl<T> Weight<T> {
    fn lend(&self) -> Lent<'_, T> {
        match self {
            Weight::Here(packed) => Lent::Here(packed),
            Weight::Made(make) => Lent::Fresh(Box::new(make())),
        }
    }
}

impl<T: Send + 'static> Weight<T> {
    fn fetched(fetch: Fetch, pack: impl Fn(&dyn Source) -> T + Send + Sync + 'static) -> Self {
        Weight::Made(Box::new(move || {
            let mut packed = None;
            fetch(&mut |weight| packed = Some(pack(weight)));
            packed.expect("a fetch shows the weight")
        }))
    }
}

impl<T> Deref for Lent<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        match self {
            Lent::Here(packed) => packed,
            Lent::Fresh(packed) => packed,
        }
    }
}

/// A fully connected layer, `y = x·Wᵀ + b`, over the last dimension.
pub struct Linear {
    weight: Weight<PackedLinear>,
    pub(crate) bias: Option<Vec<f32>>,
    out_features: usize,
    in_features: usize,
    precision: Precision,
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
        let weight = InMemory(weight);
        Self::from_source(&weight, out_features, in_features, bias, precision)
    }

    /// The same with a weight that is read while it is packed.
    ///
    /// # Panics
    /// If a length does not match.
    pub fn from_source(
        weight: &dyn Source,
        out_features: usize,
        in_features: usize,
        bias: Option<&[f32]>,
        precision: Precision,
    ) -> Self {
        let precision = precision.for_layer(in_features, out_features);
        let packed = packed_linear(weight, (out_features, in_features), precision);
        Self::of(
            Weight::Here(packed),
            (out_features, in_features),
            bias,
            precision,
        )
    }

    /// The same with a weight that is fetched, and packed, in every call and dropped after it.
    ///
    /// # Panics
    /// If the length of `bias` does not match; in a call, if that of the weight does not.
    pub fn fetched(
        fetch: Fetch,
        out_features: usize,
        in_features: usize,
        bias: Option<&[f32]>,
        precision: Precision,
    ) -> Self {
        let precision = precision.for_layer(in_features, out_features);
        let sizes = (out_features, in_features);
        let weight = Weight::fetched(fetch, move |weight| packed_linear(weight, sizes, precision));
        Self::of(weight, sizes, bias, precision)
    }

    fn of(
        weight: Weight<PackedLinear>,
        (out_features, in_features): (usize, usize),
        bias: Option<&[f32]>,
        precision: Precision,
    ) -> Self {
        check_bias("Linear", bias, out_features);
        Linear {
            weight,
            bias: bias.map(<[f32]>::to_vec),
            out_features,
            in_features,
            precision,
        }
    }

    /// The packed weights, for one operation.
    pub(crate) fn weight(&self) -> Lent<'_, PackedLinear> {
        self.weight.lend()
    }

    /// Values a row goes in with.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Values a row comes out with.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// What its products are computed in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Memory the packed weights take between calls.
    pub fn bytes(&self) -> usize {
        match &self.weight {
            Weight::Here(packed) => packed.bytes(),
            Weight::Made(_) => 0,
        }
    }
}

fn packed_linear(
    weight: &dyn Source,
    (out, inputs): (usize, usize),
    precision: Precision,
) -> PackedLinear {
    let got = weight.count();
    assert_eq!(
        got,
        out * inputs,
        "Linear [{out}, {inputs}]: weight has {got} values"
    );
    PackedLinear::from_source(weight, out, inputs, precision)
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

/// A fully connected layer with gates, `y = (x·Vᵀ + b)·gelu(x·Gᵀ + c)`, over the last dimension: the first layer of a
/// transformer's feed-forward part.
pub struct Geglu {
    weight: Weight<PackedGeglu>,
    pub(crate) bias: Option<Vec<f32>>,
    out_features: usize,
    in_features: usize,
    precision: Precision,
}

impl Geglu {
    /// From `weight` `[2·out, in]`, V over G, and `bias` `[2·out]`, b before c, with products in `precision`, or finer where
    /// [`Precision::for_layer`] says so.
    ///
    /// # Panics
    /// If a length does not match.
    pub fn from_source(
        weight: &dyn Source,
        out_features: usize,
        in_features: usize,
        bias: Option<&[f32]>,
        precision: Precision,
    ) -> Self {
        let precision = precision.for_layer(in_features, out_features);
        let sizes = (out_features, in_features);
        let packed = packed_geglu(weight, sizes, precision);
        Self::of(Weight::Here(packed), sizes, bias, precision)
    }

    /// The same with a weight that is fetched, and packed, in every call and dropped after it.
    ///
    /// # Panics
    /// If the length of `bias` does not match; in a call, if that of the weight does not.
    pub fn fetched(
        fetch: Fetch,
        out_features: usize,
        in_features: usize,
        bias: Option<&[f32]>,
        precision: Precision,
    ) -> Self {
        let precision = precision.for_layer(in_features, out_features);
        let sizes = (out_features, in_features);
        let weight = Weight::fetched(fetch, move |weight| packed_geglu(weight, sizes, precision));
        Self::of(weight, sizes, bias, precision)
    }

    fn of(
        weight: Weight<PackedGeglu>,
        (out_features, in_features): (usize, usize),
        bias: Option<&[f32]>,
        precision: Precision,
    ) -> Self {
        check_bias("Geglu", bias, 2 * out_features);
        Geglu {
            weight,
            bias: bias.map(<[f32]>::to_vec),
            out_features,
            in_features,
            precision,
        }
    }

    /// The packed weights, for one operation.
    pub(crate) fn weight(&self) -> Lent<'_, PackedGeglu> {
        self.weight.lend()
    }

    /// Values a row goes in with.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Values a row comes out with.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// What its products are computed in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Memory the packed weights take between calls.
    pub fn bytes(&self) -> usize {
        match &self.weight {
            Weight::Here(packed) => packed.bytes(),
            Weight::Made(_) => 0,
        }
    }
}

fn packed_geglu(
    weight: &dyn Source,
    (out, inputs): (usize, usize),
    precision: Precision,
) -> PackedGeglu {
    let got = weight.count();
    assert_eq!(
        got,
        2 * out * inputs,
        "Geglu [2 · {out}, {inputs}]: weight has {got} values"
    );
    PackedGeglu::from_source(weight, out, inputs, precision)
}

impl fmt::Debug for Geglu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Geglu({} → {})", self.in_features, self.out_features)
    }
}

/// A two-dimensional convolution (in the sense of neural networks: the kernel is not flipped).
pub struct Conv2d {
    weight: Weight<PackedConv>,
    pub(crate) bias: Option<Vec<f32>>,
    shape: ConvShape,
    precision: Precision,
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
        way: (Precision, usize),
    ) -> Self {
        Self::from_source(&InMemory(weight), shape, bias, stride, padding, way)
    }

    /// The same with a weight that is read while it is packed.
    ///
    /// # Panics
    /// If a length does not match or `stride` is 0.
    pub fn from_source(
        weight: &dyn Source,
        shape: [usize; 4],
        bias: Option<&[f32]>,
        stride: usize,
        padding: Padding,
        (precision, pixels): (Precision, usize),
    ) -> Self {
        let shape = conv_shape(shape, stride, padding);
        let precision = precision.for_layer(shape.in_channels, shape.out_channels);
        let packed = packed_conv(weight, shape, (precision, pixels));
        Self::of(Weight::Here(packed), shape, bias, precision)
    }

    /// The same with a weight that is fetched, and packed, in every call and dropped after it.
    ///
    /// # Panics
    /// If the length of `bias` does not match or `stride` is 0; in a call, if the length of the weight does not match.
    pub fn fetched(
        fetch: Fetch,
        shape: [usize; 4],
        bias: Option<&[f32]>,
        stride: usize,
        padding: Padding,
        (precision, pixels): (Precision, usize),
    ) -> Self {
        let shape = conv_shape(shape, stride, padding);
        let precision = precision.for_layer(shape.in_channels, shape.out_channels);
        let weight = Weight::fetched(fetch, move |weight| {
            packed_conv(weight, shape, (precision, pixels))
        });
        Self::of(weight, shape, bias, precision)
    }

    fn of(
        weight: Weight<PackedConv>,
        shape: ConvShape,
        bias: Option<&[f32]>,
        precision: Precision,
    ) -> Self {
        check_bias("Conv2d", bias, shape.out_channels);
        Conv2d {
            weight,
            bias: bias.map(<[f32]>::to_vec),
            shape,
            precision,
        }
    }

    /// The packed weights, for one operation.
    pub(crate) fn weight(&self) -> Lent<'_, PackedConv> {
        self.weight.lend()
    }

    /// Sizes of the kernel, and how it moves.
    pub(crate) fn shape(&self) -> ConvShape {
        self.shape
    }

    /// Channels going in.
    pub fn in_channels(&self) -> usize {
        self.shape.in_channels
    }

    /// Channels coming out.
    pub fn out_channels(&self) -> usize {
        self.shape.out_channels
    }

    /// What its products are computed in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Memory the packed weights take between calls.
    pub fn bytes(&self) -> usize {
        match &self.weight {
            Weight::Here(packed) => packed.bytes(),
            Weight::Made(_) => 0,
        }
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
        } = self.shape;
        let (padded_h, padded_w) = (
            h + padding.top + padding.bottom,
            w + padding.left + padding.right,
        );
        assert!(
            padded_h >= kernel_height && padded_w >= kernel_width,
            "Conv2d: input {h}×{w}, padded, is smaller than the {kernel_height}×{kernel_width} kernel"
        );
        let out = self.shape.output(Extent {
            batch: 1,
            height: h,
            width: w,
        });
        (out.height, out.width)
    }
}

fn conv_shape(shape: [usize; 4], stride: usize, padding: Padding) -> ConvShape {
    assert!(stride > 0, "Conv2d {shape:?}: stride 0");
    let [out_channels, in_channels, kernel_height, kernel_width] = shape;
    ConvShape {
        out_channels,
        in_channels,
        kernel_height,
        kernel_width,
        stride,
        padding,
    }
}

fn packed_conv(
    weight: &dyn Source,
    shape: ConvShape,
    (precision, pixels): (Precision, usize),
) -> PackedConv {
    let got = weight.count();
    let taps = shape.kernel_height * shape.kernel_width;
    assert_eq!(
        got,
        shape.out_channels * shape.in_channels * taps,
        "Conv2d {shape:?}: weight has {got} values"
    );
    let algorithm = Algorithm::fastest(shape, pixels, precision);
    PackedConv::from_source(weight, shape, precision, algorithm)
}

impl fmt::Debug for Conv2d {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conv2d({:?})", self.shape())
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
