//! Safetensors files: opened, read tensor by tensor or mapped, sharded, replaced atomically.
//!
//! What a header means and which bytes are right is `safelight-format`'s business; this crate is
//! the only one that opens model files. [`Checkpoint`] is one file, or the shards of an index, or
//! a buffer. By default tensors are *read* (positioned reads, no map), so that a file that shrinks
//! or a network drive that fails gives an error and not a signal; [`map`] is there for those who
//! can keep its promise.
//!
//! ```
//! use safelight_format::{Dtype, TensorView, encode_f32};
//! use safelight_store::{Checkpoint, SaveOptions, save};
//!
//! let folder = std::env::temp_dir().join(format!("safelight-doc-{}", std::process::id()));
//! std::fs::create_dir_all(&folder)?;
//! let path = folder.join("tiny.safetensors");
//!
//! let bytes = encode_f32(&[0.5, -1.0]);
//! let bias = TensorView { name: "bias", dtype: Dtype::F32, shape: &[2], bytes: &bytes };
//! save(&path, &[bias], None, &SaveOptions::default())?;
//!
//! let checkpoint = Checkpoint::open(&path)?;
//! assert_eq!(checkpoint.read_f32("bias")?, [0.5, -1.0]);
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod around;
mod atomic;
mod backend;
mod bulk;
mod checkpoint;
#[cfg(test)]
mod crashes;
pub mod edit;
mod error;
mod hash;
mod index_file;
mod lint;
mod lint_index;
mod load;
pub mod location;
mod map;
mod meant;
mod pace;
#[cfg(feature = "remote")]
pub mod remote;
pub mod repair;
mod save;
mod sharded;
mod shards;
mod slices;
mod some;
mod source;
mod sshs;
mod stream;
mod strided;
mod sys;
#[cfg(test)]
mod testing;
mod together;
mod verify;
mod writer;

pub use atomic::{replace_file, replace_file_seek};
pub use backend::Backend;
pub use bulk::PageCache;
pub use checkpoint::{Checkpoint, OpaquePlace, OpenOptions, Place};
pub use error::StoreError;
pub use hash::{HashOptions, Hashes, hash, hash_reader, recorded_hashes, sha256_hex};
pub use lint::lint;
pub use lint_index::lint_targets;
pub use load::LoadOptions;
pub use map::map;
pub use meant::{Meant, matching, matching_all, model_files};
pub use save::{SaveOptions, save, save_to};
pub use sharded::{ShardSet, ShardedSave, listed_shards, save_sharded};
pub use slices::{EachPiece, SliceRead};
pub use some::SomeTensors;
pub use source::{Bytes, ReadAt, WatchedFile};
pub use stream::StreamWriter;
pub use strided::StridedView;
pub use together::{
    check_found, check_listed, lint_together, list_label, listed_sets, problems_together,
};
pub use verify::{FileVerdict, IndexVerdict, Unreadable, Verdict, verify};
pub use writer::{TensorWriter, Writer};
