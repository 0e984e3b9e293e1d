//! `scan` as people run it: exit codes, JSON, SARIF, folders, and files that slipped past other scanners.
#![allow(missing_docs)]

mod common;

use common::Place;
use safelight_format::{Dtype, TensorView};
use safelight_store::{SaveOptions, save};
use serde_json::Value;

/// `os.system('id')` in protocol 2.
const ATTACK: &[u8] = b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.";

/// `{'a': 1}` in protocol 2.
const HARMLESS: &[u8] = b"\x80\x02}q\0X\x01\0\0\0aK\x01s.";

/// A class that is not on the list, in protocol 2; nothing is called.
const UNKNOWN: &[u8] = b"\x80\x02cmy_module\nMyClass\n.";

fn safetensors(place: &Place, name: &str) {
    let view = TensorView {
        name: "a",
        dtype: Dtype::U8,
        shape: &[4],
        bytes: &[1, 2, 3, 4],
    };
    save(&place.path(name), &[view], None, &SaveOptions::default()).unwrap();
}

/// One JSON object a line.
fn lines(stdout: &str) -> Vec<Value> {
    stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[test]
fn exit_codes_are_those_of_a_linter() {
    let place = Place::new();
    place.write("clean.pkl", HARMLESS);
    place.write("odd.pkl", UNKNOWN);
    place.write("attack.pkl", ATTACK);
    safetensors(&place, "clean.safetensors");
    place.works(&["scan", "clean.pkl", "clean.safetensors"]);
    for (arguments, code) in [
        (&["scan", "odd.pkl"][..], 1),
        (&["scan", "attack.pkl"], 1),
        (&["scan", "clean.pkl", "attack.pkl"], 1),
        (&["scan", "odd.pkl", "--dangerous-only"], 0),
        (&["scan", "attack.pkl", "--dangerous-only"], 1),
        (&["scan", "missing.pkl"], 2),
        (&["scan", "missing.pkl", "attack.pkl"], 2),
        (&["scan"], 2),
        (&["scan", "clean.pkl", "--json", "--sarif"], 2),
    ] {
        let ran = place.run(arguments);
        assert_eq!(ran.code, Some(code), "{arguments:?}\n{}", ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    }
    // The other files are looked at all the same, and the missing one is named.
    let ran = place.run(&["scan", "missing.pkl", "attack.pkl"]);
    assert!(ran.stderr.contains("missing.pkl"), "{}", ran.stderr);
    assert!(
        ran.stdout.contains("would have run: os.system('id')"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("1 dangerous"), "{}", ran.stdout);
}

#[cfg(unix)]
#[test]
fn files_that_cannot_be_read_are_trouble() {
    let place = Place::new();
    place.write("attack.pkl", ATTACK);
    std::os::unix::fs::symlink("gone", place.path("dangling.pkl")).unwrap();
    let ran = place.refuses(&["scan", "dangling.pkl"], 2, &["dangling.pkl"]);
    assert_eq!(ran.stdout, "0 files: 0 clean, 0 suspicious, 0 dangerous\n");
    place.refuses(&["scan", "/dev/null"], 2, &["/dev/null", "device"]);
}

#[test]
fn json_has_an_object_a_line() {
    let place = Place::new();
    place.write("clean.pkl", HARMLESS);
    place.write("attack.pkl", ATTACK);
    let ran = place.run(&["scan", "clean.pkl", "attack.pkl", "--json"]);
    assert_eq!(ran.code, Some(1));
    let [clean, attack] = &lines(&ran.stdout)[..] else {
        panic!("{}", ran.stdout);
    };
    assert_eq!(clean["verdict"], "clean");
    assert_eq!(clean["findings"].as_array().unwrap().len(), 0);
    assert_eq!(attack["verdict"], "dangerous");
    assert!(attack["file"].as_str().unwrap().ends_with("attack.pkl"));
    let call = attack["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|finding| finding["rule"] == "pickle-call")
        .unwrap();
    assert_eq!(call["severity"], "dangerous");
    assert_eq!(call["message"], "would have run: os.system('id')");
    assert!(call["at_byte"].as_u64().unwrap() < ATTACK.len() as u64);
    // Trouble is an object as well.
    let ran = place.run(&["scan", "missing.pkl", "--json"]);
    assert_eq!(ran.code, Some(2));
    assert!(
        lines(&ran.stdout)[0]["error"].is_object() || lines(&ran.stdout)[0]["error"].is_string()
    );
}

#[test]
fn sarif_is_one_log() {
    let place = Place::new();
    place.write("clean.pkl", HARMLESS);
    place.write("attack.pkl", ATTACK);
    let ran = place.run(&["scan", ".", "--sarif"]);
    assert_eq!(ran.code, Some(1));
    let log = ran.json();
    assert_eq!(log["version"], "2.1.0");
    let run = &log["runs"][0];
    let rules: Vec<&str> = run["tool"]["driver"]["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["id"].as_str().unwrap())
        .collect();
    let results = run["results"].as_array().unwrap();
    assert!(!results.is_empty());
    for result in results {
        assert!(rules.contains(&result["ruleId"].as_str().unwrap()));
        let place = &result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"];
        assert!(place.as_str().unwrap().ends_with("attack.pkl"), "{result}");
    }
    assert!(results.iter().any(|result| result["level"] == "error"));
}

#[test]
fn folders_are_walked_by_content_and_not_by_name() {
    let place = Place::new();
    place.write("models/a/deep/picture.png", ATTACK);
    place.write("models/b/clean.pkl", HARMLESS);
    place.write("models/c/weights.safetensors", ATTACK);
    place.write("models/readme.md", b"# words\n");
    let ran = place.run(&["scan", "models", "--json"]);
    assert_eq!(ran.code, Some(1));
    let found: Vec<(String, String)> = lines(&ran.stdout)
        .iter()
        .map(|line| {
            let file = line["file"].as_str().unwrap().replace('\\', "/");
            (file, line["verdict"].as_str().unwrap().to_owned())
        })
        .collect();
    let expected = [
        ("models/a/deep/picture.png", "dangerous"),
        ("models/b/clean.pkl", "clean"),
        ("models/c/weights.safetensors", "dangerous"),
        ("models/readme.md", "clean"),
    ];
    assert_eq!(
        found,
        expected.map(|(file, verdict)| (file.to_owned(), verdict.to_owned()))
    );
}

#[test]
fn known_bypasses_of_other_scanners() {
    let place = Place::new();
    let cases: &[(&str, &[u8])] = &[
        // A broken opcode behind the call: loaders have run it by then.
        ("broken.pkl", b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R\xff"),
        // No STOP at all.
        ("no-stop.pkl", b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R"),
        // The name comes from the stack.
        (
            "stack.pkl",
            b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.",
        ),
        // INST and OBJ instead of REDUCE.
        ("inst.pkl", b"(S'id'\nios\nsystem\n."),
        ("obj.pkl", b"(cos\nsystem\nS'id'\no."),
        // Protocol 0, which has no mark at its start.
        ("zero.pkl", b"cos\nsystem\n(S'id'\ntR."),
        // The real module behind `os`.
        ("posix.pkl", b"cposix\nsystem\n(S'id'\ntR."),
        // Python 2's name.
        ("old.pkl", b"c__builtin__\neval\n(S'1'\ntR."),
        // A second pickle behind a harmless one.
        (
            "second.pkl",
            b"\x80\x02N.\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.",
        ),
        // Another ending.
        ("model.joblib", ATTACK),
        ("noending", ATTACK),
    ];
    for (name, bytes) in cases {
        place.write(name, bytes);
        let ran = place.run(&["scan", name, "--json", "--dangerous-only"]);
        assert_eq!(ran.code, Some(1), "{name}: {}", ran.stdout);
        assert_eq!(ran.json()["verdict"], "dangerous", "{name}: {}", ran.stdout);
    }
}

#[test]
fn safetensors_are_linted() {
    let place = Place::new();
    let file = |header: &str, data: &[u8]| {
        let len = (header.len() as u64).to_le_bytes();
        [&len[..], header.as_bytes(), data].concat()
    };
    let tensor = r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    place.write(
        "twice.safetensors",
        &file(&format!(r#"{{"a":{tensor},"a":{tensor}}}"#), &[0; 4]),
    );
    place.write(
        "short.safetensors",
        &file(&format!(r#"{{"a":{tensor}}}"#), &[0; 3]),
    );
    for (name, rule) in [
        ("twice.safetensors", "duplicate"),
        ("short.safetensors", "cut short"),
    ] {
        let ran = place.run(&["scan", name, "--json"]);
        assert_eq!(ran.code, Some(1), "{name}: {}", ran.stdout);
        let report = ran.json();
        let findings = report["findings"].as_array().unwrap();
        assert!(
            findings
                .iter()
                .all(|finding| finding["rule"] == "safetensors-rule"),
            "{report}"
        );
        let told = findings
            .iter()
            .any(|finding| finding["message"].as_str().unwrap().contains(rule));
        assert!(told, "{name}: no {rule:?} in {report}");
    }
}
