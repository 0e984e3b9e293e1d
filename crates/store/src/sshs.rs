//! The hashes that kohya's training scripts write into metadata (`sshs_model_hash`, `sshs_legacy_hash`).
//!
//! They are not of the file as it is: the scripts serialize the tensors anew, in the order of the `safetensors` package and with
//! the metadata of training alone, so that edits of other metadata change nothing, and hash that.
//!
//! Source: kohya-ss/sd-scripts, `library/train_util.py`, `precalculate_safetensors_hashes` and the functions it calls.

use std::ops::Range;

use safelight_format::{Header, HeaderPlan, PlanOptions, TensorSpec};

use crate::hash::{AUTOV1_BYTES, AUTOV1_START};

/// Which metadata are of training.
const TRAINING: &str = "ss_";

/// The file that the scripts would hash, in terms of the one that is there.
#[derive(Clone, Debug)]
pub(crate) struct Anew {
    /// What stands where in the file that is there, in the order of the new one.
    tensors: Vec<Range<u64>>,
    /// The length prefix and header of the new one.
    prefix: Vec<u8>,
    /// How many keys its metadata have: the scripts write them in any order.
    key_count: usize,
}

/// A part of the file, and where its bytes stand in what is hashed.
#[derive(Clone, Debug)]
struct Part {
    from: Range<u64>,
    at: usize,
}

/// Bytes that are hashed, collected while the file goes by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    parts: Vec<Part>,
    pub(crate) bytes: Vec<u8>,
}

impl Anew {
    /// `None` for what the scripts can't write: tensors of unknown dtypes.
    pub(crate) fn of(header: &Header) -> Option<Anew> {
        if header.opaque_tensors().len() > 0 {
            return None;
        }
        let specs: Vec<TensorSpec> = header.tensors().iter().map(|t| t.to_spec()).collect();
        let mut metadata = header.metadata().cloned().unwrap_or_default();
        metadata.retain(|key, _| key.starts_with(TRAINING));
        let plan = HeaderPlan::from_specs(&specs, Some(&metadata), &PlanOptions::default()).ok()?;
        let places: Vec<(u64, u64)> = header.tensors().iter().map(|t| t.data_offsets).collect();
        let start = header.data_start();
        let in_file = |&position: &usize| {
            let (from, to) = places[position];
            start + from..start + to
        };
        Some(Anew {
            tensors: plan.order().iter().map(in_file).collect(),
            prefix: plan.prefix().to_vec(),
            key_count: metadata.len(),
        })
    }

    /// Whether the tensors of the file that is there have the same order.
    pub(crate) fn is_same_order(&self) -> bool {
        self.tensors
            .is_sorted_by_key(|range| (range.start, range.end))
    }

    /// The tensors' places in the file that is there.
    pub(crate) fn tensors(&self) -> &[Range<u64>] {
        &self.tensors
    }

    /// What `sshs_legacy_hash` is of; `None` if nobody can know, because metadata lie there whose order is not fixed.
    pub(crate) fn window(&self) -> Option<Window> {
        let wanted = AUTOV1_START..AUTOV1_START + AUTOV1_BYTES;
        let mut at = self.prefix.len() as u64;
        let mut window = Window::default();
        if wanted.start < at {
            if self.key_count > 1 {
                return None;
            }
            let head = &self.prefix[wanted.start as usize..at.min(wanted.end) as usize];
            window.bytes.extend_from_slice(head);
        }
        for tensor in &self.tensors {
            let next = at + (tensor.end - tensor.start);
            let (from, to) = (wanted.start.max(at), wanted.end.min(next));
            if from < to {
                let (skip, byte_count) = (from - at, to - from);
                let from = tensor.start + skip..tensor.start + skip + byte_count;
                window.parts.push(Part {
                    from,
                    at: window.bytes.len(),
                });
                window
                    .bytes
                    .resize(window.bytes.len() + byte_count as usize, 0);
            }
            at = next;
        }
        Some(window)
    }
}

impl Window {
    /// Where in the file its parts stand.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.parts.iter().map(|part| part.from.clone())
    }

    /// Takes what it needs of the file's bytes that start at `at`.
    pub(crate) fn take(&mut self, at: u64, bytes: &[u8]) {
        for part in &self.parts {
            let from = part.from.start.max(at);
            let to = part.from.end.min(at + bytes.len() as u64);
            if from < to {
                let target = part.at + (from - part.from.start) as usize;
                let source = &bytes[(from - at) as usize..(to - at) as usize];
                self.bytes[target..target + source.len()].copy_from_slice(source);
            }
        }
    }
}
