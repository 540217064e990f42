//! Evidence that two copies of a vat have signed (rule 3): two different packets with the same epoch and
//! timestamp.
//!
//! Of three or more such packets the lowest and the highest are kept, so that registries that saw them in
//! different orders hold the same pair. Evidence outlives the record; the oldest goes first when there is
//! no room.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
};

use schemas::SignedPacket;

use super::{Id, marks::HighWaterMark};

/// Two records of one vat, equal in epoch and timestamp, both signed, with different bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    lowest: SignedPacket,
    highest: SignedPacket,
}

impl Evidence {
    /// The pair of two records, given in either order. `None` unless they contradict each other.
    #[must_use]
    pub fn of(one: SignedPacket, other: SignedPacket) -> Option<Self> {
        let same = one.id() == other.id() && HighWaterMark::of(&one) == HighWaterMark::of(&other);
        match one.compare(&other) {
            Ordering::Less if same => Some(Self { lowest: one, highest: other }),
            Ordering::Greater if same => Some(Self { lowest: other, highest: one }),
            _ => None,
        }
    }

    /// The one that compares lower.
    #[must_use]
    pub fn lowest(&self) -> &SignedPacket {
        &self.lowest
    }

    /// The one that compares higher.
    #[must_use]
    pub fn highest(&self) -> &SignedPacket {
        &self.highest
    }

    /// What is kept of two pairs: the later one, and of equal marks the extremes.
    fn merge(self, other: &Self) -> Self {
        let mark = |evidence: &Self| HighWaterMark::of(&evidence.highest);
        match mark(&self).cmp(&mark(other)) {
            Ordering::Less => other.clone(),
            Ordering::Greater => self,
            Ordering::Equal => {
                let choose = |one: SignedPacket, other: &SignedPacket, wanted| {
                    if other.compare(&one) == wanted { other.clone() } else { one }
                };
                Self {
                    lowest: choose(self.lowest, &other.lowest, Ordering::Less),
                    highest: choose(self.highest, &other.highest, Ordering::Greater),
                }
            }
        }
    }
}

/// All evidence.
#[derive(Debug, Default)]
pub(super) struct EvidenceTable {
    pairs: HashMap<Id, (Evidence, u64)>,
    /// By the turn in which the id's first pair came. A turn adds one at most.
    by_turn: BTreeMap<u64, Id>,
}

impl EvidenceTable {
    pub(super) fn get(&self, id: &Id) -> Option<&Evidence> {
        self.pairs.get(id).map(|(evidence, _)| evidence)
    }

    pub(super) fn len(&self) -> usize {
        self.pairs.len()
    }

    /// What the id would have with this pair too. `None` if that is what it has already.
    pub(super) fn merged(&self, id: &Id, evidence: Evidence) -> Option<Evidence> {
        match self.get(id) {
            None => Some(evidence),
            Some(known) => {
                let merged = evidence.merge(known);
                (merged != *known).then_some(merged)
            }
        }
    }

    /// Keeps the pair. An id that had one keeps its place in the order of age, which is returned.
    pub(super) fn insert(&mut self, id: Id, evidence: Evidence, turn: u64) -> u64 {
        let since = self.pairs.get(&id).map_or(turn, |(_, since)| *since);
        self.pairs.insert(id, (evidence, since));
        self.by_turn.insert(since, id);
        since
    }

    pub(super) fn oldest(&self) -> Option<Id> {
        self.by_turn.first_key_value().map(|(_, id)| *id)
    }

    pub(super) fn remove(&mut self, id: &Id) {
        if let Some((_, since)) = self.pairs.remove(id) {
            self.by_turn.remove(&since);
        }
    }
}
