//! Which folders models are looked for in, and where hashes are remembered.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The folders to look in, and whether someone asked for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roots {
    /// Folders, first come first served.
    pub folders: Vec<PathBuf>,
    /// Whether they were named (`--models`, `SAFELIGHT_MODELS`), so that a missing one is worth a word.
    pub named: bool,
}

impl Roots {
    /// `given` if there are any; else those of `SAFELIGHT_MODELS`, separated as in `PATH`; else `./models` and the
    /// user's: `~/.local/share/safelight/models`, on a Mac `~/Library/Application Support/safelight/models`, on
    /// Windows `%LOCALAPPDATA%\safelight\models`.
    ///
    /// `environment` looks up a variable: `|name| std::env::var_os(name)`.
    pub fn new(given: &[PathBuf], environment: impl Fn(&str) -> Option<OsString>) -> Roots {
        let named = |folders: Vec<PathBuf>| Roots {
            folders,
            named: true,
        };
        if !given.is_empty() {
            return named(given.to_vec());
        }
        if let Some(list) = environment("SAFELIGHT_MODELS").filter(|list| !list.is_empty()) {
            return named(
                std::env::split_paths(&list)
                    .filter(|path| !path.as_os_str().is_empty())
                    .collect(),
            );
        }
        let user = user_folder(
            "XDG_DATA_HOME",
            ".local/share",
            "Library/Application Support",
            environment,
        );
        let folders = [
            Some(PathBuf::from("models")),
            user.map(|folder| folder.join("models")),
        ];
        Roots {
            folders: folders.into_iter().flatten().collect(),
            named: false,
        }
    }
}

/// Where small files that can be made again are kept; `SAFELIGHT_CACHE` or the system's place for them.
pub fn cache_folder(environment: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let named = environment("SAFELIGHT_CACHE")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    named.or_else(|| user_folder("XDG_CACHE_HOME", ".cache", "Library/Caches", environment))
}

/// Safelight's folder where this system keeps such things of a user's.
fn user_folder(
    xdg: &str,
    unix: &str,
    mac: &str,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Option<PathBuf> {
    let absolute = |name: &str| {
        environment(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = if cfg!(windows) {
        absolute("LOCALAPPDATA")
    } else {
        let home = |below: &str| absolute("HOME").map(|home| home.join(below));
        let system = if cfg!(target_os = "macos") {
            home(mac)
        } else {
            home(unix)
        };
        absolute(xdg).or(system)
    };
    base.map(|base| base.join(Path::new("safelight")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(values: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        let values: Vec<_> = values
            .iter()
            .map(|(name, value)| (name.to_string(), OsString::from(value)))
            .collect();
        move |name| {
            values
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.clone())
        }
    }

    #[test]
    fn what_is_named_counts_alone() {
        let given = [PathBuf::from("a"), PathBuf::from("b")];
        let roots = Roots::new(&given, environment(&[("SAFELIGHT_MODELS", "c")]));
        assert_eq!(
            roots,
            Roots {
                folders: given.to_vec(),
                named: true
            }
        );
        let list = std::env::join_paths(["c", "d"]).unwrap();
        let roots = Roots::new(
            &[],
            environment(&[("SAFELIGHT_MODELS", list.to_str().unwrap())]),
        );
        assert_eq!(
            roots,
            Roots {
                folders: vec!["c".into(), "d".into()],
                named: true
            }
        );
    }

    #[test]
    #[cfg(all(unix, not(target_os = "macos")))]
    fn otherwise_here_and_the_users() {
        let folders = |values: &[(&str, &str)]| Roots::new(&[], environment(values)).folders;
        assert_eq!(folders(&[]), [PathBuf::from("models")]);
        assert_eq!(
            folders(&[("HOME", "/u")])[1],
            PathBuf::from("/u/.local/share/safelight/models")
        );
        assert_eq!(
            folders(&[("HOME", "/u"), ("XDG_DATA_HOME", "/d")])[1],
            PathBuf::from("/d/safelight/models")
        );
        assert_eq!(
            folders(&[("HOME", "/u"), ("XDG_DATA_HOME", "d")])[1],
            PathBuf::from("/u/.local/share/safelight/models")
        );
        assert_eq!(
            cache_folder(environment(&[("HOME", "/u")])),
            Some("/u/.cache/safelight".into())
        );
        assert_eq!(
            cache_folder(environment(&[("HOME", "/u"), ("SAFELIGHT_CACHE", "x")])),
            Some("x".into())
        );
    }
}
