//! With what timestamp a vat signs its next record: max(now, last + 1) (DESIGN §4 rule 4), with clocks that are wrong.
//!
//! By its own clock, "last" is what servers say that they have taken: a clock that was set back does not make the vat
//! sign what every server knows better than. What was signed and taken by nobody counts only as far as it is in reach:
//! dated by a clock that was ahead for a while, it must not keep the vat ahead.
//!
//! A server that refuses a record as dated ahead of its clock tells its time, and the vat signs one for it by that clock
//! ([`Reading::Server`]). Then the word of other servers counts no further than that clock reaches either: one that lies,
//! or whose own clock is ahead, could keep the vat from all others by taking a record that is dated an hour ahead.
//!
//! Dates so go down as well as up. Two of them are never the same: two records of one date would prove to everybody that
//! two copies of the vat sign, and a server that lies could ask for them by naming a time twice.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    time::Duration,
};

use schemas::{Timestamp, limits::MAX_CLOCK_AHEAD};

use crate::limits;

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
    /// Of those that were signed, the last one last.
    signed: RefCell<VecDeque<Timestamp>>,
}

impl RecordDates {
    /// The timestamp of a record that is signed now.
    #[must_use]
    pub fn next(&self, reading: Reading) -> Timestamp {
        let mut next = reading.time().max(after(self.highest(reading)));
        let mut signed = self.signed.borrow_mut();
        while signed.contains(&next) {
            next = after(next);
        }
        if signed.len() >= limits::MAX_RECORD_DATES {
            signed.pop_front();
        }
        signed.push_back(next);
        next
    }

    /// Whether a record that was signed before may be offered now, as far as its date is concerned: some server can take
    /// it, and none has one of a later date from this vat.
    #[must_use]
    pub fn may_offer(&self, signed: Timestamp, reading: Reading) -> bool {
        self.highest(reading) == signed
    }

    /// A server has taken a record that was signed at this time.
    pub fn accepted(&self, signed: Timestamp) {
        self.accepted.set(self.accepted.get().max(signed));
    }

    /// The highest date that a server may have taken, as far as it counts by this clock.
    fn highest(&self, reading: Reading) -> Timestamp {
        let accepted = self.accepted.get();
        let counts = matches!(reading, Reading::Own(_)) || is_in_reach(accepted, reading.time());
        let signed = self.signed.borrow();
        let in_reach = signed.iter().copied().filter(|date| is_in_reach(*date, reading.time()));
        in_reach.chain(counts.then_some(accepted)).max().unwrap_or_default()
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
        assert!(dates.may_offer(ahead, Reading::Own(at(3))), "the one that has taken it knows it");
    }

    #[test]
    fn each_server_is_offered_the_last_of_its_own_clock_and_not_one_that_another_asked_for() {
        let dates = RecordDates::default();
        let (own, exact) = (Reading::Own(at(360)), Reading::Server(at(0)));
        let taken_as_it_is = dates.next(own);
        dates.accepted(taken_as_it_is);
        let dated_by_the_server = dates.next(exact);
        dates.accepted(dated_by_the_server);
        assert!(dates.may_offer(taken_as_it_is, own) && dates.may_offer(dated_by_the_server, exact));
        assert!(!dates.may_offer(dated_by_the_server, own), "the other server would call it stale");
        // Between two servers that both go by their own clocks it is the same.
        let ahead = Reading::Server(at(1200));
        let dated_ahead = dates.next(ahead);
        assert!(dates.may_offer(dated_ahead, ahead) && !dates.may_offer(dated_by_the_server, ahead));
        assert!(dates.may_offer(dated_by_the_server, exact));
    }

    #[test]
    fn no_order_of_clocks_makes_two_records_of_one_date() {
        let dates = RecordDates::default();
        let mut seen = std::collections::BTreeSet::new();
        let taken = dates.next(Reading::Own(at(2 * HOUR)));
        dates.accepted(taken);
        seen.insert(taken);
        for seconds in [HOUR, HOUR - 360, HOUR, HOUR - 360, HOUR - 720, HOUR, 0, 360, 0] {
            assert!(seen.insert(dates.next(Reading::Server(at(seconds)))), "{seconds}");
            assert!(seen.insert(dates.next(Reading::Own(at(seconds)))), "{seconds}");
        }
    }

    #[test]
    fn the_memory_of_dates_is_bounded() {
        let dates = RecordDates::default();
        for _ in 0..=limits::MAX_RECORD_DATES {
            let _ = dates.next(Reading::Own(at(0)));
        }
        assert_eq!(dates.signed.borrow().len(), limits::MAX_RECORD_DATES);
    }

    #[test]
    fn what_other_servers_have_taken_in_reach_of_a_clock_counts_by_that_clock() {
        let dates = RecordDates::default();
        dates.accepted(at(200));
        assert_eq!(dates.next(Reading::Server(at(2))), after(at(200)));
    }
}
