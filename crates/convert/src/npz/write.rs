//! A source written as an npz archive, which NumPy reads without any package of ours.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use safelight_format::{Dtype, TensorSpec, are, plural};
use serde_json::json;

use super::{DTYPES_KEY, METADATA};
use crate::error::ConvertError;
use crate::npy::npy_header;
use crate::sink::Sink;
use crate::source::{Note, Source, refuse_opaque};
use crate::write::Report;
use crate::zip_write::ZipWriter;

/// How an npz file is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct NpzOptions {
    /// Deflate the arrays, as `numpy.savez_compressed` does; weights seldom become much smaller.
    pub deflate: bool,
    /// Wait until the bytes are on the disk.
    pub sync: bool,
}

/// Writes all tensors of a source into one npz file, atomically, in bounded memory.
///
/// Member `NAME.npy` is tensor `NAME`. BF16 becomes `<V2` and the one-byte floats `|V1`, which NumPy loads as bytes:
/// `array.view(ml_dtypes.bfloat16)` gives the numbers back. Metadata, and which of them it was, stand as a JSON text in `__metadata__`.
///
/// `progress` hears how many bytes of the source of how many are done, and stops the writing by
/// [`ControlFlow::Break`].
///
/// # Errors
/// [`ConvertError::Unsupported`] for dtypes of less than a byte and for names that no archive should have (absolute,
/// or with `..`); else what the source and the disk say.
pub fn write_npz(
    source: &dyn Source,
    path: &Path,
    options: &NpzOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Report, ConvertError> {
    let instead = "leave them out (--exclude), or write safetensors";
    refuse_opaque(source.label(), source.opaque(), "an npz file", instead)?;
    let headers = source
        .tensors()
        .iter()
        .map(|tensor| header(source, tensor))
        .collect::<Result<Vec<_>, _>>()?;
    let metadata = metadata(source);
    Sink::write_atomically(source, path, options.sync, progress, |sink| {
        let mut archive = ZipWriter::default();
        let mut tensor_bytes = 0;
        for (index, header) in headers.iter().enumerate() {
            let name = format!("{}.npy", source.tensors()[index].name);
            let mut member = archive.begin(sink, &name, options.deflate)?;
            member.write(sink, header)?;
            sink.tensor(source, index, &mut |piece, sink| {
                tensor_bytes += piece.len() as u64;
                member.write(sink, piece)
            })?;
            archive.end(sink, member)?;
        }
        if let Some(text) = &metadata {
            let mut member = archive.begin(sink, &format!("{METADATA}.npy"), options.deflate)?;
            member.write(sink, &text_array(text))?;
            archive.end(sink, member)?;
        }
        archive.finish(sink)?;
        Ok(Report {
            tensor_count: headers.len() as u64,
            tensor_bytes,
            notes: [source.notes(), &as_bytes(source)].concat(),
        })
    })
}

/// A note if some tensors are no numbers to NumPy alone.
fn as_bytes(source: &dyn Source) -> Vec<Note> {
    let unnamed = source.tensors().iter();
    let unnamed = unnamed.filter(|tensor| is_unnamed(tensor.dtype));
    let count = unnamed.count() as u64;
    let note = (count > 0).then(|| {
        let what = format!(
            "{} of BF16 or 8-bit floats {} bytes to NumPy, which does not have them: `array.view(ml_dtypes.bfloat16)`, or cast with --dtype f32",
            plural(count, "tensor"),
            are(count)
        );
        Note::new("", what)
    });
    note.into_iter().collect()
}

/// Whether NumPy has no name for a dtype, so that its arrays are bytes.
fn is_unnamed(dtype: Dtype) -> bool {
    matches!(
        dtype,
        Dtype::F8E5m2
            | Dtype::F8E4m3
            | Dtype::F8E8m0
            | Dtype::F8E4m3Fnuz
            | Dtype::F8E5m2Fnuz
            | Dtype::Bf16
    )
}

fn header(source: &dyn Source, tensor: &TensorSpec) -> Result<Vec<u8>, ConvertError> {
    let refuse = |what: String| {
        Err(ConvertError::unsupported(
            source.label(),
            &tensor.name,
            what,
        ))
    };
    let outside = tensor.name.split(['/', '\\']).any(|part| part == "..");
    if outside
        || tensor.name.starts_with(['/', '\\'])
        || tensor.name == METADATA
        || tensor.name.contains('\0')
    {
        return refuse(
            "is no name for a file in an archive; rename the tensor (`--rename OLD=NEW`)".into(),
        );
    }
    match npy_header(tensor.dtype, &tensor.shape) {
        Some(header) => Ok(header),
        None => refuse(format!(
            "is {} of shape {:?}, which NumPy does not have; cast it to F32 or leave it out (`--exclude NAME`)",
            tensor.dtype, tensor.shape
        )),
    }
}

/// The text of `__metadata__`, if there is anything to say.
fn metadata(source: &dyn Source) -> Option<String> {
    let mut metadata = source.metadata().clone();
    let tensors = source.tensors().iter();
    let unnamed = tensors.filter(|tensor| is_unnamed(tensor.dtype));
    let dtypes: BTreeMap<&str, &str> = unnamed
        .map(|tensor| (&*tensor.name, tensor.dtype.name()))
        .collect();
    if !dtypes.is_empty() {
        metadata.insert(DTYPES_KEY.to_owned(), json!(dtypes).to_string());
    }
    (!metadata.is_empty()).then(|| json!(metadata).to_string())
}

/// An npy file with one text.
fn text_array(text: &str) -> Vec<u8> {
    let chars = text.chars().count();
    let header = format!("{{'descr': '<U{chars}', 'fortran_order': False, 'shape': (), }}");
    let end = (10 + header.len() + 1).next_multiple_of(64);
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(((end - 10) as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.resize(end - 1, b' ');
    bytes.push(b'\n');
    bytes.extend(text.chars().flat_map(|char| u32::from(char).to_le_bytes()));
    bytes
}
