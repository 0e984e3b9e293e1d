//! Which reader a file needs, told from its content.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;

use safelight_format::{FileKind, FormatError, sniff};
use safelight_store::location::{self, Location};
use safelight_store::{Checkpoint, ReadAt, StoreError, WatchedFile, matching};

use crate::blocks::Blocks;
use crate::bytes::read_up_to;
use crate::checkpoint::CheckpointSource;
use crate::error::ConvertError;
use crate::flax::{FlaxSource, is_flax};
use crate::gguf::{GgufReading, GgufSource, Quantized};
use crate::hdf5::{Hdf5Source, is_hdf5, is_keras};
use crate::input::Input;
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
    /// List tensors of dtypes that nothing here knows in [`crate::Contents::opaque`], instead of refusing their (safetensors) file.
    pub opaque_dtypes: bool,
    /// Leave out tensors that nothing here reads (types of GGUF, complex128, sparse and quantised ones, unknown filters …), with a note each
    /// and listed in [`crate::Contents::skipped`], instead of refusing the file.
    pub skip_unsupported: bool,
}

/// Opens a model file of any kind that is known here: safetensors, an index with its shards (or a folder or pattern of them), and
/// foreign formats.
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
    let path = &match Location::of(path) {
        Location::Url(url) => return open_url(&url, options),
        Location::Path(path) => path,
    };
    if is_diffusers_folder(path) {
        return Ok(Box::new(FolderSource::open(path, &options.limits)?));
    }
    let is_index = path.to_string_lossy().ends_with(INDEX_ENDING);
    if is_index || path.is_dir() || matching(path)?.is_some() {
        return open_safetensors(path.as_os_str(), options);
    }
    let label = path.to_string_lossy();
    let file = open_file(path)?;
    let start = start_of(&label, &file)?;
    match Format::of(&start, &file).map_err(ConvertError::io("read", path))? {
        Format::Safetensors => {
            let opened = open_safetensors(path.as_os_str(), options);
            opened.map_err(|error| match claims_header(&start) {
                true => refused_pickle(path, options).unwrap_or(error),
                false => not_as_named(path, &start, error),
            })
        }
        // Its data may lie beside it.
        Format::Onnx => Ok(Box::new(OnnxSource::open_with(
            path,
            &options.limits,
            options.skip_unsupported,
        )?)),
        Format::Other(kind) => {
            let (file, kind) = (label.clone().into_owned(), Some(kind));
            let error = ConvertError::UnknownKind { file, kind };
            Err(not_as_named(path, &start, error))
        }
        format => open_foreign(format, &label, Box::new(file), options),
    }
}

/// As [`open_with`], of a file of any kind that is read through `reader`; `label` stands for it in messages. Data in other files are
/// refused.
///
/// # Errors
/// As [`open`].
pub fn open_reader(
    label: &str,
    reader: Box<dyn ReadAt>,
    options: &OpenOptions,
) -> Result<Box<dyn Source>, ConvertError> {
    let start = start_of(label, &*reader)?;
    let format = Format::of(&start, &*reader);
    match format.map_err(ConvertError::io("read", Path::new(label)))? {
        Format::Safetensors => {
            let checkpoint = Checkpoint::from_reader(label, reader, &store_options(options))?;
            Ok(Box::new(CheckpointSource::new(checkpoint)))
        }
        format => open_foreign(format, label, reader, options),
    }
}

/// What files with a name like this are, if it is the name of a foreign model's.
fn promised(path: &Path) -> Option<&'static str> {
    let ending = path.extension()?.to_string_lossy().to_ascii_lowercase();
    Some(match ending.as_str() {
        "ckpt" | "pt" | "pth" | "bin" => "a PyTorch checkpoint (a zip archive or a pickle)",
        "pkl" | "pickle" => "a pickle",
        "gguf" => "a GGUF model (which begins with `GGUF`)",
        "npz" => "a zip archive of NumPy arrays",
        "npy" => "a NumPy array",
        "onnx" => "an ONNX model (protobuf)",
        "h5" | "hdf5" => "an HDF5 file",
        "keras" => "a Keras model (a zip archive)",
        "msgpack" | "flax" => "a Flax checkpoint (msgpack)",
        _ => return None,
    })
}

/// What to say of a file that is of no kind that is read here: what its name promises and what it is instead, if it has a name
/// that promises anything, or else `error`.
fn not_as_named(path: &Path, start: &[u8], error: ConvertError) -> ConvertError {
    let Some(expected) = promised(path) else {
        return error;
    };
    let kind = match &error {
        ConvertError::UnknownKind { kind, .. } => *kind,
        ConvertError::Store(StoreError::Format { error, .. }) => match error {
            FormatError::OtherKind { kind } => Some(*kind),
            _ => sniff(start),
        },
        _ => return error,
    };
    let seen = match (kind, start) {
        (_, []) => "empty (0 bytes); copy or download it again".to_owned(),
        (Some(kind), _) => kind.advice().to_owned(),
        (None, _) => {
            let bytes: Vec<_> = start
                .iter()
                .take(8)
                .map(|byte| format!("{byte:02x}"))
                .collect();
            let bytes = bytes.join(" ");
            format!(
                "of no kind known here (it begins with the bytes {bytes}); is it whole, and what made it?"
            )
        }
    };
    ConvertError::NotAsNamed {
        file: path.to_string_lossy().into_owned(),
        expected,
        seen,
    }
}

/// What an index of shards is called.
const INDEX_ENDING: &str = ".safetensors.index.json";

/// Who reads a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Safetensors,
    Flax,
    Gguf,
    Hdf5,
    Npz,
    Onnx,
    Pickle,
    Zip,
    /// Nobody here.
    Other(FileKind),
}

impl Format {
    /// By the file's first bytes, and where they are not enough by others.
    fn of(start: &[u8], file: &dyn ReadAt) -> io::Result<Format> {
        Ok(match sniff(start) {
            None if is_flax(start) => Format::Flax,
            None if is_hdf5(start) => Format::Hdf5,
            None if !start.is_empty() && !claims_header(start) && is_pickle(file)? => {
                Format::Pickle
            }
            None if start.len() > 8 && is_onnx(file) => Format::Onnx,
            None | Some(FileKind::Json) => Format::Safetensors,
            Some(FileKind::Gguf) => Format::Gguf,
            Some(FileKind::Hdf5) => Format::Hdf5,
            Some(FileKind::Npy) => Format::Npz,
            Some(FileKind::TorchZip | FileKind::Zip) if is_npz(file) => Format::Npz,
            Some(FileKind::TorchZip | FileKind::Zip) if is_keras(file) => Format::Hdf5,
            Some(FileKind::TorchZip | FileKind::Zip) => Format::Zip,
            Some(FileKind::Pickle) => Format::Pickle,
            Some(kind) => Format::Other(kind),
        })
    }
}

/// Opens a file, shards or a folder of them, by path or URL.
fn open_safetensors(
    location: &OsStr,
    options: &OpenOptions,
) -> Result<Box<dyn Source>, ConvertError> {
    let checkpoint = location::open_with(location, &store_options(options))?;
    Ok(Box::new(CheckpointSource::new(checkpoint)))
}

fn store_options(options: &OpenOptions) -> safelight_store::OpenOptions {
    safelight_store::OpenOptions {
        limits: options.limits.header,
        opaque_dtypes: options.opaque_dtypes,
        ..Default::default()
    }
}

/// Opens what is no safetensors file, from wherever it is read.
fn open_foreign(
    format: Format,
    label: &str,
    reader: Box<dyn ReadAt>,
    options: &OpenOptions,
) -> Result<Box<dyn Source>, ConvertError> {
    let (limits, skips) = (&options.limits, options.skip_unsupported);
    let context = Context::new(Path::new(label), options);
    Ok(match format {
        Format::Flax => {
            let to_metadata = options.values_to_metadata;
            let input = Input::new(label, reader, "Flax msgpack")?.skipping(skips);
            Box::new(FlaxSource::read_from(input, limits, to_metadata)?)
        }
        Format::Gguf => {
            let reading = GgufReading {
                quantized: options.quantized,
                skip_unsupported: options.skip_unsupported,
            };
            Box::new(GgufSource::from_reader(label, reader, limits, reading)?)
        }
        Format::Hdf5 => Box::new(Hdf5Source::from_reader_with(label, reader, limits, skips)?),
        Format::Npz => {
            let input = Input::new(label, reader, "NumPy")?.skipping(skips);
            Box::new(NpzSource::read_from(input, limits)?)
        }
        Format::Onnx => {
            let input = Input::new(label, reader, "ONNX")?.skipping(skips);
            Box::new(OnnxSource::read_from(input, None, limits)?)
        }
        Format::Pickle => open_pickle(&context, reader)?,
        Format::Zip => open_zip(&context, reader)?,
        Format::Safetensors => unreachable!("both callers open safetensors by their place"),
        Format::Other(kind) => {
            return Err(ConvertError::UnknownKind {
                file: label.to_owned(),
                kind: Some(kind),
            });
        }
    })
}

/// Whether a file begins as safetensors files do: a length and `{`.
fn claims_header(start: &[u8]) -> bool {
    start.get(8) == Some(&b'{') && start.get(4..8) == Some(&[0; 4])
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

/// What a URL names: safetensors and their shards, which are read by ranges, or another format, which is read in large
/// blocks where its reader looks.
fn open_url(url: &str, options: &OpenOptions) -> Result<Box<dyn Source>, ConvertError> {
    let label = Location::of(url).shown();
    let path = label.trim_end_matches("?…");
    // Whose name says it needs no second look.
    if path.ends_with(".safetensors") || path.ends_with(INDEX_ENDING) {
        return open_safetensors(OsStr::new(url), options);
    }
    let unread = |error| ConvertError::Io {
        doing: "read",
        file: label.clone(),
        error,
    };
    let reader = Blocks::new(location::open_reader(url)?).map_err(unread)?;
    let format = Format::of(&start_of(&label, &reader)?, &reader);
    match format.map_err(unread)? {
        Format::Safetensors => open_safetensors(OsStr::new(url), options),
        format => open_foreign(format, &label, Box::new(reader), options),
    }
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
fn start_of(label: &str, file: &dyn ReadAt) -> Result<Vec<u8>, ConvertError> {
    let mut start = vec![0; SNIFFED_BYTES];
    let read = read_up_to(file, &mut start, 0);
    let len = read.map_err(ConvertError::io("read", Path::new(label)))?;
    start.truncate(len);
    Ok(start)
}
