//! `safelight browse`: a file's tensors on a terminal, with keys.
//!
//! [`app`] is what is shown and what keys do, [`mod@draw`] how it looks; only this file knows that there is a terminal.

mod app;
mod draw;
mod fuzzy;
mod stats;
#[cfg(test)]
mod tests;
mod tree;

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use clap::{Args, ValueHint};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use safelight_convert::{OpenOptions, Source};

use self::app::{App, Known, Wish};
use self::draw::{Looks, draw};
use crate::error::Failure;
use crate::files::{self, Outcome, Run};
use crate::interrupt;

pub(crate) const HELP: &str = "\
Keys: up and down move, right and left open and close, / finds, m shows metadata, s sorts by size, ? lists all, q quits.
Files of other formats (pickles, GGUF …) can be browsed too; nothing in them is executed. The variable NO_COLOR turns
colours off.

Example:
  safelight browse model.safetensors";

/// How long to wait for a key before looking whether numbers have been read.
const WAIT: Duration = Duration::from_millis(60);
/// No tensor is wanted.
const NONE: usize = usize::MAX;

/// The arguments of `browse`.
#[derive(Debug, Args)]
pub(crate) struct BrowseArgs {
    /// A tensor file, shards (*.index.json) or a folder of them
    #[arg(value_name = "FILE", value_hint = ValueHint::AnyPath)]
    file: PathBuf,
    /// Also show tensors of dtypes that the format does not have, instead of refusing their file
    #[arg(long)]
    unknown_dtypes: bool,
}

impl Run for BrowseArgs {
    fn wants_json(&self) -> bool {
        false
    }

    fn run(&self) -> Result<Outcome, Failure> {
        files::no_stdin(&self.file)?;
        let options = OpenOptions {
            opaque_dtypes: self.unknown_dtypes,
            skip_unsupported: true,
            ..OpenOptions::default()
        };
        let source = files::source(&self.file, &options)?;
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return Err(Failure::Usage(
                "browse needs a terminal; `safelight ls --tree` prints the same as text".into(),
            ));
        }
        let source: Arc<dyn Source> = Arc::from(source);
        let app = App::new(&*source);
        let looks = Looks::new(std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()));
        let failed = |error: io::Error| Failure::Machine(format!("the terminal fails: {error}"));
        // Also sees to it that a panic gives the terminal back first.
        let mut terminal = ratatui::try_init().map_err(failed)?;
        let ended = browse(app, looks, source, &mut terminal);
        ratatui::try_restore().map_err(failed)?;
        match ended.map_err(failed)? {
            Wish::Quit => Ok(Outcome::Clean),
            // Nothing was being written, so there is nothing to say of it.
            Wish::Interrupt => Err(Failure::Told(Box::new(Failure::Interrupted { saved: 0 }))),
        }
    }
}

/// Shows the screen and takes keys until one of them ends it.
fn browse(
    mut app: App,
    looks: Looks,
    source: Arc<dyn Source>,
    terminal: &mut DefaultTerminal,
) -> io::Result<Wish> {
    let reader = Reader::start(source);
    end_with_the_terminal();
    let mut changed = true;
    loop {
        while let Ok((tensor, known)) = reader.answers.try_recv() {
            app.learn(tensor, known);
            changed = true;
        }
        reader.want(app.wanted(Instant::now()));
        if std::mem::take(&mut changed) {
            terminal.draw(|frame| draw(&mut app, looks, frame))?;
        }
        if interrupt::asked() {
            return Ok(Wish::Interrupt);
        }
        if !event::poll(WAIT)? {
            continue;
        }
        // A held key comes faster than a large screen is drawn: all that came is taken at once.
        while event::poll(Duration::ZERO)? {
            changed = true;
            if let Event::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
                && let Some(wish) = app.key(key)
            {
                return Ok(wish);
            }
        }
    }
}

/// Ends the program if its terminal goes away (a closed window, a lost connection), or if it was asked to end and waits for keys all the same:
/// waiting never ends where no key can come any more. Nothing is being written that could be lost.
fn end_with_the_terminal() {
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(WAIT);
            let gone = !io::stdin().is_terminal() && !io::stdout().is_terminal();
            if gone {
                std::process::exit(130);
            }
            if interrupt::asked() {
                // Time for the screen to be left in order.
                std::thread::sleep(Duration::from_millis(500));
                let _ = ratatui::try_restore();
                std::process::exit(130);
            }
        }
    });
}

/// Reads tensors beside the screen, one at a time, and drops one that nobody looks at any more.
struct Reader {
    wanted: Arc<AtomicUsize>,
    asks: Sender<usize>,
    answers: Receiver<(usize, Known)>,
}

impl Reader {
    fn start(source: Arc<dyn Source>) -> Reader {
        let wanted = Arc::new(AtomicUsize::new(NONE));
        let (asks, asked) = channel::<usize>();
        let (answer, answers) = channel();
        let still = Arc::clone(&wanted);
        std::thread::spawn(move || {
            for tensor in asked {
                let bytes = 2 * source.tensors()[tensor].byte_count().unwrap_or(0).max(1);
                let go_on = |done: u64| {
                    let percent = (done as f64 / bytes as f64 * 100.0) as u64;
                    let heard = answer.send((tensor, Known::Reading(percent))).is_ok();
                    heard && still.load(Ordering::Relaxed) == tensor
                };
                if !go_on(0) {
                    continue;
                }
                let known = match stats::stats(&*source, tensor, &go_on) {
                    Ok(stats) => Known::Stats(stats),
                    Err(_) if still.load(Ordering::Relaxed) != tensor => continue,
                    Err(error) => Known::Failed(error),
                };
                if answer.send((tensor, known)).is_err() {
                    return;
                }
            }
        });
        Reader {
            wanted,
            asks,
            answers,
        }
    }

    fn want(&self, tensor: Option<usize>) {
        let tensor = tensor.unwrap_or(NONE);
        if self.wanted.swap(tensor, Ordering::Relaxed) != tensor && tensor != NONE {
            // The thread lives as long as this does.
            let _ = self.asks.send(tensor);
        }
    }
}
