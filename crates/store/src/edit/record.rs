//! The undo record: what a file's bytes were before they are changed in place.
//!
//! It lies beside the file as `.NAME.safelight-undo` while the change is under way. If the program
//! dies in between, whoever opens or edits the file next puts the old bytes back.
//!
//! ```text
//! "safelight undo 1"                      16 bytes
//! device, inode, length of the file       3 × u64   (all numbers little-endian)
//! count of ranges                         u64
//! offset, length                          2 × u64   each range
//! the ranges' old bytes
//! "safelight done 1"                      16 bytes
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::atomic::{Publish, Temporary, folder_of, follow_links};
use crate::error::{StoreError, path_text};
use crate::sys;

const MAGIC: &[u8; 16] = b"safelight undo 1";
const FOOTER: &[u8; 16] = b"safelight done 1";
/// Magic, three numbers, count.
const HEAD_BYTES: u64 = 16 + 4 * 8;
/// More ranges than any edit of ours touches.
const RANGES_MAX: u64 = 1024;
/// How long to wait for another process that edits the file.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a file's undo record lies; `target` is no link.
pub(super) fn record_path(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    folder_of(target).join(format!(".{name}.safelight-undo"))
}

/// Deletes the record of a file that has just been replaced as a whole.
pub(crate) fn forget(target: &Path) {
    let _ = fs::remove_file(record_path(target));
}

/// Which file this is, so that no record is applied to another one.
fn identity(file: &fs::Metadata) -> [u64; 2] {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        [file.dev(), file.ino()]
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        [0, 0]
    }
}

/// A file that is open for changes.
pub(super) struct Locked {
    pub(super) file: File,
    /// Where it lies, links followed.
    pub(super) target: PathBuf,
    /// Whether no other editor of ours can have it; some file systems have no locks.
    pub(super) locked: bool,
}

/// Opens a file for changes and locks it against other editors of ours; whoever died while
/// editing it is cleaned up after.
pub(super) fn open_locked(path: &Path) -> Result<Locked, StoreError> {
    let target = follow_links(path).map_err(StoreError::io("open", path))?;
    loop {
        let opened = OpenOptions::new().read(true).write(true).open(&target);
        let file = opened.map_err(StoreError::io("change", path))?;
        let locked = lock(&file, path, &target)?;
        let (now, held) = (fs::metadata(&target), file.metadata());
        let (now, held) = now
            .and_then(|now| Ok((now, held?)))
            .map_err(StoreError::io("open", path))?;
        if !held.is_file() {
            let (file, what) = (path_text(path), "a folder, device or pipe");
            return Err(StoreError::NotAFile { file, what });
        }
        if identity(&now) == identity(&held) {
            roll_back(&file, path, &target)?;
            return Ok(Locked {
                file,
                target,
                locked,
            });
        } // replaced while we waited
    }
}

/// Waits for the lock; `false` if the file system has none.
fn lock(file: &File, path: &Path, target: &Path) -> Result<bool, StoreError> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match sys::try_lock(file, target) {
            Ok(true) => return Ok(true),
            Err(error) if sys::is_unsupported(&error) => return Ok(false),
            Err(error) => return Err(StoreError::io("lock", path)(error)),
            Ok(false) if start.elapsed() > PATIENCE => {
                let file = path_text(path);
                return Err(StoreError::Busy { file });
            }
            Ok(false) => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
        }
    }
}

/// Puts a file back into its old state if an edit of it was interrupted; whether that was so.
///
/// Costs two system calls if there is nothing to do. [`crate::Checkpoint::open`] calls it.
///
/// # Errors
/// [`StoreError::Interrupted`] if the record cannot be used (it belongs to another file, the file cannot
/// be written to), [`StoreError::Busy`] if someone has been editing the file for very long.
pub fn recover(path: &Path) -> Result<bool, StoreError> {
    let Ok(target) = follow_links(path) else {
        return Ok(false);
    };
    let record = record_path(&target);
    if !is_there(path, &record)? {
        return Ok(false);
    }
    match open_locked(path) {
        Ok(_) => Ok(true),
        Err(StoreError::Io { error, .. }) => {
            let problem = format!("the file cannot be put back now: {error}");
            Err(interrupted(path, &record, problem))
        }
        Err(error) => Err(error),
    }
}

/// Whether a file has a record. What stands in its place and is no file is an error: opening a pipe would wait for ever, and a link leads
/// to a stranger's file.
fn is_there(path: &Path, record: &Path) -> Result<bool, StoreError> {
    match fs::symlink_metadata(record) {
        Err(_) => Ok(false),
        Ok(found) if found.is_file() => Ok(true),
        Ok(_) => {
            let problem = "what lies there is no file (a folder, link, device or pipe) and was not made here; delete it";
            Err(interrupted(path, record, problem.to_owned()))
        }
    }
}

fn interrupted(path: &Path, record: &Path, problem: String) -> StoreError {
    StoreError::Interrupted {
        file: path_text(path),
        record: path_text(record),
        problem,
    }
}

/// Under the lock: applies the record, if there is one.
fn roll_back(file: &File, path: &Path, target: &Path) -> Result<(), StoreError> {
    let record_path = record_path(target);
    if !is_there(path, &record_path)? {
        return Ok(());
    }
    let record = match File::open(&record_path) {
        Ok(record) => record,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StoreError::io("read", &record_path)(error)),
    };
    let plan = Plan::read(&record).map_err(|error| {
        let problem = format!(
            "the record cannot be read: {error}; check the file (`safelight verify`), and delete the record if it is as it should be"
        );
        interrupted(path, &record_path, problem)
    })?;
    let metadata = file.metadata().map_err(StoreError::io("open", path))?;
    if plan.identity != identity(&metadata) {
        let problem = "the record was made for another file (was this one copied or replaced by \
                       another program?); delete the record if this file is as it should be";
        return Err(interrupted(path, &record_path, problem.to_owned()));
    }
    plan.apply(&record, file, target)
        .and_then(|()| sys::remove(&record_path))
        .map_err(|error| {
            let problem = format!("the file cannot be put back now: {error}");
            interrupted(path, &record_path, problem)
        })
}

/// What a record says.
struct Plan {
    identity: [u64; 2],
    file_bytes: u64,
    ranges: Vec<Range<u64>>,
    /// Where the ranges' bytes start in the record.
    payload_start: u64,
}

impl Plan {
    fn read(record: &File) -> io::Result<Plan> {
        let bad = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut head = [0; HEAD_BYTES as usize];
        sys::read_at(record, &mut head, 0)?;
        if &head[..16] != MAGIC {
            return Err(bad("it is no undo record"));
        }
        let numbers = numbers(&head[16..]);
        let [device, inode, file_bytes, count] = numbers[..] else {
            return Err(bad("its head is cut off"));
        };
        if count > RANGES_MAX {
            return Err(bad("it names too many ranges"));
        }
        let mut table = vec![0; count as usize * 16];
        sys::read_at(record, &mut table, HEAD_BYTES)?;
        let mut ranges = Vec::new();
        let mut payload_bytes = 0u64;
        for pair in numbers_of_pairs(&table) {
            let end = pair[0].checked_add(pair[1]);
            let Some(end) = end.filter(|&end| end <= file_bytes) else {
                return Err(bad("it names bytes beyond the file"));
            };
            payload_bytes = payload_bytes.saturating_add(pair[1]);
            ranges.push(pair[0]..end);
        }
        let payload_start = HEAD_BYTES + table.len() as u64;
        let mut footer = [0; 16];
        sys::read_at(
            record,
            &mut footer,
            payload_start.saturating_add(payload_bytes),
        )?;
        if &footer != FOOTER {
            return Err(bad("its end is missing"));
        }
        Ok(Plan {
            identity: [device, inode],
            file_bytes,
            ranges,
            payload_start,
        })
    }

    /// Puts the old bytes and the old length back; doing it twice does no harm.
    fn apply(&self, record: &File, file: &File, target: &Path) -> io::Result<()> {
        let mut from = self.payload_start;
        for range in &self.ranges {
            let len = range.end - range.start;
            sys::copy_range((record, from), (file, range.start), len, target)?;
            from += len;
        }
        if file.metadata()?.len() != self.file_bytes {
            sys::set_length(file, self.file_bytes, target)?;
        }
        sys::sync(file, target)
    }
}

fn numbers(bytes: &[u8]) -> Vec<u64> {
    let words = bytes.chunks_exact(8);
    words
        .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
        .collect()
}

fn numbers_of_pairs(bytes: &[u8]) -> impl Iterator<Item = [u64; 2]> {
    let numbers = numbers(bytes);
    (0..numbers.len() / 2).map(move |pair| [numbers[2 * pair], numbers[2 * pair + 1]])
}

/// Changes a locked file in place: the old bytes of `range` (and the old length) are recorded
/// first, then `change` runs, then the record goes. If `change` fails, the old bytes are put back.
pub(super) fn with_undo(
    file: &File,
    path: &Path,
    target: &Path,
    range: Range<u64>,
    sync: bool,
    change: impl FnOnce() -> io::Result<()>,
) -> Result<(), StoreError> {
    let record_path = record_path(target);
    write_record(file, &record_path, std::slice::from_ref(&range), sync)?;
    let changed = change().and_then(|()| {
        if sync {
            sys::sync(file, target)
        } else {
            Ok(())
        }
    });
    if let Err(error) = changed {
        roll_back(file, path, target)?;
        return Err(StoreError::io("change", path)(error));
    }
    sys::remove(&record_path)
        .and_then(|()| {
            if sync {
                sys::sync_folder(folder_of(target))
            } else {
                Ok(())
            }
        })
        .map_err(StoreError::io("delete", &record_path))
}

/// Writes the record; it has its name only when it is complete.
fn write_record(
    file: &File,
    record_path: &Path,
    ranges: &[Range<u64>],
    sync: bool,
) -> Result<(), StoreError> {
    let write = || -> io::Result<()> {
        let metadata = file.metadata()?;
        let [device, inode] = identity(&metadata);
        let mut head = MAGIC.to_vec();
        for number in [device, inode, metadata.len(), ranges.len() as u64] {
            head.extend_from_slice(&number.to_le_bytes());
        }
        for range in ranges {
            head.extend_from_slice(&range.start.to_le_bytes());
            head.extend_from_slice(&(range.end - range.start).to_le_bytes());
        }
        let temporary = Temporary::for_target(record_path).map_err(into_io)?;
        sys::write_at(&temporary.file, &head, 0, record_path)?;
        let mut at = head.len() as u64;
        for range in ranges {
            let len = range.end - range.start;
            sys::copy_range((file, range.start), (&temporary.file, at), len, record_path)?;
            at += len;
        }
        sys::write_at(&temporary.file, FOOTER, at, record_path)?;
        let only_atomic = true;
        temporary.publish(Publish { sync, only_atomic })
    };
    write().map_err(StoreError::io("write", record_path))
}

fn into_io(error: StoreError) -> io::Error {
    match error {
        StoreError::Io { error, .. } => error,
        other => io::Error::other(other),
    }
}
