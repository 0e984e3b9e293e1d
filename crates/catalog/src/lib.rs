//! What lies in a models folder: names, families, parts, hashes, and what is wrong with what can't be used.
//!
//! [`Catalog::scan`] looks into folders laid out as A1111's or ComfyUI's are, at any depth, and reads headers only.
//! [`Catalog::resolve`] finds the checkpoint that a name, a prefix, a hash or a path means. A model of our own is
//! embedded ([`demo`]), so there is always one. Loading weights and drawing is `diffusion`'s; a broken file is an
//! [`Entry`] with a problem here, never an error.
#![forbid(unsafe_code)]

mod demo;
mod describe;
mod hash;
mod resolve;
mod roots;
mod scan;
mod tiny;

pub use demo::{DEMO_NAME, demo, demo_bytes};
pub use describe::{Defaults, Entry, Layout};
pub use hash::{HashCache, short};
pub use resolve::ResolveError;
pub use roots::{Roots, cache_folder};
pub use safelight_store::sha256_hex;
pub use scan::Catalog;
pub use tiny::tiny_decoder;
