//! Attention (GFLOP/s, beside the limit) and the operations that memory limits (GB/s of what they read and write).

use safelight_kernels::activation::geglu_at;
use safelight_kernels::attention::{AttentionShape, StridedRows, attention_at};
use safelight_kernels::elementwise::{add, concat_channels};
use safelight_kernels::norm::{Affine, GroupShape, group_norm_at, layer_norm_at};
use safelight_kernels::testing::Rng;
use safelight_kernels::{Level, Precision, activation::activate_at};

use super::{Activation, Bench};

/// (heads, head width, queries, keys) of SD 1.5's UNet at 64×64, its VAE and its text encoder.
const ATTENTION: &[(usize, usize, usize, usize)] = &[
    (8, 40, 4096, 4096),
    (8, 80, 1024, 1024),
    (8, 160, 256, 256),
    (8, 160, 64, 64),
    (8, 40, 4096, 77),
    (8, 80, 1024, 77),
    (1, 512, 4096, 4096),
    (12, 64, 77, 77),
];

/// (pixels, channels) of group norms.
const GROUPS: &[(usize, usize)] = &[(4096, 320), (1024, 640), (256, 1280), (512 * 512, 128)];

/// (tokens, width) of layer norms, sums and concatenations.
const ROWS: &[(usize, usize)] = &[(4096, 320), (1024, 640), (256, 1280)];

/// Runs the lines of attention at one level; int8's are those of bf16.
pub(super) fn run_attention(bench: &Bench, way: (Level, Precision), peak: f64) {
    for &shape in ATTENTION {
        attention(bench, way, peak, shape);
    }
}

/// Runs the lines of one level that memory limits.
pub(super) fn run(bench: &Bench, level: Level) {
    for &shape in GROUPS {
        groups(bench, level, shape);
    }
    for &shape in ROWS {
        rows(bench, level, shape);
    }
}

fn attention(
    bench: &Bench,
    (level, precision): (Level, Precision),
    peak: f64,
    (heads, head_width, queries, keys): (usize, usize, usize, usize),
) {
    let name = format!("attention/{queries}x{keys}x{heads}x{head_width}/{precision}/{level}");
    let width = heads * head_width;
    bench.line(&name, (4 * queries * keys * width) as f64, peak, || {
        let shape = AttentionShape {
            batch: 1,
            heads,
            head_width,
            queries,
            keys,
            causal: false,
        };
        let mut rng = Rng::seeded(1);
        let [q, k, v] = [queries, keys, keys].map(|rows| rng.f32s(rows * width));
        let mut out = vec![0.0; queries * width];
        move || {
            let [q, k, v] = [&q, &k, &v].map(|data| StridedRows::dense(data, width));
            attention_at(level, &shape, precision, q, k, v, &mut out);
        }
    });
}

fn groups(bench: &Bench, level: Level, (pixels, channels): (usize, usize)) {
    let count = pixels * channels;
    for silu in [false, true] {
        let op = if silu {
            "group_norm_silu"
        } else {
            "group_norm"
        };
        let name = format!("{op}/{pixels}x{channels}/f32/{level}");
        // Two passes over the input, one over the output.
        bench.memory(&name, 3 * count, || {
            let shape = GroupShape {
                batch: 1,
                pixels,
                channels,
                groups: 32,
            };
            let (x, mut out) = (Rng::seeded(1).f32s(count), vec![0.0; count]);
            let ones = vec![1.0; channels];
            move || {
                let norm = Affine {
                    gamma: &ones,
                    beta: &ones,
                    eps: 1e-5,
                };
                group_norm_at(level, &shape, &norm, silu, &x, &mut out);
            }
        });
    }
}

fn rows(bench: &Bench, level: Level, (tokens, width): (usize, usize)) {
    let count = tokens * width;
    let name = |op: &str| format!("{op}/{tokens}x{width}/f32/{level}");
    bench.memory(&name("layer_norm"), 2 * count, || {
        let (x, mut out) = (Rng::seeded(1).f32s(count), vec![0.0; count]);
        let ones = vec![1.0; width];
        move || {
            let norm = Affine {
                gamma: &ones,
                beta: &ones,
                eps: 1e-5,
            };
            layer_norm_at(level, &norm, &x, &mut out);
        }
    });
    bench.memory(&name("geglu"), 3 * 4 * count, || {
        let (x, mut out) = (Rng::seeded(1).f32s(8 * count), vec![0.0; 4 * count]);
        move || geglu_at(level, 4 * width, &x, &mut out)
    });
    bench.memory(&name("silu"), 2 * count, || {
        let (x, mut out) = (Rng::seeded(1).f32s(count), vec![0.0; count]);
        move || activate_at(level, Activation::Silu, &x, &mut out)
    });
    if level == Level::Scalar {
        // One version for all levels.
        bench.memory(&name("add"), 3 * count, || {
            let (x, mut out) = (Rng::seeded(1).f32s(count), vec![0.0; count]);
            move || add(&x, &x, &mut out)
        });
        bench.memory(&name("concat_channels"), 4 * count, || {
            let (x, mut out) = (Rng::seeded(1).f32s(count), vec![0.0; 2 * count]);
            move || concat_channels(&x, width, &x, width, &mut out)
        });
    }
}
