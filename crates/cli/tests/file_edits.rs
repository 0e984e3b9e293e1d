//! The commands that write tensor files: `meta`, `split`, `repair`.

mod common;

use std::fs;

use common::{Place, model, raw};
use safelight_format::{Dtype, TensorView};
use safelight_store::{Checkpoint, SaveOptions, save};

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

/// A file of 60 kB of metadata with room for more of it.
fn roomy(place: &Place) {
    model(place, "from.safetensors");
    place.write("long", "x".repeat(60_000).as_bytes());
    place.works(&["meta", "set", "from.safetensors", "k=@long"]);
    let how = ["--reserve", "64KiB"];
    place.works(
        &[
            &["convert", "-q", "from.safetensors", "m.safetensors"],
            &how[..],
        ]
        .concat(),
    );
}

#[test]
fn metadata_are_edited_in_place_where_there_is_room() {
    let place = Place::new();
    roomy(&place);
    for set in ["a=1", "z=2", "k=3"] {
        let ran = place.works(&["meta", "set", "m.safetensors", set]);
        assert!(ran.stdout.contains("1 key set, in place"), "{}", ran.stdout);
    }
    let ran = place.works(&[
        "meta",
        "set",
        "m.safetensors",
        "a=@long",
        "b=@long",
        "c=@long",
    ]);
    let text = ran.stdout.replace("\n ", "");
    assert!(
        text.contains("in a copy of") && text.contains("bytes and had room for"),
        "{text}"
    );
    let answer = place.works(&["meta", "set", "m.safetensors", "--copy", "--json", "z=1"]);
    let why = &answer.json()["files"][0]["why"];
    assert!(why == "asked for" || why.is_null(), "{why}");
}

#[test]
#[cfg(target_os = "linux")]
fn ctrl_c_ends_a_copy_for_metadata() {
    let place = Place::new();
    let bytes = vec![1; 300_000_000];
    let tensor = TensorView {
        name: "a",
        dtype: Dtype::U8,
        shape: &[300_000_000],
        bytes: &bytes,
    };
    let path = place.path("m.safetensors");
    save(&path, &[tensor], None, &SaveOptions::default()).unwrap();
    let modified = || fs::metadata(&path).unwrap().modified().unwrap();
    let interrupted = [300, 150, 80, 50, 30, 20, 12, 8]
        .into_iter()
        .any(|delay_ms| {
            let before = modified();
            let arguments = [
                "meta",
                "set",
                "--copy",
                "m.safetensors",
                &format!("k={delay_ms}"),
            ];
            let piped = std::process::Stdio::piped;
            let mut child = place
                .command(&arguments)
                .stdout(piped())
                .stderr(piped())
                .spawn()
                .unwrap();
            std::thread::sleep(std::time::Duration::from_millis(delay_ms));
            let id = child.id().to_string();
            let is_running = child.try_wait().unwrap().is_none();
            if is_running {
                let kill = std::process::Command::new("kill")
                    .args(["-INT", &id])
                    .status();
                kill.unwrap();
            }
            let ran = common::Ran::of(child.wait_with_output().unwrap());
            assert_eq!(place.everything(), ["m.safetensors"], "{}", ran.stderr);
            if ran.code != Some(130) {
                return false; // it was done first, or did not listen yet
            }
            assert!(ran.stderr.contains("interrupted"), "{}", ran.stderr);
            assert_eq!(modified(), before);
            true
        });
    assert!(interrupted, "the copy was always faster than the signal");
}

#[test]
fn an_earlier_split_is_replaced_as_a_whole() {
    let place = Place::new();
    model(&place, "m.safetensors");
    place.write("sh/m-00001-of-00009.safetensors", b"nobody names this");
    place.works(&["split", "m.safetensors", "--count", "3", "-o", "sh"]);
    let shards = |place: &Place| {
        let all = place.everything();
        all.into_iter()
            .filter(|name| name.ends_with(".safetensors") && name.starts_with("sh/"))
            .collect::<Vec<_>>()
    };
    assert_eq!(shards(&place).len(), 4);
    let again = ["split", "m.safetensors", "--count", "2", "-o", "sh"];
    place.refuses(&again, 2, &["is there already", "--force"]);
    place.works(&[&again[..], &["--force"]].concat());
    assert_eq!(
        shards(&place),
        [
            "sh/m-00001-of-00002.safetensors",
            "sh/m-00001-of-00009.safetensors",
            "sh/m-00002-of-00002.safetensors"
        ]
    );
    fs::remove_file(place.path("sh/m-00001-of-00009.safetensors")).unwrap();
    // As many shards: those that the index names are not written to before it is replaced.
    place.works(&[&again[..], &["-f"]].concat());
    assert_eq!(
        shards(&place),
        [
            "sh/m-r2-00001-of-00002.safetensors",
            "sh/m-r2-00002-of-00002.safetensors"
        ]
    );
    place.works(&["verify", "sh"]);
    place.works(&["ls", "sh/*.safetensors"]);
    // What is split stays.
    let ran = place.works(&["split", "sh/m.safetensors.index.json", "--count", "3", "-f"]);
    assert!(
        ran.stderr.contains("2 shards that this was made from stay"),
        "{}",
        ran.stderr
    );
    assert_eq!(shards(&place).len(), 5);
    // Its shards are split again, under the name that they have.
    place.works(&["split", "sh", "--count", "3", "-f"]);
    assert!(!place.path("sh/sh.safetensors.index.json").exists());
    place.works(&["ls", "sh"]);
}

#[test]
fn nothing_is_replaced_unless_asked_for() {
    let place = Place::new();
    model(&place, "m.safetensors");
    for (arguments, written) in [
        (
            &["convert", "-q", "m.safetensors", "out.safetensors"][..],
            "out.safetensors",
        ),
        (&["convert", "-q", "m.safetensors", "out.npz"], "out.npz"),
        (
            &[
                "convert",
                "-q",
                "m.safetensors",
                "shards",
                "--shard-size",
                "200",
            ],
            "shards/model.safetensors.index.json",
        ),
        (
            &["merge", "-q", "m.safetensors", "-o", "merged.safetensors"],
            "merged.safetensors",
        ),
        (
            &[
                "cat",
                "m.safetensors",
                "step",
                "-f",
                "npy",
                "-o",
                "step.npy",
            ],
            "step.npy",
        ),
    ] {
        place.works(arguments);
        let words = [written, "is there already; replace it with --force"];
        place.refuses(arguments, 2, &words);
        place.works(&[arguments, &["--force"]].concat());
    }
}

#[test]
#[cfg(target_os = "linux")]
fn names_that_are_no_text() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let place = Place::new();
    let path = model(&place, "m.safetensors");
    let odd = OsStr::from_bytes(b"\xff w.safetensors");
    fs::rename(path, place.path(".").join(odd)).unwrap();
    let run = |arguments: &[&str]| place.command(arguments).arg(odd).output().unwrap();
    let output = run(&["hash", "-k", "sha256"]);
    assert!(
        output.stdout.ends_with(b"  \xff w.safetensors\n"),
        "{output:?}"
    );
    let sums = fs::write(place.path("sums"), &output.stdout);
    sums.unwrap();
    let check = std::process::Command::new("sha256sum")
        .args(["-c", "sums"])
        .current_dir(place.path("."))
        .output();
    if let Ok(check) = check {
        assert!(check.status.success(), "{check:?}");
    }
    let output = run(&["hash", "--json"]);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("no UTF-8 text"),
        "{output:?}"
    );
    let output = run(&["split", "--count", "2"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("--stem"),
        "{output:?}"
    );
    let output = run(&["split", "--count", "2", "--stem", "w"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
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
    let ran = place.run(&["repair", "cut.safetensors"]);
    assert_eq!(ran.code, Some(3), "{}", ran.stderr);
    assert!(
        ran.stdout.contains("no tensor can be kept"),
        "{}",
        ran.stdout
    );
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

#[test]
fn repair_writes_no_numbers_that_may_have_moved() {
    let place = Place::new();
    let numbers: Vec<u8> = (1..400u32)
        .flat_map(|n| (n as f32 / 7e3).to_le_bytes())
        .collect();
    let json = r#"{"w":{"dtype":"F32","shape":[399],"data_offsets":[0,1596]}}     "#;
    let path = raw(&place, "m.safetensors", json, &numbers);
    let sound = fs::read(&path).unwrap();

    // A prefix that is one too large: by the size, the number of before.
    let prefix = json.len() as u64 + 1;
    fs::write(&path, [&prefix.to_le_bytes(), &sound[8..]].concat()).unwrap();
    let ran = place.works(&["repair", "m.safetensors", "-o", "new.safetensors"]);
    let said = ran.stdout.replace("\n ", "");
    assert!(said.contains("the length prefix is wrong"), "{said}");
    assert_eq!(fs::read(place.path("new.safetensors")).unwrap(), sound);
    // And cut off: nothing tells.
    fs::write(&path, [&prefix.to_le_bytes(), &sound[8..1000]].concat()).unwrap();
    let words = ["length prefix", "can't be told"];
    place.refuses(
        &["repair", "m.safetensors", "--in-place", "--force"],
        3,
        &words,
    );

    // A byte in the middle.
    fs::write(&path, [&sound[..300], b"x", &sound[300..]].concat()).unwrap();
    let damaged = fs::read(&path).unwrap();
    let arguments = ["repair", "m.safetensors", "--in-place"];
    place.refuses(&arguments, 3, &["inserted in the middle", "--force"]);
    assert_eq!(fs::read(&path).unwrap(), damaged);
    let told = place.run(&["repair", "m.safetensors"]);
    assert_eq!(told.code, Some(3), "{}", told.stdout);
    assert!(told.stdout.contains("doubtful: "), "{}", told.stdout);
    let told = place.run(&["repair", "m.safetensors", "--json"]);
    assert!(told.json()["doubts"][0].is_string(), "{}", told.stdout);
    place.works(&["repair", "m.safetensors", "--in-place", "--force"]);
}
