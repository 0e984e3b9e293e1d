//! Saving: all or nothing, whatever fails; modes, links and bytes as they should be.

mod common;

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use common::Folder;
use safelight_format::{Dtype, Metadata, Order, TensorView, encode_f32};
use safelight_store::{
    Checkpoint, OpenOptions, SaveOptions, StoreError, replace_file, save, save_sharded,
};

fn u8s<'a>(name: &'a str, shape: &'a [u64], bytes: &'a [u8]) -> TensorView<'a> {
    TensorView {
        name,
        dtype: Dtype::U8,
        shape,
        bytes,
    }
}

#[test]
fn what_is_saved_is_read() {
    let folder = Folder::new();
    let path = folder.join("model.safetensors");
    let values = [1.0, -0.5, f32::MIN_POSITIVE, f32::INFINITY];
    let bytes = encode_f32(&values);
    let tensors = [
        u8s("b", &[3], b"xyz"),
        TensorView {
            name: "a",
            dtype: Dtype::F32,
            shape: &[2, 2],
            bytes: &bytes,
        },
        u8s("empty", &[0, 4], b""),
    ];
    let metadata = Metadata::from([
        ("k".to_owned(), "v\n\"ä".to_owned()),
        ("format".to_owned(), "pt".to_owned()),
    ]);
    for order in [Order::HuggingFace, Order::Insertion, Order::Name] {
        let options = SaveOptions {
            order,
            sync: order == Order::Name,
            ..SaveOptions::default()
        };
        let file_bytes = save(&path, &tensors, Some(&metadata), &options).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), file_bytes);
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(
            (checkpoint.len(), checkpoint.metadata()),
            (3, Some(&metadata))
        );
        assert_eq!(checkpoint.read_f32("a").unwrap(), values);
        assert_eq!(checkpoint.read_bytes("b").unwrap(), b"xyz");
        assert_eq!(checkpoint.read_bytes("empty").unwrap(), b"");
    }
    assert_eq!(folder.list(), ["model.safetensors"]);
}

#[test]
fn the_same_tensors_give_the_same_bytes() {
    let folder = Folder::new();
    let metadata: Metadata = (0..20)
        .map(|i| (format!("key {i}"), "v".to_owned()))
        .collect();
    let (a, b) = (u8s("a", &[1], b"1"), u8s("b", &[1], b"2"));
    save(
        &folder.join("1"),
        &[a, b],
        Some(&metadata),
        &SaveOptions::default(),
    )
    .unwrap();
    save(
        &folder.join("2"),
        &[b, a],
        Some(&metadata),
        &SaveOptions::default(),
    )
    .unwrap();
    assert_eq!(
        fs::read(folder.join("1")).unwrap(),
        fs::read(folder.join("2")).unwrap()
    );
}

#[test]
fn contradictions_are_refused_and_nothing_is_written() {
    let folder = Folder::new();
    let path = folder.write("model.safetensors", "old");
    let check = |tensors: &[TensorView<'_>], message: &str| {
        let error = save(&path, tensors, None, &SaveOptions::default())
            .unwrap_err()
            .to_string();
        assert_eq!(error, format!("cannot write {}: {message}", path.display()));
        let error = save_sharded(folder.path(), tensors, None, 1, &SaveOptions::default())
            .unwrap_err()
            .to_string();
        assert!(error.ends_with(message), "{error}");
    };
    let a = u8s("a", &[1], b"1");
    check(
        &[a, u8s("b", &[1], b"1"), a],
        "two tensors are called `a`; rename or drop one",
    );
    check(
        &[u8s("__metadata__", &[1], b"1")],
        "a tensor is called `__metadata__`, which the format reserves; rename it",
    );
    check(
        &[u8s("a", &[2, 2], b"1")],
        "tensor `a` of U8 [2, 2] needs 4 bytes; 1 bytes were given",
    );
    check(
        &[u8s("a", &[1 << 63, 2], b"")],
        "tensor `a` of U8 [9223372036854775808, 2] needs more than 2^64 bits; 0 bytes were given",
    );
    let nibbles = TensorView {
        name: "a",
        dtype: Dtype::F4,
        shape: &[3],
        bytes: b"12",
    };
    check(
        &[nibbles],
        "tensor `a` of F4 [3] needs 12 bits, which do not fill whole bytes; 2 bytes were given",
    );
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(folder.list(), ["model.safetensors"]);
}

#[test]
fn a_writer_that_fails_leaves_nothing() {
    let folder = Folder::new();
    let path = folder.write("file", "old");
    let fails = |file: &mut dyn io::Write| {
        file.write_all(&[1; 5_000_000])?;
        Err(io::ErrorKind::StorageFull.into())
    };
    let error = replace_file(&path, false, fails).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot write {}: no storage space", path.display())
    );
    assert!(replace_file(&folder.join("new"), false, fails).is_err());
    let panicked =
        std::panic::catch_unwind(|| replace_file(&path, false, |_| panic!("in the middle")));
    assert!(panicked.is_err());
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(folder.list(), ["file"]);
}

/// The variable that tells `a_full_disk` that it runs in the process whose files are limited.
const LIMITED_FOLDER: &str = "SAFELIGHT_TEST_LIMITED_FOLDER";

/// The system itself refuses to write on, as on a full disk: this test runs itself again in a
/// shell that limits files to 64 blocks of 512 or 1024 bytes.
#[cfg(unix)]
#[test]
fn a_full_disk() {
    let big = vec![7u8; 4_000_000];
    if let Ok(folder) = std::env::var(LIMITED_FOLDER) {
        let path = Path::new(&folder).join("model.safetensors");
        let error = save(
            &path,
            &[u8s("a", &[4_000_000], &big)],
            None,
            &SaveOptions::default(),
        )
        .unwrap_err();
        let StoreError::Io {
            doing: "write",
            error,
            ..
        } = error
        else {
            panic!("{error}")
        };
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        return;
    }
    let folder = Folder::new();
    folder.write("model.safetensors", "old");
    let script = r#"trap '' XFSZ; ulimit -f 64; exec "$0" --exact a_full_disk"#;
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .env(LIMITED_FOLDER, folder.path());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), b"old");
    assert_eq!(folder.list(), ["model.safetensors"]);
}

#[cfg(unix)]
fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[cfg(unix)]
#[test]
fn modes() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new();
    let (plain, new) = (folder.write("plain", ""), folder.join("new"));
    save(&new, &[], None, &SaveOptions::default()).unwrap();
    assert_eq!(
        mode(&new),
        mode(&plain),
        "a new file has the mode of any new file"
    );
    for kept in [0o600, 0o640, 0o664, 0o755] {
        fs::set_permissions(&new, fs::Permissions::from_mode(kept)).unwrap();
        save(&new, &[u8s("a", &[1], b"1")], None, &SaveOptions::default()).unwrap();
        assert_eq!(mode(&new), kept, "{kept:o}");
    }
}

#[cfg(unix)]
#[test]
fn links_stay_links() {
    use std::os::unix::fs::symlink;
    let folder = Folder::new();
    fs::create_dir(folder.join("blobs")).unwrap();
    folder.write("blobs/a", "old");
    symlink("blobs/a", folder.join("link")).unwrap();
    symlink("link", folder.join("link to link")).unwrap();
    symlink("blobs/new", folder.join("dangling")).unwrap();
    symlink("loop", folder.join("loop")).unwrap();
    for (link, target) in [
        ("link", "blobs/a"),
        ("link to link", "blobs/a"),
        ("dangling", "blobs/new"),
    ] {
        save(
            &folder.join(link),
            &[u8s(link, &[1], b"1")],
            None,
            &SaveOptions::default(),
        )
        .unwrap();
        assert!(
            fs::symlink_metadata(folder.join(link))
                .unwrap()
                .is_symlink(),
            "{link}"
        );
        let checkpoint = Checkpoint::open(&folder.join(target)).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), [link]);
    }
    assert!(save(&folder.join("loop"), &[], None, &SaveOptions::default()).is_err());
    assert_eq!(
        folder.list(),
        ["blobs", "dangling", "link", "link to link", "loop"]
    );
}

#[test]
fn where_nothing_can_be_written() {
    let folder = Folder::new();
    let missing = folder.join("missing/model.safetensors");
    let error = save(&missing, &[], None, &SaveOptions::default())
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        format!(
            "cannot write {}: its folder {} does not exist; make it first, or write elsewhere",
            missing.display(),
            folder.join("missing").display()
        )
    );
    let error = save(folder.path(), &[], None, &SaveOptions::default())
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        format!(
            "{}: this is a folder, a file is expected",
            folder.path().display()
        )
    );
    let error = save(Path::new("/dev/null"), &[], None, &SaveOptions::default())
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "/dev/null: this is a device or pipe, a file is expected"
    );
    assert!(save(Path::new(""), &[], None, &SaveOptions::default()).is_err());
    assert!(folder.list().is_empty());
}

#[test]
fn a_temporary_of_a_dead_process_is_no_obstacle() {
    let folder = Folder::new();
    for count in 0..200 {
        folder.write(
            &format!(".safelight-{}-{count}.tmp", std::process::id()),
            "",
        );
    }
    save(
        &folder.join("model.safetensors"),
        &[],
        None,
        &SaveOptions::default(),
    )
    .unwrap();
    assert_eq!(folder.list().len(), 201);
}

#[test]
fn shards_and_their_index() {
    let folder = Folder::new();
    let big = [9u8; 10];
    let tensors = [
        u8s("z", &[4], b"zzzz"),
        u8s("y", &[4], b"yyyy"),
        u8s("big", &[10], &big),
        u8s("x", &[8], b"xxxxxxxx"),
        u8s("none", &[0], b""),
    ];
    let metadata = Metadata::from([("format".to_owned(), "pt".to_owned())]);
    let saved = save_sharded(
        folder.path(),
        &tensors,
        Some(&metadata),
        8,
        &SaveOptions::default(),
    )
    .unwrap();
    let names = [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ];
    assert_eq!(saved.shards, names.map(|name| folder.join(name)));
    assert_eq!(
        (saved.total_size, &saved.path),
        (26, &folder.join("model.safetensors.index.json"))
    );
    let index = fs::read_to_string(&saved.path).unwrap();
    assert_eq!(
        index,
        "{\n  \"metadata\": {\n    \"total_size\": 26\n  },\n  \"weight_map\": {\n    \
         \"big\": \"model-00002-of-00003.safetensors\",\n    \"none\": \"model-00003-of-00003.safetensors\",\n    \
         \"x\": \"model-00003-of-00003.safetensors\",\n    \"y\": \"model-00001-of-00003.safetensors\",\n    \
         \"z\": \"model-00001-of-00003.safetensors\"\n  }\n}\n"
    );
    let strict = OpenOptions {
        strictness: safelight_format::Strictness::Spec,
        ..OpenOptions::default()
    };
    let checkpoint = Checkpoint::open_with(&saved.path, &strict).unwrap();
    assert_eq!(
        (checkpoint.len(), checkpoint.metadata()),
        (5, Some(&metadata))
    );
    for tensor in tensors {
        assert_eq!(checkpoint.read_bytes(tensor.name).unwrap(), tensor.bytes);
    }
}

#[test]
fn one_shard_is_one_file() {
    let folder = Folder::new();
    let saved = save_sharded(
        folder.path(),
        &[u8s("a", &[1], b"1")],
        None,
        1 << 30,
        &SaveOptions::default(),
    )
    .unwrap();
    assert_eq!(saved.path, folder.join("model.safetensors"));
    assert_eq!(folder.list(), ["model.safetensors"]);
    assert_eq!(
        Checkpoint::open(&saved.path)
            .unwrap()
            .read_bytes("a")
            .unwrap(),
        b"1"
    );
}

#[test]
fn a_save_replaces_an_earlier_one_as_a_whole() {
    let folder = Folder::new();
    folder.write("notes.txt", "mine");
    folder.write("model-00007-of-00009.safetensors", "not of any index");
    let options = SaveOptions::default();
    let bytes = [7u8; 6];
    let tensors = ["a", "b", "c"].map(|name| u8s(name, &[2], &bytes[..2]));
    let save = |count: usize, max| {
        let saved = save_sharded(folder.path(), &tensors[..count], None, max, &options).unwrap();
        let checkpoint = Checkpoint::open(&saved.path).unwrap();
        assert_eq!(checkpoint.len(), count);
        let mut names = folder.list();
        names.retain(|name| name.starts_with("model") && !name.contains("-of-00009"));
        names
    };
    let index = "model.safetensors.index.json";
    let names = |infix: &str, count| -> Vec<String> {
        let shards = (1..=count).map(|i| format!("model{infix}-{i:05}-of-{count:05}.safetensors"));
        shards.chain([index.to_owned()]).collect()
    };
    assert_eq!(save(3, 100), ["model.safetensors"]);
    assert_eq!(save(3, 2), names("", 3), "the single file is gone");
    assert_eq!(
        save(3, 2),
        names("-r2", 3),
        "other names, so that nothing is mixed"
    );
    assert_eq!(save(3, 2), names("", 3));
    assert_eq!(save(2, 2), names("", 2));
    assert_eq!(save(3, 100), ["model.safetensors"], "the shards are gone");
    assert_eq!(fs::read(folder.join("notes.txt")).unwrap(), b"mine");
    assert_eq!(folder.list().len(), 3);
}

#[test]
fn shards_that_cannot_all_be_written_leave_the_earlier_save() {
    let folder = Folder::new();
    let options = SaveOptions::default();
    let tensors = [u8s("a", &[2], b"aa"), u8s("b", &[2], b"bb")];
    let saved = save_sharded(folder.path(), &tensors, None, 2, &options).unwrap();
    let before = folder.list();
    // The second shard's place is taken by a folder.
    fs::create_dir(folder.join("model-r2-00002-of-00002.safetensors")).unwrap();
    let changed = [u8s("a", &[2], b"AA"), u8s("b", &[2], b"BB")];
    let error = save_sharded(folder.path(), &changed, None, 2, &options).unwrap_err();
    assert!(matches!(error, StoreError::NotAFile { .. }), "{error}");
    fs::remove_dir(folder.join("model-r2-00002-of-00002.safetensors")).unwrap();
    assert_eq!(folder.list(), before);
    let checkpoint = Checkpoint::open(&saved.path).unwrap();
    assert_eq!(checkpoint.read_bytes("a").unwrap(), b"aa");
}
