//! Pickles, as a scanner sees them: what they name, what they would call, and what comes after them.

use std::collections::BTreeMap;

use safelight_store::ReadAt;

use super::{Finding, Rule, Scanner, Severity};
use crate::bytes::{Part, read_up_to};
use crate::pickle::{
    Blob, Fault, Heap, Id, Input, Machine, Node, Problem, Standing, Watch, memory_of, show,
    standing, sweep,
};

/// Calls and oddities of one file that are told one by one.
const TOLD_MAX: usize = 500;

/// Byte strings handed to calls that are looked into.
const INNER_MAX: usize = 64;

/// Pickles after pickles in one file.
const PICKLES_MAX: usize = 10_000;

/// `0x1950a86a20f9469cfc6c` as LONG1: PyTorch's files before 1.6 begin so, behind PROTO and its number.
const TORCH_MAGIC: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

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
}

impl Seen {
    fn tell(&mut self, severity: Severity, rule: Rule, at: u64, message: String) {
        if self.told.len() < TOLD_MAX {
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

/// What is known of what would be called: a global's standing, or that of what made it.
fn standing_of(heap: &Heap, mut id: Id) -> Standing {
    for _ in 0..100 {
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
        self.globals.entry(key).or_insert((0, at)).0 += 1;
        Ok(())
    }

    fn call(&mut self, at: u64, id: Id, heap: &Heap, input: &mut Input<'_>) {
        let Node::Call(call) = heap.node(id) else {
            return;
        };
        let direct = heap.global(call.function).is_some();
        let known = standing_of(heap, call.function);
        if direct && matches!(known, Standing::Allowed | Standing::Inert) {
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
            Node::Call(call) if heap.global(call.function).is_some() => match known {
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

    fn oddity(&mut self, at: u64, what: &'static str) {
        self.tell(Severity::Suspicious, Rule::Oddity, at, what.to_owned());
    }
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
        self.ending(bytes, &ended, member);
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
        if !(known || (named && (ended.any_whole || calls))) {
            // One that names nothing does nothing.
            return ended.any_whole && Some(ended.end) == bytes.byte_count().ok();
        }
        if ended.seen.has_more_than_data() || depth == 0 {
            self.ending(bytes, &ended, member);
            self.report(ended.seen, bytes, member, depth);
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
        let mut start = [0; 2 + TORCH_MAGIC.len()];
        let is_read = read_up_to(bytes, &mut start, 0).is_ok();
        let is_torch = is_read && start[0] == 0x80 && start[2..] == *TORCH_MAGIC;
        let pickles_max = if is_torch { TORCH_PICKLES } else { PICKLES_MAX };
        let mut machine = Machine::new(input, memory_of(self.limits));
        let mut ended = Ended {
            seen: Seen::default(),
            any_whole: false,
            end: 0,
            fault: None,
            is_torch,
        };
        for _ in 0..pickles_max {
            if machine.input.left() == 0 {
                break;
            }
            match machine.run(&mut ended.seen) {
                Ok(_) => {
                    ended.any_whole = true;
                    ended.end = machine.input.at();
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
        Some(ended)
    }

    /// Tells of a break, and of what stands behind the last pickle.
    fn ending(&mut self, bytes: &dyn ReadAt, ended: &Ended, member: &str) {
        let left = bytes.byte_count().unwrap_or(0).saturating_sub(ended.end);
        match &ended.fault {
            Some(fault) if !ended.any_whole || ended.is_torch => {
                let message = format!("cannot be followed any further: {}", fault.problem);
                self.suspicious(Rule::BrokenPickle, member, fault.at, message);
            }
            _ if left > 0 && !ended.is_torch => {
                let message = format!("{left} bytes behind the last STOP, and they are no pickle");
                self.suspicious(Rule::TrailingData, member, ended.end, message);
            }
            _ => {}
        }
    }

    fn report(&mut self, seen: Seen, bytes: &dyn ReadAt, member: &str, depth: u32) {
        for (severity, rule, at, message) in seen.told {
            self.find(severity, rule, member, at, message);
        }
        self.unlisted_count += seen.untold;
        for ((module, name), (count, at_byte)) in seen.globals {
            let standing = standing(&module, &name);
            let what = match standing {
                Standing::Allowed => "part of how tensors and plain data are written",
                Standing::Inert => "a class of plain data",
                Standing::Unknown => "nothing is known of it",
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
        for blob in seen.inner {
            let part = Part {
                of: bytes,
                at: blob.at,
                len: blob.len,
            };
            let inner = super::archive::join(member, &format!("bytes at {}", blob.at));
            self.blob(&part, "", &inner, depth + 1);
        }
    }
}
