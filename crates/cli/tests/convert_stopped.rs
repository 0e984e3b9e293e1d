//! `convert` that is interrupted or runs out of room: the target is what it was, and nothing is left beside it.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]

mod common;

use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Place, Ran};
use safelight_format::{Dtype, TensorView};
use safelight_store::{SaveOptions, save};

/// A source of so many bytes, and an old target.
fn prepare(place: &Place, byte_count: u64) {
    let bytes = vec![1; byte_count as usize];
    let view = TensorView {
        name: "a",
        dtype: Dtype::F32,
        shape: &[2, byte_count / 8],
        bytes: &bytes,
    };
    let path = place.path("from.safetensors");
    save(&path, &[view], None, &SaveOptions::default()).unwrap();
    place.write("to.safetensors", b"old");
    place.write("to.npz", b"old");
}

fn check_nothing_changed(place: &Place, said: &str) {
    assert_eq!(
        place.everything(),
        ["from.safetensors", "to.npz", "to.safetensors"],
        "{said}"
    );
    for name in ["to.npz", "to.safetensors"] {
        assert_eq!(std::fs::read(place.path(name)).unwrap(), b"old", "{said}");
    }
}

#[test]
fn ctrl_c_leaves_the_old_file() {
    let place = Place::new();
    prepare(&place, 64_000_000);
    for arguments in [
        &[
            "convert",
            "from.safetensors",
            "to.safetensors",
            "--dtype",
            "f8_e4m3",
            "--force",
        ][..],
        &[
            "convert",
            "from.safetensors",
            "to.npz",
            "--deflate",
            "--force",
        ],
    ] {
        let interrupted = [200, 130, 90, 60, 40, 25, 15, 8]
            .into_iter()
            .any(|delay_ms| {
                let mut child = place
                    .command(arguments)
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                std::thread::sleep(Duration::from_millis(delay_ms));
                let id = child.id().to_string();
                let is_running = child.try_wait().unwrap().is_none();
                if is_running {
                    let kill = Command::new("kill")
                        .args(["-INT", &id])
                        .stderr(Stdio::null())
                        .status();
                    kill.unwrap();
                }
                let ran = Ran::of(child.wait_with_output().unwrap());
                if !is_running || ran.code == Some(0) {
                    place.write("to.safetensors", b"old"); // it was done first
                    place.write("to.npz", b"old");
                    return false;
                }
                if ran.code.is_none() {
                    check_nothing_changed(&place, "killed before it listened");
                    return false;
                }
                assert_eq!(ran.code, Some(130), "{}", ran.stderr);
                assert!(ran.stderr.contains("interrupted"), "{}", ran.stderr);
                check_nothing_changed(&place, &ran.stderr);
                true
            });
        assert!(
            interrupted,
            "{arguments:?} was always faster than the signal"
        );
    }
}

#[test]
fn no_room_leaves_the_old_file() {
    let place = Place::new();
    prepare(&place, 8_000_000);
    // As a full disk: the system refuses bytes behind the first megabyte or two.
    let limited = |script: &str, target: &str| {
        let safelight = env!("CARGO_BIN_EXE_safelight");
        let mut command = Command::new("sh");
        command.args([
            "-c",
            script,
            safelight,
            "convert",
            "--force",
            "from.safetensors",
        ]);
        let command = command.arg(target).current_dir(place.path("."));
        Ran::of(command.output().unwrap())
    };
    for target in ["to.safetensors", "to.npz"] {
        let ran = limited("trap '' XFSZ; ulimit -f 2000; exec \"$0\" \"$@\"", target);
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        assert!(ran.stderr.contains(target), "{}", ran.stderr);
        assert!(ran.stderr.contains("large"), "{}", ran.stderr);
        check_nothing_changed(&place, &ran.stderr);
        // Without the trap too: the program outlives the signal.
        let ran = limited("ulimit -f 2000; exec \"$0\" \"$@\"", target);
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        check_nothing_changed(&place, &ran.stderr);
    }
}

/// A source of eight tensors of a megabyte each.
fn prepare_many(place: &Place) {
    let bytes = vec![1; 1_000_000];
    let names: Vec<String> = (0..8).map(|i| format!("t{i}")).collect();
    let view = |name| TensorView {
        name,
        dtype: Dtype::F32,
        shape: &[2, 125_000],
        bytes: &bytes,
    };
    let views: Vec<TensorView<'_>> = names.iter().map(|name| view(name.as_str())).collect();
    let path = place.path("from.safetensors");
    save(&path, &views, None, &SaveOptions::default()).unwrap();
}

const SHARDS: [&str; 5] = [
    "convert",
    "from.safetensors",
    "new/shards",
    "--shard-size",
    "1MB",
];

#[test]
fn shards_that_fail_leave_no_folder() {
    let place = Place::new();
    prepare_many(&place);
    let mut command = Command::new("sh");
    let script = "ulimit -f 1000; exec \"$0\" \"$@\"";
    command.args(["-c", script, env!("CARGO_BIN_EXE_safelight")]);
    let command = command.args(SHARDS).current_dir(place.path("."));
    let ran = Ran::of(command.output().unwrap());
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert_eq!(place.everything(), ["from.safetensors"]);
}

/// Whenever it is killed: the folder has all shards, or nothing that would be taken for a model.
#[test]
fn shards_of_a_killed_conversion_are_no_model() {
    let place = Place::new();
    prepare_many(&place);
    let mut killed_midway = 0;
    for delay_ms in [3, 5, 7, 9, 11, 13, 16, 20, 25, 30, 40, 60] {
        let mut child = place
            .command(&SHARDS)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        child.kill().unwrap();
        child.wait().unwrap();
        if !place.path("new/shards").exists() {
            continue;
        }
        let listed = place.run(&["ls", "new/shards", "--json"]);
        if listed.code == Some(0) {
            assert_eq!(listed.json()["tensor_count"].as_u64(), Some(8));
        } else {
            assert_eq!(listed.code, Some(3), "{}", listed.stderr);
            killed_midway += 1;
        }
        std::fs::remove_dir_all(place.path("new")).unwrap();
    }
    println!("killed midway {killed_midway} times");
}
