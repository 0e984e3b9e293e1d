//! The one thing in EXIF that matters here: the comment in which A1111 keeps a JPEG's or WebP's parameters.
//!
//! Source: Exif 2.32 (CIPA DC-008-2019), §4.6.2 (layout), §4.6.5 (`UserComment`); TIFF 6.0, §2.

/// Tag of the pointer to the EXIF directory.
const EXIF_POINTER: u16 = 0x8769;
/// Tag of `UserComment`.
const USER_COMMENT: u16 = 0x9286;

/// The `UserComment` of an EXIF block, or `None` if there is none that can be read.
pub(crate) fn user_comment(block: &[u8]) -> Option<String> {
    let block = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    let tiff = Tiff {
        bytes: block,
        little: block.starts_with(b"II"),
    };
    if !tiff.little && !block.starts_with(b"MM") {
        return None;
    }
    let first = tiff.u32(4)?;
    let exif = tiff.u32(tiff.entry(first, EXIF_POINTER)? + 8)?;
    let entry = tiff.entry(exif, USER_COMMENT)?;
    // Up to four bytes stand in the entry itself; a comment's charset alone has eight.
    let (length, start) = (tiff.u32(entry + 4)?, tiff.u32(entry + 8)?);
    let comment = block.get(start..start.checked_add(length)?)?;
    let (charset, text) = comment.split_at_checked(8)?;
    match charset {
        b"UNICODE\0" => Some(utf16(text)),
        b"ASCII\0\0\0" | [0, 0, 0, 0, 0, 0, 0, 0] => Some(
            String::from_utf8_lossy(text)
                .trim_end_matches('\0')
                .to_owned(),
        ),
        _ => None,
    }
}

/// Either byte order: writers do not agree, so the one in which more characters are Latin is taken.
fn utf16(text: &[u8]) -> String {
    let count = |high: usize| {
        text.iter()
            .skip(high)
            .step_by(2)
            .filter(|&&byte| byte == 0)
            .count()
    };
    let big = count(0) >= count(1);
    let unit = |pair: &[u8]| {
        let pair = [pair[0], pair[1]];
        if big {
            u16::from_be_bytes(pair)
        } else {
            u16::from_le_bytes(pair)
        }
    };
    let units: Vec<u16> = text.chunks_exact(2).map(unit).collect();
    String::from_utf16_lossy(&units)
        .trim_start_matches('\u{feff}')
        .trim_end_matches('\0')
        .to_owned()
}

struct Tiff<'a> {
    bytes: &'a [u8],
    little: bool,
}

impl Tiff<'_> {
    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if self.little {
            u16::from_le_bytes(bytes)
        } else {
            u16::from_be_bytes(bytes)
        })
    }

    fn u32(&self, at: usize) -> Option<usize> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        usize::try_from(if self.little {
            u32::from_le_bytes(bytes)
        } else {
            u32::from_be_bytes(bytes)
        })
        .ok()
    }

    /// Where the entry of this tag begins in the directory at `directory`.
    fn entry(&self, directory: usize, tag: u16) -> Option<usize> {
        let count = self.u16(directory)?;
        let entries = (0..usize::from(count)).map(|idx| directory + 2 + 12 * idx);
        entries
            .take_while(|&at| at < self.bytes.len())
            .find(|&at| self.u16(at) == Some(tag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An EXIF block with that comment, as piexif lays it out.
    fn block(little: bool, charset: &[u8; 8], text: &[u8]) -> Vec<u8> {
        let u16 = |value: u16| {
            if little {
                value.to_le_bytes()
            } else {
                value.to_be_bytes()
            }
        };
        let u32 = |value: u32| {
            if little {
                value.to_le_bytes()
            } else {
                value.to_be_bytes()
            }
        };
        let mut block = if little {
            b"II*\0".to_vec()
        } else {
            b"MM\0*".to_vec()
        };
        let mut directory = |at: u32, tag: u16, kind: u16, count: u32, value: u32| {
            block.extend(u32(at));
            block.truncate(block.len() - if at == 0 { 4 } else { 0 });
            block.extend(u16(1));
            block.extend(
                u16(tag)
                    .into_iter()
                    .chain(u16(kind))
                    .chain(u32(count))
                    .chain(u32(value)),
            );
            block.extend(u32(0));
        };
        directory(8, EXIF_POINTER, 4, 1, 26);
        directory(0, USER_COMMENT, 7, 8 + text.len() as u32, 44);
        block.extend(charset);
        block.extend(text);
        block
    }

    #[test]
    fn comments_are_read_in_every_order() {
        let text = "a cat\nSteps: 20, 日本";
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for order in [false, true] {
            for bytes in [&big, &little] {
                assert_eq!(
                    user_comment(&block(order, b"UNICODE\0", bytes)).as_deref(),
                    Some(text)
                );
            }
            assert_eq!(
                user_comment(&block(order, b"ASCII\0\0\0", b"plain")).as_deref(),
                Some("plain")
            );
        }
    }

    #[test]
    fn damaged_blocks_have_no_comment() {
        let whole = block(true, b"ASCII\0\0\0", b"plain");
        for length in 0..whole.len() {
            assert_eq!(user_comment(&whole[..length]), None, "{length}");
        }
        for at in 0..whole.len() {
            for value in [0, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[at] = value;
                user_comment(&changed);
            }
        }
    }
}
