//! Patterns for tensor names: globs as in a shell, and regular expressions.

use regex::Regex;
use safelight_format::shown;

use crate::error::Failure;

/// Which tensors are meant; a pattern that a command line gives several times means any of them.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    regex: Regex,
    /// As it was typed.
    text: String,
}

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
        let text = text.to_owned();
        Ok(Pattern {
            text,
            ..Pattern::regex(&pattern)?
        })
    }

    /// A regular expression that is looked for anywhere in the name.
    pub(crate) fn regex(text: &str) -> Result<Pattern, String> {
        let regex = Regex::new(text).map_err(|error| {
            // The crate draws the place over several lines; the last says what is wrong.
            let text = error.to_string();
            let last = text.lines().last().unwrap_or("").trim();
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        })?;
        let text = text.to_owned();
        Ok(Pattern { regex, text })
    }

    /// Whether it fits.
    pub(crate) fn fits(&self, name: &str) -> bool {
        self.regex.is_match(name)
    }

    /// The part of the name that the first group of a regular expression finds, or the whole of what it finds.
    pub(crate) fn group<'n>(&self, name: &'n str) -> Option<&'n str> {
        let found = self.regex.captures(name)?;
        let part = found.get(1).or_else(|| found.get(0));
        part.map(|part| part.as_str())
    }
}

/// Whether each of `--name`'s patterns fits a tensor at least: one that does not is a typing error.
///
/// # Errors
/// [`Failure::Usage`] with the pattern, and names that are much like it.
pub(crate) fn check_names(patterns: &[Pattern], file: &str, names: &[&str]) -> Result<(), Failure> {
    check_patterns("--name", patterns, file, names)
}

/// As [`check_names`], of another option's patterns.
pub(crate) fn check_patterns(
    option: &str,
    patterns: &[Pattern],
    file: &str,
    names: &[&str],
) -> Result<(), Failure> {
    let fits_none = |pattern: &&Pattern| !names.iter().any(|name| pattern.fits(name));
    let Some(pattern) = patterns.iter().find(fits_none) else {
        return Ok(());
    };
    let like: Vec<String> = like(&pattern.text, names)
        .iter()
        .map(|name| format!("`{}`", shown(name)))
        .collect();
    let advice = match like.is_empty() {
        true => "`safelight ls` lists what there is".to_owned(),
        false => format!("there is {}", like.join(", ")),
    };
    Err(Failure::Usage(format!(
        "{}: no tensor matches {option} `{}`; {advice}",
        shown(file),
        shown(&pattern.text)
    )))
}

/// Up to three names, or first parts of names, that differ from what is wanted in a few letters next to each other;
/// names that end like it count, too.
fn like(wanted: &str, names: &[&str]) -> Vec<String> {
    let wanted = wanted.to_lowercase();
    let parts = wanted.split('.').count();
    let mut found: Vec<(usize, String)> = Vec::new();
    for name in names {
        let lower = name.to_lowercase();
        let start = name.split('.').take(parts).collect::<Vec<_>>().join(".");
        let candidates = [
            (lower.ends_with(&wanted) && !wanted.is_empty()).then(|| (0, name.to_string())),
            Some((differing(&wanted, &start.to_lowercase()), start)),
        ];
        for candidate in candidates.into_iter().flatten() {
            if candidate.0 * 5 <= wanted.chars().count() * 2 && !found.contains(&candidate) {
                found.push(candidate);
                found.sort();
                found.truncate(3);
            }
        }
    }
    found.into_iter().map(|(_, name)| name).collect()
}

/// Letters of the longer one between what the two have in common at both ends.
fn differing(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let front = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let rest = a[front..].iter().rev().zip(b[front..].iter().rev());
    let back = rest.take_while(|(a, b)| a == b).count();
    a.len().max(b.len()) - front - back
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
    fn patterns_that_fit_nothing_are_told_with_names_like_them() {
        let names = [
            "model.diffusion_model.out.2.bias",
            "model.diffusion_model.out.2.weight",
            "vae.conv_in.weight",
        ];
        let check = |pattern: &str, expected: &str| {
            let pattern = [Pattern::glob(pattern).unwrap()];
            let failure = check_names(&pattern, "a.safetensors", &names).unwrap_err();
            assert_eq!(failure.exit_code(), 2);
            let failure = failure.to_string();
            assert!(failure.ends_with(expected), "{failure}");
        };
        check(
            "model.difusion_model",
            "`; there is `model.diffusion_model`",
        );
        check(
            "Model.Diffusion_Model.out.2.bia",
            "`; there is `model.diffusion_model.out.2.bias`, `model.diffusion_model.out.2.weight`",
        );
        check("conv_in.weight", "`; there is `vae.conv_in.weight`");
        check("zzz", "`; `safelight ls` lists what there is");
        check("*.zzz", "`; `safelight ls` lists what there is");
        let fine = ["vae", "*.bias"].map(|text| Pattern::glob(text).unwrap());
        assert!(check_names(&fine, "a", &names).is_ok());
        assert!(check_names(&[], "a", &[]).is_ok());
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
