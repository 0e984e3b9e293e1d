//! The autoencoder between pictures and latents: 8 times smaller each way in Stable Diffusion.
//!
//! Fields carry diffusers' names. Latents here are the network's own; the scale factor that samplers work in is
//! applied by [`crate::pipeline`].

use safelight_tensor::{Conv2d, Epilogue, Linear, Norm, Padding, Precision, Tensor, ops};

use crate::load::{LoadError, Problem};
use crate::nn::{Builder, ConvShape, Leaf, Trace, Weights};
use crate::precision::Ways;
use crate::unet::{ResnetBlock, ResnetShape};

/// The structure of an autoencoder.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    /// The way from picture to latent.
    pub encoder: VaeHalf,
    /// The way from latent to picture.
    pub decoder: VaeHalf,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Whether a 1×1 convolution follows the encoder.
    pub quant_conv: bool,
    /// Whether a 1×1 convolution comes before the decoder.
    pub post_quant_conv: bool,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// What latents are multiplied by for the UNet: 0.18215 in SD 1.x.
    pub scale_factor: f32,
}

/// One half's levels, in the order they are walked.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeHalf {
    /// Width of each level, from the picture to the latent in the encoder, the other way in the decoder.
    pub channels: Vec<usize>,
    /// Residual blocks of each level.
    pub layers: Vec<usize>,
    /// Whether the middle has attention.
    pub attention: bool,
}

/// Epsilon of the autoencoder's norms.
const NORM_EPS: f32 = 1e-6;
/// Most levels: beyond them a latent's pixel would stand for more than any picture.
const LEVELS_MAX: usize = 16;
/// Colours of a picture.
const PICTURE_CHANNELS: usize = 3;

impl VaeConfig {
    /// Stable Diffusion 1.x.
    pub fn sd15() -> VaeConfig {
        let half = |channels: [usize; 4], layers| VaeHalf {
            channels: channels.to_vec(),
            layers: vec![layers; 4],
            attention: true,
        };
        VaeConfig {
            encoder: half([128, 256, 512, 512], 2),
            decoder: half([512, 512, 256, 128], 3),
            latent_channels: 4,
            quant_conv: true,
            post_quant_conv: true,
            norm_num_groups: 32,
            scale_factor: 0.18215,
        }
    }

    /// How many pixels a latent's pixel stands for, along each side.
    pub fn downscale(&self) -> usize {
        1 << self.decoder.channels.len().saturating_sub(1)
    }

    /// What this structure cannot be built or run with: empty if all is well.
    pub fn faults(&self) -> Vec<String> {
        let (groups, mut faults) = (self.norm_num_groups, Vec::new());
        for channels in self.encoder.channels.iter().chain(&self.decoder.channels) {
            if groups == 0 || *channels == 0 || channels % groups != 0 {
                faults.push(format!(
                    "VAE: {channels} channels do not divide into {groups} norm groups"
                ));
            }
        }
        if self.decoder.channels.len() > LEVELS_MAX {
            let levels = self.decoder.channels.len();
            faults.push(format!(
                "VAE: {levels} levels, at most {LEVELS_MAX} are supported"
            ));
        }
        if self.encoder.channels.is_empty()
            || self.encoder.channels.len() != self.decoder.channels.len()
        {
            let (down, up) = (self.encoder.channels.len(), self.decoder.channels.len());
            faults.push(format!(
                "VAE: the encoder has {down} levels, the decoder {up}"
            ));
        }
        if !(self.scale_factor.is_finite() && self.scale_factor > 0.0) {
            faults.push(format!("VAE: scale factor {}", self.scale_factor));
        }
        faults.dedup();
        faults
    }
}

/// The autoencoder of Stable Diffusion 1.x's class, of any size.
///
/// Source: Rombach et al. 2022, arXiv:2112.10752, §3.1; Esser et al. 2021, arXiv:2012.09841, table 7.
///
/// ```
/// use safelight_diffusion::nn::RandomWeights;
/// use safelight_diffusion::vae::{Vae, VaeConfig, VaeHalf};
/// use safelight_tensor::Tensor;
///
/// let half = VaeHalf { channels: vec![32, 32], layers: vec![1, 1], attention: true };
/// let config = VaeConfig { encoder: half.clone(), decoder: half, ..VaeConfig::sd15() };
/// let vae = Vae::load(&RandomWeights { seed: 1 }, config)?;
/// let picture = vae.decode(&Tensor::zeros(&[1, 4, 6, 4]));
/// assert_eq!(picture.shape(), [1, 8, 12, 3]);
/// assert_eq!(vae.encode(&picture).mean.shape(), [1, 4, 6, 4]);
/// # Ok::<(), safelight_diffusion::load::LoadError>(())
/// ```
pub struct Vae {
    config: VaeConfig,
    encoder: Half,
    quant_conv: Option<Leaf<Linear>>,
    post_quant_conv: Option<Leaf<Linear>>,
    decoder: Half,
}

/// What the encoder says about a picture: a normal distribution for each value of its latent.
pub struct Moments {
    /// `[B, h, w, latent_channels]`, not yet times the scale factor.
    pub mean: Tensor,
    /// Natural logarithm of the variance, in −30 to 20, of the same shape.
    pub log_variance: Tensor,
}

struct Half {
    conv_in: Leaf<Conv2d>,
    blocks: Vec<Level>,
    mid: Mid,
    conv_norm_out: Leaf<Norm>,
    conv_out: Leaf<Conv2d>,
}

struct Level {
    resnets: Vec<ResnetBlock>,
    /// `downsamplers.0.conv` or `upsamplers.0.conv`.
    resample: Option<Leaf<Conv2d>>,
}

struct Mid {
    resnets: [ResnetBlock; 2],
    attention: Option<Attention>,
}

/// Single-head self-attention over all pixels.
struct Attention {
    group_norm: Leaf<Norm>,
    to_q: Leaf<Linear>,
    to_k: Leaf<Linear>,
    to_v: Leaf<Linear>,
    to_out: Leaf<Linear>,
    norm_num_groups: usize,
}

impl Vae {
    /// Describes the network without reading; [`Builder::fill`] reads.
    pub fn describe(builder: &mut Builder<'_>, config: VaeConfig) -> Vae {
        config
            .faults()
            .into_iter()
            .for_each(|what| builder.problem(Problem::Unsupported { what }));
        let (latent, groups) = (config.latent_channels, config.norm_num_groups);
        let encoder = Half::describe(
            builder,
            "encoder",
            &config.encoder,
            (PICTURE_CHANNELS, 2 * latent),
            groups,
        );
        let quant_conv = config
            .quant_conv
            .then(|| builder.linear("quant_conv", 2 * latent, 2 * latent, true));
        let post_quant_conv = config
            .post_quant_conv
            .then(|| builder.linear("post_quant_conv", latent, latent, true));
        let decoder = Half::describe(
            builder,
            "decoder",
            &config.decoder,
            (latent, PICTURE_CHANNELS),
            groups,
        );
        Vae {
            config,
            encoder,
            quant_conv,
            post_quant_conv,
            decoder,
        }
    }

    /// Reads the network.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen, unreadable or not finite.
    pub fn load(weights: &dyn Weights, config: VaeConfig) -> Result<Vae, LoadError> {
        Vae::load_in(weights, config, Precision::F32)
    }

    /// Reads the network for products in `precision`, or finer as [`crate::precision`] has it.
    ///
    /// # Errors
    /// As [`Vae::load`].
    pub fn load_in(
        weights: &dyn Weights,
        config: VaeConfig,
        ways: impl Into<Ways>,
    ) -> Result<Vae, LoadError> {
        let mut builder = Builder::with_ways(weights, ways);
        let vae = Vae::describe(&mut builder, config);
        builder.fill()?;
        Ok(vae)
    }

    /// The network's structure.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// What latents are multiplied by for the UNet.
    pub fn scale_factor(&self) -> f32 {
        self.config.scale_factor
    }

    /// Pictures `[B, H, W, 3]` in −1 to 1 to the distribution of their latents.
    ///
    /// Each level but the last halves the size, rounding down.
    pub fn encode(&self, picture: &Tensor) -> Moments {
        self.encode_traced(picture, &mut Trace::off())
    }

    /// As [`Vae::encode`], with every block's output shown to `trace` (`encoder.down_blocks.0.resnets.0`, …).
    pub fn encode_traced(&self, picture: &Tensor, trace: &mut Trace<'_>) -> Moments {
        let half = &self.encoder;
        let mut x = ops::conv2d(picture, &half.conv_in, Epilogue::default());
        trace.see(format_args!("encoder.conv_in"), &x);
        for (level, block) in half.blocks.iter().enumerate() {
            for (layer, resnet) in block.resnets.iter().enumerate() {
                x = resnet.forward(&x, None);
                trace.see(
                    format_args!("encoder.down_blocks.{level}.resnets.{layer}"),
                    &x,
                );
            }
            if let Some(conv) = &block.resample {
                x = ops::conv2d(&x, conv, Epilogue::default());
                trace.see(
                    format_args!("encoder.down_blocks.{level}.downsamplers.0"),
                    &x,
                );
            }
        }
        x = half.mid.forward(x, "encoder", trace);
        x = half.out(&x, self.config.norm_num_groups);
        trace.see(format_args!("encoder.conv_out"), &x);
        if let Some(layer) = &self.quant_conv {
            x = ops::linear(&x, layer, Epilogue::default());
        }
        trace.see(format_args!("moments"), &x);
        split_moments(&x)
    }

    /// Latents `[B, h, w, latent_channels]`, already divided by the scale factor, to pictures `[B, H, W, 3]`, nominally
    /// in −1 to 1.
    pub fn decode(&self, latent: &Tensor) -> Tensor {
        self.decode_traced(latent, &mut Trace::off())
    }

    /// As [`Vae::decode`], with every block's output shown to `trace` (`decoder.mid_block.resnets.0`, …).
    pub fn decode_traced(&self, latent: &Tensor, trace: &mut Trace<'_>) -> Tensor {
        let half = &self.decoder;
        let quantised = self
            .post_quant_conv
            .as_ref()
            .map(|layer| ops::linear(latent, layer, Epilogue::default()));
        let mut x = ops::conv2d(
            quantised.as_ref().unwrap_or(latent),
            &half.conv_in,
            Epilogue::default(),
        );
        trace.see(format_args!("decoder.conv_in"), &x);
        x = half.mid.forward(x, "decoder", trace);
        for (level, block) in half.blocks.iter().enumerate() {
            for (layer, resnet) in block.resnets.iter().enumerate() {
                x = resnet.forward(&x, None);
                trace.see(
                    format_args!("decoder.up_blocks.{level}.resnets.{layer}"),
                    &x,
                );
            }
            if let Some(conv) = &block.resample {
                x = ops::conv2d_upsampled(&x, conv, 2 * x.dim(1), 2 * x.dim(2));
                trace.see(format_args!("decoder.up_blocks.{level}.upsamplers.0"), &x);
            }
        }
        let x = half.out(&x, self.config.norm_num_groups);
        trace.see(format_args!("decoder.conv_out"), &x);
        x
    }
}

/// Channels to means and logarithms of variances, the latter kept in −30 to 20 as the training code does.
fn split_moments(x: &Tensor) -> Moments {
    let latent = x.last_dim() / 2;
    let shape = [x.dim(0), x.dim(1), x.dim(2), latent];
    let half = |from: usize| {
        x.data()
            .chunks_exact(2 * latent)
            .flat_map(move |row| &row[from..][..latent])
    };
    Moments {
        mean: Tensor::from_slice(&shape, &half(0).copied().collect::<Vec<f32>>()),
        log_variance: Tensor::from_slice(
            &shape,
            &half(latent)
                .map(|x| x.clamp(-30.0, 20.0))
                .collect::<Vec<f32>>(),
        ),
    }
}

/// Side of a usual picture.
const USUAL_SIDE: usize = 512;

impl Half {
    fn describe(
        builder: &mut Builder<'_>,
        name: &str,
        shape: &VaeHalf,
        (inputs, outputs): (usize, usize),
        norm_num_groups: usize,
    ) -> Half {
        let decoding = name == "decoder";
        let first = shape.channels.first().copied().unwrap_or(0);
        let last = shape.channels.last().copied().unwrap_or(0);
        let deepest = shape.channels.len().saturating_sub(1);
        let side = |level: usize| USUAL_SIDE >> if decoding { deepest - level } else { level };
        builder.maps_of(side(0));
        let conv_in = builder.conv(&format!("{name}.conv_in"), ConvShape::same(first, inputs));
        let mut channels = first;
        let mut blocks = Vec::new();
        for (level, (&width, &layers)) in shape.channels.iter().zip(&shape.layers).enumerate() {
            let (way, resampler) = if decoding {
                ("up", "upsamplers")
            } else {
                ("down", "downsamplers")
            };
            let name = format!("{name}.{way}_blocks.{level}");
            builder.maps_of(side(level));
            let mut resnets = Vec::new();
            for layer in 0..layers {
                resnets.push(resnet(
                    builder,
                    &format!("{name}.resnets.{layer}"),
                    (channels, width),
                    norm_num_groups,
                ));
                channels = width;
            }
            // The encoder was trained with zeros below and to the right only.
            let halving = ConvShape::same(width, width).halving();
            let halving = halving.padded(Padding {
                bottom: 1,
                right: 1,
                ..Padding::default()
            });
            let conv = if decoding {
                ConvShape::same(width, width)
            } else {
                halving
            };
            let resample = level < deepest;
            builder.maps_of(side((level + 1).min(deepest)));
            let resample =
                resample.then(|| builder.conv(&format!("{name}.{resampler}.0.conv"), conv));
            blocks.push(Level { resnets, resample });
        }
        let (mid_channels, mid_level) = if decoding {
            (first, 0)
        } else {
            (last, deepest)
        };
        builder.maps_of(side(mid_level));
        Half {
            conv_in,
            blocks,
            mid: Mid::describe(
                builder,
                &format!("{name}.mid_block"),
                (mid_channels, shape.attention),
                norm_num_groups,
            ),
            conv_norm_out: builder.norm(&format!("{name}.conv_norm_out"), last, NORM_EPS),
            conv_out: builder.conv(&format!("{name}.conv_out"), ConvShape::same(outputs, last)),
        }
    }

    fn out(&self, x: &Tensor, norm_num_groups: usize) -> Tensor {
        let x = ops::group_norm(x, norm_num_groups, &self.conv_norm_out, true);
        ops::conv2d(&x, &self.conv_out, Epilogue::default())
    }
}

fn resnet(
    builder: &mut Builder<'_>,
    name: &str,
    (inputs, outputs): (usize, usize),
    norm_num_groups: usize,
) -> ResnetBlock {
    let shape = ResnetShape {
        inputs,
        outputs,
        time_embedding: None,
        norm_num_groups,
        norm_eps: NORM_EPS,
    };
    ResnetBlock::new(builder, name, shape)
}

impl Mid {
    fn describe(
        builder: &mut Builder<'_>,
        name: &str,
        (channels, attention): (usize, bool),
        norm_num_groups: usize,
    ) -> Mid {
        let resnets = [0, 1].map(|idx| {
            resnet(
                builder,
                &format!("{name}.resnets.{idx}"),
                (channels, channels),
                norm_num_groups,
            )
        });
        let name = format!("{name}.attentions.0");
        let attention = attention.then(|| Attention {
            group_norm: builder.norm(&format!("{name}.group_norm"), channels, NORM_EPS),
            to_q: builder.linear(&format!("{name}.to_q"), channels, channels, true),
            to_k: builder.linear(&format!("{name}.to_k"), channels, channels, true),
            to_v: builder.linear(&format!("{name}.to_v"), channels, channels, true),
            to_out: builder.linear(&format!("{name}.to_out.0"), channels, channels, true),
            norm_num_groups,
        });
        Mid { resnets, attention }
    }

    fn forward(&self, x: Tensor, half: &str, trace: &mut Trace<'_>) -> Tensor {
        let mut x = self.resnets[0].forward(&x, None);
        trace.see(format_args!("{half}.mid_block.resnets.0"), &x);
        if let Some(attention) = &self.attention {
            x = attention.forward(x);
            trace.see(format_args!("{half}.mid_block.attentions.0"), &x);
        }
        x = self.resnets[1].forward(&x, None);
        trace.see(format_args!("{half}.mid_block.resnets.1"), &x);
        x
    }
}

impl Attention {
    fn forward(&self, x: Tensor) -> Tensor {
        let shape = x.shape().to_vec();
        let x = x.reshaped(&[shape[0], shape[1] * shape[2], shape[3]]);
        let normed = ops::group_norm(&x, self.norm_num_groups, &self.group_norm, false);
        let [query, key, value] = [&self.to_q, &self.to_k, &self.to_v]
            .map(|layer| ops::linear(&normed, layer, Epilogue::default()));
        let found = ops::attention([&query, &key, &value], 1, false, self.to_q.precision());
        ops::linear(
            &found,
            &self.to_out,
            Epilogue {
                residual: Some(&x),
                ..Epilogue::default()
            },
        )
        .reshaped(&shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_halves_of_the_channels_and_bounded() {
        let x = Tensor::from_slice(&[1, 1, 2, 4], &[1., 2., -99., 3., 4., 5., 6., 99.]);
        let Moments { mean, log_variance } = split_moments(&x);
        assert_eq!(mean.data(), [1., 2., 4., 5.]);
        assert_eq!(log_variance.data(), [-30., 3., 6., 20.]);
        assert_eq!(log_variance.shape(), [1, 1, 2, 2]);
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        assert_eq!(VaeConfig::sd15().faults(), Vec::<String>::new());
        let mut config = VaeConfig {
            norm_num_groups: 48,
            ..VaeConfig::sd15()
        };
        config.decoder.channels.pop();
        let faults = config.faults();
        assert!(
            faults.iter().any(|fault| fault.contains("48 norm groups")),
            "{faults:?}"
        );
        assert!(
            faults.iter().any(|fault| fault.contains("4 levels")),
            "{faults:?}"
        );
    }
}
