//! `*.safetensors.index.json`: which tensor lies in which of many files.
//!
//! ```json
//! {"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
//! ```

use std::collections::{BTreeSet, HashMap};
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use safelight_format::Strictness;
use serde_json::Value;

use crate::checkpoint::{Checkpoint, OpenOptions, ShardFile};
use crate::error::{StoreError, beside, path_text};
use crate::source::open_regular;

/// How an index file's name ends.
pub(crate) const INDEX_SUFFIX: &str = ".index.json";

/// Longer than the index of any model: 10⁶ tensors with names of 200 bytes.
pub(crate) const INDEX_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Whether a path names an index.
pub(crate) fn is_index(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().ends_with(INDEX_SUFFIX))
}

/// Opens all shards and checks that each tensor is where the index says.
pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Checkpoint, StoreError> {
    let file = path_text(path);
    let index = Index::parse(&file, &read_index(path)?)?;
    check_there(path, &index.shards)?;
    let open = |name: &str| ShardFile::open(&beside(path, name), options);
    index.open(file, Some(path.to_owned()), options, open)
}

/// What an index says, wherever it was read from.
pub(crate) struct Index {
    /// Each tensor and the name of its shard.
    listed: Vec<(String, String)>,
    /// The names of all shards, sorted: relative, and in or below the index's folder.
    pub(crate) shards: Vec<String>,
}

impl Index {
    /// Reads the text of the index `file`, and checks that no shard lies outside its folder.
    pub(crate) fn parse(file: &str, text: &[u8]) -> Result<Index, StoreError> {
        let listed = parse_index(file, text)?;
        let shards: BTreeSet<&str> = listed.iter().map(|(_, shard)| shard.as_str()).collect();
        let shards: Vec<String> = shards.into_iter().map(str::to_owned).collect();
        check_names(file, &shards)?;
        Ok(Index { listed, shards })
    }

    /// Opens all shards, each by its name, and checks that each tensor is where the index says.
    pub(crate) fn open(
        &self,
        file: String,
        path: Option<PathBuf>,
        options: &OpenOptions,
        open: impl Fn(&str) -> Result<ShardFile, StoreError>,
    ) -> Result<Checkpoint, StoreError> {
        let files = self.shards.iter().map(|name| open(name));
        let files = files.collect::<Result<Vec<_>, _>>()?;
        let mut weight_map = HashMap::with_capacity(self.listed.len());
        let mut strays = Vec::new();
        for (tensor, shard) in &self.listed {
            let position = self.shards.partition_point(|name| name < shard);
            if files[position].header.get(tensor).is_none() {
                strays.push((tensor.clone(), shard.clone()));
            }
            weight_map.insert(tensor.clone(), position);
        }
        if !strays.is_empty() {
            return Err(StoreError::NotInShard {
                file,
                tensors: strays,
            });
        }
        if options.strictness == Strictness::Spec {
            check_all_listed(&file, &self.shards, &files, &weight_map)?;
        }
        Ok(Checkpoint::new(file, path, files, Some(weight_map)))
    }
}

/// The index's text.
fn read_index(path: &Path) -> Result<Vec<u8>, StoreError> {
    let file = open_regular(path)?;
    let mut text = Vec::new();
    file.take(INDEX_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(StoreError::io("read", path))?;
    Ok(text)
}

/// Tensors and their shards, as the index lists them.
fn parse_index(file: &str, text: &[u8]) -> Result<Vec<(String, String)>, StoreError> {
    let bad = |problem: String| StoreError::BadIndex {
        file: file.to_owned(),
        problem,
    };
    if text.len() as u64 > INDEX_BYTES_MAX {
        return Err(bad(format!("it has more than {INDEX_BYTES_MAX} bytes")));
    }
    let index: Value =
        serde_json::from_slice(text).map_err(|error| bad(format!("not JSON: {error}")))?;
    let Some(weight_map) = index.get("weight_map").and_then(Value::as_object) else {
        return Err(bad("it has no object `weight_map`".to_owned()));
    };
    let entries = weight_map.iter().map(|(tensor, shard)| match shard {
        Value::String(shard) => Ok((tensor.clone(), shard.clone())),
        _ => Err(bad(format!(
            "`weight_map` gives tensor `{tensor}` no file name"
        ))),
    });
    entries.collect()
}

/// Shards must lie in or below the index's folder.
fn check_names(file: &str, names: &[String]) -> Result<(), StoreError> {
    for name in names {
        let inside = Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if name.is_empty() || name.contains('\0') || !inside {
            return Err(StoreError::ShardOutside {
                file: file.to_owned(),
                shard: name.clone(),
            });
        }
    }
    Ok(())
}

/// Shards must be there; all that are missing are named.
fn check_there(path: &Path, names: &[String]) -> Result<(), StoreError> {
    let missing = names.iter().filter(|name| !beside(path, name).exists());
    let shards: Vec<String> = missing.cloned().collect();
    if !shards.is_empty() {
        return Err(StoreError::ShardsMissing {
            file: path_text(path),
            shards,
            shard_count: names.len(),
        });
    }
    Ok(())
}

/// Strict only: no shard has a tensor that the index does not give it.
fn check_all_listed(
    file: &str,
    names: &[String],
    files: &[ShardFile],
    weight_map: &HashMap<String, usize>,
) -> Result<(), StoreError> {
    let mut tensors = Vec::new();
    for (position, (opened, shard)) in files.iter().zip(names).enumerate() {
        let unlisted = opened
            .header
            .tensors()
            .iter()
            .filter(|tensor| weight_map.get(tensor.name) != Some(&position));
        tensors.extend(unlisted.map(|tensor| (tensor.name.to_owned(), shard.to_string())));
    }
    if tensors.is_empty() {
        Ok(())
    } else {
        Err(StoreError::NotInIndex {
            file: file.to_owned(),
            tensors,
        })
    }
}
