//! `*.safetensors.index.json`: which tensor lies in which of many files.
//!
//! ```json
//! {"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
//! ```

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use safelight_format::{Strictness, shown};

use crate::checkpoint::{Checkpoint, OpenOptions, ShardFile};
use crate::error::{StoreError, beside, path_text};
use crate::index_file::{self, INDEX_BYTES_MAX};
use crate::source::open_regular;
use crate::together::{Chosen, in_two_files, wrong_names};

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
    let paths = index.shards.iter().map(|name| beside(path, name));
    let files = paths.map(|path| ShardFile::open(&path, options));
    let files = files.collect::<Result<_, _>>()?;
    index.checkpoint(file, Some(path.to_owned()), files, options)
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
        let bad = |problem| StoreError::BadIndex {
            file: file.to_owned(),
            problem,
        };
        if shards.is_empty() {
            let problem = "its `weight_map` is empty, so that no file belongs to it";
            return Err(bad(problem.to_owned()));
        }
        if let Some(index) = shards.iter().find(|name| is_index(Path::new(name))) {
            let index = shown(index);
            return Err(bad(format!("it names `{index}`, an index and no shard")));
        }
        Ok(Index {
            listed,
            shards,
            total_size,
            size_is_odd,
        })
    }

    /// All shards as one, in the order of [`Index::shards`], once each tensor is found where the index says.
    pub(crate) fn checkpoint(
        &self,
        file: String,
        path: Option<PathBuf>,
        files: Vec<ShardFile>,
        options: &OpenOptions,
    ) -> Result<Checkpoint, StoreError> {
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

/// Opens several files as one; no tensor may be in two of them, and where names count them, none may be missing.
pub(crate) fn open_files(
    label: String,
    path: Option<PathBuf>,
    paths: &[PathBuf],
    chosen: Chosen,
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
    // Who lists one file alone wants that one.
    let alone = chosen == Chosen::Named && paths.len() == 1;
    let problems = match alone {
        true => Vec::new(),
        false => wrong_names(&label, paths, chosen),
    };
    if let Some(problem) = problems.into_iter().next() {
        return Err(problem);
    }
    let files = paths.iter().map(|path| ShardFile::open(path, options));
    let files = files.collect::<Result<Vec<_>, _>>()?;
    if let [_] = &files[..] {
        return Ok(Checkpoint::new(label, path, files, None));
    }
    if let Some(error) = in_two_files(&label, files.iter().map(ShardFile::named_header)) {
        return Err(error);
    }
    let mut weight_map: HashMap<String, usize> = HashMap::new();
    for (position, file) in files.iter().enumerate() {
        let names = file.header.tensors().iter();
        weight_map.extend(names.map(|tensor| (tensor.name.to_owned(), position)));
    }
    Ok(Checkpoint::new(label, path, files, Some(weight_map)))
}

/// The paths of all shards of an index, whether they are there or not.
pub(crate) fn shard_paths(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let index = Index::parse(&path_text(path), &read_index(path)?)?;
    Ok(index.shards.iter().map(|name| beside(path, name)).collect())
}

/// The shards that an index names and that may be looked at: files in or below its folder that are there, and no indexes.
pub(crate) fn there(index: &Path) -> Vec<PathBuf> {
    let Ok(text) = read_index(index) else {
        return Vec::new();
    };
    let Ok(text) = index_file::parse(&text) else {
        return Vec::new();
    };
    let names: BTreeSet<String> = text.weight_map.into_iter().map(|(_, name)| name).collect();
    let inside = names.into_iter().filter(|name| is_inside(name));
    let paths = inside.map(|name| beside(index, &name));
    paths
        .filter(|path| path.is_file() && !is_index(path))
        .collect()
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
        if !is_inside(name) {
            return Err(StoreError::ShardOutside {
                file: file.to_owned(),
                shard: name.clone(),
            });
        }
    }
    Ok(())
}

/// Whether a name can only be that of something in or below a folder.
pub(crate) fn is_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let down = parts.all(|part| matches!(part, Component::Normal(_)));
    !name.is_empty() && !name.contains('\0') && down
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
