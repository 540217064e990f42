//! Every size and count that this crate bounds, each with its reason.
//!
//! All of them are part of the formats: a writer must keep them, a reader refuses what exceeds them, so
//! nothing that a stranger sends makes this crate allocate or loop without bound.

use std::time::Duration;

/// A vat publishes at most this many bytes of DNS packet. BEP44 limits a value to 1000 bytes, and some nodes
/// count them in their bencoded form: `995:` and 995 bytes are 999.
pub const MAX_PUBLISHED_VALUE: usize = 995;

/// A reader accepts up to this many bytes of DNS packet, the limit of BEP44.
pub const MAX_ACCEPTED_VALUE: usize = 1000;

/// Bytes of a signed packet in front of the DNS packet: signature 64, timestamp 8.
pub const PACKET_HEADER: usize = 72;

/// How far ahead of the reader's clock a record may be dated (DESIGN §4, rule 4): more than clocks that are
/// set by anything differ, less than a stolen moment of signing is worth.
pub const MAX_CLOCK_AHEAD: Duration = Duration::from_secs(5 * 60);

/// The time to live, in seconds, of the DNS records inside: what a DNS cache may keep. Short, because a vat
/// that moved is not found through a cache that has its old address.
pub const RECORD_TTL: u32 = 30;

/// Addresses in one record. A packet of 1000 bytes holds about twenty of the shortest.
pub const MAX_ADDRESSES: usize = 16;

/// Search path entries in one record.
pub const MAX_SEARCH_PATH: usize = 8;

/// Strings under `_vat` with a key that this version does not know, and which it ignores.
pub const MAX_UNKNOWN_STRINGS: usize = 16;

/// Characters of the chain head in a record.
pub const MAX_CHAIN_HEAD: usize = 32;

/// The highest epoch, turn and timestamp: what a signed 64-bit integer holds. BEP44 implementations keep the
/// timestamp in one, and one more than the highest still fits ours.
pub const MAX_COUNTER: u64 = i64::MAX.unsigned_abs();

/// Characters of a DNS name (RFC 1035, as text, without the root's dot).
pub const MAX_HOST: usize = 253;

/// Characters of a DNS label (RFC 1035).
pub const MAX_LABEL: usize = 63;

/// Characters of a gateway's URL. With its key it has to fit a TXT string of 255 bytes.
pub const MAX_URL: usize = 240;

/// Characters of a whole sturdyref or public address, hints included: what still fits a line, a QR code and
/// a form field.
pub const MAX_REFERENCE_TEXT: usize = 2048;

/// Hints of all kinds in one reference, those with unknown keys included.
pub const MAX_HINTS: usize = 16;

/// From so many signatures on, verifying them together is less work than one by one.
pub(crate) const MIN_BATCH: usize = 96;
