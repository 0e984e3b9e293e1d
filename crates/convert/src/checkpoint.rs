//! Safetensors files as a source: one file, an index with its shards, or a buffer.

use safelight_store::Checkpoint;

use crate::error::ConvertError;
use crate::source::{Contents, PIECE_BYTES, Source};

/// The tensors of a [`Checkpoint`].
pub struct CheckpointSource {
    checkpoint: Checkpoint,
    contents: Contents,
}

impl CheckpointSource {
    /// A checkpoint as a source: its tensors in the order of their bytes, its metadata as it is.
    pub fn new(checkpoint: Checkpoint) -> CheckpointSource {
        let contents = Contents {
            label: checkpoint.label().to_owned(),
            tensors: checkpoint
                .tensors()
                .map(|tensor| tensor.to_spec())
                .collect(),
            metadata: checkpoint.metadata().cloned().unwrap_or_default(),
            notes: vec![],
        };
        CheckpointSource {
            checkpoint,
            contents,
        }
    }

    /// The checkpoint itself.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

impl Source for CheckpointSource {
    fn contents(&self) -> &Contents {
        &self.contents
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let name = &self.tensors()[index].name;
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
        // Whoever reads the last tensor knows of all.
        Ok(self.checkpoint.unchanged_around(name)?)
    }
}
