//! Tests only: a source in memory.

use safelight_format::{Dtype, TensorSpec};

use crate::error::ConvertError;
use crate::source::{Contents, Source};

/// Tensors in memory, handed out in pieces of a chosen size.
pub(crate) struct Memory {
    pub(crate) contents: Contents,
    bytes: Vec<Vec<u8>>,
    piece_bytes: usize,
}

impl Memory {
    pub(crate) fn new<'n>(
        tensors: impl IntoIterator<Item = (&'n str, Dtype, Vec<u64>, Vec<u8>)>,
    ) -> Memory {
        let (mut specs, mut all) = (vec![], vec![]);
        for (name, dtype, shape, bytes) in tensors {
            let spec = TensorSpec {
                name: name.into(),
                dtype,
                shape,
            };
            assert_eq!(spec.byte_count(), Some(bytes.len() as u64), "{name}");
            specs.push(spec);
            all.push(bytes);
        }
        Memory {
            contents: Contents {
                label: "memory".into(),
                tensors: specs,
                ..Contents::default()
            },
            bytes: all,
            piece_bytes: 1 << 20,
        }
    }

    pub(crate) fn in_pieces(mut self, piece_bytes: usize) -> Memory {
        self.piece_bytes = piece_bytes;
        self
    }
}

impl Source for Memory {
    fn contents(&self) -> &Contents {
        &self.contents
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        self.bytes[index].chunks(self.piece_bytes).try_for_each(out)
    }
}
