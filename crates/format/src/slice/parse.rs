//! Index expressions as text, as Python writes them.

use std::fmt;

use super::Index;

/// Lists may be nested this deep.
const DEPTH_MAX: usize = 32;

/// Why a text is no index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexSyntaxError {
    /// The text.
    pub text: String,
    /// The byte of it where reading stopped.
    pub at_byte: usize,
    /// What is expected there.
    pub expected: &'static str,
}

impl std::error::Error for IndexSyntaxError {}

impl fmt::Display for IndexSyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, rest) = (crate::shown(&self.text), self.text.get(self.at_byte..));
        write!(f, "`{text}` is no index: {} is expected", self.expected)?;
        match rest {
            Some("") | None => write!(f, " at its end"),
            Some(rest) => write!(
                f,
                " at byte {}, found `{}`",
                self.at_byte,
                crate::shown(rest)
            ),
        }
    }
}

/// Reads what stands between the brackets of `tensor[…]` in Python, with or without the brackets:
/// `[-2:, ..., ::2]`, `0, :, [1, 3]`, `None`, `[True, False]`.
///
/// A bracket around the whole text is that of `tensor[…]`: `[1, 3]` is two integers, `[[1, 3]]` is a list.
/// `[()]` is no index at all, which is the whole tensor.
///
/// ```
/// use safelight_format::{Index, parse_index};
/// let expected = [Index::At(0), Index::ALL, Index::list([1, 3])];
/// assert_eq!(parse_index("0, :, [1, 3]")?, expected);
/// assert_eq!(parse_index("[0, :, [1, 3]]")?, expected);
/// # Ok::<(), safelight_format::IndexSyntaxError>(())
/// ```
///
/// # Errors
/// [`IndexSyntaxError`] says where.
pub fn parse_index(text: &str) -> Result<Vec<Index>, IndexSyntaxError> {
    let mut reader = Reader { text, at: 0 };
    reader.skip_space();
    let bracketed = reader.next_is(b'[') && closes_last(&text[reader.at..]);
    if bracketed {
        reader.at += 1;
    }
    let index = if reader.take("(") {
        let index = reader.items(Some(b')'))?;
        reader.need(")", "`)`")?;
        index
    } else {
        reader.items(bracketed.then_some(b']'))?
    };
    if bracketed {
        reader.need("]", "`]`")?;
    }
    reader.skip_space();
    if reader.at < text.len() {
        return Err(reader.error("`,` or the end"));
    }
    Ok(index)
}

/// Whether the bracket that `text` starts with is closed by its last character.
fn closes_last(text: &str) -> bool {
    let text = text.trim_end().as_bytes();
    let mut depth = 0usize;
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b'[' => depth += 1,
            b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at + 1 == text.len();
        }
    }
    true // never closed: the error will say where
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

/// An element of a list.
enum Value {
    Number(i64),
    Truth(bool),
}

impl Reader<'_> {
    /// Indices up to `end` (the text's end if `None`), which is not taken.
    fn items(&mut self, end: Option<u8>) -> Result<Vec<Index>, IndexSyntaxError> {
        let mut items = Vec::new();
        let parenthesis = end == Some(b')');
        loop {
            self.skip_space();
            let at_end = match end {
                Some(byte) => self.next_is(byte),
                None => self.at == self.text.len(),
            };
            // A comma may stand behind the last one; nothing at all only between parentheses.
            if at_end && (parenthesis || !items.is_empty()) {
                return Ok(items);
            }
            items.push(self.item()?);
            if !self.take(",") {
                return Ok(items);
            }
        }
    }

    fn item(&mut self) -> Result<Index, IndexSyntaxError> {
        self.skip_space();
        if self.take("...") || self.take_word("Ellipsis") {
            return Ok(Index::Ellipsis);
        }
        if ["None", "np.newaxis", "numpy.newaxis", "newaxis"]
            .iter()
            .any(|word| self.take_word(word))
        {
            return Ok(Index::NewAxis);
        }
        if self.next_is(b'[') {
            return self.list();
        }
        if let Some(truth) = self.truth() {
            let (shape, values) = (Vec::new(), vec![truth]);
            return Ok(Index::Mask { shape, values });
        }
        let start = self.integer()?;
        if !self.take(":") {
            let expected = "an integer, a slice, `...`, `None` or a list";
            return start.map(Index::At).ok_or_else(|| self.error(expected));
        }
        let stop = self.integer()?;
        let step = if self.take(":") {
            self.integer()?
        } else {
            None
        };
        let step = step.unwrap_or(1);
        Ok(Index::Range { start, stop, step })
    }

    /// `[1, [2, 3]]` is refused, as all lists in a list must be as long.
    fn list(&mut self) -> Result<Index, IndexSyntaxError> {
        let mut shape = Vec::new();
        let mut values = Vec::new();
        self.nested(0, &mut shape, &mut values)?;
        let shape: Vec<u64> = shape.into_iter().map(|size| size as u64).collect();
        let truths = values.iter().map(|value| match value {
            Value::Truth(truth) => Some(*truth),
            Value::Number(_) => None,
        });
        if !values.is_empty()
            && let Some(values) = truths.collect()
        {
            return Ok(Index::Mask { shape, values });
        }
        let numbers = values.iter().map(|value| match value {
            Value::Number(number) => Some(*number),
            Value::Truth(_) => None,
        });
        let values = numbers
            .collect::<Option<_>>()
            .ok_or_else(|| self.error("only integers or only `True` and `False`, in a list"))?;
        Ok(Index::List { shape, values })
    }

    /// One bracket of a list; `shape` has the sizes that its first elements showed.
    fn nested(
        &mut self,
        depth: usize,
        shape: &mut Vec<usize>,
        values: &mut Vec<Value>,
    ) -> Result<(), IndexSyntaxError> {
        self.need("[", "`[`")?;
        if depth >= DEPTH_MAX {
            return Err(self.error("a list nested less deeply"));
        }
        let first = shape.len() == depth;
        if first {
            shape.push(usize::MAX); // not known before its end
        }
        let mut count = 0;
        loop {
            self.skip_space();
            if self.next_is(b']') {
                break;
            }
            if self.next_is(b'[') {
                if shape.len() == depth + 1 && !(first && count == 0) {
                    return Err(self.error("a number, as in the rest of the list"));
                }
                self.nested(depth + 1, shape, values)?;
            } else if shape.len() > depth + 1 {
                return Err(self.error("a list, as in the rest of the list"));
            } else {
                values.push(self.value()?);
            }
            count += 1;
            if !self.take(",") {
                break;
            }
        }
        self.need("]", "`,` or `]`")?;
        if first {
            shape[depth] = count;
        } else if shape[depth] != count {
            return Err(self.error("lists of one length before this"));
        }
        Ok(())
    }

    fn value(&mut self) -> Result<Value, IndexSyntaxError> {
        if let Some(truth) = self.truth() {
            return Ok(Value::Truth(truth));
        }
        let number = self.integer()?;
        number
            .map(Value::Number)
            .ok_or_else(|| self.error("an integer, `True` or `False`"))
    }

    fn truth(&mut self) -> Option<bool> {
        if self.take_word("True") {
            Some(true)
        } else {
            self.take_word("False").then_some(false)
        }
    }

    /// An integer, if one is there.
    fn integer(&mut self) -> Result<Option<i64>, IndexSyntaxError> {
        self.skip_space();
        let rest = &self.text.as_bytes()[self.at..];
        let sign = usize::from(matches!(rest.first(), Some(b'-' | b'+')));
        let digits = rest[sign..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit() || **byte == b'_')
            .count();
        if sign + digits == 0 {
            return Ok(None);
        }
        let text: String = self.text[self.at..self.at + sign + digits]
            .chars()
            .filter(|c| *c != '_')
            .collect();
        let Ok(number) = text.parse() else {
            return Err(self.error("an integer of at most 63 bits"));
        };
        self.at += sign + digits;
        Ok(Some(number))
    }

    fn skip_space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn next_is(&self, byte: u8) -> bool {
        self.text.as_bytes().get(self.at) == Some(&byte)
    }

    fn take(&mut self, token: &str) -> bool {
        self.skip_space();
        let there = self.text[self.at..].starts_with(token);
        self.at += if there { token.len() } else { 0 };
        there
    }

    /// As `take`, but not the first half of a longer word.
    fn take_word(&mut self, word: &str) -> bool {
        let rest = self.text[self.at..].strip_prefix(word);
        let whole = rest.is_some_and(|rest| {
            !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.')
        });
        self.at += if whole { word.len() } else { 0 };
        whole
    }

    fn need(&mut self, token: &str, expected: &'static str) -> Result<(), IndexSyntaxError> {
        if self.take(token) {
            return Ok(());
        }
        Err(self.error(expected))
    }

    fn error(&self, expected: &'static str) -> IndexSyntaxError {
        IndexSyntaxError {
            text: self.text.to_owned(),
            at_byte: self.at,
            expected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[Index]) {
        assert_eq!(parse_index(text).as_deref(), Ok(expected), "{text}");
    }

    #[test]
    fn what_python_writes() {
        let range = |start, stop, step| Index::Range { start, stop, step };
        check("3", &[Index::At(3)]);
        check("[-1]", &[Index::At(-1)]);
        check("1,", &[Index::At(1)]);
        check(" [ 1 , 3 ] ", &[Index::At(1), Index::At(3)]);
        check("[[1, 3]]", &[Index::list([1, 3])]);
        check("[1],[0]", &[Index::list([1]), Index::list([0])]);
        check(
            "-2:, ..., ::2",
            &[
                range(Some(-2), None, 1),
                Index::Ellipsis,
                range(None, None, 2),
            ],
        );
        check("1:2:-3", &[range(Some(1), Some(2), -3)]);
        check(
            "None, np.newaxis, newaxis",
            &[Index::NewAxis, Index::NewAxis, Index::NewAxis],
        );
        check("Ellipsis", &[Index::Ellipsis]);
        check("[[True, False]]", &[Index::mask([true, false])]);
        check("()", &[]);
        check("[()]", &[]);
        check("(1, :)", &[Index::At(1), Index::ALL]);
        check("1_000", &[Index::At(1000)]);
        check("[[]]", &[Index::list([])]);
        let nested = Index::List {
            shape: vec![2, 2],
            values: vec![1, 2, 3, 4],
        };
        check("[[[1,2],[3,4]]]", &[nested]);
    }

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        assert_eq!(parse_index(text).unwrap_err().to_string(), expected);
    }

    #[test]
    fn what_is_no_index_is_refused_where_it_goes_wrong() {
        refused(
            "",
            "`` is no index: an integer, a slice, `...`, `None` or a list is expected at its end",
        );
        refused(
            "1, x",
            "`1, x` is no index: an integer, a slice, `...`, `None` or a list is expected at byte 3, found `x`",
        );
        refused(
            "1 2",
            "`1 2` is no index: `,` or the end is expected at byte 2, found `2`",
        );
        for text in [
            "[",
            "[]",
            "[1",
            "1]",
            "1:2:3:4",
            "0,[1,[2]]",
            "0,[[1],[2,3]]",
            "0,[[1],2]",
            "0,[True,1]",
            "99999999999999999999",
            "-",
            "1.5",
            "Nonesense",
            "(",
            "(1",
            "é",
            "😀:",
            "_",
        ] {
            assert!(parse_index(text).is_err(), "{text}");
        }
        assert!(parse_index(&"[".repeat(100_000)).is_err());
        assert!(parse_index(&format!("0,{}", "[".repeat(100_000))).is_err());
    }
}
