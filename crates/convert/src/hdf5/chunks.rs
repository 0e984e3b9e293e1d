//! Elements in chunks: boxes of a dataset, each packed on its own, put together row by row.
//!
//! Source: HDF5 File Format Specification Version 3.0, §III.A.1 and §VII (chunk indexes).

use std::collections::HashMap;
use std::io::Read;

use flate2::read::ZlibDecoder;

use super::arrays::{ExtensibleArray, FixedArray, Stored};
use super::objects::File;
use super::tree2;
use super::types::{Fields, Filter, Index};
use crate::error::ConvertError;
use crate::input::Input;
use crate::source::{Bound, LimitName, Limits, PIECE_BYTES};

/// A dataset in chunks.
pub(super) struct Chunked<'a> {
    pub(super) name: &'a str,
    pub(super) shape: &'a [u64],
    /// The largest shape it may grow to; `None` without end.
    pub(super) most: &'a [Option<u64>],
    pub(super) chunk: &'a [u64],
    /// Whether chunks that reach beyond the dataset went through no filter.
    pub(super) plain_edges: bool,
    pub(super) index: Index,
    pub(super) filters: &'a [Filter],
    pub(super) element_bytes: u64,
    /// An element that was never written.
    pub(super) fill: &'a [u8],
}

/// Types of version 2 B-trees: chunks without and with filters.
const CHUNK_RECORDS: [u8; 2] = [10, 11];

/// What a chunk counts for in memory.
const CHUNK_KEPT_BYTES: u64 = 96;

/// All chunks, and the sizes that were checked.
pub(super) struct Checked {
    stored: Chunks,
    /// Bytes of what lies behind one step along the first dimension.
    rest: u64,
    /// Steps along the first dimension that are read together.
    rows: u64,
    chunk_bytes: u64,
}

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
        let Checked {
            stored,
            rest,
            rows,
            chunk_bytes,
        } = self.checked(file, limits)?;
        let grid = self.grid();
        let mut band = Vec::new();
        for first in 0..grid[0] {
            let row = first * self.chunk[0];
            let height = rows.min(self.shape[0] - row);
            let len = (rest * height) as usize;
            self.blank(&mut band, len);
            for (position, chunk) in stored.band(first) {
                let bytes = self.unpack(file, &chunk, &position, chunk_bytes)?;
                self.place(&bytes, &position, height, &mut band);
            }
            band.chunks_mut(PIECE_BYTES / 8 * 8)
                .try_for_each(&mut *out)?;
        }
        Ok(())
    }

    /// Finds all chunks, and checks that the file asks for no more than it may.
    pub(super) fn checked(
        &self,
        file: &mut File<'_>,
        limits: &Limits,
    ) -> Result<Checked, ConvertError> {
        let input = file.input;
        let limit = limits.bound(LimitName::Memory);
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
        Ok(Checked {
            stored,
            rest,
            rows,
            chunk_bytes,
        })
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
            .limited(self.name, what, never, limits.bound(LimitName::Memory))
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
        limit: Bound,
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
                self.each(input, &grid, false, &limited, &mut |position, number| {
                    let offset = number.saturating_mul(chunk_bytes);
                    chunks.add(position, plain(address.saturating_add(offset)));
                    Ok(())
                })?;
            }
            Index::FixedArray(address) => {
                let array = FixedArray::open(file, name, address)?;
                self.each(input, &grid, false, &limited, &mut |position, number| {
                    let stored = array.entry(file, name, number, chunk_bytes)?;
                    if let Some(stored) = stored {
                        chunks.add(position, stored);
                    }
                    Ok(())
                })?;
            }
            Index::ExtensibleArray(address) => {
                let mut array = ExtensibleArray::open(file, name, address)?;
                self.each(input, &grid, true, &limited, &mut |position, number| {
                    let stored = array.entry(file, name, number, chunk_bytes)?;
                    if let Some(stored) = stored {
                        chunks.add(position, stored);
                    }
                    Ok(())
                })?;
            }
            Index::BTree2(address) => {
                tree2::records(file, address, &CHUNK_RECORDS, &mut |file, record| {
                    let (position, stored) = self.record(file, record, &grid, chunk_bytes)?;
                    limited(chunks.count + 1)?;
                    chunks.add(position, stored);
                    Ok(())
                })?;
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

    /// Calls for each position in the grid with its number in an array of chunks: as the dataset would be numbered if it had
    /// grown as far as it may, the dimension without end (`growing`: there is one) before the others.
    fn each(
        &self,
        input: &Input,
        grid: &[u64],
        growing: bool,
        limited: &dyn Fn(u64) -> Result<(), ConvertError>,
        call: &mut dyn FnMut(Vec<u64>, u64) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let count = grid.iter().fold(1u64, |all, &dim| all.saturating_mul(dim));
        limited(count)?;
        let mut strides = vec![0u64; grid.len()];
        let mut stride = 1u64;
        for dim in (0..grid.len()).rev() {
            if let Some(most) = self.most[dim] {
                strides[dim] = stride;
                stride = stride.saturating_mul(most.div_ceil(self.chunk[dim]));
            }
        }
        let endless: Vec<usize> = (0..grid.len())
            .filter(|&dim| self.most[dim].is_none())
            .collect();
        if endless.len() != usize::from(growing) {
            let problem = format!(
                "{} dimensions without end, but its chunks are listed for {}",
                endless.len(),
                u8::from(growing)
            );
            return Err(input.malformed(self.name, problem));
        }
        endless.iter().for_each(|&dim| strides[dim] = stride);
        for place in 0..count {
            let position = position(place, grid);
            let products = position.iter().zip(&strides);
            let number = products.fold(0u64, |all, (&at, &stride)| {
                all.saturating_add(at.saturating_mul(stride))
            });
            call(position, number)?;
        }
        Ok(())
    }

    /// A chunk's position in the grid and its place, from its record in a version 2 B-tree.
    fn record(
        &self,
        file: &File<'_>,
        record: &[u8],
        grid: &[u64],
        chunk_bytes: u64,
    ) -> Result<(Vec<u64>, Stored), ConvertError> {
        let mut fields = Fields::new(record);
        let sizes = file.sizes;
        let plain_bytes = usize::from(sizes.offset) + 8 * grid.len();
        let mut read = || {
            let address = fields.address(sizes)?.ok_or("a chunk without address")?;
            let (mut byte_count, mut mask) = (chunk_bytes, 0);
            if let Some(more @ 5..=12) = record.len().checked_sub(plain_bytes) {
                byte_count = fields.number(more as u8 - 4)?;
                mask = fields.number(4)? as u32;
            }
            let position = (0..grid.len()).map(|_| fields.number(8));
            let position = position.collect::<Result<Vec<u64>, String>>()?;
            if position.iter().zip(grid).any(|(at, count)| at >= count) {
                return Err(format!("a chunk at {position:?} of {grid:?}"));
            }
            let stored = Stored {
                address,
                byte_count,
                mask,
            };
            Ok((position, stored))
        };
        read().map_err(|problem: String| file.input.malformed(self.name, problem))
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
        position: &[u64],
        chunk_bytes: u64,
    ) -> Result<Vec<u8>, ConvertError> {
        let at = file.place(self.name, chunk.address, chunk.byte_count)?;
        let most = chunk_bytes + 4 * self.filters.len() as u64;
        let wrong = |problem: String| {
            let problem = format!("the chunk at byte {at}: {problem}");
            file.input.malformed(self.name, problem)
        };
        let packed = self
            .filters
            .iter()
            .any(|filter| matches!(filter, Filter::Deflate | Filter::Lzf));
        if chunk.byte_count > most.saturating_mul(2).saturating_add(1024) {
            let what = format!(
                "{} bytes stored for a chunk of {chunk_bytes}",
                chunk.byte_count
            );
            return Err(wrong(what));
        }
        let mut bytes = vec![0; chunk.byte_count as usize];
        file.input.read_exact_at(&mut bytes, at)?;
        let dims = position.iter().zip(self.chunk).zip(self.shape);
        let at_edge = dims
            .into_iter()
            .any(|((&at, &chunk), &dim)| (at + 1).saturating_mul(chunk) > dim);
        let filters: &[Filter] = if self.plain_edges && at_edge {
            &[]
        } else {
            self.filters
        };
        for (number, filter) in filters.iter().enumerate().rev() {
            if chunk.mask >> number.min(31) & 1 != 0 {
                continue;
            }
            bytes = match filter {
                Filter::Deflate => inflate(&bytes, most).map_err(wrong)?,
                Filter::Lzf => unlzf(&bytes, most).map_err(wrong)?,
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

/// What LZF packed, at most so many bytes: runs of bytes as they are (a first byte below 32 is their count less one), and
/// repetitions (three bits of length, 13 bits of distance less one) of what came before.
///
/// Source: liblzf 3.6, `lzf_d.c` (the format, which has no other description).
fn unlzf(bytes: &[u8], most: u64) -> Result<Vec<u8>, String> {
    let mut unpacked: Vec<u8> = Vec::new();
    let mut at = 0;
    let next = |at: &mut usize| {
        let byte = bytes.get(*at).copied().ok_or("ends within a run of LZF")?;
        *at += 1;
        Ok::<usize, String>(usize::from(byte))
    };
    while at < bytes.len() {
        let first = next(&mut at)?;
        if first < 32 {
            let run = bytes.get(at..=at + first);
            unpacked.extend_from_slice(run.ok_or("ends within a run of LZF")?);
            at += first + 1;
        } else {
            let mut len = first >> 5;
            if len == 7 {
                len += next(&mut at)?;
            }
            let distance = ((first & 31) << 8 | next(&mut at)?) + 1;
            let Some(start) = unpacked.len().checked_sub(distance) else {
                let there = unpacked.len();
                return Err(format!(
                    "repeats what is {distance} bytes before, but has only {there}"
                ));
            };
            // What is repeated may reach into what it becomes.
            (start..start + len + 2).for_each(|from| unpacked.push(unpacked[from]));
        }
        if unpacked.len() as u64 > most {
            return Err(format!("unpacks to more than its {most} bytes"));
        }
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
