//! Folders as people have them: found, described, resolved.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use safelight_catalog::{
    Catalog, DEMO_NAME, Entry, HashCache, Layout, ResolveError, Roots, tiny_decoder,
};
use safelight_diffusion::load::{Family, LoadOptions, Part};
use safelight_format::{Dtype, TensorView};
use safelight_store::{SaveOptions, save};

/// The embedded model, as a file that anyone could have.
fn demo_file() -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::read::ZlibDecoder::new(&include_bytes!("../assets/demo.safetensors.zz")[..])
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

fn write(root: &Path, relative: &str, bytes: &[u8]) -> PathBuf {
    let path = root.join(relative);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

/// A safetensors file with one small tensor of each name.
fn small(root: &Path, relative: &str, names: &[&str]) {
    let path = write(root, relative, b"");
    let tensors: Vec<_> = names
        .iter()
        .map(|name| TensorView {
            name,
            dtype: Dtype::F32,
            shape: &[1],
            bytes: &[0; 4],
        })
        .collect();
    save(&path, &tensors, None, &SaveOptions::default()).unwrap();
}

fn scan(root: &Path) -> Catalog {
    Catalog::scan(&Roots {
        folders: vec![root.to_owned()],
        named: true,
    })
}

fn names(catalog: &Catalog) -> Vec<&str> {
    catalog
        .entries
        .iter()
        .map(|entry| entry.relative.as_str())
        .collect()
}

#[test]
fn checkpoints_are_found_at_any_depth_and_other_things_are_not() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    for relative in [
        "top.safetensors",
        "Stable-diffusion/a.safetensors",
        "checkpoints/deep/er/b.safetensors",
        "Stable-diffusion/a.vae.safetensors",
        "Stable-diffusion/notes.txt",
        "Stable-diffusion/.hidden.safetensors",
        "Lora/x.safetensors",
        "VAE/x.safetensors",
        "vae_approx/x.pt",
        "embeddings/x.pt",
        "ControlNet/x.safetensors",
        "old.ckpt",
    ] {
        write(root, relative, b"");
    }
    let catalog = scan(root);
    assert_eq!(
        names(&catalog),
        [
            "checkpoints/deep/er/b",
            "old",
            "Stable-diffusion/a",
            "top",
            DEMO_NAME
        ]
    );
    assert!(
        catalog.entries[..4]
            .iter()
            .all(|entry| entry.problem.is_some())
    );
    assert!(catalog.notes.is_empty());
    assert_eq!(catalog.default_entry().layout, Layout::Embedded);
}

#[test]
fn a_usable_file_is_described_from_its_header() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        "Stable-diffusion/tiny.safetensors",
        &demo_file(),
    );
    let catalog = scan(root.path());
    let entry = catalog.default_entry();
    assert_eq!(
        (entry.name.as_str(), entry.layout, entry.problem.as_deref()),
        ("tiny", Layout::File, None)
    );
    assert_eq!(entry.family(), Some(Family::StableDiffusion1));
    assert_eq!(entry.parts(), Part::ALL);
    assert_eq!(entry.dtype(), Entry::demo().dtype());
    assert_eq!(entry.native_size, Some((128, 128)));
    assert_eq!(entry.bytes, demo_file().len() as u64);
}

#[test]
fn shards_are_one_entry() {
    let root = tempfile::tempdir().unwrap();
    small(root.path(), "big-00001-of-00002.safetensors", &["a"]);
    small(root.path(), "big-00002-of-00002.safetensors", &["b"]);
    let index = r#"{"weight_map":{"a":"big-00001-of-00002.safetensors","b":"big-00002-of-00002.safetensors"}}"#;
    write(root.path(), "big.safetensors.index.json", index.as_bytes());
    let catalog = scan(root.path());
    assert_eq!(names(&catalog), ["big", DEMO_NAME]);
    assert_eq!(catalog.entries[0].layout, Layout::Shards);
    assert!(catalog.entries[0].problem.is_some());
}

#[test]
fn a_diffusers_folder_is_one_entry() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "mine/model_index.json", b"{}");
    small(
        root.path(),
        "mine/unet/diffusion_pytorch_model.safetensors",
        &["conv_in.weight"],
    );
    small(
        root.path(),
        "mine/vae/diffusion_pytorch_model.safetensors",
        &["x"],
    );
    let catalog = scan(root.path());
    assert_eq!(names(&catalog), ["mine", DEMO_NAME]);
    assert_eq!(catalog.entries[0].layout, Layout::Folder);
    assert!(catalog.entries[0].bytes > 100);
}

#[test]
fn problems_say_what_a_file_really_is() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    write(
        root,
        "a-html.safetensors",
        b"<!DOCTYPE html><html><body>Log in</body></html>",
    );
    write(
        root,
        "b-lfs.safetensors",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    );
    write(root, "c-empty.safetensors", b"");
    write(root, "d-cut.safetensors", &demo_file()[..100_000]);
    small(
        root,
        "e-lora.safetensors",
        &["lora_unet_down_blocks_0.lora_down.weight"],
    );
    let catalog = scan(root);
    let problem = |idx: usize| catalog.entries[idx].problem.as_deref().unwrap();
    for (idx, word) in [
        (0, "web page"),
        (1, "Git LFS"),
        (2, "empty"),
        (3, "bytes"),
        (4, "LoRA"),
    ] {
        assert!(
            problem(idx).contains(word),
            "{}: {}",
            catalog.entries[idx].name,
            problem(idx)
        );
        assert!(
            !problem(idx).contains(&root.display().to_string()),
            "{}",
            problem(idx)
        );
    }
}

#[test]
fn named_folders_must_exist_and_rings_end() {
    let root = tempfile::tempdir().unwrap();
    let missing = root.path().join("nowhere");
    let catalog = Catalog::scan(&Roots {
        folders: vec![missing.clone()],
        named: true,
    });
    assert!(catalog.notes[0].contains("nowhere"));
    assert_eq!(names(&catalog), [DEMO_NAME]);
    assert!(
        Catalog::scan(&Roots {
            folders: vec![missing],
            named: false
        })
        .notes
        .is_empty()
    );
    #[cfg(unix)]
    {
        write(root.path(), "sub/a.safetensors", b"");
        std::os::unix::fs::symlink(root.path(), root.path().join("sub/ring")).unwrap();
        std::os::unix::fs::symlink(
            root.path().join("sub/a.safetensors"),
            root.path().join("z.safetensors"),
        )
        .unwrap();
        assert_eq!(names(&scan(root.path())), ["sub/a", DEMO_NAME]);
    }
}

#[test]
fn a_model_is_found_by_name_prefix_hash_or_path() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let dream = write(root, "checkpoints/Dreamshaper_8.safetensors", b"one");
    write(root, "checkpoints/dreamlike-2.safetensors", b"two");
    write(root, "x/same.safetensors", b"three");
    write(root, "y/same.safetensors", b"four");
    let catalog = scan(root);
    let mut cache = HashCache::open(Some(&root.join("cache")));
    let mut find = |query: &str| {
        catalog
            .resolve(query, &mut cache)
            .map(|entry| entry.relative)
    };
    for query in [
        "Dreamshaper_8",
        "dreamshaper_8",
        "Dreamshaper_8.safetensors",
        "checkpoints/Dreamshaper_8",
        "dreams",
        "Dreamshaper_8.safetensors [7692c3ad35]",
        "7692c3ad35", // SHA-256 of "one"
        "7692C3",
    ] {
        assert_eq!(
            find(query).as_deref(),
            Ok("checkpoints/Dreamshaper_8"),
            "{query}"
        );
    }
    assert_eq!(
        find(dream.to_str().unwrap()).as_deref(),
        Ok("Dreamshaper_8")
    );
    assert_eq!(find("x/same").as_deref(), Ok("x/same"));
    assert_eq!(find("demo").as_deref(), Ok("demo"));
    match find("dream") {
        Err(ResolveError::Ambiguous { names, .. }) => assert_eq!(names.len(), 2),
        other => panic!("{other:?}"),
    }
    assert!(find("same").unwrap_err().to_string().contains("y/same"));
    assert!(
        find("dreamshapr_8")
            .unwrap_err()
            .to_string()
            .contains("did you mean `Dreamshaper_8`")
    );
    let missing = find("zzzzzz").unwrap_err().to_string();
    assert!(
        missing.contains("x/same") && missing.contains("`zzzzzz`"),
        "{missing}"
    );
    for query in ["", " ", "[", ".safetensors", "\0", "../../.."] {
        let _ = find(query);
    }
}

#[test]
fn who_is_meant_when_names_and_contents_repeat() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for (relative, bytes) in [
        ("deep/meadow.safetensors", b"one".as_slice()),
        ("meadow.safetensors", b"one"),
        ("sub/demo.safetensors", b"two"),
    ] {
        write(root, relative, bytes);
    }
    let catalog = Catalog::scan(&Roots {
        folders: vec![root.to_owned()],
        named: true,
    });
    let mut cache = HashCache::open(None);
    let mut find = |query: &str| {
        catalog
            .resolve(query, &mut cache)
            .map(|entry| entry.relative)
    };
    // The whole relative name, not the same name in a deeper folder.
    assert_eq!(find("meadow").as_deref(), Ok("meadow"));
    assert_eq!(find("deep/meadow").as_deref(), Ok("deep/meadow"));
    // The file, not the embedded model.
    assert_eq!(find("demo").as_deref(), Ok("sub/demo"));
    assert_eq!(find("DEM").as_deref(), Ok("sub/demo"));
    // SHA-256 of "one": both files are the same, so either will do.
    let hash = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
    for _ in 0..2 {
        assert_eq!(find(hash).as_deref(), Ok("deep/meadow"));
    }
    for empty in ["", " ", ".safetensors"] {
        assert_eq!(find(empty), Err(ResolveError::Empty));
    }
    let near = find("meadov").unwrap_err().to_string();
    assert!(
        near.contains("did you mean `meadow` (it can't be used)?"),
        "{near}"
    );
    let listed = find("zzzzzz").unwrap_err().to_string();
    assert!(
        listed.contains("demo (built in)") && listed.contains("; can't be used)"),
        "{listed}"
    );
}

#[test]
fn the_embedded_model_loads() {
    let demo = Entry::demo();
    assert_eq!(demo.problem, None);
    demo.load(&LoadOptions::default()).unwrap();
}

#[test]
fn the_tiny_decoder_is_found_in_both_programs_folders() {
    let check = |models: &str, decoder: &str, found: bool| {
        let root = tempfile::tempdir().unwrap();
        let path = write(root.path(), decoder, b"");
        fs::create_dir_all(root.path().join(models)).unwrap();
        let roots = Roots {
            folders: vec![root.path().join(models)],
            named: true,
        };
        let expected = found.then(|| path.canonicalize().unwrap());
        let found = tiny_decoder(&roots).map(|path| path.canonicalize().unwrap());
        assert_eq!(found, expected, "{models}, {decoder}");
        // Nor is it listed among the models.
        assert_eq!(Catalog::scan(&roots).entries.len(), 1, "{decoder}");
    };
    check(
        "models",
        "models/VAE-approx/taesd_decoder.safetensors",
        true,
    );
    check("models", "models/VAE-taesd/taesd_decoder.safetensors", true);
    check(
        "models",
        "models/vae_approx/taesd_decoder.safetensors",
        true,
    );
    check(
        "models/Stable-diffusion",
        "models/VAE-approx/taesd_decoder.safetensors",
        true,
    );
    check(
        "models",
        "models/VAE-approx/taesdxl_decoder.safetensors",
        false,
    );
    check(
        "models",
        "models/deep/er/VAE-approx/taesd_decoder.safetensors",
        false,
    );
}
