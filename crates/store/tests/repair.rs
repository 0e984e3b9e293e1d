//! What is left of damaged files.

mod common;

use std::ops::ControlFlow;
use std::path::PathBuf;

use common::{Folder, raw_file};
use safelight_format::{Limits, Strictness};
use safelight_store::repair::Repair;
use safelight_store::{Checkpoint, OpenOptions, StoreError};

/// A file with this header and this many bytes of data: 0, 1, 2 …
fn file(folder: &Folder, json: &str, data_bytes: u8) -> PathBuf {
    let data: Vec<u8> = (0..data_bytes).collect();
    folder.write("damaged.safetensors", raw_file(json, &data))
}

/// Repairs; gives what is left, what was dropped and what was changed.
fn check(json: &str, data_bytes: u8, kept: &[(&str, &[u8])], dropped: &[&str], changed: &[&str]) {
    let folder = Folder::new();
    let path = file(&folder, json, data_bytes);
    let repair = Repair::plan(&path, &Limits::default()).unwrap();
    let texts: Vec<String> = repair.dropped.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), dropped.len(), "{json}: {texts:?}");
    for (text, word) in texts.iter().zip(dropped) {
        assert!(text.contains(word), "{json}: no {word:?} in {text:?}");
    }
    assert_eq!(
        repair.changes.len(),
        changed.len(),
        "{json}: {:?}",
        repair.changes
    );
    for (text, word) in repair.changes.iter().zip(changed) {
        assert!(text.contains(word), "{json}: no {word:?} in {text:?}");
    }
    assert_eq!(
        repair.is_needed(),
        !dropped.is_empty() || !changed.is_empty()
    );
    let target = folder.join("repaired.safetensors");
    repair
        .write(&target, &mut |_, _| ControlFlow::Continue(()))
        .unwrap()
        .unwrap();
    let strict = OpenOptions {
        strictness: Strictness::Spec,
        ..Default::default()
    };
    let repaired = Checkpoint::open_with(&target, &strict).unwrap();
    let mut names: Vec<&str> = repaired.names().collect();
    names.sort_unstable();
    assert_eq!(
        names,
        kept.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        "{json}"
    );
    for (name, bytes) in kept {
        assert_eq!(repaired.read_bytes(name).unwrap(), *bytes, "{json} {name}");
    }
    let again = Repair::plan(&target, &Limits::default()).unwrap();
    assert!(
        !again.is_needed(),
        "{:?} {:?}",
        again.dropped,
        again.changes
    );
}

fn entry(name: &str, from: u64, to: u64) -> String {
    format!(
        r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{from},{to}]}}"#,
        to - from
    )
}

#[test]
fn a_sound_file_needs_nothing() {
    let json = format!("{{{},{}}}", entry("a", 0, 2), entry("b", 2, 3));
    check(&json, 3, &[("a", &[0, 1]), ("b", &[2])], &[], &[]);
    check("{}   ", 0, &[], &[], &[]);
}

#[test]
fn cut_files_keep_what_is_whole() {
    let json = format!(
        "{{{},{},{}}}",
        entry("a", 0, 2),
        entry("b", 2, 6),
        entry("c", 6, 6)
    );
    check(
        &json,
        5,
        &[("a", &[0, 1])],
        &[
            "b: it ends at byte",
            "c: it ends at byte",
            "3 bytes from byte",
        ],
        &[],
    );
    check(
        &json,
        7,
        &[("a", &[0, 1]), ("b", &[2, 3, 4, 5]), ("c", &[])],
        &["1 bytes from byte"],
        &[],
    );
}

#[test]
fn holes_and_overlaps() {
    let json = format!("{{{},{}}}", entry("a", 0, 2), entry("b", 3, 4));
    check(
        &json,
        4,
        &[("a", &[0, 1]), ("b", &[3])],
        &["1 bytes from byte"],
        &[],
    );
    let json = format!("{{{},{}}}", entry("a", 0, 3), entry("b", 2, 4));
    check(
        &json,
        4,
        &[("a", &[0, 1, 2]), ("b", &[2, 3])],
        &[],
        &["1 tensor shares bytes"],
    );
}

#[test]
fn padding_and_white_space() {
    let inside = entry("a", 0, 1);
    check(
        &format!("\n {{{inside}}}"),
        1,
        &[("a", &[0])],
        &[],
        &["2 bytes in front"],
    );
    check(
        &format!("{{{inside}}}\0\0"),
        1,
        &[("a", &[0])],
        &[],
        &["padding becomes spaces"],
    );
    check(
        &format!("{{{inside}}}\n"),
        1,
        &[("a", &[0])],
        &[],
        &["padding becomes spaces"],
    );
    check(
        &format!("{{{inside}}} {{}}"),
        1,
        &[("a", &[0])],
        &["behind the header's JSON"],
        &[],
    );
}

#[test]
fn entries_that_make_no_sense_are_dropped_by_name() {
    let good = entry("a", 0, 1);
    for (bad, word) in [
        (
            r#""x":{"dtype":"U9","shape":[1],"data_offsets":[2,1]}"#,
            "ends before it starts",
        ),
        (
            r#""x":{"dtype":"U9","shape":[1],"data_offsets":[1,3]}"#,
            "it ends at byte",
        ),
        (
            r#""x":{"dtype":"U8","shape":[2],"data_offsets":[1,2]}"#,
            "needs 2 bytes",
        ),
        (
            r#""x":{"dtype":"U8","shape":[-1],"data_offsets":[1,2]}"#,
            "no shape",
        ),
        (
            r#""x":{"dtype":"U8","shape":[1],"data_offsets":[1]}"#,
            "1 data_offsets",
        ),
        (
            r#""x":{"dtype":"U8","shape":[1],"data_offsets":[2,1]}"#,
            "needs 1 bytes",
        ),
        (
            r#""x":{"dtype":"F4","shape":[1],"data_offsets":[1,2]}"#,
            "whole number",
        ),
        (r#""x":7"#, "no dtype"),
    ] {
        let json = format!("{{{good},{bad}}}");
        check(&json, 2, &[("a", &[0])], &[word, "1 bytes from byte"], &[]);
    }
}

#[test]
fn duplicates_and_metadata() {
    let json = format!("{{{},{}}}", entry("a", 0, 1), entry("a", 0, 1));
    check(&json, 1, &[("a", &[0])], &["twice"], &[]);
    let json = format!(
        "{{\"__metadata__\":{{\"k\":1,\"t\":\"x\"}},{}}}",
        entry("a", 0, 1)
    );
    check(&json, 1, &[("a", &[0])], &[], &["`k` becomes text"]);
    let json = format!("{{\"__metadata__\":[],{}}}", entry("a", 0, 1));
    check(
        &json,
        1,
        &[("a", &[0])],
        &["__metadata__: is no object"],
        &[],
    );
}

#[test]
fn what_readers_accept_is_kept() {
    let a = r#""a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}"#;
    let nested = format!("{}{}", "[".repeat(120), "]".repeat(120));
    for json in [
        r#"{"a":["U8",[2],[0,2]]}"#.to_owned(),
        r#"{"a":[{"U8":null},[2],[0,2]]}"#.to_owned(),
        r#"{"a":{"dtype":{"U8":null},"shape":[2],"data_offsets":[0,2]}}"#.to_owned(),
        format!(r#"{{"a":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}},{a}}}"#),
        format!(r#"{{"__metadata__":null,{a}}}"#),
        format!(" \n{{{a}}}"),
        r#"{"a":{"dtype":"U8","x":[1,{"y":null}],"shape":[2],"data_offsets":[0,2]}}"#.to_owned(),
        format!(r#"{{"a":{{"dtype":"U8","x":{nested},"shape":[2],"data_offsets":[0,2]}}}}"#),
    ] {
        let folder = Folder::new();
        let path = file(&folder, &json, 2);
        let readable = Checkpoint::open(&path).unwrap_or_else(|error| panic!("{error}: {json}"));
        let repair = Repair::plan(&path, &Limits::default()).unwrap();
        assert!(repair.is_needed(), "{json}");
        let target = folder.join("repaired.safetensors");
        let written = repair.write(&target, &mut |_, _| ControlFlow::Continue(()));
        written.unwrap().unwrap();
        let strict = OpenOptions {
            strictness: Strictness::Spec,
            ..Default::default()
        };
        let repaired = Checkpoint::open_with(&target, &strict).unwrap();
        assert_eq!(repaired.len(), 1, "{json}");
        assert_eq!(
            repaired.read_bytes("a").unwrap(),
            readable.read_bytes("a").unwrap(),
            "{json}"
        );
    }
    // A damaged file has such entries too.
    let json = r#"{"a":["U8",[2],[0,2]],"b":["U8",[9],[2,11]]}"#;
    check(json, 2, &[("a", &[0, 1])], &["b: it ends at byte"], &[]);
}

#[test]
fn what_no_header_is_left_of_is_an_error() {
    let folder = Folder::new();
    for (json, data) in [("{\"a\":", 0), ("[]", 0), ("", 0), ("{}x\u{1}\"", 0)] {
        let path = file(&folder, json, data);
        let plan = Repair::plan(&path, &Limits::default());
        if json.starts_with("{}") {
            assert!(plan.unwrap().is_needed());
        } else {
            assert!(matches!(plan, Err(StoreError::Format { .. })), "{json}");
        }
    }
    let path = folder.join("short");
    std::fs::write(&path, [100, 0, 0, 0, 0, 0, 0, 0, b'{']).unwrap();
    assert!(matches!(
        Repair::plan(&path, &Limits::default()),
        Err(StoreError::Format { .. })
    ));
}

#[test]
fn a_repair_that_is_broken_off_changes_nothing() {
    let folder = Folder::new();
    let path = file(&folder, &format!("{{{}}}", entry("a", 0, 1)), 2);
    let before = std::fs::read(&path).unwrap();
    let repair = Repair::plan(&path, &Limits::default()).unwrap();
    assert_eq!(
        repair
            .write(&path, &mut |_, _| ControlFlow::Break(()))
            .unwrap(),
        None
    );
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    repair
        .write(&path, &mut |_, _| ControlFlow::Continue(()))
        .unwrap()
        .unwrap();
    assert!(Checkpoint::open(&path).is_ok());
}

#[test]
fn tensors_of_unknown_dtypes_are_kept_as_they_are() {
    let folder = Folder::new();
    let odd = r#""q":{"dtype":"Q4\"K","shape":[9,1],"data_offsets":[0,3]}"#;
    let good = r#""a":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}"#;
    // Cut behind `a`: `z` is lost.
    let lost = r#""z":{"dtype":"F32","shape":[1],"data_offsets":[5,9]}"#;
    let path = file(&folder, &format!("{{{odd},{good},{lost}}}"), 5);
    let repair = Repair::plan(&path, &Limits::default()).unwrap();
    assert_eq!((repair.tensor_count(), repair.opaque_count()), (2, 1));
    assert_eq!(repair.dropped.len(), 1, "{:?}", repair.dropped);
    let target = folder.join("repaired.safetensors");
    let written = repair.write(&target, &mut |_, _| ControlFlow::Continue(()));
    written.unwrap().unwrap();

    let options = OpenOptions {
        strictness: Strictness::Spec,
        opaque_dtypes: true,
        ..Default::default()
    };
    assert!(Checkpoint::open(&target).is_err());
    let repaired = Checkpoint::open_with(&target, &options).unwrap();
    assert_eq!(repaired.read_bytes("a").unwrap(), [3, 4]);
    let place = repaired.opaque_tensors().next().unwrap();
    assert_eq!((place.tensor.name, place.tensor.dtype), ("q", "Q4\"K"));
    assert_eq!(place.tensor.shape, [9, 1]);
    let mut bytes = [9; 3];
    repaired.read_opaque_at("q", 0, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 1, 2]);
    // There is nothing more to do for it.
    let again = Repair::plan(&target, &Limits::default()).unwrap();
    assert!(!again.is_needed(), "{again:?}");
}

#[test]
fn shards_may_have_unknown_dtypes() {
    let folder = Folder::new();
    let odd = r#"{"q":{"dtype":"Q4","shape":[9],"data_offsets":[0,3]}}"#;
    folder.write("1.safetensors", raw_file(odd, b"xyz"));
    let index = r#"{"metadata":{"total_size":3},"weight_map":{"q":"1.safetensors"}}"#;
    let index = folder.write("m.safetensors.index.json", index);
    assert!(Checkpoint::open(&index).is_err());
    let options = OpenOptions {
        opaque_dtypes: true,
        ..Default::default()
    };
    let opened = Checkpoint::open_with(&index, &options).unwrap();
    assert_eq!((opened.len(), opened.opaque_tensors().count()), (0, 1));
    assert!(opened.warnings().is_empty(), "{:?}", opened.warnings());
}
