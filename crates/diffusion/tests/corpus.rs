//! The fuzz targets' bodies, replayed on their committed corpus and on random changes to it.

#[path = "../../../fuzz/bodies/prompt.rs"]
mod prompt;
#[path = "../../../fuzz/bodies/replay.rs"]
mod replay;
#[path = "../../../fuzz/bodies/tokenizer.rs"]
mod tokenizer;

use replay::{replay, replay_nothing};

/// Bytes that matter to these parsers.
const TELLING: &[u8; 16] = b"()[]:|\\\"', \n1.<>";

#[test]
fn tokenizer_corpus() {
    replay("tokenizer", 1000, TELLING, tokenizer::run);
}

#[test]
fn prompt_corpus() {
    replay("prompt", 1000, TELLING, prompt::run);
}

#[test]
fn no_bytes_at_all_are_fine_too() {
    replay_nothing(&[tokenizer::run, prompt::run]);
}
