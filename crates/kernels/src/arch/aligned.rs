//! Floats that start on a cache line, so that no vector of them straddles two.

/// A fixed number of floats, zeros at first, on a 64-byte boundary.
#[derive(Clone, Debug)]
pub(crate) struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl Aligned {
    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        Aligned {
            lines: vec![Line([0.0; 16]); len.div_ceil(16)],
            len,
        }
    }

    /// The floats.
    #[inline(always)]
    pub(crate) fn as_slice(&self) -> &[f32] {
        // SAFETY: `Line` is 16 floats without padding, and there are lines for `len` floats.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    /// The floats, to change.
    #[inline(always)]
    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as in `as_slice`, and `&mut self` makes them ours alone.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::PANEL;

    #[test]
    fn starts_on_a_line_and_has_its_length() {
        for len in [0, 1, 15, 16, 17, 5 * PANEL] {
            let mut floats = Aligned::zeros(len);
            assert_eq!(floats.as_slice(), vec![0.0; len]);
            assert_eq!(floats.as_slice().as_ptr() as usize % 64, 0);
            floats.as_mut_slice().fill(1.0);
            assert_eq!(floats.clone().as_slice(), vec![1.0; len]);
        }
    }
}
