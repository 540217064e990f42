//! Rows that have changed since the base was last folded, in memory.
//!
//! Two layers: changes go to the upper one; a fold freezes it, writes it to the base, and drops it.
//!
//! Nothing here is in order: every submitted turn comes by, and keeping order costs it several times as much. A
//! scan, which needs it, has to put the base's rows in order anyway.

use std::collections::HashMap;

/// The rows of one space, by name; `None` is a row that was removed.
pub(crate) type Rows = HashMap<Vec<u8>, Option<Vec<u8>>>;

/// One layer of changed rows.
#[derive(Default, Clone)]
pub(crate) struct Overlay {
    spaces: HashMap<u64, Rows>,
}

impl Overlay {
    pub(crate) fn set(&mut self, space: u64, name: Vec<u8>, value: Option<Vec<u8>>) {
        let rows = self.spaces.entry(space).or_default();
        match (rows.get_mut(&name), value) {
            // Into the memory that the row has already: to free that and keep the new one instead would touch two
            // cold places for one.
            (Some(Some(old)), Some(new)) if new.len() <= old.capacity() => {
                old.clear();
                old.extend_from_slice(&new);
            }
            (Some(row), value) => *row = value,
            (None, value) => drop(rows.insert(name, value)),
        }
    }

    /// What a row was changed to; `None` if it was not changed.
    pub(crate) fn get(&self, space: u64, name: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.spaces.get(&space)?.get(name)
    }

    /// The changed rows of a space.
    pub(crate) fn space(&self, space: u64) -> Option<&Rows> {
        self.spaces.get(&space)
    }

    /// All changed rows.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (u64, &Vec<u8>, &Option<Vec<u8>>)> {
        self.spaces.iter().flat_map(|(space, rows)| rows.iter().map(|(name, value)| (*space, name, value)))
    }
}
