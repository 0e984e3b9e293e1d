//! A checkpoint written piece by piece: header first, then tensors in any order, from any thread.

use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use safelight_format::{HeaderPlan, Metadata, OpaqueSpec, TensorSpec};

use crate::around::Around;
use crate::atomic::{Publish, Temporary};
use crate::error::{StoreError, path_text};
use crate::save::SaveOptions;
use crate::sys;

/// What a [`TensorWriter`] collects before it writes.
const BUFFER_BYTES: usize = 1024 * 1024;

/// Writes a `.safetensors` file whose tensors come one after the other, in pieces, or from many
/// threads; nothing but the pieces at hand is in memory, so the file may be larger than that.
///
/// The file appears under its name in [`Writer::finish`], complete, in one moment. Until then, and
/// if the writer is dropped, nothing can be seen. [`Writer::finish`] refuses files with bytes that were
/// never written; writing a byte twice is refused at once.
///
/// ```
/// use std::io::Write as _;
/// use safelight_format::{Dtype, TensorSpec};
/// use safelight_store::{Checkpoint, SaveOptions, Writer};
///
/// # let folder = std::env::temp_dir().join(format!("safelight-writer-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// let path = folder.join("streamed.safetensors");
/// let specs = [
///     TensorSpec { name: "a".into(), dtype: Dtype::U8, shape: vec![4] },
///     TensorSpec { name: "b".into(), dtype: Dtype::U8, shape: vec![2] },
/// ];
/// let writer = Writer::create(&path, &specs, None, &SaveOptions::default())?;
/// std::thread::scope(|scope| {
///     scope.spawn(|| writer.write_at(0, 2, b"lo")); // any piece, from any thread
///     scope.spawn(|| writer.write_at(0, 0, b"he"));
/// });
/// writer.tensor(1).write_all(b"!!")?; // or one after the other
/// writer.finish()?;
/// assert_eq!(Checkpoint::open(&path)?.read_bytes("a")?, b"helo");
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Writer {
    temporary: Temporary,
    /// Where large pieces go.
    around: Option<Around>,
    path: PathBuf,
    specs: Vec<TensorSpec>,
    plan: HeaderPlan,
    covered: Mutex<Vec<Covered>>,
    /// The first thing that went wrong where it could not be said.
    failed: Mutex<Option<io::Error>>,
    publish: Publish,
}

impl Writer {
    /// Lays the file out and writes its header.
    ///
    /// # Errors
    /// [`StoreError::Write`] if the tensors contradict themselves; [`StoreError::Io`], also if the
    /// disk has no room for the whole file (where the file system can tell).
    pub fn create(
        path: &Path,
        specs: &[TensorSpec],
        metadata: Option<&Metadata>,
        options: &SaveOptions,
    ) -> Result<Writer, StoreError> {
        Writer::create_with_opaque(path, specs, &[], metadata, options)
    }

    /// As [`Writer::create`], for files that hand on tensors of dtypes which the format does not have: the spec of each such
    /// tensor says `U8` and how many bytes it has, and `opaque` what the header says, see [`HeaderPlan::with_opaque`].
    ///
    /// # Errors
    /// As [`Writer::create`].
    ///
    /// # Panics
    /// If there are not as many specs as a position in `opaque` says.
    pub fn create_with_opaque(
        path: &Path,
        specs: &[TensorSpec],
        opaque: &[OpaqueSpec],
        metadata: Option<&Metadata>,
        options: &SaveOptions,
    ) -> Result<Writer, StoreError> {
        let planned = HeaderPlan::with_opaque(specs, opaque, metadata, &options.plan());
        let plan = planned.map_err(|error| StoreError::Write {
            file: path_text(path),
            error,
        })?;
        let temporary = Temporary::for_target(path)?;
        let (file, target) = (&temporary.file, &temporary.target);
        sys::allocate(file, plan.file_bytes(), target)
            .and_then(|()| sys::write_at(file, &options.prefix(&plan), 0, target))
            .map_err(StoreError::io("write", path))?;
        let around = Around::of(file, plan.file_bytes(), options.page_cache, target);
        Ok(Writer {
            around,
            covered: Mutex::new(vec![Covered::default(); specs.len()]),
            failed: Mutex::new(None),
            publish: options.publish(),
            path: path.to_owned(),
            temporary,
            specs: specs.to_vec(),
            plan,
        })
    }

    /// The tensors, as given; `index` in the other functions counts in this list.
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// The tensors in the order of the file: disks like this order best.
    pub fn file_order(&self) -> &[usize] {
        self.plan.order()
    }

    /// The size of the finished file.
    pub fn file_bytes(&self) -> u64 {
        self.plan.file_bytes()
    }

    /// Writes a piece of tensor `index` that starts `offset` bytes into it: little-endian elements in
    /// row-major order. May be called by many threads at once.
    ///
    /// # Errors
    /// [`StoreError::OutsideTensor`], [`StoreError::WrittenTwice`], [`StoreError::Io`] (a piece
    /// that failed may be written again).
    ///
    /// # Panics
    /// If there are not that many tensors.
    pub fn write_at(&self, index: usize, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let at = self.claim(index, offset, bytes.len() as u64)?;
        self.put(bytes, at).map_err(|error| {
            self.give_back(index, offset, bytes.len() as u64);
            StoreError::io("write", &self.path)(error)
        })
    }

    /// Writes bytes to a place in the file: whole blocks of large files around the page cache.
    fn put(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let (file, target) = (&self.temporary.file, &self.temporary.target);
        let (from, to) = match &self.around {
            Some(around) => around.write(bytes, at, target)?,
            None => (0, 0),
        };
        if from > 0 {
            sys::write_at(file, &bytes[..from], at, target)?;
        }
        if to == bytes.len() {
            return Ok(());
        }
        sys::write_at(file, &bytes[to..], at + to as u64, target)
    }

    /// Copies a piece of tensor `index` from another file, in the kernel where that is possible.
    /// As [`Writer::write_at`] otherwise.
    ///
    /// # Errors
    /// As [`Writer::write_at`]; [`io::ErrorKind::UnexpectedEof`] if `from` ends first.
    ///
    /// # Panics
    /// If there are not that many tensors.
    pub fn copy_at(
        &self,
        index: usize,
        offset: u64,
        from: &std::fs::File,
        from_offset: u64,
        byte_count: u64,
    ) -> Result<(), StoreError> {
        let at = self.claim(index, offset, byte_count)?;
        let to = (&self.temporary.file, at);
        let target = &self.temporary.target;
        sys::copy_range((from, from_offset), to, byte_count, target).map_err(|error| {
            self.give_back(index, offset, byte_count);
            StoreError::io("write", &self.path)(error)
        })
    }

    /// Copies whole tensors from another file, in which they lie one behind the other, at once; they do so in this one, or
    /// some go alone. How many bytes that were.
    pub(crate) fn copy_tensors(
        &self,
        indexes: Range<usize>,
        from: &std::fs::File,
        mut from_offset: u64,
    ) -> Result<u64, StoreError> {
        let size = |index: usize| {
            let (start, end) = self.plan.data_offsets(index);
            end - start
        };
        let (mut first, mut all) = (indexes.start, 0);
        while first < indexes.end {
            let at = self.claim(first, 0, size(first))?;
            let (mut next, mut bytes) = (first + 1, size(first));
            while next < indexes.end
                && self.plan.data_start() + self.plan.data_offsets(next).0 == at + bytes
            {
                self.claim(next, 0, size(next))?;
                (next, bytes) = (next + 1, bytes + size(next));
            }
            let to = (&self.temporary.file, at);
            let copied = sys::copy_range((from, from_offset), to, bytes, &self.temporary.target);
            copied.map_err(|error| {
                (first..next).for_each(|index| self.give_back(index, 0, size(index)));
                StoreError::io("write", &self.path)(error)
            })?;
            (first, from_offset, all) = (next, from_offset + bytes, all + bytes);
        }
        Ok(all)
    }

    /// Tensor `index` from its first byte to its last. Small writes are collected; [`Write::flush`]
    /// says what went wrong with them, and so does [`Writer::finish`].
    ///
    /// # Panics
    /// If there are not that many tensors.
    pub fn tensor(&self, index: usize) -> TensorWriter<'_> {
        assert!(index < self.specs.len(), "there is no tensor {index}");
        TensorWriter {
            writer: self,
            index,
            offset: 0,
            buffer: Vec::new(),
        }
    }

    /// Checks that every byte was written and puts the file into its place; returns its size.
    ///
    /// # Errors
    /// [`StoreError::Unwritten`] with all tensors that are not complete, [`StoreError::Io`]. The
    /// target is then what it was before.
    pub fn finish(self) -> Result<u64, StoreError> {
        let file_bytes = self.file_bytes();
        let failed = self.failed.into_inner().unwrap_or_default();
        if let Some(error) = failed {
            return Err(StoreError::io("write", &self.path)(error));
        }
        let covered = self.covered.into_inner().unwrap_or_default();
        let left = (0..self.specs.len()).filter_map(|index| {
            let (start, end) = self.plan.data_offsets(index);
            let missing = end - start - covered[index].byte_count();
            (missing > 0).then(|| (self.specs[index].name.clone(), missing))
        });
        let tensors: Vec<(String, u64)> = left.collect();
        if !tensors.is_empty() {
            let file = path_text(&self.path);
            return Err(StoreError::Unwritten { file, tensors });
        }
        self.temporary
            .publish(self.publish)
            .map_err(StoreError::io("write", &self.path))?;
        Ok(file_bytes)
    }

    /// Notes that a piece is being written; where in the file it goes.
    fn claim(&self, index: usize, offset: u64, byte_count: u64) -> Result<u64, StoreError> {
        let (start, end) = self.plan.data_offsets(index);
        // Said in errors only: there may be a million pieces.
        let named = || (path_text(&self.path), self.specs[index].name.clone());
        let piece_end = offset.checked_add(byte_count);
        let Some(piece_end) = piece_end.filter(|&piece_end| piece_end <= end - start) else {
            let (file, tensor) = named();
            return Err(StoreError::OutsideTensor {
                file,
                tensor,
                offset,
                byte_count,
                tensor_bytes: end - start,
            });
        };
        let mut covered = self.covered.lock().unwrap_or_else(|held| held.into_inner());
        if !covered[index].add(offset, piece_end) {
            let (file, tensor) = named();
            return Err(StoreError::WrittenTwice {
                file,
                tensor,
                offset,
                byte_count,
            });
        }
        Ok(self.plan.data_start() + start + offset)
    }

    fn give_back(&self, index: usize, offset: u64, byte_count: u64) {
        let mut covered = self.covered.lock().unwrap_or_else(|held| held.into_inner());
        covered[index].remove(offset, offset + byte_count);
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Writer");
        debug
            .field("path", &self.path)
            .field("tensors", &self.specs.len());
        debug.field("file_bytes", &self.file_bytes());
        debug.finish_non_exhaustive()
    }
}

/// One tensor of a [`Writer`], written from its first byte to its last.
#[derive(Debug)]
pub struct TensorWriter<'w> {
    writer: &'w Writer,
    index: usize,
    /// Where `buffer` starts in the tensor.
    offset: u64,
    buffer: Vec<u8>,
}

impl TensorWriter<'_> {
    fn write_out(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.writer.write_at(self.index, self.offset, bytes);
        self.offset += bytes.len() as u64;
        written.map_err(|error| match error {
            StoreError::Io { error, .. } => error,
            other => io::Error::new(io::ErrorKind::InvalidInput, other),
        })
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        if buffer.is_empty() {
            return Ok(());
        }
        self.write_out(&buffer)
    }
}

impl Write for TensorWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.write_buffer()?;
        }
        if bytes.len() >= BUFFER_BYTES {
            self.write_out(bytes)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_buffer()
    }
}

impl Drop for TensorWriter<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.write_buffer() {
            let mut failed = self.writer.failed.lock();
            if let Ok(failed) = &mut failed {
                failed.get_or_insert(error);
            }
        }
    }
}

/// Which bytes of a tensor were written: disjoint ranges in order, neighbours merged. Sequential
/// writing has one range, whatever the number of pieces.
#[derive(Clone, Debug, Default)]
struct Covered(Vec<(u64, u64)>);

impl Covered {
    /// Adds a range, unless some of it is there.
    fn add(&mut self, start: u64, end: u64) -> bool {
        if start == end {
            return true;
        }
        let ranges = &mut self.0;
        let next = ranges.partition_point(|range| range.1 <= start); // the first that ends behind `start`
        if ranges.get(next).is_some_and(|range| range.0 < end) {
            return false;
        }
        let joins_next = ranges.get(next).is_some_and(|range| range.0 == end);
        let joins_last = next > 0 && ranges[next - 1].1 == start;
        match (joins_last, joins_next) {
            (true, true) => {
                ranges[next - 1].1 = ranges[next].1;
                ranges.remove(next);
            }
            (true, false) => ranges[next - 1].1 = end,
            (false, true) => ranges[next].0 = start,
            (false, false) => ranges.insert(next, (start, end)),
        }
        true
    }

    /// Takes a range away that was added.
    fn remove(&mut self, start: u64, end: u64) {
        let ranges = &mut self.0;
        let holder = ranges.partition_point(|range| range.1 <= start);
        if start == end || holder == ranges.len() {
            return;
        }
        let (first, last) = ranges[holder];
        let rest = [(first, start), (end, last)];
        let rest = rest.into_iter().filter(|range| range.0 < range.1);
        ranges.splice(holder..=holder, rest);
    }

    fn byte_count(&self) -> u64 {
        self.0.iter().map(|range| range.1 - range.0).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_agree_with_a_plain_list_of_flags() {
        let mut seed = 7u64;
        let mut next = |below: u64| {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for _ in 0..200 {
            let (mut covered, mut flags) = (Covered::default(), [false; 40]);
            for _ in 0..60 {
                let (a, b) = (next(41), next(41));
                let (start, end) = (a.min(b), a.max(b));
                let piece = start as usize..end as usize;
                let free = flags[piece.clone()].iter().all(|&flag| !flag);
                assert_eq!(covered.add(start, end), free, "{covered:?} {start}..{end}");
                if free {
                    flags[piece.clone()].fill(true);
                    if next(3) == 0 {
                        covered.remove(start, end);
                        flags[piece].fill(false);
                    }
                }
                let count = flags.iter().filter(|&&flag| flag).count() as u64;
                assert_eq!(covered.byte_count(), count);
                assert!(
                    covered.0.windows(2).all(|pair| pair[0].1 < pair[1].0),
                    "{covered:?}"
                );
            }
        }
    }
}
