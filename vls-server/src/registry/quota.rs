//! Quotas in fixed memory (rule 9).
//!
//! A bucket is kept as the moment at which it will be full again (the generic cell rate algorithm, ITU-T
//! I.371), so it takes eight bytes and no timer. The table of source prefixes never grows: a prefix that is
//! not in it has full buckets, and when a set is full the newcomer takes over the buckets that are nearest
//! to full. Whoever floods the table with prefixes thereby gets other people's debts, never fresh tokens.

use std::{fmt, net::IpAddr, time::Duration};

use schemas::{Network, VatId};

use super::time::Moment;
use crate::limits::{SOURCE_SETS, SOURCE_WAYS};

/// How much of something is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// At once, after a long silence. At least 1.
    pub burst: u32,
    /// Then one per this time.
    pub interval: Duration,
}

/// The [`Network`] that a registration came from. Carriers without an address (a local socket, the same process) are
/// [`SourcePrefix::LOCAL`] and have no quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourcePrefix(u64);

impl SourcePrefix {
    /// No network at all.
    pub const LOCAL: Self = Self(0);

    /// The last byte of those that are no network but another server, from which records are learned.
    const SERVER: u64 = 0x53;

    /// The Mainline DHT: one for all of it.
    pub const DHT: Self = Self(Self::SERVER);

    /// The prefix of an address.
    #[must_use]
    pub fn of(source: Option<IpAddr>) -> Self {
        source.map_or(Self::LOCAL, |address| Self(Network::of(address).to_bits()))
    }

    /// The server with this id: it has a share of its own, wherever it is.
    #[must_use]
    pub fn of_server(id: VatId) -> Self {
        let [a, b, c, d, e, f, g, ..] = *id.as_bytes();
        // As many bits as there is room for. Two servers that share them share their quota.
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, 0]) | Self::SERVER)
    }

    /// Whether it stands for a server, or for the DHT: what comes from there is learned.
    #[must_use]
    pub fn is_server(self) -> bool {
        self.0 & 0xff == Self::SERVER
    }

    /// For the record table's rows.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// The inverse of [`SourcePrefix::to_bits`]. Unknown families stay distinct from all others.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

impl fmt::Display for SourcePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Network::from_bits(self.0) {
            Some(network) => network.fmt(f),
            None if *self == Self::DHT => f.write_str("the Mainline DHT"),
            None if self.is_server() => f.write_str("another server"),
            None => f.write_str("local"),
        }
    }
}

/// A token bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    full_at: Moment,
}

impl Bucket {
    pub(super) const FULL: Self = Self { full_at: Moment::BEGINNING };

    /// `None` if there is a token; otherwise how long until there is one.
    pub(crate) fn wait(self, rate: Rate, now: Moment) -> Option<Duration> {
        let tolerance = rate.interval.saturating_mul(rate.burst.saturating_sub(1));
        let wait = self.full_at.before(tolerance).since(now);
        (!wait.is_zero()).then_some(wait)
    }

    /// Whether no token is missing.
    pub(super) fn is_full(self, now: Moment) -> bool {
        self.full_at <= now
    }

    /// Takes a token, whether there is one or not.
    pub(crate) fn take(&mut self, rate: Rate, now: Moment) {
        self.full_at = self.full_at.max(now).after(rate.interval);
    }
}

/// The buckets of one source prefix, one for each thing that is granted.
#[derive(Debug, Clone, Copy)]
struct Slot<const KINDS: usize> {
    prefix: SourcePrefix,
    buckets: [Bucket; KINDS],
}

impl<const KINDS: usize> Slot<KINDS> {
    const EMPTY: Self = Self { prefix: SourcePrefix::LOCAL, buckets: [Bucket::FULL; KINDS] };

    fn full_at(&self) -> Moment {
        self.buckets.iter().map(|bucket| bucket.full_at).max().unwrap_or(Moment::BEGINNING)
    }
}

/// The buckets of all source prefixes, in memory that was set aside at the start.
#[derive(Debug)]
pub(crate) struct SourceTable<const KINDS: usize> {
    slots: Box<[[Slot<KINDS>; SOURCE_WAYS]]>,
    seed: u64,
}

impl<const KINDS: usize> SourceTable<KINDS> {
    /// `seed` is a secret random number: without it nobody can choose prefixes that share a set.
    pub(crate) fn new(seed: u64) -> Self {
        Self { slots: vec![[Slot::EMPTY; SOURCE_WAYS]; SOURCE_SETS].into_boxed_slice(), seed }
    }

    /// The buckets of `prefix`, which must not be [`SourcePrefix::LOCAL`].
    pub(crate) fn buckets(&mut self, prefix: SourcePrefix, now: Moment) -> &mut [Bucket; KINDS] {
        debug_assert_ne!(prefix, SourcePrefix::LOCAL, "local sources have no quota");
        // Proof: the remainder is below SOURCE_SETS, a usize.
        #[allow(clippy::cast_possible_truncation)]
        let set = (mix(prefix.0 ^ self.seed) % SOURCE_SETS as u64) as usize;
        let set = &mut self.slots[set];
        let way = set.iter().position(|slot| slot.prefix == prefix).unwrap_or_else(|| {
            let nearest_to_full = (0..SOURCE_WAYS).min_by_key(|way| set[*way].full_at()).unwrap_or_default();
            let slot = &mut set[nearest_to_full];
            if slot.full_at() <= now {
                *slot = Slot::EMPTY;
            }
            slot.prefix = prefix;
            nearest_to_full
        });
        &mut set[way].buckets
    }
}

/// The finaliser of splitmix64 (Steele, Lea, Flood, 2014): every input bit changes half of the output bits.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Now;

    fn at(seconds: u64) -> Moment {
        Now { wall: schemas::Timestamp::from_seconds(0), monotonic: Duration::from_secs(seconds) }.moment()
    }

    fn prefix(text: &str) -> SourcePrefix {
        SourcePrefix::of(Some(text.parse().unwrap()))
    }

    #[test]
    fn a_prefix_is_a_24_or_a_56_and_mapped_addresses_are_ipv4() {
        assert_eq!(prefix("192.0.2.1"), prefix("192.0.2.254"));
        assert_eq!(prefix("192.0.2.1"), prefix("::ffff:192.0.2.9"));
        assert_ne!(prefix("192.0.2.1"), prefix("192.0.3.1"));
        assert_ne!(prefix("2001:db8:1:2::1"), prefix("2001:db8:1:2ff::1"));
        assert_eq!(prefix("2001:db8:1:201::1"), prefix("2001:db8:1:2fe::1"));
        assert_ne!(prefix("2001:db8:1:201::1"), prefix("2001:db8:1:301::1"));
        assert_ne!(prefix("0.0.0.0"), prefix("::"));
        assert_ne!(prefix("0.0.0.0"), SourcePrefix::LOCAL);
        assert_eq!(prefix("192.0.2.77").to_string(), "192.0.2.0/24");
        assert_eq!(prefix("2001:db8:1:2ff::1").to_string(), "2001:db8:1:200::/56");
        assert_eq!(SourcePrefix::from_bits(prefix("192.0.2.1").to_bits()), prefix("192.0.2.1"));
    }

    #[test]
    fn a_bucket_grants_its_burst_then_its_rate_and_says_how_long_to_wait() {
        let rate = Rate { burst: 3, interval: Duration::from_secs(10) };
        let mut bucket = Bucket::FULL;
        for _ in 0..3 {
            assert_eq!(bucket.wait(rate, at(100)), None);
            bucket.take(rate, at(100));
        }
        assert_eq!(bucket.wait(rate, at(100)), Some(Duration::from_secs(10)));
        assert_eq!(bucket.wait(rate, at(109)), Some(Duration::from_secs(1)));
        assert_eq!(bucket.wait(rate, at(110)), None);
        bucket.take(rate, at(110));
        assert!(bucket.wait(rate, at(110)).is_some());
        // A long silence fills it to the burst and no further.
        let mut granted = 0;
        while bucket.wait(rate, at(10_000)).is_none() {
            bucket.take(rate, at(10_000));
            granted += 1;
        }
        assert_eq!(granted, 3);
    }

    #[test]
    fn a_flood_of_prefixes_never_gives_an_exhausted_one_fresh_tokens() {
        let rate = Rate { burst: 2, interval: Duration::from_secs(1000) };
        let mut table = SourceTable::<1>::new(7);
        let mut granted = 0_usize;
        // Twenty times as many prefixes as slots, three rounds: each grant is paid for by some slot.
        for _ in 0..3 {
            for network in 0..20 * (SOURCE_SETS * SOURCE_WAYS) as u64 {
                let [bucket] = table.buckets(
                    SourcePrefix::of(Some(IpAddr::from((u32::try_from(network).unwrap() << 8).to_be_bytes()))),
                    at(0),
                );
                if bucket.wait(rate, at(0)).is_none() {
                    bucket.take(rate, at(0));
                    granted += 1;
                }
            }
        }
        assert!(granted <= SOURCE_SETS * SOURCE_WAYS * 2, "{granted} tokens came out of fixed memory");
    }

    #[test]
    fn a_prefix_keeps_its_buckets_while_its_set_has_room() {
        let rate = Rate { burst: 1, interval: Duration::from_secs(1000) };
        let mut table = SourceTable::<1>::new(7);
        let (one, other) = (prefix("192.0.2.1"), prefix("198.51.100.1"));
        table.buckets(one, at(0))[0].take(rate, at(0));
        assert!(table.buckets(other, at(0))[0].wait(rate, at(0)).is_none());
        assert!(table.buckets(one, at(0))[0].wait(rate, at(0)).is_some());
        assert!(table.buckets(one, at(1000))[0].wait(rate, at(1000)).is_none());
    }
}
