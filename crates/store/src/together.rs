//! Whether files that no index holds together belong together: names that count (`-00002-of-00003`) say how many there must be, and
//! no tensor may be in two files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use safelight_format::{Finding, Header, Limits, LintOptions, LintReport, Rule, shown};

use crate::checkpoint::{OpenOptions, ShardFile};
use crate::error::{StoreError, path_text};

/// More shards than anyone writes: five digits. What counts further is taken for a name like any other.
const COUNT_MAX: usize = 99_999;

/// A name that says which of how many shards a file is: `model-00002-of-00003.safetensors`.
struct Counted {
    number: usize,
    set: SetName,
}

/// What the names of one set's files have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SetName {
    folder: PathBuf,
    /// `model-`
    before: String,
    /// `-of-00003.safetensors`
    behind: String,
    count: usize,
    /// How many digits the number has.
    digits: usize,
}

impl Counted {
    fn of(path: &Path) -> Option<Counted> {
        let name = path.file_name()?.to_str()?;
        let (front, back) = name.rsplit_once("-of-")?;
        let (before, number) = front.rsplit_once('-')?;
        let (count, _) = back.split_once('.').unwrap_or((back, ""));
        let parse = |digits: &str| -> Option<usize> {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse().ok()).flatten()
        };
        let set = SetName {
            folder: path.parent().unwrap_or(Path::new("")).to_owned(),
            before: format!("{before}-"),
            behind: format!("-of-{back}"),
            count: parse(count).filter(|count| (1..=COUNT_MAX).contains(count))?,
            digits: number.len(),
        };
        let number = parse(number)?;
        Some(Counted { number, set })
    }
}

impl SetName {
    /// As a pattern that all its files fit.
    fn pattern(&self) -> String {
        format!("{}*{}", self.before, self.behind)
    }

    fn file(&self, number: usize) -> String {
        let SetName {
            before,
            behind,
            digits,
            ..
        } = self;
        format!("{before}{number:0digits$}{behind}")
    }

    /// The numbers that there must be: most count from 1, some from 0.
    fn numbers(&self, there: &BTreeSet<usize>) -> std::ops::Range<usize> {
        match there.contains(&0) {
            true => 0..self.count,
            false => 1..self.count + 1,
        }
    }
}

/// The sets whose files are among some paths, with the numbers that are there.
fn sets(paths: &[PathBuf]) -> BTreeMap<SetName, BTreeSet<usize>> {
    let mut sets = BTreeMap::<_, BTreeSet<usize>>::new();
    for Counted { number, set } in paths.iter().filter_map(|path| Counted::of(path)) {
        sets.entry(set).or_default().insert(number);
    }
    sets
}

/// Who says that files belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chosen {
    /// A folder or pattern: there may be more than one model in it.
    Found,
    /// Someone who named each of them.
    Named,
}

/// What the names of files say against opening them as one: shards that are missing, shards of several sets. `label` stands for all.
pub(crate) fn wrong_names(label: &str, paths: &[PathBuf], chosen: Chosen) -> Vec<StoreError> {
    let sets = sets(paths);
    let mut problems = Vec::new();
    let mut add = |problem| {
        let file = label.to_owned();
        problems.push(StoreError::MixedShards { file, problem });
    };
    let alike = |a: &SetName, b: &SetName| a.folder == b.folder && a.before == b.before;
    let mixed = sets
        .keys()
        .zip(sets.keys().skip(1))
        .any(|(a, b)| alike(a, b));
    if mixed || chosen == Chosen::Found && sets.len() > 1 {
        let each = sets
            .iter()
            .take(8)
            .map(|(set, there)| format!("`{}` ({} of {})", set.pattern(), there.len(), set.count));
        let (each, count) = (each.collect::<Vec<_>>().join(", "), sets.len());
        add(format!(
            "shards of {count} sets lie together: {each}; name one set, as a pattern in quotation marks, or move the others away"
        ));
        return problems;
    }
    let (mut missing, mut count) = (Vec::new(), 0);
    for (set, there) in &sets {
        let numbers = set.numbers(there);
        if let Some(odd) = there.iter().find(|number| !numbers.contains(number)) {
            let file = set.file(*odd);
            add(format!(
                "`{file}` says that it is number {odd} of {}",
                set.count
            ));
        }
        count += set.count;
        let gone = numbers.filter(|number| !there.contains(number));
        missing.extend(gone.map(|number| set.file(number)));
    }
    if !missing.is_empty() {
        problems.push(StoreError::ShardsMissing {
            file: label.to_owned(),
            shards: missing,
            shard_count: count,
        });
    }
    problems
}

/// Checks the names of files that someone listed as the parts of one model: where names count (`-00002-of-00003`), all must be
/// there.
///
/// # Errors
/// [`StoreError::ShardsMissing`] names all that are missing; [`StoreError::MixedShards`].
pub fn check_listed(paths: &[PathBuf]) -> Result<(), StoreError> {
    let problems = wrong_names(&list_label(paths), paths, Chosen::Named);
    problems.into_iter().next().map_or(Ok(()), Err)
}

/// As [`check_listed`], of the files that a folder or pattern stands for, which are to be of one set.
///
/// # Errors
/// As there.
pub fn check_found(label: &str, paths: &[PathBuf]) -> Result<(), StoreError> {
    let problems = wrong_names(label, paths, Chosen::Found);
    problems.into_iter().next().map_or(Ok(()), Err)
}

/// The files among some that are of one set by their names, if there are two at least; for each set.
pub fn listed_sets(paths: &[PathBuf]) -> Vec<Vec<PathBuf>> {
    let mut sets = BTreeMap::<_, Vec<PathBuf>>::new();
    for path in paths {
        if let Some(Counted { set, .. }) = Counted::of(path) {
            let paths = sets.entry((set.folder, set.before)).or_default();
            if !paths.contains(path) {
                paths.push(path.clone());
            }
        }
    }
    sets.into_values().filter(|paths| paths.len() > 1).collect()
}

/// What to call files that were listed.
pub fn list_label(paths: &[PathBuf]) -> String {
    match paths {
        [] => "no files".to_owned(),
        [one] => path_text(one),
        [first, rest @ ..] => format!("{} and {} more", path_text(first), rest.len()),
    }
}

/// Tensors that are in two of some files, with the first two that have them.
fn in_two<'a>(files: impl Iterator<Item = (&'a str, &'a Header)>) -> Vec<(String, String, String)> {
    let mut first: HashMap<&str, &str> = HashMap::new();
    let mut twice = BTreeMap::new();
    for (file, header) in files {
        let known = header.tensors().iter().map(|tensor| tensor.name);
        for name in known.chain(header.opaque_tensors().map(|tensor| tensor.name)) {
            if let Some(before) = first.get(name) {
                twice.entry(name).or_insert((*before, file));
            } else {
                first.insert(name, file);
            }
        }
    }
    let named = |(name, (first, second)): (&str, (&str, &str))| {
        (name.to_owned(), first.to_owned(), second.to_owned())
    };
    twice.into_iter().map(named).collect()
}

/// [`in_two`] as the error that it is, if there are any; `label` stands for all files.
pub(crate) fn in_two_files<'a>(
    label: &str,
    files: impl Iterator<Item = (&'a str, &'a Header)>,
) -> Option<StoreError> {
    let (file, tensors) = (label.to_owned(), in_two(files));
    (!tensors.is_empty()).then_some(StoreError::InTwoFiles { file, tensors })
}

/// What is wrong between files that a folder, a pattern or (`named`) a list holds together: shards that are missing, two sets, tensors in
/// two files. What is wrong within one of them is left to others.
pub fn problems_together(
    label: &str,
    paths: &[PathBuf],
    named: bool,
    limits: &Limits,
) -> Vec<StoreError> {
    let chosen = if named { Chosen::Named } else { Chosen::Found };
    let mut problems = wrong_names(label, paths, chosen);
    let options = OpenOptions {
        opaque_dtypes: true,
        limits: *limits,
        ..OpenOptions::default()
    };
    let opened = paths.iter();
    let opened: Vec<ShardFile> = opened
        .filter_map(|path| ShardFile::open(path, &options).ok())
        .collect();
    problems.extend(in_two_files(
        label,
        opened.iter().map(ShardFile::named_header),
    ));
    problems
}

/// As [`problems_together`], as findings. What is wrong within the files, [`crate::lint`] says.
pub fn lint_together(
    label: &str,
    paths: &[PathBuf],
    named: bool,
    options: &LintOptions,
) -> LintReport {
    let mut report = LintReport::default();
    let mut add = |rule, tensor: Option<&str>, explanation| {
        let tensor = tensor.map(|name| name[..name.floor_char_boundary(1024)].to_owned());
        let finding = Finding {
            rule,
            at_byte: 0,
            tensor,
            field: None,
            explanation,
        };
        report.add(finding, options);
    };
    for problem in problems_together(label, paths, named, &options.limits) {
        match problem {
            StoreError::ShardsMissing { shards, .. } => {
                for shard in shards {
                    let what = format!("there is no file `{}`", shown(&shard));
                    add(Rule::ShardMissing, None, what);
                }
            }
            StoreError::InTwoFiles { tensors, .. } => {
                for (name, first, second) in tensors {
                    let (tensor, first, second) = (shown(&name), shown(&first), shown(&second));
                    let what = format!("`{tensor}` is in `{first}` and in `{second}`");
                    add(Rule::TensorInTwoFiles, Some(&name), what);
                }
            }
            other => add(Rule::ShardsMixed, None, other.to_string()),
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    fn check(names: &[&str], chosen: Chosen, words: &[&str]) {
        let problems = wrong_names("here", &paths(names), chosen);
        let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems.is_empty(), words.is_empty(), "{names:?}: {text:?}");
        for word in words {
            assert!(
                text.join("\n").contains(word),
                "{names:?}: no {word} in {text:?}"
            );
        }
    }

    #[test]
    fn names_that_count_are_held_to_it() {
        let gone = ["1 of 3", "`m-00002-of-00003.safetensors`"];
        let two = [
            "m-00001-of-00003.safetensors",
            "m-00003-of-00003.safetensors",
        ];
        check(&two, Chosen::Found, &gone);
        check(&two, Chosen::Named, &gone);
        check(&["a/m-1-of-2.x", "a/m-2-of-2.x"], Chosen::Found, &[]);
        check(&["m-0-of-2.x", "m-1-of-2.x"], Chosen::Found, &[]);
        check(
            &["m-0-of-3.x", "m-1-of-3.x"],
            Chosen::Found,
            &["`m-2-of-3.x`"],
        );
        check(&["m-1-of-1.x", "other.x", "x-of-y.x"], Chosen::Found, &[]);
        check(
            &["m-1-of-2.x", "m-4-of-2.x"],
            Chosen::Found,
            &["`m-4-of-2.x`", "number 4 of 2"],
        );
    }

    #[test]
    fn two_sets_are_one_only_if_that_was_said() {
        let mixed = ["m-1-of-1.x", "m-1-of-2.x", "m-2-of-2.x"];
        let words = ["`m-*-of-1.x` (1 of 1)", "`m-*-of-2.x` (2 of 2)"];
        check(&mixed, Chosen::Found, &words);
        check(&mixed, Chosen::Named, &words);
        let two = ["m-1-of-1.x", "n-1-of-1.x"];
        check(&two, Chosen::Found, &["2 sets"]);
        check(&two, Chosen::Named, &[]);
        check(
            &["m-1-of-1.x", "n-1-of-2.x"],
            Chosen::Named,
            &["`n-2-of-2.x`"],
        );
    }

    #[test]
    fn names_that_count_too_far_are_names_like_others() {
        for name in [
            "m-1-of-99999999999.x",
            "m-1-of-100000.x",
            "m-1-of-0.x",
            "m-x-of-2.x",
            "m--of-2.x",
            "m-+1-of-2.x",
            "1-of-2.x",
        ] {
            check(&[name], Chosen::Found, &[]);
        }
        // As many digits as a name can have.
        check(
            &[&format!("m-{}-of-2.x", "9".repeat(200))],
            Chosen::Found,
            &[],
        );
        check(&["m-1-of-99999.x"], Chosen::Found, &["99998 of 99999"]);
    }

    #[test]
    fn listed_files_of_one_set_are_found() {
        let all = paths(&[
            "a-1-of-2.x",
            "b.x",
            "a-2-of-2.x",
            "c-1-of-2.x",
            "a-2-of-2.x",
        ]);
        assert_eq!(listed_sets(&all), [paths(&["a-1-of-2.x", "a-2-of-2.x"])]);
    }
}
