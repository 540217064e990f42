//! What the registry decides: an outcome for whoever asked, and the writes that must be durable before the
//! outcome may be told (rule 8).

use std::{sync::Arc, time::Duration};

use schemas::{Coded, ErrorCode, IdentityError, InviteHash, Order, RecordError, Task, Timestamp, UnverifiedPacket};

use super::{
    Admission, Id, InviteTerms, NotInvited, evidence::Evidence, marks::HighWaterMark, quota::SourcePrefix, table::Lease,
};
use crate::limits;

/// What the writer believes to be the current record (rule 5: compare-and-swap).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expected {
    /// No expectation.
    #[default]
    Anything,
    /// There is no record, live or expired.
    Absent,
    /// The current record, live or expired, has exactly this order.
    Order(Order),
}

/// The answer to a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It is higher than any before and is the current record now.
    Stored {
        /// How long it will be answered without a renewal.
        lease: Duration,
    },
    /// It is bit-identical to the current record, whose lease begins anew.
    Refreshed {
        /// How long it will be answered without a renewal.
        lease: Duration,
    },
    /// A higher record is or was registered.
    Stale {
        /// That record; `None` if only its high-water mark is left.
        current: Option<Arc<[u8]>>,
    },
    /// Another packet of the same epoch and timestamp is registered: two copies of the vat have signed. Both
    /// are kept as evidence; the one that compares higher is the current record from now on.
    Conflict {
        /// The packet that was registered when this one came.
        other: Arc<[u8]>,
    },
    /// The current record is not the expected one.
    Unexpected {
        /// The current record; `None` if there is none.
        current: Option<Arc<[u8]>>,
    },
    /// Refused for what it is, or for how many came.
    Refused(Refusal),
}

/// A refusal, with the server's clock, so that a peer with a wrong clock can tell (rule 4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: RefusalReason,
    /// The server's time of day.
    pub server_time: Timestamp,
}

/// Why a registration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefusalReason {
    /// The id is not one.
    #[error(transparent)]
    Id(#[from] IdentityError),
    /// The packet is not a valid one of this id.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The source prefix has registered too many new ids.
    #[error("too many new ids were registered from this network; there is room for one in {} s", seconds(*retry_after))]
    NewIds {
        /// How long until there is a token again.
        retry_after: Duration,
    },
    /// The source prefix has caused too many signature checks.
    #[error("too many records came from this network; the next is checked in {} s", seconds(*retry_after))]
    SignatureChecks {
        /// How long until there is a token again.
        retry_after: Duration,
    },
    /// The id was registered too often.
    #[error("this id was registered too often; the next record is stored in {} s", seconds(*retry_after))]
    Writes {
        /// How long until there is a token again.
        retry_after: Duration,
    },
    /// The table is full of live records, and nobody has more than the newcomer.
    #[error("the table is full; the next lease in it ends in {} s", seconds(*retry_after))]
    Full {
        /// How long until a lease ends.
        retry_after: Duration,
    },
    /// The table is nearly full, and the id is new: its place costs work. Whoever has done it need not wait.
    #[error("this server is nearly full: a place for a new id costs work of {} bits, or patience", task.bits)]
    Work {
        /// What is to be done.
        task: Task,
    },
    /// The server is closed, and the id is new.
    #[error(transparent)]
    Invite(#[from] NotInvited),
}

impl RefusalReason {
    /// After how long it is worth trying again with the same packet; `None`: never.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Id(_) | Self::Record(_) | Self::Invite(_) => None,
            Self::Work { .. } => Some(limits::WORK_RETRY),
            Self::NewIds { retry_after }
            | Self::SignatureChecks { retry_after }
            | Self::Writes { retry_after }
            | Self::Full { retry_after } => Some(*retry_after),
        }
    }
}

impl Coded for RefusalReason {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Id(_) => ErrorCode::RefIdMalformed,
            Self::Record(reason) => reason.code(),
            Self::NewIds { .. } | Self::SignatureChecks { .. } | Self::Writes { .. } => ErrorCode::VlsQuota,
            Self::Full { .. } => ErrorCode::VlsFull,
            Self::Work { .. } => ErrorCode::VlsWork,
            Self::Invite(_) => ErrorCode::VlsInvite,
        }
    }
}

/// Whole seconds, rounded up: a client that waits this long finds what it waits for.
pub(crate) fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// What [`Registry::examine`](super::Registry::examine) found.
#[derive(Debug)]
#[must_use = "somebody waits for the answer"]
pub enum Examined {
    /// The signature needs not be looked at.
    Decided(Decision),
    /// Everything but the signature is in order.
    Unverified(Box<Candidate>),
}

/// A record that will be registered if its vat has signed it.
#[derive(Debug)]
#[must_use = "somebody waits for the answer"]
pub struct Candidate {
    record: UnverifiedPacket,
    origin: Origin,
}

/// Where a record came from, and what it was to replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub(super) source: SourcePrefix,
    pub(super) expected: Expected,
    pub(super) admission: Admission,
    /// Of a record that another server told of: the lease that it has there.
    pub(super) claimed: Option<Lease>,
}

/// What another server says of the lease of a record, at the moment at which it is examined here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The time since the vat was last seen by whoever it registered with.
    pub age: Duration,
    /// The time until the lease ends there; zero if it has ended.
    pub left: Duration,
}

impl Origin {
    /// Whether another server told of it.
    pub(crate) fn is_learned(&self) -> bool {
        self.claimed.is_some()
    }
}

impl Candidate {
    pub(super) fn new(record: UnverifiedPacket, origin: Origin) -> Self {
        Self { record, origin }
    }

    /// The record, whose signature is to be verified, and what [`Registry::admit`](super::Registry::admit) has to know
    /// besides.
    #[must_use]
    pub fn into_parts(self) -> (UnverifiedPacket, Origin) {
        (self.record, self.origin)
    }
}

/// What is held of an id, where it lies: for carriers that answer without keeping anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peek<'a> {
    /// The current packet.
    pub packet: &'a [u8],
    /// The time since the vat was last seen.
    pub age: Duration,
    /// The time until the lease ends.
    pub left: Duration,
    /// The lease has ended: see [`Answer::expired`].
    pub expired: bool,
    /// None of this may be told before this turn is durable.
    pub turn: u64,
}

/// The answer to a lookup.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// The current packet; `None` if none is held.
    pub packet: Option<Arc<[u8]>>,
    /// The time since the vat was last seen.
    pub age: Duration,
    /// The time until the lease ends.
    pub left: Duration,
    /// The lease has ended: the packet says where the vat was and how far it had come, not where it is.
    pub expired: bool,
}

/// Something that must not be told before a turn is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "somebody waits for the answer"]
pub struct Withheld<T> {
    turn: u64,
    value: T,
}

impl<T> Withheld<T> {
    pub(super) fn until(turn: u64, value: T) -> Self {
        Self { turn, value }
    }

    /// The turn; 0 if there is nothing to wait for.
    #[must_use]
    pub fn turn(&self) -> u64 {
        self.turn
    }

    /// The value, once everything up to `durable` is durable.
    ///
    /// # Errors
    /// Itself, if that is not enough.
    pub fn reveal(self, durable: u64) -> Result<T, Self> {
        if self.turn <= durable { Ok(self.value) } else { Err(self) }
    }
}

/// What the registry decided, mostly about a registration.
///
/// If there is a turn, its writes must be handed to the store before the next decision is asked for, and if
/// the store does not take them this registry must not be asked again: its memory is ahead of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "the turn has to be written"]
pub struct Decision<T = Outcome> {
    /// The answer, withheld until everything that it tells is durable.
    pub outcome: Withheld<T>,
    /// What to make durable.
    pub turn: Option<Turn>,
}

/// The writes of one registration: all of them become durable, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// One more than the turn before.
    pub number: u64,
    /// In any order: no two touch the same row.
    pub writes: Vec<Write>,
}

/// One row that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// The current record of an id, and its lease.
    PutRecord {
        /// Whose.
        id: Id,
        /// Who paid for its place.
        source: SourcePrefix,
        /// The wall clock when it was last seen.
        seen: Timestamp,
        /// The end of its lease by the same clock.
        until: Timestamp,
        /// The packet, verbatim.
        packet: Arc<[u8]>,
    },
    /// The record was given up, and its lease with it.
    RemoveRecord {
        /// Whose.
        id: Id,
    },
    /// What is left of a record that was given up.
    PutMark {
        /// Whose.
        id: Id,
        /// Its order.
        mark: HighWaterMark,
        /// The turn in which it was given up, which orders marks by age.
        turn: u64,
    },
    /// The id has a record again, or its mark was given up too.
    RemoveMark {
        /// Whose.
        id: Id,
    },
    /// Two records that contradict each other.
    PutEvidence {
        /// Whose.
        id: Id,
        /// Both.
        evidence: Evidence,
        /// The turn in which the first pair of this id came, which orders evidence by age.
        turn: u64,
    },
    /// An invite was made, or used.
    PutInvite {
        /// Which.
        hash: InviteHash,
        /// What is left of it.
        terms: InviteTerms,
    },
    /// An invite was used up, revoked, or has ended.
    RemoveInvite {
        /// Which.
        hash: InviteHash,
    },
    /// Evidence was given up.
    RemoveEvidence {
        /// Whose.
        id: Id,
    },
}
