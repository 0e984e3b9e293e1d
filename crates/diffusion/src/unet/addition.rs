//! What networks of SDXL's kind add to the time embedding: a pooled text, and numbers about the picture.

use safelight_tensor::{Activation, Epilogue, Linear, Tensor, ops};

use super::{AdditionConfig, UNetConfig, sinusoids};
use crate::nn::{Builder, Leaf};

/// What a network with an addition embedding is told beside the text, for `B` pictures.
///
/// Source: Podell et al. 2023, arXiv:2307.01952, §2.1 (pooled text) and §2.2 (sizes and crops).
#[derive(Clone, Copy, Debug)]
pub struct Addition<'a> {
    /// The pooled text embedding, `[B, pooled_channels]`.
    pub pooled: &'a Tensor,
    /// Numbers about the picture, `[B, time_ids]`; SDXL's, in pixels: the original's height and width, the crop's top and
    /// left, the picture's height and width.
    pub time_ids: &'a Tensor,
}

/// `add_embedding`: sinusoids of the numbers behind the pooled text, through two linear layers.
pub(super) struct AddEmbedding {
    layers: [Leaf<Linear>; 2],
    config: AdditionConfig,
}

impl AddEmbedding {
    pub(super) fn new(
        builder: &mut Builder<'_>,
        config: &UNetConfig,
        addition: &AdditionConfig,
    ) -> AddEmbedding {
        let (outputs, inputs) = (config.time_embedding_channels, addition.inputs());
        AddEmbedding {
            layers: [
                builder.linear("add_embedding.linear_1", outputs, inputs, true),
                builder.linear("add_embedding.linear_2", outputs, outputs, true),
            ],
            config: addition.clone(),
        }
    }

    /// What is added for a text of `batch` pictures: `[B, time_embedding_channels]`.
    pub(super) fn forward(&self, addition: Addition<'_>, batch: usize) -> Tensor {
        let AdditionConfig {
            pooled_channels,
            time_ids,
            time_id_channels,
        } = self.config;
        assert_eq!(
            addition.pooled.shape(),
            [batch, pooled_channels],
            "pooled text embeddings"
        );
        assert_eq!(
            addition.time_ids.shape(),
            [batch, time_ids],
            "numbers about the pictures"
        );
        let numbers = sinusoids(addition.time_ids.data(), time_id_channels);
        let numbers = numbers.reshaped(&[batch, time_ids * time_id_channels]);
        let silu = Epilogue {
            activation: Activation::Silu,
            ..Epilogue::default()
        };
        let [linear_1, linear_2] = &self.layers;
        let both = ops::concat_channels(addition.pooled, &numbers);
        let hidden = ops::linear(&both, linear_1, silu);
        ops::linear(&hidden, linear_2, Epilogue::default())
    }
}
