//! Files that are no files, paths that lead nowhere, URLs with secrets, disks with limits: a command ends, and says why.
#![cfg(unix)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Place, Ran, lines, model, raw};

/// Runs what must not wait for anything.
fn ends(place: &Place, arguments: &[&str]) -> Ran {
    let mut command = place.command(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("{arguments:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ran::of(child.wait_with_output().unwrap())
}

#[test]
fn pipes_are_refused_and_not_waited_for() {
    let place = Place::new();
    model(&place, "m.safetensors");
    let made = Command::new("mkfifo").arg(place.path("pipe")).status();
    assert!(made.unwrap().success());
    for (arguments, code) in [
        (&["stats", "pipe"][..], 3),
        (&["diff", "m.safetensors", "pipe"], 2),
        (&["convert", "pipe", "out.safetensors"], 3),
        (&["scan", "pipe"], 2),
        (&["ls", "pipe"], 3),
    ] {
        let ran = ends(&place, arguments);
        assert_eq!(ran.code, Some(code), "{arguments:?}\n{}", ran.stderr);
        assert!(
            ran.stderr.contains("pipe, a") || ran.stderr.contains("pipe, where"),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn what_stands_in_an_undo_records_place_is_never_opened() {
    let place = Place::new();
    let commands: [&[&str]; 8] = [
        &["ls", "m.safetensors"],
        &["cat", "m.safetensors", "w"],
        &["verify", "m.safetensors"],
        &["hash", "m.safetensors"],
        &["lint", "m.safetensors"],
        &["stats", "m.safetensors"],
        &["meta", "set", "m.safetensors", "a=b"],
        &["repair", "m.safetensors"],
    ];
    let record = ".m.safetensors.safelight-undo";
    for kind in ["pipe", "link", "folder", "text"] {
        model(&place, "m.safetensors");
        match kind {
            "pipe" => drop(
                Command::new("mkfifo")
                    .arg(place.path(record))
                    .status()
                    .unwrap(),
            ),
            "link" => std::os::unix::fs::symlink("/etc/passwd", place.path(record)).unwrap(),
            "folder" => std::fs::create_dir(place.path(record)).unwrap(),
            _ => drop(place.write(record, b"garbage")),
        }
        for arguments in commands {
            let ran = ends(&place, arguments);
            let words = ran.stderr.clone() + &ran.stdout;
            assert!(ran.code != Some(0), "{kind} {arguments:?} {words}");
            assert!(words.contains("delete"), "{kind} {arguments:?} {words}");
        }
        let path = place.path(record);
        if std::fs::remove_file(&path).is_err() {
            std::fs::remove_dir(&path).unwrap();
        }
    }
}

#[test]
fn a_limit_of_file_sizes_is_an_error_and_no_signal() {
    let place = Place::new();
    let data = vec![7; 1 << 20];
    let header = r#"{"a":{"dtype":"U8","shape":[1048576],"data_offsets":[0,1048576]}}"#;
    raw(&place, "m.safetensors", header, &data);
    model(&place, "b.safetensors");
    let before = place.everything();
    for arguments in [
        &["meta", "set", "--copy", "m.safetensors", "k=v"][..],
        &["split", "m.safetensors", "--count", "1", "-o", "new/shards"],
        &["repair", "m.safetensors", "-o", "new.safetensors"],
        &[
            "merge",
            "m.safetensors",
            "b.safetensors",
            "-o",
            "new.safetensors",
        ],
        &["convert", "m.safetensors", "new.safetensors"],
    ] {
        let program = place.command(arguments);
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -f 100; exec \"$0\" \"$@\""]);
        limited.arg(program.get_program()).args(arguments);
        limited.current_dir(place.path(""));
        let ran = Ran::of(limited.output().unwrap());
        assert_eq!(ran.code, Some(1), "{arguments:?}\n{}", ran.stderr);
        assert!(ran.stderr.contains("File too large"), "{}", ran.stderr);
        assert_eq!(place.everything(), before, "{arguments:?}");
    }
}

#[test]
fn paths_that_lead_nowhere_are_a_wrong_file() {
    let place = Place::new();
    symlink("b", place.path("a")).unwrap();
    symlink("a", place.path("b")).unwrap();
    for command in ["hash", "repair", "stats", "inspect", "ls", "verify"] {
        place.refuses(&[command, "a"], 3, &["a: ", "symbolic links"]);
        place.refuses(&[command, "missing"], 3, &["missing"]);
    }
    place.refuses(&["inspect", "missing.png"], 4, &["missing.png"]);
}

#[test]
fn urls_that_are_not_read_are_refused_without_their_secrets() {
    let place = Place::new();
    let url = "https://user:hunter2@host.invalid/m.safetensors?sig=hunter2";
    for command in ["repair", "scan", "lint"] {
        for extra in [&[][..], &["--json"]] {
            let arguments = [&[command, url], extra].concat();
            let ran = place.refuses(
                &arguments,
                2,
                &["https://host.invalid/m.safetensors", "download"],
            );
            let said = ran.stdout + &ran.stderr;
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
}

#[test]
fn what_files_say_does_not_turn_the_line() {
    let place = Place::new();
    let header = "{\"__metadata__\":{\"k\":\"a\u{202e}b\"},\"w\u{202e}\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}";
    raw(&place, "m.safetensors", header, &[1]);
    for arguments in [
        &["inspect", "m.safetensors", "--tensors"][..],
        &["meta", "get", "m.safetensors"],
        &["ls", "m.safetensors"],
        &["stats", "m.safetensors"],
    ] {
        let ran = place.works(arguments);
        let said = ran.stdout + &ran.stderr;
        assert!(
            !said.contains('\u{202e}') && said.contains("\\u{202e}"),
            "{said}"
        );
    }
    // Into a pipe, one text is what it is.
    let text = place.works(&["meta", "get", "m.safetensors", "k"]).stdout;
    assert_eq!(text, "a\u{202e}b\n");
    assert!(
        place
            .works(&["ls", "m.safetensors"])
            .stdout
            .contains("1 byte\n")
    );
}

#[test]
fn wrong_requests_say_how_to_be_right() {
    let place = Place::new();
    model(&place, "m.safetensors");
    let ran = place.run(&["ls", "--json", "--no-such-flag"]);
    assert_eq!(
        (ran.code, ran.stdout.lines().count()),
        (Some(2), 1),
        "{}",
        ran.stdout
    );
    assert_eq!(lines(&ran)[0]["error"]["exit_code"], 2);
    let long = format!("k={}", "x".repeat(5000));
    let words = ["leave out --in-place"];
    place.refuses(
        &["meta", "set", "m.safetensors", &long, "--in-place"],
        2,
        &words,
    );
    let words = ["is no index", "no brackets around it"];
    place.refuses(&["cat", "m.safetensors", "mask", "[:2]"], 2, &words);
    fs::copy(place.path("m.safetensors"), place.path("b\\c")).unwrap();
    let line = place.works(&["hash", "--kind", "sha256", "b\\c"]).stdout;
    assert!(
        line.starts_with('\\') && line.ends_with("  b\\\\c\n"),
        "{line}"
    );
}
