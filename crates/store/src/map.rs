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

#[cfg(test)]
mod tests {
    use safelight_format::{Dtype, TensorView};

    use super::*;
    use crate::{SaveOptions, save_sharded};

    #[test]
    fn mapped_files_give_views_and_reads() {
        let folder = std::env::temp_dir().join(format!("safelight-map-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let tensor = |name| TensorView {
            name,
            dtype: Dtype::F16,
            shape: &[2],
            bytes: &[0x00, 0x3c, 0x00, 0xc0],
        };
        let tensors = [tensor("a"), tensor("b")];
        for max_shard_bytes in [4, 100] {
            let saved = save_sharded(
                &folder,
                &tensors,
                None,
                max_shard_bytes,
                &SaveOptions::default(),
            )
            .unwrap();
            // SAFETY: the folder is this test's own; the next round renames new files into place.
            let mapped = unsafe { map(&saved.path, &OpenOptions::default()) }.unwrap();
            for tensor in tensors {
                assert_eq!(mapped.view(tensor.name).unwrap(), tensor);
                assert_eq!(mapped.read_bytes(tensor.name).unwrap(), tensor.bytes);
                assert_eq!(mapped.read_f32(tensor.name).unwrap(), [1.0, -2.0]);
            }
        }
        let short = folder.join("short.safetensors");
        std::fs::write(&short, b"").unwrap();
        // SAFETY: nobody else knows this file.
        let error = unsafe { map(&short, &OpenOptions::default()) }.unwrap_err();
        assert!(matches!(error, StoreError::Format { .. }), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
