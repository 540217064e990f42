//! Where the time comes from (DESIGN §2): a parameter, so that tests turn it by hand.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use schemas::Timestamp;

use crate::registry::Now;

/// Gives the time of day and a monotonic time.
pub trait Clock: fmt::Debug {
    /// Both clocks, read at the same moment.
    fn now(&self) -> Now;
}

/// The clocks of this machine.
///
/// The monotonic one goes on while the machine is suspended: a lease that was granted for an hour has ended
/// when the lid is opened the next morning.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Now {
        // A clock set before 1970 is read as 1970: every record is then dated ahead, and refused as such.
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = Timestamp::from_micros(u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX));
        Now { wall, monotonic: since_boot() }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Neither is ever negative on this clock.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn since_boot() -> Duration {
    static BEGINNING: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    BEGINNING.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_goes_on_and_the_wall_clock_is_of_this_century() {
        let (first, second) = (SystemClock.now(), SystemClock.now());
        assert!(second.monotonic >= first.monotonic);
        assert!(first.wall > Timestamp::from_seconds(1_700_000_000));
    }
}
