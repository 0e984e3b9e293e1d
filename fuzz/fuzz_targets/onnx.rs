//! libFuzzer's way into `bodies/onnx.rs`.
#![no_main]

#[path = "../bodies/onnx.rs"]
mod body;
#[path = "../bodies/foreign.rs"]
mod foreign;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::run(input));
