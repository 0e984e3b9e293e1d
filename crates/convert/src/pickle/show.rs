//! Values as Python would write them, cut where they are long.

use safelight_format::shown;

use super::heap::{Heap, How, Id, Node, decode_text};
use super::input::Input;

/// As many characters as are shown in all.
const CHARS_MAX: usize = 400;

/// As many bytes of a string as are shown.
const STRING_BYTES_MAX: u64 = 200;

/// As deep as containers are shown.
const DEPTH_MAX: usize = 6;

/// A value as Python would write it, on one line, at most some hundred characters long.
pub(crate) fn show(heap: &Heap, input: &mut Input<'_>, id: Id) -> String {
    let mut writer = Writer {
        heap,
        input,
        out: String::new(),
    };
    writer.value(id, 0);
    writer.out
}

/// Foreign text with everything escaped that a reader or a terminal would not see as it is; of any length.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            ' '..='~' => out.push(c),
            _ => out += &shown(c.encode_utf8(&mut [0; 4])).to_string(),
        }
    }
    out
}

struct Writer<'h, 'i, 'a> {
    heap: &'h Heap,
    input: &'i mut Input<'a>,
    out: String,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, id: Id, depth: usize) {
        if self.out.len() > CHARS_MAX {
            if !self.out.ends_with('…') {
                self.out.push('…');
            }
            return;
        }
        match self.heap.node(id) {
            Node::None => self.out.push_str("None"),
            Node::Bool(true) => self.out.push_str("True"),
            Node::Bool(false) => self.out.push_str("False"),
            Node::Int(value) => self.out.push_str(&value.to_string()),
            Node::Long(blob) => self.out += &format!("<a number of {} bytes>", blob.len),
            Node::Float(value) => self.out += &format!("{value:?}"),
            Node::Bytes(blob) => {
                let bytes = self.input.read(*blob, STRING_BYTES_MAX).unwrap_or_default();
                self.out += &format!("b'{}'", bytes.escape_ascii());
                self.cut(blob.len);
            }
            Node::Text(blob, coding) => {
                let bytes = self.input.read(*blob, STRING_BYTES_MAX).unwrap_or_default();
                let lossy = String::from_utf8_lossy(&bytes).into_owned();
                let text = decode_text(bytes, *coding).unwrap_or(lossy);
                self.out.push('\'');
                for c in text.chars() {
                    match c {
                        '\'' | '\\' => self.out.extend(['\\', c]),
                        c => self.out += &printable(c.encode_utf8(&mut [0; 4])),
                    }
                }
                self.out.push('\'');
                self.cut(blob.len);
            }
            Node::Tuple(elements) => {
                self.list("(", elements, depth);
                self.out
                    .push_str(if elements.len() == 1 { ",)" } else { ")" });
            }
            Node::List(elements) => {
                self.list("[", elements, depth);
                self.out.push(']');
            }
            Node::Set(elements) => {
                self.list("{", elements, depth);
                self.out.push('}');
            }
            Node::Dict(items) => self.items(items, depth),
            Node::Global(_) => self.global(id),
            Node::Call(_) => match self.encoded(id) {
                Some(text) => self.out += &text,
                None => self.call(id, depth),
            },
            Node::Persistent(_) if self.heap.class_with_source(id) != id => {
                self.global(self.heap.class_with_source(id));
            }
            Node::Persistent(id) => {
                self.out.push_str("<stored as ");
                self.value(*id, depth + 1);
                self.out.push('>');
            }
            Node::Outside => self.out.push_str("<from outside>"),
        }
    }

    /// Bytes that protocols before 3 write as `_codecs.encode(text, 'latin1')`, if they are few.
    fn encoded(&mut self, id: Id) -> Option<String> {
        let (blob, Some(coding)) = self.heap.bytes(id)? else {
            return None;
        };
        if blob.len > STRING_BYTES_MAX {
            return None;
        }
        let text = self.input.read(blob, STRING_BYTES_MAX).ok()?;
        let text = decode_text(text, coding)?;
        let bytes: Option<Vec<u8>> = text
            .chars()
            .map(|c| u8::try_from(u32::from(c)).ok())
            .collect();
        Some(format!("b'{}'", bytes?.escape_ascii()))
    }

    fn cut(&mut self, len: u64) {
        if len > STRING_BYTES_MAX {
            self.out += &format!("… ({len} bytes)");
        }
    }

    fn list(&mut self, open: &str, elements: &[Id], depth: usize) {
        self.out.push_str(open);
        for (position, element) in elements.iter().enumerate() {
            if position > 0 {
                self.out.push_str(", ");
            }
            if depth >= DEPTH_MAX || self.out.len() > CHARS_MAX || self.is_itself(*element, depth) {
                self.out.push_str("...");
                return;
            }
            self.value(*element, depth + 1);
        }
    }

    /// A container within containers of its own is shown once, so that cycles do not fill the line.
    fn is_itself(&self, element: Id, depth: usize) -> bool {
        depth > 0
            && matches!(self.heap.node(element), Node::List(elements) if elements.contains(&element))
    }

    fn items(&mut self, items: &[Id], depth: usize) {
        self.out.push('{');
        for (position, item) in items.chunks_exact(2).enumerate() {
            if position > 0 {
                self.out.push_str(", ");
            }
            if depth >= DEPTH_MAX || self.out.len() > CHARS_MAX {
                self.out.push_str("...");
                break;
            }
            self.value(item[0], depth + 1);
            self.out.push_str(": ");
            self.value(item[1], depth + 1);
        }
        self.out.push('}');
    }

    fn global(&mut self, id: Id) {
        if let Some((module, name)) = self.heap.global(id) {
            self.out += &printable(&format!("{module}.{name}"));
        }
    }

    fn call(&mut self, id: Id, depth: usize) {
        let Node::Call(call) = self.heap.node(id) else {
            return;
        };
        if depth >= DEPTH_MAX {
            self.out.push_str("...");
            return;
        }
        self.value(call.function, depth + 1);
        if call.how == How::NewObj {
            self.out.push_str(".__new__(");
            self.value(call.function, depth + 1);
            if self.heap.elements(call.arguments) != Some(&[]) {
                self.out.push_str(", ");
            }
        } else {
            self.out.push('(');
        }
        match self.heap.elements(call.arguments) {
            Some(elements) => self.list("", elements, depth),
            None => {
                self.out.push('*');
                self.value(call.arguments, depth + 1);
            }
        }
        if let Some(keywords) = call.keywords {
            self.out.push_str(", **");
            self.value(keywords, depth + 1);
        }
        self.out.push(')');
    }
}
