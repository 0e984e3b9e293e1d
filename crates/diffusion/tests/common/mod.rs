//! What the golden tests share: the weight rule of `tools/golden/README.md`, layouts turned into model files, case files,
//! and the comparison. Leaves to each test what it compares.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test binary uses its own part"
)]

pub mod case;
pub mod weights;

use std::path::PathBuf;

/// `testdata/golden` of this repository.
pub fn golden_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden")
}
