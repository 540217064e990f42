//! How many questions each network may ask of a carrier, in fixed memory (DESIGN §4 rule 9): the registry's buckets, for
//! asking, where nothing is decided; so they belong to the carrier.

use std::time::Duration;

use schemas::Network;

use crate::registry::{Now, Rate, SourcePrefix, SourceTable};

/// The buckets of all networks for one carrier.
#[derive(Debug)]
pub(super) struct Rates {
    rate: Rate,
    table: SourceTable<1>,
}

impl Rates {
    /// `seed` is a secret random number: without it nobody can choose networks that share a set.
    pub(super) fn new(rate: Rate, seed: u64) -> Self {
        Self { rate, table: SourceTable::new(seed) }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// How long until there is one.
    pub(super) fn take(&mut self, network: Network, now: Now) -> Result<(), Duration> {
        let [bucket] = self.table.buckets(SourcePrefix::from_bits(network.to_bits()), now.moment());
        match bucket.wait(self.rate, now.moment()) {
            Some(wait) => Err(wait),
            None => {
                bucket.take(self.rate, now.moment());
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use schemas::Timestamp;

    use super::*;

    const RATE: Rate = Rate { burst: 3, interval: Duration::from_secs(10) };

    fn network(number: u32) -> Network {
        Network::of(Ipv4Addr::from(number << 8).into())
    }

    #[test]
    fn a_network_has_its_burst_then_its_rate_and_is_told_how_long_to_wait() {
        let mut rates = Rates::new(RATE, 7);
        let seconds = Duration::from_secs;
        let at = |at| Now { wall: Timestamp::from_seconds(0), monotonic: seconds(at) };
        for _ in 0..3 {
            assert_eq!(rates.take(network(1), at(100)), Ok(()));
        }
        assert_eq!(rates.take(network(1), at(100)), Err(seconds(10)));
        assert_eq!(rates.take(network(2), at(100)), Ok(()), "another one is not concerned");
        assert_eq!(rates.take(network(1), at(109)), Err(seconds(1)));
        assert_eq!(rates.take(network(1), at(110)), Ok(()));
        let granted = (0..10).filter(|_| rates.take(network(1), at(10_000)).is_ok()).count();
        assert_eq!(granted, 3, "a long silence fills it to the burst and no further");
    }
}
