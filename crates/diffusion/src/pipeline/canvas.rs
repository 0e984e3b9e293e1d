//! The picture and mask a job works on, brought to a size the networks can take.

use super::image::{Filter, Mask, RgbImage};
use super::mask;
use super::request::{GenerateError, Job, MaskedContent, Outpaint, Request, SIDE_MAX, refused};

/// Width and height where there is no picture to take them from.
const DEFAULT_SIDE: usize = 512;

/// What is drawn on.
pub(super) struct Canvas {
    /// Width in pixels, a multiple of the VAE's factor.
    pub(super) width: usize,
    /// Height in pixels, a multiple of the VAE's factor.
    pub(super) height: usize,
    /// What to start from; `None` starts from noise alone.
    pub(super) start: Option<RgbImage>,
    /// Denoising strength, if there is a picture to start from.
    pub(super) strength: Option<f64>,
    /// White (after blurring) where to draw.
    pub(super) mask: Option<Mask>,
    /// What the masked area starts from.
    pub(super) content: MaskedContent,
    /// What to lay over the result where the mask is black.
    overlay: Option<RgbImage>,
    /// The result's size, if the canvas is larger.
    crop: (usize, usize),
}

impl Canvas {
    /// Prepares the request's pictures for a VAE that shrinks by `factor`.
    pub(super) fn new(request: &Request, factor: usize) -> Result<Canvas, GenerateError> {
        let (width, height) = drawn_size(request, factor)?;
        let bare = Canvas {
            width,
            height,
            start: None,
            strength: None,
            mask: None,
            content: MaskedContent::Original,
            overlay: None,
            crop: (width, height),
        };
        Ok(match &request.job {
            Job::Txt2Img => bare,
            Job::Img2Img { image, strength } => Canvas {
                start: Some(image.resized(width, height)),
                strength: Some(*strength),
                ..bare
            },
            Job::Inpaint(inpaint) => {
                let image = inpaint.image.resized(width, height);
                let white = inpaint.mask.resized(width, height, Filter::Lanczos);
                let white = mask::blurred(&white, inpaint.mask_blur);
                let overlay = inpaint.overlay;
                Canvas {
                    strength: Some(inpaint.strength),
                    ..bare.masked(image, white, inpaint.content, overlay, factor)
                }
            }
            Job::Outpaint(outpaint) => {
                let image = outpaint
                    .image
                    .extended(outpaint.left, outpaint.up, width, height);
                let white = mask::blurred(&outside(outpaint, width, height), outpaint.mask_blur);
                Canvas {
                    strength: Some(outpaint.strength),
                    ..bare.masked(image, white, outpaint.content, true, factor)
                }
            }
        })
    }

    /// The canvas for drawing on `image` where `white` is; both grow to multiples of `factor`, black and cropped later.
    fn masked(
        self,
        image: RgbImage,
        white: Mask,
        content: MaskedContent,
        overlay: bool,
        factor: usize,
    ) -> Canvas {
        let (width, height) = (
            self.width.next_multiple_of(factor),
            self.height.next_multiple_of(factor),
        );
        let (image, white) = (
            image.extended(0, 0, width, height),
            white.padded(width, height),
        );
        let start = if content == MaskedContent::Original {
            image.clone()
        } else {
            mask::filled(&image, &white)
        };
        let overlay = overlay.then_some(image);
        Canvas {
            width,
            height,
            start: Some(start),
            mask: Some(white),
            content,
            overlay,
            ..self
        }
    }

    /// What was drawn, with the original laid over it and cut to size.
    pub(super) fn finished(&self, mut drawn: RgbImage) -> RgbImage {
        if let (Some(original), Some(white)) = (&self.overlay, &self.mask) {
            mask::overlaid(&mut drawn, original, white);
        }
        if self.crop == (drawn.width(), drawn.height()) {
            drawn
        } else {
            drawn.cropped(0, 0, self.crop.0, self.crop.1)
        }
    }
}

/// White outside the old picture, and as far into it as the seam begins, along the sides that grow.
fn outside(outpaint: &Outpaint, width: usize, height: usize) -> Mask {
    let kept = |before: usize, size: usize, after: usize| {
        let inset = |added: usize| if added > 0 { outpaint.inset() } else { 0 };
        before + inset(before)..(before + size).saturating_sub(inset(after))
    };
    let across = kept(outpaint.left, outpaint.image.width(), outpaint.right);
    let down = kept(outpaint.up, outpaint.image.height(), outpaint.down);
    let white = |(y, x): (usize, usize)| {
        if across.contains(&x) && down.contains(&y) {
            0
        } else {
            255
        }
    };
    let bytes = (0..height)
        .flat_map(|y| (0..width).map(move |x| (y, x)))
        .map(white)
        .collect();
    Mask::new(width, height, bytes)
}

/// Width and height of the pictures that `request` gives with a model whose VAE shrinks by `factor`.
///
/// Sizes are rounded down to multiples of `factor`, as in A1111. Inpainting and outpainting keep every pixel: their
/// canvas is rounded up, and cut off again, so the size is the picture's (or [`Request::size`]).
///
/// # Errors
/// If a side is shorter than `factor`, or longer than [`SIDE_MAX`].
pub(super) fn drawn_size(
    request: &Request,
    factor: usize,
) -> Result<(usize, usize), GenerateError> {
    let own = match &request.job {
        Job::Txt2Img => (DEFAULT_SIDE, DEFAULT_SIDE),
        Job::Img2Img { image, .. } => (image.width(), image.height()),
        Job::Inpaint(inpaint) => (inpaint.image.width(), inpaint.image.height()),
        Job::Outpaint(outpaint) => (
            outpaint.image.width() + outpaint.left + outpaint.right,
            outpaint.image.height() + outpaint.up + outpaint.down,
        ),
    };
    let masked = matches!(request.job, Job::Inpaint(_) | Job::Outpaint(_));
    let (width, height) = request.size.unwrap_or(own);
    for (field, side) in [("width", width), ("height", height)] {
        let shortest = if masked { 1 } else { factor };
        if !(shortest..=SIDE_MAX).contains(&side) {
            return Err(refused(
                field,
                side,
                format!("{shortest} to {SIDE_MAX} pixels"),
            ));
        }
    }
    let rounded = |side: usize| if masked { side } else { side / factor * factor };
    Ok((rounded(width), rounded(height)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Inpaint;

    fn image(width: usize, height: usize) -> RgbImage {
        RgbImage::new(
            width,
            height,
            (0..3 * width * height).map(|i| (i % 251) as u8).collect(),
        )
    }

    #[test]
    fn sizes_are_rounded_down_but_masked_pictures_keep_theirs() {
        let check = |job: Job, size, expected| {
            let request = Request {
                job,
                size,
                ..Request::default()
            };
            assert_eq!(drawn_size(&request, 8).unwrap(), expected);
            let canvas = Canvas::new(&request, 8).unwrap();
            assert_eq!((canvas.width % 8, canvas.height % 8), (0, 0));
            let drawn = canvas.finished(image(canvas.width, canvas.height));
            assert_eq!((drawn.width(), drawn.height()), expected);
        };
        check(Job::Txt2Img, None, (512, 512));
        check(Job::Txt2Img, Some((70, 65)), (64, 64));
        check(
            Job::Img2Img {
                image: image(45, 50),
                strength: 0.5,
            },
            None,
            (40, 48),
        );
        let inpaint = || {
            Job::Inpaint(Inpaint::new(
                image(45, 50),
                Mask::new(45, 50, vec![0; 2250]),
            ))
        };
        check(inpaint(), None, (45, 50));
        check(inpaint(), Some((64, 40)), (64, 40));
        check(
            Job::Outpaint(Outpaint {
                left: 11,
                down: 3,
                ..Outpaint::new(image(45, 50))
            }),
            None,
            (56, 53),
        );
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let complaint = |size| {
            let request = Request {
                size: Some(size),
                ..Request::default()
            };
            drawn_size(&request, 8).unwrap_err().to_string()
        };
        assert_eq!(
            complaint((7, 64)),
            "width is 7: it must be 8 to 16384 pixels"
        );
        assert_eq!(
            complaint((64, 20_000)),
            "height is 20000: it must be 8 to 16384 pixels"
        );
    }

    #[test]
    fn an_untouched_mask_changes_nothing() {
        let inpaint = Inpaint::new(image(45, 50), Mask::new(45, 50, vec![0; 2250]));
        let request = Request {
            job: Job::Inpaint(inpaint),
            ..Request::default()
        };
        let canvas = Canvas::new(&request, 8).unwrap();
        assert_eq!(
            canvas.finished(RgbImage::new(48, 56, vec![9; 3 * 48 * 56])),
            image(45, 50)
        );
    }

    #[test]
    fn outpainting_keeps_the_picture_beyond_the_seam() {
        let outpaint = Outpaint {
            left: 16,
            up: 8,
            mask_blur: 2.0,
            ..Outpaint::new(image(48, 56))
        };
        assert_eq!(outpaint.seam(), 9);
        let request = Request {
            job: Job::Outpaint(outpaint.clone()),
            ..Request::default()
        };
        let canvas = Canvas::new(&request, 8).unwrap();
        let drawn = canvas.finished(RgbImage::new(64, 64, vec![9; 3 * 64 * 64]));
        let seam = outpaint.seam();
        let kept = drawn.cropped(16 + seam, 8 + seam, 48 - seam, 56 - seam);
        assert_eq!(
            kept,
            outpaint.image.cropped(seam, seam, 48 - seam, 56 - seam)
        );
        assert_eq!(drawn.bytes()[..3], [9, 9, 9]);
        assert_eq!(canvas.mask.as_ref().unwrap().bytes()[3 * 64 + 40], 255);
    }
}
