//! Which reader a file needs, told from its content.

use std::fs::File;
use std::io;
use std::path::Path;

use safelight_format::{FileKind, sniff};
use safelight_store::location::{self, Location};
use safelight_store::{Checkpoint, ReadAt as _, StoreError, WatchedFile};

use crate::checkpoint::CheckpointSource;
use crate::error::ConvertError;
use crate::flax::{FlaxSource, is_flax};
use crate::gguf::{GgufReading, GgufSource, Quantized};
use crate::hdf5::{Hdf5Source, is_hdf5, is_keras};
use crate::layout::{FolderSource, is_diffusers_folder};
use crate::npz::{NpzSource, is_npz};
use crate::onnx::{OnnxSource, is_onnx};
use crate::source::{Limits, Source};
use crate::torch::{Context, is_pickle, open_pickle, open_zip};

/// As many first bytes as tell every kind of file.
const SNIFFED_BYTES: usize = 64 * 1024;

/// What happens to objects in a pickle whose class is not on the list. They are never built, whatever is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownObjects {
    /// The file is refused, and the error names the class.
    #[default]
    Refuse,
    /// They are left out, with a note each, unless they are known to run code: that is refused always.
    Drop,
}

/// What happens to tensors that are one and the same under several names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SharedTensors {
    /// Each name gets its own copy of the bytes, with a note.
    #[default]
    Copies,
    /// The first name keeps the tensor; the metadata says `other name → first name` for the others, as
    /// `safetensors.torch.save_model` does, so that `load_model` finds them.
    Once,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// How much the file may ask for.
    pub limits: Limits,
    /// What happens to objects of unknown classes.
    pub unknown_objects: UnknownObjects,
    /// What happens to tensors with several names.
    pub shared: SharedTensors,
    /// Put plain numbers and strings beside the tensors into the metadata, as text; else they are dropped with a note.
    pub values_to_metadata: bool,
    /// What becomes of quantised tensors (GGUF).
    pub quantized: Quantized,
    /// Leave out tensors whose type nothing here reads (GGUF), with a note each, instead of refusing the file.
    pub skip_unsupported: bool,
}

/// Opens a model file of any kind that is known here: safetensors, an index with its shards, and foreign formats.
///
/// What it is, the content says. Nothing in it is executed.
///
/// # Errors
/// [`ConvertError::UnknownKind`] if nothing here reads it; else what its reader says.
pub fn open(path: &Path, limits: &Limits) -> Result<Box<dyn Source>, ConvertError> {
    let limits = *limits;
    open_with(
        path,
        &OpenOptions {
            limits,
            ..OpenOptions::default()
        },
    )
}

/// As [`open`], with choices.
///
/// # Errors
/// As [`open`].
pub fn open_with(path: &Path, options: &OpenOptions) -> Result<Box<dyn Source>, ConvertError> {
    if let Location::Url(url) = Location::of(path) {
        return open_url(&url, options);
    }
    if is_diffusers_folder(path) {
        return Ok(Box::new(FolderSource::open(path, &options.limits)?));
    }
    let is_index = path.to_string_lossy().ends_with(".safetensors.index.json");
    let start = if is_index || path.is_dir() {
        Vec::new()
    } else {
        start_of(path)?
    };
    let limits = options.limits.header;
    match sniff(&start) {
        None if is_flax(&start) => Ok(Box::new(FlaxSource::open(
            path,
            &options.limits,
            options.values_to_metadata,
        )?)),
        None if is_hdf5(&start) => Ok(Box::new(Hdf5Source::open(path, &options.limits)?)),
        None if !start.is_empty() && !claims_header(&start) && is_pickle_file(path)? => {
            open_pickle(&Context::new(path, options), Box::new(open_file(path)?))
        }
        None if start.len() > 8 && is_onnx(&open_file(path)?) => {
            Ok(Box::new(OnnxSource::open(path, &options.limits)?))
        }
        None | Some(FileKind::Json) => {
            let store_options = safelight_store::OpenOptions {
                limits,
                ..Default::default()
            };
            match Checkpoint::open_with(path, &store_options) {
                Ok(checkpoint) => Ok(Box::new(CheckpointSource::new(checkpoint))),
                Err(error) if claims_header(&start) => {
                    Err(refused_pickle(path, options).unwrap_or(error.into()))
                }
                Err(error) => Err(error.into()),
            }
        }
        Some(FileKind::Gguf) => Ok(Box::new(GgufSource::open(
            path,
            &options.limits,
            GgufReading {
                quantized: options.quantized,
                skip_unsupported: options.skip_unsupported,
            },
        )?)),
        Some(FileKind::Hdf5) => Ok(Box::new(Hdf5Source::open(path, &options.limits)?)),
        Some(FileKind::Npy) => Ok(Box::new(NpzSource::open(path, &options.limits)?)),
        Some(FileKind::TorchZip | FileKind::Zip) if is_npz(&open_file(path)?) => {
            Ok(Box::new(NpzSource::open(path, &options.limits)?))
        }
        Some(FileKind::TorchZip | FileKind::Zip) if is_keras(&open_file(path)?) => {
            Ok(Box::new(Hdf5Source::open(path, &options.limits)?))
        }
        Some(FileKind::TorchZip | FileKind::Zip) => {
            open_zip(&Context::new(path, options), Box::new(open_file(path)?))
        }
        Some(FileKind::Pickle) => {
            open_pickle(&Context::new(path, options), Box::new(open_file(path)?))
        }
        kind => Err(ConvertError::UnknownKind {
            file: path.to_string_lossy().into_owned(),
            kind,
        }),
    }
}

/// Whether a file begins as safetensors files do: a length and `{`.
fn claims_header(start: &[u8]) -> bool {
    start.get(8) == Some(&b'{') && start.get(4..8) == Some(&[0; 4])
}

fn is_pickle_file(path: &Path) -> Result<bool, ConvertError> {
    is_pickle(&open_file(path)?).map_err(ConvertError::io("read", path))
}

/// Why a file that begins as safetensors files do is none: if a pickle was made to look like one, what it asks for.
fn refused_pickle(path: &Path, options: &OpenOptions) -> Option<ConvertError> {
    let file = open_file(path).ok()?;
    if !is_pickle(&file).ok()? {
        return None;
    }
    let opened = open_pickle(&Context::new(path, options), Box::new(file));
    opened
        .err()
        .filter(|error| matches!(error, ConvertError::RefusedGlobal { .. }))
}

/// What a URL names: safetensors and their shards. Foreign formats are read from this machine only.
fn open_url(url: &str, options: &OpenOptions) -> Result<Box<dyn Source>, ConvertError> {
    let store_options = safelight_store::OpenOptions {
        limits: options.limits.header,
        ..Default::default()
    };
    let checkpoint = location::open_with(url, &store_options)?;
    Ok(Box::new(CheckpointSource::new(checkpoint)))
}

/// Opens a file, which is watched: reading it fails as soon as another program has written to it. A device or a pipe is
/// refused, as opening one could wait for ever.
pub(crate) fn open_file(path: &Path) -> Result<WatchedFile, ConvertError> {
    let metadata = std::fs::metadata(path).map_err(ConvertError::io("open", path))?;
    if !metadata.is_file() && !metadata.is_dir() {
        return Err(ConvertError::Store(StoreError::NotAFile {
            file: path.to_string_lossy().into_owned(),
            what: "a device or pipe",
        }));
    }
    File::open(path)
        .and_then(|file| WatchedFile::new(file, path))
        .map_err(ConvertError::io("open", path))
}

/// A file's first bytes, which tell what it is.
fn start_of(path: &Path) -> Result<Vec<u8>, ConvertError> {
    let file = open_file(path)?;
    let mut start = vec![0; SNIFFED_BYTES];
    let mut len = 0;
    while len < start.len() {
        match file.read_at(&mut start[len..], len as u64) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ConvertError::io("read", path)(error)),
        }
    }
    start.truncate(len);
    Ok(start)
}
