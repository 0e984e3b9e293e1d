//! A1111's prompts that change while the picture is made: `[from:to:when]` and `[a|b]`.
//!
//! Gives plain prompts, each with the last step it is for; emphasis is still in them. Grammar:
//!
//! ```text
//! start      = (bracket | word | stray)*           stray = any of ( ) [ ] : that begins no bracket
//! prompt     = (bracket | word)*                   word  = characters other than \ [ ] ( ) : | , or \ and any one
//! bracket    = scheduled | alternate | "(" prompt (":" prompt)? ")" | "[" prompt "]"
//! scheduled  = "[" (piped ":")? piped ":" number "]"        piped = prompt ("|" prompt)*
//! alternate  = "[" prompt ("|" prompt?)+ "]"
//! ```
//!
//! A `|` outside `[…]` or a lone `\` at the end fits nowhere; such a prompt is taken word for word. A `|` inside
//! `[…:number]` is text: A1111's own examples want it so, though its parser then takes the prompt word for word.

use std::collections::HashMap;
use std::rc::Rc;

/// Brackets nested deeper than this stay text, so that no prompt can exhaust the stack.
const DEPTH_MAX: usize = 100;

/// How many steps there are, and which pass of a two-pass job asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// Steps of the (first) pass.
    pub base: usize,
    /// Steps of the high-resolution second pass, when the prompt is for that one: its whole steps count on from
    /// `base`, its fractions from 1.0.
    pub second_pass: Option<usize>,
}

impl Steps {
    /// An ordinary job of one pass.
    pub fn new(base: usize) -> Steps {
        Steps {
            base,
            second_pass: None,
        }
    }
}

/// A prompt and the last step (from 1) it is used in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduled {
    /// The last step, counted from 1; the final entry's is the number of steps.
    pub until_step: usize,
    /// The prompt, its emphasis still in it.
    pub text: String,
}

/// The prompts of each step, in order; one entry where nothing changes.
///
/// `[from:to:when]` is `from` up to step `when` and `to` afterwards; `when` is a share of the steps if it is written
/// with a dot. `[a|b|c]` takes turns, one step each.
///
/// ```
/// use safelight_diffusion::prompt::schedule::{Steps, parse_schedule};
/// let prompts = parse_schedule("a [red:blue:.5] house", Steps::new(10));
/// assert_eq!((prompts[0].until_step, prompts[0].text.as_str()), (5, "a red house"));
/// assert_eq!((prompts[1].until_step, prompts[1].text.as_str()), (10, "a blue house"));
/// ```
pub fn parse_schedule(text: &str, steps: Steps) -> Vec<Scheduled> {
    let count = steps.second_pass.unwrap_or(steps.base);
    let Some(nodes) = Parser::new(text, steps).start() else {
        return vec![Scheduled {
            until_step: count,
            text: text.to_owned(),
        }];
    };
    let mut boundaries = vec![count];
    collect_boundaries(&nodes, count, &mut boundaries);
    boundaries.sort_unstable();
    boundaries.dedup();
    boundaries
        .into_iter()
        .map(|until_step| {
            let mut text = String::new();
            write_at(&nodes, until_step, &mut text);
            Scheduled { until_step, text }
        })
        .collect()
}

type Nodes<'a> = Vec<Node<'a>>;

#[derive(Clone)]
enum Node<'a> {
    Text(&'a str),
    /// A pair of brackets that stays text, with what is between.
    Group(Rc<Nodes<'a>>),
    Scheduled {
        before: Rc<Nodes<'a>>,
        after: Rc<Nodes<'a>>,
        until_step: i64,
    },
    Alternate(Rc<Vec<Nodes<'a>>>),
}

fn collect_boundaries(nodes: &[Node], count: usize, boundaries: &mut Vec<usize>) {
    for node in nodes {
        match node {
            Node::Text(_) => {}
            Node::Group(inside) => collect_boundaries(inside, count, boundaries),
            Node::Scheduled {
                before,
                after,
                until_step,
            } => {
                boundaries.extend(usize::try_from(*until_step).ok().filter(|&step| step >= 1));
                collect_boundaries(before, count, boundaries);
                collect_boundaries(after, count, boundaries);
            }
            Node::Alternate(options) => {
                boundaries.extend(1..=count);
                boundaries.sort_unstable();
                boundaries.dedup();
                options
                    .iter()
                    .for_each(|option| collect_boundaries(option, count, boundaries));
            }
        }
    }
}

fn write_at(nodes: &[Node], step: usize, out: &mut String) {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Group(inside) => write_at(inside, step, out),
            Node::Scheduled {
                before,
                after,
                until_step,
            } => {
                let now = if step as i64 <= *until_step {
                    before
                } else {
                    after
                };
                write_at(now, step, out);
            }
            Node::Alternate(options) => {
                write_at(&options[step.saturating_sub(1) % options.len()], step, out)
            }
        }
    }
}

/// A bracket and where it ends.
type Bracket<'a> = (Node<'a>, usize);

/// Recursive descent; what stands at each bracket is worked out once.
struct Parser<'a> {
    text: &'a str,
    steps: Steps,
    brackets: HashMap<usize, Option<Bracket<'a>>>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, steps: Steps) -> Parser<'a> {
        Parser {
            text,
            steps,
            brackets: HashMap::new(),
        }
    }

    /// The whole text, or `None` where it fits the grammar nowhere.
    fn start(&mut self) -> Option<Nodes<'a>> {
        let mut nodes = Vec::new();
        let mut at = 0;
        loop {
            at = self.prompt(at, 0, &mut nodes);
            if at == self.text.len() {
                return Some(nodes);
            }
            // The prompt ended at something that begins no bracket.
            if !self.text[at..].starts_with(['(', ')', '[', ']', ':']) {
                return None;
            }
            nodes.push(Node::Text(&self.text[at..at + 1]));
            at += 1;
        }
    }

    /// Words and brackets from `at` on; returns where they end.
    fn prompt(&mut self, mut at: usize, depth: usize, nodes: &mut Nodes<'a>) -> usize {
        loop {
            let words = self.words(at);
            if words > at {
                nodes.push(Node::Text(&self.text[at..words]));
                at = words;
            }
            match self.bracket(at, depth) {
                Some((node, end)) => {
                    nodes.push(node);
                    at = end;
                }
                None => return at,
            }
        }
    }

    /// Where the run of plain characters that begins at `at` ends.
    fn words(&self, at: usize) -> usize {
        let mut characters = self.text[at..].char_indices().peekable();
        while let Some((offset, c)) = characters.next() {
            match c {
                '[' | ']' | '(' | ')' | ':' | '|' => return at + offset,
                '\\' if characters
                    .next_if(|&(_, escaped)| escaped != '\n')
                    .is_none() =>
                {
                    return at + offset;
                }
                _ => {}
            }
        }
        self.text.len()
    }

    fn bracket(&mut self, at: usize, depth: usize) -> Option<Bracket<'a>> {
        let opening = self.text[at..]
            .chars()
            .next()
            .filter(|c| matches!(c, '(' | '['))?;
        if depth == DEPTH_MAX {
            return None;
        }
        if let Some(known) = self.brackets.get(&at) {
            return known.clone();
        }
        let found = if opening == '(' {
            self.round(at, depth)
        } else {
            self.square(at, depth)
        };
        self.brackets.insert(at, found.clone());
        found
    }

    fn round(&mut self, start: usize, depth: usize) -> Option<Bracket<'a>> {
        let mut nodes = vec![Node::Text("(")];
        let mut at = self.prompt(start + 1, depth + 1, &mut nodes);
        if self.text[at..].starts_with(':') {
            nodes.push(Node::Text(":"));
            at = self.prompt(at + 1, depth + 1, &mut nodes);
        }
        self.text[at..].starts_with(')').then(|| {
            nodes.push(Node::Text(")"));
            (Node::Group(Rc::new(nodes)), at + 1)
        })
    }

    fn square(&mut self, start: usize, depth: usize) -> Option<Bracket<'a>> {
        let (mut options, at) = self.options(start + 1, depth + 1);
        match self.text[at..].bytes().next()? {
            b']' if options.len() == 1 => {
                let mut inside = vec![Node::Text("[")];
                inside.append(&mut options[0]);
                inside.push(Node::Text("]"));
                Some((Node::Group(Rc::new(inside)), at + 1))
            }
            b']' => Some((Node::Alternate(Rc::new(options)), at + 1)),
            b':' => self.scheduled(piped(options), at, depth),
            _ => None,
        }
    }

    /// Prompts with `|` between them, one at least, and where the last one ends.
    fn options(&mut self, mut at: usize, depth: usize) -> (Vec<Nodes<'a>>, usize) {
        let mut options = Vec::new();
        loop {
            let mut option = Vec::new();
            at = self.prompt(at, depth, &mut option);
            options.push(option);
            if !self.text[at..].starts_with('|') {
                return (options, at);
            }
            at += 1;
        }
    }

    /// `at` is the first `:`.
    fn scheduled(&mut self, first: Nodes<'a>, at: usize, depth: usize) -> Option<Bracket<'a>> {
        if let Some((until_step, end)) = self.when(at) {
            return Some((
                Node::Scheduled {
                    before: Rc::default(),
                    after: Rc::new(first),
                    until_step,
                },
                end,
            ));
        }
        let (second, at) = self.options(at + 1, depth + 1);
        let (until_step, end) = self.when(at)?;
        Some((
            Node::Scheduled {
                before: Rc::new(first),
                after: Rc::new(piped(second)),
                until_step,
            },
            end,
        ))
    }

    /// Reads `: 0.5 ]` at `at`: the step it means, and where it ends.
    fn when(&self, at: usize) -> Option<(i64, usize)> {
        let number = self.text[at..].strip_prefix(':')?;
        // Only as far as a number reaches: looking on for a `]` would make `[a:[a:[a:…` take quadratic time.
        let length = number.find(|c: char| {
            !c.is_whitespace() && !matches!(c, '0'..='9' | '.' | '+' | '-' | 'e' | 'E')
        })?;
        let number = number[..length].trim();
        if !self.text[at + 1 + length..].starts_with(']') {
            return None;
        }
        if !is_number(number) {
            return None;
        }
        let value: f64 = number.parse().ok()?;
        let count = self.steps.second_pass.unwrap_or(self.steps.base) as f64;
        let step = match (number.contains('.'), self.steps.second_pass) {
            (true, None) => value * count,
            (true, Some(_)) => (value - 1.0) * count,
            (false, None) => value,
            (false, Some(_)) => value - self.steps.base as f64,
        };
        Some((step.min(count) as i64, at + 1 + length + 1))
    }
}

/// The options as one prompt, the `|` between them text.
fn piped(options: Vec<Nodes>) -> Nodes {
    options.join(&Node::Text("|"))
}

/// `+1`, `.5`, `2.`, `1e1`: a sign, digits with at most one dot, an exponent.
fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let mantissa_ok = match mantissa.split_once('.') {
        None => digits(mantissa),
        Some((whole, "")) => digits(whole),
        Some((whole, fraction)) => (whole.is_empty() || digits(whole)) && digits(fraction),
    };
    mantissa_ok && digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_steps(text: &str, steps: Steps, expected: &[(usize, &str)]) {
        let got = parse_schedule(text, steps);
        let got: Vec<_> = got
            .iter()
            .map(|entry| (entry.until_step, entry.text.as_str()))
            .collect();
        assert_eq!(got, expected, "{text:?}");
    }

    fn check(text: &str, expected: &[(usize, &str)]) {
        check_steps(text, Steps::new(10), expected);
    }

    #[test]
    fn a1111s_own_cases() {
        check("test", &[(10, "test")]);
        check("a [b:3]", &[(3, "a "), (10, "a b")]);
        check("a [b: 3]", &[(3, "a "), (10, "a b")]);
        check("a [[[b]]:2]", &[(2, "a "), (10, "a [[b]]")]);
        check("[(a:2):3]", &[(3, ""), (10, "(a:2)")]);
        check("a [b : c : 1] d", &[(1, "a b  d"), (10, "a  c  d")]);
        check("a[b:[c:d:2]:1]e", &[(1, "abe"), (2, "ace"), (10, "ade")]);
        check("a [unbalanced", &[(10, "a [unbalanced")]);
        check("a [b:.5] c", &[(5, "a  c"), (10, "a b c")]);
        check("a [{b|d{:.5] c", &[(5, "a  c"), (10, "a {b|d{ c")]);
        check("((a][:b:c [d:3]", &[(3, "((a][:b:c "), (10, "((a][:b:c d")]);
    }

    #[test]
    fn alternating() {
        let turns = ["a", "(b:1.1)"];
        let expected: Vec<_> = (1..=10).map(|step| (step, turns[(step - 1) % 2])).collect();
        check("[a|(b:1.1)]", &expected);
        let expected: Vec<_> = (1..=10)
            .map(|step| (step, ["female", "male"][(step - 1) % 2]))
            .collect();
        check("[fe|]male", &expected);
        let expected: Vec<_> = (1..=10)
            .map(|step| (step, if step % 4 == 1 { "female" } else { "male" }))
            .collect();
        check("[fe|||]male", &expected);
    }

    #[test]
    fn second_pass() {
        let steps = Steps {
            base: 10,
            second_pass: Some(10),
        };
        check_steps("a [b:.5] c", steps, &[(10, "a b c")]);
        check_steps("a [b:1.5] c", steps, &[(5, "a  c"), (10, "a b c")]);
        check_steps("a [b:12] c", steps, &[(2, "a  c"), (10, "a b c")]);
    }

    #[test]
    fn numbers_at_the_edges() {
        check("[a:b:0]", &[(10, "b")]);
        check("[a:b:-1]", &[(10, "b")]);
        check("[a:b:99]", &[(10, "a")]);
        check("[a:b:1e99]", &[(10, "a")]);
        check("[a:b:1.]", &[(10, "a")]);
        check("[a:b:]", &[(10, "[a:b:]")]);
        check("[a:b:x]", &[(10, "[a:b:x]")]);
        check("[3:4]", &[(4, ""), (10, "3")]);
        check("[a:3:4]", &[(4, "a"), (10, "3")]);
    }

    #[test]
    fn what_fits_nowhere_is_taken_word_for_word() {
        check("", &[(10, "")]);
        check("a | [b:3]", &[(10, "a | [b:3]")]);
        check("[b:3] \\", &[(10, "[b:3] \\")]);
        check("\\[b:3\\]", &[(10, "\\[b:3\\]")]);
        check("(a:1.2) [b] c)", &[(10, "(a:1.2) [b] c)")]);
    }

    #[test]
    fn no_text_is_too_strange() {
        for unit in [
            "(", "[", "[a:", "(a", "[a|", "]", "\\", "[[a:b:3]", "é[", "[a:b:3]", "((a)(b)", "[(",
            ":", "|",
        ] {
            for end in ["", "]", ":3]", ")"] {
                parse_schedule(&(unit.repeat(3000) + end), Steps::new(4));
            }
        }
    }
}
