//! Edits of tensors: other bytes, more of them, fewer, other names.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use safelight_format::{TensorInfo, TensorSpec, TensorView, WriteError};

use super::text::{self, Entries};
use super::{EditOptions, Edited, Editor, How, Strategy, with_length};
use crate::error::{StoreError, path_text};
use crate::sys;

/// Gives tensor `name` other bytes: as many as it has, little-endian, in row-major order.
///
/// # Errors
/// [`StoreError::NoSuchTensor`]; [`StoreError::Write`] if the number of bytes is another one; else as
/// [`super::set_metadata`].
pub fn patch_tensor(
    path: &Path,
    name: &str,
    bytes: &[u8],
    options: &EditOptions,
) -> Result<Edited, StoreError> {
    let editor = Editor::open(path, options, false)?;
    let tensor = editor.find(name)?;
    if tensor.byte_count() != bytes.len() as u64 {
        return Err(editor.unwritable(WriteError::WrongLength {
            tensor: name.to_owned(),
            dtype: tensor.dtype,
            shape: tensor.shape.to_vec(),
            expected_bits: tensor.byte_count().checked_mul(8),
            byte_count: bytes.len() as u64,
        }));
    }
    if bytes.is_empty() {
        return Ok(editor.unchanged());
    }
    let at = editor.header.data_start() + tensor.data_offsets.0;
    editor.overwrite(at, bytes, options)
}

/// Adds tensors behind those that are there.
///
/// With [`Strategy::InPlace`] (and room in the header: see [`crate::SaveOptions::reserve_header_bytes`]) only
/// the new tensors and the header are written, however large the file is. Between the first of
/// these writes and the last one other programs cannot read the file: it has bytes that its header does not
/// know. This library puts it back if the edit is interrupted.
///
/// # Errors
/// [`StoreError::Write`] if a name is taken or the tensors contradict themselves; else as
/// [`super::set_metadata`].
pub fn append(
    path: &Path,
    tensors: &[TensorView<'_>],
    options: &EditOptions,
) -> Result<Edited, StoreError> {
    let editor = Editor::open(path, options, false)?;
    if tensors.is_empty() {
        return Ok(editor.unchanged());
    }
    // Finds what is wrong with the new ones alone.
    let alone =
        safelight_format::HeaderPlan::new(tensors, None, safelight_format::Order::Insertion);
    alone.map_err(|error| editor.unwritable(error))?;
    let mut specs = editor.specs();
    specs.extend(tensors.iter().map(|tensor| TensorSpec {
        name: tensor.name.to_owned(),
        dtype: tensor.dtype,
        shape: tensor.shape.to_vec(),
    }));
    let entries = editor.entries_of(&specs)?;
    let more: Vec<&[u8]> = tensors.iter().map(|tensor| tensor.bytes).collect();
    let fitting = entries.filling(editor.json().len());
    match (options.strategy, fitting) {
        (Strategy::InPlace, None) => Err(editor.no_room(&entries)),
        (Strategy::InPlace, Some(json)) => editor.append_in_place(&json, &more, options),
        (_, fitting) => {
            let json = match fitting {
                Some(json) => json, // stays as long as it is: blocks can be shared
                None => editor.roomy(&entries, options)?,
            };
            let data_start = editor.header.data_start();
            let copies = [(data_start, editor.file_bytes - data_start)];
            editor.write_copy(&json, &copies, &more, options)
        }
    }
}

/// Gives tensors other names: old name to new name. No tensor is read.
///
/// # Errors
/// [`StoreError::NoSuchTensor`]; [`StoreError::Write`] if two tensors would have one name; else as
/// [`super::set_metadata`].
pub fn rename_tensors(
    path: &Path,
    names: &BTreeMap<String, String>,
    options: &EditOptions,
) -> Result<Edited, StoreError> {
    let editor = Editor::open(path, options, false)?;
    for old in names.keys() {
        editor.find(old)?;
    }
    let mut specs = editor.specs();
    for spec in &mut specs {
        if let Some(new) = names.get(&spec.name) {
            spec.name.clone_from(new);
        }
    }
    let entries = editor.entries_of(&specs)?;
    editor.change_header(&entries, options)
}

/// Removes tensors. What stays is copied in the kernel, undecoded, into a new file.
///
/// # Errors
/// [`StoreError::NoSuchTensor`]; [`StoreError::NoRoom`] with [`Strategy::InPlace`], because data has to move;
/// else as [`super::set_metadata`].
pub fn drop_tensors(
    path: &Path,
    names: &BTreeSet<String>,
    options: &EditOptions,
) -> Result<Edited, StoreError> {
    let editor = Editor::open(path, options, false)?;
    for name in names {
        editor.find(name)?;
    }
    if names.is_empty() {
        return Ok(editor.unchanged());
    }
    let mut specs = editor.specs();
    specs.retain(|spec| !names.contains(&spec.name));
    let entries = editor.entries_of(&specs)?;
    if options.strategy == Strategy::InPlace {
        return Err(editor.no_room(&entries));
    }
    let json = editor.roomy(&entries, options)?;
    let data_start = editor.header.data_start();
    let mut copies: Vec<(u64, u64)> = Vec::new();
    let staying = editor.header.tensors().iter();
    for tensor in staying.filter(|tensor| !names.contains(tensor.name)) {
        let (from, byte_count) = (data_start + tensor.data_offsets.0, tensor.byte_count());
        match copies.last_mut() {
            Some(last) if last.0 + last.1 == from => last.1 += byte_count,
            _ => copies.push((from, byte_count)),
        }
    }
    editor.write_copy(&json, &copies, &[], options)
}

impl Editor<'_> {
    fn find(&self, name: &str) -> Result<TensorInfo<'_>, StoreError> {
        let missing = || StoreError::NoSuchTensor {
            file: path_text(&self.path),
            tensor: name.to_owned(),
        };
        self.header.get(name).ok_or_else(missing)
    }

    /// All tensors, in the order of the file.
    fn specs(&self) -> Vec<TensorSpec> {
        let tensors = self.header.tensors().iter();
        tensors.map(|tensor| tensor.to_spec()).collect()
    }

    fn entries_of(&self, specs: &[TensorSpec]) -> Result<Entries, StoreError> {
        let entries = Entries::of_specs(specs, self.header.metadata());
        entries.map_err(|error| self.unwritable(error))
    }

    /// New tensors at the end, then the header that knows of them.
    fn append_in_place(
        &self,
        json: &[u8],
        more: &[&[u8]],
        options: &EditOptions,
    ) -> Result<Edited, StoreError> {
        self.check_locked()?;
        let prefix = with_length(json);
        let added: u64 = more.iter().map(|bytes| bytes.len() as u64).sum();
        let file_bytes = self.file_bytes + added;
        self.check(&prefix, file_bytes);
        let changed = text::difference(&self.prefix, &prefix).unwrap_or(0..0);
        let range = changed.start as u64..changed.end as u64;
        let header_at = range.start;
        let change = || -> io::Result<()> {
            let mut at = self.file_bytes;
            for bytes in more {
                sys::write_at(&self.file, bytes, at, &self.target)?;
                at += bytes.len() as u64;
            }
            let header = &prefix[changed];
            sys::write_at(&self.file, header, header_at, &self.target)
        };
        self.with_undo(range, options, change)?;
        let how = How::InPlace;
        Ok(Edited {
            how,
            file_bytes,
            why_copied: None,
        })
    }
}
