//! A slice's bytes, some megabytes at a time: which to read, and where each piece goes.

use std::ops::Range;

use super::copy::{copy_bits, reverse_elements};
use super::{SlicePlan, Walk};

/// How a slice is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceOptions {
    /// How many bytes a read may waste, in percent of those that it needs, so that two needed runs
    /// become one read. 20 by default; 0 reads nothing that isn't needed.
    pub over_read_percent: u32,
    /// The size of the result's part that is read at a time, at least one element.
    pub batch_bytes: u64,
}

impl Default for SliceOptions {
    fn default() -> SliceOptions {
        SliceOptions {
            over_read_percent: 20,
            batch_bytes: 8 * 1024 * 1024,
        }
    }
}

/// As many pieces as a batch keeps in memory (2 MB of them).
const PIECES_MAX: usize = 1 << 16;

/// Batches end at a multiple of so many elements, which fill whole bytes whatever their size.
const ELEMENTS_ALIGNED: u64 = 8;

/// Elements that lie together in the tensor and in the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The first (lowest) element in the tensor.
    pub source: u64,
    /// The first element in the result.
    pub out: u64,
    /// How many.
    pub count: u64,
    /// Whether the result has them backwards.
    pub reversed: bool,
}

impl Piece {
    /// The first `count` elements of the result's part, and the rest.
    fn split(self, count: u64) -> (Piece, Piece) {
        let (mut head, mut tail) = (self, self);
        head.count = count;
        tail.count -= count;
        tail.out += count;
        if self.reversed {
            head.source += tail.count;
        } else {
            tail.source += count;
        }
        (head, tail)
    }

    /// Makes one of two, if `next` goes on where this ends.
    fn absorb(&mut self, next: &Piece) -> bool {
        let forward = self.source + self.count == next.source
            && (!self.reversed || self.count == 1)
            && (!next.reversed || next.count == 1);
        let backward = next.source + next.count == self.source
            && (self.reversed || self.count == 1)
            && (next.reversed || next.count == 1);
        if forward {
            self.reversed = false;
        } else if backward {
            self.reversed = true;
            self.source = next.source;
        } else {
            return false;
        }
        self.count += next.count;
        true
    }
}

/// Bytes of a tensor to be read at once, and the pieces they hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRange {
    /// Counted from the tensor's first byte.
    pub bytes: Range<u64>,
    pieces: Range<usize>,
    direct: bool,
}

/// One part of a slice: a run of the result, and the reads that fill it.
#[derive(Clone, Debug)]
pub struct Batch {
    bits: u64,
    elements: Range<u64>,
    pieces: Vec<Piece>,
    reads: Vec<ReadRange>,
}

impl Batch {
    /// Which bytes of the result it fills.
    pub fn out_bytes(&self) -> Range<u64> {
        let start = self.elements.start * self.bits / 8;
        start..(self.elements.end * self.bits).div_ceil(8)
    }

    /// How many elements of the result it fills.
    pub fn element_count(&self) -> usize {
        (self.elements.end - self.elements.start) as usize
    }

    /// The reads, in the order of the tensor's bytes.
    pub fn reads(&self) -> &[ReadRange] {
        &self.reads
    }

    /// How many bytes all reads move.
    pub fn read_bytes(&self) -> u64 {
        let sizes = self
            .reads
            .iter()
            .map(|read| read.bytes.end - read.bytes.start);
        sizes.sum()
    }

    /// Where in the batch's part of the result a read's bytes belong, all of them and as they are;
    /// `None` if they must be taken apart by [`Batch::scatter`].
    pub fn direct(&self, read: &ReadRange) -> Option<Range<usize>> {
        let piece = self.pieces[read.pieces.start];
        read.direct.then(|| {
            let start = ((piece.out - self.elements.start) * self.bits / 8) as usize;
            start..start + (read.bytes.end - read.bytes.start) as usize
        })
    }

    /// Copies the pieces of one read to their places.
    ///
    /// `source` holds the bytes of `read`, `out` the bytes of [`Batch::out_bytes`]. `out` must
    /// have been zeros before the first read is scattered, where elements are smaller than a byte.
    ///
    /// # Panics
    /// If one of them is shorter.
    pub fn scatter(&self, read: &ReadRange, source: &[u8], out: &mut [u8]) {
        let bits = self.bits;
        for piece in &self.pieces[read.pieces.clone()] {
            let from = piece.source * bits - read.bytes.start * 8;
            let to = (piece.out - self.elements.start) * bits;
            if !piece.reversed {
                copy_bits(source, from, out, to, piece.count * bits);
            } else {
                reverse_elements(source, from, out, to, piece.count, bits);
            }
        }
    }
}

/// All batches of a slice, in the order of the result; see [`SlicePlan::batches`].
pub struct Batches<'a> {
    plan: &'a SlicePlan,
    over_read_percent: u64,
    batch_elements: u64,
    /// Where each walk is, but for the last one if that is part of every run.
    place: Vec<u64>,
    /// The rest of a run that did not fit.
    rest: Option<Piece>,
    /// Elements of the result before the next run.
    walked: u64,
    /// Elements of the result in earlier batches.
    done: u64,
}

impl<'a> Batches<'a> {
    pub(super) fn new(plan: &'a SlicePlan, options: &SliceOptions) -> Batches<'a> {
        let elements = options.batch_bytes.saturating_mul(8) / plan.bits.max(1);
        let outer = plan.walks.len() - usize::from(inner(plan).is_some());
        Batches {
            plan,
            over_read_percent: u64::from(options.over_read_percent),
            batch_elements: (elements / ELEMENTS_ALIGNED).max(1) * ELEMENTS_ALIGNED,
            place: vec![0; outer],
            rest: None,
            walked: 0,
            done: 0,
        }
    }

    /// The next elements that lie together.
    fn next_run(&mut self) -> Option<Piece> {
        if let Some(rest) = self.rest.take() {
            return Some(rest);
        }
        if self.walked >= self.plan.element_count {
            return None;
        }
        let walks = self.plan.walks.iter().zip(&self.place);
        let distance: i64 = walks.map(|(walk, place)| walk.distance(*place)).sum();
        let source = self.plan.first.wrapping_add_signed(distance);
        let (count, step) = inner(self.plan).unwrap_or((1, 1));
        let reversed = step < 0;
        let run = Piece {
            source: if reversed {
                source - (count - 1)
            } else {
                source
            },
            out: self.walked,
            count,
            reversed,
        };
        self.walked += count;
        for (walk, place) in self.plan.walks.iter().zip(&mut self.place).rev() {
            *place += 1;
            if *place < walk.count() {
                break;
            }
            *place = 0;
        }
        Some(run)
    }
}

/// Count and step (1 or -1) of the last walk, if runs go along it.
fn inner(plan: &SlicePlan) -> Option<(u64, i64)> {
    match plan.walks.last() {
        Some(&Walk::Even {
            count,
            step: step @ (1 | -1),
        }) => Some((count, step)),
        _ => None,
    }
}

impl Iterator for Batches<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let start = self.done;
        let mut pieces: Vec<Piece> = Vec::new();
        loop {
            let have = self.done - start;
            let room = if pieces.len() < PIECES_MAX {
                self.batch_elements - have
            } else {
                have.next_multiple_of(ELEMENTS_ALIGNED) - have
            };
            if room == 0 {
                break;
            }
            let Some(mut run) = self.next_run() else {
                break;
            };
            if run.count > room {
                let (head, tail) = run.split(room);
                self.rest = Some(tail);
                run = head;
            }
            self.done += run.count;
            let merged = pieces.last_mut().is_some_and(|last| last.absorb(&run));
            if !merged {
                pieces.push(run);
            }
        }
        if pieces.is_empty() {
            return None;
        }
        let elements = start..self.done;
        let bits = self.plan.bits;
        let reads = reads(&mut pieces, bits, self.over_read_percent);
        Some(Batch {
            bits,
            elements,
            pieces,
            reads,
        })
    }
}

/// Sorts pieces by where they lie and joins neighbours into reads, as the module's head says.
fn reads(pieces: &mut [Piece], bits: u64, over_read_percent: u64) -> Vec<ReadRange> {
    pieces.sort_unstable_by_key(|piece| (piece.source, piece.out));
    let mut reads: Vec<ReadRange> = Vec::new();
    let mut wasted = 0;
    for (position, piece) in pieces.iter().enumerate() {
        let start = piece.source * bits / 8;
        let end = ((piece.source + piece.count) * bits).div_ceil(8);
        if let Some(read) = reads.last_mut() {
            let gap = start.saturating_sub(read.bytes.end);
            let joined_end = read.bytes.end.max(end);
            let needed = joined_end - read.bytes.start - wasted - gap;
            let allowed = u128::from(needed) * u128::from(over_read_percent) / 100;
            if u128::from(wasted + gap) <= allowed {
                wasted += gap;
                read.bytes.end = joined_end;
                read.pieces.end = position + 1;
                read.direct = false;
                continue;
            }
        }
        wasted = 0;
        let whole = (piece.source * bits).is_multiple_of(8)
            && (piece.out * bits).is_multiple_of(8)
            && (piece.count * bits).is_multiple_of(8);
        reads.push(ReadRange {
            bytes: start..end,
            pieces: position..position + 1,
            direct: whole && !piece.reversed,
        });
    }
    reads
}
