//! A file of tensors of any kind that is read here: safetensors, or what `convert` would convert, by path or URL.

use std::io;
use std::path::Path;

use safelight_convert::{ConvertError, OpenOptions as ConvertOptions, Source};
use safelight_format::{HeaderPlan, Metadata, PlanOptions};
use safelight_store::location::Location;
use safelight_store::{Checkpoint, OpenOptions, ReadAt};
use serde::Serialize;

use crate::error::Failure;
use crate::files;

/// A file of tensors.
pub(crate) enum Opened {
    /// Safetensors.
    Ours(Box<Checkpoint>),
    /// Of another kind, as it would be converted; and why it is no safetensors file.
    Foreign(Box<dyn Source>, Failure),
}

/// Something that would be left out or changed.
#[derive(Serialize)]
pub(crate) struct Note<'a> {
    at: &'a str,
    what: &'a str,
}

impl Opened {
    /// Opens what is no safetensors file as `convert` would; what neither reads is refused in the words for it.
    pub(crate) fn open(path: &Path, unknown_dtypes: bool) -> Result<Opened, Failure> {
        let failure = match files::open_with(path, unknown_dtypes) {
            Ok(checkpoint) => return Ok(Opened::Ours(Box::new(checkpoint))),
            Err(failure) => failure,
        };
        let may_be_foreign = match Location::of(path) {
            Location::Path(path) => path.is_file(),
            Location::Url(_) => true,
        };
        if !may_be_foreign || !matches!(failure, Failure::Model(_)) {
            return Err(failure);
        }
        let options = ConvertOptions {
            limits: files::all_limits(),
            skip_unsupported: true,
            ..ConvertOptions::default()
        };
        match safelight_convert::open_with(path, &options) {
            Ok(source) => Ok(Opened::Foreign(source, failure)),
            Err(ConvertError::Store(_) | ConvertError::UnknownKind { .. }) => Err(failure),
            Err(error @ ConvertError::RefusedGlobal { .. }) => Err(error.into()),
            Err(error) => Err(match Failure::from(error) {
                // What it claims to be, and why it is not.
                Failure::Model(why) => {
                    let label = format!("{}: ", files::name(path));
                    let why = why.strip_prefix(&label).unwrap_or(&why);
                    Failure::Model(format!("{failure}; but it can't be read as that: {why}"))
                }
                other => other,
            }),
        }
    }

    /// What is said of the file besides its tensors.
    pub(crate) fn metadata(&self) -> Option<&Metadata> {
        match self {
            Opened::Ours(checkpoint) => checkpoint.metadata(),
            Opened::Foreign(source, _) => Some(source.metadata()),
        }
    }

    /// What would be left out or changed.
    pub(crate) fn notes(&self) -> Option<Vec<Note<'_>>> {
        let Opened::Foreign(source, _) = self else {
            return None;
        };
        let notes = source.notes().iter().map(|note| Note {
            at: &note.at,
            what: &note.what,
        });
        Some(notes.collect())
    }
}

/// The header that a foreign file's tensors would have as safetensors, for what is told from names and shapes alone.
pub(crate) fn header_of(source: &dyn Source) -> Result<Checkpoint, Failure> {
    let plan = HeaderPlan::from_specs(
        source.tensors(),
        Some(source.metadata()),
        &PlanOptions::default(),
    );
    let plan = plan.map_err(|error| Failure::Model(format!("{}: {error}", source.label())))?;
    let header = HeaderOnly {
        prefix: plan.prefix().to_vec(),
        byte_count: plan.file_bytes(),
    };
    let options = OpenOptions {
        limits: files::limits(),
        ..OpenOptions::default()
    };
    Ok(Checkpoint::from_reader(
        source.label(),
        Box::new(header),
        &options,
    )?)
}

/// A header whose tensors are nowhere: zeros follow it, which a reader of headers takes along and does not look at.
struct HeaderOnly {
    prefix: Vec<u8>,
    byte_count: u64,
}

impl ReadAt for HeaderOnly {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.byte_count.saturating_sub(offset);
        let count = left.min(buffer.len() as u64) as usize;
        let header = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.prefix.get(offset..))
            .unwrap_or_default();
        for (position, byte) in buffer[..count].iter_mut().enumerate() {
            *byte = header.get(position).copied().unwrap_or(0);
        }
        Ok(count)
    }

    fn byte_count(&self) -> io::Result<u64> {
        Ok(self.byte_count)
    }
}
