//! Where the tiny decoder (TAESD) lies in folders as A1111 and ComfyUI have them.

use std::path::{Path, PathBuf};

use crate::roots::Roots;

/// Folders, in lower case: A1111's for approximate decoders and for TAESD, ComfyUI's.
const FOLDERS: [&str; 3] = ["vae-approx", "vae-taesd", "vae_approx"];
/// Its name, as it was published.
const FILE: &str = "taesd_decoder.safetensors";

/// The first `taesd_decoder.safetensors` in a folder `VAE-approx`, `VAE-taesd` or `vae_approx` directly below a root or beside it.
pub fn tiny_decoder(roots: &Roots) -> Option<PathBuf> {
    let beside = |root: &PathBuf| root.canonicalize().ok()?.parent().map(Path::to_owned);
    let below = roots.folders.iter().cloned();
    let around = below.chain(roots.folders.iter().filter_map(beside));
    around.flat_map(|folder| decoders_in(&folder)).next()
}

fn decoders_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().to_lowercase();
            FOLDERS.contains(&name.as_str())
        })
        .map(|entry| entry.path().join(FILE))
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    found
}
