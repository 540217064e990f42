//! A registry that is being restored from what was stored, row by row. Beside what it will hold, twenty-four bytes
//! are kept for each record until the end.

use std::time::Duration;

use schemas::{
    InviteHash, RecordError, Timestamp,
    limits::{MAX_ACCEPTED_VALUE, PACKET_HEADER},
};

use super::{
    Id, InviteTerms, Registry,
    evidence::Evidence,
    marks::HighWaterMark,
    quota::SourcePrefix,
    table::{Lease, Placed},
    time::Now,
};

/// One record as it was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoredRecord<'a> {
    /// Whose.
    pub id: Id,
    /// Who paid for its place.
    pub source: SourcePrefix,
    /// When the vat was last seen, by the wall clock.
    pub seen: Timestamp,
    /// When its lease ends, by the same clock.
    pub until: Timestamp,
    /// The packet. It was verified before it was stored, and is not verified again.
    pub packet: &'a [u8],
}

/// Takes everything that was stored, in any order, each thing once.
#[derive(Debug)]
pub struct Restoring {
    registry: Registry,
    now: Now,
    placed: Vec<Placed>,
    /// With the turn in which each became a mark.
    marks: Vec<(u64, Id, HighWaterMark)>,
}

impl Restoring {
    pub(super) fn of(registry: Registry, now: Now) -> Self {
        Self { registry, now, placed: Vec::new(), marks: Vec::new() }
    }

    /// A record.
    ///
    /// # Errors
    /// A packet that is too short or too long to be one. It is not read.
    pub fn record(&mut self, record: &RestoredRecord<'_>) -> Result<(), RecordError> {
        let found = record.packet.len();
        if found < PACKET_HEADER {
            return Err(RecordError::TooShort { found });
        }
        if found > PACKET_HEADER + MAX_ACCEPTED_VALUE {
            return Err(RecordError::TooLarge { found: found - PACKET_HEADER, limit: MAX_ACCEPTED_VALUE });
        }
        let (wall, moment) = (self.now.wall, self.now.moment());
        let seen = moment.before(wall.saturating_since(record.seen));
        let end = match record.until.saturating_since(wall) {
            Duration::ZERO => moment.before(wall.saturating_since(record.until)),
            left => moment.after(left.min(record.until.saturating_since(record.seen))),
        };
        let lease = Lease { source: record.source, seen, end };
        self.placed.push(self.registry.table.restore(&record.id, record.packet, &lease, moment));
        Ok(())
    }

    /// A mark, and the turn in which it was written.
    pub fn mark(&mut self, id: Id, mark: HighWaterMark, turn: u64) {
        self.marks.push((turn, id, mark));
    }

    /// An invite.
    pub fn invite(&mut self, hash: InviteHash, terms: InviteTerms) {
        self.registry.invites.restore(hash, terms);
    }

    /// Evidence, and the turn in which the first pair of its id was written.
    pub fn evidence(&mut self, evidence: Evidence, turn: u64) {
        self.registry.evidence.insert(*evidence.highest().id().as_bytes(), evidence, turn);
    }

    /// The registry, whose newest turn was this one.
    #[must_use]
    pub fn finish(mut self, turn: u64) -> Registry {
        self.registry.turn = turn;
        self.registry.table.restored(self.placed);
        self.marks.sort_unstable_by_key(|(turn, ..)| *turn);
        for (_, id, mark) in self.marks {
            self.registry.table.marks.insert(id, mark);
        }
        self.registry
    }
}
