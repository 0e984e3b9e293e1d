//! HDF5 files, and Keras' archives of them.

use safelight_convert::{Hdf5Source, Source};

use super::foreign::{Memory, check, limits};

/// The input is a file.
pub(crate) fn run(input: &[u8]) {
    let reader = Box::new(Memory(input.to_vec()));
    let opened = Hdf5Source::from_reader("fuzz", reader, &limits());
    check(opened.map(|source| Box::new(source) as Box<dyn Source>));
}
