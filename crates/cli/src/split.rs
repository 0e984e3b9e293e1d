//! `safelight split`: one file becomes several, with an index.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueHint};
use safelight_format::{Dtype, OpaqueSpec, OpaqueTensor, Order, TensorInfo, TensorSpec, shown};
use safelight_store::location::Location;
use safelight_store::{
    Checkpoint, Meant, SaveOptions, Writer, listed_shards, matching, replace_file,
};
use serde_json::{Map, Value, json};

use crate::convert::size;
use crate::error::Failure;
use crate::files::{self, Outcome, Run, shown_path};
use crate::pattern::Pattern;
use crate::progress::BytesProgress;
use crate::say;

pub(crate) const HELP: &str = "\
With --by-layer or --by-regex tensors that belong together stay together: one shard for each group, or with --size or
--count as many groups as fit. What belongs to no group comes first. With --force, shards whose plain names an earlier
set has are named STEM-r2-00001-of-0000N.safetensors: the old set stays whole until the new index is there.

Examples:
  safelight split model.safetensors --size 5GB -o shards
  safelight split model.safetensors --count 4
  safelight split model.safetensors --by-layer --size 2GB
  safelight split model.safetensors --by-regex '^(unet|vae|text_encoder)'

JSON: {file, index, total_size, shards [{file, tensors, bytes}]}; bytes are those of the file.";

/// What is copied between two looks for Ctrl-C.
const PIECE_BYTES: u64 = 16 * 1024 * 1024;
/// More files than this in a folder help nobody; names have five digits.
const SHARDS_MAX: usize = 99_999;

/// The arguments of `split`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("how").args(["size", "count", "by_layer", "by_regex"]).required(true).multiple(true))]
pub(crate) struct SplitArgs {
    /// A safetensors file, shards (*.index.json) or a folder of them
    #[arg(value_name = "FILE", value_hint = ValueHint::AnyPath)]
    file: PathBuf,
    /// At most this size of tensors a shard, as in 5GB, 500MB or 4GiB; a larger tensor has a shard for itself
    #[arg(short, long, value_name = "SIZE", value_parser = size, conflicts_with = "count")]
    size: Option<u64>,
    /// So many shards of about the same size
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=SHARDS_MAX as i64))]
    count: Option<u32>,
    /// Keep together what has the same name up to its first number
    #[arg(long, conflicts_with = "by_regex")]
    by_layer: bool,
    /// Keep together what has the same text in the first group of this regular expression
    #[arg(long, value_name = "REGEX", value_parser = Pattern::regex)]
    by_regex: Option<Pattern>,
    /// Write into this folder, which is made if need be [default: the file's own]
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    output: Option<PathBuf>,
    /// Begin the shards' names with this [default: the file's name]
    #[arg(long, value_name = "NAME")]
    stem: Option<String>,
    /// Tensors of dtypes that the format does not have come along as they are, instead of refusing their file
    #[arg(long)]
    unknown_dtypes: bool,
    /// Replace files that are there, and an earlier split of that name as a whole
    #[arg(short, long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Run for SplitArgs {
    fn wants_json(&self) -> bool {
        self.json
    }

    fn run(&self) -> Result<Outcome, Failure> {
        files::no_stdin(&self.file)?;
        let checkpoint = files::open_with(&self.file, self.unknown_dtypes)?;
        let units = self.units(&checkpoint);
        let shards = self.pack(units);
        if shards.len() > SHARDS_MAX {
            return Err(Failure::Usage(format!(
                "{} shards; at most {SHARDS_MAX} can be written, so choose a larger --size",
                shards.len()
            )));
        }
        let names = self.names(&checkpoint, shards.len())?;
        let written = write(&checkpoint, &shards, &names)?;
        if self.json {
            let shards = shards.iter().zip(&names.shards).zip(&written.bytes);
            let shards: Vec<Value> = shards
                .map(|((shard, path), bytes)| {
                    json!({ "file": path.to_string_lossy(), "tensors": shard.len(), "bytes": bytes })
                })
                .collect();
            say::answer_json_line(&json!({
                "file": files::name(&self.file), "index": names.index.to_string_lossy(),
                "total_size": written.total_size, "shards": shards,
            }))?;
            return Ok(Outcome::Clean);
        }
        let lines = shards.iter().zip(&names.shards).zip(&written.bytes);
        let rows: Vec<Vec<String>> = lines
            .map(|((shard, path), bytes)| {
                vec![
                    shown_path(path),
                    say::plural(shard.len() as u64, "tensor"),
                    say::bytes(*bytes),
                ]
            })
            .collect();
        say::answer(&format!(
            "{}{}\n",
            say::table(&rows, &[1, 2]),
            shown_path(&names.index)
        ))?;
        Ok(Outcome::Clean)
    }
}

/// A tensor that goes into a shard.
#[derive(Clone, Copy)]
enum Part<'a> {
    Known(TensorInfo<'a>),
    /// Of a dtype that the format does not have.
    Opaque(OpaqueTensor<'a>),
}

impl<'a> Part<'a> {
    /// All of a file: those of unknown dtypes at the end.
    fn all(checkpoint: &'a Checkpoint) -> impl Iterator<Item = Part<'a>> {
        let opaque = checkpoint.opaque_tensors();
        let opaque = opaque.map(|place| Part::Opaque(place.tensor));
        checkpoint.tensors().map(Part::Known).chain(opaque)
    }

    fn name(&self) -> &'a str {
        match self {
            Part::Known(tensor) => tensor.name,
            Part::Opaque(tensor) => tensor.name,
        }
    }

    fn byte_count(&self) -> u64 {
        match self {
            Part::Known(tensor) => tensor.byte_count(),
            Part::Opaque(tensor) => tensor.byte_count(),
        }
    }

    /// What the writer takes; what the header says is another thing, see [`Part::said`].
    fn spec(&self) -> TensorSpec {
        match self {
            Part::Known(tensor) => tensor.to_spec(),
            Part::Opaque(tensor) => TensorSpec {
                name: tensor.name.to_owned(),
                dtype: Dtype::U8,
                shape: vec![tensor.byte_count()],
            },
        }
    }

    /// What the header says of an unknown dtype.
    fn said(&self, position: usize) -> Option<OpaqueSpec> {
        match self {
            Part::Known(_) => None,
            Part::Opaque(tensor) => Some(OpaqueSpec {
                position,
                dtype: tensor.dtype.to_owned(),
                shape: tensor.shape.to_vec(),
            }),
        }
    }
}

/// The files that will be written.
struct Names {
    /// Folders that were made for them, the innermost first.
    made: Vec<PathBuf>,
    shards: Vec<PathBuf>,
    index: PathBuf,
    /// The shards of the save that is replaced.
    old: Vec<PathBuf>,
}

impl SplitArgs {
    /// Tensors that stay together, in the order of the file.
    fn units<'a>(&self, checkpoint: &'a Checkpoint) -> Vec<Vec<Part<'a>>> {
        let layer = Pattern::regex(r"^(.*?(^|[._])\d+)([._]|$)").expect("our own pattern");
        let pattern = match &self.by_regex {
            Some(pattern) => pattern,
            None if self.by_layer => &layer,
            None => return Part::all(checkpoint).map(|part| vec![part]).collect(),
        };
        let mut rest = Vec::new();
        let mut groups: Vec<Vec<Part<'a>>> = Vec::new();
        let mut known = std::collections::HashMap::new();
        for part in Part::all(checkpoint) {
            let Some(key) = pattern.group(part.name()) else {
                rest.push(part);
                continue;
            };
            let at = *known.entry(key).or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            groups[at].push(part);
        }
        if !rest.is_empty() {
            groups.insert(0, rest);
        }
        groups
    }

    /// Units to shards.
    fn pack<'a>(&self, units: Vec<Vec<Part<'a>>>) -> Vec<Vec<Part<'a>>> {
        let bytes_of =
            |unit: &[Part<'_>]| -> u64 { unit.iter().map(|part| part.byte_count()).sum() };
        if self.size.is_none() && self.count.is_none() {
            return units;
        }
        let mut bytes_left: u64 = units.iter().map(|unit| bytes_of(unit)).sum();
        let mut units_left = units.len();
        let mut shards: Vec<Vec<Part<'a>>> = Vec::new();
        let mut shard_bytes = 0;
        for unit in units {
            let bytes = bytes_of(&unit);
            let full = match (self.size, self.count) {
                (Some(size), _) => shard_bytes + bytes > size,
                (None, Some(count)) => {
                    let shards_left = (count as usize).saturating_sub(shards.len());
                    // Of what is left and this shard together, each shard gets the same; half a unit more is nearer
                    // than half a unit less. No shard is left without a unit.
                    let fair = (bytes_left + shard_bytes) / (shards_left as u64 + 1);
                    let needed = units_left <= shards_left;
                    shards_left > 0 && (needed || shard_bytes + bytes / 2 >= fair.max(1))
                }
                (None, None) => false,
            };
            if shards.is_empty() || full {
                shards.push(Vec::new());
                shard_bytes = 0;
            }
            shard_bytes += bytes;
            bytes_left -= bytes;
            units_left -= 1;
            shards.last_mut().expect("one was pushed").extend(unit);
        }
        shards
    }

    fn names(&self, checkpoint: &Checkpoint, count: usize) -> Result<Names, Failure> {
        let is_url = matches!(Location::of(&self.file), Location::Url(_));
        let folder = match &self.output {
            Some(folder) => folder.clone(),
            None if is_url => {
                let what = "name a folder on a disk with --output; nothing is written behind URLs";
                return Err(Failure::Usage(format!(
                    "{}: {what}",
                    shown_path(&self.file)
                )));
            }
            None if self.file.is_dir() => self.file.clone(),
            None => self.file.parent().unwrap_or(Path::new("")).to_owned(),
        };
        // Of a URL without its query, which may be a secret.
        let name = files::name(&self.file);
        let name = Path::new(name.trim_end_matches("?…")).file_name();
        let name = name.unwrap_or_default().to_string_lossy();
        let is_text = self
            .file
            .file_name()
            .is_none_or(|name| name.to_str().is_some());
        if self.stem.is_none() && !is_text {
            return Err(Failure::Usage(format!(
                "{}: this name is no UTF-8 text, and an index can only name shards that are; choose a --stem",
                shown_path(&self.file)
            )));
        }
        let is_pattern = !is_url && matching(&self.file)?.is_some();
        if self.stem.is_none() && is_pattern {
            return Err(Failure::Usage(format!(
                "{}: a pattern is no name for shards; choose a --stem",
                shown_path(&self.file)
            )));
        }
        let stem = match &self.stem {
            Some(stem) if stem.is_empty() || stem.contains(['/', '\\', '\0']) => {
                let what = "--stem is the beginning of a file's name, without folders";
                return Err(Failure::Usage(what.into()));
            }
            Some(stem) => stem.clone(),
            None => {
                // Shards that lie in a folder keep the name that its index has.
                let index = match Meant::of(&self.file) {
                    Ok(Meant::Index(index)) if self.file.is_dir() => index
                        .file_name()
                        .map(|name| name.to_string_lossy().into_owned()),
                    _ => None,
                };
                let name = index.unwrap_or_else(|| name.to_string());
                let name = name.strip_suffix(".index.json").unwrap_or(&name);
                name.strip_suffix(".safetensors").unwrap_or(name).to_owned()
            }
        };
        let index = folder.join(format!("{stem}.safetensors.index.json"));
        let old = listed_shards(&index, &stem)?;
        // As long as the old index stands, nobody writes to what it names.
        let shards = (1..).find_map(|generation: u32| {
            let infix = match generation {
                1 => String::new(),
                _ => format!("-r{generation}"),
            };
            let shard = |at| format!("{stem}{infix}-{at:05}-of-{count:05}.safetensors");
            let shards: Vec<PathBuf> = (1..=count).map(|at| folder.join(shard(at))).collect();
            let is_free =
                |shard: &PathBuf| old.iter().all(|old| old.file_name() != shard.file_name());
            shards.iter().all(is_free).then_some(shards)
        });
        let mut names = Names {
            made: Vec::new(),
            shards: shards.expect("an index names less than all names"),
            index,
            old,
        };
        let all = || names.shards.iter().chain([&names.index]);
        for (path, file) in all().flat_map(|path| checkpoint.files().map(move |file| (path, file)))
        {
            files::check_other(path, Path::new(file))?;
        }
        for path in all() {
            files::check_free(path, self.force)?;
        }
        if !folder.as_os_str().is_empty() {
            names.made = missing(&folder);
            std::fs::create_dir_all(&folder).map_err(|error| {
                Failure::Machine(format!(
                    "can't make the folder {}: {error}",
                    shown_path(&folder)
                ))
            })?;
        }
        Ok(names)
    }
}

/// The folder and those above it that are not there, the innermost first.
fn missing(folder: &Path) -> Vec<PathBuf> {
    let folders = folder.ancestors();
    let missing = folders.take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
    missing.map(Path::to_owned).collect()
}

struct Written {
    bytes: Vec<u64>,
    total_size: u64,
}

/// Writes all shards, then the index. If that fails, what was new is removed again.
fn write(
    checkpoint: &Checkpoint,
    shards: &[Vec<Part<'_>>],
    names: &Names,
) -> Result<Written, Failure> {
    let new: Vec<&PathBuf> = names.shards.iter().filter(|path| !path.exists()).collect();
    let mut done = 0;
    let written = write_shards(checkpoint, shards, names, &mut done).and_then(|written| {
        write_index(shards, names, written.total_size)?;
        Ok(written)
    });
    if written.is_ok() {
        remove_old(checkpoint, names);
    } else {
        for path in new
            .iter()
            .filter(|path| names.shards[..done].contains(**path))
        {
            let _ = std::fs::remove_file(path);
        }
        // Only what is empty can be removed so.
        for folder in &names.made {
            let _ = std::fs::remove_dir(folder);
        }
    }
    written
}

/// Removes the shards that only the old index named, now that the new one is in its place: two saves of one model in a folder
/// can't be told apart. What was split stays.
fn remove_old(checkpoint: &Checkpoint, names: &Names) {
    let sources: Vec<PathBuf> = checkpoint
        .files()
        .filter_map(|file| Path::new(file).canonicalize().ok())
        .collect();
    let mut kept = 0;
    for path in &names.old {
        let Ok(found) = path.canonicalize() else {
            continue; // it is gone already
        };
        if sources.contains(&found) {
            kept += 1;
            continue;
        }
        if let Err(error) = std::fs::remove_file(path) {
            let path = shown_path(path);
            say::note(&format!("note: can't remove the old shard {path}: {error}"));
        }
    }
    if kept > 0 {
        let shards = say::plural(kept, "shard");
        say::note(&format!(
            "note: the {shards} that this was made from stay beside the new ones; no index names them any more"
        ));
    }
}

fn write_shards(
    checkpoint: &Checkpoint,
    shards: &[Vec<Part<'_>>],
    names: &Names,
    done: &mut usize,
) -> Result<Written, Failure> {
    let sizes = shards.iter().flatten().map(|part| part.byte_count());
    let total_size = sizes.sum();
    let progress = BytesProgress::new(false, "splitting", total_size);
    let mut written = Written {
        bytes: Vec::new(),
        total_size,
    };
    for (shard, path) in shards.iter().zip(&names.shards) {
        let specs: Vec<TensorSpec> = shard.iter().map(Part::spec).collect();
        let opaque = shard.iter().zip(0..);
        let opaque = opaque.filter_map(|(part, position)| part.said(position));
        let opaque: Vec<OpaqueSpec> = opaque.collect();
        let options = SaveOptions {
            order: Order::Insertion,
            ..SaveOptions::default()
        };
        let metadata = checkpoint.metadata();
        let writer = Writer::create_with_opaque(path, &specs, &opaque, metadata, &options)?;
        for (index, part) in shard.iter().enumerate() {
            copy(checkpoint, part, &writer, index, &progress)?;
        }
        written.bytes.push(writer.finish()?);
        *done += 1;
    }
    Ok(written)
}

/// Copies one tensor: in the kernel from a file, else through memory.
fn copy(
    checkpoint: &Checkpoint,
    part: &Part<'_>,
    writer: &Writer,
    index: usize,
    progress: &BytesProgress,
) -> Result<(), Failure> {
    let all = part.byte_count();
    let mut offset = 0;
    while offset < all {
        let bytes = PIECE_BYTES.min(all - offset);
        checkpoint.copy_to(part.name(), (offset, bytes), writer, index)?;
        offset += bytes;
        progress.add(bytes)?;
    }
    Ok(())
}

fn write_index(shards: &[Vec<Part<'_>>], names: &Names, total_size: u64) -> Result<(), Failure> {
    let mut weight_map = Map::new();
    for (shard, path) in shards.iter().zip(&names.shards) {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        for part in shard {
            let twice = weight_map.insert(part.name().to_owned(), file.clone().into());
            assert!(twice.is_none(), "{} is in two shards", shown(part.name()));
        }
    }
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    replace_file(&names.index, false, |file| writeln!(file, "{index:#}"))?;
    Ok(())
}
