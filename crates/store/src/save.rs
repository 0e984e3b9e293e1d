//! Writing checkpoints that lie in memory: one file, or any output.

use std::io::{self, Write};
use std::path::Path;

use safelight_format::{HeaderPlan, Metadata, Order, PlanOptions, TensorView};

use crate::atomic::{Publish, Temporary};
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
    /// target (see [`crate::replace_file`]).
    pub only_atomic: bool,
    /// Whether the file's bytes stay in memory after [`save`] or [`crate::Writer::finish`].
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

/// Writes one `.safetensors` file, atomically (see [`crate::replace_file`]); returns its size.
///
/// Equal input gives equal bytes. In [`Order::HuggingFace`] they are those of the `safetensors` crate.
///
/// # Errors
/// [`StoreError::Write`] if the tensors contradict themselves, else what [`crate::replace_file`] says.
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
        .and_then(|()| bulk::write(file, &parts, options.page_cache, options.sync, target))
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
