//! Walking the folders.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::describe::{Entry, is_index};
use crate::roots::Roots;

/// Folders of A1111, ComfyUI and their kin that hold other things than checkpoints, in lower case.
const OTHER_FOLDERS: [&str; 29] = [
    "lora",
    "loras",
    "lycoris",
    "vae",
    "vae-approx",
    "vae-taesd",
    "vae_approx",
    "embeddings",
    "hypernetworks",
    "controlnet",
    "controlnetpreprocessor",
    "t2i_adapter",
    "ipadapter",
    "ipadapters",
    "esrgan",
    "realesrgan",
    "swinir",
    "scunet",
    "dat",
    "ldsr",
    "upscale_models",
    "latent_upscale_models",
    "codeformer",
    "gfpgan",
    "clip",
    "clip_vision",
    "text_encoder",
    "text_encoders",
    "style_models",
];

/// Endings of checkpoints in a form that can run programs; they are listed, with the way out as their problem.
const PICKLES: [&str; 2] = ["ckpt", "pt"];

/// A folder of models is not deeper than this.
const DEPTH_MAX: usize = 16;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Every checkpoint, by name; the embedded one last.
    pub entries: Vec<Entry>,
    /// What could not be looked at, a sentence each: a folder that was named but isn't there, or can't be read.
    pub notes: Vec<String>,
}

impl Catalog {
    /// Looks through all folders. Reads headers only; hashes are left out ([`Entry::find_hash`]).
    pub fn scan(roots: &Roots) -> Catalog {
        let mut catalog = Catalog::default();
        let mut seen = HashSet::new();
        for root in &roots.folders {
            if !root.is_dir() {
                if roots.named && root.exists() {
                    catalog.notes.push(format!(
                        "{}: is a file, not a folder of models; --model takes files",
                        root.display()
                    ));
                } else if roots.named {
                    catalog.notes.push(format!(
                        "{}: there is no such folder of models",
                        root.display()
                    ));
                }
                continue;
            }
            let mut walk = Walk {
                found: Vec::new(),
                notes: &mut catalog.notes,
                seen: &mut seen,
            };
            walk.folder(root, 0);
            let found = walk.found;
            catalog
                .entries
                .extend(found.iter().map(|path| Entry::at(path, root)));
        }
        catalog
            .entries
            .sort_by_cached_key(|entry| (entry.relative.to_lowercase(), entry.path.clone()));
        catalog.entries.push(Entry::demo());
        catalog
    }

    /// The model to use when none is named: the first one that is usable, or else the embedded one.
    pub fn default_entry(&self) -> &Entry {
        let usable = self.entries.iter().find(|entry| entry.problem.is_none());
        usable
            .or(self.entries.last())
            .expect("the embedded model is always listed")
    }
}

struct Walk<'a> {
    found: Vec<PathBuf>,
    notes: &'a mut Vec<String>,
    /// Folders and files that were looked at, links resolved, so that nothing is listed twice and no ring is endless.
    seen: &'a mut HashSet<PathBuf>,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path, depth: usize) {
        if depth > DEPTH_MAX || !self.is_new(folder) {
            return;
        }
        if folder.join("model_index.json").is_file() {
            self.found.push(folder.to_owned());
            return;
        }
        let mut paths: Vec<PathBuf> = match std::fs::read_dir(folder) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(error) => {
                self.notes.push(format!("{}: {error}", folder.display()));
                return;
            }
        };
        paths.sort();
        let shards: HashSet<PathBuf> = paths
            .iter()
            .filter(|path| is_index(path))
            .flat_map(|path| shards_of(path))
            .collect();
        for path in paths {
            let hidden = path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if hidden || shards.contains(&path) {
                continue;
            }
            if path.is_dir() {
                let name = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .to_lowercase();
                if !OTHER_FOLDERS.contains(&name.as_str()) {
                    self.folder(&path, depth + 1);
                }
            } else if is_checkpoint(&path) && !is_pipe(&path) && self.is_new(&path) {
                self.found.push(path);
            }
        }
    }

    fn is_new(&mut self, path: &Path) -> bool {
        self.seen
            .insert(path.canonicalize().unwrap_or_else(|_| path.to_owned()))
    }
}

/// Whether reading could wait for ever: a pipe, a socket, a device. What is not there at all is an entry with a problem.
fn is_pipe(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file())
}

fn is_checkpoint(path: &Path) -> bool {
    let ending = path
        .extension()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    // A VAE that A1111 picks up beside its model is part of that model.
    let beside = path
        .file_stem()
        .is_some_and(|stem| stem.to_string_lossy().to_lowercase().ends_with(".vae"));
    (ending == "safetensors" || PICKLES.contains(&ending.as_str()) || is_index(path)) && !beside
}

/// The files an index names, none if it can't be read: then they are listed on their own.
fn shards_of(index: &Path) -> HashSet<PathBuf> {
    let folder = index.parent().unwrap_or(Path::new(""));
    let json = std::fs::read(index)
        .ok()
        .and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    let json = json.unwrap_or_default();
    let names = json["weight_map"]
        .as_object()
        .into_iter()
        .flat_map(|map| map.values());
    names
        .filter_map(|name| Some(folder.join(name.as_str()?)))
        .collect()
}
