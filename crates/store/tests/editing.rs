//! Edits of files: what changes, what does not, what is written where.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use common::{Folder, raw_file};
use safelight_format::{Dtype, Metadata, Order, TensorView};
use safelight_store::edit::{self, EditOptions, How, Strategy, WhyCopied};
use safelight_store::{Checkpoint, SaveOptions, StoreError, save};
use safetensors::SafeTensors;

const STRATEGIES: [Strategy; 3] = [Strategy::Auto, Strategy::InPlace, Strategy::Copy];

fn u8s<'a>(name: &'a str, bytes: &'a [u8], shape: &'a [u64]) -> TensorView<'a> {
    let dtype = Dtype::U8;
    TensorView {
        name,
        dtype,
        shape,
        bytes,
    }
}

fn options(strategy: Strategy) -> EditOptions {
    EditOptions {
        strategy,
        sync: false,
        ..EditOptions::default()
    }
}

fn metadata(pairs: &[(&str, &str)]) -> Metadata {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
}

/// `key=value` sets, `key` removes.
fn changes(list: &[&str]) -> BTreeMap<String, Option<String>> {
    let change = |text: &&str| match text.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (text.to_string(), None),
    };
    list.iter().map(change).collect()
}

/// Writes a file with tensors `a`, `b` and `c`.
fn write(path: &Path, metadata: Option<&Metadata>, reserve_header_bytes: u64) -> Vec<u8> {
    let tensors = [
        u8s("b", b"bb", &[2]),
        u8s("a", b"aaaa", &[2, 2]),
        u8s("c", b"c", &[]),
    ];
    let options = SaveOptions {
        reserve_header_bytes,
        ..SaveOptions::default()
    };
    save(path, &tensors, metadata, &options).unwrap();
    fs::read(path).unwrap()
}

/// Hugging Face and we read this from the file, and nothing else lies beside it.
fn check(folder: &Folder, path: &Path, expected: Option<&Metadata>, tensors: &[(&str, &[u8])]) {
    let checkpoint = Checkpoint::open(path).unwrap();
    assert_eq!(checkpoint.metadata(), expected);
    let bytes = fs::read(path).unwrap();
    let theirs = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let their_metadata = header.metadata().clone();
    assert_eq!(
        their_metadata.map(|metadata| metadata.into_iter().collect::<Metadata>()),
        expected.cloned()
    );
    assert_eq!(
        (checkpoint.len(), theirs.len()),
        (tensors.len(), tensors.len())
    );
    for (name, bytes) in tensors {
        assert_eq!(checkpoint.read_bytes(name).unwrap(), *bytes, "{name}");
        assert_eq!(theirs.tensor(name).unwrap().data(), *bytes, "{name}");
    }
    assert_eq!(folder.list(), ["model"]);
}

const ABC: &[(&str, &[u8])] = &[("a", b"aaaa"), ("b", b"bb"), ("c", b"c")];

#[test]
fn metadata_is_set_and_removed() {
    let old = metadata(&[("format", "pt"), ("title", "a long enough title")]);
    type Pairs<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(&[&str], Pairs<'_>)] = &[
        (&[], &[("format", "pt"), ("title", "a long enough title")]),
        (
            &["none"],
            &[("format", "pt"), ("title", "a long enough title")],
        ),
        (&["title=short"], &[("format", "pt"), ("title", "short")]),
        (&["title"], &[("format", "pt")]),
        (&["title", "format"], &[]),
        (
            &["n=ä\"\\\n\u{1}", "title"],
            &[("format", "pt"), ("n", "ä\"\\\n\u{1}")],
        ),
        (
            &["new=123"],
            &[
                ("format", "pt"),
                ("new", "123"),
                ("title", "a long enough title"),
            ],
        ),
    ];
    for strategy in STRATEGIES {
        for (list, expected) in cases {
            let folder = Folder::new();
            let path = folder.join("model");
            let before = write(&path, Some(&old), 0);
            let checked = edit::check_metadata(&path, &changes(list), &options(strategy));
            assert_eq!(fs::read(&path).unwrap(), before);
            let edited = edit::set_metadata(&path, &changes(list), &options(strategy));
            assert_eq!(checked.is_ok(), edited.is_ok(), "{strategy:?} {list:?}");
            let grows = list.contains(&"new=123");
            if grows && strategy == Strategy::InPlace {
                let error = edited.unwrap_err();
                assert!(matches!(error, StoreError::NoRoom { .. }), "{error}");
                check(&folder, &path, Some(&old), ABC);
                continue;
            }
            let edited = edited.unwrap();
            let how = match (list.is_empty() || *list == ["none"], grows, strategy) {
                (true, ..) => How::Unchanged,
                (_, true, _) | (.., Strategy::Copy) => How::Copied,
                _ => How::InPlace,
            };
            assert_eq!(edited.how, how, "{strategy:?} {list:?}");
            assert_eq!(edited.file_bytes, fs::metadata(&path).unwrap().len());
            check(&folder, &path, Some(&metadata(expected)), ABC);
        }
    }
}

#[test]
fn a_file_without_metadata_gets_some() {
    for (reserve, expected) in [(0, How::Copied), (200, How::InPlace)] {
        let folder = Folder::new();
        let path = folder.join("model");
        write(&path, None, reserve);
        for title in ["A", "A longer one", ""] {
            let list = changes(&[&format!("title={title}")]);
            let edited = edit::set_metadata(&path, &list, &options(Strategy::Auto)).unwrap();
            let how = if title == "A" { expected } else { How::InPlace };
            assert_eq!(edited.how, how, "{reserve} {title}");
            check(&folder, &path, Some(&metadata(&[("title", title)])), ABC);
        }
    }
    let folder = Folder::new();
    let path = folder.write("model", raw_file("{}      ", b""));
    let list = changes(&["title=t"]);
    edit::set_metadata(&path, &list, &options(Strategy::Auto)).unwrap();
    check(&folder, &path, Some(&metadata(&[("title", "t")])), &[]);
}

#[test]
fn reserved_room_is_used_and_nothing_else_is_touched() {
    let folder = Folder::new();
    let path = folder.join("model");
    let names: Vec<String> = (0..500).map(|i| format!("layer.{i}.weight")).collect();
    let tensors: Vec<TensorView<'_>> = names.iter().map(|name| u8s(name, b"x", &[1])).collect();
    let save_options = SaveOptions {
        reserve_header_bytes: 1000,
        ..SaveOptions::default()
    };
    save(
        &path,
        &tensors,
        Some(&metadata(&[("format", "pt")])),
        &save_options,
    )
    .unwrap();
    let before = fs::read(&path).unwrap();
    assert!(before.len() > 30_000, "the header has many pages");
    let list = changes(&[&format!("notes={}", "n".repeat(900))]);
    let edited = edit::set_metadata(&path, &list, &options(Strategy::Auto)).unwrap();
    assert_eq!(edited.how, How::InPlace);
    let after = fs::read(&path).unwrap();
    assert_eq!(before.len(), after.len());
    assert_eq!(before[4096..], after[4096..], "one page was written");
    assert_eq!(Checkpoint::open(&path).unwrap().len(), 500);

    let list = changes(&[&format!("more={}", "m".repeat(900))]);
    let edited = edit::set_metadata(&path, &list, &options(Strategy::Auto)).unwrap();
    assert_eq!(edited.how, How::Copied, "the room is used up");
    let list = changes(&["again=and again"]);
    let edited = edit::set_metadata(&path, &list, &options(Strategy::Auto)).unwrap();
    assert_eq!(edited.how, How::InPlace, "the copy has room again");
    let grown = fs::read(&path).unwrap();
    assert_eq!(
        grown.len() % 4096,
        after.len() % 4096,
        "data keeps its place within a page"
    );
    assert_eq!(grown[grown.len() - 500..], after[after.len() - 500..]);
}

#[test]
fn headers_with_room_are_changed_in_place_however_much_of_them_changes() {
    let folder = Folder::new();
    let path = folder.join("model");
    // Keys are sorted: one in front moves what is behind it, which is more than a page.
    let old = metadata(&[("k", &"x".repeat(60_000))]);
    write(&path, Some(&old), 64 * 1024);
    let before = fs::metadata(&path).unwrap().len();
    for (list, how) in [
        (&["a=1"][..], How::InPlace),
        (&["z=1"], How::InPlace),
        (&["a", "k"], How::InPlace),
    ] {
        let edited = edit::set_metadata(&path, &changes(list), &options(Strategy::Auto)).unwrap();
        assert_eq!((edited.how, edited.why_copied), (how, None), "{list:?}");
        assert_eq!(edited.file_bytes, before);
    }
    check(&folder, &path, Some(&metadata(&[("z", "1")])), ABC);
    let list = changes(&[&format!("b={}", "y".repeat(200_000))]);
    let edited = edit::set_metadata(&path, &list, &options(Strategy::Auto)).unwrap();
    let why = edited.why_copied;
    assert!(
        matches!(why, Some(WhyCopied::NoRoom { need_bytes: 200_000.., room_bytes }) if room_bytes < 200_000),
        "{why:?}"
    );
    let edited = edit::set_metadata(&path, &changes(&["c=1"]), &options(Strategy::Copy)).unwrap();
    assert_eq!(edited.why_copied, Some(WhyCopied::Asked));
}

#[test]
fn a_copy_that_is_broken_off_changes_nothing() {
    let folder = Folder::new();
    let path = folder.join("model");
    let big = vec![7u8; 40_000_000];
    let tensors = [u8s("a", &big, &[40_000_000])];
    save(&path, &tensors, None, &SaveOptions::default()).unwrap();
    let before = fs::read(&path).unwrap();
    let long = changes(&[&format!("k={}", "v".repeat(10_000))]);
    for strategy in [Strategy::Auto, Strategy::Copy] {
        let calls = std::cell::Cell::new(0);
        let progress = |done, all| {
            calls.set(calls.get() + 1);
            assert!(done < all && all >= 40_000_000, "{done} of {all}");
            ControlFlow::Break(())
        };
        let edited = edit::set_metadata_with(&path, &long, &options(strategy), &progress);
        assert!(
            matches!(edited, Err(StoreError::Stopped { .. })),
            "{edited:?}"
        );
        assert_eq!(calls.get(), 1);
        assert!(fs::read(&path).unwrap() == before);
        assert_eq!(folder.list(), ["model"]);
    }
    let last = std::cell::Cell::new((0, 1));
    let progress = |done, all| {
        last.set((done, all));
        ControlFlow::Continue(())
    };
    edit::set_metadata_with(&path, &long, &options(Strategy::Auto), &progress).unwrap();
    assert_eq!(last.get().0, last.get().1);
}

#[test]
fn odd_headers_survive() {
    let entry = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    for json in [
        format!(r#"{{"a":{entry},"__metadata__":{{"k":"v"}}}}"#),
        format!(
            " {{ \"a\" : {entry} , \"\\u005f_metadata__\" : {{\"k\":\"v\"}} , \"a\" : {entry} }} \n"
        ),
        r#"{"a":["U8",[1],[0,1]],"__metadata__":{"k":"w","k":"v"}}"#.to_owned(),
    ] {
        for value in [
            "1",
            "a much longer value than there was before, so that the header grows",
        ] {
            let folder = Folder::new();
            let path = folder.write("model", raw_file(&json, b"!"));
            let list = changes(&[&format!("k={value}")]);
            edit::set_metadata(&path, &list, &options(Strategy::Auto)).unwrap();
            check(
                &folder,
                &path,
                Some(&metadata(&[("k", value)])),
                &[("a", b"!")],
            );
        }
    }
}

#[test]
fn patches() {
    for strategy in STRATEGIES {
        let folder = Folder::new();
        let path = folder.join("model");
        let before = write(&path, None, 0);
        let edited = edit::patch_tensor(&path, "b", b"BB", &options(strategy)).unwrap();
        let how = if strategy == Strategy::Copy {
            How::Copied
        } else {
            How::InPlace
        };
        assert_eq!(edited.how, how);
        check(
            &folder,
            &path,
            None,
            &[("a", b"aaaa"), ("b", b"BB"), ("c", b"c")],
        );
        let error = edit::patch_tensor(&path, "b", b"B", &options(strategy)).unwrap_err();
        let expected = "tensor `b` of U8 [2] needs 2 bytes; 1 bytes were given";
        assert!(error.to_string().ends_with(expected), "{error}");
        let error = edit::patch_tensor(&path, "x", b"B", &options(strategy)).unwrap_err();
        assert!(matches!(error, StoreError::NoSuchTensor { .. }), "{error}");
        edit::patch_tensor(&path, "b", b"bb", &options(strategy)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}

#[test]
fn larger_patches() {
    let folder = Folder::new();
    let path = folder.join("model");
    let (old, new) = (vec![1u8; 3_000_000], vec![2u8; 3_000_000]);
    let around = [1u8; 5];
    let tensors = [
        u8s("a", &around, &[5]),
        u8s("b", &old, &[3_000_000]),
        u8s("c", &around, &[5]),
    ];
    for strategy in STRATEGIES {
        save(&path, &tensors, None, &SaveOptions::default()).unwrap();
        let edited = edit::patch_tensor(&path, "b", &new, &options(strategy)).unwrap();
        let in_place = strategy == Strategy::InPlace;
        assert_eq!(edited.how == How::InPlace, in_place, "{strategy:?}");
        check(
            &folder,
            &path,
            None,
            &[("a", &around), ("b", &new), ("c", &around)],
        );
    }
}

#[test]
fn appended_tensors() {
    let more = [u8s("d", b"dd", &[2]), u8s("empty", b"", &[0])];
    let all = [ABC, &[("d", b"dd"), ("empty", b"")]].concat();
    for (strategy, reserve) in [
        (Strategy::Auto, 0),
        (Strategy::Copy, 500),
        (Strategy::InPlace, 500),
    ] {
        for old in [None, Some(metadata(&[("k", "v")]))] {
            let folder = Folder::new();
            let path = folder.join("model");
            write(&path, old.as_ref(), reserve);
            let edited = edit::append(&path, &more, &options(strategy)).unwrap();
            let in_place = strategy == Strategy::InPlace;
            assert_eq!(edited.how == How::InPlace, in_place);
            assert_eq!(edited.file_bytes, fs::metadata(&path).unwrap().len());
            check(&folder, &path, old.as_ref(), &all);
            let error = edit::append(&path, &more[..1], &options(strategy)).unwrap_err();
            let expected = "two tensors are called `d`; rename or drop one";
            assert!(error.to_string().ends_with(expected), "{error}");
            check(&folder, &path, old.as_ref(), &all);
        }
    }
    let folder = Folder::new();
    let path = folder.join("model");
    write(&path, None, 0);
    let error = edit::append(&path, &more, &options(Strategy::InPlace)).unwrap_err();
    assert!(matches!(error, StoreError::NoRoom { .. }), "{error}");
    check(&folder, &path, None, ABC);
}

#[test]
fn names() {
    let pairs = |list: &[(&str, &str)]| -> BTreeMap<String, String> { metadata(list) };
    for strategy in STRATEGIES {
        let folder = Folder::new();
        let path = folder.join("model");
        write(&path, None, 0);
        let swap = pairs(&[("a", "b"), ("b", "a")]);
        edit::rename_tensors(&path, &swap, &options(strategy)).unwrap();
        check(
            &folder,
            &path,
            None,
            &[("a", b"bb"), ("b", b"aaaa"), ("c", b"c")],
        );
        let error = edit::rename_tensors(&path, &pairs(&[("a", "c")]), &options(strategy));
        let error = error.unwrap_err().to_string();
        assert!(
            error.ends_with("two tensors are called `c`; rename or drop one"),
            "{error}"
        );
        let error = edit::rename_tensors(&path, &pairs(&[("x", "y")]), &options(strategy));
        assert!(matches!(error, Err(StoreError::NoSuchTensor { .. })));
        check(
            &folder,
            &path,
            None,
            &[("a", b"bb"), ("b", b"aaaa"), ("c", b"c")],
        );
    }
    let folder = Folder::new();
    let path = folder.join("model");
    write(&path, None, 0);
    let long = "a name that is much longer than the one there was";
    edit::rename_tensors(&path, &pairs(&[("a", long)]), &options(Strategy::Auto)).unwrap();
    check(
        &folder,
        &path,
        None,
        &[(long, b"aaaa"), ("b", b"bb"), ("c", b"c")],
    );
}

#[test]
fn dropped_tensors() {
    let drop = |path: &Path, names: &[&str], strategy| {
        let names: BTreeSet<String> = names.iter().map(|name| name.to_string()).collect();
        edit::drop_tensors(path, &names, &options(strategy))
    };
    for kept in 0..8u8 {
        let folder = Folder::new();
        let path = folder.join("model");
        write(&path, Some(&metadata(&[("k", "v")])), 0);
        let (gone, stay): (Vec<_>, Vec<_>) = (0..3).partition(|bit| kept & (1 << bit) == 0);
        let gone: Vec<&str> = gone.into_iter().map(|bit: usize| ABC[bit].0).collect();
        let stay: Vec<_> = stay.into_iter().map(|bit: usize| ABC[bit]).collect();
        drop(&path, &gone, Strategy::Auto).unwrap();
        check(&folder, &path, Some(&metadata(&[("k", "v")])), &stay);
    }
    let folder = Folder::new();
    let path = folder.join("model");
    write(&path, None, 0);
    assert!(matches!(
        drop(&path, &["a"], Strategy::InPlace),
        Err(StoreError::NoRoom { .. })
    ));
    assert!(matches!(
        drop(&path, &["x"], Strategy::Auto),
        Err(StoreError::NoSuchTensor { .. })
    ));
    check(&folder, &path, None, ABC);
}

#[test]
fn not_files_and_not_safetensors() {
    let folder = Folder::new();
    let set = |path: &Path| edit::set_metadata(path, &changes(&["a=b"]), &EditOptions::default());
    assert!(matches!(
        set(&folder.join("missing")),
        Err(StoreError::Io { .. })
    ));
    assert!(matches!(set(folder.path()), Err(StoreError::Io { .. })));
    for bytes in [
        &b""[..],
        b"1234567",
        b"PK\x03\x04 a zip file",
        &raw_file("{}", b"trailing"),
    ] {
        let path = folder.write("model", bytes);
        let error = set(&path).unwrap_err();
        assert!(matches!(error, StoreError::Format { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

#[cfg(unix)]
#[test]
fn links_and_modes_stay() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
    for strategy in STRATEGIES {
        let folder = Folder::new();
        let path = folder.join("model");
        write(&path, Some(&metadata(&[("k", "value")])), 0);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("model", folder.join("link")).unwrap();
        let before = fs::metadata(&path).unwrap();
        edit::set_metadata(&folder.join("link"), &changes(&["k=v"]), &options(strategy)).unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(after.mode() & 0o7777, 0o640);
        assert_eq!(before.ino() == after.ino(), strategy != Strategy::Copy);
        assert!(
            fs::symlink_metadata(folder.join("link"))
                .unwrap()
                .is_symlink()
        );
        fs::remove_file(folder.join("link")).unwrap();
        check(&folder, &path, Some(&metadata(&[("k", "v")])), ABC);
    }
}

#[test]
fn order_is_kept_by_edits() {
    let folder = Folder::new();
    let path = folder.join("model");
    let tensors = [
        u8s("z", b"1", &[1]),
        u8s("m", b"2", &[1]),
        u8s("a", b"3", &[1]),
    ];
    let insertion = SaveOptions {
        order: Order::Insertion,
        ..SaveOptions::default()
    };
    save(&path, &tensors, None, &insertion).unwrap();
    let names = |path: &Path| -> Vec<String> {
        let checkpoint = Checkpoint::open(path).unwrap();
        checkpoint.names().map(str::to_owned).collect()
    };
    edit::append(&path, &[u8s("b", b"4", &[1])], &options(Strategy::Auto)).unwrap();
    assert_eq!(names(&path), ["z", "m", "a", "b"]);
    edit::drop_tensors(
        &path,
        &BTreeSet::from(["m".to_owned()]),
        &options(Strategy::Auto),
    )
    .unwrap();
    assert_eq!(names(&path), ["z", "a", "b"]);
}
