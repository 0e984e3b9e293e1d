//! One pass through the UNet: what it carries from block to block, and what it may leave out.

use std::fmt;

use safelight_tensor::Tensor;

use super::{KeyValue, PreparedText};
use crate::nn::Trace;

/// What one pass leaves out; the default is nothing.
#[derive(Debug, Default)]
pub struct Pass<'a> {
    /// What is done with the deep blocks.
    pub deep: Deep<'a>,
    /// The part of the tokens that self-attention merges at the latent's own size, 0 to 0.75: Bolya and Hoffman 2023,
    /// arXiv:2303.17604, with the top left token of each 2×2 block to merge into, as in `tomesd` with `use_rand=False`.
    pub token_merging: f64,
}

/// Step caching: from one step to the next deep features change little, and can be used again.
///
/// Branch `b` is the skip connection `b` (`conv_in`'s output is 0). What is kept is what comes up from below to the residual
/// block that takes this skip connection; a pass that reuses it runs the `b` layers on the way down that lead to the skip
/// connection, and the last `b + 1` on the way up. With two residual blocks a level this is `cache_branch_id` of the
/// `DeepCache` package.
///
/// Source: Ma, Fang and Wang 2023, arXiv:2312.00858, §3.2.
#[derive(Debug, Default)]
pub enum Deep<'a> {
    /// Computed and forgotten.
    #[default]
    Compute,
    /// Computed and kept.
    Keep {
        /// The skip connection below which all is deep.
        branch: usize,
        /// Where the pass leaves what comes up from there.
        features: &'a mut Option<Tensor>,
    },
    /// Not computed.
    Reuse {
        /// The branch they were kept at.
        branch: usize,
        /// What another pass of the same shape kept.
        features: &'a Tensor,
    },
}

/// A pass on its way.
pub(super) struct Walk<'w, 't> {
    /// SiLU of the time embedding.
    pub(super) time: Tensor,
    /// Outputs of the way down.
    pub(super) skips: Vec<Tensor>,
    /// What comes up from below; `None` on the way down, and while the deep blocks are passed over.
    pub(super) x: Option<Tensor>,
    /// Height and width of the latent, and the part of the tokens that are merged where a map is as large.
    size: (usize, usize),
    token_merging: f64,
    /// How many outputs the way down has before it turns.
    skips_max: usize,
    /// Layers still to come on the way up.
    layers_left: usize,
    /// What came up is kept here when so many layers are left.
    keep: Option<(usize, &'w mut Option<Tensor>)>,
    /// What comes up, used again, when so many layers are left.
    reuse: Option<(usize, &'w Tensor)>,
    texts: std::slice::Iter<'w, Vec<KeyValue>>,
    trace: &'w mut Trace<'t>,
}

impl<'w, 't> Walk<'w, 't> {
    /// Stands behind `conv_in`, whose output is `x`.
    ///
    /// # Panics
    /// If there is no such branch.
    pub(super) fn begin(
        x: Tensor,
        time: Tensor,
        text: &'w PreparedText,
        pass: Pass<'w>,
        branch_count: usize,
        trace: &'w mut Trace<'t>,
    ) -> Self {
        let layers = |branch: usize| {
            assert!(branch < branch_count, "branch {branch} of {branch_count}");
            branch + 1
        };
        let (keep, reuse) = match pass.deep {
            Deep::Compute => (None, None),
            Deep::Keep { branch, features } => (Some((layers(branch), features)), None),
            Deep::Reuse { branch, features } => (None, Some((layers(branch), features))),
        };
        Walk {
            time,
            size: (x.dim(1), x.dim(2)),
            token_merging: pass.token_merging,
            skips: vec![x],
            x: None,
            skips_max: reuse.map_or(usize::MAX, |(layers, _)| layers),
            layers_left: branch_count,
            keep,
            reuse,
            texts: text.key_values.iter(),
            trace,
        }
    }

    /// Keys and values for the next transformer, whether it runs or not.
    pub(super) fn text(&mut self) -> &'w [KeyValue] {
        self.texts
            .next()
            .expect("the text was prepared for this network")
    }

    /// The part of the tokens of `x` that are merged.
    pub(super) fn token_merging(&self, x: &Tensor) -> f64 {
        match (x.dim(1), x.dim(2)) == self.size {
            true => self.token_merging,
            false => 0.0,
        }
    }

    /// The lowest output so far, unless the way down ends here.
    pub(super) fn below(&self) -> Option<&Tensor> {
        (self.skips.len() < self.skips_max)
            .then(|| self.skips.last().expect("conv_in's output is there"))
    }

    /// Turns without a middle block.
    pub(super) fn turn(&mut self) {
        self.x = self.below().cloned();
    }

    /// What the next layer on the way up joins: what comes from below, and a skip connection. `None` while the deep blocks
    /// are passed over.
    pub(super) fn rise(&mut self) -> Option<(Tensor, Tensor)> {
        let left = self.layers_left;
        self.layers_left -= 1;
        if let Some((at, features)) = self.reuse
            && at == left
        {
            self.x = Some(features.clone());
        }
        let x = self.x.take()?;
        if let Some((at, features)) = &mut self.keep
            && *at == left
        {
            **features = Some(x.clone());
        }
        let skip = self.skips.pop().expect("`UNetConfig::skips` counted them");
        Some((x, skip))
    }

    /// What came up at last.
    pub(super) fn end(self) -> Tensor {
        self.x.expect("the last layer always runs")
    }

    pub(super) fn see(&mut self, name: fmt::Arguments<'_>, tensor: &Tensor) {
        self.trace.see(name, tensor);
    }
}
