//! Keras, HDF5, ONNX and Flax files through the program: converted, listed, and refused where they are broken.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::Place;
use safelight_store::Checkpoint;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata/golden/convert")
        .join(name)
}

/// A golden file, and beside it what other libraries read from it.
const FILES: [(&str, &str); 5] = [
    ("model.h5", "model_h5.safetensors"),
    ("keras_2_latest.h5", "keras_2_latest_h5.safetensors"),
    ("model.keras", "model_keras.safetensors"),
    ("graph.onnx", "graph_onnx.safetensors"),
    ("flax.msgpack", "flax.safetensors"),
];

#[test]
fn files_are_converted_and_listed() {
    let place = Place::new();
    for (file, expected) in FILES {
        fs::copy(golden(file), place.path(file)).unwrap();
        place.works(&["convert", file, "out.safetensors", "--force"]);
        let made = Checkpoint::open(&place.path("out.safetensors")).unwrap();
        let expected = Checkpoint::open(&golden(expected)).unwrap();
        for tensor in expected.tensors() {
            let name = tensor.name;
            let (found, wanted) = (made.read_bytes(name), expected.read_bytes(name));
            assert!(found.unwrap() == wanted.unwrap(), "{file}: {name}");
        }
        assert_eq!(made.len(), expected.len(), "{file}");
        let listed = place.works(&["ls", file, "--json"]).json();
        assert_eq!(listed["tensor_count"], made.len(), "{file}");
        assert!(listed["tensors"][0]["offset"].is_null(), "{file}");
        assert!(listed["notes"].is_array(), "{file}");
        for tensor in listed["tensors"].as_array().unwrap() {
            let found = made.get(tensor["name"].as_str().unwrap()).unwrap();
            assert_eq!(tensor["dtype"], found.dtype.name(), "{file}");
            assert_eq!(tensor["bytes"], found.byte_count(), "{file}");
        }
        let text = place.works(&["ls", file, "--long"]).stdout;
        let total = format!("{} tensors, ", made.len());
        assert!(text.contains(&total), "{text}");
    }
    let order = place.works(&["meta", "get", "out.safetensors"]);
    assert!(!order.stdout.contains("keras"), "the last one was Flax's");
    place.works(&["convert", "model.keras", "out.safetensors", "-f"]);
    let config = place.works(&["meta", "get", "out.safetensors", "keras.config"]);
    assert!(config.stdout.contains("Dense"), "{}", config.stdout);
}

#[test]
fn cut_files_are_refused_by_name_and_leave_nothing() {
    let place = Place::new();
    for (file, _) in FILES {
        let whole = fs::read(golden(file)).unwrap();
        let cut = format!("cut.{}", file.rsplit('.').next().unwrap());
        for part in 0..16 {
            place.write(&cut, &whole[..whole.len() * part / 16]);
            let refused: &[&str] = &["convert", &cut, "out.safetensors"];
            place.refuses(refused, 3, &["error: ", &cut]);
        }
        place.refuses(&["ls", &cut], 3, &["error: ", &cut]);
        fs::remove_file(place.path(&cut)).unwrap();
    }
}

#[test]
fn what_is_elsewhere_is_refused_by_name() {
    let place = Place::new();
    for (file, word) in [
        ("outside.h5", "other files"),
        ("virtual.h5", "made of other files"),
        ("scale_offset.h5", "scale-offset"),
    ] {
        fs::copy(golden(file), place.path(file)).unwrap();
        let words = [file, "`layer/kernel`", word];
        place.refuses(&["convert", file, "out.safetensors"], 3, &words);
    }
}

#[test]
fn data_beside_a_model() {
    let place = Place::new();
    let convert = ["convert", "m.onnx", "out.safetensors"];
    let model = fs::read(golden("external.onnx")).unwrap();
    let data = fs::read(golden("external.data")).unwrap();
    place.write("m.onnx", &model);
    place.refuses(
        &convert,
        3,
        &["m.onnx", "`external.data`", "cannot be found"],
    );
    place.write("external.data", &data[..data.len() - 1]);
    place.refuses(&convert, 3, &["m.onnx", "external.data", "is it whole?"]);
    place.write("external.data", &data);
    place.works(&convert);
    fs::remove_file(place.path("out.safetensors")).unwrap();
    // As long a path, which leads elsewhere.
    let mut elsewhere = model.clone();
    let name = b"external.data";
    for at in 0..elsewhere.len() - name.len() {
        if elsewhere[at..].starts_with(name) {
            elsewhere[at..at + name.len()].copy_from_slice(b"../../ext.dat");
        }
    }
    place.write("m.onnx", &elsewhere);
    place.refuses(
        &convert,
        3,
        &["m.onnx", "`../../ext.dat`", "no path inside"],
    );
    #[cfg(unix)]
    {
        place.write("m.onnx", &model);
        fs::remove_file(place.path("external.data")).unwrap();
        let mut make = std::process::Command::new("mkfifo");
        let made = make.arg(place.path("external.data")).status().unwrap();
        assert!(made.success());
        place.refuses(&convert, 3, &["m.onnx", "`external.data`", "no file"]);
    }
}

#[test]
fn tensors_that_nothing_reads_stop_only_those_who_want_them() {
    let place = Place::new();
    let array = |descr: &str, bytes: usize| {
        let mut head = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (2,), }}");
        head += &" ".repeat((10 + head.len() + 1).next_multiple_of(64) - 11 - head.len());
        head.push('\n');
        let len = (head.len() as u16).to_le_bytes();
        [
            &b"\x93NUMPY\x01\x00"[..],
            &len,
            head.as_bytes(),
            &vec![0; bytes],
        ]
        .concat()
    };
    let mut archive = Vec::new();
    zip(
        &mut archive,
        &[
            ("fine.npy", array("<f4", 8)),
            ("odd.npy", array("<c16", 32)),
        ],
    );
    place.write("x.npz", &archive);
    let convert: &[&str] = &["convert", "x.npz", "o.safetensors", "--force"];
    place.refuses(
        convert,
        3,
        &["x.npz", "`odd`", "<c16", "--exclude", "--skip-unsupported"],
    );
    place.refuses(&[convert, &["--only", "odd"]].concat(), 3, &["`odd`"]);
    for more in [
        &["--exclude", "odd"][..],
        &["--only", "f*"],
        &["--skip-unsupported"],
    ] {
        place.works(&[convert, more].concat());
        let listed = place.works(&["ls", "o.safetensors", "--json"]).json();
        assert_eq!(listed["tensor_count"], 1);
    }
    let ran = place.works(&["ls", "x.npz", "--json"]).json();
    assert_eq!(ran["tensor_count"], 1);
    assert!(
        ran["notes"].to_string().contains("left out: is complex"),
        "{ran}"
    );
    let ran = place.works(&["stats", "x.npz"]);
    assert!(ran.stderr.contains("`odd` is left out"), "{}", ran.stderr);
    // The same of a kind of file whose readers find it later.
    let file = "scale_offset.h5";
    fs::copy(golden(file), place.path(file)).unwrap();
    let convert: &[&str] = &["convert", file, "h.safetensors", "--force"];
    place.refuses(convert, 3, &[file, "`layer/kernel`", "--exclude"]);
    let scan = place.works(&["scan", file]);
    assert!(scan.stdout.contains("clean"), "{}", scan.stdout);
}

#[test]
fn content_of_other_files_is_no_clean_file() {
    let place = Place::new();
    fs::copy(golden("outside.h5"), place.path("outside.h5")).unwrap();
    let ran = place.run(&["scan", "outside.h5"]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stdout
            .contains("`layer/kernel` is content of another file"),
        "{}",
        ran.stdout
    );
}

/// A zip archive of stored members.
fn zip(out: &mut Vec<u8>, members: &[(&str, Vec<u8>)]) {
    let mut directory = Vec::new();
    for (name, content) in members {
        let at = out.len() as u32;
        let crc = crc32fast::hash(content).to_le_bytes();
        let len = (content.len() as u32).to_le_bytes();
        let common = [
            &[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &crc,
            &len,
            &len,
            &(name.len() as u16).to_le_bytes(),
            &[0, 0],
        ]
        .concat();
        out.extend([b"PK\x03\x04", &common[..], name.as_bytes(), content].concat());
        directory.extend(
            [
                b"PK\x01\x02\x14\0",
                &common[..],
                &[0; 10],
                &at.to_le_bytes(),
                name.as_bytes(),
            ]
            .concat(),
        );
    }
    let count = (members.len() as u16).to_le_bytes();
    let (start, len) = (
        (out.len() as u32).to_le_bytes(),
        (directory.len() as u32).to_le_bytes(),
    );
    out.extend(
        [
            &directory[..],
            b"PK\x05\x06\0\0\0\0",
            &count,
            &count,
            &len,
            &start,
            &[0, 0],
        ]
        .concat(),
    );
}
