//! Why the command ended without doing what was asked, and the exit code that says so.

use std::fmt;
use std::path::PathBuf;

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
    /// Something else, after pictures were written.
    Partly {
        /// What.
        failure: Box<Failure>,
        /// Where those pictures are.
        saved: Vec<PathBuf>,
    },
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
            Failure::Partly { failure, .. } => failure.exit_code(),
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
            Failure::Partly { failure, .. } => failure.kind(),
            Failure::Interrupted { .. } => "interrupted",
        }
    }

    /// Pictures that were written all the same.
    pub(crate) fn saved(&self) -> &[PathBuf] {
        match self {
            Failure::Partly { saved, .. } => saved,
            _ => &[],
        }
    }

    /// The failure, with what was written before it.
    pub(crate) fn after(self, saved: Vec<PathBuf>) -> Failure {
        if saved.is_empty() {
            return self;
        }
        let failure = Box::new(self);
        Failure::Partly { failure, saved }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Machine(message)
            | Failure::Usage(message)
            | Failure::Model(message)
            | Failure::Picture(message) => f.write_str(message),
            Failure::Partly { failure, .. } if matches!(**failure, Failure::Interrupted { .. }) => {
                failure.fmt(f)
            }
            Failure::Partly { failure, saved } => {
                let s = if saved.len() == 1 { "" } else { "s" };
                write!(f, "{failure}; {} picture{s} written before", saved.len())
            }
            Failure::Interrupted { saved: 0 } => f.write_str("interrupted; nothing was written"),
            Failure::Interrupted { saved } => {
                write!(f, "interrupted; {saved} finished before and are written")
            }
        }
    }
}
