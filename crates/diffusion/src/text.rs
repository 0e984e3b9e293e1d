//! The CLIP text model: token ids in, one vector for each token out.
//!
//! Tokens come from [`crate::tokenizer`]; emphasis and chunks of long prompts are [`crate::prompt`]'s.

use safelight_tensor::{Activation, Epilogue, Linear, Norm, Precision, Tensor, ops};

use crate::load::{LoadError, Problem};
use crate::nn::{Builder, Leaf, Table, Trace, Weights};
use crate::precision::Ways;

/// The structure of a text model.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Tokens known: 49408 for CLIP's vocabulary.
    pub vocabulary: usize,
    /// Longest text in tokens, beginning and end included: 77.
    pub positions: usize,
    /// Width of the embedding.
    pub width: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the feed-forward layers.
    pub mlp: usize,
    /// Between the feed-forward layers.
    pub activation: Activation,
    /// Epsilon of the layer norms.
    pub norm_eps: f32,
}

impl TextConfig {
    /// CLIP ViT-L/14, as in Stable Diffusion 1.x.
    pub fn sd15() -> TextConfig {
        TextConfig {
            vocabulary: 49408,
            positions: 77,
            width: 768,
            layers: 12,
            heads: 12,
            mlp: 3072,
            activation: Activation::QuickGelu,
            norm_eps: 1e-5,
        }
    }

    /// What this structure cannot be built or run with: empty if all is well.
    pub fn faults(&self) -> Vec<String> {
        let TextConfig {
            width,
            heads,
            layers,
            ..
        } = *self;
        let mut faults = Vec::new();
        if heads == 0 || width == 0 || width % heads != 0 {
            faults.push(format!(
                "text encoder: width {width} does not divide into {heads} heads"
            ));
        }
        if layers == 0 {
            faults.push("text encoder: no layers".into());
        }
        faults
    }
}

/// The CLIP text model.
///
/// Source: Radford et al. 2021, arXiv:2103.00020, §2.4.
///
/// ```
/// use safelight_diffusion::nn::RandomWeights;
/// use safelight_diffusion::text::{TextConfig, TextEncoder};
///
/// let config = TextConfig { width: 64, layers: 1, heads: 1, mlp: 64, ..TextConfig::sd15() };
/// let text = TextEncoder::load(&RandomWeights { seed: 1 }, config)?;
/// assert_eq!(text.forward(&[49406, 320, 2368, 49407], 1).shape(), [1, 4, 64]);
/// # Ok::<(), safelight_diffusion::load::LoadError>(())
/// ```
pub struct TextEncoder {
    config: TextConfig,
    token_embedding: Leaf<Table>,
    position_embedding: Leaf<Table>,
    layers: Vec<Layer>,
    final_layer_norm: Leaf<Norm>,
}

struct Layer {
    layer_norm1: Leaf<Norm>,
    q_proj: Leaf<Linear>,
    k_proj: Leaf<Linear>,
    v_proj: Leaf<Linear>,
    out_proj: Leaf<Linear>,
    layer_norm2: Leaf<Norm>,
    fc1: Leaf<Linear>,
    fc2: Leaf<Linear>,
}

impl TextEncoder {
    /// Describes the network without reading; [`Builder::fill`] reads.
    pub fn describe(builder: &mut Builder<'_>, config: TextConfig) -> TextEncoder {
        config
            .faults()
            .into_iter()
            .for_each(|what| builder.problem(Problem::Unsupported { what }));
        let TextConfig {
            width, norm_eps, ..
        } = config;
        let embeddings = "text_model.embeddings";
        let token = format!("{embeddings}.token_embedding");
        let position = format!("{embeddings}.position_embedding");
        let layers = 0..config.layers;
        TextEncoder {
            token_embedding: builder.table(&token, config.vocabulary, width),
            position_embedding: builder.table(&position, config.positions, width),
            layers: layers
                .map(|idx| Layer::describe(builder, idx, &config))
                .collect(),
            final_layer_norm: builder.norm("text_model.final_layer_norm", width, norm_eps),
            config,
        }
    }

    /// Reads the network.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen, unreadable or not finite.
    pub fn load(weights: &dyn Weights, config: TextConfig) -> Result<TextEncoder, LoadError> {
        TextEncoder::load_in(weights, config, Precision::F32)
    }

    /// Reads the network for products in `precision`, or finer as [`crate::precision`] has it.
    ///
    /// # Errors
    /// As [`TextEncoder::load`].
    pub fn load_in(
        weights: &dyn Weights,
        config: TextConfig,
        ways: impl Into<Ways>,
    ) -> Result<TextEncoder, LoadError> {
        let mut builder = Builder::with_ways(weights, ways);
        let text = TextEncoder::describe(&mut builder, config);
        builder.fill()?;
        Ok(text)
    }

    /// The network's structure.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// The embedding of `ids`, `[1, T, D]`: the output of the layer `clip_skip` from the end (1 is the last), normed.
    ///
    /// A `clip_skip` beyond the layers takes the token embeddings themselves; 0 means 1.
    ///
    /// # Panics
    /// If there are no ids, more than the config's `positions`, or one beyond its vocabulary.
    pub fn forward(&self, ids: &[u32], clip_skip: usize) -> Tensor {
        self.forward_embedded(self.embed(ids), clip_skip, &mut Trace::off())
    }

    /// The rows of the token table for `ids`, `[1, T, D]`, without positions.
    ///
    /// # Panics
    /// As [`TextEncoder::forward`].
    pub fn embed(&self, ids: &[u32]) -> Tensor {
        let (count, vocabulary) = (ids.len(), self.config.vocabulary);
        let row = |&id: &u32| {
            assert!(
                (id as usize) < vocabulary,
                "token {id} in a vocabulary of {vocabulary}"
            );
            self.token_embedding.row(id as usize)
        };
        Tensor::from_slice(
            &[1, count, self.config.width],
            &ids.iter().flat_map(row).collect::<Vec<f32>>(),
        )
    }

    /// As [`TextEncoder::forward`] from token embeddings `[1, T, D]`, with every layer's output shown to `trace`
    /// (`text_model.embeddings`, `text_model.encoder.layers.0`, …).
    ///
    /// # Panics
    /// If there are no tokens, or more than the config's `positions`.
    pub fn forward_embedded(
        &self,
        mut tokens: Tensor,
        clip_skip: usize,
        trace: &mut Trace<'_>,
    ) -> Tensor {
        let (count, positions) = (tokens.dim(1), self.config.positions);
        assert!(
            (1..=positions).contains(&count),
            "{count} tokens, text encoder takes 1 to {positions}"
        );
        for (position, token) in tokens
            .data_mut()
            .chunks_exact_mut(self.config.width)
            .enumerate()
        {
            let row = self.position_embedding.row(position);
            token
                .iter_mut()
                .zip(row)
                .for_each(|(token, position)| *token += position);
        }
        let mut x = tokens;
        trace.see(format_args!("text_model.embeddings"), &x);
        let used = (self.layers.len() + 1).saturating_sub(clip_skip.max(1));
        for (idx, layer) in self.layers[..used].iter().enumerate() {
            x = layer.forward(x, &self.config);
            trace.see(format_args!("text_model.encoder.layers.{idx}"), &x);
        }
        let x = ops::layer_norm(&x, &self.final_layer_norm);
        trace.see(format_args!("text_model.final_layer_norm"), &x);
        x
    }
}

impl Layer {
    fn describe(builder: &mut Builder<'_>, idx: usize, config: &TextConfig) -> Layer {
        let TextConfig {
            width,
            mlp,
            norm_eps,
            ..
        } = *config;
        let name = format!("text_model.encoder.layers.{idx}");
        let attention = |builder: &mut Builder<'_>, field: &str| {
            builder.linear(&format!("{name}.self_attn.{field}"), width, width, true)
        };
        Layer {
            layer_norm1: builder.norm(&format!("{name}.layer_norm1"), width, norm_eps),
            q_proj: attention(builder, "q_proj"),
            k_proj: attention(builder, "k_proj"),
            v_proj: attention(builder, "v_proj"),
            out_proj: attention(builder, "out_proj"),
            layer_norm2: builder.norm(&format!("{name}.layer_norm2"), width, norm_eps),
            fc1: builder.linear(&format!("{name}.mlp.fc1"), mlp, width, true),
            fc2: builder.linear(&format!("{name}.mlp.fc2"), width, mlp, true),
        }
    }

    fn forward(&self, x: Tensor, config: &TextConfig) -> Tensor {
        let normed = ops::layer_norm(&x, &self.layer_norm1);
        let [query, key, value] = [&self.q_proj, &self.k_proj, &self.v_proj]
            .map(|layer| ops::linear(&normed, layer, Epilogue::default()));
        let found = ops::attention([&query, &key, &value], config.heads, true, Precision::F32);
        let x = ops::linear(
            &found,
            &self.out_proj,
            Epilogue {
                residual: Some(&x),
                ..Epilogue::default()
            },
        );
        let normed = ops::layer_norm(&x, &self.layer_norm2);
        let activated = Epilogue {
            activation: config.activation,
            ..Epilogue::default()
        };
        let hidden = ops::linear(&normed, &self.fc1, activated);
        ops::linear(
            &hidden,
            &self.fc2,
            Epilogue {
                residual: Some(&x),
                ..Epilogue::default()
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::RandomWeights;

    fn encoder() -> TextEncoder {
        let config = TextConfig {
            width: 64,
            layers: 2,
            heads: 2,
            mlp: 96,
            ..TextConfig::sd15()
        };
        TextEncoder::load(&RandomWeights { seed: 5 }, config).unwrap()
    }

    #[test]
    fn no_token_sees_a_later_one() {
        let encoder = encoder();
        let (a, b) = (
            encoder.forward(&[49406, 1, 2, 3], 1),
            encoder.forward(&[49406, 1, 2, 4], 1),
        );
        let same = 3 * 64;
        assert_eq!(a.data()[..same], b.data()[..same]);
        assert_ne!(a.data()[same..], b.data()[same..]);
    }

    #[test]
    fn clip_skip_counts_from_the_end() {
        let encoder = encoder();
        let run = |clip_skip| encoder.forward(&[49406, 7, 49407], clip_skip).to_vec();
        assert_eq!(run(0), run(1));
        assert_ne!(run(1), run(2));
        assert_ne!(run(2), run(3));
        assert_eq!(run(3), run(99));
    }
}
