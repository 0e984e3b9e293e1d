//! Version 2 B-trees: records of one size, sorted, in leaves and between the children of inner nodes.
//!
//! Source: HDF5 File Format Specification Version 3.0, §III.A.2.

use super::objects::File;
use super::types::Fields;
use crate::error::ConvertError;

/// A tree of more levels than this holds more records than there are addresses.
const DEPTH_MAX: u16 = 32;

/// What every node has beside its records: signature, version, type, checksum.
const NODE_BYTES: u64 = 10;

/// Takes the file and a record.
pub(super) type Record<'l, 'a> = dyn FnMut(&mut File<'a>, &[u8]) -> Result<(), ConvertError> + 'l;

/// What a tree's header says.
struct Tree {
    kind: u8,
    record_bytes: u64,
    /// Bytes of the counts of records in a child, and by depth, of those below it.
    count_bytes: u8,
    below_bytes: Vec<u8>,
}

/// Bytes that a number up to `limit` needs.
pub(super) fn bytes_for(limit: u64) -> u8 {
    (limit.max(1).ilog2() / 8 + 1) as u8
}

/// Hands every record of the tree at `address` to `record`, in order; the tree must be of one of `kinds`.
pub(super) fn records<'a>(
    file: &mut File<'a>,
    address: u64,
    kinds: &[u8],
    record: &mut Record<'_, 'a>,
) -> Result<(), ConvertError> {
    let sizes = file.sizes;
    let head_bytes = 22 + u64::from(sizes.offset + sizes.length);
    let (head, at) = file.block(address, head_bytes, b"BTHD")?;
    let mut fields = Fields::new(&head[4..]);
    let mut read = || {
        let (version, kind) = (fields.byte()?, fields.byte()?);
        let (node_bytes, record_bytes) = (fields.number(4)?, fields.number(2)?);
        let depth = fields.number(2)? as u16;
        fields.take(2)?;
        let root = fields.address(sizes)?;
        let count = fields.number(2)?;
        Ok((version, kind, node_bytes, record_bytes, depth, root, count))
    };
    let (version, kind, node_bytes, record_bytes, depth, root, count) =
        read().map_err(|problem: String| file.malformed(at, problem))?;
    if version != 0 || !kinds.contains(&kind) || record_bytes == 0 || depth > DEPTH_MAX {
        let problem = format!(
            "a version 2 B-tree of version {version}, type {kind} and depth {depth}, with records of {record_bytes} bytes; \
             type {kinds:?} expected"
        );
        return Err(file.malformed(at, problem));
    }
    let Some(root) = root else {
        return Ok(());
    };
    let Some(tree) = Tree::new(kind, node_bytes, record_bytes, depth, sizes.offset) else {
        let problem = format!("nodes of {node_bytes} bytes have no room for a record");
        return Err(file.malformed(at, problem));
    };
    tree.node(file, root, count, depth, record)
}

impl Tree {
    /// How wide the counts in nodes are follows from how many records fit.
    fn new(kind: u8, node_bytes: u64, record_bytes: u64, depth: u16, offset: u8) -> Option<Tree> {
        let leaf_most = node_bytes.checked_sub(NODE_BYTES)? / record_bytes;
        let count_bytes = bytes_for(leaf_most);
        let mut below_bytes = vec![0];
        let mut all_most = leaf_most;
        for level in 1..=usize::from(depth) {
            let pointer = u64::from(offset + count_bytes + below_bytes[level - 1]);
            let left = node_bytes.checked_sub(NODE_BYTES + pointer)?;
            let most = left / (record_bytes + pointer);
            all_most = all_most.saturating_mul(most + 1).saturating_add(most);
            below_bytes.push(bytes_for(all_most));
        }
        (leaf_most > 0).then_some(Tree {
            kind,
            record_bytes,
            count_bytes,
            below_bytes,
        })
    }

    /// A node with its `count` records; `depth` 0 is a leaf.
    fn node<'a>(
        &self,
        file: &mut File<'a>,
        address: u64,
        count: u64,
        depth: u16,
        record: &mut Record<'_, 'a>,
    ) -> Result<(), ConvertError> {
        let width = u64::from(file.sizes.offset + self.count_bytes)
            + depth
                .checked_sub(1)
                .map_or(0, |below| u64::from(self.below_bytes[usize::from(below)]));
        let pointers = if depth == 0 { 0 } else { (count + 1) * width };
        let signature = if depth == 0 { b"BTLF" } else { b"BTIN" };
        let (node, at) =
            file.block(address, 6 + count * self.record_bytes + pointers, signature)?;
        if node[5] != self.kind {
            let problem = format!("a node of type {} in a tree of type {}", node[5], self.kind);
            return Err(file.malformed(at, problem));
        }
        let (records, pointers) = node[6..].split_at((count * self.record_bytes) as usize);
        let mut records = records.chunks_exact(self.record_bytes as usize);
        let mut pointers = Fields::new(pointers);
        let sizes = file.sizes;
        for _ in 0..=count {
            if depth > 0 {
                let mut child = || {
                    let child = pointers.address(sizes)?.ok_or("a child without address")?;
                    let count = pointers.number(self.count_bytes)?;
                    pointers.take(width - u64::from(sizes.offset + self.count_bytes))?;
                    Ok((child, count))
                };
                let (child, count) =
                    child().map_err(|problem: String| file.malformed(at, problem))?;
                self.node(file, child, count, depth - 1, record)?;
            }
            if let Some(bytes) = records.next() {
                record(file, bytes)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_as_wide_as_needed() {
        assert_eq!(
            [0, 1, 255, 256, 65535, 65536].map(bytes_for),
            [1, 1, 1, 2, 2, 3]
        );
        assert_eq!(bytes_for(u64::MAX), 8);
        // The defaults of a group's index of links: nodes of 512 bytes, records of 11.
        let tree = Tree::new(5, 512, 11, 2, 8).unwrap();
        assert_eq!((tree.count_bytes, &*tree.below_bytes), (1, &[0, 2, 2][..]));
        assert!(Tree::new(5, 12, 11, 0, 8).is_none());
        assert!(Tree::new(5, 30, 11, 3, 8).is_some_and(|tree| tree.below_bytes.len() == 4));
    }
}
