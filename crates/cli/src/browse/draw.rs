//! The browser's screens. Everything fits 80 × 24, and smaller terminals see less.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};
use safelight_format::shown;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::app::{App, Known, View};
use super::stats::Stats;
use super::tree::Order;
use crate::array_text::{self, Shown};
use crate::ls::shape_text;
use crate::say;

/// Narrower terminals show the list alone.
const TWO_PANES_COLUMNS: u16 = 60;
const DETAIL_COLUMNS: u16 = 38;
const HISTOGRAM_ROWS: u64 = 5;

const HELP: &str = "\
up down, k j     move                 PgUp PgDn        a page
left right, h l  close, open          Home End, g G    first, last
Enter, Space     open or close; read a large tensor's numbers
+ -              open all, close all
s                order by name or by size
/                find: words of a name, or some of its letters
                 Enter keeps the list, Enter again or Esc goes to the tensor
m                metadata
q, Esc           back, quit";

/// How things look; without colours only bold and reversed.
#[derive(Clone, Copy)]
pub(crate) struct Looks {
    bar: Style,
    selected: Style,
    dim: Style,
    strong: Style,
    hit: Style,
}

impl Looks {
    pub(crate) fn new(colours: bool) -> Looks {
        let plain = Style::new();
        let coloured = |colour| if colours { plain.fg(colour) } else { plain };
        Looks {
            bar: plain.add_modifier(Modifier::REVERSED),
            selected: plain.add_modifier(Modifier::REVERSED),
            dim: coloured(Color::DarkGray),
            strong: coloured(Color::Cyan).add_modifier(Modifier::BOLD),
            hit: coloured(Color::Yellow).add_modifier(Modifier::BOLD),
        }
    }
}

/// Draws the whole screen.
pub(crate) fn draw(app: &mut App, looks: Looks, frame: &mut Frame<'_>) {
    app.look_for();
    let rows = [
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(1),
    ];
    let [head, body, foot] = Layout::vertical(rows).areas(frame.area());
    title(app, looks, frame, head);
    match app.view {
        View::Tensors => tensors(app, looks, frame, body),
        View::Metadata => metadata(app, looks, frame, body),
        View::Help => frame.render_widget(Paragraph::new(HELP), body),
    }
    status(app, looks, frame, foot);
}

fn title(app: &App, looks: Looks, frame: &mut Frame<'_>, area: Rect) {
    let order = match app.order {
        Order::Name => "",
        Order::Size => ", largest first",
    };
    let right = format!(
        "{}, {}{order} ",
        say::plural(app.tensors.len() as u64, "tensor"),
        say::bytes(app.tree.bytes())
    );
    let room = usize::from(area.width).saturating_sub(right.width() + 2);
    let label = say::middle_cut(&shown(&app.label).to_string(), room);
    let gap = room.saturating_sub(label.width());
    let text = format!(" {label}{} {right}", " ".repeat(gap));
    frame.render_widget(
        Paragraph::new(Span::styled(text, looks.bar)).style(looks.bar),
        area,
    );
}

fn status(app: &App, looks: Looks, frame: &mut Frame<'_>, area: Rect) {
    let line = match (&app.search, app.view) {
        (_, View::Metadata | View::Help) => Line::styled("up down scroll   q back", looks.dim),
        (Some(search), _) if search.typing => Line::from(vec![
            Span::styled("/", looks.strong),
            Span::raw(search.query.clone()),
            Span::styled("_", looks.strong),
            Span::styled(
                format!("   {} found   Enter keep   Esc tree", search.found.len()),
                looks.dim,
            ),
        ]),
        (Some(search), _) => Line::styled(
            format!(
                "{} found for {}   / change   Enter show in tree",
                search.found.len(),
                search.query
            ),
            looks.dim,
        ),
        (None, _) => Line::styled(
            "up down move  left right close open  / find  s sort  m metadata  ? help  q quit",
            looks.dim,
        ),
    };
    frame.render_widget(Paragraph::new(line), area);
}

fn tensors(app: &mut App, looks: Looks, frame: &mut Frame<'_>, area: Rect) {
    if area.width < TWO_PANES_COLUMNS {
        return list(app, looks, frame, area);
    }
    // Wide terminals give half of what is left over to the details.
    let detail = DETAIL_COLUMNS + (area.width - TWO_PANES_COLUMNS).saturating_sub(20) / 2;
    let columns = [Constraint::Min(1), Constraint::Length(detail)];
    let [left, right] = Layout::horizontal(columns).areas(area);
    list(app, looks, frame, left);
    let block = Block::new().borders(Borders::LEFT).border_style(looks.dim);
    let inside = block.inner(right);
    frame.render_widget(block, right);
    let inside = Rect {
        x: inside.x + 1,
        width: inside.width.saturating_sub(1),
        ..inside
    };
    frame.render_widget(Paragraph::new(details(app, looks, inside)), inside);
}

fn list(app: &mut App, looks: Looks, frame: &mut Frame<'_>, area: Rect) {
    app.keep_in_view(usize::from(area.height));
    if app.line_count() == 0 {
        let what = if app.search.is_some() {
            "no name fits"
        } else {
            "no tensors"
        };
        return frame.render_widget(Paragraph::new(Line::styled(what, looks.dim)), area);
    }
    let end = (app.top + usize::from(area.height)).min(app.line_count());
    let width = usize::from(area.width).saturating_sub(1);
    let lines: Vec<Line<'_>> = (app.top..end)
        .map(|at| {
            let line = match &app.search {
                Some(_) => found_line(app, looks, at, width),
                None => branch_line(app, looks, at, width),
            };
            if at == app.selected {
                line.patch_style(looks.selected)
            } else {
                line
            }
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), area);
}

fn branch_line(app: &App, looks: Looks, at: usize, width: usize) -> Line<'static> {
    let row = app.rows()[at];
    let branch = app.tree.branch(row.branch);
    let sign = match (branch.has_below(), branch.open) {
        (false, _) => "  ",
        (true, false) => "▸ ",
        (true, true) => "▾ ",
    };
    let size = say::bytes(branch.bytes);
    // Deep trees must not leave the pane.
    let indent = (2 * row.level).min(width / 2);
    let room = width.saturating_sub(indent + 2 + size.width() + 1);
    let label = say::middle_cut(&branch.label, room);
    let gap = room.saturating_sub(label.width()) + 1;
    let style = if branch.has_below() {
        looks.strong
    } else {
        Style::new()
    };
    Line::from(vec![
        Span::raw(format!("{}{sign}", " ".repeat(indent))),
        Span::styled(label, style),
        Span::raw(" ".repeat(gap)),
        Span::styled(size, looks.dim),
        Span::raw(" "),
    ])
}

/// A name with the letters that were found; where it is too long its beginning is left out.
fn found_line(app: &App, looks: Looks, at: usize, width: usize) -> Line<'static> {
    let Some((tensor, found)) = app.search.as_ref().and_then(|search| search.found.get(at)) else {
        return Line::default();
    };
    let name = &app.tensors[*tensor].name;
    let letters: Vec<(bool, String)> = name
        .chars()
        .enumerate()
        .map(|(place, c)| {
            (
                found.places.binary_search(&place).is_ok(),
                shown(c.encode_utf8(&mut [0; 4])).to_string(),
            )
        })
        .collect();
    let (mut used, mut start) = (0, letters.len());
    while start > 0 && used + letters[start - 1].1.width() < width {
        start -= 1;
        used += letters[start].1.width();
    }
    let mut spans = vec![Span::raw(if start > 0 { "…" } else { "" })];
    for (hit, text) in letters.into_iter().skip(start) {
        spans.push(Span::styled(
            text,
            if hit { looks.hit } else { Style::new() },
        ));
    }
    Line::from(spans)
}

fn details(app: &App, looks: Looks, area: Rect) -> Vec<Line<'static>> {
    let width = usize::from(area.width);
    let Some(index) = app.tensor() else {
        return app
            .branch()
            .map_or(Vec::new(), |branch| branch_details(app, looks, branch));
    };
    let tensor = &app.tensors[index];
    let mut lines = wrapped(&shown(&tensor.name).to_string(), width, looks.strong);
    let plain = |text: String| wrapped(&text, width, Style::new());
    lines.extend(plain(format!(
        "{} {}",
        tensor.dtype_name,
        shape_text(&tensor.shape)
    )));
    let elements = say::plural(tensor.elements(), "element");
    let bytes = say::bytes(tensor.bytes);
    lines.extend(plain(format!("{elements}, {bytes}")));
    lines.push(Line::default());
    let Some(dtype) = tensor.dtype else {
        let what = "a dtype that the format does not have: nothing is known of its numbers";
        lines.extend(wrapped(what, width, looks.dim));
        return lines;
    };
    match app.known(index) {
        Some(Known::Stats(stats)) => {
            let rows = usize::from(area.height).saturating_sub(lines.len());
            lines.extend(numbers(stats, dtype, width, rows, looks));
        }
        Some(Known::Failed(error)) => lines.extend(wrapped(error, width, Style::new())),
        _ if app.waits_for_request(index) => {
            lines.push(Line::styled("Enter reads its numbers", looks.dim));
        }
        Some(Known::Reading(percent)) => {
            lines.push(Line::styled(format!("reading … {percent} %"), looks.dim))
        }
        None => lines.push(Line::styled("reading …", looks.dim)),
    }
    lines
}

fn branch_details(app: &App, looks: Looks, at: usize) -> Vec<Line<'static>> {
    let branch = app.tree.branch(at);
    let mut lines = vec![
        Line::styled(branch.label.clone(), looks.strong),
        Line::raw(format!(
            "{}, {}",
            say::plural(branch.tensor_count as u64, "tensor"),
            say::bytes(branch.bytes)
        )),
        Line::default(),
    ];
    let below = app.dtypes_below(at).into_iter();
    let row = below.map(|((_, dtype), (count, bytes))| {
        vec![dtype.to_owned(), format!("×{count}"), say::bytes(bytes)]
    });
    let rows: Vec<_> = row.collect();
    let table = say::table(&rows, &[1, 2]);
    lines.extend(table.lines().map(|line| Line::raw(line.to_owned())));
    lines
}

fn numbers(
    stats: &Stats,
    dtype: safelight_format::Dtype,
    width: usize,
    rows: usize,
    looks: Looks,
) -> Vec<Line<'static>> {
    let pair = |left: (&str, f64), right: (&str, f64)| {
        Line::raw(format!(
            "{:<5}{:<12}  {:<5}{}",
            left.0,
            short(left.1),
            right.0,
            short(right.1)
        ))
    };
    let mut lines = vec![
        pair(("min", stats.min), ("max", stats.max)),
        pair(("mean", stats.mean), ("std", stats.deviation)),
    ];
    let odd = [
        ("zero", stats.zero_count),
        ("NaN", stats.nan_count),
        ("inf", stats.infinite_count),
    ];
    let odd: Vec<String> = odd
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| format!("{count} {what}"))
        .collect();
    if !odd.is_empty() {
        let style = if stats.nan_count + stats.infinite_count > 0 {
            looks.hit
        } else {
            Style::new()
        };
        lines.push(Line::styled(odd.join(", "), style));
    }
    if !stats.bins.is_empty() {
        lines.push(Line::default());
        lines.extend(histogram(&stats.bins, looks));
        let (min, max) = (short(stats.min), short(stats.max));
        let gap = stats.bins.len().saturating_sub(min.len() + max.len());
        lines.push(Line::styled(
            format!("{min}{}{max}", " ".repeat(gap.max(1))),
            looks.dim,
        ));
    }
    let room = rows.saturating_sub(lines.len() + 2);
    if room > 0 && !stats.first.is_empty() {
        lines.push(Line::default());
        lines.push(Line::styled("first numbers", looks.dim));
        let shown = Shown::new(&[stats.first.len() as u64], true);
        let text = array_text::array_text(&shown, dtype, &stats.first);
        let text = text.trim_start_matches('[').trim_end_matches(']');
        let words: Vec<&str> = text.split_whitespace().collect();
        let text = fill(&words, width);
        lines.extend(text.into_iter().take(room).map(Line::raw));
    }
    lines
}

/// Words, as many on a line as fit.
fn fill(words: &[&str], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if line.width() + 1 + word.width() <= width => *line += &format!(" {word}"),
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

/// Bars from the bottom up, in eighths of a row.
fn histogram(bins: &[u64], looks: Looks) -> Vec<Line<'static>> {
    const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let max = bins.iter().copied().max().unwrap_or(0).max(1);
    let height = |&count: &u64| {
        let eighths = (count as f64 / max as f64 * (8 * HISTOGRAM_ROWS) as f64).round() as u64;
        // What is there is seen.
        eighths.max(u64::from(count > 0))
    };
    let row = |row: u64| {
        let bar = |bin| EIGHTHS[height(bin).saturating_sub(8 * row).min(8) as usize];
        Line::styled(bins.iter().map(bar).collect::<String>(), looks.strong)
    };
    (0..HISTOGRAM_ROWS).rev().map(row).collect()
}

/// Six digits at most.
fn short(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 || (1e-3..1e5).contains(&size) {
        let digits = if size >= 1000.0 { 1 } else { 4 };
        let text = format!("{value:.digits$}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    format!("{value:.3e}")
}

/// Text over several lines, cut wherever a line is full.
fn wrapped(text: &str, width: usize, style: Style) -> Vec<Line<'static>> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for c in text.chars() {
        let columns = c.width().unwrap_or(0);
        if used + columns > width.max(1) {
            lines.push(String::new());
            used = 0;
        }
        used += columns;
        lines.last_mut().expect("there is a line").push(c);
    }
    lines
        .into_iter()
        .map(|line| Line::styled(line, style))
        .collect()
}

fn metadata(app: &mut App, looks: Looks, frame: &mut Frame<'_>, area: Rect) {
    let width = usize::from(area.width);
    let mut lines = Vec::new();
    if app.metadata.is_empty() {
        lines.push(Line::styled("no metadata", looks.dim));
    }
    for (key, value) in &app.metadata {
        lines.extend(wrapped(&shown(key).to_string(), width, looks.strong));
        for line in value.lines().take(1000) {
            let text = format!("  {}", say::tame(line, 4000));
            lines.extend(wrapped(&text, width, Style::new()));
        }
    }
    if !app.notes.is_empty() {
        lines.push(Line::styled("notes", looks.strong));
        lines.extend(
            app.notes
                .iter()
                .take(1000)
                .flat_map(|note| wrapped(&format!("  {note}"), width, Style::new())),
        );
    }
    app.page = usize::from(area.height);
    app.scroll_max = lines.len().saturating_sub(app.page);
    app.scroll = app.scroll.min(app.scroll_max);
    let lines: Vec<_> = lines.into_iter().skip(app.scroll).take(app.page).collect();
    frame.render_widget(Paragraph::new(lines), area);
}
