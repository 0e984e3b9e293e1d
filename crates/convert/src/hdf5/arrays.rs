//! Arrays of chunks' places: of a fixed size, or growing at the end.
//!
//! Source: HDF5 File Format Specification Version 3.0, §VII.C (fixed arrays) and §VII.D (extensible arrays).

use super::objects::File;
use super::types::Fields;
use crate::error::ConvertError;

/// Where a chunk lies.
#[derive(Clone, Copy)]
pub(super) struct Stored {
    pub(super) address: u64,
    pub(super) byte_count: u64,
    /// Filters left out, by their position.
    pub(super) mask: u32,
}

/// How an entry of an array looks.
struct Entries {
    bytes: u64,
    filtered: bool,
}

impl Entries {
    /// Checks what a header says of its entries; the length of a chunk has one to eight bytes.
    fn new(file: &File<'_>, client: u8, bytes: u8) -> Option<Entries> {
        let filtered = client == 1;
        let least = file.sizes.offset + if filtered { 5 } else { 0 };
        let most = least + if filtered { 7 } else { 0 };
        let sound = client <= 1 && (least..=most).contains(&bytes);
        sound.then_some(Entries {
            bytes: u64::from(bytes),
            filtered,
        })
    }

    /// The entry in these bytes; `None` if its chunk was never written.
    fn parse(
        &self,
        file: &File<'_>,
        entry: &[u8],
        chunk_bytes: u64,
    ) -> Result<Option<Stored>, String> {
        let sizes = file.sizes;
        let mut fields = Fields::new(entry);
        let Some(address) = fields.address(sizes)? else {
            return Ok(None);
        };
        let (mut byte_count, mut mask) = (chunk_bytes, 0);
        if self.filtered {
            byte_count = fields.number((self.bytes - 4) as u8 - sizes.offset)?;
            mask = fields.number(4)? as u32;
        }
        Ok(Some(Stored {
            address,
            byte_count,
            mask,
        }))
    }

    /// The entry at a byte of the file.
    fn read(
        &self,
        file: &File<'_>,
        name: &str,
        number: u64,
        at: u64,
        chunk_bytes: u64,
    ) -> Result<Option<Stored>, ConvertError> {
        if at.saturating_add(self.bytes) > file.input.byte_count {
            let problem = format!("the place of chunk {number} is beyond the end of the file");
            return Err(file.input.malformed(name, problem));
        }
        let mut entry = vec![0; self.bytes as usize];
        file.input.read_exact_at(&mut entry, at)?;
        let parsed = self.parse(file, &entry, chunk_bytes);
        parsed.map_err(|problem| file.input.malformed(name, problem))
    }
}

/// Whether a bit is set; the highest of each byte comes first.
fn is_set(bits: &[u8], number: u64) -> bool {
    let byte = usize::try_from(number / 8).ok().and_then(|at| bits.get(at));
    byte.is_some_and(|byte| byte >> (7 - number % 8) & 1 != 0)
}

/// The places of chunks, one after the other, in pages if they are many.
pub(super) struct FixedArray {
    /// The first entry, or the first page.
    entries_at: u64,
    capacity: u64,
    /// Entries in a page; `None` without pages.
    page: Option<u64>,
    /// A bit for each page that was written.
    bitmap: Vec<u8>,
    entries: Entries,
}

impl FixedArray {
    pub(super) fn open(
        file: &mut File<'_>,
        name: &str,
        address: u64,
    ) -> Result<FixedArray, ConvertError> {
        let sizes = file.sizes;
        let head_bytes = 8 + u64::from(sizes.length + sizes.offset);
        let (head, _) = file.block(address, head_bytes, b"FAHD")?;
        let [version, client, entry_bytes, page_bits] = [head[4], head[5], head[6], head[7]];
        let mut fields = Fields::new(&head[8..]);
        let capacity = fields.number(sizes.length).unwrap_or(0);
        let block = fields.address(sizes).ok().flatten();
        let entries = Entries::new(file, client, entry_bytes);
        let (Some(entries), true) = (entries, version == 0 && page_bits <= 32) else {
            let problem = format!(
                "a fixed array of version {version} and kind {client} with entries of {entry_bytes} bytes"
            );
            return Err(file.input.malformed(name, problem));
        };
        let Some(block) = block else {
            // No chunk was written yet: one page, which is not there.
            return Ok(FixedArray {
                entries_at: 0,
                capacity,
                page: Some(u64::MAX),
                bitmap: Vec::new(),
                entries,
            });
        };
        let head_bytes = 6 + u64::from(sizes.offset);
        let (_, mut at) = file.block(block, head_bytes, b"FADB")?;
        at += head_bytes;
        let page = (capacity > 1 << page_bits).then_some(1u64 << page_bits);
        let mut bitmap = Vec::new();
        if let Some(page) = page {
            let bitmap_bytes = capacity.div_ceil(page).div_ceil(8);
            bitmap = file.bytes(block.saturating_add(head_bytes), bitmap_bytes)?;
            at += bitmap_bytes + 4;
        }
        Ok(FixedArray {
            entries_at: at,
            capacity,
            page,
            bitmap,
            entries,
        })
    }

    /// The place of a chunk; `None` if it was never written.
    pub(super) fn entry(
        &self,
        file: &File<'_>,
        name: &str,
        number: u64,
        chunk_bytes: u64,
    ) -> Result<Option<Stored>, ConvertError> {
        if number >= self.capacity {
            let problem = format!(
                "a fixed array for {} chunks has no chunk {number}",
                self.capacity
            );
            return Err(file.input.malformed(name, problem));
        }
        let mut offset = number.saturating_mul(self.entries.bytes);
        if let Some(page) = self.page {
            let page = number / page;
            if !is_set(&self.bitmap, page) {
                return Ok(None);
            }
            offset = offset.saturating_add(4 * page); // each page ends with a checksum
        }
        let at = self.entries_at.saturating_add(offset);
        self.entries.read(file, name, number, at, chunk_bytes)
    }
}

/// The places of chunks in an array that grows: the first ones in the index block, then blocks of more and more entries,
/// found from the index block or from super blocks of more and more blocks.
pub(super) struct ExtensibleArray {
    entries: Entries,
    /// Entries that there may be at most.
    capacity: u64,
    /// Entries in the smallest block.
    block_least: u64,
    /// Larger blocks come in pages of so many entries.
    page: u64,
    /// Bytes before the entries of a block that has no pages.
    block_head_bytes: u64,
    /// The index block: its entries' bytes, how many, and the addresses of blocks and super blocks.
    first: Vec<u8>,
    first_count: u64,
    blocks: Vec<Option<u64>>,
    supers: Vec<Option<u64>>,
    /// Levels (blocks of one size each) whose blocks are found from the index block.
    direct_levels: u32,
    /// The super block that was read last.
    last: Option<(u32, Super)>,
}

/// A block of blocks.
struct Super {
    blocks: Vec<Option<u64>>,
    /// A bit for each page of each block that was written.
    bitmap: Vec<u8>,
}

/// How many blocks a level has, and how many entries each.
fn level_shape(level: u32, block_least: u64) -> (u64, u64) {
    (1 << (level / 2), block_least << level.div_ceil(2))
}

fn addresses(file: &File<'_>, bytes: &[u8]) -> Vec<Option<u64>> {
    let sizes = file.sizes;
    let each = bytes.chunks_exact(usize::from(sizes.offset));
    each.map(|bytes| Fields::new(bytes).address(sizes).ok().flatten())
        .collect()
}

impl ExtensibleArray {
    pub(super) fn open(
        file: &mut File<'_>,
        name: &str,
        address: u64,
    ) -> Result<ExtensibleArray, ConvertError> {
        let sizes = file.sizes;
        let offset = u64::from(sizes.offset);
        let head_bytes = 12 + 6 * u64::from(sizes.length) + offset;
        let (head, _) = file.block(address, head_bytes, b"EAHD")?;
        let [version, client, entry_bytes, bits] = [head[4], head[5], head[6], head[7]];
        let [first_count, block_least, pointers_least, page_bits] =
            [head[8], head[9], head[10], head[11]];
        let index = Fields::new(&head[head_bytes as usize - usize::from(sizes.offset)..])
            .address(sizes)
            .ok()
            .flatten();
        let sound = version == 0
            && (1..=63).contains(&bits)
            && page_bits <= bits
            && block_least.is_power_of_two()
            && block_least.ilog2() <= u32::from(bits)
            && pointers_least.is_power_of_two();
        let entries = Entries::new(file, client, entry_bytes);
        let (Some(entries), true) = (entries, sound) else {
            let problem = format!(
                "an extensible array of version {version} and kind {client} for {bits} bits with entries of \
                 {entry_bytes} bytes, blocks from {block_least} entries and {pointers_least} pointers on"
            );
            return Err(file.input.malformed(name, problem));
        };
        let capacity = (1u64 << bits) + u64::from(first_count);
        let levels = 1 + u32::from(bits) - block_least.ilog2();
        let direct_levels = 2 * pointers_least.ilog2();
        let block_count = 2 * (u64::from(pointers_least) - 1);
        let super_count = u64::from(levels.saturating_sub(direct_levels));
        let mut array = ExtensibleArray {
            block_head_bytes: 6 + offset + u64::from(bits.div_ceil(8)),
            block_least: u64::from(block_least),
            page: 1 << page_bits,
            first: Vec::new(),
            first_count: u64::from(first_count),
            blocks: Vec::new(),
            supers: Vec::new(),
            last: None,
            entries,
            capacity,
            direct_levels,
        };
        let Some(index) = index else {
            array.first_count = 0;
            array.capacity = 0;
            return Ok(array);
        };
        let first_bytes = array.first_count * array.entries.bytes;
        let index_bytes = 6 + offset + first_bytes + (block_count + super_count) * offset;
        let (block, _) = file.block(index, index_bytes, b"EAIB")?;
        let (first, rest) = block[(6 + offset) as usize..].split_at(first_bytes as usize);
        let (blocks, supers) = rest.split_at((block_count * offset) as usize);
        array.first = first.to_vec();
        array.blocks = addresses(file, blocks);
        array.supers = addresses(file, supers);
        Ok(array)
    }

    /// The place of a chunk; `None` if it was never written.
    pub(super) fn entry(
        &mut self,
        file: &mut File<'_>,
        name: &str,
        number: u64,
        chunk_bytes: u64,
    ) -> Result<Option<Stored>, ConvertError> {
        if number >= self.capacity {
            return Ok(None);
        }
        let Some(rest) = number.checked_sub(self.first_count) else {
            let start = (number * self.entries.bytes) as usize;
            let entry = &self.first[start..start + self.entries.bytes as usize];
            let parsed = self.entries.parse(file, entry, chunk_bytes);
            return parsed.map_err(|problem| file.input.malformed(name, problem));
        };
        // Level n begins behind (2ⁿ − 1) smallest blocks.
        let level = (rest / self.block_least + 1).ilog2();
        let rest = rest - ((1 << level) - 1) * self.block_least;
        let (block_count, entry_count) = level_shape(level, self.block_least);
        let (block, within) = (rest / entry_count, rest % entry_count);
        let pages = (entry_count > self.page).then(|| entry_count / self.page);
        let address = if level < self.direct_levels {
            let before: u64 = (0..level).map(|level| level_shape(level, 1).0).sum();
            self.blocks.get((before + block) as usize).copied()
        } else {
            let page = block * pages.unwrap_or(0) + within / self.page;
            let Some(found) = self.super_block(file, level, block_count, pages)? else {
                return Ok(None);
            };
            if pages.is_some() && !is_set(&found.bitmap, page) {
                return Ok(None);
            }
            found.blocks.get(block as usize).copied()
        };
        let Some(address) = address.flatten() else {
            return Ok(None);
        };
        let mut offset = self.block_head_bytes + within * self.entries.bytes;
        if pages.is_some() {
            offset += 4 * (1 + within / self.page); // checksums of the head and of each page
        }
        let at = file.place(name, address, offset)?;
        self.entries
            .read(file, name, number, at + offset, chunk_bytes)
    }

    /// The super block of a level; `None` if it was never written.
    fn super_block(
        &mut self,
        file: &mut File<'_>,
        level: u32,
        block_count: u64,
        pages: Option<u64>,
    ) -> Result<Option<&Super>, ConvertError> {
        if self.last.as_ref().is_none_or(|(last, _)| *last != level) {
            let address = self.supers.get((level - self.direct_levels) as usize);
            let Some(address) = address.copied().flatten() else {
                return Ok(None);
            };
            let bitmap_bytes = pages.map_or(0, |pages| pages.div_ceil(8)) * block_count;
            let head = self.block_head_bytes;
            let len = head + bitmap_bytes + block_count * u64::from(file.sizes.offset);
            let (block, _) = file.block(address, len, b"EASB")?;
            let (bitmap, blocks) = block[head as usize..].split_at(bitmap_bytes as usize);
            let found = Super {
                blocks: addresses(file, blocks),
                bitmap: bitmap.to_vec(),
            };
            self.last = Some((level, found));
        }
        Ok(self.last.as_ref().map(|(_, found)| found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_hold_twice_as_many_each() {
        for level in 0..20 {
            let (blocks, entries) = level_shape(level, 16);
            assert_eq!(blocks * entries, 16 << level, "{level}");
        }
        assert!(is_set(&[0x80, 1], 0) && is_set(&[0x80, 1], 15));
        assert!(!is_set(&[0x80, 1], 1) && !is_set(&[0x80, 1], 16));
    }
}
