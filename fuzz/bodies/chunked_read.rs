//! A file read in short and interrupted pieces gives what one big read gives; a file that
//! shrinks on the way gives an error.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use safelight_store::{Checkpoint, OpenOptions, ReadAt, StoreError};

/// The input's first two bytes say how reads go; the rest is the file.
pub(crate) fn run(input: &[u8]) {
    let Some((&[pace, shrink], file)) = input.split_first_chunk::<2>() else {
        return;
    };
    let options = OpenOptions::default();
    let whole = Checkpoint::from_bytes("fuzz", file.to_vec());
    let reader = Stingy {
        file: file.to_vec(),
        pace: u64::from(pace),
        reads: AtomicU64::new(0),
        shrinks_after: None,
    };
    let pieces = Checkpoint::from_reader("fuzz", Box::new(reader), &options);
    let (whole, pieces) = match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => (whole, pieces),
        (Err(whole), Err(pieces)) => return assert_eq!(whole.to_string(), pieces.to_string()),
        (whole, pieces) => panic!("{whole:?}, but in pieces {pieces:?}"),
    };
    assert_eq!(whole.metadata(), pieces.metadata());
    assert!(whole.tensors().eq(pieces.tensors()));
    for name in whole.names() {
        assert_eq!(
            pieces.read_bytes(name).expect("it is there"),
            whole.view(name).expect("it is in memory").bytes
        );
        match (whole.read_f32(name), pieces.read_f32(name)) {
            (Ok(a), Ok(b)) => assert!(
                a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits())
            ),
            (Err(a), Err(b)) => assert_eq!(a.to_string(), b.to_string()),
            (a, b) => panic!("{a:?}, but in pieces {b:?}"),
        }
    }
    shrinking(file, u64::from(pace), u64::from(shrink), &options);
}

/// The file loses its second half after some reads: errors, or tensors from before.
fn shrinking(file: &[u8], pace: u64, shrinks_after: u64, options: &OpenOptions) {
    let reader = Stingy {
        file: file.to_vec(),
        pace,
        reads: AtomicU64::new(0),
        shrinks_after: Some(shrinks_after),
    };
    let Ok(checkpoint) = Checkpoint::from_reader("fuzz", Box::new(reader), options) else {
        return;
    };
    for tensor in checkpoint.tensors() {
        match checkpoint.read_bytes(tensor.name) {
            Ok(bytes) => assert_eq!(bytes.len() as u64, tensor.byte_count()),
            Err(StoreError::Shrank {
                opened_bytes,
                now_bytes,
                ..
            }) => assert!(now_bytes < opened_bytes),
            Err(other) => panic!("{other}"),
        }
    }
}

/// A file that gives a few bytes a time, and now and then none at all.
struct Stingy {
    file: Vec<u8>,
    pace: u64,
    reads: AtomicU64,
    shrinks_after: Option<u64>,
}

impl Stingy {
    fn there(&self) -> &[u8] {
        let shrunk = self
            .shrinks_after
            .is_some_and(|after| self.reads.load(Ordering::Relaxed) > after);
        if shrunk {
            &self.file[..self.file.len() / 2]
        } else {
            &self.file
        }
    }
}

impl ReadAt for Stingy {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = self.reads.fetch_add(1, Ordering::Relaxed);
        if count % 5 == 3 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let rest = self.there().get(offset as usize..).unwrap_or_default();
        let piece = 1 + (self.pace * 7 + count) as usize % 97;
        let len = rest.len().min(buffer.len()).min(piece);
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn byte_count(&self) -> io::Result<u64> {
        Ok(self.there().len() as u64)
    }
}
