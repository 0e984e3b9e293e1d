//! Replays a fuzz target's body on its committed corpus and on random changes to it, for `cargo test`.

use std::fs;
use std::path::Path;

/// Runs a body on every file of its corpus, and on `rounds` changed copies of each; `telling` are bytes that matter to it.
pub(crate) fn replay(target: &str, rounds: u64, telling: &[u8; 16], body: fn(&[u8])) {
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
            change(&mut changed, telling, &mut seed);
            body(&changed);
        }
    }
}

/// One to three bytes replaced, inserted or removed, or the end cut off.
fn change(input: &mut Vec<u8>, telling: &[u8; 16], seed: &mut u64) {
    for _ in 0..1 + next(seed) % 3 {
        let at = next(seed) as usize % (input.len() + 1);
        match next(seed) % 8 {
            0 => input.truncate(at),
            1 | 2 if at < input.len() => drop(input.remove(at)),
            3 | 4 => input.insert(at, next(seed) as u8),
            5 if at < input.len() => input[at] = telling[next(seed) as usize % 16],
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

/// Runs bodies on nothing, and on short runs of the same byte.
pub(crate) fn replay_nothing(bodies: &[fn(&[u8])]) {
    for body in bodies {
        for length in 0..20 {
            body(&vec![0; length]);
            body(&vec![0xff; length]);
        }
    }
}
