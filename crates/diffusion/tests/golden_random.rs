//! Jobs nobody chose, made by `tools/golden/random_jobs.py`; that script says how to run this.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use common::case::Case;
use common::job::run;
use safelight_diffusion::load::{LoadOptions, Model};

#[test]
fn random_jobs() {
    let Some(root) = std::env::var_os("SAFELIGHT_RANDOM_JOBS") else {
        println!("skipped: SAFELIGHT_RANDOM_JOBS names no folder of jobs");
        return;
    };
    let entries = std::fs::read_dir(&root).unwrap();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let mut failures = Vec::new();
    for folder in &folders {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let case = Case::read(folder.join("case").to_str().unwrap());
            println!("{} (moves by {})", case.label, case.text("sensitivity"));
            let model = Model::load(&folder.join(case.text("source")), &LoadOptions::default());
            run(
                &case,
                &model.unwrap_or_else(|error| panic!("{}: {error}", case.label)),
            );
        }));
        if let Err(failure) = outcome {
            failures.push(
                failure
                    .downcast_ref::<String>()
                    .cloned()
                    .unwrap_or_default(),
            );
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {}:\n{}",
        failures.len(),
        folders.len(),
        failures.join("\n")
    );
}
