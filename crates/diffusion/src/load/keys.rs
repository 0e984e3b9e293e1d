//! Names: from what a file calls its tensors to what the modules call them.
//!
//! The modules' fields carry diffusers' names (`down_blocks.0.resnets.1.conv1`), because those say which level and
//! which layer is meant. Single files use the names of the latent-diffusion (LDM) code, flat and numbered
//! (`input_blocks.2.0.in_layers.2`). This file translates both ways; it knows nothing of shapes.
//!
//! Source: the two layouts as published, compared in diffusers' own conversion scripts; restated in formulas.

use std::collections::{BTreeMap, BTreeSet};

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

/// Indices in names are believed below this; one more than the largest is how many of something there are.
const INDEX_LIMIT: usize = 1000;

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

/// Where the flat numbering of LDM changes level.
#[derive(Debug, Default)]
struct Blocks {
    /// The input blocks that halve the size.
    downs: Vec<usize>,
    /// The output blocks that double the size at their end, and the place of that convolution within.
    ups: Vec<(usize, String)>,
    /// Whether the middle has no attention, so that its second residual block counts 1 and not 2.
    bare_middle: bool,
    /// The VAE decoder's levels, which LDM counts from the picture and diffusers from the latent.
    decoder_levels: usize,
}

/// The places in a list of blocks at which something was seen.
#[derive(Default)]
struct Seen {
    /// The largest number of an input or output block.
    last: usize,
    downs: BTreeSet<usize>,
    ups: BTreeMap<usize, String>,
    /// Input blocks with attention; output blocks with it stand here as the input blocks whose skip they take.
    attention: BTreeSet<usize>,
}

impl Blocks {
    fn of<'n>(names: impl Iterator<Item = &'n str>) -> Blocks {
        let mut blocks = Blocks::default();
        let (mut seen, mut attending_outputs) = (Seen::default(), Vec::new());
        let index = |text: &str| text.parse().ok().filter(|&idx: &usize| idx < INDEX_LIMIT);
        for name in names {
            let pieces: Vec<&str> = name.split('.').collect();
            match pieces[..] {
                [
                    side @ ("input_blocks" | "output_blocks"),
                    block,
                    place,
                    field,
                    ..,
                ] => {
                    let Some(block) = index(block) else { continue };
                    seen.last = seen.last.max(block);
                    match (side, place, field) {
                        ("input_blocks", "0", "op") => drop(seen.downs.insert(block)),
                        ("input_blocks", "0", _) | ("output_blocks", "0", _) => {}
                        ("input_blocks", ..) => drop(seen.attention.insert(block)),
                        (_, _, "conv") => drop(seen.ups.insert(block, place.to_string())),
                        _ => attending_outputs.push(block),
                    }
                }
                [
                    "middle_block",
                    "1",
                    "in_layers" | "emb_layers" | "out_layers",
                    ..,
                ] => {
                    blocks.bare_middle = true;
                }
                ["decoder", "up", level, ..] | ["encoder", "down", level, ..] => {
                    let levels = index(level).map_or(0, |level| level + 1);
                    blocks.decoder_levels = blocks.decoder_levels.max(levels);
                }
                _ => {}
            }
        }
        let mirrored = attending_outputs.iter().map(|block| seen.last - block);
        seen.attention.extend(mirrored);
        (blocks.downs, blocks.ups) = seen.levels();
        blocks
    }

    /// The place of the middle's second residual block.
    fn middle_end(&self) -> usize {
        if self.bare_middle { 1 } else { 2 }
    }

    /// Level and layer of an input block (from 1).
    fn input(&self, block: usize) -> Option<(usize, usize)> {
        let level = self.downs.partition_point(|&down| down < block);
        Some((level, block.checked_sub(self.first_input(level)?)?))
    }

    /// The first input block of a level.
    fn first_input(&self, level: usize) -> Option<usize> {
        if level == 0 {
            Some(1)
        } else {
            self.downs.get(level - 1)?.checked_add(1)
        }
    }

    /// Level and layer of an output block.
    fn output(&self, block: usize) -> Option<(usize, usize)> {
        let level = self.ups.partition_point(|(up, _)| *up < block);
        Some((level, block - self.first_output(level)?))
    }

    /// The first output block of a level.
    fn first_output(&self, level: usize) -> Option<usize> {
        if level == 0 {
            Some(0)
        } else {
            self.ups.get(level - 1)?.0.checked_add(1)
        }
    }
}

impl Seen {
    /// Where levels end on the way down and on the way up; either way stands in for what the other lost.
    ///
    /// The last output block takes the first input block's skip connection, and so on: block `n` of the one way is block
    /// `last - n` of the other. A size that changes before an input block changes back after its twin.
    fn levels(mut self) -> (Vec<usize>, Vec<(usize, String)>) {
        let lost_downs = self.ups.keys().map(|up| self.last - up);
        let lost_downs: Vec<usize> = lost_downs.collect();
        self.downs.extend(lost_downs);
        let mut above = None;
        for &down in self.downs.iter().rev() {
            let up = self.last - down;
            // Behind the attention, where the level has any.
            let level = down..above.unwrap_or(self.last + 1);
            let attends = self.attention.range(level).next().is_some();
            let place = if attends { "2" } else { "1" };
            self.ups.entry(up).or_insert_with(|| place.to_string());
            above = Some(down);
        }
        (
            self.downs.into_iter().collect(),
            self.ups.into_iter().collect(),
        )
    }
}

/// A residual block's inside, LDM beside diffusers.
const RESNET: [(&str, &str); 6] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

/// What lies outside the UNet's blocks, LDM beside diffusers.
const UNET_ENDS: [(&str, &str); 7] = [
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
];

/// `name` with its beginning replaced, where the beginning is one of the pairs' `from` and ends at a dot.
fn renamed<'p>(name: &str, mut pairs: impl Iterator<Item = (&'p str, &'p str)>) -> Option<String> {
    pairs.find_map(|(from, to)| {
        let rest = name.strip_prefix(from)?;
        (rest.is_empty() || rest.starts_with('.')).then(|| format!("{to}{rest}"))
    })
}

fn flipped<'p>(pairs: &'p [(&'p str, &'p str)]) -> impl Iterator<Item = (&'p str, &'p str)> {
    pairs.iter().map(|&(ldm, ours)| (ours, ldm))
}

fn unet_from_ldm(name: &str, blocks: &Blocks) -> Option<String> {
    if let Some(name) = renamed(name, UNET_ENDS.into_iter()) {
        return Some(name);
    }
    let mut pieces = name.splitn(4, '.');
    let (kind, second, third) = (pieces.next()?, pieces.next()?, pieces.next()?);
    let rest = pieces.next().unwrap_or("");
    let inside = |rest: &str| renamed(rest, RESNET.into_iter());
    match (kind, third) {
        ("middle_block", _) => {
            // A middle without attention counts 0, 1; one with it 0, 1, 2.
            let rest = format!("{third}.{rest}");
            Some(match (second, inside(&rest)) {
                ("0", Some(rest)) => format!("mid_block.resnets.0.{rest}"),
                (_, Some(rest)) => format!("mid_block.resnets.1.{rest}"),
                (_, None) => format!("mid_block.attentions.0.{}", rest.trim_end_matches('.')),
            })
        }
        ("input_blocks", place) => {
            let (level, layer) = blocks.input(second.parse().ok()?)?;
            Some(match (place, rest.strip_prefix("op.")) {
                ("0", Some(rest)) => format!("down_blocks.{level}.downsamplers.0.conv.{rest}"),
                ("0", None) => format!("down_blocks.{level}.resnets.{layer}.{}", inside(rest)?),
                _ => format!("down_blocks.{level}.attentions.{layer}.{rest}"),
            })
        }
        ("output_blocks", place) => {
            let (level, layer) = blocks.output(second.parse().ok()?)?;
            Some(match (place, rest.strip_prefix("conv.")) {
                ("0", _) => format!("up_blocks.{level}.resnets.{layer}.{}", inside(rest)?),
                (_, Some(rest)) => format!("up_blocks.{level}.upsamplers.0.conv.{rest}"),
                (_, None) => format!("up_blocks.{level}.attentions.{layer}.{rest}"),
            })
        }
        _ => None,
    }
}

fn unet_to_ldm(ours: &str, blocks: &Blocks) -> Option<String> {
    if let Some(name) = renamed(ours, flipped(&UNET_ENDS)) {
        return Some(name);
    }
    let inside = |rest: &str| renamed(rest, flipped(&RESNET));
    if let Some(rest) = ours.strip_prefix("mid_block.") {
        return Some(match rest.split_once(".0.") {
            Some(("attentions", rest)) => format!("middle_block.1.{rest}"),
            Some((_, rest)) => format!("middle_block.0.{}", inside(rest)?),
            None => format!(
                "middle_block.{}.{}",
                blocks.middle_end(),
                inside(rest.strip_prefix("resnets.1.")?)?
            ),
        });
    }
    let mut pieces = ours.splitn(5, '.');
    let (side, level, kind) = (pieces.next()?, pieces.next()?.parse().ok()?, pieces.next()?);
    let (layer, rest): (usize, _) = (pieces.next()?.parse().ok()?, pieces.next()?);
    if side == "down_blocks" {
        let first = blocks.first_input(level)?;
        return Some(match kind {
            "resnets" => format!("input_blocks.{}.0.{}", first + layer, inside(rest)?),
            "attentions" => format!("input_blocks.{}.1.{rest}", first + layer),
            _ => format!(
                "input_blocks.{}.0.op.{}",
                blocks.downs.get(level)?,
                rest.strip_prefix("conv.")?
            ),
        });
    }
    let first = blocks.first_output(level)?;
    Some(match kind {
        "resnets" => format!("output_blocks.{}.0.{}", first + layer, inside(rest)?),
        "attentions" => format!("output_blocks.{}.1.{rest}", first + layer),
        _ => {
            let (block, place) = blocks.ups.get(level)?;
            format!("output_blocks.{block}.{place}.{rest}")
        }
    })
}

/// The VAE's attention, LDM beside diffusers.
const VAE_ATTENTION: [(&str, &str); 5] = [
    ("norm", "group_norm"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
];

/// The middles of the VAE's two halves, LDM beside diffusers.
const VAE_MIDDLE: [(&str, &str); 3] = [
    ("mid.block_1", "mid_block.resnets.0"),
    ("mid.block_2", "mid_block.resnets.1"),
    ("mid.attn_1", "mid_block.attentions.0"),
];

fn vae_from_ldm(name: &str, blocks: &Blocks) -> Option<String> {
    let Some((half @ ("encoder" | "decoder"), rest)) = name.split_once('.') else {
        return Some(name.to_string());
    };
    if let Some(rest) = renamed(rest, VAE_MIDDLE.into_iter()) {
        if let Some(inside) = rest.strip_prefix("mid_block.attentions.0.") {
            return Some(format!(
                "{half}.mid_block.attentions.0.{}",
                renamed(inside, VAE_ATTENTION.into_iter())?
            ));
        }
        return Some(format!(
            "{half}.{}",
            rest.replace("nin_shortcut", "conv_shortcut")
        ));
    }
    let mut pieces = rest.splitn(4, '.');
    match (pieces.next()?, pieces.next(), pieces.next(), pieces.next()) {
        (side @ ("down" | "up"), Some(level), Some(kind), Some(rest)) => {
            let mut level: usize = level.parse().ok()?;
            if side == "up" {
                level = blocks.decoder_levels.checked_sub(level.checked_add(1)?)?;
            }
            Some(match kind {
                "block" => format!(
                    "{half}.{side}_blocks.{level}.resnets.{}",
                    rest.replace("nin_shortcut", "conv_shortcut")
                ),
                "attn" => format!("{half}.{side}_blocks.{level}.attentions.{rest}"),
                _ => format!("{half}.{side}_blocks.{level}.{kind}rs.0.{rest}"),
            })
        }
        _ => Some(format!(
            "{half}.{}",
            rest.replace("norm_out", "conv_norm_out")
        )),
    }
}

fn vae_to_ldm(ours: &str, blocks: &Blocks) -> Option<String> {
    let Some((half @ ("encoder" | "decoder"), rest)) = ours.split_once('.') else {
        return Some(ours.to_string());
    };
    let rest = rest.replace("conv_shortcut", "nin_shortcut");
    if let Some(rest) = renamed(&rest, flipped(&VAE_MIDDLE)) {
        if let Some(inside) = rest.strip_prefix("mid.attn_1.") {
            return Some(format!(
                "{half}.mid.attn_1.{}",
                renamed(inside, flipped(&VAE_ATTENTION))?
            ));
        }
        return Some(format!("{half}.{rest}"));
    }
    let mut pieces = rest.splitn(4, '.');
    match (pieces.next()?, pieces.next(), pieces.next(), pieces.next()) {
        (side @ ("down_blocks" | "up_blocks"), Some(level), Some(kind), Some(rest)) => {
            let mut level: usize = level.parse().ok()?;
            if side == "up_blocks" {
                level = blocks.decoder_levels.checked_sub(level.checked_add(1)?)?;
            }
            let side = side.trim_end_matches("_blocks");
            Some(match kind {
                "resnets" => format!("{half}.{side}.{level}.block.{rest}"),
                _ => format!(
                    "{half}.{side}.{level}.{side}sample.{}",
                    rest.strip_prefix("0.")?
                ),
            })
        }
        _ => Some(format!(
            "{half}.{}",
            rest.replace("conv_norm_out", "norm_out")
        )),
    }
}

/// diffusers before 0.12 called the VAE's attention layers otherwise.
fn vae_attention_from_old(name: &str) -> String {
    const OLD: [(&str, &str); 4] = [
        ("query", "to_q"),
        ("key", "to_k"),
        ("value", "to_v"),
        ("proj_attn", "to_out.0"),
    ];
    let renamed = name
        .split_once(".mid_block.attentions.0.")
        .and_then(|(half, inside)| {
            Some(format!(
                "{half}.mid_block.attentions.0.{}",
                renamed(inside, OLD.into_iter())?
            ))
        });
    renamed.unwrap_or_else(|| name.to_string())
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
