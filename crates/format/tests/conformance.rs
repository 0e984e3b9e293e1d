//! The published corpus, `testdata/conformance/`: our parser, our linter and the `safetensors` crate
//! on every file, and the table of docs/conformance.md, which this test writes if `BLESS=1` is set.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use safelight_format::{Header, Limits, LintOptions, Strictness, lint};
use safetensors::SafeTensors;
use serde_json::Value;

/// The table stands between these lines.
const TABLE_START: &str =
    "<!-- table: cargo test -p safelight-format --test conformance, with BLESS=1 to renew -->\n";
const TABLE_END: &str = "<!-- end of table -->\n";

struct Case {
    file: String,
    rule: u64,
    compat: bool,
    spec: bool,
    reason: String,
    bytes: Vec<u8>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn cases() -> Vec<Case> {
    let folder = root().join("testdata/conformance");
    let manifest = fs::read_to_string(folder.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let read = |case: &Value| {
        let text = |key: &str| case[key].as_str().unwrap().to_owned();
        let accepted = |key: &str| match text(key).as_str() {
            "accept" => true,
            "reject" => false,
            other => panic!("{other}"),
        };
        Case {
            file: text("file"),
            rule: case["rule"].as_u64().unwrap(),
            compat: accepted("compat"),
            spec: accepted("spec"),
            reason: text("reason"),
            bytes: fs::read(folder.join(text("file"))).unwrap(),
        }
    };
    manifest["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(read)
        .collect()
}

fn ours(bytes: &[u8], strictness: Strictness) -> bool {
    Header::parse(bytes, bytes.len() as u64, strictness, &Limits::default()).is_ok()
}

/// The crate's verdict. (It adds without a check, and so panics on one file if overflow checks are
/// on, as they are in debug builds; without them it refuses that file.)
fn theirs(bytes: &[u8]) -> bool {
    catch_unwind(|| SafeTensors::deserialize(bytes).is_ok()).unwrap_or(false)
}

#[test]
fn every_verdict_is_as_expected() {
    let cases = cases();
    assert!(cases.len() >= 120, "{} files", cases.len());
    let mut wrong = String::new();
    for case in &cases {
        let bytes = &case.bytes;
        let report = lint(bytes, bytes.len() as u64, &LintOptions::default()).unwrap();
        for (what, verdict, expected) in [
            ("ours, Compat", ours(bytes, Strictness::Compat), case.compat),
            ("ours, Spec", ours(bytes, Strictness::Spec), case.spec),
            (
                "lint, Compat",
                report.accepted_by(Strictness::Compat),
                case.compat,
            ),
            (
                "lint, Spec",
                report.accepted_by(Strictness::Spec),
                case.spec,
            ),
            ("safetensors 0.8.0", theirs(bytes), case.compat),
        ] {
            if verdict != expected {
                let _ = writeln!(
                    wrong,
                    "{}: {what} says {verdict}, expected {expected} ({})",
                    case.file, case.reason
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_corpus_is_whole() {
    let listed: BTreeSet<String> = cases().into_iter().map(|case| case.file).collect();
    let there = fs::read_dir(root().join("testdata/conformance")).unwrap();
    let there: BTreeSet<String> = there
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "manifest.json")
        .collect();
    assert_eq!(listed, there);
    let rules: BTreeSet<u64> = cases().iter().map(|case| case.rule).collect();
    assert!((1..=20).all(|rule| rules.contains(&rule)), "{rules:?}");
}

#[test]
fn the_table_in_the_docs_is_true() {
    let path = root().join("docs/conformance.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page
        .split_once(TABLE_START)
        .expect("the table's first line");
    let (_, behind) = rest.split_once(TABLE_END).expect("the table's last line");
    let renewed = format!("{before}{TABLE_START}{}{TABLE_END}{behind}", table());
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &renewed).unwrap();
    }
    let same = fs::read_to_string(&path).unwrap() == renewed;
    assert!(
        same,
        "docs/conformance.md is out of date; renew it with BLESS=1"
    );
}

fn table() -> String {
    let mut table = String::from(
        "\n| file | rule | safetensors 0.8.0 | ours, Compat | ours, Spec | why |\n|---|---|---|---|---|---|\n",
    );
    let word = |accepted| if accepted { "accept" } else { "reject" };
    let cases = cases();
    for case in &cases {
        let _ = writeln!(
            table,
            "| `{}` | {} | {} | {} | {} | {} |",
            case.file.trim_end_matches(".safetensors"),
            case.rule,
            word(theirs(&case.bytes)),
            word(ours(&case.bytes, Strictness::Compat)),
            word(ours(&case.bytes, Strictness::Spec)),
            case.reason.replace('|', "\\|")
        );
    }
    let loose = cases.iter().filter(|case| case.compat != case.spec).count();
    let _ = writeln!(
        table,
        "\n{} files; on {loose} of them the crate and the format's description disagree.\n",
        cases.len()
    );
    table
}
