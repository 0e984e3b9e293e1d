//! The fuzz target `lint`, replayed on its committed corpus and on random changes to it.

#[path = "../../../fuzz/bodies/lint.rs"]
mod lint;
#[path = "../../../fuzz/bodies/replay.rs"]
mod replay;

use replay::{replay, replay_nothing};

#[test]
fn lint_corpus() {
    replay("lint", 2000, b"{}[]\":,01289\\u \xff", lint::run);
}

#[test]
fn no_bytes_at_all_are_fine_too() {
    replay_nothing(&[lint::run]);
}
