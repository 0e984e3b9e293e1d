//! A golden case file, and the comparison with what we computed.

use std::collections::BTreeMap;

use serde_json::Value;

use super::golden_dir;

/// One `testdata/golden/<room>/<case>.safetensors`.
pub struct Case {
    /// `<room>/<case>`, for messages.
    pub label: String,
    /// The file's `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>, String)>,
}

impl Case {
    /// Reads a case by `<room>/<case>`.
    pub fn read(label: &str) -> Case {
        let path = golden_dir().join(format!("{label}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
        let data = &bytes[8 + header_bytes..];
        let mut case = Case {
            label: label.to_owned(),
            metadata: BTreeMap::new(),
            tensors: BTreeMap::new(),
        };
        for (name, entry) in header.as_object().unwrap() {
            if name == "__metadata__" {
                let table = entry.as_object().unwrap();
                case.metadata = table
                    .iter()
                    .map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned()))
                    .collect();
                continue;
            }
            let size = |v: &Value| v.as_u64().unwrap() as usize;
            let shape = entry["shape"]
                .as_array()
                .unwrap()
                .iter()
                .map(size)
                .collect();
            let range = size(&entry["data_offsets"][0])..size(&entry["data_offsets"][1]);
            let dtype = entry["dtype"].as_str().unwrap().to_owned();
            case.tensors
                .insert(name.clone(), (shape, data[range].to_vec(), dtype));
        }
        case
    }

    /// Every case of a room, by label, in order of name. Never empty.
    pub fn labels(room: &str) -> Vec<String> {
        let folder = golden_dir().join(room);
        let entries =
            std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut labels: Vec<_> = names
            .filter_map(|name| Some(format!("{room}/{}", name.strip_suffix(".safetensors")?)))
            .collect();
        labels.sort();
        assert!(!labels.is_empty(), "{} holds no case", folder.display());
        labels
    }

    /// A metadata value.
    pub fn text(&self, key: &str) -> &str {
        self.metadata
            .get(key)
            .unwrap_or_else(|| panic!("{}: no metadata `{key}`", self.label))
    }

    /// A metadata value as a number.
    pub fn number(&self, key: &str) -> f64 {
        self.text(key)
            .parse()
            .unwrap_or_else(|e| panic!("{}: `{key}`: {e}", self.label))
    }

    /// A metadata value as JSON.
    pub fn json(&self, key: &str) -> Value {
        serde_json::from_str(self.text(key))
            .unwrap_or_else(|e| panic!("{}: `{key}`: {e}", self.label))
    }

    /// The weights' seed.
    pub fn seed(&self) -> u32 {
        self.text("seed").parse().expect("a seed")
    }

    /// The allowed relative RMS.
    pub fn tolerance(&self) -> f64 {
        self.number("tolerance")
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    fn entry(&self, name: &str, dtype: &str) -> (&[usize], &[u8]) {
        let (shape, bytes, found) = self
            .tensors
            .get(name)
            .unwrap_or_else(|| panic!("{}: no tensor `{name}`", self.label));
        assert_eq!(found, dtype, "{}: dtype of `{name}`", self.label);
        (shape, bytes)
    }

    pub fn shape(&self, name: &str) -> &[usize] {
        &self
            .tensors
            .get(name)
            .unwrap_or_else(|| panic!("{}: no tensor `{name}`", self.label))
            .0
    }

    /// An F32 tensor, in torch's (NCHW) order.
    pub fn f32s(&self, name: &str) -> Vec<f32> {
        let (_, bytes) = self.entry(name, "F32");
        bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    /// An I64 tensor of token ids.
    pub fn ids(&self, name: &str) -> Vec<u32> {
        let (_, bytes) = self.entry(name, "I64");
        bytes
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32)
            .collect()
    }

    /// A U8 tensor (a picture, `[B, H, W, 3]`).
    pub fn bytes(&self, name: &str) -> &[u8] {
        self.entry(name, "U8").1
    }

    /// Compares `found` (all values, NCHW order) with tensor `name`, whole or sampled, within the file's tolerance.
    /// Returns the relative RMS.
    pub fn check(&self, name: &str, found: &[f32]) -> f64 {
        self.check_within(name, found, self.tolerance())
    }

    /// [`Case::check`] with a tolerance of the caller's.
    pub fn check_within(&self, name: &str, found: &[f32], tolerance: f64) -> f64 {
        let error = self.error(name, found);
        assert!(
            error <= tolerance,
            "{}: `{name}` is off by {error:.2e} (relative RMS), allowed {tolerance:.0e}",
            self.label
        );
        error
    }

    /// Relative RMS of `found` against tensor `name`.
    pub fn error(&self, name: &str, found: &[f32]) -> f64 {
        let expected = self.f32s(name);
        assert!(
            found.iter().all(|v| v.is_finite()),
            "{}: `{name}` has a value that is not finite",
            self.label
        );
        let short = name.strip_prefix("out.").unwrap_or(name);
        if !self.metadata.contains_key(&format!("{short}.stride")) {
            return relative_rms(&expected, found, &format!("{}: `{name}`", self.label));
        }
        let stride = self.number(&format!("{short}.stride")) as usize;
        assert_eq!(
            found.len() as f64,
            self.number(&format!("{short}.count")),
            "{}: size of `{name}`",
            self.label
        );
        let sampled: Vec<f32> = found.iter().copied().step_by(stride).collect();
        let sum: f64 = found.iter().map(|&v| f64::from(v)).sum();
        let sum_abs: f64 = found.iter().map(|&v| f64::from(v).abs()).sum();
        // The sums see the values between the samples: one wrong region moves them by more than rounding.
        let (want, want_abs) = (
            self.number(&format!("{short}.sum")),
            self.number(&format!("{short}.sum_abs")),
        );
        let drift = ((sum - want).abs().max((sum_abs - want_abs).abs())) / want_abs;
        relative_rms(&expected, &sampled, &format!("{}: `{name}`", self.label)).max(drift)
    }

    /// Compares a picture (u8) with tensor `name`: no value further off than `allowed`. Returns the share of values that differ.
    pub fn check_picture(&self, name: &str, found: &[u8], allowed: u8) -> f64 {
        let expected = self.bytes(name);
        assert_eq!(
            expected.len(),
            found.len(),
            "{}: size of `{name}`",
            self.label
        );
        let worst = expected
            .iter()
            .zip(found)
            .map(|(a, b)| a.abs_diff(*b))
            .max()
            .unwrap();
        assert!(
            worst <= allowed,
            "{}: `{name}` is off by {worst} of 255, allowed {allowed}",
            self.label
        );
        expected.iter().zip(found).filter(|(a, b)| a != b).count() as f64 / found.len() as f64
    }
}

/// RMS of the difference over RMS of the expected values.
pub fn relative_rms(expected: &[f32], found: &[f32], what: &str) -> f64 {
    assert_eq!(expected.len(), found.len(), "size of {what}");
    let square = |v: f64| v * v;
    let difference: f64 = expected
        .iter()
        .zip(found)
        .map(|(e, f)| square(f64::from(*e) - f64::from(*f)))
        .sum();
    let size: f64 = expected.iter().map(|&e| square(f64::from(e))).sum();
    (difference / size).sqrt()
}
