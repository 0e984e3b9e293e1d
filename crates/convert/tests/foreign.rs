//! Files that other libraries wrote, against what those libraries read from them (`tools/golden/foreign.py`).

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use safelight_convert::{GgufOptions, GgufWeights, Limits, Source, open, write_gguf};
use safelight_store::Checkpoint;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata/golden/convert")
        .join(name)
}

fn read_all(source: &dyn Source, index: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut push = |piece: &[u8]| {
        assert!(!piece.is_empty());
        bytes.extend_from_slice(piece);
        Ok(())
    };
    source.read(index, &mut push).unwrap();
    bytes
}

/// Every tensor of the file has the shape and bytes expected, and there are no others.
#[track_caller]
fn check(file: &str, expected: &str) -> Box<dyn Source> {
    let source = open(&golden(file), &Limits::default()).unwrap();
    let expected = Checkpoint::open(&golden(expected)).unwrap();
    for (index, tensor) in source.tensors().iter().enumerate() {
        let name = &tensor.name;
        let wanted = expected
            .get(name)
            .unwrap_or_else(|| panic!("{file}: {name} is not expected"));
        assert_eq!(tensor.shape, wanted.shape, "{file}: {name}");
        let bits = (tensor.dtype.bits(), wanted.dtype.bits());
        assert_eq!(bits.0, bits.1, "{file}: {name}: {}", tensor.dtype);
        let bytes = expected.read_bytes(name).unwrap();
        assert!(read_all(&*source, index) == bytes, "{file}: {name} differs");
    }
    assert_eq!(source.tensors().len(), expected.len(), "{file}");
    source
}

fn notes(source: &dyn Source) -> Vec<String> {
    source.notes().iter().map(|note| note.to_string()).collect()
}

#[test]
fn gguf_little_endian() {
    let source = check("little.gguf", "little.safetensors");
    let get = |key: &str| source.metadata().get(key).map_or("", String::as_str);
    assert_eq!(get("general.architecture"), "sd1");
    assert_eq!(get("a.i16"), "-300");
    assert_eq!(get("a.u64"), "9223372036854775809");
    assert_eq!((get("a.f32"), get("a.f64")), ("0.1", "0.1"));
    assert_eq!((get("a.bool"), get("a.str")), ("true", "Grüße, 世界"));
    assert_eq!(
        (get("a.list"), get("a.words")),
        ("[1,2,3]", r#"["a","b\"c"]"#)
    );
    assert!(get("gguf.types").contains(r#""a.list":"[i32]""#));
    assert_eq!(
        notes(&*source),
        [
            "`a.long`: dropped: a list of 15000, too long for a header",
            "`Q8_0`: 1 quantised tensors of this type are read as F32",
            "`Q4_K`: 1 quantised tensors of this type are read as F32"
        ]
    );
}

#[test]
fn gguf_big_endian() {
    let source = check("big.gguf", "big.safetensors");
    assert_eq!(source.metadata()["a.i32"], "-70000");
    assert_eq!(source.metadata()["a.long"], "[1]");
}

#[test]
fn gguf_version_1() {
    let source = check("version_1.gguf", "version_1.safetensors");
    assert_eq!(source.metadata()["list"], "[7,8]");
}

#[test]
fn what_gguf_kept_comes_back_when_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("again.gguf");
    let source = open(&golden("little.gguf"), &Limits::default()).unwrap();
    let mut calls = Vec::new();
    let mut progress = |done, all| {
        calls.push((done, all));
        ControlFlow::Continue(())
    };
    let options = GgufOptions::default();
    let report = write_gguf(&*source, &path, &options, &mut progress).unwrap();
    assert_eq!(report.tensor_count, source.tensors().len() as u64);
    assert!(calls.last().is_some_and(|(done, all)| done == all));
    let again = open(&path, &Limits::default()).unwrap();
    assert_eq!(again.tensors(), source.tensors());
    for index in 0..again.tensors().len() {
        assert!(
            read_all(&*again, index) == read_all(&*source, index),
            "{index}"
        );
    }
    let types = |source: &dyn Source| source.metadata()["gguf.types"].clone();
    for (key, value) in source.metadata() {
        if key != "gguf.types" {
            assert_eq!(again.metadata().get(key), Some(value), "{key}");
        }
    }
    assert!(
        types(&*again).contains(r#""a.words":"[str]""#),
        "{}",
        types(&*again)
    );
}

/// Numbers come back within half a step of their block's scale (and the scale's own rounding to a half).
#[test]
fn q8_0_is_near() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (
        folder.path().join("a.safetensors"),
        folder.path().join("a.gguf"),
    );
    let numbers: Vec<f32> = (0..64 * 96)
        .map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0)
        .collect();
    let bytes = safelight_format::encode_f32(&numbers);
    let view = |name, shape, bytes| safelight_format::TensorView {
        name,
        dtype: safelight_format::Dtype::F32,
        shape,
        bytes,
    };
    let tensors = [
        view("w", &[64, 96], &bytes),
        view("bias", &[3], &bytes[..12]),
    ];
    safelight_store::save(&from, &tensors, None, &Default::default()).unwrap();
    let source = open(&from, &Limits::default()).unwrap();
    let options = GgufOptions {
        weights: GgufWeights::Q8_0,
        architecture: Some("sd1".into()),
        ..GgufOptions::default()
    };
    let mut go_on = |_, _| ControlFlow::Continue(());
    write_gguf(&*source, &to, &options, &mut go_on).unwrap();
    let again = open(&to, &Limits::default()).unwrap();
    assert_eq!(again.metadata()["general.architecture"], "sd1");
    assert_eq!(again.metadata()["general.file_type"], "7");
    for (index, tensor) in again.tensors().iter().enumerate() {
        let bytes = read_all(&*again, index);
        let values = safelight_format::decode_f32(tensor.dtype, &bytes).unwrap();
        for (value, number) in values.iter().zip(&numbers) {
            let near = if tensor.name == "w" {
                0.5 / 127.0 + 127.0 / 2048.0 / 127.0
            } else {
                0.0
            };
            assert!(
                (value - number).abs() <= near,
                "{}: {value} {number}",
                tensor.name
            );
        }
    }
    let mut stop = |_, _| ControlFlow::Break(());
    let stopped = write_gguf(&*source, &folder.path().join("b.gguf"), &options, &mut stop);
    assert!(stopped.unwrap_err().to_string().contains("stopped"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}
