//! NumPy's array files: the header, read and written. Arrays themselves are read by `npz`, alone or from an archive.
//!
//! Source: NEP 1 and `numpy/lib/format.py`: a magic number, a version, the header's length, a Python dictionary in
//! Latin-1 (version 3: UTF-8), then the elements.

use safelight_format::{Dtype, shown};

/// A longer header is no honest one: numpy refuses more than 10,000 bytes.
pub(crate) const HEADER_BYTES_MAX: usize = 64 * 1024;

/// NumPy arrays have at most as many dimensions.
const RANK_MAX: usize = 64;

/// As deep as a header's lists and tuples may be.
const DEPTH_MAX: u32 = 16;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) element: Element,
    /// The first dimension's elements lie next to each other, not the last one's.
    pub(crate) fortran_order: bool,
    pub(crate) shape: Vec<u64>,
    /// Where the elements begin.
    pub(crate) data_at: usize,
    /// How many bytes one element takes, whatever it is; `None` for objects and what nothing here knows.
    pub(crate) item_bytes: Option<u64>,
}

impl Header {
    /// How many bytes all elements take; `None` if that is unknown or more than 2^64.
    pub(crate) fn data_bytes(&self) -> Option<u64> {
        let count = self
            .shape
            .iter()
            .try_fold(1u64, |all, &dim| all.checked_mul(dim));
        count?.checked_mul(self.item_bytes?)
    }
}

/// What one element of an array is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    /// A number that safetensors has.
    Number {
        dtype: Dtype,
        big_endian: bool,
        /// What was assumed, if the file does not say exactly.
        assumed: Option<&'static str>,
    },
    /// Text of this many characters of four bytes, or one byte each.
    Text {
        chars: u64,
        char_bytes: u64,
        big_endian: bool,
    },
    /// Anything else: why it is not read.
    Other { what: String },
}

impl Element {
    /// The size in bytes, if elements have one that we know.
    pub(crate) fn byte_count(&self) -> Option<u64> {
        match self {
            Element::Number { dtype, .. } => Some(dtype.bits() / 8),
            Element::Text {
                chars, char_bytes, ..
            } => chars.checked_mul(*char_bytes),
            Element::Other { .. } => None,
        }
    }
}

/// How many first bytes of a file hold the header, once `start` is long enough to tell.
///
/// # Errors
/// What is wrong, if it does not start as an npy file.
pub(crate) fn header_end(start: &[u8]) -> Result<Option<usize>, String> {
    let magic = b"\x93NUMPY";
    if !start.starts_with(&magic[..start.len().min(6)]) {
        return Err("does not start with NumPy's magic number".into());
    }
    let end = match start {
        [_, _, _, _, _, _, 1, _, low, high, ..] => {
            10 + usize::from(u16::from_le_bytes([*low, *high]))
        }
        [_, _, _, _, _, _, 2 | 3, _, a, b, c, d, ..] => {
            let len = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
            len.saturating_add(12)
        }
        [_, _, _, _, _, _, major, minor, ..] if !(1..=3).contains(major) => {
            return Err(format!("version {major}.{minor}; 1.0, 2.0 and 3.0 exist"));
        }
        _ => return Ok(None),
    };
    if end > HEADER_BYTES_MAX {
        return Err(format!(
            "a header of {end} bytes; {HEADER_BYTES_MAX} are enough for any"
        ));
    }
    Ok(Some(end))
}

/// The header's text, if it is all there; `start` begins as the file does.
pub(crate) fn header_text(start: &[u8]) -> Option<String> {
    let end = header_end(start).ok()??;
    let text = start.get(if start[6] == 1 { 10 } else { 12 }..end)?;
    Some(match std::str::from_utf8(text) {
        Ok(text) => text.to_owned(),
        Err(_) => text.iter().map(|&byte| char::from(byte)).collect(),
    })
}

/// Reads a header; `start` has at least as many bytes as [`header_end`] says.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse(start: &[u8]) -> Result<Header, String> {
    let cut_off = || "its header is cut off".to_owned();
    let data_at = header_end(start)?.ok_or_else(cut_off)?;
    let begin = if start[6] == 1 { 10 } else { 12 };
    let text = start.get(begin..data_at).ok_or_else(cut_off)?;
    let mut parser = Parser {
        text,
        at: 0,
        utf8: start[6] == 3,
    };
    let literal = parser.literal(0)?;
    parser.white_space();
    if parser.at != text.len() {
        return Err(parser.wrong("the header's end"));
    }
    let Literal::Dict(entries) = literal else {
        return Err("its header is not a dictionary".into());
    };
    let (mut descr, mut fortran_order, mut shape) = (None, None, None);
    for (key, value) in entries {
        let slot = match &*key {
            "descr" => &mut descr,
            "fortran_order" => &mut fortran_order,
            "shape" => &mut shape,
            other => return Err(format!("its header has the unknown key `{}`", shown(other))),
        };
        if slot.replace(value).is_some() {
            return Err(format!("its header has `{key}` twice"));
        }
    }
    let missing = |key: &str| format!("its header lacks `{key}`");
    let Literal::Bool(fortran_order) = fortran_order.ok_or_else(|| missing("fortran_order"))?
    else {
        return Err("`fortran_order` is neither True nor False".into());
    };
    let descr = descr.ok_or_else(|| missing("descr"))?;
    Ok(Header {
        item_bytes: item_bytes(&descr),
        element: element(&descr),
        fortran_order,
        shape: dims(shape.ok_or_else(|| missing("shape"))?)?,
        data_at,
    })
}

fn dims(shape: Literal) -> Result<Vec<u64>, String> {
    let Literal::Sequence(list) = shape else {
        return Err("`shape` is not a tuple".into());
    };
    if list.len() > RANK_MAX {
        return Err(format!(
            "{} dimensions; NumPy has at most {RANK_MAX}",
            list.len()
        ));
    }
    let dim = |dim| match dim {
        Literal::Int(number) => Ok(number),
        _ => Err("`shape` has something that is no number".to_owned()),
    };
    list.into_iter().map(dim).collect()
}

/// The size of an element: a type code, or a list of fields `(name, type)` or `(name, type, shape)`.
fn item_bytes(descr: &Literal) -> Option<u64> {
    match descr {
        Literal::Text(text) => {
            let code = text.trim_start_matches(['<', '>', '|', '=']);
            let (kind, digits) = code.split_at_checked(1)?;
            let unit = digits.find('[').unwrap_or(digits.len());
            let size: u64 = match &digits[..unit] {
                "" if kind == "?" => 1,
                digits => digits.parse().ok()?,
            };
            match kind {
                "U" => size.checked_mul(4),
                "O" => None,
                "?" | "b" | "i" | "u" | "f" | "c" | "S" | "a" | "V" | "M" | "m" => Some(size),
                _ => None,
            }
        }
        Literal::Sequence(fields) => fields.iter().try_fold(0u64, |all, field| {
            let Literal::Sequence(field) = field else {
                return None;
            };
            let size = item_bytes(field.get(1)?)?;
            let count = match field.get(2) {
                None => 1,
                Some(Literal::Int(count)) => *count,
                Some(Literal::Sequence(dims)) => {
                    dims.iter().try_fold(1u64, |all, dim| match dim {
                        Literal::Int(dim) => all.checked_mul(*dim),
                        _ => None,
                    })?
                }
                Some(_) => return None,
            };
            all.checked_add(size.checked_mul(count)?)
        }),
        _ => None,
    }
}

/// What a `descr` says an element is.
fn element(descr: &Literal) -> Element {
    let other = |what: String| Element::Other { what };
    let Literal::Text(text) = descr else {
        return other("a structured array (records); take its fields apart before saving".into());
    };
    let (order, rest) = match text.as_bytes().first() {
        Some(b'<' | b'>' | b'|' | b'=') => text.split_at(1),
        _ => ("=", &**text),
    };
    let big_endian = order == ">";
    let mut assumed = None;
    let dtype = match rest {
        "?" | "b1" => Dtype::Bool,
        "i1" => Dtype::I8,
        "u1" => Dtype::U8,
        "i2" => Dtype::I16,
        "u2" => Dtype::U16,
        "i4" => Dtype::I32,
        "u4" => Dtype::U32,
        "i8" => Dtype::I64,
        "u8" => Dtype::U64,
        "f2" => Dtype::F16,
        "f4" => Dtype::F32,
        "f8" => Dtype::F64,
        "c8" => Dtype::C64,
        // ml_dtypes registers exactly one float of one byte by this name.
        "f1" => Dtype::F8E5m2,
        "V2" => {
            assumed = Some(
                "two bytes without a type are read as BF16, which is how ml_dtypes and JAX save it",
            );
            Dtype::Bf16
        }
        "V1" => {
            assumed = Some(
                "bytes without a type are kept as U8: NumPy does not say which eight-bit float they are",
            );
            Dtype::U8
        }
        _ => return element_without_counterpart(text, rest, big_endian),
    };
    Element::Number {
        dtype,
        big_endian,
        assumed,
    }
}

fn element_without_counterpart(text: &str, rest: &str, big_endian: bool) -> Element {
    let count = rest.get(1..).and_then(|count| count.parse().ok());
    let shown = shown(text);
    let what = match (rest.as_bytes().first(), count) {
        (Some(b'U'), Some(chars)) => {
            return Element::Text {
                chars,
                char_bytes: 4,
                big_endian,
            };
        }
        (Some(b'S' | b'a'), Some(chars)) => {
            return Element::Text {
                chars,
                char_bytes: 1,
                big_endian: false,
            };
        }
        (Some(b'O'), _) => {
            "an object array: a pickle, which could run code when loaded; nothing of it was read"
                .to_owned()
        }
        (Some(b'c'), _) => {
            format!("complex numbers of {shown}; safetensors has c8 only, cast before saving")
        }
        (Some(b'f'), _) => {
            format!("floats of {shown}; safetensors has 16, 32 and 64 bits, cast before saving")
        }
        (Some(b'M' | b'm'), _) => format!("dates or durations ({shown}), which no tensor holds"),
        _ => format!("elements of type `{shown}`, which safetensors has not"),
    };
    Element::Other { what }
}

/// The first bytes of an npy file (version 1.0) whose elements of `dtype` follow in row-major order, little-endian.
///
/// BF16 is written as `<V2`, as ml_dtypes does it, and the one-byte floats as `|V1`: `array.view(ml_dtypes.bfloat16)` gives the numbers
/// back. (ml_dtypes itself writes E5M2 as `<f1`, which NumPy does not read.)
///
/// `None` for dtypes of less than a byte, and for more dimensions than NumPy has.
///
/// ```
/// use safelight_format::Dtype;
/// let header = safelight_convert::npy_header(Dtype::F32, &[2, 3]).unwrap();
/// assert!(header.starts_with(b"\x93NUMPY\x01\x00") && header.len() % 64 == 0);
/// ```
pub fn npy_header(dtype: Dtype, shape: &[u64]) -> Option<Vec<u8>> {
    let descr = match dtype {
        Dtype::Bool => "|b1",
        Dtype::U8 => "|u1",
        Dtype::I8 => "|i1",
        Dtype::I16 => "<i2",
        Dtype::U16 => "<u2",
        Dtype::I32 => "<i4",
        Dtype::U32 => "<u4",
        Dtype::I64 => "<i8",
        Dtype::U64 => "<u8",
        Dtype::F16 => "<f2",
        Dtype::F32 => "<f4",
        Dtype::F64 => "<f8",
        Dtype::C64 => "<c8",
        Dtype::Bf16 => "<V2",
        Dtype::F8E5m2 | Dtype::F8E4m3 | Dtype::F8E8m0 | Dtype::F8E4m3Fnuz | Dtype::F8E5m2Fnuz => {
            "|V1"
        }
        _ => return None,
    };
    if shape.len() > RANK_MAX {
        return None;
    }
    let dims = match shape {
        [only] => format!("{only},"),
        dims => dims
            .iter()
            .map(u64::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    };
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
    // A newline ends the header, and the elements start at a multiple of 64.
    let end = (10 + text.len() + 1).next_multiple_of(64);
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(((end - 10) as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.resize(end - 1, b' ');
    bytes.push(b'\n');
    Some(bytes)
}

/// A value as Python writes it: only what headers have.
#[derive(Debug)]
enum Literal {
    Text(String),
    Int(u64),
    Bool(bool),
    /// A tuple or list.
    Sequence(Vec<Literal>),
    Dict(Vec<(String, Literal)>),
}

/// Reads literals, and nothing that would have to be computed.
struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    utf8: bool,
}

impl Parser<'_> {
    fn white_space(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Takes a byte, if it is the next one after white space.
    fn eat(&mut self, byte: u8) -> bool {
        self.white_space();
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn wrong(&self, expected: &str) -> String {
        format!(
            "its header is not a Python literal: {expected} expected at its byte {}",
            self.at
        )
    }

    fn literal(&mut self, depth: u32) -> Result<Literal, String> {
        if depth > DEPTH_MAX {
            return Err(format!("its header is nested deeper than {DEPTH_MAX}"));
        }
        self.white_space();
        match self.peek() {
            Some(b'{') => self.dict(depth),
            Some(b'(') => self.sequence(b'(', b')', depth),
            Some(b'[') => self.sequence(b'[', b']', depth),
            Some(b'\'' | b'"') => self.string().map(Literal::Text),
            Some(b'0'..=b'9') => self.int().map(Literal::Int),
            _ => {
                for (word, value) in [(b"True".as_slice(), true), (b"False".as_slice(), false)] {
                    if self.text[self.at..].starts_with(word) {
                        self.at += word.len();
                        return Ok(Literal::Bool(value));
                    }
                }
                Err(self.wrong("a value"))
            }
        }
    }

    fn dict(&mut self, depth: u32) -> Result<Literal, String> {
        self.at += 1;
        let mut entries = Vec::new();
        while !self.eat(b'}') {
            if !matches!(self.peek(), Some(b'\'' | b'"')) {
                return Err(self.wrong("a key"));
            }
            let key = self.string()?;
            if !self.eat(b':') {
                return Err(self.wrong("`:`"));
            }
            entries.push((key, self.literal(depth + 1)?));
            if !self.eat(b',') {
                if !self.eat(b'}') {
                    return Err(self.wrong("`,` or `}`"));
                }
                break;
            }
        }
        Ok(Literal::Dict(entries))
    }

    fn sequence(&mut self, open: u8, close: u8, depth: u32) -> Result<Literal, String> {
        self.at += 1;
        let mut list = Vec::new();
        let mut comma = false;
        while !self.eat(close) {
            list.push(self.literal(depth + 1)?);
            if !self.eat(b',') {
                if !self.eat(close) {
                    return Err(self.wrong("`,` or an end"));
                }
                break;
            }
            comma = true;
        }
        // (1) is a number in brackets, (1,) a tuple.
        if open == b'(' && list.len() == 1 && !comma {
            return Ok(list.remove(0));
        }
        Ok(Literal::Sequence(list))
    }

    fn string(&mut self) -> Result<String, String> {
        let quote = self.text[self.at];
        self.at += 1;
        let start = self.at;
        while self
            .peek()
            .is_some_and(|byte| byte != quote && byte != b'\\')
        {
            self.at += 1;
        }
        if self.peek() != Some(quote) {
            return Err(self.wrong("the end of a text without escapes"));
        }
        let bytes = &self.text[start..self.at];
        self.at += 1;
        if self.utf8 {
            let text = String::from_utf8_lossy(bytes);
            return Ok(text.into_owned());
        }
        Ok(bytes.iter().map(|&byte| char::from(byte)).collect())
    }

    fn int(&mut self) -> Result<u64, String> {
        let mut number = 0u64;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            let next = number.checked_mul(10);
            let next = next.and_then(|number| number.checked_add(u64::from(digit - b'0')));
            number = next.ok_or_else(|| self.wrong("a number of 64 bits"))?;
            self.at += 1;
        }
        // Python 2 wrote long integers with an L.
        if self.peek() == Some(b'L') {
            self.at += 1;
        }
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of version 1.0 with this header.
    fn file(header: &str) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes
    }

    #[track_caller]
    fn check(header: &str, dtype: Dtype, fortran_order: bool, shape: &[u64]) {
        let parsed = parse(&file(header)).unwrap();
        assert!(
            matches!(parsed.element, Element::Number { dtype: found, .. } if found == dtype),
            "{:?}",
            parsed.element
        );
        assert_eq!(parsed.fortran_order, fortran_order);
        assert_eq!(parsed.shape, shape);
        assert_eq!(parsed.data_at, 10 + header.len());
    }

    #[test]
    fn headers_in_every_style() {
        check(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }  \n",
            Dtype::F32,
            false,
            &[3, 4],
        );
        check(
            "{\"shape\":[],\"descr\":\"|b1\",\"fortran_order\":True}",
            Dtype::Bool,
            true,
            &[],
        );
        check(
            "{'descr': '>i8', 'fortran_order': False, 'shape': (7L,)}",
            Dtype::I64,
            false,
            &[7],
        );
        check(
            "{'descr': '<V2', 'fortran_order': False, 'shape': ()}",
            Dtype::Bf16,
            false,
            &[],
        );
        check(
            "{'descr': 'f8', 'fortran_order': False, 'shape': (0, 18446744073709551615)}",
            Dtype::F64,
            false,
            &[0, u64::MAX],
        );
    }

    #[track_caller]
    fn refused(header: &str, expected: &str) {
        let error = parse(&file(header)).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn what_is_no_header() {
        refused("", "a value expected at its byte 0");
        refused("[]", "not a dictionary");
        refused("{'descr': '<f4', 'fortran_order': False}", "lacks `shape`");
        refused(
            "{'descr': '<f4', 'fortran_order': 0, 'shape': ()}",
            "neither True nor False",
        );
        refused(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3)}",
            "not a tuple",
        );
        refused(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-3,)}",
            "a value expected",
        );
        refused(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
            "64 bits",
        );
        refused("{'descr': '<f4', 'descr': '<f4'}", "`descr` twice");
        refused("{'x': True}", "unknown key `x`");
        refused("{'descr': __import__('os')}", "a value expected");
        refused("{'descr': '\\x3c'}", "without escapes");
        refused("{} {}", "the header's end expected");
        refused(&"(".repeat(100), "nested deeper");
        refused(
            &format!(
                "{{'descr': '<f4', 'fortran_order': False, 'shape': ({})}}",
                "1,".repeat(65)
            ),
            "65 dimensions",
        );
        assert!(
            parse(b"\x93NUMPY\x04\x00aaaa")
                .unwrap_err()
                .contains("version 4.0")
        );
        assert!(
            parse(b"\x93NUMPY\x02\x00\xff\xff\xff\xff")
                .unwrap_err()
                .contains("4294967307")
        );
        assert!(parse(b"\x93NUM").unwrap_err().contains("cut off"));
        assert!(
            parse(b"\x93NUMPY\x01\x00\x10\x00{}")
                .unwrap_err()
                .contains("cut off")
        );
        assert!(parse(b"PK\x03\x04").unwrap_err().contains("magic"));
    }

    #[track_caller]
    fn other(descr: &str, expected: &str) {
        let header = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': ()}}");
        match parse(&file(&header)).unwrap().element {
            Element::Other { what } => assert!(what.contains(expected), "{what}"),
            element => panic!("{element:?}"),
        }
    }

    #[test]
    fn what_has_no_counterpart_says_so() {
        other("'|O'", "object array");
        other("[('a', '<f4')]", "structured");
        other("'<c16'", "complex numbers of <c16");
        other("'<f16'", "floats of <f16");
        other("'<M8[ns]'", "dates");
        other("'|V8'", "type `|V8`");
        other("''", "type ``");
        other("'\u{e9}'", "which safetensors has not");
    }

    #[test]
    fn what_we_write_we_read() {
        for dtype in Dtype::ALL {
            for shape in [&[][..], &[5], &[2, 0, 3], &[u64::MAX; 64]] {
                let Some(bytes) = npy_header(dtype, shape) else {
                    assert!(dtype.bits() < 8, "{dtype}");
                    continue;
                };
                let header = parse(&bytes).unwrap();
                assert_eq!(
                    (header.shape.as_slice(), header.data_at),
                    (shape, bytes.len())
                );
                assert_eq!(
                    header.element.byte_count(),
                    Some(dtype.bits() / 8),
                    "{dtype}"
                );
                assert_eq!(bytes.len() % 64, 0);
            }
        }
        assert_eq!(npy_header(Dtype::F32, &[1; 65]), None);
    }
}
