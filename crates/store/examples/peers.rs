//! Our side of `tools/bench/format_peers.py`: does one thing with one file and prints the seconds it took.
//!
//! `peers load|open|verify|sha256|hash FILE`, `peers slice FILE TENSOR INDEX` or `peers save FILE OUT` (which counts the
//! saving alone).

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use safelight_format::parse_index;
use safelight_store::{
    Checkpoint, HashOptions, LoadOptions, OpenOptions, SaveOptions, hash, save, verify,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let go_on = &mut |_: u64, _: u64| ControlFlow::Continue(());
    let mut start = Instant::now();
    let seen = match arguments[..] {
        ["open", file] => Checkpoint::open(Path::new(file))?.len() as u64,
        ["load", file] => {
            let loaded = Checkpoint::open(Path::new(file))?;
            touch(&loaded.load(&LoadOptions::default())?)?
        }
        ["slice", file, tensor, index] => {
            let checkpoint = Checkpoint::open(Path::new(file))?;
            let slice = checkpoint.read_slice(tensor, &parse_index(index)?)?;
            let needed = slice.elements.len().max(1) as f64;
            println!("read/needed {:.3}", slice.read_bytes as f64 / needed);
            slice.read_bytes
        }
        ["verify", file] => {
            let verdict = verify(Path::new(file), &OpenOptions::default(), go_on)?;
            u64::from(verdict.is_intact())
        }
        ["sha256", file] => {
            let only = HashOptions {
                sha256: true,
                ..HashOptions::NONE
            };
            hash(Path::new(file), &only, go_on)?.file_bytes
        }
        ["save", file, out] => {
            let loaded = Checkpoint::open(Path::new(file))?.load(&LoadOptions::default())?;
            let views: Result<Vec<_>, _> = loaded.names().map(|name| loaded.view(name)).collect();
            start = Instant::now();
            save(Path::new(out), &views?, None, &SaveOptions::default())?
        }
        ["hash", file] => hash(Path::new(file), &HashOptions::default(), go_on)?.file_bytes,
        _ => {
            return Err(
                "usage: peers load|open|verify|sha256|hash FILE, peers slice FILE TENSOR INDEX, peers save FILE OUT"
                    .into(),
            );
        }
    };
    println!("{:.6} {seen}", start.elapsed().as_secs_f64());
    Ok(())
}

/// Looks at every page of every tensor.
fn touch(checkpoint: &Checkpoint) -> Result<u64, safelight_store::StoreError> {
    let mut sum = 0;
    for name in checkpoint.names() {
        let bytes = checkpoint.view(name)?.bytes;
        sum += bytes
            .iter()
            .step_by(4096)
            .map(|byte| u64::from(*byte))
            .sum::<u64>();
    }
    Ok(sum)
}
