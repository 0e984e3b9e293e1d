//! The header of a damaged file, wherever its JSON stands.

use safelight_format::{FormatError, Limits, header_bytes};

use super::said::Entries;
use super::start::{Evidence, Start};
use crate::error::StoreError;
use crate::source::FileSource;

/// Where a header's JSON is looked for that does not stand where it should.
const SEARCHED_BYTES: u64 = 4096;

/// How much is read first of a header whose length is not known.
const FIRST_BYTES: u64 = 64 * 1024;

/// Where the JSON stands in a file without faults: behind the length prefix.
const PREFIX_BYTES: u64 = 8;

/// What a file begins with.
pub(super) struct Head {
    /// The length prefix and the header, as far as the prefix is believed.
    pub(super) bytes: Vec<u8>,
    /// What the header says, if its JSON can be read.
    pub(super) found: Option<Found>,
}

/// A header whose JSON can be read.
pub(super) struct Found {
    pub(super) entries: Entries,
    pub(super) evidence: Evidence,
    /// Where the JSON starts.
    json_start: u64,
    /// Whether the JSON is where the length prefix says.
    is_in_place: bool,
}

impl Head {
    /// # Errors
    /// [`StoreError::Format`] if this is no safetensors file; else the system's.
    pub(super) fn read(source: &FileSource, limits: &Limits) -> Result<Head, StoreError> {
        let first = read(source, 0, SEARCHED_BYTES)?;
        let said = header_bytes(&first, source.file_bytes, limits);
        let mut bytes = Vec::new();
        if let Ok(length) = said {
            bytes = read(source, 0, PREFIX_BYTES + length)?;
            let found = Found::in_place(&bytes, source.file_bytes);
            if found.is_some() {
                return Ok(Head { bytes, found });
            }
        }
        let elsewhere = match &said {
            Err(FormatError::HeaderOverLimit { .. }) => None,
            // A file of another kind may have a header somewhere inside; one that begins with it lost its prefix.
            Err(FormatError::OtherKind { .. }) if !first.starts_with(b"{\"") => None,
            _ => Found::elsewhere(source, &first, limits)?,
        };
        match (elsewhere, said) {
            (None, Err(error)) => Err(StoreError::Format {
                file: source.label.clone(),
                error,
            }),
            (found, _) => Ok(Head { bytes, found }),
        }
    }
}

impl Found {
    /// The header that the length prefix names.
    fn in_place(bytes: &[u8], file_bytes: u64) -> Option<Found> {
        let json = bytes.get(PREFIX_BYTES as usize..)?;
        let mark = if json.starts_with(BYTE_ORDER_MARK) {
            BYTE_ORDER_MARK.len()
        } else {
            0
        };
        let front = mark + json[mark..].iter().position(|byte| !is_padding(*byte))?;
        let (entries, length) = Entries::of(&json[front..]).ok()?;
        let json_start = PREFIX_BYTES + front as u64;
        let mut found = Found::new(entries, json_start, length as u64, bytes, file_bytes);
        found.evidence.header_start = PREFIX_BYTES;
        found.evidence.by_prefix = Some(bytes.len() as u64);
        found.is_in_place = true;
        Some(found)
    }

    /// A header where none should be, or one that goes on behind the place that the prefix names. It has at least one tensor that makes sense.
    fn elsewhere(
        source: &FileSource,
        first: &[u8],
        limits: &Limits,
    ) -> Result<Option<Found>, StoreError> {
        let Some(start) = first.windows(2).position(|two| two == b"{\"") else {
            return Ok(None);
        };
        let left = source.file_bytes - start as u64;
        let most = left.min(limits.header_bytes_max);
        let mut length = FIRST_BYTES.min(most);
        loop {
            let json = read(source, start as u64, length)?;
            match Entries::of(&json) {
                Ok((entries, json_bytes)) => {
                    if entries.data_bytes().is_none() {
                        return Ok(None);
                    }
                    let (at, bytes) = (start as u64, json_bytes as u64);
                    let found = Found::new(entries, at, bytes, first, source.file_bytes);
                    return Ok(Some(found));
                }
                Err(error) if error.is_eof() && length < most => length = most.min(length * 8),
                Err(_) => return Ok(None),
            }
        }
    }

    fn new(
        entries: Entries,
        json_start: u64,
        json_bytes: u64,
        first: &[u8],
        file_bytes: u64,
    ) -> Found {
        let prefix = (json_start as usize).checked_sub(8).and_then(|from| {
            let bytes = first.get(from..)?.first_chunk::<8>()?;
            Some(*bytes)
        });
        let place = |length: u64| json_start.checked_add(length);
        let evidence = Evidence {
            header_start: json_start,
            by_prefix: prefix.map(u64::from_le_bytes).and_then(place),
            by_swapped_prefix: prefix.map(u64::from_be_bytes).and_then(place),
            json_end: json_start + json_bytes,
            data_bytes: entries.data_bytes().unwrap_or(0),
            file_bytes,
        };
        Found {
            entries,
            evidence,
            json_start,
            is_in_place: false,
        }
    }

    /// Where the tensors start.
    ///
    /// # Errors
    /// [`StoreError::Contradictory`] if that can't be told.
    pub(super) fn start(&self, source: &FileSource) -> Result<Start, StoreError> {
        let start = self.evidence.start(source)?;
        start.ok_or_else(|| StoreError::Contradictory {
            file: source.label.clone(),
            problem: self.contradiction(),
        })
    }

    fn contradiction(&self) -> String {
        let Evidence {
            json_end,
            data_bytes,
            file_bytes,
            ..
        } = self.evidence;
        let prefix = match self.evidence.by_prefix {
            Some(at) => format!("by the length prefix tensors start at byte {at}"),
            None => "the length prefix is missing".to_owned(),
        };
        let size = match self.evidence.by_size() {
            Some(at) => format!("at byte {at} if they end with the file"),
            None => "nowhere if they end with the file".to_owned(),
        };
        format!(
            "{prefix}, but the header's JSON ends at byte {json_end}, and the tensors ({data_bytes} bytes in a file of \
             {file_bytes}) start {size}; where they really start can't be told, and every number would be a guess"
        )
    }

    /// What stands between the JSON and the place where the prefix says that the header ends.
    pub(super) fn behind_json<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        let end = usize::try_from(self.evidence.json_end).ok();
        end.and_then(|end| head.get(end..)).unwrap_or_default()
    }

    /// What is put in order at the file's beginning.
    pub(super) fn changes(&self, start: &Start) -> Vec<String> {
        let mut changes = Vec::new();
        let front = self.json_start.saturating_sub(PREFIX_BYTES);
        if front > 0 {
            let of = if self.is_in_place {
                "header's JSON"
            } else {
                "file"
            };
            changes.push(format!("{front} bytes in front of the {of} are left out"));
        }
        if start.overrules_prefix {
            let Start { at, .. } = start;
            let wrong = match self.evidence.by_prefix {
                None => "is not there".to_owned(),
                Some(_) if self.evidence.by_swapped_prefix == Some(*at) => {
                    "has its bytes in the wrong order".to_owned()
                }
                Some(said) => format!("is wrong: it says that tensors start at byte {said}"),
            };
            changes.push(format!(
                "the length prefix {wrong}; by the end of the header's JSON and the file's size, tensors start at byte {at}"
            ));
        }
        changes
    }
}

/// What some editors put in front of text.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

pub(super) fn is_padding(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\0')
}

/// Bytes of a file, at most so many as it has.
fn read(source: &FileSource, at: u64, count: u64) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![0; count.min(source.file_bytes - at) as usize];
    source.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}
