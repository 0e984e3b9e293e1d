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
    fn long_names_are_cut() {
        let name = "x".repeat(5000);
        let text = shown(&name).to_string();
        assert!(
            text.ends_with("… (5000 bytes)") && text.len() < 200,
            "{text}"
        );
    }
}
