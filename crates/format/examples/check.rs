//! Whether a file is safetensors: `check [--spec] FILE` exits with 0 if it is, with 1 and the reason if
//! not. This is how docs/conformance.md asks an implementation.

use std::process::ExitCode;

use safelight_format::{Header, Limits, Strictness};

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let spec = arguments.first().is_some_and(|first| first == "--spec");
    let path = arguments.pop().expect("check [--spec] FILE");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("{path}: {error}");
            return ExitCode::from(2);
        }
    };
    let strictness = if spec {
        Strictness::Spec
    } else {
        Strictness::Compat
    };
    match Header::parse(&bytes, bytes.len() as u64, strictness, &Limits::default()) {
        Ok(header) => {
            println!("{path}: {} tensors", header.tensors().len());
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{path}: {error}");
            ExitCode::from(1)
        }
    }
}
