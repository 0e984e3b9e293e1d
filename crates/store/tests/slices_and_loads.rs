//! Slices read what they need, and whole files come into memory as they are.

mod common;

use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Folder, file_of, raw_file};
use safelight_format::{Dtype, TensorView, encode_f32, parse_index};
use safelight_store::{Backend, Checkpoint, LoadOptions, OpenOptions, ReadAt, StoreError};

/// A matrix of 600 by 500: element (r, c) is 500·r + c.
fn matrix() -> Vec<u8> {
    let values: Vec<f32> = (0..300_000).map(|i| i as f32).collect();
    let bytes = encode_f32(&values);
    let tensors = [
        TensorView {
            name: "m",
            dtype: Dtype::F32,
            shape: &[600, 500],
            bytes: &bytes,
        },
        TensorView {
            name: "four",
            dtype: Dtype::F4,
            shape: &[2, 4],
            bytes: &[0x10, 0x32, 0x54, 0x76],
        },
    ];
    file_of(&tensors, None)
}

/// Counts what is read.
struct Counted {
    bytes: Vec<u8>,
    read: Arc<AtomicU64>,
}

impl ReadAt for Counted {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = self.bytes.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        self.read.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }

    fn byte_count(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }
}

#[test]
fn a_slice_moves_little_more_than_it_needs() {
    let bytes = matrix();
    let read = Arc::new(AtomicU64::new(0));
    let counted = Counted {
        bytes: bytes.clone(),
        read: read.clone(),
    };
    let from_file =
        Checkpoint::from_reader("counted", Box::new(counted), &OpenOptions::default()).unwrap();
    let in_memory = Checkpoint::from_bytes("memory", bytes).unwrap();
    for (text, first, shape) in [
        ("[3]", 1500.0, vec![500]),
        ("[-2:, ..., ::2]", 299_000.0, vec![2, 250]),
        ("[::-1, 7]", 299_507.0, vec![600]),
        ("[[5, 1, 5], 2:4]", 2502.0, vec![3, 2]),
        ("[None, 10:20, -450:]", 5050.0, vec![1, 10, 450]),
        ("[..., 499, None]", 499.0, vec![600, 1]),
        ("[600:]", 0.0, vec![0, 500]),
    ] {
        let index = parse_index(text).unwrap();
        let before = read.load(Ordering::Relaxed);
        let slice = from_file.read_slice_f32("m", &index).unwrap();
        let moved = read.load(Ordering::Relaxed) - before;
        assert_eq!(slice.shape, shape, "{text}");
        assert_eq!(slice.elements.first().copied().unwrap_or(0.0), first);
        assert_eq!(moved, slice.read_bytes);
        let needed = slice.elements.len() as u64 * 4;
        assert!(moved * 10 <= needed * 12, "{text}: {moved} for {needed}");
        assert_eq!(
            in_memory.read_slice_f32("m", &index).unwrap().elements,
            slice.elements
        );
        let bytes = from_file.read_slice("m", &index).unwrap();
        assert_eq!(bytes.elements, encode_f32(&slice.elements));
        let mut pieces = Vec::new();
        let mut each = |dtype, bytes: &[u8], count| {
            assert_eq!((dtype, bytes.len()), (Dtype::F32, 4 * count));
            pieces.extend_from_slice(bytes);
            Ok(())
        };
        let found = from_file.read_slice_in_pieces("m", &index, &mut each);
        assert_eq!((found.unwrap(), pieces), (shape, bytes.elements));
    }
}

#[test]
fn half_bytes_are_packed_anew() {
    let checkpoint = Checkpoint::from_bytes("memory", matrix()).unwrap();
    let slice = |text: &str| {
        let index = parse_index(text).unwrap();
        let bytes = checkpoint.read_slice("four", &index).unwrap();
        let numbers = checkpoint.read_slice_f32("four", &index).unwrap();
        (bytes.elements, numbers.elements)
    };
    assert_eq!(slice("[1, 1:]"), (vec![0x65, 0x07], vec![3.0, 4.0, 6.0]));
    assert_eq!(slice("[::-1, 0]"), (vec![0x04], vec![2.0, 0.0]));
    assert_eq!(checkpoint.read_f32("four").unwrap()[..3], [0.0, 0.5, 1.0]);
}

#[test]
fn wrong_slices_name_file_and_tensor() {
    let checkpoint = Checkpoint::from_bytes("buffer", matrix()).unwrap();
    let read = |name: &str, text: &str| {
        let error = checkpoint.read_slice(name, &parse_index(text).unwrap());
        error.unwrap_err().to_string()
    };
    assert_eq!(
        read("m", "[600]"),
        "buffer: tensor `m`: position 600 is outside dimension 0, which has size 600: -600 to 599 are inside"
    );
    assert_eq!(read("n", "[0]"), "buffer: there is no tensor `n`");
}

#[test]
fn loaded_files_are_views_and_need_no_file() {
    let folder = Folder::new();
    let big: Vec<u8> = (0..20_000_003u32)
        .map(|i| (i * 31 + (i >> 9)) as u8)
        .collect();
    let tensor = TensorView {
        name: "big",
        dtype: Dtype::U8,
        shape: &[20_000_003],
        bytes: &big,
    };
    let path = folder.write("m.safetensors", file_of(&[tensor], None));
    let three = NonZeroUsize::new(3).unwrap();
    for backend in [Backend::Auto, Backend::Sequential, Backend::Parallel(three)] {
        for huge_pages in [false, true] {
            let options = LoadOptions {
                backend,
                huge_pages,
                ..LoadOptions::default()
            };
            let loaded = Checkpoint::open(&path).unwrap().load(&options).unwrap();
            assert!(loaded.view("big").unwrap().bytes == big);
            assert!(loaded.read_bytes("big").unwrap() == big);
        }
    }
    let loaded = Checkpoint::open(&path).unwrap();
    let loaded = loaded.load(&LoadOptions::default()).unwrap();
    fs::write(&path, "").unwrap();
    assert!(loaded.view("big").unwrap().bytes == big);
    let empty = folder.write("e.safetensors", raw_file("{}", b""));
    let empty = Checkpoint::open(&empty).unwrap();
    assert!(empty.load(&LoadOptions::default()).unwrap().is_empty());
}

#[test]
fn a_file_that_shrinks_is_an_error_in_every_way_of_reading() {
    let folder = Folder::new();
    let path = folder.write("m.safetensors", matrix());
    let opened = || {
        fs::write(&path, matrix()).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(100_000).unwrap();
        checkpoint
    };
    let index = parse_index("[500:, 3]").unwrap();
    for error in [
        opened().load(&LoadOptions::default()).unwrap_err(),
        opened().read_slice("m", &index).unwrap_err(),
        opened().read_bytes("m").unwrap_err(),
    ] {
        let shrank = matches!(
            error,
            StoreError::Shrank {
                now_bytes: 100_000,
                ..
            }
        );
        assert!(shrank, "{error}");
    }
}
