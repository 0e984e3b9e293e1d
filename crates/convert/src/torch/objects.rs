//! What a pickle's values mean: tensors, containers, and everything else.

use std::collections::HashMap;

use safelight_format::Dtype;

use super::Context;
use super::nested::{self, Nested};
use crate::error::ConvertError;
use crate::pickle::{
    Blob, Call, Coding, Heap, Id, Input, Node, Standing, is_nested_load, standing,
};

/// Names of tensors, keys and storages are never longer.
pub(crate) const NAME_BYTES_MAX: u64 = 64 * 1024;

/// More dimensions than torch and numpy have.
const RANK_MAX: usize = 64;

/// Wrappers around wrappers around a tensor, at most.
const WRAPPED_MAX: usize = 8;

/// Where a tensor's elements lie.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bytes {
    /// In a storage that the file names.
    Storage {
        key: String,
        /// Where the storage starts within the one that is in the file (legacy views).
        view_bytes: u64,
        /// How many bytes the pickle says it has.
        byte_count: u64,
    },
    /// In the pickle itself: numpy's arrays, and storages that plain pickles hold.
    Inline {
        blob: Blob,
        /// Latin-1 characters written as a text, if there is one.
        coding: Option<Coding>,
        /// Which of the bytes: the first and how many; `None` for all.
        range: Option<(u64, u64)>,
    },
}

/// A tensor as the pickle describes it; nothing of it is checked against the storage yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tensor {
    pub(crate) bytes: Bytes,
    pub(crate) dtype: Dtype,
    /// In elements of `dtype`.
    pub(crate) offset: u64,
    pub(crate) shape: Vec<u64>,
    /// In elements.
    pub(crate) strides: Vec<u64>,
    /// Whether its numbers are big-endian, whatever the file says.
    pub(crate) is_big_endian: bool,
    /// What torch put off doing to them.
    pub(crate) pending: Pending,
}

/// What torch does to a view's numbers only as they are read: `.conj()` and the imaginary part of that take no time there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Pending {
    /// Imaginary parts have the other sign.
    pub(crate) conjugate: bool,
    /// All numbers have the other sign.
    pub(crate) negate: bool,
}

/// What a value is.
#[derive(Debug)]
pub(crate) enum Meaning {
    Tensor(Tensor),
    /// Keys and values.
    Map(Vec<(Id, Id)>),
    List(Vec<Id>),
    /// A module that was pickled whole: the maps of its parameters, buffers and children.
    Module(Vec<Id>),
    /// Anything else, in words.
    Other(String),
}

/// Reads meanings.
pub(crate) struct Objects<'h, 'i, 'a> {
    pub(crate) heap: &'h Heap,
    pub(crate) input: &'i mut Input<'a>,
    pub(crate) context: &'h Context<'h>,
    is_torch_script: bool,
    /// Storages with files of their own, by where these begin.
    nested: HashMap<u64, Nested>,
}

/// Functions and classes that make a tensor, by name.
const TENSOR_MAKERS: &[&str] = &[
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
    "_rebuild_qtensor",
    "_rebuild_sparse_tensor",
    "_rebuild_sparse_csr_tensor",
    "_rebuild_meta_tensor_no_storage",
    "_rebuild_nested_tensor",
    "_rebuild_device_tensor_from_numpy",
    "_rebuild_device_tensor_from_cpu_tensor",
    "_rebuild_from_type",
    "_rebuild_from_type_v2",
    "Parameter",
    "Buffer",
    "_reconstruct",
    "_frombuffer",
];

/// Whether a value is a tensor, or would be if it could be read.
pub(crate) fn is_tensor(heap: &Heap, id: Id) -> bool {
    let Node::Call(call) = heap.node(id) else {
        return false;
    };
    heap.global(call.function).is_some_and(|(module, name)| {
        TENSOR_MAKERS.contains(&name) && standing(module, name) == Standing::Allowed
    })
}

impl<'h, 'i, 'a> Objects<'h, 'i, 'a> {
    /// The values of `heap`, which `input` holds.
    pub(crate) fn new(
        heap: &'h Heap,
        input: &'i mut Input<'a>,
        context: &'h Context<'h>,
        is_torch_script: bool,
    ) -> Objects<'h, 'i, 'a> {
        Objects {
            heap,
            input,
            context,
            is_torch_script,
            nested: HashMap::new(),
        }
    }
}

impl Objects<'_, '_, '_> {
    /// What the value is; `at` is its name in messages.
    ///
    /// # Errors
    /// A tensor that makes no sense or that nothing here can read.
    pub(crate) fn meaning(&mut self, id: Id, at: &str) -> Result<Meaning, ConvertError> {
        Ok(match self.heap.node(id) {
            Node::Dict(items) => Meaning::Map(pairs(items)),
            Node::List(elements) | Node::Set(elements) => Meaning::List(elements.clone()),
            Node::Tuple(elements) => Meaning::List(elements.to_vec()),
            Node::Call(_) if is_tensor(self.heap, id) => Meaning::Tensor(self.tensor(id, at, 0)?),
            Node::Call(call) => self.object(call),
            Node::Persistent(_) => Meaning::Other("a storage without a tensor".into()),
            Node::Global(_) => Meaning::Other(self.class_name(id)),
            Node::Outside => Meaning::Other("something outside of the file".into()),
            _ => Meaning::Other("a plain value".into()),
        })
    }

    /// A dict of some class, a module, or something to be dropped.
    fn object(&mut self, call: &Call) -> Meaning {
        let (module, name) = self.heap.global(call.function).unwrap_or_default();
        match (module, name) {
            (
                "collections" | "builtins" | "__builtin__",
                "OrderedDict" | "defaultdict" | "Counter" | "dict",
            )
            | (_, "AttributeDict") => {
                let mut items = self.initial_items(call);
                items.extend(pairs(&call.items));
                return Meaning::Map(items);
            }
            ("collections" | "builtins" | "__builtin__", "deque" | "list" | "set" | "tuple")
            | ("torch.jit._pickle", _) => {
                let first = self.heap.elements(call.arguments).and_then(<[Id]>::first);
                let first = first.and_then(|first| self.heap.elements(*first));
                let mut elements = first.unwrap_or_default().to_vec();
                elements.extend_from_slice(&call.elements);
                return Meaning::List(elements);
            }
            _ => {}
        }
        self.module_parts(call)
            .unwrap_or_else(|| Meaning::Other(self.class_name(call.function)))
    }

    /// A module's parameters, buffers and children, if the object is one.
    fn module_parts(&mut self, call: &Call) -> Option<Meaning> {
        let Node::Dict(items) = self.heap.node(call.state?) else {
            return None;
        };
        let items = pairs(items);
        let mut parts = Vec::new();
        for (key, value) in &items {
            let key = self.key(*key)?;
            if ["_parameters", "_buffers", "_modules"].contains(&key.as_str()) {
                parts.push(*value);
            }
        }
        if !parts.is_empty() {
            return Some(Meaning::Module(parts));
        }
        let (module, _) = self.heap.global(call.function)?;
        let is_script = self.is_torch_script && module.starts_with("__torch__");
        is_script.then_some(Meaning::Map(items))
    }

    /// `OrderedDict([(key, value), …])`, as Python 2 wrote them.
    fn initial_items(&self, call: &Call) -> Vec<(Id, Id)> {
        let arguments = self.heap.elements(call.arguments).unwrap_or_default();
        let items = |&id: &Id| match self.heap.node(id) {
            Node::Dict(items) => pairs(items),
            _ => {
                let elements = self.heap.elements(id).unwrap_or_default().iter();
                let pair = |&id: &Id| match self.heap.elements(id) {
                    Some(&[key, value]) => Some((key, value)),
                    _ => None,
                };
                elements.filter_map(pair).collect()
            }
        };
        arguments.iter().flat_map(items).collect()
    }

    fn class_name(&self, id: Id) -> String {
        match self.heap.global(id) {
            Some((module, name)) => format!("an object of `{module}.{name}`"),
            None => "an object of a computed class".into(),
        }
    }

    /// A key as a part of a name: texts and whole numbers.
    pub(crate) fn key(&mut self, id: Id) -> Option<String> {
        match self.heap.node(id) {
            Node::Int(number) => Some(number.to_string()),
            Node::Text(..) => self
                .heap
                .text(id, self.input, NAME_BYTES_MAX)
                .ok()
                .flatten(),
            _ => None,
        }
    }

    fn tensor(&mut self, id: Id, at: &str, wrapped: usize) -> Result<Tensor, ConvertError> {
        let strange = |what: &str| self.context.malformed(at, what);
        if wrapped > WRAPPED_MAX {
            return Err(strange("a tensor wrapped too often"));
        }
        let Node::Call(call) = self.heap.node(id) else {
            return Err(strange("no tensor where a parameter's data should be"));
        };
        if self
            .heap
            .global(call.function)
            .is_some_and(|(_, name)| name == "_reconstruct")
        {
            return self.numpy_array(call, at);
        }
        let Some(arguments) = self.heap.elements(call.arguments) else {
            return Err(strange("a tensor without arguments"));
        };
        self.tensor_of(call.function, arguments, at, wrapped)
    }

    /// `function(*arguments)`, where the function makes tensors.
    fn tensor_of(
        &mut self,
        function: Id,
        arguments: &[Id],
        at: &str,
        wrapped: usize,
    ) -> Result<Tensor, ConvertError> {
        let name = self.heap.global(function).map_or("", |(_, name)| name);
        match (name, arguments) {
            (
                "_rebuild_tensor" | "_rebuild_tensor_v2",
                [storage, offset, shape, strides, rest @ ..],
            ) => {
                let tensor = self.strided([*storage, *offset, *shape, *strides], None, at)?;
                self.with_pending(tensor, rest.get(2), at)
            }
            ("_rebuild_tensor_v3", [storage, offset, shape, strides, _, _, dtype, rest @ ..]) => {
                let tensor =
                    self.strided([*storage, *offset, *shape, *strides], Some(*dtype), at)?;
                self.with_pending(tensor, rest.first(), at)
            }
            (
                "_rebuild_parameter"
                | "_rebuild_parameter_with_state"
                | "Parameter"
                | "Buffer"
                | "_rebuild_device_tensor_from_cpu_tensor"
                | "_rebuild_device_tensor_from_numpy",
                [data, ..],
            ) => self.tensor(*data, at, wrapped + 1),
            ("_rebuild_from_type_v2" | "_rebuild_from_type", [function, _, arguments, ..]) => {
                let arguments = self.heap.elements(*arguments).unwrap_or_default();
                if wrapped > WRAPPED_MAX {
                    return Err(self.context.malformed(at, "a tensor wrapped too often"));
                }
                self.tensor_of(*function, arguments, at, wrapped + 1)
            }
            ("_frombuffer", [buffer, dtype, shape, order, ..]) => {
                let (dtype, is_big_endian) = self.numpy_dtype(*dtype, at)?;
                let shape = self.sizes(*shape, at)?;
                let fortran = self.key(*order).as_deref() == Some("F");
                self.inline(*buffer, (dtype, is_big_endian), shape, fortran, at)
            }
            (
                "_rebuild_qtensor"
                | "_rebuild_sparse_tensor"
                | "_rebuild_sparse_csr_tensor"
                | "_rebuild_meta_tensor_no_storage"
                | "_rebuild_nested_tensor",
                _,
            ) => {
                let kind = name.trim_start_matches("_rebuild_");
                let what = match kind {
                    "qtensor" => "a quantised tensor; dequantise it in PyTorch first",
                    "meta_tensor_no_storage" => "a tensor on the meta device, without any numbers",
                    "nested_tensor" => "a nested tensor, which safetensors cannot hold",
                    _ => "a sparse tensor; call `.to_dense()` in PyTorch first",
                };
                Err(ConvertError::unsupported(&self.context.label, at, what))
            }
            _ => {
                let what = format!(
                    "a tensor made by `{name}` with {} arguments",
                    arguments.len()
                );
                Err(self.context.malformed(at, what))
            }
        }
    }

    /// The tensor with what its `metadata`, torch's last argument, says of its numbers: the keys "conj" and "neg", whatever their
    /// values are.
    ///
    /// Source: PyTorch 2.x, `torch/csrc/jit/serialization/pickler.h` (`setTensorMetadata`).
    fn with_pending(
        &mut self,
        mut tensor: Tensor,
        metadata: Option<&Id>,
        at: &str,
    ) -> Result<Tensor, ConvertError> {
        let pairs = match metadata.map(|&id| self.heap.node(id)) {
            None | Some(Node::None) => return Ok(tensor),
            Some(Node::Dict(items)) => pairs(items),
            Some(_) => {
                return Err(self
                    .context
                    .malformed(at, "tensor metadata that is no dict"));
            }
        };
        for (key, _) in pairs {
            match self.key(key).as_deref() {
                Some("conj") => tensor.pending.conjugate = true,
                Some("neg") => tensor.pending.negate = true,
                key => {
                    let key = safelight_format::shown(key.unwrap_or("?")).to_string();
                    let what = format!(
                        "tensor metadata `{key}`, which nothing here knows; save a `.clone()` of it in PyTorch"
                    );
                    return Err(ConvertError::unsupported(&self.context.label, at, what));
                }
            }
        }
        let has_signs = match tensor.dtype {
            Dtype::C64 => true,
            Dtype::F16 | Dtype::Bf16 | Dtype::F32 | Dtype::F64 => !tensor.pending.conjugate,
            _ => tensor.pending == Pending::default(),
        };
        if has_signs {
            return Ok(tensor);
        }
        let what = format!(
            "a view of {} that is still to be conjugated or negated; call `.resolve_conj().resolve_neg()` in PyTorch first",
            tensor.dtype
        );
        Err(ConvertError::unsupported(&self.context.label, at, what))
    }

    fn strided(
        &mut self,
        [storage, offset, shape, strides]: [Id; 4],
        dtype: Option<Id>,
        at: &str,
    ) -> Result<Tensor, ConvertError> {
        let (bytes, storage_dtype) = self.storage(storage, at)?;
        let dtype = match dtype {
            Some(id) => {
                let name = self.heap.global(id).map_or("", |(_, name)| name);
                torch_dtype(name).ok_or_else(|| self.unreadable_dtype(name, at))?
            }
            None => storage_dtype?,
        };
        let offset = self.size(offset, at)?;
        let (mut shape, strides) = (self.sizes(shape, at)?, self.sizes(strides, at)?);
        if shape.len() != strides.len() {
            let what = format!("{} dimensions but {} strides", shape.len(), strides.len());
            return Err(self.context.malformed(at, what));
        }
        if dtype == Dtype::F4 {
            // Torch counts bytes of two numbers, safetensors counts numbers.
            let last = shape.last_mut().and_then(|last| {
                *last = last.checked_mul(2)?;
                Some(())
            });
            last.ok_or_else(|| {
                self.context
                    .malformed(at, "four-bit numbers without a dimension")
            })?;
        }
        Ok(Tensor {
            bytes,
            dtype,
            offset,
            shape,
            strides,
            is_big_endian: false,
            pending: Pending::default(),
        })
    }

    /// A storage and its dtype, or why that cannot be had.
    #[allow(clippy::type_complexity)]
    fn storage(
        &mut self,
        id: Id,
        at: &str,
    ) -> Result<(Bytes, Result<Dtype, ConvertError>), ConvertError> {
        let strange = |what| self.context.malformed(at, what);
        let Node::Persistent(id) = self.heap.node(id) else {
            if let Some(nested) = self.nested(id, at)? {
                return Ok(nested);
            }
            return Err(strange("a tensor whose storage is no persistent id"));
        };
        let Some(&[kind, class, key, _, count, ref view @ ..]) = self.heap.elements(*id) else {
            return Err(strange("a storage that is not described by five fields"));
        };
        if self.key(kind).as_deref() != Some("storage") {
            return Err(self
                .context
                .malformed(at, "a persistent id of an unknown kind"));
        }
        let Some(key) = self.key(key) else {
            return Err(self.context.malformed(at, "a storage whose key is no text"));
        };
        let class = self
            .heap
            .global(class)
            .map_or("", |(_, name)| name)
            .to_owned();
        let (element_bytes, dtype) = match storage_class(&class) {
            Some((bytes, Some(dtype))) => (bytes, Ok(dtype)),
            Some((bytes, None)) => (bytes, Err(self.unreadable_dtype(&class, at))),
            None => return Err(self.unreadable_dtype(&class, at)),
        };
        let too_large = || {
            self.context
                .malformed(at, "a storage of more than 2^64 bytes")
        };
        let count = self.size(count, at)?;
        let byte_count = count.checked_mul(element_bytes).ok_or_else(too_large)?;
        let mut storage = Bytes::Storage {
            key,
            view_bytes: 0,
            byte_count,
        };
        // Legacy: (key of the view, its start, its length), in elements.
        if let Some(&[_, start, len]) = view.first().and_then(|view| self.heap.elements(*view)) {
            let start = self.size(start, at)?.checked_mul(element_bytes);
            let len = self.size(len, at)?.checked_mul(element_bytes);
            let too_large = || {
                self.context
                    .malformed(at, "a storage of more than 2^64 bytes")
            };
            let (start, len) = (start.ok_or_else(too_large)?, len.ok_or_else(too_large)?);
            if start.checked_add(len).is_none_or(|end| end > byte_count) {
                return Err(self
                    .context
                    .malformed(at, "a view reaches beyond its storage"));
            }
            if let Bytes::Storage {
                view_bytes,
                byte_count,
                ..
            } = &mut storage
            {
                (*view_bytes, *byte_count) = (start, len);
            }
        }
        Ok((storage, dtype))
    }

    /// A storage that is a call of `torch.storage._load_from_bytes` with a file of its own: how `pickle.dump` writes tensors.
    #[allow(clippy::type_complexity)]
    fn nested(
        &mut self,
        id: Id,
        at: &str,
    ) -> Result<Option<(Bytes, Result<Dtype, ConvertError>)>, ConvertError> {
        let Node::Call(call) = self.heap.node(id) else {
            return Ok(None);
        };
        if !self
            .heap
            .global(call.function)
            .is_some_and(|(module, name)| is_nested_load(module, name))
        {
            return Ok(None);
        }
        let argument = match self.heap.elements(call.arguments) {
            Some(&[argument]) => self.heap.bytes(argument),
            _ => None,
        };
        let Some((blob, coding)) = argument else {
            let what = "a storage that is to be loaded from something computed";
            return Err(self.context.malformed(at, what));
        };
        if !self.nested.contains_key(&blob.at) {
            let read = nested::read(self.context, &self.input.part(blob), coding, at)?;
            self.nested.insert(blob.at, read);
        }
        let nested = &self.nested[&blob.at];
        let bytes = Bytes::Inline {
            blob,
            coding,
            range: Some((nested.start, nested.byte_count)),
        };
        let dtype = match storage_class(&nested.class) {
            Some((_, Some(dtype))) => Ok(dtype),
            _ => Err(self.unreadable_dtype(&nested.class, at)),
        };
        Ok(Some((bytes, dtype)))
    }

    /// The key, size and class of the storage that a nested file consists of.
    ///
    /// # Errors
    /// It is no storage that makes sense.
    pub(crate) fn only_storage(
        &mut self,
        id: Id,
        at: &str,
    ) -> Result<(String, u64, u64, String), ConvertError> {
        let strange = "a file in the file that is no storage alone";
        let Node::Persistent(of) = self.heap.node(id) else {
            return Err(self.context.malformed(at, strange));
        };
        let class = self.heap.elements(*of).and_then(|fields| fields.get(1));
        let class = class.and_then(|class| self.heap.global(*class));
        let class = class.map_or("", |(_, name)| name).to_owned();
        match self.storage(id, at)?.0 {
            Bytes::Storage {
                key,
                view_bytes,
                byte_count,
            } => Ok((key, view_bytes, byte_count, class)),
            Bytes::Inline { .. } => Err(self.context.malformed(at, strange)),
        }
    }

    /// A storage's key and the size of its elements.
    ///
    /// # Errors
    /// It is no storage that makes sense.
    pub(crate) fn storage_key(&mut self, id: Id) -> Result<(String, u64), ConvertError> {
        let (bytes, _) = self.storage(id, "a storage")?;
        let Node::Persistent(id) = self.heap.node(id) else {
            return Err(self.context.malformed("", "a storage that is none"));
        };
        let class = self.heap.elements(*id).and_then(|fields| fields.get(1));
        let class = class
            .and_then(|class| self.heap.global(*class))
            .map_or("", |(_, name)| name);
        match (bytes, storage_class(class)) {
            (Bytes::Storage { key, .. }, Some((element_bytes, _))) => Ok((key, element_bytes)),
            _ => Err(self.context.malformed("", "a storage that is none")),
        }
    }

    fn unreadable_dtype(&self, name: &str, at: &str) -> ConvertError {
        let what = match name {
            "complex128" | "cdouble" | "ComplexDoubleStorage" => {
                "complex128 numbers, which safetensors cannot hold; cast to complex64 in PyTorch first".to_owned()
            }
            _ if name.contains("qint") || name.contains("QI") || name.contains("QU") => {
                format!("quantised numbers (`{name}`); dequantise them in PyTorch first")
            }
            _ => format!(
                "numbers of type `{}`, which safetensors cannot hold; cast them in PyTorch first",
                safelight_format::shown(name)
            ),
        };
        ConvertError::unsupported(&self.context.label, at, what)
    }

    fn size(&self, id: Id, at: &str) -> Result<u64, ConvertError> {
        match self.heap.node(id) {
            Node::Int(value) if *value >= 0 => Ok(*value as u64),
            Node::Int(value) => {
                let what = format!("a size, offset or stride of {value}");
                Err(self.context.malformed(at, what))
            }
            _ => Err(self
                .context
                .malformed(at, "a size, offset or stride that is no number")),
        }
    }

    /// Numbers of a tuple, list or `torch.Size`.
    fn sizes(&self, id: Id, at: &str) -> Result<Vec<u64>, ConvertError> {
        let id = match self.heap.node(id) {
            Node::Call(call) => match self.heap.elements(call.arguments) {
                Some(&[inner]) => inner,
                _ => call.arguments,
            },
            _ => id,
        };
        let Some(elements) = self.heap.elements(id) else {
            return Err(self.context.malformed(at, "a shape that is no tuple"));
        };
        if elements.len() > RANK_MAX {
            let what = format!("{} dimensions, at most {RANK_MAX} can be", elements.len());
            return Err(self.context.malformed(at, what));
        }
        elements.iter().map(|&id| self.size(id, at)).collect()
    }

    /// `_reconstruct(ndarray, (0,), b'b')` with the state `(version, shape, dtype, is_fortran, data)`.
    fn numpy_array(&mut self, call: &Call, at: &str) -> Result<Tensor, ConvertError> {
        let state = call.state.and_then(|state| self.heap.elements(state));
        let Some(&[_, shape, dtype, fortran, data]) = state else {
            return Err(self
                .context
                .malformed(at, "a numpy array without its state"));
        };
        let dtype = self.numpy_dtype(dtype, at)?;
        let shape = self.sizes(shape, at)?;
        let fortran = matches!(self.heap.node(fortran), Node::Bool(true) | Node::Int(1));
        self.inline(data, dtype, shape, fortran, at)
    }

    /// A tensor whose elements lie in the pickle.
    fn inline(
        &mut self,
        data: Id,
        (dtype, is_big_endian): (Dtype, bool),
        shape: Vec<u64>,
        fortran: bool,
        at: &str,
    ) -> Result<Tensor, ConvertError> {
        let (blob, coding) = self.inline_bytes(data).ok_or_else(|| {
            let what = "a numpy array of objects or with bytes outside of the file";
            ConvertError::unsupported(&self.context.label, at, what)
        })?;
        if shape.len() > RANK_MAX {
            return Err(self.context.malformed(at, "too many dimensions"));
        }
        let mut strides = vec![1u64; shape.len()];
        let mut next = 1u64;
        for count in 0..shape.len() {
            let dim = if fortran {
                count
            } else {
                shape.len() - 1 - count
            };
            strides[dim] = next;
            let product = next.checked_mul(shape[dim].max(1));
            next = product.ok_or_else(|| self.context.malformed(at, "more than 2^64 elements"))?;
        }
        Ok(Tensor {
            bytes: Bytes::Inline {
                blob,
                coding,
                range: None,
            },
            dtype,
            offset: 0,
            shape,
            strides,
            is_big_endian,
            pending: Pending::default(),
        })
    }

    /// Bytes, or what earlier protocols write instead, or a text of Python 2.
    fn inline_bytes(&self, id: Id) -> Option<(Blob, Option<Coding>)> {
        match self.heap.node(id) {
            Node::Text(blob, Coding::Plain) => Some((*blob, None)),
            _ => self.heap.bytes(id),
        }
    }

    /// `dtype('f4', False, True)` with the state `(3, '<', …)`: the dtype, and whether it is big-endian.
    fn numpy_dtype(&mut self, id: Id, at: &str) -> Result<(Dtype, bool), ConvertError> {
        let strange = || {
            self.context
                .malformed(at, "a numpy array whose dtype is no dtype")
        };
        let Node::Call(call) = self.heap.node(id) else {
            return Err(strange());
        };
        let first = self.heap.elements(call.arguments).and_then(<[Id]>::first);
        let code = *first.ok_or_else(strange)?;
        let state = call.state.and_then(|state| self.heap.elements(state));
        let order = state.and_then(|state| state.get(1)).copied();
        let code = self.key(code).unwrap_or_default();
        let order = order.and_then(|order| self.key(order));
        let dtype = numpy_dtype(&code).ok_or_else(|| self.unreadable_dtype(&code, at))?;
        Ok((
            dtype,
            order.as_deref() == Some(">") || code.starts_with('>'),
        ))
    }
}

fn pairs(items: &[Id]) -> Vec<(Id, Id)> {
    items
        .chunks_exact(2)
        .map(|pair| (pair[0], pair[1]))
        .collect()
}

/// The size of an element of a storage class, and its dtype if safetensors has it.
fn storage_class(name: &str) -> Option<(u64, Option<Dtype>)> {
    let dtype = match name {
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::Bf16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" | "UntypedStorage" | "_UntypedStorage" => Dtype::U8,
        "BoolStorage" => Dtype::Bool,
        "ComplexFloatStorage" => Dtype::C64,
        "ComplexDoubleStorage" => return Some((16, None)),
        "QUInt8Storage" | "QInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage" => {
            return Some((1, None));
        }
        "QInt32Storage" => return Some((4, None)),
        _ => return None,
    };
    Some((dtype.bits() / 8, Some(dtype)))
}

/// The dtype of `torch.<name>`.
fn torch_dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "float32" | "float" => Dtype::F32,
        "float64" | "double" => Dtype::F64,
        "float16" | "half" => Dtype::F16,
        "bfloat16" => Dtype::Bf16,
        "int64" | "long" => Dtype::I64,
        "int32" | "int" => Dtype::I32,
        "int16" | "short" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint8" => Dtype::U8,
        "uint16" => Dtype::U16,
        "uint32" => Dtype::U32,
        "uint64" => Dtype::U64,
        "bool" => Dtype::Bool,
        "complex64" | "cfloat" => Dtype::C64,
        "float8_e4m3fn" => Dtype::F8E4m3,
        "float8_e5m2" => Dtype::F8E5m2,
        "float8_e4m3fnuz" => Dtype::F8E4m3Fnuz,
        "float8_e5m2fnuz" => Dtype::F8E5m2Fnuz,
        "float8_e8m0fnu" => Dtype::F8E8m0,
        "float4_e2m1fn_x2" => Dtype::F4,
        _ => return None,
    })
}

/// The dtype of numpy's type code, such as `f4` or `<f4`.
fn numpy_dtype(code: &str) -> Option<Dtype> {
    Some(match code.trim_start_matches(['<', '>', '=', '|']) {
        "f4" | "float32" => Dtype::F32,
        "f8" | "float64" => Dtype::F64,
        "f2" | "float16" => Dtype::F16,
        "i8" | "int64" => Dtype::I64,
        "i4" | "int32" => Dtype::I32,
        "i2" | "int16" => Dtype::I16,
        "i1" | "int8" => Dtype::I8,
        "u8" | "uint64" => Dtype::U64,
        "u4" | "uint32" => Dtype::U32,
        "u2" | "uint16" => Dtype::U16,
        "u1" | "uint8" => Dtype::U8,
        "b1" | "bool" => Dtype::Bool,
        "c8" | "complex64" => Dtype::C64,
        "bfloat16" => Dtype::Bf16,
        _ => return None,
    })
}
