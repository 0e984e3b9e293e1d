//! What a diffusers folder's JSON files say: structure beyond shapes, and settings that are not supported.
//!
//! A field that is there wins over what shapes suggest; one that is absent leaves it. Settings that would change the
//! picture and are not implemented are refused by name.

use std::path::{Path, PathBuf};

use safelight_tensor::Activation;
use serde_json::{Value, json};

use super::LoadError;
use super::shapes::SIZE_MAX;
use crate::schedule::{BetaCurve, Betas, Prediction};
use crate::text::TextConfig;
use crate::unet::{Heads, Level, UNetConfig};
use crate::vae::{VaeConfig, VaeHalf};

/// Longest JSON file read; real ones have a few kilobytes.
const JSON_BYTES_MAX: u64 = 1 << 20;

/// Most levels a network has, and most layers of a level: far beyond any, and few enough to list.
const COUNT_MAX: usize = 64;

/// One JSON file, an object.
#[derive(Clone, Debug)]
pub(crate) struct Json {
    path: PathBuf,
    value: Value,
}

impl Json {
    /// The file at `path`, or `None` if there is none.
    pub(crate) fn read(path: &Path) -> Result<Option<Json>, LoadError> {
        let io = |source| LoadError::Io {
            path: path.to_owned(),
            source,
        };
        let bytes = match std::fs::metadata(path) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let config = |what| LoadError::Config {
            path: path.to_owned(),
            what,
        };
        if bytes > JSON_BYTES_MAX {
            return Err(config(format!(
                "{bytes} bytes is too long for a configuration (limit {JSON_BYTES_MAX})"
            )));
        }
        let text = std::fs::read(path).map_err(io)?;
        let value: Value =
            serde_json::from_slice(&text).map_err(|error| config(format!("not JSON: {error}")))?;
        if !value.is_object() {
            return Err(config("the file holds no JSON object".into()));
        }
        Ok(Some(Json {
            path: path.to_owned(),
            value,
        }))
    }

    /// The object itself.
    pub(crate) fn value(&self) -> &Value {
        &self.value
    }

    /// A field that is there and not null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    fn fault(&self, key: &str, expected: &str) -> LoadError {
        let found = self.value.get(key).unwrap_or(&Value::Null);
        LoadError::Config {
            path: self.path.clone(),
            what: format!("`{key}` is {found}, expected {expected}"),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    fn number(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = believable(value);
        number
            .map(Some)
            .ok_or_else(|| self.fault(key, "a whole number"))
    }

    /// How many of something: a number up to [`COUNT_MAX`].
    fn count(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let count = self.number(key)?;
        match count {
            Some(count) if count > COUNT_MAX => Err(self.too_many(key)),
            _ => Ok(count),
        }
    }

    fn too_many(&self, key: &str) -> LoadError {
        self.fault(key, &format!("at most {COUNT_MAX}"))
    }

    fn float(&self, key: &str) -> Result<Option<f64>, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_f64()
            .map(Some)
            .ok_or_else(|| self.fault(key, "a number"))
    }

    fn truth(&self, key: &str) -> Result<Option<bool>, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_bool()
            .map(Some)
            .ok_or_else(|| self.fault(key, "true or false"))
    }

    /// A list of numbers, or one number `count` times.
    fn numbers(&self, key: &str, count: usize) -> Result<Option<Vec<usize>>, LoadError> {
        match self.get(key) {
            Some(Value::Array(values)) => {
                let numbers = values.iter().map(believable).collect::<Option<Vec<_>>>();
                numbers
                    .map(Some)
                    .ok_or_else(|| self.fault(key, "whole numbers"))
            }
            _ => Ok(self.number(key)?.map(|number| vec![number; count])),
        }
    }

    /// Refuses a value that is neither absent, nor null, nor one of `allowed`.
    fn only(&self, key: &str, allowed: &[Value]) -> Result<(), LoadError> {
        match self.get(key) {
            Some(value) if !allowed.contains(value) => {
                let allowed = allowed.iter().map(Value::to_string).collect::<Vec<_>>();
                let expected = if allowed.is_empty() {
                    "null".into()
                } else {
                    allowed.join(" or ")
                };
                Err(self.fault(key, &format!("{expected}: anything else is not supported")))
            }
            _ => Ok(()),
        }
    }

    /// Block types, each of which must be one of `allowed`; true where it is the first of them.
    fn types(&self, key: &str, allowed: &[&str]) -> Result<Option<Vec<bool>>, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let of = |value: &Value| {
            Some(
                allowed
                    .iter()
                    .position(|&name| Some(name) == value.as_str())?
                    == 0,
            )
        };
        let types = value
            .as_array()
            .and_then(|values| values.iter().map(of).collect::<Option<Vec<_>>>());
        types
            .map(Some)
            .ok_or_else(|| self.fault(key, &format!("a list of {}", allowed.join(" and "))))
    }
}

/// A whole number no larger than sizes can be.
fn believable(value: &Value) -> Option<usize> {
    let number = usize::try_from(value.as_u64()?).ok()?;
    (number <= SIZE_MAX).then_some(number)
}

/// Settings of a UNet that must be as in Stable Diffusion 1.x.
fn unet_settings() -> Vec<(&'static str, Vec<Value>)> {
    vec![
        ("_class_name", vec![json!("UNet2DConditionModel")]),
        ("act_fn", vec![json!("silu"), json!("swish")]),
        ("addition_embed_type", vec![]),
        ("attention_type", vec![json!("default")]),
        ("center_input_sample", vec![json!(false)]),
        ("class_embed_type", vec![]),
        ("conv_in_kernel", vec![json!(3)]),
        ("conv_out_kernel", vec![json!(3)]),
        ("cross_attention_norm", vec![]),
        ("downsample_padding", vec![json!(1)]),
        ("dual_cross_attention", vec![json!(false)]),
        ("encoder_hid_dim", vec![]),
        ("flip_sin_to_cos", vec![json!(true)]),
        ("freq_shift", vec![json!(0)]),
        ("mid_block_scale_factor", vec![json!(1), json!(1.0)]),
        ("num_class_embeds", vec![]),
        ("resnet_out_scale_factor", vec![json!(1), json!(1.0)]),
        ("resnet_skip_time_act", vec![json!(false)]),
        ("resnet_time_scale_shift", vec![json!("default")]),
        ("time_cond_proj_dim", vec![]),
        ("time_embedding_act_fn", vec![]),
        ("time_embedding_type", vec![json!("positional")]),
        ("timestep_post_act", vec![]),
    ]
}

/// What `unet/config.json` says, over what shapes say.
pub(crate) fn unet(json: &Json, shapes: &mut UNetConfig) -> Result<(), LoadError> {
    for (key, allowed) in unet_settings() {
        json.only(key, &allowed)?;
    }
    let crossing = json.get("only_cross_attention").and_then(Value::as_array);
    if crossing.is_none_or(|values| values.contains(&json!(true))) {
        json.only("only_cross_attention", &[json!(false)])?;
    }
    let count = shapes.down.len();
    let widths = json.numbers("block_out_channels", count)?;
    let widths = widths.unwrap_or_else(|| shapes.down.iter().map(|level| level.channels).collect());
    let count = widths.len();
    let one_each = |key: &str, values: &[usize]| match values.len() == count {
        true => Ok(()),
        false => Err(json.fault(key, &format!("one for each of {count} levels"))),
    };
    if count == 0 || count > COUNT_MAX {
        return Err(json.fault("block_out_channels", &format!("1 to {COUNT_MAX} levels")));
    }
    if let Some(layers) = json.numbers("layers_per_block", count)? {
        one_each("layers_per_block", &layers)?;
        let depths = json
            .numbers("transformer_layers_per_block", count)?
            .unwrap_or(vec![1; count]);
        one_each("transformer_layers_per_block", &depths)?;
        if layers.iter().chain(&depths).any(|&count| count > COUNT_MAX) {
            return Err(json.too_many("layers_per_block"));
        }
        let down = json.types("down_block_types", &["CrossAttnDownBlock2D", "DownBlock2D"])?;
        let up = json.types("up_block_types", &["CrossAttnUpBlock2D", "UpBlock2D"])?;
        let shape = |idx: usize, crossing: bool, layers: usize, resample: bool| Level {
            channels: widths[idx],
            depths: vec![if crossing { depths[idx] } else { 0 }; layers],
            resample,
        };
        // diffusers' default: attention everywhere but at the lowest level.
        let down = down.unwrap_or_else(|| (0..count).map(|idx| idx + 1 < count).collect());
        let up = up.unwrap_or_else(|| (0..count).map(|idx| idx > 0).collect());
        if down.len() != count || up.len() != count {
            return Err(json.fault(
                "down_block_types",
                &format!("one for each of {count} levels, as in `up_block_types`"),
            ));
        }
        shapes.down = (0..count)
            .map(|idx| shape(idx, down[idx], layers[idx], idx + 1 < count))
            .collect();
        let mirrored = |idx: usize| count - 1 - idx;
        let up = (0..count).map(|idx| {
            shape(
                mirrored(idx),
                up[idx],
                layers[mirrored(idx)] + 1,
                idx + 1 < count,
            )
        });
        shapes.up = up.collect();
        json.only("mid_block_type", &[json!("UNetMidBlock2DCrossAttn")])?;
        let no_middle = json.value.get("mid_block_type").is_some_and(Value::is_null);
        shapes.mid_depth = (!no_middle).then_some(depths[count - 1]);
    }
    // The field's name is a slip diffusers keeps for old files: it is the number of heads.
    let key = if json.get("num_attention_heads").is_some() {
        "num_attention_heads"
    } else {
        "attention_head_dim"
    };
    let heads = json.numbers(key, count)?.unwrap_or(vec![8; count]);
    one_each(key, &heads)?;
    shapes.heads = Heads::PerLevel(heads);
    shapes.in_channels = json.number("in_channels")?.unwrap_or(shapes.in_channels);
    shapes.out_channels = json.number("out_channels")?.unwrap_or(shapes.out_channels);
    if let Some(context) = json.numbers("cross_attention_dim", count)? {
        if context.iter().any(|width| *width != context[0]) {
            return Err(json.fault("cross_attention_dim", "one width for all levels"));
        }
        shapes.context_channels = context.first().copied().unwrap_or(shapes.context_channels);
    }
    shapes.norm_num_groups = json
        .number("norm_num_groups")?
        .unwrap_or(shapes.norm_num_groups);
    shapes.norm_eps = json
        .float("norm_eps")?
        .map_or(shapes.norm_eps, |eps| eps as f32);
    Ok(())
}

/// What `vae/config.json` says, over what shapes say.
pub(crate) fn vae(json: &Json, shapes: &mut VaeConfig) -> Result<(), LoadError> {
    json.only("_class_name", &[json!("AutoencoderKL")])?;
    json.only("act_fn", &[json!("silu"), json!("swish")])?;
    for key in ["shift_factor", "latents_mean", "latents_std"] {
        json.only(key, &[])?;
    }
    json.types("down_block_types", &["DownEncoderBlock2D"])?;
    json.types("up_block_types", &["UpDecoderBlock2D"])?;
    let widths = json
        .numbers("block_out_channels", 1)?
        .unwrap_or_else(|| shapes.encoder.channels.clone());
    if let Some(layers) = json.count("layers_per_block")? {
        let attention = json.truth("mid_block_add_attention")?.unwrap_or(true);
        let half = |channels: Vec<usize>, layers| VaeHalf {
            layers: vec![layers; channels.len()],
            channels,
            attention,
        };
        shapes.decoder = half(widths.iter().rev().copied().collect(), layers + 1);
        shapes.encoder = half(widths, layers);
    }
    shapes.latent_channels = json
        .number("latent_channels")?
        .unwrap_or(shapes.latent_channels);
    // diffusers' default, and all there was before it had these fields.
    shapes.quant_conv = json.truth("use_quant_conv")?.unwrap_or(true);
    shapes.post_quant_conv = json.truth("use_post_quant_conv")?.unwrap_or(true);
    shapes.norm_num_groups = json
        .number("norm_num_groups")?
        .unwrap_or(shapes.norm_num_groups);
    shapes.scale_factor = json
        .float("scaling_factor")?
        .map_or(shapes.scale_factor, |factor| factor as f32);
    Ok(())
}

/// What `text_encoder/config.json` says, over what shapes say.
pub(crate) fn text(json: &Json, shapes: &mut TextConfig) -> Result<(), LoadError> {
    json.only("model_type", &[json!("clip_text_model"), json!("clip")])?;
    shapes.vocabulary = json.number("vocab_size")?.unwrap_or(shapes.vocabulary);
    shapes.positions = json
        .number("max_position_embeddings")?
        .unwrap_or(shapes.positions);
    shapes.width = json.number("hidden_size")?.unwrap_or(shapes.width);
    shapes.layers = json.count("num_hidden_layers")?.unwrap_or(shapes.layers);
    shapes.heads = json.number("num_attention_heads")?.unwrap_or(shapes.heads);
    shapes.mlp = json.number("intermediate_size")?.unwrap_or(shapes.mlp);
    shapes.norm_eps = json
        .float("layer_norm_eps")?
        .map_or(shapes.norm_eps, |eps| eps as f32);
    shapes.activation = match json.text("hidden_act") {
        None => shapes.activation,
        Some("quick_gelu") => Activation::QuickGelu,
        Some("gelu") => Activation::Gelu,
        Some(_) => return Err(json.fault("hidden_act", "\"quick_gelu\" or \"gelu\"")),
    };
    Ok(())
}

/// What a scheduler's configuration says of the training.
pub(crate) struct Training {
    pub(crate) prediction: Prediction,
    pub(crate) betas: Betas,
    pub(crate) zero_terminal_snr: bool,
}

/// What `scheduler/scheduler_config.json` says; absent fields have diffusers' defaults.
pub(crate) fn training(json: &Json) -> Result<Training, LoadError> {
    json.only("trained_betas", &[])?;
    let prediction = json.text("prediction_type").unwrap_or("epsilon");
    let prediction = Prediction::from_name(prediction);
    let curve = match json.text("beta_schedule") {
        None | Some("linear") => BetaCurve::Linear,
        Some("scaled_linear") => BetaCurve::ScaledLinear,
        Some("squaredcos_cap_v2") => BetaCurve::SquaredCosine,
        Some(_) => {
            return Err(json.fault(
                "beta_schedule",
                "linear, scaled_linear or squaredcos_cap_v2",
            ));
        }
    };
    let betas = Betas {
        curve,
        start: json.float("beta_start")?.unwrap_or(1e-4),
        end: json.float("beta_end")?.unwrap_or(0.02),
        step_count: json.number("num_train_timesteps")?.unwrap_or(1000),
    };
    let sound = 0.0 < betas.start && betas.start <= betas.end && betas.end < 1.0;
    if !sound || !(2..=100_000).contains(&betas.step_count) {
        return Err(json.fault(
            "beta_start",
            "0 < beta_start <= beta_end < 1 and 2 to 100000 training steps",
        ));
    }
    Ok(Training {
        prediction: prediction
            .ok_or_else(|| json.fault("prediction_type", "epsilon, v_prediction or sample"))?,
        betas,
        zero_terminal_snr: json.truth("rescale_betas_zero_snr")?.unwrap_or(false),
    })
}
