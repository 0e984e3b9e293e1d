//! Writing checkpoints: one file, or shards with an index.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use safelight_format::{HeaderPlan, Metadata, Order, TensorView, WriteError};
use serde_json::json;

use crate::atomic::replace_file;
use crate::error::{StoreError, path_text};

/// How a checkpoint is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct SaveOptions {
    /// The order of tensors in the file.
    pub order: Order,
    /// Wait until the bytes are on the disk, so that a power cut cannot lose them.
    pub sync: bool,
}

/// Writes one `.safetensors` file, atomically (see [`replace_file`]); returns its size.
///
/// Equal input gives equal bytes. In [`Order::HuggingFace`] they are those of the `safetensors` crate.
///
/// # Errors
/// [`StoreError::Write`] if the tensors contradict themselves, else what [`replace_file`] says.
pub fn save(
    path: &Path,
    tensors: &[TensorView<'_>],
    metadata: Option<&Metadata>,
    options: &SaveOptions,
) -> Result<u64, StoreError> {
    let planned = HeaderPlan::new(tensors, metadata, options.order);
    let plan = planned.map_err(|error| StoreError::Write {
        file: path_text(path),
        error,
    })?;
    replace_file(path, options.sync, |file| write_all(file, &plan, tensors))?;
    Ok(plan.file_bytes())
}

fn write_all(
    file: &mut dyn Write,
    plan: &HeaderPlan,
    tensors: &[TensorView<'_>],
) -> io::Result<()> {
    file.write_all(plan.prefix())?;
    plan.order()
        .iter()
        .try_for_each(|&position| file.write_all(tensors[position].bytes))
}

/// What [`save_sharded`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardedSave {
    /// The file to open: the index, or the only file if everything fits into one.
    pub path: PathBuf,
    /// The shards, in order.
    pub shards: Vec<PathBuf>,
    /// The bytes of all tensors, without headers: the index's `total_size`.
    pub total_size: u64,
}

/// Writes `model-00001-of-0000N.safetensors` … and `model.safetensors.index.json` into `folder`,
/// or only `model.safetensors` if one shard is enough.
///
/// Shards are filled in the order given, each with at most `max_shard_bytes` of tensor data; a
/// tensor larger than that gets a shard of its own. Each file is written atomically, the index
/// last. Shards of an earlier, longer save are left alone: the new index does not name them.
///
/// # Errors
/// As [`save`].
pub fn save_sharded(
    folder: &Path,
    tensors: &[TensorView<'_>],
    metadata: Option<&Metadata>,
    max_shard_bytes: u64,
    options: &SaveOptions,
) -> Result<ShardedSave, StoreError> {
    let index_path = folder.join("model.safetensors.index.json");
    // Contradictions among all tensors are found before the first shard is written.
    match HeaderPlan::new(tensors, metadata, options.order) {
        Ok(_) | Err(WriteError::HeaderTooLong { .. }) => {} // each shard has a header of its own
        Err(error) => {
            let file = path_text(&index_path);
            return Err(StoreError::Write { file, error });
        }
    }
    let groups = split(tensors, max_shard_bytes);
    let total_size = tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum();
    if groups.len() <= 1 {
        let path = folder.join("model.safetensors");
        save(&path, tensors, metadata, options)?;
        return Ok(ShardedSave {
            path: path.clone(),
            shards: vec![path],
            total_size,
        });
    }
    let mut shards = Vec::new();
    let mut weight_map = serde_json::Map::new();
    for (position, group) in groups.iter().enumerate() {
        let name = format!(
            "model-{:05}-of-{:05}.safetensors",
            position + 1,
            groups.len()
        );
        let path = folder.join(&name);
        save(&path, group, metadata, options)?;
        weight_map.extend(
            group
                .iter()
                .map(|tensor| (tensor.name.to_owned(), json!(name))),
        );
        shards.push(path);
    }
    weight_map.sort_keys();
    let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
    replace_file(&index_path, options.sync, |file| {
        writeln!(file, "{index:#}")
    })?;
    Ok(ShardedSave {
        path: index_path,
        shards,
        total_size,
    })
}

/// Runs of tensors that fit into one shard each.
fn split<'t, 'a>(tensors: &'t [TensorView<'a>], max_shard_bytes: u64) -> Vec<&'t [TensorView<'a>]> {
    let mut groups = Vec::new();
    let (mut start, mut shard_bytes) = (0, 0u64);
    for (position, tensor) in tensors.iter().enumerate() {
        let bytes = tensor.bytes.len() as u64;
        if position > start && shard_bytes.saturating_add(bytes) > max_shard_bytes {
            groups.push(&tensors[start..position]);
            (start, shard_bytes) = (position, 0);
        }
        shard_bytes = shard_bytes.saturating_add(bytes);
    }
    groups.push(&tensors[start..]);
    groups
}
