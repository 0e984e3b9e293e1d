//! Where a damaged file's tensors start. Three things say it: the length prefix, the end of the header's JSON, and the file's size
//! less that of the tensors. Where they don't agree, one of them is believed only if the damage has no other explanation.

use crate::error::StoreError;
use crate::source::FileSource;

/// What a header is padded to in every file that has padding at all.
const UNIT: u64 = 8;

/// What is read at a time in search of the padding's end.
const PIECE_BYTES: u64 = 64 * 1024;

/// What a file says about itself. Places are counted from the file's first byte.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence {
    /// Where the header starts, as far as known: padding is counted from here.
    pub(super) header_start: u64,
    /// Where tensors start if the length prefix is right.
    pub(super) by_prefix: Option<u64>,
    /// Where they start if the prefix is right, and has its bytes in the wrong order.
    pub(super) by_swapped_prefix: Option<u64>,
    /// Where the header's JSON ends.
    pub(super) json_end: u64,
    /// How many bytes the tensors have, by the header.
    pub(super) data_bytes: u64,
    pub(super) file_bytes: u64,
}

/// What follows the JSON.
#[derive(Clone, Copy, Debug)]
struct Padding {
    /// Where the run of spaces ends.
    spaces_end: u64,
    /// Where the run of white space ends.
    white_end: u64,
}

/// Where the tensors start, and whether the length prefix is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) at: u64,
    pub(super) overrules_prefix: bool,
}

impl Evidence {
    /// Where the tensors start; `None` if that can't be told.
    ///
    /// # Errors
    /// What reading says.
    pub(super) fn start(&self, source: &FileSource) -> Result<Option<Start>, StoreError> {
        let places = [self.by_prefix, self.by_swapped_prefix, self.by_size()];
        let within = places
            .into_iter()
            .flatten()
            .filter(|&at| at <= self.file_bytes);
        let last = within.max().unwrap_or(0);
        let until = (last + UNIT).clamp(self.json_end, self.file_bytes.max(self.json_end));
        let at = self.decide(&Padding::of(source, self.json_end, until)?);
        Ok(at.map(|at| Start {
            at,
            overrules_prefix: self.by_prefix != Some(at),
        }))
    }

    /// Where tensors start if nothing is missing from the file's end, and nothing stands behind it.
    pub(super) fn by_size(&self) -> Option<u64> {
        self.file_bytes.checked_sub(self.data_bytes)
    }

    fn decide(&self, padding: &Padding) -> Option<u64> {
        let by_size = self.by_size();
        let by_prefix = self
            .by_prefix
            .filter(|&at| self.json_end <= at && at <= self.file_bytes);
        if by_prefix.is_some() && by_prefix == by_size {
            return by_prefix; // two agree, whatever stands between the JSON and the tensors
        }
        let size_fits = by_size.filter(|&at| self.fits(at, padding));
        match (by_prefix, size_fits) {
            (Some(prefix), Some(size)) if self.fits(prefix, padding) => {
                // Between them are spaces: padding, for no tensor begins with just those that padding would need.
                Some(prefix.max(size))
            }
            (Some(prefix), Some(size)) => self.size_against_prefix(size, prefix, padding),
            (None, Some(size)) => Some(size),
            (Some(prefix), None) if self.is_usual(prefix, padding) => Some(prefix),
            (_, None) => self
                .by_swapped_prefix
                .filter(|&at| at <= self.file_bytes && self.fits(at, padding)),
        }
    }

    /// Whether tensors may start here: right behind the JSON, or behind spaces up to a multiple of 8.
    fn fits(&self, at: u64, padding: &Padding) -> bool {
        let padded = self.is_aligned(at) && at <= padding.spaces_end;
        at == self.json_end || (at > self.json_end && padded)
    }

    fn is_aligned(&self, at: u64) -> bool {
        let behind = at.checked_sub(self.header_start);
        behind.is_some_and(|bytes| bytes.is_multiple_of(UNIT))
    }

    /// The size says that tensors start where a header may end; the prefix names a less likely place.
    fn size_against_prefix(&self, size: u64, prefix: u64, padding: &Padding) -> Option<u64> {
        let is_white = prefix <= padding.white_end;
        // White space of a kind that data are as likely to begin with says nothing. NULs, and what is no padding, are data.
        let overruled = !is_white || (self.is_aligned(size) && !self.is_aligned(prefix));
        overruled.then_some(size)
    }

    /// Whether a prefix can be believed that nothing else agrees with, as in a file that is cut off.
    fn is_usual(&self, prefix: u64, padding: &Padding) -> bool {
        if self.fits(prefix, padding) {
            return true;
        }
        let padded = self.json_end + (self.header_start.wrapping_sub(self.json_end)) % UNIT;
        // Spaces lead up to a multiple of 8, and the prefix names another place.
        let is_beside = padding.spaces_end >= padded && !self.is_aligned(prefix);
        prefix <= padding.white_end && !is_beside
    }
}

impl Padding {
    fn of(source: &FileSource, json_end: u64, until: u64) -> Result<Padding, StoreError> {
        let (mut spaces_end, mut white_end) = (None, None);
        let mut at = json_end;
        while at < until && white_end.is_none() {
            let mut piece = vec![0; PIECE_BYTES.min(until - at) as usize];
            source.read_exact_at(&mut piece, at)?;
            let first_other = |kind: &[u8]| {
                let other = piece.iter().position(|byte| !kind.contains(byte));
                other.map(|index| at + index as u64)
            };
            spaces_end = spaces_end.or(first_other(b" "));
            white_end = first_other(b" \t\r\n");
            at += piece.len() as u64;
        }
        Ok(Padding {
            spaces_end: spaces_end.unwrap_or(at),
            white_end: white_end.unwrap_or(at),
        })
    }
}
