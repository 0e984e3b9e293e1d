//! How a file is best read: by what file system it lies on, and whether its bytes are in memory already.
//!
//! | file system | pages cached | threads | why |
//! |---|---|---|---|
//! | network or FUSE | any | 16 | each read waits for an answer from elsewhere; many wait at the same time |
//! | disk | no | at least 4 | a disk is fastest with several requests under way, more than there may be cores; large files are loaded around the page cache, straight into their place |
//! | disk | yes | one a core | this is copying, and cores copy |
//! | tmpfs | always | one a core | as above |
//! | unknown, or no file | | one a core | |
//!
//! A memory map is never chosen: its safety rests on a promise that only the caller can make, see [`crate::map`].

use std::num::NonZeroUsize;
use std::thread;

use crate::source::{FileSource, Source};

/// How whole files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// By file system and cache state: the table at the head of this module's source, in short
    /// 16 threads over a network, at least 4 for a disk, else one for each core.
    #[default]
    Auto,
    /// One read after the other.
    Sequential,
    /// Positioned reads of 8 MiB by so many threads.
    Parallel(NonZeroUsize),
}

/// More cores than this don't make memory faster.
const CORES_MAX: usize = 8;
const NETWORK_THREADS: usize = 16;
const DISK_THREADS: usize = 4;

impl Backend {
    /// How many threads should read a file of which that was seen.
    pub(crate) fn threads(self, seen: Seen) -> usize {
        match self {
            Backend::Sequential => 1,
            Backend::Parallel(threads) => threads.get(),
            Backend::Auto => {
                let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
                choose(cores.min(CORES_MAX), seen)
            }
        }
    }
}

/// What matters about where a file lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Network,
    Uncached,
    Cached,
    Unknown,
}

fn choose(cores: usize, seen: Seen) -> usize {
    match seen {
        Seen::Network => NETWORK_THREADS,
        Seen::Uncached => cores.max(DISK_THREADS),
        Seen::Cached | Seen::Unknown => cores,
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn look(_: &FileSource) -> Seen {
    Seen::Unknown
}

/// Asks the system about a file: a few calls, which read nothing.
#[cfg(target_os = "linux")]
pub(crate) fn look(source: &FileSource) -> Seen {
    let (Source::File(file) | Source::Mapped(_, file)) = &source.source else {
        return Seen::Unknown;
    };
    match rustix::fs::fstatfs(file) {
        // The field's type differs between machines; all magic numbers have 32 bits.
        Ok(system) if is_network(system.f_type as u32) => Seen::Network,
        Ok(_) => cached(file, source.file_bytes),
        Err(_) => Seen::Unknown,
    }
}

/// Magic numbers of file systems whose bytes come from elsewhere, or through a program: NFS, SMB and CIFS, SMB2,
/// FUSE, Lustre, Ceph, GPFS, 9P, AFS, Coda, VirtualBox's and VMware's shared folders (statfs(2), and their drivers).
#[cfg(target_os = "linux")]
fn is_network(magic: u32) -> bool {
    const NETWORK: [u32; 13] = [
        0x6969,
        0x517b,
        0xff53_4d42,
        0xfe53_4d42,
        0x6573_5546,
        0x0bd0_0bd0,
        0x00c3_6400,
        0x4750_4653,
        0x0102_1997,
        0x5346_414f,
        0x7375_7245,
        0x786f_4256,
        0xbacb_acbc,
    ];
    NETWORK.contains(&magic)
}

/// Whether a sample of bytes all over the file can be read without waiting for the disk.
#[cfg(target_os = "linux")]
fn cached(file: &std::fs::File, file_bytes: u64) -> Seen {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};
    const SAMPLES: u64 = 16;
    let mut waiting = 0;
    for sample in 0..SAMPLES {
        let at = (u128::from(file_bytes) * u128::from(sample) / u128::from(SAMPLES)) as u64;
        let mut byte = [0];
        let mut buffers = [std::io::IoSliceMut::new(&mut byte)];
        match preadv2(file, &mut buffers, at, ReadWriteFlags::NOWAIT) {
            Ok(_) => {}
            Err(Errno::AGAIN) => waiting += 1,
            Err(_) => return Seen::Unknown,
        }
    }
    // A few pages may have been dropped from a file that is otherwise there.
    if waiting * 4 > SAMPLES {
        Seen::Uncached
    } else {
        Seen::Cached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_follow_the_table() {
        assert_eq!(choose(2, Seen::Network), 16);
        assert_eq!(choose(2, Seen::Uncached), 4);
        assert_eq!(choose(8, Seen::Uncached), 8);
        assert_eq!(choose(2, Seen::Cached), 2);
        assert_eq!(choose(2, Seen::Unknown), 2);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_just_written_is_cached_and_on_no_network() {
        assert!(is_network(0x6969) && !is_network(0xef53));
        let path = std::env::temp_dir().join(format!("safelight-backend-{}", std::process::id()));
        std::fs::write(&path, vec![1; 200_000]).unwrap();
        let source = FileSource::open(&path).unwrap();
        let seen = look(&source);
        std::fs::remove_file(&path).unwrap();
        // A temporary folder may lie anywhere, but what was written a moment ago is never waited for.
        assert_ne!(seen, Seen::Uncached);
        assert_eq!(Backend::Sequential.threads(seen), 1);
        assert_eq!(Backend::Parallel(NonZeroUsize::MIN).threads(seen), 1);
    }
}
