//! Floats that start on a cache line, so that no vector of them straddles two.

/// A cache line, in floats.
const LINE: usize = 16;

/// A fixed number of floats, zeros at first, on a 64-byte boundary.
#[derive(Debug)]
pub(crate) struct Aligned {
    /// Never grows, so its floats stay where they are.
    floats: Vec<f32>,
    /// The first on a boundary.
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` zeros. Of a big one the system gives pages as they are first written, by whichever
    /// thread.
    pub(crate) fn zeros(len: usize) -> Self {
        let floats = vec![0.0f32; len + LINE];
        let start = floats.as_ptr().align_offset(LINE * size_of::<f32>());
        assert!(start < LINE, "a float's address is a multiple of 4");
        Aligned { floats, start, len }
    }

    /// The floats.
    #[inline(always)]
    pub(crate) fn as_slice(&self) -> &[f32] {
        &self.floats[self.start..][..self.len]
    }

    /// The floats, to change.
    #[inline(always)]
    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.floats[self.start..][..self.len]
    }
}

impl Clone for Aligned {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.len);
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_on_a_line_and_has_its_length() {
        for len in [0, 1, 15, 16, 17, 160] {
            let mut floats = Aligned::zeros(len);
            assert_eq!(floats.as_slice(), vec![0.0; len]);
            floats.as_mut_slice().fill(1.0);
            for floats in [&floats, &floats.clone()] {
                assert_eq!(floats.as_slice(), vec![1.0; len]);
                assert_eq!(floats.as_slice().as_ptr() as usize % 64, 0);
            }
        }
    }
}
