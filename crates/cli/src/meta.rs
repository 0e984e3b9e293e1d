//! `safelight meta`: what a file says about itself, read and edited.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueHint};
use safelight_format::{Metadata, shown};
use serde_json::json;

use crate::error::Failure;
use crate::files::{self, Outcome, Run};
use crate::say;

pub(crate) const HELP: &str = "\
Examples:
  safelight meta get model.safetensors
  safelight meta get model.safetensors modelspec.title

JSON: get prints {file, metadata {KEY: TEXT}}, or {file, key, value} if a KEY is given.";

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
}

#[derive(Debug, Args)]
struct GetArgs {
    /// A tensor file, shards (*.index.json) or a folder of them
    #[arg(value_name = "FILE", value_hint = ValueHint::AnyPath)]
    file: PathBuf,
    /// Print the text of this key and nothing else
    key: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Run for MetaArgs {
    fn wants_json(&self) -> bool {
        match &self.job {
            Job::Get(args) => args.json,
        }
    }

    fn run(&self) -> Result<Outcome, Failure> {
        match &self.job {
            Job::Get(args) => get(args)?,
        }
        Ok(Outcome::Clean)
    }
}

fn get(args: &GetArgs) -> Result<(), Failure> {
    let checkpoint = files::open(&args.file)?;
    let metadata = checkpoint.metadata().cloned().unwrap_or_default();
    let file = args.file.to_string_lossy();
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
    let text = match std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        true => say::harmless(value),
        false => value.clone(),
    };
    say::answer(&format!("{text}\n"))
}

/// The keys that are there, for one that is not.
fn no_such_key(file: &Path, key: &str, metadata: &Metadata) -> Failure {
    let keys: Vec<String> = metadata
        .keys()
        .take(8)
        .map(|key| shown(key).to_string())
        .collect();
    let there = match (keys.len(), metadata.len()) {
        (0, _) => "it has no metadata".to_owned(),
        (few, all) if few < all => format!("there are {all}, such as {}", keys.join(", ")),
        _ => format!("there is {}", keys.join(", ")),
    };
    let file = shown(&file.to_string_lossy()).to_string();
    Failure::Usage(format!("{file}: no metadata key `{}`; {there}", shown(key)))
}

/// `key: text` on one line each; JSON in a value stays on its line, and what is long is cut.
fn listed(metadata: &Metadata) -> String {
    let line = |(key, value): (&String, &String)| {
        let columns = say::columns().saturating_sub(shown(key).to_string().chars().count() + 3);
        format!(
            "{}: {}\n",
            shown(key),
            say::tame(value, columns.clamp(20, 300))
        )
    };
    metadata.iter().map(line).collect()
}
