//! `kill -9` at random moments: what is found then is a file from before or after a change.
//!
//! A child (this test binary again) changes one file over and over; it is killed after a random
//! time, the file is judged, and the next child goes on with it. `SAFELIGHT_KILLS` sets how many are killed
//! (default 20). The unit test `crashes` dies at every single system call instead.
#![cfg(unix)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::Folder;
use safelight_format::{Dtype, TensorView};
use safelight_store::edit::{self, EditOptions, Strategy};
use safelight_store::{Checkpoint, PageCache, SaveOptions, save, save_sharded};
use safetensors::SafeTensors;

/// The variables that tell a child what to do where.
const JOB: &str = "SAFELIGHT_TEST_KILLED_JOB";
const FOLDER: &str = "SAFELIGHT_TEST_KILLED_FOLDER";

const JOBS: [&str; 9] = [
    "save",
    "save around the cache",
    "metadata in one page",
    "metadata in place",
    "metadata by a copy",
    "patch in place",
    "patch by a copy",
    "append in place",
    "shards",
];

const TENSOR_BYTES: usize = 300_000;

/// Every byte of every tensor is `round`, and so says the metadata.
fn write(path: &Path, round: u8, page_cache: PageCache) {
    let bytes = vec![round; TENSOR_BYTES];
    let shape = [TENSOR_BYTES as u64];
    let names: Vec<String> = (0..300).map(|i| format!("layer.{i}.weight")).collect();
    let small = names.iter().map(|name| TensorView {
        name,
        dtype: Dtype::U8,
        shape: &[],
        bytes: b"s",
    });
    let big = ["a", "b"].map(|name| TensorView {
        name,
        dtype: Dtype::U8,
        shape: &shape,
        bytes: &bytes,
    });
    let tensors: Vec<TensorView<'_>> = big.into_iter().chain(small).collect();
    let metadata = BTreeMap::from([("round".to_owned(), "0".repeat(9000))]);
    let options = SaveOptions {
        reserve_header_bytes: 20_000,
        page_cache,
        ..SaveOptions::default()
    };
    if path.ends_with("model.safetensors.index.json") {
        let folder = path.parent().unwrap();
        save_sharded(folder, &tensors, None, 400_000, &options).unwrap();
    } else {
        save(path, &tensors, Some(&metadata), &options).unwrap();
    }
}

fn metadata(path: &Path, value: String, strategy: Strategy) {
    let changes = BTreeMap::from([("round".to_owned(), Some(value))]);
    let options = EditOptions {
        strategy,
        sync: false,
        ..EditOptions::default()
    };
    edit::set_metadata(path, &changes, &options).unwrap();
}

fn change(job: &str, path: &Path, round: u8) {
    let options = |strategy| EditOptions {
        strategy,
        sync: false,
        ..EditOptions::default()
    };
    let (in_place, copy) = (options(Strategy::InPlace), options(Strategy::Copy));
    let bytes = vec![round; TENSOR_BYTES];
    match job {
        "save" | "shards" => write(path, round, PageCache::Keep),
        "save around the cache" => write(path, round, PageCache::Bypass),
        "metadata in one page" => metadata(path, round.to_string().repeat(5), Strategy::Auto),
        "metadata in place" => {
            let value = (round % 10).to_string().repeat(9000 + usize::from(round));
            metadata(path, value, Strategy::InPlace);
        }
        "metadata by a copy" => {
            let value = (round % 10).to_string().repeat(9000 + usize::from(round));
            metadata(path, value, Strategy::Copy);
        }
        "patch in place" => drop(edit::patch_tensor(path, "a", &bytes, &in_place).unwrap()),
        "patch by a copy" => drop(edit::patch_tensor(path, "a", &bytes, &copy).unwrap()),
        "append in place" => {
            let name = format!("more.{round}");
            let tensor = TensorView {
                name: &name,
                dtype: Dtype::U8,
                shape: &[TENSOR_BYTES as u64],
                bytes: &bytes,
            };
            if edit::append(path, &[tensor], &in_place).is_err() {
                write(path, 0, PageCache::Keep); // no room any more, or it is there: start again
            }
        }
        other => panic!("{other}"),
    }
}

/// Whether a file is one whole: every tensor and the metadata from one round.
fn judge(job: &str, path: &Path) {
    let checkpoint = Checkpoint::open(path).unwrap_or_else(|error| panic!("{job}: {error}"));
    let mut rounds = Vec::new();
    for name in checkpoint
        .names()
        .filter(|name| !name.starts_with("layer."))
    {
        let bytes = checkpoint.read_bytes(name).unwrap();
        assert!(
            bytes.iter().all(|byte| *byte == bytes[0]),
            "{job}: {name} is mixed"
        );
        match name.strip_prefix("more.") {
            Some(round) => assert_eq!(round, bytes[0].to_string(), "{job}"),
            None => rounds.push(bytes[0]),
        }
    }
    if job.starts_with("save") || job == "shards" {
        assert_eq!(rounds[0], rounds[1], "{job}: tensors of two saves");
    }
    if let Some(text) = checkpoint.metadata().map(|metadata| &metadata["round"]) {
        let digit = &text[..1];
        let whole = job == "metadata in one page" || text.chars().all(|c| digit.starts_with(c));
        assert!(whole, "{job}: metadata is mixed");
    }
    if job != "shards" {
        let bytes = fs::read(path).unwrap();
        SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{job}: {error}"));
    }
}

/// What others see before we have mended anything: promised for all but edits in place.
fn judge_as_others(job: &str, path: &Path) {
    if job != "shards" && (!job.ends_with("in place")) {
        let bytes = fs::read(path).unwrap();
        let theirs = SafeTensors::deserialize(&bytes);
        assert!(theirs.is_ok(), "{job}: unreadable for others");
    }
}

/// Runs in the child only: changes the file until it is killed.
#[test]
fn child() {
    let (Ok(job), Some(folder)) = (std::env::var(JOB), std::env::var_os(FOLDER)) else {
        return;
    };
    let path = path_in(Path::new(&folder), &job);
    for round in (1..=200u8).cycle() {
        change(&job, &path, round);
    }
}

fn path_in(folder: &Path, job: &str) -> PathBuf {
    match job {
        "shards" => folder.join("model.safetensors.index.json"),
        _ => folder.join("model"),
    }
}

fn start(job: &str, folder: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    command.env(JOB, job).env(FOLDER, folder);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn kill_minus_nine() {
    if std::env::var_os(JOB).is_some() {
        return;
    }
    let kills = std::env::var("SAFELIGHT_KILLS").ok();
    let kills: usize = kills.map_or(20, |text| text.parse().expect("a number"));
    let (start_time, mut seed) = (Instant::now(), 88172645463325252u64);
    let mut leftovers = 0;
    for count in 0..kills {
        let job = JOBS[count % JOBS.len()];
        let folder = Folder::new();
        let path = path_in(folder.path(), job);
        write(&path, 200, PageCache::Keep);
        let mut child = start(job, folder.path());
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        std::thread::sleep(Duration::from_micros(15_000 + seed % 100_000));
        child.kill().unwrap(); // SIGKILL
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!errors.contains("panicked"), "{job}: {errors}");
        judge_as_others(job, &path);
        judge(job, &path);
        let temporary = |name: &String| name.ends_with(".tmp");
        leftovers += folder.list().iter().filter(|name| temporary(name)).count();
        assert!(
            !folder.list().iter().any(|name| name.ends_with("-undo")),
            "{job}"
        );
        change(job, &path, 201);
        judge(job, &path);
    }
    println!(
        "{kills} kills of {} jobs in {:.1} s: always the old file or the new one, {leftovers} temporary files left",
        JOBS.len(),
        start_time.elapsed().as_secs_f64()
    );
}
