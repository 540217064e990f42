//! Signed packets, and how far each is known to be good: well-formed, signed, a vat's record.

use std::{
    cmp::Ordering,
    fmt,
    sync::{Arc, OnceLock},
};

use sha2::{Digest, Sha256};

use super::{LocationRecord, Order, RecordError, Timestamp, fields, message};
use crate::{
    IdentityKey, VatId, VatKey,
    limits::{MAX_ACCEPTED_VALUE, MAX_CLOCK_AHEAD, MAX_COUNTER, MAX_PUBLISHED_VALUE, PACKET_HEADER},
};

const SIGNATURE: usize = 64;

/// The epoch of what says nothing of a vat: below that of every vat that was started.
const NO_EPOCH: u64 = 0;

/// The bytes of a packet that is well-formed, and what they are compared by.
pub(super) struct Packet {
    id: VatId,
    bytes: Box<[u8]>,
    timestamp: Timestamp,
    digest: OnceLock<[u8; 32]>,
}

impl Packet {
    /// A packet, and the record in it if it has one.
    fn parse(id: VatId, bytes: &[u8]) -> Result<(Self, Option<LocationRecord>), RecordError> {
        let Some((header, value)) = bytes.split_at_checked(PACKET_HEADER) else {
            return Err(RecordError::TooShort { found: bytes.len() });
        };
        if value.len() > MAX_ACCEPTED_VALUE {
            return Err(RecordError::TooLarge { found: value.len(), limit: MAX_ACCEPTED_VALUE });
        }
        let timestamp = header[SIGNATURE..].iter().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
        if timestamp > MAX_COUNTER {
            return Err(RecordError::Timestamp);
        }
        let record = message::strings(&id, value)?.map(|strings| fields::decode(&strings)).transpose()?;
        let timestamp = Timestamp::from_micros(timestamp);
        Ok((Self { id, bytes: bytes.into(), timestamp, digest: OnceLock::new() }, record))
    }

    pub(super) fn id(&self) -> VatId {
        self.id
    }

    pub(super) fn signature(&self) -> (&[u8], &[u8]) {
        self.bytes[..SIGNATURE].split_at(SIGNATURE / 2)
    }

    /// What the signature is of.
    pub(super) fn signed(&self) -> Vec<u8> {
        signed_message(self.timestamp, self.value())
    }

    fn value(&self) -> &[u8] {
        &self.bytes[PACKET_HEADER..]
    }

    fn verify(&self) -> Result<(), RecordError> {
        let signature = self.bytes[..SIGNATURE].try_into().map_err(|_| RecordError::Forged)?;
        self.id.verify_raw(&self.signed(), signature).map_err(|_| RecordError::Forged)
    }

    fn check_time(&self, record: Option<&LocationRecord>, now: Timestamp) -> Result<(), RecordError> {
        if self.timestamp > now.saturating_add(MAX_CLOCK_AHEAD) {
            return Err(RecordError::Future { timestamp: self.timestamp, now });
        }
        match record {
            Some(record) if record.expires <= now => Err(RecordError::Expired { expires: record.expires, now }),
            _ => Ok(()),
        }
    }

    fn order(&self, record: Option<&LocationRecord>) -> Order {
        let digest = *self.digest.get_or_init(|| Sha256::digest(&self.bytes).into());
        Order { epoch: epoch(record), timestamp: self.timestamp, digest }
    }

    /// What packets of one id are compared by.
    fn rank(&self, record: Option<&LocationRecord>) -> (u64, Timestamp, &[u8], &[u8]) {
        (epoch(record), self.timestamp, self.value(), &self.bytes[..SIGNATURE])
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>, name: &str, record: Option<&LocationRecord>) -> fmt::Result {
        let mut description = f.debug_struct(name);
        description.field("id", &self.id).field("timestamp", &self.timestamp);
        if let Some(record) = record {
            description.field("record", record);
        }
        description.finish_non_exhaustive()
    }
}

fn epoch(record: Option<&LocationRecord>) -> u64 {
    record.map_or(NO_EPOCH, |record| record.epoch)
}

/// What the key signs (BEP44, without salt). Begins with `3:seqi`, which no other message of ours does.
fn signed_message(timestamp: Timestamp, value: &[u8]) -> Vec<u8> {
    let mut message = format!("3:seqi{}e1:v{}:", timestamp.as_micros(), value.len()).into_bytes();
    message.extend_from_slice(value);
    message
}

/// What every type here can tell, from the `parts` that it is made of: a packet, and the record in it.
macro_rules! getters {
    () => {
        /// Whose key signs it.
        #[must_use]
        pub fn id(&self) -> VatId {
            self.parts().0.id
        }

        /// The bytes, as they came: signature 64 ‖ timestamp 8 ‖ DNS packet.
        #[must_use]
        pub fn packet(&self) -> &[u8] {
            &self.parts().0.bytes
        }

        /// When it was signed, by the signer's clock.
        #[must_use]
        pub fn timestamp(&self) -> Timestamp {
            self.parts().0.timestamp
        }

        /// Its full order, for compare-and-swap.
        #[must_use]
        pub fn order(&self) -> Order {
            let (packet, record) = self.parts();
            packet.order(record)
        }

        /// Checks it against the reader's clock `now` (DESIGN §4, rules 1 and 4).
        ///
        /// # Errors
        /// [`RecordError::Expired`] from the second of its expiry on, if it has one; [`RecordError::Future`] when it is
        /// dated more than five minutes ahead.
        pub fn check_time(&self, now: Timestamp) -> Result<(), RecordError> {
            let (packet, record) = self.parts();
            packet.check_time(record, now)
        }
    };
}

/// What can be told of a packet that need not hold a record.
macro_rules! getters_of_any {
    () => {
        getters!();

        /// The epoch of its vat; 0 if it says nothing of one.
        #[must_use]
        pub fn epoch(&self) -> u64 {
            epoch(self.parts().1)
        }

        /// The end of its validity, if it states one.
        #[must_use]
        pub fn expires(&self) -> Option<Timestamp> {
            self.parts().1.map(|record| record.expires)
        }

        /// The order of two packets of the same key: (epoch, timestamp, bytes). A later time in a lower epoch is
        /// lower: that is a clone that was left behind. Among equal epochs and times the larger DNS packet is
        /// higher, as pkarr has it, and then the larger signature; `Equal` means bit-identical.
        #[must_use]
        pub fn compare(&self, other: &SignedPacket) -> Ordering {
            let ((packet, record), (other, others)) = (self.parts(), other.parts());
            packet.rank(record).cmp(&other.rank(others))
        }
    };
}

/// A packet that is well-formed, and of which nobody has proved yet that its key signed it.
pub struct UnverifiedPacket {
    pub(super) packet: Packet,
    record: Option<LocationRecord>,
    pub(super) key: Option<VatKey>,
}

impl UnverifiedPacket {
    /// All cheap checks: lengths, DNS structure; names, keys and values of the record if there is one. Work and memory
    /// are bounded by the length, which is at most 1072 bytes.
    ///
    /// # Errors
    /// The first [`RecordError`] that is found; never `Forged`, `NoVat`, `Expired` or `Future`.
    pub fn parse(id: VatId, packet: &[u8]) -> Result<Self, RecordError> {
        let (packet, record) = Packet::parse(id, packet)?;
        Ok(Self { packet, record, key: None })
    }

    /// The same for a packet that will be verified with others ([`verify_all`](crate::verify_all)).
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_with(key: VatKey, packet: &[u8]) -> Result<Self, RecordError> {
        Ok(Self { key: Some(key), ..Self::parse(key.id(), packet)? })
    }

    getters_of_any!();

    /// Where its vat is, if it says so.
    #[must_use]
    pub fn location(&self) -> Option<&LocationRecord> {
        self.record.as_ref()
    }

    /// The dear check: the signature, strictly.
    ///
    /// # Errors
    /// [`RecordError::Forged`].
    pub fn verify(self) -> Result<SignedPacket, RecordError> {
        self.packet.verify()?;
        Ok(self.found_good())
    }

    /// The packet, of which the signature was found to be good.
    pub(super) fn found_good(self) -> SignedPacket {
        match self.record {
            Some(record) => SignedPacket::Record(SignedRecord(Arc::new((self.packet, record)))),
            None => SignedPacket::Foreign(ForeignPacket(Arc::new(self.packet))),
        }
    }

    fn parts(&self) -> (&Packet, Option<&LocationRecord>) {
        (&self.packet, self.record.as_ref())
    }
}

/// A packet that its key has signed, whatever it says. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub enum SignedPacket {
    /// Where a vat is.
    Record(SignedRecord),
    /// Something else.
    Foreign(ForeignPacket),
}

impl SignedPacket {
    /// Parses and verifies a packet, without looking at any clock.
    ///
    /// # Errors
    /// The first [`RecordError`] that is found; never `NoVat`, `Expired` or `Future`.
    pub fn verify(id: VatId, packet: &[u8]) -> Result<Self, RecordError> {
        UnverifiedPacket::parse(id, packet)?.verify()
    }

    getters_of_any!();

    /// The record, if it is one.
    #[must_use]
    pub fn record(&self) -> Option<&SignedRecord> {
        match self {
            Self::Record(record) => Some(record),
            Self::Foreign(_) => None,
        }
    }

    /// The record, for whoever can do nothing with anything else.
    ///
    /// # Errors
    /// [`RecordError::NoVat`].
    pub fn into_record(self) -> Result<SignedRecord, RecordError> {
        match self {
            Self::Record(record) => Ok(record),
            Self::Foreign(packet) => Err(RecordError::NoVat { timestamp: packet.timestamp() }),
        }
    }

    fn parts(&self) -> (&Packet, Option<&LocationRecord>) {
        match self {
            Self::Record(record) => record.parts(),
            Self::Foreign(packet) => packet.parts(),
        }
    }
}

impl From<SignedRecord> for SignedPacket {
    fn from(record: SignedRecord) -> Self {
        Self::Record(record)
    }
}

/// A record that the vat has signed. Cheap to clone.
#[derive(Clone)]
pub struct SignedRecord(Arc<(Packet, LocationRecord)>);

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
        UnverifiedPacket::parse(id, &packet)?.found_good().into_record()
    }

    /// Parses and verifies a packet of which nothing but a record is of use, without looking at any clock.
    ///
    /// # Errors
    /// The first [`RecordError`] that is found; never `Expired` or `Future`.
    pub fn verify(id: VatId, packet: &[u8]) -> Result<Self, RecordError> {
        SignedPacket::verify(id, packet)?.into_record()
    }

    getters!();

    /// What it says.
    #[must_use]
    pub fn record(&self) -> &LocationRecord {
        &self.0.1
    }

    /// The order of two records of the same vat, as [`SignedPacket::compare`].
    #[must_use]
    pub fn compare(&self, other: &Self) -> Ordering {
        let ((packet, record), (other, others)) = (self.parts(), other.parts());
        packet.rank(record).cmp(&other.rank(others))
    }

    fn parts(&self) -> (&Packet, Option<&LocationRecord>) {
        (&self.0.0, Some(&self.0.1))
    }
}

/// A packet that its key has signed and that says nothing of a vat: what pkarr's or iroh's own programs publish. There
/// is nothing to dial in it, and it proves of no vat how far it has come. Cheap to clone.
#[derive(Clone)]
pub struct ForeignPacket(Arc<Packet>);

impl ForeignPacket {
    getters!();

    fn parts(&self) -> (&Packet, Option<&LocationRecord>) {
        (&self.0, None)
    }
}

impl PartialEq for SignedRecord {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id() && self.packet() == other.packet()
    }
}

impl Eq for SignedRecord {}

impl PartialEq for ForeignPacket {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id() && self.packet() == other.packet()
    }
}

impl Eq for ForeignPacket {}

macro_rules! described {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let (packet, record) = self.parts();
                packet.describe(f, stringify!($name), record)
            }
        }
    };
}

described!(UnverifiedPacket);
described!(SignedPacket);
described!(SignedRecord);
described!(ForeignPacket);
