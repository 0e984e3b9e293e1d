//! The one place with a memory map.

use std::path::Path;

use memmap2::Mmap;

use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::error::StoreError;
use crate::source::Source;

/// Opens a checkpoint with all its files mapped, so that [`Checkpoint::view`] gives tensors
/// without copying them. Bytes are fetched as they are first looked at, a few pages at a time;
/// [`Checkpoint::prefault`] fetches all of them at once, which is many times as fast.
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
        let cannot_map = |error| StoreError::Io {
            doing: "map",
            file: source.label.clone(),
            error,
        };
        let kept = handle.try_clone().map_err(cannot_map)?;
        // SAFETY: nobody writes to or truncates the file while the map lives; our caller promises.
        let mapped = unsafe { Mmap::map(handle) };
        let map = mapped.map_err(cannot_map)?;
        let now_bytes = map.len() as u64;
        if now_bytes != source.file_bytes {
            let (file, opened_bytes) = (source.label.clone(), source.file_bytes);
            return Err(StoreError::Shrank {
                file,
                opened_bytes,
                now_bytes,
            });
        }
        source.source = Source::Mapped(map, kept);
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

    /// How much of a mapped file this process has in its tables, in bytes.
    #[cfg(target_os = "linux")]
    fn resident_bytes(path: &Path) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let name = path.to_string_lossy().into_owned();
        let mut lines = maps.lines().skip_while(|line| !line.ends_with(&name));
        let line = lines.find(|line| line.starts_with("Rss:")).unwrap();
        let kilobytes = line.split_whitespace().nth(1).unwrap();
        kilobytes.parse::<u64>().unwrap() * 1024
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn every_page_is_there_after_prefault() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let bytes: Vec<u8> = (0..30_000_000u32).map(|at| at as u8).collect();
        let tensor = TensorView {
            name: "a",
            dtype: Dtype::U8,
            shape: &[bytes.len() as u64],
            bytes: &bytes,
        };
        let file_bytes = crate::save(&path, &[tensor], None, &SaveOptions::default()).unwrap();
        // SAFETY: nobody else knows this file, and it is shortened below only after its last look.
        let mapped = unsafe { map(&path, &OpenOptions::default()) }.unwrap();
        assert!(resident_bytes(&path) < file_bytes / 2);
        mapped.prefault().unwrap();
        assert!(resident_bytes(&path) >= file_bytes);
        assert!(mapped.view("a").unwrap().bytes == bytes);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(9000).unwrap();
        let error = mapped.prefault().unwrap_err();
        assert!(
            matches!(error, StoreError::Io { .. } | StoreError::Shrank { .. }),
            "{error}"
        );
    }

    /// `tools/bench/format_peers.py` runs this: opens the file that a variable names, mapped, makes every page present and, in
    /// the second figure, looks at each; prints the seconds. It stands here because a map is unsafe code, which has one address.
    #[test]
    #[ignore = "a measurement"]
    fn speed_of_a_map() {
        let Some(path) = std::env::var_os("SAFELIGHT_BENCH_MAP") else {
            return eprintln!("skipped: SAFELIGHT_BENCH_MAP names no file");
        };
        let start = std::time::Instant::now();
        // SAFETY: who measures does not write to the file meanwhile.
        let mapped = unsafe { map(Path::new(&path), &OpenOptions::default()) }.unwrap();
        mapped.prefault().unwrap();
        let present = start.elapsed().as_secs_f64();
        let pages = |name| mapped.view(name).unwrap().bytes.iter().step_by(4096);
        let sum: u64 = mapped
            .names()
            .flat_map(pages)
            .map(|&byte| u64::from(byte))
            .sum();
        println!(
            "map {present:.6} {:.6} {sum}",
            start.elapsed().as_secs_f64()
        );
    }
}
