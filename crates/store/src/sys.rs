//! The system calls that writing needs, and what to do where a system or file system lacks them.
//!
//! Every call names the path it works for, so that tests can let it fail as some file systems do.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Bytes that are copied at a time where the kernel cannot copy by itself.
const COPY_BYTES: u64 = 1024 * 1024;

/// What file systems share is a multiple of this (Btrfs, XFS and others by default).
#[cfg(target_os = "linux")]
const SHARED_BYTES: u64 = 4096;

/// A call that can be made to fail in tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    CreateUnnamed,
    Link,
    Rename,
    Allocate,
    Write,
    Sync,
    Clone,
    CopyRange,
    Lock,
    Direct,
    Pass,
    Room,
    Remove,
    SetLength,
}

/// The error a test asks for; never one outside tests.
fn fault(call: Call, at: &Path) -> io::Result<()> {
    #[cfg(test)]
    return faults::next(call, at);
    #[cfg(not(test))]
    {
        let _ = (call, at);
        Ok(())
    }
}

/// Whether an error means "this file system does not do that", as opposed to "not this time".
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    #[cfg(target_os = "linux")]
    if let Some(errno) = rustix::io::Errno::from_io_error(error) {
        use rustix::io::Errno;
        return matches!(
            errno,
            Errno::NOSYS
                | Errno::OPNOTSUPP
                | Errno::PERM
                | Errno::XDEV
                | Errno::INVAL
                | Errno::NOTTY
        );
    }
    matches!(
        error.kind(),
        io::ErrorKind::Unsupported | io::ErrorKind::CrossesDevices | io::ErrorKind::InvalidInput
    )
}

/// Whether a failed rename says that the target can never be renamed to: the file system has no
/// rename, or the target is a mount point of its own (a file mounted into a container).
pub(crate) fn cannot_rename(error: &io::Error) -> bool {
    is_unsupported(error) || error.kind() == io::ErrorKind::ResourceBusy
}

/// A file without a name in `folder`: it vanishes with the process unless [`link`] names it.
/// `None` where there is no such thing.
pub(crate) fn create_unnamed(folder: &Path, mode: u32, at: &Path) -> Option<File> {
    fault(Call::CreateUnnamed, at).ok()?;
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{Mode, OFlags};
        if !Path::new("/proc/self/fd").exists() {
            return None; // it could not be named later
        }
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::open(folder, flags, Mode::from_bits_truncate(mode))
            .ok()
            .map(File::from)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (folder, mode);
        None
    }
}

/// Gives an unnamed file its name; [`io::ErrorKind::AlreadyExists`] if that is taken.
pub(crate) fn link(file: &File, path: &Path) -> io::Result<()> {
    fault(Call::Link, path)?;
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd as _;
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
        Ok(rustix::fs::linkat(
            rustix::fs::CWD,
            own,
            rustix::fs::CWD,
            path,
            follow,
        )?)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, path);
        Err(io::ErrorKind::Unsupported.into())
    }
}

pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fault(Call::Rename, to)?;
    fs::rename(from, to)
}

/// What to do where there is no room.
fn advice(kind: io::ErrorKind) -> Option<&'static str> {
    match kind {
        io::ErrorKind::StorageFull => Some("free some space there, or write elsewhere"),
        io::ErrorKind::FileTooLarge => Some(
            "raise the limit on the size of files (`ulimit -f`), or write to a file system that takes larger ones",
        ),
        io::ErrorKind::QuotaExceeded => Some("free some of your quota, or write elsewhere"),
        _ => None,
    }
}

/// Reserves room for a file of `byte_count` bytes, so that a full disk shows before the first byte
/// is written and the blocks lie together. Where that cannot be done nothing happens.
pub(crate) fn allocate(file: &File, byte_count: u64, at: &Path) -> io::Result<()> {
    if byte_count == 0 {
        return Ok(());
    }
    #[cfg(target_os = "linux")]
    let done = fault(Call::Allocate, at).and_then(|()| {
        let flags = rustix::fs::FallocateFlags::empty();
        Ok(rustix::fs::fallocate(file, flags, 0, byte_count)?)
    });
    #[cfg(not(target_os = "linux"))]
    let done = {
        let _ = file;
        fault(Call::Allocate, at)
    };
    match done {
        Err(error) if is_unsupported(&error) => Ok(()),
        Err(error) => Err(match advice(error.kind()) {
            Some(advice) => {
                let what = format!("{error}: {byte_count} bytes are needed; {advice}");
                io::Error::new(error.kind(), what)
            }
            None => error,
        }),
        done => done,
    }
}

pub(crate) fn remove(path: &Path) -> io::Result<()> {
    fault(Call::Remove, path)?;
    fs::remove_file(path)
}

pub(crate) fn set_length(file: &File, byte_count: u64, at: &Path) -> io::Result<()> {
    fault(Call::SetLength, at)?;
    file.set_len(byte_count)
}

/// What tests make of a write: an error, or half of it and the end of the process.
fn write_by(
    at: &Path,
    bytes: &[u8],
    offset: u64,
    write: impl FnOnce(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    fault(Call::Write, at)?;
    #[cfg(test)]
    let bytes = faults::torn(bytes, offset, at);
    let _ = offset;
    let written = write(bytes);
    #[cfg(test)]
    faults::die_if_torn();
    written
}

/// Writes all of `bytes` at `offset`; from any thread.
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64, at: &Path) -> io::Result<()> {
    write_by(at, bytes, offset, |bytes| {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::write_all_at(file, bytes, offset);
        #[cfg(windows)]
        {
            use std::os::windows::fs::FileExt as _;
            let (mut bytes, mut offset) = (bytes, offset);
            while !bytes.is_empty() {
                match file.seek_write(bytes, offset) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => (bytes, offset) = (&bytes[count..], offset + count as u64),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        }
    })
}

/// As [`write_at`], through the page cache but not to stay there: the disk gets the bytes soon, and when it has
/// them their memory is free again (`RWF_DONTCACHE`; Linux 6.14, some file systems). `false`, and nothing is
/// written, where there is no such thing.
pub(crate) fn write_passing_at(
    file: &File,
    bytes: &[u8],
    offset: u64,
    at: &Path,
) -> io::Result<bool> {
    if fault(Call::Pass, at).is_err() {
        return Ok(false);
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::io::{Errno, ReadWriteFlags, pwritev2};
        let dont_cache = ReadWriteFlags::from_bits_retain(0x80); // include/uapi/linux/fs.h
        let mut can = true;
        write_by(at, bytes, offset, |bytes| {
            let mut done = 0;
            while can && done < bytes.len() {
                let rest = [io::IoSlice::new(&bytes[done..])];
                match pwritev2(file, &rest, offset + done as u64, dont_cache) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => done += count,
                    Err(Errno::INTR) => {}
                    Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) if done == 0 => can = false,
                    Err(errno) => return Err(errno.into()),
                }
            }
            Ok(())
        })?;
        Ok(can)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, bytes, offset);
        Ok(false)
    }
}

/// How many more bytes the page cache may hold for the disk before whoever writes is held up: four fifths of the middle between the
/// kernel's two thresholds (Linux, mm/page-writeback.c, `dirty_freerun_ceiling`), less what it holds now. No limit where nobody says.
pub(crate) fn unwritten_room(at: &Path) -> u64 {
    if fault(Call::Room, at).is_err() {
        return 0;
    }
    #[cfg(target_os = "linux")]
    {
        let numbers = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
        let pages = |name: &str| -> Option<u64> {
            let line = numbers
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line?.parse().ok()
        };
        let room = || {
            let waiting = pages("nr_dirty")? + pages("nr_writeback")?;
            let held_up = pages("nr_dirty_threshold")? + pages("nr_dirty_background_threshold")?;
            Some((held_up / 2 * 4 / 5).saturating_sub(waiting))
        };
        let page_bytes = rustix::param::page_size() as u64;
        room().map_or(u64::MAX, |pages| pages.saturating_mul(page_bytes))
    }
    #[cfg(not(target_os = "linux"))]
    u64::MAX
}

/// Fills `bytes` from `offset` on.
pub(crate) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    {
        std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
    }
    #[cfg(windows)]
    {
        use std::os::windows::fs::FileExt as _;
        let (mut done, mut offset) = (0, offset);
        while done < bytes.len() {
            match file.seek_read(&mut bytes[done..], offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => (done, offset) = (done + count, offset + count as u64),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What the system knows of an open file that changes when someone writes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) file_bytes: u64,
    modified: Option<std::time::SystemTime>,
    /// Seconds and nanoseconds of the last change of content or of what is said about the file, and how many names, which
    /// mode and owner it has: where these differ, they are the reason for another time.
    changed: (i64, i64),
    said: [u64; 4],
}

impl Stamp {
    /// As the file is now.
    pub(crate) fn of(file: &File) -> io::Result<Stamp> {
        let metadata = file.metadata()?;
        #[cfg(unix)]
        let (changed, said) = {
            use std::os::unix::fs::MetadataExt as _;
            let said = [
                metadata.nlink(),
                metadata.mode().into(),
                metadata.uid().into(),
                metadata.gid().into(),
            ];
            ((metadata.ctime(), metadata.ctime_nsec()), said)
        };
        #[cfg(not(unix))]
        let (changed, said) = ((0, 0), [0; 4]);
        Ok(Stamp {
            file_bytes: metadata.len(),
            modified: metadata.modified().ok(),
            changed,
            said,
        })
    }

    /// How a file shows that it was written to since this stamp was made, or `None` if it does not.
    pub(crate) fn difference(&self, now: &Stamp) -> Option<String> {
        if self.file_bytes != now.file_bytes {
            let (then, now) = (self.file_bytes, now.file_bytes);
            return Some(format!("it had {then} bytes and now has {now}"));
        }
        if self.modified != now.modified {
            return Some("its time of modification is another one".to_owned());
        }
        // Renaming a name, another link or another mode change no content.
        if self.changed != now.changed && self.said == now.said {
            return Some("its time of change is another one".to_owned());
        }
        None
    }
}

/// Waits until the file's bytes are on the disk.
pub(crate) fn sync(file: &File, at: &Path) -> io::Result<()> {
    fault(Call::Sync, at)?;
    file.sync_all()
}

/// Waits until a folder's names are on the disk. Some file systems refuse; they need it not.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    match fault(Call::Sync, folder).and_then(|()| File::open(folder)?.sync_all()) {
        Err(error) if is_unsupported(&error) => {}
        done => return done,
    }
    let _ = folder;
    Ok(())
}

/// Makes `to` share all blocks of `from`, so that a copy costs no time and no room: Btrfs, XFS, …
/// `false` where that is not possible.
pub(crate) fn clone(from: &File, to: &File, at: &Path) -> bool {
    if fault(Call::Clone, at).is_err() {
        return false;
    }
    #[cfg(target_os = "linux")]
    {
        rustix::fs::ioctl_ficlone(to, from).is_ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (from, to);
        false
    }
}

/// Copies a range from file to file: in the kernel (sharing blocks where both sides allow) or,
/// where it cannot, through a buffer. `UnexpectedEof` if `from` ends first.
pub(crate) fn copy_range(
    from: (&File, u64),
    to: (&File, u64),
    byte_count: u64,
    at: &Path,
) -> io::Result<()> {
    let done = copy_in_kernel(from, to, byte_count, at)?;
    let (mut from_offset, mut to_offset) = (from.1 + done, to.1 + done);
    let mut left = byte_count - done;
    let mut buffer = vec![0; left.min(COPY_BYTES) as usize];
    while left > 0 {
        let piece = &mut buffer[..left.min(COPY_BYTES) as usize];
        read_at(from.0, piece, from_offset)?;
        write_at(to.0, piece, to_offset, at)?;
        let count = piece.len() as u64;
        (from_offset, to_offset, left) = (from_offset + count, to_offset + count, left - count);
    }
    Ok(())
}

/// Copies as much as the kernel does; how much that was.
#[cfg(target_os = "linux")]
fn copy_in_kernel(
    from: (&File, u64),
    to: (&File, u64),
    byte_count: u64,
    at: &Path,
) -> io::Result<u64> {
    let (mut from_offset, mut to_offset) = (from.1, to.1);
    while from_offset - from.1 < byte_count {
        let mut left = (byte_count - (from_offset - from.1)).min(1 << 30);
        // Whole blocks can be shared, so what stands before the first goes alone.
        let odd = from_offset % SHARED_BYTES;
        if odd != 0 && odd == to_offset % SHARED_BYTES {
            left = left.min(SHARED_BYTES - odd);
        }
        let left = left as usize;
        let copied = fault(Call::CopyRange, at).and_then(|()| {
            let (from_at, to_at) = (Some(&mut from_offset), Some(&mut to_offset));
            Ok(rustix::fs::copy_file_range(
                from.0, from_at, to.0, to_at, left,
            )?)
        });
        match copied {
            Ok(0) => break, // at the end, or a file system that says so
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_unsupported(&error) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(from_offset - from.1)
}

#[cfg(not(target_os = "linux"))]
fn copy_in_kernel(_: (&File, u64), _: (&File, u64), _: u64, at: &Path) -> io::Result<u64> {
    fault(Call::CopyRange, at).map_or(Ok(0), |()| Ok(0))
}

/// Locks a file against other writers of ours for as long as `file` is open; `Ok(false)` if
/// another one holds it.
pub(crate) fn try_lock(file: &File, at: &Path) -> io::Result<bool> {
    fault(Call::Lock, at)?;
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Turns writing around the page cache on or off; whether the file system took it.
pub(crate) fn set_direct(file: &File, direct: bool, at: &Path) -> bool {
    if fault(Call::Direct, at).is_err() {
        return false;
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
        let Ok(mut flags) = fcntl_getfl(file) else {
            return false;
        };
        flags.set(OFlags::DIRECT, direct);
        fcntl_setfl(file, flags).is_ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, direct);
        false
    }
}

/// What a file that is opened around the page cache is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direct {
    Reading,
    Writing,
}

/// The same file once more, to be read or written around the page cache; `None` where that cannot be done.
pub(crate) fn open_direct(file: &File, direct: Direct, at: &Path) -> Option<File> {
    fault(Call::Direct, at).ok()?;
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{Mode, OFlags};
        use std::os::fd::AsRawFd as _;
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        let access = match direct {
            Direct::Reading => OFlags::RDONLY,
            Direct::Writing => OFlags::WRONLY,
        };
        let flags = access | OFlags::DIRECT | OFlags::CLOEXEC;
        rustix::fs::open(own, flags, Mode::empty())
            .ok()
            .map(File::from)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, direct);
        None
    }
}

/// Says that a range of a file will be read soon: the disk starts now, several requests at the same time.
/// Advice; where there is no such call, reading takes longer.
pub(crate) fn will_read(file: &File, start: u64, byte_count: u64) {
    #[cfg(target_os = "linux")]
    for at in (start..start.saturating_add(byte_count)).step_by(ANNOUNCED_BYTES as usize) {
        let len = ANNOUNCED_BYTES.min(start + byte_count - at);
        let advice = rustix::fs::Advice::WillNeed;
        let _ = rustix::fs::fadvise(file, at, std::num::NonZeroU64::new(len), advice);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, start, byte_count);
}

/// The kernel takes no more than a disk's largest request of one announcement (Linux, mm/readahead.c, `force_page_cache_ra`).
#[cfg(target_os = "linux")]
const ANNOUNCED_BYTES: u64 = 1024 * 1024;

/// Errors on request: what other file systems say, said here. And death at any call.
#[cfg(test)]
pub(crate) mod faults {
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
    use std::sync::{LazyLock, Mutex};

    use super::Call;

    struct Fault {
        below: PathBuf,
        call: Call,
        /// Calls that still succeed.
        spare: usize,
        /// Calls that fail then.
        count: usize,
        errno: i32,
    }

    static FAULTS: Mutex<Vec<Fault>> = Mutex::new(Vec::new());

    /// Lets calls for files in a folder fail until it is dropped.
    pub(crate) struct Injected(PathBuf);

    /// All calls after the first `spare` ones fail with `errno`.
    pub(crate) fn inject(folder: &Path, call: Call, spare: usize, errno: i32) -> Injected {
        inject_some(folder, call, spare, usize::MAX, errno)
    }

    /// After the first `spare` ones, `count` calls fail.
    pub(crate) fn inject_some(
        folder: &Path,
        call: Call,
        spare: usize,
        count: usize,
        errno: i32,
    ) -> Injected {
        let below = folder.to_owned();
        FAULTS.lock().unwrap().push(Fault {
            below: below.clone(),
            call,
            spare,
            count,
            errno,
        });
        Injected(below)
    }

    impl Drop for Injected {
        fn drop(&mut self) {
            FAULTS.lock().unwrap().retain(|fault| fault.below != self.0);
        }
    }

    /// The variables that tell a child process at which call for which folder to die.
    pub(crate) const DIE_AT: &str = "SAFELIGHT_TEST_DIE_AT";
    pub(crate) const DIE_BELOW: &str = "SAFELIGHT_TEST_DIE_BELOW";

    /// Calls until death; `None` in processes that live on.
    static LEFT: LazyLock<Option<(AtomicI64, PathBuf)>> = LazyLock::new(|| {
        let count = std::env::var(DIE_AT).ok()?.parse().ok()?;
        Some((AtomicI64::new(count), std::env::var_os(DIE_BELOW)?.into()))
    });

    /// Dies at every call that counts down to 0. Writes count twice: before, and in the middle.
    fn count_down(at: &Path) -> bool {
        let Some((left, below)) = &*LEFT else {
            return false;
        };
        at.starts_with(below) && left.fetch_sub(1, Ordering::SeqCst) == 0
    }

    /// What of a write reaches the file: all of it, or what a killed process leaves of it. The kernel
    /// stops at the end of a page only.
    pub(super) fn torn<'b>(bytes: &'b [u8], offset: u64, at: &Path) -> &'b [u8] {
        if !count_down(at) {
            return bytes;
        }
        let half = (offset + bytes.len() as u64 / 2 + 1).next_multiple_of(4096) - offset;
        DYING.store(true, Ordering::SeqCst);
        &bytes[..bytes.len().min(half as usize)]
    }

    /// Called behind each write.
    pub(super) fn die_if_torn() {
        if DYING.load(Ordering::SeqCst) {
            std::process::abort();
        }
    }

    static DYING: AtomicBool = AtomicBool::new(false);

    pub(super) fn next(call: Call, at: &Path) -> io::Result<()> {
        if count_down(at) {
            std::process::abort(); // as good as `kill -9`: nothing is cleaned up
        }
        let mut faults = FAULTS.lock().unwrap();
        let matching = |fault: &&mut Fault| fault.call == call && at.starts_with(&fault.below);
        for fault in faults.iter_mut().filter(matching) {
            if fault.spare > 0 {
                fault.spare -= 1;
            } else if fault.count > 0 {
                fault.count -= 1;
                return Err(io::Error::from_raw_os_error(fault.errno));
            }
        }
        Ok(())
    }
}
