//! libFuzzer's way into `bodies/pickle.rs`.
#![no_main]

#[path = "../bodies/pickle.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::run(input));
