//! Whole UNets against diffusers, and their blocks one by one.

mod common;

use common::case::Case;
use common::{check, checkpoint, input};
use safelight_diffusion::load;
use safelight_diffusion::nn::Trace;
use safelight_tensor::Tensor;

#[test]
fn whole_networks_agree_with_diffusers() {
    for label in Case::labels("unet") {
        let case = Case::read(&label);
        let unet = load::load_unet(&checkpoint(&case)).unwrap();
        let context = input(&case, "in.context");
        let found = unet.forward(&input(&case, "in.x"), &times(&case), &context);
        check(&case, "out.y", &found);
    }
}

#[test]
fn every_block_agrees_with_diffusers() {
    let labels: Vec<_> = Case::labels("trace")
        .into_iter()
        .filter(|label| label.contains("unet"))
        .collect();
    assert_eq!(labels.len(), 3);
    for label in labels {
        let case = Case::read(&label);
        let unet = load::load_unet(&checkpoint(&case)).unwrap();
        let text = unet.prepare(&input(&case, "in.context"));
        let mut seen = 0;
        let mut see = |name: &str, output: &Tensor| {
            let name = format!("out.{name}");
            if case.has(&name) {
                check(&case, &name, output);
                seen += 1;
            }
        };
        unet.forward_prepared(
            &input(&case, "in.x"),
            &times(&case),
            &text,
            &mut Trace::to(&mut see),
        );
        let expected = case.names().filter(|name| name.starts_with("out.")).count();
        assert_eq!(seen, expected, "{label}: blocks seen");
    }
}

/// One time for each latent; a case may give one for all.
fn times(case: &Case) -> Vec<f32> {
    let t = case.f32s("in.t");
    let batch = case.shape("in.x")[0];
    if t.len() == batch {
        t
    } else {
        vec![t[0]; batch]
    }
}
