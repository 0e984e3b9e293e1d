//! Where there are no tiles of AMX.

use std::convert::Infallible;
use std::marker::PhantomData;

use super::tile::Multiply;
use super::{Simd, Words};
use crate::level::Level;
use crate::precision::Precision;

/// Memory for tiles.
pub(crate) struct Room(Infallible);

/// There are none.
pub(crate) struct MatrixTiles<'a>(Infallible, PhantomData<&'a mut Room>);

impl<'a> MatrixTiles<'a> {
    /// None.
    pub(crate) fn of(
        _level: Level,
        _precision: Precision,
        _room: &'a mut Option<Box<Room>>,
    ) -> Option<MatrixTiles<'a>> {
        None
    }

    /// Never called.
    pub(super) fn rows<W: Words, S: Simd>(
        &mut self,
        _simd: S,
        _multiply: &Multiply<'_>,
        _tile: usize,
        _count: usize,
        _sums: &mut [f32],
    ) {
        match self.0 {}
    }

    /// Never called.
    pub(crate) fn multiply_only<W: Words>(&mut self, _steps: usize) -> usize {
        match self.0 {}
    }
}
