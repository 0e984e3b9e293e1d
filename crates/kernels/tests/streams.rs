//! Outputs too large for any cache are written past them: they must be those of their halves, which are not.

use safelight_kernels::conv::conv2d_at;
use safelight_kernels::gemm::linear_at;
use safelight_kernels::norm::{Affine, GroupShape, group_norm_at};
use safelight_kernels::testing::Rng;
use safelight_kernels::{
    Algorithm, ConvShape, Epilogue, Extent, Level, PackedConv, PackedLinear, Padding, Precision,
};

/// Floats of a half: 24 MiB, so that both are more than 32 MiB.
const HALF: usize = 6 << 20;

/// Whether `run` makes of two halves what it makes of both at once.
fn check(name: &str, inputs: usize, run: impl Fn(Level, usize, &[f32], &mut [f32])) {
    let x = Rng::seeded(5).f32s(2 * inputs);
    for level in Level::available() {
        let mut both = vec![f32::NAN; 2 * HALF];
        run(level, 2, &x, &mut both);
        for (x, both) in x.chunks(inputs).zip(both.chunks(HALF)) {
            let mut half = vec![f32::NAN; HALF];
            run(level, 1, x, &mut half);
            assert!(half == both, "{name} at {level}");
        }
    }
}

#[test]
fn linear_layers() {
    let mut rng = Rng::seeded(6);
    // Whole vectors, and rows of which most begin within one.
    for outputs in [96, 3] {
        let weight = PackedLinear::new(&rng.f32s(2 * outputs), outputs, 2);
        check("linear", HALF / outputs * 2, |level, _, x, out| {
            linear_at(level, x, &weight, &Epilogue::default(), out);
        });
    }
}

#[test]
fn convolutions() {
    let shape = ConvShape {
        out_channels: 96,
        in_channels: 3,
        kernel_height: 3,
        kernel_width: 3,
        stride: 1,
        padding: Padding::all(1),
    };
    let mut rng = Rng::seeded(7);
    let weight = rng.f32s(96 * 3 * 9);
    let bias = rng.f32s(96);
    let epilogue = Epilogue {
        bias: Some(&bias),
        ..Epilogue::default()
    };
    for algorithm in [Algorithm::Winograd2, Algorithm::Winograd4] {
        let packed = PackedConv::with(&weight, shape, Precision::F32, algorithm);
        check("conv", 256 * 256 * 3, |level, batch, x, out| {
            let extent = Extent {
                batch,
                height: 256,
                width: 256,
            };
            conv2d_at(level, x, extent, (256, 256), &packed, &epilogue, out);
        });
    }
}

#[test]
fn group_norms() {
    let ones = [1.0; 96];
    let norm = Affine {
        gamma: &ones,
        beta: &ones,
        eps: 1e-5,
    };
    check("group_norm", HALF, |level, batch, x, out| {
        let shape = GroupShape {
            batch,
            pixels: HALF / 96,
            channels: 96,
            groups: 32,
        };
        group_norm_at(level, &shape, &norm, true, x, out);
    });
}
