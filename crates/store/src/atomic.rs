//! Replacing a file so that every reader sees the old one or the new one, never a part.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{StoreError, path_text};

/// As many links to links as Linux follows.
const LINKS_MAX: usize = 40;

/// Bytes collected before they go to the file.
const BUFFER_BYTES: usize = 1024 * 1024;

/// Writes a file's new content beside it, then renames it into place.
///
/// A new file gets the mode every program's new files get (the umask decides); a replaced one
/// keeps its mode, and its owner where the system lets us. A symbolic link stays and its target
/// is replaced. With `sync`, the bytes are on the disk before the rename, and the rename before
/// this returns. If anything fails nothing has changed, and nothing is left behind.
///
/// ```
/// # let folder = std::env::temp_dir().join(format!("safelight-replace-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// let path = folder.join("note.txt");
/// safelight_store::replace_file(&path, false, |file| file.write_all(b"all or nothing"))?;
/// # assert_eq!(std::fs::read(&path)?, b"all or nothing");
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`StoreError::Io`], which names `path`; [`StoreError::NotAFile`] if `path` is a folder or device.
pub fn replace_file(
    path: &Path,
    sync: bool,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), StoreError> {
    let target = follow_links(path).map_err(StoreError::io("write", path))?;
    let old = match fs::metadata(&target) {
        Ok(old) if old.is_file() => Some(old),
        Ok(old) => {
            let what = if old.is_dir() {
                "a folder"
            } else {
                "a device or pipe"
            };
            return Err(StoreError::NotAFile {
                file: path_text(path),
                what,
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(StoreError::io("write", path)(error)),
    };
    let mut temporary =
        Temporary::beside(&target, old.as_ref()).map_err(StoreError::io("write", path))?;
    temporary
        .fill(write, old.as_ref(), sync)
        .map_err(StoreError::io("write", path))?;
    temporary
        .rename_to(&target, sync)
        .map_err(StoreError::io("write", path))
}

/// Where a chain of symbolic links leads; there need not be a file yet.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    let mut target = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::read_link(&target) {
            Ok(link) => target = folder_of(&target).join(link),
            Err(_) => return Ok(target), // no link, or not there; writing will tell
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

/// The folder that a file lies in.
fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// A file of our own in the target's folder. Deleted when dropped, unless it was renamed.
struct Temporary {
    path: PathBuf,
    file: Option<File>,
}

impl Temporary {
    /// Creates a file that was not there before. If it will replace one, nobody may read it who
    /// could not read that.
    fn beside(target: &Path, old: Option<&fs::Metadata>) -> io::Result<Temporary> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        if target.file_name().is_none() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the path names no file",
            ));
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        if let Some(old) = old {
            use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
            options.mode(old.mode() & 0o777);
        }
        #[cfg(not(unix))]
        let _ = old;
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path =
                folder_of(target).join(format!(".safelight-{}-{count}.tmp", std::process::id()));
            match options.open(&path) {
                Ok(file) => {
                    return Ok(Temporary {
                        path,
                        file: Some(file),
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {} // an older process's
                Err(error) => return Err(error),
            }
        }
    }

    fn fill(
        &mut self,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
        old: Option<&fs::Metadata>,
        sync: bool,
    ) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let mut buffered = BufWriter::with_capacity(BUFFER_BYTES, file);
        let written = write(&mut buffered).and_then(|()| buffered.flush());
        let _ = buffered.into_parts(); // on an error: drop what is left, do not write it once more
        written?;
        if let Some(old) = old {
            keep_owner(file, old);
            // Some file systems have no modes; the content matters more.
            let _ = file.set_permissions(old.permissions());
        }
        if sync { file.sync_all() } else { Ok(()) }
    }

    fn rename_to(mut self, target: &Path, sync: bool) -> io::Result<()> {
        self.file = None; // Windows renames closed files only
        fs::rename(&self.path, target)?;
        self.path = PathBuf::new();
        #[cfg(unix)]
        if sync {
            File::open(folder_of(target))?.sync_all()?;
        }
        #[cfg(not(unix))]
        let _ = sync;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.file = None;
        if !self.path.as_os_str().is_empty() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Gives the new file the old one's owner and group, where the system lets us.
#[cfg(unix)]
fn keep_owner(file: &File, old: &fs::Metadata) {
    use std::os::unix::fs::{MetadataExt as _, fchown};
    let differs = file
        .metadata()
        .is_ok_and(|new| (new.uid(), new.gid()) != (old.uid(), old.gid()));
    if differs {
        let _ = fchown(file, Some(old.uid()), Some(old.gid()));
    }
}

#[cfg(not(unix))]
fn keep_owner(_: &File, _: &fs::Metadata) {}
