//! The rules of registration and lookup (DESIGN §4, rules 1 to 9), as a pure state machine.
//!
//! It reads no clock, does no I/O, and draws no random numbers: time comes as [`Now`], what is to be stored
//! leaves as [`Turn`]s, and the secret that keeps its hash table unpredictable is given at the start. So the
//! same code stands behind every carrier, in the gateway and under simulation.
//!
//! | rule | where |
//! |---|---|
//! | 1 cheap checks first | [`Registry::register`]: identical? id, parse, time, order, expectation, quota, signature |
//! | 2 order (epoch, timestamp, bytes) | [`HighWaterMark`], and `SignedRecord::compare` among equal marks |
//! | 3 identical, older, contradicting | `renew`, [`Outcome::Stale`], `conflict` with [`Evidence`] |
//! | 4 at most five minutes ahead | `check_time`; every [`Refusal`] carries the server's time |
//! | 5 compare-and-swap | [`Expected`] |
//! | 6 leases by the monotonic clock | no timers: the record has the end of its own lease, an index finds the next |
//! | 7 high-water marks | `marks`; an expired record is kept, and answered as such, while there is room |
//! | 8 success after durability | [`Withheld`]: an outcome or answer opens only when its turn is durable |
//! | 9 no enumeration, quotas | lookups by exact id only; buckets per source prefix and id; bounded tables |
//!
//! Registries that were given the same packets hold the same records, in whatever order the packets came: of
//! two that contradict each other the higher one stays or becomes current, while the writer is told.

mod decision;
mod evidence;
mod expiry;
mod marks;
mod quota;
mod table;
mod time;

use std::{net::IpAddr, sync::Arc, time::Duration};

use schemas::{IdentityError, RecordError, SignedRecord, Timestamp, UnverifiedRecord, VatId};

pub(crate) use self::decision::seconds;
pub use self::{
    decision::{Answer, Decision, Expected, Outcome, Refusal, RefusalReason, Turn, Withheld, Write},
    evidence::Evidence,
    marks::HighWaterMark,
    quota::{Rate, SourcePrefix},
    time::Now,
};
use self::{
    evidence::EvidenceTable,
    quota::SourceTable,
    table::{Held, Table},
};
use crate::limits;

/// The 32 bytes of an id, which may not be one: only what was registered has been checked.
pub type Id = [u8; 32];

/// What an operator may decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How long a record is answered after its vat was last seen.
    pub lease: Duration,
    /// Records that are held, live and expired.
    pub max_records: usize,
    /// High-water marks of ids whose record was given up.
    pub max_marks: usize,
    /// Pairs of contradicting packets.
    pub max_evidence: usize,
    /// New ids per source prefix.
    pub new_ids: Rate,
    /// Signature checks per source prefix.
    pub signature_checks: Rate,
    /// Writes per id.
    pub writes_per_id: Rate,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            lease: limits::LEASE,
            max_records: limits::MAX_RECORDS,
            max_marks: limits::MAX_MARKS,
            max_evidence: limits::MAX_EVIDENCE,
            new_ids: limits::NEW_IDS,
            signature_checks: limits::SIGNATURE_CHECKS,
            writes_per_id: limits::WRITES_PER_ID,
        }
    }
}

/// What a store gives back after a restart.
#[derive(Debug, Default)]
pub struct Restored {
    /// The newest turn.
    pub turn: u64,
    /// All records.
    pub records: Vec<RestoredRecord>,
    /// All marks, with the turn in which each was written.
    pub marks: Vec<(Id, HighWaterMark, u64)>,
    /// All evidence, with the turn in which each id's first pair was written.
    pub evidence: Vec<(Evidence, u64)>,
}

/// One record as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoredRecord {
    /// Whose.
    pub id: VatId,
    /// Who paid for its place.
    pub source: SourcePrefix,
    /// The packet. It was verified before it was stored, and is not verified again.
    pub packet: Arc<[u8]>,
    /// When the vat was last seen, by the wall clock.
    pub seen: Timestamp,
    /// When its lease ends, by the same clock.
    pub until: Timestamp,
}

/// The registry.
#[derive(Debug)]
pub struct Registry {
    policy: Policy,
    table: Table,
    evidence: EvidenceTable,
    sources: SourceTable,
    /// The newest turn that was decided, durable or not.
    turn: u64,
}

impl Registry {
    /// An empty registry. `seed` is a secret random number.
    #[must_use]
    pub fn new(policy: Policy, seed: u64) -> Self {
        Self {
            policy,
            table: Table::default(),
            evidence: EvidenceTable::default(),
            sources: SourceTable::new(seed),
            turn: 0,
        }
    }

    /// A registry as it was when `restored` was durable.
    ///
    /// The monotonic clock has begun anew, so what is left of each lease is reckoned once by the wall clock: it
    /// ends when its vat was told that it would, even if the policy has changed since. Should the wall clock
    /// have been set back meanwhile, no lease becomes longer than it was when it was granted; should it have
    /// been set forward, leases end early and the records are answered as expired until their vats renew them.
    /// Quotas begin full.
    ///
    /// # Errors
    /// A packet that this program cannot read.
    pub fn restore(policy: Policy, seed: u64, now: Now, restored: Restored) -> Result<Self, RecordError> {
        let mut registry = Self::new(policy, seed);
        registry.turn = restored.turn;
        for record in restored.records {
            let parsed = UnverifiedRecord::parse(record.id, &record.packet)?;
            let mark = HighWaterMark::claimed_by(&parsed);
            let mut held = Held::new(record.packet, mark, parsed.record().expires, record.source);
            held.seen = now.moment().before(now.wall.saturating_since(record.seen));
            held.end = match record.until.saturating_since(now.wall) {
                Duration::ZERO => now.moment().before(now.wall.saturating_since(record.until)),
                left => now.moment().after(left.min(record.until.saturating_since(record.seen))),
            };
            registry.table.put(*record.id.as_bytes(), held, now.moment());
        }
        for (id, mark, turn) in restored.marks {
            registry.table.marks.insert(id, mark, turn);
        }
        for (evidence, turn) in restored.evidence {
            registry.evidence.insert(*evidence.highest().id().as_bytes(), evidence, turn);
        }
        Ok(registry)
    }

    /// Registers or renews `packet` for `id`, both as they came off the wire. `source` is where they came from;
    /// `None` (a local socket, the same process) has no quota.
    ///
    /// A bit-identical packet succeeds whatever is `expected`: it is what the writer wanted, and an answer
    /// that was lost can be asked for again.
    pub fn register(
        &mut self,
        now: Now,
        source: Option<IpAddr>,
        id: &[u8],
        packet: &[u8],
        expected: &Expected,
    ) -> Decision {
        self.table.lapse(now.moment());
        self.decide(now, SourcePrefix::of(source), id, packet, expected).unwrap_or_else(|reason| Decision {
            outcome: Withheld::until(0, Outcome::Refused(Refusal { reason, server_time: now.wall })),
            turn: None,
        })
    }

    /// What is known of exactly this id. There is no other way to ask (rule 9).
    pub fn lookup(&self, now: Now, id: &Id) -> Withheld<Answer> {
        let Some(held) = self.table.get(id) else { return Withheld::until(0, Answer::default()) };
        let answer = Answer {
            packet: Some(Arc::clone(&held.packet)),
            age: now.moment().since(held.seen),
            expired: held.end <= now.moment(),
        };
        Withheld::until(held.turn, answer)
    }

    /// The evidence against the vat with this id, for people.
    #[must_use]
    pub fn evidence(&self, id: &Id) -> Option<&Evidence> {
        self.evidence.get(id)
    }

    /// The newest turn that was decided, durable or not.
    #[must_use]
    pub fn turn(&self) -> u64 {
        self.turn
    }

    /// How many records are held, live and expired.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    fn decide(
        &mut self,
        now: Now,
        source: SourcePrefix,
        id: &[u8],
        packet: &[u8],
        expected: &Expected,
    ) -> Result<Decision, RefusalReason> {
        let id: Id = id.try_into().map_err(|_| IdentityError::Length { found: id.len() })?;
        let held = self.table.get(&id);
        if let Some(held) = held.filter(|held| *held.packet == *packet) {
            let held = held.clone();
            return self.renew(now, id, held);
        }
        let record = UnverifiedRecord::parse(VatId::from_bytes(id)?, packet)?;
        record.check_time(now.wall)?;
        let known = self.table.mark(&id);
        let mark = HighWaterMark::claimed_by(&record);
        if known.is_some_and(|known| mark < known) {
            return Ok(self.answer(held, |current| Outcome::Stale { current }));
        }
        let contradicted = held.filter(|held| held.mark == mark).cloned();
        if contradicted.is_none() && !is_expected(held, record.id(), expected) {
            return Ok(self.answer(held, |current| Outcome::Unexpected { current }));
        }
        let record = self.verify(now, source, known.is_none(), record)?;
        match contradicted {
            Some(held) => self.conflict(now, held, record),
            None => self.store(now, source, record),
        }
    }

    /// An outcome without a turn, which tells of nothing but the record that is held.
    fn answer(&self, held: Option<&Held>, outcome: impl FnOnce(Option<Arc<[u8]>>) -> Outcome) -> Decision {
        let turn = held.map_or(0, |held| held.turn);
        let outcome = outcome(held.map(|held| Arc::clone(&held.packet)));
        Decision { outcome: Withheld::until(turn, outcome), turn: None }
    }

    /// Checks the signature, if the source may have one checked. A new id costs its token even if the
    /// signature turns out to be forged.
    fn verify(
        &mut self,
        now: Now,
        source: SourcePrefix,
        new: bool,
        record: UnverifiedRecord,
    ) -> Result<SignedRecord, RefusalReason> {
        if source != SourcePrefix::LOCAL {
            let (new_ids, checks) = (self.policy.new_ids, self.policy.signature_checks);
            let now = now.moment();
            let buckets = self.sources.buckets(source, now);
            if let Some(retry_after) = buckets.new_ids.wait(new_ids, now).filter(|_| new) {
                return Err(RefusalReason::NewIds { retry_after });
            }
            if let Some(retry_after) = buckets.signature_checks.wait(checks, now) {
                return Err(RefusalReason::SignatureChecks { retry_after });
            }
            buckets.signature_checks.take(checks, now);
            if new {
                buckets.new_ids.take(new_ids, now);
            }
        }
        Ok(record.verify()?)
    }

    /// Bit-identical: the signature was verified when these bytes were stored, so nothing is checked but time.
    fn renew(&mut self, now: Now, id: Id, mut held: Held) -> Result<Decision, RefusalReason> {
        if held.expires <= now.wall {
            return Err(RecordError::Expired { expires: held.expires, now: now.wall }.into());
        }
        let moment = now.moment();
        // Anybody can send a public packet again. What would hardly lengthen the lease is not written, and the
        // answer tells what is true without it.
        if held.end > moment && moment.since(held.seen) < self.policy.lease / limits::RENEWAL_GRAIN {
            let outcome = Outcome::Refreshed { lease: held.end.since(moment) };
            return Ok(Decision { outcome: Withheld::until(held.turn, outcome), turn: None });
        }
        let mut turn = self.begin();
        let lease = self.lease(now, &mut held, id, &mut turn);
        self.table.put(id, held, moment);
        Ok(self.end(turn, Outcome::Refreshed { lease }))
    }

    /// A record that is higher than any before, or as high as a mark whose bytes are forgotten.
    fn store(&mut self, now: Now, source: SourcePrefix, record: SignedRecord) -> Result<Decision, RefusalReason> {
        let id = *record.id().as_bytes();
        let mut turn = self.begin();
        let held = self.table.get(&id).map(|held| (held.source, held.writes));
        let (source, mut writes) = held.unwrap_or((source, quota::Bucket::FULL));
        self.pay_for_write(now, &mut writes)?;
        // From here on nothing fails that has changed something.
        if held.is_none() {
            self.make_room(now, source, &mut turn)?;
        }
        if self.table.marks.remove(&id) {
            turn.writes.push(Write::RemoveMark { id });
        }
        let lease = self.place(now, source, writes, &record, &mut turn);
        Ok(self.end(turn, Outcome::Stored { lease }))
    }

    /// The same epoch and timestamp as the record that is held, and other bytes (rule 3).
    fn conflict(&mut self, now: Now, mut held: Held, record: SignedRecord) -> Result<Decision, RefusalReason> {
        let id = *record.id().as_bytes();
        let other = Arc::clone(&held.packet);
        let current = SignedRecord::verify(record.id(), &held.packet)?;
        let higher = record.compare(&current).is_gt();
        let evidence = Evidence::of(record.clone(), current).and_then(|pair| self.evidence.merged(&id, pair));
        if evidence.is_none() && !higher {
            return Ok(self.answer(Some(&held), |_| Outcome::Conflict { other }));
        }
        self.pay_for_write(now, &mut held.writes)?;
        let mut turn = self.begin();
        if let Some(evidence) = evidence {
            self.keep_evidence(id, evidence, &mut turn);
        }
        if higher {
            self.place(now, held.source, held.writes, &record, &mut turn);
        } else {
            held.turn = turn.number;
            self.table.put(id, held, now.moment());
        }
        Ok(self.end(turn, Outcome::Conflict { other }))
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

    fn pay_for_write(&self, now: Now, writes: &mut quota::Bucket) -> Result<(), RefusalReason> {
        let rate = self.policy.writes_per_id;
        if let Some(retry_after) = writes.wait(rate, now.moment()) {
            return Err(RefusalReason::Writes { retry_after });
        }
        writes.take(rate, now.moment());
        Ok(())
    }

    /// Makes `record` the current one of its id; gives its lease.
    fn place(
        &mut self,
        now: Now,
        source: SourcePrefix,
        writes: quota::Bucket,
        record: &SignedRecord,
        turn: &mut Turn,
    ) -> Duration {
        let id = *record.id().as_bytes();
        let packet: Arc<[u8]> = record.packet().into();
        turn.writes.push(Write::PutRecord { id, source, packet: Arc::clone(&packet) });
        let mut held = Held::new(packet, HighWaterMark::of(record), record.record().expires, source);
        held.writes = writes;
        let lease = self.lease(now, &mut held, id, turn);
        self.table.put(id, held, now.moment());
        lease
    }

    /// Gives `held` a new lease: until its own end of validity, or for as long as the policy says (rule 6).
    fn lease(&self, now: Now, held: &mut Held, id: Id, turn: &mut Turn) -> Duration {
        let lease = self.policy.lease.min(held.expires.saturating_since(now.wall));
        held.seen = now.moment();
        held.end = now.moment().after(lease);
        held.turn = turn.number;
        turn.writes.push(Write::PutLease { id, seen: now.wall, until: now.wall.saturating_add(lease) });
        lease
    }

    /// Gives up a record, if the table is full, for a newcomer from `source`.
    fn make_room(&mut self, now: Now, source: SourcePrefix, turn: &mut Turn) -> Result<(), RefusalReason> {
        if self.table.len() < self.policy.max_records {
            return Ok(());
        }
        let displaced = self.table.displaced_by(source).and_then(|id| Some((id, self.table.take(&id)?)));
        let Some((id, held)) = displaced else {
            let retry_after = self.table.next_end().map_or(Duration::ZERO, |end| end.since(now.moment()));
            return Err(RefusalReason::Full { retry_after });
        };
        if self.table.marks.len() >= self.policy.max_marks
            && let Some(oldest) = self.table.marks.oldest()
        {
            self.table.marks.remove(&oldest);
            turn.writes.push(Write::RemoveMark { id: oldest });
        }
        self.table.marks.insert(id, held.mark, turn.number);
        turn.writes.push(Write::RemoveRecord { id });
        turn.writes.push(Write::RemoveLease { id });
        turn.writes.push(Write::PutMark { id, mark: held.mark, turn: turn.number });
        Ok(())
    }

    fn begin(&self) -> Turn {
        Turn { number: self.turn + 1, writes: Vec::new() }
    }

    fn end(&mut self, turn: Turn, outcome: Outcome) -> Decision {
        debug_assert!(!turn.writes.is_empty(), "a turn writes something");
        self.turn = turn.number;
        Decision { outcome: Withheld::until(turn.number, outcome), turn: Some(turn) }
    }
}

/// Whether the current record is the one that the writer expects (rule 5).
fn is_expected(held: Option<&Held>, id: VatId, expected: &Expected) -> bool {
    match (expected, held) {
        (Expected::Anything, _) | (Expected::Absent, None) => true,
        (Expected::Absent, Some(_)) | (Expected::Order(_), None) => false,
        (Expected::Order(expected), Some(held)) => {
            UnverifiedRecord::parse(id, &held.packet).is_ok_and(|current| current.order() == *expected)
        }
    }
}
