//! What happens to a product before it is written: bias, activation, residual, in one pass.
//!
//! Shared by `gemm` and `conv`; the activations' arithmetic is in `math`.

use crate::arch::Simd;
use crate::math;

/// A function applied to every element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// x
    #[default]
    None,
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
        }
    }

    /// Finishes the products of one row, from `column` on, into `out` of the same length.
    #[inline(always)]
    pub(crate) fn row<S: Simd>(
        &self,
        simd: S,
        row: usize,
        column: usize,
        products: &[f32],
        out: &mut [f32],
    ) {
        let len = out.len();
        assert!(products.len() >= len);
        let bias = self.epilogue.bias.map(|bias| &bias[column..column + len]);
        let image_bias = self.epilogue.image_bias.map(|bias| {
            let start = row / self.rows_per_image * self.columns + column;
            &bias[start..start + len]
        });
        let residual = self.epilogue.residual.map(|residual| {
            let start = row * self.columns + column;
            &residual[start..start + len]
        });
        let mut at = 0;
        while at < len {
            let end = (at + S::LANES).min(len);
            let mut x = simd.load_partial(&products[at..end]);
            if let Some(bias) = bias {
                x = simd.add(x, simd.load_partial(&bias[at..end]));
            }
            if let Some(bias) = image_bias {
                x = simd.add(x, simd.load_partial(&bias[at..end]));
            }
            x = match self.epilogue.activation {
                Activation::None => x,
                Activation::Silu => math::silu(simd, x),
                Activation::Gelu => math::gelu(simd, x),
                Activation::QuickGelu => math::quick_gelu(simd, x),
            };
            if let Some(residual) = residual {
                x = simd.add(x, simd.load_partial(&residual[at..end]));
            }
            simd.store_partial(x, &mut out[at..end]);
            at = end;
        }
    }
}
