//! Texts for people: durations, and what a stranger wrote.

use std::time::Duration;

pub(crate) fn seconds(duration: &Duration) -> String {
    // To a thousandth: what is left of a deadline has nine digits that nobody asked for.
    format!("{} s", (duration.as_secs_f64() * 1000.0).round() / 1000.0)
}

/// Text of a stranger, fit for a terminal and a log.
pub(crate) fn printable(text: &str, characters: usize) -> String {
    text.chars().filter(|character| !character.is_control()).take(characters).collect()
}
