//! Names: from what LDM's single files call tensors to what diffusers' modules call them, and back.
//!
//! diffusers' names (`down_blocks.0.resnets.1.conv1`) say which level and which layer is meant. Single files use the
//! names of the latent-diffusion (LDM) code, flat and numbered (`input_blocks.2.0.in_layers.2`). Nothing here knows of
//! shapes, prefixes or files; the text encoders' names are [`super::text`]'s.
//!
//! Source: the two layouts as published, compared in diffusers' own conversion scripts; restated in formulas.

use std::collections::{BTreeMap, BTreeSet};

/// Indices in names are believed below this; one more than the largest is how many of something there are.
pub const INDEX_LIMIT: usize = 1000;

/// Where the flat numbering of LDM changes level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// The input blocks that halve the size.
    pub downs: Vec<usize>,
    /// The output blocks that double the size at their end, and the place of that convolution within.
    pub ups: Vec<(usize, String)>,
    /// Whether the middle has no attention, so that its second residual block counts 1 and not 2.
    pub bare_middle: bool,
    /// The VAE decoder's levels, which LDM counts from the picture and diffusers from the latent.
    pub decoder_levels: usize,
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
    /// Of a part's LDM names, behind their prefix.
    pub fn of<'n>(names: impl Iterator<Item = &'n str>) -> Blocks {
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

    /// Of a part's diffusers names: where LDM's numbering would stand for the same network.
    pub fn of_diffusers<'n>(names: impl Iterator<Item = &'n str>) -> Blocks {
        let mut blocks = Blocks::default();
        let (mut down, mut up) = (Levels::default(), Levels::default());
        let (mut attends, mut second) = (false, false);
        let index = |text: &str| text.parse().ok().filter(|&idx: &usize| idx < INDEX_LIMIT);
        for name in names {
            let pieces: Vec<&str> = name.split('.').collect();
            match pieces[..] {
                [side @ ("down_blocks" | "up_blocks"), level, kind, layer, ..] => {
                    let (Some(level), Some(layer)) = (index(level), index(layer)) else {
                        continue;
                    };
                    let levels = if side == "down_blocks" {
                        &mut down
                    } else {
                        &mut up
                    };
                    levels.add(level, kind, layer);
                }
                ["mid_block", "attentions", ..] => attends = true,
                ["mid_block", "resnets", "1", ..] => second = true,
                ["decoder", "up_blocks", level, ..] | ["encoder", "down_blocks", level, ..] => {
                    let levels = index(level).map_or(0, |level| level + 1);
                    blocks.decoder_levels = blocks.decoder_levels.max(levels);
                }
                _ => {}
            }
        }
        blocks.bare_middle = second && !attends;
        let mut block = 1;
        for level in down.0.values().filter(|level| level.resamples) {
            block += level.layers;
            blocks.downs.push(block);
            block += 1;
        }
        let mut block = 0;
        for level in up.0.values().filter(|level| level.resamples) {
            block += level.layers;
            let place = if level.attends { "2" } else { "1" };
            blocks
                .ups
                .push((block.saturating_sub(1), place.to_string()));
        }
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

/// What diffusers' names show of each level.
#[derive(Default)]
struct Levels(BTreeMap<usize, OneLevel>);

#[derive(Default)]
struct OneLevel {
    layers: usize,
    attends: bool,
    resamples: bool,
}

impl Levels {
    fn add(&mut self, level: usize, kind: &str, layer: usize) {
        let level = self.0.entry(level).or_default();
        match kind {
            "resnets" => level.layers = level.layers.max(layer + 1),
            "attentions" => {
                level.attends = true;
                level.layers = level.layers.max(layer + 1);
            }
            "downsamplers" | "upsamplers" => level.resamples = true,
            _ => {}
        }
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

/// What the modules call a UNet tensor that LDM calls `name` (behind the prefix); `None` if LDM has no such thing.
pub fn unet_from_ldm(name: &str, blocks: &Blocks) -> Option<String> {
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

/// What LDM calls a UNet tensor of the modules.
pub fn unet_to_ldm(ours: &str, blocks: &Blocks) -> Option<String> {
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
    if layer >= INDEX_LIMIT {
        return None;
    }
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

/// What the modules call a VAE tensor that LDM calls `name`.
pub fn vae_from_ldm(name: &str, blocks: &Blocks) -> Option<String> {
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

/// What LDM calls a VAE tensor of the modules.
pub fn vae_to_ldm(ours: &str, blocks: &Blocks) -> Option<String> {
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
                "attentions" => format!("{half}.{side}.{level}.attn.{rest}"),
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
pub fn vae_attention_from_old(name: &str) -> String {
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

    /// SDXL: attention on the lower two of three levels.
    fn xl() -> Vec<String> {
        let mut names = vec!["mid_block.attentions.0.norm.bias".to_string()];
        for level in 0..3 {
            for layer in 0..2 {
                names.push(format!("down_blocks.{level}.resnets.{layer}.norm1.bias"));
                if level > 0 {
                    names.push(format!("down_blocks.{level}.attentions.{layer}.norm.bias"));
                }
            }
            for layer in 0..3 {
                names.push(format!("up_blocks.{level}.resnets.{layer}.norm1.bias"));
                if level < 2 {
                    names.push(format!("up_blocks.{level}.attentions.{layer}.norm.bias"));
                }
            }
            if level < 2 {
                names.push(format!("down_blocks.{level}.downsamplers.0.conv.bias"));
                names.push(format!("up_blocks.{level}.upsamplers.0.conv.bias"));
            }
        }
        names
    }

    #[test]
    fn the_numbering_is_the_same_from_either_side() {
        let ours = xl();
        let from_ours = Blocks::of_diffusers(ours.iter().map(String::as_str));
        let ldm: Vec<String> = ours
            .iter()
            .map(|name| unet_to_ldm(name, &from_ours).unwrap())
            .collect();
        let from_ldm = Blocks::of(ldm.iter().map(String::as_str));
        assert_eq!(from_ours.downs, [3, 6]);
        assert_eq!(from_ours.ups, [(2, "2".to_string()), (5, "2".to_string())]);
        assert_eq!(from_ours, from_ldm);
        for (ours, ldm) in ours.iter().zip(&ldm) {
            assert_eq!(unet_from_ldm(ldm, &from_ldm).as_ref(), Some(ours), "{ldm}");
        }
    }

    #[test]
    fn an_upsampler_stands_behind_attention_where_there_is_any() {
        let sd = [
            "up_blocks.0.resnets.2.norm1.bias",
            "up_blocks.0.upsamplers.0.conv.bias",
            "up_blocks.1.resnets.0.norm1.bias",
        ];
        let blocks = Blocks::of_diffusers(sd.into_iter());
        assert_eq!(
            unet_to_ldm(sd[1], &blocks).as_deref(),
            Some("output_blocks.2.1.conv.bias")
        );
    }

    #[test]
    fn a_middle_without_attention_counts_on() {
        let bare = [
            "mid_block.resnets.0.norm1.bias",
            "mid_block.resnets.1.norm1.bias",
        ];
        let blocks = Blocks::of_diffusers(bare.into_iter());
        assert_eq!(
            unet_to_ldm(bare[1], &blocks).as_deref(),
            Some("middle_block.1.in_layers.0.bias")
        );
    }

    #[test]
    fn absurd_numbers_make_no_levels() {
        let blocks = Blocks::of_diffusers(
            [
                "down_blocks.99999999.resnets.0.norm1.bias",
                "down_blocks.0.resnets.7777777.norm1.bias",
            ]
            .into_iter(),
        );
        assert_eq!(blocks, Blocks::default());
        let name = format!("down_blocks.0.resnets.{}.norm1.bias", usize::MAX);
        assert_eq!(unet_to_ldm(&name, &blocks), None);
    }
}
