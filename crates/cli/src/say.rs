//! Standard output for answers, standard error for everything else.

use std::borrow::Cow;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::path::PathBuf;

use safelight_format::shown;
use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Value, json};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::error::Failure;

/// Prints an answer. That the reader went away (`| head`) is no failure.
pub(crate) fn answer(text: &str) -> Result<(), Failure> {
    answer_bytes(text.as_bytes())
}

/// As [`answer`], of what need not be text: file names.
pub(crate) fn answer_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Machine(format!(
            "can't write to standard output: {error}"
        ))),
        _ => Ok(()),
    }
}

/// Prints a long answer piece by piece. That the reader went away (`| head`) ends it early and is no failure.
pub(crate) fn stream(
    write: impl FnOnce(&mut dyn Write) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut out = Stream {
        out: BufWriter::with_capacity(64 * 1024, io::stdout().lock()),
        failed: None,
    };
    let result = write(&mut out);
    let flushed = out.flush();
    match out
        .failed
        .or(flushed.err().map(|error| (error.kind(), error.to_string())))
    {
        Some((io::ErrorKind::BrokenPipe, _)) => Ok(()),
        Some((_, error)) => Err(Failure::Machine(format!(
            "can't write to standard output: {error}"
        ))),
        None => result,
    }
}

/// Standard output that remembers why it failed, whatever the failure is made into on its way.
struct Stream<'a> {
    out: BufWriter<StdoutLock<'a>>,
    failed: Option<(io::ErrorKind, String)>,
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes);
        if let Err(error) = &written
            && error.kind() != io::ErrorKind::Interrupted
        {
            self.failed = Some((error.kind(), error.to_string()));
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.out.flush();
        if let Err(error) = &flushed {
            self.failed = Some((error.kind(), error.to_string()));
        }
        flushed
    }
}

/// Prints one line of JSON: what the file commands answer for each file.
pub(crate) fn answer_json_line(value: &Value) -> Result<(), Failure> {
    answer(&format!("{}\n", json_text(value)))
}

/// JSON on one line in which nothing hides or commands a terminal: what strings have of that is escaped (`\u202e`), and means the same.
pub(crate) fn json_text(value: &Value) -> String {
    visible(&value.to_string()).into_owned()
}

/// Writes JSON as [`json_text`] has it, of what is too large for one text.
pub(crate) fn write_json(out: &mut dyn Write, value: &impl Serialize) -> Result<(), Failure> {
    let mut serializer = serde_json::Serializer::with_formatter(out, Visible);
    let written = value.serialize(&mut serializer);
    written.map_err(|error| Failure::Machine(error.to_string()))
}

struct Visible;

impl Formatter for Visible {
    fn write_string_fragment<W: Write + ?Sized>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        out.write_all(visible(fragment).as_bytes())
    }
}

/// JSON has such characters inside of strings only, where an escape means the same.
fn visible(json: &str) -> Cow<'_, str> {
    let hides = |c: char| {
        c == '\u{7f}' || !c.is_ascii() && shown(c.encode_utf8(&mut [0; 4])).to_string().is_ascii()
    };
    if json.is_ascii() && !json.contains('\u{7f}') {
        return json.into();
    }
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match hides(c) {
            true => {
                let mut units = [0; 2];
                let units = c.encode_utf16(&mut units).iter();
                text.extend(units.map(|unit| format!("\\u{unit:04x}")));
            }
            false => text.push(c),
        }
    }
    text.into()
}

/// Says on standard error what went wrong, and with `--json` on standard output as well, on one line.
pub(crate) fn failure(failure: &Failure, exit_code: u8, wants_json: bool) {
    note(&harmless(&format!("error: {failure}")));
    if wants_json {
        let error = json!({ "kind": failure.kind(), "message": failure.to_string(), "exit_code": exit_code });
        let mut answer = json!({ "error": error });
        if let Failure::SomeChanged {
            changed, unchanged, ..
        } = failure
        {
            let names = |paths: &[PathBuf]| -> Vec<String> {
                let names = paths.iter().map(|path| path.to_string_lossy());
                names.map(Into::into).collect()
            };
            answer["changed"] = names(changed).into();
            answer["unchanged"] = names(unchanged).into();
        }
        let _ = answer_json_line(&answer);
    }
}

/// How many columns there are for an answer: the terminal's, else what the variable `COLUMNS` says, else no limit.
pub(crate) fn columns() -> usize {
    let terminal = terminal_size::terminal_size_of(io::stdout());
    let said = || std::env::var("COLUMNS").ok()?.parse().ok();
    let columns = terminal
        .map(|(width, _)| usize::from(width.0))
        .or_else(said);
    columns
        .filter(|&columns| columns >= 20)
        .unwrap_or(usize::MAX)
}

/// The text in at most `columns_max` columns of a terminal: what is longer loses its middle, `model.dif…0.weight`.
pub(crate) fn middle_cut(text: &str, columns_max: usize) -> String {
    if text.width() <= columns_max {
        return text.to_owned();
    }
    let room = columns_max.saturating_sub(1);
    let (front, back) = (room / 2, room - room / 2);
    let take = |chars: &mut dyn Iterator<Item = char>, room: usize| {
        let mut used = 0;
        let fits = |c: &char| {
            used += c.width().unwrap_or(0);
            used <= room
        };
        chars.take_while(fits).collect::<Vec<char>>()
    };
    let mut cut: String = take(&mut text.chars(), front).into_iter().collect();
    cut.push('…');
    cut.extend(take(&mut text.chars().rev(), back).into_iter().rev());
    cut
}

/// What a line is wrapped at where nobody says how many columns there are.
const COLUMNS: usize = 80;

/// A paragraph in as many lines as it needs for the terminal's columns (or 80), all but the first one indented. Words stay whole,
/// however long: a path or a name can be copied.
pub(crate) fn hanging(text: &str) -> String {
    hanging_at(text, columns_or_default())
}

fn hanging_at(text: &str, columns_max: usize) -> String {
    let mut lines = lines_at(text, columns_max, 2).into_iter();
    let mut hanging = lines.next().unwrap_or_default() + "\n";
    lines.for_each(|line| hanging += &format!("  {line}\n"));
    hanging
}

/// The lines of a paragraph that stands `indent` columns from the left.
pub(crate) fn lines(text: &str, indent: usize) -> Vec<String> {
    lines_at(text, columns_or_default().saturating_sub(indent), 0)
}

fn columns_or_default() -> usize {
    match columns() {
        usize::MAX => COLUMNS,
        columns => columns,
    }
}

/// The words of a text; what stands between two backticks, an argument to be copied, is one if it is short.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let is_open = |last: &&mut String| last.matches('`').count() % 2 == 1 && last.len() < 40;
        match words.last_mut().filter(is_open) {
            Some(last) => *last += &format!(" {word}"),
            None => words.push(word.to_owned()),
        }
    }
    words
}

/// Words in lines of so many columns, all but the first one shorter by `indent`.
fn lines_at(text: &str, columns_max: usize, indent: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut room = 0;
    for word in words(text) {
        let width = word.width();
        match lines.last_mut() {
            Some(line) if width < room => {
                line.push(' ');
                line.push_str(&word);
                room -= width + 1;
            }
            last => {
                let indent = if last.is_some() { indent } else { 0 };
                room = columns_max.saturating_sub(indent + width);
                lines.push(word);
            }
        }
    }
    lines
}

/// As [`table`], with what stands in `shrinks` cut in the middle where a line would have more than `columns_max` columns.
pub(crate) fn fitting_table(
    rows: &mut [Vec<String>],
    right: &[usize],
    shrinks: usize,
    columns_max: usize,
) -> String {
    let widest = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.width()).max().unwrap_or(0)
    };
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let others: usize = (0..columns)
        .filter(|&column| column != shrinks)
        .map(|column| widest(column) + 2)
        .sum();
    let room = columns_max.saturating_sub(others).max(8);
    if widest(shrinks) > room {
        let cells = rows.iter_mut().filter_map(|row| row.get_mut(shrinks));
        cells.for_each(|cell| *cell = middle_cut(cell, room));
    }
    table(rows, right)
}

/// Prints an answer for machines.
pub(crate) fn answer_json(value: &Value) -> Result<(), Failure> {
    answer(&format!("{}\n", visible(&format!("{value:#}"))))
}

/// Says something beside the answer.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

pub(crate) use safelight_format::plural;

/// Bytes in the unit that fits: `512 bytes`, `12.3 MB`, `4.27 GB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return plural(count, "byte");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 10.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A count in the unit that fits: `744`, `12.3 M`.
pub(crate) fn count(count: u64) -> String {
    match count {
        0..10_000 => count.to_string(),
        10_000..1_000_000 => format!("{:.1} k", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", count as f64 / 1e6),
        _ => format!("{:.2} G", count as f64 / 1e9),
    }
}

/// A number with three digits that matter: `0.0123`, `-1.5e-6`.
pub(crate) fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude == 0.0 {
        return "0".into();
    }
    if !(1e-3..1e5).contains(&magnitude) {
        return format!("{value:.2e}");
    }
    let decimals = (2 - magnitude.log10().floor() as i32).clamp(0, 5) as usize;
    format!("{value:.decimals$}")
}

/// Rows as a table with two spaces between its columns, numbers (`right`) to the right.
pub(crate) fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.width())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let space = " ".repeat(widths[column] - cell.width());
            let (before, after) = if right.contains(&column) {
                (space.as_str(), "")
            } else {
                ("", space.as_str())
            };
            line += &format!("{before}{cell}{after}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Text of several lines without what could command a terminal.
pub(crate) fn harmless(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| tame(line, usize::MAX)).collect();
    lines.join("\n")
}

/// Text from a file without what could command a terminal or hides from readers, and not endless.
pub(crate) fn tame(text: &str, length_max: usize) -> String {
    let mut out = String::new();
    for c in text.chars().take(length_max) {
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            _ if c.is_ascii_control() => out += &c.escape_default().to_string(),
            _ if c.is_ascii() => out.push(c),
            _ => out += &shown(c.encode_utf8(&mut [0; 4])).to_string(),
        }
    }
    if text.chars().count() > length_max {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        let pairs = [
            (0, "0 bytes"),
            (1, "1 byte"),
            (999, "999 bytes"),
            (1000, "1.00 kB"),
            (12_345_678, "12.3 MB"),
            (999_999, "1.00 MB"),
            (4_265_380_512, "4.27 GB"),
        ];
        for (value, text) in pairs {
            assert_eq!(bytes(value), text);
        }
        assert_eq!(
            (count(744).as_str(), count(859_520_964).as_str()),
            ("744", "859.5 M")
        );
    }

    #[test]
    fn three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (-0.66406, "-0.664"),
            (0.0018217, "0.00182"),
            (76.0, "76.0"),
            (12345.6, "12346"),
            (-4.5711e-5, "-4.57e-5"),
            (1e300, "1.00e300"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn tables_line_up() {
        let rows = [
            vec!["a".to_string(), "1".into(), "x".into()],
            vec!["bé".to_string(), "22".into(), "y".into()],
        ];
        assert_eq!(table(&rows, &[1]), "a    1  x\nbé  22  y\n");
    }

    #[test]
    fn long_cells_lose_their_middle() {
        assert_eq!(middle_cut("model.weight", 12), "model.weight");
        assert_eq!(middle_cut("model.weight", 11), "model…eight");
        assert_eq!(middle_cut("模型模型模型", 7), "模…型");
        let mut rows = [
            vec!["a.very.long.name".to_string(), "12".into()],
            vec!["b".to_string(), "3".into()],
        ];
        let text = fitting_table(&mut rows, &[1], 0, 14);
        assert_eq!(text, "a.ve….name  12\nb            3\n");
    }

    #[test]
    fn long_lines_hang() {
        assert_eq!(hanging_at("a b c", 80), "a b c\n");
        assert_eq!(hanging_at("", 80), "\n");
        let text = "file: one two three four";
        assert_eq!(hanging_at(text, 11), "file: one\n  two three\n  four\n");
        assert_eq!(hanging_at("add `--a 1` now", 8), "add\n  `--a 1`\n  now\n");
        let text = "a/very/long/path: is/no/better here";
        assert_eq!(
            hanging_at(text, 12),
            "a/very/long/path:\n  is/no/better\n  here\n"
        );
    }

    #[test]
    fn foreign_text_is_tamed() {
        assert_eq!(tame("a\x1b[31m\nb", 100), "a\\u{1b}[31m b");
        assert_eq!(tame("abcdef", 3), "abc…");
        assert_eq!(tame("é\u{202e}x", 100), "é\\u{202e}x");
        assert_eq!(harmless("a\x1b[31m\n  b"), "a\\u{1b}[31m\n  b");
        let hostile = json!({ "a\u{9b}\u{7f}": "é\u{202e}\u{e0041}\n" });
        assert_eq!(
            json_text(&hostile),
            r#"{"a\u009b\u007f":"é\u202e\udb40\udc41\n"}"#
        );
        let read: Value = serde_json::from_str(&json_text(&hostile)).unwrap();
        assert_eq!(read, hostile);
    }
}
