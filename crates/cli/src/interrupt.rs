//! Ctrl-C (and SIGTERM, SIGHUP): the first asks the work to end after the step it is in, the second ends the program at once.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::Failure;

static ASKED: AtomicBool = AtomicBool::new(false);

/// Signals that come so soon after the first are the same key press: programs in between (`timeout`, `npm`) pass it on, and the
/// terminal gives it to the whole group.
const ONE_PRESS: Duration = Duration::from_millis(400);

/// Listens from now on.
pub(crate) fn listen() {
    let mut first: Option<Instant> = None;
    let on_signal = move || {
        let first = *first.get_or_insert_with(Instant::now);
        if ASKED.swap(true, Ordering::Relaxed) && first.elapsed() > ONE_PRESS {
            // Pictures and files are renamed into place when they are whole, so nothing half-done takes their place.
            std::process::exit(130);
        }
    };
    // Where signals can't be caught, Ctrl-C ends the program as ever.
    let _ = ctrlc::set_handler(on_signal);
}

/// A write beyond the limit of file sizes (`ulimit -f`) shall fail with an error that can be told, not end the program.
pub(crate) fn outlive_file_size_limit() {
    #[cfg(unix)]
    {
        let met = std::sync::Arc::new(AtomicBool::new(false));
        // Where the signal can't be caught, it ends the program as ever.
        let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, met);
    }
}

/// Whether someone asked to end.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// For work that says how far it is: goes on until someone asks to end.
pub(crate) fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    match asked() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// An error if someone asked to end: for work that goes piece by piece.
pub(crate) fn check() -> Result<(), Failure> {
    if asked() {
        return Err(Failure::Interrupted { saved: 0 });
    }
    Ok(())
}
