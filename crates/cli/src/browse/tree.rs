//! Tensors by the dotted parts of their names, as a tree whose branches open and close.

use std::collections::HashMap;

use crate::ls::NamePart;

/// Names are divided into at most so many parts: deeper trees cannot be read.
const PARTS_MAX: usize = 64;

/// What begins with the same parts.
#[derive(Debug)]
pub(crate) struct Branch {
    /// The part of the name, or several where there is nothing to choose between.
    pub(crate) label: String,
    part: NamePart,
    parent: usize,
    below: Vec<usize>,
    /// The tensor whose name ends here, as its position among all.
    pub(crate) tensor: Option<usize>,
    pub(crate) tensor_count: usize,
    pub(crate) bytes: u64,
    pub(crate) open: bool,
}

/// A line of the tree as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) branch: usize,
    pub(crate) level: usize,
}

/// The order of branches that begin alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Order {
    #[default]
    Name,
    /// The largest first.
    Size,
}

/// All branches; the first is the root, which is not shown.
#[derive(Debug)]
pub(crate) struct Tree {
    branches: Vec<Branch>,
}

const ROOT: usize = 0;

impl Tree {
    /// Of names and bytes.
    pub(crate) fn new<'a>(tensors: impl Iterator<Item = (&'a str, u64)>) -> Tree {
        let mut tree = Tree {
            branches: vec![Branch::new(NamePart::Number(0), ROOT)],
        };
        let mut known: HashMap<(usize, NamePart), usize> = HashMap::new();
        for (index, (name, bytes)) in tensors.enumerate() {
            let mut at = ROOT;
            tree.branches[ROOT].count(bytes);
            for part in name.splitn(PARTS_MAX, '.') {
                let key = (at, NamePart::of(part));
                let next = *known.entry(key).or_insert_with_key(|(_, part)| {
                    tree.branches.push(Branch::new(part.clone(), at));
                    let new = tree.branches.len() - 1;
                    tree.branches[at].below.push(new);
                    new
                });
                tree.branches[next].count(bytes);
                at = next;
            }
            tree.branches[at].tensor = Some(index);
        }
        tree.join_chains();
        tree.sort(Order::Name);
        tree
    }

    /// A branch with nothing to choose from below it and the one below become one.
    fn join_chains(&mut self) {
        // Branches come after those they hang on, so that the last are joined first.
        for at in (1..self.branches.len()).rev() {
            let [only] = self.branches[at].below[..] else {
                continue;
            };
            if self.branches[at].tensor.is_some() {
                continue;
            }
            let lower = std::mem::replace(
                &mut self.branches[only],
                Branch::new(NamePart::Number(0), ROOT),
            );
            let branch = &mut self.branches[at];
            branch.label = format!("{}.{}", branch.label, lower.label);
            branch.tensor = lower.tensor;
            branch.below = lower.below;
            for position in 0..self.branches[at].below.len() {
                let below = self.branches[at].below[position];
                self.branches[below].parent = at;
            }
        }
    }

    pub(crate) fn branch(&self, at: usize) -> &Branch {
        &self.branches[at]
    }

    /// The sum of all.
    pub(crate) fn bytes(&self) -> u64 {
        self.branches[ROOT].bytes
    }

    pub(crate) fn sort(&mut self, order: Order) {
        for at in 0..self.branches.len() {
            let mut below = std::mem::take(&mut self.branches[at].below);
            match order {
                Order::Name => {
                    below.sort_by(|&a, &b| self.branches[a].part.cmp(&self.branches[b].part));
                }
                Order::Size => {
                    below.sort_by_key(|&branch| std::cmp::Reverse(self.branches[branch].bytes));
                }
            }
            self.branches[at].below = below;
        }
    }

    /// The lines that are to be seen.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut next: Vec<Row> = Vec::new();
        let push = |next: &mut Vec<Row>, branch: usize, level| {
            let below = self.branches[branch].below.iter().rev();
            next.extend(below.map(|&branch| Row { branch, level }));
        };
        push(&mut next, ROOT, 0);
        while let Some(row) = next.pop() {
            rows.push(row);
            if self.branches[row.branch].open {
                push(&mut next, row.branch, row.level + 1);
            }
        }
        rows
    }

    pub(crate) fn set_open(&mut self, at: usize, open: bool) {
        let branch = &mut self.branches[at];
        branch.open = open && !branch.below.is_empty();
    }

    pub(crate) fn set_all_open(&mut self, open: bool) {
        (1..self.branches.len()).for_each(|at| self.set_open(at, open));
    }

    /// The branch above, if that is shown.
    pub(crate) fn parent(&self, at: usize) -> Option<usize> {
        Some(self.branches[at].parent).filter(|&parent| parent != ROOT)
    }

    /// Opens all that is above a tensor; gives its branch.
    pub(crate) fn reveal(&mut self, tensor: usize) -> Option<usize> {
        let found = self
            .branches
            .iter()
            .position(|branch| branch.tensor == Some(tensor))?;
        let mut above = found;
        while let Some(parent) = self.parent(above) {
            self.branches[parent].open = true;
            above = parent;
        }
        Some(found)
    }

    /// All tensors below a branch and at it, in the tree's order.
    pub(crate) fn tensors_below(&self, at: usize) -> Vec<usize> {
        let mut tensors = Vec::new();
        let mut next = vec![at];
        while let Some(at) = next.pop() {
            tensors.extend(self.branches[at].tensor);
            next.extend(self.branches[at].below.iter().rev());
        }
        tensors
    }
}

impl Branch {
    fn new(part: NamePart, parent: usize) -> Branch {
        Branch {
            label: part.text(),
            part,
            parent,
            below: Vec::new(),
            tensor: None,
            tensor_count: 0,
            bytes: 0,
            open: false,
        }
    }

    fn count(&mut self, bytes: u64) {
        self.tensor_count += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Whether there is something below it.
    pub(crate) fn has_below(&self) -> bool {
        !self.below.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(names: &[&str]) -> Tree {
        Tree::new(names.iter().copied().zip(1..))
    }

    fn labels(tree: &Tree) -> Vec<String> {
        let line =
            |row: &Row| format!("{}{}", " ".repeat(row.level), tree.branch(row.branch).label);
        tree.rows().iter().map(line).collect()
    }

    #[test]
    fn branches_open_and_close() {
        let mut tree = tree(&["m.a.10.w", "m.a.9.w", "m.a.9.b", "m.b.w", "x"]);
        assert_eq!(labels(&tree), ["m", "x"]);
        tree.set_all_open(true);
        assert_eq!(
            labels(&tree),
            ["m", " a", "  9", "   b", "   w", "  10.w", " b.w", "x"]
        );
        let a = tree.rows()[1].branch;
        assert_eq!(
            (tree.branch(a).tensor_count, tree.branch(a).bytes),
            (3, 1 + 2 + 3)
        );
        assert_eq!(tree.tensors_below(a), [2, 1, 0]);
        tree.set_open(a, false);
        assert_eq!(labels(&tree), ["m", " a", " b.w", "x"]);
        tree.sort(Order::Size);
        assert_eq!(labels(&tree)[1..3], [" a", " b.w"]);
    }

    #[test]
    fn a_tensor_can_have_others_below_it() {
        let mut tree = tree(&["a", "a.b", "a.b.c"]);
        tree.set_all_open(true);
        assert_eq!(labels(&tree), ["a", " b", "  c"]);
        let b = tree.rows()[1].branch;
        assert_eq!(tree.parent(b), Some(tree.rows()[0].branch));
        assert_eq!(tree.branch(b).tensor, Some(1));
    }

    #[test]
    fn what_is_hidden_is_revealed() {
        let mut tree = tree(&["a.b.c", "a.b.d", "a.e", "f"]);
        let found = tree.reveal(1).unwrap();
        assert_eq!(tree.branch(found).label, "d");
        assert_eq!(labels(&tree), ["a", " b", "  c", "  d", " e", "f"]);
    }

    #[test]
    fn strange_names_make_trees_too() {
        let deep = "x.".repeat(100_000);
        let mut tree = tree(&["", ".", "..a", &deep, "\u{1b}[2J"]);
        tree.set_all_open(true);
        assert!(labels(&tree).iter().all(|label| !label.contains('\u{1b}')));
        assert_eq!(tree.branch(ROOT).tensor_count, 5);
    }
}
