//! PyTorch's files: zip archives since 1.6, sequences of pickles before; and bare pickles with numpy arrays.

mod flatten;
mod legacy;
mod nested;
mod objects;
mod sniff;
mod source;
mod strided;
mod zipped;

use std::path::Path;

pub(crate) use legacy::{is_magic, open_pickle, storages_end};
pub(crate) use sniff::is_pickle;
pub(crate) use source::decode_latin1;
pub(crate) use zipped::open_zip;

use safelight_store::ReadAt;

use crate::bytes::read_up_to;
use crate::error::ConvertError;
use crate::open::OpenOptions;
use crate::source::{Bound, Source};

/// Opens a PyTorch file or a pickle of numpy arrays that is read through `reader`; `label` stands for it in messages.
///
/// [`crate::open_with`] does so with files.
///
/// # Errors
/// What is wrong with the archive, a pickle or a tensor; a class that is not on the list is refused by name.
pub fn open_torch(
    label: &str,
    reader: Box<dyn ReadAt>,
    options: &OpenOptions,
) -> Result<Box<dyn Source>, ConvertError> {
    let context = Context {
        label: label.to_owned(),
        options,
    };
    let mut start = [0; 4];
    let read = read_up_to(&*reader, &mut start, 0);
    read.map_err(|error| context.io(error))?;
    if start.starts_with(b"PK") {
        return open_zip(&context, reader);
    }
    open_pickle(&context, reader)
}

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
        bound: impl Into<Bound>,
    ) -> ConvertError {
        ConvertError::limit(&self.label, at, what, value, bound)
    }
}
