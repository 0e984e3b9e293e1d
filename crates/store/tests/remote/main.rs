//! Files behind URLs, read from a real server on this machine, with every fault that one has.
#![cfg(feature = "remote")]

mod caching;
#[path = "../common/mod.rs"]
mod common;
mod faults;
mod pinning;
mod redirects;
mod requests;
mod shards;
mod stores;

use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::http::{Reply, Server, serve};
use common::{Folder, file_of};
use safelight_format::{Dtype, TensorView, parse_index};
use safelight_store::remote::{
    CacheChoice, Problem, RemoteError, RemoteFile, RemoteOptions, open, open_file,
};
use safelight_store::{Checkpoint, HashOptions, OpenOptions, ReadAt as _, StoreError, location};

/// Short waits and small parts, so that tests are fast and see many requests.
fn options() -> RemoteOptions {
    RemoteOptions {
        timeout: Duration::from_millis(2000),
        part_bytes: 64 * 1024,
        parallel_requests: 4,
        ..RemoteOptions::default()
    }
}

fn some_bytes(count: usize) -> Vec<u8> {
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count).map(|_| next()).collect()
}

/// A file with tensors of so many bytes each, named `t0`, `t1`, ….
fn model(count: usize, tensor_bytes: usize) -> Vec<u8> {
    let bytes = some_bytes(count * tensor_bytes);
    let names: Vec<String> = (0..count).map(|number| format!("t{number}")).collect();
    let shape = [tensor_bytes as u64];
    let tensors: Vec<TensorView<'_>> = names
        .iter()
        .zip(bytes.chunks(tensor_bytes.max(1)))
        .map(|(name, bytes)| TensorView {
            name,
            dtype: Dtype::U8,
            shape: &shape,
            bytes,
        })
        .collect();
    file_of(&tensors, None)
}

fn open_at(url: &str) -> Result<Checkpoint, StoreError> {
    open(url, &OpenOptions::default(), &options())
}

/// What went wrong on the way, with the message.
fn remote_error(error: &StoreError) -> (RemoteError, String) {
    let StoreError::Io { error: inner, .. } = error else {
        panic!("{error}")
    };
    let remote = inner.get_ref().and_then(|inner| inner.downcast_ref());
    let remote: &RemoteError = remote.unwrap_or_else(|| panic!("{error}"));
    (remote.clone(), error.to_string())
}

#[track_caller]
fn fails(url: &str) -> (RemoteError, String) {
    remote_error(&open_at(url).expect_err("this should fail"))
}

fn read_all(file: &RemoteFile) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; file.byte_count()? as usize];
    let mut done = 0;
    while done < bytes.len() {
        done += file.read_at(&mut bytes[done..], done as u64)?;
    }
    Ok(bytes)
}

#[test]
fn urls_are_locations_like_paths() {
    let folder = Folder::new();
    let bytes = model(2, 1000);
    let path = folder.write("m.safetensors", &bytes);
    let server = Server::of_file(bytes);
    // Tests share a process, so one of them chooses.
    let chosen = safelight_store::remote::choose(options());
    assert!(chosen.is_ok());
    let names = Mutex::new(Vec::new());
    let go_on = |_: u64, _: u64| ControlFlow::Continue(());
    let all = HashOptions {
        autov1: true,
        sshs_model: true,
        sshs_legacy: true,
        sha256: true,
        data_sha256: true,
        blake3: true,
    };
    let hashes =
        |location: &std::ffi::OsStr| location::hash(location, &all, &mut { go_on }).unwrap();
    let url = std::ffi::OsString::from(server.url("/m"));
    assert_eq!(hashes(&url), hashes(path.as_os_str()));
    let verdict = location::verify(&url, &OpenOptions::default(), &mut { go_on }).unwrap();
    assert!(verdict.is_intact());
    assert_eq!(verdict.files[0].intact().count(), 2);
    for location in [url, path.into_os_string()] {
        let checkpoint = location::open(location).unwrap();
        let all: Vec<String> = checkpoint.names().map(str::to_owned).collect();
        names.lock().unwrap().push(all);
    }
    let names = names.into_inner().unwrap();
    assert_eq!(names[0], names[1]);
    assert!(location::open("ftp://h/m").is_err());
}

/// TLS and the network, where a machine has them.
#[test]
fn https_by_the_environment() {
    let Ok(url) = std::env::var("SAFELIGHT_TEST_URL") else {
        eprintln!(
            "SKIPPED: set SAFELIGHT_TEST_URL to an https URL of a file of at least 1 MB on a server with ranges"
        );
        return;
    };
    let remote = RemoteOptions {
        timeout: Duration::from_secs(20),
        ..options()
    };
    let file = open_file(&url, &remote).unwrap();
    let byte_count = file.byte_count().unwrap();
    let mut end = vec![0; 100];
    let count = file.read_at(&mut end, byte_count - 100).unwrap();
    assert!(count > 0);
    eprintln!("{file:?}: {:?}", file.traffic());
}
