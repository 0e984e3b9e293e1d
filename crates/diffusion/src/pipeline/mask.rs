//! What a mask does to a picture: soft edges, something to start from below it, and the original above everything else.
//!
//! Source of the steps: A1111's `modules/masking.py` and `modules/processing.py`.

use super::image::{Filter, Mask, RgbImage};

/// The mask with soft edges: a Gaussian of standard deviation `sigma` pixels, cut off at `⌊2.5 σ + ½⌋`, edges mirrored.
pub(super) fn blurred(mask: &Mask, sigma: f32) -> Mask {
    let reach = (2.5 * sigma + 0.5) as usize;
    if reach == 0 {
        return mask.clone();
    }
    let bell = |offset: usize| (-0.5 * (offset as f64 / f64::from(sigma)).powi(2)).exp();
    let sum: f64 = bell(0) + 2.0 * (1..=reach).map(bell).sum::<f64>();
    let weights: Vec<f64> = (0..=reach).map(|offset| bell(offset) / sum).collect();
    let (width, height) = (mask.width(), mask.height());
    let values: Vec<f64> = mask.bytes().iter().map(|&byte| f64::from(byte)).collect();
    let across = convolved(&values, &weights, |x, y| y * width + x, width, height);
    let down = convolved(&across, &weights, |y, x| y * width + x, height, width);
    let bytes = down.into_iter().map(|value| value.round() as u8).collect();
    Mask::new(width, height, bytes)
}

/// One pass of a symmetric filter along lines; `at(along, line)` is the index of a value.
fn convolved(
    values: &[f64],
    weights: &[f64],
    at: impl Fn(usize, usize) -> usize,
    length: usize,
    lines: usize,
) -> Vec<f64> {
    let mirrored = |position: isize| {
        let period = 2 * (length as isize - 1).max(1);
        let folded = position.rem_euclid(period);
        folded.min(period - folded).min(length as isize - 1) as usize
    };
    let mut out = vec![0.0; values.len()];
    for line in 0..lines {
        for along in 0..length {
            let side = |offset: usize| {
                let (here, offset) = (along as isize, offset as isize);
                values[at(mirrored(here - offset), line)]
                    + values[at(mirrored(here + offset), line)]
            };
            let sides: f64 = (1..weights.len())
                .map(|offset| weights[offset] * side(offset))
                .sum();
            out[at(along, line)] = weights[0] * values[at(along, line)] + sides;
        }
    }
    out
}

/// The mask for latents of `width` × `height`, `[H, W]`: 1 where something new is drawn, 0 where the old stays.
///
/// A1111 shrinks with Pillow's bicubic filter and rounds.
pub(super) fn of_latent(mask: &Mask, width: usize, height: usize) -> Vec<f32> {
    let small = mask.resized(width, height, Filter::Bicubic);
    small
        .bytes()
        .iter()
        .map(|&byte| (f32::from(byte) / 255.0).round_ties_even())
        .collect()
}

/// The mask for latents of `width` × `height` by taking the pixel at the upper left of each cell: 1 from half grey on.
///
/// What `interpolate` does by default, in diffusers and for the mask channel of inpainting networks.
pub(super) fn of_latent_nearest(mask: &Mask, width: usize, height: usize) -> Vec<f32> {
    let cell = |idx: usize, from: usize, to: usize| (idx * from / to).min(from - 1);
    let value = |y: usize, x: usize| {
        let byte = mask.bytes()
            [cell(y, mask.height(), height) * mask.width() + cell(x, mask.width(), width)];
        if is_white(byte) { 1.0 } else { 0.0 }
    };
    (0..height)
        .flat_map(|y| (0..width).map(move |x| (y, x)))
        .map(|(y, x)| value(y, x))
        .collect()
}

/// Whether a byte of a mask counts as white where only black and white do.
pub(super) fn is_white(byte: u8) -> bool {
    byte >= 128
}

/// The colours around a mask spread into it: what A1111 calls the masked content "fill".
///
/// The unmasked picture is blurred ever less, and each blur is laid over the one before, all in Pillow's bytes: where
/// little shows through, rounding is most of the value, and the result follows.
pub(super) fn filled(image: &RgbImage, mask: &Mask) -> RgbImage {
    /// Standard deviation of the blur, and how often it is laid over.
    const LAYERS: [(f32, usize); 6] = [
        (256.0, 1),
        (64.0, 1),
        (16.0, 2),
        (4.0, 4),
        (2.0, 2),
        (0.0, 1),
    ];
    let (width, height) = (image.width(), image.height());
    let pixels = image.bytes().chunks_exact(3).zip(mask.bytes());
    let uncovered: Vec<Rgba> = pixels
        .map(|(pixel, &mask)| {
            let opacity = 255 - mask;
            [pixel[0], pixel[1], pixel[2], 255].map(|byte| times(byte, opacity))
        })
        .collect();
    let mut canvas = vec![[0; 4]; width * height];
    for (sigma, count) in LAYERS {
        let layer = gaussian(&uncovered, width, height, sigma);
        for (canvas, premultiplied) in canvas.iter_mut().zip(layer) {
            let pixel = straight(premultiplied);
            for _ in 0..count {
                *canvas = over(pixel, *canvas);
            }
        }
    }
    let bytes = canvas.into_iter().flat_map(|[r, g, b, _]| [r, g, b]);
    RgbImage::new(width, height, bytes.collect())
}

/// Red, green, blue and opacity.
type Rgba = [u8; 4];

/// A Gaussian blur of standard deviation `sigma`, made of three box blurs each way, each rounded to bytes.
///
/// Source: Gwosdek et al. 2011, "Theoretical foundations of Gaussian convolution by extended box filtering", equations
/// 7, 11 and 14, in Pillow's single precision (`GaussianBlur` in `libImaging/BoxBlur.c`).
fn gaussian(pixels: &[Rgba], width: usize, height: usize, sigma: f32) -> Vec<Rgba> {
    if sigma == 0.0 {
        return pixels.to_vec();
    }
    let variance = sigma * sigma / 3.0;
    let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
    let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
    let part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance)
        / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)));
    let radius = whole + part;
    let (mut rows, mut columns) = (pixels.to_vec(), Vec::new());
    for _ in 0..3 {
        rows = boxed(&rows, width, radius);
    }
    for x in 0..width {
        columns.extend((0..height).map(|y| rows[y * width + x]));
    }
    for _ in 0..3 {
        columns = boxed(&columns, height, radius);
    }
    let transposed = (0..width * height).map(|idx| columns[idx % width * height + idx / width]);
    transposed.collect()
}

/// The mean over `⌊radius⌋` values to each side and a part of the next ones, along each line of `length`; ends repeated.
///
/// Weights are in units of 2⁻²⁴, so a sum of bytes fits 32 bits.
fn boxed(pixels: &[Rgba], length: usize, radius: f32) -> Vec<Rgba> {
    let reach = radius as usize;
    let weight = ((1u32 << 24) as f32 / (radius * 2.0 + 1.0)) as u32;
    let end_weight = ((1 << 24) - (2 * reach as u32 + 1) * weight) / 2;
    let mut out = Vec::with_capacity(pixels.len());
    for line in pixels.chunks_exact(length) {
        let at = |position: isize| line[position.clamp(0, length as isize - 1) as usize];
        let reach = reach as isize;
        let mut sums = [0u32; 4];
        for position in -reach..=reach {
            let pixel = at(position);
            for channel in 0..4 {
                sums[channel] += u32::from(pixel[channel]);
            }
        }
        for along in 0..length as isize {
            let (before, after) = (at(along - reach - 1), at(along + reach + 1));
            let leaving = at(along - reach);
            out.push(std::array::from_fn(|channel| {
                let ends = u32::from(before[channel]) + u32::from(after[channel]);
                let mean = sums[channel] * weight + ends * end_weight;
                sums[channel] =
                    sums[channel] + u32::from(after[channel]) - u32::from(leaving[channel]);
                ((mean + (1 << 23)) >> 24) as u8
            }));
        }
    }
    out
}

/// `byte · share / 255`, rounded.
fn times(byte: u8, share: u8) -> u8 {
    divided_by_255(u32::from(byte) * u32::from(share)) as u8
}

/// A premultiplied colour divided by its opacity again (Pillow's `RGBa` to `RGBA`): cut off, not rounded.
fn straight([r, g, b, opacity]: Rgba) -> Rgba {
    let divided = |byte: u8| match opacity {
        0 | 255 => byte,
        _ => (255 * u32::from(byte) / u32::from(opacity)).min(255) as u8,
    };
    [divided(r), divided(g), divided(b), opacity]
}

/// `above` laid over `below`, both not premultiplied: Pillow's `alpha_composite`, in units of 1/128 of a byte.
fn over(above: Rgba, below: Rgba) -> Rgba {
    let opacity = u32::from(above[3]);
    if opacity == 0 {
        return below;
    }
    let through = u32::from(below[3]) * (255 - opacity);
    let opacity_255 = opacity * 255 + through;
    let share = opacity * 255 * 255 * 128 / opacity_255;
    let rest = 255 * 128 - share;
    let colour = |channel: usize| {
        let sum = u32::from(above[channel]) * share + u32::from(below[channel]) * rest + (128 << 7);
        ((((sum >> 8) + sum) >> 8) >> 7) as u8
    };
    [
        colour(0),
        colour(1),
        colour(2),
        divided_by_255(opacity_255) as u8,
    ]
}

/// Lays the original over what was drawn, transparent where the mask is white.
///
/// A1111 doubles the mask first, so half grey shows none of the original; where the mask is black, the original's
/// bytes stay exactly. In between, Pillow's integer arithmetic.
pub(super) fn overlaid(drawn: &mut RgbImage, original: &RgbImage, mask: &Mask) {
    let pixels = drawn
        .bytes_mut()
        .chunks_exact_mut(3)
        .zip(original.bytes().chunks_exact(3));
    for ((drawn, original), &mask) in pixels.zip(mask.bytes()) {
        let opacity = 255 - u32::from(mask.saturating_mul(2));
        match opacity {
            0 => {}
            255 => drawn.copy_from_slice(original),
            _ => {
                for (drawn, &original) in drawn.iter_mut().zip(original) {
                    // Pillow keeps the original premultiplied in bytes, and divides again before laying it over.
                    let premultiplied = divided_by_255(u32::from(original) * opacity);
                    let restored = (255 * premultiplied / opacity).min(255);
                    *drawn =
                        divided_by_255(restored * opacity + u32::from(*drawn) * (255 - opacity))
                            as u8;
                }
            }
        }
    }
}

/// `value / 255`, rounded.
fn divided_by_255(value: u32) -> u32 {
    let value = value + 128;
    ((value >> 8) + value) >> 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use safelight_store::Checkpoint;

    fn spot(width: usize, height: usize) -> Mask {
        let white = |idx: usize| {
            (width / 3..2 * width / 3).contains(&(idx % width))
                && (height / 3..2 * height / 3).contains(&(idx / width))
        };
        Mask::new(
            width,
            height,
            (0..width * height)
                .map(|idx| if white(idx) { 255 } else { 0 })
                .collect(),
        )
    }

    #[test]
    fn a_blur_keeps_flat_parts_and_reaches_as_far_as_it_says() {
        let mask = spot(72, 72); // white from 24 to 47
        let soft = blurred(&mask, 4.0);
        assert_eq!(
            soft.bytes()[36 * 72 + 36],
            255,
            "12 pixels in: beyond the reach"
        );
        assert_eq!(
            soft.bytes()[36 * 72 + 24 - 11],
            0,
            "11 pixels out: beyond the reach"
        );
        let edge = soft.bytes()[36 * 72 + 24];
        assert!((128..160).contains(&edge), "{edge} at the edge");
        assert_eq!(blurred(&mask, 0.0), mask);
        let white = Mask::new(3, 2, vec![255; 6]);
        assert_eq!(blurred(&white, 8.0), white, "wider than the mask");
    }

    #[test]
    fn latent_masks_are_black_and_white() {
        let mask = blurred(&spot(72, 48), 4.0);
        for small in [of_latent(&mask, 9, 6), of_latent_nearest(&mask, 9, 6)] {
            assert_eq!(small.len(), 54);
            assert!(small.iter().all(|&value| value == 0.0 || value == 1.0));
            assert_eq!((small[3 * 9 + 4], small[0]), (1.0, 0.0));
        }
    }

    /// `tools/golden/masks.py`: what Pillow makes of the same picture and mask.
    #[test]
    fn pillows_picture() {
        let file: &[u8] = include_bytes!("../../../../testdata/golden/masks/pillow.safetensors");
        let case = Checkpoint::from_bytes("masks/pillow", file).expect("a valid file");
        let (width, height) = (56, 40);
        let bytes = |name: &str| case.read_bytes(name).expect("a golden tensor");
        let image = RgbImage::new(width, height, bytes("in.image"));
        let white = Mask::new(width, height, bytes("in.mask"));
        let furthest = |found: &RgbImage, name: &str| {
            let pairs = found.bytes().iter().zip(bytes(name));
            pairs
                .map(|(found, expected)| found.abs_diff(expected))
                .max()
        };
        assert_eq!(furthest(&image.resized(37, 61), "out.lanczos"), Some(0));
        assert_eq!(
            of_latent(&white, 7, 5),
            case.read_f32("out.latent_mask").expect("a golden tensor")
        );
        let mut drawn = RgbImage::new(width, height, bytes("in.drawn"));
        overlaid(&mut drawn, &image, &white);
        assert_eq!(furthest(&drawn, "out.overlaid"), Some(0));
        assert_eq!(furthest(&filled(&image, &white), "out.filled"), Some(0));
    }

    /// `tools/golden/masks.py`: Pillow's fill of pictures narrower and wider than the blurs, with hard and soft masks.
    #[test]
    fn pillows_fill_of_odd_sizes() {
        let file: &[u8] = include_bytes!("../../../../testdata/golden/masks/fill.safetensors");
        let case = Checkpoint::from_bytes("masks/fill", file).expect("a valid file");
        let bytes = |name: &str| case.read_bytes(name).expect("a golden tensor");
        let masks: Vec<&str> = case
            .names()
            .filter(|name| name.starts_with("in.mask/"))
            .collect();
        assert_eq!(masks.len(), 6);
        for name in masks {
            let of = name.trim_start_matches("in.mask/");
            let shape = &case.get(name).expect("listed above").shape;
            let (height, width) = (shape[0] as usize, shape[1] as usize);
            let image = RgbImage::new(width, height, bytes(&format!("in.image/{of}")));
            let found = filled(&image, &Mask::new(width, height, bytes(name)));
            assert_eq!(found.bytes(), bytes(&format!("out.filled/{of}")), "{of}");
        }
    }

    /// `tools/golden/masks.py`: Pillow's `GaussianBlur` of premultiplied colours.
    #[test]
    fn pillows_blur() {
        let file: &[u8] = include_bytes!("../../../../testdata/golden/masks/fill.safetensors");
        let case = Checkpoint::from_bytes("masks/fill", file).expect("a valid file");
        let bytes = |name: &str| case.read_bytes(name).expect("a golden tensor");
        let pixels: Vec<Rgba> = bytes("in.blur").as_chunks().0.to_vec();
        for sigma in ["0.4", "1", "2", "3.7", "4", "16", "64", "256"] {
            let found = gaussian(&pixels, 19, 11, sigma.parse().expect("a number"));
            assert_eq!(
                found.as_flattened(),
                bytes(&format!("out.blur/{sigma}")),
                "{sigma}"
            );
        }
    }

    #[test]
    fn outside_the_mask_the_original_stays() {
        let original = RgbImage::new(60, 60, (0..10_800).map(|i| (i * 7 % 256) as u8).collect());
        let mut drawn = RgbImage::new(60, 60, vec![90; 10_800]);
        let mask = blurred(&spot(60, 60), 4.0);
        overlaid(&mut drawn, &original, &mask);
        for idx in 0..3600 {
            let (drawn, original) = (
                &drawn.bytes()[3 * idx..3 * idx + 3],
                &original.bytes()[3 * idx..3 * idx + 3],
            );
            match mask.bytes()[idx] {
                0 => assert_eq!(drawn, original),
                128.. => assert_eq!(drawn, [90, 90, 90]),
                _ => {}
            }
        }
    }

    #[test]
    fn filling_takes_the_colours_around() {
        let left_red = |idx: usize| {
            if idx % 60 < 30 {
                [200, 0, 0]
            } else {
                [0, 0, 200]
            }
        };
        let image = RgbImage::new(60, 60, (0..3600).flat_map(left_red).collect());
        let fill = filled(&image, &spot(60, 60));
        let pixel = |x: usize, y: usize| &fill.bytes()[3 * (60 * y + x)..][..3];
        assert_eq!(pixel(5, 5), [200, 0, 0], "outside nothing changes");
        assert!(
            pixel(22, 30)[0] > 150 && pixel(38, 30)[2] > 150,
            "inside the nearer colour rules"
        );
    }

    #[test]
    fn a_mask_of_everything_can_be_filled() {
        let image = RgbImage::new(4, 4, vec![7; 48]);
        let fill = filled(&image, &Mask::new(4, 4, vec![255; 16]));
        assert_eq!(fill.bytes(), [0; 48]);
    }
}
