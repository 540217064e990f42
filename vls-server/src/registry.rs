//! The rules of registration and lookup (DESIGN §4, rules 1 to 9), as a pure state machine.
//!
//! It reads no clock, does no I/O, and draws no random numbers: time comes as [`Now`], what is to be stored
//! leaves as [`Turn`]s, and the secret that keeps its hash table unpredictable is given at the start. So the
//! same code stands behind every carrier, in the gateway and under simulation.
//!
//! | rule | where |
//! |---|---|
//! | 1 cheap checks first | [`Registry::examine`]: identical? id, parse, time, order, expectation, quota; then the signature |
//! | 2 order (epoch, timestamp, bytes) | [`HighWaterMark`], and `SignedPacket::compare` among equal marks |
//! | 3 identical, older, contradicting | `renew`, [`Outcome::Stale`], `conflict` with [`Evidence`] (`storing`) |
//! | 4 at most five minutes ahead | `check_time`; every [`Refusal`] carries the server's time |
//! | 5 compare-and-swap | [`Expected`] |
//! | 6 leases by the monotonic clock | no timers: the record has the end of its own lease, an order finds the next |
//! | 7 high-water marks | `marks`; an expired record is kept, and answered as such, while there is room |
//! | 8 success after durability | [`Withheld`]: an outcome or answer opens only when its turn is durable |
//! | 9 no enumeration, quotas | lookups by exact id only; buckets per source prefix and id; bounded tables; `admission` of new ids |
//!
//! A *record* here is whatever packet is held for an id. Most say where a vat is; one that says nothing of a vat, such as
//! pkarr's and iroh's own programs publish, is held under the same rules: it is of epoch 0, and its lease is as long as
//! the policy says. So a vat's record takes its place whenever it comes, and never the other way round.
//!
//! Registries that were given the same packets hold the same records, in whatever order the packets came: of
//! two that contradict each other the higher one stays or becomes current, while the writer is told.

mod admission;
mod decision;
mod evidence;
mod invites;
mod marks;
mod quota;
mod restoring;
mod storing;
mod table;
mod time;

use std::{cmp::Ordering, net::IpAddr, sync::Arc, time::Duration};

use schemas::{IdentityError, RecordError, SignedPacket, UnverifiedPacket, VatId, VatKey};

use self::{
    admission::Tasks,
    evidence::EvidenceTable,
    invites::Invites,
    table::{Held, Lease, Table},
};
pub use self::{
    admission::{Admission, NotInvited, Price, Seed},
    decision::{
        Answer, Candidate, Claim, Decision, Examined, Expected, Origin, Outcome, Peek, Refusal, RefusalReason, Turn,
        Withheld, Write,
    },
    evidence::Evidence,
    invites::{InviteTerms, NewInviteError},
    marks::HighWaterMark,
    quota::{Rate, SourcePrefix},
    restoring::{RestoredRecord, Restoring},
    time::Now,
};
pub(crate) use self::{decision::seconds, quota::SourceTable};
use crate::limits;

/// The 32 bytes of an id, which may not be one: only what was registered has been checked.
pub type Id = [u8; 32];

/// What an operator may decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How long a record is answered after its vat was last seen.
    pub lease: Duration,
    /// Records that are held, live and expired; at most [`limits::MOST_RECORDS`].
    pub max_records: usize,
    /// High-water marks of ids whose record was given up; at most [`limits::MOST_MARKS`].
    pub max_marks: usize,
    /// Pairs of contradicting packets.
    pub max_evidence: usize,
    /// New ids per source prefix.
    pub new_ids: Rate,
    /// Signature checks per source prefix.
    pub signature_checks: Rate,
    /// Writes per id.
    pub writes_per_id: Rate,
    /// New ids per server from which records are learned; of signature checks it has so many again.
    pub learned_ids: Rate,
    /// New ids are taken by invitation only.
    pub closed: bool,
    /// What a new id costs where the table is nearly full; `None`: nothing.
    pub work: Option<Price>,
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
            learned_ids: limits::LEARNED_IDS,
            closed: false,
            work: Some(Price::default()),
        }
    }
}

impl Policy {
    /// No more than there can be.
    fn bounded(mut self) -> Self {
        self.max_records = self.max_records.min(limits::MOST_RECORDS);
        self.max_marks = self.max_marks.min(limits::MOST_MARKS);
        self
    }
}

/// The registry.
#[derive(Debug)]
pub struct Registry {
    policy: Policy,
    table: Table,
    evidence: EvidenceTable,
    /// For new ids, and for signature checks.
    sources: SourceTable<2>,
    tasks: Tasks,
    invites: Invites,
    /// The newest turn that was decided, durable or not.
    turn: u64,
}

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new(policy: Policy, seed: Seed) -> Self {
        let policy = policy.bounded();
        let of_tables = seed.of_tables();
        Self {
            table: Table::new(of_tables, policy.max_records, policy.max_marks, policy.lease),
            evidence: EvidenceTable::default(),
            sources: SourceTable::new(of_tables),
            tasks: Tasks::new(seed),
            invites: Invites::default(),
            turn: 0,
            policy,
        }
    }

    /// A registry as it was before this process began, once it was given all that was stored.
    ///
    /// The monotonic clock has begun anew, so what is left of each lease is reckoned once by the wall clock: it
    /// ends when its vat was told that it would, even if the policy has changed since. Should the wall clock
    /// have been set back meanwhile, no lease becomes longer than it was when it was granted; should it have
    /// been set forward, leases end early and the records are answered as expired until their vats renew them.
    /// Quotas begin full.
    #[must_use]
    pub fn restoring(policy: Policy, seed: Seed, now: Now) -> Restoring {
        Restoring::of(Self::new(policy, seed), now)
    }

    /// Registers or renews `packet` for `id`, both as they came off the wire. `source` is where they came from;
    /// `None` (a local socket, the same process) has no quota.
    ///
    /// A bit-identical packet succeeds whatever is `expected`: it is what the writer wanted, and an answer
    /// that was lost can be asked for again. An id that is known needs no `admission` either.
    pub fn register(
        &mut self,
        now: Now,
        source: Option<IpAddr>,
        id: &[u8],
        packet: &[u8],
        expected: &Expected,
        admission: &Admission,
    ) -> Decision {
        match self.examine(now, source, id, packet, expected, admission) {
            Examined::Decided(decision) => decision,
            Examined::Unverified(candidate) => {
                let (record, origin) = candidate.into_parts();
                self.admit(now, origin, record.verify())
            }
        }
    }

    /// The first half of [`Self::register`]: everything that is cheap. A record that needs its signature checked has
    /// paid for that; what becomes of it is decided by [`Self::admit`].
    pub fn examine(
        &mut self,
        now: Now,
        source: Option<IpAddr>,
        id: &[u8],
        packet: &[u8],
        expected: &Expected,
        admission: &Admission,
    ) -> Examined {
        let source = SourcePrefix::of(source);
        let origin = Origin { source, expected: *expected, admission: *admission, claimed: None };
        self.look_at(now, origin, id, packet)
    }

    /// The same for a record that another server told of, which is the `source`. It is judged by the same rules, but that
    /// somebody has heard of a vat does not mean that the vat was seen: its lease is what `claim` leaves of it (rule 6),
    /// and may have ended. A bit-identical packet takes over the lease of the claim if that ends later, and changes
    /// nothing otherwise.
    pub fn examine_learned(
        &mut self,
        now: Now,
        source: SourcePrefix,
        id: &[u8],
        packet: &[u8],
        claim: Claim,
    ) -> Examined {
        let claimed = Some(self.claimed(now, source, claim));
        let origin = Origin { source, expected: Expected::Anything, admission: Admission::None, claimed };
        self.look_at(now, origin, id, packet)
    }

    /// What a claim comes to by this server's policy.
    fn claimed(&self, now: Now, source: SourcePrefix, claim: Claim) -> Lease {
        let seen = now.moment().before(claim.age);
        let end = now.moment().after(claim.left).min(seen.after(self.policy.lease));
        Lease { source, seen, end }
    }

    /// The second half of [`Self::register`]: decides about a record whose signature was checked meanwhile. Other
    /// records may have been registered since the first half, also of the same id: what depends on them is looked at
    /// anew. So registrations are in the order in which they are admitted.
    pub fn admit(&mut self, now: Now, origin: Origin, verified: Result<SignedPacket, RecordError>) -> Decision {
        self.table.lapse(now.moment());
        verified
            .map_err(RefusalReason::from)
            .and_then(|record| self.decide(now, origin, record))
            .unwrap_or_else(|reason| refused(now, reason))
    }

    /// What is known of exactly this id. There is no other way to ask (rule 9).
    pub fn lookup(&self, now: Now, id: &Id) -> Withheld<Answer> {
        let Some(Peek { packet, age, left, expired, turn }) = self.peek(now, id) else {
            return Withheld::until(0, Answer::default());
        };
        Withheld::until(turn, Answer { packet: Some(packet.into()), age, left, expired })
    }

    /// The same without taking any memory: for carriers that write the packet somewhere else at once. The caller has to
    /// see that the turn is durable.
    #[must_use]
    pub fn peek(&self, now: Now, id: &Id) -> Option<Peek<'_>> {
        let held = self.table.get(id)?;
        let (age, left) = (now.moment().since(held.seen), held.end.since(now.moment()));
        Some(Peek { packet: held.packet, age, left, expired: held.end <= now.moment(), turn: held.turn })
    }

    /// Has what is held of these ids come from memory, for who looks all of them up next: together that takes a fraction
    /// of the time.
    pub fn approach<'a>(&self, ids: impl ExactSizeIterator<Item = &'a Id>) {
        self.table.approach(ids);
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

    /// Goes by another policy from now on. Leases that were granted end when their vats were told that they would; if
    /// there are more records than there may be, no more come.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy.bounded();
    }

    /// What the operator has decided.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// In how many parts [`Self::part`] gives the records.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.table.parts()
    }

    /// The ids and packets of one part, live and expired, for the server's owner alone: nobody else is told which ids
    /// there are (rule 9). Whoever reads part after part while others register gets each record that is held all the
    /// time exactly once.
    pub fn part(&self, part: usize) -> impl Iterator<Item = (Id, &[u8])> {
        self.table.part(part)
    }

    /// What is held of an id if it is live and was registered here, not learned from others; and the turn before whose
    /// durability it may not be told.
    pub(crate) fn own(&self, now: Now, id: &Id) -> Option<(&[u8], u64)> {
        let held = self.table.get(id).filter(|held| held.end > now.moment())?;
        self.table.source(id).filter(|source| !source.is_server()).map(|_| (held.packet, held.turn))
    }

    fn look_at(&mut self, now: Now, origin: Origin, id: &[u8], packet: &[u8]) -> Examined {
        self.table.lapse(now.moment());
        self.check(now, origin, id, packet).unwrap_or_else(|reason| Examined::Decided(refused(now, reason)))
    }

    fn check(&mut self, now: Now, origin: Origin, id: &[u8], packet: &[u8]) -> Result<Examined, RefusalReason> {
        let id: Id = id.try_into().map_err(|_| IdentityError::Length { found: id.len() })?;
        if self.holds(&id, packet) {
            return self.renew(now, id, &origin).map(Examined::Decided);
        }
        let record = UnverifiedPacket::parse_with(VatKey::from_bytes(id)?, packet)?;
        record.check_time(now.wall)?;
        let standing = self.standing(record.id(), HighWaterMark::claimed_by(&record), &origin.expected)?;
        let new = match standing {
            Standing::Decided(decision) => return Ok(Examined::Decided(decision)),
            Standing::Contradicts => false,
            Standing::Higher { new } => new,
        };
        if new {
            self.may_enter(now, &origin, &record.id())?;
        }
        self.pay_for_check(now, &origin, new)?;
        Ok(Examined::Unverified(Box::new(Candidate::new(record, origin))))
    }

    fn decide(&mut self, now: Now, origin: Origin, record: SignedPacket) -> Result<Decision, RefusalReason> {
        let id = *record.id().as_bytes();
        if self.holds(&id, record.packet()) {
            return self.renew(now, id, &origin);
        }
        record.check_time(now.wall)?;
        match self.standing(record.id(), HighWaterMark::of(&record), &origin.expected)? {
            Standing::Decided(decision) => Ok(decision),
            Standing::Contradicts => self.conflict(now, &origin, &record),
            Standing::Higher { new } => self.store(now, &origin, &record, new),
        }
    }

    /// Whether exactly this packet is the current record.
    fn holds(&self, id: &Id, packet: &[u8]) -> bool {
        self.table.get(id).is_some_and(|held| held.packet == packet)
    }

    /// What a record that is not the current one is beside the current one (rules 2, 3 and 5).
    fn standing(&self, id: VatId, mark: HighWaterMark, expected: &Expected) -> Result<Standing, RefusalReason> {
        let Some(held) = self.table.get(id.as_bytes()) else {
            let known = self.table.marks.get(id.as_bytes());
            return Ok(if known.is_some_and(|known| mark < known) {
                Standing::Decided(untold(Outcome::Stale { current: None }))
            } else if matches!(expected, Expected::Order(_)) {
                Standing::Decided(untold(Outcome::Unexpected { current: None }))
            } else {
                Standing::Higher { new: known.is_none() }
            });
        };
        let current = UnverifiedPacket::parse(id, held.packet)?;
        let as_expected = match expected {
            Expected::Anything => true,
            Expected::Absent => false,
            Expected::Order(order) => current.order() == *order,
        };
        Ok(match mark.cmp(&HighWaterMark::claimed_by(&current)) {
            Ordering::Less => Standing::Decided(answer(&held, |current| Outcome::Stale { current: Some(current) })),
            Ordering::Equal => Standing::Contradicts,
            Ordering::Greater if as_expected => Standing::Higher { new: false },
            Ordering::Greater => {
                Standing::Decided(answer(&held, |current| Outcome::Unexpected { current: Some(current) }))
            }
        })
    }

    /// Lets the source have a signature checked, if it may. A new id costs its token even if the signature turns out to
    /// be forged.
    fn pay_for_check(&mut self, now: Now, origin: &Origin, new: bool) -> Result<(), RefusalReason> {
        if origin.source == SourcePrefix::LOCAL {
            return Ok(());
        }
        let (new_ids, checks) = if origin.source.is_server() {
            (self.policy.learned_ids, self.policy.learned_ids)
        } else {
            (self.policy.new_ids, self.policy.signature_checks)
        };
        let now = now.moment();
        let [of_new_ids, of_checks] = self.sources.buckets(origin.source, now);
        if let Some(retry_after) = of_new_ids.wait(new_ids, now).filter(|_| new) {
            return Err(RefusalReason::NewIds { retry_after });
        }
        if let Some(retry_after) = of_checks.wait(checks, now) {
            return Err(RefusalReason::SignatureChecks { retry_after });
        }
        of_checks.take(checks, now);
        if new {
            of_new_ids.take(new_ids, now);
        }
        Ok(())
    }
}

/// What a record is beside what is known of its id.
enum Standing {
    /// Not one to be registered.
    Decided(Decision),
    /// Higher than the current one, or than the mark, or as high as the mark; or the first of its id.
    Higher { new: bool },
    /// Of the same epoch and time as the current one.
    Contradicts,
}

/// An outcome without a turn, which tells of nothing but the record that is held.
fn answer(held: &Held<'_>, outcome: impl FnOnce(Arc<[u8]>) -> Outcome) -> Decision {
    Decision { outcome: Withheld::until(held.turn, outcome(held.packet.into())), turn: None }
}

/// An outcome that tells of nothing that has to be durable.
fn untold(outcome: Outcome) -> Decision {
    Decision { outcome: Withheld::until(0, outcome), turn: None }
}

fn refused(now: Now, reason: RefusalReason) -> Decision {
    untold(Outcome::Refused(Refusal { reason, server_time: now.wall }))
}
