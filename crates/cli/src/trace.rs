//! What was computed on the way to the pictures, as a safetensors file: `--trace`.

use std::path::Path;

use safelight_diffusion::pipeline::Picture;
use safelight_format::{Dtype, TensorView};
use safelight_store::{SaveOptions, save};

use crate::error::Failure;

/// Refuses a file that is there already: it might be a model.
pub(crate) fn refuse_to_overwrite(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Err(Failure::Usage(format!(
            "--trace {}: the file exists; choose another name",
            path.display()
        )));
    }
    Ok(())
}

/// Writes the traces of `pictures`; with more than one, names begin with the picture's seed and a slash.
pub(crate) fn write(path: &Path, pictures: &[Picture]) -> Result<(), Failure> {
    let mut tensors = Vec::new();
    for picture in pictures {
        for traced in &picture.trace {
            let name = match pictures.len() {
                1 => traced.name.clone(),
                _ => format!("{}/{}", picture.seed, traced.name),
            };
            let shape: Vec<u64> = traced.shape.iter().map(|&size| size as u64).collect();
            let bytes: Vec<u8> = traced
                .values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            tensors.push((name, shape, bytes));
        }
    }
    let views: Vec<TensorView<'_>> = tensors
        .iter()
        .map(|(name, shape, bytes)| TensorView {
            name,
            dtype: Dtype::F32,
            shape,
            bytes,
        })
        .collect();
    match save(path, &views, None, &SaveOptions::default()) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::Machine(format!(
            "the trace cannot be written: {error}"
        ))),
    }
}
