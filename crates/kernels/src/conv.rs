//! Convolutions over `[B, H, W, C]`, as products whose left rows are gathered tap by tap.
//!
//! Nothing is unfolded or padded in memory: a tap is an offset into the input, a tap outside the
//! picture is skipped, and a nearest-neighbour upsample before the convolution is a division in
//! the offset. The other way to convolve, with transformed tiles, is `winograd`'s.

use crate::arch::OUTSIDE;
use crate::epilogue::{Epilogue, Finish};
use crate::gemm::{Panels, Rows, product};
use crate::level::{Level, level};
use crate::precision::Precision;
use crate::source::{InMemory, Source};
use crate::winograd::{self, Input, Tile, Weights};
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

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// As the definition says: one product for each tap.
    #[default]
    Direct,
    /// F(2×2, 3×3): 4 multiplications an output instead of 9, 16/9 of the memory.
    Winograd2,
    /// F(4×4, 3×3): 2¼ multiplications an output instead of 9, 4 times the memory.
    Winograd4,
}

impl Algorithm {
    /// The fastest for maps of about `pixels` pixels, as measured; [`Algorithm::Direct`] for all but 3×3 kernels
    /// with stride 1 and enough channels. In bf16 only what loses as little as rounding alone does.
    pub fn fastest(shape: ConvShape, pixels: usize, precision: Precision) -> Self {
        let possible = shape.suits_tiles();
        match pixels {
            _ if !possible || shape.in_channels.min(shape.out_channels) < 128 => Algorithm::Direct,
            ..128 => Algorithm::Direct,
            128..512 => Algorithm::Winograd2,
            _ if precision == Precision::Bf16 => Algorithm::Winograd2,
            _ => Algorithm::Winograd4,
        }
    }
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

impl ConvShape {
    /// Whether tiles can be transformed: 3×3, stride 1.
    fn suits_tiles(&self) -> bool {
        (self.kernel_height, self.kernel_width, self.stride) == (3, 3, 1)
    }

    /// The output's size for an input of `extent`.
    ///
    /// # Panics
    /// If the padded input is smaller than the kernel.
    pub fn output(self, extent: Extent) -> Extent {
        let ConvShape {
            kernel_height,
            kernel_width,
            stride,
            padding,
            ..
        } = self;
        let height = extent.height + padding.top + padding.bottom;
        let width = extent.width + padding.left + padding.right;
        assert!(
            height >= kernel_height && width >= kernel_width,
            "{extent:?}, {self:?}"
        );
        Extent {
            batch: extent.batch,
            height: (height - kernel_height) / stride + 1,
            width: (width - kernel_width) / stride + 1,
        }
    }
}

/// The weights of a convolution, packed once.
#[derive(Clone, Debug)]
pub struct PackedConv {
    packed: Packed,
    shape: ConvShape,
}

#[derive(Clone, Debug)]
enum Packed {
    Direct(Panels),
    Winograd(Weights),
}

impl PackedConv {
    /// Packs `weight`, `[O, I, kernel height, kernel width]` as checkpoints have it, for a direct convolution.
    ///
    /// # Panics
    /// If the length is another or a size is 0.
    pub fn new(weight: &[f32], shape: ConvShape) -> Self {
        Self::with(weight, shape, Precision::F32, Algorithm::Direct)
    }

    /// The same, rounded to `precision`.
    ///
    /// # Panics
    /// If the length is another or a size is 0.
    pub fn with_precision(weight: &[f32], shape: ConvShape, precision: Precision) -> Self {
        Self::with(weight, shape, precision, Algorithm::Direct)
    }

    /// Packs `weight` as `algorithm` wants it, or for a direct convolution where that can't do the shape or the
    /// `precision`: int8 is direct.
    ///
    /// # Panics
    /// If the length is another or a size is 0.
    pub fn with(
        weight: &[f32],
        shape: ConvShape,
        precision: Precision,
        algorithm: Algorithm,
    ) -> Self {
        Self::from_source(&InMemory(weight), shape, precision, algorithm)
    }

    /// The same of values that are read while they are packed.
    ///
    /// # Panics
    /// If their count is another or a size is 0.
    pub fn from_source(
        weight: &dyn Source,
        shape: ConvShape,
        precision: Precision,
        algorithm: Algorithm,
    ) -> Self {
        assert!(shape.stride > 0, "{shape:?}");
        let (outputs, inputs) = (shape.out_channels, shape.in_channels);
        let tile = match algorithm {
            Algorithm::Direct => None,
            Algorithm::Winograd2 => Some(Tile::Two),
            Algorithm::Winograd4 => Some(Tile::Four),
        };
        let possible = shape.suits_tiles() && precision != Precision::Int8;
        let packed = match tile.filter(|_| possible) {
            Some(tile) => {
                Packed::Winograd(Weights::pack(weight, (outputs, inputs), precision, tile))
            }
            None => {
                let taps = shape.kernel_height * shape.kernel_width;
                Packed::Direct(Panels::pack(weight, outputs, inputs, taps, precision))
            }
        };
        PackedConv { packed, shape }
    }

    /// What was packed.
    pub fn shape(&self) -> ConvShape {
        self.shape
    }

    /// What the products are computed in.
    pub fn precision(&self) -> Precision {
        match &self.packed {
            Packed::Direct(panels) => panels.precision(),
            Packed::Winograd(weights) => weights.precision(),
        }
    }

    /// Bytes the packed weights take.
    pub fn bytes(&self) -> usize {
        match &self.packed {
            Packed::Direct(panels) => panels.bytes(),
            Packed::Winograd(weights) => weights.bytes(),
        }
    }

    /// [`ConvShape::output`] of what was packed.
    ///
    /// # Panics
    /// If the padded input is smaller than the kernel.
    pub fn output(&self, extent: Extent) -> Extent {
        self.shape.output(extent)
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
    match &weights.packed {
        Packed::Direct(panels) => {
            let places = Places::new(extent, resized, shape.padding, panels.left_words(level));
            let rows = Gathered::new(&places, output, shape);
            let left = Left::new(level, x, panels);
            let finish = Finish::new(epilogue, output.pixels(), shape.out_channels);
            product(level, &left, &rows, panels, finish, out);
        }
        Packed::Winograd(weights) => {
            let places = Places::new(extent, resized, shape.padding, shape.in_channels);
            let input = Input {
                x,
                image: places.image,
                line: &|y| places.line(y),
                column: &|x| places.column(x),
                channels: shape.in_channels,
            };
            let size = (output.batch, output.height, output.width);
            winograd::convolve(level, &input, weights, epilogue, size, out);
        }
    }
}

/// Where the pixels of a padded and resized input really lie.
struct Places {
    extent: Extent,
    resized: Extent,
    padding: Padding,
    /// Words of a pixel.
    words: usize,
    /// Words of one input image.
    image: usize,
}

impl Places {
    fn new(extent: Extent, resized: Extent, padding: Padding, words: usize) -> Self {
        Places {
            extent,
            resized,
            padding,
            words,
            image: extent.height * extent.width * words,
        }
    }

    /// Where line `y`, counted with the padding, starts in an image; [`OUTSIDE`] if it is padding or past it.
    fn line(&self, y: usize) -> usize {
        let at = y.checked_sub(self.padding.top);
        let at = at.filter(|&at| at < self.resized.height);
        let by = self.extent.width * self.words;
        at.map_or(OUTSIDE, |at| {
            at * self.extent.height / self.resized.height * by
        })
    }

    /// Where pixel `x`, counted with the padding, starts in a line; [`OUTSIDE`] if it is padding or past it.
    fn column(&self, x: usize) -> usize {
        let at = x.checked_sub(self.padding.left);
        let at = at.filter(|&at| at < self.resized.width);
        at.map_or(OUTSIDE, |at| {
            at * self.extent.width / self.resized.width * self.words
        })
    }
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
    fn new(places: &Places, output: Extent, shape: ConvShape) -> Self {
        let under = |kernel: usize, idx: usize| idx / kernel * shape.stride + idx % kernel;
        let (height, width) = (shape.kernel_height, shape.kernel_width);
        let lines = 0..output.height * height;
        let columns = 0..output.width * width;
        Gathered {
            lines: lines.map(|idx| places.line(under(height, idx))).collect(),
            columns: columns
                .map(|idx| places.column(under(width, idx)))
                .collect(),
            output,
            image: places.image,
            words: places.words,
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
