//! Standard output for answers, standard error for everything else.

use std::io::{self, Write};

use serde_json::Value;

use crate::error::Failure;

/// Prints an answer. That the reader went away (`| head`) is no failure.
pub(crate) fn answer(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Machine(format!(
            "can't write to standard output: {error}"
        ))),
        _ => Ok(()),
    }
}

/// Prints an answer for machines.
pub(crate) fn answer_json(value: &Value) -> Result<(), Failure> {
    answer(&format!("{value:#}\n"))
}

/// Says something beside the answer.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Bytes in the unit that fits: `512 bytes`, `12.3 MB`, `4.27 GB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} bytes");
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

/// Rows as a table with two spaces between its columns, numbers (`right`) to the right.
pub(crate) fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let space = " ".repeat(widths[column] - cell.chars().count());
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

/// Text from a file without what could command a terminal, and not endless.
pub(crate) fn tame(text: &str, length_max: usize) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut out: String = clean.take(length_max).collect();
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
    fn tables_line_up() {
        let rows = [
            vec!["a".to_string(), "1".into(), "x".into()],
            vec!["bé".to_string(), "22".into(), "y".into()],
        ];
        assert_eq!(table(&rows, &[1]), "a    1  x\nbé  22  y\n");
    }

    #[test]
    fn foreign_text_is_tamed() {
        assert_eq!(tame("a\x1b[31m\nb", 100), "a [31m b");
        assert_eq!(tame("abcdef", 3), "abc…");
        assert_eq!(harmless("a\x1b[31m\n  b"), "a [31m\n  b");
    }
}
