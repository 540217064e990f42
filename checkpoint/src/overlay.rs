//! Rows that have changed since the base was last folded, in memory.
//!
//! Two layers: changes go to the upper one; a fold freezes it, writes it to the base, and drops it.
//!
//! Every submitted turn comes by here while its caller waits, and finds cold caches whenever the disk took its time
//! before. So what a change costs is the places in memory that it touches one after the other. The rows of a space
//! stand in one array, short names among them; beside it is a table of their numbers, small enough to stay in a
//! cache (`IndexMap`). The hash is the standard library's, with keys of its own for each map: names may come
//! from strangers, who must not be able to prepare collisions.
//!
//! Nothing here is in order, which would cost several times as much. A scan, which needs it, has to put the base's rows
//! in order anyway.

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    hash::{Hash, Hasher, RandomState},
    ops::Deref,
};

use indexmap::IndexMap;

/// The rows of one space, by name; `None` is a row that was removed.
pub(crate) type Rows = IndexMap<Name, Option<Vec<u8>>, RandomState>;

/// One layer of changed rows.
#[derive(Default, Clone)]
pub(crate) struct Overlay {
    /// There are only a few.
    spaces: BTreeMap<u64, Rows>,
}

impl Overlay {
    pub(crate) fn set(&mut self, space: u64, name: Vec<u8>, value: Option<Vec<u8>>) {
        let rows = self.spaces.entry(space).or_default();
        match (rows.get_mut(&name[..]), value) {
            // Into the memory that the row has already: to free that and keep the new one instead would touch two
            // cold places for one.
            (Some(Some(old)), Some(new)) if new.len() <= old.capacity() => {
                old.clear();
                old.extend_from_slice(&new);
            }
            (Some(row), value) => *row = value,
            (None, value) => drop(rows.insert(name.into(), value)),
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
    pub(crate) fn rows(&self) -> impl Iterator<Item = (u64, &[u8], &Option<Vec<u8>>)> {
        self.spaces.iter().flat_map(|(space, rows)| rows.iter().map(|(name, value)| (*space, &**name, value)))
    }
}

/// The most bytes of a name that stand in the row itself: with their number and what tells the two forms apart they
/// take as much room as an owned string of bytes does.
const SHORT: usize = 22;

/// The name of a row.
#[derive(Clone)]
pub(crate) enum Name {
    Short(u8, [u8; SHORT]),
    Long(Box<[u8]>),
}

impl From<Vec<u8>> for Name {
    fn from(name: Vec<u8>) -> Self {
        let mut short = [0; SHORT];
        match (u8::try_from(name.len()), short.get_mut(..name.len())) {
            (Ok(length), Some(bytes)) => {
                bytes.copy_from_slice(&name);
                Self::Short(length, short)
            }
            _ => Self::Long(name.into_boxed_slice()),
        }
    }
}

impl Deref for Name {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short(length, bytes) => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

// Equal and hashed as the bytes are, by which it is looked up.

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Name {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_short_name_takes_no_more_room_than_an_owned_one() {
        assert_eq!(size_of::<Name>(), size_of::<Vec<u8>>());
    }

    proptest! {
        /// Names around the length where their form changes, few enough of them that rows are changed again.
        #[test]
        fn the_last_change_of_each_row_counts(
            changes in prop::collection::vec(
                (
                    0..3u64,
                    prop::collection::vec(0..2u8, 0..2).prop_flat_map(|first| {
                        (SHORT - 1..SHORT + 2).prop_map(move |length| {
                            let mut name = first.clone();
                            name.resize(if name.is_empty() { 0 } else { length }, 7);
                            name
                        })
                    }),
                    prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
                ),
                0..60,
            ),
        ) {
            let (mut overlay, mut model) = (Overlay::default(), BTreeMap::new());
            for (space, name, value) in changes {
                overlay.set(space, name.clone(), value.clone());
                model.insert((space, name), value);
            }
            for ((space, name), value) in &model {
                prop_assert_eq!(overlay.get(*space, name), Some(value));
            }
            prop_assert_eq!(overlay.get(3, &[]), None);
            prop_assert_eq!(overlay.get(0, &[9]), None);
            let rows: BTreeMap<_, _> =
                overlay.rows().map(|(space, name, value)| ((space, name.to_vec()), value.clone())).collect();
            prop_assert_eq!(rows.len(), overlay.rows().count());
            prop_assert_eq!(rows, model);
        }
    }
}
