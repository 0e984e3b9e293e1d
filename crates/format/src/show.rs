//! Foreign text made safe to print: names and keys come from strangers' files.

use std::fmt::{self, Write as _};

/// As many characters of a foreign name as a message shows.
const SHOWN_CHARS_MAX: usize = 160;

/// Shows foreign text on one line: control characters, invisible characters and marks that turn
/// the writing direction are escaped as `\u{202e}`, and what is long is cut with `…`.
///
/// ```
/// use safelight_format::shown;
/// assert_eq!(shown("conv_in.weight").to_string(), "conv_in.weight");
/// assert_eq!(shown("a\n\u{202e}b").to_string(), "a\\n\\u{202e}b");
/// ```
pub fn shown(text: &str) -> impl fmt::Display + '_ {
    Shown(text)
}

/// A count with its noun: `1 tensor`, `2 tensors`.
pub fn plural(count: u64, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {what}{s}")
}

/// The verb behind a count: `is` or `are`.
pub fn are(count: u64) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

/// As many dimensions of a foreign shape as a message shows.
const SHOWN_DIMS_MAX: usize = 32;

/// Shows a shape like `[2, 3]`, cut with `…` where a hostile header has a million dimensions.
pub(crate) fn shown_shape(shape: &[u64]) -> impl fmt::Display + '_ {
    ShownShape(shape)
}

struct ShownShape<'a>(&'a [u64]);

impl fmt::Display for ShownShape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(..SHOWN_DIMS_MAX) {
            Some(first) if first.len() < self.0.len() => {
                let first = first.iter().map(u64::to_string).collect::<Vec<_>>();
                write!(f, "[{}, …] ({} dimensions)", first.join(", "), self.0.len())
            }
            _ => write!(f, "{:?}", self.0),
        }
    }
}

struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, c) in self.0.chars().enumerate() {
            if count == SHOWN_CHARS_MAX {
                return write!(f, "… ({} bytes)", self.0.len());
            }
            if hides_something(c) {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

/// Characters that change what a terminal or a reader sees without being seen themselves
/// (Unicode Technical Report 36, §2 and the bidirectional controls of Unicode Annex 9, §2).
pub(crate) fn hides_something(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202f}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_spelt_out() {
        for (text, expected) in [
            ("plain.weight", "plain.weight"),
            ("größe 模型", "größe 模型"),
            ("\u{1b}[31mred", "\\u{1b}[31mred"),
            ("a\tb\r\n", "a\\tb\\r\\n"),
            ("\u{202e}gnp.exe", "\\u{202e}gnp.exe"),
            ("zero\u{200b}width", "zero\\u{200b}width"),
            ("\u{0}", "\\u{0}"),
        ] {
            assert_eq!(shown(text).to_string(), expected);
        }
    }

    #[test]
    fn shapes_of_many_dimensions_are_cut() {
        assert_eq!(shown_shape(&[]).to_string(), "[]");
        assert_eq!(shown_shape(&[2; 32]).to_string(), format!("{:?}", [2; 32]));
        let text = shown_shape(&[7; 1000]).to_string();
        assert!(
            text.starts_with("[7, 7, ") && text.ends_with("7, …] (1000 dimensions)"),
            "{text}"
        );
        assert!(text.len() < 200);
    }

    #[test]
    fn long_names_are_cut() {
        let name = "x".repeat(5000);
        let text = shown(&name).to_string();
        assert!(
            text.ends_with("… (5000 bytes)") && text.len() < 200,
            "{text}"
        );
    }
}
