//! What goes into a lookup's schedule, and what comes out of it.

use std::time::Duration;

use schemas::{SearchPathEntry, SignedRecord};

use crate::{attempt::Candidate, failure::Failure, limits, locality::LeftOut};

/// The pace of a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LookupTiming {
    /// Entries asked at the same moment.
    pub first_wave: usize,
    /// How long silence lasts before one more is asked, as long as nothing is measured.
    pub hedge: Duration,
    /// How long, at most, others may improve on a live answer.
    pub live_grace: Duration,
    /// How long others may contradict "asleep" and "unknown".
    pub negative_grace: Duration,
    /// How long silent servers are waited for when a valid record is cached.
    pub cache_patience: Duration,
    /// How long a server may leave a question without a session unanswered until a session is opened beside it.
    pub cold_patience: Duration,
    /// How long a vat that all have denied to know is not asked for again; zero: not at all.
    pub absent_memory: Duration,
    /// The end of the lookup.
    pub deadline: Duration,
}

impl Default for LookupTiming {
    fn default() -> Self {
        Self {
            first_wave: limits::FIRST_WAVE,
            hedge: limits::HEDGE,
            live_grace: limits::LIVE_GRACE,
            negative_grace: limits::NEGATIVE_GRACE,
            cache_patience: limits::CACHE_PATIENCE,
            cold_patience: limits::COLD_PATIENCE,
            absent_memory: limits::ABSENT_MEMORY,
            deadline: limits::LOOKUP_DEADLINE,
        }
    }
}

/// What a lookup is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// To reach the vat: the highest record that is valid now, soon.
    Reach,
    /// To witness how far it has come (R7): the highest record that it ever signed, validity aside, from all
    /// entries.
    Witness,
}

/// An entry to ask, and what was measured of it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// [`Candidate::Entry`] or [`Candidate::HintEntry`].
    pub candidate: Candidate,
    /// The entry itself.
    pub entry: SearchPathEntry,
    /// The p95 of its answer times, if it has answered: in this process or, with a cache, in one before.
    pub expected: Option<Duration>,
    /// Its last attempt failed or stayed without an answer.
    pub suspect: bool,
    /// Whose turn comes first among those that are not suspect: the lower, and of equals in the order of the path.
    pub rank: u32,
    /// Why it is not asked at all, in local-only mode.
    pub left_out: Option<LeftOut>,
}

/// What an entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It has no record.
    Unknown,
    /// It has this packet.
    Packet {
        /// Signature, timestamp and DNS packet.
        packet: Vec<u8>,
        /// Since the vat last registered or renewed it, if that is known.
        age: Option<Duration>,
        /// The lease has ended.
        lapsed: bool,
    },
}

/// What happened. `slot` is the index of an entry.
#[derive(Debug, Clone)]
pub enum Event {
    /// Begin. Once, first.
    Begin,
    /// An entry that was asked has answered.
    Answered {
        /// Which.
        slot: usize,
        /// What it says.
        answer: Answer,
        /// Whether this is a location server's own word of now ([`Attempt::vouched`]).
        vouched: bool,
    },
    /// An entry that has answered answers again what it was asked once: the question has been repeated, by this finder or
    /// by the network, and something may have changed in between.
    AnsweredAgain {
        /// Which.
        slot: usize,
        /// What it says now.
        answer: Answer,
    },
    /// An entry that was asked will not answer.
    Failed {
        /// Which.
        slot: usize,
        /// Why.
        failure: Failure,
    },
    /// Time has passed: the moment of [`Schedule::wake_at`](super::Schedule::wake_at) has come.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask this entry.
    Ask(usize),
    /// A verified record higher than all before, to be remembered; it may have expired.
    Learned(SignedRecord),
    /// The record to use has changed: dial its addresses. None: what was to be used no longer is.
    Best(Option<SignedRecord>),
    /// A result may be used now: [`Schedule::verdict`](super::Schedule::verdict). Comes once.
    Settled,
    /// Nothing more is waited for. Comes once; what follows is only what entries say that answer again.
    Finished,
}

/// Where the record to use came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// A location server answered with it: the vat keeps it registered there.
    Answered,
    /// A location server answered with it, but its lease there has ended: the vat was there.
    Lapsed,
    /// It was kept from before, and no server showed anything higher.
    Cached,
}

impl Freshness {
    /// A stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Lapsed => "lapsed",
            Self::Cached => "cached",
        }
    }
}

/// The result of a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A verified record that is valid now; in [`Goal::Witness`] any verified record.
    Record(SignedRecord, Freshness),
    /// Servers answered, and none knows the vat.
    Unknown,
    /// The same, but under its key some hold what another program has published.
    Foreign,
    /// No server gave an answer that could be used.
    NoAnswer,
    /// There was nobody to ask.
    NobodyToAsk,
}
