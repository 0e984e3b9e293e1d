//! `safelight scan`: what files would do if they were loaded.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use safelight_convert::scan::{Finding, ScanReport, Severity, sarif, scan, warnings};
use safelight_convert::{ConvertError, Note};
use safelight_format::shown;
use safelight_store::{matching_all, model_files};
use serde_json::json;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::error::Failure;
use crate::files::{self, Codes, Outcome, Run};
use crate::{interrupt, say};

pub(crate) const HELP: &str = "\
Looks into pickles, PyTorch files, safetensors, numpy, ONNX and Flax files and archives of them, by content and not by name. Nothing is
executed. Pickles are held against a list of what tensors need: what is not on it is suspicious, what is known to run
code is dangerous, and what can't be looked into is suspicious too: so is a data.pkl that is no pickle, and what stands
behind arrays and storages is looked into. Strings in a pickle that are pickles themselves run only if a program loads
them in turn: what they would run is suspicious. An ONNX model that has files opened outside of its folder is dangerous. A file that changes while it is read is an error. Folders are walked; links in them are not followed. The last line sums up.

Examples:
  safelight scan model.ckpt
  safelight scan downloads/ --json
  safelight scan . --sarif > scan.sarif

JSON, one object a file: file, kind, verdict (clean, suspicious, dangerous), findings [{severity, rule, member, at_byte,
message, count}], unlisted_count. `member` names the place in archives, joined by `!`; at_byte counts from its start.";

/// The arguments of `scan`.
#[derive(Debug, Args)]
pub(crate) struct ScanArgs {
    /// Files of any kind, folders of them, or quoted patterns
    #[arg(required = true, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    paths: Vec<PathBuf>,
    /// Print JSON: one object a file, each on a line
    #[arg(long, conflicts_with = "sarif")]
    json: bool,
    /// Print one SARIF 2.1.0 log of all files, for code hosts and editors
    #[arg(long)]
    sarif: bool,
    /// Show what is allowed as well
    #[arg(short, long)]
    all: bool,
    /// Exit with 1 only for dangerous findings
    #[arg(long)]
    dangerous_only: bool,
}

impl Run for ScanArgs {
    fn wants_json(&self) -> bool {
        self.json
    }

    fn codes(&self) -> Codes {
        Codes::Finding
    }

    fn run(&self) -> Result<Outcome, Failure> {
        let mut reports = Vec::new(); // for SARIF, which is one log
        let mut tally = Tally::default();
        let mut failed = None;
        let mut each = |path: &Path| {
            interrupt::check()?;
            match scan(path, &files::all_limits()) {
                Ok(report) => {
                    tally.add(&report);
                    self.tell(&report)?;
                    if self.sarif {
                        reports.push(report);
                    }
                }
                Err(error) => {
                    let failure = Failure::Model(error.to_string());
                    say::failure(&failure, 2, self.json);
                    failed.get_or_insert(failure);
                }
            }
            Ok(())
        };
        let mut wrong = None;
        for path in &self.paths {
            match found(&files::on_disk(path)?) {
                Ok(mut paths) => {
                    let shards = paths
                        .iter()
                        .filter(|path| is_index(path))
                        .map(|path| shards_of(path));
                    match shards.collect::<Result<Vec<_>, _>>() {
                        Ok(shards) => paths.extend(shards.into_iter().flatten()),
                        Err(failure) => {
                            say::failure(&failure, 2, self.json);
                            wrong.get_or_insert(failure);
                        }
                    }
                    paths.iter().try_for_each(|path| walk(path, &mut each))?;
                }
                Err(failure) => {
                    say::failure(&failure, 2, self.json);
                    wrong.get_or_insert(failure);
                }
            }
        }
        let failed = failed.or(wrong);
        if self.sarif {
            say::answer_json(&sarif(&reports))?;
        } else if !self.json {
            say::answer(&tally.line())?;
        }
        if let Some(failure) = failed {
            return Err(Failure::Told(Box::new(failure)));
        }
        let counts = match self.dangerous_only {
            true => tally.dangerous,
            false => tally.dangerous + tally.suspicious,
        };
        Ok(if counts > 0 {
            Outcome::Found
        } else {
            Outcome::Clean
        })
    }
}

/// How many files ended how.
#[derive(Default)]
struct Tally {
    clean: u64,
    suspicious: u64,
    dangerous: u64,
}

impl Tally {
    fn add(&mut self, report: &ScanReport) {
        match report.worst() {
            Some(Severity::Dangerous) => self.dangerous += 1,
            Some(Severity::Suspicious) => self.suspicious += 1,
            _ => self.clean += 1,
        }
    }

    fn line(&self) -> String {
        let Tally {
            clean,
            suspicious,
            dangerous,
        } = self;
        let all = clean + suspicious + dangerous;
        let files = say::plural(all, "file");
        format!("{files}: {clean} clean, {suspicious} suspicious, {dangerous} dangerous\n")
    }
}

impl ScanArgs {
    fn tell(&self, report: &ScanReport) -> Result<(), Failure> {
        if self.sarif {
            return Ok(());
        }
        let wanted = |severity: Severity| self.all || severity > Severity::Allowed;
        let findings = report
            .findings
            .iter()
            .filter(|finding| wanted(finding.severity));
        let verdict = match report.worst() {
            Some(severity) if severity > Severity::Allowed => severity.word(),
            _ => "clean",
        };
        if self.json {
            let findings: Vec<_> = findings
                .map(|finding| {
                    json!({
                        "severity": finding.severity.word(),
                        "rule": finding.rule.name(),
                        "member": finding.member,
                        "at_byte": finding.at_byte,
                        "message": finding.message,
                        "count": finding.count,
                    })
                })
                .collect();
            return say::answer_json_line(&json!({
                "file": report.file,
                "kind": report.kind,
                "verdict": verdict,
                "findings": findings,
                "unlisted_count": report.unlisted_count,
            }));
        }
        let columns = match say::columns() {
            usize::MAX => COLUMNS,
            columns => columns,
        };
        let (file, what) = (
            shown(&report.file).to_string(),
            format!("{verdict} ({})", shown(&report.kind)),
        );
        let mut text = match file.width() + what.width() + 2 <= columns {
            true => format!("{file}: {what}\n"),
            false => format!("{file}:\n  {what}\n"),
        };
        for finding in findings {
            let place = match finding.member.is_empty() {
                true => format!("byte {}", finding.at_byte),
                false => format!("{}, byte {}", shown(&finding.member), finding.at_byte),
            };
            let times = match finding.count {
                0 | 1 => String::new(),
                count => format!(", {count} times"),
            };
            let start = format!("  {:<10}  ", finding.severity.word());
            let message = say::tame(&finding.message, 1000);
            let place = format!("[{}; {place}{times}]", finding.rule.name());
            text += &row(&start, &message, &place, columns);
        }
        if report.unlisted_count > 0 {
            text += &format!("  and {} more\n", report.unlisted_count);
        }
        say::answer(&text)
    }
}

/// As wide as rows are where nothing says how wide they may be.
const COLUMNS: usize = 80;

/// A row of so many columns at most, or several where it does not fit: what follows stands below the message.
fn row(start: &str, message: &str, place: &str, columns: usize) -> String {
    let whole = format!("{start}{message}  {place}");
    if whole.width() <= columns {
        return whole + "\n";
    }
    let indent = start.width();
    let room = columns.saturating_sub(indent).max(16);
    let mut lines = wrapped(message, room);
    lines.extend(wrapped(place, room));
    let mut text = String::new();
    for (count, line) in lines.iter().enumerate() {
        let before = if count == 0 {
            start.to_owned()
        } else {
            " ".repeat(indent)
        };
        text += &format!("{before}{line}\n");
    }
    text
}

/// Lines of at most so many columns, broken between words; within them only where one is longer than a line.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let width = word.width();
        if used > 0 && used + 1 + width <= columns {
            lines.last_mut().expect("never empty").push(' ');
            used += 1;
        } else if used > 0 {
            lines.push(String::new());
            used = 0;
        }
        for c in word.chars() {
            let width = c.width().unwrap_or(0);
            if used + width > columns {
                lines.push(String::new());
                used = 0;
            }
            lines.last_mut().expect("never empty").push(c);
            used += width;
        }
    }
    lines
}

/// Findings of a file that was converted, at most.
const WARNINGS_MAX: usize = 20;

/// What of a file other programs would run if they loaded it, while here only its tensors were read.
pub(crate) fn not_converted(path: &Path) -> Vec<Finding> {
    if !path.is_file() {
        return Vec::new();
    }
    warnings(path, &files::all_limits()).unwrap_or_default()
}

/// Says on standard error what a converted file holds beside its tensors; gives the same as notes.
pub(crate) fn warn(path: &Path, findings: &[Finding]) -> Vec<Note> {
    if findings.is_empty() {
        return Vec::new();
    }
    let file = files::shown_path(path);
    let mut notes: Vec<Note> = findings
        .iter()
        .take(WARNINGS_MAX)
        .map(|finding| {
            let what = format!("{}: {}", finding.severity.word(), finding.message);
            Note::new(&finding.member, what)
        })
        .collect();
    for finding in findings.iter().take(3) {
        let place = match finding.member.is_empty() {
            true => String::new(),
            false => format!("{}, ", shown(&finding.member)),
        };
        say::note(&format!(
            "warning: {file}: {} [{place}byte {}]",
            say::tame(&finding.message, 300),
            finding.at_byte
        ));
    }
    let count = say::plural(findings.len() as u64, "finding");
    let advice = format!(
        "{count}: nothing of that was run, and it is not in the result; do not load the original \
         elsewhere before you have seen what `safelight scan` says of it"
    );
    say::note(&format!("warning: {file}: {advice}"));
    notes.push(Note::new("", advice));
    notes
}

/// Why a file is refused that could not be read as a model: if it is a pickle that asks for code, what it asks for; if it is not
/// what its name says, what it is.
pub(crate) fn refusal(path: &Path) -> Option<Failure> {
    let error = safelight_convert::open(path, &files::all_limits()).err()?;
    let says_more = matches!(
        error,
        ConvertError::RefusedGlobal { .. } | ConvertError::NotAsNamed { .. }
    );
    says_more.then(|| error.into())
}

/// A path, or what fits it if it is a pattern, folders too.
fn found(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    Ok(matching_all(path)?.unwrap_or_else(|| vec![path.to_owned()]))
}

/// Whether a path is that of an index, by its name.
fn is_index(path: &Path) -> bool {
    path.to_string_lossy().ends_with(".safetensors.index.json") && path.is_file()
}

/// The files that an index stands for, there or not.
fn shards_of(index: &Path) -> Result<Vec<PathBuf>, Failure> {
    Ok(model_files(index)?)
}

/// Every file below a path, in the order of names. Links within folders are not followed; a link that was named is.
fn walk(path: &Path, each: &mut dyn FnMut(&Path) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut todo = vec![path.to_owned()];
    while let Some(path) = todo.pop() {
        if !path.is_dir() {
            each(&path)?;
            continue;
        }
        let failed = |error: std::io::Error| {
            Failure::Model(format!(
                "can't read the folder {}: {error}",
                files::shown_path(&path)
            ))
        };
        let mut inner = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() || kind.is_file() {
                inner.push(entry.path());
            }
        }
        inner.sort();
        todo.extend(inner.into_iter().rev());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fit() {
        let start = "  suspicious  ";
        assert_eq!(
            row(start, "short", "[rule; byte 1]", 80),
            "  suspicious  short  [rule; byte 1]\n"
        );
        let message = format!("would have run: os.system('{}')", "x y ".repeat(40));
        for columns in [30, 80, 100] {
            let text = row(
                start,
                &message,
                "[pickle-call; a/b/data.pkl, byte 2]",
                columns,
            );
            assert!(text.lines().all(|line| line.width() <= columns), "{text}");
            assert!(text.starts_with("  suspicious  would"), "{text}");
            let words: Vec<&str> = text.split_whitespace().skip(1).collect();
            let expected = format!("{message} [pickle-call; a/b/data.pkl, byte 2]");
            let expected: Vec<&str> = expected.split_whitespace().collect();
            assert!(columns < 80 || words == expected, "{text}");
        }
        assert_eq!(wrapped("abcdefgh", 3), ["abc", "def", "gh"]);
        assert_eq!(wrapped("漢字漢字", 5), ["漢字", "漢字"]);
        assert_eq!(wrapped("", 5), [""]);
    }
}
