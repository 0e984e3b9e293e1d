//! The full-size SD 1.5 layout against torch: text, one UNet call at 64×64, a decoded picture. Slow, so only on request:
//!
//! ```text
//! SLOW_TESTS=1 cargo test --release -p safelight-diffusion --test golden_big -- --nocapture
//! ```

mod common;

use std::fs::File;
use std::io::BufWriter;
use std::time::Instant;

use common::case::Case;
use common::weights::Layout;
use common::{check, input};
use safelight_diffusion::load;
use safelight_diffusion::noise::{NoiseRng, NoiseSource};
use safelight_store::Checkpoint;
use safelight_tensor::Tensor;

#[test]
fn the_full_size_agrees_with_torch() {
    if std::env::var("SLOW_TESTS").as_deref() != Ok("1") {
        println!("skipped: needs 2.1 GB of disk and minutes; SLOW_TESTS=1 runs it");
        return;
    }
    let path = std::env::temp_dir().join(format!(
        "safelight-big-sd15-{}.safetensors",
        std::process::id()
    ));
    let [text, unet, vae] = ["text", "unet", "vae"].map(|name| Case::read(&format!("big/{name}")));
    let mut file = BufWriter::new(File::create(&path).unwrap());
    Layout::read("sd15")
        .write_f16(text.seed(), &mut file)
        .unwrap();
    drop(file);
    let checkpoint = Checkpoint::open(&path).unwrap();

    let context = load::load_text(&checkpoint)
        .unwrap()
        .forward(&text.ids("in.ids"), 1);
    check(&text, "out.context", &context);

    let noise = |case: &Case, [c, h, w]: [usize; 3]| {
        let values =
            NoiseRng::seeded(NoiseSource::Cpu, case.number("noise_seed") as u64).randn(c * h * w);
        Tensor::from_nchw(&[1, c, h, w], &values)
    };
    let x = noise(&unet, [4, 64, 64]);
    let first_column: Vec<f32> = x.to_nchw().into_iter().step_by(64).collect();
    assert_eq!(
        first_column,
        input(&unet, "in.x").to_nchw(),
        "the noise is torch's"
    );
    let network = load::load_unet(&checkpoint).unwrap();
    let start = Instant::now();
    let y = network.forward(&x, &[unet.number("t") as f32], &context);
    println!("one UNet call: {:.2} s", start.elapsed().as_secs_f64());
    drop(network);
    check(&unet, "out.y", &y);

    let mut latent = noise(&vae, [4, 32, 40]);
    latent
        .data_mut()
        .iter_mut()
        .for_each(|value| *value /= 0.18215);
    let network = load::load_vae(&checkpoint).unwrap();
    let picture = network.decode(&latent);
    std::fs::remove_file(&path).unwrap();
    check(&vae, "out.image", &picture);
}
