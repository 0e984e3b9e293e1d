//! A source written as shards with an index, as `transformers` and `diffusers` split large models.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use safelight_format::TensorSpec;
use safelight_store::replace_file;
use serde_json::{Map, json};

use crate::error::ConvertError;
use crate::source::{Note, Source};
use crate::write::{Report, WriteOptions, write_safetensors};

/// What [`write_sharded`] wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardedReport {
    /// All shards together.
    pub report: Report,
    /// The shards in order, then the index; or the only file.
    pub files: Vec<PathBuf>,
}

/// Writes `base-00001-of-0000N.safetensors` … and `base.safetensors.index.json` into `folder`, or only
/// `base.safetensors` if one shard is enough.
///
/// Shards are filled in the source's order, each with at most `shard_bytes_max` of tensors; a larger tensor gets a
/// shard of its own. Each file is written atomically, the index last.
///
/// # Errors
/// As [`write_safetensors`]; shards that were finished by then are removed.
pub fn write_sharded(
    source: &dyn Source,
    folder: &Path,
    base: &str,
    shard_bytes_max: u64,
    options: &WriteOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<ShardedReport, ConvertError> {
    let groups = split(source.tensors(), shard_bytes_max);
    if groups.len() <= 1 {
        let path = folder.join(format!("{base}.safetensors"));
        let report = write_safetensors(source, &path, options, progress)?;
        return Ok(ShardedReport {
            report,
            files: vec![path],
        });
    }
    let all = source
        .tensors()
        .iter()
        .map(|tensor| tensor.byte_count().unwrap_or(0))
        .fold(0, u64::saturating_add);
    let mut written = Vec::new();
    let result = write_groups(
        source,
        folder,
        base,
        &groups,
        options,
        &mut |done| progress(done, all),
        &mut written,
    );
    match result {
        Ok(mut report) => {
            report.notes = source.notes().to_vec();
            Ok(ShardedReport {
                report,
                files: written,
            })
        }
        Err(error) => {
            for path in written {
                let _ = std::fs::remove_file(path);
            }
            Err(error)
        }
    }
}

fn write_groups(
    source: &dyn Source,
    folder: &Path,
    base: &str,
    groups: &[Vec<usize>],
    options: &WriteOptions,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    written: &mut Vec<PathBuf>,
) -> Result<Report, ConvertError> {
    let mut report = Report::default();
    let mut weight_map = BTreeMap::new();
    for (number, group) in groups.iter().enumerate() {
        let name = format!(
            "{base}-{:05}-of-{:05}.safetensors",
            number + 1,
            groups.len()
        );
        let path = folder.join(&name);
        let tensors = group
            .iter()
            .map(|&index| source.tensors()[index].clone())
            .collect();
        let shard = Shard {
            source,
            tensors,
            indices: group,
        };
        let before = report.tensor_bytes;
        let this = write_safetensors(&shard, &path, options, &mut |done, _| {
            progress(before + done)
        })?;
        written.push(path);
        report.tensor_count += this.tensor_count;
        report.tensor_bytes += this.tensor_bytes;
        weight_map.extend(
            shard
                .tensors
                .into_iter()
                .map(|tensor| (tensor.name, name.clone())),
        );
    }
    let weight_map: Map<_, _> = weight_map
        .into_iter()
        .map(|(name, file)| (name, json!(file)))
        .collect();
    let index = json!({"metadata": {"total_size": report.tensor_bytes}, "weight_map": weight_map});
    let path = folder.join(format!("{base}.safetensors.index.json"));
    replace_file(&path, options.save.sync, |file| {
        file.write_all(format!("{index:#}\n").as_bytes())
    })?;
    written.push(path);
    Ok(report)
}

/// Runs of tensors that fit into one shard each.
fn split(tensors: &[TensorSpec], shard_bytes_max: u64) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut shard_bytes = 0u64;
    for (index, tensor) in tensors.iter().enumerate() {
        let bytes = tensor.byte_count().unwrap_or(u64::MAX);
        match groups.last_mut() {
            Some(group) if shard_bytes.saturating_add(bytes) <= shard_bytes_max => {
                group.push(index);
                shard_bytes += bytes;
            }
            _ => {
                groups.push(vec![index]);
                shard_bytes = bytes;
            }
        }
    }
    groups
}

/// Some tensors of a source.
struct Shard<'s> {
    source: &'s dyn Source,
    tensors: Vec<TensorSpec>,
    indices: &'s [usize],
}

impl Source for Shard<'_> {
    fn label(&self) -> &str {
        self.source.label()
    }

    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        self.source.metadata()
    }

    fn notes(&self) -> &[Note] {
        &[]
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        self.source.read(self.indices[index], out)
    }
}
