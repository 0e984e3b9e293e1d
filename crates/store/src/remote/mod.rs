//! Files behind URLs: `https://`, `http://`, `s3://`, `gs://`, `az://`, `abfss://`, and `hf://OWNER/REPO[@REVISION]/FILE`.
//!
//! [`open`] gives a [`Checkpoint`] as a path does: the header costs one request, or two if it is long; tensors are read by
//! ranges, several at the same time, and nothing more is fetched than what is asked for (but for small gaps). Everything
//! blocks, and may be called from anywhere; threads and a runtime for it are inside, and end with the handle.
//!
//! **Same content.** The first answer's ETag is kept and demanded of all later ones (`If-Match`, and compared), so that
//! an object that is replaced while it is read gives an error and not a mixture. An answer that leaves the ETag out must
//! have the first answer's date and size, or it is refused ([`Problem::Unmarked`]). If the first answer has no ETag, the date
//! is demanded (`If-Unmodified-Since`, and compared) besides the size: that misses a replacement of the same size within a
//! second. If it has neither, only the size is compared, and nothing is promised.
//!
//! **Failure.** A request is made again (with pauses, or when the server says) if the server is busy or the connection
//! breaks; if it fails for good, so do all others of the file for some seconds, at once and with the same cause.
//!
//! **Credentials** are found as `object_store` finds them: `AWS_…`, `GOOGLE_…`, `AZURE_…`, `HF_TOKEN`, a signed URL's query.
//! They appear in no message and in no file name.
//!
//! **Cache.** Fetched pieces are kept on disk (`SAFELIGHT_CACHE`, or the user's cache folder), see [`CacheChoice`].
//!
//! How the work is split: `place` reads URLs, `object` makes requests and retries with `object_store` as their writer and
//! signer, `transport` is HTTP itself (`ureq`), `pool` has the threads, `plan` decides what to fetch, `file` hands it out and `cache`
//! keeps it.

mod cache;
mod error;
mod file;
mod object;
mod place;
mod plan;
mod pool;
mod transport;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use tokio::runtime::Runtime;

pub use error::{Problem, RemoteError};
pub use file::{RemoteFile, Traffic};

use crate::checkpoint::{Checkpoint, OpenOptions, ShardFile};
use crate::error::StoreError;
use crate::index_file::INDEX_BYTES_MAX;
use crate::shards::Index;
use crate::source::{FileSource, ReadAt, Source};
use cache::Cache;
use file::Reading;
use object::{First, Object, Pin};
use place::Place;
use pool::Pool;
use transport::Transport;

/// What is asked for first, if nothing is known: enough for most headers.
const FIRST_BYTES_MIN: u64 = 64 * 1024;

/// What is asked for first at most, if headers were longer than usual.
const FIRST_BYTES_MAX: u64 = 1024 * 1024;

/// How much is cached if nobody says otherwise.
const CACHE_BYTES: u64 = 10 * 1024 * 1024 * 1024;

/// How remote files are read. [`RemoteOptions::from_env`] is what commands use.
#[derive(Clone, PartialEq)]
pub struct RemoteOptions {
    /// How often a request is made, at most, if the server is busy or the connection breaks.
    pub attempts_max: u32,
    /// How long is waited for a connection, for an answer to begin, and for more of it.
    pub timeout: Duration,
    /// How many requests are made at the same time.
    pub parallel_requests: usize,
    /// Long ranges are asked for in parts of this many bytes. Times `parallel_requests`, it is the memory that is needed.
    pub part_bytes: u64,
    /// How much more than what is announced may be fetched in order to make fewer requests: 0.15 is 15 % more. Nothing
    /// by default: slices are drawn together before they are announced.
    pub over_read: f64,
    /// The largest file that is fetched in full, and held in memory, where a server has no ranges.
    pub whole_file_bytes_max: u64,
    /// What is kept on disk.
    pub cache: CacheChoice,
    /// Settings and credentials by the names they have in the environment, which they go before: `AWS_ENDPOINT_URL`,
    /// `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_KEY`, `HF_TOKEN` ….
    pub settings: BTreeMap<String, String>,
}

/// Whether fetched pieces are kept on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CacheChoice {
    /// Nothing is kept, nothing is looked up.
    #[default]
    Off,
    /// In this folder.
    On {
        /// The folder; it is made, for this user only, if it is not there.
        folder: PathBuf,
        /// What was not used for longest is removed when there is more.
        limit_bytes: u64,
    },
}

impl Default for RemoteOptions {
    fn default() -> RemoteOptions {
        RemoteOptions {
            attempts_max: 4,
            timeout: Duration::from_secs(30),
            parallel_requests: 8,
            part_bytes: 8 * 1024 * 1024,
            over_read: 0.0,
            whole_file_bytes_max: 256 * 1024 * 1024,
            cache: CacheChoice::Off,
            settings: BTreeMap::new(),
        }
    }
}

/// Without the values of settings, which may be secret.
impl fmt::Debug for RemoteOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteOptions")
            .field("attempts_max", &self.attempts_max)
            .field("timeout", &self.timeout)
            .field("parallel_requests", &self.parallel_requests)
            .field("part_bytes", &self.part_bytes)
            .field("over_read", &self.over_read)
            .field("whole_file_bytes_max", &self.whole_file_bytes_max)
            .field("cache", &self.cache)
            .field("settings", &self.settings.keys())
            .finish()
    }
}

static CHOSEN: OnceLock<RemoteOptions> = OnceLock::new();

impl RemoteOptions {
    /// A setting, or what the environment has by this name.
    fn setting(&self, name: &str) -> Option<String> {
        let own = self.settings.get(name).cloned();
        own.or_else(|| std::env::var(name).ok())
            .filter(|value| !value.is_empty())
    }

    /// What [`choose`] chose; else defaults and the cache that the environment names: `SAFELIGHT_CACHE` is a folder;
    /// without it, the user's cache folder. `SAFELIGHT_CACHE_BYTES` is the cache's limit (10 GiB), and 0 turns it off.
    pub fn from_env() -> RemoteOptions {
        if let Some(chosen) = CHOSEN.get() {
            return chosen.clone();
        }
        RemoteOptions {
            cache: CacheChoice::by_settings(&|name| std::env::var(name).ok()),
            ..RemoteOptions::default()
        }
    }
}

/// Lets [`RemoteOptions::from_env`] keep what is fetched in this folder, whatever the environment says of a folder;
/// `SAFELIGHT_CACHE_BYTES` is the limit (10 GiB), and 0 turns the cache off. For a program's own arguments.
///
/// # Errors
/// The options, if some were chosen before.
pub fn choose_cache(folder: PathBuf) -> Result<(), RemoteOptions> {
    let setting = |name: &str| match name {
        "SAFELIGHT_CACHE" => Some(folder.to_string_lossy().into_owned()),
        name => std::env::var(name).ok(),
    };
    choose(RemoteOptions {
        cache: CacheChoice::by_settings(&setting),
        ..RemoteOptions::default()
    })
}

/// Sets what [`RemoteOptions::from_env`] gives in this process, once: for a program's own arguments.
///
/// # Errors
/// The options, if some were chosen before.
pub fn choose(options: RemoteOptions) -> Result<(), RemoteOptions> {
    CHOSEN.set(options)
}

impl CacheChoice {
    /// By settings as the environment has them.
    fn by_settings(setting: &dyn Fn(&str) -> Option<String>) -> CacheChoice {
        let set = |name: &str| setting(name).filter(|value| !value.is_empty());
        let limit_bytes = set("SAFELIGHT_CACHE_BYTES").and_then(|text| text.parse().ok());
        let folder = match set("SAFELIGHT_CACHE") {
            _ if limit_bytes == Some(0) => None,
            Some(folder) => Some(PathBuf::from(folder)),
            None => user_cache_folder(&set).map(|folder| folder.join("safelight")),
        };
        match folder {
            Some(folder) => CacheChoice::On {
                folder,
                limit_bytes: limit_bytes.unwrap_or(CACHE_BYTES),
            },
            None => CacheChoice::Off,
        }
    }
}

/// Where this user's programs keep what can be fetched again.
fn user_cache_folder(set: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let home = || set("HOME").map(PathBuf::from);
    if cfg!(windows) {
        set("LOCALAPPDATA").map(PathBuf::from)
    } else if cfg!(target_os = "macos") {
        home().map(|home| home.join("Library/Caches"))
    } else {
        set("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|folder| folder.is_absolute())
            .or_else(|| home().map(|home| home.join(".cache")))
    }
}

/// Opens the safetensors file or shard index behind a URL.
///
/// # Errors
/// [`StoreError::BadLocation`] for what is no URL or of another kind; [`StoreError::Io`] around a [`RemoteError`]; and as
/// [`Checkpoint::open`].
pub fn open(
    url: &str,
    options: &OpenOptions,
    remote: &RemoteOptions,
) -> Result<Checkpoint, StoreError> {
    let place = Place::parse(url, &|name| remote.setting(name))?;
    let client = Client::new(remote);
    if place.is_index() {
        return client.indexed(&place)?.checkpoint(options);
    }
    let file = client.open_file(&place)?;
    Checkpoint::from_reader(place.shown, Box::new(file), options)
}

/// Opens any file behind a URL, for positioned reads.
///
/// # Errors
/// As [`open`], but for the file's content.
pub fn open_file(url: &str, remote: &RemoteOptions) -> Result<RemoteFile, StoreError> {
    let place = Place::parse(url, &|name| remote.setting(name))?;
    Client::new(remote).open_file(&place)
}

/// As [`open_file`], for the rest of this crate.
pub(crate) fn source(url: &str) -> Result<FileSource, StoreError> {
    source_of(open_file(url, &RemoteOptions::from_env())?)
}

/// An index and the files that it names, which are open, in the order of [`Index::shards`].
pub(crate) struct Indexed {
    /// What the index is called in messages.
    pub(crate) shown: String,
    index: Index,
    pub(crate) sources: Vec<FileSource>,
}

impl Indexed {
    /// The files as one model.
    pub(crate) fn checkpoint(self, options: &OpenOptions) -> Result<Checkpoint, StoreError> {
        let sources = self.sources.into_iter();
        let files = sources.map(|source| ShardFile::of_source(source, options));
        let files = files.collect::<Result<_, _>>()?;
        self.index.checkpoint(self.shown, None, files, options)
    }
}

/// The index behind a URL and its shards, for whoever looks at each by itself; `None` if it is no index by its name.
///
/// # Errors
/// If the index or a shard can't be had: then all of those that are not there are named.
pub(crate) fn indexed(url: &str) -> Result<Option<Indexed>, StoreError> {
    let remote = RemoteOptions::from_env();
    let place = Place::parse(url, &|name| remote.setting(name))?;
    match place.is_index() {
        true => Client::new(&remote).indexed(&place).map(Some),
        false => Ok(None),
    }
}

/// What the files of one handle share.
struct Client {
    pool: Arc<Pool>,
    transport: Transport,
    cache: Option<Arc<Cache>>,
    options: RemoteOptions,
}

impl Client {
    fn new(options: &RemoteOptions) -> Client {
        let connections = options.parallel_requests.max(1);
        Client {
            pool: Arc::new(Pool::new(connections)),
            transport: Transport::new(options.timeout, connections),
            cache: cache_of(&options.cache),
            options: options.clone(),
        }
    }

    /// Asks for the file's first bytes.
    fn open_file(&self, place: &Place) -> Result<RemoteFile, StoreError> {
        let mut opened = self.open_files(vec![place.clone()]);
        match opened.pop() {
            Some(opened) => opened,
            None => Err(failed(place, io::Error::other("nothing was opened"))),
        }
    }

    /// Asks for the first bytes of files, several at the same time.
    fn open_files(&self, places: Vec<Place>) -> Vec<Result<RemoteFile, StoreError>> {
        let (sender, opened) = mpsc::channel();
        let mut results: HashMap<usize, _> = HashMap::new();
        for (position, place) in places.iter().enumerate() {
            let job = {
                let (sender, place) = (sender.clone(), place.clone());
                let (transport, cache) = (self.transport.clone(), self.cache.clone());
                let (options, pool) = (self.options.clone(), Arc::clone(&self.pool));
                move |runtime: &Runtime| {
                    let opened = open_one(runtime, place, &transport, cache, &options, pool);
                    // Nobody waits any more: then nobody wants it.
                    let _ = sender.send((position, opened));
                }
            };
            if let Err(error) = self.pool.submit(job) {
                results.insert(position, Err(failed(place, error)));
            }
        }
        drop(sender);
        results.extend(opened.iter());
        let all = places.iter().enumerate().map(|(position, place)| {
            let lost = || {
                Err(failed(
                    place,
                    io::Error::other("the request thread ended early"),
                ))
            };
            results.remove(&position).unwrap_or_else(lost)
        });
        all.collect()
    }

    /// Reads an index and opens the files that it names.
    fn indexed(&self, place: &Place) -> Result<Indexed, StoreError> {
        let shown = &place.shown;
        let text = self.read_all(place, INDEX_BYTES_MAX)?;
        let index = Index::parse(shown, &text)?;
        let odd = |name: &&String| name.contains(['\\', '?', '#']) || name.contains("://");
        if let Some(shard) = index.shards.iter().find(odd) {
            return Err(StoreError::ShardOutside {
                file: shown.clone(),
                shard: shard.clone(),
            });
        }
        let places = index.shards.iter().map(|name| place.beside(name)).collect();
        let opened = self.open_files(places);
        let missing = |opened: &Result<_, StoreError>| match opened {
            Err(StoreError::Io { error, .. }) => error.kind() == io::ErrorKind::NotFound,
            _ => false,
        };
        let names = index.shards.iter().zip(&opened);
        let missing: Vec<String> = names
            .filter(|(_, opened)| missing(opened))
            .map(|(name, _)| name.clone())
            .collect();
        if !missing.is_empty() {
            return Err(StoreError::ShardsMissing {
                file: shown.clone(),
                shards: missing,
                shard_count: index.shards.len(),
            });
        }
        let sources = opened.into_iter().map(|opened| source_of(opened?));
        let sources = sources.collect::<Result<_, _>>()?;
        Ok(Indexed {
            shown: shown.clone(),
            index,
            sources,
        })
    }

    /// All of a file that should not be long.
    fn read_all(&self, place: &Place, bytes_max: u64) -> Result<Vec<u8>, StoreError> {
        let file = self.open_file(place)?;
        let failed = |error| failed(place, error);
        let byte_count = file.byte_count().map_err(failed)?;
        if byte_count > bytes_max {
            return Err(StoreError::BadIndex {
                file: place.shown.clone(),
                problem: format!("it has {byte_count} bytes, more than {bytes_max}"),
            });
        }
        file.will_read(&[(0, byte_count)]);
        let mut text = Vec::new();
        let mut reader = Sequential { file, offset: 0 };
        reader.read_to_end(&mut text).map_err(failed)?;
        Ok(text)
    }
}

/// Reads a file from its beginning.
struct Sequential {
    file: RemoteFile,
    offset: u64,
}

impl io::Read for Sequential {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

fn source_of(file: RemoteFile) -> Result<FileSource, StoreError> {
    let label = file.shown().to_owned();
    let file_bytes = file.byte_count().map_err(|error| StoreError::Io {
        doing: "read the size of",
        file: label.clone(),
        error,
    })?;
    Ok(FileSource {
        label,
        source: Source::Reader(Box::new(file)),
        file_bytes,
        stamp: None,
    })
}

fn failed(place: &Place, error: io::Error) -> StoreError {
    StoreError::Io {
        doing: "open",
        file: place.shown.clone(),
        error,
    }
}

/// One cache for each folder and process, so that its size is counted once.
fn cache_of(choice: &CacheChoice) -> Option<Arc<Cache>> {
    static CACHES: Mutex<Vec<(CacheChoice, Arc<Cache>)>> = Mutex::new(Vec::new());
    let CacheChoice::On {
        folder,
        limit_bytes,
    } = choice
    else {
        return None;
    };
    let mut caches = CACHES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, cache)) = caches.iter().find(|(known, _)| known == choice) {
        return Some(Arc::clone(cache));
    }
    let cache = Arc::new(Cache::open(folder, *limit_bytes));
    caches.push((choice.clone(), Arc::clone(&cache)));
    Some(cache)
}

/// How long headers were lately, in all of this process: files of one kind come together.
static TYPICAL_HEADER_BYTES: AtomicU64 = AtomicU64::new(0);

/// How much to ask for first.
fn first_bytes() -> u64 {
    let typical = TYPICAL_HEADER_BYTES.load(Ordering::Relaxed);
    (typical + typical / 16).clamp(FIRST_BYTES_MIN, FIRST_BYTES_MAX)
}

/// Learns from a file's first 8 bytes, which say how long its header is. Files with no header say anything there.
fn learn(prefix: &[u8]) {
    if let Some((length, rest)) = prefix.split_first_chunk::<8>()
        && rest.first() == Some(&b'{')
    {
        let header_bytes = u64::from_le_bytes(*length).saturating_add(8);
        TYPICAL_HEADER_BYTES.store(header_bytes.min(FIRST_BYTES_MAX), Ordering::Relaxed);
    }
}

/// Opens one file, on a thread of the pool.
fn open_one(
    runtime: &Runtime,
    place: Place,
    transport: &Transport,
    cache: Option<Arc<Cache>>,
    options: &RemoteOptions,
    pool: Arc<Pool>,
) -> Result<RemoteFile, StoreError> {
    let identity = place.identity();
    let bad = |error: RemoteError| failed(&place, error.into());
    let object = Object::new(place.clone(), transport, options).map_err(bad)?;
    let (first, pin) = first_part(runtime, &object, cache.as_deref(), &identity).map_err(bad)?;
    let pieces = cache.and_then(|cache| Cache::pieces(&cache, &identity, &pin));
    let prefix = match (first, &pieces) {
        (Some(first), Some(pieces)) => {
            if pieces.read(0, first.len() as u64).is_err() {
                pieces.keep(0, &first);
            }
            first
        }
        (Some(first), None) => first,
        // Still what is cached: then its beginning is there, or is read when it is needed.
        (None, Some(pieces)) => pieces.read(0, first_bytes()).unwrap_or_default(),
        (None, None) => Vec::new(),
    };
    learn(&prefix);
    let part_bytes = options.part_bytes.max(1);
    let reading = Reading {
        part_bytes,
        window_bytes: part_bytes.saturating_mul(options.parallel_requests.max(1) as u64),
        over_read: options.over_read.max(0.0),
    };
    Ok(RemoteFile::new(object, pin, prefix, pieces, pool, &reading))
}

/// A file's first bytes and what it is; no bytes if it is still what the cache knows.
fn first_part(
    runtime: &Runtime,
    object: &Object,
    cache: Option<&Cache>,
    identity: &str,
) -> Result<(Option<Vec<u8>>, Pin), RemoteError> {
    let known = cache.and_then(|cache| cache.known(identity));
    let etag = known.as_ref().map(|known| known.etag.clone());
    match (
        object.first(runtime, first_bytes(), etag.as_deref())?,
        known,
    ) {
        (First::Part(bytes, pin) | First::Whole(bytes, pin), _) => Ok((Some(bytes), pin)),
        (First::Unchanged, known) => {
            let known = known.unwrap_or_default();
            let marks = transport::Marks {
                etag: Some(known.etag),
                last_modified: None,
            };
            let file_bytes = known.file_bytes;
            Ok((None, Pin { marks, file_bytes }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_follows_the_environment() {
        let choice = |settings: &[(&str, &str)]| {
            CacheChoice::by_settings(&|name| {
                let found = settings.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let own = CacheChoice::On {
            folder: PathBuf::from("/c"),
            limit_bytes: 5,
        };
        let named = [("SAFELIGHT_CACHE", "/c"), ("SAFELIGHT_CACHE_BYTES", "5")];
        assert_eq!(choice(&named), own);
        let off = [("SAFELIGHT_CACHE", "/c"), ("SAFELIGHT_CACHE_BYTES", "0")];
        assert_eq!(choice(&off), CacheChoice::Off);
        assert_eq!(choice(&[]), CacheChoice::Off, "no home, no cache");
        if cfg!(all(unix, not(target_os = "macos"))) {
            let expected = CacheChoice::On {
                folder: PathBuf::from("/h/.cache/safelight"),
                limit_bytes: CACHE_BYTES,
            };
            assert_eq!(
                choice(&[("HOME", "/h"), ("XDG_CACHE_HOME", "relative")]),
                expected
            );
        }
    }
}
