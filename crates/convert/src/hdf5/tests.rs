//! Crafted files, made from a sound one by changing single bytes.

use super::*;
use crate::bytes::Memory;

fn seed(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/h5");
    std::fs::read(folder.join(name)).unwrap()
}

fn open(file: Vec<u8>) -> Result<Hdf5Source, ConvertError> {
    let limits = Limits {
        memory_bytes_max: 1 << 20,
        ..Limits::default()
    };
    Hdf5Source::from_reader("m", Box::new(Memory(file)), &limits)
}

fn all(source: &Hdf5Source, index: usize) -> Result<Vec<u8>, ConvertError> {
    let mut bytes = Vec::new();
    source.read(index, &mut |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(bytes)
}

/// Replaces the bytes `from`, which stand in the file once at least, everywhere.
fn changed(name: &str, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut file = seed(name);
    let mut count = 0;
    for at in 0..file.len() - from.len() {
        if file[at..].starts_with(from) {
            file[at..at + to.len()].copy_from_slice(to);
            count += 1;
        }
    }
    assert!(count > 0);
    file
}

#[track_caller]
fn refused(file: Vec<u8>, expected: &str) {
    let opened = open(file);
    let error = opened
        .and_then(|source| all(&source, 0))
        .unwrap_err()
        .to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn all_layouts_give_the_same_numbers() {
    let expected: Vec<u8> = (0..12u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    for libver in ["earliest", "latest"] {
        for layout in ["plain", "chunks", "deflate", "one"] {
            let name = format!("{libver}_{layout}.h5");
            let source = open(seed(&name)).unwrap();
            let index = source
                .tensors()
                .iter()
                .position(|tensor| tensor.name == "g/a");
            assert_eq!(all(&source, index.unwrap()).unwrap(), expected, "{name}");
        }
        let source = open(seed(&format!("{libver}_never.h5"))).unwrap();
        assert_eq!(all(&source, 0).unwrap(), 2f32.to_le_bytes().repeat(12));
    }
}

#[test]
fn broken_files_are_refused_for_the_reason_given() {
    refused(Vec::new(), "no HDF5 signature");
    refused(vec![0; 5000], "no HDF5 signature");
    refused(
        seed("earliest_plain.h5")[..100].to_vec(),
        "it has 100 bytes of 4752; is the file whole?",
    );
    refused(
        seed("latest_plain.h5")[..2000].to_vec(),
        "it has 2000 bytes of 2098; is the file whole?",
    );
    refused(
        seed("earliest_plain.h5")[..2100].to_vec(),
        "is the file whole?",
    );
    refused(
        changed("earliest_plain.h5", b"TREE", b"TREF"),
        "no B-tree node of type 0",
    );
    refused(
        changed("earliest_plain.h5", b"SNOD", b"SNOE"),
        "no symbol table",
    );
    refused(
        changed("earliest_plain.h5", b"HEAP", b"HEAQ"),
        "no local heap",
    );
    refused(
        changed("latest_chunks.h5", b"FAHD", b"FAHE"),
        "no `FAHD` block",
    );
    refused(
        changed("latest_chunks.h5", b"FADB", b"FADC"),
        "no `FADB` block",
    );
    refused(
        changed("latest_plain.h5", b"OHDR", b"OHDS"),
        "no object header",
    );
    refused(
        changed("latest_plain.h5", b"OHDR\x02", b"OHDR\x03"),
        "version 3 of an object header",
    );
    let mut version = seed("latest_plain.h5");
    version[8] = 9;
    refused(version, "version 9");
    let mut sizes = seed("latest_plain.h5");
    sizes[9] = 7;
    refused(sizes, "addresses of 7 bytes");
    // A dimension of 3 becomes 2⁶¹, in all places where it stands.
    let three = [3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0];
    let huge = [0, 0, 0, 0, 0, 0, 0, 0x20];
    refused(
        changed("earliest_plain.h5", &three, &huge),
        "no size in 64 bits",
    );
    let large = [0, 0, 0, 0, 0, 1, 0, 0];
    refused(changed("earliest_plain.h5", &three, &large), "is it whole?");
    refused(
        changed("earliest_chunks.h5", &three, &large),
        "bytes that were never written",
    );
}

/// Names longer than what is read of a heap at first are read on, not the whole heap for each.
#[test]
fn long_names_are_not_read_over_and_over() {
    let source = open(seed("earliest_names.h5")).unwrap();
    assert_eq!(source.notes().len(), 80);
    let longest = source.notes().iter().map(|note| note.at.len()).max();
    assert_eq!(longest, Some(302));
}

#[test]
fn filters_are_undone_and_checked() {
    // The end of a zlib stream and the checksum behind it.
    let mut file = seed("earliest_deflate.h5");
    let stream = file
        .windows(2)
        .rposition(|bytes| matches!(bytes, [0x78, 0x5e | 0x9c]))
        .unwrap();
    file[stream + 6] ^= 0x55;
    refused(file, "the chunk at byte");
}

#[test]
fn links_are_not_followed_twice() {
    let source = open(seed("earliest_plain.h5")).unwrap();
    let names: Vec<_> = source.tensors().iter().map(|tensor| &tensor.name).collect();
    assert_eq!(names, ["b", "g/a"]);
    assert_eq!(source.tensors()[0].dtype, Dtype::Bool);
    let notes: Vec<_> = source.notes().iter().map(|note| note.to_string()).collect();
    assert_eq!(
        notes,
        [
            "`h`: not followed: a hard link to a group that has been read",
            "`s`: not followed: a soft link"
        ]
    );
}

/// Opens a changed file and reads all of it: whatever comes, it comes soon, and is not a panic.
fn survives(file: Vec<u8>) {
    let Ok(source) = open(file) else { return };
    for index in 0..source.tensors().len() {
        let byte_count = source.tensors()[index].byte_count();
        let mut there = 0;
        let read = source.read(index, &mut |piece| {
            there += piece.len() as u64;
            if there > 1 << 22 {
                return Err(ConvertError::Cancelled);
            }
            Ok(())
        });
        assert!(read.is_err() || byte_count == Some(there));
    }
}

#[test]
fn every_byte_may_be_wrong_and_every_end_too_early() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/h5");
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = std::fs::read(entry.unwrap().path()).unwrap();
        let step = file.len() / 1000 + 1;
        for at in (0..file.len()).step_by(step) {
            for bits in [0xff, 1 << (at % 8)] {
                let mut changed = file.clone();
                changed[at] ^= bits;
                survives(changed);
            }
            survives(file[..at].to_vec());
        }
    }
}

/// An old message about where elements lie, in the place of the newer one.
#[test]
fn layouts_of_version_1() {
    let file = seed("earliest_plain.h5");
    // Version 3, in one run, address and length; twelve f32.
    let place = file
        .windows(18)
        .position(|bytes| bytes.starts_with(&[3, 1]) && bytes[10..] == [48, 0, 0, 0, 0, 0, 0, 0]);
    let place = place.unwrap();
    let address = &file[place + 2..place + 10];
    let old = [
        &[1, 2, 1, 0, 0, 0, 0, 0],
        address,
        &[3, 0, 0, 0, 4, 0, 0, 0],
    ]
    .concat();
    let mut changed = file.clone();
    changed[place..place + old.len()].copy_from_slice(&old);
    let (before, after) = (open(file.clone()).unwrap(), open(changed).unwrap());
    assert_eq!(all(&before, 1).unwrap(), all(&after, 1).unwrap());
    let sizes = types::Sizes {
        offset: 8,
        length: 8,
    };
    let chunks = [
        2, 3, 2, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0,
    ];
    match types::layout(&chunks, 2, sizes).unwrap() {
        Layout::Chunked {
            chunk,
            index: types::Index::BTree(9),
            ..
        } => assert_eq!(chunk, [2, 3]),
        other => panic!("{other:?}"),
    }
    let compact = [1, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 7, 8];
    match types::layout(&compact, 1, sizes).unwrap() {
        Layout::Compact(bytes) => assert_eq!(bytes, [7, 8]),
        other => panic!("{other:?}"),
    }
}
