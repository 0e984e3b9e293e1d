//! The tensor itself: a shape of at most four dimensions over a recycled buffer of floats.

use std::fmt;

use safelight_kernels::Aligned;

use crate::pool;

/// The most dimensions a tensor has.
pub const RANK_MAX: usize = 4;

/// Floats in row-major order under a shape of one to four dimensions; the last is contiguous.
///
/// Activations are `[B, H, W, C]`, which is the same memory as `[B, T, C]` with `T = H·W`. The buffer goes
/// back to a pool when the tensor is dropped.
///
/// ```
/// use safelight_tensor::Tensor;
///
/// let x = Tensor::from_nchw(&[1, 2, 1, 3], &[1., 2., 3., 10., 20., 30.]);
/// assert_eq!(x.shape(), [1, 1, 3, 2]);
/// assert_eq!(x.data(), [1., 10., 2., 20., 3., 30.]);
/// assert_eq!(x.to_nchw(), [1., 2., 3., 10., 20., 30.]);
/// ```
pub struct Tensor {
    dims: [usize; RANK_MAX],
    rank: usize,
    /// The product of the dimensions.
    count: usize,
    /// At least `count` floats, of which the first `count` are the tensor.
    buffer: Aligned,
}

impl Tensor {
    /// A tensor of zeros.
    ///
    /// # Panics
    /// If `shape` has no dimension or more than four.
    pub fn zeros(shape: &[usize]) -> Self {
        let mut tensor = Self::recycled(shape);
        tensor.data_mut().fill(0.0);
        tensor
    }

    /// A tensor of `shape` with the values of `data`.
    ///
    /// # Panics
    /// If the length of `data` is not the product of `shape`, or `shape` has no dimension or more than four.
    pub fn from_slice(shape: &[usize], data: &[f32]) -> Self {
        let mut tensor = Self::recycled(shape);
        assert_eq!(
            data.len(),
            tensor.count,
            "shape {shape:?} takes {} values, got {}",
            tensor.count,
            data.len()
        );
        tensor.data_mut().copy_from_slice(data);
        tensor
    }

    /// `[B, H, W, C]` from values in torch's order, `shape` being `[B, C, H, W]`.
    ///
    /// # Panics
    /// If the length of `data` is not the product of `shape`.
    pub fn from_nchw(shape: &[usize; 4], data: &[f32]) -> Self {
        let [b, c, h, w] = *shape;
        assert_eq!(
            data.len(),
            b * c * h * w,
            "from_nchw: shape {shape:?}, got {} values",
            data.len()
        );
        let mut tensor = Self::recycled(&[b, h, w, c]);
        transpose_images(data, tensor.data_mut(), c, h * w);
        tensor
    }

    /// The values of `[B, H, W, C]` (or `[B, T, C]`) in torch's order, `[B, C, H, W]`.
    ///
    /// # Panics
    /// If the tensor has fewer than three dimensions.
    pub fn to_nchw(&self) -> Vec<f32> {
        assert!(
            self.rank >= 3,
            "to_nchw: needs [B, H, W, C] or [B, T, C], got {self:?}"
        );
        let channels = self.last_dim();
        let pixels: usize = self.shape()[1..self.rank - 1].iter().product();
        let mut data = vec![0.0; self.count];
        transpose_images(self.data(), &mut data, pixels, channels);
        data
    }

    /// A tensor whose values are leftovers: every one must be written before it is read.
    pub(crate) fn recycled(shape: &[usize]) -> Self {
        let (dims, rank, count) = checked(shape);
        Tensor {
            dims,
            rank,
            count,
            buffer: pool::take(count),
        }
    }

    /// The sizes of the dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// The size of dimension `axis`, counted from 0.
    ///
    /// # Panics
    /// If there is no such dimension.
    pub fn dim(&self, axis: usize) -> usize {
        self.shape()[axis]
    }

    /// The size of the last dimension: channels or embedding width.
    pub fn last_dim(&self) -> usize {
        self.dims[self.rank - 1]
    }

    /// How many values there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many rows of [`Tensor::last_dim`] values there are.
    pub fn rows(&self) -> usize {
        self.shape()[..self.rank - 1].iter().product()
    }

    /// The values, last dimension fastest.
    pub fn data(&self) -> &[f32] {
        &self.buffer.as_slice()[..self.count]
    }

    /// The values, to be changed in place.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.buffer.as_mut_slice()[..self.count]
    }

    /// The same values under another shape; nothing moves.
    ///
    /// # Panics
    /// If the shapes hold different numbers of values.
    #[must_use]
    pub fn reshaped(mut self, shape: &[usize]) -> Self {
        let (dims, rank, count) = checked(shape);
        assert_eq!(
            count,
            self.count,
            "reshaped: {:?} cannot become {shape:?}",
            self.shape()
        );
        (self.dims, self.rank) = (dims, rank);
        self
    }

    /// The values as a vector.
    pub fn to_vec(&self) -> Vec<f32> {
        self.data().to_vec()
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        pool::give(std::mem::replace(&mut self.buffer, Aligned::zeros(0)));
    }
}

impl Clone for Tensor {
    fn clone(&self) -> Self {
        Self::from_slice(self.shape(), self.data())
    }
}

impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.shape() == other.shape() && self.data() == other.data()
    }
}

/// The shape and the first values; whole tensors are too long to read.
impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.data()[..self.count.min(4)];
        let more = if self.count > shown.len() {
            ", …"
        } else {
            ""
        };
        write!(f, "Tensor{:?} {:?}{more}", self.shape(), shown)
    }
}

/// The shape as it is stored, and how many values it holds.
fn checked(shape: &[usize]) -> ([usize; RANK_MAX], usize, usize) {
    assert!(
        (1..=RANK_MAX).contains(&shape.len()),
        "a tensor has 1 to {RANK_MAX} dimensions, not {shape:?}"
    );
    let mut dims = [1; RANK_MAX];
    dims[..shape.len()].copy_from_slice(shape);
    let count = shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim));
    (
        dims,
        shape.len(),
        count.unwrap_or_else(|| panic!("shape {shape:?} overflows memory")),
    )
}

/// Transposes every `rows × columns` matrix of `from` into `to`.
fn transpose_images(from: &[f32], to: &mut [f32], rows: usize, columns: usize) {
    if rows * columns == 0 {
        return;
    }
    for (from, to) in from
        .chunks_exact(rows * columns)
        .zip(to.chunks_exact_mut(rows * columns))
    {
        for (column, to) in to.chunks_exact_mut(rows).enumerate() {
            for (row, value) in to.iter_mut().enumerate() {
                *value = from[row * columns + column];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torch_order_and_back() {
        let shape = [2, 3, 4, 5];
        let data: Vec<f32> = (0..120).map(|value| value as f32).collect();
        let x = Tensor::from_nchw(&shape, &data);
        assert_eq!(x.shape(), [2, 4, 5, 3]);
        for b in 0..2 {
            for c in 0..3 {
                for y in 0..4 {
                    for column in 0..5 {
                        let nchw = data[((b * 3 + c) * 4 + y) * 5 + column];
                        assert_eq!(x.data()[((b * 4 + y) * 5 + column) * 3 + c], nchw);
                    }
                }
            }
        }
        assert_eq!(x.to_nchw(), data);
        assert_eq!(x.reshaped(&[2, 20, 3]).to_nchw(), data);
    }

    #[test]
    fn a_recycled_buffer_shows_only_its_tensor() {
        drop(Tensor::from_slice(&[5000], &[7.0; 5000]));
        let x = Tensor::zeros(&[4999]);
        assert_eq!(x.data().len(), 4999);
        assert!(x.data().iter().all(|&value| value == 0.0));
        assert_eq!(x.to_vec().len(), 4999);
    }

    #[test]
    fn shape_questions() {
        let x = Tensor::zeros(&[2, 3, 4, 5]);
        assert_eq!(
            (x.dim(1), x.last_dim(), x.rows(), x.count()),
            (3, 5, 24, 120)
        );
        assert_eq!(x.clone(), x);
        assert_eq!(
            format!("{x:?}"),
            "Tensor[2, 3, 4, 5] [0.0, 0.0, 0.0, 0.0], …"
        );
        assert_eq!(Tensor::zeros(&[0, 3]).count(), 0);
    }

    #[test]
    #[should_panic(expected = "shape [2, 3] takes 6 values, got 5")]
    fn a_wrong_length_is_named() {
        let _ = Tensor::from_slice(&[2, 3], &[0.0; 5]);
    }

    #[test]
    #[should_panic(expected = "[2, 3] cannot become [7]")]
    fn a_wrong_reshape_is_named() {
        let _ = Tensor::zeros(&[2, 3]).reshaped(&[7]);
    }
}
