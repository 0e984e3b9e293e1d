//! What a file that is not safetensors really is, told from its first bytes.

use std::fmt;

/// A kind of file that people rename, download or point at by mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileKind {
    /// A zip archive that holds a pickle: what `torch.save` writes since PyTorch 1.6.
    TorchZip,
    /// Any other zip archive.
    Zip,
    /// A bare Python pickle, such as `torch.save` wrote before PyTorch 1.6.
    Pickle,
    /// A llama.cpp GGUF file, or one of its predecessors.
    Gguf,
    /// A web page, often a login or error page saved under a model's name.
    Html,
    /// A Git LFS pointer: the stand-in that `git clone` leaves without Git LFS.
    LfsPointer,
    /// gzip-compressed.
    Gzip,
    /// Zstandard-compressed.
    Zstd,
    /// xz-compressed.
    Xz,
    /// A 7-Zip archive.
    SevenZip,
    /// A RAR archive.
    Rar,
    /// A tar archive.
    Tar,
    /// A PNG picture.
    Png,
    /// A JPEG picture.
    Jpeg,
    /// A WebP picture.
    Webp,
    /// A PDF document.
    Pdf,
    /// An HDF5 file, as Keras writes.
    Hdf5,
    /// A NumPy array.
    Npy,
    /// A JSON text, such as a shard index or a config.
    Json,
    /// An XML text, often a storage server's error answer.
    Xml,
    /// An executable program.
    Executable,
    /// Nothing but zero bytes: a download reserved its space and never came.
    Zeros,
    /// bzip2-compressed.
    Bzip2,
    /// A zip archive of NumPy arrays.
    Npz,
    /// Flax's weights: msgpack.
    Flax,
    /// An ONNX model.
    Onnx,
    /// A server's text that there is no such file or repository.
    ServerNotFound,
    /// A server's text that the one who asked may not have the file.
    ServerRefused,
    /// Another error of a server, in JSON.
    ServerError,
    /// Any other text.
    Text,
}

impl FileKind {
    /// What it is and what to do about it: the rest of a sentence "not a safetensors file but …".
    pub fn advice(self) -> &'static str {
        match self {
            FileKind::TorchZip => {
                "a PyTorch checkpoint (a zip archive with a pickle inside); renaming is not enough, \
                 `safelight convert FILE OUT.safetensors` reads it"
            }
            FileKind::Zip => {
                "a zip archive; unpack it and use the .safetensors file inside (one of PyTorch, NumPy or Keras: \
                 `safelight convert FILE OUT.safetensors` reads it)"
            }
            FileKind::Pickle => {
                "a Python pickle (an old PyTorch checkpoint); renaming is not enough, \
                 `safelight convert FILE OUT.safetensors` reads it"
            }
            FileKind::Gguf => {
                "a GGUF/GGML model; `safelight convert FILE OUT.safetensors` reads it (GGUF, not its predecessors)"
            }
            FileKind::Html => {
                "a web page: the download gave a login or error page instead of the model; download it again, \
                 logged in if the site asks for that"
            }
            FileKind::LfsPointer => {
                "a Git LFS pointer: the repository was cloned without its large files; run `git lfs pull`"
            }
            FileKind::Gzip => "a gzip-compressed file; unpack it with `gunzip`",
            FileKind::Zstd => "a Zstandard-compressed file; unpack it with `zstd -d`",
            FileKind::Xz => "an xz-compressed file; unpack it with `unxz`",
            FileKind::SevenZip => "a 7-Zip archive; unpack it and use the .safetensors file inside",
            FileKind::Rar => "a RAR archive; unpack it and use the .safetensors file inside",
            FileKind::Tar => "a tar archive; unpack it and use the .safetensors file inside",
            FileKind::Png => "a PNG picture",
            FileKind::Jpeg => "a JPEG picture",
            FileKind::Webp => "a WebP picture",
            FileKind::Pdf => "a PDF document",
            FileKind::Hdf5 => {
                "an HDF5 file (Keras weights); `safelight convert FILE OUT.safetensors` reads it"
            }
            FileKind::Npy => "a NumPy array; `safelight convert FILE OUT.safetensors` reads it",
            FileKind::Npz => {
                "a zip archive of NumPy arrays (npz); `safelight convert FILE OUT.safetensors` reads it"
            }
            FileKind::Flax => {
                "Flax's weights (msgpack); `safelight convert FILE OUT.safetensors` reads it"
            }
            FileKind::Onnx => "an ONNX model; `safelight convert FILE OUT.safetensors` reads it",
            FileKind::Bzip2 => "a bzip2-compressed file; unpack it with `bunzip2`",
            FileKind::ServerNotFound => {
                "a server's answer that it has no such file; check the address (owner, repository, revision and \
                 name) and download it again"
            }
            FileKind::ServerRefused => {
                "a server's answer that access is refused; log in (with a token that may read the repository), accept \
                 the model's terms on its page if it has any, and download it again"
            }
            FileKind::ServerError => {
                "a server's error answer (JSON); look into it with a text editor, and download the file again"
            }
            FileKind::Text => {
                "a text, perhaps a server's answer; look into it with a text editor, and download the file again"
            }
            FileKind::Json => {
                "a JSON text, such as a config or a server's error answer; the name of a shard index must end in `.safetensors.index.json`"
            }
            FileKind::Xml => "an XML text, probably a server's error answer; download it again",
            FileKind::Executable => {
                "an executable program; do not run it, get the model from its author"
            }
            FileKind::Zeros => {
                "a run of zero bytes: the download reserved its space and never came; download it again"
            }
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let advice = self.advice();
        f.write_str(advice.split([';', ':', ',']).next().unwrap_or(advice))
    }
}

/// First bytes that only one kind of file has.
const MAGICS: &[(&[u8], FileKind)] = &[
    (b"GGUF", FileKind::Gguf),
    (b"ggml", FileKind::Gguf),
    (b"lmgg", FileKind::Gguf),
    (b"tjgg", FileKind::Gguf),
    (b"version https://git-lfs", FileKind::LfsPointer),
    (b"\x1f\x8b\x08", FileKind::Gzip),
    (b"\x28\xb5\x2f\xfd", FileKind::Zstd),
    (b"\xfd7zXZ\0", FileKind::Xz),
    (b"7z\xbc\xaf\x27\x1c", FileKind::SevenZip),
    (b"Rar!\x1a\x07", FileKind::Rar),
    (b"\x89PNG\r\n\x1a\n", FileKind::Png),
    (b"\xff\xd8\xff", FileKind::Jpeg),
    (b"%PDF-", FileKind::Pdf),
    (b"\x89HDF\r\n\x1a\n", FileKind::Hdf5),
    (b"\x93NUMPY", FileKind::Npy),
    (b"\x7fELF", FileKind::Executable),
    (b"MZ\x90\0", FileKind::Executable),
];

/// Says what a file is, from its first bytes; `None` if nothing known fits.
///
/// Give a few kilobytes. Ask only after the bytes failed as safetensors: the length prefix of a
/// good file may look like anything.
///
/// ```
/// use safelight_format::{FileKind, sniff};
/// assert_eq!(sniff(b"<!DOCTYPE html><html>"), Some(FileKind::Html));
/// assert_eq!(sniff(b"GGUF\x03\0\0\0"), Some(FileKind::Gguf));
/// assert_eq!(sniff(b"\x08\0\0\0\0\0\0\0{}      "), None);
/// ```
pub fn sniff(bytes: &[u8]) -> Option<FileKind> {
    if bytes.get(8) == Some(&b'{') && bytes[4..8] == [0; 4] {
        return None; // broken perhaps, but a safetensors file: no other kind has a length and `{` there
    }
    if let Some((_, kind)) = MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some(*kind);
    }
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        return Some(zip_kind(bytes));
    }
    if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        return Some(FileKind::Webp);
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Some(FileKind::Tar);
    }
    if is_pickle(bytes) {
        return Some(FileKind::Pickle);
    }
    if bytes.len() >= 16 && bytes.iter().all(|&byte| byte == 0) {
        return Some(FileKind::Zeros);
    }
    text_kind(bytes)
}

/// A PyTorch zip's first member is `<name>/data.pkl`, or `version`/`byteorder` beside it.
fn zip_kind(bytes: &[u8]) -> FileKind {
    let start = &bytes[..bytes.len().min(4096)];
    let has = |needle: &[u8]| start.windows(needle.len()).any(|window| window == needle);
    if has(b"data.pkl") || has(b".data/serialization_id") || has(b"archive/") {
        FileKind::TorchZip
    } else {
        FileKind::Zip
    }
}

/// Protocols 2 to 5 start with PROTO and their number, then the opcode of a container, a frame,
/// a global or a number (old PyTorch starts with its magic number, opcode LONG1). See CPython's
/// `Lib/pickletools.py`.
fn is_pickle(bytes: &[u8]) -> bool {
    matches!(bytes, [0x80, 2..=5, opcode, ..] if b"}](c\x8a\x95JKMXq\x8c".contains(opcode))
}

/// Texts: web pages, XML, JSON, told by the first sign that is no white space.
fn text_kind(bytes: &[u8]) -> Option<FileKind> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = bytes.trim_ascii_start();
    let starts = |word: &str| {
        text.get(..word.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
    };
    if [
        "<!doctype html",
        "<html",
        "<head",
        "<body",
        "<script",
        "<!--",
    ]
    .iter()
    .any(|word| starts(word))
    {
        return Some(FileKind::Html);
    }
    if starts("<?xml") || starts("<Error>") {
        let start = &text[..text.len().min(512)];
        let html = start
            .windows(5)
            .any(|window| window.eq_ignore_ascii_case(b"<html"));
        return Some(if html { FileKind::Html } else { FileKind::Xml });
    }
    match text {
        [b'{', rest @ ..] => {
            matches!(rest.trim_ascii_start(), [b'"' | b'}', ..]).then_some(FileKind::Json)
        }
        [b'[', rest @ ..] => matches!(
            rest.trim_ascii_start(),
            [b'"' | b'{' | b'[' | b']' | b'0'..=b'9', ..]
        )
        .then_some(FileKind::Json),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], expected: impl Into<Option<FileKind>>) {
        assert_eq!(sniff(bytes), expected.into(), "{}", bytes.escape_ascii());
    }

    #[test]
    fn known_kinds() {
        check(
            b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0\0\0archive/data.pkl",
            FileKind::TorchZip,
        );
        check(b"PK\x03\x04\x14\0\0\0\x08\0readme.txt", FileKind::Zip);
        check(
            b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
            FileKind::Pickle,
        );
        check(b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94.", FileKind::Pickle);
        check(b"\n\n<!doctype HTML>\n<html>", FileKind::Html);
        check(
            b"<?xml version=\"1.0\"?><!DOCTYPE html><html>",
            FileKind::Html,
        );
        check(
            b"<?xml version=\"1.0\"?><Error><Code>AccessDenied",
            FileKind::Xml,
        );
        check(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
            FileKind::LfsPointer,
        );
        check(b"\x1f\x8b\x08\0", FileKind::Gzip);
        check(b"{\"weight_map\":{}}", FileKind::Json);
        check(b"[1]", FileKind::Json);
        check(&[0; 100], FileKind::Zeros);
    }

    #[test]
    fn what_may_be_safetensors_is_left_alone() {
        check(b"", None);
        check(b"{", None);
        check(b"\x80\x02\0\0\0\0\0\0{\"__metadata__\":{}}", None); // 640 bytes of header
        check(b"\x1f\x8b\x08\0\0\0\0\0{\"a\"", None);
        check(b"noise", None);
        check(&[0; 15], None);
    }
}
