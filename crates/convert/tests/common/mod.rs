//! Golden files of other libraries, and what was read from them.
#![allow(dead_code, missing_docs, unreachable_pub)] // Each test file uses its own part of this.

use std::path::{Path, PathBuf};

use safelight_convert::{Limits, Source, open};
use safelight_store::Checkpoint;

/// A file of `testdata/golden/convert`.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata/golden/convert")
        .join(name)
}

/// A tensor's bytes.
pub fn read_all(source: &dyn Source, index: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut push = |piece: &[u8]| {
        assert!(!piece.is_empty());
        bytes.extend_from_slice(piece);
        Ok(())
    };
    source.read(index, &mut push).unwrap();
    bytes
}

/// The bytes of the tensor of that name.
#[track_caller]
pub fn read_named(source: &dyn Source, name: &str) -> Vec<u8> {
    let mut tensors = source.tensors().iter();
    let index = tensors.position(|tensor| tensor.name == name);
    read_all(source, index.unwrap_or_else(|| panic!("no {name}")))
}

pub fn notes(source: &dyn Source) -> Vec<String> {
    source.notes().iter().map(|note| note.to_string()).collect()
}

/// As [`check_against`], with what lies beside the file: `NAME_ENDING.safetensors`.
#[track_caller]
pub fn check(file: &str) -> Box<dyn Source> {
    check_against(file, &format!("{}.safetensors", file.replace('.', "_")))
}

/// Every tensor of the golden file has the shape and bytes expected, and there are no others.
#[track_caller]
pub fn check_against(file: &str, expected: &str) -> Box<dyn Source> {
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

/// What the metadata of the golden file's expected tensors says under a key.
#[track_caller]
pub fn expected_metadata(file: &str, key: &str) -> String {
    let expected = format!("{}.safetensors", file.replace('.', "_"));
    let expected = Checkpoint::open(&golden(&expected)).unwrap();
    let mut metadata = expected.metadata().into_iter().flatten();
    let found = metadata.find(|(found, _)| *found == key);
    found.unwrap_or_else(|| panic!("no {key}")).1.to_string()
}
