//! The fuzz targets' bodies for PyTorch's files, replayed on their committed corpus and on random changes to it.

#[path = "../../../fuzz/bodies/pickle.rs"]
mod pickle;
#[path = "../../../fuzz/bodies/replay.rs"]
mod replay;

use replay::{replay, replay_nothing};

/// Bytes that matter to these parsers.
const TELLING: &[u8; 16] = b"\x80\x04().}]Rbcqh\x93\x94\xffP";

#[test]
fn pickle_corpus() {
    replay("pickle", 300, TELLING, pickle::run);
}

#[test]
fn torch_zip_corpus() {
    replay("torch_zip", 100, TELLING, pickle::run);
}

#[test]
fn no_bytes_at_all_are_fine_too() {
    replay_nothing(&[pickle::run]);
}
