//! Resizing of `[B, H, W, C]`, nearest pixel. Nothing but copies, so there is one version.

use rayon::prelude::*;

use crate::conv::Extent;

/// `x` (`[B, H, W, C]` of `extent`) to `out`, `[B, out_height, out_width, C]`: row `y` is row `⌊y·H/out_height⌋` of
/// `x`, columns likewise, as in torch's `interpolate(mode="nearest")`.
///
/// # Panics
/// If a length does not fit or `x` has no pixels to take.
///
/// ```
/// use safelight_kernels::{Extent, resample::resize_nearest};
///
/// let mut out = [0.0; 4];
/// resize_nearest(&[1., 2.], Extent { batch: 1, height: 1, width: 2 }, 1, (1, 4), &mut out);
/// assert_eq!(out, [1., 1., 2., 2.]);
/// ```
pub fn resize_nearest(
    x: &[f32],
    extent: Extent,
    channels: usize,
    (out_height, out_width): (usize, usize),
    out: &mut [f32],
) {
    let Extent {
        batch,
        height,
        width,
    } = extent;
    assert!(channels > 0, "resize_nearest: no channels");
    assert_eq!(x.len(), extent.pixels() * channels, "resize_nearest: x");
    assert_eq!(
        out.len(),
        batch * out_height * out_width * channels,
        "resize_nearest: out"
    );
    if out.is_empty() {
        return;
    }
    assert!(!x.is_empty(), "resize_nearest: {extent:?} has no pixels");
    out.par_chunks_mut(out_width * channels)
        .enumerate()
        .for_each(|(row, out)| {
            let (image, y) = (row / out_height, row % out_height * height / out_height);
            let from = &x[(image * height + y) * width * channels..][..width * channels];
            for (column, out) in out.chunks_exact_mut(channels).enumerate() {
                let column = column * width / out_width;
                out.copy_from_slice(&from[column * channels..][..channels]);
            }
        });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;

    #[test]
    fn any_size_to_any_size() {
        for (height, width, out_height, out_width) in [
            (1, 1, 3, 2),
            (2, 3, 4, 6),
            (5, 7, 9, 14),
            (9, 4, 5, 3),
            (3, 3, 3, 3),
            (2, 2, 0, 5),
        ] {
            for channels in [1, 3, 16] {
                let x = Rng::seeded(4).f32s(2 * height * width * channels);
                let mut out = vec![f32::NAN; 2 * out_height * out_width * channels];
                let extent = Extent {
                    batch: 2,
                    height,
                    width,
                };
                resize_nearest(&x, extent, channels, (out_height, out_width), &mut out);
                for (idx, value) in out.iter().enumerate() {
                    let (pixel, channel) = (idx / channels, idx % channels);
                    let (row, column) = (pixel / out_width, pixel % out_width);
                    let (image, row) = (row / out_height, row % out_height);
                    let (y, column) = (row * height / out_height, column * width / out_width);
                    let from = ((image * height + y) * width + column) * channels + channel;
                    assert_eq!(
                        *value, x[from],
                        "{height}×{width} to {out_height}×{out_width}"
                    );
                }
            }
        }
    }

    /// torch 2.15.0: `F.interpolate(arange(5), size=8)` and `size=3`.
    #[test]
    fn golden_numbers_of_torch() {
        for (size, expected) in [
            (8, &[0., 0., 1., 1., 2., 3., 3., 4.][..]),
            (3, &[0., 1., 3.]),
        ] {
            let mut out = vec![f32::NAN; size];
            let extent = Extent {
                batch: 1,
                height: 1,
                width: 5,
            };
            resize_nearest(&[0., 1., 2., 3., 4.], extent, 1, (1, size), &mut out);
            assert_eq!(out, expected);
        }
    }
}
