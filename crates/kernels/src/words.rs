//! Weights and left rows as 32-bit words: packed once, converted in every call.
//!
//! What a word is and how words multiply is `arch`'s; what they are multiplied for is `gemm`'s.

use std::ops::Deref;

use rayon::prelude::*;

use crate::arch::{self, Aligned, PANEL, Part, Simd, Task};
use crate::level::Level;
use crate::packing::{self, Gated};
use crate::precision::Precision;
use crate::scratch::Scratch;
use crate::source::Source;

/// Words of one pass over a piece's rows: their weights, 40 KiB, stay in the nearest caches.
const PART: usize = 320;

/// Words of int8 that share a scale: 320 channels. Fewer would follow the magnitudes more closely,
/// but every run's end costs as much as some three words.
const SCALED_RUN: usize = 80;

/// Magnitudes below this are 0 in int8, so that their inverse is a number.
pub(crate) const SCALED_MIN: f32 = 1e-30;

/// So many numbers of a part of an int8 left row at most are kept as they are, the largest first: outliers. A scale that
/// has to reach them would leave little of all others.
const OUTLIERS_MAX: usize = 3;

/// An outlier is larger than so many root mean squares of its part: of Gaussian numbers one in two millions is.
const OUTLIER_FROM: f32 = 5.0;

/// How a sum over taps and channels is cut into parts, and what of it lies where.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    /// In the order of the sum.
    pub(crate) parts: Vec<Part>,
    pub(crate) precision: Precision,
    pub(crate) channels: usize,
    pub(crate) taps: usize,
    /// Words of a right run: all its parts, int8's with a scale each.
    run_words: usize,
}

impl Parts {
    /// Cuts `taps` × `channels` products, by size alone.
    fn new(precision: Precision, taps: usize, channels: usize) -> Self {
        let words = channels.div_ceil(channels_in_a_word(precision));
        let scaled = precision == Precision::Int8;
        let run_max = if scaled { SCALED_RUN } else { PART };
        let count = words.div_ceil(run_max);
        let mut parts = Vec::new();
        if count == 1 {
            let taps_max = PART / words;
            parts.extend((0..taps).step_by(taps_max).map(|tap| Part {
                tap,
                taps: taps_max.min(taps - tap),
                skip: 0,
                len: words,
            }));
        } else {
            let len = words.div_ceil(count).next_multiple_of(4);
            for tap in 0..taps {
                parts.extend((0..words).step_by(len).enumerate().map(|(idx, skip)| Part {
                    tap,
                    taps: 1,
                    skip: skip + if scaled { idx } else { 0 },
                    len: len.min(words - skip),
                }));
            }
        }
        let last = parts.iter().map(|part| part.skip + part.len).max();
        Parts {
            parts,
            precision,
            channels,
            taps,
            run_words: last.expect("at least one part") + usize::from(scaled),
        }
    }

    /// Rows that one of the runs of `part` takes in a panel: the scaled end with two of their own.
    pub(crate) fn run_rows(&self, part: Part) -> usize {
        part.len
            + if self.precision == Precision::Int8 {
                2
            } else {
                0
            }
    }

    /// Rows that `part` takes in a panel.
    pub(crate) fn panel_rows(&self, part: Part) -> usize {
        part.taps * self.run_rows(part)
    }

    /// Words of a left run at `level`.
    fn left_words(&self, level: Level) -> usize {
        match self.precision {
            // Floats, two to each word of weights.
            Precision::Bf16 if !level.rounds_rows() => 2 * self.run_words,
            // Behind the parts, how many outliers there are, and of each its channel and value.
            Precision::Int8 => self.run_words + 1 + 2 * OUTLIERS_MAX * self.of_a_run().count(),
            Precision::Bf16 | Precision::F32 => self.run_words,
        }
    }

    /// The outliers of the int8 left run `run`, by channel in each part: (channel, value).
    #[inline(always)]
    pub(crate) fn outliers<'a>(&self, run: &'a [f32]) -> impl Iterator<Item = (usize, f32)> + 'a {
        let (count, pairs) = run[self.run_words..]
            .split_first()
            .expect("left_words has it");
        let pairs = pairs
            .as_chunks::<2>()
            .0
            .iter()
            .take(count.to_bits() as usize);
        pairs.map(|[channel, value]| (channel.to_bits() as usize, *value))
    }

    /// Where an int8 panel has the weights of `channel` under `tap`.
    pub(crate) fn place(&self, tap: usize, channel: usize) -> Place {
        let (len, words) = (self.parts[0].len, self.channels.div_ceil(4));
        let (part, at) = (channel / 4 / len, channel / 4 % len);
        let start = tap * (words + 2 * words.div_ceil(len)) + part * (len + 2);
        Place {
            word: start + at,
            byte: channel % 4,
            scale: start + len.min(words - part * len),
        }
    }

    /// Channel by channel the same for all taps: the parts of the first.
    pub(crate) fn of_a_run(&self) -> impl Iterator<Item = Part> + '_ {
        self.parts.iter().copied().take_while(|part| part.tap == 0)
    }
}

/// Where weights of one channel are in an int8 panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The panel row of their words.
    pub(crate) word: usize,
    /// Which byte of each word, from the lowest.
    pub(crate) byte: usize,
    /// The panel row of their scales.
    pub(crate) scale: usize,
}

/// Channels that a word holds.
pub(crate) const fn channels_in_a_word(precision: Precision) -> usize {
    match precision {
        Precision::F32 => 1,
        Precision::Bf16 => 2,
        Precision::Int8 => 4,
    }
}

/// Weights laid out as kernels read them: panels of 32 output channels, `[ceil(N/32)][K][32]` of
/// words, the last one filled up with zeros. K goes part by part, run by run, word by word.
#[derive(Clone, Debug)]
pub(crate) struct Panels {
    data: Aligned,
    columns: usize,
    /// Rows of a panel.
    depth: usize,
    parts: Parts,
    /// Whether each panel's first half are values and its second half their gates.
    gated: bool,
}

/// Half of the columns of a panel.
pub(crate) const HALF: usize = PANEL / 2;

impl Panels {
    /// Packs `weight`, `[2 · columns][channels]`, values first and their gates second, so that every panel has [`HALF`] of either.
    ///
    /// # Panics
    /// If the length is another, a size is 0 or `columns` are not whole halves of a panel.
    pub(crate) fn pack_gated(
        weight: &dyn Source,
        columns: usize,
        channels: usize,
        precision: Precision,
    ) -> Self {
        let rows = Gated::new(weight, columns, channels);
        let panels = Panels::pack(&rows, 2 * columns, channels, 1, precision);
        Panels {
            gated: true,
            ..panels
        }
    }

    /// Packs `weight`, `[columns][channels][taps]`.
    ///
    /// # Panics
    /// If the length is another or a size is 0.
    pub(crate) fn pack(
        weight: &dyn Source,
        columns: usize,
        channels: usize,
        taps: usize,
        precision: Precision,
    ) -> Self {
        let mut panels = Panels::zeros(columns, channels, taps, precision);
        packing::fill(&mut panels, weight);
        panels
    }

    /// Panels that are yet to be filled.
    ///
    /// # Panics
    /// If a size is 0.
    pub(crate) fn zeros(
        columns: usize,
        channels: usize,
        taps: usize,
        precision: Precision,
    ) -> Self {
        assert!(
            columns > 0 && channels > 0 && taps > 0,
            "[{columns}, {channels}, {taps}]"
        );
        let parts = Parts::new(precision, taps, channels);
        let rows = parts.parts.iter().map(|&part| parts.panel_rows(part));
        let depth = rows.sum();
        Panels {
            data: Aligned::zeros(columns.div_ceil(PANEL) * depth * PANEL),
            columns,
            depth,
            parts,
            gated: false,
        }
    }

    /// All panels, each `[K][32]`, to be filled.
    pub(crate) fn panels_mut(&mut self) -> std::slice::ChunksExactMut<'_, f32> {
        self.data
            .as_mut_slice()
            .chunks_exact_mut(self.depth * PANEL)
    }

    /// Columns of the product.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Output channels: as many as columns, or of values with gates half.
    pub(crate) fn outputs(&self) -> usize {
        if self.gated {
            self.columns / 2
        } else {
            self.columns
        }
    }

    /// Whether values have gates beside them.
    pub(crate) fn gated(&self) -> bool {
        self.gated
    }

    /// Output channels of a panel.
    pub(crate) fn of_a_panel(&self) -> usize {
        if self.gated { HALF } else { PANEL }
    }

    /// What the words hold.
    pub(crate) fn precision(&self) -> Precision {
        self.parts.precision
    }

    /// How the sums are cut.
    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Runs of a left row.
    pub(crate) fn taps(&self) -> usize {
        self.parts.taps
    }

    /// Words of a run of a left row at `level`.
    pub(crate) fn left_words(&self, level: Level) -> usize {
        self.parts.left_words(level)
    }

    /// `[K][32]` of one panel.
    pub(crate) fn panel(&self, panel_idx: usize) -> &[f32] {
        &self.panels_from(panel_idx)[..self.depth * PANEL]
    }

    /// One panel and all that follow it.
    pub(crate) fn panels_from(&self, panel_idx: usize) -> &[f32] {
        &self.data.as_slice()[panel_idx * self.depth * PANEL..]
    }

    /// Bytes of the packed weights.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.data.as_slice())
    }
}

/// The left rows of a product as the words its panels ask for.
pub(crate) enum Left<'a> {
    /// Floats are words already.
    Same(&'a [f32]),
    /// `[rows][left_words]`
    Converted(Scratch),
}

impl<'a> Left<'a> {
    /// Converts `x`, `[rows][channels]`, for products at `level`.
    pub(crate) fn new(level: Level, x: &'a [f32], panels: &Panels) -> Self {
        let parts = &panels.parts;
        let (channels, left_words) = (parts.channels, parts.left_words(level));
        let as_they_are = match parts.precision {
            Precision::F32 => true,
            Precision::Bf16 => !level.rounds_rows() && left_words == channels,
            Precision::Int8 => false,
        };
        if as_they_are {
            return Left::Same(x);
        }
        let mut words = Scratch::take(x.len() / channels * left_words);
        let rows_at_once = (CONVERTED_AT_ONCE / channels).max(1);
        words
            .par_chunks_mut(rows_at_once * left_words)
            .zip(x.par_chunks(rows_at_once * channels))
            .for_each(|(words, x)| match parts.precision {
                Precision::Int8 => arch::run(level, ToBytes { parts, x, words }),
                Precision::Bf16 if level.rounds_rows() => {
                    arch::run(level, ToHalves { parts, x, words });
                }
                Precision::Bf16 | Precision::F32 => {
                    // An odd number of channels, filled up to whole words.
                    let rows = words.chunks_exact_mut(left_words);
                    for (words, x) in rows.zip(x.chunks_exact(channels)) {
                        words[..channels].copy_from_slice(x);
                        words[channels..].fill(0.0);
                    }
                }
            });
        Left::Converted(words)
    }
}

/// Floats that a thread converts at a time.
const CONVERTED_AT_ONCE: usize = 32 * 1024;

impl Deref for Left<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match self {
            Left::Same(x) => x,
            Left::Converted(words) => words,
        }
    }
}

/// Rows as words of bf16.
struct ToHalves<'a> {
    parts: &'a Parts,
    x: &'a [f32],
    words: &'a mut [f32],
}

impl Task for ToHalves<'_> {
    type Output = ();
    const PRECISION: Precision = Precision::Bf16;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Parts {
            channels,
            run_words,
            ..
        } = *self.parts;
        let rows = self.words.chunks_exact_mut(run_words);
        for (words, x) in rows.zip(self.x.chunks_exact(channels)) {
            to_halves(simd, x, words);
        }
    }
}

/// Floats as words of bf16; an odd number's last has 0 beside it.
#[inline(always)]
pub(crate) fn to_halves<S: Simd>(simd: S, x: &[f32], words: &mut [f32]) {
    for (words, x) in words.chunks_mut(S::LANES).zip(x.chunks(2 * S::LANES)) {
        let (low, high) = x.split_at(S::LANES.min(x.len()));
        let both = simd.to_bf16(simd.load_partial(low), simd.load_partial(high));
        simd.store_partial(both, words);
    }
}

/// Rows as words of int8, each part with its scale behind it.
struct ToBytes<'a> {
    parts: &'a Parts,
    x: &'a [f32],
    words: &'a mut [f32],
}

impl Task for ToBytes<'_> {
    type Output = ();
    const PRECISION: Precision = Precision::Int8;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Parts {
            channels,
            run_words,
            ..
        } = *self.parts;
        // Any level's: they are the same.
        let left_words = self.parts.left_words(Level::Scalar);
        let rows = self.words.chunks_exact_mut(left_words);
        for (words, x) in rows.zip(self.x.chunks_exact(channels)) {
            let (words, behind) = words.split_at_mut(run_words);
            let (count, pairs) = behind.split_first_mut().expect("left_words has it");
            let mut outliers = Outliers {
                pairs: pairs.as_chunks_mut().0,
                count: 0,
            };
            let mut first = 0;
            for part in self.parts.of_a_run() {
                let here = &x[first..channels.min(first + 4 * part.len)];
                let words = &mut words[part.skip..][..part.len + 1];
                to_bytes(simd, here, words, first, &mut outliers);
                first += here.len();
            }
            *count = f32::from_bits(outliers.count as u32);
        }
    }
}

/// The outliers of a row, while it becomes words.
struct Outliers<'a> {
    pairs: &'a mut [[f32; 2]],
    count: usize,
}

impl Outliers<'_> {
    /// Takes the largest of `x`, the part from channel `first` on, out of it: zeros stay in their place. `limit` is what
    /// an outlier is larger than.
    #[inline(never)]
    fn take(&mut self, x: &mut [f32], first: usize, limit: f32) {
        // From the largest on; of equals the first.
        let mut found = [(0, 0.0f32); OUTLIERS_MAX];
        let mut count = 0;
        for (idx, value) in x.iter().enumerate() {
            let size = value.abs();
            if size > limit && (count < OUTLIERS_MAX || size > found[OUTLIERS_MAX - 1].1) {
                count = OUTLIERS_MAX.min(count + 1);
                let at = found[..count - 1]
                    .iter()
                    .rposition(|(_, other)| *other >= size);
                let at = at.map_or(0, |at| at + 1);
                found[at..count].rotate_right(1);
                found[at] = (idx, size);
            }
        }
        found[..count].sort_unstable_by_key(|(idx, _)| *idx);
        for &(idx, _) in &found[..count] {
            let channel = f32::from_bits((first + idx) as u32);
            self.pairs[self.count] = [channel, x[idx]];
            self.count += 1;
            x[idx] = 0.0;
        }
    }
}

/// One part of a row, from channel `first` on. NaN and infinity make its scale NaN or infinite, and so every product.
#[inline(always)]
fn to_bytes<S: Simd>(
    simd: S,
    x: &[f32],
    words: &mut [f32],
    first: usize,
    outliers: &mut Outliers<'_>,
) {
    let (words, scale) = words.split_at_mut(words.len() - 1);
    let (mut largest, mut poison) = (simd.splat(0.0), simd.splat(0.0));
    let mut squares = simd.splat(0.0);
    for x in x.chunks(S::LANES) {
        let x = simd.load_partial(x);
        squares = simd.mul_add(x, x, squares);
        largest = simd.max(simd.abs(x), largest);
        // 0 for numbers.
        poison = simd.mul_add(x, simd.splat(0.0), poison);
    }
    let mut lanes = [0.0; 16];
    simd.store(largest, &mut lanes);
    let mut largest = lanes.iter().fold(0.0f32, |largest, x| largest.max(*x));
    let limit = OUTLIER_FROM * (simd.reduce_add(squares) / x.len() as f32).sqrt();
    let mut inliers = [0.0; 4 * SCALED_RUN];
    // Never where something is no number or infinite, for the limit is neither.
    let x = if largest > limit {
        let inliers = &mut inliers[..x.len()];
        inliers.copy_from_slice(x);
        outliers.take(inliers, first, limit);
        largest = inliers
            .iter()
            .fold(0.0f32, |largest, x| largest.max(x.abs()));
        &*inliers
    } else {
        x
    };
    let some = largest >= SCALED_MIN;
    scale[0] = if some { largest / 127.0 } else { 0.0 } + simd.reduce_add(poison);
    let inverse = simd.splat(if some { 127.0 / largest } else { 0.0 });
    for (words, x) in words.chunks_mut(S::LANES).zip(x.chunks(4 * S::LANES)) {
        let quarter = |idx: usize| {
            let x = &x[x.len().min(idx * S::LANES)..];
            simd.mul(simd.load_partial(x), inverse)
        };
        let all = simd.to_i8([quarter(0), quarter(1), quarter(2), quarter(3)]);
        simd.store_partial(all, words);
    }
}
