//! ONNX and HDF5 files against what onnx and h5py read from them (`tools/golden/graphs.py`).

use std::path::{Path, PathBuf};

use safelight_convert::{Limits, Source, open};
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
fn check(file: &str) -> Box<dyn Source> {
    let source = open(&golden(file), &Limits::default()).unwrap();
    let expected = format!("{}.safetensors", file.replace('.', "_"));
    let expected = Checkpoint::open(&golden(&expected)).unwrap();
    for (index, tensor) in source.tensors().iter().enumerate() {
        let name = &tensor.name;
        let wanted = expected
            .get(name)
            .unwrap_or_else(|| panic!("{file}: {name} is not expected"));
        assert_eq!(tensor.shape, wanted.shape, "{file}: {name}");
        assert_eq!(
            tensor.dtype.bits(),
            wanted.dtype.bits(),
            "{file}: {name}: {}",
            tensor.dtype
        );
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
fn onnx() {
    let source = check("graph.onnx");
    assert_eq!(source.metadata()["author"], "nobody");
    assert_eq!(source.metadata()["onnx.producer_name"], "golden");
    assert_eq!(source.metadata()["onnx.graph.doc_string"], "a graph");
    let notes = notes(&*source);
    assert!(
        notes.iter().any(|note| note.contains("`words`: dropped")),
        "{notes:?}"
    );
    assert!(
        notes
            .iter()
            .any(|note| note.contains("INT4 elements of 4 bits")),
        "{notes:?}"
    );
}

#[test]
fn onnx_with_data_in_another_file() {
    check("external.onnx");
}

#[test]
fn hdf5_with_symbol_tables() {
    let source = check("early.h5");
    let notes = notes(&*source);
    for (name, what) in [
        ("words", "dropped: values of variable length"),
        ("null", "dropped: an empty dataspace"),
        ("compound", "dropped: a compound type"),
        ("soft", "not followed: a soft link"),
        ("outside/external", "not followed: a link to another file"),
        ("loop", "not followed: a hard link"),
        ("named", "dropped: a named type"),
        ("colour", "an enumeration is read as its numbers"),
        ("scalar", "a second name of `again`, copied"),
    ] {
        let start = format!("`{name}`: {what}");
        assert!(
            notes.iter().any(|note| note.starts_with(&start)),
            "{start}: {notes:#?}"
        );
    }
}

#[test]
fn hdf5_of_the_newest_kind() {
    check("late.h5");
    check("userblock.h5");
}

#[test]
fn hdf5_with_links_in_a_fractal_heap_is_refused_by_name() {
    let opened = open(&golden("dense.h5"), &Limits::default());
    let error = opened.err().unwrap().to_string();
    assert!(
        error.contains("keeps its links in a fractal heap"),
        "{error}"
    );
}
