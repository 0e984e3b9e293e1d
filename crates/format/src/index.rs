//! Finding a tensor by its name: an open hash table of positions, without copying the names.

use std::hash::{BuildHasher, RandomState};

/// Maps names to positions in a list that the caller keeps. The hash is keyed at random per
/// table, so a crafted file cannot make look-ups slow; nothing observable depends on it.
#[derive(Clone, Debug)]
pub(crate) struct NameIndex {
    /// 0 if free, else the upper half of a name's hash and, below it, its position plus one. A
    /// power of two long and at most three quarters full.
    slots: Vec<u64>,
    keys: [u64; 3],
}

const LOW_HALF: u64 = 0xffff_ffff;

impl NameIndex {
    /// An empty table with room for `count` names.
    ///
    /// # Panics
    /// If `count` is `u32::MAX` or more; the parser's limit on tensors is below that.
    pub(crate) fn with_room_for(count: usize) -> NameIndex {
        assert!(
            (count as u64) < LOW_HALF,
            "{count} tensors: the parser admits fewer"
        );
        let random = RandomState::new();
        NameIndex {
            slots: vec![0; (count + count / 3 + 1).next_power_of_two()],
            keys: [0, 1, 2].map(|key| random.hash_one(key)),
        }
    }

    /// Files `name` under `position`. If the name is already there, the new position replaces the
    /// old one, which is returned.
    #[inline]
    pub(crate) fn insert<'a>(
        &mut self,
        name: &str,
        position: u32,
        name_of: impl Fn(u32) -> &'a str,
    ) -> Option<u32> {
        let hash = self.hash(name);
        let slot = self.slot(hash, name, name_of);
        let old = self.slots[slot];
        self.slots[slot] = hash & !LOW_HALF | (u64::from(position) + 1);
        position_in(old)
    }

    /// The position filed under `name`.
    pub(crate) fn get<'a>(&self, name: &str, name_of: impl Fn(u32) -> &'a str) -> Option<u32> {
        position_in(self.slots[self.slot(self.hash(name), name, name_of)])
    }

    /// The slot that holds `name`, or the free one where it would go.
    #[inline]
    fn slot<'a>(&self, hash: u64, name: &str, name_of: impl Fn(u32) -> &'a str) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while let Some(position) = position_in(self.slots[at]) {
            let alike = (self.slots[at] ^ hash) & !LOW_HALF == 0;
            if alike && name_of(position) == name {
                break;
            }
            at = (at + 1) & mask;
        }
        at
    }

    /// Sixteen bytes at a time, each half mixed with a secret, multiplied to 128 bits and folded:
    /// the construction of wyhash (Wang Yi 2019, github.com/wangyi-fudan/wyhash). It is no
    /// cryptographic hash, but whoever does not know the keys cannot aim at one slot.
    #[inline]
    fn hash(&self, name: &str) -> u64 {
        let [first, second, third] = self.keys;
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            product as u64 ^ (product >> 64) as u64
        };
        let bytes = name.as_bytes();
        let mut state = first ^ bytes.len() as u64;
        let (chunks, tail) = bytes.as_chunks::<16>();
        for chunk in chunks {
            let (a, b) = halves(chunk);
            state = fold(a ^ second, b ^ state);
        }
        if !tail.is_empty() {
            // The last sixteen bytes, some of them once more; short names are filled with zeros.
            let (a, b) = match bytes.last_chunk::<16>() {
                Some(chunk) => halves(chunk),
                None => {
                    let mut chunk = [0; 16];
                    chunk[..tail.len()].copy_from_slice(tail);
                    halves(&chunk)
                }
            };
            state = fold(a ^ third, b ^ state);
        }
        fold(state ^ second, third)
    }
}

#[inline]
fn halves(chunk: &[u8; 16]) -> (u64, u64) {
    let whole = u128::from_le_bytes(*chunk);
    (whole as u64, (whole >> 64) as u64)
}

#[inline]
fn position_in(slot: u64) -> Option<u32> {
    ((slot & LOW_HALF) as u32).checked_sub(1)
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

    #[test]
    fn every_byte_and_the_length_change_the_hash() {
        let index = NameIndex::with_room_for(0);
        for len in 0..70 {
            let name = "\0".repeat(len);
            let hash = index.hash(&name);
            assert_eq!(index.hash(&name), hash);
            assert_ne!(index.hash(&"\0".repeat(len + 1)), hash);
            for at in 0..len {
                let mut other = name.clone().into_bytes();
                other[at] = 1;
                let other = String::from_utf8(other).unwrap();
                assert_ne!(index.hash(&other), hash, "byte {at} of {len}");
            }
        }
    }
}
