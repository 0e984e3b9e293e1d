//! Whether bytes are a pickle although nothing marks them as one: protocols 0 and 1 have no first bytes of their own.

use std::io;

use safelight_store::ReadAt;

use super::is_magic;
use crate::bytes::{Part, read_up_to};
use crate::pickle::{Heap, Id, Input, Machine, Problem, Standing, Watch, standing};
use crate::source::Bound;

/// As much of a file as is followed.
const LOOKED_AT_BYTES: u64 = 16 * 1024 * 1024;

/// As much memory as that may take.
const VALUES_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Pickles one after the other, at most.
const PICKLES_MAX: usize = 100;

/// What tells a pickle from a text that can be decoded as one for a while.
#[derive(Default)]
struct Traces {
    /// It names something that pickles name.
    is_known: bool,
    /// It names something that could be a module's.
    is_named: bool,
    /// It calls that.
    is_called: bool,
}

impl Watch for Traces {
    fn global(&mut self, _at: u64, module: &str, name: &str) -> Result<(), Problem> {
        let is_word = |text: &str| {
            let mut chars = text.chars();
            !text.is_empty() && chars.all(|c| c.is_alphanumeric() || "._<>".contains(c))
        };
        if !is_word(module) || !is_word(name) {
            return Ok(());
        }
        self.is_named = true;
        self.is_known = standing(module, name) != Standing::Unknown;
        match self.is_known {
            true => Err(Problem::Bad("that is enough")),
            false => Ok(()),
        }
    }

    fn call(&mut self, _at: u64, _id: Id, _heap: &Heap, _input: &mut Input<'_>) {
        self.is_called |= self.is_named;
    }

    fn wide_memo(&mut self, _at: u64, _bytes: u64, _limit: Bound) -> Result<(), Problem> {
        Ok(())
    }
}

/// Whether the bytes are a pickle: they say so, they are one from the first byte to the last, they begin as PyTorch's old files
/// do, or what they name and call on the way can be no text. Nothing is executed.
///
/// # Errors
/// The system's.
pub(crate) fn is_pickle(bytes: &dyn ReadAt) -> io::Result<bool> {
    let mut start = [0; 2];
    read_up_to(bytes, &mut start, 0)?;
    if matches!(start, [0x80, 0..=5]) {
        return Ok(true);
    }
    let all = bytes.byte_count()?;
    let part = Part {
        of: bytes,
        at: 0,
        len: all.min(LOOKED_AT_BYTES),
    };
    let mut machine = Machine::new(Input::new(&part, 0)?, VALUES_BYTES_MAX);
    let mut traces = Traces::default();
    for _ in 0..PICKLES_MAX {
        let run = machine.run(&mut traces);
        if traces.is_known || traces.is_called {
            return Ok(true);
        }
        match run {
            Err(fault) => match fault.problem {
                Problem::Io(error) => return Err(error),
                _ => return Ok(false),
            },
            Ok(value) if is_magic(&machine.heap, &mut machine.input, value) => return Ok(true),
            Ok(_) if machine.input.at() == all => return Ok(true),
            Ok(_) => {}
        }
    }
    Ok(traces.is_named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Memory;

    #[test]
    fn pickles_without_a_mark() {
        for pickle in [
            &b"(dp0\nVa\np1\nI1\ns."[..],
            b"}q\0(X\x01\0\0\0aK\x01u.",
            b"L119547037146038801333356L\n.M\xe9\x03.",
            b"ccollections\nOrderedDict\nq\0)Rq\x01.",
            b"ccollections\nOrderedDict\np0\n(tR.",
            b"cos\nsystem\n(S'x'\ntR.",
            b"cos\nsystem\n(S'x'\ntR",
            b"(S'x'\nios\nsystem\n.",
            b"N0S'padding'\n0]0}0(1I5\n0cposix\nsystem\n.",
            b"N.I1\n.cos\nsystem\n)R.",
            b"cmy_module\nrun\n)R\xff",
            b"\x80\x02\x8b\x05\0\0\0",
        ] {
            assert!(
                is_pickle(&Memory(pickle.to_vec())).unwrap(),
                "{}",
                pickle.escape_ascii()
            );
        }
        for other in [
            &b""[..],
            b"c",
            b"contents\nof a text\nthat decodes a little\n",
            b"cosy\nsystem\n(and more words)",
            b"(a text in brackets)",
            b"I think so.\n",
            b"N.B.: a note\n",
            b"]]]\n",
            b"\x08\x07\x12\x04test",
            b"\0\0\0\0",
        ] {
            assert!(
                !is_pickle(&Memory(other.to_vec())).unwrap(),
                "{}",
                other.escape_ascii()
            );
        }
    }
}
