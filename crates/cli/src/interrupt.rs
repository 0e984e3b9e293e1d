//! Ctrl-C (and SIGTERM, SIGHUP): the first asks the work to end after the step it is in, the second ends the program at once.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Failure;

static ASKED: AtomicBool = AtomicBool::new(false);

/// Listens from now on.
pub(crate) fn listen() {
    let on_signal = || {
        if ASKED.swap(true, Ordering::Relaxed) {
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

/// An error if someone asked to end: for work that goes piece by piece.
pub(crate) fn check() -> Result<(), Failure> {
    if asked() {
        return Err(Failure::Interrupted { saved: 0 });
    }
    Ok(())
}
