//! A matrix cut into disjoint rectangles, so that threads can write to it side by side.

use std::marker::PhantomData;

/// Rows and columns of a matrix that nobody else can reach.
pub(crate) struct Rectangle<'a> {
    start: *mut f32,
    stride: usize,
    /// First row in the matrix, and how many.
    pub(crate) row: usize,
    pub(crate) row_count: usize,
    /// First column in the matrix, and how many.
    pub(crate) column: usize,
    pub(crate) column_count: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: a rectangle is a `&mut` to floats that no other rectangle holds; those may be sent.
unsafe impl Send for Rectangle<'_> {}

impl Rectangle<'_> {
    /// One row's part, `row_idx` counted from the rectangle's first.
    #[inline(always)]
    pub(crate) fn row_mut(&mut self, row_idx: usize) -> &mut [f32] {
        assert!(row_idx < self.row_count);
        // SAFETY: `rectangles` cut this one from a live `&mut` matrix with this stride, and
        // `row_idx` is inside; the borrow of `self` keeps a second slice of it from existing.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.add(row_idx * self.stride), self.column_count)
        }
    }
}

/// Cuts `matrix`, of rows of `columns`, into rectangles of at most `rows_max` × `columns_max`.
/// Rectangles of the same rows follow each other.
///
/// # Panics
/// If `matrix` is not whole rows or a size is 0.
pub(crate) fn rectangles(
    matrix: &mut [f32],
    columns: usize,
    rows_max: usize,
    columns_max: usize,
) -> Vec<Rectangle<'_>> {
    assert!(columns > 0 && rows_max > 0 && columns_max > 0);
    let rows = matrix.len() / columns;
    assert_eq!(matrix.len(), rows * columns, "whole rows of {columns}");
    let start = matrix.as_mut_ptr();
    let mut all = Vec::with_capacity(rows.div_ceil(rows_max) * columns.div_ceil(columns_max));
    for row in (0..rows).step_by(rows_max) {
        for column in (0..columns).step_by(columns_max) {
            all.push(Rectangle {
                // SAFETY: `row < rows` and `column < columns`, so this is inside `matrix`.
                start: unsafe { start.add(row * columns + column) },
                stride: columns,
                row,
                row_count: rows_max.min(rows - row),
                column,
                column_count: columns_max.min(columns - column),
                matrix: PhantomData,
            });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rectangles_cover_every_element_once() {
        for (rows, columns, rows_max, columns_max) in [
            (1, 1, 1, 1),
            (5, 7, 2, 3),
            (4, 6, 4, 6),
            (3, 8, 9, 5),
            (0, 3, 2, 2),
        ] {
            let mut matrix = vec![0.0; rows * columns];
            for mut rectangle in rectangles(&mut matrix, columns, rows_max, columns_max) {
                for row_idx in 0..rectangle.row_count {
                    let row = rectangle.row + row_idx;
                    let column = rectangle.column;
                    for (idx, x) in rectangle.row_mut(row_idx).iter_mut().enumerate() {
                        *x += (row * columns + column + idx + 1) as f32;
                    }
                }
            }
            let expected: Vec<f32> = (1..=rows * columns).map(|x| x as f32).collect();
            assert_eq!(matrix, expected);
        }
    }
}
