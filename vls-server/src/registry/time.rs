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
    pub(super) fn moment(self) -> Moment {
        Moment(micros(self.monotonic))
    }
}

/// A point on the monotonic clock, in microseconds. Negative values lie before the clock's zero: records
/// that were restored after a restart have been seen there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(i64);

impl Moment {
    /// Before every other.
    pub(super) const BEGINNING: Self = Self(i64::MIN);

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
