//! Places: whether tensors tile the data, fit their shapes, and are aligned.

use super::walk::{Seen, SeenTensor};
use super::{Findings, Rule, quoted};
use crate::dtype::Dtype;
use crate::error::{EntryField, FormatError};
use crate::header::{LENGTH_BYTES, bit_count};

/// Checks all tensors whose place is known, as the parser does with those that are not overruled by
/// a later one of the same name.
pub(super) fn check(
    seen: &Seen,
    text: &[u8],
    data_start: u64,
    file_bytes: u64,
    findings: &mut Findings,
) {
    let mut placed: Vec<(&SeenTensor, (u64, u64))> = seen
        .tensors
        .iter()
        .filter(|tensor| !tensor.overruled)
        .filter_map(|tensor| Some((tensor, tensor.offsets?)))
        .collect();
    let out_of_order = placed.windows(2).find(|pair| pair[0].1 > pair[1].1);
    if let Some(pair) = out_of_order {
        let (tensor, (starts_at, _)) = pair[1];
        let what = format!(
            "{} starts at byte {starts_at} of the data, before the tensor that stands in front of it",
            quoted(&tensor.label)
        );
        findings.note(
            Rule::OutOfOrder,
            tensor.at_byte,
            Some(&tensor.label),
            None,
            what,
        );
    }
    placed.sort_by_key(|(_, offsets)| *offsets);
    let mut end = 0;
    for (tensor, (starts_at, ends_at)) in &placed {
        let (starts_at, ends_at) = (*starts_at, *ends_at);
        let mut complain = |error| {
            let (at_byte, field) = match &error {
                FormatError::SizeOverflow { shape, .. } => {
                    (overflow_at(tensor, shape, text), EntryField::Shape)
                }
                _ => (tensor.offsets_at, EntryField::DataOffsets),
            };
            findings.error(&error, at_byte, Some(&tensor.label), Some(field))
        };
        let name = || tensor.label.clone();
        if starts_at != end {
            complain(FormatError::NotContiguous {
                tensor: name(),
                starts_at,
                expected_at: end,
            });
        }
        if ends_at < starts_at {
            complain(FormatError::EndsBeforeStart {
                tensor: name(),
                starts_at,
                ends_at,
            });
        } else if let Some(error) = wrong_size(tensor, ends_at - starts_at) {
            complain(error);
        }
        alignment(tensor, starts_at, data_start, findings);
        end = end.max(ends_at);
    }
    if !seen.lost {
        file_size(&placed, end, data_start, file_bytes, findings);
    }
}

/// Where the number of a shape stands that makes the size overflow; `text` is the header behind its length.
fn overflow_at(tensor: &SeenTensor, shape: &[u64], text: &[u8]) -> u64 {
    let fits = |count: &usize| {
        let dims = shape[..=*count].iter();
        dims.clone()
            .try_fold(1u64, |product, &dim| product.checked_mul(dim))
            .is_some()
    };
    let last = shape.len().saturating_sub(1);
    let position = (0..last).take_while(fits).count();
    let start = (tensor.shape_at - LENGTH_BYTES) as usize;
    let opens = |byte: &u8| matches!(byte, b'[' | b',');
    let bytes = text.iter().enumerate().skip(start);
    let mut numbers = bytes.filter(|(_, byte)| opens(byte)).map(|(at, _)| at + 1);
    let Some(behind) = numbers.nth(position) else {
        return tensor.shape_at;
    };
    let spaces = text[behind..]
        .iter()
        .take_while(|byte| byte.is_ascii_whitespace());
    LENGTH_BYTES + (behind + spaces.count()) as u64
}

fn wrong_size(tensor: &SeenTensor, offset_bytes: u64) -> Option<FormatError> {
    let (name, dtype) = (tensor.label.clone(), tensor.dtype?);
    let shape = tensor.shape.as_ref()?.clone();
    match bit_count(dtype, &shape) {
        None => Some(FormatError::SizeOverflow {
            tensor: name,
            dtype,
            shape,
        }),
        Some(bits) if !bits.is_multiple_of(8) => Some(FormatError::NotWholeBytes {
            tensor: name,
            dtype,
            bits,
        }),
        Some(bits) if bits / 8 != offset_bytes => Some(FormatError::WrongSize {
            tensor: name,
            dtype,
            shape,
            shape_bytes: bits / 8,
            offset_bytes,
        }),
        Some(_) => None,
    }
}

fn alignment(tensor: &SeenTensor, starts_at: u64, data_start: u64, findings: &mut Findings) {
    let unit = tensor.dtype.map_or(1, element_bytes);
    let file_at = data_start.saturating_add(starts_at);
    if !file_at.is_multiple_of(unit) {
        let what = format!(
            "{} starts at byte {file_at} of the file, no multiple of its element's {unit} bytes",
            quoted(&tensor.label)
        );
        let field = Some("data_offsets");
        findings.note(
            Rule::MisalignedTensor,
            tensor.offsets_at,
            Some(&tensor.label),
            field,
            what,
        );
    }
}

fn element_bytes(dtype: Dtype) -> u64 {
    match dtype {
        Dtype::C64 => 4, // two floats of 4 bytes
        _ => dtype.bits().div_ceil(8),
    }
}

fn file_size(
    placed: &[(&SeenTensor, (u64, u64))],
    end: u64,
    data_start: u64,
    file_bytes: u64,
    findings: &mut Findings,
) {
    let there = file_bytes - data_start; // the header lies within the file
    let expected_bytes = data_start.saturating_add(end);
    if end > there {
        let intact_count = placed
            .iter()
            .filter(|(_, (_, ends_at))| *ends_at <= there)
            .count();
        let error = FormatError::FileTooShort {
            expected_bytes,
            file_bytes,
            intact_count,
            tensor_count: placed.len(),
        };
        let cut = placed.iter().find(|(_, (_, ends_at))| *ends_at > there);
        let label = cut.map(|(tensor, _)| tensor.label.as_str());
        let first = label.map_or(String::new(), |label| {
            format!("; the first that is cut is {}", quoted(label))
        });
        let what = format!("{error}{first}");
        findings.note(Rule::FileTooShort, file_bytes, label, None, what);
    } else if end < there {
        let error = FormatError::FileTooLong {
            expected_bytes,
            file_bytes,
        };
        findings.error(&error, expected_bytes, None, None);
    }
}
