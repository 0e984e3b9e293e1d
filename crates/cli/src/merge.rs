//! `safelight merge`: shards into one file, or models into one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::{ArgGroup, Args, ValueHint};
use safelight_convert::{
    Merge, MergeOptions, Method, Missing, OpenOptions, Source, WriteOptions, join,
    write_safetensors, write_sharded,
};
use safelight_format::{Dtype, shown};
use serde_json::json;

use crate::convert::{dtype, size, some_tensors};
use crate::error::Failure;
use crate::files::{self, Outcome, Run};
use crate::lost;
use crate::progress::BytesProgress;
use crate::say;

pub(crate) const HELP: &str = "\
Examples:
  safelight merge model.safetensors.index.json -o model.safetensors
  safelight merge part-1.safetensors part-2.safetensors -o whole.safetensors
  safelight merge --weighted a.safetensors b.safetensors --alpha 0.3 -o mix.safetensors
  safelight merge --slerp a.safetensors b.safetensors -o mix.safetensors
  safelight merge --add-difference inpaint.ckpt mine.ckpt base.ckpt -o mix.safetensors

Weighted: (1 - alpha) * A + alpha * B. Sigmoid: the same with alpha^2 * (3 - 2 * alpha) for alpha, as A1111 had it once;
inverse sigmoid: with 1/2 - sin(asin(1 - 2 * alpha) / 3), the way back. Slerp: along the arc from A to B, tensor by tensor, which keeps lengths.
Difference: A + alpha * (B - C). All are computed in f32 (f64 where a tensor has such numbers) and written in A's dtypes
or --dtype, one tensor at a time; names, metadata and what is no weight (positions, the noise schedule) are A's. If A is
an inpainting model and B is none, A's further input channels stay. Inputs may be of any kind that `convert` reads.

JSON: file, method, inputs, tensor_count, tensor_bytes, seconds, notes [{at, what}], lost [{name, from, to, elements,
overflows, underflows, infinities, nans}] (tensors of which finite numbers became infinite, or others 0).";

/// The arguments of `merge`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("formula").args(["weighted", "sigmoid", "inverse_sigmoid", "slerp", "add_difference"]))]
pub(crate) struct MergeArgs {
    /// Shards (an index, a folder, a quoted pattern, or each of them), or the models A, B and C
    #[arg(required = true, value_name = "FILE", value_hint = ValueHint::AnyPath)]
    inputs: Vec<PathBuf>,
    /// Where to
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: PathBuf,
    /// A weighted sum of two models
    #[arg(long)]
    weighted: bool,
    /// A weighted sum whose share of B changes slowly near 0 and 1
    #[arg(long)]
    sigmoid: bool,
    /// A weighted sum whose share of B changes quickly near 0 and 1
    #[arg(long)]
    inverse_sigmoid: bool,
    /// Two models along the arc between them
    #[arg(long)]
    slerp: bool,
    /// The difference of the second and the third model, added to the first
    #[arg(long)]
    add_difference: bool,
    /// B's share of a sum or arc (0.5 if not given), or how much of a difference (1 if not given)
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    alpha: Option<f64>,
    /// Numbers instead of --alpha for each block of a single-file UNet: inputs, middle, outputs (25 for SD 1 and 2, 19 for
    /// XL); one more in front (26, 20) is for all else
    #[arg(
        long,
        value_name = "N,N,…",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    blocks: Option<Vec<f64>>,
    /// What to do with tensors that not all models have
    #[arg(long, value_name = "WHAT", default_value = "keep")]
    missing: MissingArg,
    /// Write weights as this dtype
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    dtype: Option<Dtype>,
    /// Tensors of dtypes that the format does not have come along as they are where shards are joined, instead of refusing their file
    #[arg(long)]
    unknown_dtypes: bool,
    /// Files of at most this size, such as 5GB, and an index
    #[arg(long, value_name = "SIZE", value_parser = size)]
    shard_size: Option<u64>,
    /// Replace files that are there
    #[arg(short, long)]
    force: bool,
    /// Wait until the bytes are on the disk
    #[arg(long)]
    sync: bool,
    /// No progress bar
    #[arg(short, long)]
    quiet: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// [`Missing`] on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum MissingArg {
    /// Those of A stay as they are, others' are left out
    Keep,
    /// As keep, but those only B has come along
    Take,
    /// Merge nothing, and name them all
    Refuse,
}

impl Run for MergeArgs {
    fn wants_json(&self) -> bool {
        self.json
    }

    fn run(&self) -> Result<Outcome, Failure> {
        let started = Instant::now();
        let inputs = self.inputs.iter().map(|path| files::meant(path));
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?.concat();
        let method = self.method(inputs.len())?;
        if method.is_none() {
            files::check_parts(&inputs)?;
        }
        files::check_free(&self.output, self.force)?;
        if self.shard_size.is_some() {
            let index = self.output.with_extension("safetensors.index.json");
            files::check_free(&index, self.force)?;
        }
        let limits = files::all_limits();
        let options = OpenOptions {
            opaque_dtypes: self.unknown_dtypes,
            ..OpenOptions::default()
        };
        let sources: Vec<Arc<dyn Source>> = inputs
            .iter()
            .map(|path| Ok(files::source(path, &options)?.into()))
            .collect::<Result<_, Failure>>()?;
        let mut merge = None;
        let source: Arc<dyn Source> = match method.clone() {
            None => {
                let joined = join(sources)?;
                some_tensors(&joined)?;
                joined
            }
            Some(method) => {
                let missing = match self.missing {
                    MissingArg::Keep => Missing::KeepFirst,
                    MissingArg::Take => Missing::TakeAll,
                    MissingArg::Refuse => Missing::Refuse,
                };
                for source in &sources {
                    some_tensors(source)?;
                }
                let blocks = self.blocks.clone();
                let made = Arc::new(Merge::new(
                    sources,
                    MergeOptions {
                        method,
                        blocks,
                        dtype: self.dtype,
                        missing,
                        memory_bytes_max: limits.memory_bytes_max,
                    },
                )?);
                merge.insert(made).clone()
            }
        };
        let bar = BytesProgress::new(self.quiet || self.json, "merging", 0);
        let mut options = WriteOptions::default();
        options.save.sync = self.sync;
        let mut progress = |done, all| bar.at(done, all);
        let report = match self.shard_size {
            None => write_safetensors(&*source, &self.output, &options, &mut progress)?,
            Some(bytes) => {
                let folder = self.output.parent().unwrap_or(std::path::Path::new(""));
                let base = self
                    .output
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                write_sharded(&*source, folder, &base, bytes, &options, &mut progress)?.report
            }
        };
        drop(bar);
        let lost = lost::lossy(merge.map(|merge| merge.reports()).unwrap_or_default());
        let (file, seconds) = (
            self.output.to_string_lossy(),
            started.elapsed().as_secs_f64(),
        );
        if self.json {
            let method = match method {
                None => json!("shards"),
                Some(Method::Weighted { alpha }) => json!({"weighted": {"alpha": alpha}}),
                Some(Method::Sigmoid { alpha }) => json!({"sigmoid": {"alpha": alpha}}),
                Some(Method::InverseSigmoid { alpha }) => {
                    json!({"inverse_sigmoid": {"alpha": alpha}})
                }
                Some(Method::Slerp { alpha }) => json!({"slerp": {"alpha": alpha}}),
                Some(Method::AddDifference { multiplier }) => {
                    json!({"add_difference": {"alpha": multiplier}})
                }
            };
            let notes: Vec<_> = report
                .notes
                .iter()
                .map(|note| json!({"at": note.at, "what": note.what}))
                .collect();
            let inputs: Vec<_> = self
                .inputs
                .iter()
                .map(|path| path.to_string_lossy())
                .collect();
            say::answer_json_line(&json!({
                "file": file, "method": method, "inputs": inputs, "tensor_count": report.tensor_count,
                "tensor_bytes": report.tensor_bytes, "seconds": seconds, "notes": notes,
                "lost": lost::to_json(&lost),
            }))?;
        } else {
            let mut text: String = report
                .notes
                .iter()
                .take(20)
                .map(|note| match note.at.as_str() {
                    "" => format!("{}\n", shown(&note.what)),
                    at => format!("{}: {}\n", shown(at), shown(&note.what)),
                })
                .collect();
            text += &lost::to_text(&lost, "merge");
            text += &format!(
                "{}: {}, {} in {seconds:.1} s\n",
                shown(&file),
                say::plural(report.tensor_count as u64, "tensor"),
                say::bytes(report.tensor_bytes)
            );
            say::answer(&text)?;
        }
        lost::warn(&lost);
        Ok(Outcome::Clean)
    }
}

impl MergeArgs {
    /// The formula, or none for shards.
    fn method(&self, input_count: usize) -> Result<Option<Method>, Failure> {
        let wrong = |what: String| Err(Failure::Usage(what));
        let alpha = self.alpha.unwrap_or(0.5);
        let method = if self.weighted {
            Some(("--weighted", Method::Weighted { alpha }))
        } else if self.sigmoid {
            Some(("--sigmoid", Method::Sigmoid { alpha }))
        } else if self.inverse_sigmoid {
            Some(("--inverse-sigmoid", Method::InverseSigmoid { alpha }))
        } else if self.slerp {
            Some(("--slerp", Method::Slerp { alpha }))
        } else if self.add_difference {
            let multiplier = self.alpha.unwrap_or(1.0);
            Some(("--add-difference", Method::AddDifference { multiplier }))
        } else {
            None
        };
        let Some((option, method)) = method else {
            if self.alpha.is_some() || self.blocks.is_some() || self.dtype.is_some() {
                return wrong("--alpha, --blocks and --dtype belong to --weighted, --sigmoid, --inverse-sigmoid, --slerp or --add-difference; without these, FILEs are shards of one model".into());
            }
            return Ok(None);
        };
        let (wanted, names) = match method {
            Method::AddDifference { .. } => (3, "three models, A, B and C"),
            _ => (2, "two models, A and B"),
        };
        if input_count != wanted {
            return wrong(format!("{option} takes {names}, not {input_count}"));
        }
        let mut numbers = self.alpha.iter().chain(self.blocks.iter().flatten());
        if numbers.any(|number| !number.is_finite()) {
            return wrong("--alpha and --blocks take plain numbers".into());
        }
        Ok(Some(method))
    }
}
