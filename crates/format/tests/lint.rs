//! What the linter lists: every deviation, where it is, and it goes on behind each.
//! (That its verdicts are the parser's is checked in `compat.rs` and by the fuzz target `lint`.)

mod common;

use common::file;
use safelight_format::{Limits, LintOptions, LintReport, Rule, Severity, Strictness, lint};

fn report(json: &str, data_bytes: usize) -> LintReport {
    let file = file(json, data_bytes);
    lint(&file, file.len() as u64, &LintOptions::default()).expect("the file is whole")
}

/// The rules that are broken and where, but for the alignment of the header.
#[track_caller]
fn check(json: &str, data_bytes: usize, expected: &[(Rule, u64)]) {
    let report = report(json, data_bytes);
    let found = report
        .findings
        .iter()
        .map(|finding| (finding.rule, finding.at_byte));
    let found: Vec<_> = found
        .filter(|(rule, _)| *rule != Rule::HeaderUnaligned)
        .collect();
    assert_eq!(found, expected, "{json}\n{:#?}", report.findings);
}

#[test]
fn a_sound_header_has_no_findings() {
    let json = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}           "#;
    assert_eq!(report(json, 8), LintReport::default());
}

#[test]
fn every_deviation_is_listed() {
    use Rule::*;
    let bad = r#"{"a":{"dtype":"f32","shape":[-1,2.0],"data_offsets":[0],"x":1},"b":{"shape":7}}"#;
    check(
        bad,
        0,
        &[
            (UnknownDtype, 22),
            (WrongType, 37),
            (WrongType, 40),
            (WrongType, 60),
            (UnknownField, 64),
            (MissingField, 71),
            (MissingField, 71),
            (WrongType, 84),
        ],
    );
}

#[test]
fn the_walk_goes_on_behind_broken_json() {
    use Rule::*;
    let entry = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    let json = format!(r#"{{"a":{{"dtype":"U8" "shape":[1]}},"b":["U8",[1],[0,1]],"b":{entry}}}"#);
    check(
        &json,
        1,
        &[(NotJson, 27), (ArrayEntry, 44), (DuplicateTensor, 61)],
    );
}

#[test]
fn places() {
    use Rule::*;
    let entry = |name: &str, dtype: &str, shape: &str, offsets: &str| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{offsets}]}}"#)
    };
    let json = |entries: &[String]| format!("{{{}}}", entries.join(","));
    let (hole, overlap) = (entry("a", "U8", "1", "1,2"), entry("b", "U8", "2", "1,3"));
    check(
        &json(&[hole, overlap]),
        4,
        &[(Hole, 54), (Overlap, 106), (FileTooLong, 116)],
    );
    check(
        &json(&[entry("a", "U8", "3", "3,0")]),
        0,
        &[(Hole, 54), (EndsBeforeStart, 54)],
    );
    check(
        &json(&[entry("a", "F4", "3", "0,2")]),
        2,
        &[(NotWholeBytes, 54)],
    );
    check(
        &json(&[entry("a", "U8", "3", "0,2")]),
        1,
        &[(WrongSize, 54), (FileTooShort, 62)],
    );
    let whole = entry("a", "U8", "1", "0,1");
    let cut = report(&json(&[whole, entry("b", "U8", "9", "1,10")]), 2);
    let last = cut.findings.last().unwrap();
    assert_eq!(
        (last.rule, last.tensor.as_deref()),
        (FileTooShort, Some("b"))
    );
    assert!(
        last.explanation.ends_with("; the first that is cut is `b`"),
        "{}",
        last.explanation
    );
    // The number that is too much, and the last if it is only the bits.
    for (shape, at_byte) in [
        ("4294967296, 4294967296,2", 48),
        ("9007199254740991,300", 53),
    ] {
        check(
            &json(&[entry("a", "U8", shape, "0,1")]),
            1,
            &[(SizeOverflow, at_byte)],
        );
    }
    let two = [entry("a", "U8", "1", "2,3"), entry("b", "F16", "1", "0,2")];
    check(&json(&two), 3, &[(OutOfOrder, 61)]);
    let odd = [entry("a", "U8", "1", "0,1"), entry("b", "F32", "1", "1,5")];
    assert!(
        report(&json(&odd), 5)
            .findings
            .iter()
            .any(|finding| finding.rule == MisalignedTensor)
    );
}

#[test]
fn warnings_are_what_only_the_strict_mode_refuses() {
    use Rule::*;
    let entry = r#""a":{"dtype":{"U8":null},"shape":[1],"data_offsets":[0,1],"more":[{}]}"#;
    let json = format!(r#" {{"__metadata__":{{"k":"1","k":"2"}},{entry}}}{}"#, "\n");
    let found = report(&json, 1);
    assert!(found.accepted_by(Strictness::Compat) && !found.accepted_by(Strictness::Spec));
    let rules: Vec<Rule> = found.findings.iter().map(|finding| finding.rule).collect();
    let warnings = [
        LeadingSpace,
        DuplicateMetadataKey,
        WrappedDtype,
        UnknownField,
        PaddingNotSpaces,
    ];
    assert_eq!(
        rules
            .into_iter()
            .filter(|rule| rule.severity() == Severity::Warning)
            .collect::<Vec<_>>(),
        warnings
    );
    check(r#"{"__metadata__":null}"#, 0, &[(NullMetadata, 24)]);
}

#[test]
fn files_that_are_no_safetensors() {
    let rules = |bytes: &[u8]| {
        let report = lint(bytes, bytes.len() as u64, &LintOptions::default()).unwrap();
        report
            .findings
            .iter()
            .map(|finding| finding.rule)
            .collect::<Vec<_>>()
    };
    assert_eq!(rules(b"1234"), [Rule::FileTooSmall]);
    assert_eq!(rules(b"PK\x03\x04 and so on, a zip"), [Rule::OtherFormat]);
    assert_eq!(rules(b"\x09\0\0\0\0\0\0\0{}"), [Rule::HeaderCutOff]);
    assert_eq!(
        rules(b"\x07\0\0\0\0\0\0\0{\"\xff\xfe\xc3\"}"),
        [
            Rule::HeaderUnaligned,
            Rule::NotUtf8,
            Rule::NotUtf8,
            Rule::NotUtf8,
            Rule::NotJson
        ]
    );
}

#[test]
fn limits_and_a_flood_of_findings() {
    let json = r#"{"__metadata__":{"key":"value"},"abc":{"dtype":"U8","shape":[0,0,0],"data_offsets":[0,0]},"d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#;
    let file = file(json, 0);
    let limits = Limits {
        tensor_count_max: 1,
        rank_max: 2,
        name_bytes_max: 2,
        metadata_bytes_max: 3,
        ..Limits::default()
    };
    let options = LintOptions {
        limits,
        ..LintOptions::default()
    };
    let found = lint(&file, file.len() as u64, &options).unwrap();
    let limit = |finding: &&safelight_format::Finding| finding.rule == Rule::LimitExceeded;
    assert_eq!(found.findings.iter().filter(limit).count(), 4);

    let names = (0..1000).map(|_| r#""/":0"#).collect::<Vec<_>>().join(",");
    let json = format!("{{{names}}}");
    let file = common::file(&json, 0);
    let options = LintOptions {
        findings_max: 10,
        ..LintOptions::default()
    };
    let found = lint(&file, file.len() as u64, &options).unwrap();
    assert_eq!(
        (found.findings.len(), found.count(Severity::Error)),
        (10, 1000)
    );
    assert_eq!(found.left_out + 10, found.counts.iter().sum::<usize>());
}

#[test]
fn a_long_name_with_many_findings_is_not_kept_many_times() {
    let fields = (0..20_000)
        .map(|_| r#""x":1"#)
        .collect::<Vec<_>>()
        .join(",");
    let json = format!(r#"{{"{}":{{{fields}}}}}"#, "n".repeat(1 << 20));
    let found = report(&json, 0);
    assert_eq!(found.count(Severity::Warning), 20_000);
    let kept: usize = found
        .findings
        .iter()
        .map(|finding| finding.tensor.as_ref().map_or(0, String::len))
        .sum();
    assert!(kept <= 10_000 * 1024, "{kept}");
}
