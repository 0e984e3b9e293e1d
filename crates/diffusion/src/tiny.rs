//! The tiny autoencoder's decoder (TAESD): latents to pictures in a small part of the VAE's time, with less detail.
//!
//! Only convolutions, ReLU and doublings. Fields carry diffusers' names (`AutoencoderTiny`); which tensor of a file they mean is
//! [`crate::load`]'s business.

use safelight_tensor::{Activation, Conv2d, Epilogue, Tensor, ops};

use crate::load::{LoadError, Problem};
use crate::nn::{Builder, ConvShape, Leaf, Weights};
use crate::precision::Ways;

/// Channels of a picture.
const PICTURE_CHANNELS: usize = 3;
/// Side of a usual picture.
const USUAL_SIDE: usize = 512;

/// What the decoder is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TinyConfig {
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Channels between the first and the last convolution.
    pub width: usize,
    /// Residual blocks of each level, from the smallest; each level but the last ends by doubling the size.
    pub blocks: Vec<usize>,
}

impl TinyConfig {
    /// The released `taesd_decoder`.
    pub fn taesd() -> TinyConfig {
        TinyConfig {
            latent_channels: 4,
            width: 64,
            blocks: vec![3, 3, 3, 1],
        }
    }

    /// Pixels of a picture to one of its latent, along a side.
    pub fn upscale(&self) -> usize {
        1 << (self.blocks.len() - 1)
    }
}

/// Decodes latents as the UNet has them: no scale factor.
///
/// Source: madebyollin's TAESD, `taesd.py`, and diffusers' `DecoderTiny` (behaviour).
///
/// ```
/// use safelight_diffusion::nn::RandomWeights;
/// use safelight_diffusion::tiny::{TinyConfig, TinyDecoder};
/// use safelight_tensor::Tensor;
///
/// let config = TinyConfig { latent_channels: 4, width: 16, blocks: vec![1, 2] };
/// let tiny = TinyDecoder::load(&RandomWeights { seed: 1 }, config, Default::default())?;
/// assert_eq!(tiny.decode(&Tensor::zeros(&[1, 6, 4, 4])).shape(), [1, 12, 8, 3]);
/// # Ok::<(), safelight_diffusion::load::LoadError>(())
/// ```
pub struct TinyDecoder {
    config: TinyConfig,
    conv_in: Leaf<Conv2d>,
    levels: Vec<Level>,
}

struct Level {
    blocks: Vec<[Leaf<Conv2d>; 3]>,
    /// After the doubling; of the last level the one that makes the picture.
    conv: Leaf<Conv2d>,
}

impl TinyDecoder {
    /// Describes the network without reading; [`Builder::fill`] reads.
    pub fn describe(builder: &mut Builder<'_>, config: TinyConfig) -> TinyDecoder {
        if config.blocks.is_empty() || config.width == 0 || config.latent_channels == 0 {
            let what = format!("no tiny decoder is built like {config:?}");
            builder.problem(Problem::Unsupported { what });
        }
        let (width, last) = (config.width, config.blocks.len().saturating_sub(1));
        let layer = |idx: usize| format!("decoder.layers.{idx}");
        builder.maps_of(USUAL_SIDE >> last);
        let first = ConvShape::same(width, config.latent_channels);
        let conv_in = builder.conv(&layer(0), first);
        // A ReLU has a number too, and so has a doubling.
        let mut idx = 2;
        let mut levels = Vec::new();
        for (level, &count) in config.blocks.iter().enumerate() {
            builder.maps_of(USUAL_SIDE >> (last - level));
            let mut blocks = Vec::new();
            for _ in 0..count {
                blocks.push([0, 2, 4].map(|conv| {
                    let name = format!("{}.conv.{conv}", layer(idx));
                    builder.conv(&name, ConvShape::same(width, width))
                }));
                idx += 1;
            }
            let shape = if level < last {
                idx += 1;
                builder.maps_of(USUAL_SIDE >> (last - level - 1));
                ConvShape::same(width, width).unbiased()
            } else {
                ConvShape::same(PICTURE_CHANNELS, width)
            };
            let conv = builder.conv(&layer(idx), shape);
            idx += 1;
            levels.push(Level { blocks, conv });
        }
        TinyDecoder {
            config,
            conv_in,
            levels,
        }
    }

    /// Reads the network.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen, unreadable or not finite.
    pub fn load(
        weights: &dyn Weights,
        config: TinyConfig,
        ways: Ways,
    ) -> Result<TinyDecoder, LoadError> {
        let mut builder = Builder::with_ways(weights, ways);
        let tiny = TinyDecoder::describe(&mut builder, config);
        builder.fill()?;
        Ok(tiny)
    }

    /// The network's structure.
    pub fn config(&self) -> &TinyConfig {
        &self.config
    }

    /// Latents `[B, h, w, latent_channels]` as the UNet has them to pictures `[B, H, W, 3]`, nominally in −1 to 1.
    pub fn decode(&self, latent: &Tensor) -> Tensor {
        let squeezed = latent.data().iter().map(|x| (x / 3.0).tanh() * 3.0);
        let squeezed = Tensor::from_slice(latent.shape(), &squeezed.collect::<Vec<f32>>());
        let mut x = ops::conv2d(&squeezed, &self.conv_in, RELU);
        let last = self.levels.len() - 1;
        for (idx, level) in self.levels.iter().enumerate() {
            for block in &level.blocks {
                x = residual(x, block);
            }
            x = if idx < last {
                ops::conv2d_upsampled(&x, &level.conv, 2 * x.dim(1), 2 * x.dim(2))
            } else {
                ops::conv2d(&x, &level.conv, Epilogue::default())
            };
        }
        // Trained for 0 to 1.
        let values = x.data_mut();
        values.iter_mut().for_each(|x| *x = 2.0 * *x - 1.0);
        x
    }
}

/// Of a convolution without a skip.
const RELU: Epilogue<'static> = Epilogue {
    image_bias: None,
    activation: Activation::Relu,
    residual: None,
};

/// Three convolutions around a skip, each with a ReLU; the last one's is of the sum.
fn residual(x: Tensor, [first, second, third]: &[Leaf<Conv2d>; 3]) -> Tensor {
    let hidden = ops::conv2d(&ops::conv2d(&x, first, RELU), second, RELU);
    let skip = Epilogue {
        residual: Some(&x),
        ..Epilogue::default()
    };
    ops::relu(&ops::conv2d(&hidden, third, skip))
}
