//! libFuzzer's way into `bodies/repair.rs`.
#![no_main]

#[path = "../bodies/repair.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::run(input));
