//! A small tensor and the coarse operations of a diffusion model.
//!
//! Shapes are checked here, once, with messages that name both sides; the kernels below only loop. The
//! operations in [`ops`] are coarse on purpose (a convolution carries its bias, its time embedding and its
//! residual), so that another device can offer the same list. This room knows nothing of models.
//!
//! ```
//! use safelight_tensor::{Epilogue, Linear, Tensor, ops};
//!
//! let x = Tensor::from_slice(&[1, 2, 2], &[1., 2., 3., 4.]);
//! let layer = Linear::new(&[1., 1., 1., -1.], 2, 2, Some(&[0.5, 0.]));
//! let y = ops::linear(&x, &layer, Epilogue { residual: Some(&x), ..Epilogue::default() });
//! assert_eq!(y.data(), [1. + 3.5, 2. - 1., 3. + 7.5, 4. - 1.]);
//! ```
#![forbid(unsafe_code)]

mod layers;
pub mod ops;
pub mod pool;
pub mod profile;
mod tensor;

pub use layers::{Conv2d, Fetch, Geglu, Linear, Norm};
pub use ops::Epilogue;
pub use safelight_kernels::{
    Activation, InMemory, Padding, Piece, Precision, Source, Zeros, halves_to_floats,
};
pub use tensor::{RANK_MAX, Tensor};
