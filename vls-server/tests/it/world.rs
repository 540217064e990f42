//! A registry with clocks that tests turn by hand, and a disk that keeps what it was told to write.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use crate::local::START;
use schemas::{Address, IdentityKey, InviteHash, LocationRecord, SignedPacket, SignedRecord, State, Timestamp, VatId};
use vls_server::registry::{
    Admission, Answer, Decision, Evidence, Expected, HighWaterMark, Id, InviteTerms, Now, Outcome, Policy, Registry,
    RestoredRecord, Seed, SourcePrefix, Write,
};

/// A record to sign: epoch, seconds from [`START`] to its signing and to its expiry, and a turn that makes
/// records of the same epoch and time differ.
#[derive(Clone, Copy)]
pub(crate) struct Draft {
    pub(crate) epoch: u64,
    pub(crate) signed: i64,
    pub(crate) expires: i64,
    pub(crate) turn: u64,
}

impl Default for Draft {
    fn default() -> Self {
        Self { epoch: 1, signed: 0, expires: 1_000_000, turn: 7 }
    }
}

impl Draft {
    pub(crate) fn sign(self, key: &IdentityKey) -> SignedRecord {
        let record = LocationRecord {
            epoch: self.epoch,
            turn: self.turn,
            chain_head: None,
            state: State::Live,
            expires: at(self.expires),
            addresses: vec![Address::Quic { host: "192.0.2.1".to_owned(), port: 4433 }],
            search_path: Vec::new(),
            document: None,
        };
        SignedRecord::sign(key, &record, at(self.signed)).unwrap()
    }
}

/// A time, in seconds from [`START`].
pub(crate) fn at(seconds: i64) -> Timestamp {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { START - distance } else { START + distance }
}

/// Source, last seen, end of the lease, packet.
type RecordRow = (SourcePrefix, Timestamp, Timestamp, Arc<[u8]>);

/// The rows that a store would hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    pub(crate) turn: u64,
    records: BTreeMap<Id, RecordRow>,
    marks: BTreeMap<Id, (HighWaterMark, u64)>,
    evidence: BTreeMap<Id, (Evidence, u64)>,
    invites: BTreeMap<InviteHash, InviteTerms>,
}

impl Disk {
    pub(crate) fn apply<T>(&mut self, decision: &Decision<T>) {
        let Some(turn) = &decision.turn else { return };
        assert_eq!(turn.number, self.turn + 1, "turns are numbered without gaps");
        self.turn = turn.number;
        let mut touched = std::collections::BTreeSet::new();
        for write in turn.writes.clone() {
            let row = match write {
                Write::PutRecord { id, source, seen, until, packet } => {
                    self.records.insert(id, (source, seen, until, packet));
                    ("record", id)
                }
                Write::RemoveRecord { id } => {
                    assert!(self.records.remove(&id).is_some());
                    ("record", id)
                }
                Write::PutMark { id, mark, turn } => {
                    self.marks.insert(id, (mark, turn));
                    ("mark", id)
                }
                Write::RemoveMark { id } => {
                    assert!(self.marks.remove(&id).is_some());
                    ("mark", id)
                }
                Write::PutEvidence { id, evidence, turn } => {
                    self.evidence.insert(id, (evidence, turn));
                    ("evidence", id)
                }
                Write::RemoveEvidence { id } => {
                    assert!(self.evidence.remove(&id).is_some());
                    ("evidence", id)
                }
                Write::PutInvite { hash, terms } => {
                    assert!(terms.uses > 0, "what is used up is removed");
                    self.invites.insert(hash, terms);
                    ("invite", *hash.as_bytes())
                }
                Write::RemoveInvite { hash } => {
                    assert!(self.invites.remove(&hash).is_some());
                    ("invite", *hash.as_bytes())
                }
            };
            assert!(touched.insert(row), "no two writes of a turn touch the same row");
        }
    }

    /// The registry of a process that starts with these rows.
    pub(crate) fn restored(&self, policy: Policy, now: Now) -> Registry {
        // A process has another secret than those before it.
        let seed = Seed::of(std::array::from_fn(|at| self.turn.to_be_bytes()[at % 8]));
        let mut restoring = Registry::restoring(policy, seed, now);
        for (id, (source, seen, until, packet)) in &self.records {
            let (id, source, seen, until) = (*id, *source, *seen, *until);
            restoring.record(&RestoredRecord { id, source, seen, until, packet }).unwrap();
        }
        for (id, (mark, turn)) in &self.marks {
            restoring.mark(*id, *mark, *turn);
        }
        for (evidence, turn) in self.evidence.values() {
            restoring.evidence(evidence.clone(), *turn);
        }
        for (hash, terms) in &self.invites {
            restoring.invite(*hash, terms.clone());
        }
        restoring.finish(self.turn)
    }

    pub(crate) fn rows(&self) -> (usize, usize, usize) {
        (self.records.len(), self.marks.len(), self.evidence.len())
    }
}

/// A registry, its clocks and its disk. Every write is durable at once.
pub(crate) struct World {
    pub(crate) registry: Registry,
    pub(crate) disk: Disk,
    pub(crate) now: Now,
    /// What registrations show.
    pub(crate) admission: Admission,
    policy: Policy,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Policy::default())
    }

    pub(crate) fn with(policy: Policy) -> Self {
        let now = Now { wall: START, monotonic: Duration::from_secs(50) };
        let registry = Registry::new(policy.clone(), Seed::of([1; 32]));
        Self { registry, disk: Disk::default(), now, admission: Admission::None, policy }
    }

    /// Lets time pass, on both clocks.
    pub(crate) fn wait(&mut self, duration: Duration) {
        self.now.wall = self.now.wall + duration;
        self.now.monotonic += duration;
    }

    pub(crate) fn wait_seconds(&mut self, seconds: u64) {
        self.wait(Duration::from_secs(seconds));
    }

    /// Another server that has a copy of this one's disk and is started now.
    pub(crate) fn restarted_copy(&self) -> Self {
        let (policy, disk) = (self.policy.clone(), self.disk.clone());
        let registry = Registry::new(policy.clone(), Seed::of([0; 32]));
        let mut copy = Self { registry, disk, now: self.now, admission: self.admission, policy };
        copy.restart();
        copy
    }

    /// Ends the process and starts another: nothing is left but the disk, and the monotonic clock begins anew.
    pub(crate) fn restart(&mut self) {
        self.now.monotonic = Duration::from_millis(3);
        self.registry = self.disk.restored(self.policy.clone(), self.now);
    }

    pub(crate) fn restart_with(&mut self, policy: Policy) {
        self.policy = policy;
        self.restart();
    }

    pub(crate) fn register(&mut self, record: &SignedRecord) -> Outcome {
        self.register_from(None, record, &Expected::Anything)
    }

    pub(crate) fn register_packet(&mut self, packet: &SignedPacket, expected: &Expected) -> Outcome {
        self.register_bytes(None, packet.id().as_bytes(), packet.packet(), expected)
    }

    pub(crate) fn register_from(
        &mut self,
        source: Option<IpAddr>,
        record: &SignedRecord,
        expected: &Expected,
    ) -> Outcome {
        self.register_bytes(source, record.id().as_bytes(), record.packet(), expected)
    }

    pub(crate) fn register_bytes(
        &mut self,
        source: Option<IpAddr>,
        id: &[u8],
        packet: &[u8],
        expected: &Expected,
    ) -> Outcome {
        let decision = self.registry.register(self.now, source, id, packet, expected, &self.admission);
        self.disk.apply(&decision);
        decision.outcome.reveal(self.disk.turn).unwrap()
    }

    pub(crate) fn lookup(&self, id: VatId) -> Answer {
        self.registry.lookup(self.now, id.as_bytes()).reveal(self.disk.turn).unwrap()
    }

    /// The packet that is answered as current.
    pub(crate) fn current(&self, id: VatId) -> Option<Arc<[u8]>> {
        let answer = self.lookup(id);
        answer.packet.filter(|_| !answer.expired)
    }
}

/// The code of a refusal.
pub(crate) fn refusal(outcome: &Outcome) -> &'static str {
    use schemas::Coded;
    match outcome {
        Outcome::Refused(refusal) => refusal.reason.code().as_str(),
        other => panic!("not refused: {other:?}"),
    }
}

pub(crate) const HOUR: Duration = Duration::from_hours(1);

pub(crate) fn stored(lease: Duration) -> Outcome {
    Outcome::Stored { lease }
}

pub(crate) fn refreshed(lease: Duration) -> Outcome {
    Outcome::Refreshed { lease }
}

pub(crate) fn packet(record: &SignedRecord) -> Arc<[u8]> {
    record.packet().into()
}
