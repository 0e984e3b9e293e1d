//! What goes wrong between here and a server, by who can act.

use std::fmt;
use std::io;

/// Why bytes behind a URL could not be read. It travels inside an [`io::Error`]:
///
/// ```
/// # use safelight_store::{StoreError, remote::RemoteError};
/// fn is_remote(error: &StoreError) -> Option<&RemoteError> {
///     let StoreError::Io { error, .. } = error else { return None };
///     error.get_ref()?.downcast_ref()
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteError {
    /// The URL, without user, password and query.
    pub url: String,
    /// The bytes that were asked for: start and end.
    pub range: (u64, u64),
    /// How many requests were made for them.
    pub attempts: u32,
    /// What the server answered last, if it did.
    pub status: Option<u16>,
    /// What went wrong.
    pub problem: Problem,
}

/// What went wrong, sorted by who can act.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// There is nothing under this URL.
    NotFound,
    /// The server wants other credentials, or any; with what it says, such as `AccessDenied`.
    Refused(String),
    /// Credentials or settings in the environment are missing or wrong; nothing was asked of the server.
    Settings(String),
    /// The object was replaced since it was opened.
    Changed {
        /// What it was: its ETag, or date and size.
        was: String,
        /// What it is now.
        now: String,
    },
    /// An answer has none of the marks (ETag, date) that earlier ones had: it may be of another object.
    Unmarked {
        /// What the object was: its ETag, or date and size.
        was: String,
    },
    /// The server sends whole files only, and this one is larger than is held in memory.
    NoRanges {
        /// Its size, if the server says it.
        file_bytes: Option<u64>,
        /// How much would be read in full.
        limit_bytes: u64,
    },
    /// The server sends compressed bytes, which have no positions.
    Encoded(String),
    /// An answer that breaks the rules of HTTP, or that is another one than was asked for.
    BadAnswer(String),
    /// The server is overloaded or broken: an answer from 500 to 599, 429 or 408.
    Busy(String),
    /// No answer: no connection, a timeout, a connection that broke.
    Network(String),
    /// A redirect that is not followed: in a circle, from https to http, to another kind of URL.
    Redirect(String),
}

impl RemoteError {
    /// Whether another attempt may help.
    pub fn is_passing(&self) -> bool {
        matches!(self.problem, Problem::Busy(_) | Problem::Network(_))
    }
}

impl std::error::Error for RemoteError {}

/// All but the URL, which stands before it in a [`crate::StoreError`].
impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, end) = self.range;
        match (&self.problem, start < end) {
            (Problem::Settings(_), _) => {}
            (_, true) => write!(f, "bytes {start}-{}: ", end - 1)?,
            (_, false) => {}
        }
        match self.status {
            Some(status) => write!(f, "HTTP {status}")?,
            None => write!(f, "no answer")?,
        }
        if self.attempts > 1 {
            write!(f, " after {} attempts", self.attempts)?;
        }
        write!(f, "; {}", self.problem)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::NotFound => write!(f, "there is nothing here: check the URL's spelling"),
            Problem::Refused(what) => write!(
                f,
                "the server refuses{}: check the credentials in the environment, or ask for a new signed URL",
                in_brackets(what)
            ),
            Problem::Settings(what) => write!(
                f,
                "{what}; set the credentials in the environment (AWS_ACCESS_KEY_ID …, GOOGLE_APPLICATION_CREDENTIALS, \
                 AZURE_STORAGE_ACCOUNT_NAME …), or AWS_SKIP_SIGNATURE, GOOGLE_SKIP_SIGNATURE, AZURE_SKIP_SIGNATURE=true \
                 for what is public"
            ),
            Problem::Changed { was, now } => write!(
                f,
                "the file was replaced while it was being read: it was {was} and is {now} now; open it again (run the \
                 command again)"
            ),
            Problem::Unmarked { was } => write!(
                f,
                "the file was {was}, and this answer has neither that ETag nor a date, so that it may be of another file; \
                 open it again (run the command again), and if that does not help, download it first"
            ),
            Problem::NoRanges {
                file_bytes,
                limit_bytes,
            } => {
                write!(f, "the server sends whole files only, and this one ")?;
                match file_bytes {
                    Some(bytes) => write!(f, "has {bytes} bytes")?,
                    None => write!(f, "is longer")?,
                }
                write!(
                    f,
                    " where {limit_bytes} are read at most; download it first"
                )
            }
            Problem::Encoded(encoding) => write!(
                f,
                "the server compresses the file ({encoding}), so that parts of it can't be read; download it first"
            ),
            Problem::BadAnswer(what) => write!(f, "{what}; the server or a proxy is broken"),
            Problem::Busy(what) => write!(
                f,
                "the server is overloaded or broken{}: try again later",
                in_brackets(what)
            ),
            Problem::Network(what) => {
                write!(
                    f,
                    "{what}: check the URL's host and the network, and try again"
                )
            }
            Problem::Redirect(what) => write!(f, "{what}"),
        }
    }
}

fn in_brackets(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(" ({text})")
    }
}

impl From<RemoteError> for io::Error {
    fn from(error: RemoteError) -> io::Error {
        let kind = match &error.problem {
            Problem::NotFound => io::ErrorKind::NotFound,
            Problem::Refused(_) | Problem::Settings(_) => io::ErrorKind::PermissionDenied,
            Problem::Busy(_) | Problem::Network(_) => io::ErrorKind::ConnectionAborted,
            Problem::NoRanges { .. } | Problem::Encoded(_) => io::ErrorKind::Unsupported,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

/// Text from elsewhere for a message: one line, not long, and without what may be secret: queries and users of URLs.
pub(crate) fn harmless(text: &str) -> String {
    let words = text.split_whitespace().map(|word| {
        if word.contains("://") {
            crate::location::redacted(word)
        } else {
            word.to_owned()
        }
    });
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(problem: Problem) -> RemoteError {
        RemoteError {
            url: "https://h/a".to_owned(),
            range: (0, 65536),
            attempts: 4,
            status: Some(503),
            problem,
        }
    }

    #[test]
    fn messages_say_range_status_attempts_and_what_to_do() {
        let text = error(Problem::Busy(String::new())).to_string();
        assert_eq!(
            text,
            "bytes 0-65535: HTTP 503 after 4 attempts; the server is overloaded or broken: try again later"
        );
        let changed = Problem::Changed {
            was: "ETag \"a\"".to_owned(),
            now: "ETag \"b\"".to_owned(),
        };
        let text = error(changed).to_string();
        assert!(text.contains("\"a\"") && text.contains("\"b\"") && text.contains("open it again"));
    }

    #[test]
    fn kinds_let_callers_tell_who_can_act() {
        let kind = |problem| io::Error::from(error(problem)).kind();
        assert_eq!(kind(Problem::NotFound), io::ErrorKind::NotFound);
        assert_eq!(
            kind(Problem::Refused(String::new())),
            io::ErrorKind::PermissionDenied
        );
        assert!(error(Problem::Network(String::new())).is_passing());
        assert!(!error(Problem::NotFound).is_passing());
    }

    #[test]
    fn foreign_text_loses_secrets_and_length() {
        let text = "Error GET https://u:p@h/a?sig=secret: bad\n\nthing";
        assert_eq!(harmless(text), "Error GET https://h/a?… bad thing");
        assert!(harmless(&"long ".repeat(1000)).len() < 310);
    }
}
