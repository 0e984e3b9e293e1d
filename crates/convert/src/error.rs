//! Why something cannot be converted, by who can act.

use std::fmt;
use std::io;
use std::path::Path;

use safelight_format::{FileKind, shown};
use safelight_store::StoreError;

use crate::source::{Bound, LimitName};

/// Why a file cannot be read, or its tensors written. `file` is a path, or the label of a source.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConvertError {
    /// A safetensors file cannot be read or written.
    Store(StoreError),
    /// The operating system refuses: no such file, no permission, …
    Io {
        /// What was being done, such as "open".
        doing: &'static str,
        /// To what.
        file: String,
        /// What the system says.
        error: io::Error,
    },
    /// A kind of file that nothing here reads.
    UnknownKind {
        /// The file.
        file: String,
        /// What it is, if its first bytes tell.
        kind: Option<FileKind>,
    },
    /// Its name promises a model of some format, and the content is nothing like it, nor anything else that is read here.
    NotAsNamed {
        /// The file.
        file: String,
        /// What files with this ending are.
        expected: &'static str,
        /// What it is instead.
        seen: String,
    },
    /// The bytes contradict the format they claim to be.
    Malformed {
        /// The file.
        file: String,
        /// The format, such as "zip" or "pickle".
        format: &'static str,
        /// The tensor, member or field, foreign text; empty if it is the whole file.
        at: String,
        /// What is wrong, with the numbers.
        problem: String,
    },
    /// Sound, but nothing here can read it; says what to do.
    Unsupported {
        /// The file.
        file: String,
        /// The tensor, member or field, foreign text; empty if it is the whole file.
        at: String,
        /// What it is and what to do about it.
        what: String,
    },
    /// A pickle asks for code or a class that is not on the list.
    RefusedGlobal {
        /// The file.
        file: String,
        /// What it asks for, as `module.name`. Foreign text.
        global: String,
        /// Where in the pickle.
        at_byte: u64,
        /// Whether it is known to run code of the file's choosing.
        dangerous: bool,
    },
    /// The file asks for more than [`crate::Limits`] allow.
    Limit {
        /// The file.
        file: String,
        /// The tensor, member or field, foreign text; empty if it is the whole file.
        at: String,
        /// What there is too much of, such as "bytes of pickled objects".
        what: &'static str,
        /// How much the file asks for (at least).
        value: u64,
        /// The limit.
        limit: u64,
        /// Which of the [`crate::Limits`] it is; `None` if it is fixed.
        name: Option<LimitName>,
    },
    /// A tensor cannot be had in the form asked for, such as a cast that does not exist.
    Request {
        /// The tensor or option.
        at: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The system has no memory left for it.
    OutOfMemory {
        /// The file.
        file: String,
        /// What for.
        at: String,
        /// How much.
        byte_count: u64,
    },
    /// The caller's progress function said stop. Nothing was changed.
    Cancelled,
}

impl ConvertError {
    /// For `map_err`: adds what was being done to which file.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ConvertError {
        let file = path.to_string_lossy().into_owned();
        move |error| ConvertError::Io { doing, file, error }
    }

    /// [`ConvertError::Malformed`], in one call.
    pub(crate) fn malformed(
        file: &str,
        format: &'static str,
        at: impl Into<String>,
        problem: impl Into<String>,
    ) -> ConvertError {
        ConvertError::Malformed {
            file: file.to_owned(),
            format,
            at: at.into(),
            problem: problem.into(),
        }
    }

    /// [`ConvertError::Limit`], in one call.
    pub(crate) fn limit(
        file: &str,
        at: &str,
        what: &'static str,
        value: u64,
        bound: impl Into<Bound>,
    ) -> ConvertError {
        let Bound { most: limit, name } = bound.into();
        ConvertError::Limit {
            file: file.to_owned(),
            at: at.to_owned(),
            what,
            value,
            limit,
            name,
        }
    }

    /// [`ConvertError::Unsupported`], in one call.
    pub(crate) fn unsupported(
        file: &str,
        at: impl Into<String>,
        what: impl Into<String>,
    ) -> ConvertError {
        ConvertError::Unsupported {
            file: file.to_owned(),
            at: at.into(),
            what: what.into(),
        }
    }
}

impl From<StoreError> for ConvertError {
    fn from(error: StoreError) -> ConvertError {
        ConvertError::Store(error)
    }
}

impl std::error::Error for ConvertError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConvertError::Store(error) => Some(error),
            ConvertError::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// ` at …`, if there is anything to say.
struct At<'a>(&'a str);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, "`{}`: ", brief(self.0))
    }
}

/// Of a path of very many parts, the first and the last ones.
fn brief(path: &str) -> String {
    const ENDS: usize = 3;
    let parts: Vec<&str> = path.split('.').collect();
    if parts.len() <= 8 * ENDS {
        return shown(path).to_string();
    }
    let front = parts[..ENDS].join(".");
    let back = parts[parts.len() - ENDS..].join(".");
    let count = parts.len();
    format!("{}.….{} ({count} parts)", shown(&front), shown(&back))
}

/// One line that says everything; [`std::error::Error::source`] repeats its end.
impl fmt::Display for ConvertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConvertError::Store(error) => error.fmt(f),
            ConvertError::Io { doing, file, error } => {
                if let Some(said) = StoreError::inside(error) {
                    return said.fmt(f); // it names the file
                }
                write!(f, "cannot {doing} {}: {error}", shown(file))
            }
            ConvertError::UnknownKind { file, kind } => match kind {
                Some(kind) => write!(
                    f,
                    "{}: nothing here reads this kind of file: it is {}",
                    shown(file),
                    kind.advice()
                ),
                None => write!(
                    f,
                    "{}: not a model file of a kind known here; is it whole, and what made it?",
                    shown(file)
                ),
            },
            ConvertError::NotAsNamed {
                file,
                expected,
                seen,
            } => write!(
                f,
                "{}: its name says it is {expected}, but it is {seen}",
                shown(file)
            ),
            ConvertError::Malformed {
                file,
                format,
                at,
                problem,
            } => write!(
                f,
                "{}: not a sound {format} file: {}{problem}",
                shown(file),
                At(at)
            ),
            ConvertError::Unsupported { file, at, what } => {
                write!(f, "{}: {}{what}", shown(file), At(at))
            }
            ConvertError::RefusedGlobal {
                file,
                global,
                at_byte,
                dangerous,
            } => {
                let (file, global) = (shown(file), shown(global));
                write!(
                    f,
                    "{file}: refused: the pickle asks for `{global}` (byte {at_byte})"
                )?;
                if *dangerous {
                    return write!(
                        f,
                        ", which runs code of the file's choosing; do not load this file anywhere"
                    );
                }
                write!(
                    f,
                    ", which is not on the list of what tensors need; nothing was run. If you trust the tensors, \
                     convert with unknown objects dropped"
                )
            }
            ConvertError::Limit {
                file,
                at,
                what,
                value,
                limit,
                name,
            } => {
                let (file, at) = (shown(file), At(at));
                write!(
                    f,
                    "{file}: {at}at least {value} {what}, the limit is {limit}"
                )?;
                match name {
                    None => write!(f, " and cannot be raised"),
                    Some(name) => {
                        let name = name.name();
                        write!(
                            f,
                            "; if you trust the file, raise it with --limit {name}=NUMBER"
                        )
                    }
                }
            }
            ConvertError::Request { at, problem } => write!(f, "{}{problem}", At(at)),
            ConvertError::OutOfMemory {
                file,
                at,
                byte_count,
            } => write!(
                f,
                "{}: {}no memory for {byte_count} bytes",
                shown(file),
                At(at)
            ),
            ConvertError::Cancelled => write!(f, "stopped as asked; nothing was changed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_tame_foreign_text() {
        let file = "a.ckpt".to_owned();
        let refused = |dangerous| ConvertError::RefusedGlobal {
            file: file.clone(),
            global: "os.\u{1b}system".into(),
            at_byte: 3,
            dangerous,
        };
        let text = refused(true).to_string();
        assert!(
            text.contains("`os.\\u{1b}system` (byte 3)") && text.contains("runs code"),
            "{text}"
        );
        assert!(refused(false).to_string().contains("nothing was run"));
        let malformed = ConvertError::malformed;
        let text = malformed("a", "zip", "x\n", "5 bytes, expected 4").to_string();
        assert_eq!(text, "a: not a sound zip file: `x\\n`: 5 bytes, expected 4");
        let deep = vec!["a"; 1001].join(".");
        let text = malformed("f", "zip", &deep, "too deep").to_string();
        assert_eq!(
            text,
            "f: not a sound zip file: `a.a.a.….a.a.a (1001 parts)`: too deep"
        );
        let kind = Some(FileKind::SevenZip);
        let text = ConvertError::UnknownKind { file, kind }.to_string();
        assert!(text.contains("7-Zip"), "{text}");
    }
}
