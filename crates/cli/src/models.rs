//! `safelight models`: what there is, and what is wrong with it.

use std::path::Path;

use safelight_catalog::{Catalog, Entry, Layout, demo_bytes, short};
use safelight_store::replace_file;
use serde_json::{Value, json};

use crate::args::ModelsArgs;
use crate::choose;
use crate::error::Failure;
use crate::interrupt;
use crate::progress::Progress;
use crate::say;

pub(crate) fn run(args: &ModelsArgs) -> Result<(), Failure> {
    if let Some(path) = &args.export_demo {
        return export_demo(path, args);
    }
    interrupt::listen();
    let mut catalog = choose::catalog(&args.folders)?;
    find_hashes(&mut catalog, args.no_hash)?;
    catalog.notes.iter().for_each(|note| say::note(note));
    if args.json {
        return say::answer_json_line(&to_json(&catalog));
    }
    say::answer(&to_text(&catalog))
}

fn export_demo(path: &Path, args: &ModelsArgs) -> Result<(), Failure> {
    if path.exists() && !args.force {
        let path = path.display();
        let what = format!("{path} is there already; replace it with --force");
        return Err(Failure::Usage(what));
    }
    let bytes = demo_bytes();
    replace_file(path, true, |file| file.write_all(&bytes))?;
    if args.json {
        let path = path.to_string_lossy();
        return say::answer_json(&json!({ "path": path, "bytes": bytes.len() }));
    }
    let size = say::bytes(bytes.len() as u64);
    say::answer(&format!("{}, {size}\n", path.display()))
}

/// Fills the hashes in: all of them, or only those that take no reading.
pub(crate) fn find_hashes(catalog: &mut Catalog, known_only: bool) -> Result<(), Failure> {
    let mut cache = choose::hash_cache();
    let mut progress = Progress::new(known_only);
    for entry in &mut catalog.entries {
        progress.stage(&format!(
            "hashing {} ({})",
            say::tame(&entry.name, 40),
            say::bytes(entry.bytes)
        ));
        match &entry.path {
            Some(path) if known_only => entry.sha256 = cache.get(path).map(str::to_owned),
            _ => entry.find_hash(&mut cache, &mut interrupt::go_on),
        }
        interrupt::check()?;
    }
    Ok(())
}

pub(crate) fn to_json(catalog: &Catalog) -> Value {
    json!({ "models": catalog.entries.iter().map(entry_json).collect::<Vec<_>>(), "notes": catalog.notes })
}

/// What is known of one model.
pub(crate) fn entry_json(entry: &Entry) -> Value {
    json!({
        "name": entry.name,
        "relative": entry.relative,
        "path": entry.path.as_ref().map(|path| path.to_string_lossy()),
        "layout": entry.layout.name(),
        "family": entry.family().map(|family| family.name()),
        "parts": entry.parts().iter().map(|part| part.name()).collect::<Vec<_>>(),
        "dtype": entry.dtype().map(|dtype| dtype.name()),
        "bytes": entry.bytes,
        "native_size": entry.native_size.map(|(width, height)| [width, height]),
        "hash": entry.sha256.as_deref().map(short),
        "sha256": entry.sha256,
        "usable": entry.problem.is_none(),
        "problem": entry.problem,
    })
}

/// A table; below each model that can't be used stands why.
pub(crate) fn to_text(catalog: &Catalog) -> String {
    let head = ["NAME", "FAMILY", "PARTS", "DTYPE", "SIZE", "HASH"]
        .map(String::from)
        .to_vec();
    let rows: Vec<_> = std::iter::once(head)
        .chain(catalog.entries.iter().map(row))
        .collect();
    let table = say::table(&rows, &[4]);
    let mut lines = table.lines();
    let mut text = format!("{}\n", lines.next().unwrap_or(""));
    for (line, entry) in lines.zip(&catalog.entries) {
        text += &format!("{line}\n");
        if let Some(problem) = &entry.problem {
            let problem: Vec<String> = problem.lines().map(|line| say::tame(line, 400)).collect();
            text += &format!("    can't be used: {}\n", problem.join("\n      "));
        }
    }
    if catalog
        .entries
        .iter()
        .all(|entry| entry.layout == Layout::Embedded)
    {
        text += "\nNo models found; the one built in is used. `safelight models --help` says where models belong.\n";
    }
    text
}

fn row(entry: &Entry) -> Vec<String> {
    let or_dash = |text: Option<String>| {
        text.filter(|text| !text.is_empty())
            .unwrap_or_else(|| "-".into())
    };
    let parts: Vec<_> = entry.parts().iter().map(|part| part.name()).collect();
    let built_in = if entry.layout == Layout::Embedded {
        " (built in)"
    } else {
        ""
    };
    vec![
        say::tame(&entry.relative, 80) + built_in,
        or_dash(entry.family().map(|family| family.name().to_owned())),
        or_dash(Some(parts.join(" + "))),
        or_dash(entry.dtype().map(|dtype| dtype.name().to_owned())),
        say::bytes(entry.bytes),
        or_dash(entry.sha256.as_deref().map(|hash| short(hash).to_owned())),
    ]
}
