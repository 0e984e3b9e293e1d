//! What every reader of a foreign format must keep to, whatever the file.

use std::collections::HashSet;
use std::io;

use safelight_convert::{ConvertError, Limits, Source};
use safelight_store::ReadAt;

/// A file in memory.
pub(crate) struct Memory(pub(crate) Vec<u8>);

impl ReadAt for Memory {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.0.len());
        let count = buffer.len().min(self.0.len() - start);
        buffer[..count].copy_from_slice(&self.0[start..start + count]);
        Ok(count)
    }

    fn byte_count(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
}

/// Little enough that a run cannot take long.
pub(crate) fn limits() -> Limits {
    Limits {
        tensor_count_max: 1000,
        memory_bytes_max: 1 << 20,
        ..Limits::default()
    }
}

/// Tensors above this size are not read.
const READ_BYTES_MAX: u64 = 8 << 20;

/// A source that opened: unique names, tensors of exactly their size in pieces of sensible size, messages without
/// control characters.
pub(crate) fn check(opened: Result<Box<dyn Source>, ConvertError>) {
    let source = match opened {
        Ok(source) => source,
        Err(error) => return check_message(&error.to_string()),
    };
    let mut names = HashSet::new();
    for note in source.notes() {
        check_message(&note.to_string());
    }
    for (index, tensor) in source.tensors().iter().enumerate() {
        assert!(names.insert(&tensor.name), "{} twice", tensor.name);
        let expected = tensor.byte_count().expect("a tensor has a size");
        if expected > READ_BYTES_MAX {
            continue;
        }
        let mut there = 0;
        let read = source.read(index, &mut |piece| {
            assert!(
                !piece.is_empty() && piece.len() <= 16 << 20,
                "{} bytes",
                piece.len()
            );
            there += piece.len() as u64;
            Ok(())
        });
        match read {
            Ok(()) => {
                assert_eq!(there, expected, "{}", tensor.name);
                source
                    .check(&[index])
                    .expect("what can be read was not too much");
            }
            Err(error) => {
                assert!(there <= expected);
                check_message(&error.to_string());
            }
        }
    }
}

fn check_message(text: &str) {
    assert!(
        !text.is_empty() && !text.contains(char::is_control),
        "{text:?}"
    );
}
