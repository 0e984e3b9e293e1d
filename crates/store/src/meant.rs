//! What a path stands for: a file, an index, or several files: those of a folder or those that fit a pattern.
//!
//! Every command and every way of opening asks here, so that a name means the same everywhere.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{StoreError, path_text};
use crate::shards::{INDEX_SUFFIX, is_index, shard_paths};

/// What a path stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Meant {
    /// One file, there or not.
    File(PathBuf),
    /// An index, which says which files are its shards.
    Index(PathBuf),
    /// Files that no index holds together, sorted: those of a folder, or those that fit a pattern. At least one.
    Files(Vec<PathBuf>),
}

impl Meant {
    /// What a path on this machine stands for.
    ///
    /// A folder stands for the index in it (`*.safetensors.index.json`), else for its `*.safetensors` files, but those whose names begin
    /// with a dot (systems keep notes in such). A path to something that is there stands for that, whatever characters are in its name.
    /// Else `*` (any characters), `?` (one), `[a-c]` and `[!a-c]` (one of a set, or not) in any part of the path make it a pattern,
    /// which stands for the index among the files that fit, else for these files. As in shells, `*` and its like don't stand for a dot
    /// at the beginning of a name.
    ///
    /// # Errors
    /// What the system says of the folder; [`StoreError::NoModel`] for a folder without safetensors files,
    /// [`StoreError::NoMatch`] for a pattern that nothing fits, [`StoreError::SeveralIndexes`].
    pub fn of(path: &Path) -> Result<Meant, StoreError> {
        if path.is_dir() {
            return in_folder(path);
        }
        match matching(path)? {
            Some(files) => among(path, files),
            None if is_index(path) => Ok(Meant::Index(path.to_owned())),
            None => Ok(Meant::File(path.to_owned())),
        }
    }
}

/// The index of a folder, or all its safetensors files.
fn in_folder(folder: &Path) -> Result<Meant, StoreError> {
    let index_ending = format!(".safetensors{INDEX_SUFFIX}");
    let wanted = |name: &str| {
        let ours = name.ends_with(".safetensors") || name.ends_with(&index_ending);
        ours && !name.starts_with('.')
    };
    let files = entries(folder, wanted)?.into_iter();
    let files: Vec<PathBuf> = files.filter(|path| !path.is_dir()).collect();
    if files.is_empty() {
        let folder = path_text(folder);
        return Err(StoreError::NoModel { folder });
    }
    among(folder, files)
}

/// The index among some files, or all of them.
fn among(path: &Path, files: Vec<PathBuf>) -> Result<Meant, StoreError> {
    let indexes: Vec<&PathBuf> = files.iter().filter(|path| is_index(path)).collect();
    match indexes[..] {
        [] => Ok(Meant::Files(files)),
        [index] => Ok(Meant::Index(index.clone())),
        _ => Err(StoreError::SeveralIndexes {
            folder: path_text(path),
            indexes: indexes.iter().map(|index| path_text(index)).collect(),
        }),
    }
}

/// The files that a path means if it is a pattern, sorted; `None` if it is none, or the name of something that is there. Folders are
/// left out. [`Meant::of`] has the rules.
///
/// # Errors
/// [`StoreError::NoMatch`] if there is no such file; what else the system says of the folder.
pub fn matching(path: &Path) -> Result<Option<Vec<PathBuf>>, StoreError> {
    let Some(found) = matching_all(path)? else {
        return Ok(None);
    };
    let files: Vec<PathBuf> = found.into_iter().filter(|path| !path.is_dir()).collect();
    match files.is_empty() {
        true => Err(no_match(path)),
        false => Ok(Some(files)),
    }
}

/// As [`matching`], with folders.
///
/// # Errors
/// As there.
pub fn matching_all(path: &Path) -> Result<Option<Vec<PathBuf>>, StoreError> {
    let is_pattern = |part: &OsStr| {
        let text = part.to_str();
        text.is_some_and(|text| text.contains(['*', '?', '[']))
    };
    // A link that leads nowhere is a name too.
    if !path.iter().any(is_pattern) || path.symlink_metadata().is_ok() {
        return Ok(None);
    }
    // Part by part: what fits so far.
    let mut found = vec![PathBuf::new()];
    let mut parts = path.iter().peekable();
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        let mut next = Vec::new();
        for folder in found {
            let named = folder.join(part);
            match part.to_str().filter(|_| is_pattern(part)) {
                Some(pattern) if named.symlink_metadata().is_err() => {
                    next.extend(fitting(&folder, pattern, is_last)?);
                }
                // Other folders need not have it.
                _ if is_last && named.symlink_metadata().is_err() => {}
                _ => next.push(named),
            }
        }
        found = next;
    }
    if found.is_empty() {
        return Err(no_match(path));
    }
    Ok(Some(found))
}

/// What of a folder (or of this one, if it has no name) fits a pattern, called as the pattern calls it: without `./`. Only folders unless
/// `is_last`.
fn fitting(folder: &Path, pattern: &str, is_last: bool) -> Result<Vec<PathBuf>, StoreError> {
    let wanted = |name: &str| {
        let hidden = name.starts_with('.') && !pattern.starts_with('.');
        !hidden && fits(pattern, name)
    };
    let here = folder.as_os_str().is_empty();
    let mut found = match entries(if here { Path::new(".") } else { folder }, wanted) {
        Ok(found) => found,
        Err(StoreError::Io { error, .. })
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    found.retain(|path| is_last || path.is_dir());
    let called = |found: PathBuf| match here {
        true => found.file_name().map_or(found.clone(), PathBuf::from),
        false => found,
    };
    Ok(found.into_iter().map(called).collect())
}

fn no_match(pattern: &Path) -> StoreError {
    let pattern = path_text(pattern);
    StoreError::NoMatch { pattern }
}

/// The tensor files that a path stands for, sound or not, without opening them: the shards of an index, the
/// shards or safetensors files of a folder, the files that fit a pattern, or the path itself.
///
/// # Errors
/// As [`Meant::of`], and what is wrong with the index.
pub fn model_files(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    match Meant::of(path)? {
        Meant::File(path) => Ok(vec![path]),
        Meant::Index(index) => shard_paths(&index),
        Meant::Files(files) => Ok(files),
    }
}

/// What of a folder has names that are wanted, sorted. Of names that are no text, what is not has become U+FFFD.
fn entries(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, StoreError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(StoreError::io("list", folder))? {
        let entry = entry.map_err(StoreError::io("list", folder))?;
        if wanted(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a name fits a pattern: `*` is any characters, `?` one, `[…]` one of a set.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut from) = (0, 0);
    // Where to go on if what follows the last `*` does not fit: that `*` takes one more.
    let mut retry = None;
    while from < name.len() {
        if pattern.get(at) == Some(&'*') {
            retry = Some((at, from));
            at += 1;
        } else if let Some(length) = one_fits(&pattern[at..], name[from]) {
            at += length;
            from += 1;
        } else {
            let Some((star, taken)) = retry else {
                return false;
            };
            retry = Some((star, taken + 1));
            (at, from) = (star + 1, taken + 1);
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

/// How much of a pattern's beginning stands for this character, if it does. A bracket that is never closed stands for itself.
fn one_fits(pattern: &[char], c: char) -> Option<usize> {
    match *pattern.first()? {
        '?' => Some(1),
        '[' => match set(pattern) {
            Some((set, inverted)) => {
                (holds(set, c) != inverted).then_some(set.len() + 2 + usize::from(inverted))
            }
            None => (c == '[').then_some(1),
        },
        own => (own == c).then_some(1),
    }
}

/// The inside of the brackets that a pattern begins with, without the `!` that inverts it. A `]` that comes first is a member.
fn set(pattern: &[char]) -> Option<(&[char], bool)> {
    let inverted = matches!(pattern.get(1), Some('!' | '^'));
    let start = 1 + usize::from(inverted);
    let behind = pattern.get(start + 1..)?;
    let length = 1 + behind.iter().position(|c| *c == ']')?;
    Some((&pattern[start..start + length], inverted))
}

/// Whether a set such as `a-cx` has a character.
fn holds(set: &[char], c: char) -> bool {
    let mut rest = set;
    while let Some(first) = rest.first() {
        let is_in = match rest {
            [low, '-', high, ..] => (*low..=*high).contains(&c),
            _ => *first == c,
        };
        if is_in {
            return true;
        }
        rest = match rest {
            [_, '-', _, behind @ ..] => behind,
            _ => &rest[1..],
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("a*c", "abcbc", true),
            ("a*c", "abcb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("model-*-of-*.safetensors", "model-1-of-2.safetensors", true),
            ("*.safetensors", "model.safetensors.part", false),
            ("é?", "éé", true),
            ("", "a", false),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[!a-c]x", "dx", true),
            ("[^a-c]x", "ax", false),
            ("[]]", "]", true),
            ("[-a]", "-", true),
            ("*[0-2]", "x9x1", true),
            ("[a", "[a", true),
            ("[", "[", true),
            ("[]", "[]", true),
            ("[!]", "[!]", true),
            ("[a]b", "[a]b", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
        let slow = "a*".repeat(30) + "b";
        assert!(!fits(&slow, &"a".repeat(200)));
    }

    #[test]
    fn folders_can_be_patterns_too() {
        let place = tempfile::tempdir().unwrap();
        for file in [
            "a1/x/m.st",
            "a1/y/m.st",
            "a2/x/m.st",
            "a2/x/n.st",
            "b/x/m.st",
            ".a3/x/m.st",
            "a4",
        ] {
            let file = place.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, b"").unwrap();
        }
        let found = |pattern: &str| {
            let found = matching(&place.path().join(pattern)).unwrap().unwrap();
            let name = |path: PathBuf| path.strip_prefix(place.path()).unwrap().to_owned();
            found.into_iter().map(name).collect::<Vec<_>>()
        };
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(found("a?/x/m.st"), paths(&["a1/x/m.st", "a2/x/m.st"]));
        assert_eq!(found("*/y/*"), paths(&["a1/y/m.st"]));
        assert_eq!(found("a2/*/[mn].st"), paths(&["a2/x/m.st", "a2/x/n.st"]));
        for none in ["c*/x/m.st", "*/z/m.st", "a4/*/m.st", "none/*"] {
            assert!(
                matches!(
                    matching(&place.path().join(none)),
                    Err(StoreError::NoMatch { .. })
                ),
                "{none}"
            );
        }
        // A name that is there is no pattern, in the middle as well.
        std::fs::create_dir(place.path().join("[a]*")).unwrap();
        std::fs::write(place.path().join("[a]*/m.st"), b"").unwrap();
        assert_eq!(matching(&place.path().join("[a]*/m.st")).unwrap(), None);
        assert_eq!(found("[a]*/*"), paths(&["[a]*/m.st"]));
    }

    #[test]
    fn hidden_files_are_no_part_of_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "a.safetensors",
            "._a.safetensors",
            ".x.safetensors.index.json",
        ] {
            std::fs::write(folder.path().join(name), b"").unwrap();
        }
        let files = vec![folder.path().join("a.safetensors")];
        assert_eq!(Meant::of(folder.path()).unwrap(), Meant::Files(files));
    }
}
