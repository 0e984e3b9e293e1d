//! Changing files that exist: metadata, names, one tensor's bytes, more tensors, fewer.
//!
//! # What is guaranteed
//!
//! Let "killed" mean that the program or another one dies at any moment (`kill -9`, out of
//! memory), and "power cut" that the machine does.
//!
//! | [`Strategy`] | what happens | killed: other programs see | killed: this library sees | power cut (with `sync`) |
//! |---|---|---|---|---|
//! | [`Strategy::Copy`] | a new file beside the old, renamed into its place | the old or the new file | the same | the same |
//! | [`Strategy::Auto`], change within one page | one write into the page | the old or the new file | the same | old or new, once this library has opened it |
//! | [`Strategy::Auto`], a header that fits and more than one page of it changes | as [`Strategy::InPlace`] | as there | as there | as there |
//! | [`Strategy::Auto`], more than one page of tensors, or a header that does not fit | as [`Strategy::Copy`] | the old or the new file | the same | the same |
//! | [`Strategy::InPlace`] | old bytes into an undo record, then writes | possibly a part of the change, until this library opens the file | the old or the new file | old or new, once this library has opened it |
//!
//! A page is 4096 bytes from a multiple of 4096 on: the kernel copies a write into its page cache
//! page by page and does not stop within one, so no killed process leaves half of it. A program that
//! *reads* at the very moment of a write in place may see a part of it; one that has mapped the file
//! sees the change. Files replaced by a copy keep their old content for those who have them open.
//!
//! Copies are made in the kernel, and where the file system can share blocks between files
//! (Btrfs, XFS with reflinks, …) they cost neither time nor room. They leave spare room in
//! the header ([`EditOptions::reserve_header_bytes`]), so that the next edit of metadata is a
//! matter of one page.
//!
//! The undo record is `.NAME.safelight-undo` beside the file. [`crate::Checkpoint::open`] and every
//! edit look for it (one system call) and put the old bytes back. Editors of this library lock
//! the file against each other, and openers wait while an edit with a record is under way.

mod record;
mod tensors;
mod text;

use std::collections::BTreeMap;
use std::fs::{File, Metadata as FileMetadata};
use std::io;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use safelight_format::{
    FormatError, Header, Limits, Metadata, ParseOptions, Strictness, WriteError, header_bytes,
};

use crate::atomic::{Publish, Temporary};
use crate::error::{StoreError, path_text};
use crate::sys;
use text::{Entries, LENGTH_BYTES};

pub(crate) use record::forget as forget_record;
pub use record::recover;
pub use tensors::{append, drop_tensors, patch_tensor, rename_tensors};
pub(crate) use text::spread;

/// What the kernel writes into its page cache without a break.
const PAGE_BYTES: u64 = 4096;

/// How a change reaches the file; the [module](self) says what each one guarantees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// In place if the change lies within one page (safe for all readers) or is a header's that has room for it (with an undo
    /// record), else by a copy.
    #[default]
    Auto,
    /// In place, with an undo record, or not at all.
    InPlace,
    /// A new file, renamed into the old one's place.
    Copy,
}

/// How a file is edited.
#[derive(Clone, Copy, Debug)]
pub struct EditOptions {
    /// In place, or by a copy.
    pub strategy: Strategy,
    /// Wait for the disk: the guarantees about power cuts need it.
    pub sync: bool,
    /// Where the header has to grow, it gets this much spare room for later edits (and up to a page
    /// more).
    pub reserve_header_bytes: u64,
    /// How much the file's header may ask for, before and after the edit.
    pub limits: Limits,
    /// For [`set_metadata`]: files with tensors of dtypes that the format does not have are edited too; their entries stay as
    /// they are.
    pub opaque_dtypes: bool,
}

impl Default for EditOptions {
    /// [`Strategy::Auto`], synced, 4 KiB of spare room, the parser's own limits, no unknown dtypes.
    fn default() -> EditOptions {
        EditOptions {
            strategy: Strategy::Auto,
            sync: true,
            reserve_header_bytes: 4096,
            limits: Limits::default(),
            opaque_dtypes: false,
        }
    }
}

/// What an edit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edited {
    /// How the change was made.
    pub how: How,
    /// The file's size now.
    pub file_bytes: u64,
    /// Why the file was copied, if it was.
    pub why_copied: Option<WhyCopied>,
}

/// Why an edit copied the file instead of changing it in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhyCopied {
    /// [`Strategy::Copy`] was asked for.
    Asked,
    /// The header has no room.
    NoRoom {
        /// How long the header would be at least.
        need_bytes: u64,
        /// How long it is.
        room_bytes: u64,
    },
    /// The file system has no locks, without which nothing is edited in place.
    NoLocks,
    /// Tensors change, come or go: more than one page.
    Tensors,
}

/// What hears how many bytes of a copy are done, and of how many; [`ControlFlow::Break`] ends the edit, with the file as it was.
pub type CopyProgress<'p> = &'p dyn Fn(u64, u64) -> ControlFlow<()>;

fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// What is copied between two calls of a [`CopyProgress`].
const COPY_STEP_BYTES: u64 = 16 * 1024 * 1024;

/// How a change was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// There was nothing to change.
    Unchanged,
    /// Bytes of the file were overwritten.
    InPlace,
    /// The file shares its data's blocks with the old one's; only what changed was written.
    Cloned,
    /// The file was copied.
    Copied,
}

/// Sets (`Some`) and removes (`None`) keys of a file's `__metadata__`; tensors stay as they are.
///
/// ```
/// # use safelight_format::{Dtype, TensorView};
/// # use safelight_store::{Checkpoint, SaveOptions, save};
/// use safelight_store::edit::{self, EditOptions};
///
/// # let folder = std::env::temp_dir().join(format!("safelight-edit-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// # let path = folder.join("model.safetensors");
/// # let bias = TensorView { name: "bias", dtype: Dtype::U8, shape: &[1], bytes: &[1] };
/// # save(&path, &[bias], None, &SaveOptions::default())?;
/// let changes = [("title".to_owned(), Some("A house".to_owned())), ("draft".to_owned(), None)];
/// edit::set_metadata(&path, &changes.into(), &EditOptions::default())?;
/// assert_eq!(Checkpoint::open(&path)?.metadata().unwrap()["title"], "A house");
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`StoreError::NoRoom`] if [`Strategy::InPlace`] is asked for and the header has no room;
/// [`StoreError::Write`] if the header became too long; [`StoreError::Format`] if the file is no
/// safetensors file; [`StoreError::Busy`]; [`StoreError::Io`]. The file is then what it was.
pub fn set_metadata(
    path: &Path,
    changes: &BTreeMap<String, Option<String>>,
    options: &EditOptions,
) -> Result<Edited, StoreError> {
    set_metadata_with(path, changes, options, &go_on)
}

/// As [`set_metadata`]; `progress` hears of the copy, if one has to be made.
///
/// # Errors
/// As there, and [`StoreError::Stopped`] if `progress` broke it off: then nothing has changed.
pub fn set_metadata_with(
    path: &Path,
    changes: &BTreeMap<String, Option<String>>,
    options: &EditOptions,
    progress: CopyProgress<'_>,
) -> Result<Edited, StoreError> {
    let mut editor = Editor::open(path, options, options.opaque_dtypes)?;
    editor.progress = progress;
    let plan = editor.metadata_plan(changes, options)?;
    editor.carry_out(plan, options)
}

/// Whether [`set_metadata`] would work, as far as that can be known beforehand: the file is sound and may be written to, the new header is
/// no longer than readers accept, and there is room for it if [`Strategy::InPlace`] is asked for. Nothing is changed.
///
/// # Errors
/// As [`set_metadata`].
pub fn check_metadata(
    path: &Path,
    changes: &BTreeMap<String, Option<String>>,
    options: &EditOptions,
) -> Result<(), StoreError> {
    let editor = Editor::open(path, options, options.opaque_dtypes)?;
    match editor.metadata_plan(changes, options)? {
        Plan::Fits(_) if options.strategy == Strategy::InPlace => editor.check_locked(),
        _ => Ok(()),
    }
}

/// How a header is going to change.
enum Plan {
    Nothing,
    /// To this one, of the same length.
    Fits(Vec<u8>),
    /// To this one, which is longer than there is room: at least `need_bytes`.
    Longer {
        json: Vec<u8>,
        need_bytes: u64,
    },
}

/// A file that is open for changes, locked against other editors.
pub(crate) struct Editor<'p> {
    file: File,
    progress: CopyProgress<'p>,
    /// As the caller calls it.
    path: PathBuf,
    /// Links followed.
    target: PathBuf,
    locked: bool,
    /// Length and header, as they are in the file.
    prefix: Vec<u8>,
    header: Header,
    file_bytes: u64,
    opened: FileMetadata,
    /// How the header was parsed.
    parse: ParseOptions,
}

impl<'p> Editor<'p> {
    fn open(
        path: &Path,
        options: &EditOptions,
        opaque_dtypes: bool,
    ) -> Result<Editor<'p>, StoreError> {
        let record::Locked {
            file,
            target,
            locked,
        } = record::open_locked(path)?;
        let opened = file.metadata().map_err(StoreError::io("open", path))?;
        let file_bytes = opened.len();
        let parse = ParseOptions {
            strictness: Strictness::Compat,
            limits: options.limits,
            opaque_dtypes,
        };
        let bad = |error: FormatError| StoreError::Format {
            file: path_text(path),
            error,
        };
        let mut prefix = vec![0; file_bytes.min(512) as usize]; // enough to say what else it may be
        sys::read_at(&file, &mut prefix, 0).map_err(StoreError::io("read", path))?;
        let header_bytes = header_bytes(&prefix, file_bytes, &parse.limits).map_err(bad)?;
        prefix.resize(LENGTH_BYTES + header_bytes as usize, 0); // within the limit and within the file
        sys::read_at(&file, &mut prefix, 0).map_err(StoreError::io("read", path))?;
        let header = Header::parse_with(&prefix, file_bytes, &parse);
        let header = header.map_err(bad)?;
        Ok(Editor {
            file,
            progress: &go_on,
            path: path.to_owned(),
            target,
            locked,
            prefix,
            header,
            file_bytes,
            opened,
            parse,
        })
    }

    fn json(&self) -> &[u8] {
        &self.prefix[LENGTH_BYTES..]
    }

    fn entries(&self) -> Result<Entries, StoreError> {
        // Cannot be: what the parser accepts is an object.
        let odd = || StoreError::io("read", &self.path)(io::ErrorKind::InvalidData.into());
        Entries::of_json(self.json()).ok_or_else(odd)
    }

    fn unchanged(&self) -> Edited {
        Edited {
            how: How::Unchanged,
            file_bytes: self.file_bytes,
            why_copied: None,
        }
    }

    fn unwritable(&self, error: WriteError) -> StoreError {
        let file = path_text(&self.path);
        StoreError::Write { file, error }
    }

    fn io(&self, doing: &'static str) -> impl FnOnce(io::Error) -> StoreError {
        StoreError::io(doing, &self.path)
    }

    /// The header with other metadata.
    fn metadata_plan(
        &self,
        changes: &BTreeMap<String, Option<String>>,
        options: &EditOptions,
    ) -> Result<Plan, StoreError> {
        let mut metadata = self.header.metadata().cloned().unwrap_or_default();
        for (key, change) in changes {
            match change {
                Some(value) => drop(metadata.insert(key.clone(), value.clone())),
                None => drop(metadata.remove(key)),
            }
        }
        if metadata == *self.header.metadata().unwrap_or(&Metadata::new()) {
            return Ok(Plan::Nothing);
        }
        let entry = Entries::metadata_entry(&metadata).map_err(|error| self.unwritable(error))?;
        if let Some(json) = text::replace_in_slot(self.json(), &entry) {
            return Ok(Plan::Fits(json));
        }
        let mut entries = self.entries()?;
        entries.metadata = entry;
        self.header_plan(&entries, options)
    }

    /// The header with other entries.
    fn header_plan(&self, entries: &Entries, options: &EditOptions) -> Result<Plan, StoreError> {
        if let Some(json) = entries.filling(self.json().len()) {
            return Ok(Plan::Fits(json));
        }
        if options.strategy == Strategy::InPlace {
            return Err(self.no_room(entries));
        }
        let json = self.roomy(entries, options)?;
        let need_bytes = entries.least_bytes() as u64;
        Ok(Plan::Longer { json, need_bytes })
    }

    /// Writes other entries before the same data.
    fn change_header(
        &self,
        entries: &Entries,
        options: &EditOptions,
    ) -> Result<Edited, StoreError> {
        self.carry_out(self.header_plan(entries, options)?, options)
    }

    /// Writes a header before the same data: in place if it fits, else into a copy with more room.
    fn carry_out(&self, plan: Plan, options: &EditOptions) -> Result<Edited, StoreError> {
        let (json, need_bytes) = match plan {
            Plan::Nothing => return Ok(self.unchanged()),
            Plan::Fits(json) => return self.write_header(json, options),
            Plan::Longer { json, need_bytes } => (json, need_bytes),
        };
        let data_start = self.header.data_start();
        let copies = [(data_start, self.file_bytes - data_start)];
        let mut edited = self.write_copy(&json, &copies, &[], options)?;
        edited.why_copied = Some(WhyCopied::NoRoom {
            need_bytes,
            room_bytes: self.json().len() as u64,
        });
        Ok(edited)
    }

    fn no_room(&self, entries: &Entries) -> StoreError {
        StoreError::NoRoom {
            file: path_text(&self.path),
            need_bytes: entries.least_bytes() as u64,
            room_bytes: self.json().len() as u64,
        }
    }

    /// A header with these entries and room to spare (as much as the limit allows).
    fn roomy(&self, entries: &Entries, options: &EditOptions) -> Result<Vec<u8>, StoreError> {
        let limit_bytes = self.parse.limits.header_bytes_max.min(u32::MAX.into());
        let reserve = options.reserve_header_bytes.min(limit_bytes) as usize;
        let old_bytes = self.json().len();
        let fitting = [reserve, 0].map(|reserve| entries.roomy_bytes(old_bytes, reserve));
        let fitting = fitting
            .into_iter()
            .find(|&bytes| bytes as u64 <= limit_bytes);
        let json = fitting.and_then(|bytes| entries.filling(bytes));
        json.ok_or_else(|| {
            self.unwritable(WriteError::HeaderTooLong {
                header_bytes: entries.least_bytes() as u64,
                limit_bytes,
            })
        })
    }

    /// Writes a header of the old one's length.
    fn write_header(&self, json: Vec<u8>, options: &EditOptions) -> Result<Edited, StoreError> {
        let prefix = with_length(&json);
        self.check(&prefix, self.file_bytes);
        let Some(changed) = text::difference(&self.prefix, &prefix) else {
            return Ok(self.unchanged());
        };
        self.overwrite(changed.start as u64, &prefix[changed], options)
    }

    /// Overwrites bytes of the file: in place, or in a copy of it.
    fn overwrite(
        &self,
        at: u64,
        bytes: &[u8],
        options: &EditOptions,
    ) -> Result<Edited, StoreError> {
        let end = at + bytes.len() as u64;
        let one_page = at / PAGE_BYTES == end.saturating_sub(1) / PAGE_BYTES;
        let is_header = end <= self.header.data_start();
        let why_copied = match options.strategy {
            Strategy::Copy => Some(WhyCopied::Asked),
            Strategy::InPlace => None,
            Strategy::Auto if !self.locked => Some(WhyCopied::NoLocks),
            Strategy::Auto if one_page || is_header => None,
            Strategy::Auto => Some(WhyCopied::Tensors),
        };
        if why_copied.is_some() {
            let edited = self.overwrite_copy(at, bytes, options)?;
            return Ok(Edited {
                why_copied,
                ..edited
            });
        }
        self.check_locked()?;
        let write = || sys::write_at(&self.file, bytes, at, &self.target);
        if one_page && !options.sync {
            write().map_err(self.io("change"))?;
        } else {
            self.with_undo(at..end, options, write)?;
        }
        Ok(Edited {
            how: How::InPlace,
            file_bytes: self.file_bytes,
            why_copied: None,
        })
    }

    fn with_undo(
        &self,
        range: Range<u64>,
        options: &EditOptions,
        change: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let (file, path, target) = (&self.file, &self.path, &self.target);
        record::with_undo(file, path, target, range, options.sync, change)
    }

    /// Without a lock, an opener could take a change under way for an interrupted one.
    fn check_locked(&self) -> Result<(), StoreError> {
        if self.locked {
            return Ok(());
        }
        let error = io::Error::new(
            io::ErrorKind::Unsupported,
            "this file system has no locks, so files cannot be edited in place; let it be copied",
        );
        Err(StoreError::io("change", &self.path)(error))
    }

    /// A copy of the whole file in which some bytes are others.
    fn overwrite_copy(
        &self,
        at: u64,
        bytes: &[u8],
        options: &EditOptions,
    ) -> Result<Edited, StoreError> {
        let temporary = Temporary::for_target(&self.path)?;
        let (file, target) = (&temporary.file, &temporary.target);
        let cloned = sys::clone(&self.file, file, target);
        let filled = if cloned {
            sys::write_at(file, bytes, at, target)
        } else {
            let end = at + bytes.len() as u64;
            let mut copy = self.copying(&temporary, self.file_bytes - bytes.len() as u64);
            sys::allocate(file, self.file_bytes, target)
                .and_then(|()| copy(0, 0, at))
                .and_then(|()| sys::write_at(file, bytes, at, target))
                .and_then(|()| copy(end, end, self.file_bytes - end))
        };
        filled.map_err(|error| self.copy_failed(error))?;
        self.publish(temporary, cloned, self.file_bytes, options)
    }

    /// A new file: a header, ranges of the old file, and more bytes.
    fn write_copy(
        &self,
        json: &[u8],
        copies: &[(u64, u64)],
        more: &[&[u8]],
        options: &EditOptions,
    ) -> Result<Edited, StoreError> {
        let prefix = with_length(json);
        let copied: u64 = copies.iter().map(|copy| copy.1).sum();
        let added: u64 = more.iter().map(|bytes| bytes.len() as u64).sum();
        let file_bytes = prefix.len() as u64 + copied + added;
        self.check(&prefix, file_bytes);
        let temporary = Temporary::for_target(&self.path)?;
        let (file, target) = (&temporary.file, &temporary.target);
        let fill = || -> io::Result<()> {
            let mut copy = self.copying(&temporary, copied);
            // Reserved blocks would stay taken beside those that are shared (Btrfs frees no part of a reservation).
            if sys::clone(&self.file, file, target) {
                sys::set_length(file, 0, target)?;
            } else {
                sys::allocate(file, file_bytes, target)?;
            }
            sys::write_at(file, &prefix, 0, target)?;
            let mut at = prefix.len() as u64;
            for &(from, byte_count) in copies {
                copy(from, at, byte_count)?;
                at += byte_count;
            }
            for bytes in more {
                sys::write_at(file, bytes, at, target)?;
                at += bytes.len() as u64;
            }
            Ok(())
        };
        fill().map_err(|error| self.copy_failed(error))?;
        self.publish(temporary, false, file_bytes, options)
    }

    /// What copies a range (from, to, length) of the file into a new one, piece by piece, and tells how far it is of `all`.
    fn copying<'t>(
        &'t self,
        to: &'t Temporary,
        all: u64,
    ) -> impl FnMut(u64, u64, u64) -> io::Result<()> + use<'t, 'p> {
        let mut done_before = 0;
        move |from_at, to_at, byte_count| {
            let mut offset = 0;
            while offset < byte_count {
                let bytes = COPY_STEP_BYTES.min(byte_count - offset);
                let (from, into) = ((&self.file, from_at + offset), (&to.file, to_at + offset));
                sys::copy_range(from, into, bytes, &to.target)?;
                offset += bytes;
                if (self.progress)(done_before + offset, all).is_break() {
                    let file = path_text(&self.path);
                    return Err(io::Error::other(StoreError::Stopped { file }));
                }
            }
            done_before += byte_count;
            Ok(())
        }
    }

    fn publish(
        &self,
        temporary: Temporary,
        cloned: bool,
        file_bytes: u64,
        options: &EditOptions,
    ) -> Result<Edited, StoreError> {
        self.check_same()?;
        let publish = Publish {
            sync: options.sync,
            only_atomic: true,
        };
        temporary.publish(publish).map_err(self.io("write"))?;
        let how = if cloned { How::Cloned } else { How::Copied };
        Ok(Edited {
            how,
            file_bytes,
            why_copied: Some(match options.strategy {
                Strategy::Copy => WhyCopied::Asked,
                _ => WhyCopied::Tensors,
            }),
        })
    }

    /// Says that the file shrank rather than that "the end was met".
    fn copy_failed(&self, error: io::Error) -> StoreError {
        if let Some(StoreError::Stopped { file }) = StoreError::inside(&error) {
            return StoreError::Stopped { file: file.clone() };
        }
        match self.check_same() {
            Err(changed) => changed,
            Ok(()) => StoreError::io("write", &self.path)(error),
        }
    }

    /// Whether another program has written to the file since it was opened, as far as can be seen.
    fn check_same(&self) -> Result<(), StoreError> {
        let now = self.file.metadata().map_err(self.io("read"))?;
        if now.len() < self.file_bytes {
            return Err(StoreError::Shrank {
                file: path_text(&self.path),
                opened_bytes: self.file_bytes,
                now_bytes: now.len(),
            });
        }
        let modified = [&now, &self.opened].map(|metadata| metadata.modified().ok());
        if now.len() != self.file_bytes || modified[0] != modified[1] {
            let file = path_text(&self.path);
            return Err(StoreError::Changed { file });
        }
        Ok(())
    }

    /// Our own promise: a header that is about to be written can be read.
    fn check(&self, prefix: &[u8], file_bytes: u64) {
        let parsed = Header::parse_with(prefix, file_bytes, &self.parse);
        if let Err(error) = parsed {
            panic!(
                "the edited header of {} is wrong: {error}",
                self.path.display()
            );
        }
    }
}

fn with_length(json: &[u8]) -> Vec<u8> {
    let mut prefix = (json.len() as u64).to_le_bytes().to_vec();
    prefix.extend_from_slice(json);
    prefix
}
