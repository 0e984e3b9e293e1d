//! Where a file's bytes come from: positioned reads, or memory.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};
use safelight_format::{FormatError, header_bytes};

use crate::checkpoint::OpenOptions;
use crate::error::{StoreError, path_text};
use crate::sys::{self, Stamp};

/// What is read first of a file: enough for most headers, in one read.
const FIRST_READ_BYTES: u64 = 64 * 1024;

/// Bytes that can be read at any position, by several threads at once.
///
/// Implemented for files; implement it to read from elsewhere.
pub trait ReadAt: Send + Sync {
    /// Reads some bytes that start at `offset`, at most `buffer.len()`; returns how many. 0 means
    /// that the end lies at or before `offset` (or that `buffer` is empty).
    ///
    /// # Errors
    /// What the system says. [`io::ErrorKind::Interrupted`] is tried again.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// The size now.
    ///
    /// # Errors
    /// What the system says.
    fn byte_count(&self) -> io::Result<u64>;

    /// Says that these ranges of bytes (start, end) will be read soon, by [`ReadAt::read_at`] and roughly in this order.
    ///
    /// A promise that costs nothing to break. What is far away fetches close ranges together and several at the same
    /// time, and nothing that was not announced; files need no warning.
    fn will_read(&self, ranges: &[(u64, u64)]) {
        let _ = ranges;
    }
}

impl ReadAt for File {
    #[cfg(unix)]
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buffer, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(self, buffer, offset)
    }

    fn byte_count(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }
}

/// A whole file in memory, shared or part of the program.
#[derive(Clone, Debug)]
pub enum Bytes {
    /// Shared among those who hold it.
    Shared(Arc<[u8]>),
    /// Part of the program, as `include_bytes!` gives.
    Static(&'static [u8]),
}

impl From<Arc<[u8]>> for Bytes {
    fn from(bytes: Arc<[u8]>) -> Bytes {
        Bytes::Shared(bytes)
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        Bytes::Shared(bytes.into())
    }
}

impl From<&'static [u8]> for Bytes {
    fn from(bytes: &'static [u8]) -> Bytes {
        Bytes::Static(bytes)
    }
}

impl<const N: usize> From<&'static [u8; N]> for Bytes {
    fn from(bytes: &'static [u8; N]) -> Bytes {
        Bytes::Static(bytes)
    }
}

/// The bytes of one file, wherever they are.
pub(crate) enum Source {
    File(File),
    Reader(Box<dyn ReadAt>),
    Memory(Bytes),
    /// With its file, of which the page cache can be asked.
    Mapped(Mmap, File),
    Loaded(MmapMut),
}

/// One file: its bytes and what to call it.
pub(crate) struct FileSource {
    pub(crate) label: String,
    pub(crate) source: Source,
    /// The size when it was opened.
    pub(crate) file_bytes: u64,
    /// What the system knew of it then; `None` for what is no file.
    pub(crate) stamp: Option<Stamp>,
}

impl FileSource {
    /// Opens a regular file for positioned reads. An edit of it that was interrupted is taken back first.
    pub(crate) fn open(path: &Path) -> Result<FileSource, StoreError> {
        crate::edit::recover(path)?;
        let file = open_regular(path)?;
        let stamp = Stamp::of(&file).map_err(StoreError::io("read the size of", path))?;
        let file_bytes = stamp.file_bytes;
        // Files of /proc say that they are empty, and their bytes can't be counted beforehand.
        if file_bytes == 0
            && ReadAt::read_at(&file, &mut [0], 0).map_err(StoreError::io("read", path))? > 0
        {
            return Err(StoreError::NotAFile {
                file: path_text(path),
                what: "a file that the system makes up as it is read (it says it has 0 bytes, and has more); copy it first",
            });
        }
        Ok(FileSource {
            label: path_text(path),
            source: Source::File(file),
            file_bytes,
            stamp: Some(stamp),
        })
    }

    /// The file's bytes, if they are in memory.
    pub(crate) fn memory(&self) -> Option<&[u8]> {
        match &self.source {
            Source::File(_) | Source::Reader(_) => None,
            Source::Memory(Bytes::Shared(bytes)) => Some(bytes),
            Source::Memory(Bytes::Static(bytes)) => Some(bytes),
            Source::Mapped(map, _) => Some(map),
            // Memory of at least a byte was asked for.
            Source::Loaded(memory) => memory.get(..self.file_bytes as usize),
        }
    }

    /// Whether it is read by others' means, as over a network: what fails then is the way and not the file.
    pub(crate) fn is_far(&self) -> bool {
        matches!(self.source, Source::Reader(_))
    }

    /// Says what will be read soon, see [`ReadAt::will_read`].
    pub(crate) fn will_read(&self, ranges: &[(u64, u64)]) {
        if let Source::Reader(reader) = &self.source {
            reader.will_read(ranges);
        }
    }

    /// Lets the disk start on a range of an ordinary file that is about to be read from one end to the other. What
    /// [`FileSource::will_read`] is to slices, this is to whole files.
    pub(crate) fn read_soon(&self, start: u64, byte_count: u64) {
        if let Source::File(file) = &self.source {
            let left = self.file_bytes.saturating_sub(start);
            sys::will_read(file, start, byte_count.min(left));
        }
    }

    /// Fills `buffer` with the bytes that start at `offset`.
    ///
    /// # Errors
    /// [`StoreError::Io`], or [`StoreError::Shrank`] if the file ends first.
    pub(crate) fn read_exact_at(
        &self,
        mut buffer: &mut [u8],
        mut offset: u64,
    ) -> Result<(), StoreError> {
        let reader: &dyn ReadAt = match &self.source {
            Source::File(file) => file,
            Source::Reader(reader) => &**reader,
            Source::Memory(_) | Source::Mapped(..) | Source::Loaded(_) => {
                return self.copy_exact_at(buffer, offset);
            }
        };
        while !buffer.is_empty() {
            match reader.read_at(buffer, offset) {
                Ok(0) => {
                    return Err(self.shrank(
                        reader
                            .byte_count()
                            .map_or(offset, |now| now.min(self.file_bytes)),
                    ));
                }
                Ok(count) => {
                    buffer = buffer
                        .get_mut(count..)
                        .ok_or_else(|| self.io(io::ErrorKind::InvalidData.into()))?;
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.io(error)),
            }
        }
        Ok(())
    }

    /// As `read_exact_at`, from memory.
    fn copy_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), StoreError> {
        let bytes = self.memory().unwrap_or_default();
        let start = usize::try_from(offset).ok();
        let there = start.and_then(|start| bytes.get(start..start.checked_add(buffer.len())?));
        buffer.copy_from_slice(there.ok_or_else(|| self.shrank(bytes.len() as u64))?);
        Ok(())
    }

    /// An error if the file was written to since it was opened, as far as the system can tell: what was read then is a
    /// mixture of two files. To be asked when all is read.
    ///
    /// # Errors
    /// [`StoreError::ChangedMeanwhile`]; [`StoreError::Shrank`] if that is what happened.
    pub(crate) fn unchanged(&self) -> Result<(), StoreError> {
        let (Source::File(file) | Source::Mapped(_, file)) = &self.source else {
            return Ok(());
        };
        let Some(then) = &self.stamp else {
            return Ok(());
        };
        let now = Stamp::of(file).map_err(|error| self.io(error))?;
        match then.difference(&now) {
            None => Ok(()),
            Some(_) if now.file_bytes < then.file_bytes => Err(self.shrank(now.file_bytes)),
            Some(problem) => Err(StoreError::ChangedMeanwhile {
                file: self.label.clone(),
                problem,
            }),
        }
    }

    /// The file's first bytes, up to the end of its header at least.
    ///
    /// # Errors
    /// [`StoreError::Format`] if there is no such end, and as [`FileSource::read_exact_at`].
    pub(crate) fn read_prefix(&self, options: &OpenOptions) -> Result<Cow<'_, [u8]>, StoreError> {
        if let Some(bytes) = self.memory() {
            return Ok(Cow::Borrowed(bytes));
        }
        let mut prefix = vec![0; FIRST_READ_BYTES.min(self.file_bytes) as usize];
        self.read_exact_at(&mut prefix, 0)?;
        let header_bytes = header_bytes(&prefix, self.file_bytes, &options.limits)
            .map_err(|error| self.not_safetensors(error))?;
        let need_bytes = 8 + header_bytes;
        let have_len = prefix.len();
        if need_bytes > have_len as u64 {
            let grown = usize::try_from(need_bytes)
                .ok()
                .filter(|need| prefix.try_reserve_exact(need - have_len).is_ok());
            let Some(need_len) = grown else {
                return Err(self.out_of_memory("the header".to_owned(), need_bytes));
            };
            prefix.resize(need_len, 0);
            self.read_exact_at(&mut prefix[have_len..], have_len as u64)?;
        }
        Ok(Cow::Owned(prefix))
    }

    pub(crate) fn not_safetensors(&self, error: FormatError) -> StoreError {
        let file = self.label.clone();
        StoreError::Format { file, error }
    }

    pub(crate) fn out_of_memory(&self, what: String, byte_count: u64) -> StoreError {
        let file = self.label.clone();
        StoreError::OutOfMemory {
            file,
            what,
            byte_count,
        }
    }

    pub(crate) fn stopped(&self) -> StoreError {
        let file = self.label.clone();
        StoreError::Stopped { file }
    }

    pub(crate) fn io(&self, error: io::Error) -> StoreError {
        StoreError::Io {
            doing: "read",
            file: self.label.clone(),
            error,
        }
    }

    pub(crate) fn shrank(&self, now_bytes: u64) -> StoreError {
        StoreError::Shrank {
            file: self.label.clone(),
            opened_bytes: self.file_bytes,
            now_bytes,
        }
    }
}

/// A file that says when it was written to since it was opened: each read fails from then on, so that nobody takes a mixture
/// of two files for one.
///
/// The reads' error is [`io::ErrorKind::Other`] around [`StoreError::ChangedMeanwhile`]; see [`StoreError::inside`].
#[derive(Debug)]
pub struct WatchedFile {
    file: File,
    label: String,
    stamp: Stamp,
}

impl WatchedFile {
    /// Watches a file that was opened as `path`, from now on.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(file: File, path: &Path) -> io::Result<WatchedFile> {
        Ok(WatchedFile {
            stamp: Stamp::of(&file)?,
            label: path_text(path),
            file,
        })
    }
}

impl ReadAt for WatchedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = ReadAt::read_at(&self.file, buffer, offset)?;
        match self.stamp.difference(&Stamp::of(&self.file)?) {
            None => Ok(count),
            Some(problem) => Err(io::Error::other(StoreError::ChangedMeanwhile {
                file: self.label.clone(),
                problem,
            })),
        }
    }

    fn byte_count(&self) -> io::Result<u64> {
        Ok(self.stamp.file_bytes)
    }
}

/// Opens a file, but no folder and no pipe (which would wait for a writer).
pub(crate) fn open_regular(path: &Path) -> Result<File, StoreError> {
    let metadata = fs::metadata(path).map_err(StoreError::io("open", path))?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() {
            "a folder"
        } else {
            "a device or pipe"
        };
        return Err(StoreError::NotAFile {
            file: path_text(path),
            what,
        });
    }
    File::open(path).map_err(StoreError::io("open", path))
}
