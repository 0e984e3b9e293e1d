//! What the golden tests share: the weight rule of `tools/golden/README.md`, layouts turned into model files, case files,
//! and the comparison. Leaves to each test what it compares.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test binary uses its own part"
)]

pub mod case;
pub mod job;
pub mod weights;

use std::path::PathBuf;

use safelight_store::Checkpoint;
use safelight_tensor::Tensor;

use case::Case;
use weights::Layout;

/// `testdata/golden` of this repository.
pub fn golden_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden")
}

/// The single-file checkpoint a case was made with.
pub fn checkpoint(case: &Case) -> Checkpoint {
    let layout = case.text("layout");
    let scale = case
        .metadata
        .get("embedding_scale")
        .map_or(1.0, |text| text.parse().unwrap());
    let bytes = Layout::read(layout).single_file_with(case.seed(), |name, values| {
        if name.ends_with("embedding.weight") {
            values.iter_mut().for_each(|value| *value *= scale);
        }
    });
    Checkpoint::from_bytes(layout, bytes).expect("our own file")
}

/// Input `name` of a case: NCHW values as `[B, H, W, C]` if it has four dimensions, else as they are.
pub fn input(case: &Case, name: &str) -> Tensor {
    match *case.shape(name) {
        [b, c, h, w] => Tensor::from_nchw(&[b, c, h, w], &case.f32s(name)),
        ref shape => Tensor::from_slice(shape, &case.f32s(name)),
    }
}

/// A tensor's values in torch's order.
pub fn torch_order(tensor: &Tensor) -> Vec<f32> {
    if tensor.shape().len() == 4 {
        tensor.to_nchw()
    } else {
        tensor.data().to_vec()
    }
}

/// Compares `found` with output `name`, and says by how much they differ (`cargo test -- --nocapture` shows it).
pub fn check(case: &Case, name: &str, found: &Tensor) -> f64 {
    let error = case.check(name, &torch_order(found));
    println!("{:<36} {name:<40} {error:.1e}", case.label);
    error
}
