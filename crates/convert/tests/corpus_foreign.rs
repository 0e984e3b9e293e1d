//! The fuzz targets' bodies for foreign formats, replayed on their committed corpus and on random changes to it.

#[path = "../../../fuzz/bodies/foreign.rs"]
mod foreign;
#[path = "../../../fuzz/bodies/gguf.rs"]
mod gguf;
#[path = "../../../fuzz/bodies/h5.rs"]
mod h5;
#[path = "../../../fuzz/bodies/msgpack.rs"]
mod msgpack;
#[path = "../../../fuzz/bodies/npz.rs"]
mod npz;
#[path = "../../../fuzz/bodies/onnx.rs"]
mod onnx;
#[path = "../../../fuzz/bodies/replay.rs"]
mod replay;

use replay::{replay, replay_nothing};

#[test]
fn gguf_corpus() {
    replay(
        "gguf",
        1000,
        b"\x00\x01\x02\x03\x04\x08\x09\x0a\x0c\x0f\x10\x1e\x20\x27\x80\xff",
        gguf::run,
    );
}

#[test]
fn npz_corpus() {
    replay("npz", 1000, b"<>|fiubcVUO148\x00\xff", npz::run);
}

#[test]
fn msgpack_corpus() {
    replay(
        "msgpack",
        1000,
        b"\x00\x01\x7f\x80\x81\x90\x93\xa0\xa5\xc0\xc1\xc4\xc7\xdc\xdf\xff",
        msgpack::run,
    );
}

#[test]
fn onnx_corpus() {
    replay(
        "onnx",
        1000,
        b"\x00\x01\x02\x04\x08\x0a\x10\x18\x22\x2a\x3a\x42\x4a\x70\x80\xff",
        onnx::run,
    );
}

#[test]
fn h5_corpus() {
    replay(
        "h5",
        1000,
        b"\x00\x01\x02\x03\x04\x05\x06\x08\x0b\x10\x11\x18\x20\x40\x80\xff",
        h5::run,
    );
}

#[test]
fn no_bytes_at_all_are_fine_too() {
    replay_nothing(&[gguf::run, npz::run, msgpack::run, onnx::run, h5::run]);
}
