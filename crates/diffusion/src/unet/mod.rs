//! The denoising network: a noisy latent, a time and a text go in, the noise (or velocity) in it comes out.
//!
//! Fields carry diffusers' names. Which tensor of a file they mean is [`crate::load`]'s business; schedules and
//! guidance are the samplers'.

mod addition;
mod blocks;
mod config;
mod merging;
mod pass;

pub use addition::Addition;
pub use blocks::{KeyValue, ResnetBlock, ResnetShape, Transformer, TransformerShape};
pub use config::{AdditionConfig, Heads, Level, UNetConfig};
pub use pass::{Deep, Pass};

use addition::AddEmbedding;
use pass::Walk;
use safelight_tensor::{Activation, Conv2d, Epilogue, Linear, Norm, Precision, Tensor, ops};

use crate::load::{LoadError, Problem};
use crate::nn::{Builder, ConvShape, Leaf, Trace, Weights};
use crate::precision::{self, Ways};

/// The UNet of Stable Diffusion 1.x's class or of SDXL's, of any size.
///
/// Source: Rombach et al. 2022, arXiv:2112.10752; Ronneberger et al. 2015, arXiv:1505.04597.
///
/// ```
/// use safelight_diffusion::nn::RandomWeights;
/// use safelight_diffusion::unet::{Level, UNet, UNetConfig};
/// use safelight_tensor::Tensor;
///
/// let level = |depths: &[usize]| Level { channels: 32, depths: depths.to_vec(), resample: false };
/// let config = UNetConfig {
///     model_channels: 32,
///     time_embedding_channels: 64,
///     down: vec![level(&[1])],
///     up: vec![level(&[1, 1])],
///     context_channels: 16,
///     ..UNetConfig::sd15()
/// };
/// let unet = UNet::load(&RandomWeights { seed: 1 }, config)?;
/// let (latent, text) = (Tensor::zeros(&[1, 5, 3, 4]), Tensor::zeros(&[1, 77, 16]));
/// assert_eq!(unet.forward(&latent, &[999.0], &text).shape(), [1, 5, 3, 4]);
/// # Ok::<(), safelight_diffusion::load::LoadError>(())
/// ```
pub struct UNet {
    config: UNetConfig,
    time_embedding: [Leaf<Linear>; 2],
    add_embedding: Option<AddEmbedding>,
    conv_in: Leaf<Conv2d>,
    down_blocks: Vec<Block>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<Block>,
    conv_norm_out: Leaf<Norm>,
    conv_out: Leaf<Conv2d>,
}

/// One level: residual blocks with their transformers, then the change of size.
struct Block {
    layers: Vec<(ResnetBlock, Option<Transformer>)>,
    /// `downsamplers.0.conv` or `upsamplers.0.conv`.
    resample: Option<Leaf<Conv2d>>,
}

struct MidBlock {
    resnets: [ResnetBlock; 2],
    attention: Option<Transformer>,
}

/// A text prepared for one UNet: its keys and values in every cross-attention, and what is added to the time embedding.
///
/// Prepare once for each prompt, use at every step.
pub struct PreparedText {
    key_values: Vec<Vec<KeyValue>>,
    /// `[B, time_embedding_channels]`, from an [`Addition`].
    added: Option<Tensor>,
    batch: usize,
}

impl PreparedText {
    /// How many pictures the text was prepared for.
    pub fn batch(&self) -> usize {
        self.batch
    }
}

/// Side of the latent of a usual picture: 512 pixels wide, or 1024 in SDXL's class.
fn usual_side(config: &UNetConfig) -> usize {
    match config.addition {
        None => 64,
        Some(_) => 128,
    }
}

impl UNet {
    /// Describes the network without reading; [`Builder::fill`] reads.
    pub fn describe(builder: &mut Builder<'_>, config: UNetConfig) -> UNet {
        let faults = config.faults();
        let sound = faults.is_empty();
        faults
            .into_iter()
            .for_each(|what| builder.problem(Problem::Unsupported { what }));
        let skips = if sound {
            config.skips().expect("no faults")
        } else {
            Vec::new()
        };
        let time = config.time_embedding_channels;
        let model = config.model_channels;
        builder.maps_of(usual_side(&config));
        UNet {
            time_embedding: [
                builder.linear("time_embedding.linear_1", time, model, true),
                builder.linear("time_embedding.linear_2", time, time, true),
            ],
            add_embedding: config
                .addition
                .as_ref()
                .map(|addition| AddEmbedding::new(builder, &config, addition)),
            conv_in: builder.conv("conv_in", ConvShape::same(model, config.in_channels)),
            down_blocks: down_blocks(builder, &config),
            mid_block: config
                .mid_depth
                .map(|depth| mid_block(builder, &config, depth)),
            up_blocks: up_blocks(builder, &config, &skips),
            conv_norm_out: builder.norm("conv_norm_out", model, config.norm_eps),
            conv_out: builder.conv("conv_out", ConvShape::same(config.out_channels, model)),
            config,
        }
    }

    /// Reads the network.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen, unreadable or not finite.
    pub fn load(weights: &dyn Weights, config: UNetConfig) -> Result<UNet, LoadError> {
        UNet::load_in(weights, config, Precision::F32)
    }

    /// Reads the network for products in `precision`, or finer as [`crate::precision`] has it.
    ///
    /// # Errors
    /// As [`UNet::load`].
    pub fn load_in(
        weights: &dyn Weights,
        config: UNetConfig,
        ways: impl Into<Ways>,
    ) -> Result<UNet, LoadError> {
        let mut builder = Builder::with_ways(weights, ways);
        let unet = UNet::describe(&mut builder, config);
        builder.fill()?;
        Ok(unet)
    }

    /// The network's structure.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// Computes the keys and values of a text embedding, `[B, T, D]`.
    ///
    /// # Panics
    /// If `D` is not the config's `context_channels`, or the network has an addition embedding: [`UNet::prepare_with`].
    pub fn prepare(&self, context: &Tensor) -> PreparedText {
        assert!(
            self.add_embedding.is_none(),
            "this UNet has an addition embedding: `prepare_with` takes what goes into it"
        );
        self.prepared(context, None)
    }

    /// As [`UNet::prepare`] for a network with an addition embedding.
    ///
    /// # Panics
    /// If the network has none, or the shapes do not fit the config or each other.
    ///
    /// ```no_run
    /// use safelight_diffusion::nn::{RandomWeights, Trace};
    /// use safelight_diffusion::unet::{Addition, UNet, UNetConfig};
    /// use safelight_tensor::Tensor;
    ///
    /// let unet = UNet::load(&RandomWeights { seed: 1 }, UNetConfig::sdxl())?;
    /// let time_ids = Tensor::from_slice(&[1, 6], &[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]);
    /// let addition = Addition { pooled: &Tensor::zeros(&[1, 1280]), time_ids: &time_ids };
    /// let text = unet.prepare_with(&Tensor::zeros(&[1, 77, 2048]), addition);
    /// let noise = Tensor::zeros(&[1, 128, 128, 4]);
    /// let found = unet.forward_prepared(&noise, &[999.0], &text, &mut Trace::off());
    /// # Ok::<(), safelight_diffusion::load::LoadError>(())
    /// ```
    pub fn prepare_with(&self, context: &Tensor, addition: Addition<'_>) -> PreparedText {
        let Some(add_embedding) = &self.add_embedding else {
            panic!("this UNet has no addition embedding");
        };
        let added = add_embedding.forward(addition, context.dim(0));
        self.prepared(context, Some(added))
    }

    fn prepared(&self, context: &Tensor, added: Option<Tensor>) -> PreparedText {
        let (width, batch) = (self.config.context_channels, context.dim(0));
        assert_eq!(
            context.last_dim(),
            width,
            "text embedding of width {}, UNet {width}",
            context.last_dim()
        );
        PreparedText {
            key_values: self.transformers().map(|t| t.text(context)).collect(),
            added,
            batch,
        }
    }

    /// The network's answer to the noisy latents `x` at the times `t`, given the texts `context`.
    ///
    /// `x` is `[B, H, W, in_channels]`, `t` has one time in 0..1000 for each of the `B`, `context` is `[B, T, D]`; the
    /// result is `[B, H, W, out_channels]`. Any height and width from 1 will do.
    ///
    /// # Panics
    /// If the shapes do not fit, or the network has an addition embedding: [`UNet::forward_prepared`].
    pub fn forward(&self, x: &Tensor, t: &[f32], context: &Tensor) -> Tensor {
        self.forward_prepared(x, t, &self.prepare(context), &mut Trace::off())
    }

    /// As [`UNet::forward`], with a text prepared before and every block's output shown to `trace`.
    ///
    /// The trace sees `time_embedding`, `add_embedding` where there is one, `conv_in`, `down_blocks.0.resnets.0`,
    /// `down_blocks.0.attentions.0`, …, `down_blocks.0.downsamplers.0`, `mid_block.resnets.0`, …, `conv_out`: names of
    /// diffusers' modules.
    pub fn forward_prepared(
        &self,
        x: &Tensor,
        t: &[f32],
        text: &PreparedText,
        trace: &mut Trace<'_>,
    ) -> Tensor {
        self.forward_with(x, t, text, Pass::default(), trace)
    }

    /// As [`UNet::forward_prepared`], leaving out what `pass` says.
    ///
    /// # Panics
    /// If the shapes do not fit, or the network has no such branch.
    pub fn forward_with(
        &self,
        x: &Tensor,
        t: &[f32],
        text: &PreparedText,
        pass: Pass<'_>,
        trace: &mut Trace<'_>,
    ) -> Tensor {
        let channels = self.config.in_channels;
        assert_eq!(
            x.last_dim(),
            channels,
            "latents with {} channels, UNet takes {channels}",
            x.last_dim()
        );
        assert_eq!(
            (t.len(), text.batch),
            (x.dim(0), x.dim(0)),
            "times and texts for {} latents",
            x.dim(0)
        );
        let time = self.time(t);
        trace.see(format_args!("time_embedding"), &time);
        let time = match &text.added {
            None => time,
            Some(added) => {
                trace.see(format_args!("add_embedding"), added);
                ops::add(&time, added)
            }
        };
        let time = ops::silu(&time);
        let x = ops::conv2d(x, &self.conv_in, Epilogue::default());
        trace.see(format_args!("conv_in"), &x);
        let mut walk = Walk::begin(x, time, text, pass, self.config.branch_count(), trace);
        for (level, block) in self.down_blocks.iter().enumerate() {
            block.down(level, &mut walk);
        }
        match &self.mid_block {
            Some(mid_block) => mid_block.forward(&mut walk),
            None => walk.turn(),
        }
        for (level, block) in self.up_blocks.iter().enumerate() {
            block.up(level, &mut walk);
        }
        let x = walk.end();
        let x = ops::group_norm(&x, self.config.norm_num_groups, &self.conv_norm_out, true);
        let x = ops::conv2d(&x, &self.conv_out, Epilogue::default());
        trace.see(format_args!("conv_out"), &x);
        x
    }

    /// The time embedding of each `t`: `[B, time_embedding_channels]`.
    fn time(&self, t: &[f32]) -> Tensor {
        let [linear_1, linear_2] = &self.time_embedding;
        let silu = Epilogue {
            activation: Activation::Silu,
            ..Epilogue::default()
        };
        let hidden = ops::linear(&sinusoids(t, self.config.model_channels), linear_1, silu);
        ops::linear(&hidden, linear_2, Epilogue::default())
    }

    fn transformers(&self) -> impl Iterator<Item = &Transformer> {
        fn of(blocks: &[Block]) -> impl Iterator<Item = &Transformer> {
            blocks.iter().flat_map(|block| {
                block
                    .layers
                    .iter()
                    .filter_map(|(_, attention)| attention.as_ref())
            })
        }
        of(&self.down_blocks)
            .chain(
                self.mid_block
                    .iter()
                    .filter_map(|mid_block| mid_block.attention.as_ref()),
            )
            .chain(of(&self.up_blocks))
    }
}

/// Cosines, then sines, of `t` at `width / 2` frequencies from 1 down to nearly 1/10000: `[B, width]`.
///
/// Source: Vaswani et al. 2017, arXiv:1706.03762, §3.5, in the order of the released checkpoints.
pub fn sinusoids(t: &[f32], width: usize) -> Tensor {
    let half = width / 2;
    let mut values = Vec::with_capacity(t.len() * width);
    for &t in t {
        let angle = |idx: usize| {
            let exponent = -10_000_f32.ln() * idx as f32 / half as f32;
            f64::from(t * f64::from(exponent).exp() as f32)
        };
        values.extend((0..half).map(|idx| angle(idx).cos() as f32));
        values.extend((0..half).map(|idx| angle(idx).sin() as f32));
    }
    Tensor::from_slice(&[t.len(), 2 * half], &values)
}

fn resnet(
    builder: &mut Builder<'_>,
    config: &UNetConfig,
    name: &str,
    inputs: usize,
    outputs: usize,
) -> ResnetBlock {
    let shape = ResnetShape {
        inputs,
        outputs,
        time_embedding: Some(config.time_embedding_channels),
        norm_num_groups: config.norm_num_groups,
        norm_eps: config.norm_eps,
    };
    ResnetBlock::new(builder, name, shape)
}

/// The transformer of `depth`, or none for 0; `level` counts from the largest picture.
fn transformer(
    builder: &mut Builder<'_>,
    config: &UNetConfig,
    name: &str,
    (level, channels, depth): (usize, usize, usize),
) -> Option<Transformer> {
    let shape = TransformerShape {
        channels,
        depth,
        heads: config.heads.count(level, channels),
        context: config.context_channels,
        norm_num_groups: config.norm_num_groups,
    };
    (depth > 0).then(|| Transformer::new(builder, name, shape))
}

fn down_blocks(builder: &mut Builder<'_>, config: &UNetConfig) -> Vec<Block> {
    let mut channels = config.model_channels;
    let mut blocks = Vec::new();
    for (level, shape) in config.down.iter().enumerate() {
        let name = format!("down_blocks.{level}");
        builder.maps_of(usual_side(config) >> level);
        let mut layers = Vec::new();
        for (layer, &depth) in shape.depths.iter().enumerate() {
            let resnet = resnet(
                builder,
                config,
                &format!("{name}.resnets.{layer}"),
                channels,
                shape.channels,
            );
            channels = shape.channels;
            let attention = format!("{name}.attentions.{layer}");
            layers.push((
                resnet,
                transformer(builder, config, &attention, (level, channels, depth)),
            ));
        }
        let conv = ConvShape::same(channels, channels).halving();
        let resample = shape
            .resample
            .then(|| builder.conv(&format!("{name}.downsamplers.0.conv"), conv));
        blocks.push(Block { layers, resample });
    }
    blocks
}

fn mid_block(builder: &mut Builder<'_>, config: &UNetConfig, depth: usize) -> MidBlock {
    let (channels, level) = (config.mid_channels(), config.down.len().saturating_sub(1));
    builder.maps_of(usual_side(config) >> level);
    MidBlock {
        resnets: [0, 1].map(|idx| {
            resnet(
                builder,
                config,
                &format!("mid_block.resnets.{idx}"),
                channels,
                channels,
            )
        }),
        attention: transformer(
            builder,
            config,
            "mid_block.attentions.0",
            (level, channels, depth),
        ),
    }
}

fn up_blocks(builder: &mut Builder<'_>, config: &UNetConfig, skips: &[Vec<usize>]) -> Vec<Block> {
    if let Some(last) = config.up.len().checked_sub(1) {
        builder.at_least(&format!("up_blocks.{last}."), precision::LAST_LEVEL);
        let resnets = format!("up_blocks.{last}.resnets.");
        builder.at_least(&resnets, precision::LAST_LEVEL_RESNETS);
    }
    let mut channels = config.mid_channels();
    let mut blocks = Vec::new();
    for (idx, (shape, skips)) in config.up.iter().zip(skips).enumerate() {
        let (name, level) = (format!("up_blocks.{idx}"), config.up.len() - 1 - idx);
        builder.maps_of(usual_side(config) >> level);
        let mut layers = Vec::new();
        for (layer, (&depth, &skip)) in shape.depths.iter().zip(skips).enumerate() {
            let resnet = resnet(
                builder,
                config,
                &format!("{name}.resnets.{layer}"),
                channels + skip,
                shape.channels,
            );
            channels = shape.channels;
            let attention = format!("{name}.attentions.{layer}");
            layers.push((
                resnet,
                transformer(builder, config, &attention, (level, channels, depth)),
            ));
        }
        builder.maps_of(usual_side(config) >> level.saturating_sub(1));
        let conv = ConvShape::same(channels, channels);
        let resample = shape
            .resample
            .then(|| builder.conv(&format!("{name}.upsamplers.0.conv"), conv));
        blocks.push(Block { layers, resample });
    }
    blocks
}

impl Block {
    /// Runs one level on the way down; every output is a skip connection.
    fn down(&self, level: usize, walk: &mut Walk<'_, '_>) {
        for (layer, (resnet, attention)) in self.layers.iter().enumerate() {
            let text = attention.as_ref().map(|_| walk.text());
            let Some(x) = walk.below() else { continue };
            let mut x = resnet.forward(x, Some(&walk.time));
            walk.see(format_args!("down_blocks.{level}.resnets.{layer}"), &x);
            if let (Some(attention), Some(text)) = (attention, text) {
                x = attention.forward_merging(&x, text, walk.token_merging(&x));
                walk.see(format_args!("down_blocks.{level}.attentions.{layer}"), &x);
            }
            walk.skips.push(x);
        }
        if let (Some(conv), Some(x)) = (&self.resample, walk.below()) {
            let x = ops::conv2d(x, conv, Epilogue::default());
            walk.see(format_args!("down_blocks.{level}.downsamplers.0"), &x);
            walk.skips.push(x);
        }
    }

    /// Runs one level on the way up; every residual block takes a skip connection.
    fn up(&self, level: usize, walk: &mut Walk<'_, '_>) {
        for (layer, (resnet, attention)) in self.layers.iter().enumerate() {
            let text = attention.as_ref().map(|_| walk.text());
            let Some((x, skip)) = walk.rise() else {
                continue;
            };
            let both = ops::concat_channels(&x, &skip);
            drop((x, skip));
            let mut x = resnet.forward(&both, Some(&walk.time));
            drop(both);
            walk.see(format_args!("up_blocks.{level}.resnets.{layer}"), &x);
            if let (Some(attention), Some(text)) = (attention, text) {
                x = attention.forward_merging(&x, text, walk.token_merging(&x));
                walk.see(format_args!("up_blocks.{level}.attentions.{layer}"), &x);
            }
            walk.x = Some(x);
        }
        if let (Some(conv), Some(x)) = (&self.resample, &walk.x) {
            // Sizes that halving rounded up come back through the skip connection that waits at the next level.
            let skip = walk.skips.last().expect("`UNetConfig::skips` counted them");
            let x = ops::conv2d_upsampled(x, conv, skip.dim(1), skip.dim(2));
            walk.see(format_args!("up_blocks.{level}.upsamplers.0"), &x);
            walk.x = Some(x);
        }
    }
}

impl MidBlock {
    fn forward(&self, walk: &mut Walk<'_, '_>) {
        let text = self.attention.as_ref().map(|_| walk.text());
        let Some(x) = walk.below() else { return };
        let mut x = self.resnets[0].forward(x, Some(&walk.time));
        walk.see(format_args!("mid_block.resnets.0"), &x);
        if let (Some(attention), Some(text)) = (&self.attention, text) {
            x = attention.forward_merging(&x, text, walk.token_merging(&x));
            walk.see(format_args!("mid_block.attentions.0"), &x);
        }
        let x = self.resnets[1].forward(&x, Some(&walk.time));
        walk.see(format_args!("mid_block.resnets.1"), &x);
        walk.x = Some(x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::RandomWeights;

    #[test]
    fn sinusoids_are_those_of_diffusers() {
        // diffusers' own test of this embedding: times 23 to 25, components 47 to 49 of 64.
        let expected = [
            0.3019, 0.2280, 0.1716, 0.3146, 0.2377, 0.1790, 0.3272, 0.2474, 0.1864,
        ];
        let found = sinusoids(&[23.0, 24.0, 25.0], 64);
        let found = found.data().chunks_exact(64).flat_map(|row| &row[47..50]);
        for (found, expected) in found.zip(expected) {
            assert!(
                (found - expected).abs() < 1e-4,
                "{found}, expected {expected}"
            );
        }
    }

    #[test]
    fn pictures_of_a_batch_do_not_see_each_other() {
        let unet = little(0);
        let wave = |shape: &[usize], from: usize| {
            let count = shape.iter().product::<usize>();
            Tensor::from_slice(
                shape,
                &(from..from + count)
                    .map(|i| (i as f32 * 0.37).sin())
                    .collect::<Vec<f32>>(),
            )
        };
        let both = unet
            .forward(
                &wave(&[2, 5, 3, 4], 0),
                &[7.0, 900.0],
                &wave(&[2, 6, 16], 0),
            )
            .to_vec();
        let one = |idx: usize, t| {
            let (latent, text) = (wave(&[1, 5, 3, 4], 60 * idx), wave(&[1, 6, 16], 96 * idx));
            unet.forward(&latent, &[t], &text).to_vec()
        };
        let apart = [one(0, 7.0), one(1, 900.0)].concat();
        // Other tile borders may sum in another order: a few roundings over a few dozen layers.
        let worst = both
            .iter()
            .zip(&apart)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst < 1e-4, "off by {worst:e}");
        assert_ne!(both[..60], both[60..]);
    }

    /// Two levels, the lower with `depth` transformers in each block.
    fn little(depth: usize) -> UNet {
        let level = |depths: &[usize], resample| Level {
            channels: 32,
            depths: depths.to_vec(),
            resample,
        };
        let config = UNetConfig {
            model_channels: 32,
            time_embedding_channels: 64,
            down: vec![level(&[1], true), level(&[depth], false)],
            up: vec![level(&[depth; 2], true), level(&[1, 1], false)],
            context_channels: 16,
            ..UNetConfig::sd15()
        };
        UNet::load(&RandomWeights { seed: 3 }, config).unwrap()
    }

    /// Once by the UNet without an addition embedding, once by the one with it.
    #[test]
    fn a_text_is_prepared_as_the_network_takes_it() {
        let plain = little(0);
        let config = UNetConfig {
            addition: Some(AdditionConfig::sdxl(8)),
            ..plain.config().clone()
        };
        let added = UNet::load(&RandomWeights { seed: 3 }, config).unwrap();
        let (text, latent) = (Tensor::zeros(&[1, 6, 16]), Tensor::zeros(&[1, 5, 3, 4]));
        let given = |pooled: f32, width: f32| {
            let pooled = Tensor::from_slice(&[1, 8], &[pooled; 8]);
            let time_ids = Tensor::from_slice(&[1, 6], &[512.0, width, 0.0, 0.0, 512.0, 512.0]);
            let addition = Addition {
                pooled: &pooled,
                time_ids: &time_ids,
            };
            let text = added.prepare_with(&text, addition);
            let off = &mut Trace::off();
            added.forward_prepared(&latent, &[7.0], &text, off).to_vec()
        };
        let usual = given(0.5, 512.0);
        assert_eq!(usual, given(0.5, 512.0));
        assert!(usual != given(-0.5, 512.0) && usual != given(0.5, 511.0));
        let panics = |run: &dyn Fn() -> PreparedText| {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            caught.is_err()
        };
        let numbers = Tensor::zeros(&[1, 6]);
        let wrong = Addition {
            pooled: &numbers,
            time_ids: &numbers,
        };
        assert!(panics(&|| added.prepare(&text)));
        assert!(panics(&|| added.prepare_with(&text, wrong)));
        assert!(panics(&|| plain.prepare_with(&text, wrong)));
    }

    /// What was kept is what would be computed again: on the same input a cached pass gives the same bits.
    #[test]
    fn a_cached_pass_runs_only_the_outer_blocks() {
        let unet = little(1);
        let wave = |shape: &[usize]| {
            let count = shape.iter().product::<usize>();
            Tensor::from_slice(
                shape,
                &(0..count)
                    .map(|i| (i as f32 * 0.37).sin())
                    .collect::<Vec<f32>>(),
            )
        };
        let (x, text) = (wave(&[2, 5, 3, 4]), unet.prepare(&wave(&[2, 6, 16])));
        let run = |deep: Deep<'_>| {
            let mut seen = Vec::new();
            let mut see = |name: &str, _: &Tensor| seen.push(name.to_owned());
            let pass = Pass {
                deep,
                ..Pass::default()
            };
            let y = unet.forward_with(&x, &[7.0, 900.0], &text, pass, &mut Trace::to(&mut see));
            (y.to_vec(), seen)
        };
        let (plain, all) = run(Deep::Compute);
        assert_eq!(unet.config().branch_count(), 4);
        let mut counts = Vec::new();
        for branch in 0..4 {
            let mut features = None;
            let (kept, seen) = run(Deep::Keep {
                branch,
                features: &mut features,
            });
            assert_eq!(
                (kept == plain, seen == all),
                (true, true),
                "branch {branch}"
            );
            let features = features.expect("the pass kept it");
            let (reused, seen) = run(Deep::Reuse {
                branch,
                features: &features,
            });
            assert!(reused == plain, "branch {branch}");
            counts.push(seen.len());
        }
        // time_embedding, conv_in, a residual block with its transformer on the way up, conv_out; then one layer more of each way.
        assert_eq!(counts, [5, 9, 13, 17]);
        assert_eq!(all.len(), 20);
    }
}
