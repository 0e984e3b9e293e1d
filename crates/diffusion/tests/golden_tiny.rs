//! The tiny decoder (TAESD) against diffusers' AutoencoderTiny, from files in both layouts.

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use common::case::Case;
use common::weights::{Layout, safetensors_bytes, tensor};
use common::{check, input};
use safelight_diffusion::load::{LoadOptions, Model, load_tiny};
use safelight_diffusion::pipeline::Request;
use safelight_diffusion::precision::Ways;

/// A file that goes away.
struct File(PathBuf);

impl File {
    fn new(name: &str, bytes: &[u8]) -> File {
        let folder = std::env::temp_dir().join(format!("safelight-tiny-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{name}.safetensors"));
        std::fs::write(&path, bytes).unwrap();
        File(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Numbered from the clamp on, as `taesd_decoder.safetensors` is.
fn released(name: &str) -> String {
    let (number, rest) = name["decoder.layers.".len()..].split_once('.').unwrap();
    format!("{}.{rest}", number.parse::<usize>().unwrap() + 1)
}

/// The case's weights, under names that `rename` makes of diffusers'; none of those for which it gives an empty one.
fn file(case: &Case, rename: impl Fn(&str) -> String) -> Vec<u8> {
    let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_value(case.json("shapes")).unwrap();
    let named: Vec<(String, &String, &Vec<usize>)> = shapes
        .iter()
        .map(|(name, shape)| (rename(name), name, shape))
        .filter(|(new, ..)| !new.is_empty())
        .collect();
    let rows = named.iter().map(|(new, name, shape)| {
        (
            new.as_str(),
            shape.as_slice(),
            tensor(name, shape, case.seed()),
        )
    });
    safetensors_bytes(rows.collect(), &BTreeMap::new())
}

#[test]
fn pictures_agree_with_diffusers_in_both_layouts() {
    let labels = Case::labels("tiny");
    assert_eq!(labels.len(), 2);
    for label in labels {
        let case = Case::read(&label);
        let diffusers = File::new("diffusers", &file(&case, str::to_owned));
        let released = File::new("released", &file(&case, released));
        for path in [&diffusers.0, &released.0] {
            let tiny = load_tiny(path, (4, 8), Ways::default()).unwrap();
            check(&case, "out.image", &tiny.decode(&input(&case, "in.latent")));
        }
    }
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let case = Case::read("tiny/tiny_16_5x9");
    let complaint = |name: &str, bytes: Vec<u8>, latents| {
        let file = File::new(name, &bytes);
        let loaded = load_tiny(&file.0, latents, Ways::default());
        loaded.err().expect("it is wrong").to_string()
    };
    let without = |name: &str| {
        if name == "decoder.layers.3.conv.2.bias" {
            String::new()
        } else {
            released(name)
        }
    };
    let found = complaint("missing", file(&case, without), (4, 8));
    assert!(found.contains("`4.conv.2.bias` is missing"), "{found}");
    let found = complaint("other", file(&case, released), (16, 8));
    assert!(
        found.contains("latents of 4 channels") && found.contains("16 channels"),
        "{found}"
    );
    let vae = Layout::read("vae_s1").single_file(1);
    let found = complaint("vae", vae, (4, 8));
    assert!(found.contains("no tiny decoder (TAESD)"), "{found}");
}

#[test]
fn a_model_draws_with_it() {
    let case = Case::read("tiny/tiny_16_5x9");
    let tiny = File::new("drawn", &file(&case, released));
    let model = File::new("model", &Layout::read("sd").single_file(1));
    let request = Request {
        size: Some((40, 24)),
        steps: 2,
        ..Request::default()
    };
    let [plain, quick] = [None, Some(tiny.0.clone())].map(|tiny| {
        let options = LoadOptions {
            tiny,
            ..LoadOptions::default()
        };
        let model = Model::load(&model.0, &options).unwrap();
        model
            .generate(&request, |_| ControlFlow::Continue(()))
            .unwrap()
            .remove(0)
    });
    assert_eq!(plain.latent, quick.latent);
    assert_ne!(plain.image, quick.image);
    assert_eq!((quick.image.width(), quick.image.height()), (40, 24));
}
