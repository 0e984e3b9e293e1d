//! The JSON files of a diffusers folder, derived from shapes: any width, any depth.
//!
//! What shapes cannot say follows the family's convention (heads, groups, activation), unless the metadata of the single
//! file says otherwise under `safelight.…`, as our miniatures do.

use std::collections::BTreeMap;
use std::ops::Bound;

use safelight_format::TensorSpec;
use serde_json::{Value, json};

use super::{Family, Prediction};

/// A UNet's heads where its `proj_in` is a convolution (SD 1.x).
pub(crate) const UNET_HEADS: u64 = 8;
/// The width of a head elsewhere: UNets with a linear `proj_in`, text encoders.
const HEAD_WIDTH: u64 = 64;
/// Groups of every group norm.
pub(crate) const GROUPS: u64 = 32;
/// Metadata key: how many attention heads the UNet has, on every level.
pub(crate) const HEADS_HINT: &str = "safelight.unet.attention_heads";
/// Metadata key: groups of the UNet's norms.
pub(crate) const UNET_GROUPS_HINT: &str = "safelight.unet.norm_num_groups";
/// Metadata key: groups of the VAE's norms.
pub(crate) const VAE_GROUPS_HINT: &str = "safelight.vae.norm_num_groups";

/// Why a network cannot be described to diffusers.
pub(crate) type Gap = (String, String);

/// One part's shapes by name, in diffusers' names.
pub(crate) struct Shapes<'s>(BTreeMap<&'s str, &'s [u64]>);

impl<'s> Shapes<'s> {
    pub(crate) fn of(specs: impl Iterator<Item = &'s TensorSpec>) -> Shapes<'s> {
        Shapes(
            specs
                .map(|spec| (spec.name.as_str(), spec.shape.as_slice()))
                .collect(),
        )
    }

    fn starting<'a>(&'a self, start: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0
            .range::<str, _>((Bound::Included(start), Bound::Unbounded))
            .map(|(name, _)| *name)
            .take_while(move |name| name.starts_with(start))
    }

    fn has(&self, start: &str) -> bool {
        self.starting(start).next().is_some()
    }

    /// One more than the largest number behind `start`.
    pub(crate) fn count(&self, start: &str) -> usize {
        let number = |name: &str| name[start.len()..].split('.').next()?.parse::<usize>().ok();
        let numbers = self.starting(start).filter_map(number);
        numbers
            .filter(|&number| number < super::names::INDEX_LIMIT)
            .max()
            .map_or(0, |largest| largest + 1)
    }

    fn dim(&self, name: &str, axis: usize) -> Result<u64, Gap> {
        let Some(shape) = self.0.get(name) else {
            return Err((
                name.into(),
                "missing: its shape is needed to describe the network".into(),
            ));
        };
        shape.get(axis).copied().ok_or_else(|| {
            (
                name.into(),
                format!("shape {shape:?} has no dimension {axis}"),
            )
        })
    }

    /// The first tensor whose name ends so.
    fn ending(&self, end: &str) -> Option<(&'s str, &'s [u64])> {
        self.0
            .iter()
            .find(|(name, _)| name.ends_with(end))
            .map(|(name, shape)| (*name, *shape))
    }
}

/// A number the metadata gives.
fn hint(metadata: &BTreeMap<String, String>, key: &str) -> Option<u64> {
    metadata
        .get(key)?
        .trim()
        .parse()
        .ok()
        .filter(|&number| number > 0)
}

/// One number if all are equal, else the list.
fn short(numbers: &[u64]) -> Value {
    match numbers {
        [first, rest @ ..] if rest.iter().all(|number| number == first) => json!(first),
        _ => json!(numbers),
    }
}

/// What the levels of one way through the UNet are.
struct Way {
    channels: Vec<u64>,
    layers: Vec<u64>,
    attends: Vec<bool>,
    /// Transformer depth of each attention.
    depths: Vec<Vec<u64>>,
}

impl Way {
    fn of(shapes: &Shapes<'_>, side: &str) -> Result<Way, Gap> {
        let mut way = Way {
            channels: vec![],
            layers: vec![],
            attends: vec![],
            depths: vec![],
        };
        for level in 0..shapes.count(&format!("{side}.")) {
            let name = format!("{side}.{level}");
            let layers = shapes.count(&format!("{name}.resnets."));
            way.channels
                .push(shapes.dim(&format!("{name}.resnets.0.conv1.weight"), 0)?);
            way.layers.push(layers as u64);
            let attentions = shapes.count(&format!("{name}.attentions."));
            if attentions != 0 && attentions != layers {
                return Err((
                    name,
                    format!(
                        "{layers} residual blocks and {attentions} attentions: diffusers has no such level"
                    ),
                ));
            }
            way.attends.push(attentions > 0);
            let depth = |layer| {
                shapes.count(&format!("{name}.attentions.{layer}.transformer_blocks.")) as u64
            };
            way.depths.push((0..attentions).map(depth).collect());
        }
        Ok(way)
    }

    /// The levels' types, such as `CrossAttnDownBlock2D`.
    fn types(&self, plain: &str) -> Vec<String> {
        let name = |&attends: &bool| {
            if attends {
                format!("CrossAttn{plain}")
            } else {
                plain.to_string()
            }
        };
        self.attends.iter().map(name).collect()
    }

    /// Depths as diffusers' configuration has them. Levels without attention say 1, as published configurations do (XL:
    /// `[1, 2, 10]`); level `deepest` says what the middle has, which diffusers reads there.
    fn depths(&self, middle: u64, deepest: usize) -> Vec<Value> {
        let level = |(level, depths): (usize, &Vec<u64>)| match depths[..] {
            [] if level == deepest => json!(middle),
            [] => json!(1),
            _ => short(depths),
        };
        self.depths.iter().enumerate().map(level).collect()
    }

    /// Whether all attentions there are have this depth.
    fn is_uniform(&self, depth: u64) -> bool {
        self.depths.iter().flatten().all(|&this| this == depth)
    }
}

/// `unet/config.json`.
pub(crate) fn unet(
    shapes: &Shapes<'_>,
    family: Family,
    prediction: Prediction,
    pooled: Option<u64>,
    metadata: &BTreeMap<String, String>,
) -> Result<Value, Gap> {
    let (down, up) = (
        Way::of(shapes, "down_blocks")?,
        Way::of(shapes, "up_blocks")?,
    );
    let middle = middle(shapes)?;
    let depth = shapes
        .count("mid_block.attentions.0.transformer_blocks.")
        .max(1) as u64;
    let depths = down.depths(depth, down.depths.len().saturating_sub(1));
    let mut reversed = up.depths(depth, 0);
    reversed.reverse();
    let last = depths.last().cloned().unwrap_or(json!(depth));
    if !matches!(middle, Value::Null) && last != json!(depth) && middle == "UNetMidBlock2DCrossAttn"
    {
        return Err((
            "mid_block.attentions.0".into(),
            format!(
                "depth {depth} in the middle and {last} on the level above: diffusers has no such UNet"
            ),
        ));
    }
    let mirrored = reversed.len() == depths.len()
        && reversed
            .iter()
            .zip(&depths)
            .zip(&down.attends)
            .all(|((up, down), &attends)| !attends || up == down);
    let linear = shapes
        .ending(".proj_in.weight")
        .is_some_and(|(_, shape)| shape.len() == 2);
    let heads = heads(&down, linear, hint(metadata, HEADS_HINT))?;
    let time = shapes.dim("time_embedding.linear_1.weight", 0)?;
    let first = shapes.dim("conv_in.weight", 0)?;
    let context = match shapes.ending(".attn2.to_k.weight") {
        Some((_, [_, width])) => *width,
        Some((name, shape)) => return Err((name.into(), format!("shape {shape:?} is no matrix"))),
        None => 1280,
    };
    let mut config = json!({
        "_class_name": "UNet2DConditionModel", "_diffusers_version": VERSION,
        "act_fn": "silu", "attention_head_dim": heads, "block_out_channels": down.channels,
        "center_input_sample": false, "cross_attention_dim": context, "down_block_types": down.types("DownBlock2D"),
        "downsample_padding": 1, "dual_cross_attention": false, "flip_sin_to_cos": true, "freq_shift": 0,
        "in_channels": shapes.dim("conv_in.weight", 1)?, "layers_per_block": short(&down.layers),
        "mid_block_scale_factor": 1, "mid_block_type": middle, "norm_eps": 1e-5,
        "norm_num_groups": hint(metadata, UNET_GROUPS_HINT).unwrap_or_else(|| groups(&down.channels)), "only_cross_attention": false,
        "out_channels": shapes.dim("conv_out.weight", 0)?, "sample_size": family.picture_size(prediction) / 8,
        "transformer_layers_per_block": if mirrored && down.is_uniform(depth) { json!(depth) } else { json!(depths) },
        "up_block_types": up.types("UpBlock2D"), "use_linear_projection": linear,
    });
    if !mirrored {
        config["reverse_transformer_layers_per_block"] = json!(up.depths(depth, 0));
    }
    if Some(time) != first.checked_mul(4) {
        config["time_embedding_dim"] = json!(time);
    }
    if family == Family::Sd2 && prediction == Prediction::V {
        config["upcast_attention"] = json!(true); // half precision overflows in this model's attention
    }
    if matches!(family, Family::Xl | Family::XlRefiner) {
        added(&mut config, shapes, family, pooled)?;
    }
    Ok(config)
}

/// XL's additional embedding: the pooled text and five or six numbers of equal width.
fn added(
    config: &mut Value,
    shapes: &Shapes<'_>,
    family: Family,
    pooled: Option<u64>,
) -> Result<(), Gap> {
    let name = "add_embedding.linear_1.weight";
    let (all, numbers) = (
        shapes.dim(name, 1)?,
        if family == Family::Xl { 6 } else { 5 },
    );
    let pooled = pooled.ok_or_else(|| {
        (
            name.to_string(),
            "there is no second text encoder with a projection".to_string(),
        )
    })?;
    let width = all
        .checked_sub(pooled)
        .filter(|rest| rest.is_multiple_of(numbers))
        .map(|rest| rest / numbers);
    let Some(width) = width else {
        return Err((
            name.into(),
            format!("{all} inputs are not {pooled} of text and {numbers} numbers of one width"),
        ));
    };
    config["addition_embed_type"] = json!("text_time");
    config["addition_time_embed_dim"] = json!(width);
    config["projection_class_embeddings_input_dim"] = json!(all);
    Ok(())
}

/// The type of the middle.
fn middle(shapes: &Shapes<'_>) -> Result<Value, Gap> {
    let attends = shapes.has("mid_block.attentions.0.");
    match (attends, shapes.count("mid_block.resnets.")) {
        (true, 2) => Ok(json!("UNetMidBlock2DCrossAttn")),
        (false, 1) => Ok(json!("UNetMidBlock2D")),
        (false, 0) => Ok(Value::Null),
        (_, count) => Err((
            "mid_block".into(),
            format!(
                "{count} residual blocks {} attention: diffusers has no such middle",
                if attends { "with" } else { "and no" }
            ),
        )),
    }
}

/// Heads of each level; diffusers' `attention_head_dim` has always meant their number.
fn heads(down: &Way, linear: bool, hint: Option<u64>) -> Result<Value, Gap> {
    if let Some(heads) = hint {
        return Ok(json!(heads));
    }
    if !linear {
        return Ok(json!(UNET_HEADS));
    }
    let heads = down
        .channels
        .iter()
        .map(|channels| (channels / HEAD_WIDTH).max(1));
    Ok(json!(heads.collect::<Vec<_>>()))
}

/// Groups of the norms: as usual, or in a miniature as many as all its widths can be divided into.
fn groups(channels: &[u64]) -> u64 {
    let mut groups = GROUPS;
    while channels
        .iter()
        .any(|channels| !channels.is_multiple_of(groups))
    {
        groups /= 2;
    }
    groups
}

/// The version whose fields these are.
pub(crate) const VERSION: &str = "0.27.0";

/// `vae/config.json`.
pub(crate) fn vae(
    shapes: &Shapes<'_>,
    family: Family,
    prediction: Prediction,
    metadata: &BTreeMap<String, String>,
) -> Result<Value, Gap> {
    let levels = shapes.count("encoder.down_blocks.");
    let channels = (0..levels).map(|level| {
        shapes.dim(
            &format!("encoder.down_blocks.{level}.resnets.0.conv1.weight"),
            0,
        )
    });
    let channels = channels.collect::<Result<Vec<u64>, Gap>>()?;
    let layers = shapes.count("encoder.down_blocks.0.resnets.");
    for level in 0..levels {
        let (down, up) = (
            shapes.count(&format!("encoder.down_blocks.{level}.resnets.")),
            shapes.count(&format!("decoder.up_blocks.{level}.resnets.")),
        );
        if (down, up) != (layers, layers + 1) {
            return Err((
                format!("encoder.down_blocks.{level}"),
                format!(
                    "{down} residual blocks down and {up} up; diffusers' AutoencoderKL wants {layers} and {}",
                    layers + 1
                ),
            ));
        }
    }
    if shapes
        .0
        .keys()
        .any(|name| name.contains("_blocks.") && name.contains(".attentions."))
    {
        return Err((
            "encoder".into(),
            "attention inside the levels: diffusers' AutoencoderKL has none there".into(),
        ));
    }
    Ok(json!({
        "_class_name": "AutoencoderKL", "_diffusers_version": VERSION,
        "act_fn": "silu", "block_out_channels": channels,
        "down_block_types": vec!["DownEncoderBlock2D"; levels], "up_block_types": vec!["UpDecoderBlock2D"; levels],
        "force_upcast": true, // as XL's says, and as diffusers takes SD 1's and 2's, which say nothing
        "in_channels": shapes.dim("encoder.conv_in.weight", 1)?, "out_channels": shapes.dim("decoder.conv_out.weight", 0)?,
        "latent_channels": shapes.dim("decoder.conv_in.weight", 1)?, "layers_per_block": layers,
        "mid_block_add_attention": shapes.has("decoder.mid_block.attentions."),
        "norm_num_groups": hint(metadata, VAE_GROUPS_HINT).unwrap_or_else(|| groups(&channels)),
        "sample_size": family.picture_size(prediction), "scaling_factor": family.latent_scale(),
        "use_quant_conv": shapes.has("quant_conv."), "use_post_quant_conv": shapes.has("post_quant_conv."),
    }))
}

/// `text_encoder/config.json`: `open_clip` for the encoders that came from there, whose activation is another.
pub(crate) fn text(shapes: &Shapes<'_>, open_clip: bool, dtype: &str) -> Result<Value, Gap> {
    let width = shapes.dim("text_model.embeddings.token_embedding.weight", 1)?;
    let projected = shapes.has("text_projection.");
    Ok(json!({
        "architectures": [if projected { "CLIPTextModelWithProjection" } else { "CLIPTextModel" }],
        "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "pad_token_id": 1,
        "hidden_act": if open_clip { "gelu" } else { "quick_gelu" },
        "hidden_size": width, "initializer_factor": 1.0, "initializer_range": 0.02,
        "intermediate_size": shapes.dim("text_model.encoder.layers.0.mlp.fc1.weight", 0)?,
        "layer_norm_eps": 1e-5, "max_position_embeddings": shapes.dim("text_model.embeddings.position_embedding.weight", 0)?,
        "model_type": "clip_text_model", "num_attention_heads": (width / HEAD_WIDTH).max(1),
        "num_hidden_layers": shapes.count("text_model.encoder.layers."),
        "projection_dim": if projected { shapes.dim("text_projection.weight", 0)? } else { width },
        "torch_dtype": dtype, "vocab_size": shapes.dim("text_model.embeddings.token_embedding.weight", 0)?,
    }))
}

/// `scheduler/scheduler_config.json`: what the family's published folders name.
pub(crate) fn scheduler(family: Family, prediction: Prediction, zero_snr: bool) -> Value {
    let class = match family {
        Family::Sd1 => "PNDMScheduler",
        Family::Sd2 => "DDIMScheduler",
        Family::Xl | Family::XlRefiner => "EulerDiscreteScheduler",
    };
    let mut config = json!({
        "_class_name": class, "_diffusers_version": VERSION,
        "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
        "prediction_type": prediction.diffusers_name(), "steps_offset": 1, "timestep_spacing": "leading",
        "trained_betas": null,
    });
    match family {
        Family::Sd1 => {
            (config["skip_prk_steps"], config["set_alpha_to_one"]) = (json!(true), json!(false));
            // PNDM has no use for it, but the schedulers that people change to would clip latents as if they were pixels.
            config["clip_sample"] = json!(false);
        }
        Family::Sd2 => {
            (config["clip_sample"], config["set_alpha_to_one"]) = (json!(false), json!(false))
        }
        _ => {
            config["interpolation_type"] = json!("linear");
            config["use_karras_sigmas"] = json!(false);
        }
    }
    if zero_snr {
        config["rescale_betas_zero_snr"] = json!(true);
        config["timestep_spacing"] = json!("trailing"); // only this spacing begins at the last step
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_divide_every_width() {
        assert_eq!(groups(&[320, 640, 1280]), 32);
        assert_eq!(groups(&[16, 24]), 8);
        assert_eq!(groups(&[7]), 1);
    }

    fn specs(names: &[(&str, &[u64])]) -> Vec<TensorSpec> {
        let spec = |(name, shape): &(&str, &[u64])| TensorSpec {
            name: name.to_string(),
            dtype: safelight_format::Dtype::F16,
            shape: shape.to_vec(),
        };
        names.iter().map(spec).collect()
    }

    /// Two levels, the second one with transformers, and a middle.
    fn small(down_depth: usize, up_depth: usize) -> Vec<TensorSpec> {
        levels(&[0, down_depth], &[up_depth, 0], 2)
    }

    /// Levels with so many transformers each, and a middle.
    fn levels(down: &[usize], up: &[usize], middle: usize) -> Vec<TensorSpec> {
        let mut names = vec![
            ("conv_in.weight".to_string(), vec![32, 4, 3, 3]),
            ("conv_out.weight".into(), vec![4, 32, 3, 3]),
            ("time_embedding.linear_1.weight".into(), vec![128, 32]),
        ];
        for (side, layers, depths) in [("down_blocks", 2, down), ("up_blocks", 3, up)] {
            for (level, &depth) in depths.iter().enumerate() {
                for layer in 0..layers {
                    names.push((
                        format!("{side}.{level}.resnets.{layer}.conv1.weight"),
                        vec![64, 32, 3, 3],
                    ));
                    for block in 0..depth {
                        names.push((format!("{side}.{level}.attentions.{layer}.transformer_blocks.{block}.attn2.to_k.weight"), vec![64, 48]));
                        names.push((
                            format!("{side}.{level}.attentions.{layer}.proj_in.weight"),
                            vec![64, 64],
                        ));
                    }
                }
            }
        }
        names.push((
            format!(
                "mid_block.attentions.0.transformer_blocks.{}.attn1.to_k.weight",
                middle - 1
            ),
            vec![64, 64],
        ));
        names.extend(
            (0..2).map(|layer| (format!("mid_block.resnets.{layer}.norm1.bias"), vec![64])),
        );
        let names: Vec<(&str, &[u64])> = names
            .iter()
            .map(|(name, shape)| (name.as_str(), shape.as_slice()))
            .collect();
        specs(&names)
    }

    fn config(specs: &[TensorSpec], family: Family) -> Result<Value, Gap> {
        unet(
            &Shapes::of(specs.iter()),
            family,
            Prediction::V,
            Some(16),
            &BTreeMap::new(),
        )
    }

    #[test]
    fn a_unet_is_described_by_its_shapes() {
        let config = config(&small(2, 2), Family::Sd2).unwrap();
        for (key, expected) in [
            ("block_out_channels", json!([64, 64])),
            (
                "down_block_types",
                json!(["DownBlock2D", "CrossAttnDownBlock2D"]),
            ),
            ("up_block_types", json!(["CrossAttnUpBlock2D", "UpBlock2D"])),
            ("transformer_layers_per_block", json!(2)),
            ("cross_attention_dim", json!(48)),
            ("use_linear_projection", json!(true)),
            ("attention_head_dim", json!([1, 1])),
            ("sample_size", json!(96)),
            ("layers_per_block", json!(2)),
            ("upcast_attention", json!(true)),
        ] {
            assert_eq!(config[key], expected, "{key}");
        }
        assert!(config.get("reverse_transformer_layers_per_block").is_none());
    }

    #[test]
    fn depths_that_differ_on_the_way_up_are_said() {
        let config = config(&small(2, 1), Family::Sd2).unwrap();
        assert_eq!(config["transformer_layers_per_block"], json!([1, 2]));
        assert_eq!(
            config["reverse_transformer_layers_per_block"],
            json!([1, 1])
        );
    }

    /// As in the `unet/config.json` of stabilityai/stable-diffusion-xl-base-1.0, xl-refiner-1.0 and SD 1.5.
    #[test]
    fn depths_are_those_of_published_configurations() {
        for (down, up, middle, expected) in [
            (&[0, 2, 10][..], &[10, 2, 0][..], 10, json!([1, 2, 10])),
            (&[0, 4, 4, 0], &[0, 4, 4, 0], 4, json!(4)),
            (&[1, 1, 1, 0], &[0, 1, 1, 1], 1, json!(1)),
            (&[1, 2, 0], &[0, 2, 1], 2, json!([1, 2, 2])), // the middle has the last
        ] {
            let config = config(&levels(down, up, middle), Family::Sd2).unwrap();
            assert_eq!(config["transformer_layers_per_block"], expected);
            assert!(config.get("reverse_transformer_layers_per_block").is_none());
        }
    }

    #[test]
    fn what_diffusers_cannot_have_is_refused() {
        let (at, _) = config(&small(3, 3), Family::Sd2).unwrap_err();
        assert_eq!(at, "mid_block.attentions.0");
        let (at, _) =
            config(&specs(&[("conv_in.weight", &[1, 1, 1, 1])]), Family::Sd1).unwrap_err();
        assert_eq!(at, "time_embedding.linear_1.weight");
    }
}
