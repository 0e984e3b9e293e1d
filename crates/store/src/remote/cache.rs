//! A cache on disk: pieces of objects, by URL and ETag.
//!
//! ```text
//! <folder>/remote-1/<hash of URL>/about.json       {"etag", "file_bytes"}: what was seen last
//! <folder>/remote-1/<hash of URL>/<hash of ETag>/<start>-<length>
//! ```
//!
//! A piece has its place and a checksum for every 64 KiB, and is there as a whole or not at all (written aside, then
//! renamed), so that any number of processes may use one folder, and remove from it: what is missing or wrong is fetched
//! again. Only content with a strong ETag is kept. Names are hashes, so that no secret of a URL gets into one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

use super::object::Pin;
use crate::source::ReadAt as _;

/// The folder's name has the version of its layout.
const FOLDER: &str = "remote-1";

/// A piece begins with these bytes, its start and its length.
const MAGIC: [u8; 8] = *b"SLpiece1";

/// Magic, start, length, checksum of these.
const PIECE_HEADER_BYTES: usize = 28;

/// A checksum is for so many bytes.
const BLOCK_BYTES: u64 = 64 * 1024;

/// Smaller pieces are not worth a file.
const PIECE_BYTES_MIN: u64 = 512;

/// Files that were written aside by a process that ended are removed after this long.
const ASIDE_AGE: Duration = Duration::from_secs(3600);

/// After eviction, this part of the limit is in use.
const KEPT_PERCENT: u64 = 80;

/// A folder with pieces, and how large it may be.
pub(crate) struct Cache {
    folder: PathBuf,
    limit_bytes: u64,
    /// Bytes in the folder, counted when it was opened and as pieces are written; other processes' are not.
    used_bytes: AtomicU64,
    /// Set when writing failed (disk full, read-only): nothing more is written then.
    off: AtomicBool,
}

/// What was known of an object when it was read last.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) etag: String,
    pub(crate) file_bytes: u64,
}

/// The pieces of one object's content.
pub(crate) struct Pieces {
    cache: Arc<Cache>,
    folder: PathBuf,
    /// Start and length of those that are there, as far as known.
    there: Mutex<BTreeMap<u64, u64>>,
}

impl Cache {
    /// Uses a folder, which need not exist yet. What is there is counted, and left-overs are removed.
    pub(crate) fn open(folder: &Path, limit_bytes: u64) -> Cache {
        let cache = Cache {
            folder: folder.join(FOLDER),
            limit_bytes,
            used_bytes: AtomicU64::new(0),
            off: AtomicBool::new(false),
        };
        let used = cache.files().iter().map(|file| file.bytes).sum();
        cache.used_bytes.store(used, Ordering::Relaxed);
        if used > limit_bytes {
            cache.evict();
        }
        cache
    }

    fn object(&self, identity: &str) -> PathBuf {
        self.folder.join(hash(identity))
    }

    /// What was seen under this URL last.
    pub(crate) fn known(&self, identity: &str) -> Option<Known> {
        let mut text = String::new();
        let file = File::open(self.object(identity).join("about.json")).ok()?;
        file.take(64 * 1024).read_to_string(&mut text).ok()?;
        let about: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(Known {
            etag: about.get("etag")?.as_str()?.to_owned(),
            file_bytes: about.get("file_bytes")?.as_u64()?,
        })
    }

    /// The pieces of an object with this content. Those of its earlier contents are removed.
    pub(crate) fn pieces(cache: &Arc<Cache>, identity: &str, pin: &Pin) -> Option<Pieces> {
        let etag = pin.strong_etag()?;
        let object = cache.object(identity);
        let folder = object.join(hash(&format!("{etag} {}", pin.file_bytes)));
        let known = Known {
            etag: etag.to_owned(),
            file_bytes: pin.file_bytes,
        };
        if cache.known(identity).as_ref() != Some(&known) {
            cache.forget_others(&object, &folder);
            let about = serde_json::json!({ "etag": known.etag, "file_bytes": known.file_bytes });
            cache.put(&object.join("about.json"), &[about.to_string().as_bytes()]);
        }
        let mut there = BTreeMap::new();
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if let Some((start, byte_count)) = parse_name(&entry.file_name().to_string_lossy()) {
                // Of pieces that begin together, the longer one.
                let known = there.entry(start).or_insert(byte_count);
                *known = byte_count.max(*known);
            }
        }
        Some(Pieces {
            cache: Arc::clone(cache),
            folder,
            there: Mutex::new(there),
        })
    }

    fn forget_others(&self, object: &Path, folder: &Path) {
        for entry in fs::read_dir(object).into_iter().flatten().flatten() {
            let path = entry.path();
            if path != folder && path.is_dir() {
                let _ = fs::remove_dir_all(&path);
            }
        }
    }

    /// Writes a file as a whole. What fails is not said: the cache is a convenience.
    fn put(&self, path: &Path, parts: &[&[u8]]) -> bool {
        if self.off.load(Ordering::Relaxed) {
            return false;
        }
        // Another process may remove the folder just then, because it was empty or of another content.
        let mut written = write_aside(path, parts);
        for _ in 0..3 {
            match &written {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    written = write_aside(path, parts);
                }
                _ => break,
            }
        }
        if let Err(error) = written {
            if error.kind() != io::ErrorKind::NotFound {
                self.off.store(true, Ordering::Relaxed);
            }
            return false;
        }
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let used = self.used_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if used > self.limit_bytes {
            self.evict();
        }
        true
    }

    /// Removes what was not used for longest, until the folder is well below its limit.
    fn evict(&self) {
        let mut files = self.files();
        files.sort_by_key(|file| file.used);
        let mut used: u64 = files.iter().map(|file| file.bytes).sum();
        let goal = self.limit_bytes / 100 * KEPT_PERCENT;
        for file in &files {
            if used <= goal {
                break;
            }
            if fs::remove_file(&file.path).is_ok() {
                used -= file.bytes;
            }
        }
        self.used_bytes.store(used, Ordering::Relaxed);
    }

    /// All pieces; files that were left aside long ago are removed, and folders that are empty.
    fn files(&self) -> Vec<Piece> {
        let now = SystemTime::now();
        let mut files = Vec::new();
        for object in folders(&self.folder) {
            for content in folders(&object) {
                let mut count = 0;
                for entry in fs::read_dir(&content).into_iter().flatten().flatten() {
                    let Ok(metadata) = entry.metadata() else {
                        continue;
                    };
                    count += 1;
                    let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    let name = entry.file_name();
                    let aside = parse_name(&name.to_string_lossy()).is_none();
                    let age = now.duration_since(used).unwrap_or_default();
                    if aside && age > ASIDE_AGE {
                        let _ = fs::remove_file(entry.path());
                        continue;
                    }
                    files.push(Piece {
                        path: entry.path(),
                        bytes: metadata.len(),
                        used,
                    });
                }
                if count == 0 {
                    let _ = fs::remove_dir(&content);
                }
            }
        }
        files
    }
}

/// A file in the cache.
struct Piece {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

/// Writes a file beside its place, and renames it when it is whole.
fn write_aside(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let aside = path.with_file_name(format!(".aside-{}-{number}", std::process::id()));
    create_folder(path.parent().unwrap_or(Path::new("")))?;
    let mut file = File::create_new(&aside)?;
    let written = parts
        .iter()
        .try_for_each(|part| file.write_all(part))
        .and_then(|()| fs::rename(&aside, path));
    drop(file);
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// For this user only: what is cached may be private.
fn create_folder(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

fn hash(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn parse_name(name: &str) -> Option<(u64, u64)> {
    let (start, byte_count) = name.split_once('-')?;
    let (start, byte_count) = (start.parse().ok()?, byte_count.parse().ok()?);
    Some((start, byte_count))
}

impl Pieces {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, u64>> {
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes from `offset` on, at most `byte_count`: some if they are there, else where the next that are there begin
    /// (or the end of what was asked for).
    pub(crate) fn read(&self, offset: u64, byte_count: u64) -> Result<Vec<u8>, u64> {
        loop {
            let end = offset.saturating_add(byte_count);
            let (piece, next) = {
                let there = self.lock();
                let holds =
                    |(start, len): (&u64, &u64)| (*start + *len > offset).then_some((*start, *len));
                let piece = there.range(..=offset).next_back().and_then(holds);
                let next = there.range(offset + 1..).next().map(|(start, _)| *start);
                (piece, next.unwrap_or(end).min(end))
            };
            let Some((start, len)) = piece else {
                return Err(next);
            };
            let wanted = end.min(start + len) - offset;
            match self.read_piece(start, len, offset, wanted) {
                Some(bytes) => return Ok(bytes),
                // Removed by another process, or damaged: it is not there.
                None => {
                    self.lock().remove(&start);
                    let _ = fs::remove_file(self.folder.join(format!("{start}-{len}")));
                }
            }
        }
    }

    /// Part of a piece, if that part is whole.
    fn read_piece(&self, start: u64, len: u64, offset: u64, byte_count: u64) -> Option<Vec<u8>> {
        let file = File::open(self.folder.join(format!("{start}-{len}"))).ok()?;
        let mut header = [0; PIECE_HEADER_BYTES];
        read_exact_at(&file, &mut header, 0)?;
        if header != piece_header(start, len) {
            return None;
        }
        let blocks = len.div_ceil(BLOCK_BYTES);
        let data_start = PIECE_HEADER_BYTES as u64 + 4 * blocks;
        if file.byte_count().ok()? != data_start + len {
            return None;
        }
        // Whole blocks, for their checksums.
        let first_block = (offset - start) / BLOCK_BYTES;
        let last_block = (offset + byte_count - start).div_ceil(BLOCK_BYTES);
        let sums_len = usize::try_from(4 * (last_block - first_block)).ok()?;
        let mut sums = vec![0; sums_len];
        read_exact_at(
            &file,
            &mut sums,
            PIECE_HEADER_BYTES as u64 + 4 * first_block,
        )?;
        let (from, to) = (
            first_block * BLOCK_BYTES,
            (last_block * BLOCK_BYTES).min(len),
        );
        let mut bytes = Vec::new();
        let bytes_len = usize::try_from(to - from).ok()?;
        bytes.try_reserve_exact(bytes_len).ok()?;
        bytes.resize(bytes_len, 0);
        read_exact_at(&file, &mut bytes, data_start + from)?;
        let blocks = bytes.chunks(BLOCK_BYTES as usize);
        let whole = blocks
            .zip(sums.chunks(4))
            .all(|(block, sum)| checksum(block).to_le_bytes() == sum);
        if !whole {
            return None;
        }
        // The date is when it was used last, for eviction.
        let _ = file.set_modified(SystemTime::now());
        let skipped = (offset - start - from) as usize;
        bytes.drain(..skipped);
        bytes.truncate(byte_count as usize);
        Some(bytes)
    }

    /// Keeps bytes that were fetched.
    pub(crate) fn keep(&self, start: u64, bytes: &[u8]) {
        let len = bytes.len() as u64;
        if len < PIECE_BYTES_MIN || len > self.cache.limit_bytes / 2 {
            return;
        }
        let sums: Vec<u8> = bytes
            .chunks(BLOCK_BYTES as usize)
            .flat_map(|block| checksum(block).to_le_bytes())
            .collect();
        let path = self.folder.join(format!("{start}-{len}"));
        if self
            .cache
            .put(&path, &[&piece_header(start, len), &sums, bytes])
        {
            let mut there = self.lock();
            let known = there.entry(start).or_insert(len);
            *known = len.max(*known);
        }
    }
}

fn piece_header(start: u64, len: u64) -> [u8; PIECE_HEADER_BYTES] {
    let mut header = [0; PIECE_HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&start.to_le_bytes());
    header[16..24].copy_from_slice(&len.to_le_bytes());
    let sum = checksum(&header[..24]);
    header[24..].copy_from_slice(&sum.to_le_bytes());
    header
}

/// CRC-32, which finds what disks and torn writes do. It is no protection against someone who can write to the folder.
fn checksum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> Option<()> {
    while !buffer.is_empty() {
        let count = file
            .read_at(buffer, offset)
            .ok()
            .filter(|count| *count > 0)?;
        buffer = buffer.get_mut(count..)?;
        offset += count as u64;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::transport::Marks;

    fn pin(etag: &str) -> Pin {
        let marks = Marks {
            etag: Some(etag.to_owned()),
            last_modified: None,
        };
        Pin {
            marks,
            file_bytes: 1 << 20,
        }
    }

    fn open(folder: &Path, limit_bytes: u64) -> Arc<Cache> {
        Arc::new(Cache::open(folder, limit_bytes))
    }

    fn some_bytes(count: usize) -> Vec<u8> {
        (0..count).map(|i| (i * 7 % 251) as u8).collect()
    }

    /// All files below a folder.
    fn walk(folder: &Path) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                all.extend(walk(&entry.path()));
            } else {
                all.push(entry.path());
            }
        }
        all
    }

    #[test]
    fn what_was_kept_is_read_in_any_part_and_by_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let bytes = some_bytes(200_000);
        let cache = open(folder.path(), 1 << 30);
        let pieces = Cache::pieces(&cache, "https://h/a", &pin("\"1\"")).expect("strong");
        pieces.keep(1000, &bytes);
        let again = open(folder.path(), 1 << 30);
        let others = Cache::pieces(&again, "https://h/a", &pin("\"1\"")).expect("strong");
        for pieces in [&pieces, &others] {
            assert_eq!(pieces.read(1000, 1 << 20), Ok(bytes.clone()));
            assert_eq!(pieces.read(66_000, 10), Ok(bytes[65_000..65_010].to_vec()));
            assert_eq!(pieces.read(200_999, 99), Ok(bytes[199_999..].to_vec()));
            assert_eq!(pieces.read(0, 5000), Err(1000));
            assert_eq!(pieces.read(0, 500), Err(500));
            assert_eq!(pieces.read(201_000, 5), Err(201_005));
        }
        let known = again.known("https://h/a").expect("known");
        assert_eq!((known.etag.as_str(), known.file_bytes), ("\"1\"", 1 << 20));
    }

    #[test]
    fn other_urls_other_content_and_weak_etags_have_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = open(folder.path(), 1 << 30);
        let pieces = |url: &str, etag: &str| Cache::pieces(&cache, url, &pin(etag));
        pieces("https://h/a", "\"1\"")
            .expect("strong")
            .keep(0, &[1; 1000]);
        assert_eq!(
            pieces("https://h/b", "\"1\"").expect("strong").read(0, 10),
            Err(10)
        );
        assert_eq!(
            pieces("https://h/a", "\"2\"").expect("strong").read(0, 10),
            Err(10)
        );
        // Seeing another content removed the first one.
        assert_eq!(
            pieces("https://h/a", "\"1\"").expect("strong").read(0, 10),
            Err(10)
        );
        assert!(pieces("https://h/a", "W/\"1\"").is_none());
        for file in walk(folder.path()) {
            let path = file.to_string_lossy().into_owned();
            assert!(!path.contains("https"), "{path}");
        }
    }

    #[test]
    fn damage_is_found_and_forgotten() {
        let bytes = some_bytes(150_000);
        // Of magic, start, length, checksums, data; and a file cut short.
        for damage in [0, 9, 17, 25, 30, 40, 100_000, 150_039] {
            let folder = tempfile::tempdir().expect("a folder");
            let cache = open(folder.path(), 1 << 30);
            let pieces = Cache::pieces(&cache, "u", &pin("\"1\"")).expect("strong");
            pieces.keep(0, &bytes);
            let file = pieces.folder.join("0-150000");
            let mut content = fs::read(&file).expect("the piece");
            content[damage] ^= 4;
            fs::write(&file, &content).expect("damaged");
            assert_eq!(pieces.read(0, 150_000), Err(150_000), "byte {damage}");
            assert!(!file.exists());
            pieces.keep(0, &bytes);
            content.truncate(damage);
            fs::write(&file, &content).expect("cut");
            assert_eq!(pieces.read(0, 150_000), Err(150_000), "cut at {damage}");
        }
    }

    #[test]
    fn what_was_not_used_for_longest_is_removed_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = open(folder.path(), 1_000_000);
        let pieces = Cache::pieces(&cache, "u", &pin("\"1\"")).expect("strong");
        let past = |seconds| SystemTime::now() - Duration::from_secs(seconds);
        for number in 0..4u64 {
            pieces.keep(number * 200_000, &some_bytes(200_000));
            let path = pieces.folder.join(format!("{}-200000", number * 200_000));
            let file = File::options().append(true).open(path).expect("the piece");
            file.set_modified(past(1000 - number)).expect("a date");
        }
        assert!(pieces.read(0, 10).is_ok(), "used now, so it stays");
        pieces.keep(800_000, &some_bytes(250_000));
        let there: Vec<bool> = (0..5)
            .map(|n| pieces.read(n * 200_000, 10).is_ok())
            .collect();
        assert_eq!(there, [true, false, false, true, true]);
        let used: u64 = cache.files().iter().map(|file| file.bytes).sum();
        assert!(used <= 1_000_000 && used == cache.used_bytes.load(Ordering::Relaxed));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_trouble() {
        let folder = tempfile::tempdir().expect("a folder");
        let blocked = folder.path().join("file");
        fs::write(&blocked, b"not a folder").expect("a file");
        let cache = open(&blocked, 1 << 30);
        let pieces = Cache::pieces(&cache, "u", &pin("\"1\"")).expect("strong");
        pieces.keep(0, &[1; 1000]);
        assert_eq!(pieces.read(0, 10), Err(10));
    }

    #[test]
    fn left_overs_are_removed_when_they_are_old() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = open(folder.path(), 1 << 30);
        let pieces = Cache::pieces(&cache, "u", &pin("\"1\"")).expect("strong");
        pieces.keep(0, &[1; 1000]);
        let (old, new) = (
            pieces.folder.join(".aside-1-1"),
            pieces.folder.join(".aside-1-2"),
        );
        fs::write(&old, b"x").expect("written");
        fs::write(&new, b"x").expect("written");
        let file = File::options().append(true).open(&old).expect("there");
        file.set_modified(SystemTime::now() - 2 * ASIDE_AGE)
            .expect("a date");
        open(folder.path(), 1 << 30);
        assert!(!old.exists() && new.exists());
    }

    #[test]
    fn many_writers_and_readers_of_one_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let bytes = some_bytes(70_000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    // A small limit: they remove each other's pieces all the time.
                    let cache = open(folder.path(), 300_000);
                    let pieces = Cache::pieces(&cache, "u", &pin("\"1\"")).expect("strong");
                    for round in 0..40u64 {
                        let start = round % 8 * 70_000;
                        pieces.keep(start, &bytes);
                        if let Ok(read) = pieces.read(start, 70_000) {
                            assert!(read == bytes, "wrong bytes");
                        }
                    }
                });
            }
        });
    }
}
