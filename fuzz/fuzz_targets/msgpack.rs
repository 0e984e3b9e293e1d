//! libFuzzer's way into `bodies/msgpack.rs`.
#![no_main]

#[path = "../bodies/msgpack.rs"]
mod body;
#[path = "../bodies/foreign.rs"]
mod foreign;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::run(input));
