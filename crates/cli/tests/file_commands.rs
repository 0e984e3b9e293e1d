//! The commands for tensor files, each as a user meets them.

mod common;

use std::fs;
use std::io::Read as _;
use std::process::Stdio;

use common::{Place, floats, lines, model, raw};
use safelight_format::{Dtype, Metadata, Order, TensorView};
use safelight_store::{SaveOptions, save};
use serde_json::Value;

/// Every command that takes a file first, with arguments that would be right for a sound one.
const COMMANDS: [&[&str]; 8] = [
    &["ls", "FILE"],
    &["cat", "FILE", "a"],
    &["verify", "FILE"],
    &["meta", "get", "FILE"],
    &["meta", "set", "FILE", "k=v"],
    &["meta", "rm", "FILE", "--all"],
    &["split", "FILE", "--count", "2"],
    &["repair", "FILE", "-o", "new.safetensors"],
];

fn with_file<'a>(command: &[&'a str], file: &'a str) -> Vec<&'a str> {
    command
        .iter()
        .map(|&word| if word == "FILE" { file } else { word })
        .collect()
}

#[test]
fn wrong_files_are_named_with_exit_code_3() {
    let place = Place::new();
    place.write("empty", b"");
    place.write("zip.ckpt", b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0\0\0\x10\0\0\0\x10\0\0\0archive/data.pkl\x80\x02}q\0.");
    place.write("noise", b"\x13\x37\xff\xee\xdd\xcc\xbb\xaa\x99\x88\x77\x66");
    place.write("bad.safetensors.index.json", b"{\"weight_map\": 7}");
    raw(&place, "json", "{\"a\":", b"");
    fs::create_dir(place.path("folder")).unwrap();
    for command in COMMANDS {
        for file in [
            "missing",
            "empty",
            "zip.ckpt",
            "noise",
            "json",
            "bad.safetensors.index.json",
            "folder",
        ] {
            if file == "folder" && command[0] == "repair" {
                continue;
            }
            let arguments = with_file(command, file);
            let before = place.everything();
            let ran = place.run(&arguments);
            assert_eq!(
                ran.code,
                Some(3),
                "{arguments:?}\n{}\n{}",
                ran.stdout,
                ran.stderr
            );
            let said = format!("{}{}", ran.stdout, ran.stderr);
            assert!(
                said.contains(file) && !said.contains("panicked"),
                "{arguments:?}\n{said}"
            );
            assert_eq!(place.everything(), before, "{arguments:?}");
            if command[0] != "verify" {
                let arguments = [&arguments[..], &["--json"]].concat();
                let failed = place.run(&arguments);
                let answer = lines(&failed).pop().unwrap();
                assert_eq!(
                    answer["error"]["exit_code"], 3,
                    "{arguments:?}\n{}",
                    failed.stdout
                );
                assert!(failed.stderr.starts_with("error: "), "{}", failed.stderr);
            }
        }
    }
}

#[test]
fn wrong_requests_have_exit_code_2() {
    let place = Place::new();
    model(&place, "m.safetensors");
    for command in COMMANDS.iter().chain([&["hash", "FILE"].as_slice()]) {
        let arguments = [
            &with_file(command, "m.safetensors")[..],
            &["--no-such-flag"],
        ]
        .concat();
        place.refuses(&arguments, 2, &["--no-such-flag"]);
        place.refuses(&command[..1], 2, &["Usage"]);
    }
    let refuses = |arguments: &[&str], words: &[&str]| {
        place.refuses(arguments, 2, words);
    };
    refuses(
        &["ls", "m.safetensors", "--regex", "a("],
        &["unclosed group"],
    );
    refuses(&["ls", "m.safetensors", "--depth", "2"], &["--tree"]);
    refuses(
        &["cat", "m.safetensors", "weight"],
        &["no tensor `weight`", "layers.0.weight"],
    );
    refuses(&["cat", "m.safetensors", "mask", "3"], &["mask", "3"]);
    refuses(&["cat", "m.safetensors", "mask", "[0"], &["[0"]);
    refuses(
        &["cat", "m.safetensors", "mask", "-o", "m.safetensors"],
        &["m.safetensors", "another file"],
    );
    refuses(
        &["meta", "get", "m.safetensors", "titel"],
        &["no metadata key `titel`", "title"],
    );
    refuses(&["meta", "set", "m.safetensors", "title"], &["title=House"]);
    refuses(
        &["meta", "set", "m.safetensors", "title=@nothing"],
        &["nothing"],
    );
    refuses(&["meta", "rm", "m.safetensors", "titel"], &["titel"]);
    refuses(&["split", "m.safetensors"], &["--size"]);
    refuses(&["split", "m.safetensors", "--size", "5XB"], &["GiB"]);
    refuses(
        &["split", "m.safetensors", "--count", "2", "--stem", "../x"],
        &["--stem"],
    );
    refuses(&["hash", "m.safetensors", "--kind", "md5"], &["sha256"]);
    refuses(&["verify", "m.safetensors", "--sha256", "12"], &["64"]);
    refuses(&["browse", "m.safetensors"], &["terminal", "ls --tree"]);
}

#[test]
fn ls_lists_tensors() {
    let place = Place::new();
    model(&place, "m.safetensors");
    let ran = place.works(&["ls", "m.safetensors", "--sort", "name"]);
    let first: Vec<&str> = ran
        .stdout
        .lines()
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert_eq!(first[..3], ["NAME", "empty", "layers.0.weight"]);
    assert!(
        ran.stdout
            .contains("layers.1.weight   F32    [4, 6]  96 bytes\n"),
        "{}",
        ran.stdout
    );
    assert!(
        ran.stdout.contains("7 tensors, 79 elements, 305 bytes\n"),
        "{}",
        ran.stdout
    );

    let answer = place.works(&["ls", "m.safetensors", "--json"]).json();
    assert_eq!(
        (&answer["tensor_count"], &answer["bytes"]),
        (&7.into(), &305.into())
    );
    assert_eq!(answer["dtypes"]["F32"]["tensors"], 3);
    assert_eq!(answer["metadata"]["title"], "A house");
    let file = fs::read(place.path("m.safetensors")).unwrap();
    for tensor in answer["tensors"].as_array().unwrap() {
        if tensor["name"] == "step" {
            let offset = tensor["offset"].as_u64().unwrap() as usize;
            assert_eq!(file[offset..offset + 8], 1234i64.to_le_bytes());
            assert_eq!(tensor["shape"], serde_json::json!([]));
        }
    }
    let names = |arguments: &[&str]| -> Vec<String> {
        let all = [&["ls", "m.safetensors", "--json"], arguments].concat();
        let answer = place.works(&all).json();
        let tensors = answer["tensors"].as_array().unwrap();
        tensors
            .iter()
            .map(|tensor| tensor["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&["--name", "layers.1"]), ["layers.1.weight"]);
    assert_eq!(
        names(&["--name", "*.bias", "--regex", "^m.sk$"]),
        ["layers.2.bias", "mask"]
    );
    assert_eq!(names(&["--sort", "size", "-n", "[ms]*"]), ["mask", "step"]);
    assert_eq!(
        names(&["--sort", "size", "--reverse"]).last().unwrap(),
        "empty"
    );

    let tree = place.works(&["ls", "m.safetensors", "--tree"]).stdout;
    assert!(tree.contains("294 bytes  4 tensors\n  0.weight"), "{tree}");
    let (nine, ten) = (
        tree.find("  2.bias").unwrap(),
        tree.find("  10.weight").unwrap(),
    );
    assert!(nine < ten, "{tree}");
    let flat = place
        .works(&["ls", "m.safetensors", "--tree", "--depth", "1"])
        .stdout;
    assert!(
        flat.contains("layers") && !flat.contains("weight"),
        "{flat}"
    );
    let totals = place.works(&["ls", "m.safetensors", "--totals"]).stdout;
    assert!(
        !totals.contains("layers") && totals.contains("BF16"),
        "{totals}"
    );
}

#[test]
fn tables_fit_80_columns_and_names_are_tame() {
    let place = Place::new();
    let evil = "\u{1b}[2J\u{202e}evil\0";
    let long = format!("model.{}.weight", "x".repeat(300));
    let wide = "模型".repeat(60);
    let tensors = [evil, &long, &wide].map(|name| TensorView {
        name,
        dtype: Dtype::U8,
        shape: &[1],
        bytes: &[1],
    });
    save(
        &place.path("m.safetensors"),
        &tensors,
        None,
        &SaveOptions::default(),
    )
    .unwrap();
    for arguments in [
        &["ls", "m.safetensors"][..],
        &["ls", "m.safetensors", "--tree"],
        &["verify", "m.safetensors"],
    ] {
        let output = place
            .command(arguments)
            .env("COLUMNS", "80")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        for line in text.lines() {
            let columns: usize = line
                .chars()
                .map(|c| if c > '\u{2e80}' { 2 } else { 1 })
                .sum();
            assert!(columns <= 80, "{columns}: {line}");
        }
        assert!(!text.contains(['\u{1b}', '\u{202e}', '\0']), "{text:?}");
    }
}

#[test]
fn a_hundred_thousand_tensors_take_no_time() {
    let place = Place::new();
    let names: Vec<String> = (0..100_000)
        .map(|i| format!("model.layers.{}.experts.{}.w", i / 100, i % 100))
        .collect();
    let tensors: Vec<TensorView<'_>> = names
        .iter()
        .map(|name| TensorView {
            name,
            dtype: Dtype::U8,
            shape: &[1],
            bytes: &[7],
        })
        .collect();
    save(
        &place.path("m.safetensors"),
        &tensors,
        None,
        &SaveOptions::default(),
    )
    .unwrap();
    let listed = place.works(&["ls", "m.safetensors", "--long"]);
    assert_eq!(listed.stdout.lines().count(), 100_002);
    let answer = place.works(&["ls", "m.safetensors", "--json"]).json();
    assert_eq!(answer["tensors"].as_array().unwrap().len(), 100_000);
    place.works(&["ls", "m.safetensors", "--tree"]);
    place.works(&["verify", "m.safetensors"]);
    place.works(&["meta", "get", "m.safetensors"]);
    place.works(&["cat", "m.safetensors", "model.layers.999.experts.99.w"]);

    // Whoever reads only the beginning ends the program without a word.
    for arguments in [
        &["ls", "m.safetensors"][..],
        &["ls", "m.safetensors", "--json"],
        &["ls", "m.safetensors", "--tree"],
    ] {
        let mut child = place
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut few = [0; 10];
        child.stdout.as_mut().unwrap().read_exact(&mut few).unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && stderr.is_empty(),
            "{arguments:?} {:?} {stderr}",
            output.status
        );
    }
}

#[test]
fn cat_prints_numbers() {
    let place = Place::new();
    model(&place, "m.safetensors");
    let prints = |arguments: &[&str], expected: &str| {
        let ran = place.works(&[&["cat", "m.safetensors"], arguments].concat());
        assert_eq!(ran.stdout, expected, "{arguments:?}");
    };
    prints(&["layers.2.bias"], "[1. 2. 3.]\n");
    prints(&["mask"], "[ True False  True]\n");
    prints(&["step"], "1234\n");
    prints(&["empty"], "[]\n");
    prints(&["layers.0.weight", "-1, ::-2"], "[23. 21. 19.]\n");
    prints(
        &["layers.1.weight", "1:3, :2"],
        "[[-3.  -3.5]\n [-6.  -6.5]]\n",
    );
    prints(&["layers.2.bias", "[0,2]"], "[1. 3.]\n");
    prints(&["layers.1.weight", "-1, -1"], "-11.5\n");
    prints(
        &["layers.1.weight", "-1, -1", "--format", "json"],
        "{\"dtype\":\"F32\",\"file\":\"m.safetensors\",\"shape\":[],\"slice\":\"-1, -1\",\"tensor\":\"layers.1.weight\",\"values\":-11.5}\n",
    );
    let answer = place
        .works(&[
            "cat",
            "m.safetensors",
            "layers.0.weight",
            "[0, 2], :2",
            "--json",
        ])
        .json();
    assert_eq!(
        answer["values"],
        serde_json::json!([[0.0, 1.0], [12.0, 13.0]])
    );
    assert_eq!(answer["shape"], serde_json::json!([2, 2]));

    let output = |arguments: &[&str]| {
        let output = place
            .command(&[&["cat", "m.safetensors"], arguments].concat())
            .output()
            .unwrap();
        assert!(output.status.success());
        output.stdout
    };
    let expected = floats((0..24).map(|i| i as f32));
    assert_eq!(output(&["layers.0.weight", "--format", "raw"]), expected);
    let npy = output(&["layers.0.weight", "-f", "npy"]);
    assert!(npy.starts_with(
        b"\x93NUMPY\x01\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (4, 6), }"
    ));
    assert_eq!((npy.len(), &npy[128..]), (128 + 96, &expected[..]));
    // bf16 becomes float32.
    assert_eq!(
        output(&["layers.2.bias", "-f", "npy"])[128..],
        floats([1.0, 2.0, 3.0])
    );
    place.works(&[
        "cat",
        "m.safetensors",
        "layers.0.weight",
        "-f",
        "raw",
        "-o",
        "out.bin",
    ]);
    assert_eq!(fs::read(place.path("out.bin")).unwrap(), expected);
    assert_eq!(place.everything(), ["m.safetensors", "out.bin"]);
}

#[test]
fn large_tensors_show_their_edges_only() {
    let place = Place::new();
    let bytes = floats((0..4_000_000).map(|i| (i % 1000) as f32));
    let tensors = [TensorView {
        name: "w",
        dtype: Dtype::F32,
        shape: &[2000, 2000],
        bytes: &bytes,
    }];
    save(
        &place.path("m.safetensors"),
        &tensors,
        None,
        &SaveOptions::default(),
    )
    .unwrap();
    let text = place.works(&["cat", "m.safetensors", "w"]).stdout;
    assert_eq!(
        text.lines().next().unwrap(),
        "[[  0.   1.   2. ... 997. 998. 999.]",
        "{text}"
    );
    assert_eq!(text.lines().count(), 7);
    let text = place
        .works(&["cat", "m.safetensors", "w", "::-1, 5:"])
        .stdout;
    assert!(
        text.starts_with("[[  5.   6.   7. ... 997. 998. 999.]"),
        "{text}"
    );
    let all = place
        .works(&["cat", "m.safetensors", "w", "0", "--all"])
        .stdout;
    assert_eq!(all.matches('.').count(), 2000);
}

#[test]
fn verify_names_what_is_damaged() {
    let place = Place::new();
    let path = model(&place, "m.safetensors");
    let ran = place.works(&["verify", "m.safetensors"]);
    assert!(
        ran.stdout.contains("m.safetensors: intact, 7 tensors"),
        "{}",
        ran.stdout
    );
    let whole = fs::read(&path).unwrap();
    fs::write(place.path("cut.safetensors"), &whole[..whole.len() - 4]).unwrap();
    let ran = place.run(&["verify", "cut.safetensors", "m.safetensors"]);
    assert_eq!(ran.code, Some(3), "{}", ran.stdout);
    assert!(
        ran.stdout.contains("cut.safetensors: damaged")
            && ran.stdout.contains("m.safetensors: intact"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("damaged: mask"), "{}", ran.stdout);
    let ran = place.run(&["verify", "cut.safetensors", "--json"]);
    let answer = &lines(&ran)[0];
    assert_eq!(
        (&answer["intact"], &answer["files"][0]["tensor_count"]),
        (&false.into(), &7.into())
    );
    assert!(
        answer["files"][0]["damaged"]
            .as_array()
            .unwrap()
            .contains(&"mask".into())
    );
    let whole_count = answer["files"][0]["whole_count"].as_u64().unwrap();
    assert_eq!(
        whole_count + answer["files"][0]["damaged"].as_array().unwrap().len() as u64,
        7
    );
}

#[test]
fn lint_exits_like_a_linter() {
    let place = Place::new();
    model(&place, "good.safetensors");
    let ran = place.works(&["lint", "good.safetensors"]);
    let last = ran.stdout.lines().last().unwrap();
    assert!(
        last.starts_with("good.safetensors: 0 errors, 0 warnings, "),
        "{last}"
    );
    raw(
        &place,
        "odd.safetensors",
        "\n{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}",
        b"x",
    );
    let ran = place.run(&["lint", "odd.safetensors"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(
        ran.stdout.contains("odd.safetensors: byte 8: warning: "),
        "{}",
        ran.stdout
    );
    assert_eq!(
        place
            .run(&["lint", "odd.safetensors", "--level", "error"])
            .code,
        Some(0)
    );
    let ran = place.run(&[
        "lint",
        "good.safetensors",
        "odd.safetensors",
        "--json",
        "--max",
        "1",
    ]);
    let answers = lines(&ran);
    assert_eq!((ran.code, answers.len()), (Some(1), 2));
    assert_eq!(
        answers[1]["accepted"],
        serde_json::json!({"compat": true, "spec": false})
    );
    assert_eq!(answers[1]["findings"][0]["at_byte"], 8);
    assert_eq!(
        answers[1]["left_out"],
        answers[1]["warnings"].as_u64().unwrap() - 1
    );
    // What can't be read is trouble; what is no safetensors file is a finding.
    place.refuses(&["lint", "missing"], 2, &["missing"]);
    place.refuses(
        &["lint", "good.safetensors", "--level", "x"],
        2,
        &["warning"],
    );
    place.write("noise", b"\x13\x37\xff\xee\xdd\xcc\xbb\xaa\x99\x88\x77\x66");
    assert_eq!(place.run(&["lint", "noise"]).code, Some(1));
    place.works(&["split", "good.safetensors", "-o", "s", "--count", "2"]);
    // The index itself, then its two shards.
    assert_eq!(lines(&place.works(&["lint", "s", "--json"])).len(), 3);
    // `repair` puts in order what `lint` finds.
    place.works(&["repair", "odd.safetensors", "--in-place"]);
    place.works(&["lint", "odd.safetensors"]);
}

#[test]
fn verify_looks_at_numbers_and_checksums() {
    let place = Place::new();
    model(&place, "m.safetensors");
    let sha = place
        .works(&["hash", "m.safetensors", "-k", "sha256"])
        .stdout;
    let sha = sha.split(' ').next().unwrap();
    place.works(&["verify", "m.safetensors", "--sha256", sha, "--numbers"]);
    let wrong = "0".repeat(64);
    let ran = place.run(&["verify", "m.safetensors", "--sha256", &wrong]);
    assert!(
        ran.code == Some(3) && ran.stdout.contains(sha),
        "{}",
        ran.stdout
    );
    let ran = place.works(&["verify", "m.safetensors", "--checksums"]);
    assert!(ran.stdout.contains("no checksum"), "{}", ran.stdout);

    let bytes = floats([1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
    let tensors = [TensorView {
        name: "w",
        dtype: Dtype::F32,
        shape: &[4],
        bytes: &bytes,
    }];
    save(
        &place.path("nan.safetensors"),
        &tensors,
        None,
        &SaveOptions::default(),
    )
    .unwrap();
    place.works(&["verify", "nan.safetensors"]);
    let ran = place.run(&["verify", "nan.safetensors", "--numbers", "--json"]);
    assert_eq!(ran.code, Some(3));
    assert_eq!(
        lines(&ran)[0]["not_finite"],
        serde_json::json!([{"tensor": "w", "nan": 1, "inf": 2}])
    );

    let modelspec = place.works(&["hash", "nan.safetensors", "--json"]).json();
    let known = [(
        "modelspec.hash_sha256".to_owned(),
        modelspec["modelspec"].as_str().unwrap().to_owned(),
    )]
    .into();
    save(
        &place.path("good.safetensors"),
        &tensors,
        Some(&known),
        &SaveOptions::default(),
    )
    .unwrap();
    let ran = place.works(&["verify", "good.safetensors", "--checksums"]);
    assert!(
        ran.stdout.contains("modelspec.hash_sha256 matches"),
        "{}",
        ran.stdout
    );
    // The order of tensors in the file changes neither hash.
    let bytes = floats([1.0, 2.0]);
    let tensor = |name| TensorView {
        name,
        dtype: Dtype::F32,
        shape: &[1],
        bytes: if name == "a" {
            &bytes[..4]
        } else {
            &bytes[4..]
        },
    };
    let [a, b] = ["a", "b"].map(tensor);
    let write = |name: &str, tensors: &[TensorView<'_>], metadata: Option<&Metadata>| {
        let order = Order::Insertion;
        let options = SaveOptions {
            order,
            ..SaveOptions::default()
        };
        save(&place.path(name), tensors, metadata, &options).unwrap();
    };
    write("ab.safetensors", &[a, b], None);
    let hashes = place.works(&["hash", "ab.safetensors", "--json"]).json();
    let sha = hashes["sshs_model_hash"].as_str().unwrap();
    let known =
        ["sshs_model_hash", "modelspec.hash_sha256"].map(|key| (key.to_owned(), sha.to_owned()));
    write("ba.safetensors", &[b, a], Some(&known.into()));
    let ran = place.works(&["verify", "ba.safetensors", "--checksums"]);
    assert_eq!(ran.stdout.matches(" matches").count(), 2, "{}", ran.stdout);

    let known = [("sshs_model_hash".to_owned(), "00".repeat(32))].into();
    save(
        &place.path("bad.safetensors"),
        &tensors,
        Some(&known),
        &SaveOptions::default(),
    )
    .unwrap();
    assert_eq!(
        place
            .run(&["verify", "bad.safetensors", "--checksums"])
            .code,
        Some(3)
    );
}

#[test]
fn hash_prints_every_kind() {
    let place = Place::new();
    place.write("abc", b"abc");
    let ran = place.works(&["hash", "abc", "-k", "sha256"]);
    assert_eq!(
        ran.stdout,
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  abc\n"
    );
    let answer = place.works(&["hash", "abc", "--json"]).json();
    assert_eq!(
        (&answer["autov2"], &answer["autov3"]),
        (&"ba7816bf8f".into(), &Value::Null)
    );
    assert_eq!(
        answer["blake3"],
        "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
    );
    place.refuses(&["hash", "abc", "-k", "autov3"], 3, &["abc", "autov3"]);
    place.refuses(&["hash", "missing"], 3, &["missing"]);
    model(&place, "m.safetensors");
    let answer = place.works(&["hash", "m.safetensors", "--json"]).json();
    let sshs = answer["sshs_model_hash"].as_str().unwrap();
    assert_eq!(answer["modelspec"], format!("0x{sshs}"));
    assert_eq!(answer["autov3"], sshs[..12]);
    let both = place.works(&["hash", "abc", "m.safetensors", "--json"]);
    assert_eq!(lines(&both).len(), 2);
    let text = place.works(&["hash", "m.safetensors"]).stdout;
    assert!(
        text.contains("sha256") && text.contains("autov1") && text.contains(sshs),
        "{text}"
    );
}

#[test]
fn meta_reads() {
    let place = Place::new();
    model(&place, "m.safetensors");
    assert_eq!(
        place.works(&["meta", "get", "m.safetensors"]).stdout,
        "format: pt\ntitle: A house\n"
    );
    assert_eq!(
        place
            .works(&["meta", "get", "m.safetensors", "title"])
            .stdout,
        "A house\n"
    );
    let answer = place
        .works(&["meta", "get", "m.safetensors", "--json"])
        .json();
    assert_eq!(
        answer["metadata"],
        serde_json::json!({"format": "pt", "title": "A house"})
    );
    let answer = place
        .works(&["meta", "get", "m.safetensors", "format", "--json"])
        .json();
    assert_eq!(answer["value"], "pt");
}

#[test]
fn shards_and_folders_are_read_as_one_model() {
    let place = Place::new();
    model(&place, "m.safetensors");
    place.works(&["split", "m.safetensors", "-o", "s", "--count", "3"]);
    for file in ["s", "s/m.safetensors.index.json"] {
        let answer = place.works(&["ls", file, "--json"]).json();
        assert_eq!(answer["tensor_count"], 7);
        assert_eq!(
            place.works(&["cat", file, "layers.2.bias"]).stdout,
            "[1. 2. 3.]\n"
        );
        assert_eq!(
            place.works(&["meta", "get", file, "title"]).stdout,
            "A house\n"
        );
        let verified = place.works(&["verify", file, "--json"]).json();
        assert_eq!(verified["files"].as_array().unwrap().len(), 3);
        assert_eq!(
            place
                .works(&["hash", file, "-k", "autov2"])
                .stdout
                .lines()
                .count(),
            3
        );
    }
    let answer = place
        .works(&["meta", "set", "s", "title=Parts", "--json"])
        .json();
    assert_eq!(answer["files"].as_array().unwrap().len(), 3);
    assert_eq!(
        place.works(&["meta", "get", "s", "title"]).stdout,
        "Parts\n"
    );
    fs::remove_file(place.path("s/m-00002-of-00003.safetensors")).unwrap();
    for command in [&["ls", "s"][..], &["cat", "s", "mask"], &["hash", "s"]] {
        place.refuses(command, 3, &["m-00002-of-00003.safetensors"]);
    }
    let ran = place.run(&["verify", "s"]);
    assert!(
        ran.code == Some(3) && ran.stdout.contains("m-00002-of-00003.safetensors"),
        "{}{}",
        ran.stdout,
        ran.stderr
    );
}

#[test]
fn every_command_has_help_with_examples_and_exit_codes() {
    let place = Place::new();
    let help = place.works(&["--help"]).stdout;
    let files = help
        .split("Tensor files:\n")
        .nth(1)
        .unwrap()
        .split("\n\n")
        .next()
        .unwrap();
    let commands: Vec<&str> = files
        .lines()
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert!(commands.len() >= 8, "{commands:?}");
    for command in commands {
        let help = place.works(&[command, "--help"]).stdout;
        assert!(
            help.contains("Example") && help.contains("Exit codes:"),
            "{command}:\n{help}"
        );
        assert!(
            command == "browse" || help.contains("JSON"),
            "{command}:\n{help}"
        );
    }
}
