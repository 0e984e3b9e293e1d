//! Some of a checkpoint's tensors brought into memory: only their bytes are read, neighbours together, in the order of the
//! file, by several threads.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;

use memmap2::MmapMut;
use safelight_format::{Dtype, TensorInfo, TensorView};

use crate::backend;
use crate::checkpoint::Checkpoint;
use crate::error::StoreError;
use crate::load::{CHUNK_BYTES, LoadOptions, in_parallel};
use crate::source::FileSource;

/// A gap of at most a page between two tensors is read along.
const GAP_BYTES_MIN: u64 = 4096;

/// A larger one, if it is small beside what lies before it, up to this size.
const GAP_BYTES_MAX: u64 = 256 * 1024;

/// Such a gap is at most this part of what is read before it.
const GAP_PART: u64 = 16;

/// Tensors lie in memory as in the file, up to multiples of this.
const ALIGN_BYTES: u64 = 64;

/// Tensors in memory, as [`Checkpoint::load_some`] read them. The files are not needed any more.
pub struct SomeTensors {
    /// Of each file.
    memory: Vec<MmapMut>,
    /// By file, in the order of their bytes.
    tensors: Vec<Held>,
    by_name: HashMap<String, usize>,
    read_bytes: u64,
}

struct Held {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    /// Which memory, and where in it.
    memory: usize,
    range: Range<usize>,
}

impl SomeTensors {
    /// A tensor, without a copy; `None` if it was not asked for.
    pub fn view(&self, name: &str) -> Option<TensorView<'_>> {
        Some(self.of(&self.tensors[*self.by_name.get(name)?]))
    }

    /// All of them, file by file, in the order of their bytes.
    pub fn views(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.tensors.iter().map(|held| self.of(held))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether no tensor was asked for.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// How many bytes were read: those of the tensors, and small gaps between them. At most 17/16 of the tensors' bytes and 4096
    /// bytes a tensor.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    fn of<'a>(&'a self, held: &'a Held) -> TensorView<'a> {
        TensorView {
            name: &held.name,
            dtype: held.dtype,
            shape: &held.shape,
            bytes: &self.memory[held.memory][held.range.clone()],
        }
    }
}

/// Neighbours that are read together: bytes of the file, and where they go.
struct Run {
    bytes: Range<u64>,
    memory_at: u64,
}

impl Checkpoint {
    /// Copies the tensors that `wants` says into memory, and reads hardly more than their bytes, as [`Checkpoint::load`] does with
    /// whole files.
    ///
    /// ```
    /// use safelight_store::{Checkpoint, LoadOptions};
    /// let json = br#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#;
    /// let file = [&(json.len() as u64).to_le_bytes()[..], json, b"xyz"].concat();
    /// let checkpoint = Checkpoint::from_bytes("example", file)?;
    /// let some = checkpoint.load_some(|tensor| tensor.name == "b", &LoadOptions::default())?;
    /// assert_eq!(some.view("b").unwrap().bytes, b"z");
    /// assert_eq!((some.len(), some.read_bytes()), (1, 1));
    /// # Ok::<(), safelight_store::StoreError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Checkpoint::load`]. [`LoadOptions::page_cache`] is not heeded: parts of files come through the page cache.
    pub fn load_some(
        &self,
        mut wants: impl FnMut(&TensorInfo<'_>) -> bool,
        options: &LoadOptions,
    ) -> Result<SomeTensors, StoreError> {
        let mut by_file: Vec<Vec<TensorInfo<'_>>> =
            self.shard_files().iter().map(|_| Vec::new()).collect();
        for (position, tensor) in self.listed() {
            if wants(&tensor) {
                by_file[position].push(tensor);
            }
        }
        let mut some = SomeTensors {
            memory: Vec::new(),
            tensors: Vec::new(),
            by_name: HashMap::new(),
            read_bytes: 0,
        };
        for (file, mut tensors) in self.shard_files().iter().zip(by_file) {
            if tensors.is_empty() {
                continue;
            }
            tensors.sort_by_key(|tensor| tensor.data_offsets);
            let runs = some.plan(file.header.data_start(), &tensors);
            some.memory.push(load(&file.source, &runs, options)?);
            file.source.unchanged()?;
            some.read_bytes += runs
                .iter()
                .map(|run| run.bytes.end - run.bytes.start)
                .sum::<u64>();
        }
        Ok(some)
    }

    /// As [`Checkpoint::load_some`], of tensors by name.
    ///
    /// # Errors
    /// As there, and [`StoreError::NoSuchTensor`], before anything is read.
    pub fn load_named(
        &self,
        names: &[impl AsRef<str>],
        options: &LoadOptions,
    ) -> Result<SomeTensors, StoreError> {
        let mut wanted = std::collections::HashSet::new();
        for name in names {
            self.find(name.as_ref())?;
            wanted.insert(name.as_ref());
        }
        self.load_some(|tensor| wanted.contains(tensor.name), options)
    }
}

impl SomeTensors {
    /// What is read of a file for these tensors, which are in the order of their bytes; they are listed with their places in the next
    /// memory.
    fn plan(&mut self, data_start: u64, tensors: &[TensorInfo<'_>]) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for tensor in tensors {
            let (start, end) = (
                data_start + tensor.data_offsets.0,
                data_start + tensor.data_offsets.1,
            );
            match runs.last_mut() {
                Some(run) if start - run.bytes.end <= gap_max(run.bytes.end - run.bytes.start) => {
                    run.bytes.end = end
                }
                last => {
                    let free_at =
                        last.map_or(0, |run| run.memory_at + (run.bytes.end - run.bytes.start));
                    let memory_at = free_at.next_multiple_of(ALIGN_BYTES) + start % ALIGN_BYTES;
                    runs.push(Run {
                        bytes: start..end,
                        memory_at,
                    });
                }
            }
            let run = runs.last().expect("one was pushed");
            // Wherever that does not fit into an address, `load` refuses it.
            let at = (run.memory_at + (start - run.bytes.start)) as usize;
            self.by_name
                .insert(tensor.name.to_owned(), self.tensors.len());
            self.tensors.push(Held {
                name: tensor.name.to_owned(),
                dtype: tensor.dtype,
                shape: tensor.shape.to_vec(),
                memory: self.memory.len(),
                range: at..at + (end - start) as usize,
            });
        }
        runs
    }
}

/// The largest gap that is read along behind so many bytes.
fn gap_max(run_bytes: u64) -> u64 {
    (run_bytes / GAP_PART).clamp(GAP_BYTES_MIN, GAP_BYTES_MAX)
}

/// Reads the runs, a chunk a thread at a time.
fn load(source: &FileSource, runs: &[Run], options: &LoadOptions) -> Result<MmapMut, StoreError> {
    let ends = runs
        .last()
        .map_or(0, |run| run.memory_at + (run.bytes.end - run.bytes.start));
    let out_of_memory = || source.out_of_memory("the chosen tensors".to_owned(), ends);
    let len = usize::try_from(ends.max(1)).map_err(|_| out_of_memory())?;
    let mut memory = MmapMut::map_anon(len).map_err(|_| out_of_memory())?;
    let ranges: Vec<(u64, u64)> = runs
        .iter()
        .map(|run| (run.bytes.start, run.bytes.end))
        .collect();
    source.will_read(&ranges);
    let mut chunks = Vec::new();
    let (mut rest, mut rest_at) = (&mut memory[..], 0);
    for run in runs {
        let (_, behind) = rest.split_at_mut((run.memory_at - rest_at) as usize);
        let run_bytes = run.bytes.end - run.bytes.start;
        let (out, behind) = behind.split_at_mut(run_bytes as usize);
        let offsets = (run.bytes.start..).step_by(CHUNK_BYTES);
        chunks.extend(offsets.zip(out.chunks_mut(CHUNK_BYTES)));
        (rest, rest_at) = (behind, run.memory_at + run_bytes);
    }
    let seen = backend::look(source);
    let byte_count = ranges.iter().map(|(start, end)| end - start).sum();
    // At least a thread for each few runs: small reads wait for the disk and not for the processor.
    let threads = options.backend.threads(seen);
    let chunks = Mutex::new(chunks.into_iter());
    in_parallel(threads, byte_count, || {
        let next = chunks.lock().expect("taking a chunk does not panic").next();
        let Some((offset, chunk)) = next else {
            return Ok(false);
        };
        source.read_exact_at(chunk, offset)?;
        Ok(true)
    })?;
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::save::{SaveOptions, save};
    use crate::source::ReadAt;
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Counts what is read of bytes in memory.
    struct Counting(Vec<u8>, Arc<AtomicU64>);

    impl ReadAt for Counting {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let rest = self.0.get(offset as usize..).unwrap_or_default();
            let count = buffer.len().min(rest.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            self.1.fetch_add(count as u64, Ordering::Relaxed);
            Ok(count)
        }

        fn byte_count(&self) -> io::Result<u64> {
            Ok(self.0.len() as u64)
        }
    }

    /// A file of 40 tensors of 100,000 bytes, each of its own number.
    fn file() -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let bytes: Vec<Vec<u8>> = (0..40).map(|number| vec![number; 100_000]).collect();
        let names: Vec<String> = (0..40).map(|number| format!("t{number:02}")).collect();
        let views = names.iter().zip(&bytes).map(|(name, bytes)| TensorView {
            name,
            dtype: Dtype::U8,
            shape: &[100_000],
            bytes,
        });
        save(
            &path,
            &views.collect::<Vec<_>>(),
            None,
            &SaveOptions::default(),
        )
        .unwrap();
        std::fs::read(&path).unwrap()
    }

    #[test]
    fn only_what_is_needed_is_read() {
        let read = Arc::new(AtomicU64::new(0));
        let reader = Box::new(Counting(file(), read.clone()));
        let checkpoint = Checkpoint::from_reader("counted", reader, &Default::default()).unwrap();
        read.store(0, Ordering::Relaxed);
        let names = ["t30", "t03", "t04", "t39"];
        let some = checkpoint
            .load_named(&names, &LoadOptions::default())
            .unwrap();
        assert_eq!(read.load(Ordering::Relaxed), 400_000);
        assert_eq!(some.read_bytes(), 400_000);
        let found: Vec<(&str, u8, usize)> = some
            .views()
            .map(|view| (view.name, view.bytes[99_999], view.bytes.len()))
            .collect();
        let expected = [
            ("t03", 3, 100_000),
            ("t04", 4, 100_000),
            ("t30", 30, 100_000),
            ("t39", 39, 100_000),
        ];
        assert_eq!(found, expected);
        assert!(
            some.view("t05").is_none()
                && some
                    .view("t04")
                    .unwrap()
                    .bytes
                    .iter()
                    .all(|&byte| byte == 4)
        );
        let error = checkpoint
            .load_named(&["t03", "no"], &LoadOptions::default())
            .err()
            .unwrap();
        assert!(matches!(error, StoreError::NoSuchTensor { .. }), "{error}");
        let none = checkpoint
            .load_some(|_| false, &LoadOptions::default())
            .unwrap();
        assert!(none.is_empty() && none.read_bytes() == 0);
    }

    #[test]
    fn small_gaps_are_read_along_and_large_ones_not() {
        let mut some = SomeTensors {
            memory: vec![],
            tensors: vec![],
            by_name: HashMap::new(),
            read_bytes: 0,
        };
        let tensor = |start, end| TensorInfo {
            name: "",
            dtype: Dtype::U8,
            shape: &[],
            data_offsets: (start, end),
        };
        let mib = 1 << 20;
        let runs = some.plan(
            8,
            &[
                tensor(0, 4),
                tensor(4100, 4104),
                tensor(9000, mib),
                tensor(mib + 60_000, 2 * mib),
                tensor(3 * mib, 3 * mib + 1),
            ],
        );
        let ranges: Vec<_> = runs.iter().map(|run| run.bytes.clone()).collect();
        assert_eq!(
            ranges,
            [8..4112, 9008..2 * mib + 8, 3 * mib + 8..3 * mib + 9]
        );
        assert!(
            runs.iter()
                .all(|run| run.memory_at % 64 == run.bytes.start % 64)
        );
    }
}
