//! Token merging: like tokens go through self-attention as one.
//!
//! Bolya and Hoffman 2023, arXiv:2303.17604, as the `tomesd` package does it with `use_rand=False`, which is how A1111 calls it:
//! the top left token of each 2×2 block is a destination, the others are sources; the sources that are most like a destination
//! become part of it. Nothing is drawn by chance, so a picture follows from its seed as it does without merging.

use safelight_tensor::{Epilogue, Linear, Tensor, ops};

/// Height and width of the blocks of which one token is a destination.
const BLOCK: usize = 2;
/// Similarities are computed for so many sources at a time: at most a few tens of megabytes.
const SOURCES_AT_ONCE: usize = 1024;

/// Which tokens of a batch of pictures go together.
pub(super) struct Merging {
    /// For each picture and token, the merged token it is part of.
    parts: Vec<Vec<u32>>,
    merged_count: usize,
}

impl Merging {
    /// Finds `⌊ratio · H·W⌋` tokens to merge in each picture of `x`, `[B, H·W, C]`, or `None` if that is none.
    pub(super) fn of(x: &Tensor, (height, width): (usize, usize), ratio: f64) -> Option<Merging> {
        let (tokens, channels) = (x.dim(1), x.dim(2));
        let (destinations, sources) = divided(height, width);
        let count = ((tokens as f64 * ratio) as usize).min(sources.len());
        if count == 0 || destinations.is_empty() {
            return None;
        }
        let pictures = x.data().chunks_exact(tokens * channels);
        let parts = pictures
            .map(|picture| {
                let unit = units(picture, channels);
                let nearest = nearest(&unit, channels, &sources, &destinations);
                parts_of(tokens, &sources, &destinations, &nearest, count)
            })
            .collect();
        Some(Merging {
            parts,
            merged_count: tokens - count,
        })
    }

    /// Each merged token is the mean of its parts.
    pub(super) fn merge(&self, x: &Tensor) -> Tensor {
        let (tokens, channels) = (x.dim(1), x.dim(2));
        let mut merged = Tensor::zeros(&[x.dim(0), self.merged_count, channels]);
        let pictures = x.data().chunks_exact(tokens * channels);
        let outputs = merged
            .data_mut()
            .chunks_exact_mut(self.merged_count * channels);
        for ((picture, output), parts) in pictures.zip(outputs).zip(&self.parts) {
            let mut counts = vec![0.0_f32; self.merged_count];
            for (token, &part) in picture.chunks_exact(channels).zip(parts) {
                counts[part as usize] += 1.0;
                let sum = &mut output[part as usize * channels..][..channels];
                sum.iter_mut()
                    .zip(token)
                    .for_each(|(sum, value)| *sum += value);
            }
            for (sum, count) in output.chunks_exact_mut(channels).zip(counts) {
                sum.iter_mut().for_each(|sum| *sum /= count);
            }
        }
        merged
    }

    /// Adds to every token of `x` the merged token that it is part of.
    pub(super) fn add_to(&self, x: &mut Tensor, merged: &Tensor) {
        let (tokens, channels) = (x.dim(1), x.dim(2));
        let pictures = x.data_mut().chunks_exact_mut(tokens * channels);
        let inputs = merged.data().chunks_exact(self.merged_count * channels);
        for ((picture, input), parts) in pictures.zip(inputs).zip(&self.parts) {
            for (token, &part) in picture.chunks_exact_mut(channels).zip(parts) {
                let found = &input[part as usize * channels..][..channels];
                token
                    .iter_mut()
                    .zip(found)
                    .for_each(|(value, found)| *value += found);
            }
        }
    }
}

/// The destinations, and all other tokens, by their numbers. Rows and columns beyond the last whole block have none.
fn divided(height: usize, width: usize) -> (Vec<usize>, Vec<usize>) {
    let whole = |at: usize, size: usize| at < size / BLOCK * BLOCK && at.is_multiple_of(BLOCK);
    (0..height * width)
        .partition(|token| whole(token / width, height) && whole(token % width, width))
}

/// Every token, of length 1. A token of zeros is like none.
fn units(picture: &[f32], channels: usize) -> Vec<f32> {
    let tokens = picture.chunks_exact(channels);
    tokens
        .flat_map(|token| {
            let length = token.iter().map(|value| value * value).sum::<f32>().sqrt();
            let factor = if length > 0.0 { 1.0 / length } else { 0.0 };
            token.iter().map(move |value| value * factor)
        })
        .collect()
}

/// For each source, how like the destination it is that it is most like, and that destination's place in the list.
fn nearest(
    unit: &[f32],
    channels: usize,
    sources: &[usize],
    destinations: &[usize],
) -> Vec<(f32, usize)> {
    let rows = |tokens: &[usize]| -> Vec<f32> {
        let row = |&token: &usize| &unit[token * channels..][..channels];
        tokens.iter().flat_map(row).copied().collect()
    };
    let layer = Linear::new(&rows(destinations), destinations.len(), channels, None);
    let mut found = Vec::with_capacity(sources.len());
    for sources in sources.chunks(SOURCES_AT_ONCE) {
        let x = Tensor::from_slice(&[sources.len(), channels], &rows(sources));
        let likeness = ops::linear(&x, &layer, Epilogue::default());
        found.extend(likeness.data().chunks_exact(destinations.len()).map(|row| {
            let best = |best: (f32, usize), (idx, &value): (usize, &f32)| {
                if value > best.0 { (value, idx) } else { best }
            };
            row.iter().enumerate().fold((f32::NEG_INFINITY, 0), best)
        }));
    }
    found
}

/// The merged token that each token is part of, when the `count` sources that are most like a destination join it.
fn parts_of(
    tokens: usize,
    sources: &[usize],
    destinations: &[usize],
    nearest: &[(f32, usize)],
    count: usize,
) -> Vec<u32> {
    let mut order: Vec<usize> = (0..sources.len()).collect();
    // Stable: of sources equally like the earlier joins.
    order.sort_by(|&a, &b| nearest[b].0.total_cmp(&nearest[a].0));
    let kept = sources.len() - count;
    let mut parts = vec![0; tokens];
    for (idx, &token) in destinations.iter().enumerate() {
        parts[token] = (kept + idx) as u32;
    }
    for &source in &order[..count] {
        parts[sources[source]] = (kept + nearest[source].1) as u32;
    }
    for (idx, &source) in order[count..].iter().enumerate() {
        parts[sources[source]] = idx as u32;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens that point one way in each quarter of a 4×4 picture: three quarters of them can go without loss.
    #[test]
    fn like_tokens_become_one_and_come_back() {
        let quarter = |token: usize| 2 * (token / 8) + token % 4 / 2;
        let values = (0..16)
            .flat_map(|token| (0..4).map(move |c| if c == quarter(token) { 2.0 } else { 0.0 }));
        let x = Tensor::from_slice(&[1, 16, 4], &values.collect::<Vec<f32>>());
        let merging = Merging::of(&x, (4, 4), 0.75).unwrap();
        let merged = merging.merge(&x);
        assert_eq!(merged.shape(), [1, 4, 4]);
        let mut back = Tensor::zeros(&[1, 16, 4]);
        merging.add_to(&mut back, &merged);
        assert_eq!(back.data(), x.data());
    }

    #[test]
    fn the_count_is_rounded_down_and_bounded() {
        let wave: Vec<f32> = (0..2 * 35 * 8).map(|i| (i as f32 * 0.7).sin()).collect();
        let x = Tensor::from_slice(&[2, 35, 8], &wave);
        for (ratio, left) in [(0.5, 18), (0.1, 32), (0.75, 9), (0.99, 6)] {
            let merging = Merging::of(&x, (5, 7), ratio).unwrap();
            assert_eq!(merging.merge(&x).shape(), [2, left, 8], "{ratio}");
        }
        assert!(Merging::of(&x, (5, 7), 0.02).is_none());
        assert!(Merging::of(&x, (35, 1), 0.5).is_none(), "no whole block");
    }

    #[test]
    fn destinations_are_the_corners_of_whole_blocks() {
        let (destinations, sources) = divided(3, 5);
        assert_eq!(destinations, [0, 2]);
        assert_eq!(sources.len(), 13);
    }
}
