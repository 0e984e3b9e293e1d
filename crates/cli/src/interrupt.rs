//! Ctrl-C (and SIGTERM, SIGHUP): the first asks the work to end after the step it is in, the second ends the program at once.

use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Listens from now on.
pub(crate) fn listen() {
    let on_signal = || {
        if ASKED.swap(true, Ordering::Relaxed) {
            // Pictures are renamed into place when they are whole, so there is nothing to tidy up.
            std::process::exit(130);
        }
    };
    // Where signals can't be caught, Ctrl-C ends the program as ever.
    let _ = ctrlc::set_handler(on_signal);
}

/// Whether someone asked to end.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}
