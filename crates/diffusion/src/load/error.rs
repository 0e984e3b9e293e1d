//! Why a checkpoint could not be used: who can act, with the numbers.

use std::fmt;
use std::path::PathBuf;

use safelight_format::Dtype;
use safelight_store::StoreError;

use super::Family;
use safelight_format::shown;

/// How many problems a message lists before it only counts the rest; missing tensors are all listed.
const LISTED_MAX: usize = 12;

/// One thing that is wrong with a checkpoint. Tensors go by the file's own names.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Problem {
    /// A tensor the network needs is not there.
    Missing {
        /// Its name.
        tensor: String,
    },
    /// A tensor has another shape than the rest of the network implies.
    WrongShape {
        /// Its name.
        tensor: String,
        /// The shape in the file.
        actual: Vec<u64>,
        /// The shape the network needs.
        expected: Vec<usize>,
    },
    /// A weight is stored as something that is not a plain float (quantised weights are).
    NotFloat {
        /// Its name.
        tensor: String,
        /// How it is stored.
        dtype: Dtype,
    },
    /// A weight holds NaN or infinity, which would spread over the whole picture.
    NotFinite {
        /// Its name.
        tensor: String,
        /// How many values are NaN or infinite.
        bad: usize,
        /// How many values there are.
        of: usize,
    },
    /// A whole part is missing.
    MissingPart {
        /// Which, and where it was looked for.
        what: String,
    },
    /// The structure is one that is not supported.
    Unsupported {
        /// What was found and what is supported.
        what: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Missing { tensor } => write!(f, "`{}` is missing", shown(tensor)),
            Problem::WrongShape {
                tensor,
                actual,
                expected,
            } => {
                write!(
                    f,
                    "`{}` has shape {actual:?}, expected {expected:?}",
                    shown(tensor)
                )
            }
            Problem::NotFloat { tensor, dtype } => {
                write!(
                    f,
                    "`{tensor}` is stored as {}, which is not a plain float",
                    dtype.name()
                )
            }
            Problem::NotFinite { tensor, bad, of } => {
                write!(
                    f,
                    "`{tensor}` holds NaN or infinity in {bad} of {of} values: the file is damaged, get it anew"
                )
            }
            Problem::MissingPart { what } | Problem::Unsupported { what } => f.write_str(what),
        }
    }
}

/// Why a model did not load.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be read, or is not safetensors.
    Store(StoreError),
    /// A file beside the weights cannot be read.
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A diffusers folder's JSON file does not say what it should.
    Config {
        /// Which file.
        path: PathBuf,
        /// Which field, what it holds, and what is understood.
        what: String,
    },
    /// The file is a model, but not one this engine draws with.
    Family {
        /// Which file.
        label: String,
        /// What it is.
        family: Family,
        /// How that was recognised.
        saw: String,
    },
    /// The file is of the right family, but its weights are not all there or not right.
    Weights {
        /// Which file.
        label: String,
        /// Everything that is wrong, at once.
        problems: Vec<Problem>,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Store(error) => fmt::Display::fmt(error, f),
            LoadError::Io { path, source } => write!(f, "{}: {source}", path.display()),
            LoadError::Config { path, what } => write!(f, "{}: {what}", path.display()),
            LoadError::Family { label, family, saw } => {
                write!(
                    f,
                    "{label}: this is {} ({saw}); Safelight loads SD 1.x-class checkpoints so far",
                    family.a_name()
                )
            }
            LoadError::Weights { label, problems } => {
                write!(f, "{label}: ")?;
                list(f, problems)
            }
        }
    }
}

/// One problem on the line itself; more as a count and a list, shortened.
fn list(f: &mut fmt::Formatter<'_>, problems: &[Problem]) -> fmt::Result {
    if let [only] = problems {
        return fmt::Display::fmt(only, f);
    }
    let missing = problems
        .iter()
        .filter(|p| matches!(p, Problem::Missing { .. }))
        .count();
    match missing {
        0 => write!(f, "{} problems", problems.len())?,
        _ if missing == problems.len() => write!(f, "{missing} tensors are missing")?,
        _ => write!(
            f,
            "{} problems, among them {missing} missing tensors",
            problems.len()
        )?,
    }
    let (mut listed, mut left) = (0, 0);
    for problem in problems {
        match problem {
            Problem::Missing { tensor } if missing == problems.len() => write!(f, "\n  {tensor}")?,
            Problem::Missing { .. } => write!(f, "\n  {problem}")?,
            _ if listed < LISTED_MAX => {
                listed += 1;
                write!(f, "\n  {problem}")?;
            }
            _ => left += 1,
        }
    }
    if left > 0 {
        write!(f, "\n  … and {left} more")?;
    }
    Ok(())
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            LoadError::Store(error) => Some(error),
            LoadError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<StoreError> for LoadError {
    fn from(error: StoreError) -> LoadError {
        LoadError::Store(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(count: usize) -> LoadError {
        let problems = (0..count)
            .map(|i| Problem::Missing {
                tensor: format!("t{i}"),
            })
            .collect();
        LoadError::Weights {
            label: "a.safetensors".into(),
            problems,
        }
    }

    #[test]
    fn missing_tensors_are_all_listed_and_others_counted() {
        assert_eq!(missing(1).to_string(), "a.safetensors: `t0` is missing");
        assert_eq!(
            missing(2).to_string(),
            "a.safetensors: 2 tensors are missing\n  t0\n  t1"
        );
        let long = missing(100).to_string();
        assert!(
            long.starts_with("a.safetensors: 100 tensors are missing\n  t0"),
            "{long}"
        );
        assert!(long.ends_with("\n  t99"), "{long}");
        let problems = (0..20).map(|i| Problem::NotFinite {
            tensor: format!("t{i}"),
            bad: 1,
            of: 2,
        });
        let label = "a.safetensors".into();
        let problems = problems.collect();
        let spoiled = LoadError::Weights { label, problems }.to_string();
        assert!(spoiled.ends_with("\n  … and 8 more"), "{spoiled}");
    }
}
