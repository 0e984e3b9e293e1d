//! Dying at every system call of every way to change a file: what is found then is the old file or
//! the new one.
//!
//! Each case runs in a child process (this test binary again) that aborts at its n-th system call
//! or in the middle of its n-th write, for n = 0, 1, 2, … until the change succeeds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use safelight_format::{Dtype, Metadata, TensorView};
use safetensors::SafeTensors;

use crate::edit::{self, EditOptions, Strategy};
use crate::sys::faults::{DIE_AT, DIE_BELOW};
use crate::{Checkpoint, PageCache, SaveOptions, Writer, save, save_sharded};

/// The variable that names the case a child runs.
const CASE: &str = "SAFELIGHT_TEST_CASE";

/// More calls than any case makes.
const CALLS_MAX: usize = 400;

/// A way to change `model`, and whether foreign readers are promised old or new as well.
struct Case {
    name: &'static str,
    for_all_readers: bool,
    change: fn(&Path),
}

impl Case {
    fn is_sharded(&self) -> bool {
        self.name.contains("shards")
    }

    /// What is opened afterwards: the file, or the folder.
    fn opened(&self, path: &Path) -> PathBuf {
        match self.is_sharded() {
            true => path.parent().unwrap().to_owned(),
            false => path.to_owned(),
        }
    }
}

const CASES: [Case; 15] = [
    Case {
        name: "save over",
        for_all_readers: true,
        change: |path| save_new(path, PageCache::Keep),
    },
    Case {
        name: "save over, around the cache",
        for_all_readers: true,
        change: |path| save_new(path, PageCache::Bypass),
    },
    Case {
        name: "writer",
        for_all_readers: true,
        change: |path| {
            let view = big("big", 2);
            let writer = Writer::create(path, &[spec(&view)], None, &synced()).unwrap();
            view.bytes
                .chunks(9999)
                .enumerate()
                .rev()
                .for_each(|(position, piece)| {
                    writer.write_at(0, position as u64 * 9999, piece).unwrap();
                });
            writer.finish().unwrap();
        },
    },
    Case {
        name: "metadata in one page",
        for_all_readers: true,
        change: |path| set(path, Strategy::Auto, true, "2"),
    },
    Case {
        name: "metadata in one page, not synced",
        for_all_readers: true,
        change: |path| set(path, Strategy::Auto, false, "2"),
    },
    Case {
        name: "metadata in place",
        for_all_readers: false,
        change: |path| set(path, Strategy::InPlace, true, &"2".repeat(9000)),
    },
    Case {
        name: "metadata in several pages",
        for_all_readers: false,
        change: |path| set(path, Strategy::Auto, true, &"2".repeat(9000)),
    },
    Case {
        name: "metadata by a copy",
        for_all_readers: true,
        change: |path| set(path, Strategy::Auto, true, &"2".repeat(30_000)),
    },
    Case {
        name: "patch in place",
        for_all_readers: false,
        change: |path| patch(path, Strategy::InPlace),
    },
    Case {
        name: "patch by a copy",
        for_all_readers: true,
        change: |path| patch(path, Strategy::Auto),
    },
    Case {
        name: "append in place",
        for_all_readers: false,
        change: |path| append(path, Strategy::InPlace),
    },
    Case {
        name: "append by a copy",
        for_all_readers: true,
        change: |path| append(path, Strategy::Auto),
    },
    Case {
        name: "shards over shards",
        for_all_readers: true,
        change: |path| sharded(path, 2, 13_000),
    },
    Case {
        name: "one file over shards",
        for_all_readers: true,
        change: |path| sharded(path, 2, 1 << 30),
    },
    Case {
        name: "drop",
        for_all_readers: true,
        change: |path| {
            let names = BTreeSet::from(["big".to_owned()]);
            edit::drop_tensors(path, &names, &EditOptions::default()).unwrap();
        },
    },
];

/// Shards in a folder that had nothing: it has them all, or is refused.
const INTO_NOTHING: Case = Case {
    name: "shards into nothing",
    for_all_readers: false,
    change: |path| sharded(path, 2, 13_000),
};

/// A tensor of three pages and a bit, all of one byte.
fn big(name: &'static str, byte: u8) -> TensorView<'static> {
    static BYTES: [[u8; 13_000]; 3] = [[0; 13_000], [1; 13_000], [2; 13_000]];
    TensorView {
        name,
        dtype: Dtype::U8,
        shape: &[13_000],
        bytes: &BYTES[usize::from(byte)],
    }
}

fn spec(view: &TensorView<'_>) -> safelight_format::TensorSpec {
    safelight_format::TensorSpec {
        name: view.name.to_owned(),
        dtype: view.dtype,
        shape: view.shape.to_vec(),
    }
}

fn synced() -> SaveOptions {
    SaveOptions {
        sync: true,
        ..SaveOptions::default()
    }
}

fn save_new(path: &Path, page_cache: PageCache) {
    let options = SaveOptions {
        page_cache,
        ..synced()
    };
    save(path, &[big("big", 2)], None, &options).unwrap();
}

fn options(strategy: Strategy, sync: bool) -> EditOptions {
    EditOptions {
        strategy,
        sync,
        ..EditOptions::default()
    }
}

fn set(path: &Path, strategy: Strategy, sync: bool, value: &str) {
    let changes = BTreeMap::from([("key".to_owned(), Some(value.to_owned()))]);
    edit::set_metadata(path, &changes, &options(strategy, sync)).unwrap();
}

fn patch(path: &Path, strategy: Strategy) {
    let bytes = big("big", 2).bytes;
    edit::patch_tensor(path, "big", bytes, &options(strategy, true)).unwrap();
}

fn append(path: &Path, strategy: Strategy) {
    edit::append(path, &[big("more", 2)], &options(strategy, true)).unwrap();
}

/// Saves two tensors of one byte each in the folder, or all shards beside `path`.
fn sharded(path: &Path, byte: u8, max_shard_bytes: u64) {
    let tensors = [big("big", byte), big("more", byte)];
    let folder = path.parent().unwrap();
    save_sharded(folder, &tensors, None, max_shard_bytes, &synced()).unwrap();
}

/// The file before each case: many names, so that its header has several pages, and room.
fn old_file(path: &Path, case: &Case) {
    if case.is_sharded() {
        return sharded(path, 1, 13_000);
    }
    let names: Vec<String> = (0..200).map(|i| format!("layer.{i}")).collect();
    let mut tensors = vec![big("big", 1)];
    tensors.extend(names.iter().map(|name| TensorView {
        name,
        dtype: Dtype::U8,
        shape: &[],
        bytes: b"x",
    }));
    let metadata = Metadata::from([("key".to_owned(), "1".to_owned())]);
    let options = SaveOptions {
        reserve_header_bytes: 10_000,
        ..SaveOptions::default()
    };
    save(path, &tensors, Some(&metadata), &options).unwrap();
}

/// Everything a reader sees: names, bytes, metadata.
type Content = (Vec<(String, Vec<u8>)>, Option<Metadata>);

fn seen_by_us(path: &Path) -> Content {
    let checkpoint = Checkpoint::open(path).unwrap();
    let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    let bytes = names
        .iter()
        .map(|name| checkpoint.read_bytes(name).unwrap());
    let mut tensors: Vec<_> = names.iter().cloned().zip(bytes).collect();
    tensors.sort();
    (tensors, checkpoint.metadata().cloned())
}

fn seen_by_others(path: &Path) -> Content {
    let bytes = fs::read(path).unwrap();
    let theirs = SafeTensors::deserialize(&bytes).expect("a foreign reader can read the file");
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let tensors = theirs.tensors().into_iter();
    let mut tensors: Vec<_> = tensors
        .map(|(name, view)| (name, view.data().to_vec()))
        .collect();
    tensors.sort();
    let metadata = header.metadata().clone();
    (
        tensors,
        metadata.map(|metadata| metadata.into_iter().collect()),
    )
}

/// In memory if there is such a folder: the sync calls of hundreds of runs take their time on disks.
fn fresh_folder(name: &str) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    let folder = base.join(format!("safelight-crash-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Runs in the child process only.
#[test]
fn child() {
    let Ok(name) = std::env::var(CASE) else {
        return;
    };
    let path = PathBuf::from(std::env::var_os(DIE_BELOW).unwrap());
    let mut cases = CASES.iter().chain([&INTO_NOTHING]);
    let case = cases.find(|case| case.name == name).unwrap();
    (case.change)(&path.join("model"));
}

/// Whether the child lived.
fn run_child(case: &Case, folder: &Path, die_at: usize) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "crashes::child", "--test-threads=1"])
        .env(CASE, case.name)
        .env(DIE_BELOW, folder)
        .env(DIE_AT, die_at.to_string());
    let output = command.output().unwrap();
    let panicked = String::from_utf8_lossy(&output.stdout).contains("panicked");
    assert!(
        !panicked,
        "{}: {}",
        case.name,
        String::from_utf8_lossy(&output.stdout)
    );
    output.status.success()
}

/// All files of a folder.
type Files = BTreeMap<String, Vec<u8>>;

fn files(folder: &Path) -> Files {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let files = entries.map(|entry| {
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read(entry.path()).unwrap())
    });
    files.collect()
}

fn check(case: &Case) {
    let folder = fresh_folder(&case.name.replace(' ', "-"));
    let path = folder.join("model");
    let opened = case.opened(&path);
    old_file(&path, case);
    let old_files = files(&folder);
    let old = seen_by_us(&opened);
    (case.change)(&path);
    let new = seen_by_us(&opened);
    assert!(old != new, "{}: the case changes nothing", case.name);
    let new_count_of_files = files(&folder).len();

    let (mut old_count, mut new_count) = (0, 0);
    for die_at in 0..CALLS_MAX {
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in &old_files {
            fs::write(folder.join(name), bytes).unwrap();
        }
        let lived = run_child(case, &folder, die_at);
        let place = format!("{}, died at call {die_at}", case.name);
        if case.for_all_readers && !case.is_sharded() {
            let content = seen_by_others(&path);
            assert!(
                content == old || content == new,
                "{place}: others see neither"
            );
        }
        let content = seen_by_us(&opened);
        assert!(content == old || content == new, "{place}: we see neither");
        assert!(!lived || content == new, "{place}: nothing was done");
        if !case.is_sharded() {
            assert!(
                content == seen_by_others(&path),
                "{place}: not mended for others"
            );
        }
        if lived {
            assert!(old_count > 0, "{}: died nowhere", case.name);
            let left = files(&folder).len();
            assert_eq!(
                left, new_count_of_files,
                "{}: something is left behind",
                case.name
            );
            println!(
                "{}: died at {die_at} places, {old_count} old, {new_count} new",
                case.name
            );
            fs::remove_dir_all(&folder).unwrap();
            return;
        }
        if content == new {
            new_count += 1;
            continue;
        }
        old_count += 1;
        // What the dead left does not stand in the way of the living.
        (case.change)(&path);
        assert!(
            seen_by_us(&opened) == new,
            "{place}: not done when tried again"
        );
    }
    panic!("{} makes more than {CALLS_MAX} calls", case.name);
}

#[cfg(unix)]
#[test]
fn a_death_at_any_call_leaves_all_new_shards_or_nothing_that_opens() {
    if std::env::var_os(CASE).is_some() {
        return;
    }
    let case = &INTO_NOTHING;
    let (mut refused, mut lived) = (0, false);
    for die_at in 0..CALLS_MAX {
        let folder = fresh_folder("shards-into-nothing");
        lived = run_child(case, &folder, die_at);
        match Checkpoint::open(&folder) {
            Ok(checkpoint) => assert_eq!(checkpoint.names().count(), 2, "died at call {die_at}"),
            Err(_) => refused += 1,
        }
        if !lived {
            (case.change)(&folder.join("model")); // the dead do not stand in the way
        }
        assert_eq!(seen_by_us(&folder).0.len(), 2, "died at call {die_at}");
        fs::remove_dir_all(&folder).unwrap();
        if lived {
            break;
        }
    }
    assert!(lived && refused > 5, "refused {refused} times");
}

#[cfg(unix)]
#[test]
fn a_death_at_any_call_leaves_the_old_file_or_the_new_one() {
    if std::env::var_os(CASE).is_some() {
        return;
    }
    std::thread::scope(|scope| {
        for case in &CASES {
            scope.spawn(move || check(case));
        }
    });
}
