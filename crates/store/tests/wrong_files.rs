//! What people really have under a `.safetensors` name, and the one message each of them gets.

mod common;

use common::{Folder, raw_file};
use safelight_store::Checkpoint;

/// Opened as a file and as a buffer, it is refused with this message.
#[track_caller]
fn refused(bytes: &[u8], message: &str) {
    let folder = Folder::new();
    let path = folder.write("model.safetensors", bytes);
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert_eq!(error, format!("{}: {message}", path.display()));
    let error = Checkpoint::from_bytes("model", bytes.to_vec())
        .unwrap_err()
        .to_string();
    assert_eq!(error, format!("model: {message}"));
}

/// `head`, then a megabyte of something.
fn large(head: &[u8]) -> Vec<u8> {
    let mut bytes = head.to_vec();
    bytes.resize(1 << 20, 0xa7);
    bytes
}

#[test]
fn empty() {
    refused(b"", "the file is empty; download or copy it again");
    refused(
        b"\x10\0\0\0\0\0",
        "the file has 6 bytes, a safetensors file at least 10; download or copy it again",
    );
}

#[test]
fn truncated() {
    let json = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},"c":{"dtype":"U8","shape":[4],"data_offsets":[16,20]}}"#;
    let whole = raw_file(json, &[0; 20]);
    let (len, start) = (whole.len(), whole.len() - 20);
    assert!(Checkpoint::from_bytes("whole", whole.clone()).is_ok());
    for (cut, intact) in [(1, 2), (4, 2), (5, 1), (12, 1), (13, 0), (20, 0)] {
        refused(
            &whole[..len - cut],
            &format!(
                "the file is cut short: its header describes {len} bytes, there are {} ({intact} of 3 tensors are \
                 complete); download or copy it again",
                len - cut
            ),
        );
    }
    refused(
        &whole[..start - 1],
        &format!(
            "the first eight bytes ask for a header of {} bytes, the whole file has {}: cut short, or not a \
             safetensors file; download or copy it again",
            json.len(),
            start - 1
        ),
    );
}

#[test]
fn pytorch_checkpoints() {
    let zip = "not a safetensors file but a PyTorch checkpoint (a zip archive with a pickle inside); renaming \
               is not enough, `safelight convert FILE OUT.safetensors` reads it";
    refused(&large(b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0\x12\0archive/data.pklFB"), zip);
    refused(&large(b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x16\0\x12\0v1-5-pruned/data.pklFB"), zip);
    refused(
        &large(b"PK\x03\x04\x14\0\0\0\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x09\0\0\0README.md"),
        "not a safetensors file but a zip archive; unpack it and use the .safetensors file inside (one of PyTorch, NumPy \
         or Keras: `safelight convert FILE OUT.safetensors` reads it)",
    );
    let pickle = "not a safetensors file but a Python pickle (an old PyTorch checkpoint); renaming is not enough, \
                  `safelight convert FILE OUT.safetensors` reads it";
    refused(
        &large(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."),
        pickle,
    );
    refused(&large(b"\x80\x02}q\0(X\x06\0\0\0weightq\x01"), pickle);
    refused(&large(b"\x80\x04\x95\x1a\0\0\0\0\0\0\0}\x94"), pickle);
}

#[test]
fn downloads_gone_wrong() {
    let html = "not a safetensors file but a web page: the download gave a login or error page instead of the model; \
                download it again, logged in if the site asks for that";
    refused(
        b"<!DOCTYPE html>\n<html lang=\"en\"><head><title>Sign in</title></head></html>",
        html,
    );
    refused(b"\n\n  <HTML><BODY>404</BODY></HTML>", html);
    refused(
        b"<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>AccessDenied</Code></Error>",
        "not a safetensors file but an XML text, probably a server's error answer; download it again",
    );
    refused(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa\nsize 4265146304\n",
        "not a safetensors file but a Git LFS pointer: the repository was cloned without its large files; run `git \
         lfs pull`",
    );
    refused(
        &vec![0; 1 << 20],
        "not a safetensors file but a run of zero bytes: the download reserved its space and never came; download it \
         again",
    );
    refused(
        b"{\"error\":\"You must be logged in\"}",
        "not a safetensors file but a server's answer that access is refused; log in (with a token that may read the \
         repository), accept the model's terms on its page if it has any, and download it again",
    );
    refused(
        b"Entry not found",
        "not a safetensors file but a server's answer that it has no such file; check the address (owner, repository, \
         revision and name) and download it again",
    );
    refused(
        b"{\"a\": 1}",
        "not a safetensors file but a JSON text, such as a config or a server's error answer; the name of a shard index \
         must end in `.safetensors.index.json`",
    );
}

#[test]
fn other_formats() {
    refused(
        &large(b"GGUF\x03\0\0\0\x23\x01\0\0\0\0\0\0"),
        "not a safetensors file but a GGUF/GGML model; `safelight convert FILE OUT.safetensors` reads it (GGUF, not its \
         predecessors)",
    );
    refused(
        &large(b"\x1f\x8b\x08\x08model"),
        "not a safetensors file but a gzip-compressed file; unpack it with `gunzip`",
    );
    refused(
        &large(b"7z\xbc\xaf\x27\x1c\0\x04"),
        "not a safetensors file but a 7-Zip archive; unpack it and use the .safetensors file inside",
    );
    refused(
        &large(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
        "not a safetensors file but a PNG picture",
    );
}

#[test]
fn noise() {
    refused(
        &large(b"\xa7\xa7"),
        "the first eight bytes ask for a header of 12080808863958804391 bytes, the limit is 100000000: probably not a \
         safetensors file",
    );
}
