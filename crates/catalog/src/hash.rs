//! SHA-256 of model files, remembered: a hash of 4 GB takes seconds, a listing must not.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use safelight_store::{HashOptions, StoreError, hash};
use serde_json::{Value, json};

/// Digits of the short hash by which A1111 and Civitai know a model.
const SHORT_DIGITS: usize = 10;

/// The first ten digits of a SHA-256, which is what A1111 shows and writes into pictures.
///
/// ```
/// assert_eq!(safelight_catalog::short("6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa"), "6ce0161689");
/// ```
pub fn short(sha256: &str) -> &str {
    sha256.get(..SHORT_DIGITS).unwrap_or(sha256)
}

/// Hashes by path, good as long as a file's size and time of change stay the same.
///
/// Kept in a small JSON file. One that is damaged or can't be written costs time, nothing else.
pub struct HashCache {
    path: Option<PathBuf>,
    known: BTreeMap<String, Known>,
}

#[derive(PartialEq)]
struct Known {
    bytes: u64,
    modified_ns: u64,
    sha256: String,
}

impl HashCache {
    /// The cache in `folder`, or one that forgets (`None`).
    pub fn open(folder: Option<&Path>) -> HashCache {
        let path = folder.map(|folder| folder.join("hashes.json"));
        let text = path.as_ref().and_then(|path| std::fs::read(path).ok());
        let json: Value = text
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let read = |entry: &Value| {
            Some(Known {
                bytes: entry["bytes"].as_u64()?,
                modified_ns: entry["modified_ns"].as_u64()?,
                sha256: entry["sha256"]
                    .as_str()
                    .filter(|hash| hash.len() == 64 && hash.is_ascii())?
                    .to_owned(),
            })
        };
        let entries = json["files"].as_object().into_iter().flatten();
        let known = entries
            .filter_map(|(path, entry)| Some((path.clone(), read(entry)?)))
            .collect();
        HashCache { path, known }
    }

    /// The hash of a file, if it is known without reading it.
    pub fn get(&self, path: &Path) -> Option<&str> {
        let (bytes, modified_ns) = stamp(path).ok()?;
        let known = self.known.get(&key(path))?;
        (known.bytes == bytes && known.modified_ns == modified_ns).then_some(known.sha256.as_str())
    }

    /// The hash of a file, read whole if need be, and remembered. `progress` gets the bytes that are read and all bytes;
    /// [`ControlFlow::Break`] ends it.
    ///
    /// # Errors
    /// What keeps the file from being read, [`StoreError::Stopped`].
    pub fn get_or_compute(
        &mut self,
        path: &Path,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<String, StoreError> {
        if let Some(known) = self.get(path) {
            return Ok(known.to_owned());
        }
        let (bytes, modified_ns) = stamp(path).map_err(|error| StoreError::Io {
            doing: "open",
            file: path.display().to_string(),
            error,
        })?;
        let only = HashOptions {
            sha256: true,
            ..HashOptions::NONE
        };
        let hashes = hash(path, &only, progress)?;
        let sha256 = hashes.sha256.unwrap_or_default();
        self.known.insert(
            key(path),
            Known {
                bytes,
                modified_ns,
                sha256: sha256.clone(),
            },
        );
        self.write();
        Ok(sha256)
    }

    fn write(&self) {
        let Some(path) = &self.path else { return };
        let entry = |known: &Known| json!({ "bytes": known.bytes, "modified_ns": known.modified_ns, "sha256": known.sha256 });
        let files: BTreeMap<_, _> = self
            .known
            .iter()
            .map(|(path, known)| (path, entry(known)))
            .collect();
        let text = json!({ "version": 1, "files": files }).to_string();
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        // Not being able to remember is no reason to fail.
        let written = std::fs::create_dir_all(path.parent().unwrap_or(path))
            .and_then(|()| std::fs::write(&temporary, text))
            .and_then(|()| std::fs::rename(&temporary, path));
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
    }
}

fn key(path: &Path) -> String {
    std::path::absolute(path)
        .unwrap_or_else(|_| path.to_owned())
        .to_string_lossy()
        .into_owned()
}

fn stamp(path: &Path) -> std::io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(path)?;
    let since_1970 = metadata
        .modified()?
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Ok((
        metadata.len(),
        u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go_on(_: u64, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
    use safelight_store::sha256_hex;

    #[test]
    fn hashes_are_sha256() {
        assert_eq!(short(&sha256_hex(b"")), "e3b0c44298");
        assert_eq!(short(&sha256_hex(b"abc")), "ba7816bf8f");
    }

    #[test]
    fn a_changed_file_is_read_again_and_an_unchanged_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (file, cache) = (folder.path().join("a"), folder.path().join("deep/cache"));
        std::fs::write(&file, "abc").unwrap();
        let first = HashCache::open(Some(&cache))
            .get_or_compute(&file, &mut go_on)
            .unwrap();
        assert_eq!(short(&first), "ba7816bf8f");
        assert_eq!(
            HashCache::open(Some(&cache)).get(&file),
            Some(first.as_str())
        );

        std::fs::write(&file, "abcd").unwrap();
        let mut reopened = HashCache::open(Some(&cache));
        assert_eq!(reopened.get(&file), None);
        assert_eq!(
            reopened.get_or_compute(&file, &mut go_on).unwrap(),
            sha256_hex(b"abcd")
        );
    }

    #[test]
    fn a_damaged_or_missing_cache_is_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        std::fs::write(&file, "abc").unwrap();
        for text in [
            "",
            "{",
            "[]",
            "{\"files\":{\"x\":{\"bytes\":-1}}}",
            "{\"files\":3}",
        ] {
            std::fs::write(folder.path().join("hashes.json"), text).unwrap();
            assert_eq!(HashCache::open(Some(folder.path())).get(&file), None);
        }
        assert_eq!(
            HashCache::open(None)
                .get_or_compute(&file, &mut go_on)
                .unwrap(),
            sha256_hex(b"abc")
        );
    }
}
