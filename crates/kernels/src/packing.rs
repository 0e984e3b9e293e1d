//! Weights on their way into panels: some channels of 32 rows at a time, so that all but the source and the panel itself
//! stays in the nearest caches.
//!
//! How panels are laid out is `words`' business, what else becomes of 3×3 kernels first `winograd`'s.

use rayon::prelude::*;

use crate::arch::{self, PANEL, Simd, Task, bf16_bits, byte_bits};
use crate::level::{Level, level};
use crate::precision::Precision;
use crate::source::{Piece, Source};
use crate::words::{HALF, Panels, Parts, SCALED_MIN, channels_in_a_word};

/// Values of a row that are turned at a time: 32 rows of them are 32 KiB.
const TURNED_AT_ONCE: usize = 256;

/// Fills `panels` with `weight`, `[columns][channels][taps]`.
///
/// # Panics
/// If the length is another.
pub(crate) fn fill(panels: &mut Panels, weight: &dyn Source) {
    fill_at(level(), panels, weight);
}

fn fill_at(level: Level, panels: &mut Panels, weight: &dyn Source) {
    let (columns, parts) = (panels.columns(), panels.parts().clone());
    let of_a_row = parts.channels * parts.taps;
    let (channels, taps) = (parts.channels, parts.taps);
    assert_eq!(
        weight.count(),
        columns * of_a_row,
        "[{columns}, {channels}, {taps}]"
    );
    let panels: Vec<_> = panels.panels_mut().enumerate().collect();
    panels
        .into_par_iter()
        .for_each_init(Room::default, |room, (idx, panel)| {
            room.show(weight, idx, of_a_row, |rows, turned| {
                let panel = panel.as_chunks_mut().0;
                arch::run(
                    level,
                    Fill {
                        parts: &parts,
                        rows,
                        turned,
                        panel,
                    },
                );
            });
        });
}

/// Memory of a thread that packs.
#[derive(Default)]
pub(crate) struct Room {
    bytes: Vec<u8>,
    turned: Turned,
}

impl Room {
    /// Shows the rows of panel `idx` out of `weight`, whose rows have `of_a_row` values.
    pub(crate) fn show(
        &mut self,
        weight: &dyn Source,
        idx: usize,
        of_a_row: usize,
        see: impl FnOnce(Rows<'_>, &mut Turned),
    ) {
        let first = idx * PANEL * of_a_row;
        let count = (PANEL * of_a_row).min(weight.count() - first);
        let (turned, mut see) = (&mut self.turned, Some(see));
        weight.show(first, count, &mut self.bytes, &mut |piece| {
            let see = see.take().expect("a source shows its values once");
            let rows = Rows {
                piece,
                count: count / of_a_row,
                of_a_row,
            };
            see(rows, turned);
        });
        assert!(see.is_none(), "a source shows its values");
    }
}

/// Up to 32 rows of a weight.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    piece: &'a dyn Piece,
    pub(crate) count: usize,
    of_a_row: usize,
}

/// Some channels of a panel's rows, turned: `[taps][channels][32]`.
#[derive(Default)]
pub(crate) struct Turned {
    rows: Vec<f32>,
    columns: Vec<[f32; PANEL]>,
}

impl Turned {
    /// Turns channels `first..first + channels`, of `taps` values each. Zeros follow, in every tap, up to `padded` channels,
    /// and in every row from that of the last column on.
    #[inline(always)]
    pub(crate) fn turn<S: Simd>(
        &mut self,
        simd: S,
        rows: Rows<'_>,
        (first, channels, taps): (usize, usize, usize),
        padded: usize,
    ) -> &[[f32; PANEL]] {
        let len = channels * taps;
        // Whole eights, so that tiles never end early.
        let stride = len.next_multiple_of(8);
        self.rows.resize(PANEL * stride, 0.0);
        self.columns.resize(padded * taps, [0.0; PANEL]);
        let (decoded, zeros) = self.rows.split_at_mut(rows.count * stride);
        for (row, values) in decoded.chunks_exact_mut(stride).enumerate() {
            let at = row * rows.of_a_row + first * taps;
            rows.piece.decode(at, &mut values[..len]);
        }
        zeros.fill(0.0);
        let (mut tap, mut channel) = (0, 0);
        for start in (0..len).step_by(8) {
            let mut eight = [[0.0; PANEL]; 8];
            for row in (0..PANEL).step_by(8) {
                let values = &self.rows[row * stride + start..];
                let mut tile = [&[0.0; 8]; 8];
                for idx in 0..8 {
                    let values = values[idx * stride..].first_chunk();
                    tile[idx] = values.expect("whole eights");
                }
                let turned = simd.turn_8(tile);
                for idx in 0..8 {
                    eight[idx][row..row + 8].copy_from_slice(&turned[idx]);
                }
            }
            for columns in &eight[..8.min(len - start)] {
                self.columns[tap * padded + channel] = *columns;
                tap += 1;
                if tap == taps {
                    (tap, channel) = (0, channel + 1);
                }
            }
        }
        if padded > channels {
            for columns in self.columns.chunks_exact_mut(padded) {
                columns[channels..].fill([0.0; PANEL]);
            }
        }
        &self.columns
    }
}

/// Channels of `taps` values each that are turned at a time, in fours.
pub(crate) fn turned_at_once(taps: usize) -> usize {
    (TURNED_AT_ONCE / taps / 4 * 4).max(4)
}

/// Rows of values, `[rows][of_a_row]`, and as many of gates behind them, shown in turns: so many values as fill half a panel, then their
/// gates.
pub(crate) struct Gated<'a> {
    weight: &'a dyn Source,
    rows: usize,
    of_a_row: usize,
}

impl<'a> Gated<'a> {
    /// # Panics
    /// If the length is another or the rows are not whole halves.
    pub(crate) fn new(weight: &'a dyn Source, rows: usize, of_a_row: usize) -> Self {
        assert!(
            rows.is_multiple_of(HALF) && weight.count() == 2 * rows * of_a_row,
            "[2 · {rows}, {of_a_row}]"
        );
        Gated {
            weight,
            rows,
            of_a_row,
        }
    }
}

impl Source for Gated<'_> {
    fn count(&self) -> usize {
        self.weight.count()
    }

    fn show(
        &self,
        first: usize,
        count: usize,
        room: &mut Vec<u8>,
        see: &mut dyn FnMut(&dyn Piece),
    ) {
        assert!(count == PANEL * self.of_a_row && first.is_multiple_of(count));
        let (half, gates) = (count / 2, self.rows * self.of_a_row);
        self.weight.show(first / 2, half, room, &mut |values| {
            let (at, mut room) = (gates + first / 2, Vec::new());
            self.weight.show(at, half, &mut room, &mut |gates| {
                see(&Halves {
                    pieces: [values, gates],
                    half,
                });
            });
        });
    }
}

/// Two pieces, `half` values each.
struct Halves<'a> {
    pieces: [&'a dyn Piece; 2],
    half: usize,
}

impl Piece for Halves<'_> {
    fn decode(&self, first: usize, values: &mut [f32]) {
        let of_first = self.half.saturating_sub(first).min(values.len());
        let (values, gates) = values.split_at_mut(of_first);
        if !values.is_empty() {
            self.pieces[0].decode(first, values);
        }
        if !gates.is_empty() {
            self.pieces[1].decode(first + of_first - self.half, gates);
        }
    }
}

/// One panel. Plain code, compiled for a level.
struct Fill<'a> {
    parts: &'a Parts,
    rows: Rows<'a>,
    turned: &'a mut Turned,
    panel: &'a mut [[f32; PANEL]],
}

impl Task for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.parts.precision {
            Precision::Int8 => self.bytes(simd),
            Precision::F32 | Precision::Bf16 => self.words(simd),
        }
    }
}

impl Fill<'_> {
    /// f32 and bf16: however the sum is cut, a panel is `[taps][words]`.
    #[inline(always)]
    fn words<S: Simd>(self, simd: S) {
        let (channels, taps) = (self.parts.channels, self.parts.taps);
        let in_a_word = channels_in_a_word(self.parts.precision);
        let words = channels.div_ceil(in_a_word);
        let at_once = turned_at_once(taps);
        for first in (0..channels).step_by(at_once) {
            let count = at_once.min(channels - first);
            let padded = count.next_multiple_of(in_a_word);
            let turned = self
                .turned
                .turn(simd, self.rows, (first, count, taps), padded);
            for (tap, floats) in turned.chunks_exact(padded).enumerate() {
                let start = tap * words + first / in_a_word;
                let run = &mut self.panel[start..][..padded / in_a_word];
                match self.parts.precision {
                    Precision::Bf16 => round_to_halves(floats, run),
                    _ => run.copy_from_slice(floats),
                }
            }
        }
    }

    /// int8: the channels of a run, which share a scale, in all taps.
    #[inline(always)]
    fn bytes<S: Simd>(self, simd: S) {
        let (channels, taps) = (self.parts.channels, self.parts.taps);
        let mut first = 0;
        for (idx, part) in self.parts.of_a_run().enumerate() {
            let count = (4 * part.len).min(channels - first);
            let turned = self
                .turned
                .turn(simd, self.rows, (first, count, taps), 4 * part.len);
            // Runs of a tap follow each other; `skip` counts those before, with their scales.
            let (run_rows, before) = (self.parts.run_rows(part), part.skip + idx);
            let tap_rows = self.panel.len() / taps;
            for (tap, floats) in turned.chunks_exact(4 * part.len).enumerate() {
                let run = &mut self.panel[tap * tap_rows + before..][..run_rows];
                round_to_bytes(floats, run);
            }
            first += count;
        }
    }
}

/// Rows of two channels each.
#[inline(always)]
pub(crate) fn round_to_halves(floats: &[[f32; PANEL]], run: &mut [[f32; PANEL]]) {
    for (words, [low, high]) in run.iter_mut().zip(floats.as_chunks::<2>().0) {
        for column in 0..PANEL {
            let bits = bf16_bits(high[column]) << 16 | bf16_bits(low[column]);
            words[column] = f32::from_bits(bits);
        }
    }
}

/// Rows of four channels each, then the columns' scales and -128 · the columns' sums.
#[inline(always)]
fn round_to_bytes(floats: &[[f32; PANEL]], run: &mut [[f32; PANEL]]) {
    let len = run.len() - 2;
    let mut largest = [0.0f32; PANEL];
    for row in floats {
        for column in 0..PANEL {
            largest[column] = largest[column].max(row[column].abs());
        }
    }
    let inverse = largest.map(|x| if x < SCALED_MIN { 0.0 } else { 127.0 / x });
    let mut sums = [0i32; PANEL];
    for (words, rows) in run[..len].iter_mut().zip(floats.as_chunks::<4>().0) {
        for column in 0..PANEL {
            let mut bits = 0;
            for (idx, row) in rows.iter().enumerate() {
                let byte = byte_bits(row[column] * inverse[column]);
                sums[column] += i32::from(byte as u8 as i8);
                bits |= byte << (8 * idx);
            }
            words[column] = f32::from_bits(bits);
        }
    }
    run[len] = largest.map(|x| if x < SCALED_MIN { 0.0 } else { x / 127.0 });
    run[len + 1] = sums.map(|sum| f32::from_bits((-128 * sum) as u32));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::InMemory;
    use crate::testing::Rng;

    /// The definition: part by part, run by run, word by word, each from its channels.
    fn expected(weight: &[f32], columns: usize, parts: &Parts, depth: usize) -> Vec<[u32; PANEL]> {
        let (channels, taps) = (parts.channels, parts.taps);
        let mut rows = vec![[0; PANEL]; columns.div_ceil(PANEL) * depth];
        for column in 0..columns {
            let value = |tap: usize, channel: usize| {
                let at = (column * channels + channel) * taps + tap;
                if channel < channels { weight[at] } else { 0.0 }
            };
            let mut row = column / PANEL * depth;
            let mut push = |bits: u32| {
                rows[row][column % PANEL] = bits;
                row += 1;
            };
            let in_a_word = channels_in_a_word(parts.precision);
            let mut first = 0;
            for part in &parts.parts {
                if part.skip == 0 {
                    first = 0;
                }
                for tap in part.tap..part.tap + part.taps {
                    let run = first..first + part.len * in_a_word;
                    let values: Vec<f32> = run.map(|channel| value(tap, channel)).collect();
                    let largest = values.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                    let inverse = if largest < SCALED_MIN {
                        0.0
                    } else {
                        127.0 / largest
                    };
                    let byte = |x: &f32| (x * inverse).round_ties_even() as i8;
                    for values in values.chunks(in_a_word) {
                        push(match values {
                            [x] => x.to_bits(),
                            [low, high] => bf16_bits(*high) << 16 | bf16_bits(*low),
                            bytes => bytes
                                .iter()
                                .rev()
                                .fold(0, |bits, x| bits << 8 | u32::from(byte(x) as u8)),
                        });
                    }
                    if parts.precision == Precision::Int8 {
                        let sum: i32 = values.iter().map(|x| i32::from(byte(x))).sum();
                        push(
                            if largest < SCALED_MIN {
                                0.0
                            } else {
                                largest / 127.0
                            }
                            .to_bits(),
                        );
                        push((-128 * sum) as u32);
                    }
                }
                first += part.len * in_a_word;
            }
        }
        // Columns that are not there have scales and sums of zeros as well: +0 throughout.
        rows
    }

    #[test]
    fn panels_are_packed_as_defined_at_every_level() {
        let mut rng = Rng::seeded(1);
        // Columns short of a panel and past it; channels around words, blocks that are turned together, and runs.
        for (columns, channels, taps) in [
            (1, 1, 1),
            (3, 5, 9),
            (32, 8, 1),
            (33, 27, 9),
            (40, 28, 9),
            (64, 31, 4),
            (65, 320, 1),
            (33, 321, 9),
            (32, 257, 1),
            (34, 644, 1),
            (31, 700, 9),
            (8, 1284, 2),
        ] {
            let mut weight = rng.f32s(columns * channels * taps);
            // Signs of zeros, and rows that are nothing else.
            for value in weight.iter_mut().step_by(7) {
                *value = -0.0;
            }
            weight[..channels * taps / 2].fill(-0.0);
            for precision in Precision::ALL {
                for level in Level::available() {
                    let mut panels = Panels::zeros(columns, channels, taps, precision);
                    fill_at(level, &mut panels, &InMemory(&weight));
                    let depth = panels.panel(0).len() / PANEL;
                    let expected = expected(&weight, columns, panels.parts(), depth);
                    let packed = panels.panels_from(0).as_chunks::<PANEL>().0;
                    let packed: Vec<_> = packed.iter().map(|row| row.map(f32::to_bits)).collect();
                    assert!(
                        packed == expected,
                        "[{columns}, {channels}, {taps}], {precision}, {level}"
                    );
                }
            }
        }
    }
}
