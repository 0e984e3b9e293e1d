//! Zip archives, read where they lie: what two readers could see differently is refused.
//!
//! Members are found by the central directory, and every local header must say the same: attacks on scanners
//! live from programs that believe one or the other (CVE-2025-1944, CVE-2025-1945, CVE-2025-10156).
//!
//! Source: PKWARE, APPNOTE.TXT 6.3.10 (§4.3 the records, §4.5.3 zip64).

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};

use flate2::read::DeflateDecoder;
use safelight_store::ReadAt;

use crate::bytes::{Part, number, read_exact_at, read_up_to};

/// The longest possible end record: 22 bytes and a comment.
const END_BYTES_MAX: u64 = 22 + 65_535;

/// As many members as an archive may have.
const MEMBER_COUNT_MAX: u64 = 4_000_000;

/// As long as the central directory may be.
const DIRECTORY_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// What is read of a compressed member at once.
const INFLATE_BYTES: usize = 64 * 1024;

/// The sizes that may follow a member's data, with their signature, in zip64.
const DESCRIPTOR_BYTES_MAX: u64 = 24;

/// How a member's bytes lie in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// As they are.
    Stored,
    /// RFC 1951.
    Deflated,
    /// Something else, by its number.
    Other(u16),
}

/// One file of an archive.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// Its name. Foreign text; bytes that are no UTF-8 are shown as `\u{fffd}`.
    pub(crate) name: String,
    pub(crate) method: Method,
    /// CRC-32 of its content.
    pub(crate) crc: u32,
    /// How many bytes it takes in the archive.
    pub(crate) stored_bytes: u64,
    /// How many bytes it has.
    pub(crate) content_bytes: u64,
    /// Its local header's place.
    pub(crate) header_at: u64,
    /// Its first byte in the archive.
    pub(crate) data_at: u64,
    /// Bit 0: encrypted, bit 3: sizes follow the data.
    pub(crate) flags: u16,
}

/// What is wrong with an archive, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flaw {
    /// The member, or empty.
    pub(crate) member: String,
    pub(crate) at_byte: u64,
    pub(crate) what: String,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at byte {})", self.what, self.at_byte)
    }
}

/// An archive's members, and everything that contradicts itself.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    pub(crate) members: Vec<Member>,
    pub(crate) flaws: Vec<Flaw>,
}

/// As many flaws as are told.
const FLAW_COUNT_MAX: usize = 100;

impl Archive {
    /// Reads the directory and every local header.
    ///
    /// # Errors
    /// The system's. What is wrong with the archive is in [`Archive::flaws`]; its members are those found all the same.
    pub(crate) fn read(file: &dyn ReadAt) -> io::Result<Archive> {
        let mut archive = Archive::default();
        let file_bytes = file.byte_count()?;
        let Some(directory) = archive.directory(file, file_bytes)? else {
            return Ok(archive);
        };
        archive.entries(&directory);
        archive.local_headers(file, directory.at)?;
        archive.overlaps(directory.at);
        archive.names();
        Ok(archive)
    }

    fn flaw(&mut self, member: &str, at_byte: u64, what: impl Into<String>) {
        if self.flaws.len() < FLAW_COUNT_MAX {
            let (member, what) = (member.to_owned(), what.into());
            self.flaws.push(Flaw {
                member,
                at_byte,
                what,
            });
        }
    }

    /// Finds the central directory by the record at the very end of the file.
    fn directory(&mut self, file: &dyn ReadAt, file_bytes: u64) -> io::Result<Option<Directory>> {
        let tail_at = file_bytes.saturating_sub(END_BYTES_MAX);
        let mut tail = vec![0; (file_bytes - tail_at) as usize];
        read_exact_at(file, &mut tail, tail_at)?;
        let Some(end) = find_end(&tail) else {
            self.flaw(
                "",
                file_bytes,
                "no end of central directory: is it cut off?",
            );
            return Ok(None);
        };
        if has_two_ends(&tail, end) {
            let what = "two ends of central directory: readers could disagree on which counts";
            self.flaw("", tail_at + end as u64, what);
        }
        let mut end_at = tail_at + end as u64;
        let record = &tail[end..];
        let field = |at| number::<2>(record, at).unwrap_or(0);
        let mut count = field(10);
        let mut size = number::<4>(record, 12).unwrap_or(0);
        let mut at = number::<4>(record, 16).unwrap_or(0);
        let (disk, directory_disk, disk_count) = (field(4), field(6), field(8));
        let locator = end.checked_sub(20).and_then(|at| tail.get(at..end));
        if let Some(locator) = locator.filter(|locator| locator.starts_with(b"PK\x06\x07")) {
            let zip64_at = number::<8>(locator, 8).unwrap_or(u64::MAX);
            let mut record = [0; 56];
            let there = zip64_at.checked_add(56).is_some_and(|end| end <= end_at)
                && read_exact_at(file, &mut record, zip64_at).is_ok()
                && record.starts_with(b"PK\x06\x06");
            if !there {
                self.flaw(
                    "",
                    end_at,
                    "the zip64 end record is not where its locator says",
                );
                return Ok(None);
            }
            let wide = |at| number::<8>(&record, at).unwrap_or(u64::MAX);
            for (narrow, wide, all_ones) in [
                (&mut count, wide(32), 0xffff),
                (&mut size, wide(40), 0xffff_ffff),
                (&mut at, wide(48), 0xffff_ffff),
            ] {
                if *narrow != all_ones && *narrow != wide {
                    self.flaw(
                        "",
                        end_at,
                        format!("the end records disagree: {narrow} and {wide}"),
                    );
                }
                *narrow = wide;
            }
            end_at = zip64_at;
        } else if disk != 0 || directory_disk != 0 || disk_count != count {
            self.flaw("", end_at, "an archive of several volumes");
        }
        if at.checked_add(size) != Some(end_at) {
            let what = format!(
                "the directory of {size} bytes at {at} does not end where its end record begins, {end_at}: \
                 something was put before the archive or into it"
            );
            self.flaw("", end_at, what);
            if at.checked_add(size).is_none_or(|end| end > end_at) {
                return Ok(None);
            }
        }
        if size > DIRECTORY_BYTES_MAX || count > MEMBER_COUNT_MAX {
            let what = format!("{count} members in a directory of {size} bytes: too many");
            self.flaw("", at, what);
            return Ok(None);
        }
        let mut bytes = vec![0; size as usize];
        read_exact_at(file, &mut bytes, at)?;
        Ok(Some(Directory { at, count, bytes }))
    }

    /// The directory's entries.
    fn entries(&mut self, directory: &Directory) {
        let mut at = 0;
        for _ in 0..directory.count {
            let here = directory.at + at as u64;
            let Some((member, next)) = entry(&directory.bytes, at) else {
                self.flaw("", here, "an entry of the directory is cut off or no entry");
                return;
            };
            self.members.push(member);
            at = next;
        }
        if at != directory.bytes.len() {
            let left = directory.bytes.len() - at;
            let what = format!("{left} bytes behind the last entry of the directory");
            self.flaw("", directory.at + at as u64, what);
        }
    }

    /// Every member's local header must say what the directory says.
    fn local_headers(&mut self, file: &dyn ReadAt, directory_at: u64) -> io::Result<()> {
        let mut members = std::mem::take(&mut self.members);
        let mut header = Vec::new();
        for member in &mut members {
            // Long enough for the name; a longer extra field is not looked at.
            header.resize(30 + member.name.len() + 256, 0);
            let count = read_up_to(file, &mut header, member.header_at)?;
            header.truncate(count);
            let field = |at| number::<2>(&header, at).unwrap_or(0);
            if !header.starts_with(b"PK\x03\x04") || header.len() < 30 {
                let what = "no local header where the directory says";
                self.flaw(&member.name, member.header_at, what);
                member.stored_bytes = 0;
                member.content_bytes = 0;
                continue;
            }
            let name_len = field(26) as usize;
            member.data_at = member.header_at + 30 + field(26) + field(28);
            let name = header.get(30..30 + name_len).map(String::from_utf8_lossy);
            if name.as_deref() != Some(member.name.as_str()) {
                let local = name.unwrap_or_default().into_owned();
                let what = format!(
                    "the local header calls it `{}`",
                    safelight_format::shown(&local)
                );
                self.flaw(&member.name, member.header_at, what);
            }
            let flags = field(6) as u16;
            if flags != member.flags {
                let what = format!(
                    "flags are {flags:#06x} in the local header, {:#06x} in the directory",
                    member.flags
                );
                self.flaw(&member.name, member.header_at, what);
            }
            if method(field(8) as u16) != member.method {
                let what = "the local header names another compression method";
                self.flaw(&member.name, member.header_at, what);
            }
            let extra = header.get(30 + name_len..).unwrap_or_default();
            let extra = &extra[..extra.len().min(field(28) as usize)];
            let narrow = (number::<4>(&header, 18), number::<4>(&header, 22));
            let (content, stored) = sizes(narrow.1.unwrap_or(0), narrow.0.unwrap_or(0), extra);
            let told_later = flags & 8 != 0 && content == 0 && stored == 0;
            if !told_later && (content, stored) != (member.content_bytes, member.stored_bytes) {
                let what = format!(
                    "{stored} bytes stored in the local header, {} in the directory",
                    member.stored_bytes
                );
                self.flaw(&member.name, member.header_at, what);
            }
            let crc = number::<4>(&header, 14).unwrap_or(0) as u32;
            if crc != member.crc && !(flags & 8 != 0 && crc == 0) {
                let what = "checksums differ between local header and directory";
                self.flaw(&member.name, member.header_at, what);
            }
            let end = member.data_at.checked_add(member.stored_bytes);
            if end.is_none_or(|end| end > directory_at) {
                let what = format!("its {} bytes reach beyond the members", member.stored_bytes);
                self.flaw(&member.name, member.header_at, what);
                member.stored_bytes = 0;
                member.content_bytes = 0;
            }
            if member.method == Method::Stored && member.stored_bytes != member.content_bytes {
                let what = "stored as it is, but with two sizes";
                self.flaw(&member.name, member.header_at, what);
                member.content_bytes = member.stored_bytes;
            }
            if member.flags & 1 != 0 {
                self.flaw(&member.name, member.header_at, "marked as encrypted");
            }
        }
        self.members = members;
        Ok(())
    }

    /// Every byte before the directory belongs to one member.
    fn overlaps(&mut self, directory_at: u64) {
        let mut order: Vec<usize> = (0..self.members.len()).collect();
        order.sort_by_key(|&index| self.members[index].header_at);
        let mut end = 0; // of the member before, with room for its data descriptor in `spare`
        let mut spare = 0;
        for index in order.into_iter().map(Some).chain([None]) {
            let (name, at) = match index {
                Some(index) => (
                    self.members[index].name.clone(),
                    self.members[index].header_at,
                ),
                None => (String::new(), directory_at),
            };
            if end > at {
                self.flaw(&name, at, "it begins within another member");
            } else if at - end > spare {
                let what = format!("{} bytes before it belong to no member", at - end);
                self.flaw(&name, at, what);
            }
            if let Some(index) = index {
                let member = &self.members[index];
                end = end.max(member.data_at.saturating_add(member.stored_bytes));
                spare = if member.flags & 8 != 0 {
                    DESCRIPTOR_BYTES_MAX
                } else {
                    0
                };
            }
        }
    }

    /// No two members have one name.
    fn names(&mut self) {
        let mut seen = HashMap::new();
        let mut twice = Vec::new();
        for (index, member) in self.members.iter().enumerate() {
            if seen.insert(member.name.as_str(), index).is_some() {
                twice.push((member.name.clone(), member.header_at));
            }
        }
        for (name, at) in twice {
            self.flaw(&name, at, "two members of this name");
        }
    }
}

/// The bytes of the central directory.
struct Directory {
    at: u64,
    count: u64,
    bytes: Vec<u8>,
}

/// Where the end record lies whose comment ends with the file.
fn find_end(tail: &[u8]) -> Option<usize> {
    let last = tail.len().checked_sub(22)?;
    (0..=last).rev().find(|&at| is_end(tail, at))
}

fn is_end(tail: &[u8], at: usize) -> bool {
    tail[at..].starts_with(b"PK\x05\x06")
        && number::<2>(tail, at + 20) == Some((tail.len() - at - 22) as u64)
}

/// Whether a reader could take another record for the end: an earlier one whose comment would fit as well, or
/// a later one within the comment.
fn has_two_ends(tail: &[u8], end: usize) -> bool {
    let mut within_comment = tail[end + 4..].windows(4);
    (0..end).any(|at| is_end(tail, at)) || within_comment.any(|bytes| bytes == b"PK\x05\x06")
}

fn method(number: u16) -> Method {
    match number {
        0 => Method::Stored,
        8 => Method::Deflated,
        other => Method::Other(other),
    }
}

/// What people call a compression method (APPNOTE.TXT, §4.4.5).
fn method_name(number: u16) -> String {
    let name = match number {
        1 => "Shrink",
        2..=5 => "Reduce",
        6 => "Implode",
        9 => "Deflate64",
        12 => "bzip2",
        14 => "LZMA",
        20 | 93 => "Zstandard",
        94 => "MP3",
        95 => "xz",
        96 => "JPEG",
        97 => "WavPack",
        98 => "PPMd",
        99 => "AES encryption",
        _ => "an unknown method",
    };
    format!("{name} (method {number})")
}

/// One entry of the central directory that starts at `at`, and where the next one does.
fn entry(directory: &[u8], at: usize) -> Option<(Member, usize)> {
    let fixed = directory.get(at..at.checked_add(46)?)?;
    if !fixed.starts_with(b"PK\x01\x02") {
        return None;
    }
    let short = |at| number::<2>(fixed, at).unwrap_or(0);
    let (name_len, extra_len) = (short(28) as usize, short(30) as usize);
    let name_end = at + 46 + name_len;
    let name = directory.get(at + 46..name_end)?;
    let extra = directory.get(name_end..name_end + extra_len)?;
    let next = name_end + extra_len + short(32) as usize;
    directory.get(..next)?;
    let (content_bytes, stored_bytes) =
        sizes(number::<4>(fixed, 24)?, number::<4>(fixed, 20)?, extra);
    let narrow_at = number::<4>(fixed, 42)?;
    let wide_before = [24, 20]
        .iter()
        .filter(|&&at| number::<4>(fixed, at) == Some(0xffff_ffff))
        .count();
    let header_at = match narrow_at {
        0xffff_ffff => zip64(extra)
            .and_then(|extra| number::<8>(extra, wide_before * 8))
            .unwrap_or(narrow_at),
        narrow => narrow,
    };
    let member = Member {
        name: String::from_utf8_lossy(name).into_owned(),
        method: method(short(10) as u16),
        crc: number::<4>(fixed, 16)? as u32,
        stored_bytes,
        content_bytes,
        header_at,
        data_at: header_at,
        flags: short(8) as u16,
    };
    Some((member, next))
}

/// Content and stored size: the narrow ones, or those of the zip64 field where they are all ones.
fn sizes(content: u64, stored: u64, extra: &[u8]) -> (u64, u64) {
    let wide = zip64(extra).unwrap_or_default();
    let mut at = 0;
    let mut widen = |narrow: u64| match narrow {
        0xffff_ffff => {
            at += 8;
            number::<8>(wide, at - 8).unwrap_or(narrow)
        }
        narrow => narrow,
    };
    (widen(content), widen(stored))
}

/// The zip64 field of an extra field.
fn zip64(mut extra: &[u8]) -> Option<&[u8]> {
    loop {
        let (id, len) = (number::<2>(extra, 0)?, number::<2>(extra, 2)? as usize);
        let field = extra.get(4..4 + len)?;
        if id == 1 {
            return Some(field);
        }
        extra = &extra[4 + len..];
    }
}

impl Member {
    /// Why the content cannot be read here, if it is packed by a method that nothing here unpacks.
    pub(crate) fn packing(&self) -> Option<String> {
        let Method::Other(number) = self.method else {
            return None;
        };
        Some(format!(
            "is compressed with {}, which nothing here unpacks; pack the archive anew with deflate or without compression",
            method_name(number)
        ))
    }

    /// Hands the content to `out` in pieces and checks size and checksum; `ratio_max` bounds how much more there may be
    /// than is stored.
    ///
    /// # Errors
    /// The system's, what is wrong with the content ([`io::ErrorKind::InvalidData`]), or what `out` says.
    pub(crate) fn read(
        &self,
        file: &dyn ReadAt,
        piece_bytes: usize,
        out: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let part = Part {
            of: file,
            at: self.data_at,
            len: self.stored_bytes,
        };
        let mut stored = Sequential { part, at: 0 };
        let mut crc = crc32fast::Hasher::new();
        let mut buffer = vec![0; piece_bytes.min(self.content_bytes.max(1) as usize)];
        let mut content: Box<dyn Read + '_> = match self.method {
            Method::Stored => Box::new(&mut stored),
            Method::Deflated => {
                let buffered = io::BufReader::with_capacity(INFLATE_BYTES, &mut stored);
                Box::new(DeflateDecoder::new(buffered))
            }
            Method::Other(_) => {
                let what = self.packing().unwrap_or_default();
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        };
        let mut left = self.content_bytes;
        while left > 0 {
            let len = (buffer.len() as u64).min(left) as usize;
            content.read_exact(&mut buffer[..len]).map_err(|error| {
                let what = format!("its content ends {left} bytes early: {error}");
                io::Error::new(error.kind(), what)
            })?;
            crc.update(&buffer[..len]);
            out(&buffer[..len])?;
            left -= len as u64;
        }
        if content.read(&mut [0])? > 0 {
            let what = format!("its content is longer than {} bytes", self.content_bytes);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        self.check(crc.finalize())
    }

    /// Whether the content has the checksum that the archive gives; 0 is what torch writes where it was told to compute none.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if not.
    pub(crate) fn check(&self, crc: u32) -> io::Result<()> {
        if crc == self.crc || self.crc == 0 {
            return Ok(());
        }
        let what = format!(
            "its content has the checksum {crc:08x}, the archive says {:08x}: it was damaged or changed",
            self.crc
        );
        Err(io::Error::new(io::ErrorKind::InvalidData, what))
    }
}

/// Bytes at positions, read one after the other.
pub(crate) struct Sequential<'a> {
    pub(crate) part: Part<'a>,
    pub(crate) at: u64,
}

impl Read for Sequential<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.part.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bytes::Memory;

    /// A small archive of stored members, in a form that tests can spoil.
    pub(crate) struct Builder {
        pub(crate) bytes: Vec<u8>,
        directory: Vec<u8>,
        count: u16,
    }

    impl Builder {
        pub(crate) fn new() -> Builder {
            Builder {
                bytes: Vec::new(),
                directory: Vec::new(),
                count: 0,
            }
        }

        /// Adds a member; `method` 8 deflates it.
        pub(crate) fn add(mut self, name: &str, content: &[u8], method: u16) -> Builder {
            let stored = if method == 8 {
                let mut encoder =
                    flate2::read::DeflateEncoder::new(content, flate2::Compression::default());
                let mut stored = Vec::new();
                encoder.read_to_end(&mut stored).unwrap();
                stored
            } else {
                content.to_vec()
            };
            let header_at = self.bytes.len() as u32;
            let mut shared = Vec::new();
            for field in [20u16, 0, method, 0, 0] {
                shared.extend_from_slice(&field.to_le_bytes());
            }
            shared.extend_from_slice(&crc32fast::hash(content).to_le_bytes());
            shared.extend_from_slice(&(stored.len() as u32).to_le_bytes());
            shared.extend_from_slice(&(content.len() as u32).to_le_bytes());
            shared.extend_from_slice(&(name.len() as u16).to_le_bytes());
            shared.extend_from_slice(&0u16.to_le_bytes());
            self.bytes.extend_from_slice(b"PK\x03\x04");
            self.bytes.extend_from_slice(&shared);
            self.bytes.extend_from_slice(name.as_bytes());
            self.bytes.extend_from_slice(&stored);
            self.directory.extend_from_slice(b"PK\x01\x02\x14\0");
            self.directory.extend_from_slice(&shared);
            self.directory.extend_from_slice(&[0; 10]);
            self.directory.extend_from_slice(&header_at.to_le_bytes());
            self.directory.extend_from_slice(name.as_bytes());
            self.count += 1;
            self
        }

        pub(crate) fn finish(self) -> Vec<u8> {
            let mut bytes = self.bytes;
            let at = bytes.len() as u32;
            bytes.extend_from_slice(&self.directory);
            bytes.extend_from_slice(b"PK\x05\x06\0\0\0\0");
            bytes.extend_from_slice(&self.count.to_le_bytes());
            bytes.extend_from_slice(&self.count.to_le_bytes());
            bytes.extend_from_slice(&(self.directory.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&at.to_le_bytes());
            bytes.extend_from_slice(&[0; 2]);
            bytes
        }
    }

    fn two() -> Vec<u8> {
        let content = b"hello hello hello hello";
        Builder::new()
            .add("a", content, 0)
            .add("b/c", content, 8)
            .finish()
    }

    #[test]
    fn stored_and_deflated() {
        let memory = Memory(two());
        let archive = Archive::read(&memory).unwrap();
        assert_eq!(archive.flaws, []);
        assert_eq!(archive.members.len(), 2);
        for member in &archive.members {
            let mut content = Vec::new();
            let mut out = |piece: &[u8]| {
                content.extend_from_slice(piece);
                Ok(())
            };
            member.read(&memory, 5, &mut out).unwrap();
            assert_eq!(content, b"hello hello hello hello", "{}", member.name);
        }
        assert!(archive.members[1].stored_bytes < 23);
    }

    /// Changes an archive and looks for a flaw that says `expected`.
    #[track_caller]
    fn spoilt(change: impl FnOnce(&mut Vec<u8>), expected: &str) {
        let mut bytes = two();
        change(&mut bytes);
        let archive = Archive::read(&Memory(bytes)).unwrap();
        let found = archive
            .flaws
            .iter()
            .any(|flaw| flaw.what.contains(expected));
        assert!(found, "{expected}: {:?}", archive.flaws);
    }

    fn find(bytes: &[u8], what: &[u8]) -> usize {
        bytes
            .windows(what.len())
            .position(|window| window == what)
            .unwrap()
    }

    #[test]
    fn disagreement_is_told() {
        spoilt(|bytes| bytes[30] = b'x', "the local header calls it `x`");
        spoilt(|bytes| bytes[6] = 1, "flags are 0x0001 in the local");
        spoilt(|bytes| bytes[8] = 8, "another compression method");
        spoilt(|bytes| bytes[14] ^= 1, "checksums differ");
        spoilt(|bytes| bytes[18] = 9, "9 bytes stored in the local header");
        spoilt(|bytes| bytes[0] = b'Q', "no local header");
        spoilt(
            |bytes| bytes.truncate(bytes.len() - 1),
            "no end of central directory",
        );
        spoilt(
            |bytes| bytes.extend_from_slice(b"tail"),
            "no end of central directory",
        );
        spoilt(
            |bytes| drop(bytes.splice(0..0, *b"GIF89a")),
            "something was put before",
        );
        spoilt(
            |bytes| {
                let at = find(bytes, b"PK\x01\x02");
                bytes[at + 8] |= 1;
            },
            "flags are 0x0000 in the local header, 0x0001",
        );
        spoilt(
            |bytes| {
                let at = find(bytes, b"PK\x01\x02");
                bytes[at + 20] = 200; // stored size
            },
            "reach beyond",
        );
        spoilt(
            |bytes| {
                let len = bytes.len();
                bytes[len - 2] = 22;
                bytes.extend_from_slice(b"abcdPK\x05\x06 and more text");
            },
            "two ends",
        );
        let twice = Builder::new().add("a", b"1", 0).add("a", b"2", 0).finish();
        let archive = Archive::read(&Memory(twice)).unwrap();
        assert_eq!(archive.flaws[0].what, "two members of this name");
    }

    #[test]
    fn content_is_checked() {
        let read = |change: fn(&mut Vec<u8>)| {
            let mut bytes = two();
            change(&mut bytes);
            let memory = Memory(bytes);
            let archive = Archive::read(&memory).unwrap();
            let read = |member: &Member| member.read(&memory, 64, &mut |_| Ok(()));
            archive.members.iter().map(read).collect::<Vec<_>>()
        };
        assert!(read(|_| ()).iter().all(Result::is_ok));
        let spoilt = read(|bytes| bytes[35] ^= 1);
        assert!(
            spoilt[0]
                .as_ref()
                .unwrap_err()
                .to_string()
                .contains("damaged or changed")
        );
        assert!(spoilt[1].is_ok());
    }

    #[test]
    fn nothing_and_noise() {
        for bytes in [vec![], b"PK\x05\x06".to_vec(), vec![0; 100]] {
            let archive = Archive::read(&Memory(bytes)).unwrap();
            assert!(archive.members.is_empty() && archive.flaws.len() == 1);
        }
        let empty = Archive::read(&Memory(Builder::new().finish())).unwrap();
        assert_eq!(empty.flaws, []);
    }
}
