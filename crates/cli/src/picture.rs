//! Pictures that people give: PNG, JPEG or WebP, turned upright, as 8-bit RGB or as a mask.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use image::{DynamicImage, GrayImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};
use safelight_format::{FileKind, sniff};

use crate::error::Failure;
use crate::exif;

/// Longest side of a picture that is read; larger than any that can be drawn.
const PICTURE_SIDE_MAX: u32 = 32_768;
/// Texts in a picture are read up to this size: a few kilobytes can unpack to gigabytes.
const TEXT_BYTES_MAX: usize = 4 << 20;

/// Reads a picture; where it is transparent it becomes white, as in A1111.
pub(crate) fn read_rgb(path: &Path) -> Result<RgbImage, Failure> {
    let picture = read(path)?;
    if !picture.color().has_alpha() {
        return Ok(picture.into_rgb8());
    }
    let mut rgba = picture.into_rgba8();
    for pixel in rgba.pixels_mut() {
        let alpha = u32::from(pixel[3]);
        for channel in 0..3 {
            let value = u32::from(pixel[channel]);
            pixel[channel] = ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        }
    }
    Ok(DynamicImage::ImageRgba8(rgba).into_rgb8())
}

/// Reads a mask: white is where to repaint. Of a picture with transparent places, those that are opaque.
pub(crate) fn read_mask(path: &Path) -> Result<GrayImage, Failure> {
    let picture = read(path)?;
    if picture.color().has_alpha() {
        let rgba = picture.to_rgba8();
        if rgba.pixels().any(|pixel| pixel[3] != 255) {
            let opaque = |x, y| {
                image::Luma([if rgba.get_pixel(x, y)[3] > 128 {
                    255
                } else {
                    0
                }])
            };
            return Ok(GrayImage::from_fn(rgba.width(), rgba.height(), opaque));
        }
    }
    // ITU-R 601-2 luma with PIL's rounding.
    let rgb = picture.into_rgb8();
    let luma = |x, y| {
        let [r, g, b] = rgb.get_pixel(x, y).0.map(u32::from);
        image::Luma([((19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16) as u8])
    };
    Ok(GrayImage::from_fn(rgb.width(), rgb.height(), luma))
}

fn read(path: &Path) -> Result<DynamicImage, Failure> {
    let failed = |what: String| Failure::Picture(format!("{}: {what}", path.display()));
    if path.is_dir() {
        return Err(failed("is a folder, not a picture".into()));
    }
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let reader = ImageReader::new(BufReader::new(file))
        .with_guessed_format()
        .map_err(|error| failed(error.to_string()))?;
    if reader.format().is_none() {
        return Err(failed(what_it_is(path)));
    }
    if reader.format() == Some(ImageFormat::Jpeg) && !jpeg_is_whole(path) {
        let what = "is damaged: a JPEG picture without its end, as after a broken download";
        return Err(failed(what.into()));
    }
    let (width, height) = dimensions(path)?;
    if width.max(height) > PICTURE_SIDE_MAX {
        let what =
            format!("is {width} × {height} pixels; a side of at most {PICTURE_SIDE_MAX} is read");
        return Err(failed(what));
    }
    let decode = || {
        let mut decoder = reader.into_decoder()?;
        let orientation = decoder.orientation()?;
        let mut picture = DynamicImage::from_decoder(decoder)?;
        picture.apply_orientation(orientation);
        Ok(picture)
    };
    decode().map_err(|error: image::ImageError| {
        failed(format!("is damaged or of a kind that is not read: {error}"))
    })
}

/// Whether the end marker of a JPEG file comes after the last beginning of a scan: decoders fill in grey without a word
/// where it does not.
fn jpeg_is_whole(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap_or_default();
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    last(0xd9) > last(0xda)
}

/// What a file that is no picture is.
/// What is wrong with a file that is no picture.
pub(crate) fn what_it_is(path: &Path) -> String {
    match (std::fs::metadata(path), kind(path)) {
        (Ok(metadata), _) if metadata.len() == 0 => "is empty".into(),
        (_, Ok(Some(kind))) => format!("is {kind}; a PNG, JPEG or WebP picture is needed"),
        _ => "is not a PNG, JPEG or WebP picture".into(),
    }
}

/// What a file is, from its first bytes.
pub(crate) fn kind(path: &Path) -> Result<Option<FileKind>, Failure> {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(4096).read_to_end(&mut start));
    read.map_err(|error| Failure::Picture(format!("{}: {error}", path.display())))?;
    Ok(sniff(&start))
}

/// Width and height, from the header alone.
pub(crate) fn dimensions(path: &Path) -> Result<(u32, u32), Failure> {
    let failed = |what: String| Failure::Picture(format!("{}: {what}", path.display()));
    let reader = ImageReader::open(path)
        .and_then(ImageReader::with_guessed_format)
        .map_err(|error| failed(error.to_string()))?;
    reader
        .into_dimensions()
        .map_err(|error| failed(format!("is damaged: {error}")))
}

/// The `parameters` text of a picture, or `None` if it has none: a text chunk of PNG, the EXIF comment of JPEG and WebP.
pub(crate) fn parameters(path: &Path) -> Result<Option<String>, Failure> {
    match kind(path)? {
        Some(FileKind::Png) => {
            let texts = texts(path)?;
            Ok(texts
                .into_iter()
                .find(|(keyword, _)| keyword == "parameters")
                .map(|(_, text)| text))
        }
        Some(FileKind::Jpeg | FileKind::Webp) => {
            let exif = || {
                let reader = ImageReader::open(path).ok()?.with_guessed_format().ok()?;
                reader.into_decoder().ok()?.exif_metadata().ok()?
            };
            Ok(exif().and_then(|exif| exif::user_comment(&exif)))
        }
        _ => Ok(None),
    }
}

/// All text chunks of a PNG picture.
fn texts(path: &Path) -> Result<Vec<(String, String)>, Failure> {
    let failed = |what: String| Failure::Picture(format!("{}: {what}", path.display()));
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut reader = png::Decoder::new(BufReader::new(file))
        .read_info()
        .map_err(|error| failed(error.to_string()))?;
    // Texts may stand after the pixels; a damaged rest does not hide those before it.
    let _ = reader.finish();
    let info = reader.info();
    let plain = info
        .uncompressed_latin1_text
        .iter()
        .map(|chunk| (chunk.keyword.clone(), chunk.text.clone()));
    let packed = info.compressed_latin1_text.iter().filter_map(|chunk| {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(TEXT_BYTES_MAX).ok()?;
        Some((chunk.keyword.clone(), chunk.get_text().ok()?))
    });
    let unicode = info.utf8_text.iter().filter_map(|chunk| {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(TEXT_BYTES_MAX).ok()?;
        Some((chunk.keyword.clone(), chunk.get_text().ok()?))
    });
    Ok(plain.chain(packed).chain(unicode).collect())
}
