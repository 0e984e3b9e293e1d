//! Superblock, object headers and groups of an HDF5 file: what stands where.
//!
//! Source: HDF5 File Format Specification Version 3.0, §II (superblock), §III.A.1 (version 1 B-trees), §III.B–D (symbol
//! tables, local heaps), §IV.A.1 (object headers), §IV.A.2 (messages).

use super::heap::Heap;
use super::tree2;
use super::types::{Fields, Sizes};
use crate::error::ConvertError;
use crate::input::{Cursor, Input};

pub(super) const SIGNATURE: [u8; 8] = *b"\x89HDF\r\n\x1a\n";

/// An object's header may have so many bytes of messages.
const HEADER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Names may be this long; HDF5 has no limit.
const NAME_BYTES_MAX: u64 = 64 * 1024;

/// A version 1 B-tree needs no more levels for 2⁶⁴ entries.
const LEVEL_MAX: u8 = 64;

/// How often the bytes of headers, names and indexes may be read, for all of a file: a few times, in an honest one.
const TIMES_READ_MAX: u64 = 32;

/// Types of version 2 B-trees: links by their names.
const LINKS_BY_NAME: u8 = 5;

/// Numbers of messages.
pub(super) const DATASPACE: u16 = 1;
const LINK_INFO: u16 = 2;
pub(super) const DATATYPE: u16 = 3;
pub(super) const OLD_FILL_VALUE: u16 = 4;
pub(super) const FILL_VALUE: u16 = 5;
const LINK: u16 = 6;
pub(super) const EXTERNAL: u16 = 7;
pub(super) const LAYOUT: u16 = 8;
pub(super) const FILTERS: u16 = 11;
pub(super) const ATTRIBUTE: u16 = 12;
const CONTINUATION: u16 = 16;
const SYMBOL_TABLE: u16 = 17;
pub(super) const ATTRIBUTE_INFO: u16 = 21;

/// A message of an object's header.
pub(super) struct Message {
    pub(super) kind: u16,
    /// Whether `content` only says where the message is.
    pub(super) shared: bool,
    pub(super) content: Vec<u8>,
}

/// An entry of a group.
pub(super) enum Link {
    Hard(u64),
    Soft,
    External,
    /// Of a kind that programs define.
    Other(u64),
}

/// Takes the key before a leaf's child of a B-tree, and the child's address.
type Leaf<'l, 'a> = dyn FnMut(&mut File<'a>, &[u8], u64) -> Result<(), ConvertError> + 'l;

/// A file with its sizes.
pub(super) struct File<'a> {
    pub(super) input: &'a Input<'a>,
    pub(super) sizes: Sizes,
    /// What addresses count from.
    base: u64,
    pub(super) root: u64,
    /// Blocks that may still be read: more than this cannot be in a file of its size.
    budget: u64,
    /// Bytes of headers, names and indexes that may still be read.
    bytes_left: u64,
}

impl<'a> File<'a> {
    /// Finds the superblock: at byte 0, 512, 1024, 2048 ….
    pub(super) fn open(input: &'a Input<'a>) -> Result<File<'a>, ConvertError> {
        let mut at = 0;
        loop {
            let mut start = [0; 8];
            let there = input.byte_count.saturating_sub(at) >= 8;
            if there {
                input.read_exact_at(&mut start, at)?;
            }
            if there && start == SIGNATURE {
                break;
            }
            at = if at == 0 { 512 } else { at * 2 };
            if !there || at > 1 << 30 {
                return Err(input.malformed("", "no HDF5 signature"));
            }
        }
        let len = input.byte_count.saturating_sub(at).min(256);
        let mut block = vec![0; len as usize];
        input.read_exact_at(&mut block, at)?;
        superblock(&block, at, input.byte_count)
            .map_err(|problem| input.malformed("superblock", problem))
            .map(|(sizes, base, root)| File {
                input,
                sizes,
                base,
                root,
                budget: input.byte_count / 4 + 1000,
                bytes_left: input.byte_count.saturating_mul(TIMES_READ_MAX),
            })
    }

    pub(super) fn malformed(&self, at: u64, problem: impl Into<String>) -> ConvertError {
        let problem: String = problem.into();
        let problem = format!("{problem} (byte {at})");
        self.input.malformed("", problem)
    }

    /// A cursor at an address, and that byte of the file.
    pub(super) fn cursor(&mut self, address: u64) -> Result<(Cursor<'a>, u64), ConvertError> {
        let Some(left) = self.budget.checked_sub(1) else {
            let problem = "more blocks than a file of this size can have: they point at each other";
            return Err(self.input.malformed("", problem));
        };
        self.budget = left;
        let at = self
            .base
            .checked_add(address)
            .filter(|&at| at < self.input.byte_count);
        let Some(at) = at else {
            let problem = format!(
                "address {address} is beyond the end, {}; is the file whole?",
                self.input.byte_count
            );
            return Err(self.input.malformed("", problem));
        };
        Ok((self.input.cursor(at), at))
    }

    /// The file's byte at an address that data of `len` bytes lies at.
    pub(super) fn place(&self, name: &str, address: u64, len: u64) -> Result<u64, ConvertError> {
        let at = self.base.checked_add(address);
        let end = at.and_then(|at| at.checked_add(len));
        match (at, end) {
            (Some(at), Some(end)) if end <= self.input.byte_count => Ok(at),
            _ => {
                let problem = format!(
                    "{len} bytes at address {address}, but the file has only {}; is it whole?",
                    self.input.byte_count
                );
                Err(self.input.malformed(name, problem))
            }
        }
    }

    /// Counts bytes of headers, names and indexes: read many times over, they stand for more than the file has.
    pub(super) fn charge(&mut self, byte_count: u64) -> Result<(), ConvertError> {
        let Some(left) = self.bytes_left.checked_sub(byte_count) else {
            let problem = "its headers, names and indexes are read over and over: they share bytes";
            return Err(self.input.malformed("", problem));
        };
        self.bytes_left = left;
        Ok(())
    }

    /// `len` bytes at an address.
    pub(super) fn bytes(&mut self, address: u64, len: u64) -> Result<Vec<u8>, ConvertError> {
        let at = self.place("", address, len)?;
        self.charge(len)?;
        let mut bytes = vec![0; len as usize];
        self.input.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// The first `len` bytes (four at least) of a block that begins with a signature, and its byte of the file.
    pub(super) fn block(
        &mut self,
        address: u64,
        len: u64,
        signature: &[u8; 4],
    ) -> Result<(Vec<u8>, u64), ConvertError> {
        let bytes = self.bytes(address, len)?;
        let at = self.base + address;
        if !bytes.starts_with(signature) {
            let problem = format!("no `{}` block", signature.escape_ascii());
            return Err(self.malformed(at, problem));
        }
        Ok((bytes, at))
    }

    /// All messages of an object.
    pub(super) fn messages(&mut self, address: u64) -> Result<Vec<Message>, ConvertError> {
        let (mut cursor, at) = self.cursor(address)?;
        let mut messages = Vec::new();
        let start: [u8; 4] = cursor.array()?;
        // Blocks of messages still to be read; for version 2, whether times and such are told for each.
        let mut blocks = Vec::new();
        let mut all_bytes = 0u64;
        let (version_2, order_bytes) = if start == *b"OHDR" {
            let [version, flags] = cursor.array()?;
            if version != 2 {
                return Err(self.malformed(at, format!("version {version} of an object header")));
            }
            cursor.skip(if flags & 0x20 != 0 { 16 } else { 0 })?;
            cursor.skip(if flags & 0x10 != 0 { 4 } else { 0 })?;
            let width = 1u64 << (flags & 3);
            let field = cursor.take(width)?;
            let len = Fields::new(field).number(width as u8).unwrap_or(0);
            blocks.push((cursor.at, len));
            (true, if flags & 4 != 0 { 2 } else { 0 })
        } else if start[0] == 1 {
            cursor.skip(4)?;
            let len = u32::from_le_bytes(cursor.array()?);
            blocks.push((cursor.at + 4, u64::from(len)));
            (false, 0)
        } else {
            return Err(self.malformed(at, "no object header"));
        };
        while let Some((at, len)) = blocks.pop() {
            all_bytes = all_bytes.saturating_add(len).saturating_add(64);
            let what = "bytes in an object header";
            self.input.limited("", what, all_bytes, HEADER_BYTES_MAX)?;
            self.charge(len)?;
            cursor.at = at;
            let block = cursor.take(len)?.to_vec();
            let found = split(&block, version_2, order_bytes);
            for message in found.map_err(|problem| self.malformed(at, problem))? {
                if message.kind != CONTINUATION {
                    messages.push(message);
                    continue;
                }
                let mut fields = Fields::new(&message.content);
                let next = fields.address(self.sizes).and_then(|address| {
                    let len = fields.number(self.sizes.length)?;
                    Ok((address.ok_or("a continuation without address")?, len))
                });
                let (address, len) = next.map_err(|problem| self.malformed(at, problem))?;
                let (mut cursor, at) = self.cursor(address)?;
                if !version_2 {
                    blocks.push((at, len));
                } else if cursor.array()? != *b"OCHK" || len < 8 {
                    return Err(self.malformed(at, "no continued object header"));
                } else {
                    blocks.push((at + 4, len - 8));
                }
            }
        }
        Ok(messages)
    }

    /// The entries of a group, if these messages are a group's.
    pub(super) fn links(
        &mut self,
        messages: &[Message],
    ) -> Result<Option<Vec<(String, Link)>>, ConvertError> {
        let mut links = Vec::new();
        let mut is_group = false;
        for message in messages {
            let mut fields = Fields::new(&message.content);
            match message.kind {
                SYMBOL_TABLE => {
                    is_group = true;
                    let sizes = self.sizes;
                    let both = fields
                        .address(sizes)
                        .and_then(|tree| Ok((tree, fields.address(sizes)?)));
                    match both.map_err(|problem| self.input.malformed("", problem))? {
                        (Some(tree), Some(heap)) => self.symbols(tree, heap, &mut links)?,
                        _ => return Err(self.input.malformed("", "a group without tree or heap")),
                    }
                }
                LINK_INFO => {
                    is_group = true;
                    let dense = dense_links(fields, self.sizes);
                    let dense = dense.map_err(|problem| self.input.malformed("", problem))?;
                    if let Some((heap, names)) = dense {
                        self.dense(heap, names, &mut links)?;
                    }
                }
                LINK => {
                    is_group = true;
                    let found = link(fields, self.sizes);
                    links.push(found.map_err(|problem| self.input.malformed("", problem))?);
                }
                _ => {}
            }
        }
        Ok(is_group.then_some(links))
    }

    /// The links of a group with many of them: messages in a heap, found by an index of their names.
    fn dense(
        &mut self,
        heap: u64,
        names: u64,
        links: &mut Vec<(String, Link)>,
    ) -> Result<(), ConvertError> {
        let heap = Heap::open(self, heap)?;
        tree2::records(self, names, &[LINKS_BY_NAME], &mut |file, record| {
            // A checksum of the name, and the message's ID.
            let message = heap.object(file, record.get(4..).unwrap_or_default())?;
            let found = link(Fields::new(&message), file.sizes);
            links.push(found.map_err(|problem| file.input.malformed("", problem))?);
            Ok(())
        })
    }

    /// The children of a version 1 B-tree's leaves, in order, each with the key before it.
    pub(super) fn tree(
        &mut self,
        address: u64,
        kind: u8,
        key_bytes: u64,
        leaf: &mut Leaf<'_, 'a>,
    ) -> Result<(), ConvertError> {
        self.tree_node(address, kind, key_bytes, None, leaf)
    }

    fn tree_node(
        &mut self,
        address: u64,
        kind: u8,
        key_bytes: u64,
        level_expected: Option<u8>,
        leaf: &mut Leaf<'_, 'a>,
    ) -> Result<(), ConvertError> {
        let (mut cursor, at) = self.cursor(address)?;
        let start: [u8; 4] = cursor.array()?;
        let [found, level] = cursor.array()?;
        let count = u16::from_le_bytes(cursor.array()?);
        if start != *b"TREE" || found != kind {
            return Err(self.malformed(at, format!("no B-tree node of type {kind}")));
        }
        if level_expected.is_some_and(|expected| level != expected) || level > LEVEL_MAX {
            return Err(self.malformed(
                at,
                format!("a B-tree node of level {level} within a lower one"),
            ));
        }
        let width = u64::from(self.sizes.offset);
        cursor.skip(2 * width)?;
        let entries_bytes = u64::from(count) * (key_bytes + width);
        let entries = cursor.take(entries_bytes)?.to_vec();
        drop(cursor);
        self.charge(entries_bytes)?;
        for entry in entries.chunks_exact((key_bytes + width) as usize) {
            let (key, child) = entry.split_at(key_bytes as usize);
            let child = Fields::new(child)
                .number(self.sizes.offset)
                .unwrap_or(u64::MAX);
            if level > 0 {
                self.tree_node(child, kind, key_bytes, Some(level - 1), leaf)?;
            } else {
                leaf(self, key, child)?;
            }
        }
        Ok(())
    }

    /// A group of the old kind: a B-tree of symbol tables, whose names are in a heap.
    fn symbols(
        &mut self,
        tree: u64,
        heap: u64,
        links: &mut Vec<(String, Link)>,
    ) -> Result<(), ConvertError> {
        let (mut cursor, at) = self.cursor(heap)?;
        if cursor.array()? != *b"HEAP" {
            return Err(self.malformed(at, "no local heap"));
        }
        cursor.skip(4)?;
        let head = cursor.take(u64::from(2 * self.sizes.length + self.sizes.offset))?;
        let mut fields = Fields::new(head);
        let sizes = self.sizes;
        let mut read = || {
            let len = fields.number(sizes.length)?;
            fields.number(sizes.length)?;
            Ok((len, fields.number(sizes.offset)?))
        };
        let (len, address) = read().map_err(|problem: String| self.malformed(at, problem))?;
        let names_at = self.place("", address, len)?;
        let names = (names_at, len);
        let key_bytes = u64::from(sizes.length);
        self.tree(tree, 0, key_bytes, &mut |file, _, child| {
            file.symbol_table(child, names, links)
        })
    }

    /// One symbol table's entries.
    fn symbol_table(
        &mut self,
        address: u64,
        names: (u64, u64),
        links: &mut Vec<(String, Link)>,
    ) -> Result<(), ConvertError> {
        let (mut cursor, at) = self.cursor(address)?;
        if cursor.array()? != *b"SNOD" {
            return Err(self.malformed(at, "no symbol table"));
        }
        cursor.skip(2)?;
        let count = u16::from_le_bytes(cursor.array()?);
        let width = u64::from(self.sizes.offset);
        let entries = cursor.take(u64::from(count) * (2 * width + 24))?.to_vec();
        for entry in entries.chunks_exact((2 * width + 24) as usize) {
            let mut fields = Fields::new(entry);
            let sizes = self.sizes;
            let mut read = || {
                let name = fields.number(sizes.offset)?;
                let header = fields.number(sizes.offset)?;
                Ok((name, header, fields.number(4)?))
            };
            let (name, header, cache) =
                read().map_err(|problem: String| self.malformed(at, problem))?;
            let name = self.heap_name(names, name)?;
            let link = if cache == 2 {
                Link::Soft
            } else {
                Link::Hard(header)
            };
            links.push((name, link));
        }
        Ok(())
    }

    /// A name in a local heap, which ends with a zero.
    fn heap_name(&mut self, (at, len): (u64, u64), offset: u64) -> Result<String, ConvertError> {
        let left = len.saturating_sub(offset).min(NAME_BYTES_MAX);
        let mut bytes: Vec<u8> = Vec::new();
        while (bytes.len() as u64) < left {
            // Twice as much each time: long names are few.
            let there = bytes.len();
            let ahead = left.min(2 * there.max(32) as u64) as usize;
            bytes.resize(ahead, 0);
            self.charge((ahead - there) as u64)?;
            let from = at + offset + there as u64;
            self.input.read_exact_at(&mut bytes[there..], from)?;
            let end = bytes[there..].iter().position(|&byte| byte == 0);
            if let Some(end) = end {
                let found = name(&bytes[..there + end]);
                return found.map_err(|problem| self.malformed(at + offset, problem));
            }
        }
        Err(self.malformed(
            at,
            format!("the name at {offset} in a heap of {len} bytes does not end"),
        ))
    }
}

/// Sizes, base address and the root group's header.
fn superblock(block: &[u8], at: u64, byte_count: u64) -> Result<(Sizes, u64, u64), String> {
    let mut fields = Fields::new(block);
    fields.take(8)?;
    let version = fields.byte()?;
    if version > 3 {
        return Err(format!(
            "version {version}; 0 to 3 are known here, look for a newer safelight"
        ));
    }
    if version < 2 {
        fields.take(4)?;
    }
    let (offset, length) = (fields.byte()?, fields.byte()?);
    if ![2, 4, 8].contains(&offset) || ![2, 4, 8].contains(&length) {
        return Err(format!(
            "addresses of {offset} bytes and lengths of {length}"
        ));
    }
    let sizes = Sizes { offset, length };
    match version {
        0 => drop(fields.take(9)?),
        1 => drop(fields.take(13)?),
        _ => drop(fields.take(1)?),
    }
    // Addresses count from the signature, whatever the base address says: HDF5 does so, too.
    fields.take(2 * u64::from(offset))?;
    let end = fields.address(sizes)?;
    if let Some(end) = end.filter(|&end| end > byte_count) {
        let problem = format!("it has {byte_count} bytes of {end}; is the file whole?");
        return Err(problem);
    }
    if version < 2 {
        fields.take(2 * u64::from(offset))?;
    }
    let root = fields.address(sizes)?.ok_or("no root group")?;
    Ok((sizes, at, root))
}

/// Cuts a block into messages.
fn split(block: &[u8], version_2: bool, order_bytes: u64) -> Result<Vec<Message>, String> {
    let mut fields = Fields::new(block);
    let mut messages = Vec::new();
    let mut left = block.len() as u64;
    let head = if version_2 { 4 + order_bytes } else { 8 };
    while left >= head {
        let kind = fields.number(if version_2 { 1 } else { 2 })? as u16;
        let len = fields.number(2)?;
        let flags = fields.byte()?;
        fields.take(if version_2 { order_bytes } else { 3 })?;
        let content = fields.take(len)?;
        left -= head + len;
        let wanted = matches!(
            kind,
            DATASPACE
                | LINK_INFO
                | DATATYPE
                | OLD_FILL_VALUE
                | FILL_VALUE
                | LINK
                | EXTERNAL
                | LAYOUT
                | FILTERS
                | ATTRIBUTE
                | CONTINUATION
                | SYMBOL_TABLE
                | ATTRIBUTE_INFO
        );
        if wanted {
            messages.push(Message {
                kind,
                shared: flags & 2 != 0,
                content: content.to_vec(),
            });
        }
    }
    Ok(messages)
}

fn name(bytes: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(bytes);
    text.map(str::to_owned)
        .map_err(|_| "a name is not UTF-8".to_owned())
}

/// The fractal heap of a group's links and the index of their names, if it has them.
fn dense_links(mut fields: Fields<'_>, sizes: Sizes) -> Result<Option<(u64, u64)>, String> {
    fields.byte()?;
    let flags = fields.byte()?;
    fields.take(if flags & 1 != 0 { 8 } else { 0 })?;
    let (heap, names) = (fields.address(sizes)?, fields.address(sizes)?);
    Ok(heap.zip(names))
}

/// A link message.
fn link(mut fields: Fields<'_>, sizes: Sizes) -> Result<(String, Link), String> {
    let (version, flags) = (fields.byte()?, fields.byte()?);
    if version != 1 {
        return Err(format!("version {version} of a link"));
    }
    let kind = if flags & 8 != 0 { fields.byte()? } else { 0 };
    fields.take(if flags & 4 != 0 { 8 } else { 0 })?;
    fields.take(if flags & 16 != 0 { 1 } else { 0 })?;
    let len = fields.number(1 << (flags & 3))?;
    let name = name(fields.take(len)?)?;
    let link = match kind {
        0 => Link::Hard(fields.address(sizes)?.ok_or("a link without address")?),
        1 => Link::Soft,
        64 => Link::External,
        kind => Link::Other(u64::from(kind)),
    };
    Ok((name, link))
}
