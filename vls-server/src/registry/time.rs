//! The two clocks of the registry, both given from outside (rule 6).
//!
//! What a vat signs is compared with the wall clock; how long a record is answered is measured with the
//! monotonic clock, so that nobody's lease ends or lasts because an administrator set the time.

use std::time::Duration;

use schemas::Timestamp;

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time of day.
    pub wall: Timestamp,
    /// Time since some fixed point. Never goes back while the process lives; begins anew with each process.
    pub monotonic: Duration,
}

impl Now {
    pub(crate) fn moment(self) -> Moment {
        Moment(micros(self.monotonic))
    }
}

/// The tick of the clock's zero.
const ZERO_IN_TICKS: i64 = 1 << 45;

/// The last tick.
const MAX_TICKS: u64 = (1 << 48) - 1;

/// A point on the monotonic clock, in microseconds. Negative values lie before the clock's zero: records
/// that were restored after a restart have been seen there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(i64);

impl Moment {
    /// Before every other.
    pub(super) const BEGINNING: Self = Self(i64::MIN);

    /// As records keep it, in 48 bits: microseconds from a year before the clock's zero on, for seven years and nine
    /// months after it. What lies before or after that is taken for the first or the last.
    pub(super) fn ticks(self) -> u64 {
        u64::try_from(self.0.saturating_add(ZERO_IN_TICKS)).unwrap_or(0).min(MAX_TICKS)
    }

    /// The inverse of [`Self::ticks`].
    pub(super) fn from_ticks(ticks: u64) -> Self {
        Self(ticks.min(MAX_TICKS).cast_signed() - ZERO_IN_TICKS)
    }

    pub(super) fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(micros(duration)))
    }

    pub(super) fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(micros(duration)))
    }

    /// The time from `earlier` to here; zero if it lies the other way.
    pub(super) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_keep_every_microsecond_and_beyond_their_range_the_order() {
        let (first, last) = (-1 << 45, (1 << 48) - (1 << 45) - 1);
        for micros in [first, -4_000_001, -1, 0, 1, 3_600_000_000, last] {
            assert_eq!(Moment::from_ticks(Moment(micros).ticks()), Moment(micros));
        }
        for (beyond, micros) in [(i64::MIN, first), (first - 1, first), (last + 1, last), (i64::MAX, last)] {
            assert_eq!(Moment::from_ticks(Moment(beyond).ticks()), Moment(micros));
        }
    }
}
