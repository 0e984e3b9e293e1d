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
            "m.safetensors",
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
