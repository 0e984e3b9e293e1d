//! `safelight diff`: what differs between two files of tensors, in structure and in numbers.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use safelight_convert::{
    Diff, NumberDiff, OpaqueDiff, OpaqueTensor, OpenOptions, TensorDiff, Tolerance, diff,
};
use safelight_format::{TensorSpec, shown};
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr as _;

use crate::error::Failure;
use crate::files::{self, Codes, Outcome, Run};
use crate::pattern::{Pattern, check_names};
use crate::progress::BytesProgress;
use crate::say;

pub(crate) const HELP: &str = "\
Examples:
  safelight diff a.safetensors b.safetensors
  safelight diff model.ckpt model.safetensors --only-different
  safelight diff full.safetensors half.safetensors --rtol 1e-3 --atol 1e-5 --ignore-dtype
  safelight diff a.safetensors shards/model.safetensors.index.json --structure

Tensors are paired by name. Numbers differ if |a - b| > atol + rtol * |b| (with neither given: if they are not equal;
NaN equals NaN). Files may be of different kinds. Where rows are too long for a terminal, names lose their middles and
numbers stand below them; --json has all. `max abs`, `max rel` (of the larger of the two), `max ulp` (floats of
the dtype from one to the other), `rms` and `cosine` are told of each tensor that differs. Tensors of dtypes that the
format does not have (--unknown-dtypes) are compared byte for byte.

JSON: a, b, different, only_a [{name, dtype, shape}], only_b, metadata [{key, a, b}], tensors [{name, different, dtype_a,
dtype_b, shape_a, shape_b, numbers {count, different, beyond, unlike, max_abs, max_at, max_rel, max_ulp, rms, cosine}}],
same_count (tensors without any difference). Where a dtype is unknown, numbers is null and same_bytes tells (null where
dtype, shape or size differ already, or with --structure). `beyond`: pairs beyond the tolerance; `unlike`: NaN or infinite in one alone.";

/// The arguments of `diff`.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// One file, shards (*.index.json) or a folder
    #[arg(value_hint = ValueHint::AnyPath)]
    a: PathBuf,
    /// The other
    #[arg(value_hint = ValueHint::AnyPath)]
    b: PathBuf,
    /// Numbers may differ by this share of the second
    #[arg(long, value_name = "NUMBER", default_value = "0", value_parser = tolerance)]
    rtol: f64,
    /// Numbers may differ by this
    #[arg(long, value_name = "NUMBER", default_value = "0", value_parser = tolerance)]
    atol: f64,
    /// Compare names, dtypes, shapes and metadata only
    #[arg(long, conflicts_with_all = ["rtol", "atol"])]
    structure: bool,
    /// Equal numbers of another dtype are no difference
    #[arg(long)]
    ignore_dtype: bool,
    /// Leave metadata out
    #[arg(long)]
    ignore_metadata: bool,
    /// Only tensors whose names fit: a glob, or the first parts of names (repeatable)
    #[arg(short, long, value_name = "GLOB", value_parser = Pattern::glob)]
    name: Vec<Pattern>,
    /// Tensors of dtypes that the format does not have are compared byte for byte, instead of refusing their file
    #[arg(long)]
    unknown_dtypes: bool,
    /// Do not count what is the same
    #[arg(long)]
    only_different: bool,
    /// Print nothing, the exit code says it
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn tolerance(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|number| number.is_finite() && *number >= 0.0)
        .ok_or_else(|| "expected a number such as 1e-3, not below 0".into())
}

impl Run for DiffArgs {
    fn wants_json(&self) -> bool {
        self.json
    }

    fn codes(&self) -> Codes {
        Codes::Finding
    }

    fn run(&self) -> Result<Outcome, Failure> {
        let options = OpenOptions {
            opaque_dtypes: self.unknown_dtypes,
            ..OpenOptions::default()
        };
        let (a, b) = (
            files::source(&self.a, &options)?,
            files::source(&self.b, &options)?,
        );
        let names = a.contents().names().chain(b.contents().names());
        let names: Vec<&str> = names.collect();
        let files = format!("{}, {}", files::name(&self.a), files::name(&self.b));
        check_names(&self.name, &files, &names)?;
        let numbers = (!self.structure).then_some(Tolerance {
            relative: self.rtol,
            absolute: self.atol,
        });
        let all = a.contents().all_bytes();
        let bar = BytesProgress::new(self.quiet || self.json, "comparing", all);
        let found = {
            let wants = |name: &str| {
                self.name.is_empty() || self.name.iter().any(|pattern| pattern.fits(name))
            };
            diff(&*a, &*b, numbers, &wants, &|bytes| bar.forward(bytes))?
        };
        drop(bar);
        let found = self.wanted(found);
        let different = found
            .both
            .iter()
            .filter(|tensor| self.is_different(tensor))
            .count();
        let different = different + found.opaque.iter().filter(|t| t.is_different()).count();
        let outcome = if different > 0 || found.is_different_in_structure() {
            Outcome::Found
        } else {
            Outcome::Clean
        };
        if self.json {
            say::answer_json_line(&self.json(&found, outcome == Outcome::Found))?;
        } else if !self.quiet {
            say::answer(&self.text(&found, say::columns()))?;
        }
        Ok(outcome)
    }
}

impl DiffArgs {
    fn wanted(&self, mut found: Diff) -> Diff {
        if self.ignore_metadata {
            found.metadata.clear();
        }
        found
    }

    fn is_different(&self, tensor: &TensorDiff) -> bool {
        match (&tensor.numbers, self.ignore_dtype) {
            (Some(numbers), true) => numbers.beyond > 0,
            _ => tensor.is_different(),
        }
    }

    fn json(&self, found: &Diff, different: bool) -> Value {
        let spec = |spec: &TensorSpec| json!({"name": spec.name, "dtype": spec.dtype.name(), "shape": spec.shape});
        let opaque =
            |of: &OpaqueTensor| json!({"name": of.name, "dtype": of.dtype, "shape": of.shape});
        let specs = |specs: &[TensorSpec], unknown: &[OpaqueTensor]| {
            let known = specs.iter().map(spec);
            known.chain(unknown.iter().map(opaque)).collect::<Vec<_>>()
        };
        let tensor = |tensor: &TensorDiff| {
            json!({
                "name": tensor.a.name, "different": self.is_different(tensor),
                "dtype_a": tensor.a.dtype.name(), "dtype_b": tensor.b.dtype.name(), "shape_a": tensor.a.shape, "shape_b": tensor.b.shape,
                "numbers": tensor.numbers.as_ref().map(|n| json!({
                    "count": n.count, "different": n.different, "beyond": n.beyond, "unlike": n.unlike, "max_abs": n.max_absolute,
                    "max_at": n.max_at, "max_rel": n.max_relative, "max_ulp": n.max_ulp, "rms": n.rms, "cosine": n.cosine,
                })),
            })
        };
        let tensors = found
            .both
            .iter()
            .filter(|tensor| !self.only_different || self.is_different(tensor));
        let unknown = |tensor: &OpaqueDiff| {
            json!({
                "name": tensor.a.name, "different": tensor.is_different(), "dtype_a": tensor.a.dtype, "dtype_b": tensor.b.dtype,
                "shape_a": tensor.a.shape, "shape_b": tensor.b.shape, "numbers": null, "same_bytes": tensor.same_bytes,
            })
        };
        let opaque = found.opaque.iter();
        let opaque = opaque.filter(|tensor| !self.only_different || tensor.is_different());
        let metadata = found
            .metadata
            .iter()
            .map(|(key, a, b)| json!({"key": key, "a": a, "b": b}));
        json!({
            "a": files::name(&self.a), "b": files::name(&self.b), "different": different,
            "only_a": specs(&found.only_a, &found.opaque_only_a),
            "only_b": specs(&found.only_b, &found.opaque_only_b), "metadata": metadata.collect::<Vec<_>>(),
            "tensors": tensors.map(tensor).chain(opaque.map(unknown)).collect::<Vec<_>>(),
            "same_count": self.same_count(found),
        })
    }

    fn same_count(&self, found: &Diff) -> usize {
        let known = found.both.iter();
        let known = known.filter(|tensor| !self.is_different(tensor)).count();
        let opaque = found.opaque.iter();
        known + opaque.filter(|tensor| !tensor.is_different()).count()
    }

    fn text(&self, found: &Diff, columns: usize) -> String {
        let mut text = String::new();
        let a = ('-', &found.only_a, &found.opaque_only_a);
        let b = ('+', &found.only_b, &found.opaque_only_b);
        for (sign, specs, opaque) in [a, b] {
            let specs = specs.iter().map(OpaqueTensor::from);
            for spec in specs.chain(opaque.iter().cloned()) {
                let rest = format!("{} {:?}", shown(&spec.dtype), spec.shape);
                text += &line(sign, &spec.name, &rest, columns);
            }
        }
        for (key, a, b) in &found.metadata {
            // The sign, the word, the arrow and four quotation marks take 22 columns.
            let room = columns.saturating_sub(22);
            let key = say::middle_cut(&shown(key).to_string(), (room / 2).max(12));
            let room = room.saturating_sub(key.width()) / 2;
            let side = |value: &Option<String>| {
                value.as_ref().map_or("(none)".into(), |value| {
                    format!("{:?}", say::tame(value, room.clamp(8, 60)))
                })
            };
            text += &format!("~ metadata {key}: {} → {}\n", side(a), side(b));
        }
        let rows: Vec<&TensorDiff> = found
            .both
            .iter()
            .filter(|tensor| self.is_different(tensor))
            .collect();
        text += &changes(&rows, columns);
        let unlike = found.opaque.iter().filter(|tensor| tensor.is_different());
        let unlike: Vec<_> = unlike.collect();
        for tensor in &unlike {
            let rest = format!(
                "{}  {}",
                changed_between(&tensor.a, &tensor.b),
                unlike_bytes(tensor)
            );
            text += &line('~', &tensor.a.name, &rest, columns);
        }
        let same = self.same_count(found);
        if !self.only_different {
            let how = match (self.structure, self.rtol, self.atol) {
                (true, ..) => " in structure",
                (_, 0.0, 0.0) => "",
                _ => " within the tolerance",
            };
            text += &format!(
                "{} the same{how}, {} different, {} only in A, {} only in B\n",
                say::plural(same as u64, "tensor"),
                rows.len() + unlike.len(),
                found.only_a.len() + found.opaque_only_a.len(),
                found.only_b.len() + found.opaque_only_b.len()
            );
        }
        text
    }
}

/// A sign, a name that is cut where the line would be too long, and what there is to say.
fn line(sign: char, name: &str, rest: &str, columns: usize) -> String {
    let room = columns.saturating_sub(rest.width() + 4).max(8);
    let name = say::middle_cut(&shown(name).to_string(), room);
    format!("{sign} {name}  {rest}\n")
}

/// A row for each tensor; two lines for each where rows would be too long.
fn changes(tensors: &[&TensorDiff], columns: usize) -> String {
    let cells = |tensor: &&TensorDiff| match &tensor.numbers {
        Some(numbers) if numbers.different > 0 => measures(numbers),
        Some(_) => vec!["equal numbers".into()],
        None => vec![],
    };
    let row = |tensor: &&TensorDiff| {
        let mut row = vec![format!("~ {}", shown(&tensor.a.name)), changed(tensor)];
        row.extend(cells(tensor));
        row
    };
    let table = say::table(&tensors.iter().map(row).collect::<Vec<_>>(), &[2]);
    if table.lines().all(|line| line.width() <= columns) {
        return table;
    }
    let mut text = String::new();
    for tensor in tensors {
        text += &line('~', &tensor.a.name, &changed(tensor), columns);
        let mut below = String::new();
        for cell in cells(tensor) {
            if !below.is_empty() && below.width() + 2 + cell.width() > columns {
                text += &format!("{below}\n");
                below.clear();
            }
            below += if below.is_empty() { "    " } else { "  " };
            below += &cell;
        }
        if !below.is_empty() {
            text += &format!("{below}\n");
        }
    }
    text
}

/// What changed of a tensor besides its numbers.
fn changed(tensor: &TensorDiff) -> String {
    changed_between(&(&tensor.a).into(), &(&tensor.b).into())
}

/// The same of two tensors whose bytes alone matter.
fn changed_between(a: &OpaqueTensor, b: &OpaqueTensor) -> String {
    let dtype = if a.dtype == b.dtype {
        shown(&a.dtype).to_string()
    } else {
        format!("{} → {}", shown(&a.dtype), shown(&b.dtype))
    };
    let shape = if a.shape == b.shape {
        format!("{:?}", a.shape)
    } else {
        format!("{:?} → {:?}", a.shape, b.shape)
    };
    format!("{dtype} {shape}")
}

/// How the bytes of a tensor of an unknown dtype differ.
fn unlike_bytes(tensor: &OpaqueDiff) -> String {
    let (a, b) = (tensor.a.byte_count, tensor.b.byte_count);
    match tensor.same_bytes {
        Some(_) => "other bytes".to_owned(),
        None if a == b => "bytes not compared".to_owned(),
        None => format!("{a} → {b} bytes"),
    }
}

fn measures(numbers: &NumberDiff) -> Vec<String> {
    let mut cells = vec![
        format!("{} of {} differ", numbers.beyond, numbers.count),
        format!("max abs {}", say::number(numbers.max_absolute)),
        format!("rel {}", say::number(numbers.max_relative)),
        numbers
            .max_ulp
            .map_or("ulp –".into(), |ulp| format!("ulp {ulp}")),
        format!("rms {}", say::number(numbers.rms)),
        format!("cosine {:.6}", numbers.cosine),
    ];
    if numbers.unlike > 0 {
        cells.push(format!("{} NaN or infinite in one alone", numbers.unlike));
    }
    cells
}
