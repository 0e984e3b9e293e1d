//! `scan` as people run it: exit codes, JSON, SARIF, folders, and files that slipped past other scanners.
#![allow(missing_docs)]

mod common;

use common::Place;
use safelight_format::{Dtype, TensorView};
use safelight_store::{SaveOptions, save};
use serde_json::Value;

/// `os.system('id')` in protocol 2.
const ATTACK: &[u8] = b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.";

/// `{'a': 1}` in protocol 2.
const HARMLESS: &[u8] = b"\x80\x02}q\0X\x01\0\0\0aK\x01s.";

/// A class that is not on the list, in protocol 2; nothing is called.
const UNKNOWN: &[u8] = b"\x80\x02cmy_module\nMyClass\n.";

fn safetensors(place: &Place, name: &str) {
    let view = TensorView {
        name: "a",
        dtype: Dtype::U8,
        shape: &[4],
        bytes: &[1, 2, 3, 4],
    };
    save(&place.path(name), &[view], None, &SaveOptions::default()).unwrap();
}

/// One JSON object a line.
fn lines(stdout: &str) -> Vec<Value> {
    stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[test]
fn exit_codes_are_those_of_a_linter() {
    let place = Place::new();
    place.write("clean.pkl", HARMLESS);
    place.write("odd.pkl", UNKNOWN);
    place.write("attack.pkl", ATTACK);
    safetensors(&place, "clean.safetensors");
    place.works(&["scan", "clean.pkl", "clean.safetensors"]);
    for (arguments, code) in [
        (&["scan", "odd.pkl"][..], 1),
        (&["scan", "attack.pkl"], 1),
        (&["scan", "clean.pkl", "attack.pkl"], 1),
        (&["scan", "odd.pkl", "--dangerous-only"], 0),
        (&["scan", "attack.pkl", "--dangerous-only"], 1),
        (&["scan", "missing.pkl"], 2),
        (&["scan", "missing.pkl", "attack.pkl"], 2),
        (&["scan"], 2),
        (&["scan", "clean.pkl", "--json", "--sarif"], 2),
    ] {
        let ran = place.run(arguments);
        assert_eq!(ran.code, Some(code), "{arguments:?}\n{}", ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    }
    // The other files are looked at all the same, and the missing one is named.
    let ran = place.run(&["scan", "missing.pkl", "attack.pkl"]);
    assert!(ran.stderr.contains("missing.pkl"), "{}", ran.stderr);
    assert!(
        ran.stdout.contains("would have run: os.system('id')"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("1 dangerous"), "{}", ran.stdout);
}

#[cfg(unix)]
#[test]
fn files_that_cannot_be_read_are_trouble() {
    let place = Place::new();
    place.write("attack.pkl", ATTACK);
    std::os::unix::fs::symlink("gone", place.path("dangling.pkl")).unwrap();
    let ran = place.refuses(&["scan", "dangling.pkl"], 2, &["dangling.pkl"]);
    assert_eq!(ran.stdout, "0 files: 0 clean, 0 suspicious, 0 dangerous\n");
    place.refuses(&["scan", "/dev/null"], 2, &["/dev/null", "device"]);
}

#[test]
fn json_has_an_object_a_line() {
    let place = Place::new();
    place.write("clean.pkl", HARMLESS);
    place.write("attack.pkl", ATTACK);
    let ran = place.run(&["scan", "clean.pkl", "attack.pkl", "--json"]);
    assert_eq!(ran.code, Some(1));
    let [clean, attack] = &lines(&ran.stdout)[..] else {
        panic!("{}", ran.stdout);
    };
    assert_eq!(clean["verdict"], "clean");
    assert_eq!(clean["findings"].as_array().unwrap().len(), 0);
    assert_eq!(attack["verdict"], "dangerous");
    assert!(attack["file"].as_str().unwrap().ends_with("attack.pkl"));
    let call = attack["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|finding| finding["rule"] == "pickle-call")
        .unwrap();
    assert_eq!(call["severity"], "dangerous");
    assert_eq!(call["message"], "would have run: os.system('id')");
    assert!(call["at_byte"].as_u64().unwrap() < ATTACK.len() as u64);
    // Trouble is an object as well.
    let ran = place.run(&["scan", "missing.pkl", "--json"]);
    assert_eq!(ran.code, Some(2));
    assert!(
        lines(&ran.stdout)[0]["error"].is_object() || lines(&ran.stdout)[0]["error"].is_string()
    );
}

#[test]
fn sarif_is_one_log() {
    let place = Place::new();
    place.write("clean.pkl", HARMLESS);
    place.write("attack.pkl", ATTACK);
    let ran = place.run(&["scan", ".", "--sarif"]);
    assert_eq!(ran.code, Some(1));
    let log = ran.json();
    assert_eq!(log["version"], "2.1.0");
    let run = &log["runs"][0];
    let rules: Vec<&str> = run["tool"]["driver"]["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["id"].as_str().unwrap())
        .collect();
    let results = run["results"].as_array().unwrap();
    assert!(!results.is_empty());
    for result in results {
        assert!(rules.contains(&result["ruleId"].as_str().unwrap()));
        let place = &result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"];
        assert!(place.as_str().unwrap().ends_with("attack.pkl"), "{result}");
    }
    assert!(results.iter().any(|result| result["level"] == "error"));
}

#[test]
fn folders_are_walked_by_content_and_not_by_name() {
    let place = Place::new();
    place.write("models/a/deep/picture.png", ATTACK);
    place.write("models/b/clean.pkl", HARMLESS);
    place.write("models/c/weights.safetensors", ATTACK);
    place.write("models/readme.md", b"# words\n");
    let ran = place.run(&["scan", "models", "--json"]);
    assert_eq!(ran.code, Some(1));
    let found: Vec<(String, String)> = lines(&ran.stdout)
        .iter()
        .map(|line| {
            let file = line["file"].as_str().unwrap().replace('\\', "/");
            (file, line["verdict"].as_str().unwrap().to_owned())
        })
        .collect();
    let expected = [
        ("models/a/deep/picture.png", "dangerous"),
        ("models/b/clean.pkl", "clean"),
        ("models/c/weights.safetensors", "dangerous"),
        ("models/readme.md", "clean"),
    ];
    assert_eq!(
        found,
        expected.map(|(file, verdict)| (file.to_owned(), verdict.to_owned()))
    );
}

#[test]
fn known_bypasses_of_other_scanners() {
    let place = Place::new();
    let cases: &[(&str, &[u8])] = &[
        // A broken opcode behind the call: loaders have run it by then.
        ("broken.pkl", b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R\xff"),
        // No STOP at all.
        ("no-stop.pkl", b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R"),
        // The name comes from the stack.
        (
            "stack.pkl",
            b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.",
        ),
        // INST and OBJ instead of REDUCE.
        ("inst.pkl", b"(S'id'\nios\nsystem\n."),
        ("obj.pkl", b"(cos\nsystem\nS'id'\no."),
        // Protocol 0, which has no mark at its start.
        ("zero.pkl", b"cos\nsystem\n(S'id'\ntR."),
        // The real module behind `os`.
        ("posix.pkl", b"cposix\nsystem\n(S'id'\ntR."),
        // Python 2's name.
        ("old.pkl", b"c__builtin__\neval\n(S'1'\ntR."),
        // A second pickle behind a harmless one.
        (
            "second.pkl",
            b"\x80\x02N.\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.",
        ),
        // Another ending.
        ("model.joblib", ATTACK),
        ("noending", ATTACK),
    ];
    for (name, bytes) in cases {
        place.write(name, bytes);
        let ran = place.run(&["scan", name, "--json", "--dangerous-only"]);
        assert_eq!(ran.code, Some(1), "{name}: {}", ran.stdout);
        assert_eq!(ran.json()["verdict"], "dangerous", "{name}: {}", ran.stdout);
    }
}

#[test]
fn safetensors_are_linted() {
    let place = Place::new();
    let file = |header: &str, data: &[u8]| {
        let len = (header.len() as u64).to_le_bytes();
        [&len[..], header.as_bytes(), data].concat()
    };
    let tensor = r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    place.write(
        "twice.safetensors",
        &file(&format!(r#"{{"a":{tensor},"a":{tensor}}}"#), &[0; 4]),
    );
    place.write(
        "short.safetensors",
        &file(&format!(r#"{{"a":{tensor}}}"#), &[0; 3]),
    );
    for (name, rule) in [
        ("twice.safetensors", "duplicate"),
        ("short.safetensors", "cut short"),
    ] {
        let ran = place.run(&["scan", name, "--json"]);
        assert_eq!(ran.code, Some(1), "{name}: {}", ran.stdout);
        let report = ran.json();
        let findings = report["findings"].as_array().unwrap();
        assert!(
            findings
                .iter()
                .all(|finding| finding["rule"] == "safetensors-rule"),
            "{report}"
        );
        let told = findings
            .iter()
            .any(|finding| finding["message"].as_str().unwrap().contains(rule));
        assert!(told, "{name}: no {rule:?} in {report}");
    }
}

#[test]
fn rows_fit_into_a_terminal_and_hide_nothing() {
    let place = Place::new();
    let long = format!(
        "{} echo \u{202e}x\u{1b}[31m",
        "touch /a/rather/long/path".repeat(8)
    );
    let mut pickle = b"\x80\x02cos\nsystem\nX".to_vec();
    pickle.extend_from_slice(&(long.len() as u32).to_le_bytes());
    pickle.extend_from_slice(long.as_bytes());
    pickle.extend_from_slice(b"\x85R.");
    place.write("models/a/attack.pkl", &pickle);
    place.write("models/b/clean.pkl", HARMLESS);
    let ran = place.run(&["scan", "models"]);
    assert_eq!(ran.code, Some(1));
    for line in ran.stdout.lines() {
        assert!(line.chars().count() <= 80, "{line}");
        assert!(!line.contains(['\u{202e}', '\u{1b}']), "{line:?}");
    }
    let last = ran.stdout.lines().last().unwrap();
    assert_eq!(last, "2 files: 1 clean, 0 suspicious, 1 dangerous");
    // JSON escapes what a terminal would obey; the message shows it besides.
    let ran = place.run(&["scan", "models/a/attack.pkl", "--json"]);
    let message = &ran.json()["findings"][0]["message"];
    assert!(
        message.as_str().unwrap().contains("os.system("),
        "{message}"
    );
    let ran = place.run(&["scan", "models", "--sarif"]);
    let text = ran.json()["runs"][0]["results"][0]["message"]["text"].to_string();
    assert!(!text.contains(['\u{202e}', '\u{1b}']), "{text:?}");
}

/// A file that `torch.save` wrote.
fn golden(name: &str) -> Vec<u8> {
    let folder =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden/pickle");
    std::fs::read(folder.join(name)).unwrap()
}

#[test]
fn converting_tells_what_was_beside_the_tensors() {
    let place = Place::new();
    let legacy = golden("legacy_4.pt");
    let plain = golden("plain_4.pkl");
    // A pickle behind the storages; a second one behind the first; a function whose attributes are to be set.
    place.write("behind.pt", &[&legacy[..], ATTACK].concat());
    place.write("second.pkl", &[&plain[..], ATTACK].concat());
    let mut state = plain[..plain.len() - 1].to_vec();
    state.extend_from_slice(b"ctorch._utils\n_rebuild_parameter\n}X\x0b\0\0\0__globals__}sb0.");
    place.write("state.pkl", &state);
    for (name, what) in [
        ("behind.pt", "os.system('id')"),
        ("second.pkl", "os.system('id')"),
        (
            "state.pkl",
            "would have set the state of torch._utils._rebuild_parameter",
        ),
    ] {
        let ran = place.works(&["convert", "--force", name, "out.safetensors"]);
        for words in [
            what,
            "warning: ",
            "nothing of that was run",
            "safelight scan",
            name,
        ] {
            assert!(
                ran.stderr.contains(words),
                "{name}: no {words:?} in {}",
                ran.stderr
            );
        }
        let ran = place.works(&["convert", "--force", name, "out.safetensors", "--json"]);
        let notes = ran.json()["notes"].to_string();
        assert!(
            notes.contains(what) && notes.contains("safelight scan"),
            "{notes}"
        );
        place.works(&["scan", "out.safetensors"]);
    }
    // Honest files convert without a word.
    for name in [
        "legacy_1.pt",
        "legacy_4.pt",
        "plain_0.pkl",
        "plain_4.pkl",
        "module_legacy.pt",
        "views.pt",
        "compressed.pt",
        "lightning.ckpt",
        "numpy_2.pkl",
        "script.pt",
    ] {
        place.write(name, &golden(name));
        let ran = place.works(&["convert", "--force", name, "out.safetensors"]);
        assert_eq!(ran.stderr, "", "{name}");
    }
}

#[test]
fn pickles_are_refused_by_the_name_of_what_they_ask_for() {
    let place = Place::new();
    for (name, bytes) in [
        ("two.pkl", ATTACK),
        ("zero.pkl", b"cos\nsystem\n(S'id'\ntR."),
        ("padded", b"N0I5\n0cos\nsystem\n(S'id'\ntR."),
        // Its ninth byte is that of a safetensors header.
        (
            "eight.ckpt",
            b"\x8c\x07\0\0\0\0\0\0{0cos\nsystem\n(S'id'\ntR.",
        ),
    ] {
        place.write(name, bytes);
        for arguments in [
            &["convert", "--force", name, "out.safetensors"][..],
            &["inspect", name],
        ] {
            place.refuses(arguments, 3, &["`os.system`", "do not load this file"]);
        }
    }
    place.write("words.txt", b"cos\nwe know, it is a text\n");
    let ran = place.run(&["convert", "--force", "words.txt", "out.safetensors"]);
    assert_eq!(ran.code, Some(3));
    assert!(!ran.stderr.contains("pickle"), "{}", ran.stderr);
}

#[test]
fn packings_are_named_and_arrays_need_no_ending() {
    let place = Place::new();
    // Made by Python's zipfile: one member, `a.npy`, with bzip2; one, `plain`, stored.
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n";
    let len = (header.len() as u16).to_le_bytes();
    let array = [
        b"\x93NUMPY\x01\0".as_slice(),
        &len,
        header.as_bytes(),
        &[0, 0, 128, 63],
    ]
    .concat();
    let zip = |name: &str, method: u16| {
        let crc = crc32(&array).to_le_bytes();
        let size = (array.len() as u32).to_le_bytes();
        let mut shared = Vec::new();
        for field in [20u16, 0, method, 0, 0] {
            shared.extend_from_slice(&field.to_le_bytes());
        }
        shared.extend_from_slice(&crc);
        shared.extend_from_slice(&size);
        shared.extend_from_slice(&size);
        shared.extend_from_slice(&(name.len() as u16).to_le_bytes());
        shared.extend_from_slice(&[0; 2]);
        let local = [b"PK\x03\x04", &shared[..], name.as_bytes(), &array].concat();
        let entry = [b"PK\x01\x02\x14\0", &shared[..], &[0; 14], name.as_bytes()].concat();
        let mut end = b"PK\x05\x06\0\0\0\0\x01\0\x01\0".to_vec();
        end.extend_from_slice(&(entry.len() as u32).to_le_bytes());
        end.extend_from_slice(&(local.len() as u32).to_le_bytes());
        end.extend_from_slice(&[0; 2]);
        [local, entry, end].concat()
    };
    place.write("plain.npz", &zip("plain", 0));
    place.works(&["scan", "plain.npz"]);
    place.works(&["convert", "plain.npz", "plain.safetensors"]);
    let ran = place.works(&["ls", "plain.safetensors"]);
    assert!(ran.stdout.contains("plain"), "{}", ran.stdout);
    for (method, name) in [(12, "bzip2"), (14, "LZMA"), (95, "xz"), (93, "Zstandard")] {
        place.write("packed.npz", &zip("a.npy", method));
        place.refuses(
            &["convert", "packed.npz", "x.safetensors"],
            3,
            &[name, "deflate"],
        );
        let ran = place.run(&["scan", "packed.npz", "--json"]);
        assert_eq!(ran.code, Some(1));
        assert!(ran.stdout.contains(name), "{}", ran.stdout);
        place.write("packed.pt", &zip("m/data.pkl", method));
        place.refuses(
            &["convert", "packed.pt", "x.safetensors"],
            3,
            &[name, "deflate"],
        );
    }
}

/// CRC-32 as zip archives have it.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}
