//! `safelight scan`: what files would do if they were loaded.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use safelight_convert::Limits;
use safelight_convert::scan::{ScanReport, Severity, sarif, scan};
use safelight_format::shown;
use serde_json::json;

use crate::error::Failure;
use crate::files::{self, Codes, Outcome, Run};
use crate::{interrupt, say};

pub(crate) const HELP: &str = "\
Looks into pickles, PyTorch files, safetensors, numpy files and archives of them, by content and not by name. Nothing is
executed. Pickles are held against a list of what tensors need: what is not on it is suspicious, what is known to run
code is dangerous, and what can't be looked into is suspicious too. Folders are walked; links in them are not followed.

Examples:
  safelight scan model.ckpt
  safelight scan downloads/ --json
  safelight scan . --sarif > scan.sarif

JSON, one object a file: file, kind, verdict (clean, suspicious, dangerous), findings [{severity, rule, member, at_byte,
message, count}], unlisted_count. `member` names the place in archives, joined by `!`; at_byte counts from its start.";

/// The arguments of `scan`.
#[derive(Debug, Args)]
pub(crate) struct ScanArgs {
    /// Files of any kind, or folders of them
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
            match scan(path, &Limits::default()) {
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
        for path in &self.paths {
            walk(&files::on_disk(path)?, &mut each)?;
        }
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
        let s = if all == 1 { "" } else { "s" };
        format!("{all} file{s}: {clean} clean, {suspicious} suspicious, {dangerous} dangerous\n")
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
        let mut text = format!(
            "{}: {verdict} ({})\n",
            shown(&report.file),
            shown(&report.kind)
        );
        for finding in findings {
            let place = match finding.member.is_empty() {
                true => format!("byte {}", finding.at_byte),
                false => format!("{}, byte {}", shown(&finding.member), finding.at_byte),
            };
            let times = match finding.count {
                0 | 1 => String::new(),
                count => format!(", {count} times"),
            };
            text += &format!(
                "  {:<10}  {}  [{}; {place}{times}]\n",
                finding.severity.word(),
                say::tame(&finding.message, 1000),
                finding.rule.name(),
            );
        }
        if report.unlisted_count > 0 {
            text += &format!("  and {} more\n", report.unlisted_count);
        }
        say::answer(&text)
    }
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
