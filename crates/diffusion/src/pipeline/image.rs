//! Pictures and masks of bytes, and Pillow's resizing of them, bit for bit.

/// A colour picture: rows from the top, red, green and blue bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    width: usize,
    height: usize,
    bytes: Vec<u8>,
}

/// A mask, or any picture of one channel: white (255) is where something is to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    width: usize,
    height: usize,
    bytes: Vec<u8>,
}

impl RgbImage {
    /// A picture of `3 · width · height` bytes.
    ///
    /// # Panics
    /// If there are more or fewer bytes, or none.
    pub fn new(width: usize, height: usize, bytes: Vec<u8>) -> Self {
        assert!(width > 0 && height > 0, "a picture of {width}×{height}");
        assert_eq!(
            bytes.len(),
            3 * width * height,
            "bytes of a {width}×{height} picture"
        );
        RgbImage {
            width,
            height,
            bytes,
        }
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// `[H, W, 3]`.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// `[H, W, 3]`, to be kept.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The picture at another size, as Pillow's `resize` with the Lanczos filter gives it.
    pub fn resized(&self, width: usize, height: usize) -> RgbImage {
        let bytes = resize(
            &self.bytes,
            3,
            (self.width, self.height),
            (width, height),
            Filter::Lanczos,
        );
        RgbImage::new(width, height, bytes)
    }

    /// The picture at `(left, up)` of a canvas of `width` × `height`, its edge pixels going on outwards.
    pub(super) fn extended(&self, left: usize, up: usize, width: usize, height: usize) -> RgbImage {
        let bytes = extend(
            &self.bytes,
            3,
            (self.width, self.height),
            (left, up),
            (width, height),
        );
        RgbImage::new(width, height, bytes)
    }

    /// The part of `width` × `height` from `(left, up)` on.
    pub(super) fn cropped(&self, left: usize, up: usize, width: usize, height: usize) -> RgbImage {
        let row = |y: usize| {
            let start = 3 * ((up + y) * self.width + left);
            &self.bytes[start..start + 3 * width]
        };
        RgbImage::new(width, height, (0..height).flat_map(row).copied().collect())
    }
}

impl Mask {
    /// A mask of `width · height` bytes.
    ///
    /// # Panics
    /// If there are more or fewer bytes, or none.
    pub fn new(width: usize, height: usize, bytes: Vec<u8>) -> Self {
        assert!(width > 0 && height > 0, "a mask of {width}×{height}");
        assert_eq!(
            bytes.len(),
            width * height,
            "bytes of a {width}×{height} mask"
        );
        Mask {
            width,
            height,
            bytes,
        }
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// `[H, W]`.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn resized(&self, width: usize, height: usize, filter: Filter) -> Mask {
        let bytes = resize(
            &self.bytes,
            1,
            (self.width, self.height),
            (width, height),
            filter,
        );
        Mask::new(width, height, bytes)
    }

    /// The mask in the upper left of a larger canvas, black outside.
    pub(super) fn padded(&self, width: usize, height: usize) -> Mask {
        let mut bytes = vec![0; width * height];
        for (row, own) in bytes
            .chunks_exact_mut(width)
            .zip(self.bytes.chunks_exact(self.width))
        {
            row[..self.width].copy_from_slice(own);
        }
        Mask::new(width, height, bytes)
    }
}

/// A canvas of `to` with the picture at `at`, its edge pixels repeated outwards.
fn extend(
    bytes: &[u8],
    channels: usize,
    from: (usize, usize),
    at: (usize, usize),
    to: (usize, usize),
) -> Vec<u8> {
    let inside =
        |position: usize, offset: usize, size: usize| position.saturating_sub(offset).min(size - 1);
    let mut out = Vec::with_capacity(channels * to.0 * to.1);
    for y in 0..to.1 {
        let row = inside(y, at.1, from.1) * from.0;
        for x in 0..to.0 {
            let start = channels * (row + inside(x, at.0, from.0));
            out.extend_from_slice(&bytes[start..start + channels]);
        }
    }
    out
}

/// A resampling filter of Pillow's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// Cubic convolution with a = −½ (Keys 1981).
    Bicubic,
    /// A windowed sinc of three lobes.
    Lanczos,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Filter::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => -0.5 * (((x - 5.0) * x + 8.0) * x - 4.0),
            Filter::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    let angle = std::f64::consts::PI * x;
    if angle == 0.0 {
        1.0
    } else {
        angle.sin() / angle
    }
}

/// Bits behind the point of Pillow's fixed-point weights.
const WEIGHT_BITS: u32 = 22;

/// What one output pixel is made of: the first input pixel and the weights from there on.
struct Taps {
    first: usize,
    weights: Vec<i64>,
}

/// Pillow's `precompute_coeffs`: the filter is stretched by the factor of reduction, so that every pixel counts.
fn taps(from: usize, to: usize, filter: Filter) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let of_pixel = |idx: usize| {
        let center = (idx as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weight = |x: usize| filter.at((x as f64 - center + 0.5) / stretch);
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| (weight / sum * f64::from(1u32 << WEIGHT_BITS)).round() as i64;
        Taps {
            first,
            weights: weights.iter().map(fixed).collect(),
        }
    };
    (0..to).map(of_pixel).collect()
}

/// Pillow's `resize` of 8-bit channels: across first, then down, rounded to bytes in between.
fn resize(
    bytes: &[u8],
    channels: usize,
    (width, height): (usize, usize),
    (to_width, to_height): (usize, usize),
    filter: Filter,
) -> Vec<u8> {
    assert!(
        to_width > 0 && to_height > 0,
        "a picture of {to_width}×{to_height}"
    );
    let mut across = bytes.to_vec();
    if to_width != width {
        let taps = taps(width, to_width, filter);
        across = Vec::with_capacity(channels * to_width * height);
        for row in bytes.chunks_exact(channels * width) {
            for tap in &taps {
                across.extend((0..channels).map(|c| weighted(tap, |x| row[channels * x + c])));
            }
        }
    }
    if to_height == height {
        return across;
    }
    let row_bytes = channels * to_width;
    let mut out = Vec::with_capacity(row_bytes * to_height);
    for tap in &taps(height, to_height, filter) {
        out.extend((0..row_bytes).map(|x| weighted(tap, |y| across[row_bytes * y + x])));
    }
    out
}

fn weighted(taps: &Taps, byte: impl Fn(usize) -> u8) -> u8 {
    let half = 1i64 << (WEIGHT_BITS - 1);
    let terms = taps
        .weights
        .iter()
        .zip(taps.first..)
        .map(|(weight, idx)| weight * i64::from(byte(idx)));
    ((half + terms.sum::<i64>()) >> WEIGHT_BITS).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(count: usize) -> Vec<u8> {
        (0..count).map(|i| (i * 37 % 256) as u8).collect()
    }

    /// Values of Pillow 13: `Image.fromarray(ramp.reshape(6, 8)).resize((3, 2), filter)`.
    #[test]
    fn pillows_bytes() {
        let mask = Mask::new(8, 6, ramp(48));
        let check = |width, height, filter, expected: &[u8]| {
            assert_eq!(
                mask.resized(width, height, filter).bytes(),
                expected,
                "{filter:?} {width}×{height}"
            );
        };
        check(3, 2, Filter::Bicubic, &PILLOW_BICUBIC);
        check(3, 2, Filter::Lanczos, &PILLOW_LANCZOS);
        check(11, 7, Filter::Lanczos, &PILLOW_LANCZOS_UP);
    }

    const PILLOW_BICUBIC: [u8; 6] = [83, 158, 88, 171, 96, 115];
    const PILLOW_LANCZOS: [u8; 6] = [80, 164, 84, 177, 94, 112];
    const PILLOW_LANCZOS_UP: [u8; 77] = [
        0, 17, 50, 74, 102, 130, 151, 176, 253, 134, 0, 27, 47, 80, 104, 133, 146, 195, 240, 112,
        22, 38, 66, 86, 120, 142, 155, 228, 225, 86, 5, 33, 76, 98, 120, 145, 171, 236, 202, 84, 1,
        39, 96, 104, 131, 144, 197, 233, 196, 61, 0, 65, 92, 115, 137, 168, 189, 224, 183, 31, 14,
        85, 100, 122, 156, 176, 193, 248, 173, 4, 35, 85, 100, 129, 153, 186, 206,
    ];

    #[test]
    fn extending_and_cropping_are_inverse() {
        let image = RgbImage::new(3, 2, ramp(18));
        let extended = image.extended(2, 1, 7, 5);
        assert_eq!(extended.cropped(2, 1, 3, 2), image);
        assert_eq!(
            extended.bytes()[..9],
            [
                image.bytes()[..3].to_vec(),
                image.bytes()[..3].to_vec(),
                image.bytes()[..3].to_vec()
            ]
            .concat()
        );
        assert_eq!(
            extended.bytes()[extended.bytes().len() - 3..],
            image.bytes()[15..]
        );
    }

    #[test]
    fn the_same_size_is_the_same_picture() {
        let image = RgbImage::new(3, 2, ramp(18));
        assert_eq!(image.resized(3, 2), image);
    }
}
