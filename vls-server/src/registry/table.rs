//! The records, live and expired, and what is left of those that were given up for room (rules 6, 7, 9).
//!
//! Room is made in this order: the expired record whose lease ended first; else the live record that ends
//! first in the source prefix that has most, so that whoever floods the table pushes out themselves. What
//! is given up leaves its high-water mark.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use schemas::Timestamp;

use super::{
    Id,
    expiry::LeaseEnds,
    marks::{HighWaterMark, Marks},
    quota::{Bucket, SourcePrefix},
    time::Moment,
};

/// One record.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) packet: Arc<[u8]>,
    pub(super) mark: HighWaterMark,
    /// The record's own end of validity.
    pub(super) expires: Timestamp,
    /// Who paid for the place in the table. A packet that somebody else forwards does not change it.
    pub(super) source: SourcePrefix,
    /// When it was last registered or renewed.
    pub(super) seen: Moment,
    /// When its lease ends. At that moment it has ended.
    pub(super) end: Moment,
    /// The turn that wrote it or its lease last: nothing may be said of it before that turn is durable.
    pub(super) turn: u64,
    /// The id's own quota of writes.
    pub(super) writes: Bucket,
    /// In which index it stands. What a lookup says depends on `end` alone.
    lapsed: bool,
}

impl Held {
    pub(super) fn new(packet: Arc<[u8]>, mark: HighWaterMark, expires: Timestamp, source: SourcePrefix) -> Self {
        Self {
            packet,
            mark,
            expires,
            source,
            seen: Moment::BEGINNING,
            end: Moment::BEGINNING,
            turn: 0,
            writes: Bucket::FULL,
            lapsed: false,
        }
    }
}

/// All records and marks.
#[derive(Debug, Default)]
pub(super) struct Table {
    records: HashMap<Id, Held>,
    live: LeaseEnds,
    lapsed: BTreeSet<(Moment, Id)>,
    pub(super) marks: Marks,
}

impl Table {
    pub(super) fn get(&self, id: &Id) -> Option<&Held> {
        self.records.get(id)
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// The highest order ever accepted for this id, as far as it is remembered.
    pub(super) fn mark(&self, id: &Id) -> Option<HighWaterMark> {
        self.get(id).map(|held| held.mark).or_else(|| self.marks.get(id))
    }

    /// Puts a record in place of any before it.
    pub(super) fn put(&mut self, id: Id, mut held: Held, now: Moment) {
        self.take(&id);
        held.lapsed = held.end <= now;
        if held.lapsed {
            self.lapsed.insert((held.end, id));
        } else {
            self.live.insert(held.source, held.end, id);
        }
        self.records.insert(id, held);
    }

    /// Takes a record out. Its mark is not kept.
    pub(super) fn take(&mut self, id: &Id) -> Option<Held> {
        let held = self.records.remove(id)?;
        if held.lapsed {
            self.lapsed.remove(&(held.end, *id));
        } else {
            self.live.remove(held.source, held.end, *id);
        }
        Some(held)
    }

    /// Moves every record whose lease has ended to those that make room first.
    pub(super) fn lapse(&mut self, now: Moment) {
        while let Some((end, id)) = self.live.next()
            && end <= now
        {
            let Some(held) = self.records.get_mut(&id) else {
                debug_assert!(false, "every lease belongs to a record");
                return;
            };
            held.lapsed = true;
            self.live.remove(held.source, end, id);
            self.lapsed.insert((end, id));
        }
    }

    /// Whom a newcomer from `source` displaces. `None` if all others have as good a right as the newcomer.
    pub(super) fn displaced_by(&self, source: SourcePrefix) -> Option<Id> {
        if let Some((_, id)) = self.lapsed.first() {
            return Some(*id);
        }
        let (crowded, most) = self.live.most_crowded()?;
        // Only a source that would still have no fewer than the newcomer's own gives something up for it.
        let own = self.live.count(source);
        self.live.next_of(if most > own + 1 { crowded } else { source })
    }

    /// When the next live record will have become one that makes room.
    pub(super) fn next_end(&self) -> Option<Moment> {
        self.live.next().map(|(end, _)| end)
    }
}
