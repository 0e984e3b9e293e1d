//! libFuzzer's way into `bodies/npz.rs`.
#![no_main]

#[path = "../bodies/npz.rs"]
mod body;
#[path = "../bodies/foreign.rs"]
mod foreign;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::run(input));
