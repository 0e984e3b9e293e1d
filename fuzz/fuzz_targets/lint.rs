//! libFuzzer's way into `bodies/lint.rs`.
#![no_main]

#[path = "../bodies/lint.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::run(input));
