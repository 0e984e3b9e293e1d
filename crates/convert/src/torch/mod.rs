//! PyTorch's files: zip archives since 1.6, sequences of pickles before; and bare pickles with numpy arrays.

mod flatten;
mod legacy;
mod objects;
mod source;
mod strided;
mod zipped;

use std::path::Path;

pub(crate) use legacy::open_pickle;
pub(crate) use zipped::open_zip;

use crate::error::ConvertError;
use crate::open::OpenOptions;

/// What opening needs to know everywhere.
pub(crate) struct Context<'o> {
    /// The file's name in messages.
    pub(crate) label: String,
    pub(crate) options: &'o OpenOptions,
}

impl<'o> Context<'o> {
    pub(crate) fn new(path: &Path, options: &'o OpenOptions) -> Context<'o> {
        let label = path.to_string_lossy().into_owned();
        Context { label, options }
    }

    pub(crate) fn malformed(&self, at: &str, problem: impl Into<String>) -> ConvertError {
        ConvertError::malformed(&self.label, "PyTorch", at, problem)
    }

    pub(crate) fn io(&self, error: std::io::Error) -> ConvertError {
        ConvertError::Io {
            doing: "read",
            file: self.label.clone(),
            error,
        }
    }

    pub(crate) fn limit(
        &self,
        at: &str,
        what: &'static str,
        value: u64,
        limit: u64,
    ) -> ConvertError {
        ConvertError::Limit {
            file: self.label.clone(),
            at: at.to_owned(),
            what,
            value,
            limit,
        }
    }
}
