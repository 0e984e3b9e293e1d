//! Storages within a pickle: `pickle.dump` writes each as a call of `torch.storage._load_from_bytes` with all bytes of a
//! file that `torch.save` wrote for it alone, in the form from before 1.6. These bytes are read as data like any such file.
//!
//! Source: PyTorch 2.x, `torch/storage.py` (`TypedStorage.__reduce__`, `_load_from_bytes`).

use safelight_store::ReadAt;

use super::Context;
use super::legacy::{Pickles, storage_places};
use super::objects::Objects;
use super::source::{Place, latin1};
use crate::bytes::{Memory, Part};
use crate::error::ConvertError;
use crate::pickle::{Coding, Node, memory_of};

/// The pickles about one storage are a few hundred bytes.
const VALUES_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// A storage in the bytes of a file of its own.
pub(crate) struct Nested {
    /// Its class, such as `FloatStorage`.
    pub(crate) class: String,
    /// Where its numbers begin in these bytes.
    pub(crate) start: u64,
    pub(crate) byte_count: u64,
}

/// Reads the file that is `bytes`, or for whose bytes the characters of a text stand. `at` names the tensor in messages.
///
/// # Errors
/// What is wrong with it; a global that is not on the list is refused by name.
pub(crate) fn read(
    context: &Context<'_>,
    bytes: &Part<'_>,
    coding: Option<Coding>,
    at: &str,
) -> Result<Nested, ConvertError> {
    match coding {
        None => read_file(context, bytes, at),
        Some(coding) => {
            let memory = Memory(latin1(context, bytes, coding, at)?);
            read_file(context, &memory, at)
        }
    }
}

fn read_file(context: &Context<'_>, file: &dyn ReadAt, at: &str) -> Result<Nested, ConvertError> {
    let values_max = memory_of(&context.options.limits).and(VALUES_BYTES_MAX);
    let mut pickles = Pickles::run(context, file, values_max)?;
    // Nothing but a storage: no file in the file in the file.
    let is_storage = matches!(pickles.machine.heap.node(pickles.root), Node::Persistent(_));
    if !is_storage || pickles.keys.is_none() {
        let what = "a file in the file that is not what torch.save writes for a storage";
        return Err(context.malformed(at, what));
    }
    let places = storage_places(context, file, &mut pickles)?;
    let machine = &mut pickles.machine;
    let mut objects = Objects::new(&machine.heap, &mut machine.input, context, false);
    let (key, view_bytes, byte_count, class) = objects.only_storage(pickles.root, at)?;
    let missing = || context.malformed(at, "a storage that the file in the file does not have");
    match places.get(&key).ok_or_else(missing)? {
        Place::File {
            at: start,
            byte_count: there,
            ..
        } if view_bytes
            .checked_add(byte_count)
            .is_some_and(|end| end <= *there) =>
        {
            Ok(Nested {
                class,
                start: start + view_bytes,
                byte_count,
            })
        }
        _ => Err(missing()),
    }
}
