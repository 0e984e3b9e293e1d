//! Files that other libraries wrote, against what those libraries read from them (`tools/golden/foreign.py`).

mod common;

use std::ops::ControlFlow;

use common::{check_against, golden, notes, read_all};
use safelight_convert::{
    GgufOptions, GgufWeights, Limits, NpzOptions, OpenOptions, Source, open, open_with, write_gguf,
    write_npz,
};
use safelight_format::Dtype;
use safelight_store::Checkpoint;

#[test]
fn gguf_little_endian() {
    let source = check_against("little.gguf", "little.safetensors");
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
    let source = check_against("big.gguf", "big.safetensors");
    assert_eq!(source.metadata()["a.i32"], "-70000");
    assert_eq!(source.metadata()["a.long"], "[1]");
}

#[test]
fn gguf_version_1() {
    let source = check_against("version_1.gguf", "version_1.safetensors");
    assert_eq!(source.metadata()["list"], "[7,8]");
}

#[test]
fn flax() {
    let source = check_against("flax.msgpack", "flax.safetensors");
    assert_eq!(
        notes(&*source),
        [
            "`epoch`: dropped: the value `3`, no array",
            "`rate`: dropped: the value `0.5`, no array",
            "`z`: dropped: a complex number",
            "`name`: dropped: the value `model`, no array",
            "`nothing`: dropped: None",
        ]
    );
    let dtype = |name: &str| {
        let mut tensors = source.tensors().iter();
        tensors.find(|tensor| tensor.name == name).unwrap().dtype
    };
    assert_eq!(dtype("params.dense.bias"), Dtype::Bf16);
    assert_eq!(dtype("step"), Dtype::I32);
    let options = OpenOptions {
        values_to_metadata: true,
        ..OpenOptions::default()
    };
    let source = open_with(&golden("flax.msgpack"), &options).unwrap();
    let get = |key: &str| source.metadata()[key].as_str();
    assert_eq!(
        (get("epoch"), get("rate"), get("name")),
        ("3", "0.5", "model")
    );
}

#[test]
fn npz_stored_and_deflated() {
    for file in ["stored.npz", "deflated.npz"] {
        let source = check_against(file, "npz.safetensors");
        assert_eq!(source.metadata()["word"], "kept as metadata");
        let notes = notes(&*source);
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert!(notes[0].starts_with("`bf16`: two bytes without a type are read as BF16"));
        assert!(notes[1].starts_with("`f8_e4m3`: bytes without a type are kept as U8"));
        assert_eq!(notes[2], "`words`: dropped: an array of texts");
        let mut tensors = source.tensors().iter();
        let complex = tensors.find(|tensor| tensor.name == "be_c8").unwrap();
        assert_eq!(complex.dtype, Dtype::C64);
    }
}

#[test]
fn npz_with_sizes_behind_the_data() {
    let source = open(&golden("streamed.npz"), &Limits::default()).unwrap();
    let expected = Checkpoint::open(&golden("npz.safetensors")).unwrap();
    assert!(read_all(&*source, 0) == expected.read_bytes("cube").unwrap());
}

#[test]
fn npy_of_every_version() {
    let expected = Checkpoint::open(&golden("npz.safetensors")).unwrap();
    for version in 1..=3 {
        let source = open(
            &golden(&format!("version_{version}.npy")),
            &Limits::default(),
        )
        .unwrap();
        assert_eq!(source.tensors()[0].name, "array");
        assert_eq!(source.tensors()[0].shape, [4, 3, 2]);
        assert!(read_all(&*source, 0) == expected.read_bytes("cube").unwrap());
    }
}

#[test]
fn npy_that_is_no_tensor() {
    let refused = |file| {
        open(&golden(file), &Limits::default())
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    assert!(refused("object.npy").contains("`array`: is an object array: a pickle"));
    assert!(refused("structured.npy").contains("structured array"));
}

#[test]
fn npz_is_written_as_it_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let source = open(&golden("stored.npz"), &Limits::default()).unwrap();
    for deflate in [false, true] {
        let path = folder.path().join("again.npz");
        let options = NpzOptions {
            deflate,
            ..NpzOptions::default()
        };
        let mut go_on = |_, _| ControlFlow::Continue(());
        let report = write_npz(&*source, &path, &options, &mut go_on).unwrap();
        let again = open(&path, &Limits::default()).unwrap();
        assert_eq!(again.tensors(), source.tensors());
        assert_eq!(again.metadata(), source.metadata());
        assert_eq!(again.notes(), []);
        let mut bytes = 0;
        for index in 0..again.tensors().len() {
            let read = read_all(&*again, index);
            bytes += read.len() as u64;
            assert!(read == read_all(&*source, index), "{index}");
        }
        assert_eq!(report.tensor_bytes, bytes);
    }
}

#[test]
fn npz_has_no_names_that_lead_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (
        folder.path().join("a.safetensors"),
        folder.path().join("a.npz"),
    );
    for name in [
        "../x",
        "a/../../x",
        "/x",
        "\\x",
        "a\\..\\b",
        "__metadata__\0",
    ] {
        let view = safelight_format::TensorView {
            name,
            dtype: Dtype::U8,
            shape: &[1],
            bytes: &[1],
        };
        safelight_store::save(&from, &[view], None, &Default::default()).unwrap();
        let source = open(&from, &Limits::default()).unwrap();
        let mut go_on = |_, _| ControlFlow::Continue(());
        let written = write_npz(&*source, &to, &NpzOptions::default(), &mut go_on);
        assert!(
            written
                .unwrap_err()
                .to_string()
                .contains("no name for a file"),
            "{name}"
        );
    }
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
        dtype: Dtype::F32,
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

#[test]
fn a_file_that_is_written_to_meanwhile_gives_no_output() {
    use std::io::{Seek as _, SeekFrom, Write as _};
    let folder = tempfile::tempdir().unwrap();
    let values = vec![0; 20_000_000];
    let tensor = safelight_format::TensorView {
        name: "a",
        dtype: Dtype::U8,
        shape: &[20_000_000],
        bytes: &values,
    };
    let safetensors = folder.path().join("a.safetensors");
    safelight_store::save(&safetensors, &[tensor], None, &Default::default()).unwrap();
    let npz = folder.path().join("a.npz");
    let source = open(&safetensors, &Limits::default()).unwrap();
    let go_on = &mut |_, _| ControlFlow::Continue(());
    write_npz(&*source, &npz, &NpzOptions::default(), go_on).unwrap();
    for from in [safetensors, npz] {
        let source = open(&from, &Limits::default()).unwrap();
        let to = folder.path().join("to.safetensors");
        let mut is_first = true;
        let mut change = |_, _| {
            if std::mem::take(&mut is_first) {
                // File times have steps of a few milliseconds.
                std::thread::sleep(std::time::Duration::from_millis(30));
                let mut file = std::fs::File::options().write(true).open(&from).unwrap();
                file.seek(SeekFrom::Start(19_000_000)).unwrap();
                file.write_all(b"!").unwrap();
                std::thread::sleep(std::time::Duration::from_millis(30));
            }
            ControlFlow::Continue(())
        };
        let written = safelight_convert::write_safetensors_to(
            &*source,
            "to",
            &mut Vec::new(),
            &Default::default(),
            &mut change,
        );
        let text = written.unwrap_err().to_string();
        assert!(
            text.contains("was changed while it was read")
                && text.starts_with(from.to_str().unwrap()),
            "{text}"
        );
        assert!(!to.exists());
    }
}
