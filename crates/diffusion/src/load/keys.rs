//! Names: from what a file calls its tensors to what the modules call them.
//!
//! The modules' fields carry diffusers' names (`down_blocks.0.resnets.1.conv1`), because those say which level and
//! which layer is meant. Single files use the names of the latent-diffusion (LDM) code, flat and numbered
//! (`input_blocks.2.0.in_layers.2`). This file translates both ways; it knows nothing of shapes.
//!
//! Source: the two layouts as published, compared in diffusers' own conversion scripts; restated in formulas.

use std::collections::BTreeMap;

use safelight_convert::layout::names::{
    Blocks, INDEX_LIMIT, unet_from_ldm, unet_to_ldm, vae_attention_from_old, vae_from_ldm,
    vae_to_ldm,
};
use safelight_format::{Dtype, TensorInfo};

/// Which network a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The CLIP text model.
    TextEncoder,
    /// The denoising network.
    UNet,
    /// The picture encoder and decoder.
    Vae,
}

impl Part {
    /// All parts, in the order a picture passes through them.
    pub const ALL: [Part; 3] = [Part::TextEncoder, Part::UNet, Part::Vae];

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Part::TextEncoder => "text encoder",
            Part::UNet => "UNet",
            Part::Vae => "VAE",
        }
    }

    /// What comes before the part's names in files, likeliest first.
    fn prefixes(self) -> &'static [&'static str] {
        match self {
            Part::TextEncoder => &["cond_stage_model.transformer.", "text_encoder.", "te.", ""],
            Part::UNet => &[
                "model.diffusion_model.",
                "diffusion_model.",
                "unet.",
                "model.",
                "",
            ],
            Part::Vae => &["first_stage_model.", "vae.", ""],
        }
    }

    /// Whether a name (the modules') is one of this part's, and not some other tensor under the same prefix.
    fn owns(self, ours: &str) -> bool {
        let starts: &[&str] = match self {
            Part::TextEncoder => &["text_model."],
            Part::UNet => &[
                "conv_in.",
                "conv_out.",
                "conv_norm_out.",
                "time_embedding.",
                "add_embedding.",
                "down_blocks.",
                "mid_block.",
                "up_blocks.",
                "class_embedding.",
            ],
            Part::Vae => &["encoder.", "decoder.", "quant_conv.", "post_quant_conv."],
        };
        starts.iter().any(|start| ours.starts_with(start)) && !ours.ends_with(".position_ids")
    }

    /// How the part's names begin (behind the prefix) in each naming.
    fn marks(self) -> &'static [(Naming, &'static [&'static str])] {
        match self {
            Part::TextEncoder => &[
                (
                    Naming::Diffusers,
                    &["text_model.encoder.layers.", "text_model.embeddings."],
                ),
                (
                    Naming::Bare,
                    &["encoder.layers.", "embeddings.token_embedding."],
                ),
            ],
            Part::UNet => &[
                (
                    Naming::Ldm,
                    &["input_blocks.", "output_blocks.", "middle_block."],
                ),
                (
                    Naming::Diffusers,
                    &["down_blocks.", "up_blocks.", "mid_block."],
                ),
            ],
            Part::Vae => &[
                (
                    Naming::Ldm,
                    &[
                        "decoder.up.",
                        "encoder.down.",
                        "decoder.mid.",
                        "encoder.mid.",
                    ],
                ),
                (
                    Naming::Diffusers,
                    &[
                        "decoder.up_blocks.",
                        "encoder.down_blocks.",
                        "decoder.mid_block.",
                    ],
                ),
            ],
        }
    }
}

/// How a file names a part's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// The latent-diffusion code's: single files.
    Ldm,
    /// diffusers' and transformers': folders.
    Diffusers,
    /// transformers' without `text_model.`.
    Bare,
}

/// One part's tensors: the modules' names and, for each, what the file has.
#[derive(Debug)]
pub(crate) struct PartKeys {
    part: Part,
    pub(crate) naming: Naming,
    prefix: &'static str,
    blocks: Blocks,
    stored: BTreeMap<String, Stored>,
}

/// A tensor as a file has it.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u64>,
}

impl PartKeys {
    /// The part's tensors in a file, or `None` if there are none.
    ///
    /// The first prefix under which anything of the part lies is the one: `model_ema.` copies stay behind.
    pub(crate) fn find(part: Part, tensors: &[TensorInfo<'_>]) -> Option<PartKeys> {
        let (prefix, naming) = part.prefixes().iter().find_map(|&prefix| {
            let has = |mark: &&str| {
                tensors.iter().any(|t| {
                    t.name
                        .strip_prefix(prefix)
                        .is_some_and(|name| name.starts_with(mark))
                })
            };
            part.marks()
                .iter()
                .find(|(_, marks)| marks.iter().any(has))
                .map(|&(naming, _)| (prefix, naming))
        })?;
        let inside = || {
            tensors
                .iter()
                .filter_map(|tensor| Some((tensor, tensor.name.strip_prefix(prefix)?)))
        };
        let blocks = Blocks::of(inside().map(|(_, name)| name));
        let mut stored = BTreeMap::new();
        for (tensor, name) in inside() {
            let ours = match (part, naming) {
                (_, Naming::Bare) => Some(format!("text_model.{name}")),
                (Part::UNet, Naming::Ldm) => unet_from_ldm(name, &blocks),
                (Part::Vae, Naming::Ldm) => vae_from_ldm(name, &blocks),
                (Part::Vae, _) => Some(vae_attention_from_old(name)),
                _ => Some(name.to_string()),
            };
            if let Some(ours) = ours.filter(|ours| part.owns(ours)) {
                let (name, dtype, shape) =
                    (tensor.name.to_owned(), tensor.dtype, tensor.shape.to_vec());
                stored.insert(ours, Stored { name, dtype, shape });
            }
        }
        Some(PartKeys {
            part,
            naming,
            prefix,
            blocks,
            stored,
        })
    }

    /// The tensor the modules call `ours`.
    pub(crate) fn get(&self, ours: &str) -> Option<&Stored> {
        self.stored.get(ours)
    }

    /// Every tensor of the part that modules could ask for.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.stored
            .iter()
            .map(|(ours, stored)| (ours.as_str(), stored))
    }

    /// Whether any of the modules' names begins with `start`.
    pub(crate) fn has(&self, start: &str) -> bool {
        self.starting(start).next().is_some()
    }

    /// Whether the middle is one that never had attention, as far as its numbering shows.
    pub(crate) fn bare_middle(&self) -> bool {
        match self.naming {
            Naming::Ldm => self.blocks.bare_middle,
            // Nothing is numbered on: two residual blocks and nothing between them is all that can be seen.
            _ => ["mid_block.resnets.0.", "mid_block.resnets.1."]
                .iter()
                .all(|start| self.has(start)),
        }
    }

    /// How many numbered things follow `start`: one more than the largest number.
    pub(crate) fn count(&self, start: &str) -> usize {
        let index = |name: &str| name[start.len()..].split('.').next()?.parse::<usize>().ok();
        let indices = self.starting(start).filter_map(|(name, _)| index(name));
        indices
            .filter(|&index| index < INDEX_LIMIT)
            .max()
            .map_or(0, |index| index + 1)
    }

    fn starting(&self, start: &str) -> impl Iterator<Item = (&String, &Stored)> {
        self.stored
            .range(start.to_string()..)
            .take_while(move |(name, _)| name.starts_with(start))
    }

    /// What the file calls, or would call, the tensor.
    pub(crate) fn stored_name(&self, ours: &str) -> String {
        if let Some(stored) = self.get(ours) {
            return stored.name.clone();
        }
        let name = match (self.part, self.naming) {
            (_, Naming::Bare) => ours.strip_prefix("text_model.").map(String::from),
            (Part::UNet, Naming::Ldm) => unet_to_ldm(ours, &self.blocks),
            (Part::Vae, Naming::Ldm) => vae_to_ldm(ours, &self.blocks),
            _ => None,
        };
        format!(
            "{}{}",
            self.prefix,
            name.unwrap_or_else(|| ours.to_string())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(part: Part, names: &[&str]) -> PartKeys {
        let tensor = |name| TensorInfo {
            name,
            dtype: Dtype::F32,
            shape: &[1],
            data_offsets: (0, 4),
        };
        let tensors: Vec<TensorInfo<'_>> = names.iter().copied().map(tensor).collect();
        PartKeys::find(part, &tensors).expect("the part is there")
    }

    /// Both ways: the file's name to ours, and back without looking it up.
    fn check(part: Part, around: &[&str], stored: &str, ours: &str) {
        let names: Vec<&str> = around.iter().copied().chain([stored]).collect();
        let found = keys(part, &names);
        assert_eq!(
            found.get(ours).map(|s| s.name.as_str()),
            Some(stored),
            "{:?}",
            found.stored.keys()
        );
        let mut without = found;
        without.stored.remove(ours);
        assert_eq!(without.stored_name(ours), stored);
    }

    /// SD 1.x: four levels of two blocks down, of three up.
    const SD: [&str; 8] = [
        "model.diffusion_model.input_blocks.11.0.in_layers.0.bias",
        "model.diffusion_model.input_blocks.3.0.op.bias",
        "model.diffusion_model.input_blocks.6.0.op.bias",
        "model.diffusion_model.input_blocks.9.0.op.bias",
        "model.diffusion_model.output_blocks.2.1.conv.bias",
        "model.diffusion_model.output_blocks.5.2.conv.bias",
        "model.diffusion_model.output_blocks.8.2.conv.bias",
        "first_stage_model.decoder.up.3.block.0.norm1.bias",
    ];

    #[test]
    fn unet_names_both_ways() {
        for (stored, ours) in [
            ("input_blocks.0.0.weight", "conv_in.weight"),
            ("time_embed.2.bias", "time_embedding.linear_2.bias"),
            ("out.0.weight", "conv_norm_out.weight"),
            (
                "input_blocks.1.0.in_layers.2.weight",
                "down_blocks.0.resnets.0.conv1.weight",
            ),
            (
                "input_blocks.5.1.proj_in.weight",
                "down_blocks.1.attentions.1.proj_in.weight",
            ),
            (
                "input_blocks.9.0.op.weight",
                "down_blocks.2.downsamplers.0.conv.weight",
            ),
            (
                "input_blocks.11.0.emb_layers.1.bias",
                "down_blocks.3.resnets.1.time_emb_proj.bias",
            ),
            (
                "middle_block.0.out_layers.3.weight",
                "mid_block.resnets.0.conv2.weight",
            ),
            (
                "middle_block.1.transformer_blocks.0.attn1.to_out.0.bias",
                "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.bias",
            ),
            (
                "middle_block.2.out_layers.0.bias",
                "mid_block.resnets.1.norm2.bias",
            ),
            (
                "output_blocks.2.1.conv.weight",
                "up_blocks.0.upsamplers.0.conv.weight",
            ),
            (
                "output_blocks.3.0.skip_connection.weight",
                "up_blocks.1.resnets.0.conv_shortcut.weight",
            ),
            (
                "output_blocks.8.2.conv.weight",
                "up_blocks.2.upsamplers.0.conv.weight",
            ),
            (
                "output_blocks.11.1.norm.weight",
                "up_blocks.3.attentions.2.norm.weight",
            ),
        ] {
            check(
                Part::UNet,
                &SD,
                &format!("model.diffusion_model.{stored}"),
                ours,
            );
        }
    }

    #[test]
    fn vae_names_both_ways() {
        for (stored, ours) in [
            ("encoder.conv_in.weight", "encoder.conv_in.weight"),
            (
                "encoder.down.1.block.0.nin_shortcut.weight",
                "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
            ),
            (
                "encoder.down.2.downsample.conv.bias",
                "encoder.down_blocks.2.downsamplers.0.conv.bias",
            ),
            ("encoder.norm_out.bias", "encoder.conv_norm_out.bias"),
            (
                "encoder.mid.block_2.conv1.weight",
                "encoder.mid_block.resnets.1.conv1.weight",
            ),
            (
                "decoder.mid.attn_1.proj_out.weight",
                "decoder.mid_block.attentions.0.to_out.0.weight",
            ),
            (
                "decoder.mid.attn_1.norm.weight",
                "decoder.mid_block.attentions.0.group_norm.weight",
            ),
            (
                "decoder.up.3.block.2.norm2.weight",
                "decoder.up_blocks.0.resnets.2.norm2.weight",
            ),
            (
                "decoder.up.1.upsample.conv.weight",
                "decoder.up_blocks.2.upsamplers.0.conv.weight",
            ),
            ("post_quant_conv.weight", "post_quant_conv.weight"),
        ] {
            check(Part::Vae, &SD, &format!("first_stage_model.{stored}"), ours);
        }
    }

    #[test]
    fn old_and_bare_names() {
        let vae = keys(
            Part::Vae,
            &["decoder.mid_block.attentions.0.proj_attn.weight"],
        );
        assert!(
            vae.get("decoder.mid_block.attentions.0.to_out.0.weight")
                .is_some()
        );
        let stored = "cond_stage_model.transformer.encoder.layers.0.mlp.fc1.bias";
        check(
            Part::TextEncoder,
            &[stored],
            stored,
            "text_model.encoder.layers.0.mlp.fc1.bias",
        );
    }

    #[test]
    fn absurd_indices_are_not_counted() {
        let names = [
            "down_blocks.0.resnets.1.norm1.bias",
            "down_blocks.99999999.resnets.0.norm1.bias",
        ];
        let unet = keys(Part::UNet, &names);
        assert_eq!(
            (
                unet.count("down_blocks."),
                unet.count("down_blocks.0.resnets.")
            ),
            (1, 2)
        );
    }
}
