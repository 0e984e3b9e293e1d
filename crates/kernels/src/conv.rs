//! Convolutions over `[B, H, W, C]`, as products whose left rows are gathered tap by tap.
//!
//! Nothing is unfolded or padded in memory: a tap is an offset into the input, a tap outside the
//! picture is skipped, and a nearest-neighbour upsample before the convolution is a division in
//! the offset.

use crate::arch::OUTSIDE;
use crate::epilogue::Epilogue;
use crate::gemm::{Panels, Rows, product};
use crate::level::{Level, level};
use crate::precision::Precision;
use crate::words::Left;

/// Zeros around the input, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Columns left.
    pub left: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns right.
    pub right: usize,
}

impl Padding {
    /// The same on all four sides.
    pub fn all(pixels: usize) -> Self {
        Padding {
            top: pixels,
            left: pixels,
            bottom: pixels,
            right: pixels,
        }
    }
}

/// What a convolution's weights do not say, and their shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Channels of the output (O of OIHW).
    pub out_channels: usize,
    /// Channels of the input (I of OIHW).
    pub in_channels: usize,
    /// Rows of the kernel.
    pub kernel_height: usize,
    /// Columns of the kernel.
    pub kernel_width: usize,
    /// Input pixels from one output pixel to the next, both ways.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: Padding,
}

/// Images in a batch and their size in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How many images.
    pub batch: usize,
    /// Rows of one.
    pub height: usize,
    /// Columns of one.
    pub width: usize,
}

impl Extent {
    /// Pixels of the whole batch.
    pub fn pixels(self) -> usize {
        self.batch * self.height * self.width
    }
}

/// The weights of a convolution, packed once.
#[derive(Clone, Debug)]
pub struct PackedConv {
    panels: Panels,
    shape: ConvShape,
}

impl PackedConv {
    /// Packs `weight`, `[O, I, kernel height, kernel width]` as checkpoints have it.
    ///
    /// # Panics
    /// If the length is another or a size is 0.
    pub fn new(weight: &[f32], shape: ConvShape) -> Self {
        Self::with_precision(weight, shape, Precision::F32)
    }

    /// The same, rounded to `precision`.
    ///
    /// # Panics
    /// If the length is another or a size is 0.
    pub fn with_precision(weight: &[f32], shape: ConvShape, precision: Precision) -> Self {
        assert!(shape.stride > 0, "{shape:?}");
        let taps = shape.kernel_height * shape.kernel_width;
        let (out, inside) = (shape.out_channels, shape.in_channels);
        let panels = Panels::pack(weight, out, inside, taps, precision);
        PackedConv { panels, shape }
    }

    /// What was packed.
    pub fn shape(&self) -> ConvShape {
        self.shape
    }

    /// What the products are computed in.
    pub fn precision(&self) -> Precision {
        self.panels.precision()
    }

    /// Bytes the packed weights take.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    /// The output's size for an input of `extent`.
    ///
    /// # Panics
    /// If the padded input is smaller than the kernel.
    pub fn output(&self, extent: Extent) -> Extent {
        let ConvShape {
            kernel_height,
            kernel_width,
            stride,
            padding,
            ..
        } = self.shape;
        let height = extent.height + padding.top + padding.bottom;
        let width = extent.width + padding.left + padding.right;
        assert!(
            height >= kernel_height && width >= kernel_width,
            "{extent:?}, {:?}",
            self.shape
        );
        Extent {
            batch: extent.batch,
            height: (height - kernel_height) / stride + 1,
            width: (width - kernel_width) / stride + 1,
        }
    }
}

/// A convolution: `x` is `[B, H, W, I]` of `extent`, `out` is `[B, H', W', O]` of
/// [`PackedConv::output`].
///
/// # Panics
/// If a length does not fit.
pub fn conv2d(
    x: &[f32],
    extent: Extent,
    weights: &PackedConv,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
) {
    conv2d_at(
        level(),
        x,
        extent,
        (extent.height, extent.width),
        weights,
        epilogue,
        out,
    );
}

/// [`conv2d`] of `x` enlarged (or shrunk) to `size`, (rows, columns), by nearest neighbour:
/// pixel y of the new is pixel ⌊y · H / H'⌋ of the old, as torch's `interpolate` has it.
///
/// # Panics
/// If a length does not fit.
pub fn conv2d_upsampled(
    x: &[f32],
    extent: Extent,
    size: (usize, usize),
    weights: &PackedConv,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
) {
    conv2d_at(level(), x, extent, size, weights, epilogue, out);
}

/// [`conv2d_upsampled`] at a level of the caller's choice, for tests and benches; `size` equal to
/// the extent's is [`conv2d`].
///
/// # Panics
/// If a length does not fit or the CPU lacks the level.
pub fn conv2d_at(
    level: Level,
    x: &[f32],
    extent: Extent,
    size: (usize, usize),
    weights: &PackedConv,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
) {
    let shape = weights.shape;
    assert_eq!(
        x.len(),
        extent.pixels() * shape.in_channels,
        "x: {extent:?}, {shape:?}"
    );
    let resized = Extent {
        height: size.0,
        width: size.1,
        ..extent
    };
    let output = weights.output(resized);
    assert_eq!(
        out.len(),
        output.pixels() * shape.out_channels,
        "out: {output:?}, {shape:?}"
    );
    let panels = &weights.panels;
    let rows = Gathered::new(extent, resized, output, shape, panels.left_words(level));
    let left = Left::new(level, x, panels);
    product(level, &left, &rows, panels, epilogue, out);
}

/// Rows of the product: output pixels, gathered from under the kernel.
struct Gathered {
    /// Where the input line under a kernel row starts in an image: `[H'][kernel height]`.
    lines: Vec<usize>,
    /// Where the input pixel under a kernel column starts in a line: `[W'][kernel width]`.
    columns: Vec<usize>,
    output: Extent,
    /// Words of one input image, and of one of its pixels.
    image: usize,
    words: usize,
    shape: ConvShape,
}

impl Gathered {
    fn new(
        extent: Extent,
        resized: Extent,
        output: Extent,
        shape: ConvShape,
        words: usize,
    ) -> Self {
        let ConvShape {
            kernel_height,
            kernel_width,
            stride,
            padding,
            ..
        } = shape;
        let axis = |out: usize, kernel: usize, before: usize, old: usize, new: usize, by: usize| {
            let under = move |position: usize| {
                let padded = position / kernel * stride + position % kernel;
                let at = padded.checked_sub(before).filter(|&at| at < new);
                at.map_or(OUTSIDE, |at| at * old / new * by)
            };
            (0..out * kernel).map(under).collect()
        };
        let line = extent.width * words;
        let (old, new) = (extent, resized);
        Gathered {
            lines: axis(
                output.height,
                kernel_height,
                padding.top,
                old.height,
                new.height,
                line,
            ),
            columns: axis(
                output.width,
                kernel_width,
                padding.left,
                old.width,
                new.width,
                words,
            ),
            output,
            image: extent.height * line,
            words,
            shape,
        }
    }
}

impl Rows for Gathered {
    fn taps(&self) -> usize {
        self.shape.kernel_height * self.shape.kernel_width
    }
    fn words(&self) -> usize {
        self.words
    }
    #[inline(always)]
    fn starts(&self, row: usize, mut tell: impl FnMut(usize)) {
        let ConvShape {
            kernel_height,
            kernel_width,
            ..
        } = self.shape;
        let (line, column) = (row / self.output.width, row % self.output.width);
        let (image, line) = (line / self.output.height, line % self.output.height);
        let columns = &self.columns[column * kernel_width..][..kernel_width];
        for &line in &self.lines[line * kernel_height..][..kernel_height] {
            for &column in columns {
                let outside = line == OUTSIDE || column == OUTSIDE;
                tell(if outside {
                    OUTSIDE
                } else {
                    image * self.image + line + column
                });
            }
        }
    }
}
