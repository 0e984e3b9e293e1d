//! Stable Diffusion: weights and a request in, pictures out.
#![forbid(unsafe_code)]

pub mod nn;

pub mod text;

pub mod unet;

pub mod vae;

pub mod load;

pub mod schedule;

pub mod noise;

pub mod sampler;

pub mod tokenizer;

pub mod infotext;

pub mod prompt;

pub mod pipeline;
