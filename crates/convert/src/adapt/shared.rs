//! Tensors with several names that were written once: the other names again.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::arrange::{Arranged, Take};
use crate::error::ConvertError;
use crate::source::{Note, Source};

/// `source` with a copy of the tensor for each other name that its metadata record, as
/// [`crate::SharedTensors::Once`] and `safetensors.torch.save_model` do: a key that is no tensor, with a tensor's name as its text. These keys
/// leave the metadata, and a note tells each.
///
/// # Errors
/// None at present; an arrangement could have two tensors of one name, and this one has not.
pub fn restore_shared(source: Arc<dyn Source>) -> Result<Arranged, ConvertError> {
    let (mut entries, mut notes) = (Vec::new(), Vec::new());
    for (index, tensor) in source.tensors().iter().enumerate() {
        entries.push((tensor.clone(), Take::Whole(index)));
    }
    let mut metadata = source.metadata().clone();
    let names: BTreeSet<&str> = source.contents().names().collect();
    let opaque = source.opaque().iter().enumerate();
    let mut opaque: Vec<(String, usize)> = opaque
        .map(|(position, tensor)| (tensor.name.clone(), position))
        .collect();
    let is_record = |key: &String, value: &String| {
        key != "format" && names.contains(value.as_str()) && !names.contains(key.as_str())
    };
    let records: Vec<(String, String)> = metadata
        .extract_if(.., |key, value| is_record(key, value))
        .collect();
    for (name, first) in records {
        let index = source.contents().names().position(|of| of == first);
        let index = index.expect("names are those of tensors");
        match source.tensors().get(index) {
            Some(tensor) => {
                let mut tensor = tensor.clone();
                tensor.name.clone_from(&name);
                entries.push((tensor, Take::Whole(index)));
            }
            None => opaque.push((name.clone(), index - source.tensors().len())),
        }
        notes.push(Note::new(
            name,
            format!("written again: the same tensor as `{first}`"),
        ));
    }
    Arranged::new(source, entries, metadata, notes, 0)?.with_opaque(opaque)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Memory;
    use safelight_format::Dtype;

    #[test]
    fn without_records_nothing_changes() {
        let source: Arc<dyn Source> = Arc::new(Memory::new([("a", Dtype::U8, vec![1], vec![7])]));
        let same = restore_shared(source.clone()).unwrap();
        assert_eq!(same.tensors(), source.tensors());
        assert!(same.notes().is_empty());
    }
}
