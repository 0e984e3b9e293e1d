//! Archives and compressed streams: every member is scanned for what it is.

use std::io::Read;

use flate2::read::{MultiGzDecoder, ZlibDecoder};
use safelight_format::{shown, sniff};
use safelight_store::ReadAt;

use super::{HELD_BYTES_MAX, Rule, Scanner};
use crate::bytes::{Memory, Part, read_up_to};
use crate::source::PIECE_BYTES;
use crate::zip::{Archive, Member, Method, Sequential};

/// As much of a compressed member as tells what it is.
const PEEKED_BYTES: usize = 64 * 1024;

/// As many members as are looked into.
const MEMBERS_MAX: usize = 200_000;

/// A stream of one file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Packing {
    Gzip,
    Zlib,
}

/// Whether the bytes end with the record that ends zip archives.
pub(super) fn ends_as_zip(bytes: &dyn ReadAt) -> bool {
    let all = bytes.byte_count().unwrap_or(0);
    let at = all.saturating_sub(22 + 65_535);
    let mut tail = vec![0; (all - at) as usize];
    let len = read_up_to(bytes, &mut tail, at).unwrap_or(0);
    tail.truncate(len);
    // Any record will do for some reader, wherever its comment ends.
    let records = tail
        .windows(22)
        .filter(|window| window.starts_with(b"PK\x05\x06"));
    records.into_iter().any(|record| record[4..8] == [0; 4])
}

/// Whether bytes begin as zlib streams do (RFC 1950, §2.2).
pub(super) fn is_zlib(start: &[u8]) -> bool {
    matches!(start, [0x78, flags, ..] if (0x7800 + u32::from(*flags)) % 31 == 0)
}

/// Whether bytes begin as LZMA streams without a container do, as Python writes them: of unknown length.
pub(super) fn is_bare_lzma(start: &[u8]) -> bool {
    start.starts_with(&[0x5d, 0, 0]) && start.get(5..13) == Some(&[0xff; 8])
}

/// A member within a member.
pub(super) fn join(outer: &str, inner: &str) -> String {
    if outer.is_empty() {
        return inner.to_owned();
    }
    format!("{outer}!{inner}")
}

impl Scanner<'_> {
    /// A zip archive: what contradicts itself, and every member.
    pub(super) fn zip(&mut self, bytes: &dyn ReadAt, member: &str, depth: u32) {
        let archive = match Archive::read(bytes) {
            Ok(archive) => archive,
            Err(error) => {
                self.error.get_or_insert(error);
                return;
            }
        };
        for flaw in &archive.flaws {
            let at = join(member, &flaw.member);
            self.suspicious(Rule::Archive, &at, flaw.at_byte, &flaw.what);
        }
        let is_torch = archive
            .members
            .iter()
            .any(|member| member.name.ends_with("data.pkl"));
        for entry in archive.members.iter().take(MEMBERS_MAX) {
            let at = join(member, &entry.name);
            if entry.content_bytes == 0
                && entry.stored_bytes == 0
                && !super::is_pickle_member(&entry.name, depth + 1)
            {
                continue;
            }
            self.zip_member(
                bytes,
                entry,
                &at,
                depth,
                is_torch && is_storage(&entry.name),
            );
        }
        let code = archive.members.iter().find(|entry| {
            let folder = entry.name.split('/').nth(1);
            is_torch && folder == Some("code") && entry.name.ends_with(".py")
        });
        if let Some(code) = code {
            let at = join(member, &code.name);
            let message = "a TorchScript archive: `torch.jit.load` runs its code";
            self.suspicious(Rule::CodeLayer, &at, code.header_at, message);
        }
        let is_package = |entry: &&Member| entry.name.ends_with("/.data/extern_modules");
        if let Some(package) = archive.members.iter().find(is_package) {
            let at = join(member, &package.name);
            let message = "a torch.package archive: `PackageImporter` runs the Python code in it";
            self.suspicious(Rule::CodeLayer, &at, package.header_at, message);
        }
        if archive.members.len() > MEMBERS_MAX {
            let message = format!(
                "{} members, {MEMBERS_MAX} were looked into",
                archive.members.len()
            );
            self.suspicious(Rule::NotScannable, member, 0, message);
        }
        if archive.members.is_empty() || !archive.flaws.is_empty() {
            self.local_members(bytes, &archive, member, depth);
        }
    }

    fn zip_member(
        &mut self,
        bytes: &dyn ReadAt,
        entry: &Member,
        at: &str,
        depth: u32,
        is_storage: bool,
    ) {
        match entry.method {
            Method::Stored => {
                let part = Part {
                    of: bytes,
                    at: entry.data_at,
                    len: entry.stored_bytes,
                };
                self.blob(&part, &entry.name, at, depth + 1);
                if !is_storage && !self.is_quick {
                    self.check_content(bytes, entry, at);
                }
            }
            Method::Deflated => {
                let mut content = Vec::new();
                let whole = self.inflate(bytes, entry, &mut content);
                let held = content.len() as u64;
                self.held_bytes += held;
                let memory = Memory(content);
                self.blob(&memory, &entry.name, at, depth + 1);
                self.held_bytes -= held;
                if let Err(what) = whole {
                    self.suspicious(Rule::Archive, at, entry.header_at, what);
                }
            }
            Method::Other(_) => {
                let message = entry.packing().unwrap_or_default();
                self.suspicious(Rule::NotScannable, at, entry.header_at, message);
            }
        }
    }

    /// Counts bytes that are unpacked or compared; whether there is still time for them.
    fn spend(&mut self, byte_count: u64) -> bool {
        let enough = self.work_left >= byte_count;
        self.work_left = self.work_left.saturating_sub(byte_count);
        enough
    }

    fn check_content(&mut self, bytes: &dyn ReadAt, entry: &Member, at: &str) {
        if !self.spend(entry.content_bytes) {
            let message = "members overlap or repeat so often that its checksum was not compared";
            self.suspicious(Rule::Archive, at, entry.header_at, message);
            return;
        }
        if let Err(error) = entry.read(bytes, PIECE_BYTES, &mut |_| Ok(())) {
            self.suspicious(Rule::Archive, at, entry.header_at, error.to_string());
        }
    }

    /// A member's content: all of it if it could be more than numbers, else its start.
    fn inflate(
        &mut self,
        bytes: &dyn ReadAt,
        entry: &Member,
        content: &mut Vec<u8>,
    ) -> Result<(), String> {
        let limit = self
            .limits
            .memory_bytes_max
            .min(HELD_BYTES_MAX)
            .saturating_sub(self.held_bytes);
        let mut stop = None;
        let mut only_numbers = false;
        let read = entry.read(bytes, PEEKED_BYTES, &mut |piece| {
            if content.is_empty() {
                let is_storage = is_storage(&entry.name) && sniff(piece).is_none();
                only_numbers = is_storage || super::data::is_whole_npy(piece, entry.content_bytes);
            }
            if !self.spend(piece.len() as u64) {
                stop = Some("all members together unpack to too much".to_owned());
            } else if !only_numbers && (content.len() + piece.len()) as u64 > limit {
                stop = Some(format!("unpacks to more than {limit} bytes"));
            }
            if stop.is_some() || (only_numbers && !content.is_empty()) {
                return Err(std::io::Error::other("enough"));
            }
            content
                .try_reserve(piece.len())
                .map_err(std::io::Error::other)?;
            content.extend_from_slice(piece);
            Ok(())
        });
        match (stop, read) {
            (Some(stop), _) => Err(format!("{stop}; the rest was not looked at")),
            (None, Err(_)) if only_numbers => Ok(()),
            (None, Err(error)) => Err(error.to_string()),
            (None, Ok(())) => Ok(()),
        }
    }

    /// An archive whose directory cannot be trusted: members are looked for by their local headers.
    fn local_members(&mut self, bytes: &dyn ReadAt, archive: &Archive, member: &str, depth: u32) {
        let known: std::collections::HashSet<u64> = archive
            .members
            .iter()
            .map(|member| member.header_at)
            .collect();
        let all = bytes.byte_count().unwrap_or(0);
        let mut window = vec![0; PIECE_BYTES];
        let (mut at, mut found) = (0u64, 0);
        while at < all && found < 1000 {
            let len = read_up_to(bytes, &mut window, at).unwrap_or(0);
            let mut skip = 0;
            while let Some(next) = find(&window[skip..len], b"PK\x03\x04") {
                let header_at = at + (skip + next) as u64;
                skip += next + 4;
                let is_cut_off = header_at + 30 > at + len as u64 && header_at > at;
                if known.contains(&header_at) || is_cut_off || found >= 1000 {
                    continue;
                }
                found += 1;
                self.local_member(bytes, header_at, all, (member, depth));
            }
            if len < window.len() {
                break;
            }
            at += (len - 64) as u64; // a header that lies across the end is found again
        }
    }

    /// A member that its local header alone tells of: what follows is scanned to the end of the file.
    fn local_member(
        &mut self,
        bytes: &dyn ReadAt,
        header_at: u64,
        all: u64,
        (member, depth): (&str, u32),
    ) {
        let mut header = [0; 30 + 1024];
        let len = read_up_to(bytes, &mut header, header_at).unwrap_or(0);
        let field = |at| crate::bytes::number::<2>(&header[..len], at).unwrap_or(0);
        let name_len = (field(26) as usize).min(1024);
        let name =
            String::from_utf8_lossy(header.get(30..30 + name_len).unwrap_or_default()).into_owned();
        let data_at = header_at + 30 + field(26) + field(28);
        let inner = join(member, &name);
        let message = format!(
            "`{}` has a local header that the directory does not list",
            shown(&name)
        );
        self.suspicious(Rule::Archive, &inner, header_at, message);
        let part = Part {
            of: bytes,
            at: data_at,
            len: all.saturating_sub(data_at),
        };
        match field(8) {
            0 => drop(self.hidden_pickle(&part, &inner, depth + 1)),
            8 => {
                let stored = Sequential { part, at: 0 };
                let mut content = Vec::new();
                let room = HELD_BYTES_MAX.saturating_sub(self.held_bytes);
                let limit = room.min(self.limits.memory_bytes_max).min(self.work_left);
                let buffered = std::io::BufReader::with_capacity(PEEKED_BYTES, stored);
                let decoder = flate2::read::DeflateDecoder::new(buffered);
                let _ = decoder.take(limit).read_to_end(&mut content); // as far as it goes
                self.spend(content.len() as u64);
                self.hidden_pickle(&Memory(content), &inner, depth + 1);
            }
            _ => {}
        }
    }

    /// Whether a zlib stream can be read at all.
    pub(super) fn unpacks(&self, bytes: &dyn ReadAt) -> bool {
        let part = whole(bytes);
        let mut decoder = ZlibDecoder::new(std::io::BufReader::new(Sequential { part, at: 0 }));
        decoder.read(&mut [0; 64]).is_ok()
    }

    /// A gzip or zlib stream.
    pub(super) fn compressed(
        &mut self,
        bytes: &dyn ReadAt,
        packing: Packing,
        member: &str,
        depth: u32,
    ) {
        let room = HELD_BYTES_MAX.saturating_sub(self.held_bytes);
        let limit = room.min(self.limits.memory_bytes_max).min(self.work_left);
        let stored = Sequential {
            part: whole(bytes),
            at: 0,
        };
        let stored = std::io::BufReader::with_capacity(PEEKED_BYTES, stored);
        let mut content = Vec::new();
        let mut end = None;
        let read = match packing {
            Packing::Gzip => {
                let decoder = MultiGzDecoder::new(stored);
                decoder.take(limit + 1).read_to_end(&mut content)
            }
            Packing::Zlib => {
                let mut decoder = ZlibDecoder::new(stored).take(limit + 1);
                let read = decoder.read_to_end(&mut content);
                end = Some(decoder.get_ref().total_in());
                read
            }
        };
        if content.len() as u64 > limit {
            let message = format!("unpacks to more than {limit} bytes; the rest was not looked at");
            self.suspicious(Rule::NotScannable, member, 0, message);
        } else if let Err(error) = read {
            let message = format!("cannot be unpacked to its end: {error}");
            self.suspicious(Rule::Archive, member, 0, message);
        } else if let Some(end) = end.filter(|end| *end < whole(bytes).len) {
            let part = Part {
                of: bytes,
                at: end,
                len: whole(bytes).len - end,
            };
            let message = format!("{} bytes behind the stream", part.len);
            self.suspicious(Rule::TrailingData, member, end, message);
            self.blob(&part, "", &join(member, "behind the stream"), depth + 1);
        }
        let inner = join(member, "unpacked");
        let held = content.len() as u64;
        self.spend(held);
        self.held_bytes += held;
        self.blob(&Memory(content), "", &inner, depth + 1);
        self.held_bytes -= held;
    }

    /// A tar archive (POSIX.1-1988 ustar): every file in it.
    pub(super) fn tar(&mut self, bytes: &dyn ReadAt, member: &str, depth: u32) {
        let all = bytes.byte_count().unwrap_or(0);
        let (mut at, mut count) = (0u64, 0);
        while at + 512 <= all && count < MEMBERS_MAX {
            let mut header = [0; 512];
            if read_up_to(bytes, &mut header, at).unwrap_or(0) < 512 || header == [0; 512] {
                return;
            }
            let text = |from: usize, to: usize| {
                let field = &header[from..to];
                let end = field
                    .iter()
                    .position(|&byte| byte == 0)
                    .unwrap_or(field.len());
                String::from_utf8_lossy(&field[..end]).trim().to_owned()
            };
            let name = text(0, 100);
            let Ok(len) = u64::from_str_radix(&text(124, 136), 8) else {
                let message = "a tar header without a size: the rest was not looked at";
                self.suspicious(Rule::Archive, member, at, message);
                return;
            };
            let part = Part {
                of: bytes,
                at: at + 512,
                len: len.min(all - at - 512),
            };
            if len > 0 {
                self.blob(&part, &name, &join(member, &name), depth + 1);
            }
            let Some(next) = len
                .checked_next_multiple_of(512)
                .and_then(|len| at.checked_add(512 + len))
            else {
                return;
            };
            at = next;
            count += 1;
        }
    }
}

fn whole(bytes: &dyn ReadAt) -> Part<'_> {
    Part {
        of: bytes,
        at: 0,
        len: bytes.byte_count().unwrap_or(0),
    }
}

/// Whether a member of PyTorch's archives holds numbers: `archive/data/17`.
pub(super) fn is_storage(name: &str) -> bool {
    name.rsplit_once("data/")
        .is_some_and(|(_, key)| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_digit()))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
