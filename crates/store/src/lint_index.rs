//! An index, looked at for everything that is wrong or odd about it and between it and its files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safelight_format::{Finding, LintOptions, LintReport, Rule, shown};

use crate::checkpoint::{OpenOptions, ShardFile};
use crate::error::{StoreError, beside};
use crate::index_file::{self, IndexText};
use crate::meant::Meant;
use crate::shards;

/// The files that [`crate::lint`] has something to say about, for one path: an index itself and the shards of it that are
/// there, all files of a folder, or the path itself.
///
/// # Errors
/// What the system says of a folder, or that it has no model.
pub fn lint_targets(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let index = match Meant::of(path)? {
        Meant::File(path) => return Ok(vec![path]),
        Meant::Files(files) => return Ok(files),
        Meant::Index(index) => index,
    };
    // What is wrong with the index, the findings about it say.
    let listed = shards::there(&index).into_iter();
    Ok([index].into_iter().chain(listed).collect())
}

/// As [`crate::lint`], of an index.
pub(crate) fn lint_index(path: &Path, options: &LintOptions) -> Result<LintReport, StoreError> {
    let bytes = shards::read_index(path)?;
    let text = match index_file::parse(&bytes) {
        Ok(text) => text,
        Err(problem) => {
            let mut report = LintReport::default();
            let explanation = shown(&problem).to_string();
            report.add(finding(Rule::BadIndex, 0, None, explanation), options);
            return Ok(report);
        }
    };
    let keys = key_positions(&bytes);
    let at = |name: &str| keys.get(name).copied().unwrap_or(0);
    let listed = text.weight_map.iter();
    let names = listed.map(|(name, _)| (name.as_str(), at(name)));
    let mut report = LintReport::of_index_names(names, options);
    let mut add = |rule, tensor: Option<&str>, explanation| {
        let at_byte = tensor.map_or(0, at);
        report.add(finding(rule, at_byte, tensor, explanation), options);
    };
    if text.weight_map.is_empty() {
        add(Rule::IndexEmpty, None, "`weight_map` is empty".to_owned());
    }
    let shards = Shards::open(path, &text, options, &mut add);
    let bytes = shards.lint_listed(&text, &mut add);
    shards.lint_found(&text, &mut add);
    let whole = !shards.unreadable.contains(&true);
    match text.total_size {
        Some(size) if whole && size != bytes => {
            let what =
                format!("`total_size` is {size}, the tensors that are listed have {bytes} bytes");
            add(Rule::IndexTotalSize, None, what);
        }
        None if text.size_is_odd => {
            let what = "`total_size` is no whole number".to_owned();
            add(Rule::IndexTotalSize, None, what);
        }
        _ => {}
    }
    Ok(report)
}

/// Takes a finding: its rule, the listed tensor that it is about, what is wrong.
type Add<'a> = dyn FnMut(Rule, Option<&str>, String) + 'a;

/// The files that an index names, and what is in them.
struct Shards<'a> {
    /// In order, each once; a shard's position is that in this list.
    names: Vec<&'a str>,
    /// Those that are not there, may not be opened, or are no safetensors files: what can't be read, its own findings say.
    unreadable: Vec<bool>,
    /// Each tensor of the others, with its file's position, and its size.
    found: HashMap<(String, usize), u64>,
}

impl<'a> Shards<'a> {
    /// Opens all that can be opened, and tells of the others.
    fn open(
        index: &Path,
        text: &'a IndexText,
        options: &LintOptions,
        add: &mut Add<'_>,
    ) -> Shards<'a> {
        let names = text.weight_map.iter().map(|(_, shard)| shard.as_str());
        let mut names: Vec<&str> = names.collect();
        names.sort_unstable();
        names.dedup();
        let open = OpenOptions {
            opaque_dtypes: true,
            limits: options.limits,
            ..OpenOptions::default()
        };
        let mut found = HashMap::new();
        let mut unreadable = vec![true; names.len()];
        for (position, name) in names.iter().enumerate() {
            let file = beside(index, name);
            let first = text.weight_map.iter().find(|(_, shard)| shard == name);
            let tensor = first.map(|(tensor, _)| tensor.as_str());
            if !shards::is_inside(name) {
                let what = format!("`{}` may lie outside the index's folder", shown(name));
                add(Rule::IndexPath, tensor, what);
            } else if shards::is_index(&file) {
                let what = format!("`{}` is an index and no shard", shown(name));
                add(Rule::IndexPath, tensor, what);
            } else if !file.is_file() {
                let what = format!("there is no file `{}`", shown(name));
                add(Rule::IndexFileMissing, tensor, what);
            } else if let Ok(opened) = ShardFile::open(&file, &open) {
                unreadable[position] = false;
                let known = opened.header.tensors().iter();
                let known = known.map(|tensor| (tensor.name, tensor.byte_count()));
                let opaque = opened.header.opaque_tensors();
                let opaque = opaque.map(|tensor| (tensor.name, tensor.byte_count()));
                let all = known.chain(opaque);
                found.extend(all.map(|(name, bytes)| ((name.to_owned(), position), bytes)));
            }
        }
        Shards {
            names,
            unreadable,
            found,
        }
    }

    /// The position of a file that the index names.
    fn position(&self, shard: &str) -> usize {
        self.names.partition_point(|name| *name < shard)
    }

    /// Tells of listed tensors that are not where they should be; the size of the others.
    fn lint_listed(&self, text: &IndexText, add: &mut Add<'_>) -> u64 {
        let mut bytes = 0u64;
        for (tensor, shard) in &text.weight_map {
            let position = self.position(shard);
            match self.found.get(&(tensor.clone(), position)) {
                Some(size) => bytes = bytes.saturating_add(*size),
                None if self.unreadable[position] => {}
                None => {
                    let what = format!("`{}` is not in `{}`", shown(tensor), shown(shard));
                    add(Rule::IndexTensorMissing, Some(tensor), what);
                }
            }
        }
        bytes
    }

    /// Tells of tensors that the files have and the index doesn't list, and of those in two files.
    fn lint_found(&self, text: &IndexText, add: &mut Add<'_>) {
        let listed = text.weight_map.iter();
        let listed = listed.map(|(tensor, shard)| (tensor.as_str(), self.position(shard)));
        let listed: HashMap<&str, usize> = listed.collect();
        let mut found: Vec<&(String, usize)> = self.found.keys().collect();
        found.sort_unstable();
        for (tensor, position) in found {
            let (name, file) = (shown(tensor), shown(self.names[*position]));
            let Some(&given) = listed.get(tensor.as_str()) else {
                let what = format!("`{name}` in `{file}` is not listed");
                add(Rule::IndexUnlisted, None, what);
                continue;
            };
            if given != *position && self.found.contains_key(&(tensor.clone(), given)) {
                let what = format!(
                    "`{name}` is in `{}` and in `{file}`",
                    shown(self.names[given])
                );
                add(Rule::IndexTwice, Some(tensor), what);
            }
        }
    }
}

fn finding(rule: Rule, at_byte: u64, tensor: Option<&str>, explanation: String) -> Finding {
    Finding {
        rule,
        at_byte,
        tensor: tensor.map(|name| name[..name.floor_char_boundary(1024)].to_owned()),
        field: None,
        explanation,
    }
}

/// Where each key of a sound JSON text stands last.
fn key_positions(text: &[u8]) -> HashMap<String, u64> {
    let mut keys = HashMap::new();
    let mut at = 0;
    while at < text.len() {
        if text[at] != b'"' {
            at += 1;
            continue;
        }
        let start = at;
        at += 1;
        while at < text.len() && text[at] != b'"' {
            at += if text[at] == b'\\' { 2 } else { 1 };
        }
        at += 1;
        let behind = text.get(at..).unwrap_or_default();
        let next = behind.iter().find(|byte| !byte.is_ascii_whitespace());
        if next == Some(&b':')
            && let Ok(key) = serde_json::from_slice::<String>(&text[start..at])
        {
            keys.insert(key, start as u64);
        }
    }
    keys
}
