//! Replacing a file so that every reader sees the old one or the new one, never a part.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use safelight_format::shown;

use crate::bulk;
use crate::error::{StoreError, path_text};
use crate::sys;

/// As many links to links as Linux follows.
const LINKS_MAX: usize = 40;

/// Bytes collected before they go to the file.
const BUFFER_BYTES: usize = 1024 * 1024;

/// How a finished file takes its place.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Publish {
    /// Wait for the disk.
    pub(crate) sync: bool,
    /// Fail rather than write over the target where the file system cannot rename.
    pub(crate) only_atomic: bool,
}

/// Writes a file's new content beside it, then renames it into place.
///
/// A new file gets the mode every program's new files get (the umask decides); a replaced one
/// keeps its mode, its extended attributes, and its owner where the system lets us. A symbolic
/// link stays and its target is replaced. Whoever has the old file open or mapped keeps seeing the
/// old one. With `sync`, the bytes are on the disk before the rename, and the rename before
/// this returns. If anything fails nothing has changed, and nothing is left behind; on Linux even
/// a killed process leaves nothing, because the new file has no name until it is complete.
///
/// Some file systems (object stores mounted as folders, single files mounted into containers)
/// cannot rename over a file. There the complete new content is copied over the target; if that
/// fails half way, the error names the file that holds it.
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
    let temporary = Temporary::for_target(path)?;
    let publish = Publish {
        sync,
        ..Publish::default()
    };
    bulk::write_stream(&temporary.file, &temporary.target, write)
        .and_then(|()| temporary.publish(publish))
        .map_err(StoreError::io("write", path))
}

/// As [`replace_file`], for formats whose writers must go back to fill something in.
///
/// # Errors
/// As [`replace_file`].
pub fn replace_file_seek(
    path: &Path,
    sync: bool,
    write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> Result<(), StoreError> {
    let temporary = Temporary::for_target(path)?;
    let publish = Publish {
        sync,
        ..Publish::default()
    };
    let mut buffered = BufWriter::with_capacity(BUFFER_BYTES, &temporary.file);
    let written = write(&mut buffered).and_then(|()| buffered.flush());
    let _ = buffered.into_parts(); // on an error: drop what is left, do not write it once more
    written
        .and_then(|()| temporary.publish(publish))
        .map_err(StoreError::io("write", path))
}

/// Gives a finished file of our own another name; where the file system cannot rename, by a copy.
pub(crate) fn rename_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    match sys::rename(from, to) {
        Err(error) if sys::cannot_rename(&error) => {
            fs::copy(from, to)?;
            sys::remove(from)?;
        }
        renamed => renamed?,
    }
    crate::edit::forget_record(to);
    Ok(())
}

/// Where a chain of symbolic links leads; there need not be a file yet.
pub(crate) fn follow_links(path: &Path) -> io::Result<PathBuf> {
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
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// A file of our own in the target's folder, to be filled and published. Gone when dropped.
pub(crate) struct Temporary {
    // Closed before `name` is deleted: Windows wants that.
    pub(crate) file: File,
    name: TemporaryName,
    /// What it will replace, links followed.
    pub(crate) target: PathBuf,
    old: Option<fs::Metadata>,
}

/// Deletes the file of that name when dropped; empty if there is none.
struct TemporaryName(PathBuf);

impl Drop for TemporaryName {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            let _ = fs::remove_file(&self.0);
        }
    }
}

impl Temporary {
    /// Creates it. If it will replace a file, nobody may read it who could not read that.
    pub(crate) fn for_target(path: &Path) -> Result<Temporary, StoreError> {
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
        if target.file_name().is_none() {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
            return Err(StoreError::io("write", path)(error));
        }
        let mode = mode_for(old.as_ref());
        let (file, name) = match sys::create_unnamed(folder_of(&target), mode, &target) {
            Some(file) => (file, TemporaryName(PathBuf::new())),
            None => create_named(&target, mode)
                .map_err(|error| blame_folder(error, &target))
                .map_err(StoreError::io("write", path))?,
        };
        Ok(Temporary {
            file,
            name,
            target,
            old,
        })
    }

    /// Puts the file into the target's place.
    pub(crate) fn publish(self, how: Publish) -> io::Result<()> {
        let Temporary {
            file,
            mut name,
            target,
            old,
        } = self;
        if let Some(old) = &old {
            keep_owner(&file, old);
            keep_attributes(&file, &target);
            // Some file systems have no modes; the content matters more.
            let _ = file.set_permissions(old.permissions());
        }
        if how.sync {
            sys::sync(&file, &target)?;
        }
        if name.0.as_os_str().is_empty() {
            if old.is_none() && sys::link(&file, &target).is_ok() {
                return finish(&target, how);
            }
            name = name_it(&file, &target)?;
        }
        drop(file); // Windows renames closed files only
        match sys::rename(&name.0, &target) {
            Ok(()) => name.0 = PathBuf::new(),
            Err(error) if !how.only_atomic && sys::cannot_rename(&error) => {
                copy_over(&mut name, &target, old.is_some(), how.sync)?;
            }
            Err(error) => return Err(error),
        }
        finish(&target, how)
    }
}

fn finish(target: &Path, how: Publish) -> io::Result<()> {
    crate::edit::forget_record(target); // of an edit that the replaced file was in the middle of
    if how.sync {
        sys::sync_folder(folder_of(target))?;
    }
    Ok(())
}

/// The mode that the temporary file is created with.
fn mode_for(old: Option<&fs::Metadata>) -> u32 {
    #[cfg(unix)]
    if let Some(old) = old {
        use std::os::unix::fs::MetadataExt as _;
        return old.mode() & 0o777;
    }
    let _ = old;
    0o666
}

/// Tries names in the target's folder until `make` finds one that is free.
fn under_free_name<T>(
    target: &Path,
    mut make: impl FnMut(&Path) -> io::Result<T>,
) -> io::Result<(T, TemporaryName)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = folder_of(target).join(format!(".safelight-{}-{count}.tmp", std::process::id()));
        match make(&path) {
            Ok(made) => return Ok((made, TemporaryName(path))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {} // an older process's
            Err(error) => return Err(error),
        }
    }
}

/// The file itself may well be writable: it is its folder that is not, or is not there.
fn blame_folder(error: io::Error, target: &Path) -> io::Error {
    let folder = path_text(folder_of(target));
    let folder = shown(&folder);
    let message = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => format!(
            "what is new is written beside the file first, and no file can be made in its folder {folder}: {error}"
        ),
        io::ErrorKind::NotFound if !folder_of(target).exists() => {
            format!("its folder {folder} does not exist; make it first, or write elsewhere")
        }
        _ => return error,
    };
    io::Error::new(error.kind(), message)
}

/// Creates a file that was not there before.
fn create_named(target: &Path, mode: u32) -> io::Result<(File, TemporaryName)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    under_free_name(target, |path| options.open(path))
}

/// Names an unnamed file; where that does not work, a named copy of it.
fn name_it(file: &File, target: &Path) -> io::Result<TemporaryName> {
    if let Ok(((), name)) = under_free_name(target, |path| sys::link(file, path)) {
        return Ok(name);
    }
    let metadata = file.metadata()?;
    let (named, name) = create_named(target, mode_for(Some(&metadata)))?;
    sys::copy_range((file, 0), (&named, 0), metadata.len(), target)?;
    keep_owner(&named, &metadata);
    named.set_permissions(metadata.permissions())?;
    Ok(name)
}

/// Copies a finished file over its target, where renaming is not possible.
fn copy_over(name: &mut TemporaryName, target: &Path, had_old: bool, sync: bool) -> io::Result<()> {
    let copy = || -> io::Result<()> {
        let from = File::open(&name.0)?;
        let byte_count = from.metadata()?.len();
        let to = File::create(target)?;
        sys::copy_range((&from, 0), (&to, 0), byte_count, target)?;
        if sync { sys::sync(&to, target) } else { Ok(()) }
    };
    let Err(error) = copy() else { return Ok(()) };
    if !had_old {
        let _ = fs::remove_file(target);
        return Err(error);
    }
    let kept = std::mem::take(&mut name.0);
    Err(io::Error::new(
        error.kind(),
        format!(
            "{error}; this file system cannot rename, and copying over the file failed half way: \
             the complete new content is in {}",
            kept.display()
        ),
    ))
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

/// Gives the new file the old one's extended attributes (labels, access lists, notes of a user),
/// as far as the system lets us.
#[cfg(target_os = "linux")]
fn keep_attributes(file: &File, target: &Path) {
    use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
    let Ok(old) = File::open(target) else { return };
    let mut names = vec![0u8; 64 * 1024]; // the kernel's own limit for names, and for each value
    let mut value = Vec::new();
    let Ok(names_bytes) = flistxattr(&old, &mut names[..]) else {
        return;
    };
    for name in names[..names_bytes].split_inclusive(|&byte| byte == 0) {
        let Ok(name) = std::ffi::CStr::from_bytes_with_nul(name) else {
            continue;
        };
        value.resize(64 * 1024, 0);
        if let Ok(value_bytes) = fgetxattr(&old, name, &mut value[..]) {
            let _ = fsetxattr(file, name, &value[..value_bytes], XattrFlags::empty());
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn keep_attributes(_: &File, _: &Path) {}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::sys::{Call, faults};
    use crate::testing::Folder;

    const EPERM: i32 = 1;
    const EIO: i32 = 5;
    const EBUSY: i32 = 16;
    const EXDEV: i32 = 18;
    const EINVAL: i32 = 22;
    const ENOSPC: i32 = 28;
    const ENOSYS: i32 = 38;
    const EOPNOTSUPP: i32 = 95;

    fn write(path: &Path, text: &str) -> Result<(), StoreError> {
        replace_file(path, true, |file| file.write_all(text.as_bytes()))
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn file_systems_that_lack_something() {
        let lists = [
            vec![],
            vec![(Call::CreateUnnamed, EOPNOTSUPP)],
            vec![(Call::Link, ENOSYS)],
            vec![(Call::Link, EPERM)],
            vec![(Call::CreateUnnamed, ENOSYS), (Call::Rename, ENOSYS)],
            vec![(Call::CreateUnnamed, ENOSYS), (Call::Rename, EOPNOTSUPP)],
            vec![(Call::CreateUnnamed, ENOSYS), (Call::Rename, EPERM)],
            vec![(Call::CreateUnnamed, ENOSYS), (Call::Rename, EXDEV)],
            vec![(Call::CreateUnnamed, ENOSYS), (Call::Rename, EINVAL)],
            vec![(Call::Rename, EBUSY)],
            vec![
                (Call::Rename, EXDEV),
                (Call::Link, EPERM),
                (Call::CopyRange, EXDEV),
            ],
            vec![(Call::Rename, ENOSYS), (Call::CopyRange, ENOSYS)],
        ];
        for calls in lists {
            let folder = Folder::new("lacking");
            let path = folder.join("file");
            let lacking = calls
                .iter()
                .map(|&(call, errno)| faults::inject(folder.path(), call, 0, errno));
            let lacking: Vec<_> = lacking.collect();
            for text in ["first", "second and longer", "3"] {
                write(&path, text).unwrap_or_else(|error| panic!("{calls:?}: {error}"));
                assert_eq!(read(&path), text, "{calls:?}");
                assert_eq!(folder.list(), ["file"], "{calls:?}");
            }
            drop(lacking);
        }
    }

    #[test]
    fn whoever_wants_a_rename_gets_one_or_an_error() {
        let folder = Folder::new("only-atomic");
        let path = folder.join("file");
        let options = crate::SaveOptions {
            only_atomic: true,
            ..crate::SaveOptions::default()
        };
        write(&path, "old").unwrap();
        let lacking = faults::inject(folder.path(), Call::Rename, 0, ENOSYS);
        let error = crate::save(&path, &[], None, &options).unwrap_err();
        drop(lacking);
        assert!(
            error.to_string().contains("Function not implemented"),
            "{error}"
        );
        assert_eq!((read(&path).as_str(), folder.list().len()), ("old", 1));
        crate::save(&path, &[], None, &options).unwrap();
    }

    #[test]
    fn what_fails_changes_nothing() {
        for (call, errno) in [
            (Call::Rename, ENOSPC),
            (Call::Rename, EIO),
            (Call::Sync, EIO),
            (Call::Sync, ENOSPC),
        ] {
            for unnamed in [true, false] {
                let folder = Folder::new("failing");
                let path = folder.join("file");
                write(&path, "old").unwrap();
                let named = (!unnamed)
                    .then(|| faults::inject(folder.path(), Call::CreateUnnamed, 0, ENOSYS));
                let failing = faults::inject(folder.path(), call, 0, errno);
                let error = write(&path, "new").unwrap_err();
                drop((named, failing));
                assert!(
                    error.to_string().contains(&format!("os error {errno}")),
                    "{error}"
                );
                assert_eq!(read(&path), "old");
                assert_eq!(folder.list(), ["file"], "{call:?}");
            }
        }
    }

    #[test]
    fn a_disk_without_room_is_noticed_before_anything_is_written() {
        let folder = Folder::new("no-room");
        let path = folder.join("file");
        write(&path, "old").unwrap();
        let bytes = [1u8; 10];
        let tensor = safelight_format::TensorView {
            name: "a",
            dtype: safelight_format::Dtype::U8,
            shape: &[10],
            bytes: &bytes,
        };
        let full = faults::inject(folder.path(), Call::Allocate, 0, ENOSPC);
        let error = crate::save(&path, &[tensor], None, &crate::SaveOptions::default());
        drop(full);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("No space left on device"), "{error}");
        assert_eq!((read(&path).as_str(), folder.list().len()), ("old", 1));
        let unable = faults::inject(folder.path(), Call::Allocate, 0, EOPNOTSUPP);
        crate::save(&path, &[tensor], None, &crate::SaveOptions::default()).unwrap();
        drop(unable);
    }

    #[test]
    fn a_copy_over_that_fails_says_where_the_content_is() {
        let folder = Folder::new("copy-over");
        let path = folder.join("file");
        let faults = || {
            [
                faults::inject(folder.path(), Call::CreateUnnamed, 0, ENOSYS),
                faults::inject(folder.path(), Call::Rename, 0, ENOSYS),
                faults::inject(folder.path(), Call::CopyRange, 0, ENOSPC),
            ]
        };
        let failing = faults();
        assert!(write(&path, "new").is_err());
        drop(failing);
        assert!(folder.list().is_empty());
        write(&path, "old").unwrap();
        let failing = faults();
        let error = write(&path, "new").unwrap_err().to_string();
        drop(failing);
        let (_, kept) = error.split_once("the complete new content is in ").unwrap();
        assert_eq!(read(Path::new(kept)), "new");
    }

    #[test]
    fn attributes_stay() {
        let folder = Folder::new("attributes");
        let path = folder.join("file");
        write(&path, "old").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        if let Err(error) = rustix::fs::setxattr(&path, "user.note", b"kept", flags) {
            println!(
                "SKIPPED: no extended attributes in {}: {error}",
                folder.path().display()
            );
            return;
        }
        write(&path, "new").unwrap();
        let mut value = [0u8; 16];
        let count = rustix::fs::getxattr(&path, "user.note", &mut value[..]).unwrap();
        assert_eq!(
            (&value[..count], read(&path).as_str()),
            (&b"kept"[..], "new")
        );
    }
}
