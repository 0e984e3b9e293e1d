//! ONNX models as a source: the initialisers of the graph and of the graphs within it, as they lie in the file.
//! Sparse ones are made dense; integers of four and two bits become bytes. Constants of nodes are no initialisers.
//!
//! Nothing but places is kept of tensors. Those of a graph within a node (a branch of `If`, the body of `Loop`) are named
//! `node/attribute/tensor`. Source: onnx/onnx.proto. The wire format is in `wire`, typed numbers in `values`,
//! data in other files in `external`.

mod external;
mod sparse;
mod values;
mod wire;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use safelight_format::{TensorSpec, shown};
use safelight_store::ReadAt;

use crate::error::ConvertError;
use crate::input::Input;
use crate::source::{Contents, LimitName, Limits, Note, Source, skip};
use external::{External, Folder, Outside};
use sparse::Sparse;
use values::{DOUBLES, FLOATS, INT32S, INT64S, Kind, Numbers, UINT64S, Unpack, kind};
use wire::{Run, Value, Wire};

/// Graphs within graphs: each level is a call.
const DEPTH_MAX: u32 = 64;

/// More dimensions nobody has.
const RANK_MAX: u64 = 64;

/// Names and short texts may be this long.
const TEXT_BYTES_MAX: u64 = 64 * 1024;

/// Operators of these are ONNX's own.
const STANDARD_DOMAINS: [&str; 4] = ["", "ai.onnx", "ai.onnx.ml", "ai.onnx.training"];

/// The fields of a model that can come before its graph.
const MODEL_FIELDS: [u64; 11] = [1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25];

/// Whether a file is an ONNX model: protobuf has no magic number, so it must be sound up to a graph, and have a version.
pub(crate) fn is_onnx(file: &dyn ReadAt) -> bool {
    let Ok(byte_count) = file.byte_count() else {
        return false;
    };
    let mut version = false;
    let mut at = 0;
    for _ in 0..1000 {
        let mut start = [0; 32];
        let Ok(len) = crate::bytes::read_up_to(file, &mut start, at) else {
            return false;
        };
        let Some(field) = plain_field(&start[..len]) else {
            return false;
        };
        match field {
            (1, 0, number, _) if (1..=1000).contains(&number) => version = true,
            (7, 2, graph_bytes, head) => {
                // A graph's fields are all messages or texts; 0 bytes are no graph.
                let first = start.get(head as usize).copied().unwrap_or(0);
                return version
                    && graph_bytes > 0
                    && matches!(first & 7, 2)
                    && matches!(first >> 3, 1 | 2 | 5 | 10..=15);
            }
            (5, 0, ..) => {}
            (number, 2, len, _) if MODEL_FIELDS.contains(&number) && len < byte_count => {}
            _ => return false,
        }
        let (_, wire, value, head) = field;
        let len = if wire == 2 {
            head.checked_add(value)
        } else {
            Some(head)
        };
        match len.and_then(|len| at.checked_add(len)) {
            Some(next) if next < byte_count => at = next,
            _ => return false,
        }
    }
    false
}

/// A field's number, wire type, value or length, and where its content begins.
fn plain_field(bytes: &[u8]) -> Option<(u64, u64, u64, u64)> {
    let varint = |at: usize| {
        let mut number = 0u64;
        for (position, &byte) in bytes.get(at..)?.iter().enumerate().take(9) {
            number |= u64::from(byte & 0x7f) << (7 * position);
            if byte < 0x80 {
                return Some((number, at + position + 1));
            }
        }
        None
    };
    let (key, at) = varint(0)?;
    let (value, at) = varint(at)?;
    Some((key >> 3, key & 7, value, at as u64))
}

/// The initialisers of an ONNX model.
pub struct OnnxSource {
    input: Input<'static>,
    contents: Contents,
    stored: Vec<Stored>,
}

/// How and where a tensor's numbers lie.
struct Stored {
    kind: Kind,
    elements: u64,
    place: Place,
}

enum Place {
    /// Its bytes, in the model.
    Raw(Run),
    /// Its bytes, in another file.
    Outside(Outside),
    /// Numbers of protobuf's kinds.
    Numbers(Vec<Numbers>),
    /// Those that are not zero, and where.
    Sparse(Box<Sparse>),
}

impl Stored {
    /// Hands the numbers of tensor `name` on, as bytes; not those of a sparse tensor, which has a shape to follow.
    fn read(
        &self,
        input: &Input,
        name: &str,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let (kind, left) = (self.kind, self.elements);
        let mut unpack = Unpack { kind, left };
        let mut pass = |piece: &mut [u8]| unpack.pass(piece, out);
        match &self.place {
            Place::Raw(run) => input.pieces(run.at, run.len, 8, &mut pass),
            Place::Outside(outside) => {
                let input = Input::open(&outside.path, "ONNX external data")?;
                let len = kind.stored_bytes(left).unwrap_or(0);
                input.pieces(outside.offset, len, 8, &mut pass)
            }
            Place::Numbers(runs) => values::read(input, name, kind, left, runs, out),
            Place::Sparse(_) => unreachable!("parts of sparse tensors are not sparse"),
        }
    }

    /// All bytes of a part of a sparse tensor.
    fn all(&self, input: &Input, name: &str) -> Result<Vec<u8>, ConvertError> {
        let mut bytes = Vec::new();
        self.read(input, name, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }
}

impl OnnxSource {
    /// Opens a model and reads all but its tensors. Data in other files is found in the model's own folder only.
    ///
    /// # Errors
    /// What is wrong with the file, or what of it safetensors cannot hold.
    pub fn open(path: &Path, limits: &Limits) -> Result<OnnxSource, ConvertError> {
        OnnxSource::open_with(path, limits, false)
    }

    /// As [`OnnxSource::open`], from anything that can be read at any position; `label` is for messages. Data in other
    /// files is refused.
    ///
    /// # Errors
    /// As [`OnnxSource::open`].
    pub fn from_reader(
        label: &str,
        reader: Box<dyn ReadAt>,
        limits: &Limits,
    ) -> Result<OnnxSource, ConvertError> {
        OnnxSource::read_from(Input::new(label, reader, "ONNX")?, None, limits)
    }

    /// As [`OnnxSource::open`], leaving out tensors that nothing here reads if `skips`.
    pub(crate) fn open_with(
        path: &Path,
        limits: &Limits,
        skips: bool,
    ) -> Result<OnnxSource, ConvertError> {
        let folder = Folder::of(path);
        let input = Input::open(path, "ONNX")?.skipping(skips);
        OnnxSource::read_from(input, Some(&folder), limits)
    }

    /// Data in other files is found in `folder`, if there is one.
    pub(crate) fn read_from(
        input: Input<'static>,
        folder: Option<&Folder>,
        limits: &Limits,
    ) -> Result<OnnxSource, ConvertError> {
        let mut model = Model::new(&input, folder, limits);
        model.model()?;
        let stored = model.stored;
        let contents = Contents {
            label: input.label.clone(),
            tensors: model.tensors,
            metadata: model.metadata,
            notes: model.notes,
            skipped: model.skipped,
            ..Contents::default()
        };
        Ok(OnnxSource {
            input,
            contents,
            stored,
        })
    }
}

impl Source for OnnxSource {
    fn contents(&self) -> &Contents {
        &self.contents
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let (tensor, stored) = (&self.tensors()[index], &self.stored[index]);
        let Place::Sparse(sparse) = &stored.place else {
            return stored.read(&self.input, &tensor.name, out);
        };
        let size = (tensor.dtype.bits() / 8) as usize;
        sparse.read(&self.input, &tensor.name, &tensor.shape, size, out)
    }
}

/// A tensor's message, taken apart.
#[derive(Default)]
struct Tensor {
    name: Option<Run>,
    shape: Vec<u64>,
    kind_id: u64,
    raw: Option<Run>,
    /// By field; only one should have any.
    numbers: Vec<(u64, Vec<Numbers>)>,
    external: External,
    is_external: bool,
    is_segment: bool,
}

/// Collects what a model has.
struct Model<'a> {
    wire: Wire<'a>,
    input: &'a Input<'a>,
    folder: Option<&'a Folder>,
    limits: &'a Limits,
    kept_bytes: u64,
    constants: u64,
    names: HashSet<String>,
    tensors: Vec<TensorSpec>,
    stored: Vec<Stored>,
    metadata: BTreeMap<String, String>,
    notes: Vec<Note>,
    skipped: Vec<Note>,
    /// Kept instead of looking for files, if only what the model asks for is wanted.
    survey: Option<Survey>,
}

/// What an ONNX model asks for beyond itself.
#[derive(Default)]
pub(crate) struct Survey {
    /// The files that its tensors are said to lie in, as it names them; `true` if that is a place outside of its own folder.
    pub(crate) files: BTreeMap<String, bool>,
    /// Operators that ONNX itself does not have: domain and name.
    pub(crate) operators: BTreeSet<(String, String)>,
}

/// Reads a model for what it asks for: no other file is looked for or opened.
///
/// # Errors
/// As [`OnnxSource::open`], but for what is wrong with other files.
pub(crate) fn survey(
    label: &str,
    bytes: &dyn ReadAt,
    limits: &Limits,
) -> Result<Survey, ConvertError> {
    let input = Input::borrowing(label, bytes, "ONNX")?;
    let mut model = Model::new(&input, None, limits);
    model.survey = Some(Survey::default());
    model.model()?;
    Ok(model.survey.unwrap_or_default())
}

impl<'a> Model<'a> {
    fn new(input: &'a Input<'a>, folder: Option<&'a Folder>, limits: &'a Limits) -> Model<'a> {
        Model {
            wire: Wire::new(input),
            input,
            folder,
            limits,
            kept_bytes: 0,
            constants: 0,
            names: HashSet::new(),
            tensors: Vec::new(),
            stored: Vec::new(),
            metadata: BTreeMap::new(),
            notes: Vec::new(),
            skipped: Vec::new(),
            survey: None,
        }
    }
}

impl Model<'_> {
    /// Counts what is kept in memory.
    fn keep(&mut self, bytes: u64) -> Result<(), ConvertError> {
        self.kept_bytes = self.kept_bytes.saturating_add(bytes);
        let limit = self.limits.bound(LimitName::Memory);
        self.input
            .limited("", "bytes of names and places", self.kept_bytes, limit)
    }

    fn text(&mut self, run: Run) -> Result<Option<String>, ConvertError> {
        self.keep(run.len.min(TEXT_BYTES_MAX) + 128)?;
        let bytes = self.wire.bytes(run, TEXT_BYTES_MAX)?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
    }

    /// A name that tensors are told apart by.
    fn name(&mut self, run: Run) -> Result<String, ConvertError> {
        self.input
            .limited("", "bytes in a name", run.len, TEXT_BYTES_MAX)?;
        self.keep(2 * run.len + 128)?;
        let bytes = self.wire.bytes(run, TEXT_BYTES_MAX)?.unwrap_or_default();
        match std::str::from_utf8(bytes) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => {
                let problem = format!("the name at byte {} is not UTF-8", run.at);
                Err(self.input.malformed("", problem))
            }
        }
    }

    /// A text of the model for the metadata.
    fn describe(&mut self, key: &str, value: Value) -> Result<(), ConvertError> {
        let text = match value {
            Value::Varint(number) => Some((number as i64).to_string()),
            Value::Bytes(run) => self.text(run)?,
            Value::Fixed(_) => return Ok(()),
        };
        match text {
            Some(text) if !text.is_empty() => drop(self.metadata.insert(key.to_owned(), text)),
            Some(_) => {}
            None => self.note(key, "dropped: a text too long for a header")?,
        }
        Ok(())
    }

    fn note(&mut self, at: &str, what: &str) -> Result<(), ConvertError> {
        self.keep((at.len() + what.len()) as u64 + 64)?;
        self.notes.push(Note::new(at, what));
        Ok(())
    }

    fn model(&mut self) -> Result<(), ConvertError> {
        let mut graph = None;
        let (mut training, mut functions) = (0u64, 0u64);
        let mut at = 0;
        while let Some((field, next)) = self.wire.field(at, self.input.byte_count)? {
            match field.number {
                1 => self.describe("onnx.ir_version", field.value)?,
                2 => self.describe("onnx.producer_name", field.value)?,
                3 => self.describe("onnx.producer_version", field.value)?,
                4 => self.describe("onnx.domain", field.value)?,
                5 => self.describe("onnx.model_version", field.value)?,
                6 => self.describe("onnx.doc_string", field.value)?,
                7 => {
                    let run = field.bytes(&self.wire)?;
                    if graph.replace(run).is_some() {
                        return Err(self.input.malformed("", "two graphs in one model"));
                    }
                }
                14 => self.property(field.bytes(&self.wire)?)?,
                20 => training += 1,
                25 => functions += 1,
                _ => {}
            }
            at = next;
        }
        let Some(graph) = graph else {
            return Err(self.input.malformed("", "no graph in the model"));
        };
        self.graph("", graph, 0)?;
        if training > 0 {
            self.note("training_info", "dropped: graphs and tensors for training")?;
        }
        if functions > 0 {
            let what = format!("dropped: {functions} functions, which have no initialisers");
            self.note("functions", &what)?;
        }
        if self.constants > 0 {
            let what = format!(
                "dropped: the values of {} constant nodes, which are no initialisers",
                self.constants
            );
            self.note("Constant", &what)?;
        }
        Ok(())
    }

    /// A key and a value.
    fn pair(&mut self, run: Run) -> Result<(String, Option<String>), ConvertError> {
        let (mut key, mut value) = (String::new(), Some(String::new()));
        let mut at = run.at;
        while let Some((field, next)) = self.wire.field(at, run.end())? {
            match field.number {
                1 => key = self.name(field.bytes(&self.wire)?)?,
                2 => value = self.text(field.bytes(&self.wire)?)?,
                _ => {}
            }
            at = next;
        }
        Ok((key, value))
    }

    fn property(&mut self, run: Run) -> Result<(), ConvertError> {
        let (key, value) = self.pair(run)?;
        match value {
            Some(value) => drop(self.metadata.insert(key, value)),
            None => self.note(&key, "dropped: a text too long for a header")?,
        }
        Ok(())
    }

    /// All initialisers of a graph whose names begin with `prefix`, and of those within.
    fn graph(&mut self, prefix: &str, run: Run, depth: u32) -> Result<(), ConvertError> {
        let limit = self
            .limits
            .bound(LimitName::Depth)
            .and(u64::from(DEPTH_MAX));
        let what = "graphs within each other";
        self.input.limited(prefix, what, u64::from(depth), limit)?;
        let mut node = 0;
        let mut at = run.at;
        while let Some((field, next)) = self.wire.field(at, run.end())? {
            match field.number {
                1 => {
                    self.node(prefix, field.bytes(&self.wire)?, node, depth)?;
                    node += 1;
                }
                2 if depth == 0 => self.describe("onnx.graph.name", field.value)?,
                10 if depth == 0 => self.describe("onnx.graph.doc_string", field.value)?,
                5 => {
                    let added = self.initializer(prefix, field.bytes(&self.wire)?);
                    self.or_skip(added)?;
                }
                15 => {
                    let added = self.sparse(prefix, field.bytes(&self.wire)?);
                    self.or_skip(added)?;
                }
                16 if depth == 0 => self.property(field.bytes(&self.wire)?)?,
                _ => {}
            }
            at = next;
        }
        Ok(())
    }

    /// Leaves a tensor out, if that was asked for and nothing else is wrong.
    fn or_skip(&mut self, added: Result<(), ConvertError>) -> Result<(), ConvertError> {
        match added {
            Err(error) if self.input.skips => skip(error, &mut self.notes, &mut self.skipped),
            added => added,
        }
    }

    /// A sparse tensor: named as its values are.
    fn sparse(&mut self, prefix: &str, run: Run) -> Result<(), ConvertError> {
        let (mut values, mut places) = (Tensor::default(), Tensor::default());
        let mut shape = Vec::new();
        let mut at = run.at;
        while let Some((field, next)) = self.wire.field(at, run.end())? {
            match field.number {
                1 => values = self.tensor(field.bytes(&self.wire)?)?,
                2 => places = self.tensor(field.bytes(&self.wire)?)?,
                3 => self.dims(field.value, &mut shape)?,
                _ => {}
            }
            at = next;
        }
        let name = values
            .name
            .map_or(Ok(String::new()), |run| self.name(run))?;
        let name = format!("{prefix}{name}");
        let elements = self.elements(&name, &shape)?;
        let input = self.input;
        let Some(values) = self.stored(&name, &values)? else {
            return self.note(&name, "dropped: a sparse array of texts");
        };
        let rank = shape.len() as u64;
        let by_dimension = places.shape.len() == 2;
        let count = values.elements;
        let expected = if by_dimension {
            count.saturating_mul(rank)
        } else {
            count
        };
        let Some(places) = self.stored(&name, &places)? else {
            return Err(input.malformed(name, "places that are texts"));
        };
        if places.kind.name != "INT64" || places.elements != expected || rank == 0 {
            let problem = format!(
                "{} places of type {} for {count} values in {rank} dimensions",
                places.elements, places.kind.name
            );
            return Err(input.malformed(name, problem));
        }
        let (kind, dtype) = (values.kind, values.kind.dtype);
        if dtype.bits() < 8 {
            let what = format!("is a sparse tensor of {}; make it dense", kind.name);
            return Err(input.unsupported(name, what));
        }
        let size = dtype.bits() / 8;
        let limit = self.limits.bound(LimitName::Memory);
        let zeros = elements.saturating_sub(count).saturating_mul(size);
        input.limited(&name, "bytes of zeros in a sparse tensor", zeros, limit)?;
        let parts = count.saturating_mul(size) + expected.saturating_mul(16);
        input.limited(&name, "bytes of a sparse tensor's parts", parts, limit)?;
        self.note(&name, "a sparse tensor, made dense")?;
        let sparse = Sparse {
            values,
            places,
            by_dimension,
        };
        let stored = Stored {
            kind,
            elements,
            place: Place::Sparse(Box::new(sparse)),
        };
        self.add(name, shape, stored)
    }

    /// Looks for graphs within node number `index` of its graph.
    fn node(&mut self, prefix: &str, run: Run, index: u64, depth: u32) -> Result<(), ConvertError> {
        let (mut name, mut kind, mut domain) = (None, None, None);
        let mut attributes = Vec::new();
        let mut at = run.at;
        while let Some((field, next)) = self.wire.field(at, run.end())? {
            match field.number {
                3 => name = Some(field.bytes(&self.wire)?),
                4 => kind = Some(field.bytes(&self.wire)?),
                7 => domain = Some(field.bytes(&self.wire)?),
                5 => {
                    let attribute = field.bytes(&self.wire)?;
                    self.attribute(attribute, &mut attributes)?;
                }
                _ => {}
            }
            at = next;
        }
        let kind = kind.map_or(Ok(String::new()), |run| self.name(run))?;
        self.constants += u64::from(kind == "Constant");
        if let (Some(domain), true) = (domain, self.survey.is_some()) {
            let domain = self.name(domain)?;
            if let Some(survey) = &mut self.survey
                && !STANDARD_DOMAINS.contains(&domain.as_str())
            {
                survey.operators.insert((domain, kind.clone()));
            }
        }
        if attributes.is_empty() {
            return Ok(());
        }
        let name = name.map_or(Ok(String::new()), |run| self.name(run))?;
        let name = if name.is_empty() {
            format!("{kind}_{index}")
        } else {
            name
        };
        for (attribute, graph) in attributes {
            let prefix = format!("{prefix}{name}/{attribute}/");
            self.keep(prefix.len() as u64)?;
            self.input.limited(
                &name,
                "bytes in a name",
                prefix.len() as u64,
                TEXT_BYTES_MAX,
            )?;
            self.graph(&prefix, graph, depth + 1)?;
        }
        Ok(())
    }

    /// Adds the graphs of an attribute, with its name.
    fn attribute(&mut self, run: Run, graphs: &mut Vec<(String, Run)>) -> Result<(), ConvertError> {
        let mut name = None;
        let mut found = Vec::new();
        let mut at = run.at;
        while let Some((field, next)) = self.wire.field(at, run.end())? {
            match field.number {
                1 => name = Some(field.bytes(&self.wire)?),
                6 | 11 => {
                    self.keep(32)?;
                    found.push((field.number, field.bytes(&self.wire)?));
                }
                _ => {}
            }
            at = next;
        }
        if found.is_empty() {
            return Ok(());
        }
        let name = name.map_or(Ok(String::new()), |run| self.name(run))?;
        for (position, (number, graph)) in found.into_iter().enumerate() {
            let one = number == 6;
            let name = if one {
                name.clone()
            } else {
                format!("{name}.{position}")
            };
            self.keep(name.len() as u64 + 64)?;
            graphs.push((name, graph));
        }
        Ok(())
    }

    /// A tensor's message.
    fn tensor(&mut self, run: Run) -> Result<Tensor, ConvertError> {
        let mut tensor = Tensor::default();
        let mut at = run.at;
        while let Some((field, next)) = self.wire.field(at, run.end())? {
            match field.number {
                1 => self.dims(field.value, &mut tensor.shape)?,
                2 => tensor.kind_id = field.varint(&self.wire)?,
                3 => tensor.is_segment = true,
                FLOATS | INT32S | INT64S | DOUBLES | UINT64S => {
                    let numbers = &mut tensor.numbers;
                    let found = numbers
                        .iter()
                        .position(|(number, _)| *number == field.number);
                    let found = found.unwrap_or_else(|| {
                        numbers.push((field.number, Vec::new()));
                        numbers.len() - 1
                    });
                    let before = numbers[found].1.len();
                    values::add(&mut numbers[found].1, field.value, field.at, next);
                    let more = (numbers[found].1.len() - before) as u64;
                    self.keep(more * 64)?;
                }
                8 => tensor.name = Some(field.bytes(&self.wire)?),
                9 => tensor.raw = Some(field.bytes(&self.wire)?),
                13 => {
                    let (key, value) = self.pair(field.bytes(&self.wire)?)?;
                    match key.as_str() {
                        "location" => tensor.external.location = value,
                        "offset" => tensor.external.offset = value,
                        "length" => tensor.external.length = value,
                        _ => {}
                    }
                }
                14 => tensor.is_external = field.varint(&self.wire)? == 1,
                _ => {}
            }
            at = next;
        }
        Ok(tensor)
    }

    /// A dimension, or several packed.
    fn dims(&mut self, value: Value, shape: &mut Vec<u64>) -> Result<(), ConvertError> {
        let limited =
            |input: &Input, rank: usize| input.limited("", "dimensions", rank as u64, RANK_MAX);
        match value {
            Value::Varint(dim) => shape.push(dim),
            Value::Bytes(run) => {
                let mut at = run.at;
                while at < run.end() {
                    let (dim, next) = self.wire.varint(at, run.end())?;
                    shape.push(dim);
                    limited(self.input, shape.len())?;
                    at = next;
                }
            }
            Value::Fixed(run) => {
                let problem = format!("the dimension at byte {} is no whole number", run.at);
                return Err(self.input.malformed("", problem));
            }
        }
        limited(self.input, shape.len())
    }

    fn initializer(&mut self, prefix: &str, run: Run) -> Result<(), ConvertError> {
        let tensor = self.tensor(run)?;
        let name = tensor
            .name
            .map_or(Ok(String::new()), |run| self.name(run))?;
        let name = format!("{prefix}{name}");
        match self.stored(&name, &tensor)? {
            Some(stored) => self.add(name, tensor.shape, stored),
            None => self.note(&name, "dropped: an array of texts (STRING)"),
        }
    }

    /// How many elements a shape has.
    fn elements(&self, name: &str, shape: &[u64]) -> Result<u64, ConvertError> {
        if shape.iter().any(|&dim| dim > i64::MAX as u64) {
            let shape: Vec<_> = shape.iter().map(|&dim| dim as i64).collect();
            let problem = format!("negative dimensions: {shape:?}");
            return Err(self.input.malformed(name, problem));
        }
        let product = |all: u64, &dim: &u64| all.checked_mul(dim);
        let elements = shape.iter().try_fold(1u64, product);
        // In 64 bits after unpacking, too.
        match elements.filter(|elements| elements.checked_mul(64).is_some()) {
            Some(elements) => Ok(elements),
            None => {
                let problem = format!("shape {shape:?} has no size in 64 bits");
                Err(self.input.malformed(name, problem))
            }
        }
    }

    /// What a tensor's message holds; `None` if it is texts.
    fn stored(&mut self, name: &str, tensor: &Tensor) -> Result<Option<Stored>, ConvertError> {
        self.keep(2 * name.len() as u64 + 256)?;
        if tensor.kind_id == 8 {
            return Ok(None);
        }
        let shape = &tensor.shape;
        let elements = self.elements(name, shape)?;
        let Some(kind) = kind(tensor.kind_id) else {
            let what = match tensor.kind_id {
                15 => "is COMPLEX128, which safetensors does not have".to_owned(),
                id => format!("has ONNX's data type {id}, which is not known here"),
            };
            return Err(self.input.unsupported(name, what));
        };
        if tensor.is_segment {
            let what = "is stored in segments, which no runtime reads";
            return Err(self.input.unsupported(name, what));
        }
        if kind.dtype.bits() < 8 && elements % 2 != 0 {
            let what = format!(
                "has {elements} elements of {}, which fill no whole byte",
                kind.name
            );
            return Err(self.input.unsupported(name, what));
        }
        let place = self.place(name, kind, elements, tensor)?;
        if kind.is_packed() {
            let what = format!(
                "{} elements of {} bits became bytes ({})",
                kind.name, kind.bits, kind.dtype
            );
            self.note(name, &what)?;
        }
        Ok(Some(Stored {
            kind,
            elements,
            place,
        }))
    }

    /// Adds a tensor.
    fn add(&mut self, name: String, shape: Vec<u64>, stored: Stored) -> Result<(), ConvertError> {
        if !self.names.insert(name.clone()) {
            return Err(self
                .input
                .malformed(name, "two initialisers have this name"));
        }
        let count = self.tensors.len() as u64 + 1;
        let limit = self.limits.bound(LimitName::Tensors);
        self.input.limited("", "tensors", count, limit)?;
        let dtype = stored.kind.dtype;
        self.tensors.push(TensorSpec { name, dtype, shape });
        self.stored.push(stored);
        Ok(())
    }

    /// Finds a tensor's numbers.
    fn place(
        &mut self,
        name: &str,
        kind: Kind,
        elements: u64,
        tensor: &Tensor,
    ) -> Result<Place, ConvertError> {
        let byte_count = kind.stored_bytes(elements).unwrap_or(u64::MAX);
        let mut fields = tensor.numbers.iter().filter(|(_, runs)| !runs.is_empty());
        let numbers = fields.next();
        let sources = usize::from(tensor.raw.is_some_and(|raw| raw.len > 0))
            + usize::from(numbers.is_some())
            + usize::from(tensor.is_external);
        if sources > 1 || fields.next().is_some() {
            return Err(self
                .input
                .malformed(name, "its data is in several fields at once"));
        }
        if let (true, Some(survey)) = (tensor.is_external, &mut self.survey) {
            let location = tensor.external.location.clone().unwrap_or_default();
            let is_outside = external::leaves_folder(&location);
            survey.files.insert(location, is_outside);
            return Ok(Place::Raw(Run { at: 0, len: 0 }));
        }
        if tensor.is_external {
            let found = tensor
                .external
                .find(self.input, self.folder, name, byte_count);
            return found.map(Place::Outside);
        }
        let Some((number, runs)) = numbers else {
            let raw = tensor.raw.unwrap_or(Run { at: 0, len: 0 });
            if raw.len != byte_count {
                let problem = format!(
                    "{} bytes, but {elements} elements of {} have {byte_count}; shape {}",
                    raw.len,
                    kind.name,
                    shown(&format!("{:?}", tensor.shape))
                );
                return Err(self.input.malformed(name, problem));
            }
            return Ok(Place::Raw(raw));
        };
        if *number != kind.field {
            let problem = format!(
                "field {number} holds its numbers, but those of {} are in field {}",
                kind.name, kind.field
            );
            return Err(self.input.malformed(name, problem));
        }
        // Each number has a byte at least, which bounds what reading can give.
        let there = runs
            .iter()
            .map(|numbers| numbers.run.len)
            .fold(0, u64::saturating_add);
        if there < elements && kind.bits >= 8 {
            let problem = format!("{there} bytes of numbers cannot be {elements} elements");
            return Err(self.input.malformed(name, problem));
        }
        Ok(Place::Numbers(runs.clone()))
    }
}

#[cfg(test)]
mod tests;
