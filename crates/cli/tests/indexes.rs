//! `verify` and `lint` of an index and its shards, and what the commands say of dtypes that the format does not have.
#![allow(missing_docs)]

mod common;

use common::{Place, lines, raw};
use serde_json::Value;

/// Two shards with `a`, `b` (3 bytes) and `c` (3 bytes), and an index that says that of them.
fn shards(weight_map: &str, total_size: u64) -> Place {
    let place = Place::new();
    let entry = |name: &str, from: u64, to: u64| {
        let size = to - from;
        format!(r#""{name}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{from},{to}]}}"#)
    };
    let first = format!("{{{},{}}}", entry("a", 0, 2), entry("b", 2, 3));
    raw(&place, "1.safetensors", &first, b"xyz");
    raw(
        &place,
        "2.safetensors",
        &format!("{{{}}}", entry("c", 0, 3)),
        b"123",
    );
    let index =
        format!(r#"{{"metadata":{{"total_size":{total_size}}},"weight_map":{{{weight_map}}}}}"#);
    place.write(INDEX, index.as_bytes());
    place
}

const INDEX: &str = "m.safetensors.index.json";

/// What `lint` finds wrong with an index, and whether `verify` finds it sound.
fn check(weight_map: &str, total_size: u64, rules: &[&str], is_intact: bool, words: &[&str]) {
    let place = shards(weight_map, total_size);
    let linted = place.run(&["lint", INDEX, "--json"]);
    let about = lines(&linted)
        .into_iter()
        .find(|line| line["file"] == INDEX)
        .unwrap();
    let findings = about["findings"].as_array().unwrap();
    let found: Vec<&str> = findings
        .iter()
        .map(|finding| finding["rule"].as_str().unwrap())
        .collect();
    assert_eq!(found, rules, "{weight_map}\n{about}");
    let has_errors = about["errors"] != 0 || about["warnings"] != 0;
    assert_eq!(
        linted.code,
        Some(i32::from(has_errors)),
        "{weight_map}\n{}",
        linted.stdout
    );
    let verified = place.run(&["verify", INDEX, "--json"]);
    assert_eq!(
        verified.code,
        Some(if is_intact { 0 } else { 3 }),
        "{weight_map}\n{}",
        verified.stdout
    );
    let answer: Value = lines(&verified).remove(0);
    assert_eq!(answer["intact"], is_intact, "{answer}");
    let told = place.run(&["verify", INDEX]);
    let told = format!("{}{}", told.stdout, told.stderr);
    for word in words {
        assert!(told.contains(word), "{weight_map}: no {word:?} in\n{told}");
    }
}

#[test]
fn what_an_index_says_wrongly_is_found() {
    let (a, b, c) = (
        r#""a":"1.safetensors""#,
        r#""b":"1.safetensors""#,
        r#""c":"2.safetensors""#,
    );
    check(
        &format!("{a},{b},{c}"),
        6,
        &[],
        true,
        &["1.safetensors: intact", "2.safetensors: intact"],
    );
    check(
        &format!("{a},{b},{c}"),
        7,
        &["index-total-size"],
        true,
        &["total_size", "7", "6"],
    );
    let gone = format!(r#"{a},{b},{c},"d":"3.safetensors""#);
    check(
        &gone,
        6,
        &["index-file-missing"],
        false,
        &["`3.safetensors`", "missing"],
    );
    let wrong = format!(r#"{a},"b":"2.safetensors",{c}"#);
    check(
        &wrong,
        5,
        &["index-tensor-missing"],
        false,
        &["`b` in `2.safetensors`"],
    );
    check(
        &format!("{a},{c}"),
        5,
        &["index-unlisted"],
        false,
        &["`b` in `1.safetensors`"],
    );
}

/// A file with one U8 and one tensor of a dtype that there is not.
fn odd() -> Place {
    let place = Place::new();
    let json = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"odd":{"dtype":"Q9","shape":[5],"data_offsets":[1,4]}}"#;
    raw(&place, "odd.safetensors", json, b"\x07abc");
    place
}

#[test]
fn unknown_dtypes_are_refused_by_name_and_read_on_request() {
    let place = odd();
    for command in [
        &["ls", "odd.safetensors"][..],
        &["cat", "odd.safetensors", "a"],
    ] {
        place.refuses(command, 3, &["`odd`", "`Q9`"]);
        let allowed = place.works(&[command, &["--unknown-dtypes"]].concat());
        assert!(!allowed.stdout.is_empty());
    }
    let verified = place.run(&["verify", "odd.safetensors"]);
    assert_eq!(verified.code, Some(3));
    assert!(verified.stdout.contains("`Q9`"), "{}", verified.stdout);
    let verified = place.works(&["verify", "odd.safetensors", "--unknown-dtypes", "--json"]);
    assert_eq!(lines(&verified)[0]["intact"], true);
    let listed = place.works(&["ls", "odd.safetensors", "--unknown-dtypes", "--json"]);
    let tensors = lines(&listed)[0]["unknown_dtypes"].to_string();
    assert!(
        tensors.contains(r#""Q9""#) && tensors.contains(r#""odd""#),
        "{tensors}"
    );
    let raw = [
        "cat",
        "odd.safetensors",
        "odd",
        "--unknown-dtypes",
        "--format",
        "raw",
    ];
    assert_eq!(place.works(&raw).stdout, "abc");
    place.refuses(&raw[..4], 2, &["`Q9`", "--format raw"]);
    let sliced = [&raw[..3], &["0"], &raw[3..]].concat();
    place.refuses(&sliced, 2, &["`Q9`"]);
    let linted = place.run(&["lint", "odd.safetensors"]);
    assert_eq!(linted.code, Some(1));
    assert!(linted.stdout.contains("unknown-dtype"), "{}", linted.stdout);
    // Their bytes count in hashes, whatever they mean.
    let hash = place
        .works(&["hash", "odd.safetensors", "--kind", "modelspec"])
        .stdout;
    assert!(hash.starts_with("0x"), "{hash}");
}
