//! Every deviation of a header from the format, not only the first: where it is, how bad it is and
//! what it means. Also what the format allows but a reader should know.
//!
//! The verdict is the parser's: a header has [`Severity::Error`]s just if [`Strictness::Compat`]
//! refuses it, and errors or [`Severity::Warning`]s just if [`Strictness::Spec`] does. The walk goes
//! on behind what it complains about; behind broken JSON it looks for the next entry.

mod rule;
mod text;
mod tiles;
mod walk;

use std::fmt;

pub use rule::{Rule, Severity};

use crate::error::{EntryField, FormatError};
use crate::header::{LENGTH_BYTES, Limits, Strictness, header_bytes, other_kind};
use crate::show::shown;

/// Names in findings are cut behind this many bytes.
const LABEL_BYTES_MAX: usize = 1024;

/// How a header is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LintOptions {
    /// What is too much, and an error.
    pub limits: Limits,
    /// More findings than this are counted, not listed: a hostile header can have millions.
    pub findings_max: usize,
}

impl Default for LintOptions {
    fn default() -> LintOptions {
        LintOptions {
            limits: Limits::default(),
            findings_max: 10_000,
        }
    }
}

/// One deviation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which rule it breaks; that says how bad it is.
    pub rule: Rule,
    /// Where, from the first byte of the file.
    pub at_byte: u64,
    /// The tensor's name (its first 1024 bytes), or `__metadata__`; `None` if it is about the file.
    pub tensor: Option<String>,
    /// The field of the tensor's entry, or the key of the metadata.
    pub field: Option<String>,
    /// What is there, with the numbers, on one line that is safe to print.
    pub explanation: String,
}

impl fmt::Display for Finding {
    /// `byte 123: error: not-json: explanation`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding {
            rule,
            at_byte,
            explanation,
            ..
        } = self;
        let severity = rule.severity();
        write!(f, "byte {at_byte}: {severity}: {rule}: {explanation}")
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LintReport {
    /// By byte.
    pub findings: Vec<Finding>,
    /// How many of each severity there are, listed or not: notes, warnings, errors.
    pub counts: [usize; 3],
    /// How many are not listed.
    pub left_out: usize,
}

impl LintReport {
    /// How many findings there are of one severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.counts[severity as usize]
    }

    /// Whether [`crate::Header::parse`] accepts the file in this mode.
    pub fn accepted_by(&self, strictness: Strictness) -> bool {
        let errors = self.count(Severity::Error);
        match strictness {
            Strictness::Compat => errors == 0,
            Strictness::Spec => errors + self.count(Severity::Warning) == 0,
        }
    }
}

impl LintReport {
    /// What is odd about the names that an index gives to tensors: they are looked at as those of a header. Beside each stands where it
    /// is in the index.
    pub fn of_index_names<'a>(
        names: impl Iterator<Item = (&'a str, u64)>,
        options: &LintOptions,
    ) -> LintReport {
        let mut findings = Findings::new(options.findings_max);
        for (name, at_byte) in names {
            text::name(name, b"", at_byte, &mut findings);
        }
        findings.report()
    }

    /// Adds a finding of someone else: about an index and its files.
    pub fn add(&mut self, finding: Finding, options: &LintOptions) {
        self.counts[finding.rule.severity() as usize] += 1;
        if self.findings.len() >= options.findings_max {
            self.left_out += 1;
            return;
        }
        let behind = |other: &Finding| other.at_byte <= finding.at_byte;
        let position = self.findings.partition_point(behind);
        self.findings.insert(position, finding);
    }
}

/// Looks at a header for everything that is wrong or odd about it.
///
/// `prefix` and `file_bytes` are as for [`crate::Header::parse`].
///
/// ```
/// use safelight_format::{LintOptions, Rule, lint};
/// let json = br#" {"a":{"dtype":"f32","shape":[1],"data_offsets":[0,4],"data_offsets":[0,4]}}"#;
/// let file = [&(json.len() as u64).to_le_bytes()[..], json, &[0; 4]].concat();
/// let report = lint(&file, file.len() as u64, &LintOptions::default())?;
/// let rules: Vec<Rule> = report.findings.iter().map(|finding| finding.rule).collect();
/// let expected = [Rule::HeaderUnaligned, Rule::LeadingSpace, Rule::UnknownDtype, Rule::DuplicateField];
/// assert_eq!(rules, expected);
/// # Ok::<(), safelight_format::FormatError>(())
/// ```
///
/// # Errors
/// Only [`FormatError::PrefixTooShort`]: what the caller gave is not the whole header.
pub fn lint(
    prefix: &[u8],
    file_bytes: u64,
    options: &LintOptions,
) -> Result<LintReport, FormatError> {
    let mut findings = Findings::new(options.findings_max);
    let header_bytes = match header_bytes(prefix, file_bytes, &options.limits) {
        Ok(header_bytes) => header_bytes,
        Err(error @ FormatError::PrefixTooShort { .. }) => return Err(error),
        Err(error) => {
            findings.error(&error, 0, None, None);
            return Ok(findings.report());
        }
    };
    let data_start = LENGTH_BYTES + header_bytes;
    let json = usize::try_from(data_start)
        .ok()
        .and_then(|end| prefix.get(LENGTH_BYTES as usize..end));
    let Some(json) = json else {
        return Err(FormatError::PrefixTooShort {
            have_bytes: prefix.len() as u64,
            need_bytes: data_start,
        });
    };
    if !data_start.is_multiple_of(8) {
        let what =
            format!("the header has {header_bytes} bytes, so tensor data is not aligned to 8");
        findings.note(Rule::HeaderUnaligned, 0, None, None, what);
    }
    let text = as_utf8(json, &mut findings);
    let seen = walk::walk(&text, &options.limits, &mut findings);
    let broken = findings.count(Rule::NotJson) > 0;
    if let (true, Some(kind)) = (
        broken && !text.trim_ascii_start().starts_with(b"{"),
        other_kind(prefix),
    ) {
        findings.error(&kind, 0, None, None);
    }
    tiles::check(&seen, &text, data_start, file_bytes, &mut findings);
    Ok(findings.report())
}

/// The header with `?` for each byte that is not UTF-8, which are findings.
fn as_utf8(json: &[u8], findings: &mut Findings) -> Vec<u8> {
    let mut text = Vec::with_capacity(json.len());
    for chunk in json.utf8_chunks() {
        text.extend_from_slice(chunk.valid().as_bytes());
        if !chunk.invalid().is_empty() {
            let at_byte = LENGTH_BYTES + text.len() as u64;
            findings.error(&FormatError::NotUtf8 { at_byte }, at_byte, None, None);
            text.resize(text.len() + chunk.invalid().len(), b'?');
        }
    }
    text
}

/// Findings as they come.
struct Findings {
    report: LintReport,
    by_rule: [usize; Rule::ALL.len()],
    findings_max: usize,
}

impl Findings {
    fn new(findings_max: usize) -> Findings {
        Findings {
            report: LintReport::default(),
            by_rule: [0; Rule::ALL.len()],
            findings_max,
        }
    }

    fn count(&self, rule: Rule) -> usize {
        self.by_rule[rule as usize]
    }

    /// Notes and warnings that need words of their own.
    fn note(
        &mut self,
        rule: Rule,
        at_byte: u64,
        tensor: Option<&str>,
        field: Option<&str>,
        explanation: String,
    ) {
        self.by_rule[rule as usize] += 1;
        self.report.counts[rule.severity() as usize] += 1;
        if self.report.findings.len() >= self.findings_max {
            self.report.left_out += 1;
            return;
        }
        self.report.findings.push(Finding {
            rule,
            at_byte,
            tensor: tensor.map(label),
            field: field.map(label),
            explanation,
        });
    }

    /// What the parser has words for.
    fn error(
        &mut self,
        error: &FormatError,
        at_byte: u64,
        tensor: Option<&str>,
        field: Option<EntryField>,
    ) {
        let field = field.map(|field| field.to_string());
        let what = error.to_string();
        self.note(Rule::of(error), at_byte, tensor, field.as_deref(), what);
    }

    fn report(mut self) -> LintReport {
        self.report.findings.sort_by_key(|finding| finding.at_byte);
        self.report
    }
}

/// As much of a name as a finding keeps: hostile headers have names of megabytes, and many findings
/// about each.
fn label(name: &str) -> String {
    name[..name.floor_char_boundary(LABEL_BYTES_MAX)].to_owned()
}

/// A name in backquotes, safe to print.
fn quoted(name: &str) -> String {
    format!("`{}`", shown(name))
}
