//! What goes wrong with files, by who can act.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use safelight_format::{DecodeError, FormatError, SliceError, WriteError, are, plural, shown};

/// As many missing things as a message lists.
const LISTED_MAX: usize = 8;

/// Why a checkpoint cannot be opened, read or written. `file` is a path, or the label of a buffer.
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// The operating system refuses: no such file, no permission, disk full, …
    Io {
        /// What was being done, such as "open".
        doing: &'static str,
        /// To what.
        file: String,
        /// What the system says.
        error: io::Error,
    },
    /// A folder, device or pipe where a file should be.
    NotAFile {
        /// The path.
        file: String,
        /// What it is.
        what: &'static str,
    },
    /// A URL that is not understood, or of a kind that this build does not read.
    BadLocation {
        /// The URL, without secrets.
        location: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The file's content is not a safetensors file.
    Format {
        /// The file.
        file: String,
        /// Why not.
        error: FormatError,
    },
    /// What a damaged file says about itself does not agree, so that a repair would be a guess.
    Contradictory {
        /// The file.
        file: String,
        /// What does not agree, with the numbers.
        problem: String,
    },
    /// The file became shorter after it was opened: someone is writing to it.
    Shrank {
        /// The file.
        file: String,
        /// Its size when it was opened.
        opened_bytes: u64,
        /// Its size now, as far as known.
        now_bytes: u64,
    },
    /// The caller's progress function asked to stop.
    Stopped {
        /// The file that was being read.
        file: String,
    },
    /// A tensor was asked for that is not there.
    NoSuchTensor {
        /// The file.
        file: String,
        /// What was asked for.
        tensor: String,
    },
    /// A tensor cannot be read as `f32`s.
    Decode {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Why not.
        error: DecodeError,
    },
    /// An index does not fit the tensor.
    Slice {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Why not.
        error: SliceError,
    },
    /// A tensor's bytes lie in a file that is not mapped, so there is nothing to look at.
    NotInMemory {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// The tensor does not fit into memory.
    OutOfMemory {
        /// The file.
        file: String,
        /// The tensor, or "the header".
        what: String,
        /// What was asked for.
        byte_count: u64,
    },
    /// A shard index is no JSON of the expected form.
    BadIndex {
        /// The index file.
        file: String,
        /// What is wrong, where.
        problem: String,
    },
    /// A shard index names a file outside its own folder.
    ShardOutside {
        /// The index file.
        file: String,
        /// The name it gives.
        shard: String,
    },
    /// Shards are not there that the index names, or that other files' names count (`model-00001-of-00003.safetensors`).
    ShardsMissing {
        /// The index file, or the folder, pattern or list.
        file: String,
        /// All that are missing.
        shards: Vec<String>,
        /// How many there should be.
        shard_count: usize,
    },
    /// The index says that tensors lie in shards that do not have them.
    NotInShard {
        /// The index file.
        file: String,
        /// All such tensors, with their shard.
        tensors: Vec<(String, String)>,
    },
    /// Tensors are in two of the files that were to be opened as one.
    InTwoFiles {
        /// The folder, pattern or list.
        file: String,
        /// All such tensors, with the first two files.
        tensors: Vec<(String, String, String)>,
    },
    /// Files that were to be opened as one belong to several sets of shards by their names.
    MixedShards {
        /// The folder, pattern or list.
        file: String,
        /// Which sets, or which name is impossible.
        problem: String,
    },
    /// A folder without a safetensors file.
    NoModel {
        /// The folder.
        folder: String,
    },
    /// A pattern that no file fits, and that is no file's name.
    NoMatch {
        /// The pattern.
        pattern: String,
    },
    /// A folder with several indexes.
    SeveralIndexes {
        /// The folder.
        folder: String,
        /// The indexes.
        indexes: Vec<String>,
    },
    /// Shards have tensors that the index does not give them (strict only).
    NotInIndex {
        /// The index file.
        file: String,
        /// All such tensors, with their shard.
        tensors: Vec<(String, String)>,
    },
    /// A piece was written that reaches beyond its tensor.
    OutsideTensor {
        /// The file that is being written.
        file: String,
        /// The tensor.
        tensor: String,
        /// Where the piece starts in it.
        offset: u64,
        /// How long the piece is.
        byte_count: u64,
        /// How long the tensor is.
        tensor_bytes: u64,
    },
    /// A piece was written whose bytes, or some of them, were written before.
    WrittenTwice {
        /// The file that is being written.
        file: String,
        /// The tensor.
        tensor: String,
        /// Where the piece starts in it.
        offset: u64,
        /// How long the piece is.
        byte_count: u64,
    },
    /// A piece was written whose turn it is not, to an output where nobody can go back.
    OutOfOrder {
        /// The file that is being written.
        file: String,
        /// The piece's tensor.
        tensor: String,
        /// The tensor that comes next; `None` if all are complete.
        expected: Option<String>,
    },
    /// A file was finished before all of its bytes were written.
    Unwritten {
        /// The file that is being written.
        file: String,
        /// All such tensors, with the number of bytes that are missing.
        tensors: Vec<(String, u64)>,
    },
    /// A tensor's strides do not fit its shape or its memory.
    BadStrides {
        /// The tensor.
        tensor: String,
        /// What is wrong, with numbers.
        problem: String,
    },
    /// A change in place was asked for that the header has no room for.
    NoRoom {
        /// The file.
        file: String,
        /// How long the header would be.
        need_bytes: u64,
        /// How long it is.
        room_bytes: u64,
    },
    /// Another program has been editing the file for a long time.
    Busy {
        /// The file.
        file: String,
    },
    /// Another program wrote to the file while it was being copied.
    Changed {
        /// The file.
        file: String,
    },
    /// Another program wrote to the file while it was being read: what was read is a mixture.
    ChangedMeanwhile {
        /// The file.
        file: String,
        /// What shows it, with the numbers.
        problem: String,
    },
    /// An edit of the file was interrupted, and it cannot be undone now.
    Interrupted {
        /// The file.
        file: String,
        /// Where its old bytes are.
        record: String,
        /// Why not now.
        problem: String,
    },
    /// The tensors to be written contradict themselves. Nothing was written.
    Write {
        /// The file that would have been written.
        file: String,
        /// Why not.
        error: WriteError,
    },
}

impl StoreError {
    /// The [`StoreError`] that a reader's error was made around, as those of [`crate::WatchedFile`] are; `None` if it is only the
    /// system's.
    pub fn inside(error: &io::Error) -> Option<&StoreError> {
        error.get_ref()?.downcast_ref()
    }

    /// Whether the system does not let us at the file: nothing is known of its content then.
    pub fn is_denied(&self) -> bool {
        matches!(self, StoreError::Io { error, .. } if error.kind() == io::ErrorKind::PermissionDenied)
    }

    /// For `map_err`: adds what was being done to which file.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        let file = path_text(path);
        move |error| StoreError::Io { doing, file, error }
    }
}

/// A path as text for messages.
pub(crate) fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A path from a foreign name, relative to a folder.
pub(crate) fn beside(file: &Path, name: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(name)
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StoreError::Io { error, .. } => Some(error),
            StoreError::Format { error, .. } => Some(error),
            StoreError::Decode { error, .. } => Some(error),
            StoreError::Slice { error, .. } => Some(error),
            StoreError::Write { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// One line that says everything; [`std::error::Error::source`] repeats its end.
impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Io { doing, file, error } => {
                write!(f, "cannot {doing} {}: {error}", shown(file))
            }
            StoreError::NotAFile { file, what } => {
                write!(f, "{}: this is {what}, a file is expected", shown(file))
            }
            StoreError::BadLocation { location, problem } => {
                write!(f, "{}: {}", shown(location), shown(problem))
            }
            StoreError::Format { file, error } => write!(f, "{}: {error}", shown(file)),
            StoreError::Contradictory { file, problem } => {
                write!(f, "{}: {problem}", shown(file))
            }
            StoreError::Shrank {
                file,
                opened_bytes,
                now_bytes,
            } => write!(
                f,
                "{}: the file had {opened_bytes} bytes when it was opened and now has {now_bytes}; \
                 wait until nobody writes to it and open it again",
                shown(file)
            ),
            StoreError::Stopped { file } => write!(f, "{}: stopped before its end", shown(file)),
            StoreError::NoSuchTensor { file, tensor } => {
                write!(f, "{}: there is no tensor `{}`", shown(file), shown(tensor))
            }
            StoreError::Decode {
                file,
                tensor,
                error,
            } => {
                write!(f, "{}: tensor `{}`: {error}", shown(file), shown(tensor))
            }
            StoreError::Slice {
                file,
                tensor,
                error,
            } => {
                write!(f, "{}: tensor `{}`: {error}", shown(file), shown(tensor))
            }
            StoreError::NotInMemory { file, tensor } => write!(
                f,
                "{}: tensor `{}` lies in a file that is not mapped; read it instead",
                shown(file),
                shown(tensor)
            ),
            StoreError::OutOfMemory {
                file,
                what,
                byte_count,
            } => {
                write!(
                    f,
                    "{}: {} needs {byte_count} bytes of memory, which are not there",
                    shown(file),
                    shown(what)
                )
            }
            StoreError::Write { file, error } => write!(f, "cannot write {}: {error}", shown(file)),
            _ => self.fmt_index(f),
        }
    }
}

impl StoreError {
    /// The messages about shard indexes.
    fn fmt_index(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::BadIndex { file, problem } => {
                write!(f, "{}: not a shard index: {}", shown(file), shown(problem))
            }
            StoreError::ShardOutside { file, shard } => write!(
                f,
                "{}: the index names the shard `{}`, which may lie outside the index's folder; \
                 only files in or below that folder are read",
                shown(file),
                shown(shard)
            ),
            StoreError::ShardsMissing {
                file,
                shards,
                shard_count,
            } => {
                write!(
                    f,
                    "{}: {} of {} {} missing: ",
                    shown(file),
                    shards.len(),
                    plural(*shard_count as u64, "shard"),
                    are(shards.len() as u64)
                )?;
                list(f, shards.iter().map(|shard| format!("`{}`", shown(shard))))?;
                write!(f, "; put them beside the others")
            }
            StoreError::NotInShard { file, tensors } => {
                write!(
                    f,
                    "{}: the index names {} that {} not where it says: ",
                    shown(file),
                    plural(tensors.len() as u64, "tensor"),
                    are(tensors.len() as u64)
                )?;
                list(
                    f,
                    tensors
                        .iter()
                        .map(|(name, shard)| format!("`{}` in `{}`", shown(name), shown(shard))),
                )?;
                write!(f, "; index and shards are from different models")
            }
            StoreError::InTwoFiles { file, tensors } => {
                write!(
                    f,
                    "{}: {} {} in two files: ",
                    shown(file),
                    plural(tensors.len() as u64, "tensor"),
                    are(tensors.len() as u64)
                )?;
                let twice = tensors.iter().map(|(name, first, second)| {
                    let (first, second) = (shown(first), shown(second));
                    format!("`{}` in `{first}` and `{second}`", shown(name))
                });
                list(f, twice)?;
                write!(
                    f,
                    "; open only one of the two files, or an index that says which is meant"
                )
            }
            StoreError::MixedShards { file, problem } => {
                write!(f, "{}: {}", shown(file), shown(problem))
            }
            StoreError::NoMatch { pattern } => write!(
                f,
                "{}: there is no such file, nor one that fits it as a pattern (`*`, `?` and `[…]` in the last part of a path)",
                shown(pattern)
            ),
            StoreError::NoModel { folder } => {
                write!(f, "{}: there is no safetensors file", shown(folder))
            }
            StoreError::SeveralIndexes { folder, indexes } => {
                write!(
                    f,
                    "{}: there are {} indexes: ",
                    shown(folder),
                    indexes.len()
                )?;
                list(f, indexes.iter().map(|index| format!("`{}`", shown(index))))?;
                write!(f, "; open one of them")
            }
            StoreError::NotInIndex { file, tensors } => {
                write!(
                    f,
                    "{}: {} {} in shards but not in the index: ",
                    shown(file),
                    plural(tensors.len() as u64, "tensor"),
                    are(tensors.len() as u64)
                )?;
                list(
                    f,
                    tensors
                        .iter()
                        .map(|(name, shard)| format!("`{}` in `{}`", shown(name), shown(shard))),
                )
            }
            other => other.fmt_writing(f),
        }
    }

    /// The messages about writing piece by piece.
    fn fmt_writing(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::OutsideTensor {
                file,
                tensor,
                offset,
                byte_count,
                tensor_bytes,
            } => write!(
                f,
                "cannot write {}: {byte_count} bytes at {offset} reach beyond tensor `{}`, which has {tensor_bytes}",
                shown(file),
                shown(tensor)
            ),
            StoreError::WrittenTwice {
                file,
                tensor,
                offset,
                byte_count,
            } => write!(
                f,
                "cannot write {}: of the {byte_count} bytes at {offset} of tensor `{}`, some were written before",
                shown(file),
                shown(tensor)
            ),
            StoreError::OutOfOrder {
                file,
                tensor,
                expected,
            } => {
                let (file, tensor) = (shown(file), shown(tensor));
                write!(f, "cannot write {file}: tensor `{tensor}` came, ")?;
                match expected {
                    Some(next) => write!(f, "but `{}` is next in the file", shown(next)),
                    None => write!(f, "but all tensors are complete"),
                }
            }
            StoreError::Unwritten { file, tensors } => {
                write!(
                    f,
                    "cannot finish {}: {} {} not complete: ",
                    shown(file),
                    plural(tensors.len() as u64, "tensor"),
                    are(tensors.len() as u64)
                )?;
                list(
                    f,
                    tensors
                        .iter()
                        .map(|(name, missing)| format!("`{}` lacks {missing} bytes", shown(name))),
                )
            }
            StoreError::BadStrides { tensor, problem } => {
                write!(f, "tensor `{}` cannot be packed: {problem}", shown(tensor))
            }
            StoreError::NoRoom {
                file,
                need_bytes,
                room_bytes,
            } => write!(
                f,
                "cannot change {} in place: its header has {room_bytes} bytes and would need {need_bytes}; \
                 let the file be copied",
                shown(file)
            ),
            StoreError::Busy { file } => write!(
                f,
                "{}: another program is editing this file; try again when it is done",
                shown(file)
            ),
            StoreError::Changed { file } => write!(
                f,
                "{}: another program wrote to this file at the same time; nothing was changed, try again",
                shown(file)
            ),
            StoreError::ChangedMeanwhile { file, problem } => write!(
                f,
                "{}: was changed while it was read ({problem}); run again when nobody writes to it",
                shown(file)
            ),
            StoreError::Interrupted {
                file,
                record,
                problem,
            } => write!(
                f,
                "{}: an edit of this file was interrupted, and its old bytes are in {}: {}",
                shown(file),
                shown(record),
                shown(problem)
            ),
            other => write!(f, "{other:?}"),
        }
    }
}

/// Items with commas; the first few and how many more.
fn list(f: &mut fmt::Formatter<'_>, items: impl ExactSizeIterator<Item = String>) -> fmt::Result {
    let count = items.len();
    for (position, item) in items.take(LISTED_MAX).enumerate() {
        write!(f, "{}{item}", if position > 0 { ", " } else { "" })?;
    }
    if count > LISTED_MAX {
        write!(f, " and {} more", count - LISTED_MAX)?;
    }
    Ok(())
}
