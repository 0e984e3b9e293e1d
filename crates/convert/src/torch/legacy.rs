//! What `torch.save` wrote before PyTorch 1.6: five pickles, then all storages; and bare pickles of numpy arrays.
//!
//! Source: PyTorch 2.x, `torch/serialization.py` (`_legacy_save`, `_legacy_load`).

use std::collections::HashMap;
use std::sync::Arc;

use safelight_store::ReadAt;

use super::Context;
use super::flatten::flatten;
use super::objects::{Bytes, Objects};
use super::source::{Place, TorchSource};
use crate::bytes::{Memory, read_exact_at};
use crate::error::ConvertError;
use crate::open::UnknownObjects;
use crate::pickle::{Blob, Doorkeeper, Heap, Id, Input, Machine, Node, memory_of};
use crate::source::Source;

/// `0x1950a86a20f9469cfc6c`, the first value of a legacy file, as LONG1 has it.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// The same, as LONG has it.
const MAGIC_TEXT: &[u8] = b"119547037146038801333356L";

/// The only version there ever was.
const PROTOCOL: i64 = 1001;

/// Opens a file that begins with a pickle.
///
/// # Errors
/// What is wrong with a pickle or a tensor.
pub(crate) fn open_pickle(
    context: &Context<'_>,
    file: Box<dyn ReadAt>,
) -> Result<Box<dyn Source>, ConvertError> {
    let limits = &context.options.limits;
    let input = Input::new(&*file, 0).map_err(|error| context.io(error))?;
    let mut machine = Machine::new(input, memory_of(limits));
    let mut doorkeeper = Doorkeeper {
        lets_unknown_in: context.options.unknown_objects == UnknownObjects::Drop,
    };
    let mut run = |machine: &mut Machine<'_>, what: &str| {
        let value = machine.run(&mut doorkeeper);
        value.map_err(|fault| fault.of(&context.label, what))
    };
    let first = run(&mut machine, "")?;
    let is_legacy = is_magic(&machine.heap, &mut machine.input, first);
    let (mut is_big_endian, mut root) = (false, first);
    let mut keys = None;
    if is_legacy {
        let protocol = run(&mut machine, "protocol version")?;
        if !matches!(machine.heap.node(protocol), Node::Int(PROTOCOL)) {
            return Err(context.malformed("protocol version", "it is not 1001"));
        }
        let system = run(&mut machine, "system info")?;
        is_big_endian = !is_little_endian(&machine.heap, &mut machine.input, system);
        root = run(&mut machine, "objects")?;
        keys = Some(run(&mut machine, "storage keys")?);
    }
    let storages_at = machine.input.at();
    let Machine { heap, input, .. } = &mut machine;
    let mut objects = Objects {
        heap,
        input,
        context,
        is_torch_script: false,
    };
    let holds = flatten(&mut objects, root)?;
    let places = match keys {
        Some(keys) => {
            let keys = storage_keys(&mut objects, keys)?;
            let sizes = element_sizes(&mut objects);
            places(context, &*file, storages_at, &keys, &sizes, is_big_endian)?
        }
        None => HashMap::new(),
    };
    drop(machine);
    let memory_max = memory_of(limits);
    let reader: &dyn ReadAt = &*file;
    let mut inlined = HashMap::new();
    for found in &holds.tensors {
        if let Bytes::Inline {
            blob,
            is_text: true,
        } = found.tensor.bytes
        {
            if blob.len > memory_max {
                let what = "bytes of text that hold an array";
                return Err(context.limit(&found.name, what, blob.len, memory_max));
            }
            let mut text = vec![0; blob.len as usize];
            read_exact_at(reader, &mut text, blob.at).map_err(|error| context.io(error))?;
            inlined.insert(blob.at, Arc::new(Memory(latin1(context, text)?)));
        }
    }
    let inline = |blob: Blob, is_text: bool| match inlined.get(&blob.at) {
        Some(memory) if is_text => Ok(Place::Memory(Arc::clone(memory))),
        _ => Ok(Place::File {
            at: blob.at,
            byte_count: blob.len,
            member: None,
        }),
    };
    let source = TorchSource::new(context, file, holds, &places, &inline, is_big_endian)?;
    Ok(Box::new(source))
}

fn is_magic(heap: &Heap, input: &mut Input<'_>, id: Id) -> bool {
    match heap.node(id) {
        Node::Long(blob) if blob.len == 10 => {
            input.read(*blob, 10).is_ok_and(|bytes| bytes == MAGIC)
        }
        // The same number in decimal, as protocols 0 and 1 have it.
        Node::Long(blob) if (24..=26).contains(&blob.len) => input
            .read(*blob, 26)
            .is_ok_and(|bytes| bytes.trim_ascii() == MAGIC_TEXT),
        _ => false,
    }
}

/// `{'protocol_version': 1001, 'little_endian': True, 'type_sizes': {…}}`.
fn is_little_endian(heap: &Heap, input: &mut Input<'_>, id: Id) -> bool {
    let Node::Dict(items) = heap.node(id) else {
        return true;
    };
    let is_big = items.chunks_exact(2).any(|item| {
        let key = heap.text(item[0], input, 64).ok().flatten();
        key.as_deref() == Some("little_endian") && matches!(heap.node(item[1]), Node::Bool(false))
    });
    !is_big
}

fn storage_keys(objects: &mut Objects<'_, '_, '_>, id: Id) -> Result<Vec<String>, ConvertError> {
    let Some(elements) = objects.heap.elements(id) else {
        return Err(objects
            .context
            .malformed("storage keys", "they are no list"));
    };
    let elements = elements.to_vec();
    let key = |id| {
        let key = objects.key(id);
        key.ok_or_else(|| {
            objects
                .context
                .malformed("storage keys", "a key is no text")
        })
    };
    elements.into_iter().map(key).collect()
}

/// The size of an element of each storage, by key: that of its class, which every persistent id names.
fn element_sizes(objects: &mut Objects<'_, '_, '_>) -> HashMap<String, u64> {
    let mut sizes = HashMap::new();
    for id in 0..objects.heap.nodes.len() as Id {
        if matches!(objects.heap.node(id), Node::Persistent(_))
            && let Ok((key, element_bytes)) = objects.storage_key(id)
        {
            sizes.insert(key, element_bytes);
        }
    }
    sizes
}

/// Where each storage lies: its count of elements (8 bytes), then they.
fn places(
    context: &Context<'_>,
    file: &dyn ReadAt,
    mut at: u64,
    keys: &[String],
    element_bytes: &HashMap<String, u64>,
    is_big_endian: bool,
) -> Result<HashMap<String, Place>, ConvertError> {
    let file_bytes = file.byte_count().map_err(|error| context.io(error))?;
    let mut places = HashMap::new();
    for key in keys {
        let shown = safelight_format::shown(key).to_string();
        let cut_off = |need: u64| {
            let what = format!(
                "storage `{shown}` needs {need} bytes from byte {at}, the file has {file_bytes}; is it cut off?"
            );
            context.malformed("storages", what)
        };
        if at.checked_add(8).is_none_or(|end| end > file_bytes) {
            return Err(cut_off(8));
        }
        let mut count = [0; 8];
        read_exact_at(file, &mut count, at).map_err(|error| context.io(error))?;
        let count = if is_big_endian {
            u64::from_be_bytes(count)
        } else {
            u64::from_le_bytes(count)
        };
        let Some(size) = element_bytes.get(key) else {
            let what = format!("no tensor tells the type of storage `{shown}`");
            return Err(context.malformed("storages", what));
        };
        let byte_count = count.saturating_mul(*size);
        let end = (at + 8)
            .checked_add(byte_count)
            .filter(|end| *end <= file_bytes);
        let Some(end) = end else {
            return Err(cut_off(byte_count));
        };
        let place = Place::File {
            at: at + 8,
            byte_count,
            member: None,
        };
        if places.insert(key.clone(), place).is_some() {
            let what = format!("storage `{shown}` stands twice");
            return Err(context.malformed("storages", what));
        }
        at = end;
    }
    Ok(places)
}

/// The bytes of a text whose characters are all below 256: how protocol 2 writes bytes.
pub(crate) fn latin1(context: &Context<'_>, text: Vec<u8>) -> Result<Vec<u8>, ConvertError> {
    let wrong = || context.malformed("", "an array whose bytes are no Latin-1 text");
    let text = String::from_utf8(text).map_err(|_| wrong())?;
    let byte = |c: char| u8::try_from(u32::from(c)).map_err(|_| wrong());
    text.chars().map(byte).collect()
}
