//! Where a file is: a path on this machine, or a URL.
//!
//! Commands and libraries take what people type, and hand it to [`open`]. What a URL's bytes are and how they come here
//! is the business of `remote`, which a build may leave out (feature `remote`).

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::error::StoreError;
use crate::hash::{HashOptions, Hashes};
use crate::source::{ReadAt, open_regular};
#[cfg(feature = "remote")]
use crate::verify::IndexVerdict;
use crate::verify::Verdict;

/// The schemes of URLs that are read here.
pub const SCHEMES: [&str; 9] = [
    "https", "http", "s3", "s3a", "gs", "az", "abfs", "abfss", "hf",
];

/// A path or a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file or folder of this machine.
    Path(PathBuf),
    /// Something behind a URL, as it was given: it may contain secrets. [`Location::shown`] does not.
    Url(String),
}

impl Location {
    /// What someone means: text with `scheme://` is a URL (`file://` a path), all else is a path.
    ///
    /// ```
    /// use safelight_store::location::Location;
    /// assert!(matches!(Location::of("s3://bucket/model.safetensors"), Location::Url(_)));
    /// assert!(matches!(Location::of("model.safetensors"), Location::Path(_)));
    /// ```
    pub fn of(text: impl AsRef<OsStr>) -> Location {
        let text = text.as_ref();
        match text.to_str() {
            Some(url) => match scheme(url) {
                Some("file") => Location::Path(PathBuf::from(&url["file://".len()..])),
                Some(_) => Location::Url(url.to_owned()),
                None => Location::Path(PathBuf::from(text)),
            },
            None => Location::Path(PathBuf::from(text)),
        }
    }

    /// The path, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Location::Path(path) => Some(path),
            Location::Url(_) => None,
        }
    }

    /// As text for messages: without a URL's user, password and query.
    pub fn shown(&self) -> String {
        match self {
            Location::Path(path) => path.to_string_lossy().into_owned(),
            Location::Url(url) => redacted(url),
        }
    }
}

/// Opens a safetensors file or the shards of an index, by path or by URL.
///
/// # Errors
/// As [`Checkpoint::open`]; [`StoreError::BadLocation`] for URLs that are not understood or not supported by this build;
/// what goes wrong on the way is a [`StoreError::Io`] around a `remote::RemoteError`.
pub fn open(location: impl AsRef<OsStr>) -> Result<Checkpoint, StoreError> {
    open_with(location, &OpenOptions::default())
}

/// As [`open`], more strictly or with other limits.
///
/// # Errors
/// As [`open`].
pub fn open_with(
    location: impl AsRef<OsStr>,
    options: &OpenOptions,
) -> Result<Checkpoint, StoreError> {
    match Location::of(location) {
        Location::Path(path) => Checkpoint::open_with(&path, options),
        Location::Url(url) => open_url(&url, options),
    }
}

#[cfg(feature = "remote")]
fn open_url(url: &str, options: &OpenOptions) -> Result<Checkpoint, StoreError> {
    crate::remote::open(url, options, &crate::remote::RemoteOptions::from_env())
}

#[cfg(not(feature = "remote"))]
fn open_url(url: &str, _: &OpenOptions) -> Result<Checkpoint, StoreError> {
    Err(unsupported(url))
}

#[cfg(not(feature = "remote"))]
fn unsupported(url: &str) -> StoreError {
    StoreError::BadLocation {
        location: redacted(url),
        problem:
            "this build reads no URLs; build it with the feature `remote`, or download the file"
                .to_owned(),
    }
}

/// Opens any file for positioned reads, by path or by URL.
///
/// # Errors
/// As [`open`], but for the file's content.
pub fn open_reader(location: impl AsRef<OsStr>) -> Result<Box<dyn ReadAt>, StoreError> {
    match Location::of(location) {
        Location::Path(path) => Ok(Box::new(open_regular(&path)?)),
        #[cfg(feature = "remote")]
        Location::Url(url) => {
            let options = crate::remote::RemoteOptions::from_env();
            Ok(Box::new(crate::remote::open_file(&url, &options)?))
        }
        #[cfg(not(feature = "remote"))]
        Location::Url(url) => Err(unsupported(&url)),
    }
}

/// As [`crate::hash`], by path or by URL.
///
/// # Errors
/// As [`crate::hash`] and [`open`].
pub fn hash(
    location: impl AsRef<OsStr>,
    options: &HashOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Hashes, StoreError> {
    match Location::of(location) {
        Location::Path(path) => crate::hash(&path, options, progress),
        #[cfg(feature = "remote")]
        Location::Url(url) => {
            let source = crate::remote::source(&url)?;
            let header = match options.wants_header() {
                true => crate::verify::header(&source)?,
                false => None,
            };
            source.will_read(&[(0, source.file_bytes)]);
            crate::hash::hash_source(&source, header.as_ref(), options, progress)
        }
        #[cfg(not(feature = "remote"))]
        Location::Url(url) => Err(unsupported(&url)),
    }
}

/// As [`crate::verify`], by path or by URL of a file or an index.
///
/// # Errors
/// As [`crate::verify`] and [`open`]; and, of a URL, whatever keeps bytes from coming, also while they are read: a server
/// that fails, or an object that is replaced, says nothing about tensors.
pub fn verify(
    location: impl AsRef<OsStr>,
    options: &OpenOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Verdict, StoreError> {
    match Location::of(location) {
        Location::Path(path) => crate::verify(&path, options, progress),
        #[cfg(feature = "remote")]
        Location::Url(url) => match crate::remote::indexed(&url)? {
            None => {
                let source = [crate::remote::source(&url)?];
                crate::verify::verify_opened(&source, options, progress)
            }
            Some(indexed) => {
                let mut verdict =
                    crate::verify::verify_opened(&indexed.sources, options, progress)?;
                let index = indexed.shown.clone();
                let open = |options: &OpenOptions| indexed.checkpoint(options);
                verdict.index = Some(IndexVerdict::of(index, open, options));
                Ok(verdict)
            }
        },
        #[cfg(not(feature = "remote"))]
        Location::Url(url) => Err(unsupported(&url)),
    }
}

/// The scheme of a URL: what stands before `://`.
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let first = scheme.chars().next()?;
    let well_formed = first.is_ascii_alphabetic()
        && scheme
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    well_formed.then_some(scheme)
}

/// A URL without user, password, query and fragment: those may be secrets (signed URLs are).
pub(crate) fn redacted(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let (before, rest) = url.split_at(end);
    let hidden = if rest.starts_with('?') { "?…" } else { "" };
    let Some((scheme, place)) = before.split_once("://") else {
        return format!("{before}{hidden}");
    };
    let (host, path) = place.split_at(place.find('/').unwrap_or(place.len()));
    // `abfss://container@account…` is a place and no secret.
    let host = match host.rsplit_once('@') {
        Some((_, host)) if !scheme.starts_with("abfs") => host,
        _ => host,
    };
    format!("{scheme}://{host}{path}{hidden}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls_are_told_apart() {
        for url in ["https://h/a", "s3://b/k", "hf://o/r/f", "x+y://z"] {
            assert_eq!(Location::of(url), Location::Url(url.to_owned()));
        }
        for path in [
            "a", "./a", "/a/b", "C:\\a", "a:b", "://x", "1x://y", "a b://c",
        ] {
            assert_eq!(Location::of(path), Location::Path(PathBuf::from(path)));
        }
        let file = Location::of("file:///tmp/a");
        assert_eq!(file.path(), Some(Path::new("/tmp/a")));
    }

    #[test]
    fn secrets_are_not_shown() {
        for (url, shown) in [
            ("https://h/a.safetensors", "https://h/a.safetensors"),
            ("https://u:pw@h:8/a?sig=x#y", "https://h:8/a?…"),
            ("https://h/a#token", "https://h/a"),
            ("https://h?key=1", "https://h?…"),
            ("https://u:p@ss@h/a", "https://h/a"),
            ("abfss://c@account.dfs/a", "abfss://c@account.dfs/a"),
            ("s3://bucket/a@b", "s3://bucket/a@b"),
        ] {
            assert_eq!(redacted(url), shown);
            assert_eq!(Location::of(url).shown(), shown);
        }
    }

    #[test]
    #[cfg(not(feature = "remote"))]
    fn a_build_without_remote_says_so() {
        let error = open("https://u:pw@host/a?sig=secret")
            .unwrap_err()
            .to_string();
        assert!(error.contains("feature `remote`"), "{error}");
        assert!(
            !error.contains("secret") && !error.contains("pw"),
            "{error}"
        );
    }
}
