//! `safelight meta`: what a file says about itself, read and edited.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueHint};
use safelight_format::{Metadata, shown};
use safelight_store::StoreError;
use safelight_store::edit::{
    EditOptions, Edited, How, Strategy, WhyCopied, check_metadata, set_metadata_with,
};
use serde_json::json;
use unicode_width::UnicodeWidthStr as _;

use crate::error::Failure;
use crate::files::{self, Outcome, Run, shown_path};
use crate::progress::BytesProgress;
use crate::say;

pub(crate) const HELP: &str = "\
Values are text. `KEY=@FILE` takes the text from a file (`KEY=@-` from standard input); `KEY=@@text` sets the text
`@text`. The header is changed in place if it has room (an undo record makes that safe to interrupt). Without room the file is
copied, and the answer says so; the copy has room, so that the next edit is made in place. Of shards (an index, a folder, a quoted pattern), each
file is edited; none is touched unless all can be. If the machine fails later on, the error names the files that were changed and those that were not.

Examples:
  safelight meta get model.safetensors
  safelight meta get model.safetensors modelspec.title
  safelight meta set model.safetensors modelspec.title='A house' modelspec.license=@LICENSE
  safelight meta rm model.safetensors ss_tag_frequency

JSON: get prints {file, metadata {KEY: TEXT}}, or {file, key, value} if a KEY is given; set and rm print {file, set [KEY],
removed [KEY], files [{file, how, why, bytes}]} (after a failure midway {error, changed [FILE], unchanged [FILE]}), where how is \"in place\", \"cloned\", \"copied\" or \"unchanged\", and why (null unless copied) says what for.";

/// More text than this makes headers that no reader accepts.
const VALUE_BYTES_MAX: u64 = 100_000_000;

/// A list shows the beginning of longer values.
const VALUE_LENGTH_MAX: usize = 300;

/// The arguments of `meta`.
#[derive(Debug, Args)]
pub(crate) struct MetaArgs {
    #[command(subcommand)]
    job: Job,
}

#[derive(Debug, Subcommand)]
enum Job {
    /// Print a file's metadata, or the text of one key
    Get(GetArgs),
    /// Set keys; others stay
    Set(SetArgs),
    /// Remove keys; others stay
    Rm(RmArgs),
}

#[derive(Debug, Args)]
struct GetArgs {
    /// A safetensors file, shards (*.index.json) or a folder of them
    #[arg(value_name = "FILE", value_hint = ValueHint::AnyPath)]
    file: PathBuf,
    /// Print the text of this key and nothing else
    key: Option<String>,
    /// Also of files with tensors of dtypes that the format does not have
    #[arg(long)]
    unknown_dtypes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct SetArgs {
    /// A safetensors file, shards (*.index.json) or a folder of them
    #[arg(value_name = "FILE", value_hint = ValueHint::AnyPath)]
    file: PathBuf,
    /// What to set
    #[arg(required = true, value_name = "KEY=VALUE", value_parser = assignment)]
    values: Vec<(String, String)>,
    #[command(flatten)]
    how: HowArgs,
}

#[derive(Debug, Args)]
struct RmArgs {
    /// A safetensors file, shards (*.index.json) or a folder of them
    #[arg(value_name = "FILE", value_hint = ValueHint::AnyPath)]
    file: PathBuf,
    /// What to remove
    #[arg(required_unless_present = "all", value_name = "KEY")]
    keys: Vec<String>,
    /// Remove all keys
    #[arg(long, conflicts_with = "keys")]
    all: bool,
    #[command(flatten)]
    how: HowArgs,
}

/// How a file may be changed.
#[derive(Debug, Args)]
struct HowArgs {
    /// Overwrite the header or fail: never copy the file
    #[arg(long, conflicts_with = "copy")]
    in_place: bool,
    /// Write a new file and rename it into the old one's place
    #[arg(long)]
    copy: bool,
    /// Also of files with tensors of dtypes that the format does not have; they stay as they are
    #[arg(long)]
    unknown_dtypes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl HowArgs {
    fn options(&self) -> EditOptions {
        let strategy = match (self.in_place, self.copy) {
            (true, _) => Strategy::InPlace,
            (_, true) => Strategy::Copy,
            _ => Strategy::Auto,
        };
        EditOptions {
            strategy,
            limits: files::limits(),
            opaque_dtypes: self.unknown_dtypes,
            ..EditOptions::default()
        }
    }
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("the key is missing before `=`".into()),
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err("a key, `=` and a value are needed, as in title=House".into()),
    }
}

impl Run for MetaArgs {
    fn wants_json(&self) -> bool {
        match &self.job {
            Job::Get(args) => args.json,
            Job::Set(args) => args.how.json,
            Job::Rm(args) => args.how.json,
        }
    }

    fn run(&self) -> Result<Outcome, Failure> {
        match &self.job {
            Job::Get(args) => get(args)?,
            Job::Set(args) => set(args)?,
            Job::Rm(args) => remove(args)?,
        }
        Ok(Outcome::Clean)
    }
}

fn get(args: &GetArgs) -> Result<(), Failure> {
    let checkpoint = files::open_with(&args.file, args.unknown_dtypes)?;
    let metadata = checkpoint.metadata().cloned().unwrap_or_default();
    let file = files::name(&args.file);
    let Some(key) = &args.key else {
        if args.json {
            return say::answer_json_line(&json!({ "file": file, "metadata": metadata }));
        }
        return say::answer(&listed(&metadata));
    };
    let Some(value) = metadata.get(key) else {
        return Err(no_such_key(&args.file, key, &metadata));
    };
    if args.json {
        return say::answer_json_line(&json!({ "file": file, "key": key, "value": value }));
    }
    // Into a pipe or a file the text goes as it is; a terminal must not be commanded by it.
    let text = match std::io::stdout().is_terminal() {
        true => say::harmless(value),
        false => value.clone(),
    };
    say::answer(&format!("{text}\n"))
}

fn set(args: &SetArgs) -> Result<(), Failure> {
    let mut changes = BTreeMap::new();
    for (key, value) in &args.values {
        let text = match value.strip_prefix('@') {
            Some(literal) if literal.starts_with('@') => literal.to_owned(),
            Some(path) => text_of(path)?,
            None => value.clone(),
        };
        if changes.insert(key.clone(), Some(text)).is_some() {
            let key = shown(key);
            return Err(Failure::Usage(format!(
                "`{key}` is set twice; give it one value"
            )));
        }
    }
    change(&args.file, &changes, &args.how)
}

fn remove(args: &RmArgs) -> Result<(), Failure> {
    // Of shards, each may have other keys.
    let members = files::whole(&args.file)?;
    let mut there = Metadata::new();
    for file in &members {
        there.extend(
            files::open_with(file, args.how.unknown_dtypes)?
                .metadata()
                .cloned()
                .unwrap_or_default(),
        );
    }
    let keys: Vec<String> = match args.all {
        true => there.keys().cloned().collect(),
        false => args.keys.clone(),
    };
    if let Some(missing) = keys.iter().find(|key| !there.contains_key(*key)) {
        return Err(no_such_key(&args.file, missing, &there));
    }
    let changes = keys.into_iter().map(|key| (key, None)).collect();
    change(&args.file, &changes, &args.how)
}

/// The text of a file, or of standard input (`-`).
fn text_of(path: &str) -> Result<String, Failure> {
    let failed = |error: std::io::Error| {
        Failure::Usage(format!(
            "can't read the value from {}: {error}",
            shown(path)
        ))
    };
    let mut bytes = Vec::new();
    if path == "-" {
        let input = std::io::stdin().lock();
        input.take(VALUE_BYTES_MAX + 1).read_to_end(&mut bytes)
    } else {
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(VALUE_BYTES_MAX + 1).read_to_end(&mut bytes)
    }
    .map_err(failed)?;
    if bytes.len() as u64 > VALUE_BYTES_MAX {
        return Err(Failure::Usage(format!(
            "{}: more than {VALUE_BYTES_MAX} bytes, which no header can hold",
            shown(path)
        )));
    }
    let not_text = |_| Failure::Usage(format!("{}: no UTF-8 text; metadata is text", shown(path)));
    String::from_utf8(bytes).map_err(not_text)
}

fn change(
    file: &Path,
    changes: &BTreeMap<String, Option<String>>,
    how: &HowArgs,
) -> Result<(), Failure> {
    let edits = edited(file, changes, how)?;
    let keys = |set: bool| -> Vec<&String> {
        let wanted = changes.iter().filter(|(_, value)| value.is_some() == set);
        wanted.map(|(key, _)| key).collect()
    };
    let (set, removed) = (keys(true), keys(false));
    if how.json {
        let files = edits.iter().map(|(path, edited)| {
            json!({ "file": path.to_string_lossy(), "how": how_word(edited.how), "why": edited.why_copied.map(why_copied), "bytes": edited.file_bytes })
        });
        let files: Vec<_> = files.collect();
        return say::answer_json_line(&json!({
            "file": file.to_string_lossy(), "set": set, "removed": removed, "files": files,
        }));
    }
    let what = match (set.len(), removed.len()) {
        (0, count) => format!("{} removed", say::plural(count as u64, "key")),
        (count, _) => format!("{} set", say::plural(count as u64, "key")),
    };
    let lines = edits.iter().map(|(path, edited)| {
        let done = match edited.how {
            How::Unchanged => "nothing had to change".to_owned(),
            How::InPlace => format!("{what}, in place"),
            How::Cloned => format!("{what}, in a clone that shares its data with the old file"),
            How::Copied => format!("{what}, in a copy of {}", say::bytes(edited.file_bytes)),
        };
        let why = edited.why_copied.map(why_copied);
        let why = why.map_or(String::new(), |why| format!(": {why}"));
        say::hanging(&format!("{}: {done}{why}", shown_path(path)))
    });
    say::answer(&lines.collect::<String>())
}

/// Edits every file that `file` stands for. All are checked before the first is touched; what still goes wrong then is told with the names
/// of those that have changed and those that have not.
fn edited(
    file: &Path,
    changes: &BTreeMap<String, Option<String>>,
    how: &HowArgs,
) -> Result<Vec<(PathBuf, Edited)>, Failure> {
    let members = files::whole(file)?;
    for member in &members {
        check_metadata(member, changes, &how.options()).map_err(refused)?;
    }
    let mut edits: Vec<(PathBuf, Edited)> = Vec::new();
    for member in &members {
        let progress = BytesProgress::new(how.json, "copying", 0);
        let edited = set_metadata_with(member, changes, &how.options(), &|done, all| {
            progress.at(done, all)
        });
        drop(progress);
        match edited {
            Ok(edited) => edits.push((member.clone(), edited)),
            Err(error) => return Err(after(&edits, &members, refused(error))),
        }
    }
    Ok(edits)
}

fn refused(error: StoreError) -> Failure {
    match error {
        StoreError::Stopped { .. } => Failure::Interrupted { saved: 0 },
        StoreError::NoRoom { .. } => Failure::Usage(format!("{error}: leave out --in-place")),
        error => error.into(),
    }
}

/// A failure, with what had been changed before it.
fn after(edits: &[(PathBuf, Edited)], members: &[PathBuf], failure: Failure) -> Failure {
    let changed = edits
        .iter()
        .filter(|(_, edited)| edited.how != How::Unchanged);
    let changed: Vec<PathBuf> = changed.map(|(path, _)| path.clone()).collect();
    if changed.is_empty() {
        return failure;
    }
    let unchanged = members.iter().filter(|path| !changed.contains(path));
    Failure::SomeChanged {
        failure: Box::new(failure),
        unchanged: unchanged.cloned().collect(),
        changed,
    }
}

/// Why a file was copied though a header is smaller.
fn why_copied(why: WhyCopied) -> String {
    match why {
        WhyCopied::Asked => "asked for".to_owned(),
        WhyCopied::NoRoom {
            need_bytes,
            room_bytes,
        } => format!("the header needs {need_bytes} bytes and had room for {room_bytes}"),
        WhyCopied::NoLocks => {
            "this file system has no locks, so nothing is changed in place".to_owned()
        }
        _ => "more than the header changes".to_owned(),
    }
}

fn how_word(how: How) -> &'static str {
    match how {
        How::Unchanged => "unchanged",
        How::InPlace => "in place",
        How::Cloned => "cloned",
        How::Copied => "copied",
    }
}

/// The keys that are there, for one that is not.
fn no_such_key(file: &Path, key: &str, metadata: &Metadata) -> Failure {
    let keys = metadata.keys().take(8);
    let keys: Vec<String> = keys.map(|key| shown(key).to_string()).collect();
    let there = match (keys.len(), metadata.len()) {
        (0, _) => "it has no metadata".to_owned(),
        (few, all) if few < all => format!("there are {all}, such as {}", keys.join(", ")),
        _ => format!("there is {}", keys.join(", ")),
    };
    let file = shown_path(file);
    Failure::Usage(format!("{file}: no metadata key `{}`; {there}", shown(key)))
}

/// `key: text` on one line each; what is long is cut.
fn listed(metadata: &Metadata) -> String {
    let line = |(key, value): (&String, &String)| {
        let key = shown(key).to_string();
        let value = say::tame(value, VALUE_LENGTH_MAX);
        let columns = say::columns().saturating_sub(key.width() + 2);
        match value.width() > columns {
            true => say::hanging(&format!("{key}: {value}")),
            false => format!("{key}: {value}\n"),
        }
    };
    metadata.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments() {
        assert_eq!(assignment("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(assignment("a="), Ok(("a".into(), String::new())));
        assert!(assignment("=b").is_err() && assignment("ab").is_err());
    }

    #[test]
    fn lists_are_tame() {
        let metadata = [("a\u{1b}".to_owned(), "x\u{1b}[2J\ny".to_owned())].into();
        let text = listed(&metadata);
        assert!(
            !text.contains('\u{1b}') && text.lines().count() == 1,
            "{text}"
        );
    }
}
