//! Sources over sources: tensors chosen, renamed, cast or merged on their way from a reader to a writer.

pub(crate) mod arrange;
mod cast;
pub(crate) mod pieces;
pub(crate) mod prune;

pub use arrange::Arranged;
pub use cast::{Cast, CastOptions, CastReport};
pub use prune::{Keep, PruneOptions, prune, rename};
