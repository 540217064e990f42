//! How many questions each network may ask of a carrier, in fixed memory (DESIGN §4 rule 9).
//!
//! A bucket is the moment at which it will be full again (the generic cell rate algorithm), so it needs no timer.
//! A network that is not in the table has a full bucket; in a full set, a newcomer takes over the bucket that is
//! nearest to full. So whoever comes from very many networks gets other people's debts and no fresh tokens.
//!
//! The registry has such buckets for writing. These are for asking, where nothing is decided, and so they
//! belong to the carrier.

use std::time::Duration;

use schemas::Network;

use crate::{
    limits::{RATE_SETS, RATE_WAYS},
    registry::Rate,
};

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// [`Network::to_bits`]; 0 is free.
    network: u64,
    /// Microseconds on the monotonic clock.
    full_at: u64,
}

/// The buckets of all networks for one carrier.
#[derive(Debug)]
pub(super) struct Rates {
    rate: Rate,
    slots: Box<[[Slot; RATE_WAYS]]>,
    seed: u64,
}

impl Rates {
    /// `seed` is a secret random number: without it nobody can choose networks that share a set.
    pub(super) fn new(rate: Rate, seed: u64) -> Self {
        Self { rate, slots: vec![[Slot::default(); RATE_WAYS]; RATE_SETS].into_boxed_slice(), seed }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// How long until there is one.
    pub(super) fn take(&mut self, network: Network, monotonic: Duration) -> Result<(), Duration> {
        let now = micros(monotonic);
        let interval = micros(self.rate.interval);
        let tolerance = interval.saturating_mul(u64::from(self.rate.burst.saturating_sub(1)));
        let slot = self.slot(network.to_bits());
        let wait = slot.full_at.saturating_sub(tolerance).saturating_sub(now);
        if wait > 0 {
            return Err(Duration::from_micros(wait));
        }
        slot.full_at = slot.full_at.max(now).saturating_add(interval);
        Ok(())
    }

    fn slot(&mut self, network: u64) -> &mut Slot {
        // The finaliser of splitmix64: every bit of the input changes half of the output.
        let mut bits = network ^ self.seed;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        // Proof: the remainder is below RATE_SETS, a usize.
        #[allow(clippy::cast_possible_truncation)]
        let set = &mut self.slots[(bits % RATE_SETS as u64) as usize];
        let way = set.iter().position(|slot| slot.network == network).unwrap_or_else(|| {
            let nearest_to_full = (0..RATE_WAYS).min_by_key(|way| set[*way].full_at).unwrap_or_default();
            set[nearest_to_full].network = network;
            nearest_to_full
        });
        &mut set[way]
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const RATE: Rate = Rate { burst: 3, interval: Duration::from_secs(10) };

    fn network(number: u32) -> Network {
        Network::of(Ipv4Addr::from(number << 8).into())
    }

    #[test]
    fn a_network_has_its_burst_then_its_rate_and_is_told_how_long_to_wait() {
        let mut rates = Rates::new(RATE, 7);
        let at = Duration::from_secs;
        for _ in 0..3 {
            assert_eq!(rates.take(network(1), at(100)), Ok(()));
        }
        assert_eq!(rates.take(network(1), at(100)), Err(at(10)));
        assert_eq!(rates.take(network(2), at(100)), Ok(()), "another one is not concerned");
        assert_eq!(rates.take(network(1), at(109)), Err(at(1)));
        assert_eq!(rates.take(network(1), at(110)), Ok(()));
        let granted = (0..10).filter(|_| rates.take(network(1), at(10_000)).is_ok()).count();
        assert_eq!(granted, 3, "a long silence fills it to the burst and no further");
    }

    #[test]
    fn a_flood_of_networks_gets_no_more_than_the_memory_holds() {
        let mut rates = Rates::new(RATE, 7);
        let networks = 20 * u32::try_from(RATE_SETS * RATE_WAYS).unwrap();
        let ask = |_| (0..networks).filter(|n| rates.take(network(*n), Duration::ZERO).is_ok()).count();
        let granted: usize = (0..3).map(ask).sum();
        assert!(granted <= RATE_SETS * RATE_WAYS * 3, "{granted} tokens came out of fixed memory");
    }
}
