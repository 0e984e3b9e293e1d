//! What whole-file walks find: damage, missing shards, and hashes.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use common::{Folder, file_of, raw_file};
use safelight_format::{Dtype, Strictness, TensorView};
use safelight_store::{
    Checkpoint, HashOptions, Hashes, LoadOptions, OpenOptions, SaveOptions, StoreError, Verdict,
    Writer, hash, hash_reader, verify,
};

fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn verified(path: &Path) -> Verdict {
    verify(path, &OpenOptions::default(), &mut go_on).unwrap()
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// Three tensors, `big` of 10 MB in the middle of the file.
fn model() -> Vec<u8> {
    let big = bytes(10_000_000);
    let tensor = |name, bytes| TensorView {
        name,
        dtype: Dtype::U8,
        shape: match name {
            "big" => &[10_000_000],
            _ => &[3],
        },
        bytes,
    };
    file_of(
        &[
            tensor("a", b"abc"),
            tensor("big", &big),
            tensor("z", b"xyz"),
        ],
        None,
    )
}

fn names<'a>(tensors: impl Iterator<Item = safelight_format::TensorInfo<'a>>) -> Vec<&'a str> {
    tensors.map(|tensor| tensor.name).collect()
}

/// Writes to a byte of a file, some time after it was opened: times have steps of a few milliseconds.
fn write_to(path: &Path) {
    use std::io::{Seek as _, Write as _};
    std::thread::sleep(std::time::Duration::from_millis(30));
    let mut file = fs::File::options().write(true).open(path).unwrap();
    file.seek(std::io::SeekFrom::Start(5_000_000)).unwrap();
    file.write_all(b"!").unwrap();
}

#[test]
fn a_file_that_is_written_to_meanwhile_is_noticed() {
    let folder = Folder::new();
    let path = folder.write("m.safetensors", model());
    let is_changed = |error: &StoreError| {
        let text = error.to_string();
        matches!(error, StoreError::ChangedMeanwhile { .. })
            && text.contains("m.safetensors: was changed while it was read")
            && text.contains("run again")
    };
    let mut once = Some(&path);
    let mut change = |_, _| {
        once.take().into_iter().for_each(|path| write_to(path));
        ControlFlow::Continue(())
    };
    let error = hash(&path, &HashOptions::default(), &mut change).unwrap_err();
    assert!(is_changed(&error), "{error}");
    let mut once = Some(&path);
    let mut change = |_, _| {
        once.take().into_iter().for_each(|path| write_to(path));
        ControlFlow::Continue(())
    };
    let verdict = verify(&path, &OpenOptions::default(), &mut change).unwrap();
    let problem = verdict.files[0].problem.as_ref().unwrap();
    assert!(is_changed(problem) && !verdict.is_intact(), "{problem}");

    let checkpoint = Checkpoint::open(&path).unwrap();
    checkpoint.unchanged().unwrap();
    // Other names and other rights are no other content.
    fs::hard_link(&path, folder.join("link")).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    checkpoint.unchanged().unwrap();
    checkpoint.unchanged_around("z").unwrap();
    write_to(&path);
    assert!(is_changed(&checkpoint.unchanged().unwrap_err()));
    assert!(is_changed(&checkpoint.unchanged_around("z").unwrap_err()));
    assert!(is_changed(
        &checkpoint.load(&LoadOptions::default()).unwrap_err()
    ));
}

#[test]
fn copying_out_of_a_file_that_became_shorter_blames_that_file() {
    let folder = Folder::new();
    let path = folder.write("m.safetensors", model());
    let checkpoint = Checkpoint::open(&path).unwrap();
    let specs: Vec<_> = checkpoint.tensors().map(|info| info.to_spec()).collect();
    let options = SaveOptions::default();
    let writer = Writer::create(&folder.join("to"), &specs, None, &options).unwrap();
    let at = |name: &str| specs.iter().position(|spec| spec.name == name).unwrap();
    checkpoint.copy_to("a", (0, 3), &writer, at("a")).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(1000).unwrap();
    let copied = checkpoint.copy_to("big", (0, 10_000_000), &writer, at("big"));
    let text = copied.unwrap_err().to_string();
    assert!(
        text.contains("m.safetensors: the file had 100") && text.contains("now has 1000"),
        "{text}"
    );
    drop(writer);
    assert_eq!(folder.list(), ["m.safetensors"]);
}

#[test]
fn an_intact_file_is_read_to_its_end() {
    let folder = Folder::new();
    let file = model();
    let path = folder.write("m.safetensors", &file);
    let mut seen = Vec::new();
    let verdict = verify(&path, &OpenOptions::default(), &mut |done, all| {
        assert_eq!(all, file.len() as u64);
        seen.push(done);
        ControlFlow::Continue(())
    });
    let verdict = verdict.unwrap();
    assert!(verdict.is_intact() && verdict.index.is_none());
    assert!(seen.is_sorted() && seen.len() == 3);
    assert_eq!(seen.last(), Some(&(file.len() as u64)));
    assert_eq!(names(verdict.files[0].intact()), ["a", "big", "z"]);
}

#[test]
fn a_cut_file_names_what_is_left() {
    let folder = Folder::new();
    let file = model();
    for (len, intact) in [
        (file.len() - 1, vec!["a", "big"]),
        (file.len() - 4, vec!["a"]),
        (file.len() - 10_000_004, vec![]),
        (9, vec![]),
        (0, vec![]),
    ] {
        let path = folder.write("m.safetensors", &file[..len]);
        let verdict = verified(&path);
        let [one] = &verdict.files[..] else { panic!() };
        assert!(!verdict.is_intact());
        assert_eq!(names(one.intact()), intact, "{len}");
        assert_eq!(one.file_bytes, len as u64);
        if len > 9 {
            assert_eq!(one.expected_bytes, Some(file.len() as u64));
            assert_eq!(names(one.damaged()).len(), 3 - intact.len());
        }
        assert!(matches!(one.problem, Some(StoreError::Format { .. })));
    }
    let longer = [&file[..], b"tail"].concat();
    let verdict = verified(&folder.write("m.safetensors", longer));
    assert_eq!(names(verdict.files[0].intact()), ["a", "big", "z"]);
    assert!(!verdict.is_intact());
}

#[test]
fn shards_are_checked_each_and_together() {
    let folder = Folder::new();
    let one = |name| {
        let (dtype, shape, bytes) = (Dtype::U8, &[2][..], &[1, 2][..]);
        let tensor = TensorView {
            name,
            dtype,
            shape,
            bytes,
        };
        file_of(&[tensor], None)
    };
    folder.write("m-1.safetensors", one("a"));
    folder.write("m-2.safetensors", one("b"));
    let index = folder.write(
        "m.safetensors.index.json",
        r#"{"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#,
    );
    for path in [index.as_path(), folder.path()] {
        let verdict = verified(path);
        assert!(verdict.is_intact(), "{verdict:?}");
        assert_eq!(verdict.files.len(), 2);
    }
    // The second holds another tensor than the index says: each file is fine, together they are not.
    folder.write("m-2.safetensors", one("c"));
    let verdict = verified(&index);
    assert!(verdict.files.iter().all(|file| file.is_intact()) && !verdict.is_intact());
    assert!(matches!(
        verdict.index.unwrap().problems[..],
        [StoreError::NotInShard { .. }]
    ));
    // One cut, one missing: both are named.
    folder.write("m-1.safetensors", &one("a")[..20]);
    fs::remove_file(folder.join("m-2.safetensors")).unwrap();
    let verdict = verified(&index);
    assert!(verdict.files.iter().all(|file| file.problem.is_some()));
    folder.write("m.safetensors.index.json", "{");
    let verdict = verified(&index);
    assert!(matches!(
        verdict.index.unwrap().problems[..],
        [StoreError::BadIndex { .. }]
    ));
}

#[test]
fn an_index_must_tell_the_truth() {
    let folder = Folder::new();
    let shard = |names: &[&str]| {
        let tensors: Vec<TensorView> = names
            .iter()
            .map(|name| TensorView {
                name,
                dtype: Dtype::U8,
                shape: &[3],
                bytes: b"abc",
            })
            .collect();
        file_of(&tensors, None)
    };
    folder.write("1.safetensors", shard(&["a", "b"]));
    folder.write("2.safetensors", shard(&["b", "c"]));
    let index = |size: &str, map: &str| {
        let json = format!(r#"{{"metadata":{{"total_size":{size}}},"weight_map":{{{map}}}}}"#);
        let path = folder.write("m.safetensors.index.json", json);
        verified(&path)
    };
    let all = r#""a":"1.safetensors","b":"./1.safetensors","c":".//2.safetensors""#;
    let verdict = index("9", all);
    assert!(!verdict.is_intact());
    let said = verdict.index.unwrap();
    assert!(
        matches!(&said.problems[..], [StoreError::InTwoFiles { tensors, .. }] if tensors[0].0 == "b")
    );
    assert!(said.warnings.is_empty());

    let verdict = index("9", r#""a":"1.safetensors","c":"2.safetensors""#);
    let problems = verdict.index.unwrap().problems;
    assert!(
        matches!(&problems[..], [StoreError::NotInIndex { tensors, .. }] if tensors.len() == 2)
    );
    let problems = index("0", "").index.unwrap().problems;
    assert!(
        problems[0].to_string().contains("`weight_map` is empty"),
        "{problems:?}"
    );

    folder.write("2.safetensors", shard(&["c"]));
    for (size, intact, word) in [
        ("9", true, None),
        ("8", true, Some("`total_size` is 8, ")),
        ("\"9\"", true, Some("is no whole number")),
    ] {
        let verdict = index(size, all);
        assert_eq!(verdict.is_intact(), intact, "{size}");
        let warnings = verdict.index.unwrap().warnings;
        assert_eq!(
            warnings
                .first()
                .map(|text| text.contains(word.unwrap_or("-"))),
            word.map(|_| true)
        );
    }
    let strict = OpenOptions {
        strictness: Strictness::Spec,
        ..Default::default()
    };
    let verdict = verify(
        &folder.join("m.safetensors.index.json"),
        &strict,
        &mut go_on,
    )
    .unwrap();
    assert!(!verdict.is_intact());
}

#[test]
#[cfg(target_os = "linux")]
fn files_that_lie_about_their_size_are_refused() {
    let error = hash(
        Path::new("/proc/version"),
        &HashOptions::default(),
        &mut go_on,
    );
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("it says it has 0 bytes, and has more"),
        "{error}"
    );
}

#[test]
fn walks_stop_when_asked_and_say_what_they_cannot_open() {
    let folder = Folder::new();
    let path = folder.write("m.safetensors", model());
    let mut stop = |_: u64, _: u64| ControlFlow::Break(());
    let stopped = verify(&path, &OpenOptions::default(), &mut stop);
    assert!(matches!(stopped, Err(StoreError::Stopped { .. })));
    let stopped = hash(&path, &HashOptions::default(), &mut stop);
    assert!(matches!(stopped, Err(StoreError::Stopped { .. })));
    let gone = folder.join("gone");
    assert!(verify(&gone, &OpenOptions::default(), &mut go_on).is_err());
    assert!(hash(&gone, &HashOptions::default(), &mut go_on).is_err());
    assert!(hash(folder.path(), &HashOptions::default(), &mut go_on).is_err());
}

/// Expected: `sha256sum`, `b3sum` and the definitions of the short hashes.
#[test]
fn hashes_are_those_of_other_programs() {
    let folder = Folder::new();
    let all = HashOptions::default();
    let hashed = |bytes: &[u8]| hash(&folder.write("m", bytes), &all, &mut go_on).unwrap();
    let empty = hashed(b"");
    let sha = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(empty.sha256.as_deref(), Some(sha));
    assert_eq!(empty.autov1.as_deref(), Some("e3b0c442"));
    assert_eq!(
        empty.blake3.as_deref(),
        Some("af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262")
    );
    assert_eq!((empty.data_bytes, empty.autov3()), (None, None));

    let file = raw_file(
        r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#,
        b"abc",
    );
    let hashes = hashed(&file);
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(hashes.data_sha256.as_deref(), Some(abc));
    assert_eq!(hashes.autov3(), Some("ba7816bf8f01"));
    assert_eq!(hashes.sshs_model.as_deref(), Some(abc));
    assert_eq!(hashes.modelspec(), Some(format!("0x{abc}")));
    assert_eq!(
        hashes.autov2(),
        hashes.sha256.as_deref().map(|hash| &hash[..10])
    );
    assert_eq!(hashes.data_bytes, Some(3));

    let only = HashOptions {
        data_sha256: true,
        ..HashOptions::NONE
    };
    let hashes = hash(&folder.join("m"), &only, &mut go_on).unwrap();
    let expected = Hashes {
        file_bytes: file.len() as u64,
        data_bytes: Some(3),
        data_sha256: Some(abc.to_owned()),
        ..Default::default()
    };
    assert_eq!(hashes, expected);
}

#[test]
fn large_files_are_hashed_as_in_one_piece() {
    let folder = Folder::new();
    let file = model();
    let path = folder.write("m.safetensors", &file);
    let hashes = hash(&path, &HashOptions::default(), &mut go_on).unwrap();
    let sha256 = |bytes: &[u8]| Some(safelight_store::sha256_hex(bytes));
    assert_eq!(hashes.sha256, sha256(&file));
    let data = file.len() - 10_000_006;
    assert_eq!(hashes.data_sha256, sha256(&file[data..]));
    assert_eq!(
        hashes.autov1,
        sha256(&file[0x100000..0x110000]).map(|hash| hash[..8].to_owned())
    );
    assert_eq!(
        hashes.blake3,
        Some(blake3::hash(&file).to_hex().to_string())
    );
}

#[test]
fn a_pipe_has_the_hashes_of_its_file() {
    let folder = Folder::new();
    let large = bytes(3_000_001);
    let mut lying = model();
    lying.truncate(lying.len() - 1);
    let odd = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    for (name, content) in [
        ("model", model()),
        ("large", large),
        ("cut", lying),
        ("odd", odd),
        ("short", b"abc".to_vec()),
        ("empty", Vec::new()),
    ] {
        let path = folder.write(name, &content);
        let every = HashOptions::default();
        let only = |sha256, data_sha256, autov1, blake3| HashOptions {
            sha256,
            data_sha256,
            autov1,
            blake3,
            ..HashOptions::NONE
        };
        for options in [
            every,
            only(true, false, false, false),
            only(false, true, false, false),
            only(false, false, true, false),
        ] {
            let mut expected = hash(&path, &options, &mut go_on).unwrap();
            if !options.data_sha256 {
                expected.data_bytes = None;
            }
            let mut heard = 0;
            let read = hash_reader("pipe", &mut &content[..], &options, &mut |done| {
                heard = done;
                ControlFlow::Continue(())
            });
            assert_eq!(read.unwrap(), expected, "{name} {options:?}");
            assert_eq!(heard, content.len() as u64);
        }
    }
    let stop = &mut |_| ControlFlow::Break(());
    let stopped = hash_reader("pipe", &mut &b"abc"[..], &HashOptions::default(), stop);
    assert!(matches!(stopped, Err(StoreError::Stopped { .. })));
}

/// A file of the golden cases, see `tools/golden/hashes.py`.
fn golden_file(case: &serde_json::Value) -> Vec<u8> {
    let header = case["header"].as_str().unwrap();
    let header = header
        .replace("SPACES", &" ".repeat(70_000))
        .replace("REPEATED", &"é".repeat(600_000));
    let said: serde_json::Value = serde_json::from_str(&header).unwrap();
    let mut file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    let data_start = file.len();
    for (name, seed) in case["seeds"].as_object().unwrap() {
        let place = |index: usize| said[name]["data_offsets"][index].as_u64().unwrap();
        let (start, end) = (place(0), place(1));
        file.resize(file.len().max(data_start + end as usize), 0);
        for i in 0..end - start {
            let byte = i * i * 31 + i * 7 + i / 256 + 131 * seed.as_u64().unwrap();
            file[data_start + (start + i) as usize] = byte as u8;
        }
    }
    file
}

#[test]
fn hashes_are_those_of_kohya_and_a1111() {
    let golden = include_str!("../../../testdata/golden/hash/hashes.json");
    let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
    let folder = Folder::new();
    for case in golden["cases"].as_array().unwrap() {
        let (name, expected) = (case["case"].as_str().unwrap(), &case["hashes"]);
        let file = golden_file(case);
        let path = folder.write("m.safetensors", &file);
        let all = HashOptions::default();
        let hashes = hash(&path, &all, &mut go_on).unwrap();
        let found = serde_json::json!({
            "sha256": hashes.sha256, "autov1": hashes.autov1, "autov2": hashes.autov2(), "autov3": hashes.autov3(),
            "modelspec": hashes.modelspec(), "sshs_model_hash": hashes.sshs_model, "sshs_legacy_hash": hashes.sshs_legacy,
        });
        assert_eq!(&found, expected, "{name}");
        let only = HashOptions {
            sshs_model: true,
            sshs_legacy: true,
            ..HashOptions::NONE
        };
        let sshs = hash(&path, &only, &mut go_on).unwrap();
        assert_eq!(sshs.sshs_model, hashes.sshs_model, "{name}");
        assert_eq!((sshs.data_sha256, sshs.sha256), (None, None), "{name}");
        let piped = hash_reader("a pipe", &mut &file[..], &all, &mut |_| {
            ControlFlow::Continue(())
        });
        let mut piped = piped.unwrap();
        if name == "another order" {
            assert_eq!(piped.sshs_model, None);
            piped.sshs_model = hashes.sshs_model.clone();
        }
        assert_eq!(piped, hashes, "{name}");
    }
}

#[test]
fn a_hash_that_depends_on_an_order_nobody_knows_is_none() {
    let long = "x".repeat(1 << 20);
    let json = format!(
        r#"{{"__metadata__":{{"ss_a":"1","ss_b":"{long}"}},"a":{{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}}}"#
    );
    let folder = Folder::new();
    let path = folder.write("m", raw_file(&json, b"abc"));
    let hashes = hash(&path, &HashOptions::default(), &mut go_on).unwrap();
    assert!(hashes.sshs_legacy.is_none() && hashes.sshs_model.is_some() && hashes.autov1.is_some());
}
