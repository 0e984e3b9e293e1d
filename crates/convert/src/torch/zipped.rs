//! What `torch.save` writes since PyTorch 1.6, and TorchScript archives: a zip with a pickle and a member for each storage.
//!
//! Source: PyTorch 2.x, `torch/serialization.py` (`_save`, `_load`) and `caffe2/serialize/inline_container.h`.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use safelight_format::shown;
use safelight_store::ReadAt;

use super::Context;
use super::flatten::flatten;
use super::objects::Objects;
use super::source::{Pickle, TorchSource, place_of};
use crate::bytes::{Memory, Part};
use crate::error::ConvertError;
use crate::open::UnknownObjects;
use crate::pickle::{Doorkeeper, Input, Machine, memory_of, unpacked_of};
use crate::source::{Bound, LimitName, Note, PIECE_BYTES, Source};
use crate::zip::{Archive, Member, Method};

/// Members of less than this many bytes may be compressed as well as they like.
const RATIO_BYTES_FREE: u64 = 64 * 1024 * 1024;

/// Opens an archive that holds `data.pkl`.
///
/// # Errors
/// What is wrong with the archive, the pickle or a tensor.
pub(crate) fn open_zip(
    context: &Context<'_>,
    file: Box<dyn ReadAt>,
) -> Result<Box<dyn Source>, ConvertError> {
    let archive = Archive::read(&*file).map_err(|error| context.io(error))?;
    if let Some(flaw) = archive.flaws.first() {
        return Err(ConvertError::malformed(
            &context.label,
            "zip",
            &flaw.member,
            flaw.to_string(),
        ));
    }
    check_ratio(context, &archive)?;
    let prefix = prefix(context, &archive)?;
    let named = |name: &str| {
        let whole = format!("{prefix}{name}");
        archive.members.iter().find(|member| member.name == whole)
    };
    let packed = |member: &&Member| member.name.starts_with(&prefix) && member.packing().is_some();
    if let Some(member) = archive.members.iter().find(packed) {
        let what = member.packing().unwrap_or_default();
        return Err(ConvertError::unsupported(
            &context.label,
            &member.name,
            what,
        ));
    }
    let is_torch_script = named("constants.pkl").is_some();
    let is_big_endian = match named("byteorder") {
        None => false,
        Some(member) => match read_all(context, &*file, member, 16.into())?.as_slice() {
            b"little" => false,
            b"big" => true,
            other => {
                let what = format!("byte order `{}`", other.escape_ascii());
                return Err(context.malformed(&member.name, what));
            }
        },
    };
    let mut places = HashMap::new();
    let data = format!("{prefix}data/");
    for member in &archive.members {
        if let Some(key) = member.name.strip_prefix(&data) {
            places.insert(key.to_owned(), place_of(member.clone()));
        }
    }
    let Some(pickle) = named("data.pkl") else {
        return Err(context.malformed("data.pkl", "it is not in the archive"));
    };
    let limits = &context.options.limits;
    // Where it lies in the archive as it is, it is read there.
    let lies_at = (pickle.method == Method::Stored).then_some(pickle.data_at);
    let (memory, len) = match lies_at {
        Some(_) => {
            check_content(context, &*file, pickle)?;
            (Memory(Vec::new()), pickle.content_bytes)
        }
        None => {
            let content = read_all(context, &*file, pickle, unpacked_of(limits))?;
            (Memory(content), 0)
        }
    };
    let memory = Arc::new(memory);
    let part = Part {
        of: &*file,
        at: lies_at.unwrap_or(0),
        len,
    };
    let bytes: &dyn ReadAt = if lies_at.is_some() { &part } else { &*memory };
    let input = Input::new(bytes, 0).map_err(|error| context.io(error))?;
    let mut machine = Machine::new(input, memory_of(limits));
    let mut doorkeeper = Doorkeeper {
        lets_unknown_in: context.options.unknown_objects == UnknownObjects::Drop,
    };
    let root = machine.run(&mut doorkeeper);
    let root = root.map_err(|fault| fault.of(&context.label, "data.pkl"))?;
    let mut objects = Objects::new(&machine.heap, &mut machine.input, context, is_torch_script);
    let mut holds = flatten(&mut objects, root)?;
    if is_torch_script {
        let what = "a TorchScript archive: its tensors are taken, its code is not";
        holds.notes.insert(0, Note::new("the file", what));
    }
    drop(machine);
    let pickle = lies_at.map_or(Pickle::Memory(memory), Pickle::File);
    let source = TorchSource::new(context, file, holds, &places, &pickle, is_big_endian)?;
    Ok(Box::new(source))
}

/// The folder in which `data.pkl` lies, with its slash.
fn prefix(context: &Context<'_>, archive: &Archive) -> Result<String, ConvertError> {
    let mut prefixes = archive.members.iter().filter_map(|member| {
        let prefix = member.name.strip_suffix("data.pkl")?;
        let whole = prefix.is_empty() || prefix.ends_with('/');
        whole.then_some(prefix)
    });
    let Some(prefix) = prefixes.next() else {
        let names: Vec<_> = archive
            .members
            .iter()
            .take(3)
            .map(|member| shown(&member.name).to_string())
            .collect();
        let what = format!(
            "a zip archive without `data.pkl` (it has {}): nothing torch.save wrote",
            names.join(", ")
        );
        return Err(ConvertError::unsupported(&context.label, "", what));
    };
    if let Some(other) = prefixes.next() {
        let what = format!("two pickles, in `{}` and `{}`", shown(prefix), shown(other));
        return Err(context.malformed("data.pkl", what));
    }
    Ok(prefix.to_owned())
}

/// A few bytes that would become very many are refused before any is unpacked.
fn check_ratio(context: &Context<'_>, archive: &Archive) -> Result<(), ConvertError> {
    let sum = |of: fn(&Member) -> u64| archive.members.iter().map(of).fold(0, u64::saturating_add);
    let (content, stored) = (
        sum(|member| member.content_bytes),
        sum(|member| member.stored_bytes),
    );
    let mut limit = context.options.limits.bound(LimitName::Ratio);
    limit.most = stored.saturating_mul(limit.most).max(RATIO_BYTES_FREE);
    if content > limit.most {
        let what = "bytes in compressed members";
        return Err(context.limit("", what, content, limit));
    }
    Ok(())
}

/// Compares a member's checksum.
fn check_content(
    context: &Context<'_>,
    file: &dyn ReadAt,
    member: &Member,
) -> Result<(), ConvertError> {
    let read = member.read(file, PIECE_BYTES, &mut |_| Ok(()));
    read.map_err(|error| content_error(context, member, error))
}

fn content_error(context: &Context<'_>, member: &Member, error: io::Error) -> ConvertError {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            ConvertError::malformed(&context.label, "zip", &member.name, error.to_string())
        }
        _ => context.io(error),
    }
}

/// A member's whole content.
fn read_all(
    context: &Context<'_>,
    file: &dyn ReadAt,
    member: &Member,
    limit: Bound,
) -> Result<Vec<u8>, ConvertError> {
    if member.content_bytes > limit.most {
        let what = "bytes in one member that must be in memory";
        return Err(context.limit(&member.name, what, member.content_bytes, limit));
    }
    let mut content = Vec::new();
    let read = member.read(file, PIECE_BYTES, &mut |piece| {
        content.try_reserve(piece.len()).map_err(io::Error::other)?;
        content.extend_from_slice(piece);
        Ok(())
    });
    read.map_err(|error| content_error(context, member, error))?;
    Ok(content)
}
