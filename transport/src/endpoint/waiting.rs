//! Who may shake hands now, and who waits for it: pure, with time as an argument.
//!
//! One thread shakes hands and does everything else, and a handshake costs it a hundred times what an answer does. An
//! address that was proven says nothing of how many handshakes come from it, so they have a share of the thread's time,
//! and no more, whoever asks for them. Those for whom there is none yet wait in the order in which they came; when too
//! many wait, of all or of one network, one more is refused, and told so. So one network alone keeps nobody else out.
//!
//! What a handshake costs differs between machines by an order of magnitude, so it is measured as it goes. But strangers
//! choose what is measured: an attempt that cannot succeed costs next to nothing, and many of them would make all look
//! cheap. So measurements only raise what one is taken for.

use std::{collections::VecDeque, time::Duration};

use schemas::Network;

use crate::limits;

/// Connection attempts that have been let in, and the time that there is for them.
#[derive(Debug)]
pub(super) struct Waiting<A> {
    /// With where each comes from.
    attempts: VecDeque<(Network, A)>,
    /// One part in so many of the time is for handshakes.
    share: u32,
    /// What may be spent at once after a quiet time.
    burst: Duration,
    /// What one costs, as far as is known, and what it costs at least.
    cost: Duration,
    least_cost: Duration,
    /// When all that were begun will have had their time (the generic cell rate algorithm, ITU-T I.371).
    paid_at: Duration,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<A> {
    Begin(A),
    /// Look again after so long.
    Wait(Duration),
    Nobody,
}

impl<A> Waiting<A> {
    /// `share`, at least 1, of which one part is for handshakes; `cost` is what one is taken for at least.
    pub(super) fn new(share: u32, burst: Duration, cost: Duration) -> Self {
        let attempts = VecDeque::new();
        Self { attempts, share: share.max(1), burst, cost, least_cost: cost, paid_at: Duration::ZERO }
    }

    /// Has an attempt wait for its turn.
    ///
    /// # Errors
    /// The attempt, if too many wait.
    pub(super) fn push(&mut self, network: Network, attempt: A) -> Result<(), A> {
        let same = self.attempts.iter().filter(|(of, _)| *of == network).count();
        if self.attempts.len() >= limits::HANDSHAKES_WAITING || same >= limits::HANDSHAKES_WAITING_PER_NETWORK {
            return Err(attempt);
        }
        self.attempts.push_back((network, attempt));
        Ok(())
    }

    /// The one whose turn it is at `now`, which never goes back.
    pub(super) fn next(&mut self, now: Duration) -> Next<A> {
        let paid_at = self.paid_at.max(now);
        let ahead = self.burst.saturating_mul(self.share);
        let wait = (paid_at - now).saturating_sub(ahead);
        if self.attempts.is_empty() {
            return Next::Nobody;
        }
        if !wait.is_zero() {
            return Next::Wait(wait);
        }
        self.paid_at = paid_at.saturating_add(self.cost.saturating_mul(self.share));
        self.attempts.pop_front().map_or(Next::Nobody, |(_, attempt)| Next::Begin(attempt))
    }

    /// Takes into account what one has cost. A single measurement says little: it may have met a cold cache.
    pub(super) fn has_cost(&mut self, measured: Duration) {
        let measured = measured.clamp(self.least_cost, self.least_cost.saturating_mul(16));
        self.cost = self.cost.saturating_mul(15).saturating_add(measured) / 16;
    }

    /// Nobody waits any more. Gives those who did.
    pub(super) fn clear(&mut self) -> VecDeque<(Network, A)> {
        std::mem::take(&mut self.attempts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// One of a thousand networks.
    fn network(number: u32) -> Network {
        let [.., high, low] = (number % 1000).to_be_bytes();
        Network::of([10, high, low, 1].into())
    }

    /// So many attempts come in every millisecond of ten seconds. Gives how many were begun and refused, and for how many
    /// milliseconds one waited at most.
    fn flood(waiting: &mut Waiting<u32>, per_millisecond: u32, from: u32) -> (u32, u32, u32) {
        let (mut begun, mut refused, mut longest) = (0, 0, 0);
        for millisecond in from..from + 10_000 {
            refused += (0..per_millisecond)
                .map(|number| u32::from(waiting.push(network(number), millisecond).is_err()))
                .sum::<u32>();
            while let Next::Begin(came) = waiting.next(millisecond * MS) {
                longest = longest.max(millisecond - came);
                begun += 1;
            }
        }
        (begun, refused, longest)
    }

    #[test]
    fn a_flood_of_handshakes_takes_its_share_of_the_time_and_the_rest_is_refused() {
        let mut waiting = Waiting::new(2, 50 * MS, MS / 4);
        let (begun, refused, longest) = flood(&mut waiting, 20, 0);
        // A hundred and twenty-eight wait, and two go in every millisecond.
        assert!(longest <= 64, "who is let in does not wait for long");
        // Five seconds of a quarter of a millisecond each, and the burst.
        assert!((20_000..=20_000 + 201).contains(&begun), "{begun}");
        let waiting_still = u32::try_from(waiting.clear().len()).unwrap();
        assert_eq!(begun + refused + waiting_still, 200_000);
    }

    #[test]
    fn a_network_that_floods_leaves_places_for_others_who_are_let_in_in_their_turn() {
        let mut waiting = Waiting::new(2, Duration::ZERO, MS);
        let flooding = (0..1000).filter(|number| waiting.push(network(1), *number).is_ok()).count();
        assert_eq!(flooding, limits::HANDSHAKES_WAITING_PER_NETWORK);
        waiting.push(network(2), 5000).unwrap();
        let begun = (0..1000).filter_map(|millisecond| match waiting.next(millisecond * MS) {
            Next::Begin(attempt) => {
                // The flood goes on.
                let _ = waiting.push(network(1), 0);
                Some((millisecond, attempt))
            }
            _ => None,
        });
        let turn = begun.into_iter().find(|(_, attempt)| *attempt == 5000).unwrap().0;
        assert_eq!(turn, 2 * u32::try_from(flooding).unwrap(), "after those who came before, at two milliseconds each");
    }

    #[test]
    fn at_less_than_the_share_nobody_waits() {
        let mut waiting = Waiting::new(2, 50 * MS, MS / 4);
        for millisecond in 0..10_000 {
            for attempt in 0..2 {
                waiting.push(network(attempt), attempt).unwrap();
                assert_eq!(waiting.next(millisecond * MS), Next::Begin(attempt));
            }
        }
        assert_eq!(waiting.next(10_000 * MS), Next::Nobody);
    }

    #[test]
    fn after_a_quiet_hour_there_is_one_burst_and_not_an_hours_worth() {
        let mut waiting = Waiting::new(2, 10 * MS, MS);
        flood(&mut waiting, 1, 0);
        waiting.clear();
        let hour = Duration::from_secs(3600);
        for attempt in 0..20 {
            waiting.push(network(attempt), attempt).unwrap();
        }
        let begun = std::iter::from_fn(|| match waiting.next(hour) {
            Next::Begin(attempt) => Some(attempt),
            Next::Wait(wait) => {
                assert_eq!(wait, 2 * MS, "the next, when it has earned its time");
                None
            }
            Next::Nobody => None,
        });
        // The burst, and the one that goes over it.
        assert_eq!(begun.collect::<Vec<_>>(), (0..11).collect::<Vec<_>>(), "in the order in which they came");
    }

    #[test]
    fn on_a_slower_machine_fewer_are_begun_and_a_measurement_that_cannot_be_locks_nobody_out() {
        let mut waiting = Waiting::new(2, 50 * MS, limits::HANDSHAKE_COST);
        for _ in 0..200 {
            waiting.has_cost(4 * MS);
        }
        let (begun, ..) = flood(&mut waiting, 20, 0);
        assert!((1_250..=1_250 + 20).contains(&begun), "a quarter of a second in two: {begun}");
        for _ in 0..200 {
            waiting.has_cost(Duration::MAX);
        }
        waiting.clear();
        assert!(flood(&mut waiting, 20, 20_000).0 > 500);
    }

    #[test]
    fn attempts_that_cost_nothing_do_not_make_those_cheap_that_do() {
        let mut waiting = Waiting::new(2, 50 * MS, MS / 2);
        for _ in 0..200 {
            waiting.has_cost(Duration::ZERO);
        }
        let (begun, ..) = flood(&mut waiting, 40, 0);
        assert!((10_000..=10_000 + 101).contains(&begun), "half a millisecond each, as before: {begun}");
    }
}
