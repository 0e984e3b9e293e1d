//! libFuzzer's way into `bodies/header.rs`.
#![no_main]

#[path = "../bodies/header.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::run(input));
