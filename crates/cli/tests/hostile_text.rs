//! Names and metadata that command terminals, turn the writing direction or lead out of folders: nothing of that is printed as it is.
#![cfg(unix)]

mod common;

use std::fs;

use common::{Place, raw};
use serde_json::json;

/// Names of tensors, keys and values.
const HOSTILE: [&str; 10] = [
    "../../etc/passwd",
    "nul\0byte",
    "rtl\u{202e}gnp.exe",
    "\u{1b}[31mred\u{1b}]0;title\u{7}",
    "line\nend\r\ttab",
    "zero\u{200b}width\u{2066}isolated\u{2069}",
    "\u{9b}2Jclear",
    "\u{2028}separator",
    "tag\u{e0041}",
    "del\u{7f}",
];

/// Its name too.
const FILE: &str = "evil\u{1b}[31m\u{202e}\n.safetensors";
const BAD: &str = "bad\u{1b}[31m\u{202e}\n.safetensors";

fn hides(c: char) -> bool {
    let shows = safelight_format::shown(c.encode_utf8(&mut [0; 4])).to_string() == c.to_string();
    c != '\n' && !shows
}

fn hostile(place: &Place) {
    let mut header = json!({ "__metadata__": {} });
    for (index, name) in HOSTILE.iter().enumerate() {
        let offsets = [8 * index, 8 * index + 8];
        header[name] = json!({ "dtype": "F32", "shape": [2], "data_offsets": offsets });
        header["__metadata__"][format!("key {name}")] = json!(format!("value {name}"));
    }
    header["__metadata__"]["modelspec.title"] = json!(HOSTILE[3]);
    header["__metadata__"]["modelspec.hash_sha256"] = json!(HOSTILE[6]);
    let data = [1; 8 * HOSTILE.len()];
    raw(place, FILE, &header.to_string(), &data);
    let broken = header.to_string().replacen("F32", "F\u{202e}32", 1);
    raw(place, BAD, &broken, &data[..60]);
}

#[test]
fn no_command_prints_what_hides() {
    let place = Place::new();
    hostile(&place);
    fs::create_dir(place.path("models")).unwrap();
    for name in [FILE, BAD] {
        fs::copy(place.path(name), place.path("models").join(name)).unwrap();
    }
    let missing = "no\u{1b}[31m\u{202e}such";
    for file in [FILE, BAD, missing, "models"] {
        for command in [
            &["ls", file][..],
            &["ls", "-l", file],
            &["ls", "--tree", file],
            &["ls", "--unknown-dtypes", file],
            &["cat", file, HOSTILE[3]],
            &["cat", file, missing],
            &["verify", file],
            &["verify", "--checksums", file],
            &["lint", file],
            &["diff", file, FILE],
            &["diff", FILE, file],
            &["stats", file],
            &["hash", file],
            &["meta", "get", file],
            &["meta", "get", file, missing],
            &["inspect", file],
            &["models"],
            &["scan", file],
            &["repair", file],
            &["convert", file, "new.npz"],
            &["split", file, "--count", "2", "-o", "new"],
            &["merge", file, FILE, "-o", "new.safetensors"],
            &["ls", "\u{1b}[31m", "--only", "(", file],
            &["\u{1b}[31m\u{202e}", file],
            &["--\u{1b}[31m\u{202e}", file],
        ] {
            for machine in [false, true] {
                let with_json = [command, &["--json"]].concat();
                let arguments = if machine { &with_json } else { command };
                let ran = place.run(arguments);
                for text in [&ran.stdout, &ran.stderr] {
                    let found = text.lines().find(|line| line.contains(hides));
                    assert_eq!(found, None, "{arguments:?}");
                }
                if machine {
                    let values = serde_json::Deserializer::from_str(&ran.stdout);
                    for value in values.into_iter::<serde_json::Value>() {
                        assert!(value.is_ok(), "{arguments:?}: {}", ran.stdout);
                    }
                }
            }
        }
    }
}

#[test]
fn json_means_what_the_file_says() {
    let place = Place::new();
    hostile(&place);
    let answer = place.works(&["ls", FILE, "--json"]).json();
    let names: Vec<&str> = answer["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tensor| tensor["name"].as_str().unwrap())
        .collect();
    assert!(HOSTILE.iter().all(|name| names.contains(name)), "{names:?}");
    assert_eq!(answer["file"], FILE);
    let answer = place.works(&["meta", "get", FILE, "--json"]).json();
    for name in HOSTILE {
        let key = format!("key {name}");
        assert_eq!(answer["metadata"][key], format!("value {name}"));
    }
    // What reads a pipe gets one value as it is.
    let value = place.works(&["meta", "get", FILE, "modelspec.title"]);
    assert_eq!(value.stdout.trim_end_matches('\n'), HOSTILE[3]);
}

#[test]
fn inspect_fits_the_terminal() {
    let place = Place::new();
    hostile(&place);
    let mut command = place.command(&["inspect", FILE]);
    let ran = common::Ran::of(command.env("COLUMNS", "80").output().unwrap());
    let hash = ran.stdout.lines().find(|line| line.starts_with("hash"));
    assert!(hash.is_some_and(|line| line.len() <= 80), "{}", ran.stdout);
    let long = ran.stdout.lines().find(|line| line.chars().count() > 80);
    assert_eq!(long, None);
}
