//! Files behind URLs: formats other than safetensors, and where fetched pieces are kept.
#![allow(missing_docs)]

mod common;
#[path = "../../store/tests/common/http.rs"]
#[allow(dead_code, unreachable_pub)]
mod http;

use std::fs;

use common::{Place, model};
use http::Server;

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
