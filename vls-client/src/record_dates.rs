//! With what timestamp a vat signs its next record: max(now, last + 1) (DESIGN §4 rule 4), with clocks that are wrong.
//!
//! By its own clock, "last" is what servers say that they have taken: a clock that was set back does not make the vat
//! sign what every server knows better than. What was signed and taken by nobody counts only as far as it is in reach:
//! dated by a clock that was ahead for a while, it must not keep the vat ahead.
//!
//! A server that refuses a record as dated ahead of its clock tells its time, and the vat signs one for it by that clock
//! ([`Reading::Server`]). Then the word of other servers counts no further than that clock reaches either: one that lies,
//! or whose own clock is ahead, could keep the vat from all others by taking a record that is dated an hour ahead.

use std::{cell::Cell, time::Duration};

use schemas::{Timestamp, limits::MAX_CLOCK_AHEAD};

/// What time it is, by whose clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// The vat's own.
    Own(Timestamp),
    /// That of a server which has refused a record that was dated ahead of it.
    Server(Timestamp),
}

/// The timestamps of one start of a vat.
#[derive(Debug, Default)]
pub struct RecordDates {
    /// Of the newest record that a server has taken.
    accepted: Cell<Timestamp>,
    /// Of the last one that was signed by the vat's own clock, and by that of a server.
    signed: Cell<Timestamp>,
    signed_for_server: Cell<Timestamp>,
}

impl RecordDates {
    /// The timestamp of a record that is signed now.
    #[must_use]
    pub fn next(&self, reading: Reading) -> Timestamp {
        let (now, least, signed) = match reading {
            Reading::Own(now) => (now, now.max(after(self.accepted.get())), &self.signed),
            Reading::Server(now) => (now, now, &self.signed_for_server),
        };
        let marks = [self.accepted.get(), self.signed.get(), self.signed_for_server.get()];
        let in_reach = marks.map(after).into_iter().filter(|next| is_in_reach(*next, now));
        let next = in_reach.fold(least, Timestamp::max);
        signed.set(next);
        next
    }

    /// Whether a record that was signed before may be offered now, as far as its date is concerned: some server can take
    /// it.
    #[must_use]
    pub fn may_offer(&self, signed: Timestamp, reading: Reading) -> bool {
        match reading {
            Reading::Own(now) => is_in_reach(signed, now) || signed <= self.accepted.get(),
            Reading::Server(now) => is_in_reach(signed, now),
        }
    }

    /// A server has taken a record that was signed at this time.
    pub fn accepted(&self, signed: Timestamp) {
        self.accepted.set(self.accepted.get().max(signed));
    }
}

impl Reading {
    /// What the clock shows.
    #[must_use]
    pub fn time(self) -> Timestamp {
        match self {
            Self::Own(now) | Self::Server(now) => now,
        }
    }
}

fn after(last: Timestamp) -> Timestamp {
    last.saturating_add(Duration::from_micros(1))
}

/// Whether a server whose clock shows `now` takes what is dated so.
fn is_in_reach(timestamp: Timestamp, now: Timestamp) -> bool {
    timestamp.saturating_since(now) <= MAX_CLOCK_AHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_seconds(1_800_000_000 + seconds)
    }

    #[test]
    fn each_is_later_than_the_last_also_with_a_clock_that_stands_still_or_goes_back() {
        let dates = RecordDates::default();
        assert_eq!(dates.next(Reading::Own(at(0))), at(0));
        assert_eq!(dates.next(Reading::Own(at(0))), after(at(0)));
        dates.accepted(at(HOUR));
        assert_eq!(dates.next(Reading::Own(at(0))), after(at(HOUR)), "servers know this one");
        assert_eq!(dates.next(Reading::Own(at(HOUR + 9))), at(HOUR + 9));
    }

    #[test]
    fn a_clock_that_was_ahead_for_a_while_leaves_nothing_behind() {
        let dates = RecordDates::default();
        let ahead = dates.next(Reading::Own(at(HOUR)));
        assert!(!dates.may_offer(ahead, Reading::Own(at(1))));
        assert_eq!(dates.next(Reading::Own(at(1))), at(1), "nobody has taken it");
    }

    #[test]
    fn what_one_server_says_that_it_has_taken_does_not_keep_the_vat_from_another() {
        let dates = RecordDates::default();
        let ahead = dates.next(Reading::Own(at(HOUR)));
        dates.accepted(ahead);
        let server = Reading::Server(at(2));
        assert!(!dates.may_offer(ahead, server));
        assert_eq!(dates.next(server), at(2));
        assert_eq!(dates.next(server), after(at(2)), "two records never have one date");
        assert!(dates.may_offer(at(2), Reading::Own(at(3))));
        assert!(dates.may_offer(ahead, Reading::Own(at(3))), "the one that has taken it knows it");
    }

    #[test]
    fn what_other_servers_have_taken_in_reach_of_a_clock_counts_by_that_clock() {
        let dates = RecordDates::default();
        dates.accepted(at(200));
        assert_eq!(dates.next(Reading::Server(at(2))), after(at(200)));
    }
}
