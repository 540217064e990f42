//! High-water marks (rule 7): the highest (epoch, timestamp) of ids whose record was given up for room.
//!
//! A record that is still held is its own mark. The number of marks is bounded too; the one that became a
//! mark longest ago goes first. That loses little: an old packet that could then be registered again must
//! still be within its own `exp`, and whoever dials what it says finds nobody who proves the vat's key.

use schemas::{SignedPacket, Timestamp, UnverifiedPacket};

use super::{
    Id,
    table::{
        hash::HashKey,
        index::{Index, NUMBERS},
    },
};
use crate::limits::MOST_MARKS;

/// The order of a record without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HighWaterMark {
    /// The epoch; 0 for what says nothing of a vat. Compares first: a later time in a lower epoch is lower.
    pub epoch: u64,
    /// The signed time within the epoch.
    pub timestamp: Timestamp,
}

impl HighWaterMark {
    /// That of a verified record.
    #[must_use]
    pub fn of(record: &SignedPacket) -> Self {
        Self { epoch: record.epoch(), timestamp: record.timestamp() }
    }

    /// What a record claims that nobody has verified.
    pub(super) fn claimed_by(record: &UnverifiedPacket) -> Self {
        Self { epoch: record.epoch(), timestamp: record.timestamp() }
    }
}

const _: () = assert!(MOST_MARKS < NUMBERS as usize);

/// Marks whose memory is asked for at once.
const PAGE: usize = 512;

/// No mark.
const NONE: u32 = u32::MAX;

/// The marks of ids without a record, in a list by age: about 61 bytes each.
#[derive(Debug)]
pub(super) struct Marks {
    key: HashKey,
    index: Index,
    pages: Vec<Vec<Mark>>,
    oldest: u32,
    newest: u32,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    id: Id,
    mark: HighWaterMark,
    older: u32,
    newer: u32,
}

impl Marks {
    /// No marks, and at most about so many later.
    pub(super) fn new(key: HashKey, expected: usize) -> Self {
        Self { key, index: Index::new(expected), pages: Vec::new(), oldest: NONE, newest: NONE }
    }

    pub(super) fn get(&self, id: &Id) -> Option<HighWaterMark> {
        Some(self.at(self.find(id)?).mark)
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Adds the newest mark.
    pub(super) fn insert(&mut self, id: Id, mark: HighWaterMark) {
        self.remove(&id);
        // Proof: see the limit.
        let number = u32::try_from(self.len()).unwrap_or(NONE);
        if self.len().is_multiple_of(PAGE) {
            self.pages.push(Vec::with_capacity(PAGE));
        }
        if let Some(page) = self.pages.last_mut() {
            page.push(Mark { id, mark, older: self.newest, newer: NONE });
        }
        self.link(self.newest, number, NONE);
        let Self { key, pages, index, .. } = self;
        index.insert(key.hash(&id), number, |number| key.hash(&of(pages, number).id));
    }

    pub(super) fn remove(&mut self, id: &Id) -> bool {
        let Some(number) = self.find(id) else { return false };
        let Mark { older, newer, .. } = *self.at(number);
        self.link_both(older, newer);
        let Self { key, pages, index, .. } = self;
        index.remove(key.hash(id), number, |number| key.hash(&of(pages, number).id));
        // The last one takes its number.
        let last = self.len();
        let Some(moved) = self.pages.last_mut().and_then(Vec::pop) else { return true };
        if self.pages.last().is_some_and(Vec::is_empty) {
            self.pages.pop();
        }
        if number as usize != last {
            *self.at_mut(number) = moved;
            self.link(moved.older, number, moved.newer);
            self.index.renumber(self.key.hash(&moved.id), u32::try_from(last).unwrap_or(NONE), number);
        }
        true
    }

    /// The one that became a mark longest ago.
    pub(super) fn oldest(&self) -> Option<Id> {
        (self.oldest != NONE).then(|| self.at(self.oldest).id)
    }

    /// Has the neighbours of a mark, and the ends of the list, know its number.
    fn link(&mut self, older: u32, number: u32, newer: u32) {
        if older == NONE {
            self.oldest = number;
        } else {
            self.at_mut(older).newer = number;
        }
        if newer == NONE {
            self.newest = number;
        } else {
            self.at_mut(newer).older = number;
        }
    }

    /// Makes two marks neighbours, or one of them an end of the list.
    fn link_both(&mut self, older: u32, newer: u32) {
        if older == NONE {
            self.oldest = newer;
        } else {
            self.at_mut(older).newer = newer;
        }
        if newer == NONE {
            self.newest = older;
        } else {
            self.at_mut(newer).older = older;
        }
    }

    fn find(&self, id: &Id) -> Option<u32> {
        self.index.find(self.key.hash(id), |number| self.at(number).id == *id)
    }

    fn at(&self, number: u32) -> &Mark {
        of(&self.pages, number)
    }

    fn at_mut(&mut self, number: u32) -> &mut Mark {
        &mut self.pages[number as usize / PAGE][number as usize % PAGE]
    }
}

fn of(pages: &[Vec<Mark>], number: u32) -> &Mark {
    &pages[number as usize / PAGE][number as usize % PAGE]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_agree_with_a_plain_list_through_many_changes() {
        let mut marks = Marks::new(HashKey::new(3), 2_000);
        let mut list: Vec<(Id, HighWaterMark)> = Vec::new();
        let mut random = 1_u64;
        for step in 0..20_000_u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut id = [0; 32];
            id[..2].copy_from_slice(&(u16::try_from(random >> 48).unwrap() % 3_000).to_be_bytes());
            let place = list.iter().position(|(known, _)| *known == id);
            assert_eq!(marks.get(&id), place.map(|place| list[place].1));
            assert_eq!(marks.oldest(), list.first().map(|(id, _)| *id));
            match (random >> 33) % 5 {
                0 => {
                    assert_eq!(marks.remove(&id), place.is_some());
                    place.map(|place| list.remove(place));
                }
                1 if list.len() > 1_500 => {
                    let (oldest, _) = list.remove(0);
                    assert!(marks.remove(&oldest));
                }
                _ => {
                    let mark = HighWaterMark { epoch: step, timestamp: Timestamp::from_micros(random) };
                    place.map(|place| list.remove(place));
                    list.push((id, mark));
                    marks.insert(id, mark);
                }
            }
            assert_eq!(marks.len(), list.len());
        }
        assert!(list.len() > 1_000);
        while let Some(oldest) = marks.oldest() {
            assert_eq!(oldest, list.remove(0).0);
            marks.remove(&oldest);
        }
        assert!(list.is_empty() && marks.pages.is_empty());
    }
}
