//! From what someone typed to the one model it means.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;

use crate::demo::DEMO_NAME;
use crate::describe::{Entry, Layout};
use crate::hash::HashCache;
use crate::scan::Catalog;

/// A hash of fewer digits is a coincidence.
const HASH_DIGITS_MIN: usize = 4;
/// How many names a message lists.
const LISTED_MAX: usize = 12;

/// Why no one model is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResolveError {
    /// Nothing answers to it.
    NotFound {
        /// What was asked for.
        query: String,
        /// What there is.
        names: Vec<String>,
        /// The name that is nearest, if one is near.
        nearest: Option<String>,
        /// Whether the nearest can't be used anyway.
        nearest_unusable: bool,
    },
    /// Nothing was asked for.
    Empty,
    /// More than one does.
    Ambiguous {
        /// What was asked for.
        query: String,
        /// Who answers.
        names: Vec<String>,
    },
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = match self {
            ResolveError::NotFound {
                query,
                names,
                nearest,
                nearest_unusable,
            } => {
                write!(f, "no model is called `{query}`")?;
                if let Some(nearest) = nearest {
                    let but = if *nearest_unusable {
                        " (it can't be used)"
                    } else {
                        ""
                    };
                    return write!(
                        f,
                        "; did you mean `{nearest}`{but}? `safelight models` lists them all"
                    );
                }
                f.write_str(", has that hash, or lies at that path; there is")?;
                names
            }
            ResolveError::Empty => {
                return f.write_str(
                    "no model is named; give a name, a hash or a path: `safelight models` lists what there is",
                );
            }
            ResolveError::Ambiguous { query, names } => {
                write!(
                    f,
                    "`{query}` may mean any of {} models; say more, or give the path:",
                    names.len()
                )?;
                names
            }
        };
        names
            .iter()
            .take(LISTED_MAX)
            .try_for_each(|name| write!(f, "\n  {name}"))?;
        match names.len().saturating_sub(LISTED_MAX) {
            0 => Ok(()),
            more => write!(f, "\n  … and {more} more"),
        }
    }
}

impl std::error::Error for ResolveError {}

impl Catalog {
    /// The model that `query` means: a path, a name (with or without folders and ending, in any case), the beginning
    /// of one name only, or four digits or more of a hash. A1111's `name.safetensors [hash]` is understood too.
    ///
    /// A whole relative name comes before a file's name in some folder, a file before the embedded model of the same
    /// name, and of files with the same content a hash means the first.
    ///
    /// Hashes that `cache` does not know are computed only if nothing else answers.
    ///
    /// # Errors
    /// If nothing or more than one thing answers.
    pub fn resolve(&self, query: &str, cache: &mut HashCache) -> Result<Entry, ResolveError> {
        let path = Path::new(query);
        let looks_like_path =
            path.is_absolute() || path.components().count() > 1 || path.extension().is_some();
        if path.exists() && looks_like_path {
            return Ok(Entry::at(path, path.parent().unwrap_or(Path::new(""))));
        }
        let wanted = plain(query);
        if wanted.is_empty() {
            return Err(ResolveError::Empty);
        }
        let rules: [&dyn Fn(&Entry) -> bool; 5] = [
            &|entry| entry.relative == wanted && entry.layout != Layout::Embedded,
            &|entry| entry.name == wanted,
            &|entry| same(&entry.relative, wanted),
            &|entry| same(&entry.name, wanted),
            &|entry| starts(&entry.relative, wanted) || starts(&entry.name, wanted),
        ];
        for rule in rules {
            if let Some(answer) = self.only(query, rule) {
                return answer;
            }
        }
        if let Some(answer) = self.by_hash(query, wanted, cache) {
            return answer;
        }
        if path.exists() {
            return Ok(Entry::at(path, path.parent().unwrap_or(Path::new(""))));
        }
        let names: Vec<String> = self.entries.iter().map(listed).collect();
        let near = |usable: bool| {
            let entries = self.entries.iter();
            let like = entries.filter(|entry| entry.problem.is_none() == usable);
            nearest(wanted, like.map(|entry| entry.name.as_str()))
        };
        let usable = near(true);
        let nearest_unusable = usable.is_none();
        let nearest = usable.or_else(|| near(false));
        Err(ResolveError::NotFound {
            query: query.to_owned(),
            names,
            nearest_unusable: nearest_unusable && nearest.is_some(),
            nearest,
        })
    }

    fn only(
        &self,
        query: &str,
        rule: &dyn Fn(&Entry) -> bool,
    ) -> Option<Result<Entry, ResolveError>> {
        let mut found: Vec<&Entry> = self.entries.iter().filter(|entry| rule(entry)).collect();
        // Whoever lays a file under the embedded model's name means the file.
        let files = found
            .iter()
            .filter(|entry| entry.layout != Layout::Embedded);
        if files.clone().any(|entry| same(&entry.name, DEMO_NAME)) {
            found.retain(|entry| entry.layout != Layout::Embedded);
        }
        match found[..] {
            [] => None,
            [entry] => Some(Ok(entry.clone())),
            [first, ..] => {
                if first.sha256.is_some() && found.iter().all(|entry| entry.sha256 == first.sha256)
                {
                    return Some(Ok(first.clone()));
                }
                Some(Err(ResolveError::Ambiguous {
                    query: query.to_owned(),
                    names: found.iter().map(|entry| listed(entry)).collect(),
                }))
            }
        }
    }

    fn by_hash(
        &self,
        query: &str,
        wanted: &str,
        cache: &mut HashCache,
    ) -> Option<Result<Entry, ResolveError>> {
        if !is_hash(wanted) {
            return None;
        }
        let answers = |entry: &Entry| {
            let hash = entry.sha256.as_ref();
            hash.is_some_and(|hash| starts(hash, wanted))
        };
        let mut hashed = self.clone();
        for entry in &mut hashed.entries {
            let known = entry.path.as_ref().and_then(|path| cache.get(path));
            entry.sha256 = known.map(str::to_owned);
        }
        if let Some(answer) = hashed.only(query, &answers) {
            return Some(answer);
        }
        hashed
            .entries
            .iter_mut()
            .for_each(|entry| entry.find_hash(cache, &mut |_, _| ControlFlow::Continue(())));
        hashed.only(query, &answers)
    }
}

/// An entry in a message: its name, where it lies, and whether it is any use.
fn listed(entry: &Entry) -> String {
    let place = match &entry.path {
        Some(path) => path.display().to_string(),
        None => "built in".to_owned(),
    };
    let remark = if entry.problem.is_some() {
        "; can't be used"
    } else {
        ""
    };
    format!("{} ({place}{remark})", entry.relative)
}

/// Without A1111's ` [hash]` and without `.safetensors`.
fn plain(query: &str) -> &str {
    let query = query.trim();
    let name = query
        .strip_suffix(']')
        .and_then(|query| query.rsplit_once(" ["))
        .map_or(query, |(name, _)| name);
    name.strip_suffix(".safetensors").unwrap_or(name)
}

fn same(name: &str, wanted: &str) -> bool {
    name.to_lowercase() == wanted.to_lowercase()
}

fn starts(name: &str, wanted: &str) -> bool {
    name.to_lowercase().starts_with(&wanted.to_lowercase())
}

fn is_hash(text: &str) -> bool {
    (HASH_DIGITS_MIN..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The name that takes the fewest changes, if those are no more than a third of its letters.
fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let wanted = wanted.to_lowercase();
    let distance = |name: &str| edit_distance(&wanted, &name.to_lowercase());
    let (distance, name) = names.map(|name| (distance(name), name)).min()?;
    (distance * 3 <= name.chars().count().max(3)).then(|| name.to_owned())
}

/// Letters to insert, remove or replace to turn `a` into `b` (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (idx, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = idx + 1;
        for (column, &to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("same", "same"), 0);
        assert_eq!(
            nearest("dreamshapr", ["dreamshaper", "anything"].into_iter()),
            Some("dreamshaper".into())
        );
        assert_eq!(nearest("xyz", ["dreamshaper", "demo"].into_iter()), None);
    }

    #[test]
    fn short_names() {
        assert_eq!(plain("sub/a.safetensors [6ce0161689]"), "sub/a");
        assert_eq!(plain(" a "), "a");
        assert!(is_hash("6ce0") && !is_hash("6ce") && !is_hash("demo"));
    }
}
