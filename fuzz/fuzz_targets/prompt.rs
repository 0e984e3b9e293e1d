//! libFuzzer's way into `bodies/prompt.rs`.
#![no_main]

#[path = "../bodies/prompt.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::run(input));
