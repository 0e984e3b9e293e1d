//! Writing shards with an index, such that a reader of the index finds one save and never two mixed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use safelight_format::{HeaderPlan, Metadata, TensorView, WriteError};
use serde_json::json;

use crate::atomic::{folder_of, rename_or_copy, replace_file};
use crate::error::{StoreError, path_text};
use crate::index_file;
use crate::save::{SaveOptions, save};
use crate::sys;

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
/// tensor larger than that gets a shard of its own. An earlier save in the same folder is replaced as a whole,
/// see [`ShardSet`].
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
    // Contradictions among all tensors are found before the first shard is written.
    match HeaderPlan::with_options(tensors, metadata, &options.plan()) {
        Ok(_) | Err(WriteError::HeaderTooLong { .. }) => {} // each shard has a header of its own
        Err(error) => {
            let file = path_text(&folder.join("model.safetensors.index.json"));
            return Err(StoreError::Write { file, error });
        }
    }
    let groups = split(tensors, max_shard_bytes);
    let mut set = ShardSet::new(folder, "model", groups.len())?;
    let mut weight_map = Vec::with_capacity(tensors.len());
    for (shard, group) in groups.iter().enumerate() {
        save(&set.path(shard), group, metadata, options)?;
        weight_map.extend(group.iter().map(|tensor| (tensor.name.to_owned(), shard)));
    }
    let total_size = tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum();
    let shards = (0..groups.len()).map(|shard| set.place(shard)).collect();
    let path = set.finish(weight_map, total_size, options.sync)?;
    Ok(ShardedSave {
        path,
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

/// The shards of one save: names that no index in the folder uses, then an index that uses them.
///
/// An earlier save of the same base name stays complete until [`ShardSet::finish`] replaces its
/// index, in one moment; after that its shards are deleted, as far as they are called
/// `BASE…-00001-of-0000N.safetensors`, and so is a `BASE.safetensors`. That is why shards are called
/// `BASE-r2-00001-of-0000N.safetensors` if the plain names are in use. Killed in between, the folder has the old
/// save or the new one, and perhaps shards that no index names. With one shard there is no index,
/// only `BASE.safetensors`, and an old index is deleted in the end.
///
/// Where there is no index yet, some shards without one would look like a whole model. So they are written
/// under names that no reader looks at (`.BASE-00001-of-0000N.safetensors.part`) and get their own in the end, behind
/// the index: killed in between, the index names shards that are missing.
///
/// A set that is dropped unfinished deletes the shards it gave names to.
#[derive(Debug)]
pub struct ShardSet {
    folder: PathBuf,
    base: String,
    names: Vec<String>,
    /// Shards of the save that will be replaced.
    old_names: BTreeSet<String>,
    /// Whether shards are written under hidden names.
    hidden: bool,
    /// How many names were handed out.
    used: usize,
    state: State,
}

/// How far a save is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Writing,
    /// The index is there, where none was, and its shards are getting their names.
    Naming,
    Finished,
}

impl ShardSet {
    /// Chooses the names for `shard_count` shards, at least one.
    ///
    /// # Errors
    /// [`StoreError::Io`] if there is an index that cannot be read. (One that is no index at all
    /// will be overwritten.)
    pub fn new(folder: &Path, base: &str, shard_count: usize) -> Result<ShardSet, StoreError> {
        let mut set = ShardSet {
            folder: folder.to_owned(),
            base: base.to_owned(),
            names: Vec::new(),
            old_names: BTreeSet::new(),
            hidden: false,
            used: 0,
            state: State::Writing,
        };
        let index = set.index_path();
        match fs::read(&index) {
            Ok(text) => {
                let listed = index_file::parse(&text).map(|index| index.weight_map);
                let names = listed
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(_, shard)| shard);
                set.old_names = names.collect();
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                set.hidden = shard_count > 1;
            }
            Err(error) => return Err(StoreError::io("read", &index)(error)),
        }
        let mut generation = 1;
        loop {
            set.names = shard_names(base, generation, shard_count.max(1));
            if shard_count <= 1 || !set.names.iter().any(|name| set.old_names.contains(name)) {
                return Ok(set);
            }
            generation += 1;
        }
    }

    /// Where shard number `shard`, from 0 on, has to be written.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn path(&mut self, shard: usize) -> PathBuf {
        self.used = self.used.max(shard + 1);
        match self.hidden {
            true => self.hidden_place(shard),
            false => self.place(shard),
        }
    }

    /// Where shard number `shard`, from 0 on, is after [`ShardSet::finish`].
    ///
    /// # Panics
    /// If there are not that many.
    pub fn place(&self, shard: usize) -> PathBuf {
        self.folder.join(&self.names[shard])
    }

    fn hidden_place(&self, shard: usize) -> PathBuf {
        self.folder.join(format!(".{}.part", self.names[shard]))
    }

    fn index_path(&self) -> PathBuf {
        let name = format!("{}.safetensors.index.json", self.base);
        self.folder.join(name)
    }

    /// Writes the index (each tensor and the number of its shard; the bytes of all tensors) and
    /// removes the save it replaces; returns the path to open.
    ///
    /// # Errors
    /// What [`replace_file`] says; the old save is then as it was.
    ///
    /// # Panics
    /// If a tensor is in a shard that is not there.
    pub fn finish(
        mut self,
        weight_map: impl IntoIterator<Item = (String, usize)>,
        total_size: u64,
        sync: bool,
    ) -> Result<PathBuf, StoreError> {
        let index_path = self.index_path();
        let single = self.names.len() == 1;
        // An old index must not vanish before its shards do: the folder would hold shards of two
        // saves and nothing to tell them apart. So it names the single file first.
        let has_index = !single || fs::symlink_metadata(&index_path).is_ok();
        if has_index {
            let named = weight_map.into_iter();
            let named = named.map(|(tensor, shard)| (tensor, json!(self.names[shard])));
            let mut weight_map: serde_json::Map<_, _> = named.collect();
            weight_map.sort_keys();
            let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
            replace_file(&index_path, sync, |file| writeln!(file, "{index:#}"))?;
        }
        if self.hidden {
            self.state = State::Naming;
            for shard in 0..self.names.len() {
                let place = self.place(shard);
                rename_or_copy(&self.hidden_place(shard), &place)
                    .map_err(StoreError::io("write", &place))?;
            }
        }
        self.state = State::Finished;
        self.delete_old();
        if single && has_index {
            sys::remove(&index_path).map_err(StoreError::io("delete", &index_path))?;
        }
        if sync {
            let synced = sys::sync_folder(folder_of(&index_path));
            synced.map_err(StoreError::io("write", &index_path))?;
        }
        Ok(match &self.names[..] {
            [only] => self.folder.join(only),
            _ => index_path,
        })
    }

    /// What the replaced save leaves; nobody needs it, so failing is no error.
    fn delete_old(&self) {
        let single = format!("{}.safetensors", self.base);
        let old = self
            .old_names
            .iter()
            .filter(|name| is_shard_name(name, &self.base));
        for name in old.chain([&single]) {
            if !self.names.contains(name) {
                let _ = sys::remove(&self.folder.join(name));
            }
        }
    }
}

impl Drop for ShardSet {
    fn drop(&mut self) {
        if self.state == State::Finished || self.names.len() == 1 {
            return; // a single file is complete and in its place, or is not there
        }
        for shard in 0..self.used {
            if self.hidden {
                let _ = fs::remove_file(self.hidden_place(shard));
            }
            if !self.hidden || self.state == State::Naming {
                let _ = fs::remove_file(self.place(shard));
            }
        }
        if self.state == State::Naming {
            let _ = fs::remove_file(self.index_path());
        }
    }
}

/// The files beside an index that it names and that are called as shards of `base` are (`BASE…-00001-of-0000N.safetensors`): what a
/// save that replaces the index may delete after it. None if there is no index, or one that is no index at all.
///
/// # Errors
/// [`StoreError::Io`] if there is an index that cannot be read.
pub fn listed_shards(index: &Path, base: &str) -> Result<Vec<PathBuf>, StoreError> {
    let text = match fs::read(index) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io("read", index)(error)),
    };
    let listed = index_file::parse(&text).map(|index| index.weight_map);
    let names = listed.unwrap_or_default().into_iter().map(|(_, name)| name);
    let names: BTreeSet<String> = names.filter(|name| is_shard_name(name, base)).collect();
    let folder = folder_of(index);
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

fn shard_names(base: &str, generation: usize, shard_count: usize) -> Vec<String> {
    if shard_count == 1 {
        return vec![format!("{base}.safetensors")];
    }
    let infix = match generation {
        1 => String::new(),
        _ => format!("-r{generation}"),
    };
    let names = (1..=shard_count)
        .map(|shard| format!("{base}{infix}-{shard:05}-of-{shard_count:05}.safetensors"));
    names.collect()
}

/// Whether a file is called as shards are, and lies in the index's own folder.
fn is_shard_name(name: &str, base: &str) -> bool {
    let digits = |text: &str| text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name
        .strip_prefix(base)
        .and_then(|rest| rest.strip_suffix(".safetensors"))
        .and_then(|rest| rest.rsplit_once("-of-"));
    let numbers = parts.and_then(|(left, count)| Some((left.rsplit_once('-')?.1, count)));
    numbers.is_some_and(|(number, count)| digits(number) && digits(count))
        && !name.contains(['/', '\\'])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that had no index is never taken for a model before the index is there.
    #[test]
    fn shards_without_an_index_are_hidden() {
        let folder = std::env::temp_dir().join(format!("safelight-shards-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut set = ShardSet::new(&folder, "model", 2).unwrap();
        for shard in 0..2 {
            fs::write(set.path(shard), b"x").unwrap();
            assert!(!set.place(shard).exists());
        }
        assert!(crate::Checkpoint::open(&folder).is_err());
        drop(set);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);

        let mut set = ShardSet::new(&folder, "model", 2).unwrap();
        for shard in 0..2 {
            fs::write(set.path(shard), b"x").unwrap();
        }
        let places = [0, 1].map(|shard| set.place(shard));
        let index = set.finish([("a".into(), 0), ("b".into(), 1)], 2, false);
        assert!(index.unwrap().exists() && places.iter().all(|place| place.exists()));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn names_of_shards() {
        for name in shard_names("model", 1, 3)
            .iter()
            .chain(&shard_names("model", 2, 12))
        {
            assert!(is_shard_name(name, "model"), "{name}");
        }
        for name in [
            "model.safetensors",
            "model-00001-of-00002.bin",
            "../model-00001-of-00002.safetensors",
            "model/x-00001-of-00002.safetensors",
            "other-00001-of-00002.safetensors",
            "model-1-of-2.safetensors",
            "model-00001-of-.safetensors",
        ] {
            assert!(!is_shard_name(name, "model"), "{name}");
        }
    }
}
