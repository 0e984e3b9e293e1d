//! Values a pickle builds, as inert data in one arena: no nesting is ever walked by recursion.

use super::input::{Blob, Input};
use super::{Fault, Problem};

/// A value's position in the [`Heap`].
pub(crate) type Id = u32;

/// How a string's bytes stand for text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Coding {
    /// As they are; UTF-8, or an eight-bit string of Python 2.
    Plain,
    /// In quotes, with Python's backslash escapes (STRING).
    Quoted,
    /// Latin-1 with `\uXXXX` (UNICODE).
    UnicodeEscape,
}

/// How something would be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// `function(*arguments)`.
    Reduce,
    /// `cls.__new__(cls, *arguments, **keywords)`.
    NewObj,
    /// `cls(*arguments)`, by OBJ or INST.
    Instance,
}

/// What would have been called, with what, and what would have been done to the result.
#[derive(Debug)]
pub(crate) struct Call {
    /// Mostly a [`Node::Global`].
    pub(crate) function: Id,
    /// Mostly a [`Node::Tuple`].
    pub(crate) arguments: Id,
    /// NEWOBJ_EX's.
    pub(crate) keywords: Option<Id>,
    /// In which way.
    pub(crate) how: How,
    /// What BUILD would have given to it, last first in effect.
    pub(crate) state: Option<Id>,
    /// Keys and values in turn, from SETITEM and SETITEMS.
    pub(crate) items: Vec<Id>,
    /// From APPEND, APPENDS and ADDITEMS.
    pub(crate) elements: Vec<Id>,
}

/// A value.
#[derive(Debug)]
pub(crate) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// A whole number of more than 64 bits.
    Long(Blob),
    Float(f64),
    Bytes(Blob),
    Text(Blob, Coding),
    Tuple(Box<[Id]>),
    List(Vec<Id>),
    Set(Vec<Id>),
    /// Keys and values in turn; of equal keys the last counts.
    Dict(Vec<Id>),
    /// A position in [`Heap::global`].
    Global(u32),
    Call(Box<Call>),
    /// A persistent id: how torch names storages.
    Persistent(Id),
    /// An extension code or an out-of-band buffer: its meaning lies outside of the pickle.
    Outside,
}

/// All values of a pickle.
#[derive(Default)]
pub(crate) struct Heap {
    pub(crate) nodes: Vec<Node>,
    pub(crate) globals: Vec<(String, String)>,
}

impl Heap {
    /// The value at `id`.
    pub(crate) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    /// Module and name, if the value is a global.
    pub(crate) fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.node(id) {
            Node::Global(index) => {
                let (module, name) = &self.globals[*index as usize];
                Some((module, name))
            }
            _ => None,
        }
    }

    /// The elements of a tuple or list.
    pub(crate) fn elements(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(elements) => Some(elements),
            Node::List(elements) => Some(elements),
            _ => None,
        }
    }

    /// The values that a value holds, one after the other; none for plain ones.
    pub(crate) fn children(&self, id: Id) -> impl Iterator<Item = Id> + '_ {
        let (one, two): (&[Id], &[Id]) = match self.node(id) {
            Node::Tuple(elements) => (elements, &[]),
            Node::List(elements) | Node::Set(elements) | Node::Dict(elements) => (elements, &[]),
            Node::Call(call) => (&call.items, &call.elements),
            _ => (&[], &[]),
        };
        let more = match self.node(id) {
            Node::Call(call) => [
                Some(call.function),
                Some(call.arguments),
                call.keywords,
                call.state,
            ],
            Node::Persistent(id) => [Some(*id), None, None, None],
            _ => [None; 4],
        };
        let lists = one.iter().chain(two).copied();
        lists.chain(more.into_iter().flatten())
    }

    /// Bytes, and how they are written where they stand as a text: what protocols before 3 have instead of bytes is
    /// `_codecs.encode(text, 'latin1')`.
    pub(crate) fn bytes(&self, id: Id) -> Option<(Blob, Option<Coding>)> {
        match self.node(id) {
            Node::Bytes(blob) => Some((*blob, None)),
            Node::Call(call) => {
                let (module, name) = self.global(call.function)?;
                let arguments = self.elements(call.arguments)?;
                let first = *arguments.first()?;
                match (self.node(first), name) {
                    (Node::Text(blob, coding), "encode")
                        if module == "_codecs"
                            && *coding != Coding::Quoted
                            && arguments.len() == 2 =>
                    {
                        Some((*blob, Some(*coding)))
                    }
                    (Node::Bytes(blob), "bytearray" | "bytes") => Some((*blob, None)),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// The class that a legacy PyTorch file names together with its source: `('module', class, file, source)` as a persistent id.
    /// Other values are themselves.
    pub(crate) fn class_with_source(&self, id: Id) -> Id {
        match self.node(id) {
            Node::Persistent(of) => match self.elements(*of) {
                Some(&[_, class, file, source])
                    if self.global(class).is_some()
                        && [file, source]
                            .iter()
                            .all(|id| matches!(self.node(*id), Node::Text(..))) =>
                {
                    class
                }
                _ => id,
            },
            _ => id,
        }
    }

    /// A text's characters; `None` if the value is no text or its bytes are none. `most` bytes are read.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn text(
        &self,
        id: Id,
        input: &mut Input<'_>,
        most: u64,
    ) -> Result<Option<String>, Fault> {
        let Node::Text(blob, coding) = *self.node(id) else {
            return Ok(None);
        };
        if blob.len > most {
            let (what, value, limit) = ("bytes of a name", blob.len, most.into());
            let problem = Problem::Limit { what, value, limit };
            return Err(Fault {
                at: blob.at,
                problem,
            });
        }
        let bytes = input.read(blob, most)?;
        Ok(decode_text(bytes, coding))
    }
}

/// Text from its bytes.
pub(crate) fn decode_text(bytes: Vec<u8>, coding: Coding) -> Option<String> {
    match coding {
        Coding::Plain => String::from_utf8(bytes).ok(),
        Coding::Quoted => {
            let text = bytes.trim_ascii();
            let quote = *text.first().filter(|quote| b"'\"".contains(quote))?;
            let inner = text.strip_prefix(&[quote])?.strip_suffix(&[quote])?;
            String::from_utf8(unescape(inner)?).ok()
        }
        Coding::UnicodeEscape => unicode_unescape(&bytes),
    }
}

/// Python's escapes in a byte string (`codecs.escape_decode`).
fn unescape(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        let (escape, tail) = rest.split_first()?;
        rest = tail;
        match escape {
            b'\n' => {}
            b'\\' | b'\'' | b'"' => out.push(*escape),
            b'a' => out.push(7),
            b'b' => out.push(8),
            b't' => out.push(9),
            b'n' => out.push(10),
            b'v' => out.push(11),
            b'f' => out.push(12),
            b'r' => out.push(13),
            b'x' => {
                let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
                out.push(u8::from_str_radix(digits, 16).ok()?);
                rest = &rest[2..];
            }
            b'0'..=b'7' => {
                let mut value = u32::from(escape - b'0');
                for _ in 0..2 {
                    if let [digit @ b'0'..=b'7', tail @ ..] = rest {
                        value = value * 8 + u32::from(digit - b'0');
                        rest = tail;
                    }
                }
                out.push(value as u8);
            }
            other => out.extend_from_slice(&[b'\\', *other]),
        }
    }
    Some(out)
}

/// Python's `raw-unicode-escape`: Latin-1, with `\uXXXX` and `\UXXXXXXXX`.
fn unicode_unescape(bytes: &[u8]) -> Option<String> {
    let mut out = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        let len = match rest {
            [b'\\', b'u', ..] => 4,
            [b'\\', b'U', ..] => 8,
            // Whatever follows a backslash is no start of an escape, another one included.
            [b'\\', other, tail @ ..] => {
                out.extend(['\\', char::from(*other)]);
                rest = tail;
                continue;
            }
            _ => {
                out.push(char::from(*first));
                rest = tail;
                continue;
            }
        };
        let digits = std::str::from_utf8(rest.get(2..2 + len)?).ok()?;
        out.push(char::from_u32(u32::from_str_radix(digits, 16).ok()?)?);
        rest = &rest[2 + len..];
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let check = |bytes: &[u8], coding, expected: Option<&str>| {
            let text = decode_text(bytes.to_vec(), coding);
            assert_eq!(text.as_deref(), expected, "{}", bytes.escape_ascii());
        };
        check("größe".as_bytes(), Coding::Plain, Some("größe"));
        check(b"\xff", Coding::Plain, None);
        check(b"'os'", Coding::Quoted, Some("os"));
        check(b"\"a\\'\\x41\\101\\n\"", Coding::Quoted, Some("a'AA\n"));
        check(b"'os", Coding::Quoted, None);
        check(b"'", Coding::Quoted, None);
        check(b"'\\", Coding::Quoted, None);
        check(b"'\\x4'", Coding::Quoted, None);
        check(b"o\\u0073\xe9", Coding::UnicodeEscape, Some("os\u{e9}"));
        check(b"\\U0001f600", Coding::UnicodeEscape, Some("\u{1f600}"));
        check(b"\\ud800", Coding::UnicodeEscape, None);
        check(b"\\u00", Coding::UnicodeEscape, None);
        check(b"\\\\u0041", Coding::UnicodeEscape, Some("\\\\u0041"));
        check(b"\\\\\\u0041", Coding::UnicodeEscape, Some("\\\\A"));
        check(b"a\\", Coding::UnicodeEscape, Some("a\\"));
    }
}
