//! Files that torch and numpy wrote, against the tensors they were made from (`tools/golden/pickles.py`).

use std::path::{Path, PathBuf};

use safelight_convert::{
    ConvertError, Limits, OpenOptions, SharedTensors, Source, open, open_with,
};
use safelight_store::Checkpoint;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata/golden/pickle")
        .join(name)
}

fn bytes_of(source: &dyn Source, index: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut out = |piece: &[u8]| -> Result<(), ConvertError> {
        assert!(!piece.is_empty());
        bytes.extend_from_slice(piece);
        Ok(())
    };
    source.read(index, &mut out).unwrap();
    bytes
}

/// Every tensor of the golden file is there, with its dtype, shape and bytes, and no other.
#[track_caller]
fn check(name: &str) -> Box<dyn Source> {
    let source = open(&golden(name), &Limits::default()).unwrap_or_else(|error| panic!("{error}"));
    let stem = Path::new(name).file_stem().unwrap().to_string_lossy();
    let expected = Checkpoint::open(&golden(&format!("{stem}.safetensors"))).unwrap();
    let mut names: Vec<_> = source
        .tensors()
        .iter()
        .map(|tensor| tensor.name.as_str())
        .collect();
    names.sort_unstable();
    let mut expected_names: Vec<_> = expected
        .tensors()
        .map(|tensor| tensor.name.to_string())
        .collect();
    expected_names.sort_unstable();
    assert_eq!(names, expected_names, "{name}");
    for (index, tensor) in source.tensors().iter().enumerate() {
        let there = expected.get(&tensor.name).unwrap();
        assert_eq!(
            (tensor.dtype, &tensor.shape[..]),
            (there.dtype, there.shape),
            "{name} {}",
            tensor.name
        );
        let bytes = expected.read_bytes(&tensor.name).unwrap();
        assert_eq!(bytes_of(&*source, index), bytes, "{name} {}", tensor.name);
    }
    source
}

#[test]
fn every_dtype() {
    assert_eq!(check("dtypes.pt").notes(), []);
    check("dtypes_legacy.pt");
}

#[test]
fn views_are_packed() {
    check("views.pt");
    check("views_legacy.pth");
    check("compressed.pt");
}

#[test]
fn nested_checkpoints() {
    for name in ["lightning.ckpt", "lightning_legacy.ckpt"] {
        let source = check(name);
        let notes: Vec<_> = source.notes().iter().map(ToString::to_string).collect();
        let told = |what: &str| notes.iter().any(|note| note.contains(what));
        assert!(told("`epoch`: dropped: the value 3"), "{notes:?}");
        assert!(told("`callbacks`: dropped: a dict of 1"), "{notes:?}");
        assert!(
            told("`state_dict`: its tensors are named without"),
            "{notes:?}"
        );
    }
}

#[test]
fn plain_values_go_into_the_metadata_if_asked() {
    let options = OpenOptions {
        values_to_metadata: true,
        ..Default::default()
    };
    let source = open_with(&golden("lightning.ckpt"), &options).unwrap();
    let value = |key: &str| source.metadata().get(key).map(String::as_str);
    assert_eq!(value("epoch"), Some("3"));
    assert_eq!(value("pytorch-lightning_version"), Some("1.4.2"));
    assert_eq!(value("lr_schedulers.0.last_epoch"), Some("3"));
    assert_eq!(value("optimizer_states.0.param_groups.0.lr"), Some("0.001"));
}

#[test]
fn keys_that_are_no_texts() {
    let source = check("keys.pt");
    let notes: Vec<_> = source.notes().iter().map(ToString::to_string).collect();
    for name in ["state.1", "state.(0, 'a')", "state.a.b"] {
        let said = format!("`{name}`: renamed to `{name}~2`: another tensor has its name");
        assert!(notes.contains(&said), "{notes:?}");
    }
    assert_eq!(notes.len(), 3, "{notes:?}");
}

#[test]
fn whole_modules_and_scripts() {
    check("module.pt");
    check("one_tensor.pt");
}

#[test]
fn scripts() {
    let stem = golden("script.safetensors");
    assert!(stem.exists());
    let notes = check("script.pt").notes().to_vec();
    assert!(notes[0].what.contains("TorchScript"), "{notes:?}");
}

#[test]
fn the_other_byte_order() {
    check("big_endian.pt");
}

#[test]
fn without_checksums() {
    check("no_crc.pt");
}

#[test]
fn numpy_arrays() {
    for protocol in 2..=5 {
        check(&format!("numpy_{protocol}.pkl"));
    }
}

#[test]
fn every_protocol_of_old_files() {
    for protocol in [1, 3, 4, 5] {
        check(&format!("legacy_{protocol}.pt"));
    }
    check("module_legacy.pt");
}

#[test]
fn tensors_that_were_pickled_plainly() {
    check("plain_0.pkl");
    check("plain_2.pkl");
    check("plain_4.pkl");
    check("plain_tensor.pkl");
}

#[test]
fn shared_tensors() {
    let source = check("shared.bin");
    assert_eq!(source.notes().len(), 2);
    let options = OpenOptions {
        shared: SharedTensors::Once,
        ..Default::default()
    };
    let source = open_with(&golden("shared.bin"), &options).unwrap();
    assert_eq!(source.tensors().len(), 1);
    assert_eq!(source.metadata()["second"], "first");
    assert_eq!(source.metadata()["third"], "first");
}

#[test]
fn views_are_conjugated_and_negated() {
    check("signs.pt");
    check("signs_legacy.pt");
    check("signs_compressed.pt");
    // Whole numbers have no sign to turn.
    let error = open(&golden("refused_neg.pt"), &Limits::default()).err();
    let said = error.unwrap().to_string();
    assert!(
        said.contains("refused_neg.pt") && said.contains("`lazy`: a view of I64"),
        "{said}"
    );
}

#[test]
fn what_is_not_as_named_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let noise: Vec<u8> = (0..500u32).map(|idx| (idx * 37 + 155) as u8).collect();
    let torch = "its name says it is a PyTorch checkpoint (a zip archive or a pickle), but it is ";
    let unknown = "of no kind known here (it begins with the bytes 9b c0 e5 0a 2f 54 79 9e)";
    for (name, content, said) in [
        ("a.ckpt", noise.as_slice(), format!("{torch}{unknown}")),
        ("a.PT", b"", format!("{torch}empty")),
        (
            "a.pth",
            b"just some words, and then more",
            format!("{torch}a text"),
        ),
        (
            "a.bin",
            b"<!DOCTYPE html><html></html>",
            format!("{torch}a web page"),
        ),
        (
            "b.ckpt",
            b"{\"error\": \"no such file\"}",
            format!("{torch}a server's"),
        ),
        (
            "c.ckpt",
            b"7z\xbc\xaf\x27\x1c\0\x04",
            format!("{torch}a 7-Zip archive"),
        ),
        ("d.ckpt", &[0; 300], format!("{torch}a run of zero bytes")),
        (
            "a.gguf",
            &noise,
            format!("a GGUF model (which begins with `GGUF`), but it is {unknown}"),
        ),
        (
            "a.onnx",
            b"",
            "an ONNX model (protobuf), but it is empty".into(),
        ),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let error = open(&path, &Limits::default()).err().unwrap().to_string();
        assert!(error.contains(name) && error.contains(&said), "{error}");
        assert!(!error.contains("not a safetensors file"), "{error}");
    }
    // A name that promises nothing else, and a header that is one but for its end.
    for (name, content) in [
        ("a.safetensors", noise.as_slice()),
        ("x.ckpt", b"\x10\0\0\0\0\0\0\0{\"a\":"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let error = open(&path, &Limits::default()).err().unwrap();
        assert!(matches!(error, ConvertError::Store(_)), "{error}");
    }
}
