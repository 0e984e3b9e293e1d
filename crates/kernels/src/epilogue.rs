//! What happens to a product before it is written: bias, activation, residual, in one pass.
//!
//! Shared by `gemm` and `conv`; the activations' arithmetic is in `math`.

use crate::arch::{PANEL, Rectangle, STREAMED_BYTES_MIN, Simd};
use crate::math;
use crate::words::HALF;

/// A function applied to every element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// x
    #[default]
    None,
    /// max(x, 0); NaN stays NaN.
    Relu,
    /// x · sigmoid(x)
    Silu,
    /// x · Φ(x), with the exact normal distribution function (erf), not the tanh form.
    Gelu,
    /// x · sigmoid(1.702 x), as OpenAI's CLIP has it.
    QuickGelu,
}

/// `out = activation(product + bias + image_bias) + residual`; the default writes the product.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// `[C]`: one for each output channel.
    pub bias: Option<&'a [f32]>,
    /// `[B, C]`: one vector for each image (the time embedding's way into a block).
    pub image_bias: Option<&'a [f32]>,
    /// Applied after the biases, before the residual.
    pub activation: Activation,
    /// Of the output's shape, added last.
    pub residual: Option<&'a [f32]>,
}

impl Epilogue<'_> {
    /// Asserts that every part fits an output of `rows` × `columns`.
    ///
    /// # Panics
    /// If one does not.
    pub(crate) fn check(&self, rows: usize, columns: usize) {
        if let Some(bias) = self.bias {
            assert_eq!(
                bias.len(),
                columns,
                "bias: one value for each of {columns} channels"
            );
        }
        if let Some(image_bias) = self.image_bias {
            let images = image_bias.len() / columns;
            assert_eq!(
                image_bias.len(),
                images * columns,
                "image_bias: whole vectors"
            );
            assert!(
                images > 0 && rows.is_multiple_of(images),
                "{rows} rows, {images} image biases"
            );
        }
        if let Some(residual) = self.residual {
            assert_eq!(
                residual.len(),
                rows * columns,
                "residual: the output's shape"
            );
        }
    }
}

/// [`Epilogue`] of an output whose row and column counts are known and checked.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    epilogue: Epilogue<'a>,
    columns: usize,
    /// Rows that share one vector of `image_bias`.
    rows_per_image: usize,
    /// Whether products are values and, in a panel's second half, their gates.
    gated: bool,
    /// Whether the output is too large to stay in a cache.
    streamed: bool,
}

impl<'a> Finish<'a> {
    /// # Panics
    /// If a part of `epilogue` does not fit an output of `rows` × `columns`.
    pub(crate) fn new(epilogue: &Epilogue<'a>, rows: usize, columns: usize) -> Self {
        epilogue.check(rows, columns);
        let images = epilogue.image_bias.map_or(1, |bias| bias.len() / columns);
        Finish {
            epilogue: *epilogue,
            columns,
            rows_per_image: (rows / images).max(1),
            gated: false,
            streamed: rows * columns * size_of::<f32>() >= STREAMED_BYTES_MIN,
        }
    }

    /// Whether [`Simd::end_streams`] must follow before anyone else may read the output.
    #[inline(always)]
    pub(crate) fn is_streamed(&self) -> bool {
        self.streamed
    }

    /// Of values and gates: `out = (value + bias) · gelu(gate + bias)`, where `bias` has those of all values first.
    ///
    /// # Panics
    /// If `bias` is not of two times as many as there are `columns`.
    pub(crate) fn geglu(bias: Option<&'a [f32]>, columns: usize) -> Self {
        if let Some(bias) = bias {
            assert_eq!(bias.len(), 2 * columns, "bias: of values and of gates");
        }
        Finish {
            epilogue: Epilogue {
                bias,
                ..Epilogue::default()
            },
            columns,
            rows_per_image: 1,
            gated: true,
            streamed: false,
        }
    }

    /// Finishes the products of neighbouring rows, `[rows][PANEL]`, from `row` and `column` of the
    /// output on, into as many columns of `out` from its `at` on as `width` says.
    #[inline(always)]
    pub(crate) fn rows<S: Simd>(
        &self,
        simd: S,
        products: &[f32],
        out: &mut Rectangle<'_>,
        (first_row, at): (usize, usize),
        width: usize,
    ) {
        let panel = self.panel(out.column + at, width);
        for (idx, products) in products.as_chunks::<PANEL>().0.iter().enumerate() {
            let row = out.row + first_row + idx;
            let out = &mut out.row_mut(first_row + idx)[at..][..width];
            panel.pixel(simd, products, row, out);
        }
    }

    /// For `width` columns from `column` on, at most a panel.
    #[inline(always)]
    pub(crate) fn panel(&self, column: usize, width: usize) -> FinishPanel<'a> {
        let mut bias = [0.0; PANEL];
        if let Some(all) = self.epilogue.bias {
            bias[..width].copy_from_slice(&all[column..][..width]);
            if self.gated {
                let of_gates = &all[self.columns + column..][..width];
                bias[HALF..][..width].copy_from_slice(of_gates);
            }
        }
        FinishPanel {
            finish: *self,
            bias,
            column,
            width,
        }
    }
}

/// [`Finish`] of one panel's columns.
pub(crate) struct FinishPanel<'a> {
    finish: Finish<'a>,
    bias: [f32; PANEL],
    column: usize,
    width: usize,
}

impl FinishPanel<'_> {
    /// Finishes the products of output row `row` into `out`, the panel's columns of that row.
    #[inline(always)]
    pub(crate) fn pixel<S: Simd>(
        &self,
        simd: S,
        products: &[f32; PANEL],
        row: usize,
        out: &mut [f32],
    ) {
        let Finish {
            epilogue,
            columns,
            rows_per_image,
            gated,
            ..
        } = self.finish;
        let width = self.width;
        if gated {
            let out = out.first_chunk_mut().expect("half a panel");
            return self.gate(simd, products, out);
        }
        let image_bias = epilogue
            .image_bias
            .map(|bias| &bias[row / rows_per_image * columns + self.column..][..width]);
        let residual = epilogue
            .residual
            .map(|residual| &residual[row * columns + self.column..][..width]);
        if let Some(out) = out.first_chunk_mut::<PANEL>() {
            self.whole(simd, products, image_bias, residual, out);
        } else {
            let mut whole = [0.0; PANEL];
            let image_bias = image_bias.map(widened);
            let residual = residual.map(widened);
            let (image_bias, residual) = (image_bias.as_ref(), residual.as_ref());
            self.whole(
                simd,
                products,
                image_bias.map(|x| x.as_slice()),
                residual.map(|x| x.as_slice()),
                &mut whole,
            );
            out.copy_from_slice(&whole[..width]);
        }
    }

    /// One row of values and gates.
    #[inline(always)]
    fn gate<S: Simd>(&self, simd: S, products: &[f32; PANEL], out: &mut [f32; HALF]) {
        for at in (0..HALF).step_by(S::LANES) {
            let x = |at: usize| simd.add(simd.load(&products[at..]), simd.load(&self.bias[at..]));
            let gate = math::gelu(simd, x(HALF + at));
            simd.store(simd.mul(x(at), gate), &mut out[at..]);
        }
    }

    /// One row of a whole panel.
    #[inline(always)]
    fn whole<S: Simd>(
        &self,
        simd: S,
        products: &[f32; PANEL],
        image_bias: Option<&[f32]>,
        residual: Option<&[f32]>,
        out: &mut [f32; PANEL],
    ) {
        let image_bias = image_bias.and_then(|bias| bias.first_chunk::<PANEL>());
        let residual = residual.and_then(|residual| residual.first_chunk::<PANEL>());
        for at in (0..PANEL).step_by(S::LANES) {
            let mut x = simd.add(simd.load(&products[at..]), simd.load(&self.bias[at..]));
            if let Some(bias) = image_bias {
                x = simd.add(x, simd.load(&bias[at..]));
            }
            x = match self.finish.epilogue.activation {
                Activation::None => x,
                Activation::Relu => math::relu(simd, x),
                Activation::Silu => math::silu(simd, x),
                Activation::Gelu => math::gelu(simd, x),
                Activation::QuickGelu => math::quick_gelu(simd, x),
            };
            if let Some(residual) = residual {
                x = simd.add(x, simd.load(&residual[at..]));
            }
            if self.finish.streamed {
                simd.stream(x, &mut out[at..]);
            } else {
                simd.store(x, &mut out[at..]);
            }
        }
    }
}

/// Filled up with zeros to a whole panel.
#[inline(always)]
fn widened(x: &[f32]) -> [f32; PANEL] {
    let mut whole = [0.0; PANEL];
    whole[..x.len()].copy_from_slice(x);
    whole
}
