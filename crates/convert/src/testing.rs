//! Tests only: a source in memory.

use std::collections::BTreeMap;

use safelight_format::{Dtype, TensorSpec};

use crate::error::ConvertError;
use crate::source::{Note, Source};

/// Tensors in memory, handed out in pieces of a chosen size.
pub(crate) struct Memory {
    tensors: Vec<TensorSpec>,
    bytes: Vec<Vec<u8>>,
    pub(crate) metadata: BTreeMap<String, String>,
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
            tensors: specs,
            bytes: all,
            metadata: BTreeMap::new(),
            piece_bytes: 1 << 20,
        }
    }

    pub(crate) fn in_pieces(mut self, piece_bytes: usize) -> Memory {
        self.piece_bytes = piece_bytes;
        self
    }
}

impl Source for Memory {
    fn label(&self) -> &str {
        "memory"
    }

    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn notes(&self) -> &[Note] {
        &[]
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        self.bytes[index].chunks(self.piece_bytes).try_for_each(out)
    }
}
