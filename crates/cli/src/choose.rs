//! Which model is meant, and its weights.

use std::env;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use safelight_catalog::{
    Catalog, Entry, HashCache, Layout, ResolveError, Roots, cache_folder, tiny_decoder,
};
use safelight_diffusion::load::{LoadOptions, Model, ModelFiles};
use safelight_diffusion::precision::Ways;

use crate::args::{ModelArgs, ModelsFolders};
use crate::error::Failure;
use crate::{interrupt, say};

/// Everything that lies in the models folders.
pub(crate) fn catalog(folders: &ModelsFolders) -> Result<Catalog, Failure> {
    let roots = Roots::new(&folders.folders, |name| env::var_os(name));
    let catalog = Catalog::scan(&roots);
    match catalog.notes.first() {
        Some(note) if roots.named => Err(Failure::Usage(format!(
            "{note} (--models or SAFELIGHT_MODELS names it)"
        ))),
        _ => Ok(catalog),
    }
}

/// Hashes that were computed before.
pub(crate) fn hash_cache() -> HashCache {
    HashCache::open(cache_folder(|name| env::var_os(name)).as_deref())
}

/// The model that the arguments mean; one that can't be used is refused with its problem.
pub(crate) fn entry(args: &ModelArgs, quiet: bool) -> Result<Entry, Failure> {
    let catalog = catalog(&args.folders)?;
    let mut cache = hash_cache();
    let entry = match &args.model {
        Some(query) => catalog
            .resolve(query, &mut cache)
            .map_err(|error| match error {
                ResolveError::Empty => Failure::Usage(error.to_string()),
                _ => Failure::Model(error.to_string()),
            })?,
        None => {
            let entry = catalog.default_entry().clone();
            let broken = catalog
                .entries
                .iter()
                .filter(|entry| entry.problem.is_some())
                .count();
            if entry.layout == Layout::Embedded && broken > 0 && !quiet {
                say::note(&format!(
                    "none of the {broken} models found can be used (`safelight models` says why); using the one built in"
                ));
            }
            entry
        }
    };
    if let Some(problem) = &entry.problem {
        let name = entry
            .path
            .as_ref()
            .map_or(entry.name.clone(), |path| path.display().to_string());
        return Err(Failure::Model(format!("{name}: {problem}")));
    }
    Ok(entry)
}

/// SHA-256 of the model and of the VAE that replaces its own; folders have none.
#[derive(Default)]
pub(crate) struct Hashes {
    pub(crate) model: Option<String>,
    pub(crate) vae: Option<String>,
}

/// Computes hashes beside other work: reading gigabytes takes seconds, if it was not done before.
pub(crate) fn hash_meanwhile(entry: &Entry, vae: Option<&Path>) -> JoinHandle<Hashes> {
    let mut entry = entry.clone();
    let vae = vae.filter(|path| path.is_file()).map(Path::to_owned);
    std::thread::spawn(move || {
        let mut cache = hash_cache();
        if entry.sha256.is_none() {
            entry.find_hash(&mut cache, &mut interrupt::go_on);
        }
        Hashes {
            model: entry.sha256,
            vae: vae.and_then(|path| cache.get_or_compute(&path, &mut interrupt::go_on).ok()),
        }
    })
}

/// The tiny decoder that `--tiny-vae` means: the file it names, or the one in the models folders.
pub(crate) fn tiny(
    asked: Option<&Option<PathBuf>>,
    folders: &ModelsFolders,
) -> Result<Option<PathBuf>, Failure> {
    let Some(asked) = asked else { return Ok(None) };
    if let Some(path) = asked {
        return Ok(Some(path.clone()));
    }
    let roots = Roots::new(&folders.folders, |name| env::var_os(name));
    let found = tiny_decoder(&roots);
    found.map(Some).ok_or_else(|| {
        let looked: Vec<_> = roots.folders.iter().map(|root| root.display().to_string()).collect();
        Failure::Usage(format!(
            "there is no taesd_decoder.safetensors in a folder VAE-approx, VAE-taesd or vae_approx of {}; \
             say where it is: --tiny-vae=FILE",
            looked.join(" or ")
        ))
    })
}

/// Reads and packs the model's weights.
pub(crate) fn load(
    entry: &Entry,
    args: &ModelArgs,
    tiny: Option<&Path>,
    ways: Ways,
) -> Result<Model, Failure> {
    let loaded = entry.load(&options(args, tiny, ways));
    loaded.map_err(|error| Failure::Model(error.to_string()))
}

/// Opens the model's files, out of which a drawing takes one network at a time.
pub(crate) fn open(
    entry: &Entry,
    args: &ModelArgs,
    tiny: Option<&Path>,
    ways: Ways,
) -> Result<ModelFiles, Failure> {
    let opened = entry.open(&options(args, tiny, ways));
    opened.map_err(|error| Failure::Model(error.to_string()))
}

fn options(args: &ModelArgs, tiny: Option<&Path>, ways: Ways) -> LoadOptions {
    LoadOptions {
        vae: args.vae.clone(),
        tiny: tiny.map(Path::to_owned),
        ways,
        ..LoadOptions::default()
    }
}
