//! `safelight lint`: every deviation of a file from the format, with its place.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use safelight_format::{Finding, LintOptions, LintReport, Severity, Strictness};
use safelight_store::{Meant, lint, lint_targets, lint_together, list_label, listed_sets};
use serde_json::{Value, json};

use crate::error::Failure;
use crate::files::{self, Codes, FilesArgs, Outcome, Run, shown_path};
use crate::say;

pub(crate) const HELP: &str = "\
An error is what the reference implementation refuses, a warning what the format's description forbids though readers
accept it, a note what is allowed but worth knowing. Bytes are counted from the beginning of the file. An index is
looked at too, and whether its files hold what it says. Of a folder or quoted pattern without an index, and of files listed that are shards of one
model by their names (-00001-of-00003), it is said which are missing and which tensors are in two.

Examples:
  safelight lint model.safetensors
  safelight lint models --level error --json

JSON, one object a file: {file, accepted {compat, spec}, errors, warnings, notes, findings [{rule, severity, at_byte,
tensor, field, explanation}], left_out}.";

/// The arguments of `lint`.
#[derive(Debug, Args)]
pub(crate) struct LintArgs {
    #[command(flatten)]
    files: FilesArgs,
    /// Find what is at least so bad
    #[arg(short, long, value_name = "LEVEL", default_value = "warning")]
    level: Level,
    /// List at most so many findings a file; others are counted
    #[arg(short, long, value_name = "N", default_value_t = 1000)]
    max: usize,
}

/// How bad a finding must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Level {
    Note,
    Warning,
    Error,
}

impl Level {
    fn includes(self, severity: Severity) -> bool {
        match severity {
            Severity::Error => true,
            Severity::Warning => self != Level::Error,
            Severity::Note => self == Level::Note,
        }
    }
}

impl Run for LintArgs {
    fn wants_json(&self) -> bool {
        self.files.json
    }

    fn codes(&self) -> Codes {
        Codes::Finding
    }

    fn run(&self) -> Result<Outcome, Failure> {
        let mut outcome = Outcome::Clean;
        for set in listed_sets(&files::local(&self.files.files)) {
            outcome = outcome.max(self.lint_together(&list_label(&set), &set, true)?);
        }
        let each = files::each(&self.files, self.codes(), |path| {
            let path = files::on_disk(path)?;
            let mut outcome = Outcome::Clean;
            if let Meant::Files(files) = Meant::of(&path)? {
                outcome = self.lint_together(&files::name(&path), &files, false)?;
            }
            for file in lint_targets(&path)? {
                outcome = outcome.max(self.lint(&file)?);
            }
            Ok(outcome)
        });
        Ok(outcome.max(each?))
    }
}

impl LintArgs {
    fn lint(&self, path: &Path) -> Result<Outcome, Failure> {
        // Notes are cheap to leave out here, and must not push worse ones off the list.
        let options = LintOptions {
            limits: files::limits(),
            ..LintOptions::default()
        };
        let report = lint(path, &options)?;
        self.tell(path, &report)
    }

    /// Looks at what is between files that no index holds together, and says something if there is something.
    fn lint_together(
        &self,
        label: &str,
        paths: &[PathBuf],
        named: bool,
    ) -> Result<Outcome, Failure> {
        let options = LintOptions {
            limits: files::limits(),
            ..LintOptions::default()
        };
        let report = lint_together(label, paths, named, &options);
        match report.findings.is_empty() {
            true => Ok(Outcome::Clean),
            false => self.tell(Path::new(label), &report),
        }
    }

    fn tell(&self, path: &Path, report: &LintReport) -> Result<Outcome, Failure> {
        let mut wanted: Vec<&Finding> = report
            .findings
            .iter()
            .filter(|finding| self.level.includes(finding.rule.severity()))
            .collect();
        let counted = [Severity::Error, Severity::Warning, Severity::Note]
            .into_iter()
            .filter(|severity| self.level.includes(*severity))
            .map(|severity| report.count(severity))
            .sum::<usize>();
        wanted.truncate(self.max);
        let left_out = counted - wanted.len();
        if self.files.json {
            say::answer_json_line(&to_json(path, report, &wanted, left_out))?;
        } else {
            say::answer(&to_text(path, report, &wanted, left_out))?;
        }
        Ok(match counted {
            0 => Outcome::Clean,
            _ => Outcome::Found,
        })
    }
}

fn to_text(path: &Path, report: &LintReport, wanted: &[&Finding], left_out: usize) -> String {
    let file = shown_path(path);
    let mut text = String::new();
    for finding in wanted {
        text += &say::hanging(&format!("{file}: {finding}"));
    }
    if left_out > 0 {
        text += &format!("{file}: {left_out} more are not listed\n");
    }
    let count = |severity, word: &str| say::plural(report.count(severity) as u64, word);
    text += &format!(
        "{file}: {}, {}, {}\n",
        count(Severity::Error, "error"),
        count(Severity::Warning, "warning"),
        count(Severity::Note, "note")
    );
    text
}

fn to_json(path: &Path, report: &LintReport, wanted: &[&Finding], left_out: usize) -> Value {
    let findings = wanted.iter().map(|finding| {
        json!({
            "rule": finding.rule.to_string(), "severity": finding.rule.severity().to_string(), "at_byte": finding.at_byte,
            "tensor": finding.tensor, "field": finding.field, "explanation": finding.explanation,
        })
    });
    let findings: Vec<Value> = findings.collect();
    json!({
        "file": path.to_string_lossy(),
        "accepted": { "compat": report.accepted_by(Strictness::Compat), "spec": report.accepted_by(Strictness::Spec) },
        "errors": report.count(Severity::Error), "warnings": report.count(Severity::Warning), "notes": report.count(Severity::Note),
        "findings": findings, "left_out": left_out,
    })
}
