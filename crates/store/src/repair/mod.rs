//! Damaged files: what is left of them, written anew as a file without faults.
//!
//! A header is read here as leniently as possible: what can't be used is dropped *and told*, and every tensor whose bytes
//! are all there is kept. What [`Strictness::Compat`] reads is kept in any case.

mod doubt;
mod head;
mod recorded;
mod said;
mod start;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use safelight_format::{
    Dtype, FormatError, Header, Limits, Metadata, OpaqueSpec, Order, ParseOptions, Strictness,
    TensorSpec, shown,
};
use serde_json::Value;

use head::{Found, Head, is_padding};
use said::{Said, SaidTensor};
use start::Start;

use crate::error::{StoreError, path_text};
use crate::save::SaveOptions;
use crate::source::{FileSource, open_regular};
use crate::sys::Stamp;
use crate::writer::Writer;

/// What is copied between two calls of `progress`.
const PIECE_BYTES: u64 = 16 * 1024 * 1024;

/// What a repaired file would be.
#[derive(Debug)]
pub struct Repair {
    path: PathBuf,
    file: File,
    stamp: Option<Stamp>,
    kept: Vec<Kept>,
    metadata: Option<Metadata>,
    /// What is lost: tensors, and bytes that no tensor has.
    pub dropped: Vec<Dropped>,
    /// What is put in order without losing anything.
    pub changes: Vec<String>,
    /// Why the numbers of what is kept may be wrong, though nothing else says so: a repair that is written all the same is a guess.
    pub doubts: Vec<String>,
}

/// A tensor all of whose bytes are there.
#[derive(Clone, Debug)]
struct Kept {
    spec: TensorSpec,
    /// Of the file.
    starts_at: u64,
    byte_count: u64,
    /// Of an unknown dtype: what the header calls it and its shape. `spec` says how many bytes it has.
    opaque: Option<Box<(String, Vec<u64>)>>,
}

/// Something of a file that a repair leaves out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The tensor, the metadata's key, or the bytes; foreign text.
    pub what: String,
    /// Why it can't be kept.
    pub why: String,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", shown(&self.what), self.why)
    }
}

impl Repair {
    /// Finds out what is left of a file. Nothing is written.
    ///
    /// # Errors
    /// [`StoreError::Format`] if the header itself is cut off or no JSON, so that nothing is known of any tensor; else the system's.
    pub fn plan(path: &Path, limits: &Limits) -> Result<Repair, StoreError> {
        let source = FileSource::open(path)?;
        let bad = |error: FormatError| StoreError::Format {
            file: path_text(path),
            error,
        };
        let file_bytes = source.file_bytes;
        let options = ParseOptions {
            strictness: Strictness::Spec,
            limits: *limits,
            opaque_dtypes: true,
        };
        let head = Head::read(&source, limits)?;
        let parsed = |strictness| {
            let options = ParseOptions {
                strictness,
                ..options
            };
            Header::parse_with(&head.bytes, file_bytes, &options)
        };
        let (strict, compat) = (parsed(Strictness::Spec).err(), parsed(Strictness::Compat));
        let mut repair = Repair {
            path: path.to_owned(),
            file: open_regular(path)?,
            stamp: source.stamp,
            kept: Vec::new(),
            metadata: None,
            dropped: Vec::new(),
            changes: Vec::new(),
            doubts: Vec::new(),
        };
        match (head.found, compat) {
            (Some(mut found), compat) => {
                let start = found.start(&source)?;
                repair.tell_head(&head.bytes, &found, &start);
                let data_end = start.at.saturating_add(found.evidence.data_bytes);
                let entries = std::mem::take(&mut found.entries.0);
                let tensors = entries.iter();
                let said = tensors.filter(|(_, said)| matches!(said, Said::Tensor(_)));
                let said_count = said.count();
                repair.take(entries, start.at, file_bytes);
                if let Ok(header) = compat
                    && repair.lacks(&header)
                {
                    repair.take_header(&header);
                }
                repair.doubts = doubt::doubts(&source, &repair.kept, start.at, data_end)?;
                if repair.kept.len() == said_count {
                    repair.compare(&source)?;
                }
            }
            (None, Ok(header)) => repair.take_header(&header),
            // What no one can read as JSON is named by the parser.
            (None, Err(error)) => return Err(bad(error)),
        }
        if let (Some(error), true) = (
            strict,
            repair.dropped.is_empty() && repair.changes.is_empty(),
        ) {
            repair
                .changes
                .push(format!("the header is written anew: {error}"));
        }
        Ok(repair)
    }

    /// Compares all that the header says with the checksum in the metadata, if there is one: it knows better than any sign.
    fn compare(&mut self, source: &FileSource) -> Result<(), StoreError> {
        if !self.is_needed() && self.doubts.is_empty() {
            return Ok(());
        }
        match recorded::recorded(source, &self.kept, self.metadata.as_ref())? {
            None => {}
            Some((key, true)) => {
                self.doubts.clear();
                if self.is_needed() {
                    let what = format!("every number is as `{key}` in the metadata says");
                    self.changes.push(what);
                }
            }
            Some((key, false)) => self.doubts.push(format!(
                "`{key}` in the metadata is the checksum of other numbers: some are wrong, or were changed on purpose since it was written"
            )),
        }
        Ok(())
    }

    /// Whether the file has any fault.
    pub fn is_needed(&self) -> bool {
        !self.dropped.is_empty() || !self.changes.is_empty()
    }

    /// How many tensors are kept.
    pub fn tensor_count(&self) -> usize {
        self.kept.len()
    }

    /// How many of them have a dtype that the format does not have: their bytes are handed on as they are.
    pub fn opaque_count(&self) -> usize {
        let opaque = self.kept.iter().filter(|kept| kept.opaque.is_some());
        opaque.count()
    }

    /// The size of all that are kept.
    pub fn tensor_bytes(&self) -> u64 {
        self.kept.iter().map(|kept| kept.byte_count).sum()
    }

    /// Writes the repaired file, atomically; `target` may be the damaged file itself. Returns its size, or `None` if `progress` (bytes done, of
    /// all) broke it off: then nothing has changed.
    ///
    /// # Errors
    /// The system's; [`StoreError::ChangedMeanwhile`] if someone wrote to the damaged file since it was looked at.
    pub fn write(
        &self,
        target: &Path,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Option<u64>, StoreError> {
        let specs: Vec<TensorSpec> = self.kept.iter().map(|kept| kept.spec.clone()).collect();
        let options = SaveOptions {
            order: Order::Insertion,
            ..SaveOptions::default()
        };
        let opaque = self.kept.iter().enumerate();
        let opaque = opaque.filter_map(|(position, kept)| {
            let (dtype, shape) = &**kept.opaque.as_ref()?;
            Some(OpaqueSpec {
                position,
                dtype: dtype.clone(),
                shape: shape.clone(),
            })
        });
        let opaque: Vec<OpaqueSpec> = opaque.collect();
        let metadata = self.metadata.as_ref();
        let writer = Writer::create_with_opaque(target, &specs, &opaque, metadata, &options)?;
        let (mut done, all) = (0, self.tensor_bytes());
        let mut index = 0;
        while let Some(kept) = self.kept.get(index) {
            let together = self.together(index);
            if together > 1 {
                let indexes = index..index + together;
                let copied = writer.copy_tensors(indexes, &self.file, kept.starts_at);
                self.unchanged()?;
                done += copied?;
                index += together;
                if progress(done, all).is_break() {
                    return Ok(None);
                }
                continue;
            }
            let mut offset = 0;
            while offset < kept.byte_count {
                let bytes = PIECE_BYTES.min(kept.byte_count - offset);
                let from = kept.starts_at + offset;
                let copied = writer.copy_at(index, offset, &self.file, from, bytes);
                self.unchanged()?;
                copied?;
                offset += bytes;
                done += bytes;
                if progress(done, all).is_break() {
                    return Ok(None);
                }
            }
            index += 1;
        }
        writer.finish().map(Some)
    }

    /// An error if the file was written to since it was looked at.
    fn unchanged(&self) -> Result<(), StoreError> {
        let now = Stamp::of(&self.file).map_err(StoreError::io("read", &self.path))?;
        let then = self.stamp.as_ref();
        match then.and_then(|then| then.difference(&now)) {
            None => Ok(()),
            Some(problem) => Err(StoreError::ChangedMeanwhile {
                file: path_text(&self.path),
                problem,
            }),
        }
    }

    /// How many tensors from `index` on lie one behind the other in the damaged file, as they will in the new one, and are no more
    /// than a piece: a copy each would be a system call each.
    fn together(&self, index: usize) -> usize {
        let (mut count, mut bytes) = (0, 0);
        let start = self.kept[index].starts_at;
        for kept in &self.kept[index..] {
            bytes += kept.byte_count;
            if bytes > PIECE_BYTES || kept.starts_at + kept.byte_count != start + bytes {
                break;
            }
            count += 1;
        }
        count
    }

    /// What is put in order, or left out, in front of the tensors.
    fn tell_head(&mut self, head: &[u8], found: &Found, start: &Start) {
        self.changes.extend(found.changes(start));
        if start.overrules_prefix {
            return;
        }
        let rest = found.behind_json(head);
        if rest.iter().any(|&byte| !is_padding(byte)) {
            self.dropped.push(Dropped {
                what: format!("{} bytes", rest.len()),
                why: "stand behind the header's JSON and mean nothing".into(),
            });
        } else if rest.iter().any(|&byte| byte != b' ') {
            self.changes
                .push("the header's padding becomes spaces".into());
        }
    }

    fn take(&mut self, entries: Vec<(String, Said)>, data_start: u64, file_bytes: u64) {
        let mut overruled = vec![false; entries.len()];
        let mut last: HashMap<&str, usize> = HashMap::with_capacity(entries.len());
        for (position, (name, _)) in entries.iter().enumerate() {
            if let Some(earlier) = last.insert(name, position) {
                overruled[earlier] = true;
            }
        }
        drop(last);
        for ((name, entry), overruled) in entries.into_iter().zip(overruled) {
            if overruled {
                let why = "stands in the header twice; the last entry counts".into();
                self.dropped.push(Dropped { what: name, why });
                continue;
            }
            let entry = match entry {
                Said::Metadata(entry) => {
                    self.take_metadata(entry);
                    continue;
                }
                Said::Tensor(entry) => entry,
            };
            match tensor(name, entry, data_start, file_bytes) {
                Ok(kept) => self.kept.push(kept),
                Err(dropped) => self.dropped.push(dropped),
            }
        }
        self.kept.shrink_to_fit();
        let by_place = |kept: &Kept| (kept.starts_at, kept.byte_count);
        if !self.kept.is_sorted_by_key(by_place) {
            self.kept.sort_by_key(by_place);
        }
        self.find_gaps(data_start, file_bytes);
    }

    /// Whether readers find more in the file than is kept.
    fn lacks(&self, header: &Header) -> bool {
        let there = header.tensors().len() + header.opaque_tensors().len();
        self.kept.len() < there || (header.metadata().is_some() && self.metadata.is_none())
    }

    /// Keeps what readers find in a file that they accept as it is.
    fn take_header(&mut self, header: &Header) {
        let data_start = header.data_start();
        let known = header.tensors().iter().map(|tensor| Kept {
            spec: tensor.to_spec(),
            starts_at: data_start + tensor.data_offsets.0,
            byte_count: tensor.byte_count(),
            opaque: None,
        });
        let opaque = header.opaque_tensors().map(|tensor| Kept {
            spec: TensorSpec {
                name: tensor.name.to_owned(),
                dtype: Dtype::U8,
                shape: vec![tensor.byte_count()],
            },
            starts_at: data_start + tensor.data_offsets.0,
            byte_count: tensor.byte_count(),
            opaque: Some(Box::new((tensor.dtype.to_owned(), tensor.shape.to_vec()))),
        });
        self.kept = known.chain(opaque).collect();
        self.kept
            .sort_by_key(|kept| (kept.starts_at, kept.byte_count));
        self.metadata = header.metadata().cloned();
        self.dropped.clear();
        self.changes.clear();
    }

    fn take_metadata(&mut self, entry: Value) {
        let Value::Object(pairs) = entry else {
            if !entry.is_null() {
                let why = "is no object".into();
                self.dropped.push(Dropped {
                    what: "__metadata__".into(),
                    why,
                });
            }
            return;
        };
        let mut metadata = Metadata::new();
        for (key, value) in pairs {
            match value {
                Value::String(text) => {
                    metadata.insert(key, text);
                }
                value => {
                    let what = format!("the metadata `{}` becomes text", shown(&key));
                    self.changes.push(what);
                    metadata.insert(key, value.to_string());
                }
            }
        }
        self.metadata = Some(metadata);
    }

    /// Bytes that no tensor has, and those that several have.
    fn find_gaps(&mut self, data_start: u64, file_bytes: u64) {
        let Cover { gaps, sharing, .. } = Cover::of(&self.kept, data_start, file_bytes);
        let overlaps = sharing.len();
        if overlaps > 0 {
            let s = if overlaps == 1 { " shares" } else { "s share" };
            self.changes.push(format!(
                "{overlaps} tensor{s} bytes with others and get their own"
            ));
        }
        for gap in gaps {
            let why = if self.dropped.is_empty() {
                "belong to no tensor"
            } else {
                "belong to no tensor that can be kept"
            };
            let what = format!("{} bytes from byte {}", gap.end - gap.start, gap.start);
            self.dropped.push(Dropped {
                what,
                why: why.into(),
            });
        }
    }

    /// The file that was looked at.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What tensors, in the order of their places, leave free between two places of a file, and what they share.
struct Cover<'a> {
    /// What belongs to none.
    gaps: Vec<Range<u64>>,
    /// Those that have bytes of others in front of them.
    sharing: Vec<&'a Kept>,
    /// How many bytes these share.
    shared_bytes: u64,
}

impl Cover<'_> {
    fn of(sorted: &[Kept], start: u64, end: u64) -> Cover<'_> {
        let mut cover = Cover {
            gaps: Vec::new(),
            sharing: Vec::new(),
            shared_bytes: 0,
        };
        let mut reached = start;
        for kept in sorted {
            let kept_end = kept.starts_at + kept.byte_count;
            if kept.starts_at > reached {
                cover.gaps.push(reached..kept.starts_at);
            } else if kept.starts_at < reached && kept.byte_count > 0 {
                cover.sharing.push(kept);
                cover.shared_bytes += reached.min(kept_end) - kept.starts_at;
            }
            reached = reached.max(kept_end);
        }
        if reached < end {
            cover.gaps.push(reached..end);
        }
        cover
    }
}

/// A tensor, if all that is said of it makes sense and its bytes are there.
fn tensor(
    name: String,
    said: SaidTensor,
    data_start: u64,
    file_bytes: u64,
) -> Result<Kept, Dropped> {
    let place = said
        .place()
        .and_then(|(start, end)| match data_start.checked_add(end) {
            Some(in_file) if in_file <= file_bytes => Ok((data_start + start, end - start)),
            in_file => {
                let in_file = in_file.map_or("2^64".to_owned(), |end| end.to_string());
                Err(format!(
                    "it ends at byte {in_file}, and the file at byte {file_bytes}"
                ))
            }
        });
    match place {
        Err(why) => Err(Dropped { what: name, why }),
        Ok((starts_at, byte_count)) => {
            let shape = said.shape.unwrap_or_default();
            let (dtype, shape, opaque) = match said.dtype {
                Some(Err(unknown)) => {
                    let opaque = Some(Box::new((unknown, shape)));
                    (Dtype::U8, vec![byte_count], opaque)
                }
                Some(Ok(dtype)) => (dtype, shape, None),
                None => unreachable!("it has a place, so it has a dtype"),
            };
            let spec = TensorSpec { name, dtype, shape };
            Ok(Kept {
                spec,
                starts_at,
                byte_count,
                opaque,
            })
        }
    }
}
