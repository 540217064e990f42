//! Time and randomness as parameters (DESIGN §2), so that the same code runs under simulation.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemas::Timestamp;
use tokio::time::Instant;

/// One instant on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The wall clock, for what is signed or shown. It may jump.
    pub wall: Timestamp,
    /// The monotonic clock, since an origin that never changes, for everything that waits.
    pub elapsed: Duration,
}

/// Where the time comes from.
pub trait Clock {
    /// The current moment. `elapsed` advances at the rate of tokio's clock, on which the shells wait.
    fn now(&self) -> Moment;
}

/// The clocks of this machine.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    origin: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        // A clock set before 1970 is read as 1970: every record is then dated ahead, and refused as such.
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = Timestamp::from_micros(u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX));
        Moment { wall, elapsed: self.origin.elapsed() }
    }
}

/// Where random numbers come from. Here they only spread load: no secret depends on them.
pub trait Randomness {
    /// A number, uniform over all 64-bit values.
    fn next_u64(&mut self) -> u64;
}

impl<F: FnMut() -> u64> Randomness for F {
    fn next_u64(&mut self) -> u64 {
        self()
    }
}

/// The operating system's random numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandomness;

impl Randomness for SystemRandomness {
    fn next_u64(&mut self) -> u64 {
        // Without random numbers the middle of the range is taken: no jitter, and nothing else is lost.
        getrandom::u64().unwrap_or(u64::MAX / 2)
    }
}
