//! Safetensors files as a source: one file, an index with its shards, or a buffer.

use std::collections::BTreeMap;

use safelight_format::TensorSpec;
use safelight_store::Checkpoint;

use crate::error::ConvertError;
use crate::source::{Note, PIECE_BYTES, Source};

/// The tensors of a [`Checkpoint`].
pub struct CheckpointSource {
    checkpoint: Checkpoint,
    tensors: Vec<TensorSpec>,
    metadata: BTreeMap<String, String>,
}

impl CheckpointSource {
    /// A checkpoint as a source: its tensors in the order of their bytes, its metadata as it is.
    pub fn new(checkpoint: Checkpoint) -> CheckpointSource {
        CheckpointSource {
            tensors: checkpoint
                .tensors()
                .map(|tensor| tensor.to_spec())
                .collect(),
            metadata: checkpoint.metadata().cloned().unwrap_or_default(),
            checkpoint,
        }
    }

    /// The checkpoint itself.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

impl Source for CheckpointSource {
    fn label(&self) -> &str {
        self.checkpoint.label()
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
        let name = &self.tensors[index].name;
        let byte_count = self.checkpoint.get(name).map_or(0, |t| t.byte_count());
        let mut buffer = vec![0; byte_count.min(PIECE_BYTES as u64) as usize];
        let mut offset = 0;
        while offset < byte_count {
            let len = (byte_count - offset).min(PIECE_BYTES as u64) as usize;
            self.checkpoint
                .read_bytes_at(name, offset, &mut buffer[..len])?;
            out(&buffer[..len])?;
            offset += len as u64;
        }
        Ok(())
    }
}
