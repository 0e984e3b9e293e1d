//! PSNR and SSIM beside scikit-image's.

mod common;

use common::case::Case;
use safelight_diffusion::likeness::{psnr, ssim};
use safelight_diffusion::pipeline::RgbImage;

#[test]
fn pictures_are_as_alike_as_scikit_image_finds_them() {
    for label in Case::labels("likeness") {
        let case = Case::read(&label);
        let picture = |name: &str| {
            let [height, width, 3] = *case.shape(name) else {
                panic!("{label}: {name}")
            };
            RgbImage::new(width, height, case.bytes(name).to_vec())
        };
        let (right, found) = (picture("in.right"), picture("in.found"));
        // Both compute in f64: a few thousand roundings, relative to numbers of about 1 and 30.
        let (wanted, found_psnr) = (case.number("psnr"), psnr(&right, &found));
        assert!(
            (wanted - found_psnr).abs() < 1e-9,
            "{label}: {found_psnr}, not {wanted} dB"
        );
        let (wanted, found_ssim) = (case.number("ssim"), ssim(&right, &found).unwrap());
        assert!(
            (wanted - found_ssim).abs() < 1e-9,
            "{label}: {found_ssim}, not {wanted}"
        );
    }
}
