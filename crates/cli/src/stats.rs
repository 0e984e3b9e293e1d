//! `safelight stats`: what numbers a file's tensors hold.

use std::path::Path;

use clap::{Args, ValueEnum};
use safelight_convert::{Numbers, OpaqueTensor, OpenOptions, TensorStats, stats};
use safelight_format::{TensorSpec, shown};
use serde_json::{Value, json};

use crate::error::Failure;
use crate::files::{self, Codes, FilesArgs, Outcome, Run};
use crate::pattern::{Pattern, check_names};
use crate::progress::BytesProgress;
use crate::say;

pub(crate) const HELP: &str = "\
Examples:
  safelight stats model.safetensors
  safelight stats model.safetensors --total
  safelight stats model.ckpt --name '*.attn1.*' --histogram
  safelight stats merged.safetensors --fail-on nan,inf --total

Any kind of file that `convert` reads, any dtype, in one pass. Range, mean and spread are of the finite numbers; a
complex number counts as two. The histogram counts magnitudes by powers of two. 64-bit integers count as the nearest
f64; only their range has all digits, in --json, tensor by tensor. Of a dtype that the format does not have
(--unknown-dtypes), nothing but the bytes is known.

JSON, one object a file: file, tensors [{name, dtype, shape, count, nan, inf, zero, min, max, mean, std, histogram
[{exponent, negative, positive}]}], total (the same of all), failed_on [kind]; with --unknown-dtypes also unknown_dtypes
[{name, dtype, shape, bytes}].";

/// The arguments of `stats`.
#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    files: FilesArgs,
    /// Only tensors whose names fit: a glob, or the first parts of names (repeatable)
    #[arg(short, long, value_name = "GLOB", value_parser = Pattern::glob)]
    name: Vec<Pattern>,
    /// Only the whole, not each tensor
    #[arg(short, long)]
    total: bool,
    /// Draw the magnitudes
    #[arg(long)]
    histogram: bool,
    /// Exit code 3 if any such number is there (comma-separated)
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    fail_on: Vec<FailOn>,
    /// Tensors of dtypes that the format does not have are listed with their bytes, instead of refusing their file
    #[arg(long)]
    unknown_dtypes: bool,
    /// No progress bar
    #[arg(short, long)]
    quiet: bool,
}

/// Numbers that should not be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FailOn {
    Nan,
    /// Infinities
    Inf,
    /// A tensor of zeros alone
    Zero,
}

impl Run for StatsArgs {
    fn wants_json(&self) -> bool {
        self.files.json
    }

    fn codes(&self) -> Codes {
        Codes::Doing
    }

    fn run(&self) -> Result<Outcome, Failure> {
        files::each(&self.files, self.codes(), |path| self.tell(path))
    }
}

impl StatsArgs {
    fn tell(&self, path: &Path) -> Result<Outcome, Failure> {
        let options = OpenOptions {
            opaque_dtypes: self.unknown_dtypes,
            skip_unsupported: true,
            ..OpenOptions::default()
        };
        let source = files::source(path, &options)?;
        for note in &source.contents().skipped {
            let (file, at, what) = (files::name(path), &note.at, &note.what);
            say::note(&say::harmless(&format!(
                "note: {file}: `{at}` is left out: {what}"
            )));
        }
        let names: Vec<&str> = source.contents().names().collect();
        check_names(&self.name, &files::name(path), &names)?;
        let wants =
            |name: &str| self.name.is_empty() || self.name.iter().any(|pattern| pattern.fits(name));
        let wanted = |tensor: &TensorSpec| wants(&tensor.name);
        let unknown = source.opaque().iter();
        let unknown: Vec<_> = unknown.filter(|tensor| wants(&tensor.name)).collect();
        let all = source
            .tensors()
            .iter()
            .filter(|tensor| wanted(tensor))
            .filter_map(TensorSpec::byte_count)
            .fold(0, u64::saturating_add);
        let bar = BytesProgress::new(self.quiet || self.files.json, &files::name(path), all);
        let tensors = stats(&*source, &wanted, &|bytes| bar.forward(bytes))?;
        drop(bar);
        let mut total = Numbers::default();
        tensors
            .iter()
            .for_each(|tensor| total.merge(&tensor.numbers));
        let failed: Vec<&str> = self
            .fail_on
            .iter()
            .filter_map(|kind| kind.found(&tensors))
            .collect();
        if self.files.json {
            let each: Vec<Value> = if self.total {
                vec![]
            } else {
                tensors.iter().map(tensor_json).collect()
            };
            let mut answer = json!({"file": files::name(path), "tensor_count": tensors.len(), "tensors": each, "total": numbers_json(&total), "failed_on": failed});
            if self.unknown_dtypes {
                answer["unknown_dtypes"] = unknown.iter().map(unknown_json).collect();
            }
            say::answer_json_line(&answer)?;
        } else {
            let mut text = self.text(path, &tensors, &total, &failed);
            text += &unknown.iter().map(unknown_line).collect::<String>();
            say::answer(&text)?;
        }
        Ok(if failed.is_empty() {
            Outcome::Clean
        } else {
            Outcome::Found
        })
    }

    fn text(
        &self,
        path: &Path,
        tensors: &[TensorStats],
        total: &Numbers,
        failed: &[&str],
    ) -> String {
        let mut text = String::new();
        if self.files.are_several() {
            text += &format!("{}:\n", shown(&files::name(path)));
        }
        let headings = [
            "tensor", "", "count", "min", "max", "mean", "std", "zeros", "",
        ];
        let mut rows = vec![headings.map(String::from).to_vec()];
        for tensor in tensors.iter().filter(|_| !self.total) {
            if self.histogram {
                let name = shown(&tensor.tensor.name).to_string();
                let dtype = tensor.tensor.dtype.to_string();
                let mut row = [row(&name, &dtype, &tensor.numbers)];
                text += &say::fitting_table(&mut row, &[], 0, say::columns());
                text += &drawn(&tensor.numbers);
            } else {
                rows.push(row(
                    &shown(&tensor.tensor.name).to_string(),
                    &tensor.tensor.dtype.to_string(),
                    &tensor.numbers,
                ));
            }
        }
        rows.push(row(&all_of(tensors.len()), "", total));
        text += &say::fitting_table(&mut rows, &[2, 3, 4, 5, 6, 7], 0, say::columns());
        if self.histogram || self.total {
            text += &drawn(total);
        }
        for kind in failed {
            text += &format!("found: {kind}\n");
        }
        text
    }
}

impl FailOn {
    fn found(self, tensors: &[TensorStats]) -> Option<&'static str> {
        let any = |found: fn(&Numbers) -> bool| tensors.iter().any(|tensor| found(&tensor.numbers));
        match self {
            FailOn::Nan => any(|numbers| numbers.nan > 0).then_some("nan"),
            FailOn::Inf => any(|numbers| numbers.infinite() > 0).then_some("inf"),
            FailOn::Zero => {
                any(|numbers| numbers.count > 0 && numbers.zero == numbers.count).then_some("zero")
            }
        }
    }
}

fn row(name: &str, dtype: &str, numbers: &Numbers) -> Vec<String> {
    let number = |value: f64| {
        if value.is_nan() {
            "–".to_string()
        } else {
            say::number(value)
        }
    };
    let share = numbers.zero as f64 / numbers.count.max(1) as f64;
    let mut odd = Vec::new();
    for (count, what) in [(numbers.nan, "NaN"), (numbers.infinite(), "infinite")] {
        if count > 0 {
            odd.push(format!("{count} {what}"));
        }
    }
    vec![
        name.into(),
        dtype.into(),
        say::count(numbers.count),
        number(numbers.min),
        number(numbers.max),
        number(numbers.mean),
        number(numbers.std()),
        if numbers.zero == 0 {
            "0".into()
        } else {
            format!("{:.2} %", share * 100.0)
        },
        odd.join(", "),
    ]
}

/// The name of the last line.
fn all_of(count: usize) -> String {
    format!("all {}", say::plural(count as u64, "tensor"))
}

/// Widest bar of a histogram.
const BAR_COLUMNS: f64 = 40.0;

/// Magnitudes as bars, the largest on top; both signs together.
fn drawn(numbers: &Numbers) -> String {
    let bins = numbers.histogram.bins();
    let most = bins
        .iter()
        .map(|(_, negative, positive)| negative + positive)
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for (exponent, negative, positive) in bins.iter().rev() {
        let count = negative + positive;
        let eighths = (count as f64 / most as f64 * BAR_COLUMNS * 8.0).ceil() as usize;
        let part = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
        text += &format!(
            "  2^{exponent:<5}{}{part} {count}\n",
            "█".repeat(eighths / 8)
        );
    }
    text
}

fn unknown_json(tensor: &&OpaqueTensor) -> Value {
    json!({"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape, "bytes": tensor.byte_count})
}

fn unknown_line(tensor: &&OpaqueTensor) -> String {
    let (name, dtype) = (say::tame(&tensor.name, 100), say::tame(&tensor.dtype, 40));
    let bytes = say::bytes(tensor.byte_count);
    format!(
        "unknown dtype: {name}  {dtype}  {:?}  {bytes}\n",
        tensor.shape
    )
}

fn tensor_json(tensor: &TensorStats) -> Value {
    let mut value = numbers_json(&tensor.numbers);
    value["name"] = json!(tensor.tensor.name);
    value["dtype"] = json!(tensor.tensor.dtype.name());
    value["shape"] = json!(tensor.tensor.shape);
    if let Some((least, greatest)) = tensor.integers {
        (value["min"], value["max"]) = (integer_json(least), integer_json(greatest));
    }
    value
}

/// A 64-bit integer, signed or not, with all its digits.
fn integer_json(number: i128) -> Value {
    match u64::try_from(number) {
        Ok(number) => json!(number),
        Err(_) => json!(number as i64),
    }
}

fn numbers_json(numbers: &Numbers) -> Value {
    let bins = numbers.histogram.bins().into_iter().map(|(exponent, negative, positive)| json!({"exponent": exponent, "negative": negative, "positive": positive}));
    json!({
        "count": numbers.count, "nan": numbers.nan, "inf": numbers.infinite(), "zero": numbers.zero,
        "min": numbers.min, "max": numbers.max, "mean": numbers.mean, "std": numbers.std(), "histogram": bins.collect::<Vec<_>>(),
    })
}
