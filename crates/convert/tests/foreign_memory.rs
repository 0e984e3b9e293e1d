//! Files larger than memory should be: more than 2 GB through each reader and writer, in a process of its own, whose
//! memory is then looked at. `SLOW_TESTS=1` and Linux; says so otherwise.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use safelight_convert::{
    Contents, ConvertError, GgufOptions, GgufWeights, Limits, NpzOptions, Source, WriteOptions,
    open, write_gguf, write_npz, write_safetensors,
};
use safelight_format::{Dtype, TensorSpec};

/// As much as the process may have had in memory.
const PEAK_KB_MAX: u64 = 500_000;

/// Rows of 4096 numbers.
const ROWS: u64 = 33_000;

/// Four tensors of 540 MB, which are nowhere.
struct Made {
    contents: Contents,
}

impl Made {
    fn new() -> Made {
        let spec = |i| TensorSpec {
            name: format!("blk.{i}.weight"),
            dtype: Dtype::F32,
            shape: vec![ROWS, 4096],
        };
        Made {
            contents: Contents {
                label: "made".into(),
                tensors: (0..4).map(spec).collect(),
                ..Contents::default()
            },
        }
    }
}

impl Source for Made {
    fn contents(&self) -> &Contents {
        &self.contents
    }

    fn read(
        &self,
        _: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let row: Vec<u8> = (0..4096)
            .flat_map(|i| (i as f32 / 4096.0 - 0.5).to_le_bytes())
            .collect();
        let rows = row.repeat(250);
        (0..ROWS / 250).try_for_each(|_| out(&rows))
    }
}

fn peak_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Times one step, and looks at the memory so far.
fn step(what: &str, bytes: u64, run: impl FnOnce()) {
    let start = Instant::now();
    run();
    let seconds = start.elapsed().as_secs_f64();
    let (rate, peak) = (bytes as f64 / 1e6 / seconds, peak_kb());
    println!(
        "{what}: {seconds:.1} s, {rate:.0} MB/s of F32, peak {} MB",
        peak / 1000
    );
    assert!(peak < PEAK_KB_MAX, "{what}: {peak} kB");
}

fn to_safetensors(from: &Path, to: &Path) {
    let source = open(from, &Limits::default()).unwrap();
    let mut go_on = |_, _| ControlFlow::Continue(());
    write_safetensors(&*source, to, &WriteOptions::default(), &mut go_on).unwrap();
}

#[test]
fn large_files_take_little_memory() {
    if std::env::var("SLOW_TESTS").as_deref() != Ok("1") || !cfg!(target_os = "linux") {
        println!("skipped: needs 6 GB of disk, Linux and minutes; SLOW_TESTS=1 runs it");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (
        folder.path().join("file"),
        folder.path().join("out.safetensors"),
    );
    let made = Made::new();
    let bytes = 4 * ROWS * 4096 * 4;
    let mut go_on = |_, _| ControlFlow::Continue(());
    step("write npz", bytes, || {
        drop(write_npz(&made, &file, &NpzOptions::default(), &mut go_on).unwrap());
    });
    step("read npz", bytes, || to_safetensors(&file, &out));
    for (name, weights) in [("Q8_0", GgufWeights::Q8_0), ("F16", GgufWeights::F16)] {
        let options = GgufOptions {
            weights,
            ..GgufOptions::default()
        };
        step(&format!("write gguf {name}"), bytes, || {
            drop(write_gguf(&made, &file, &options, &mut go_on).unwrap());
        });
        step(&format!("read gguf {name}"), bytes, || {
            to_safetensors(&file, &out)
        });
    }
    write_fortran(&made, &file);
    step("read npy in Fortran's order", bytes / 4, || {
        to_safetensors(&file, &out)
    });
}

/// One of the arrays, with the first dimension's elements next to each other.
fn write_fortran(made: &Made, path: &Path) {
    let text = format!("{{'descr': '<f4', 'fortran_order': True, 'shape': ({ROWS}, 4096)}}");
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    file.write_all(b"\x93NUMPY\x01\x00").unwrap();
    file.write_all(&(text.len() as u16).to_le_bytes()).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let mut write = |piece: &[u8]| {
        file.write_all(piece).unwrap();
        Ok(())
    };
    made.read(0, &mut write).unwrap();
}
