//! An index, looked at for everything that is wrong or odd about it and between it and its files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safelight_format::{Finding, LintOptions, LintReport, Rule, shown};

use crate::checkpoint::{OpenOptions, ShardFile};
use crate::error::{StoreError, beside};
use crate::index_file;
use crate::shards;

/// The files that [`crate::lint`] has something to say about, for one path: an index itself and the shards of it that are
/// there, all files of a folder, or the path itself.
///
/// # Errors
/// What the system says of a folder, or that it has no model.
pub fn lint_targets(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let named = match path.is_dir() {
        true => shards::in_folder(path)?,
        false => vec![path.to_owned()],
    };
    let mut targets = Vec::new();
    for path in named {
        // What is wrong with the index, the findings about it say.
        let listed = match shards::is_index(&path) {
            true => shards::shard_paths(&path).unwrap_or_default(),
            false => Vec::new(),
        };
        targets.push(path);
        targets.extend(listed.into_iter().filter(|shard| shard.is_file()));
    }
    Ok(targets)
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
    let names = text
        .weight_map
        .iter()
        .map(|(name, _)| (name.as_str(), at(name)));
    let mut report = LintReport::of_index_names(names, options);
    let mut add = |rule, tensor: Option<&str>, explanation| {
        let at_byte = tensor.map_or(0, at);
        report.add(finding(rule, at_byte, tensor, explanation), options);
    };
    if text.weight_map.is_empty() {
        add(Rule::IndexEmpty, None, "`weight_map` is empty".to_owned());
    }
    let mut names: Vec<&str> = text
        .weight_map
        .iter()
        .map(|(_, shard)| shard.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    let open = OpenOptions {
        opaque_dtypes: true,
        limits: options.limits,
        ..OpenOptions::default()
    };
    // Where each tensor really is: in the first of the files that have it. What can't be read, its own findings say.
    let mut found: HashMap<(String, usize), u64> = HashMap::new();
    let mut unreadable = vec![false; names.len()];
    for (position, name) in names.iter().enumerate() {
        let file = beside(path, name);
        let first = text.weight_map.iter().find(|(_, shard)| shard == name);
        let tensor = first.map(|(tensor, _)| tensor.as_str());
        unreadable[position] = true;
        if shards::check_names("", &[(*name).to_owned()]).is_err() {
            let what = format!("`{}` may lie outside the index's folder", shown(name));
            add(Rule::IndexPath, tensor, what);
        } else if !file.is_file() {
            add(
                Rule::IndexFileMissing,
                tensor,
                format!("there is no file `{}`", shown(name)),
            );
        } else if let Ok(opened) = ShardFile::open(&file, &open) {
            unreadable[position] = false;
            let known = opened.header.tensors().iter();
            let known = known.map(|tensor| (tensor.name, tensor.byte_count()));
            let opaque = opened.header.opaque_tensors();
            let opaque = opaque.map(|tensor| (tensor.name, tensor.byte_count()));
            found.extend(
                known
                    .chain(opaque)
                    .map(|(name, bytes)| ((name.to_owned(), position), bytes)),
            );
        }
    }
    let mut listed = HashMap::with_capacity(text.weight_map.len());
    let mut bytes = 0u64;
    for (tensor, shard) in &text.weight_map {
        let position = names.partition_point(|name| *name < shard.as_str());
        listed.insert(tensor.as_str(), position);
        match found.get(&(tensor.clone(), position)) {
            Some(size) => bytes = bytes.saturating_add(*size),
            None if unreadable[position] => {}
            None => {
                let what = format!("`{}` is not in `{}`", shown(tensor), shown(shard));
                add(Rule::IndexTensorMissing, Some(tensor), what);
            }
        }
    }
    let mut others: Vec<&(String, usize)> = found.keys().collect();
    others.sort_unstable();
    for (tensor, position) in others {
        let (name, file) = (shown(tensor), shown(names[*position]));
        match listed.get(tensor.as_str()) {
            None => add(
                Rule::IndexUnlisted,
                None,
                format!("`{name}` in `{file}` is not listed"),
            ),
            Some(given) if given != position && found.contains_key(&(tensor.clone(), *given)) => {
                let what = format!("`{name}` is in `{}` and in `{file}`", shown(names[*given]));
                add(Rule::IndexTwice, Some(tensor), what);
            }
            Some(_) => {}
        }
    }
    let whole = !unreadable.contains(&true);
    match text.total_size {
        Some(size) if whole && size != bytes => {
            let what =
                format!("`total_size` is {size}, the tensors that are listed have {bytes} bytes");
            add(Rule::IndexTotalSize, None, what);
        }
        None if text.size_is_odd => {
            add(
                Rule::IndexTotalSize,
                None,
                "`total_size` is no whole number".to_owned(),
            );
        }
        _ => {}
    }
    Ok(report)
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
