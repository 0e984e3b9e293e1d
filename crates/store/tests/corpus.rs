//! The fuzz targets' bodies, replayed on their committed corpus and on random changes to it.

use std::fs;
use std::path::Path;

#[path = "../../../fuzz/bodies/chunked_read.rs"]
mod chunked_read;
#[path = "../../../fuzz/bodies/header.rs"]
mod header;
#[path = "../../../fuzz/bodies/roundtrip.rs"]
mod roundtrip;

/// Runs a body on every file of its corpus, and on `rounds` changed copies of each.
fn replay(target: &str, rounds: u64, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let entries =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(
        paths.len() >= 8,
        "{}: {} files",
        folder.display(),
        paths.len()
    );
    let mut seed = 1;
    for path in paths {
        let input = fs::read(&path).unwrap();
        body(&input);
        for _ in 0..rounds {
            let mut changed = input.clone();
            change(&mut changed, &mut seed);
            body(&changed);
        }
    }
}

/// One to three bytes replaced, inserted or removed, or the end cut off.
fn change(input: &mut Vec<u8>, seed: &mut u64) {
    for _ in 0..1 + next(seed) % 3 {
        let at = next(seed) as usize % (input.len() + 1);
        match next(seed) % 8 {
            0 => input.truncate(at),
            1 | 2 if at < input.len() => drop(input.remove(at)),
            3 | 4 => input.insert(at, next(seed) as u8),
            5 if at < input.len() => input[at] = b"{}[]\":,01289\\u \xff"[next(seed) as usize % 16],
            _ if at < input.len() => input[at] ^= 1 << (next(seed) % 8),
            _ => input.push(next(seed) as u8),
        }
    }
}

/// Xorshift64 (Marsaglia 2003).
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn header_corpus() {
    replay("header", 3000, header::run);
}

#[test]
fn roundtrip_corpus() {
    replay("roundtrip", 3000, roundtrip::run);
}

#[test]
fn chunked_read_corpus() {
    replay("chunked_read", 1000, chunked_read::run);
}

#[test]
fn no_bytes_at_all_are_fine_too() {
    for body in [header::run, roundtrip::run, chunked_read::run] {
        for len in 0..20 {
            body(&vec![0; len]);
            body(&vec![0xff; len]);
        }
    }
}
