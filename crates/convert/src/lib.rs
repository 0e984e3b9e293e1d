//! Tensors from other formats, read as data: nothing a file says is ever executed.
//!
//! [`open`] looks at a file's content (never at its name alone) and gives a [`Source`]: named tensors that can be
//! read in pieces. [`write_safetensors`] writes a source as one safetensors file, in bounded memory. Between
//! the two stand adapters, which are sources over sources.
//!
//! ```
//! use safelight_convert::{Limits, WriteOptions, open, write_safetensors};
//! use safelight_format::{Dtype, TensorView};
//! use std::ops::ControlFlow;
//!
//! # let folder = std::env::temp_dir().join(format!("safelight-convert-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! # let (from, to) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
//! # let tensor = TensorView { name: "bias", dtype: Dtype::F32, shape: &[1], bytes: &[0; 4] };
//! # safelight_store::save(&from, &[tensor], None, &Default::default())?;
//! let source = open(&from, &Limits::default())?;
//! assert_eq!(source.tensors()[0].name, "bias");
//! let report = write_safetensors(&*source, &to, &WriteOptions::default(), &mut |_, _| ControlFlow::Continue(()))?;
//! assert_eq!(report.tensor_count, 1);
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod adapt;
mod blocks;
mod bytes;
mod checkpoint;
mod diff;
mod error;
mod flax;
mod folders;
mod gguf;
mod hdf5;
mod input;
pub mod layout;
mod npy;
mod npz;
mod numbers;
mod onnx;
mod open;
mod pickle;
pub mod scan;
mod sharded;
mod sink;
mod source;
mod stats;
#[cfg(test)]
mod testing;
mod torch;
mod write;
mod zip;
mod zip_write;

pub use adapt::{
    Arranged, Cast, CastOptions, CastReport, Keep, Merge, MergeOptions, Method, Missing,
    PruneOptions, join, prune, rename, restore_shared,
};
pub use checkpoint::CheckpointSource;
pub use diff::{Diff, MetadataDiff, NumberDiff, OpaqueDiff, TensorDiff, Tolerance, diff};
pub use error::ConvertError;
pub use flax::FlaxSource;
pub use gguf::{
    GgmlType, GgufOptions, GgufReading, GgufSource, GgufWeights, Quantized, write_gguf,
};
pub use hdf5::Hdf5Source;
pub use npy::npy_header;
pub use npz::{NpzOptions, NpzSource, write_npz};
pub use onnx::OnnxSource;
pub use open::{OpenOptions, SharedTensors, UnknownObjects, open, open_reader, open_with};
pub use sharded::{ShardedReport, write_sharded};
pub use source::{
    Contents, LimitName, Limits, Note, OpaqueTensor, PIECE_BYTES, Source, refuse_opaque,
};
pub use stats::{Histogram, Numbers, TensorStats, stats, tensor_bars, tensor_stats};
pub use torch::open_torch;
pub use write::{Report, WriteOptions, write_safetensors, write_safetensors_to};
