//! Fractal heaps: where groups and objects with much in them keep their links and attributes.
//!
//! A heap is one run of bytes in blocks whose sizes double, row by row; objects are found by their place in that run,
//! large ones by a B-tree, tiny ones are in their own ID. Source: HDF5 File Format Specification Version 3.0, §III.G.

use super::objects::File;
use super::tree2::{bytes_for, records};
use super::types::Fields;
use crate::error::ConvertError;

/// Blocks within blocks: rows shrink at every step, so that there are never more.
const DEPTH_MAX: u32 = 64;

/// A heap's header.
pub(super) struct Heap {
    /// Its file's byte, for messages.
    at: u64,
    /// Bytes of an object's place and of its length in an ID.
    place_bytes: u8,
    length_bytes: u8,
    /// Blocks in a row, and bytes of those in the first one.
    width: u64,
    first_bytes: u64,
    /// Rows above this have blocks of objects, those from it on blocks of blocks.
    direct_rows: u64,
    root: Option<u64>,
    /// Rows of the root; 0 if it is a block of objects.
    root_rows: u64,
    /// The tree of large objects.
    huge: Option<u64>,
    id_bytes: u64,
}

impl Heap {
    /// The heap at an address.
    pub(super) fn open(file: &mut File<'_>, address: u64) -> Result<Heap, ConvertError> {
        let sizes = file.sizes;
        let head_bytes = 22 + 12 * u64::from(sizes.length) + 3 * u64::from(sizes.offset);
        let (head, at) = file.block(address, head_bytes, b"FRHP")?;
        let mut fields = Fields::new(&head[4..]);
        let (offset, length) = (u64::from(sizes.offset), u64::from(sizes.length));
        let mut read = || {
            let version = fields.byte()?;
            let (id_bytes, filter_bytes) = (fields.number(2)?, fields.number(2)?);
            fields.byte()?;
            let object_most = fields.number(4)?;
            fields.take(length)?;
            let huge = fields.address(sizes)?;
            fields.take(length + offset + 8 * length)?;
            let (width, first_bytes) = (fields.number(2)?, fields.number(sizes.length)?);
            let (direct_most, bits) = (fields.number(sizes.length)?, fields.number(2)?);
            fields.take(2)?;
            let (root, root_rows) = (fields.address(sizes)?, fields.number(2)?);
            let sound = version == 0
                && width.is_power_of_two()
                && first_bytes.is_power_of_two()
                && direct_most.is_power_of_two()
                && (first_bytes..=1 << 32).contains(&direct_most)
                && (1..=64).contains(&bits)
                && id_bytes >= 1;
            if !sound {
                return Err(format!(
                    "a fractal heap of version {version} for {bits} bits with rows of {width} blocks, \
                     of {first_bytes} to {direct_most} bytes"
                ));
            }
            let most_bits = u64::from(direct_most.ilog2());
            let heap = Heap {
                at,
                place_bytes: bits.div_ceil(8) as u8,
                length_bytes: bytes_for(object_most).min(most_bits.div_ceil(8) as u8),
                width,
                first_bytes,
                direct_rows: most_bits - u64::from(first_bytes.ilog2()) + 2,
                root,
                root_rows,
                huge,
                id_bytes,
            };
            Ok((heap, filter_bytes))
        };
        let (heap, filter_bytes) = read().map_err(|problem: String| file.malformed(at, problem))?;
        if filter_bytes > 0 {
            let what = format!(
                "the heap of links or attributes at byte {at} is compressed; nothing here reads that, copy the file \
                 with h5repack"
            );
            return Err(file.input.unsupported("", what));
        }
        Ok(heap)
    }

    /// An object's bytes, by its ID.
    pub(super) fn object(&self, file: &mut File<'_>, id: &[u8]) -> Result<Vec<u8>, ConvertError> {
        let wrong = |file: &File<'_>, problem: String| file.malformed(self.at, problem);
        let mut fields = Fields::new(id);
        let flags = fields.byte().map_err(|problem| wrong(file, problem))?;
        match flags >> 4 {
            0 => {
                let place = fields.number(self.place_bytes);
                let both = place.and_then(|at| Ok((at, fields.number(self.length_bytes)?)));
                let (place, len) = both.map_err(|problem| wrong(file, problem))?;
                self.managed(file, place, len)
            }
            1 => self.large(file, fields),
            2 => {
                let extended = self.id_bytes > 17;
                let len = u64::from(flags & 15);
                let more = if extended { fields.byte() } else { Ok(0) };
                let bytes = more.and_then(|more| {
                    let len = if extended {
                        len << 8 | u64::from(more)
                    } else {
                        len
                    };
                    fields.take(len + 1)
                });
                bytes
                    .map(<[u8]>::to_vec)
                    .map_err(|problem| wrong(file, problem))
            }
            kind => Err(wrong(file, format!("an object's ID of kind {kind:#x}"))),
        }
    }

    /// `len` bytes at a place in the run of blocks.
    fn managed(&self, file: &mut File<'_>, place: u64, len: u64) -> Result<Vec<u8>, ConvertError> {
        let (mut rows, mut rest) = (self.root_rows, place);
        let mut block = self.root;
        let mut block_bytes = self.first_bytes;
        let head = 5 + u64::from(file.sizes.offset) + u64::from(self.place_bytes);
        for _ in 0..DEPTH_MAX {
            let Some(address) = block else {
                let problem = format!("an object at {place} in a block that was never written");
                return Err(file.malformed(self.at, problem));
            };
            if rows == 0 {
                if rest.checked_add(len).is_none_or(|end| end > block_bytes) {
                    let problem =
                        format!("an object of {len} bytes at {rest} in a block of {block_bytes}");
                    return Err(file.malformed(self.at, problem));
                }
                file.block(address, 4, b"FHDB")?;
                return file.bytes(address.saturating_add(rest), len);
            }
            // Rows 0 and 1 have the smallest blocks, each later row blocks of twice the size.
            let row_bytes = self.width.saturating_mul(self.first_bytes);
            let row = rest.checked_div(row_bytes).map_or(0, |times| {
                times.checked_ilog2().map_or(0, |bits| u64::from(bits) + 1)
            });
            if row >= rows {
                let problem = format!("an object at {place}, behind the last of {rows} rows");
                return Err(file.malformed(self.at, problem));
            }
            let doubled = row.saturating_sub(1);
            let before = if row == 0 { 0 } else { row_bytes << doubled };
            block_bytes = self.first_bytes << doubled;
            rest -= before;
            let entry = row * self.width + rest / block_bytes;
            rest %= block_bytes;
            file.block(address, 4, b"FHIB")?;
            let entry_at = head + entry * u64::from(file.sizes.offset);
            let entry = file.bytes(
                address.saturating_add(entry_at),
                u64::from(file.sizes.offset),
            )?;
            let read = Fields::new(&entry).address(file.sizes);
            block = read.map_err(|problem| file.malformed(self.at, problem))?;
            rows = if row < self.direct_rows {
                0
            } else {
                let smaller = self.width.ilog2();
                (doubled + 1).saturating_sub(u64::from(smaller))
            };
        }
        Err(file.malformed(self.at, "blocks within each other without end"))
    }

    /// An object with a place of its own: in its ID, or found by its number in a tree.
    fn large(&self, file: &mut File<'_>, mut id: Fields<'_>) -> Result<Vec<u8>, ConvertError> {
        let sizes = file.sizes;
        let direct = self.id_bytes > u64::from(sizes.offset + sizes.length);
        let found = if direct {
            let both = id.address(sizes);
            let both = both.and_then(|at| Ok((at, id.number(sizes.length)?)));
            Some(both.map_err(|problem| file.malformed(self.at, problem))?)
        } else {
            let number_bytes = u64::from(sizes.length).min(self.id_bytes - 1) as u8;
            let number = id.number(number_bytes);
            let number = number.map_err(|problem| file.malformed(self.at, problem))?;
            let mut found = None;
            if let Some(tree) = self.huge {
                records(file, tree, &[1], &mut |file, record| {
                    let mut fields = Fields::new(record);
                    let mut read = || {
                        let (at, len) = (fields.address(sizes)?, fields.number(sizes.length)?);
                        Ok((at, len, fields.number(sizes.length)?))
                    };
                    let (at, len, this) =
                        read().map_err(|problem: String| file.malformed(self.at, problem))?;
                    if this == number {
                        found = Some((at, len));
                    }
                    Ok(())
                })?;
            }
            found
        };
        match found {
            Some((Some(address), len)) => file.bytes(address, len),
            _ => Err(file.malformed(self.at, "a large object that is not there")),
        }
    }
}
