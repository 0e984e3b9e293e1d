//! `safelight repair`: a file of what is left of a damaged one.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueHint};
use safelight_store::repair::Repair;
use serde_json::json;

use crate::error::Failure;
use crate::files::{self, Outcome, Run, shown_path};
use crate::progress::BytesProgress;
use crate::say;

pub(crate) const HELP: &str = "\
Every tensor whose bytes are all there is kept, undecoded; what can't be kept is named, with the reason. Padding, white
space, holes, overlaps, a wrong length prefix and tensors that are named twice are put in order. Without -o or
--in-place nothing is written: what would be done is told. --in-place replaces the file, atomically.

Nothing is guessed. Where the length prefix, the end of the header and the file's size contradict each other, or numbers
seem to have moved (bytes were inserted or lost in the middle, a text transfer, zeros that a download left), nothing is
written, and the exit code is 3; so it is if no tensor can be kept. --force writes all the same what is only doubtful.

Examples:
  safelight repair download.safetensors
  safelight repair download.safetensors -o rescued.safetensors

JSON: {file, needed, output, kept_count, unknown_count, kept_bytes, dropped [{what, why}], changes [TEXT], doubts [TEXT], bytes}; output and bytes are
null if nothing was written.";

/// As many dropped things as a text lists.
const LISTED_MAX: usize = 20;

/// The arguments of `repair`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("where").args(["output", "in_place"]))]
pub(crate) struct RepairArgs {
    /// The damaged safetensors file
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Write the repaired file here
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
    /// Replace the damaged file
    #[arg(long)]
    in_place: bool,
    /// Replace an output that is there; write a file even if it is doubtful, or no tensor can be kept
    #[arg(short, long, requires = "where")]
    force: bool,
    /// List all that is dropped
    #[arg(short, long)]
    long: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Run for RepairArgs {
    fn wants_json(&self) -> bool {
        self.json
    }

    fn run(&self) -> Result<Outcome, Failure> {
        let file = files::single(&self.file)?;
        if let Some(output) = &self.output {
            files::check_other(output, &file)?;
            files::check_free(output, self.force)?;
        }
        let repair = Repair::plan(&file, &files::limits())?;
        let target = match self.in_place {
            // A sound file stays as it is; a copy of it was asked for by name.
            true => repair.is_needed().then_some(&file),
            false => self.output.as_ref(),
        };
        if target.is_some() && is_in_vain(&repair) && !self.force {
            return Err(nothing_left(&repair));
        }
        if target.is_some() && !repair.doubts.is_empty() && !self.force {
            return Err(doubtful(&repair));
        }
        let written = match target {
            None => None,
            Some(target) => {
                let progress = BytesProgress::new(false, "repairing", repair.tensor_bytes());
                let written = repair.write(target, &mut |done, all| progress.at(done, all))?;
                Some(written.ok_or(Failure::Interrupted { saved: 0 })?)
            }
        };
        let output = written.and(target);
        if self.json {
            let dropped = repair.dropped.iter();
            let dropped: Vec<_> = dropped
                .map(|dropped| json!({ "what": dropped.what, "why": dropped.why }))
                .collect();
            say::answer_json_line(&json!({
                "file": self.file.to_string_lossy(), "needed": repair.is_needed(),
                "output": output.map(|path| path.to_string_lossy()), "kept_count": repair.tensor_count(),
                "unknown_count": repair.opaque_count(),
                "kept_bytes": repair.tensor_bytes(), "dropped": dropped, "changes": repair.changes, "doubts": repair.doubts, "bytes": written,
            }))?;
        } else {
            say::answer(&self.text(&repair, output))?;
        }
        // What was forced was told to be doubtful, or to be nothing.
        let is_found = is_in_vain(&repair) || !repair.doubts.is_empty();
        Ok(match output {
            None if is_found => Outcome::Found,
            _ => Outcome::Clean,
        })
    }
}

/// Numbers that may be wrong, in a file that looks sound, are worse than none.
fn doubtful(repair: &Repair) -> Failure {
    Failure::Model(format!(
        "{}: {}; nothing was written (--force writes what the header says all the same)",
        shown_path(repair.path()),
        repair.doubts.join("; ")
    ))
}

/// Whether nothing of what was there can be kept.
fn is_in_vain(repair: &Repair) -> bool {
    repair.tensor_count() == 0 && !repair.dropped.is_empty()
}

/// A file without tensors in the place of a damaged one helps nobody, and hides that there was something.
fn nothing_left(repair: &Repair) -> Failure {
    let what = match &repair.dropped[..] {
        [] => String::new(),
        [first] => format!(" ({first})"),
        [first, rest @ ..] => format!(" ({first}; and {} more)", rest.len()),
    };
    Failure::Model(format!(
        "{}: no tensor of it can be kept{what}, so nothing was written; --force writes a file without tensors",
        shown_path(repair.path())
    ))
}

impl RepairArgs {
    fn text(&self, repair: &Repair, output: Option<&PathBuf>) -> String {
        let file = shown_path(&self.file);
        let (count, bytes) = (repair.tensor_count(), say::bytes(repair.tensor_bytes()));
        let tensors = say::plural(count as u64, "tensor");
        let mut text = String::new();
        if !repair.is_needed() && repair.doubts.is_empty() {
            text += &format!("{file}: nothing to repair\n");
        }
        for doubt in &repair.doubts {
            text += &say::hanging(&format!("doubtful: {doubt}"));
        }
        for change in &repair.changes {
            text += &say::hanging(&format!("changed: {change}"));
        }
        let listed = if self.long {
            repair.dropped.len()
        } else {
            LISTED_MAX
        };
        for dropped in repair.dropped.iter().take(listed) {
            text += &say::hanging(&format!("dropped: {dropped}"));
        }
        if repair.dropped.len() > listed {
            let more = repair.dropped.len() - listed;
            text += &format!("dropped: {more} more; --long lists all\n");
        }
        if repair.opaque_count() > 0 {
            let count = repair.opaque_count();
            text += &say::hanging(&format!(
                "kept as bytes: {count} of unknown dtypes; with --unknown-dtypes other commands read them"
            ));
        }
        match output {
            Some(output) => {
                text += &say::hanging(&format!(
                    "{}: {tensors}, {bytes}, written",
                    shown_path(output)
                ));
            }
            None if !repair.doubts.is_empty() => {
                text += &say::hanging(&format!(
                    "{file}: no repair is sure; --force with -o or --in-place writes what the header says"
                ));
            }
            None if is_in_vain(repair) => {
                text += &say::hanging(&format!(
                    "{file}: no tensor can be kept; --force with -o or --in-place writes a file without tensors"
                ));
            }
            None if repair.is_needed() => {
                text += &say::hanging(&format!(
                    "{file}: {tensors}, {bytes}, can be kept; name a file with -o, or say --in-place"
                ));
            }
            None => {}
        }
        text
    }
}
