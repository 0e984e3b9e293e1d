//! A tensor's elements as numbers to be shown: exact, whatever their type.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;

use safelight_format::{Dtype, decode_f32};

use crate::error::Failure;

/// One element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    Bool(bool),
    Int(i128),
    /// Every float type's values are exact in an `f64`.
    Float(f64),
    Complex(f32, f32),
}

impl Number {
    /// As a number to count with; complex ones by their size.
    pub(crate) fn to_f64(self) -> f64 {
        match self {
            Number::Bool(value) => f64::from(u8::from(value)),
            Number::Int(value) => value as f64,
            Number::Float(value) => value,
            Number::Complex(re, im) => f64::from(re).hypot(f64::from(im)),
        }
    }

    /// As JSON: numbers that JSON does not know are strings, complex ones pairs. Those of types narrower than F32 have
    /// all the digits of their value as an `f64`, since nobody reads JSON as such a type.
    pub(crate) fn to_json(self, dtype: Dtype) -> String {
        let dtype = match dtype {
            Dtype::F32 | Dtype::C64 => dtype,
            _ => Dtype::F64,
        };
        let float = |value: f64| match value {
            _ if value.is_nan() => "\"NaN\"".to_owned(),
            f64::INFINITY => "\"Infinity\"".into(),
            f64::NEG_INFINITY => "\"-Infinity\"".into(),
            _ => shortest(value, dtype).scientific(None).json(),
        };
        match self {
            Number::Bool(value) => value.to_string(),
            Number::Int(value) => value.to_string(),
            Number::Float(value) => float(value),
            Number::Complex(re, im) => format!("[{},{}]", float(re.into()), float(im.into())),
        }
    }
}

/// Decodes whole elements.
pub(crate) fn numbers(dtype: Dtype, bytes: &[u8]) -> Result<Vec<Number>, Failure> {
    macro_rules! each {
        ($type:ty, $make:expr) => {{
            let chunks = bytes.chunks_exact(size_of::<$type>());
            let values = chunks.map(|chunk| {
                <$type>::from_le_bytes(chunk.try_into().expect("chunks have this size"))
            });
            values.map($make).collect()
        }};
    }
    Ok(match dtype {
        Dtype::Bool => bytes.iter().map(|&byte| Number::Bool(byte != 0)).collect(),
        Dtype::U8 => each!(u8, |value| Number::Int(value.into())),
        Dtype::I8 => each!(i8, |value| Number::Int(value.into())),
        Dtype::U16 => each!(u16, |value| Number::Int(value.into())),
        Dtype::I16 => each!(i16, |value| Number::Int(value.into())),
        Dtype::U32 => each!(u32, |value| Number::Int(value.into())),
        Dtype::I32 => each!(i32, |value| Number::Int(value.into())),
        Dtype::U64 => each!(u64, |value| Number::Int(value.into())),
        Dtype::I64 => each!(i64, |value| Number::Int(value.into())),
        Dtype::F64 => each!(f64, Number::Float),
        Dtype::C64 => each!(u64, |both| {
            let part = |bits: u64| f32::from_bits(bits as u32);
            Number::Complex(part(both), part(both >> 32))
        }),
        _ => {
            let decoded = decode_f32(dtype, bytes);
            let values = decoded.map_err(|error| Failure::Model(error.to_string()))?;
            values
                .into_iter()
                .map(|value| Number::Float(value.into()))
                .collect()
        }
    })
}

/// The fewest decimal digits that mean this number and no other of its type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Decimal {
    negative: bool,
    value: f64,
    /// The digits, one before the point.
    digits: Short,
    exponent: i32,
}

/// A short ASCII text without memory of its own: tensors have millions of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Short {
    bytes: [u8; 40],
    len: usize,
}

impl Short {
    /// What a number is written as: at most 17 digits, a sign, a point and an exponent.
    fn of(text: fmt::Arguments<'_>) -> Short {
        let (bytes, len) = ([0; 40], 0);
        let mut short = Short { bytes, len };
        fmt::write(&mut short, text).expect("numbers are short");
        short
    }
}

impl fmt::Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        let room = self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

impl Deref for Short {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).expect("only texts were put in")
    }
}

/// The shortest decimal of a finite number. Types of 8 bits and less are shown as `f32` shows them, which is exact.
pub(crate) fn shortest(value: f64, dtype: Dtype) -> Decimal {
    let size = value.abs();
    let text = match dtype {
        Dtype::F64 => Short::of(format_args!("{size:e}")),
        Dtype::F16 | Dtype::Bf16 => return rounded_once(size, dtype).of_sign(value),
        _ => Short::of(format_args!("{:e}", size as f32)),
    };
    Decimal::of(&text, value)
}

/// The shortest decimal of a number of 16 bits that is not negative, found once for each: it takes several tries.
fn rounded_once(size: f64, dtype: Dtype) -> Decimal {
    thread_local! {
        static FOUND: RefCell<HashMap<(Dtype, u32), Decimal>> = RefCell::new(HashMap::new());
    }
    let (mantissa_bits, exponent_min) = match dtype {
        Dtype::F16 => (10, -14),
        _ => (7, -126),
    };
    FOUND.with_borrow_mut(|found| {
        let key = (dtype, (size as f32).to_bits());
        *found.entry(key).or_insert_with(|| {
            let text = rounded(size, mantissa_bits, exponent_min);
            Decimal::of(&text, size)
        })
    })
}

/// The shortest text that is nearer to `value` than to any other number with so many bits behind the leading one.
fn rounded(value: f64, mantissa_bits: i32, exponent_min: i32) -> Short {
    let exponent = (value.log2().floor() as i32).max(exponent_min);
    let half = 2f64.powi(exponent - mantissa_bits - 1);
    // Below a power of two the numbers lie closer.
    let power_of_two = value == 2f64.powi(exponent) && exponent > exponent_min;
    let below = if power_of_two { half / 2.0 } else { half };
    for digits in 0..9 {
        let text = Short::of(format_args!("{value:.digits$e}"));
        let off = text
            .parse::<f64>()
            .map_or(f64::INFINITY, |near| near - value);
        if off < half && -off < below {
            return text;
        }
    }
    Short::of(format_args!("{value:e}"))
}

impl Decimal {
    fn of(text: &str, value: f64) -> Decimal {
        let (mantissa, exponent) = text.split_once('e').expect("`{:e}` writes an exponent");
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let mut digits = Short::of(format_args!("{whole}{fraction}"));
        let kept = digits.trim_end_matches('0').len();
        digits.len = kept.max(1); // of 0 one digit
        Decimal {
            negative: value.is_sign_negative(),
            value,
            digits,
            exponent: exponent.parse().expect("`{:e}` writes a number"),
        }
    }

    /// The decimal of `value`, of whose size this one is.
    fn of_sign(self, value: f64) -> Decimal {
        Decimal {
            negative: value.is_sign_negative(),
            value,
            ..self
        }
    }

    /// Whether the number is below 0 (or -0).
    pub(crate) fn is_negative(&self) -> bool {
        self.negative
    }

    /// How many digits [`Decimal::positional`] has before and behind the point; `None` if it has to round.
    pub(crate) fn positional_lens(&self, digits_max: usize) -> Option<(usize, usize)> {
        let point = self.exponent + 1;
        let lens = match usize::try_from(point) {
            Ok(whole @ 1..) => (whole, self.digits.len().saturating_sub(whole)),
            _ => (1, point.unsigned_abs() as usize + self.digits.len()),
        };
        let is_zero = &*self.digits == "0";
        Some(if is_zero { (1, 0) } else { lens }).filter(|lens| lens.1 <= digits_max)
    }

    /// Appends the digits of [`Decimal::positional`] with a point, if it has not to round.
    pub(crate) fn push_positional(&self, (whole, fraction): (usize, usize), text: &mut String) {
        let digits: &str = &self.digits;
        if self.exponent < 0 || fraction == 0 && digits == "0" {
            text.push_str("0.");
            let zeros = fraction.saturating_sub(digits.len());
            text.extend(std::iter::repeat_n('0', zeros));
            text.push_str(if fraction == 0 { "" } else { digits });
            return;
        }
        let before = whole.min(digits.len());
        text.push_str(&digits[..before]);
        text.extend(std::iter::repeat_n('0', whole - before));
        text.push('.');
        text.push_str(&digits[before..]);
    }

    /// How many digits [`Decimal::scientific`] has behind the point, and its exponent; `None` if it has to round.
    pub(crate) fn scientific_lens(&self, digits_max: usize) -> Option<(usize, i32)> {
        let behind = self.digits.len() - 1;
        (behind <= digits_max).then_some((behind, self.exponent))
    }

    /// Digits before and behind the point, those behind it rounded to `digits_max`.
    pub(crate) fn positional(&self, digits_max: usize) -> Parts {
        let point = self.exponent + 1;
        let (mut whole, mut fraction) = if point <= 0 {
            let zeros = "0".repeat(point.unsigned_abs() as usize);
            ("0".to_owned(), format!("{zeros}{}", &*self.digits))
        } else {
            let point = point as usize;
            let padded = format!("{:0<point$}", &*self.digits);
            (padded[..point].to_owned(), padded[point..].to_owned())
        };
        if fraction.len() > digits_max {
            let text = format!("{:.digits_max$}", self.value.abs());
            (whole, fraction) = match text.split_once('.') {
                Some((whole, fraction)) => (whole.to_owned(), fraction.to_owned()),
                None => (text, String::new()),
            };
        }
        let fraction = fraction.trim_end_matches('0').to_owned();
        Parts {
            negative: self.negative,
            whole,
            fraction,
            exponent: None,
        }
    }

    /// One digit before the point, those behind it rounded to `digits_max`.
    pub(crate) fn scientific(&self, digits_max: Option<usize>) -> Parts {
        match digits_max {
            Some(digits_max) if self.digits.len() > digits_max + 1 => {
                self.scientific_exactly(digits_max)
            }
            _ => Parts {
                negative: self.negative,
                whole: self.digits[..1].to_owned(),
                fraction: self.digits[1..].to_owned(),
                exponent: Some(self.exponent),
            },
        }
    }

    /// The exact value rounded to so many digits behind the point, be they more or fewer than the shortest form has.
    pub(crate) fn scientific_exactly(&self, digits: usize) -> Parts {
        let text = format!("{:.digits$e}", self.value.abs());
        Decimal::of(&text, self.value).scientific(None)
    }

    /// Whether a plain number is easier to read than one with an exponent, as Python decides.
    fn is_plain(&self) -> bool {
        self.value == 0.0 || (1e-4..1e16).contains(&self.value.abs())
    }

    /// As Python shows a number that stands alone: `1.0`, `0.25`, `1e-05`.
    pub(crate) fn alone(&self) -> String {
        let sign = if self.negative { "-" } else { "" };
        if self.is_plain() {
            let Parts {
                whole, fraction, ..
            } = self.positional(usize::MAX);
            let fraction = if fraction.is_empty() { "0" } else { &fraction };
            return format!("{sign}{whole}.{fraction}");
        }
        let parts = self.scientific(None);
        let point = if parts.fraction.is_empty() { "" } else { "." };
        format!(
            "{sign}{}{point}{}{}",
            parts.whole,
            parts.fraction,
            parts.exponent_text(2)
        )
    }
}

/// A number's digits, to be put in columns.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parts {
    pub(crate) negative: bool,
    pub(crate) whole: String,
    pub(crate) fraction: String,
    pub(crate) exponent: Option<i32>,
}

impl Parts {
    /// `e+05`, with at least so many digits.
    pub(crate) fn exponent_text(&self, digits: usize) -> String {
        let exponent = self.exponent.unwrap_or(0);
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("e{sign}{:0digits$}", exponent.unsigned_abs())
    }

    /// From [`Decimal::scientific`]: JSON without an exponent where that is short.
    fn json(&self) -> String {
        let sign = if self.negative { "-" } else { "" };
        let exponent = self.exponent.unwrap_or(0);
        let digits = format!("{}{}", self.whole, self.fraction);
        let value: String = match exponent {
            0..16 => {
                let point = exponent as usize + 1;
                let padded = format!("{digits:0<point$}");
                match &padded[point..] {
                    "" => format!("{}.0", &padded[..point]),
                    fraction => format!("{}.{fraction}", &padded[..point]),
                }
            }
            -4..0 => {
                let zeros = "0".repeat(exponent.unsigned_abs() as usize - 1);
                format!("0.{zeros}{digits}")
            }
            _ if self.fraction.is_empty() => format!("{}e{exponent}", self.whole),
            _ => format!("{}.{}e{exponent}", self.whole, self.fraction),
        };
        format!("{sign}{value}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_digits() {
        let check = |value: f64, dtype, expected: &str| {
            assert_eq!(shortest(value, dtype).alone(), expected, "{dtype}");
        };
        check(f64::from(0.1f32), Dtype::F32, "0.1");
        check(f64::from(0.1f32), Dtype::F64, "0.10000000149011612");
        check(0.0999755859375, Dtype::F16, "0.1");
        check(65504.0, Dtype::F16, "65500.0");
        check(2f64.powi(-24), Dtype::F16, "6e-08");
        check(3.140625, Dtype::Bf16, "3.14");
        check(0.0625, Dtype::F8E4m3, "0.0625");
        check(1.0, Dtype::F16, "1.0");
        check(-0.0, Dtype::F32, "-0.0");
        check(1e16, Dtype::F64, "1e+16");
        check(1.5e300, Dtype::F64, "1.5e+300");
        check(123456789.0, Dtype::F64, "123456789.0");
    }

    #[test]
    fn json_has_the_same_number() {
        for value in [
            0.0f32,
            -0.0,
            1.0,
            -2.5,
            0.1,
            1e-3,
            1.25e-4,
            3e-5,
            1e15,
            1.5e16,
            f32::MAX,
            1e-45,
        ] {
            let text = Number::Float(value.into()).to_json(Dtype::F32);
            let read: f64 = serde_json::from_str(&text).unwrap();
            assert_eq!((read as f32).to_bits(), value.to_bits(), "{text}");
        }
        assert_eq!(Number::Float(f64::NAN).to_json(Dtype::F32), "\"NaN\"");
        assert_eq!(
            Number::Float(-f64::INFINITY).to_json(Dtype::F32),
            "\"-Infinity\""
        );
        assert_eq!(Number::Complex(1.0, -0.5).to_json(Dtype::C64), "[1.0,-0.5]");
        assert_eq!(Number::Float(12.0).to_json(Dtype::F16), "12.0");
        let tenth = Number::Float(0.100_097_656_25); // 0.1 as a BF16
        assert_eq!(tenth.to_json(Dtype::Bf16), "0.10009765625");
        let smallest = Number::Float(2f64.powi(-127)).to_json(Dtype::F8E8m0);
        assert_eq!(smallest.parse(), Ok(2f64.powi(-127)));
        assert_eq!(
            Number::Int(u64::MAX.into()).to_json(Dtype::U64),
            "18446744073709551615"
        );
    }

    #[test]
    fn bytes_become_numbers() {
        let check = |dtype, bytes: &[u8], expected: &[Number]| {
            assert_eq!(numbers(dtype, bytes).unwrap(), expected, "{dtype}");
        };
        check(
            Dtype::Bool,
            &[0, 1, 2],
            &[Number::Bool(false), Number::Bool(true), Number::Bool(true)],
        );
        check(Dtype::I8, &[0xff], &[Number::Int(-1)]);
        check(Dtype::I64, &[0xff; 8], &[Number::Int(-1)]);
        check(Dtype::U64, &[0xff; 8], &[Number::Int(u64::MAX.into())]);
        check(Dtype::Bf16, &[0x80, 0x3f], &[Number::Float(1.0)]);
        check(
            Dtype::C64,
            &[0, 0, 0x80, 0x3f, 0, 0, 0, 0x40],
            &[Number::Complex(1.0, 2.0)],
        );
    }
}
