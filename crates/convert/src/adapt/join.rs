//! Several sources as one: the shards of a model.

use std::collections::BTreeMap;
use std::sync::Arc;

use safelight_format::{are, plural, shown};

use crate::error::ConvertError;
use crate::source::{Contents, Source};

/// The tensors of several sources behind each other; metadata of the first that has a key.
struct Joined {
    contents: Contents,
    sources: Vec<Arc<dyn Source>>,
    /// By index: which source, and the index there.
    places: Vec<(usize, usize)>,
}

/// All tensors of `sources` as one source.
///
/// # Errors
/// [`ConvertError::Request`] if there are none, naming the tensors that stand in more than one.
pub fn join(sources: Vec<Arc<dyn Source>>) -> Result<Arc<dyn Source>, ConvertError> {
    let label = match &sources[..] {
        [] => {
            return Err(ConvertError::Request {
                at: String::new(),
                problem: "nothing to join".into(),
            });
        }
        [only] => return Ok(only.clone()),
        [first, ..] => format!("{} and {} more", first.label(), sources.len() - 1),
    };
    let mut seen = BTreeMap::<&str, usize>::new();
    let mut twice = Vec::new();
    let (mut tensors, mut opaque, mut metadata, mut notes) =
        (vec![], vec![], BTreeMap::new(), vec![]);
    let (mut places, mut opaque_places) = (vec![], vec![]);
    for (source, joined) in sources.iter().enumerate() {
        for name in joined.contents().names() {
            if let Some(before) = seen.insert(name, source) {
                twice.push(format!(
                    "`{}` in {} and {}",
                    shown(name),
                    sources[before].label(),
                    joined.label()
                ));
            }
        }
        tensors.extend_from_slice(joined.tensors());
        opaque.extend_from_slice(joined.opaque());
        let known = joined.tensors().len();
        places.extend((0..known).map(|index| (source, index)));
        let behind = known..joined.contents().tensor_count();
        opaque_places.extend(behind.map(|index| (source, index)));
        for (key, value) in joined.metadata() {
            metadata.entry(key.clone()).or_insert_with(|| value.clone());
        }
        notes.extend_from_slice(joined.notes());
    }
    if !twice.is_empty() {
        let problem = format!(
            "{} {} in more than one file: {}; these are no shards of one model (models are merged with --weighted or --add-difference)",
            plural(twice.len() as u64, "tensor"),
            are(twice.len() as u64),
            twice.join("; ")
        );
        return Err(ConvertError::Request {
            at: String::new(),
            problem,
        });
    }
    places.append(&mut opaque_places);
    let contents = Contents {
        label,
        tensors,
        opaque,
        metadata,
        notes,
        ..Contents::default()
    };
    Ok(Arc::new(Joined {
        contents,
        sources,
        places,
    }))
}

/// [`Source::check`] of tensors of several sources: which source, and the index there.
pub(crate) fn check_each<S: Source>(
    sources: &[S],
    places: impl IntoIterator<Item = (usize, usize)>,
) -> Result<(), ConvertError> {
    let mut indices = vec![Vec::new(); sources.len()];
    for (source, index) in places {
        indices[source].push(index);
    }
    let mut each = sources.iter().zip(&indices);
    each.try_for_each(|(source, indices)| source.check(indices))
}

impl Source for Joined {
    fn contents(&self) -> &Contents {
        &self.contents
    }

    fn check(&self, indices: &[usize]) -> Result<(), ConvertError> {
        check_each(
            &self.sources,
            indices.iter().map(|&index| self.places[index]),
        )
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let (source, index) = self.places[index];
        self.sources[source].read(index, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Memory;
    use safelight_format::Dtype;

    fn shard(name: &str, byte: u8) -> Arc<dyn Source> {
        Arc::new(Memory::new([(name, Dtype::U8, vec![1], vec![byte])]))
    }

    #[test]
    fn shards_become_one() {
        let joined = join(vec![shard("a", 1), shard("b", 2)]).unwrap();
        let names: Vec<&str> = joined
            .tensors()
            .iter()
            .map(|tensor| tensor.name.as_str())
            .collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(
            crate::adapt::arrange::read_whole(&joined, 1, 9).unwrap(),
            [2]
        );
    }

    #[test]
    fn the_same_name_twice_is_refused() {
        let refused = join(vec![shard("a", 1), shard("a", 2)])
            .err()
            .unwrap()
            .to_string();
        assert!(refused.contains("`a` in memory"), "{refused}");
        assert!(join(vec![]).is_err());
    }
}
