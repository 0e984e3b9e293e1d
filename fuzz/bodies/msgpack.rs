//! Flax's msgpack files.

use safelight_convert::{FlaxSource, Source};

use super::foreign::{Memory, check, limits};

/// The input is a file.
pub(crate) fn run(input: &[u8]) {
    let reader = Box::new(Memory(input.to_vec()));
    let values_to_metadata = input.len().is_multiple_of(2);
    let opened = FlaxSource::from_reader("fuzz", reader, &limits(), values_to_metadata);
    check(opened.map(|source| Box::new(source) as Box<dyn Source>));
}
