//! `*.safetensors.index.json`: which tensor lies in which of many files.
//!
//! ```json
//! {"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
//! ```

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use safelight_format::Strictness;

use crate::checkpoint::{Checkpoint, OpenOptions, ShardFile};
use crate::error::{StoreError, beside, path_text};
use crate::index_file::{self, INDEX_BYTES_MAX};
use crate::source::open_regular;

/// How an index file's name ends.
pub(crate) const INDEX_SUFFIX: &str = ".index.json";

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
    /// The bytes of all tensors, if it says so.
    total_size: Option<u64>,
    size_is_odd: bool,
}

impl Index {
    /// Reads the text of the index `file`, and checks that no shard lies outside its folder.
    pub(crate) fn parse(file: &str, text: &[u8]) -> Result<Index, StoreError> {
        let text = index_file::parse(text).map_err(|problem| StoreError::BadIndex {
            file: file.to_owned(),
            problem,
        })?;
        let (listed, total_size, size_is_odd) =
            (text.weight_map, text.total_size, text.size_is_odd);
        let shards: BTreeSet<&str> = listed.iter().map(|(_, shard)| shard.as_str()).collect();
        let shards: Vec<String> = shards.into_iter().map(str::to_owned).collect();
        check_names(file, &shards)?;
        Ok(Index {
            listed,
            shards,
            total_size,
            size_is_odd,
        })
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
        let opaque: Vec<HashSet<&str>> = files
            .iter()
            .map(|file| {
                file.header
                    .opaque_tensors()
                    .map(|tensor| tensor.name)
                    .collect()
            })
            .collect();
        for (tensor, shard) in &self.listed {
            let position = self.shards.partition_point(|name| name < shard);
            if opaque[position].contains(tensor.as_str()) {
                continue; // listed apart
            }
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
        drop(opaque);
        let mut checkpoint = Checkpoint::new(file, path, files, Some(weight_map));
        self.check_total_size(&mut checkpoint, options)?;
        Ok(checkpoint)
    }

    /// `total_size` is the bytes of all tensors. Writers that count tensors twice which share their
    /// memory get it wrong, and readers never look: an error in strict mode, else a warning.
    fn check_total_size(
        &self,
        checkpoint: &mut Checkpoint,
        options: &OpenOptions,
    ) -> Result<(), StoreError> {
        let sizes = checkpoint.tensors().map(|tensor| tensor.byte_count());
        let opaque = checkpoint.opaque_tensors();
        let opaque = opaque.map(|place| place.tensor.byte_count());
        let found: u64 = sizes.chain(opaque).sum();
        let problem = match self.total_size {
            Some(said) if said != found => {
                format!("its `total_size` is {said}, the tensors it lists have {found} bytes")
            }
            None if self.size_is_odd => {
                format!(
                    "its `total_size` is no whole number; the tensors it lists have {found} bytes"
                )
            }
            _ => return Ok(()),
        };
        if options.strictness == Strictness::Spec {
            let file = checkpoint.label().to_owned();
            return Err(StoreError::BadIndex { file, problem });
        }
        checkpoint.warn(problem);
        Ok(())
    }
}

/// Opens several files as one; no tensor may be in two of them.
pub(crate) fn open_files(
    label: String,
    path: Option<PathBuf>,
    paths: &[PathBuf],
    options: &OpenOptions,
) -> Result<Checkpoint, StoreError> {
    let missing = paths.iter().filter(|path| !path.exists());
    let shards: Vec<String> = missing.map(|path| path_text(path)).collect();
    if !shards.is_empty() {
        let (file, shard_count) = (label, paths.len());
        return Err(StoreError::ShardsMissing {
            file,
            shards,
            shard_count,
        });
    }
    let files = paths.iter().map(|path| ShardFile::open(path, options));
    let files = files.collect::<Result<Vec<_>, _>>()?;
    if let [_] = &files[..] {
        return Ok(Checkpoint::new(label, path, files, None));
    }
    let mut weight_map: HashMap<String, usize> = HashMap::new();
    let mut twice = Vec::new();
    for (position, file) in files.iter().enumerate() {
        for tensor in file.header.tensors().iter() {
            if let Some(first) = weight_map.insert(tensor.name.to_owned(), position) {
                let label = |position: usize| files[position].source.label.clone();
                twice.push((tensor.name.to_owned(), label(first), label(position)));
            }
        }
    }
    if !twice.is_empty() {
        let (file, tensors) = (label, twice);
        return Err(StoreError::InTwoFiles { file, tensors });
    }
    Ok(Checkpoint::new(label, path, files, Some(weight_map)))
}

/// What of a folder is opened: its index, or all its safetensors files.
pub(crate) fn in_folder(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let matching = |ending: &str| entries(folder, |name| name.ends_with(ending));
    let indexes = matching(&format!(".safetensors{INDEX_SUFFIX}"))?;
    if indexes.len() > 1 {
        return Err(StoreError::SeveralIndexes {
            folder: path_text(folder),
            indexes: indexes.iter().map(|index| path_text(index)).collect(),
        });
    }
    if !indexes.is_empty() {
        return Ok(indexes);
    }
    let files = matching(".safetensors")?;
    if files.is_empty() {
        let folder = path_text(folder);
        return Err(StoreError::NoModel { folder });
    }
    Ok(files)
}

/// The files that a pattern means: `*` and `?` in the last part of a path that is no file itself.
pub(crate) fn matching(pattern: &Path) -> Result<Option<Vec<PathBuf>>, StoreError> {
    let Some(name) = pattern.file_name().and_then(|name| name.to_str()) else {
        return Ok(None);
    };
    if !name.contains(['*', '?']) || pattern.exists() {
        return Ok(None);
    }
    let folder = match pattern.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let found = entries(folder, |file| matches(name, file))?;
    if found.is_empty() {
        let folder = path_text(pattern);
        return Err(StoreError::NoModel { folder });
    }
    Ok(Some(found))
}

/// The paths of all shards of an index, whether they are there or not.
pub(crate) fn shard_paths(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let index = Index::parse(&path_text(path), &read_index(path)?)?;
    Ok(index.shards.iter().map(|name| beside(path, name)).collect())
}

/// The tensor files that a path stands for, sound or not, without opening them: the shards of an index, the
/// shards or safetensors files of a folder, or the path itself.
///
/// # Errors
/// What the system says of the folder, what is wrong with the index, or that the folder has no model.
pub fn model_files(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let named = match path.is_dir() {
        true => in_folder(path)?,
        false => vec![path.to_owned()],
    };
    match &named[..] {
        [index] if is_index(index) => shard_paths(index),
        _ => Ok(named),
    }
}

/// A folder's files whose names are wanted, sorted.
fn entries(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, StoreError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(StoreError::io("list", folder))? {
        let entry = entry.map_err(StoreError::io("list", folder))?;
        let wanted = entry.file_name().to_str().is_some_and(&wanted);
        if wanted && !entry.path().is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a name fits a pattern of `*` (any characters) and `?` (one).
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut from) = (0, 0);
    // Where to go on if what follows the last `*` does not fit: that `*` takes one more.
    let mut retry = None;
    while from < name.len() {
        match pattern.get(at) {
            Some('*') => {
                retry = Some((at, from));
                at += 1;
            }
            Some(c) if *c == '?' || *c == name[from] => {
                at += 1;
                from += 1;
            }
            _ => {
                let Some((star, taken)) = retry else {
                    return false;
                };
                retry = Some((star, taken + 1));
                (at, from) = (star + 1, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

/// The index's text.
pub(crate) fn read_index(path: &Path) -> Result<Vec<u8>, StoreError> {
    let file = open_regular(path)?;
    let mut text = Vec::new();
    file.take(INDEX_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(StoreError::io("read", path))?;
    Ok(text)
}

/// Shards must lie in or below the index's folder.
pub(crate) fn check_names(file: &str, names: &[String]) -> Result<(), StoreError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("*", "", true),
            ("a*c", "abcbc", true),
            ("a*c", "abcb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("model-*-of-*.safetensors", "model-1-of-2.safetensors", true),
            ("*.safetensors", "model.safetensors.part", false),
            ("é?", "éé", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
        let slow = "a*".repeat(30) + "b";
        assert!(!matches(&slow, &"a".repeat(200)));
    }
}
