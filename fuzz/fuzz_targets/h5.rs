//! libFuzzer's way into `bodies/h5.rs`.
#![no_main]

#[path = "../bodies/h5.rs"]
mod body;
#[path = "../bodies/foreign.rs"]
mod foreign;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::run(input));
