//! A small tensor and the coarse operations of a diffusion model.
#![forbid(unsafe_code)]
