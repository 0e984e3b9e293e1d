//! Finding a tensor by its name: an open hash table of positions, without copying the names.

use std::hash::{BuildHasher, RandomState};

/// Maps names to positions in a list that the caller keeps. The hash is keyed at random per
/// table, so a crafted file cannot make look-ups slow; nothing observable depends on it.
#[derive(Clone, Debug)]
pub(crate) struct NameIndex {
    /// Positions, or [`EMPTY`]; a power of two long and at most half full.
    slots: Vec<u32>,
    hasher: RandomState,
}

const EMPTY: u32 = u32::MAX;

impl NameIndex {
    /// An empty table with room for `count` names.
    ///
    /// # Panics
    /// If `count` is `u32::MAX` or more; the parser's limit on tensors is below that.
    pub(crate) fn with_room_for(count: usize) -> NameIndex {
        assert!(
            count < EMPTY as usize,
            "{count} tensors: the parser admits fewer"
        );
        NameIndex {
            slots: vec![EMPTY; (count * 2).next_power_of_two()],
            hasher: RandomState::new(),
        }
    }

    /// Files `name` under `position`. If the name is already there, the new position replaces the
    /// old one, which is returned.
    pub(crate) fn insert<'a>(
        &mut self,
        name: &str,
        position: u32,
        name_of: impl Fn(u32) -> &'a str,
    ) -> Option<u32> {
        let slot = self.slot(name, name_of);
        let old = std::mem::replace(&mut self.slots[slot], position);
        (old != EMPTY).then_some(old)
    }

    /// The position filed under `name`.
    pub(crate) fn get<'a>(&self, name: &str, name_of: impl Fn(u32) -> &'a str) -> Option<u32> {
        let position = self.slots[self.slot(name, name_of)];
        (position != EMPTY).then_some(position)
    }

    /// The slot that holds `name`, or the empty one where it would go.
    fn slot<'a>(&self, name: &str, name_of: impl Fn(u32) -> &'a str) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(name) as usize & mask;
        while self.slots[slot] != EMPTY && name_of(self.slots[slot]) != name {
            slot = (slot + 1) & mask;
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_filed_and_nothing_else() {
        for count in [0, 1, 2, 3, 7, 1000] {
            let names: Vec<String> = (0..count).map(|i| format!("layer.{i}")).collect();
            let name_of = |position: u32| names[position as usize].as_str();
            let mut index = NameIndex::with_room_for(count);
            for (position, name) in names.iter().enumerate() {
                assert_eq!(index.insert(name, position as u32, name_of), None);
            }
            for (position, name) in names.iter().enumerate() {
                assert_eq!(index.get(name, name_of), Some(position as u32));
            }
            assert_eq!(index.get("layer", name_of), None);
            if count > 0 {
                assert_eq!(index.insert("layer.0", 0, name_of), Some(0));
            }
        }
    }
}
