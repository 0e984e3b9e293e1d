//! Safetensors files as a source: one file, an index with its shards, or a buffer.

use safelight_store::Checkpoint;

use crate::error::ConvertError;
use crate::source::{Contents, Note, OpaqueTensor, PIECE_BYTES, Source};

/// The tensors of a [`Checkpoint`].
pub struct CheckpointSource {
    checkpoint: Checkpoint,
    contents: Contents,
}

impl CheckpointSource {
    /// A checkpoint as a source: its tensors in the order of their bytes, its metadata as it is. Those of unknown dtypes are
    /// there if they were asked for when it was opened.
    pub fn new(checkpoint: Checkpoint) -> CheckpointSource {
        let opaque = checkpoint.opaque_tensors().map(|place| OpaqueTensor {
            name: place.tensor.name.to_owned(),
            dtype: place.tensor.dtype.to_owned(),
            shape: place.tensor.shape.to_vec(),
            byte_count: place.tensor.byte_count(),
        });
        let disagreements = checkpoint.disagreements().into_iter();
        let left_out = disagreements.map(|problem| {
            let what = format!("{problem}; what the index does not name is left out");
            Note::new("", what)
        });
        let contents = Contents {
            label: checkpoint.label().to_owned(),
            opaque: opaque.collect(),
            tensors: checkpoint
                .tensors()
                .map(|tensor| tensor.to_spec())
                .collect(),
            metadata: checkpoint.metadata().cloned().unwrap_or_default(),
            notes: left_out.collect(),
            ..Contents::default()
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
        let (name, byte_count) = self.contents.name_and_bytes(index);
        let byte_count = byte_count.unwrap_or(0); // the header's check has made it
        let is_known = index < self.tensors().len();
        let mut buffer = vec![0; byte_count.min(PIECE_BYTES as u64) as usize];
        let mut offset = 0;
        while offset < byte_count {
            let len = (byte_count - offset).min(PIECE_BYTES as u64) as usize;
            let piece = &mut buffer[..len];
            match is_known {
                true => self.checkpoint.read_bytes_at(name, offset, piece)?,
                false => self.checkpoint.read_opaque_at(name, offset, piece)?,
            }
            out(piece)?;
            offset += len as u64;
        }
        // Whoever reads the last tensor knows of all.
        Ok(self.checkpoint.unchanged_around(name)?)
    }
}
