//! Patterns for tensor names: globs as in a shell, and regular expressions.

use regex::Regex;

/// Which tensors are meant; a pattern that a command line gives several times means any of them.
#[derive(Clone, Debug)]
pub(crate) struct Pattern(Regex);

impl Pattern {
    /// `*` stands for any characters (dots too), `?` for one, `[abc]` and `[!a-z]` for one of these; the whole name must
    /// fit. Without any of these the name itself, or what begins with it and a dot, is meant: a part of the model.
    pub(crate) fn glob(text: &str) -> Result<Pattern, String> {
        let mut pattern = String::from("(?s)^");
        let mut rest = text.chars();
        let mut special = false;
        while let Some(c) = rest.next() {
            match c {
                '*' => pattern += ".*",
                '?' => pattern += ".",
                '[' => pattern += &set(&mut rest).ok_or("`[` has no `]`; `[[]` means a `[`")?,
                c => {
                    pattern += &regex::escape(c.encode_utf8(&mut [0; 4]));
                    continue;
                }
            }
            special = true;
        }
        pattern += if special { "$" } else { r"(\..*)?$" };
        Pattern::regex(&pattern)
    }

    /// A regular expression that is looked for anywhere in the name.
    pub(crate) fn regex(text: &str) -> Result<Pattern, String> {
        let made = Regex::new(text);
        made.map(Pattern).map_err(|error| {
            // The crate draws the place over several lines; the last says what is wrong.
            let text = error.to_string();
            let last = text.lines().last().unwrap_or("").trim();
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        })
    }

    /// Whether it fits.
    pub(crate) fn fits(&self, name: &str) -> bool {
        self.0.is_match(name)
    }

    /// The part of the name that the first group of a regular expression finds, or the whole of what it finds.
    pub(crate) fn group<'n>(&self, name: &'n str) -> Option<&'n str> {
        let found = self.0.captures(name)?;
        let part = found.get(1).or_else(|| found.get(0));
        part.map(|part| part.as_str())
    }
}

/// A set in brackets, read up to its end, as a regular expression has it.
fn set(rest: &mut std::str::Chars<'_>) -> Option<String> {
    let mut inside = String::new();
    for c in rest.by_ref() {
        match c {
            // The first may be `]` itself.
            ']' if !inside.is_empty() && inside != "^" => return Some(format!("[{inside}]")),
            '!' if inside.is_empty() => inside.push('^'),
            '-' => inside.push('-'),
            c => inside += &regex::escape(c.encode_utf8(&mut [0; 4])),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        let check = |glob: &str, name: &str, expected: bool| {
            assert_eq!(
                Pattern::glob(glob).unwrap().fits(name),
                expected,
                "{glob} {name}"
            );
        };
        check("*.weight", "a.b.weight", true);
        check("*.weight", "a.weights", false);
        check("layers.?.w", "layers.3.w", true);
        check("layers.?.w", "layers.13.w", false);
        check("layers.[0-3].*", "layers.2.w", true);
        check("layers.[!0-3].*", "layers.2.w", false);
        check("layers.[]x].w", "layers.].w", true);
        check("a[[]b*", "a[b]", true);
        check("*", "two\nlines", true);
        // A name without anything special is a name or a part of the model.
        check("layers.1", "layers.1", true);
        check("layers.1", "layers.1.weight", true);
        check("layers.1", "layers.10.weight", false);
        check("a.b", "aXb", false);
        assert!(Pattern::glob("a[b").is_err());
    }

    #[test]
    fn regular_expressions() {
        let pattern = Pattern::regex(r"layers\.(\d+)\.").unwrap();
        assert_eq!(pattern.group("model.layers.12.weight"), Some("12"));
        assert_eq!(pattern.group("norm"), None);
        assert_eq!(Pattern::regex("^a.").unwrap().group("abc"), Some("ab"));
        let wrong = Pattern::regex("a(").unwrap_err();
        assert!(wrong.contains("unclosed group"), "{wrong}");
    }
}
