//! How long headers take to read, here and in the `safetensors` crate, in turns in one process.
//!
//! `cargo bench -p safelight-format -- [WORD…]`: each line must contain every word.
//! `SAFELIGHT_BENCH_MS` is how long each line is measured (2000). Times are medians of this
//! thread's CPU time, which other programs do not stretch (on Linux; elsewhere of the wall clock's).
//! What was read is dropped outside of them, which favours the crate: it has more to drop.

use std::hint::black_box;
use std::time::{Duration, Instant};

use safelight_format::{
    Dtype, Header, HeaderPlan, Limits, Order, PlanOptions, Strictness, TensorSpec,
};
use safetensors::SafeTensors;

fn main() {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let line_ms = std::env::var("SAFELIGHT_BENCH_MS").ok();
    let line_time =
        Duration::from_millis(line_ms.and_then(|text| text.parse().ok()).unwrap_or(2000));
    println!(
        "{:44} {:>10} {:>12} {:>10} {:>8} {:>8}",
        "header", "MB", "safetensors", "ours", "ratio", "GB/s"
    );
    for count in [1_000, 20_000, 232_670] {
        for (order, form) in [
            (Order::HuggingFace, Form::Compact),
            (Order::Insertion, Form::Compact),
            (Order::Insertion, Form::Spaced),
            (Order::Insertion, Form::Shuffled),
        ] {
            let name = format!("{count} tensors/{order:?}/{form:?}");
            if words.iter().all(|word| name.contains(word.as_str())) {
                line(&name, &header(count, order, form), line_time);
            }
        }
    }
}

/// How a header is written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// As the `safetensors` crate does, and everything made with it.
    Compact,
    /// As Python's `json.dumps` does.
    Spaced,
    /// Entries and their data in different orders.
    Shuffled,
}

/// A mixture-of-experts checkpoint: the names and shapes of Hugging Face's largest ones, in
/// tensors of 8 KiB, so that offsets have as many digits as in real files.
fn header(count: usize, order: Order, form: Form) -> Vec<u8> {
    let parts = ["gate_proj", "up_proj", "down_proj"];
    let spec = |i: usize| {
        let (layer, expert, part) = (i / 768, i / 3 % 256, parts[i % 3]);
        let half = i % 2;
        TensorSpec {
            name: format!("model.layers.{layer}.mlp.experts.{expert}.{part}.weight"),
            dtype: [Dtype::Bf16, Dtype::F8E4m3][half],
            shape: vec![64 << half, 64],
        }
    };
    let specs: Vec<TensorSpec> = (0..count).map(spec).collect();
    let options = PlanOptions {
        order,
        ..PlanOptions::default()
    };
    let plan = HeaderPlan::from_specs(&specs, None, &options).expect("these tensors are sound");
    let mut json = std::str::from_utf8(&plan.prefix()[8..])
        .expect("JSON is text")
        .to_owned();
    if form == Form::Spaced {
        json = json.replace(':', ": ").replace(',', ", ");
    }
    if form == Form::Shuffled {
        json = shuffled(&json);
    }
    let mut file = vec![0; 8 + json.len() + plan.data_bytes() as usize];
    file[..8].copy_from_slice(&(json.len() as u64).to_le_bytes());
    file[8..8 + json.len()].copy_from_slice(json.as_bytes());
    file
}

/// The same entries in another order.
fn shuffled(json: &str) -> String {
    let entries = json
        .trim_end()
        .trim_start_matches('{')
        .trim_end_matches("}}");
    let mut entries: Vec<&str> = entries.split("},").collect();
    let mut state = 1u64;
    for position in (1..entries.len()).rev() {
        state ^= state << 13; // Xorshift64 (Marsaglia 2003)
        state ^= state >> 7;
        state ^= state << 17;
        entries.swap(position, (state % (position as u64 + 1)) as usize);
    }
    format!("{{{}}}}}", entries.join("},"))
}

/// What this thread has computed so far.
#[cfg(target_os = "linux")]
fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(not(target_os = "linux"))]
fn now() -> Duration {
    use std::sync::LazyLock;
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// Both parsers on one file, alternating.
fn line(name: &str, file: &[u8], line_time: Duration) {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while ours.len() < 5 || start.elapsed() < line_time {
        // The allocator tidies up after the round before: not in our time.
        drop(black_box(Vec::<u8>::with_capacity(file.len().min(1 << 20))));
        let begin = now();
        let header = Header::parse(
            black_box(file),
            file.len() as u64,
            Strictness::Compat,
            &Limits::default(),
        );
        ours.push(now() - begin);
        let header = header.expect("the file is sound");
        let begin = now();
        let metadata = SafeTensors::read_metadata(black_box(file));
        theirs.push(now() - begin);
        let (_, metadata) = metadata.expect("the file is sound");
        assert_eq!(header.tensors().len(), metadata.tensors().len());
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64()
    };
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    let header_bytes = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as f64;
    println!(
        "{name:44} {:7.2} MB {:9.3} ms {:7.3} ms {:7.1}× {:8.2}",
        header_bytes / 1e6,
        theirs * 1e3,
        ours * 1e3,
        theirs / ours,
        header_bytes / ours / 1e9
    );
}
