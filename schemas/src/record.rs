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
//! A packet is checked in the order of rule 1, the cheap things first. The types say how far it has come:
//! [`UnverifiedRecord`] is well-formed, [`SignedRecord`] was signed by the vat. Neither says that it is
//! current; that takes a clock ([`SignedRecord::check_time`]) and other records ([`SignedRecord::compare`]).

use std::{
    cmp::Ordering,
    fmt,
    str::FromStr,
    sync::{Arc, OnceLock},
};

use sha2::{Digest, Sha256};

use crate::{
    Address, IdentityKey, SearchPathEntry, VatId, VatKey,
    limits::{MAX_ACCEPTED_VALUE, MAX_CLOCK_AHEAD, MAX_COUNTER, MAX_PUBLISHED_VALUE, PACKET_HEADER},
};

mod batch;
mod error;
mod fields;
mod message;
mod timestamp;

pub use batch::verify_all;
pub use error::RecordError;
pub use timestamp::Timestamp;

const SIGNATURE: usize = 64;

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

/// The full order of a record, for compare-and-swap: (epoch, timestamp, bytes), where a digest stands for the
/// bytes. It can tell whether two records are the same; which of two is higher with the same epoch and time
/// is decided by the bytes themselves ([`SignedRecord::compare`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Order {
    /// The vat's epoch.
    pub epoch: u64,
    /// When it was signed.
    pub timestamp: Timestamp,
    /// SHA-256 of the packet.
    pub digest: [u8; 32],
}

/// What both kinds of record are made of.
struct Contents {
    id: VatId,
    packet: Box<[u8]>,
    timestamp: Timestamp,
    record: LocationRecord,
    digest: OnceLock<[u8; 32]>,
}

impl Contents {
    fn parse(id: VatId, packet: &[u8]) -> Result<Self, RecordError> {
        let Some((header, value)) = packet.split_at_checked(PACKET_HEADER) else {
            return Err(RecordError::TooShort { found: packet.len() });
        };
        if value.len() > MAX_ACCEPTED_VALUE {
            return Err(RecordError::TooLarge { found: value.len(), limit: MAX_ACCEPTED_VALUE });
        }
        let timestamp = header[SIGNATURE..].iter().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
        if timestamp > MAX_COUNTER {
            return Err(RecordError::Timestamp);
        }
        let record = fields::decode(&message::strings(&id, value)?)?;
        let timestamp = Timestamp::from_micros(timestamp);
        Ok(Self { id, packet: packet.into(), timestamp, record, digest: OnceLock::new() })
    }

    fn signature(&self) -> &[u8] {
        &self.packet[..SIGNATURE]
    }

    fn value(&self) -> &[u8] {
        &self.packet[PACKET_HEADER..]
    }

    fn verify(&self) -> Result<(), RecordError> {
        let signature = self.signature().try_into().map_err(|_| RecordError::Forged)?;
        self.id.verify_raw(&signed_message(self.timestamp, self.value()), signature).map_err(|_| RecordError::Forged)
    }

    fn check_time(&self, now: Timestamp) -> Result<(), RecordError> {
        if self.timestamp > now.saturating_add(MAX_CLOCK_AHEAD) {
            return Err(RecordError::Future { timestamp: self.timestamp, now });
        }
        if self.record.expires <= now {
            return Err(RecordError::Expired { expires: self.record.expires, now });
        }
        Ok(())
    }

    fn order(&self) -> Order {
        let digest = *self.digest.get_or_init(|| Sha256::digest(&self.packet).into());
        Order { epoch: self.record.epoch, timestamp: self.timestamp, digest }
    }

    fn compare(&self, other: &Self) -> Ordering {
        (self.record.epoch, self.timestamp, self.value(), self.signature()).cmp(&(
            other.record.epoch,
            other.timestamp,
            other.value(),
            other.signature(),
        ))
    }
}

/// What the vat signs (BEP44, without salt). Begins with `3:seqi`, which no other message of ours does.
fn signed_message(timestamp: Timestamp, value: &[u8]) -> Vec<u8> {
    let mut message = format!("3:seqi{}e1:v{}:", timestamp.as_micros(), value.len()).into_bytes();
    message.extend_from_slice(value);
    message
}

macro_rules! getters {
    () => {
        /// Whom it is about.
        #[must_use]
        pub fn id(&self) -> VatId {
            self.0.id
        }

        /// The bytes, as they came: signature 64 ‖ timestamp 8 ‖ DNS packet.
        #[must_use]
        pub fn packet(&self) -> &[u8] {
            &self.0.packet
        }

        /// What it says.
        #[must_use]
        pub fn record(&self) -> &LocationRecord {
            &self.0.record
        }

        /// When it was signed, by the signer's clock.
        #[must_use]
        pub fn timestamp(&self) -> Timestamp {
            self.0.timestamp
        }

        /// Its full order, for compare-and-swap.
        #[must_use]
        pub fn order(&self) -> Order {
            self.0.order()
        }

        /// Checks it against the reader's clock `now` (DESIGN §4, rules 1 and 4).
        ///
        /// # Errors
        /// [`RecordError::Expired`] from the second of its expiry on; [`RecordError::Future`] when it is dated
        /// more than five minutes ahead.
        pub fn check_time(&self, now: Timestamp) -> Result<(), RecordError> {
            self.0.check_time(now)
        }
    };
}

/// A record that is well-formed, and of which nobody has proved yet that the vat made it.
pub struct UnverifiedRecord(Contents, Option<VatKey>);

impl UnverifiedRecord {
    /// All cheap checks: lengths, DNS structure, names, keys and values. Work and memory are bounded by the
    /// length, which is at most 1072 bytes.
    ///
    /// # Errors
    /// The first [`RecordError`] that is found; never `Forged`, `Expired` or `Future`.
    pub fn parse(id: VatId, packet: &[u8]) -> Result<Self, RecordError> {
        Ok(Self(Contents::parse(id, packet)?, None))
    }

    /// The same for a record that will be verified with others ([`verify_all`]).
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_with(key: VatKey, packet: &[u8]) -> Result<Self, RecordError> {
        Ok(Self(Contents::parse(key.id(), packet)?, Some(key)))
    }

    getters!();

    /// The order of this record relative to a verified one of the same vat, as [`SignedRecord::compare`].
    #[must_use]
    pub fn compare(&self, other: &SignedRecord) -> Ordering {
        self.0.compare(&other.0)
    }

    /// The dear check: the signature, strictly.
    ///
    /// # Errors
    /// [`RecordError::Forged`].
    pub fn verify(self) -> Result<SignedRecord, RecordError> {
        self.0.verify()?;
        Ok(SignedRecord(Arc::new(self.0)))
    }
}

/// A record that the vat has signed. Cheap to clone.
#[derive(Clone)]
pub struct SignedRecord(Arc<Contents>);

impl SignedRecord {
    /// Writes and signs a record. The result says what its reader will see: `expires` in whole seconds.
    ///
    /// `timestamp` is max(now, last + 1) (rule 4); keeping that is up to the caller, who has the clock.
    ///
    /// # Errors
    /// [`RecordError::TooLarge`] for more than 995 bytes of DNS packet, and whatever a reader would refuse: a
    /// host that is none, a number out of range, too many entries.
    pub fn sign(key: &IdentityKey, record: &LocationRecord, timestamp: Timestamp) -> Result<Self, RecordError> {
        let id = key.id();
        let value = message::build(&id, &fields::encode(record))?;
        if value.len() > MAX_PUBLISHED_VALUE {
            return Err(RecordError::TooLarge { found: value.len(), limit: MAX_PUBLISHED_VALUE });
        }
        let signature = key.sign_raw(&signed_message(timestamp, &value));
        let packet = [&signature[..], &timestamp.as_micros().to_be_bytes(), &value].concat();
        // Through the reader's own checks: what we sign, everybody accepts.
        Ok(Self(Arc::new(Contents::parse(id, &packet)?)))
    }

    /// A record whose signature [`verify_all`] has found to be good.
    fn from_batch(record: UnverifiedRecord) -> Self {
        Self(Arc::new(record.0))
    }

    /// Parses and verifies a packet, without looking at any clock.
    ///
    /// # Errors
    /// The first [`RecordError`] that is found; never `Expired` or `Future`.
    pub fn verify(id: VatId, packet: &[u8]) -> Result<Self, RecordError> {
        UnverifiedRecord::parse(id, packet)?.verify()
    }

    getters!();

    /// The order of two records of the same vat: (epoch, timestamp, bytes). A later time in a lower epoch is
    /// lower: that is a clone that was left behind. Among equal epochs and times the larger DNS packet is
    /// higher, as pkarr has it, and then the larger signature; `Equal` means bit-identical.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Ordering {
        self.0.compare(&other.0)
    }
}

impl PartialEq for SignedRecord {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id && self.0.packet == other.0.packet
    }
}

impl Eq for SignedRecord {}

impl fmt::Debug for SignedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe(f, "SignedRecord")
    }
}

impl fmt::Debug for UnverifiedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe(f, "UnverifiedRecord")
    }
}

impl Contents {
    fn describe(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        f.debug_struct(name)
            .field("id", &self.id)
            .field("timestamp", &self.timestamp)
            .field("record", &self.record)
            .finish_non_exhaustive()
    }
}
