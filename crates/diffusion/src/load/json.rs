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
        let value: Value = serde_json::from_slice(&infinities_quoted(&text))
            .map_err(|error| config(format!("not JSON: {error}")))?;
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

    /// How many transformer blocks each layer of each level has: a list with, for each level, one number or one for each
    /// of its layers; or one number for all. `layers` holds how many layers a level has, 0 where they have none.
    fn depths(&self, key: &str, layers: &[usize]) -> Result<Option<Vec<Vec<usize>>>, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let depth = |value: &Value| believable(value).filter(|&depth| depth <= COUNT_MAX);
        let level = |value: &Value, layers: usize| match value {
            Value::Array(values) => {
                let depths = values.iter().map(depth).collect::<Option<Vec<_>>>()?;
                (layers == 0 || depths.len() == layers).then_some(depths)
            }
            _ => Some(vec![depth(value)?; layers.max(1)]),
        };
        let depths = match value {
            Value::Array(values) if values.len() == layers.len() => {
                let levels = values.iter().zip(layers);
                levels
                    .map(|(value, &layers)| level(value, layers))
                    .collect()
            }
            Value::Array(_) => None,
            _ => layers.iter().map(|&layers| level(value, layers)).collect(),
        };
        let expected = format!(
            "for each of {} levels, a number up to {COUNT_MAX} or one for each of its layers",
            layers.len()
        );
        depths.map(Some).ok_or_else(|| self.fault(key, &expected))
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

/// The text with `-Infinity` in quotes: Python writes it bare, as diffusers does for `lambda_min_clipped`, and JSON has no
/// such number.
fn infinities_quoted(text: &[u8]) -> Vec<u8> {
    const INFINITY: &[u8] = b"-Infinity";
    let mut out = Vec::with_capacity(text.len());
    let (mut rest, mut quoted) = (text, false);
    while let Some((&byte, after)) = rest.split_first() {
        let taken = match byte {
            b'-' if !quoted && rest.starts_with(INFINITY) => {
                out.extend([b"\"", INFINITY, b"\""].concat());
                INFINITY.len()
            }
            b'\\' if quoted && !after.is_empty() => {
                out.extend(&rest[..2]);
                2
            }
            _ => {
                quoted ^= byte == b'"';
                out.push(byte);
                1
            }
        };
        rest = &rest[taken..];
    }
    out
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
        if layers.iter().any(|&count| count > COUNT_MAX) {
            return Err(json.too_many("layers_per_block"));
        }
        levels(json, shapes, &widths, &layers)?;
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

/// The levels of `widths` channels and `layers` layers each (one more each on the way up), and the middle.
fn levels(
    json: &Json,
    shapes: &mut UNetConfig,
    widths: &[usize],
    layers: &[usize],
) -> Result<(), LoadError> {
    const DEPTHS: &str = "transformer_layers_per_block";
    const UP_DEPTHS: &str = "reverse_transformer_layers_per_block";
    let count = widths.len();
    let down = json.types("down_block_types", &["CrossAttnDownBlock2D", "DownBlock2D"])?;
    let up = json.types("up_block_types", &["CrossAttnUpBlock2D", "UpBlock2D"])?;
    // diffusers' default: attention everywhere but at the lowest level.
    let down = down.unwrap_or_else(|| (0..count).map(|idx| idx + 1 < count).collect());
    let up = up.unwrap_or_else(|| (0..count).map(|idx| idx > 0).collect());
    if down.len() != count || up.len() != count {
        return Err(json.fault(
            "down_block_types",
            &format!("one for each of {count} levels, as in `up_block_types`"),
        ));
    }
    let up_layers: Vec<usize> = layers.iter().rev().map(|layers| layers + 1).collect();
    let crossing = |crossing: &[bool], layers: &[usize]| -> Vec<usize> {
        let layers = layers.iter().zip(crossing);
        layers
            .map(|(&layers, &crossing)| if crossing { layers } else { 0 })
            .collect()
    };
    let (down_crossing, up_crossing) = (crossing(&down, layers), crossing(&up, &up_layers));
    let depths = json.depths(DEPTHS, &down_crossing)?;
    let depths = depths.unwrap_or_else(|| {
        down_crossing
            .iter()
            .map(|&layers| vec![1; layers.max(1)])
            .collect()
    });
    let by_layer = json.get(DEPTHS).and_then(Value::as_array);
    let by_layer = by_layer.is_some_and(|levels| levels.iter().any(Value::is_array));
    let up_depths = match json.depths(UP_DEPTHS, &up_crossing)? {
        Some(depths) => depths,
        None if by_layer => {
            let expected = "a list, since `transformer_layers_per_block` goes layer by layer";
            return Err(json.fault(UP_DEPTHS, expected));
        }
        None => {
            let levels = depths.iter().rev().zip(&up_crossing);
            levels
                .map(|(depths, &layers)| vec![depths[0]; layers])
                .collect()
        }
    };
    let level =
        |idx: usize, channels: usize, crossing: usize, layers: usize, depths: &[usize]| Level {
            channels,
            depths: if crossing > 0 {
                depths.to_vec()
            } else {
                vec![0; layers]
            },
            resample: idx + 1 < count,
        };
    shapes.down = (0..count)
        .map(|idx| {
            level(
                idx,
                widths[idx],
                down_crossing[idx],
                layers[idx],
                &depths[idx],
            )
        })
        .collect();
    let mirrored = |idx: usize| count - 1 - idx;
    shapes.up = (0..count)
        .map(|idx| {
            level(
                idx,
                widths[mirrored(idx)],
                up_crossing[idx],
                up_layers[idx],
                &up_depths[idx],
            )
        })
        .collect();
    json.only("mid_block_type", &[json!("UNetMidBlock2DCrossAttn")])?;
    let no_middle = json.value.get("mid_block_type").is_some_and(Value::is_null);
    let middle = depths[count - 1].first().copied();
    let middle = middle.ok_or_else(|| json.fault(DEPTHS, "a number for the middle, last"))?;
    shapes.mid_depth = (!no_middle).then_some(middle);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Down, in the middle, and up.
    type Depths = (Vec<Vec<usize>>, Option<usize>, Vec<Vec<usize>>);

    /// The transformer blocks of each layer of three levels with two layers.
    fn depths(mut value: Value) -> Result<Depths, String> {
        value["block_out_channels"] = json!([32, 64, 64]);
        value["layers_per_block"] = json!(2);
        let path = PathBuf::from("unet/config.json");
        let mut config = UNetConfig::sd15();
        unet(&Json { path, value }, &mut config).map_err(|error| error.to_string())?;
        let of = |levels: Vec<Level>| levels.into_iter().map(|level| level.depths).collect();
        Ok((of(config.down), config.mid_depth, of(config.up)))
    }

    #[test]
    fn transformer_blocks_up_may_differ_from_those_down() {
        let list = |levels: &[&[usize]]| -> Vec<Vec<usize>> {
            levels.iter().map(|level| level.to_vec()).collect()
        };
        assert_eq!(
            depths(json!({"transformer_layers_per_block": [1, 2, 3]})),
            Ok((
                list(&[&[1, 1], &[2, 2], &[0, 0]]),
                Some(3),
                list(&[&[0; 3], &[2; 3], &[1; 3]])
            ))
        );
        assert_eq!(
            depths(json!({"reverse_transformer_layers_per_block": [7, [1, 2, 3], 4]})),
            Ok((
                list(&[&[1, 1], &[1, 1], &[0, 0]]),
                Some(1),
                list(&[&[0; 3], &[1, 2, 3], &[4; 3]])
            ))
        );
        assert_eq!(
            depths(json!({
                "transformer_layers_per_block": [[1, 2], 3, [2]],
                "reverse_transformer_layers_per_block": [1, 1, [2, 1, 1]]
            })),
            Ok((
                list(&[&[1, 2], &[3, 3], &[0, 0]]),
                Some(2),
                list(&[&[0; 3], &[1; 3], &[2, 1, 1]])
            ))
        );
        let refused = |value: Value, expected: &str| {
            let error = depths(value).expect_err("refused");
            assert!(error.contains(expected), "{error}");
        };
        refused(
            json!({"transformer_layers_per_block": [[1, 2], 3, 2]}),
            "`reverse_transformer_layers_per_block` is null, expected a list",
        );
        refused(
            json!({"reverse_transformer_layers_per_block": [1, [1, 1], 1]}),
            "`reverse_transformer_layers_per_block` is [1,[1,1],1], expected for each of 3 levels",
        );
        refused(
            json!({"transformer_layers_per_block": [1, 1]}),
            "`transformer_layers_per_block`",
        );
        refused(
            json!({"transformer_layers_per_block": 65}),
            "`transformer_layers_per_block` is 65",
        );
        refused(
            json!({"transformer_layers_per_block": [1, 1, []], "reverse_transformer_layers_per_block": [1, 1, 1]}),
            "for the middle",
        );
    }

    #[test]
    fn pythons_infinity_is_read() {
        let check = |text: &str, expected: &str| {
            let found = infinities_quoted(text.as_bytes());
            assert_eq!(String::from_utf8(found).as_deref(), Ok(expected));
        };
        check(
            r#"{"a": -Infinity, "b": -1}"#,
            r#"{"a": "-Infinity", "b": -1}"#,
        );
        check(
            r#"{"\"-Infinity": "\\", "b":-Infinity}"#,
            r#"{"\"-Infinity": "\\", "b":"-Infinity"}"#,
        );
        check(r#"{"a": "-Infinity\"#, r#"{"a": "-Infinity\"#);
        check("-Infinit", "-Infinit");
    }
}
