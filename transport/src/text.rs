//! Texts for people: durations, and what a stranger wrote.

use std::time::Duration;

pub(crate) fn seconds(duration: &Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

/// Text of a stranger, fit for a terminal and a log.
pub(crate) fn printable(text: &str, characters: usize) -> String {
    text.chars().filter(|character| !character.is_control()).take(characters).collect()
}
