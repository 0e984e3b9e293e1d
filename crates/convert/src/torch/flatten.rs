//! Nested containers become names: `{"state_dict": {"a": …}, "optimizer": [{"b": …}]}` is `a` and `optimizer.0.b`.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Context;
use super::objects::{Meaning, Objects, Tensor, is_tensor};
use crate::error::ConvertError;
use crate::open::SharedTensors;
use crate::pickle::{Heap, Id, Node};
use crate::source::{LimitName, Note, skip};

/// Notes beyond this many are counted only.
const NOTE_COUNT_MAX: usize = 1000;

/// Plain values that go into the metadata, at most, and the length of one.
const VALUE_COUNT_MAX: usize = 10_000;
const VALUE_BYTES_MAX: u64 = 4096;

/// Longer keys of bytes are only equal to themselves.
const IDENTITY_BYTES_MAX: u64 = 4096;

/// What a pickle holds.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    pub(crate) tensors: Vec<Found>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) notes: Vec<Note>,
    pub(crate) skipped: Vec<Note>,
    unsaid_count: usize,
}

/// A tensor with its name.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) tensor: Tensor,
}

impl Holds {
    fn note(&mut self, at: &str, what: impl Into<String>) {
        if self.notes.len() < NOTE_COUNT_MAX {
            let at = if at.is_empty() { "the file" } else { at };
            self.notes.push(Note::new(at, what));
        } else {
            self.unsaid_count += 1;
        }
    }
}

/// Finds all tensors below `root`.
///
/// # Errors
/// A tensor that cannot be read, or too much of something.
pub(crate) fn flatten(objects: &mut Objects<'_, '_, '_>, root: Id) -> Result<Holds, ConvertError> {
    let holds_tensors = holders(objects.heap, root);
    let (mut holds, mut value_names) = (Holds::default(), Names::default());
    let limits = objects.context.options.limits;
    // (value, its name, how deep it lies), the next one last.
    let mut todo = vec![(root, String::new(), 0)];
    while let Some((id, name, depth)) = todo.pop() {
        if depth > limits.depth_max {
            let context = objects.context;
            return Err(context.limit(
                &name,
                "containers in containers",
                depth.into(),
                limits.bound(LimitName::Depth),
            ));
        }
        if !holds_tensors.contains(id) {
            plain(objects, (id, &name, depth), &mut holds, &mut value_names);
            continue;
        }
        let meaning = match objects.meaning(id, &name) {
            Err(error) if objects.context.options.skip_unsupported => {
                skip(error, &mut holds.notes, &mut holds.skipped)?;
                continue;
            }
            meaning => meaning?,
        };
        let children = match meaning {
            Meaning::Tensor(tensor) => {
                if holds.tensors.len() as u64 >= limits.tensor_count_max {
                    let most = limits.bound(LimitName::Tensors);
                    let count = most.most.saturating_add(1);
                    return Err(objects.context.limit("", "tensors", count, most));
                }
                holds.tensors.push(Found { name, tensor });
                continue;
            }
            Meaning::Map(items) => {
                let items = last_of_each(objects, items);
                named(objects, items, &name, &mut holds)
            }
            Meaning::List(elements) => {
                let named = elements.into_iter().enumerate();
                named
                    .map(|(idx, id)| (id, join(&name, &idx.to_string())))
                    .collect()
            }
            Meaning::Module(parts) => parts.into_iter().map(|id| (id, name.clone())).collect(),
            Meaning::Other(what) => {
                holds.note(&name, format!("dropped, with tensors in it: {what}"));
                continue;
            }
        };
        todo.extend(
            children
                .into_iter()
                .rev()
                .map(|(id, name)| (id, name, depth + 1)),
        );
    }
    if holds.unsaid_count > 0 {
        let what = format!("{} more were dropped in the same way", holds.unsaid_count);
        holds.notes.push(Note::new("the file", what));
    }
    unique_names(&mut holds);
    shared(&mut holds, objects.context);
    Ok(holds)
}

/// A map's values with their names. At the top, what is in `state_dict` takes the names it has there.
fn named(
    objects: &mut Objects<'_, '_, '_>,
    items: Vec<(String, Id)>,
    name: &str,
    holds: &mut Holds,
) -> Vec<(Id, String)> {
    let mut children = Vec::with_capacity(items.len());
    for (key, id) in items {
        let is_container = matches!(objects.heap.node(id), Node::Dict(_) | Node::Call(_))
            && !is_tensor(objects.heap, id);
        if name.is_empty() && key == "state_dict" && is_container {
            holds.note("state_dict", "its tensors are named without this prefix");
            children.push((id, String::new()));
        } else {
            children.push((id, join(name, &key)));
        }
    }
    children
}

fn join(name: &str, key: &str) -> String {
    if name.is_empty() {
        return key.to_owned();
    }
    format!("{name}.{key}")
}

/// Keys as text, see [`key_text`]; of keys that are equal in Python the last one counts, as it does there.
fn last_of_each(objects: &mut Objects<'_, '_, '_>, items: Vec<(Id, Id)>) -> Vec<(String, Id)> {
    let mut at: HashMap<String, usize> = HashMap::with_capacity(items.len());
    let mut list: Vec<(String, Id)> = Vec::with_capacity(items.len());
    for (key, value) in items {
        let identity = identity(objects, key, 0);
        match at.get(&identity) {
            Some(&position) => list[position].1 = value,
            None => {
                at.insert(identity, list.len());
                list.push((key_text(objects, key), value));
            }
        }
    }
    list
}

/// A key as a part of a name: texts as they are, whole numbers in digits, all else as Python writes it: `(0, 'a')`, `b'x'`, `None`.
fn key_text(objects: &mut Objects<'_, '_, '_>, key: Id) -> String {
    match objects.key(key) {
        Some(text) => text,
        None => crate::pickle::show(objects.heap, objects.input, key),
    }
}

/// The same for keys that are equal in Python, and only for those: `1`, `1.0` and `True` are one key, `1` and `'1'` are two.
fn identity(objects: &mut Objects<'_, '_, '_>, key: Id, depth: u32) -> String {
    match objects.heap.node(key) {
        Node::None => "none".into(),
        Node::Bool(value) => format!("i{}", u8::from(*value)),
        Node::Int(value) => format!("i{value}"),
        Node::Float(value) if *value == (*value as i64) as f64 => format!("i{}", *value as i64),
        Node::Float(value) => format!("f{value:e}"),
        Node::Text(..) => match objects.key(key) {
            Some(text) => format!("t{text}"),
            None => format!("#{key}"),
        },
        Node::Bytes(blob) if blob.len <= IDENTITY_BYTES_MAX => {
            let bytes = objects.input.read(*blob, IDENTITY_BYTES_MAX);
            format!("b{}", bytes.unwrap_or_default().escape_ascii())
        }
        Node::Tuple(elements) if depth < 3 && elements.len() <= 8 => {
            let elements = elements.clone();
            let mut text = format!("({}", elements.len());
            for element in elements {
                let inner = identity(objects, element, depth + 1);
                text += &format!(",{}:{inner}", inner.len());
            }
            text
        }
        Node::Global(index) => format!("g{index}"),
        // Bytes of protocols before 3, short enough to be shown whole.
        Node::Call(_)
            if objects
                .heap
                .bytes(key)
                .is_some_and(|(blob, _)| blob.len <= 200) =>
        {
            format!("e{}", crate::pickle::show(objects.heap, objects.input, key))
        }
        // Objects are equal to themselves; more would take their code.
        _ => format!("#{key}"),
    }
}

/// All values below `root` that are a tensor or hold one. No recursion, each value once: neither depth nor
/// sharing costs more than the pickle's length.
fn holders(heap: &Heap, root: Id) -> Flags {
    let mut holders = Flags::new(heap);
    let mut seen = Flags::new(heap);
    seen.insert(root);
    // (value, how many of its children were looked at)
    let mut path = vec![(root, 0)];
    while let Some((id, position)) = path.last_mut() {
        let id = *id;
        let next = if is_tensor(heap, id) {
            holders.insert(id);
            None
        } else {
            heap.children(id).nth(*position)
        };
        *position += 1;
        match next {
            Some(child) if holders.contains(child) => drop(holders.insert(id)),
            Some(child) if seen.insert(child) => path.push((child, 0)),
            Some(_) => {}
            None => {
                path.pop();
                if holders.contains(id)
                    && let Some((parent, _)) = path.last()
                {
                    holders.insert(*parent);
                }
            }
        }
    }
    holders
}

/// A set of values.
struct Flags(Vec<bool>);

impl Flags {
    fn new(heap: &Heap) -> Flags {
        Flags(vec![false; heap.nodes.len()])
    }

    fn contains(&self, id: Id) -> bool {
        self.0[id as usize]
    }

    /// Adds a value; returns whether it is new.
    fn insert(&mut self, id: Id) -> bool {
        !std::mem::replace(&mut self.0[id as usize], true)
    }
}

/// What is no tensor: into the metadata if asked for, else a note.
fn plain(
    objects: &mut Objects<'_, '_, '_>,
    (id, name, depth): (Id, &str, u32),
    holds: &mut Holds,
    names: &mut Names,
) {
    if !objects.context.options.values_to_metadata {
        let what = kind(objects, id);
        holds.note(name, format!("dropped: {what}"));
        return;
    }
    let mut todo = vec![(id, name.to_owned(), depth)];
    while let Some((id, name, depth)) = todo.pop() {
        let text = match objects.heap.node(id) {
            Node::Bool(value) => Some(value.to_string()),
            Node::Int(value) => Some(value.to_string()),
            Node::Float(value) => Some(format!("{value:?}")),
            Node::Text(..) => {
                let text = objects.heap.text(id, objects.input, VALUE_BYTES_MAX);
                text.ok().flatten()
            }
            _ => None,
        };
        if let Some(text) =
            text.filter(|_| holds.metadata.len() < VALUE_COUNT_MAX && !name.is_empty())
        {
            let name = names.take(&name);
            holds.metadata.insert(name, text);
            continue;
        }
        // Shallow: what shares its parts endlessly ends at the count, what is deep at the depth.
        let meaning = objects.meaning(id, &name);
        let full = holds.metadata.len() + holds.notes.len() >= VALUE_COUNT_MAX || depth > 20;
        match meaning {
            Ok(Meaning::Map(items)) if !full && !items.is_empty() => {
                let items = last_of_each(objects, items).into_iter().rev();
                todo.extend(items.map(|(key, id)| (id, join(&name, &key), depth + 1)));
            }
            Ok(Meaning::List(elements)) if !full && !elements.is_empty() => {
                let elements = elements.into_iter().enumerate().rev();
                todo.extend(
                    elements.map(|(idx, id)| (id, join(&name, &idx.to_string()), depth + 1)),
                );
            }
            _ => {
                let what = kind(objects, id);
                holds.note(&name, format!("dropped: {what}"));
                if full {
                    return;
                }
            }
        }
    }
}

/// A value in a few words.
fn kind(objects: &mut Objects<'_, '_, '_>, id: Id) -> String {
    match objects.heap.node(id) {
        Node::None => "None".into(),
        Node::Bool(_) | Node::Int(_) | Node::Long(_) | Node::Float(_) | Node::Text(..) => {
            let text = crate::pickle::show(objects.heap, objects.input, id);
            format!("the value {text}")
        }
        Node::Bytes(blob) => format!("{} bytes", blob.len),
        _ => match objects.meaning(id, "") {
            Ok(Meaning::Map(items)) => format!("a dict of {} without tensors", items.len()),
            Ok(Meaning::List(elements)) => format!("a list of {} without tensors", elements.len()),
            Ok(Meaning::Module(_)) => "a module without tensors".into(),
            Ok(Meaning::Other(what)) => what,
            Ok(Meaning::Tensor(_)) | Err(_) => "a tensor that cannot be read".into(),
        },
    }
}

/// Names that are taken, and how far those were counted that were asked for again.
#[derive(Default)]
struct Names {
    taken: HashSet<String>,
    counts: HashMap<String, u64>,
}

impl Names {
    /// Takes a name; if it is taken, the first free one of `name~2`, `name~3`, …
    fn take(&mut self, name: &str) -> String {
        if self.taken.insert(name.to_owned()) {
            return name.to_owned();
        }
        // Counted on from the last time: a million tensors of one name take no longer than others.
        let count = self.counts.entry(name.to_owned()).or_insert(1);
        loop {
            *count += 1;
            let numbered = format!("{name}~{count}");
            if self.taken.insert(numbered.clone()) {
                return numbered;
            }
        }
    }
}

/// Gives tensors whose names another one has, or which no file can hold, a name of their own.
fn unique_names(holds: &mut Holds) {
    let mut names = Names::default();
    names.take("__metadata__");
    let mut renamed = Vec::new();
    for found in &mut holds.tensors {
        if found.name.is_empty() {
            found.name = "tensor".into(); // the file is one tensor and nothing else
        }
        let name = names.take(&found.name);
        if name != found.name {
            let why = if found.name == "__metadata__" {
                "the format reserves its name"
            } else {
                "another tensor has its name"
            };
            let before = std::mem::replace(&mut found.name, name.clone());
            renamed.push((before, format!("renamed to `{name}`: {why}")));
        }
    }
    for (name, what) in renamed {
        holds.note(&name, what);
    }
}

/// Tensors that are one and the same: noted, or all but the first left out with a record in the metadata.
fn shared(holds: &mut Holds, context: &Context<'_>) {
    let mut first: HashMap<&Tensor, usize> = HashMap::new();
    let mut again = Vec::new();
    for (position, found) in holds.tensors.iter().enumerate() {
        match first.get(&found.tensor) {
            Some(&earlier) => again.push((position, earlier)),
            None => drop(first.insert(&found.tensor, position)),
        }
    }
    let drop_them = context.options.shared == SharedTensors::Once;
    for &(position, earlier) in &again {
        let (name, kept) = (
            holds.tensors[position].name.clone(),
            holds.tensors[earlier].name.clone(),
        );
        if drop_them {
            holds.note(
                &name,
                format!("the same tensor as `{kept}`: written once, recorded in the metadata"),
            );
            holds.metadata.insert(name, kept);
        } else {
            holds.note(&name, format!("the same tensor as `{kept}`: written again"));
        }
    }
    if drop_them {
        let gone: HashSet<usize> = again.into_iter().map(|(position, _)| position).collect();
        let mut position = 0;
        holds.tensors.retain(|_| {
            position += 1;
            !gone.contains(&(position - 1))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_counted_on() {
        let mut names = Names::default();
        names.take("a~3");
        let taken: Vec<_> = ["a", "a", "a", "b", "a~3"]
            .map(|name| names.take(name))
            .into();
        assert_eq!(taken, ["a", "a~2", "a~4", "b", "a~3~2"]);
        // From the start each time, this would take 45 billion steps.
        let last = (0..300_000).map(|_| names.take("c")).last();
        assert_eq!(last.as_deref(), Some("c~300000"));
    }
}
