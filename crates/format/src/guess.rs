//! What else a file may be that is no safetensors file: texts of servers that were saved under a model's name, and kinds
//! that have no mark of their own. Guesses only make an error's message better; no reader relies on them.

use crate::sniff::{FileKind, sniff};

/// As much of a text as is looked at.
const TEXT_BYTES: usize = 512;

/// What a file is that failed as safetensors, from its first bytes.
pub(crate) fn guess(bytes: &[u8]) -> Option<FileKind> {
    let known = sniff(bytes);
    match known {
        Some(FileKind::Json) => Some(error_in_json(bytes).unwrap_or(FileKind::Json)),
        Some(FileKind::Zip) if contains(start(bytes), b".npy") => Some(FileKind::Npz),
        Some(_) => known,
        // A length below 2³² in the first eight bytes: broken perhaps, but a safetensors file.
        None if bytes.get(4..8).is_none_or(|high| high == [0; 4]) => None,
        None => unmarked(bytes),
    }
}

fn unmarked(bytes: &[u8]) -> Option<FileKind> {
    if bytes.starts_with(b"BZh") && bytes[3].is_ascii_digit() {
        return Some(FileKind::Bzip2);
    }
    if let Some(text) = text(bytes) {
        return Some(told_by_words(text).unwrap_or(FileKind::Text));
    }
    if is_msgpack(bytes) {
        return Some(FileKind::Flax);
    }
    is_onnx(bytes).then_some(FileKind::Onnx)
}

fn start(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(TEXT_BYTES)]
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

/// The first bytes as text, if there is nothing else among them.
fn text(bytes: &[u8]) -> Option<&str> {
    let start = start(bytes);
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        // The cut may go through a character.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&start[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let odd = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
    (!text.contains(odd)).then_some(text)
}

/// What servers say, Hugging Face's hub among them.
fn told_by_words(text: &str) -> Option<FileKind> {
    const NOT_FOUND: [&str; 6] = [
        "entry not found",
        "repository not found",
        "revision not found",
        "not found",
        "404",
        "no such file",
    ];
    const REFUSED: [&str; 10] = [
        "must be logged in",
        "access to model",
        "access to dataset",
        "is restricted",
        "is gated",
        "invalid credentials",
        "invalid username or password",
        "unauthorized",
        "forbidden",
        "access denied",
    ];
    let text = text.trim_start().to_lowercase();
    // An answer is short and begins with what it says; a book may have these words too.
    let first: String = text.chars().take(160).collect();
    if REFUSED.iter().any(|words| first.contains(words)) {
        return Some(FileKind::ServerRefused);
    }
    let not_found = NOT_FOUND.iter().any(|words| first.contains(words));
    not_found.then_some(FileKind::ServerNotFound)
}

/// An object that begins with an error: what services answer.
fn error_in_json(bytes: &[u8]) -> Option<FileKind> {
    let text = text(bytes)?.trim_start_matches(['\u{feff}', '{', ' ', '\t', '\r', '\n']);
    let keys = [
        "\"error\"",
        "\"errors\"",
        "\"message\"",
        "\"detail\"",
        "\"statusCode\"",
    ];
    let is_error = keys.iter().any(|key| text.starts_with(key));
    is_error.then(|| told_by_words(text).unwrap_or(FileKind::ServerError))
}

/// A map whose first key is text (the msgpack specification, "Overview" of the formats).
fn is_msgpack(bytes: &[u8]) -> bool {
    let key = match bytes {
        [0x81..=0x8f, key @ ..] | [0xde, _, _, key @ ..] | [0xdf, _, _, _, _, key @ ..] => key,
        _ => return false,
    };
    let (len, name) = match key {
        [len @ 0xa1..=0xbf, name @ ..] => (usize::from(len & 0x1f), name),
        [0xd9, len, name @ ..] => (usize::from(*len), name),
        _ => return false,
    };
    name.len() > len && name[..len].iter().all(|byte| byte.is_ascii_graphic())
}

/// A `ModelProto`: the version of its IR (field 1), then the producer's name (field 2), as every exporter writes them
/// (`onnx.proto`).
fn is_onnx(bytes: &[u8]) -> bool {
    match bytes {
        [0x08, 1..=63, 0x12, len, name @ ..] => {
            let len = usize::from(*len);
            (1..128).contains(&len)
                && name.len() > len
                && name[..len]
                    .iter()
                    .all(|byte| byte.is_ascii_graphic() || *byte == b' ')
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], expected: impl Into<Option<FileKind>>) {
        assert_eq!(guess(bytes), expected.into(), "{}", bytes.escape_ascii());
    }

    #[test]
    fn answers_of_servers() {
        check(b"Entry not found", FileKind::ServerNotFound);
        check(b"Repository not found", FileKind::ServerNotFound);
        check(b"404: Not Found\n", FileKind::ServerNotFound);
        check(
            b"Access to model black-forest-labs/FLUX.1-dev is restricted. You must have access to it",
            FileKind::ServerRefused,
        );
        check(
            b"Invalid credentials in Authorization header",
            FileKind::ServerRefused,
        );
        check(
            b"{\"error\":\"Repository not found\"}",
            FileKind::ServerNotFound,
        );
        check(
            b"{ \"error\": \"Access to model a/b is restricted\"}",
            FileKind::ServerRefused,
        );
        check(b"{\"error\":\"Internal Error\"}", FileKind::ServerError);
        check(b"{\"weight_map\":{}}", FileKind::Json);
        check(
            "Ein Text, wie er überall stehen kann".as_bytes(),
            FileKind::Text,
        );
    }

    #[test]
    fn kinds_without_a_mark() {
        check(b"BZh91AY&SY", FileKind::Bzip2);
        check(
            b"PK\x03\x04\x14\0\0\0\x08\0\0\0\0\0weight.npy",
            FileKind::Npz,
        );
        check(b"\x82\xa6params\x81\xa4bias\xc7", FileKind::Flax);
        check(b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", FileKind::Onnx);
    }

    #[test]
    fn what_may_be_safetensors_is_left_alone() {
        check(b"", None);
        check(b"noise", None);
        check(b"\x81\xa1\0\0\0\0\0\0{\"a\"", None);
        check(b"ab\x01\0\0\0\0\0{\"a\":", None);
        check(&[0xa7; 64], None);
    }
}
