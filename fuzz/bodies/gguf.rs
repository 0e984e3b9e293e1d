//! GGUF files of any version and byte order, with every choice for quantised tensors.

use safelight_convert::{GgufReading, GgufSource, Quantized, Source};

use super::foreign::{Memory, check, limits};

/// The input is a file.
pub(crate) fn run(input: &[u8]) {
    let quantized = match input.len() % 4 {
        0 => Quantized::F32,
        1 => Quantized::F16,
        2 => Quantized::Bf16,
        _ => Quantized::Refuse,
    };
    let reading = GgufReading {
        quantized,
        skip_unsupported: input.len() % 8 > 3,
    };
    let reader = Box::new(Memory(input.to_vec()));
    let opened = GgufSource::from_reader("fuzz", reader, &limits(), reading);
    check(opened.map(|source| Box::new(source) as Box<dyn Source>));
}
