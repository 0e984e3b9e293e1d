//! Arrays as numpy prints them: aligned, wrapped at 75 columns, the middle of large ones left out.
//!
//! The rules are those of `numpy.array2string` with its default print options (numpy 2.3), so that what is shown here can be compared
//! with what is shown there; `tests/data/numpy_text.json` holds numpy's own output.

use safelight_format::Dtype;

use crate::numbers::{Decimal, Number, shortest};

/// Arrays with more elements lose their middle, and as many stay at each edge.
pub(crate) const THRESHOLD: u64 = 1000;
pub(crate) const EDGE: u64 = 3;
const LINE_WIDTH: usize = 75;
/// Digits behind the point.
const PRECISION: usize = 8;

/// Which positions of each dimension are shown, and where something is left out.
pub(crate) struct Shown {
    shape: Vec<u64>,
    summarised: bool,
}

impl Shown {
    /// What is shown of an array of that shape; everything if `all`.
    pub(crate) fn new(shape: &[u64], all: bool) -> Shown {
        let count = shape
            .iter()
            .fold(1u64, |count, &dim| count.saturating_mul(dim));
        Shown {
            shape: shape.to_vec(),
            summarised: !all && count > THRESHOLD,
        }
    }

    fn is_cut(&self, axis: usize) -> bool {
        self.summarised && self.shape[axis] > 2 * EDGE
    }

    /// How many positions of a dimension are shown.
    fn len(&self, axis: usize) -> u64 {
        match self.is_cut(axis) {
            true => 2 * EDGE,
            false => self.shape[axis],
        }
    }

    /// How many elements are shown.
    pub(crate) fn count(&self) -> u64 {
        (0..self.shape.len()).fold(1, |count: u64, axis| count.saturating_mul(self.len(axis)))
    }

    /// The positions of all shown elements in the array, in order, row by row.
    pub(crate) fn positions(&self) -> impl Iterator<Item = u64> {
        let lens: Vec<u64> = (0..self.shape.len()).map(|axis| self.len(axis)).collect();
        (0..self.count()).map(move |shown| {
            let (mut rest, mut position, mut stride) = (shown, 0, 1);
            for axis in (0..lens.len()).rev() {
                let at = rest % lens[axis];
                rest /= lens[axis];
                let hidden = self.shape[axis] - lens[axis];
                let at = if self.is_cut(axis) && at >= EDGE {
                    at + hidden
                } else {
                    at
                };
                position += at * stride;
                stride *= self.shape[axis];
            }
            position
        })
    }
}

/// The array's text; `values` are those at [`Shown::positions`].
pub(crate) fn array_text(shown: &Shown, dtype: Dtype, values: &[Number]) -> String {
    if shown.shape.is_empty() {
        return alone(values[0], dtype);
    }
    if shown.shape.contains(&0) {
        return "[]".to_owned();
    }
    let words = words(dtype, values);
    let writer = Writer {
        shown,
        words: &words,
    };
    writer.brackets(0, 0, " ", LINE_WIDTH)
}

/// A number that is no array, as Python shows it.
fn alone(value: Number, dtype: Dtype) -> String {
    let float = |value: f64| match value {
        _ if value.is_nan() => "nan".to_owned(),
        f64::INFINITY => "inf".into(),
        f64::NEG_INFINITY => "-inf".into(),
        _ => shortest(value, dtype).alone(),
    };
    match value {
        Number::Bool(true) => "True".into(),
        Number::Bool(false) => "False".into(),
        Number::Int(value) => value.to_string(),
        Number::Float(value) => float(value),
        Number::Complex(re, im) => {
            let whole = |text: String| text.strip_suffix(".0").map(str::to_owned).unwrap_or(text);
            let (re, im) = (whole(float(re.into())), whole(float(im.into())));
            let plus = if im.starts_with('-') { "" } else { "+" };
            format!("({re}{plus}{im}j)")
        }
    }
}

struct Writer<'a> {
    shown: &'a Shown,
    words: &'a [String],
}

impl Writer<'_> {
    /// Everything below one position of the dimensions before `axis`; `first` is the first of its words.
    fn brackets(&self, axis: usize, first: usize, indent: &str, width: usize) -> String {
        let len = self.shown.len(axis) as usize;
        let cut = self.shown.is_cut(axis);
        let below: u64 = (axis + 1..self.shown.shape.len())
            .map(|axis| self.shown.len(axis))
            .product();
        let mut text = String::new();
        if axis + 1 == self.shown.shape.len() {
            let mut line = indent.to_owned();
            for position in 0..len {
                if cut && position == EDGE as usize {
                    extend(&mut text, &mut line, "...", width - 1, indent);
                    line.push(' ');
                }
                extend(
                    &mut text,
                    &mut line,
                    &self.words[first + position],
                    width - 1,
                    indent,
                );
                if position + 1 < len {
                    line.push(' ');
                }
            }
            text += &line;
        } else {
            let separator = "\n".repeat(self.shown.shape.len() - axis - 1);
            for position in 0..len {
                if cut && position == EDGE as usize {
                    text += &format!("{indent}...{separator}");
                }
                let first = first + position * below as usize;
                let deeper = format!("{indent} ");
                text += indent;
                text += &self.brackets(axis + 1, first, &deeper, width - 1);
                if position + 1 < len {
                    text += &separator;
                }
            }
        }
        format!("[{}]", &text[indent.len()..])
    }
}

/// Puts a word on the line, or on a new one if it does not fit.
fn extend(text: &mut String, line: &mut String, word: &str, width: usize, indent: &str) {
    if line.len() + word.len() > width && line.len() > indent.len() {
        text.push_str(line.trim_end());
        text.push('\n');
        line.clear();
        line.push_str(indent);
    }
    line.push_str(word);
}

/// Every element as a word, all equally wide.
fn words(dtype: Dtype, values: &[Number]) -> Vec<String> {
    let padded = |texts: Vec<String>| {
        let width = texts.iter().map(String::len).max().unwrap_or(0);
        texts.iter().map(|text| format!("{text:>width$}")).collect()
    };
    match values.first() {
        // `True` is as wide as `False`, whether or not there is one.
        Some(Number::Bool(_)) => values
            .iter()
            .map(|value| {
                if *value == Number::Bool(true) {
                    " True"
                } else {
                    "False"
                }
                .to_owned()
            })
            .collect(),
        Some(Number::Complex(..)) => {
            let part = |pick: fn(f32, f32) -> f32| -> Vec<f64> {
                let parts = values.iter().map(|value| match value {
                    Number::Complex(re, im) => f64::from(pick(*re, *im)),
                    _ => f64::NAN,
                });
                parts.collect()
            };
            let (re, im) = (part(|re, _| re), part(|_, im| im));
            let re = Floats::new(&re, dtype, false).words(&re);
            let im = Floats::new(&im, dtype, true).words(&im);
            let joined = re.iter().zip(&im).map(|(re, im)| {
                let digits = im.trim_end();
                format!("{re}{digits}j{}", &im[digits.len()..])
            });
            joined.collect()
        }
        Some(Number::Float(_)) => {
            let floats: Vec<f64> = values.iter().map(|value| value.to_f64()).collect();
            Floats::new(&floats, dtype, false).words(&floats)
        }
        _ => padded(values.iter().map(|value| alone(*value, dtype)).collect()),
    }
}

/// How all floats of an array are written, so that their points stand below each other.
struct Floats {
    dtype: Dtype,
    /// Whether positive numbers have a `+`.
    signed: bool,
    /// With an exponent: its digits, and the digits behind the point.
    scientific: Option<(usize, usize)>,
    left: usize,
    right: usize,
}

impl Floats {
    fn new(values: &[f64], dtype: Dtype, signed: bool) -> Floats {
        let mut floats = Floats {
            dtype,
            signed,
            scientific: None,
            left: 0,
            right: 0,
        };
        let finite = || values.iter().copied().filter(|value| value.is_finite());
        let sizes = || finite().map(f64::abs).filter(|&size| size != 0.0);
        let (max, min) = (
            sizes().fold(0.0, f64::max),
            sizes().fold(f64::INFINITY, f64::min),
        );
        let decimals: Vec<Decimal> = finite().map(|value| shortest(value, dtype)).collect();
        // numpy divides in the array's own precision.
        let ratio = if dtype == Dtype::F64 {
            max / min
        } else {
            f64::from(max as f32 / min as f32)
        };
        // By how many decimal digits the type keeps (numpy 2.3 and later).
        let large = match dtype {
            Dtype::F64 => 1e8,
            Dtype::F16 => 1e3,
            _ => 1e6,
        };
        // 0.0001 as the type has it is not small, though a little below it as an `f64`.
        let small = if dtype == Dtype::F64 {
            min < 1e-4
        } else {
            (min as f32) < 1e-4
        };
        if max >= large || small || (max > 0.0 && ratio > 1000.0) {
            let parts = || {
                decimals
                    .iter()
                    .map(|decimal| decimal.scientific(Some(PRECISION)))
            };
            let digits = parts().map(|part| part.fraction.len()).max().unwrap_or(0);
            let exponent = parts()
                .map(|part| part.exponent_text(2).len() - 2)
                .max()
                .unwrap_or(2);
            floats.scientific = Some((exponent, digits));
            floats.left = parts()
                .map(|part| floats.whole(&part).len())
                .max()
                .unwrap_or(0);
            floats.right = exponent + 2 + digits;
        } else {
            let parts = || decimals.iter().map(|decimal| decimal.positional(PRECISION));
            floats.left = parts()
                .map(|part| floats.whole(&part).len())
                .max()
                .unwrap_or(0);
            floats.right = parts().map(|part| part.fraction.len()).max().unwrap_or(0);
        }
        if decimals.len() < values.len() {
            let negative = signed || values.contains(&f64::NEG_INFINITY);
            let widest = 3 + usize::from(negative);
            floats.left = floats.left.max(3usize.saturating_sub(floats.right + 1));
            floats.left = floats.left.max(widest.saturating_sub(floats.right + 1));
        }
        floats
    }

    fn whole(&self, parts: &crate::numbers::Parts) -> String {
        let sign = match (parts.negative, self.signed) {
            (true, _) => "-",
            (false, true) => "+",
            (false, false) => "",
        };
        format!("{sign}{}", parts.whole)
    }

    fn words(&self, values: &[f64]) -> Vec<String> {
        values.iter().map(|&value| self.word(value)).collect()
    }

    fn word(&self, value: f64) -> String {
        let plus = if self.signed { "+" } else { "" };
        let (left, right) = (self.left, self.right);
        let special = match value {
            _ if value.is_nan() => format!("{plus}nan"),
            f64::INFINITY => format!("{plus}inf"),
            f64::NEG_INFINITY => "-inf".into(),
            _ => String::new(),
        };
        if !special.is_empty() {
            return format!("{special:>width$}", width = left + right + 1);
        }
        let decimal = shortest(value, self.dtype);
        match self.scientific {
            Some((exponent, digits)) => {
                let parts = decimal.scientific_exactly(digits);
                let (whole, tail) = (self.whole(&parts), parts.exponent_text(exponent));
                format!("{whole:>left$}.{:0<digits$}{tail}", parts.fraction)
            }
            None => {
                let parts = decimal.positional(PRECISION);
                format!("{:>left$}.{:<right$}", self.whole(&parts), parts.fraction)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::numbers;

    #[test]
    fn arrays_look_as_numpy_prints_them() {
        let golden = include_str!("../tests/data/numpy_text.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() > 100, "{} cases", cases.len());
        for case in cases {
            let dtype = Dtype::from_name(case["dtype"].as_str().unwrap()).unwrap();
            let shape: Vec<u64> = serde_json::from_value(case["shape"].clone()).unwrap();
            let hex = case["bytes"].as_str().unwrap();
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
            let all = numbers(dtype, &bytes).unwrap();
            let shown = Shown::new(&shape, false);
            let values: Vec<Number> = shown.positions().map(|at| all[at as usize]).collect();
            let text = array_text(&shown, dtype, &values);
            let expected = case["text"].as_str().unwrap();
            assert_eq!(
                text, expected,
                "{dtype} {shape:?}\n{text}\nnumpy:\n{expected}"
            );
        }
    }

    #[test]
    fn everything_is_shown_on_request() {
        let values: Vec<Number> = (0..1001).map(Number::Int).collect();
        let shown = Shown::new(&[1001], true);
        assert_eq!(shown.positions().count(), 1001);
        let text = array_text(&shown, Dtype::I32, &values);
        assert!(!text.contains("...") && text.ends_with("1000]"), "{text}");
    }

    #[test]
    fn positions_of_a_summary() {
        let shown = Shown::new(&[10, 200], false);
        let positions: Vec<u64> = shown.positions().collect();
        assert_eq!(positions[..7], [0, 1, 2, 197, 198, 199, 200]);
        assert_eq!((positions.len(), positions[35]), (36, 1999));
    }
}
