//! A source written as a safetensors file.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;

use safelight_format::TensorSpec;
use safelight_store::replace_file;
use serde_json::{Map, json};

use crate::error::ConvertError;
use crate::source::{Note, Source};

/// How a source is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// Order, sync and so on.
    pub save: safelight_store::SaveOptions,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many tensors.
    pub tensor_count: u64,
    /// Their bytes, without the header.
    pub tensor_bytes: u64,
    /// The source's notes: what was not handed on as it was.
    pub notes: Vec<Note>,
}

/// Writes all tensors of a source into one safetensors file, atomically: `path` has the old content or the new one.
///
/// `progress` hears how many bytes of how many are done, and stops the writing by [`ControlFlow::Break`].
/// Memory: a few pieces.
///
/// # Errors
/// [`ConvertError::Cancelled`], what the source says, or what the disk says; nothing is left behind then.
pub fn write_safetensors(
    source: &dyn Source,
    path: &Path,
    options: &WriteOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Report, ConvertError> {
    let order = in_order(source.tensors());
    let (prefix, all) = header(source, &order)?;
    let mut failed = None;
    let written = replace_file(path, options.save.sync, |file| {
        file.write_all(&prefix)?;
        write_all(source, &order, file, all, progress).unwrap_or_else(|error| {
            failed = Some(error);
            Err(io::Error::other("stopped"))
        })
    });
    if let Some(error) = failed {
        return Err(error);
    }
    written?;
    Ok(Report {
        tensor_count: order.len() as u64,
        tensor_bytes: all,
        notes: source.notes().to_vec(),
    })
}

fn in_order(tensors: &[TensorSpec]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&index| {
        (
            std::cmp::Reverse(tensors[index].dtype),
            &tensors[index].name,
        )
    });
    order
}

fn header(source: &dyn Source, order: &[usize]) -> Result<(Vec<u8>, u64), ConvertError> {
    let mut header = Map::new();
    if !source.metadata().is_empty() {
        header.insert("__metadata__".into(), json!(source.metadata()));
    }
    let mut end = 0u64;
    for &index in order {
        let tensor = &source.tensors()[index];
        let start = end;
        let bytes = tensor.byte_count();
        end = bytes
            .and_then(|bytes| end.checked_add(bytes))
            .ok_or_else(|| {
                let shape = &tensor.shape;
                ConvertError::unsupported(
                    source.label(),
                    &tensor.name,
                    format!("shape {shape:?} has no size in bytes"),
                )
            })?;
        let entry = json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [start, end]});
        header.insert(tensor.name.clone(), entry);
    }
    let mut json = serde_json::Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut prefix = (json.len() as u64).to_le_bytes().to_vec();
    prefix.append(&mut json);
    Ok((prefix, end))
}

fn write_all(
    source: &dyn Source,
    order: &[usize],
    file: &mut dyn Write,
    all: u64,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<io::Result<()>, ConvertError> {
    let (mut done, mut refused) = (0, None);
    for &index in order {
        let read = source.read(index, &mut |piece| {
            if let Err(error) = file.write_all(piece) {
                refused = Some(error);
                return Err(ConvertError::Cancelled);
            }
            done += piece.len() as u64;
            match progress(done, all) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(ConvertError::Cancelled),
            }
        });
        if let Some(error) = refused {
            return Ok(Err(error));
        }
        read?;
    }
    Ok(Ok(()))
}
