//! libFuzzer's way into `bodies/chunked_read.rs`.
#![no_main]

#[path = "../bodies/chunked_read.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::run(input));
