//! Pickles, as a scanner sees them: what they name, what they would call, and what comes after them.

use std::collections::{BTreeMap, HashSet};

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use safelight_store::ReadAt;

use super::{DEPTH_MAX, Finding, HELD_BYTES_MAX, Rule, Scanner, Severity};
use crate::bytes::{Memory, Part, read_exact_at, read_up_to};
use crate::pickle::{
    Blob, Call, Coding, Fault, Heap, Id, Input, Machine, Node, Problem, Standing, Watch,
    is_nested_load, memory_of, show, standing, sweep,
};
use crate::source::Bound;
use crate::torch::{decode_latin1, is_magic, storages_end};

/// Calls and oddities of one file that are told one by one.
const TOLD_MAX: usize = 500;

/// Byte strings handed to calls that are looked into.
const INNER_MAX: usize = 64;

/// Strings that are looked into because they may be pickles.
const PACKED_MAX: usize = 100_000;

/// Of longer strings only the start tells whether they are looked into.
const PACKED_LOOK_BYTES: u64 = 64 * 1024;

/// Different globals of one file that are told.
const GLOBALS_MAX: usize = 50_000;

/// Storages with files of their own that are looked into.
const NESTED_MAX: usize = 1_000_000;

/// Pickles after pickles in one file.
const PICKLES_MAX: usize = 10_000;

/// With what PyTorch's files before 1.6 begin in protocols 0 and 1: the number `0x1950a86a20f9469cfc6c`.
pub(super) const TORCH_MAGIC_TEXT: &[u8] = b"L119547037146038801333356L\n.";

/// How many pickles such a file has; its storages follow.
const TORCH_PICKLES: usize = 5;

/// What a pickle asked for.
#[derive(Default)]
struct Seen {
    /// By module and name: how often, and where first.
    globals: BTreeMap<(String, String), (u64, u64)>,
    told: Vec<(Severity, Rule, u64, String)>,
    untold: u64,
    inner: Vec<Blob>,
    /// Files within the file that `torch.storage._load_from_bytes` would load, by where they begin.
    nested: BTreeMap<u64, (Blob, Option<Coding>)>,
    has_wide_memo: bool,
    /// Strings that may be pickles, or archives of some, and that nothing in this one loads.
    packed: Vec<(Blob, Option<Coding>)>,
    has_more_packed: bool,
}

impl Seen {
    /// Finds the strings among all values that may be pickles.
    fn find_packed(&mut self, heap: &Heap, input: &mut Input<'_>) {
        for node in &heap.nodes {
            let (blob, coding) = match node {
                Node::Bytes(blob) => (*blob, None),
                Node::Text(blob, coding) => (*blob, Some(*coding)),
                _ => continue,
            };
            if !may_be_packed(input, blob, coding) {
                continue;
            }
            if self.packed.len() >= PACKED_MAX {
                self.has_more_packed = true;
                return;
            }
            self.packed.push((blob, coding));
        }
    }

    fn tell(&mut self, severity: Severity, rule: Rule, at: u64, message: String) {
        // Room is kept for what is worse.
        let room = TOLD_MAX * (1 + usize::from(severity == Severity::Dangerous));
        if self.told.len() < room {
            self.told.push((severity, rule, at, message));
        } else {
            self.untold += 1;
        }
    }

    /// Whether it names anything but what tensors need.
    fn has_more_than_data(&self) -> bool {
        let unknown = |(module, name): &(String, String)| {
            matches!(
                standing(module, name),
                Standing::Unknown | Standing::Dangerous
            )
        };
        self.globals.keys().any(unknown) || !self.told.is_empty()
    }

    /// Byte strings within a call's arguments that could be pickles or archives.
    fn look_inside(&mut self, heap: &Heap, input: &mut Input<'_>, id: Id) {
        let mut todo = vec![(id, 0)];
        let mut steps = 0;
        while let Some((id, depth)) = todo.pop() {
            steps += 1;
            if steps > 200 || self.inner.len() >= INNER_MAX {
                return;
            }
            match heap.node(id) {
                Node::Bytes(blob) | Node::Text(blob, _) if blob.len > 3 => {
                    let start = input.read(*blob, 4).unwrap_or_default();
                    let known = matches!(
                        start.as_slice(),
                        [0x80, 0..=5, ..] | b"PK\x03\x04" | [0x1f, 0x8b, ..] | [0x78, ..]
                    ) || start.first().is_some_and(|first| b"c(]}".contains(first));
                    if known && !self.inner.contains(blob) {
                        self.inner.push(*blob);
                    }
                }
                _ if depth < 4 => {
                    todo.extend(heap.children(id).take(100).map(|child| (child, depth + 1)));
                }
                _ => {}
            }
        }
    }
}

/// How pickles with a mark, zip archives and gzip streams begin in Base64 (RFC 4648, §4).
const BASE64_STARTS: [&[u8]; 3] = [b"gA", b"UEsDB", b"H4sI"];

/// Longer texts in Base64 are not decoded.
const BASE64_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The bytes for which a text in Base64 stands, if they begin as something that is looked into.
fn base64(bytes: &dyn ReadAt) -> Option<Vec<u8>> {
    let len = bytes
        .byte_count()
        .ok()
        .filter(|len| (8..=BASE64_BYTES_MAX).contains(len))?;
    let mut start = [0; 8];
    read_exact_at(bytes, &mut start, 0).ok()?;
    if !BASE64_STARTS.iter().any(|mark| start.starts_with(mark)) {
        return None;
    }
    let mut text = vec![0; len as usize];
    read_exact_at(bytes, &mut text, 0).ok()?;
    text.retain(|byte| !byte.is_ascii_whitespace());
    let end = text.iter().position(|&byte| byte == b'=');
    text.truncate(end.unwrap_or(text.len()));
    if text.len() % 4 == 1 {
        text.pop(); // less than a byte
    }
    for byte in &mut text {
        // The other alphabet, for URLs (RFC 4648, §5).
        *byte = match *byte {
            b'-' => b'+',
            b'_' => b'/',
            other => other,
        };
    }
    BASE64.decode(text).ok()
}

/// Base64 whose end is taken as it comes: padded or not, with bits left over or not, as lenient decoders take it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Whether a string begins as pickles and archives do and has what every pickle needs that names something: two lines of text, or
/// the opcode that takes names from the stack.
fn may_be_packed(input: &mut Input<'_>, blob: Blob, coding: Option<Coding>) -> bool {
    if blob.len < 6 {
        return false;
    }
    let bytes = input.read(blob, PACKED_LOOK_BYTES).unwrap_or_default();
    let content = match coding {
        Some(coding) if blob.len <= PACKED_LOOK_BYTES => {
            decode_latin1(bytes.clone(), coding).unwrap_or(bytes)
        }
        _ => bytes,
    };
    let content = match content.as_slice() {
        // U+0080 in UTF-8.
        [0xc2, rest @ ..] if coding.is_some() => rest,
        all => all,
    };
    if matches!(content, [0x80, 0..=5, ..] | [0x1f, 0x8b, 8, ..])
        || content.starts_with(b"PK\x03\x04")
    {
        return true;
    }
    let in_base64 = BASE64_STARTS.iter().any(|mark| content.starts_with(mark));
    if super::archive::is_zlib(content) || (in_base64 && blob.len >= 16) {
        return true;
    }
    let begins = content.first().is_some_and(|first| {
        b"(])}c0NIJKMGFLSTUVXBCP\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x95\x96".contains(first)
    });
    let lines = content.iter().filter(|byte| **byte == b'\n').count();
    begins && (lines >= 2 || content.contains(&0x93) || blob.len > PACKED_LOOK_BYTES)
}

/// What is known of what would be called: a global's standing, or that of what made it.
fn standing_of(heap: &Heap, mut id: Id) -> Standing {
    for _ in 0..100 {
        id = heap.class_with_source(id);
        match heap.node(id) {
            Node::Call(call) => id = call.function,
            Node::Global(_) => {
                let (module, name) = heap.global(id).unwrap_or_default();
                return standing(module, name);
            }
            _ => return Standing::Unknown,
        }
    }
    Standing::Unknown
}

/// Objects of so many bytes are made by no honest pickle from a number alone.
const BOMB_BYTES: u64 = 1 << 30;

/// How many bytes a harmless call would take that makes something large of a number: `bytearray(2147483647)`, or the elements of a range
/// of so many.
fn bomb(heap: &Heap, call: &Call) -> Option<u64> {
    let (_, name) = called(heap, call.function)?;
    let arguments = heap.elements(call.arguments)?;
    let [argument] = arguments else {
        return None;
    };
    let bytes = match (name, heap.node(*argument)) {
        ("bytes" | "bytearray", Node::Int(count)) => u64::try_from(*count).ok()?,
        ("bytes" | "bytearray", Node::Long(_)) => u64::MAX,
        (_, Node::Call(inner)) => {
            let (_, range) = called(heap, inner.function)?;
            let mut bounds =
                heap.elements(inner.arguments)?
                    .iter()
                    .map(|id| match heap.node(*id) {
                        Node::Int(bound) => bound.unsigned_abs(),
                        Node::Long(_) => u64::MAX,
                        _ => 0,
                    });
            let largest = bounds.by_ref().take(2).max()?;
            let step = bounds.next().unwrap_or(1).max(1);
            let is_range = matches!(range, "range" | "xrange");
            (largest / step).saturating_mul(8 * u64::from(is_range))
        }
        _ => 0,
    };
    (bytes >= BOMB_BYTES).then_some(bytes)
}

/// The module and name of a class or function that would be called as such.
fn called(heap: &Heap, function: Id) -> Option<(&str, &str)> {
    heap.global(heap.class_with_source(function))
}

fn severity_of(standing: Standing) -> Severity {
    match standing {
        Standing::Allowed | Standing::Inert => Severity::Allowed,
        Standing::Unknown => Severity::Suspicious,
        Standing::Dangerous => Severity::Dangerous,
    }
}

impl Watch for Seen {
    fn global(&mut self, at: u64, module: &str, name: &str) -> Result<(), Problem> {
        let key = (module.to_owned(), name.to_owned());
        if self.globals.len() >= GLOBALS_MAX && !self.globals.contains_key(&key) {
            // Room is kept for what is worse.
            let is_dangerous = standing(module, name) == Standing::Dangerous;
            if !is_dangerous || self.globals.len() >= 2 * GLOBALS_MAX {
                self.untold += 1;
                return Ok(());
            }
        }
        self.globals.entry(key).or_insert((0, at)).0 += 1;
        Ok(())
    }

    fn call(&mut self, at: u64, id: Id, heap: &Heap, input: &mut Input<'_>) {
        let Node::Call(call) = heap.node(id) else {
            return;
        };
        let function = called(heap, call.function);
        let direct = function.is_some();
        let known = standing_of(heap, call.function);
        if function.is_some_and(|(module, name)| is_nested_load(module, name)) {
            let argument = match heap.elements(call.arguments) {
                Some(&[argument]) => heap.bytes(argument),
                _ => None,
            };
            match argument {
                Some(bytes) if self.nested.len() < NESTED_MAX => {
                    self.nested.insert(bytes.0.at, bytes);
                }
                Some(_) => self.untold += 1,
                None => {
                    self.look_inside(heap, input, id);
                    let message = format!("would have loaded a file: {}", show(heap, input, id));
                    self.tell(Severity::Dangerous, Rule::Call, at, message);
                }
            }
            return;
        }
        if direct && matches!(known, Standing::Allowed | Standing::Inert) {
            if let Some(bytes) = bomb(heap, call) {
                let message = format!(
                    "a memory bomb: {} takes {bytes} bytes",
                    show(heap, input, id)
                );
                self.tell(Severity::Suspicious, Rule::Oddity, at, message);
            }
            return;
        }
        self.look_inside(heap, input, id);
        let severity = severity_of(known).max(Severity::Suspicious);
        self.tell(
            severity,
            Rule::Call,
            at,
            format!("would have run: {}", show(heap, input, id)),
        );
    }

    fn build(&mut self, at: u64, id: Id, state: Id, heap: &Heap, input: &mut Input<'_>) {
        let known = standing_of(heap, id);
        let severity = match heap.node(id) {
            // An object made just now, of a class that is known: its own attributes.
            Node::Call(call) if called(heap, call.function).is_some() => match known {
                Standing::Allowed | Standing::Inert => return,
                other => severity_of(other),
            },
            _ => severity_of(known).max(Severity::Suspicious),
        };
        self.look_inside(heap, input, state);
        let (object, state) = (show(heap, input, id), show(heap, input, state));
        let message = format!("would have set the state of {object} to {state}");
        self.tell(severity, Rule::Attributes, at, message);
    }

    fn oddity(&mut self, at: u64, what: &str) {
        self.tell(Severity::Suspicious, Rule::Oddity, at, what.to_owned());
    }

    fn wide_memo(&mut self, at: u64, bytes: u64, _limit: Bound) -> Result<(), Problem> {
        if !std::mem::replace(&mut self.has_wide_memo, true) {
            let message = format!(
                "a memo bomb: Python's unpickler would take {bytes} bytes of memory for the index of one value"
            );
            self.tell(Severity::Suspicious, Rule::Oddity, at, message);
        }
        Ok(())
    }
}

/// Whether `torch.storage._load_from_bytes` is handed on to something that may call it with bytes nobody looked into.
fn hands_on_nested_load(heap: &Heap) -> bool {
    let is_load = |id: Id| {
        heap.global(id)
            .is_some_and(|(module, name)| is_nested_load(module, name))
    };
    if !heap
        .globals
        .iter()
        .any(|(module, name)| is_nested_load(module, name))
    {
        return false;
    }
    (0..heap.nodes.len() as Id).any(|id| match heap.node(id) {
        Node::Call(call) => {
            let others = heap.children(id).filter(|child| *child != call.function);
            let mut others = others.chain([call.arguments]);
            others.any(is_load)
        }
        Node::Global(_) => false,
        _ => heap.children(id).any(is_load),
    })
}

/// How a file of pickles ended.
struct Ended {
    seen: Seen,
    /// Whether at least one pickle was followed to its STOP.
    any_whole: bool,
    /// Where the last whole pickle ended.
    end: u64,
    /// Why the next one could not be followed.
    fault: Option<Fault>,
    is_torch: bool,
    /// Where the storages of PyTorch's file end, or why that cannot be told.
    storages_end: Option<Result<u64, String>>,
}

impl Scanner<'_> {
    /// A file that begins as a pickle does.
    pub(super) fn pickle_file(&mut self, bytes: &dyn ReadAt, member: &str, depth: u32) -> String {
        let Some(ended) = self.run(bytes) else {
            return "unreadable".into();
        };
        let kind = match (ended.is_torch, ended.any_whole) {
            (true, _) => "PyTorch file from before 1.6",
            (false, true) => "pickle",
            (false, false) => "broken pickle",
        };
        self.ending(bytes, &ended, member, depth);
        self.report(ended.seen, bytes, member, depth);
        kind.into()
    }

    /// Looks whether bytes of another kind, or of none, are a pickle as well; tells what it would do.
    /// Returns whether it is one.
    pub(super) fn hidden_pickle(&mut self, bytes: &dyn ReadAt, member: &str, depth: u32) -> bool {
        let Some(ended) = self.run(bytes) else {
            return false;
        };
        // A stray byte decodes as something; what names modules that no module could be called is text.
        let names = |(module, name): &(String, String)| {
            let plain = |text: &str| {
                !text.is_empty()
                    && text
                        .chars()
                        .all(|c| c.is_alphanumeric() || "._<>".contains(c))
            };
            plain(module) && plain(name)
        };
        let known = ended
            .seen
            .globals
            .keys()
            .any(|global| standing(&global.0, &global.1) == Standing::Dangerous);
        let named = ended.seen.globals.keys().any(names);
        let calls = ended.seen.told.iter().any(|told| told.1 != Rule::Oddity);
        let is_whole = ended.any_whole && Some(ended.end) == bytes.byte_count().ok();
        // What ends where the bytes end is no text by chance, whatever names it calls.
        let odd = is_whole && !ended.seen.told.is_empty();
        if !(known || odd || (named && (ended.any_whole || calls))) {
            // One that names nothing does nothing, but its strings may.
            if ended.any_whole {
                self.packed(&ended.seen, bytes, member, depth);
            }
            return is_whole;
        }
        if ended.seen.has_more_than_data() || depth == 0 {
            self.ending(bytes, &ended, member, depth);
            self.report(ended.seen, bytes, member, depth);
        } else {
            self.packed(&ended.seen, bytes, member, depth);
        }
        true
    }

    /// Follows all pickles that stand one after the other.
    fn run(&mut self, bytes: &dyn ReadAt) -> Option<Ended> {
        let input = match Input::new(bytes, 0) {
            Ok(input) => input,
            Err(error) => {
                self.error.get_or_insert(error);
                return None;
            }
        };
        let values_max = memory_of(self.limits).and(self.work_left);
        let mut machine = Machine::new(input, values_max);
        let mut ended = Ended {
            seen: Seen::default(),
            any_whole: false,
            end: 0,
            fault: None,
            is_torch: false,
            storages_end: None,
        };
        let mut values = Vec::new();
        for count in 0..PICKLES_MAX {
            if machine.input.left() == 0 || (ended.is_torch && count == TORCH_PICKLES) {
                break;
            }
            match machine.run(&mut ended.seen) {
                Ok(value) => {
                    ended.any_whole = true;
                    ended.end = machine.input.at();
                    ended.is_torch |=
                        count == 0 && is_magic(&machine.heap, &mut machine.input, value);
                    if ended.is_torch {
                        values.push(value);
                    }
                }
                Err(fault) => {
                    if let Problem::Io(error) = fault.problem {
                        self.error.get_or_insert(error);
                        return None;
                    }
                    // Behind the break nothing runs in a loader that breaks there as well.
                    sweep(&mut machine.input, &mut ended.seen);
                    ended.fault = Some(fault);
                    break;
                }
            }
        }
        self.work_left = self.work_left.saturating_sub(machine.memory_bytes());
        ended.seen.find_packed(&machine.heap, &mut machine.input);
        if hands_on_nested_load(&machine.heap) {
            let message =
                "hands `torch.storage._load_from_bytes`, which loads any pickle, to something else";
            let (severity, rule) = (Severity::Dangerous, Rule::Call);
            ended.seen.tell(severity, rule, 0, message.to_owned());
        }
        if let Ok(values) = <[Id; TORCH_PICKLES]>::try_from(values) {
            ended.storages_end = Some(storages_end(self.limits, bytes, machine, values));
        }
        Some(ended)
    }

    /// Tells of a break, and of what stands behind the last pickle or storage.
    fn ending(&mut self, bytes: &dyn ReadAt, ended: &Ended, member: &str, depth: u32) {
        let all = bytes.byte_count().unwrap_or(0);
        let left = all.saturating_sub(ended.end);
        match (&ended.fault, &ended.storages_end) {
            (Some(fault), _) if !ended.any_whole || ended.is_torch => {
                let message = format!("cannot be followed any further: {}", fault.problem);
                self.suspicious(Rule::BrokenPickle, member, fault.at, message);
            }
            (_, Some(Err(why))) => {
                let message =
                    format!("its storages cannot be told from what else may follow: {why}");
                self.suspicious(Rule::BrokenPickle, member, ended.end, message);
                let part = Part {
                    of: bytes,
                    at: ended.end,
                    len: left,
                };
                let inner = super::archive::join(member, "behind the pickles");
                self.blob(&part, "", &inner, depth + 1);
            }
            (_, Some(Ok(end))) if *end < all => {
                let message = format!("{} bytes behind the last storage", all - end);
                self.suspicious(Rule::TrailingData, member, *end, message);
                let part = Part {
                    of: bytes,
                    at: *end,
                    len: all - end,
                };
                let inner = super::archive::join(member, "behind the storages");
                self.blob(&part, "", &inner, depth + 1);
            }
            (_, None) if left > 0 && !ended.is_torch => {
                let message = format!("{left} bytes behind the last STOP, and they are no pickle");
                self.suspicious(Rule::TrailingData, member, ended.end, message);
            }
            _ => {}
        }
    }

    fn report(&mut self, seen: Seen, bytes: &dyn ReadAt, member: &str, depth: u32) {
        self.packed(&seen, bytes, member, depth);
        for (severity, rule, at, message) in seen.told {
            self.find(severity, rule, member, at, message);
        }
        self.unlisted_count += seen.untold;
        for ((module, name), (count, at_byte)) in seen.globals {
            let standing = standing(&module, &name);
            let what = match standing {
                Standing::Allowed => "part of how tensors and plain data are written",
                Standing::Inert => "a class of plain data",
                Standing::Unknown => "not on the list of what tensors need; nothing is known of it",
                Standing::Dangerous => "it can run code, open files or reach the network",
            };
            self.add(Finding {
                severity: severity_of(standing),
                rule: Rule::Global,
                member: member.to_owned(),
                at_byte,
                message: format!("{module}.{name}: {what}"),
                count,
            });
        }
        let nested: HashSet<u64> = seen.nested.keys().copied().collect();
        for blob in seen.inner {
            if nested.contains(&blob.at) {
                continue;
            }
            let part = Part {
                of: bytes,
                at: blob.at,
                len: blob.len,
            };
            let inner = super::archive::join(member, &format!("bytes at {}", blob.at));
            self.blob(&part, "", &inner, depth + 1);
        }
        for (blob, coding) in seen.nested.into_values() {
            self.nested_file(bytes, blob, coding, member, depth);
        }
    }

    /// The bytes for which a text stands: `None` if they are too many, `Some(None)` if it is no such text.
    fn decoded(&mut self, text: &Part<'_>, coding: Coding) -> Option<Option<Vec<u8>>> {
        let room = HELD_BYTES_MAX.saturating_sub(self.held_bytes);
        let limit = room.min(self.limits.memory_bytes_max).min(self.work_left);
        self.work_left = self.work_left.saturating_sub(text.len);
        (text.len <= limit).then(|| {
            let mut bytes = vec![0; text.len as usize];
            read_exact_at(text, &mut bytes, 0).ok()?;
            decode_latin1(bytes, coding)
        })
    }

    /// Looks into strings that nothing in the pickle loads, but another program may.
    fn packed(&mut self, seen: &Seen, bytes: &dyn ReadAt, member: &str, depth: u32) {
        let loaded = |blob: &Blob| seen.inner.contains(blob) || seen.nested.contains_key(&blob.at);
        for (blob, coding) in seen.packed.iter().filter(|(blob, _)| !loaded(blob)) {
            let inner = super::archive::join(member, &format!("bytes at {}", blob.at));
            let cost = blob.len.min(PACKED_LOOK_BYTES) + 256;
            if depth >= DEPTH_MAX || self.work_left < cost {
                let message = "strings in strings, too many or too deep: not looked into";
                self.suspicious(Rule::NotScannable, &inner, 0, message);
                return;
            }
            self.work_left -= cost;
            let part = Part {
                of: bytes,
                at: blob.at,
                len: blob.len,
            };
            self.only_data += 1;
            let decoded = match coding {
                Some(coding) => self.decoded(&part, *coding).flatten(),
                None => None,
            };
            match decoded {
                Some(content) => {
                    let held = content.len() as u64;
                    self.held_bytes += held;
                    self.packed_content(&Memory(content), &inner, depth + 1);
                    self.held_bytes -= held;
                }
                None => self.packed_content(&part, &inner, depth + 1),
            }
            self.only_data -= 1;
        }
        if seen.has_more_packed {
            let message = format!(
                "more than {PACKED_MAX} strings that may be pickles: the others were not looked into"
            );
            self.suspicious(Rule::NotScannable, member, 0, message);
        }
    }

    /// What such a string holds: an archive, a stream that unpacks, a pickle, or mostly nothing.
    pub(super) fn packed_content(&mut self, bytes: &dyn ReadAt, member: &str, depth: u32) {
        let mut start = [0; 4];
        let len = read_up_to(bytes, &mut start, 0).unwrap_or(0);
        let start = &start[..len];
        let is_archive = start == b"PK\x03\x04" || start.starts_with(b"\x1f\x8b\x08");
        if is_archive || (super::archive::is_zlib(start) && self.unpacks(bytes)) {
            self.blob(bytes, "", member, depth);
        } else if let Some(content) = base64(bytes) {
            self.packed_content(&Memory(content), member, depth + 1);
        } else {
            self.hidden_pickle(bytes, member, depth);
        }
    }

    /// A file within the file: what `torch.storage._load_from_bytes` would load.
    fn nested_file(
        &mut self,
        bytes: &dyn ReadAt,
        blob: Blob,
        coding: Option<Coding>,
        member: &str,
        depth: u32,
    ) {
        let part = Part {
            of: bytes,
            at: blob.at,
            len: blob.len,
        };
        let inner = super::archive::join(member, &format!("bytes at {}", blob.at));
        self.nested += 1;
        let kind = match coding {
            None => Some(self.blob(&part, "", &inner, depth + 1)),
            Some(coding) => match self.decoded(&part, coding) {
                Some(Some(content)) => {
                    let held = content.len() as u64;
                    self.held_bytes += held;
                    let kind = self.blob(&Memory(content), "", &inner, depth + 1);
                    self.held_bytes -= held;
                    Some(kind)
                }
                Some(None) => Some("no Latin-1 text".into()),
                None => {
                    let message = format!(
                        "a file within the file, of {} bytes as text: not looked into",
                        blob.len
                    );
                    self.suspicious(Rule::NotScannable, &inner, 0, message);
                    None
                }
            },
        };
        self.nested -= 1;
        if let Some(kind) = kind.filter(|kind| !kind.starts_with("PyTorch")) {
            let message =
                format!("a storage would be loaded from what torch.save never writes: {kind}");
            self.suspicious(Rule::Oddity, &inner, 0, message);
        }
    }
}
