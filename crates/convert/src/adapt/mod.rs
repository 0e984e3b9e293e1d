//! Sources over sources: tensors chosen, renamed, cast or merged on their way from a reader to a writer.

pub(crate) mod arrange;
mod cast;
pub(crate) mod join;
mod merge;
mod mix;
pub(crate) mod pieces;
mod plan;
pub(crate) mod prune;
mod real;
mod shared;

pub use arrange::Arranged;
pub use cast::{Cast, CastOptions, CastReport};
pub use join::join;
pub use merge::{Merge, MergeOptions, Method, Missing};
pub use prune::{Keep, PruneOptions, prune, rename};
pub use shared::restore_shared;
