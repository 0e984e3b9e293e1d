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

/// The bytes of `odd` in a file, or in what an index names.
fn odd_bytes(place: &Place, file: &str) -> String {
    let raw = ["cat", file, "odd", "--unknown-dtypes", "--format", "raw"];
    place.works(&raw).stdout
}

#[test]
fn unknown_dtypes_come_along_where_bytes_are_enough() {
    let place = odd();
    let source = "odd.safetensors";
    for command in [
        &["convert", source, "refused.safetensors"][..],
        &["split", source, "--count", "2", "-o", "refused"],
        &["merge", source, "-o", "refused.safetensors"],
        &["stats", source],
    ] {
        place.refuses(command, 3, &["`odd`", "`Q9`"]);
    }
    place.refuses(&["diff", source, source], 2, &["`odd`", "`Q9`"]);
    let works = |arguments: &[&str]| place.works(&[arguments, &["--unknown-dtypes"]].concat());
    works(&["convert", source, "one.safetensors"]);
    works(&[
        "convert",
        source,
        "renamed.safetensors",
        "--rename",
        "odd=new",
    ]);
    let shards = "shards/model.safetensors.index.json";
    let converted = works(&["convert", source, "shards", "--shard-size", "1", "--json"]);
    assert_eq!(converted.json()["tensor_bytes"], 4);
    let split = works(&["split", source, "--count", "2", "-o", "split", "--json"]);
    assert_eq!(split.json()["total_size"], 4);
    let index = "split/odd.safetensors.index.json";
    works(&["merge", index, "-o", "merged.safetensors"]);
    for file in ["one.safetensors", shards, index, "merged.safetensors"] {
        assert_eq!(odd_bytes(&place, file), "abc", "{file}");
        let same = works(&["diff", source, file, "--json"]);
        assert_eq!(same.json()["same_count"], 2, "{file}");
        let listed = works(&["ls", file, "--json"]).json()["unknown_dtypes"][0].clone();
        let expected = serde_json::json!(["odd", "Q9", [5], 3]);
        let found = ["name", "dtype", "shape", "bytes"].map(|key| listed[key].clone());
        assert_eq!(serde_json::json!(found), expected, "{file}");
    }
    let renamed = works(&["ls", "renamed.safetensors", "--json"]).json();
    assert_eq!(renamed["unknown_dtypes"][0]["name"], "new");
    let written = std::fs::read(place.path("one.safetensors")).unwrap();
    let mut piped = place.command(&["convert", source, "-", "--unknown-dtypes"]);
    assert!(piped.output().unwrap().stdout == written);
}

#[test]
fn unknown_dtypes_are_refused_by_name_where_numbers_are_needed() {
    let place = odd();
    let source = "odd.safetensors";
    let convert = |to: &'static str| ["convert", source, to, "--unknown-dtypes"];
    let cast = [&convert("f.safetensors")[..], &["--dtype", "f16"]].concat();
    for command in [
        &convert("f.npz")[..],
        &convert("f.gguf"),
        &[&convert("f")[..], &["--to", "diffusers"]].concat(),
        &cast,
        &[
            "merge",
            "--weighted",
            source,
            source,
            "--unknown-dtypes",
            "-o",
            "f.safetensors",
        ],
    ] {
        let left = place.everything();
        place.refuses(command, 2, &["`odd`", "`Q9`"]);
        assert_eq!(place.everything(), left);
    }
    place.works(&[&cast[..], &["--keep", "odd"]].concat());
    assert_eq!(odd_bytes(&place, "f.safetensors"), "abc");
    place.works(&[&convert("f.npz")[..], &["--exclude", "odd"]].concat());
}

#[test]
fn unknown_dtypes_are_compared_and_listed_as_bytes() {
    let place = odd();
    let json = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"odd":{"dtype":"Q9","shape":[5],"data_offsets":[1,4]}}"#;
    raw(&place, "other.safetensors", json, b"\x07abd");
    let json = r#"{"odd":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#;
    raw(&place, "known.safetensors", json, b"abc");
    let diff = |to: &str, more: &[&str]| {
        let ran = place.run(&[&["diff", "odd.safetensors", to, "--unknown-dtypes"], more].concat());
        assert_eq!(ran.code, Some(1), "{}{}", ran.stdout, ran.stderr);
        ran
    };
    let text = diff("other.safetensors", &[]).stdout;
    assert!(text.contains("~ odd  Q9 [5]  other bytes"), "{text}");
    let found = diff("other.safetensors", &["--json"]).json();
    assert_eq!(found["tensors"][1]["same_bytes"], false);
    assert_eq!(
        (&found["same_count"], &found["different"]),
        (&1.into(), &true.into())
    );
    let text = diff("known.safetensors", &[]).stdout;
    assert!(text.contains("Q9 → U8 [5] → [3]"), "{text}");
    assert!(text.contains("- a "), "{text}");
    let whole = place.works(&[
        "diff",
        "odd.safetensors",
        "other.safetensors",
        "--unknown-dtypes",
        "--structure",
    ]);
    assert!(
        whole.stdout.starts_with("2 tensors the same"),
        "{}",
        whole.stdout
    );
    let stats = ["stats", "odd.safetensors", "--unknown-dtypes"];
    let text = place.works(&stats).stdout;
    assert!(
        text.contains("unknown dtype: odd  Q9  [5]  3 bytes"),
        "{text}"
    );
    let found = place.works(&[&stats[..], &["--json"]].concat()).json();
    assert_eq!(found["tensor_count"], 1);
    let expected = serde_json::json!([{"name": "odd", "dtype": "Q9", "shape": [5], "bytes": 3}]);
    assert_eq!(found["unknown_dtypes"], expected);
    let chosen = place
        .works(&[&stats[..], &["--json", "--name", "odd"]].concat())
        .json();
    assert_eq!(
        (&chosen["tensor_count"], &chosen["unknown_dtypes"]),
        (&0.into(), &expected)
    );
}
