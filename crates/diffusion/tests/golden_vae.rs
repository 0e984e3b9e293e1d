//! The autoencoder against diffusers' AutoencoderKL, whole and block by block.

mod common;

use common::case::Case;
use common::{check, checkpoint, input};
use safelight_diffusion::load;
use safelight_diffusion::nn::Trace;
use safelight_tensor::Tensor;

#[test]
fn moments_and_pictures_agree_with_diffusers() {
    let labels = Case::labels("vae");
    assert!(labels.len() >= 12);
    for label in labels {
        let case = Case::read(&label);
        let vae = load::load_vae(&checkpoint(&case)).unwrap();
        if case.has("in.image") {
            let moments = vae.encode(&input(&case, "in.image"));
            check(&case, "out.mean", &moments.mean);
            check(&case, "out.logvar", &moments.log_variance);
        } else {
            check(&case, "out.image", &vae.decode(&input(&case, "in.latent")));
        }
    }
}

#[test]
fn every_block_agrees_with_diffusers() {
    let case = Case::read("trace/vae_s1_5x9");
    let vae = load::load_vae(&checkpoint(&case)).unwrap();
    let mut seen = 0;
    let mut see = |name: &str, output: &Tensor| {
        let name = format!("out.{name}");
        if case.has(&name) {
            check(&case, &name, output);
            seen += 1;
        }
    };
    vae.encode_traced(&input(&case, "in.image"), &mut Trace::to(&mut see));
    vae.decode_traced(&input(&case, "in.latent"), &mut Trace::to(&mut see));
    assert_eq!(
        seen,
        case.names().filter(|name| name.starts_with("out.")).count()
    );
}
