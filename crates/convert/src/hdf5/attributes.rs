//! Attributes of groups and datasets: the few that say what a model's tensors are.
//!
//! Source: HDF5 File Format Specification Version 3.0, §IV.A.2.m (attributes), §IV.A.2.v (attribute info) and §III.E
//! (global heaps, where texts of any length are).

use std::collections::HashMap;
use std::ops::Range;

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

/// A global heap.
struct Global {
    address: u64,
    bytes: Vec<u8>,
    /// Where its objects are, by their numbers.
    objects: HashMap<u64, Range<usize>>,
}

/// The attributes of an object.
///
/// Those that cannot be made sense of are passed over: tensors are complete without them.
pub(super) struct Attributes {
    all: Vec<Attribute>,
    /// The global heap that was read last.
    heap: Option<Global>,
}

impl Attributes {
    /// The attributes of an object with these messages.
    ///
    /// # Errors
    /// What is wrong with the heap or the index of attributes.
    pub(super) fn of(
        file: &mut File<'_>,
        messages: &[Message],
    ) -> Result<Attributes, ConvertError> {
        let mut all = Vec::new();
        for message in messages {
            match message.kind {
                ATTRIBUTE if !message.shared => {
                    all.extend(attribute(&message.content, file.sizes));
                }
                ATTRIBUTE_INFO => dense(file, &message.content, &mut all)?,
                _ => {}
            }
        }
        Ok(Attributes { all, heap: None })
    }

    /// The text of the attribute called `name`, if there is one and it is one text.
    pub(super) fn text(
        &mut self,
        file: &mut File<'_>,
        name: &str,
    ) -> Result<Option<String>, ConvertError> {
        let texts = self.texts(file, name)?;
        Ok(texts.and_then(|texts| <[String; 1]>::try_from(texts).ok().map(|[text]| text)))
    }

    /// The texts of the attribute called `name`; of `name0`, `name1` and so on if Keras divided them.
    pub(super) fn list(
        &mut self,
        file: &mut File<'_>,
        name: &str,
    ) -> Result<Option<Vec<String>>, ConvertError> {
        if let Some(texts) = self.texts(file, name)? {
            return Ok(Some(texts));
        }
        let mut list = Vec::new();
        for number in 0.. {
            match self.texts(file, &format!("{name}{number}"))? {
                Some(texts) => list.extend(texts),
                None if number == 0 => return Ok(None),
                None => break,
            }
        }
        Ok(Some(list))
    }

    fn texts(
        &mut self,
        file: &mut File<'_>,
        name: &str,
    ) -> Result<Option<Vec<String>>, ConvertError> {
        let found = self.all.iter().find(|found| found.name == name.as_bytes());
        let Some(found) = found else {
            return Ok(None);
        };
        let mut fields = Fields::new(&found.datatype);
        let mut class = || Ok::<_, String>((fields.byte()?, fields.number(3)?, fields.number(4)?));
        let Ok((class, flags, size)) = class() else {
            return Ok(None);
        };
        let there = (found.data.len() as u64).checked_div(size).unwrap_or(0);
        if found.count > there {
            return Ok(None);
        }
        let elements = found
            .data
            .chunks_exact(size as usize)
            .take(found.count as usize);
        let mut texts = Vec::new();
        for element in elements {
            let text = match class & 15 {
                3 => Some(until_zero(element)),
                9 if flags & 15 == 1 => global(&mut self.heap, file, element)?,
                _ => None,
            };
            match text {
                Some(text) => texts.push(text),
                None => return Ok(None),
            }
        }
        Ok(Some(texts))
    }
}

fn until_zero(bytes: &[u8]) -> String {
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// Adds the attributes that are in a heap.
fn dense(file: &mut File<'_>, info: &[u8], all: &mut Vec<Attribute>) -> Result<(), ConvertError> {
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
        return Ok(());
    };
    let heap = Heap::open(file, heap)?;
    tree2::records(file, names, &[ATTRIBUTES_BY_NAME], &mut |file, record| {
        // The message's ID, then its flags: bit 1 for one that lies in a heap of all objects.
        let shared = record.get(8).is_none_or(|flags| flags & 2 != 0);
        if !shared {
            let message = heap.object(file, &record[..8])?;
            all.extend(attribute(&message, file.sizes));
        }
        Ok(())
    })
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

/// A text in a global heap, by its length, the heap's address and the text's number in it; `None` if it is not there.
fn global(
    last: &mut Option<Global>,
    file: &mut File<'_>,
    place: &[u8],
) -> Result<Option<String>, ConvertError> {
    let mut fields = Fields::new(place);
    let sizes = file.sizes;
    let mut read = || {
        let len = fields.number(4)?;
        Ok::<_, String>((len, fields.address(sizes)?, fields.number(4)?))
    };
    let Ok((len, address, number)) = read() else {
        return Ok(None);
    };
    if len == 0 {
        return Ok(Some(String::new()));
    }
    let Some(address) = address else {
        return Ok(None);
    };
    if last.as_ref().is_none_or(|heap| heap.address != address) {
        let length = u64::from(sizes.length);
        let (head, _) = file.block(address, 8 + length, b"GCOL")?;
        let all = Fields::new(&head[8..]).number(sizes.length).unwrap_or(0);
        let bytes = file.bytes(address, all)?;
        let objects = objects(&bytes, sizes);
        *last = Some(Global {
            address,
            bytes,
            objects,
        });
    }
    let found = last.as_ref().and_then(|heap| {
        let object = heap.bytes.get(heap.objects.get(&number)?.clone())?;
        object.get(..len as usize)
    });
    Ok(found.map(until_zero))
}

/// Where the objects of a global heap are, by their numbers.
fn objects(heap: &[u8], sizes: Sizes) -> HashMap<u64, Range<usize>> {
    let mut objects = HashMap::new();
    let mut fields = Fields::new(heap);
    if fields.take(8 + u64::from(sizes.length)).is_err() {
        return objects;
    }
    let mut next = || {
        let number = fields.number(2)?;
        fields.take(6)?;
        let len = fields.number(sizes.length)?;
        let start = heap.len() - fields.rest().len();
        fields.take(len.checked_next_multiple_of(8).unwrap_or(u64::MAX))?;
        Ok::<_, String>((number, start..start + len as usize))
    };
    // Number 0 is what is free; nothing comes behind it.
    while let Ok((number @ 1.., place)) = next() {
        objects.insert(number, place);
    }
    objects
}
