//! The progress bar: step, time a step, time left. Only where someone watches, on standard error.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// With everything else the line stays below 80 characters.
const CELL_COUNT: usize = 16;

/// A line that is written over at each step.
pub(crate) struct Progress {
    shown: bool,
    started: Instant,
    last: Instant,
    /// Time a step, smoothed, so that one slow step does not make the estimate jump.
    step_time: Option<Duration>,
}

impl Progress {
    /// A bar that is shown if standard error is a terminal and `quiet` is false.
    pub(crate) fn new(quiet: bool) -> Progress {
        let now = Instant::now();
        Progress {
            shown: !quiet && stderr().is_terminal(),
            started: now,
            last: now,
            step_time: None,
        }
    }

    /// Says what is going on before and between the steps.
    pub(crate) fn stage(&mut self, what: &str) {
        self.last = Instant::now();
        self.write(what);
    }

    /// `done` of `count` steps of picture `image.0` of `image.1` are done.
    pub(crate) fn step(&mut self, image: (usize, usize), done: usize, count: usize) {
        let now = Instant::now();
        if done > 0 {
            let each = now - self.last;
            self.step_time = Some(
                self.step_time
                    .map_or(each, |before| (before * 3 + each) / 4),
            );
        }
        self.last = now;
        let (idx, image_count) = image;
        let which = if image_count > 1 {
            format!("picture {}/{image_count}  ", idx + 1)
        } else {
            String::new()
        };
        // The pictures to come take as many steps.
        let left = count - done.min(count) + count * image_count.saturating_sub(idx + 1);
        self.write(&format!(
            "{which}{}",
            bar(done, count, left, self.step_time)
        ));
    }

    /// Takes the line away.
    pub(crate) fn clear(&mut self) {
        self.write("");
    }

    /// Since the beginning.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn write(&self, line: &str) {
        if self.shown {
            let mut out = stderr().lock();
            let _ = write!(out, "\r\x1b[2K{line}").and_then(|()| out.flush());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// `left` steps are to come, in this picture and the next ones.
fn bar(done: usize, count: usize, left: usize, step_time: Option<Duration>) -> String {
    let filled = CELL_COUNT * done / count.max(1);
    let cells: String = (0..CELL_COUNT)
        .map(|cell| if cell < filled { '█' } else { '░' })
        .collect();
    let times = step_time.map_or(String::new(), |each| {
        let time_left = each.saturating_mul(u32::try_from(left).unwrap_or(u32::MAX));
        let left = if left > 0 {
            format!(", {} left", short(time_left))
        } else {
            String::new()
        };
        format!("  {} a step{left}", short(each))
    });
    format!("{cells} step {done}/{count}{times}")
}

/// A duration in the unit that fits: `83 ms`, `5.6 s`, `2 min 05 s`, `1 h 02 min`.
pub(crate) fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..10 => format!("{:.1} s", time.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        let check = |milliseconds, expected: &str| {
            assert_eq!(short(Duration::from_millis(milliseconds)), expected)
        };
        check(83, "83 ms");
        check(5_640, "5.6 s");
        check(42_900, "42 s");
        check(125_000, "2 min 05 s");
        check(3_725_000, "1 h 02 min");
    }

    #[test]
    fn bars_fill() {
        assert_eq!(bar(0, 4, 4, None), format!("{} step 0/4", "░".repeat(16)));
        let half = bar(2, 4, 2, Some(Duration::from_millis(1500)));
        assert_eq!(
            half,
            format!(
                "{}{} step 2/4  1.5 s a step, 3.0 s left",
                "█".repeat(8),
                "░".repeat(8)
            )
        );
    }
}
