//! Files behind URLs: formats other than safetensors, and where fetched pieces are kept.
#![allow(missing_docs)]

mod common;
#[path = "../../store/tests/common/http.rs"]
#[allow(dead_code, unreachable_pub)]
mod http;

use std::fs;

use common::{Place, model};
use http::{Reply, Server, serve};

/// A file of 6 MB in several formats, made by `convert`, and what they hold.
fn made(place: &Place, ending: &str) -> Vec<u8> {
    let name = format!("m.{ending}");
    place.works(&["convert", "m.safetensors", &name, "--quiet"]);
    let bytes = fs::read(place.path(&name)).unwrap();
    fs::remove_file(place.path(&name)).unwrap();
    bytes
}

#[test]
fn foreign_formats_are_read_from_urls() {
    let place = Place::new();
    let values: Vec<u8> = (0..1_500_000u32)
        .flat_map(|at| (at as f32).to_le_bytes())
        .collect();
    let tensor = safelight_format::TensorView {
        name: "a",
        dtype: safelight_format::Dtype::F32,
        shape: &[1500, 1000],
        bytes: &values,
    };
    let saved = place.path("m.safetensors");
    safelight_store::save(&saved, &[tensor], None, &Default::default()).unwrap();
    for ending in ["gguf", "npz"] {
        let bytes = made(&place, ending);
        let server = Server::of_file(bytes.clone());
        let url = server.url(&format!("/model.{ending}"));
        place.works(&["convert", &url, "back.safetensors", "--quiet"]);
        let back = safelight_store::Checkpoint::open(&place.path("back.safetensors")).unwrap();
        assert!(back.read_bytes("a").unwrap() == values, "{ending}");
        // A few requests, not one for each look, and nothing twice.
        assert!(
            server.count() <= 12,
            "{ending}: {} requests",
            server.count()
        );
        assert!(
            server.sent_bytes() < bytes.len() * 5 / 4,
            "{ending}: {}",
            server.sent_bytes()
        );
        fs::remove_file(place.path("back.safetensors")).unwrap();
    }
    let server = Server::of_file(b"what is this?".to_vec());
    let url = server.url("/model.ckpt?token=secret");
    let ran = place.refuses(&["convert", &url, "back.safetensors"], 3, &["model.ckpt"]);
    assert!(!ran.stderr.contains("secret"), "{}", ran.stderr);
}

#[test]
fn fetched_pieces_are_kept_where_an_argument_says() {
    let place = Place::new();
    model(&place, "m.safetensors");
    let server = Server::of_file(fs::read(place.path("m.safetensors")).unwrap());
    let url = server.url("/m.safetensors");
    let cat = [
        "cat",
        &url,
        "layers.0.weight",
        "0",
        "--cache-dir",
        "kept here",
    ];
    let first = place.works(&cat).stdout;
    let kept = fs::read_dir(place.path("kept here")).unwrap().count();
    assert!(kept > 0, "nothing is kept");
    let (sent, before) = (server.sent_bytes(), server.count());
    assert_eq!(place.works(&cat).stdout, first);
    assert!(
        server.sent_bytes() - sent <= sent,
        "{before} {}",
        server.count()
    );
    let elsewhere = ["--cache-dir", "other", "ls", &url];
    place.works(&elsewhere);
    assert!(
        place.path("other").is_dir(),
        "before the command it means the same"
    );
}

/// A safetensors file of 8 tensors and about 8 MB in all.
fn large(place: &Place) -> Vec<u8> {
    let values = vec![1; 1 << 20];
    let names: Vec<String> = (0..8).map(|number| format!("t{number}")).collect();
    let tensors: Vec<_> = names
        .iter()
        .map(|name| safelight_format::TensorView {
            name,
            dtype: safelight_format::Dtype::F32,
            shape: &[512, 512],
            bytes: &values,
        })
        .collect();
    let saved = place.path("large.safetensors");
    safelight_store::save(&saved, &tensors, None, &Default::default()).unwrap();
    let bytes = fs::read(&saved).unwrap();
    fs::remove_file(saved).unwrap();
    bytes
}

/// The commands that walk a whole file, each with a URL in place of `URL`.
const WALKS: [&[&str]; 7] = [
    &["verify", "URL"],
    &["verify", "URL", "--json"],
    &["hash", "URL"],
    &["stats", "URL"],
    &["cat", "--all", "URL", "t7"],
    &["convert", "URL", "out.safetensors", "--quiet"],
    &["merge", "URL", "-o", "out.safetensors"],
];

/// Runs each walk, with nothing kept from one to the next, against a server that gives the beginning and then `fault`.
fn walks_end(
    code: i32,
    words: &[&str],
    fault: impl Fn(&http::Request) -> Reply + Send + Sync + Clone + 'static,
) {
    let place = Place::new();
    let bytes = large(&place);
    for (number, walk) in WALKS.iter().enumerate() {
        let (file, fault) = (bytes.clone(), fault.clone());
        let server = Server::start(move |request, _| match request.range() {
            Some((first, _)) if first < 64 * 1024 => {
                let mut request = request.clone();
                let range = "bytes=0-65535".to_owned();
                request.headers.retain(|(name, _)| name != "range");
                request.headers.push(("range".to_owned(), range));
                serve(&request, &file, "\"one\"")
            }
            _ => fault(request),
        });
        let url = server.url("/m.safetensors");
        let cache = format!("../cache-{number}-{}", std::process::id());
        let mut arguments: Vec<&str> = walk.to_vec();
        arguments
            .iter_mut()
            .filter(|word| **word == "URL")
            .for_each(|word| *word = &url);
        let mut command = place.command(&arguments);
        command
            .env("SAFELIGHT_CACHE", &cache)
            .env("SAFELIGHT_CACHE_BYTES", "0");
        let began = std::time::Instant::now();
        let ran = common::Ran::of(command.output().unwrap());
        let told = format!("{arguments:?}\n{}{}", ran.stdout, ran.stderr);
        assert_eq!(ran.code, Some(code), "{told}");
        for word in words {
            assert!(ran.stderr.contains(word), "no {word:?}: {told}");
        }
        assert_eq!(ran.stderr.matches("HTTP ").count(), 1, "one error: {told}");
        assert!(!told.contains("damaged"), "{told}");
        assert!(
            began.elapsed().as_secs() < 60,
            "{:?}: {told}",
            began.elapsed()
        );
        // 8 parts may be under way, each with 4 attempts.
        assert!(
            server.count() <= 2 + 8 * 4,
            "{} requests: {told}",
            server.count()
        );
        assert!(!place.path("out.safetensors").exists(), "{told}");
    }
}

#[test]
fn a_server_that_dies_midway_ends_every_walk_with_one_error() {
    walks_end(1, &["HTTP 503 after 4 attempts", "try again later"], |_| {
        Reply::new(503)
    });
}

#[test]
fn an_object_that_is_replaced_midway_ends_every_walk_with_one_error() {
    walks_end(
        3,
        &["replaced while it was being read", "\"one\"", "\"two\""],
        |_| Reply::new(412).with("ETag", "\"two\""),
    );
}

/// A file of the golden ones.
fn golden(name: &str) -> Vec<u8> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden");
    fs::read(folder.join(name)).unwrap()
}

/// What `inspect --json` says of a file, here and behind a URL: the same but for its place and what follows from that.
fn inspected(place: &Place, name: &str, bytes: &[u8]) -> serde_json::Value {
    place.write(name, bytes);
    let here = place.works(&["inspect", name, "--no-hash", "--tensors", "--json"]);
    let server = Server::of_file(bytes.to_vec());
    let url = server.url(&format!("/{name}"));
    let secret = format!("{url}?token=hush");
    let far = place.works(&["inspect", &secret, "--tensors", "--json"]);
    assert!(!far.stdout.contains("hush"), "{}", far.stdout);
    assert!(server.count() <= 5, "{name}: {} requests", server.count());
    let (mut here, mut far) = (here.json(), far.json());
    assert_eq!(far["path"], format!("{url}?…"));
    assert_eq!(far["sha256"], serde_json::Value::Null);
    for value in [&mut here, &mut far] {
        for key in ["path", "relative", "problem", "usable"] {
            value.as_object_mut().unwrap().remove(key);
        }
    }
    assert_eq!(here, far, "{name}");
    let text = place.works(&["inspect", &url]).stdout;
    assert!(text.contains(&url) && text.contains("usable"), "{text}");
    here
}

#[test]
fn inspect_says_the_same_of_files_here_and_behind_urls() {
    let place = Place::new();
    model(&place, "m.safetensors");
    let ours = inspected(
        &place,
        "m.safetensors",
        &fs::read(place.path("m.safetensors")).unwrap(),
    );
    assert_eq!(ours["tensor_count"], 7);
    for (name, file) in [
        ("a.gguf", "convert/little.gguf"),
        ("a.npz", "convert/stored.npz"),
        ("a.msgpack", "convert/flax.msgpack"),
        ("a.onnx", "convert/graph.onnx"),
        ("a.h5", "convert/dense.h5"),
        ("a.ckpt", "pickle/lightning.ckpt"),
    ] {
        let bytes = golden(file);
        let said = inspected(&place, name, &bytes);
        assert_eq!(said["bytes"], bytes.len(), "{name}");
        let listed = place.works(&["ls", name, "--json"]).json();
        assert_eq!(said["tensor_count"], listed["tensor_count"], "{name}");
        assert_eq!(said["metadata"], listed["metadata"], "{name}");
        assert_eq!(said["notes"], listed["notes"], "{name}");
        let names = |value: &serde_json::Value| {
            let tensors = value["tensors"].as_array().unwrap().iter();
            let mut names: Vec<_> = tensors
                .map(|tensor| {
                    ["name", "dtype", "shape", "bytes"].map(|key| tensor[key].to_string())
                })
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(&said), names(&listed), "{name}");
        assert!(said["tensor_count"].as_u64() > Some(0), "{name}");
    }
}

#[test]
fn inspect_knows_a_family_in_any_format_and_says_why_it_is_not_drawn_with() {
    let place = Place::new();
    place.works(&["models", "--export-demo", "demo.safetensors"]);
    place.works(&["convert", "demo.safetensors", "demo.npz", "--quiet"]);
    let ours = place
        .works(&["inspect", "demo.safetensors", "--no-hash", "--json"])
        .json();
    let foreign = place
        .works(&["inspect", "demo.npz", "--no-hash", "--json"])
        .json();
    assert!(ours["family"].is_string(), "{ours}");
    for key in ["family", "parts", "part_details", "dtypes", "tensor_count"] {
        assert_eq!(ours[key], foreign[key], "{key}");
    }
    assert_eq!(ours["usable"], true);
    assert_eq!(foreign["usable"], false);
    let problem = foreign["problem"].as_str().unwrap();
    assert!(problem.contains("safelight convert"), "{problem}");
}

#[test]
fn inspect_of_a_url_says_what_is_wrong_with_it() {
    let place = Place::new();
    let server = Server::start(|request, _| match request.target.as_str() {
        "/gone.ckpt" => Reply::new(404),
        "/page.ckpt" => serve(request, b"<!DOCTYPE html><html>Sign in</html>", "\"p\""),
        _ => serve(
            request,
            b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.",
            "\"a\"",
        ),
    });
    for (path, word) in [
        ("/gone.ckpt", "there is nothing here"),
        ("/page.ckpt", "web page"),
        ("/attack.ckpt", "`os.system`"),
    ] {
        let url = server.url(path);
        for arguments in [&["inspect", &url][..], &["ls", &url]] {
            let ran = place.refuses(arguments, 3, &[word, &url]);
            assert!(!ran.stdout.contains("usable"), "{}", ran.stdout);
        }
    }
}
