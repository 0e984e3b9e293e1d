//! `safelight inspect`: what a model, a picture or a folder is.

use std::collections::BTreeMap;
use std::path::Path;

use safelight_catalog::{Catalog, Entry, Layout, Roots, short};
use safelight_diffusion::infotext::Infotext;
use safelight_format::{FileKind, OpaqueTensor, TensorInfo};
use safelight_store::location::{self, Location};
use safelight_store::{Checkpoint, Meant, check_listed, matching};
use serde_json::{Value, json};

use crate::args::InspectArgs;
use crate::error::Failure;
use crate::files::{self, on_disk, shown_path};
use crate::interrupt;
use crate::ls::shape_text;
use crate::opened::{Opened, header_of};
use crate::{choose, models, picture, say, scan};

/// Longer metadata values are cut in text; JSON has them whole.
const VALUE_LENGTH_MAX: usize = 300;
/// Where values stand: behind the longest of the names and two spaces.
const VALUE_INDENT: usize = 14;
/// As many keys of metadata as text shows.
const METADATA_MAX: usize = 24;
/// As many notes as text shows.
const NOTES_MAX: usize = 12;
/// As many of the largest tensors.
const LARGEST_MAX: usize = 5;
/// How wide the bars of dtypes are.
const HISTOGRAM_COLUMNS: usize = 20;

pub(crate) fn run(args: &InspectArgs) -> Result<(), Failure> {
    interrupt::listen();
    let mut answers = Vec::new();
    let mut failure = None;
    let mut take = |answer: Result<Answer, Failure>| match answer {
        Ok(answer) => answers.push(answer),
        // The others are looked at all the same.
        Err(error) if failure.is_some() => say::note(&say::harmless(&format!("error: {error}"))),
        Err(error) => failure = Some(error),
    };
    for path in &args.paths {
        if matches!(Location::of(path), Location::Url(_)) {
            take(model(path, args));
            continue;
        }
        match on_disk(path).and_then(|path| files::meant(&path)) {
            Ok(files) => files.iter().for_each(|path| take(look(path, args))),
            Err(error) => take(Err(error)),
        }
    }
    if args.json {
        for (_, value) in &answers {
            say::answer_json_line(value)?;
        }
    } else {
        let texts: Vec<String> = answers.into_iter().map(|(text, _)| text).collect();
        say::answer(&texts.join("\n"))?;
    }
    failure.map_or(Ok(()), Err)
}

type Answer = (String, Value);

fn look(path: &Path, args: &InspectArgs) -> Result<Answer, Failure> {
    if matching(path)?.is_some() {
        return match Meant::of(path)? {
            Meant::Index(index) => model(&index, args),
            _ => model(path, args),
        };
    }
    if path.is_dir() && !path.join("model_index.json").is_file() {
        return folder(path, args);
    }
    if path.is_dir() {
        return model(path, args);
    }
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let what = "is a pipe or a device, not a file";
        return Err(Failure::Model(format!("{}: {what}", shown_path(path))));
    }
    // A name that is no picture's is taken for a model's, and what can't be read is the model's fault.
    if let (Err(error), false) = (std::fs::metadata(path), is_picture(path)) {
        return Err(Failure::Model(format!(
            "cannot open {}: {error}",
            shown_path(path)
        )));
    }
    match picture::kind(path)? {
        Some(FileKind::Png | FileKind::Jpeg | FileKind::Webp) => picture_answer(path),
        _ if is_picture(path) => {
            let what = picture::what_it_is(path);
            Err(Failure::Picture(format!("{}: {what}", shown_path(path))))
        }
        _ => model(path, args).map_err(|failure| scan::refusal(path).unwrap_or(failure)),
    }
}

/// Whether the name says that it is a picture.
fn is_picture(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    ["png", "jpg", "jpeg", "webp"].contains(&ending.to_lowercase().as_str())
}

fn folder(path: &Path, args: &InspectArgs) -> Result<Answer, Failure> {
    let mut catalog = Catalog::scan(&Roots {
        folders: vec![path.to_owned()],
        named: true,
    });
    // What is part of the program is in no folder.
    catalog
        .entries
        .retain(|entry| entry.layout != Layout::Embedded);
    models::find_hashes(&mut catalog, args.no_hash)?;
    let pictures = pictures_in(path)?;
    let mut text = format!("{}: ", shown_path(path));
    match catalog.entries.len() {
        0 if !pictures.is_empty() => text += "a folder of pictures\n",
        0 => text += "a folder without checkpoints\n",
        count => {
            text += &format!(
                "a folder of {}\n{}",
                say::plural(count as u64, "checkpoint"),
                models::to_text(&catalog)
            )
        }
    }
    let mut value = models::to_json(&catalog);
    if let Some(problem) = incomplete(path) {
        text += &say::hanging(&format!("incomplete: {}", say::harmless(&problem)));
        value["problem"] = problem.into();
    }
    value["kind"] = "folder".into();
    value["path"] = path.to_string_lossy().into();
    value["pictures"] = pictures.iter().map(|(_, json)| json.clone()).collect();
    let rows: Vec<Vec<String>> = pictures.into_iter().map(|(row, _)| row).collect();
    text += &say::table(&rows, &[]);
    Ok((text, value))
}

/// What the names of a folder's shards say is missing, if no index says it.
fn incomplete(folder: &Path) -> Option<String> {
    let Ok(Meant::Files(files)) = Meant::of(folder) else {
        return None;
    };
    check_listed(&files)
        .err()
        .map(|problem| problem.to_string())
}

/// The pictures that lie in a folder itself, each as a table's row and as JSON.
fn pictures_in(folder: &Path) -> Result<Vec<(Vec<String>, Value)>, Failure> {
    let failed =
        |error: std::io::Error| Failure::Machine(format!("{}: {error}", shown_path(folder)));
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    let row = |path: &Path| {
        let (width, height) = picture::dimensions(path).ok()?;
        let parameters = picture::parameters(path).ok().flatten();
        let info = parameters
            .as_deref()
            .map(Infotext::parse)
            .unwrap_or_default();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let json = json!({ "path": path.to_string_lossy(), "width": width, "height": height, "parameters": parameters });
        Some((
            vec![
                say::tame(&name, 80),
                format!("{width} × {height}"),
                say::tame(&info.prompt, 60),
            ],
            json,
        ))
    };
    Ok(paths
        .iter()
        .filter(|path| is_picture(path))
        .filter_map(|path| row(path))
        .collect())
}

fn picture_answer(path: &Path) -> Result<Answer, Failure> {
    let (width, height) = picture::dimensions(path)?;
    let parameters = picture::parameters(path)?;
    let info = parameters.as_deref().map(Infotext::parse);
    let mut text = format!("{}: a picture, {width} × {height}\n", shown_path(path));
    match (&parameters, &info) {
        (Some(_), Some(info)) => {
            text += &format!("prompt: {}\n", tame_lines(&info.prompt));
            if !info.negative_prompt.is_empty() {
                text += &format!("negative prompt: {}\n", tame_lines(&info.negative_prompt));
            }
            for (key, value) in &info.fields {
                text += &format!(
                    "{}: {}\n",
                    say::tame(key, 80),
                    say::tame(value, VALUE_LENGTH_MAX)
                );
            }
        }
        _ => text += "it does not say how it was made\n",
    }
    let fields = info.as_ref().map(|info| {
        let fields: serde_json::Map<_, _> = info
            .fields
            .iter()
            .map(|(key, value)| (key.clone(), value.clone().into()))
            .collect();
        json!({ "prompt": info.prompt, "negative_prompt": info.negative_prompt, "fields": fields })
    });
    let value = json!({
        "kind": "picture", "path": path.to_string_lossy(), "width": width, "height": height,
        "parameters": parameters, "parsed": fields,
    });
    Ok((text, value))
}

fn tame_lines(text: &str) -> String {
    text.lines()
        .map(|line| say::tame(line, 4000))
        .collect::<Vec<_>>()
        .join("\n  ")
}

/// What is known of a model before it is shown.
struct Seen {
    entry: Entry,
    /// Its header; of a foreign file the one it would have; of a diffusers folder none.
    checkpoint: Option<Checkpoint>,
    /// What a foreign file would lose if it was converted.
    notes: Option<Value>,
}

fn see(path: &Path, args: &InspectArgs) -> Result<Seen, Failure> {
    let location = Location::of(path);
    let on_disk = location.path();
    let here = on_disk.map(|path| Entry::at(path, path.parent().unwrap_or(Path::new(""))));
    if let Some(entry) = &here
        && entry.layout == Layout::Folder
    {
        // A folder that is no model of ours says why.
        if entry.info.is_none() {
            files::open_with(path, args.unknown_dtypes)?;
        }
        let (entry, checkpoint, notes) = (entry.clone(), None, None);
        return Ok(Seen {
            entry,
            checkpoint,
            notes,
        });
    }
    let opened = Opened::open(path, args.unknown_dtypes)?;
    let notes = opened.notes().map(|notes| json!(notes));
    let (checkpoint, refusal) = match opened {
        Opened::Ours(checkpoint) => (*checkpoint, None),
        // A pickle of anything else is no model.
        Opened::Foreign(source, refusal) if source.tensors().is_empty() => return Err(refusal),
        Opened::Foreign(source, refusal) => (header_of(&*source)?, Some(refusal.to_string())),
    };
    let mut entry = Entry::of(&checkpoint);
    if let Some(refusal) = refusal {
        let label = format!("{}: ", files::name(path));
        entry.problem = Some(refusal.strip_prefix(&label).unwrap_or(&refusal).to_owned());
        entry.bytes = byte_count(path)?;
    } else if on_disk.is_none() && entry.problem.is_none() {
        let what = "it is behind a URL, and pictures are drawn with files of this machine; download it first";
        entry.problem = Some(what.to_owned());
    }
    if let Some(here) = here {
        entry.path = here.path;
        if notes.is_none() {
            // With the settings that lie beside it.
            (entry.info, entry.problem) = (here.info.or(entry.info), here.problem);
        }
    }
    Ok(Seen {
        entry,
        checkpoint: Some(checkpoint),
        notes,
    })
}

/// How large a file is, also behind a URL.
fn byte_count(path: &Path) -> Result<u64, Failure> {
    let reader = location::open_reader(path)?;
    reader
        .byte_count()
        .map_err(|error| Failure::Machine(format!("{}: {error}", shown_path(path))))
}

fn model(path: &Path, args: &InspectArgs) -> Result<Answer, Failure> {
    let seen = see(path, args).map_err(|failure| match Location::of(path) {
        Location::Path(_) => Failure::Model(failure.to_string()),
        Location::Url(_) => failure,
    })?;
    let Seen {
        mut entry,
        checkpoint,
        notes,
    } = seen;
    if let (true, Some(path)) = (args.no_hash, &entry.path) {
        entry.sha256 = choose::hash_cache().get(path).map(str::to_owned);
    } else {
        entry.find_hash(&mut choose::hash_cache(), &mut interrupt::go_on);
        interrupt::check()?;
    }
    let tensors: Vec<TensorInfo<'_>> = checkpoint.iter().flat_map(|file| file.tensors()).collect();
    let metadata: BTreeMap<&str, &str> = checkpoint
        .iter()
        .filter_map(|file| file.metadata())
        .flatten()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let mut text = model_text(path, &entry, &tensors, &metadata, args.tensors);
    let mut value = models::entry_json(&entry);
    value["kind"] = "model".into();
    value["path"] = files::name(path).into();
    if let Some(notes) = notes {
        text += &notes_text(&notes);
        value["notes"] = notes;
    }
    value["metadata"] = json!(metadata);
    value["tensor_count"] = tensors.len().into();
    value["dtypes"] = dtypes(&tensors)
        .into_iter()
        .map(|(name, (count, _))| (name.to_owned(), Value::from(count)))
        .collect();
    value["dtype_bytes"] = dtypes(&tensors)
        .into_iter()
        .map(|(name, (_, bytes))| (name.to_owned(), Value::from(bytes)))
        .collect();
    value["largest"] = largest(&tensors).into_iter().map(tensor_json).collect();
    value["part_details"] = entry.info.iter().flat_map(|info| &info.parts).map(|part| {
        json!({ "part": part.part.name(), "tensors": part.tensors, "parameters": part.parameters })
    }).collect();
    let unknown: Vec<_> = checkpoint
        .iter()
        .flat_map(|file| file.opaque_tensors())
        .collect();
    if args.unknown_dtypes {
        value["unknown_dtypes"] = unknown.iter().map(|place| {
            let OpaqueTensor { name, dtype, shape, .. } = place.tensor;
            json!({ "name": name, "dtype": dtype, "shape": shape, "bytes": place.tensor.byte_count() })
        }).collect();
        for place in &unknown {
            let (name, dtype) = (
                say::tame(place.tensor.name, 100),
                say::tame(place.tensor.dtype, 40),
            );
            let (shape, bytes) = (
                shape_text(place.tensor.shape),
                say::bytes(place.tensor.byte_count()),
            );
            text += &format!("unknown dtype: {name}  {dtype}  {shape}  {bytes}\n");
        }
    }
    if args.tensors {
        value["tensors"] = tensors.iter().map(tensor_json).collect();
    }
    Ok((text, value))
}

/// What a conversion would leave out or change.
fn notes_text(notes: &Value) -> String {
    let notes = notes.as_array().map_or(&[][..], Vec::as_slice);
    let word = |note: &Value, key: &str| {
        let text = note.get(key).and_then(Value::as_str).unwrap_or_default();
        say::tame(text, VALUE_LENGTH_MAX)
    };
    let mut text = String::new();
    for note in notes.iter().take(NOTES_MAX) {
        text += &format!("note: `{}`: {}\n", word(note, "at"), word(note, "what"));
    }
    match notes.len().saturating_sub(NOTES_MAX) {
        0 => text,
        more => text + &format!("and {more} more; `safelight convert` lists all\n"),
    }
}

fn model_text(
    path: &Path,
    entry: &Entry,
    tensors: &[TensorInfo<'_>],
    metadata: &BTreeMap<&str, &str>,
    list: bool,
) -> String {
    let mut text = format!("{}: ", shown_path(path));
    text += &match entry.family() {
        Some(family) => format!("{}\n", family.a_name()),
        None => "a safetensors file\n".into(),
    };
    let mut rows = vec![vec!["size".to_owned(), say::bytes(entry.bytes)]];
    let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    if let Some(hash) = &entry.sha256 {
        let text = format!("{} (SHA-256 {hash})", short(hash));
        for (idx, line) in say::lines(&text, VALUE_INDENT).into_iter().enumerate() {
            row(if idx == 0 { "hash" } else { "" }, line);
        }
    }
    if let Some(info) = &entry.info {
        for (idx, line) in say::lines(&say::tame(&info.saw, VALUE_LENGTH_MAX), VALUE_INDENT)
            .into_iter()
            .enumerate()
        {
            row(if idx == 0 { "told by" } else { "" }, line);
        }
        for part in &info.parts {
            let dtypes: Vec<_> = part
                .dtypes
                .iter()
                .map(|(dtype, count)| format!("{} ×{count}", dtype.name()))
                .collect();
            row(
                part.part.name(),
                format!(
                    "{}, {} parameters, {}",
                    say::plural(part.tensors as u64, "tensor"),
                    say::count(part.parameters),
                    dtypes.join(", ")
                ),
            );
        }
        if info.ignored_tensors > 0 {
            row(
                "ignored",
                say::plural(info.ignored_tensors as u64, "tensor"),
            );
        }
    }
    if let Some((width, height)) = entry.native_size {
        row("made for", format!("{width} × {height} pixels"));
    }
    if !tensors.is_empty() {
        let all: u64 = tensors.iter().map(TensorInfo::byte_count).sum();
        row("tensors", format!("{}, {}", tensors.len(), say::bytes(all)));
        for (name, (count, bytes)) in dtypes(tensors) {
            let share = bar(bytes, all, HISTOGRAM_COLUMNS);
            row(
                "",
                format!("{name:<8} {share}  ×{count}, {}", say::bytes(bytes)),
            );
        }
        for (idx, tensor) in largest(tensors).into_iter().enumerate() {
            let (dtype, shape) = (tensor.dtype, shape_text(tensor.shape));
            let what = format!("{}  {dtype} {shape}", say::bytes(tensor.byte_count()));
            let head = if idx == 0 { "largest" } else { "" };
            let room = say::columns().saturating_sub(what.chars().count() + 14);
            let name = say::middle_cut(
                &safelight_format::shown(tensor.name).to_string(),
                room.max(20),
            );
            row(head, format!("{name}  {what}"));
        }
    }
    let usable = match &entry.problem {
        None => vec!["yes".to_owned()],
        Some(problem) => format!("no: {problem}")
            .lines()
            .flat_map(|line| say::lines(&say::tame(line, 400), VALUE_INDENT))
            .collect(),
    };
    for (idx, line) in usable.into_iter().enumerate() {
        row(if idx == 0 { "usable" } else { "" }, line);
    }
    text += &say::table(&rows, &[]);
    for (idx, (key, value)) in metadata.iter().take(METADATA_MAX).enumerate() {
        let head = if idx == 0 { "metadata\n" } else { "" };
        let (key, value) = (say::tame(key, 100), say::tame(value, VALUE_LENGTH_MAX));
        let line = say::middle_cut(&format!("  {key}: {value}"), say::columns());
        text += &format!("{head}{line}\n");
    }
    if metadata.len() > METADATA_MAX {
        let more = metadata.len() - METADATA_MAX;
        text += &format!("  and {more} more; `safelight meta get` lists all\n");
    }
    if list {
        let cells = |tensor: &TensorInfo| {
            vec![
                safelight_format::shown(tensor.name).to_string(),
                tensor.dtype.name().to_owned(),
                shape_text(tensor.shape),
                say::bytes(tensor.byte_count()),
            ]
        };
        text += &say::table(&tensors.iter().map(cells).collect::<Vec<_>>(), &[3]);
    }
    text
}

fn tensor_json(tensor: &TensorInfo<'_>) -> Value {
    json!({ "name": tensor.name, "dtype": tensor.dtype.name(), "shape": tensor.shape, "bytes": tensor.byte_count() })
}

/// The tensors with the most bytes, the largest first; of equal ones the first in the file.
fn largest<'a, 'b>(tensors: &'b [TensorInfo<'a>]) -> Vec<&'b TensorInfo<'a>> {
    let mut sorted: Vec<&TensorInfo<'_>> = tensors.iter().collect();
    sorted.sort_by_key(|tensor| std::cmp::Reverse(tensor.byte_count()));
    sorted.truncate(LARGEST_MAX);
    sorted
}

/// A bar for `part` of `all`, in eighths of a column; what is there is seen.
fn bar(part: u64, all: u64, columns: usize) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = (part as f64 / all.max(1) as f64 * (8 * columns) as f64).round() as usize;
    let eighths = eighths.clamp(usize::from(part > 0), 8 * columns);
    let mut bar = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8]);
    }
    let used = eighths.div_ceil(8);
    bar + &" ".repeat(columns - used)
}

/// How many tensors and bytes of each dtype there are.
fn dtypes(tensors: &[TensorInfo<'_>]) -> BTreeMap<&'static str, (u64, u64)> {
    let mut counts: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    for tensor in tensors {
        let (count, bytes) = counts.entry(tensor.dtype.name()).or_default();
        *count += 1;
        *bytes += tensor.byte_count();
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_show_shares() {
        assert_eq!(bar(10, 10, 4), "████");
        assert_eq!(bar(5, 10, 4), "██  ");
        assert_eq!(bar(1, 1_000_000, 4), "▏   ");
        assert_eq!(
            (bar(0, 10, 4), bar(0, 0, 4)),
            ("    ".into(), "    ".into())
        );
    }
}
