//! A source written as shards with an index, as `transformers` and `diffusers` split large models.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use safelight_store::ShardSet;

use crate::error::ConvertError;
use crate::folders::MadeFolders;
use crate::source::{Contents, Source, check_all};
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
/// shard of its own. An earlier save there is replaced as a whole, see [`ShardSet`]. The folder is made if need be.
///
/// # Errors
/// As [`write_safetensors`]; shards that were finished by then are removed, and folders that were made for them.
pub fn write_sharded(
    source: &dyn Source,
    folder: &Path,
    base: &str,
    shard_bytes_max: u64,
    options: &WriteOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<ShardedReport, ConvertError> {
    check_all(source)?;
    let folders = MadeFolders::make(folder)?;
    let groups = split(source.contents(), shard_bytes_max);
    if groups.len() <= 1 {
        let mut set = ShardSet::new(folder, base, 1)?;
        let report = write_safetensors(source, &set.path(0), options, progress)?;
        let names = source.contents().names();
        let names = names.map(|name| (name.to_owned(), 0));
        let path = set.finish(names, report.tensor_bytes, options.save.sync)?;
        folders.keep();
        return Ok(ShardedReport {
            report,
            files: vec![path],
        });
    }
    let all = source.contents().all_bytes();
    let mut set = ShardSet::new(folder, base, groups.len())?;
    let (mut report, weight_map) = write_groups(source, &mut set, &groups, options, &mut |done| {
        progress(done, all)
    })?;
    report.notes = source.notes().to_vec();
    let mut files: Vec<PathBuf> = (0..groups.len()).map(|shard| set.place(shard)).collect();
    files.push(set.finish(weight_map, report.tensor_bytes, options.save.sync)?);
    folders.keep();
    Ok(ShardedReport { report, files })
}

/// Writes all shards; what was written, and which tensor is in which shard.
fn write_groups(
    source: &dyn Source,
    set: &mut ShardSet,
    groups: &[Vec<usize>],
    options: &WriteOptions,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(Report, Vec<(String, usize)>), ConvertError> {
    let mut report = Report::default();
    let mut weight_map = Vec::new();
    for (number, group) in groups.iter().enumerate() {
        // Indices ascend, so that tensors of unknown dtypes come behind the others in the shard too.
        let known = source.tensors().len();
        let (tensors, opaque) = group.split_at(group.partition_point(|&index| index < known));
        let tensors = tensors.iter().map(|&index| source.tensors()[index].clone());
        let opaque = opaque.iter().map(|&index| &source.opaque()[index - known]);
        let contents = Contents {
            tensors: tensors.collect(),
            opaque: opaque.cloned().collect(),
            notes: vec![],
            ..source.contents().clone()
        };
        let shard = Shard {
            source,
            contents,
            indices: group,
        };
        let before = report.tensor_bytes;
        let this = write_safetensors(&shard, &set.path(number), options, &mut |done, _| {
            progress(before + done)
        })?;
        report.tensor_count += this.tensor_count;
        report.tensor_bytes += this.tensor_bytes;
        let names = shard.contents.names();
        weight_map.extend(names.map(|name| (name.to_owned(), number)));
    }
    Ok((report, weight_map))
}

/// Runs of tensors that fit into one shard each.
fn split(contents: &Contents, shard_bytes_max: u64) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut shard_bytes = 0u64;
    for (index, bytes) in contents.byte_counts().enumerate() {
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
    contents: Contents,
    indices: &'s [usize],
}

impl Source for Shard<'_> {
    fn contents(&self) -> &Contents {
        &self.contents
    }

    fn check(&self, indices: &[usize]) -> Result<(), ConvertError> {
        let indices: Vec<usize> = indices.iter().map(|&index| self.indices[index]).collect();
        self.source.check(&indices)
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        self.source.read(self.indices[index], out)
    }
}
