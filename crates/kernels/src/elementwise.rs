//! Sums, multiples and concatenations: as fast as memory, so there are plain loops only.
//!
//! Compilers vectorise these by themselves, and every level gives the same bits.

use rayon::prelude::*;

/// Floats in a piece of work.
const PIECE: usize = 1 << 15;

/// `out = a + b`.
///
/// # Panics
/// If the lengths differ.
///
/// ```
/// let mut out = [0.0; 2];
/// safelight_kernels::elementwise::add(&[1.0, 2.0], &[10.0, 20.0], &mut out);
/// assert_eq!(out, [11.0, 22.0]);
/// ```
pub fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
    assert!(
        a.len() == out.len() && b.len() == out.len(),
        "add: lengths differ"
    );
    out.par_chunks_mut(PIECE)
        .zip(a.par_chunks(PIECE).zip(b.par_chunks(PIECE)))
        .for_each(|(out, (a, b))| {
            for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                *out = a + b;
            }
        });
}

/// `y = factor·x + y`.
///
/// # Panics
/// If the lengths differ.
pub fn axpy(factor: f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "axpy: lengths differ");
    y.par_chunks_mut(PIECE)
        .zip(x.par_chunks(PIECE))
        .for_each(|(y, x)| {
            for (y, x) in y.iter_mut().zip(x) {
                *y += factor * x;
            }
        });
}

/// `out = factor·x`.
///
/// # Panics
/// If the lengths differ.
pub fn scale(factor: f32, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "scale: lengths differ");
    out.par_chunks_mut(PIECE)
        .zip(x.par_chunks(PIECE))
        .for_each(|(out, x)| {
            for (out, x) in out.iter_mut().zip(x) {
                *out = factor * x;
            }
        });
}

/// Rows of `out` are a row of `a` (`a_width` floats), then one of `b` (`b_width` floats).
///
/// # Panics
/// If the lengths are not those of the same number of rows.
///
/// ```
/// let mut out = [0.0; 6];
/// safelight_kernels::elementwise::concat_channels(&[1., 2., 3., 4.], 2, &[10., 20.], 1, &mut out);
/// assert_eq!(out, [1., 2., 10., 3., 4., 20.]);
/// ```
pub fn concat_channels(a: &[f32], a_width: usize, b: &[f32], b_width: usize, out: &mut [f32]) {
    let width = a_width + b_width;
    assert!(a_width > 0 && b_width > 0, "concat_channels: a width is 0");
    let rows = out.len() / width;
    assert!(
        out.len() == rows * width && a.len() == rows * a_width && b.len() == rows * b_width,
        "concat_channels: {} values of {a_width}, {} of {b_width}, to {}",
        a.len(),
        b.len(),
        out.len()
    );
    let piece = PIECE.div_ceil(width);
    out.par_chunks_mut(piece * width)
        .zip(a.par_chunks(piece * a_width))
        .zip(b.par_chunks(piece * b_width))
        .for_each(|((out, a), b)| {
            let rows = a.chunks_exact(a_width).zip(b.chunks_exact(b_width));
            for (out, (a, b)) in out.chunks_exact_mut(width).zip(rows) {
                let (left, right) = out.split_at_mut(a_width);
                left.copy_from_slice(a);
                right.copy_from_slice(b);
            }
        });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;

    #[test]
    fn value_by_value() {
        for len in [0, 1, 7, 100, PIECE, PIECE + 1, 3 * PIECE + 11] {
            let mut rng = Rng::seeded(len as u64);
            let (a, b) = (rng.f32s(len), rng.f32s(len));
            let (mut sum, mut multiple, mut grown) = (vec![0.0; len], vec![0.0; len], b.clone());
            add(&a, &b, &mut sum);
            scale(3.0, &a, &mut multiple);
            axpy(3.0, &a, &mut grown);
            for i in 0..len {
                assert_eq!(
                    (sum[i], multiple[i], grown[i]),
                    (a[i] + b[i], 3.0 * a[i], b[i] + 3.0 * a[i])
                );
            }
        }
    }

    #[test]
    fn rows_side_by_side() {
        for (rows, a_width, b_width) in [
            (0, 1, 1),
            (1, 1, 1),
            (3, 5, 2),
            (1000, 31, 64),
            (2, 40_000, 3),
        ] {
            let mut rng = Rng::seeded(1);
            let (a, b) = (rng.f32s(rows * a_width), rng.f32s(rows * b_width));
            let mut out = vec![f32::NAN; rows * (a_width + b_width)];
            concat_channels(&a, a_width, &b, b_width, &mut out);
            for (row, out) in out.chunks_exact(a_width + b_width).enumerate() {
                assert_eq!(out[..a_width], a[row * a_width..][..a_width]);
                assert_eq!(out[a_width..], b[row * b_width..][..b_width]);
            }
        }
    }
}
