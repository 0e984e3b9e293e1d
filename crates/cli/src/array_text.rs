//! Arrays as numpy prints them: aligned, wrapped at 75 columns, the middle of large ones left out.
//!
//! The rules are those of `numpy.array2string` with its default print options (numpy 2.3), so that what is shown here can be compared
//! with what is shown there; `tests/data/numpy_text.json` holds numpy's own output.

use safelight_format::Dtype;

use crate::numbers::{Number, shortest};

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
    let mut survey = Survey::new(dtype);
    survey.add(values);
    let columns = survey.columns();
    let mut layout = Layout::new(shown);
    let (mut text, mut word) = (String::new(), String::new());
    for value in values {
        word.clear();
        columns.push(*value, &mut word);
        layout.push(&word, &mut text);
    }
    layout.end(&mut text);
    text
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

/// An array's text, word by word: brackets, lines, what is left out. Knows one line of it.
pub(crate) struct Layout<'a> {
    shown: &'a Shown,
    /// The position of the next word, among those that are shown.
    position: Vec<u64>,
    /// What stands on the line behind its brackets or spaces, of which there is one for each dimension.
    line: String,
    is_begun: bool,
}

impl<'a> Layout<'a> {
    pub(crate) fn new(shown: &'a Shown) -> Layout<'a> {
        Layout {
            shown,
            position: vec![0; shown.shape.len()],
            line: String::new(),
            is_begun: false,
        }
    }

    fn rank(&self) -> usize {
        self.shown.shape.len()
    }

    /// Appends to `text` all that is certain once the next word is known.
    pub(crate) fn push(&mut self, word: &str, text: &mut String) {
        let rank = self.rank();
        let last = rank.checked_sub(1).expect("a number alone is no array");
        if !self.is_begun {
            self.is_begun = true;
            repeat('[', rank, text);
        }
        if self.shown.is_cut(last) && self.position[last] == EDGE {
            self.put("...", text);
            self.line.push(' ');
        }
        self.put(word, text);
        self.position[last] += 1;
        if self.position[last] < self.shown.len(last) {
            self.line.push(' ');
            return;
        }
        text.push_str(&self.line);
        self.line.clear();
        self.close(text);
    }

    /// Closes all dimensions that are full, and opens them again if more is to come.
    fn close(&mut self, text: &mut String) {
        let rank = self.rank();
        let mut axis = rank - 1;
        while self.position[axis] == self.shown.len(axis) {
            text.push(']');
            if axis == 0 {
                return;
            }
            self.position[axis] = 0;
            axis -= 1;
            self.position[axis] += 1;
        }
        let closed = rank - 1 - axis;
        repeat('\n', closed, text);
        if self.shown.is_cut(axis) && self.position[axis] == EDGE {
            repeat(' ', axis + 1, text);
            text.push_str("...");
            repeat('\n', closed, text);
        }
        repeat(' ', axis + 1, text);
        repeat('[', closed, text);
    }

    /// Puts a word on the line, or on a new one if it does not fit; closing brackets have to fit too.
    fn put(&mut self, word: &str, text: &mut String) {
        let rank = self.rank();
        let columns = rank + self.line.len() + word.len();
        if columns > LINE_WIDTH.saturating_sub(rank) && !self.line.is_empty() {
            text.push_str(self.line.trim_end());
            text.push('\n');
            repeat(' ', rank, text);
            self.line.clear();
        }
        self.line.push_str(word);
    }

    /// Arrays without elements have no words.
    pub(crate) fn end(&self, text: &mut String) {
        if self.shown.shape.contains(&0) {
            text.push_str("[]");
        }
    }
}

/// Appends a character so many times.
pub(crate) fn repeat(what: char, count: usize, text: &mut String) {
    text.extend(std::iter::repeat_n(what, count));
}

/// What all elements of an array have in common, looked at one after the other, in any number of parts.
#[derive(Clone)]
pub(crate) struct Survey {
    /// The widest integer.
    width: usize,
    re: FloatSurvey,
    im: FloatSurvey,
}

impl Survey {
    pub(crate) fn new(dtype: Dtype) -> Survey {
        Survey {
            width: 0,
            re: FloatSurvey::new(dtype, false),
            im: FloatSurvey::new(dtype, true),
        }
    }

    pub(crate) fn add(&mut self, values: &[Number]) {
        for value in values {
            match *value {
                Number::Bool(_) => {}
                Number::Int(value) => {
                    let digits = value.unsigned_abs().checked_ilog10().unwrap_or(0) as usize + 1;
                    self.width = self.width.max(digits + usize::from(value < 0));
                }
                Number::Float(value) => self.re.add(value),
                Number::Complex(re, im) => {
                    self.re.add(re.into());
                    self.im.add(im.into());
                }
            }
        }
    }

    /// Takes another part's findings in.
    pub(crate) fn merge(&mut self, other: &Survey) {
        self.width = self.width.max(other.width);
        self.re.merge(&other.re);
        self.im.merge(&other.im);
    }

    /// How every element is written, so that all are equally wide.
    pub(crate) fn columns(&self) -> Columns {
        Columns {
            width: self.width,
            re: self.re.floats(),
            im: self.im.floats(),
        }
    }
}

/// How every element of an array is written.
pub(crate) struct Columns {
    width: usize,
    re: Floats,
    im: Floats,
}

impl Columns {
    /// Appends an element as a word.
    pub(crate) fn push(&self, value: Number, text: &mut String) {
        use std::fmt::Write as _;
        match value {
            // `True` is as wide as `False`, whether or not there is one.
            Number::Bool(value) => text.push_str(if value { " True" } else { "False" }),
            Number::Int(value) => {
                write!(text, "{value:>width$}", width = self.width).expect("memory takes it");
            }
            Number::Float(value) => self.re.push(value, text),
            Number::Complex(re, im) => {
                self.re.push(re.into(), text);
                self.im.push(im.into(), text);
                let end = text.trim_end().len();
                text.insert(end, 'j');
            }
        }
    }
}

/// What the floats of an array have in common.
#[derive(Clone)]
struct FloatSurvey {
    dtype: Dtype,
    signed: bool,
    /// Of those that are finite and not 0, by size.
    max: f64,
    min: f64,
    has_not_finite: bool,
    has_negative_infinity: bool,
    /// Written with an exponent: its digits, the digits behind the point, those before it with the sign.
    scientific: (usize, usize, usize),
    /// Written without: before the point with the sign, and behind it.
    positional: (usize, usize),
}

impl FloatSurvey {
    fn new(dtype: Dtype, signed: bool) -> FloatSurvey {
        FloatSurvey {
            dtype,
            signed,
            max: 0.0,
            min: f64::INFINITY,
            has_not_finite: false,
            has_negative_infinity: false,
            scientific: (0, 0, 0),
            positional: (0, 0),
        }
    }

    fn add(&mut self, value: f64) {
        if !value.is_finite() {
            self.has_not_finite = true;
            self.has_negative_infinity |= value == f64::NEG_INFINITY;
            return;
        }
        let size = value.abs();
        if size != 0.0 {
            (self.max, self.min) = (self.max.max(size), self.min.min(size));
        }
        let decimal = shortest(value, self.dtype);
        let sign = usize::from(decimal.is_negative() || self.signed);
        let (digits, exponent) = decimal.scientific_lens(PRECISION).unwrap_or_else(|| {
            let parts = decimal.scientific(Some(PRECISION));
            (parts.fraction.len(), parts.exponent.unwrap_or(0))
        });
        let exponent = (exponent.unsigned_abs().checked_ilog10().unwrap_or(0) as usize + 1).max(2);
        let (most, longest, widest) = self.scientific;
        self.scientific = (
            most.max(exponent),
            longest.max(digits),
            widest.max(sign + 1),
        );
        let (left, right) = self.positional;
        let lens = decimal.positional_lens(PRECISION);
        let (whole, fraction) = lens.unwrap_or_else(|| {
            let parts = decimal.positional(PRECISION);
            (parts.whole.len(), parts.fraction.len())
        });
        self.positional = (left.max(sign + whole), right.max(fraction));
    }

    fn merge(&mut self, other: &FloatSurvey) {
        (self.max, self.min) = (self.max.max(other.max), self.min.min(other.min));
        self.has_not_finite |= other.has_not_finite;
        self.has_negative_infinity |= other.has_negative_infinity;
        let (mine, others) = (self.scientific, other.scientific);
        self.scientific = (
            mine.0.max(others.0),
            mine.1.max(others.1),
            mine.2.max(others.2),
        );
        let (mine, others) = (self.positional, other.positional);
        self.positional = (mine.0.max(others.0), mine.1.max(others.1));
    }

    fn floats(&self) -> Floats {
        let (max, min) = (self.max, self.min);
        // numpy divides in the array's own precision.
        let ratio = if self.dtype == Dtype::F64 {
            max / min
        } else {
            f64::from(max as f32 / min as f32)
        };
        // By how many decimal digits the type keeps (numpy 2.3 and later).
        let large = match self.dtype {
            Dtype::F64 => 1e8,
            Dtype::F16 => 1e3,
            _ => 1e6,
        };
        // 0.0001 as the type has it is not small, though a little below it as an `f64`.
        let small = if self.dtype == Dtype::F64 {
            min < 1e-4
        } else {
            (min as f32) < 1e-4
        };
        let (exponent, digits, widest) = self.scientific;
        let is_scientific = max >= large || small || (max > 0.0 && ratio > 1000.0);
        let (scientific, mut left, right) = match is_scientific {
            true => (Some((exponent, digits)), widest, exponent + 2 + digits),
            false => (None, self.positional.0, self.positional.1),
        };
        if self.has_not_finite {
            let negative = self.signed || self.has_negative_infinity;
            let widest = 3 + usize::from(negative);
            left = left.max(widest.saturating_sub(right + 1));
        }
        Floats {
            dtype: self.dtype,
            signed: self.signed,
            scientific,
            left,
            right,
        }
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
    fn whole(&self, parts: &crate::numbers::Parts) -> String {
        let sign = match (parts.negative, self.signed) {
            (true, _) => "-",
            (false, true) => "+",
            (false, false) => "",
        };
        format!("{sign}{}", parts.whole)
    }

    /// Appends a number.
    fn push(&self, value: f64, text: &mut String) {
        let (left, right) = (self.left, self.right);
        let decimal = match value.is_finite() {
            true => shortest(value, self.dtype),
            false => {
                text.push_str(&self.special(value));
                return;
            }
        };
        let lens = decimal.positional_lens(PRECISION);
        match (self.scientific, lens) {
            (Some((exponent, digits)), _) => {
                let parts = decimal.scientific_exactly(digits);
                let (whole, tail) = (self.whole(&parts), parts.exponent_text(exponent));
                *text += &format!("{whole:>left$}.{:0<digits$}{tail}", parts.fraction);
            }
            // Most numbers of most tensors, so without memory taken.
            (None, Some((whole, fraction))) => {
                let sign = match (decimal.is_negative(), self.signed) {
                    (true, _) => "-",
                    (false, true) => "+",
                    (false, false) => "",
                };
                repeat(' ', left.saturating_sub(sign.len() + whole), text);
                text.push_str(sign);
                decimal.push_positional((whole, fraction), text);
                repeat(' ', right.saturating_sub(fraction), text);
            }
            (None, None) => {
                let parts = decimal.positional(PRECISION);
                *text += &format!("{:>left$}.{:<right$}", self.whole(&parts), parts.fraction);
            }
        }
    }

    /// NaN and infinities.
    fn special(&self, value: f64) -> String {
        let plus = if self.signed { "+" } else { "" };
        let special = match value {
            f64::INFINITY => format!("{plus}inf"),
            f64::NEG_INFINITY => "-inf".into(),
            _ => format!("{plus}nan"),
        };
        format!("{special:>width$}", width = self.left + self.right + 1)
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
