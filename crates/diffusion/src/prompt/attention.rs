//! A1111's emphasis: `(more)`, `[less]`, `(exactly:1.3)`, `\(brackets\)` and `BREAK`.
//!
//! Nothing is an error: brackets without a partner reach to the end of the text or are text themselves.

/// A stretch of prompt and its weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighted {
    /// Text, or the end of a chunk.
    pub span: Span,
    /// What the text's encoding is multiplied by, 1 for plain text; no meaning for [`Span::Break`].
    pub weight: f64,
}

/// What a stretch of prompt is.
#[derive(Clone, Debug, PartialEq)]
pub enum Span {
    /// Text for the tokenizer.
    Text(String),
    /// `BREAK`: what follows begins a new chunk.
    Break,
}

/// Splits a prompt into stretches of equal weight; never empty.
///
/// `(` multiplies by 1.1 up to its `)`, or by the number in `:number)`; `[` divides by 1.1. Brackets may nest and may
/// stay open. `\` before a bracket or another `\` makes it text. A number that is none (`:1.2.3)`) is text.
/// As in A1111, `BREAK` inside brackets is the word "break".
///
/// ```
/// use safelight_diffusion::prompt::{Span, parse_attention};
/// let parsed = parse_attention("a (very:1.5) [small] cat");
/// assert_eq!(parsed[1].span, Span::Text("very".into()));
/// assert_eq!(parsed[1].weight, 1.5);
/// ```
pub fn parse_attention(text: &str) -> Vec<Weighted> {
    let mut spans: Vec<Weighted> = Vec::new();
    let (mut round, mut square) = (Vec::new(), Vec::new());
    let multiply = |spans: &mut [Weighted], from: usize, factor: f64| {
        spans[from..]
            .iter_mut()
            .for_each(|span| span.weight = scaled(span.weight, factor));
    };
    let mut rest = text;
    while let Some(token) = Token::next(rest, !round.is_empty()) {
        match token.kind {
            Kind::Escaped(text) => push_text(&mut spans, text),
            Kind::Open('(') => round.push(spans.len()),
            Kind::Open(_) => square.push(spans.len()),
            Kind::Close(bracket, factor) => {
                let opened = if bracket == ')' {
                    &mut round
                } else {
                    &mut square
                };
                match opened.pop() {
                    Some(from) => multiply(&mut spans, from, factor),
                    None => push_text(&mut spans, &rest[..token.length]),
                }
            }
            Kind::Text => push_breaking(&mut spans, &rest[..token.length]),
        }
        rest = &rest[token.length..];
    }
    multiply_open(&mut spans, &round, 1.1);
    multiply_open(&mut spans, &square, 1.0 / 1.1);
    if spans.is_empty() {
        push_text(&mut spans, "");
    }
    merged(spans)
}

/// `weight · factor`; a weight so small that arithmetic is slow is nothing already, and stays.
fn scaled(weight: f64, factor: f64) -> f64 {
    if weight.is_subnormal() {
        weight
    } else {
        weight * factor
    }
}

/// Multiplies by `factor` from each bracket in `opened` (ascending) to the end, in one walk however many there are.
fn multiply_open(spans: &mut [Weighted], opened: &[usize], factor: f64) {
    let mut count = 0;
    // The last span's weight before, how often it was multiplied, and what came out: neighbours go on from there.
    let mut last = (f64::NAN, 0, f64::NAN);
    for (idx, span) in spans.iter_mut().enumerate() {
        while opened.get(count).is_some_and(|&from| from <= idx) {
            count += 1;
        }
        let before = span.weight;
        let (mut done, mut weight) = match last {
            (same, done, weight) if same == before => (done, weight),
            _ => (0, before),
        };
        while done < count {
            let next = scaled(weight, factor);
            // Nothing, and infinity, stay what they are.
            done = if next == weight { count } else { done + 1 };
            weight = next;
        }
        span.weight = weight;
        last = (before, count, weight);
    }
}

enum Kind<'a> {
    Escaped(&'a str),
    Open(char),
    /// Which bracket, and what it multiplies by.
    Close(char, f64),
    Text,
}

struct Token<'a> {
    kind: Kind<'a>,
    length: usize,
}

impl<'a> Token<'a> {
    /// The token that `text` begins with; a weight is one only where a round bracket is open.
    fn next(text: &'a str, in_round: bool) -> Option<Token<'a>> {
        let first = text.chars().next()?;
        let (kind, length) = match first {
            '\\' => {
                let escapes = text[1..].starts_with(['(', ')', '[', ']', '\\']);
                let length = if escapes { 2 } else { 1 };
                (Kind::Escaped(&text[1..length]), length)
            }
            '(' | '[' => (Kind::Open(first), 1),
            ')' => (Kind::Close(')', 1.1), 1),
            ']' => (Kind::Close(']', 1.0 / 1.1), 1),
            ':' => match weight(text) {
                Some((weight, length)) if in_round => (Kind::Close(')', weight), length),
                Some((_, length)) => (Kind::Text, length),
                None => (Kind::Text, 1),
            },
            _ => (
                Kind::Text,
                text.find(['\\', '(', ')', '[', ']', ':'])
                    .unwrap_or(text.len()),
            ),
        };
        Some(Token { kind, length })
    }
}

/// Reads `: 1.3 )`: the number, and the length of it all.
fn weight(text: &str) -> Option<(f64, usize)> {
    let number = text.strip_prefix(':')?.trim_start();
    let end = number
        .find(|c: char| !c.is_ascii_digit() && c != '.' && c != '+' && c != '-')
        .unwrap_or(number.len());
    let after = number[end..].trim_start().strip_prefix(')')?;
    let weight: f64 = number[..end]
        .parse()
        .ok()
        .filter(|weight: &f64| weight.is_finite())?;
    Some((weight, text.len() - after.len()))
}

fn push_text(spans: &mut Vec<Weighted>, text: &str) {
    spans.push(Weighted {
        span: Span::Text(text.to_owned()),
        weight: 1.0,
    });
}

/// Text with `BREAK`s in it; white space around them goes with them.
fn push_breaking(spans: &mut Vec<Weighted>, text: &str) {
    let mut rest = text;
    while let Some(start) = find_break(rest) {
        push_text(spans, rest[..start].trim_end());
        spans.push(Weighted {
            span: Span::Break,
            weight: -1.0,
        });
        rest = rest[start + "BREAK".len()..].trim_start();
    }
    push_text(spans, rest);
}

/// Where `BREAK` stands as a word of its own.
fn find_break(text: &str) -> Option<usize> {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices("BREAK")
        .map(|(start, _)| start)
        .find(|&start| {
            !text[..start].ends_with(in_word) && !text[start + "BREAK".len()..].starts_with(in_word)
        })
}

/// Joins neighbours of equal weight. Weighted `BREAK`s are words by now, as in A1111.
fn merged(spans: Vec<Weighted>) -> Vec<Weighted> {
    let mut out: Vec<Weighted> = Vec::new();
    for span in spans {
        let Weighted { span: kind, weight } = span;
        let text = match kind {
            Span::Break if weight == -1.0 => {
                out.push(Weighted {
                    span: Span::Break,
                    weight,
                });
                continue;
            }
            Span::Break => "BREAK".to_owned(),
            Span::Text(text) => text,
        };
        match out.last_mut() {
            Some(Weighted {
                span: Span::Text(before),
                weight: same,
            }) if *same == weight => before.push_str(&text),
            _ => out.push(Weighted {
                span: Span::Text(text),
                weight,
            }),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, f64)]) {
        let parsed = parse_attention(text);
        let got: Vec<(&str, f64)> = parsed
            .iter()
            .map(|weighted| match &weighted.span {
                Span::Text(text) => (text.as_str(), weighted.weight),
                Span::Break => ("BREAK", -1.0),
            })
            .collect();
        assert_eq!(got, expected, "{text:?}");
    }

    #[test]
    fn a1111s_own_cases() {
        check("normal text", &[("normal text", 1.0)]);
        check(
            "an (important) word",
            &[("an ", 1.0), ("important", 1.1), (" word", 1.0)],
        );
        check("(unbalanced", &[("unbalanced", 1.1)]);
        check("\\(literal\\]", &[("(literal]", 1.0)]);
        check("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        check(
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        );
    }

    #[test]
    fn brackets_without_a_partner_are_text() {
        check("", &[("", 1.0)]);
        check("a) b] c", &[("a) b] c", 1.0)]);
        check("a:1.5) b", &[("a:1.5) b", 1.0)]);
        check("[a", &[("a", 1.0 / 1.1)]);
        check("(a]", &[("a]", 1.1)]);
        check("()", &[("", 1.0)]);
    }

    #[test]
    fn weights_are_numbers_or_text() {
        check("(a: 1.5 )", &[("a", 1.5)]);
        check("(a:-.5)", &[("a", -0.5)]);
        check("(a:+2)", &[("a", 2.0)]);
        check("(a:0)", &[("a", 0.0)]);
        check("(a:1.2.3)", &[("a:1.2.3", 1.1)]);
        check("(a:.)", &[("a:.", 1.1)]);
        check("(a:b)", &[("a:b", 1.1)]);
        check("(a:1.5", &[("a:1.5", 1.1)]);
        check(
            &format!("(a:{})", "9".repeat(400)),
            &[(&format!("a:{}", "9".repeat(400)), 1.1)],
        );
    }

    #[test]
    fn backslashes() {
        check("\\\\", &[("\\", 1.0)]);
        check("a\\b", &[("ab", 1.0)]);
        check("a\\", &[("a", 1.0)]);
        check("\\(a:1.5\\)", &[("(a:1.5)", 1.0)]);
    }

    #[test]
    fn breaks() {
        check("a BREAK b", &[("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]);
        check("a\n BREAK\nb", &[("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]);
        check(
            "BREAKS aBREAK BREAK_ break",
            &[("BREAKS aBREAK BREAK_ break", 1.0)],
        );
        check("a,BREAK,b", &[("a,", 1.0), ("BREAK", -1.0), (",b", 1.0)]);
        check(
            "(a) BREAK (b)",
            &[
                ("a", 1.1),
                ("", 1.0),
                ("BREAK", -1.0),
                ("", 1.0),
                ("b", 1.1),
            ],
        );
        check(
            "BREAK BREAK",
            &[
                ("", 1.0),
                ("BREAK", -1.0),
                ("", 1.0),
                ("BREAK", -1.0),
                ("", 1.0),
            ],
        );
        check("(a BREAK b)", &[("a", 1.1), ("BREAK", -1.1), ("b", 1.1)]);
    }

    #[test]
    fn open_brackets_multiply_one_after_another() {
        let text = "(a (b BREAK [c (d:3) [e (f";
        let parsed = parse_attention(text);
        // As A1111 does it: bracket by bracket, each to the end.
        let expected = [1.1, 1.1 * 1.1, 1.1 * 1.1 * 1.1];
        assert_eq!(parsed[0].weight, expected[0]);
        assert_eq!(parsed[1].weight, expected[1]);
        let last = parsed.last().expect("something");
        assert_eq!(last.weight, expected[2] * (1.0 / 1.1) * (1.0 / 1.1));
    }

    #[test]
    fn many_brackets_are_no_square() {
        // Seconds; with a walk to the end for each bracket it would take minutes.
        for text in [
            "[a:".repeat(60_000),
            "[a|b".repeat(40_000),
            "(a ".repeat(60_000),
            "[a ".repeat(30_000) + &"] b".repeat(30_000),
        ] {
            assert!(!parse_attention(&text).is_empty());
        }
    }

    #[test]
    fn no_text_is_too_strange() {
        for unit in [
            "(", ")", "[", "]", "(a", "[a:", ":", "\\", "(a:1.5)", "BREAK ", "é)", ":1)", "((]",
            ": ",
        ] {
            parse_attention(&unit.repeat(3000));
        }
    }
}
