//! `safelight cat`: one tensor's numbers, or a slice of them, as text, JSON, npy or raw bytes.

use std::io::{IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum, ValueHint};
use rayon::prelude::*;
use safelight_format::{
    Dtype, Index, OpaqueTensor, SliceOptions, SlicePlan, TensorInfo, parse_index, shown,
};
use safelight_store::Checkpoint;
use serde_json::json;

use crate::array_text::{self, Layout, Shown, Survey, THRESHOLD, repeat};
use crate::error::Failure;
use crate::files::{self, Outcome, Run};
use crate::interrupt;
use crate::numbers::{Number, numbers};
use crate::progress::BytesProgress;
use crate::say;

pub(crate) const HELP: &str = "\
SLICE is what stands between the brackets in numpy, without them: positions, start:stop:step, ..., None, lists and
masks. `[0, 2]` is a list, as in a[[0, 2]].

Examples:
  safelight cat model.safetensors model.norm.weight
  safelight cat model.safetensors model.embed.weight ':2, -4:'
  safelight cat model.safetensors model.embed.weight 0 --format npy -o row.npy
  safelight cat model.safetensors model.norm.weight --format raw | sha256sum

JSON: {file, tensor, dtype, shape, slice, values}: nested lists; NaN and infinities are strings, complex numbers pairs.
Numbers narrower than F32 are exact, F32 has the fewest digits that are read back as the same F32.
With -o FILE, --json prints {path, bytes, dtype, shape} of what was written. `-` as FILE to read is standard input.
npy has no type for BF16, F8, F6 and F4: these become float32, which is exact.";

/// More numbers than this at the edges of a tensor are no summary.
const EDGES_MAX: u64 = 10_000_000;

/// What a thread makes text of at a time: whole elements of any size (three bytes hold four of 6 bits).
const CHUNK_BYTES: usize = 96 * 1024;

/// What is read at a time of a tensor of an unknown dtype.
const UNKNOWN_PIECE_BYTES: u64 = 4 * 1024 * 1024;

/// The arguments of `cat`.
#[derive(Debug, Args)]
pub(crate) struct CatArgs {
    /// A safetensors file, shards (*.index.json) or a folder of them
    #[arg(value_name = "FILE", value_hint = ValueHint::AnyPath)]
    file: PathBuf,
    /// The tensor's name
    tensor: String,
    /// Which part of it
    #[arg(value_parser = index, allow_hyphen_values = true)]
    slice: Option<Wanted>,
    /// Write it like this
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        default_value = "text",
        conflicts_with = "json"
    )]
    format: Format,
    /// Print JSON: the same as --format json
    #[arg(long)]
    json: bool,
    /// Also tensors of dtypes that the format does not have: their bytes, with --format raw
    #[arg(long)]
    unknown_dtypes: bool,
    /// Print all numbers, not only the edges of large tensors
    #[arg(short, long)]
    all: bool,
    /// Write to this file; - is standard output
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
    /// Replace an output that is there
    #[arg(long, requires = "output")]
    force: bool,
}

/// How numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// As numpy prints arrays
    Text,
    /// A numpy file
    Npy,
    /// The bytes as they are in the file, little-endian
    Raw,
    Json,
}

/// A slice as it was asked for.
#[derive(Clone, Debug)]
struct Wanted {
    text: String,
    index: Vec<Index>,
}

fn index(text: &str) -> Result<Wanted, String> {
    // A comma at the end changes nothing, and brackets in front of one are a list's and not those of `tensor[…]`.
    let trimmed = text.trim();
    let is_list = trimmed.starts_with('[') && !trimmed.ends_with(',');
    let index = match is_list {
        true => parse_index(&format!("{trimmed},")),
        false => parse_index(text),
    };
    let index = index.map_err(|mut error| {
        error.text = text.to_owned();
        let advice = match is_list {
            true => "; SLICE has no brackets around it, as in ':2, -4:'",
            false => "",
        };
        format!("{error}{advice}")
    })?;
    Ok(Wanted {
        text: text.to_owned(),
        index,
    })
}

impl Run for CatArgs {
    fn wants_json(&self) -> bool {
        self.json || self.format == Format::Json
    }

    fn run(&self) -> Result<Outcome, Failure> {
        let format = if self.json { Format::Json } else { self.format };
        let named = self.output.as_ref().filter(|path| !files::is_stdin(path));
        let to_terminal = named.is_none() && std::io::stdout().is_terminal();
        if to_terminal && matches!(format, Format::Npy | Format::Raw) {
            return Err(Failure::Usage(
                "bytes are not for a terminal: name a file with --output, or a pipe".into(),
            ));
        }
        let checkpoint = files::open_with(&self.file, self.unknown_dtypes)?;
        if let Some(output) = named {
            for file in checkpoint.files() {
                files::check_other(output, Path::new(file))?;
            }
            files::check_free(output, self.force)?;
        }
        let mut unknown = checkpoint.opaque_tensors();
        if let Some(place) = unknown.find(|place| place.tensor.name == self.tensor) {
            if format != Format::Raw || self.slice.is_some() {
                let (name, dtype) = (shown(&self.tensor), shown(place.tensor.dtype));
                let what = format!(
                    "tensor `{name}` has the unknown dtype `{dtype}`: only all its bytes can be had, with --format raw"
                );
                return Err(Failure::Usage(what));
            }
            let write = |out: &mut dyn Write| write_unknown(&checkpoint, &place.tensor, out);
            let OpaqueTensor { dtype, shape, .. } = place.tensor;
            match named {
                None => say::stream(write)?,
                Some(output) => {
                    files::replace(output, write)?;
                    self.tell_written(output, dtype, shape)?;
                }
            }
            checkpoint.unchanged()?;
            return Ok(Outcome::Clean);
        }
        let slice = Slice::new(&checkpoint, self)?;
        let Some(output) = named else {
            say::stream(|out| self.write(format, &slice, true, out))?;
            checkpoint.unchanged()?;
            return Ok(Outcome::Clean);
        };
        files::replace(output, |out| {
            self.write(format, &slice, false, out)?;
            Ok(checkpoint.unchanged()?)
        })?;
        self.tell_written(output, slice.tensor.dtype.name(), slice.plan.shape())?;
        Ok(Outcome::Clean)
    }
}

impl CatArgs {
    /// With `--json` (or its format), what the file that was written holds.
    fn tell_written(&self, output: &Path, dtype: &str, shape: &[u64]) -> Result<(), Failure> {
        if !self.wants_json() {
            return Ok(());
        }
        let bytes = std::fs::metadata(output).map_or(0, |metadata| metadata.len());
        say::answer_json_line(&json!({
            "path": output.to_string_lossy(), "bytes": bytes, "dtype": dtype, "shape": shape,
        }))
    }

    fn write(
        &self,
        format: Format,
        slice: &Slice<'_>,
        quiet: bool,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        match format {
            Format::Text => slice.write_text(self.all, out),
            Format::Raw => slice.pieces(quiet, &mut |bytes| files::bytes(out, bytes)),
            Format::Npy => slice.write_npy(quiet, out),
            Format::Json => {
                let head = json!({
                    "file": files::name(&self.file), "tensor": self.tensor, "dtype": slice.tensor.dtype.name(),
                    "shape": slice.plan.shape(), "slice": self.slice.as_ref().map(|slice| &slice.text),
                });
                let head = say::json_text(&head);
                files::text(out, &format!("{},\"values\":", &head[..head.len() - 1]))?;
                slice.write_json(quiet, out)?;
                files::text(out, "}\n")
            }
        }
    }
}

/// All bytes of a tensor whose dtype is unknown.
fn write_unknown(
    checkpoint: &Checkpoint,
    tensor: &OpaqueTensor<'_>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut buffer = vec![0; tensor.byte_count().min(UNKNOWN_PIECE_BYTES) as usize];
    let mut offset = 0;
    while offset < tensor.byte_count() {
        let bytes = UNKNOWN_PIECE_BYTES.min(tensor.byte_count() - offset) as usize;
        let piece = &mut buffer[..bytes];
        checkpoint.read_opaque_at(tensor.name, offset, piece)?;
        files::bytes(out, piece)?;
        offset += bytes as u64;
        interrupt::check()?;
    }
    Ok(())
}

/// Takes the bytes of a batch, with the position of its first element in the slice.
type EachBatch<'a> = dyn FnMut(u64, &[u8]) -> Result<(), Failure> + 'a;

/// What is wanted of a tensor.
struct Slice<'a> {
    checkpoint: &'a Checkpoint,
    tensor: TensorInfo<'a>,
    plan: SlicePlan,
}

impl<'a> Slice<'a> {
    fn new(checkpoint: &'a Checkpoint, args: &CatArgs) -> Result<Slice<'a>, Failure> {
        let tensor = checkpoint
            .get(&args.tensor)
            .ok_or_else(|| no_such_tensor(checkpoint, &args.file, &args.tensor))?;
        let index = args.slice.as_ref().map_or(&[][..], |slice| &slice.index);
        let plan = SlicePlan::new(tensor.dtype.bits(), tensor.shape, index);
        let plan = plan.map_err(|error| {
            let (name, shape) = (shown(tensor.name), crate::ls::shape_text(tensor.shape));
            Failure::Usage(format!("tensor `{name}` of shape {shape}: {error}"))
        })?;
        Ok(Slice {
            checkpoint,
            tensor,
            plan,
        })
    }

    /// All bytes of the slice, some megabytes at a time.
    fn pieces(
        &self,
        quiet: bool,
        each: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let progress = BytesProgress::new(quiet, self.tensor.name, self.plan.byte_count());
        for batch in self.plan.batches(&SliceOptions::default()) {
            let range = batch.out_bytes();
            let mut out = vec![0; (range.end - range.start) as usize];
            for read in batch.reads() {
                let mut bytes = vec![0; (read.bytes.end - read.bytes.start) as usize];
                self.read_at(read.bytes.start, &mut bytes)?;
                batch.scatter(read, &bytes, &mut out);
            }
            progress.add(out.len() as u64)?;
            each(&out)?;
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Failure> {
        Ok(self
            .checkpoint
            .read_bytes_at(self.tensor.name, offset, out)?)
    }

    fn write_text(&self, all: bool, out: &mut dyn Write) -> Result<(), Failure> {
        let dtype = self.tensor.dtype;
        let shown = Shown::new(self.plan.shape(), all);
        let is_whole = shown.count() == self.plan.element_count();
        if is_whole && shown.count() > THRESHOLD {
            return self.write_all_text(&shown, out);
        }
        if shown.count() > EDGES_MAX {
            return Err(Failure::Usage(format!(
                "the edges of so many dimensions are {} numbers; name a slice, or use --all or another --format",
                shown.count()
            )));
        }
        let mut values = Vec::new();
        if is_whole {
            self.each_batch(true, &mut |_, bytes| {
                values.append(&mut numbers(dtype, bytes)?);
                Ok(())
            })?;
            // Elements smaller than a byte may not fill the last one.
            values.truncate(shown.count() as usize);
        } else {
            for run in runs(shown.positions().map(|at| self.plan.element_at(at))) {
                values.append(&mut self.elements(run)?);
            }
        }
        let text = array_text::array_text(&shown, dtype, &values);
        files::line(out, format_args!("{text}"))
    }

    /// The text of all elements, in little memory: they are read once to know how wide they are, and once to be written.
    fn write_all_text(&self, shown: &Shown, out: &mut dyn Write) -> Result<(), Failure> {
        let mut survey = Survey::new(self.tensor.dtype);
        self.each_batch(true, &mut |at, bytes| {
            let parts = self.in_parallel(at, bytes, |_, values| {
                let mut part = Survey::new(self.tensor.dtype);
                part.add(&values);
                part
            })?;
            parts.iter().for_each(|part| survey.merge(part));
            Ok(())
        })?;
        let (columns, mut layout) = (survey.columns(), Layout::new(shown));
        self.each_batch(true, &mut |at, bytes| {
            let parts = self.in_parallel(at, bytes, |_, values| {
                let (mut words, mut ends) = (String::new(), Vec::with_capacity(values.len()));
                for value in values {
                    columns.push(value, &mut words);
                    ends.push(words.len());
                }
                (words, ends)
            })?;
            let mut text = String::new();
            for (words, ends) in parts {
                let mut start = 0;
                for end in ends {
                    layout.push(&words[start..end], &mut text);
                    start = end;
                }
            }
            files::text(out, &text)
        })?;
        files::text(out, "\n")
    }

    /// As [`Slice::pieces`], each with the position of its first element.
    fn each_batch(&self, quiet: bool, each: &mut EachBatch<'_>) -> Result<(), Failure> {
        let mut bits = 0;
        self.pieces(quiet, &mut |bytes| {
            let at = bits / self.tensor.dtype.bits();
            bits += bytes.len() as u64 * 8;
            each(at, bytes)
        })
    }

    /// Makes something of the numbers of a batch, whose first is element `at` of the slice, a chunk a thread; `make` also gets the
    /// position of its chunk's first.
    fn in_parallel<T: Send>(
        &self,
        at: u64,
        bytes: &[u8],
        make: impl Fn(u64, Vec<Number>) -> T + Sync,
    ) -> Result<Vec<T>, Failure> {
        let (dtype, count) = (self.tensor.dtype, self.plan.element_count());
        let chunks = bytes.par_chunks(CHUNK_BYTES).enumerate();
        let made = chunks.map(|(index, chunk)| {
            interrupt::check()?;
            let at = at + (index * CHUNK_BYTES) as u64 * 8 / dtype.bits();
            let mut values = numbers(dtype, chunk)?;
            // Elements smaller than a byte may not fill the last one.
            let left = usize::try_from(count.saturating_sub(at)).unwrap_or(usize::MAX);
            values.truncate(left);
            Ok(make(at, values))
        });
        made.collect()
    }

    /// Elements of the tensor that lie together.
    fn elements(&self, run: std::ops::Range<u64>) -> Result<Vec<Number>, Failure> {
        let bits = self.tensor.dtype.bits();
        // Four elements of any size fill whole bytes.
        let start = run.start / 4 * 4;
        let bytes = start * bits / 8..(run.end * bits).div_ceil(8);
        let mut source = vec![0; (bytes.end - bytes.start) as usize];
        self.read_at(bytes.start, &mut source)?;
        let count = (source.len() as u64 * 8) / bits;
        let range = Index::range((run.start - start) as i64, (run.end - start) as i64);
        let plan = SlicePlan::new(bits, &[count], &[range]);
        let plan = plan.expect("a range within what was read");
        let mut values = numbers(self.tensor.dtype, &plan.gather(&source))?;
        values.truncate((run.end - run.start) as usize);
        Ok(values)
    }

    fn write_npy(&self, quiet: bool, out: &mut dyn Write) -> Result<(), Failure> {
        let dtype = self.tensor.dtype;
        let (descr, as_is) = npy_type(dtype);
        if !as_is && !quiet {
            say::note(&format!(
                "npy has no {dtype}: written as float32, which is exact"
            ));
        }
        files::bytes(out, &npy_header(descr, self.plan.shape()))?;
        let mut left = self.plan.element_count();
        self.pieces(quiet, &mut |bytes| {
            if as_is {
                return files::bytes(out, bytes);
            }
            let mut values = numbers(dtype, bytes)?;
            values.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= values.len() as u64;
            let floats = values.iter().map(|value| value.to_f64() as f32);
            files::bytes(out, &floats.flat_map(f32::to_le_bytes).collect::<Vec<_>>())
        })
    }

    fn write_json(&self, quiet: bool, out: &mut dyn Write) -> Result<(), Failure> {
        let (shape, dtype) = (self.plan.shape(), self.tensor.dtype);
        let count = self.plan.element_count();
        if count == 0 {
            return files::text(out, &empty_json(shape));
        }
        self.each_batch(quiet, &mut |at, bytes| {
            let texts = self.in_parallel(at, bytes, |mut position, values| {
                let mut text = String::new();
                for value in values {
                    repeat('[', brackets(shape, position), &mut text);
                    text += &value.to_json(dtype);
                    position += 1;
                    repeat(']', brackets(shape, position), &mut text);
                    if position < count {
                        text.push(',');
                    }
                }
                text
            })?;
            texts.iter().try_for_each(|text| files::text(out, text))
        })
    }
}

/// How many brackets open before this position (and close behind the one before it).
fn brackets(shape: &[u64], position: u64) -> usize {
    let mut size = 1;
    let mut dimensions = shape.iter().rev();
    let full = dimensions.by_ref().take_while(|&&dim| {
        size *= dim;
        position.is_multiple_of(size)
    });
    full.count()
}

/// Nested lists of a shape that has no elements.
fn empty_json(shape: &[u64]) -> String {
    let zero = shape.iter().position(|&dim| dim == 0).unwrap_or(0);
    let outside = &shape[..zero];
    // Of millions of empty lists nobody learns anything.
    if outside
        .iter()
        .fold(1u64, |count, &dim| count.saturating_mul(dim))
        > 1_000_000
    {
        return "[]".into();
    }
    let inner = |inner: String, &dim: &u64| format!("[{}]", vec![inner; dim as usize].join(","));
    outside.iter().rev().fold("[]".to_owned(), inner)
}

/// Ascending neighbours as runs.
fn runs(elements: impl Iterator<Item = u64>) -> Vec<std::ops::Range<u64>> {
    let mut runs: Vec<std::ops::Range<u64>> = Vec::new();
    for element in elements {
        match runs.last_mut() {
            Some(run) if run.end == element => run.end += 1,
            _ => runs.push(element..element + 1),
        }
    }
    runs
}

/// numpy's name for a type, and whether the bytes are the same.
fn npy_type(dtype: Dtype) -> (&'static str, bool) {
    match dtype {
        Dtype::Bool => ("|b1", true),
        Dtype::U8 => ("|u1", true),
        Dtype::I8 => ("|i1", true),
        Dtype::I16 => ("<i2", true),
        Dtype::U16 => ("<u2", true),
        Dtype::F16 => ("<f2", true),
        Dtype::I32 => ("<i4", true),
        Dtype::U32 => ("<u4", true),
        Dtype::F32 => ("<f4", true),
        Dtype::C64 => ("<c8", true),
        Dtype::F64 => ("<f8", true),
        Dtype::I64 => ("<i8", true),
        Dtype::U64 => ("<u8", true),
        _ => ("<f4", false),
    }
}

/// Version 1.0 of numpy's file format: magic, length, a Python dictionary padded to 64 bytes
/// (numpy.lib.format, "Format Version 1.0"); 2.0 if the dictionary is longer than 65,535 bytes.
fn npy_header(descr: &str, shape: &[u64]) -> Vec<u8> {
    let dims: String = shape.iter().map(|dim| format!("{dim}, ")).collect();
    let dims = match shape.len() {
        1 => dims.trim_end(),
        _ => dims.trim_end_matches(", "),
    };
    let mut dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
    let long = dict.len() > 65_000;
    let prefix = if long { 12 } else { 10 };
    let padded = (prefix + dict.len() + 1).next_multiple_of(64) - prefix - 1;
    dict = format!("{dict:padded$}\n");
    let mut header = b"\x93NUMPY".to_vec();
    if long {
        header.extend([2, 0]);
        header.extend((dict.len() as u32).to_le_bytes());
    } else {
        header.extend([1, 0]);
        header.extend((dict.len() as u16).to_le_bytes());
    }
    header.extend(dict.bytes());
    header
}

/// The names most like the one that is not there.
fn no_such_tensor(checkpoint: &Checkpoint, file: &Path, name: &str) -> Failure {
    let wanted = name.to_lowercase();
    let last = wanted
        .rsplit('.')
        .find(|part| !part.is_empty())
        .unwrap_or("");
    let like = |other: &&str| {
        let other = other.to_lowercase();
        other.contains(&wanted) || wanted.contains(&other) || other.ends_with(last)
    };
    let similar: Vec<String> = checkpoint
        .names()
        .filter(|other| !name.is_empty() && like(other))
        .take(3)
        .map(|name| format!("`{}`", shown(name)))
        .collect();
    let advice = match similar.is_empty() {
        true => "`safelight ls` lists what there is".to_owned(),
        false => format!("there is {}", similar.join(", ")),
    };
    let file = shown(&files::name(file)).to_string();
    Failure::Usage(format!("{file}: no tensor `{}`; {advice}", shown(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_npy_files() {
        let check = |shape: &[u64], expected: &str| {
            let header = npy_header("<f4", shape);
            assert!(header.len().is_multiple_of(64) && header.ends_with(b"\n"));
            assert_eq!(header[8] as usize, header.len() - 10);
            let dict = String::from_utf8_lossy(&header[10..]).trim_end().to_owned();
            let tail = dict.strip_prefix("{'descr': '<f4', 'fortran_order': False, 'shape': ");
            assert_eq!(tail, Some(expected));
        };
        check(&[], "(), }");
        check(&[3], "(3,), }");
        check(&[2, 3], "(2, 3), }");
    }

    #[test]
    fn json_brackets() {
        assert_eq!(brackets(&[2, 3], 0), 2);
        assert_eq!(brackets(&[2, 3], 2), 0);
        assert_eq!(brackets(&[2, 3], 3), 1);
        assert_eq!(brackets(&[2, 3], 6), 2);
        assert_eq!(brackets(&[], 1), 0);
        assert_eq!(empty_json(&[2, 0, 3]), "[[],[]]");
        assert_eq!(empty_json(&[0]), "[]");
        assert_eq!(empty_json(&[u64::MAX, 0]), "[]");
    }

    #[test]
    fn neighbours_make_runs() {
        assert_eq!(runs([1, 2, 5, 6, 7, 3].into_iter()), [1..3, 5..8, 3..4]);
    }
}
