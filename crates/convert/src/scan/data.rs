//! Files that hold data alone, if they are what they seem: numpy arrays, safetensors, Keras models.

use safelight_format::{
    Header, LintOptions, Severity as LintSeverity, Strictness, header_bytes, lint, shown,
};
use safelight_store::ReadAt;

use super::{Rule, Scanner, Severity};
use crate::bytes::{Part, number, read_exact_at, read_up_to};

/// What is searched at once.
const WINDOW_BYTES: usize = 1024 * 1024;

/// As far as a model file is searched for layers.
const SEARCHED_BYTES_MAX: u64 = 256 * 1024 * 1024;

impl Scanner<'_> {
    /// A numpy array: one of objects is a pickle behind the header.
    pub(super) fn npy(&mut self, bytes: &dyn ReadAt, start: &[u8], member: &str, depth: u32) {
        let (field, len) = match start.get(6) {
            Some(1) => (10, number::<2>(start, 8)),
            _ => (12, number::<4>(start, 8)),
        };
        let end = len.and_then(|len| u64::checked_add(len, field));
        let header = end.and_then(|end| start.get(field as usize..usize::try_from(end).ok()?));
        let Some((end, header)) = end.zip(header) else {
            self.suspicious(
                Rule::NotScannable,
                member,
                0,
                "a numpy array without a whole header",
            );
            return;
        };
        let text = String::from_utf8_lossy(header);
        let part = Part {
            of: bytes,
            at: end,
            len: bytes.byte_count().unwrap_or(0).saturating_sub(end),
        };
        let holds_objects = text.contains("|O") || text.contains("'O'") || text.contains("\"O\"");
        if holds_objects {
            let message = "a numpy array of objects: loading it with `allow_pickle` unpickles it";
            self.suspicious(Rule::Oddity, member, 0, message);
            self.pickle_file(&part, member, depth + 1);
        } else {
            self.hidden_pickle(&part, member, depth + 1);
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
