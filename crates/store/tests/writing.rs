//! The streaming writer: any order, any thread, nothing visible before the end.

mod common;

use std::fs;
use std::io::Write as _;
use std::path::Path;

use common::Folder;
use safelight_format::{Dtype, Metadata, Order, TensorSpec, TensorView};
use safelight_store::{
    Checkpoint, PageCache, SaveOptions, StoreError, StreamWriter, Writer, save, save_to,
};

fn spec(name: &str, dtype: Dtype, shape: &[u64]) -> TensorSpec {
    let (name, shape) = (name.to_owned(), shape.to_vec());
    TensorSpec { name, dtype, shape }
}

/// Three tensors, of which `Order::HuggingFace` puts the last first.
fn specs() -> [TensorSpec; 3] {
    [
        spec("a", Dtype::U8, &[1000, 1000]),
        spec("empty", Dtype::U8, &[0]),
        spec("z", Dtype::F32, &[2, 3]),
    ]
}

fn contents() -> [Vec<u8>; 3] {
    let noise = (0..1_000_000u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8);
    [noise.collect(), Vec::new(), (0..24).collect()]
}

fn views<'a>(specs: &'a [TensorSpec], contents: &'a [Vec<u8>]) -> Vec<TensorView<'a>> {
    let both = specs.iter().zip(contents);
    both.map(|(spec, bytes)| TensorView {
        name: &spec.name,
        dtype: spec.dtype,
        shape: &spec.shape,
        bytes,
    })
    .collect()
}

fn create(path: &Path) -> Writer {
    Writer::create(path, &specs(), None, &SaveOptions::default()).unwrap()
}

#[test]
fn every_way_of_writing_gives_the_same_file() {
    let folder = Folder::new();
    let (specs, contents) = (specs(), contents());
    let metadata = Metadata::from([("format".to_owned(), "pt".to_owned())]);
    for order in [
        Order::HuggingFace,
        Order::Insertion,
        Order::Name,
        Order::Aligned,
    ] {
        let options = SaveOptions {
            order,
            align_bytes: 64,
            reserve_header_bytes: 100,
            ..SaveOptions::default()
        };
        let (saved, streamed) = (folder.join("saved"), folder.join("streamed"));
        let views = views(&specs, &contents);
        let file_bytes = save(&saved, &views, Some(&metadata), &options).unwrap();

        let mut buffer = Vec::new();
        save_to("buffer", &mut buffer, &views, Some(&metadata), &options).unwrap();

        let writer = Writer::create(&streamed, &specs, Some(&metadata), &options).unwrap();
        assert_eq!(writer.file_bytes(), file_bytes);
        for (index, bytes) in contents.iter().enumerate().rev() {
            let mut out = writer.tensor(index);
            bytes
                .chunks(777)
                .for_each(|piece| out.write_all(piece).unwrap());
        }
        assert_eq!(writer.finish().unwrap(), file_bytes);

        let expected = fs::read(&saved).unwrap();
        assert_eq!(buffer, expected, "{order:?}");
        assert!(fs::read(&streamed).unwrap() == expected, "{order:?}");
        let checkpoint = Checkpoint::open(&saved).unwrap();
        assert_eq!(checkpoint.read_bytes("a").unwrap(), contents[0]);
    }
}

#[test]
fn pieces_from_many_threads() {
    let folder = Folder::new();
    let path = folder.join("model");
    let contents = contents();
    let writer = create(&path);
    std::thread::scope(|scope| {
        for start in 0..4 {
            let (writer, bytes) = (&writer, &contents[0]);
            scope.spawn(move || {
                for (position, piece) in bytes.chunks(4001).enumerate().skip(start).step_by(4) {
                    writer.write_at(0, position as u64 * 4001, piece).unwrap();
                }
            });
        }
        writer.write_at(2, 0, &contents[2]).unwrap();
    });
    writer.finish().unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.read_bytes("a").unwrap(), contents[0]);
    assert_eq!(checkpoint.read_bytes("z").unwrap(), contents[2]);
    assert_eq!(folder.list(), ["model"]);
}

#[test]
fn pieces_copied_from_files() {
    let folder = Folder::new();
    let contents = contents();
    let source = folder.write("source", [&b"junk"[..], &contents[0]].concat());
    let source = fs::File::open(source).unwrap();
    let writer = create(&folder.join("model"));
    writer.copy_at(0, 0, &source, 4, 999_999).unwrap();
    let error = writer
        .copy_at(0, 999_999, &source, 1_000_004, 1)
        .unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    writer.copy_at(0, 999_999, &source, 1_000_003, 1).unwrap();
    writer.write_at(2, 0, &contents[2]).unwrap();
    writer.finish().unwrap();
    let checkpoint = Checkpoint::open(&folder.join("model")).unwrap();
    assert_eq!(checkpoint.read_bytes("a").unwrap(), contents[0]);
}

#[test]
fn what_is_missing_is_named_and_the_old_file_stays() {
    let folder = Folder::new();
    let path = folder.write("model", "old");
    let writer = create(&path);
    writer.write_at(0, 10, &[1; 999_980]).unwrap();
    let error = writer.finish().unwrap_err().to_string();
    let expected = format!(
        "cannot finish {}: 2 tensors are not complete: `a` lacks 20 bytes, `z` lacks 24 bytes",
        path.display()
    );
    assert_eq!(error, expected);
    drop(create(&path));
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(folder.list(), ["model"]);
}

#[test]
fn pieces_that_cannot_be() {
    let folder = Folder::new();
    let path = folder.join("model");
    let writer = create(&path);
    let says = |offset, bytes: &[u8]| writer.write_at(2, offset, bytes).unwrap_err().to_string();
    let prefix = format!("cannot write {}: ", path.display());
    let beyond = "reach beyond tensor `z`, which has 24";
    assert_eq!(says(0, &[0; 25]), format!("{prefix}25 bytes at 0 {beyond}"));
    assert_eq!(says(25, &[]), format!("{prefix}0 bytes at 25 {beyond}"));
    assert_eq!(
        says(u64::MAX, &[0]),
        format!("{prefix}1 bytes at {} {beyond}", u64::MAX)
    );
    writer.write_at(2, 8, &[0; 8]).unwrap();
    for (offset, len) in [(0, 9), (8, 1), (15, 1), (15, 9), (0, 24)] {
        let expected = format!(
            "{prefix}of the {len} bytes at {offset} of tensor `z`, some were written before"
        );
        assert_eq!(says(offset, &vec![0; len]), expected);
    }
    writer.write_at(2, 0, &[0; 8]).unwrap();
    writer.write_at(2, 16, &[0; 8]).unwrap();
    assert!(writer.tensor(2).write_all(&[1]).is_ok(), "collected");
    let error = writer.finish().unwrap_err().to_string();
    assert!(error.contains("some were written before"), "{error}");
    assert!(folder.list().is_empty());
}

#[test]
fn nothing_is_seen_before_the_end() {
    let folder = Folder::new();
    let path = folder.join("model");
    let writer = create(&path);
    writer.write_at(0, 0, &[1; 1_000_000]).unwrap();
    assert!(!path.exists());
    writer.write_at(2, 0, &[1; 24]).unwrap();
    writer.finish().unwrap();
    assert_eq!(folder.list(), ["model"]);
}

#[test]
fn around_the_page_cache_the_bytes_are_the_same() {
    let folder = Folder::new();
    let sizes = [3_000_001u64, 5, 0, 12_345_678, 4096];
    let specs: Vec<TensorSpec> = (sizes.iter().enumerate())
        .map(|(index, &size)| TensorSpec {
            name: format!("t{index}"),
            dtype: Dtype::U8,
            shape: vec![size],
        })
        .collect();
    let contents: Vec<Vec<u8>> = (sizes.iter().enumerate())
        .map(|(index, &size)| (0..size).map(|at| (at % 251) as u8 ^ index as u8).collect())
        .collect();
    let written = [PageCache::Keep, PageCache::Bypass].map(|page_cache| {
        let options = SaveOptions {
            page_cache,
            ..SaveOptions::default()
        };
        let path = folder.path().join("a.safetensors");
        let writer = Writer::create(&path, &specs, None, &options).unwrap();
        std::thread::scope(|scope| {
            for (index, content) in contents.iter().enumerate() {
                let writer = &writer;
                scope.spawn(move || {
                    // Pieces of odd sizes, the last one first.
                    let pieces: Vec<(usize, &[u8])> =
                        content.chunks(1_300_003).enumerate().collect();
                    for (count, piece) in pieces.into_iter().rev() {
                        let offset = count as u64 * 1_300_003;
                        writer.write_at(index, offset, piece).unwrap();
                    }
                });
            }
        });
        writer.finish().unwrap();
        std::fs::read(&path).unwrap()
    });
    assert!(written[0] == written[1]);
    let checkpoint = Checkpoint::open(&folder.path().join("a.safetensors")).unwrap();
    for (spec, content) in specs.iter().zip(&contents) {
        assert!(checkpoint.read_bytes(&spec.name).unwrap() == *content);
    }
}

/// Writes all tensors of [`specs`] into `out`, in pieces of a prime number of bytes.
fn stream<W: std::io::Write>(out: W, options: &SaveOptions) -> Result<(W, u64), StoreError> {
    let contents = contents();
    let mut writer = StreamWriter::new("a pipe", out, &specs(), None, options)?;
    while let Some(index) = writer.next_tensor() {
        let done = contents[index].len() - writer.next_bytes() as usize;
        let piece = writer.next_bytes().min(65_521) as usize;
        writer.write(index, &contents[index][done..done + piece])?;
    }
    writer.finish()
}

#[test]
fn a_pipe_gets_the_bytes_of_a_file() {
    let folder = Folder::new();
    let (specs, contents) = (specs(), contents());
    for order in [
        Order::HuggingFace,
        Order::Insertion,
        Order::Name,
        Order::Aligned,
    ] {
        let options = SaveOptions {
            order,
            reserve_header_bytes: 300,
            ..SaveOptions::default()
        };
        let path = folder.join("saved");
        save(&path, &views(&specs, &contents), None, &options).unwrap();
        let saved = fs::read(&path).unwrap();
        let (mut reader, pipe) = std::io::pipe().unwrap();
        let read = std::thread::scope(|scope| {
            let read = scope.spawn(move || {
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
                bytes
            });
            let (pipe, file_bytes) = stream(pipe, &options).unwrap();
            drop(pipe);
            assert_eq!(file_bytes, saved.len() as u64);
            read.join().unwrap()
        });
        assert!(read == saved, "{order:?}");
    }
}

#[test]
fn a_stream_says_what_comes_next_and_takes_nothing_else() {
    let (specs, mut out) = (specs(), Vec::new());
    let options = SaveOptions::default();
    let start = || StreamWriter::new("a pipe", Vec::new(), &specs, None, &options).unwrap();
    let mut writer = StreamWriter::new("a pipe", &mut out, &specs, None, &options).unwrap();
    assert_eq!((writer.next_tensor(), writer.next_bytes()), (Some(2), 24));
    let error = writer.write(0, b"x").unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot write a pipe: tensor `a` came, but `z` is next in the file"
    );
    let error = writer.write(2, &[0; 25]).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::OutsideTensor {
                tensor_bytes: 24,
                ..
            }
        ),
        "{error}"
    );
    writer.write(2, &[1; 20]).unwrap();
    writer.write(1, b"").unwrap();
    writer.write(2, &[2; 4]).unwrap();
    let error = writer.finish().unwrap_err();
    let StoreError::Unwritten { tensors, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(tensors, [("a".to_owned(), 1_000_000)]);
    let mut writer = start();
    writer.write(2, &[1; 24]).unwrap();
    writer.write(0, &[0; 1_000_000]).unwrap();
    let error = writer.write(0, b"x").unwrap_err().to_string();
    assert!(error.ends_with("all tensors are complete"), "{error}");
    assert!(writer.finish().is_ok());
    let none = StreamWriter::new("a pipe", Vec::new(), &[], None, &options).unwrap();
    assert!(none.next_tensor().is_none() && none.finish().is_ok());
}

#[test]
fn a_stream_whose_reader_went_away_fails_and_stays_failed() {
    let (reader, pipe) = std::io::pipe().unwrap();
    drop(reader);
    let error = stream(pipe, &SaveOptions::default()).unwrap_err();
    let StoreError::Io { error, file, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(
        (error.kind(), &file[..]),
        (std::io::ErrorKind::BrokenPipe, "a pipe")
    );
    /// Room for so many bytes.
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(bytes.len())
                .ok_or(std::io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let options = SaveOptions::default();
    let mut writer = StreamWriter::new("a pipe", Full(1000), &specs(), None, &options).unwrap();
    writer.write(2, &[0; 24]).unwrap();
    assert!(writer.write(0, &[0; 2000]).is_err());
    assert!(writer.write(0, &[0; 1]).is_err()); // there would be room, but the file has a hole
    assert!(writer.finish().is_err());
}
