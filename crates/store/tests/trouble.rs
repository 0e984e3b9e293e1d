//! Full disks, folders that may not be written to, files that change or vanish under a writer.
#![cfg(target_os = "linux")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Folder;
use safelight_format::{Dtype, TensorSpec, TensorView};
use safelight_store::edit::{self, EditOptions, How, Strategy};
use safelight_store::{Checkpoint, PageCache, SaveOptions, StoreError, Writer, save, save_sharded};

/// Tells a test that it runs in a prepared process, and where.
const INSIDE: &str = "SAFELIGHT_TEST_INSIDE";

const BIG_BYTES: usize = 3_000_000;

fn tensor<'a>(name: &'a str, bytes: &'a [u8], shape: &'a [u64]) -> TensorView<'a> {
    let dtype = Dtype::U8;
    TensorView {
        name,
        dtype,
        shape,
        bytes,
    }
}

fn small_file(path: &Path) -> Vec<u8> {
    let options = SaveOptions {
        reserve_header_bytes: 500,
        ..SaveOptions::default()
    };
    save(path, &[tensor("a", b"aaaa", &[4])], None, &options).unwrap();
    fs::read(path).unwrap()
}

/// Everything that writes, with more than there is room for; each has to fail and leave `path`.
fn everything_fails(folder: &Path) {
    let path = folder.join("model");
    let before = fs::read(&path).unwrap();
    let big = vec![7u8; BIG_BYTES];
    let shape = [BIG_BYTES as u64];
    let view = tensor("big", &big, &shape);
    let edits = [Strategy::Auto, Strategy::InPlace].map(|strategy| EditOptions {
        strategy,
        ..EditOptions::default()
    });
    let mut failures: Vec<(&str, StoreError)> = Vec::new();
    for page_cache in [PageCache::Keep, PageCache::Bypass] {
        let options = SaveOptions {
            page_cache,
            ..SaveOptions::default()
        };
        failures.push(("save", save(&path, &[view], None, &options).unwrap_err()));
    }
    let shards = save_sharded(
        folder,
        &[view, tensor("b", b"b", &[1])],
        None,
        1,
        &SaveOptions::default(),
    );
    failures.push(("shards", shards.unwrap_err()));
    for options in &edits {
        failures.push(("append", edit::append(&path, &[view], options).unwrap_err()));
    }
    let spec = TensorSpec {
        name: "big".into(),
        dtype: Dtype::U8,
        shape: shape.to_vec(),
    };
    let written =
        Writer::create(&path, &[spec], None, &SaveOptions::default()).and_then(|writer| {
            writer.write_at(0, 0, &big)?;
            writer.finish()
        });
    failures.push(("writer", written.unwrap_err()));
    let value = Some("v".repeat(BIG_BYTES));
    let changes = BTreeMap::from([("key".to_owned(), value)]);
    let edited = edit::set_metadata(&path, &changes, &edits[0]);
    failures.push(("metadata", edited.unwrap_err()));
    for (what, error) in failures {
        let StoreError::Io { error, .. } = error else {
            panic!("{what}: {error}");
        };
        let kind = error.kind();
        let expected = [
            std::io::ErrorKind::StorageFull,
            std::io::ErrorKind::FileTooLarge,
        ];
        assert!(expected.contains(&kind), "{what}: {error}");
        assert!(fs::read(&path).unwrap() == before, "{what}");
        let names = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["model"], "{what}");
    }
    assert_eq!(
        Checkpoint::open(&path).unwrap().read_bytes("a").unwrap(),
        b"aaaa"
    );
    println!("everything failed as it should");
}

/// Runs test `name` of this file again, inside a shell script (`"$0"` is the test binary).
fn run_inside(script: &str, name: &str, folder: &Path) -> Result<String, String> {
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, folder);
    let output = command.output().map_err(|error| error.to_string())?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if output.status.success() {
        Ok(text)
    } else {
        Err(text)
    }
}

#[test]
fn a_limit_on_file_sizes() {
    if let Some(folder) = std::env::var_os(INSIDE) {
        return everything_fails(Path::new(&folder));
    }
    let folder = Folder::new();
    small_file(&folder.join("model"));
    let script = r#"trap '' XFSZ; ulimit -f 2000; exec "$0" "$@""#;
    let text = run_inside(script, "a_limit_on_file_sizes", folder.path()).unwrap();
    assert!(text.contains("everything failed"), "{text}");
}

#[test]
fn a_full_disk_of_two_megabytes() {
    if let Some(folder) = std::env::var_os(INSIDE) {
        small_file(&Path::new(&folder).join("model"));
        return everything_fails(Path::new(&folder));
    }
    let folder = Folder::new();
    let script = r#"unshare -rm sh -c 'mount -t tmpfs -o size=2m none "$SAFELIGHT_TEST_INSIDE" || exit 77; exec "$0" "$@"' "$0" "$@"; exit $?"#;
    match run_inside(script, "a_full_disk_of_two_megabytes", folder.path()) {
        Ok(text) => assert!(text.contains("everything failed"), "{text}"),
        Err(text) if !text.contains("panicked") => {
            println!("SKIPPED: no tmpfs can be mounted here: {text}")
        }
        Err(text) => panic!("{text}"),
    }
}

#[test]
fn a_folder_that_may_only_be_read() {
    if let Some(folder) = std::env::var_os(INSIDE) {
        let path = PathBuf::from(&folder).join("model");
        let before = fs::read(&path).unwrap();
        let view = tensor("a", b"bbbb", &[4]);
        let error = save(&path, &[view], None, &SaveOptions::default()).unwrap_err();
        assert!(
            error.to_string().contains("Read-only file system"),
            "{error}"
        );
        for strategy in [Strategy::Auto, Strategy::InPlace, Strategy::Copy] {
            let options = EditOptions {
                strategy,
                ..EditOptions::default()
            };
            let error = edit::patch_tensor(&path, "a", b"bbbb", &options).unwrap_err();
            assert!(
                error.to_string().contains("Read-only file system"),
                "{error}"
            );
        }
        assert_eq!(fs::read(&path).unwrap(), before);
        println!("everything failed as it should");
        return;
    }
    let folder = Folder::new();
    small_file(&folder.join("model"));
    let script = r#"unshare -rm sh -c 'mount --bind "$SAFELIGHT_TEST_INSIDE" "$SAFELIGHT_TEST_INSIDE" && mount -o remount,bind,ro "$SAFELIGHT_TEST_INSIDE" || exit 77; exec "$0" "$@"' "$0" "$@"; exit $?"#;
    match run_inside(script, "a_folder_that_may_only_be_read", folder.path()) {
        Ok(text) => assert!(text.contains("everything failed"), "{text}"),
        Err(text) if !text.contains("panicked") => println!("SKIPPED: no bind mounts here: {text}"),
        Err(text) => panic!("{text}"),
    }
    assert_eq!(folder.list(), ["model"]);
}

/// How many bytes a file system has left, when all is written.
fn free_bytes(folder: &Path) -> u64 {
    let folder = fs::File::open(folder).unwrap();
    rustix::fs::syncfs(&folder).unwrap();
    let left = rustix::fs::fstatvfs(&folder).unwrap();
    left.f_bfree * left.f_frsize
}

/// Edits by copies, where files can share blocks: 48 MB are not copied, the old file stays what it was, the new one is right.
fn copies_share_blocks(folder: &Path) {
    const BYTES: u64 = 48_000_000;
    let path = folder.join("model");
    let bytes: Vec<u8> = (0..BYTES).map(|at| ((at * 31) >> 5) as u8).collect();
    let tensors = [tensor("a", &bytes, &[BYTES]), tensor("b", b"bbbb", &[4])];
    save(&path, &tensors, None, &SaveOptions::default()).unwrap();
    let before = fs::read(&path).unwrap();
    let copy = EditOptions {
        strategy: Strategy::Copy,
        ..EditOptions::default()
    };
    let mut step = 0;
    let mut check = |what: &str, how: How, edit: &dyn Fn() -> edit::Edited| {
        // The old file stays under another name, so that what it shares is not given back.
        step += 1;
        let old = folder.join(format!("old {step}"));
        fs::hard_link(&path, &old).unwrap();
        let (free, content) = (free_bytes(folder), fs::read(&path).unwrap());
        assert_eq!(edit().how, how, "{what}");
        let taken = free.saturating_sub(free_bytes(folder));
        assert!(taken < BYTES / 8, "{what} took {taken} bytes");
        assert!(
            fs::read(&old).unwrap() == content,
            "{what} changed the old file"
        );
    };
    let patch = || edit::patch_tensor(&path, "b", b"BBBB", &copy).unwrap();
    check("a patch", How::Cloned, &patch);
    let long = BTreeMap::from([("k".to_owned(), Some("v".repeat(20_000)))]);
    let longer = || edit::set_metadata(&path, &long, &copy).unwrap();
    check("a longer header", How::Copied, &longer);
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(checkpoint.read_bytes("a").unwrap() == bytes);
    assert_eq!(checkpoint.read_bytes("b").unwrap(), b"BBBB");
    assert_eq!(checkpoint.metadata().unwrap()["k"].len(), 20_000);
    assert!(fs::read(folder.join("old 1")).unwrap() == before);
    println!("blocks were shared");
}

/// Makes a file system in a file, mounts it where nobody else sees it, and runs [`copies_share_blocks`] there.
fn on_file_system(mkfs: &str, name: &str) {
    if let Some(folder) = std::env::var_os(INSIDE) {
        return copies_share_blocks(Path::new(&folder));
    }
    let folder = Folder::new();
    fs::create_dir(folder.join("mounted")).unwrap();
    let script = format!(
        r#"unshare -m sh -c 'image="$SAFELIGHT_TEST_INSIDE.image"; truncate -s 400M "$image" && {mkfs} "$image" >&2 && mount -o loop "$image" "$SAFELIGHT_TEST_INSIDE" || exit 77; exec "$0" "$@"' "$0" "$@"; exit $?"#
    );
    match run_inside(&script, name, &folder.join("mounted")) {
        Ok(text) => assert!(text.contains("blocks were shared"), "{text}"),
        Err(text) if !text.contains("panicked") => {
            println!("SKIPPED: {mkfs} and a loop mount, which need root, don't work here: {text}");
        }
        Err(text) => panic!("{text}"),
    }
}

#[test]
fn copies_on_btrfs_share_blocks() {
    on_file_system("mkfs.btrfs -q", "copies_on_btrfs_share_blocks");
}

#[test]
fn copies_on_xfs_share_blocks() {
    on_file_system("mkfs.xfs -q -m reflink=1", "copies_on_xfs_share_blocks");
}

#[test]
fn a_target_that_vanishes_or_changes_while_it_is_being_replaced() {
    let folder = Folder::new();
    let path = folder.join("model");
    let spec = TensorSpec {
        name: "a".into(),
        dtype: Dtype::U8,
        shape: vec![4],
    };
    for what in ["vanishes", "is rewritten", "appears"] {
        if what != "appears" {
            small_file(&path);
        }
        let writer = Writer::create(
            &path,
            std::slice::from_ref(&spec),
            None,
            &SaveOptions::default(),
        );
        let writer = writer.unwrap();
        writer.write_at(0, 0, b"next").unwrap();
        match what {
            "vanishes" => fs::remove_file(&path).unwrap(),
            _ => fs::write(&path, "something else").unwrap(),
        }
        writer.finish().unwrap();
        assert_eq!(
            Checkpoint::open(&path).unwrap().read_bytes("a").unwrap(),
            b"next",
            "{what}"
        );
        assert_eq!(folder.list(), ["model"], "{what}");
        fs::remove_file(&path).unwrap();
    }
    let inner = folder.join("inner");
    fs::create_dir(&inner).unwrap();
    let path = inner.join("model");
    let writer = Writer::create(&path, &[spec], None, &SaveOptions::default()).unwrap();
    writer.write_at(0, 0, b"next").unwrap();
    fs::remove_dir_all(&inner).unwrap();
    let error = writer.finish().unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert!(folder.list().is_empty());
}

#[test]
fn readers_of_the_old_file_keep_it() {
    let folder = Folder::new();
    let path = folder.join("model");
    small_file(&path);
    let options = safelight_store::OpenOptions::default();
    // SAFETY is the test's business: saving renames, it writes to no file that is mapped.
    let opened = Checkpoint::open_with(&path, &options).unwrap();
    save(
        &path,
        &[tensor("a", b"bbbb", &[4])],
        None,
        &SaveOptions::default(),
    )
    .unwrap();
    assert_eq!(opened.read_bytes("a").unwrap(), b"aaaa");
    assert_eq!(
        Checkpoint::open(&path).unwrap().read_bytes("a").unwrap(),
        b"bbbb"
    );
    let copy = EditOptions {
        strategy: Strategy::Copy,
        ..EditOptions::default()
    };
    let opened = Checkpoint::open_with(&path, &options).unwrap();
    edit::patch_tensor(&path, "a", b"cccc", &copy).unwrap();
    assert_eq!(opened.read_bytes("a").unwrap(), b"bbbb");
}

#[test]
fn an_undo_record_of_another_file_is_not_applied() {
    let folder = Folder::new();
    let path = folder.join("model");
    let before = small_file(&path);
    let record = folder.join(".model.safelight-undo");
    for bytes in [&b""[..], b"something else", b"safelight undo 1", &[0; 200]] {
        fs::write(&record, bytes).unwrap();
        let error = Checkpoint::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Interrupted { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }
    let numbers = [1u64, 2, before.len() as u64, 1, 0, 4]
        .map(u64::to_le_bytes)
        .concat();
    let whole = [
        b"safelight undo 1",
        &numbers[..],
        b"!!!!",
        b"safelight done 1",
    ]
    .concat();
    fs::write(&record, whole).unwrap();
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(error.contains("made for another file"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
    // A save replaces the whole file, whatever state it was in.
    small_file(&path);
    assert_eq!(folder.list(), ["model"]);
    assert!(!edit::recover(&path).unwrap());
}

#[test]
fn two_editors_take_turns() {
    let folder = Folder::new();
    let path = folder.join("model");
    small_file(&path);
    std::thread::scope(|scope| {
        for editor in 0..4 {
            let path = &path;
            scope.spawn(move || {
                for round in 0..10 {
                    let change = (format!("{editor}.{round}"), Some("v".repeat(50)));
                    let options = EditOptions {
                        sync: false,
                        ..EditOptions::default()
                    };
                    edit::set_metadata(path, &BTreeMap::from([change]), &options).unwrap();
                }
            });
        }
    });
    assert_eq!(
        Checkpoint::open(&path).unwrap().metadata().unwrap().len(),
        40
    );
    assert_eq!(folder.list(), ["model"]);
}
