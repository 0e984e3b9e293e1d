//! Whole UNets against diffusers, and their blocks one by one.

mod common;

use common::case::Case;
use common::{check, checkpoint, input};
use safelight_diffusion::load;
use safelight_diffusion::nn::Trace;
use safelight_diffusion::unet::{Addition, Deep, Pass, PreparedText, UNet};
use safelight_tensor::Tensor;

#[test]
fn whole_networks_agree_with_diffusers() {
    for label in Case::labels("unet") {
        let case = Case::read(&label);
        let unet = load::load_unet(&checkpoint(&case)).unwrap();
        let (x, text) = (input(&case, "in.x"), prepared(&unet, &case));
        let found = unet.forward_prepared(&x, &times(&case), &text, &mut Trace::off());
        check(&case, "out.y", &found);
    }
}

#[test]
fn every_block_agrees_with_diffusers() {
    let labels: Vec<_> = Case::labels("trace")
        .into_iter()
        .filter(|label| label.contains("unet"))
        .collect();
    assert_eq!(labels.len(), 4);
    for label in labels {
        let case = Case::read(&label);
        let unet = load::load_unet(&checkpoint(&case)).unwrap();
        let text = prepared(&unet, &case);
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

/// Every branch, so deep features of every depth, against the `DeepCache` package around diffusers' network.
#[test]
fn cached_passes_agree_with_deepcache() {
    let labels: Vec<_> = Case::labels("shortcuts")
        .into_iter()
        .filter(|label| label.contains("/deep_"))
        .collect();
    assert_eq!(labels.len(), 2);
    for label in labels {
        let case = Case::read(&label);
        let unet = load::load_unet(&checkpoint(&case)).unwrap();
        assert_eq!(unet.config().branch_count(), 12);
        let text = unet.prepare(&input(&case, "in.context"));
        let (x, t) = (
            ["in.x.0", "in.x.1"].map(|name| input(&case, name)),
            case.f32s("in.t"),
        );
        for branch in 0..12 {
            let mut features = None;
            let pass = |step: usize, deep: Deep<'_>| {
                let times = vec![t[step]; x[step].dim(0)];
                let pass = Pass {
                    deep,
                    ..Pass::default()
                };
                unet.forward_with(&x[step], &times, &text, pass, &mut Trace::off())
            };
            pass(
                0,
                Deep::Keep {
                    branch,
                    features: &mut features,
                },
            );
            let features = &features.expect("it was kept");
            let found = pass(1, Deep::Reuse { branch, features });
            check(&case, &format!("out.branch.{branch}"), &found);
        }
    }
}

#[test]
fn merged_tokens_agree_with_tomesd() {
    let labels: Vec<_> = Case::labels("shortcuts")
        .into_iter()
        .filter(|label| label.contains("/merged_"))
        .collect();
    assert_eq!(labels.len(), 4);
    for label in labels {
        let case = Case::read(&label);
        let unet = load::load_unet(&checkpoint(&case)).unwrap();
        let text = unet.prepare(&input(&case, "in.context"));
        let pass = Pass {
            token_merging: case.number("ratio"),
            ..Pass::default()
        };
        let x = input(&case, "in.x");
        let found = unet.forward_with(&x, &times(&case), &text, pass, &mut Trace::off());
        check(&case, "out.y", &found);
    }
}

/// The case's text, with what is added to the time embedding where the case has it.
fn prepared(unet: &UNet, case: &Case) -> PreparedText {
    let context = input(case, "in.context");
    if !case.has("in.pooled") {
        return unet.prepare(&context);
    }
    let (pooled, time_ids) = (input(case, "in.pooled"), input(case, "in.time_ids"));
    let addition = Addition {
        pooled: &pooled,
        time_ids: &time_ids,
    };
    unet.prepare_with(&context, addition)
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
