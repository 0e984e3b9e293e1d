//! The one place with a memory map.

use std::path::Path;

use memmap2::Mmap;

use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::error::StoreError;
use crate::source::Source;

/// Opens a checkpoint with all its files mapped, so that [`Checkpoint::view`] gives tensors
/// without copying them.
///
/// # Safety
/// No process may write to or truncate the files while the checkpoint lives; replacing them by
/// renaming is fine, [`crate::save`] does that. Cannot promise it? [`Checkpoint::open`] copies,
/// and is always sound.
///
/// # Errors
/// As [`Checkpoint::open_with`].
pub unsafe fn map(path: &Path, options: &OpenOptions) -> Result<Checkpoint, StoreError> {
    let mut checkpoint = Checkpoint::open_with(path, options)?;
    for file in checkpoint.files_mut() {
        let source = &mut file.source;
        let Source::File(handle) = &source.source else {
            continue;
        };
        // SAFETY: nobody writes to or truncates the file while the map lives; our caller promises.
        let mapped = unsafe { Mmap::map(handle) };
        let map = mapped.map_err(|error| StoreError::Io {
            doing: "map",
            file: source.label.clone(),
            error,
        })?;
        let now_bytes = map.len() as u64;
        if now_bytes != source.file_bytes {
            let (file, opened_bytes) = (source.label.clone(), source.file_bytes);
            return Err(StoreError::Shrank {
                file,
                opened_bytes,
                now_bytes,
            });
        }
        source.source = Source::Mapped(map);
    }
    Ok(checkpoint)
}
