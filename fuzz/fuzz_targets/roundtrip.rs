//! libFuzzer's way into `bodies/roundtrip.rs`.
#![no_main]

#[path = "../bodies/roundtrip.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::run(input));
