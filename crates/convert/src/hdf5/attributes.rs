//! Attributes of groups and datasets: the few that say what a model's tensors are.
//!
//! Source: HDF5 File Format Specification Version 3.0, §IV.A.2.m (attributes), §IV.A.2.v (attribute info) and §III.E
//! (global heaps, where texts of any length are).

use super::heap::Heap;
use super::objects::{ATTRIBUTE, ATTRIBUTE_INFO, File, Message};
use super::tree2;
use super::types::{Fields, Sizes, dataspace};
use crate::error::ConvertError;

/// Types of version 2 B-trees: attributes by their names.
const ATTRIBUTES_BY_NAME: u8 = 8;

/// An attribute's parts.
struct Attribute {
    name: Vec<u8>,
    datatype: Vec<u8>,
    count: u64,
    data: Vec<u8>,
}

/// The text of the attribute called `name` of an object with these messages, if it has one and it is one text.
///
/// Attributes that cannot be made sense of are passed over: tensors are complete without them.
///
/// # Errors
/// What is wrong with the heap or the index of attributes.
pub(super) fn text(
    file: &mut File<'_>,
    messages: &[Message],
    name: &str,
) -> Result<Option<String>, ConvertError> {
    for message in messages {
        let found = match message.kind {
            ATTRIBUTE if !message.shared => attribute(&message.content, file.sizes),
            ATTRIBUTE_INFO => dense(file, &message.content, name)?,
            _ => None,
        };
        if let Some(found) = found.filter(|found| found.name == name.as_bytes()) {
            return one_text(file, &found);
        }
    }
    Ok(None)
}

/// The attribute of that name among those in a heap.
fn dense(file: &mut File<'_>, info: &[u8], name: &str) -> Result<Option<Attribute>, ConvertError> {
    let mut fields = Fields::new(info);
    let sizes = file.sizes;
    let mut read = || {
        fields.byte()?;
        let flags = fields.byte()?;
        fields.take(if flags & 1 != 0 { 2 } else { 0 })?;
        Ok((fields.address(sizes)?, fields.address(sizes)?))
    };
    let (heap, names) = read().map_err(|problem: String| file.input.malformed("", problem))?;
    let (Some(heap), Some(names)) = (heap, names) else {
        return Ok(None);
    };
    let heap = Heap::open(file, heap)?;
    let mut found = None;
    tree2::records(file, names, &[ATTRIBUTES_BY_NAME], &mut |file, record| {
        // The message's ID, then its flags: bit 1 for one that lies in a heap of all objects.
        let shared = record.get(8).is_none_or(|flags| flags & 2 != 0);
        if found.is_some() || shared {
            return Ok(());
        }
        let message = heap.object(file, &record[..8])?;
        let this = attribute(&message, file.sizes);
        found = this.filter(|this| this.name == name.as_bytes());
        Ok(())
    })?;
    Ok(found)
}

/// An attribute's message.
fn attribute(bytes: &[u8], sizes: Sizes) -> Option<Attribute> {
    let mut fields = Fields::new(bytes);
    let mut read = || {
        let (version, flags) = (fields.byte()?, fields.byte()?);
        let lens = [fields.number(2)?, fields.number(2)?, fields.number(2)?];
        fields.take(if version == 3 { 1 } else { 0 })?;
        let mut part = |len: u64| {
            let padded = match version {
                1 => len.next_multiple_of(8),
                _ => len,
            };
            let part = fields.take(padded)?;
            Ok::<&[u8], String>(&part[..len as usize])
        };
        let [name, datatype, space] = [part(lens[0])?, part(lens[1])?, part(lens[2])?];
        // A shared type is somewhere else: no text that anyone needs has one.
        let shared = version > 1 && flags & 3 != 0;
        let space = dataspace(space, sizes)?;
        let (false, Some(space)) = (shared, space) else {
            return Ok(None);
        };
        let product = |all: u64, dim: &u64| all.checked_mul(*dim);
        let Some(count) = space.dims.iter().try_fold(1, product) else {
            return Ok(None);
        };
        Ok::<_, String>(Some(Attribute {
            name: name
                .split(|&byte| byte == 0)
                .next()
                .unwrap_or_default()
                .to_vec(),
            datatype: datatype.to_vec(),
            count,
            data: Vec::new(),
        }))
    };
    let mut found = read().ok().flatten()?;
    found.data = fields.rest().to_vec();
    Some(found)
}

/// An attribute's text, if it is one.
fn one_text(file: &mut File<'_>, found: &Attribute) -> Result<Option<String>, ConvertError> {
    let mut fields = Fields::new(&found.datatype);
    let mut class = || Ok::<_, String>((fields.byte()?, fields.number(3)?, fields.number(4)?));
    let Ok((class, flags, size)) = class() else {
        return Ok(None);
    };
    let mut data = Fields::new(&found.data);
    let bytes = match class & 15 {
        _ if found.count != 1 => return Ok(None),
        3 => data.take(size).map(<[u8]>::to_vec).ok(),
        9 if flags & 15 == 1 => {
            let sizes = file.sizes;
            let mut read = || {
                let len = data.number(4)?;
                Ok::<_, String>((len, data.address(sizes)?, data.number(4)?))
            };
            match read() {
                Ok((len, Some(heap), number)) => global(file, heap, number, len)?,
                _ => None,
            }
        }
        _ => None,
    };
    let text = bytes.map(|bytes| {
        let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    });
    Ok(text)
}

/// An object of a global heap, as long as told.
fn global(
    file: &mut File<'_>,
    address: u64,
    number: u64,
    len: u64,
) -> Result<Option<Vec<u8>>, ConvertError> {
    let length = u64::from(file.sizes.length);
    let (head, _) = file.block(address, 8 + length, b"GCOL")?;
    let all = Fields::new(&head[8..])
        .number(file.sizes.length)
        .unwrap_or(0);
    let heap = file.bytes(address, all)?;
    let mut fields = Fields::new(&heap);
    let mut read = || {
        fields.take(8 + length)?;
        loop {
            let this = fields.number(2)?;
            fields.take(6)?;
            let size = fields.number(length as u8)?;
            if this == 0 {
                return Ok::<_, String>(None); // the rest is free
            }
            let content = fields.take(size.checked_next_multiple_of(8).unwrap_or(u64::MAX))?;
            if this == number {
                return Ok(content.get(..len.min(size) as usize).map(<[u8]>::to_vec));
            }
        }
    };
    Ok(read().ok().flatten())
}
