//! `safelight verify`: is a file whole, does it hold what it should?

use std::path::Path;

use clap::Args;
use safelight_format::{Dtype, Strictness, decode_f32_into, shown};
use safelight_store::{
    FileVerdict, HashOptions, OpenOptions, list_label, listed_sets, location, problems_together,
    recorded_hashes,
};
use serde_json::{Value, json};

use crate::error::Failure;
use crate::files::{self, FilesArgs, Outcome, Run, shown_path};
use crate::progress::BytesProgress;
use crate::say;

pub(crate) const HELP: &str = "\
The header is checked against every rule of the format, and all bytes are read. Of a damaged file the tensors that are
whole are told from the others, by name; `safelight repair` makes a file of what is whole. Of shards, the index must
list every tensor, each once; a wrong `total_size` is a warning (with --strict, damage). Shards without an index (a folder, a quoted pattern, or
files listed that are named as in model-00001-of-00003.safetensors) must all be there, with no tensor in two.

Examples:
  safelight verify model.safetensors
  safelight verify models/*.safetensors --numbers --checksums

JSON, one object a file: {file, intact, index {file, problem, problems [TEXT], warnings [TEXT]}, files [{file, bytes, expected_bytes, intact, problem,
unreadable [{from, to, error}], tensor_count, whole_count, damaged [NAME],
intact_tensors [NAME]}], checksums [{kind, expected, found, matches}],
not_finite [{tensor, nan, inf}], problems [TEXT]} (what is wrong between files without an index).";

/// As many names as a text lists.
const NAMES_MAX: usize = 12;
/// What is decoded at a time: whole elements of every type.
const PIECE_BYTES: u64 = 4 * 1024 * 1024;

/// The arguments of `verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    files: FilesArgs,
    /// Hold the file to the format's description, not only to what the reference implementation accepts
    #[arg(long)]
    strict: bool,
    /// Tensors of dtypes that the format does not have are no damage
    #[arg(long)]
    unknown_dtypes: bool,
    /// Also look for numbers that are NaN or infinite
    #[arg(short, long)]
    numbers: bool,
    /// Also compare with the checksums in the file's metadata (modelspec.hash_sha256, sshs_model_hash)
    #[arg(short, long)]
    checksums: bool,
    /// Also compare the whole file with this SHA-256
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    sha256: Option<String>,
    /// List every tensor, the damaged and the intact
    #[arg(short, long)]
    long: bool,
}

fn sha256(text: &str) -> Result<String, String> {
    let hex = text.strip_prefix("0x").unwrap_or(text).to_lowercase();
    match hex.len() == 64 && hex.chars().all(|c| c.is_ascii_hexdigit()) {
        true => Ok(hex),
        false => Err("64 hexadecimal digits are needed".into()),
    }
}

impl Run for VerifyArgs {
    fn wants_json(&self) -> bool {
        self.files.json
    }

    fn run(&self) -> Result<Outcome, Failure> {
        if self.sha256.is_some() && self.files.files.len() > 1 {
            return Err(Failure::Usage("--sha256 is for one file".into()));
        }
        let each = files::each(&self.files, self.codes(), |path| self.verify(path));
        if let Err(Failure::Interrupted { .. }) = each {
            return each;
        }
        // Shards that were listed one by one are looked at together as well.
        let sets = listed_sets(&files::local(&self.files.files));
        let problems = sets
            .iter()
            .flat_map(|set| problems_together(&list_label(set), set, true, &files::limits()));
        let mut first = None;
        for problem in problems {
            let failure = Failure::from(problem);
            say::failure(&failure, failure.exit_code(), self.files.json);
            first.get_or_insert(failure);
        }
        match (each, first) {
            (Ok(_), Some(failure)) => Err(Failure::Told(Box::new(failure))),
            (each, _) => each,
        }
    }
}

/// A checksum that is known, and the file's.
struct Compared {
    kind: &'static str,
    expected: String,
    found: Option<String>,
}

impl Compared {
    fn matches(&self) -> bool {
        self.found.as_ref() == Some(&self.expected)
    }
}

/// Numbers of a tensor that are none.
struct NotFinite {
    tensor: String,
    nan_count: u64,
    infinite_count: u64,
}

impl VerifyArgs {
    fn verify(&self, path: &Path) -> Result<Outcome, Failure> {
        files::no_stdin(path)?;
        let strictness = match self.strict {
            true => Strictness::Spec,
            false => Strictness::Compat,
        };
        let options = OpenOptions {
            strictness,
            opaque_dtypes: self.unknown_dtypes,
            limits: files::limits(),
        };
        let verdict = {
            let progress = BytesProgress::new(false, &files::name(path), 0);
            location::verify(path, &options, &mut |done, all| progress.at(done, all))?
        };
        let intact = verdict.is_intact();
        let checksums = if intact {
            self.compare(path)?
        } else {
            Vec::new()
        };
        let not_finite = match intact && self.numbers {
            true => not_finite(path, self.unknown_dtypes)?,
            false => Vec::new(),
        };
        let fine = intact && not_finite.is_empty() && checksums.iter().all(Compared::matches);
        if self.files.json {
            let index = verdict.index.as_ref().map(|index| {
                let problems: Vec<_> = index.problems.iter().map(ToString::to_string).collect();
                json!({ "file": index.file, "problem": problems.first(), "problems": problems, "warnings": index.warnings })
            });
            let files: Vec<Value> = verdict.files.iter().map(file_json).collect();
            let checksums = checksums.iter().map(|checksum| {
                json!({ "kind": checksum.kind, "expected": checksum.expected, "found": checksum.found, "matches": checksum.matches() })
            });
            let not_finite = not_finite.iter().map(|tensor| {
                json!({ "tensor": tensor.tensor, "nan": tensor.nan_count, "inf": tensor.infinite_count })
            });
            say::answer_json_line(&json!({
                "file": files::name(path), "intact": fine, "index": index, "files": files,
                "problems": verdict.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "checksums": checksums.collect::<Vec<_>>(), "not_finite": not_finite.collect::<Vec<_>>(),
            }))?;
        } else {
            let mut text = String::new();
            if let Some(index) = &verdict.index {
                let file = shown(&index.file);
                for problem in &index.problems {
                    let problem = without(&problem.to_string(), &index.file);
                    text += &format!("{file}: damaged: {problem}\n");
                }
                for warning in &index.warnings {
                    text += &format!("{file}: warning: {}\n", shown(warning));
                }
            }
            let name = files::name(path);
            for problem in &verdict.problems {
                let problem = without(&problem.to_string(), &name);
                text += &format!("{}: damaged: {problem}\n", shown(&name));
            }
            verdict
                .files
                .iter()
                .for_each(|file| text += &self.file_text(file));
            checksums
                .iter()
                .for_each(|checksum| text += &checksum_text(path, checksum));
            if self.checksums && intact && checksums.is_empty() {
                text += &format!("{}: its metadata have no checksum\n", shown_path(path));
            }
            for tensor in &not_finite {
                text += &format!(
                    "{}: tensor `{}` has {} NaN and {} infinite numbers\n",
                    shown_path(path),
                    shown(&tensor.tensor),
                    tensor.nan_count,
                    tensor.infinite_count
                );
            }
            say::answer(&text)?;
        }
        Ok(if fine { Outcome::Clean } else { Outcome::Found })
    }

    fn file_text(&self, file: &FileVerdict) -> String {
        let name = shown(&file.file).to_string();
        let tensor_count = file.header.as_ref().map_or(0, |header| {
            header.tensors().len() + header.opaque_tensors().len()
        });
        let tensors = say::plural(tensor_count as u64, "tensor");
        if file.is_intact() {
            let size = say::bytes(file.file_bytes);
            let text = format!("{name}: intact, {tensors}, {size}\n");
            return match self.long {
                true => text + &self.names("intact", names_of(file, true).into_iter()),
                false => text,
            };
        }
        let mut text = String::new();
        if let Some(problem) = &file.problem {
            text += &format!(
                "{name}: {}{}\n",
                if problem.is_denied() { "" } else { "damaged: " },
                without(&problem.to_string(), &file.file)
            );
        }
        for part in &file.unreadable {
            let (start, end) = (part.bytes.start, part.bytes.end);
            text += &format!(
                "{name}: damaged: bytes {start} to {end} can't be read: {}\n",
                part.error
            );
        }
        if file.header.is_none() || tensor_count == 0 {
            return text;
        }
        let damaged: Vec<&str> = names_of(file, false);
        text += &format!(
            "  {} of {tensors} are whole\n",
            tensor_count - damaged.len()
        );
        text += &self.names("damaged", damaged.iter().copied());
        text + &self.names("intact", names_of(file, true).into_iter())
    }

    /// A line for each of some tensors, cut after a few.
    fn names<'a>(&self, what: &str, mut names: impl Iterator<Item = &'a str>) -> String {
        let listed = if self.long { usize::MAX } else { NAMES_MAX };
        let mut text = String::new();
        for name in names.by_ref().take(listed) {
            text += &format!("  {what}: {}\n", shown(name));
        }
        match names.count() {
            0 => text,
            more => text + &format!("  … and {more} more, --long lists all\n"),
        }
    }

    /// Checksums that are known, and what they really are.
    fn compare(&self, path: &Path) -> Result<Vec<Compared>, Failure> {
        let mut compared = Vec::new();
        if self.checksums {
            for file in files::readable(path)? {
                compared.append(&mut recorded(&file, self.unknown_dtypes)?);
            }
        }
        if let Some(expected) = &self.sha256 {
            let options = HashOptions {
                sha256: true,
                ..HashOptions::NONE
            };
            let one = files::readable(path)?;
            let [file] = &one[..] else {
                let (count, path) = (one.len(), shown_path(path));
                return Err(Failure::Usage(format!(
                    "--sha256 is for one file, and {path} stands for {count}"
                )));
            };
            let hashes = hashes(file, &options)?;
            compared.push(Compared {
                kind: "sha256",
                expected: expected.clone(),
                found: hashes.sha256,
            });
        }
        Ok(compared)
    }
}

/// What a file's metadata say of its hashes.
fn recorded(path: &Path, unknown_dtypes: bool) -> Result<Vec<Compared>, Failure> {
    let checkpoint = files::open_with(path, unknown_dtypes)?;
    let known = checkpoint
        .metadata()
        .map(recorded_hashes)
        .unwrap_or_default();
    if known.is_empty() {
        return Ok(Vec::new());
    }
    let options = HashOptions {
        data_sha256: true,
        sshs_model: true,
        ..HashOptions::NONE
    };
    let found = hashes(path, &options)?;
    let compared = known.into_iter().map(|(kind, expected)| {
        // Of the tensors in the order of the `safetensors` package, or in that of the file.
        let (anew, as_it_is) = (&found.sshs_model, &found.data_sha256);
        let found = match as_it_is.as_ref() == Some(&expected) {
            true => as_it_is.clone(),
            false => anew.clone().or_else(|| as_it_is.clone()),
        };
        Compared {
            kind,
            expected,
            found,
        }
    });
    Ok(compared.collect())
}

fn hashes(path: &Path, options: &HashOptions) -> Result<safelight_store::Hashes, Failure> {
    let progress = BytesProgress::new(false, &files::name(path), 0);
    Ok(location::hash(path, options, &mut |done, all| {
        progress.at(done, all)
    })?)
}

fn checksum_text(path: &Path, checksum: &Compared) -> String {
    let (path, kind) = (shown_path(path), checksum.kind);
    let found = checksum.found.as_deref().unwrap_or("unknown");
    match checksum.matches() {
        true => format!("{path}: {kind} matches\n"),
        false => {
            let expected = say::tame(&checksum.expected, 80);
            format!("{path}: {kind} should be {expected}\n  but is {found}\n")
        }
    }
}

/// The message without the file's name, which stands before it already.
fn without(message: &str, file: &str) -> String {
    let prefix = format!("{}: ", shown(file));
    message.strip_prefix(&prefix).unwrap_or(message).to_owned()
}

fn file_json(file: &FileVerdict) -> Value {
    let (damaged, whole) = (names_of(file, false), names_of(file, true));
    let unreadable = file.unreadable.iter().map(|part| {
        json!({ "from": part.bytes.start, "to": part.bytes.end, "error": part.error.to_string() })
    });
    json!({
        "file": file.file, "bytes": file.file_bytes, "expected_bytes": file.expected_bytes,
        "intact": file.is_intact(), "problem": file.problem.as_ref().map(ToString::to_string),
        "unreadable": unreadable.collect::<Vec<_>>(),
        "tensor_count": file.header.as_ref().map(|_| damaged.len() + whole.len()),
        "whole_count": file.header.as_ref().map(|_| whole.len()),
        "damaged": damaged,
        "intact_tensors": whole,
    })
}

/// The names of the tensors that are whole, or of those that are not; at the end those of unknown dtypes.
fn names_of(file: &FileVerdict, whole: bool) -> Vec<&str> {
    let known: Vec<&str> = match whole {
        true => file.intact().map(|tensor| tensor.name).collect(),
        false => file.damaged().map(|tensor| tensor.name).collect(),
    };
    let opaque = file
        .opaque_tensors()
        .filter(|(_, is_whole)| *is_whole == whole);
    known
        .into_iter()
        .chain(opaque.map(|(tensor, _)| tensor.name))
        .collect()
}

/// All float tensors with numbers that are none.
fn not_finite(path: &Path, unknown_dtypes: bool) -> Result<Vec<NotFinite>, Failure> {
    let checkpoint = files::open_with(path, unknown_dtypes)?;
    let progress = BytesProgress::new(false, &files::name(path), checkpoint.file_bytes());
    let mut found = Vec::new();
    let mut values = Vec::new();
    for tensor in checkpoint.tensors().filter(|tensor| is_float(tensor.dtype)) {
        let (mut nan_count, mut infinite_count) = (0, 0);
        let mut offset = 0;
        while offset < tensor.byte_count() {
            let mut bytes = vec![0; PIECE_BYTES.min(tensor.byte_count() - offset) as usize];
            checkpoint.read_bytes_at(tensor.name, offset, &mut bytes)?;
            offset += bytes.len() as u64;
            progress.add(bytes.len() as u64)?;
            // A complex number is two floats; an F64 may be infinite only as an `f32`.
            if tensor.dtype == Dtype::F64 {
                let numbers = bytes.chunks_exact(8).map(|chunk| {
                    f64::from_le_bytes(chunk.try_into().expect("chunks have 8 bytes"))
                });
                numbers.for_each(|number| {
                    nan_count += u64::from(number.is_nan());
                    infinite_count += u64::from(number.is_infinite());
                });
                continue;
            }
            let dtype = match tensor.dtype {
                Dtype::C64 => Dtype::F32,
                dtype => dtype,
            };
            values.resize(bytes.len() * 8 / dtype.bits() as usize, 0.0);
            let decoded = decode_f32_into(dtype, &bytes, &mut values);
            decoded.map_err(|error| Failure::Model(error.to_string()))?;
            nan_count += values.iter().filter(|number| number.is_nan()).count() as u64;
            infinite_count += values.iter().filter(|number| number.is_infinite()).count() as u64;
        }
        if nan_count + infinite_count > 0 {
            let tensor = tensor.name.to_owned();
            found.push(NotFinite {
                tensor,
                nan_count,
                infinite_count,
            });
        }
    }
    checkpoint.unchanged()?;
    Ok(found)
}

/// Whether a type has numbers that are not finite.
fn is_float(dtype: Dtype) -> bool {
    !matches!(
        dtype,
        Dtype::Bool
            | Dtype::U8
            | Dtype::I8
            | Dtype::I16
            | Dtype::U16
            | Dtype::I32
            | Dtype::U32
            | Dtype::I64
            | Dtype::U64
            | Dtype::F4
            | Dtype::F6E2m3
            | Dtype::F6E3m2
    )
}
