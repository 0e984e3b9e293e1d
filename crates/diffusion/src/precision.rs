//! Which layers stay finer than the precision that is asked for: data, measured layer by layer.
//!
//! What a precision is, and that the smallest layers stay in f32, is [`Precision`]'s.

pub use safelight_tensor::Precision;

use crate::load::Part;

/// Layers whose names contain the words are at least as fine as said.
///
/// Measured on the embedded model: the relative error of the UNet's guided output (two prompts, three
/// noise levels, scale 6) with one layer in int8 and all others in f32. All layers in int8 are off by
/// 8.2 %; alone the worst are
///
/// | layer | error |
/// |---|---|
/// | `up_blocks.3.resnets.1.conv_shortcut` | 7.3 % |
/// | `up_blocks.3.resnets.1.conv2` | 2.6 % |
/// | `up_blocks.3.resnets.1.conv1` | 1.8 % |
/// | `up_blocks.3.attentions.1.transformer_blocks.0.ff.net.2` | 0.9 % |
/// | `up_blocks.3.attentions.0.transformer_blocks.0.ff.net.2` | 0.9 % |
/// | `up_blocks.3.resnets.0.conv_shortcut` | 0.8 % |
/// | every other | at most 0.7 % |
///
/// Shortcuts take in the sum of all blocks before, of which a few channels are large, and no norm
/// stands before them; they are a small part of the work. So are the second layers of feed-forward parts,
/// which take in products of two numbers: with them in bf16, the worst picture of 51 captions is like
/// f32's by a PSNR of 36.3 dB, not 29.6. Projections into and out of attention blocks, which all of a block passes through, are as small a
/// part: with them in bf16 the UNet's answers are off by a fifth less.
const AT_LEAST: &[(&str, Precision)] = &[
    // One row, whose error every pixel of every block shares; its products cost nothing but the
    // reading of weights.
    ("time_embedding.", Precision::F32),
    ("add_embedding.", Precision::F32),
    ("time_emb_proj", Precision::Bf16),
    ("conv_shortcut", Precision::Bf16),
    ("ff.net.2", Precision::Bf16),
    ("proj_in", Precision::Bf16),
    ("proj_out", Precision::Bf16),
];

/// Of the residual blocks of the last level, behind which least follows that could average their errors out: on maps as large
/// as its, `f32` in tiles is about as fast as bf16 or int8. In bf16, the last of them alone makes three quarters of the error that bf16 makes
/// at low noise.
pub(crate) const LAST_LEVEL_RESNETS: Precision = Precision::F32;

/// Of all other layers of the last level. With its transformers in int8, the worst picture of 200 captions is like f32's by 30 dB,
/// with them in bf16 by 43.
pub(crate) const LAST_LEVEL: Precision = Precision::Bf16;

/// The precision of the layer `name` where `asked` is asked for.
pub fn of_layer(name: &str, asked: Precision) -> Precision {
    let rules = AT_LEAST.iter().filter(|(words, _)| name.contains(words));
    rules.fold(asked, |precision, (_, least)| precision.max(*least))
}

/// How the networks of a model are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Of products, in some layers a finer one.
    pub precision: Precision,
    /// Take the least memory rather than the least time: no 3×3 convolution in transformed tiles, whose weights take up to
    /// four times as much.
    pub lean: bool,
}

impl From<Precision> for Ways {
    fn from(precision: Precision) -> Ways {
        Ways {
            precision,
            lean: false,
        }
    }
}

impl Ways {
    /// Those of one part.
    pub(crate) fn of_part(self, part: Part) -> Ways {
        Ways {
            precision: of_part(part, self.precision),
            ..self
        }
    }
}

/// The precision of a whole part: the text encoder, which runs once for a prompt and whose errors every step sees, is always
/// `f32`; the VAE, whose errors are seen as they are, takes no int8.
pub fn of_part(part: Part, asked: Precision) -> Precision {
    match part {
        Part::UNet => asked,
        Part::TextEncoder => Precision::F32,
        _ => asked.max(Precision::Bf16),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_finer_of_rule_and_wish_is_taken() {
        let layer = |name, asked| of_layer(name, asked);
        let proj = "down_blocks.0.resnets.0.time_emb_proj";
        assert_eq!(layer(proj, Precision::Int8), Precision::Bf16);
        assert_eq!(layer(proj, Precision::F32), Precision::F32);
        let time = "time_embedding.linear_1";
        assert_eq!(layer(time, Precision::Int8), Precision::F32);
        let conv = "down_blocks.0.resnets.0.conv1";
        assert_eq!(layer(conv, Precision::Int8), Precision::Int8);
        assert_eq!(of_part(Part::Vae, Precision::Int8), Precision::Bf16);
        assert_eq!(of_part(Part::Vae, Precision::F32), Precision::F32);
        assert_eq!(of_part(Part::TextEncoder, Precision::Int8), Precision::F32);
    }
}
