//! Why a packet is not a location record of a vat.

use super::Timestamp;
use crate::{
    AddressError, Coded, ErrorCode, SearchPathError,
    limits::{MAX_CLOCK_AHEAD, PACKET_HEADER},
};

/// Why a packet is not, or not now, a location record. Carries no text from the packet, which a stranger
/// may have written; `key` is always one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Shorter than signature and timestamp.
    #[error("a signed packet has at least {} bytes, this has {found}", PACKET_HEADER)]
    TooShort {
        /// Its length in bytes.
        found: usize,
    },
    /// A DNS packet longer than may be published, or accepted.
    #[error("the record's DNS packet has {found} bytes; the limit is {limit}")]
    TooLarge {
        /// Its length in bytes.
        found: usize,
        /// What is allowed to whoever refused it.
        limit: usize,
    },
    /// Not a number that every BEP44 implementation can hold.
    #[error("the packet's timestamp does not fit a signed 64-bit number")]
    Timestamp,
    /// The DNS packet has another structure than its header says, or bytes behind its end.
    #[error("the packet's value is not exactly one well-formed DNS message")]
    Structure,
    /// Under `_vat` stands something that is not TXT of class IN with `key=value` strings, or the name is written in
    /// capitals.
    #[error("under the name _vat of this vat stands something else than TXT strings of the form key=value")]
    Foreign,
    /// Nothing stands under `_vat`. Another program made it, for another purpose, with the same key.
    #[error("the packet that this key signed at {timestamp} says nothing of a vat: another program made it")]
    NoVat {
        /// When it was signed.
        timestamp: Timestamp,
    },
    /// Written in another version of the format.
    #[error("the record has format version {found}; this program knows 1")]
    Version {
        /// The version it states.
        found: u64,
    },
    /// A key that must be there is not.
    #[error("the record lacks its key `{key}`")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A key that may be there once is there twice.
    #[error("the record has its key `{key}` more than once")]
    Duplicate {
        /// The key.
        key: &'static str,
    },
    /// A value that is not of its type, out of range, or not in its one spelling.
    #[error("the record's value of `{key}` is not of its type, out of range, or not in its canonical spelling")]
    Value {
        /// The key.
        key: &'static str,
    },
    /// A value that does not fit a TXT string.
    #[error("the record's value of `{key}` does not fit the 255 bytes of a TXT string")]
    TooLong {
        /// The key.
        key: &'static str,
    },
    /// An address of a scheme that we know is wrong.
    #[error("an address in the record is wrong: {0}")]
    Address(#[from] AddressError),
    /// A search path entry of a scheme that we know is wrong.
    #[error("a search path entry in the record is wrong: {0}")]
    SearchPath(#[from] SearchPathError),
    /// More values than a record may have.
    #[error("the record has more than {limit} values of `{key}`")]
    TooMany {
        /// The key, or `?` for keys that are not ours.
        key: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// The signature is not of this vat over these bytes.
    #[error("the record was not signed by the vat that it is about, or was altered since")]
    Forged,
    /// Its end of validity has come.
    #[error("the record was valid until {expires}; it is {now}")]
    Expired {
        /// The end that it states.
        expires: Timestamp,
        /// The reader's clock.
        now: Timestamp,
    },
    /// It is dated further ahead than clocks differ.
    #[error("the record is dated {timestamp}, more than {} seconds ahead of this clock: {now}", MAX_CLOCK_AHEAD.as_secs())]
    Future {
        /// When it says it was signed.
        timestamp: Timestamp,
        /// The reader's clock.
        now: Timestamp,
    },
}

impl Coded for RecordError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::TooLarge { .. } => ErrorCode::RecordTooLarge,
            Self::Version { .. } => ErrorCode::RecordVersion,
            Self::NoVat { .. } => ErrorCode::RecordNoVat,
            Self::Forged => ErrorCode::RecordForged,
            Self::Expired { .. } => ErrorCode::RecordExpired,
            Self::Future { .. } => ErrorCode::RecordFuture,
            _ => ErrorCode::RecordMalformed,
        }
    }
}
