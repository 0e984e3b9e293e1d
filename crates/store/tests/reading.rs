//! Opening and reading: single files, shards, buffers, maps; and files that change meanwhile.

mod common;

use std::fs;
use std::path::Path;

use common::{Folder, file_of, raw_file};
use safelight_format::{Dtype, Limits, Metadata, Strictness, TensorView, encode_f32};
use safelight_store::{Checkpoint, OpenOptions, StoreError};

const SPEC: Strictness = Strictness::Spec;

/// Half a million numbers as F32 (2 MB: more than one piece), and a few as F16 and I64.
fn three_tensors() -> (Vec<f32>, Vec<u8>) {
    let values: Vec<f32> = (0..500_003).map(|i| i as f32 * 0.25 - 1000.0).collect();
    let big = encode_f32(&values);
    let tensors = [
        TensorView {
            name: "half",
            dtype: Dtype::F16,
            shape: &[2],
            bytes: &[0x00, 0x3c, 0x00, 0xc0],
        },
        TensorView {
            name: "big",
            dtype: Dtype::F32,
            shape: &[500_003],
            bytes: &big,
        },
        TensorView {
            name: "count",
            dtype: Dtype::I64,
            shape: &[],
            bytes: &7i64.to_le_bytes(),
        },
    ];
    let metadata = Metadata::from([("format".to_owned(), "pt".to_owned())]);
    (values, file_of(&tensors, Some(&metadata)))
}

/// The file's tensors are as they should be, whichever way it was opened.
fn check_three(checkpoint: &Checkpoint, values: &[f32]) {
    assert_eq!(
        checkpoint.names().collect::<Vec<_>>(),
        ["count", "big", "half"]
    );
    assert_eq!(checkpoint.len(), 3);
    assert_eq!(checkpoint.metadata().unwrap()["format"], "pt");
    assert_eq!(checkpoint.get("big").unwrap().shape, [500_003]);
    assert!(checkpoint.read_f32("big").unwrap() == values);
    assert_eq!(checkpoint.read_f32("half").unwrap(), [1.0, -2.0]);
    assert_eq!(checkpoint.read_f32("count").unwrap(), [7.0]);
    assert_eq!(checkpoint.read_bytes("count").unwrap(), 7i64.to_le_bytes());
    let mut into = vec![0.0; 500_003];
    checkpoint.read_f32_into("big", &mut into).unwrap();
    assert!(into == values);
    let error = checkpoint
        .read_f32_into("half", &mut into)
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("tensor `half`: 4 bytes are not 500003 elements of F16"),
        "{error}"
    );
    let error = checkpoint.read_f32("hull").unwrap_err().to_string();
    assert!(error.ends_with(": there is no tensor `hull`"), "{error}");
    assert!(checkpoint.get("hull").is_none());
}

#[test]
fn a_single_file() {
    let folder = Folder::new();
    let (values, file) = three_tensors();
    let path = folder.write("model.safetensors", &file);
    let checkpoint = Checkpoint::open(&path).unwrap();
    check_three(&checkpoint, &values);
    assert_eq!(
        (checkpoint.path(), checkpoint.file_bytes()),
        (Some(&*path), file.len() as u64)
    );
    assert!(matches!(
        checkpoint.view("half"),
        Err(StoreError::NotInMemory { .. })
    ));
}

#[test]
fn a_buffer_gives_views() {
    let (values, file) = three_tensors();
    let checkpoint = Checkpoint::from_bytes("buffer", file).unwrap();
    assert_eq!((checkpoint.label(), checkpoint.path()), ("buffer", None));
    check_three(&checkpoint, &values);
    let view = checkpoint.view("half").unwrap();
    assert_eq!(
        (view.name, view.dtype, view.shape),
        ("half", Dtype::F16, &[2][..])
    );
    assert_eq!(view.bytes, [0x00, 0x3c, 0x00, 0xc0]);
}

#[test]
fn several_threads_read_at_once() {
    let folder = Folder::new();
    let (values, file) = three_tensors();
    let checkpoint = Checkpoint::open(&folder.write("model.safetensors", file)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..5).for_each(|_| check_three(&checkpoint, &values)));
        }
    });
}

#[test]
fn a_header_longer_than_the_first_read() {
    let folder = Folder::new();
    let names: Vec<String> = (0..5000)
        .map(|i| format!("a.rather.long.name.{i}.weight"))
        .collect();
    let bytes = [1u8, 2];
    let tensors = names.iter().map(|name| TensorView {
        name,
        dtype: Dtype::U8,
        shape: &[2],
        bytes: &bytes,
    });
    let file = file_of(&tensors.collect::<Vec<_>>(), None);
    assert!(file.len() > 300_000);
    let checkpoint = Checkpoint::open(&folder.write("many.safetensors", &file)).unwrap();
    assert_eq!(checkpoint.len(), 5000);
    assert_eq!(
        checkpoint
            .read_f32("a.rather.long.name.4999.weight")
            .unwrap(),
        [1.0, 2.0]
    );
}

#[test]
fn strict_and_limited() {
    let twice = raw_file(
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#,
        &[5, 6],
    );
    assert_eq!(
        Checkpoint::from_bytes("x", twice.clone())
            .unwrap()
            .read_bytes("a")
            .unwrap(),
        [5, 6]
    );
    let strict = OpenOptions {
        strictness: SPEC,
        ..OpenOptions::default()
    };
    let error = Checkpoint::from_bytes_with("x", twice.clone(), &strict).unwrap_err();
    assert_eq!(error.to_string(), "x: two tensors are called `a`");
    let limits = Limits {
        header_bytes_max: 10,
        ..Limits::default()
    };
    let limited = OpenOptions {
        limits,
        ..OpenOptions::default()
    };
    assert!(Checkpoint::from_bytes_with("x", twice, &limited).is_err());
}

#[test]
fn a_file_that_shrinks_gives_an_error() {
    let folder = Folder::new();
    let (values, file) = three_tensors();
    let path = folder.write("model.safetensors", &file);
    let checkpoint = Checkpoint::open(&path).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1_000_000)
        .unwrap();
    let message = format!(
        "{}: the file had {} bytes when it was opened and now has 1000000; wait until nobody writes to it and open it \
         again",
        path.display(),
        file.len()
    );
    assert_eq!(checkpoint.read_f32("big").unwrap_err().to_string(), message);
    assert_eq!(
        checkpoint.read_bytes("half").unwrap_err().to_string(),
        message
    );
    assert_eq!(
        checkpoint.read_f32("count").unwrap(),
        [7.0],
        "what is still there can be read"
    );
    drop(values);
}

#[test]
fn a_replaced_file_stays_readable() {
    let folder = Folder::new();
    let (values, file) = three_tensors();
    let path = folder.write("model.safetensors", &file);
    let checkpoint = Checkpoint::open(&path).unwrap();
    safelight_store::save(&path, &[], None, &Default::default()).unwrap();
    check_three(&checkpoint, &values);
}

#[test]
fn what_has_no_reading_as_f32_says_so() {
    let file = raw_file(
        r#"{"z":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#,
        &[0; 8],
    );
    let folder = Folder::new();
    let path = folder.write("complex.safetensors", &file);
    for checkpoint in [
        Checkpoint::open(&path).unwrap(),
        Checkpoint::from_bytes(path.display().to_string(), file).unwrap(),
    ] {
        assert_eq!(
            checkpoint.read_f32("z").unwrap_err().to_string(),
            format!(
                "{}: tensor `z`: dtype C64 has no reading as plain numbers; its elements are pairs of F32, the \
                 real part first",
                path.display()
            )
        );
    }
}

/// An index with two shards: `a` and `b` in the first, `c` in the second.
fn shards(folder: &Folder) -> std::path::PathBuf {
    let one = |name, byte| {
        [TensorView {
            name,
            dtype: Dtype::U8,
            shape: &[1],
            bytes: byte,
        }]
    };
    let first = [one("b", &[2])[0], one("a", &[1])[0]];
    folder.write("m-1.safetensors", file_of(&first, None));
    folder.write("m-2.safetensors", file_of(&one("c", &[3]), None));
    folder.write(
        "m.safetensors.index.json",
        r#"{"metadata":{"total_size":3},"weight_map":{"c":"m-2.safetensors","a":"m-1.safetensors","b":"m-1.safetensors"}}"#,
    )
}

#[test]
fn an_index_opens_all_shards() {
    let folder = Folder::new();
    let index = shards(&folder);
    let strict = OpenOptions {
        strictness: SPEC,
        ..OpenOptions::default()
    };
    for checkpoint in [
        Checkpoint::open(&index).unwrap(),
        Checkpoint::open_with(&index, &strict).unwrap(),
    ] {
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!((checkpoint.len(), checkpoint.file_count()), (3, 2));
        for (name, value) in [("a", 1.0), ("b", 2.0), ("c", 3.0)] {
            assert_eq!(checkpoint.read_f32(name).unwrap(), [value], "{name}");
            assert_eq!(checkpoint.get(name).unwrap().name, name);
        }
        assert!(checkpoint.get("d").is_none());
    }
}

#[test]
fn two_shards_with_one_name_and_the_index_decides() {
    let folder = Folder::new();
    let index = shards(&folder);
    let a = TensorView {
        name: "a",
        dtype: Dtype::U8,
        shape: &[1],
        bytes: &[9],
    };
    let c = TensorView {
        name: "c",
        dtype: Dtype::U8,
        shape: &[1],
        bytes: &[3],
    };
    folder.write("m-2.safetensors", file_of(&[a, c], None));
    let checkpoint = Checkpoint::open(&index).unwrap();
    assert_eq!(checkpoint.read_f32("a").unwrap(), [1.0]);
    assert_eq!(checkpoint.names().count(), 3);
    let strict = OpenOptions {
        strictness: SPEC,
        ..OpenOptions::default()
    };
    let error = Checkpoint::open_with(&index, &strict)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        format!(
            "{}: 1 tensor is in shards but not in the index: `a` in `m-2.safetensors`",
            index.display()
        )
    );
}

#[track_caller]
fn index_refused(folder: &Folder, json: &str, message: &str) {
    let path = folder.write("bad.safetensors.index.json", json);
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert_eq!(error, format!("{}: {message}", path.display()));
}

#[test]
fn bad_indexes() {
    let folder = Folder::new();
    shards(&folder);
    folder.write("../outside.safetensors", file_of(&[], None));
    let outside =
        "which may lie outside the index's folder; only files in or below that folder are read";
    for name in [
        "../outside.safetensors",
        "x/../../outside.safetensors",
        "/etc/passwd",
        "",
    ] {
        index_refused(
            &folder,
            &format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#),
            &format!("the index names the shard `{name}`, {outside}"),
        );
    }
    index_refused(
        &folder,
        r#"{"weight_map":{"a":"m-1.safetensors","x":"m-3.safetensors","y":"m-4.safetensors"}}"#,
        "2 of 3 shards are missing: `m-3.safetensors`, `m-4.safetensors`; put them beside the others",
    );
    index_refused(
        &folder,
        r#"{"weight_map":{"a":"m-1.safetensors","x":"m-1.safetensors","b":"m-2.safetensors"}}"#,
        "the index names 2 tensors that are not where it says: `b` in `m-2.safetensors`, `x` in `m-1.safetensors`; \
         index and shards are from different models",
    );
    index_refused(
        &folder,
        "{}",
        "not a shard index: it has no object `weight_map`",
    );
    index_refused(
        &folder,
        r#"{"weight_map":{"a":1}}"#,
        "not a shard index: `weight_map` gives tensor `a` no file name",
    );
    index_refused(
        &folder,
        "",
        "not a shard index: not JSON: EOF while parsing a value at line 1 column 0",
    );
    let _ = fs::remove_file(folder.join("../outside.safetensors"));
}

#[test]
fn a_broken_shard_is_named() {
    let folder = Folder::new();
    let index = shards(&folder);
    let shard = folder.write(
        "m-2.safetensors",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    );
    let error = Checkpoint::open(&index).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!(
            "{}: not a safetensors file but a Git LFS pointer",
            shard.display()
        )),
        "{error}"
    );
}

#[test]
fn folders_pipes_and_nothing() {
    let folder = Folder::new();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("{}: there is no safetensors file", folder.path().display())
    );
    let missing = folder.join("missing.safetensors");
    let error = Checkpoint::open(&missing).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "cannot open {}: No such file or directory (os error 2)",
            missing.display()
        )
    );
    let error = Checkpoint::open(Path::new("/dev/zero"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "/dev/zero: this is a device or pipe, a file is expected"
    );
}

/// Two files of one tensor each, the second with metadata of its own.
fn two_files(folder: &Folder, second: &str) {
    let tensor = |name, bytes| TensorView {
        name,
        dtype: Dtype::U8,
        shape: &[2],
        bytes,
    };
    let text = |pairs: &[(&str, &str)]| -> Metadata {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect()
    };
    let (one, two) = (
        text(&[("format", "pt"), ("x", "1")]),
        text(&[("x", "2"), ("y", "3")]),
    );
    folder.write(
        "p-1.safetensors",
        file_of(&[tensor("a", &[1, 2])], Some(&one)),
    );
    folder.write(
        "p-2.safetensors",
        file_of(&[tensor(second, &[3, 4])], Some(&two)),
    );
}

#[test]
fn folders_patterns_and_lists_are_one_model() {
    let folder = Folder::new();
    two_files(&folder, "b");
    folder.write("other.txt", "");
    let list = ["p-2.safetensors", "p-1.safetensors"].map(|name| folder.join(name));
    for checkpoint in [
        Checkpoint::open(folder.path()).unwrap(),
        Checkpoint::open(&folder.join("p-?.safe*")).unwrap(),
        Checkpoint::open_files(&list, &OpenOptions::default()).unwrap(),
    ] {
        assert_eq!((checkpoint.len(), checkpoint.file_count()), (2, 2));
        assert_eq!(checkpoint.read_bytes("a").unwrap(), [1, 2]);
        assert_eq!(checkpoint.read_bytes("b").unwrap(), [3, 4]);
        assert_eq!(checkpoint.file_metadata().count(), 2);
    }
    let merged = Checkpoint::open(folder.path()).unwrap().merged_metadata();
    let expected = [("format", "pt"), ("x", "1"), ("y", "3")];
    let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(merged, Metadata::from(expected));
}

#[test]
fn what_is_not_one_model_is_refused() {
    let folder = Folder::new();
    let message = |path: &Path| Checkpoint::open(path).unwrap_err().to_string();
    assert!(message(folder.path()).ends_with(": there is no safetensors file"));
    let pattern = folder.join("*.safetensors");
    assert!(message(&pattern).contains("*.safetensors: there is no such file, nor one that fits"));
    two_files(&folder, "a");
    let text = message(folder.path());
    let path = |name: &str| folder.join(name).display().to_string();
    let expected = format!(
        "{}: 1 tensor is in two files: `a` in `{}` and `{}`; open only one of the two files, or an index that says \
         which is meant",
        folder.path().display(),
        path("p-1.safetensors"),
        path("p-2.safetensors")
    );
    assert_eq!(text, expected);
    folder.write("a.safetensors.index.json", "{}");
    folder.write("b.safetensors.index.json", "{}");
    let text = message(folder.path());
    assert!(text.contains("there are 2 indexes: `"), "{text}");
    let list = ["x", "p-1.safetensors", "y"].map(|name| folder.join(name));
    let error = Checkpoint::open_files(&list, &OpenOptions::default()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("2 of 3 shards are missing: "), "{text}");
}

#[test]
fn a_wrong_total_size_is_a_warning_or_an_error() {
    let folder = Folder::new();
    let index = shards(&folder);
    assert_eq!(Checkpoint::open(&index).unwrap().warnings(), [""; 0]);
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, text.replace("\"total_size\":3", "\"total_size\":4")).unwrap();
    let problem = "its `total_size` is 4, the tensors it lists have 3 bytes";
    assert_eq!(Checkpoint::open(&index).unwrap().warnings(), [problem]);
    let strict = OpenOptions {
        strictness: SPEC,
        ..Default::default()
    };
    let error = Checkpoint::open_with(&index, &strict)
        .unwrap_err()
        .to_string();
    assert!(error.ends_with(problem), "{error}");
    index_refused(
        &folder,
        r#"{"weight_map":{"a":"m-1.safetensors","a":"m-2.safetensors"}}"#,
        "not a shard index: `weight_map` has tensor `a` twice",
    );
}
