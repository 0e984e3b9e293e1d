//! Limits on the command line, standard input and output, and answers of servers that were saved as files.

mod common;

use std::io::Write as _;
use std::process::Stdio;

use common::{Place, Ran, model};
use safelight_store::Checkpoint;

/// A file whose header has this many bytes, most of them spaces.
fn with_header(place: &Place, name: &str, header_bytes: usize) {
    let mut json = br#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#.to_vec();
    json.resize(header_bytes, b' ');
    let file = [&(header_bytes as u64).to_le_bytes()[..], &json, &[1, 2]].concat();
    place.write(name, &file);
}

/// Runs with these bytes on standard input.
fn piped(place: &Place, arguments: &[&str], input: &[u8]) -> Ran {
    let mut command = place.command(arguments);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = pipes.stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let _ = stdin.write_all(input); // who refuses its input does not read it
    drop(stdin);
    Ran::of(child.wait_with_output().unwrap())
}

#[test]
fn longer_headers_are_read_on_request() {
    let place = Place::new();
    let bytes = 100_000_008;
    with_header(&place, "long", bytes);
    let words = [
        "header has 100000008 bytes",
        "limit is 100000000",
        "--max-header 100000008",
    ];
    for command in [&["ls", "long"][..], &["convert", "long", "b.safetensors"]] {
        place.refuses(command, 3, &words);
    }
    let ran = place.run(&["lint", "long"]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stdout.contains("--max-header 100000008"),
        "{}",
        ran.stdout
    );
    for command in [
        &["ls", "long"][..],
        &["lint", "long"],
        &["repair", "long"],
        &["convert", "long", "b.safetensors"],
        &["meta", "set", "long", "a=b"],
    ] {
        place.works(&[command, &["--max-header", "110MB"]].concat());
    }
    let got = place.works(&["meta", "get", "--max-header=110MB", "long", "a"]);
    assert_eq!(got.stdout, "b\n");
}

#[test]
fn the_limit_can_be_lowered() {
    let place = Place::new();
    with_header(&place, "a.safetensors", 64);
    for command in ["ls", "verify", "stats", "inspect", "repair"] {
        let arguments = [command, "a.safetensors", "--max-header"];
        let refused = place.run(&[&arguments[..], &["63"]].concat());
        assert_eq!(refused.code, Some(3), "{command}: {}", refused.stdout);
        let text = refused.stdout + &refused.stderr;
        assert!(text.contains("--max-header 64"), "{command}: {text}");
        place.works(&[&arguments[..], &["64"]].concat());
    }
    place.refuses(
        &["ls", "a.safetensors", "--max-header", "much"],
        2,
        &["size"],
    );
    // More than is ever read is not made less in silence.
    for size in ["5GiB", "4GiB", "4294967296"] {
        let arguments = ["ls", "a.safetensors", "--max-header", size];
        place.refuses(&arguments, 2, &["at most 4294967295"]);
    }
    place.works(&["ls", "a.safetensors", "--max-header", "4294967295"]);
}

#[test]
fn answers_of_servers_are_told() {
    let place = Place::new();
    for (text, words) in [
        ("Entry not found", "no such file"),
        (
            "Access to model a/b is restricted.",
            "accept the model's terms",
        ),
        ("{\"error\":\"Internal Error\"}", "error answer"),
        ("Ein Text, sonst nichts.\n", "a text"),
    ] {
        place.write("x.sft", text.as_bytes());
        place.refuses(&["ls", "x.sft"], 3, &[words]);
        place.refuses(&["verify", "x.sft"], 3, &[]);
        place.refuses(&["convert", "x.sft", "y.safetensors"], 3, &[words]);
    }
}

#[test]
fn standard_input_and_output() {
    let place = Place::new();
    let path = model(&place, "m.safetensors");
    let file = std::fs::read(&path).unwrap();
    let before = place.everything();
    let mask = ["cat", "m.safetensors", "mask", "-f", "raw", "-o", "-"];
    assert_eq!(place.works(&mask).stdout.as_bytes(), [1, 0, 1]);
    assert_eq!(place.everything(), before, "no file is called `-`");
    let listed = piped(&place, &["ls", "-", "--json"], &file);
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    assert_eq!(listed.json()["tensor_count"], 7);
    let made = piped(&place, &["convert", "-", "b.safetensors"], &file);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let copy = Checkpoint::open(&place.path("b.safetensors")).unwrap();
    assert_eq!(copy.read_bytes("mask").unwrap(), [1, 0, 1]);
    let text = piped(&place, &["ls", "-"], b"Entry not found");
    assert_eq!(text.code, Some(3));
    assert!(text.stderr.contains("standard input"), "{}", text.stderr);
    place.refuses(&["repair", "-"], 2, &["standard input"]);
}

#[test]
fn json_is_one_object_a_line() {
    let place = Place::new();
    model(&place, "m.safetensors");
    let ran = place.works(&[
        "inspect",
        "m.safetensors",
        "m.safetensors",
        "--no-hash",
        "--json",
    ]);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{}", ran.stdout);
    let parsed: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
    assert_eq!(parsed["tensor_count"], 7);
    let models = place.works(&["models", "--no-hash", "--json"]);
    assert_eq!(models.stdout.lines().count(), 1);
    let written = place.works(&["cat", "m.safetensors", "mask", "--json", "-o", "mask.json"]);
    let bytes = std::fs::metadata(place.path("mask.json")).unwrap().len();
    let expected =
        serde_json::json!({"path": "mask.json", "bytes": bytes, "dtype": "BOOL", "shape": [3]});
    assert_eq!(written.json(), expected);
}

#[test]
fn metadata_of_files_with_unknown_dtypes() {
    let place = Place::new();
    let json = br#"{"a":{"dtype":"U1","shape":[9],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#;
    let file = [&(json.len() as u64).to_le_bytes()[..], json, &[1, 2, 3]].concat();
    place.write("odd.safetensors", &file);
    place.refuses(&["meta", "set", "odd.safetensors", "k=v"], 3, &["U1"]);
    place.works(&["meta", "set", "odd.safetensors", "k=v", "--unknown-dtypes"]);
    let got = place.works(&["meta", "get", "odd.safetensors", "k", "--unknown-dtypes"]);
    assert_eq!(got.stdout, "v\n");
    let listed = place.works(&["ls", "odd.safetensors", "--unknown-dtypes", "--json"]);
    assert_eq!(listed.json()["unknown_dtypes"][0]["bytes"], 2);
    place.works(&["meta", "rm", "odd.safetensors", "k", "--unknown-dtypes"]);
    let looked = place.works(&[
        "inspect",
        "odd.safetensors",
        "--no-hash",
        "--unknown-dtypes",
    ]);
    assert!(
        looked.stdout.contains("unknown dtype: a  U1"),
        "{}",
        looked.stdout
    );
}

#[test]
fn tensors_are_chosen_and_renamed() {
    let place = Place::new();
    model(&place, "m.safetensors");
    let names = |file: &str| -> Vec<String> {
        let file = Checkpoint::open(&place.path(file)).unwrap();
        let mut names: Vec<String> = file
            .tensors()
            .map(|tensor| tensor.name.to_owned())
            .collect();
        names.sort();
        names
    };
    let convert = |to: &str, options: &[&str]| {
        place.works(
            &[
                &["convert", "m.safetensors", to, "--align", "4096"],
                options,
            ]
            .concat(),
        )
    };
    let ran = convert(
        "a.safetensors",
        &[
            "--only",
            "layers",
            "--exclude",
            "*.bias",
            "--rename",
            "layers.0.weight=first",
        ],
    );
    assert_eq!(
        names("a.safetensors"),
        ["first", "layers.1.weight", "layers.10.weight"]
    );
    assert!(ran.stdout.contains("4 tensors left out"), "{}", ran.stdout);
    assert!(
        ran.stdout.contains("starts at a multiple of 4096"),
        "{}",
        ran.stdout
    );
    let json = convert("b.safetensors", &["--only", "layers.0.weight", "--json"]).json();
    assert_eq!(json["align"]["asked"], 4096);
    assert_eq!(json["align"]["tensors"], json["align"]["data"]);
    for (options, word) in [
        (["--only", "nothing"], "--only"),
        (["--exclude", "nothing"], "--exclude"),
        (["--exclude", "*"], "no tensor"),
        (["--rename", "nothing=x"], "--rename"),
        (["--rename", "mask=step"], "step"),
        (["--rename", "mask"], "new name"),
    ] {
        place.refuses(
            &[&["convert", "m.safetensors", "c.safetensors"], &options[..]].concat(),
            2,
            &[word],
        );
    }
}

#[test]
fn shared_tensors_are_written_again() {
    let place = Place::new();
    model(&place, "m.safetensors");
    place.works(&[
        "meta",
        "set",
        "m.safetensors",
        "tied=mask",
        "other=no tensor",
    ]);
    let count = |to: &str, options: &[&str]| {
        place
            .works(&[&["convert", "m.safetensors", to, "--json"], options].concat())
            .json()["tensor_count"]
            .clone()
    };
    assert_eq!(count("a.safetensors", &[]), 7);
    assert_eq!(count("b.safetensors", &["--restore-shared"]), 8);
    assert_eq!(count("c.npz", &["--exclude", "layers.2.bias"]), 7);
    let file = Checkpoint::open(&place.path("b.safetensors")).unwrap();
    assert_eq!(file.read_bytes("tied").unwrap(), [1, 0, 1]);
    let metadata = file.metadata().unwrap();
    assert!(metadata.contains_key("other") && !metadata.contains_key("tied"));
}

#[test]
fn commands_say_what_they_do_not_take() {
    let place = Place::new();
    model(&place, "m.safetensors");
    for command in [
        &["verify", "-"][..],
        &["lint", "-"],
        &["split", "-", "--count", "2"],
    ] {
        place.refuses(command, 2, &["`-`", "standard input"]);
    }
    place.works(&["split", "m.safetensors", "--count", "2", "-o", "shards"]);
    let pattern = "shards/m-*.safetensors";
    place.refuses(
        &["split", pattern, "--count", "3", "-o", "more"],
        2,
        &["--stem"],
    );
    place.works(&[
        "split", pattern, "--count", "3", "-o", "more", "--stem", "m",
    ]);
}

/// A file of torch with views that repeat one number: `middle` has 4 MiB of it and `wide` 2 GiB.
fn expanded(place: &Place) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/golden/pickle");
    let file = std::fs::read(std::path::Path::new(folder).join("expanded.pt")).unwrap();
    place.write("expanded.pt", &file);
}

#[test]
fn expanded_views_matter_if_they_are_read() {
    let place = Place::new();
    expanded(&place);
    let convert = ["convert", "expanded.pt", "out.safetensors"];
    let words = ["`wide`", "limit is 1073741824", "--limit views=NUMBER"];
    place.refuses(&convert, 3, &words);
    place.refuses(&["stats", "expanded.pt"], 3, &words);
    place.refuses(&["diff", "expanded.pt", "expanded.pt"], 2, &words);
    assert!(place.works(&["ls", "expanded.pt"]).stdout.contains("wide"));
    let few = [&convert[..], &["--exclude", "wide"]].concat();
    place.works(&few);
    let out = Checkpoint::open(&place.path("out.safetensors")).unwrap();
    assert_eq!(out.read_f32("middle").unwrap(), vec![1.0; 1 << 20]);
    let less = [&few[..], &["--force", "--limit", "views=1MiB"]].concat();
    place.refuses(&less, 3, &["`middle`", "limit is 1048576", "--limit views"]);
    let more = [
        "diff",
        "expanded.pt",
        "expanded.pt",
        "--name",
        "small",
        "--name",
        "middle",
    ];
    place.works(&more);
}

#[test]
fn limits_are_raised_and_lowered_by_name() {
    let place = Place::new();
    expanded(&place);
    let few = |limit: &'static str| ["ls", "expanded.pt", "--limit", limit];
    place.refuses(
        &few("tensors=2"),
        3,
        &["3 tensors", "limit is 2", "--limit tensors"],
    );
    place.refuses(&few("pickle=100B"), 3, &["limit is 100", "--limit pickle"]);
    place.refuses(&few("depth=0"), 3, &["limit is 0", "--limit depth"]);
    place.refuses(
        &few("speed=1"),
        2,
        &["memory, pickle, views, tensors, depth, ratio"],
    );
    place.works(&few("tensors=3"));
}

/// What was never written is refused as a wrong file, not as a full disk.
#[test]
fn bytes_that_hdf5_never_wrote_are_refused_before_room_is_made() {
    let place = Place::new();
    let seed = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fuzz/corpus/h5/earliest_chunks.h5"
    );
    let mut file = std::fs::read(seed).unwrap();
    // A dimension of 3 becomes 2⁴⁰, in all places where it stands.
    let three = [3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0];
    let found = (0..file.len() - three.len()).filter(|&at| file[at..].starts_with(&three));
    let found: Vec<usize> = found.collect();
    assert!(!found.is_empty());
    for at in found {
        file[at..at + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    }
    place.write("zeros.h5", &file);
    let words = ["bytes that were never written", "--limit memory=NUMBER"];
    place.refuses(&["convert", "zeros.h5", "out.safetensors"], 3, &words);
    place.refuses(&["convert", "zeros.h5", "out.npz"], 3, &words);
    place.refuses(
        &["convert", "zeros.h5", "out", "--shard-size", "1GB"],
        3,
        &words,
    );
    assert_eq!(place.everything(), ["zeros.h5"]);
}
