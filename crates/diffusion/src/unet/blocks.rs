//! The blocks a UNet is stacked from: residual block and transformer. The VAE uses the former as well.

use safelight_tensor::{Conv2d, Epilogue, Geglu, Linear, Norm, Tensor, ops};

use super::merging::Merging;
use crate::nn::{Builder, ConvShape, Leaf};

/// Group norm, SiLU, convolution, twice, around a skip; the time embedding enters in the middle.
///
/// Source: the released latent-diffusion checkpoints' structure; He et al. 2016, arXiv:1603.05027, figure 4(e).
pub struct ResnetBlock {
    norm1: Leaf<Norm>,
    conv1: Leaf<Conv2d>,
    time_emb_proj: Option<Leaf<Linear>>,
    norm2: Leaf<Norm>,
    conv2: Leaf<Conv2d>,
    conv_shortcut: Option<Leaf<Linear>>,
    norm_num_groups: usize,
}

/// The numbers of a residual block.
#[derive(Clone, Copy, Debug)]
pub struct ResnetShape {
    /// Channels in.
    pub inputs: usize,
    /// Channels out.
    pub outputs: usize,
    /// Width of the time embedding; none in the VAE.
    pub time_embedding: Option<usize>,
    /// Groups of both norms.
    pub norm_num_groups: usize,
    /// Epsilon of both norms: 1e-5 in the UNet, 1e-6 in the VAE.
    pub norm_eps: f32,
}

impl ResnetBlock {
    /// The block whose tensors begin with `name`.
    pub fn new(builder: &mut Builder<'_>, name: &str, shape: ResnetShape) -> ResnetBlock {
        let ResnetShape {
            inputs,
            outputs,
            time_embedding,
            norm_num_groups,
            norm_eps,
        } = shape;
        ResnetBlock {
            norm1: builder.norm(&format!("{name}.norm1"), inputs, norm_eps),
            conv1: builder.conv(&format!("{name}.conv1"), ConvShape::same(outputs, inputs)),
            time_emb_proj: time_embedding.map(|width| {
                builder.linear(&format!("{name}.time_emb_proj"), outputs, width, true)
            }),
            norm2: builder.norm(&format!("{name}.norm2"), outputs, norm_eps),
            conv2: builder.conv(&format!("{name}.conv2"), ConvShape::same(outputs, outputs)),
            conv_shortcut: (inputs != outputs)
                .then(|| builder.linear(&format!("{name}.conv_shortcut"), outputs, inputs, true)),
            norm_num_groups,
        }
    }

    /// `[B, H, W, inputs]` to `[B, H, W, outputs]`.
    ///
    /// `time` is SiLU of the time embedding, `[B, D]`: the same for every block, so computed once outside.
    pub fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Tensor {
        let normed = ops::group_norm(x, self.norm_num_groups, &self.norm1, true);
        let time = self.time_emb_proj.as_ref().map(|layer| {
            let time = time.expect("a block with `time_emb_proj` is given the time embedding");
            ops::linear(time, layer, Epilogue::default())
        });
        let hidden = ops::conv2d(
            &normed,
            &self.conv1,
            Epilogue {
                image_bias: time.as_ref(),
                ..Epilogue::default()
            },
        );
        drop(normed);
        let normed = ops::group_norm(&hidden, self.norm_num_groups, &self.norm2, true);
        drop(hidden);
        let shortcut = self
            .conv_shortcut
            .as_ref()
            .map(|layer| ops::linear(x, layer, Epilogue::default()));
        let residual = Some(shortcut.as_ref().unwrap_or(x));
        ops::conv2d(
            &normed,
            &self.conv2,
            Epilogue {
                residual,
                ..Epilogue::default()
            },
        )
    }
}

/// Self-attention, cross-attention to the text and a feed-forward layer, `depth` times, around a skip.
///
/// Source: Rombach et al. 2022, arXiv:2112.10752, appendix E.2.1.
pub struct Transformer {
    norm: Leaf<Norm>,
    proj_in: Leaf<Linear>,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Leaf<Linear>,
    norm_num_groups: usize,
}

/// The numbers of a transformer.
#[derive(Clone, Copy, Debug)]
pub struct TransformerShape {
    /// Channels in and out.
    pub channels: usize,
    /// How many times the three layers are stacked.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the text embedding.
    pub context: usize,
    /// Groups of the first norm.
    pub norm_num_groups: usize,
}

/// The group norm of a transformer has its own epsilon, whatever the residual blocks'.
const TRANSFORMER_NORM_EPS: f32 = 1e-6;
/// torch's default for layer norms, kept by every SD release.
const LAYER_NORM_EPS: f32 = 1e-5;

impl Transformer {
    /// The transformer whose tensors begin with `name`.
    pub fn new(builder: &mut Builder<'_>, name: &str, shape: TransformerShape) -> Transformer {
        let TransformerShape {
            channels,
            depth,
            norm_num_groups,
            ..
        } = shape;
        Transformer {
            norm: builder.norm(&format!("{name}.norm"), channels, TRANSFORMER_NORM_EPS),
            proj_in: builder.linear(&format!("{name}.proj_in"), channels, channels, true),
            transformer_blocks: (0..depth)
                .map(|idx| {
                    TransformerBlock::new(
                        builder,
                        &format!("{name}.transformer_blocks.{idx}"),
                        shape,
                    )
                })
                .collect(),
            proj_out: builder.linear(&format!("{name}.proj_out"), channels, channels, true),
            norm_num_groups,
        }
    }

    /// Keys and values of the text, `[B, T, context]`, for each block: they stay the same from step to step.
    pub fn text(&self, context: &Tensor) -> Vec<KeyValue> {
        self.transformer_blocks
            .iter()
            .map(|block| block.attn2.key_value(context))
            .collect()
    }

    /// `[B, H, W, C]` to the same; `text` is what [`Transformer::text`] gave.
    pub fn forward(&self, x: &Tensor, text: &[KeyValue]) -> Tensor {
        self.forward_merging(x, text, 0.0)
    }

    /// As [`Transformer::forward`], with so large a part of the tokens merged in self-attention.
    pub(super) fn forward_merging(&self, x: &Tensor, text: &[KeyValue], merging: f64) -> Tensor {
        let (batch, height, width, channels) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
        let normed = ops::group_norm(x, self.norm_num_groups, &self.norm, false);
        let mut hidden = ops::linear(&normed, &self.proj_in, Epilogue::default());
        drop(normed);
        hidden = hidden.reshaped(&[batch, height * width, channels]);
        for (block, text) in self.transformer_blocks.iter().zip(text) {
            // Which tokens are alike is asked anew before each block, of what goes into it.
            let merging = Merging::of(&hidden, (height, width), merging);
            hidden = block.forward(hidden, text, merging.as_ref());
        }
        hidden = hidden.reshaped(&[batch, height, width, channels]);
        ops::linear(
            &hidden,
            &self.proj_out,
            Epilogue {
                residual: Some(x),
                ..Epilogue::default()
            },
        )
    }
}

struct TransformerBlock {
    norm1: Leaf<Norm>,
    attn1: Attention,
    norm2: Leaf<Norm>,
    attn2: Attention,
    norm3: Leaf<Norm>,
    /// `ff.net.0.proj` in checkpoints: values and gates.
    ff_in: Leaf<Geglu>,
    /// `ff.net.2` in checkpoints.
    ff_out: Leaf<Linear>,
}

impl TransformerBlock {
    fn new(builder: &mut Builder<'_>, name: &str, shape: TransformerShape) -> TransformerBlock {
        let TransformerShape {
            channels,
            heads,
            context,
            ..
        } = shape;
        TransformerBlock {
            norm1: builder.norm(&format!("{name}.norm1"), channels, LAYER_NORM_EPS),
            attn1: Attention::new(builder, &format!("{name}.attn1"), channels, channels, heads),
            norm2: builder.norm(&format!("{name}.norm2"), channels, LAYER_NORM_EPS),
            attn2: Attention::new(builder, &format!("{name}.attn2"), channels, context, heads),
            norm3: builder.norm(&format!("{name}.norm3"), channels, LAYER_NORM_EPS),
            ff_in: builder.geglu(&format!("{name}.ff.net.0.proj"), 4 * channels, channels),
            ff_out: builder.linear(&format!("{name}.ff.net.2"), channels, 4 * channels, true),
        }
    }

    fn forward(&self, x: Tensor, text: &KeyValue, merging: Option<&Merging>) -> Tensor {
        let normed = ops::layer_norm(&x, &self.norm1);
        let x = match merging {
            None => self
                .attn1
                .forward(&normed, &self.attn1.key_value(&normed), Some(x)),
            Some(merging) => {
                let (mut x, merged) = (x, merging.merge(&normed));
                let seen = self.attn1.key_value(&merged);
                merging.add_to(&mut x, &self.attn1.forward(&merged, &seen, None));
                x
            }
        };
        let normed = ops::layer_norm(&x, &self.norm2);
        let x = self.attn2.forward(&normed, text, Some(x));
        let normed = ops::layer_norm(&x, &self.norm3);
        let gated = ops::linear_geglu(&normed, &self.ff_in);
        ops::linear(
            &gated,
            &self.ff_out,
            Epilogue {
                residual: Some(&x),
                ..Epilogue::default()
            },
        )
    }
}

/// What attention looks at: keys and values, `[B, T, C]` each.
pub struct KeyValue {
    key: Tensor,
    value: Tensor,
}

struct Attention {
    to_q: Leaf<Linear>,
    to_k: Leaf<Linear>,
    to_v: Leaf<Linear>,
    to_out: Leaf<Linear>,
    heads: usize,
}

impl Attention {
    fn new(
        builder: &mut Builder<'_>,
        name: &str,
        channels: usize,
        context: usize,
        heads: usize,
    ) -> Attention {
        Attention {
            to_q: builder.linear(&format!("{name}.to_q"), channels, channels, false),
            to_k: builder.linear(&format!("{name}.to_k"), channels, context, false),
            to_v: builder.linear(&format!("{name}.to_v"), channels, context, false),
            to_out: builder.linear(&format!("{name}.to_out.0"), channels, channels, true),
            heads,
        }
    }

    fn key_value(&self, context: &Tensor) -> KeyValue {
        KeyValue {
            key: ops::linear(context, &self.to_k, Epilogue::default()),
            value: ops::linear(context, &self.to_v, Epilogue::default()),
        }
    }

    /// Attention from `x` to `seen`, added to `residual`.
    fn forward(&self, x: &Tensor, seen: &KeyValue, residual: Option<Tensor>) -> Tensor {
        let query = ops::linear(x, &self.to_q, Epilogue::default());
        let found = ops::attention(
            [&query, &seen.key, &seen.value],
            self.heads,
            false,
            self.to_q.precision(),
        );
        ops::linear(
            &found,
            &self.to_out,
            Epilogue {
                residual: residual.as_ref(),
                ..Epilogue::default()
            },
        )
    }
}
