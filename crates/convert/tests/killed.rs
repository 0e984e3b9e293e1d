//! `kill -9` in the middle of a conversion: the target is what it was, or converted as a whole.
//!
//! `SAFELIGHT_KILLS` sets how many children are killed (default 6).
#![cfg(unix)]

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use safelight_convert::{Limits, WriteOptions, open, write_safetensors};
use safelight_format::{Dtype, TensorView};
use safelight_store::{Checkpoint, SaveOptions, save};

/// Tells a child where to convert.
const FOLDER: &str = "SAFELIGHT_TEST_CONVERT_FOLDER";

const TENSOR_BYTES: u64 = 3_000_000;

/// A source in which every byte is `fill`.
fn source(path: &Path, fill: u8) {
    let bytes = vec![fill; TENSOR_BYTES as usize];
    let tensors = ["a", "b"].map(|name| TensorView {
        name,
        dtype: Dtype::U8,
        shape: &[TENSOR_BYTES],
        bytes: &bytes,
    });
    save(path, &tensors, None, &SaveOptions::default()).unwrap();
}

fn convert(folder: &Path, from: &str) {
    let source = open(&folder.join(from), &Limits::default()).unwrap();
    let target = folder.join("target.safetensors");
    let progress = &mut |_, _| ControlFlow::Continue(());
    write_safetensors(&*source, &target, &WriteOptions::default(), progress).unwrap();
}

/// Runs in the child only: converts until it is killed.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    loop {
        convert(Path::new(&folder), "one.safetensors");
        convert(Path::new(&folder), "two.safetensors");
    }
}

#[test]
fn kill_minus_nine() {
    if std::env::var_os(FOLDER).is_some() {
        return;
    }
    let kills = std::env::var("SAFELIGHT_KILLS").ok();
    let kills: u64 = kills.map_or(6, |text| text.parse().expect("a number"));
    let name = format!("killed-{}", std::process::id());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).unwrap();
    source(&folder.join("one.safetensors"), 1);
    source(&folder.join("two.safetensors"), 2);
    convert(&folder, "one.safetensors");
    for count in 0..kills {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--nocapture"]);
        command
            .env(FOLDER, &folder)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_micros(15_000 + count * 7_919 % 60_000));
        child.kill().unwrap();
        let errors = child.wait_with_output().unwrap().stderr;
        let errors = String::from_utf8_lossy(&errors);
        assert!(!errors.contains("panicked"), "{errors}");
        let checkpoint = Checkpoint::open(&folder.join("target.safetensors")).unwrap();
        let all = ["a", "b"]
            .map(|name| checkpoint.read_bytes(name).unwrap())
            .concat();
        assert!(
            all.iter().all(|byte| *byte == all[0]),
            "two conversions are mixed"
        );
    }
    let left = fs::read_dir(&folder).unwrap().count();
    println!(
        "{kills} kills: old or new each time, {} files left over",
        left - 3
    );
    fs::remove_dir_all(&folder).unwrap();
}
