//! The fuzz targets' bodies, replayed on their committed corpus and on random changes to it.

#[path = "../../../fuzz/bodies/chunked_read.rs"]
mod chunked_read;
#[path = "../../../fuzz/bodies/header.rs"]
mod header;
#[path = "../../../fuzz/bodies/repair.rs"]
mod repair;
#[path = "../../../fuzz/bodies/replay.rs"]
mod replay;
#[path = "../../../fuzz/bodies/roundtrip.rs"]
mod roundtrip;

use replay::{replay, replay_nothing};

/// Bytes that matter to these parsers.
const TELLING: &[u8; 16] = b"{}[]\":,01289\\u \xff";

#[test]
fn header_corpus() {
    replay("header", 3000, TELLING, header::run);
}

#[test]
fn roundtrip_corpus() {
    replay("roundtrip", 3000, TELLING, roundtrip::run);
}

#[test]
fn chunked_read_corpus() {
    replay("chunked_read", 1000, TELLING, chunked_read::run);
}

#[test]
fn repair_corpus() {
    replay("repair", 500, TELLING, repair::run);
}

#[test]
fn no_bytes_at_all_are_fine_too() {
    replay_nothing(&[header::run, roundtrip::run, chunked_read::run, repair::run]);
}
