//! Runs the real program in an empty folder.
#![allow(dead_code, missing_docs, unreachable_pub)] // Each test file uses its own part of this.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safelight_format::{Dtype, Metadata, TensorView};
use safelight_store::{Checkpoint, SaveOptions, save};

/// A folder to work in, and one outside it for what the program remembers.
pub struct Place {
    work: tempfile::TempDir,
    home: tempfile::TempDir,
}

/// What the program did.
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    pub fn new() -> Place {
        Place {
            work: tempfile::tempdir().unwrap(),
            home: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.work.path().join(relative)
    }

    pub fn write(&self, relative: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A picture of that size, sky above ground.
    pub fn picture(&self, relative: &str, width: u32, height: u32) -> PathBuf {
        let pixel = |x: u32, y: u32| {
            let sky = y * 2 < height;
            image::Rgb(if sky {
                [90, 160 + (x % 32) as u8, 240]
            } else {
                [60, 140, 50 + (y % 16) as u8]
            })
        };
        let path = self.path(relative);
        image::RgbImage::from_fn(width, height, pixel)
            .save(&path)
            .unwrap();
        path
    }

    /// A mask of that size, its right half white.
    pub fn mask(&self, relative: &str, width: u32, height: u32) -> PathBuf {
        let path = self.path(relative);
        let pixel = |x: u32, _| image::Luma([if x * 2 < width { 0 } else { 255 }]);
        image::GrayImage::from_fn(width, height, pixel)
            .save(&path)
            .unwrap();
        path
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_safelight"));
        command.args(arguments).current_dir(self.work.path());
        for name in [
            "SAFELIGHT_MODELS",
            "SAFELIGHT_CPU",
            "XDG_DATA_HOME",
            "XDG_CACHE_HOME",
        ] {
            command.env_remove(name);
        }
        for name in ["HOME", "LOCALAPPDATA", "SAFELIGHT_CACHE"] {
            command.env(name, self.home.path());
        }
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().unwrap())
    }

    /// Every file and folder below the place, sorted.
    pub fn everything(&self) -> Vec<String> {
        fn below(folder: &Path, root: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                found.push(
                    path.strip_prefix(root)
                        .unwrap()
                        .to_string_lossy()
                        .replace('\\', "/"),
                );
                if path.is_dir() {
                    below(&path, root, found);
                }
            }
        }
        let mut found = Vec::new();
        below(self.work.path(), self.work.path(), &mut found);
        found.sort();
        found
    }

    /// Runs what must fail: with this exit code, these words on standard error, and nothing written.
    pub fn refuses(&self, arguments: &[&str], code: i32, words: &[&str]) -> Ran {
        let before = self.everything();
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(code), "{arguments:?}\n{}", ran.stderr);
        for word in words {
            assert!(
                ran.stderr.contains(word),
                "{arguments:?}: no {word:?} in\n{}",
                ran.stderr
            );
        }
        assert!(
            !ran.stderr.contains("panicked"),
            "{arguments:?}\n{}",
            ran.stderr
        );
        assert_eq!(self.everything(), before, "{arguments:?} wrote something");
        ran
    }

    /// Runs what must work.
    pub fn works(&self, arguments: &[&str]) -> Ran {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(0), "{arguments:?}\n{}", ran.stderr);
        ran
    }
}

impl Ran {
    pub fn of(output: Output) -> Ran {
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}:\n{}", self.stdout))
    }
}

/// A tensor of the demo model, to be changed.
pub struct Stored {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

/// Writes the demo model's tensors to a file, each as `change` leaves it, or not at all.
pub fn changed_demo(path: &Path, mut change: impl FnMut(&mut Stored) -> bool) {
    let demo: Checkpoint = safelight_catalog::demo().unwrap();
    let read = |name: &str| demo.read_bytes(name).unwrap();
    let mut tensors: Vec<Stored> = demo
        .tensors()
        .map(|info| Stored {
            name: info.name.to_owned(),
            dtype: info.dtype,
            shape: info.shape.to_vec(),
            bytes: read(info.name),
        })
        .collect();
    tensors.retain_mut(|stored| change(stored));
    let views: Vec<_> = tensors
        .iter()
        .map(|stored| TensorView {
            name: &stored.name,
            dtype: stored.dtype,
            shape: &stored.shape,
            bytes: &stored.bytes,
        })
        .collect();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    save(path, &views, demo.metadata(), &SaveOptions::default()).unwrap();
}

pub fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// A small model with metadata: layers, a number, truth values, NaN.
pub fn model(place: &Place, name: &str) -> PathBuf {
    let tensors: [(&str, Dtype, &[u64], Vec<u8>); 7] = [
        (
            "layers.0.weight",
            Dtype::F32,
            &[4, 6],
            floats((0..24).map(|i| i as f32)),
        ),
        (
            "layers.1.weight",
            Dtype::F32,
            &[4, 6],
            floats((0..24).map(|i| -0.5 * i as f32)),
        ),
        ("layers.10.weight", Dtype::F32, &[4, 6], vec![0; 96]),
        (
            "layers.2.bias",
            Dtype::Bf16,
            &[3],
            vec![0x80, 0x3f, 0, 0x40, 0x40, 0x40],
        ),
        ("mask", Dtype::Bool, &[3], vec![1, 0, 1]),
        ("step", Dtype::I64, &[], 1234i64.to_le_bytes().to_vec()),
        ("empty", Dtype::F16, &[0, 3], vec![]),
    ];
    let metadata: Metadata = [("format", "pt"), ("title", "A house")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let views: Vec<TensorView<'_>> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| TensorView {
            name,
            dtype: *dtype,
            shape,
            bytes,
        })
        .collect();
    let path = place.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    save(&path, &views, Some(&metadata), &SaveOptions::default()).unwrap();
    path
}

/// Length, header and data.
pub fn raw(place: &Place, name: &str, json: &str, data: &[u8]) -> PathBuf {
    let bytes = [&(json.len() as u64).to_le_bytes(), json.as_bytes(), data].concat();
    place.write(name, &bytes)
}

pub fn lines(ran: &Ran) -> Vec<serde_json::Value> {
    let line =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    ran.stdout.lines().map(line).collect()
}
