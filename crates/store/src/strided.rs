//! Tensors whose elements do not lie next to each other: packed before they are written.

use safelight_format::{Dtype, TensorSpec, TensorView};

use crate::error::StoreError;

/// A tensor in memory with a step for each dimension, as numpy and torch have them: transposed,
/// sliced, reversed (negative steps), broadcast (steps of 0).
///
/// ```
/// use safelight_format::Dtype;
/// use safelight_store::StridedView;
///
/// // [[1, 2, 3], [4, 5, 6]], transposed.
/// let bytes = [1, 2, 3, 4, 5, 6];
/// let transposed = StridedView { name: "t", dtype: Dtype::U8, shape: &[3, 2], strides: &[1, 3], offset: 0, bytes: &bytes };
/// assert_eq!(transposed.pack()?, [1, 4, 2, 5, 3, 6]);
/// # Ok::<(), safelight_store::StoreError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct StridedView<'a> {
    /// Its name.
    pub name: &'a str,
    /// What one element is. Elements of 4 and 6 bits have no addresses: they must lie next to each other.
    pub dtype: Dtype,
    /// Its dimensions, outermost first.
    pub shape: &'a [u64],
    /// For each dimension, how many elements (not bytes) lie between an element and its next.
    pub strides: &'a [i64],
    /// The element of `bytes` that has only zeros as indices.
    pub offset: u64,
    /// The memory it is a view of, little-endian.
    pub bytes: &'a [u8],
}

impl StridedView<'_> {
    /// Its elements next to each other, in row-major order: what a file holds.
    ///
    /// # Errors
    /// [`StoreError::BadStrides`] if shape and strides do not fit each other or reach beyond the
    /// memory.
    pub fn pack(&self) -> Result<Vec<u8>, StoreError> {
        let element_bytes = self.check()?;
        let spec = self.spec();
        let byte_count = spec
            .byte_count()
            .and_then(|count| usize::try_from(count).ok());
        let mut packed = Vec::new();
        let room = byte_count.filter(|&count| packed.try_reserve_exact(count).is_ok());
        let Some(byte_count) = room else {
            return Err(StoreError::OutOfMemory {
                file: "the packed copy".to_owned(),
                what: format!("tensor `{}`", self.name),
                byte_count: spec.byte_count().unwrap_or(u64::MAX),
            });
        };
        if byte_count > 0 {
            let start = self.offset as usize * element_bytes;
            self.gather(0, start, element_bytes, &mut packed);
        }
        assert_eq!(packed.len(), byte_count);
        Ok(packed)
    }

    /// Name, dtype and shape alone.
    pub fn spec(&self) -> TensorSpec {
        TensorSpec {
            name: self.name.to_owned(),
            dtype: self.dtype,
            shape: self.shape.to_vec(),
        }
    }

    /// The view without a copy, if its elements lie next to each other already.
    pub fn contiguous(&self) -> Option<TensorView<'_>> {
        let element_bytes = self.check().ok()?;
        let mut bytes = &[][..];
        if !self.shape.contains(&0) {
            let mut step = 1i64;
            for (&dim, &stride) in self.shape.iter().zip(self.strides).rev() {
                if dim > 1 && stride != step {
                    return None;
                }
                step = step.checked_mul(i64::try_from(dim).ok()?)?;
            }
            let byte_count = usize::try_from(self.spec().byte_count()?).ok()?;
            let start = usize::try_from(self.offset).ok()? * element_bytes;
            bytes = self.bytes.get(start..start + byte_count)?; // `check` has seen that it is there
        }
        Some(TensorView {
            name: self.name,
            dtype: self.dtype,
            shape: self.shape,
            bytes,
        })
    }

    /// Whether every element lies in the memory; the size of one.
    fn check(&self) -> Result<usize, StoreError> {
        let bad = |problem: String| StoreError::BadStrides {
            tensor: self.name.to_owned(),
            problem,
        };
        let (rank, stride_count) = (self.shape.len(), self.strides.len());
        if rank != stride_count {
            return Err(bad(format!(
                "{rank} dimensions have {stride_count} strides"
            )));
        }
        let bits = self.dtype.bits();
        if !bits.is_multiple_of(8) {
            return Err(bad(format!("elements of {} have no addresses", self.dtype)));
        }
        let element_bytes = (bits / 8) as usize;
        if self.shape.contains(&0) {
            return Ok(element_bytes);
        }
        // In 128 bits nothing overflows before it is found to be too far away.
        let (mut first, mut last) = (i128::from(self.offset), i128::from(self.offset));
        for (&dim, &stride) in self.shape.iter().zip(self.strides) {
            let reach = i128::from(dim - 1).saturating_mul(i128::from(stride));
            let end = if reach < 0 { &mut first } else { &mut last };
            *end = end.saturating_add(reach);
        }
        let there = (self.bytes.len() / element_bytes) as i128;
        if first < 0 || last >= there {
            return Err(bad(format!(
                "elements {first} to {last} are used, the memory has {there}"
            )));
        }
        Ok(element_bytes)
    }

    /// Appends the elements of dimension `axis` and those within; `at` is the byte of the first.
    fn gather(&self, axis: usize, at: usize, element_bytes: usize, out: &mut Vec<u8>) {
        let (Some(&dim), Some(&stride)) = (self.shape.get(axis), self.strides.get(axis)) else {
            return out.extend_from_slice(&self.bytes[at..at + element_bytes]);
        };
        let innermost = axis + 1 == self.shape.len();
        if innermost && stride == 1 {
            return out.extend_from_slice(&self.bytes[at..at + dim as usize * element_bytes]);
        }
        let step = stride as isize * element_bytes as isize;
        for index in 0..dim as isize {
            let at = at.wrapping_add_signed(index * step); // `check` has seen that it stays inside
            self.gather(axis + 1, at, element_bytes, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view<'a>(
        shape: &'a [u64],
        strides: &'a [i64],
        offset: u64,
        bytes: &'a [u8],
    ) -> StridedView<'a> {
        let (name, dtype) = ("t", Dtype::U8);
        StridedView {
            name,
            dtype,
            shape,
            strides,
            offset,
            bytes,
        }
    }

    #[test]
    fn packed() {
        let bytes: Vec<u8> = (0..24).collect();
        let check = |shape: &[u64], strides: &[i64], offset, expected: &[u8]| {
            let view = view(shape, strides, offset, &bytes);
            assert_eq!(view.pack().unwrap(), expected, "{shape:?} {strides:?}");
        };
        check(&[], &[], 5, &[5]);
        check(&[3], &[1], 0, &[0, 1, 2]);
        check(&[3], &[-1], 2, &[2, 1, 0]);
        check(&[3], &[0], 7, &[7, 7, 7]);
        check(&[2, 3], &[1, 2], 0, &[0, 2, 4, 1, 3, 5]);
        check(&[2, 2], &[-3, 0], 23, &[23, 23, 20, 20]);
        check(&[2, 2, 2], &[12, -4, 2], 4, &[4, 6, 0, 2, 16, 18, 12, 14]);
        check(&[0, 4], &[99, -99], 1000, &[]);
        check(&[1, 2], &[i64::MAX, 1], 0, &[0, 1]);
    }

    #[test]
    fn wider_elements() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        let view = StridedView {
            dtype: Dtype::U16,
            ..view(&[2, 2], &[1, 2], 0, &bytes)
        };
        assert_eq!(view.pack().unwrap(), [1, 2, 5, 6, 3, 4, 7, 8]);
    }

    #[test]
    fn views_that_need_no_copy() {
        let bytes: Vec<u8> = (0..24).collect();
        let contiguous = |shape: &[u64], strides: &[i64], offset| {
            let view = view(shape, strides, offset, &bytes);
            let there = view.contiguous().map(|view| view.bytes.to_vec());
            if let Some(there) = &there {
                assert_eq!(*there, view.pack().unwrap());
            }
            there.is_some()
        };
        assert!(contiguous(&[2, 3], &[3, 1], 4));
        assert!(contiguous(&[2, 1, 3], &[3, -77, 1], 0));
        assert!(contiguous(&[], &[], 23));
        assert!(contiguous(&[0, 3], &[8, 8], 99));
        assert!(!contiguous(&[3, 2], &[1, 3], 0));
        assert!(!contiguous(&[3], &[-1], 2));
        assert!(!contiguous(&[3], &[0], 0));
        assert!(!contiguous(&[25], &[1], 0));
    }

    #[test]
    fn beyond_the_memory() {
        let bytes = [0; 6];
        let check = |shape: &[u64], strides: &[i64], offset, expected: &str| {
            let error = view(shape, strides, offset, &bytes).pack().unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        check(&[7], &[1], 0, "elements 0 to 6 are used, the memory has 6");
        check(&[6], &[1], 1, "elements 1 to 6 are used");
        check(&[2], &[-1], 0, "elements -1 to 0 are used");
        check(&[], &[], 6, "elements 6 to 6 are used");
        check(&[2, 2], &[1], 0, "2 dimensions have 1 strides");
        check(
            &[u64::MAX, u64::MAX],
            &[i64::MAX, i64::MAX],
            u64::MAX,
            "are used",
        );
        let many = view(&[1 << 40, 1 << 40], &[0, 0], 0, &bytes)
            .pack()
            .unwrap_err();
        assert!(matches!(many, StoreError::OutOfMemory { .. }), "{many}");
        let nibbles = StridedView {
            dtype: Dtype::F4,
            ..view(&[2], &[1], 0, &bytes)
        };
        assert!(
            nibbles
                .pack()
                .unwrap_err()
                .to_string()
                .contains("no addresses")
        );
    }
}
