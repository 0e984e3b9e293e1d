//! The safetensors format: bytes in, headers and views out; headers and bytes back. Never does I/O.
//!
//! A safetensors file is a `u64` length N (little-endian), N bytes of JSON, then the tensors' bytes:
//!
//! ```text
//! 0        8            8+N                                    file's end
//! | u64 N  | JSON       | tensor bytes, no gap and no overlap   |
//! ```
//!
//! [`Header::parse`] checks and indexes the first two parts, [`HeaderPlan::new`] writes them, and
//! [`decode_f32`] turns one tensor's bytes into numbers. [`sniff`] says what a file that is *not*
//! safetensors really is, and [`lint`] lists all that is wrong or odd about one that is. Opening, reading and replacing files is the next room, `safelight-store`.
//!
//! ```
//! use safelight_format::{Dtype, Header, HeaderPlan, Limits, Order, Strictness, TensorView};
//!
//! let bytes = 1.5f32.to_le_bytes();
//! let tensors = [TensorView { name: "scale", dtype: Dtype::F32, shape: &[1], bytes: &bytes }];
//! let plan = HeaderPlan::new(&tensors, None, Order::default())?;
//! let file = plan.to_bytes(&tensors);
//!
//! let header = Header::parse(&file, file.len() as u64, Strictness::Spec, &Limits::default())?;
//! let scale = header.get("scale").unwrap();
//! assert_eq!((scale.dtype, scale.shape), (Dtype::F32, &[1][..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod decode;
mod dtype;
mod encode;
mod error;
mod guess;
mod header;
mod index;
mod json;
mod lint;
mod show;
mod slice;
mod sniff;
mod spec;
mod table;
mod usual;
mod write;

pub use decode::{DecodeError, decode_c64, decode_f32, decode_f32_into, encode_f32};
pub use dtype::Dtype;
pub use encode::{CastReport, EncodeError, can_encode, encode, encode_f64_into, encode_into};
pub use error::{EntryField, FormatError, JsonKind};
pub use header::{
    Header, Limits, Metadata, OpaqueTensor, ParseOptions, Strictness, TensorInfo, Tensors,
    TensorsIter, header_bytes,
};
pub use lint::{Finding, LintOptions, LintReport, Rule, Severity, lint};
pub use show::{are, plural, shown};
pub use slice::{
    Batch, Batches, Index, IndexSyntaxError, Piece, ReadRange, SliceError, SliceOptions, SlicePlan,
    parse_index,
};
pub use sniff::{FileKind, sniff};
pub use spec::TensorSpec;
pub use write::{Alignment, HeaderPlan, OpaqueSpec, Order, PlanOptions, TensorView, WriteError};
