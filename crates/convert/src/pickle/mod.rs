//! Pickles as data: every opcode of protocols 0 to 5 is interpreted, and nothing is called, imported or built.
//!
//! A pickle is a program for a stack machine. [`Machine`] runs it with inert values: what would be a
//! call becomes a [`Call`] that says what would be called with what. Converting and scanning share this one
//! machine, so that they cannot see different things in the same bytes.
//!
//! Source: CPython 3.13, `Lib/pickletools.py` (the opcodes) and `Modules/_pickle.c` (what they do to the stack).

mod globals;
mod heap;
mod input;
mod machine;
mod ops;
mod show;

use std::fmt;
use std::io;

use safelight_format::shown;

pub(crate) use globals::{Standing, is_nested_load, standing};
pub(crate) use heap::{Call, Coding, Heap, Id, Node, decode_text};
pub(crate) use input::{Blob, Input};
pub(crate) use machine::{Machine, Watch, sweep};
pub(crate) use show::{printable, show};

use crate::error::ConvertError;
use crate::source::{Bound, LimitName, Limits};

/// Where and why a pickle cannot be followed any further.
#[derive(Debug)]
pub(crate) struct Fault {
    /// The byte in the pickle.
    pub(crate) at: u64,
    /// Why.
    pub(crate) problem: Problem,
}

/// Why a pickle cannot be followed.
#[derive(Debug)]
pub(crate) enum Problem {
    /// It ends within an instruction, or before STOP.
    End,
    /// A length that reaches beyond the end.
    TooLong { len: u64, left: u64 },
    /// A byte that is no opcode.
    UnknownOpcode(u8),
    /// An instruction takes more from the stack than there is.
    Underflow(&'static str),
    /// An instruction looks for a mark where there is none.
    NoMark(&'static str),
    /// Something is fetched that was never put.
    NotInMemo(u64),
    /// A protocol that does not exist yet.
    Protocol(u8),
    /// An argument that makes no sense.
    Bad(&'static str),
    /// More than a limit allows.
    Limit {
        what: &'static str,
        value: u64,
        limit: Bound,
    },
    /// A global that is not on the list.
    Refused { global: String, dangerous: bool },
    /// The system's error.
    Io(io::Error),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::End => write!(f, "it ends before its STOP; is it cut off?"),
            Problem::TooLong { len, left } => {
                write!(f, "a length of {len} bytes where {left} are left")
            }
            Problem::UnknownOpcode(byte) => write!(f, "no opcode is 0x{byte:02x}"),
            Problem::Underflow(op) => write!(f, "{op} finds too little on the stack"),
            Problem::NoMark(op) => write!(f, "{op} finds no mark"),
            Problem::NotInMemo(index) => write!(f, "memo entry {index} is fetched, never put"),
            Problem::Protocol(protocol) => write!(f, "protocol {protocol}; 0 to 5 are known"),
            Problem::Bad(what) => write!(f, "{what}"),
            Problem::Limit { what, value, limit } => {
                write!(f, "{value} {what}, limit {}", limit.most)
            }
            Problem::Refused { global, .. } => write!(f, "asks for `{}`", shown(global)),
            Problem::Io(error) => error.fmt(f),
        }
    }
}

impl Fault {
    /// The fault as an error about `file`, in its part `at`.
    pub(crate) fn of(self, file: &str, at: &str) -> ConvertError {
        let file = file.to_owned();
        match self.problem {
            Problem::Io(error) => ConvertError::Io {
                doing: "read",
                file,
                error,
            },
            Problem::Limit { what, value, limit } => {
                ConvertError::limit(&file, at, what, value, limit)
            }
            Problem::Refused { global, dangerous } => ConvertError::RefusedGlobal {
                file,
                global,
                at_byte: self.at,
                dangerous,
            },
            problem => ConvertError::Malformed {
                file,
                format: "pickle",
                at: at.to_owned(),
                problem: format!("at byte {}, {problem}", self.at),
            },
        }
    }
}

/// Lets the globals of tensors and plain data through and refuses the others by name.
pub(crate) struct Doorkeeper {
    /// Whether objects of unknown classes are let through, to be dropped.
    pub(crate) lets_unknown_in: bool,
}

impl Watch for Doorkeeper {
    fn global(&mut self, _at: u64, module: &str, name: &str) -> Result<(), Problem> {
        let fine = match standing(module, name) {
            Standing::Allowed | Standing::Inert => true,
            Standing::Unknown => self.lets_unknown_in,
            Standing::Dangerous => false,
        };
        if fine {
            return Ok(());
        }
        Err(Problem::Refused {
            global: format!("{module}.{name}"),
            dangerous: standing(module, name) == Standing::Dangerous,
        })
    }
}

/// How many bytes the values of a pickle may take, of what a file may. Together with what is unpacked at the same time that is
/// by default far below half a gigabyte.
pub(crate) fn memory_of(limits: &Limits) -> Bound {
    let memory = limits.bound(LimitName::Memory);
    limits.bound(LimitName::Pickle).and(memory)
}

/// How many bytes a compressed pickle may have: it is unpacked into memory.
pub(crate) fn unpacked_of(limits: &Limits) -> Bound {
    let mut pickle = limits.bound(LimitName::Pickle);
    pickle.most /= 2;
    pickle.and(limits.bound(LimitName::Memory))
}
