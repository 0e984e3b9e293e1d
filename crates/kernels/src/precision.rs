//! How precisely a product's numbers are kept: what the types mean, and which layers may have which.

use std::fmt;
use std::str::FromStr;

/// What the weights and the left rows of a product are rounded to; sums and results are `f32` in every case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Precision {
    /// 8 bits, −127 to 127 times a scale. Weights have one scale for each output channel and up to
    /// 320 neighbouring input channels, rounded once at load. Left rows have one for each row (a
    /// pixel, a token) and as many channels, found anew in every call: the largest magnitude
    /// becomes 127. But for outliers: up to three of those numbers that are larger than five times their root mean square
    /// are not rounded, the largest first.
    Int8,
    /// The upper half of an `f32`: 8 bits of mantissa, rounded to nearest even. Left rows are rounded
    /// only where [`Level::rounds_rows`](crate::Level::rounds_rows) says so, elsewhere they stay as they are.
    Bf16,
    /// 24 bits of mantissa: nothing is rounded.
    #[default]
    F32,
}

impl Precision {
    /// Every precision, finest first.
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
        }
    }

    /// The coarsest precision, at most as coarse as `self`, that a layer of `inputs` channels to
    /// `outputs` channels is worth.
    ///
    /// Layers with fewer than 32 inputs or 16 outputs (the first and last convolutions of every
    /// network, whose errors nothing averages out) stay in `f32`: they are too small to gain.
    pub fn for_layer(self, inputs: usize, outputs: usize) -> Precision {
        if inputs < 32 || outputs < 16 {
            Precision::F32
        } else {
            self
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name was none of `f32`, `bf16` and `int8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPrecision {
    /// What it was.
    pub value: String,
}

impl fmt::Display for UnknownPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = &self.value;
        write!(f, "`{value}` is no precision; known are f32, bf16 and int8")
    }
}

impl std::error::Error for UnknownPrecision {}

impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(value: &str) -> Result<Precision, UnknownPrecision> {
        let found = Self::ALL.into_iter().find(|known| known.name() == value);
        found.ok_or_else(|| UnknownPrecision {
            value: value.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_refused() {
        for precision in Precision::ALL {
            assert_eq!(precision.name().parse(), Ok(precision));
        }
        let error = "int3".parse::<Precision>().unwrap_err().to_string();
        assert!(
            error.contains("`int3`") && error.contains("bf16"),
            "{error}"
        );
    }

    #[test]
    fn small_layers_stay_precise() {
        assert_eq!(Precision::Int8.for_layer(4, 320), Precision::F32);
        assert_eq!(Precision::Bf16.for_layer(320, 4), Precision::F32);
        assert_eq!(Precision::Int8.for_layer(32, 16), Precision::Int8);
    }
}
