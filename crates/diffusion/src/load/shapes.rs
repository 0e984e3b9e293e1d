//! Structure from names and shapes: what the file itself says about each network.
//!
//! What a file cannot say follows the family's convention (heads, group counts, the activation of the text model), or
//! the metadata a single file may carry. A diffusers folder's JSON is [`super::json`]'s.

use safelight_tensor::Activation;

use super::Problem;
use super::keys::{Naming, PartKeys};
use crate::text::TextConfig;
use crate::unet::{AdditionConfig, Heads, Level, UNetConfig};
use crate::vae::{VaeConfig, VaeHalf};

/// Width of an attention head in CLIP, and in UNets whose `proj_in` is linear.
const HEAD_WIDTH: usize = 64;
/// Heads of a UNet whose `proj_in` is a convolution.
const UNET_HEADS: usize = 8;
/// The widest CLIP text model that uses the approximate GELU.
const QUICK_GELU_WIDTH_MAX: usize = 768;

/// Sizes are believed from 1 to here: products of three stay far from overflow.
pub(crate) const SIZE_MAX: usize = 1 << 20;

/// What a file's metadata says of the numbers that shapes do not show.
pub(crate) struct Hints<'m>(pub(crate) &'m dyn Fn(&str) -> Option<String>);

impl Hints<'_> {
    /// A number under `key`; anything else counts as absent.
    fn number(&self, key: &str) -> Option<usize> {
        (self.0)(key)?
            .trim()
            .parse()
            .ok()
            .filter(|&number| number > 0)
    }
}

/// The size most of the tensors agree on: each entry is a name and the dimension that holds the size.
///
/// One broken tensor is outvoted, and so is reported as what it is.
fn vote<'n>(keys: &PartKeys, entries: impl IntoIterator<Item = (&'n str, usize)>) -> Option<usize> {
    let mut votes: Vec<(usize, usize)> = Vec::new();
    for (name, axis) in entries {
        let Some(&size) = keys.get(name).and_then(|stored| stored.shape.get(axis)) else {
            continue;
        };
        let Some(size) = usize::try_from(size)
            .ok()
            .filter(|size| (1..=SIZE_MAX).contains(size))
        else {
            continue;
        };
        match votes.iter_mut().find(|(voted, _)| *voted == size) {
            Some((_, count)) => *count += 1,
            None => votes.push((size, 1)),
        }
    }
    // The first among equals: entries are listed with the most telling first.
    votes
        .iter()
        .rev()
        .max_by_key(|(_, count)| count)
        .map(|&(size, _)| size)
}

/// Output channels of a level: those of its residual blocks. `None` if it has none.
fn level_channels(keys: &PartKeys, name: &str, layers: usize) -> Option<usize> {
    let fields = [
        "conv1.weight",
        "conv1.bias",
        "norm2.weight",
        "norm2.bias",
        "conv2.weight",
        "conv2.bias",
    ];
    let of = |layer| fields.map(|field| format!("{name}.resnets.{layer}.{field}"));
    let names: Vec<String> = (0..layers).flat_map(of).collect();
    vote(keys, names.iter().map(|name| (name.as_str(), 0)))
}

/// What to miss where a level is gone from both ways, so that not even its width is known: its first convolution.
fn lost_level(keys: &PartKeys, side: &str, channels: &[usize]) -> Option<Problem> {
    let mut levels = 0..channels.len().max(1);
    let lost = levels.find(|&idx| channels.get(idx).is_none_or(|&channels| channels == 0))?;
    Some(Problem::Missing {
        tensor: keys.stored_name(&format!("{side}.{lost}.resnets.0.conv1.weight")),
    })
}

/// What keeps a UNet's structure from being known; asked after JSON had its say.
pub(crate) fn unet_gaps(keys: &PartKeys, config: &UNetConfig) -> Vec<Problem> {
    let sides = [("down_blocks", &config.down), ("up_blocks", &config.up)];
    let lost = sides.map(|(side, levels)| {
        let channels: Vec<usize> = levels.iter().map(|level| level.channels).collect();
        lost_level(keys, side, &channels)
    });
    lost.into_iter().flatten().collect()
}

/// The UNet's structure; levels of no width where none is to be seen.
pub(crate) fn unet(keys: &PartKeys, hints: &Hints<'_>) -> UNetConfig {
    let levels = |side: &str, resampler: &str| {
        let count = keys.count(&format!("{side}."));
        let level = |idx| unet_level(keys, &format!("{side}.{idx}"), resampler);
        (0..count).map(level).collect::<Vec<_>>()
    };
    let (mut down, mut up) = (
        levels("down_blocks", "downsamplers"),
        levels("up_blocks", "upsamplers"),
    );
    mirror(&mut down, &mut up);
    let ending = |end: &str, axis| {
        let found = keys
            .tensors()
            .map(|(name, _)| name)
            .filter(|name| name.ends_with(end));
        vote(keys, found.map(|name| (name, axis)).collect::<Vec<_>>())
    };
    // A linear layer has no third dimension to vote with.
    let convolution =
        ending(".proj_in.weight", 2).is_some() || ending(".proj_in.weight", 0).is_none();
    let by_family = if convolution {
        Heads::Count(UNET_HEADS)
    } else {
        Heads::Width(HEAD_WIDTH)
    };
    let model = [
        "conv_in.weight",
        "conv_in.bias",
        "conv_norm_out.weight",
        "conv_norm_out.bias",
    ]
    .map(|name| (name, 0));
    let model = model.into_iter().chain([
        ("time_embedding.linear_1.weight", 1),
        ("conv_out.weight", 1),
    ]);
    let linear = [
        "linear_1.weight",
        "linear_1.bias",
        "linear_2.weight",
        "linear_2.bias",
    ];
    let time = linear.map(|field| format!("time_embedding.{field}"));
    let usual = UNetConfig::sd15();
    let mid_depth = mid_depth(keys, &down);
    UNetConfig {
        in_channels: vote(keys, [("conv_in.weight", 1)]).unwrap_or(usual.in_channels),
        out_channels: vote(keys, [("conv_out.weight", 0), ("conv_out.bias", 0)])
            .unwrap_or(usual.out_channels),
        model_channels: vote(keys, model).unwrap_or(usual.model_channels),
        time_embedding_channels: vote(keys, time.iter().map(|name| (name.as_str(), 0)))
            .or(ending(".time_emb_proj.weight", 1))
            .unwrap_or(usual.time_embedding_channels),
        down,
        mid_depth: Some(mid_depth),
        up,
        context_channels: ending(".attn2.to_k.weight", 1)
            .or(ending(".attn2.to_v.weight", 1))
            .unwrap_or(usual.context_channels),
        heads: hints
            .number("safelight.unet.attention_heads")
            .map_or(by_family, Heads::Count),
        norm_num_groups: hints
            .number("safelight.unet.norm_num_groups")
            .unwrap_or(usual.norm_num_groups),
        norm_eps: usual.norm_eps,
        addition: addition(keys),
    }
}

/// What is added to the time embedding: a pooled text, as wide as is left beside SDXL's numbers.
fn addition(keys: &PartKeys) -> Option<AdditionConfig> {
    let inputs = vote(keys, [("add_embedding.linear_1.weight", 1)])?;
    let numbers = AdditionConfig::sdxl(0).inputs();
    Some(AdditionConfig::sdxl(inputs.saturating_sub(numbers)))
}

/// Depth of the transformer at `name`, of which at least one block must be where anything of it is; 0 for none.
fn depth(keys: &PartKeys, name: &str) -> usize {
    match keys.count(&format!("{name}.transformer_blocks.")) {
        0 if keys.has(&format!("{name}.")) => 1,
        depth => depth,
    }
}

/// Depth of the middle's transformer: where the levels have attention so has the middle, unless it was pruned away.
fn mid_depth(keys: &PartKeys, down: &[Level]) -> usize {
    let own = depth(keys, "mid_block.attentions.0");
    if own > 0 || keys.bare_middle() {
        return own;
    }
    let depths = |level: &Level| level.depths.iter().copied().max();
    let mut lowest_first = down.iter().rev().filter_map(depths);
    lowest_first.find(|&depth| depth > 0).unwrap_or(0)
}

/// Gives both ways what only one of them shows, so that tensors that were lost are looked for and named.
///
/// The way up has the levels of the way down in reverse, each with one residual block more. Within a level, counting
/// both ways, every residual block has attention behind it or none has.
fn mirror(down: &mut Vec<Level>, up: &mut Vec<Level>) {
    let count = down.len().max(up.len());
    let empty = |channels| Level {
        channels,
        depths: Vec::new(),
        resample: false,
    };
    // Whichever way is short lost its end: the lowest levels of the way down, the highest of the way up.
    while down.len() < count {
        let twin = up
            .get(count - 1 - down.len())
            .map_or(0, |level| level.channels);
        down.push(empty(twin));
    }
    while up.len() < count {
        let twin = down
            .get(count - 1 - up.len())
            .map_or(0, |level| level.channels);
        up.push(empty(twin));
    }
    for (idx, above) in up.iter_mut().enumerate() {
        let below = &mut down[count - 1 - idx];
        if above.channels == 0 || below.channels == 0 {
            let known = above.channels.max(below.channels);
            (above.channels, below.channels) = (known, known);
        }
        let layers = above.depths.len().max(below.depths.len() + 1);
        let depths = above.depths.iter().chain(&below.depths).copied();
        let usual = depths.max().unwrap_or(0);
        for (depths, layers) in [(&mut above.depths, layers), (&mut below.depths, layers - 1)] {
            depths.resize(layers, 0);
            for depth in depths.iter_mut().filter(|depth| **depth == 0) {
                *depth = usual;
            }
        }
        above.resample |= idx + 1 < count;
        below.resample |= idx > 0;
    }
}

fn unet_level(keys: &PartKeys, name: &str, resampler: &str) -> Level {
    let count = |kind: &str| keys.count(&format!("{name}.{kind}."));
    let layers = count("resnets").max(count("attentions"));
    let depth = |layer| depth(keys, &format!("{name}.attentions.{layer}"));
    Level {
        channels: level_channels(keys, name, layers).unwrap_or(0),
        depths: (0..layers).map(depth).collect(),
        resample: keys.has(&format!("{name}.{resampler}.")),
    }
}

/// What keeps an autoencoder's structure from being known or supported; asked after JSON had its say.
pub(crate) fn vae_gaps(keys: &PartKeys, config: &VaeConfig) -> Vec<Problem> {
    let sides = [
        ("encoder.down_blocks", &config.encoder),
        ("decoder.up_blocks", &config.decoder),
    ];
    let lost = sides.map(|(side, half)| lost_level(keys, side, &half.channels));
    let mut problems: Vec<Problem> = lost.into_iter().flatten().collect();
    let in_levels = |name: &str| name.contains("_blocks.") && name.contains(".attentions.");
    if let Some((_, stored)) = keys.tensors().find(|(name, _)| in_levels(name)) {
        let what = format!(
            "`{}`: attention inside the VAE's levels is not supported, only in its middle",
            stored.name
        );
        problems.push(Problem::Unsupported { what });
    }
    problems
}

/// The autoencoder's structure; levels of no width where none is to be seen.
pub(crate) fn vae(keys: &PartKeys, hints: &Hints<'_>) -> VaeConfig {
    let half = |name: &str, side: &str| vae_half(keys, &format!("{name}.{side}"));
    let (mut encoder, mut decoder) = (half("encoder", "down_blocks"), half("decoder", "up_blocks"));
    mirror_vae(&mut encoder, &mut decoder);
    let latent = [("decoder.conv_in.weight", 1), ("post_quant_conv.weight", 0)];
    let usual = VaeConfig::sd15();
    let latent_channels = vote(keys, latent).unwrap_or(usual.latent_channels);
    // The LDM code always makes these; without JSON, other naming shows them by either of the pair.
    let ldm = keys.naming == Naming::Ldm;
    let attends = |half: &str| keys.has(&format!("{half}.mid_block.attentions."));
    let attention = ldm || attends("encoder") || attends("decoder");
    (encoder.attention, decoder.attention) = (attention, attention);
    // Later families, with more latent channels, keep LDM's names but not these convolutions.
    let quantised = ldm && latent_channels == usual.latent_channels;
    let quantised = quantised || keys.has("quant_conv.") || keys.has("post_quant_conv.");
    VaeConfig {
        encoder,
        decoder,
        latent_channels,
        quant_conv: quantised,
        post_quant_conv: quantised,
        norm_num_groups: hints
            .number("safelight.vae.norm_num_groups")
            .unwrap_or(usual.norm_num_groups),
        scale_factor: usual.scale_factor,
    }
}

/// One half of the autoencoder as it shows itself, levels of no width among them where they left no trace.
fn vae_half(keys: &PartKeys, side: &str) -> VaeHalf {
    let levels = (0..keys.count(&format!("{side}."))).map(|idx| format!("{side}.{idx}"));
    let layers = levels
        .clone()
        .map(|level| keys.count(&format!("{level}.resnets.")));
    let layers: Vec<usize> = layers.collect();
    let channels = levels.zip(&layers);
    let channels = channels.map(|(level, &layers)| level_channels(keys, &level, layers));
    VaeHalf {
        channels: channels.map(Option::unwrap_or_default).collect(),
        layers,
        attention: false,
    }
}

/// Gives both halves what only one of them shows: the decoder has the encoder's widths in reverse and one residual
/// block more in each level; within a half all levels have the same number of them.
fn mirror_vae(encoder: &mut VaeHalf, decoder: &mut VaeHalf) {
    let count = encoder.channels.len().max(decoder.channels.len());
    encoder.channels.resize(count, 0);
    decoder.channels.resize(count, 0);
    for (down, up) in encoder
        .channels
        .iter_mut()
        .zip(decoder.channels.iter_mut().rev())
    {
        if *down == 0 || *up == 0 {
            let known = (*down).max(*up);
            (*down, *up) = (known, known);
        }
    }
    let most = |half: &VaeHalf| {
        half.layers
            .iter()
            .copied()
            .max()
            .filter(|&layers| layers > 0)
    };
    let (down, up) = (most(encoder), most(decoder));
    let down = down.or(up.map(|up| up - 1)).unwrap_or(0);
    encoder.layers = vec![down; count];
    decoder.layers = vec![up.unwrap_or(down + 1); count];
}

/// The text model's structure.
pub(crate) fn text(keys: &PartKeys) -> TextConfig {
    let usual = TextConfig::sd15();
    let token = "text_model.embeddings.token_embedding.weight";
    let position = "text_model.embeddings.position_embedding.weight";
    let layers = keys.count("text_model.encoder.layers.").max(1);
    let of = |field: &str| {
        (0..layers)
            .map(|idx| format!("text_model.encoder.layers.{idx}.{field}"))
            .collect::<Vec<_>>()
    };
    let (norms, fc1) = (of("layer_norm1.weight"), of("mlp.fc1.weight"));
    let ends = [
        (token, 1),
        (position, 1),
        ("text_model.final_layer_norm.weight", 0),
    ];
    let width = vote(
        keys,
        ends.into_iter()
            .chain(norms.iter().map(|name| (name.as_str(), 0))),
    );
    let width = width.unwrap_or(usual.width);
    TextConfig {
        vocabulary: vote(keys, [(token, 0)]).unwrap_or(usual.vocabulary),
        positions: vote(keys, [(position, 0)]).unwrap_or(usual.positions),
        width,
        layers,
        heads: (width / HEAD_WIDTH).max(1),
        mlp: vote(keys, fc1.iter().map(|name| (name.as_str(), 0))).unwrap_or(4 * width),
        activation: if width <= QUICK_GELU_WIDTH_MAX {
            Activation::QuickGelu
        } else {
            Activation::Gelu
        },
        norm_eps: usual.norm_eps,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use safelight_format::{Dtype, TensorInfo};

    use super::super::{LoadError, Part};
    use super::*;
    use crate::nn::{Builder, Weights};
    use crate::unet::UNet;

    /// Has every tensor, and remembers which were asked for.
    #[derive(Default)]
    struct Asked(Mutex<Vec<(String, Vec<u64>)>>);

    impl Weights for Asked {
        fn check(&self, name: &str, shapes: &[Vec<usize>]) -> Result<(), Problem> {
            let shape = shapes[0].iter().map(|&dim| dim as u64).collect();
            self.0.lock().unwrap().push((name.to_owned(), shape));
            Ok(())
        }

        fn read(&self, name: &str, _count: usize) -> Result<Vec<f32>, LoadError> {
            unreachable!("{name} is only described")
        }

        fn label(&self) -> String {
            "asked".into()
        }
    }

    #[test]
    fn a_unet_is_known_by_its_own_tensors() {
        let linear = UNetConfig::sdxl();
        let unconditioned = UNetConfig {
            addition: None,
            ..linear.clone()
        };
        for config in [linear, unconditioned] {
            let asked = Asked::default();
            UNet::describe(&mut Builder::new(&asked), config.clone());
            let tensors = asked.0.into_inner().unwrap();
            let tensors = tensors.iter().map(|(name, shape)| TensorInfo {
                name,
                dtype: Dtype::F16,
                shape,
                data_offsets: (0, 0),
            });
            let tensors: Vec<TensorInfo<'_>> = tensors.collect();
            let keys = PartKeys::find(Part::UNet, &tensors).expect("a UNet");
            assert_eq!(unet(&keys, &Hints(&|_| None)), config);
            assert_eq!(unet_gaps(&keys, &config), []);
        }
    }
}
