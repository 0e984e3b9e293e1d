use super::*;
use crate::testing::{Rng, with_threads};

/// Equation 1 in f64.
fn reference(
    shape: &AttentionShape,
    q: StridedRows<'_>,
    k: StridedRows<'_>,
    v: StridedRows<'_>,
) -> Vec<f64> {
    let d = shape.head_width;
    let mut out = vec![0.0; shape.batch * shape.queries * shape.width()];
    for (row, out) in out.chunks_exact_mut(shape.width()).enumerate() {
        let (image, query) = (row / shape.queries, row % shape.queries);
        let seen = if shape.causal { query + 1 } else { shape.keys };
        for (head, out) in out.chunks_exact_mut(d).enumerate() {
            let part = |rows: StridedRows<'_>, row: usize| -> Vec<f64> {
                rows.part(row, head * d, d)
                    .iter()
                    .map(|&x| f64::from(x))
                    .collect()
            };
            let q = part(q, row);
            let mut weights: Vec<f64> = (0..seen)
                .map(|key| {
                    let k = part(k, image * shape.keys + key);
                    q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (d as f64).sqrt()
                })
                .collect();
            let highest = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            weights.iter_mut().for_each(|x| *x = (*x - highest).exp());
            let sum: f64 = weights.iter().sum();
            for (key, weight) in weights.iter().enumerate() {
                for (out, v) in out.iter_mut().zip(part(v, image * shape.keys + key)) {
                    *out += weight / sum * v;
                }
            }
        }
    }
    out
}

fn relative_rms(got: &[f32], expected: &[f64]) -> f64 {
    let difference: f64 = got
        .iter()
        .zip(expected)
        .map(|(&got, expected)| (f64::from(got) - expected).powi(2))
        .sum();
    let size: f64 = expected.iter().map(|x| x * x).sum();
    (difference / size).sqrt()
}

/// Every level against f64; `spread` scales the queries, so that a few keys take all the weight.
fn check(shape: AttentionShape, spread: f32) {
    let mut rng = Rng::seeded(shape.keys as u64 * 1000 + shape.head_width as u64);
    let width = shape.width();
    let mut rows = |count: usize, scale: f32| -> Vec<f32> {
        let mut values = rng.f32s(shape.batch * count * width);
        values.iter_mut().for_each(|x| *x *= scale);
        values
    };
    let (q, k, v) = (
        rows(shape.queries, spread),
        rows(shape.keys, 2.0),
        rows(shape.keys, 1.0),
    );
    let [q, k, v] = [&q, &k, &v].map(|data| StridedRows::dense(data, width));
    let expected = reference(&shape, q, k, v);
    for level in Level::available() {
        let mut out = vec![f32::NAN; expected.len()];
        attention_at(level, &shape, Precision::F32, q, k, v, &mut out);
        let error = relative_rms(&out, &expected);
        // A score s of |s| ≈ 2·spread·√d is off by about ε·|s|, and its weight by that factor;
        // then a sum over keys of random signs: a few ε of a value, the values' sum shrinking by √keys.
        let bound = 1e-6_f64.max(f64::from(f32::EPSILON * spread) * (width as f64).sqrt());
        assert!(
            error <= bound,
            "{level}, {shape:?}, spread {spread}: relative RMS {error:e}, allowed {bound:e}"
        );
        check_halves(level, shape, [q, k, v], &expected, spread);
    }
}

/// Products of bf16 at any level, also those that `attention_at` takes f32 for.
fn check_halves(
    level: Level,
    shape: AttentionShape,
    rows: [StridedRows<'_>; 3],
    expected: &[f64],
    spread: f32,
) {
    let run = |level| {
        let mut out = vec![f32::NAN; expected.len()];
        attention_of::<Bf16>(level, &shape, rows, &mut out);
        out
    };
    // A number is off by at most 2⁻⁹ of itself. A score of size s is a sum over d products of random signs, off by √2 of that, and
    // its weight by as much, relatively; a value's and a weight's own rounding, and two products' sums, are a few times 2⁻⁹.
    let d = shape.head_width as f32;
    let bound = 2.0_f64.powi(-9) * (4.0 + 2.0 * f64::from(spread * d.sqrt()));
    let found = run(level);
    let error = relative_rms(&found, expected);
    assert!(
        error <= bound,
        "{level}, bf16, {shape:?}, spread {spread}: relative RMS {error:e}, allowed {bound:e}"
    );
    // The same roundings at every level; sums in another order may turn one of weights that lie between two bf16, and with it 2⁻⁸ of it.
    let plain: Vec<f64> = run(Level::Scalar).iter().map(|&x| f64::from(x)).collect();
    let error = relative_rms(&found, &plain);
    let bound = 2.0_f64.powi(-9) * (1.0 + f64::from(spread)).min(4.0);
    assert!(
        error <= bound,
        "{level}, bf16, {shape:?}, spread {spread}: {error:e} from the plain version, allowed {bound:e}"
    );
}

#[test]
fn every_level_agrees_with_f64() {
    let shape = AttentionShape {
        batch: 2,
        heads: 2,
        head_width: 8,
        queries: 33,
        keys: 77,
        causal: false,
    };
    // Every tail of queries (48 and 24 in a block), keys (8, 4 and 128) and head (8 and 4).
    for queries in (1..50).chain([95, 96, 97, 145]) {
        check(AttentionShape { queries, ..shape }, 1.0);
    }
    for keys in (1..20).chain([127, 128, 129, 136, 255, 257, 300]) {
        check(AttentionShape { keys, ..shape }, 1.0);
    }
    for head_width in (1..20).chain([40, 64, 80, 127, 128, 129, 160, 512]) {
        check(
            AttentionShape {
                head_width,
                ..shape
            },
            1.0,
        );
    }
}

#[test]
fn several_tiles_share_a_block_of_keys() {
    for (queries, keys, causal) in [(413, 77, false), (800, 150, false), (413, 413, true)] {
        let shape = AttentionShape {
            batch: 1,
            heads: 16,
            head_width: 8,
            queries,
            keys,
            causal,
        };
        check(shape, 1.0);
    }
}

#[test]
fn causal_hides_the_future() {
    for length in [1, 2, 15, 16, 47, 48, 49, 77, 130, 200] {
        let shape = AttentionShape {
            batch: 2,
            heads: 3,
            head_width: 20,
            queries: length,
            keys: length,
            causal: true,
        };
        check(shape, 1.0);
    }
}

#[test]
fn peaked_scores_neither_overflow_nor_vanish() {
    let shape = AttentionShape {
        batch: 1,
        heads: 2,
        head_width: 40,
        queries: 50,
        keys: 300,
        causal: false,
    };
    for spread in [0.0, 1e-6, 10.0, 300.0] {
        check(shape, spread);
    }
}

#[test]
fn strided_rows_give_what_dense_rows_give() {
    let shape = AttentionShape {
        batch: 2,
        heads: 3,
        head_width: 10,
        queries: 21,
        keys: 21,
        causal: false,
    };
    let width = shape.width();
    let mixed = Rng::seeded(3).f32s(2 * 21 * 3 * width);
    let third = |part: usize| -> Vec<f32> {
        mixed
            .chunks_exact(width)
            .skip(part)
            .step_by(3)
            .flatten()
            .copied()
            .collect()
    };
    let (q, k, v) = (third(0), third(1), third(2));
    for level in Level::available() {
        let (mut dense, mut strided) = (vec![0.0; q.len()], vec![0.0; q.len()]);
        let [q, k, v] = [&q, &k, &v].map(|data| StridedRows::dense(data, width));
        attention_at(level, &shape, Precision::F32, q, k, v, &mut dense);
        let [q, k, v] = [0, 1, 2].map(|part| StridedRows {
            data: &mixed[part * width..],
            stride: 3 * width,
        });
        attention_at(level, &shape, Precision::F32, q, k, v, &mut strided);
        assert_eq!(dense, strided, "{level}");
    }
}

#[test]
fn thread_count_and_neighbours_change_no_bit() {
    let shape = AttentionShape {
        batch: 2,
        heads: 4,
        head_width: 24,
        queries: 150,
        keys: 140,
        causal: false,
    };
    let width = shape.width();
    let mut rng = Rng::seeded(5);
    let (q, k, v) = (
        rng.f32s(300 * width),
        rng.f32s(280 * width),
        rng.f32s(280 * width),
    );
    let run = |shape: &AttentionShape, q: &[f32]| {
        let [q, k, v] = [q, &k, &v].map(|data| StridedRows::dense(data, width));
        let mut out = vec![0.0; shape.batch * shape.queries * width];
        attention(shape, Precision::F32, q, k, v, &mut out);
        out
    };
    let one = with_threads(1, || run(&shape, &q));
    assert_eq!(one, with_threads(3, || run(&shape, &q)));
    let first = AttentionShape {
        batch: 1,
        queries: 7,
        ..shape
    };
    assert_eq!(one[..7 * width], run(&first, &q[..7 * width]));
}

#[test]
fn not_a_number_stays_visible() {
    let shape = AttentionShape {
        batch: 1,
        heads: 1,
        head_width: 4,
        queries: 2,
        keys: 20,
        causal: false,
    };
    let (mut q, k, v) = ([1.0; 8], [1.0; 80], [1.0; 80]);
    q[5] = f32::NAN;
    for level in Level::available() {
        let mut out = [0.0; 8];
        let [q, k, v] = [&q[..], &k, &v].map(|data| StridedRows::dense(data, 4));
        attention_at(level, &shape, Precision::F32, q, k, v, &mut out);
        assert!(
            out[..4].iter().all(|x| (x - 1.0).abs() < 1e-6),
            "{level}: {out:?}"
        );
        assert!(out[4..].iter().all(|x| x.is_nan()), "{level}: {out:?}");
        attention_of::<Bf16>(level, &shape, [q, k, v], &mut out);
        assert!(
            out[..4].iter().all(|x| (x - 1.0).abs() < 1e-6),
            "{level}: {out:?}"
        );
        assert!(out[4..].iter().all(|x| x.is_nan()), "{level}: {out:?}");
    }
}

/// exp2 over its whole range, in ulps of the true value.
#[test]
fn exp2_is_within_2_ulp() {
    struct Exp2<'a>(&'a mut [f32]);
    impl Task for Exp2<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for x in self.0.chunks_mut(S::LANES) {
                simd.store_partial(F32::exp2(simd, simd.load_partial(x)), x);
            }
        }
    }
    let xs: Vec<f32> = (0..=1_259_999).map(|i| -(i as f32) * 1e-4).collect();
    for level in Level::available() {
        let mut ys = xs.clone();
        arch::run(level, Exp2(&mut ys));
        for (x, y) in xs.iter().zip(&ys) {
            let exact = f64::from(*x).exp2();
            let ulp = f64::from(f32::EPSILON) * exact.log2().floor().exp2();
            let error = (f64::from(*y) - exact).abs() / ulp;
            assert!(error <= 2.0, "{level}: 2^{x} = {y:e}, {error} ulp off");
        }
        let mut edges = [-126.0, -1e30, f32::NEG_INFINITY, 0.0, f32::NAN];
        arch::run(level, Exp2(&mut edges));
        assert_eq!(
            edges[..4],
            [f32::MIN_POSITIVE, f32::MIN_POSITIVE, f32::MIN_POSITIVE, 1.0]
        );
        assert!(edges[4].is_nan());
    }
}
