//! What is wrong with an index, and between it and its shards.

mod common;

use common::{Folder, raw_file};
use safelight_format::{LintOptions, Rule, Severity};
use safelight_store::{lint, lint_targets};

/// The rules that an index breaks, beside shards `1` (`a`, `b`: 2 bytes) and `2` (`b`, `c`).
fn rules(json: &str) -> Vec<Rule> {
    let folder = Folder::new();
    let shard = |first: &str, second: &str| {
        let entry = |name: &str, at: u8| {
            let end = at + 1;
            format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{end}]}}"#)
        };
        raw_file(
            &format!("{{{},{}}}", entry(first, 0), entry(second, 1)),
            b"xy",
        )
    };
    folder.write("1", shard("a", "b"));
    folder.write("2", shard("b", "c"));
    folder.write("3", shard("d", "e"));
    let path = folder.write("m.safetensors.index.json", json);
    let report = lint(&path, &LintOptions::default()).unwrap();
    for finding in &report.findings {
        let at = finding.at_byte as usize;
        assert!(at == 0 || json.as_bytes()[at] == b'"', "{finding}");
    }
    report.findings.iter().map(|finding| finding.rule).collect()
}

fn map(listed: &str) -> Vec<Rule> {
    rules(&format!(r#"{{"weight_map":{{{listed}}}}}"#))
}

#[test]
fn what_an_index_can_break() {
    use Rule::*;
    assert_eq!(map(r#""d":"./3","e":"3""#), []);
    assert_eq!(map(r#""d":"3""#), [IndexUnlisted]);
    assert_eq!(map(r#""d":"3","e":"3","x":"3""#), [IndexTensorMissing]);
    assert_eq!(map(r#""d":"3","e":"3","x":"4""#), [IndexFileMissing]);
    assert_eq!(map(r#""d":"3","e":"3","x":"../3""#), [IndexPath]);
    let own = r#""d":"3","e":"3","x":"./m.safetensors.index.json""#;
    assert_eq!(map(own), [IndexPath]);
    assert_eq!(map(r#""a":"1","b":"1","c":"2""#), [IndexTwice]);
    assert_eq!(map(""), [IndexEmpty]);
    assert_eq!(map(r#""d":"3","d":"3""#), [BadIndex]);
    assert_eq!(rules("\u{feff}{}"), [BadIndex]);
    assert_eq!(rules("[]"), [BadIndex]);
    let found = map("\"d\":\"3\",\"e\":\"3\",\"\u{202e}q\":\"3\"");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.contains(&InvisibleInName) && found.contains(&IndexTensorMissing));
    for (size, expected) in [
        ("2", None),
        ("3", Some(IndexTotalSize)),
        ("\"2\"", Some(IndexTotalSize)),
    ] {
        let json =
            format!(r#"{{"metadata":{{"total_size":{size}}},"weight_map":{{"d":"3","e":"3"}}}}"#);
        assert_eq!(rules(&json).first().copied(), expected, "{size}");
    }
}

#[test]
fn an_index_and_its_shards_are_looked_at() {
    let folder = Folder::new();
    folder.write("1", raw_file("{}", b""));
    let json = r#"{"weight_map":{"a":"1","b":"gone"}}"#;
    let path = folder.write("m.safetensors.index.json", json);
    let targets = lint_targets(&path).unwrap();
    assert_eq!(targets, [path.clone(), folder.join("1")]);
    assert_eq!(lint_targets(folder.path()).unwrap(), targets);
    let report = lint(&path, &LintOptions::default()).unwrap();
    assert_eq!(report.count(Severity::Error), 2);
    // Neither the index again nor what may not be opened keeps the others from being looked at.
    let json = r#"{"weight_map":{"a":"1","b":"../1","c":"m.safetensors.index.json"}}"#;
    folder.write("m.safetensors.index.json", json);
    assert_eq!(lint_targets(&path).unwrap(), targets);
    folder.write("m.safetensors.index.json", "{");
    assert_eq!(lint_targets(&path).unwrap(), [path]);
}
