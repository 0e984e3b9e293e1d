//! What a UNet looks like: widths, levels, attention. Everything else follows from it.

/// The structure of a UNet.
#[derive(Clone, Debug, PartialEq)]
pub struct UNetConfig {
    /// Channels of the input: 4, or 9 (inpainting: and mask and masked picture), or 8 (instruct-pix2pix: and picture).
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Channels behind `conv_in`, and the width of the time embedding's sinusoids.
    pub model_channels: usize,
    /// Width of the time embedding that residual blocks see.
    pub time_embedding_channels: usize,
    /// Levels from the largest picture to the smallest.
    pub down: Vec<Level>,
    /// Depth of the transformer between the two middle residual blocks, 0 for none; no middle at all in some pruned
    /// networks.
    pub mid_depth: Option<usize>,
    /// Levels from the smallest picture to the largest.
    pub up: Vec<Level>,
    /// Width of the text embedding.
    pub context_channels: usize,
    /// How attention divides its width.
    pub heads: Heads,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Epsilon of the residual blocks' group norms.
    pub norm_eps: f32,
    /// What is added to the time embedding, in networks of SDXL's kind.
    pub addition: Option<AdditionConfig>,
}

/// What is added to the time embedding: a pooled text embedding and numbers about the picture, through two linear layers.
#[derive(Clone, Debug, PartialEq)]
pub struct AdditionConfig {
    /// Width of the pooled text embedding.
    pub pooled_channels: usize,
    /// How many numbers there are.
    pub time_ids: usize,
    /// Width of the sinusoids of each.
    pub time_id_channels: usize,
}

impl AdditionConfig {
    /// SDXL's numbers behind a pooled text of `pooled_channels`.
    pub fn sdxl(pooled_channels: usize) -> AdditionConfig {
        AdditionConfig {
            pooled_channels,
            time_ids: 6,
            time_id_channels: 256,
        }
    }

    /// How wide all of it is together.
    pub fn inputs(&self) -> usize {
        self.pooled_channels + self.time_ids * self.time_id_channels
    }
}

/// Residual blocks at one size.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// Channels of every residual block's output.
    pub channels: usize,
    /// For each residual block, the depth of the transformer behind it; 0 for none.
    pub depths: Vec<usize>,
    /// Whether the level ends by halving (down) or doubling (up) the picture.
    pub resample: bool,
}

/// How attention divides its width into heads.
#[derive(Clone, Debug, PartialEq)]
pub enum Heads {
    /// So many everywhere.
    Count(usize),
    /// As many as give this width each.
    Width(usize),
    /// So many at each level, from the largest picture to the smallest.
    PerLevel(Vec<usize>),
}

impl Heads {
    /// How many heads attention of width `channels` has at `level`, counted from the largest picture.
    pub fn count(&self, level: usize, channels: usize) -> usize {
        match self {
            Heads::Count(count) => *count,
            Heads::Width(width) => channels / (*width).max(1),
            Heads::PerLevel(counts) => counts.get(level).or(counts.last()).copied().unwrap_or(0),
        }
    }
}

impl UNetConfig {
    /// Stable Diffusion 1.x.
    pub fn sd15() -> UNetConfig {
        let level = |channels, depths: &[usize], resample| Level {
            channels,
            depths: depths.to_vec(),
            resample,
        };
        UNetConfig {
            in_channels: 4,
            out_channels: 4,
            model_channels: 320,
            time_embedding_channels: 1280,
            down: vec![
                level(320, &[1, 1], true),
                level(640, &[1, 1], true),
                level(1280, &[1, 1], true),
                level(1280, &[0, 0], false),
            ],
            mid_depth: Some(1),
            up: vec![
                level(1280, &[0, 0, 0], true),
                level(1280, &[1, 1, 1], true),
                level(640, &[1, 1, 1], true),
                level(320, &[1, 1, 1], false),
            ],
            context_channels: 768,
            heads: Heads::Count(8),
            norm_num_groups: 32,
            norm_eps: 1e-5,
            addition: None,
        }
    }

    /// Stable Diffusion XL base 1.0.
    pub fn sdxl() -> UNetConfig {
        let level = |channels, depth, layers, resample| Level {
            channels,
            depths: vec![depth; layers],
            resample,
        };
        UNetConfig {
            down: vec![
                level(320, 0, 2, true),
                level(640, 2, 2, true),
                level(1280, 10, 2, false),
            ],
            mid_depth: Some(10),
            up: vec![
                level(1280, 10, 3, true),
                level(640, 2, 3, true),
                level(320, 0, 3, false),
            ],
            context_channels: 2048,
            heads: Heads::Width(64),
            addition: Some(AdditionConfig::sdxl(1280)),
            ..UNetConfig::sd15()
        }
    }

    /// Channels at the lowest level, where the middle block works.
    pub fn mid_channels(&self) -> usize {
        self.down
            .last()
            .map_or(self.model_channels, |level| level.channels)
    }

    /// How many skip connections there are: the branches that step caching can choose from.
    pub fn branch_count(&self) -> usize {
        self.up.iter().map(|level| level.depths.len()).sum()
    }

    /// For each residual block on the way up, the channels of the skip connection it takes.
    ///
    /// # Errors
    /// If the way up does not mirror the way down: says how.
    pub fn skips(&self) -> Result<Vec<Vec<usize>>, String> {
        let (mut size, mut stack) = (0_usize, vec![(0, self.model_channels)]);
        for level in &self.down {
            stack.extend(level.depths.iter().map(|_| (size, level.channels)));
            if level.resample {
                size += 1;
                stack.push((size, level.channels));
            }
        }
        let mut skips = Vec::new();
        for (idx, level) in self.up.iter().enumerate() {
            let mut taken = Vec::new();
            for layer in 0..level.depths.len() {
                match stack.pop() {
                    Some((at, channels)) if at == size => taken.push(channels),
                    _ => {
                        return Err(format!(
                            "up_blocks.{idx}.resnets.{layer} has no skip connection of its size"
                        ));
                    }
                }
            }
            skips.push(taken);
            if level.resample {
                size = size
                    .checked_sub(1)
                    .ok_or(format!("up_blocks.{idx} enlarges beyond the input's size"))?;
            }
        }
        if !stack.is_empty() || size != 0 {
            return Err(format!(
                "{} skip connections of the way down are not used on the way up",
                stack.len()
            ));
        }
        Ok(skips)
    }

    /// What this structure cannot be built or run with: empty if all is well.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let skips = self.skips().unwrap_or_else(|fault| {
            faults.push(fault);
            Vec::new()
        });
        let groups = self.norm_num_groups;
        let mut divides = |what: &str, channels: usize| {
            if groups == 0 || channels == 0 || !channels.is_multiple_of(groups) {
                faults.push(format!(
                    "UNet {what}: {channels} channels do not divide into {groups} norm groups"
                ));
            }
        };
        divides("conv_in", self.model_channels);
        for level in self.down.iter().chain(&self.up) {
            divides("level", level.channels);
        }
        let mut below = self.mid_channels();
        for (level, skips) in self.up.iter().zip(&skips) {
            for skip in skips {
                divides("skip connection", below + skip);
                below = level.channels;
            }
        }
        for (side, levels) in [("down", &self.down), ("up", &self.up)] {
            for (idx, level) in levels
                .iter()
                .enumerate()
                .filter(|(_, level)| level.depths.iter().any(|&d| d > 0))
            {
                let from_top = if side == "up" {
                    levels.len() - 1 - idx
                } else {
                    idx
                };
                faults.extend(self.head_fault(from_top, level.channels));
            }
        }
        if self.mid_depth.is_some_and(|depth| depth > 0) {
            faults.extend(self.head_fault(self.down.len().saturating_sub(1), self.mid_channels()));
        }
        if !self.model_channels.is_multiple_of(2) {
            faults.push(format!(
                "UNet: {} model channels are odd",
                self.model_channels
            ));
        }
        if let Some(addition) = &self.addition
            && (addition.pooled_channels == 0 || !addition.time_id_channels.is_multiple_of(2))
        {
            faults.push(format!(
                "UNet addition embedding: {} inputs are not a pooled text and {} numbers of {} channels",
                addition.inputs(),
                addition.time_ids,
                addition.time_id_channels
            ));
        }
        faults.dedup();
        faults
    }

    fn head_fault(&self, level: usize, channels: usize) -> Option<String> {
        let heads = self.heads.count(level, channels);
        let fits = heads > 0 && channels.is_multiple_of(heads);
        (!fits).then(|| {
            format!("UNet attention: {channels} channels do not divide into {heads} heads")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, RandomWeights};
    use crate::unet::UNet;

    #[test]
    fn sd15_takes_the_known_skips() {
        let config = UNetConfig::sd15();
        assert_eq!(config.faults(), Vec::<String>::new());
        let expected = [
            vec![1280, 1280, 1280],
            vec![1280, 1280, 640],
            vec![640, 640, 320],
            vec![320, 320, 320],
        ];
        assert_eq!(config.skips().unwrap(), expected);
    }

    #[test]
    fn sdxl_has_the_known_size() {
        let config = UNetConfig::sdxl();
        assert_eq!(config.faults(), Vec::<String>::new());
        let expected = [[1280, 1280, 640], [640, 640, 320], [320, 320, 320]];
        assert_eq!(config.skips().unwrap(), expected);
        let weights = RandomWeights { seed: 0 };
        let mut builder = Builder::new(&weights);
        UNet::describe(&mut builder, config);
        // What diffusers counts of stabilityai/stable-diffusion-xl-base-1.0.
        assert_eq!(builder.parameter_count(), 2_567_463_684);
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        let mut config = UNetConfig::sd15();
        config.up[2].depths.pop();
        assert!(
            config.faults()[0].contains("skip connection"),
            "{:?}",
            config.faults()
        );
        let config = UNetConfig {
            norm_num_groups: 7,
            heads: Heads::Count(6),
            ..UNetConfig::sd15()
        };
        let faults = config.faults();
        assert!(
            faults.iter().any(|fault| fault.contains("7 norm groups")),
            "{faults:?}"
        );
        assert!(
            faults.iter().any(|fault| fault.contains("6 heads")),
            "{faults:?}"
        );
        let config = UNetConfig {
            addition: Some(AdditionConfig::sdxl(0)),
            ..UNetConfig::sd15()
        };
        assert!(
            config.faults()[0].contains("1536 inputs"),
            "{:?}",
            config.faults()
        );
    }
}
