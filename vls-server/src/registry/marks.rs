//! High-water marks (rule 7): the highest (epoch, timestamp) of ids whose record was given up for room.
//!
//! A record that is still held is its own mark. The number of marks is bounded too; the one that became a
//! mark longest ago goes first. That loses little: an old packet that could then be registered again must
//! still be within its own `exp`, and whoever dials what it says finds nobody who proves the vat's key.

use std::collections::{BTreeMap, HashMap};

use schemas::{SignedRecord, Timestamp, UnverifiedRecord};

use super::Id;

/// The order of a record without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HighWaterMark {
    /// The epoch. Compares first: a later time in a lower epoch is lower.
    pub epoch: u64,
    /// The signed time within the epoch.
    pub timestamp: Timestamp,
}

impl HighWaterMark {
    /// That of a verified record.
    #[must_use]
    pub fn of(record: &SignedRecord) -> Self {
        Self { epoch: record.record().epoch, timestamp: record.timestamp() }
    }

    /// What a record claims that nobody has verified.
    pub(super) fn claimed_by(record: &UnverifiedRecord) -> Self {
        Self { epoch: record.record().epoch, timestamp: record.timestamp() }
    }
}

/// The marks of ids without a record.
#[derive(Debug, Default)]
pub(super) struct Marks {
    marks: HashMap<Id, (HighWaterMark, u64)>,
    /// By the turn in which it became a mark. A turn gives up one record at most.
    by_turn: BTreeMap<u64, Id>,
}

impl Marks {
    pub(super) fn get(&self, id: &Id) -> Option<HighWaterMark> {
        self.marks.get(id).map(|(mark, _)| *mark)
    }

    pub(super) fn len(&self) -> usize {
        self.marks.len()
    }

    pub(super) fn insert(&mut self, id: Id, mark: HighWaterMark, turn: u64) {
        self.remove(&id);
        self.marks.insert(id, (mark, turn));
        let taken = self.by_turn.insert(turn, id);
        debug_assert!(taken.is_none(), "one record is given up per turn");
    }

    pub(super) fn remove(&mut self, id: &Id) -> bool {
        let found = self.marks.remove(id);
        if let Some((_, turn)) = found {
            self.by_turn.remove(&turn);
        }
        found.is_some()
    }

    /// The one that became a mark longest ago.
    pub(super) fn oldest(&self) -> Option<Id> {
        self.by_turn.first_key_value().map(|(_, id)| *id)
    }
}
