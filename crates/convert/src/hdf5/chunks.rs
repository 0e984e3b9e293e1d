//! Elements in chunks: boxes of a dataset, each packed on its own, put together row by row.
//!
//! Source: HDF5 File Format Specification Version 3.0, §III.A.1 and §VII (chunk indexes).

use std::collections::HashMap;
use std::io::Read;

use flate2::read::ZlibDecoder;

use super::objects::File;
use super::types::{Fields, Filter, Index};
use crate::error::ConvertError;
use crate::source::{Limits, PIECE_BYTES};

/// A dataset in chunks.
pub(super) struct Chunked<'a> {
    pub(super) name: &'a str,
    pub(super) shape: &'a [u64],
    pub(super) chunk: &'a [u64],
    pub(super) index: Index,
    pub(super) filters: &'a [Filter],
    pub(super) element_bytes: u64,
    /// An element that was never written.
    pub(super) fill: &'a [u8],
}

/// Where a chunk lies.
#[derive(Clone, Copy)]
struct Stored {
    address: u64,
    byte_count: u64,
    /// Filters left out, by their position.
    mask: u32,
}

/// What a chunk counts for in memory.
const CHUNK_KEPT_BYTES: u64 = 96;

impl Chunked<'_> {
    /// How many chunks each dimension has.
    fn grid(&self) -> Vec<u64> {
        let dims = self.shape.iter().zip(self.chunk);
        dims.map(|(&dim, &chunk)| dim.div_ceil(chunk)).collect()
    }

    fn chunk_bytes(&self) -> Option<u64> {
        let product = self
            .chunk
            .iter()
            .try_fold(1u64, |all, &dim| all.checked_mul(dim));
        product?.checked_mul(self.element_bytes)
    }

    /// Hands the elements on, row-major.
    pub(super) fn read(
        &self,
        file: &mut File<'_>,
        limits: &Limits,
        out: &mut dyn FnMut(&mut [u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let input = file.input;
        let limit = limits.memory_bytes_max;
        let chunk_bytes = self.chunk_bytes().unwrap_or(u64::MAX);
        input.limited(self.name, "bytes in a chunk", chunk_bytes, limit)?;
        let rest = self.shape[1..]
            .iter()
            .fold(self.element_bytes, |all, &dim| all.saturating_mul(dim));
        let rows = self.chunk[0].min(self.shape[0]);
        let band_bytes = rest.saturating_mul(rows);
        let all = band_bytes.saturating_add(chunk_bytes);
        input.limited(self.name, "bytes in a row of chunks", all, limit)?;
        let stored = self.stored(file, chunk_bytes, limit)?;
        self.check(file, &stored, rest, chunk_bytes, limits)?;
        let grid = self.grid();
        let mut band = Vec::new();
        for first in 0..grid[0] {
            let row = first * self.chunk[0];
            let height = rows.min(self.shape[0] - row);
            let len = (rest * height) as usize;
            self.blank(&mut band, len);
            for (position, chunk) in stored.band(first) {
                let bytes = self.unpack(file, &chunk, chunk_bytes)?;
                self.place(&bytes, &position, height, &mut band);
            }
            band.chunks_mut(PIECE_BYTES / 8 * 8)
                .try_for_each(&mut *out)?;
        }
        Ok(())
    }

    /// What a small file may claim: no more than it holds, unpacked at the best ratio, and a bounded part never written.
    fn check(
        &self,
        file: &File<'_>,
        stored: &Chunks,
        rest: u64,
        chunk_bytes: u64,
        limits: &Limits,
    ) -> Result<(), ConvertError> {
        let total = stored
            .by_band
            .values()
            .flatten()
            .map(|(_, chunk)| chunk.byte_count);
        let total = total.fold(0, u64::saturating_add);
        if total > file.input.byte_count {
            let problem = format!(
                "chunks of {total} bytes in a file of {}: they share bytes",
                file.input.byte_count
            );
            return Err(file.input.malformed(self.name, problem));
        }
        let all = rest.saturating_mul(self.shape[0]);
        let written = chunk_bytes.saturating_mul(stored.count);
        let what = "bytes that were never written";
        let never = all.saturating_sub(written);
        file.input
            .limited(self.name, what, never, limits.memory_bytes_max)
    }

    /// Elements that were never written.
    fn blank(&self, band: &mut Vec<u8>, len: usize) {
        band.clear();
        band.resize(len, 0);
        if self.fill.iter().any(|&byte| byte != 0) {
            for element in band.chunks_exact_mut(self.fill.len()) {
                element.copy_from_slice(self.fill);
            }
        }
    }

    /// Finds all chunks.
    fn stored(
        &self,
        file: &mut File<'_>,
        chunk_bytes: u64,
        limit: u64,
    ) -> Result<Chunks, ConvertError> {
        let grid = self.grid();
        let mut chunks = Chunks::default();
        let input = file.input;
        let name = self.name;
        let plain = |address| Stored {
            address,
            byte_count: chunk_bytes,
            mask: 0,
        };
        let count = grid.iter().fold(1u64, |all, &dim| all.saturating_mul(dim));
        let limited = |count: u64| {
            let kept = count.saturating_mul(CHUNK_KEPT_BYTES);
            input.limited(name, "bytes of chunks' places", kept, limit)
        };
        match self.index {
            Index::Empty => {}
            Index::Single(address, byte_count, mask) => {
                let byte_count = byte_count.unwrap_or(chunk_bytes);
                if count != 1 {
                    return Err(input.malformed(name, format!("one chunk, but {count} are needed")));
                }
                let stored = Stored {
                    address,
                    byte_count,
                    mask,
                };
                chunks.add(vec![0; grid.len()], stored);
            }
            Index::Implicit(address) => {
                limited(count)?;
                for number in 0..count {
                    let offset = number.saturating_mul(chunk_bytes);
                    chunks.add(
                        position(number, &grid),
                        plain(address.saturating_add(offset)),
                    );
                }
            }
            Index::FixedArray(address) => {
                limited(count)?;
                let array = FixedArray::read(file, name, address, count)?;
                for number in 0..count {
                    if let Some(stored) = array.entry(file, name, number, chunk_bytes)? {
                        chunks.add(position(number, &grid), stored);
                    }
                }
            }
            Index::BTree(address) => {
                let key_bytes = 8 + 8 * (self.shape.len() as u64 + 1);
                file.tree(address, 1, key_bytes, &mut |file, key, address| {
                    let position = self.key(file, key, &grid)?;
                    let number = |range: std::ops::Range<usize>| {
                        Fields::new(&key[range]).number(4).unwrap_or(0)
                    };
                    let stored = Stored {
                        address,
                        byte_count: number(0..4),
                        mask: number(4..8) as u32,
                    };
                    limited(chunks.count + 1)?;
                    chunks.add(position, stored);
                    Ok(())
                })?;
            }
        }
        Ok(chunks)
    }

    /// A chunk's position in the grid, from its B-tree key.
    fn key(&self, file: &File<'_>, key: &[u8], grid: &[u64]) -> Result<Vec<u64>, ConvertError> {
        let offsets = key[8..]
            .as_chunks::<8>()
            .0
            .iter()
            .map(|bytes| u64::from_le_bytes(*bytes));
        let offsets: Vec<u64> = offsets.take(grid.len()).collect();
        let mut position = Vec::new();
        for ((&offset, &chunk), &count) in offsets.iter().zip(self.chunk).zip(grid) {
            if offset % chunk != 0 || offset / chunk >= count {
                let problem = format!(
                    "a chunk at {offsets:?}, with chunks of {:?} in {:?}",
                    self.chunk, self.shape
                );
                return Err(file.input.malformed(self.name, problem));
            }
            position.push(offset / chunk);
        }
        Ok(position)
    }

    /// A chunk's bytes, as they were before the filters.
    fn unpack(
        &self,
        file: &File<'_>,
        chunk: &Stored,
        chunk_bytes: u64,
    ) -> Result<Vec<u8>, ConvertError> {
        let at = file.place(self.name, chunk.address, chunk.byte_count)?;
        let most = chunk_bytes + 4 * self.filters.len() as u64;
        let wrong = |problem: String| {
            let problem = format!("the chunk at byte {at}: {problem}");
            file.input.malformed(self.name, problem)
        };
        let packed = self.filters.contains(&Filter::Deflate);
        if chunk.byte_count > most.saturating_mul(2).saturating_add(1024) {
            let what = format!(
                "{} bytes stored for a chunk of {chunk_bytes}",
                chunk.byte_count
            );
            return Err(wrong(what));
        }
        let mut bytes = vec![0; chunk.byte_count as usize];
        file.input.read_exact_at(&mut bytes, at)?;
        for (position, filter) in self.filters.iter().enumerate().rev() {
            if chunk.mask >> position.min(31) & 1 != 0 {
                continue;
            }
            bytes = match filter {
                Filter::Deflate => inflate(&bytes, most).map_err(wrong)?,
                Filter::Shuffle(size) => unshuffle(&bytes, *size),
                Filter::Fletcher32 => fletcher(bytes).map_err(wrong)?,
            };
        }
        if bytes.len() as u64 != chunk_bytes {
            let what = if packed { "after unpacking" } else { "stored" };
            return Err(wrong(format!(
                "{} bytes {what}, expected {chunk_bytes}",
                bytes.len()
            )));
        }
        Ok(bytes)
    }

    /// Copies a chunk's rows into the band; what reaches beyond the dataset is left out.
    fn place(&self, bytes: &[u8], position: &[u64], height: u64, band: &mut [u8]) {
        let rank = self.shape.len();
        let size = self.element_bytes as usize;
        // How much of each dimension of the chunk is inside of the dataset.
        let mut inside: Vec<usize> = (0..rank)
            .map(|dim| {
                let start = position[dim] * self.chunk[dim];
                self.chunk[dim].min(self.shape[dim] - start) as usize
            })
            .collect();
        inside[0] = inside[0].min(height as usize);
        let run = if rank == 1 {
            inside[0]
        } else {
            inside[rank - 1]
        } * size;
        let outer = rank.saturating_sub(1);
        let mut at = vec![0usize; outer];
        loop {
            let (mut from, mut to) = (0, 0);
            for (dim, &place) in position.iter().enumerate() {
                let here = at.get(dim).copied().unwrap_or(0);
                let start = if dim == 0 {
                    0
                } else {
                    (place * self.chunk[dim]) as usize
                };
                let height_or_dim = if dim == 0 { height } else { self.shape[dim] };
                from = from * self.chunk[dim] as usize + here;
                to = to * height_or_dim as usize + start + here;
            }
            band[to * size..][..run].copy_from_slice(&bytes[from * size..][..run]);
            let Some(dim) = (0..outer).rev().find(|&dim| at[dim] + 1 < inside[dim]) else {
                return;
            };
            at[dim] += 1;
            at[dim + 1..].fill(0);
        }
    }
}

/// A chunk's position from its number.
fn position(mut number: u64, grid: &[u64]) -> Vec<u64> {
    let mut position = vec![0; grid.len()];
    for (place, &dim) in position.iter_mut().zip(grid).rev() {
        *place = number % dim;
        number /= dim;
    }
    position
}

/// Chunks by their position in the first dimension.
#[derive(Default)]
struct Chunks {
    by_band: HashMap<u64, Vec<(Vec<u64>, Stored)>>,
    count: u64,
}

impl Chunks {
    fn add(&mut self, position: Vec<u64>, stored: Stored) {
        self.count += 1;
        self.by_band
            .entry(position[0])
            .or_default()
            .push((position, stored));
    }

    fn band(&self, first: u64) -> Vec<(Vec<u64>, Stored)> {
        self.by_band.get(&first).cloned().unwrap_or_default()
    }
}

/// The places of chunks, one after the other, in pages if they are many.
struct FixedArray {
    /// The first entry, or the first page.
    entries_at: u64,
    /// Entries in a page; `None` without pages.
    page: Option<u64>,
    /// A bit for each page that was written, the highest first.
    bitmap: Vec<u8>,
    entry_bytes: u64,
    filtered: bool,
}

impl FixedArray {
    fn read(
        file: &mut File<'_>,
        name: &str,
        address: u64,
        count: u64,
    ) -> Result<FixedArray, ConvertError> {
        let sizes = file.sizes;
        let (mut cursor, at) = file.cursor(address)?;
        if cursor.array()? != *b"FAHD" {
            return Err(file.malformed(at, "no fixed array"));
        }
        let [version, client, entry_bytes, page_bits] = cursor.array()?;
        let mut fields = Fields::new(cursor.take(u64::from(sizes.length + sizes.offset))?);
        let capacity = fields.number(sizes.length).unwrap_or(0);
        let block = fields.number(sizes.offset).unwrap_or(u64::MAX);
        let filtered = client == 1;
        let least = sizes.offset + if filtered { 5 } else { 0 };
        let most = least + if filtered { 7 } else { 0 };
        if version != 0
            || client > 1
            || !(least..=most).contains(&entry_bytes)
            || page_bits > 32
            || capacity < count
        {
            let problem = format!(
                "a fixed array of version {version} for {capacity} chunks of {count}, {entry_bytes} bytes each"
            );
            return Err(file.input.malformed(name, problem));
        }
        let (mut cursor, at) = file.cursor(block)?;
        if cursor.array()? != *b"FADB" {
            return Err(file.malformed(at, "no block of a fixed array"));
        }
        cursor.skip(2 + u64::from(sizes.offset))?;
        let page = (capacity > 1 << page_bits).then_some(1u64 << page_bits);
        let mut bitmap = Vec::new();
        if let Some(page) = page {
            let pages = capacity.div_ceil(page);
            bitmap = cursor.take(pages.div_ceil(8))?.to_vec();
            cursor.skip(4)?;
        }
        Ok(FixedArray {
            entries_at: cursor.at,
            page,
            bitmap,
            entry_bytes: u64::from(entry_bytes),
            filtered,
        })
    }

    /// The place of a chunk; `None` if it was never written.
    fn entry(
        &self,
        file: &File<'_>,
        name: &str,
        number: u64,
        chunk_bytes: u64,
    ) -> Result<Option<Stored>, ConvertError> {
        let mut offset = number.saturating_mul(self.entry_bytes);
        if let Some(page) = self.page {
            let page = number / page;
            let bits = self.bitmap.get((page / 8) as usize).copied().unwrap_or(0);
            if bits >> (7 - page % 8) & 1 == 0 {
                return Ok(None);
            }
            offset = offset.saturating_add(4 * page); // each page ends with a checksum
        }
        let mut entry = vec![0; self.entry_bytes as usize];
        let at = self.entries_at.saturating_add(offset);
        if at.saturating_add(self.entry_bytes) > file.input.byte_count {
            let problem = format!("the place of chunk {number} is beyond the end of the file");
            return Err(file.input.malformed(name, problem));
        }
        file.input.read_exact_at(&mut entry, at)?;
        let mut fields = Fields::new(&entry);
        let sizes = file.sizes;
        let mut read = || -> Result<Option<Stored>, String> {
            let Some(address) = fields.address(sizes)? else {
                return Ok(None);
            };
            let (mut byte_count, mut mask) = (chunk_bytes, 0);
            if self.filtered {
                byte_count = fields.number((self.entry_bytes - 4) as u8 - sizes.offset)?;
                mask = fields.number(4)? as u32;
            }
            Ok(Some(Stored {
                address,
                byte_count,
                mask,
            }))
        };
        read().map_err(|problem| file.input.malformed(name, problem))
    }
}

/// A zlib stream of at most so many bytes.
fn inflate(bytes: &[u8], most: u64) -> Result<Vec<u8>, String> {
    let mut unpacked = Vec::new();
    let mut decoder = ZlibDecoder::new(bytes).take(most + 1);
    let read = decoder.read_to_end(&mut unpacked);
    read.map_err(|error| format!("cannot be inflated: {error}"))?;
    if unpacked.len() as u64 > most {
        return Err(format!("inflates to more than its {most} bytes"));
    }
    Ok(unpacked)
}

/// Puts the bytes of each element together again; what is no whole element stays at the end.
fn unshuffle(bytes: &[u8], size: u64) -> Vec<u8> {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let count = bytes.len() / size;
    if size <= 1 || count <= 1 {
        return bytes.to_vec();
    }
    let mut whole = vec![0; count * size];
    for (position, &byte) in bytes[..count * size].iter().enumerate() {
        whole[position % count * size + position / count] = byte;
    }
    whole.extend_from_slice(&bytes[count * size..]);
    whole
}

/// Takes the checksum off, after a look at it.
fn fletcher(mut bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    let Some(len) = bytes.len().checked_sub(4) else {
        return Err(format!("{} bytes have no room for a checksum", bytes.len()));
    };
    let told = u32::from_le_bytes([bytes[len], bytes[len + 1], bytes[len + 2], bytes[len + 3]]);
    bytes.truncate(len);
    let (mut low, mut high) = (0u32, 0u32);
    for pair in bytes.chunks(2) {
        // Pairs are big-endian; a last byte alone is the high one.
        let word = u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&byte| u32::from(byte));
        low = (low + word) % 65535;
        high = (high + low) % 65535;
    }
    // HDF5 folds instead of dividing, so that a multiple of 65535 may be told as that or as 0.
    let same = |a: u32, b: u32| a % 65535 == b % 65535;
    if !same(told & 0xffff, low) || !same(told >> 16, high) {
        let found = high << 16 | low;
        return Err(format!(
            "its checksum is {told:#010x}, that of its bytes {found:#010x}"
        ));
    }
    Ok(bytes)
}
