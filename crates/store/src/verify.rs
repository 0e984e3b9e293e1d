//! Is a file whole? Its header is checked, every byte of it is read, and what a cut or damaged file still has is named.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::{fs, io, thread};

use safelight_format::{FormatError, Header, OpaqueTensor, Strictness, TensorInfo};

use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::error::{StoreError, path_text};
use crate::meant::Meant;
use crate::shards;
use crate::source::FileSource;
use crate::together::{Chosen, in_two_files, wrong_names};

/// What is read at a time.
const CHUNK_BYTES: u64 = 4 * 1024 * 1024;

/// What is read at a time where a read of more failed.
const PATCH_BYTES: u64 = 64 * 1024;

/// Files are read by as many threads, at most: more do not make a disk faster.
const THREADS_MAX: usize = 4;

/// What is wrong with a model's files, if anything is.
#[derive(Debug)]
pub struct Verdict {
    /// The index, if there is one.
    pub index: Option<IndexVerdict>,
    /// What is wrong between files of a folder or pattern that no index holds together: shards are missing, or of several sets, or a
    /// tensor is in two files.
    pub problems: Vec<StoreError>,
    /// One for each file, in the order of their names.
    pub files: Vec<FileVerdict>,
}

impl Verdict {
    /// Whether nothing is wrong at all.
    pub fn is_intact(&self) -> bool {
        let index = self.index.iter();
        index.flat_map(|index| &index.problems).next().is_none()
            && self.problems.is_empty()
            && self.files.iter().all(FileVerdict::is_intact)
    }
}

/// What is wrong with an index, or between it and its shards.
#[derive(Debug)]
pub struct IndexVerdict {
    /// The index.
    pub file: String,
    /// What is wrong: a file or tensor is missing, is in two shards, is not listed.
    pub problems: Vec<StoreError>,
    /// What is odd but loses nothing: a wrong `total_size`. If held to the format's description
    /// ([`Strictness::Spec`]), that is a problem.
    pub warnings: Vec<String>,
}

impl FileVerdict {
    /// Of a file of which nothing is known yet.
    fn unseen(file: String) -> FileVerdict {
        FileVerdict {
            file,
            file_bytes: 0,
            expected_bytes: None,
            header: None,
            problem: None,
            unreadable: Vec::new(),
        }
    }
}

impl IndexVerdict {
    /// What is between the index and its shards; what is inside them is said file by file.
    pub(crate) fn of(
        file: String,
        open: impl FnOnce(&OpenOptions) -> Result<Checkpoint, StoreError>,
        options: &OpenOptions,
    ) -> IndexVerdict {
        let mut verdict = IndexVerdict {
            file,
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        let strict = options.strictness == Strictness::Spec;
        let options = OpenOptions {
            strictness: Strictness::Compat,
            ..*options
        };
        match open(&options) {
            Ok(checkpoint) => {
                verdict.problems = checkpoint.disagreements();
                verdict.warnings = checkpoint.warnings().to_vec();
            }
            Err(StoreError::Format { .. }) => {}
            Err(error) => verdict.problems.push(error),
        }
        if strict {
            let file = &verdict.file;
            let problems = verdict.warnings.drain(..).map(|problem| {
                let file = file.clone();
                StoreError::BadIndex { file, problem }
            });
            verdict.problems.extend(problems);
        }
        verdict
    }
}

/// What is wrong with one file, if anything is.
#[derive(Debug)]
pub struct FileVerdict {
    /// The file.
    pub file: String,
    /// Its size.
    pub file_bytes: u64,
    /// The size that its header asks for, if that can be read.
    pub expected_bytes: Option<u64>,
    /// What its header says, if it can be read: also of a file that is cut short or too long.
    pub header: Option<Header>,
    /// The rule that the file breaks, or why it can't be read at all.
    pub problem: Option<StoreError>,
    /// Where the system could not read.
    pub unreadable: Vec<Unreadable>,
}

/// Bytes of a file that the system could not read.
#[derive(Debug)]
pub struct Unreadable {
    /// Which, from the file's start.
    pub bytes: Range<u64>,
    /// What the system says.
    pub error: io::Error,
}

impl FileVerdict {
    /// Whether nothing is wrong at all.
    pub fn is_intact(&self) -> bool {
        self.problem.is_none() && self.unreadable.is_empty()
    }

    /// The tensors all of whose bytes are there and readable.
    pub fn intact(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.tensors()
            .filter(|tensor| self.is_readable(tensor.data_offsets))
    }

    /// The tensors of which bytes are missing or unreadable.
    pub fn damaged(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.tensors()
            .filter(|tensor| !self.is_readable(tensor.data_offsets))
    }

    /// The tensors of unknown dtypes, if [`OpenOptions::opaque_dtypes`] asked for them, and whether all their bytes are there
    /// and readable.
    pub fn opaque_tensors(&self) -> impl Iterator<Item = (OpaqueTensor<'_>, bool)> {
        let headers = self.header.iter();
        let tensors = headers.flat_map(Header::opaque_tensors);
        tensors.map(|tensor| (tensor, self.is_readable(tensor.data_offsets)))
    }

    fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        let headers = self.header.iter();
        headers.flat_map(|header| header.tensors().iter())
    }

    fn is_readable(&self, data_offsets: (u64, u64)) -> bool {
        let data_start = self.header.as_ref().map_or(0, Header::data_start);
        let start = data_start.saturating_add(data_offsets.0);
        let end = data_start.saturating_add(data_offsets.1);
        let damaged = |part: &Unreadable| part.bytes.start < end && start < part.bytes.end;
        end <= self.file_bytes && !self.unreadable.iter().any(damaged)
    }
}

/// Checks a `.safetensors` file, an index with all its shards, or all safetensors files of a folder or pattern, and reads
/// every byte of them.
///
/// `progress` gets the bytes that are read and all bytes; [`ControlFlow::Break`] ends it.
///
/// ```
/// use std::ops::ControlFlow;
/// use safelight_store::{OpenOptions, verify};
///
/// let path = std::env::temp_dir().join(format!("safelight-verify-{}.safetensors", std::process::id()));
/// // The header describes 2 bytes, the file ends after the first.
/// let json = br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
/// std::fs::write(&path, [&(json.len() as u64).to_le_bytes()[..], json, b"x"].concat())?;
///
/// let verdict = verify(&path, &OpenOptions::default(), &mut |_, _| ControlFlow::Continue(()))?;
/// let file = &verdict.files[0];
/// assert!(!verdict.is_intact());
/// assert_eq!(file.intact().map(|tensor| tensor.name).collect::<Vec<_>>(), ["a"]);
/// assert_eq!(file.damaged().map(|tensor| tensor.name).collect::<Vec<_>>(), ["b"]);
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`StoreError::Stopped`]; what the system says about `path` itself. All that is wrong with the files is in the verdict
/// (of a file behind a URL, see [`crate::location::verify`], only what its bytes say: what fails on the way is an error).
pub fn verify(
    path: &Path,
    options: &OpenOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Verdict, StoreError> {
    let there = |path: &Path| fs::metadata(path).map_err(StoreError::io("open", path));
    let meant = Meant::of(path)?;
    let mut index = None;
    let files: BTreeSet<PathBuf> = match &meant {
        Meant::File(path) => there(path).map(|_| [path.clone()].into())?,
        Meant::Files(files) => files.iter().cloned().collect(),
        Meant::Index(path) => {
            there(path)?;
            let open = |options: &OpenOptions| Checkpoint::open_with(path, options);
            index = Some(IndexVerdict::of(path_text(path), open, options));
            // What is wrong with the index itself, opening it has said.
            let shards = shards::shard_paths(path).unwrap_or_default();
            shards.into_iter().collect()
        }
    };
    let mut verdict = Verdict {
        index,
        problems: Vec::new(),
        files: Vec::new(),
    };
    let sizes = files
        .iter()
        .map(|path| fs::metadata(path).map_or(0, |metadata| metadata.len()));
    let all_bytes = sizes.sum();
    let mut done_bytes = 0;
    for path in &files {
        let mut add = |bytes: u64| {
            done_bytes += bytes;
            progress(done_bytes, all_bytes)
        };
        verdict.files.push(verify_file(path, options, &mut add)?);
    }
    match (&meant, &mut verdict.files[..]) {
        (Meant::Files(files), _) => {
            verdict.problems = between(&path_text(path), files, &verdict.files);
        }
        // A file that may not be opened is not damaged: nobody knows.
        (Meant::File(_), [file]) => {
            if let Some(error) = file.problem.take_if(|problem| problem.is_denied()) {
                return Err(error);
            }
        }
        _ => {}
    }
    Ok(verdict)
}

/// What is wrong between files that no index holds together.
fn between(label: &str, paths: &[PathBuf], files: &[FileVerdict]) -> Vec<StoreError> {
    let mut problems = wrong_names(label, paths, Chosen::Found);
    let headers = files.iter();
    let headers = headers.filter_map(|file| Some((file.file.as_str(), file.header.as_ref()?)));
    problems.extend(in_two_files(label, headers));
    problems
}

fn verify_file(
    path: &Path,
    options: &OpenOptions,
    add: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<FileVerdict, StoreError> {
    let mut verdict = FileVerdict::unseen(path_text(path));
    let source = match FileSource::open(path) {
        Ok(source) => source,
        Err(error) => {
            verdict.problem = Some(error);
            return Ok(verdict);
        }
    };
    verify_source(&source, options, &mut verdict, add)?;
    Ok(verdict)
}

fn verify_source(
    source: &FileSource,
    options: &OpenOptions,
    verdict: &mut FileVerdict,
    add: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    verdict.file_bytes = source.file_bytes;
    check_header(source, options, verdict)?;
    source.will_read(&[(0, source.file_bytes)]);
    walk(source, verdict, add)?;
    if let Err(error) = source.unchanged() {
        verdict.problem.get_or_insert(error);
    }
    Ok(())
}

/// A file's header; `None` if it is no safetensors file.
#[cfg(feature = "remote")]
pub(crate) fn header(source: &FileSource) -> Result<Option<Header>, StoreError> {
    let options = OpenOptions::default();
    let prefix = match source.read_prefix(&options) {
        Ok(prefix) => prefix,
        Err(StoreError::Format { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let (strictness, limits) = (options.strictness, options.limits);
    let header = Header::parse(&prefix, source.file_bytes, strictness, &limits);
    Ok(header.ok())
}

/// Walks files that are open: the one behind a URL, or the shards of the index behind it.
#[cfg(feature = "remote")]
pub(crate) fn verify_opened(
    sources: &[FileSource],
    options: &OpenOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Verdict, StoreError> {
    let mut verdict = Verdict {
        index: None,
        problems: Vec::new(),
        files: Vec::new(),
    };
    let all_bytes = sources.iter().map(|source| source.file_bytes).sum();
    let mut done_bytes = 0;
    for source in sources {
        let mut file = FileVerdict::unseen(source.label.clone());
        let mut add = |bytes: u64| {
            done_bytes += bytes;
            progress(done_bytes, all_bytes)
        };
        verify_source(source, options, &mut file, &mut add)?;
        verdict.files.push(file);
    }
    Ok(verdict)
}

/// Parses the header; that of a file of the wrong size too, so that its tensors have names.
fn check_header(
    source: &FileSource,
    options: &OpenOptions,
    verdict: &mut FileVerdict,
) -> Result<(), StoreError> {
    let prefix = match source.read_prefix(options) {
        Ok(prefix) => prefix,
        Err(error @ StoreError::Io { .. }) if source.is_far() => return Err(error),
        Err(error) => {
            verdict.problem = Some(error);
            return Ok(());
        }
    };
    let parse = |file_bytes| Header::parse_with(&prefix, file_bytes, &options.parse());
    match parse(source.file_bytes) {
        Ok(header) => {
            verdict.expected_bytes = Some(source.file_bytes);
            verdict.header = Some(header);
        }
        Err(error) => {
            if let FormatError::FileTooShort { expected_bytes, .. }
            | FormatError::FileTooLong { expected_bytes, .. } = error
            {
                verdict.expected_bytes = Some(expected_bytes);
                verdict.header = parse(expected_bytes).ok();
            }
            verdict.problem = Some(source.not_safetensors(error));
        }
    }
    Ok(())
}

/// What a thread that reads tells.
enum News {
    Read(u64),
    Unreadable(Unreadable),
    Failed(StoreError),
    /// The way to the file is lost, which says nothing about the file.
    Lost(StoreError),
}

/// Reads every byte.
fn walk(
    source: &FileSource,
    verdict: &mut FileVerdict,
    add: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let chunk_count = source.file_bytes.div_ceil(CHUNK_BYTES);
    let threads = thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX));
    let threads = threads.min(usize::try_from(chunk_count).unwrap_or(THREADS_MAX));
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (news, incoming) = channel();
    thread::scope(|scope| {
        for _ in 0..threads {
            let (next, stop, news) = (&next, &stop, news.clone());
            scope.spawn(move || {
                let mut buffer = vec![0; CHUNK_BYTES.min(source.file_bytes) as usize];
                while !stop.load(Ordering::Relaxed) {
                    let at = next
                        .fetch_add(1, Ordering::Relaxed)
                        .saturating_mul(CHUNK_BYTES);
                    if at >= source.file_bytes {
                        break;
                    }
                    let bytes = at..source.file_bytes.min(at + CHUNK_BYTES);
                    source.read_soon(at, CHUNK_BYTES);
                    read_chunk(source, bytes, &mut buffer, &news);
                }
            });
        }
        drop(news);
        let mut ended = None;
        for news in incoming {
            match news {
                News::Read(bytes) => {
                    if ended.is_none() && add(bytes).is_break() {
                        ended = Some(source.stopped());
                    }
                }
                News::Lost(error) => {
                    ended.get_or_insert(error);
                }
                News::Unreadable(part) => verdict.unreadable.push(part),
                News::Failed(error) => {
                    if let StoreError::Shrank { now_bytes, .. } = error {
                        verdict.file_bytes = verdict.file_bytes.min(now_bytes);
                    }
                    verdict.problem.get_or_insert(error);
                    stop.store(true, Ordering::Relaxed);
                }
            }
            if ended.is_some() {
                stop.store(true, Ordering::Relaxed);
            }
        }
        verdict.unreadable.sort_by_key(|part| part.bytes.start);
        ended.map_or(Ok(()), Err)
    })
}

/// Reads a chunk; where that fails, in small patches, to know which of them fail.
fn read_chunk(source: &FileSource, bytes: Range<u64>, buffer: &mut [u8], news: &Sender<News>) {
    let size = bytes.end - bytes.start;
    let buffer = &mut buffer[..size as usize];
    let message = match source.read_exact_at(buffer, bytes.start) {
        Ok(()) => News::Read(size),
        // Disks have bad places, and good ones beside them; a server that can't be reached has neither.
        Err(error) if source.is_far() => News::Lost(error),
        Err(StoreError::Io { error, .. }) if size <= PATCH_BYTES => {
            News::Unreadable(Unreadable { bytes, error })
        }
        Err(StoreError::Io { .. }) => {
            let mut at = bytes.start;
            while at < bytes.end {
                let next = bytes.end.min(at + PATCH_BYTES);
                read_chunk(source, at..next, buffer, news);
                at = next;
            }
            return;
        }
        Err(error) => News::Failed(error),
    };
    // Nobody listens any more only if the walk is over.
    let _ = news.send(message);
}
