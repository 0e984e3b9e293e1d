//! Writing checkpoints that lie in memory: one file, any output, or shards with an index.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use safelight_format::{HeaderPlan, Metadata, Order, PlanOptions, TensorView, WriteError};
use serde_json::json;

use crate::atomic::{Publish, Temporary, replace_file};
use crate::bulk::{self, PageCache};
use crate::error::{StoreError, path_text};
use crate::sys;

/// How a checkpoint is written.
#[derive(Clone, Copy, Debug)]
pub struct SaveOptions {
    /// The order of tensors in the file. For one of your own, hand the tensors over in it and ask
    /// for [`Order::Insertion`].
    pub order: Order,
    /// Wait until the bytes are on the disk, so that a power cut cannot lose them.
    pub sync: bool,
    /// Tensor data starts at a multiple of this: a power of two, 8 or more. 4096 lets readers map
    /// and transfer whole pages. See [`Order::Aligned`] for the tensors behind the first.
    pub align_bytes: u64,
    /// Room left in the header, so that metadata and tensors can be added later without moving
    /// the data: spaces, behind the metadata if there is any, else at the header's end.
    pub reserve_header_bytes: u64,
    /// Fail where the file system cannot rename, rather than copy the finished file over the
    /// target (see [`replace_file`]).
    pub only_atomic: bool,
    /// Whether the file's bytes stay in memory after [`save`].
    pub page_cache: PageCache,
}

impl Default for SaveOptions {
    /// Hugging Face's order and alignment, nothing reserved, no waiting.
    fn default() -> SaveOptions {
        let plan = PlanOptions::default();
        SaveOptions {
            order: plan.order,
            sync: false,
            align_bytes: plan.align_bytes,
            reserve_header_bytes: plan.reserve_bytes,
            only_atomic: false,
            page_cache: PageCache::default(),
        }
    }
}

impl SaveOptions {
    pub(crate) fn plan(&self) -> PlanOptions {
        PlanOptions {
            order: self.order,
            align_bytes: self.align_bytes,
            reserve_bytes: self.reserve_header_bytes,
        }
    }

    /// Length and header, with the spare room where it helps most.
    pub(crate) fn prefix(&self, plan: &HeaderPlan) -> Vec<u8> {
        let prefix = plan.prefix().to_vec();
        if self.reserve_header_bytes == 0 {
            return prefix; // to the byte what others write
        }
        crate::edit::spread(prefix)
    }

    pub(crate) fn publish(&self) -> Publish {
        Publish {
            sync: self.sync,
            only_atomic: self.only_atomic,
        }
    }
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
    let plan = plan(&path_text(path), tensors, metadata, options)?;
    let prefix = options.prefix(&plan);
    let temporary = Temporary::for_target(path)?;
    let (file, target) = (&temporary.file, &temporary.target);
    let bytes = plan.order().iter().map(|&index| tensors[index].bytes);
    let parts: Vec<&[u8]> = std::iter::once(&prefix[..]).chain(bytes).collect();
    sys::allocate(file, plan.file_bytes(), target)
        .and_then(|()| bulk::write(file, &parts, options.page_cache, target))
        .and_then(|()| temporary.publish(options.publish()))
        .map_err(StoreError::io("write", path))?;
    Ok(plan.file_bytes())
}

/// Writes the same bytes as [`save`] to a pipe, a socket, a buffer: one after the other, nothing
/// is read back or sought. `label` stands for the output in messages.
///
/// ```
/// use safelight_format::{Dtype, TensorView};
/// use safelight_store::{Checkpoint, SaveOptions, save_to};
///
/// let answer = TensorView { name: "answer", dtype: Dtype::U8, shape: &[], bytes: &[42] };
/// let mut buffer = Vec::new();
/// save_to("a buffer", &mut buffer, &[answer], None, &SaveOptions::default())?;
/// assert_eq!(Checkpoint::from_bytes("a buffer", buffer)?.read_bytes("answer")?, [42]);
/// # Ok::<(), safelight_store::StoreError>(())
/// ```
///
/// # Errors
/// [`StoreError::Write`] if the tensors contradict themselves (nothing has been written then),
/// [`StoreError::Io`] with what the output says.
pub fn save_to(
    label: &str,
    out: &mut dyn Write,
    tensors: &[TensorView<'_>],
    metadata: Option<&Metadata>,
    options: &SaveOptions,
) -> Result<u64, StoreError> {
    let plan = plan(label, tensors, metadata, options)?;
    write_all(out, &options.prefix(&plan), &plan, tensors)
        .map_err(StoreError::io("write", Path::new(label)))?;
    Ok(plan.file_bytes())
}

fn plan(
    label: &str,
    tensors: &[TensorView<'_>],
    metadata: Option<&Metadata>,
    options: &SaveOptions,
) -> Result<HeaderPlan, StoreError> {
    let planned = HeaderPlan::with_options(tensors, metadata, &options.plan());
    planned.map_err(|error| StoreError::Write {
        file: label.to_owned(),
        error,
    })
}

fn write_all(
    out: &mut dyn Write,
    prefix: &[u8],
    plan: &HeaderPlan,
    tensors: &[TensorView<'_>],
) -> io::Result<()> {
    out.write_all(prefix)?;
    for &position in plan.order() {
        out.write_all(tensors[position].bytes)?;
    }
    out.flush()
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
