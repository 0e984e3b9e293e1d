//! CPU kernels: slices in, slices out. The scalar version of each is its specification.
//!
//! Layouts are `[B, H, W, C]` and, the same memory, `[B, T, C]`; weights are packed once at load.
//! Work is split by size, never by thread count, so a result has the same bits on 1 or 64 threads.
//! Shapes are the `tensor` crate's business: here a wrong length is a broken promise and asserted.
//!
//! Read [`mod@level`] first (which instructions this process uses), then [`gemm`], then [`conv`];
//! [`precision`] says what else than `f32` their weights can be.

pub mod activation;
mod arch;
pub mod attention;
pub mod conv;
pub mod elementwise;
pub mod epilogue;
pub mod gemm;
mod halves;
pub mod level;
mod math;
pub mod norm;
mod packing;
pub mod precision;
pub mod resample;
mod scratch;
mod source;
#[doc(hidden)]
pub mod testing;
mod winograd;
mod words;

pub use arch::Aligned;
pub use conv::{Algorithm, ConvShape, Extent, PackedConv, Padding, conv2d, conv2d_upsampled};
pub use epilogue::{Activation, Epilogue};
pub use gemm::{PackedGeglu, PackedLinear, linear, linear_geglu};
pub use halves::halves_to_floats;
pub use level::{Level, LevelError, detect, level};
pub use precision::Precision;
pub use scratch::trim_scratch;
pub use source::{InMemory, Piece, Source, Zeros};
