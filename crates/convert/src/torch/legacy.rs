//! What `torch.save` wrote before PyTorch 1.6: five pickles, then all storages; and bare pickles of numpy arrays.
//!
//! Source: PyTorch 2.x, `torch/serialization.py` (`_legacy_save`, `_legacy_load`).

use std::collections::HashMap;

use safelight_store::ReadAt;

use super::Context;
use super::flatten::flatten;
use super::objects::Objects;
use super::source::{Pickle, Place, TorchSource};
use crate::bytes::read_exact_at;
use crate::error::ConvertError;
use crate::open::{OpenOptions, UnknownObjects};
use crate::pickle::{Doorkeeper, Heap, Id, Input, Machine, Node, memory_of};
use crate::source::{Bound, Limits, Source};

/// `0x1950a86a20f9469cfc6c`, the first value of a legacy file, as LONG1 has it.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// The same, as LONG has it.
const MAGIC_TEXT: &[u8] = b"119547037146038801333356L";

/// The only version there ever was.
const PROTOCOL: i64 = 1001;

/// The pickles with which a file begins: one, or five in PyTorch's files.
pub(crate) struct Pickles<'a> {
    pub(crate) machine: Machine<'a>,
    /// What the file holds.
    pub(crate) root: Id,
    /// The list of storages, which follow the pickles; `None` if there is one pickle alone.
    pub(crate) keys: Option<Id>,
    pub(crate) is_big_endian: bool,
}

impl<'a> Pickles<'a> {
    /// Runs them; their values may take `values_bytes_max`.
    ///
    /// # Errors
    /// What is wrong with a pickle; a global that is not on the list.
    pub(crate) fn run(
        context: &Context<'_>,
        file: &'a dyn ReadAt,
        values_bytes_max: impl Into<Bound>,
    ) -> Result<Pickles<'a>, ConvertError> {
        let input = Input::new(file, 0).map_err(|error| context.io(error))?;
        let mut machine = Machine::new(input, values_bytes_max);
        let mut doorkeeper = Doorkeeper {
            lets_unknown_in: context.options.unknown_objects == UnknownObjects::Drop,
        };
        let mut run = |machine: &mut Machine<'_>, what: &str| {
            let value = machine.run(&mut doorkeeper);
            value.map_err(|fault| fault.of(&context.label, what))
        };
        let first = run(&mut machine, "")?;
        if !is_magic(&machine.heap, &mut machine.input, first) {
            return Ok(Pickles {
                machine,
                root: first,
                keys: None,
                is_big_endian: false,
            });
        }
        let protocol = run(&mut machine, "protocol version")?;
        if !matches!(machine.heap.node(protocol), Node::Int(PROTOCOL)) {
            return Err(context.malformed("protocol version", "it is not 1001"));
        }
        let system = run(&mut machine, "system info")?;
        let is_big_endian = !is_little_endian(&machine.heap, &mut machine.input, system);
        let root = run(&mut machine, "objects")?;
        let keys = Some(run(&mut machine, "storage keys")?);
        Ok(Pickles {
            machine,
            root,
            keys,
            is_big_endian,
        })
    }
}

/// Opens a file that begins with a pickle.
///
/// # Errors
/// What is wrong with a pickle or a tensor.
pub(crate) fn open_pickle(
    context: &Context<'_>,
    file: Box<dyn ReadAt>,
) -> Result<Box<dyn Source>, ConvertError> {
    let mut pickles = Pickles::run(context, &*file, memory_of(&context.options.limits))?;
    let machine = &mut pickles.machine;
    let mut objects = Objects::new(&machine.heap, &mut machine.input, context, false);
    let holds = flatten(&mut objects, pickles.root)?;
    let places = storage_places(context, &*file, &mut pickles)?;
    let is_big_endian = pickles.is_big_endian;
    drop(pickles);
    let source = TorchSource::new(
        context,
        file,
        holds,
        &places,
        &Pickle::File(0),
        is_big_endian,
    )?;
    Ok(Box::new(source))
}

/// Where the storages lie that follow the pickles; none if there is one pickle alone.
///
/// # Errors
/// A storage that reaches beyond the file, or whose type nothing tells.
pub(crate) fn storage_places(
    context: &Context<'_>,
    file: &dyn ReadAt,
    pickles: &mut Pickles<'_>,
) -> Result<HashMap<String, Place>, ConvertError> {
    let Some(keys) = pickles.keys else {
        return Ok(HashMap::new());
    };
    let machine = &mut pickles.machine;
    let storages_at = machine.input.at();
    let mut objects = Objects::new(&machine.heap, &mut machine.input, context, false);
    let keys = storage_keys(&mut objects, keys)?;
    let sizes = element_sizes(&mut objects);
    let is_big_endian = pickles.is_big_endian;
    places(context, file, storages_at, &keys, &sizes, is_big_endian)
}

/// Where the last storage ends, or why that cannot be told: `values` are those of the five pickles that `machine` ran over `file`.
pub(crate) fn storages_end(
    limits: &Limits,
    file: &dyn ReadAt,
    machine: Machine<'_>,
    values: [Id; 5],
) -> Result<u64, String> {
    let options = OpenOptions {
        limits: *limits,
        ..OpenOptions::default()
    };
    let context = Context {
        label: String::new(),
        options: &options,
    };
    let mut machine = machine;
    let storages_at = machine.input.at();
    let mut pickles = Pickles {
        is_big_endian: !is_little_endian(&machine.heap, &mut machine.input, values[2]),
        root: values[3],
        keys: Some(values[4]),
        machine,
    };
    let places = storage_places(&context, file, &mut pickles).map_err(|error| match error {
        ConvertError::Malformed { problem, .. } => problem,
        other => other.to_string(),
    })?;
    let ends = places.values().map(|place| match place {
        Place::File { at, byte_count, .. } => at.saturating_add(*byte_count),
        _ => 0,
    });
    Ok(ends.max().unwrap_or(storages_at))
}

/// Whether a value is the first one of PyTorch's files from before 1.6.
pub(crate) fn is_magic(heap: &Heap, input: &mut Input<'_>, id: Id) -> bool {
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
