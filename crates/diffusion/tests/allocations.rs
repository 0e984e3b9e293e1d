//! Where memory goes, by an allocator that counts: nothing large within a step, and no more than was foretold.

mod common;

use std::ops::ControlFlow;
use std::sync::Mutex;

use common::weights::Layout;
use safelight_diffusion::load::{LoadOptions, Model, ModelFiles};
use safelight_diffusion::nn::RandomWeights;
use safelight_diffusion::pipeline::{Request, Residence, memory_bytes};
use safelight_diffusion::precision::{Precision, Ways};
use safelight_diffusion::unet::{Level, UNet, UNetConfig};
use safelight_kernels::testing::CountingAllocator;
use safelight_store::Checkpoint;
use safelight_tensor::{Tensor, pool};

#[global_allocator]
static COUNTED: CountingAllocator = CountingAllocator;

/// One test at a time: all count with the same counter.
static TURN: Mutex<()> = Mutex::new(());

/// Blocks from here on are activations or what kernels work with: both are kept. Smaller ones are lists of pieces and lines.
const LARGE_BYTES: usize = 16 << 10;

/// Blocks that an operation may ask for; a UNet of this size has some 60.
const BLOCKS_MAX: usize = 1500;

/// On one thread, so that no other meets its first piece of work while we count.
fn alone<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    pool.expect("one more thread").install(body)
}

#[test]
fn a_step_after_the_first_allocates_no_activation() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let level = |channels, depths: &[usize], resample| Level {
        channels,
        depths: depths.to_vec(),
        resample,
    };
    let config = UNetConfig {
        model_channels: 64,
        time_embedding_channels: 256,
        down: vec![level(64, &[1], true), level(128, &[1], false)],
        up: vec![level(128, &[1, 1], true), level(64, &[1, 1], false)],
        context_channels: 48,
        ..UNetConfig::sd15()
    };
    for precision in Precision::ALL {
        let unet = UNet::load_in(&RandomWeights { seed: 1 }, config.clone(), precision).unwrap();
        alone(|| {
            let latent = Tensor::from_slice(&[2, 16, 12, 4], &[0.5; 2 * 16 * 12 * 4]);
            let text = Tensor::from_slice(&[2, 77, 48], &[0.25; 2 * 77 * 48]);
            let text = unet.prepare(&text);
            let mut trace = safelight_diffusion::nn::Trace::off();
            let mut step = || unet.forward_prepared(&latent, &[500.0; 2], &text, &mut trace);
            let first = step();
            drop(step());
            COUNTED.reset();
            let before = COUNTED.live_bytes();
            let second = step();
            let (blocks, largest) = (COUNTED.blocks(), COUNTED.largest_bytes());
            assert_eq!(first, second);
            assert!(
                largest < LARGE_BYTES,
                "{precision}: a block of {largest} bytes in a step"
            );
            assert!(
                blocks < BLOCKS_MAX,
                "{precision}: {blocks} blocks in a step"
            );
            let kept = COUNTED.live_bytes().saturating_sub(before);
            assert!(
                kept < LARGE_BYTES,
                "{precision}: {kept} more bytes after a step"
            );
            eprintln!("{precision}: {blocks} blocks in a step, the largest of {largest} bytes");
        });
    }
}

/// The most memory that `body` had in use beyond what was there before.
fn peak_of(body: impl FnOnce()) -> u64 {
    pool::trim();
    COUNTED.reset();
    let before = COUNTED.live_bytes();
    body();
    (COUNTED.peak_bytes() - before) as u64
}

#[test]
fn drawing_takes_no_more_than_was_foretold() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let folder = std::env::temp_dir().join(format!("safelight-memory-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("m.safetensors");
    std::fs::write(&path, Layout::read("sd").single_file(1)).unwrap();
    for (side, batch) in [(64, 1), (256, 1), (256, 2)] {
        for lean in [false, true] {
            let ways = Ways {
                precision: Precision::F32,
                lean,
            };
            let options = LoadOptions {
                ways,
                ..LoadOptions::default()
            };
            let request = Request {
                prompt: "a red house".into(),
                size: Some((side, side)),
                steps: 2,
                batch,
                ..Request::default()
            };
            let go_on = |_: safelight_diffusion::pipeline::Progress<'_>| ControlFlow::Continue(());
            let files = ModelFiles::open(&path, &options).unwrap();
            let staged = peak_of(|| drop(files.generate(&request, go_on).unwrap()));
            let resident = peak_of(|| {
                let checkpoint = Checkpoint::open(&path).unwrap();
                let model = Model::from_checkpoint(&checkpoint, &options).unwrap();
                drop(model.generate(&request, go_on).unwrap());
            });
            let case = format!("{side}×{side}, batch {batch}, lean {lean}");
            for (measured, residence) in [(staged, Residence::Staged), (resident, Residence::All)] {
                let foretold = memory_bytes(files.info(), &request, ways, residence).unwrap();
                assert!(
                    measured <= foretold && foretold <= 8 * measured,
                    "{case}, {residence:?}: took {measured}, foretold {foretold}"
                );
            }
            assert!(
                staged < resident,
                "{case}: {staged} one by one, {resident} all at once"
            );
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
