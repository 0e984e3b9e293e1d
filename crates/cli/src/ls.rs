//! `safelight ls`: the tensors of a file, as a list, as a tree, or counted by dtype.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use clap::{Args, ValueEnum};
use safelight_format::{Metadata, TensorInfo, TensorSpec, shown};
use safelight_store::Place;
use serde::Serialize;

use crate::error::Failure;
use crate::files::{self, FilesArgs, Outcome, Run};
use crate::opened::{Note, Opened};
use crate::pattern::Pattern;
use crate::say;

pub(crate) const HELP: &str = "\
Examples:
  safelight ls model.safetensors
  safelight ls model.safetensors --tree --depth 2
  safelight ls model.safetensors --name '*.attn1.*' --sort size --reverse --long
  safelight ls model.safetensors.index.json --json

JSON, one object a file: file, tensor_count, tensors [{name, dtype, shape, elements, bytes, file, offset}], shown_count,
bytes, elements, dtypes {NAME: {tensors, elements, bytes}}, metadata. `offset` is the tensor's first byte in its file.
Files of other kinds that `convert` reads are listed as it would convert them: `offset` is null, and notes [{at, what}]
says what would be left out or changed.
With --unknown-dtypes also unknown_dtypes [{name, dtype, shape, bytes, file, offset}].";

/// The arguments of `ls`.
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    files: FilesArgs,
    /// Only tensors whose names fit: a glob, or the first parts of names (repeatable)
    #[arg(short, long, value_name = "GLOB", value_parser = Pattern::glob)]
    name: Vec<Pattern>,
    /// Only tensors whose names match this regular expression (repeatable)
    #[arg(short = 'e', long, value_name = "REGEX", value_parser = Pattern::regex)]
    regex: Vec<Pattern>,
    /// In this order
    #[arg(short, long, value_name = "BY", default_value = "offset")]
    sort: Sort,
    /// In the opposite order
    #[arg(short, long)]
    reverse: bool,
    /// Exact sizes, where each tensor starts in its file, and names uncut
    #[arg(short, long)]
    long: bool,
    /// As a tree of the names' parts, with what lies below each
    #[arg(short, long, conflicts_with_all = ["long", "totals"])]
    tree: bool,
    /// Only so many levels of the tree
    #[arg(short, long, value_name = "N", requires = "tree", value_parser = clap::value_parser!(u32).range(1..))]
    depth: Option<u32>,
    /// Also list tensors of dtypes that the format does not have, instead of refusing their file
    #[arg(long)]
    unknown_dtypes: bool,
    /// Only the totals
    #[arg(long, conflicts_with = "long")]
    totals: bool,
}

/// What tensors can be sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// Where they lie in the file
    Offset,
    Name,
    /// Bytes, the smallest first
    Size,
    Dtype,
    /// Dimensions, the fewest elements first
    Shape,
}

impl Run for LsArgs {
    fn wants_json(&self) -> bool {
        self.files.json
    }

    fn run(&self) -> Result<Outcome, Failure> {
        files::each(&self.files, self.codes(), |path| {
            self.list(path).map(|()| Outcome::Clean)
        })
    }
}

impl LsArgs {
    fn list(&self, path: &Path) -> Result<(), Failure> {
        let opened = Opened::open(path, self.unknown_dtypes)?;
        let mut places = opened.places();
        let tensor_count = places.len();
        places.retain(|place| self.wants(place.tensor.name));
        self.sort(&mut places);
        let totals = Totals::of(&places);
        let mut unknown = opened.unknown();
        unknown.retain(|tensor| self.wants(tensor.name));
        let is_foreign = matches!(opened, Opened::Foreign(..));
        if self.files.json {
            let answer = Answer {
                file: files::name(path),
                tensor_count,
                shown_count: places.len(),
                bytes: totals.bytes,
                elements: totals.elements,
                dtypes: &totals.dtypes,
                tensors: match self.totals {
                    true => None,
                    false => {
                        let listed = places.iter().map(|place| Listed::of(place, is_foreign));
                        Some(listed.collect())
                    }
                },
                unknown_dtypes: self.unknown_dtypes.then_some(&unknown),
                metadata: opened.metadata(),
                notes: opened.notes(),
            };
            return say::stream(|out| {
                say::write_json(out, &answer)?;
                files::line(out, format_args!(""))
            });
        }
        say::stream(|out| {
            if self.files.are_several() {
                files::line(out, format_args!("{}:", shown(&files::name(path))))?;
            }
            if self.tree {
                self.write_tree(out, &places)?;
            } else if !self.totals {
                self.write_table(out, &places, is_foreign)?;
            }
            let of = match tensor_count == places.len() {
                true => String::new(),
                false => format!(" of {tensor_count}"),
            };
            totals.write(out, places.len(), &of)?;
            for tensor in &unknown {
                let (name, dtype) = (shown(tensor.name), shown(tensor.dtype));
                let (shape, bytes) = (shape_text(tensor.shape), say::bytes(tensor.bytes));
                files::line(
                    out,
                    format_args!("unknown dtype: {name}  {dtype}  {shape}  {bytes}"),
                )?;
            }
            match self.files.are_several() {
                false => Ok(()),
                true => files::line(out, format_args!("")),
            }
        })
    }

    fn wants(&self, name: &str) -> bool {
        let mut patterns = self.name.iter().chain(&self.regex).peekable();
        patterns.peek().is_none() || patterns.any(|pattern| pattern.fits(name))
    }

    fn sort(&self, places: &mut [Place<'_>]) {
        match self.sort {
            Sort::Offset => {}
            Sort::Name => places.sort_by(|a, b| a.tensor.name.cmp(b.tensor.name)),
            Sort::Size => places.sort_by_key(|place| place.tensor.byte_count()),
            Sort::Dtype => places.sort_by_key(|place| place.tensor.dtype.name()),
            Sort::Shape => {
                places.sort_by_key(|place| (place.tensor.shape.len(), place.tensor.element_count()))
            }
        }
        if self.reverse {
            places.reverse();
        }
    }

    fn write_table(
        &self,
        out: &mut dyn Write,
        places: &[Place<'_>],
        is_foreign: bool,
    ) -> Result<(), Failure> {
        let head: &[&str] = match self.long {
            true => &["BYTES", "OFFSET", "DTYPE", "SHAPE", "NAME"],
            false => &["NAME", "DTYPE", "SHAPE", "SIZE"],
        };
        let mut rows = vec![head.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>()];
        rows.extend(places.iter().map(|place| {
            let tensor = place.tensor;
            let (name, dtype) = (shown(tensor.name).to_string(), tensor.dtype.to_string());
            let shape = shape_text(tensor.shape);
            match self.long {
                true => {
                    let offset = match is_foreign {
                        true => "-".to_owned(),
                        false => place.starts_at.to_string(),
                    };
                    vec![tensor.byte_count().to_string(), offset, dtype, shape, name]
                }
                false => vec![name, dtype, shape, say::bytes(tensor.byte_count())],
            }
        }));
        let table = match self.long {
            true => say::table(&rows, &[0, 1]),
            false => say::fitting_table(&mut rows, &[3], 0, say::columns()),
        };
        files::text(out, &table)
    }

    fn write_tree(&self, out: &mut dyn Write, places: &[Place<'_>]) -> Result<(), Failure> {
        let mut root = Node::default();
        for place in places {
            root.add(place);
        }
        let mut rows = Vec::new();
        root.rows(0, self.depth.unwrap_or(u32::MAX), &mut rows);
        files::text(out, &say::fitting_table(&mut rows, &[1], 0, say::columns()))
    }
}

/// As many dimensions as are shown.
const DIMENSIONS_MAX: usize = 8;

/// `[320, 4, 3, 3]`, as Python shows it; of more dimensions than anyone has, the first ones and their number.
pub(crate) fn shape_text(shape: &[u64]) -> String {
    let dimensions: Vec<String> = shape
        .iter()
        .take(DIMENSIONS_MAX)
        .map(u64::to_string)
        .collect();
    let dimensions = dimensions.join(", ");
    match shape.len() {
        0..=DIMENSIONS_MAX => format!("[{dimensions}]"),
        count => format!("[{dimensions}, …] ({count} dimensions)"),
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    file: String,
    tensor_count: usize,
    shown_count: usize,
    bytes: u64,
    elements: u64,
    dtypes: &'a BTreeMap<&'static str, DtypeTotals>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<Listed<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown_dtypes: Option<&'a Vec<Unknown<'a>>>,
    metadata: Option<&'a Metadata>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notes: Option<Vec<Note<'a>>>,
}

/// A tensor of a dtype that the format does not have.
#[derive(Serialize)]
struct Unknown<'a> {
    name: &'a str,
    dtype: &'a str,
    shape: &'a [u64],
    bytes: u64,
    file: &'a str,
    offset: u64,
}

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    dtype: &'static str,
    shape: &'a [u64],
    elements: u64,
    bytes: u64,
    file: &'a str,
    /// Of a foreign file's tensor, none: it need not lie in one run.
    offset: Option<u64>,
}

impl<'a> Listed<'a> {
    fn of(place: &Place<'a>, is_foreign: bool) -> Listed<'a> {
        let tensor = place.tensor;
        Listed {
            name: tensor.name,
            dtype: tensor.dtype.name(),
            shape: tensor.shape,
            elements: tensor.element_count(),
            bytes: tensor.byte_count(),
            file: place.file,
            offset: (!is_foreign).then_some(place.starts_at),
        }
    }
}

impl Opened {
    fn places(&self) -> Vec<Place<'_>> {
        match self {
            Opened::Ours(checkpoint) => checkpoint.places().collect(),
            Opened::Foreign(source, _) => {
                let tensors = source.tensors().iter();
                tensors
                    .map(|tensor| foreign_place(tensor, source.label()))
                    .collect()
            }
        }
    }

    fn unknown(&self) -> Vec<Unknown<'_>> {
        let Opened::Ours(checkpoint) = self else {
            return Vec::new();
        };
        let unknown = checkpoint.opaque_tensors().map(|place| Unknown {
            name: place.tensor.name,
            dtype: place.tensor.dtype,
            shape: place.tensor.shape,
            bytes: place.tensor.byte_count(),
            file: place.file,
            offset: place.starts_at,
        });
        unknown.collect()
    }
}

/// A tensor that lies nowhere in particular.
fn foreign_place<'a>(tensor: &'a TensorSpec, file: &'a str) -> Place<'a> {
    let bytes = tensor.byte_count().unwrap_or(0);
    let tensor = TensorInfo {
        name: &tensor.name,
        dtype: tensor.dtype,
        shape: &tensor.shape,
        data_offsets: (0, bytes),
    };
    Place {
        tensor,
        file,
        starts_at: 0,
    }
}

/// How much there is, by dtype.
#[derive(Default)]
struct Totals {
    bytes: u64,
    elements: u64,
    dtypes: BTreeMap<&'static str, DtypeTotals>,
}

#[derive(Default, Serialize)]
struct DtypeTotals {
    tensors: u64,
    elements: u64,
    bytes: u64,
}

impl Totals {
    fn of(places: &[Place<'_>]) -> Totals {
        let mut totals = Totals::default();
        for Place { tensor, .. } in places {
            let (elements, bytes) = (tensor.element_count(), tensor.byte_count());
            totals.bytes += bytes;
            // Of shards, more than 2⁶⁴ elements of half a byte could come together.
            totals.elements = totals.elements.saturating_add(elements);
            let dtype = totals.dtypes.entry(tensor.dtype.name()).or_default();
            dtype.tensors += 1;
            dtype.elements = dtype.elements.saturating_add(elements);
            dtype.bytes += bytes;
        }
        totals
    }

    fn write(&self, out: &mut dyn Write, count: usize, of: &str) -> Result<(), Failure> {
        let s = if count == 1 { "" } else { "s" };
        let e = if self.elements == 1 { "" } else { "s" };
        let (elements, bytes) = (say::count(self.elements), say::bytes(self.bytes));
        files::line(
            out,
            format_args!("{count}{of} tensor{s}, {elements} element{e}, {bytes}"),
        )?;
        if self.dtypes.len() < 2 {
            return Ok(());
        }
        let row = |(name, dtype): (&&str, &DtypeTotals)| {
            vec![
                format!("  {name}"),
                format!("×{}", dtype.tensors),
                say::count(dtype.elements),
                say::bytes(dtype.bytes),
            ]
        };
        let rows: Vec<_> = self.dtypes.iter().map(row).collect();
        files::text(out, &say::table(&rows, &[1, 2, 3]))
    }
}

/// A part of names, and what begins with it.
#[derive(Default)]
struct Node {
    below: BTreeMap<NamePart, Node>,
    tensors: u64,
    bytes: u64,
    /// Dtype and shape, where a tensor's name ends here.
    ends: Option<String>,
}

/// A part of a name; numbers sort as numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum NamePart {
    Number(u64),
    Word(String),
}

impl NamePart {
    pub(crate) fn of(text: &str) -> NamePart {
        let plain = text == "0" || !text.starts_with(['0', '+']);
        match text.parse() {
            Ok(number) if plain => NamePart::Number(number),
            _ => NamePart::Word(text.to_owned()),
        }
    }

    pub(crate) fn text(&self) -> String {
        match self {
            NamePart::Number(number) => number.to_string(),
            NamePart::Word(word) => shown(word).to_string(),
        }
    }
}

impl Node {
    fn add(&mut self, place: &Place<'_>) {
        let tensor = place.tensor;
        let mut node = self;
        // Names of a million dots would be trees too deep to walk.
        for part in tensor.name.splitn(64, '.') {
            node.tensors += 1;
            node.bytes += tensor.byte_count();
            node = node.below.entry(NamePart::of(part)).or_default();
        }
        node.tensors += 1;
        node.bytes += tensor.byte_count();
        node.ends = Some(format!("{} {}", tensor.dtype, shape_text(tensor.shape)));
    }

    fn rows(&self, level: usize, depth_left: u32, rows: &mut Vec<Vec<String>>) {
        if depth_left == 0 {
            return;
        }
        for (part, mut node) in &self.below {
            let mut name = part.text();
            // A chain without branches is one line.
            while let (1, None) = (node.below.len(), &node.ends) {
                let (part, only) = node.below.first_key_value().expect("there is one");
                name += &format!(".{}", part.text());
                node = only;
            }
            let what = match (&node.ends, node.tensors) {
                (Some(what), 1) => what.clone(),
                (_, count) => say::plural(count, "tensor"),
            };
            let indent = "  ".repeat(level);
            rows.push(vec![
                format!("{indent}{name}"),
                say::bytes(node.bytes),
                what,
            ]);
            node.rows(level + 1, depth_left - 1, rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_not_endless() {
        assert_eq!(shape_text(&[]), "[]");
        assert_eq!(shape_text(&[1; 8]), "[1, 1, 1, 1, 1, 1, 1, 1]");
        let many = "[1, 1, 1, 1, 1, 1, 1, 1, …] (60000 dimensions)";
        assert_eq!(shape_text(&[1; 60_000]), many);
    }

    #[test]
    fn numbers_in_names_sort_as_numbers() {
        let mut parts = ["10", "9", "a", "07", "+1", "0"].map(NamePart::of);
        parts.sort();
        let texts = parts.each_ref().map(NamePart::text);
        assert_eq!(texts, ["0", "9", "10", "+1", "07", "a"]);
    }
}
