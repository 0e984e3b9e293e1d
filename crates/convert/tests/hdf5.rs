//! HDF5 and Keras files against what h5py reads from them (`tools/golden/graphs.py`, `tools/golden/hdf5.py`).

mod common;

use common::{check, expected_metadata, golden, notes, read_named};
use safelight_convert::{Limits, Source, open};
use safelight_format::Dtype;

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
fn links_in_fractal_heaps() {
    let source = check("dense.h5");
    assert_eq!(source.tensors().len(), 2 + 13 + 401 + 20);
}

#[test]
fn chunks_found_by_every_kind_of_index() {
    let source = check("indexes.h5");
    let dtype = |name: &str| {
        let mut tensors = source.tensors().iter();
        tensors.find(|tensor| tensor.name == name).unwrap().dtype
    };
    assert_eq!(dtype("complex"), Dtype::C64);
    assert_eq!(dtype("bf16"), Dtype::Bf16);
}

#[test]
fn floats_of_eight_and_sixteen_bits() {
    let source = open(&golden("floats.h5"), &Limits::default()).unwrap();
    for (name, dtype) in [
        ("e4m3", Dtype::F8E4m3),
        ("e5m2", Dtype::F8E5m2),
        ("bf16", Dtype::Bf16),
    ] {
        let mut tensors = source.tensors().iter();
        let found = tensors.find(|tensor| tensor.name == name).unwrap();
        assert_eq!(found.dtype, dtype);
        let bits = read_named(&*source, &format!("{name}_bits"));
        assert_eq!(read_named(&*source, name), bits, "{name}");
    }
}

#[test]
fn arrays_of_chunks_in_pages() {
    let source = open(&golden("sparse.h5"), &Limits::default()).unwrap();
    let written = [
        0, 3, 4, 19, 20, 500, 70_000, 131_075, 131_076, 200_000, 262_147, 262_148, 279_999,
    ];
    let mut expected = vec![9; 280_000];
    for place in written {
        expected[place] = (place % 251) as u8;
    }
    assert!(read_named(&*source, "grows") == expected);
}

/// The tensors are there, and the order in which Keras sets them is told.
#[track_caller]
fn check_keras(file: &str) -> Box<dyn Source> {
    let source = check(file);
    let expected = expected_metadata(file, "order");
    let order = source.metadata().get("keras.weights");
    assert_eq!(order.map_or("[]", String::as_str), expected, "{file}");
    source
}

#[test]
fn keras_files() {
    let source = check_keras("model.keras");
    let names: Vec<_> = source
        .tensors()
        .iter()
        .map(|tensor| &*tensor.name)
        .collect();
    assert!(names.contains(&"layers/dense/vars/0"), "{names:?}");
    assert!(source.metadata()["keras.config"].starts_with("{"));
    assert!(source.metadata()["keras.metadata"].contains("keras_version"));
    let source = check_keras("bf16.keras");
    assert!(
        source
            .tensors()
            .iter()
            .all(|tensor| tensor.dtype == Dtype::Bf16)
    );
    assert_eq!(notes(&*source), [""; 0]);
    let source = check_keras("model.h5");
    assert_eq!(source.metadata()["keras.backend"], "torch");
    assert!(source.metadata()["keras.weights"].contains("model_weights/dense/sequential"));
}

#[test]
fn keras_2_files() {
    for file in ["keras_2.h5", "keras_2_latest.h5"] {
        let source = check_keras(file);
        assert_eq!(source.metadata()["keras.version"], "2.15.0");
        let order = &source.metadata()["keras.weights"];
        assert!(order.contains("model_weights/block0_conv/block0_conv/kernel:0"));
        assert!(order.len() > 40 * 300, "the long names, too");
    }
}

#[test]
fn a_heap_with_blocks_within_blocks_within_blocks() {
    let source = open(&golden("deep.keras"), &Limits::default()).unwrap();
    assert_eq!(read_named(&*source, "w"), [0, 0, 0x80, 0x3f, 0, 0, 0, 0x40]);
    assert_eq!(source.tensors().len(), 2);
    let notes = notes(&*source);
    let soft = |note: &&String| note.ends_with("not followed: a soft link");
    assert_eq!(notes.iter().filter(soft).count(), 700);
    let mut places = source.notes().iter().map(|note| &note.at);
    assert!(places.any(|at| at.ends_with("nnn699")));
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    for (file, expected) in [
        ("outside.h5", "keeps its elements in other files"),
        ("scale_offset.h5", "went through filter 6 (scale-offset)"),
        ("virtual.h5", "a virtual dataset, made of other files"),
    ] {
        let error = open(&golden(file), &Limits::default()).err().unwrap();
        let error = error.to_string();
        assert!(error.contains("`layer/kernel`: "), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}
