//! How much two results are alike: outputs of a network, and pictures.
//!
//! These numbers say what a precision or a shortcut costs; `safelight bench fidelity` prints them. Decides nothing.

use crate::pipeline::RgbImage;

/// How far numbers are from those they should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likeness {
    /// Cosine of the angle between the two as vectors, -1 to 1.
    pub cosine: f64,
    /// Root of the summed squares of the differences, over that of what is right: 0 is the same.
    pub relative_rms: f64,
    /// The largest difference.
    pub worst: f64,
}

/// How much `found` is like `right`.
///
/// # Panics
/// If the lengths differ.
///
/// ```
/// use safelight_diffusion::likeness::likeness;
///
/// let found = likeness(&[3.0, 4.0], &[3.0, 4.5]);
/// assert!((found.relative_rms - 0.1).abs() < 1e-12 && found.worst == 0.5);
/// ```
pub fn likeness(right: &[f32], found: &[f32]) -> Likeness {
    assert_eq!(right.len(), found.len(), "values that are compared");
    let (mut dot, mut right_squares, mut found_squares) = (0.0, 0.0, 0.0);
    let (mut squares, mut worst) = (0.0, 0.0f64);
    for (&right, &found) in right.iter().zip(found) {
        let (right, found) = (f64::from(right), f64::from(found));
        dot += right * found;
        right_squares += right * right;
        found_squares += found * found;
        squares += (found - right).powi(2);
        worst = worst.max((found - right).abs());
    }
    let sizes = (right_squares * found_squares).sqrt();
    Likeness {
        // Zeros are like zeros and like nothing else.
        cosine: match (sizes == 0.0, squares == 0.0) {
            (true, true) => 1.0,
            (true, false) => 0.0,
            _ => dot / sizes,
        },
        relative_rms: match right_squares == 0.0 {
            true if squares == 0.0 => 0.0,
            _ => (squares / right_squares).sqrt(),
        },
        worst,
    }
}

/// Peak signal to noise of 8-bit pictures in decibels, over all pixels and channels; infinite for equal ones.
///
/// # Panics
/// If the sizes differ.
pub fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    check(a, b);
    let channels = a.bytes().iter().zip(b.bytes());
    let squares = channels.map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    let mean = squares.sum::<f64>() / a.bytes().len() as f64;
    10.0 * (255.0f64.powi(2) / mean).log10()
}

/// Pixels of a window of [`ssim`], a side.
const WINDOW: usize = 11;

/// Structural similarity of 8-bit pictures, -1 to 1, the mean of the three channels'; `None` if a side is shorter than 11.
///
/// Windows are Gaussian (standard deviation 1.5, 11 pixels), variances those of the whole window, K₁ = 0.01 and K₂ = 0.03; only windows that lie
/// within the picture count. That is `skimage.metrics.structural_similarity` with `gaussian_weights=True, use_sample_covariance=False`.
///
/// Source: Wang, Bovik, Sheikh and Simoncelli 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity",
/// IEEE Transactions on Image Processing 13(4), equations 13 to 17.
///
/// # Panics
/// If the sizes differ.
pub fn ssim(a: &RgbImage, b: &RgbImage) -> Option<f64> {
    check(a, b);
    if a.width().min(a.height()) < WINDOW {
        return None;
    }
    let channel = |image: &RgbImage, idx: usize| -> Vec<f64> {
        let bytes = image.bytes().iter().skip(idx).step_by(3);
        bytes.map(|&byte| f64::from(byte)).collect()
    };
    let one = |idx| ssim_of(&channel(a, idx), &channel(b, idx), a.width());
    Some((0..3).map(one).sum::<f64>() / 3.0)
}

/// [`ssim`] of one channel.
fn ssim_of(a: &[f64], b: &[f64], width: usize) -> f64 {
    let products =
        |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a * b).collect() };
    let blurred = |values: &[f64]| blurred(values, width);
    let (mean_a, mean_b) = (blurred(a), blurred(b));
    let (aa, bb) = (blurred(&products(a, a)), blurred(&products(b, b)));
    let ab = blurred(&products(a, b));
    let (c1, c2) = ((0.01f64 * 255.0).powi(2), (0.03f64 * 255.0).powi(2));
    let one = |idx: usize| {
        let (mean_a, mean_b) = (mean_a[idx], mean_b[idx]);
        let variances = aa[idx] - mean_a * mean_a + bb[idx] - mean_b * mean_b;
        let covariance = ab[idx] - mean_a * mean_b;
        let above = (2.0 * mean_a * mean_b + c1) * (2.0 * covariance + c2);
        above / ((mean_a * mean_a + mean_b * mean_b + c1) * (variances + c2))
    };
    (0..mean_a.len()).map(one).sum::<f64>() / mean_a.len() as f64
}

/// Gaussian means of the windows that lie within the picture, row by row.
fn blurred(values: &[f64], width: usize) -> Vec<f64> {
    let reach = (WINDOW / 2) as f64;
    let weight = |idx: usize| (-0.5 * ((idx as f64 - reach) / 1.5).powi(2)).exp();
    let sum: f64 = (0..WINDOW).map(weight).sum();
    let weights: [f64; WINDOW] = std::array::from_fn(|idx| weight(idx) / sum);
    let across: Vec<f64> = values
        .chunks_exact(width)
        .flat_map(|row| row.windows(WINDOW))
        .map(|window| {
            window
                .iter()
                .zip(&weights)
                .map(|(x, weight)| x * weight)
                .sum()
        })
        .collect();
    let width = width - WINDOW + 1;
    let rows = across.len() / width - WINDOW + 1;
    let down = |at: usize| {
        (0..WINDOW)
            .map(|idx| across[at + idx * width] * weights[idx])
            .sum()
    };
    (0..rows * width).map(down).collect()
}

fn check(a: &RgbImage, b: &RgbImage) {
    let size = |image: &RgbImage| (image.width(), image.height());
    assert_eq!(size(a), size(b), "pictures that are compared");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_alike_and_zeros_are_no_division() {
        let wave: Vec<f32> = (0..50).map(|x| (x as f32).sin()).collect();
        let same = likeness(&wave, &wave);
        assert!((same.cosine - 1.0).abs() < 1e-12);
        assert_eq!((same.relative_rms, same.worst), (0.0, 0.0));
        let opposite: Vec<f32> = wave.iter().map(|x| -x).collect();
        let other = likeness(&wave, &opposite);
        assert!((other.cosine + 1.0).abs() < 1e-12 && (other.relative_rms - 2.0).abs() < 1e-12);
        assert_eq!(likeness(&[0.0; 3], &[0.0; 3]).cosine, 1.0);
        assert_eq!(likeness(&[0.0; 3], &[1.0; 3]).relative_rms, f64::INFINITY);
    }

    #[test]
    fn equal_pictures_and_small_ones() {
        let picture = |side: usize| {
            RgbImage::new(
                side,
                side,
                (0..3 * side * side).map(|x| (x * 7) as u8).collect(),
            )
        };
        let (small, large) = (picture(10), picture(11));
        assert_eq!(ssim(&small, &small), None);
        assert!((ssim(&large, &large).unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(psnr(&large, &large), f64::INFINITY);
    }
}
