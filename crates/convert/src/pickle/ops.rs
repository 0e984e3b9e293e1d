//! The instructions of protocols 0 to 5, decoded.
//!
//! Source: CPython 3.13, `Lib/pickletools.py`.

use super::heap::Coding;
use super::input::{Blob, Input};
use super::{Fault, Problem};

/// One instruction with its argument. Names are pickletools'.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Op {
    Mark,
    Stop,
    Pop,
    PopMark,
    Dup,
    None,
    Bool(bool),
    Int(i64),
    /// A whole number that does not fit: two's complement, or decimal digits.
    Long(Blob),
    Float(f64),
    Bytes(Blob),
    Text(Blob, Coding),
    Global(Blob, Blob),
    StackGlobal,
    Reduce,
    Build,
    Inst(Blob, Blob),
    Obj,
    NewObj,
    NewObjEx,
    PersId(Blob),
    BinPersId,
    Ext(u32),
    EmptyTuple,
    Tuple,
    TupleOf(usize),
    EmptyList,
    List,
    Append,
    Appends,
    EmptyDict,
    Dict,
    SetItem,
    SetItems,
    EmptySet,
    AddItems,
    FrozenSet,
    Put(u64),
    Get(u64),
    Memoize,
    Proto(u8),
    Frame(u64),
    NextBuffer,
    ReadonlyBuffer,
}

/// Text lines are never longer in honest pickles where a number stands.
const NUMBER_CHARS_MAX: u64 = 64;

/// Reads one instruction.
pub(crate) fn decode(input: &mut Input<'_>) -> Result<Op, Fault> {
    let at = input.at();
    let [opcode] = input.array()?;
    Ok(match opcode {
        b'(' => Op::Mark,
        b'.' => Op::Stop,
        b'0' => Op::Pop,
        b'1' => Op::PopMark,
        b'2' => Op::Dup,
        b'N' => Op::None,
        0x88 => Op::Bool(true),
        0x89 => Op::Bool(false),
        b'c' => Op::Global(input.line()?, input.line()?),
        0x93 => Op::StackGlobal,
        b'R' => Op::Reduce,
        b'b' => Op::Build,
        b'i' => Op::Inst(input.line()?, input.line()?),
        b'o' => Op::Obj,
        0x81 => Op::NewObj,
        0x92 => Op::NewObjEx,
        b'P' => Op::PersId(input.line()?),
        b'Q' => Op::BinPersId,
        0x82 => Op::Ext(u32::from(input.array::<1>()?[0])),
        0x83 => Op::Ext(u32::from(u16::from_le_bytes(input.array()?))),
        0x84 => Op::Ext(u32::from_le_bytes(input.array()?)),
        b')' => Op::EmptyTuple,
        b't' => Op::Tuple,
        0x85..=0x87 => Op::TupleOf(usize::from(opcode - 0x84)),
        b']' => Op::EmptyList,
        b'l' => Op::List,
        b'a' => Op::Append,
        b'e' => Op::Appends,
        b'}' => Op::EmptyDict,
        b'd' => Op::Dict,
        b's' => Op::SetItem,
        b'u' => Op::SetItems,
        0x8f => Op::EmptySet,
        0x90 => Op::AddItems,
        0x91 => Op::FrozenSet,
        0x94 => Op::Memoize,
        0x80 => Op::Proto(input.array::<1>()?[0]),
        0x95 => Op::Frame(u64::from_le_bytes(input.array()?)),
        0x97 => Op::NextBuffer,
        0x98 => Op::ReadonlyBuffer,
        b'p' | b'g' | b'q' | b'r' | b'h' | b'j' => memo_op(opcode, input)?,
        b'I' | b'L' | b'F' | b'J' | b'K' | b'M' | b'G' | 0x8a | 0x8b => number_op(opcode, input)?,
        b'S' | b'V' | b'T' | b'U' | b'X' | 0x8c | 0x8d | b'B' | b'C' | 0x8e | 0x96 => {
            string_op(opcode, input)?
        }
        _ => {
            let problem = Problem::UnknownOpcode(opcode);
            return Err(Fault { at, problem });
        }
    })
}

fn memo_op(opcode: u8, input: &mut Input<'_>) -> Result<Op, Fault> {
    Ok(match opcode {
        b'p' => Op::Put(line_index(input)?),
        b'g' => Op::Get(line_index(input)?),
        b'q' => Op::Put(u64::from(input.array::<1>()?[0])),
        b'h' => Op::Get(u64::from(input.array::<1>()?[0])),
        b'r' => Op::Put(u64::from(u32::from_le_bytes(input.array()?))),
        _ => Op::Get(u64::from(u32::from_le_bytes(input.array()?))),
    })
}

fn number_op(opcode: u8, input: &mut Input<'_>) -> Result<Op, Fault> {
    Ok(match opcode {
        b'J' => Op::Int(i64::from(i32::from_le_bytes(input.array()?))),
        b'K' => Op::Int(i64::from(input.array::<1>()?[0])),
        b'M' => Op::Int(i64::from(u16::from_le_bytes(input.array()?))),
        b'G' => Op::Float(f64::from_be_bytes(input.array()?)),
        0x8a => {
            let [len] = input.array()?;
            binary_long(input, u64::from(len))?
        }
        0x8b => {
            let len = positive(input)?;
            binary_long(input, len)?
        }
        b'F' => {
            let (at, text) = number_line(input)?.1;
            let float = text.replace('_', "").parse();
            Op::Float(float.map_err(|_| bad(at, "FLOAT without a number"))?)
        }
        _ => {
            let (blob, (at, text)) = number_line(input)?;
            match text.as_str() {
                "00" if opcode == b'I' => Op::Bool(false),
                "01" if opcode == b'I' => Op::Bool(true),
                _ => whole_number(&text, blob)
                    .ok_or_else(|| bad(at, "INT or LONG without a number"))?,
            }
        }
    })
}

fn string_op(opcode: u8, input: &mut Input<'_>) -> Result<Op, Fault> {
    Ok(match opcode {
        b'S' => Op::Text(input.line()?, Coding::Quoted),
        b'V' => Op::Text(input.line()?, Coding::UnicodeEscape),
        b'T' => {
            let len = positive(input)?;
            Op::Text(input.blob(len)?, Coding::Plain)
        }
        b'U' | 0x8c => {
            let [len] = input.array()?;
            Op::Text(input.blob(u64::from(len))?, Coding::Plain)
        }
        b'X' => {
            let len = u32::from_le_bytes(input.array()?);
            Op::Text(input.blob(u64::from(len))?, Coding::Plain)
        }
        0x8d => {
            let len = u64::from_le_bytes(input.array()?);
            Op::Text(input.blob(len)?, Coding::Plain)
        }
        b'B' => {
            let len = u32::from_le_bytes(input.array()?);
            Op::Bytes(input.blob(u64::from(len))?)
        }
        b'C' => {
            let [len] = input.array()?;
            Op::Bytes(input.blob(u64::from(len))?)
        }
        _ => {
            let len = u64::from_le_bytes(input.array()?); // BINBYTES8, BYTEARRAY8
            Op::Bytes(input.blob(len)?)
        }
    })
}

fn bad(at: u64, what: &'static str) -> Fault {
    let problem = Problem::Bad(what);
    Fault { at, problem }
}

/// A four-byte length, which is signed.
fn positive(input: &mut Input<'_>) -> Result<u64, Fault> {
    let at = input.at();
    u64::try_from(i32::from_le_bytes(input.array()?)).map_err(|_| bad(at, "a negative length"))
}

/// LONG1, LONG4: two's complement, little-endian.
fn binary_long(input: &mut Input<'_>, len: u64) -> Result<Op, Fault> {
    let blob = input.blob(len)?;
    if len > 8 {
        return Ok(Op::Long(blob));
    }
    let bytes = input.read(blob, 8)?;
    let fill = if bytes.last().is_some_and(|top| top & 0x80 != 0) {
        0xff
    } else {
        0
    };
    let mut whole = [fill; 8];
    whole[..bytes.len()].copy_from_slice(&bytes);
    Ok(Op::Int(i64::from_le_bytes(whole)))
}

/// A line with a number: where it lies, where it starts and its text, cut where no number is that long.
fn number_line(input: &mut Input<'_>) -> Result<(Blob, (u64, String)), Fault> {
    let blob = input.line()?;
    let bytes = input.read(blob, NUMBER_CHARS_MAX + 1)?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    Ok((blob, (blob.at, text)))
}

/// A whole number in Python's notation. One that is longer than 64 bits stays where it is.
fn whole_number(text: &str, blob: Blob) -> Option<Op> {
    let digits = text.strip_suffix(['L', 'l']).unwrap_or(text);
    if let Ok(number) = digits.parse() {
        return Some(Op::Int(number));
    }
    let unsigned = digits.strip_prefix(['-', '+']).unwrap_or(digits);
    let (digits, radix) = match unsigned.get(..2) {
        Some("0x" | "0X") => (&unsigned[2..], 16),
        Some("0o" | "0O") => (&unsigned[2..], 8),
        Some("0b" | "0B") => (&unsigned[2..], 2),
        _ => (unsigned, 10),
    };
    let is_number = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix) || c == '_');
    is_number.then_some(Op::Long(blob))
}

fn line_index(input: &mut Input<'_>) -> Result<u64, Fault> {
    let (at, text) = number_line(input)?.1;
    text.parse()
        .map_err(|_| bad(at, "a memo index without a number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Memory;

    #[track_caller]
    fn check(bytes: &[u8], expected: Op) {
        let memory = Memory(bytes.to_vec());
        let mut input = Input::new(&memory, 0).unwrap();
        let op = decode(&mut input).unwrap();
        assert_eq!(op, expected, "{}", bytes.escape_ascii());
        assert_eq!(input.left(), 0, "{}", bytes.escape_ascii());
    }

    #[track_caller]
    fn refuse(bytes: &[u8], expected: &str) {
        let memory = Memory(bytes.to_vec());
        let mut input = Input::new(&memory, 0).unwrap();
        let problem = decode(&mut input).unwrap_err().problem.to_string();
        assert!(problem.contains(expected), "{problem}");
    }

    #[test]
    fn numbers() {
        check(b"I5\n", Op::Int(5));
        check(b"I-5\n", Op::Int(-5));
        check(b"I01\n", Op::Bool(true));
        check(b"I00\n", Op::Bool(false));
        check(b"L12L\n", Op::Int(12));
        check(b"F1.5\n", Op::Float(1.5));
        check(b"Finf\n", Op::Float(f64::INFINITY));
        check(b"J\xff\xff\xff\xff", Op::Int(-1));
        check(b"K\xff", Op::Int(255));
        check(b"M\x01\x02", Op::Int(513));
        check(b"G?\xf8\0\0\0\0\0\0", Op::Float(1.5));
        check(b"\x8a\0", Op::Int(0));
        check(b"\x8a\x01\x80", Op::Int(-128));
        check(b"\x8b\x02\0\0\0\xff\0", Op::Int(255));
        check(
            b"\x8a\x09\x01\x02\x03\x04\x05\x06\x07\x08\x09",
            Op::Long(Blob { at: 2, len: 9 }),
        );
        check(
            b"I99999999999999999999\n",
            Op::Long(Blob { at: 1, len: 20 }),
        );
        check(b"I0x1f\n", Op::Long(Blob { at: 1, len: 4 }));
        refuse(b"Ifive\n", "without a number");
        refuse(b"F\n", "without a number");
        refuse(b"\x8b\xff\xff\xff\xff", "negative");
        refuse(b"\x8b\xff\xff\xff\x7f", "2147483647 bytes where 0");
    }

    #[test]
    fn strings_stay_where_they_are() {
        check(b"U\x02ab", Op::Text(Blob { at: 2, len: 2 }, Coding::Plain));
        check(b"S'a'\n", Op::Text(Blob { at: 1, len: 3 }, Coding::Quoted));
        check(b"C\x01x", Op::Bytes(Blob { at: 2, len: 1 }));
        check(
            b"cos\nsystem\n",
            Op::Global(Blob { at: 1, len: 2 }, Blob { at: 4, len: 6 }),
        );
        refuse(b"X\xff\xff\xff\xffab", "4294967295 bytes where 2");
        refuse(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffab", "bytes where 2");
        refuse(b"cos\nsystem", "ends before");
        refuse(b"\xff", "no opcode is 0xff");
        refuse(b"", "ends before");
    }

    #[test]
    fn memo() {
        check(b"p7\n", Op::Put(7));
        check(b"g7\n", Op::Get(7));
        check(b"r\0\0\0\x80", Op::Put(1 << 31));
        check(b"h\x09", Op::Get(9));
        refuse(b"p-1\n", "memo index");
    }
}
