//! Names and metadata that are allowed and yet make one look twice.

use super::{Findings, Rule, quoted};
use crate::show::hides_something;

/// Names longer than this are odd.
const NAME_BYTES_ODD: usize = 512;

/// Values of metadata longer than this are long.
const VALUE_BYTES_LONG: usize = 64 << 10;

/// Words, in lower case, by what they may mean. From promptfoo/modelaudit's list of what its
/// scanner looks for (code, XSS, paths, credentials) and what is common in attacks.
const WORDS: [(Rule, &[&str]); 4] = [
    (
        Rule::CodeInMetadata,
        &[
            "__import__",
            "import os",
            "import sys",
            "import subprocess",
            "subprocess.",
            "os.system",
            "os.popen",
            "eval(",
            "exec(",
            "pickle.loads",
            "b64decode",
            "marshal.loads",
            "#!/",
            "/bin/sh",
            "/bin/bash",
            "cmd.exe",
            "powershell",
            "rm -rf",
            "curl http",
            "wget http",
        ],
    ),
    (
        Rule::MarkupInMetadata,
        &[
            "<script",
            "<iframe",
            "<object",
            "<embed",
            "<svg",
            "javascript:",
            "onerror=",
            "onload=",
            "data:text/html",
        ],
    ),
    (
        Rule::PathInMetadata,
        &[
            "../",
            "..\\",
            "file://",
            "/etc/passwd",
            "/etc/shadow",
            "/proc/self",
            ".ssh/",
            "c:\\windows",
        ],
    ),
    (
        Rule::CredentialInMetadata,
        &[
            "-----begin",
            "aws_secret_access_key",
            "aws_access_key_id",
            "password=",
            "passwd=",
            "api_key=",
            "apikey=",
            "secret_key=",
            "authorization: bearer",
        ],
    ),
];

/// Tokens by their first letters and how many letters, digits, `-` or `_` follow at least:
/// GitHub's, Hugging Face's, OpenAI's, AWS's, Slack's.
const TOKENS: [(&str, usize); 6] = [
    ("ghp_", 36),
    ("github_pat_", 40),
    ("hf_", 30),
    ("sk-", 32),
    ("AKIA", 16),
    ("xoxb-", 20),
];

/// Looks at a tensor's name; `raw` is how the header spells it.
pub(super) fn name(name: &str, raw: &[u8], at_byte: u64, findings: &mut Findings) {
    let mut note = |rule, what: String| findings.note(rule, at_byte, Some(name), None, what);
    let parts = || name.split(['/', '\\']);
    let drive = name.as_bytes().get(1) == Some(&b':')
        && name.starts_with(|c: char| c.is_ascii_alphabetic());
    if parts().any(|part| part == "..") || name.starts_with(['/', '\\', '~']) || drive {
        note(
            Rule::PathInName,
            format!("{} looks like a path out of its folder", quoted(name)),
        );
    }
    if name.contains(char::is_control) {
        note(
            Rule::ControlInName,
            format!("{} has control characters", quoted(name)),
        );
    }
    if name.chars().any(|c| hides_something(c) && !c.is_control()) {
        note(
            Rule::InvisibleInName,
            format!("{} has characters that are not seen", quoted(name)),
        );
    }
    if name.is_empty() {
        note(Rule::OddName, "a tensor's name is empty".to_owned());
    } else if name.len() > NAME_BYTES_ODD {
        note(
            Rule::OddName,
            format!("{} is longer than {NAME_BYTES_ODD} bytes", quoted(name)),
        );
    } else if name.trim() != name {
        note(
            Rule::OddName,
            format!("{} begins or ends with spaces", quoted(name)),
        );
    }
    if hides_ascii(raw) {
        note(
            Rule::EscapedName,
            format!(
                "{} is spelt with escapes that it does not need",
                quoted(name)
            ),
        );
    }
}

/// Whether printable ASCII is spelt as `\u0041`.
fn hides_ascii(raw: &[u8]) -> bool {
    raw.windows(6).any(|six| {
        let digits = six
            .strip_prefix(b"\\u00")
            .and_then(|two| std::str::from_utf8(two).ok());
        let byte = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
        byte.is_some_and(|byte| (0x20..0x7f).contains(&byte))
    })
}

/// Looks at a key of the metadata and its value.
pub(super) fn metadata(key: &str, value: &str, at_byte: u64, findings: &mut Findings) {
    let mut note =
        |rule, what: String| findings.note(rule, at_byte, Some("__metadata__"), Some(key), what);
    let named = quoted(key);
    if value.len() > VALUE_BYTES_LONG {
        note(
            Rule::LongMetadata,
            format!("metadata {named} has {} bytes", value.len()),
        );
    }
    let line_or_tab = ['\n', '\r', '\t'];
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if (key.chars().chain(value.chars()))
        .any(|c| turns(c) || c.is_control() && !line_or_tab.contains(&c))
    {
        note(
            Rule::ControlInMetadata,
            format!("metadata {named} has control characters or turns the writing direction"),
        );
    }
    let lower = [key, value].map(str::to_ascii_lowercase);
    for (rule, words) in WORDS {
        let found = words
            .iter()
            .find(|word| lower.iter().any(|text| text.contains(*word)));
        if let Some(word) = found {
            note(rule, format!("metadata {named} has `{word}`"));
        }
    }
    if let Some((start, _)) = TOKENS
        .iter()
        .find(|(start, len)| has_token(value, start, *len))
    {
        note(
            Rule::CredentialInMetadata,
            format!("metadata {named} has what looks like a token, `{start}…`"),
        );
    }
}

fn has_token(text: &str, start: &str, len: usize) -> bool {
    text.match_indices(start).any(|(at, _)| {
        let own = text[..at]
            .bytes()
            .next_back()
            .is_none_or(|byte| !byte.is_ascii_alphanumeric());
        let behind = text[at + start.len()..].bytes();
        let token = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        own && behind.take_while(token).take(len).count() == len
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(look: impl Fn(&mut Findings)) -> Vec<Rule> {
        let mut findings = Findings::new(100);
        look(&mut findings);
        findings
            .report()
            .findings
            .iter()
            .map(|finding| finding.rule)
            .collect()
    }

    #[test]
    fn names() {
        for (text, expected) in [
            ("model.layers.0.weight", None),
            ("größe/模型", None),
            ("a..b", None),
            ("../../x", Some(Rule::PathInName)),
            ("a\\..\\b", Some(Rule::PathInName)),
            ("/abs", Some(Rule::PathInName)),
            ("C:x", Some(Rule::PathInName)),
            ("a\0b", Some(Rule::ControlInName)),
            ("\u{202e}gnp", Some(Rule::InvisibleInName)),
            ("", Some(Rule::OddName)),
            (" a", Some(Rule::OddName)),
        ] {
            let found = rules(|findings| name(text, text.as_bytes(), 8, findings));
            assert_eq!(found, Vec::from_iter(expected), "{text:?}");
        }
        let long = "x".repeat(600);
        assert_eq!(
            rules(|findings| name(&long, b"", 8, findings)),
            [Rule::OddName]
        );
        assert_eq!(
            rules(|findings| name("a", b"\\u0061", 8, findings)),
            [Rule::EscapedName]
        );
        assert_eq!(
            rules(|findings| name("\u{e4}", b"\\u00e4", 8, findings)),
            []
        );
    }

    #[test]
    fn metadata_values() {
        let hf = format!("token hf_{}", "aB3".repeat(12));
        for (value, expected) in [
            ("pt", None),
            ("line one\nline\ttwo", None),
            ("a photo of <lora:x:1>", None),
            ("import os; os.system('id')", Some(Rule::CodeInMetadata)),
            ("<SCRIPT>alert(1)</SCRIPT>", Some(Rule::MarkupInMetadata)),
            ("models/../../etc", Some(Rule::PathInMetadata)),
            (
                "-----BEGIN RSA PRIVATE KEY-----",
                Some(Rule::CredentialInMetadata),
            ),
            (hf.as_str(), Some(Rule::CredentialInMetadata)),
            ("shelf_of_books hf_short", None),
            ("a\u{0}", Some(Rule::ControlInMetadata)),
        ] {
            let found = rules(|findings| metadata("key", value, 8, findings));
            assert_eq!(found, Vec::from_iter(expected), "{value:?}");
        }
        let long = "x".repeat(VALUE_BYTES_LONG + 1);
        assert_eq!(
            rules(|findings| metadata("k", &long, 8, findings)),
            [Rule::LongMetadata]
        );
    }
}
