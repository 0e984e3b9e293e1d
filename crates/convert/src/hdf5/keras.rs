//! Keras' files: `.keras`, a zip archive with HDF5 weights and descriptions in JSON; and what Keras says of a model in
//! attributes of its `.h5` files.
//!
//! Tensors keep their paths as names. The metadata has the descriptions, and under `keras.weights` the names in the order in
//! which Keras sets the weights. Source: Keras 3.15, `saving/saving_lib.py`, `legacy/saving/legacy_h5_format.py`.

use std::collections::{BTreeMap, HashSet};
use std::io;

use safelight_store::ReadAt;

use super::attributes::Attributes;
use super::objects::{File, Message};
use crate::bytes::{Memory, Part};
use crate::error::ConvertError;
use crate::source::{LimitName, Limits, Note, PIECE_BYTES};
use crate::zip::{Archive, Member, Method};

/// The archive's member with the weights.
const WEIGHTS: &str = "model.weights.h5";

/// Descriptions are kept up to this size.
const TEXT_BYTES_MAX: u64 = 64 * 1024;

/// Members with descriptions, and their keys in the metadata.
const MEMBERS: [(&str, &str); 2] = [
    ("config.json", "keras.config"),
    ("metadata.json", "keras.metadata"),
];

/// Attributes with descriptions, and their keys in the metadata.
const ATTRIBUTES: [(&str, &str); 4] = [
    ("model_config", "keras.config"),
    ("training_config", "keras.training_config"),
    ("keras_version", "keras.version"),
    ("backend", "keras.backend"),
];

/// Groups deeper than this have no attributes of Keras' that matter here.
const DEPTH_MAX: u32 = 2;

/// Whether a zip archive is a model that Keras 3 saved.
pub(crate) fn is_keras(file: &dyn ReadAt) -> bool {
    let Ok(archive) = Archive::read(file) else {
        return false; // the next reader says why
    };
    archive.members.iter().any(|member| member.name == WEIGHTS)
}

/// What an archive holds.
pub(super) struct Opened {
    /// The weights: where they lie in the archive, or inflated.
    pub(super) weights: Box<dyn ReadAt>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) notes: Vec<Note>,
}

/// Opens an archive. Its weights are read once as a whole, for their checksum.
///
/// # Errors
/// What is wrong with the archive, or weights that inflate to more than the limits allow.
pub(super) fn open(
    label: &str,
    file: Box<dyn ReadAt>,
    limits: &Limits,
) -> Result<Opened, ConvertError> {
    let failed = |member: &str, error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            ConvertError::malformed(label, "Keras", member, error.to_string())
        }
        _ => ConvertError::Io {
            doing: "read",
            file: label.to_owned(),
            error,
        },
    };
    let archive = Archive::read(&*file).map_err(|error| failed("", error))?;
    if let Some(flaw) = archive.flaws.first() {
        let problem = flaw.to_string();
        return Err(ConvertError::malformed(label, "zip", &flaw.member, problem));
    }
    let Some(weights) = archive.members.iter().find(|member| member.name == WEIGHTS) else {
        let what = "a zip archive without `model.weights.h5`: nothing that Keras 3 saved";
        return Err(ConvertError::unsupported(label, "", what));
    };
    let mut metadata = BTreeMap::new();
    let mut notes = Vec::new();
    for member in &archive.members {
        let known = MEMBERS.iter().find(|(name, _)| *name == member.name);
        match known {
            Some((_, key)) if member.content_bytes <= TEXT_BYTES_MAX => {
                let text = read_all(&*file, member).map_err(|error| failed(&member.name, error))?;
                let text = String::from_utf8_lossy(&text).into_owned();
                metadata.insert((*key).to_owned(), text);
            }
            Some(_) => notes.push(Note::new(&member.name, "dropped: too long for a header")),
            None if member.name == WEIGHTS || member.name.ends_with('/') => {}
            None => notes.push(Note::new(&member.name, "dropped: no weights")),
        }
    }
    let limited = |what, value, name| {
        let bound = limits.bound(name);
        if value <= bound.most {
            return Ok(());
        }
        Err(ConvertError::limit(label, WEIGHTS, what, value, bound))
    };
    if weights.method == Method::Stored {
        let checked = weights.read(&*file, PIECE_BYTES, &mut |_| Ok(()));
        checked.map_err(|error| failed(WEIGHTS, error))?;
        let (at, len) = (weights.data_at, weights.stored_bytes);
        let weights = Box::new(Section { of: file, at, len });
        return Ok(Opened {
            weights,
            metadata,
            notes,
        });
    }
    let ratio = weights.content_bytes / weights.stored_bytes.max(1);
    limited("bytes for each compressed one", ratio, LimitName::Ratio)?;
    limited(
        "bytes of compressed weights",
        weights.content_bytes,
        LimitName::Memory,
    )?;
    let inflated = read_all(&*file, weights).map_err(|error| failed(WEIGHTS, error))?;
    Ok(Opened {
        weights: Box::new(Memory(inflated)),
        metadata,
        notes,
    })
}

fn read_all(file: &dyn ReadAt, member: &Member) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    member.read(file, PIECE_BYTES, &mut |piece| {
        content.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(content)
}

/// A part of a file, as if there were nothing else.
struct Section {
    of: Box<dyn ReadAt>,
    at: u64,
    len: u64,
}

impl ReadAt for Section {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let (of, at, len) = (&*self.of, self.at, self.len);
        Part { of, at, len }.read_at(buffer, offset)
    }

    fn byte_count(&self) -> io::Result<u64> {
        Ok(self.len)
    }
}

/// What the attributes of groups say, as far as the walk has come.
#[derive(Default)]
pub(super) struct Told {
    texts: BTreeMap<String, String>,
    notes: Vec<Note>,
    /// Groups of layers, in Keras' order: their path, and the layers' names.
    layers: Vec<(String, Vec<String>)>,
    /// Groups of weights: their path, and the weights' names.
    weights: BTreeMap<String, Vec<String>>,
}

impl Told {
    /// Looks at the attributes of a group at `path`, so many groups below the root.
    pub(super) fn group(
        &mut self,
        file: &mut File<'_>,
        path: &str,
        depth: u32,
        messages: &[Message],
    ) -> Result<(), ConvertError> {
        if depth > DEPTH_MAX {
            return Ok(());
        }
        let mut attributes = Attributes::of(file, messages)?;
        for (name, key) in ATTRIBUTES {
            match attributes.text(file, name)? {
                Some(text) if text.len() as u64 > TEXT_BYTES_MAX => {
                    let what = "dropped: an attribute too long for a header";
                    self.notes.push(Note::new(name, what));
                }
                Some(text) => drop(self.texts.entry(key.to_owned()).or_insert(text)),
                None => {}
            }
        }
        if let Some(names) = attributes.list(file, "layer_names")? {
            self.layers.push((path.to_owned(), names));
        }
        if let Some(names) = attributes.list(file, "weight_names")? {
            self.weights.insert(path.to_owned(), names);
        }
        Ok(())
    }

    /// Adds what was told to a source's metadata and notes; `names` are those of its tensors.
    pub(super) fn tell(
        mut self,
        names: &HashSet<String>,
        metadata: &mut BTreeMap<String, String>,
        notes: &mut Vec<Note>,
    ) {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        for (group, mut layers) in self.layers {
            layers.push("top_level_model_weights".into());
            for layer in layers {
                let path = joined(&group, &layer);
                let weights = self.weights.get(&path).map_or(&[][..], Vec::as_slice);
                for weight in weights {
                    let name = joined(&path, weight);
                    if !names.contains(&name) {
                        let what = "Keras lists this weight, but it is not there";
                        self.notes.push(Note::new(&name, what));
                    } else if seen.insert(name.clone()) {
                        order.push(name);
                    }
                }
            }
        }
        let text = serde_json::Value::from(order).to_string();
        if text.len() as u64 > 16 * TEXT_BYTES_MAX {
            let what = "dropped: the order of weights, too long for a header";
            self.notes.push(Note::new("weight_names", what));
        } else if !seen.is_empty() {
            self.texts.insert("keras.weights".into(), text);
        }
        for (key, text) in self.texts {
            metadata.entry(key).or_insert(text);
        }
        notes.append(&mut self.notes);
    }
}

/// A path below a group.
fn joined(group: &str, name: &str) -> String {
    match group {
        "" => name.to_owned(),
        group => format!("{group}/{name}"),
    }
}
