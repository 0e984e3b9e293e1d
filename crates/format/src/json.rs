//! A scanner over JSON text: one pass, no tree, nothing copied but strings with escapes. UTF-8 is
//! checked string by string; outside of strings JSON has ASCII only.
//!
//! It follows RFC 8259 without extensions. Where the RFC leaves room it does as `serde_json` 1.0
//! with its default features, because Hugging Face's verdicts are made by that: containers nest
//! at most 127 deep, and a number too large for an `f64` is an error.

use std::borrow::Cow;

use crate::error::{FormatError, JsonKind};
use crate::header::LENGTH_BYTES;
use crate::usual::plain_len;

/// Containers that may lie in one another.
const DEPTH_MAX: u32 = 127;

/// Reads JSON text token by token. Byte positions in errors count from the file's start.
pub(crate) struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(text: &'a [u8]) -> Scanner<'a> {
        Scanner { text, at: 0 }
    }

    /// Where the scanner stands, from the file's start.
    pub(crate) fn at_byte(&self) -> u64 {
        LENGTH_BYTES + self.at as u64
    }

    /// The next byte, not consumed; `None` at the end.
    pub(crate) fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// The next character, not consumed; `None` at the end and where there is none.
    pub(crate) fn peek_char(&self) -> Option<char> {
        let rest = self.rest();
        let chunk = rest[..rest.len().min(4)].utf8_chunks().next()?;
        chunk.valid().chars().next()
    }

    /// Steps over white space, then looks at the next byte.
    pub(crate) fn peek_token(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
        self.peek()
    }

    /// Steps over spaces only.
    pub(crate) fn skip_spaces(&mut self) {
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
    }

    /// Steps over the byte last seen by `peek`.
    pub(crate) fn bump(&mut self) {
        self.at += 1;
    }

    /// How many bytes of the text are consumed.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Back to where [`Scanner::at`] was.
    pub(crate) fn seek(&mut self, at: usize) {
        self.at = at;
    }

    /// What has not been consumed.
    pub(crate) fn rest(&self) -> &'a [u8] {
        &self.text[self.at..]
    }

    /// Consumes as many bytes of what [`Scanner::rest`] gave.
    pub(crate) fn skip(&mut self, bytes: usize) {
        self.at += bytes;
    }

    /// The error "`expected` is expected here".
    #[cold]
    pub(crate) fn unexpected(&self, expected: &'static str) -> FormatError {
        FormatError::NotJson {
            at_byte: self.at_byte(),
            expected,
            found: self.peek_char(),
        }
    }

    /// White space, then this byte.
    pub(crate) fn expect(&mut self, byte: u8, name: &'static str) -> Result<(), FormatError> {
        if self.peek_token() != Some(byte) {
            return Err(self.unexpected(name));
        }
        self.at += 1;
        Ok(())
    }

    /// After a member or element: `true` at a comma, `false` at the closing byte; both consumed.
    pub(crate) fn another(
        &mut self,
        close: u8,
        expected: &'static str,
    ) -> Result<bool, FormatError> {
        match self.peek_token() {
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            _ => Err(self.unexpected(expected)),
        }
    }

    /// After an opening byte: consumes the closing one if it follows at once.
    pub(crate) fn empty(&mut self, close: u8) -> bool {
        let empty = self.peek_token() == Some(close);
        self.at += usize::from(empty);
        empty
    }

    /// A member's name and the colon behind it.
    pub(crate) fn key(&mut self) -> Result<Cow<'a, str>, FormatError> {
        if self.peek_token() != Some(b'"') {
            return Err(self.unexpected("a name in quotes"));
        }
        let key = self.string()?;
        self.expect(b':', "`:`")?;
        Ok(key)
    }

    /// A string; the caller has peeked its opening quote. Borrowed unless it has escapes.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>, FormatError> {
        self.at += 1;
        let start = self.at;
        self.skip_plain();
        if self.peek() == Some(b'"') {
            self.at += 1;
            return self.utf8(start, self.at - 1).map(Cow::Borrowed);
        }
        let mut unescaped = self.utf8(start, self.at)?.to_owned();
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Cow::Owned(unescaped));
                }
                Some(b'\\') => unescaped.push(self.escape()?),
                Some(_) => return Err(self.unexpected("text without control characters")),
                None => return Err(self.unexpected("`\"`")),
            }
            let start = self.at;
            self.skip_plain();
            unescaped.push_str(self.utf8(start, self.at)?);
        }
    }

    /// These bytes as text.
    fn utf8(&self, start: usize, end: usize) -> Result<&'a str, FormatError> {
        std::str::from_utf8(&self.text[start..end]).map_err(|error| FormatError::NotUtf8 {
            at_byte: LENGTH_BYTES + (start + error.valid_up_to()) as u64,
        })
    }

    /// Steps to the next quote, backslash, control character or the end.
    fn skip_plain(&mut self) {
        self.at += plain_len(self.rest());
    }

    /// A backslash and what it stands for.
    fn escape(&mut self) -> Result<char, FormatError> {
        self.at += 1;
        let c = match self.peek() {
            Some(c @ (b'"' | b'\\' | b'/')) => char::from(c),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(),
            _ => return Err(self.unexpected("an escape such as `\\n` or `\\u0020`")),
        };
        self.at += 1;
        Ok(c)
    }

    /// `u` and four hexadecimal digits, twice for characters above U+FFFF.
    fn unicode_escape(&mut self) -> Result<char, FormatError> {
        let first = self.four_digits()?;
        if let Some(c) = char::from_u32(first) {
            return Ok(c);
        }
        if first < 0xdc00 && self.rest().starts_with(b"\\u") {
            self.at += 1;
            let second = self.four_digits()?;
            if (0xdc00..0xe000).contains(&second) {
                let c = char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00));
                return c.ok_or_else(|| self.unexpected("a surrogate pair"));
            }
        }
        Err(self.unexpected("the second half of a surrogate pair"))
    }

    fn four_digits(&mut self) -> Result<u32, FormatError> {
        self.at += 1;
        let mut value = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            value = value * 16 + digit.ok_or_else(|| self.unexpected("a hexadecimal digit"))?;
            self.at += 1;
        }
        Ok(value)
    }

    /// An integer from 0 to 2^64 - 1, written as digits only; `None`, with nothing consumed, if
    /// something else stands here.
    pub(crate) fn integer(&mut self) -> Option<u64> {
        let rest = self.rest();
        let mut value = 0u64;
        let mut len = 0;
        while let Some(digit @ b'0'..=b'9') = rest.get(len) {
            value = value
                .checked_mul(10)?
                .checked_add(u64::from(digit - b'0'))?;
            len += 1;
        }
        let leading_zero = len > 1 && rest[0] == b'0';
        if len == 0 || leading_zero || matches!(rest.get(len), Some(b'.' | b'e' | b'E')) {
            return None;
        }
        self.at += len;
        Some(value)
    }

    /// The type of the value that starts here; an error if none does.
    pub(crate) fn kind(&mut self) -> Result<JsonKind, FormatError> {
        Ok(match self.peek_token() {
            Some(b'n') => JsonKind::Null,
            Some(b't' | b'f') => JsonKind::Bool,
            Some(b'"') => JsonKind::String,
            Some(b'[') => JsonKind::Array,
            Some(b'{') => JsonKind::Object,
            Some(b'-' | b'0'..=b'9') => {
                let start = self.at;
                let kind = if self.integer().is_some() {
                    JsonKind::Integer
                } else {
                    JsonKind::Number
                };
                self.at = start;
                kind
            }
            _ => return Err(self.unexpected("a value")),
        })
    }

    /// Checks the value that starts here and steps over it; it lies in `depth` containers.
    pub(crate) fn skip_value(&mut self, depth: u32) -> Result<(), FormatError> {
        match self.peek_token() {
            Some(b'"') => self.string().map(drop),
            Some(b'-' | b'0'..=b'9') => self.skip_number(),
            Some(b'n') => self.literal("null"),
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'[' | b'{') if depth >= DEPTH_MAX => Err(FormatError::TooDeep {
                at_byte: self.at_byte(),
            }),
            Some(b'[') => {
                self.at += 1;
                if self.empty(b']') {
                    return Ok(());
                }
                loop {
                    self.skip_value(depth + 1)?;
                    if !self.another(b']', "`,` or `]`")? {
                        return Ok(());
                    }
                }
            }
            Some(b'{') => {
                self.at += 1;
                if self.empty(b'}') {
                    return Ok(());
                }
                loop {
                    self.key()?;
                    self.skip_value(depth + 1)?;
                    if !self.another(b'}', "`,` or `}`")? {
                        return Ok(());
                    }
                }
            }
            _ => Err(self.unexpected("a value")),
        }
    }

    /// `null`, `true` or `false`.
    pub(crate) fn literal(&mut self, word: &'static str) -> Result<(), FormatError> {
        if !self.rest().starts_with(word.as_bytes()) {
            return Err(self.unexpected("a value"));
        }
        self.at += word.len();
        Ok(())
    }

    /// A number of any form that fits an `f64`.
    ///
    /// Whether one near the edge fits depends on the order of roundings. This is `serde_json`'s:
    /// up to 19 or 20 digits as an integer, later digits dropped (those before the point count
    /// for the exponent), then one multiplication by a power of ten.
    fn skip_number(&mut self) -> Result<(), FormatError> {
        let mut digits = Digits {
            significand: 0,
            full: false,
            exponent: 0,
        };
        self.at += usize::from(self.peek() == Some(b'-'));
        let leading_zero = self.peek() == Some(b'0');
        let whole_count = self.digits(&mut digits, false)?;
        if leading_zero && whole_count > 1 {
            self.at -= whole_count - 1;
            return Err(self.unexpected("a number without leading zeros"));
        }
        let point = self.peek() == Some(b'.');
        if point {
            self.at += 1;
            self.digits(&mut digits, true)?;
        }
        let mut fits = true;
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            let negative = self.peek() == Some(b'-');
            self.at += usize::from(matches!(self.peek(), Some(b'-' | b'+')));
            match self.exponent()? {
                Some(exponent) if negative => {
                    digits.exponent = digits.exponent.saturating_sub(exponent)
                }
                Some(exponent) => digits.exponent = digits.exponent.saturating_add(exponent),
                None => {
                    fits = negative || digits.significand == 0;
                    digits.significand = 0;
                }
            }
        }
        if fits && digits.fit() {
            Ok(())
        } else {
            Err(FormatError::NumberOutOfRange {
                at_byte: self.at_byte(),
            })
        }
    }

    /// One or more digits; returns how many.
    fn digits(&mut self, digits: &mut Digits, fraction: bool) -> Result<usize, FormatError> {
        let start = self.at;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            digits.push(u64::from(digit - b'0'), fraction);
            self.at += 1;
        }
        if self.at == start {
            return Err(self.unexpected("a digit"));
        }
        Ok(self.at - start)
    }

    /// The digits of an exponent; `None` if they are more than an `i32` holds.
    fn exponent(&mut self) -> Result<Option<i32>, FormatError> {
        let start = self.at;
        let mut exponent = Some(0i32);
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            let digit = i32::from(digit - b'0');
            exponent = exponent.and_then(|e| e.checked_mul(10)?.checked_add(digit));
            self.at += 1;
        }
        if self.at == start {
            return Err(self.unexpected("a digit"));
        }
        Ok(exponent)
    }
}

/// A decimal number on its way to an `f64`: `significand` · 10^`exponent`.
struct Digits {
    significand: u64,
    /// The significand has no room for the next digit.
    full: bool,
    exponent: i32,
}

impl Digits {
    fn push(&mut self, digit: u64, fraction: bool) {
        let next = if self.full {
            None
        } else {
            self.significand
                .checked_mul(10)
                .and_then(|s| s.checked_add(digit))
        };
        match next {
            Some(significand) => {
                self.significand = significand;
                self.exponent -= i32::from(fraction);
            }
            None => {
                self.full = true;
                self.exponent = self.exponent.saturating_add(i32::from(!fraction));
            }
        }
    }

    /// Whether the number is finite as an `f64`.
    fn fit(&self) -> bool {
        if self.significand == 0 || self.exponent <= 0 {
            return true;
        }
        let power: f64 = if self.exponent > 308 {
            f64::INFINITY
        } else {
            format!("1e{}", self.exponent)
                .parse()
                .unwrap_or(f64::INFINITY)
        };
        (self.significand as f64 * power).is_finite()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_value(text: &str, accepted: bool) {
        let mut scanner = Scanner::new(text.as_bytes());
        let verdict = scanner.skip_value(2).is_ok() && scanner.peek_token().is_none();
        assert_eq!(verdict, accepted, "{text}");
    }

    #[test]
    fn values() {
        for good in [
            "0",
            "-0",
            "12",
            "1.5",
            "1e3",
            "1E-3",
            "-1.25e+2",
            "0e999999999999",
            "1e-99999999999",
            "1e308",
            "\"\"",
            "\"\\u00e4\\ud83d\\ude00\\\\\"",
            "null",
            "true",
            "[]",
            "{}",
            "[1,[2]]",
            "{\"a\":{\"a\":1,\"a\":2}}",
            " [ ] ",
            "17976931348623157e292",
            "0.1e309",
            "123456789012345678901234567890.5",
        ] {
            check_value(good, true);
        }
        for bad in [
            "",
            "01",
            "-",
            "+1",
            ".5",
            "1.",
            "1e",
            "1e+",
            "0x1",
            "1e309",
            "10e308",
            "1e99999999999",
            "NaN",
            "Infinity",
            "\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\\ud800\"",
            "\"\\udc00\"",
            "\"\\ud800\\u0041\"",
            "\"\n\"",
            "nul",
            "tru",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{\"a\"}",
            "{\"a\":}",
            "{a:1}",
            "{\"a\":1,}",
            "[",
            "{",
            "1 2",
            "'a'",
            "/**/1",
        ] {
            check_value(bad, false);
        }
        for bad in [
            b"\"\xff\"".as_slice(),
            b"\"a\\n\xe4\"",
            b"\"\\n\xc3\"",
            b"\xef\xbb\xbf1",
        ] {
            assert!(
                Scanner::new(bad).skip_value(2).is_err(),
                "{}",
                bad.escape_ascii()
            );
        }
    }

    #[test]
    fn nesting_stops_at_127() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        check_value(&nested(125), true); // the scanner is told that it lies in two containers
        check_value(&nested(126), false);
        check_value(&"[".repeat(1_000_000), false);
    }

    #[test]
    fn integers_are_digits_that_fit() {
        for (text, expected) in [
            ("0", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("00", None),
            ("01", None),
            ("-0", None),
            ("1.0", None),
            ("1e0", None),
            ("x", None),
            ("", None),
            ("7,", Some(7)),
        ] {
            assert_eq!(Scanner::new(text.as_bytes()).integer(), expected, "{text}");
        }
    }
}
