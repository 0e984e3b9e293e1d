//! Drawing with networks that are read when they are needed: the same pictures, and errors in time.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::weights::Layout;
use safelight_diffusion::load::{LoadError, LoadOptions, Model, ModelFiles, Part, Problem};
use safelight_diffusion::nn::{Builder, RandomWeights, Weights};
use safelight_diffusion::pipeline::{GenerateError, Job, Phase, Request, RgbImage};
use safelight_diffusion::precision::{Precision, Ways};
use safelight_diffusion::unet::{Level, UNet, UNetConfig};
use safelight_format::Dtype;
use safelight_store::Checkpoint;
use safelight_tensor::Tensor;

fn checkpoint(change: impl Fn(&str, &mut [f32])) -> Checkpoint {
    let bytes = Layout::read("sd").single_file_with(1, change);
    Checkpoint::from_bytes("golden.safetensors", bytes).expect("a valid file")
}

fn request(job: Job, batch: usize) -> Request {
    let size = matches!(job, Job::Txt2Img).then_some((40, 24));
    Request {
        job,
        prompt: "a red house".into(),
        size,
        steps: 3,
        seed: 5,
        batch,
        ..Request::default()
    }
}

#[test]
fn networks_come_one_by_one_and_draw_the_same_bytes() {
    let image = RgbImage::new(
        40,
        24,
        (0..3 * 40 * 24).map(|i| (i * 7 % 253) as u8).collect(),
    );
    let jobs = [
        Job::Txt2Img,
        Job::Img2Img {
            image,
            strength: 0.7,
        },
    ];
    use Part::{TextEncoder, UNet, Vae};
    for (job, lean, batch, expected) in [
        (0, false, 1, vec![TextEncoder, UNet, Vae]),
        (0, false, 2, vec![TextEncoder, UNet, Vae]),
        (0, true, 2, vec![TextEncoder, UNet, Vae, UNet, Vae]),
        (1, false, 1, vec![TextEncoder, Vae, UNet, Vae]),
        (1, false, 2, vec![TextEncoder, Vae, UNet]),
    ] {
        let options = LoadOptions {
            ways: Ways {
                precision: Precision::Bf16,
                lean,
            },
            ..LoadOptions::default()
        };
        let request = request(jobs[job].clone(), batch);
        let model = Model::from_checkpoint(&checkpoint(|_, _| {}), &options).unwrap();
        let resident = model.generate(&request, |_| ControlFlow::Continue(()));
        let files = ModelFiles::from_checkpoint(checkpoint(|_, _| {}), &options).unwrap();
        let mut loaded = Vec::new();
        let staged = files.generate(&request, |now| {
            if let Phase::Load(part) = now.phase {
                loaded.push(part);
            }
            ControlFlow::Continue(())
        });
        let bytes = |pictures: Vec<safelight_diffusion::pipeline::Picture>| -> Vec<Vec<u8>> {
            let bytes = pictures
                .iter()
                .map(|picture| picture.image.bytes().to_vec());
            bytes.collect()
        };
        assert_eq!(bytes(staged.unwrap()), bytes(resident.unwrap()));
        assert_eq!(loaded, expected, "job {job}, lean {lean}, batch {batch}");
    }
}

#[test]
fn a_broken_vae_is_found_before_the_first_step() {
    let broken = "first_stage_model.decoder.conv_out.weight";
    let spoil = |name: &str, values: &mut [f32]| {
        if name == broken {
            values[3] = f32::NAN;
        }
    };
    let files = ModelFiles::from_checkpoint(checkpoint(spoil), &LoadOptions::default()).unwrap();
    let found = files.generate(&request(Job::Txt2Img, 1), |now| match now.phase {
        Phase::Load(_) => ControlFlow::Continue(()),
        other => panic!("{other:?}"),
    });
    match found {
        Err(GenerateError::Load { why }) => {
            assert!(why.contains(broken) && why.contains("in 1 of "), "{why}");
        }
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[test]
fn a_loading_can_be_stopped() {
    let files =
        ModelFiles::from_checkpoint(checkpoint(|_, _| {}), &LoadOptions::default()).unwrap();
    let found = files.generate(&request(Job::Txt2Img, 1), |now| match now.phase {
        Phase::Load(Part::UNet) => ControlFlow::Break(()),
        Phase::Load(_) | Phase::Text => ControlFlow::Continue(()),
        other => panic!("{other:?}"),
    });
    assert!(matches!(found, Err(GenerateError::Stopped)));
}

/// Random weights that can get lost.
struct Losable {
    lost: AtomicBool,
}

impl Weights for Losable {
    fn check(&self, _name: &str, _shapes: &[Vec<usize>]) -> Result<(), Problem> {
        Ok(())
    }

    fn read(&self, name: &str, count: usize) -> Result<Vec<f32>, LoadError> {
        if self.lost.load(Ordering::Relaxed) {
            return Err(LoadError::Io {
                path: "weights".into(),
                source: std::io::ErrorKind::UnexpectedEof.into(),
            });
        }
        RandomWeights { seed: 3 }.read(name, count)
    }

    fn read_stored(&self, name: &str, _count: usize) -> Result<(Dtype, Vec<u8>), LoadError> {
        unreachable!("a UNet has no table: {name}")
    }

    fn label(&self) -> String {
        "losable".into()
    }
}

#[test]
fn fetched_weights_make_the_same_unet_and_say_when_they_are_lost() {
    let level = |depths: &[usize]| Level {
        channels: 192,
        depths: depths.to_vec(),
        resample: false,
    };
    let config = UNetConfig {
        model_channels: 192,
        time_embedding_channels: 64,
        down: vec![level(&[1])],
        up: vec![level(&[1, 1])],
        context_channels: 16,
        ..UNetConfig::sd15()
    };
    let wave = |shape: &[usize]| {
        let count = shape.iter().product::<usize>();
        Tensor::from_slice(
            shape,
            &(0..count)
                .map(|i| (i as f32 * 0.37).sin())
                .collect::<Vec<f32>>(),
        )
    };
    let (latent, text) = (wave(&[1, 5, 3, 4]), wave(&[1, 6, 16]));
    for precision in Precision::ALL {
        let ways = Ways {
            precision,
            lean: true,
        };
        let losable = Arc::new(Losable {
            lost: AtomicBool::new(false),
        });
        let here = UNet::load_in(&*losable, config.clone(), ways).unwrap();
        let expected = here.forward(&latent, &[9.0], &text);
        let weights: Arc<dyn Weights> = losable.clone();
        // Nothing stays; some stays; all of it.
        for (resident_bytes, fetches) in [(0, true), (2_000_000, true), (usize::MAX, false)] {
            losable.lost.store(false, Ordering::Relaxed);
            let (mut builder, failures) = Builder::fetching(&weights, ways, resident_bytes);
            let unet = UNet::describe(&mut builder, config.clone());
            builder.fill().unwrap();
            assert_eq!(unet.forward(&latent, &[9.0], &text), expected);
            assert!(failures.take().is_none());

            losable.lost.store(true, Ordering::Relaxed);
            let found = unet.forward(&latent, &[9.0], &text);
            let failure = failures.take();
            assert_eq!(
                failure.is_some(),
                fetches,
                "{precision}, {resident_bytes} bytes"
            );
            assert_eq!(found == expected, !fetches);
            assert!(failures.take().is_none(), "a failure is told once");
        }
    }
}
