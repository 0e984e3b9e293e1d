//! ONNX models; without a folder, so that no other file is opened.

use safelight_convert::{OnnxSource, Source};

use super::foreign::{Memory, check, limits};

/// The input is a file.
pub(crate) fn run(input: &[u8]) {
    let reader = Box::new(Memory(input.to_vec()));
    let opened = OnnxSource::from_reader("fuzz", reader, &limits());
    check(opened.map(|source| Box::new(source) as Box<dyn Source>));
}
