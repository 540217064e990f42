//! What one packet is worth: the reader's half of the registry rules (DESIGN §4).
//!
//! No server is trusted. A packet counts only if the vat signed it, and only if nothing higher is known
//! already: the highest record ever verified here is kept as a high-water mark, also when it has long expired or
//! said that the vat sleeps. So the worst that a lying server can do is to answer nothing of use.
//!
//! Unlike a server, a reader checks the signature before it compares: it reads a handful of packets, not
//! thousands, and its report should name the worst that is wrong with each.

use std::cmp::Ordering;

use schemas::{Coded, ErrorCode, RecordError, SignedPacket, SignedRecord, Timestamp, UnverifiedPacket, VatId};

/// How far a vat has come: a record's order without its bytes, for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The epoch.
    pub epoch: u64,
    /// When it was signed.
    pub timestamp: Timestamp,
}

impl Mark {
    /// Of a record.
    #[must_use]
    pub fn of(record: &SignedRecord) -> Self {
        Self { epoch: record.record().epoch, timestamp: record.timestamp() }
    }
}

/// Why a packet was not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Malformed, forged, altered, expired, dated ahead, or about something else than a vat.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A later record of the same epoch is known.
    #[error("signed at {}, and a record signed at {} is known", .found.timestamp, .known.timestamp)]
    Older {
        /// The packet's order.
        found: Mark,
        /// The highest known.
        known: Mark,
    },
    /// A record of a later epoch is known: a copy that was left behind made this one.
    #[error("of epoch {}, and epoch {} is known", .found.epoch, .known.epoch)]
    LowerEpoch {
        /// The packet's order.
        found: Mark,
        /// The highest known.
        known: Mark,
    },
    /// A different record with the same epoch and time is known: two copies of the vat have signed.
    #[error("signed at {} in epoch {}, like another, different record: two copies of this vat sign", .order.timestamp, .order.epoch)]
    Conflict {
        /// The order of both.
        order: Mark,
    },
}

impl Coded for Refusal {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Record(error) => error.code(),
            Self::Older { .. } => ErrorCode::RecordStale,
            Self::LowerEpoch { .. } => ErrorCode::RecordLowerEpoch,
            Self::Conflict { .. } => ErrorCode::RecordConflict,
        }
    }
}

/// What one packet is worth.
#[derive(Debug, Clone)]
pub(crate) enum Verdict {
    /// Signed by the vat, valid now, and at least as high as everything known.
    Usable(SignedRecord),
    /// Signed by the vat and at least as high as everything known, but its own validity is over. It still
    /// proves how far the vat has come.
    Expired(SignedRecord, RecordError),
    /// Signed by the vat, but something higher is known.
    Behind(Refusal),
    /// Signed with the vat's key by a program that knows nothing of vats. There is nothing to dial in it, and it tells
    /// nothing of how far the vat has come: whoever holds it has no record of the vat.
    Foreign(RecordError),
    /// Not a record of this vat, or not one that it can have signed by now.
    Refused(Refusal),
}

/// Judges the packet that somebody gave as the record of `id`, at the time `now`; `known` is the highest record
/// verified before. Without a time, neither date nor expiry count: what a vat signed proves how far it had come
/// even to a reader whose clock is wrong.
pub(crate) fn judge(id: VatId, packet: &[u8], known: Option<&SignedRecord>, now: Option<Timestamp>) -> Verdict {
    // Bit-identical to what was verified before: the signature need not be checked again.
    let verified = match known.filter(|known| known.packet() == packet && known.id() == id) {
        Some(known) => known.clone(),
        None => match verify(id, packet, now).map(SignedPacket::into_record) {
            Ok(Ok(record)) => record,
            Ok(Err(error)) => return Verdict::Foreign(error),
            Err(error) => return Verdict::Refused(error.into()),
        },
    };
    if let Some(known) = known.filter(|known| verified.compare(known) == Ordering::Less) {
        return Verdict::Behind(behind(&verified, known));
    }
    match now.map_or(Ok(()), |now| verified.check_time(now)) {
        Ok(()) => Verdict::Usable(verified),
        Err(error @ RecordError::Expired { .. }) => Verdict::Expired(verified, error),
        Err(error) => Verdict::Refused(error.into()),
    }
}

/// The signature last, and not at all for a packet that is dated ahead: it will not be used whoever made it.
fn verify(id: VatId, packet: &[u8], now: Option<Timestamp>) -> Result<SignedPacket, RecordError> {
    let unverified = UnverifiedPacket::parse(id, packet)?;
    if let Some(Err(error @ RecordError::Future { .. })) = now.map(|now| unverified.check_time(now)) {
        return Err(error);
    }
    unverified.verify()
}

fn behind(record: &SignedRecord, known: &SignedRecord) -> Refusal {
    let (found, known) = (Mark::of(record), Mark::of(known));
    if found.epoch < known.epoch {
        Refusal::LowerEpoch { found, known }
    } else if found.timestamp < known.timestamp {
        Refusal::Older { found, known }
    } else {
        Refusal::Conflict { order: found }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use schemas::{IdentityKey, LocationRecord, State};

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_seconds(1_800_000_000)
    }

    fn key(seed: u8) -> IdentityKey {
        IdentityKey::from_seed(&[seed; 32])
    }

    fn signed(epoch: u64, timestamp: Timestamp, expires: Timestamp) -> SignedRecord {
        let record = LocationRecord {
            epoch,
            turn: 1,
            chain_head: None,
            state: State::Live,
            expires,
            addresses: vec![],
            search_path: vec![],
            document: None,
        };
        SignedRecord::sign(&key(1), &record, timestamp).unwrap()
    }

    fn current(epoch: u64, timestamp: Timestamp) -> SignedRecord {
        signed(epoch, timestamp, timestamp + Duration::from_secs(3600))
    }

    fn code(verdict: &Verdict) -> Option<ErrorCode> {
        match verdict {
            Verdict::Usable(_) => None,
            Verdict::Expired(_, error) | Verdict::Foreign(error) => Some(error.code()),
            Verdict::Behind(refusal) | Verdict::Refused(refusal) => Some(refusal.code()),
        }
    }

    #[test]
    fn each_kind_of_bad_packet_is_refused_with_its_own_code() {
        let second = Duration::from_secs(1);
        let known = current(5, now());
        let judge_packet = |id, packet: &[u8]| code(&judge(id, packet, Some(&known), Some(now() + second)));
        let judge_record = |record: SignedRecord| judge_packet(key(1).id(), record.packet());
        assert_eq!(judge_record(current(5, now() + second)), None);
        assert_eq!(judge_record(current(5, now() - second)), Some(ErrorCode::RecordStale));
        assert_eq!(judge_record(current(4, now() + second)), Some(ErrorCode::RecordLowerEpoch));
        assert_eq!(judge_record(current(6, now() + Duration::from_secs(400))), Some(ErrorCode::RecordFuture));
        assert_eq!(judge_record(signed(6, now(), now() + second)), Some(ErrorCode::RecordExpired));

        let mut altered = current(6, now()).packet().to_vec();
        altered[3] ^= 1;
        assert_eq!(judge_packet(key(1).id(), &altered), Some(ErrorCode::RecordForged));
        assert_eq!(
            judge_packet(key(2).id(), current(6, now()).packet()),
            Some(ErrorCode::RecordForged),
            "another vat's packet"
        );
    }

    /// A packet of `key(1)` without any DNS record, as pkarr's own client would publish it.
    fn foreign(timestamp: Timestamp) -> Vec<u8> {
        let value = [0; 12];
        let signed = [format!("3:seqi{}e1:v{}:", timestamp.as_micros(), value.len()).as_bytes(), &value].concat();
        [&key(1).sign_raw(&signed)[..], &timestamp.as_micros().to_be_bytes(), &value].concat()
    }

    #[test]
    fn what_another_program_signed_with_the_key_is_neither_usable_nor_a_record_that_is_behind() {
        let known = current(0, now());
        for known in [None, Some(&known)] {
            for clock in [None, Some(now())] {
                let verdict = judge(key(1).id(), &foreign(now() + Duration::from_secs(1)), known, clock);
                assert!(matches!(verdict, Verdict::Foreign(_)), "{verdict:?}");
                assert_eq!(code(&verdict), Some(ErrorCode::RecordNoVat));
            }
        }
        let ahead = foreign(now() + Duration::from_secs(400));
        assert_eq!(code(&judge(key(1).id(), &ahead, None, Some(now()))), Some(ErrorCode::RecordFuture));
        assert_eq!(code(&judge(key(2).id(), &foreign(now()), None, None)), Some(ErrorCode::RecordForged));
    }

    #[test]
    fn of_two_records_with_one_order_the_lower_bytes_are_a_conflict() {
        let one = current(5, now());
        let other = signed(5, now(), now() + Duration::from_secs(3601));
        let (lower, higher) = if one.compare(&other) == Ordering::Less { (one, other) } else { (other, one) };
        let verdict = judge(key(1).id(), lower.packet(), Some(&higher), Some(now()));
        assert_eq!(code(&verdict), Some(ErrorCode::RecordConflict));
        let verdict = judge(key(1).id(), higher.packet(), Some(&lower), Some(now()));
        assert!(matches!(verdict, Verdict::Usable(_)));
    }

    #[test]
    fn without_a_clock_any_date_counts_but_only_with_the_signature() {
        let ahead = current(6, now() + Duration::from_secs(1_000_000));
        assert!(matches!(judge(key(1).id(), ahead.packet(), None, None), Verdict::Usable(_)));
        let mut altered = ahead.packet().to_vec();
        altered[70] ^= 1;
        assert_eq!(code(&judge(key(1).id(), &altered, None, None)), Some(ErrorCode::RecordForged));
    }
}
