//! The stack machine: instructions in, inert values out.

use std::collections::HashMap;

use super::heap::{Call, Heap, How, Id, Node};
use super::input::{Blob, Input};
use super::ops::{Op, decode};
use super::{Fault, Problem};
use crate::source::Bound;

/// A number of more bytes (of its text, in protocols 0 and 1) is told: honest pickles have none.
const NUMBER_BYTES_MAX: u64 = 4096;

/// Modules and names are never longer in honest pickles.
const NAME_BYTES_MAX: u64 = 4096;

/// What an entry of the memo costs in the table by position, which grows by doubling.
const MEMO_DENSE_BYTES: u64 = 8;

/// What an entry of the memo costs in the hash table.
const MEMO_SPARSE_BYTES: u64 = 64;

/// Picklers count the memo's entries; an index so far beyond the last one goes into the hash table.
const MEMO_GAP_MAX: u64 = 1024;

/// An index of the memo that stands for nothing.
const NOTHING: Id = Id::MAX;

/// What CPython makes room for with each index of the memo: a pointer, and as much again to grow (`_pickle.c`, `_Unpickler_MemoPut`).
const CPYTHON_ENTRY_BYTES: u64 = 16;

/// What is said of persistent ids that are not torch's.
const PERSISTENT: &str = "a persistent id: what it stands for, another program decides";

/// As far as [`sweep`] goes.
const SWEPT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Someone who sees what a pickle asks for, as it is asked for.
pub(crate) trait Watch {
    /// The pickle names a global.
    ///
    /// # Errors
    /// [`Problem::Refused`] ends the run.
    fn global(&mut self, at: u64, module: &str, name: &str) -> Result<(), Problem>;

    /// The pickle would call something: the value at `id` is a [`Node::Call`].
    fn call(&mut self, _at: u64, _id: Id, _heap: &Heap, _input: &mut Input<'_>) {}

    /// BUILD would set attributes of the value at `id` to `state`.
    fn build(&mut self, _at: u64, _id: Id, _state: Id, _heap: &Heap, _input: &mut Input<'_>) {}

    /// Something that honest pickles do not have.
    fn oddity(&mut self, _at: u64, _what: &str) {}

    /// A value is put into the memo at an index for which Python would take `bytes` of memory, more than `limit`.
    ///
    /// # Errors
    /// [`Problem::Limit`] ends the run.
    fn wide_memo(&mut self, _at: u64, bytes: u64, limit: Bound) -> Result<(), Problem> {
        let what = "bytes of memory that Python would take for the memo";
        let value = bytes;
        Err(Problem::Limit { what, value, limit })
    }
}

/// Runs one pickle after the other over one input.
pub(crate) struct Machine<'a> {
    pub(crate) input: Input<'a>,
    pub(crate) heap: Heap,
    stack: Vec<Id>,
    /// Heights of the stack at which marks lie.
    marks: Vec<usize>,
    /// By index; those far beyond the others lie in `memo_far`.
    memo: Vec<Id>,
    memo_far: HashMap<u64, Id>,
    /// How many entries the memo has.
    memo_count: u64,
    names: HashMap<(String, String), u32>,
    /// Bytes that values took so far.
    memory_bytes: u64,
    memory_bytes_max: Bound,
    /// Behind the frame that was announced last.
    frame_end: u64,
}

impl<'a> Machine<'a> {
    /// A machine at the start of `input`, whose values may take so many bytes.
    pub(crate) fn new(input: Input<'a>, memory_bytes_max: impl Into<Bound>) -> Machine<'a> {
        Machine {
            input,
            heap: Heap::default(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            memo_far: HashMap::new(),
            memo_count: 0,
            names: HashMap::new(),
            memory_bytes: 0,
            memory_bytes_max: memory_bytes_max.into(),
            frame_end: 0,
        }
    }

    /// How many bytes all values took so far.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Runs one pickle to its STOP; gives the value it ends with.
    ///
    /// # Errors
    /// Where and why it cannot be followed.
    pub(crate) fn run(&mut self, watch: &mut dyn Watch) -> Result<Id, Fault> {
        self.stack.clear();
        self.marks.clear();
        self.memo.clear();
        self.memo_far.clear();
        self.memo_count = 0;
        self.frame_end = 0;
        loop {
            let at = self.input.at();
            let op = decode(&mut self.input)?;
            if self.frame_end > at && self.frame_end < self.input.at() {
                watch.oddity(at, "an instruction lies across a frame's end");
                self.frame_end = 0;
            }
            if op == Op::Stop {
                return self.pop("STOP").map_err(|problem| Fault { at, problem });
            }
            self.step(at, op, watch)
                .map_err(|problem| Fault { at, problem })?;
        }
    }

    fn step(&mut self, at: u64, op: Op, watch: &mut dyn Watch) -> Result<(), Problem> {
        match op {
            Op::Stop => {}
            Op::Mark => {
                self.spend(8)?;
                self.marks.push(self.stack.len());
            }
            Op::Pop => {
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop("POP")?;
                }
            }
            Op::PopMark => drop(self.pop_mark("POP_MARK")?),
            Op::Dup => {
                let top = self.top("DUP")?;
                self.push_id(top)?;
            }
            Op::None => self.push(Node::None)?,
            Op::Bool(value) => self.push(Node::Bool(value))?,
            Op::Int(value) => self.push(Node::Int(value))?,
            Op::Long(blob) => {
                if blob.len > NUMBER_BYTES_MAX {
                    watch.oddity(at, &format!("a number of {} bytes", blob.len));
                }
                self.push(Node::Long(blob))?;
            }
            Op::Float(value) => self.push(Node::Float(value))?,
            Op::Bytes(blob) => self.push(Node::Bytes(blob))?,
            Op::Text(blob, coding) => self.push(Node::Text(blob, coding))?,
            Op::Global(module, name) => {
                let (module, name) = (self.name(module)?, self.name(name)?);
                self.push_global(at, module, name, watch)?;
            }
            Op::StackGlobal => self.stack_global(at, watch)?,
            Op::Reduce | Op::Build | Op::Inst(..) | Op::Obj | Op::NewObj | Op::NewObjEx => {
                self.call_op(at, op, watch)?;
            }
            Op::PersId(blob) => {
                let id = self.add(Node::Text(blob, super::Coding::Plain))?;
                watch.oddity(at, PERSISTENT);
                self.push(Node::Persistent(id))?;
            }
            Op::BinPersId => {
                let id = self.pop("BINPERSID")?;
                if !self.is_of_torch(id)? {
                    watch.oddity(at, PERSISTENT);
                }
                self.push(Node::Persistent(id))?;
            }
            Op::Ext(_) => {
                watch.oddity(
                    at,
                    "an extension code: what it names, another program decides",
                );
                self.push(Node::Outside)?;
            }
            Op::NextBuffer => {
                watch.oddity(at, "an out-of-band buffer, which lies outside of the file");
                self.push(Node::Outside)?;
            }
            Op::ReadonlyBuffer => drop(self.top("READONLY_BUFFER")?),
            Op::Put(index) => {
                let bytes = index.saturating_mul(CPYTHON_ENTRY_BYTES);
                if bytes > self.memory_bytes_max.most {
                    watch.wide_memo(at, bytes, self.memory_bytes_max)?;
                }
                self.put(index, "PUT")?;
            }
            Op::Memoize => self.put(self.memo_count, "MEMOIZE")?,
            Op::Get(index) => {
                let id = self.get(index).ok_or(Problem::NotInMemo(index))?;
                self.push_id(id)?;
            }
            Op::Proto(protocol) if protocol > 5 => return Err(Problem::Protocol(protocol)),
            Op::Proto(_) => {}
            Op::Frame(len) => {
                let left = self.input.left();
                if len > left {
                    return Err(Problem::TooLong { len, left });
                }
                self.frame_end = self.input.at() + len;
            }
            container => self.container_op(container)?,
        }
        Ok(())
    }

    fn container_op(&mut self, op: Op) -> Result<(), Problem> {
        match op {
            Op::EmptyTuple => self.push(Node::Tuple(Box::default())),
            Op::EmptyList => self.push(Node::List(Vec::new())),
            Op::EmptyDict => self.push(Node::Dict(Vec::new())),
            Op::EmptySet => self.push(Node::Set(Vec::new())),
            Op::Tuple => {
                let elements = self.pop_mark("TUPLE")?;
                self.push(Node::Tuple(elements.into()))
            }
            Op::TupleOf(count) => {
                let start = self.stack.len().checked_sub(count);
                let start = start.filter(|&start| start >= self.floor());
                let elements = self
                    .stack
                    .split_off(start.ok_or(Problem::Underflow("TUPLE"))?);
                self.push(Node::Tuple(elements.into()))
            }
            Op::List => {
                let elements = self.pop_mark("LIST")?;
                self.push(Node::List(elements))
            }
            Op::FrozenSet => {
                let elements = self.pop_mark("FROZENSET")?;
                self.push(Node::Set(elements))
            }
            Op::Dict => {
                let items = self.pop_mark("DICT")?;
                if items.len() % 2 == 1 {
                    return Err(Problem::Bad("DICT with a key and no value"));
                }
                self.push(Node::Dict(items))
            }
            Op::Append => {
                let element = self.pop("APPEND")?;
                self.extend(&[element], "APPEND")
            }
            Op::Appends | Op::AddItems => {
                let elements = self.pop_mark("APPENDS")?;
                self.extend(&elements, "APPENDS")
            }
            Op::SetItem => {
                let value = self.pop("SETITEM")?;
                let key = self.pop("SETITEM")?;
                self.set_items(&[key, value], "SETITEM")
            }
            Op::SetItems => {
                let items = self.pop_mark("SETITEMS")?;
                if items.len() % 2 == 1 {
                    return Err(Problem::Bad("SETITEMS with a key and no value"));
                }
                self.set_items(&items, "SETITEMS")
            }
            other => unreachable!("{other:?} is handled in step"),
        }
    }

    fn call_op(&mut self, at: u64, op: Op, watch: &mut dyn Watch) -> Result<(), Problem> {
        match op {
            Op::Reduce | Op::NewObj => {
                let name = if op == Op::Reduce { "REDUCE" } else { "NEWOBJ" };
                let how = if op == Op::Reduce {
                    How::Reduce
                } else {
                    How::NewObj
                };
                let arguments = self.pop(name)?;
                let function = self.pop(name)?;
                self.call(at, (function, arguments, None), how, watch)
            }
            Op::NewObjEx => {
                let keywords = self.pop("NEWOBJ_EX")?;
                let arguments = self.pop("NEWOBJ_EX")?;
                let function = self.pop("NEWOBJ_EX")?;
                self.call(
                    at,
                    (function, arguments, Some(keywords)),
                    How::NewObj,
                    watch,
                )
            }
            Op::Obj => {
                let mut arguments = self.pop_mark("OBJ")?;
                if arguments.is_empty() {
                    return Err(Problem::Underflow("OBJ"));
                }
                let function = arguments.remove(0);
                let arguments = self.add(Node::Tuple(arguments.into()))?;
                self.call(at, (function, arguments, None), How::Instance, watch)
            }
            Op::Inst(module, name) => {
                let (module, name) = (self.name(module)?, self.name(name)?);
                let function = self.add_global(at, module, name, watch)?;
                let arguments = self.pop_mark("INST")?;
                let arguments = self.add(Node::Tuple(arguments.into()))?;
                self.call(at, (function, arguments, None), How::Instance, watch)
            }
            _ => {
                let state = self.pop("BUILD")?;
                let id = self.top("BUILD")?;
                if let Node::Call(call) = &mut self.heap.nodes[id as usize] {
                    call.state = Some(state);
                }
                watch.build(at, id, state, &self.heap, &mut self.input);
                Ok(())
            }
        }
    }

    fn call(
        &mut self,
        at: u64,
        (function, arguments, keywords): (Id, Id, Option<Id>),
        how: How,
        watch: &mut dyn Watch,
    ) -> Result<(), Problem> {
        self.spend(size_of::<Call>() as u64)?;
        let (items, elements) = (Vec::new(), Vec::new());
        let call = Call {
            function,
            arguments,
            keywords,
            how,
            state: None,
            items,
            elements,
        };
        let id = self.add(Node::Call(Box::new(call)))?;
        self.push_id(id)?;
        watch.call(at, id, &self.heap, &mut self.input);
        Ok(())
    }

    fn stack_global(&mut self, at: u64, watch: &mut dyn Watch) -> Result<(), Problem> {
        let name = self.pop("STACK_GLOBAL")?;
        let module = self.pop("STACK_GLOBAL")?;
        let mut text = |id| {
            let text = self.heap.text(id, &mut self.input, NAME_BYTES_MAX);
            text.map_err(|fault| fault.problem)?
                .ok_or(Problem::Bad("STACK_GLOBAL with something that is no text"))
        };
        let (module, name) = (text(module)?, text(name)?);
        self.push_global(at, module, name, watch)
    }

    fn push_global(
        &mut self,
        at: u64,
        module: String,
        name: String,
        watch: &mut dyn Watch,
    ) -> Result<(), Problem> {
        let id = self.add_global(at, module, name, watch)?;
        self.push_id(id)
    }

    fn add_global(
        &mut self,
        at: u64,
        module: String,
        name: String,
        watch: &mut dyn Watch,
    ) -> Result<Id, Problem> {
        watch.global(at, &module, &name)?;
        let count = self.heap.globals.len() as u32;
        let key = (module, name);
        let index = match self.names.get(&key) {
            Some(index) => *index,
            None => {
                self.spend(2 * (key.0.len() + key.1.len() + 64) as u64)?;
                self.heap.globals.push(key.clone());
                self.names.insert(key, count);
                count
            }
        };
        self.add(Node::Global(index))
    }

    /// Whether a persistent id is one of those by which torch names storages and the classes of modules.
    fn is_of_torch(&mut self, id: Id) -> Result<bool, Problem> {
        let first = self.heap.elements(id).and_then(|fields| fields.first());
        let Some(&first) = first else {
            return Ok(false);
        };
        let kind = match self.heap.node(first) {
            Node::Text(blob, _) if blob.len <= 16 => self.heap.text(first, &mut self.input, 16),
            _ => Ok(None),
        };
        let kind = kind.map_err(|fault| fault.problem)?;
        Ok(matches!(kind.as_deref(), Some("storage" | "module")))
    }

    fn name(&mut self, blob: Blob) -> Result<String, Problem> {
        if blob.len > NAME_BYTES_MAX {
            let (what, value, limit) = ("bytes of a name", blob.len, NAME_BYTES_MAX.into());
            return Err(Problem::Limit { what, value, limit });
        }
        let bytes = self.input.read(blob, NAME_BYTES_MAX);
        let bytes = bytes.map_err(|fault| fault.problem)?;
        String::from_utf8(bytes).map_err(|_| Problem::Bad("a global whose name is not UTF-8"))
    }

    /// Counts bytes against the limit.
    fn spend(&mut self, bytes: u64) -> Result<(), Problem> {
        self.memory_bytes += bytes;
        if self.memory_bytes > self.memory_bytes_max.most {
            let (value, limit) = (self.memory_bytes, self.memory_bytes_max);
            let what = "bytes of memory for a pickle's values";
            return Err(Problem::Limit { what, value, limit });
        }
        Ok(())
    }

    fn add(&mut self, node: Node) -> Result<Id, Problem> {
        let children = match &node {
            Node::Tuple(elements) => elements.len(),
            Node::List(elements) | Node::Set(elements) | Node::Dict(elements) => elements.len(),
            _ => 0,
        };
        // A container that grows has room for more than it holds.
        let grows = match &node {
            Node::List(_) | Node::Set(_) | Node::Dict(_) => 32,
            _ => 0,
        };
        self.spend((size_of::<Node>() + grows + children * size_of::<Id>()) as u64)?;
        let id = Id::try_from(self.heap.nodes.len());
        self.heap.nodes.push(node);
        id.map_err(|_| Problem::Bad("more than 2^32 values"))
    }

    fn push(&mut self, node: Node) -> Result<(), Problem> {
        let id = self.add(node)?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Result<(), Problem> {
        self.spend(2 * size_of::<Id>() as u64)?; // the stack grows by doubling
        self.stack.push(id);
        Ok(())
    }

    /// The height below which nothing may be taken: the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self, op: &'static str) -> Result<Id, Problem> {
        if self.stack.len() <= self.floor() {
            return Err(Problem::Underflow(op));
        }
        self.stack.pop().ok_or(Problem::Underflow(op))
    }

    fn top(&self, op: &'static str) -> Result<Id, Problem> {
        if self.stack.len() <= self.floor() {
            return Err(Problem::Underflow(op));
        }
        self.stack.last().copied().ok_or(Problem::Underflow(op))
    }

    fn pop_mark(&mut self, op: &'static str) -> Result<Vec<Id>, Problem> {
        let mark = self.marks.pop().ok_or(Problem::NoMark(op))?;
        Ok(self.stack.split_off(mark))
    }

    fn put(&mut self, index: u64, op: &'static str) -> Result<(), Problem> {
        let top = self.top(op)?;
        let len = self.memo.len() as u64;
        let is_new = if index <= len.saturating_add(MEMO_GAP_MAX) {
            let needed = (index + 1).saturating_sub(len);
            self.spend(needed * MEMO_DENSE_BYTES)?;
            if needed > 0 {
                self.memo.resize(index as usize + 1, NOTHING);
            }
            let before = std::mem::replace(&mut self.memo[index as usize], top);
            before == NOTHING && self.memo_far.remove(&index).is_none()
        } else {
            self.spend(MEMO_SPARSE_BYTES)?;
            self.memo_far.insert(index, top).is_none()
        };
        self.memo_count += u64::from(is_new);
        Ok(())
    }

    fn get(&self, index: u64) -> Option<Id> {
        let near = usize::try_from(index).ok();
        let near = near.and_then(|index| self.memo.get(index)).copied();
        near.filter(|id| *id != NOTHING)
            .or_else(|| self.memo_far.get(&index).copied())
    }

    fn extend(&mut self, elements: &[Id], op: &'static str) -> Result<(), Problem> {
        self.spend(2 * size_of_val(elements) as u64)?;
        let id = self.top(op)?;
        match &mut self.heap.nodes[id as usize] {
            Node::List(list) | Node::Set(list) => list.extend_from_slice(elements),
            Node::Call(call) => call.elements.extend_from_slice(elements),
            _ => return Err(Problem::Bad("elements for something that is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id], op: &'static str) -> Result<(), Problem> {
        self.spend(2 * size_of_val(items) as u64)?;
        let id = self.top(op)?;
        match &mut self.heap.nodes[id as usize] {
            Node::Dict(dict) => dict.extend_from_slice(items),
            Node::Call(call) => call.items.extend_from_slice(items),
            // Python would ask a list, a class or an instance to set an item, and be refused or not.
            _ => return Err(Problem::Bad("items for something that is no dict")),
        }
        Ok(())
    }
}

/// Reads on where a machine had to stop, without a stack: tells the globals that instructions name, and guesses those of
/// STACK_GLOBAL from the two texts before it. For scanners; ends where nothing can be decoded any more.
pub(crate) fn sweep(input: &mut Input<'_>, watch: &mut dyn Watch) {
    let mut heap = Heap::default();
    let mut texts: [Option<(Blob, super::Coding)>; 2] = [None; 2];
    let mut at = input.at();
    let end = at.saturating_add(SWEPT_BYTES_MAX);
    while let Ok(op) = decode(input) {
        if at > end {
            return;
        }
        let mut read = |blob: Blob, coding| {
            heap.nodes.clear();
            heap.nodes.push(Node::Text(blob, coding));
            heap.text(0, input, NAME_BYTES_MAX).ok().flatten()
        };
        let named = match op {
            Op::Text(blob, coding) => {
                texts = [texts[1], Some((blob, coding))];
                None
            }
            Op::Global(module, name) | Op::Inst(module, name) => {
                let plain = super::Coding::Plain;
                read(module, plain).zip(read(name, plain))
            }
            Op::StackGlobal => match texts {
                [Some(module), Some(name)] => read(module.0, module.1).zip(read(name.0, name.1)),
                _ => None,
            },
            _ => None,
        };
        if let Some((module, name)) = named {
            let _ = watch.global(at, &module, &name);
        }
        at = input.at();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Memory;
    use crate::pickle::show;

    /// Remembers everything.
    #[derive(Default)]
    pub(crate) struct Log(Vec<String>);

    impl Watch for Log {
        fn global(&mut self, at: u64, module: &str, name: &str) -> Result<(), Problem> {
            self.0.push(format!("{at} {module}.{name}"));
            Ok(())
        }

        fn call(&mut self, at: u64, id: Id, heap: &Heap, input: &mut Input<'_>) {
            self.0.push(format!("{at} {}", show(heap, input, id)));
        }

        fn build(&mut self, at: u64, id: Id, state: Id, heap: &Heap, input: &mut Input<'_>) {
            let (object, state) = (show(heap, input, id), show(heap, input, state));
            self.0.push(format!("{at} {object} <- {state}"));
        }

        fn oddity(&mut self, at: u64, what: &str) {
            self.0.push(format!("{at} odd: {what}"));
        }
    }

    #[track_caller]
    fn check(pickle: &[u8], log: &[&str], value: Result<&str, &str>) {
        let memory = Memory(pickle.to_vec());
        let mut machine = Machine::new(Input::new(&memory, 0).unwrap(), 100_000);
        let mut watch = Log::default();
        let result = machine.run(&mut watch);
        assert_eq!(watch.0, log, "{}", pickle.escape_ascii());
        match (result, value) {
            (Ok(id), Ok(value)) => assert_eq!(show(&machine.heap, &mut machine.input, id), value),
            (Err(fault), Err(expected)) => {
                let text = fault.problem.to_string();
                assert!(text.contains(expected), "{text}");
            }
            (Ok(id), Err(expected)) => {
                let text = show(&machine.heap, &mut machine.input, id);
                panic!("{text} instead of an error: {expected}")
            }
            (Err(fault), Ok(_)) => panic!("byte {}: {}", fault.at, fault.problem),
        }
    }

    #[test]
    fn values() {
        check(b"N.", &[], Ok("None"));
        check(
            b"\x80\x02}q\0(U\x01aK\x01U\x01b]q\x01(K\x02K\x03eu.",
            &[],
            Ok("{'a': 1, 'b': [2, 3]}"),
        );
        check(
            b"(I1\nI01\nF1.5\nV\\u00e9\nS'x'\nt.",
            &[],
            Ok("(1, True, 1.5, 'é', 'x')"),
        );
        check(b"\x80\x05\x8f(K\x01\x90.", &[], Ok("{1}"));
        check(b"(K\x01K\x02l.", &[], Ok("[1, 2]"));
        check(b"(K\x01K\x02d.", &[], Ok("{1: 2}"));
        check(b"K\x01K\x02\x860K\x03.", &[], Ok("3"));
        check(b"]2a.", &[], Ok("[[...]]"));
        check(b"(0K\x01.", &[], Ok("1"));
        check(b"\x80\x04\x95\x03\0\0\0\0\0\0\0K\x01\x94.", &[], Ok("1"));
    }

    #[test]
    fn calls_are_told_not_made() {
        check(
            b"cos\nsystem\n(S'id'\ntR.",
            &["0 os.system", "19 os.system('id')"],
            Ok("os.system('id')"),
        );
        check(
            b"(S'id'\nios\nsystem\n.",
            &["7 os.system", "7 os.system('id')"],
            Ok("os.system('id')"),
        );
        check(
            b"(cos\nsystem\nU\x02ido.",
            &["1 os.system", "16 os.system('id')"],
            Ok("os.system('id')"),
        );
        check(
            b"\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R0N.",
            &["12 os.system", "18 os.system('id')"],
            Ok("None"),
        );
        check(
            b"\x8c\x02os\x8c\x06system\x93)}\x92.",
            &["12 os.system", "15 os.system.__new__(os.system, **{})"],
            Ok("os.system.__new__(os.system, **{})"),
        );
        check(
            b"ca\nb\n)R}U\x01xK\x01sb.",
            &["0 a.b", "6 a.b()", "14 a.b() <- {'x': 1}"],
            Ok("a.b()"),
        );
        check(
            b"\x82\x07.",
            &["0 odd: an extension code: what it names, another program decides"],
            Ok("<from outside>"),
        );
    }

    #[test]
    fn broken_pickles() {
        check(b".", &[], Err("too little"));
        check(b"R.", &[], Err("REDUCE finds too little"));
        check(b"(K\x01(R.", &[], Err("too little"));
        check(b"t.", &[], Err("TUPLE finds no mark"));
        check(b"h\x05.", &[], Err("memo entry 5"));
        check(b"K\x01K\x02a.", &[], Err("no list"));
        check(b"(K\x01d.", &[], Err("no value"));
        check(b"K\x01", &[], Err("ends before"));
        check(b"\x80\x06.", &[], Err("protocol 6"));
        check(b"K\x01K\x02\x93.", &[], Err("no text"));
        check(
            b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xffN.",
            &[],
            Err("bytes where 2"),
        );
        check(
            b"\x80\x04\x95\x01\0\0\0\0\0\0\0K\x01.",
            &["11 odd: an instruction lies across a frame's end"],
            Ok("1"),
        );
        let mut large = vec![b'('; 20_000];
        large.push(b'.');
        check(&large, &[], Err("limit 100000"));
        check(
            &[b"]".as_slice(), &b"2a".repeat(20_000)].concat(),
            &[],
            Err("limit 100000"),
        );
        let far: Vec<u8> = (0..2000u32)
            .flat_map(|count| [&b"r"[..], &(2000 + 2 * count).to_le_bytes()].concat())
            .collect();
        check(&[b"N", far.as_slice()].concat(), &[], Err("limit 100000"));
        // One entry, and Python would take 68 GB for it.
        check(b"Nr\xff\xff\xff\xff.", &[], Err("68719476720 bytes"));
        let number = [b"\x8b\x88\x13\0\0".as_slice(), &[1; 5000], b"."].concat();
        check(
            &number,
            &["0 odd: a number of 5000 bytes"],
            Ok("<a number of 5000 bytes>"),
        );
    }

    #[test]
    fn memos_near_and_far() {
        check(b"K\x01r\xff\x03\0\x000K\x02p0\n0g1023\n.", &[], Ok("1"));
        // Far first, then the table grows over its place.
        check(b"K\x01p1500\n0K\x02p1000\n0g1500\n.", &[], Ok("1"));
        check(
            b"K\x01p1500\n0K\x02p1000\n0K\x03p1500\n0g1500\n.",
            &[],
            Ok("3"),
        );
        // MEMOIZE counts entries, as Python does.
        check(b"\x80\x04K\x01p1500\n0K\x02\x940h\x01.", &[], Ok("2"));
        check(b"\x80\x04Np7\nh\x06.", &[], Err("memo entry 6"));
    }
}
