//! A tensor before it has bytes: what a file will hold, or another format holds.

use crate::dtype::Dtype;
use crate::header::bit_count;

/// Name, dtype and shape of a tensor, without its bytes.
///
/// ```
/// use safelight_format::{Dtype, TensorSpec};
/// let spec = TensorSpec { name: "bias".into(), dtype: Dtype::F16, shape: vec![320] };
/// assert_eq!(spec.byte_count(), Some(640));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name, any text.
    pub name: String,
    /// What one element is.
    pub dtype: Dtype,
    /// Its dimensions, outermost first; empty for a single number.
    pub shape: Vec<u64>,
}

impl TensorSpec {
    /// How many bytes its elements take in a file; `None` if they are no whole number or do not fit into 64 bits.
    pub fn byte_count(&self) -> Option<u64> {
        let bits = bit_count(self.dtype, &self.shape)?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// How many elements it has; `None` if that does not fit into 64 bits.
    pub fn element_count(&self) -> Option<u64> {
        self.shape
            .iter()
            .try_fold(1u64, |count, &dim| count.checked_mul(dim))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let count = |dtype, shape: &[u64]| {
            let (name, shape) = (String::new(), shape.to_vec());
            TensorSpec { name, dtype, shape }.byte_count()
        };
        assert_eq!(count(Dtype::F32, &[]), Some(4));
        assert_eq!(count(Dtype::F4, &[2]), Some(1));
        assert_eq!(count(Dtype::F4, &[3]), None);
        assert_eq!(count(Dtype::F6E2m3, &[2, 2]), Some(3));
        assert_eq!(count(Dtype::U8, &[1 << 61]), None);
        assert_eq!(count(Dtype::U8, &[0, 7]), Some(0));
        assert_eq!(count(Dtype::F64, &[1 << 62, 0]), Some(0)); // as the header's check has it
    }
}
