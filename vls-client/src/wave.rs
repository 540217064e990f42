//! Staggered starts: how many attempts of a race may run now (DESIGN §5; RFC 8305, section 5).
//!
//! A few start together, each failure lets the next one start at once, and silence lets one more start after
//! the hedge delay. The same rule serves lookups, dials and the addresses behind one host name.

use std::time::Duration;

/// The pace of one race. Pure: the caller brings the time.
#[derive(Debug, Clone)]
pub(crate) struct Wave {
    /// Attempts that may start without waiting.
    credits: usize,
    /// When silence lets one more start.
    next: Duration,
}

impl Wave {
    /// A race whose first `first` attempts start together.
    pub(crate) fn new(now: Duration, first: usize) -> Self {
        Self { credits: first.max(1), next: now }
    }

    /// An attempt ended without success: another may take its place at once.
    pub(crate) fn attempt_failed(&mut self) {
        self.credits = self.credits.saturating_add(1);
    }

    /// Whether one attempt may start now; if so it counts as started, and the one after it waits for `hedge`.
    pub(crate) fn may_start(&mut self, now: Duration, hedge: Duration) -> bool {
        if self.credits > 0 {
            self.credits -= 1;
        } else if now < self.next {
            return false;
        }
        self.next = now.saturating_add(hedge);
        true
    }

    /// When to ask again, if nothing happens before.
    pub(crate) fn next(&self) -> Duration {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEDGE: Duration = Duration::from_millis(100);

    #[test]
    fn the_first_ones_start_together_and_the_rest_one_per_hedge() {
        let mut wave = Wave::new(Duration::ZERO, 2);
        assert!(wave.may_start(Duration::ZERO, HEDGE));
        assert!(wave.may_start(Duration::ZERO, HEDGE));
        assert!(!wave.may_start(Duration::ZERO, HEDGE));
        assert!(!wave.may_start(HEDGE - Duration::from_nanos(1), HEDGE));
        assert_eq!(wave.next(), HEDGE);
        assert!(wave.may_start(HEDGE, HEDGE));
        assert!(!wave.may_start(HEDGE, HEDGE));
    }

    #[test]
    fn a_failure_lets_exactly_one_more_start_at_once() {
        let mut wave = Wave::new(Duration::ZERO, 1);
        assert!(wave.may_start(Duration::ZERO, HEDGE));
        wave.attempt_failed();
        assert!(wave.may_start(Duration::ZERO, HEDGE));
        assert!(!wave.may_start(Duration::ZERO, HEDGE));
    }
}
