//! Saving from memory beside Hugging Face's `safetensors` crate: `cargo bench -p safelight-store --bench save`.
//!
//! Both write the same tensors into the same folder, in turns; before each turn the old file is
//! deleted and the disk is given time to write what it still has to. `SAFELIGHT_BENCH_BYTES` sets
//! the size (default 512 MiB), `SAFELIGHT_BENCH_FOLDER` the place.

use std::path::Path;
use std::time::Instant;

use safelight_format::{Dtype, TensorView};
use safelight_store::{PageCache, SaveOptions, save};
use safetensors::tensor::{Dtype as TheirDtype, TensorView as TheirView};

/// Runs of each contestant; the median counts.
const ROUNDS: usize = 5;

/// Tensors of a file.
const TENSOR_COUNT: usize = 64;

fn main() {
    let total = std::env::var("SAFELIGHT_BENCH_BYTES").ok();
    let total: usize = total.map_or(512 << 20, |text| text.parse().expect("a number of bytes"));
    let rounds = std::env::var("SAFELIGHT_BENCH_ROUNDS").ok();
    let rounds: usize = rounds.map_or(ROUNDS, |text| text.parse().expect("a number"));
    let folder = std::env::var_os("SAFELIGHT_BENCH_FOLDER");
    let folder = folder.map_or_else(std::env::temp_dir, Into::into);
    let path = folder.join(format!(
        "safelight-bench-{}.safetensors",
        std::process::id()
    ));

    let tensor_bytes = total / TENSOR_COUNT / 4 * 4;
    let data: Vec<Vec<u8>> = (0..TENSOR_COUNT)
        .map(|seed| noise(seed as u64, tensor_bytes))
        .collect();
    let names: Vec<String> = (0..TENSOR_COUNT)
        .map(|i| format!("layers.{i}.weight"))
        .collect();
    let bytes = tensor_bytes * TENSOR_COUNT;

    let mut contestants: Vec<Contestant<'_>> = vec![
        (
            "huggingface",
            Vec::new(),
            Box::new(|| theirs(&path, &names, &data)),
        ),
        (
            "auto",
            Vec::new(),
            Box::new(|| ours(&path, &names, &data, PageCache::Auto)),
        ),
        (
            "keep",
            Vec::new(),
            Box::new(|| ours(&path, &names, &data, PageCache::Keep)),
        ),
    ];
    for _ in 0..rounds {
        for (_, seconds, run) in &mut contestants {
            let _ = std::fs::remove_file(&path);
            settle(&folder);
            let start = Instant::now();
            run();
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let _ = std::fs::remove_file(&path);
    let mut baseline = 0.0;
    println!(
        "save {} MB, {rounds} rounds in turns, median (best .. worst)",
        bytes / 1_000_000
    );
    for (name, mut seconds, _) in contestants {
        seconds.sort_by(f64::total_cmp);
        let rate = |seconds: f64| bytes as f64 / seconds / 1e9;
        let median = rate(seconds[rounds / 2]);
        if baseline == 0.0 {
            baseline = median;
        }
        println!(
            "save/{name}  {median:.2} GB/s ({:.2} .. {:.2})  {:.2}x",
            rate(seconds[0]),
            rate(seconds[rounds - 1]),
            median / baseline
        );
    }
}

/// A name, the seconds of its runs, and a run.
type Contestant<'a> = (&'a str, Vec<f64>, Box<dyn Fn() + 'a>);

fn ours(path: &Path, names: &[String], data: &[Vec<u8>], page_cache: PageCache) {
    let shape = [data[0].len() as u64 / 4];
    let both = names.iter().zip(data);
    let views = both.map(|(name, bytes)| TensorView {
        name,
        dtype: Dtype::F32,
        shape: &shape,
        bytes,
    });
    let views: Vec<TensorView<'_>> = views.collect();
    let options = SaveOptions {
        page_cache,
        ..SaveOptions::default()
    };
    save(path, &views, None, &options).unwrap();
}

fn theirs(path: &Path, names: &[String], data: &[Vec<u8>]) {
    let shape = vec![data[0].len() / 4];
    let both = names.iter().zip(data);
    let views = both.map(|(name, bytes)| {
        (
            name,
            TheirView::new(TheirDtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Waits until the disk has nothing left to write.
fn settle(folder: &Path) {
    let _ = std::process::Command::new("sync")
        .arg("-f")
        .arg(folder)
        .status();
    std::thread::sleep(std::time::Duration::from_millis(500));
}

/// Bytes that no disk compresses.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(0x9e3779b97f4a7c15);
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
