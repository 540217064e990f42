//! How many capabilities each side of a session keeps of the other, counted where the messages pass.
//!
//! The RPC layer keeps a table entry and an object for each, and knows no bound. What is counted here is what it has in
//! its tables: every message that gives or takes a capability comes by. Messages without any, which are most, cost
//! nothing.

use std::collections::{HashMap, HashSet};

/// The capabilities of one session.
#[derive(Debug, Default)]
pub(super) struct Capabilities {
    /// Ours that the peer keeps: how many references it has to each.
    exports: HashMap<u32, u32>,
    /// The peer's that we keep.
    imports: HashSet<u32>,
}

impl Capabilities {
    /// Gives the peer one reference to each of ours; `false`, and nothing given, if it would keep more than `limit`
    /// capabilities or more references to one than can be counted.
    pub(super) fn lend(&mut self, exports: &[u32], limit: usize) -> bool {
        for (index, export) in exports.iter().enumerate() {
            let is_new = !self.exports.contains_key(export);
            let references = self.exports.get(export).copied().unwrap_or(0).checked_add(1);
            match references {
                Some(references) if !is_new || self.exports.len() < limit => {
                    self.exports.insert(*export, references);
                }
                _ => {
                    exports[..index].iter().for_each(|export| self.take_back(*export, 1));
                    return false;
                }
            }
        }
        true
    }

    /// The peer gives back `references` references to one of ours. Whether it had so many is the RPC layer's to judge.
    pub(super) fn take_back(&mut self, export: u32, references: u32) {
        if let Some(left) = self.exports.get_mut(&export) {
            *left = left.saturating_sub(references);
            if *left == 0 {
                self.exports.remove(&export);
                if self.exports.is_empty() {
                    // Idle sessions hold no table.
                    self.exports = HashMap::new();
                }
            }
        }
    }

    /// The peer gives us its own; `false`, and nothing taken, if we would keep more than `limit`.
    pub(super) fn receive(&mut self, imports: &[u32], limit: usize) -> bool {
        let before = self.imports.len();
        let mut new = Vec::new();
        for import in imports {
            if self.imports.insert(*import) {
                new.push(*import);
            }
        }
        // What is there already stays, so a peer at its limit can go on with what we have of it.
        let fits = self.imports.len() <= limit.max(before);
        if !fits {
            new.iter().for_each(|import| self.let_go(*import));
        }
        fits
    }

    /// We keep one of the peer's no longer.
    pub(super) fn let_go(&mut self, import: u32) {
        self.imports.remove(&import);
        if self.imports.is_empty() {
            self.imports = HashSet::new();
        }
    }

    /// How many of the peer's we keep, if the peer keeps none of ours.
    pub(super) fn imports_if_alone(&self) -> Option<usize> {
        self.exports.is_empty().then_some(self.imports.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_counted_and_not_references() {
        let mut capabilities = Capabilities::default();
        assert!(capabilities.lend(&[1, 1, 2], 2));
        assert!(capabilities.lend(&[1, 2], 2));
        assert!(!capabilities.lend(&[1, 3], 2), "a third one");
        capabilities.take_back(2, 2);
        assert!(capabilities.lend(&[3], 2), "the refused one took no place, and neither does the one given back");
        // References to 1: two and one; what was refused took none.
        capabilities.take_back(1, 3);
        capabilities.take_back(3, 1);
        assert_eq!(capabilities.imports_if_alone(), Some(0));
    }

    #[test]
    fn more_references_than_can_be_counted_are_refused() {
        let mut capabilities = Capabilities::default();
        capabilities.exports.insert(7, u32::MAX);
        assert!(!capabilities.lend(&[7], 10));
    }

    #[test]
    fn what_we_keep_is_counted_until_we_let_go() {
        let mut capabilities = Capabilities::default();
        assert!(capabilities.receive(&[5, 6, 5], 2));
        assert!(capabilities.receive(&[5, 6], 1), "nothing new comes with it");
        assert!(!capabilities.receive(&[5, 7], 2));
        assert_eq!(capabilities.imports_if_alone(), Some(2));
        assert!(capabilities.lend(&[1], 1) && capabilities.imports_if_alone().is_none());
        capabilities.take_back(1, 1);
        capabilities.let_go(6);
        assert!(capabilities.receive(&[7], 2));
        capabilities.let_go(5);
        capabilities.let_go(7);
        assert_eq!(capabilities.imports_if_alone(), Some(0));
    }

    #[test]
    fn giving_back_more_than_was_had_counts_nothing_below_zero() {
        let mut capabilities = Capabilities::default();
        assert!(capabilities.lend(&[1], 2));
        capabilities.take_back(1, 9);
        capabilities.take_back(8, 1);
        assert_eq!(capabilities.imports_if_alone(), Some(0));
    }
}
