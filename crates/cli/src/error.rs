//! Why the command ended without doing what was asked, and the exit code that says so.

use std::fmt;

/// What went wrong, sorted by who can act; the message is for people.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The machine: nothing can be written there, a disk is full.
    Machine(String),
    /// The request: arguments that do not go together, a size that is too large.
    Usage(String),
    /// The model: not found, not one, not whole.
    Model(String),
    /// A picture or mask that was given.
    Picture(String),
    /// Ctrl-C; so many pictures had been written before.
    Interrupted {
        /// How many.
        saved: usize,
    },
}

impl Failure {
    /// The exit code; `--help` and the README list them.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::Machine(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Model(_) => 3,
            Failure::Picture(_) => 4,
            Failure::Interrupted { .. } => 130,
        }
    }

    /// The word for it in `--json`.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Failure::Machine(_) => "machine",
            Failure::Usage(_) => "usage",
            Failure::Model(_) => "model",
            Failure::Picture(_) => "picture",
            Failure::Interrupted { .. } => "interrupted",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Machine(message)
            | Failure::Usage(message)
            | Failure::Model(message)
            | Failure::Picture(message) => f.write_str(message),
            Failure::Interrupted { saved: 0 } => f.write_str("interrupted; nothing was written"),
            Failure::Interrupted { saved } => {
                write!(f, "interrupted; {saved} finished before and are written")
            }
        }
    }
}
