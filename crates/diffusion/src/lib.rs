//! Stable Diffusion: weights and a request in, pictures out.
//!
//! The modules stand in walking order: precisions, building blocks, the text's way into numbers, the three networks, the noise and how it
//! is taken away, the prompt's grammar, what a picture says of itself, loading, the four jobs, and how much two results are alike.
//!
//! ```no_run
//! use safelight_diffusion::{load::{LoadOptions, Model}, pipeline::Request};
//! use std::{ops::ControlFlow, path::Path};
//!
//! let model = Model::load(Path::new("models/some-model.safetensors"), &LoadOptions::default())?;
//! let request = Request { prompt: "a lighthouse in a storm".into(), steps: 20, seed: 7, ..Request::default() };
//! let pictures = model.generate(&request, |_progress| ControlFlow::Continue(()))?;
//! let rgb: &[u8] = pictures[0].image.bytes();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod precision;

pub mod nn;

pub mod tokenizer;

pub mod text;

pub mod unet;

pub mod vae;

pub mod tiny;

pub mod schedule;

pub mod noise;

pub mod sampler;

pub mod prompt;

pub mod infotext;

pub mod load;

pub mod pipeline;

pub mod likeness;
