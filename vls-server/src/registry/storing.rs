//! What becomes of a record that is to be held: its lease, its place in the table, and the writes that make both durable
//! (rules 3, 6 and 7).
//!
//! Each of these begins a turn only when nothing is in the way any more: what was refused has changed nothing.

use std::{sync::Arc, time::Duration};

use schemas::{RecordError, SignedPacket, Timestamp, UnverifiedPacket, VatId};

use super::{
    Decision, Evidence, HighWaterMark, Id, Now, Origin, Outcome, RefusalReason, Registry, SourcePrefix, Turn, Withheld,
    Write, answer, table::Lease, time::Moment,
};
use crate::limits;

impl Registry {
    /// Bit-identical: the signature was verified when these bytes were stored, so nothing is checked but time.
    pub(super) fn renew(&mut self, now: Now, id: Id, origin: &Origin) -> Result<Decision, RefusalReason> {
        let Some(held) = self.table.get(&id) else {
            debug_assert!(false, "what is renewed is held");
            return Err(RefusalReason::Full { retry_after: Duration::ZERO });
        };
        let expires = UnverifiedPacket::parse(VatId::from_stored(id), held.packet)?.expires();
        if let Some(expires) = expires.filter(|expires| *expires <= now.wall) {
            return Err(RecordError::Expired { expires, now: now.wall }.into());
        }
        let moment = now.moment();
        // Anybody can send a public packet again. What would hardly lengthen the lease is not written, and the
        // answer tells what is true without it. The lease is the one that was granted: the policy may be another one since.
        // What another server has heard of never shortens it.
        let claimed = origin.claimed;
        let seen = claimed.map_or(moment, |claimed| claimed.seen);
        let is_longer = claimed.is_none_or(|claimed| claimed.end > held.end && claimed.seen >= held.seen);
        let grain = held.end.since(held.seen) / limits::RENEWAL_GRAIN;
        if !is_longer || held.end > moment && seen.since(held.seen) < grain {
            let lease = held.end.since(moment);
            return Ok(answer(&held, |_| Outcome::Refreshed { lease }));
        }
        let packet = held.packet.into();
        let source = self.source_of(now, &id, origin);
        let mut turn = self.begin();
        let lease = self.grant(now, source, expires, claimed);
        self.table.renew(&id, &lease, turn.number, moment);
        turn.writes.push(put(now, id, &lease, packet));
        Ok(self.end(turn, Outcome::Refreshed { lease: lease.end.since(moment) }))
    }

    /// A record that is higher than any before, or as high as a mark whose bytes are forgotten.
    pub(super) fn store(
        &mut self,
        now: Now,
        origin: &Origin,
        record: &SignedPacket,
        new: bool,
    ) -> Result<Decision, RefusalReason> {
        let id = *record.id().as_bytes();
        let mut turn = self.begin();
        let (source, is_new) = (self.source_of(now, &id, origin), self.table.source(&id).is_none());
        self.may_be_written(now, &id)?;
        // Others may have used it up since this was examined.
        let invite = if new { self.invitation(now, origin)? } else { None };
        // From here on nothing fails that has changed something.
        if is_new {
            self.make_room(now, origin, &mut turn)?;
        }
        if let Some(invite) = invite {
            self.invites.consume(invite, &mut turn);
        }
        if self.table.marks.remove(&id) {
            turn.writes.push(Write::RemoveMark { id });
        }
        let lease = self.place(now, source, origin.claimed, record, &mut turn);
        Ok(self.end(turn, Outcome::Stored { lease }))
    }

    /// The same epoch and timestamp as the record that is held, and other bytes (rule 3).
    pub(super) fn conflict(
        &mut self,
        now: Now,
        origin: &Origin,
        record: &SignedPacket,
    ) -> Result<Decision, RefusalReason> {
        let id = *record.id().as_bytes();
        let source = self.source_of(now, &id, origin);
        let Some(held) = self.table.get(&id) else {
            debug_assert!(false, "a record contradicts one that is held");
            return Err(RefusalReason::Full { retry_after: Duration::ZERO });
        };
        let current = SignedPacket::verify(record.id(), held.packet)?;
        let higher = record.compare(&current).is_gt();
        let other: Arc<[u8]> = held.packet.into();
        let evidence = Evidence::of(record.clone(), current).and_then(|pair| self.evidence.merged(&id, pair));
        if evidence.is_none() && !higher {
            return Ok(answer(&held, |other| Outcome::Conflict { other }));
        }
        self.may_be_written(now, &id)?;
        let mut turn = self.begin();
        if let Some(evidence) = evidence {
            self.keep_evidence(id, evidence, &mut turn);
        }
        if higher {
            self.place(now, source, origin.claimed, record, &mut turn);
        } else {
            self.table.pay_for_write(&id, self.policy.writes_per_id, now.moment());
            self.table.touch(&id, turn.number);
        }
        Ok(self.end(turn, Outcome::Conflict { other }))
    }

    /// Who pays for the place of an id from now on. What was learned and is registered here now is the vat's own; what has
    /// ended here and goes on by hearsay is not any more.
    fn source_of(&self, now: Now, id: &Id, origin: &Origin) -> SourcePrefix {
        let is_live = self.table.get(id).is_some_and(|held| held.end > now.moment());
        let stays = |held: &SourcePrefix| !held.is_server() && (origin.claimed.is_none() || is_live);
        self.table.source(id).filter(stays).unwrap_or(origin.source)
    }

    fn keep_evidence(&mut self, id: Id, evidence: Evidence, turn: &mut Turn) {
        if self.evidence.get(&id).is_none()
            && self.evidence.len() >= self.policy.max_evidence
            && let Some(oldest) = self.evidence.oldest()
        {
            self.evidence.remove(&oldest);
            turn.writes.push(Write::RemoveEvidence { id: oldest });
        }
        let since = self.evidence.insert(id, evidence.clone(), turn.number);
        turn.writes.push(Write::PutEvidence { id, evidence, turn: since });
    }

    fn may_be_written(&self, now: Now, id: &Id) -> Result<(), RefusalReason> {
        match self.table.wait_for_write(id, self.policy.writes_per_id, now.moment()) {
            Some(retry_after) => Err(RefusalReason::Writes { retry_after }),
            None => Ok(()),
        }
    }

    /// Makes `record` the current one of its id, at the cost of a write; gives its lease.
    fn place(
        &mut self,
        now: Now,
        source: SourcePrefix,
        claimed: Option<Lease>,
        record: &SignedPacket,
        turn: &mut Turn,
    ) -> Duration {
        let id = *record.id().as_bytes();
        // What another server has heard of never shortens what the vat was granted here for the record before.
        let held = self.table.get(&id).map(|held| (held.seen, held.end));
        let claimed = claimed.map(|claimed| match held {
            Some((seen, end)) if end > claimed.end => Lease { seen: seen.max(claimed.seen), end, ..claimed },
            _ => claimed,
        });
        let lease = self.grant(now, source, record.expires(), claimed);
        self.table.put(&id, record.packet(), &lease, turn.number, now.moment());
        self.table.pay_for_write(&id, self.policy.writes_per_id, now.moment());
        turn.writes.push(put(now, id, &lease, record.packet().into()));
        lease.end.since(now.moment())
    }

    /// A new lease: from now on for as long as the policy says, or the one that was claimed; or until the record's own end
    /// of validity if it states one that comes before (rule 6).
    fn grant(&self, now: Now, source: SourcePrefix, expires: Option<Timestamp>, claimed: Option<Lease>) -> Lease {
        let moment = now.moment();
        let (seen, end) = match claimed {
            Some(Lease { seen, end, .. }) => (seen, end),
            None => (moment, moment.after(self.policy.lease)),
        };
        let validity = expires.map_or(Duration::MAX, |expires| expires.saturating_since(now.wall));
        Lease { source, seen, end: end.min(moment.after(validity)).max(seen) }
    }

    /// Gives up a record for a newcomer, if the table is full, or the newcomer comes from a server of which there is enough.
    fn make_room(&mut self, now: Now, origin: &Origin, turn: &mut Turn) -> Result<(), RefusalReason> {
        let most_learned = (self.policy.max_records / limits::LEARNED_PART).max(1);
        let source = origin.source;
        let is_live = origin.claimed.is_none_or(|claimed| claimed.end > now.moment());
        let has_enough = is_live && source.is_server() && self.table.count(source) >= most_learned;
        if self.table.len() < self.policy.max_records && !has_enough {
            return Ok(());
        }
        let displaced =
            if has_enough { self.table.first_of(source) } else { self.table.displaced_by(source, now.moment()) };
        let Some((id, held)) = displaced.and_then(|id| Some((id, self.table.get(&id)?))) else {
            let retry_after = self.table.next_end().map_or(Duration::ZERO, |end| end.since(now.moment()));
            return Err(RefusalReason::Full { retry_after });
        };
        let mark = HighWaterMark::claimed_by(&UnverifiedPacket::parse(VatId::from_stored(id), held.packet)?);
        self.table.take(&id);
        if self.table.marks.len() >= self.policy.max_marks
            && let Some(oldest) = self.table.marks.oldest()
        {
            self.table.marks.remove(&oldest);
            turn.writes.push(Write::RemoveMark { id: oldest });
        }
        self.table.marks.insert(id, mark);
        turn.writes.push(Write::RemoveRecord { id });
        turn.writes.push(Write::PutMark { id, mark, turn: turn.number });
        Ok(())
    }

    pub(super) fn begin(&self) -> Turn {
        Turn { number: self.turn + 1, writes: Vec::new() }
    }

    pub(super) fn end<T>(&mut self, turn: Turn, outcome: T) -> Decision<T> {
        debug_assert!(!turn.writes.is_empty(), "a turn writes something");
        self.turn = turn.number;
        Decision { outcome: Withheld::until(turn.number, outcome), turn: Some(turn) }
    }
}

/// The row of a record with this lease.
fn put(now: Now, id: Id, lease: &Lease, packet: Arc<[u8]>) -> Write {
    let moment = now.moment();
    let at = |when: Moment| now.wall.saturating_add(when.since(moment)).saturating_sub(moment.since(when));
    Write::PutRecord { id, source: lease.source, seen: at(lease.seen), until: at(lease.end), packet }
}
