//! Points in time saturate instead of wrapping, and print as RFC 3339.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use proptest::prelude::*;
use schemas::Timestamp;

#[test]
fn times_print_as_rfc_3339() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_399, "2000-02-28T23:59:59Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (951_868_800, "2000-03-01T00:00:00Z"),
        (1_709_164_800, "2024-02-29T00:00:00Z"),
        (1_790_000_000, "2026-09-21T14:13:20Z"),
        (4_107_542_399, "2100-02-28T23:59:59Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"),
        (253_402_300_799, "9999-12-31T23:59:59Z"),
    ] {
        assert_eq!(Timestamp::from_seconds(seconds).to_string(), text);
    }
    assert_eq!(Timestamp::from_micros(1_790_000_000_000_042).to_string(), "2026-09-21T14:13:20.000042Z");
    assert_eq!(Timestamp::MAX.to_string(), "586524-01-19T08:01:49.551615Z");
}

proptest! {
    #[test]
    fn days_follow_each_other(day in 0..200_000_000_u64) {
        let date = |day: u64| -> (u64, u64, u64) {
            let text = Timestamp::from_seconds(day * 86_400).to_string();
            let mut parts = text.split('T').next().unwrap().split('-').map(|part| part.parse().unwrap());
            (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap())
        };
        let (year, month, day_of_month) = date(day);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let length = match month {
            2 => 28 + u64::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let next = match (month, day_of_month) {
            (12, 31) => (year + 1, 1, 1),
            _ if day_of_month == length => (year, month + 1, 1),
            _ => (year, month, day_of_month + 1),
        };
        prop_assert_eq!(date(day + 1), next);
    }

    #[test]
    fn arithmetic_agrees_with_wide_integers_and_saturates(micros: u64, seconds: u64, nanos in 0..1_000_000_000_u32) {
        let (time, duration) = (Timestamp::from_micros(micros), Duration::new(seconds, nanos));
        let (wide, step) = (i128::from(micros), i128::try_from(duration.as_micros()).unwrap());
        let clamped = |wide: i128| Timestamp::from_micros(u64::try_from(wide.clamp(0, u64::MAX.into())).unwrap());
        prop_assert_eq!(time + duration, clamped(wide + step));
        prop_assert_eq!(time - duration, clamped(wide - step));
        let other = clamped(wide + step);
        prop_assert_eq!(other - time, Duration::from_micros(other.as_micros() - micros));
        prop_assert_eq!(time - other, Duration::ZERO);
        prop_assert_eq!(Timestamp::from_seconds(seconds), clamped(i128::from(seconds) * 1_000_000));
        prop_assert_eq!(time.as_seconds(), micros / 1_000_000);
    }
}
