//! The records, live and expired, and what is left of those that were given up for room (rules 6, 7, 9).
//!
//! Room is made in this order: the expired record whose lease ended first; else the live record that ends
//! first in the source prefix that has most, so that whoever floods the table pushes out themselves. What
//! is given up leaves its high-water mark.
//!
//! A million records shall fit a small machine, so a record takes hardly more memory than its packet has:
//!
//! | part | bytes for each record |
//! |---|---|
//! | [`cells`]: the packet, the lease, the place in the order | the packet and 10 |
//! | [`order`]: which lease ends first, everywhere and per source; which source it is | 4.5 |
//! | [`index`]: where the cell of an id is | 4.7 |
//! | [`recent`]: turns and quotas, of what was written lately | none |
//!
//! What is seldom asked, as its epoch, is read from the packet when it is. No operation walks over more than one
//! shard of the index, a path in a heap, and [`limits::LAPSES_PER_OPERATION`] leases that have ended.

mod cells;
pub(super) mod hash;
pub(super) mod index;
mod order;
mod recent;

use std::time::Duration;

use schemas::IdText;

use self::{
    cells::{Cells, Contents, Number},
    hash::HashKey,
    index::Index,
    order::{GroupId, Order},
    recent::{Debts, Turns},
};
use super::{
    Id,
    marks::Marks,
    quota::{Rate, SourcePrefix},
    time::Moment,
};
use crate::limits;

/// One record, where it lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held<'a> {
    pub(super) packet: &'a [u8],
    /// When it was last registered or renewed.
    pub(super) seen: Moment,
    /// When its lease ends. At that moment it has ended.
    pub(super) end: Moment,
    /// Nothing may be said of it before this turn is durable.
    pub(super) turn: u64,
}

/// A lease: for whom the record is answered, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    /// Who paid for the place in the table. A packet that somebody else forwards does not change it.
    pub(super) source: SourcePrefix,
    /// When the record was last registered or renewed.
    pub(super) seen: Moment,
    /// When its lease ends.
    pub(super) end: Moment,
}

/// Where a record lies that is being restored, and where it will be looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    hash: u64,
    end: u64,
    number: Number,
    group: GroupId,
}

impl Lease {
    /// Its end and its length in ticks.
    fn ticks(&self) -> (u64, u64) {
        let end = self.end.ticks();
        (end, end.saturating_sub(self.seen.ticks()))
    }
}

/// All records and marks.
#[derive(Debug)]
pub(super) struct Table {
    key: HashKey,
    index: Index,
    cells: Cells,
    order: Order,
    turns: Turns,
    debts: Debts,
    pub(super) marks: Marks,
}

impl Table {
    /// An empty table, for at most about so many records. Most leases are of the length `usual_lease`. Nobody else
    /// knows `seed`.
    pub(super) fn new(seed: u64, records: usize, marks: usize, usual_lease: Duration) -> Self {
        let key = HashKey::new(seed);
        let usual = Moment::from_ticks(0).after(usual_lease).ticks();
        Self {
            key,
            index: Index::new(records),
            cells: Cells::new(usual),
            order: Order::default(),
            turns: Turns::default(),
            debts: Debts::default(),
            marks: Marks::new(key, marks),
        }
    }

    /// What is held of this id.
    pub(super) fn get(&self, id: &Id) -> Option<Held<'_>> {
        let hash = self.key.hash(id);
        let number = self.find(hash, id)?;
        let (end, lease) = (self.cells.end(number), self.cells.lease(number));
        Some(Held {
            packet: self.cells.packet(number),
            seen: Moment::from_ticks(end.saturating_sub(lease)),
            end: Moment::from_ticks(end),
            turn: self.turns.of(hash),
        })
    }

    /// Has all that is held of these ids come from memory, which takes longer than the search for it: the memory of one
    /// is not waited for before that of the next is asked for. Whoever looks many up does this before.
    pub(super) fn approach<'a>(&self, ids: impl ExactSizeIterator<Item = &'a Id>) {
        if ids.len() < 2 {
            return;
        }
        let hashes: Vec<u64> = ids.map(|id| self.key.hash(id)).collect();
        for hash in &hashes {
            std::hint::black_box(self.index.touch(*hash));
        }
        for hash in &hashes {
            // Nearly always the right one; if not, the search waits.
            let number = self.index.find(*hash, |_| true);
            std::hint::black_box(number.map(|number| self.cells.touch(number)));
        }
    }

    /// For whom the record of this id is held.
    pub(super) fn source(&self, id: &Id) -> Option<SourcePrefix> {
        let number = self.find(self.key.hash(id), id)?;
        Some(self.order.source(&self.cells, number))
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// How many records are live. Those whose lease has ended count until they are moved ([`Self::lapse`]).
    pub(super) fn live(&self) -> usize {
        self.order.live()
    }

    /// In how many parts the records lie.
    pub(super) fn parts(&self) -> usize {
        self.index.shards()
    }

    /// The records of one part. A record is in the same one for as long as it is held.
    pub(super) fn part(&self, part: usize) -> impl Iterator<Item = (Id, &[u8])> {
        self.index.shard(part).map(|number| (self.cells.id(number), self.cells.packet(number)))
    }

    /// Puts a record in place of any before it, written by this turn.
    pub(super) fn put(&mut self, id: &Id, packet: &[u8], lease: &Lease, turn: u64, now: Moment) {
        let hash = self.key.hash(id);
        if let Some(number) = self.find(hash, id) {
            self.remove(hash, number);
        }
        let (end, length) = lease.ticks();
        let number = self.cells.add(&Contents { id, packet, end, lease: length });
        self.order.insert(&mut self.cells, number, lease.source, lease.end <= now);
        let Self { index, cells, key, .. } = self;
        index.insert(hash, number, |number| key.hash(&cells.id(number)));
        self.turns.set(hash, turn);
    }

    /// Puts a record that was stored before this process began, and of which there is none yet; gives what
    /// [`Self::restored`] has to know of it. Until then nothing is found.
    pub(super) fn restore(&mut self, id: &Id, packet: &[u8], lease: &Lease, now: Moment) -> Placed {
        let (end, length) = lease.ticks();
        let number = self.cells.add(&Contents { id, packet, end, lease: length });
        Placed { hash: self.key.hash(id), end, number, group: self.order.group_for(lease.source, lease.end <= now) }
    }

    /// Ends restoring: from now on the table finds what it holds.
    pub(super) fn restored(&mut self, mut all: Vec<Placed>) {
        all.sort_unstable_by_key(|placed| placed.end);
        self.order.restored(&mut self.cells, all.iter().map(|placed| (placed.group, placed.number)));
        self.index.fill(|| all.iter().map(|placed| (placed.hash, placed.number)));
    }

    /// Gives the record of this id a new lease, which this turn writes.
    pub(super) fn renew(&mut self, id: &Id, lease: &Lease, turn: u64, now: Moment) {
        let hash = self.key.hash(id);
        let Some(number) = self.find(hash, id) else { return };
        let (end, length) = lease.ticks();
        self.order.remove(&mut self.cells, number);
        if self.cells.renew(number, end, length) {
            self.order.insert(&mut self.cells, number, lease.source, lease.end <= now);
            self.turns.set(hash, turn);
        } else {
            // Seldom: the record has less of its validity left than the usual lease, for the first time.
            let packet = self.cells.packet(number).to_vec();
            self.order.insert(&mut self.cells, number, lease.source, false);
            self.put(id, &packet, lease, turn, now);
        }
    }

    /// Notes that what is said of this id from now on tells of this turn.
    pub(super) fn touch(&mut self, id: &Id, turn: u64) {
        self.turns.set(self.key.hash(id), turn);
    }

    /// How long until this id may be written again; nothing if it may be now.
    pub(super) fn wait_for_write(&self, id: &Id, rate: Rate, now: Moment) -> Option<Duration> {
        self.debts.of(self.key.hash(id)).wait(rate, now)
    }

    /// Takes one of the writes that this id may have.
    pub(super) fn pay_for_write(&mut self, id: &Id, rate: Rate, now: Moment) {
        self.debts.take(self.key.hash(id), rate, now);
    }

    /// Takes a record out. Its mark is not kept.
    pub(super) fn take(&mut self, id: &Id) {
        let hash = self.key.hash(id);
        if let Some(number) = self.find(hash, id) {
            self.remove(hash, number);
            self.debts.forget(hash);
        }
    }

    /// Moves records whose lease has ended to those that make room first. After a long silence there may be
    /// many: each call does a part.
    pub(super) fn lapse(&mut self, now: Moment) {
        for _ in 0..limits::LAPSES_PER_OPERATION {
            let Some((_, number)) = self.order.first(false).filter(|(end, _)| Moment::from_ticks(*end) <= now) else {
                return;
            };
            let source = self.order.remove(&mut self.cells, number);
            self.order.insert(&mut self.cells, number, source, true);
        }
    }

    /// How many live records are held for this source.
    pub(super) fn count(&self, source: SourcePrefix) -> usize {
        self.order.count(source) as usize
    }

    /// The live record of this source whose lease ends first.
    pub(super) fn first_of(&self, source: SourcePrefix) -> Option<Id> {
        self.order.first_of(source).map(|number| self.cells.id(number))
    }

    /// Whom a newcomer from `source` displaces. `None` if all others have as good a right as the newcomer.
    pub(super) fn displaced_by(&self, source: SourcePrefix, now: Moment) -> Option<Id> {
        // Among the live there may be some that have ended and were not moved yet.
        let ended = self.order.first(false).filter(|(end, _)| Moment::from_ticks(*end) <= now);
        let lapsed = [self.order.first(true), ended].into_iter().flatten().min();
        if let Some((_, number)) = lapsed {
            return Some(self.cells.id(number));
        }
        let (crowded, most) = self.order.most_crowded()?;
        // Only a source that would still have no fewer than the newcomer's own gives something up for it.
        let own = self.order.count(source);
        let displaced = self.order.first_of(if most > own + 1 { crowded } else { source })?;
        Some(self.cells.id(displaced))
    }

    /// When the next live record will have become one that makes room.
    pub(super) fn next_end(&self) -> Option<Moment> {
        self.order.first(false).map(|(end, _)| Moment::from_ticks(end))
    }

    fn find(&self, hash: u64, id: &Id) -> Option<Number> {
        let text = IdText::of(id);
        self.index.find(hash, |number| self.cells.is_of(number, id, &text))
    }

    fn remove(&mut self, hash: u64, number: Number) {
        let Self { index, cells, key, order, .. } = self;
        order.remove(cells, number);
        index.remove(hash, number, |number| key.hash(&cells.id(number)));
        if let Some(moved) = cells.remove(number) {
            order.renumber(cells, number);
            index.renumber(key.hash(&cells.id(number)), moved, number);
        }
    }
}

#[cfg(test)]
mod tests;
