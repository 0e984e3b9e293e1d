//! The text encoder against transformers' CLIP: every layer, that is every clip skip.

mod common;

use common::case::Case;
use common::{check, checkpoint};
use safelight_diffusion::load;

#[test]
fn every_layer_agrees_with_transformers() {
    for label in Case::labels("text") {
        let case = Case::read(&label);
        let text = load::load_text(&checkpoint(&case)).unwrap();
        let ids = case.ids("in.ids");
        let outputs: Vec<_> = case
            .names()
            .filter(|name| name.starts_with("out.skip"))
            .map(str::to_owned)
            .collect();
        assert!(outputs.len() >= 2, "{label}");
        // The deepest skip first, so that the first failure names the first wrong layer.
        for name in outputs.iter().rev() {
            let skip = name["out.skip".len()..].parse().unwrap();
            check(&case, name, &text.forward(&ids, skip));
        }
    }
}
