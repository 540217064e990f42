//! Whether this machine's clock is wrong: judged by the clocks of location servers, pure.
//!
//! Records are signed with a time, and refused when it lies far ahead; so a wrong clock makes a vat unfindable, and its
//! owner is told before that happens. One server's word is not enough, as its clock may be the wrong one: two at least
//! have to agree with each other, and most of those that answered have to.

use std::{fmt, time::Duration};

use schemas::{Coded, ErrorCode, Timestamp};

use crate::limits;

/// This machine's clock differs from those of location servers that agree with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockSkew {
    /// By how much.
    pub difference: Duration,
    /// This machine's clock is the later one.
    pub ahead: bool,
    /// How many servers agree.
    pub servers: usize,
}

impl fmt::Display for ClockSkew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.ahead { "ahead of" } else { "behind" };
        let Self { difference, servers, .. } = self;
        write!(f, "this machine's clock is {} s {way} those of {servers} location servers", difference.as_secs())
    }
}

impl std::error::Error for ClockSkew {}

impl Coded for ClockSkew {
    fn code(&self) -> ErrorCode {
        ErrorCode::VlsClockSkew
    }
}

/// A server's clock: what it showed, and what this machine's did half-way between question and answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) theirs: Timestamp,
    pub(crate) ours: Timestamp,
}

impl Reading {
    /// How far ours is ahead, in microseconds.
    fn ahead(&self) -> i128 {
        i128::from(self.ours.as_micros()) - i128::from(self.theirs.as_micros())
    }
}

/// What the readings say of this machine's clock, if they say anything.
pub(crate) fn judge(readings: &[Reading]) -> Option<ClockSkew> {
    let mut ahead: Vec<i128> = readings.iter().map(Reading::ahead).collect();
    ahead.sort_unstable();
    // The median is within any group that most belong to.
    let median = *ahead.get(ahead.len() / 2)?;
    let agreement = i128::try_from(limits::CLOCK_AGREEMENT.as_micros()).unwrap_or(i128::MAX);
    let servers = ahead.iter().filter(|other| (*other - median).abs() <= agreement).count();
    let difference = Duration::from_micros(u64::try_from(median.abs()).unwrap_or(u64::MAX));
    let most = servers >= limits::CLOCK_WITNESSES && servers * 2 > readings.len();
    (most && difference > limits::CLOCK_TOLERANCE).then_some(ClockSkew { difference, ahead: median > 0, servers })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_800_000_000;

    /// Servers whose clocks differ from ours by so many seconds.
    fn judged(differences: &[i64]) -> Option<(u64, bool, usize)> {
        let reading = |difference: &i64| Reading {
            theirs: Timestamp::from_seconds(NOON.checked_add_signed(*difference).unwrap()),
            ours: Timestamp::from_seconds(NOON),
        };
        let readings: Vec<Reading> = differences.iter().map(reading).collect();
        judge(&readings).map(|skew| (skew.difference.as_secs(), skew.ahead, skew.servers))
    }

    #[test]
    fn several_that_agree_show_that_this_clock_is_wrong() {
        assert_eq!(judged(&[-3600, -3602, -3598]), Some((3600, true, 3)));
        assert_eq!(judged(&[120, 121]), Some((120, false, 2)));
        assert_eq!(judged(&[300, 0, 301, 299]), Some((299, false, 3)), "one that errs as we do changes nothing");
    }

    #[test]
    fn one_alone_or_several_that_differ_show_nothing() {
        for fine in [&[][..], &[3600], &[0, 3600], &[600, -600], &[59, 60], &[0, 0, 3600], &[0, 300, 600, 900]] {
            assert_eq!(judged(fine), None, "{fine:?}");
        }
    }
}
