//! Shards as one: an index, a folder, a quoted pattern, a list; what is missing, twice or mixed is named by every command.
#![allow(missing_docs)]

mod common;

use std::fs;

use common::{Place, lines, raw};
use safelight_store::Checkpoint;

/// A file with one tensor of two bytes and a title.
fn file(place: &Place, name: &str, tensor: &str) {
    let json = format!(
        r#"{{"__metadata__":{{"title":"t"}},"{tensor}":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}}}"#
    );
    raw(place, name, &json, b"xy");
}

/// The name of a shard.
fn shard(number: usize, count: usize) -> String {
    format!("model-{number:05}-of-{count:05}.safetensors")
}

/// Three shards in folder `s h`, without an index.
fn three() -> Place {
    let place = Place::new();
    for (number, tensor) in [(1, "a"), (2, "b"), (3, "c")] {
        file(&place, &format!("s h/{}", shard(number, 3)), tensor);
    }
    place
}

const PATTERN: &str = "s h/model-*.safetensors";

/// Each command that reads a checkpoint, with `FILE` for its place.
const READERS: [&[&str]; 14] = [
    &["ls", "FILE"],
    &["cat", "FILE", "c"],
    &["inspect", "FILE"],
    &["verify", "FILE"],
    &["lint", "FILE"],
    &["stats", "FILE"],
    &["hash", "FILE"],
    &["scan", "FILE"],
    &["meta", "get", "FILE"],
    &["meta", "set", "FILE", "x=1"],
    &["meta", "rm", "FILE", "title"],
    &["diff", "FILE", "FILE"],
    &["merge", "FILE", "-o", "out.safetensors", "--force"],
    &["convert", "FILE", "out2.safetensors", "--force"],
];

fn with<'a>(command: &[&'a str], file: &'a str) -> Vec<&'a str> {
    let words = command.iter();
    words
        .map(|word| if *word == "FILE" { file } else { word })
        .collect()
}

#[test]
fn every_command_takes_every_way_to_name_shards() {
    for command in READERS {
        let place = three();
        let absolute = place.path(PATTERN).to_string_lossy().into_owned();
        let dotted = format!("./{PATTERN}");
        let set = "s h/model-0000[1-3]-of-0000?.safetensors";
        for name in [PATTERN, &dotted, &absolute, set, "s h", "./s h/"] {
            if command[1] == "rm" {
                place.works(&["meta", "set", "s h", "title=t"]);
            }
            place.works(&with(command, name));
        }
        for written in ["out.safetensors", "out2.safetensors"] {
            if place.path(written).exists() {
                assert_eq!(Checkpoint::open(&place.path(written)).unwrap().len(), 3);
            }
        }
    }
}

#[test]
fn a_missing_shard_is_named_by_every_command_that_reads_them_as_one() {
    let place = three();
    fs::remove_file(place.path("s h").join(shard(2, 3))).unwrap();
    let gone = "`model-00002-of-00003.safetensors`";
    for command in READERS {
        // What goes through files one by one has nothing to say about others.
        if ["hash", "scan"].contains(&command[0]) {
            continue;
        }
        for name in [PATTERN, "s h"] {
            let catalogued = command[0] == "inspect" && name == "s h";
            let code = match command[0] {
                _ if catalogued => 0,
                "lint" => 1,
                "diff" => 2,
                _ => 3,
            };
            let ran = place.run(&with(command, name));
            let told = format!("{}{}", ran.stdout, ran.stderr);
            assert_eq!(ran.code, Some(code), "{command:?} {name}\n{told}");
            assert!(told.contains(gone), "{command:?} {name}\n{told}");
        }
    }
    assert!(!place.path("out.safetensors").exists() && !place.path("out2.safetensors").exists());
    let answer = place.run(&["verify", "s h", "--json"]);
    let answer = lines(&answer).remove(0);
    assert_eq!(answer["intact"], false);
    assert!(
        answer["problems"][0]
            .as_str()
            .unwrap()
            .contains("1 of 3 shards is missing")
    );
    let inspected = place.works(&["inspect", "s h", "--json"]).json();
    assert!(inspected["problem"].as_str().unwrap().contains(gone));
}

#[test]
fn listed_shards_must_all_be_there() {
    let place = three();
    let all = [1, 2, 3].map(|number| format!("s h/{}", shard(number, 3)));
    let (first, second, third) = (all[0].as_str(), all[1].as_str(), all[2].as_str());
    place.works(&["verify", first, second, third]);
    place.works(&["lint", first, second, third]);
    // One alone is one file.
    place.works(&["verify", second]);
    place.works(&["ls", second]);
    place.works(&["convert", second, "one.safetensors"]);
    let gone = "`model-00002-of-00003.safetensors`";
    place.refuses(
        &["merge", first, third, "-o", "m.safetensors"],
        3,
        &[gone, "1 of 3"],
    );
    place.refuses(&["verify", first, third], 3, &[gone]);
    let json = place.run(&["verify", first, third, "--json"]);
    let json = lines(&json);
    assert_eq!((json.len(), &json[0]["intact"]), (3, &true.into()));
    assert!(json[2]["error"]["message"].as_str().unwrap().contains(gone));
    let linted = place.run(&["lint", first, third]);
    assert_eq!(linted.code, Some(1));
    assert!(linted.stdout.contains("shard-missing") && linted.stdout.contains(gone));
    // A tensor in two of them.
    file(&place, third, "a");
    let two = ["`a`", "00001-of-00003", "00003-of-00003"];
    place.refuses(&["verify", first, second, third], 3, &two);
    let linted = place.run(&["lint", first, second, third]);
    assert_eq!(linted.code, Some(1));
    for word in two {
        assert!(linted.stdout.contains(word), "{}", linted.stdout);
    }
}

#[test]
fn a_tensor_in_two_files_is_named_with_both() {
    let place = Place::new();
    file(&place, "d/x.safetensors", "a");
    file(&place, "d/y.safetensors", "a");
    for name in ["d", "d/?.safetensors"] {
        for (command, code) in [("verify", 3), ("lint", 1), ("ls", 3), ("stats", 3)] {
            let ran = place.run(&[command, name]);
            let told = format!("{}{}", ran.stdout, ran.stderr);
            assert_eq!(ran.code, Some(code), "{command} {name}\n{told}");
            for word in ["`a`", "x.safetensors", "y.safetensors"] {
                assert!(told.contains(word), "{command} {name}: no {word}\n{told}");
            }
        }
    }
    // Named one by one, they are two files with nothing in common.
    place.works(&["verify", "d/x.safetensors", "d/y.safetensors"]);
    // Each has its own metadata.
    place.works(&["meta", "set", "d", "x=1"]);
}

#[test]
fn mixed_sets_are_told_apart() {
    let place = three();
    file(&place, &format!("s h/{}", shard(4, 4)), "d");
    let words = [
        "`model-*-of-00003.safetensors` (3 of 3)",
        "`model-*-of-00004.safetensors` (1 of 4)",
    ];
    for command in READERS {
        if ["hash", "scan", "inspect", "lint", "verify", "diff"].contains(&command[0]) {
            continue;
        }
        place.refuses(&with(command, "s h"), 3, &words);
        place.works(&with(command, "s h/model-*-of-00003.safetensors"));
    }
    for (command, code) in [("verify", 3), ("lint", 1)] {
        let ran = place.run(&[command, "s h"]);
        assert_eq!(ran.code, Some(code));
        assert!(ran.stdout.contains(words[0]), "{}", ran.stdout);
    }
}

#[test]
fn a_name_that_is_there_wins_over_the_pattern_and_one_that_fits_nothing_is_told() {
    let place = Place::new();
    file(&place, "m[12].safetensors", "literal");
    file(&place, "m1.safetensors", "one");
    file(&place, "m*.safetensors", "star");
    for (name, tensor) in [
        ("m[12].safetensors", "literal"),
        ("m[1].safetensors", "one"),
        ("m*.safetensors", "star"),
        ("./m[0-9].safetensors", "one"),
    ] {
        let listed = place.works(&["ls", name, "--json"]);
        assert_eq!(lines(&listed)[0]["tensors"][0]["name"], tensor, "{name}");
    }
    for command in READERS {
        let code = match command[0] {
            "lint" | "scan" | "diff" => 2,
            _ => 3,
        };
        for name in [
            "no*.safetensors",
            "nowhere/m*.safetensors",
            "no[x].safetensors",
        ] {
            let words = [name, "nor one that fits it as a pattern"];
            place.refuses(&with(command, name), code, &words);
        }
    }
}

#[test]
fn a_pattern_of_other_kinds_stands_for_each_file() {
    let place = three();
    for name in ["x.npz", "y.npz"] {
        place.works(&["convert", PATTERN, name]);
    }
    let stats = place.works(&["stats", "?.npz", "--json"]);
    let files: Vec<_> = lines(&stats)
        .iter()
        .map(|line| line["file"].clone())
        .collect();
    assert_eq!(files, ["x.npz", "y.npz"]);
    assert!(place.works(&["ls", "?.npz"]).stdout.contains("x.npz:"));
    let scanned = place.works(&["scan", "*.npz"]).stdout;
    assert!(scanned.contains("2 files"), "{scanned}");
    place.refuses(&["convert", "?.npz", "z.safetensors"], 2, &["2 files fit"]);
    place.works(&["convert", "x.n*", "z.safetensors"]);
    assert_eq!(
        Checkpoint::open(&place.path("z.safetensors"))
            .unwrap()
            .len(),
        3
    );
    // Folders are scanned too.
    let scanned = place.works(&["scan", "s*"]).stdout;
    assert!(scanned.contains("3 files"), "{scanned}");
}

#[test]
fn metadata_of_shards_is_set_in_all_or_in_none() {
    let place = three();
    let bytes = |number: usize| fs::read(place.path("s h").join(shard(number, 3))).unwrap();
    let before = [1, 2].map(bytes);
    fs::write(
        place.path("s h").join(shard(3, 3)),
        b"\x08\0\0\0\0\0\0\0{ broken",
    )
    .unwrap();
    for name in ["s h", PATTERN] {
        let words = ["00003-of-00003"];
        place.refuses(&["meta", "set", name, "x=1"], 3, &words);
        place.refuses(&["meta", "rm", name, "title"], 3, &words);
        place.refuses(&["meta", "rm", name, "--all"], 3, &words);
    }
    assert_eq!([1, 2].map(bytes), before);
    // Without room in one, none is changed in place.
    file(&place, &format!("s h/{}", shard(3, 3)), "c");
    let long = format!("title={}", "x".repeat(500));
    place.works(&["meta", "set", &format!("s h/{}", shard(1, 3)), &long]);
    place.works(&["meta", "set", &format!("s h/{}", shard(1, 3)), "title=t"]);
    let before = [1, 2, 3].map(bytes);
    place.refuses(
        &["meta", "set", "s h", &long, "--in-place"],
        2,
        &["00002-of-00003", "--in-place"],
    );
    assert_eq!([1, 2, 3].map(bytes), before);
}

#[test]
#[cfg(unix)]
fn an_edit_that_fails_midway_says_what_has_changed() {
    let place = three();
    // The last shard has to be copied, and is longer than a file may become.
    let json = r#"{"c":{"dtype":"U8","shape":[200000],"data_offsets":[0,200000]}}"#;
    raw(&place, &format!("s h/{}", shard(3, 3)), json, &[7; 200_000]);
    let program = env!("CARGO_BIN_EXE_safelight");
    for json in [false, true] {
        let title = if json { "y" } else { "x" }.repeat(300);
        let flag = if json { "--json" } else { "" };
        let script = format!("ulimit -f 64; exec '{program}' meta set 's h' title={title} {flag}");
        let mut shell = std::process::Command::new("sh");
        let ran = shell
            .args(["-c", &script])
            .current_dir(place.path(""))
            .output();
        let ran = common::Ran::of(ran.unwrap());
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        let changed = format!("changed already: s h/{}, s h/{}", shard(1, 3), shard(2, 3));
        let kept = format!("as they were: s h/{}", shard(3, 3));
        assert!(
            ran.stderr.contains(&changed) && ran.stderr.contains(&kept),
            "{}",
            ran.stderr
        );
        if json {
            let answer = &lines(&ran)[0];
            assert_eq!(answer["changed"].as_array().unwrap().len(), 2, "{answer}");
            assert_eq!(answer["unchanged"][0], format!("s h/{}", shard(3, 3)));
        }
        let first = Checkpoint::open(&place.path("s h").join(shard(1, 3))).unwrap();
        assert_eq!(first.metadata().unwrap()["title"], title);
        let third = Checkpoint::open(&place.path("s h").join(shard(3, 3))).unwrap();
        assert!(third.metadata().is_none());
    }
}

#[test]
fn an_index_that_is_wrong_is_told_by_every_command() {
    let index = "s h/model.safetensors.index.json";
    for (text, words, rule) in [
        (
            r#"{"weight_map":{}}"#,
            &["`weight_map` is empty"][..],
            "index-empty",
        ),
        (
            r#"{"weight_map":{"a":"model.safetensors.index.json"}}"#,
            &["`model.safetensors.index.json`", "an index and no shard"],
            "index-path",
        ),
        (
            r#"{"weight_map":{"a":"../x.safetensors"}}"#,
            &["`../x.safetensors`", "outside"],
            "index-path",
        ),
        (
            r#"{"weight_map":{"a":"/x.safetensors"}}"#,
            &["`/x.safetensors`", "outside"],
            "index-path",
        ),
        (
            r#"{"weight_map":{"q":"./model-00001-of-00003.safetensors"}}"#,
            &["`q` in `model-00001-of-00003.safetensors`"],
            "index-tensor-missing",
        ),
    ] {
        let place = three();
        place.write(index, text.as_bytes());
        for command in READERS {
            if ["lint", "scan"].contains(&command[0]) || command[1] == "set" || command[1] == "rm" {
                continue;
            }
            // A damaged index is still a list of files to hash.
            if command[0] == "hash" && rule == "index-tensor-missing" {
                continue;
            }
            let ran = place.run(&with(command, index));
            let told = format!("{}{}", ran.stdout, ran.stderr);
            let code = if command[0] == "diff" { 2 } else { 3 };
            assert_eq!(ran.code, Some(code), "{command:?} {text}\n{told}");
            for word in words {
                assert!(told.contains(word), "{command:?} {text}: no {word}\n{told}");
            }
        }
        for name in [index, "s h", "s h/model*"] {
            let linted = place.run(&["lint", name, "--json"]);
            assert_eq!(linted.code, Some(1), "{text}\n{}", linted.stdout);
            let about = &lines(&linted)[0];
            assert_eq!(about["file"], index);
            let findings = about["findings"].as_array().unwrap();
            assert!(
                findings.iter().any(|finding| finding["rule"] == rule),
                "{text}\n{about}"
            );
        }
    }
    // Two spellings of one file are one file.
    let place = three();
    let text = r#"{"metadata":{"total_size":4},"weight_map":{"a":"./model-00001-of-00003.safetensors","c":".//model-00003-of-00003.safetensors"}}"#;
    place.write(index, text.as_bytes());
    for command in READERS {
        place.works(&with(command, index));
    }
}

#[test]
fn what_an_index_does_not_name_is_told_of() {
    let place = three();
    let map = [("a", 1), ("b", 2), ("c", 3)];
    let index = |names: &[(&str, usize)]| {
        let map: serde_json::Map<_, _> = names
            .iter()
            .map(|(name, number)| ((*name).to_owned(), shard(*number, 3).into()))
            .collect();
        let json = serde_json::json!({ "metadata": { "total_size": 6 }, "weight_map": map });
        place.write("s h/m.safetensors.index.json", json.to_string().as_bytes());
    };
    // Shard 3 has a second tensor.
    let json = r#"{"c":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"d":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    raw(&place, &format!("s h/{}", shard(3, 3)), json, b"xy");
    index(&map);
    let file = "s h/m.safetensors.index.json";
    for command in [
        &["merge", file, "-o", "o.safetensors", "--force"][..],
        &["convert", file, "o.safetensors", "--force"],
    ] {
        let ran = place.works(&[command, &["--json"]].concat());
        let notes = ran.json()["notes"].to_string();
        assert!(
            notes.contains("1 tensor is in shards but not in the index: `d`"),
            "{notes}"
        );
    }
    for command in [
        &["ls", file][..],
        &["split", file, "-o", "out", "--count", "2"],
    ] {
        let ran = place.works(command);
        assert!(ran.stderr.contains("`d`"), "{}", ran.stderr);
    }
}

#[test]
fn scan_of_an_index_looks_into_its_shards() {
    let place = three();
    let map = serde_json::json!({ "a": shard(1, 3), "b": shard(2, 3), "c": shard(3, 3) });
    let json = serde_json::json!({ "metadata": {}, "weight_map": map });
    let file = "s h/m.safetensors.index.json";
    place.write(file, json.to_string().as_bytes());
    let ran = place.works(&["scan", file]);
    assert!(ran.stdout.contains("4 files: 4 clean"), "{}", ran.stdout);
    place.write(&format!("s h/{}", shard(3, 3)), b"cos\nsystem\n(S'id'\ntR.");
    let ran = place.run(&["scan", file]);
    assert!(
        ran.code == Some(1) && ran.stdout.contains("1 dangerous"),
        "{}",
        ran.stdout
    );
    fs::remove_file(place.path(&format!("s h/{}", shard(2, 3)))).unwrap();
    let ran = place.run(&["scan", file]);
    assert!(
        ran.code == Some(2) && ran.stderr.contains("00002-of-00003"),
        "{}",
        ran.stderr
    );
}
