//! HDF5 and Keras files against what h5py reads from them (`tools/golden/graphs.py`, `tools/golden/hdf5.py`).

mod common;

use common::{check, golden, notes, read_named};
use safelight_convert::{Limits, open};
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
