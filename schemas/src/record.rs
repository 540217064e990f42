//! Location records: a vat's own signed statement of where it is (DESIGN §4).
//!
//! A record is a pkarr signed packet, that is a BEP44 mutable item without salt over a DNS packet:
//!
//! ```text
//! packet    = signature 64 ‖ timestamp 8, big endian, microseconds since 1970 ‖ value
//! signature = Ed25519 over  3:seqi<timestamp>e1:v<length of value>:<value>
//! value     = DNS message; TXT records at  _vat.<z-base-32 id>,  one string per key=value
//! ```
//!
//! The same bytes travel over every carrier, and are stored and forwarded verbatim. Keys, in the order in
//! which they are written: `v=1` version; `e=` epoch; `t=` durable turn count; `h=` opaque chain head; `st=`
//! [`State`]; `exp=` end of validity, seconds since 1970; `d=` SHA-256 of a larger document, z-base-32; `a=`
//! an [`Address`], repeated; `vls=` a [`SearchPathEntry`], repeated. `v`, `e`, `t`, `st` and `exp` must be there.
//!
//! Reading is strict where this version knows what it reads: one spelling per number and address, each
//! single key once. It passes over, within limits, what a later version may add: unknown keys, and unknown
//! schemes of addresses and entries. Other names in the packet are permitted (iroh's, the owner's own).
//!
//! A packet without anything at `_vat` is one all the same: pkarr's and iroh's own programs make such, and what
//! carries ours carries theirs. It is of epoch 0, so that no record of a vat that was ever started gives way to it,
//! and has no end of validity of its own. But it says nothing of a vat, so it is no record: whoever needs one has to
//! ask for it, and may be told that there is none ([`SignedPacket::into_record`]). A packet with something else than a
//! record at `_vat` is refused.
//!
//! A packet is checked in the order of rule 1, the cheap things first. The types say how far it has come:
//!
//! | type | means |
//! |---|---|
//! | [`UnverifiedPacket`] | well-formed |
//! | [`SignedPacket`] | and signed by the key that it is of |
//! | [`SignedRecord`] | and that says where its vat is |
//! | [`ForeignPacket`] | and that says something else |
//!
//! None says that it is current; that takes a clock ([`SignedPacket::check_time`]) and other packets
//! ([`SignedPacket::compare`]).

use std::{fmt, str::FromStr};

use crate::{Address, SearchPathEntry};

mod batch;
mod error;
mod fields;
mod message;
mod packet;
mod timestamp;

pub use batch::verify_all;
pub use error::RecordError;
pub use packet::{ForeignPacket, SignedPacket, SignedRecord, UnverifiedPacket};
pub use timestamp::Timestamp;

/// What a vat says about itself. Epoch, turn and the timestamp of the packet are at most
/// [`limits::MAX_COUNTER`](crate::limits::MAX_COUNTER).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocationRecord {
    /// How many times this identity was taken over by a start or a move.
    pub epoch: u64,
    /// The last turn that is durable. What a location server knows of it unmasks an older copy (R7).
    pub turn: u64,
    /// Names the history that led here; means something to the vat only. 1 to 32 of `a`–`z` and `0`–`9`.
    pub chain_head: Option<String>,
    /// What the vat is doing.
    pub state: State,
    /// From then on the record says nothing any more. Whole seconds on the wire; the rest is dropped.
    pub expires: Timestamp,
    /// Where it can be dialled, the preferred one first. At most 16.
    pub addresses: Vec<Address>,
    /// Where it registers. At most 8.
    pub search_path: Vec<SearchPathEntry>,
    /// SHA-256 of a larger document about the vat that the vat or a location server hands out.
    pub document: Option<[u8; 32]>,
}

/// What a vat is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Awake.
    Live,
    /// Asleep; will come back.
    Dormant,
    /// Gone from where it was: it moves, and is not yet awake elsewhere.
    Departed,
    /// Ended by its owner; nothing that still answers with this key is to be trusted.
    Revoked,
}

impl State {
    const ALL: [Self; 4] = [Self::Live, Self::Dormant, Self::Departed, Self::Revoked];

    /// The text on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Dormant => "dormant",
            Self::Departed => "departed",
            Self::Revoked => "revoked",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for State {
    type Err = RecordError;

    fn from_str(text: &str) -> Result<Self, RecordError> {
        let found = Self::ALL.into_iter().find(|state| state.as_str() == text);
        found.ok_or(RecordError::Value { key: fields::STATE })
    }
}

/// The full order of a packet, for compare-and-swap: (epoch, timestamp, bytes), where a digest stands for the
/// bytes. It can tell whether two packets are the same; which of two is higher with the same epoch and time
/// is decided by the bytes themselves ([`SignedPacket::compare`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Order {
    /// The vat's epoch; 0 for a packet that says nothing of a vat.
    pub epoch: u64,
    /// When it was signed.
    pub timestamp: Timestamp,
    /// SHA-256 of the packet.
    pub digest: [u8; 32],
}
