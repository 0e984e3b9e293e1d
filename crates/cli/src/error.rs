//! Why the command ended without doing what was asked, and the exit code that says so.

use std::fmt;
use std::path::PathBuf;

use safelight_convert::ConvertError;
use safelight_format::{FormatError, plural};
use safelight_store::StoreError;
use safelight_store::remote::{Problem, RemoteError};

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
    /// Something else, after some files of several were changed.
    SomeChanged {
        /// What.
        failure: Box<Failure>,
        /// Those.
        changed: Vec<PathBuf>,
        /// The others, which are as they were.
        unchanged: Vec<PathBuf>,
    },
    /// Already said on standard error, because others were worked on after it; what is left is the exit code.
    Told(Box<Failure>),
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
            Failure::Partly { failure, .. }
            | Failure::SomeChanged { failure, .. }
            | Failure::Told(failure) => failure.exit_code(),
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
            Failure::Partly { failure, .. }
            | Failure::SomeChanged { failure, .. }
            | Failure::Told(failure) => failure.kind(),
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

/// Whether a path leads to nothing that can be read: the fault of who named it, and of no machine.
fn wrong_path(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Kind;
    /// ELOOP, for which `ErrorKind` has no stable name.
    const LOOP_OF_LINKS: i32 = if cfg!(target_os = "linux") { 40 } else { 62 };
    let by_kind = [
        Kind::NotFound,
        Kind::PermissionDenied,
        Kind::NotADirectory,
        Kind::IsADirectory,
        Kind::InvalidFilename,
    ];
    by_kind.contains(&error.kind()) || cfg!(unix) && error.raw_os_error() == Some(LOOP_OF_LINKS)
}

/// Whether an object behind a URL is another one than it was, or may be: as a file that someone writes to.
fn was_replaced(error: &std::io::Error) -> bool {
    let remote = error.get_ref().and_then(|inner| inner.downcast_ref());
    remote.is_some_and(|remote: &RemoteError| {
        matches!(
            remote.problem,
            Problem::Changed { .. } | Problem::Unmarked { .. }
        )
    })
}

/// Sorts what `store` says by who can act: a file that is not there or not whole is the model's fault, a tensor that is not
/// in it the request's, and everything else the system says is the machine's.
impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        use std::io::ErrorKind as Kind;
        let mut message = error.to_string();
        if let StoreError::Format { error, .. } = &error
            && matches!(error, FormatError::UnknownDtype { .. })
        {
            message += "; --unknown-dtypes takes such tensors as bytes";
        }
        match &error {
            StoreError::Io { doing, error, .. } => match error.kind() {
                _ if wrong_path(error) && ["open", "read", "list"].contains(doing) => {
                    Failure::Model(message)
                }
                // A file to be edited that is not there; one that may not be written to is the machine's affair.
                Kind::NotFound if *doing == "change" => Failure::Model(message),
                _ if was_replaced(error) => Failure::Model(message),
                _ => Failure::Machine(message),
            },
            StoreError::OutOfMemory { .. } => Failure::Machine(message),
            StoreError::Stopped { .. } => Failure::Interrupted { saved: 0 },
            StoreError::NoSuchTensor { .. }
            | StoreError::Write { .. }
            | StoreError::BadLocation { .. } => Failure::Usage(message),
            _ => Failure::Model(message),
        }
    }
}

/// Sorts what `convert` says by who can act, as for [`StoreError`].
impl From<ConvertError> for Failure {
    fn from(error: ConvertError) -> Failure {
        let message = error.to_string();
        match error {
            ConvertError::Store(error) => error.into(),
            ConvertError::Io { doing, error, .. } => match error.kind() {
                // A file that someone writes to.
                _ if StoreError::inside(&error).is_some() || was_replaced(&error) => {
                    Failure::Model(message)
                }
                _ if wrong_path(&error) && ["open", "read"].contains(&doing) => {
                    Failure::Model(message)
                }
                _ => Failure::Machine(message),
            },
            ConvertError::OutOfMemory { .. } => Failure::Machine(message),
            ConvertError::Request { .. } => Failure::Usage(message),
            ConvertError::Cancelled => Failure::Interrupted { saved: 0 },
            _ => Failure::Model(message),
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
            Failure::Partly { failure, .. } if matches!(**failure, Failure::Interrupted { .. }) => {
                failure.fmt(f)
            }
            Failure::Told(failure) => failure.fmt(f),
            Failure::SomeChanged {
                failure,
                changed,
                unchanged,
            } => {
                let names = |paths: &[PathBuf]| {
                    let names = paths.iter().map(|path| path.to_string_lossy());
                    names.collect::<Vec<_>>().join(", ")
                };
                match &**failure {
                    Failure::Interrupted { .. } => f.write_str("interrupted")?,
                    failure => failure.fmt(f)?,
                }
                let (changed, unchanged) = (names(changed), names(unchanged));
                write!(f, "; changed already: {changed}; as they were: {unchanged}")
            }
            Failure::Partly { failure, saved } => {
                let pictures = plural(saved.len() as u64, "picture");
                write!(f, "{failure}; {pictures} written before")
            }
            Failure::Interrupted { saved: 0 } => f.write_str("interrupted; nothing was written"),
            Failure::Interrupted { saved } => {
                write!(f, "interrupted; {saved} finished before and are written")
            }
        }
    }
}
