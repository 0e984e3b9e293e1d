//! Flags that trade fidelity for time, and what pictures and JSON say of them.

use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use safelight_diffusion::infotext::Infotext;
use safelight_diffusion::pipeline::Shortcuts;
use safelight_diffusion::sampler::Flavour;
use serde_json::{Value, json};

use crate::args::unit;

/// Said at each flag: a heading for the whole would go on to the flags after these.
const HEADING: &str = "Options that trade fidelity for time (docs/speed.md has the cost of each)";

#[derive(Debug, Args)]
pub(crate) struct ShortcutArgs {
    /// Follow the prompt alone, unguided and twice as fast, for this part of the steps at the beginning; A1111's "Skip Early CFG"
    #[arg(long, help_heading = HEADING, alias = "skip-early-cfg", value_name = "X", default_value_t = 0.0, value_parser = unit, allow_negative_numbers = true)]
    cfg_start: f64,
    /// Likewise from this part of the steps on
    #[arg(long, help_heading = HEADING, value_name = "X", default_value_t = 1.0, value_parser = unit, allow_negative_numbers = true)]
    cfg_end: f64,
    /// Run the UNet whole at every N-th step only, and between them its outer blocks (DeepCache)
    #[arg(long, help_heading = HEADING, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=999), allow_negative_numbers = true)]
    cache_interval: u16,
    /// How deep those outer blocks go; 0 is fastest
    #[arg(
        long,
        help_heading = HEADING,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    cache_branch: u16,
    /// Merge this part of the tokens in the largest self-attentions, up to 0.75 (ToMe)
    #[arg(long, help_heading = HEADING, alias = "token-merging", value_name = "X", default_value_t = 0.0, value_parser = ratio, allow_negative_numbers = true)]
    token_merging_ratio: f64,
    /// Decode with a tiny decoder (TAESD) instead of the VAE: taesd_decoder.safetensors in the folder VAE-approx of the models, or FILE
    #[arg(long, help_heading = HEADING, value_name = "FILE", num_args = 0..=1, require_equals = true, value_hint = ValueHint::FilePath)]
    pub(crate) tiny_vae: Option<Option<PathBuf>>,
}

fn ratio(text: &str) -> Result<f64, String> {
    match unit(text)? {
        ratio if ratio <= 0.75 => Ok(ratio),
        _ => Err("from 0 to 0.75".into()),
    }
}

impl ShortcutArgs {
    pub(crate) fn shortcuts(&self) -> Shortcuts {
        Shortcuts {
            guidance_start: self.cfg_start,
            guidance_end: self.cfg_end,
            cache_interval: self.cache_interval.into(),
            cache_branch: self.cache_branch.into(),
            token_merging: self.token_merging_ratio,
        }
    }
}

/// Adds what differs from the default to a picture's parameters; by A1111's name where A1111 means the same.
pub(crate) fn describe(shortcuts: &Shortcuts, flavour: Flavour, tiny: bool, info: &mut Infotext) {
    let usual = Shortcuts::default();
    if shortcuts.guidance_start != usual.guidance_start {
        let key = match flavour {
            Flavour::A1111 => "Skip Early CFG",
            Flavour::Diffusers => "CFG start",
        };
        info.push(key, shortcuts.guidance_start);
    }
    if shortcuts.guidance_end != usual.guidance_end {
        info.push("CFG end", shortcuts.guidance_end);
    }
    if shortcuts.cache_interval != usual.cache_interval {
        info.push("DeepCache interval", shortcuts.cache_interval);
        info.push("DeepCache branch", shortcuts.cache_branch);
    }
    if shortcuts.token_merging != usual.token_merging {
        info.push("Token merging ratio", shortcuts.token_merging);
    }
    if tiny {
        info.push("VAE Decoder", "TAESD");
    }
}

/// All of them, for `--json`.
pub(crate) fn to_json(shortcuts: &Shortcuts, tiny: Option<&Path>) -> Value {
    json!({
        "cfg_start": shortcuts.guidance_start,
        "cfg_end": shortcuts.guidance_end,
        "cache_interval": shortcuts.cache_interval,
        "cache_branch": shortcuts.cache_branch,
        "token_merging_ratio": shortcuts.token_merging,
        "tiny_vae": tiny.map(Path::to_string_lossy),
    })
}
