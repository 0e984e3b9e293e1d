//! Whole jobs against diffusers' pipelines and against k-diffusion's samplers under A1111's rules: final latents and pictures.

mod common;

use std::collections::BTreeMap;

use common::case::Case;
use common::checkpoint;
use common::job::run;
use common::weights::Layout;
use safelight_diffusion::load::{LoadOptions, Model};

#[test]
fn diffusers_jobs() {
    assert!(every_case("pipeline/diffusers_") >= 35);
}

#[test]
fn kdiffusion_jobs() {
    assert!(every_case("pipeline/kdiffusion_") >= 35);
}

/// A diffusers folder of the same weights draws the same bytes as the single file.
#[test]
fn a_folder_draws_what_the_file_draws() {
    let case = Case::read("pipeline/diffusers_txt2img_dpmpp_2m_karras");
    let folder =
        std::env::temp_dir().join(format!("safelight-golden-folder-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    Layout::read("sd").write_folder(case.seed(), &folder);
    let model = Model::load(&folder, &LoadOptions::default());
    std::fs::remove_dir_all(&folder).unwrap();
    run(&case, &model.unwrap());
}

/// Runs all cases whose label begins with `prefix`; all failures are reported together.
fn every_case(prefix: &str) -> usize {
    let mut models: BTreeMap<(String, u32), Model> = BTreeMap::new();
    let labels: Vec<_> = Case::labels("pipeline")
        .into_iter()
        .filter(|label| label.starts_with(prefix))
        .collect();
    let mut failures = Vec::new();
    for label in &labels {
        let case = Case::read(label);
        let model = models
            .entry((case.text("layout").to_owned(), case.seed()))
            .or_insert_with(|| {
                Model::from_checkpoint(&checkpoint(&case), &LoadOptions::default()).unwrap()
            });
        if let Err(failure) =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&case, model)))
        {
            failures.push(
                failure
                    .downcast_ref::<String>()
                    .cloned()
                    .unwrap_or_else(|| label.clone()),
            );
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {}:\n{}",
        failures.len(),
        labels.len(),
        failures.join("\n")
    );
    labels.len()
}
