//! Crafted models: each is refused for the reason given, or read as expected.

use super::*;
use crate::bytes::Memory;

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn whole(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn bytes(field: u64, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    [
        varint(field << 3 | 2),
        varint(content.len() as u64),
        content.to_vec(),
    ]
    .concat()
}

/// A tensor `a` of a kind and shape, with more fields.
fn tensor(kind: u64, shape: &[u64], more: &[Vec<u8>]) -> Vec<u8> {
    let dims = shape.iter().flat_map(|&dim| whole(1, dim)).collect();
    [vec![dims, whole(2, kind), bytes(8, "a")], more.to_vec()]
        .concat()
        .concat()
}

fn model(graph: &[Vec<u8>]) -> Vec<u8> {
    [whole(1, 8), bytes(2, "me"), bytes(7, graph.concat())].concat()
}

fn open(file: Vec<u8>) -> Result<OnnxSource, ConvertError> {
    let limits = Limits {
        memory_bytes_max: 1 << 20,
        tensor_count_max: 100,
        ..Limits::default()
    };
    OnnxSource::from_reader("m", Box::new(Memory(file)), &limits)
}

fn all(source: &OnnxSource, index: usize) -> Result<Vec<u8>, ConvertError> {
    let mut bytes = Vec::new();
    source.read(index, &mut |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(bytes)
}

#[track_caller]
fn refused(tensor: Vec<u8>, expected: &str) {
    let opened = open(model(&[bytes(5, tensor)]));
    let error = opened
        .and_then(|source| all(&source, 0))
        .unwrap_err()
        .to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn numbers_of_every_kind_of_field() {
    let check = |tensor: Vec<u8>, expected: &[u8]| {
        let file = model(&[bytes(5, tensor)]);
        assert!(is_onnx(&Memory(file.clone())));
        let source = open(file).unwrap();
        assert_eq!(all(&source, 0).unwrap(), expected);
    };
    check(tensor(2, &[3], &[bytes(9, [1, 2, 3])]), &[1, 2, 3]);
    check(
        tensor(2, &[3], &[bytes(5, [1, 2]), whole(5, 255)]),
        &[1, 2, 255],
    );
    check(
        tensor(3, &[2], &[whole(5, u64::MAX), whole(5, 127)]),
        &[255, 127],
    );
    check(tensor(10, &[1], &[whole(5, 0x3c00)]), &[0, 0x3c]);
    check(tensor(7, &[], &[whole(7, u64::MAX)]), &[255; 8]);
    check(tensor(12, &[1], &[whole(11, 0xffff_ffff)]), &[255; 4]);
    let single = [varint(4 << 3 | 5), vec![0, 0, 128, 63]].concat();
    check(
        tensor(1, &[2], &[single, bytes(4, [1, 2, 3, 4])]),
        &[0, 0, 128, 63, 1, 2, 3, 4],
    );
    check(tensor(14, &[1], &[bytes(4, [9; 8])]), &[9; 8]);
    check(tensor(22, &[3], &[bytes(9, [0x8f, 0xf7])]), &[255, 248, 7]);
    check(tensor(21, &[3], &[bytes(5, [0x21, 0x03])]), &[1, 2, 3]);
    check(
        tensor(26, &[4], &[bytes(9, [0b11_10_01_00])]),
        &[0, 1, 254, 255],
    );
    check(tensor(1, &[0, 3], &[]), &[]);
    check(tensor(23, &[4], &[bytes(9, [0x21, 0x43])]), &[0x21, 0x43]);
    check(tensor(23, &[4], &[bytes(5, [0x21, 0x43])]), &[0x21, 0x43]);
}

#[test]
fn what_does_not_fit_is_refused() {
    refused(
        tensor(2, &[3], &[bytes(9, [1, 2])]),
        "2 bytes, but 3 elements of UINT8 have 3",
    );
    refused(tensor(2, &[3], &[bytes(5, [1, 2])]), "cannot be 3 elements");
    refused(
        tensor(7, &[1], &[bytes(7, [1, 2])]),
        "more than the 1 numbers",
    );
    refused(
        tensor(7, &[2], &[bytes(7, [0x81, 2])]),
        "1 numbers, but its shape says 2",
    );
    refused(tensor(2, &[1], &[whole(5, 256)]), "256 at byte");
    refused(tensor(3, &[1], &[whole(5, 128)]), "does not fit into INT8");
    refused(
        tensor(1, &[1], &[bytes(5, [1])]),
        "field 5 holds its numbers, but those of FLOAT are in field 4",
    );
    refused(tensor(1, &[1], &[bytes(4, [1, 2, 3])]), "3 bytes at byte");
    refused(
        tensor(1, &[1], &[bytes(9, [0; 4]), bytes(4, [0; 4])]),
        "several fields at once",
    );
    refused(tensor(1, &[1 << 33, 1 << 33], &[]), "no size in 64 bits");
    refused(tensor(1, &[1 << 60], &[]), "no size in 64 bits");
    refused(tensor(1, &[u64::MAX], &[]), "negative dimensions: [-1]");
    refused(tensor(1, &[1; 65], &[]), "65 dimensions");
    refused(tensor(15, &[1], &[]), "COMPLEX128");
    refused(tensor(99, &[1], &[]), "data type 99");
    refused(tensor(23, &[3], &[bytes(9, [1, 2])]), "no whole byte");
    refused(tensor(1, &[1], &[bytes(3, "")]), "segments");
    refused(tensor(1, &[1], &[whole(14, 1)]), "no location");
    let outside = bytes(13, [bytes(1, "location"), bytes(2, "x.bin")].concat());
    refused(
        tensor(1, &[1], &[whole(14, 1), outside]),
        "did not come from a folder",
    );
    refused(whole(8, 3), "is not bytes");
}

/// A sparse tensor of bytes.
fn sparse(values: &[u8], places: &[i64], places_shape: &[u64], dims: &[u64]) -> Vec<u8> {
    let raw: Vec<u8> = places
        .iter()
        .flat_map(|place| place.to_le_bytes())
        .collect();
    let values = tensor(2, &[values.len() as u64], &[bytes(9, values)]);
    let places = tensor(7, places_shape, &[bytes(9, raw)]);
    let dims = dims.iter().flat_map(|&dim| whole(3, dim)).collect();
    bytes(15, [bytes(1, values), bytes(2, places), dims].concat())
}

#[test]
fn sparse_tensors_are_made_dense() {
    let check = |sparse: Vec<u8>, expected: &[u8]| {
        let source = open(model(&[sparse])).unwrap();
        assert_eq!(all(&source, 0).unwrap(), expected);
        assert_eq!(source.notes()[0].what, "a sparse tensor, made dense");
    };
    check(sparse(&[7, 8], &[1, 5], &[2], &[2, 3]), &[0, 7, 0, 0, 0, 8]);
    check(
        sparse(&[7, 8], &[0, 1, 1, 2], &[2, 2], &[2, 3]),
        &[0, 7, 0, 0, 0, 8],
    );
    check(sparse(&[], &[], &[0], &[3]), &[0, 0, 0]);
    let refused = |sparse: Vec<u8>, expected: &str| {
        let read = open(model(&[sparse])).and_then(|source| all(&source, 0));
        let error = read.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(
        sparse(&[7], &[6], &[1], &[2, 3]),
        "a value at 6 of 6 elements",
    );
    refused(
        sparse(&[7], &[-1], &[1], &[6]),
        "a value at -1 of 6 elements",
    );
    refused(
        sparse(&[7], &[0, 3], &[1, 2], &[2, 3]),
        "a value at 3 of a dimension of 3",
    );
    refused(sparse(&[7, 8], &[5, 1], &[2], &[6]), "has them in order");
    refused(sparse(&[7, 8], &[1, 1], &[2], &[6]), "has them in order");
    refused(
        sparse(&[7, 8], &[1], &[1], &[6]),
        "1 places of type INT64 for 2 values",
    );
    refused(sparse(&[7], &[0], &[1], &[1 << 40]), "bytes of zeros");
}

#[test]
fn graphs_within_nodes() {
    let inner = bytes(5, tensor(2, &[1], &[bytes(9, [7])]));
    let attribute = bytes(5, [bytes(1, "then_branch"), bytes(6, &inner)].concat());
    let node = bytes(1, [bytes(4, "If"), attribute].concat());
    let constant = bytes(1, bytes(4, "Constant"));
    let words = tensor(8, &[1], &[bytes(6, "text")]);
    let words = bytes(5, [words, bytes(8, "words")].concat());
    let outer = bytes(5, tensor(2, &[1], &[bytes(9, [8])]));
    let source = open(model(&[constant, node, outer, words])).unwrap();
    let names: Vec<_> = source.tensors().iter().map(|tensor| &tensor.name).collect();
    assert_eq!(names, ["If_1/then_branch/a", "a"]);
    assert_eq!(all(&source, 0).unwrap(), [7]);
    let notes: Vec<_> = source.notes().iter().map(|note| note.to_string()).collect();
    assert_eq!(
        notes,
        [
            "`words`: dropped: an array of texts (STRING)",
            "`Constant`: dropped: the values of 1 constant nodes, which are no initialisers"
        ]
    );
    assert_eq!(source.metadata()["onnx.producer_name"], "me");
}

#[test]
fn broken_models() {
    let check = |file: Vec<u8>, expected: &str| {
        let error = open(file).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let a = || bytes(5, tensor(2, &[1], &[bytes(9, [7])]));
    check(model(&[a(), a()]), "two initialisers have this name");
    check(whole(1, 8), "no graph");
    check([bytes(7, ""), bytes(7, "")].concat(), "two graphs");
    check(vec![0x3a, 200, 1, 0], "reaches beyond its message");
    check(vec![0x3b], "wire type 3");
    check(vec![0x02, 0], "field number 0");
    check([0xff; 12].to_vec(), "does not end");
    let mut deep = Vec::new();
    for _ in 0..100 {
        deep = bytes(1, bytes(5, bytes(6, &deep)));
    }
    check(model(&[deep]), "graphs within each other");
    let many =
        (0..200).map(|i| bytes(5, [tensor(2, &[0], &[]), bytes(8, format!("{i}"))].concat()));
    check(
        model(&many.collect::<Vec<_>>()),
        "101 tensors, the limit is 100",
    );
}

#[test]
fn other_files_are_no_models() {
    for file in [
        &b"\x08\x07"[..],
        b"\x08\x00\x3a\x02\x0a\x00",
        b"\x08\x07\x12\x02me",
        b"\x08\x07\x3a\x00",
        b"\x08\x07\x3a\x02\x08\x00",
        b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ",
        b"plain text, quite a bit of it",
        b"\x3a\x02\x0a\x00",
        &[0; 40],
        &[0xff; 40],
    ] {
        assert!(!is_onnx(&Memory(file.to_vec())), "{}", file.escape_ascii());
    }
}

#[cfg(unix)]
#[test]
fn data_in_other_files() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("data"), [1, 2, 3, 4, 5]).unwrap();
    let path = folder.path().join("m.onnx");
    let entry = |key: &str, value: &str| bytes(13, [bytes(1, key), bytes(2, value)].concat());
    let open = |location: &str, offset: &str, length: &str| {
        let places = [
            entry("location", location),
            entry("offset", offset),
            entry("length", length),
        ];
        let tensor = tensor(2, &[3], &[places.concat(), whole(14, 1)]);
        std::fs::write(&path, model(&[bytes(5, tensor)])).unwrap();
        let source = OnnxSource::open(&path, &Limits::default())?;
        all(&source, 0)
    };
    assert_eq!(open("data", "1", "3").unwrap(), [2, 3, 4]);
    for (location, offset, length, expected) in [
        (
            "data",
            "3",
            "3",
            "3 bytes at byte 3 of `data`, which has only 5",
        ),
        (
            "data",
            "1",
            "2",
            "2 bytes in `data`, but its shape and type need 3",
        ),
        ("data", "-1", "3", "external offset is `-1`"),
        ("data", "18446744073709551615", "3", "which has only 5"),
        ("../data", "0", "3", "no path inside of a folder"),
        ("/etc/hostname", "0", "3", "no path inside of a folder"),
        ("none", "0", "3", "cannot be found"),
    ] {
        let error = open(location, offset, length).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
