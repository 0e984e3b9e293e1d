//! `convert`, `merge`, `diff` and `stats` as people run them.
#![allow(missing_docs)]

mod common;

use std::path::Path;

use common::{Place, changed_demo};
use safelight_format::{Dtype, TensorView, encode_f32};
use safelight_store::{Checkpoint, SaveOptions, save};

/// A file of f32 tensors.
fn tensors(path: &Path, tensors: &[(&str, &[f32])]) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, values)| encode_f32(values))
        .collect();
    let shapes: Vec<[u64; 1]> = tensors
        .iter()
        .map(|(_, values)| [values.len() as u64])
        .collect();
    let views: Vec<TensorView<'_>> = (0..tensors.len())
        .map(|i| TensorView {
            name: tensors[i].0,
            dtype: Dtype::F32,
            shape: &shapes[i],
            bytes: &bytes[i],
        })
        .collect();
    save(path, &views, None, &SaveOptions::default()).unwrap();
}

fn read(path: &Path, name: &str) -> Vec<f32> {
    Checkpoint::open(path).unwrap().read_f32(name).unwrap()
}

#[test]
fn a_model_goes_to_a_folder_and_back_and_draws_the_same() {
    let place = Place::new();
    changed_demo(&place.path("demo.safetensors"), |_| true);
    let report = place
        .works(&[
            "convert",
            "demo.safetensors",
            "folder",
            "--to",
            "diffusers",
            "--json",
        ])
        .json();
    assert_eq!(
        (report["pipeline"].as_str(), report["family"].as_str()),
        (Some("StableDiffusionPipeline"), Some("SD 1.x"))
    );
    assert!(report["files"].as_array().unwrap().len() >= 13, "{report}");
    place.works(&["convert", "folder", "back.safetensors"]);
    let same = place.works(&["diff", "demo.safetensors", "back.safetensors"]);
    assert!(
        same.stdout.contains("743 tensors the same, 0 different"),
        "{}",
        same.stdout
    );
    // A single file's metadata may name its best settings; a folder has no place for them.
    let settings = "--steps 2 --seed 1 --width 128 --height 128 --cfg-scale 2 --sampler Euler";
    let draw = |model: &str, to: &str| {
        let mut arguments = vec!["txt2img", "a house", "--model", model, "--output", to];
        arguments.extend(settings.split(' '));
        place.works(&arguments);
        image::open(place.path(to)).unwrap().to_rgb8()
    };
    assert!(
        draw("demo.safetensors", "a.png") == draw("folder", "b.png"),
        "the folder draws another picture"
    );
    place.refuses(
        &["convert", "demo.safetensors", "folder", "--to", "diffusers"],
        2,
        &["is there already"],
    );
}

#[test]
fn weights_are_cast_and_losses_told() {
    let place = Place::new();
    tensors(
        &place.path("a.safetensors"),
        &[("w", &[1.0, 1e9, 1e-9]), ("fine", &[0.5])],
    );
    let report = place
        .works(&[
            "convert",
            "a.safetensors",
            "b.safetensors",
            "--dtype",
            "fp16",
            "--json",
        ])
        .json();
    assert_eq!(report["cast"].as_array().unwrap().len(), 1);
    assert_eq!(
        (
            &report["cast"][0]["name"],
            report["cast"][0]["overflows"].as_u64(),
            report["cast"][0]["underflows"].as_u64()
        ),
        (&"w".into(), Some(1), Some(1))
    );
    assert_eq!(
        read(&place.path("b.safetensors"), "w"),
        [1.0, f32::INFINITY, 0.0]
    );
    let kept = place
        .works(&[
            "convert",
            "a.safetensors",
            "c.safetensors",
            "--dtype",
            "e4m3",
            "--json",
        ])
        .json();
    assert_eq!(
        kept["cast"].as_array().unwrap().len(),
        0,
        "vectors stay: {kept}"
    );
}

#[test]
fn formats_follow_the_name() {
    let place = Place::new();
    tensors(
        &place.path("a.safetensors"),
        &[("w", &[1.0, 2.0]), ("v", &[3.0])],
    );
    for name in ["b.npz", "b.gguf"] {
        place.works(&["convert", "a.safetensors", name]);
        place.works(&["diff", "a.safetensors", name, "--ignore-metadata"]);
    }
    place.works(&["convert", "a.safetensors", "shards", "--shard-size", "8"]);
    assert!(
        place
            .everything()
            .contains(&"shards/model-00002-of-00002.safetensors".to_string())
    );
    place.works(&[
        "merge",
        "shards/model.safetensors.index.json",
        "-o",
        "whole.safetensors",
    ]);
    place.works(&["diff", "whole.safetensors", "a.safetensors"]);
}

#[test]
fn order_alignment_and_spare_room_can_be_asked_for() {
    let place = Place::new();
    let (b, a) = (("b", &[1.0][..]), ("a", &[2.0, 3.0][..]));
    tensors(&place.path("from.safetensors"), &[b, a]);
    let convert = |name: &str, flags: &[&str]| {
        place.works(&[&["convert", "from.safetensors", name][..], flags].concat());
        let path = place.path(name);
        assert_eq!(read(&path, "a"), [2.0, 3.0]);
        std::fs::read(path).unwrap()
    };
    let header_bytes = |file: &[u8]| u64::from_le_bytes(file[..8].try_into().unwrap()) + 8;
    let by_name = convert("name.safetensors", &["--order", "name"]);
    assert!(by_name.ends_with(&encode_f32(&[2.0, 3.0, 1.0])));
    let aligned = convert(
        "aligned.safetensors",
        &["--order", "aligned", "--align", "4KiB"],
    );
    assert_eq!(header_bytes(&aligned) % 4096, 0);
    let roomy = convert("roomy.safetensors", &["--reserve", "1000"]);
    assert!(header_bytes(&roomy) >= header_bytes(&by_name) + 1000);
    for (arguments, words) in [
        (["a.safetensors", "--align", "100"], "power of two"),
        (["a.npz", "--align", "64"], "are for safetensors"),
        (["a.safetensors", "--order", "random"], "random"),
    ] {
        let arguments = [&["convert", "from.safetensors"][..], &arguments].concat();
        place.refuses(&arguments, 2, &[words]);
    }
}

#[test]
fn wrong_requests_and_files_are_told_and_nothing_is_written() {
    let place = Place::new();
    tensors(&place.path("a.safetensors"), &[("w", &[1.0])]);
    place.write("broken.safetensors", b"\x08\0\0\0\0\0\0\0not json");
    place.write("text.ckpt", b"hello");
    place.refuses(&["convert", "a.safetensors", "x"], 2, &["--to diffusers"]);
    place.refuses(
        &[
            "convert",
            "a.safetensors",
            "x.safetensors",
            "--to",
            "diffusers",
        ],
        2,
        &["writes a folder"],
    );
    place.refuses(
        &[
            "convert",
            "a.safetensors",
            "x.safetensors",
            "--quant",
            "q8_0",
        ],
        2,
        &["GGUF"],
    );
    place.refuses(
        &["convert", "a.safetensors", "x.safetensors", "--dtype", "i8"],
        2,
        &["cannot be cast"],
    );
    place.refuses(
        &["convert", "a.safetensors", "x", "--to", "diffusers"],
        3,
        &["unet, vae missing"],
    );
    place.refuses(
        &["convert", "a.safetensors", "x.safetensors", "--ema"],
        3,
        &["no averaged weights"],
    );
    place.refuses(
        &["convert", "broken.safetensors", "x.safetensors"],
        3,
        &["broken.safetensors"],
    );
    place.refuses(
        &["convert", "text.ckpt", "x.safetensors"],
        3,
        &["text.ckpt"],
    );
    place.refuses(
        &["convert", "nowhere.ckpt", "x.safetensors"],
        3,
        &["nowhere.ckpt"],
    );
    place.refuses(
        &["convert", "a.safetensors", "no/folder/x.safetensors"],
        1,
        &[],
    );
}

#[test]
fn models_are_merged() {
    let place = Place::new();
    for (name, values) in [("a", [0.0, 4.0]), ("b", [1.0, 8.0]), ("c", [0.5, 0.0])] {
        tensors(
            &place.path(&format!("{name}.safetensors")),
            &[("w", &values)],
        );
    }
    let out = place.path("m.safetensors");
    place.works(&[
        "merge",
        "--weighted",
        "a.safetensors",
        "b.safetensors",
        "--alpha",
        "0.25",
        "-o",
        "m.safetensors",
    ]);
    assert_eq!(read(&out, "w"), [0.25, 5.0]);
    place.works(&[
        "merge",
        "--add-difference",
        "a.safetensors",
        "b.safetensors",
        "c.safetensors",
        "--force",
        "-o",
        "m.safetensors",
    ]);
    assert_eq!(read(&out, "w"), [0.5, 12.0]);
    place.refuses(
        &[
            "merge",
            "--weighted",
            "a.safetensors",
            "-o",
            "m.safetensors",
        ],
        2,
        &["two models"],
    );
    place.refuses(
        &[
            "merge",
            "a.safetensors",
            "b.safetensors",
            "-o",
            "x.safetensors",
        ],
        2,
        &["`w` in", "--weighted"],
    );
    place.refuses(
        &[
            "merge",
            "a.safetensors",
            "-o",
            "m.safetensors",
            "--alpha",
            "1",
        ],
        2,
        &["belong to --weighted"],
    );
    tensors(&place.path("other.safetensors"), &[("w", &[1.0])]);
    place.refuses(
        &[
            "merge",
            "--weighted",
            "a.safetensors",
            "other.safetensors",
            "-o",
            "x.safetensors",
        ],
        2,
        &["`w` [2], [1]"],
    );
}

#[test]
fn differences_decide_the_exit_code() {
    let place = Place::new();
    tensors(
        &place.path("a.safetensors"),
        &[("w", &[1.0, 2.0]), ("only", &[0.0])],
    );
    tensors(&place.path("b.safetensors"), &[("w", &[1.0, 2.001])]);
    let differ = place.run(&["diff", "a.safetensors", "b.safetensors"]);
    assert_eq!(differ.code, Some(1));
    for words in [
        "- only",
        "~ w",
        "1 of 2 differ",
        "0 tensors the same, 1 different, 1 only in A, 0 only in B",
    ] {
        assert!(
            differ.stdout.contains(words),
            "no {words:?} in\n{}",
            differ.stdout
        );
    }
    place.works(&[
        "diff",
        "a.safetensors",
        "b.safetensors",
        "--atol",
        "0.01",
        "--name",
        "w",
    ]);
    place.works(&[
        "diff",
        "a.safetensors",
        "b.safetensors",
        "--structure",
        "--name",
        "w",
    ]);
    let json = place
        .run(&["diff", "a.safetensors", "b.safetensors", "--json"])
        .json();
    assert_eq!(
        (
            json["different"].as_bool(),
            json["only_a"][0]["name"].as_str(),
            json["tensors"][0]["numbers"]["different"].as_u64()
        ),
        (Some(true), Some("only"), Some(1))
    );
    place.refuses(
        &["diff", "a.safetensors", "nowhere.safetensors"],
        2,
        &["nowhere.safetensors"],
    );
    place.refuses(
        &["diff", "a.safetensors", "b.safetensors", "--rtol=-1"],
        2,
        &["rtol"],
    );
}

#[test]
fn numbers_are_told_and_can_fail() {
    let place = Place::new();
    tensors(
        &place.path("a.safetensors"),
        &[("w", &[1.0, 3.0, f32::NAN]), ("z", &[0.0])],
    );
    let json = place.works(&["stats", "a.safetensors", "--json"]).json();
    let w = &json["tensors"][0];
    assert_eq!(
        (
            w["name"].as_str(),
            w["nan"].as_u64(),
            w["mean"].as_f64(),
            w["std"].as_f64()
        ),
        (Some("w"), Some(1), Some(2.0), Some(1.0))
    );
    assert_eq!(
        (
            json["total"]["count"].as_u64(),
            json["total"]["zero"].as_u64()
        ),
        (Some(4), Some(1))
    );
    let failed = place.run(&[
        "stats",
        "a.safetensors",
        "--fail-on",
        "nan,inf",
        "--histogram",
    ]);
    assert_eq!(failed.code, Some(3));
    assert!(
        failed.stdout.contains("found: nan")
            && !failed.stdout.contains("found: inf")
            && failed.stdout.contains("2^1"),
        "{}",
        failed.stdout
    );
    place.works(&["stats", "a.safetensors", "--fail-on", "inf"]);
    place.refuses(
        &["stats", "nowhere.safetensors"],
        3,
        &["nowhere.safetensors"],
    );
}

/// Four numbers of 64 bits, of which two are beyond F32.
fn wide_tensor(place: &Place, name: &str) {
    let bytes = [1e50f64, 1.0, -1e-60, f64::INFINITY].map(f64::to_le_bytes);
    let view = TensorView {
        name: "d",
        dtype: Dtype::F64,
        shape: &[2, 2],
        bytes: bytes.as_flattened(),
    };
    save(&place.path(name), &[view], None, &SaveOptions::default()).unwrap();
}

#[test]
fn casts_of_wide_numbers_are_told_as_they_are() {
    let place = Place::new();
    wide_tensor(&place, "d.safetensors");
    for dtype in ["f32", "f16", "bf16", "e5m2"] {
        let ran = place.works(&[
            "convert",
            "d.safetensors",
            "out.safetensors",
            "--force",
            "--dtype",
            dtype,
            "--json",
        ]);
        let cast = &ran.json()["cast"][0];
        let count = |what: &str| cast[what].as_u64();
        assert_eq!(
            (count("overflows"), count("underflows"), count("infinities")),
            (Some(1), Some(1), Some(1)),
            "{dtype}: {cast}"
        );
        assert!(
            ran.stderr
                .contains("warning: 1 number of 1 tensor, `d` first"),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn merges_tell_of_numbers_that_became_infinite() {
    let place = Place::new();
    for (name, value) in [("a", 3e38f32), ("c", -3e38)] {
        tensors(
            &place.path(&format!("{name}.safetensors")),
            &[("w", &[value, 1.0]), ("x", &[1.0])],
        );
    }
    let difference = [
        "merge",
        "--force",
        "--add-difference",
        "a.safetensors",
        "a.safetensors",
        "c.safetensors",
        "-o",
        "m.safetensors",
    ];
    let ran = place.works(&[&difference[..], &["--json"]].concat());
    let lost = &ran.json()["lost"];
    assert_eq!(lost.as_array().unwrap().len(), 1, "{lost}");
    assert_eq!(
        (&lost[0]["name"], &lost[0]["overflows"]),
        (&"w".into(), &1.into())
    );
    assert!(
        ran.stderr.contains("warning: 1 number") && ran.stderr.contains("infinite"),
        "{}",
        ran.stderr
    );
    assert_eq!(read(&place.path("m.safetensors"), "w")[0], f32::INFINITY);
    let told = place.works(&difference).stdout;
    assert!(told.contains("1 overflowed"), "{told}");
    // Half way along a quarter of a circle.
    for (name, values) in [("p", [1.0, 0.0]), ("q", [0.0, 1.0])] {
        tensors(
            &place.path(&format!("{name}.safetensors")),
            &[("w", &values)],
        );
    }
    let slerp = "merge -f --slerp p.safetensors q.safetensors -o m.safetensors";
    place.works(&slerp.split(' ').collect::<Vec<_>>());
    assert_eq!(
        read(&place.path("m.safetensors"), "w"),
        [0.5f32.sqrt(), 0.5f32.sqrt()]
    );
    // A quarter, bent to 0.25² · (3 − 0.5), and back.
    let sigmoid = "merge -f --sigmoid p.safetensors q.safetensors --alpha 0.25 -o m.safetensors";
    place.works(&sigmoid.split(' ').collect::<Vec<_>>());
    assert_eq!(read(&place.path("m.safetensors"), "w"), [0.84375, 0.15625]);
    let back = sigmoid.replace("--sigmoid", "--inverse-sigmoid --json");
    let back = back.replace("0.25", "0.15625");
    let told = place.works(&back.split(' ').collect::<Vec<_>>()).json();
    assert_eq!(told["method"]["inverse_sigmoid"]["alpha"], 0.15625);
    let share = read(&place.path("m.safetensors"), "w")[1];
    assert!((share - 0.25).abs() < 1e-7, "{share}"); // f32 holds 7 digits
    let both = sigmoid.replace("--sigmoid", "--sigmoid --slerp");
    place.refuses(&both.split(' ').collect::<Vec<_>>(), 2, &["--slerp"]);
    let beyond = sigmoid.replace("0.25", "1.25");
    place.refuses(
        &beyond.split(' ').collect::<Vec<_>>(),
        2,
        &["between 0 and 1"],
    );
    // What is half a UNet is none.
    let input = "model.diffusion_model.input_blocks.0.0.bias";
    tensors(&place.path("u.safetensors"), &[(input, &[1.0])]);
    let blocks = "merge --weighted u.safetensors u.safetensors --blocks 1,2 -o n.safetensors";
    place.refuses(&blocks.split(' ').collect::<Vec<_>>(), 2, &["a whole UNet"]);
    assert!(!place.path("n.safetensors").exists());
}

#[test]
fn a_source_without_tensors_gives_no_file() {
    let place = Place::new();
    tensors(&place.path("empty.safetensors"), &[]);
    tensors(
        &place.path("adam.safetensors"),
        &[("optimizer.state.0.exp_avg", &[1.0])],
    );
    for to in ["x.safetensors", "x.npz", "x.gguf"] {
        place.refuses(
            &["convert", "empty.safetensors", to],
            3,
            &["empty.safetensors", "no tensor"],
        );
    }
    place.refuses(
        &["convert", "adam.safetensors", "x.safetensors", "--prune"],
        2,
        &["--prune would leave out all of its 1 tensor"],
    );
    place.refuses(
        &["merge", "empty.safetensors", "-o", "x.safetensors"],
        3,
        &["no tensor"],
    );
    assert_eq!(
        place.everything(),
        ["adam.safetensors", "empty.safetensors"]
    );
}

#[test]
fn names_that_fit_nothing_are_wrong_requests() {
    let place = Place::new();
    tensors(&place.path("a.safetensors"), &[("model.weight", &[1.0])]);
    for arguments in [
        &["stats", "a.safetensors", "--name", "modle"][..],
        &["diff", "a.safetensors", "a.safetensors", "--name", "modle"],
    ] {
        place.refuses(arguments, 2, &["no tensor matches", "`modle`", "`model`"]);
    }
}

#[test]
fn rows_fit_the_terminal() {
    let place = Place::new();
    let name = format!("model.{}.weight", "diffusion_model_block".repeat(4));
    tensors(&place.path("a.safetensors"), &[(&name, &[1.0; 5000])]);
    tensors(
        &place.path("b.safetensors"),
        &[(&name, &[0.987_654_3; 5000])],
    );
    for arguments in [
        &["stats", "a.safetensors"][..],
        &["stats", "a.safetensors", "--histogram"],
        &["diff", "a.safetensors", "b.safetensors"],
    ] {
        let output = place.command(arguments).env("COLUMNS", "80").output();
        let output = String::from_utf8(output.unwrap().stdout).unwrap();
        assert!(output.contains('…'), "{output}");
        for line in output.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
    let whole = place.run(&["diff", "a.safetensors", "b.safetensors", "--json"]);
    assert!(whole.stdout.contains(&name));
}
