//! The commands that write tensor files: `meta`, `split`, `repair`.

mod common;

use std::fs;

use common::{Place, model, raw};
use safelight_store::Checkpoint;

#[test]
fn meta_edits() {
    let place = Place::new();
    let path = model(&place, "m.safetensors");
    let data = |name: &str| Checkpoint::open(&path).unwrap().read_bytes(name).unwrap();
    let before = data("layers.1.weight");
    // Without room the file is copied once; then there is room.
    let answer = place
        .works(&[
            "meta",
            "set",
            "m.safetensors",
            "author=Ann",
            "title=The house",
            "--json",
        ])
        .json();
    assert_eq!(answer["set"], serde_json::json!(["author", "title"]));
    let how = answer["files"][0]["how"].as_str().unwrap();
    assert!(["copied", "cloned"].contains(&how), "{how}");
    let ran = place.works(&["meta", "set", "m.safetensors", "author=Bob"]);
    assert!(ran.stdout.contains("1 key set, in place"), "{}", ran.stdout);
    place.write("text", "zwei\nZeilen\n".as_bytes());
    place.works(&[
        "meta",
        "set",
        "m.safetensors",
        "notes=@text",
        "at=@@home",
        "empty=",
    ]);
    assert_eq!(
        place
            .works(&["meta", "get", "m.safetensors", "notes"])
            .stdout,
        "zwei\nZeilen\n\n"
    );
    assert_eq!(
        place.works(&["meta", "get", "m.safetensors", "at"]).stdout,
        "@home\n"
    );
    let answer = place
        .works(&["meta", "rm", "m.safetensors", "notes", "empty", "--json"])
        .json();
    assert_eq!(answer["removed"], serde_json::json!(["empty", "notes"]));
    let all = place
        .works(&["meta", "get", "m.safetensors", "--json"])
        .json();
    let expected =
        serde_json::json!({"format": "pt", "title": "The house", "author": "Bob", "at": "@home"});
    assert_eq!(all["metadata"], expected);
    place.refuses(
        &["meta", "rm", "m.safetensors", "title", "nothing"],
        2,
        &["nothing"],
    );
    place.works(&["meta", "rm", "m.safetensors", "--all"]);
    assert_eq!(place.works(&["meta", "get", "m.safetensors"]).stdout, "");
    assert_eq!(data("layers.1.weight"), before);
    place.works(&["verify", "m.safetensors", "--strict"]);
    assert_eq!(place.everything(), ["m.safetensors", "text"]);
}

#[test]
fn a_key_is_set_once() {
    let place = Place::new();
    let path = model(&place, "m.safetensors");
    let before = fs::read(&path).unwrap();
    place.refuses(
        &["meta", "set", "m.safetensors", "k=1", "j=3", "k=2"],
        2,
        &["`k` is set twice"],
    );
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn repair_keeps_what_readers_accept_and_never_everything_away() {
    let place = Place::new();
    raw(
        &place,
        "array.safetensors",
        r#"{"x":["U8",[4],[0,4]]}"#,
        b"abcd",
    );
    place.works(&["ls", "array.safetensors"]);
    let ran = place.works(&["repair", "array.safetensors", "--in-place"]);
    assert!(ran.stdout.contains("1 tensor, 4 bytes"), "{}", ran.stdout);
    place.works(&["verify", "array.safetensors", "--strict"]);
    let raw_bytes = place.works(&["cat", "array.safetensors", "x", "-f", "raw"]);
    assert_eq!(raw_bytes.stdout, "abcd");

    // The header is there, and nothing of its tensors.
    let json = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#;
    let path = raw(&place, "cut.safetensors", json, b"");
    let before = fs::read(&path).unwrap();
    place.works(&["repair", "cut.safetensors"]);
    let words = [
        "cut.safetensors: no tensor",
        "a: it ends at byte",
        "1 more",
        "--force",
    ];
    place.refuses(&["repair", "cut.safetensors", "--in-place"], 3, &words);
    place.refuses(&["repair", "cut.safetensors", "-o", "new"], 3, &words);
    assert_eq!(fs::read(&path).unwrap(), before);
    place.works(&["repair", "cut.safetensors", "--in-place", "--force"]);
    assert!(Checkpoint::open(&path).unwrap().is_empty());
}

#[test]
fn split_files_are_the_same_model() {
    let place = Place::new();
    let path = model(&place, "m.safetensors");
    let whole = Checkpoint::open(&path).unwrap();
    let cases: [(&str, &[&str], usize); 6] = [
        ("count", &["--count", "3"], 3),
        ("many", &["--count", "50"], 7),
        ("size", &["--size", "100"], 5),
        ("layers", &["--by-layer"], 5),
        ("packed", &["--by-layer", "--size", "200b"], 2),
        ("regex", &["--by-regex", "(weight|bias)"], 3),
    ];
    for (folder, how, shard_count) in cases {
        let arguments = [&["split", "m.safetensors", "-o", folder, "--json"], how].concat();
        let answer = place.works(&arguments).json();
        assert_eq!(
            answer["shards"].as_array().unwrap().len(),
            shard_count,
            "{folder}: {answer}"
        );
        assert_eq!(answer["total_size"], 305, "{folder}");
        let index = place.path(folder).join("m.safetensors.index.json");
        let strict = safelight_store::OpenOptions {
            strictness: safelight_format::Strictness::Spec,
            ..Default::default()
        };
        let split = Checkpoint::open_with(&index, &strict).unwrap();
        assert_eq!(split.len(), whole.len(), "{folder}");
        for name in whole.names() {
            assert_eq!(
                split.read_bytes(name).unwrap(),
                whole.read_bytes(name).unwrap(),
                "{folder} {name}"
            );
        }
        assert_eq!(split.metadata(), whole.metadata());
        place.refuses(&arguments, 2, &["is there already", "--force"]);
    }
    place.works(&[
        "split",
        "m.safetensors",
        "-o",
        "count",
        "--count",
        "3",
        "--force",
    ]);
    // Shards can be split anew.
    place.works(&[
        "split", "count", "-o", "again", "--count", "2", "--stem", "x",
    ]);
    assert!(place.path("again/x-00002-of-00002.safetensors").exists());
}

#[test]
fn repair_keeps_what_is_whole() {
    let place = Place::new();
    let path = model(&place, "m.safetensors");
    let ran = place.works(&["repair", "m.safetensors"]);
    assert!(ran.stdout.contains("nothing to repair"), "{}", ran.stdout);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 4]).unwrap();
    let told = place.works(&["repair", "m.safetensors"]);
    assert!(
        told.stdout.contains("dropped: mask") && told.stdout.contains("--in-place"),
        "{}",
        told.stdout
    );
    assert_eq!(fs::read(&path).unwrap().len(), whole.len() - 4);
    let answer = place
        .works(&["repair", "m.safetensors", "-o", "new.safetensors", "--json"])
        .json();
    assert_eq!(
        (&answer["needed"], &answer["output"]),
        (&true.into(), &"new.safetensors".into())
    );
    place.works(&["verify", "new.safetensors", "--strict"]);
    place.refuses(
        &["repair", "m.safetensors", "-o", "new.safetensors"],
        2,
        &["--force"],
    );
    place.refuses(
        &["repair", "m.safetensors", "-o", "m.safetensors"],
        2,
        &["m.safetensors"],
    );
    place.works(&["repair", "m.safetensors", "--in-place"]);
    assert_eq!(
        fs::read(&path).unwrap(),
        fs::read(place.path("new.safetensors")).unwrap()
    );
    assert_eq!(
        place.works(&["cat", "m.safetensors", "step"]).stdout,
        "1234\n"
    );
    assert_eq!(
        place
            .works(&["meta", "get", "m.safetensors", "title"])
            .stdout,
        "A house\n"
    );
    assert_eq!(place.everything(), ["m.safetensors", "new.safetensors"]);
}
