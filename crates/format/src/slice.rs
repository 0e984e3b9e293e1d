//! Parts of a tensor by Python's rules: which elements an index expression means, and which bytes
//! must be read for them. No bytes are read here.
//!
//! [`parse_index`] reads what stands between the brackets in Python, [`SlicePlan::new`] applies it
//! to a shape as numpy does (integers, slices with any bounds and steps, `...`, `None`, integer
//! arrays, boolean masks), and [`SlicePlan::batches`] lists the reads, in the order of the result.
//!
//! # Elements smaller than a byte
//! F4 and F6 tensors are one stream of bits, least significant bit first: element `i` of `b` bits
//! starts at bit `i·b`, and bit `k` of the stream is bit `k mod 8` of byte `k / 8`. So element 0 of an
//! F4 tensor is the low half of byte 0, as in torch's `float4_e2m1fn_x2` (the format itself is silent
//! on it), and four F6 elements fill three bytes. A slice is packed anew in the same way, with
//! zeros behind the last element.
//!
//! # How much is read
//! Two runs of needed bytes become one read if the bytes between them, together with all others
//! that this read wastes, are at most [`SliceOptions::over_read_percent`] (20) of those it needs. So a slice
//! moves at most 1.2 times the bytes it needs, however its runs lie.

use std::fmt;

mod batch;
mod copy;
mod parse;

pub use batch::{Batch, Batches, Piece, ReadRange, SliceOptions};
pub use parse::{IndexSyntaxError, parse_index};

/// One of the things that may stand between the brackets of `tensor[…]`, separated by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Index {
    /// `3`, `-1`: one position; the dimension disappears.
    At(i64),
    /// `start:stop:step`. Bounds beyond the ends are cut to them, negative ones count from the end.
    Range {
        /// The first position; the near end if left out.
        start: Option<i64>,
        /// The position before which it ends; the far end if left out.
        stop: Option<i64>,
        /// How far it is to the next, not 0; negative: backwards.
        step: i64,
    },
    /// `...`: as many `:` as are missing.
    Ellipsis,
    /// `None`: a new dimension of size 1.
    NewAxis,
    /// `[0, 2, -1]`, `[[0], [2]]`: an array of positions. Several of them (and integers beside them) are
    /// broadcast to one shape, which takes their place, or goes first if they don't stand together.
    List {
        /// The shape of the array.
        shape: Vec<u64>,
        /// Its elements, row by row.
        values: Vec<i64>,
    },
    /// `[True, False]`: the positions of all `True`, in as many dimensions as the mask has.
    Mask {
        /// The shape of the mask; must be that of the dimensions it stands for.
        shape: Vec<u64>,
        /// Its elements, row by row.
        values: Vec<bool>,
    },
}

impl Index {
    /// `:`, all of a dimension.
    pub const ALL: Index = Index::Range {
        start: None,
        stop: None,
        step: 1,
    };

    /// `start:stop`, as Rust's ranges have it.
    ///
    /// ```
    /// use safelight_format::Index;
    /// assert_eq!(Index::range(2, 5), Index::Range { start: Some(2), stop: Some(5), step: 1 });
    /// ```
    pub fn range(start: i64, stop: i64) -> Index {
        Index::Range {
            start: Some(start),
            stop: Some(stop),
            step: 1,
        }
    }

    /// A flat list of positions.
    pub fn list(values: impl Into<Vec<i64>>) -> Index {
        let values = values.into();
        Index::List {
            shape: vec![values.len() as u64],
            values,
        }
    }

    /// A flat mask.
    pub fn mask(values: impl Into<Vec<bool>>) -> Index {
        let values = values.into();
        Index::Mask {
            shape: vec![values.len() as u64],
            values,
        }
    }

    /// How many dimensions of the tensor it stands for; `None` for `...`.
    fn consumes(&self) -> Option<usize> {
        match self {
            Index::At(_) | Index::Range { .. } | Index::List { .. } => Some(1),
            Index::NewAxis => Some(0),
            Index::Mask { shape, .. } => Some(shape.len()),
            Index::Ellipsis => None,
        }
    }
}

/// Why an index does not fit a tensor. Axes count from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SliceError {
    /// More indices than dimensions.
    TooManyIndices {
        /// How many dimensions the indices stand for.
        index_count: usize,
        /// The tensor's shape.
        shape: Vec<u64>,
    },
    /// `...` stands there twice.
    TwoEllipses,
    /// A position outside its dimension.
    OutOfRange {
        /// The position asked for.
        position: i64,
        /// The dimension.
        axis: usize,
        /// Its size.
        size: u64,
    },
    /// A step of 0.
    StepZero {
        /// The dimension.
        axis: usize,
    },
    /// A mask of another size than what it masks.
    MaskSize {
        /// The dimension.
        axis: usize,
        /// Its size.
        size: u64,
        /// The mask's.
        mask_size: u64,
    },
    /// Lists of shapes that cannot be broadcast to one.
    Broadcast {
        /// The shapes of all lists.
        shapes: Vec<Vec<u64>>,
    },
    /// A list or mask whose shape and number of values differ.
    ListShape {
        /// The shape.
        shape: Vec<u64>,
        /// The number of values.
        value_count: usize,
    },
    /// A mask without dimensions (`True` alone).
    ScalarMask,
    /// The tensor has 2^64 bits or more, the result 2^63, or the list of its positions is larger than memory.
    TooLarge {
        /// The shape of the tensor, of the result, or of the broadcast lists.
        shape: Vec<u64>,
    },
}

impl std::error::Error for SliceError {}

impl fmt::Display for SliceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SliceError::TooManyIndices { index_count, shape } => write!(
                f,
                "{index_count} indices for a tensor of {} dimensions, {shape:?}",
                shape.len()
            ),
            SliceError::TwoEllipses => {
                write!(f, "`...` stands in the index twice; once says all")
            }
            SliceError::OutOfRange {
                position,
                axis,
                size: 0,
            } => {
                write!(
                    f,
                    "position {position} in dimension {axis}, which has size 0"
                )
            }
            SliceError::OutOfRange {
                position,
                axis,
                size,
            } => write!(
                f,
                "position {position} is outside dimension {axis}, which has size {size}: -{size} to {} are inside",
                size - 1
            ),
            SliceError::StepZero { axis } => {
                write!(
                    f,
                    "the step in dimension {axis} is 0; 1 takes every element"
                )
            }
            SliceError::MaskSize {
                axis,
                size,
                mask_size,
            } => write!(
                f,
                "the mask has {mask_size} values for dimension {axis}, which has size {size}"
            ),
            SliceError::Broadcast { shapes } => {
                write!(f, "the lists have shapes that don't go together:")?;
                shapes.iter().try_for_each(|shape| write!(f, " {shape:?}"))
            }
            SliceError::ListShape { shape, value_count } => {
                write!(f, "a list of shape {shape:?} has {value_count} values")
            }
            SliceError::ScalarMask => write!(
                f,
                "`True` or `False` alone is no index here; a mask has a value for each position: `[True, False]`"
            ),
            SliceError::TooLarge { shape } => {
                write!(f, "a tensor or result of {shape:?} is too large")
            }
        }
    }
}

/// Which elements of a tensor make up a slice.
///
/// ```
/// use safelight_format::{SlicePlan, parse_index};
/// let index = parse_index("[-2:, ::2]")?;
/// let plan = SlicePlan::new(32, &[4, 5], &index)?;
/// assert_eq!((plan.shape(), plan.byte_count()), (&[2, 3][..], 24));
///
/// let tensor: Vec<u8> = (0..20u32).flat_map(u32::to_le_bytes).collect();
/// let slice = plan.gather(&tensor);
/// assert_eq!(slice[..12], [10u32, 12, 14].map(u32::to_le_bytes).concat());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct SlicePlan {
    bits: u64,
    shape: Vec<u64>,
    element_count: u64,
    /// The element at position 0, 0, 0… of the result.
    first: u64,
    /// Outermost first, none of size 1, neighbours merged where they are one walk.
    walks: Vec<Walk>,
}

/// How the source element changes along (one or several merged) dimensions of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Walk {
    /// `count` elements, each `step` behind the one before.
    Even { count: u64, step: i64 },
    /// Distances from the first element.
    Listed(Vec<u64>),
}

impl Walk {
    fn count(&self) -> u64 {
        match self {
            Walk::Even { count, .. } => *count,
            Walk::Listed(distances) => distances.len() as u64,
        }
    }

    fn distance(&self, position: u64) -> i64 {
        match self {
            Walk::Even { step, .. } => position as i64 * step,
            Walk::Listed(distances) => distances[position as usize] as i64,
        }
    }
}

/// One index after `...` is replaced and every bound is known.
enum Resolved {
    Even {
        count: u64,
        first: u64,
        step: i64,
    },
    NewAxis,
    /// One array of positions, within the dimension of this stride.
    Listed {
        shape: Vec<u64>,
        positions: Vec<u64>,
        stride: u64,
    },
    /// `...`, for the sake of what stands beside it.
    Gap,
}

impl SlicePlan {
    /// Applies an index to a tensor of elements of `bits` bits (as [`crate::Dtype::bits`] says) and shape `shape`.
    ///
    /// # Errors
    /// [`SliceError`]. Whatever numpy refuses is refused; so are masks without dimensions.
    pub fn new(bits: u64, shape: &[u64], index: &[Index]) -> Result<SlicePlan, SliceError> {
        let fits = product(shape).and_then(|count| count.checked_mul(bits));
        if fits.is_none() {
            let shape = shape.to_vec();
            return Err(SliceError::TooLarge { shape });
        }
        let index = spread_ellipsis(shape, index)?;
        let mut resolved = Vec::with_capacity(index.len());
        let mut axis = 0;
        for index in index {
            resolve(shape, &mut axis, index.as_ref(), &mut resolved)?;
        }
        let mut plan = SlicePlan {
            bits,
            shape: Vec::new(),
            element_count: 0,
            first: 0,
            walks: Vec::new(),
        };
        plan.lay_out(resolved)?;
        plan.count()?;
        plan.merge();
        Ok(plan)
    }

    /// The shape of the result.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// How many elements the result has.
    pub fn element_count(&self) -> u64 {
        self.element_count
    }

    /// The size of the result; a last byte that is not full counts.
    pub fn byte_count(&self) -> u64 {
        (self.element_count * self.bits).div_ceil(8)
    }

    /// The size of an element in bits.
    pub fn bits(&self) -> u64 {
        self.bits
    }

    /// Which element of the tensor stands at `position` of the result, both counted row by row.
    ///
    /// ```
    /// use safelight_format::{SlicePlan, parse_index};
    /// let plan = SlicePlan::new(32, &[4, 5], &parse_index("[1:, ::-2]")?)?;
    /// assert_eq!((plan.element_at(0), plan.element_at(5)), (9, 10));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// If the result has no such position.
    pub fn element_at(&self, position: u64) -> u64 {
        assert!(position < self.element_count, "a position of the result");
        let (mut rest, mut element) = (position, self.first as i64);
        for walk in self.walks.iter().rev() {
            element += walk.distance(rest % walk.count());
            rest /= walk.count();
        }
        element as u64
    }

    /// The reads that bring all elements of the result, some megabytes at a time.
    pub fn batches(&self, options: &SliceOptions) -> Batches<'_> {
        Batches::new(self, options)
    }

    /// The slice of a tensor that is in memory.
    ///
    /// # Panics
    /// If `tensor` is shorter than the shape and bits that the plan was made for.
    pub fn gather(&self, tensor: &[u8]) -> Vec<u8> {
        let mut out = vec![0; self.byte_count() as usize];
        for batch in self.batches(&SliceOptions::default()) {
            let bytes = batch.out_bytes();
            let out = &mut out[bytes.start as usize..bytes.end as usize];
            for read in batch.reads() {
                let source = &tensor[read.bytes.start as usize..read.bytes.end as usize];
                batch.scatter(read, source, out);
            }
        }
        out
    }

    /// Puts the dimensions of the result in order and finds the first element.
    fn lay_out(&mut self, resolved: Vec<Resolved>) -> Result<(), SliceError> {
        let is_list = |entry: &Resolved| matches!(entry, Resolved::Listed { .. });
        let first_list = resolved.iter().position(is_list);
        let last_list = resolved.iter().rposition(is_list);
        let together = match (first_list, last_list) {
            (Some(first), Some(last)) => resolved[first..=last].iter().all(is_list),
            _ => true,
        };
        let lists = gathered(&resolved)?;
        if !together {
            self.push_lists(&lists);
        }
        for (position, entry) in resolved.iter().enumerate() {
            match entry {
                Resolved::Even { count, first, step } => {
                    self.shape.push(*count);
                    self.first = self.first.wrapping_add(*first);
                    let (count, step) = (*count, *step);
                    self.walks.push(Walk::Even { count, step });
                }
                Resolved::NewAxis => self.shape.push(1),
                Resolved::Listed { .. } if together && Some(position) == first_list => {
                    self.push_lists(&lists);
                }
                Resolved::Listed { .. } | Resolved::Gap => {}
            }
        }
        Ok(())
    }

    fn push_lists(&mut self, lists: &Option<(Vec<u64>, Vec<u64>)>) {
        if let Some((shape, distances)) = lists {
            self.shape.extend(shape);
            self.walks.push(Walk::Listed(distances.clone()));
        }
    }

    /// The size of the result, within bounds.
    fn count(&mut self) -> Result<(), SliceError> {
        let too_large = || SliceError::TooLarge {
            shape: self.shape.clone(),
        };
        self.element_count = product(&self.shape).ok_or_else(too_large)?;
        let bits = self.element_count.checked_mul(self.bits);
        if bits.is_none_or(|bits| bits > i64::MAX as u64) {
            return Err(too_large());
        }
        Ok(())
    }

    /// Drops walks of one step and merges those that continue each other.
    fn merge(&mut self) {
        if self.element_count == 0 {
            self.walks.clear();
            return;
        }
        let mut merged: Vec<Walk> = Vec::with_capacity(self.walks.len());
        for walk in self.walks.drain(..) {
            if let Walk::Listed(distances) = &walk
                && distances.len() == 1
            {
                self.first += distances[0];
                continue;
            }
            let Walk::Even { count, step } = walk else {
                merged.push(walk);
                continue;
            };
            match merged.last_mut() {
                _ if count == 1 => {}
                Some(Walk::Even {
                    count: outer_count,
                    step: outer_step,
                }) if *outer_step == step.wrapping_mul(count as i64) => {
                    *outer_count *= count;
                    *outer_step = step;
                }
                _ => merged.push(walk),
            }
        }
        self.walks = merged;
    }
}

/// One entry for each dimension, `None` for the dimensions' absence where `...` stood.
fn spread_ellipsis(shape: &[u64], index: &[Index]) -> Result<Vec<Option<Index>>, SliceError> {
    let consumed: usize = index.iter().filter_map(Index::consumes).sum();
    let Some(missing) = shape.len().checked_sub(consumed) else {
        return Err(SliceError::TooManyIndices {
            index_count: consumed,
            shape: shape.to_vec(),
        });
    };
    let mut spread = Vec::with_capacity(shape.len() + 1);
    let mut seen = false;
    for entry in index {
        if *entry != Index::Ellipsis {
            spread.push(Some(entry.clone()));
            continue;
        }
        if std::mem::replace(&mut seen, true) {
            return Err(SliceError::TwoEllipses);
        }
        spread.push(None);
        spread.extend(std::iter::repeat_n(Some(Index::ALL), missing));
    }
    if !seen {
        spread.extend(std::iter::repeat_n(Some(Index::ALL), missing));
    }
    Ok(spread)
}

/// Finds the bounds of one index and steps over its dimensions.
fn resolve(
    shape: &[u64],
    axis: &mut usize,
    index: Option<&Index>,
    out: &mut Vec<Resolved>,
) -> Result<(), SliceError> {
    let Some(index) = index else {
        out.push(Resolved::Gap);
        return Ok(());
    };
    match index {
        Index::NewAxis => out.push(Resolved::NewAxis),
        Index::Ellipsis => {}
        Index::At(position) => {
            let (size, stride) = (shape[*axis], stride(shape, *axis));
            let position = inside(*position, *axis, size)?;
            // A list without dimensions: alone it only moves the first element.
            out.push(Resolved::Listed {
                shape: Vec::new(),
                positions: vec![position],
                stride,
            });
            *axis += 1;
        }
        Index::Range { start, stop, step } => {
            let (size, stride) = (shape[*axis], stride(shape, *axis));
            if *step == 0 {
                return Err(SliceError::StepZero { axis: *axis });
            }
            let (first, count) = bounds(*start, *stop, *step, size);
            out.push(Resolved::Even {
                count,
                first: first.wrapping_mul(stride),
                step: step.wrapping_mul(stride as i64),
            });
            *axis += 1;
        }
        Index::List {
            shape: list,
            values,
        } => {
            check_list(list, values.len())?;
            let (size, stride) = (shape[*axis], stride(shape, *axis));
            let positions = values.iter().map(|value| inside(*value, *axis, size));
            out.push(Resolved::Listed {
                shape: list.clone(),
                positions: positions.collect::<Result<_, _>>()?,
                stride,
            });
            *axis += 1;
        }
        Index::Mask {
            shape: mask,
            values,
        } => {
            check_list(mask, values.len())?;
            resolve_mask(shape, *axis, mask, values, out)?;
            *axis += mask.len();
        }
    }
    Ok(())
}

/// A mask is as many lists as it has dimensions: the coordinates of its `true`s.
fn resolve_mask(
    shape: &[u64],
    axis: usize,
    mask: &[u64],
    values: &[bool],
    out: &mut Vec<Resolved>,
) -> Result<(), SliceError> {
    if mask.is_empty() {
        return Err(SliceError::ScalarMask);
    }
    for (offset, (&mask_size, &size)) in mask.iter().zip(&shape[axis..]).enumerate() {
        if mask_size != size {
            return Err(SliceError::MaskSize {
                axis: axis + offset,
                size,
                mask_size,
            });
        }
    }
    let hits: Vec<u64> = (0..)
        .zip(values)
        .filter(|(_, hit)| **hit)
        .map(|(i, _)| i)
        .collect();
    for (offset, &size) in mask.iter().enumerate() {
        let below = stride(mask, offset).max(1);
        out.push(Resolved::Listed {
            shape: vec![hits.len() as u64],
            positions: hits.iter().map(|hit| hit / below % size.max(1)).collect(),
            stride: stride(shape, axis + offset),
        });
    }
    Ok(())
}

fn check_list(shape: &[u64], value_count: usize) -> Result<(), SliceError> {
    if product(shape) == Some(value_count as u64) {
        return Ok(());
    }
    let shape = shape.to_vec();
    Err(SliceError::ListShape { shape, value_count })
}

/// All lists broadcast to one shape, and the distance of each of its elements; `None` without lists.
#[allow(clippy::type_complexity)]
fn gathered(resolved: &[Resolved]) -> Result<Option<(Vec<u64>, Vec<u64>)>, SliceError> {
    let lists: Vec<_> = resolved
        .iter()
        .filter_map(|entry| match entry {
            Resolved::Listed {
                shape,
                positions,
                stride,
            } => Some((shape, positions, *stride)),
            _ => None,
        })
        .collect();
    if lists.is_empty() {
        return Ok(None);
    }
    let rank = lists
        .iter()
        .map(|(shape, ..)| shape.len())
        .max()
        .unwrap_or(0);
    let mut common = vec![1; rank];
    for (shape, ..) in &lists {
        for (size, common) in shape.iter().rev().zip(common.iter_mut().rev()) {
            if *common == 1 {
                *common = *size;
            } else if *size != 1 && size != common {
                let shapes = lists.iter().map(|(shape, ..)| shape.to_vec()).collect();
                return Err(SliceError::Broadcast { shapes });
            }
        }
    }
    let too_large = || SliceError::TooLarge {
        shape: common.clone(),
    };
    let count = product(&common).and_then(|count| usize::try_from(count).ok());
    let count = count.ok_or_else(too_large)?;
    let mut distances: Vec<u64> = Vec::new();
    distances
        .try_reserve_exact(count)
        .map_err(|_| too_large())?;
    distances.resize(count, 0);
    for (shape, positions, stride) in lists {
        add_broadcast(&mut distances, &common, shape, positions, stride);
    }
    Ok(Some((common, distances)))
}

/// Adds a list's distances to each element of the common shape.
fn add_broadcast(
    distances: &mut [u64],
    common: &[u64],
    shape: &[u64],
    positions: &[u64],
    stride: u64,
) {
    let lead = common.len() - shape.len();
    for (at, distance) in distances.iter_mut().enumerate() {
        let mut rest = at as u64;
        let (mut place, mut below) = (0, 1);
        for (axis, &size) in common.iter().enumerate().rev() {
            let coordinate = rest % size;
            rest /= size;
            if let Some(own) = axis.checked_sub(lead).map(|axis| shape[axis]) {
                place += if own == 1 { 0 } else { coordinate * below };
                below *= own;
            }
        }
        *distance += positions[place as usize].wrapping_mul(stride);
    }
}

/// Where a dimension's position lies, counted from its start.
fn inside(position: i64, axis: usize, size: u64) -> Result<u64, SliceError> {
    let from_start = i128::from(position) + if position < 0 { i128::from(size) } else { 0 };
    match u64::try_from(from_start) {
        Ok(inside) if inside < size => Ok(inside),
        _ => Err(SliceError::OutOfRange {
            position,
            axis,
            size,
        }),
    }
}

/// First position and count of a slice, as Python's `slice.indices` has it.
fn bounds(start: Option<i64>, stop: Option<i64>, step: i64, size: u64) -> (u64, u64) {
    let (size, step) = (i128::from(size), i128::from(step));
    // Where walking forwards may begin and end; backwards, -1 is the end behind position 0.
    let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
    let place = |bound: i64| {
        let bound = i128::from(bound);
        (if bound < 0 { bound + size } else { bound }).clamp(low, high)
    };
    let (near, far) = if step > 0 { (low, high) } else { (high, low) };
    let start = start.map_or(near, place);
    let stop = stop.map_or(far, place);
    let span = if step > 0 { stop - start } else { start - stop };
    if span <= 0 {
        return (0, 0);
    }
    let count = (span - 1) / step.abs() + 1;
    (start as u64, count as u64)
}

/// Elements between neighbours of a dimension; meaningless (but no panic) where a dimension is 0.
fn stride(shape: &[u64], axis: usize) -> u64 {
    shape[axis + 1..]
        .iter()
        .fold(1, |stride: u64, size| stride.wrapping_mul(*size))
}

/// The product, which is 0 if any size is, however large the others.
fn product(shape: &[u64]) -> Option<u64> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape
        .iter()
        .try_fold(1, |product: u64, size| product.checked_mul(*size))
}
