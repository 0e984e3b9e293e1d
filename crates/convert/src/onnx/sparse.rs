//! Sparse initialisers: numbers and the places of those that are not zero, made dense.
//!
//! Source: onnx/onnx.proto, `SparseTensorProto`.

use crate::error::ConvertError;
use crate::input::Input;
use crate::source::PIECE_BYTES;

use super::Stored;

/// A sparse tensor's parts.
pub(super) struct Sparse {
    pub(super) values: Stored,
    /// INT64: for each value its position among all elements, or, if `by_dimension`, one in each dimension.
    pub(super) places: Stored,
    pub(super) by_dimension: bool,
}

impl Sparse {
    /// Hands the dense tensor of a shape on; an element has `size` bytes.
    pub(super) fn read(
        &self,
        input: &Input,
        name: &str,
        shape: &[u64],
        size: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let values = self.values.all(input, name)?;
        let places = self.places.all(input, name)?;
        let places = places.as_chunks::<8>().0.iter();
        let places: Vec<u64> = places.map(|bytes| u64::from_le_bytes(*bytes)).collect();
        let elements: u64 = shape.iter().product();
        let places = self.linear(input, name, shape, elements, places)?;
        let mut rest = places.into_iter().zip(values.chunks_exact(size)).peekable();
        let per_piece = (PIECE_BYTES / size) as u64;
        let mut piece = vec![0; elements.min(per_piece) as usize * size];
        let mut start = 0;
        while start < elements {
            let count = per_piece.min(elements - start);
            let piece = &mut piece[..count as usize * size];
            piece.fill(0);
            while let Some((place, value)) = rest.next_if(|(place, _)| *place < start + count) {
                piece[(place - start) as usize * size..][..size].copy_from_slice(value);
            }
            out(piece)?;
            start += count;
        }
        Ok(())
    }

    /// Positions among all elements, which must rise.
    fn linear(
        &self,
        input: &Input,
        name: &str,
        shape: &[u64],
        elements: u64,
        places: Vec<u64>,
    ) -> Result<Vec<u64>, ConvertError> {
        let mut linear = places;
        if self.by_dimension {
            let mut found = Vec::new();
            for place in linear.chunks_exact(shape.len().max(1)) {
                if let Some((at, dim)) = place.iter().zip(shape).find(|(at, dim)| at >= dim) {
                    let problem = format!("a value at {at} of a dimension of {dim}");
                    return Err(input.malformed(name, problem));
                }
                let all = place.iter().zip(shape);
                found.push(all.fold(0, |all, (at, dim)| all * dim + at));
            }
            linear = found;
        }
        let beyond = linear.iter().find(|&&place| place >= elements);
        if let Some(&place) = beyond {
            let problem = format!("a value at {} of {elements} elements", place as i64);
            return Err(input.malformed(name, problem));
        }
        if let Some(pair) = linear.windows(2).find(|pair| pair[0] >= pair[1]) {
            let problem = format!(
                "a value at element {} behind one at {}; ONNX has them in order",
                pair[1], pair[0]
            );
            return Err(input.malformed(name, problem));
        }
        Ok(linear)
    }
}
