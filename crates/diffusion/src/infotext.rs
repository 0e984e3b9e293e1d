//! The `parameters` text that A1111 writes into pictures, so that other tools read ours and we read theirs.
//!
//! ```text
//! a red house, (sunny:1.2)
//! Negative prompt: blurry
//! Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 42, Size: 512x512
//! ```
//!
//! This module is about text only: which keys a job has and where a picture keeps them is others' work.
//!
//! Source: AUTOMATIC1111 stable-diffusion-webui 1.10, `infotext_utils.py` and `processing.py` (behaviour).

use std::fmt;

/// What a picture says about how it was made.
///
/// Text in this form survives writing and reading except: white space around the prompts' lines, an empty first or
/// last line, and prompts with a line that begins with `Negative prompt:`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Infotext {
    /// The prompt; may have several lines.
    pub prompt: String,
    /// The negative prompt; empty if there is none.
    pub negative_prompt: String,
    /// Everything else, in order: `("Steps", "20")`.
    pub fields: Vec<(String, String)>,
}

const NEGATIVE: &str = "Negative prompt:";
/// With fewer fields than this, a last line belongs to the prompt.
const FIELD_COUNT_MIN: usize = 3;

impl Infotext {
    /// Adds a field at the end.
    ///
    /// A1111's order: Steps, Sampler, Schedule type, CFG scale, Seed, Size, Model hash, Model, Variation seed,
    /// Variation seed strength, Denoising strength, Clip skip, RNG, then what a job adds (Mask blur …), Version.
    pub fn push(&mut self, key: &str, value: impl fmt::Display) {
        self.fields.push((key.to_owned(), value.to_string()));
    }

    /// The value of a field; of the last one if there are several.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.fields
            .iter()
            .rev()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// The value of a field, or what A1111 means by leaving it out.
    ///
    /// ```
    /// use safelight_diffusion::infotext::Infotext;
    /// assert_eq!(Infotext::default().get_or_default("Clip skip"), Some("1"));
    /// ```
    pub fn get_or_default(&self, key: &str) -> Option<&str> {
        self.get(key).or(match key {
            "Clip skip" => Some("1"),
            "RNG" => Some("GPU"),
            "Schedule type" => Some("Automatic"),
            "Mask mode" => Some("Inpaint masked"),
            "Masked content" => Some("original"),
            "Inpaint area" => Some("Whole picture"),
            "Masked area padding" => Some("32"),
            "Hires sampler" => Some("Use same sampler"),
            "Hires checkpoint" => Some("Use same checkpoint"),
            "Hires schedule type" => Some("Use same scheduler"),
            "Emphasis" => Some("Original"),
            _ => None,
        })
    }

    /// A field of the form `512x768`, as width and height.
    pub fn size(&self, key: &str) -> Option<(u32, u32)> {
        let (width, height) = self.get(key)?.split_once('x')?;
        Some((width.parse().ok()?, height.parse().ok()?))
    }

    /// Reads a `parameters` text; anything is one, at worst all of it is prompt.
    ///
    /// ```
    /// use safelight_diffusion::infotext::Infotext;
    /// let text = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, Size: 512x768";
    /// let info = Infotext::parse(text);
    /// assert_eq!((info.prompt.as_str(), info.negative_prompt.as_str()), ("a cat", "dog"));
    /// assert_eq!(info.size("Size"), Some((512, 768)));
    /// assert_eq!(info.to_string(), text);
    /// ```
    pub fn parse(text: &str) -> Infotext {
        let text = text.trim();
        let (before, last) = text.rsplit_once('\n').unwrap_or(("", text));
        let fields = parse_fields(last);
        let is_last = fields.len() >= FIELD_COUNT_MIN;
        let mut info = Infotext {
            fields: if is_last { fields } else { Vec::new() },
            ..Infotext::default()
        };
        let mut in_negative = false;
        for line in if is_last { before } else { text }.split('\n') {
            let mut line = line.trim();
            if let Some(rest) = line.strip_prefix(NEGATIVE) {
                in_negative = true;
                line = rest.trim();
            }
            let part = if in_negative {
                &mut info.negative_prompt
            } else {
                &mut info.prompt
            };
            if !part.is_empty() {
                part.push('\n');
            }
            part.push_str(line);
        }
        info
    }
}

impl fmt::Display for Infotext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.prompt)?;
        if !self.negative_prompt.is_empty() {
            write!(f, "\n{NEGATIVE} {}", self.negative_prompt)?;
        }
        for (idx, (key, value)) in self.fields.iter().enumerate() {
            f.write_str(if idx == 0 { "\n" } else { ", " })?;
            write!(f, "{key}: {}", quoted(value))?;
        }
        Ok(())
    }
}

/// The value as it is, or as a JSON string where it would be read as something else.
fn quoted(value: &str) -> String {
    let plain = !value.contains([',', '\n', ':'])
        && !value.starts_with('"')
        && !value.is_empty()
        && value.trim() == value;
    if plain {
        value.to_owned()
    } else {
        serde_json::Value::from(value).to_string()
    }
}

fn unquoted(value: &str) -> String {
    let json = value
        .starts_with('"')
        .then(|| serde_json::from_str(value).ok())
        .flatten();
    json.unwrap_or_else(|| value.to_owned())
}

/// Finds `Key: value` or `Key: "quoted, value"`, each up to a comma or the end, wherever they stand in the line.
fn parse_fields(line: &str) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut at = 0;
    while let Some(first) = line[at..].chars().next() {
        if !is_word(first) {
            at += first.len_utf8();
            continue;
        }
        // No key can begin inside a run that does not end at a colon, so go on after it.
        let key_end = line[at..]
            .find(|c| !is_word(c) && !" -/".contains(c))
            .map_or(line.len(), |length| at + length);
        let key = &line[at..key_end];
        if key.chars().nth(1).is_none() || !line[key_end..].starts_with(':') {
            at = key_end;
            continue;
        }
        let rest = line[key_end + 1..].trim_start();
        let length = quoted_length(rest).unwrap_or_else(|| rest.find(',').unwrap_or(rest.len()));
        fields.push((key.to_owned(), unquoted(&rest[..length])));
        at = (line.len() - rest.len() + length + 1).min(line.len());
    }
    fields
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// How long the quoted string is that `text` begins with, if a comma or the end follows it.
fn quoted_length(text: &str) -> Option<usize> {
    let mut escaped = false;
    let inside = text.strip_prefix('"')?;
    let end = inside.find(|c| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })?;
    let length = end + 2;
    (end > 0 && (text.len() == length || text[length..].starts_with(','))).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Vec<(String, String)> {
        Infotext::parse(text).fields
    }

    fn round_trip(info: &Infotext) {
        assert_eq!(&Infotext::parse(&info.to_string()), info, "{info}");
    }

    #[test]
    fn reads_what_a1111_writes() {
        let text = "masterpiece, (girl:1.2), <lora:x:0.8>\nsecond line\nNegative prompt: lowres, bad\nhands\n\
            Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 965400086, Size: 512x768, \
            Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Denoising strength: 0.7, Clip skip: 2, \
            Lora hashes: \"x: 0123456789ab, y: ba9876543210\", Version: v1.10.1";
        let info = Infotext::parse(text);
        assert_eq!(
            info.prompt,
            "masterpiece, (girl:1.2), <lora:x:0.8>\nsecond line"
        );
        assert_eq!(info.negative_prompt, "lowres, bad\nhands");
        assert_eq!(info.get("Sampler"), Some("DPM++ 2M"));
        assert_eq!(
            info.get("Lora hashes"),
            Some("x: 0123456789ab, y: ba9876543210")
        );
        assert_eq!(info.get("Version"), Some("v1.10.1"));
        assert_eq!(info.size("Size"), Some((512, 768)));
        assert_eq!(info.to_string(), text);
    }

    #[test]
    fn a_last_line_with_few_fields_is_prompt() {
        let info = Infotext::parse("a\nSteps: 20, Seed: 3");
        assert_eq!(info.prompt, "a\nSteps: 20, Seed: 3");
        assert!(info.fields.is_empty());
        assert_eq!(Infotext::parse(""), Infotext::default());
        assert_eq!(Infotext::parse("Negative prompt: x").negative_prompt, "x");
        assert_eq!(Infotext::parse("Steps: 1, Seed: 2, Size: 8x8").prompt, "");
    }

    #[test]
    fn odd_lines() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let expected = [pair("Aa", "1"), pair("Bb", "2"), pair("Cc", "x\"y")];
        assert_eq!(fields("junk, Aa: 1,Bb:2, , Cc: x\"y"), expected);
        // A key is at least two characters; a quoted string must end its value.
        assert_eq!(
            fields("A: 1, Bb: \"x\" y, Cc: 2, Dd: "),
            [pair("Bb", "\"x\" y"), pair("Cc", "2"), pair("Dd", "")]
        );
        assert_eq!(
            fields("Aa: \"un, closed, Bb: 2, Cc: 3"),
            [pair("Aa", "\"un"), pair("Bb", "2"), pair("Cc", "3")]
        );
        assert_eq!(
            fields("Aa: \"a\\\"b, c\", Bb: \"\", Cc: 3"),
            [pair("Aa", "a\"b, c"), pair("Bb", ""), pair("Cc", "3")]
        );
        assert_eq!(
            fields("Aa: \"\\x\", Bb: 2, Cc: 3")[0],
            pair("Aa", "\"\\x\"")
        );
    }

    #[test]
    fn leaving_out_means_the_default() {
        let info = Infotext::parse("x\nSteps: 1, Seed: 2, Clip skip: 3");
        assert_eq!(info.get_or_default("Clip skip"), Some("3"));
        assert_eq!(info.get_or_default("Schedule type"), Some("Automatic"));
        assert_eq!(info.get_or_default("Sampler"), None);
    }

    #[test]
    fn values_of_every_kind_come_back() {
        let values = [
            "1",
            "a, b",
            "a: b",
            "a\nb",
            "\"quoted\"",
            "\"",
            "",
            " padded ",
            "é日😀, x",
            "back\\slash:",
            "\u{1}:\t",
        ];
        for value in values {
            let mut info = Infotext {
                prompt: "p".into(),
                negative_prompt: "n\nm".into(),
                ..Infotext::default()
            };
            for key in ["Steps", "Mask blur", "A-b/c 2"] {
                info.push(key, value);
            }
            round_trip(&info);
        }
        let mut info = Infotext::default();
        for key in ["Steps", "Seed", "Size"] {
            info.push(key, 7);
        }
        round_trip(&info);
    }

    #[test]
    fn no_text_is_too_strange() {
        for unit in [
            ":",
            "a",
            "a:",
            "aa: ",
            "\"",
            "aa: \"",
            "\\",
            ",",
            "\n",
            "é: 日,",
            "aa: \"é\\",
            " ",
        ] {
            let info = Infotext::parse(&unit.repeat(5000));
            Infotext::parse(&info.to_string());
        }
    }
}
