//! How many first packets of connections are looked at: pure, and asked before anything is computed of them.
//!
//! To read an Initial packet its keys are derived from what is written on it, and whoever sends it can write what he
//! likes; to ask for a proof of his address, or to refuse him, is a packet of its own with keys of its own. That is
//! some twenty microseconds for a datagram that costs its sender one, and it has to prove nothing. So there are only so
//! many in a second; the rest is lost, as on a full line. Who means it sends his again (RFC 9002, section 6.2).

use std::time::Duration;

/// The bit of a long header (RFC 9000, section 17.2).
const LONG_HEADER: u8 = 0x80;
const TYPE: u8 = 0x30;
const VERSION_1: [u8; 4] = [0, 0, 0, 1];

/// A token bucket that says only whether there is a token: the generic cell rate algorithm (ITU-T I.371).
#[derive(Debug)]
pub(super) struct Bucket {
    burst: u32,
    interval: Duration,
    /// When it is full again.
    full_at: Duration,
}

impl Bucket {
    /// `burst` at once, and then one per `interval`.
    pub(super) fn new(burst: u32, interval: Duration) -> Self {
        Self { burst, interval, full_at: Duration::ZERO }
    }

    /// Takes a token at `now`, which never goes back, if there is one.
    pub(super) fn take(&mut self, now: Duration) -> bool {
        let full_at = self.full_at.max(now).saturating_add(self.interval);
        let is_granted = full_at.saturating_sub(now) <= self.interval.saturating_mul(self.burst);
        if is_granted {
            self.full_at = full_at;
        }
        is_granted
    }
}

/// Whether a datagram may begin a connection, or ask for another version of QUIC: what is answered to strangers.
pub(super) fn may_begin(datagram: &[u8]) -> bool {
    let Some(([first], rest)) = datagram.split_first_chunk() else { return false };
    first & LONG_HEADER != 0 && (first & TYPE == 0 || rest.get(..4) != Some(&VERSION_1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn there_is_a_burst_and_then_a_rate_and_no_more_than_the_burst_after_any_silence() {
        let mut bucket = Bucket::new(3, 10 * MS);
        let taken = |bucket: &mut Bucket, now| (0..5).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, MS), 3);
        assert_eq!(taken(&mut bucket, 10 * MS), 0);
        assert_eq!(taken(&mut bucket, 11 * MS), 1);
        assert_eq!(taken(&mut bucket, 1000 * MS), 3);
    }

    #[test]
    fn initials_and_unknown_versions_begin_something_and_all_other_packets_do_not() {
        let packet = |first: u8, version: u32| [&[first][..], &version.to_be_bytes(), &[8; 20]].concat();
        assert!(may_begin(&packet(0xc0, 1)) && may_begin(&packet(0xcf, 1)));
        assert!(may_begin(&packet(0xe0, 0x0a0a_0a0a)) && may_begin(&[0xc0]));
        for (what, first) in [("0-RTT", 0xd0), ("Handshake", 0xe3), ("Retry", 0xf0), ("a short header", 0x43)] {
            assert!(!may_begin(&packet(first, 1)), "{what}");
        }
        assert!(!may_begin(&[]));
    }
}
