//! Rates of the operations of Stable Diffusion, the products beside the machine's limit for numbers of
//! their precision: GFLOP/s of the
//! fastest and the median run, and by the CPU's own clock (one thread's), which other programs do
//! not disturb. In brackets the share of the limit.
//!
//! `cargo bench -p safelight-kernels -- [WORD…]`: each line must contain every word.
//! `SAFELIGHT_BENCH_MS` is how long each line is measured (400).

mod ops;

use std::time::{Duration, Instant};

use safelight_kernels::conv::conv2d_at;
use safelight_kernels::gemm::linear_at;
use safelight_kernels::testing::{Rng, peak_flops};
use safelight_kernels::{
    Activation, Algorithm, ConvShape, Epilogue, Extent, Level, PackedConv, PackedLinear, Padding,
    Precision,
};

/// (rows, in, out) of linear layers.
const LINEAR: &[(usize, usize, usize)] = &[
    (4096, 320, 320),
    (4096, 320, 2560),
    (4096, 1280, 320),
    (1024, 640, 640),
    (1024, 640, 5120),
    (1024, 2560, 640),
    (256, 1280, 1280),
    (256, 1280, 10240),
    (256, 5120, 1280),
    (77, 768, 320),
    (77, 768, 3072),
    (1, 1280, 1280),
    (4096, 64, 64),
    (4096, 32, 256),
];

/// (height, width, in, out, kernel, stride) of convolutions.
const CONV: &[(usize, usize, usize, usize, usize, usize)] = &[
    (64, 64, 320, 320, 3, 1),
    (32, 32, 640, 640, 3, 1),
    (16, 16, 1280, 1280, 3, 1),
    (8, 8, 1280, 1280, 3, 1),
    (16, 16, 2560, 1280, 3, 1),
    (32, 32, 1920, 640, 3, 1),
    (64, 64, 960, 320, 3, 1),
    (64, 64, 320, 320, 3, 2),
    (64, 64, 4, 320, 3, 1),
    (64, 64, 320, 4, 3, 1),
    (64, 64, 512, 512, 3, 1),
    (128, 128, 512, 512, 3, 1),
    (256, 256, 256, 256, 3, 1),
    (512, 512, 128, 128, 3, 1),
    (512, 512, 128, 3, 3, 1),
    (64, 64, 32, 32, 3, 1),
    (64, 64, 16, 32, 3, 1),
    (256, 256, 16, 16, 3, 1),
];

/// How a convolution can be computed, and what stands in a line's name for it.
const ALGORITHMS: [(Algorithm, &str); 3] = [
    (Algorithm::Direct, ""),
    (Algorithm::Winograd2, "/winograd2"),
    (Algorithm::Winograd4, "/winograd4"),
];

fn main() {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let threads = rayon::current_num_threads();
    let milliseconds = std::env::var("SAFELIGHT_BENCH_MS")
        .ok()
        .and_then(|value| value.parse().ok());
    let bench = Bench {
        words,
        threads,
        time: Duration::from_millis(milliseconds.unwrap_or(400)),
    };
    bench.pack();
    for level in Level::available() {
        for precision in Precision::ALL {
            let peak = peak_flops(level, precision) / 1e9;
            println!("peak/{precision}/{level}: {peak:.1} GFLOP/s a thread, {threads} threads");
            for &shape in LINEAR {
                bench.linear((level, precision), peak, shape);
            }
            for &shape in CONV {
                for algorithm in ALGORITHMS {
                    bench.conv((level, precision), peak, shape, algorithm);
                }
            }
            if precision != Precision::Int8 {
                ops::run_attention(&bench, (level, precision), peak);
            }
            if precision == Precision::F32 {
                ops::run(&bench, level);
            }
        }
    }
}

struct Bench {
    words: Vec<String>,
    threads: usize,
    time: Duration,
}

impl Bench {
    /// Packing, which a model's load waits for, in millions of weights a second of a CPU.
    fn pack(&self) {
        if !self.words.iter().all(|word| "pack".contains(word.as_str())) {
            return;
        }
        let shape = ConvShape {
            out_channels: 1280,
            in_channels: 1280,
            kernel_height: 3,
            kernel_width: 3,
            stride: 1,
            padding: Padding::all(1),
        };
        let weight = Rng::seeded(1).f32s(1280 * 1280 * 9);
        let rate = |work: &dyn Fn()| {
            let cpu_before = cpu_seconds();
            (0..5).for_each(|_| work());
            (5 * weight.len()) as f64 / (cpu_seconds() - cpu_before) / 1e6
        };
        for precision in Precision::ALL {
            let conv = rate(&|| drop(PackedConv::with_precision(&weight, shape, precision)));
            let linear = rate(&|| {
                drop(PackedLinear::with_precision(
                    &weight, 11520, 1280, precision,
                ));
            });
            println!(
                "pack/{precision}: conv {conv:.0} million weights a second of one CPU, linear {linear:.0}"
            );
        }
    }

    fn linear(
        &self,
        (level, precision): (Level, Precision),
        peak: f64,
        (rows, inside, out): (usize, usize, usize),
    ) {
        let name = format!("linear/{rows}x{inside}x{out}/{precision}/{level}");
        let flops = (2 * rows * inside * out) as f64;
        self.line(&name, flops, peak, || {
            let mut rng = Rng::seeded(1);
            let x = rng.f32s(rows * inside);
            let weights =
                PackedLinear::with_precision(&rng.f32s(inside * out), out, inside, precision);
            let bias = rng.f32s(out);
            let mut y = vec![0.0; rows * out];
            move || {
                let epilogue = Epilogue {
                    bias: Some(&bias),
                    ..Epilogue::default()
                };
                linear_at(level, &x, &weights, &epilogue, &mut y);
            }
        });
    }

    fn conv(
        &self,
        (level, precision): (Level, Precision),
        peak: f64,
        (height, width, inside, out, kernel, stride): (usize, usize, usize, usize, usize, usize),
        (algorithm, way): (Algorithm, &str),
    ) {
        let tiles = (kernel, stride) == (3, 1) && precision != Precision::Int8;
        if !tiles && algorithm != Algorithm::Direct {
            return;
        }
        let size = format!("{height}x{width}x{inside}x{out}k{kernel}s{stride}");
        let name = format!("conv/{size}/{precision}{way}/{level}");
        let pixels = height.div_ceil(stride) * width.div_ceil(stride);
        let flops = (2 * pixels * inside * out * kernel * kernel) as f64;
        self.line(&name, flops, peak, || {
            let shape = ConvShape {
                out_channels: out,
                in_channels: inside,
                kernel_height: kernel,
                kernel_width: kernel,
                stride,
                padding: Padding::all(kernel / 2),
            };
            let extent = Extent {
                batch: 1,
                height,
                width,
            };
            let mut rng = Rng::seeded(1);
            let x = rng.f32s(extent.pixels() * inside);
            let weight = rng.f32s(out * inside * kernel * kernel);
            let weights = PackedConv::with(&weight, shape, precision, algorithm);
            let bias = rng.f32s(out);
            let mut y = vec![0.0; weights.output(extent).pixels() * out];
            move || {
                let epilogue = Epilogue {
                    bias: Some(&bias),
                    activation: Activation::None,
                    ..Epilogue::default()
                };
                conv2d_at(
                    level,
                    &x,
                    extent,
                    (height, width),
                    &weights,
                    &epilogue,
                    &mut y,
                );
            }
        });
    }

    /// Measures and prints one line, if it is asked for.
    fn line<W: FnMut()>(&self, name: &str, flops: f64, peak: f64, prepare: impl FnOnce() -> W) {
        let Some(time) = self.measure(name, prepare) else {
            return;
        };
        let rate = |seconds: f64| flops / seconds / 1e9;
        println!(
            "{name:42} {:9.3} ms  best {:6.1} ({:3.0} %)  median {:6.1}  cpu {:6.1} ({:3.0} %)",
            time.best * 1e3,
            rate(time.best),
            rate(time.best) / (peak * self.threads as f64) * 100.0,
            rate(time.median),
            rate(time.cpu),
            rate(time.cpu) / peak * 100.0,
        );
    }

    /// The same for an operation that reads and writes `floats` in all and computes little: GB/s.
    fn memory<W: FnMut()>(&self, name: &str, floats: usize, prepare: impl FnOnce() -> W) {
        let Some(time) = self.measure(name, prepare) else {
            return;
        };
        let rate = |seconds: f64| (4 * floats) as f64 / seconds / 1e9;
        println!(
            "{name:42} {:9.3} ms  best {:6.1} GB/s   median {:6.1}  cpu {:6.1}",
            time.best * 1e3,
            rate(time.best),
            rate(time.median),
            rate(time.cpu),
        );
    }

    /// Runs the work for as long as a line may take, or not at all if it is not asked for.
    fn measure<W: FnMut()>(&self, name: &str, prepare: impl FnOnce() -> W) -> Option<Seconds> {
        if !self.words.iter().all(|word| name.contains(word.as_str())) {
            return None;
        }
        let mut work = prepare();
        work();
        let mut seconds = Vec::new();
        let cpu_before = cpu_seconds();
        let begin = Instant::now();
        while seconds.len() < 3 || begin.elapsed() < self.time {
            let start = Instant::now();
            work();
            seconds.push(start.elapsed().as_secs_f64());
        }
        let cpu = (cpu_seconds() - cpu_before) / seconds.len() as f64;
        seconds.sort_by(f64::total_cmp);
        Some(Seconds {
            best: seconds[0],
            median: seconds[seconds.len() / 2],
            cpu,
        })
    }
}

/// How long one run takes: by the clock, and of all threads' CPU time.
struct Seconds {
    best: f64,
    median: f64,
    cpu: f64,
}

/// Seconds that this process's threads have spent on a CPU, where Linux tells: a rate per such
/// second is one thread's, and does not fall when other programs take their turns.
fn cpu_seconds() -> f64 {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return f64::NAN;
    };
    let nanoseconds = threads.flatten().filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e9
}
