//! Commands whose input or output is a pipe.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use common::{Place, Ran, model};
use safelight_store::Checkpoint;

/// Runs a command that reads `input` from its standard input.
fn fed(place: &Place, arguments: &[&str], input: &[u8]) -> Ran {
    let mut command = place.command(arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    Ran::of(child.wait_with_output().unwrap())
}

#[test]
fn what_comes_from_a_pipe_is_hashed_as_its_file() {
    let place = Place::new();
    model(&place, "m.safetensors");
    let bytes = fs::read(place.path("m.safetensors")).unwrap();
    let mut of_file = place.works(&["hash", "m.safetensors", "--json"]).json();
    let mut of_pipe = fed(&place, &["hash", "-", "--json"], &bytes).json();
    assert_eq!(of_pipe["file"].take(), "-");
    of_file["file"].take();
    assert_eq!(of_pipe, of_file);
    assert!(of_pipe["autov3"].is_string(), "{of_pipe}");
    let line = fed(&place, &["hash", "-", "--kind", "sha256"], b"abc").stdout;
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(line, format!("{abc}  -\n"));
    let none = fed(&place, &["hash", "-", "--kind", "autov3"], b"abc");
    assert_eq!(none.code, Some(3), "{}", none.stderr);
    assert!(
        none.stderr.contains("no intact safetensors file"),
        "{}",
        none.stderr
    );
}

#[test]
fn convert_writes_to_a_pipe_what_it_writes_to_a_file() {
    let place = Place::new();
    model(&place, "m.safetensors");
    place.works(&[
        "convert",
        "m.safetensors",
        "copy.safetensors",
        "--dtype",
        "bf16",
    ]);
    let arguments = ["convert", "m.safetensors", "-", "--dtype", "bf16"];
    let output = place.command(&arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(output.stdout == fs::read(place.path("copy.safetensors")).unwrap());
    assert!(said.contains("tensors") && said.contains("-: "), "{said}");
    let piped = Checkpoint::from_bytes("pipe", output.stdout).unwrap();
    assert!(!piped.is_empty());
    for (more, word) in [
        (&["--json"][..], "--json"),
        (&["--to", "gguf"], "only one safetensors file"),
        (&["--to", "npz"], "only one safetensors file"),
        (&["--shard-size", "1MB"], "only one safetensors file"),
    ] {
        place.refuses(
            &[&["convert", "m.safetensors", "-"], more].concat(),
            2,
            &[word],
        );
    }
    place.refuses(
        &["convert", "gone.safetensors", "-"],
        3,
        &["gone.safetensors"],
    );
}

#[test]
#[cfg(unix)]
fn a_pipe_that_is_closed_early_ends_a_conversion() {
    let place = Place::new();
    let tensor = safelight_format::TensorView {
        name: "a",
        dtype: safelight_format::Dtype::U8,
        shape: &[3_000_000],
        bytes: &vec![7; 3_000_000],
    };
    let path = place.path("m.safetensors");
    safelight_store::save(&path, &[tensor], None, &Default::default()).unwrap();
    let mut command = place.command(&["convert", "m.safetensors", "-"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("closed"), "{}", ran.stderr);
}

#[test]
fn whole_tensors_are_written_as_they_are_read() {
    let place = Place::new();
    let value = |at: u32| match at % 977 {
        0 => f32::NAN,
        1 => f32::NEG_INFINITY,
        _ => (at as f32 - 150_000.0) / 64.0,
    };
    let values: Vec<f32> = (0..300_000).map(value).collect();
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let tensor = safelight_format::TensorView {
        name: "a",
        dtype: safelight_format::Dtype::F32,
        shape: &[60, 100, 50],
        bytes: &bytes,
    };
    let path = place.path("m.safetensors");
    safelight_store::save(&path, &[tensor], None, &Default::default()).unwrap();
    let text = place.works(&["cat", "m.safetensors", "a", "--all"]).stdout;
    let alike = |read: f32, value: f32| read == value || read.is_nan() && value.is_nan();
    let words = text.split(|c: char| c.is_whitespace() || "[]".contains(c));
    let read: Vec<f32> = words
        .filter(|word| !word.is_empty())
        .map(|word| word.parse().unwrap())
        .collect();
    assert!(read.len() == values.len() && read.iter().zip(&values).all(|(a, b)| alike(*a, *b)));
    assert!(
        text.starts_with("[[[") && text.ends_with("]]]\n"),
        "{}",
        &text[..200]
    );
    // Between matrices stands an empty line, no line is too long, and all numbers are equally wide.
    assert_eq!(text.matches("]]\n\n [[").count(), 59);
    assert!(text.lines().all(|line| line.len() <= 75));
    let json = place.works(&["cat", "m.safetensors", "a", "--json"]).json();
    let mut at = 0;
    for matrix in json["values"].as_array().unwrap() {
        for row in matrix.as_array().unwrap() {
            for number in row.as_array().unwrap() {
                let read = match number.as_str() {
                    Some("NaN") => f32::NAN,
                    Some("-Infinity") => f32::NEG_INFINITY,
                    _ => number.as_f64().unwrap() as f32,
                };
                assert!(alike(read, values[at]), "{number} at {at}");
                at += 1;
            }
        }
    }
    assert_eq!(at, values.len());
}
