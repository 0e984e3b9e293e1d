//! Much memory into one file, quickly.
//!
//! Large files can pass through the page cache without staying there, or be written around it, where the
//! file system allows it: from aligned buffers to the disk, several at a time, without first filling memory
//! that the rest of the system wants. Which way is fastest is found out while they are written.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use crate::pace::{Pace, Way};
use crate::sys;

/// Bytes per write. A multiple of every sector and page size there is.
pub(crate) const PIECE_BYTES: usize = 8 * 1024 * 1024;

/// What direct writes must be a multiple of, in memory and in the file.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// Smaller files go through the page cache: they fit, and whoever saved them may read them next.
pub(crate) const DIRECT_BYTES_MIN: u64 = if cfg!(test) { 4 } else { 32 } * PIECE_BYTES as u64;

/// More writers do not make a disk faster.
const THREADS_MAX: usize = 4;

/// After this many bytes a look at the clock says whether the disk keeps up.
pub(crate) const TRIAL_BYTES: u64 = 128 * 1024 * 1024;

/// A disk slower than this is left to the page cache.
pub(crate) const DIRECT_BYTES_PER_SECOND_MIN: f64 = 400e6;

/// Whether the page cache has the bytes of a file that was saved, or loaded into memory of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageCache {
    /// For files of 256 MiB and more: saved ones by whichever way is faster as they are written (through it without staying there, around
    /// it, or through it; their end through it, as much as may wait for the disk before writers are held up), loaded ones
    /// around it if it does not have them yet.
    #[default]
    Auto,
    /// Through it: best if the file is read again soon.
    Keep,
    /// Around it where the file system can.
    Bypass,
}

/// As fast as this, no other way is tried.
const FAST_BYTES_PER_SECOND: f64 = 1.5e9;

/// So much is written one way before the ways are compared.
const STRETCH_BYTES: u64 = if cfg!(test) { 2 } else { 8 } * PIECE_BYTES as u64;

/// Writes the concatenation of `parts` from the start of `file`, which is new. `will_sync` says that someone waits for the disk
/// afterwards: the page cache saves no time then.
pub(crate) fn write(
    file: &File,
    parts: &[&[u8]],
    page_cache: PageCache,
    will_sync: bool,
    at: &Path,
) -> io::Result<()> {
    let text = Text::new(parts);
    let blocks = text.byte_count / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    let (ways, stretch_bytes): (&[Way], u64) = match page_cache {
        PageCache::Auto if text.byte_count >= DIRECT_BYTES_MIN => {
            (&[Way::Passing, Way::Direct, Way::Cached], STRETCH_BYTES)
        }
        PageCache::Auto | PageCache::Keep => (&[Way::Cached], u64::MAX),
        PageCache::Bypass => (&[Way::Direct, Way::Cached], u64::MAX),
    };
    let fast = match will_sync {
        true => DIRECT_BYTES_PER_SECOND_MIN,
        false => FAST_BYTES_PER_SECOND,
    };
    let (mut pace, mut done) = (Pace::new(fast, ways), 0);
    let mut may_wait = page_cache == PageCache::Auto && !will_sync;
    while done < blocks {
        if may_wait && text.byte_count - done <= sys::unwritten_room(at) {
            pace.prefer(Way::Cached);
            may_wait = false;
        }
        let bytes = done..done.saturating_add(stretch_bytes).min(blocks);
        let (start, way) = (Instant::now(), pace.way());
        let written = match way {
            Way::Direct => around(file, &text, bytes.clone(), at)?,
            Way::Passing | Way::Cached => {
                write_through(file, &text, bytes.clone(), way == Way::Passing, at)?
            }
        };
        if written {
            done = bytes.end;
            pace.took(way, bytes.end - bytes.start, start.elapsed().as_secs_f64());
        } else {
            pace.cannot(way);
        }
    }
    write_through(file, &text, done..text.byte_count, false, at)?;
    Ok(())
}

/// Some bytes of it, whole blocks, around the page cache; `false` if the file system can't, or takes the flag and not the writes.
fn around(file: &File, text: &Text<'_>, bytes: Range<u64>, at: &Path) -> io::Result<bool> {
    if !sys::set_direct(file, true, at) {
        return Ok(false);
    }
    let written = write_direct(file, text, bytes, at);
    let cleared = sys::set_direct(file, false, at);
    match written {
        Ok(()) => Ok(cleared),
        Err(error) if sys::is_unsupported(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whole blocks, from several threads.
fn write_direct(file: &File, text: &Text<'_>, bytes: Range<u64>, at: &Path) -> io::Result<()> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.clamp(2, THREADS_MAX); // one fills its buffer while another waits for the disk
    let (next, stop) = (AtomicU64::new(bytes.start), AtomicBool::new(false));
    let failed = Mutex::new(None);
    let work = || {
        let mut memory = vec![0u8; PIECE_BYTES + BLOCK_BYTES];
        let skew = memory.as_ptr().align_offset(BLOCK_BYTES);
        let buffer = &mut memory[skew..skew + PIECE_BYTES];
        while !stop.load(Ordering::Relaxed) {
            let offset = next.fetch_add(PIECE_BYTES as u64, Ordering::Relaxed);
            if offset >= bytes.end {
                break;
            }
            let piece = &mut buffer[..(bytes.end - offset).min(PIECE_BYTES as u64) as usize];
            text.copy(offset, piece);
            if let Err(error) = sys::write_at(file, piece, offset, at) {
                stop.store(true, Ordering::Relaxed);
                let mut failed = failed.lock().unwrap_or_else(|held| held.into_inner());
                failed.get_or_insert(error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    match failed.into_inner().unwrap_or_else(|held| held.into_inner()) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Some bytes of it, one after the other, through the page cache, which is what every file system can do; `passing`, without staying there:
/// `false` if it can't do that.
fn write_through(
    file: &File,
    text: &Text<'_>,
    bytes: Range<u64>,
    passing: bool,
    at: &Path,
) -> io::Result<bool> {
    let put = |bytes: &[u8], offset: u64| match passing {
        true => sys::write_passing_at(file, bytes, offset, at),
        false => sys::write_at(file, bytes, offset, at).map(|()| true),
    };
    let mut small = Vec::new(); // neighbours too small for a write of their own
    let mut small_at = bytes.start;
    for (part, &part_start) in text.parts.iter().zip(&text.starts) {
        let inside = |at: u64| at.saturating_sub(part_start).min(part.len() as u64) as usize;
        let (from, to) = (inside(bytes.start), inside(bytes.end));
        let (part, part_start) = (&part[from..to], part_start + from as u64);
        if small.len() + part.len() > PIECE_BYTES / 8 {
            if !put(&small, small_at)? {
                return Ok(false);
            }
            small.clear();
        }
        if part.len() > PIECE_BYTES / 8 {
            for (count, piece) in part.chunks(PIECE_BYTES).enumerate() {
                if !put(piece, part_start + (count * PIECE_BYTES) as u64)? {
                    return Ok(false);
                }
            }
            continue;
        }
        if small.is_empty() {
            small_at = part_start;
        }
        small.extend_from_slice(part);
    }
    put(&small, small_at)
}

/// Lets `write` fill `file`, which is new, from its start to its end. What it hands over is
/// written by another thread while it goes on; large files go around the page cache.
pub(crate) fn write_stream(
    file: &File,
    at: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    thread::scope(|scope| {
        let mut stream = Stream {
            scope,
            sink: Sink {
                file,
                at,
                offset: 0,
                direct: Direct::Later,
                seconds: 0.0,
            },
            buffer: Vec::new(),
            lane: None,
        };
        write(&mut stream)?;
        stream.finish()
    })
}

/// The end of a [`Stream`] that talks to the file.
#[derive(Clone, Copy)]
struct Sink<'f> {
    file: &'f File,
    at: &'f Path,
    /// Where the next piece goes.
    offset: u64,
    direct: Direct,
    /// Spent in direct writes.
    seconds: f64,
}

/// Whether the page cache is gone around.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direct {
    /// When the file has become large.
    Later,
    Now,
    /// The file system or the disk is no good for it.
    Never,
}

impl Sink<'_> {
    /// Writes a full piece.
    fn put(&mut self, piece: &Aligned) -> io::Result<()> {
        if self.direct == Direct::Later && self.offset >= DIRECT_BYTES_MIN {
            let set = sys::set_direct(self.file, true, self.at);
            self.direct = if set { Direct::Now } else { Direct::Never };
        }
        let start = Instant::now();
        let mut written = sys::write_at(self.file, piece.bytes(), self.offset, self.at);
        if self.direct == Direct::Now {
            self.seconds += start.elapsed().as_secs_f64();
            let bytes = self.offset + PIECE_BYTES as u64 - DIRECT_BYTES_MIN;
            let slow = bytes as f64 / self.seconds < DIRECT_BYTES_PER_SECOND_MIN;
            let refused = written.as_ref().is_err_and(sys::is_unsupported);
            if refused || (slow && bytes >= TRIAL_BYTES) {
                self.buffered();
            }
            if refused {
                written = sys::write_at(self.file, piece.bytes(), self.offset, self.at);
            }
        }
        self.offset += PIECE_BYTES as u64;
        written
    }

    fn buffered(&mut self) {
        if self.direct == Direct::Now {
            sys::set_direct(self.file, false, self.at);
        }
        self.direct = Direct::Never;
    }
}

/// Pieces on their way to the thread that writes them, and empty ones coming back.
struct Lane<'scope, 'f> {
    full: mpsc::SyncSender<Aligned>,
    empty: mpsc::Receiver<Aligned>,
    thread: thread::ScopedJoinHandle<'scope, io::Result<Sink<'f>>>,
}

/// What `write` of [`write_stream`] writes to.
struct Stream<'scope, 'env, 'f> {
    scope: &'scope thread::Scope<'scope, 'env>,
    sink: Sink<'f>,
    /// What was not handed over yet: one buffer, or none before the first byte.
    buffer: Vec<Aligned>,
    lane: Option<Lane<'scope, 'f>>,
}

impl<'scope, 'f: 'scope> Stream<'scope, '_, 'f> {
    /// The buffer that is being filled.
    fn filling(&mut self) -> &mut Aligned {
        if self.buffer.is_empty() {
            self.buffer.push(Aligned::new());
        }
        &mut self.buffer[0]
    }

    /// Hands the full buffer over and takes an empty one.
    fn hand_over(&mut self) -> io::Result<()> {
        let Some(full) = self.buffer.pop() else {
            return Ok(());
        };
        let sink = self.sink;
        let scope = self.scope;
        let lane = self.lane.get_or_insert_with(|| {
            let (full, incoming) = mpsc::sync_channel::<Aligned>(1);
            let (outgoing, empty) = mpsc::channel();
            let thread = scope.spawn(move || {
                let mut sink = sink;
                for mut piece in incoming {
                    sink.put(&piece)?; // the channel closes, which stops the other side
                    piece.len = 0;
                    let _ = outgoing.send(piece);
                }
                Ok(sink)
            });
            Lane {
                full,
                empty,
                thread,
            }
        });
        if lane.full.send(full).is_err() {
            return self.stop().and(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let next = self
            .lane
            .as_ref()
            .and_then(|lane| lane.empty.try_recv().ok());
        self.buffer.push(next.unwrap_or_else(Aligned::new));
        Ok(())
    }

    /// Waits for the other thread and says what went wrong there.
    fn stop(&mut self) -> io::Result<()> {
        if let Some(Lane { full, thread, .. }) = self.lane.take() {
            drop(full);
            self.sink = thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the writing thread panicked")))?;
        }
        Ok(())
    }

    /// Writes the rest.
    fn finish(mut self) -> io::Result<()> {
        self.stop()?;
        self.sink.buffered();
        let offset = self.sink.offset;
        match self.buffer.first() {
            Some(rest) => sys::write_at(self.sink.file, rest.bytes(), offset, self.sink.at),
            None => Ok(()),
        }
    }
}

impl<'scope, 'f: 'scope> Write for Stream<'scope, '_, 'f> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.filling().push(bytes);
        if self.filling().len == PIECE_BYTES {
            self.hand_over()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // the file is nobody's business before it is finished
    }
}

/// Memory for a piece, from a block's boundary on.
pub(crate) struct Aligned {
    memory: Vec<u8>,
    skew: usize,
    len: usize,
}

impl Aligned {
    fn new() -> Aligned {
        Aligned {
            memory: Vec::new(),
            skew: 0,
            len: 0,
        }
    }

    /// As large as it gets, so that it starts at a block's boundary however little is put in.
    pub(crate) fn for_blocks() -> Aligned {
        let mut aligned = Aligned::new();
        aligned.grow(PIECE_BYTES);
        aligned
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Takes as many bytes as there is room for.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(PIECE_BYTES - self.len);
        let needed = self.skew + self.len + count;
        if needed > self.memory.len() {
            self.grow(needed);
        }
        let start = self.skew + self.len;
        self.memory[start..start + count].copy_from_slice(&bytes[..count]);
        self.len += count;
        count
    }

    /// More memory: little for a small file, a whole piece for what is larger than 1 MiB.
    fn grow(&mut self, needed: usize) {
        if needed <= PIECE_BYTES / 8 {
            self.memory
                .resize(needed.next_power_of_two().max(64 * 1024), 0);
            return;
        }
        let mut memory = vec![0; PIECE_BYTES + BLOCK_BYTES];
        let skew = memory.as_ptr().align_offset(BLOCK_BYTES);
        memory[skew..skew + self.len].copy_from_slice(self.bytes());
        (self.memory, self.skew) = (memory, skew);
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.skew..self.skew + self.len]
    }
}

/// Parts that follow one another.
struct Text<'a> {
    parts: &'a [&'a [u8]],
    /// Where each starts.
    starts: Vec<u64>,
    byte_count: u64,
}

impl<'a> Text<'a> {
    fn new(parts: &'a [&'a [u8]]) -> Text<'a> {
        let mut byte_count = 0;
        let starts = parts.iter().map(|part| {
            let start = byte_count;
            byte_count += part.len() as u64;
            start
        });
        Text {
            parts,
            starts: starts.collect(),
            byte_count,
        }
    }

    /// Fills `out` from byte `offset` on; there are that many.
    fn copy(&self, mut offset: u64, mut out: &mut [u8]) {
        let behind = self.starts.partition_point(|&start| start <= offset);
        let mut position = behind.saturating_sub(1);
        while !out.is_empty() {
            let part = &self.parts[position][(offset - self.starts[position]) as usize..];
            let len = part.len().min(out.len());
            let (filled, rest) = out.split_at_mut(len);
            filled.copy_from_slice(&part[..len]);
            (out, offset, position) = (rest, offset + len as u64, position + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Call, faults};

    fn parts() -> Vec<Vec<u8>> {
        let sizes = [16, 0, 3, 29_000_000, 1, 0, 1_048_577, 12, 8_388_608, 5];
        let noise = |len, seed: usize| (0..len).map(move |i: usize| ((i * 31 + seed) >> 3) as u8);
        let parts = sizes.iter().enumerate();
        parts
            .map(|(seed, &len)| noise(len, seed).collect())
            .collect()
    }

    /// Writes the parts into a new file and checks them.
    fn check(folder: &Path, page_cache: PageCache) -> io::Result<()> {
        let path = folder.join("file");
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)?;
        let parts = parts();
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        for will_sync in [false, true] {
            write(&file, &slices, page_cache, will_sync, &path)?;
            assert!(std::fs::read(&path)? == parts.concat());
            file.set_len(0)?;
        }
        Ok(())
    }

    #[test]
    fn every_way_writes_the_same() {
        let folder = crate::testing::Folder::new("bulk");
        for page_cache in [PageCache::Auto, PageCache::Keep, PageCache::Bypass] {
            check(folder.path(), page_cache).unwrap();
        }
    }

    #[test]
    fn files_beyond_what_may_wait_go_the_ways_that_work() {
        let einval = 22;
        for refused in [
            &[][..],
            &[Call::Pass],
            &[Call::Direct],
            &[Call::Pass, Call::Direct],
        ] {
            let folder = crate::testing::Folder::new("bulk-ways");
            let faults = refused.iter().chain(&[Call::Room]);
            let faults: Vec<_> = faults
                .map(|&call| faults::inject(folder.path(), call, 0, einval))
                .collect();
            check(folder.path(), PageCache::Auto).unwrap();
            drop(faults);
        }
    }

    #[test]
    fn file_systems_that_cannot_go_around_the_cache() {
        let (einval, enospc) = (22, 28);
        let folder = crate::testing::Folder::new("bulk-faults");
        let refused = faults::inject(folder.path(), Call::Direct, 0, einval);
        check(folder.path(), PageCache::Bypass).unwrap();
        drop(refused);
        // Takes the flag, then refuses the first write, but not those through the cache.
        let refused = faults::inject_some(folder.path(), Call::Write, 0, 1, einval);
        check(folder.path(), PageCache::Bypass).unwrap();
        drop(refused);
        let full = faults::inject(folder.path(), Call::Write, 1, enospc);
        let error = check(folder.path(), PageCache::Bypass).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        drop(full);
        let full = faults::inject(folder.path(), Call::Write, 1, enospc);
        assert!(check(folder.path(), PageCache::Keep).is_err());
        drop(full);
    }

    /// Streams `total` bytes in pieces of odd lengths and checks the file.
    fn check_stream(folder: &Path, total: usize) -> io::Result<()> {
        let path = folder.join("stream");
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)?;
        let bytes: Vec<u8> = (0..total).map(|i| ((i * 31) >> 3) as u8).collect();
        write_stream(&file, &path, |out| {
            let mut rest = &bytes[..];
            for len in [1usize, 70_000, 3, 2_000_000, 9_000_000]
                .into_iter()
                .cycle()
            {
                if rest.is_empty() {
                    return Ok(());
                }
                let (piece, after) = rest.split_at(len.min(rest.len()));
                out.write_all(piece)?;
                rest = after;
            }
            Ok(())
        })?;
        assert!(std::fs::read(&path)? == bytes, "{total}");
        Ok(())
    }

    #[test]
    fn streams() {
        let folder = crate::testing::Folder::new("bulk-stream");
        let piece = PIECE_BYTES;
        for total in [
            0,
            1,
            70_001,
            piece - 1,
            piece,
            piece + 1,
            3 * piece,
            20_000_003,
        ] {
            check_stream(folder.path(), total).unwrap();
        }
    }

    #[test]
    fn large_streams_go_around_the_cache_where_that_works() {
        let (einval, enospc) = (22, 28);
        let folder = crate::testing::Folder::new("bulk-large");
        let total = DIRECT_BYTES_MIN as usize + 2 * PIECE_BYTES + 77;
        let pieces_before = DIRECT_BYTES_MIN as usize / PIECE_BYTES;
        check_stream(folder.path(), total).unwrap();
        let refused = faults::inject_some(folder.path(), Call::Write, pieces_before, 1, einval);
        check_stream(folder.path(), total).unwrap();
        drop(refused);
        let full = faults::inject(folder.path(), Call::Write, 2, enospc);
        let error = check_stream(folder.path(), total).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        drop(full);
    }

    #[test]
    fn ranges_across_parts() {
        let slices: [&[u8]; 6] = [b"", b"ab", b"", b"", b"cde", b"f"];
        let text = Text::new(&slices);
        for start in 0..=6usize {
            for end in start..=6 {
                let mut out = vec![0; end - start];
                text.copy(start as u64, &mut out);
                assert_eq!(out, b"abcdef"[start..end]);
            }
        }
    }
}
