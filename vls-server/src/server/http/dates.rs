//! Times as HTTP writes them (RFC 9110, section 5.6.7), for who writes many of the same days.

use std::{
    cell::{Cell, RefCell},
    io::Write as _,
    time::{Duration, UNIX_EPOCH},
};

use hyper::header::HeaderValue;
use schemas::Timestamp;

const LENGTH: usize = "Sun, 06 Nov 1994 08:49:37 GMT".len();

/// Where a date has its hours, minutes and seconds, of two digits each.
const CLOCK: [usize; 3] = [17, 20, 23];

/// The last second of the year 9999, where the form ends.
const LAST: u64 = 253_402_300_799;

const DAY: u64 = 24 * 60 * 60;

/// Writes dates. What it wrote last is at hand: of a time that is asked for again and again the whole, and of all others
/// what a day's dates have in common.
#[derive(Debug, Default)]
pub(super) struct Dates {
    second: RefCell<Option<(u64, HeaderValue)>>,
    day: Cell<Option<(u64, [u8; LENGTH])>>,
}

impl Dates {
    /// The date of now.
    pub(super) fn now(&self, now: Timestamp) -> HeaderValue {
        let mut last = self.second.borrow_mut();
        match &*last {
            Some((second, date)) if *second == now.as_seconds() => date.clone(),
            _ => last.insert((now.as_seconds(), self.of(now))).1.clone(),
        }
    }

    /// The date of any time; of the year 9999 at the latest.
    pub(super) fn of(&self, time: Timestamp) -> HeaderValue {
        let seconds = time.as_seconds().min(LAST);
        let mut date = match self.day.get() {
            Some((day, date)) if day == seconds / DAY => date,
            _ => {
                let date = written(seconds);
                self.day.set(Some((seconds / DAY, date)));
                date
            }
        };
        for (at, number) in CLOCK.into_iter().zip([seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60]) {
            // Proof: both are below ten.
            #[allow(clippy::cast_possible_truncation)]
            let digits = [number / 10, number % 10].map(|digit| b'0' + digit as u8);
            date[at..at + 2].copy_from_slice(&digits);
        }
        // Proof: letters, digits and punctuation.
        HeaderValue::from_bytes(&date).unwrap_or(HeaderValue::from_static(""))
    }
}

fn written(seconds: u64) -> [u8; LENGTH] {
    let mut date = [b' '; LENGTH];
    let written =
        write!(date.as_mut_slice(), "{}", httpdate::HttpDate::from(UNIX_EPOCH + Duration::from_secs(seconds)));
    debug_assert!(written.is_ok(), "every date is as long as this one");
    date
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_date_is_that_of_its_second() {
        let dates = Dates::default();
        for (micros, date) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777_000_000, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (784_111_777_999_999, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (784_111_778_000_000, "Sun, 06 Nov 1994 08:49:38 GMT"),
            (784_111_777_000_000, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(dates.now(Timestamp::from_micros(micros)), date);
        }
    }

    proptest! {
        /// Whichever times were written before it, of the same day or of others.
        #[test]
        fn dates_are_those_of_the_library(days in prop::collection::vec(0..LAST / DAY + 1, 1..4), picks in prop::collection::vec((any::<prop::sample::Index>(), 0..DAY), 1..20)) {
            let dates = Dates::default();
            for (day, second) in picks {
                let seconds = day.get(&days) * DAY + second;
                let date = dates.of(Timestamp::from_seconds(seconds));
                let theirs = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
                prop_assert_eq!(date, theirs);
            }
        }
    }
}
