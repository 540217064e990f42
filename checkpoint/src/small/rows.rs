//! All rows of a small vat, in memory.

use std::collections::BTreeMap;

/// Rows by space and name.
#[derive(Default)]
pub(super) struct Rows {
    spaces: BTreeMap<u64, BTreeMap<Vec<u8>, Vec<u8>>>,
}

/// A row: its space, its name and its value.
pub(super) type Row<'a> = (u64, &'a [u8], &'a [u8]);

impl Rows {
    /// Sets a row, and says whether it is new.
    pub(super) fn insert(&mut self, space: u64, name: Vec<u8>, value: Vec<u8>) -> bool {
        self.spaces.entry(space).or_default().insert(name, value).is_none()
    }

    /// Sets a row, or removes it.
    pub(super) fn set(&mut self, space: u64, name: Vec<u8>, value: Option<Vec<u8>>) {
        match value {
            Some(value) => {
                self.insert(space, name, value);
            }
            None => {
                if let Some(rows) = self.spaces.get_mut(&space) {
                    rows.remove(&name);
                }
            }
        }
    }

    pub(super) fn get(&self, space: u64, name: &[u8]) -> Option<&[u8]> {
        self.spaces.get(&space)?.get(name).map(Vec::as_slice)
    }

    /// Names and values of a space, in order of the names.
    pub(super) fn space(&self, space: u64) -> impl Iterator<Item = (&[u8], &[u8])> {
        let rows = self.spaces.get(&space).into_iter().flatten();
        rows.map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        self.spaces
            .iter()
            .flat_map(|(space, rows)| rows.iter().map(|(name, value)| (*space, name.as_slice(), value.as_slice())))
    }
}
