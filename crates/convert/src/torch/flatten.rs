//! Nested containers become names: `{"state_dict": {"a": …}, "optimizer": [{"b": …}]}` is `a` and `optimizer.0.b`.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Context;
use super::objects::{Meaning, Objects, Tensor, is_tensor};
use crate::error::ConvertError;
use crate::open::SharedTensors;
use crate::pickle::{Heap, Id, Node};
use crate::source::Note;

/// Notes beyond this many are counted only.
const NOTE_COUNT_MAX: usize = 1000;

/// Plain values that go into the metadata, at most, and the length of one.
const VALUE_COUNT_MAX: usize = 10_000;
const VALUE_BYTES_MAX: u64 = 4096;

/// What a pickle holds.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    pub(crate) tensors: Vec<Found>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) notes: Vec<Note>,
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
    let mut holds = Holds::default();
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
                limits.depth_max.into(),
            ));
        }
        if !holds_tensors.contains(id) {
            plain(objects, id, &name, depth, &mut holds);
            continue;
        }
        let children = match objects.meaning(id, &name)? {
            Meaning::Tensor(tensor) => {
                if holds.tensors.len() as u64 >= limits.tensor_count_max {
                    let count = limits.tensor_count_max;
                    return Err(objects.context.limit("", "tensors", count + 1, count));
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

/// Keys as text; of equal keys the last one counts, as in Python.
fn last_of_each(objects: &mut Objects<'_, '_, '_>, items: Vec<(Id, Id)>) -> Vec<(String, Id)> {
    let mut at: HashMap<String, usize> = HashMap::with_capacity(items.len());
    let mut list: Vec<(String, Id)> = Vec::with_capacity(items.len());
    for (key, value) in items {
        let key = match objects.key(key) {
            Some(key) => key,
            None => format!(
                "({})",
                crate::pickle::show(objects.heap, objects.input, key)
            ),
        };
        match at.get(&key) {
            Some(&position) => list[position].1 = value,
            None => {
                at.insert(key.clone(), list.len());
                list.push((key, value));
            }
        }
    }
    list
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
fn plain(objects: &mut Objects<'_, '_, '_>, id: Id, name: &str, depth: u32, holds: &mut Holds) {
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

/// Gives tensors whose names another one has, or which no file can hold, a name of their own.
fn unique_names(holds: &mut Holds) {
    let mut taken: HashSet<String> = HashSet::with_capacity(holds.tensors.len());
    let mut renamed = Vec::new();
    for found in &mut holds.tensors {
        if found.name.is_empty() {
            found.name = "tensor".into(); // the file is one tensor and nothing else
        }
        let is_reserved = found.name == "__metadata__";
        if is_reserved || taken.contains(&found.name) {
            let mut count = 2u64;
            let mut name = format!("{}~{count}", found.name);
            while taken.contains(&name) {
                count += 1;
                name = format!("{}~{count}", found.name);
            }
            let why = if is_reserved {
                "the format reserves its name"
            } else {
                "another tensor has its name"
            };
            renamed.push((
                std::mem::replace(&mut found.name, name.clone()),
                format!("renamed to `{name}`: {why}"),
            ));
        }
        taken.insert(found.name.clone());
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
