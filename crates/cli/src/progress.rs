//! The progress bars: step, time a step, time left; bytes, bytes a second, time left. Only where someone watches, on standard error.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::Failure;
use crate::{interrupt, say};

/// With everything else the line stays below 80 characters.
const STEPS_TEMPLATE: &str = "{prefix}{bar:16} step {pos}/{len}{msg}";

/// A name of 22 columns, and the line stays below 80.
const BYTES_TEMPLATE: &str =
    "{prefix} {bar:12} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left";

/// A line that is written over at each step.
pub(crate) struct Progress {
    bar: ProgressBar,
    started: Instant,
    last: Instant,
    /// Time a step, smoothed, so that one slow step does not make the estimate jump.
    step_time: Option<Duration>,
}

impl Progress {
    /// A bar that is shown if standard error is a terminal and `quiet` is false.
    pub(crate) fn new(quiet: bool) -> Progress {
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let now = Instant::now();
        Progress {
            bar: ProgressBar::with_draw_target(None, target),
            started: now,
            last: now,
            step_time: None,
        }
    }

    /// Says what is going on before and between the steps.
    pub(crate) fn stage(&mut self, what: &str) {
        self.last = Instant::now();
        self.draw("{msg}", what);
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
        self.bar.set_prefix(which);
        self.bar.set_length(count as u64);
        self.bar.set_position(done as u64);
        // The pictures to come take as many steps.
        let left = count - done.min(count) + count * image_count.saturating_sub(idx + 1);
        self.draw(STEPS_TEMPLATE, &times(left, self.step_time));
    }

    /// Takes the line away.
    pub(crate) fn clear(&mut self) {
        self.bar.finish_and_clear();
    }

    /// Since the beginning.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn draw(&self, template: &str, message: &str) {
        if self.bar.is_finished() {
            self.bar.reset();
        }
        let style =
            ProgressStyle::with_template(template).expect("our own templates are well formed");
        self.bar.set_style(style.progress_chars("█░"));
        self.bar.set_message(message.to_owned());
        self.bar.tick();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A bar over bytes, with throughput and time left, for work on whole files. Only where someone watches.
///
/// May be told from several threads.
pub(crate) struct BytesProgress {
    bar: ProgressBar,
}

impl BytesProgress {
    /// A bar for `bytes_all` bytes, shown if standard error is a terminal and `quiet` is false; `what` is put before it.
    pub(crate) fn new(quiet: bool, what: &str, bytes_all: u64) -> BytesProgress {
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(10)
        };
        let bar = ProgressBar::with_draw_target(Some(bytes_all), target);
        let style = ProgressStyle::with_template(BYTES_TEMPLATE)
            .expect("our own templates are well formed");
        bar.set_style(style.progress_chars("█░"));
        bar.set_prefix(say::middle_cut(
            &safelight_format::shown(what).to_string(),
            22,
        ));
        BytesProgress { bar }
    }

    /// So many bytes more are done. An error if someone asked to end (Ctrl-C).
    pub(crate) fn add(&self, bytes: u64) -> Result<(), Failure> {
        self.bar.inc(bytes);
        interrupt::check()
    }

    /// As [`BytesProgress::add`]; break if someone asked to end (Ctrl-C).
    pub(crate) fn forward(&self, bytes: u64) -> ControlFlow<()> {
        self.bar.inc(bytes);
        if interrupt::asked() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// So many bytes of so many are done; break if someone asked to end (Ctrl-C).
    pub(crate) fn at(&self, bytes_done: u64, bytes_all: u64) -> ControlFlow<()> {
        self.bar.set_length(bytes_all);
        self.bar.set_position(bytes_done);
        if interrupt::asked() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

impl Drop for BytesProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Time a step and time left, where `left` steps are to come, in this picture and the next ones.
fn times(left: usize, step_time: Option<Duration>) -> String {
    let Some(each) = step_time else {
        return String::new();
    };
    let time_left = each.saturating_mul(u32::try_from(left).unwrap_or(u32::MAX));
    let left = if left > 0 {
        format!(", {} left", short(time_left))
    } else {
        String::new()
    };
    format!("  {} a step{left}", short(each))
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
    fn steps_tell_their_times() {
        assert_eq!(times(4, None), "");
        let each = Some(Duration::from_millis(1500));
        assert_eq!(times(2, each), "  1.5 s a step, 3.0 s left");
        assert_eq!(times(0, each), "  1.5 s a step");
    }

    #[test]
    fn templates_are_well_formed() {
        assert!(ProgressStyle::with_template(STEPS_TEMPLATE).is_ok());
        assert!(ProgressStyle::with_template(BYTES_TEMPLATE).is_ok());
    }
}
