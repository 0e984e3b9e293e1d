//! Files that hold data alone, if they are what they seem: numpy arrays, safetensors, Keras models.

use safelight_format::{
    Header, LintOptions, Severity as LintSeverity, Strictness, header_bytes, lint, shown,
};
use safelight_store::ReadAt;

use super::{Rule, Scanner, Severity};
use crate::bytes::{Part, read_exact_at, read_up_to};
use crate::npy;
use crate::pickle::printable;

/// What is searched at once.
const WINDOW_BYTES: usize = 1024 * 1024;

/// As far as a model file is searched for layers.
const SEARCHED_BYTES_MAX: u64 = 256 * 1024 * 1024;

impl Scanner<'_> {
    /// A numpy array: one of objects is a pickle behind the header. What follows the elements is looked into as well.
    pub(super) fn npy(&mut self, bytes: &dyn ReadAt, start: &[u8], member: &str, depth: u32) {
        let header_end = npy::header_end(start);
        let Some(text) = npy::header_text(start) else {
            let why = match header_end {
                Err(why) => why,
                Ok(_) => "its header is cut off".into(),
            };
            let message = format!("a numpy array without a whole header: {why}");
            self.suspicious(Rule::NotScannable, member, 0, message);
            self.hidden_pickle(bytes, member, depth + 1);
            return;
        };
        let header = npy::parse(start);
        if let Err(why) = &header {
            let shown = printable(&text.chars().take(200).collect::<String>());
            let (severity, what) = match is_expression(&text) {
                true => (Severity::Dangerous, "would run in readers that evaluate it"),
                false => (Severity::Suspicious, "readers refuse it or differ"),
            };
            let message = format!("{why}; it {what}: {}", shown.trim());
            self.find(severity, Rule::Text, member, 0, message);
        }
        let end = header_end.ok().flatten().unwrap_or(start.len()) as u64;
        let byte_count = bytes.byte_count().unwrap_or(0);
        let part = |at: u64| Part {
            of: bytes,
            at,
            len: byte_count.saturating_sub(at),
        };
        let holds_objects = text.contains("|O") || text.contains("'O'") || text.contains("\"O\"");
        if holds_objects {
            let message = "a numpy array of objects: loading it with `allow_pickle` unpickles it";
            self.suspicious(Rule::Oddity, member, 0, message);
            self.pickle_file(&part(end), member, depth + 1);
            return;
        }
        self.hidden_pickle(&part(end), member, depth + 1);
        let Ok(header) = header else {
            return;
        };
        match header.data_bytes().and_then(|len| len.checked_add(end)) {
            Some(data_end) if data_end < byte_count => {
                let behind = byte_count - data_end;
                let message = format!("{behind} bytes behind the array's elements");
                self.suspicious(Rule::TrailingData, member, data_end, message);
                let inner = super::archive::join(member, "behind the array");
                self.blob(&part(data_end), "", &inner, depth + 1);
            }
            Some(_) => {}
            None => {
                let message = "elements of a size that nothing here knows: what follows them was not looked at";
                self.suspicious(Rule::NotScannable, member, 0, message);
            }
        }
    }

    /// A safetensors file: the format's rules, and metadata that looks like code.
    pub(super) fn safetensors(&mut self, bytes: &dyn ReadAt, start: &[u8], member: &str) {
        let file_bytes = bytes.byte_count().unwrap_or(0);
        let limits = self.limits.header;
        // Within the limit, if it is said at all; what is wrong with it the linter says.
        let mut prefix = start.to_vec();
        if let Ok(len) = header_bytes(start, file_bytes, &limits) {
            prefix.resize((len + 8) as usize, 0);
            if read_exact_at(bytes, &mut prefix, 0).is_err() {
                prefix = start.to_vec();
            }
        }
        let options = LintOptions {
            limits,
            ..LintOptions::default()
        };
        match lint(&prefix, file_bytes, &options) {
            Err(error) => self.suspicious(Rule::Safetensors, member, 0, error.to_string()),
            Ok(report) => {
                for finding in &report.findings {
                    let (severity, who) = match finding.rule.severity() {
                        LintSeverity::Error => (Severity::Suspicious, "no reader takes it"),
                        LintSeverity::Warning => (
                            Severity::Suspicious,
                            "readers that follow the format refuse it",
                        ),
                        LintSeverity::Note => (Severity::Allowed, "worth knowing"),
                    };
                    let message = format!("{who}: {} ({})", finding.explanation, finding.rule.id());
                    self.find(
                        severity,
                        Rule::Safetensors,
                        member,
                        finding.at_byte,
                        message,
                    );
                }
                self.unlisted_count += report.left_out as u64;
            }
        }
        let header = Header::parse(&prefix, file_bytes, Strictness::Compat, &limits);
        for (key, value) in header.iter().filter_map(Header::metadata).flatten() {
            if let Some(sign) = code_sign(key).or_else(|| code_sign(value)) {
                let message = format!("metadata `{}` contains `{sign}`", shown(key));
                self.suspicious(Rule::Text, member, 8, message);
            }
        }
    }

    /// Keras keeps the code of Lambda layers in the model's description.
    pub(super) fn lambda_layers(&mut self, bytes: &dyn ReadAt, member: &str) {
        const SIGN: &[u8] = b"\"Lambda\"";
        let mut window = vec![0; WINDOW_BYTES];
        let mut at = 0u64;
        while at < SEARCHED_BYTES_MAX {
            let len = read_up_to(bytes, &mut window, at).unwrap_or(0);
            let found = window[..len]
                .windows(SIGN.len())
                .position(|bytes| bytes == SIGN);
            if let Some(found) = found {
                let message = "a Keras Lambda layer, which holds code";
                self.suspicious(Rule::CodeLayer, member, at + found as u64, message);
                return;
            }
            if len < window.len() {
                return;
            }
            at += (len - SIGN.len()) as u64;
        }
        let message =
            format!("only its first {SEARCHED_BYTES_MAX} bytes were searched for layers with code");
        self.find(Severity::Allowed, Rule::CodeLayer, member, at, message);
    }
}

/// Whether a file that begins so is an array of numbers up to its end, so that no more of it needs a look.
pub(super) fn is_whole_npy(start: &[u8], byte_count: u64) -> bool {
    let Ok(header) = npy::parse(start) else {
        return false;
    };
    let end = header
        .data_bytes()
        .and_then(|len| len.checked_add(header.data_at as u64));
    end == Some(byte_count)
}

/// Whether a text has a call or an operator in it, outside of quotes: no literal.
fn is_expression(text: &str) -> bool {
    let mut quote = None;
    let mut before = ' ';
    for c in text.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == '(' && (before.is_alphanumeric() || "_)]".contains(before)) => {
                return true;
            }
            None if "+*/%@;=".contains(c) => return true,
            None => {}
        }
        if !c.is_whitespace() {
            before = c;
        }
    }
    false
}

/// A sign of code in a text that should describe a model.
fn code_sign(text: &str) -> Option<&'static str> {
    const SIGNS: &[&str] = &[
        "<script",
        "javascript:",
        "onerror=",
        "__import__(",
        "os.system(",
        "subprocess.",
        "eval(",
        "exec(",
        "pickle.loads",
        "__reduce__",
        "{{config",
        "__class__.__mro__",
        "__subclasses__",
        "data:text/html",
        "powershell ",
        "/bin/sh",
        "/bin/bash",
    ];
    let lower = text.to_ascii_lowercase();
    SIGNS.iter().copied().find(|sign| lower.contains(sign))
}
